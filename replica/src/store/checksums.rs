//! Checksums of blocks on the disk (2.5): a page of CRC-32C for each extent, in the metadata. A read is
//! compared with them, so that what the device changed by itself is an error and never an answer.
//!
//! Order. The page of an extent of the activity log is in memory; a change voids the checksums of its
//! blocks before the device gets it and stores the new ones when the device has completed it. The page
//! is written before its extent leaves the activity log (B1): no write of the hot path waits for it.
//!
//! Crash argument. A page on the disk counts only while its extent is not in the durable activity
//! log. An extent leaves it after a flush of its data (L2) and after its page is on stable media (B1), so
//! a page that counts is that of the data. Extents that the log holds at an open have a void page: of
//! a resumed store it is written before they leave, after a power loss, which empties the log, before
//! the superblock that says so (B2).
//!
//! A checksum of 0 is not known and nothing is compared with it; a CRC that is 0 is stored as 1.

use super::limits::{COLD_PAGES_MAX, META_BLOCK_BYTES, META_IO_BLOCKS_MAX};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use trilith_block::limits::{BLOCK_BYTES, EXTENT_BLOCKS};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BlockRange, Blocks, BufSlice, Buffers, ExtentNo, Lba};

/// Loads at once, and pages of one save: each has a block of the buffer of its kind.
const SLOTS: usize = META_IO_BLOCKS_MAX as usize;
const BLOCKS: usize = EXTENT_BLOCKS as usize;

/// The checksums of an extent's blocks.
#[derive(Debug)]
struct Page {
    sums: Box<[u32; BLOCKS]>,
    /// It is being read; nothing in it counts.
    loading: bool,
    /// Rises with each change, so that a save knows what it has saved.
    stamp: u64,
    /// In [`Checksums::unsaved`].
    unsaved: bool,
    /// Its extent is in the activity log.
    hot: bool,
    /// In [`Checksums::cold`].
    queued: bool,
    /// Used since the cold ones were last looked through.
    used: bool,
    /// Reads that will compare with it.
    pins: u32,
    /// Changes that wait until it is read.
    changes: Vec<u32>,
    /// Reads that wait until it is read.
    reads: Vec<u32>,
}

/// How far the save that runs is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Saving {
    Idle,
    /// Writes in flight.
    Writing(usize),
    Flushing,
}

/// What the owner is to do after a save's step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Saved {
    /// Nothing.
    Waits,
    /// Flush the metadata.
    Flush,
}

/// Who waited for a page that has been read.
#[derive(Debug, Default)]
pub(crate) struct Waited {
    pub(crate) changes: Vec<u32>,
    pub(crate) reads: Vec<u32>,
}

/// All pages of a store in memory.
#[derive(Debug)]
pub(crate) struct Checksums {
    pages: BTreeMap<ExtentNo, Page>,
    /// Extents whose page on the disk says nothing: in the activity log when the store was opened, and
    /// not changed since.
    void: BTreeSet<ExtentNo>,
    /// Pages that differ from what is on the disk.
    unsaved: BTreeSet<ExtentNo>,
    /// Pages of extents outside the activity log, to be forgotten in turn.
    cold: VecDeque<ExtentNo>,
    to_load: VecDeque<ExtentNo>,
    loading: [Option<ExtentNo>; SLOTS],
    load_buf: BufSlice,
    saving: Saving,
    /// Pages that somebody waits for to be saved; at most [`SLOTS`].
    asked: Vec<ExtentNo>,
    /// What the save that runs writes, with the stamp of each page; 0 for a void one.
    batch: Vec<(ExtentNo, u64)>,
    save_buf: BufSlice,
    free: Vec<Box<[u32; BLOCKS]>>,
    /// CRC-32C of a block of zeroes.
    zero_sum: u32,
}

/// What a page says of a block with this CRC-32C: 0 stands for "not known".
#[must_use]
pub fn stored_checksum(crc: u32) -> u32 {
    crc.max(1)
}

