//! SANITIZE: what it writes, what it keeps away, what it survives.

use super::client::{Client, cdb10, world};
use crate::fuzz::{DISK_BYTES, World};
use core::time::Duration;
use std::vec;
use std::vec::Vec;
use trilith_block::{ErrorKind, Op};

const ERASE: [u8; 10] = [0x48, 2, 0, 0, 0, 0, 0, 0, 0, 0];

/// Lets the engine and the clock run until nothing is asked for any more.
fn run_out(world: &mut World) {
    for _ in 0..200 {
        world.complete_all();
        world.now = world.now.after(Duration::from_millis(50));
        world.settle();
        world.deliver(1);
    }
}

fn overwrite(client: &mut Client, world: &mut World, pattern: &[u8]) {
    let mut list = vec![1, 0];
    list.extend(u16::try_from(pattern.len()).unwrap().to_be_bytes());
    list.extend(pattern);
    let mut cdb = [0x48, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    cdb[7..9].copy_from_slice(&u16::try_from(list.len()).unwrap().to_be_bytes());
    let head = client.command(&cdb, 0xa0, list.len());
    client.push(world, head, &list);
}

#[test]
fn overwrite_fills_every_block_with_the_pattern() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    world.disk.fill(9);
    overwrite(&mut client, &mut world, b"abc");
    world.complete_all();
    assert!(client.take(&mut world).is_empty(), "not before its end");
    run_out(&mut world);
    assert_eq!(client.take(&mut world)[0].head[3], 0);
    let block: Vec<u8> = b"abc".iter().copied().cycle().take(512).collect();
    assert!(world.disk.chunks(512).all(|found| found == block));
    assert_eq!(world.asked.last().unwrap().op, Op::Flush);
    world.end();
}

#[test]
fn block_erase_overwrites_flushes_and_unmaps() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    let head = client.command(&ERASE, 0x80, 0);
    client.push(&mut world, head, &[]);
    run_out(&mut world);
    assert_eq!(client.take(&mut world)[0].head[3], 0);
    let ops: Vec<Op> = world.asked.iter().map(|request| request.op).collect();
    let parts = DISK_BYTES >> 20;
    assert_eq!(ops[..parts], vec![Op::Write; parts]);
    assert_eq!(ops[parts..], [Op::Flush, Op::Discard, Op::Flush]);
    world.end();
}

#[test]
fn nothing_else_runs_and_no_reset_stops_it() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    overwrite(&mut client, &mut world, &[7]);
    let mut other = Client::ready_in(&mut world, 2, 2);
    for cdb in [&[0; 6][..], &cdb10(0x28, 0, 0, 1), &ERASE] {
        assert_eq!(other.run(&mut world, cdb, 0, &[]).sense, Some((2, 4, 0x1b)));
    }
    let sense = other.run(&mut world, &[3, 0, 0, 0, 18, 0], 18, &[]).data;
    assert_eq!((sense[2], sense[12], sense[15]), (2, 4, 0x80), "progress");
    assert_eq!(
        other
            .run(&mut world, &[0x12, 0, 0, 0, 36, 0], 36, &[])
            .status,
        0
    );
    world.hang_up(1);
    let mut head = [0; 48];
    head[0] = 0x42;
    head[1] = 0x85;
    other.push(&mut world, head, &[]);
    other.take(&mut world);
    run_out(&mut world);
    assert!(world.disk.iter().all(|b| *b == 7));
    assert_eq!(
        other.run(&mut world, &[0; 6], 0, &[]).sense,
        Some((6, 0x29, 3))
    );
    assert_eq!(other.run(&mut world, &[0; 6], 0, &[]).status, 0);
    world.end();
}

#[test]
fn a_failure_keeps_the_medium_away_until_it_is_left() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    world.error = Some(ErrorKind::Io);
    let head = client.command(&ERASE, 0x80, 0);
    client.push(&mut world, head, &[]);
    run_out(&mut world);
    assert_eq!(client.take(&mut world)[0].sense(), (3, 0x31, 3));
    world.error = None;
    let read = client.run(&mut world, &cdb10(0x28, 0, 0, 1), 512, &[]);
    assert_eq!(read.sense, Some((3, 0x31, 3)));
    let exit = [0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(client.run(&mut world, &exit, 0, &[]).status, 0);
    assert_eq!(
        client
            .run(&mut world, &cdb10(0x28, 0, 0, 1), 512, &[])
            .status,
        0
    );
    world.end();
}

#[test]
fn it_is_refused_when_it_could_not_keep_its_word() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    let mut immediate = ERASE;
    immediate[1] |= 0x80;
    assert_eq!(
        client.run(&mut world, &immediate, 0, &[]).sense,
        Some((5, 0x24, 0))
    );
    // A write that could come after the overwriting of its place.
    let head = client.command(&cdb10(0x2a, 0, 0, 1), 0xa0, 512);
    client.push(&mut world, head, &[]);
    client.take(&mut world);
    let head = client.command(&ERASE, 0x80, 0);
    client.push(&mut world, head, &[]);
    assert_eq!(client.take(&mut world)[0].head[3], 8, "busy");
    world.end();
}
