//! Runs the rebuild machines: chunk locks in the gate, reads at a source, copies to the target,
//! flushes, DIRTYCLEAR; and healing in place where a member cannot be demoted (6.2).

use crate::engine::{Cx, Engine};
use crate::read::{FlightOwner, ReadResult};
use crate::rebuild::{
    CopyData, Load, RateConfig, Rebuild, RebuildConfig, RebuildEvent, RebuildStep,
};
use crate::scrub::ScrubEvent;
use crate::syncset::Standing;
use alloc::vec::Vec;
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BlockRange, ChunkMap, Idx, MemberId, MemberSet, Monotonic};
use trilith_wire::{EntryStatus, MapKind, Message};

/// Keys of chunk locks in the gate have this bit; keys of parts do not.
const LOCK: u64 = 1 << 63;

/// A chunk lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lock {
    /// Whose rebuild; `None`: the scrub.
    owner: Option<MemberId>,
    token: u64,
    range: BlockRange,
    /// Something before it is still in the gate.
    blocked: bool,
    granted: bool,
    since: Monotonic,
}

/// A rebuild and what the engine must remember for it.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) rebuild: Rebuild,
    /// The member is in iss but does not count, and cannot be demoted (NEEDSET instead of TOLD).
    pub(crate) in_place: bool,
    /// NEEDSETDONE has come, or is not needed.
    started: bool,
    /// The flush that it waits for: its token, and its position once it has one.
    flush: Option<(u64, Option<Idx>)>,
}

impl Engine {
    fn rebuild_config(&self) -> RebuildConfig {
        let most = self.cfg.sizes.rebuild_bytes_per_second_max;
        let rate = if most == 0 {
            RateConfig::default()
        } else {
            let default = RateConfig::default();
            RateConfig {
                bytes_per_second_min: default.bytes_per_second_min.min(most),
                bytes_per_second_max: most,
            }
        };
        RebuildConfig {
            capacity_bytes: self.capacity,
            lock_hold: self.cfg.timing.copy_lock_max,
            rate,
            ..RebuildConfig::default()
        }
    }

    fn new_rebuild(&self, member: MemberId, in_place: bool, now: Monotonic) -> Running {
        let dirty = self.absent[member.index()].clone();
        let p99 = self.load_latency.quantile(990);
        let rebuild = Rebuild::new(self.rebuild_config(), dirty, now, p99);
        Running {
            rebuild,
            in_place,
            started: !in_place,
            flush: None,
        }
    }

    /// Starts to copy what a tracked member lacks.
    pub(crate) fn start_rebuild(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        self.rebuilds[member.index()] = Some(self.new_rebuild(member, false, cx.now));
        self.again = true;
    }

    /// 6.2: a tainted member of iss without which there is no majority. It is healed where it
    /// stands: NEEDSET, copies, join. Nothing is written meanwhile, as there is no majority.
    pub(crate) fn heal_in_place(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let at = member.index();
        let peer = &self.peers[at];
        if peer.is_ours() && peer.survey.is_none() && peer.map_owner.is_none() {
            // Lost while the term was opened, and back.
            return self.start_survey(member, cx);
        }
        let surveyed = peer.survey.as_ref().is_some_and(|s| s.done);
        let source = !self.counted_here().is_empty();
        let tried = peer.heals >= crate::limits::HEALS_MAX;
        if tried
            || self.rebuilds[at].is_some()
            || !peer.is_ours()
            || !surveyed
            || !source
            || peer.broken
        {
            return;
        }
        self.mark_window(member);
        self.rebuilds[at] = Some(self.new_rebuild(member, true, cx.now));
        let need = self.absent[at].clone();
        self.stage(member, MapKind::Need, member, need);
        self.control(member, Message::NeedSet { term: self.term }, cx);
    }

    /// NEEDSETDONE.
    pub(crate) fn needset_done(&mut self, member: MemberId) {
        if let Some(running) = self.rebuilds[member.index()].as_mut() {
            running.started = true;
            self.again = true;
        }
    }

    /// Healing in place runs or could run.
    pub(crate) fn heals_in_place(&self) -> bool {
        let source = !self.counted_here().is_empty();
        source
            && self.sync.iss.minus(self.sync.counted).iter().any(|m| {
                let peer = &self.peers[m.index()];
                let joining = matches!(peer.standing, Standing::Joining { .. });
                let tried = peer.heals >= crate::limits::HEALS_MAX;
                peer.is_ours() && !peer.broken && (joining || (!peer.fed && !tried))
            })
    }

