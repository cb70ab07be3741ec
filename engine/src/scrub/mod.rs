//! Compares the copies of a volume and repairs the odd one (protocol 6.9, C24).
//!
//! A [`Scrub`] walks the volume. For each step it asks every member for the digests of the chunks,
//! without any lock, and goes on where they are equal. Chunks that differ are looked at again one by
//! one, block by block and with the range locked as for a rebuild's copy: writes in flight are at
//! all members then and new ones wait, so that what still differs is no race. A block that a
//! majority of the voters agrees on (or, where others cannot read theirs, all who can) is read from one of
//! them, checked against their digest, and written again to all as an entry of the stream in its
//! place between the clients' writes. What has no majority is reported and left alone.
//!
//! # When an answer counts
//!
//! Safety does not hang on the lock: every entry passes [`Scrub::route`], which voids what is
//! known of a range that it touches. The lock is given back after [`ScrubConfig::lock_hold`] whatever happens
//! (M4); what is asked by then still counts if nothing touches the range (C6). The lock only keeps
//! a busy chunk from being void for ever.
//!
//! What may fail: answers and reads (the chunk is tried again, a few times), the members (the walk
//! rests until all voters count and are equal again, and goes on where it was).

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;
use trilith_block::limits::{BLOCK_BYTES, CHUNK_BLOCKS};
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BlockRange, Blocks, Buffers, Lba, MemberSet, Monotonic};
use trilith_wire::{EntryStatus, digest};

use crate::rebuild::{Bucket, CopyData, Load, RateConfig, RateController};

mod decide;
mod steps;

use decide::{Answers, Verdict};
pub use steps::{
    Compared, Difference, Finished, ScrubConfig, ScrubEvent, ScrubNews, ScrubResult, ScrubStatus,
    ScrubStep,
};

#[cfg(test)]
mod tests;

/// Blocks compared by one question: few enough for a replica to hash without its loop stalling.
const STEP_BLOCKS: u32 = 64;
/// Attempts at a chunk that is disturbed each time. Then it is counted as skipped.
const TRIES_MAX: u32 = 8;
/// Repairs of one chunk: every other block, and some that do not hold. What is left is unresolved.
const ROUNDS_MAX: u32 = 12;
/// First pause after a disturbed attempt; doubles up to 32 times this.
const RETRY: Duration = Duration::from_millis(10);
/// Unresolved differences that are remembered. The oldest goes.
pub const DIFFERENCES_MAX: usize = 16;

/// A walk over the volume.
#[derive(Debug)]
struct Pass {
    started: Monotonic,
    /// Everything before it has been compared, or is among the suspects.
    position: Lba,
    result: ScrubResult,
}

/// Blocks of a chunk, as bits.
type Mask = u16;

const _: () = assert!(CHUNK_BLOCKS == Mask::BITS);

/// A chunk that is looked at under a lock.
#[derive(Debug)]
struct Chunk {
    range: BlockRange,
    tries: u32,
    rounds: u32,
    /// Blocks that were not equal.
    known: Mask,
    /// Blocks that were written again and have not been seen equal since.
    fixing: Mask,
    /// Blocks nobody can decide on.
    dead: Mask,
}

/// A chunk that some member cannot read: which of its blocks it is remains to be seen.
#[derive(Clone, Copy, Debug)]
struct Singles {
    start: Lba,
    /// Blocks to be looked at one by one.
    left: Mask,
    /// See [`Chunk`].
    known: Mask,
    fixing: Mask,
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    Idle,
    Locking,
    Asking { range: BlockRange, unit: Blocks },
    Reading { range: BlockRange, mask: Mask },
    Rewriting { mask: Mask },
}

/// The lock that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Locked {
    token: u64,
    /// When it was granted.
    since: Option<Monotonic>,
}

