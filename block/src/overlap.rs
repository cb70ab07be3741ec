//! Order among overlapping ranges. An entry that overlaps earlier ones waits until all of them are
//! gone; an entry holds its whole range until it is removed (rule O1). Ranges never cross an
//! extent, so each extent is looked at alone.

use crate::units::{BlockRange, ExtentNo};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

#[derive(Clone, Copy, Debug)]
struct Live {
    key: u64,
    range: BlockRange,
    /// Earlier live ranges that overlap this one.
    blockers: u32,
}

/// Live ranges in insertion order. Keys are the caller's and unique among live ranges.
#[derive(Debug, Default)]
pub struct Overlap {
    extents: BTreeMap<ExtentNo, Vec<Live>>,
    spare: Vec<Vec<Live>>,
    count: usize,
}

impl Overlap {
    /// No live range.
    pub fn new() -> Overlap {
        Overlap::default()
    }

    /// Number of live ranges.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True when no range is live.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a range behind all live ones. Returns true when nothing blocks it. Cost: linear in the
    /// live ranges of the extent.
    pub fn insert(&mut self, key: u64, range: BlockRange) -> bool {
        debug_assert!(range.in_one_extent(), "range {range:?} crosses an extent");
        let spare = &mut self.spare;
        let lives = self
            .extents
            .entry(range.start.extent())
            .or_insert_with(|| spare.pop().unwrap_or_default());
        let mut blockers = 0;
        for live in lives.iter() {
            debug_assert!(live.key != key, "key {key} is already live");
            if live.range.overlaps(range) {
                blockers += 1;
            }
        }
        lives.push(Live {
            key,
            range,
            blockers,
        });
        self.count += 1;
        blockers == 0
    }

    /// Removes a range and appends the keys of those that nothing blocks any more to `freed`, in
    /// insertion order. A key that is not live is ignored.
    pub fn remove(&mut self, key: u64, range: BlockRange, freed: &mut Vec<u64>) {
        let extent = range.start.extent();
        let Some(lives) = self.extents.get_mut(&extent) else {
            return;
        };
        let Some(at) = lives.iter().position(|live| live.key == key) else {
            return;
        };
        let gone = lives.remove(at);
        self.count -= 1;
        for live in lives.iter_mut().skip(at) {
            if live.range.overlaps(gone.range) {
                live.blockers -= 1;
                if live.blockers == 0 {
                    freed.push(live.key);
                }
            }
        }
        if lives.is_empty()
            && let Some(empty) = self.extents.remove(&extent)
        {
            self.spare.push(empty);
        }
    }

    /// Keys of the live ranges that overlap `range`, in insertion order. The range must not cross
    /// an extent.
    pub fn overlapping(&self, range: BlockRange) -> impl Iterator<Item = u64> + '_ {
        self.extents
            .get(&range.start.extent())
            .into_iter()
            .flatten()
            .filter(move |live| live.range.overlaps(range))
            .map(|live| live.key)
    }

    /// True when a live range is in the extent.
    pub fn busy(&self, extent: ExtentNo) -> bool {
        self.extents.contains_key(&extent)
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        self.extents.clear();
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Blocks, Lba};
    use std::vec;

    fn range(start: u64, count: u32) -> BlockRange {
        BlockRange::new(Lba(start), Blocks(count))
    }

    #[test]
    fn an_entry_waits_for_all_earlier_overlapping_ones() {
        let mut overlap = Overlap::new();
        let mut freed = Vec::new();
        assert!(overlap.insert(1, range(0, 2)));
        assert!(overlap.insert(2, range(2, 2)));
        assert!(!overlap.insert(3, range(1, 2)));
        assert!(!overlap.insert(4, range(1, 1)));
        overlap.remove(1, range(0, 2), &mut freed);
        assert!(freed.is_empty(), "3 still waits for 2, 4 for 3");
        overlap.remove(2, range(2, 2), &mut freed);
        assert_eq!(freed, vec![3]);
        freed.clear();
        overlap.remove(3, range(1, 2), &mut freed);
        assert_eq!(freed, vec![4]);
        overlap.remove(4, range(1, 1), &mut freed);
        assert!(overlap.is_empty());
        assert!(!overlap.busy(ExtentNo(0)));
    }
}
