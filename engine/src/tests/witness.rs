//! A volume of two replicas and a witness (7.1): elections, recoveries and the running term. Members
//! 0 and 1 hold data, member 2 is the witness.

use super::world::{ENGINE, MS, World, member};
use crate::status::{Link, MemberStatus, Role};
use crate::syncset::Standing;
use crate::{ChangeError, ExitReason, Mode, Waiting};
use std::vec;
use std::vec::Vec;
use trilith_block::{ErrorKind, MemberSet, Monotonic, Op, Uuid};
use trilith_wire::Reason;
use trilith_wire::limits::PROTOCOL_WITNESS;

const D1: usize = 0;
const D2: usize = 1;
const W: usize = 2;

fn opened() -> World {
    let mut w = World::with_witness();
    w.wait_mode(Mode::Healthy);
    w
}

fn set(members: &[usize]) -> MemberSet {
    let one = |m: &usize| member(*m);
    members
        .iter()
        .map(one)
        .fold(MemberSet::EMPTY, MemberSet::with)
}

fn status(w: &World, at: usize) -> MemberStatus {
    w.engine.status(Monotonic(w.now)).members[at].clone()
}

/// D1 goes on alone: D2 is demoted and that is in force.
fn alone() -> World {
    let mut w = opened();
    w.written(0, &[1; 4096]);
    w.isolate(D2);
    let tag = w.write(0, &[2; 4096]);
    assert_eq!(w.answer(tag), Ok(Vec::new()));
    assert_eq!(w.fakes[W].iss, set(&[D1]), "the witness knows");
    w
}

#[test]
fn a_new_volume_opens_and_the_witness_knows_who_holds_its_data() {
    let mut w = opened();
    w.written(4096, &[7; 8192]);
    assert_eq!(w.bytes(4096, 8192), [7; 8192]);
    let flush = w.flush();
    assert_eq!(w.answer(flush), Ok(Vec::new()));
    assert_eq!(w.fakes[W].iss, set(&[D1, D2]));
    assert_eq!(w.fakes[W].se.term, w.fakes[D1].se.term);
    assert_eq!(status(&w, W).role, Role::Witness);
    assert_eq!(w.engine.membership().witness, set(&[W]));
    w.stop();
    assert_eq!(w.exit, Some(ExitReason::Stopped { sealed: true }));
    assert!(w.fakes[W].sealed, "W13");
}

#[test]
fn a_stop_without_the_witness_is_not_sealed_as_a_whole() {
    let mut w = opened();
    w.isolate(W);
    w.wait_mode(Mode::Degraded);
    w.stop();
    assert_eq!(w.exit, Some(ExitReason::Stopped { sealed: false }));
}

#[test]
fn two_data_members_are_a_majority_without_the_witness_and_both_must_accept() {
    let mut w = opened();
    w.isolate(W);
    w.wait_mode(Mode::Degraded);
    w.fakes[D2].hold_acks = true;
    let tag = w.write(0, &[1; 4096]);
    w.run(50);
    assert!(!w.answers.contains_key(&tag), "one of two has it");
    w.fakes[D2].hold_acks = false;
    w.let_go(D2);
    assert_eq!(w.answer(tag), Ok(Vec::new()));
}

#[test]
fn a_volume_opens_with_both_replicas_and_no_witness() {
    let mut w = World::with_witness();
    w.isolate(W);
    w.wait_mode(Mode::Degraded);
    w.written(0, &[3; 4096]);
    w.heal(W);
    w.wait_mode(Mode::Healthy);
    assert_eq!(w.fakes[W].iss, set(&[D1, D2]), "told when it came");
}

#[test]
fn a_lost_data_member_is_left_behind_once_the_witness_says_so() {
    let mut w = opened();
    w.isolate(D2);
    w.fakes[W].lose_epochs = true;
    let tag = w.write(0, &[1; 4096]);
    let flush = w.flush();
    w.run(3900);
    assert!(!w.engine.sync.iss.contains(member(D2)), "demoted (W6)");
    assert_eq!(w.fakes[D1].iss, set(&[D1]), "and durable there (W4)");
    assert!(w.answers.is_empty(), "not in force, nothing committed (W3)");
    assert!(!w.engine.mode().is_active());
    w.fakes[W].lose_epochs = false;
    w.isolate(W);
    w.heal(W);
    assert_eq!(w.answer(tag), Ok(Vec::new()));
    assert_eq!(w.answer(flush), Ok(Vec::new()));
    assert_eq!(w.engine.mode(), Mode::Degraded);
    assert_eq!(w.fakes[W].iss, set(&[D1]));
}

