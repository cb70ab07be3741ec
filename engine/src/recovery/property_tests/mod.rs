//! Random histories: terms with entries, crashes, power losses, demotions and joins; recoveries with
//! random majorities, cut off half way. Every value that must survive does, and what a recovery
//! repairs is equal afterwards.

use super::*;
use crate::recovery::testing::{Pool, Rng, member, policy};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use core::time::Duration;
use trilith_block::{
    BlockRange, BufSlice, Buffers, ExtentNo, Idx, Lba, MemberSet, Membership, Monotonic, SyncEpoch,
    Term, Uuid,
};
use trilith_wire::{EntryStatus, SlotStatus, StateFlags};

mod term;
mod witness;

/// Blocks that are written, in four chunks of three extents.
const PLACES: [(u64, u32); 4] = [(0, 6), (30, 4), (1024, 6), (3068, 4)];

type Data = BTreeMap<u64, u64>;

#[derive(Clone)]
struct Slot {
    range: BlockRange,
    status: SlotStatus,
    value: u64,
}

#[derive(Clone)]
struct Member {
    se: SyncEpoch,
    iss: MemberSet,
    w: u64,
    upto: u64,
    tidx: u64,
    window: BTreeMap<u64, Slot>,
    /// Accepted positions above `upto`, flushes and sync sets included.
    above: BTreeSet<u64>,
    al: BTreeSet<ExtentNo>,
    dirty: MemberMaps,
    dirty_durable: MemberMaps,
    need: ChunkMap,
    loss: u32,
    tainted: bool,
    now: Data,
    durable: Data,
    /// Next entry of the engine's log, and whether the session stands.
    at: usize,
    connected: bool,
    told: bool,
}

#[derive(Clone, Copy)]
enum Entry {
    Write {
        range: BlockRange,
        value: u64,
        skip: MemberSet,
    },
    Flush,
    SyncSet {
        n: u32,
        iss: MemberSet,
        /// In it by this entry: told so already, so that nobody keeps a dirty map for it.
        joined: MemberSet,
    },
}

struct Engine {
    term: u64,
    n: u32,
    iss: MemberSet,
    counted: MemberSet,
    log: Vec<(u64, Entry)>,
    acks: BTreeMap<u64, MemberSet>,
    next: u64,
    /// For a flush, what was committed when it was issued.
    flushes: BTreeMap<u64, BTreeMap<u64, usize>>,
    /// Epoch number by which a member was demoted.
    out: BTreeMap<usize, u32>,
    /// Of a volume with a witness.
    running: Option<witness::Running>,
}

/// What may be read at a block: the values in the order of their entries, which of them is
/// committed, which is flushed.
#[derive(Default, Clone)]
struct History {
    values: Vec<u64>,
    committed: usize,
    flushed: usize,
}

struct World {
    seed: u64,
    rng: Rng,
    members: Vec<Member>,
    history: BTreeMap<u64, History>,
    loss: u32,
    value: u64,
    term: u64,
    pool: Pool,
    /// A lossy attempt may have changed some members already.
    lossy_tried: bool,
    /// Who votes and holds no data, if one does.
    witness: MemberSet,
    /// The newest term has begun and is not in force yet: its values and its loss epoch.
    unopened: Option<(Data, u32)>,
    seen: BTreeMap<&'static str, u64>,
}

fn places() -> impl Iterator<Item = u64> {
    PLACES
        .iter()
        .flat_map(|(start, count)| *start..start + u64::from(*count))
}

fn get(data: &Data, lba: u64) -> u64 {
    data.get(&lba).copied().unwrap_or(0)
}

fn put(data: &mut Data, lba: u64, value: u64) {
    if value == 0 {
        data.remove(&lba);
    } else {
        data.insert(lba, value);
    }
}

fn written(data: &Data) -> Data {
    data.iter()
        .filter(|(_, value)| **value != 0)
        .map(|(lba, value)| (*lba, *value))
        .collect()
}

