//! The rebuild step by step, and random interleavings against a source and a target in memory.

use super::*;
use crate::recovery::testing::{Pool, Rng, chunks, range};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec;
use trilith_block::chunks::chunk_range;
use trilith_block::{ExtentNo, Lba};

const CAPACITY_BLOCKS: u64 = 2 * 1024 + 40;

fn config() -> RebuildConfig {
    RebuildConfig {
        capacity_bytes: CAPACITY_BLOCKS * 4096,
        copies_max: 4,
        copy_bytes_max: 256 * 1024,
        rate: RateConfig {
            bytes_per_second_min: 1 << 30,
            bytes_per_second_max: 1 << 30,
        },
        ..RebuildConfig::default()
    }
}

fn ms(ms: u64) -> Monotonic {
    Monotonic(ms * 1_000_000)
}

struct Bench {
    rebuild: Rebuild,
    pool: Pool,
    out: Vec<RebuildStep>,
    now: Monotonic,
}

impl Bench {
    fn new(config: RebuildConfig, dirty: &[BlockRange]) -> Bench {
        let rebuild = Rebuild::new(config, chunks(dirty), ms(0), Duration::from_millis(1));
        Bench {
            rebuild,
            pool: Pool::default(),
            out: Vec::new(),
            now: ms(0),
        }
    }

    fn settle(&mut self, now: Monotonic) -> Vec<RebuildStep> {
        self.now = now;
        self.rebuild.settle(now, &mut self.out);
        core::mem::take(&mut self.out)
    }

    fn event(&mut self, event: RebuildEvent) -> Vec<RebuildStep> {
        self.rebuild
            .event(self.now, event, &mut self.pool, &mut self.out);
        core::mem::take(&mut self.out)
    }

    fn read_zero(&mut self, token: u64) -> Vec<RebuildStep> {
        self.event(RebuildEvent::ReadDone {
            token,
            result: Ok(CopyData::Zero),
        })
    }

    fn copied(&mut self, token: u64, status: EntryStatus) -> Vec<RebuildStep> {
        self.event(RebuildEvent::CopyDone { token, status })
    }

    /// Grants, reads zeroes and acknowledges every copy until nothing starts any more.
    fn finish(&mut self, now: Monotonic) -> Vec<BlockRange> {
        let mut ranges = Vec::new();
        loop {
            let locks = locks(&self.settle(now));
            if locks.is_empty() {
                return ranges;
            }
            for (token, range) in locks {
                self.event(RebuildEvent::LockGranted(token));
                self.read_zero(token);
                self.copied(token, EntryStatus::Done);
                ranges.push(range);
            }
        }
    }
}

fn locks(steps: &[RebuildStep]) -> Vec<(u64, BlockRange)> {
    let of = |s: &RebuildStep| match s {
        RebuildStep::Lock { token, range } => Some((*token, *range)),
        _ => None,
    };
    steps.iter().filter_map(of).collect()
}

#[test]
fn a_copy_is_lock_read_repair_unlock() {
    let mut bench = Bench::new(config(), &[range(16, 16)]);
    assert_eq!(
        bench.settle(ms(0)),
        [RebuildStep::Lock {
            token: 1,
            range: range(16, 16)
        }]
    );
    let read = RebuildStep::Read {
        token: 1,
        range: range(16, 16),
    };
    assert_eq!(bench.event(RebuildEvent::LockGranted(1)), [read]);
    let slice = bench.pool.filled(&[9; 16]);
    let result = Ok(CopyData::Bytes(slice));
    let copy = RebuildStep::Copy {
        token: 1,
        range: range(16, 16),
        data: Some(slice),
    };
    assert_eq!(
        bench.event(RebuildEvent::ReadDone { token: 1, result }),
        [copy]
    );
    assert!(
        !bench.rebuild.dirty().is_empty(),
        "not before the target has it"
    );
    assert_eq!(
        bench.copied(1, EntryStatus::Done),
        [RebuildStep::Unlock { token: 1 }]
    );
    assert!(bench.rebuild.dirty().is_empty());
    assert_eq!(bench.settle(ms(1)), [RebuildStep::Done]);
    assert!(bench.settle(ms(2)).is_empty(), "told once");
    assert_eq!(bench.rebuild.bytes_copied(), 65536);
}

