//! A change of the configuration: durable before it is told, with what a new member lacks before it.

use super::world::{World, image};
use super::*;
use trilith_block::{Idx, MemberSet, Membership, SyncEpoch, Term};

fn learns() -> Membership {
    Membership {
        generation: (5 << 16) + 1,
        voters: MemberSet(0b0111),
        next: MemberSet(0b1011),
        joint: false,
        witness: MemberSet::EMPTY,
    }
}

fn settled() -> Membership {
    let joint = learns().joined(Term(5)).unwrap();
    joint.settled(Term(5)).unwrap()
}

fn dirty(world: &World, of: usize, extent: u32) -> u64 {
    let map = world.store.map(MapName::Dirty(member(of)));
    map.mask(ExtentNo(extent))
}

fn reconfigured(world: &mut World, config: Membership) {
    world.store.reconfigure(Token(9), config).unwrap();
    world.run();
    let done = StoreEvent::Done { token: Token(9) };
    assert!(world.take_events().contains(&done));
    assert_eq!(world.store.facts().config, config);
}

#[test]
fn a_newcomer_lacks_what_is_allocated_in_flight_and_waiting() {
    let mut world = World::new();
    world.write(1, range(0, 1), 1);
    world.run();
    // In flight, and behind a barrier.
    world.write(2, range(BLOCKS_PER_EXTENT, 1), 2);
    let set = SyncSet {
        idx: Idx(3),
        se: SyncEpoch {
            term: Term(0),
            n: 1,
        },
        iss: MemberSet::first(3),
        trk: MemberSet::first(3),
        join: None,
    };
    world
        .store
        .sync_set(Token(1), set, &mut world.buffers, &mut world.out)
        .unwrap();
    world.drain();
    world.write(4, range(2 * BLOCKS_PER_EXTENT, 17), 3);
    world.store.reconfigure(Token(2), learns()).unwrap();
    let masks = [0, 1, 2, 3].map(|e| dirty(&world, 3, e));
    assert_eq!(masks, [1, 1, 0b11, 0]);
    world.run();
    assert_eq!(world.store.facts().config, learns());
    // What comes from now on says so itself.
    world.store.set_tidx(Idx(4));
    world.write_skip(5, range(3 * BLOCKS_PER_EXTENT, 1), 4, MemberSet(0b1000));
    assert_eq!(dirty(&world, 3, 3), 1);
}

#[test]
fn a_configuration_outlives_the_power_and_drops_the_maps_of_who_left() {
    let mut world = World::new();
    world.write_skip(1, range(0, 1), 1, MemberSet(0b0100));
    world.run();
    reconfigured(&mut world, learns());
    assert_eq!((dirty(&world, 2, 0), dirty(&world, 3, 0)), (1, 1));
    let found = image(world.disk.clone()).unwrap();
    assert_eq!(found.facts.config, learns());
    assert_eq!(found.map(MapName::Dirty(member(3))).mask(ExtentNo(0)), 1);
    reconfigured(&mut world, settled());
    assert_eq!(dirty(&world, 2, 0), 0, "it has no place any more");
    let world = world.restart();
    assert_eq!(world.store.facts().config, settled());
    assert_eq!((dirty(&world, 2, 0), dirty(&world, 3, 0)), (0, 1));
    assert!(!world.store.facts().is_retired());
}

#[test]
fn an_older_configuration_changes_nothing_and_is_answered() {
    let mut world = World::new();
    reconfigured(&mut world, settled());
    world.store.reconfigure(Token(3), learns()).unwrap();
    world.run();
    let done = StoreEvent::Done { token: Token(3) };
    assert!(world.take_events().contains(&done));
    assert_eq!(world.store.facts().config, settled());
}

#[test]
fn who_has_no_place_is_retired() {
    let mut world = World::new();
    let config = Membership {
        generation: 1 << 16 | 1,
        ..MemberSet(0b1110).into()
    };
    reconfigured(&mut world, config);
    assert!(world.store.facts().is_retired());
    assert!(world.restart().store.facts().is_retired());
}

#[test]
fn power_cut_after_any_write_leaves_the_map_of_whoever_is_known() {
    let prepare = || {
        let mut world = World::new();
        for extent in 0..EXTENTS - 1 {
            let at = range(extent * BLOCKS_PER_EXTENT, 64);
            world.write(extent + 1, at, extent);
            world.run();
            world.store.set_tidx(Idx(extent + 1));
        }
        world
    };
    let mut reached = [false; 2];
    for steps in 0.. {
        let mut world = prepare();
        world.store.reconfigure(Token(9), learns()).unwrap();
        world.settle();
        let mut left = steps;
        while left > 0 && !world.inflight.is_empty() {
            world.complete(0);
            world.settle();
            left -= 1;
        }
        let over = world.inflight.is_empty();
        let told = world
            .take_events()
            .contains(&StoreEvent::Done { token: Token(9) });
        let found = image(world.disk.clone()).unwrap();
        let known = found.facts.config == learns();
        assert!(known || !told, "told before it was durable");
        reached[usize::from(known)] = true;
        let opened = super::world::open(world.disk, &TestWords::new(), id(8)).unwrap();
        for extent in 0..u32::try_from(EXTENTS - 1).unwrap() {
            let map = dirty(&opened, 3, extent);
            assert_eq!(map & 0xf != 0, known, "extent {extent} after {steps}");
        }
        if over {
            break;
        }
    }
    assert_eq!(reached, [true; 2]);
}
