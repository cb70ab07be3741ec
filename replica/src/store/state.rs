//! The open store: its parts, its completions, its queries. How changes come in and run is in
//! `admission` and `changes`, full barriers in `barriers`, what goes to the metadata in `commit`,
//! reads in `reads`.

use super::activity_log::ActivityLog;
use super::api::{Counters, FailCause, LeaseGrant, MapName, StoreError, StoreEvent, Token};
use super::barriers::{Barrier, Queued};
use super::changes::Running;
use super::checkpoint::Checkpoint;
use super::checksums::Checksums;
use super::disk::{DiskError, DiskOp, DiskTag, FileRole, StoreOut};
use super::journal::Journal;
use super::limits::{CALLS_MAX, LAZY_ITEMS_MAX, MAPS};
use super::maps::Maps;
use super::opening::OpenParams;
use super::reads::Reading;
use super::record::{Item, MapId};
use super::superblock::{Facts, Superblock};
use super::window::Window;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::ops::Bound;
use trilith_block::limits::EXTENT_CHUNKS;
use trilith_block::mutant::{self, Mutant};
use trilith_block::{
    BlockRange, BufSlice, Buffers, ChunkMap, ChunkMask, ExtentNo, Idx, MemberId, MemberSet,
    Overlap, Term, Uuid,
};
use trilith_wire::WindowRecord;

const TAG_SHIFT: u32 = 56;

/// What an operation of the store is for; the high byte of its tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    Journal,
    Checkpoint,
    Change,
    Flush,
    Provision,
    Ahead,
    Read,
    LoadSums,
    SaveSums,
}

impl Purpose {
    pub(crate) fn tag(self, number: u64) -> DiskTag {
        let kind: u64 = match self {
            Purpose::Journal => 1,
            Purpose::Checkpoint => 2,
            Purpose::Change => 3,
            Purpose::Flush => 4,
            Purpose::Provision => 5,
            Purpose::Ahead => 6,
            Purpose::Read => 7,
            // 8 and 9 are those of an opening and of a format.
            Purpose::LoadSums => 10,
            Purpose::SaveSums => 11,
        };
        DiskTag(kind << TAG_SHIFT | number)
    }

    fn of(tag: DiskTag) -> Option<(Purpose, u64)> {
        let number = tag.0 & ((1 << TAG_SHIFT) - 1);
        let purpose = match tag.0 >> TAG_SHIFT {
            1 => Purpose::Journal,
            2 => Purpose::Checkpoint,
            3 => Purpose::Change,
            4 => Purpose::Flush,
            5 => Purpose::Provision,
            6 => Purpose::Ahead,
            7 => Purpose::Read,
            10 => Purpose::LoadSums,
            11 => Purpose::SaveSums,
            _ => return None,
        };
        Some((purpose, number))
    }
}

/// Who waits for a place in the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waiter {
    Call(Token),
    LogAdd(ExtentNo),
    /// Watermark of flushes up to here.
    Watermark(Idx),
    Barrier,
}

/// A flush of the data that is running.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Flushing {
    /// Changes with a stamp up to it are covered.
    pub(crate) stamp: u64,
    /// upto when it was submitted.
    pub(crate) upto: Idx,
}

