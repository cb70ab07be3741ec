//! Limits of the wire format. What exceeds one is malformed: the session is closed.

/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 64;
/// Longest extension of a header, in bytes (a checksum for each of the 256 blocks of the longest
/// payload takes half of it).
pub const EXT_BYTES_MAX: usize = 2048;
/// Longest header with its extension, in bytes.
pub const HEAD_BYTES_MAX: usize = HEADER_BYTES + EXT_BYTES_MAX;
/// Longest payload of a data frame, in bytes.
pub const PAYLOAD_BYTES_MAX: u32 = trilith_block::limits::TRANSFER_BYTES_MAX;
/// Longest payload of a MAP or DIRTYCLEAR frame, in bytes: long state moves in such pieces.
pub const MAP_BYTES_MAX: u32 = 64 * 1024;
/// Out-of-order positions that one ACK can carry; more go into a further ACK.
pub const ACK_FURTHER_MAX: usize = EXT_BYTES_MAX / 8;
/// Oldest protocol version that this build speaks.
pub const PROTOCOL_MIN: u16 = 1;
/// Newest protocol version that this build speaks.
pub const PROTOCOL_MAX: u16 = 4;
/// First protocol version with RECONFIGURE: a volume whose configuration was ever changed is not
/// served in an older one.
pub const PROTOCOL_RECONFIGURE: u16 = 2;
/// First protocol version with EXTENTHASH: replicas that speak an older one are not compared.
pub const PROTOCOL_EXTENT_HASH: u16 = 3;
/// First protocol version that knows the witness (7.1): a volume that has one is not served in an
/// older one, which would count it as a holder of data.
pub const PROTOCOL_WITNESS: u16 = 4;
/// Digests of one EXTENTHASHDONE. More are malformed.
pub const DIGESTS_MAX: usize = 64;

const _: () = assert!(PAYLOAD_BYTES_MAX / trilith_block::limits::BLOCK_BYTES * 4 <= 1024);
const _: () = assert!(HEAD_BYTES_MAX <= trilith_block::limits::HEADER_BYTES_MAX);
const _: () = assert!(DIGESTS_MAX * crate::digest::DIGEST_BYTES <= EXT_BYTES_MAX);
