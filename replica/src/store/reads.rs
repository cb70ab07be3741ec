//! Reads: one device operation for each contiguous run of chunks that may hold something; the rest
//! is zeroes without I/O. No order with changes.

use super::api::{StoreError, StoreEvent, Token};
use super::changes::intersection;
use super::disk::{DiskError, DiskOp, FileRole, StoreOut};
use super::limits::READS_AGAIN_MAX;
use super::record::MapId;
use super::state::{Purpose, Store};
use trilith_block::chunks::{chunk_range, split_at_extents};
use trilith_block::limits::{BLOCK_SHIFT, EXTENT_CHUNKS, TRANSFER_BYTES_MAX};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BlockRange, Blocks, BufSlice, Buffers};

const READ_WORDS: usize = (TRANSFER_BYTES_MAX >> BLOCK_SHIFT) as usize / 64;

/// Blocks of a read, counted from its first, beside which a change ran.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Raced([u64; READ_WORDS]);

impl Raced {
    /// A change runs beside a read.
    pub(crate) fn add(&mut self, read: BlockRange, change: BlockRange) {
        let common = intersection(read, change);
        for block in common.start.0..common.end().0 {
            let place = usize::try_from(block - read.start.0).unwrap_or(usize::MAX);
            if let Some(word) = self.0.get_mut(place / 64) {
                *word |= 1 << (place % 64);
            }
        }
    }

    /// Was it that block?
    pub(crate) fn contains(&self, place: usize) -> bool {
        self.0
            .get(place / 64)
            .is_some_and(|word| word & (1 << (place % 64)) != 0)
    }
}

/// A read that runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    token: Token,
    /// Operations and pages of checksums that it waits for.
    parts: u32,
    error: Option<DiskError>,
    pub(crate) range: BlockRange,
    buf: BufSlice,
    /// Blocks that may be what they were before a change or after it.
    pub(crate) raced: Raced,
    /// Extents of its range, counted from the first, whose checksums it holds.
    pub(crate) pinned: u8,
    /// Times that it was begun anew, as it could not be judged.
    again: u8,
}

impl Reading {
    fn new(token: Token, (range, buf): (BlockRange, BufSlice), again: u8) -> Reading {
        Reading {
            token,
            parts: 0,
            error: None,
            range,
            buf,
            raced: Raced::default(),
            pinned: 0,
            again,
        }
    }
}

