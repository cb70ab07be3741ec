//! Members that are slow, lost, broken or back again.

use super::world::{MS, World, member};
use crate::status::{Link, Role};
use crate::{Mode, Operator, Status, Waiting};
use std::vec;
use std::vec::Vec;
use trilith_block::{BlockRange, Blocks, ErrorKind, Lba, MemberSet, Monotonic, Term};

fn status(w: &World) -> Status {
    w.engine.status(Monotonic(w.now))
}

fn write_some(w: &mut World, count: u64, value: u8) {
    for at in 0..count {
        w.written(at * 70_000, &vec![value; 5000]);
    }
}

fn assert_equal(w: &World) {
    let range = BlockRange::new(Lba(0), Blocks(1024));
    let first = w.fakes[0].content(range);
    for fake in &w.fakes[1..] {
        assert!(
            fake.content(range) == first,
            "member {} differs",
            fake.member
        );
    }
}

#[test]
fn a_short_absence_is_healed_by_sending_again() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 3, 1);
    w.isolate(2);
    w.run(10);
    assert_eq!(w.engine.mode(), Mode::Degraded);
    write_some(&mut w, 5, 2);
    w.heal(2);
    w.wait_mode(Mode::Healthy);
    w.run(100);
    assert!(w.fakes[2].resends > 0);
    assert_eq!(status(&w).counters.demotions, 0);
    assert_equal(&w);
    w.stop();
}

/// Simulator seed 2209.
#[test]
fn a_flush_that_was_accepted_and_not_answered_is_asked_for_again() {
    let mut w = World::new(1);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[1; 4096]);
    w.fakes[0].hold_flushes = true;
    let flush = w.flush();
    w.run(20);
    w.isolate(0);
    w.run(10);
    w.fakes[0].held.clear();
    w.fakes[0].hold_flushes = false;
    w.heal(0);
    assert_eq!(w.answer(flush), Ok(Vec::new()));
    w.stop();
}

/// C19. Simulator seed 815076.
#[test]
fn a_member_that_started_the_term_but_did_not_count_is_sent_in_full_what_it_missed() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 3, 1);
    // What is in the windows is limbo of the next term, and may be lacking at who is not counted.
    let mut w = w.restart(|cfg| cfg.supersedes = super::world::ENGINE);
    w.delay[0] = 20 * MS;
    assert!(w.until(10_000, |w| w.fakes[0].se.term == Term(2)));
    w.isolate(0);
    w.wait_mode(Mode::Degraded);
    write_some(&mut w, 3, 2);
    w.heal(0);
    w.wait_mode(Mode::Healthy);
    w.run(500);
    assert_eq!(status(&w).counters.demotions, 0);
    assert_equal(&w);
    w.stop();
}

#[test]
fn a_lost_member_is_demoted_told_rebuilt_and_joins() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 3, 1);
    w.isolate(2);
    w.run(4_000);
    assert_eq!(status(&w).counters.demotions, 1);
    assert_eq!(status(&w).in_sync, MemberSet(0b011));
    write_some(&mut w, 20, 2);
    assert!(
        !w.fakes[0].dirty[2].is_empty(),
        "in-sync members know what it lacks"
    );
    w.heal(2);
    w.wait_mode(Mode::Healthy);
    w.run(3_000);
    assert_eq!(status(&w).counters.joins, 1);
    assert!(w.fakes[2].repairs > 0);
    assert_equal(&w);
    for fake in &w.fakes {
        assert!(fake.dirty.iter().all(|m| m.is_empty()), "{:?}", fake.dirty);
    }
    w.stop();
}

/// The source that is usually taken cannot be read: the other one is asked.
#[test]
fn a_rebuild_reads_elsewhere_what_one_source_cannot_read() {
    for bad in [0, 1] {
        let mut w = World::new(3);
        w.wait_mode(Mode::Healthy);
        write_some(&mut w, 3, 1);
        w.isolate(2);
        assert!(w.until(10_000, |w| status(w).counters.demotions == 1));
        write_some(&mut w, 4, 2);
        w.fakes[bad].fail_reads = true;
        w.heal(2);
        w.wait_mode(Mode::Healthy);
        w.fakes[bad].fail_reads = false;
        w.run(100);
        assert_equal(&w);
        w.stop();
    }
}

