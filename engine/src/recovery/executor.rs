//! Carries a plan out: R5 (intent first), R6 (repair), R7 (TERMSTART), R8 (who counts).
//!
//! Phases: *reconcile* (each member that will be touched remembers it durably, and a majority the
//! loss epoch), *repair* (chunk by chunk, each run of blocks from the member that holds its
//! canonical value; where that cannot be read, from another one, of which members are told first),
//! *term start*. A source's blocks never change while it is their source, so the order of copies
//! does not matter, and a recovery that starts again after a crash half way finds
//! either the old value or the canonical one, inside what it knows to be in `need`.

use super::Plan;
use super::plan::clipped_chunk;
use super::steps::{Failure, Outcome, ReadData, RecoveryConfig, RecoveryEvent, RecoveryStep};
use super::unread::Unread;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BlockRange, Blocks, Buffers, ChunkMap, Lba, MemberId, MemberSet, Monotonic};
use trilith_wire::EntryStatus;

/// Payload checksum errors of one recovery after which the member is left out.
const CHECKSUM_RETRIES_MAX: u32 = 8;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Idle,
    Reconcile,
    Repair,
    TermStart,
    Ended,
}

/// Blocks of one chunk with one source.
#[derive(Clone, Copy, Debug)]
struct Run {
    range: BlockRange,
    source: MemberId,
    targets: MemberSet,
    /// It was sent to some of its targets before.
    again: bool,
}

#[derive(Clone, Copy, Debug)]
enum JobState {
    Free,
    /// `stands_in`: its copy may be another one than that of the run's source (C26).
    Reading {
        source: MemberId,
        tried: MemberSet,
        stands_in: bool,
    },
    Writing {
        left: MemberSet,
    },
}

/// A run being read or repaired.
#[derive(Clone, Copy, Debug)]
struct Job {
    token: u64,
    run: Run,
    state: JobState,
}

/// The machine.
#[derive(Debug)]
pub struct Recovery {
    plan: Plan,
    config: RecoveryConfig,
    phase: Phase,
    /// Members of Q that have a session.
    live: MemberSet,
    /// The first in-sync set as far as it is still possible.
    iss: MemberSet,
    /// Members that owe RECONCILEDONE or TERMSTARTDONE.
    waiting: MemberSet,
    /// Members of the first in-sync set that are not repaired any more: a repair may still be on its
    /// way to them, or have failed, so that nobody knows what they hold.
    left_out: MemberSet,
    unread: Unread,
    loss_durable: MemberSet,
    counted: MemberSet,
    base_need: ChunkMap,
    nothing: ChunkMap,
    /// Chunks not looked at yet.
    work: ChunkMap,
    runs: VecDeque<Run>,
    jobs: Vec<Job>,
    jobs_busy: usize,
    next_token: u64,
    checksum_errors: u32,
    progress_at: Monotonic,
}

impl Recovery {
    /// A recovery by `plan`. Call [`Recovery::start`] next.
    pub fn new(plan: Plan, config: RecoveryConfig) -> Recovery {
        let mut base_need = ChunkMap::new();
        for o in &plan.overrides {
            base_need.add_range(o.range);
        }
        // What its device refused is written there again, if only with the bytes that it has (M3).
        base_need.union(plan.failed.get(plan.base));
        Recovery {
            config,
            phase: Phase::Idle,
            live: plan.quorum,
            iss: plan.first_iss,
            waiting: MemberSet::EMPTY,
            left_out: MemberSet::EMPTY,
            unread: Unread::default(),
            loss_durable: plan.loss_known,
            counted: MemberSet::EMPTY,
            base_need,
            nothing: ChunkMap::new(),
            work: ChunkMap::new(),
            runs: VecDeque::new(),
            jobs: Vec::new(),
            jobs_busy: 0,
            next_token: 1,
            checksum_errors: 0,
            progress_at: Monotonic(0),
            plan,
        }
    }

