//! Digests of blocks, by which replicas are compared without sending what they hold (6.9).
//!
//! XXH3 with 128 bits, keyed by a seed that each comparison chooses: two contents that happen to
//! collide do not do so the next time. It finds rot; it does not withstand an adversary, who could
//! as well answer with the digests of another replica.

use trilith_block::limits::BLOCK_BYTES;
use trilith_block::{BlockRange, Blocks};
use twox_hash::xxhash3_128::Hasher;

/// Bytes of one digest.
pub const DIGEST_BYTES: usize = 16;
/// Blocks of a chunk, the larger of the two units.
pub const CHUNK: Blocks = Blocks(trilith_block::limits::CHUNK_BYTES / BLOCK_BYTES);
/// The smaller unit.
pub const BLOCK: Blocks = Blocks(1);

static ZEROES: [u8; (CHUNK.0 * BLOCK_BYTES) as usize] = [0; (CHUNK.0 * BLOCK_BYTES) as usize];

/// The digest of some bytes.
pub fn of(seed: u64, bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    Hasher::oneshot_with_seed(seed, bytes).to_le_bytes()
}

/// Digests that speak for `range`: one for each `unit` blocks. `None` when there is no such unit or
/// the range does not begin with one.
pub fn units(range: BlockRange, unit: Blocks) -> Option<usize> {
    let known = unit == BLOCK || unit == CHUNK;
    if !known || !range.start.0.is_multiple_of(u64::from(unit.0)) {
        return None;
    }
    usize::try_from(range.count.0.div_ceil(unit.0)).ok()
}

/// Appends the digest of each unit of `bytes`, which is a whole number of blocks.
pub fn append(seed: u64, bytes: &[u8], unit: Blocks, out: &mut alloc::vec::Vec<u8>) {
    for unit in bytes.chunks((unit.0 * BLOCK_BYTES) as usize) {
        out.extend_from_slice(&of(seed, unit));
    }
}

/// Appends the digest of each unit of a range of zeroes. `unit` is one of the two.
pub fn append_zeroes(seed: u64, range: BlockRange, unit: Blocks, out: &mut alloc::vec::Vec<u8>) {
    let whole = of(
        seed,
        &ZEROES[..(unit.0.min(CHUNK.0) * BLOCK_BYTES) as usize],
    );
    let mut left = range.count.0;
    while left > 0 {
        let now = left.min(unit.0.max(1));
        if now == unit.0 {
            out.extend_from_slice(&whole);
        } else {
            let bytes = (now.min(CHUNK.0) * BLOCK_BYTES) as usize;
            out.extend_from_slice(&of(seed, &ZEROES[..bytes]));
        }
        left -= now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;
    use trilith_block::Lba;

    #[test]
    fn digests_are_those_of_the_published_function() {
        // Test vectors of XXH3_128bits_withSeed: no bytes, seed 0.
        let empty = 0x99aa_06d3_0147_98d8_6001_c324_468d_497f_u128;
        assert_eq!(of(0, &[]), empty.to_le_bytes());
        assert_ne!(of(1, &[7; 4096]), of(2, &[7; 4096]));
    }

    #[test]
    fn a_hole_has_the_digests_of_zeroes() {
        for (count, unit) in [
            (16, CHUNK),
            (20, CHUNK),
            (3, CHUNK),
            (5, BLOCK),
            (64, CHUNK),
        ] {
            let range = BlockRange::new(Lba(32), Blocks(count));
            let (mut hole, mut written) = (Vec::new(), Vec::new());
            append_zeroes(9, range, unit, &mut hole);
            append(
                9,
                &vec![0; (count * BLOCK_BYTES) as usize],
                unit,
                &mut written,
            );
            assert_eq!(hole, written);
            assert_eq!(Some(hole.len() / DIGEST_BYTES), units(range, unit));
        }
    }

    #[test]
    fn one_bit_changes_the_digest_of_its_unit_only() {
        let mut bytes = vec![3; 8 * BLOCK_BYTES as usize];
        let mut before = Vec::new();
        append(5, &bytes, BLOCK, &mut before);
        bytes[2 * BLOCK_BYTES as usize + 77] ^= 4;
        let mut after = Vec::new();
        append(5, &bytes, BLOCK, &mut after);
        let pairs = before.chunks(DIGEST_BYTES).zip(after.chunks(DIGEST_BYTES));
        let changed: Vec<usize> = pairs
            .enumerate()
            .filter(|(_, (a, b))| a != b)
            .map(|(at, _)| at)
            .collect();
        assert_eq!(changed, [2]);
    }

    #[test]
    fn ranges_that_are_not_units_are_refused() {
        let at = |start, count| BlockRange::new(Lba(start), Blocks(count));
        for (range, unit, expected) in [
            (at(0, 16), CHUNK, Some(1)),
            (at(16, 17), CHUNK, Some(2)),
            (at(8, 16), CHUNK, None),
            (at(8, 16), BLOCK, Some(16)),
            (at(0, 16), Blocks(2), None),
            (at(0, 16), Blocks(0), None),
        ] {
            assert_eq!(units(range, unit), expected, "{range:?} {unit:?}");
        }
    }
}