/// 8.5: whatever the phase, what the member lacks is in the dirty maps that the next engine finds.
#[test]
fn an_engine_that_takes_over_in_any_phase_of_a_rebuild_finishes_it() {
    for phase in 0..24 {
        let mut w = World::new(3);
        w.wait_mode(Mode::Healthy);
        write_some(&mut w, 4, 1);
        w.isolate(2);
        assert!(w.until(10_000, |w| status(w).counters.demotions == 1));
        write_some(&mut w, 4, 2);
        w.delay = [2 * MS; 7];
        w.heal(2);
        assert!(w.until(10_000, |w| status(w).members[2].promised));
        w.run(3 * phase);
        let mut w = w.restart(|cfg| cfg.supersedes = super::world::ENGINE);
        w.isolate(0);
        w.wait_mode(Mode::Degraded);
        for at in 0..4 {
            assert_eq!(w.bytes(at * 70_000, 5000), vec![2; 5000], "phase {phase}");
        }
        w.heal(0);
        w.wait_mode(Mode::Healthy);
        w.run(100);
        assert_equal(&w);
        w.stop();
    }
}

#[test]
fn writes_go_on_during_a_rebuild_and_arrive() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.isolate(0);
    w.run(4_000);
    write_some(&mut w, 40, 2);
    w.heal(0);
    w.until(10_000, |w| status(w).members[0].role == Role::Rebuilding);
    for round in 0..20u8 {
        write_some(&mut w, 20, 10 + round);
    }
    w.wait_mode(Mode::Healthy);
    w.run(3_000);
    assert_equal(&w);
    w.stop();
}

#[test]
fn a_laggard_is_demoted_and_nobody_waits_for_it() {
    let mut w = World::with(3, |cfg| cfg.sizes.lag_entries_max = 8);
    w.wait_mode(Mode::Healthy);
    w.fakes[1].hold_acks = true;
    let begin = w.now;
    write_some(&mut w, 30, 3);
    assert!(w.now - begin < 100 * MS);
    assert!(w.until(3_000, |w| status(w).counters.demotions == 1));
    w.fakes[1].hold_acks = false;
    w.let_go(1);
    w.wait_mode(Mode::Healthy);
    w.run(3_000);
    assert_equal(&w);
    w.stop();
}

#[test]
fn a_failing_device_is_demoted_at_once() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.fakes[1].fail_writes = true;
    w.written(0, &[4; 4096]);
    assert!(w.until(100, |w| status(w).counters.demotions == 1));
    assert!(!status(&w).in_sync.contains(member(1)));
    w.fakes[1].fail_writes = false;
    w.wait_mode(Mode::Healthy);
    assert_equal(&w);
    w.stop();
}

/// Member 2 is lost, and the SYNCSET without it reaches member 0 only: it may not be told. Then all
/// heals.
fn demote_at_one_member(mut w: World, demotions: u64) {
    w.isolate(2);
    w.until(2_990, |_| false);
    w.delay[1] = 3_000_000 * MS;
    w.run(100);
    assert_eq!(status(&w).counters.demotions, demotions);
    w.heal(2);
    w.run(1_000);
    assert!(
        w.fakes[2].iss.contains(member(2)),
        "D1: it was told too early"
    );
    w.delay[1] = MS / 10;
    w.isolate(1);
    w.run(50);
    w.heal(1);
    w.wait_mode(Mode::Healthy);
    w.run(3_000);
    assert_equal(&w);
    w.stop();
}

#[test]
fn a_member_is_told_only_when_a_majority_that_counts_knows() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 3, 1);
    demote_at_one_member(w, 1);
}

/// 8.5: demote, join, demote with a stale ack. What member 1 knows of the first demotion says nothing
/// of the second.
#[test]
fn of_two_demotions_the_acks_of_the_first_do_not_count_for_the_second() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 3, 1);
    w.isolate(2);
    assert!(w.until(10_000, |w| status(w).counters.demotions == 1));
    write_some(&mut w, 3, 2);
    w.heal(2);
    w.wait_mode(Mode::Healthy);
    w.run(3_000);
    assert_eq!(status(&w).counters.joins, 1);
    demote_at_one_member(w, 2);
}

