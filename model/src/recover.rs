//! Votes and the merge: 5.2, R1 to R8. The rules R1 to R4 are not written down a second time: the
//! production function computes the plan from the replicas of the model.

use crate::limits::{BLOCKS, MAJORITY, REPLICAS};
use crate::scope::Variant;
use crate::state::{
    Engine, Mask, Phase, Replica, SlotState, Standing, State, Violation, at, bit, has,
};
use std::time::Duration;
use trilith_block::limits::{CHUNK_BLOCKS, CHUNK_BYTES};
use trilith_block::{
    BlockRange, Blocks, ChunkMap, ExtentNo, Idx, Lba, MemberId, MemberSet, SyncEpoch, Term, Uuid,
};
use trilith_engine::recovery::{
    LOSSY_WAIT_DEFAULT, MemberMaps, Plan, Policy, Promise, SMALL_BYTES_DEFAULT, plan,
};
use trilith_wire::{ReplicaState, SlotStatus, StateFlags, WindowRecord};

/// Block of the model to block of the volume: each has its own chunk.
fn lba(block: usize) -> Lba {
    Lba(u64::try_from(block).unwrap_or(0) * u64::from(CHUNK_BLOCKS))
}

fn to_chunks(blocks: Mask) -> ChunkMap {
    let mut map = ChunkMap::new();
    map.set_mask(ExtentNo(0), u64::from(blocks));
    map
}

fn from_chunks(map: &ChunkMap) -> Mask {
    Mask::try_from(map.mask(ExtentNo(0)) & 0b11).unwrap_or(0)
}

/// Members under other names. The plan breaks ties by name; the model explores each outcome.
#[derive(Clone, Copy)]
struct Names(usize);

impl Names {
    fn outside(self, own: usize) -> MemberId {
        let index = (own + self.0) % REPLICAS;
        MemberId::new(index).unwrap_or_else(|| unreachable!("{index} is below {REPLICAS}"))
    }

    fn inside(self, member: MemberId) -> usize {
        (member.index() + REPLICAS - self.0) % REPLICAS
    }

    fn set_outside(self, set: Mask) -> MemberSet {
        (0..REPLICAS)
            .filter(|r| has(set, *r))
            .fold(MemberSet::EMPTY, |all, r| all.with(self.outside(r)))
    }

    fn set_inside(self, set: MemberSet) -> Mask {
        set.iter().fold(0, |all, m| all | bit(self.inside(m)))
    }
}

fn promise(own: usize, replica: &Replica, names: Names, variant: Variant) -> Promise {
    let newest_slot = replica.window.iter().map(|s| s.idx).max().unwrap_or(0);
    let n = match variant {
        Variant::BaseByWatermark => replica.w,
        Variant::BaseLowestEpoch => u8::MAX - replica.se.1,
        _ => replica.se.1,
    };
    let member = names.outside(own);
    let state = ReplicaState {
        replica: Uuid([u8::try_from(member.index()).unwrap_or(0) + 1; 16]),
        boot: Uuid::NONE,
        voted_engine: Uuid::NONE,
        leader: Uuid::NONE,
        term: Term(u64::from(replica.term)),
        attach_epoch: 0,
        se: SyncEpoch {
            term: Term(u64::from(replica.se.0)),
            n: u32::from(n),
        },
        iss: names.set_outside(replica.iss),
        trk: names.set_outside(replica.trk),
        loss: u32::from(replica.loss),
        w: Idx(u64::from(replica.w)),
        upto: Idx(u64::from(replica.upto)),
        tidx: Idx(u64::from(replica.tidx)),
        max_idx: Idx(u64::from(newest_slot.max(replica.upto))),
        capacity: capacity_bytes(),
        free_extents: 0,
        credit_entries: 0,
        credit_bytes: 0,
        member,
        config: MemberSet::first(REPLICAS).into(),
        flags: StateFlags {
            tainted: replica.tainted && variant != Variant::TaintIgnored,
            need: replica.need != 0,
            ..StateFlags::default()
        },
        lease_left_ms: 0,
        window_count: 0,
    };
    let mut dirty = MemberMaps::new();
    for (peer, blocks) in replica.dirty.iter().enumerate() {
        *dirty.get_mut(names.outside(peer)) = to_chunks(*blocks);
    }
    Promise {
        member,
        state,
        window: replica.window.iter().map(record).collect(),
        al: to_chunks(replica.al),
        need: to_chunks(replica.need),
        dirty,
    }
}

