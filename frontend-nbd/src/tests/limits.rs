use super::client::{
    Ask, MIB, MIB_LEN, MODES, Mode, ask, connect, error_of, haggling, option, replies, sent,
};
use crate::fuzz::{World, config};
use crate::limits::{CONNECTION_SLOTS_MAX, CONNECTIONS_MAX, OPTIONS_MAX, REQUESTS_MAX};
use std::vec;
use std::vec::Vec;
use trilith_block::{Actions, ConnId, FrontendEvent, Machine, Op, StreamEvent};

fn world() -> World {
    World::new(config(64 * MIB), 512 * MIB)
}

fn read(len: u64) -> Ask {
    Ask {
        kind: 0,
        len,
        ..Default::default()
    }
}

fn write(len: u64) -> Ask {
    Ask {
        kind: 1,
        len,
        ..Default::default()
    }
}

fn submitted(world: &World, op: Op) -> u64 {
    world
        .pending
        .iter()
        .filter(|r| r.op == op)
        .map(|r| r.range.len)
        .sum()
}

#[test]
fn one_connection_too_many_is_closed() {
    let mut world = world();
    let ids: Vec<ConnId> = (0..CONNECTIONS_MAX).map(|_| world.open()).collect();
    let extra = world.open();
    assert!(world.pipes[&extra].closed);
    assert_eq!(sent(&mut world, extra), b"");
    world.gone(ids[3]);
    let next = world.open();
    assert!(!world.pipes[&next].closed);
    assert_eq!(world.server.status().connections_refused, 1);
    world.finish();
}

#[test]
fn gone_connections_with_requests_in_flight_have_a_limit_too() {
    let mut world = world();
    for _ in 0..CONNECTION_SLOTS_MAX {
        let id = connect(&mut world, Mode::Simple);
        world.feed(id, &ask(Mode::Simple, read(512)));
        world.gone(id);
    }
    let id = world.open();
    assert!(world.pipes[&id].closed);
    world.complete_all();
    let id = world.open();
    assert!(!world.pipes[&id].closed);
    world.finish();
}

#[test]
fn too_many_options_close() {
    let mut world = world();
    let id = haggling(&mut world);
    for _ in 0..OPTIONS_MAX {
        world.feed(id, &option(3, &[]));
        assert!(!world.pipes[&id].closed);
    }
    world.feed(id, &option(3, &[]));
    assert!(world.pipes[&id].closed);
}

#[test]
fn requests_in_flight_have_a_limit_and_the_rest_waits() {
    for mode in MODES {
        let mut world = world();
        let id = connect(&mut world, mode);
        let many: Vec<u8> = (0..REQUESTS_MAX + 10)
            .flat_map(|_| ask(mode, read(1)))
            .collect();
        world.feed(id, &many);
        assert_eq!(world.pending.len(), REQUESTS_MAX);
        assert!(world.complete(17, None));
        assert_eq!(world.pending.len(), REQUESTS_MAX, "one went, one came");
        world.complete_all();
        let count = replies(&sent(&mut world, id), mode, 1).len();
        assert_eq!(count, REQUESTS_MAX + 10);
        world.finish();
    }
}

#[test]
fn payload_of_a_connection_has_a_limit() {
    for mode in MODES {
        let mut world = world();
        let id = connect(&mut world, mode);
        for _ in 0..5 {
            world.feed(id, &ask(mode, read(10 * MIB)));
        }
        assert_eq!(submitted(&world, Op::Read), 30 * MIB);
        assert_eq!(world.server.status().connections_waiting, 1);
        world.complete_all();
        let list = replies(&sent(&mut world, id), mode, 10 << 20);
        assert_eq!(list.iter().filter(|reply| reply.done).count(), 5);
        world.finish();
    }
}