#[test]
fn nothing_dirty_is_done_at_once() {
    let mut bench = Bench::new(config(), &[]);
    assert_eq!(bench.settle(ms(0)), [RebuildStep::Done]);
    assert_eq!(bench.rebuild.deadline(), None);
}

#[test]
fn chunks_are_merged_in_rising_order_within_an_extent_and_clipped_at_the_end() {
    let dirty = [
        range(0, 96),
        range(1008, 32),
        range(2048, 40),
        range(2080, 1 << 12),
    ];
    let mut bench = Bench::new(config(), &dirty);
    let got = bench.finish(ms(0));
    let want = [
        range(0, 64),
        range(64, 32),
        range(1008, 16),
        range(1024, 16),
        range(2048, 40),
    ];
    assert_eq!(got, want);
}

#[test]
fn hot_ranges_come_first() {
    let mut bench = Bench::new(
        RebuildConfig {
            copies_max: 1,
            ..config()
        },
        &[range(0, 2048)],
    );
    bench.rebuild.hint_hot(range(600, 100));
    bench.rebuild.hint_hot(range(2048, 1));
    let got = bench.finish(ms(0));
    assert_eq!(got[..3], [range(592, 64), range(656, 48), range(0, 64)]);
    let blocks: u32 = got.iter().map(|r| r.count.0).sum();
    assert_eq!(blocks, 2048, "each chunk once");
}

#[test]
fn copies_in_flight_are_bounded() {
    let mut bench = Bench::new(config(), &[range(0, 2048)]);
    assert_eq!(locks(&bench.settle(ms(0))).len(), 4);
    bench.event(RebuildEvent::LockGranted(1));
    assert!(bench.settle(ms(1)).is_empty());
    bench.read_zero(1);
    assert!(bench.settle(ms(2)).is_empty());
    bench.copied(1, EntryStatus::Done);
    assert_eq!(locks(&bench.settle(ms(3))).len(), 1);
}

#[test]
fn a_lock_is_given_back_in_time_and_the_copy_counts_if_nothing_touched_it() {
    for touched in [false, true] {
        let mut bench = Bench::new(config(), &[range(0, 16)]);
        bench.settle(ms(0));
        bench.now = ms(10);
        bench.event(RebuildEvent::LockGranted(1));
        bench.read_zero(1);
        assert_eq!(bench.rebuild.deadline(), Some(ms(60)));
        assert!(bench.settle(ms(59)).is_empty());
        assert_eq!(
            bench.settle(ms(60)),
            [RebuildStep::Unlock { token: 1 }],
            "M4"
        );
        if touched {
            assert_eq!(bench.rebuild.route(range(3, 1)), Route::HeaderOnly);
        } else {
            assert_eq!(bench.rebuild.route(range(16, 1)), Route::Full);
        }
        assert!(
            bench.copied(1, EntryStatus::Done).is_empty(),
            "no second unlock"
        );
        assert_eq!(bench.rebuild.dirty().is_empty(), !touched);
        if touched {
            assert!(bench.settle(ms(60)).is_empty(), "a pause");
            assert_eq!(bench.rebuild.deadline(), Some(ms(70)));
            assert_eq!(bench.finish(ms(70)), [range(0, 16)]);
        }
    }
}

#[test]
fn a_stopped_target_stalls_nobody_and_is_asked_no_more() {
    let mut bench = Bench::new(config(), &[range(0, 2048)]);
    for (token, _) in locks(&bench.settle(ms(0))) {
        bench.event(RebuildEvent::LockGranted(token));
        bench.read_zero(token);
    }
    assert_eq!(bench.settle(ms(50)).len(), 4, "all unlocked");
    for at in 51..2000 {
        assert!(bench.settle(ms(at)).is_empty());
    }
    assert_eq!(bench.rebuild.deadline(), None);
}

