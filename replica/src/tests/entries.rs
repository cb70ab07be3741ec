//! The stream: acks, order, flushes, zeroes, reads, repairs, device errors.

use super::rig::{E1, IO, Rig, acked, refusal};
use crate::store::{DiskError, DiskOp, FileRole};
use trilith_block::{BlockRange, Blocks, Buffers, Idx, Lba, MemberSet, Term};
use trilith_wire::{Append, EntryOp, EntryStatus, Message, Reason, digest};

const TERM: Term = Term(1);

fn is_flush(op: &DiskOp) -> bool {
    matches!(
        op,
        DiskOp::Flush {
            role: FileRole::Data
        }
    )
}

#[test]
fn an_entry_is_acked_only_when_the_device_has_it() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.hold = true;
    rig.write(conn, Rig::entry(1, 1, 5, 1), 7);
    rig.run_to_data();
    assert!(acked(&rig.frames(conn)).is_none());
    rig.hold = false;
    rig.run();
    assert_eq!(acked(&rig.frames(conn)), Some((1, std::vec![])));
    assert_eq!(rig.filled(5), 7);
    rig.stop();
}

#[test]
fn a_write_of_a_block_is_one_device_write_from_the_received_buffer_and_one_ack() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    let before = rig.trace.len();
    let answer = rig.put(conn, 2, 1, 2);
    assert_eq!(answer.len(), 1, "one ACK");
    let ops = &rig.trace[before..];
    assert_eq!(
        ops.len(),
        1,
        "one device operation on an active extent: {ops:?}"
    );
    assert!(matches!(
        ops[0],
        DiskOp::Write { role: FileRole::Data, offset: 4096, buf, dsync: false } if buf.len == 4096
    ));
    let status = rig.replica.status(rig.now);
    assert_eq!(status.role, crate::status::Role::InSync);
    assert_eq!(status.latencies.write.count(), 2);
    assert_eq!((status.sessions, status.disk_in_flight), (1, 0));
    rig.stop();
}

#[test]
fn entries_that_complete_out_of_order_are_acked_as_further_positions() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.hold = true;
    for idx in 2..=5 {
        rig.write(conn, Rig::entry(1, idx, idx, 1), 2);
    }
    rig.run_to_data();
    let writes = rig.data_writes();
    assert_eq!(writes.len(), 4);
    // The last two first.
    rig.complete(writes[3]);
    rig.complete(writes[2]);
    rig.run();
    let (upto, mut further) = acked(&rig.frames(conn)).unwrap();
    further.sort_unstable();
    assert_eq!((upto, further), (1, std::vec![4, 5]));
    rig.complete(rig.data_writes()[0]);
    rig.run();
    assert_eq!(acked(&rig.frames(conn)).unwrap().0, 2);
    rig.complete(rig.data_writes()[0]);
    rig.run();
    assert_eq!(acked(&rig.frames(conn)), Some((5, std::vec![])));
    rig.stop();
}

#[test]
fn many_completions_of_one_batch_make_one_ack() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.hold = true;
    for idx in 2..=9 {
        rig.write(conn, Rig::entry(1, idx, idx, 1), 2);
    }
    rig.run_to_data();
    while !rig.data_writes().is_empty() {
        rig.complete(0);
    }
    rig.run();
    let answer = rig.frames(conn);
    assert_eq!(answer.len(), 1);
    assert_eq!(acked(&answer), Some((9, std::vec![])));
    rig.stop();
}

#[test]
fn overlapping_entries_reach_the_device_in_order() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.hold = true;
    rig.write(conn, Rig::entry(1, 2, 0, 4), 2);
    rig.write(conn, Rig::entry(1, 3, 3, 2), 3);
    rig.write(conn, Rig::entry(1, 4, 4, 1), 4);
    rig.run_to_data();
    assert_eq!(rig.data_writes().len(), 1, "O1");
    rig.hold = false;
    rig.run();
    assert_eq!(acked(&rig.frames(conn)), Some((4, std::vec![])));
    assert_eq!([rig.filled(2), rig.filled(3), rig.filled(4)], [2, 3, 4]);
    rig.stop();
}

