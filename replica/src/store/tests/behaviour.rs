//! What the store does when nothing is lost, and over process restarts.

use super::world::{World, formatted, open, ops};
use super::*;
use trilith_block::{ChunkMap, Idx, Term};

#[test]
fn a_first_write_waits_for_the_unseal_then_for_log_and_space_and_a_second_one_for_nothing() {
    let mut world = World::new();
    assert!(world.store.facts().sealed);
    world.write(1, range(0, 1), 11);
    assert!(ops(&world).iter().all(|op| matches!(
        op,
        DiskOp::Write {
            role: FileRole::Meta,
            ..
        }
    )));
    world.run();
    assert!(
        world
            .take_events()
            .contains(&StoreEvent::Accepted { idx: Idx(1) })
    );
    assert!(!world.store.facts().sealed);
    world.write(2, range(1, 1), 12);
    assert!(
        matches!(
            ops(&world)[..],
            [DiskOp::Write {
                role: FileRole::Data,
                offset: 4096,
                dsync: false,
                ..
            }]
        ),
        "a hit goes straight to the device: {:?}",
        ops(&world)
    );
    world.run();
    assert_eq!(world.store.upto(), Idx(2));
    assert_eq!((world.read(0), world.read(1), world.read(2)), (11, 12, 0));
}

#[test]
fn overlapping_entries_reach_the_device_one_after_the_other() {
    let mut world = World::new();
    world.write(1, range(0, 4), 1);
    world.run();
    world.write(2, range(0, 2), 2);
    world.write(3, range(1, 2), 3);
    world.write(4, range(3, 1), 4);
    assert_eq!(ops(&world).len(), 2, "2 and 4 run, 3 waits for 2");
    world.complete(1);
    assert_eq!(world.store.upto(), Idx(1), "4 is accepted, 2 is not");
    assert!(world.store.is_accepted(Idx(4)));
    world.run();
    assert_eq!(world.store.upto(), Idx(4));
    assert_eq!([0, 1, 2, 3].map(|b| world.read(b)), [2, 3, 3, 4]);
}

#[test]
fn unallocated_chunks_read_zero_without_io_and_mixed_ranges_read_only_what_is_there() {
    let mut world = World::new();
    world.write(1, range(16, 1), 5);
    world.run();
    let buf = world.buffers.alloc(48 * 4096).unwrap();
    world
        .store
        .read(
            Token(1),
            range(64, 48),
            buf,
            &mut world.buffers,
            &mut world.out,
        )
        .unwrap();
    world.drain();
    assert!(ops(&world).is_empty());
    let zero = StoreEvent::ReadDone {
        token: Token(1),
        result: Ok(true),
    };
    assert!(world.take_events().contains(&zero));
    world
        .store
        .read(
            Token(2),
            range(0, 48),
            buf,
            &mut world.buffers,
            &mut world.out,
        )
        .unwrap();
    world.drain();
    assert!(
        matches!(ops(&world)[..], [DiskOp::Read { offset: 65536, buf: b, .. }] if b.len == 65536)
    );
    world.run();
    assert_eq!(world.buffers.bytes(buf.slice(0, 8)), [0; 8]);
    assert_eq!(world.buffers.bytes(buf.slice(65536, 8)), 5u64.to_le_bytes());
    assert_eq!(world.buffers.bytes(buf.slice(47 * 4096, 8)), [0; 8]);
}

#[test]
fn a_discard_punches_whole_chunks_writes_zeroes_to_edges_and_skips_what_is_not_there() {
    let mut world = World::new();
    world.write(1, range(0, 64), 9);
    world.run();
    world.change(2, range(8, 40), Change::Discard);
    let punch = DiskOp::PunchHole {
        role: FileRole::Data,
        offset: 65536,
        len: 2 * 65536,
    };
    assert!(ops(&world).contains(&punch), "{:?}", ops(&world));
    let edge = ops(&world).iter().any(
        |op| matches!(op, DiskOp::Write { role: FileRole::Data, offset, buf, .. } if *offset == 8 * 4096 && buf.len == 8 * 4096),
    );
    assert!(edge, "{:?}", ops(&world));
    assert_eq!(ops(&world).len(), 2);
    world.run();
    assert_eq!(
        [0, 7, 8, 16, 47, 48].map(|b| world.read(b)),
        [9, 9, 0, 0, 0, 9]
    );
    assert_eq!(
        world.store.map(MapName::Allocated).mask(ExtentNo(0)),
        0b1001
    );
    world.change(3, range(16, 16), Change::Discard);
    assert!(ops(&world).is_empty(), "nothing is there: done at once");
    assert_eq!(world.store.upto(), Idx(3));
}