    /// Runs the rebuilds. Called in each `settle`.
    pub(crate) fn tend_rebuilds(&mut self, moved: bool, cx: &mut Cx<'_>) {
        if moved || self.locks_moved {
            self.tend_locks(cx);
        }
        for member in self.members.iter() {
            let at = member.index();
            let Some(running) = self.rebuilds[at].as_mut() else {
                continue;
            };
            if !running.started {
                continue;
            }
            let mut steps = core::mem::take(&mut self.rebuild_steps);
            running.rebuild.settle(cx.now, &mut steps);
            self.run_steps(member, steps, cx);
            self.try_join_in_place(member, cx);
        }
        self.tend_locks(cx);
    }

    /// Nothing is dirty and no copy runs.
    pub(crate) fn rebuilt(&self, member: MemberId) -> bool {
        self.rebuilds[member.index()]
            .as_ref()
            .is_some_and(|running| {
                running.started
                    && running.rebuild.dirty().is_empty()
                    && !running.rebuild.is_copying()
            })
    }

    fn try_join_in_place(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let in_place = self.rebuilds[member.index()]
            .as_ref()
            .is_some_and(|r| r.in_place);
        if !in_place || !self.rebuilt(member) {
            return;
        }
        // Whatever was in flight when the majority was lost is on the sources, and was copied.
        let last = self.last_idx();
        let sources = self.counted_here();
        if sources.iter().all(|m| self.peers[m.index()].upto == last) {
            self.peers[member.index()].heals += 1;
            self.join(member, cx);
        }
    }

    fn rebuild_event(&mut self, member: MemberId, event: RebuildEvent, cx: &mut Cx<'_>) {
        let mut steps = core::mem::take(&mut self.rebuild_steps);
        match self.rebuilds[member.index()].as_mut() {
            Some(running) => running.rebuild.event(cx.now, event, cx.data, &mut steps),
            None => {
                if let RebuildEvent::ReadDone {
                    result: Ok(CopyData::Bytes(buf)),
                    ..
                } = event
                {
                    cx.data.release(buf.buf);
                }
            }
        }
        self.again = true;
        self.run_steps(member, steps, cx);
    }

    fn run_steps(&mut self, member: MemberId, mut steps: Vec<RebuildStep>, cx: &mut Cx<'_>) {
        for step in steps.drain(..) {
            self.rebuild_step(member, step, cx);
        }
        // A step may have caused events with steps of their own, which then used another list.
        if self.rebuild_steps.capacity() < steps.capacity() {
            self.rebuild_steps = steps;
        }
    }

    fn rebuild_step(&mut self, member: MemberId, step: RebuildStep, cx: &mut Cx<'_>) {
        match step {
            RebuildStep::Lock { token, range } => {
                self.lock(Some(member), token, range, cx.now);
            }
            RebuildStep::Unlock { token } => self.unlock(Some(member), token),
            RebuildStep::Read { token, range } => {
                if !self.read_for_copy((member, token), range, MemberSet::EMPTY, cx) {
                    let result = Err(EntryStatus::Refused);
                    self.rebuild_event(member, RebuildEvent::ReadDone { token, result }, cx);
                }
            }
            RebuildStep::Copy { token, range, data } => {
                self.counters.rebuild_bytes += range.bytes();
                self.send_repair(member, range, token, data, true, cx);
            }
            RebuildStep::Flush { token } => {
                if let Some(running) = self.rebuilds[member.index()].as_mut() {
                    running.flush = Some((token, None));
                    self.again = true;
                }
            }
            RebuildStep::DirtyClear => {
                let mut cleared = ChunkMap::new();
                if let Some(running) = self.rebuilds[member.index()].as_mut() {
                    running.rebuild.take_cleared(&mut cleared);
                }
                self.absent[member.index()].subtract(&cleared);
                self.send_clear(member, &cleared, cx);
            }
            // `rebuilt` looks at the state itself.
            RebuildStep::Done => self.again = true,
            RebuildStep::Failed(_) => {
                self.peers[member.index()].broken = true;
                self.mode_dirty = true;
                self.again = true;
            }
        }
    }

    /// Puts a chunk lock into the gate.
    pub(crate) fn lock(
        &mut self,
        owner: Option<MemberId>,
        token: u64,
        range: BlockRange,
        since: Monotonic,
    ) {
        let lock = Lock {
            owner,
            token,
            range,
            blocked: false,
            granted: false,
            since,
        };
        let id = self.locks.insert(lock);
        let free = self.gate.insert(LOCK | id, range);
        mark::reached_if(!free, Mark::LockBehindWrite);
        if let Some(lock) = self.locks.get_mut(id) {
            lock.blocked = !free;
        }
        self.locks_moved = true;
    }

