//! What barriers do when nothing is lost: SYNCSET, TERMSTART, TOLD, the clean stop, the drain.

use super::world::{World, open, ops};
use super::*;
use trilith_block::limits::MEMBERS_MAX;
use trilith_block::{ChunkMap, Idx, SyncEpoch, Term};
use trilith_wire::SlotStatus;

fn no_maps() -> Box<[ChunkMap; MEMBERS_MAX]> {
    Box::new(std::array::from_fn(|_| ChunkMap::new()))
}

/// The first SYNCSET of the term: without member 2.
fn member_2_leaves(idx: u64) -> SyncSet {
    SyncSet {
        idx: Idx(idx),
        se: SyncEpoch {
            term: Term(0),
            n: 1,
        },
        iss: MemberSet::first(2),
        trk: MemberSet::first(2),
        join: None,
    }
}

/// Writes of data find no room.
fn no_room(op: &DiskOp) -> Option<DiskError> {
    let role = FileRole::Data;
    let data = matches!(op, DiskOp::Write { role: r, .. } if *r == role);
    data.then_some(DiskError::NoSpace)
}

#[test]
fn a_drain_gives_up_what_waits_behind_a_failed_entry_and_term_start_needs_its_repair() {
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
        .then_some(DiskError::Io)
    };
    world.write(2, range(0, 2), 2);
    world.run();
    world.fault = |_| None;
    world.write(3, range(1, 1), 3);
    world
        .store
        .drain(Token(5), &mut world.buffers, &mut world.out)
        .unwrap();
    world.run();
    assert!(
        world
            .take_events()
            .contains(&StoreEvent::Done { token: Token(5) })
    );
    let statuses: Vec<_> = world
        .store
        .window_records(Idx(0))
        .map(|r| (r.idx.0, r.status))
        .collect();
    assert_eq!(
        statuses,
        [
            (1, SlotStatus::Accepted),
            (2, SlotStatus::Failed),
            (3, SlotStatus::Submitted)
        ]
    );
    let start = TermStart {
        term: Term(3),
        start: Idx(10),
        iss: MemberSet::first(2),
        loss: 1,
        limbo: chunks(1, 2),
        dirty: no_maps(),
    };
    let refused =
        world
            .store
            .term_start(Token(6), start.clone(), &mut world.buffers, &mut world.out);
    assert_eq!(refused, Err(StoreError::FailedEntry));
    let repair = world.store.repair(
        Token(7),
        range(0, 2),
        Change::Zeroes,
        &mut world.buffers,
        &mut world.out,
    );
    assert_eq!(repair, Ok(()));
    world.run();
    world.store.need_set(Token(8), &chunks(2, 4)).unwrap();
    world
        .store
        .term_start(Token(9), start, &mut world.buffers, &mut world.out)
        .unwrap();
    world.run();
    let events = world.take_events();
    assert!(
        events.contains(&StoreEvent::Done { token: Token(9) }),
        "{events:?}"
    );
    let facts = world.store.facts();
    assert_eq!(
        (facts.se, facts.w, facts.loss),
        (
            SyncEpoch {
                term: Term(3),
                n: 0
            },
            Idx(10),
            1
        )
    );
    assert_eq!(
        (
            world.store.upto(),
            world.store.tidx(),
            world.store.max_idx()
        ),
        (Idx(10), Idx(10), Idx(10))
    );
    assert!(world.store.map(MapName::Need).is_empty());
    assert_eq!(world.store.map(MapName::Limbo), &chunks(1, 2));
    assert_eq!(world.store.window_count(), 0);
    let mut next = world.restart();
    assert!(next.opened.resumed);
    assert_eq!(next.store.upto(), Idx(10));
    assert_eq!(next.store.map(MapName::Limbo), &chunks(1, 2));
    next.store.opened();
    assert!(next.store.map(MapName::Limbo).is_empty());
}

#[test]
fn a_sync_set_waits_marks_who_leaves_and_holds_back_what_follows() {
    let mut world = World::new();
    world.write(1, range(0, 1), 1);
    world.run();
    world.write(2, range(40, 1), 2);
    let set = member_2_leaves(3);
    let taken = world
        .store
        .sync_set(Token(1), set, &mut world.buffers, &mut world.out);
    assert_eq!(taken, Ok(Admission::Taken));
    world.write_skip(4, range(41, 1), 4, MemberSet::of(member(2)));
    assert_eq!(ops(&world).len(), 1, "4 waits behind the barrier");
    assert_eq!(world.store.map(MapName::Dirty(member(2))).chunk_count(), 0);
    world.run();
    assert_eq!(world.store.facts().se.n, 1);
    assert_eq!(world.store.facts().w, Idx(3));
    assert_eq!(world.store.upto(), Idx(4));
    assert_eq!(
        world.store.map(MapName::Dirty(member(2))).mask(ExtentNo(0)),
        0b101
    );
    assert!(world.store.map(MapName::Dirty(member(1))).is_empty());
    let again = member_2_leaves(3);
    let taken = world
        .store
        .sync_set(Token(2), again, &mut world.buffers, &mut world.out);
    assert_eq!(taken, Ok(Admission::Duplicate));
}