/// The scrubs of one volume.
#[derive(Debug)]
pub struct Scrub {
    config: ScrubConfig,
    due: Option<Monotonic>,
    wanted: bool,
    pass: Option<Pass>,
    last: Option<Finished>,
    finished: u64,
    totals: ScrubResult,
    unresolved: VecDeque<BlockRange>,
    compared: Option<Compared>,
    work: Work,
    token: u64,
    seed: u64,
    lock: Option<Locked>,
    /// Entries at these blocks void what is known of them.
    watch: Option<BlockRange>,
    touched: bool,
    answers: Answers,
    /// Digests that a read has to have.
    expected: Vec<u8>,
    found: Vec<u8>,
    /// First block of the last step, and those of its chunks that differed, as bits.
    step: Lba,
    suspects: u16,
    chunk: Option<Chunk>,
    singles: Option<Singles>,
    wait_until: Monotonic,
    rate: RateController,
    bucket: Bucket,
}

fn rate_of(config: &ScrubConfig) -> RateController {
    let most = config.bytes_per_second_max;
    let bounds = RateConfig {
        bytes_per_second_min: most / 16,
        bytes_per_second_max: most,
    };
    RateController::new(bounds, Duration::ZERO)
}

impl Scrub {
    /// A scrub that runs at some time. `entropy` chooses when the first one starts and the keys of the
    /// digests.
    pub fn new(config: ScrubConfig, entropy: u64, now: Monotonic) -> Scrub {
        let rate = rate_of(&config);
        let first = |every: Duration| {
            let share = (u128::from(entropy >> 32) * every.as_nanos()) >> 32;
            now.after(Duration::from_nanos(
                u64::try_from(share).unwrap_or(u64::MAX),
            ))
        };
        Scrub {
            config,
            due: config.every.map(first),
            wanted: false,
            pass: None,
            last: None,
            finished: 0,
            totals: ScrubResult::default(),
            unresolved: VecDeque::new(),
            compared: None,
            work: Work::Idle,
            token: 0,
            seed: entropy,
            lock: None,
            watch: None,
            touched: false,
            answers: Answers::default(),
            expected: Vec::new(),
            found: Vec::new(),
            step: Lba(0),
            suspects: 0,
            chunk: None,
            singles: None,
            wait_until: now,
            bucket: Bucket::new(now, rate.bytes_per_second()),
            rate,
        }
    }

    /// False when there is nothing to be done until something happens.
    pub fn is_awake(&self, now: Monotonic) -> bool {
        self.pass.is_some() || self.wanted || self.due.is_some_and(|at| at <= now)
    }

    /// One is under way and does not rest.
    pub fn is_comparing(&self) -> bool {
        self.pass.is_some() && self.compared.is_some()
    }

    /// Starts one now, unless one runs. False when scrubs are switched off.
    pub fn start(&mut self) -> bool {
        if self.config.bytes_per_second_max == 0 {
            return false;
        }
        self.wanted = self.pass.is_none();
        true
    }

    /// Every entry passes here on its way into the stream.
    #[inline]
    pub fn route(&mut self, range: BlockRange) {
        if let Some(watch) = self.watch
            && watch.overlaps(range)
        {
            self.touched = true;
        }
    }

    /// What clients saw in the last interval.
    pub fn load(&mut self, now: Monotonic, load: Load) {
        if self.pass.is_some() {
            self.bucket.refill(now, self.rate.bytes_per_second());
            self.rate.update(load);
        }
    }

    /// Moves on. `compared` is who can be compared now; `None` while some voter does not count, is
    /// being rebuilt or replaced, or cannot answer such questions.
    pub fn settle(
        &mut self,
        now: Monotonic,
        compared: Option<Compared>,
        steps: &mut Vec<ScrubStep>,
    ) {
        self.begin(now, steps);
        if self.pass.is_none() {
            return;
        }
        if self.compared != compared {
            self.interrupt(steps);
            self.compared = compared;
        }
        let Some(compared) = compared else { return };
        if let Some(lock) = self.lock
            && lock
                .since
                .is_some_and(|at| at.after(self.config.lock_hold) <= now)
        {
            mark::reached(Mark::ScrubLockExpired);
            self.unlock(steps);
        }
        if self.work == Work::Idle && self.wait_until <= now {
            self.next(now, &compared, steps);
        }
    }

