//! Persistent reservations between two initiators, RESERVE 6, and keeping over a restart.

use super::client::{Client, cdb10, world};
use crate::config::ConfigProblem;
use crate::fuzz::World;
use crate::scsi::reserve::Reservations;
use crate::target::IscsiTarget;
use std::vec::Vec;

const CONFLICT: u8 = 0x18;

fn out(
    client: &mut Client,
    world: &mut World,
    action: u8,
    kind: u8,
    keys: (u64, u64),
    aptpl: bool,
) -> u8 {
    let mut list = Vec::new();
    list.extend(keys.0.to_be_bytes());
    list.extend(keys.1.to_be_bytes());
    list.resize(24, 0);
    list[20] = u8::from(aptpl);
    let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
    client.run(world, &cdb, 0, &list).status
}

fn keys(client: &mut Client, world: &mut World) -> Vec<u64> {
    let data = client
        .run(world, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 255, 0], 255, &[])
        .data;
    data[8..]
        .chunks(8)
        .map(|b| u64::from_be_bytes(b.try_into().unwrap()))
        .collect()
}

fn pair() -> (World, Client, Client) {
    let mut world = world(|_| {});
    let one = Client::ready(&mut world, 1, 1);
    let two = Client::ready(&mut world, 2, 2);
    (world, one, two)
}

/// Statuses of a read and a write.
fn access(client: &mut Client, world: &mut World) -> (u8, u8) {
    let read = client.run(world, &cdb10(0x28, 0, 0, 1), 512, &[]).status;
    let write = client
        .run(world, &cdb10(0x2a, 0, 0, 1), 0, &[0; 512])
        .status;
    (read, write)
}

#[test]
fn each_type_keeps_out_whom_it_should() {
    let c = CONFLICT;
    for (kind, stranger, registrant) in [
        (1, (0, c), (0, c)),
        (3, (c, c), (c, c)),
        (5, (0, c), (0, 0)),
        (6, (c, c), (0, 0)),
        (7, (0, c), (0, 0)),
        (8, (c, c), (0, 0)),
    ] {
        let (mut world, mut one, mut two) = pair();
        assert_eq!(out(&mut one, &mut world, 0, 0, (0, 11), false), 0);
        assert_eq!(out(&mut one, &mut world, 1, kind, (11, 0), false), 0);
        assert_eq!(
            access(&mut one, &mut world),
            (0, 0),
            "holder of type {kind}"
        );
        assert_eq!(
            access(&mut two, &mut world),
            stranger,
            "stranger, type {kind}"
        );
        assert_eq!(out(&mut two, &mut world, 0, 0, (0, 22), false), 0);
        assert_eq!(
            access(&mut two, &mut world),
            registrant,
            "registrant, type {kind}"
        );
        assert_eq!(
            out(&mut two, &mut world, 1, 1, (22, 0), false),
            c,
            "another type"
        );
        assert_eq!(out(&mut one, &mut world, 2, kind, (11, 0), false), 0);
        two.run(&mut world, &[0; 6], 0, &[]);
        assert_eq!(
            access(&mut two, &mut world),
            (0, 0),
            "released, type {kind}"
        );
        world.end();
    }
}

#[test]
fn keys_must_be_right() {
    let (mut world, mut one, mut two) = pair();
    assert_eq!(out(&mut one, &mut world, 0, 0, (5, 11), false), CONFLICT);
    assert_eq!(out(&mut one, &mut world, 0, 0, (0, 11), false), 0);
    assert_eq!(out(&mut one, &mut world, 0, 0, (0, 12), false), CONFLICT);
    assert_eq!(
        out(&mut one, &mut world, 6, 0, (0, 12), false),
        0,
        "key is ignored"
    );
    assert_eq!(out(&mut one, &mut world, 1, 1, (11, 0), false), CONFLICT);
    assert_eq!(out(&mut two, &mut world, 1, 1, (0, 0), false), CONFLICT);
    assert_eq!(keys(&mut one, &mut world), [12]);
    assert_eq!(out(&mut one, &mut world, 0, 0, (12, 0), false), 0);
    assert_eq!(keys(&mut one, &mut world), []);
    world.end();
}

