//! The witness (7.1, W1): each frame, restarts, power loss.

use super::rig::{ALL, CAPACITY, E1, E2, Frame, Rig, SECRET, refusal};
use crate::status::Role;
use crate::store::{DiskOp, FileRole};
use std::vec;
use std::vec::Vec;
use trilith_block::{
    BlockRange, Blocks, ConnId, Idx, Lba, MemberId, MemberSet, Membership, SyncEpoch, Term,
};
use trilith_wire::limits::{PROTOCOL_MAX, PROTOCOL_WITNESS};
use trilith_wire::{Kind, MapKind, Message, Prevote, Reason, ReplicaState};

const BOTH: MemberSet = MemberSet(0b011);
const FIRST: MemberSet = MemberSet(0b001);
const SECOND: MemberSet = MemberSet(0b010);

fn term_start(term: u64, start: u64, iss: MemberSet, loss: u32) -> Message<'static> {
    Message::TermStart {
        term: Term(term),
        start: Idx(start),
        iss,
        loss,
    }
}

fn term_started(term: u64, start: u64) -> Message<'static> {
    Message::TermStartDone {
        term: Term(term),
        start: Idx(start),
    }
}

fn sync_set(idx: u64, n: u32, iss: MemberSet, trk: MemberSet) -> Message<'static> {
    let joins = trk.minus(SECOND).is_empty();
    Message::SyncSet {
        term: Term(1),
        idx: Idx(idx),
        n,
        iss,
        trk,
        tidx: Idx(idx - 1),
        join: joins.then(|| MemberId::new(0).unwrap()),
    }
}

fn sync_set_done(idx: u64, n: u32) -> Message<'static> {
    Message::SyncSetDone {
        term: Term(1),
        idx: Idx(idx),
        n,
    }
}

fn heartbeat(term: u64, sent_at: u64) -> Message<'static> {
    Message::Heartbeat {
        term: Term(term),
        commit: Idx(70),
        tidx: Idx(60),
        sent_at,
    }
}

fn only(frames: &[Frame]) -> &Message<'static> {
    assert_eq!(frames.len(), 1, "{frames:?}");
    &frames[0].0
}

/// Elected in term 1, which has begun with both holders of data.
fn active(rig: &mut Rig) -> ConnId {
    let (conn, _) = rig.login(E1);
    rig.elect(conn, 1);
    let answer = rig.ask(conn, &term_start(1, 40, BOTH, 0));
    assert_eq!(*only(&answer), term_started(1, 40));
    conn
}

fn epoch(state: &ReplicaState) -> (u64, u32, MemberSet, MemberSet) {
    (state.se.term.0, state.se.n, state.iss, state.trk)
}

/// An operation on the data file, which a witness does not have.
pub(super) fn is_of_data(op: &DiskOp) -> bool {
    match op {
        DiskOp::Read { role, .. }
        | DiskOp::Write { role, .. }
        | DiskOp::Flush { role }
        | DiskOp::Allocate { role, .. }
        | DiskOp::PunchHole { role, .. }
        | DiskOp::ZeroRange { role, .. } => *role == FileRole::Data,
    }
}

/// It ends, and has never asked for anything of a data file.
fn stop(mut rig: Rig) {
    let trace = core::mem::take(&mut rig.trace);
    assert!(
        !trace.is_empty() && !trace.iter().any(is_of_data),
        "{trace:?}"
    );
    rig.stop();
}

#[test]
fn a_witness_welcomes_votes_and_says_what_it_is() {
    let mut rig = Rig::witness();
    let (conn, state) = rig.login(E1);
    assert_eq!(state.config.witness, MemberSet(0b100));
    assert_eq!((state.config.voters, state.iss), (ALL, BOTH));
    assert!(!state.flags.tainted && !state.flags.need && !state.flags.failed);
    let pre = rig.ask(conn, &Message::Prevote(rig.vote(1)));
    assert!(matches!(
        only(&pre),
        Message::PrevoteReply { refused: None, .. }
    ));
    let promised = rig.elect(conn, 3);
    assert_eq!((promised.term, promised.voted_engine), (Term(3), E1));
    let (other, _) = rig.login(E2);
    let late = rig.ask(other, &Message::Vote(rig.vote(3)));
    assert_eq!(refusal(&late), Some(Reason::Voted));
    assert_eq!(rig.replica.status(rig.now).role, Role::Witness);
    stop(rig);
}