impl Store {
    /// Reads blocks as they are into `buf`, which the caller keeps until [`StoreEvent::ReadDone`].
    /// The range may cross extents.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Range`] (also a buffer of another length or above
    /// 1 MiB), [`StoreError::Busy`].
    pub fn read(
        &mut self,
        token: Token,
        range: BlockRange,
        buf: BufSlice,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> Result<(), StoreError> {
        self.check_open()?;
        self.check_range(range)?;
        if range.bytes() != u64::from(buf.len) || buf.len > TRANSFER_BYTES_MAX {
            return Err(StoreError::Range);
        }
        if self.reads.len() - self.reads_free.len() >= super::limits::CALLS_MAX {
            return Err(StoreError::Busy);
        }
        self.begin_read(Reading::new(token, (range, buf), 0), data, out);
        Ok(())
    }

    fn begin_read(&mut self, reading: Reading, data: &mut dyn Buffers, out: &mut StoreOut) {
        let Reading {
            token, range, buf, ..
        } = reading;
        let number = self.reads_free.pop().unwrap_or_else(|| {
            self.reads.push(reading);
            u32::try_from(self.reads.len() - 1).unwrap_or(u32::MAX)
        });
        let mut parts = 0;
        let mut run: Option<BlockRange> = None;
        let mut holes = 0u64;
        for part in split_at_extents(range) {
            let extent = part.start.extent();
            let there = self.maps.get(MapId::ALLOCATED).mask(extent);
            let first = part.chunk_mask().trailing_zeros();
            let last = EXTENT_CHUNKS - part.chunk_mask().leading_zeros();
            for chunk in first..last {
                let blocks = intersection(chunk_range(extent, chunk), part);
                if there & (1 << chunk) != 0 {
                    let so_far = run.map_or(0, |r| r.count.0);
                    let start = run.map_or(blocks.start, |r| r.start);
                    run = Some(BlockRange::new(start, Blocks(so_far + blocks.count.0)));
                } else {
                    parts += self.read_run(run.take(), (range, buf), number, out);
                    holes += blocks.bytes();
                }
            }
        }
        parts += self.read_run(run, (range, buf), number, out);
        if parts == 0 {
            self.reads_free.push(number);
            out.event(StoreEvent::ReadDone {
                token,
                result: Ok(true),
            });
            return;
        }
        if holes > 0 {
            self.zero_holes(range, buf, data);
        }
        let at = usize::try_from(number).unwrap_or(0);
        if let Some(place) = self.reads.get_mut(at) {
            *place = Reading { parts, ..reading };
        }
        let pages = self.want_read_checksums(number, range);
        if let Some(reading) = self.reads.get_mut(at) {
            reading.parts += pages;
        }
        if pages > 0 {
            self.start_checksums(data, out);
        }
    }

    fn read_run(
        &mut self,
        run: Option<BlockRange>,
        (range, buf): (BlockRange, BufSlice),
        number: u32,
        out: &mut StoreOut,
    ) -> u32 {
        let Some(run) = run else { return 0 };
        let offset = self.data_offset(run);
        let skip = u32::try_from((run.start.0 - range.start.0) << BLOCK_SHIFT).unwrap_or(0);
        let len = u32::try_from(run.bytes()).unwrap_or(0);
        self.counters.bytes_read += run.bytes();
        let op = DiskOp::Read {
            role: FileRole::Data,
            offset,
            buf: buf.slice(skip, len),
        };
        out.op(Purpose::Read.tag(u64::from(number)), op);
        1
    }

    fn zero_holes(&mut self, range: BlockRange, buf: BufSlice, data: &mut dyn Buffers) {
        for part in split_at_extents(range) {
            let extent = part.start.extent();
            let holes = part.chunk_mask() & !self.maps.get(MapId::ALLOCATED).mask(extent);
            for chunk in (0..EXTENT_CHUNKS).filter(|chunk| holes & (1 << chunk) != 0) {
                let blocks = intersection(chunk_range(extent, chunk), part);
                let skip = (blocks.start.0 - range.start.0) << BLOCK_SHIFT;
                let at = u32::try_from(skip).unwrap_or(0);
                let len = u32::try_from(blocks.bytes()).unwrap_or(0);
                data.bytes_mut(buf.slice(at, len)).fill(0);
            }
        }
    }

    pub(crate) fn read_done(
        &mut self,
        number: u64,
        result: Result<(), DiskError>,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) {
        let Some(reading) = usize::try_from(number)
            .ok()
            .and_then(|n| self.reads.get_mut(n))
        else {
            return;
        };
        if reading.parts == 0 {
            return;
        }
        reading.parts -= 1;
        if let Err(error) = result {
            reading.error = Some(error);
        }
        if reading.parts == 0 {
            let Reading {
                token,
                error,
                range,
                buf,
                raced,
                pinned,
                again,
                ..
            } = *reading;
            // Where the device gave nothing there is nothing to judge.
            let judged = error.is_none().then_some(raced);
            let verified = self.verify((range, buf), (judged, pinned), data);
            let result = error.map_or(verified.map(|()| false), Err);
            self.reads_free
                .push(u32::try_from(number).unwrap_or(u32::MAX));
            let unjudged = raced != Raced::default() && !mutant::on(Mutant::RacedReadUnjudged);
            if result.is_ok() && unjudged && again < READS_AGAIN_MAX {
                self.counters.reads_again += 1;
                let anew = Reading::new(token, (range, buf), again + 1);
                return self.begin_read(anew, data, out);
            }
            out.event(StoreEvent::ReadDone { token, result });
        }
    }
}
