//! Brings one member up to date while clients go on (protocol 5.4, 6.6; amendment M4).
//!
//! A [`Rebuild`] holds the chunks that its member may lack and copies them one run at a time: lock
//! the range at the engine, read it from an in-sync member, repair the target, unlock. A copy
//! becomes progress that survives a leader change when the target has answered a FLUSH sent after
//! it (DIRTYCLEAR). Owned by the engine, one per member being rebuilt.
//!
//! # When a copy counts
//!
//! A chunk leaves `dirty` only when its REPAIR was acknowledged and no entry was routed to its range
//! since the lock was granted. So safety does not hang on the lock: [`Rebuild::route`], which every
//! entry must pass, voids the copies that it touches. M4: a lock is given back after
//! [`RebuildConfig::lock_hold`] whatever happens, so a stopped target or source stalls nobody. From
//! then on the copy goes on without a lock and still counts if nothing touches its range; were it
//! void at once, a member that is always slower than the hold time could never be rebuilt. A slot
//! is taken until the target has answered, so a stopped target has at most
//! [`RebuildConfig::copies_max`] copies outstanding.
//!
//! What may fail: reads and copies (the chunks stay dirty and are tried again later), the target's
//! device ([`RebuildStep::Failed`]), the target itself ([`Rebuild::into_dirty`]).

use alloc::vec::Vec;
use core::time::Duration;
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BlockRange, BufSlice, Buffers, ChunkMap, Monotonic};
use trilith_wire::EntryStatus;

mod pick;
mod rate;

pub use rate::{Load, RateConfig, RateController};

use pick::Picker;
pub(crate) use rate::Bucket;

#[cfg(test)]
mod rate_tests;
#[cfg(test)]
mod tests;

/// Hot ranges remembered; further hints are dropped.
const HOT_MAX: usize = 64;
/// What a chunk of zeroes costs of the rate, in bytes.
const ZERO_CHUNK_COST: u64 = 4096;
/// First pause of chunks whose copy failed; doubles up to [`DEFER_MAX`].
const DEFER_MIN: Duration = Duration::from_millis(10);
/// Longest pause of chunks whose copy failed.
const DEFER_MAX: Duration = Duration::from_secs(1);

/// Sizes and times of a rebuild.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RebuildConfig {
    /// Size of the volume in bytes.
    pub capacity_bytes: u64,
    /// Copies in flight at once, at least 1.
    pub copies_max: usize,
    /// Longest copy in bytes (64 KiB to 1 MiB).
    pub copy_bytes_max: u32,
    /// How long a range lock may be held (M4).
    pub lock_hold: Duration,
    /// A FLUSH is asked for this long after the first copy that it would cover ...
    pub clear_interval: Duration,
    /// ... or once it would cover this many bytes.
    pub clear_bytes: u64,
    /// Bytes per second.
    pub rate: RateConfig,
}

impl Default for RebuildConfig {
    fn default() -> Self {
        RebuildConfig {
            capacity_bytes: 0,
            copies_max: 8,
            copy_bytes_max: 1 << 20,
            lock_hold: Duration::from_millis(50),
            clear_interval: Duration::from_secs(2),
            clear_bytes: 64 << 20,
            rate: RateConfig::default(),
        }
    }
}

