//! Replacing a member (C20): steps, leader changes in each of them, what must not count.

use super::fake::Fake;
use super::world::{World, member};
use crate::reconfigure::{ChangeError, ChangeStep};
use crate::status::{Link, Role};
use crate::{Mode, Operator, Status, Waiting};
use std::vec;
use trilith_block::{BlockRange, Blocks, Lba, MemberSet, Membership, Monotonic};

const OLD: MemberSet = MemberSet(0b0111);
const NEW: MemberSet = MemberSet(0b1011);

fn status(w: &World) -> Status {
    w.engine.status(Monotonic(w.now))
}

fn write_some(w: &mut World, count: u64, value: u8) {
    for at in 0..count {
        w.written(at * 70_000, &vec![value; 5000]);
    }
}

/// A fourth replica, empty, that knows of nothing.
fn add_blank(w: &mut World) {
    let mut fake = Fake::new(member(3), NEW, 64 << 20);
    fake.config.generation = 0;
    (fake.iss, fake.trk) = (MemberSet::EMPTY, MemberSet::EMPTY);
    w.fakes.push(fake);
}

fn replace(w: &mut World) {
    let (old, new) = (member(2), member(3));
    assert_eq!(w.engine.may_replace(old, new), Ok(()));
    w.operator(Operator::Replace { old, new });
    w.settle();
}

fn is_over(w: &World) -> bool {
    let status = status(w);
    status.membership.voters == NEW && status.change.is_none() && status.mode == Mode::Healthy
}

fn assert_new_are_equal(w: &World) {
    let range = BlockRange::new(Lba(0), Blocks(1024));
    for at in [1, 3] {
        let same = w.fakes[0].content(range) == w.fakes[at].content(range);
        assert!(same, "member {at} differs");
    }
}

#[test]
fn a_lost_member_is_replaced_while_clients_write() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 30, 1);
    w.isolate(2);
    w.run(4_000);
    add_blank(&mut w);
    replace(&mut w);
    assert_eq!(status(&w).change.map(|c| c.0), Some(ChangeStep::Learning));
    for round in 0..20 {
        write_some(&mut w, 10, 10 + round);
    }
    assert!(w.until(20_000, |w| is_over(w)));
    write_some(&mut w, 10, 40);
    w.run(100);
    assert_new_are_equal(&w);
    for at in [0, 1, 3] {
        let fake = &w.fakes[at];
        assert_eq!(fake.config.voters, NEW, "member {at}");
        assert!(fake.config.is_simple() && fake.dirty[3].is_empty());
    }
    assert_eq!(w.fakes[2].config.voters, OLD, "it never heard of it");
    w.stop();
}

#[test]
fn a_living_member_is_told_that_it_was_replaced() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 10, 1);
    add_blank(&mut w);
    replace(&mut w);
    assert!(w.until(20_000, |w| is_over(w)));
    assert_eq!(w.fakes[2].config.voters, NEW);
    assert!(w.fakes[2].sessions.is_empty(), "nobody speaks to it");
    w.isolate(0);
    write_some(&mut w, 3, 2);
    assert_eq!(w.bytes(0, 4096), vec![2; 4096]);
    w.stop();
}

#[test]
fn the_engine_may_die_in_any_step() {
    // Time from the begin of the change, in tenths of a millisecond.
    for cut in (0..60).chain((60..400).step_by(17)) {
        let mut w = World::new(3);
        w.wait_mode(Mode::Healthy);
        write_some(&mut w, 12, 1);
        if cut % 2 == 0 {
            w.isolate(2);
            w.run(4_000);
        }
        add_blank(&mut w);
        replace(&mut w);
        let end = w.now + cut * super::world::MS / 10;
        w.until(1_000, |w| end <= w.now);
        let mut w = w.restart(|cfg| {
            cfg.engine = trilith_block::Uuid([8; 16]);
            cfg.supersedes = trilith_block::Uuid([7; 16]);
            cfg.attach_epoch = 1;
        });
        let served = |w: &mut World| w.engine.mode().is_active();
        assert!(w.until(20_000, served), "cut at {cut}: {:?}", status(&w));
        write_some(&mut w, 5, 2);
        // Who began it says so again when the new engine has never heard of it.
        let settled = |w: &mut World| status(w).change.is_none();
        assert!(w.until(20_000, settled), "cut at {cut}: {:?}", status(&w));
        if status(&w).membership.voters == OLD {
            replace(&mut w);
        }
        assert!(w.until(20_000, |w| is_over(w)), "cut at {cut}");
        w.run(100);
        assert_new_are_equal(&w);
        w.stop();
    }
}

