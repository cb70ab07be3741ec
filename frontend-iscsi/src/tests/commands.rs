//! SCSI commands over a session: data, statuses, sense data, residuals, task management.

use super::client::{Client, Done, cdb10, cdb16, done, low, world};
use crate::fuzz::{DISK_BYTES, World};
use std::vec;
use std::vec::Vec;
use trilith_block::{ByteRange, ErrorKind, Op};

const BLOCKS: u32 = 16384;

fn good(done: &Done) {
    assert_eq!((done.status, done.residual), (0, 0), "{done:?}");
}

#[test]
fn what_is_written_is_read_over_all_sizes_and_parameters() {
    let all = [
        &[][..],
        &[
            ("InitialR2T", "No"),
            ("ImmediateData", "Yes"),
            ("MaxOutstandingR2T", "4"),
        ],
        &[("MaxBurstLength", "4096"), ("FirstBurstLength", "2048")],
        &[
            ("MaxRecvDataSegmentLength", "512"),
            ("MaxBurstLength", "2500"),
        ],
        &[("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")],
    ];
    for keys in all {
        let mut world = world(|_| {});
        let mut client = Client::login(&mut world, 1, 1, keys);
        client.run(&mut world, &[0; 6], 0, &[]);
        for (lba, blocks) in [(0u32, 1u16), (7, 3), (100, 200), (1, 5000)] {
            let bytes = usize::from(blocks) * 512;
            let data: Vec<u8> = (0..bytes)
                .map(|i| low((i / 7 + usize::from(blocks)) as u64))
                .collect();
            good(&client.run(&mut world, &cdb10(0x2a, 0, lba, blocks), 0, &data));
            let read = client.run(&mut world, &cdb10(0x28, 0, lba, blocks), bytes, &[]);
            good(&read);
            assert!(read.data == data, "{keys:?} {lba}+{blocks}");
        }
        world.end();
    }
}

#[test]
fn unsolicited_data_out_is_taken_without_r2t() {
    let mut world = world(|_| {});
    let mut client = Client::login(&mut world, 1, 1, &[("InitialR2T", "No")]);
    client.run(&mut world, &[0; 6], 0, &[]);
    let head = client.command(&cdb10(0x2a, 0, 0, 4), 0x20, 2048);
    client.push(&mut world, head, &[1; 512]);
    let mut out = [0; 48];
    out[0] = 5;
    out[16..20].copy_from_slice(&head[16..20]);
    out[20..24].fill(0xff);
    out[42] = 2;
    client.push(&mut world, out, &[2; 1024]);
    out[1] = 0x80;
    out[39] = 1;
    out[42] = 6;
    client.push(&mut world, out, &[3; 512]);
    world.complete_all();
    let list = client.take(&mut world);
    assert_eq!(
        (list.len(), list[0].opcode(), list[0].head[3]),
        (1, 0x21, 0)
    );
    assert_eq!(
        (world.disk[511], world.disk[512], world.disk[2047]),
        (1, 2, 3)
    );
    world.end();
}

#[test]
fn data_out_of_order_fails_the_task() {
    for wrong in [39, 42] {
        let mut world = world(|_| {});
        let mut client = Client::ready(&mut world, 1, 1);
        let head = client.command(&cdb10(0x2a, 0, 0, 2), 0xa0, 1024);
        client.push(&mut world, head, &[]);
        let r2t = client.take(&mut world).remove(0);
        let mut out = [0; 48];
        out[0] = 5;
        out[1] = 0x80;
        out[16..24].copy_from_slice(&r2t.head[16..24]);
        out[wrong] = 2;
        client.push(&mut world, out, &[0; 512]);
        let list = client.take(&mut world);
        assert_eq!(list[0].sense(), (0xb, 0x4b, 0));
        assert!(world.pending.is_empty());
        assert_eq!(
            client.run(&mut world, &[0; 6], 0, &[]).status,
            0,
            "the session goes on"
        );
        world.end();
    }
}