    fn begin(&mut self, now: Monotonic, steps: &mut Vec<ScrubStep>) {
        let due = self.wanted || self.due.is_some_and(|at| at <= now);
        if !due || self.pass.is_some() || self.config.bytes_per_second_max == 0 {
            return;
        }
        self.wanted = false;
        self.due = None;
        self.unresolved.clear();
        self.rate = rate_of(&self.config);
        self.bucket = Bucket::new(now, self.rate.bytes_per_second());
        self.wait_until = now;
        self.pass = Some(Pass {
            started: now,
            position: Lba(0),
            result: ScrubResult::default(),
        });
        steps.push(ScrubStep::Tell(ScrubNews::Started));
    }

    /// Forgets what is under way; the place stays.
    pub fn interrupt(&mut self, steps: &mut Vec<ScrubStep>) {
        self.unlock(steps);
        mark::reached_if(self.work != Work::Idle, Mark::ScrubCut);
        self.watch = None;
        self.work = Work::Idle;
        self.token += 1;
    }

    fn unlock(&mut self, steps: &mut Vec<ScrubStep>) {
        if let Some(lock) = self.lock.take() {
            steps.push(ScrubStep::Unlock { token: lock.token });
        }
    }

    fn next(&mut self, now: Monotonic, compared: &Compared, steps: &mut Vec<ScrubStep>) {
        if self.chunk.is_none() {
            self.chunk = self.next_suspect(compared);
        }
        if let Some(chunk) = &self.chunk {
            self.token += 1;
            self.work = Work::Locking;
            let (token, range) = (self.token, chunk.range);
            self.lock = Some(Locked { token, since: None });
            steps.push(ScrubStep::Lock { token, range });
            return;
        }
        let Some(pass) = &self.pass else { return };
        let range = clip(pass.position, STEP_BLOCKS, compared.capacity_bytes);
        if range.is_empty() {
            return self.finish(now, steps);
        }
        self.bucket.refill(now, self.rate.bytes_per_second());
        if self.bucket.is_open() {
            self.step = range.start;
            self.ask(range, digest::CHUNK, compared, steps);
        }
    }

    /// The next chunk, or block of one, that is to be looked at under a lock.
    fn next_suspect(&mut self, compared: &Compared) -> Option<Chunk> {
        if let Some(singles) = self.singles.as_mut() {
            let at = singles.left.trailing_zeros();
            let bit = singles.left & singles.left.wrapping_neg();
            singles.left &= !bit;
            let chunk = Chunk {
                range: BlockRange::new(Lba(singles.start.0 + u64::from(at)), Blocks(1)),
                tries: 0,
                rounds: 0,
                known: Mask::from(singles.known & bit != 0),
                fixing: Mask::from(singles.fixing & bit != 0),
                dead: 0,
            };
            if singles.left == 0 {
                self.singles = None;
            }
            return Some(chunk);
        }
        if self.suspects == 0 {
            return None;
        }
        let at = self.suspects.trailing_zeros();
        self.suspects &= self.suspects - 1;
        let start = Lba(self.step.0 + u64::from(at * CHUNK_BLOCKS));
        Some(Chunk {
            range: clip(start, CHUNK_BLOCKS, compared.capacity_bytes),
            tries: 0,
            rounds: 0,
            known: 0,
            fixing: 0,
            dead: 0,
        })
    }

    fn ask(
        &mut self,
        range: BlockRange,
        unit: Blocks,
        compared: &Compared,
        steps: &mut Vec<ScrubStep>,
    ) {
        self.bucket.take(range.bytes());
        self.token += 1;
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.answers.ask(compared.members);
        self.work = Work::Asking { range, unit };
        steps.push(ScrubStep::Ask {
            token: self.token,
            range,
            unit,
            seed: self.seed,
            members: compared.members,
        });
    }