#[test]
fn nobody_is_left_behind_while_the_witness_is_away() {
    let mut w = opened();
    w.isolate(W);
    w.isolate(D2);
    let tag = w.write(0, &[1; 4096]);
    w.run(10_000);
    assert!(w.engine.sync.iss.contains(member(D2)));
    assert!(w.answers.is_empty() && !w.engine.mode().is_active());
    w.heal(W);
    assert_eq!(w.answer(tag), Ok(Vec::new()));
    assert_eq!(w.fakes[W].iss, set(&[D1]));
}

#[test]
fn a_member_that_accepts_and_never_flushes_is_left_behind() {
    let mut w = opened();
    w.fakes[D2].hold_flushes = true;
    let flush = w.flush();
    assert_eq!(w.answer(flush), Ok(Vec::new()));
    assert_eq!(w.fakes[W].iss, set(&[D1]), "demoted (W7)");
}

#[test]
fn who_was_left_behind_is_copied_to_and_joins() {
    let mut w = alone();
    w.heal(D2);
    w.wait_mode(Mode::Healthy);
    let block = w.fakes[D2].blocks.values().next();
    assert_eq!(block.map(|b| b[0]), Some(2));
    w.run(10);
    assert_eq!(w.fakes[W].iss, set(&[D1, D2]));
    w.isolate(D1);
    assert_eq!(w.bytes(0, 4096), [2; 4096]);
}

/// M3: who is about to join is asked for, and has room as well.
#[test]
fn a_write_to_a_new_extent_while_a_member_joins_is_no_lack_of_room() {
    let mut w = alone();
    w.delay[D2] = 100 * MS;
    w.heal(D2);
    let joins = |w: &mut World| {
        let standing = w.engine.peers[D2].standing;
        matches!(standing, Standing::Joining { .. })
    };
    assert!(w.until(60_000, joins));
    let tag = w.write(40 << 20, &[6; 4096]);
    assert_eq!(w.answer(tag), Ok(Vec::new()));
    w.wait_mode(Mode::Healthy);
}

/// W8: the TOLD that is to open the volume again is lost, with the power of who was to hear it. Simulator
/// seed 5850202.
#[test]
fn who_was_not_told_after_all_is_told_again() {
    let mut w = opened();
    w.isolate(D2);
    w.fakes[W].lose_epochs = true;
    let tag = w.write(0, &[1; 4096]);
    w.run(3900);
    assert!(!w.engine.sync.iss.contains(member(D2)));
    w.isolate(W);
    w.delay[D2] = 5 * MS;
    w.heal(D2);
    let telling = |w: &mut World| {
        let standing = w.engine.peers[D2].standing;
        matches!(standing, Standing::Telling { .. })
    };
    assert!(w.until(10_000, telling));
    w.fakes[D2].lose_power();
    w.isolate(D2);
    w.heal(D2);
    assert_eq!(w.answer(tag), Ok(Vec::new()));
    let joined = w.until(60_000, |w| status(w, D2).role == Role::InSync);
    assert!(joined && w.engine.mode() == Mode::Degraded);
}

/// W8: a member that was slow rests after its demotion, but not while nothing else can put that in
/// force.
#[test]
fn who_rests_is_told_when_the_volume_waits_for_it() {
    let mut w = opened();
    w.engine.peers[D2].rest = crate::limits::REST_MAX;
    w.engine.peers[D2].joined_at = Monotonic(w.now);
    w.fakes[W].lose_epochs = true;
    w.fakes[D2].hold_flushes = true;
    let tag = w.flush();
    assert!(w.until(10_000, |w| !w.engine.sync.iss.contains(member(D2))));
    w.isolate(W);
    w.fakes[D2].hold_flushes = false;
    assert!(w.until(20_000, |w| w.answers.contains_key(&tag)));
    assert_eq!(w.engine.mode(), Mode::Degraded);
}