#[test]
fn residuals_say_what_was_not_moved() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    world.disk[..2048].fill(7);
    let read = client.run(&mut world, &cdb10(0x28, 0, 0, 2), 512, &[]);
    assert_eq!(
        (read.data.len(), read.status, read.residual),
        (512, 0, -512)
    );
    let read = client.run(&mut world, &cdb10(0x28, 0, 0, 2), 4096, &[]);
    assert_eq!(
        (read.data.len(), read.status, read.residual),
        (1024, 0, 3072)
    );
    let write = client.run(&mut world, &cdb10(0x2a, 0, 0, 2), 0, &[9; 512]);
    assert_eq!((write.status, write.residual), (0, -512));
    assert_eq!((world.disk[511], world.disk[512]), (9, 7));
    let write = client.run(&mut world, &cdb10(0x2a, 0, 0, 1), 0, &[8; 4096]);
    assert_eq!((write.status, write.residual), (0, 3584));
    assert_eq!((world.disk[511], world.disk[512]), (8, 7));
    let inquiry = client.run(&mut world, &[0x12, 0, 0, 0, 36, 0], 255, &[]);
    assert_eq!((inquiry.data.len(), inquiry.residual), (36, 219));
    let none = client.run(&mut world, &cdb10(0x28, 0, 0, 1), 0, &[]);
    assert_eq!((none.status, none.residual), (0, -512));
    world.end();
}

#[test]
fn illegal_commands_get_exact_sense() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    let block = [0; 512];
    type Row<'a> = (&'a [u8], &'a [u8], (u8, u8, u8));
    let table: &[Row<'_>] = &[
        (&[0xff, 0, 0, 0, 0, 0], &[], (5, 0x20, 0)),
        (&cdb10(0x28, 0, BLOCKS, 1), &[], (5, 0x21, 0)),
        (&cdb10(0x2a, 0, BLOCKS - 1, 2), &[], (5, 0x21, 0)),
        (&cdb16(0x88, 0, u64::MAX, 1), &[], (5, 0x21, 0)),
        (&cdb10(0x28, 0x20, 0, 1), &[], (5, 0x24, 0)),
        (&cdb16(0x8a, 0, 0, 0x10_0000), &[], (5, 0x21, 0)),
        (&cdb10(0x41, 0, 0, 0), &block, (5, 0x24, 0)),
        (&cdb10(0x41, 0x10, 0, 1), &block, (5, 0x24, 0)),
        (&[0x12, 0, 1, 0, 36, 0], &[], (5, 0x24, 0)),
        (&[0x12, 1, 0x77, 0, 36, 0], &[], (5, 0x24, 0)),
        (&[0x1a, 0, 0x3e, 0, 255, 0], &[], (5, 0x24, 0)),
        (&[0x5f, 0, 0, 0, 0, 0, 0, 0, 8, 0], &[0; 8], (5, 0x1a, 0)),
        (&[0x42, 0, 0, 0, 0, 0, 0, 0, 4, 0], &[0; 4], (5, 0x1a, 0)),
        (&[0x1b, 0, 0, 0, 2, 0], &[], (5, 0x24, 0)),
    ];
    for (cdb, data, expected) in table {
        let result = client.run(&mut world, cdb, 0, data);
        assert_eq!(result.sense, Some(*expected), "{cdb:02x?}");
    }
    world.end();
}

#[test]
fn another_unit_number_holds_nothing() {
    let mut world = world(|config| config.lun = 3);
    let mut client = Client::login(&mut world, 1, 1, &[]);
    for (cdb, expected) in [
        (&[0x12u8, 0, 0, 0, 96, 0][..], Ok(0x7f)),
        (&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], Ok(0)),
        (&[0x03, 0, 0, 0, 18, 0], Ok(0x70)),
        (&[0; 6], Err((5, 0x25, 0))),
    ] {
        let result = client.run(&mut world, cdb, 96, &[]);
        match expected {
            Ok(first) => assert_eq!(result.data[0], first),
            Err(sense) => assert_eq!(result.sense, Some(sense)),
        }
    }
    world.end();
}

