//! Handshake, limits of guests, bad frames, replaced sessions, back-pressure.

use super::rig::{E1, E2, Frame, Rig, SECRET, acked, refusal};
use crate::limits::{GUESTS_MAX, SESSIONS_MAX};
use trilith_block::{BlockRange, Blocks, Buffers, Idx, Lba, MemberId, Term, Uuid};
use trilith_wire::{EntryStatus, Hello, Kind, Message, Reason};

#[test]
fn an_engine_with_the_secret_is_welcomed() {
    let mut rig = Rig::new();
    let (_, state) = rig.login(E1);
    assert_eq!(state.term, Term(0));
    assert_eq!(state.upto, Idx(0));
    assert!(state.credit_entries > 0 && state.credit_bytes > 0);
    assert!(!state.flags.tainted && !state.flags.failed);
    rig.stop();
}

#[test]
fn a_hello_that_does_not_fit_is_refused_with_its_reason() {
    type Change = fn(&mut Hello);
    let cases: [(Change, Reason); 6] = [
        (|h| h.volume = Uuid([1; 16]), Reason::WrongVolume),
        (
            |h| h.protocol_min = trilith_wire::limits::PROTOCOL_MAX + 1,
            Reason::Protocol,
        ),
        (|h| h.engine = Uuid::NONE, Reason::Malformed),
        (|h| h.member = MemberId::new(1).unwrap(), Reason::Mismatch),
        (|h| h.capacity += 4096, Reason::Mismatch),
        (|h| h.capacity = 4096, Reason::Mismatch),
    ];
    let mut rig = Rig::new();
    for (change, reason) in cases {
        let mut hello = rig.hello(E1);
        change(&mut hello);
        if hello.protocol_min > 1 {
            hello.protocol_max = hello.protocol_min;
        }
        let (conn, answer) = rig.greet(hello, &SECRET);
        assert_eq!(refusal(&answer), Some(reason));
        assert!(rig.closed.contains(&conn));
    }
    rig.stop();
}

#[test]
fn a_peer_without_the_secret_learns_nothing_and_ends_nothing() {
    let mut rig = Rig::new();
    let (good, _) = rig.login(E1);
    let hello = rig.hello(E1);
    let (bad, answer) = rig.greet(hello, &[0; 32]);
    assert_eq!(refusal(&answer), Some(Reason::Secret));
    assert!(rig.closed.contains(&bad) && !rig.closed.contains(&good));
    rig.stop();
}

#[test]
fn each_challenge_has_its_own_nonce() {
    let mut rig = Rig::new();
    let mut nonces = std::vec::Vec::new();
    for _ in 0..3 {
        let conn = rig.connect();
        let hello = rig.hello(E1);
        if let [(Message::Challenge { nonce, .. }, _)] = rig.ask(conn, &Message::Hello(hello))[..] {
            nonces.push(nonce);
        }
    }
    nonces.dedup();
    assert_eq!(nonces.len(), 3);
    rig.stop();
}

#[test]
fn guests_are_limited_in_number_and_time() {
    let mut rig = Rig::new();
    let guests: std::vec::Vec<_> = (0..GUESTS_MAX).map(|_| rig.connect()).collect();
    assert!(rig.closed.is_empty());
    let extra = rig.connect();
    assert!(rig.closed.contains(&extra), "one more is turned away");
    rig.later(2999);
    rig.run();
    assert!(!rig.closed.contains(&guests[0]));
    rig.later(1);
    rig.run();
    assert!(
        guests.iter().all(|g| rig.closed.contains(g)),
        "their time is up"
    );
    let (conn, _) = rig.login(E1);
    rig.later(60_000);
    rig.run();
    assert!(!rig.closed.contains(&conn), "a session has no such limit");
    rig.stop();
}

#[test]
fn a_guest_gets_no_buffer_and_no_say() {
    let mut rig = Rig::new();
    let conn = rig.connect();
    let live = rig.arena.live();
    rig.write(conn, Rig::entry(1, 1, 0, 1), 1);
    rig.run();
    assert_eq!(refusal(&rig.frames(conn)), Some(Reason::Malformed));
    assert_eq!(rig.arena.live(), live);
    let conn = rig.connect();
    let vote = rig.vote(1);
    assert_eq!(
        refusal(&rig.ask(conn, &Message::Vote(vote))),
        Some(Reason::Malformed)
    );
    assert_eq!(rig.state().term, Term(0));
    rig.stop();
}

#[test]
fn a_newer_session_of_an_engine_replaces_the_older() {
    let mut rig = Rig::new();
    let old = rig.active();
    let (new, state) = rig.login(E1);
    assert_eq!(refusal(&rig.frames(old)), Some(Reason::Replaced));
    assert!(rig.closed.contains(&old));
    assert_eq!((state.term, state.voted_engine), (Term(1), E1));
    assert_eq!(acked(&rig.put(new, 1, 0, 5)), Some((1, std::vec![])));
    rig.stop();
}

#[test]
fn sessions_are_limited_and_an_idle_one_gives_way() {
    let mut rig = Rig::new();
    let conns: std::vec::Vec<_> = (0..SESSIONS_MAX)
        .map(|i| rig.login(Uuid([u8::try_from(i).unwrap() + 1; 16])).0)
        .collect();
    let hello = rig.hello(E1);
    assert_eq!(refusal(&rig.greet(hello, &SECRET).1), Some(Reason::Busy));
    rig.later(11_000);
    let vote = rig.vote(1);
    for conn in &conns[1..] {
        rig.ask(*conn, &Message::Prevote(vote));
    }
    let (_, _) = rig.login(E1);
    assert!(rig.closed.contains(&conns[0]) && !rig.closed.contains(&conns[1]));
    rig.stop();
}

