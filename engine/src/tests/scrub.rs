//! Scrubs of a served volume: beside writes, and when members and terms come and go (6.9, C24).

use super::world::{World, member};
use crate::scrub::{Difference, ScrubNews, ScrubResult};
use crate::{Mode, Operator};
use std::vec;
use std::vec::Vec;
use trilith_block::{BlockRange, Blocks, Lba, MemberSet};

fn blocks(start: u64, count: u32) -> BlockRange {
    BlockRange::new(Lba(start), Blocks(count))
}

fn flip(w: &mut World, at: usize, lba: u64) {
    let block = w.fakes[at].blocks.get_mut(&Lba(lba)).expect("written");
    block[7] ^= 1;
}

fn finished(w: &World) -> Option<ScrubResult> {
    w.scrubs.iter().find_map(|news| match news {
        ScrubNews::Finished(result) => Some(*result),
        ScrubNews::Started | ScrubNews::Differs(_) => None,
    })
}

fn wait(w: &mut World) -> ScrubResult {
    assert!(w.until(60_000, |w| finished(w).is_some()), "the scrub ends");
    let result = finished(w).unwrap();
    w.scrubs.clear();
    result
}

fn equal(w: &World) -> bool {
    let first = w.fakes[0].content(blocks(0, 1024));
    w.fakes.iter().all(|f| f.content(blocks(0, 1024)) == first)
}

fn odd(at: usize) -> MemberSet {
    MemberSet::EMPTY.with(member(at))
}

/// Block 3 is wrong at member 2, and a scrub begins.
fn rotten() -> World {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[1; 16 * 4096]);
    w.run(100);
    flip(&mut w, 2, 3);
    w.operator(Operator::Scrub);
    w
}

/// The scrub has begun, and has told of a difference.
fn is_found(w: &mut World) -> bool {
    w.scrubs.len() == 2
}

#[test]
fn an_odd_copy_is_found_and_repaired() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.written(100 * 4096, &[4; 40 * 4096]);
    w.run(100);
    let (last, appends) = (w.fakes[0].upto, w.fakes[0].appends);
    w.operator(Operator::Scrub);
    let result = wait(&mut w);
    assert_eq!(result.bytes, 64 << 20);
    assert_eq!((result.differences, w.fakes[0].appends), (0, appends));
    assert_eq!(
        w.fakes[0].upto, last,
        "nothing is written when nothing is wrong"
    );
    flip(&mut w, 2, 120);
    flip(&mut w, 0, 122);
    w.operator(Operator::Scrub);
    w.settle();
    assert!(
        w.until(60_000, |w| w.scrubs.len() >= 3),
        "both are found: {:?}",
        w.scrubs
    );
    let difference = |range, odd| ScrubNews::Differs(Difference { range, odd });
    assert!(w.scrubs.contains(&difference(blocks(120, 1), odd(2))));
    assert!(w.scrubs.contains(&difference(blocks(122, 1), odd(0))));
    let result = wait(&mut w);
    assert_eq!((result.differences, result.repaired), (2, 2));
    assert_eq!((result.unresolved, result.skipped), (0, 0));
    assert!(equal(&w));
    assert!(w.fakes.iter().all(|f| f.w > last), "flushed at once");
    let content = w.bytes(100 * 4096, 40 * 4096);
    assert_eq!(content, vec![4; 40 * 4096]);
    w.stop();
}

#[test]
fn what_most_have_as_zeroes_becomes_zeroes() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[4; 4096]);
    let zeroes = blocks(40, 1);
    w.fakes[1].store(zeroes, Some(&[6; 4096]));
    w.operator(Operator::Scrub);
    assert_eq!(wait(&mut w).repaired, 1);
    assert_eq!(w.fakes[1].content(zeroes), [0; 4096]);
    w.stop();
}

#[test]
fn two_copies_are_never_judged() {
    let mut w = World::new(2);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[4; 16 * 4096]);
    w.run(100);
    flip(&mut w, 1, 5);
    w.operator(Operator::Scrub);
    let result = wait(&mut w);
    assert_eq!((result.differences, result.repaired), (1, 0));
    assert_eq!(result.unresolved, 1);
    assert!(!equal(&w));
    w.stop();
}

#[test]
fn a_sector_that_cannot_be_read_is_written_again() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[4; 16 * 4096]);
    w.run(100);
    w.fakes[1].unreadable = Some(blocks(3, 1));
    w.operator(Operator::Scrub);
    assert_eq!(wait(&mut w).repaired, 1);
    assert_eq!(w.fakes[1].unreadable, None);
    w.stop();
}