/// C23: the SYNCSET waits for the entry, so the entry must not wait for the SYNCSET.
#[test]
fn a_failed_entry_that_is_sent_again_passes_the_sync_set_that_waits_for_it() {
    let mut world = World::new();
    world.write(1, range(0, 1), 1);
    world.run();
    world.fault = no_room;
    world.write(2, range(0, 1), 2);
    world.run();
    let set = member_2_leaves(3);
    let taken = world
        .store
        .sync_set(Token(1), set, &mut world.buffers, &mut world.out);
    assert_eq!(taken, Ok(Admission::Taken));
    world.write(4, range(0, 1), 4);
    world.run();
    world.take_events();
    // Still full.
    world.write(2, range(0, 1), 2);
    world.run();
    let failed = StoreEvent::EntryFailed {
        idx: Idx(2),
        error: DiskError::NoSpace,
    };
    assert!(world.take_events().contains(&failed));
    world.fault = |_| None;
    world.write(2, range(0, 1), 2);
    world.run();
    let done = StoreEvent::Done { token: Token(1) };
    assert!(world.take_events().contains(&done));
    assert_eq!(world.store.upto(), Idx(4));
    assert_eq!(world.read(0), 4);
}

/// C18: what follows a SYNCSET carries the tidx of the smaller trk, and is received while the SYNCSET
/// still waits for the entries before it. Until it is durable the window lists what the member that
/// leaves may lack; then the dirty map does.
#[test]
fn a_cut_that_follows_a_sync_set_waits_until_that_is_durable() {
    let mut world = World::new();
    world.write(1, range(0, 1), 1);
    world.write(2, range(16, 1), 2);
    world.run();
    world.write(3, range(40, 1), 3);
    let set = member_2_leaves(4);
    world
        .store
        .sync_set(Token(1), set, &mut world.buffers, &mut world.out)
        .unwrap();
    world.store.set_tidx(Idx(2));
    world.write(5, range(41, 1), 5);
    world.store.set_tidx(Idx(3));
    world.drain();
    let mut steps = 0;
    while !world.inflight.is_empty() {
        world.settle();
        let cut = world.store.tidx() != Idx(0);
        assert_eq!(cut, world.store.facts().se.n == 1, "step {steps}");
        world.complete(0);
        steps += 1;
    }
    world.run();
    assert_eq!(world.store.tidx(), Idx(3));
    assert_eq!(world.store.upto(), Idx(5));
    let lacking = world.store.map(MapName::Dirty(member(2)));
    assert_eq!(lacking.mask(ExtentNo(0)), 0b111);
}

/// The engine counts with the cut that it has told: what fits by then is taken.
#[test]
fn an_entry_behind_a_sync_set_fits_when_the_cut_before_it_makes_room() {
    let mut world = World::new();
    let slots = u64::from(world.store.window_slots());
    for idx in 1..slots {
        world.write(idx, range(idx % 64, 1), idx);
        world.run();
    }
    let set = member_2_leaves(slots);
    world
        .store
        .sync_set(Token(1), set, &mut world.buffers, &mut world.out)
        .unwrap();
    world.store.set_tidx(Idx(3));
    world.write(slots + 1, range(1, 1), 7);
    world.write(slots + 3, range(3, 1), 7);
    world.write(slots + 2, range(2, 1), 7);
    world.run();
    assert_eq!(world.store.upto(), Idx(slots + 3));
    assert_eq!(world.store.tidx(), Idx(3));
}