#[test]
fn what_is_accepted_is_not_written_again_after_a_reconnect() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.hold = true;
    rig.write(conn, Rig::entry(1, 2, 0, 1), 2);
    rig.write(conn, Rig::entry(1, 3, 8, 1), 3);
    rig.run_to_data();
    // Entry 3 ends, entry 2 stays in flight; the session is cut.
    rig.complete(rig.data_writes()[1]);
    rig.run();
    rig.disconnect(conn);
    let (conn, state) = rig.login(E1);
    assert_eq!((state.upto, state.max_idx), (Idx(1), Idx(3)));
    let writes = rig.trace.len();
    for (idx, lba) in [(2, 0), (3, 8)] {
        let append = Append {
            resend: true,
            ..Rig::entry(1, idx, lba, 1)
        };
        rig.write(conn, append, u8::try_from(idx).unwrap());
    }
    rig.run_to_data();
    let again = rig.trace[writes..]
        .iter()
        .filter(|op| {
            matches!(
                op,
                DiskOp::Write {
                    role: FileRole::Data,
                    ..
                }
            )
        })
        .count();
    assert_eq!(again, 0, "2 is still in flight, 3 is accepted");
    assert_eq!(acked(&rig.frames(conn)), Some((1, std::vec![3])));
    rig.hold = false;
    rig.run();
    assert_eq!(acked(&rig.frames(conn)), Some((3, std::vec![])));
    rig.stop();
}

#[test]
fn an_older_resend_never_overwrites_a_newer_accepted_entry() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.put(conn, 2, 0, 2);
    rig.disconnect(conn);
    let (conn, _) = rig.login(E1);
    rig.write(
        conn,
        Append {
            resend: true,
            ..Rig::entry(1, 1, 0, 1)
        },
        1,
    );
    rig.run();
    assert_eq!(acked(&rig.frames(conn)), Some((2, std::vec![])));
    assert_eq!(rig.filled(0), 2);
    rig.stop();
}

#[test]
fn entries_above_what_is_accepted_must_follow_without_gaps() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    assert_eq!(refusal(&rig.put(conn, 3, 0, 3)), Some(Reason::Malformed));
    assert_eq!(rig.filled(0), 1);
    let (conn, _) = rig.login(E1);
    assert_eq!(
        refusal(&rig.put(conn, 3, 0, 3)),
        Some(Reason::Malformed),
        "also the first one"
    );
    rig.stop();
}

#[test]
fn a_reconnected_engine_may_leave_out_what_is_accepted() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.hold = true;
    for idx in 2..=4 {
        rig.write(conn, Rig::entry(1, idx, idx, 1), 2);
    }
    rig.run_to_data();
    rig.complete(rig.data_writes()[1]);
    rig.run();
    rig.disconnect(conn);
    let (conn, _) = rig.login(E1);
    rig.write(conn, Rig::entry(1, 2, 2, 1), 2);
    rig.write(conn, Rig::entry(1, 4, 4, 1), 2);
    rig.hold = false;
    rig.run();
    assert_eq!(acked(&rig.frames(conn)).unwrap().0, 4);
    rig.stop();
}

#[test]
fn credits_shrink_with_what_the_window_holds() {
    let mut rig = Rig::new();
    let conn = rig.active();
    let before = rig.state().credit_entries;
    rig.put(conn, 1, 0, 1);
    rig.put(conn, 2, 0, 1);
    assert_eq!(rig.state().credit_entries, before - 2);
    rig.write(
        conn,
        Append {
            tidx: Idx(2),
            ..Rig::entry(1, 3, 0, 1)
        },
        1,
    );
    rig.run();
    let frames = rig.frames(conn);
    let Message::Ack {
        credit_entries,
        credit_bytes,
        echo,
        ..
    } = frames[0].0
    else {
        panic!("{frames:?}")
    };
    assert_eq!((credit_entries, echo), (before - 1, 3));
    assert_eq!(credit_bytes, crate::limits::CREDIT_BYTES);
    rig.stop();
}

#[test]
fn an_engine_that_breaks_its_credits_loses_its_session() {
    let mut rig = Rig::new();
    let conn = rig.active();
    for idx in 1..=65 {
        rig.write(conn, Rig::entry(1, idx, 0, 1), 1);
    }
    rig.run();
    assert_eq!(refusal(&rig.frames(conn)), Some(Reason::Busy));
    assert_eq!(rig.state().upto, Idx(64));
    rig.stop();
}

