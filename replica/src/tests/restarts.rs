//! Process crashes, power loss, clean stops.

use super::rig::{E1, E2, Rig, acked};
use trilith_block::{Idx, Term};
use trilith_wire::Message;

const TERM: Term = Term(1);

#[test]
fn after_a_process_crash_the_window_is_there_and_the_stream_goes_on() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.put(conn, 2, 1, 2);
    rig.hold = true;
    rig.write(conn, Rig::entry(1, 3, 0, 1), 3);
    rig.write(conn, Rig::entry(1, 4, 8, 1), 4);
    rig.run_to_data();
    rig.complete(rig.data_writes()[1]);
    rig.run();
    rig.crash(false);
    assert!(rig.opened.is_some_and(|o| o.resumed && !o.newly_tainted));
    let (conn, state) = rig.login(E1);
    assert!(!state.flags.tainted);
    assert_eq!((state.upto, state.max_idx), (Idx(2), Idx(4)));
    // 3 was in flight: written again, in order. 4 is accepted.
    rig.write(conn, Rig::entry(1, 3, 0, 1), 3);
    rig.write(conn, Rig::entry(1, 4, 8, 1), 4);
    rig.run();
    assert_eq!(acked(&rig.frames(conn)).unwrap().0, 4);
    assert_eq!((rig.filled(0), rig.filled(8)), (3, 4));
    rig.stop();
}

#[test]
fn what_was_acked_is_in_the_window_of_the_next_process() {
    for cut in 0..40 {
        let mut rig = Rig::new();
        let conn = rig.active();
        rig.hold = true;
        for idx in 1..=4 {
            rig.write(
                conn,
                Rig::entry(1, idx, idx * 1024, 1),
                u8::try_from(idx).unwrap(),
            );
        }
        for _ in 0..cut {
            rig.run();
            if rig.queue.is_empty() {
                break;
            }
            rig.complete(rig.queue.len() - 1);
        }
        rig.run();
        let (upto, further) = acked(&rig.frames(conn)).unwrap_or_default();
        rig.crash(cut % 2 == 0);
        assert!(rig.state().upto >= Idx(upto));
        let (conn, _) = rig.login(E1);
        for idx in rig.state().upto.0 + 1..=4 {
            rig.write(
                conn,
                Rig::entry(1, idx, idx * 1024, 1),
                u8::try_from(idx).unwrap(),
            );
        }
        for idx in further {
            assert_eq!(u64::from(rig.filled(idx * 1024)), idx, "acked out of order");
        }
        rig.run();
        assert_eq!(rig.state().upto, Idx(4));
        for idx in 1..=4 {
            assert_eq!(u64::from(rig.filled(idx * 1024)), idx);
        }
        rig.stop();
    }
}

#[test]
fn power_loss_taints_and_keeps_what_was_flushed() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.flush(conn, 2);
    rig.put(conn, 3, 1, 3);
    rig.power_cut();
    assert!(rig.opened.is_some_and(|o| o.newly_tainted && !o.resumed));
    let (conn, state) = rig.login(E1);
    assert!(state.flags.tainted);
    assert_eq!((state.w, state.upto), (Idx(2), Idx(2)));
    assert_eq!((rig.filled(0), rig.filled(1)), (1, 0));
    // TERMSTART clears it.
    rig.elect(conn, 2);
    rig.begin(conn, 2, 5, super::rig::ALL);
    assert!(!rig.state().flags.tainted);
    rig.stop();
}

#[test]
fn a_seal_is_a_clean_stop() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    let answer = rig.ask(
        conn,
        &Message::Seal {
            term: TERM,
            idx: Idx(1),
        },
    );
    assert!(
        answer.iter().any(|f| f.0
            == Message::SealDone {
                term: TERM,
                sealed: true
            }),
        "{answer:?}"
    );
    rig.power_cut();
    let (conn, state) = rig.login(E1);
    assert!(state.flags.sealed && !state.flags.tainted);
    assert_eq!((state.w, state.upto), (Idx(1), Idx(1)));
    assert_eq!(
        state.lease_left_ms, 0,
        "a sealed replica owes nobody a lease"
    );
    assert_eq!(rig.filled(0), 1);
    rig.elect(conn, 2);
    rig.begin(conn, 2, 1, super::rig::ALL);
    assert!(!rig.state().flags.sealed);
    rig.stop();
}

#[test]
fn a_seal_hides_no_lease_of_a_later_term() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.ask(
        conn,
        &Message::Seal {
            term: TERM,
            idx: Idx(0),
        },
    );
    // Promised, but no record of the new term yet: heartbeats grant a lease all the same (5.5).
    rig.elect(conn, 2);
    rig.ask(
        conn,
        &Message::Heartbeat {
            term: Term(2),
            commit: Idx(0),
            tidx: Idx(0),
            sent_at: 1,
        },
    );
    rig.power_cut();
    let (_, state) = rig.login(E2);
    assert!(state.flags.sealed && Term(2) == state.term);
    assert!(0 < state.lease_left_ms, "{state:?}");
    rig.stop();
}

#[test]
fn a_replica_that_lacks_entries_or_has_need_is_not_sealed() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    let answer = rig.ask(
        conn,
        &Message::Seal {
            term: TERM,
            idx: Idx(2),
        },
    );
    assert_eq!(
        answer[0].0,
        Message::SealDone {
            term: TERM,
            sealed: false
        }
    );
    rig.stop();
}

#[test]
fn a_stop_of_the_process_keeps_the_window() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.hold = true;
    rig.write(conn, Rig::entry(1, 2, 1, 1), 2);
    rig.run_to_data();
    rig.step(crate::Event::Stop);
    rig.run();
    assert!(rig.closed.contains(&conn));
    rig.hold = false;
    rig.run();
    rig.crash(true);
    assert_eq!(
        rig.state().upto,
        Idx(2),
        "the write in flight was waited for"
    );
    assert!(!rig.state().flags.tainted);
    rig.stop();
}

#[test]
fn dirty_marks_of_a_skipped_member_survive_power_loss() {
    let mut rig = Rig::new();
    let conn = rig.active();
    let append = trilith_wire::Append {
        skip: trilith_block::MemberSet(0b100),
        ..Rig::entry(1, 1, 2048, 1)
    };
    rig.write(conn, append, 1);
    rig.run();
    assert_eq!(acked(&rig.frames(conn)).unwrap().0, 1);
    rig.power_cut();
    assert!(rig.replica.status(rig.now).dirty_bytes[2] > 0);
    rig.stop();
}