#[test]
fn a_target_slower_than_the_lock_is_rebuilt_all_the_same() {
    let mut bench = Bench::new(config(), &[range(0, 1024)]);
    let mut now = 0;
    while !bench.rebuild.dirty().is_empty() {
        let started = locks(&bench.settle(ms(now)));
        for (token, _) in &started {
            bench.event(RebuildEvent::LockGranted(*token));
            bench.read_zero(*token);
        }
        bench.settle(ms(now + 50));
        now += 100;
        bench.now = ms(now);
        for (token, _) in started {
            bench.copied(token, EntryStatus::Done);
        }
        assert!(now < 3000, "no progress");
    }
}

#[test]
fn a_header_only_entry_dirties_all_its_chunks_and_takes_them_back_from_progress() {
    let mut bench = Bench::new(config(), &[range(0, 16), range(64, 16)]);
    let tokens = locks(&bench.settle(ms(0)));
    bench.event(RebuildEvent::LockGranted(tokens[0].0));
    bench.read_zero(tokens[0].0);
    bench.copied(tokens[0].0, EntryStatus::Done);
    assert_eq!(
        bench.rebuild.route(range(0, 16)),
        Route::Full,
        "copied: it gets entries"
    );
    // Chunk 0 is copied, chunk 4 is not.
    assert_eq!(bench.rebuild.route(range(10, 60)), Route::HeaderOnly);
    assert!(bench.rebuild.dirty().touches(range(0, 1)));
    assert_eq!(bench.rebuild.dirty().chunk_count(), 5);
}

#[test]
fn progress_is_cleared_after_a_flush_that_came_after_it() {
    let mut bench = Bench::new(config(), &[range(0, 16), range(1024, 16)]);
    let tokens = locks(&bench.settle(ms(0)));
    let copy = |bench: &mut Bench, token| {
        bench.event(RebuildEvent::LockGranted(token));
        bench.read_zero(token);
        bench.copied(token, EntryStatus::Done);
    };
    bench.now = ms(5);
    copy(&mut bench, tokens[0].0);
    assert_eq!(bench.rebuild.deadline(), Some(ms(2005)));
    let flush = bench.settle(ms(2005));
    let [RebuildStep::Flush { token }] = flush[..] else {
        panic!("{flush:?}")
    };
    copy(&mut bench, tokens[1].0);
    assert!(bench.event(RebuildEvent::FlushDone(token + 1)).is_empty());
    assert_eq!(
        bench.event(RebuildEvent::FlushDone(token)),
        [RebuildStep::DirtyClear]
    );
    let mut cleared = chunks(&[range(512, 1)]);
    bench.rebuild.take_cleared(&mut cleared);
    assert_eq!(
        cleared,
        chunks(&[range(0, 16)]),
        "the second copy came after the flush"
    );
    assert_eq!(
        bench.rebuild.into_dirty(),
        chunks(&[range(1024, 16)]),
        "not durable yet"
    );
}

#[test]
fn enough_bytes_ask_for_a_flush_at_once() {
    let config = RebuildConfig {
        clear_bytes: 128 * 1024,
        ..config()
    };
    let mut bench = Bench::new(config, &[range(0, 16), range(64, 16)]);
    let mut steps = Vec::new();
    for (token, _) in locks(&bench.settle(ms(0))) {
        assert!(steps.is_empty());
        bench.event(RebuildEvent::LockGranted(token));
        bench.read_zero(token);
        bench.copied(token, EntryStatus::Done);
        steps = bench.settle(ms(1));
    }
    assert!(matches!(steps[0], RebuildStep::Flush { .. }), "{steps:?}");
}

#[test]
fn a_chunk_dirtied_after_its_copy_is_not_cleared() {
    let mut bench = Bench::new(config(), &[range(0, 16)]);
    bench.finish(ms(0));
    let steps = bench.settle(ms(2000));
    let [RebuildStep::Flush { token }] = steps[..] else {
        panic!("{steps:?}")
    };
    bench.rebuild.mark(range(0, 1));
    assert!(bench.event(RebuildEvent::FlushDone(token)).is_empty());
    assert_eq!(bench.rebuild.into_dirty(), chunks(&[range(0, 1)]));
}