fn record(slot: &crate::state::Slot) -> WindowRecord {
    WindowRecord {
        idx: Idx(u64::from(slot.idx)),
        range: BlockRange::new(lba(at(slot.block)), Blocks(1)),
        status: match slot.state {
            SlotState::Flying | SlotState::Submitted => SlotStatus::Submitted,
            SlotState::Accepted => SlotStatus::Accepted,
            SlotState::Skipped => SlotStatus::Skipped,
        },
        skip: MemberSet::EMPTY,
    }
}

fn capacity_bytes() -> u64 {
    u64::try_from(BLOCKS).unwrap_or(0) * u64::from(CHUNK_BYTES)
}

impl State {
    /// A new engine. In a duel it may take a term for which another one campaigns.
    pub(crate) fn start_engine(&mut self, term: u8) {
        self.left.engines -= 1;
        self.engines.push(State::new_engine(term));
    }

    /// V1 to V4.
    pub(crate) fn may_vote(&self, engine: u8, member: usize) -> bool {
        let (e, r) = (&self.engines[at(engine)], &self.replicas[member]);
        let fresh = r.term < e.term;
        let again = r.term == e.term && r.vote == engine && r.session != Some(engine);
        matches!(e.phase, Phase::Voting) && (fresh || again)
    }

    pub(crate) fn vote(&mut self, engine: u8, member: usize, variant: Variant) {
        let term = self.engines[at(engine)].term;
        self.take_session(engine, member, variant);
        self.engines[at(engine)].promised |= bit(member);
        let led = |e: &Engine| e.term == term && MAJORITY <= e.promised.count_ones();
        if self.engines.iter().filter(|e| led(e)).count() > 1 {
            self.witness.blame(Violation::TwoLeaders);
        }
    }

    /// The replica now follows this engine; nothing older is at its device.
    pub(crate) fn take_session(&mut self, engine: u8, member: usize, variant: Variant) {
        let r = &mut self.replicas[member];
        r.term = self.engines[at(engine)].term;
        r.vote = engine;
        r.session = Some(engine);
        r.position = 0;
        for slot in 0..r.window.len() {
            let (idx, block, value) = {
                let s = r.window[slot];
                (s.idx, s.block, s.value)
            };
            if r.window[slot].state != SlotState::Flying {
                continue;
            }
            if variant == Variant::NoDrain {
                r.window[slot].state = SlotState::Submitted;
                r.stray.push((block, value));
            } else {
                r.land(member, idx);
            }
        }
    }

    /// The plan of this engine, from all that promised and are connected.
    fn plan_of(&self, engine: u8, names: Names, variant: Variant) -> Option<Plan> {
        let policy = Policy {
            capacity_bytes: capacity_bytes(),
            lossy_wait: Some(LOSSY_WAIT_DEFAULT),
            waited: Duration::MAX,
            small_bytes: SMALL_BYTES_DEFAULT,
        };
        let quorum = self.sessions(engine);
        let voters = MemberSet::first(REPLICAS);
        let ask = |variant| {
            let promises: Vec<Promise> = (0..REPLICAS)
                .filter(|r| has(quorum, *r))
                .map(|r| promise(r, &self.replicas[r], names, variant))
                .collect();
            plan(&promises, voters, &policy).ok()
        };
        match variant {
            Variant::BaseByWatermark | Variant::BaseLowestEpoch => {
                let honest = ask(Variant::Correct)?;
                if honest.lossy {
                    return Some(honest);
                }
                ask(variant)
            }
            _ => ask(variant),
        }
    }

