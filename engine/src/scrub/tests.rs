//! The machine alone: a world of blocks and answers, and who is right.

use super::*;
use crate::tests::arena::Arena;
use std::vec;
use trilith_block::{MemberId, Membership};

const CAPACITY: u64 = (2 * 64 + 20) * 4096;

fn member(index: usize) -> MemberId {
    MemberId::new(index).unwrap()
}

/// Copies of a small volume, and a scrub of it.
struct Rig {
    scrub: Scrub,
    arena: Arena,
    now: Monotonic,
    members: MemberSet,
    witness: MemberSet,
    copies: Vec<Vec<u8>>,
    unreadable: Vec<Option<BlockRange>>,
    steps: VecDeque<ScrubStep>,
    news: Vec<ScrubNews>,
    /// A client writes there each time after the copies were told.
    busy: Option<Lba>,
    locks: usize,
    deny: bool,
    /// What is written again does not stay.
    forgets: bool,
    compare: bool,
}

impl Rig {
    fn new(count: usize) -> Rig {
        let config = ScrubConfig::default();
        let now = Monotonic(1_000_000_000);
        Rig {
            scrub: Scrub::new(config, 7, now),
            arena: Arena::default(),
            now,
            members: MemberSet::first(count),
            witness: MemberSet::EMPTY,
            copies: vec![vec![5; usize::try_from(CAPACITY).unwrap()]; count],
            unreadable: vec![None; count],
            steps: VecDeque::new(),
            news: Vec::new(),
            busy: None,
            locks: 0,
            deny: false,
            forgets: false,
            compare: true,
        }
    }

    fn compared(&self) -> Option<Compared> {
        self.compare.then(|| Compared {
            members: self.members,
            membership: Membership {
                witness: self.witness,
                ..self.members.or(self.witness).into()
            },
            capacity_bytes: CAPACITY,
        })
    }

    fn slice(&self, at: usize, range: BlockRange) -> &[u8] {
        let from = usize::try_from(range.start.byte_offset()).unwrap();
        &self.copies[at][from..from + usize::try_from(range.bytes()).unwrap()]
    }

    fn flip(&mut self, at: usize, block: usize) {
        self.copies[at][block * 4096 + 99] ^= 8 << at;
    }

    fn event(&mut self, event: ScrubEvent<'_>) {
        let mut steps = Vec::new();
        self.scrub
            .event(self.now, event, &mut self.arena, &mut steps);
        self.steps.extend(steps);
    }

    /// Moves on by one step or a pause. False at the end.
    fn turn(&mut self) -> bool {
        let mut steps = Vec::new();
        let compared = self.compared();
        self.scrub.settle(self.now, compared, &mut steps);
        self.steps.extend(steps);
        let Some(step) = self.steps.pop_front() else {
            let Some(at) = self.scrub.deadline() else {
                return false;
            };
            self.now = self.now.max(at).after(Duration::from_nanos(1));
            return self.scrub.is_awake(self.now);
        };
        self.carry_out(step);
        true
    }

    fn carry_out(&mut self, step: ScrubStep) {
        match step {
            ScrubStep::Ask {
                token,
                range,
                unit,
                seed,
                members,
            } => {
                if let Some(lba) = self.busy {
                    self.scrub.route(BlockRange::new(lba, Blocks(1)));
                }
                for at in members.iter() {
                    let mut digests = Vec::new();
                    let bytes = self.slice(at.index(), range);
                    digest::append(seed, bytes, unit, &mut digests);
                    let bad = self.unreadable[at.index()].is_some_and(|bad| bad.overlaps(range));
                    let result = if bad {
                        Err(EntryStatus::Io)
                    } else {
                        Ok(&digests[..])
                    };
                    self.event(ScrubEvent::Digests {
                        token,
                        member: at,
                        result,
                    });
                }
            }
            ScrubStep::Lock { token, range } => {
                assert!(range.count.0 <= CHUNK_BLOCKS && range.in_one_extent());
                if self.deny {
                    self.event(ScrubEvent::LockDenied(token));
                } else {
                    self.locks += 1;
                    self.event(ScrubEvent::LockGranted(token));
                }
            }
            ScrubStep::Unlock { .. } => self.locks = self.locks.saturating_sub(1),
            ScrubStep::Read { token, range, from } => {
                let at = from.iter().next().unwrap().index();
                let bytes = self.slice(at, range).to_vec();
                let buf = self.arena.filled(&bytes);
                let result = Ok(CopyData::Bytes(buf));
                self.event(ScrubEvent::ReadDone { token, result });
            }
            ScrubStep::Rewrite { token, range, data } => {
                let buf = data.unwrap();
                let bytes = self.arena.bytes(buf).to_vec();
                self.arena.release(buf.buf);
                let from = usize::try_from(range.start.byte_offset()).unwrap();
                for (at, copy) in self.copies.iter_mut().enumerate() {
                    if !self.forgets {
                        copy[from..from + bytes.len()].copy_from_slice(&bytes);
                    }
                    if self.unreadable[at].is_some_and(|bad| bad.overlaps(range)) {
                        self.unreadable[at] = None;
                    }
                }
                self.event(ScrubEvent::Rewritten { token, done: true });
            }
            ScrubStep::Tell(news) => self.news.push(news),
        }
    }

