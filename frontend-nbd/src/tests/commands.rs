use super::client::{
    Ask, MIB, MIB_LEN, MODES, Mode, ask, connect, contexts, error_of, exchange, exchange_failing,
    haggling, option, replies, sent, world,
};
use crate::fuzz::{World, config};
use crate::{NbdError, NbdServer};
use std::vec;
use std::vec::Vec;
use trilith_block::{ErrorKind, Op, RequestFlags};

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

fn some(kind: u16, offset: u64, len: u64) -> Ask {
    Ask {
        kind,
        flags: 0,
        cookie: 0x1122_3344_5566_7788,
        offset,
        len,
    }
}

/// Eight bytes of the cookie.
const COOKIE: &[u8] = b"\x11\x22\x33\x44\x55\x66\x77\x88";

fn pattern(len: u64, seed: u64) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from((i * 7 + i / 4096 + seed) % 251).unwrap())
        .collect()
}

#[test]
fn a_read_is_answered_byte_for_byte_in_each_mode() {
    for (mode, head) in [
        (Mode::Simple, [b"\x67\x44\x66\x98\0\0\0\0", COOKIE].concat()),
        (
            Mode::Structured,
            [
                b"\x66\x8e\x33\xef\0\x01\0\x01",
                COOKIE,
                b"\0\0\0\x0d\0\0\0\0\0\0\x10\x03",
            ]
            .concat(),
        ),
        (
            Mode::Extended,
            [
                b"\x6e\x8a\x27\x8c\0\x01\0\x01",
                COOKIE,
                b"\0\0\0\0\0\0\x10\x03\0\0\0\0\0\0\0\x0d\0\0\0\0\0\0\x10\x03",
            ]
            .concat(),
        ),
    ] {
        let mut world = world();
        world.volume[0x1003..0x1008].copy_from_slice(b"bytes");
        let id = connect(&mut world, mode);
        let reply = exchange(&mut world, id, &ask(mode, some(READ, 0x1003, 5)), &[]);
        assert_eq!(reply, [&head[..], b"bytes"].concat(), "{mode:?}");
        world.finish();
    }
}

#[test]
fn success_without_data_is_answered_byte_for_byte_in_each_mode() {
    for (mode, expected) in [
        (Mode::Simple, [b"\x67\x44\x66\x98\0\0\0\0", COOKIE].concat()),
        (
            Mode::Structured,
            [b"\x67\x44\x66\x98\0\0\0\0", COOKIE].concat(),
        ),
        (
            Mode::Extended,
            [
                b"\x6e\x8a\x27\x8c\0\x01\0\0",
                COOKIE,
                b"\0\0\0\0\0\0\x20\0\0\0\0\0\0\0\0\0",
            ]
            .concat(),
        ),
    ] {
        for (kind, payload) in [
            (WRITE, &[9; 512][..]),
            (TRIM, &[]),
            (CACHE, &[]),
            (ZEROES, &[]),
        ] {
            let mut world = world();
            let id = connect(&mut world, mode);
            let reply = exchange(&mut world, id, &ask(mode, some(kind, 0x2000, 512)), payload);
            assert_eq!(reply, expected, "{mode:?} command {kind}");
            world.finish();
        }
    }
}

#[test]
fn errors_are_answered_byte_for_byte_in_each_mode() {
    let text = b"\0\0\0\x16\0\x0finvalid request";
    for (mode, expected) in [
        (
            Mode::Simple,
            [b"\x67\x44\x66\x98\0\0\0\x16", COOKIE].concat(),
        ),
        (
            Mode::Structured,
            [
                b"\x66\x8e\x33\xef\0\x01\x80\x01",
                COOKIE,
                b"\0\0\0\x15",
                &text[..],
            ]
            .concat(),
        ),
        (
            Mode::Extended,
            [
                b"\x6e\x8a\x27\x8c\0\x01\x80\x01",
                COOKIE,
                b"\0\0\0\0\0\x80\0\0\0\0\0\0\0\0\0\x15",
                &text[..],
            ]
            .concat(),
        ),
    ] {
        let mut world = world();
        let id = connect(&mut world, mode);
        let reply = exchange(&mut world, id, &ask(mode, some(READ, 8 * MIB, 1)), &[]);
        assert_eq!(reply, expected, "{mode:?}");
        world.finish();
    }
}

