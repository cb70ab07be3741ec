use super::client::{MIB, Mode, connect, contexts, haggling, option, option_reply, sent, world};
use crate::fuzz::{World, config};
use std::string::String;
use std::vec;
use std::vec::Vec;

const UNSUP: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const UNKNOWN: u32 = 0x8000_0006;
const TOO_BIG: u32 = 0x8000_0009;
const EXT_HEADER_REQD: u32 = 0x8000_000a;

/// HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN, CACHE, FAST_ZERO.
const FLAGS: u16 = 1 | 4 | 8 | 32 | 64 | 256 | 1024 | 2048;
const DF: u16 = 128;

fn export_info(flags: u16) -> Vec<u8> {
    let mut data = vec![0, 0];
    data.extend((8 * MIB).to_be_bytes());
    data.extend(flags.to_be_bytes());
    data
}

/// Sends options, returns what comes back after each.
fn haggle(options: &[(u32, Vec<u8>)]) -> Vec<Vec<u8>> {
    let mut world = world();
    let id = haggling(&mut world);
    let replies = options
        .iter()
        .map(|(kind, data)| {
            world.feed(id, &option(*kind, data));
            sent(&mut world, id)
        })
        .collect();
    assert!(
        !world.pipes[&id].closed,
        "every refusal leaves the connection usable"
    );
    world.finish();
    replies
}

