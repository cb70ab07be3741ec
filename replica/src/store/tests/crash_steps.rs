//! Death of the process and power loss at every step of one call.

use super::disk::fates;
use super::world::{World, open, open_watched};
use super::*;
use trilith_block::limits::MEMBERS_MAX;
use trilith_block::{ChunkMap, Idx, SyncEpoch, Term};

#[test]
fn a_power_loss_at_any_step_of_a_term_start_leaves_the_old_or_the_new_epoch_whole() {
    let mut random = Random(5);
    let mut world = World::new();
    world.write(1, range(0, 1), 1);
    world.store.need_set(Token(1), &one_chunk(2)).unwrap();
    world.run();
    let mut dirty: Box<[ChunkMap; MEMBERS_MAX]> =
        Box::new(std::array::from_fn(|_| ChunkMap::new()));
    dirty[2] = one_chunk(4);
    let start = TermStart {
        term: Term(3),
        start: Idx(50),
        iss: MemberSet::first(2),
        loss: 0,
        limbo: one_chunk(3),
        dirty,
    };
    world
        .store
        .term_start(Token(2), start, &mut world.buffers, &mut world.out)
        .unwrap();
    world.drain();
    let mut done = false;
    let mut seen = [0, 0];
    loop {
        world.settle();
        done |= world
            .take_events()
            .contains(&StoreEvent::Done { token: Token(2) });
        let units = world.disk.undecided(&world.inflight);
        for chosen in fates(units.len(), 8, &mut random) {
            let disk = world.disk.after_power_loss(&units, &chosen);
            let next = open(disk, &TestWords::new(), id(9)).unwrap();
            let facts = next.store.facts();
            let new = facts.se.term == Term(3);
            seen[usize::from(new)] += 1;
            assert!(new || !done);
            assert_eq!(facts.w, if new { Idx(50) } else { Idx(0) });
            assert_eq!(
                facts.iss,
                if new {
                    MemberSet::first(2)
                } else {
                    MemberSet::first(3)
                }
            );
            let need = next.store.map(MapName::Need);
            assert_eq!(need.mask(ExtentNo(2)) & 1, u64::from(!new));
            if new {
                assert_eq!(next.store.map(MapName::Limbo).mask(ExtentNo(3)) & 1, 1);
                let dirty = next.store.map(MapName::Dirty(member(2)));
                assert_eq!(dirty.mask(ExtentNo(4)) & 1, 1);
            }
        }
        let resumed = open(world.disk.clone(), &world.words.deep_clone(), BOOT).unwrap();
        assert!(resumed.opened.resumed);
        let new = resumed.store.facts().se.term == Term(3);
        let need = resumed.store.map(MapName::Need);
        assert_eq!(need.mask(ExtentNo(2)) & 1, u64::from(!new), "C33");
        if new {
            assert_eq!(resumed.store.upto(), Idx(50));
            assert_eq!(resumed.store.window_count(), 0);
        }
        if world.inflight.is_empty() {
            break;
        }
        world.complete(0);
    }
    assert!(done && seen[0] > 0 && seen[1] > 0, "{seen:?}");
}

fn one_chunk(extent: u32) -> ChunkMap {
    let mut map = ChunkMap::new();
    map.set_mask(ExtentNo(extent), 1);
    map
}

/// The process dies between the record of a SYNCSET and its slot.
fn killed_before_the_slot(joins: bool) -> World {
    let mut world = World::new();
    for idx in 1..3 {
        world.write(idx, range(idx, 1), idx);
    }
    world.run();
    let join = Join {
        limbo: ChunkMap::new(),
        dirty: Box::new(std::array::from_fn(|_| ChunkMap::new())),
    };
    let set = SyncSet {
        idx: Idx(3),
        se: SyncEpoch {
            term: Term(0),
            n: 1,
        },
        iss: MemberSet::first(2),
        trk: MemberSet::first(3),
        join: joins.then_some(join),
    };
    world
        .store
        .sync_set(Token(1), set, &mut world.buffers, &mut world.out)
        .unwrap();
    world.drain();
    world.complete(0);
    world.settle();
    assert_eq!(world.inflight.len(), 1, "the record");
    let words = world.words.deep_clone();
    world.run();
    assert_eq!(world.store.upto(), Idx(3));
    open(world.disk, &words, BOOT).unwrap()
}

#[test]
fn a_process_killed_between_the_record_and_the_slot_of_a_sync_set_comes_back_with_both() {
    for joins in [false, true] {
        let mut next = killed_before_the_slot(joins);
        assert!(next.opened.resumed);
        assert_eq!(next.store.facts().se.n, 1);
        assert_eq!(next.store.facts().w, Idx(3));
        assert_eq!(next.store.upto(), Idx(3), "it was accepted: W says so");
        assert_eq!(next.store.max_idx(), Idx(3));
        assert_eq!(next.store.window_count(), 2, "the entries stay");
        next.write(4, range(4, 1), 4);
        next.run();
        assert_eq!(next.store.upto(), Idx(4));
        let again = next.restart();
        assert_eq!(again.store.upto(), Idx(4), "its slot is there");
    }
}

fn join_at(idx: u64) -> SyncSet {
    let mut dirty: Box<[ChunkMap; MEMBERS_MAX]> =
        Box::new(std::array::from_fn(|_| ChunkMap::new()));
    dirty[2] = one_chunk(4);
    SyncSet {
        idx: Idx(idx),
        se: SyncEpoch {
            term: Term(0),
            n: 1,
        },
        iss: MemberSet::first(3),
        trk: MemberSet::first(3),
        join: Some(Join {
            limbo: one_chunk(3),
            dirty,
        }),
    }
}