#[test]
fn errors_of_the_engine_become_sense() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    for (kind, expected) in [
        (ErrorKind::NoSpace, (7, 0x27, 7)),
        (ErrorKind::ReadOnly, (7, 0x27, 0)),
        (ErrorKind::Io, (3, 0x0c, 0)),
    ] {
        world.error = Some(kind);
        let result = client.run(&mut world, &cdb10(0x2a, 0, 0, 1), 0, &[0; 512]);
        assert_eq!(result.sense, Some(expected), "{kind:?}");
    }
    let result = client.run(&mut world, &cdb10(0x28, 0, 0, 4), 2048, &[]);
    assert_eq!(result.sense, Some((3, 0x11, 0)));
    world.end();
}

#[test]
fn what_an_engine_that_stops_has_not_done_is_left_without_an_answer() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    let other = Client::ready(&mut world, 2, 2);
    for lba in 0..2 {
        let head = client.command(&cdb10(0x28, 0, lba, 1), 0xc0, 512);
        client.push(&mut world, head, &[]);
    }
    world.error = Some(ErrorKind::Fenced);
    world.complete_all();
    assert!(client.take(&mut world).is_empty(), "to be asked again");
    assert!(!world.is_open(1));
    assert!(world.is_open(2), "it has asked for nothing");
    assert!(other.take(&mut world).is_empty());
    world.end();
}

#[test]
fn fua_and_flush_reach_the_engine() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    for (cdb, op, fua) in [
        (cdb10(0x2a, 0, 0, 1).to_vec(), Op::Write, false),
        (cdb10(0x2a, 8, 0, 1).to_vec(), Op::Write, true),
        (cdb16(0x8a, 8, 0, 1).to_vec(), Op::Write, true),
    ] {
        good(&client.run(&mut world, &cdb, 0, &[0; 512]));
        let asked = world.asked.last().unwrap();
        assert_eq!((asked.op, asked.flags.fua), (op, fua), "{cdb:02x?}");
    }
    good(&client.run(&mut world, &cdb10(0x35, 0, 0, 0), 0, &[]));
    assert_eq!(world.asked.last().unwrap().op, Op::Flush);
    // Without the write cache every write is durable.
    let mut list = vec![0; 4];
    list.extend([0x08, 18, 0]);
    list.resize(4 + 20, 0);
    good(&client.run(&mut world, &[0x15, 0x10, 0, 0, 24, 0], 0, &list));
    good(&client.run(&mut world, &cdb10(0x2a, 0, 0, 1), 0, &[0; 512]));
    assert!(world.asked.last().unwrap().flags.fua);
    world.end();
}

#[test]
fn write_same_unmap_and_their_zeroes_become_what_the_engine_has() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    world.disk.fill(0x77);
    for (flags, data, op) in [
        (0, 0, Op::WriteZeroes),
        (8, 0, Op::Discard),
        (8, 1, Op::Write),
    ] {
        good(&client.run(&mut world, &cdb10(0x41, flags, 8, 4000), 0, &[data; 512]));
        assert_eq!(world.asked.last().unwrap().op, op);
        let end = (8 + 4000) * 512;
        assert!(world.disk[4096..end].iter().all(|b| *b == data));
        assert_eq!((world.disk[4095], world.disk[end]), (0x77, 0x77));
    }
    let mut list = vec![0, 38, 0, 32, 0, 0, 0, 0];
    for (lba, blocks) in [(1u64, 1u32), (100, 50)] {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    good(&client.run(&mut world, &[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], 0, &list));
    assert_eq!(
        (world.disk[511], world.disk[512], world.disk[1024]),
        (0x77, 0, 0x77)
    );
    assert_eq!((world.disk[51200], world.disk[150 * 512 - 1]), (0, 0));
    world.end();
}

