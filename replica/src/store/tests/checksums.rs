//! Checksums of blocks (2.5): what they find, and when they must not speak.

use super::world::{World, open};
use super::*;
use trilith_block::Idx;

const ROTTEN: Result<u64, DiskError> = Err(DiskError::Checksum);

/// The end of a life by a clean stop, and the next one.
fn stop_and_start(mut world: World) -> World {
    let seal = world
        .store
        .seal(Token(9), &mut world.buffers, &mut world.out);
    assert_eq!(seal, Ok(()));
    world.run();
    assert!(world.store.facts().sealed);
    open(world.disk, &TestWords::new(), BOOT).unwrap()
}

/// Writes a block with the next entry.
fn write_next(world: &mut World, block: u64, stamp: u64) {
    let idx = world.store.max_idx().next().0;
    world.write(idx, range(block, 1), stamp);
}

/// Writes a block of each extent in turn, so that earlier ones leave the log.
fn write_extents(world: &mut World, from: u64, count: u64) {
    for n in from..from + count {
        world.write(n + 1, range(n * BLOCKS_PER_EXTENT, 1), n + 1);
        world.run();
        world.store.set_tidx(Idx(n + 1));
    }
}

#[test]
fn what_the_device_changed_by_itself_is_an_error() {
    let mut world = World::with_checksums();
    world.write(1, range(5, 2), 77);
    world.run();
    assert_eq!(world.try_read(5), Ok(77));
    world.disk.rot(5, 78);
    assert_eq!(world.try_read(5), ROTTEN, "while the extent is hot");
    assert_eq!(world.try_read(6), Ok(77), "its neighbour is sound");
    assert_eq!(world.store.counters().reads_rotten, 1);
    let mut world = stop_and_start(world);
    assert_eq!(world.try_read(5), ROTTEN, "after a clean stop");
    assert_eq!(world.try_read(6), Ok(77));
    write_next(&mut world, 5, 79);
    world.run();
    assert_eq!(world.try_read(5), Ok(79), "written again it is sound");
}

#[test]
fn without_them_nobody_notices() {
    let mut world = World::new();
    world.write(1, range(5, 1), 77);
    world.run();
    world.disk.rot(5, 78);
    assert_eq!(world.try_read(5), Ok(78));
    assert_eq!(world.store.counters().checksum_pages, 0);
}

#[test]
fn zeroes_and_discards_have_checksums_too() {
    let mut world = World::with_checksums();
    world.write(1, range(0, 40), 1);
    world.run();
    world.change(2, range(3, 1), Change::Zeroes);
    world.change(3, range(20, 2), Change::Discard);
    world.run();
    assert_eq!((world.try_read(3), world.try_read(20)), (Ok(0), Ok(0)));
    world.disk.rot(3, 5);
    world.disk.rot(21, 5);
    assert_eq!((world.try_read(3), world.try_read(21)), (ROTTEN, ROTTEN));
}

#[test]
fn an_extent_leaves_the_log_only_with_its_page_saved() {
    let mut world = World::with_checksums();
    write_extents(&mut world, 0, 8);
    assert!(world.store.counters().al_evictions >= 3);
    let cut = world.disk.after_power_loss(&[], &[]);
    let mut next = open(cut, &TestWords::new(), id(9)).unwrap();
    let logged: Vec<u64> = (0..8)
        .filter(|n| {
            let need = next.store.map(MapName::Need).mask(ExtentNo(*n as u32));
            need != 0
        })
        .collect();
    assert!(logged.len() < 8, "some have left");
    for n in 0..8 {
        let block = n * BLOCKS_PER_EXTENT;
        let before = next.disk.stamp(block);
        next.disk.rot(block, 1000);
        let found = next.try_read(block);
        if logged.contains(&n) {
            assert_eq!(found, Ok(1000), "extent {n}: not known after a power loss");
        } else {
            assert_eq!(before, n + 1);
            assert_eq!(found, ROTTEN, "extent {n}: known");
        }
    }
}

