//! Which live entry is the newest at each block. Since overlapping entries are accepted in order on
//! each replica (O1), a replica that accepted the newest one accepted all before it, and a committed
//! newest one means that all before it are committed.

use crate::limits::SPAN_BUCKETS;
use alloc::vec::Vec;
use trilith_block::chunks::split_at_extents;
use trilith_block::{BlockRange, Blocks, ExtentNo, Idx, Lba};

/// Some blocks and the newest entry there.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: Lba,
    /// Block after the last.
    end: Lba,
    idx: Idx,
}

/// Disjoint runs of blocks with the newest entry of each. No run crosses an extent.
#[derive(Debug)]
pub(crate) struct Spans {
    /// By extent, each by rising address. Lists keep their memory: an entry costs no allocation.
    buckets: Vec<Vec<Run>>,
}

impl Default for Spans {
    fn default() -> Spans {
        Spans {
            buckets: (0..SPAN_BUCKETS).map(|_| Vec::new()).collect(),
        }
    }
}

fn bucket_of(extent: ExtentNo) -> usize {
    usize::try_from(extent.0).unwrap_or(0) % SPAN_BUCKETS
}

/// Place of the first run that ends behind `start`.
fn first_behind(runs: &[Run], start: Lba) -> usize {
    runs.partition_point(|run| run.end <= start)
}

impl Spans {
    /// `idx` is the newest entry at `range` now. The range must not cross an extent.
    pub(crate) fn insert(&mut self, range: BlockRange, idx: Idx) {
        debug_assert!(range.in_one_extent(), "range {range:?} crosses an extent");
        let (start, end) = (range.start, range.end());
        let runs = &mut self.buckets[bucket_of(start.extent())];
        let from = first_behind(runs, start);
        let new = Run { start, end, idx };
        let covered = runs[from..].iter().take_while(|run| run.start < end);
        let to = from + covered.count();
        if from == to {
            runs.insert(from, new);
            return;
        }
        let (first, last) = (runs[from], runs[to - 1]);
        let left = (first.start < start).then_some(Run {
            end: start,
            ..first
        });
        let right = (end < last.end).then_some(Run { start: end, ..last });
        let pieces = left.into_iter().chain([new]).chain(right);
        drop(runs.splice(from..to, pieces));
    }

    /// Entry `idx`, which was inserted for `range`, is not live any more.
    pub(crate) fn remove(&mut self, range: BlockRange, idx: Idx) {
        let runs = &mut self.buckets[bucket_of(range.start.extent())];
        let mut at = first_behind(runs, range.start);
        while runs.get(at).is_some_and(|run| run.start < range.end()) {
            if runs[at].idx == idx {
                runs.remove(at);
            } else {
                at += 1;
            }
        }
    }

    /// The newest entries at the blocks of `range`, by rising address. An entry may come twice.
    pub(crate) fn overlapping(
        &self,
        range: BlockRange,
    ) -> impl Iterator<Item = (BlockRange, Idx)> + '_ {
        split_at_extents(range).flat_map(move |part| {
            let runs = &self.buckets[bucket_of(part.start.extent())];
            runs[first_behind(runs, part.start)..]
                .iter()
                .take_while(move |run| run.start < part.end())
                .map(|run| {
                    let count = u32::try_from(run.end.0 - run.start.0).unwrap_or(u32::MAX);
                    (BlockRange::new(run.start, Blocks(count)), run.idx)
                })
        })
    }

    pub(crate) fn clear(&mut self) {
        for runs in &mut self.buckets {
            runs.clear();
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.buckets.iter().all(Vec::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    /// The blocks looked at: around a border of extents.
    const FIRST: u64 = 1024 - 32;

    #[test]
    fn the_newest_entry_of_each_block_is_found_like_in_an_array() {
        let mut rng = crate::rng::Rng::new(&[7; 32]);
        let mut pick = |n: u64| rng.next() % n;
        let index = |lba: Lba| usize::try_from(lba.0 - FIRST).unwrap();
        let at = |run: BlockRange| index(run.start)..index(run.end());
        let mut spans = Spans::default();
        // It shares a list with the lower extent.
        let stranger = ExtentNo(u32::try_from(SPAN_BUCKETS).unwrap());
        spans.insert(BlockRange::new(stranger.first(), Blocks(1024)), Idx(9999));
        let mut model = vec![None; 64];
        let mut live: Vec<(BlockRange, Idx)> = Vec::new();
        for step in 1..5000u64 {
            if pick(3) > 0 || live.is_empty() {
                let start = pick(64);
                let end = if start < 32 { 32 } else { 64 };
                let count = u32::try_from(1 + pick(end - start)).unwrap();
                let range = BlockRange::new(Lba(FIRST + start), Blocks(count));
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
            for (run, idx) in spans.overlapping(BlockRange::new(Lba(FIRST), Blocks(64))) {
                found[at(run)].fill(Some(idx));
            }
            assert_eq!(found, model, "after step {step}");
        }
        for (range, idx) in live {
            spans.remove(range, idx);
        }
        let rest = BlockRange::new(stranger.first(), Blocks(1024));
        assert_eq!(
            spans.overlapping(rest).collect::<Vec<_>>(),
            [(rest, Idx(9999))]
        );
        spans.remove(rest, Idx(9999));
        assert!(spans.is_empty());
    }
}