#[test]
fn illegal_requests_get_their_error_and_the_connection_stays_usable() {
    let end = 8 * MIB;
    let flagged = |kind, flags| Ask {
        flags,
        ..some(kind, 0, 4096)
    };
    let cases = [
        (some(READ, end, 1), 22),
        (some(READ, end - 1, 2), 22),
        (some(READ, u64::MAX, 2), 22),
        (some(READ, 0, 32 * MIB + 1), 22),
        (some(WRITE, end, 1), 28),
        (some(WRITE, end - 511, 512), 28),
        (some(WRITE, u64::MAX - 1, 512), 28),
        (some(ZEROES, end - 1, 2), 28),
        (some(ZEROES, u64::MAX, 0xffff_ffff), 28),
        (some(TRIM, end - 1, 2), 22),
        (some(CACHE, end, 1), 22),
        (some(FLUSH, 0, 1), 22),
        (some(FLUSH, 1, 0), 22),
        (some(STATUS, 0, 0), 22),
        (some(STATUS, end, 1), 22),
        (some(8, 0, 4096), 22),
        (some(0xffff, 0, 4096), 22),
        (flagged(READ, 2), 22),
        (flagged(READ, 0x8000), 22),
        (flagged(WRITE, 16), 22),
        (flagged(WRITE, 4), 22),
        (flagged(TRIM, 2), 22),
        (flagged(CACHE, 8), 22),
        (flagged(ZEROES, 4), 22),
        (flagged(STATUS, 4), 22),
    ];
    for mode in MODES {
        let mut world = world();
        let id = connect(&mut world, mode);
        for (request, error) in cases {
            let payload = if request.kind == WRITE {
                request.len
            } else {
                0
            };
            let payload = vec![0xee; usize::try_from(payload).unwrap()];
            let reply = exchange(&mut world, id, &ask(mode, request), &payload);
            assert_eq!(error_of(&reply, mode), error, "{mode:?} {request:?}");
            let reply = exchange(&mut world, id, &ask(mode, some(READ, 0, 1)), &[]);
            assert_eq!(
                replies(&reply, mode, 1)[0].data,
                [0],
                "{mode:?} after {request:?}"
            );
        }
        assert_eq!(world.server.status().requests_failed, cases.len() as u64);
        world.finish();
    }
}

#[test]
fn flags_that_were_not_negotiated_are_invalid() {
    let mut world = world();
    let id = connect(&mut world, Mode::Simple);
    for (kind, flags) in [(READ, 4), (STATUS, 0), (READ, 32), (STATUS, 32), (TRIM, 32)] {
        let request = Ask {
            flags,
            ..some(kind, 0, 512)
        };
        let reply = exchange(&mut world, id, &ask(Mode::Simple, request), &[]);
        assert_eq!(error_of(&reply, Mode::Simple), 22, "{request:?}");
    }
    let request = Ask {
        flags: 32,
        ..some(WRITE, 0, 512)
    };
    let reply = exchange(&mut world, id, &ask(Mode::Simple, request), &[0; 512]);
    assert_eq!(error_of(&reply, Mode::Simple), 22);
    world.finish();
}

#[test]
fn extended_payloads_are_thrown_away_where_none_belongs() {
    let mut world = world();
    let id = connect(&mut world, Mode::Extended);
    for kind in [READ, FLUSH, TRIM, CACHE, ZEROES, STATUS, 9] {
        let request = Ask {
            flags: 32,
            ..some(kind, 0, 12)
        };
        let reply = exchange(&mut world, id, &ask(Mode::Extended, request), &[1; 12]);
        assert_eq!(error_of(&reply, Mode::Extended), 22, "command {kind}");
    }
    assert!(!world.pipes[&id].closed);
    world.finish();
}

#[test]
fn an_extended_write_has_its_payload_even_without_the_flag() {
    let mut world = world();
    let id = connect(&mut world, Mode::Extended);
    let mut header = ask(Mode::Extended, some(WRITE, 512, 512));
    header[5] = 0;
    let reply = exchange(&mut world, id, &header, &[6; 512]);
    assert_eq!(error_of(&reply, Mode::Extended), 0);
    assert_eq!(world.volume[512..1024], [6; 512]);
    world.finish();
}