/// What a rebuild wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RebuildStep {
    /// Hold new client writes that overlap the range; answer LockGranted once those in flight are
    /// committed and accepted by the member that will be read, or LockDenied. It should wait in
    /// line rather than be denied, or a busy range is copied last.
    Lock {
        /// Names the copy from now on.
        token: u64,
        /// Within one extent, whole chunks (clipped at the end of the volume).
        range: BlockRange,
    },
    /// Let client writes on the range of this token go on. Sent once for each lock granted.
    Unlock {
        /// The copy.
        token: u64,
    },
    /// READ from an in-sync member that accepted every entry overlapping the range.
    Read {
        /// The copy.
        token: u64,
        /// Its blocks.
        range: BlockRange,
    },
    /// Send REPAIR with rebuild = true to the target. One owner of the buffer passes to the engine.
    Copy {
        /// The copy; the REPAIR's tag.
        token: u64,
        /// Its blocks.
        range: BlockRange,
        /// The bytes; `None`: zeroes.
        data: Option<BufSlice>,
    },
    /// Send a FLUSH entry; answer FlushDone when the target has answered it.
    Flush {
        /// Names the answer.
        token: u64,
    },
    /// Send DIRTYCLEAR of [`Rebuild::take_cleared`] to every in-sync member and to the target,
    /// before any further entry.
    DirtyClear,
    /// Nothing is dirty and no copy runs: the member may join (5.4). Sent again if chunks became
    /// dirty in between.
    Done,
    /// The target cannot take copies; end the rebuild.
    Failed(EntryStatus),
}

/// What a READ brought. The buffer passes to the rebuild.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyData {
    /// The bytes, exactly as many as asked for.
    Bytes(BufSlice),
    /// Zeroes.
    Zero,
}

/// What can happen to a rebuild.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RebuildEvent {
    /// The range is locked.
    LockGranted(u64),
    /// The range cannot be locked now.
    LockDenied(u64),
    /// DATA, or an error.
    ReadDone {
        /// The copy.
        token: u64,
        /// What came.
        result: Result<CopyData, EntryStatus>,
    },
    /// REPAIRDONE.
    CopyDone {
        /// The copy.
        token: u64,
        /// How it ended.
        status: EntryStatus,
    },
    /// The target answered the FLUSH.
    FlushDone(u64),
    /// The member read from is gone: reads without an answer will get none.
    SourceChanged,
}

/// How an entry is sent to the member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// With its payload.
    Full,
    /// Header only: put the member into the skip set.
    HeaderOnly,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Free,
    /// Asked for the lock.
    Locking,
    /// Waiting for the source.
    Reading,
    /// Waiting for the target.
    Copying,
}

/// One copy on its way.
#[derive(Clone, Copy, Debug)]
struct Copy {
    token: u64,
    range: BlockRange,
    stage: Stage,
    /// When the lock is given back; `None`: it is not held.
    locked_until: Option<Monotonic>,
    /// An entry touched the range: whatever comes, the chunks stay dirty.
    void: bool,
}

/// The machine.
#[derive(Debug)]
pub struct Rebuild {
    config: RebuildConfig,
    picker: Picker,
    copies: Vec<Copy>,
    next_token: u64,
    rate: RateController,
    bucket: Bucket,
    now: Monotonic,
    /// Copied, not yet covered by a flush.
    copied: ChunkMap,
    copied_at: Monotonic,
    /// Covered by the flush in flight.
    flushing: ChunkMap,
    flush: Option<u64>,
    /// Durable at the target, to be taken by the engine.
    cleared: ChunkMap,
    defer: Duration,
    done_told: bool,
    failed: bool,
    started_at: Monotonic,
    bytes_copied: u64,
}

impl Rebuild {
    /// A rebuild of a member that lacks `dirty`. `baseline_p99` is the clients' 99th percentile
    /// before it, zero when unknown.
    pub fn new(
        config: RebuildConfig,
        dirty: ChunkMap,
        now: Monotonic,
        baseline_p99: Duration,
    ) -> Rebuild {
        let rate = RateController::new(config.rate, baseline_p99);
        Rebuild {
            config,
            picker: Picker::new(dirty, config.capacity_bytes),
            copies: Vec::with_capacity(config.copies_max),
            // No token of an earlier rebuild of this member: a late answer must find nothing.
            next_token: now.0.max(1),
            bucket: Bucket::new(now, rate.bytes_per_second()),
            rate,
            now,
            copied: ChunkMap::new(),
            copied_at: now,
            flushing: ChunkMap::new(),
            flush: None,
            cleared: ChunkMap::new(),
            defer: DEFER_MIN,
            done_told: false,
            failed: false,
            started_at: now,
            bytes_copied: 0,
        }
    }

