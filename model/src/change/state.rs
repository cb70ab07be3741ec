//! Members, engines, and what an all-seeing client remembers.

use super::scope::{Fault, Given, Scope};
use crate::limits::MEMBERS;
use crate::state::{Mask, at, bit, has};
use core::hash::{Hash, Hasher};
use trilith_block::{MemberId, MemberSet, Membership, Term};

/// A configuration as production code has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Config(pub Membership);

impl Hash for Config {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Membership {
            generation,
            voters,
            next,
            joint,
            ..
        } = self.0;
        (generation, voters.0, next.0, joint).hash(state);
    }
}

/// Members as production code has them.
pub(super) fn set(mask: Mask) -> MemberSet {
    MemberSet(u32::from(mask))
}

/// All members of whom this is true.
pub(super) fn members_where(is: impl Fn(usize) -> bool) -> Mask {
    let they = (0..MEMBERS).filter(|m| is(*m));
    they.fold(0, |set, m| set | bit(m))
}

pub(super) fn id(member: usize) -> MemberId {
    MemberId::new(member).unwrap_or_else(|| unreachable!("{member} is below {MEMBERS}"))
}

impl Config {
    /// As the volume is made.
    fn first(voters: Mask) -> Config {
        Config(Membership {
            generation: 1,
            ..set(voters).into()
        })
    }

    /// False at an empty replica.
    pub(super) fn is_known(&self) -> bool {
        self.0.generation > 0
    }

    pub(super) fn generation(&self) -> u64 {
        self.0.generation
    }

    pub(super) fn has(&self, member: usize) -> bool {
        self.0.members().contains(id(member))
    }

    /// Whether these decide.
    pub(super) fn decides(&self, mask: Mask, fault: Option<Fault>) -> bool {
        let mut config = self.0;
        if fault == Some(Fault::JointIgnored) {
            config.joint = false;
        }
        config.is_majority(set(mask))
    }

    /// What one of the steps of C20 makes of it. `None`: not possible.
    pub(super) fn then(
        &self,
        term: u8,
        step: impl Fn(&Membership, Term) -> Option<Membership>,
    ) -> Option<Config> {
        step(&self.0, Term(u64::from(term))).map(Config)
    }
}

/// A replica. All but the session is durable.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Member {
    /// Highest term promised.
    pub term: u8,
    /// Engine that has its vote of that term.
    pub vote: u8,
    /// The configuration that it knows.
    pub config: Config,
    /// Term and position up to which it has everything. (0, 0): nothing.
    pub order: (u8, u8),
    /// The writes in that.
    pub content: Mask,
    /// The engine whose session is current.
    pub session: Option<u8>,
}

impl Member {
    /// It was replaced: it refuses everybody.
    pub(super) fn is_retired(&self, own: usize) -> bool {
        self.config.is_known() && !self.config.has(own)
    }
}

/// An entry of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Entry {
    /// The write with this number.
    Write(u8),
    /// A SYNCSET.
    Barrier,
}

/// How far an engine got.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Phase {
    /// It has its plan, and starts its term.
    #[default]
    Starting,
    /// A deciding set has started the term.
    Open,
    /// Nobody will ever listen to it again.
    Over,
}

/// An engine.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Leader {
    /// Its term.
    pub term: u8,
    /// How far it got.
    pub phase: Phase,
    /// The configuration that it goes by.
    pub config: Config,
    /// The last step, spread and not in force.
    pub pending: Option<Config>,
    /// Who has promised.
    pub promised: Mask,
    /// Generation that each member is known to have durably.
    pub known: [u64; MEMBERS],
    /// Members that were promisers with a whole copy: they start the term.
    pub first: Mask,
    /// Members that count.
    pub counted: Mask,
    /// Its term was open at some time.
    pub opened: bool,
    /// What the term begins with.
    pub base: Mask,
    /// What was issued.
    pub log: Vec<Entry>,
    /// Position that each member has accepted, in this term.
    pub accepted: [u8; MEMBERS],
    /// What was acknowledged, in positions.
    pub committed: u8,
    /// Writes that clients know of: acknowledged, or there to be read in an open term.
    pub seen: Mask,
    /// Position of the barrier behind the joint step. 0: the start of the term.
    pub barrier: u8,
    /// Begun in this term, and nobody has said yet what the newcomer lacks.
    pub fresh: bool,
    /// Who is to be let go.
    pub departing: Mask,
}

impl Leader {
    pub(super) fn durable(&self, config: &Config) -> Mask {
        members_where(|m| config.generation() <= self.known[m])
    }

    /// Members that have accepted everything up to here.
    pub(super) fn reached(&self, position: u8) -> Mask {
        members_where(|m| has(self.counted, m) && position <= self.accepted[m])
    }

    pub(super) fn end(&self) -> u8 {
        u8::try_from(self.log.len()).unwrap_or(u8::MAX)
    }
}

