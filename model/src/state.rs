//! What the world consists of: replicas, engines, and what an all-seeing client remembers.
//!
//! Values are the numbers of the writes that made them: 0 at first, then 1, 2, ... in the order in
//! which they were issued, so that a later write has a higher value.

use crate::limits::{BLOCKS, REPLICAS};
use crate::scope::Budget;

/// A set of members, blocks or values: bit i = number i.
pub(crate) type Mask = u8;

/// All members.
pub(crate) const EVERYONE: Mask = 0b111;

/// The set of one.
pub(crate) const fn bit(number: usize) -> Mask {
    1 << number
}

/// Whether the set has it.
pub(crate) const fn has(set: Mask, number: usize) -> bool {
    set & bit(number) != 0
}

/// Replica or engine number of an id that is kept as a byte.
pub(crate) fn at(id: u8) -> usize {
    usize::from(id)
}

/// How far an entry got at a replica.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum SlotState {
    /// At the device now.
    Flying,
    /// Was at the device when the process ended; landed or not.
    Submitted,
    /// Accepted.
    Accepted,
    /// Only the header came.
    Skipped,
}

/// A data entry in a window.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Slot {
    /// Position.
    pub idx: u8,
    /// Block written.
    pub block: u8,
    /// Value written.
    pub value: u8,
    /// How far it got.
    pub state: SlotState,
}

/// One replica.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Replica {
    /// Durable: highest term promised.
    pub term: u8,
    /// Durable: engine that has its vote of that term.
    pub vote: u8,
    /// Durable: sync epoch.
    pub se: (u8, u8),
    /// Durable: in-sync set of that epoch.
    pub iss: Mask,
    /// Durable: tracked set of that epoch.
    pub trk: Mask,
    /// Durable: everything up to here is on stable media.
    pub w: u8,
    /// Durable: loss epoch.
    pub loss: u8,
    /// Durable: it lost its window.
    pub tainted: bool,
    /// Durable: its blocks that may differ from the rest.
    pub need: Mask,
    /// Durable: its activity log.
    pub al: Mask,
    /// Durable: what each peer may lack, as of the last barrier.
    pub dirty_durable: [Mask; REPLICAS],
    /// What a read returns.
    pub now: [u8; BLOCKS],
    /// Values that the block may have after a power loss.
    pub maybe: [Mask; BLOCKS],
    /// Until power loss: everything up to here is accepted.
    pub upto: u8,
    /// Until power loss: accepted by all of `trk`, as far as it was told.
    pub tidx: u8,
    /// Until power loss: its window, by rising position.
    pub window: Vec<Slot>,
    /// Until power loss: what each peer may lack.
    pub dirty: [Mask; REPLICAS],
    /// Of this process: the engine whose session is current.
    pub session: Option<u8>,
    /// Of this session: last position received.
    pub position: u8,
    /// Only with the drain left out (a broken variant): writes of an older session at the device.
    pub stray: Vec<(u8, u8)>,
}

impl Replica {
    /// In the in-sync set of its own durable epoch.
    pub(crate) fn complete(&self, own: usize) -> bool {
        has(self.iss, own)
    }
}

/// How far an engine got.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Asks for votes.
    Voting,
    /// R5.
    Reconciling,
    /// R6.
    Repairing,
    /// R7: TERMSTART is out, nobody has acknowledged.
    Starting,
    /// At least one member has: read-only, or with a majority active.
    Live,
    /// It can never do anything again.
    Dead,
}

/// What a member is in an engine's term.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Standing {
    /// In the in-sync set.
    InSync,
    /// Out since this epoch.
    Out {
        /// Number of the epoch.
        since: u8,
    },
    /// Told so, receives the stream, is being copied to.
    Tracked {
        /// Out since this epoch.
        since: u8,
        /// Receives what comes after this position.
        c0: u8,
    },
    /// Its join is in the stream.
    Joining,
}

/// What an entry is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// A write.
    Write {
        /// Block.
        block: u8,
        /// Value.
        value: u8,
        /// Members that get the header only, or nothing.
        skip: Mask,
    },
    /// A flush that, once committed, covers these values.
    Flush {
        /// For each block the lowest value that may be found after any power loss.
        cover: [u8; BLOCKS],
    },
    /// A new sync epoch.
    Sync {
        /// Its number.
        n: u8,
        /// In-sync set.
        iss: Mask,
        /// Tracked set.
        trk: Mask,
        /// Who joins.
        join: Option<u8>,
        /// For the joiner: what absent members lack.
        dirty: [Mask; REPLICAS],
        /// For the joiner: the limbo.
        limbo: Mask,
    },
}