#[test]
fn a_page_of_the_past_never_accuses_new_data() {
    let mut world = World::with_checksums();
    write_extents(&mut world, 0, 8);
    let mut world = stop_and_start(world);
    for n in 0..8 {
        assert_eq!(world.try_read(n * BLOCKS_PER_EXTENT), Ok(n + 1));
    }
    // Written again, and the process dies before any page is saved; then the power goes.
    for n in 0..4 {
        write_next(&mut world, n * BLOCKS_PER_EXTENT, 100 + n);
        world.run();
    }
    let mut world = world.restart();
    for n in 0..4 {
        assert_eq!(world.try_read(n * BLOCKS_PER_EXTENT), Ok(100 + n));
    }
    let token = Token(3);
    world
        .store
        .drain(token, &mut world.buffers, &mut world.out)
        .unwrap();
    world.run();
    let units = world.disk.undecided(&world.inflight);
    let all = vec![true; units.len()];
    let disk = world.disk.after_power_loss(&units, &all);
    let mut world = open(disk, &TestWords::new(), id(9)).unwrap();
    assert!(world.opened.newly_tainted);
    for n in 0..4 {
        assert_eq!(world.try_read(n * BLOCKS_PER_EXTENT), Ok(100 + n));
    }
    // Now that the log is empty, the pages on the disk are believed.
    let units = world.disk.undecided(&world.inflight);
    let disk = world
        .disk
        .after_power_loss(&units, &vec![true; units.len()]);
    let mut world = open(disk, &TestWords::new(), id(10)).unwrap();
    for n in 0..4 {
        assert_eq!(world.try_read(n * BLOCKS_PER_EXTENT), Ok(100 + n));
    }
}

/// B2, simulator seed 70000000059551: a checkpoint that cannot be read takes the activity log with it,
/// so that any extent may have been in there.
#[test]
fn a_page_of_the_past_never_accuses_new_data_when_the_checkpoint_is_lost() {
    let mut world = World::with_checksums();
    write_extents(&mut world, 0, 4);
    let mut world = stop_and_start(world);
    for n in 0..4 {
        write_next(&mut world, n * BLOCKS_PER_EXTENT, 100 + n);
        world.run();
    }
    // The log is in the checkpoint that the next life begins with.
    let world = world.restart();
    let sb = *world.store.superblock();
    assert!(sb.checkpoint_blocks > 0);
    let units = world.disk.undecided(&world.inflight);
    let all = vec![true; units.len()];
    let mut disk = world.disk.after_power_loss(&units, &all);
    disk.flip(sb.checkpoint_offset(sb.checkpoint_slot) + 100, 1);
    let mut world = open(disk, &TestWords::new(), id(9)).unwrap();
    assert!(world.opened.maps_lost);
    for n in 0..4 {
        assert_eq!(world.try_read(n * BLOCKS_PER_EXTENT), Ok(100 + n));
    }
}

#[test]
fn a_read_that_a_write_overtakes_accuses_nobody() {
    let mut world = World::with_checksums();
    world.write(1, range(5, 1), 1);
    world.run();
    for write_first in [true, false] {
        let idx = world.store.upto().next().0;
        let buf = world.buffers.alloc(4096).unwrap();
        let read = |world: &mut World| {
            let (data, out) = (&mut world.buffers, &mut world.out);
            let taken = world.store.read(Token(5), range(5, 1), buf, data, out);
            assert_eq!(taken, Ok(()));
            world.drain();
        };
        if write_first {
            world.write(idx, range(5, 1), 100 + idx);
            read(&mut world);
        } else {
            read(&mut world);
            world.write(idx, range(5, 1), 100 + idx);
        }
        // The device carries out the read first and answers it last.
        let at = world
            .inflight
            .iter()
            .position(|s| matches!(s.op, DiskOp::Read { .. }))
            .unwrap();
        let submitted = world.inflight.remove(at);
        world.disk.complete(&submitted, &mut world.buffers);
        world.run();
        let (data, out) = (&mut world.buffers, &mut world.out);
        world.store.disk_done(submitted.tag, Ok(()), data, out);
        world.drain();
        world.run();
        let events = world.take_events();
        let (token, result) = (Token(5), Ok(false));
        assert!(
            events.contains(&StoreEvent::ReadDone { token, result }),
            "{events:?}"
        );
        world.buffers.release(buf.buf);
    }
    assert_eq!(world.store.counters().reads_rotten, 0);
}

/// Rot that comes while a read and a write run beside each other is not answered.
#[test]
fn a_read_that_a_write_overtook_is_begun_anew_and_judged() {
    for rotten in [false, true] {
        let mut world = World::with_checksums();
        world.write(1, range(5, 1), 1);
        world.run();
        let buf = world.buffers.alloc(4096).unwrap();
        world.write(2, range(5, 1), 2);
        let (data, out) = (&mut world.buffers, &mut world.out);
        let taken = world.store.read(Token(5), range(5, 1), buf, data, out);
        assert_eq!(taken, Ok(()));
        world.drain();
        let is_read = |op: &DiskOp| matches!(op, DiskOp::Read { .. });
        let at = world.inflight.iter().position(|s| is_read(&s.op)).unwrap();
        let submitted = world.inflight.remove(at);
        world.run();
        if rotten {
            world.disk.rot(5, 3);
        }
        world.disk.complete(&submitted, &mut world.buffers);
        let (data, out) = (&mut world.buffers, &mut world.out);
        world.store.disk_done(submitted.tag, Ok(()), data, out);
        world.drain();
        world.run();
        let result = if rotten {
            Err(DiskError::Checksum)
        } else {
            Ok(false)
        };
        let done = StoreEvent::ReadDone {
            token: Token(5),
            result,
        };
        let events = world.take_events();
        assert!(events.contains(&done), "{events:?}");
        assert_eq!(world.store.counters().reads_again, 1);
        world.buffers.release(buf.buf);
    }
}

