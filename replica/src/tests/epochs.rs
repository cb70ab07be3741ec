//! Maps, RECONCILE, SYNCSET, TOLD, rebuild, join, NEEDSET, DIRTYCLEAR.

use super::rig::{ALL, E1, Frame, Rig, acked, refusal};
use crate::store::MapName;
use std::vec;
use std::vec::Vec;
use trilith_block::{
    BlockRange, Blocks, Buffers, ConnId, ExtentNo, Idx, Lba, MemberId, MemberSet, SyncEpoch, Term,
};
use trilith_wire::{
    Append, ChunkRecord, EntryStatus, MapKind, Message, Reason, SlotStatus, WindowRecord,
};

const TERM: Term = Term(1);

fn member(index: usize) -> MemberId {
    MemberId::new(index).unwrap()
}

fn records(chunks: &[(u32, u64)]) -> Vec<u8> {
    let mut bytes = vec![0; chunks.len() * ChunkRecord::BYTES];
    for ((extent, mask), out) in chunks.iter().zip(bytes.chunks_mut(ChunkRecord::BYTES)) {
        ChunkRecord {
            extent: ExtentNo(*extent),
            mask: *mask,
        }
        .encode(out);
    }
    bytes
}

fn stage(rig: &mut Rig, conn: ConnId, (map, of): (MapKind, usize), chunks: &[(u32, u64)]) {
    let payload = records(chunks);
    let crc = rig.arena.crc32c(0, &payload);
    let frame = Message::Map {
        term: TERM,
        map,
        member: member(of),
        last: true,
        next: 0,
        crc,
    };
    rig.queue_frame(conn, &frame, &payload);
    rig.run();
    assert!(rig.frames(conn).is_empty());
}

fn get(rig: &mut Rig, conn: ConnId, map: MapKind, of: usize) -> Vec<Frame> {
    let frames = rig.ask(
        conn,
        &Message::GetMap {
            term: TERM,
            map,
            member: member(of),
            from: 0,
        },
    );
    assert!(
        matches!(frames[0].0, Message::Map { last: true, .. }),
        "{frames:?}"
    );
    frames
}

fn chunks(rig: &mut Rig, conn: ConnId, map: MapKind, of: usize) -> Vec<(u32, u64)> {
    let frames = get(rig, conn, map, of);
    ChunkRecord::decode_all(&frames[0].1)
        .map(|r| (r.extent.0, r.mask))
        .collect()
}

#[test]
fn the_window_and_the_activity_log_can_be_fetched() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.put(conn, 2, 1024, 2);
    let frames = get(&mut rig, conn, MapKind::Window, 0);
    let window: Vec<_> = WindowRecord::decode_all(&frames[0].1)
        .map(Option::unwrap)
        .collect();
    assert_eq!(window.len(), 2);
    assert_eq!(
        (window[0].idx, window[0].status),
        (Idx(1), SlotStatus::Accepted)
    );
    assert_eq!(window[1].range, BlockRange::new(Lba(1024), Blocks(1)));
    let log = chunks(&mut rig, conn, MapKind::ActivityLog, 0);
    assert!(log.contains(&(0, u64::MAX)) && log.contains(&(1, u64::MAX)));
    rig.stop();
}

#[test]
fn a_second_getmap_while_one_is_out_ends_the_session() {
    let mut rig = Rig::new();
    let conn = rig.active();
    let ask = Message::GetMap {
        term: TERM,
        map: MapKind::Need,
        member: member(0),
        from: 0,
    };
    rig.queue_frame(conn, &ask, &[]);
    rig.queue_frame(conn, &ask, &[]);
    rig.run();
    assert_eq!(refusal(&rig.frames(conn)), Some(Reason::Malformed));
    rig.stop();
}

