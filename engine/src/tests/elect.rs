//! Becoming leader, and ceasing to be it.

use super::fake::LEASE_NS;
use super::world::{MS, World};
use crate::{ExitReason, Mode, Operator, Waiting};
use std::vec;
use std::vec::Vec;
use trilith_block::{ErrorKind, MemberSet, Monotonic, Term, Uuid};

const OTHER: Uuid = Uuid([6; 16]);

#[test]
fn acknowledged_writes_outlive_the_engine_even_when_members_differ() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    // One write is on members 0 and 1, the next on members 1 and 2.
    w.delay[2] = 10_000 * MS;
    w.written(0, &[1; 4096]);
    w.delay[2] = MS / 10;
    w.isolate(2);
    w.run(100);
    w.heal(2);
    w.wait_mode(Mode::Healthy);
    w.written(8192, &[2; 4096]);
    let mut w = w.restart(|cfg| cfg.supersedes = super::world::ENGINE);
    w.isolate(0);
    w.wait_mode(Mode::Degraded);
    assert_eq!(w.bytes(0, 4096), vec![1; 4096]);
    assert_eq!(w.bytes(8192, 4096), vec![2; 4096]);
    w.heal(0);
    w.wait_mode(Mode::Healthy);
    w.stop();
}

#[test]
fn a_superseded_engine_s_lease_is_released_and_another_one_s_is_waited_for() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[1; 4096]);
    let mut w = w.restart(|cfg| cfg.supersedes = super::world::ENGINE);
    let begin = w.now;
    w.wait_mode(Mode::Healthy);
    w.written(0, &[2; 4096]);
    assert!(w.now - begin < 500 * MS, "{} ms", (w.now - begin) / MS);
    // A third engine that does not know the second to be dead.
    let mut w = w.restart(|cfg| cfg.engine = OTHER);
    let begin = w.now;
    assert!(w.until(500, |w| {
        w.modes.contains(&Mode::Waiting(Waiting::OtherLeader))
    }));
    w.wait_mode(Mode::Healthy);
    assert!(w.now - begin > 2_000 * MS, "{} ms", (w.now - begin) / MS);
    w.stop();
}

#[test]
fn a_higher_attach_epoch_takes_over_at_once_and_holds_its_acks_back() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[1; 4096]);
    let mut w = w.restart(|cfg| cfg.attach_epoch = 1);
    let begin = w.now;
    w.wait_mode(Mode::Healthy);
    assert!(
        w.now - begin < 1_000 * MS,
        "leader alive does not count (M11)"
    );
    assert_eq!(w.bytes(0, 4096), vec![1; 4096]);
    w.written(0, &[2; 4096]);
    assert!(
        w.now - begin > LEASE_NS - 100 * MS,
        "acked within the old leader's lease (5.5)"
    );
    w.stop();
}

#[test]
fn a_higher_attach_epoch_anywhere_fences_for_ever() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    let held = w.write(0, &[1; 4096]);
    w.fakes[1].attach_epoch = 5;
    w.isolate(1);
    w.heal(1);
    assert!(w.until(5_000, |w| w.exit.is_some()));
    assert_eq!(w.exit, Some(ExitReason::Fenced));
    assert_eq!(w.engine.mode(), Mode::Fenced);
    w.answers.remove(&held);
    let late = w.write(0, &[1; 4096]);
    assert_eq!(w.answer(late), Err(ErrorKind::Fenced));
    w.run(1_000);
    assert_eq!(w.arena.held(), 0);
    assert_eq!(trilith_block::Machine::deadline(&w.engine), None);
}

#[test]
fn a_stray_candidate_costs_a_re_election_not_an_outage() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[1; 4096]);
    // Someone got one vote in a higher term and died.
    w.fakes[1].term = Term(9);
    w.fakes[1].voted = OTHER;
    let tag = w.write(4096, &[2; 4096]);
    assert_eq!(w.answer(tag), Ok(Vec::new()));
    assert!(w.until(5_000, |w| w.engine.status(Monotonic(w.now)).term > Term(9)));
    w.wait_mode(Mode::Healthy);
    assert_eq!(w.bytes(0, 4096), vec![1; 4096]);
    assert_eq!(w.bytes(4096, 4096), vec![2; 4096]);
    w.stop();
}

