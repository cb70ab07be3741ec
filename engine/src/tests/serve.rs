//! Requests while the volume is healthy, and at its limits.

use super::world::{MS, World};
use crate::{ExitReason, Mode};
use std::vec;
use std::vec::Vec;
use trilith_block::request::status_flags;
use trilith_block::{BlockRange, Blocks, ByteRange, ErrorKind, Lba, Monotonic, Op, RequestFlags};

#[test]
fn a_healthy_volume_writes_to_all_reads_and_flushes() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    let info = w.engine.info().unwrap();
    assert_eq!(info.capabilities.capacity_bytes, 64 << 20);
    let data: Vec<u8> = (0..3 * 4096u32)
        .map(|i| u8::try_from(i % 251).unwrap())
        .collect();
    w.written(8192, &data);
    assert_eq!(w.bytes(8192, data.len() as u64), data);
    assert_eq!(w.bytes(9000, 100), data[808..908].to_vec());
    assert_eq!(w.bytes(0, 4096), vec![0; 4096]);
    let tag = w.flush();
    assert_eq!(w.answer(tag), Ok(Vec::new()));
    for fake in &w.fakes {
        assert_eq!(fake.appends, 1);
        assert!(fake.w >= fake.upto.min(trilith_block::Idx(2)));
    }
    let status = w.engine.status(trilith_block::Monotonic(w.now));
    assert_eq!(status.counted, status.in_sync);
    assert_eq!((status.counters.reads, status.counters.writes), (3, 1));
    w.stop();
    assert_eq!(w.exit, Some(ExitReason::Stopped { sealed: true }));
    assert!(w.fakes.iter().all(|f| f.sealed));
}

#[test]
fn a_write_needs_a_majority_and_not_more() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.fakes[1].hold_acks = true;
    w.fakes[2].hold_acks = true;
    let tag = w.write(0, &[1; 4096]);
    assert!(
        !w.until(100, |w| w.answers.contains_key(&tag)),
        "acked by one of three"
    );
    w.fakes[1].hold_acks = false;
    w.let_go(1);
    assert!(
        w.until(10, |w| w.answers.contains_key(&tag)),
        "acked by two of three"
    );
    w.fakes[2].hold_acks = false;
    w.let_go(2);
    w.answers.clear();
    w.stop();
}

#[test]
fn a_flush_needs_a_majority_of_durable_members() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.fakes[0].hold_flushes = true;
    w.fakes[2].hold_flushes = true;
    let range = ByteRange::new(0, 4096);
    let flags = RequestFlags {
        fua: true,
        ..RequestFlags::default()
    };
    let fua = w.submit_full(Op::Write, range, flags, Some(&[1; 4096]));
    let flush = w.flush();
    w.run(50);
    assert!(w.answers.is_empty());
    w.fakes[2].hold_flushes = false;
    w.let_go(2);
    w.run(10);
    assert_eq!(w.answers.remove(&fua), Some(Ok(Vec::new())));
    assert_eq!(w.answers.remove(&flush), Some(Ok(Vec::new())));
    w.let_go(0);
    w.stop();
}

#[test]
fn nonsense_is_refused_and_its_buffer_returned() {
    let mut w = World::new(3);
    // Also before the size of the volume is known.
    let early = w.write(64 << 20, &[1; 512]);
    w.wait_mode(Mode::Healthy);
    assert_eq!(w.answer(early), Err(ErrorKind::InvalidRange));
    let none = RequestFlags::default();
    for (op, offset, len, data) in [
        (Op::Read, (64 << 20) - 4096, 8192, None),
        (Op::Read, u64::MAX, 2, None),
        (Op::Read, 0, 0, None),
        (Op::Read, 0, (1 << 20) + 1, None),
        (Op::Write, 0, 8192, Some(&[0u8; 4096][..])),
        (Op::Write, 0, 4096, None),
        (Op::Discard, 0, (64 << 20) + 1, None),
    ] {
        let tag = w.submit_full(op, ByteRange::new(offset, len), none, data);
        assert_eq!(
            w.answer(tag),
            Err(ErrorKind::InvalidRange),
            "{op:?} {offset} {len}"
        );
    }
    w.stop();
}