#[test]
fn a_reconcile_makes_need_and_loss_durable_before_its_answer() {
    let mut rig = Rig::new();
    let (conn, _) = rig.login(E1);
    rig.elect(conn, 1);
    stage(&mut rig, conn, (MapKind::Need, 0), &[(0, 0b110), (3, 1)]);
    rig.hold = true;
    assert!(
        rig.ask(
            conn,
            &Message::Reconcile {
                term: TERM,
                loss: 4
            }
        )
        .is_empty()
    );
    rig.hold = false;
    rig.run();
    assert_eq!(rig.frames(conn)[0].0, Message::ReconcileDone { term: TERM });
    rig.power_cut();
    let (conn, state) = rig.login(E1);
    assert_eq!((state.loss, state.flags.need), (4, true));
    rig.elect(conn, 1);
    let need = chunks(&mut rig, conn, MapKind::Need, 0);
    assert!(
        need.contains(&(0, 0b110)) && need.contains(&(3, 1)),
        "{need:?}"
    );
    rig.stop();
}

/// C22: a newcomer hears of it while it learns, long after its term has begun elsewhere.
#[test]
fn a_loss_epoch_told_in_an_open_term_is_durable_before_its_answer_and_never_falls() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    let tell = |loss| Message::Reconcile { term: TERM, loss };
    rig.hold = true;
    assert!(rig.ask(conn, &tell(3)).is_empty());
    rig.hold = false;
    rig.run();
    assert_eq!(rig.frames(conn)[0].0, Message::ReconcileDone { term: TERM });
    let answer = rig.ask(conn, &tell(2));
    assert_eq!(answer[0].0, Message::ReconcileDone { term: TERM });
    let state = rig.state();
    assert_eq!(
        (state.loss, state.upto, state.flags.need),
        (3, Idx(1), false)
    );
    rig.put(conn, 2, 1, 1);
    rig.power_cut();
    assert_eq!(rig.login(E1).1.loss, 3);
    rig.stop();
}

#[test]
fn a_term_start_takes_limbo_and_dirty_maps_and_opened_drops_the_limbo() {
    let mut rig = Rig::new();
    let (conn, _) = rig.login(E1);
    rig.elect(conn, 1);
    stage(&mut rig, conn, (MapKind::Limbo, 0), &[(0, 1)]);
    stage(&mut rig, conn, (MapKind::Dirty, 2), &[(1, 0b10)]);
    let (start, iss) = (Idx(10), MemberSet(0b011));
    let answer = rig.ask(
        conn,
        &Message::TermStart {
            term: TERM,
            start,
            iss,
            loss: 1,
        },
    );
    assert_eq!(answer[0].0, Message::TermStartDone { term: TERM, start });
    let state = rig.state();
    assert_eq!((state.se, state.iss), (SyncEpoch { term: TERM, n: 0 }, iss));
    assert_eq!(
        (state.w, state.upto, state.tidx, state.loss),
        (start, start, start, 1)
    );
    assert_eq!(chunks(&mut rig, conn, MapKind::Need, 0), vec![(0, 1)]);
    assert_eq!(chunks(&mut rig, conn, MapKind::Dirty, 2), vec![(1, 0b10)]);
    rig.ask(conn, &Message::Opened { term: TERM });
    assert_eq!(chunks(&mut rig, conn, MapKind::Need, 0), vec![]);
    // Asked again after its answer was lost.
    let answer = rig.ask(
        conn,
        &Message::TermStart {
            term: TERM,
            start,
            iss,
            loss: 1,
        },
    );
    assert_eq!(answer[0].0, Message::TermStartDone { term: TERM, start });
    rig.stop();
}

fn sync_set(idx: u64, n: u32, iss: u32, trk: u32, join: Option<usize>) -> Message<'static> {
    Message::SyncSet {
        term: TERM,
        idx: Idx(idx),
        n,
        iss: MemberSet(iss),
        trk: MemberSet(trk),
        tidx: Idx(0),
        join: join.map(member),
    }
}