#[test]
fn a_newcomer_is_sent_nothing_before_everyone_knows_what_it_lacks() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 10, 1);
    w.fakes[1].hold_configs = true;
    add_blank(&mut w);
    replace(&mut w);
    write_some(&mut w, 10, 2);
    w.run(2_000);
    assert_eq!((w.fakes[3].repairs, w.fakes[3].appends), (0, 0));
    assert_eq!(status(&w).members[3].role, Role::Absent);
    assert!(!w.fakes[0].dirty[3].is_empty());
    w.fakes[1].hold_configs = false;
    w.isolate(1);
    w.run(20);
    w.heal(1);
    assert!(w.until(20_000, |w| is_over(w)));
    assert_new_are_equal(&w);
    w.stop();
}

/// A volume that has lost writes once: its loss epoch is 1.
fn after_a_loss() -> World {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 5, 1);
    for fake in &mut w.fakes {
        fake.lose_power();
    }
    let mut w = w.restart(|cfg| cfg.supersedes = super::world::ENGINE);
    w.wait_mode(Mode::Healthy);
    assert_eq!(status(&w).loss, 1);
    w
}

#[test]
fn a_newcomer_votes_only_when_it_knows_the_loss_epoch() {
    let mut w = after_a_loss();
    add_blank(&mut w);
    w.fakes[3].hold_reconciles = true;
    replace(&mut w);
    let counts = |w: &mut World| status(w).counted.contains(member(3));
    assert!(w.until(20_000, counts));
    w.run(5_000);
    assert_eq!(status(&w).change.map(|c| c.0), Some(ChangeStep::Learning));
    assert_eq!(w.fakes[3].loss, 0);
    w.fakes[3].hold_reconciles = false;
    w.isolate(3);
    w.run(20);
    w.heal(3);
    assert!(w.until(20_000, |w| is_over(w)));
    assert_eq!(w.fakes[3].loss, 1, "told in this term");
    w.stop();
}

#[test]
fn a_member_that_missed_the_term_start_is_told_the_loss_epoch() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 5, 1);
    for fake in &mut w.fakes {
        fake.lose_power();
    }
    let mut w = w.restart(|cfg| {
        cfg.supersedes = super::world::ENGINE;
        cfg.timing.lossy_wait = Some(core::time::Duration::from_millis(100));
    });
    w.isolate(2);
    assert!(w.until(20_000, |w| w.engine.mode().is_active()));
    let losses = |w: &World| w.fakes.iter().map(|f| f.loss).collect::<vec::Vec<_>>();
    assert_eq!(losses(&w), [1, 1, 0]);
    w.heal(2);
    w.wait_mode(Mode::Healthy);
    w.run(100);
    assert_eq!(losses(&w), [1, 1, 1]);
    w.stop();
}

#[test]
fn a_joint_configuration_is_not_left_before_both_majorities_hold_it() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 10, 1);
    add_blank(&mut w);
    replace(&mut w);
    let joins = |w: &mut World| status(w).members[3].role == Role::Rebuilding;
    assert!(w.until(20_000, joins));
    for at in [1, 2, 3] {
        w.fakes[at].hold_configs = true;
    }
    let joint = |w: &mut World| status(w).change.map(|c| c.0) == Some(ChangeStep::Joint);
    assert!(w.until(20_000, joint));
    w.run(2_000);
    assert!(joint(&mut w) && w.fakes[0].config.joint);
    // 0 and 1 are a majority of the new voters, but so they are of the old ones: nobody else
    // is needed.
    w.fakes[1].hold_configs = false;
    w.isolate(1);
    w.run(20);
    w.heal(1);
    for at in [2, 3] {
        w.fakes[at].hold_configs = false;
    }
    assert!(w.until(20_000, |w| is_over(w)));
    w.stop();
}

#[test]
fn a_newcomer_may_be_given_up_while_it_learns() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 10, 1);
    add_blank(&mut w);
    w.fakes[1].hold_configs = true;
    replace(&mut w);
    w.run(50);
    w.operator(Operator::KeepOld);
    assert!(w.until(5_000, |w| status(w).change.is_none()));
    let config = status(&w).membership;
    assert!(config.is_simple() && config.voters == OLD);
    write_some(&mut w, 10, 2);
    assert_eq!(w.engine.mode(), Mode::Healthy);
    assert_eq!(w.engine.may_replace(member(2), member(3)), Ok(()));
    w.stop();
}

#[test]
fn a_newcomer_is_not_given_up_for_what_its_welcome_said_before_it_was_told() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 10, 1);
    add_blank(&mut w);
    w.isolate(3);
    replace(&mut w);
    w.run(50);
    let told = status(&w).membership;
    assert!(!told.is_simple() && !told.joint);
    w.fakes[3].hold_promises = true;
    let mut w = w.restart(|cfg| {
        cfg.members = MemberSet(0b1111);
        cfg.engine = trilith_block::Uuid([8; 16]);
        cfg.supersedes = super::world::ENGINE;
        cfg.attach_epoch = 1;
    });
    assert!(w.until(20_000, |w| w.engine.mode().is_active()));
    w.run(1_000);
    let learns = |w: &World| status(w).change.map(|c| c.0) == Some(ChangeStep::Learning);
    assert!(learns(&w), "{:?}", status(&w));
    // The engine before had told it after all; its dirty map is with the others.
    w.fakes[3].config = told;
    w.fakes[3].hold_promises = false;
    w.isolate(3);
    w.run(20);
    w.heal(3);
    assert!(w.until(20_000, |w| is_over(w)), "{:?}", status(&w));
    assert_new_are_equal(&w);
    w.stop();
}