    /// The first steps: R5.
    ///
    /// # Panics
    /// When called a second time (a bug of the caller).
    pub fn start(&mut self, now: Monotonic, out: &mut Vec<RecoveryStep>) {
        assert!(
            self.phase == Phase::Idle,
            "a recovery starts once, found {:?}",
            self.phase
        );
        self.progress_at = now;
        // No token of an earlier recovery: a late answer must find nothing.
        self.next_token = now.0.max(1);
        self.phase = Phase::Reconcile;
        // R5: every member that will be touched makes that durable before any REPAIR. The loss
        // epoch goes to all of Q: a decision that only a minority remembers could be taken a second
        // time under the same number.
        for member in self.live.iter() {
            let touched = self.iss.contains(member) && !self.need(member).is_empty();
            let touched = touched && !mutant::on(Mutant::NeedNotPersisted);
            let told = self.plan.loss_known.contains(member) || mutant::on(Mutant::LossForgotten);
            if touched || !told {
                self.waiting = self.waiting.with(member);
                out.push(RecoveryStep::Reconcile {
                    member,
                    loss: self.plan.loss,
                });
            }
        }
        self.advance(out);
    }

    /// One event in, a bounded number of steps out (appended to `out`). Events that name an unknown
    /// token are ignored, their buffers released.
    pub fn event(
        &mut self,
        now: Monotonic,
        event: RecoveryEvent,
        data: &mut dyn Buffers,
        out: &mut Vec<RecoveryStep>,
    ) {
        match event {
            RecoveryEvent::ReadDone { token, result } => {
                self.read_done(now, token, result, data, out)
            }
            RecoveryEvent::MemberLost(member) => self.member_lost(member, out),
            RecoveryEvent::ReconcileDone(member) => {
                // A late answer of a member outside the in-sync set still counts for the loss.
                if matches!(self.phase, Phase::Reconcile | Phase::Repair)
                    && self.waiting.contains(member)
                {
                    self.progress_at = now;
                    self.waiting = self.waiting.without(member);
                }
                self.loss_durable = self.loss_durable.with(member);
            }
            RecoveryEvent::RepairDone {
                member,
                token,
                status,
            } => {
                self.repair_done(now, member, token, status, out);
            }
            RecoveryEvent::TermStartDone(member) => {
                if self.phase == Phase::TermStart && self.waiting.contains(member) {
                    self.progress_at = now;
                    self.waiting = self.waiting.without(member);
                    self.counted = self.counted.with(member);
                }
            }
        }
        self.advance(out);
    }