#[test]
fn writes_in_flight_at_a_re_election_are_issued_again_in_order() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    for fake in &mut w.fakes {
        fake.hold_acks = true;
    }
    let tags: Vec<u64> = (0..20u8)
        .map(|i| w.write(u64::from(i % 4) * 1000, &[i; 3000]))
        .collect();
    let flush = w.flush();
    w.run(5);
    for fake in &mut w.fakes {
        fake.hold_acks = false;
        fake.held.clear();
    }
    w.fakes[0].term = Term(9);
    w.fakes[0].voted = OTHER;
    w.fakes[1].term = Term(9);
    w.fakes[1].voted = OTHER;
    for tag in tags {
        assert_eq!(w.answer(tag), Ok(Vec::new()));
    }
    assert_eq!(w.answer(flush), Ok(Vec::new()));
    let mut expect = vec![0; 6000];
    for i in 0..20u8 {
        let at = usize::from(i % 4) * 1000;
        expect[at..at + 3000].fill(i);
    }
    assert_eq!(w.bytes(0, 6000), expect);
    w.stop();
}

#[test]
fn a_lossy_recovery_serves_only_after_the_loss_is_accepted() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[1; 4096]);
    let tag = w.flush();
    w.answer(tag).unwrap();
    w.written(4096, &[2; 4096]);
    for fake in &mut w.fakes {
        fake.lose_power();
    }
    let mut w = w.restart(|cfg| {
        cfg.supersedes = super::world::ENGINE;
        cfg.loss_bound = Some(0);
    });
    assert!(w.until(20_000, |w| w.engine.mode()
        == Mode::Waiting(Waiting::LossAccepted)));
    let read = w.read(0, 4096);
    w.run(1_000);
    assert!(!w.answers.contains_key(&read), "M8: served over a loss");
    w.operator(Operator::AcceptLoss);
    assert_eq!(
        w.answer(read),
        Err(ErrorKind::Io),
        "I17: the client that asked is bound to the old loss epoch"
    );
    assert_eq!(w.bytes(0, 4096), vec![1; 4096], "flushed data is there");
    assert_eq!(w.engine.loss(), Some(1));
    assert!(w.fakes.iter().all(|f| f.loss == 1));
    w.stop();
}

#[test]
fn a_minority_elects_nobody() {
    let mut w = World::new(3);
    w.cut = MemberSet(0b110);
    w.run(10_000);
    assert_eq!(w.engine.mode(), Mode::Waiting(Waiting::Replicas));
    assert_eq!(w.fakes[0].term, Term(0));
    w.cut = MemberSet(0b100);
    w.wait_mode(Mode::Degraded);
    w.cut = MemberSet::EMPTY;
    w.wait_mode(Mode::Healthy);
    w.stop();
}

#[test]
fn one_and_five_members_work_as_well() {
    for count in [1, 2, 5] {
        let mut w = World::new(count);
        w.wait_mode(Mode::Healthy);
        w.written(100, &[1; 5000]);
        assert_eq!(w.bytes(100, 5000), vec![1; 5000]);
        w.stop();
    }
}

#[test]
fn stepping_down_gives_the_lease_up() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[1; 4096]);
    w.operator(Operator::StepDown);
    assert!(w.until(1_000, |w| w.exit.is_some()));
    assert_eq!(w.exit, Some(ExitReason::SteppedDown));
    w.run(1_000);
    assert_eq!(w.arena.held(), 0);
}

#[test]
fn a_clean_stop_is_followed_by_a_clean_start() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[1; 4096]);
    w.stop();
    assert_eq!(w.exit, Some(ExitReason::Stopped { sealed: true }));
    let mut w = w.restart(|cfg| cfg.supersedes = super::world::ENGINE);
    w.wait_mode(Mode::Healthy);
    assert_eq!(w.bytes(0, 4096), vec![1; 4096]);
    w.stop();
}