#[test]
fn what_cannot_be_replaced_is_refused_with_its_reason() {
    let mut w = World::new(3);
    let refused = |w: &World, old, new| w.engine.may_replace(member(old), member(new));
    assert_eq!(refused(&w, 2, 3), Err(ChangeError::NotServing));
    w.wait_mode(Mode::Healthy);
    assert_eq!(refused(&w, 4, 3), Err(ChangeError::NotAVoter(member(4))));
    assert_eq!(refused(&w, 2, 1), Err(ChangeError::Taken(member(1))));
    add_blank(&mut w);
    replace(&mut w);
    assert_eq!(refused(&w, 1, 4), Err(ChangeError::Running));
    w.stop();
    let mut w = World::new(3);
    for fake in &mut w.fakes {
        fake.protocol = 1;
    }
    w.wait_mode(Mode::Healthy);
    assert_eq!(refused(&w, 2, 3), Err(ChangeError::TooOld(member(0))));
    w.stop();
}

/// T18.
#[test]
fn an_emptied_voter_does_not_vote() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 3, 1);
    w.isolate(0);
    w.isolate(2);
    let blank = Fake::new(member(2), OLD, 64 << 20);
    w.fakes[2] = blank;
    w.fakes[2].config.generation = 0;
    let mut w = w.restart(|cfg| cfg.attach_epoch = 1);
    w.cut = MemberSet(1);
    w.run(10_000);
    assert!(!w.engine.mode().is_active(), "{:?}", w.engine.mode());
    w.heal(0);
    assert!(w.until(20_000, |w| w.engine.mode().is_active()));
    assert_eq!(w.bytes(0, 4096), vec![1; 4096]);
    w.stop();
}

#[test]
fn what_no_promiser_knew_is_overruled() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.isolate(2);
    // A leader before told member 2 alone, and nobody else ever heard of it.
    w.fakes[2].config = Membership {
        generation: 77,
        next: NEW,
        ..w.fakes[2].config
    };
    let mut w = w.restart(|cfg| cfg.attach_epoch = 1);
    w.cut = MemberSet(4);
    assert!(w.until(20_000, |w| w.engine.mode().is_active()));
    assert!(status(&w).membership.is_simple());
    w.heal(2);
    w.wait_mode(Mode::Healthy);
    w.run(100);
    assert!(w.fakes[2].config.is_simple());
    assert!(w.fakes[2].config.generation > 77);
    w.stop();
}

/// C27: who is connected may become a voter of a configuration that nobody else can tell any more.
#[test]
fn an_engine_that_waits_for_replicas_asks_those_it_has_for_a_newer_configuration() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 3, 1);
    add_blank(&mut w);
    replace(&mut w);
    assert!(w.until(20_000, |w| is_over(w)));
    let settled = w.fakes[0].config;
    // As the second engine finds it, the change is still to come, and two of the old voters are gone.
    for fake in &mut w.fakes {
        fake.config = Membership {
            generation: 1,
            ..OLD.into()
        };
    }
    let mut w = w.restart(|cfg| {
        cfg.members = OLD;
        cfg.attach_epoch = 1;
    });
    w.cut = MemberSet(0b0110);
    w.run(10_000);
    assert_eq!(w.engine.mode(), Mode::Waiting(Waiting::Replicas));
    assert_eq!(status(&w).members[0].link, Link::Up);
    for at in [0, 3] {
        w.fakes[at].config = settled;
    }
    assert!(w.until(10_000, |w| w.engine.mode().is_active()));
    assert_eq!(status(&w).membership.voters, NEW);
    assert_eq!(w.bytes(0, 4096), vec![1; 4096]);
    w.stop();
}

#[test]
fn another_replica_under_the_number_of_a_member_does_not_count() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    write_some(&mut w, 3, 1);
    let identity = w.fakes[2].state(w.now).replica;
    let mut w = w.restart(|cfg| {
        cfg.engine = trilith_block::Uuid([8; 16]);
        cfg.supersedes = trilith_block::Uuid([7; 16]);
        cfg.attach_epoch = 1;
        cfg.identities[2] = trilith_block::Uuid([9; 16]);
    });
    w.wait_mode(Mode::Degraded);
    let two = |w: &World| status(w).members[2].clone();
    w.until(10_000, |w| two(w).refused.is_some());
    assert_eq!(two(&w).refused, Some(trilith_wire::Reason::Mismatch));
    assert!(!status(&w).counted.contains(member(2)) && !two(&w).promised);
    // It was the right one after all.
    w.engine.expect_identity(member(2), identity);
    w.wait_mode(Mode::Healthy);
    assert!(status(&w).counted.contains(member(2)));
    w.stop();
}