/// W8: with the witness away its own record puts in force that it is out.
#[test]
fn who_was_left_behind_joins_without_the_witness() {
    let mut w = alone();
    w.isolate(W);
    w.heal(D2);
    let joined = w.until(60_000, |w| status(w, D2).role == Role::InSync);
    assert!(joined && w.engine.mode() == Mode::Degraded);
    assert_eq!(w.fakes[W].iss, set(&[D1]), "it was not told");
    w.written(4096, &[4; 4096]);
    // A later engine finds D2 and the witness: what D2 says is newer.
    let mut w = w.restart(|_| {});
    w.isolate(D1);
    w.wait_mode(Mode::Degraded);
    assert_eq!(w.bytes(0, 8192), [[2; 4096], [4; 4096]].concat());
}

#[test]
fn another_engine_goes_on_with_one_that_was_in_sync_and_the_witness() {
    let mut w = opened();
    w.written(0, &[5; 4096]);
    let mut w = w.restart(|_| {});
    w.isolate(D1);
    w.wait_mode(Mode::Degraded);
    assert!(!w.engine.lossy, "clean");
    assert_eq!(w.bytes(0, 4096), [5; 4096]);
    w.written(0, &[6; 4096]);
    assert_eq!(w.fakes[W].iss, set(&[D2]));
}

#[test]
fn another_engine_waits_for_the_one_that_went_on_alone() {
    let w = alone();
    let mut w = w.restart(|cfg| cfg.timing.lossy_wait = Some(core::time::Duration::ZERO));
    w.isolate(D1);
    w.run(120_000);
    assert!(matches!(w.engine.mode(), Mode::Waiting(_)));
    w.heal(D1);
    w.wait_mode(Mode::Healthy);
    assert!(!w.engine.lossy, "clean");
    assert_eq!(w.bytes(0, 4096), [2; 4096]);
}

/// A shrink that the witness was not told binds nobody: the same engine, in a new term.
#[test]
fn a_shrink_that_never_got_in_force_is_taken_back() {
    let mut w = opened();
    w.written(0, &[5; 4096]);
    w.isolate(D2);
    w.fakes[W].lose_epochs = true;
    w.run(3900);
    assert_eq!(w.fakes[D1].iss, set(&[D1]));
    w.isolate(D1);
    w.heal(D2);
    w.fakes[W].lose_epochs = false;
    w.wait_mode(Mode::Degraded);
    assert_eq!(w.fakes[W].iss, set(&[D2]));
    assert_eq!(w.bytes(0, 4096), [5; 4096]);
}

/// W10, W14: the only one that was in sync loses its power. Its acknowledged writes are gone, and
/// clients are told so.
#[test]
fn the_only_one_in_sync_loses_its_power() {
    let mut w = alone();
    let flush = w.flush();
    assert_eq!(w.answer(flush), Ok(Vec::new()));
    w.fakes[D1].lose_power();
    w.isolate(D1);
    w.heal(D1);
    w.until(120_000, |w| w.engine.loss == 1);
    assert!(w.engine.lossy);
    assert_eq!(w.fakes[W].loss, 1, "C3");
    assert_eq!(w.fakes[D1].loss, 1);
}

/// W10: an epoch that only D1 has is no excuse where the one before it, of the same set, is in force:
/// D1 has acknowledged writes by itself all along.
#[test]
fn the_only_one_in_sync_loses_its_power_under_an_epoch_that_only_it_has() {
    let mut w = alone();
    // The epoch by which D2 is tracked gets to D1; the witness is asked to record it and does not,
    // and D2 dies before it is told.
    w.fakes[W].lose_epochs = true;
    w.heal(D2);
    w.delay[D2] = 5 * MS;
    let tracked = w.until(60_000, |w| w.fakes[W].se < w.fakes[D1].se);
    assert!(
        tracked && w.fakes[D2].se < w.fakes[W].se,
        "an epoch at D1 only"
    );
    assert_eq!((w.fakes[W].iss, w.fakes[D1].iss), (set(&[D1]), set(&[D1])));
    w.isolate(D2);
    w.written(4096, &[3; 4096]);
    w.fakes[D1].lose_power();
    let mut w = w.restart(|cfg| cfg.supersedes = ENGINE);
    w.fakes[W].lose_epochs = false;
    w.cut = MemberSet::EMPTY;
    assert!(
        w.until(120_000, |w| w.engine.loss == 1),
        "never silent (M8)"
    );
    assert!(w.engine.lossy);
}