#[test]
fn the_greeting_is_fixed_newstyle_with_no_zeroes() {
    let mut world = world();
    let id = world.open();
    assert_eq!(sent(&mut world, id), b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn unknown_client_flags_close() {
    for (flags, closes) in [
        (0u32, false),
        (1, false),
        (3, false),
        (4, true),
        (1 << 31, true),
    ] {
        let mut world = world();
        let id = world.open();
        world.feed(id, &flags.to_be_bytes());
        assert_eq!(world.pipes[&id].closed, closes, "flags {flags:x}");
    }
}

#[test]
fn a_wrong_option_magic_closes() {
    let mut world = world();
    let id = haggling(&mut world);
    world.feed(id, b"IHAVEOPX\0\0\0\x03\0\0\0\0");
    assert!(world.pipes[&id].closed);
    world.finish();
}

#[test]
fn options_without_data_are_answered_byte_for_byte() {
    let mut listed = option_reply(3, 2, b"\0\0\0\x03vola volume");
    listed.extend(option_reply(3, 1, &[]));
    for (kind, expected) in [
        (3, listed),
        (5, option_reply(5, UNSUP, &[])),
        (8, option_reply(8, 1, &[])),
        (11, option_reply(11, 1, &[])),
        (4, option_reply(4, UNSUP, &[])),
        (12, option_reply(12, UNSUP, &[])),
        (0xffff_ffff, option_reply(0xffff_ffff, UNSUP, &[])),
        (6, option_reply(6, INVALID, &[])),
        (7, option_reply(7, INVALID, &[])),
    ] {
        assert_eq!(haggle(&[(kind, vec![])]), [expected], "option {kind}");
    }
}

#[test]
fn data_where_none_belongs_is_invalid_and_unknown_options_are_unsupported() {
    for (kind, expected) in [
        (3, INVALID),
        (5, INVALID),
        (8, INVALID),
        (11, INVALID),
        (4, UNSUP),
    ] {
        let replies = haggle(&[(kind, vec![1; 20_000]), (8, vec![])]);
        assert_eq!(
            replies[0],
            option_reply(kind, expected, &[]),
            "option {kind}"
        );
        assert_eq!(
            replies[1],
            option_reply(8, 1, &[]),
            "the next option is found"
        );
    }
}

#[test]
fn overlong_options_are_too_big_and_not_kept() {
    for kind in [6, 7, 9, 10] {
        let replies = haggle(&[(8, vec![]), (kind, vec![0; 8193]), (3, vec![])]);
        assert_eq!(
            replies[1],
            option_reply(kind, TOO_BIG, &[]),
            "option {kind}"
        );
        assert!(!replies[2].is_empty());
    }
}

#[test]
fn info_gives_what_is_asked_for() {
    let ack = option_reply(6, 1, &[]);
    let block_size = b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0";
    let cases: [(&[u8], Vec<&[u8]>); 5] = [
        (b"\0\0\0\x03vol\0\0", vec![]),
        (b"\0\0\0\0\0\x01\0\x03", vec![block_size]),
        (b"\0\0\0\0\0\x01\0\x01", vec![b"\0\x01vol"]),
        (
            b"\0\0\0\x03vol\0\x05\0\x02\0\x03\0\x01\0\x00\x12\x34",
            vec![b"\0\x01vol", b"\0\x02a volume", block_size],
        ),
        (b"\0\0\0\0\0\x02\0\x01\0\x01", vec![b"\0\x01vol"]),
    ];
    for (data, items) in cases {
        let mut expected = option_reply(6, 3, &export_info(FLAGS));
        for item in items {
            expected.extend(option_reply(6, 3, item));
        }
        expected.extend(&ack);
        assert_eq!(haggle(&[(6, data.to_vec())]), [expected], "{data:x?}");
    }
}

#[test]
fn malformed_info_is_invalid_and_a_wrong_name_unknown() {
    let cases: [(&[u8], u32); 8] = [
        (b"\0\0\0", INVALID),
        (b"\0\0\0\x04vol", INVALID),
        (b"\0\0\0\x03vol", INVALID),
        (b"\0\0\0\x03vol\0", INVALID),
        (b"\0\0\0\x03vol\0\x01", INVALID),
        (b"\0\0\0\x03vol\0\0\0", INVALID),
        (b"\xff\xff\xff\xffvol\0\0", INVALID),
        (b"\0\0\0\x03voX\0\0", UNKNOWN),
    ];
    for kind in [6, 7] {
        for (data, error) in cases {
            let replies = haggle(&[(kind, data.to_vec())]);
            assert_eq!(
                replies,
                [option_reply(kind, error, &[])],
                "{kind} {data:x?}"
            );
        }
    }
}

#[test]
fn go_enters_transmission_without_zeroes() {
    let mut world = world();
    let id = haggling(&mut world);
    world.feed(id, &option(8, &[]));
    sent(&mut world, id);
    world.feed(id, &option(7, b"\0\0\0\0\0\0"));
    let mut expected = option_reply(7, 3, &export_info(FLAGS | DF));
    expected.extend(option_reply(7, 1, &[]));
    assert_eq!(sent(&mut world, id), expected);
    world.feed(
        id,
        &super::client::ask(Mode::Structured, super::client::Ask::default()),
    );
    assert_eq!(sent(&mut world, id).len(), 20, "a read of no bytes");
}

#[test]
fn export_name_sends_zeroes_unless_both_sides_agree_not_to() {
    for (client_flags, zeroes) in [(1u8, 124), (3, 0)] {
        for name in ["", "vol"] {
            let mut world = world();
            let id = world.open();
            world.feed(id, &[0, 0, 0, client_flags]);
            sent(&mut world, id);
            world.feed(id, &option(1, name.as_bytes()));
            let mut expected = export_info(FLAGS)[2..].to_vec();
            expected.extend(vec![0; zeroes]);
            assert_eq!(sent(&mut world, id), expected);
        }
    }
}

#[test]
fn export_name_that_cannot_be_granted_closes() {
    for (before, name) in [
        (None, String::from("other")),
        (None, "x".repeat(4097)),
        (Some(11), String::from("vol")),
    ] {
        let mut world = world();
        let id = haggling(&mut world);
        if let Some(kind) = before {
            world.feed(id, &option(kind, &[]));
            sent(&mut world, id);
        }
        world.feed(id, &option(1, name.as_bytes()));
        assert!(world.pipes[&id].closed);
        assert_eq!(sent(&mut world, id), b"");
        world.finish();
    }
}

#[test]
fn abort_is_acknowledged_and_closes_whatever_its_data() {
    for data in [vec![], vec![9; 100_000]] {
        let mut world = world();
        let id = haggling(&mut world);
        world.feed(id, &option(2, &data));
        assert_eq!(sent(&mut world, id), option_reply(2, 1, &[]));
        assert!(world.pipes[&id].closed);
    }
}

#[test]
fn structured_replies_cannot_follow_extended_headers() {
    let replies = haggle(&[(11, vec![]), (8, vec![]), (11, vec![])]);
    assert_eq!(replies[1], option_reply(8, EXT_HEADER_REQD, &[]));
    assert_eq!(replies[2], option_reply(11, 1, &[]));
}

#[test]
fn contexts_need_structured_replies() {
    for kind in [9, 10] {
        let data = contexts("vol", &["base:allocation"]);
        assert_eq!(haggle(&[(kind, data)]), [option_reply(kind, INVALID, &[])]);
    }
}

#[test]
fn contexts_are_listed_and_selected_by_query() {
    let (alloc, dirty) = ("base:allocation", "trilith:dirty");
    type Case<'a> = (u32, &'a str, Vec<&'a str>, Vec<(u32, &'a str)>);
    let cases: [Case<'_>; 12] = [
        (9, "vol", vec![], vec![(0, alloc), (0, dirty)]),
        (9, "", vec!["base:"], vec![(0, alloc)]),
        (9, "vol", vec!["trilith:"], vec![(0, dirty)]),
        (9, "vol", vec![dirty, alloc], vec![(0, alloc), (0, dirty)]),
        (9, "vol", vec!["base:allocation:"], vec![]),
        (9, "vol", vec!["qemu:dirty-bitmap:x"], vec![]),
        (10, "vol", vec![], vec![]),
        (10, "vol", vec!["base:"], vec![]),
        (10, "", vec![alloc], vec![(1, alloc)]),
        (10, "vol", vec![dirty], vec![(2, dirty)]),
        (
            10,
            "vol",
            vec![dirty, alloc, alloc],
            vec![(1, alloc), (2, dirty)],
        ),
        (10, "vol", vec!["base:x", "qemu:allocation-depth"], vec![]),
    ];
    for header in [8, 11] {
        for (kind, name, queries, expected) in &cases {
            let mut bytes = Vec::new();
            for (context, text) in expected {
                let data = [&context.to_be_bytes()[..], text.as_bytes()].concat();
                bytes.extend(option_reply(*kind, 4, &data));
            }
            bytes.extend(option_reply(*kind, 1, &[]));
            let replies = haggle(&[(header, vec![]), (*kind, contexts(name, queries))]);
            assert_eq!(replies[1], bytes, "{kind} {queries:?}");
        }
    }
}