    fn finish(&mut self, now: Monotonic, steps: &mut Vec<ScrubStep>) {
        let Some(pass) = self.pass.take() else { return };
        let result = pass.result;
        self.totals.add(result);
        self.finished += 1;
        self.last = Some(Finished {
            at: now,
            took: now.since(pass.started),
            result,
        });
        self.due = self.config.every.map(|every| now.after(every));
        self.compared = None;
        steps.push(ScrubStep::Tell(ScrubNews::Finished(result)));
    }

    /// Something was answered. An answer to what is not waited for any more is ignored.
    pub fn event(
        &mut self,
        now: Monotonic,
        event: ScrubEvent<'_>,
        data: &mut dyn Buffers,
        steps: &mut Vec<ScrubStep>,
    ) {
        let Some(compared) = self.compared else {
            return release(&event, data);
        };
        match (event, self.work) {
            (
                ScrubEvent::Digests {
                    token,
                    member,
                    result,
                },
                Work::Asking { range, unit },
            ) if token == self.token => {
                let units = digest::units(range, unit).unwrap_or(0);
                self.answers.put(member, units, result);
                if self.answers.complete() {
                    self.work = Work::Idle;
                    self.answered(now, range, units, &compared, steps);
                }
            }
            (ScrubEvent::LockGranted(token), Work::Locking) if token == self.token => {
                let Some(range) = self.chunk.as_ref().map(|c| c.range) else {
                    return;
                };
                let since = Some(now);
                self.lock = Some(Locked { token, since });
                self.watch = Some(range);
                self.touched = false;
                self.ask(range, digest::BLOCK, &compared, steps);
            }
            (ScrubEvent::LockDenied(token), Work::Locking) if token == self.token => {
                self.lock = None;
                self.retry(now, steps);
            }
            (ScrubEvent::ReadDone { token, result }, Work::Reading { range, mask })
                if token == self.token =>
            {
                self.read(now, range, mask, result, data, steps);
            }
            (ScrubEvent::Rewritten { token, done }, Work::Rewriting { mask })
                if token == self.token =>
            {
                self.work = Work::Idle;
                if !done {
                    if let Some(chunk) = self.chunk.as_mut() {
                        chunk.fixing &= !mask;
                    }
                    self.retry(now, steps);
                }
            }
            (event, _) => release(&event, data),
        }
    }

    fn answered(
        &mut self,
        now: Monotonic,
        range: BlockRange,
        units: usize,
        compared: &Compared,
        steps: &mut Vec<ScrubStep>,
    ) {
        if self.chunk.is_some() {
            return self.judge(now, units, compared, steps);
        }
        if self.answers.cut_short() {
            self.wait_until = now.after(RETRY * 32);
            return;
        }
        for unit in 0..units {
            if self.answers.verdict(unit, &compared.membership) != Verdict::Same {
                self.suspects |= 1 << unit;
            }
        }
        if let Some(pass) = self.pass.as_mut() {
            pass.position = range.end();
            pass.result.bytes += range.bytes();
        }
    }

