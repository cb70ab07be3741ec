//! The journal ring (J1-J3) with group commit: one write in flight, what arrives meanwhile goes into
//! the next one. Places in the queue are counted (`lsn`), so that a caller waits for a number.
//!
//! Crash argument. Blocks are fresh (J1), so a torn write damages only records that nobody was told
//! of. A block is valid when checksum, life and consecutive number hold (J2); the life is one higher
//! after each open, so that a torn block's old successors never count. A place is used again only
//! when a checkpoint covers it (J3).

use super::limits::{META_BLOCK_BYTES, META_IO_BLOCKS_MAX};
use super::maps::Maps;
use super::record::{BlockBuilder, BlockHead, Item, JOURNAL_MAGIC};
use super::superblock::Superblock;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BufSlice, Buffers, Idx};

/// The journal of an open store.
#[derive(Debug)]
pub(crate) struct Journal {
    queue: VecDeque<Item>,
    /// Items pushed since open.
    pushed: u64,
    /// Items durable since open.
    durable: u64,
    /// Someone waits for the items up to here.
    wanted: u64,
    /// Items of the write in flight.
    pub(crate) inflight: Vec<Item>,
    inflight_blocks: u64,
    writing: bool,
    next_seq: u64,
    first_seq: u64,
    id: u64,
    ring: u64,
    offset: u64,
    blocks_max: u64,
    pub(crate) buf: BufSlice,
    /// The watermark after the last item that went into a block; it goes into every block.
    w: Idx,
    /// The watermark after the last item pushed. Items are pushed only after the flush that makes
    /// them true (F1).
    last_w: Idx,
    /// Nothing is written until the first checkpoint of this life stands.
    pub(crate) hold: bool,
}

/// A write for the driver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JournalWrite {
    pub(crate) offset: u64,
    pub(crate) buf: BufSlice,
}

impl Journal {
    pub(crate) fn new(sb: &Superblock, next_seq: u64, buf: BufSlice, w: Idx) -> Journal {
        let ring = u64::from(sb.geometry.ring_blocks);
        Journal {
            queue: VecDeque::new(),
            pushed: 0,
            durable: 0,
            wanted: 0,
            inflight: Vec::new(),
            inflight_blocks: 0,
            writing: false,
            next_seq,
            first_seq: next_seq,
            id: sb.journal_id,
            ring,
            offset: sb.layout.journal_offset,
            blocks_max: (ring / 4).min(u64::from(META_IO_BLOCKS_MAX)),
            buf,
            w,
            last_w: w,
            hold: true,
        }
    }

    /// Queues an item that may ride along with others.
    pub(crate) fn push(&mut self, item: Item) {
        self.last_w = w_after(self.last_w, &item);
        self.queue.push_back(item);
        self.pushed += 1;
    }

    /// Asks for everything queued so far; returns the place to wait for.
    pub(crate) fn want(&mut self) -> u64 {
        self.wanted = self.pushed;
        self.pushed
    }

    /// The watermark once everything pushed is durable.
    pub(crate) fn last_w(&self) -> Idx {
        self.last_w
    }

    /// A configuration is queued behind what is being written.
    pub(crate) fn waits_for_config(&self) -> bool {
        self.queue.iter().any(|i| matches!(i, Item::Config(_)))
    }

    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Items up to here are durable.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    /// First block that a checkpoint which starts now must leave to the replay: the write in flight
    /// is not in the durable facts and log that the checkpoint takes.
    pub(crate) fn replay_from(&self) -> u64 {
        if self.writing {
            self.next_seq - self.inflight_blocks
        } else {
            self.next_seq
        }
    }

    /// A checkpoint covers everything before `seq`.
    pub(crate) fn covered(&mut self, seq: u64) {
        self.first_seq = seq;
    }

    /// Half of the ring waits for a checkpoint.
    pub(crate) fn is_half_full(&self) -> bool {
        (self.next_seq - self.first_seq) * 2 >= self.ring
    }

    pub(crate) fn is_writing(&self) -> bool {
        self.writing
    }

    /// Builds the next write when someone waits, none is in flight and the ring has room.
    pub(crate) fn build(
        &mut self,
        maps: &mut Maps,
        data: &mut dyn Buffers,
    ) -> Option<JournalWrite> {
        if self.writing || self.hold || self.wanted <= self.durable {
            return None;
        }
        if mutant::on(Mutant::JournalRewritten) {
            self.take_back();
        }
        let place = self.next_seq % self.ring;
        let free = self.ring - (self.next_seq - self.first_seq);
        let blocks_max = self.blocks_max.min(free).min(self.ring - place);
        let mut blocks = 0;
        while blocks < blocks_max && !self.queue.is_empty() {
            let part = self.block(blocks);
            let mut builder = BlockBuilder::new(data.bytes_mut(part));
            while let Some(item) = self.queue.front() {
                let mask = match item {
                    Item::Map(map, extent) => maps.mask(*map, *extent),
                    _ => 0,
                };
                if !builder.push(data.bytes_mut(part), item, mask) {
                    break;
                }
                if let Item::Map(map, extent) = item {
                    maps.journaled(*map, *extent);
                }
                self.w = w_after(self.w, item);
                self.inflight.push(*item);
                self.queue.pop_front();
            }
            let head = BlockHead {
                magic: JOURNAL_MAGIC,
                seq: self.next_seq + blocks,
                id: self.id,
                continues: !self.queue.is_empty() && blocks + 1 < blocks_max,
                place: u16::try_from(blocks).unwrap_or(u16::MAX),
                w: self.w,
            };
            builder.finish(data, part, &head);
            blocks += 1;
        }
        if blocks == 0 {
            mark::reached_if(free == 0, Mark::RingFull);
            return None;
        }
        mark::reached_if(place == 0 && self.next_seq > 0, Mark::RingWrapped);
        self.writing = true;
        self.inflight_blocks = blocks;
        self.next_seq += blocks;
        let len = u32::try_from(blocks * u64::from(META_BLOCK_BYTES)).unwrap_or(0);
        Some(JournalWrite {
            offset: self.offset + place * u64::from(META_BLOCK_BYTES),
            buf: self.buf.slice(0, len),
        })
    }

    /// Only for the mutant of J1: what the last block holds is written again, with more, in its
    /// place.
    fn take_back(&mut self) {
        let whole = self.inflight_blocks == 1 && self.first_seq < self.next_seq;
        if whole && !self.inflight.is_empty() {
            self.next_seq -= 1;
            self.durable -= u64::try_from(self.inflight.len()).unwrap_or(0);
            for item in self.inflight.drain(..).rev() {
                self.queue.push_front(item);
            }
        }
        self.inflight.clear();
    }

    /// The write in flight is durable; its items are in `inflight`.
    pub(crate) fn written(&mut self) {
        self.writing = false;
        self.durable += u64::try_from(self.inflight.len()).unwrap_or(0);
    }

    pub(crate) fn blocks_in_flight(&self) -> u64 {
        self.inflight_blocks
    }

    fn block(&self, number: u64) -> BufSlice {
        let at = u32::try_from(number).unwrap_or(0) * META_BLOCK_BYTES;
        self.buf.slice(at, META_BLOCK_BYTES)
    }
}

/// The watermark after an item: a sync epoch assigns it (C15), a flush only raises it.
fn w_after(w: Idx, item: &Item) -> Idx {
    match item {
        Item::Se(record) => record.w,
        Item::W(new) => w.max(*new),
        _ => w,
    }
}
