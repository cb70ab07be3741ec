use super::client::{
    Ask, MIB, MIB_LEN, MODES, Mode, ask, connect, error_of, haggling, option, option_reply,
    replies, sent, world,
};
use core::time::Duration;
use std::vec;
use trilith_block::{Completion, ErrorKind, FrontendEvent, Tag};

const SHUTDOWN: u32 = 0x8000_0007;

fn read(offset: u64, len: u64) -> Ask {
    Ask {
        kind: 0,
        offset,
        len,
        ..Default::default()
    }
}

fn write(offset: u64, len: u64) -> Ask {
    Ask {
        kind: 1,
        offset,
        len,
        ..Default::default()
    }
}

#[test]
fn goodbye_waits_for_what_is_in_flight() {
    for mode in MODES {
        let mut world = world();
        let id = connect(&mut world, mode);
        world.feed(id, &ask(mode, read(0, 512)));
        world.feed(
            id,
            &ask(
                mode,
                Ask {
                    kind: 2,
                    ..Default::default()
                },
            ),
        );
        world.feed(id, &ask(mode, read(0, 512)));
        assert!(!world.pipes[&id].closed);
        assert_eq!(world.pending.len(), 1, "nothing is read after the goodbye");
        world.complete_all();
        assert!(world.pipes[&id].closed);
        assert_eq!(replies(&sent(&mut world, id), mode, 512).len(), 1);
        world.finish();
    }
}

#[test]
fn goodbye_with_nothing_in_flight_closes() {
    let mut world = world();
    let id = connect(&mut world, Mode::Simple);
    world.feed(
        id,
        &ask(
            Mode::Simple,
            Ask {
                kind: 2,
                len: 5,
                flags: 9,
                ..Default::default()
            },
        ),
    );
    assert!(world.pipes[&id].closed);
    assert_eq!(sent(&mut world, id), b"", "there is no reply to it");
}

#[test]
fn a_connection_that_goes_leaves_its_requests_to_the_engine() {
    for mode in MODES {
        let mut world = world();
        let id = connect(&mut world, mode);
        world.feed(id, &ask(mode, write(0, 4096)));
        world.feed(id, &[8; 4096]);
        world.feed(id, &ask(mode, read(8192, 3 * MIB)));
        world.feed(
            id,
            &ask(
                mode,
                Ask {
                    kind: 7,
                    len: 512,
                    ..Default::default()
                },
            ),
        );
        // And a write half received.
        world.feed(id, &ask(mode, write(16384, 2 * MIB)));
        world.feed(id, &vec![9; MIB_LEN + 100]);
        assert!(world.complete(1, None), "one part is held or sent");
        world.gone(id);
        assert!(world.server.status().requests_in_flight > 0);
        world.complete_all();
        assert_eq!(world.volume[..4096], [8; 4096], "the write happened");
        world.finish();
    }
}

#[test]
fn a_slot_is_used_again_and_late_completions_are_not_mistaken() {
    let mut world = world();
    let first = connect(&mut world, Mode::Simple);
    world.feed(first, &ask(Mode::Simple, read(0, 512)));
    world.gone(first);
    let second = connect(&mut world, Mode::Simple);
    world.feed(second, &ask(Mode::Simple, read(512, 512)));
    assert!(world.complete(0, None));
    assert_eq!(sent(&mut world, second), b"");
    assert!(world.complete(0, None));
    assert_eq!(
        replies(&sent(&mut world, second), Mode::Simple, 512).len(),
        1
    );
    // The first request once more, now that its slot has another owner: a bug of the wiring.
    world.feed(second, &ask(Mode::Simple, read(512, 512)));
    let tag = Tag(world.pending[0].tag.0 - (1 << 40));
    let result = Err(ErrorKind::Io);
    world.event(FrontendEvent::Complete(Completion { tag, result }));
    assert_eq!(sent(&mut world, second), b"");
    world.complete_all();
    assert_eq!(error_of(&sent(&mut world, second)[..16], Mode::Simple), 0);
    for _ in 0..1000 {
        let id = connect(&mut world, Mode::Simple);
        world.gone(id);
    }
    assert_eq!(world.server.status().connections_refused, 0);
    world.finish();
}

