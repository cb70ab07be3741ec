//! How entries and repairs run: slot, overlap order (O1), activity log (L1, L3), space, device,
//! slot again. Nothing here waits for the journal when the extent is in the activity log.
//!
//! Crash argument. The slot (SUB) is stored before the activity log is asked and before the device
//! gets anything; a process killed anywhere leaves SUB or nothing, and SUB is written again by a
//! resend. ACC is stored after the device completed and before the owner can ack. After a power loss
//! the window is void and the activity log covers what was written.

use super::activity_log::Touch;
use super::api::{Admission, Change, Entry, StoreError, StoreEvent, Token};
use super::barriers::{Barrier, Queued};
use super::disk::{DiskError, DiskOp, FileRole, StoreOut};
use super::limits::ZERO_BYTES;
use super::record::{Item, MapId};
use super::state::{Purpose, Store, Waiter};
use super::window::{Slot, SlotOp};
use alloc::vec::Vec;
use trilith_block::chunks::{chunk_range, runs};
use trilith_block::{BlockRange, Blocks, Buffers, ExtentNo, Idx, Lba, MemberSet};
use trilith_wire::SlotStatus;

const WAIT_OVERLAP: u8 = 1;
const WAIT_LOG: u8 = 2;
pub(crate) const WAIT_SPACE: u8 = 4;
const NO_CHANGE: u32 = u32::MAX;

/// Whose change it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    Entry(Idx),
    Repair(Token),
}

/// A change that was admitted and has not ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunningChange {
    owner: Owner,
    range: BlockRange,
    change: Change,
    waits: u8,
    /// Device operations in flight.
    parts: u32,
    pub(crate) error: Option<DiskError>,
    /// It failed: it holds its range until it is sent again (O1).
    failed: bool,
    /// Given up while it waited for log or space.
    cancelled: bool,
    /// It pins its extent in the activity log.
    pinned: bool,
}

/// The changes of a store, in a slab.
#[derive(Debug)]
pub(crate) struct Running {
    slab: Vec<Option<RunningChange>>,
    free: Vec<u32>,
    failed: usize,
    /// Change of each window slot.
    slots: Vec<u32>,
    /// Changes that nothing holds back any more.
    ready: Vec<u32>,
    freed: Vec<u64>,
}