#[test]
fn a_header_only_entry_is_accepted_without_a_write() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    let writes = rig.disk.writes;
    let append = Append {
        header_only: true,
        skip: MemberSet(0b101),
        ..Rig::entry(1, 2, 0, 1)
    };
    rig.write(conn, append, 9);
    rig.run();
    assert_eq!(acked(&rig.frames(conn)), Some((2, std::vec![])));
    assert_eq!((rig.disk.writes, rig.filled(0)), (writes, 1));
    let status = rig.replica.status(rig.now);
    assert_eq!(
        status.dirty_bytes[2], 65536,
        "marked for the other skipped member"
    );
    rig.stop();
}

#[test]
fn zeroes_and_discards_read_back_zero() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.write(conn, Rig::entry(1, 1, 0, 200), 1);
    rig.write(
        conn,
        Append {
            op: EntryOp::Zeroes,
            ..Rig::entry(1, 2, 3, 2)
        },
        0,
    );
    rig.write(
        conn,
        Append {
            op: EntryOp::Discard,
            ..Rig::entry(1, 3, 15, 100)
        },
        0,
    );
    rig.run();
    assert_eq!(acked(&rig.frames(conn)).unwrap().0, 3);
    let expected = [
        (2, 1),
        (3, 0),
        (4, 0),
        (5, 1),
        (14, 1),
        (15, 0),
        (114, 0),
        (115, 1),
    ];
    for (lba, fill) in expected {
        assert_eq!(rig.filled(lba), fill, "block {lba}");
    }
    rig.stop();
}

#[test]
fn a_flush_is_answered_after_device_flush_then_watermark() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.hold = true;
    let (idx, tidx) = (Idx(2), Idx(0));
    rig.queue_frame(
        conn,
        &Message::Flush {
            term: TERM,
            idx,
            tidx,
            sent_at: 0,
        },
        &[],
    );
    rig.run();
    assert_eq!(rig.queue.len(), 1, "{:?}", rig.queue);
    assert!(
        matches!(
            rig.queue[0].1,
            DiskOp::Flush {
                role: FileRole::Data
            }
        ),
        "F1: flush first"
    );
    assert_eq!(
        acked(&rig.frames(conn)),
        Some((2, std::vec![])),
        "accepted at once"
    );
    rig.complete(0);
    rig.run();
    assert!(rig.frames(conn).is_empty());
    assert_eq!(rig.state().w, Idx(0));
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
    let at = rig.queue.iter().position(|(_, op)| journal(op));
    rig.complete(at.expect("then the watermark"));
    rig.run();
    assert!(
        rig.frames(conn)
            .iter()
            .any(|f| f.0 == Message::FlushDone { term: TERM, idx })
    );
    assert_eq!(rig.state().w, Idx(2));
    rig.hold = false;
    rig.run();
    rig.stop();
}

#[test]
fn a_flush_waits_for_the_writes_before_it_but_not_for_those_after() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.hold = true;
    rig.write(conn, Rig::entry(1, 2, 1, 1), 2);
    let (idx, tidx) = (Idx(3), Idx(0));
    rig.queue_frame(
        conn,
        &Message::Flush {
            term: TERM,
            idx,
            tidx,
            sent_at: 0,
        },
        &[],
    );
    rig.write(conn, Rig::entry(1, 4, 2, 1), 4);
    rig.run();
    assert!(
        !rig.queue
            .iter()
            .any(|(_, op)| matches!(op, DiskOp::Flush { .. }))
    );
    assert_eq!(rig.data_writes().len(), 2);
    rig.complete(rig.data_writes()[0]);
    rig.run_to_data();
    let answer = rig.frames(conn);
    assert!(
        answer
            .iter()
            .any(|f| f.0 == Message::FlushDone { term: TERM, idx })
    );
    assert_eq!(rig.state().w, Idx(3));
    rig.hold = false;
    rig.run();
    rig.stop();
}

#[test]
fn flushes_that_wait_together_share_a_device_flush_and_an_answer() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    let before = rig.trace.iter().filter(|op| is_flush(op)).count();
    for idx in 2..=6 {
        let (idx, tidx) = (Idx(idx), Idx(0));
        rig.queue_frame(
            conn,
            &Message::Flush {
                term: TERM,
                idx,
                tidx,
                sent_at: 0,
            },
            &[],
        );
    }
    rig.run();
    let after = rig.trace.iter().filter(|op| is_flush(op)).count();
    assert!(
        after - before <= 2,
        "{} device flushes for five flushes",
        after - before
    );
    let answer = rig.frames(conn);
    let done = answer
        .iter()
        .filter(|f| matches!(f.0, Message::FlushDone { .. }))
        .count();
    assert!(done <= 2);
    assert!(answer.iter().any(|f| f.0
        == Message::FlushDone {
            term: TERM,
            idx: Idx(6)
        }));
    rig.stop();
}