/// Only the blocks of the change may be either: another block of the read is judged.
#[test]
fn beside_a_write_the_other_blocks_of_a_read_are_judged() {
    for write_first in [true, false] {
        let mut world = World::with_checksums();
        world.write(1, range(5, 3), 1);
        world.run();
        world.disk.rot(7, 2);
        let buf = world.buffers.alloc(3 * 4096).unwrap();
        let read = |world: &mut World| {
            let (data, out) = (&mut world.buffers, &mut world.out);
            let taken = world.store.read(Token(5), range(5, 3), buf, data, out);
            assert_eq!(taken, Ok(()));
            world.drain();
        };
        if write_first {
            world.write(2, range(5, 1), 100);
            read(&mut world);
        } else {
            read(&mut world);
            world.write(2, range(5, 1), 100);
        }
        world.run();
        let rotten = StoreEvent::ReadDone {
            token: Token(5),
            result: Err(DiskError::Checksum),
        };
        let events = world.take_events();
        assert!(events.contains(&rotten), "{events:?}");
        world.buffers.release(buf.buf);
    }
}

#[test]
fn a_read_that_the_device_refuses_is_not_rotten() {
    let mut world = World::with_checksums();
    world.write(1, range(5, 1), 1);
    world.run();
    world.fault = |op| matches!(op, DiskOp::Read { .. }).then_some(DiskError::Io);
    assert_eq!(world.try_read(5), Err(DiskError::Io));
    assert_eq!(world.store.counters().reads_rotten, 0);
    world.fault = |_| None;
    assert_eq!(world.try_read(5), Ok(1));
}

#[test]
fn a_page_that_cannot_be_read_accuses_nobody() {
    let mut world = World::with_checksums();
    world.write(1, range(5, 1), 1);
    world.run();
    let mut world = stop_and_start(world);
    world.fault = |op| {
        let page = matches!(
            op,
            DiskOp::Read {
                role: FileRole::Meta,
                ..
            }
        );
        page.then_some(DiskError::Io)
    };
    assert_eq!(world.try_read(5), Ok(1));
    write_next(&mut world, 5, 2);
    world.run();
    assert_eq!(world.try_read(5), Ok(2));
}

#[test]
fn a_page_that_cannot_be_written_is_final() {
    let mut world = World::with_checksums();
    world.fault = |op| match op {
        DiskOp::Write {
            role: FileRole::Meta,
            dsync: false,
            ..
        } => Some(DiskError::Io),
        _ => None,
    };
    for n in 0..8 {
        if !world.store.failed() {
            write_extents(&mut world, n, 1);
        }
    }
    let cause = FailCause::Checkpoint(DiskError::Io);
    assert_eq!(world.store.failure(), Some(cause));
}

#[test]
fn pages_of_extents_outside_the_log_are_bounded() {
    let geometry = Geometry::DEFAULT;
    let extents = limits::COLD_PAGES_MAX as u64 + 40;
    let params = FormatParams {
        checksums: true,
        capacity: extents * 4 * 1024 * 1024,
        geometry,
        ..params()
    };
    let disk = super::world::formatted(&params);
    let mut world = open(disk, &TestWords::new(), BOOT).unwrap();
    for n in 0..extents {
        world.write(n + 1, range(n * BLOCKS_PER_EXTENT, 1), n + 1);
        world.run();
        world.store.set_tidx(Idx(n + 1));
    }
    let mut world = stop_and_start(world);
    for round in 0..2 {
        for n in 0..extents {
            assert_eq!(world.try_read(n * BLOCKS_PER_EXTENT), Ok(n + 1));
        }
        let pages = world.store.checksum_pages_held();
        assert!(pages <= limits::COLD_PAGES_MAX, "{pages} in round {round}");
    }
}

#[test]
fn a_volume_without_them_stays_what_it_was_and_one_with_them_is_version_3() {
    for (checksums, version) in [(false, 1), (true, 3)] {
        let params = FormatParams {
            checksums,
            ..params()
        };
        let disk = super::world::formatted(&params);
        let block = disk.meta_block(0);
        assert_eq!(block[8], version);
        let image = super::world::image(disk).unwrap();
        assert_eq!(image.superblock.layout.checksums_offset != 0, checksums);
    }
}
