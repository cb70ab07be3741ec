//! The chunk maps of an open store: in memory, mirrored in the words, and journaled.
//!
//! Word layout, behind the window: for each map a summary (one bit per group of 64 extents), then
//! for each map one word per extent. A group whose summary bit is clear counts as all zero whatever
//! its words hold, so that nothing must be cleared at start and untouched groups cost no memory.

use super::limits::MAPS;
use super::record::MapId;
use super::window::words_before_maps;
use alloc::collections::BTreeSet;
use trilith_block::{ChunkMap, ChunkMask, ExtentNo, Words};

const GROUP_EXTENTS: usize = 64;

/// Places in the words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapWords {
    summaries_at: usize,
    summary_words: usize,
    masks_at: usize,
    map_words: usize,
}

impl MapWords {
    pub(crate) fn new(window_slots: u32, extents: u32) -> MapWords {
        let groups = usize::try_from(extents)
            .unwrap_or(0)
            .div_ceil(GROUP_EXTENTS);
        let summary_words = groups.div_ceil(64);
        let summaries_at = words_before_maps(window_slots);
        MapWords {
            summaries_at,
            summary_words,
            masks_at: summaries_at + MAPS * summary_words,
            map_words: groups * GROUP_EXTENTS,
        }
    }

    /// Words that window and maps take.
    pub(crate) fn total(&self) -> usize {
        self.masks_at + MAPS * self.map_words
    }

    fn summary(&self, map: MapId, group: usize) -> usize {
        self.summaries_at + map.index() * self.summary_words + group / 64
    }

    fn mask(&self, map: MapId, extent: usize) -> usize {
        self.masks_at + map.index() * self.map_words + extent
    }

    fn store(&self, words: &mut dyn Words, map: MapId, extent: ExtentNo, mask: ChunkMask) {
        let extent = usize::try_from(extent.0).unwrap_or(0);
        let group = extent / GROUP_EXTENTS;
        let summary_at = self.summary(map, group);
        let summary = words.load(summary_at);
        let bit = 1u64 << (group % 64);
        if summary & bit == 0 {
            // Zeroes before the summary bit: a process killed in between leaves an empty group.
            let first = self.mask(map, group * GROUP_EXTENTS);
            for at in first..first + GROUP_EXTENTS {
                words.store(at, 0);
            }
            words.store(summary_at, summary | bit);
        }
        words.store(self.mask(map, extent), mask);
    }

    fn clear_map(&self, words: &mut dyn Words, map: MapId) {
        for at in 0..self.summary_words {
            words.store(self.summaries_at + map.index() * self.summary_words + at, 0);
        }
    }

    fn load(&self, words: &dyn Words, map: MapId, extents: u32, target: &mut ChunkMap) {
        target.clear();
        for at in 0..self.summary_words {
            let mut rest = words.load(self.summaries_at + map.index() * self.summary_words + at);
            while rest != 0 {
                let group = at * 64 + usize::try_from(rest.trailing_zeros()).unwrap_or(0);
                rest &= rest - 1;
                for extent in group * GROUP_EXTENTS..(group + 1) * GROUP_EXTENTS {
                    let Ok(number) = u32::try_from(extent) else {
                        continue;
                    };
                    if number < extents {
                        target.set_mask(ExtentNo(number), words.load(self.mask(map, extent)));
                    }
                }
            }
        }
    }
}

/// All maps of a store.
#[derive(Debug)]
pub(crate) struct Maps {
    maps: [ChunkMap; MAPS],
    at: MapWords,
    /// Masks that differ from what the journal has, and that nobody waits for.
    changed: BTreeSet<(ExtentNo, MapId)>,
}

impl Maps {
    /// The maps as the metadata has them; the words take them over.
    pub(crate) fn from_image(maps: [ChunkMap; MAPS], at: MapWords, words: &mut dyn Words) -> Maps {
        for map in MapId::all() {
            at.clear_map(words, map);
            for (extent, mask) in maps[map.index()].iter() {
                at.store(words, map, extent, mask);
            }
        }
        Maps {
            maps,
            at,
            changed: BTreeSet::new(),
        }
    }

    /// The maps as the words have them (same boot).
    pub(crate) fn from_words(at: MapWords, extents: u32, words: &dyn Words) -> Maps {
        let mut maps: [ChunkMap; MAPS] = core::array::from_fn(|_| ChunkMap::new());
        for map in MapId::all() {
            at.load(words, map, extents, &mut maps[map.index()]);
        }
        Maps {
            maps,
            at,
            changed: BTreeSet::new(),
        }
    }

    pub(crate) fn get(&self, map: MapId) -> &ChunkMap {
        &self.maps[map.index()]
    }

    pub(crate) fn mask(&self, map: MapId, extent: ExtentNo) -> ChunkMask {
        self.maps[map.index()].mask(extent)
    }

    /// Replaces a mask in memory and words. True when it changed.
    pub(crate) fn set(
        &mut self,
        map: MapId,
        extent: ExtentNo,
        mask: ChunkMask,
        words: &mut dyn Words,
    ) -> bool {
        if self.mask(map, extent) == mask {
            return false;
        }
        self.at.store(words, map, extent, mask);
        self.maps[map.index()].set_mask(extent, mask);
        self.changed.insert((extent, map));
        true
    }

    pub(crate) fn add(
        &mut self,
        map: MapId,
        extent: ExtentNo,
        mask: ChunkMask,
        words: &mut dyn Words,
    ) -> bool {
        let old = self.mask(map, extent);
        old | mask != old && self.set(map, extent, old | mask, words)
    }

    pub(crate) fn remove(
        &mut self,
        map: MapId,
        extent: ExtentNo,
        mask: ChunkMask,
        words: &mut dyn Words,
    ) -> bool {
        let old = self.mask(map, extent);
        old & mask != 0 && self.set(map, extent, old & !mask, words)
    }

    /// Empties a map whose durable emptying is told otherwise.
    pub(crate) fn clear(&mut self, map: MapId, words: &mut dyn Words) {
        self.at.clear_map(words, map);
        self.maps[map.index()].clear();
        self.changed.retain(|(_, m)| *m != map);
    }

    /// The mask as the journal is about to have it.
    pub(crate) fn journaled(&mut self, map: MapId, extent: ExtentNo) -> ChunkMask {
        self.changed.remove(&(extent, map));
        self.mask(map, extent)
    }

    /// Maps of an extent that differ from the journal.
    pub(crate) fn changed_of(&self, extent: ExtentNo) -> impl Iterator<Item = MapId> + '_ {
        self.changed
            .range((extent, MapId(0))..=(extent, MapId(u8::MAX)))
            .map(|(_, map)| *map)
    }

    /// Everything that differs from the journal.
    pub(crate) fn changed(&self) -> impl Iterator<Item = (ExtentNo, MapId)> + '_ {
        self.changed.iter().copied()
    }
}