    /// One event in, a bounded number of steps out (appended).
    pub fn event(
        &mut self,
        now: Monotonic,
        event: RebuildEvent,
        data: &mut dyn Buffers,
        out: &mut Vec<RebuildStep>,
    ) {
        self.now = self.now.max(now);
        match event {
            RebuildEvent::LockGranted(token) => self.lock_granted(token, out),
            RebuildEvent::LockDenied(token) => {
                if let Some(at) = self.find(token, Stage::Locking) {
                    mark::reached(Mark::LockDenied);
                    self.give_up(at, out);
                }
            }
            RebuildEvent::ReadDone { token, result } => self.read_done(token, result, data, out),
            RebuildEvent::CopyDone { token, status } => self.copy_done(token, status, out),
            RebuildEvent::FlushDone(token) => {
                if self.flush == Some(token) {
                    self.flush = None;
                    self.cleared.union(&self.flushing);
                    self.flushing.clear();
                    if !self.cleared.is_empty() {
                        out.push(RebuildStep::DirtyClear);
                    }
                }
            }
            RebuildEvent::SourceChanged => {
                for at in 0..self.copies.len() {
                    if self.copies[at].stage == Stage::Reading {
                        self.give_up(at, out);
                    }
                }
            }
        }
    }

    /// Starts copies, ends locks that are too old, asks for flushes. Call it after events and when
    /// [`Rebuild::deadline`] has passed.
    pub fn settle(&mut self, now: Monotonic, out: &mut Vec<RebuildStep>) {
        self.now = self.now.max(now);
        for copy in &mut self.copies {
            // M4: nobody waits longer for a copy.
            if copy.locked_until.is_some_and(|until| until <= self.now) {
                copy.locked_until = None;
                mark::reached(Mark::LockTimedOut);
                out.push(RebuildStep::Unlock { token: copy.token });
            }
        }
        if self.failed {
            return;
        }
        self.picker.undefer(self.now);
        self.bucket.refill(self.now, self.rate.bytes_per_second());
        while self.running() < self.config.copies_max.max(1) && self.bucket.is_open() {
            let Some(range) = self.picker.pick(self.config.copy_bytes_max) else {
                break;
            };
            self.bucket.take(range.bytes());
            let token = self.next_token;
            self.next_token += 1;
            let copy = Copy {
                token,
                range,
                stage: Stage::Locking,
                locked_until: None,
                void: false,
            };
            match self.copies.iter().position(|c| c.stage == Stage::Free) {
                Some(at) => self.copies[at] = copy,
                None => self.copies.push(copy),
            }
            out.push(RebuildStep::Lock { token, range });
        }
        if self.flush_is_due() {
            let token = self.next_token;
            self.next_token += 1;
            self.flush = Some(token);
            core::mem::swap(&mut self.copied, &mut self.flushing);
            out.push(RebuildStep::Flush { token });
        }
        let done = self.picker.dirty().is_empty() && self.running() == 0;
        if done && !self.done_told {
            out.push(RebuildStep::Done);
        }
        self.done_told = done;
    }

