//! Which chunks are copied next: hinted ones first, else in rising order round and round, adjacent
//! ones of an extent together. Chunks being copied and chunks whose copy just failed are passed by;
//! the latter are later copied one by one.

use super::HOT_MAX;
use alloc::collections::VecDeque;
use trilith_block::chunks::{chunk_range, split_at_extents};
use trilith_block::limits::{BLOCK_SHIFT, CHUNK_BYTES, EXTENT_CHUNKS};
use trilith_block::{BlockRange, Blocks, ChunkMap, ChunkMask, ExtentNo, Lba, Monotonic};

#[derive(Debug)]
pub(super) struct Picker {
    capacity: Lba,
    dirty: ChunkMap,
    /// Being copied.
    busy: ChunkMap,
    /// Not before `deferred_until`.
    deferred: ChunkMap,
    deferred_until: Monotonic,
    /// Their copy failed: copied alone, so that a busy chunk holds up no other.
    single: ChunkMap,
    hot: VecDeque<BlockRange>,
    /// First chunk to look at.
    cursor: (ExtentNo, u32),
}

impl Picker {
    pub(super) fn new(mut dirty: ChunkMap, capacity_bytes: u64) -> Picker {
        let capacity = Lba(capacity_bytes >> BLOCK_SHIFT);
        crate::recovery::clip(&mut dirty, capacity.0);
        Picker {
            capacity,
            dirty,
            busy: ChunkMap::new(),
            deferred: ChunkMap::new(),
            deferred_until: Monotonic(0),
            single: ChunkMap::new(),
            hot: VecDeque::with_capacity(HOT_MAX),
            cursor: (ExtentNo(0), 0),
        }
    }

    pub(super) fn dirty(&self) -> &ChunkMap {
        &self.dirty
    }

    pub(super) fn into_dirty(self) -> ChunkMap {
        self.dirty
    }

    pub(super) fn mark(&mut self, range: BlockRange) {
        debug_assert!(
            range.end() <= self.capacity,
            "{range:?} is beyond {:?}",
            self.capacity
        );
        self.dirty.add_range(range);
    }

    pub(super) fn hint(&mut self, range: BlockRange) {
        if self.hot.len() < HOT_MAX && self.dirty.touches(range) {
            self.hot.push_back(range);
        }
    }

    /// The copy of this range succeeded.
    pub(super) fn copied(&mut self, range: BlockRange) {
        let (extent, mask) = (range.start.extent(), range.chunk_mask());
        self.busy.remove_mask(extent, mask);
        self.dirty.remove_mask(extent, mask);
        self.single.remove_mask(extent, mask);
    }

    /// The copy of this range brought nothing: not again before `until`.
    pub(super) fn failed(&mut self, range: BlockRange, until: Monotonic) {
        let (extent, mask) = (range.start.extent(), range.chunk_mask());
        self.busy.remove_mask(extent, mask);
        if self.deferred.is_empty() {
            self.deferred_until = until;
        }
        self.deferred.add_mask(extent, mask);
        self.single.add_mask(extent, mask);
    }

    pub(super) fn undefer(&mut self, now: Monotonic) {
        if self.deferred_until <= now {
            self.deferred.clear();
        }
    }

    pub(super) fn deferred_until(&self) -> Option<Monotonic> {
        (!self.deferred.is_empty()).then_some(self.deferred_until)
    }

    /// True when a pick would find something. Cost: linear in the extents being copied or deferred.
    pub(super) fn has_ready(&self) -> bool {
        self.dirty
            .iter()
            .any(|(extent, mask)| mask & !self.passed_by(extent) != 0)
    }

    fn passed_by(&self, extent: ExtentNo) -> ChunkMask {
        self.busy.mask(extent) | self.deferred.mask(extent)
    }

    fn ready(&self, extent: ExtentNo) -> ChunkMask {
        self.dirty.mask(extent) & !self.passed_by(extent)
    }

    /// Takes the next run of at most `bytes_max` bytes (at least a chunk) and marks it busy.
    pub(super) fn pick(&mut self, bytes_max: u32) -> Option<BlockRange> {
        let longest = (bytes_max / CHUNK_BYTES).clamp(1, EXTENT_CHUNKS);
        while let Some(hint) = self.hot.pop_front() {
            for part in split_at_extents(hint) {
                let extent = part.start.extent();
                let hot = self.ready(extent) & part.chunk_mask();
                if hot != 0 {
                    // The rest of the hint is looked at again.
                    self.hot.push_front(hint);
                    return Some(self.take(extent, hot, longest));
                }
            }
        }
        let (extent, chunk) = self.cursor;
        let rest = self.ready(extent) & (ChunkMask::MAX << chunk);
        let found = if rest != 0 {
            Some((extent, rest))
        } else {
            let after = ExtentNo(extent.0.saturating_add(1));
            let ready = |(extent, mask)| (extent, mask & !self.passed_by(extent));
            let first = self
                .dirty
                .iter_from(after)
                .map(ready)
                .find(|(_, mask)| *mask != 0);
            first.or_else(|| self.dirty.iter().map(ready).find(|(_, mask)| *mask != 0))
        };
        let (extent, mask) = found?;
        let range = self.take(extent, mask, longest);
        let next = mask.trailing_zeros() + range.chunk_mask().count_ones();
        self.cursor = if next < EXTENT_CHUNKS {
            (extent, next)
        } else {
            (ExtentNo(extent.0.saturating_add(1)), 0)
        };
        Some(range)
    }

    fn take(&mut self, extent: ExtentNo, mask: ChunkMask, longest: u32) -> BlockRange {
        let first = mask.trailing_zeros();
        let single = self.single.mask(extent);
        let count = if single >> first & 1 == 1 {
            1
        } else {
            ((mask & !single) >> first).trailing_ones().min(longest)
        };
        let start = chunk_range(extent, first).start;
        let end = chunk_range(extent, first + count - 1)
            .end()
            .min(self.capacity);
        let blocks = Blocks(u32::try_from(end.0 - start.0).unwrap_or(0));
        let range = BlockRange::new(start, blocks);
        self.busy.add_mask(extent, range.chunk_mask());
        range
    }
}