#[test]
fn a_vote_of_a_witness_survives_a_power_loss() {
    let mut rig = Rig::witness();
    let (conn, _) = rig.login(E1);
    rig.elect(conn, 4);
    rig.power_cut();
    let (other, state) = rig.login(E2);
    assert_eq!((state.term, state.voted_engine), (Term(4), E1));
    let vote = rig.ask(other, &Message::Vote(rig.vote(4)));
    assert_eq!(refusal(&vote), Some(Reason::Voted));
    stop(rig);
}

#[test]
fn a_term_start_is_a_record_that_is_durable_before_its_answer() {
    let mut rig = Rig::witness();
    let (conn, _) = rig.login(E1);
    rig.elect(conn, 1);
    rig.hold = true;
    assert!(rig.ask(conn, &term_start(1, 40, FIRST, 2)).is_empty());
    assert_eq!(epoch(&rig.state()), (0, 0, BOTH, BOTH), "not yet");
    rig.hold = false;
    rig.run();
    assert_eq!(*only(&rig.frames(conn)), term_started(1, 40));
    rig.power_cut();
    let (_, state) = rig.login(E1);
    assert_eq!((epoch(&state), state.loss), ((1, 0, FIRST, FIRST), 2));
    stop(rig);
}

#[test]
fn it_claims_no_entries_whatever_positions_it_is_told() {
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    rig.ask(conn, &heartbeat(1, 5));
    rig.ask(conn, &sync_set(72, 1, FIRST, BOTH));
    for _ in 0..2 {
        let s = rig.state();
        assert_eq!((s.w, s.upto, s.tidx, s.max_idx), Default::default());
        assert_eq!(s.window_count, 0);
        rig.crash(true);
    }
    stop(rig);
}

#[test]
fn a_sync_set_is_a_record_that_is_durable_before_its_answer() {
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    rig.hold = true;
    assert!(rig.ask(conn, &sync_set(57, 1, FIRST, BOTH)).is_empty());
    assert_eq!(rig.state().se.n, 0);
    rig.hold = false;
    rig.run();
    // No ACK: it has no stream.
    assert_eq!(*only(&rig.frames(conn)), sync_set_done(57, 1));
    rig.power_cut();
    assert_eq!(epoch(&rig.login(E1).1), (1, 1, FIRST, BOTH));
    stop(rig);
}

/// W4: it is sent the newest epoch only, so numbers may be missing, the term's start included.
#[test]
fn an_epoch_may_leave_numbers_out_and_may_be_the_first_of_its_term() {
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    let answer = rig.ask(conn, &sync_set(90, 5, SECOND, BOTH));
    assert_eq!(*only(&answer), sync_set_done(90, 5));
    rig.elect(conn, 2);
    let first = Message::SyncSet {
        term: Term(2),
        idx: Idx(95),
        n: 2,
        iss: FIRST,
        trk: FIRST,
        tidx: Idx(95),
        join: None,
    };
    let answer = rig.ask(conn, &first);
    assert!(matches!(only(&answer), Message::SyncSetDone { n: 2, .. }));
    assert_eq!(epoch(&rig.state()), (2, 2, FIRST, FIRST));
    stop(rig);
}

#[test]
fn the_durable_epoch_sent_again_is_answered_again_without_a_write() {
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    let writes = rig.trace.len();
    assert_eq!(
        *only(&rig.ask(conn, &term_start(1, 40, BOTH, 0))),
        term_started(1, 40)
    );
    assert_eq!(rig.trace.len(), writes);
    rig.ask(conn, &sync_set(41, 1, FIRST, FIRST));
    rig.power_cut();
    let (conn, _) = rig.login(E1);
    let writes = rig.trace.len();
    assert_eq!(
        *only(&rig.ask(conn, &sync_set(41, 1, FIRST, FIRST))),
        sync_set_done(41, 1)
    );
    assert_eq!(rig.trace.len(), writes);
    stop(rig);
}