    /// The least loaded of these members that can be reached.
    pub(crate) fn source_of(&self, members: trilith_block::MemberSet) -> Option<MemberId> {
        let ours = members.iter().filter(|m| self.peers[m.index()].is_ours());
        ours.min_by_key(|m| self.peers[m.index()].reads_in_flight)
    }

    /// True when a key of the gate is that of a lock.
    pub(crate) fn is_lock(&self, key: u64) -> bool {
        key & LOCK != 0
    }

    /// Nothing is before a lock in the gate any more.
    pub(crate) fn lock_unblocked(&mut self, key: u64) {
        if let Some(lock) = self.locks.get_mut(key & !LOCK) {
            lock.blocked = false;
            self.locks_moved = true;
        }
    }

    /// Grants locks: the entries in flight at the range are committed and some member to read from
    /// has accepted them. A lock that cannot be granted in time is denied, as it holds writes up
    /// (M4). Healing in place reads what is accepted, committed or not: its join makes it so.
    fn tend_locks(&mut self, cx: &mut Cx<'_>) {
        self.locks_moved = false;
        if self.locks.is_empty() {
            return;
        }
        for id in self.locks.keys(|lock| !lock.granted) {
            let Some(lock) = self.locks.get(id).copied() else {
                continue;
            };
            let given_up = self.given_up_at(&lock) <= cx.now;
            let Some(member) = lock.owner else {
                self.tend_scrub_lock(id, &lock, given_up, cx);
                continue;
            };
            let in_place = self.rebuilds[member.index()]
                .as_ref()
                .is_some_and(|r| r.in_place);
            // C29: what waits in the gate for a majority cannot get its place before this has brought one.
            let settled = if in_place {
                !lock.blocked || !(self.can_issue() || mutant::on(Mutant::HealBehindGate))
            } else {
                !lock.blocked && self.stream.uncommitted(lock.range).is_none()
            };
            let settled = settled || mutant::on(Mutant::RebuildWithoutLock);
            let mut source = self.holders(lock.range).without(member);
            if mutant::on(Mutant::RebuildWithoutLock) {
                source = self.sync.counted.without(member);
            }
            if settled && self.source_of(source).is_some() {
                if let Some(lock) = self.locks.get_mut(id) {
                    lock.granted = true;
                }
                self.rebuild_event(member, RebuildEvent::LockGranted(lock.token), cx);
            } else if given_up {
                self.remove_lock(id);
                self.rebuild_event(member, RebuildEvent::LockDenied(lock.token), cx);
            }
        }
    }

    /// When a lock that is not granted is denied. The scrub's holds writes up for nothing that is
    /// urgent.
    fn given_up_at(&self, lock: &Lock) -> Monotonic {
        let most = self.cfg.timing.copy_lock_max;
        let patience = if lock.owner.is_some() { most * 4 } else { most };
        lock.since.after(patience)
    }

    /// The scrub's lock is granted when what is in flight at its range is at all members.
    fn tend_scrub_lock(&mut self, id: u64, lock: &Lock, given_up: bool, cx: &mut Cx<'_>) {
        let settled = !lock.blocked && self.at_all(lock.range);
        if settled || mutant::on(Mutant::ScrubWithoutLock) {
            if let Some(lock) = self.locks.get_mut(id) {
                lock.granted = true;
            }
            self.scrub_event(ScrubEvent::LockGranted(lock.token), cx);
        } else if given_up {
            self.remove_lock(id);
            self.scrub_event(ScrubEvent::LockDenied(lock.token), cx);
        }
    }

    fn remove_lock(&mut self, id: u64) {
        if let Some(lock) = self.locks.remove(id) {
            self.open_gate(LOCK | id, lock.range);
        }
    }

    pub(crate) fn unlock(&mut self, owner: Option<MemberId>, token: u64) {
        for id in self.locks.keys(|l| l.owner == owner && l.token == token) {
            self.remove_lock(id);
        }
    }

    /// A DATA for a copy.
    pub(crate) fn copy_read(
        &mut self,
        member: MemberId,
        token: u64,
        result: ReadResult,
        cx: &mut Cx<'_>,
    ) {
        let result = match result {
            ReadResult::Bytes(buf) => Ok(CopyData::Bytes(buf)),
            ReadResult::Zero => Ok(CopyData::Zero),
            ReadResult::Failed(status) => Err(status),
        };
        self.rebuild_event(member, RebuildEvent::ReadDone { token, result }, cx);
    }