/// An entry of an engine's stream.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Entry {
    /// What.
    pub kind: Kind,
    /// Members that it goes to.
    pub sent: Mask,
    /// Members that accepted it, as far as the engine knows.
    pub acks: Mask,
    /// A majority of the counted members has it.
    pub committed: bool,
}

/// One engine, which leads at most one term.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Engine {
    /// Its term.
    pub term: u8,
    /// How far it got.
    pub phase: Phase,
    /// Who has ever promised.
    pub promised: Mask,
    /// The merge: base, and for each block the member that holds its canonical value.
    pub source: [u8; BLOCKS],
    /// Blocks that RECONCILE makes each member remember.
    pub intent: [Mask; REPLICAS],
    /// Members that owe RECONCILEDONE.
    pub unreconciled: Mask,
    /// Blocks that are still to be repaired at each member.
    pub unrepaired: [Mask; REPLICAS],
    /// Loss epoch of the term.
    pub loss: u8,
    /// Position of the TERMSTART.
    pub start: u8,
    /// In-sync set of the TERMSTART.
    pub first_iss: Mask,
    /// In-sync set.
    pub iss: Mask,
    /// Tracked set.
    pub trk: Mask,
    /// Members whose acks count.
    pub counted: Mask,
    /// A majority counted at some time: limbo is over.
    pub opened: bool,
    /// Blocks without an agreed value.
    pub limbo: Mask,
    /// Number of the sync epoch.
    pub n: u8,
    /// Highest epoch that is durable at each member, plus one; 0: none.
    pub epoch_done: [u8; REPLICAS],
    /// What each member is.
    pub standing: [Standing; REPLICAS],
    /// What each member may lack.
    pub dirty: [Mask; REPLICAS],
    /// Accepted by all of `trk`.
    pub tidx: u8,
    /// The stream; the first entry is at `start + 1`.
    pub log: Vec<Entry>,
}

impl Engine {
    /// Position of the newest entry.
    pub(crate) fn last(&self) -> u8 {
        self.start + u8::try_from(self.log.len()).unwrap_or(u8::MAX)
    }

    /// The entry at a position.
    pub(crate) fn entry(&self, idx: u8) -> Option<&Entry> {
        let index = idx.checked_sub(self.start + 1)?;
        self.log.get(at(index))
    }

    /// The entry at a position.
    pub(crate) fn entry_mut(&mut self, idx: u8) -> Option<&mut Entry> {
        let index = idx.checked_sub(self.start + 1)?;
        self.log.get_mut(at(index))
    }

    /// Positions of the stream.
    pub(crate) fn positions(&self) -> std::ops::RangeInclusive<u8> {
        self.start + 1..=self.last()
    }

    /// Blocks of the writes above a position.
    pub(crate) fn blocks_above(&self, idx: u8) -> Mask {
        let entries = self.positions().zip(&self.log);
        entries.fold(0, |blocks, (at_idx, entry)| match entry.kind {
            Kind::Write { block, .. } if idx < at_idx => blocks | bit(at(block)),
            Kind::Write { .. } | Kind::Flush { .. } | Kind::Sync { .. } => blocks,
        })
    }

    /// Writes over a block.
    pub(crate) fn writes_of(&self, wanted: usize) -> impl Iterator<Item = &Entry> {
        self.log.iter().filter(
            move |entry| matches!(entry.kind, Kind::Write { block, .. } if at(block) == wanted),
        )
    }
}

/// What must never happen. Each is one property of the model.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Violation {
    /// I1: two engines got a majority of the promises of one term.
    TwoLeaders,
    /// Theorem 3: a write was acknowledged in an older term which the open one does not hold.
    FencedAck,
    /// I5: an open term of the same loss epoch lacks an acknowledged write.
    CommittedLost,
    /// I6: a flushed write is gone.
    FlushedLost,
    /// I14: a value was read and then an older one was.
    ReadReverted,
    /// I8: counted members of a new term differ.
    Diverged,
    /// I16: a member was told that it is out before a majority knew durably.
    ToldTooEarly,
    /// I17: the loss epoch rose without a lossy recovery, or did not rise with one.
    WrongLossEpoch,
}