#[test]
fn a_told_replica_keeps_its_log_as_need_and_its_watermark_stays_at_the_start_until_it_joins() {
    let mut world = World::new();
    world.write(1, range(1024, 1), 1);
    world.flush(2);
    world.run();
    let told = Told {
        se: SyncEpoch {
            term: Term(0),
            n: 4,
        },
        iss: MemberSet::first(3).without(member(0)),
        trk: MemberSet::first(3),
        start: Idx(20),
    };
    world
        .store
        .told(Token(1), told, &mut world.buffers, &mut world.out)
        .unwrap();
    world.run();
    assert_eq!(world.store.map(MapName::Need), &chunks(1, u64::MAX));
    assert_eq!(
        (world.store.upto(), world.store.facts().w),
        (Idx(20), Idx(20))
    );
    world.write(21, range(0, 1), 2);
    world.flush(22);
    world.run();
    assert!(
        world
            .take_events()
            .contains(&StoreEvent::Flushed { idx: Idx(22) })
    );
    assert_eq!(world.store.facts().w, Idx(20));
    let own = chunks(1, u64::MAX);
    world
        .store
        .dirty_clear(member(0), own, &mut world.buffers, &mut world.out)
        .unwrap();
    assert!(world.store.map(MapName::Need).is_empty());
    world.change(23, range(32, 1), Change::HeaderOnly);
    let mut dirty = no_maps();
    dirty[1] = chunks(2, 8);
    let join = SyncSet {
        idx: Idx(24),
        se: SyncEpoch {
            term: Term(0),
            n: 5,
        },
        iss: MemberSet::first(3),
        trk: MemberSet::first(3),
        join: Some(Join {
            limbo: chunks(0, 1),
            dirty,
        }),
    };
    world
        .store
        .sync_set(Token(2), join, &mut world.buffers, &mut world.out)
        .unwrap();
    world.run();
    assert_eq!(world.store.facts().w, Idx(24));
    assert_eq!(world.store.map(MapName::Dirty(member(1))), &chunks(2, 8));
    assert_eq!(world.store.map(MapName::Limbo), &chunks(0, 1));
    assert!(
        world
            .store
            .window_records(Idx(0))
            .all(|r| r.status == SlotStatus::Accepted)
    );
}

/// C15: this replica alone had received and flushed up to 30 when a new term started at 10 without
/// it. Were its old watermark kept, it would claim entries of the new term that it never saw, and a
/// lossy recovery, which takes the longest watermark, would make it the base.
#[test]
fn a_watermark_of_an_older_term_claims_nothing_once_the_member_was_told_and_joined() {
    let mut world = World::new();
    for idx in 1..=29 {
        world.write(idx, range(idx % 8, 1), idx);
        world.run();
        world.store.set_tidx(Idx(idx));
    }
    world.flush(30);
    world.run();
    assert_eq!(world.store.facts().w, Idx(30));
    let told = Told {
        se: SyncEpoch {
            term: Term(1),
            n: 1,
        },
        iss: MemberSet::first(3).without(member(0)),
        trk: MemberSet::first(3),
        start: Idx(10),
    };
    world
        .store
        .told(Token(1), told, &mut world.buffers, &mut world.out)
        .unwrap();
    world.run();
    assert_eq!(world.store.facts().w, Idx(10));
    let join = SyncSet {
        idx: Idx(11),
        se: SyncEpoch {
            term: Term(1),
            n: 2,
        },
        iss: MemberSet::first(3),
        trk: MemberSet::first(3),
        join: Some(Join {
            limbo: ChunkMap::new(),
            dirty: no_maps(),
        }),
    };
    world
        .store
        .sync_set(Token(2), join, &mut world.buffers, &mut world.out)
        .unwrap();
    world.run();
    assert_eq!(world.store.facts().w, Idx(11));
    let disk = world.disk.after_power_loss(&[], &[]);
    let next = open(disk, &TestWords::new(), id(9)).unwrap();
    assert!(next.store.facts().tainted && next.store.facts().is_complete());
    assert_eq!(
        (next.store.facts().w, next.store.upto()),
        (Idx(11), Idx(11)),
        "after the replay too"
    );
    world.flush(12);
    world.run();
    assert_eq!(world.store.facts().w, Idx(12));
    assert_eq!(world.restart().store.facts().w, Idx(12));
}

#[test]
fn a_clean_stop_survives_a_power_loss_untainted_and_the_next_entry_ends_it() {
    let mut world = World::new();
    world.write_skip(1, range(0, 1), 1, MemberSet::of(member(2)));
    world.flush(2);
    world.store.set_tidx(Idx(2));
    world.run();
    world
        .store
        .seal(Token(1), &mut world.buffers, &mut world.out)
        .unwrap();
    world.run();
    let disk = world.disk.after_power_loss(&[], &[]);
    let next = open(disk, &TestWords::new(), id(8)).unwrap();
    assert!(!next.opened.newly_tainted && !next.opened.resumed);
    assert!(next.store.facts().sealed && !next.store.facts().tainted);
    assert_eq!((next.store.upto(), next.store.facts().w), (Idx(2), Idx(2)));
    assert_eq!(next.store.activity_log(ExtentNo(0)).count(), 0);
    assert_eq!(next.store.map(MapName::Dirty(member(2))), &chunks(0, 1));
    let mut next = next;
    assert_eq!(next.read(0), 1);
    next.flush(3);
    next.run();
    let disk = next.disk.after_power_loss(&[], &[]);
    let after = open(disk, &TestWords::new(), id(9)).unwrap();
    assert!(
        after.opened.newly_tainted,
        "T21: it accepted something since"
    );
}