fn at(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Running {
    pub(crate) fn new(window_slots: u32) -> Running {
        Running {
            slab: Vec::new(),
            free: Vec::new(),
            failed: 0,
            slots: alloc::vec![NO_CHANGE; at(window_slots)],
            ready: Vec::new(),
            freed: Vec::new(),
        }
    }

    pub(crate) fn live(&self) -> usize {
        self.slab.len() - self.free.len()
    }

    pub(crate) fn get(&mut self, number: u32) -> Option<&mut RunningChange> {
        self.slab.get_mut(at(number)).and_then(Option::as_mut)
    }

    fn insert(&mut self, change: RunningChange) -> u32 {
        match self.free.pop() {
            Some(number) => {
                self.slab[at(number)] = Some(change);
                number
            }
            None => {
                self.slab.push(Some(change));
                u32::try_from(self.slab.len() - 1).unwrap_or(NO_CHANGE)
            }
        }
    }

    fn remove(&mut self, number: u32) -> Option<RunningChange> {
        let gone = self.slab.get_mut(at(number)).and_then(Option::take)?;
        if gone.failed {
            self.failed -= 1;
        }
        self.free.push(number);
        Some(gone)
    }
}

fn slot_op(change: Change) -> SlotOp {
    match change {
        Change::Write(_) | Change::HeaderOnly => SlotOp::Write,
        Change::Zeroes => SlotOp::Zeroes,
        Change::Discard => SlotOp::Discard,
    }
}

impl Store {
    /// A data entry, in stream order. [`StoreEvent::Accepted`] or [`StoreEvent::EntryFailed`]
    /// follows when `Taken`. Sent again after a failure it is tried again in place.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Range`], [`StoreError::WindowFull`].
    pub fn entry(
        &mut self,
        entry: Entry,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> Result<Admission, StoreError> {
        self.check_open()?;
        self.check_change(entry.range, entry.change)?;
        if !self.window.fits(entry.idx) {
            return Err(StoreError::WindowFull);
        }
        if self.is_accepted(entry.idx) {
            return Ok(Admission::Duplicate);
        }
        if self.must_queue(true) {
            if self.queue.len() >= 2 * self.running.slots.len() {
                return Err(StoreError::WindowFull);
            }
            retain(entry.change, data);
            self.queue.push_back(Queued::Entry(entry));
            self.step_queue(data, out);
            return Ok(Admission::Taken);
        }
        retain(entry.change, data);
        self.start_entry(entry, data, out);
        Ok(Admission::Taken)
    }

    /// A change outside the stream: R6 of a recovery and copies of a rebuild. Ends with
    /// [`StoreEvent::Repaired`].
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Range`] (also for `HeaderOnly`), [`StoreError::Busy`].
    pub fn repair(
        &mut self,
        token: Token,
        range: BlockRange,
        change: Change,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> Result<(), StoreError> {
        self.check_calls()?;
        self.check_change(range, change)?;
        if change == Change::HeaderOnly {
            return Err(StoreError::Range);
        }
        retain(change, data);
        if self.must_queue(false) {
            self.queue.push_back(Queued::Repair(token, range, change));
        } else {
            self.start_change(
                Owner::Repair(token),
                range,
                change,
                MemberSet::EMPTY,
                data,
                out,
            );
        }
        Ok(())
    }

    /// A FLUSH entry, in stream order. Accepted at its turn ([`StoreEvent::Accepted`]); when all up
    /// to it is on stable media [`StoreEvent::Flushed`]. A duplicate is answered by `Flushed` again.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::WindowFull`].
    pub fn flush(
        &mut self,
        idx: Idx,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> Result<Admission, StoreError> {
        self.check_open()?;
        if !self.window.fits(idx) {
            return Err(StoreError::WindowFull);
        }
        if self.is_accepted(idx) {
            self.flushes.insert(idx);
            self.pump(data, out);
            return Ok(Admission::Duplicate);
        }
        if self.queue.len() >= 2 * self.running.slots.len() {
            return Err(StoreError::WindowFull);
        }
        if self.must_queue(true) {
            self.queue.push_back(Queued::Flush(idx));
        } else {
            self.start_flush_entry(idx, data, out);
        }
        self.pump(data, out);
        Ok(Admission::Taken)
    }

    fn check_change(&self, range: BlockRange, change: Change) -> Result<(), StoreError> {
        self.check_range(range)?;
        let fits = match change {
            Change::Write(buf) => u64::from(buf.len) == range.bytes(),
            Change::Zeroes | Change::Discard | Change::HeaderOnly => true,
        };
        if fits && range.in_one_extent() {
            Ok(())
        } else {
            Err(StoreError::Range)
        }
    }

    /// True when a call must wait behind a barrier. An entry after a clean stop makes one: that the
    /// stop is over is durable before anything is accepted (T21).
    fn must_queue(&mut self, entry: bool) -> bool {
        if entry && self.facts.sealed && self.barrier.is_none() && self.queue.is_empty() {
            self.journal.push(Item::Seal(false));
            self.wait_journal(Waiter::Barrier);
            self.barrier = Some(Barrier::Unseal);
        }
        self.barrier.is_some() || !self.queue.is_empty()
    }

    pub(crate) fn start_flush_entry(&mut self, idx: Idx, data: &dyn Buffers, out: &mut StoreOut) {
        if !self.is_accepted(idx) && self.window.fits(idx) {
            self.window.put_marker(idx, SlotOp::Flush, data);
        }
        self.flushes.insert(idx);
        out.event(StoreEvent::Accepted { idx });
    }

    /// The turn of an entry whose payload is already retained.
    pub(crate) fn start_entry(&mut self, entry: Entry, data: &mut dyn Buffers, out: &mut StoreOut) {
        if !self.window.fits(entry.idx) || self.is_accepted(entry.idx) {
            release(entry.change, data);
            out.event(StoreEvent::Accepted { idx: entry.idx });
            return;
        }
        if let Some(number) = self.running_entry(entry.idx) {
            self.resend(number, entry.change, data, out);
            return;
        }
        let mask = entry.range.chunk_mask();
        let extent = entry.range.start.extent();
        for peer in self.peers(entry.skip).iter() {
            self.maps
                .add(MapId::dirty(peer), extent, mask, &mut *self.window.words);
        }
        let skipped = entry.change == Change::HeaderOnly;
        let slot = Slot {
            idx: entry.idx,
            range: entry.range,
            status: if skipped {
                SlotStatus::Skipped
            } else {
                SlotStatus::Submitted
            },
            op: slot_op(entry.change),
            skip: entry.skip,
        };
        self.window.put(&slot, data);
        if skipped {
            self.window.advance();
            out.event(StoreEvent::Accepted { idx: entry.idx });
            return;
        }
        let owner = Owner::Entry(entry.idx);
        self.start_change(owner, entry.range, entry.change, entry.skip, data, out);
    }

    fn running_entry(&mut self, idx: Idx) -> Option<u32> {
        let number = self.running.slots[self.window.slot_number(idx)];
        let change = self.running.get(number)?;
        (change.owner == Owner::Entry(idx) && !change.cancelled).then_some(number)
    }

    fn resend(&mut self, number: u32, change: Change, data: &mut dyn Buffers, out: &mut StoreOut) {
        let Some(running) = self.running.get(number) else {
            return;
        };
        if !running.failed {
            release(change, data);
            return;
        }
        let old = running.change;
        running.change = change;
        running.failed = false;
        running.error = None;
        let (owner, range) = (running.owner, running.range);
        self.running.failed -= 1;
        release(old, data);
        if let Owner::Entry(idx) = owner {
            self.window.set_status(idx, SlotStatus::Submitted);
        }
        self.provision(number, range, change, out);
        self.run_if_free(number);
        self.run_ready(data, out);
    }

    pub(crate) fn start_change(
        &mut self,
        owner: Owner,
        range: BlockRange,
        change: Change,
        skip: MemberSet,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) {
        let extent = range.start.extent();
        let number = self.running.insert(RunningChange {
            owner,
            range,
            change,
            waits: 0,
            parts: 0,
            error: None,
            failed: false,
            cancelled: false,
            pinned: false,
        });
        if let Owner::Entry(idx) = owner {
            let place = self.window.slot_number(idx);
            self.running.slots[place] = number;
        }
        // O1: an entry waits for every earlier one that overlaps it.
        let free = self.overlap.insert(u64::from(number), range);
        if !free {
            self.add_wait(number, WAIT_OVERLAP);
        }
        let nothing_there = self.maps.mask(MapId::ALLOCATED, extent) & range.chunk_mask() == 0;
        let writes = matches!(change, Change::Write(_));
        // M20: it reads zero already and nobody else may lack it: done without the log.
        if writes || !free || !nothing_there || !skip.is_empty() {
            self.want_log(number, owner, extent);
            self.provision(number, range, change, out);
        }
        self.run_if_free(number);
        self.run_ready(data, out);
    }

    pub(crate) fn add_wait(&mut self, number: u32, wait: u8) {
        if let Some(running) = self.running.get(number) {
            running.waits |= wait;
        }
    }

    pub(crate) fn end_wait(&mut self, number: u32, wait: u8) {
        if let Some(running) = self.running.get(number) {
            running.waits &= !wait;
        }
        self.run_if_free(number);
    }

    fn run_if_free(&mut self, number: u32) {
        if self
            .running
            .get(number)
            .is_some_and(|r| r.waits == 0 && r.parts == 0 && !r.failed)
        {
            self.running.ready.push(number);
        }
    }

    /// L1: the extent is in the durable activity log before data is written; L3: the slot of the
    /// entry is stored before.
    fn want_log(&mut self, number: u32, owner: Owner, extent: ExtentNo) {
        let idx = match owner {
            Owner::Entry(idx) => idx,
            Owner::Repair(_) => Idx(0),
        };
        match self.log.touch(extent, idx) {
            Touch::Ready => {
                self.counters.al_hits += 1;
                self.set_pinned(number);
            }
            Touch::Adding => {
                self.set_pinned(number);
                self.add_wait(number, WAIT_LOG);
                self.log_waits.entry(extent).or_default().push(number);
            }
            Touch::Missing if self.log.is_full() => {
                self.add_wait(number, WAIT_LOG);
                self.log_full.push_back(number);
                self.make_room();
            }
            Touch::Missing => {
                self.counters.al_misses += 1;
                self.log.add(extent, false, Idx(0), 0);
                self.log.touch(extent, idx);
                self.set_pinned(number);
                self.add_wait(number, WAIT_LOG);
                self.log_waits.entry(extent).or_default().push(number);
                self.journal.push(Item::AlAdd(extent));
                self.wait_journal(Waiter::LogAdd(extent));
                if self.log.is_nearly_full() {
                    self.make_room();
                }
            }
        }
    }

    fn set_pinned(&mut self, number: u32) {
        if let Some(running) = self.running.get(number) {
            running.pinned = true;
        }
    }

    /// L2: lets a batch of extents leave. Their maps go into the journal before their AL-del (d),
    /// both before the AL-add that uses the slot. Asks for a flush where that is what is missing.
    fn make_room(&mut self) {
        let batch = at(self.superblock.geometry.al_batch);
        let look_at = if self.log.is_full() {
            self.log.len()
        } else {
            4 * batch
        };
        let (tidx, flushed) = (self.tidx(), self.flushed);
        self.evicted.clear();
        let flush_helps = self
            .log
            .evict(batch, look_at, tidx, flushed, &mut self.evicted);
        for extent in &self.evicted {
            for map in self.maps.changed_of(*extent) {
                self.journal.push(Item::Map(map, *extent));
            }
            self.journal.push(Item::AlDel(*extent));
            self.counters.al_evictions += 1;
        }
        if self.evicted.is_empty() && flush_helps {
            self.flush_wanted = true;
        }
    }

    /// Tries again for changes that found the activity log full.
    pub(crate) fn retry_full_log(&mut self, data: &mut dyn Buffers, out: &mut StoreOut) {
        if self.log_full.is_empty() {
            return;
        }
        if self.log.is_full() {
            self.make_room();
        }
        for _ in 0..self.log_full.len() {
            let Some(number) = self.log_full.pop_front() else {
                break;
            };
            let Some((owner, range)) = self.running.get(number).map(|r| (r.owner, r.range)) else {
                continue;
            };
            let extent = range.start.extent();
            if self.log.is_full() && self.log.from(extent).next() != Some(extent) {
                self.log_full.push_front(number);
                break;
            }
            if let Some(running) = self.running.get(number) {
                running.waits &= !WAIT_LOG;
            }
            self.want_log(number, owner, extent);
            self.run_if_free(number);
        }
        self.run_ready(data, out);
    }

    pub(crate) fn log_added(
        &mut self,
        extent: ExtentNo,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) {
        self.log.added(extent);
        for number in self.log_waits.remove(&extent).unwrap_or_default() {
            self.end_wait(number, WAIT_LOG);
        }
        self.run_ready(data, out);
    }

    // Device.

    /// Submits what nothing holds back, and ends what has nothing to do.
    pub(crate) fn run_ready(&mut self, data: &mut dyn Buffers, out: &mut StoreOut) {
        while let Some(number) = self.running.ready.pop() {
            let Some(running) = self.running.get(number).copied() else {
                continue;
            };
            if running.waits != 0 || running.parts != 0 || running.failed {
                continue;
            }
            if running.cancelled {
                self.drop_change(number, data, out);
                continue;
            }
            if running.error.is_some() || self.submit(number, &running, out) == 0 {
                self.end_change(number, data, out);
            }
        }
    }

    /// Returns the number of operations submitted.
    fn submit(&mut self, number: u32, running: &RunningChange, out: &mut StoreOut) -> u32 {
        let tag = Purpose::Change.tag(u64::from(number));
        let extent = running.range.start.extent();
        let mut parts = 0;
        match running.change {
            Change::Write(buf) => {
                // Set before the device gets it: the map never claims less than there is.
                let mask = running.range.chunk_mask();
                self.maps
                    .add(MapId::ALLOCATED, extent, mask, &mut *self.window.words);
                let offset = self.data_offset(running.range);
                self.counters.bytes_written += running.range.bytes();
                out.op(
                    tag,
                    DiskOp::Write {
                        role: FileRole::Data,
                        offset,
                        buf,
                        dsync: false,
                    },
                );
                parts = 1;
            }
            Change::Zeroes | Change::Discard => {
                let there = self.maps.mask(MapId::ALLOCATED, extent);
                let whole = running.range.whole_chunk_mask();
                for (first, count) in runs(there & whole) {
                    let start = chunk_range(extent, first).start;
                    let end = chunk_range(extent, first + count - 1).end();
                    let blocks = u32::try_from(end.0 - start.0).unwrap_or(0);
                    let part = BlockRange::new(start, Blocks(blocks));
                    let (offset, len) = (self.data_offset(part), part.bytes());
                    self.counters.bytes_zeroed += len;
                    let role = FileRole::Data;
                    let op = if running.change == Change::Discard {
                        DiskOp::PunchHole { role, offset, len }
                    } else {
                        DiskOp::ZeroRange { role, offset, len }
                    };
                    out.op(tag, op);
                    parts += 1;
                }
                for (chunk, _) in single_chunks(there & running.range.chunk_mask() & !whole) {
                    let part = intersection(chunk_range(extent, chunk), running.range);
                    let len = u32::try_from(part.bytes()).unwrap_or(0).min(ZERO_BYTES);
                    let buf = self.zero.slice(0, len);
                    let offset = self.data_offset(part);
                    self.counters.bytes_zeroed += part.bytes();
                    out.op(
                        tag,
                        DiskOp::Write {
                            role: FileRole::Data,
                            offset,
                            buf,
                            dsync: false,
                        },
                    );
                    parts += 1;
                }
            }
            Change::HeaderOnly => (),
        }
        if let Some(running) = self.running.get(number) {
            running.parts = parts;
        }
        parts
    }

    pub(crate) fn change_done(
        &mut self,
        number: u64,
        result: Result<(), DiskError>,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) {
        let number = u32::try_from(number).unwrap_or(NO_CHANGE);
        let Some(running) = self.running.get(number) else {
            return;
        };
        if running.parts == 0 {
            return;
        }
        running.parts -= 1;
        if let Err(error) = result {
            running.error = Some(error);
        }
        if running.parts == 0 {
            self.end_change(number, data, out);
            self.run_ready(data, out);
        }
    }

    /// A change has completed at the device, or failed.
    fn end_change(&mut self, number: u32, data: &mut dyn Buffers, out: &mut StoreOut) {
        let Some(running) = self.running.get(number).copied() else {
            return;
        };
        if let Some(error) = running.error {
            self.counters.changes_failed += 1;
            self.fail_change(number, &running, error, data, out);
            return;
        }
        let extent = running.range.start.extent();
        let whole = running.range.whole_chunk_mask();
        match running.change {
            Change::Write(_) | Change::HeaderOnly => (),
            Change::Zeroes => {
                self.maps
                    .remove(MapId::ALLOCATED, extent, whole, &mut *self.window.words);
            }
            Change::Discard => {
                self.maps
                    .remove(MapId::ALLOCATED, extent, whole, &mut *self.window.words);
                self.provisioned.remove_mask(extent, whole);
            }
        }
        subtract(&mut self.failed_ranges, running.range);
        if let Owner::Entry(idx) = running.owner {
            self.window.set_status(idx, SlotStatus::Accepted);
            if idx == self.upto().next() {
                self.window.advance();
            }
        }
        match running.owner {
            Owner::Entry(idx) => out.event(StoreEvent::Accepted { idx }),
            Owner::Repair(token) => out.event(StoreEvent::Repaired {
                token,
                result: Ok(()),
            }),
        }
        self.remove_change(number, data);
    }

    fn fail_change(
        &mut self,
        number: u32,
        running: &RunningChange,
        error: DiskError,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) {
        match running.owner {
            Owner::Entry(idx) => {
                self.window.set_status(idx, SlotStatus::Failed);
                self.failed_ranges.push(running.range);
                self.running.failed += 1;
                if let Some(running) = self.running.get(number) {
                    running.failed = true;
                }
                out.event(StoreEvent::EntryFailed { idx, error });
            }
            Owner::Repair(token) => {
                out.event(StoreEvent::Repaired {
                    token,
                    result: Err(error),
                });
                self.remove_change(number, data);
            }
        }
    }

    /// Takes a change out and lets those go that it held back.
    fn remove_change(&mut self, number: u32, data: &mut dyn Buffers) {
        let Some(gone) = self.running.remove(number) else {
            return;
        };
        if gone.pinned {
            self.log.end(gone.range.start.extent(), self.stamp);
        }
        if let Owner::Entry(idx) = gone.owner {
            let place = self.window.slot_number(idx);
            if self.running.slots[place] == number {
                self.running.slots[place] = NO_CHANGE;
            }
        }
        release(gone.change, data);
        let mut freed = core::mem::take(&mut self.running.freed);
        self.overlap
            .remove(u64::from(number), gone.range, &mut freed);
        for key in freed.drain(..) {
            self.end_wait(u32::try_from(key).unwrap_or(NO_CHANGE), WAIT_OVERLAP);
        }
        self.running.freed = freed;
    }

    /// Gives a cancelled change up.
    fn drop_change(&mut self, number: u32, data: &mut dyn Buffers, out: &mut StoreOut) {
        if let Some(Owner::Repair(token)) = self.running.get(number).map(|r| r.owner) {
            out.event(StoreEvent::Repaired {
                token,
                result: Err(DiskError::Io),
            });
        }
        self.remove_change(number, data);
    }

    /// Gives up failed changes and all that overlap them behind: nothing of an old session may pass
    /// a failed entry later. Their slots stay.
    pub(crate) fn abandon_failed(&mut self, data: &mut dyn Buffers, out: &mut StoreOut) {
        if self.running.failed == 0 {
            return;
        }
        let mut given_up: Vec<u32> = (0..self.running.slab.len())
            .filter_map(|n| u32::try_from(n).ok())
            .filter(|n| self.running.get(*n).is_some_and(|r| r.failed))
            .collect();
        let mut done = 0;
        while let Some(number) = given_up.get(done).copied() {
            done += 1;
            let Some(range) = self.running.get(number).map(|r| r.range) else {
                continue;
            };
            let behind = self
                .overlap
                .overlapping(range)
                .skip_while(|k| *k != u64::from(number));
            for key in behind.skip(1) {
                let other = u32::try_from(key).unwrap_or(NO_CHANGE);
                let Some(running) = self.running.get(other) else {
                    continue;
                };
                if running.waits & WAIT_OVERLAP != 0 && !running.cancelled {
                    running.cancelled = true;
                    given_up.push(other);
                }
            }
        }
        for number in given_up {
            if self.running.get(number).is_some_and(|r| r.failed) {
                self.drop_change(number, data, out);
            }
        }
        self.run_ready(data, out);
    }

    pub(crate) fn release_running(&mut self, data: &mut dyn Buffers) {
        for running in self.running.slab.iter().flatten() {
            release(running.change, data);
        }
        self.running.slab.clear();
        self.running.free.clear();
    }
}

pub(crate) fn retain(change: Change, data: &mut dyn Buffers) {
    if let Change::Write(buf) = change {
        data.retain(buf.buf);
    }
}

pub(crate) fn release(change: Change, data: &mut dyn Buffers) {
    if let Change::Write(buf) = change {
        data.release(buf.buf);
    }
}

fn single_chunks(mask: u64) -> impl Iterator<Item = (u32, u32)> {
    runs(mask).flat_map(|(first, count)| (first..first + count).map(|chunk| (chunk, 1)))
}

pub(crate) fn intersection(a: BlockRange, b: BlockRange) -> BlockRange {
    let start = a.start.max(b.start);
    let end = a.end().min(b.end());
    BlockRange::new(
        start,
        Blocks(u32::try_from(end.0.saturating_sub(start.0)).unwrap_or(0)),
    )
}

/// Takes the blocks of `range` out of a list of ranges.
fn subtract(list: &mut Vec<BlockRange>, range: BlockRange) {
    let mut n = 0;
    while let Some(old) = list.get(n).copied() {
        if !old.overlaps(range) {
            n += 1;
            continue;
        }
        list.swap_remove(n);
        let part = |from: Lba, to: Lba| {
            let count = u32::try_from(to.0.saturating_sub(from.0)).unwrap_or(0);
            BlockRange::new(from, Blocks(count))
        };
        for rest in [part(old.start, range.start), part(range.end(), old.end())] {
            if !rest.is_empty() {
                list.push(rest);
            }
        }
    }
}