    /// All copies of a chunk have been told, block by block.
    fn judge(
        &mut self,
        now: Monotonic,
        units: usize,
        compared: &Compared,
        steps: &mut Vec<ScrubStep>,
    ) {
        let blind = mutant::on(Mutant::ScrubWithoutLock);
        mark::reached_if(self.touched, Mark::ScrubTouched);
        if self.answers.cut_short() || (self.touched && !blind) {
            return self.retry(now, steps);
        }
        if units > 1 && self.answers.somebody_cannot_read() {
            return self.split(units, steps);
        }
        let (Some(mut chunk), Some(pass)) = (self.chunk.take(), self.pass.as_mut()) else {
            return;
        };
        let mut run: Option<(usize, usize, MemberSet)> = None;
        for unit in 0..units {
            let bit: Mask = 1 << unit;
            let block = BlockRange::new(Lba(chunk.range.start.0 + unit as u64), Blocks(1));
            let verdict = self.answers.verdict(unit, &compared.membership);
            let odd = match verdict {
                Verdict::Same => {
                    pass.result.repaired += u64::from(chunk.fixing & bit != 0);
                    chunk.fixing &= !bit;
                    continue;
                }
                Verdict::Odd { good, bad } => {
                    run = match run {
                        None => Some((unit, unit + 1, good)),
                        Some((from, to, common)) if to == unit && !common.and(good).is_empty() => {
                            Some((from, unit + 1, common.and(good)))
                        }
                        other => other,
                    };
                    bad
                }
                Verdict::Undecided => {
                    if chunk.dead & bit == 0 {
                        chunk.dead |= bit;
                        pass.result.unresolved += 1;
                        remember(&mut self.unresolved, block);
                    }
                    MemberSet::EMPTY
                }
            };
            if chunk.known & bit == 0 {
                chunk.known |= bit;
                pass.result.differences += 1;
                let difference = Difference { range: block, odd };
                tell(steps, difference);
            }
        }
        mark::reached_if(chunk.known == 0, Mark::ScrubRaced);
        let Some((from, to, good)) = run else {
            // All that can be equal is.
            self.watch = None;
            return self.unlock(steps);
        };
        let range = BlockRange::new(
            Lba(chunk.range.start.0 + from as u64),
            Blocks(u32::try_from(to - from).unwrap_or(0)),
        );
        if chunk.rounds >= ROUNDS_MAX {
            // It was written again and again and is not what was written.
            pass.result.unresolved += (to - from) as u64;
            remember(&mut self.unresolved, range);
            self.watch = None;
            return self.unlock(steps);
        }
        let mask = (from..to).fold(0, |mask: Mask, unit| mask | 1 << unit);
        self.expected.clear();
        if let Some(one) = good.iter().next() {
            for unit in from..to {
                self.expected
                    .extend_from_slice(self.answers.digest(one, unit));
            }
        }
        chunk.rounds += 1;
        self.chunk = Some(chunk);
        self.token += 1;
        self.work = Work::Reading { range, mask };
        steps.push(ScrubStep::Read {
            token: self.token,
            range,
            from: good,
        });
    }

    /// A chunk that some member cannot read is looked at block by block.
    fn split(&mut self, units: usize, steps: &mut Vec<ScrubStep>) {
        if let Some(chunk) = self.chunk.take() {
            self.singles = Some(Singles {
                start: chunk.range.start,
                left: (0..units).fold(0, |mask: Mask, unit| mask | 1 << unit),
                known: chunk.known,
                fixing: chunk.fixing,
            });
        }
        self.watch = None;
        self.unlock(steps);
    }

    /// The bytes that are right have come, if they are what was promised.
    fn read(
        &mut self,
        now: Monotonic,
        range: BlockRange,
        mask: Mask,
        result: Result<CopyData, EntryStatus>,
        data: &mut dyn Buffers,
        steps: &mut Vec<ScrubStep>,
    ) {
        self.work = Work::Idle;
        self.found.clear();
        let buf = match result {
            Ok(CopyData::Bytes(buf)) => {
                digest::append(self.seed, data.bytes(buf), digest::BLOCK, &mut self.found);
                Some(buf)
            }
            Ok(CopyData::Zero) => {
                digest::append_zeroes(self.seed, range, digest::BLOCK, &mut self.found);
                None
            }
            Err(_) => return self.retry(now, steps),
        };
        let touched = self.touched && !mutant::on(Mutant::ScrubWithoutLock);
        let right = !self.found.is_empty() && self.found == self.expected;
        if touched || !right {
            if let Some(buf) = buf {
                data.release(buf.buf);
            }
            return self.retry(now, steps);
        }
        if let Some(chunk) = self.chunk.as_mut() {
            chunk.fixing |= mask;
        }
        mark::reached(Mark::ScrubRepair);
        self.watch = None;
        self.token += 1;
        self.work = Work::Rewriting { mask };
        // The entry has its place before those that wait behind the lock get theirs.
        steps.push(ScrubStep::Rewrite {
            token: self.token,
            range,
            data: buf,
        });
        self.unlock(steps);
    }

