//! Per-extent bitmaps: which 64 KiB chunks of which 4 MiB extents. Sparse: an extent without a set
//! bit takes no memory.

use crate::limits::{CHUNK_BLOCKS, EXTENT_CHUNKS};
use crate::units::{BlockRange, Blocks, ExtentNo, Lba};
use alloc::collections::BTreeMap;

/// The chunks of one extent, bit i = chunk i.
pub type ChunkMask = u64;

/// A set of chunks of a volume.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ChunkMap {
    extents: BTreeMap<ExtentNo, ChunkMask>,
    chunks: u64,
}

impl ChunkMap {
    /// The empty set.
    pub fn new() -> ChunkMap {
        ChunkMap::default()
    }

    /// True when no chunk is in the set.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Number of chunks in the set.
    pub fn chunk_count(&self) -> u64 {
        self.chunks
    }

    /// Bytes that the chunks of the set span.
    pub fn bytes(&self) -> u64 {
        self.chunks * u64::from(crate::limits::CHUNK_BYTES)
    }

    /// Number of extents with at least one chunk in the set.
    pub fn extent_count(&self) -> usize {
        self.extents.len()
    }

    /// The chunks of one extent.
    pub fn mask(&self, extent: ExtentNo) -> ChunkMask {
        self.extents.get(&extent).copied().unwrap_or(0)
    }

    /// Replaces the chunks of one extent.
    pub fn set_mask(&mut self, extent: ExtentNo, mask: ChunkMask) {
        let old = if mask == 0 {
            self.extents.remove(&extent).unwrap_or(0)
        } else {
            self.extents.insert(extent, mask).unwrap_or(0)
        };
        self.chunks = self.chunks - u64::from(old.count_ones()) + u64::from(mask.count_ones());
    }

    /// Adds chunks of one extent.
    pub fn add_mask(&mut self, extent: ExtentNo, mask: ChunkMask) {
        self.set_mask(extent, self.mask(extent) | mask);
    }

    /// Removes chunks of one extent.
    pub fn remove_mask(&mut self, extent: ExtentNo, mask: ChunkMask) {
        self.set_mask(extent, self.mask(extent) & !mask);
    }

    /// Adds every chunk that `range` touches. The range may cross extents.
    pub fn add_range(&mut self, range: BlockRange) {
        for part in split_at_extents(range) {
            self.add_mask(part.start.extent(), part.chunk_mask());
        }
    }

    /// True when a chunk that `range` touches is in the set. The range may cross extents.
    pub fn touches(&self, range: BlockRange) -> bool {
        !self.is_empty()
            && split_at_extents(range)
                .any(|part| self.mask(part.start.extent()) & part.chunk_mask() != 0)
    }

    /// Adds every chunk of `other`.
    pub fn union(&mut self, other: &ChunkMap) {
        for (extent, mask) in other.iter() {
            self.add_mask(extent, mask);
        }
    }

    /// Removes every chunk of `other`.
    pub fn subtract(&mut self, other: &ChunkMap) {
        for (extent, mask) in other.iter() {
            self.remove_mask(extent, mask);
        }
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        self.extents.clear();
        self.chunks = 0;
    }

    /// Extents with their chunks, in rising order.
    pub fn iter(&self) -> impl Iterator<Item = (ExtentNo, ChunkMask)> + '_ {
        self.extents.iter().map(|(e, m)| (*e, *m))
    }

    /// Extents from `from` on with their chunks, in rising order.
    pub fn iter_from(&self, from: ExtentNo) -> impl Iterator<Item = (ExtentNo, ChunkMask)> + '_ {
        self.extents.range(from..).map(|(e, m)| (*e, *m))
    }

    /// The lowest extent with a chunk in the set.
    pub fn first(&self) -> Option<(ExtentNo, ChunkMask)> {
        self.extents.first_key_value().map(|(e, m)| (*e, *m))
    }
}

/// The blocks of chunk `chunk` (0 to 63) of an extent.
pub fn chunk_range(extent: ExtentNo, chunk: u32) -> BlockRange {
    debug_assert!(
        chunk < EXTENT_CHUNKS,
        "chunk {chunk} of an extent of {EXTENT_CHUNKS}"
    );
    BlockRange::new(
        Lba(extent.first().0 + u64::from(chunk * CHUNK_BLOCKS)),
        Blocks(CHUNK_BLOCKS),
    )
}

/// The set bits of a mask as runs `(first chunk, number of chunks)` in rising order.
pub fn runs(mask: ChunkMask) -> impl Iterator<Item = (u32, u32)> {
    let mut rest = mask;
    core::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let first = rest.trailing_zeros();
        let len = (rest >> first).trailing_ones();
        rest = if first + len >= 64 {
            0
        } else {
            rest & (u64::MAX << (first + len))
        };
        Some((first, len))
    })
}

/// The parts of a run of blocks, none of which crosses an extent.
pub fn split_at_extents(range: BlockRange) -> impl Iterator<Item = BlockRange> {
    let mut next = range.start;
    let end = range.end();
    core::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let stop = end.min(ExtentNo(next.extent().0.saturating_add(1)).first());
        let part = BlockRange::new(next, Blocks(u32::try_from(stop.0 - next.0).unwrap_or(0)));
        next = stop;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn runs_names_each_run_once() {
        assert_eq!(runs(0).count(), 0);
        assert_eq!(runs(u64::MAX).collect::<Vec<_>>(), vec![(0, 64)]);
        assert_eq!(
            runs(0b1011_0001).collect::<Vec<_>>(),
            vec![(0, 1), (4, 2), (7, 1)]
        );
        assert_eq!(runs(1 << 63).collect::<Vec<_>>(), vec![(63, 1)]);
    }

    #[test]
    fn a_range_over_extents_is_split_at_each_border() {
        let parts: Vec<_> = split_at_extents(BlockRange::new(Lba(1020), Blocks(2000))).collect();
        assert_eq!(parts[0], BlockRange::new(Lba(1020), Blocks(4)));
        assert_eq!(parts[1], BlockRange::new(Lba(1024), Blocks(1024)));
        assert_eq!(parts[2], BlockRange::new(Lba(2048), Blocks(972)));
        assert_eq!(parts.len(), 3);
    }

    #[test]
    fn chunk_masks_cover_what_they_touch() {
        assert_eq!(BlockRange::new(Lba(0), Blocks(1024)).chunk_mask(), u64::MAX);
        assert_eq!(BlockRange::new(Lba(15), Blocks(2)).chunk_mask(), 0b11);
        assert_eq!(BlockRange::new(Lba(15), Blocks(2)).whole_chunk_mask(), 0);
        assert_eq!(
            BlockRange::new(Lba(15), Blocks(18)).whole_chunk_mask(),
            0b10
        );
        assert_eq!(BlockRange::new(Lba(1023), Blocks(1)).chunk_mask(), 1 << 63);
    }

    #[test]
    fn counts_follow_every_change() {
        let mut map = ChunkMap::new();
        map.add_range(BlockRange::new(Lba(1008), Blocks(32)));
        assert_eq!(map.chunk_count(), 2);
        assert_eq!(map.extent_count(), 2);
        map.remove_mask(ExtentNo(0), u64::MAX);
        assert_eq!(map.chunk_count(), 1);
        map.add_mask(ExtentNo(1), 1);
        assert_eq!(map.chunk_count(), 1);
        map.set_mask(ExtentNo(1), 0);
        assert!(map.is_empty());
    }
}