#[test]
fn a_denied_lock_and_a_failed_read_are_tried_again_after_others() {
    let config = RebuildConfig {
        copies_max: 1,
        ..config()
    };
    let mut bench = Bench::new(config, &[range(0, 16), range(64, 16)]);
    bench.settle(ms(0));
    assert!(
        bench.event(RebuildEvent::LockDenied(1)).is_empty(),
        "no lock to give back"
    );
    let next = locks(&bench.settle(ms(0)));
    assert_eq!(next, [(2, range(64, 16))]);
    bench.event(RebuildEvent::LockGranted(2));
    let error = RebuildEvent::ReadDone {
        token: 2,
        result: Err(EntryStatus::Io),
    };
    assert_eq!(bench.event(error), [RebuildStep::Unlock { token: 2 }]);
    assert!(bench.settle(ms(1)).is_empty());
    let retry = bench.rebuild.deadline().unwrap();
    assert_eq!(bench.finish(retry), [range(0, 16), range(64, 16)]);
}

#[test]
fn a_lost_source_ends_reads_and_a_late_answer_is_given_back() {
    let mut bench = Bench::new(config(), &[range(0, 16), range(64, 16)]);
    bench.settle(ms(0));
    bench.event(RebuildEvent::LockGranted(1));
    let steps = bench.event(RebuildEvent::SourceChanged);
    assert_eq!(
        steps,
        [RebuildStep::Unlock { token: 1 }],
        "2 waits for its lock still"
    );
    let slice = bench.pool.filled(&[1; 16]);
    let late = RebuildEvent::ReadDone {
        token: 1,
        result: Ok(CopyData::Bytes(slice)),
    };
    assert!(bench.event(late).is_empty());
    assert_eq!(bench.pool.held(), 0);
    assert_eq!(
        bench.event(RebuildEvent::LockGranted(1)),
        [RebuildStep::Unlock { token: 1 }]
    );
}

#[test]
fn a_short_read_brings_nothing() {
    let mut bench = Bench::new(config(), &[range(0, 16)]);
    bench.settle(ms(0));
    bench.event(RebuildEvent::LockGranted(1));
    let slice = bench.pool.filled(&[1; 15]);
    let short = RebuildEvent::ReadDone {
        token: 1,
        result: Ok(CopyData::Bytes(slice)),
    };
    assert_eq!(bench.event(short), [RebuildStep::Unlock { token: 1 }]);
    assert_eq!(bench.pool.held(), 0);
    assert!(!bench.rebuild.dirty().is_empty());
}

#[test]
fn a_target_that_cannot_write_ends_the_rebuild() {
    for status in [EntryStatus::Io, EntryStatus::NoSpace, EntryStatus::Refused] {
        let mut bench = Bench::new(config(), &[range(0, 16), range(64, 16)]);
        bench.settle(ms(0));
        bench.event(RebuildEvent::LockGranted(1));
        bench.read_zero(1);
        let steps = bench.copied(1, status);
        assert_eq!(
            steps,
            [
                RebuildStep::Unlock { token: 1 },
                RebuildStep::Failed(status)
            ]
        );
        assert!(bench.settle(ms(5000)).is_empty());
    }
    let mut bench = Bench::new(config(), &[range(0, 16)]);
    bench.settle(ms(0));
    bench.event(RebuildEvent::LockGranted(1));
    bench.read_zero(1);
    assert_eq!(
        bench.copied(1, EntryStatus::Checksum),
        [RebuildStep::Unlock { token: 1 }]
    );
    assert_eq!(
        bench.finish(ms(100)),
        [range(0, 16)],
        "damaged on the way: once more"
    );
}