#[test]
fn preempt_takes_over_and_tells_the_loser() {
    let (mut world, mut one, mut two) = pair();
    out(&mut one, &mut world, 0, 0, (0, 11), false);
    out(&mut two, &mut world, 0, 0, (0, 22), false);
    out(&mut one, &mut world, 1, 3, (11, 0), false);
    let head = one.command(&cdb10(0x28, 0, 0, 1), 0xc0, 512);
    one.push(&mut world, head, &[]);
    let mut list = [0; 24];
    (list[7], list[15]) = (22, 11);
    let head = two.command(&[0x5f, 5, 3, 0, 0, 0, 0, 0, 24, 0], 0xa0, 24);
    two.push(&mut world, head, &list);
    assert!(
        two.take(&mut world).is_empty(),
        "not before the read is gone"
    );
    world.complete_all();
    assert_eq!(two.take(&mut world)[0].head[3], 0);
    assert_eq!(keys(&mut two, &mut world), [22]);
    assert!(one.take(&mut world).is_empty(), "its read is aborted");
    let lost = one.run(&mut world, &[0; 6], 0, &[]);
    assert_eq!(lost.sense, Some((6, 0x2a, 5)));
    assert_eq!(access(&mut one, &mut world), (CONFLICT, CONFLICT));
    assert_eq!(access(&mut two, &mut world), (0, 0));
    assert_eq!(out(&mut two, &mut world, 3, 0, (22, 0), false), 0);
    assert_eq!(keys(&mut two, &mut world), []);
    assert_eq!(access(&mut one, &mut world), (0, 0));
    world.end();
}

#[test]
fn reservations_outlive_a_session_but_reserve6_does_not() {
    let (mut world, mut one, mut two) = pair();
    assert_eq!(
        one.run(&mut world, &[0x16, 0, 0, 0, 0, 0], 0, &[]).status,
        0
    );
    assert_eq!(two.run(&mut world, &[0; 6], 0, &[]).status, CONFLICT);
    assert_eq!(
        two.run(&mut world, &[0x12, 0, 0, 0, 36, 0], 36, &[]).status,
        0
    );
    assert_eq!(
        two.run(&mut world, &[0x17, 0, 0, 0, 0, 0], 0, &[]).status,
        0,
        "no effect"
    );
    assert_eq!(two.run(&mut world, &[0; 6], 0, &[]).status, CONFLICT);
    world.hang_up(1);
    assert_eq!(two.run(&mut world, &[0; 6], 0, &[]).status, 0);
    out(&mut two, &mut world, 0, 0, (0, 22), false);
    out(&mut two, &mut world, 1, 1, (22, 0), false);
    world.hang_up(2);
    let mut one = Client::ready(&mut world, 3, 1);
    assert_eq!(access(&mut one, &mut world), (0, CONFLICT));
    world.end();
}

#[test]
fn what_is_to_be_kept_is_kept_before_the_answer() {
    let (mut world, mut one, _two) = pair();
    world.keeps = false;
    let mut list = [0; 24];
    list[15] = 11;
    list[20] = 1;
    let head = one.command(&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], 0xa0, 24);
    one.push(&mut world, head, &list);
    assert!(one.take(&mut world).is_empty(), "not before it is kept");
    let (number, state) = world.target.unkept().unwrap();
    let state = state.to_vec();
    let mut actions = trilith_block::Actions::new();
    let now = world.now;
    world
        .target
        .kept(now, number, true, &mut world.arena, &mut actions);
    assert_eq!(actions.list().len(), 1, "the answer");
    assert!(world.target.unkept().is_none());
    // After a restart the registration is there.
    let again = Reservations::of_bytes(&state).unwrap();
    let mut bytes = Vec::new();
    again.to_bytes(&mut bytes);
    assert_eq!(bytes, state);
    let head = one.command(&[0x5f, 1, 1, 0, 0, 0, 0, 0, 24, 0], 0xa0, 24);
    list[7] = 11;
    one.push(&mut world, head, &list);
    let (number, _) = world.target.unkept().unwrap();
    world
        .target
        .kept(now, number, false, &mut world.arena, &mut actions);
    assert_eq!(actions.list().len(), 2, "an error");
    // The same again, which changes nothing, is not good before it is kept either.
    let head = one.command(&[0x5f, 1, 1, 0, 0, 0, 0, 0, 24, 0], 0xa0, 24);
    one.push(&mut world, head, &list);
    let (again, _) = world.target.unkept().unwrap();
    assert!(again > number);
    world
        .target
        .kept(now, again, true, &mut world.arena, &mut actions);
    world.end();
}