#[test]
fn an_epoch_at_or_below_the_durable_one_that_is_another_one_ends_the_session() {
    let older: [Message<'static>; 4] = [
        term_start(1, 40, BOTH, 0),
        sync_set(50, 1, BOTH, BOTH),
        sync_set(60, 2, SECOND, BOTH),
        sync_set(60, 2, FIRST, FIRST),
    ];
    for frame in older {
        let mut rig = Rig::witness();
        let conn = active(&mut rig);
        rig.ask(conn, &sync_set(60, 2, FIRST, BOTH));
        let answer = rig.ask(conn, &frame);
        assert_eq!(refusal(&answer), Some(Reason::Malformed), "{frame:?}");
        assert_eq!(epoch(&rig.state()), (1, 2, FIRST, BOTH));
        stop(rig);
    }
}

#[test]
fn an_epoch_whose_sets_make_no_sense_ends_the_session() {
    let none = MemberSet::EMPTY;
    let frames: [Message<'static>; 8] = [
        term_start(1, 0, none, 0),
        term_start(1, 0, ALL, 0),
        term_start(1, 0, MemberSet(0b1001), 0),
        sync_set(2, 1, none, BOTH),
        sync_set(2, 1, BOTH, FIRST),
        sync_set(2, 1, FIRST, ALL),
        sync_set(2, 1, MemberSet(0b101), ALL),
        sync_set(2, 0, BOTH, BOTH),
    ];
    for frame in frames {
        let mut rig = Rig::witness();
        let (conn, _) = rig.login(E1);
        rig.elect(conn, 1);
        let answer = rig.ask(conn, &frame);
        assert_eq!(refusal(&answer), Some(Reason::Malformed), "{frame:?}");
        assert_eq!(rig.state().se, SyncEpoch::default());
        stop(rig);
    }
}

#[test]
fn only_the_promised_term_of_the_promised_engine_makes_records() {
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    let (other, _) = rig.login(E2);
    let nacked = |frames: &[Frame]| {
        let nack = Message::Nack {
            reason: Reason::Term,
            refused: Kind::SyncSet,
            term: Term(1),
            attach_epoch: 0,
            idx: Idx(50),
            tag: 0,
        };
        *only(frames) == nack
    };
    let frame = sync_set(50, 1, SECOND, SECOND);
    assert!(nacked(&rig.ask(other, &frame)));
    rig.elect(other, 2);
    let answer = rig.ask(conn, &frame);
    assert_eq!(refusal(&answer), Some(Reason::Term));
    assert_eq!(epoch(&rig.state()), (1, 0, BOTH, BOTH));
    stop(rig);
}

/// Lemma 2: what the promise says is at or above all that may still be answered.
#[test]
fn a_promise_waits_for_the_epoch_on_its_way_and_nobody_is_told_of_it_after() {
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    let (other, _) = rig.login(E2);
    rig.hold = true;
    rig.ask(conn, &sync_set(50, 1, SECOND, SECOND));
    let vote = rig.vote(2);
    assert!(rig.ask(other, &Message::Vote(vote)).is_empty());
    rig.hold = false;
    rig.run();
    let answer = rig.frames(other);
    let Message::Promise { state, .. } = only(&answer) else {
        unreachable!("{answer:?}")
    };
    assert_eq!(epoch(state), (1, 1, SECOND, SECOND));
    assert!(rig.frames(conn).is_empty(), "the fence is up");
    stop(rig);
}

#[test]
fn what_follows_an_epoch_waits_until_it_is_durable() {
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    rig.hold = true;
    rig.queue_frame(conn, &sync_set(50, 1, BOTH, BOTH), &[]);
    rig.queue_frame(conn, &sync_set(51, 2, FIRST, FIRST), &[]);
    rig.queue_frame(conn, &heartbeat(1, 9), &[]);
    rig.run();
    assert!(rig.frames(conn).is_empty());
    rig.hold = false;
    rig.run();
    let answer: Vec<_> = rig.frames(conn).into_iter().map(|f| f.0).collect();
    assert_eq!(answer[..2], [sync_set_done(50, 1), sync_set_done(51, 2)]);
    assert!(matches!(answer[2], Message::HeartbeatDone { echo: 9, .. }));
    stop(rig);
}