/// An open store. See the module's documentation for order and crash arguments.
#[derive(Debug)]
pub struct Store {
    pub(crate) facts: Facts,
    pub(crate) params: OpenParams,
    pub(crate) superblock: Superblock,
    pub(crate) window: Window,
    pub(crate) maps: Maps,
    pub(crate) log: ActivityLog,
    /// The activity log as the journal has it.
    pub(crate) durable_log: BTreeSet<ExtentNo>,
    pub(crate) journal: Journal,
    pub(crate) waiters: VecDeque<(u64, Waiter)>,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) running: Running,
    pub(crate) overlap: Overlap,
    pub(crate) queue: VecDeque<Queued>,
    /// The highest [`Queued::Cut`] in the queue.
    pub(crate) later_tidx: Idx,
    pub(crate) barrier: Option<Barrier>,
    /// Stamp that changes which complete now get; the flush started next covers it.
    pub(crate) stamp: u64,
    /// Changes with a stamp up to it are on stable media.
    pub(crate) flushed: u64,
    pub(crate) flushing: Option<Flushing>,
    pub(crate) flush_wanted: bool,
    /// FLUSH entries not answered.
    pub(crate) flushes: BTreeSet<Idx>,
    /// FLUSH entries up to it are answered by a watermark that is on its way into the journal.
    pub(crate) watermark: Idx,
    pub(crate) drains: Vec<Token>,
    /// What waits behind a failed change is given up, until nothing runs.
    pub(crate) abandoning: bool,
    pub(crate) reads: Vec<Reading>,
    pub(crate) reads_free: Vec<u32>,
    pub(crate) log_waits: BTreeMap<ExtentNo, Vec<u32>>,
    /// Changes that wait for a free slot of the activity log.
    pub(crate) log_full: VecDeque<u32>,
    pub(crate) evicted: Vec<ExtentNo>,
    /// Chunks whose space is reserved.
    pub(crate) provisioned: ChunkMap,
    pub(crate) provision_waits: BTreeMap<ExtentNo, Vec<u32>>,
    pub(crate) ahead: Option<(ExtentNo, u32)>,
    pub(crate) ahead_failed: bool,
    pub(crate) free_extents: u64,
    /// Ranges of entries that failed and are not repaired (M3).
    pub(crate) failed_ranges: Vec<BlockRange>,
    pub(crate) zero: BufSlice,
    /// Checksums of the blocks, when the volume was made with them.
    pub(crate) checksums: Option<Box<Checksums>>,
    /// Members of configurations that are on their way into the journal.
    pub(crate) coming: MemberSet,
    pub(crate) failure: Option<FailCause>,
    pub(crate) counters: Counters,
}

impl Store {
    /// A completion in. Tags that are not this store's are ignored.
    pub fn disk_done(
        &mut self,
        tag: DiskTag,
        result: Result<(), DiskError>,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) {
        let Some((purpose, number)) = Purpose::of(tag) else {
            return;
        };
        if self.failure.is_some() {
            return;
        }
        match purpose {
            Purpose::Journal => self.journal_done(result, data, out),
            Purpose::Checkpoint => self.checkpoint_done(result, data, out),
            Purpose::Change => self.change_done(number, result, data, out),
            Purpose::Flush => self.flush_done(result, data, out),
            Purpose::Provision => self.provision_done(number, result, data, out),
            Purpose::Ahead => self.ahead_done(result),
            Purpose::Read => self.read_done(number, result, data, out),
            Purpose::LoadSums => self.checksums_loaded(number, result, data, out),
            Purpose::SaveSums => self.checksums_saved(result, out),
        }
        self.pump(data, out);
    }

    /// Once after each batch of calls and completions, before the owner's answers leave: group
    /// commit, and the header of the window.
    pub fn settle(&mut self, data: &mut dyn Buffers, out: &mut StoreOut) {
        if self.failure.is_none() {
            self.pump(data, out);
            if self.journal.queued() > LAZY_ITEMS_MAX {
                self.journal.want();
            }
            self.commit(data, out);
        }
        self.window.settle(data);
    }

    /// Moves on whatever may move. Cheap when nothing waits.
    pub(crate) fn pump(&mut self, data: &mut dyn Buffers, out: &mut StoreOut) {
        if self.failure.is_some() {
            return;
        }
        self.retry_full_log(data, out);
        self.step_queue(data, out);
        self.start_checksums(data, out);
        self.start_flush(out);
        self.commit(data, out);
        self.end_drains(out);
    }

    /// Gives the buffers of the store back. Nothing is written.
    pub fn close(mut self, data: &mut dyn Buffers) {
        self.release_running(data);
        while let Some(queued) = self.queue.pop_front() {
            queued.release(data);
        }
        for buf in self.checksums.iter().flat_map(|sums| sums.buffers()) {
            data.release(buf.buf);
        }
        for buf in [self.journal.buf, self.checkpoint.buf, self.zero] {
            data.release(buf.buf);
        }
    }

    pub(crate) fn fail(&mut self, cause: FailCause, out: &mut StoreOut) {
        if self.failure.is_none() {
            self.failure = Some(cause);
            out.event(StoreEvent::Failed { cause });
        }
    }

