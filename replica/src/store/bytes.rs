//! Little-endian fields of metadata blocks, and their checksums.

use trilith_block::{BufSlice, Buffers, Uuid};

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let mut raw = [0u8; 2];
    raw.copy_from_slice(&bytes[at..at + 2]);
    u16::from_le_bytes(raw)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0u8; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0u8; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

pub(crate) fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    let mut raw = [0u8; 16];
    raw.copy_from_slice(&bytes[at..at + 16]);
    Uuid(raw)
}

pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

/// Two words of an identity, and back.
pub(crate) fn uuid_words(id: Uuid) -> [u64; 2] {
    [u64_at(&id.0, 0), u64_at(&id.0, 8)]
}

pub(crate) fn uuid_from_words(words: [u64; 2]) -> Uuid {
    let mut raw = [0u8; 16];
    raw[0..8].copy_from_slice(&words[0].to_le_bytes());
    raw[8..16].copy_from_slice(&words[1].to_le_bytes());
    Uuid(raw)
}

/// CRC-32C of a block whose 4 bytes at `crc_at` count as zero.
pub(crate) fn block_crc(data: &dyn Buffers, bytes: &[u8], crc_at: usize) -> u32 {
    let crc = data.crc32c(0, &bytes[..crc_at]);
    let crc = data.crc32c(crc, &[0; 4]);
    data.crc32c(crc, &bytes[crc_at + 4..])
}

/// Stores the checksum of a block in it.
pub(crate) fn seal_block(data: &mut dyn Buffers, block: BufSlice, crc_at: usize) {
    let crc = block_crc(data, data.bytes(block), crc_at);
    put(data.bytes_mut(block), crc_at, &crc.to_le_bytes());
}
