//! How large a world is explored, and what is broken in it.

use crate::state::Violation;

/// What may still happen in a history. Every kind of event that could go on for ever is counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Budget {
    /// Engines that may still be started; one term each at most.
    pub engines: u8,
    /// Client writes.
    pub writes: u8,
    /// Client flushes.
    pub flushes: u8,
    /// Process crashes of a replica. With nothing at the device it is the same as a cut session.
    pub crashes: u8,
    /// Power losses of one replica.
    pub powers: u8,
    /// Power losses of all hosts at once.
    pub blackouts: u8,
    /// Demotions that the engine decides on (lag).
    pub demotions: u8,
}

impl Budget {
    /// Nothing happens.
    pub const NONE: Budget = Budget {
        engines: 0,
        writes: 0,
        flushes: 0,
        crashes: 0,
        powers: 0,
        blackouts: 0,
        demotions: 0,
    };
}

/// A bounded world.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// Its name.
    pub name: &'static str,
    /// What may happen.
    pub budget: Budget,
    /// Blocks that are written.
    pub blocks: u8,
    /// A write is at the device for a while; otherwise it lands when it is received.
    pub async_io: bool,
    /// Extents leave the activity log.
    pub evict: bool,
    /// Two engines may campaign in the same term.
    pub duel: bool,
}

/// The protocol, or one rule of it left out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Variant {
    /// As it is.
    Correct,
    /// R3 without the overlay: the base alone is canonical.
    NoUnion,
    /// TOLD goes out as soon as a member is demoted.
    NoD1,
    /// Limbo ends with the first TERMSTART, not with OPENED (R9).
    LimboDropped,
    /// A member that lost power claims to know what it accepted.
    TaintIgnored,
    /// R3, clean: the base is the member with the highest watermark, whatever its sync epoch. Not
    /// a fault: see `docs/verification-model.md`.
    BaseByWatermark,
    /// R3, clean: the base is a member of the lowest sync epoch of the newest term.
    BaseLowestEpoch,
    /// The vote is forgotten by a crash.
    VoteForgotten,
    /// RECONCILE is acknowledged and not made durable (R5).
    IntentForgotten,
    /// PROMISE goes out while older writes are at the device (V3).
    NoDrain,
    /// tidx passes what a majority accepted.
    EagerTidx,
    /// Acks of a member that is being rebuilt count.
    RebuilderCounts,
    /// The watermark is written without a device flush (F1).
    FlushIsEmpty,
    /// A lossy recovery keeps the loss epoch.
    LossHidden,
    /// A SYNCSET does not turn window slots into dirty marks.
    NoConversion,
    /// TERMSTART does not flush.
    StartWithoutFlush,
    /// An extent leaves the activity log with slots of it in the window (L2 b).
    EagerEviction,
}

impl Variant {
    /// Every variant that is a fault, with the world in which it is found and the properties of
    /// which it must break one.
    pub fn faults() -> Vec<(Variant, Scope, Vec<Violation>)> {
        let lost = vec![Violation::CommittedLost];
        let incoherent = vec![Violation::Diverged, Violation::ReadReverted];
        vec![
            (Variant::NoUnion, Scope::slow_crash(), lost.clone()),
            (Variant::NoD1, Scope::demotion(), lost.clone()),
            (
                Variant::LimboDropped,
                Scope::election(),
                vec![Violation::ReadReverted],
            ),
            (Variant::TaintIgnored, Scope::power(), lost.clone()),
            (Variant::BaseLowestEpoch, Scope::demotion(), lost.clone()),
            (
                Variant::VoteForgotten,
                Scope::duel(),
                vec![Violation::TwoLeaders],
            ),
            (Variant::IntentForgotten, Scope::election(), incoherent),
            (
                Variant::NoDrain,
                Scope::devices(),
                vec![
                    Violation::Diverged,
                    Violation::ReadReverted,
                    Violation::CommittedLost,
                ],
            ),
            (Variant::EagerTidx, Scope::election(), lost.clone()),
            (Variant::RebuilderCounts, Scope::demotion(), lost.clone()),
            (
                Variant::FlushIsEmpty,
                Scope::blackout(),
                vec![Violation::FlushedLost],
            ),
            (
                Variant::LossHidden,
                Scope::blackout(),
                vec![Violation::WrongLossEpoch],
            ),
        ]
    }
}

impl Scope {
    const fn new(name: &'static str, budget: Budget) -> Scope {
        Scope {
            name,
            budget,
            blocks: 2,
            async_io: false,
            evict: false,
            duel: false,
        }
    }

    /// Elections after elections.
    pub const fn election() -> Scope {
        let mut budget = Budget::NONE;
        budget.engines = 2;
        budget.writes = 1;
        Scope::new("election", budget)
    }

    /// Elections with a crash between any two steps.
    pub const fn crashes() -> Scope {
        let mut budget = Scope::election().budget;
        budget.crashes = 1;
        Scope::new("crashes", budget)
    }

    /// Two engines that want the same term.
    pub const fn duel() -> Scope {
        let mut budget = Budget::NONE;
        budget.engines = 2;
        budget.crashes = 1;
        let mut scope = Scope::new("duel", budget);
        scope.duel = true;
        scope
    }

    /// Writes at the device while other things happen.
    pub const fn devices() -> Scope {
        let mut budget = Budget::NONE;
        budget.engines = 1;
        budget.writes = 2;
        let mut scope = Scope::new("devices", budget);
        scope.async_io = true;
        scope
    }

    /// The same, and a process ends meanwhile.
    pub const fn slow_crash() -> Scope {
        let mut scope = Scope::devices();
        scope.name = "slow-crash";
        scope.budget.crashes = 1;
        scope
    }

    /// Power lost at one replica.
    pub const fn power() -> Scope {
        let mut budget = Budget::NONE;
        budget.engines = 1;
        budget.writes = 1;
        budget.powers = 1;
        Scope::new("power", budget)
    }

    /// Power lost everywhere, after a flush.
    pub const fn blackout() -> Scope {
        let mut budget = Budget::NONE;
        budget.engines = 1;
        budget.writes = 1;
        budget.flushes = 1;
        budget.blackouts = 1;
        let mut scope = Scope::new("blackout", budget);
        scope.blocks = 1;
        scope
    }

    /// Demotion, D1, TOLD, copies, join.
    pub const fn demotion() -> Scope {
        let mut budget = Budget::NONE;
        budget.engines = 1;
        budget.writes = 1;
        budget.demotions = 1;
        Scope::new("demotion", budget)
    }

    /// The worlds of the tests.
    pub fn small() -> Vec<Scope> {
        vec![
            Scope::election(),
            Scope::duel(),
            Scope::devices(),
            Scope::blackout(),
            Scope::demotion(),
        ]
    }

    /// Larger worlds.
    pub fn medium() -> Vec<Scope> {
        let mut all = Scope::small();
        all.push(Scope::power());
        all
    }

    /// Worlds that have not been explored to their end.
    pub fn large() -> Vec<Scope> {
        vec![Scope::slow_crash(), Scope::crashes()]
    }
}