/// W10: one of two loses its power while the other one lives: nothing is lost.
#[test]
fn one_of_two_in_sync_loses_its_power() {
    let mut w = opened();
    w.written(0, &[5; 4096]);
    w.fakes[D1].lose_power();
    w.isolate(D1);
    w.heal(D1);
    w.run(5000);
    w.wait_mode(Mode::Healthy);
    assert_eq!((w.engine.loss, w.engine.lossy), (0, false));
    assert_eq!(w.bytes(0, 4096), [5; 4096]);
}

#[test]
fn no_member_is_replaced() {
    let mut w = opened();
    let refused = w.engine.may_replace(member(D1), member(3));
    assert_eq!(refused, Err(ChangeError::HasWitness));
    w.operator(crate::Operator::Replace {
        old: member(D1),
        new: member(3),
    });
    w.written(0, &vec![1; 4096]);
    assert_eq!(w.engine.membership().members(), set(&[D1, D2, W]));
}

/// W16: it would take the witness for one that holds data.
#[test]
fn a_replica_that_does_not_know_the_word_is_refused() {
    let mut w = World::with_witness();
    w.fakes[D2].protocol = PROTOCOL_WITNESS - 1;
    w.wait_mode(Mode::Degraded);
    let found = status(&w, D2);
    assert_eq!(found.refused, Some(Reason::Protocol));
    assert_eq!(found.link, Link::Refused);
}

#[test]
fn block_status_and_reads_never_ask_the_witness() {
    let mut w = opened();
    w.isolate(D1);
    w.written(0, &[8; 4096]);
    let range = trilith_block::ByteRange::new(0, 64 << 20);
    let tag = w.submit_full(Op::BlockStatus, range, Default::default(), None);
    assert!(w.answer(tag).is_ok());
    assert_eq!(w.fakes[W].reads, 0);
}

/// C44, simulator seed 5023508: the one that is waited for gave its vote of this term to an engine that
/// is dead. Only a higher term brings it back.
#[test]
fn the_one_that_is_waited_for_voted_for_another() {
    let w = alone();
    let mut w = w.restart(|_| {});
    w.isolate(D1);
    let waits = |w: &World| w.engine.mode() == Mode::Waiting(Waiting::MoreMembers);
    assert!(w.until(10_000, |w| waits(w)));
    let term = w.engine.term;
    (w.fakes[D1].term, w.fakes[D1].voted) = (term, Uuid([0x77; 16]));
    w.heal(D1);
    w.wait_mode(Mode::Healthy);
    assert!(w.engine.term > term);
    assert_eq!(w.bytes(0, 4096), [2; 4096]);
}

/// M3, W6: a full disk is one failure of the three.
#[test]
fn a_replica_without_room_is_left_behind() {
    let mut w = opened();
    w.written(0, &[1; 4096]);
    w.fakes[D2].free_extents = 0;
    w.fakes[D2].fail_writes = true;
    w.run(2000);
    let tag = w.write(40 << 20, &[6; 4096]);
    assert_eq!(w.answer(tag), Ok(Vec::new()));
    assert_eq!(w.fakes[W].iss, set(&[D1]));
    // Not while nobody could know that the other one goes on alone.
    w.fakes[D2].free_extents = 1000;
    w.fakes[D2].fail_writes = false;
    w.wait_mode(Mode::Healthy);
    w.fakes[D2].free_extents = 0;
    w.isolate(W);
    w.run(2000);
    let tag = w.write(48 << 20, &[6; 4096]);
    assert_eq!(w.answer(tag), Err(ErrorKind::NoSpace));
}