#[test]
fn a_sync_set_is_a_full_barrier() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.hold = true;
    rig.write(conn, Rig::entry(1, 2, 1, 1), 2);
    rig.queue_frame(conn, &sync_set(3, 1, 0b011, 0b011, None), &[]);
    rig.write(conn, Rig::entry(1, 4, 2, 1), 4);
    rig.run_to_data();
    assert_eq!(rig.data_writes().len(), 1, "4 waits behind the barrier");
    assert!(acked(&rig.frames(conn)).is_none_or(|a| a.0 < 2));
    rig.complete(rig.data_writes()[0]);
    rig.run_to_data();
    assert_eq!(rig.data_writes().len(), 1, "now 4");
    let answer = rig.frames(conn);
    let done = Message::SyncSetDone {
        term: TERM,
        idx: Idx(3),
        n: 1,
    };
    assert!(answer.iter().any(|f| f.0 == done), "{answer:?}");
    assert_eq!(acked(&answer).unwrap().0, 3);
    let state = rig.state();
    assert_eq!((state.se.n, state.iss.0, state.w), (1, 0b011, Idx(3)));
    rig.hold = false;
    rig.run();
    assert_eq!(acked(&rig.frames(conn)).unwrap().0, 4);
    rig.stop();
}

#[test]
fn a_demotion_turns_the_window_into_dirty_chunks_of_the_member_that_leaves() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.put(conn, 2, 20, 1);
    rig.ask(conn, &sync_set(3, 1, 0b011, 0b011, None));
    assert_eq!(chunks(&mut rig, conn, MapKind::Dirty, 2), vec![(0, 0b11)]);
    assert_eq!(chunks(&mut rig, conn, MapKind::Dirty, 1), vec![]);
    // DIRTYCLEAR takes back what was copied.
    let payload = records(&[(0, 0b01)]);
    let crc = rig.arena.crc32c(0, &payload);
    rig.queue_frame(
        conn,
        &Message::DirtyClear {
            term: TERM,
            member: member(2),
            crc,
        },
        &payload,
    );
    rig.run();
    assert_eq!(chunks(&mut rig, conn, MapKind::Dirty, 2), vec![(0, 0b10)]);
    rig.stop();
}

#[test]
fn a_sync_set_sent_again_is_answered_again() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.ask(conn, &sync_set(2, 1, 0b011, 0b011, None));
    rig.disconnect(conn);
    let (conn, _) = rig.login(E1);
    let answer = rig.ask(conn, &sync_set(2, 1, 0b011, 0b011, None));
    let done = Message::SyncSetDone {
        term: TERM,
        idx: Idx(2),
        n: 1,
    };
    assert!(answer.iter().any(|f| f.0 == done), "{answer:?}");
    rig.stop();
}

/// Demoted, told, tracked again: entries above 10.
fn told(rig: &mut Rig, conn: ConnId) {
    let told = Message::Told {
        term: TERM,
        n: 2,
        iss: MemberSet(0b110),
        trk: ALL,
        start: Idx(10),
    };
    let answer = rig.ask(conn, &told);
    assert_eq!(answer[0].0, Message::ToldDone { term: TERM });
}