    fn run(&mut self) -> ScrubResult {
        assert!(self.scrub.start());
        for _ in 0..10_000 {
            if !self.turn() {
                break;
            }
        }
        assert!(!self.scrub.is_comparing(), "it ends");
        assert_eq!(self.locks, 0, "a lock is left");
        self.arena.reclaim();
        assert_eq!(self.arena.held(), 0, "a buffer is left");
        self.scrub.last.unwrap().result
    }

    fn differences(&self) -> Vec<(u64, u32, MemberSet)> {
        let mut found = Vec::new();
        for news in &self.news {
            if let ScrubNews::Differs(d) = news {
                found.push((d.range.start.0, d.range.count.0, d.odd));
            }
        }
        found
    }
}

fn clean(bytes: u64) -> ScrubResult {
    ScrubResult {
        bytes,
        ..ScrubResult::default()
    }
}

#[test]
fn equal_copies_are_compared_to_the_last_block_without_a_lock() {
    let mut rig = Rig::new(3);
    assert_eq!(rig.run(), clean(CAPACITY));
    let finished = ScrubNews::Finished(clean(CAPACITY));
    assert_eq!(rig.news, [ScrubNews::Started, finished]);
    let status = rig.scrub.status(rig.now);
    assert_eq!((status.position_bytes, status.resting), (None, false));
    assert_eq!(status.totals, clean(CAPACITY));
}

#[test]
fn the_odd_copy_of_three_is_written_again() {
    for (bad, blocks) in [
        (0, vec![0]),
        (1, vec![17, 18, 19]),
        (2, vec![1, 3, 5, 7, 9, 11, 13, 15]),
        (2, vec![147]),
        (1, vec![15, 16, 63, 64]),
    ] {
        let mut rig = Rig::new(3);
        for block in &blocks {
            rig.flip(bad, *block);
        }
        let result = rig.run();
        let count = blocks.len() as u64;
        assert_eq!((result.differences, result.repaired), (count, count));
        assert_eq!((result.unresolved, result.skipped), (0, 0));
        let odd = MemberSet::EMPTY.with(member(bad));
        assert!(rig.differences().iter().all(|d| d.2 == odd));
        assert!(rig.copies.iter().all(|c| c.iter().all(|b| *b == 5)));
    }
}

#[test]
fn two_copies_in_different_blocks_of_a_chunk_are_both_repaired() {
    let mut rig = Rig::new(3);
    rig.flip(0, 33);
    rig.flip(2, 34);
    let result = rig.run();
    assert_eq!((result.repaired, result.unresolved), (2, 0));
    assert!(rig.copies.iter().all(|c| c.iter().all(|b| *b == 5)));
}

#[test]
fn without_a_majority_nothing_is_changed() {
    for (count, bad) in [
        (2, vec![0]),
        (3, vec![0, 1]),
        (5, vec![0, 1, 2]),
        (4, vec![1, 2]),
    ] {
        let mut rig = Rig::new(count);
        for at in &bad {
            rig.flip(*at, 20);
            rig.flip(*at, 21);
        }
        let before = rig.copies.clone();
        let result = rig.run();
        assert_eq!((result.differences, result.repaired), (2, 0));
        assert_eq!(result.unresolved, 2);
        assert_eq!(rig.differences(), [(20, 2, MemberSet::EMPTY)]);
        assert_eq!(rig.copies, before);
        let status = rig.scrub.status(rig.now);
        assert_eq!(status.unresolved, [BlockRange::new(Lba(20), Blocks(2))]);
    }
}