#[test]
fn writes_that_race_with_it_are_no_difference_and_are_not_reverted() {
    for slow in 0..3 {
        let mut w = World::new(3);
        w.wait_mode(Mode::Healthy);
        // One member is a little behind the others all the time.
        w.delay[slow] *= 9;
        w.written(0, &[1; 64 * 4096]);
        w.operator(Operator::Scrub);
        let mut tags = Vec::new();
        for round in 0..200u64 {
            w.run(1);
            // Off the blocks' edges, so that merges queue as well.
            let at = (round % 60) * 4096 + 100;
            let value = u8::try_from(round).unwrap();
            tags.push(w.write(at, &[value; 5000]));
        }
        for tag in tags {
            assert_eq!(w.answer(tag), Ok(Vec::new()));
        }
        let result = wait(&mut w);
        assert_eq!((result.differences, result.repaired), (0, 0), "{result:?}");
        let mut expected = vec![1; 64 * 4096];
        for round in 0..200usize {
            let at = (round % 60) * 4096 + 100;
            expected[at..at + 5000].fill(u8::try_from(round).unwrap());
        }
        assert_eq!(w.bytes(0, 64 * 4096), expected);
        w.run(1000);
        assert!(equal(&w));
        w.stop();
    }
}

#[test]
fn a_write_behind_the_repair_wins() {
    let mut w = rotten();
    assert!(w.until(60_000, is_found), "the difference is found");
    // The chunk is locked; this waits and goes behind what is written again, or in front of it all.
    let tag = w.write(3 * 4096, &[9; 4096]);
    assert_eq!(w.answer(tag), Ok(Vec::new()));
    let result = wait(&mut w);
    assert_eq!((result.differences, result.repaired), (1, 1));
    assert_eq!(w.bytes(3 * 4096, 4096), vec![9; 4096]);
    w.run(100);
    assert!(equal(&w));
    w.stop();
}

#[test]
fn a_member_that_does_not_answer_holds_no_write_up_for_long() {
    let mut w = rotten();
    assert!(w.until(60_000, |w| w.fakes[1].hashes == 1));
    w.fakes[1].hold_hashes = true;
    assert!(w.until(60_000, |w| w.fakes[1].hashes == 2));
    let tag = w.write(0, &[9; 4096]);
    assert!(w.until(60, |w| w.answers.contains_key(&tag)), "M4");
    w.answers.clear();
    w.fakes[1].hold_hashes = false;
    w.let_go(1);
    assert_eq!(wait(&mut w).repaired, 1);
    w.stop();
}

#[test]
fn a_member_lost_on_the_way_is_waited_for() {
    let mut w = rotten();
    assert!(w.until(60_000, is_found));
    w.isolate(0);
    w.run(10_000);
    assert_eq!(w.engine.mode(), Mode::Degraded);
    assert_eq!(finished(&w), None);
    assert!(
        w.engine
            .status(trilith_block::Monotonic(w.now))
            .scrub
            .resting
    );
    w.written(5 * 4096, &[2; 4096]);
    w.heal(0);
    let result = wait(&mut w);
    assert_eq!((result.differences, result.unresolved), (1, 0));
    w.run(100);
    assert!(equal(&w));
    w.stop();
}

#[test]
fn a_term_lost_on_the_way_is_outlived() {
    let mut w = rotten();
    assert!(w.until(60_000, is_found));
    let term = w.engine.status(trilith_block::Monotonic(w.now)).term;
    for at in 0..3 {
        w.isolate(at);
        w.fakes[at].term.0 += 1;
        w.fakes[at].voted = trilith_block::Uuid([9; 16]);
    }
    w.run(100);
    for at in 0..3 {
        w.heal(at);
    }
    let result = wait(&mut w);
    assert!(w.engine.status(trilith_block::Monotonic(w.now)).term > term);
    assert_eq!((result.differences, result.unresolved), (1, 0));
    w.run(100);
    assert!(equal(&w));
    w.stop();
}

#[test]
fn a_replica_that_cannot_tell_digests_lets_it_rest() {
    let mut w = World::new(3);
    w.fakes[1].protocol = 2;
    w.wait_mode(Mode::Healthy);
    w.operator(Operator::Scrub);
    w.run(5_000);
    assert_eq!(finished(&w), None);
    assert_eq!(w.fakes[1].hashes, 0);
    let status = w.engine.status(trilith_block::Monotonic(w.now)).scrub;
    assert!(status.resting && status.position_bytes == Some(0));
    w.stop();
}

#[test]
fn a_stop_does_not_wait_for_it() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[1; 16 * 4096]);
    flip(&mut w, 2, 3);
    w.operator(Operator::Scrub);
    assert!(w.until(60_000, is_found));
    w.stop();
}