#[test]
fn a_greedy_connection_cannot_stop_another() {
    let mut world = world();
    let mut greedy = Vec::new();
    for _ in 0..4 {
        let id = connect(&mut world, Mode::Simple);
        world.feed(id, &ask(Mode::Simple, read(32 * MIB)));
        greedy.push(id);
    }
    assert_eq!(
        world.server.status().connections_waiting,
        2,
        "the pool is used up"
    );
    let small = connect(&mut world, Mode::Simple);
    world.feed(small, &ask(Mode::Simple, write(4096)));
    world.feed(small, &[1; 4096]);
    assert_eq!(submitted(&world, Op::Write), 4096, "its credit is its own");
    world.complete_all();
    assert_eq!(error_of(&sent(&mut world, small), Mode::Simple), 0);
    for id in greedy {
        assert_eq!(sent(&mut world, id).len(), 16 + (32 << 20));
    }
    world.finish();
}

#[test]
fn those_who_wait_for_memory_go_on_in_their_order() {
    let mut world = world();
    let ids: Vec<ConnId> = (0..6).map(|_| connect(&mut world, Mode::Simple)).collect();
    for id in &ids {
        world.feed(*id, &ask(Mode::Simple, read(32 * MIB)));
    }
    // A later small request that would fit must not overtake them for ever.
    let late = connect(&mut world, Mode::Simple);
    world.feed(late, &ask(Mode::Simple, read(2 * MIB)));
    assert_eq!(world.server.status().connections_waiting, 5);
    let mut order = Vec::new();
    while !world.pending.is_empty() {
        assert!(world.complete(0, None));
        for id in ids.iter().chain([&late]) {
            if !sent(&mut world, *id).is_empty() {
                order.push(*id);
            }
        }
    }
    let expected: Vec<ConnId> = ids.iter().copied().chain([late]).collect();
    assert_eq!(order, expected);
    world.finish();
}

#[test]
fn writes_wait_for_the_arena_and_ask_again() {
    for mode in MODES {
        let mut world = World::new(config(8 * MIB), 2 * MIB);
        let a = connect(&mut world, mode);
        let b = connect(&mut world, mode);
        world.feed(a, &ask(mode, write(2 * MIB)));
        world.feed(a, &vec![1; 2 * MIB_LEN]);
        world.feed(b, &ask(mode, write(4096)));
        world.feed(b, &[2; 4096]);
        assert_eq!(world.pending.len(), 2, "two parts of a; b has no buffer");
        assert_eq!(
            world.server.deadline(),
            Some(world.now.after(crate::limits::ARENA_RETRY_SPAN))
        );
        assert!(world.complete(0, None));
        assert_eq!(submitted(&world, Op::Write), MIB + 4096);
        world.complete_all();
        assert_eq!(error_of(&sent(&mut world, a), mode), 0);
        assert_eq!(error_of(&sent(&mut world, b), mode), 0);
        assert_eq!(
            world.server.deadline().filter(|end| *end <= world.now),
            None
        );
        world.finish();
    }
}

#[test]
fn a_waiting_connection_that_goes_is_forgotten() {
    let mut world = World::new(config(8 * MIB), MIB);
    let a = connect(&mut world, Mode::Simple);
    let b = connect(&mut world, Mode::Simple);
    world.feed(a, &ask(Mode::Simple, write(MIB)));
    world.feed(b, &ask(Mode::Simple, write(512)));
    assert_eq!(world.server.status().connections_waiting, 1);
    // At once, not at the next settle: the slot may have another owner by then.
    let event = FrontendEvent::Stream(b, StreamEvent::Closed);
    let World {
        server, arena, now, ..
    } = &mut world;
    server.step(*now, event, arena, &mut Actions::new());
    assert_eq!(server.status().connections_waiting, 0);
    world.gone(b);
    world.gone(a);
    world.finish();
}

#[test]
fn the_largest_requests_work() {
    for mode in MODES {
        let mut world = world();
        let id = connect(&mut world, mode);
        let data: Vec<u8> = (0..32 << 20)
            .map(|i: u32| (i % 253).to_le_bytes()[0])
            .collect();
        let at = 1_000_003;
        world.feed(
            id,
            &ask(
                mode,
                Ask {
                    offset: at,
                    ..write(32 * MIB)
                },
            ),
        );
        world.feed(id, &data);
        world.complete_all();
        assert_eq!(error_of(&sent(&mut world, id), mode), 0);
        let start = usize::try_from(at).unwrap();
        assert!(world.volume[start..start + data.len()] == data);
        world.finish();
    }
}