    pub(crate) fn may_plan(&self, engine: u8) -> bool {
        self.engines[at(engine)].phase == Phase::Voting
            && MAJORITY <= self.sessions(engine).count_ones()
    }

    /// R1 to R4. False: no plan with these promises.
    pub(crate) fn make_plan(&mut self, engine: u8, turn: u8, variant: Variant) -> bool {
        let names = Names(at(turn));
        let Some(plan) = self.plan_of(engine, names, variant) else {
            return false;
        };
        let quorum = self.sessions(engine);
        let highest = (0..REPLICAS)
            .filter(|r| has(quorum, *r))
            .map(|r| self.replicas[r].loss)
            .max()
            .unwrap_or(0);
        let planned = u8::try_from(plan.loss).unwrap_or(u8::MAX);
        let loss = match variant {
            Variant::LossHidden => highest,
            _ => planned,
        };
        if plan.lossy {
            self.witness.lossy += 1;
        }
        if (plan.lossy && loss <= self.witness.epoch) || (!plan.lossy && loss != highest) {
            self.witness.blame(Violation::WrongLossEpoch);
        }
        let e = &mut self.engines[at(engine)];
        e.loss = loss;
        e.iss = names.set_inside(plan.first_iss);
        e.trk = e.iss;
        e.start = u8::try_from(plan.start.0).unwrap_or(u8::MAX);
        e.tidx = e.start;
        e.limbo = from_chunks(&plan.limbo);
        let base = names.inside(plan.base);
        let mut overridden = 0;
        for block in 0..BLOCKS {
            let mut source = names.inside(plan.source(lba(block)));
            if variant == Variant::NoUnion {
                source = base;
            }
            if source != base {
                overridden |= bit(block);
            }
            e.source[block] = u8::try_from(source).unwrap_or(0);
        }
        e.unreconciled = 0;
        for member in 0..REPLICAS {
            let differing = from_chunks(plan.differing.get(names.outside(member)));
            e.dirty[member] = differing;
            let touched = if !has(e.iss, member) {
                0
            } else if member == base {
                overridden
            } else {
                differing
            };
            e.intent[member] = touched;
            let knows_loss = self.replicas[member].loss == loss;
            if has(quorum, member) && (touched != 0 || !knows_loss) {
                e.unreconciled |= bit(member);
            }
            e.unrepaired[member] = touched;
            for block in 0..BLOCKS {
                if at(e.source[block]) == member {
                    e.unrepaired[member] &= !bit(block);
                }
            }
        }
        e.phase = Phase::Reconciling;
        self.settle_recovery(engine);
        true
    }

    /// R5 at one member.
    pub(crate) fn may_reconcile(&self, engine: u8, member: usize) -> bool {
        let e = &self.engines[at(engine)];
        e.phase == Phase::Reconciling && has(e.unreconciled, member)
    }

    pub(crate) fn reconcile(&mut self, engine: u8, member: usize, variant: Variant) {
        let e = &mut self.engines[at(engine)];
        e.unreconciled &= !bit(member);
        let r = &mut self.replicas[member];
        if variant != Variant::IntentForgotten {
            r.need |= e.intent[member];
        }
        r.loss = r.loss.max(e.loss);
        self.settle_recovery(engine);
    }

    /// R6, one block at one member.
    pub(crate) fn may_repair(&self, engine: u8, member: usize, block: usize) -> bool {
        let e = &self.engines[at(engine)];
        e.phase == Phase::Repairing && has(e.unrepaired[member], block)
    }

    pub(crate) fn repair(&mut self, engine: u8, member: usize, block: usize) {
        let e = &mut self.engines[at(engine)];
        e.unrepaired[member] &= !bit(block);
        let value = self.replicas[at(e.source[block])].now[block];
        self.replicas[member].put(block, value);
        self.settle_recovery(engine);
    }

