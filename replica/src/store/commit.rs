//! What goes to the metadata: journal writes, checkpoints, superblocks; and the end of data flushes.

use super::api::{FailCause, StoreEvent};
use super::checkpoint::{DumpSource, Phase};
use super::disk::{DiskError, DiskOp, FileRole, StoreOut};
use super::limits::{META_BLOCK_BYTES, SUPERBLOCK_A_OFFSET, SUPERBLOCK_B_OFFSET};
use super::record::Item;
use super::state::{Purpose, Store, Waiter};
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{Buffers, Idx};

impl Store {
    /// Starts a journal write and a checkpoint where they are due.
    pub(crate) fn commit(&mut self, data: &mut dyn Buffers, out: &mut StoreOut) {
        if self.failure.is_some() {
            return;
        }
        // A call that had nothing new to record waits for no write.
        self.answer_waiters(data, out);
        if let Some(write) = self.journal.build(&mut self.maps, data) {
            self.counters.journal_writes += 1;
            self.counters.journal_blocks += self.journal.blocks_in_flight();
            let role = FileRole::Meta;
            let op = DiskOp::Write {
                role,
                offset: write.offset,
                buf: write.buf,
                dsync: true,
            };
            out.op(Purpose::Journal.tag(0), op);
        }
        if self.journal.is_half_full() && self.checkpoint.phase == Phase::Idle {
            self.begin_checkpoint(data, out);
        }
    }

    pub(crate) fn journal_done(
        &mut self,
        result: Result<(), DiskError>,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) {
        if !self.journal.is_writing() {
            return;
        }
        if let Err(error) = result {
            self.fail(FailCause::Journal(error), out);
            return;
        }
        self.journal.written();
        let mut items = core::mem::take(&mut self.journal.inflight);
        for item in &items {
            match *item {
                Item::AlAdd(extent) => {
                    self.durable_log.insert(extent);
                }
                Item::AlDel(extent) => {
                    self.durable_log.remove(&extent);
                }
                _ => (),
            }
            self.facts.apply(item);
            if matches!(item, Item::Config(_)) {
                self.config_durable();
            }
        }
        if !mutant::on(Mutant::JournalRewritten) {
            items.clear();
        }
        self.journal.inflight = items;
        self.answer_waiters(data, out);
    }

    /// Answers who waits for something that is in the journal.
    fn answer_waiters(&mut self, data: &mut dyn Buffers, out: &mut StoreOut) {
        while let Some((place, waiter)) = self.waiters.front().copied() {
            if place > self.journal.durable() {
                break;
            }
            self.waiters.pop_front();
            match waiter {
                Waiter::Call(token) => out.event(StoreEvent::Done { token }),
                Waiter::LogAdd(extent) => self.log_added(extent, data, out),
                Waiter::Watermark(upto) => self.answer_flushes(upto, out),
                Waiter::Barrier => self.barrier_durable(data, out),
            }
        }
    }

    /// A flush of the data ended. F1: only now may a watermark be recorded. F2: a failure is final;
    /// that it happened is made durable if that still goes.
    pub(crate) fn flush_done(
        &mut self,
        result: Result<(), DiskError>,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) {
        let Some(flushing) = self.flushing.take() else {
            return;
        };
        let result = result.or_else(|error| {
            if mutant::on(Mutant::FlushFailureIgnored) {
                Ok(())
            } else {
                Err(error)
            }
        });
        if let Err(error) = result {
            mark::reached(Mark::FlushFailed);
            self.window.change_header(|h| {
                h.tainted = true;
                h.flush_failed = true;
            });
            self.window.settle(data);
            self.journal.push(Item::Taint { flush_failed: true });
            self.journal.want();
            self.commit(data, out);
            self.facts.tainted = true;
            self.fail(FailCause::DataFlush(error), out);
            return;
        }
        self.flushed = self.flushed.max(flushing.stamp);
        if !self.is_flush_due(flushing.upto) {
            return;
        }
        if self.facts.is_complete() && !self.facts.tainted {
            self.journal.push(Item::W(flushing.upto));
            self.watermark = flushing.upto;
            self.wait_journal(Waiter::Watermark(flushing.upto));
        } else {
            // Outside its in-sync set it flushes and says so, but its W stays (6.6).
            self.answer_flushes(flushing.upto, out);
        }
    }