#[test]
fn a_target_does_not_start_with_a_state_that_it_does_not_understand() {
    let refused = IscsiTarget::new(crate::fuzz::config(), b"reserved").err();
    assert_eq!(refused, Some(ConfigProblem::Kept));
    assert!(IscsiTarget::new(crate::fuzz::config(), &[]).is_ok());
}

#[test]
fn who_cannot_keep_does_not_promise_it() {
    let mut world = world(|config| config.keeps_reservations = false);
    let mut one = Client::ready(&mut world, 1, 1);
    assert_eq!(out(&mut one, &mut world, 0, 0, (0, 11), true), 2);
    let able = one
        .run(&mut world, &[0x5e, 2, 0, 0, 0, 0, 0, 0, 8, 0], 8, &[])
        .data;
    assert_eq!(able[2] & 1, 0);
    assert_eq!(out(&mut one, &mut world, 0, 0, (0, 11), false), 0);
    assert!(world.target.unkept().is_none());
    world.end();
}

#[test]
fn a_kept_state_that_is_damaged_is_no_state() {
    let (mut world, mut one, mut two) = pair();
    out(&mut one, &mut world, 0, 0, (0, 11), true);
    out(&mut two, &mut world, 0, 0, (0, 22), true);
    out(&mut two, &mut world, 1, 5, (22, 0), true);
    let mut state = Vec::new();
    world.target.disk.reservations.to_bytes(&mut state);
    assert!(Reservations::of_bytes(&state).is_some());
    for len in 1..state.len() {
        assert!(
            Reservations::of_bytes(&state[..len]).is_none(),
            "{len} bytes"
        );
    }
    for at in 0..state.len() {
        let mut bad = state.clone();
        bad[at] ^= 0xff;
        // Must not panic; a key or a letter of a name may differ.
        let _state = Reservations::of_bytes(&bad);
    }
    world.end();
}

#[test]
fn the_reservation_can_be_moved_to_another_port() {
    let (mut world, mut one, mut two) = pair();
    out(&mut one, &mut world, 0, 0, (0, 11), false);
    out(&mut one, &mut world, 1, 3, (11, 0), false);
    let mut id = std::vec![0x45, 0, 0, 0];
    id.extend(std::format!("{},i,0x800000000002\0", super::client::NAME).bytes());
    id.resize(id.len().next_multiple_of(4), 0);
    let len = u16::try_from(id.len() - 4).unwrap();
    id[2..4].copy_from_slice(&len.to_be_bytes());
    let mut list = std::vec![0; 24];
    list[7] = 11;
    list[15] = 22;
    list[17] = 2;
    list[19] = 1;
    list[20..24].copy_from_slice(&u32::try_from(id.len()).unwrap().to_be_bytes());
    list.extend(id);
    let mut cdb = [0x5f, 7, 0, 0, 0, 0, 0, 0, 0, 0];
    cdb[5..9].copy_from_slice(&u32::try_from(list.len()).unwrap().to_be_bytes());
    assert_eq!(one.run(&mut world, &cdb, 0, &list).status, 0);
    assert_eq!(access(&mut one, &mut world), (CONFLICT, CONFLICT));
    assert_eq!(access(&mut two, &mut world), (0, 0));
    assert_eq!(keys(&mut two, &mut world), [22]);
    let full = two
        .run(&mut world, &[0x5e, 3, 0, 0, 0, 0, 0, 1, 0, 0], 256, &[])
        .data;
    assert_eq!(
        (full[20], full[21], full[32]),
        (1, 3, 0x45),
        "holder, type, TransportID"
    );
    world.end();
}
