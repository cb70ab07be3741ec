//! Limits of the store. Sizes that a volume is formatted with are in [`super::Geometry`].

use trilith_block::limits::{BLOCK_BYTES, CHUNK_BYTES, EXTENT_BYTES, MEMBERS_MAX};

/// Bytes of a metadata block: a superblock, a journal block, a checkpoint block.
pub const META_BLOCK_BYTES: u32 = BLOCK_BYTES;
/// Bytes that one metadata read or write moves at most. Larger areas move in pieces.
pub const META_IO_BYTES_MAX: u32 = 64 * 1024;
/// Metadata blocks in one metadata write.
pub const META_IO_BLOCKS_MAX: u32 = META_IO_BYTES_MAX / META_BLOCK_BYTES;
/// Offset of superblock copy A in the metadata.
pub const SUPERBLOCK_A_OFFSET: u64 = 0;
/// Offset of superblock copy B in the metadata: 1 MiB away, so that no single bad spot takes both.
pub const SUPERBLOCK_B_OFFSET: u64 = 1 << 20;
/// Offset of the journal ring in the metadata.
pub const JOURNAL_OFFSET: u64 = 2 << 20;
/// Fewest blocks of a journal ring: half of it must hold one write of a quarter.
pub const RING_BLOCKS_MIN: u32 = 8;
/// Most blocks of a journal ring (1 GiB; it is read as a whole at open).
pub const RING_BLOCKS_MAX: u32 = 1 << 18;
/// Fewest window slots.
pub const WINDOW_SLOTS_MIN: u32 = 4;
/// Most window slots (2 MiB of tmpfs).
pub const WINDOW_SLOTS_MAX: u32 = 1 << 16;
/// Most slots of the activity log.
pub const AL_SLOTS_MAX: u32 = 1 << 18;
/// Most extents that leave the activity log at once. The activity log has at least this many slots
/// more than the window (M1), or the batch of its geometry when that is smaller.
pub const AL_BATCH_MAX: u32 = 256;
/// Bytes of zeroes kept for the edges of discards: an edge is shorter than a chunk.
pub const ZERO_BYTES: u32 = CHUNK_BYTES;
/// Bytes zeroed by one operation when a raw device is formatted.
pub const FORMAT_ZERO_BYTES_MAX: u64 = 1 << 30;
/// The data area of a raw device starts at a multiple of this.
pub const DATA_ALIGN_BYTES: u64 = EXTENT_BYTES;
/// Journal items that wait without anyone waiting for them before they are written anyway.
pub const LAZY_ITEMS_MAX: usize = 4096;
/// Calls (persist operations, repairs, reads, flushes) that may wait in the store at once, beside
/// the entries of the window. What comes above it is answered [`super::StoreError::Busy`].
pub const CALLS_MAX: usize = 4096;
/// Times that a read is begun anew because changes overtook it, so that its blocks could not be held
/// against their checksums (2.5). After that it is answered as it is.
pub const READS_AGAIN_MAX: u8 = 4;

/// Pages of checksums of extents outside the activity log that are kept: 4 MiB.
pub const COLD_PAGES_MAX: usize = 1024;

/// Maps kept per volume: need, limbo, allocated and one dirty map per member.
pub const MAPS: usize = 3 + MEMBERS_MAX;

const _: () = assert!(META_IO_BYTES_MAX <= trilith_block::limits::TRANSFER_BYTES_MAX);
const _: () = assert!(SUPERBLOCK_B_OFFSET + META_BLOCK_BYTES as u64 <= JOURNAL_OFFSET);