#[test]
fn frames_that_make_no_sense_end_the_session() {
    let term = Term(1);
    let cases = [
        Message::NeedSetDone { term },
        Message::Hello(Rig::new().hello(E1)),
        Message::Read {
            term,
            range: BlockRange::new(Lba(0), Blocks(1000)),
            rid: 1,
        },
        Message::Read {
            term,
            range: BlockRange::new(Lba(1 << 20), Blocks(1)),
            rid: 1,
        },
        Message::ExtentHash {
            term,
            range: BlockRange::new(Lba(0), Blocks(512)),
            rid: 1,
            unit: trilith_wire::digest::CHUNK,
            seed: 0,
        },
        Message::ExtentHash {
            term,
            range: BlockRange::new(Lba(0), Blocks(4)),
            rid: 1,
            unit: Blocks(2),
            seed: 0,
        },
        Message::Append(Rig::entry(1, 2, 0, 1)),
        Message::TermStart {
            term,
            start: Idx(9),
            iss: super::rig::ALL,
            loss: 0,
        },
    ];
    for message in cases {
        let mut rig = Rig::new();
        let conn = rig.active();
        let payload = std::vec![0; if message.kind() == Kind::Append { 4096 } else { 0 }];
        if let Message::Append(append) = message {
            rig.write(conn, append, 1);
        } else {
            rig.queue_frame(conn, &message, &payload);
        }
        rig.run();
        assert_eq!(
            refusal(&rig.frames(conn)),
            Some(Reason::Malformed),
            "{:?}",
            message.kind()
        );
        assert!(rig.closed.contains(&conn));
        rig.stop();
    }
}

#[test]
fn a_damaged_head_ends_the_session_and_leaves_the_process_alone() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.push(conn, &[0x5a; 64]);
    rig.run();
    assert_eq!(refusal(&rig.frames(conn)), Some(Reason::Malformed));
    let (_, state) = rig.login(E1);
    assert_eq!(state.term, Term(1));
    rig.stop();
}

#[test]
fn a_damaged_payload_is_not_written_and_can_be_sent_again() {
    let mut rig = Rig::new();
    let conn = rig.active();
    let crc = rig.arena.crc32c(0, &[1; 4096]).to_le_bytes();
    let append = trilith_wire::Append {
        crcs: &crc,
        ..Rig::entry(1, 1, 0, 1)
    };
    rig.queue_frame(conn, &Message::Append(append), &[2; 4096]);
    rig.run();
    let failed = Message::EntryFailed {
        term: Term(1),
        idx: Idx(1),
        status: EntryStatus::Checksum,
    };
    assert_eq!(rig.frames(conn)[0].0, failed);
    assert_eq!(rig.filled(0), 0);
    let (conn, state) = rig.login(E1);
    assert_eq!(state.upto, Idx(0));
    assert_eq!(acked(&rig.put(conn, 1, 0, 1)), Some((1, std::vec![])));
    assert_eq!(rig.filled(0), 1);
    rig.stop();
}

#[test]
fn without_buffers_the_stream_waits_and_then_goes_on() {
    // Room for the store's own buffers and four payloads of 256 KiB.
    let mut rig = Rig::with_budget(8 << 20);
    let conn = rig.active();
    let spare = 4 * 256 * 1024;
    rig.arena.budget -= rig.arena.available() - spare;
    rig.hold = true;
    for idx in 1..=8 {
        let blocks = 64;
        let append = Rig::entry(1, idx, (idx - 1) * 64, blocks);
        rig.write(conn, append, u8::try_from(idx).unwrap());
    }
    rig.run_to_data();
    assert!(
        rig.data_writes().len() <= 4,
        "no more than the budget is in flight"
    );
    assert!(rig.replica.counters.pauses > 0);
    rig.hold = false;
    rig.run();
    assert_eq!(acked(&rig.frames(conn)).map(|a| a.0), Some(8));
    assert_eq!(rig.filled(8 * 64 - 1), 8);
    rig.stop();
}

#[test]
fn a_read_waits_for_a_buffer() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    let rest = rig.arena.available();
    rig.arena.budget -= rest;
    let range = BlockRange::new(Lba(0), Blocks(1));
    let read = Message::Read {
        term: Term(1),
        range,
        rid: 5,
    };
    assert!(rig.ask(conn, &read).is_empty());
    rig.arena.budget += rest;
    rig.run();
    let answer: std::vec::Vec<Frame> = rig.frames(conn);
    assert!(matches!(
        answer[0].0,
        Message::Data {
            rid: 5,
            status: EntryStatus::Done,
            ..
        }
    ));
    assert_eq!(answer[0].1, std::vec![1; 4096]);
    rig.stop();
}

#[test]
fn a_session_that_ends_in_the_middle_of_a_payload_gives_its_buffer_back() {
    let mut rig = Rig::new();
    let conn = rig.active();
    let before = rig.arena.live();
    rig.write(conn, Rig::entry(1, 1, 0, 1), 1);
    // All but the last byte.
    let (other, _) = rig.login(E2);
    rig.disconnect(other);
    rig.run();
    rig.frames(conn);
    let crc = rig.arena.crc32c(0, &[1; 4096]).to_le_bytes();
    let append = trilith_wire::Append {
        crcs: &crc,
        ..Rig::entry(1, 2, 0, 1)
    };
    let mut encoder = trilith_wire::Encoder::new();
    let head = encoder
        .head(&Message::Append(append), 4096, &rig.arena)
        .to_vec();
    rig.push(conn, &head);
    rig.push(conn, &[1; 4095]);
    rig.run();
    assert_eq!(rig.arena.live(), before + 1);
    rig.disconnect(conn);
    assert_eq!(rig.arena.live(), before);
    rig.stop();
}