/// 6.2: healed in place after a power loss, the join is the first entry.
#[test]
fn a_process_death_or_power_loss_at_any_step_of_a_join_over_a_gap_leaves_it_out_or_in() {
    for idx in [4, 6] {
        let mut world = World::new();
        world.write(1, range(0, 1), 1);
        world.flush(2);
        world.run();
        world.write(3, range(1, 1), 3);
        world.run();
        let lost = world.disk.after_power_loss(&[], &[]);
        let mut world = open(lost, &TestWords::new(), BOOT).unwrap();
        assert_eq!(world.store.upto(), Idx(2));
        assert!(world.store.facts().tainted);
        let taken =
            world
                .store
                .sync_set(Token(1), join_at(idx), &mut world.buffers, &mut world.out);
        assert_eq!(taken, Ok(Admission::Taken));
        world.drain();
        let mut seen = [0, 0];
        let mut done = false;
        loop {
            world.settle();
            done |= world
                .take_events()
                .contains(&StoreEvent::Done { token: Token(1) });
            let units = world.disk.undecided(&world.inflight);
            for chosen in fates(units.len(), 8, &mut Random(idx)) {
                let disk = world.disk.after_power_loss(&units, &chosen);
                let next = open(disk, &TestWords::new(), id(9)).unwrap();
                check_join(&next, idx, done);
            }
            let mut disk = world.disk.clone();
            for submitted in &world.inflight {
                disk.complete(submitted, &mut world.buffers);
            }
            for disk in [world.disk.clone(), disk] {
                let next = open(disk, &world.words.deep_clone(), BOOT).unwrap();
                let joined = check_join(&next, idx, done);
                seen[usize::from(joined)] += 1;
                assert!(next.opened.resumed);
                assert_eq!(next.store.facts().tainted, !joined);
                let need = next.store.map(MapName::Need);
                assert_eq!(need.is_empty(), joined, "a join leaves no need (C33)");
                assert_eq!(next.store.upto(), Idx(if joined { idx } else { 2 }));
            }
            if world.inflight.is_empty() {
                break;
            }
            world.complete(0);
        }
        assert!(done && seen[0] > 0 && seen[1] > 0, "{seen:?}");
        world.write(idx + 1, range(7, 1), 7);
        world.run();
        assert_eq!(world.restart().store.upto(), Idx(idx + 1));
    }
}

fn check_join(next: &World, idx: u64, done: bool) -> bool {
    let facts = next.store.facts();
    let joined = facts.se.n == 1;
    assert!(joined || !done);
    assert_eq!(facts.w, Idx(if joined { idx } else { 2 }));
    let covered = |name, extent| next.store.map(name).mask(ExtentNo(extent)) & 1;
    if joined {
        assert_eq!(covered(MapName::Limbo, 3), 1);
        assert_eq!(covered(MapName::Dirty(member(2)), 4), 1);
    } else {
        assert_eq!(covered(MapName::Need, 0), 1, "of the log");
    }
    joined
}

#[test]
fn an_open_cut_twice_always_finds_a_superblock_whose_checkpoint_is_whole() {
    let mut random = Random(9);
    let mut world = World::new();
    world.write(1, range(0, 1), 1);
    world.store.vote(Token(1), Term(5), id(3), 0).unwrap();
    world.run();
    // A checkpoint with something in it, so that an overwritten one shows.
    world = world.restart();
    let mut first = Vec::new();
    let start = world.disk.after_power_loss(&[], &[]);
    open_watched(start, &TestWords::new(), id(9), |disk, _| {
        first.push(disk.clone())
    })
    .unwrap();
    for disk in first {
        let mut second = Vec::new();
        let disk = disk.after_power_loss(&[], &[]);
        open_watched(disk, &TestWords::new(), id(9), |disk, inflight| {
            let units = disk.undecided(inflight);
            for chosen in fates(units.len(), 0, &mut random) {
                second.push(disk.after_power_loss(&units, &chosen));
            }
        })
        .unwrap();
        for disk in second {
            let last = open(disk, &TestWords::new(), id(9)).unwrap();
            assert!(!last.opened.maps_lost);
            assert_eq!(last.store.facts().term, Term(5));
            assert!(last.store.needs(range(0, 1)));
        }
    }
}

#[test]
fn a_power_loss_or_death_at_any_step_of_a_told_keeps_the_log_as_need() {
    let mut world = World::new();
    world.write(1, range(1024, 1), 1);
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
    world.drain();
    let mut done = false;
    loop {
        world.settle();
        done |= world
            .take_events()
            .contains(&StoreEvent::Done { token: Token(1) });
        let units = world.disk.undecided(&world.inflight);
        let mut after: Vec<World> = fates(units.len(), 8, &mut Random(3))
            .iter()
            .map(|chosen| world.disk.after_power_loss(&units, chosen))
            .map(|disk| open(disk, &TestWords::new(), id(9)).unwrap())
            .collect();
        after.push(open(world.disk.clone(), &world.words.deep_clone(), BOOT).unwrap());
        for next in after {
            let facts = next.store.facts();
            let out = facts.se.n == 4;
            assert!(out || !done);
            assert_eq!(facts.iss.contains(member(0)), !out);
            assert_eq!(facts.w, Idx(if out { 20 } else { 0 }), "C15");
            assert!(!out || next.store.needs(range(1024, 1)));
            let upto = [Idx(0), Idx(1), Idx(20)];
            assert!(upto.contains(&next.store.upto()));
            assert_eq!(next.store.upto() == Idx(20), out, "with the record");
        }
        if world.inflight.is_empty() {
            break;
        }
        world.complete(0);
    }
    assert!(done);
}
