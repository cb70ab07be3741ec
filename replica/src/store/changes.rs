//! How entries and repairs run: overlap order (O1), activity log (L1, L3; [`super::log_use`]), space,
//! device, slot. How they come in is in [`super::admission`]. Nothing here waits for the journal when
//! the extent is in the activity log.
//!
//! Crash argument. The slot (SUB) is stored before the activity log is asked and before the device
//! gets anything; a process killed anywhere leaves SUB or nothing, and SUB is written again by a
//! resend. ACC is stored after the device completed and before the owner can ack. After a power loss
//! the window is void and the activity log covers what was written.

use super::api::{Change, StoreEvent, Token};
use super::disk::{DiskError, DiskOp, FileRole, StoreOut};
use super::limits::ZERO_BYTES;
use super::record::MapId;
use super::state::{Purpose, Store};
use alloc::vec::Vec;
use trilith_block::chunks::{chunk_range, runs};
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BlockRange, Blocks, Buffers, Idx, Lba, MemberSet};
use trilith_wire::SlotStatus;

const WAIT_OVERLAP: u8 = 1;
pub(crate) const WAIT_LOG: u8 = 2;
pub(crate) const WAIT_SPACE: u8 = 4;
pub(crate) const WAIT_SUMS: u8 = 8;
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
    pub(crate) owner: Owner,
    pub(crate) range: BlockRange,
    pub(crate) change: Change,
    pub(crate) waits: u8,
    /// Device operations in flight.
    parts: u32,
    pub(crate) error: Option<DiskError>,
    /// It failed: it holds its range until it is sent again (O1).
    pub(crate) failed: bool,
    /// Given up while it waited for log or space.
    pub(crate) cancelled: bool,
    /// It pins its extent in the activity log.
    pub(crate) pinned: bool,
}

/// The changes of a store, in a slab.
#[derive(Debug)]
pub(crate) struct Running {
    slab: Vec<Option<RunningChange>>,
    free: Vec<u32>,
    pub(crate) failed: usize,
    /// Change of each window slot.
    pub(crate) slots: Vec<u32>,
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

impl Store {
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
        let hasty = mutant::on(Mutant::DiscardWithoutWaiting) && change == Change::Discard;
        let free = free || hasty || mutant::on(Mutant::OverlapIgnored);
        if mark::reached_if(!free, Mark::OverlapWaits) {
            self.add_wait(number, WAIT_OVERLAP);
        }
        let nothing_there = self.maps.mask(MapId::ALLOCATED, extent) & range.chunk_mask() == 0;
        let writes = matches!(change, Change::Write(_));
        // M20: it reads zero already and nobody else may lack it: done without the log.
        if writes || !free || !nothing_there || !skip.is_empty() {
            self.want_log(number, owner, extent);
            self.provision(number, range, change, out);
        } else {
            mark::reached(Mark::DiscardOfHole);
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

    pub(crate) fn run_if_free(&mut self, number: u32) {
        if self
            .running
            .get(number)
            .is_some_and(|r| r.waits == 0 && r.parts == 0 && !r.failed)
        {
            self.running.ready.push(number);
        }
    }

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
        if parts > 0 && running.pinned {
            self.begin_checksums(running.range);
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
        if running.pinned {
            self.end_checksums(running.range, running.change, data);
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
                mark::reached(Mark::EntryFailed);
                out.event(StoreEvent::EntryFailed { idx, error });
                if mutant::on(Mutant::ResendOvertakes) {
                    self.remove_change(number, data);
                }
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
        mark::reached(Mark::FailedAbandoned);
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
