//! Which live entry is the newest at each block. Since overlapping entries are accepted in order on
//! each replica (O1), a replica that accepted the newest one accepted all before it, and a committed
//! newest one means that all before it are committed.

use alloc::collections::BTreeMap;
use trilith_block::{BlockRange, Blocks, Idx, Lba};

/// Disjoint runs of blocks with the newest entry of each.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    /// By first block: block after the last, entry.
    runs: BTreeMap<Lba, (Lba, Idx)>,
}

impl Spans {
    /// `idx` is the newest entry at `range` now.
    pub(crate) fn insert(&mut self, range: BlockRange, idx: Idx) {
        self.cut(range);
        self.runs.insert(range.start, (range.end(), idx));
    }

    /// Takes `range` out of all runs.
    fn cut(&mut self, range: BlockRange) {
        let (start, end) = (range.start, range.end());
        if let Some((&first, &(stop, idx))) = self.runs.range(..start).next_back()
            && stop > start
        {
            self.runs.insert(first, (start, idx));
            if stop > end {
                self.runs.insert(end, (stop, idx));
            }
        }
        while let Some((&first, &(stop, idx))) = self.runs.range(start..end).next() {
            self.runs.remove(&first);
            if stop > end {
                self.runs.insert(end, (stop, idx));
            }
        }
    }

    /// Entry `idx`, which was inserted for `range`, is not live any more.
    pub(crate) fn remove(&mut self, range: BlockRange, idx: Idx) {
        let mut from = range.start;
        while from < range.end() {
            let Some((&first, &(stop, found))) = self.runs.range(from..range.end()).next() else {
                return;
            };
            if found == idx {
                self.runs.remove(&first);
            }
            from = stop;
        }
    }

    /// The newest entries at the blocks of `range`, by rising address. An entry may come twice.
    pub(crate) fn overlapping(
        &self,
        range: BlockRange,
    ) -> impl Iterator<Item = (BlockRange, Idx)> + '_ {
        let before = self.runs.range(..range.start).next_back();
        let before = before.filter(move |(_, (stop, _))| *stop > range.start);
        before
            .into_iter()
            .chain(self.runs.range(range.start..range.end()))
            .map(|(first, (stop, idx))| {
                let count = u32::try_from(stop.0 - first.0).unwrap_or(u32::MAX);
                (BlockRange::new(*first, Blocks(count)), *idx)
            })
    }

    pub(crate) fn clear(&mut self) {
        self.runs.clear();
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn the_newest_entry_of_each_block_is_found_like_in_an_array() {
        let mut rng = crate::rng::Rng::new(&[7; 32]);
        let mut pick = |n: u64| rng.next() % n;
        let index = |lba: Lba| usize::try_from(lba.0).unwrap();
        let at = |run: BlockRange| index(run.start)..index(run.end());
        let mut spans = Spans::default();
        let mut model = vec![None; 64];
        let mut live: Vec<(BlockRange, Idx)> = Vec::new();
        for step in 1..5000u64 {
            if pick(3) > 0 || live.is_empty() {
                let start = pick(60);
                let count = u32::try_from(1 + pick(64 - start)).unwrap();
                let range = BlockRange::new(Lba(start), Blocks(count));
                spans.insert(range, Idx(step));
                model[at(range)].fill(Some(Idx(step)));
                live.push((range, Idx(step)));
            } else {
                let which = usize::try_from(pick(live.len() as u64)).unwrap();
                let (range, idx) = live.remove(which);
                spans.remove(range, idx);
                for block in &mut model {
                    if *block == Some(idx) {
                        *block = None;
                    }
                }
            }
            let mut found = vec![None; 64];
            for (run, idx) in spans.overlapping(BlockRange::new(Lba(0), Blocks(64))) {
                found[at(run)].fill(Some(idx));
            }
            assert_eq!(found, model, "after step {step}");
        }
        for (range, idx) in live {
            spans.remove(range, idx);
        }
        assert!(spans.is_empty());
    }
}