    /// The chunk was disturbed: once more after a while.
    fn retry(&mut self, now: Monotonic, steps: &mut Vec<ScrubStep>) {
        self.unlock(steps);
        self.watch = None;
        self.work = Work::Idle;
        let Some(chunk) = self.chunk.as_mut() else {
            return;
        };
        chunk.tries += 1;
        self.wait_until = now.after(RETRY * (1 << chunk.tries.min(5)));
        if chunk.tries > TRIES_MAX {
            self.chunk = None;
            if let Some(pass) = self.pass.as_mut() {
                pass.result.skipped += 1;
            }
        }
    }

    /// When it moves on by itself.
    pub fn deadline(&self) -> Option<Monotonic> {
        if self.pass.is_none() {
            return if self.config.bytes_per_second_max == 0 {
                None
            } else {
                self.due
            };
        }
        self.compared?;
        if let Some(since) = self.lock.and_then(|lock| lock.since) {
            return Some(since.after(self.config.lock_hold));
        }
        if self.work != Work::Idle {
            return None;
        }
        if self.chunk.is_some() || self.singles.is_some() || self.suspects != 0 {
            return Some(self.wait_until);
        }
        let opens = self.bucket.opens_at(self.rate.bytes_per_second());
        Some(opens.max(self.wait_until))
    }

    /// Everything there is to show.
    pub fn status(&self, now: Monotonic) -> ScrubStatus {
        let mut totals = self.totals;
        let running = self.pass.as_ref().map(|p| p.result).unwrap_or_default();
        totals.add(running);
        ScrubStatus {
            enabled: self.config.bytes_per_second_max > 0,
            position_bytes: self
                .pass
                .as_ref()
                .map(|p| p.position.byte_offset())
                .or(self.wanted.then_some(0)),
            resting: self.pass.is_some() && self.compared.is_none(),
            running,
            finished: self.finished,
            last: self.last.map(|last| (last, now.since(last.at))),
            totals,
            next_in: self.due.map(|at| at.since(now)),
            unresolved: self.unresolved.iter().copied().collect(),
            bytes_per_second: self.rate.bytes_per_second(),
        }
    }
}

/// At most `count` blocks from `start` on, within the volume.
fn clip(start: Lba, count: u32, capacity_bytes: u64) -> BlockRange {
    let left = (capacity_bytes / u64::from(BLOCK_BYTES)).saturating_sub(start.0);
    let count = u32::try_from(left).unwrap_or(u32::MAX).min(count);
    BlockRange::new(start, Blocks(count))
}

/// Blocks one after the other are told as one.
fn tell(steps: &mut Vec<ScrubStep>, new: Difference) {
    if let Some(ScrubStep::Tell(ScrubNews::Differs(old))) = steps.last_mut()
        && old.odd == new.odd
        && old.range.end() == new.range.start
    {
        old.range.count.0 += new.range.count.0;
        return;
    }
    steps.push(ScrubStep::Tell(ScrubNews::Differs(new)));
}

fn remember(list: &mut VecDeque<BlockRange>, range: BlockRange) {
    if let Some(last) = list.back_mut()
        && last.end() == range.start
    {
        last.count.0 += range.count.0;
        return;
    }
    if list.len() >= DIFFERENCES_MAX {
        list.pop_front();
    }
    list.push_back(range);
}

fn release(event: &ScrubEvent<'_>, data: &mut dyn Buffers) {
    if let ScrubEvent::ReadDone {
        result: Ok(CopyData::Bytes(buf)),
        ..
    } = event
    {
        data.release(buf.buf);
    }
}