#[test]
fn slow_negotiations_are_cut_at_thirty_seconds() {
    let mut world = world();
    let slow = world.open();
    world.advance(Duration::from_secs(10));
    let later = haggling(&mut world);
    let working = connect(&mut world, Mode::Simple);
    // An option whose data trickles in.
    let bytes = option(6, &[0; 8000]);
    for chunk in bytes.chunks(100).take(19) {
        world.advance(Duration::from_secs(1));
        world.feed(later, chunk);
    }
    assert!(!world.pipes[&slow].closed);
    world.advance(Duration::from_millis(999));
    assert!(!world.pipes[&slow].closed);
    world.advance(Duration::from_millis(1));
    assert!(world.pipes[&slow].closed, "30 s after the accept");
    assert!(!world.pipes[&later].closed);
    world.advance(Duration::from_secs(10));
    assert!(world.pipes[&later].closed);
    assert!(
        !world.pipes[&working].closed,
        "transmission has no such limit"
    );
    assert_eq!(world.server.status().negotiations_cut, 2);
    use trilith_block::Machine;
    assert_eq!(world.server.deadline(), None);
    world.finish();
}

#[test]
fn the_end_of_service_fails_requests_then_closes() {
    for mode in MODES {
        let mut world = world();
        let idle = connect(&mut world, mode);
        let busy = connect(&mut world, mode);
        let writing = connect(&mut world, mode);
        world.feed(busy, &ask(mode, read(0, 512)));
        world.feed(writing, &ask(mode, write(0, 2 * MIB)));
        world.feed(writing, &[1; 100]);
        world.event(FrontendEvent::Serving(false));
        assert!(world.pipes[&idle].closed);
        assert!(!world.pipes[&busy].closed && !world.pipes[&writing].closed);
        let cookie = 5;
        world.feed(
            busy,
            &ask(
                mode,
                Ask {
                    kind: 4,
                    cookie,
                    len: 512,
                    ..Default::default()
                },
            ),
        );
        world.feed(busy, &ask(mode, write(0, 512)));
        world.feed(busy, &[1; 512]);
        let list = replies(&sent(&mut world, busy), mode, 0);
        assert_eq!(
            list.iter()
                .map(|reply| reply.error)
                .collect::<vec::Vec<_>>(),
            [108, 108]
        );
        assert!(world.complete(0, Some(ErrorKind::Fenced)));
        assert_eq!(error_of(&sent(&mut world, busy), mode), 108);
        assert!(world.pipes[&busy].closed);
        world.feed(writing, &vec![1; 2 * MIB_LEN - 100]);
        assert_eq!(error_of(&sent(&mut world, writing), mode), 108);
        assert!(world.pipes[&writing].closed);
        world.finish();
    }
}

#[test]
fn the_end_of_service_does_not_wait_for_ever() {
    for mode in MODES {
        let mut world = world();
        let busy = connect(&mut world, mode);
        world.feed(busy, &ask(mode, read(0, 2 * MIB)));
        let stalled = connect(&mut world, mode);
        world.feed(stalled, &ask(mode, write(0, 512)));
        world.event(FrontendEvent::Serving(false));
        world.advance(Duration::from_millis(4999));
        assert!(!world.pipes[&busy].closed);
        world.advance(Duration::from_millis(1));
        for id in [busy, stalled] {
            assert_eq!(error_of(&sent(&mut world, id), mode), 108);
            assert!(world.pipes[&id].closed);
        }
        world.finish();
    }
}

#[test]
fn options_after_the_end_of_service_get_shutdown() {
    let mut world = world();
    let id = haggling(&mut world);
    world.event(FrontendEvent::Serving(false));
    for kind in [3, 7, 8, 10] {
        world.feed(id, &option(kind, &[]));
        assert_eq!(sent(&mut world, id), option_reply(kind, SHUTDOWN, &[]));
    }
    let named = haggling(&mut world);
    world.feed(named, &option(1, &[]));
    assert!(world.pipes[&named].closed);
    world.event(FrontendEvent::Serving(true));
    world.feed(id, &option(8, &[]));
    assert_eq!(sent(&mut world, id), option_reply(8, 1, &[]));
    world.feed(id, &option(2, &[]));
    assert!(world.pipes[&id].closed);
    world.finish();
}

#[test]
fn counters_count() {
    let mut world = world();
    let id = connect(&mut world, Mode::Structured);
    world.feed(id, &ask(Mode::Structured, write(0, 2 * MIB)));
    world.feed(id, &vec![1; 2 * MIB_LEN]);
    world.complete_all();
    world.feed(id, &ask(Mode::Structured, read(5, 1000)));
    let status = world.server.status();
    assert_eq!(
        (
            status.requests,
            status.requests_in_flight,
            status.connections
        ),
        (2, 1, 1)
    );
    assert_eq!(status.payload_bytes, 1000);
    world.complete_all();
    let status = world.server.status();
    assert_eq!((status.bytes_written, status.bytes_read), (2 * MIB, 1000));
    assert_eq!((status.requests_in_flight, status.payload_bytes), (0, 0));
}