#[test]
fn unmap_descriptors_that_continue_each_other_are_one_discard() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    world.disk.fill(0x77);
    let mut list = vec![0, 70, 0, 64, 0, 0, 0, 0];
    for (lba, blocks) in [(8u64, 1u32), (9, 7), (16, 0), (16, 2)] {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    let before = world.asked.len();
    good(&client.run(&mut world, &[0x42, 0, 0, 0, 0, 0, 0, 0, 72, 0], 0, &list));
    assert_eq!(world.asked.len(), before + 1);
    let asked = world.asked.last().unwrap();
    assert_eq!(
        (asked.op, asked.range),
        (Op::Discard, ByteRange::new(4096, 5120))
    );
    world.end();
}

#[test]
fn compare_and_write_writes_only_what_it_expects() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    let mut cdb = cdb16(0x89, 0, 5, 0);
    cdb[13] = 2;
    let mut data = vec![0; 1024];
    data.extend([9; 1024]);
    good(&client.run(&mut world, &cdb, 0, &data));
    assert_eq!((world.disk[5 * 512], world.disk[7 * 512 - 1]), (9, 9));
    let result = client.run(&mut world, &cdb, 0, &data);
    assert_eq!(result.sense, Some((0xe, 0x1d, 0)));
    let short = client.run(&mut world, &cdb, 0, &data[..1024]);
    assert_eq!(short.sense, Some((5, 0x24, 0)));
    world.end();
}

#[test]
fn compare_and_write_excludes_writes_in_between() {
    let mut world = world(|_| {});
    let mut one = Client::ready(&mut world, 1, 1);
    let mut two = Client::ready(&mut world, 2, 2);
    let mut cdb = cdb16(0x89, 0, 0, 0);
    cdb[13] = 1;
    let mut data = vec![0; 512];
    data.extend([1; 512]);
    let head = one.command(&cdb, 0xa0, 1024);
    one.push(&mut world, head, &data);
    assert_eq!(world.pending.len(), 1, "the read of the comparison");
    // What other frontends have to keep out of meanwhile.
    let compares = world.pending[0].tag;
    assert!(world.target.is_exclusive(compares));
    // A write of the same blocks and one of others, from another session.
    let head = two.command(&cdb10(0x2a, 0, 0, 1), 0xa0, 512);
    two.push(&mut world, head, &[5; 512]);
    let head = two.command(&cdb10(0x2a, 0, 8, 1), 0xa0, 512);
    two.push(&mut world, head, &[6; 512]);
    assert_eq!(world.pending.len(), 2, "only the other blocks are written");
    assert!(!world.target.is_exclusive(world.pending[1].tag));
    // The same comparison again must see the write that waits.
    let head = one.command(&cdb, 0xa0, 1024);
    one.push(&mut world, head, &data);
    world.complete_all();
    assert_eq!((world.disk[0], world.disk[8 * 512]), (5, 6));
    assert!(!world.target.is_exclusive(compares), "it is over");
    let list = one.take(&mut world);
    assert_eq!((list[0].head[3], list[1].sense()), (0, (0xe, 0x1d, 0)));
    world.end();
}

#[test]
fn or_write_and_verify_work_on_what_is_there() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    world.disk[..1024].fill(0x0f);
    good(&client.run(&mut world, &cdb16(0x8b, 0, 0, 2), 0, &[0x30; 1024]));
    assert_eq!(
        (world.disk[0], world.disk[1023], world.disk[1024]),
        (0x3f, 0x3f, 0)
    );
    good(&client.run(&mut world, &cdb10(0x2f, 2, 0, 2), 0, &[0x3f; 1024]));
    let mut other = [0x3f; 1024];
    other[700] = 0;
    let result = client.run(&mut world, &cdb10(0x2f, 2, 0, 2), 0, &other);
    assert_eq!(result.sense, Some((0xe, 0x1d, 0)));
    good(&client.run(&mut world, &cdb10(0x2f, 0, 0, 2), 0, &[]));
    good(&client.run(&mut world, &cdb10(0x2e, 2, 0, 2), 0, &other));
    assert_eq!(world.disk[700], 0);
    assert_eq!(world.asked.last().unwrap().op, Op::Read, "read back");
    world.end();
}