#[test]
fn a_flush_answers_after_all_before_it_and_its_watermark() {
    let mut world = World::new();
    world.write(1, range(0, 1), 1);
    world.run();
    world.take_events();
    world.write(2, range(1, 1), 2);
    world.flush(3);
    world.flush(4);
    assert!(
        !ops(&world)
            .iter()
            .any(|op| matches!(op, DiskOp::Flush { .. }))
    );
    world.complete(0);
    assert_eq!(
        ops(&world),
        [DiskOp::Flush {
            role: FileRole::Data
        }],
        "one for both"
    );
    world.complete(0);
    assert!(
        !world
            .take_events()
            .iter()
            .any(|e| matches!(e, StoreEvent::Flushed { .. })),
        "F1"
    );
    assert_eq!(world.store.facts().w, Idx(0));
    world.run();
    assert!(
        world
            .take_events()
            .contains(&StoreEvent::Flushed { idx: Idx(4) })
    );
    assert_eq!(world.store.facts().w, Idx(4));
}

#[test]
fn a_failed_data_flush_is_final_and_the_next_open_is_tainted() {
    let mut world = World::new();
    world.write(1, range(0, 1), 1);
    world.run();
    world.fault = |op| {
        matches!(
            op,
            DiskOp::Flush {
                role: FileRole::Data
            }
        )
        .then_some(DiskError::Io)
    };
    world.flush(2);
    world.run();
    let cause = FailCause::DataFlush(DiskError::Io);
    let events = world.take_events();
    assert!(events.contains(&StoreEvent::Failed { cause }), "{events:?}");
    assert!(
        !events
            .iter()
            .any(|e| matches!(e, StoreEvent::Flushed { .. }))
    );
    assert_eq!(
        world.store.need_set(Token(1), &ChunkMap::new()),
        Err(StoreError::Failed),
        "nothing is taken any more"
    );
    let next = world.restart();
    assert!(next.opened.newly_tainted && next.store.facts().tainted);
    assert_eq!(next.store.map(MapName::Need).mask(ExtentNo(0)), u64::MAX);
}

#[test]
fn a_failed_entry_holds_its_range_until_it_is_sent_again() {
    let mut world = World::new();
    world.write(1, range(0, 1), 1);
    world.run();
    world.fault = |op| {
        matches!(
            op,
            DiskOp::Write {
                role: FileRole::Data,
                ..
            }
        )
        .then_some(DiskError::NoSpace)
    };
    world.write(2, range(0, 1), 2);
    world.run();
    let failed = StoreEvent::EntryFailed {
        idx: Idx(2),
        error: DiskError::NoSpace,
    };
    assert!(world.take_events().contains(&failed));
    world.fault = |_| None;
    world.write(3, range(0, 1), 3);
    world.flush(4);
    world.run();
    assert_eq!(world.store.upto(), Idx(1), "3 waits behind 2");
    assert_eq!(
        world.store.facts().w,
        Idx(0),
        "M3: no flush above a failed entry"
    );
    world.write(2, range(0, 1), 2);
    world.run();
    assert_eq!(world.store.upto(), Idx(4));
    assert_eq!(world.store.facts().w, Idx(4));
    assert_eq!(world.read(0), 3);
}

#[test]
fn entries_beyond_the_window_and_bad_ranges_are_refused() {
    let mut world = World::new();
    let entry = |idx, at, change| Entry {
        idx: Idx(idx),
        range: at,
        change,
        skip: MemberSet::EMPTY,
    };
    let cases = [
        (
            entry(5, range(0, 1), Change::Discard),
            StoreError::WindowFull,
        ),
        (entry(1, range(1023, 2), Change::Discard), StoreError::Range),
        (entry(1, range(0, 0), Change::Discard), StoreError::Range),
        (
            entry(1, range(8 * 1024 + 40, 1), Change::Discard),
            StoreError::Range,
        ),
        (
            entry(1, range(u64::MAX, 1), Change::Discard),
            StoreError::Range,
        ),
    ];
    for (entry, error) in cases {
        assert_eq!(
            world.store.entry(entry, &mut world.buffers, &mut world.out),
            Err(error)
        );
    }
    let buf = world.payload(2, 1);
    let short = entry(1, range(0, 1), Change::Write(buf));
    let refused = world.store.entry(short, &mut world.buffers, &mut world.out);
    assert_eq!(refused, Err(StoreError::Range));
}