#[test]
fn a_copy_that_cannot_be_read_is_written_again_when_the_others_agree() {
    for count in [2, 3] {
        let mut rig = Rig::new(count);
        rig.unreadable[1] = Some(BlockRange::new(Lba(70), Blocks(1)));
        let result = rig.run();
        assert_eq!((result.repaired, result.unresolved), (1, 0));
        assert_eq!(rig.unreadable[1], None);
    }
    // The two that can be read differ: neither is a majority.
    let mut rig = Rig::new(3);
    rig.unreadable[1] = Some(BlockRange::new(Lba(70), Blocks(1)));
    rig.flip(0, 70);
    rig.flip(2, 71);
    let result = rig.run();
    assert_eq!((result.repaired, result.unresolved), (1, 1));
    // Nobody can read it.
    let mut rig = Rig::new(1);
    rig.unreadable[0] = Some(BlockRange::new(Lba(70), Blocks(1)));
    let result = rig.run();
    assert_eq!((result.repaired, result.unresolved), (0, 1));
}

#[test]
fn a_chunk_that_is_written_all_the_time_is_never_judged() {
    let mut rig = Rig::new(3);
    rig.flip(1, 20);
    rig.busy = Some(Lba(20));
    let result = rig.run();
    assert_eq!((result.differences, result.skipped), (0, 1));
    assert_eq!(result.bytes, CAPACITY);
    // A write elsewhere does no harm.
    let mut rig = Rig::new(3);
    rig.flip(1, 20);
    rig.busy = Some(Lba(40));
    assert_eq!(rig.run().repaired, 1);
    let mut rig = Rig::new(3);
    rig.flip(1, 20);
    rig.deny = true;
    assert_eq!(rig.run().skipped, 1);
}

#[test]
fn a_repair_that_does_not_hold_ends() {
    let mut rig = Rig::new(3);
    rig.flip(1, 20);
    rig.forgets = true;
    let result = rig.run();
    assert_eq!((result.differences, result.repaired), (1, 0));
    assert_eq!((result.unresolved, result.skipped), (1, 0));
}

#[test]
fn a_source_that_tells_other_bytes_than_it_read_is_not_believed() {
    let mut rig = Rig::new(3);
    rig.flip(1, 20);
    assert!(rig.scrub.start());
    let wrong = rig.arena.filled(&[9; 4096]);
    while !matches!(rig.steps.front(), Some(ScrubStep::Read { .. })) {
        assert!(rig.turn());
    }
    let Some(ScrubStep::Read { token, .. }) = rig.steps.pop_front() else {
        unreachable!()
    };
    let result = Ok(CopyData::Bytes(wrong));
    rig.event(ScrubEvent::ReadDone { token, result });
    assert!(
        !rig.steps
            .iter()
            .any(|s| matches!(s, ScrubStep::Rewrite { .. }))
    );
    assert_eq!(rig.run().repaired, 1);
}

#[test]
fn it_rests_while_a_member_is_missing_and_goes_on_where_it_was() {
    let mut rig = Rig::new(3);
    rig.flip(2, 100);
    rig.scrub.start();
    for turns in 1..60 {
        for _ in 0..turns {
            rig.turn();
        }
        rig.compare = false;
        rig.turn();
        let before = rig.scrub.status(rig.now).position_bytes;
        while rig.turn() {}
        assert_eq!(rig.locks, 0, "a lock is held while it rests");
        let after = rig.scrub.status(rig.now);
        if after.position_bytes.is_some() {
            assert!(after.resting && rig.scrub.deadline().is_none());
        }
        assert_eq!(before, after.position_bytes);
        rig.compare = true;
    }
    assert_eq!(rig.scrub.last.unwrap().result.repaired, 1);
}

#[test]
fn a_lock_is_given_back_in_time_and_a_late_answer_counts() {
    let mut rig = Rig::new(3);
    rig.flip(1, 3);
    rig.scrub.start();
    while rig.locks == 0 {
        assert!(rig.turn());
    }
    // The question under the lock is out; its answers come late.
    rig.now = rig.now.after(Duration::from_millis(51));
    let mut steps = Vec::new();
    rig.scrub.settle(rig.now, rig.compared(), &mut steps);
    assert!(matches!(steps[..], [ScrubStep::Unlock { .. }]));
    rig.locks = 0;
    assert_eq!(rig.run().repaired, 1);
}

#[test]
fn the_rate_is_kept() {
    let mut rig = Rig::new(3);
    rig.scrub.config.bytes_per_second_max = 256 << 10;
    let begin = rig.now;
    rig.run();
    let least = CAPACITY * 1_000_000_000 / (256 << 10);
    let took = rig.now.since(begin).as_nanos();
    // The last step is taken in advance, and the bucket is full at first.
    assert!(took * 2 > u128::from(least), "{took} {least}");
    assert!(took < 3 * u128::from(least), "{took} {least}");
}

