//! Arbitrary input: never a panic, never a lost buffer, never a hang.

use super::rig::{E1, Rig};
use std::vec;
use std::vec::Vec;
use trilith_block::{BlockRange, Blocks, ConnId, Idx, Lba, MemberId, MemberSet, Term};
use trilith_wire::{Append, EntryOp, MapKind, Message, ReplicaState};

/// Reads numbers from fuzz input; zeroes at its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn small(&mut self) -> u64 {
        u64::from(self.byte() % 24)
    }
}

fn message(input: &mut Input<'_>) -> (Message<'static>, usize) {
    let term = Term(1 + u64::from(input.byte().is_multiple_of(8)));
    let idx = Idx(input.small());
    let tidx = Idx(input.small());
    let range = BlockRange::new(
        Lba(input.small() * 500),
        Blocks(1 + u32::from(input.byte() % 3)),
    );
    let member = MemberId::new(usize::from(input.byte() % 3)).unwrap();
    let (iss, trk) = (
        MemberSet(u32::from(input.byte() % 8)),
        MemberSet(u32::from(input.byte() % 8)),
    );
    let n = u32::from(input.byte() % 4);
    let map = MapKind::ALL[usize::from(input.byte()) % MapKind::ALL.len()];
    let message = match input.byte() % 20 {
        0..=3 => Message::Append(Append {
            op: EntryOp::ALL[usize::from(input.byte()) % 3],
            header_only: input.byte().is_multiple_of(4),
            tidx,
            range,
            term,
            ..Rig::entry(1, idx.0, 0, 1)
        }),
        4 => Message::Flush {
            term,
            idx,
            tidx,
            sent_at: 0,
        },
        5 => Message::SyncSet {
            term,
            idx,
            n,
            iss,
            trk,
            tidx,
            join: Some(member).filter(|_| n > 1),
        },
        6 => Message::Read {
            term,
            range,
            rid: 1,
        },
        7 => Message::Heartbeat {
            term,
            commit: idx,
            tidx,
            sent_at: 9,
        },
        8 => Message::GetMap {
            term,
            map,
            member,
            from: idx.0,
        },
        9 => Message::Reconcile { term, loss: n },
        10 => Message::TermStart {
            term,
            start: idx,
            iss,
            loss: n,
        },
        11 => Message::Told {
            term,
            n,
            iss,
            trk,
            start: idx,
        },
        12 => Message::NeedSet { term },
        13 => Message::Seal { term, idx },
        14 => Message::StepDown { term },
        15 => Message::Opened { term },
        16 => Message::Repair {
            term,
            range,
            tag: 4,
            zero: true,
            rebuild: n == 1,
            crcs: &[],
        },
        17 => Message::Map {
            term,
            map,
            member,
            last: true,
            next: 0,
            crc: 0,
        },
        18 => Message::DirtyClear {
            term,
            member,
            crc: 0,
        },
        19 if n > 0 => Message::ExtentHash {
            term,
            range,
            rid: 2,
            unit: Blocks([1, 2, 16, 0][n as usize]),
            seed: idx.0,
        },
        _ => Message::ToldDone { term },
    };
    (message, 0)
}

/// A session of an authentic engine that says whatever `bytes` make it say: well-formed frames in
/// any order, then raw bytes.
pub(crate) fn fuzz_session(bytes: &[u8]) {
    let mut rig = Rig::new();
    let conn = rig.active();
    session(rig, conn, bytes);
}

/// The same for a witness; how many epochs it took.
fn fuzz_witness(bytes: &[u8]) -> u64 {
    let mut rig = Rig::witness();
    let (conn, _) = rig.login(E1);
    rig.elect(conn, 1);
    session(rig, conn, bytes)
}

fn session(mut rig: Rig, mut conn: ConnId, bytes: &[u8]) -> u64 {
    let mut input = Input(bytes);
    let mut term = 1;
    let witness = rig.state().config.witness == MemberSet(0b100) && rig.member() == 2;
    let (mut newest, mut epochs) = (rig.state().se, 0);
    for _ in 0..64 {
        if input.0.is_empty() {
            break;
        }
        if rig.fatal.is_some() {
            break;
        }
        rig.hold = input.byte().is_multiple_of(4);
        if rig.closed.contains(&conn) || input.byte().is_multiple_of(16) {
            rig.hold = false;
            rig.run();
            conn = rig.login(E1).0;
            if input.byte().is_multiple_of(4) {
                term += 1;
                let status = rig.replica.status(rig.now);
                let vote = rig.vote(term);
                let answer = rig.ask(conn, &Message::Vote(vote));
                assert!(!answer.is_empty(), "{:?} {status:#?}", rig.replica);
            }
        }
        let (frame, _) = message(&mut input);
        if let Message::Append(append) = frame {
            rig.write(conn, append, input.byte());
        } else {
            rig.queue_frame(conn, &frame, &[]);
        }
        rig.run();
        while rig.hold && !rig.queue.is_empty() && input.byte().is_multiple_of(2) {
            let at = usize::from(input.byte()) % rig.queue.len();
            rig.complete(at);
            rig.run();
        }
        let state = rig.state();
        assert!(
            state.tidx <= state.upto && state.upto <= state.max_idx,
            "{state:?}"
        );
        assert!(newest <= state.se, "{newest:?} and then {state:?}");
        epochs += u64::from(newest < state.se);
        newest = state.se;
        assert!(!witness || is_like_a_witness(&state), "{state:?}");
        rig.frames(conn);
    }
    rig.push(conn, bytes);
    rig.hold = false;
    rig.run();
    assert!(
        rig.fatal.is_none(),
        "no device failed here: {:?}",
        rig.fatal
    );
    assert!(!witness || rig.trace.iter().all(|op| !super::witness::is_of_data(op)));
    rig.stop();
    epochs
}

/// W1: it claims no position, is never tainted, and no set has it.
fn is_like_a_witness(state: &ReplicaState) -> bool {
    let sets = state.iss.or(state.trk);
    (state.w, state.max_idx) == (Idx(0), Idx(0))
        && !state.flags.tainted
        && !state.flags.need
        && sets.and(state.config.witness).is_empty()
        && !state.iss.is_empty()
        && state.iss.minus(state.trk).is_empty()
}

#[test]
fn random_sessions_never_break_the_replica() {
    random_sessions(300, fuzz_session);
}

#[test]
fn random_sessions_never_break_a_witness() {
    let mut epochs = 0;
    random_sessions(1000, |bytes| epochs += fuzz_witness(bytes));
    assert!(epochs > 100, "{epochs} epochs");
}

fn random_sessions(count: u32, mut each: impl FnMut(&[u8])) {
    let mut seed = 0x1234_5678_9abc_def0u64;
    for _ in 0..count {
        let mut bytes: Vec<u8> = vec![0; 900];
        for byte in &mut bytes {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            *byte = u8::try_from(seed >> 56).unwrap();
        }
        each(&bytes);
    }
}

#[test]
fn a_guest_may_say_anything() {
    let mut seed = 77u64;
    let mut rig = Rig::new();
    for _ in 0..200 {
        let conn = rig.connect();
        let mut bytes = [0u8; 200];
        for byte in &mut bytes {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = u8::try_from(seed >> 56).unwrap();
        }
        if seed.is_multiple_of(2) {
            bytes[..4].copy_from_slice(&[0x4c, 0x54, 1, 1]);
        }
        rig.push(conn, &bytes);
        rig.run();
        rig.frames(conn);
        rig.disconnect(conn);
    }
    rig.stop();
}