#[test]
fn streams_that_cannot_be_followed_are_closed() {
    for mode in MODES {
        let other = if mode == Mode::Extended {
            Mode::Simple
        } else {
            Mode::Extended
        };
        let mut wrong = ask(mode, some(READ, 0, 512));
        wrong[3] ^= 1;
        let mut bytes = ask(other, some(READ, 0, 512));
        bytes.resize(32, 0);
        for header in [wrong, bytes] {
            let mut world = world();
            let id = connect(&mut world, mode);
            world.feed(id, &header);
            assert!(world.pipes[&id].closed, "{mode:?}");
            world.finish();
        }
    }
    let mut world = world();
    let id = connect(&mut world, Mode::Extended);
    world.feed(id, &ask(Mode::Extended, some(WRITE, 0, 1 << 32)));
    assert!(world.pipes[&id].closed, "a payload that no one should send");
}

#[test]
fn long_writes_are_refused_and_thrown_away() {
    for mode in MODES {
        let mut world = world();
        let id = connect(&mut world, mode);
        world.feed(id, &ask(mode, some(WRITE, 0, 32 * MIB + 1)));
        let piece = vec![1; 1 << 20];
        for _ in 0..32 {
            world.feed(id, &piece);
            assert_eq!(world.arena.live(), 0, "nothing is kept");
        }
        assert_eq!(sent(&mut world, id), b"");
        world.feed(id, &[1]);
        assert_eq!(error_of(&sent(&mut world, id), mode), 22);
        let reply = exchange(&mut world, id, &ask(mode, some(FLUSH, 0, 0)), &[]);
        assert_eq!(error_of(&reply, mode), 0);
        world.finish();
    }
}

#[test]
fn engine_errors_become_protocol_errors() {
    for mode in MODES {
        for kind in ErrorKind::ALL {
            let mut world = world();
            let id = connect(&mut world, mode);
            for (command, flags) in [(READ, 0), (TRIM, 0), (ZEROES, 16), (CACHE, 0), (FLUSH, 0)] {
                let len = if command == FLUSH { 0 } else { 4096 };
                let request = Ask {
                    flags,
                    ..some(command, 0, len)
                };
                let reply = exchange_failing(&mut world, id, &ask(mode, request), kind);
                let expected = NbdError::from_kind(kind, flags == 16).code();
                assert_eq!(
                    error_of(&reply, mode),
                    expected,
                    "{mode:?} {command} {kind:?}"
                );
            }
            world.finish();
        }
    }
}

#[test]
fn flags_reach_the_engine() {
    let all = RequestFlags {
        fua: true,
        no_hole: true,
        fast_zero: true,
    };
    let fua = RequestFlags {
        fua: true,
        ..Default::default()
    };
    let none = RequestFlags::default();
    for mode in MODES {
        for (kind, flags, op, expected) in [
            (READ, 1, Op::Read, none),
            (WRITE, 1, Op::Write, fua),
            (WRITE, 0, Op::Write, none),
            (FLUSH, 1, Op::Flush, none),
            (TRIM, 1, Op::Discard, fua),
            (CACHE, 1, Op::Prefetch, none),
            (ZEROES, 1 | 2 | 16, Op::WriteZeroes, all),
        ] {
            let mut world = world();
            let id = connect(&mut world, mode);
            let len = if kind == FLUSH { 0 } else { 512 };
            world.feed(
                id,
                &ask(
                    mode,
                    Ask {
                        flags,
                        ..some(kind, 0, len)
                    },
                ),
            );
            if kind == WRITE {
                world.feed(id, &[5; 512]);
            }
            let request = world.pending[0];
            assert_eq!((request.op, request.flags), (op, expected), "{mode:?}");
            assert_eq!(request.range.len, len);
            world.finish();
        }
    }
}

#[test]
fn a_read_only_export_refuses_writes() {
    for mode in MODES {
        let mut config = config(8 * MIB);
        config.read_only = true;
        let mut world = World::new(config, 64 * MIB);
        let id = connect(&mut world, mode);
        for (kind, payload) in [(WRITE, &[1; 512][..]), (TRIM, &[]), (ZEROES, &[])] {
            let reply = exchange(&mut world, id, &ask(mode, some(kind, 0, 512)), payload);
            assert_eq!(error_of(&reply, mode), 1, "{mode:?} command {kind}");
        }
        for (kind, len) in [(CACHE, 512), (FLUSH, 0)] {
            let reply = exchange(&mut world, id, &ask(mode, some(kind, 0, len)), &[]);
            assert_eq!(error_of(&reply, mode), 0);
        }
        world.finish();
    }
}