#[test]
fn a_reconcile_makes_the_loss_epoch_durable_before_its_answer() {
    let mut rig = Rig::witness();
    let (conn, _) = rig.login(E1);
    rig.elect(conn, 1);
    let (term, loss) = (Term(1), 6);
    rig.hold = true;
    assert!(rig.ask(conn, &Message::Reconcile { term, loss }).is_empty());
    rig.hold = false;
    rig.run();
    assert_eq!(*only(&rig.frames(conn)), Message::ReconcileDone { term });
    rig.power_cut();
    let state = rig.login(E1).1;
    assert_eq!((state.loss, state.flags.need), (6, false));
    // An epoch without one keeps it.
    let (conn, _) = rig.login(E1);
    rig.ask(conn, &term_start(1, 0, BOTH, 5));
    rig.ask(conn, &sync_set(1, 1, FIRST, FIRST));
    assert_eq!((rig.state().loss, rig.state().se.n), (6, 1));
    stop(rig);
}

#[test]
fn a_reconfigure_keeps_the_witness() {
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    let config = rig.state().config.renewed(Term(1)).unwrap();
    let answer = rig.ask(
        conn,
        &Message::Reconfigure {
            term: Term(1),
            config,
        },
    );
    let (term, generation) = (Term(1), config.generation);
    assert_eq!(
        *only(&answer),
        Message::ReconfigureDone { term, generation }
    );
    rig.power_cut();
    assert_eq!(rig.login(E1).1.config, config);
    stop(rig);
}

/// W16, at any member.
#[test]
fn who_the_witness_is_does_not_change() {
    let makers = [Rig::witness as fn() -> Rig, Rig::beside_a_witness, Rig::new];
    for (make, witness) in makers.into_iter().zip([0b000, 0b001, 0b100]) {
        let mut rig = make();
        let (conn, state) = rig.login(E1);
        rig.elect(conn, 1);
        let config = Membership {
            witness: MemberSet(witness),
            ..state.config.renewed(Term(1)).unwrap()
        };
        let term = Term(1);
        let answer = rig.ask(conn, &Message::Reconfigure { term, config });
        assert_eq!(refusal(&answer), Some(Reason::Malformed));
        assert_eq!(rig.state().config, state.config);
        rig.stop();
    }
}

#[test]
fn a_heartbeat_grants_a_lease_and_is_echoed_and_step_down_gives_it_up() {
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    let answer = rig.ask(conn, &heartbeat(1, 77));
    assert!(matches!(
        only(&answer),
        Message::HeartbeatDone {
            upto: Idx(0),
            w: Idx(0),
            echo: 77,
            ..
        }
    ));
    let (other, state) = rig.login(E2);
    assert!(state.lease_left_ms > 0 && state.leader == E1);
    let pre = Prevote {
        term: Term(2),
        ..rig.vote(2)
    };
    let refused = |frames: &[Frame]| match only(frames) {
        Message::PrevoteReply { refused, .. } => *refused,
        frame => unreachable!("{frame:?}"),
    };
    let answer = rig.ask(other, &Message::Prevote(pre));
    assert_eq!(refused(&answer), Some(Reason::LeaderAlive));
    assert!(
        rig.ask(conn, &Message::StepDown { term: Term(1) })
            .is_empty()
    );
    let answer = rig.ask(other, &Message::Prevote(pre));
    assert_eq!(refused(&answer), None);
    stop(rig);
}

#[test]
fn a_heartbeat_is_echoed_before_the_term_has_begun_here() {
    let mut rig = Rig::witness();
    let (conn, _) = rig.login(E1);
    rig.elect(conn, 1);
    let answer = rig.ask(conn, &heartbeat(1, 3));
    assert!(matches!(
        only(&answer),
        Message::HeartbeatDone { echo: 3, .. }
    ));
    stop(rig);
}