#[test]
fn the_log_evicts_what_all_have_and_asks_for_a_flush_when_that_is_missing() {
    let mut world = World::new();
    for n in 0..8 {
        world.write(n + 1, range(n * 1024, 1), n + 1);
        world.run();
        assert_eq!(
            world.store.upto(),
            Idx(n + 1),
            "entry {n} got a slot of the log"
        );
        world.store.set_tidx(Idx(n + 1));
        assert!(world.store.activity_log(ExtentNo(0)).count() <= 5);
    }
    assert!(world.store.counters().al_evictions >= 3);
    assert!(
        world.store.counters().data_flushes >= 1,
        "by itself: no FLUSH was sent"
    );
    assert_eq!(world.store.facts().w, Idx(0));
}

#[test]
fn without_tidx_nothing_is_evicted_and_the_window_still_fits_the_log() {
    let mut world = World::new();
    for n in 0..4 {
        world.write(n + 1, range(n * 1024, 1), n + 1);
    }
    world.run();
    assert_eq!(world.store.upto(), Idx(4), "M1");
    assert_eq!(world.store.counters().al_evictions, 0);
}

/// A repair of the first block of an extent: it belongs to no entry.
fn repair_extent(world: &mut World, extent: u64) {
    let buf = world.payload(1, 9);
    let (buffers, out) = (&mut world.buffers, &mut world.out);
    let at = range(extent * 1024, 1);
    let repair = world
        .store
        .repair(Token(extent), at, Change::Write(buf), buffers, out);
    assert_eq!(repair, Ok(()));
    world.buffers.release(buf.buf);
    world.run();
}

#[test]
fn an_extent_with_an_entry_above_tidx_stays_in_the_log_though_it_is_the_oldest() {
    let mut world = World::new();
    world.write(1, range(1024, 1), 1);
    world.run();
    for extent in [0, 2, 3, 4, 5, 6] {
        repair_extent(&mut world, extent);
    }
    assert!(world.store.counters().al_evictions >= 2);
    let logged = |world: &World| world.store.activity_log(ExtentNo(1)).next();
    assert_eq!(logged(&world), Some(ExtentNo(1)), "L2 (b)");
    world.store.set_tidx(Idx(1));
    repair_extent(&mut world, 7);
    let left = logged(&world) != Some(ExtentNo(1));
    assert!(left, "it leaves when all have the entry");
}

#[test]
fn the_ring_wraps_under_checkpoints_and_votes_are_kept() {
    let mut world = World::new();
    for n in 1..100 {
        world.store.vote(Token(n), Term(n), id(3), n / 2).unwrap();
        world.run();
        assert_eq!(world.store.facts().term, Term(n));
    }
    assert!(
        world.store.counters().checkpoints >= 10,
        "{:?}",
        world.store.counters()
    );
    let next = world.restart();
    let facts = next.store.facts();
    assert_eq!(
        (facts.term, facts.voted, facts.attach_epoch),
        (Term(99), id(3), 49)
    );
}

#[test]
fn a_need_that_is_known_already_is_answered_without_a_write() {
    let mut world = World::new();
    let need = chunks(2, 5);
    world.store.need_set(Token(1), &need).unwrap();
    world.settle();
    world.store.need_set(Token(2), &need).unwrap();
    world.settle();
    assert_eq!(world.take_events(), [], "not durable yet");
    world.run();
    let done = |token| StoreEvent::Done {
        token: Token(token),
    };
    assert_eq!(world.take_events(), [done(1), done(2)]);
    let writes = world.store.counters().journal_writes;
    world.store.need_set(Token(3), &need).unwrap();
    world.store.need_set(Token(4), &ChunkMap::new()).unwrap();
    world.run();
    assert_eq!(world.take_events(), [done(3), done(4)]);
    assert_eq!(world.store.counters().journal_writes, writes);
}

#[test]
fn many_votes_of_one_batch_share_journal_writes() {
    let mut world = World::new();
    for n in 1..50 {
        world.store.vote(Token(n), Term(n), id(3), 0).unwrap();
    }
    world.run();
    assert_eq!(world.store.counters().journal_writes, 1);
    assert_eq!(world.take_events().len(), 49);
}

#[test]
fn a_restart_resumes_window_maps_and_lease_and_takes_only_what_is_missing() {
    let mut world = World::new();
    let skip = MemberSet::of(member(1));
    world.write_skip(1, range(0, 1), 1, skip);
    world.run();
    world.write(2, range(5, 1), 2);
    world.write(3, range(9, 1), 3);
    world.complete(1);
    let grant = LeaseGrant {
        until: trilith_block::Monotonic(77),
        engine: id(4),
    };
    world.store.set_lease(grant);
    world.settle();
    world.inflight.clear();
    let mut next = world.restart();
    assert!(next.opened.resumed && !next.store.facts().tainted);
    assert_eq!(next.store.lease(), grant);
    assert_eq!((next.store.upto(), next.store.max_idx()), (Idx(1), Idx(3)));
    assert_eq!(
        next.store.map(MapName::Dirty(member(1))).mask(ExtentNo(0)),
        1
    );
    let entry = |idx, at| Entry {
        idx: Idx(idx),
        range: at,
        change: Change::HeaderOnly,
        skip: MemberSet::EMPTY,
    };
    for idx in [1, 3] {
        let taken = next
            .store
            .entry(entry(idx, range(9, 1)), &mut next.buffers, &mut next.out);
        assert_eq!(taken, Ok(Admission::Duplicate));
    }
    next.write(2, range(5, 1), 2);
    next.run();
    assert_eq!(next.store.upto(), Idx(3));
    assert_eq!([0, 5, 9].map(|b| next.read(b)), [1, 2, 3]);
}