#[test]
fn requests_of_no_bytes_succeed_without_the_engine() {
    for mode in MODES {
        let mut world = world();
        let id = connect(&mut world, mode);
        for kind in [READ, WRITE, TRIM, CACHE, ZEROES] {
            world.feed(id, &ask(mode, some(kind, 8 * MIB, 0)));
            assert!(world.pending.is_empty());
            assert_eq!(
                error_of(&sent(&mut world, id), mode),
                0,
                "{mode:?} command {kind}"
            );
        }
        world.finish();
    }
}

#[test]
fn huge_trims_and_zeroes_are_one_request() {
    let tib = 1 << 40;
    let mut world = World::new(config(2 * tib), MIB);
    let id = connect(&mut world, Mode::Extended);
    for kind in [TRIM, ZEROES] {
        world.feed(id, &ask(Mode::Extended, some(kind, 0, 2 * tib)));
        assert_eq!(world.pending.len(), 1);
        assert_eq!(world.pending[0].range.len, 2 * tib);
        world.complete_all();
        assert_eq!(error_of(&sent(&mut world, id), Mode::Extended), 0);
    }
    world.finish();
}

#[test]
fn a_write_is_received_into_the_buffer_that_the_engine_gets() {
    use trilith_block::{Stream, Want};
    let mut world = world();
    let id = connect(&mut world, Mode::Simple);
    world.feed(id, &ask(Mode::Simple, some(WRITE, 4096, 4096)));
    let want = world.server.want(id, &mut world.arena);
    world.feed(id, &[3; 4096]);
    assert_eq!(Some(want), world.pending[0].data.map(Want::Payload));
    assert_eq!(sent(&mut world, id), b"", "no reply before the engine's");
    world.finish();
}

/// Ends pending requests from the last to the first.
fn complete_backwards(world: &mut World) {
    while let Some(last) = world.pending.len().checked_sub(1) {
        assert!(world.complete(last, None));
    }
}

#[test]
fn long_requests_are_split_and_answered_once() {
    for (offset, len) in [(0, 2 * MIB), (4095, 3 * MIB + 2), (MIB - 1, MIB + 1)] {
        for mode in MODES {
            let mut world = world();
            let id = connect(&mut world, mode);
            let data = pattern(len, offset);
            world.feed(id, &ask(mode, some(WRITE, offset, len)));
            for piece in data.chunks(300_001) {
                world.feed(id, piece);
            }
            assert!(world.pending.len() > 1);
            complete_backwards(&mut world);
            assert_eq!(error_of(&sent(&mut world, id), mode), 0);
            let start = usize::try_from(offset).unwrap();
            assert!(world.volume[start..start + data.len()] == data);
            for flags in if mode == Mode::Simple {
                vec![0]
            } else {
                vec![0, 4]
            } {
                world.feed(
                    id,
                    &ask(
                        mode,
                        Ask {
                            flags,
                            ..some(READ, offset, len)
                        },
                    ),
                );
                let parts = world.pending.len();
                complete_backwards(&mut world);
                let list = replies(&sent(&mut world, id), mode, data.len());
                let whole = mode == Mode::Simple || flags == 4;
                assert_eq!(
                    list.len(),
                    if whole { 1 } else { parts },
                    "{mode:?} {flags}"
                );
                let mut found = vec![0; data.len()];
                for (index, reply) in list.iter().enumerate() {
                    assert_eq!(reply.done, index + 1 == list.len());
                    let at = if mode == Mode::Simple {
                        0
                    } else {
                        reply.offset - offset
                    };
                    let at = usize::try_from(at).unwrap();
                    found[at..at + reply.data.len()].copy_from_slice(&reply.data);
                }
                assert!(found == data, "{mode:?} {flags}");
            }
            world.finish();
        }
    }
}

