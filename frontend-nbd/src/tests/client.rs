//! A client of its own: encodes options and requests, decodes replies, knows nothing of the
//! server's code.

use crate::fuzz::{World, config};
use std::vec::Vec;
use trilith_block::{ConnId, ErrorKind};

pub(super) const MIB: u64 = 1024 * 1024;
/// The same as a length of bytes in memory.
pub(super) const MIB_LEN: usize = 1 << 20;

/// Modes of transmission.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    Simple,
    Structured,
    Extended,
}

pub(super) const MODES: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];

/// A request as a client fills it in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ask {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Encodes a request header.
pub(super) fn ask(mode: Mode, ask: Ask) -> Vec<u8> {
    let extended = mode == Mode::Extended;
    let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
    let flags = if extended && ask.kind == 1 {
        ask.flags | 0x20
    } else {
        ask.flags
    };
    let mut bytes = Vec::new();
    bytes.extend(magic.to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    bytes.extend(ask.kind.to_be_bytes());
    bytes.extend(ask.cookie.to_be_bytes());
    bytes.extend(ask.offset.to_be_bytes());
    if extended {
        bytes.extend(ask.len.to_be_bytes());
    } else {
        bytes.extend(u32::try_from(ask.len).unwrap().to_be_bytes());
    }
    bytes
}

/// Encodes an option.
pub(super) fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Encodes an option reply, as expected from the server.
pub(super) fn option_reply(kind: u32, reply: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend(reply.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Data of a metadata context option.
pub(super) fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend(u32::try_from(query.len()).unwrap().to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

/// Takes what the server has sent.
pub(super) fn sent(world: &mut World, id: ConnId) -> Vec<u8> {
    std::mem::take(&mut world.pipes.get_mut(&id).unwrap().output)
}

/// A world with a volume of 8 MiB.
pub(super) fn world() -> World {
    World::new(config(8 * MIB), 256 * MIB)
}

/// A connection after the client flags.
pub(super) fn haggling(world: &mut World) -> ConnId {
    let id = world.open();
    world.feed(id, &[0, 0, 0, 3]);
    sent(world, id);
    id
}

/// A connection in transmission, with both contexts if the mode allows them.
pub(super) fn connect(world: &mut World, mode: Mode) -> ConnId {
    let id = haggling(world);
    match mode {
        Mode::Simple => {}
        Mode::Structured => world.feed(id, &option(8, &[])),
        Mode::Extended => world.feed(id, &option(11, &[])),
    }
    if mode != Mode::Simple {
        world.feed(
            id,
            &option(10, &contexts("vol", &["base:allocation", "trilith:dirty"])),
        );
    }
    world.feed(id, &option(7, b"\0\0\0\x03vol\0\0"));
    sent(world, id);
    id
}

/// Sends a request with payload, lets the target end everything, returns the reply's bytes.
pub(super) fn exchange(world: &mut World, id: ConnId, header: &[u8], payload: &[u8]) -> Vec<u8> {
    world.feed(id, header);
    world.feed(id, payload);
    world.complete_all();
    sent(world, id)
}

/// The same, with a target that fails everything.
pub(super) fn exchange_failing(
    world: &mut World,
    id: ConnId,
    header: &[u8],
    kind: ErrorKind,
) -> Vec<u8> {
    world.feed(id, header);
    while !world.pending.is_empty() {
        world.complete(0, Some(kind));
    }
    sent(world, id)
}

/// A reply, or a chunk of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Reply {
    pub(super) cookie: u64,
    /// No more chunks follow.
    pub(super) done: bool,
    pub(super) error: u32,
    /// Where the data belongs; 0 in a simple reply.
    pub(super) offset: u64,
    pub(super) data: Vec<u8>,
    /// Chunk type; 0 for a simple reply.
    pub(super) kind: u16,
}

fn be(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Decodes the next reply at the front of `bytes`; `read_len` tells the data length that a simple
/// reply of a cookie has. `None` when more bytes are needed.
pub(super) fn decode(
    bytes: &[u8],
    mode: Mode,
    read_len: impl Fn(u64) -> usize,
) -> Option<(Reply, usize)> {
    let magic = be(bytes.get(..4)?);
    if magic == 0x6744_6698 {
        assert_ne!(mode, Mode::Extended, "simple reply in extended mode");
        let (error, cookie) = (be(bytes.get(4..8)?), be(bytes.get(8..16)?));
        let len = if error == 0 { read_len(cookie) } else { 0 };
        assert!(mode == Mode::Simple || len == 0, "simple reply to a read");
        let data = bytes.get(16..16 + len)?.to_vec();
        let error = u32::try_from(error).unwrap();
        return Some((
            Reply {
                cookie,
                done: true,
                error,
                offset: 0,
                data,
                kind: 0,
            },
            16 + len,
        ));
    }
    let (expected, head, len_at) = match mode {
        Mode::Simple => panic!("chunk {magic:x} in simple mode"),
        Mode::Structured => (0x668e_33ef, 20, 16..20),
        Mode::Extended => (0x6e8a_278c, 32, 24..32),
    };
    assert_eq!(magic, expected);
    let flags = be(bytes.get(4..6)?);
    let kind = u16::try_from(be(bytes.get(6..8)?)).unwrap();
    let cookie = be(bytes.get(8..16)?);
    let len = usize::try_from(be(bytes.get(len_at)?)).unwrap();
    let payload = bytes.get(head..head + len)?;
    let (error, offset, data) = match kind {
        0 => (0, 0, &[][..]),
        1 => (0, be(&payload[..8]), &payload[8..]),
        5 | 6 => (0, 0, payload),
        0x8001 => {
            assert_eq!(usize::try_from(be(&payload[4..6])).unwrap(), len - 6);
            (u32::try_from(be(&payload[..4])).unwrap(), 0, &payload[6..])
        }
        other => panic!("chunk type {other}"),
    };
    let data = data.to_vec();
    Some((
        Reply {
            cookie,
            done: flags == 1,
            error,
            offset,
            data,
            kind,
        },
        head + len,
    ))
}

/// All replies in `bytes`, which must be whole.
pub(super) fn replies(bytes: &[u8], mode: Mode, read_len: usize) -> Vec<Reply> {
    let mut rest = bytes;
    let mut list = Vec::new();
    while !rest.is_empty() {
        let (reply, len) = decode(rest, mode, |_| read_len).expect("whole replies");
        rest = &rest[len..];
        list.push(reply);
    }
    list
}

/// The error of the one reply in `bytes`.
pub(super) fn error_of(bytes: &[u8], mode: Mode) -> u32 {
    let list = replies(bytes, mode, 0);
    assert_eq!(list.len(), 1, "{list:?}");
    assert!(list[0].done);
    list[0].error
}