    /// Asks one of those that hold a range, `bad` ones excepted. False when there is none.
    fn read_for_copy(
        &mut self,
        (target, token): (MemberId, u64),
        range: BlockRange,
        bad: MemberSet,
        cx: &mut Cx<'_>,
    ) -> bool {
        let mut sources = self.holders(range);
        if mutant::on(Mutant::RebuildWithoutLock) {
            sources = self.sync.counted;
        }
        let owner = FlightOwner::Rebuild { target, token, bad };
        self.source_of(sources.without(target).minus(bad))
            .and_then(|m| self.send_read(m, range, owner, cx))
            .is_some()
    }

    /// A source could not be read: another one is asked. True when there is one.
    pub(crate) fn copy_read_elsewhere(
        &mut self,
        copy: (MemberId, u64),
        result: &ReadResult,
        (range, bad): (BlockRange, MemberSet),
        cx: &mut Cx<'_>,
    ) -> bool {
        let unreadable = matches!(
            result,
            ReadResult::Failed(EntryStatus::Io | EntryStatus::Checksum)
        );
        let may = !mutant::on(Mutant::RebuildAsksOneSource);
        unreadable && may && self.read_for_copy(copy, range, bad, cx)
    }

    /// A REPAIRDONE of a copy.
    pub(crate) fn copy_done(
        &mut self,
        member: MemberId,
        token: u64,
        status: EntryStatus,
        cx: &mut Cx<'_>,
    ) {
        self.rebuild_event(member, RebuildEvent::CopyDone { token, status }, cx);
    }

    /// Some rebuild waits for a flush that has not been issued.
    pub(crate) fn copies_want_flush(&self) -> bool {
        let wants = |r: &Running| !r.in_place && matches!(r.flush, Some((_, None)));
        self.rebuilds.iter().flatten().any(wants)
    }

    pub(crate) fn copies_flush_issued(&mut self, idx: Idx) {
        for running in self.rebuilds.iter_mut().flatten() {
            if let Some((_, at @ None)) = running.flush.as_mut() {
                *at = Some(idx);
            }
        }
    }

    /// The target has answered a flush: its copies before that are durable.
    pub(crate) fn copies_flushed(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let flushed = self.peers[member.index()].flushed;
        let Some(running) = self.rebuilds[member.index()].as_mut() else {
            return;
        };
        if let Some((token, Some(idx))) = running.flush
            && idx <= flushed
        {
            running.flush = None;
            self.rebuild_event(member, RebuildEvent::FlushDone(token), cx);
        }
    }

    /// Ends a rebuild: its locks are given back, late answers find nothing. What the member lacks
    /// is in `absent`, which holds all that was not cleared.
    pub(crate) fn stop_rebuild(&mut self, member: MemberId) {
        if self.rebuilds[member.index()].take().is_none() {
            return;
        }
        for id in self.locks.keys(|l| l.owner == Some(member)) {
            self.remove_lock(id);
        }
        for tag in self.repairs.keys(|r| r.member == member && r.rebuild) {
            self.repairs.remove(tag);
        }
        // A later rebuild uses the same tokens again.
        self.forget_copies(member);
    }

    pub(crate) fn stop_rebuilds(&mut self) {
        for member in self.members.iter() {
            self.stop_rebuild(member);
        }
    }

    /// Tells the rebuilds about the clients' load, about every second.
    pub(crate) fn report_load(&mut self, cx: &mut Cx<'_>) {
        let load = Load {
            completed: core::mem::take(&mut self.load_completed),
            p99: self.load_latency.quantile(990),
            queue_depth: u32::try_from(self.ops.len()).unwrap_or(u32::MAX),
        };
        for running in self.rebuilds.iter_mut().flatten() {
            running.rebuild.load(cx.now, load);
        }
        self.scrub.load(cx.now, load);
        self.load_latency = trilith_block::histogram::Histogram::default();
    }

    pub(crate) fn rebuilds_deadline(&self) -> Option<Monotonic> {
        let locks = self
            .locks
            .iter()
            .filter(|(_, l)| !l.granted)
            .map(|(_, l)| self.given_up_at(l));
        let rebuilds = self.rebuilds.iter().flatten().filter(|r| r.started);
        rebuilds
            .filter_map(|r| r.rebuild.deadline())
            .chain(locks)
            .min()
    }
}