#[test]
fn a_transfer_of_the_longest_size_at_an_odd_offset_works() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    let data: Vec<u8> = (0..1u32 << 20)
        .map(|i| u8::try_from(i % 253).unwrap())
        .collect();
    w.written((4 << 20) - 70_001, &data);
    assert_eq!(w.bytes((4 << 20) - 70_001, 1 << 20), data);
    w.stop();
}

#[test]
fn a_huge_discard_is_expanded_lazily_and_reads_zero() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.written(1000, &[7; 9000]);
    let range = ByteRange::new(1001, (64 << 20) - 1001);
    let tag = w.submit_full(Op::Discard, range, RequestFlags::default(), None);
    w.settle();
    assert!(w.engine.status(trilith_block::Monotonic(w.now)).entries <= 16);
    assert_eq!(w.answer(tag), Ok(Vec::new()));
    let mut expect = vec![0; 12_000];
    expect[1000] = 7;
    assert_eq!(w.bytes(0, 12_000), expect);
    w.stop();
}

#[test]
fn eight_small_writes_of_one_block_share_one_read() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[9; 4096]);
    w.run(10);
    let reads: u64 = w.fakes.iter().map(|f| f.reads).sum();
    let begin = w.now;
    let tags: Vec<u64> = (0..8u8)
        .map(|i| w.write(u64::from(i) * 512, &[i; 512]))
        .collect();
    for tag in tags {
        assert_eq!(w.answer(tag), Ok(Vec::new()));
    }
    // One round trip to read, one to write.
    assert!(
        w.now - begin <= 5 * MS / 10,
        "{} us",
        (w.now - begin) / 1000
    );
    assert_eq!(w.fakes.iter().map(|f| f.reads).sum::<u64>(), reads + 1);
    let expect: Vec<u8> = (0..8u8).flat_map(|i| [i; 512]).collect();
    assert_eq!(w.bytes(0, 4096), expect);
    w.stop();
}

/// The first answer says zero and waits for a majority; the second one's bytes must not come into
/// what the client is given (seed 60000000109905).
#[test]
fn the_late_half_of_a_hedge_lands_nowhere() {
    let mut w = World::with(3, |cfg| cfg.timing.lease_enabled = false);
    w.wait_mode(Mode::Healthy);
    // A hedge comes as soon as it may from now on.
    w.bytes(0, 4096);
    w.run(2_000);
    // Only to tell where bytes come from.
    let range = BlockRange::new(Lba(0), Blocks(1));
    w.fakes[1].store(range, Some(&[7; 4096]));
    (w.delay[0], w.delay[1], w.delay[2]) = (20 * MS, 30 * MS, 60 * MS);
    w.late[1] = 1000 * MS;
    let tag = w.read(0, 4096);
    assert_eq!(w.answer(tag), Ok(vec![0; 4096]));
    assert!(w.engine.status(Monotonic(w.now)).counters.hedges > 0);
    w.run(2_000);
    w.stop();
}

#[test]
fn a_slow_read_is_hedged_and_both_buffers_come_back() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[3; 8192]);
    for fake in &mut w.fakes[..2] {
        fake.hold_reads = true;
    }
    let tag = w.read(0, 8192);
    let tag2 = w.read(4096, 4096);
    assert_eq!(w.answer(tag), Ok(vec![3; 8192]));
    assert_eq!(w.answer(tag2), Ok(vec![3; 4096]));
    assert!(
        w.engine
            .status(trilith_block::Monotonic(w.now))
            .counters
            .hedges
            > 0
    );
    w.let_go(0);
    w.let_go(1);
    w.run(10);
    w.stop();
}

#[test]
fn an_unreadable_copy_is_read_elsewhere_and_written_again() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[3; 4096]);
    w.run(10);
    w.fakes[0].fail_reads = true;
    let appends = w.fakes[0].appends;
    assert_eq!(w.bytes(0, 4096), vec![3; 4096]);
    w.run(100);
    assert_eq!(
        w.fakes[0].appends,
        appends + 1,
        "the bad copy is written again"
    );
    for fake in &mut w.fakes {
        fake.fail_reads = true;
    }
    let tag = w.read(0, 4096);
    assert_eq!(w.answer(tag), Err(ErrorKind::Io));
    w.stop();
}