    fn answer_flushes(&mut self, upto: Idx, out: &mut StoreOut) {
        if self.watermark <= upto {
            self.watermark = Idx(0);
        }
        let mut last = None;
        while let Some(idx) = self.flushes.first().copied().filter(|f| *f <= upto) {
            self.flushes.remove(&idx);
            last = Some(idx);
        }
        if let Some(idx) = last {
            out.event(StoreEvent::Flushed { idx });
        }
    }

    pub(crate) fn begin_checkpoint(&mut self, data: &mut dyn Buffers, out: &mut StoreOut) {
        let sb = &mut self.superblock;
        sb.checkpoint_seq += 1;
        sb.checkpoint_slot = 1 - sb.checkpoint_slot;
        self.checkpoint.begin(self.journal.replay_from());
        if mutant::on(Mutant::RingReusedEarly) {
            self.journal.covered(self.checkpoint.start_seq);
        }
        self.dump_next(data, out);
    }

    fn dump_next(&mut self, data: &mut dyn Buffers, out: &mut StoreOut) {
        let source = DumpSource {
            log: &self.durable_log,
            maps: &self.maps,
            number: self.superblock.checkpoint_seq,
        };
        let at = u64::from(self.checkpoint.blocks) * u64::from(META_BLOCK_BYTES);
        let role = FileRole::Meta;
        let tag = Purpose::Checkpoint.tag(0);
        match self.checkpoint.dump(source, data) {
            Some(buf) => {
                let end = at + u64::from(buf.len);
                let area = self.superblock.layout.checkpoint_bytes;
                assert!(
                    end <= area,
                    "checkpoint of {end} bytes in an area of {area}"
                );
                let offset = self
                    .superblock
                    .checkpoint_offset(self.superblock.checkpoint_slot)
                    + at;
                out.op(
                    tag,
                    DiskOp::Write {
                        role,
                        offset,
                        buf,
                        dsync: false,
                    },
                );
            }
            None => {
                self.checkpoint.phase = Phase::Flush;
                out.op(tag, DiskOp::Flush { role });
            }
        }
    }

    pub(crate) fn checkpoint_done(
        &mut self,
        result: Result<(), DiskError>,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) {
        if let Err(error) = result {
            self.fail(FailCause::Checkpoint(error), out);
            return;
        }
        match self.checkpoint.phase {
            Phase::Idle => (),
            Phase::Dump => self.dump_next(data, out),
            Phase::Flush => {
                self.superblock.seq += 1;
                self.superblock.facts = self.facts;
                self.superblock.checkpoint_blocks = self.checkpoint.blocks;
                self.superblock.journal_first_seq = self.checkpoint.start_seq;
                let block = self.checkpoint.buf.slice(0, META_BLOCK_BYTES);
                self.superblock.encode(data, block);
                self.checkpoint.phase = Phase::SuperFirst;
                self.write_superblock(self.checkpoint.first_copy, out);
            }
            Phase::SuperFirst => {
                self.checkpoint.phase = Phase::SuperSecond;
                self.write_superblock(1 - self.checkpoint.first_copy, out);
            }
            Phase::SuperSecond => {
                self.checkpoint.phase = Phase::Idle;
                self.journal.covered(self.checkpoint.start_seq);
                self.journal.hold = false;
                self.counters.checkpoints += 1;
            }
        }
    }

    fn write_superblock(&mut self, copy: u8, out: &mut StoreOut) {
        let buf = self.checkpoint.buf.slice(0, META_BLOCK_BYTES);
        let offset = if copy == 0 {
            SUPERBLOCK_A_OFFSET
        } else {
            SUPERBLOCK_B_OFFSET
        };
        let op = DiskOp::Write {
            role: FileRole::Meta,
            offset,
            buf,
            dsync: true,
        };
        out.op(Purpose::Checkpoint.tag(0), op);
    }
}