#[test]
fn words_of_another_boot_or_replica_or_an_older_life_taint() {
    let mut world = World::new();
    world.write(1, range(0, 1), 1);
    world.run();
    let other_boot = open(world.disk.clone(), &world.words.deep_clone(), id(9)).unwrap();
    assert!(other_boot.opened.newly_tainted);
    let no_boot = open(world.disk.clone(), &world.words.deep_clone(), Uuid::NONE).unwrap();
    assert!(no_boot.opened.newly_tainted);
    let stale = world.words.deep_clone();
    let next = world.restart();
    assert!(next.opened.resumed);
    let third = next.restart();
    let late = open(third.disk.clone(), &stale, BOOT).unwrap();
    assert!(late.opened.newly_tainted, "words of an older life");
}

#[test]
fn space_is_reserved_once_per_extent_and_ahead_of_a_stream_and_no_space_fails_the_entry() {
    let mut world = World::new();
    world.store.set_free_extents(100);
    world.write(1, range(0, 1), 1);
    world.run();
    world.write(2, range(1024, 1), 2);
    let ahead = DiskOp::Allocate {
        role: FileRole::Data,
        offset: 2 << 22,
        len: 2 << 22,
    };
    assert!(ops(&world).contains(&ahead), "{:?}", ops(&world));
    world.run();
    assert_eq!(world.store.free_extents(), 96);
    world.fault = |op| matches!(op, DiskOp::Allocate { .. }).then_some(DiskError::NoSpace);
    world.write(3, range(7 * 1024, 1), 3);
    world.run();
    let failed = StoreEvent::EntryFailed {
        idx: Idx(3),
        error: DiskError::NoSpace,
    };
    assert!(world.take_events().contains(&failed));
    world.fault = |_| None;
    world.write(3, range(7 * 1024, 1), 3);
    world.run();
    assert_eq!(world.store.upto(), Idx(3));
}

#[test]
fn a_closed_store_gives_every_buffer_back() {
    let mut world = World::new();
    world.write(1, range(0, 1), 1);
    world.write(2, range(0, 1), 2);
    world.settle();
    let World {
        store, mut buffers, ..
    } = world;
    store.close(&mut buffers);
    assert_eq!(buffers.owned(), 0);
}

#[test]
fn a_process_killed_between_any_two_words_leaves_a_window_that_resumes() {
    for left in 0..400 {
        let mut world = World::new();
        world.write(1, range(0, 1), 1);
        world.run();
        world.store.set_tidx(Idx(1));
        world.settle();
        *world.words.left.borrow_mut() = left;
        let mut sure = 1;
        for idx in 2..8 {
            world.write_skip(idx, range(idx, 1), idx, MemberSet::of(member(1)));
            world.run();
            world.store.set_tidx(Idx(idx - 1));
            world.settle();
            if *world.words.left.borrow() > 0 {
                sure = idx;
            }
        }
        let words = world.words.deep_clone();
        let next = open(world.disk.clone(), &words, BOOT).unwrap();
        assert!(next.opened.resumed, "killed after {left} stores");
        assert!(next.store.upto() >= Idx(sure), "killed after {left} stores");
        assert!(next.store.upto() <= Idx(7));
        if sure > 1 {
            assert_eq!(
                next.store.map(MapName::Dirty(member(1))).mask(ExtentNo(0)),
                1
            );
        }
    }
}

#[test]
fn a_raw_device_keeps_its_data_behind_the_metadata() {
    let params = FormatParams {
        same_device: true,
        ..params()
    };
    let mut world = open(formatted(&params), &TestWords::new(), BOOT).unwrap();
    let at = world.store.superblock().layout.data_offset;
    assert!(at > 0 && at.is_multiple_of(4 << 20));
    world.write(1, range(3, 1), 1);
    world.run();
    assert_eq!(world.disk.stamp(at / 4096 + 3), 1);
    assert_eq!(world.read(3), 1);
}
