//! Sizes and limits that more than one crate must agree on. A crate's own limits live in its own
//! `limits.rs`.

/// Bytes in a block: the unit of replication, of checksums and of every disk access.
pub const BLOCK_BYTES: u32 = 4096;
/// log2 of [`BLOCK_BYTES`].
pub const BLOCK_SHIFT: u32 = 12;
/// Bytes in a chunk: one bit of an extent's bitmap.
pub const CHUNK_BYTES: u32 = 64 * 1024;
/// log2 of [`CHUNK_BYTES`].
pub const CHUNK_SHIFT: u32 = 16;
/// Bytes in an extent: the unit of allocation, of the activity log and of bitmaps.
pub const EXTENT_BYTES: u64 = 4 * 1024 * 1024;
/// log2 of [`EXTENT_BYTES`].
pub const EXTENT_SHIFT: u32 = 22;
/// Chunks in an extent.
pub const EXTENT_CHUNKS: u32 = 64;
/// Blocks in a chunk.
pub const CHUNK_BLOCKS: u32 = CHUNK_BYTES / BLOCK_BYTES;
/// Blocks in an extent.
pub const EXTENT_BLOCKS: u32 = EXTENT_CHUNKS * CHUNK_BLOCKS;
/// Longest payload of one request or one frame, in bytes. A frontend splits what is longer.
pub const TRANSFER_BYTES_MAX: u32 = 1024 * 1024;
/// Longest header that a [`crate::Want::Header`] may ask for, in bytes.
pub const HEADER_BYTES_MAX: usize = 8192;
/// Most members (replicas) of one volume, those being added included.
pub const MEMBERS_MAX: usize = 7;
/// Largest volume, in bytes: 16 TiB of extents fits a `u32` extent number with room to spare.
pub const VOLUME_BYTES_MAX: u64 = 16 << 40;
/// Latency samples are kept in buckets of powers of two of a nanosecond, each in this many parts.
pub const HISTOGRAM_PARTS: usize = 8;
/// Powers of two that a histogram covers: up to 2^40 ns, 18 minutes. Longer counts as the longest.
pub const HISTOGRAM_POWERS: usize = 40;

const _: () = assert!(1 << BLOCK_SHIFT == BLOCK_BYTES);
const _: () = assert!(1 << CHUNK_SHIFT == CHUNK_BYTES);
const _: () = assert!(1u64 << EXTENT_SHIFT == EXTENT_BYTES);
const _: () = assert!(CHUNK_BYTES as u64 * EXTENT_CHUNKS as u64 == EXTENT_BYTES);
const _: () = assert!(TRANSFER_BYTES_MAX as u64 <= EXTENT_BYTES);
const _: () = assert!(VOLUME_BYTES_MAX >> EXTENT_SHIFT <= u32::MAX as u64);
