//! Sizes that a volume is formatted with, and where the areas lie that follow from them.

use super::limits::{
    AL_BATCH_MAX, AL_SLOTS_MAX, DATA_ALIGN_BYTES, JOURNAL_OFFSET, MAPS, META_BLOCK_BYTES,
    RING_BLOCKS_MAX, RING_BLOCKS_MIN, WINDOW_SLOTS_MAX, WINDOW_SLOTS_MIN,
};
use trilith_block::ExtentNo;
use trilith_block::limits::{BLOCK_BYTES, VOLUME_BYTES_MAX};

/// Sizes chosen at format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Blocks of the journal ring.
    pub ring_blocks: u32,
    /// Slots of the activity log; at least `window_slots` + `al_batch` (M1).
    pub al_slots: u32,
    /// Extents that leave the activity log at once.
    pub al_batch: u32,
    /// Slots of the window.
    pub window_slots: u32,
}

impl Geometry {
    /// The sizes for production: a ring of 16 MiB, an activity log that covers 64 GiB.
    pub const DEFAULT: Geometry = Geometry {
        ring_blocks: 4096,
        al_slots: 16384,
        al_batch: 64,
        window_slots: 8192,
    };

    /// The sizes of a witness, which has neither window entries nor an activity log: a ring of
    /// 256 KiB, so that its file is less than 3 MiB.
    pub const WITNESS: Geometry = Geometry {
        ring_blocks: 64,
        al_slots: WINDOW_SLOTS_MIN + 1,
        al_batch: 1,
        window_slots: WINDOW_SLOTS_MIN,
    };

    /// Small sizes for simulation: wraps, checkpoints and evictions happen all the time.
    pub const TINY: Geometry = Geometry {
        ring_blocks: 8,
        al_slots: 10,
        al_batch: 2,
        window_slots: 8,
    };

    /// True when every size is within its limits and M1 holds.
    pub fn is_valid(&self) -> bool {
        (RING_BLOCKS_MIN..=RING_BLOCKS_MAX).contains(&self.ring_blocks)
            && (WINDOW_SLOTS_MIN..=WINDOW_SLOTS_MAX).contains(&self.window_slots)
            && (1..=AL_BATCH_MAX).contains(&self.al_batch)
            && self.al_slots <= AL_SLOTS_MAX
            && self.al_slots >= self.window_slots + self.al_batch
    }
}

/// True when `capacity` (bytes) is one that a volume can have.
pub(crate) fn capacity_is_valid(capacity: u64) -> bool {
    capacity > 0 && capacity <= VOLUME_BYTES_MAX && capacity.is_multiple_of(u64::from(BLOCK_BYTES))
}

/// Where the areas of the metadata and the data lie, in bytes (M16).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// The journal ring.
    pub journal_offset: u64,
    /// Checkpoint X.
    pub checkpoint_x_offset: u64,
    /// Checkpoint Y.
    pub checkpoint_y_offset: u64,
    /// Length of a checkpoint area.
    pub checkpoint_bytes: u64,
    /// End of the metadata.
    pub meta_bytes: u64,
    /// First byte of the data within its file.
    pub data_offset: u64,
    /// The pages of checksums, one of 4 KiB for each extent; 0 = none.
    pub checksums_offset: u64,
}

impl Layout {
    /// The layout of a new volume. `same_device`: metadata and data share a raw device.
    pub fn new(geometry: &Geometry, capacity: u64, peers: usize, same_device: bool) -> Layout {
        let block = u64::from(META_BLOCK_BYTES);
        let extents = u64::from(ExtentNo::count_for(capacity));
        let maps = u64::try_from((3 + peers).min(MAPS)).unwrap_or(0);
        // 330 map records of 12 bytes or 1000 extents of 4 bytes fit a block with room for headers.
        let blocks =
            maps * (extents.div_ceil(330) + 1) + u64::from(geometry.al_slots).div_ceil(1000) + 2;
        let checkpoint_bytes = blocks * block;
        let checkpoint_x_offset = JOURNAL_OFFSET + u64::from(geometry.ring_blocks) * block;
        let checkpoint_y_offset = checkpoint_x_offset + checkpoint_bytes;
        let meta_bytes = checkpoint_y_offset + checkpoint_bytes;
        Layout {
            journal_offset: JOURNAL_OFFSET,
            checkpoint_x_offset,
            checkpoint_y_offset,
            checkpoint_bytes,
            meta_bytes,
            data_offset: if same_device {
                meta_bytes.next_multiple_of(DATA_ALIGN_BYTES)
            } else {
                0
            },
            checksums_offset: 0,
        }
    }

    /// The same with room for checksums of a volume of `capacity` bytes.
    #[must_use]
    pub fn with_checksums(self, capacity: u64) -> Layout {
        let mut layout = self;
        layout.checksums_offset = self.meta_bytes;
        if self.data_offset != 0 {
            layout.data_offset = layout.end(capacity).next_multiple_of(DATA_ALIGN_BYTES);
        }
        layout
    }

    /// End of everything but the data.
    pub fn end(&self, capacity: u64) -> u64 {
        let extents = u64::from(ExtentNo::count_for(capacity));
        match self.checksums_offset {
            0 => self.meta_bytes,
            offset => offset + extents * u64::from(META_BLOCK_BYTES),
        }
    }

    /// Where the page of checksums of an extent begins, of a volume that has them.
    pub fn checksum_page(&self, extent: ExtentNo) -> u64 {
        self.checksums_offset + u64::from(extent.0) * u64::from(META_BLOCK_BYTES)
    }

    /// True when the areas are aligned, in order and large enough for the geometry and a volume of
    /// `capacity` bytes.
    pub fn is_sound(&self, geometry: &Geometry, capacity: u64) -> bool {
        let block = u64::from(META_BLOCK_BYTES);
        let ring = u64::from(geometry.ring_blocks) * block;
        let limit = 1u64 << 48;
        let all = [
            self.journal_offset,
            self.checkpoint_x_offset,
            self.checkpoint_y_offset,
            self.checkpoint_bytes,
            self.meta_bytes,
            self.data_offset,
            self.checksums_offset,
        ];
        all.iter().all(|v| v.is_multiple_of(block) && *v < limit)
            && self.journal_offset >= JOURNAL_OFFSET
            && self.journal_offset + ring <= self.checkpoint_x_offset
            && self.checkpoint_x_offset + self.checkpoint_bytes <= self.checkpoint_y_offset
            && self.checkpoint_y_offset + self.checkpoint_bytes <= self.meta_bytes
            && (self.checksums_offset == 0 || self.checksums_offset >= self.meta_bytes)
            && (self.data_offset == 0
                || (self.data_offset >= self.end(capacity)
                    && self.data_offset.is_multiple_of(DATA_ALIGN_BYTES)))
    }
}