#[test]
fn a_read_waits_for_the_overlapping_write_that_came_before_it() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    for fake in &mut w.fakes {
        fake.hold_acks = true;
    }
    let write = w.write(0, &[5; 4096]);
    w.run(5);
    let read = w.read(0, 4096);
    w.run(20);
    assert!(!w.answers.contains_key(&read), "uncommitted data was shown");
    for at in 0..3 {
        w.fakes[at].hold_acks = false;
        w.let_go(at);
    }
    assert_eq!(w.answer(write), Ok(Vec::new()));
    assert_eq!(w.answer(read), Ok(vec![5; 4096]));
    w.stop();
}

#[test]
fn without_a_lease_a_read_asks_a_majority() {
    let mut w = World::with(3, |cfg| cfg.timing.lease_enabled = false);
    w.wait_mode(Mode::Healthy);
    w.written(0, &[5; 4096]);
    let beats: u64 = w.fakes.iter().map(|f| f.heartbeats).sum();
    assert_eq!(w.bytes(0, 4096), vec![5; 4096]);
    assert!(w.fakes.iter().map(|f| f.heartbeats).sum::<u64>() >= beats + 2);
    w.stop();
}

#[test]
fn an_idle_volume_only_beats_its_heart_and_half_as_often() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.run(5_000);
    let beats = |w: &World| w.fakes.iter().map(|f| f.heartbeats).sum::<u64>();
    let before = beats(&w);
    w.run(10_000);
    let idle = beats(&w) - before;
    assert!((27..=33).contains(&idle), "{idle} heartbeats in 10 s");
    assert_eq!(w.engine.mode(), Mode::Healthy);
    let before = beats(&w);
    for _ in 0..25 {
        w.run(400);
        // From the lease: no question to a majority first.
        let asked = beats(&w);
        assert_eq!(w.bytes(0, 4096), vec![0; 4096]);
        assert!(beats(&w) <= asked + 3);
    }
    let busy = beats(&w) - before;
    assert!((57..=78).contains(&busy), "{busy} heartbeats in 10 s");
    w.stop();
}

#[test]
fn no_room_on_a_majority_is_told_before_a_place_is_given() {
    let mut w = World::new(3);
    for fake in &mut w.fakes {
        fake.free_extents = 1;
    }
    w.wait_mode(Mode::Healthy);
    w.written(0, &[1; 4096]);
    for fake in &mut w.fakes {
        fake.free_extents = 0;
    }
    w.run(1_000);
    let last = w.engine.status(trilith_block::Monotonic(w.now)).last;
    let tag = w.write(8 << 20, &[1; 4096]);
    assert_eq!(w.answer(tag), Err(ErrorKind::NoSpace));
    assert_eq!(w.engine.status(trilith_block::Monotonic(w.now)).last, last);
    // What is allocated can still be written.
    w.written(4096, &[2; 4096]);
    w.stop();
}

#[test]
fn block_status_tells_data_from_holes() {
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    w.written(1 << 20, &[1; 65536]);
    let tag = w.submit_full(
        Op::BlockStatus,
        ByteRange::new(4096, 64 << 19),
        RequestFlags::default(),
        None,
    );
    let bytes = w.answer(tag).unwrap();
    let mut records = Vec::new();
    for record in bytes.chunks(16) {
        let len = u64::from_le_bytes(record[..8].try_into().unwrap());
        let flags = u32::from_le_bytes(record[8..12].try_into().unwrap());
        records.push((len, flags));
    }
    let hole = status_flags::HOLE | status_flags::ZERO;
    let first = (1 << 20) - 4096;
    assert_eq!(
        records,
        vec![
            (first, hole),
            (65536, 0),
            ((32 << 20) - first - 65536, hole)
        ]
    );
    w.stop();
}

#[test]
fn a_full_engine_gives_the_request_back() {
    let mut w = World::with(3, |cfg| cfg.sizes.requests_max = 2);
    let first = w.read(0, 4096);
    let second = w.read(0, 4096);
    let request = trilith_block::Request {
        tag: trilith_block::Tag(99),
        op: Op::Read,
        range: ByteRange::new(0, 4096),
        flags: RequestFlags::default(),
        data: None,
    };
    let now = trilith_block::Monotonic(w.now);
    let back = trilith_block::request::Target::submit(&mut w.engine, now, request, &mut w.arena);
    assert_eq!(back, Err(request));
    w.answer(first).unwrap();
    w.answer(second).unwrap();
    w.stop();
}