#[test]
fn the_rate_bounds_data_and_zeroes_are_cheap() {
    let rate = RateConfig {
        bytes_per_second_min: 1 << 20,
        bytes_per_second_max: 1 << 20,
    };
    let config = RebuildConfig {
        rate,
        copies_max: 64,
        ..config()
    };
    let time = |zero: bool| {
        let mut bench = Bench::new(config, &[range(0, 2048)]);
        let mut now = ms(0);
        while !bench.rebuild.dirty().is_empty() {
            for (token, range) in locks(&bench.settle(now)) {
                bench.event(RebuildEvent::LockGranted(token));
                let result = if zero {
                    Ok(CopyData::Zero)
                } else {
                    let values = vec![1; range.count.0 as usize];
                    Ok(CopyData::Bytes(bench.pool.filled(&values)))
                };
                for step in bench.event(RebuildEvent::ReadDone { token, result }) {
                    if let RebuildStep::Copy {
                        data: Some(slice), ..
                    } = step
                    {
                        bench.pool.release(slice.buf);
                    }
                }
                bench.copied(token, EntryStatus::Done);
            }
            if !bench.rebuild.dirty().is_empty() {
                now = now.max(bench.rebuild.deadline().unwrap());
            }
            assert!(now < ms(100_000));
        }
        assert_eq!(bench.pool.held(), 0);
        now
    };
    let (data, zeroes) = (time(false), time(true));
    assert!(
        ms(7000) < data && data < ms(8500),
        "8 MiB at 1 MiB/s took {data:?}"
    );
    assert!(zeroes < ms(1000), "{zeroes:?}");
}

#[test]
fn the_end_is_estimated_from_the_rate_so_far() {
    let mut bench = Bench::new(config(), &[range(0, 64), range(1024, 192)]);
    assert_eq!(bench.rebuild.eta(ms(0)), None);
    let (token, _) = locks(&bench.settle(ms(0)))[0];
    bench.now = ms(500);
    bench.event(RebuildEvent::LockGranted(token));
    bench.read_zero(token);
    bench.copied(token, EntryStatus::Done);
    assert_eq!(bench.rebuild.bytes_left(), 192 * 4096);
    assert_eq!(
        bench.rebuild.eta(ms(500)),
        Some(Duration::from_millis(1500))
    );
}

// ---- random interleavings

enum AtTarget {
    Copy {
        token: u64,
        first: u64,
        values: Vec<u64>,
    },
    Write {
        first: u64,
        value: u64,
        count: u32,
    },
    Flush(u64),
}

struct World {
    rng: Rng,
    bench: Bench,
    source: BTreeMap<u64, u64>,
    target: BTreeMap<u64, u64>,
    /// What is on its way to the target, in stream order.
    stream: VecDeque<AtTarget>,
    locks_asked: Vec<u64>,
    locked: BTreeMap<u64, (BlockRange, Monotonic)>,
    ranges: BTreeMap<u64, BlockRange>,
    reads: Vec<u64>,
    flushes: BTreeSet<u64>,
    value: u64,
    done: bool,
    cleared: ChunkMap,
}