    pub(crate) fn check_open(&self) -> Result<(), StoreError> {
        if self.failure.is_some() {
            Err(StoreError::Failed)
        } else {
            Ok(())
        }
    }

    pub(crate) fn check_calls(&self) -> Result<(), StoreError> {
        self.check_open()?;
        let waiting = self.queue.len() + self.waiters.len() + self.drains.len();
        if waiting < CALLS_MAX + 2 * usize::try_from(self.window.slots()).unwrap_or(0) {
            Ok(())
        } else {
            Err(StoreError::Busy)
        }
    }

    pub(crate) fn check_range(&self, range: BlockRange) -> Result<(), StoreError> {
        // The first test keeps the sums of the second within 64 bits.
        let inside = range.start.0 < 1 << 40 && range.end().byte_offset() <= self.facts.capacity;
        if !range.is_empty() && inside {
            Ok(())
        } else {
            Err(StoreError::Range)
        }
    }

    pub(crate) fn data_offset(&self, range: BlockRange) -> u64 {
        self.superblock.layout.data_offset + range.start.byte_offset()
    }

    /// The chunks of an extent that the volume has.
    pub(crate) fn full_mask(&self, extent: ExtentNo) -> ChunkMask {
        full_mask(self.facts.capacity, extent)
    }

    /// Makes everything queued for the journal wanted and waits for it.
    pub(crate) fn wait_journal(&mut self, waiter: Waiter) {
        let place = self.journal.want();
        self.waiters.push_back((place, waiter));
    }

    /// Adds chunks to a map, in memory, words and journal queue.
    pub(crate) fn add_journaled(&mut self, map: MapId, chunks: &ChunkMap) {
        for (extent, mask) in chunks.iter() {
            let mask = mask & self.full_mask(extent);
            if mask != 0 && self.maps.add(map, extent, mask, &mut *self.window.words) {
                self.journal.push(Item::Map(map, extent));
            }
        }
    }

    /// Removes chunks from a map; the journal gets it with something else.
    pub(crate) fn remove_lazily(&mut self, map: MapId, chunks: &ChunkMap) {
        for (extent, mask) in chunks.iter() {
            if self.maps.remove(map, extent, mask, &mut *self.window.words) {
                self.journal.push(Item::Map(map, extent));
            }
        }
    }

    /// Removes from a map what `keep` does not have.
    pub(crate) fn retain_lazily(&mut self, map: MapId, keep: &ChunkMap) {
        let mut surplus = self.maps.get(map).clone();
        surplus.subtract(keep);
        self.remove_lazily(map, &surplus);
    }

    // Calls that only write the journal.

