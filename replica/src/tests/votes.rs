//! PREVOTE, VOTE, PROMISE, leases, the fence.

use super::rig::{ALL, E1, E2, Rig, SECRET, acked, refusal};
use crate::store::{DiskOp, FileRole};
use trilith_block::{BlockRange, Blocks, Idx, Lba, Term, Uuid};
use trilith_wire::{Kind, Message, Prevote, Reason};

#[test]
fn a_promise_says_what_the_replica_holds() {
    let mut rig = Rig::new();
    let (conn, _) = rig.login(E1);
    let state = rig.elect(conn, 3);
    assert_eq!((state.term, state.voted_engine), (Term(3), E1));
    rig.stop();
}

#[test]
fn a_term_has_one_vote_and_it_survives_power_loss() {
    let mut rig = Rig::new();
    let (first, _) = rig.login(E1);
    let (second, _) = rig.login(E2);
    rig.elect(first, 2);
    let answer = rig.ask(second, &Message::Vote(rig.vote(2)));
    assert_eq!(refusal(&answer), Some(Reason::Voted));
    let answer = rig.ask(second, &Message::Vote(rig.vote(1)));
    assert_eq!(refusal(&answer), Some(Reason::Term));
    rig.elect(first, 2);
    rig.power_cut();
    let (second, state) = rig.login(E2);
    assert_eq!((state.term, state.voted_engine), (Term(2), E1));
    let answer = rig.ask(second, &Message::Vote(rig.vote(2)));
    assert_eq!(refusal(&answer), Some(Reason::Voted));
    rig.stop();
}

#[test]
fn a_promise_is_not_sent_before_the_vote_is_durable() {
    let mut rig = Rig::new();
    let (conn, _) = rig.login(E1);
    rig.hold = true;
    assert!(rig.ask(conn, &Message::Vote(rig.vote(1))).is_empty());
    let journal = |op: &DiskOp| {
        matches!(
            op,
            DiskOp::Write {
                role: FileRole::Meta,
                dsync: true,
                ..
            }
        )
    };
    assert!(
        rig.queue.iter().any(|(_, op)| journal(op)),
        "the journal is being written"
    );
    // The process dies with the write in flight and lost: nobody was told, the vote is free.
    rig.crash(false);
    assert_eq!(rig.state().term, Term(0));
    rig.stop();
}

#[test]
fn a_promise_waits_for_every_write_in_flight() {
    let mut rig = Rig::new();
    let old = rig.active();
    rig.put(old, 1, 0, 1);
    rig.hold = true;
    rig.write(old, Rig::entry(1, 2, 0, 1), 2);
    rig.write(old, Rig::entry(1, 3, 0, 1), 3);
    rig.run_to_data();
    let (new, _) = rig.login(E2);
    rig.queue_frame(new, &Message::Vote(rig.vote(2)), &[]);
    rig.run_to_data();
    assert!(rig.frames(new).is_empty(), "a write is still in flight");
    // V2: nothing of the old session gets in any more.
    let before = rig.trace.len();
    rig.write(old, Rig::entry(1, 4, 8, 1), 4);
    rig.run_to_data();
    assert_eq!(refusal(&rig.frames(old)), Some(Reason::Term));
    assert!(!rig.trace[before..].iter().any(|op| matches!(
        op,
        DiskOp::Write {
            role: FileRole::Data,
            ..
        }
    )));
    rig.hold = false;
    rig.run();
    let answer = rig.frames(new);
    let Some((Message::Promise { state, .. }, _)) = answer.last() else {
        panic!("{answer:?}")
    };
    // Whatever was queued behind the write is either done or gone by now, never later.
    let emitted = rig.trace.len();
    let now = rig.filled(0);
    assert!(state.upto == Idx(3) && now == 3 || state.upto == Idx(2) && now == 2);
    rig.run();
    assert_eq!(
        rig.trace.len(),
        emitted,
        "nothing reaches the device after PROMISE"
    );
    rig.stop();
}