#[test]
fn a_flush_sent_again_is_answered_again() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.flush(conn, 2);
    rig.disconnect(conn);
    let (conn, _) = rig.login(E1);
    let answer = rig.flush(conn, 2);
    assert!(answer.iter().any(|f| f.0
        == Message::FlushDone {
            term: TERM,
            idx: Idx(2)
        }));
    rig.stop();
}

#[test]
fn reads_bring_data_with_checksums_or_say_zero() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 3, 7);
    let range = BlockRange::new(Lba(2), Blocks(2));
    let answer = rig.ask(
        conn,
        &Message::Read {
            term: TERM,
            range,
            rid: 1,
        },
    );
    let (
        Message::Data {
            rid: 1,
            status,
            zero: false,
            crcs,
            ..
        },
        payload,
    ) = &answer[0]
    else {
        panic!("{answer:?}")
    };
    assert_eq!(*status, EntryStatus::Done);
    assert_eq!(payload[..4096], [0; 4096]);
    assert_eq!(payload[4096..], [7; 4096]);
    assert_eq!(crcs[4..8], rig.arena.crc32c(0, &[7; 4096]).to_le_bytes());
    let reads = rig.trace.len();
    let range = BlockRange::new(Lba(2000), Blocks(256));
    let answer = rig.ask(
        conn,
        &Message::Read {
            term: TERM,
            range,
            rid: 2,
        },
    );
    assert!(matches!(
        answer[0].0,
        Message::Data {
            rid: 2,
            zero: true,
            ..
        }
    ));
    assert_eq!(
        rig.trace.len(),
        reads,
        "no disk is asked for what was never written"
    );
    rig.stop();
}

#[test]
fn digests_are_those_of_the_bytes_on_the_disk() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 3, 7);
    let ask = |range, unit, rid| Message::ExtentHash {
        term: TERM,
        range,
        rid,
        unit,
        seed: 77,
    };
    let mut chunk = std::vec![0; 16 * 4096];
    chunk[3 * 4096..4 * 4096].fill(7);
    let written = BlockRange::new(Lba(0), Blocks(16));
    for (range, unit, from) in [
        (written, digest::CHUNK, 0),
        (written, digest::BLOCK, 0),
        (BlockRange::new(Lba(3), Blocks(2)), digest::BLOCK, 3 * 4096),
    ] {
        let answer = rig.ask(conn, &ask(range, unit, 9));
        let mut expected = std::vec::Vec::new();
        let len = range.count.0 as usize * 4096;
        digest::append(77, &chunk[from..from + len], unit, &mut expected);
        let (
            Message::ExtentHashDone {
                status, digests, ..
            },
            payload,
        ) = &answer[0]
        else {
            panic!("{answer:?}")
        };
        assert_eq!(*status, EntryStatus::Done);
        assert_eq!(*digests, expected);
        assert!(payload.is_empty());
    }
    let operations = rig.trace.len();
    let hole = BlockRange::new(Lba(2032), Blocks(16));
    let answer = rig.ask(conn, &ask(hole, digest::CHUNK, 9));
    let zeroes = digest::of(77, &[0; 16 * 4096]);
    assert!(
        matches!(answer[0].0, Message::ExtentHashDone { digests, .. } if digests == zeroes),
        "{answer:?}"
    );
    assert_eq!(rig.trace.len(), operations, "a hole is not read");
    rig.disk.fail_read = Some(IO);
    let answer = rig.ask(conn, &ask(written, digest::CHUNK, 9));
    assert!(
        matches!(
            answer[0].0,
            Message::ExtentHashDone {
                status: EntryStatus::Io,
                digests: &[],
                ..
            }
        ),
        "{answer:?}"
    );
    rig.stop();
}