#[test]
fn data_comes_in_order_however_the_engine_answers() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    for (at, byte) in world.disk.iter_mut().enumerate() {
        *byte = low(at as u64 >> 12);
    }
    let head = client.command(&cdb16(0x88, 0, 0, 8192), 0xc0, 4 << 20);
    client.push(&mut world, head, &[]);
    assert_eq!(world.pending.len(), 4);
    while let Some(last) = world.pending.len().checked_sub(1) {
        world.complete(last);
    }
    let mut data = Vec::new();
    let list = client.take(&mut world);
    for (at, answer) in list.iter().enumerate() {
        assert_eq!(
            (answer.word(36) as usize, answer.word(40) as usize),
            (at, data.len())
        );
        data.extend_from_slice(&answer.body);
    }
    let end = done(list.last().unwrap(), Vec::new());
    assert_eq!((end.status, end.residual), (0, 0));
    assert!(data == world.disk[..4 << 20]);
    world.end();
}

fn manage(client: &Client, world: &mut World, what: u8, itt: u32) {
    let mut head = [0; 48];
    head[0] = 0x42;
    head[1] = 0x80 | what;
    head[16..20].copy_from_slice(&0x77u32.to_be_bytes());
    head[20..24].copy_from_slice(&itt.to_be_bytes());
    client.push(world, head, &[]);
}

#[test]
fn abort_is_answered_when_the_engine_is_done_with_the_task() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    let head = client.command(&cdb10(0x2a, 0, 0, 1), 0xa0, 512);
    client.push(&mut world, head, &[1; 512]);
    let waiting = client.itt;
    manage(&client, &mut world, 1, waiting);
    assert!(
        client.take(&mut world).is_empty(),
        "the write may still happen"
    );
    world.complete_all();
    let list = client.take(&mut world);
    assert_eq!(
        (list.len(), list[0].opcode(), list[0].head[2]),
        (1, 0x22, 0)
    );
    manage(&client, &mut world, 1, waiting);
    assert_eq!(client.take(&mut world)[0].head[2], 1, "no such task");
    for (what, answer) in [(2, 0), (4, 0), (3, 5), (8, 4), (99, 5)] {
        manage(&client, &mut world, what, 0);
        assert_eq!(
            client.take(&mut world)[0].head[2],
            answer,
            "function {what}"
        );
    }
    world.end();
}

#[test]
fn a_reset_aborts_the_tasks_of_all_and_tells_them() {
    let mut world = world(|_| {});
    let mut one = Client::ready(&mut world, 1, 1);
    let mut two = Client::ready(&mut world, 2, 2);
    let head = two.command(&cdb10(0x2a, 0, 0, 2), 0xa0, 1024);
    two.push(&mut world, head, &[]);
    assert_eq!(two.take(&mut world)[0].opcode(), 0x31);
    manage(&one, &mut world, 5, 0);
    assert_eq!(one.take(&mut world)[0].head[2], 0);
    for client in [&mut one, &mut two] {
        assert_eq!(
            client.run(&mut world, &[0; 6], 0, &[]).sense,
            Some((6, 0x29, 3))
        );
        assert_eq!(client.run(&mut world, &[0; 6], 0, &[]).status, 0);
    }
    // A cold reset ends the sessions.
    manage(&one, &mut world, 7, 0);
    assert_eq!(one.take(&mut world)[0].head[2], 0);
    assert!(!world.is_open(1) && !world.is_open(2));
    world.end();
}

#[test]
fn an_ordered_task_waits_for_older_ones_and_holds_younger_ones() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    for (lba, attribute) in [(0, 1), (1, 2), (2, 1)] {
        let head = client.command(&cdb10(0x28, 0, lba, 1), 0xc0 | attribute, 512);
        client.push(&mut world, head, &[]);
    }
    let mut order = Vec::new();
    while !world.pending.is_empty() {
        assert_eq!(world.pending.len(), 1);
        order.push(world.pending[0].range.offset / 512);
        world.complete(0);
    }
    assert_eq!(order, [0, 1, 2]);
    world.end();
}

