//! GET LBA STATUS (SBC-3 5.6): from the engine's block status records.

use crate::bytes::{be32, len32, low32, put32};
use crate::limits::STATUS_DESCRIPTORS_MAX;
use alloc::vec::Vec;
use trilith_block::request::status_flags;

/// Descriptors that fit the answer.
pub(crate) fn descriptors(cdb: &[u8; 16]) -> usize {
    let room = (be32(cdb, 10) as usize).saturating_sub(8) / 16;
    room.clamp(1, STATUS_DESCRIPTORS_MAX)
}

/// Appends the answer for the range that starts at block `lba` and, in bytes, at `offset`.
/// Neighbours of one state are merged.
pub(crate) fn reply(
    records: &[u8],
    lba: u64,
    len: u64,
    block_shift: u32,
    allocation: usize,
    descriptors_max: usize,
    out: &mut Vec<u8>,
) {
    out.resize(8, 0);
    let mut runs: Vec<(u64, u64, u8)> = Vec::new();
    let (mut at, end) = (0u64, len);
    for record in records.chunks_exact(16) {
        let bytes = record
            .first_chunk::<8>()
            .map_or(0, |b| u64::from_le_bytes(*b));
        let flags = record[8..]
            .first_chunk::<4>()
            .map_or(0, |b| u32::from_le_bytes(*b));
        let state = u8::from(flags & status_flags::HOLE != 0);
        // A block is unmapped only when all of it is: an end within a block rounds towards mapped.
        let next = at.saturating_add(bytes).min(end);
        let mask = (1u64 << block_shift) - 1;
        let cut = if next == end {
            end
        } else if state == 1 {
            next & !mask
        } else {
            (next + mask) & !mask
        };
        if cut > at {
            let full = runs.len() == descriptors_max;
            match runs.last_mut() {
                Some(last) if last.2 == state => last.1 += (cut - at) >> block_shift,
                _ if full => break,
                _ => runs.push((lba + (at >> block_shift), (cut - at) >> block_shift, state)),
            }
        }
        at = next.max(cut);
    }
    for (lba, blocks, state) in runs {
        out.extend_from_slice(&lba.to_be_bytes());
        out.extend_from_slice(&low32(blocks).to_be_bytes());
        out.extend_from_slice(&[state, 0, 0, 0]);
    }
    let len = len32(out.len() - 4);
    put32(out, 0, len);
    out.truncate(allocation);
}