fn places() -> impl Iterator<Item = u64> {
    (0..80)
        .chain(1000..1060)
        .chain(CAPACITY_BLOCKS - 10..CAPACITY_BLOCKS)
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng(seed);
        let (mut source, mut dirty) = (BTreeMap::new(), ChunkMap::new());
        for lba in places() {
            if rng.chance(30) {
                source.insert(lba, lba + 1);
                dirty.add_range(range(lba, 1));
            }
        }
        let config = RebuildConfig {
            copies_max: 1 + rng.below(4),
            clear_bytes: 1 << 17,
            ..config()
        };
        let rebuild = Rebuild::new(config, dirty, ms(0), Duration::ZERO);
        World {
            rng,
            bench: Bench {
                rebuild,
                pool: Pool::default(),
                out: Vec::new(),
                now: ms(0),
            },
            source,
            target: BTreeMap::new(),
            stream: VecDeque::new(),
            locks_asked: Vec::new(),
            locked: BTreeMap::new(),
            ranges: BTreeMap::new(),
            reads: Vec::new(),
            flushes: BTreeSet::new(),
            value: 1 << 32,
            done: false,
            cleared: ChunkMap::new(),
        }
    }

    fn apply(&mut self, steps: Vec<RebuildStep>) {
        for step in steps {
            match step {
                RebuildStep::Lock { token, range } => {
                    self.ranges.insert(token, range);
                    self.locks_asked.push(token);
                }
                RebuildStep::Unlock { token } => {
                    assert!(
                        self.locked.remove(&token).is_some(),
                        "unlocked once: {token}"
                    );
                }
                RebuildStep::Read { token, .. } => self.reads.push(token),
                RebuildStep::Copy { token, range, data } => {
                    let values = match data {
                        None => vec![0; range.count.0 as usize],
                        Some(slice) => {
                            let values = self.bench.pool.values(slice);
                            self.bench.pool.release(slice.buf);
                            values
                        }
                    };
                    self.stream.push_back(AtTarget::Copy {
                        token,
                        first: range.start.0,
                        values,
                    });
                }
                RebuildStep::Flush { token } => {
                    self.flushes.insert(token);
                    self.stream.push_back(AtTarget::Flush(token));
                }
                RebuildStep::DirtyClear => {
                    let mut cleared = ChunkMap::new();
                    self.bench.rebuild.take_cleared(&mut cleared);
                    for (extent, mask) in cleared.iter() {
                        assert_eq!(self.bench.rebuild.dirty().mask(extent) & mask, 0);
                    }
                    self.cleared.union(&cleared);
                }
                RebuildStep::Done => self.done = true,
                RebuildStep::Failed(status) => panic!("{status:?}"),
            }
        }
    }

    fn write(&mut self) {
        let all: Vec<u64> = places().collect();
        let lba = all[self.rng.below(all.len())];
        let end = Lba(lba).extent().0;
        let mut count = u32::try_from(1 + self.rng.below(20)).unwrap();
        while Lba(lba + u64::from(count) - 1).extent().0 != end
            || lba + u64::from(count) > CAPACITY_BLOCKS
        {
            count -= 1;
        }
        let range = range(lba, count);
        if self.locked.values().any(|(r, _)| r.overlaps(range)) {
            return; // it waits
        }
        self.value += 1;
        for lba in range.start.0..range.end().0 {
            self.source.insert(lba, self.value);
        }
        match self.bench.rebuild.route(range) {
            Route::Full => {
                let (first, value) = (lba, self.value);
                self.stream.push_back(AtTarget::Write {
                    first,
                    value,
                    count,
                });
            }
            Route::HeaderOnly => {
                let dirty = self.bench.rebuild.dirty().mask(range.start.extent());
                assert_eq!(dirty & range.chunk_mask(), range.chunk_mask());
            }
        }
    }

    fn grant_or_deny(&mut self) {
        if self.locks_asked.is_empty() {
            return;
        }
        let token = self
            .locks_asked
            .remove(self.rng.below(self.locks_asked.len()));
        let event = if self.rng.chance(80) {
            self.locked
                .insert(token, (self.ranges[&token], self.bench.now));
            RebuildEvent::LockGranted(token)
        } else {
            RebuildEvent::LockDenied(token)
        };
        let steps = self.bench.event(event);
        self.apply(steps);
    }

    fn read(&mut self) {
        if self.reads.is_empty() {
            return;
        }
        let token = self.reads.remove(self.rng.below(self.reads.len()));
        let range = self.ranges[&token];
        let values: Vec<u64> = (range.start.0..range.end().0)
            .map(|lba| self.source.get(&lba).copied().unwrap_or(0))
            .collect();
        let result = if self.rng.chance(5) {
            Err(EntryStatus::Io)
        } else if values.iter().all(|v| *v == 0) {
            Ok(CopyData::Zero)
        } else {
            Ok(CopyData::Bytes(self.bench.pool.filled(&values)))
        };
        let steps = self.bench.event(RebuildEvent::ReadDone { token, result });
        self.apply(steps);
    }

    fn target(&mut self) {
        let Some(next) = self.stream.pop_front() else {
            return;
        };
        let event = match next {
            AtTarget::Write {
                first,
                value,
                count,
            } => {
                for lba in first..first + u64::from(count) {
                    self.target.insert(lba, value);
                }
                return;
            }
            AtTarget::Copy {
                token,
                first,
                values,
            } => {
                let bad = self.rng.chance(3);
                if !bad {
                    self.target.extend((first..).zip(values));
                }
                let status = if bad {
                    EntryStatus::Checksum
                } else {
                    EntryStatus::Done
                };
                RebuildEvent::CopyDone { token, status }
            }
            AtTarget::Flush(token) => {
                assert!(self.flushes.remove(&token));
                RebuildEvent::FlushDone(token)
            }
        };
        let steps = self.bench.event(event);
        self.apply(steps);
    }

    fn settle(&mut self, pass: u64) {
        let now = Monotonic(self.bench.now.0 + pass);
        let steps = self.bench.settle(now);
        self.apply(steps);
        for (range, since) in self.locked.values() {
            assert!(
                now.0 < since.0 + 50_000_000,
                "M4: {range:?} locked since {since:?}"
            );
        }
    }

    /// Where nothing is dirty and nothing is on its way, the two are equal.
    fn check(&self) {
        let mut moving = BTreeSet::new();
        for item in &self.stream {
            match item {
                AtTarget::Copy { first, values, .. } => {
                    moving.extend(*first..*first + values.len() as u64);
                }
                AtTarget::Write { first, count, .. } => {
                    moving.extend(*first..*first + u64::from(*count));
                }
                AtTarget::Flush(_) => {}
            }
        }
        for lba in places().filter(|lba| !moving.contains(lba)) {
            if !self.bench.rebuild.dirty().touches(range(lba, 1)) {
                assert_eq!(
                    self.source.get(&lba),
                    self.target.get(&lba).filter(|v| **v != 0)
                );
            }
        }
    }

    fn step(&mut self, writes: usize) {
        match self.rng.below(100) {
            x if x < writes => self.write(),
            20..40 => self.grant_or_deny(),
            40..60 => self.read(),
            60..80 => self.target(),
            80 => {
                let steps = self.bench.event(RebuildEvent::SourceChanged);
                self.apply(steps);
            }
            81 => self.settle(60_000_000),
            _ => {
                let pass = 1 + self.rng.next() % 3_000_000;
                self.settle(pass);
            }
        }
    }
}

