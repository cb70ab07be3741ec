//! How entries, flushes and repairs come in: refusals, duplicates, the queue behind a barrier, slots.

use super::api::{Admission, Change, Entry, StoreError, StoreEvent, Token};
use super::barriers::{Barrier, Queued};
use super::changes::{Owner, release, retain};
use super::disk::StoreOut;
use super::record::{Item, MapId};
use super::state::{Store, Waiter};
use super::window::{Slot, SlotOp};
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BlockRange, Buffers, Idx, MemberSet};
use trilith_wire::SlotStatus;

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
        if !self.fits(entry.idx) {
            return Err(StoreError::WindowFull);
        }
        if self.is_accepted(entry.idx) {
            return Ok(Admission::Duplicate);
        }
        if self.must_queue(true) && !self.is_awaited(entry.idx) {
            if self.queue.len() >= 4 * self.running.slots.len() {
                return Err(StoreError::WindowFull);
            }
            retain(entry.change, data);
            mark::reached(Mark::QueuedBehindBarrier);
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
        if !self.fits(idx) {
            return Err(StoreError::WindowFull);
        }
        if self.is_accepted(idx) {
            self.flushes.insert(idx);
            self.pump(data, out);
            return Ok(Admission::Duplicate);
        }
        if self.queue.len() >= 4 * self.running.slots.len() {
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
        let marked = if mutant::on(Mutant::SkipNotMarked) {
            MemberSet::EMPTY
        } else {
            self.peers(entry.skip)
        };
        for peer in marked.iter() {
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
        if mark::reached_if(skipped, Mark::EntrySkipped) {
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

    /// C23: an entry that failed has its place, and a SYNCSET above it waits for it: sent again, it
    /// does not go behind that.
    fn is_awaited(&mut self, idx: Idx) -> bool {
        let running = self.running_entry(idx).filter(|_| !self.abandoning);
        running.is_some_and(|number| self.running.get(number).is_some_and(|r| r.failed))
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
}