#[test]
fn it_comes_round_by_itself_and_not_at_all_when_switched_off() {
    let day = Duration::from_secs(86_400);
    let config = ScrubConfig {
        every: Some(day * 30),
        ..ScrubConfig::default()
    };
    let start = Monotonic(0);
    for entropy in [0, 1 << 63, u64::MAX] {
        let scrub = Scrub::new(config, entropy, start);
        let first = scrub.deadline().unwrap();
        assert!(first <= start.after(day * 30), "{first:?}");
    }
    let mut rig = Rig::new(3);
    rig.scrub = Scrub::new(config, 1 << 63, rig.now);
    let first = rig.scrub.deadline().unwrap();
    assert_eq!(first, rig.now.after(day * 15));
    assert!(!rig.scrub.is_awake(rig.now) && rig.scrub.is_awake(first));
    rig.now = first;
    while rig.scrub.last.is_none() {
        assert!(rig.turn());
    }
    let next = rig.scrub.last.unwrap().at.after(day * 30);
    assert_eq!(rig.scrub.deadline(), Some(next));
    let off = ScrubConfig {
        bytes_per_second_max: 0,
        ..config
    };
    let mut off = Scrub::new(off, 1, start);
    assert!(!off.start());
    assert_eq!(off.deadline(), None);
}

/// Whatever disturbs it: what a majority holds is what all hold in the end, and nothing else is ever
/// changed.
#[test]
fn random_rot_and_disturbances_end_with_the_majority_everywhere() {
    for seed in 0..150 {
        let mut rng = crate::rng::Rng::new(&[seed; 32]);
        let count = [2, 3, 3, 5][usize::try_from(rng.next() % 4).unwrap()];
        let mut rig = Rig::new(count);
        let blocks = usize::try_from(CAPACITY / 4096).unwrap();
        let mut bad = std::collections::BTreeSet::new();
        for _ in 0..rng.next() % 30 {
            // Some places gather more than one wrong copy.
            let block = usize::try_from(rng.next() % 40 * 4)
                .unwrap()
                .min(blocks - 1);
            let at = usize::try_from(rng.next()).unwrap_or(0) % count;
            if bad.insert((block, at)) {
                rig.flip(at, block);
            }
        }
        let before = rig.copies.clone();
        rig.scrub.start();
        for _ in 0..rng.next() % 400 {
            match rng.next() % 16 {
                0 => rig.deny = !rig.deny,
                1 => rig.compare = !rig.compare,
                2 => rig.busy = Some(Lba(rng.next() % 148)),
                3 => rig.busy = None,
                4 => rig.now = rig.now.after(Duration::from_millis(rng.next() % 60)),
                _ => {}
            }
            rig.turn();
        }
        (rig.deny, rig.compare, rig.busy) = (false, true, None);
        while rig.turn() {}
        // What was skipped meanwhile is found by the next one.
        let result = rig.run();
        assert_eq!(result.skipped, 0, "seed {seed}");
        for block in 0..blocks {
            let range = BlockRange::new(Lba(block as u64), Blocks(1));
            let wrong = (0..count).filter(|at| bad.contains(&(block, *at))).count();
            let decided = 2 * (count - wrong) > count;
            for (at, old) in before.iter().enumerate() {
                let found = rig.slice(at, range);
                if decided {
                    assert!(found.iter().all(|b| *b == 5), "seed {seed} block {block}");
                } else {
                    let from = block * 4096;
                    assert_eq!(found, &old[from..from + 4096], "seed {seed} block {block}");
                }
            }
        }
    }
}

/// W15 of 7.1: the witness has a vote and no copy.
#[test]
fn with_a_witness_two_copies_that_differ_are_reported_and_an_unreadable_one_is_written_again() {
    let rig = || Rig {
        witness: MemberSet::of(member(2)),
        ..Rig::new(2)
    };
    let mut odd = rig();
    odd.flip(1, 20);
    let before = odd.copies.clone();
    let result = odd.run();
    assert_eq!((result.differences, result.unresolved), (1, 1));
    assert_eq!(odd.copies, before);
    let mut rotten = rig();
    rotten.unreadable[0] = Some(BlockRange::new(Lba(20), Blocks(1)));
    let result = rotten.run();
    assert_eq!((result.repaired, result.unresolved), (1, 0));
    assert_eq!(rotten.unreadable[0], None);
}
