//! How changes get their extent into the activity log, and how extents leave it (L1, L2).

use super::activity_log::Touch;
use super::changes::{Owner, WAIT_LOG};
use super::disk::StoreOut;
use super::record::Item;
use super::state::{Store, Waiter};
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{Buffers, ExtentNo, Idx};

impl Store {
    /// L1: the extent is in the durable activity log before data is written; L3: the slot of the
    /// entry is stored before.
    pub(crate) fn want_log(&mut self, number: u32, owner: Owner, extent: ExtentNo) {
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
                mark::reached(Mark::LogFull);
                self.add_wait(number, WAIT_LOG);
                self.log_full.push_back(number);
                self.make_room();
            }
            Touch::Missing if mutant::on(Mutant::LogAfterData) => {
                self.log.add(extent, true, Idx(0), 0);
                self.log.touch(extent, idx);
                self.set_pinned(number);
                self.journal.push(Item::AlAdd(extent));
                self.journal.want();
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
        let Some(running) = self.running.get(number) else {
            return;
        };
        running.pinned = true;
        let extent = running.range.start.extent();
        self.want_checksums(number, extent);
    }

    /// L2: lets a batch of extents leave. Their maps go into the journal before their AL-del (d),
    /// both before the AL-add that uses the slot. Asks for a flush where that is what is missing.
    fn make_room(&mut self) {
        let batch = usize::try_from(self.superblock.geometry.al_batch).unwrap_or(usize::MAX);
        let look_at = if self.log.is_full() {
            self.log.len()
        } else {
            4 * batch
        };
        let (tidx, flushed) = (self.tidx(), self.flushed);
        self.evicted.clear();
        let mut sums = self.checksums.as_deref_mut();
        let mut saved = |extent| sums.as_mut().is_none_or(|sums| sums.may_leave(extent));
        let flush_helps = self.log.evict(
            batch,
            look_at,
            (tidx, flushed),
            &mut saved,
            &mut self.evicted,
        );
        for at in 0..self.evicted.len() {
            let extent = self.evicted[at];
            for map in self.maps.changed_of(extent) {
                if mutant::on(Mutant::MapsNotEvicted) {
                    break;
                }
                self.journal.push(Item::Map(map, extent));
            }
            self.record_gone(extent);
            self.counters.al_evictions += 1;
            mark::reached(Mark::LogEvicted);
        }
        if self.evicted.is_empty() && flush_helps {
            mark::reached(Mark::LogEvictionWaitsForFlush);
            self.flush_wanted = true;
        }
    }

    /// The AL-del of an extent that has been taken out of the log.
    pub(crate) fn record_gone(&mut self, extent: ExtentNo) {
        self.journal.push(Item::AlDel(extent));
        if let Some(sums) = self.checksums.as_deref_mut() {
            sums.cooled(extent);
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
}