    /// V1: makes the vote durable, then [`StoreEvent::Done`]. The caller drains before it answers
    /// (V3).
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Busy`].
    pub fn vote(
        &mut self,
        token: Token,
        term: Term,
        engine: Uuid,
        attach_epoch: u64,
    ) -> Result<(), StoreError> {
        self.check_calls()?;
        let item = Item::Term {
            term,
            engine,
            attach_epoch,
        };
        if mutant::on(Mutant::VoteNotPersisted) {
            self.facts.apply(&item);
            self.waiters.push_front((0, Waiter::Call(token)));
            return Ok(());
        }
        self.journal.push(item);
        self.wait_journal(Waiter::Call(token));
        Ok(())
    }

    /// R5: adds to `need` and takes over a higher loss epoch, durably, then [`StoreEvent::Done`].
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Busy`].
    pub fn reconcile(
        &mut self,
        token: Token,
        need: &ChunkMap,
        loss: u32,
    ) -> Result<(), StoreError> {
        self.check_calls()?;
        self.add_journaled(MapId::NEED, need);
        self.journal.push(Item::Loss(loss));
        self.wait_journal(Waiter::Call(token));
        Ok(())
    }

    /// Adds to `need` durably, then [`StoreEvent::Done`] (6.2, R11).
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Busy`].
    pub fn need_set(&mut self, token: Token, need: &ChunkMap) -> Result<(), StoreError> {
        self.check_calls()?;
        self.add_journaled(MapId::NEED, need);
        self.wait_journal(Waiter::Call(token));
        Ok(())
    }

    /// R9: drops limbo. At once here; the journal gets it with something else (a power loss brings
    /// it back, which is only more to repair).
    pub fn opened(&mut self) {
        self.retain_lazily(MapId::LIMBO, &ChunkMap::new());
    }

    /// Every entry up to `tidx` was accepted by all of trk: the window is cut there, though never
    /// above what is accepted here. In stream order: what waits behind a barrier may speak of the
    /// smaller trk that a SYNCSET makes, and is heeded once that is durable (5.4, C18).
    pub fn set_tidx(&mut self, tidx: Idx) {
        if self.barrier.is_none() && self.queue.is_empty() {
            self.window.set_tidx(tidx);
        } else if self.tidx().max(self.later_tidx) < tidx {
            self.later_tidx = tidx;
            match self.queue.back_mut() {
                Some(Queued::Cut(last)) => *last = tidx,
                Some(_) | None => self.queue.push_back(Queued::Cut(tidx)),
            }
        }
    }

    /// True when the entry has its place in the window, by the time its turn comes.
    pub(crate) fn fits(&self, idx: Idx) -> bool {
        let cut = if self.queue.is_empty() {
            self.tidx()
        } else {
            self.tidx().max(self.later_tidx)
        };
        idx.0 <= cut.0.saturating_add(u64::from(self.window.slots()))
    }

    /// The last lease granted (M14); stored at the next [`Store::settle`].
    pub fn set_lease(&mut self, grant: LeaseGrant) {
        if self.window.header.lease != grant {
            self.window.change_header(|h| h.lease = grant);
        }
    }

    /// Extents that the file system has room for now, from statvfs. The store counts down from it.
    pub fn set_free_extents(&mut self, extents: u64) {
        if self.facts.is_witness() {
            // Its file system has no say in the room of the volume (W1, M3).
            return;
        }
        self.free_extents = extents;
        self.ahead_failed = false;
    }

    // Queries.

    /// The durable facts.
    pub fn facts(&self) -> Facts {
        self.facts
    }

    /// True when the store failed.
    pub fn failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Sizes, offsets and checkpoint of the volume.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// What the store failed of.
    pub fn failure(&self) -> Option<FailCause> {
        self.failure
    }

    /// Every entry up to it has been accepted here.
    pub fn upto(&self) -> Idx {
        self.window.header.upto
    }

    /// Where the window is cut.
    pub fn tidx(&self) -> Idx {
        self.window.header.tidx
    }

    /// Highest entry with a slot, at least upto.
    pub fn max_idx(&self) -> Idx {
        self.window.max_idx
    }

    /// Slots of the window.
    pub fn window_slots(&self) -> u32 {
        self.window.slots()
    }

    /// Data entries above tidx. Cost: a walk over the window.
    pub fn window_count(&self) -> u32 {
        u32::try_from(self.window_records(Idx(0)).count()).unwrap_or(u32::MAX)
    }

    /// Data entries above tidx from `from` on, rising.
    pub fn window_records(&self, from: Idx) -> impl Iterator<Item = WindowRecord> + '_ {
        self.window
            .entries(from)
            .filter(|slot| slot.op.is_data())
            .map(|slot| WindowRecord {
                idx: slot.idx,
                range: slot.range,
                status: slot.status,
                skip: slot.skip,
            })
    }

    /// True when the window has the entry and it is a write: zeroes and discards bring no payload.
    pub fn has_payload(&self, idx: Idx) -> bool {
        let slot = self.window.slot(idx);
        slot.is_some_and(|slot| slot.op == super::window::SlotOp::Write)
    }

    /// True when the entry has been accepted here.
    pub fn is_accepted(&self, idx: Idx) -> bool {
        idx <= self.upto()
            || self.window.slot(idx).is_some_and(|slot| {
                matches!(
                    slot.status,
                    trilith_wire::SlotStatus::Accepted | trilith_wire::SlotStatus::Skipped
                )
            })
    }

    /// Extents of the activity log from `from` on, rising.
    pub fn activity_log(&self, from: ExtentNo) -> impl Iterator<Item = ExtentNo> + '_ {
        self.log.from(from)
    }

    /// A map.
    pub fn map(&self, name: MapName) -> &ChunkMap {
        self.maps.get(MapId::of(name))
    }

    /// True when a block of the range may differ from the rest (`need` without limbo).
    pub fn needs(&self, range: BlockRange) -> bool {
        self.maps.get(MapId::NEED).touches(range)
    }

    /// True when `need` or limbo has a chunk.
    pub fn has_need(&self) -> bool {
        !self.maps.get(MapId::NEED).is_empty() || !self.maps.get(MapId::LIMBO).is_empty()
    }

    /// The next extents of `need` together with limbo, as others are told it, from `from` on.
    pub fn need_and_limbo(
        &self,
        from: ExtentNo,
    ) -> impl Iterator<Item = (ExtentNo, ChunkMask)> + '_ {
        let mut need = self.maps.get(MapId::NEED).iter_from(from).peekable();
        let mut limbo = self.maps.get(MapId::LIMBO).iter_from(from).peekable();
        core::iter::from_fn(
            move || match (need.peek().copied(), limbo.peek().copied()) {
                (Some(a), Some(b)) if a.0 == b.0 => {
                    need.next();
                    limbo.next();
                    Some((a.0, a.1 | b.1))
                }
                (Some(a), Some(b)) if a.0 < b.0 => need.next(),
                (Some(_), None) => need.next(),
                (_, Some(_)) => limbo.next(),
                (None, None) => None,
            },
        )
    }

    /// The last lease granted, also from before a restart (M14).
    pub fn lease(&self) -> LeaseGrant {
        self.window.header.lease
    }

    /// Extents that can still be allocated, as far as known (M3).
    pub fn free_extents(&self) -> u64 {
        self.free_extents
    }

    /// Counters since open.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Changes that were admitted and have not ended.
    pub fn changes_running(&self) -> usize {
        self.running.live()
    }

    /// Those of `members` that have a dirty map here: never a witness (W1).
    pub(crate) fn peers(&self, members: MemberSet) -> MemberSet {
        members.and(self.known_members()).without(self.me())
    }

    /// Who holds data by the durable configuration and by the one that is on its way.
    pub(crate) fn known_members(&self) -> MemberSet {
        self.facts.config.data().or(self.coming)
    }

    pub(crate) fn me(&self) -> MemberId {
        self.facts.member
    }

    /// True when a FLUSH entry up to `upto` waits for more than the watermark on its way. Never while
    /// a barrier's record is on its way: what it leaves of the window is not known before.
    pub(crate) fn is_flush_due(&self, upto: Idx) -> bool {
        let mut due = self
            .flushes
            .range((Bound::Excluded(self.watermark), Bound::Unbounded));
        !matches!(self.barrier, Some(Barrier::Journal(_))) && due.next().is_some_and(|f| *f <= upto)
    }

    /// F1: a flush of the data when someone wants one and none is running.
    pub(crate) fn start_flush(&mut self, out: &mut StoreOut) {
        let upto = self.upto();
        let asked = self.flush_wanted || self.is_flush_due(upto);
        if !asked || self.flushing.is_some() || self.failure.is_some() {
            return;
        }
        self.flush_wanted = false;
        self.flushing = Some(Flushing {
            stamp: self.stamp,
            upto,
        });
        self.stamp += 1;
        self.counters.data_flushes += 1;
        if mutant::on(Mutant::WatermarkBeforeFlush)
            && self.facts.is_complete()
            && !self.facts.tainted
        {
            self.journal.push(Item::W(upto));
            self.journal.want();
        }
        out.op(
            Purpose::Flush.tag(0),
            DiskOp::Flush {
                role: FileRole::Data,
            },
        );
    }
}

/// The chunks of an extent within a volume of `capacity` bytes.
pub(crate) fn full_mask(capacity: u64, extent: ExtentNo) -> ChunkMask {
    let left = capacity.saturating_sub(extent.byte_offset());
    let chunks = left.div_ceil(u64::from(trilith_block::limits::CHUNK_BYTES));
    match u32::try_from(chunks) {
        Ok(0) => 0,
        Ok(n) if n < EXTENT_CHUNKS => u64::MAX >> (EXTENT_CHUNKS - n),
        _ => u64::MAX,
    }
}

const _: () = assert!(MAPS < 256);