#[test]
fn opened_changes_nothing() {
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    let before = rig.state();
    assert!(rig.ask(conn, &Message::Opened { term: Term(1) }).is_empty());
    assert_eq!(rig.state(), before);
    stop(rig);
}

#[test]
fn a_sealed_witness_owes_nobody_a_lease_until_the_next_epoch() {
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    rig.ask(conn, &heartbeat(1, 1));
    let (term, idx) = (Term(1), Idx(1000));
    rig.hold = true;
    assert!(rig.ask(conn, &Message::Seal { term, idx }).is_empty());
    rig.hold = false;
    rig.run();
    let sealed = true;
    let answer = rig.frames(conn);
    assert_eq!(*only(&answer), Message::SealDone { term, sealed });
    rig.power_cut();
    let (conn, state) = rig.login(E2);
    assert!(state.flags.sealed && !state.flags.tainted);
    assert_eq!(state.lease_left_ms, 0);
    rig.elect(conn, 2);
    rig.ask(conn, &term_start(2, 1000, BOTH, 0));
    assert!(!rig.state().flags.sealed);
    stop(rig);
}

#[test]
fn a_seal_before_the_term_has_begun_here_is_refused() {
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    rig.elect(conn, 2);
    let (term, idx, sealed) = (Term(2), Idx(0), false);
    let answer = rig.ask(conn, &Message::Seal { term, idx });
    assert_eq!(*only(&answer), Message::SealDone { term, sealed });
    assert!(!rig.state().flags.sealed);
    stop(rig);
}

/// C31 at a witness.
#[test]
fn a_seal_of_a_witness_hides_no_lease_of_a_later_term() {
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    let (term, idx) = (Term(1), Idx(0));
    rig.ask(conn, &Message::Seal { term, idx });
    rig.elect(conn, 2);
    rig.ask(conn, &heartbeat(2, 1));
    rig.power_cut();
    let (_, state) = rig.login(E2);
    assert!(state.flags.sealed && state.lease_left_ms > 0, "{state:?}");
    stop(rig);
}

#[test]
fn after_a_power_loss_it_is_untainted_and_reports_a_full_lease() {
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    rig.ask(conn, &heartbeat(1, 1));
    let full = u32::try_from(crate::limits::LEASE.as_millis()).unwrap();
    rig.later(10 * u64::from(full));
    assert_eq!(rig.login(E2).1.lease_left_ms, 0);
    rig.power_cut();
    let opened = rig.opened.unwrap();
    assert!(!opened.resumed && !opened.newly_tainted && !opened.maps_lost);
    let (other, state) = rig.login(E2);
    assert!(!state.flags.tainted);
    assert_eq!((state.lease_left_ms, state.leader), (full, E1));
    let answer = rig.ask(other, &Message::Prevote(rig.vote(2)));
    assert!(matches!(
        only(&answer),
        Message::PrevoteReply {
            refused: Some(Reason::LeaderAlive),
            ..
        }
    ));
    stop(rig);
}

/// M14: the window header is there, so the lease is the one that was granted.
#[test]
fn after_a_process_crash_it_knows_its_lease() {
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    rig.ask(conn, &heartbeat(1, 1));
    rig.ask(conn, &sync_set(50, 1, FIRST, BOTH));
    rig.later(1000);
    let before = rig.login(E2).1.lease_left_ms;
    rig.crash(false);
    assert!(rig.opened.unwrap().resumed);
    let (_, state) = rig.login(E2);
    assert_eq!((state.lease_left_ms, state.leader), (before, E1));
    assert_eq!(epoch(&state), (1, 1, FIRST, BOTH));
    let full = u32::try_from(crate::limits::LEASE.as_millis()).unwrap();
    assert!(before > 0 && before < full);
    stop(rig);
}