#[test]
fn one_failed_part_fails_the_request() {
    for mode in MODES {
        for (kind, flags) in [(READ, 0), (READ, 4), (WRITE, 0)] {
            if mode == Mode::Simple && flags == 4 {
                continue;
            }
            let mut world = world();
            let id = connect(&mut world, mode);
            world.feed(
                id,
                &ask(
                    mode,
                    Ask {
                        flags,
                        ..some(kind, 0, 3 * MIB)
                    },
                ),
            );
            if kind == WRITE {
                world.feed(id, &pattern(3 * MIB, 0));
            }
            assert_eq!(world.pending.len(), 3);
            assert!(world.complete(0, None));
            assert!(world.complete(0, Some(ErrorKind::Io)));
            assert!(world.complete(0, None));
            let list = replies(&sent(&mut world, id), mode, 0);
            let last = list.last().unwrap();
            assert_eq!(
                (last.error, last.done),
                (5, true),
                "{mode:?} {kind} {flags}"
            );
            let data: usize = list.iter().map(|reply| reply.data.len()).sum();
            let early = kind == READ && flags == 0 && mode != Mode::Simple;
            assert_eq!(
                data > MIB_LEN,
                early,
                "only a fragmented read sends data early"
            );
            world.finish();
        }
    }
}

#[test]
fn a_write_that_failed_early_is_not_written_further() {
    let mut world = world();
    let id = connect(&mut world, Mode::Structured);
    world.feed(id, &ask(Mode::Structured, some(WRITE, 0, 3 * MIB)));
    world.feed(id, &vec![1; MIB_LEN + 10]);
    assert!(world.complete(0, Some(ErrorKind::NoSpace)));
    world.feed(id, &vec![1; 2 * MIB_LEN - 10]);
    assert!(world.pending.is_empty(), "no part follows the failure");
    assert_eq!(error_of(&sent(&mut world, id), Mode::Structured), 28);
    let reply = exchange(
        &mut world,
        id,
        &ask(Mode::Structured, some(FLUSH, 0, 0)),
        &[],
    );
    assert_eq!(error_of(&reply, Mode::Structured), 0);
    world.finish();
}

#[test]
fn long_unfragmented_reads_overflow() {
    let mut world = World::new(config(64 * MIB), 64 * MIB);
    for mode in [Mode::Structured, Mode::Extended] {
        let id = connect(&mut world, mode);
        let request = Ask {
            flags: 4,
            ..some(READ, 0, 32 * MIB + 512)
        };
        let reply = exchange(&mut world, id, &ask(mode, request), &[]);
        assert_eq!(error_of(&reply, mode), 75);
        let request = Ask {
            flags: 4,
            ..some(READ, 0, 32 * MIB)
        };
        let reply = exchange(&mut world, id, &ask(mode, request), &[]);
        assert_eq!(replies(&reply, mode, 0)[0].data.len(), 32 << 20);
    }
    world.finish();
}

#[test]
fn a_long_prefetch_is_a_hint_for_its_start() {
    let mut world = World::new(config(1 << 40), MIB);
    let id = connect(&mut world, Mode::Extended);
    world.feed(id, &ask(Mode::Extended, some(CACHE, 0, 1 << 40)));
    assert_eq!(world.pending.len(), 32);
    world.complete_all();
    assert_eq!(error_of(&sent(&mut world, id), Mode::Extended), 0);
    world.finish();
}