#[test]
fn malformed_context_options_are_refused() {
    let many: Vec<&str> = vec!["base:allocation"; 65];
    let mut short = contexts("vol", &["base:allocation"]);
    short.pop();
    let mut long = contexts("vol", &["base:allocation"]);
    long.push(0);
    let cases = [
        (contexts("other", &[]), UNKNOWN),
        (contexts("vol", &["allocation"]), INVALID),
        (contexts("vol", &many), TOO_BIG),
        (short, INVALID),
        (long, INVALID),
        (b"\0\0\0\x03vol".to_vec(), INVALID),
        (b"\0\0\0\x03vol\xff\xff\xff\xff".to_vec(), INVALID),
    ];
    for kind in [9, 10] {
        for (data, error) in &cases {
            let replies = haggle(&[(8, vec![]), (kind, data.clone())]);
            assert_eq!(
                replies[1],
                option_reply(kind, *error, &[]),
                "{kind} {data:x?}"
            );
        }
    }
}

#[test]
fn a_selection_that_fails_clears_the_one_before() {
    for bad in [contexts("other", &[]), vec![0; 9000]] {
        let mut world = world();
        let id = haggling(&mut world);
        world.feed(id, &option(8, &[]));
        world.feed(id, &option(10, &contexts("vol", &["base:allocation"])));
        world.feed(id, &option(10, &bad));
        world.feed(id, &option(7, b"\0\0\0\0\0\0"));
        sent(&mut world, id);
        let status = super::client::Ask {
            kind: 7,
            len: 4096,
            ..Default::default()
        };
        let reply = super::client::exchange(
            &mut world,
            id,
            &super::client::ask(Mode::Structured, status),
            &[],
        );
        assert_eq!(super::client::error_of(&reply, Mode::Structured), 22);
    }
}

#[test]
fn a_read_only_export_says_so() {
    let mut config = config(8 * MIB);
    config.read_only = true;
    let mut world = World::new(config, MIB);
    let id = haggling(&mut world);
    world.feed(id, &option(6, b"\0\0\0\0\0\0"));
    // HAS_FLAGS, READ_ONLY, FLUSH, FUA, MULTI_CONN, CACHE: no write-like command is offered.
    let mut expected = option_reply(6, 3, &export_info(1 | 2 | 4 | 8 | 256 | 1024));
    expected.extend(option_reply(6, 1, &[]));
    assert_eq!(sent(&mut world, id), expected);
}

#[test]
fn options_arrive_in_pieces() {
    let mut world = world();
    let id = world.open();
    sent(&mut world, id);
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend(option(4, &[1; 50]));
    bytes.extend(option(3, &[]));
    for byte in bytes {
        world.feed(id, &[byte]);
    }
    let mut expected = option_reply(4, UNSUP, &[]);
    expected.extend(option_reply(3, 2, b"\0\0\0\x03vola volume"));
    expected.extend(option_reply(3, 1, &[]));
    assert_eq!(sent(&mut world, id), expected);
}

#[test]
fn configurations_outside_their_limits_are_refused() {
    use crate::{ConfigProblem, NbdServer};
    let mut long_name = config(MIB);
    long_name.export_name = "x".repeat(257);
    let mut nul = config(MIB);
    nul.export_name = String::from("a\0b");
    let mut text = config(MIB);
    text.description = "x".repeat(1025);
    let mut block = config(MIB);
    block.volume.capabilities.block_bytes = 5000;
    for (config, problem) in [
        (long_name, ConfigProblem::ExportName),
        (nul, ConfigProblem::ExportName),
        (text, ConfigProblem::Description),
        (config(17 << 40), ConfigProblem::Capacity),
        (block, ConfigProblem::BlockBytes),
    ] {
        assert_eq!(NbdServer::new(config).err(), Some(problem));
    }
}

#[test]
fn modes_are_reached() {
    let mut world = world();
    for mode in super::client::MODES {
        connect(&mut world, mode);
    }
    assert_eq!(world.server.status().connections, 3);
    world.finish();
}