/// The process dies with the record on its way; the write may have landed.
#[test]
fn after_a_process_crash_the_epoch_is_the_old_or_the_new_one() {
    for land in [false, true] {
        let mut rig = Rig::witness();
        let conn = active(&mut rig);
        rig.hold = true;
        rig.ask(conn, &sync_set(50, 1, FIRST, FIRST));
        rig.crash(land);
        let (conn, state) = rig.login(E1);
        assert_eq!(state.se.n, u32::from(land));
        let answer = rig.ask(conn, &sync_set(50, 1, FIRST, FIRST));
        assert_eq!(*only(&answer), sync_set_done(50, 1));
        assert_eq!(epoch(&rig.state()), (1, 1, FIRST, FIRST));
        stop(rig);
    }
}

#[test]
fn a_failed_record_ends_the_process_unanswered() {
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    rig.disk.fail_meta = Some(super::rig::IO);
    let answer = rig.ask(conn, &sync_set(50, 1, FIRST, FIRST));
    assert!(
        !answer.iter().any(|f| f.0 == sync_set_done(50, 1)),
        "{answer:?}"
    );
    assert!(rig.fatal.is_some());
    rig.crash(false);
    let (_, state) = rig.login(E1);
    assert!(!state.flags.tainted && !state.flags.failed);
    assert_eq!(state.se.n, 0);
    stop(rig);
}

fn stream_frames() -> Vec<Message<'static>> {
    let term = Term(1);
    let range = BlockRange::new(Lba(0), Blocks(1));
    let member = MemberId::new(0).unwrap();
    vec![
        Message::GetMap {
            term,
            map: MapKind::Window,
            member,
            from: 0,
        },
        Message::Flush {
            term,
            idx: Idx(41),
            tidx: Idx(40),
            sent_at: 1,
        },
        Message::Read {
            term,
            range,
            rid: 1,
        },
        Message::ExtentHash {
            term,
            range,
            rid: 1,
            unit: Blocks(1),
            seed: 3,
        },
        Message::Told {
            term,
            n: 1,
            iss: FIRST,
            trk: BOTH,
            start: Idx(50),
        },
        Message::NeedSet { term },
        Message::Append(trilith_wire::Append {
            header_only: true,
            ..Rig::entry(1, 41, 0, 1)
        }),
        Message::Repair {
            term,
            range,
            tag: 1,
            zero: true,
            rebuild: false,
            crcs: &[],
        },
    ]
}

#[test]
fn anything_else_ends_the_session() {
    for frame in stream_frames() {
        let mut rig = Rig::witness();
        let conn = active(&mut rig);
        let answer = rig.ask(conn, &frame);
        assert_eq!(refusal(&answer), Some(Reason::Malformed), "{frame:?}");
        assert!(rig.closed.contains(&conn));
        stop(rig);
    }
}

/// The payload is not even received: no buffer is taken for it.
#[test]
fn a_payload_ends_the_session_before_it_is_received() {
    let term = Term(1);
    let member = MemberId::new(0).unwrap();
    let map = Message::Map {
        term,
        map: MapKind::Need,
        member,
        last: true,
        next: 0,
        crc: 0,
    };
    let clear = Message::DirtyClear {
        term,
        member,
        crc: 0,
    };
    for frame in [map, clear] {
        let mut rig = Rig::witness();
        let conn = active(&mut rig);
        let before = rig.arena.live();
        rig.queue_frame(conn, &frame, &[0; 16]);
        rig.run();
        assert_eq!(refusal(&rig.frames(conn)), Some(Reason::Malformed));
        assert_eq!(rig.arena.live(), before);
        stop(rig);
    }
    let mut rig = Rig::witness();
    let conn = active(&mut rig);
    rig.write(conn, Rig::entry(1, 41, 0, 1), 7);
    rig.run();
    assert_eq!(refusal(&rig.frames(conn)), Some(Reason::Malformed));
    stop(rig);
}