#[test]
fn after_a_promise_the_old_engine_is_refused_everything() {
    let mut rig = Rig::new();
    let old = rig.active();
    rig.put(old, 1, 0, 1);
    let (new, _) = rig.login(E2);
    rig.elect(new, 2);
    let term = Term(1);
    let range = BlockRange::new(Lba(0), Blocks(1));
    let (idx, tidx, sent_at) = (Idx(2), Idx(0), 0);
    let frames = [
        Message::Read {
            term,
            range,
            rid: 7,
        },
        Message::ExtentHash {
            term,
            range,
            rid: 7,
            unit: Blocks(1),
            seed: 3,
        },
        Message::Heartbeat {
            term,
            commit: Idx(0),
            tidx,
            sent_at,
        },
        Message::Flush {
            term,
            idx,
            tidx,
            sent_at,
        },
        Message::Seal { term, idx },
        Message::Opened { term },
        Message::StepDown { term },
        Message::NeedSet { term },
    ];
    for frame in frames {
        let answer = rig.ask(old, &frame);
        let Message::Nack {
            reason,
            refused,
            term,
            tag,
            ..
        } = answer[0].0
        else {
            panic!("{answer:?}")
        };
        assert_eq!(
            (reason, refused, term),
            (Reason::Term, frame.kind(), Term(2))
        );
        assert!(!matches!(refused, Kind::Read | Kind::ExtentHash) || tag == 7);
    }
    assert_eq!(refusal(&rig.put(old, 2, 0, 9)), Some(Reason::Term));
    assert_eq!(rig.filled(0), 1);
    rig.stop();
}