#[test]
fn block_status_is_answered_byte_for_byte() {
    // The target: 64 KiB records, odd ones dirty, odd MiB holes; three records at most.
    let structured = [
        b"\x66\x8e\x33\xef\0\0\0\x05",
        COOKIE,
        b"\0\0\0\x14\0\0\0\x01\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\x03",
        b"\x66\x8e\x33\xef\0\x01\0\x05",
        COOKIE,
        b"\0\0\0\x1c\0\0\0\x02\0\x01\0\0\0\0\0\x01\0\x01\0\0\0\0\0\0",
    ];
    let request = some(STATUS, 15 * 65536, 10 * 65536);
    let mut world = world();
    let id = connect(&mut world, Mode::Structured);
    let reply = exchange(&mut world, id, &ask(Mode::Structured, request), &[]);
    let mut expected = structured.concat();
    // Allocation: one used record, then two hole records merged.
    expected[20 + 4 + 8..20 + 4 + 12].copy_from_slice(&0x2_0000u32.to_be_bytes());
    // Dirty: dirty, clean, dirty.
    expected.extend(b"\0\x01\0\0\0\0\0\x01");
    assert_eq!(reply, expected);
    let one = Ask {
        flags: 8,
        ..request
    };
    let list = replies(
        &exchange(&mut world, id, &ask(Mode::Structured, one), &[]),
        Mode::Structured,
        0,
    );
    assert_eq!(list[0].data, b"\0\0\0\x01\0\x01\0\0\0\0\0\0");
    assert_eq!(list[1].data, b"\0\0\0\x02\0\x01\0\0\0\0\0\x01");

    let id = connect(&mut world, Mode::Extended);
    let reply = exchange(&mut world, id, &ask(Mode::Extended, one), &[]);
    let list = replies(&reply, Mode::Extended, 0);
    assert_eq!(
        (list[0].kind, list[1].kind, list[0].done, list[1].done),
        (6, 6, false, true)
    );
    assert_eq!(
        list[0].data,
        b"\0\0\0\x01\0\0\0\x01\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0"
    );
    assert_eq!(
        list[1].data,
        b"\0\0\0\x02\0\0\0\x01\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\x01"
    );
    world.finish();
}

#[test]
fn block_status_answers_for_the_selected_contexts_only() {
    for (query, id_byte) in [("base:allocation", 1), ("trilith:dirty", 2)] {
        let mut world = world();
        let id = haggling(&mut world);
        world.feed(id, &option(8, &[]));
        world.feed(id, &option(10, &contexts("vol", &[query])));
        world.feed(id, &option(7, b"\0\0\0\x03vol\0\0"));
        sent(&mut world, id);
        let reply = exchange(
            &mut world,
            id,
            &ask(Mode::Structured, some(STATUS, 0, 512)),
            &[],
        );
        let list = replies(&reply, Mode::Structured, 0);
        assert_eq!(
            (list.len(), list[0].done, list[0].data[3]),
            (1, true, id_byte)
        );
        world.finish();
    }
}

#[test]
fn block_status_that_fails_has_one_error_chunk() {
    for mode in [Mode::Structured, Mode::Extended] {
        let mut world = world();
        let id = connect(&mut world, mode);
        let request = ask(mode, some(STATUS, 0, 4096));
        let reply = exchange_failing(&mut world, id, &request, ErrorKind::Io);
        assert_eq!(error_of(&reply, mode), 5);
        world.finish();
    }
}

#[test]
fn wrong_outcomes_of_the_engine_become_io_errors() {
    use trilith_block::{Buffers, Completion, FrontendEvent, Outcome, Tag};
    for mode in [Mode::Structured, Mode::Extended] {
        for kind in [READ, STATUS] {
            let mut world = world();
            let id = connect(&mut world, mode);
            world.feed(id, &ask(mode, some(kind, 0, 4096)));
            let tag = world.pending.remove(0).tag;
            let result = Ok(Outcome::Done);
            world.event(FrontendEvent::Complete(Completion { tag, result }));
            assert_eq!(error_of(&sent(&mut world, id), mode), 5);
            // Again, and for a request that never was: swallowed, the buffer comes back.
            for tag in [tag, Tag(u64::MAX), Tag(77)] {
                let slice = world.arena.alloc(512).unwrap();
                let result = Ok(Outcome::Data(slice));
                world.event(FrontendEvent::Complete(Completion { tag, result }));
            }
            assert_eq!(sent(&mut world, id), b"");
            world.finish();
        }
    }
}

#[test]
fn replies_come_as_requests_end() {
    let mut world = world();
    let id = connect(&mut world, Mode::Simple);
    for cookie in 0..4 {
        world.feed(
            id,
            &ask(
                Mode::Simple,
                Ask {
                    cookie,
                    ..some(READ, cookie * 512, 512)
                },
            ),
        );
    }
    complete_backwards(&mut world);
    let cookies: Vec<u64> = replies(&sent(&mut world, id), Mode::Simple, 512)
        .iter()
        .map(|r| r.cookie)
        .collect();
    assert_eq!(cookies, [3, 2, 1, 0]);
    world.finish();
}

#[test]
fn the_server_can_be_debugged() {
    let server = NbdServer::new(config(MIB)).unwrap();
    assert!(std::format!("{server:?}").contains("vol"));
}