fn blocks(range: BlockRange) -> impl Iterator<Item = u64> {
    range.start.0..range.end().0
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng(seed);
        let count = if rng.chance(70) { 3 } else { 5 };
        let all = MemberSet::first(count);
        let fresh = Member {
            se: SyncEpoch::default(),
            iss: all,
            w: 0,
            upto: 0,
            tidx: 0,
            window: BTreeMap::new(),
            above: BTreeSet::new(),
            al: BTreeSet::new(),
            dirty: MemberMaps::new(),
            dirty_durable: MemberMaps::new(),
            need: ChunkMap::new(),
            loss: 0,
            tainted: false,
            now: Data::new(),
            durable: Data::new(),
            at: 0,
            connected: false,
            told: false,
        };
        let zero = History {
            values: vec![0],
            committed: 0,
            flushed: 0,
        };
        World {
            seed,
            rng,
            members: vec![fresh; count],
            history: places().map(|lba| (lba, zero.clone())).collect(),
            loss: 0,
            value: 0,
            term: 1,
            pool: Pool::default(),
            lossy_tried: false,
            witness: MemberSet::EMPTY,
            unopened: None,
            seen: BTreeMap::new(),
        }
    }

    fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    fn voters(&self) -> MemberSet {
        MemberSet::first(self.members.len())
    }

    /// Those that hold data.
    fn data(&self) -> MemberSet {
        self.voters().minus(self.witness)
    }

    fn membership(&self) -> Membership {
        Membership {
            witness: self.witness,
            ..self.voters().into()
        }
    }

    fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    // ---- recoveries

    fn promise(&self, m: usize) -> Promise {
        let me = &self.members[m];
        let mut p = crate::recovery::testing::promise(m, (me.se.term.0, me.se.n), &[], 0);
        p.state.iss = me.iss;
        (p.state.w, p.state.upto, p.state.tidx) = (Idx(me.w), Idx(me.upto), Idx(me.tidx));
        let last = me.window.keys().next_back().copied().unwrap_or(0);
        p.state.max_idx = Idx(me.upto.max(last).max(me.above.last().copied().unwrap_or(0)));
        p.state.loss = me.loss;
        p.state.replica = Uuid::NONE;
        p.state.flags = StateFlags {
            tainted: me.tainted,
            need: !me.need.is_empty(),
            ..StateFlags::default()
        };
        p.window = me
            .window
            .iter()
            .map(|(idx, s)| crate::recovery::testing::record(*idx, s.range, s.status))
            .collect();
        p.al = me.al_map();
        p.need = me.need.clone();
        p.dirty = me.dirty.clone();
        p
    }

    /// Elections until one opens with a majority; returns it.
    fn recover(&mut self) -> Option<(Outcome, u64)> {
        for _ in 0..40 {
            self.term += 1;
            let mut q: Vec<usize> = (0..self.members.len()).collect();
            while q.len() > self.majority() && self.rng.chance(40) {
                q.remove(self.rng.below(q.len()));
            }
            for m in &q {
                self.members[*m].connected = true;
            }
            let mut promises: Vec<Promise> = q.iter().map(|m| self.promise(*m)).collect();
            for p in &mut promises {
                p.state.flags.failed = self.rng.chance(4) && !self.witness.contains(p.member);
            }
            let patient = self.rng.chance(70);
            let waited = if patient {
                Duration::ZERO
            } else {
                Duration::from_secs(60)
            };
            let small_bytes = if self.rng.chance(50) { 64 << 20 } else { 0 };
            let policy = Policy {
                waited,
                small_bytes,
                ..policy()
            };
            let plan = match plan(&promises, self.membership(), &policy) {
                Ok(plan) => plan,
                Err(Blocked::WaitForMore { .. } | Blocked::NoSource { .. }) => {
                    self.saw("waits");
                    continue;
                }
                Err(other @ Blocked::NoMajority { .. }) => panic!("{other:?}"),
            };
            let canonical = self.check(&plan);
            self.saw(if plan.lossy { "lossy" } else { "clean" });
            if !plan.overrides.is_empty() {
                self.saw("overrides");
            }
            if !plan.lossy && self.members[plan.base.index()].tainted {
                self.saw("clean with a tainted base");
            }
            let raised = plan.loss > self.loss;
            let term = self.term;
            let Some((outcome, plan, canonical)) = self.carry_out(plan, canonical) else {
                self.lossy_tried |= raised;
                self.engine_dies();
                continue;
            };
            if self.opened(&plan, &outcome, &canonical) {
                return Some((outcome, term));
            }
            self.lossy_tried |= raised;
            self.saw("minority");
            if !self.witness.is_empty() && self.rng.chance(70) {
                // A later epoch of the term may get in force.
                self.unopened = Some((canonical, plan.loss));
                return Some((outcome, term));
            }
            self.engine_dies();
        }
        None
    }

    /// The values that the plan keeps must be allowed ones, and so must those that it may keep
    /// instead where a block cannot be read (C26).
    fn check(&mut self, plan: &Plan) -> Data {
        let mut canonical = Data::new();
        for lba in places() {
            let source = plan.source(Lba(lba));
            let block = crate::recovery::testing::range(lba, 1);
            let limbo = plan.limbo.touches(block);
            canonical.insert(lba, self.check_source(plan, source, lba, limbo));
            for other in plan.quorum.without(source).iter() {
                if plan.copies.may_be_base_of(other, block) {
                    let value = self.check_source(plan, other, lba, true);
                    if value != canonical[&lba] {
                        self.saw("another value");
                    }
                }
            }
        }
        canonical
    }

    /// A source's value must be allowed. Returns it.
    fn check_source(&self, plan: &Plan, source: MemberId, lba: u64, limbo: bool) -> u64 {
        let value = get(&self.members[source.index()].now, lba);
        let h = &self.history[&lba];
        let at = h.values.iter().rposition(|v| *v == value);
        let strict = plan.loss == self.loss || (!limbo && !self.lossy_tried);
        let floor = if strict { h.committed } else { h.flushed };
        assert!(
            at.is_some_and(|at| floor <= at),
            "seed {}, block {lba}: value {value} of member {source} at {at:?}, needed {floor} of \
             {:?}, lossy {}, limbo {limbo}",
            self.seed,
            h.values,
            plan.lossy
        );
        value
    }

    /// Runs the executor in a random order; `None` when it failed or the engine died half way. Else
    /// also the plan as it was carried out, and its values.
    fn carry_out(&mut self, plan: Plan, mut canonical: Data) -> Option<(Outcome, Plan, Data)> {
        let term = self.term;
        let first = plan.clone();
        let mut bad = BTreeSet::new();
        if self.rng.chance(25) {
            // What the base cannot read, now and then somebody else cannot read either.
            for lba in places() {
                for m in 0..self.members.len() {
                    if self.rng.chance(if m == plan.base.index() { 25 } else { 3 }) {
                        bad.insert((m, lba));
                    }
                }
            }
        }
        let config = RecoveryConfig {
            chunks_in_flight_max: 2,
            stall: Duration::from_secs(9),
        };
        let mut recovery = Recovery::new(plan, config);
        let mut out = Vec::new();
        let mut todo: Vec<RecoveryStep> = Vec::new();
        recovery.start(Monotonic(1), &mut out);
        let mut result = None;
        // Per mille and step; a recovery has between three and some thousand steps.
        let trouble = [0, 0, 1, 10, 100][self.rng.below(5)];
        loop {
            for step in out.drain(..) {
                match step {
                    RecoveryStep::Done(outcome) => result = Some(Some(outcome)),
                    RecoveryStep::Failed(_) => result = Some(None),
                    RecoveryStep::Reconcile { .. }
                    | RecoveryStep::Read { .. }
                    | RecoveryStep::Repair { .. }
                    | RecoveryStep::TermStart { .. } => todo.push(step),
                }
            }
            if result.is_some() || todo.is_empty() || self.rng.below(1000) < trouble / 3 {
                break;
            }
            if self.rng.below(1000) < trouble {
                let m = self.rng.below(self.members.len());
                if self.rng.chance(30) {
                    self.power(m);
                }
                self.members[m].connected = false;
                let event = RecoveryEvent::MemberLost(member(m));
                recovery.event(Monotonic(2), event, &mut self.pool, &mut out);
                continue;
            }
            let step = todo.swap_remove(self.rng.below(todo.len()));
            if let Some(event) = self.execute(&recovery, step, term, &bad) {
                recovery.event(Monotonic(2), event, &mut self.pool, &mut out);
            }
        }
        for step in todo {
            if let RecoveryStep::Repair {
                data: Some(slice), ..
            } = step
            {
                self.pool.release(slice.buf);
            }
        }
        assert_eq!(self.pool.held(), 0, "buffers are released");
        let outcome = result.flatten()?;
        let plan = recovery.into_plan();
        let changed: Vec<u64> = places()
            .filter(|lba| plan.source(Lba(*lba)) != first.source(Lba(*lba)))
            .collect();
        let mut counted = outcome.counted.iter();
        for lba in changed {
            self.saw("another source");
            assert!(plan.limbo.touches(crate::recovery::testing::range(lba, 1)));
            // Who counts is compared with it. It was checked with the plan.
            if let Some(m) = counted.find(|m| self.members[m.index()].connected) {
                canonical.insert(lba, self.check_source(&plan, m, lba, true));
                counted = outcome.counted.iter();
            }
        }
        Some((outcome, plan, canonical))
    }

    fn execute(
        &mut self,
        recovery: &Recovery,
        step: RecoveryStep,
        term: u64,
        bad: &BTreeSet<(usize, u64)>,
    ) -> Option<RecoveryEvent> {
        match step {
            RecoveryStep::Reconcile { member, loss } => {
                let me = self.reach(member)?;
                me.need.union(recovery.need(member));
                me.loss = me.loss.max(loss);
                Some(RecoveryEvent::ReconcileDone(member))
            }
            RecoveryStep::Read {
                member,
                range,
                token,
            } => {
                let me = self.reach(member)?;
                let values: Vec<u64> = blocks(range).map(|lba| get(&me.now, lba)).collect();
                let unread = blocks(range).any(|lba| bad.contains(&(member.index(), lba)));
                let result = if unread || self.rng.below(500) == 0 {
                    Err(EntryStatus::Io)
                } else if values.iter().all(|v| *v == 0) {
                    Ok(ReadData::Zero)
                } else {
                    Ok(ReadData::Bytes(self.pool.filled(&values)))
                };
                Some(RecoveryEvent::ReadDone { token, result })
            }
            RecoveryStep::Repair {
                member,
                range,
                token,
                data,
            } => {
                let values = self.take_values(range, data);
                let status = match self.rng.below(1000) {
                    0 => EntryStatus::Io,
                    1 => EntryStatus::Checksum,
                    _ => EntryStatus::Done,
                };
                let me = self.reach(member)?;
                if status == EntryStatus::Done {
                    assert!(me.need.touches(range), "R5: a repair only inside need");
                    blocks(range)
                        .zip(values)
                        .for_each(|(lba, value)| put(&mut me.now, lba, value));
                    me.al.insert(range.start.extent());
                }
                Some(RecoveryEvent::RepairDone {
                    member,
                    token,
                    status,
                })
            }
            RecoveryStep::TermStart {
                member,
                start,
                iss,
                loss,
            } => {
                let data = self.data();
                let me = self.reach(member)?;
                me.flush();
                me.se = SyncEpoch {
                    term: Term(term),
                    n: 0,
                };
                me.iss = iss;
                (me.w, me.upto, me.tidx) = (start.0, start.0, start.0);
                me.above.clear();
                me.window.clear();
                me.al.clear();
                me.need = recovery.limbo().clone();
                (me.tainted, me.loss) = (false, loss);
                me.dirty = MemberMaps::new();
                for p in data.minus(iss).iter() {
                    *me.dirty.get_mut(p) = recovery.dirty(p).clone();
                }
                me.dirty_durable = me.dirty.clone();
                Some(RecoveryEvent::TermStartDone(member))
            }
            RecoveryStep::Done(_) | RecoveryStep::Failed(_) => None,
        }
    }

    fn reach(&mut self, member: MemberId) -> Option<&mut Member> {
        let me = &mut self.members[member.index()];
        me.connected.then_some(me)
    }

    fn take_values(&mut self, range: BlockRange, data: Option<BufSlice>) -> Vec<u64> {
        match data {
            None => vec![0; range.count.0 as usize],
            Some(slice) => {
                let values = self.pool.values(slice);
                self.pool.release(slice.buf);
                values
            }
        }
    }

    /// The term has begun; true when a majority holds it.
    fn opened(&mut self, plan: &Plan, outcome: &Outcome, canonical: &Data) -> bool {
        for p in outcome
            .counted
            .iter()
            .filter(|p| self.members[p.index()].connected)
        {
            let found = written(&self.members[p.index()].now);
            assert_eq!(found, written(canonical), "seed {}, member {p}", self.seed);
        }
        if self.is_agreed(outcome) {
            self.agreed(canonical, plan.loss, outcome.counted);
            return true;
        }
        for lba in places() {
            let limbo = plan.limbo.touches(crate::recovery::testing::range(lba, 1));
            let h = self.history.get_mut(&lba).unwrap();
            let same = |v: &u64| *v == canonical[&lba];
            let at = h.values.iter().rposition(same).unwrap();
            if !limbo {
                // It may be read now, so it must stay. Nothing may be read before the client has
                // accepted the loss, and then the same holds.
                h.committed = at;
            } else if plan.loss > self.loss {
                h.committed = h.flushed;
            }
        }
        false
    }

    /// The limbo is over: these are the values.
    fn agreed(&mut self, canonical: &Data, loss: u32, counted: MemberSet) {
        for lba in places() {
            let only = History {
                values: vec![canonical[&lba]],
                committed: 0,
                flushed: 0,
            };
            self.history.insert(lba, only);
        }
        self.loss = loss;
        self.lossy_tried = false;
        for p in counted.iter() {
            // OPENED reaches some of them.
            if self.rng.chance(80) {
                self.members[p.index()].need.clear();
            }
        }
    }
}

/// Histories of a test run. `TRILITH_HISTORIES=10000 cargo test -p trilith-engine` runs more.
fn histories() -> u64 {
    let asked = std::env::var("TRILITH_HISTORIES").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(300)
}

#[test]
fn what_must_survive_survives_random_histories() {
    let wanted = [
        "clean",
        "lossy",
        "minority",
        "overrides",
        "told",
        "join",
        "another source",
        "another value",
    ];
    run(World::new, histories(), &wanted);
}

fn run(new: fn(u64) -> World, count: u64, wanted: &[&str]) {
    let mut seen: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in 0..count {
        let mut world = new(seed);
        for _ in 0..6 {
            let Some((outcome, term)) = world.recover() else {
                break;
            };
            world.lead(outcome, term);
        }
        for (what, count) in world.seen {
            *seen.entry(what).or_insert(0) += count;
        }
    }
    for what in wanted {
        assert!(
            seen.get(what).is_some_and(|n| *n > 10),
            "{what} is too rare: {seen:?}"
        );
    }
}