fn ask_prevote(rig: &mut Rig, conn: trilith_block::ConnId, p: Prevote) -> (Option<Reason>, u32) {
    match rig.ask(conn, &Message::Prevote(p))[0].0 {
        Message::PrevoteReply {
            refused,
            lease_left_ms,
            ..
        } => (refused, lease_left_ms),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_live_leader_is_not_voted_out_but_its_heir_and_a_take_over_may() {
    let mut rig = Rig::new();
    let leader = rig.active();
    rig.put(leader, 1, 0, 1);
    rig.later(1000);
    let (other, state) = rig.login(E2);
    assert_eq!((state.leader, state.lease_left_ms), (E1, 2000));
    let p = rig.vote(2);
    assert_eq!(
        ask_prevote(&mut rig, other, p),
        (Some(Reason::LeaderAlive), 2000)
    );
    assert_eq!(
        ask_prevote(&mut rig, leader, p),
        (None, 0),
        "its own lease does not bind it"
    );
    let heir = Prevote {
        release_lease_of: E1,
        ..p
    };
    assert_eq!(ask_prevote(&mut rig, other, heir), (None, 0));
    let taker = Prevote {
        attach_epoch: 1,
        ..p
    };
    assert_eq!(ask_prevote(&mut rig, other, taker), (None, 2000), "M11");
    let low = Prevote { term: Term(1), ..p };
    assert_eq!(ask_prevote(&mut rig, other, low).0, Some(Reason::Term));
    rig.later(2000);
    assert_eq!(
        ask_prevote(&mut rig, other, p),
        (None, 0),
        "the lease is over"
    );
    rig.stop();
}

#[test]
fn a_heartbeat_renews_the_lease_and_a_stepdown_ends_it() {
    let mut rig = Rig::new();
    let leader = rig.active();
    rig.later(10_000);
    let (term, tidx) = (Term(1), Idx(0));
    let answer = rig.ask(
        leader,
        &Message::Heartbeat {
            term,
            commit: Idx(0),
            tidx,
            sent_at: 42,
        },
    );
    assert!(matches!(
        answer[0].0,
        Message::HeartbeatDone {
            echo: 42,
            upto: Idx(0),
            ..
        }
    ));
    let (other, _) = rig.login(E2);
    let p = rig.vote(2);
    assert_eq!(
        ask_prevote(&mut rig, other, p),
        (Some(Reason::LeaderAlive), 3000)
    );
    assert!(rig.ask(leader, &Message::StepDown { term }).is_empty());
    assert_eq!(ask_prevote(&mut rig, other, p), (None, 0));
    rig.stop();
}

#[test]
fn the_true_rest_of_a_lease_survives_a_restart_of_the_process() {
    let mut rig = Rig::new();
    let leader = rig.active();
    rig.put(leader, 1, 0, 1);
    rig.later(1500);
    rig.crash(true);
    let (other, state) = rig.login(E2);
    assert_eq!((state.leader, state.lease_left_ms), (E1, 1500));
    let heir = Prevote {
        release_lease_of: E1,
        ..rig.vote(2)
    };
    assert_eq!(ask_prevote(&mut rig, other, heir), (None, 0), "M14");
    rig.stop();
}

#[test]
fn after_power_loss_a_whole_lease_may_be_out() {
    let mut rig = Rig::new();
    let leader = rig.active();
    rig.put(leader, 1, 0, 1);
    rig.power_cut();
    let (_, state) = rig.login(E2);
    assert_eq!(state.lease_left_ms, 3000);
    rig.stop();
}

#[test]
fn hello_may_release_the_lease_of_a_dead_engine() {
    let mut rig = Rig::new();
    let leader = rig.active();
    rig.put(leader, 1, 0, 1);
    let hello = trilith_wire::Hello {
        supersedes: E1,
        ..rig.hello(E2)
    };
    let (conn, answer) = rig.greet(hello, &SECRET);
    let Message::Welcome(state) = answer[0].0 else {
        panic!("{answer:?}")
    };
    assert_eq!((state.leader, state.lease_left_ms), (Uuid::NONE, 0));
    let p = rig.vote(2);
    assert_eq!(ask_prevote(&mut rig, conn, p), (None, 0));
    rig.stop();
}

#[test]
fn an_older_attachment_is_fenced_at_hello_prevote_and_vote() {
    let mut rig = Rig::new();
    let (old, _) = rig.login(E1);
    let hello = trilith_wire::Hello {
        attach_epoch: 5,
        ..rig.hello(E2)
    };
    let (conn, _) = rig.greet(hello, &SECRET);
    let vote = Prevote {
        attach_epoch: 5,
        ..rig.vote(1)
    };
    assert!(matches!(
        rig.ask(conn, &Message::Vote(vote))[0].0,
        Message::Promise { .. }
    ));
    let p = rig.vote(9);
    assert_eq!(ask_prevote(&mut rig, old, p).0, Some(Reason::AttachEpoch));
    assert_eq!(
        refusal(&rig.ask(old, &Message::Vote(p))),
        Some(Reason::AttachEpoch)
    );
    let hello = rig.hello(Uuid([3; 16]));
    assert_eq!(
        refusal(&rig.greet(hello, &SECRET).1),
        Some(Reason::AttachEpoch)
    );
    rig.power_cut();
    let hello = rig.hello(E1);
    assert_eq!(
        refusal(&rig.greet(hello, &SECRET).1),
        Some(Reason::AttachEpoch)
    );
    rig.stop();
}

#[test]
fn of_two_candidates_the_higher_term_gets_the_promise() {
    let mut rig = Rig::new();
    let (low, _) = rig.login(E1);
    let (high, _) = rig.login(E2);
    rig.hold = true;
    rig.queue_frame(low, &Message::Vote(rig.vote(1)), &[]);
    rig.run();
    rig.queue_frame(high, &Message::Vote(rig.vote(2)), &[]);
    rig.run();
    assert_eq!(refusal(&rig.frames(low)), Some(Reason::Term));
    rig.hold = false;
    rig.run();
    assert!(matches!(
        rig.frames(high)[0].0,
        Message::Promise { term: Term(2), .. }
    ));
    assert!(rig.frames(low).is_empty());
    rig.stop();
}

#[test]
fn a_new_leader_of_the_same_engine_starts_a_new_stream() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.elect(conn, 2);
    rig.begin(conn, 2, 5, ALL);
    rig.write(conn, Rig::entry(2, 6, 0, 1), 6);
    rig.run();
    assert_eq!(acked(&rig.frames(conn)), Some((6, std::vec![])));
    assert_eq!(
        refusal(&rig.put(conn, 7, 0, 1)),
        Some(Reason::Term),
        "an entry of term 1"
    );
    rig.stop();
}