    /// To be called when [`Recovery::deadline`] has passed: who owes an answer counts as lost.
    pub fn settle(&mut self, now: Monotonic, out: &mut Vec<RecoveryStep>) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        self.progress_at = now;
        let mut owing = self.waiting;
        for job in &self.jobs {
            match job.state {
                JobState::Free => {}
                JobState::Reading { source, .. } => owing = owing.with(source),
                JobState::Writing { left } => owing = owing.or(left),
            }
        }
        for member in owing.iter() {
            self.member_lost(member, out);
        }
        self.advance(out);
    }

    /// When [`Recovery::settle`] wants to be called at the latest.
    pub fn deadline(&self) -> Option<Monotonic> {
        match self.phase {
            Phase::Idle | Phase::Ended => None,
            Phase::Reconcile | Phase::Repair | Phase::TermStart => {
                Some(self.progress_at.after(self.config.stall))
            }
        }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Gives the plan back.
    pub fn into_plan(self) -> Plan {
        self.plan
    }

    /// Bytes that are still to be looked at, for status.
    pub fn bytes_left(&self) -> u64 {
        self.work.bytes()
    }

    /// What RECONCILE makes `member` remember (R5): the chunks that repairs may change there.
    pub fn need(&self, member: MemberId) -> &ChunkMap {
        if !self.plan.first_iss.contains(member) {
            &self.nothing
        } else if member == self.plan.base {
            &self.base_need
        } else {
            self.plan.differing.get(member)
        }
    }

    /// The limbo of the new term.
    pub fn limbo(&self) -> &ChunkMap {
        &self.plan.limbo
    }

    /// Chunks that a voter outside the first in-sync set may lack.
    pub fn dirty(&self, member: MemberId) -> &ChunkMap {
        self.plan.differing.get(member)
    }

    /// Moves on as far as possible without another event.
    fn advance(&mut self, out: &mut Vec<RecoveryStep>) {
        if self.phase == Phase::Reconcile {
            self.end_reconcile(out);
        }
        if self.phase == Phase::Repair {
            self.issue(out);
            // What is being repaired there has to end first: a source's blocks do not change.
            if self.is_idle() && self.waiting.and(self.iss).is_empty() {
                self.work = self.unread.known();
                self.tell(out);
                self.issue(out);
            }
            if self.is_idle() && self.unread.is_settled() {
                self.start_term(out);
            }
        }
        if self.phase == Phase::TermStart && self.waiting.is_empty() {
            self.phase = Phase::Ended;
            out.push(RecoveryStep::Done(Outcome {
                iss: self.iss,
                counted: self.counted,
                start: self.plan.start,
                loss: self.plan.loss,
                lossy: self.plan.lossy,
            }));
        }
    }

    fn is_idle(&self) -> bool {
        self.jobs_busy == 0 && self.runs.is_empty() && self.work.is_empty()
    }

    fn end_reconcile(&mut self, out: &mut Vec<RecoveryStep>) {
        let remembered =
            self.plan.is_majority(self.loss_durable) || mutant::on(Mutant::LossForgotten);
        if !self.waiting.and(self.iss).is_empty() || (!remembered && !self.waiting.is_empty()) {
            return;
        }
        if !remembered {
            self.fail(Failure::TooFew, out);
            return;
        }
        self.waiting = MemberSet::EMPTY;
        let mut work = ChunkMap::new();
        for member in self.iss.iter() {
            work.union(self.need(member));
            work.union(self.plan.failed.get(member));
        }
        if mutant::on(Mutant::LimboReadable) {
            work.clear();
        }
        self.work = work;
        self.phase = Phase::Repair;
    }

    /// R7.
    fn start_term(&mut self, out: &mut Vec<RecoveryStep>) {
        self.phase = Phase::TermStart;
        self.waiting = self.iss;
        for member in self.iss.iter() {
            out.push(RecoveryStep::TermStart {
                member,
                start: self.plan.start,
                iss: self.iss,
                loss: self.plan.loss,
            });
        }
    }

    /// R6: keeps the allowed number of runs in flight.
    fn issue(&mut self, out: &mut Vec<RecoveryStep>) {
        while self.jobs_busy < self.config.chunks_in_flight_max.max(1) {
            let Some(mut run) = self.runs.pop_front() else {
                if self.next_chunk() {
                    continue;
                }
                return;
            };
            run.targets = run.targets.and(self.iss);
            if !run.targets.is_empty() {
                self.read(run, out);
            }
        }
    }

    fn read(&mut self, run: Run, out: &mut Vec<RecoveryStep>) {
        let token = self.next_token;
        self.next_token += 1;
        let state = JobState::Reading {
            source: run.source,
            tried: MemberSet::of(run.source),
            stands_in: false,
        };
        let job = Job { token, run, state };
        match self
            .jobs
            .iter()
            .position(|j| matches!(j.state, JobState::Free))
        {
            Some(at) => self.jobs[at] = job,
            None => self.jobs.push(job),
        }
        self.jobs_busy += 1;
        out.push(RecoveryStep::Read {
            member: run.source,
            range: run.range,
            token,
        });
    }

    /// Takes the lowest chunk and splits it into runs of one source. False: no chunk is left.
    fn next_chunk(&mut self) -> bool {
        let Some((extent, mask)) = self.work.first() else {
            return false;
        };
        let chunk = mask.trailing_zeros();
        self.work.remove_mask(extent, 1 << chunk);
        let bit = 1u64 << chunk;
        let (mut differing, mut failed) = (MemberSet::EMPTY, MemberSet::EMPTY);
        for member in self.iss.iter() {
            if self.need(member).mask(extent) & bit != 0 {
                differing = differing.with(member);
            }
            if self.plan.failed.get(member).mask(extent) & bit != 0 {
                failed = failed.with(member);
            }
        }
        let range = clipped_chunk(extent, chunk, self.plan.capacity_blocks);
        let mut lba = range.start;
        while lba < range.end() {
            let source = self.plan.source(lba);
            let mut end = Lba(lba.0 + 1);
            while end < range.end() && self.plan.source(end) == source {
                end = Lba(end.0 + 1);
            }
            let count = Blocks(u32::try_from(end.0 - lba.0).unwrap_or(0));
            // Where a member is itself the source there is nothing to repair, unless its device
            // refused a write there: then it gets the same bytes again (M3).
            let targets = differing.without(source).or(failed);
            mark::reached_if(!failed.is_empty(), Mark::FailedSlotHealed);
            if !targets.is_empty() {
                self.runs.push_back(Run {
                    range: BlockRange::new(lba, count),
                    source,
                    targets,
                    again: false,
                });
            }
            lba = end;
        }
        true
    }

    fn job(&self, token: u64) -> Option<usize> {
        self.jobs
            .iter()
            .position(|j| j.token == token && !matches!(j.state, JobState::Free))
    }

    fn free(&mut self, at: usize) {
        self.jobs[at].state = JobState::Free;
        self.jobs_busy -= 1;
    }

    fn read_done(
        &mut self,
        now: Monotonic,
        token: u64,
        result: Result<ReadData, EntryStatus>,
        data: &mut dyn Buffers,
        out: &mut Vec<RecoveryStep>,
    ) {
        let at = self.job(token).filter(|_| self.phase == Phase::Repair);
        let reading = at.and_then(|at| match self.jobs[at].state {
            JobState::Reading {
                source, stands_in, ..
            } => Some((at, stands_in.then_some(source))),
            JobState::Free | JobState::Writing { .. } => None,
        });
        let bytes = match result {
            Ok(ReadData::Bytes(slice)) => Some(slice),
            Ok(ReadData::Zero) | Err(_) => None,
        };
        let Some((at, stands_in)) = reading else {
            if let Some(slice) = bytes {
                data.release(slice.buf);
            }
            return;
        };
        self.progress_at = now;
        let run = self.jobs[at].run;
        let short = bytes.is_some_and(|slice| u64::from(slice.len) != run.range.bytes());
        let failed = short || result.is_err();
        if failed || stands_in.is_some() {
            if let Some(slice) = bytes {
                data.release(slice.buf);
            }
            match stands_in.filter(|_| !failed) {
                None => self.read_elsewhere(at, out),
                Some(source) => {
                    self.free(at);
                    self.change_source(run.range, source, out);
                }
            }
            return;
        }
        let left = run.targets.and(self.iss);
        let mut extra = false;
        for member in left.iter() {
            if let (Some(slice), true) = (bytes, extra) {
                data.retain(slice.buf);
            }
            extra = true;
            out.push(RecoveryStep::Repair {
                member,
                range: run.range,
                token,
                data: bytes,
            });
        }
        if left.is_empty() {
            if let Some(slice) = bytes {
                data.release(slice.buf);
            }
            self.free(at);
        } else {
            self.jobs[at].state = JobState::Writing { left };
        }
    }

    /// The source could not be read. Any other member of Q outside its own D holds the canonical
    /// content of the chunk (U is part of every D, so this never hides an open choice); inside D
    /// single blocks may be known to be canonical all the same. Else another member may take the
    /// base's place for a block; else the targets are left out.
    fn read_elsewhere(&mut self, at: usize, out: &mut Vec<RecoveryStep>) {
        mark::reached(Mark::RecoveryReadElsewhere);
        let Job { token, run, state } = self.jobs[at];
        let tried = match state {
            JobState::Reading { tried, .. } => tried,
            JobState::Free | JobState::Writing { .. } => return,
        };
        let others = self.live.minus(tried).and(self.plan.membership.data());
        let plan = &self.plan;
        let is_equal = |member: &MemberId| {
            *member != plan.base
                && (!plan.differing.get(*member).touches(run.range)
                    || plan.copies.holds(*member, run.source, run.range))
        };
        let equal = others.iter().find(is_equal);
        let other = equal.or_else(|| {
            let may = run.range.count.0 == 1 && !run.again && self.unread.may_change();
            let mut others = others.minus(self.left_out).iter();
            others.find(|member| may && plan.copies.may_be_base_of(*member, run.range))
        });
        if let Some(source) = other {
            self.jobs[at].state = JobState::Reading {
                source,
                tried: tried.with(source),
                stands_in: equal.is_none(),
            };
            out.push(RecoveryStep::Read {
                member: source,
                range: run.range,
                token,
            });
            return;
        }
        self.free(at);
        if run.range.count.0 > 1 {
            // It may be one block here and another one there.
            let half = run.range.count.0 / 2;
            let middle = Lba(run.range.start.0 + u64::from(half));
            for (start, count) in [(middle, run.range.count.0 - half), (run.range.start, half)] {
                let range = BlockRange::new(start, Blocks(count));
                self.runs.push_front(Run { range, ..run });
            }
            return;
        }
        for member in run.targets.and(self.iss).iter() {
            self.leave_out(member);
        }
        if !self.is_enough(self.iss) {
            self.fail(Failure::Unreadable(run.source, run.range), out);
        }
    }

    /// C26: `source` can read a block that nobody known to be equal to its source can, and takes the
    /// base's place for it. The chunk is looked at again when members know that they may be changed
    /// there.
    fn change_source(&mut self, block: BlockRange, source: MemberId, out: &mut Vec<RecoveryStep>) {
        mark::reached(Mark::OtherBase);
        self.plan.take_from(block.start, source);
        self.base_need.add_range(block);
        self.unread.changed(block);
        self.tell(out);
    }

    /// R5 again, for what has another source: members know it before the chunk is repaired.
    fn tell(&mut self, out: &mut Vec<RecoveryStep>) {
        if !self.unread.tell() {
            return;
        }
        self.waiting = self.iss;
        for member in self.iss.iter() {
            out.push(RecoveryStep::Reconcile {
                member,
                loss: self.plan.loss,
            });
        }
    }

    fn repair_done(
        &mut self,
        now: Monotonic,
        member: MemberId,
        token: u64,
        status: EntryStatus,
        out: &mut Vec<RecoveryStep>,
    ) {
        let Some(at) = self.job(token) else { return };
        let left = match self.jobs[at].state {
            JobState::Writing { left } if left.contains(member) => left.without(member),
            JobState::Free | JobState::Reading { .. } | JobState::Writing { .. } => return,
        };
        self.progress_at = now;
        let run = self.jobs[at].run;
        self.jobs[at].state = JobState::Writing { left };
        if left.is_empty() {
            self.free(at);
        }
        match status {
            EntryStatus::Done => {}
            EntryStatus::Checksum if self.checksum_errors < CHECKSUM_RETRIES_MAX => {
                self.checksum_errors += 1;
                self.runs.push_back(Run {
                    targets: MemberSet::of(member),
                    again: true,
                    ..run
                });
            }
            EntryStatus::Checksum
            | EntryStatus::Io
            | EntryStatus::NoSpace
            | EntryStatus::Refused => {
                self.leave_out(member);
                if !self.is_enough(self.iss) {
                    self.fail(Failure::TooFew, out);
                }
            }
        }
    }

    /// Fewer members than these are not worth a term: start again with another plan. W11: with a
    /// witness one is enough, for nothing is committed before the witness knows who it is.
    fn is_enough(&self, set: MemberSet) -> bool {
        let first = self.plan.first_iss;
        if self.plan.membership.has_witness() {
            !set.is_empty()
        } else if self.plan.is_majority(first) {
            self.plan.is_majority(set)
        } else {
            !set.is_empty() && first.count() <= set.count()
        }
    }

    /// The member is not repaired any more: it joins later by rebuild.
    fn leave_out(&mut self, member: MemberId) {
        self.iss = self.iss.without(member);
        self.left_out = self.left_out.with(member);
        for at in 0..self.jobs.len() {
            if let JobState::Writing { left } = self.jobs[at].state
                && left.contains(member)
            {
                let left = left.without(member);
                self.jobs[at].state = JobState::Writing { left };
                if left.is_empty() {
                    self.free(at);
                }
            }
        }
    }

    fn member_lost(&mut self, member: MemberId, out: &mut Vec<RecoveryStep>) {
        self.live = self.live.without(member);
        self.waiting = self.waiting.without(member);
        match self.phase {
            Phase::Idle | Phase::Ended => return,
            Phase::TermStart => {
                // Everyone is equal by now, and TERMSTART with this in-sync set is on its way: the
                // member stays in it, uncounted. Its own need covers what it may lack.
                if !self.is_enough(self.counted.or(self.waiting)) {
                    self.fail(Failure::TooFew, out);
                }
                return;
            }
            Phase::Reconcile | Phase::Repair => {}
        }
        let is_source =
            member == self.plan.base || self.plan.overrides.iter().any(|o| o.source == member);
        if is_source {
            self.fail(Failure::MemberLost(member), out);
            return;
        }
        self.leave_out(member);
        for at in 0..self.jobs.len() {
            if matches!(self.jobs[at].state, JobState::Reading { source, .. } if source == member) {
                self.read_elsewhere(at, out);
            }
        }
        if self.phase != Phase::Ended && !self.is_enough(self.iss) {
            self.fail(Failure::TooFew, out);
        }
    }

    fn fail(&mut self, failure: Failure, out: &mut Vec<RecoveryStep>) {
        if self.phase != Phase::Ended {
            mark::reached(Mark::RecoveryFailed);
            self.phase = Phase::Ended;
            self.waiting = MemberSet::EMPTY;
            self.runs.clear();
            self.work.clear();
            out.push(RecoveryStep::Failed(failure));
        }
    }
}