/// W16: whoever does not know the word would count it as a holder of data.
#[test]
fn a_volume_with_a_witness_is_not_served_in_an_older_protocol() {
    for make in [Rig::witness as fn() -> Rig, Rig::beside_a_witness] {
        let mut rig = make();
        for protocol in 1..=PROTOCOL_MAX {
            let mut hello = rig.hello(E1);
            hello.protocol_max = protocol;
            let (_, answer) = rig.greet(hello, &SECRET);
            let expected = (protocol < PROTOCOL_WITNESS).then_some(Reason::Protocol);
            assert_eq!(refusal(&answer), expected, "protocol {protocol}");
        }
        rig.stop();
    }
}

#[test]
fn the_file_system_of_a_witness_has_no_say_in_the_room_of_the_volume() {
    let mut rig = Rig::witness();
    let before = rig.state().free_extents;
    assert_eq!(before, CAPACITY >> 22);
    rig.step(crate::Event::Space { free_bytes: 0 });
    assert_eq!(rig.state().free_extents, before);
    stop(rig);
}

/// Its file and its window memory do not grow with the volume.
#[test]
fn a_witness_is_small() {
    let rig = Rig::witness();
    let ends = rig.trace.iter().filter_map(|op| match op {
        DiskOp::Write { offset, buf, .. } => Some(offset + u64::from(buf.len)),
        _ => None,
    });
    assert!(ends.max().unwrap() < 3 << 20);
    assert!(rig.words_len() < 256, "{} words", rig.words_len());
    stop(rig);
}

/// An engine that counts the witness as a holder of data is not followed, by anyone.
#[test]
fn a_set_that_has_the_witness_in_it_ends_the_session() {
    let told = Message::Told {
        term: Term(1),
        n: 2,
        iss: MemberSet(0b110),
        trk: MemberSet(0b110),
        start: Idx(9),
    };
    let frames = [
        term_start(2, 0, MemberSet(0b101), 0),
        sync_set(1, 1, MemberSet(0b101), MemberSet(0b101)),
        sync_set(1, 1, FIRST, MemberSet(0b101)),
        told,
    ];
    for frame in frames {
        let mut rig = Rig::beside_a_witness();
        let (conn, _) = rig.login(E1);
        rig.elect(conn, 1);
        rig.begin(conn, 1, 0, BOTH);
        if matches!(frame, Message::TermStart { .. }) {
            rig.elect(conn, 2);
        }
        let answer = rig.ask(conn, &frame);
        assert_eq!(refusal(&answer), Some(Reason::Malformed), "{frame:?}");
        assert_eq!(epoch(&rig.state()), (1, 0, BOTH, BOTH));
        rig.stop();
    }
}

/// Nobody would ever copy to it.
#[test]
fn no_replica_keeps_a_dirty_map_of_the_witness() {
    let mut rig = Rig::beside_a_witness();
    let (conn, _) = rig.login(E1);
    rig.elect(conn, 1);
    rig.begin(conn, 1, 0, BOTH);
    let skipped = trilith_wire::Append {
        skip: MemberSet(0b110),
        ..Rig::entry(1, 1, 2048, 1)
    };
    rig.write(conn, skipped, 1);
    rig.run();
    let dirty = |rig: &Rig| rig.replica.status(rig.now).dirty_bytes;
    assert!(dirty(&rig)[1] > 0 && dirty(&rig)[2] == 0);
    // What a power loss and a clean stop make of the activity log and the window.
    rig.put(conn, 2, 0, 1);
    rig.power_cut();
    assert!(
        dirty(&rig)[1] > 0 && dirty(&rig)[2] == 0,
        "{:?}",
        dirty(&rig)
    );
    let (conn, _) = rig.login(E1);
    rig.elect(conn, 2);
    rig.begin(conn, 2, 5, BOTH);
    rig.write(conn, Rig::entry(2, 6, 0, 1), 6);
    let (term, idx) = (Term(2), Idx(6));
    rig.run();
    rig.frames(conn);
    let sealed = rig.ask(conn, &Message::Seal { term, idx });
    assert_eq!(
        sealed.last().unwrap().0,
        Message::SealDone { term, sealed: true }
    );
    assert!(
        dirty(&rig)[1] > 0 && dirty(&rig)[2] == 0,
        "{:?}",
        dirty(&rig)
    );
    rig.stop();
}
