//! The running term of a volume with a witness (7.1). The term is opened with two voters, as the
//! recovery with a witness is not built; then a witness is put into the configuration, of which the
//! test says what it answers.

use super::world::{World, member};
use crate::Mode;
use crate::peer::Link;
use trilith_block::{MemberId, MemberSet, Monotonic};

const WITNESS: usize = 2;

fn witness() -> MemberId {
    member(WITNESS)
}

/// Two data members in sync; the witness is connected and has been told nothing.
fn opened() -> World {
    let mut w = World::new(2);
    w.wait_mode(Mode::Healthy);
    let engine = &mut w.engine;
    engine.membership.voters = engine.membership.voters.with(witness());
    engine.membership.witness = MemberSet::of(witness());
    engine.members = engine.membership.members();
    let peer = &mut engine.peers[WITNESS];
    peer.link = Link::Up;
    peer.promised = true;
    // It has no connection, so no heartbeat to it ever leaves.
    peer.granted_at = Monotonic(u64::MAX / 2);
    engine.open_epochs(engine.sync.iss);
    w
}

/// The newest epoch that the witness was sent.
fn told(w: &World) -> Option<u32> {
    w.engine.peers[WITNESS].epoch_sent
}

#[test]
fn two_data_members_are_a_majority_without_the_witness_and_both_must_accept() {
    let mut w = opened();
    w.engine.peers[WITNESS].promised = false;
    w.fakes[1].hold_acks = true;
    let tag = w.write(0, &[1; 4096]);
    w.run(50);
    assert!(!w.answers.contains_key(&tag), "one of two has it");
    w.fakes[1].hold_acks = false;
    w.let_go(1);
    assert_eq!(w.answer(tag), Ok(std::vec::Vec::new()));
}

#[test]
fn a_lost_data_member_is_left_behind_once_the_witness_says_so() {
    let mut w = opened();
    w.run(10);
    assert_eq!(told(&w), Some(0), "both have the term start");
    w.engine.witness_holds(witness(), 0);
    w.isolate(1);
    let tag = w.write(0, &[1; 4096]);
    let flush = w.flush();
    w.run(6000);
    assert!(!w.engine.sync.iss.contains(member(1)), "demoted (W6)");
    assert_eq!(told(&w), Some(w.engine.sync.n), "told after it (W4)");
    assert!(w.answers.is_empty(), "not in force, nothing committed (W3)");
    assert!(!w.engine.mode().is_active());
    let n = w.engine.sync.n;
    w.engine.witness_holds(witness(), n);
    w.run(10);
    assert_eq!(w.answers.remove(&tag), Some(Ok(std::vec::Vec::new())));
    assert_eq!(w.answers.remove(&flush), Some(Ok(std::vec::Vec::new())));
    assert_eq!(w.engine.mode(), Mode::Degraded);
}

#[test]
fn nobody_is_left_behind_while_the_witness_is_away() {
    let mut w = opened();
    w.engine.peers[WITNESS].promised = false;
    w.isolate(1);
    w.run(900);
    let sync = w.engine.sync;
    assert!(sync.iss.contains(member(1)) && sync.n == 0);
    assert!(!w.engine.rest_goes_on(member(1)));
    w.engine.peers[WITNESS].promised = true;
    assert!(w.engine.rest_goes_on(member(1)));
}

#[test]
fn a_member_that_accepts_and_never_flushes_is_left_behind() {
    let mut w = opened();
    w.run(10);
    w.engine.witness_holds(witness(), 0);
    w.fakes[1].hold_flushes = true;
    let flush = w.flush();
    w.run(3000);
    assert!(!w.engine.sync.iss.contains(member(1)), "demoted (W7)");
    assert!(!w.answers.contains_key(&flush));
    let n = w.engine.sync.n;
    w.engine.witness_holds(witness(), n);
    w.run(10);
    assert_eq!(w.answers.remove(&flush), Some(Ok(std::vec::Vec::new())));
}
