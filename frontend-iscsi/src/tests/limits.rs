//! What peers without a session can make us hold, and what happens at limits.

use super::client::{Client, answers, cdb10, login_request, text, world};
use crate::limits::{COMMANDS_MAX, LOGIN_SPAN_MAX, LOGINS_MAX, SESSIONS_MAX, TEXT_BYTES_MAX};
use std::vec;
use trilith_block::Monotonic;

#[test]
fn a_thousand_half_open_logins_do_not_stop_a_session() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    for conn in 10..10 + LOGINS_MAX as u64 {
        world.open(conn);
        world.push(conn, &[0x43, 0x87, 0]);
        assert!(world.is_open(conn));
    }
    world.open(2);
    assert!(!world.is_open(2), "one too many");
    assert_eq!(
        client
            .run(&mut world, &cdb10(0x28, 0, 0, 8), 4096, &[])
            .status,
        0
    );
    world.now = world.now.after(LOGIN_SPAN_MAX);
    world.settle();
    assert!((10..10 + LOGINS_MAX as u64).all(|conn| !world.is_open(conn)));
    assert!(world.is_open(1));
    world.end();
}

#[test]
fn a_login_that_dribbles_is_closed_in_time() {
    let mut world = world(|_| {});
    world.open(1);
    let request = login_request(1, None, 1, &text(&[("InitiatorName", "iqn.x")]));
    let start = world.now;
    for (at, byte) in request.iter().enumerate() {
        world.now = Monotonic(start.0 + at as u64 * 1_000_000_000);
        world.settle();
        world.push(1, &[*byte]);
    }
    assert!(!world.is_open(1));
    assert_eq!(world.target.status().logins_failed, 1);
    world.end();
}

#[test]
fn endless_text_and_endless_logins_are_refused() {
    let mut world = world(|_| {});
    world.open(1);
    let mut part = login_request(1, None, 1, &vec![b'A'; 8000]);
    part[1] |= 0x40;
    for _ in 0..=TEXT_BYTES_MAX / 8000 {
        world.push(1, &part);
    }
    assert!(!world.is_open(1), "too much text");
    world.open(2);
    let names = text(&[
        ("InitiatorName", super::client::NAME),
        ("TargetName", "iqn.2026-11.io.trilith:test"),
    ]);
    world.push(2, &login_request(1, None, 1, &names));
    for _ in 0..100 {
        world.push(2, &login_request(1, None, 1, &[]));
    }
    assert!(!world.is_open(2), "too many requests");
    world.open(3);
    let mut huge = login_request(1, None, 1, &[]);
    huge[5..8].copy_from_slice(&[0xff; 3]);
    world.push(3, &huge);
    assert!(!world.is_open(3), "too much data");
    world.end();
}

#[test]
fn sessions_have_a_limit() {
    let mut world = world(|_| {});
    for conn in 1..=SESSIONS_MAX as u64 {
        Client::login(&mut world, conn, u8::try_from(conn).unwrap(), &[]);
    }
    world.open(999);
    let keys = text(&[
        ("InitiatorName", super::client::NAME),
        ("TargetName", "iqn.2026-11.io.trilith:test"),
    ]);
    world.push(999, &login_request(1, Some(3), 200, &keys));
    assert_eq!(answers(&world.sent(999), false)[0].head[36..38], [3, 2]);
    world.end();
}

#[test]
fn commands_outside_of_the_window_are_ignored() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    for _ in 0..COMMANDS_MAX {
        let head = client.command(&cdb10(0x28, 0, 0, 1), 0xc0, 512);
        client.push(&mut world, head, &[]);
    }
    assert_eq!(world.pending.len(), COMMANDS_MAX as usize);
    let head = client.command(&cdb10(0x28, 0, 0, 1), 0xc0, 512);
    client.push(&mut world, head, &[]);
    assert_eq!(
        world.pending.len(),
        COMMANDS_MAX as usize,
        "the window is closed"
    );
    world.complete(0);
    let list = client.take(&mut world);
    assert_eq!(list[0].word(32), list[0].word(28), "room for one again");
    client.push(&mut world, head, &[]);
    assert_eq!(world.pending.len(), COMMANDS_MAX as usize);
    world.complete_all();
    assert_eq!(client.take(&mut world).len(), COMMANDS_MAX as usize);
    let mut old = client.command(&[0; 6], 0x80, 0);
    old[24..28].copy_from_slice(&1u32.to_be_bytes());
    client.push(&mut world, old, &[]);
    assert!(client.take(&mut world).is_empty(), "a CmdSN of the past");
    world.end();
}

#[test]
fn writes_wait_for_memory_and_reads_go_on() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    world.arena.allowed = Some(0);
    let head = client.command(&cdb10(0x2a, 0, 0, 1), 0xa0, 512);
    client.push(&mut world, head, &[3; 512]);
    assert!(world.pending.is_empty() && world.target.status().tasks_waiting == 1);
    assert!(trilith_block::Machine::deadline(&world.target).is_some());
    world.arena.allowed = None;
    world.settle();
    world.deliver(1);
    world.complete_all();
    assert_eq!((client.take(&mut world)[0].head[3], world.disk[0]), (0, 3));
    world.end();
}

#[test]
fn without_memory_behind_a_solicited_write_a_command_is_sent_back() {
    let mut world = world(|_| {});
    let mut client = Client::ready(&mut world, 1, 1);
    let head = client.command(&cdb10(0x2a, 0, 0, 2), 0xa0, 1024);
    client.push(&mut world, head, &[]);
    world.arena.allowed = Some(0);
    let second = client.command(&cdb10(0x2a, 0, 8, 1), 0xa0, 512);
    client.push(&mut world, second, &[3; 512]);
    let list = client.take(&mut world);
    assert_eq!(
        (list[0].opcode(), list[1].opcode(), list[1].head[3]),
        (0x31, 0x21, 0x28)
    );
    world.end();
}

#[test]
fn wrong_digests_end_the_connection_or_the_task() {
    let mut world = world(|_| {});
    let keys = [("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")];
    let mut client = Client::login(&mut world, 1, 1, &keys);
    client.run(&mut world, &[0; 6], 0, &[]);
    let head = client.command(&cdb10(0x2a, 0, 0, 1), 0xa0, 512);
    let mut bytes = client.encode(head, &[1; 512]);
    bytes[100] ^= 1;
    world.push(1, &bytes);
    let list = client.take(&mut world);
    assert_eq!((list[0].opcode(), list[0].head[2]), (0x3f, 2), "rejected");
    assert_eq!(list[1].sense(), (0xb, 0x47, 5));
    assert!(world.asked.is_empty());
    let head = client.command(&[0; 6], 0x80, 0);
    let mut bytes = client.encode(head, &[]);
    bytes[40] ^= 1;
    world.push(1, &bytes);
    assert!(!world.is_open(1));
    assert_eq!(world.target.status().digest_errors, 2);
    world.end();
}