impl Violation {
    /// All of them.
    pub const ALL: [Violation; 8] = [
        Violation::TwoLeaders,
        Violation::FencedAck,
        Violation::CommittedLost,
        Violation::FlushedLost,
        Violation::ReadReverted,
        Violation::Diverged,
        Violation::ToldTooEarly,
        Violation::WrongLossEpoch,
    ];

    /// Name of the property that it breaks.
    pub fn name(self) -> &'static str {
        match self {
            Violation::TwoLeaders => "I1 one leader in a term",
            Violation::FencedAck => "T3 what a fenced engine acknowledges is in the newer term",
            Violation::CommittedLost => "I5 committed writes are in every later term",
            Violation::FlushedLost => "I6 flushed writes survive every power loss",
            Violation::ReadReverted => "I14 what was read stays",
            Violation::Diverged => "I8 a new term begins equal",
            Violation::ToldTooEarly => "I16 D1 before TOLD",
            Violation::WrongLossEpoch => "I17 loss epoch rises iff lossy",
        }
    }
}

/// What an all-seeing client remembers. Nothing in the protocol reads it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Witness {
    /// Value of the next write.
    pub next_value: u8,
    /// Per block the newest value that was acknowledged or read in this loss epoch.
    pub floor: [u8; BLOCKS],
    /// Per block the newest value that a flush covers.
    pub flushed: [u8; BLOCKS],
    /// Loss epoch of the newest open term.
    pub epoch: u8,
    /// Lossy recoveries begun.
    pub lossy: u8,
    /// Bit i = the i-th of [`Violation::ALL`] has happened.
    pub violations: Mask,
}

impl Witness {
    /// Notes that something happened that must not.
    pub(crate) fn blame(&mut self, violation: Violation) {
        self.violations |= 1 << (violation as u8);
    }

    /// Whether it has happened.
    pub(crate) fn has_seen(&self, violation: Violation) -> bool {
        self.violations & (1 << (violation as u8)) != 0
    }
}

/// The world.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    /// Replicas by member number.
    pub replicas: [Replica; REPLICAS],
    /// Engines in the order in which they were started.
    pub engines: Vec<Engine>,
    /// What the client saw.
    pub witness: Witness,
    /// What may still be done.
    pub left: Budget,
}

impl State {
    /// A volume just after its first term was opened: engine 0 leads term 1, all are equal.
    pub(crate) fn open_volume(left: Budget) -> State {
        let replica = Replica {
            term: 1,
            vote: 0,
            se: (1, 0),
            iss: EVERYONE,
            trk: EVERYONE,
            w: 0,
            loss: 0,
            tainted: false,
            need: 0,
            al: 0,
            dirty_durable: [0; REPLICAS],
            now: [0; BLOCKS],
            maybe: [1; BLOCKS],
            upto: 0,
            tidx: 0,
            window: Vec::new(),
            dirty: [0; REPLICAS],
            session: Some(0),
            position: 0,
            stray: Vec::new(),
        };
        let mut engine = State::new_engine(1);
        engine.phase = Phase::Live;
        engine.promised = EVERYONE;
        engine.first_iss = EVERYONE;
        engine.iss = EVERYONE;
        engine.trk = EVERYONE;
        engine.counted = EVERYONE;
        engine.opened = true;
        engine.epoch_done = [1; REPLICAS];
        State {
            replicas: [replica.clone(), replica.clone(), replica],
            engines: vec![engine],
            witness: Witness {
                next_value: 1,
                floor: [0; BLOCKS],
                flushed: [0; BLOCKS],
                epoch: 0,
                lossy: 0,
                violations: 0,
            },
            left,
        }
    }

    /// An engine that has just been started.
    pub(crate) fn new_engine(term: u8) -> Engine {
        Engine {
            term,
            phase: Phase::Voting,
            promised: 0,
            source: [0; BLOCKS],
            intent: [0; REPLICAS],
            unreconciled: 0,
            unrepaired: [0; REPLICAS],
            loss: 0,
            start: 0,
            first_iss: 0,
            iss: 0,
            trk: 0,
            counted: 0,
            opened: false,
            limbo: 0,
            n: 0,
            epoch_done: [0; REPLICAS],
            standing: [Standing::InSync; REPLICAS],
            dirty: [0; REPLICAS],
            tidx: 0,
            log: Vec::new(),
        }
    }

    /// Members that have a session of this engine.
    pub(crate) fn sessions(&self, engine: u8) -> Mask {
        (0..REPLICAS)
            .filter(|r| self.replicas[*r].session == Some(engine))
            .fold(0, |set, r| set | bit(r))
    }
}