#[test]
fn extended_copy_copies_and_tells_how_it_went() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    for (at, byte) in world.disk.iter_mut().take(3 << 20).enumerate() {
        *byte = low(at as u64 >> 9) | 1;
    }
    let page = client
        .run(&mut world, &[0x12, 1, 0x83, 0, 255, 0], 255, &[])
        .data;
    let mut list = vec![0; 16 + 32 + 28];
    list[0] = 42;
    list[3] = 32;
    list[11] = 28;
    list[16] = 0xe4;
    list[20..24].copy_from_slice(&page[4..8]);
    list[24..32].copy_from_slice(&page[8..16]);
    let segment = &mut list[48..];
    segment[0] = 2;
    segment[3] = 0x18;
    segment[10..12].copy_from_slice(&5000u16.to_be_bytes());
    segment[12..20].copy_from_slice(&3u64.to_be_bytes());
    segment[20..28].copy_from_slice(&10_000u64.to_be_bytes());
    let mut cdb = cdb16(0x83, 0, 0, 76);
    good(&client.run(&mut world, &cdb, 0, &list));
    let (from, to, len) = (3 * 512, 10_000 * 512, 5000 * 512);
    assert!(world.disk[from..from + len] == world.disk[to..to + len]);
    cdb = cdb16(0x84, 0, 42 << 56, 12);
    let status = client.run(&mut world, &cdb, 12, &[]);
    assert_eq!(status.data, [0, 0, 0, 8, 1, 0, 1, 0, 0, 0x27, 0x10, 0]);
    list[31] ^= 1;
    let result = client.run(&mut world, &cdb16(0x83, 0, 0, 76), 0, &list);
    assert_eq!(result.sense, Some((0xa, 0x0d, 2)), "another unit");
    world.end();
}

#[test]
fn every_command_that_is_told_of_exists() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    for (opcode, action) in crate::scsi::opcodes::rows() {
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        if let Some(action) = action {
            cdb[1] = action.to_be_bytes()[1];
        }
        let result = client.run(&mut world, &cdb, 0, &[]);
        assert_ne!(result.sense, Some((5, 0x20, 0)), "{opcode:02x} {action:?}");
    }
    world.end();
}

#[test]
fn a_protected_unit_refuses_all_that_writes() {
    let mut world = world(|config| config.read_only = true);
    let mut client = Client::ready(&mut world, 1, 1);
    let mut caw = cdb16(0x89, 0, 0, 0);
    caw[13] = 1;
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    for (cdb, len) in [
        (&cdb10(0x2a, 0, 0, 1)[..], 512),
        (&cdb10(0x2e, 0, 0, 1), 512),
        (&cdb10(0x41, 0, 0, 1), 512),
        (&caw, 1024),
        (&cdb16(0x8b, 0, 0, 1), 512),
        (&unmap, 24),
        (&cdb16(0x83, 0, 0, 76), 76),
    ] {
        let result = client.run(&mut world, cdb, 0, &vec![0; len]);
        assert_eq!(result.sense, Some((7, 0x27, 0)), "{cdb:02x?}");
    }
    let sense = client.run(&mut world, &[0x1a, 0, 0x3f, 0, 255, 0], 255, &[]);
    assert_eq!(sense.data[2] & 0x80, 0x80);
    assert!(world.asked.is_empty());
    world.end();
}

#[test]
fn the_capacity_is_told() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    let ten = client.run(&mut world, &cdb10(0x25, 0, 0, 0), 8, &[]).data;
    assert_eq!(ten, [0, 0, 0x3f, 0xff, 0, 0, 2, 0]);
    let mut cdb = cdb16(0x9e, 0x10, 0, 32);
    cdb[1] = 0x10;
    let sixteen = client.run(&mut world, &cdb, 32, &[]).data;
    assert_eq!((sixteen[13], sixteen[14]), (3, 0xc0));
    assert_eq!(DISK_BYTES, 16384 * 512);
    world.end();
}