/// 8.5: a join while a member of the in-sync set lags. Before tidx has come to its c0, the window of
/// who joins does not list what the laggard lacks (5.4).
#[test]
fn a_rebuilt_member_joins_only_when_the_laggard_has_come_to_its_c0() {
    let mut w = World::new(5);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 3, 1);
    w.isolate(4);
    assert!(w.until(10_000, |w| status(w).counters.demotions == 1));
    write_some(&mut w, 3, 2);
    w.run(3_000);
    w.fakes[3].hold_acks = true;
    w.heal(4);
    let lacks_nothing = |w: &mut World| {
        let four = &status(w).members[4];
        four.role == Role::Rebuilding && four.dirty_bytes == 0
    };
    assert!(w.until(10_000, lacks_nothing));
    w.written(0, &[3; 4096]);
    w.run(500);
    assert_eq!(status(&w).counters.joins, 0, "5.4: it joined below its c0");
    assert_eq!(status(&w).counters.demotions, 1);
    w.fakes[3].hold_acks = false;
    w.let_go(3);
    w.wait_mode(Mode::Healthy);
    w.run(3_000);
    assert_eq!(status(&w).counters.joins, 1);
    assert_equal(&w);
    w.stop();
}

/// C21. Simulator seed 84590278147: a flush that was accepted above a missing entry.
#[test]
fn a_flush_that_was_accepted_before_an_earlier_entry_is_asked_for_again_in_its_place() {
    let mut w = World::new(1);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[1; 4096]);
    w.fakes[0].lose_appends = true;
    w.fakes[0].hold_flushes = true;
    let write = w.write(4096, &[2; 4096]);
    w.run(5);
    let flush = w.flush();
    w.run(20);
    w.isolate(0);
    w.run(10);
    w.fakes[0].held.clear();
    (w.fakes[0].lose_appends, w.fakes[0].hold_flushes) = (false, false);
    w.heal(0);
    assert_eq!(w.answer(write), Ok(Vec::new()));
    assert_eq!(w.answer(flush), Ok(Vec::new()));
    let later = w.flush();
    assert_eq!(w.answer(later), Ok(Vec::new()));
    w.stop();
}

#[test]
fn a_power_loss_is_repaired_from_the_activity_log() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 10, 1);
    w.run(100);
    w.isolate(1);
    w.fakes[1].lose_power();
    // Something that was not flushed is gone.
    w.fakes[1].blocks.remove(&trilith_block::Lba(0));
    w.heal(1);
    w.wait_mode(Mode::Degraded);
    w.wait_mode(Mode::Healthy);
    assert_equal(&w);
    assert!(!w.fakes[1].tainted);
    w.stop();
}

#[test]
fn two_power_losses_under_a_live_engine_lose_nothing() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 10, 1);
    w.run(100);
    for at in 1..3 {
        w.isolate(at);
        w.fakes[at].lose_power();
        w.fakes[at].blocks.clear();
        w.fakes[at]
            .al
            .add_mask(trilith_block::ExtentNo(0), u64::MAX);
        w.fakes[at]
            .need
            .add_mask(trilith_block::ExtentNo(0), u64::MAX);
    }
    let tag = w.write(0, &[8; 4096]);
    w.run(1_000);
    assert_eq!(w.engine.mode(), Mode::ReadOnlyLease);
    w.heal(1);
    w.heal(2);
    w.wait_mode(Mode::Healthy);
    assert_eq!(w.answer(tag), Ok(Vec::new()));
    assert_eq!(status(&w).loss, 0);
    w.run(3_000);
    assert_equal(&w);
    assert_eq!(w.bytes(70_000, 5000), vec![1; 5000]);
    w.stop();
}

/// C29. Simulator seed 40000000028199.
#[test]
fn a_write_that_waits_for_a_majority_does_not_keep_a_member_from_being_healed() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 10, 1);
    w.run(100);
    for at in 1..3 {
        w.isolate(at);
        w.fakes[at].lose_power();
        w.fakes[at]
            .need
            .add_mask(trilith_block::ExtentNo(0), u64::MAX);
    }
    // It has read the rest of its block, and holds its place before all that comes later.
    let tag = w.write(100, &[8; 200]);
    w.run(1_000);
    assert_eq!(w.engine.mode(), Mode::ReadOnlyLease);
    w.heal(1);
    w.heal(2);
    assert_eq!(w.answer(tag), Ok(Vec::new()));
    w.wait_mode(Mode::Healthy);
    assert_eq!(status(&w).loss, 0);
    assert_equal(&w);
    w.stop();
}