    /// A member that was lost is left out, or the recovery ends; then the next phase.
    pub(crate) fn settle_recovery(&mut self, engine: u8) {
        let here = self.sessions(engine);
        let e = &mut self.engines[at(engine)];
        if matches!(e.phase, Phase::Reconciling | Phase::Repairing) {
            e.unreconciled &= here;
            let needed = e.source.iter().fold(0, |set, s| set | bit(at(*s)));
            e.iss &= here;
            e.trk = e.iss;
            e.first_iss = e.iss;
            if e.iss.count_ones() < MAJORITY || needed & !here != 0 {
                e.phase = Phase::Dead;
            }
        }
        if e.phase == Phase::Reconciling && e.unreconciled == 0 {
            e.phase = Phase::Repairing;
        }
        let repaired = (0..REPLICAS).all(|r| !has(e.iss, r) || e.unrepaired[r] == 0);
        if e.phase == Phase::Repairing && repaired {
            e.phase = Phase::Starting;
        }
        if e.phase == Phase::Starting && e.iss & here == 0 {
            e.phase = Phase::Dead;
        }
    }

    /// R7 at one member.
    pub(crate) fn may_start_term(&self, engine: u8, member: usize) -> bool {
        let (e, r) = (&self.engines[at(engine)], &self.replicas[member]);
        matches!(e.phase, Phase::Starting | Phase::Live)
            && has(e.iss, member)
            && e.standing[member] == Standing::InSync
            && r.session == Some(engine)
            && r.se.0 < e.term
    }

    pub(crate) fn start_term(&mut self, engine: u8, member: usize, variant: Variant) {
        let e = &mut self.engines[at(engine)];
        let first = e.phase == Phase::Starting;
        if first {
            e.phase = Phase::Live;
            for peer in 0..REPLICAS {
                if has(e.iss, peer) {
                    e.dirty[peer] = 0;
                } else {
                    e.standing[peer] = Standing::Out { since: 0 };
                }
            }
        }
        if variant == Variant::LimboDropped {
            e.limbo = 0;
        }
        let first_iss = e.first_iss;
        let r = &mut self.replicas[member];
        if variant != Variant::StartWithoutFlush {
            r.flush();
        }
        r.se = (e.term, 0);
        r.iss = first_iss;
        r.trk = first_iss;
        r.w = e.start;
        r.upto = e.start;
        r.tidx = e.start;
        r.position = e.start;
        r.window.clear();
        r.need = e.limbo;
        r.tainted = false;
        r.loss = e.loss;
        r.dirty = e.dirty;
        for peer in 0..REPLICAS {
            if has(first_iss, peer) {
                r.dirty[peer] = 0;
            }
        }
        r.dirty_durable = r.dirty;
        e.counted |= bit(member);
        e.epoch_done[member] = 1;
        self.settle_live(engine, variant);
    }

    /// R8: a majority counts for the first time. What must hold now is checked here.
    pub(crate) fn open(&mut self, engine: u8) {
        let e = &mut self.engines[at(engine)];
        e.opened = true;
        e.limbo = 0;
        let (term, counted, loss) = (e.term, e.counted, e.loss);
        // An engine that opens late, when members have followed a newer one, serves nothing: the
        // newer one had a majority of votes.
        if self.engines.iter().any(|o| o.opened && o.term > term) {
            return;
        }
        let ours = |r: &usize| has(counted, *r) && self.replicas[*r].term == term;
        let members = (0..REPLICAS).filter(ours);
        let mut contents = members.map(|r| self.replicas[r].now);
        let Some(content) = contents.next() else {
            return;
        };
        let w = &mut self.witness;
        if contents.any(|other| other != content) {
            w.blame(Violation::Diverged);
        }
        if loss < w.epoch || w.lossy < loss {
            w.blame(Violation::WrongLossEpoch);
        }
        for (block, value) in content.iter().enumerate() {
            if loss == w.epoch && *value < w.floor[block] {
                w.blame(Violation::CommittedLost);
            }
            if *value < w.flushed[block] {
                w.blame(Violation::FlushedLost);
            }
        }
        if loss > w.epoch {
            w.epoch = loss;
            w.floor = content;
        }
    }
}
