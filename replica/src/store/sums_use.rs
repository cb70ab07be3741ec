//! How changes and reads use the checksums, and how their pages are read and written.

use super::api::{Change, FailCause};
use super::changes::WAIT_SUMS;
use super::checksums::{Checksums, Saved};
use super::disk::{DiskError, DiskOp, FileRole, StoreOut};
use super::reads::Raced;
use super::state::{Purpose, Store};
use trilith_block::chunks::split_at_extents;
use trilith_block::limits::BLOCK_SHIFT;
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BlockRange, BufSlice, Buffers, ExtentNo, Lba};

impl Store {
    fn page_offset(&self, extent: ExtentNo) -> u64 {
        self.superblock.layout.checksum_page(extent)
    }

    /// Pages of checksums in memory.
    pub fn checksum_pages_held(&self) -> usize {
        self.checksums.as_deref().map_or(0, Checksums::pages_held)
    }

    /// The checksum of a block as memory has it, 0 = not known; `None`: the page on the disk counts.
    pub fn checksum_held(&self, block: Lba) -> Option<u32> {
        self.checksums.as_deref().and_then(|sums| sums.held(block))
    }

    /// A change has its extent in the activity log: it waits for the page too.
    pub(crate) fn want_checksums(&mut self, number: u32, extent: ExtentNo) {
        if let Some(sums) = self.checksums.as_deref_mut()
            && sums.want_hot(extent, number)
        {
            self.add_wait(number, WAIT_SUMS);
        }
    }

    /// Before the device gets a change: what its blocks hold is not known for a while, and reads that
    /// run may see either.
    pub(crate) fn begin_checksums(&mut self, range: BlockRange) {
        if let Some(sums) = self.checksums.as_deref_mut() {
            sums.begin(range);
            for reading in &mut self.reads {
                if reading.range.overlaps(range) && !mutant::on(Mutant::ChecksumsNotSuspended) {
                    reading.raced.add(reading.range, range);
                }
            }
        }
    }

    /// The device has completed a change.
    pub(crate) fn end_checksums(&mut self, range: BlockRange, change: Change, data: &dyn Buffers) {
        if let Some(sums) = self.checksums.as_deref_mut() {
            match change {
                Change::Write(buf) => sums.end(range, Some(buf), data),
                Change::Zeroes | Change::Discard => sums.end(range, None, data),
                Change::HeaderOnly => (),
            }
        }
    }

    /// A read of the device begins. Returns the number of pages that it waits for.
    pub(crate) fn want_read_checksums(&mut self, number: u32, range: BlockRange) -> u32 {
        let Some(sums) = self.checksums.as_deref_mut() else {
            return 0;
        };
        let (mut waits, mut pinned) = (0, 0u8);
        let mut raced = Raced::default();
        for (place, part) in split_at_extents(range).enumerate() {
            for change in self.overlap.overlapping(part) {
                let change = u32::try_from(change).ok();
                let change = change.and_then(|number| self.running.get(number));
                if let Some(change) = change
                    && !mutant::on(Mutant::ChecksumsNotSuspended)
                {
                    raced.add(range, change.range);
                }
            }
            if let Some(loading) = sums.want_read(part.start.extent(), number) {
                pinned |= 1 << place;
                waits += u32::from(loading);
            }
        }
        if let Some(reading) = usize::try_from(number)
            .ok()
            .and_then(|n| self.reads.get_mut(n))
        {
            (reading.raced, reading.pinned) = (raced, pinned);
        }
        waits
    }

    /// The device and the pages have been read: are the blocks what was written? Those that a change
    /// has overtaken may be either and are not judged (the read is begun anew, up to a limit); without
    /// `raced` none is.
    pub(crate) fn verify(
        &mut self,
        (range, buf): (BlockRange, BufSlice),
        (raced, pinned): (Option<Raced>, u8),
        data: &dyn Buffers,
    ) -> Result<(), DiskError> {
        let Some(sums) = self.checksums.as_deref_mut() else {
            return Ok(());
        };
        let mut good = true;
        for (place, part) in split_at_extents(range).enumerate() {
            if pinned & (1 << place) == 0 {
                continue;
            }
            let at = u32::try_from((part.start.0 - range.start.0) << BLOCK_SHIFT).unwrap_or(0);
            let len = u32::try_from(part.bytes()).unwrap_or(0);
            if let Some(raced) = raced {
                let first = usize::try_from(part.start.0 - range.start.0).unwrap_or(usize::MAX);
                let all = raced != Raced::default() && mutant::on(Mutant::RacedReadUnjudged);
                let judged = |place: usize| !all && !raced.contains(first + place);
                good &= sums.agree(part, data.bytes(buf.slice(at, len)), judged, data);
            }
            sums.release(part.start.extent());
        }
        if good {
            return Ok(());
        }
        self.counters.reads_rotten += 1;
        Err(DiskError::Checksum)
    }

    /// B1: true when every page is saved; else they are being saved.
    pub(crate) fn is_checksums_saved(&mut self) -> bool {
        self.checksums
            .as_deref_mut()
            .is_none_or(|sums| sums.is_all_saved())
    }

    /// Starts the reads and writes of pages that somebody waits for.
    pub(crate) fn start_checksums(&mut self, data: &mut dyn Buffers, out: &mut StoreOut) {
        let Some(mut sums) = self.checksums.take() else {
            return;
        };
        let role = FileRole::Meta;
        while let Some((slot, extent, buf)) = sums.next_load() {
            let offset = self.page_offset(extent);
            let slot = u64::try_from(slot).unwrap_or(0);
            self.counters.checksum_pages += 1;
            out.op(
                Purpose::LoadSums.tag(slot),
                DiskOp::Read { role, offset, buf },
            );
        }
        if sums.begin_save(data) {
            for (extent, buf) in sums.writes() {
                let offset = self.page_offset(extent);
                self.counters.checksum_pages += 1;
                let dsync = false;
                out.op(
                    Purpose::SaveSums.tag(0),
                    DiskOp::Write {
                        role,
                        offset,
                        buf,
                        dsync,
                    },
                );
            }
        }
        self.checksums = Some(sums);
    }

    pub(crate) fn checksums_loaded(
        &mut self,
        slot: u64,
        result: Result<(), DiskError>,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) {
        let Some(sums) = self.checksums.as_deref_mut() else {
            return;
        };
        let slot = usize::try_from(slot).unwrap_or(usize::MAX);
        let waited = sums.loaded(slot, result.is_ok(), data);
        for number in waited.changes {
            self.end_wait(number, WAIT_SUMS);
        }
        for number in waited.reads {
            self.read_done(u64::from(number), Ok(()), data, out);
        }
        self.run_ready(data, out);
    }

    /// A page that cannot be written is final, as a checkpoint is.
    pub(crate) fn checksums_saved(&mut self, result: Result<(), DiskError>, out: &mut StoreOut) {
        if let Err(error) = result {
            self.fail(FailCause::Checkpoint(error), out);
            return;
        }
        let Some(sums) = self.checksums.as_deref_mut() else {
            return;
        };
        if sums.save_done() == Saved::Flush {
            let role = FileRole::Meta;
            out.op(Purpose::SaveSums.tag(0), DiskOp::Flush { role });
        }
    }
}