/// What went wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Broken {
    /// Two engines have opened one term.
    TwoLeaders,
    /// A client knows of a write that a later term has begun without.
    Lost,
    /// With everyone back who was not replaced or emptied, nobody could be elected.
    Stuck,
}

/// The world at a moment.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    /// Replicas.
    pub members: [Member; MEMBERS],
    /// Engines, in the order in which they were started.
    pub leaders: Vec<Leader>,
    /// What an engine is started with: the configuration that the volume was made with.
    pub made_with: Config,
    /// What may still happen.
    pub left: Given,
    /// Writes issued so far.
    pub writes: u8,
    /// Members whose disk was emptied.
    pub wiped: Mask,
    /// The first thing that went wrong.
    pub broken: Option<Broken>,
}

impl State {
    /// Engine 0 has term 1 open with the voters that the volume was made with.
    pub(super) fn open_volume(scope: &Scope) -> State {
        let config = Config::first(scope.voters);
        let mut members: [Member; MEMBERS] = Default::default();
        let mut leader = Leader {
            term: 1,
            phase: Phase::Open,
            opened: true,
            config,
            promised: scope.voters,
            first: scope.voters,
            counted: scope.voters,
            ..Leader::default()
        };
        for (at, member) in members.iter_mut().enumerate() {
            if has(scope.voters, at) {
                (member.term, member.order, member.config) = (1, (1, 0), config);
                member.session = Some(0);
                leader.known[at] = config.generation();
            }
        }
        State {
            members,
            leaders: vec![leader],
            made_with: config,
            left: scope.given,
            writes: 0,
            wiped: 0,
            broken: None,
        }
    }

    /// Members with a session of this engine.
    pub(super) fn here(&self, engine: u8) -> Mask {
        members_where(|m| self.members[m].session == Some(engine))
    }

    /// Terms that an engine may win now.
    pub(super) fn terms(&self, duel: bool) -> Vec<u8> {
        let highest = self.leaders.iter().map(|l| l.term).max().unwrap_or(0);
        if duel {
            vec![highest + 1, highest]
        } else {
            vec![highest + 1]
        }
    }

    /// Checks what can be seen at any moment.
    pub(super) fn judge(&mut self) {
        if self.broken.is_some() {
            return;
        }
        for newer in self.leaders.iter().filter(|l| l.opened) {
            let term = newer.term;
            let of_it = self.leaders.iter().filter(|l| l.opened && l.term == term);
            if of_it.count() > 1 {
                self.broken = Some(Broken::TwoLeaders);
                return;
            }
            // Also what an older engine acknowledges only now.
            let older = self.leaders.iter().filter(|l| l.term < term);
            if older.fold(0, |seen, l| seen | l.seen) & !newer.base != 0 {
                self.broken = Some(Broken::Lost);
                return;
            }
        }
        // Everyone is back who was not let go: the newest configuration among them is what a new
        // leader would find, and it must be able to go on with them.
        let lives = |m: usize| {
            let member = &self.members[m];
            member.config.is_known() && !member.is_retired(m)
        };
        let alive = members_where(lives);
        let newest = (0..MEMBERS)
            .filter(|m| has(alive, *m))
            .map(|m| self.members[m].config)
            .max_by_key(Config::generation);
        // One emptied disk of three is a failure like any other; what it takes with it is not a
        // fault of the configuration.
        let spared = self.wiped != 0;
        if !spared && !newest.is_some_and(|config| config.decides(alive, None)) {
            self.broken = Some(Broken::Stuck);
        }
    }

    /// Forgets what cannot matter any more, so that fewer states differ.
    pub(super) fn bury(&mut self) {
        for engine in 0..self.leaders.len() {
            let number = u8::try_from(engine).unwrap_or(u8::MAX);
            let leader = &mut self.leaders[engine];
            let term = leader.term;
            let hopeful = |m: &Member| m.term == term && m.vote == number || m.term < term;
            if leader.phase != Phase::Over && !self.members.iter().any(hopeful) {
                *leader = Leader {
                    term,
                    phase: Phase::Over,
                    opened: leader.opened,
                    base: leader.base,
                    seen: leader.seen,
                    ..Leader::default()
                };
            }
            leader.first &= !leader.counted;
            for member in 0..MEMBERS {
                if leader.known[member] < leader.config.generation() {
                    leader.known[member] = 0;
                }
                if !has(leader.counted, member) {
                    leader.accepted[member] = 0;
                }
            }
        }
        for member in &mut self.members {
            let over = |e: &u8| self.leaders[at(*e)].phase == Phase::Over;
            member.session = member.session.filter(|e| !over(e));
        }
    }

    pub(super) fn leader(&self, engine: u8) -> &Leader {
        &self.leaders[at(engine)]
    }
}
