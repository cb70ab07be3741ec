//! Addresses and lengths. Inside Trilith a volume is addressed in 4 KiB blocks; only requests of
//! clients are in bytes.

use crate::limits::{
    BLOCK_BYTES, BLOCK_SHIFT, CHUNK_BLOCKS, EXTENT_BLOCKS, EXTENT_BYTES, EXTENT_SHIFT,
};

/// Address of a 4 KiB block of the volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Lba(pub u64);

impl Lba {
    /// Byte offset of the block in the volume.
    pub fn byte_offset(self) -> u64 {
        self.0 << BLOCK_SHIFT
    }

    /// The extent that holds the block.
    pub fn extent(self) -> ExtentNo {
        ExtentNo(u32::try_from(self.0 >> (EXTENT_SHIFT - BLOCK_SHIFT)).unwrap_or(u32::MAX))
    }

    /// Index of the block within its extent, 0 to 1023.
    pub fn in_extent(self) -> u32 {
        u32::try_from(self.0 % u64::from(EXTENT_BLOCKS)).unwrap_or(0)
    }
}

/// A number of 4 KiB blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Blocks(pub u32);

impl Blocks {
    /// The length in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0) << BLOCK_SHIFT
    }
}

/// Number of an aligned 4 MiB run of the volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct ExtentNo(pub u32);

impl ExtentNo {
    /// First block of the extent.
    pub fn first(self) -> Lba {
        Lba(u64::from(self.0) * u64::from(EXTENT_BLOCKS))
    }

    /// Byte offset of the extent in the volume.
    pub fn byte_offset(self) -> u64 {
        u64::from(self.0) << EXTENT_SHIFT
    }

    /// Number of extents that a volume of `bytes` has, the last one possibly partial.
    pub fn count_for(bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(EXTENT_BYTES)).unwrap_or(u32::MAX)
    }
}

/// A run of blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct BlockRange {
    /// First block.
    pub start: Lba,
    /// Length.
    pub count: Blocks,
}

impl BlockRange {
    /// The run of `count` blocks from `start`.
    pub fn new(start: Lba, count: Blocks) -> BlockRange {
        BlockRange { start, count }
    }

    /// First block after the run.
    pub fn end(self) -> Lba {
        Lba(self.start.0 + u64::from(self.count.0))
    }

    /// Length in bytes.
    pub fn bytes(self) -> u64 {
        self.count.bytes()
    }

    /// True when the run has no block.
    pub fn is_empty(self) -> bool {
        self.count.0 == 0
    }

    /// True when the runs share a block.
    pub fn overlaps(self, other: BlockRange) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// True when every block of `other` is in this run.
    pub fn covers(self, other: BlockRange) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// True when the run has blocks and all of them are in one extent.
    pub fn in_one_extent(self) -> bool {
        !self.is_empty()
            && u64::from(self.start.in_extent()) + u64::from(self.count.0)
                <= u64::from(EXTENT_BLOCKS)
    }

    /// The chunks of `self.start.extent()` that the run touches, as a bit mask. The run must not
    /// cross an extent; blocks beyond the extent are not counted.
    pub fn chunk_mask(self) -> u64 {
        if self.is_empty() {
            return 0;
        }
        let first = self.start.in_extent() / CHUNK_BLOCKS;
        let last =
            (self.start.in_extent() + self.count.0 - 1).min(EXTENT_BLOCKS - 1) / CHUNK_BLOCKS;
        (u64::MAX >> (63 - (last - first))) << first
    }

    /// The chunks that lie wholly inside the run, as a bit mask of its extent.
    pub fn whole_chunk_mask(self) -> u64 {
        let first = self.start.in_extent().div_ceil(CHUNK_BLOCKS);
        let end = (self.start.in_extent() + self.count.0).min(EXTENT_BLOCKS) / CHUNK_BLOCKS;
        if end <= first {
            0
        } else {
            (u64::MAX >> (63 - (end - first - 1))) << first
        }
    }
}

/// A run of bytes of the volume, as clients ask for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl ByteRange {
    /// The run of `len` bytes from `offset`.
    pub fn new(offset: u64, len: u64) -> ByteRange {
        ByteRange { offset, len }
    }

    /// First byte after the run, or `None` when it does not fit 64 bits.
    pub fn end(self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }

    /// True when both ends are multiples of the block size.
    pub fn is_aligned(self) -> bool {
        self.offset.is_multiple_of(u64::from(BLOCK_BYTES))
            && self.len.is_multiple_of(u64::from(BLOCK_BYTES))
    }

    /// First block touched, and the block after the last one touched.
    pub fn block_bounds(self) -> (Lba, Lba) {
        let end = self.offset.saturating_add(self.len);
        (
            Lba(self.offset >> BLOCK_SHIFT),
            Lba(end.div_ceil(u64::from(BLOCK_BYTES))),
        )
    }
}