/// C28. Simulator seed 40000000021801.
#[test]
fn members_that_lose_their_power_before_the_term_opens_do_not_count() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 3, 1);
    let mut w = w.restart(|cfg| cfg.supersedes = super::world::ENGINE);
    w.delay[0] = 20 * MS;
    let started = |w: &mut World| w.fakes[1..].iter().all(|f| f.se.term == Term(2));
    assert!(w.until(10_000, started));
    // Their answers have come, that of the third never will.
    w.fakes[0].deaf = true;
    w.run(5);
    for at in 1..3 {
        w.isolate(at);
        w.fakes[at].lose_power();
        w.heal(at);
    }
    let back = |w: &mut World| status(w).members[1..].iter().all(|m| m.promised);
    assert!(w.until(2_500, back));
    w.run(50);
    assert_eq!(w.engine.mode(), Mode::Waiting(Waiting::Recovery));
    w.fakes[0].deaf = false;
    w.wait_mode(Mode::Waiting(Waiting::LossAccepted));
    w.operator(Operator::AcceptLoss);
    w.wait_mode(Mode::Healthy);
    assert_eq!(status(&w).loss, 1);
    assert!(w.fakes.iter().all(|f| !f.tainted && f.se.term == Term(3)));
    assert_equal(&w);
    w.stop();
}

#[test]
fn without_a_majority_reads_go_on_while_the_lease_runs_then_wait() {
    let mut w = World::with(3, |cfg| {
        cfg.timing.quorum_wait = core::time::Duration::from_secs(10)
    });
    w.wait_mode(Mode::Healthy);
    w.written(0, &[6; 4096]);
    w.run(600);
    w.isolate(1);
    w.isolate(2);
    w.run(10);
    assert_eq!(w.engine.mode(), Mode::ReadOnlyLease);
    assert_eq!(w.bytes(0, 4096), vec![6; 4096]);
    let write = w.write(0, &[7; 4096]);
    w.run(4_000);
    assert!(matches!(w.engine.mode(), Mode::Waiting(_)));
    let read = w.read(0, 4096);
    assert_eq!(w.answer(read), Err(ErrorKind::Io));
    assert_eq!(w.answer(write), Err(ErrorKind::Io));
    // It heals by itself.
    w.heal(1);
    w.heal(2);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[8; 4096]);
    w.run(100);
    assert_equal(&w);
    w.stop();
}

#[test]
fn a_grant_keeps_the_last_member_readable() {
    let mut w = World::with(3, |cfg| {
        cfg.timing.quorum_wait = core::time::Duration::from_secs(5)
    });
    w.wait_mode(Mode::Healthy);
    w.written(0, &[6; 4096]);
    w.run(600);
    w.grant(w.now + 60_000 * MS);
    w.isolate(1);
    w.isolate(2);
    w.run(6_000);
    assert_eq!(w.engine.mode(), Mode::ReadOnlyGrant);
    assert_eq!(w.bytes(0, 4096), vec![6; 4096]);
    let write = w.write(0, &[7; 4096]);
    assert_eq!(w.answer(write), Err(ErrorKind::ReadOnly));
    w.run(60_000);
    assert!(
        matches!(w.engine.mode(), Mode::Waiting(_)),
        "{:?}",
        w.engine.mode()
    );
    w.heal(1);
    w.wait_mode(Mode::Degraded);
    w.stop();
}

#[test]
fn a_silent_member_is_noticed() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.fakes[2].deaf = true;
    write_some(&mut w, 3, 1);
    assert!(w.until(4_000, |w| w.engine.mode() == Mode::Degraded));
    w.fakes[2].deaf = false;
    w.wait_mode(Mode::Healthy);
    w.run(3_000);
    assert_equal(&w);
    w.stop();
}

/// C45: whenever the member that misses the DIRTYCLEAR goes.
#[test]
fn a_clear_that_was_missed_spares_what_is_lacked_again() {
    for cut in 0..60 {
        let mut w = World::new(3);
        w.wait_mode(Mode::Healthy);
        w.isolate(2);
        w.written(0, &[1; 4096]);
        w.run(4_000);
        w.heal(2);
        let comes = |w: &mut World| status(w).members[2].link == Link::Up;
        assert!(w.until(20_000, comes));
        let end = w.now + cut * MS / 4;
        w.until(1_000, |w| end <= w.now);
        w.isolate(1);
        w.run(4_000);
        w.heal(1);
        w.wait_mode(Mode::Healthy);
        // Meant for it in full, and never accepted.
        w.isolate(2);
        w.written(0, &[2; 4096]);
        w.run(4_000);
        w.isolate(1);
        w.run(20);
        w.heal(1);
        w.run(1_000);
        let lacked = |at: usize| w.fakes[at].dirty[2].touches(BlockRange::new(Lba(0), Blocks(1)));
        assert!(lacked(0) && lacked(1), "cut at {cut}");
        w.heal(2);
        w.wait_mode(Mode::Healthy);
        assert_eq!(w.bytes(0, 4096), [2; 4096]);
        w.stop();
    }
}