/// The places of a range's blocks within the page of its extent.
fn places(range: BlockRange) -> core::ops::Range<usize> {
    let first = usize::try_from(range.start.0 % u64::from(EXTENT_BLOCKS)).unwrap_or(0);
    let count = usize::try_from(range.count.0).unwrap_or(0);
    first..(first + count).min(BLOCKS)
}

impl Checksums {
    /// Takes two buffers of [`super::limits::META_IO_BYTES_MAX`] and a block of zeroes.
    pub(crate) fn new(
        [load_buf, save_buf]: [BufSlice; 2],
        zero: BufSlice,
        void: BTreeSet<ExtentNo>,
        data: &dyn Buffers,
    ) -> Checksums {
        Checksums {
            pages: BTreeMap::new(),
            void,
            unsaved: BTreeSet::new(),
            cold: VecDeque::new(),
            to_load: VecDeque::new(),
            loading: [None; SLOTS],
            load_buf,
            saving: Saving::Idle,
            asked: Vec::new(),
            batch: Vec::new(),
            save_buf,
            free: Vec::new(),
            zero_sum: stored_checksum(data.crc32c(0, data.bytes(zero.slice(0, BLOCK_BYTES)))),
        }
    }

    pub(crate) fn buffers(&self) -> [BufSlice; 2] {
        [self.load_buf, self.save_buf]
    }

    pub(crate) fn pages_held(&self) -> usize {
        self.pages.len()
    }

    fn fresh(&mut self, loading: bool) -> Page {
        let mut sums = self.free.pop().unwrap_or_else(|| Box::new([0; BLOCKS]));
        sums.fill(0);
        Page {
            sums,
            loading,
            stamp: 1,
            unsaved: false,
            hot: false,
            queued: false,
            used: true,
            pins: 0,
            changes: Vec::new(),
            reads: Vec::new(),
        }
    }

    /// The page of an extent; it is read when it is not there.
    fn page(&mut self, extent: ExtentNo) -> Option<&mut Page> {
        if !self.pages.contains_key(&extent) {
            let page = self.fresh(true);
            self.pages.insert(extent, page);
            self.to_load.push_back(extent);
        }
        self.pages.get_mut(&extent)
    }

    /// A change has its extent in the activity log: it waits when the page is not there yet.
    pub(crate) fn want_hot(&mut self, extent: ExtentNo, change: u32) -> bool {
        if self.void.remove(&extent) {
            let mut page = self.fresh(false);
            page.unsaved = true;
            self.unsaved.insert(extent);
            self.pages.insert(extent, page);
        }
        let Some(page) = self.page(extent) else {
            return false;
        };
        page.hot = true;
        if page.loading {
            page.changes.push(change);
        }
        page.loading
    }

    /// A read will compare with the page of an extent. None: nothing is known of it. Else the page is
    /// held until [`Self::release`]; true when the read has to wait for it.
    pub(crate) fn want_read(&mut self, extent: ExtentNo, read: u32) -> Option<bool> {
        if self.void.contains(&extent) {
            return None;
        }
        let page = self.page(extent)?;
        page.pins += 1;
        page.used = true;
        if page.loading {
            page.reads.push(read);
        }
        Some(page.loading)
    }

    /// A read is over.
    pub(crate) fn release(&mut self, extent: ExtentNo) {
        if let Some(page) = self.pages.get_mut(&extent) {
            page.pins = page.pins.saturating_sub(1);
        }
    }

    /// The checksum of a block, 0 = not known; `None` when the page on the disk says it.
    pub(crate) fn held(&self, block: Lba) -> Option<u32> {
        if self.void.contains(&block.extent()) {
            return Some(0);
        }
        let page = self.pages.get(&block.extent()).filter(|p| !p.loading)?;
        let at = places(BlockRange::new(block, Blocks(1))).start;
        page.sums.get(at).copied()
    }