#[test]
fn a_member_that_is_told_is_rebuilt_and_joins() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    told(&mut rig, conn);
    let state = rig.state();
    assert_eq!(
        (state.upto, state.tidx, state.window_count),
        (Idx(10), Idx(10), 0)
    );
    assert!(
        !state.is_complete() && state.flags.need,
        "its active extents are in need"
    );
    // A read of what is in need is refused; a copy is taken; entries go on above 10.
    let range = BlockRange::new(Lba(0), Blocks(1));
    let answer = rig.ask(
        conn,
        &Message::Read {
            term: TERM,
            range,
            rid: 1,
        },
    );
    assert!(matches!(
        answer[0].0,
        Message::Data {
            status: EntryStatus::Refused,
            ..
        }
    ));
    let crcs = rig.arena.crc32c(0, &[6; 4096]).to_le_bytes();
    let copy = Message::Repair {
        term: TERM,
        range,
        tag: 3,
        zero: false,
        rebuild: true,
        crcs: &crcs,
    };
    rig.queue_frame(conn, &copy, &[6; 4096]);
    rig.write(conn, Rig::entry(1, 11, 40, 1), 7);
    let skipped = Append {
        header_only: true,
        skip: MemberSet(1),
        ..Rig::entry(1, 12, 41, 1)
    };
    rig.write(conn, skipped, 0);
    rig.run();
    let answer = rig.frames(conn);
    assert!(answer.iter().any(|f| matches!(
        f.0,
        Message::RepairDone {
            tag: 3,
            status: EntryStatus::Done,
            ..
        }
    )));
    assert_eq!(acked(&answer).unwrap().0, 12);
    assert_eq!((rig.filled(0), rig.filled(40)), (6, 7));
    let answer = rig.flush(conn, 13);
    assert!(answer.iter().any(|f| f.0
        == Message::FlushDone {
            term: TERM,
            idx: Idx(13)
        }));
    assert!(
        rig.state().w < Idx(13),
        "outside its in-sync set the watermark stays"
    );
    stage(&mut rig, conn, (MapKind::Dirty, 2), &[(2, 1)]);
    let answer = rig.ask(conn, &sync_set(14, 3, 0b111, 0b111, Some(0)));
    let done = Message::SyncSetDone {
        term: TERM,
        idx: Idx(14),
        n: 3,
    };
    assert!(answer.iter().any(|f| f.0 == done), "{answer:?}");
    let state = rig.state();
    assert!(state.is_complete() && !state.flags.need && !state.flags.tainted);
    assert_eq!((state.w, state.upto), (Idx(14), Idx(14)));
    assert_eq!(chunks(&mut rig, conn, MapKind::Dirty, 2), vec![(2, 1)]);
    rig.stop();
}

#[test]
fn a_told_member_that_is_not_tracked_takes_no_entries() {
    let mut rig = Rig::new();
    let conn = rig.active();
    let (iss, start) = (MemberSet(0b110), Idx(5));
    rig.ask(
        conn,
        &Message::Told {
            term: TERM,
            n: 1,
            iss,
            trk: iss,
            start,
        },
    );
    assert_eq!(refusal(&rig.put(conn, 6, 0, 1)), Some(Reason::Malformed));
    rig.stop();
}

#[test]
fn a_needset_is_durable_before_its_answer_and_the_member_clears_it() {
    let mut rig = Rig::new();
    let conn = rig.active();
    stage(&mut rig, conn, (MapKind::Need, 0), &[(2, 0b11)]);
    let answer = rig.ask(conn, &Message::NeedSet { term: TERM });
    assert_eq!(answer[0].0, Message::NeedSetDone { term: TERM });
    let payload = records(&[(2, 0b10)]);
    let crc = rig.arena.crc32c(0, &payload);
    rig.queue_frame(
        conn,
        &Message::DirtyClear {
            term: TERM,
            member: member(0),
            crc,
        },
        &payload,
    );
    rig.run();
    let need = rig
        .replica
        .store()
        .unwrap()
        .map(MapName::Need)
        .mask(ExtentNo(2));
    assert_eq!(need, 1);
    rig.stop();
}

#[test]
fn a_map_that_makes_no_sense_ends_the_session() {
    let cases: [(MapKind, u32, u32); 3] = [
        (MapKind::Need, 99, 0),
        (MapKind::Need, 0, 1),
        (MapKind::Window, 0, 0),
    ];
    for (map, extent, flip) in cases {
        let mut rig = Rig::new();
        let conn = rig.active();
        let payload = records(&[(extent, 1)]);
        let crc = rig.arena.crc32c(0, &payload) ^ flip;
        let frame = Message::Map {
            term: TERM,
            map,
            member: member(0),
            last: true,
            next: 0,
            crc,
        };
        rig.queue_frame(conn, &frame, &payload);
        rig.run();
        assert_eq!(refusal(&rig.frames(conn)), Some(Reason::Malformed));
        rig.stop();
    }
}
