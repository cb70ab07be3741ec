//! The model of a volume of two replicas and a witness (7.1): member 2 holds no data.

use super::*;
use crate::epochs::LiveEpochs;

/// What the engine of such a volume knows besides.
pub(super) struct Running {
    pub(super) live: LiveEpochs,
    pub(super) committed: BTreeSet<u64>,
    start: u64,
    /// Its first in-sync set has been in force, or a later one: clients are served.
    opened: bool,
    /// The witness cannot be reached.
    away: bool,
}

impl Engine {
    /// W6: one that grows waits until the epoch before it is in force.
    pub(super) fn is_settled(&self) -> bool {
        let in_force = |r: &Running| r.live.newest_in_force();
        self.running
            .as_ref()
            .map_or(!self.counted.is_empty(), in_force)
    }

    /// W5: tidx stops at what is committed.
    pub(super) fn committed_at_most(&self, all: u64) -> u64 {
        let Some(running) = self.running.as_ref() else {
            return all;
        };
        let first = running.start + 1;
        let open = (first..=all).find(|idx| !running.committed.contains(idx));
        open.map_or(all, |idx| idx - 1)
    }
}

impl World {
    fn with_witness(seed: u64) -> World {
        let mut world = World::new(seed);
        world.witness = MemberSet::of(member(2));
        let mut fresh = world.members[0].clone();
        fresh.iss = MemberSet::first(2);
        world.members = vec![fresh; 3];
        world
    }

    fn epoch_at(&self, term: u64, m: MemberId) -> Option<u32> {
        let se = self.members[m.index()].se;
        (se.term == Term(term)).then_some(se.n)
    }

    /// The term that has just begun is agreed on: a majority counts; with a witness the first epoch is
    /// in force (W12), maybe because the witness was told just now.
    pub(super) fn is_agreed(&mut self, outcome: &Outcome) -> bool {
        if self.witness.is_empty() {
            return outcome.counted.count() >= self.majority();
        }
        if outcome.counted != outcome.iss {
            return false;
        }
        let term = self.term;
        if self.rng.chance(60) {
            self.record(term, 0, outcome.iss);
        }
        let mut live = LiveEpochs::open(outcome.iss);
        live.look(&self.membership(), |m| self.epoch_at(term, m))
    }

    /// The witness has an epoch durable.
    fn record(&mut self, term: u64, n: u32, iss: MemberSet) {
        for w in self.witness.iter() {
            let me = &mut self.members[w.index()];
            let term = Term(term);
            me.se = SyncEpoch { term, n };
            me.iss = iss;
        }
    }

    pub(super) fn running(&self, outcome: &Outcome) -> Option<Running> {
        let mut live = LiveEpochs::open(outcome.iss);
        live.look(&self.membership(), |m| self.epoch_at(self.term, m));
        (!self.witness.is_empty()).then(|| Running {
            live,
            committed: BTreeSet::new(),
            start: outcome.start.0,
            opened: self.unopened.is_none(),
            away: false,
        })
    }

    pub(super) fn may_issue(&self, engine: &Engine) -> bool {
        let opened = engine.running.as_ref().is_none_or(|r| r.opened);
        // Who is about to join is waited for; entries are given places meanwhile.
        let joining = engine.running.is_some() && engine.iss != engine.counted;
        opened && (joining || self.decides(engine, engine.counted))
    }

    /// A majority, or all of the live in-sync sets (W3).
    pub(super) fn decides(&self, engine: &Engine, set: MemberSet) -> bool {
        match engine.running.as_ref() {
            None => set.count() >= self.majority(),
            Some(running) => running.live.commits(set),
        }
    }

    /// W6.
    pub(super) fn may_demote(&self, engine: &Engine, p: MemberId) -> bool {
        let rest = engine.iss.without(p);
        match engine.running.as_ref() {
            None => engine.counted.without(p).count() >= self.majority(),
            Some(running) => {
                let counts = rest.minus(engine.counted).is_empty() && !rest.is_empty();
                counts && running.live.has_room(rest) && !running.away
            }
        }
    }

    /// The joiner is lost before the joining SYNCSET gets to it: the others have it, and ask for it (W3).
    pub(super) fn half_join(&mut self, engine: &mut Engine, m: usize) {
        engine.iss = engine.iss.with(member(m));
        engine.out.remove(&m);
        self.members[m].told = false;
        self.sync_set(engine, MemberSet::EMPTY);
        self.saw("half a join");
    }

    /// The witness is told, comes or goes; who is tracked is tracked no more; the engine looks at what
    /// is in force.
    pub(super) fn witness_step(&mut self, engine: &mut Engine) {
        let Some(running) = engine.running.as_mut() else {
            return;
        };
        let durable = |m: MemberId| self.epoch_at(engine.term, m) >= Some(engine.n);
        let all = engine.iss.iter().all(durable);
        match self.rng.below(100) {
            0..15 if all && !running.away => self.record(engine.term, engine.n, engine.iss),
            15..18 => running.away = !running.away,
            18..20 => {
                if let Some(m) = (0..2).find(|m| self.members[*m].told) {
                    self.members[m].told = false;
                    self.sync_set(engine, MemberSet::EMPTY);
                    self.saw("tracked no more");
                }
            }
            _ => {}
        }
        self.look(engine);
    }

    fn look(&mut self, engine: &mut Engine) {
        let membership = self.membership();
        let Some(running) = engine.running.as_mut() else {
            return;
        };
        if !running
            .live
            .look(&membership, |m| self.epoch_at(engine.term, m))
        {
            return;
        }
        let counts = engine.iss.minus(engine.counted).is_empty();
        if !running.opened && running.live.newest_in_force() && counts {
            running.opened = true;
            if let Some((canonical, loss)) = self.unopened.take() {
                self.agreed(&canonical, loss, engine.counted);
                self.saw("opened late");
            }
        }
        for idx in engine.acks.keys().copied().collect::<Vec<_>>() {
            self.try_commit(engine, idx);
        }
    }
}

#[test]
fn what_must_survive_survives_random_histories_with_a_witness() {
    let wanted = [
        "clean",
        "clean with a tainted base",
        "lossy",
        "waits",
        "minority",
        "opened late",
        "overrides",
        "told",
        "tracked no more",
        "join",
        "half a join",
        "another source",
    ];
    // Of the broken rules that these find (W2, W3, W5, W9, W10), two take some hundred seeds.
    run(World::with_witness, 5 * histories(), &wanted);
}
