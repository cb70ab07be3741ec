//! Flushes of the data and the watermarks that follow them.

use super::world::World;
use super::*;
use trilith_block::{Idx, SyncEpoch, Term};

/// One write and one flush of it whose watermark is on its way.
fn watermark_on_its_way() -> World {
    let mut world = World::new();
    world.write(1, range(0, 1), 1);
    world.run();
    world.flush(2);
    world.settle();
    world.complete(0);
    world.settle();
    assert_eq!(world.store.counters().data_flushes, 1);
    assert_eq!(world.store.facts().w, Idx(0), "not durable yet");
    world
}

fn flushed(world: &mut World) -> Vec<Idx> {
    let events = world.take_events();
    events
        .iter()
        .filter_map(|e| match e {
            StoreEvent::Flushed { idx } => Some(*idx),
            _ => None,
        })
        .collect()
}

#[test]
fn one_flush_costs_one_device_flush() {
    let mut world = watermark_on_its_way();
    world.run();
    assert_eq!(flushed(&mut world), [Idx(2)]);
    assert_eq!(world.store.counters().data_flushes, 1);
    world.write(3, range(1, 1), 3);
    world.flush(4);
    world.run();
    assert_eq!(flushed(&mut world), [Idx(4)]);
    assert_eq!(world.store.counters().data_flushes, 2);
}

#[test]
fn a_flush_sent_again_while_its_watermark_is_on_its_way_is_answered_with_it() {
    let mut world = watermark_on_its_way();
    world.flush(2);
    world.run();
    assert_eq!(flushed(&mut world), [Idx(2)]);
    assert_eq!(world.store.counters().data_flushes, 1);
    world.flush(2);
    world.run();
    assert_eq!(flushed(&mut world), [Idx(2)], "again, later");
}

#[test]
fn a_flush_above_the_watermark_on_its_way_gets_a_device_flush_of_its_own() {
    let mut world = watermark_on_its_way();
    world.write(3, range(1, 1), 3);
    world.flush(4);
    world.run();
    assert_eq!(flushed(&mut world), [Idx(2), Idx(4)]);
    assert_eq!(world.store.counters().data_flushes, 2);
    assert_eq!(world.store.facts().w, Idx(4));
    let disk = world.disk.after_power_loss(&[], &[]);
    assert_eq!([disk.stamp(0), disk.stamp(1)], [1, 3]);
}

/// A TOLD puts the stream back below entries of an older term: nothing of the old stream may answer
/// for the new one.
#[test]
fn a_flush_sent_again_while_the_window_is_about_to_be_dropped_says_nothing_of_the_new_one() {
    let mut world = World::new();
    for idx in 1..4 {
        world.write(idx, range(idx, 1), idx);
    }
    world.flush(4);
    world.run();
    let told = Told {
        se: SyncEpoch {
            term: Term(1),
            n: 1,
        },
        iss: MemberSet::first(3).without(member(0)),
        trk: MemberSet::first(3),
        start: Idx(2),
    };
    world
        .store
        .told(Token(1), told, &mut world.buffers, &mut world.out)
        .unwrap();
    world.drain();
    world.complete(0);
    world.settle();
    world.flush(4);
    complete_where(&mut world, |op| matches!(op, DiskOp::Flush { .. }));
    complete_where(&mut world, is_meta_write);
    assert_eq!(world.store.upto(), Idx(2), "the window is dropped");
    world.write(3, range(9, 1), 9);
    complete_where(&mut world, |op| !is_meta_write(op));
    world.flush(4);
    flushed(&mut world);
    complete_where(&mut world, is_meta_write);
    assert_eq!(flushed(&mut world), [], "entry 3 is in the cache only");
    world.run();
    assert_eq!(flushed(&mut world), [Idx(4)]);
    assert_eq!(world.disk.after_power_loss(&[], &[]).stamp(9), 9);
}

fn is_meta_write(op: &DiskOp) -> bool {
    let role = FileRole::Meta;
    matches!(op, DiskOp::Write { role: r, .. } if *r == role)
}

/// Completes what is in flight now and is such an operation.
fn complete_where(world: &mut World, which: impl Fn(&DiskOp) -> bool) {
    let count = world.inflight.iter().filter(|s| which(&s.op)).count();
    for _ in 0..count {
        let place = world.inflight.iter().position(|s| which(&s.op)).unwrap();
        world.complete(place);
    }
    world.settle();
}