#[test]
fn a_write_error_fails_that_entry_only_and_no_flush_covers_it() {
    for (error, status) in [
        (IO, EntryStatus::Io),
        (DiskError::NoSpace, EntryStatus::NoSpace),
    ] {
        let mut rig = Rig::new();
        let conn = rig.active();
        rig.put(conn, 1, 0, 1);
        rig.disk.fail_write = Some(error);
        let answer = rig.put(conn, 2, 1, 2);
        let failed = Message::EntryFailed {
            term: TERM,
            idx: Idx(2),
            status,
        };
        assert!(answer.iter().any(|f| f.0 == failed), "{answer:?}");
        assert!(acked(&answer).is_none_or(|a| a == (1, std::vec![])));
        let answer = rig.put(conn, 3, 2, 3);
        assert_eq!(acked(&answer), Some((1, std::vec![3])));
        let answer = rig.flush(conn, 4);
        assert!(
            !answer
                .iter()
                .any(|f| matches!(f.0, Message::FlushDone { .. })),
            "M3"
        );
        assert_eq!(rig.state().w, Idx(0));
        // Sent again in place: now it works, and the flush is answered too.
        rig.write(
            conn,
            Append {
                resend: true,
                ..Rig::entry(1, 2, 1, 1)
            },
            2,
        );
        rig.run();
        let answer = rig.frames(conn);
        assert_eq!(acked(&answer).unwrap().0, 4, "{answer:?}");
        assert!(answer.iter().any(|f| f.0
            == Message::FlushDone {
                term: TERM,
                idx: Idx(4)
            }));
        assert_eq!(rig.filled(1), 2);
        rig.stop();
    }
}

#[test]
fn a_failed_flush_is_final() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 0, 1);
    rig.disk.fail_flush = Some(IO);
    let answer = rig.flush(conn, 2);
    assert!(
        !answer
            .iter()
            .any(|f| matches!(f.0, Message::FlushDone { .. }))
    );
    assert!(rig.fatal.is_some() && rig.closed.contains(&conn));
    // The next process comes up tainted, and still votes.
    rig.crash(true);
    let (conn, state) = rig.login(super::rig::E2);
    assert!(state.flags.tainted);
    assert_eq!(state.w, Idx(0));
    rig.elect(conn, 2);
    rig.stop();
}

#[test]
fn a_failed_journal_write_is_final_and_nothing_is_promised() {
    let mut rig = Rig::new();
    let (conn, _) = rig.login(E1);
    rig.disk.fail_meta = Some(IO);
    let vote = rig.vote(1);
    let answer = rig.ask(conn, &Message::Vote(vote));
    assert!(
        !answer
            .iter()
            .any(|f| matches!(f.0, Message::Promise { .. }))
    );
    assert_eq!(refusal(&answer), Some(Reason::Failed));
    assert!(rig.fatal.is_some());
    rig.crash(true);
    assert_eq!(rig.state().term, Term(0));
    rig.stop();
}

#[test]
fn repairs_are_written_answered_and_checked() {
    let mut rig = Rig::new();
    let (conn, _) = rig.login(E1);
    rig.elect(conn, 1);
    let range = BlockRange::new(Lba(4), Blocks(1));
    let crcs = rig.arena.crc32c(0, &[3; 4096]).to_le_bytes();
    let repair = Message::Repair {
        term: TERM,
        range,
        tag: 11,
        zero: false,
        rebuild: false,
        crcs: &crcs,
    };
    for (byte, status) in [(4, EntryStatus::Checksum), (3, EntryStatus::Done)] {
        rig.queue_frame(conn, &repair, &[byte; 4096]);
        rig.run();
        let done = Message::RepairDone {
            term: TERM,
            tag: 11,
            status,
        };
        assert_eq!(rig.frames(conn)[0].0, done);
    }
    assert_eq!(rig.filled(4), 3);
    let zero = Message::Repair {
        term: TERM,
        range,
        tag: 12,
        zero: true,
        rebuild: false,
        crcs: &[],
    };
    assert!(matches!(
        rig.ask(conn, &zero)[0].0,
        Message::RepairDone {
            tag: 12,
            status: EntryStatus::Done,
            ..
        }
    ));
    assert_eq!(rig.filled(4), 0);
    rig.stop();
}

#[test]
fn a_rebuild_copy_on_an_in_sync_member_is_refused() {
    let mut rig = Rig::new();
    let conn = rig.active();
    rig.put(conn, 1, 4, 9);
    let range = BlockRange::new(Lba(4), Blocks(1));
    let copy = Message::Repair {
        term: TERM,
        range,
        tag: 1,
        zero: true,
        rebuild: true,
        crcs: &[],
    };
    assert!(matches!(
        rig.ask(conn, &copy)[0].0,
        Message::RepairDone {
            tag: 1,
            status: EntryStatus::Refused,
            ..
        }
    ));
    assert_eq!(rig.filled(4), 9);
    rig.stop();
}