    /// True when no block of `range`, which lies in one extent, is known to be another than `bytes`.
    /// Those whose place in it is not `judged` may be anything.
    pub(crate) fn agree(
        &self,
        range: BlockRange,
        bytes: &[u8],
        judged: impl Fn(usize) -> bool,
        data: &dyn Buffers,
    ) -> bool {
        let Some(page) = self.pages.get(&range.start.extent()) else {
            return true;
        };
        let blocks = bytes.chunks_exact(usize::try_from(BLOCK_BYTES).unwrap_or(1));
        page.sums[places(range)]
            .iter()
            .zip(blocks)
            .enumerate()
            .all(|(place, (sum, block))| {
                *sum == 0 || !judged(place) || *sum == stored_checksum(data.crc32c(0, block))
            })
    }

    fn touch(&mut self, extent: ExtentNo) -> Option<&mut Page> {
        let page = self.pages.get_mut(&extent)?;
        page.stamp += 1;
        if !page.unsaved {
            page.unsaved = true;
            self.unsaved.insert(extent);
        }
        Some(page)
    }

    /// The device is about to get a change of these blocks.
    pub(crate) fn begin(&mut self, range: BlockRange) {
        if let Some(page) = self.touch(range.start.extent()) {
            page.sums[places(range)].fill(0);
        }
    }

    /// The device holds these bytes; none: zeroes.
    pub(crate) fn end(&mut self, range: BlockRange, bytes: Option<BufSlice>, data: &dyn Buffers) {
        let zero = self.zero_sum;
        let Some(page) = self.touch(range.start.extent()) else {
            return;
        };
        let sums = &mut page.sums[places(range)];
        match bytes {
            None => sums.fill(zero),
            Some(slice) => {
                let size = usize::try_from(BLOCK_BYTES).unwrap_or(1);
                for (sum, block) in sums.iter_mut().zip(data.bytes(slice).chunks_exact(size)) {
                    *sum = stored_checksum(data.crc32c(0, block));
                }
            }
        }
    }

    fn is_saved(&self, extent: ExtentNo) -> bool {
        !self.unsaved.contains(&extent) && !self.void.contains(&extent)
    }

    /// B1: true when the page on the disk is that of the data. Otherwise it is saved next.
    pub(crate) fn may_leave(&mut self, extent: ExtentNo) -> bool {
        let saved = self.is_saved(extent) || mutant::on(Mutant::ChecksumsNotSaved);
        if !saved && self.asked.len() < SLOTS && !self.asked.contains(&extent) {
            self.asked.push(extent);
        }
        saved
    }

    /// B1: true when all pages are saved. Otherwise they are saved next.
    pub(crate) fn is_all_saved(&mut self) -> bool {
        let room = SLOTS - self.asked.len().min(SLOTS);
        let rest = self.unsaved.iter().chain(&self.void);
        self.asked.extend(rest.take(room));
        self.unsaved.is_empty() && self.void.is_empty()
    }

    /// An extent has left the activity log.
    pub(crate) fn cooled(&mut self, extent: ExtentNo) {
        if let Some(page) = self.pages.get_mut(&extent) {
            page.hot = false;
            self.queue_cold(extent);
        }
    }

    fn queue_cold(&mut self, extent: ExtentNo) {
        if let Some(page) = self.pages.get_mut(&extent)
            && !page.queued
        {
            page.queued = true;
            self.cold.push_back(extent);
        }
        for _ in 0..self.cold.len() {
            if self.cold.len() <= COLD_PAGES_MAX {
                return;
            }
            let Some(oldest) = self.cold.pop_front() else {
                return;
            };
            let Some(page) = self.pages.get_mut(&oldest) else {
                continue;
            };
            if page.hot {
                page.queued = false;
            } else if page.pins > 0 || page.loading || page.unsaved || page.used {
                page.used = false;
                self.cold.push_back(oldest);
            } else if let Some(page) = self.pages.remove(&oldest)
                && self.free.len() < SLOTS
            {
                self.free.push(page.sums);
            }
        }
    }

