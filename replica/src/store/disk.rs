//! What the store asks of the disk. The driver maps a [`FileRole`] to a descriptor; on a raw device
//! both roles are the same descriptor and the data offsets already lie behind the metadata.

use alloc::vec::Vec;
use trilith_block::BufSlice;

/// Which file an operation is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub enum FileRole {
    /// `vol.meta`, or the raw device.
    Meta,
    /// `vol.data`, or the raw device.
    Data,
}

/// Names an operation in its completion. Chosen by the store, opaque to the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub struct DiskTag(pub u64);

/// One operation. Offsets and lengths are in bytes and multiples of 4096. Nothing is ordered except
/// by waiting for a completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskOp {
    /// Fills `buf`. Bytes beyond the end of the file read as zeroes.
    Read {
        /// Which file.
        role: FileRole,
        /// Where.
        offset: u64,
        /// Length and target.
        buf: BufSlice,
    },
    /// Writes `buf`, which stays unchanged until the completion.
    Write {
        /// Which file.
        role: FileRole,
        /// Where.
        offset: u64,
        /// Length and source.
        buf: BufSlice,
        /// On stable media when it completes (RWF_DSYNC); it speaks of this write alone.
        dsync: bool,
    },
    /// Everything that completed before this was submitted is on stable media when it completes
    /// (fdatasync). Never repeated after a failure (F2).
    Flush {
        /// Which file.
        role: FileRole,
    },
    /// Reserves space (fallocate, size kept). Contents do not change. May do nothing on a device.
    Allocate {
        /// Which file.
        role: FileRole,
        /// Where.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Makes the range read as zeroes and gives its space back. A driver that cannot punch writes
    /// zeroes.
    PunchHole {
        /// Which file.
        role: FileRole,
        /// Where.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Makes the range read as zeroes and keeps its space. A driver that cannot writes zeroes.
    ZeroRange {
        /// Which file.
        role: FileRole,
        /// Where.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// Why an operation failed. A short transfer is completed by the driver or counts as `Io`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskError {
    /// The device said no.
    Io,
    /// No space left.
    NoSpace,
    /// A block is not what was written there. Never from a driver: the store finds it.
    Checksum,
}

/// Where the store puts operations and events. The owner drains both after each call or batch; the
/// memory is reused.
#[derive(Debug, Default)]
pub struct StoreOut {
    /// Operations for the driver, in submission order.
    pub ops: Vec<(DiskTag, DiskOp)>,
    /// Events for the owner, in the order they happened.
    pub events: Vec<super::StoreEvent>,
}

impl StoreOut {
    /// Nothing in it.
    pub fn new() -> StoreOut {
        StoreOut::default()
    }

    pub(crate) fn op(&mut self, tag: DiskTag, op: DiskOp) {
        self.ops.push((tag, op));
    }

    pub(crate) fn event(&mut self, event: super::StoreEvent) {
        self.events.push(event);
    }
}