#[test]
fn the_target_ends_equal_to_the_source_whatever_the_order() {
    let mut cleared = 0;
    for seed in 0..150 {
        let mut world = World::new(seed);
        for step in 0..400 {
            world.step(20);
            if step % 8 == 0 {
                world.check();
            }
        }
        let mut left = 20_000;
        while !(world.bench.rebuild.dirty().is_empty() && world.stream.is_empty()) {
            world.step(0);
            left -= 1;
            assert!(left > 0, "seed {seed}: it does not end");
        }
        world.settle(1);
        world.check();
        assert!(world.done && world.locked.is_empty(), "seed {seed}");
        assert_eq!(
            world.bench.pool.held(),
            0,
            "seed {seed}: buffers are released"
        );
        cleared += world.cleared.chunk_count();
    }
    assert!(
        cleared > 150,
        "progress was made durable on the way: {cleared}"
    );
}

#[test]
fn a_chunk_written_all_the_time_does_not_stop_the_others() {
    let dirty = [range(0, 1024)];
    let mut bench = Bench::new(
        RebuildConfig {
            copies_max: 1,
            ..config()
        },
        &dirty,
    );
    for round in 0..200 {
        for (token, copied) in locks(&bench.settle(ms(round * 100))) {
            bench.event(RebuildEvent::LockGranted(token));
            bench.read_zero(token);
            bench.settle(ms(round * 100 + 50));
            // Slow copies, and a client that writes to chunk 0 as soon as it is not locked.
            if copied.overlaps(chunk_range(ExtentNo(0), 0)) {
                bench.rebuild.route(range(0, 1));
            }
            bench.copied(token, EntryStatus::Done);
        }
    }
    assert_eq!(bench.rebuild.dirty(), &chunks(&[range(0, 1)]));
    assert_eq!(
        bench.finish(ms(60_000)),
        [range(0, 16)],
        "and it ends when the client does"
    );
}
