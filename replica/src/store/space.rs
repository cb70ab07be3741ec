//! Space in the data file (M3, M21): an extent is reserved at its first touch, and a run of extents
//! ahead of a sequential stream. What is reserved is not stored: after a power loss it is reserved
//! again at the first touch.

use super::api::Change;
use super::changes::WAIT_SPACE;
use super::disk::{DiskError, DiskOp, FileRole, StoreOut};
use super::state::{Purpose, Store};
use trilith_block::{BlockRange, Buffers, ExtentNo};

impl Store {
    /// M21: space is reserved at the first touch of an extent, and ahead of a sequential stream.
    pub(crate) fn provision(
        &mut self,
        number: u32,
        range: BlockRange,
        change: Change,
        out: &mut StoreOut,
    ) {
        if !self.params.allocate || !matches!(change, Change::Write(_)) {
            return;
        }
        let extent = range.start.extent();
        let mask = range.chunk_mask();
        self.provision_ahead(extent, out);
        if self.provisioned.mask(extent) & mask == mask {
            return;
        }
        self.add_wait(number, WAIT_SPACE);
        let waits = self.provision_waits.entry(extent).or_default();
        waits.push(number);
        if waits.len() == 1 {
            self.free_extents = self.free_extents.saturating_sub(1);
            self.counters.extents_allocated += 1;
            let (offset, len) = self.extents_bytes(extent, 1);
            let op = DiskOp::Allocate {
                role: FileRole::Data,
                offset,
                len,
            };
            out.op(Purpose::Provision.tag(u64::from(extent.0)), op);
        }
    }

    fn extents_bytes(&self, extent: ExtentNo, count: u32) -> (u64, u64) {
        let end = ExtentNo(extent.0.saturating_add(count))
            .byte_offset()
            .min(self.facts.capacity);
        let start = extent.byte_offset();
        (
            self.superblock.layout.data_offset + start,
            end.saturating_sub(start),
        )
    }

    /// When the extent before is in use and the next one is not reserved, reserves a run.
    fn provision_ahead(&mut self, extent: ExtentNo, out: &mut StoreOut) {
        let wanted = self.params.allocate_ahead;
        let next = ExtentNo(extent.0 + 1);
        let sequential = extent.0 > 0 && self.provisioned.mask(ExtentNo(extent.0 - 1)) != 0;
        let extents = ExtentNo::count_for(self.facts.capacity);
        if wanted == 0
            || !sequential
            || self.ahead.is_some()
            || self.ahead_failed
            || next.0 >= extents
            || self.provisioned.mask(next) != 0
        {
            return;
        }
        let mut count = 0;
        while count < wanted
            && next.0 + count < extents
            && u64::from(count) < self.free_extents
            && self.provisioned.mask(ExtentNo(next.0 + count)) == 0
        {
            count += 1;
        }
        if count == 0 {
            return;
        }
        self.free_extents -= u64::from(count);
        self.counters.extents_allocated += u64::from(count);
        self.ahead = Some((next, count));
        let (offset, len) = self.extents_bytes(next, count);
        out.op(
            Purpose::Ahead.tag(0),
            DiskOp::Allocate {
                role: FileRole::Data,
                offset,
                len,
            },
        );
    }

    pub(crate) fn ahead_done(&mut self, result: Result<(), DiskError>) {
        let Some((first, count)) = self.ahead.take() else {
            return;
        };
        match result {
            Ok(()) => {
                for number in first.0..first.0 + count {
                    self.provisioned.set_mask(ExtentNo(number), u64::MAX);
                }
            }
            // Nobody waits for it; the next statvfs lets it be tried again.
            Err(_) => self.ahead_failed = true,
        }
    }

    pub(crate) fn provision_done(
        &mut self,
        number: u64,
        result: Result<(), DiskError>,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) {
        let extent = ExtentNo(u32::try_from(number).unwrap_or(u32::MAX));
        let Some(waiting) = self.provision_waits.remove(&extent) else {
            return;
        };
        if result.is_ok() {
            self.provisioned.set_mask(extent, u64::MAX);
        }
        for number in waiting {
            if let (Err(error), Some(running)) = (result, self.running.get(number)) {
                running.error = Some(error);
            }
            self.end_wait(number, WAIT_SPACE);
        }
        self.run_ready(data, out);
    }
}