    /// When [`Rebuild::settle`] wants to be called at the latest.
    pub fn deadline(&self) -> Option<Monotonic> {
        let locks = self.copies.iter().filter_map(|c| c.locked_until).min();
        if self.failed {
            return locks;
        }
        let slot = self.running() < self.config.copies_max.max(1);
        let start = if slot && self.picker.has_ready() {
            Some(self.bucket.opens_at(self.rate.bytes_per_second()))
        } else {
            None
        };
        let flush = if self.flush.is_none() && !self.copied.is_empty() {
            Some(self.copied_at.after(self.config.clear_interval))
        } else {
            None
        };
        [locks, start, flush, self.picker.deferred_until()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Must be asked for every data entry, in stream order, when its idx is given: how is it sent
    /// to this member? HeaderOnly marks its chunks dirty here and voids copies of them.
    pub fn route(&mut self, range: BlockRange) -> Route {
        if !self.picker.dirty().touches(range) {
            return Route::Full;
        }
        // Chunks in flight are dirty until the copy's ack, so none is missed here.
        self.mark(range);
        Route::HeaderOnly
    }

    /// The member lacks this range from now on, whatever it was sent before.
    pub fn mark(&mut self, range: BlockRange) {
        for copy in self.copies.iter_mut().filter(|c| c.stage != Stage::Free) {
            mark::reached_if(!copy.void && copy.range.overlaps(range), Mark::CopyVoided);
            copy.void |= copy.range.overlaps(range) && !mutant::on(Mutant::CopyNotVoided);
        }
        self.picker.mark(range);
        for part in trilith_block::chunks::split_at_extents(range) {
            let (extent, mask) = (part.start.extent(), part.chunk_mask());
            self.copied.remove_mask(extent, mask);
            self.flushing.remove_mask(extent, mask);
            self.cleared.remove_mask(extent, mask);
        }
    }

    /// Copy this range soon, if it is dirty. A hint: at most a few dozen are remembered.
    pub fn hint_hot(&mut self, range: BlockRange) {
        self.picker.hint(range);
    }

    /// Clients' load of the last interval, about every second.
    pub fn load(&mut self, now: Monotonic, load: Load) {
        self.now = self.now.max(now);
        self.bucket.refill(self.now, self.rate.bytes_per_second());
        self.rate.update(load);
    }

    /// The chunks of a [`RebuildStep::DirtyClear`] are moved to `cleared` (replaced).
    pub fn take_cleared(&mut self, cleared: &mut ChunkMap) {
        cleared.clear();
        core::mem::swap(&mut self.cleared, cleared);
    }

    /// Chunks still to be copied.
    pub fn dirty(&self) -> &ChunkMap {
        self.picker.dirty()
    }

    /// True while a copy, its lock or its read is on its way. Join only when false (5.4).
    pub fn is_copying(&self) -> bool {
        self.running() != 0
    }

    /// Bytes copied so far, zeroes included.
    pub fn bytes_copied(&self) -> u64 {
        self.bytes_copied
    }

    /// Bytes still to be copied.
    pub fn bytes_left(&self) -> u64 {
        self.picker.dirty().bytes()
    }

    /// Bytes per second that it may copy now.
    pub fn bytes_per_second(&self) -> u64 {
        self.rate.bytes_per_second()
    }

    /// Time to the end at the average rate so far; `None` before the first copy.
    pub fn eta(&self, now: Monotonic) -> Option<Duration> {
        if self.bytes_copied == 0 {
            return None;
        }
        let passed = now.since(self.started_at).as_nanos();
        let nanos = passed * u128::from(self.bytes_left()) / u128::from(self.bytes_copied);
        Some(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }

    /// Ends the rebuild (target lost, engine stops) and tells what the member may lack: everything
    /// not yet cleared by a DIRTYCLEAR. The engine unlocks all its ranges, and releases the buffers
    /// of late answers.
    pub fn into_dirty(self) -> ChunkMap {
        let mut dirty = self.picker.into_dirty();
        dirty.union(&self.copied);
        dirty.union(&self.flushing);
        dirty.union(&self.cleared);
        dirty
    }

    fn running(&self) -> usize {
        self.copies
            .iter()
            .filter(|c| c.stage != Stage::Free)
            .count()
    }

    fn find(&self, token: u64, stage: Stage) -> Option<usize> {
        self.copies
            .iter()
            .position(|c| c.token == token && c.stage == stage)
    }

    fn flush_is_due(&self) -> bool {
        self.flush.is_none()
            && !self.copied.is_empty()
            && (self.config.clear_bytes <= self.copied.bytes()
                || self.copied_at.after(self.config.clear_interval) <= self.now)
    }

    fn lock_granted(&mut self, token: u64, out: &mut Vec<RebuildStep>) {
        let Some(at) = self.find(token, Stage::Locking) else {
            out.push(RebuildStep::Unlock { token });
            return;
        };
        let copy = &mut self.copies[at];
        copy.stage = Stage::Reading;
        copy.locked_until = Some(self.now.after(self.config.lock_hold));
        // What was routed before the lock was granted has reached the source.
        copy.void = false;
        out.push(RebuildStep::Read {
            token,
            range: copy.range,
        });
    }

    fn read_done(
        &mut self,
        token: u64,
        result: Result<CopyData, EntryStatus>,
        data: &mut dyn Buffers,
        out: &mut Vec<RebuildStep>,
    ) {
        let bytes = match result {
            Ok(CopyData::Bytes(slice)) => Some(slice),
            Ok(CopyData::Zero) | Err(_) => None,
        };
        let at = self.find(token, Stage::Reading);
        let usable = at.filter(|at| {
            let copy = &self.copies[*at];
            let length = bytes.is_none_or(|slice| u64::from(slice.len) == copy.range.bytes());
            result.is_ok() && length && !copy.void
        });
        let Some(at) = usable else {
            if let Some(slice) = bytes {
                data.release(slice.buf);
            }
            if let Some(at) = at {
                self.give_up(at, out);
            }
            return;
        };
        let copy = &mut self.copies[at];
        copy.stage = Stage::Copying;
        let range = copy.range;
        if bytes.is_none() {
            let chunks = u64::from(range.chunk_mask().count_ones());
            let cost = range.bytes().min(chunks * ZERO_CHUNK_COST);
            self.bucket
                .refund(range.bytes() - cost, self.rate.bytes_per_second());
        }
        if mutant::on(Mutant::ClearedBeforeCopy) {
            let (extent, mask) = (range.start.extent(), range.chunk_mask());
            self.cleared.add_mask(extent, mask);
            out.push(RebuildStep::DirtyClear);
        }
        out.push(RebuildStep::Copy {
            token,
            range,
            data: bytes,
        });
    }

    fn copy_done(&mut self, token: u64, status: EntryStatus, out: &mut Vec<RebuildStep>) {
        let Some(at) = self.find(token, Stage::Copying) else {
            return;
        };
        let copy = self.copies[at];
        match status {
            EntryStatus::Done if !copy.void => {
                let (extent, mask) = (copy.range.start.extent(), copy.range.chunk_mask());
                self.picker.copied(copy.range);
                if self.copied.is_empty() {
                    self.copied_at = self.now;
                }
                self.copied.add_mask(extent, mask);
                self.bytes_copied += copy.range.bytes();
                self.defer = DEFER_MIN;
                self.end(at, out);
            }
            EntryStatus::Done | EntryStatus::Checksum => self.give_up(at, out),
            EntryStatus::Io | EntryStatus::NoSpace | EntryStatus::Refused => {
                self.give_up(at, out);
                if !self.failed {
                    mark::reached(Mark::CopyFailed);
                    self.failed = true;
                    out.push(RebuildStep::Failed(status));
                }
            }
        }
    }

    /// The copy is over.
    fn end(&mut self, at: usize, out: &mut Vec<RebuildStep>) {
        let copy = &mut self.copies[at];
        copy.stage = Stage::Free;
        if copy.locked_until.take().is_some() {
            out.push(RebuildStep::Unlock { token: copy.token });
        }
    }

    /// The copy is over and brought nothing: its chunks are tried again after a pause, others
    /// first.
    fn give_up(&mut self, at: usize, out: &mut Vec<RebuildStep>) {
        self.picker
            .failed(self.copies[at].range, self.now.after(self.defer));
        self.defer = (self.defer * 2).min(DEFER_MAX);
        self.end(at, out);
    }
}