    /// The next page to read, with the place of its block in the buffer.
    pub(crate) fn next_load(&mut self) -> Option<(usize, ExtentNo, BufSlice)> {
        let slot = self.loading.iter().position(Option::is_none)?;
        let extent = self.to_load.pop_front()?;
        self.loading[slot] = Some(extent);
        Some((slot, extent, part(self.load_buf, slot)))
    }

    /// A page has been read, or could not be: then nothing is known of its blocks.
    pub(crate) fn loaded(&mut self, slot: usize, good: bool, data: &dyn Buffers) -> Waited {
        let Some(extent) = self.loading.get_mut(slot).and_then(Option::take) else {
            return Waited::default();
        };
        let Some(page) = self.pages.get_mut(&extent) else {
            return Waited::default();
        };
        page.loading = false;
        if good {
            let bytes = data.bytes(part(self.load_buf, slot)).chunks_exact(4);
            for (sum, raw) in page.sums.iter_mut().zip(bytes) {
                *sum = super::bytes::u32_at(raw, 0);
            }
        }
        let waited = Waited {
            changes: core::mem::take(&mut page.changes),
            reads: core::mem::take(&mut page.reads),
        };
        if !page.hot {
            self.queue_cold(extent);
        }
        waited
    }

    /// Begins a save when one is asked for and none runs. The writes are then in [`Self::writes`].
    pub(crate) fn begin_save(&mut self, data: &mut dyn Buffers) -> bool {
        if self.saving != Saving::Idle {
            return false;
        }
        self.batch.clear();
        while let Some(extent) = self.asked.pop() {
            let again = self.batch.iter().any(|(e, _)| *e == extent);
            if !again && !self.is_saved(extent) {
                let stamp = self.pages.get(&extent).map_or(0, |page| page.stamp);
                self.batch.push((extent, stamp));
            }
        }
        for (slot, (extent, _)) in self.batch.iter().enumerate() {
            let bytes = data.bytes_mut(part(self.save_buf, slot));
            match self.pages.get(extent) {
                Some(page) => {
                    for (raw, sum) in bytes.chunks_exact_mut(4).zip(page.sums.iter()) {
                        raw.copy_from_slice(&sum.to_le_bytes());
                    }
                }
                None => bytes.fill(0),
            }
        }
        if self.batch.is_empty() {
            return false;
        }
        self.saving = Saving::Writing(self.batch.len());
        true
    }

    /// The writes of the save that begins.
    pub(crate) fn writes(&self) -> impl Iterator<Item = (ExtentNo, BufSlice)> + '_ {
        self.batch
            .iter()
            .enumerate()
            .map(|(slot, (extent, _))| (*extent, part(self.save_buf, slot)))
    }

    /// A write or the flush of a save is done.
    pub(crate) fn save_done(&mut self) -> Saved {
        match self.saving {
            Saving::Idle => Saved::Waits,
            Saving::Writing(left) if left > 1 => {
                self.saving = Saving::Writing(left - 1);
                Saved::Waits
            }
            Saving::Writing(_) => {
                self.saving = Saving::Flushing;
                Saved::Flush
            }
            Saving::Flushing => {
                self.saving = Saving::Idle;
                for (extent, stamp) in self.batch.drain(..) {
                    match self.pages.get_mut(&extent) {
                        Some(page) if page.stamp == stamp => {
                            page.unsaved = false;
                            self.unsaved.remove(&extent);
                        }
                        Some(_) => (),
                        None => {
                            self.void.remove(&extent);
                        }
                    }
                }
                Saved::Waits
            }
        }
    }
}

fn part(buf: BufSlice, slot: usize) -> BufSlice {
    let at = u32::try_from(slot).unwrap_or(0) * META_BLOCK_BYTES;
    buf.slice(at, META_BLOCK_BYTES)
}
