//! An initiator of its own: encodes requests, decodes responses, knows nothing of the target's
//! code.

use crate::config::IscsiConfig;
use crate::fuzz::{World, pdu};
use std::string::{String, ToString};
use std::vec::Vec;

pub(super) const NAME: &str = "iqn.2026-11.io.trilith:client";

/// A PDU of the target.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) head: [u8; 48],
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn opcode(&self) -> u8 {
        self.head[0] & 0x3f
    }

    pub(super) fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.head[at..at + 4].try_into().unwrap())
    }

    /// Sense key, code and qualifier of a response with fixed sense data.
    pub(super) fn sense(&self) -> (u8, u8, u8) {
        (self.body[4], self.body[14], self.body[15])
    }
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) status: u8,
    pub(super) data: Vec<u8>,
    pub(super) sense: Option<(u8, u8, u8)>,
    /// Positive: underflow, negative: overflow.
    pub(super) residual: i64,
}

/// A session on one connection.
pub(super) struct Client {
    pub(super) conn: u64,
    pub(super) cmd_sn: u32,
    pub(super) itt: u32,
    pub(super) digests: bool,
}

pub(super) fn text(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in pairs {
        bytes.extend_from_slice(std::format!("{key}={value}\0").as_bytes());
    }
    bytes
}

/// A login request in stage `current` that wants to go to `next`, if anywhere.
pub(super) fn login_request(current: u8, next: Option<u8>, isid: u8, body: &[u8]) -> Vec<u8> {
    let mut head = [0; 48];
    head[0] = 0x43;
    head[1] = current << 2 | next.map_or(0, |next| 0x80 | next);
    head[8..14].copy_from_slice(&[0x80, 0, 0, 0, 0, isid]);
    head[27] = 1;
    pdu(head, body)
}

/// The PDUs in a stream.
pub(super) fn answers(mut bytes: &[u8], digests: bool) -> Vec<Answer> {
    let digest = if digests { 4 } else { 0 };
    let mut list = Vec::new();
    while !bytes.is_empty() {
        let head: [u8; 48] = bytes[..48].try_into().unwrap();
        if digests {
            check(&bytes[..48], &bytes[48..52]);
        }
        bytes = &bytes[48 + digest..];
        let len = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        let padded = len.next_multiple_of(4);
        let body = bytes[..len].to_vec();
        if digests && len > 0 {
            check(&bytes[..padded], &bytes[padded..padded + 4]);
            bytes = &bytes[4..];
        }
        bytes = &bytes[padded..];
        list.push(Answer { head, body });
    }
    list
}

fn check(bytes: &[u8], digest: &[u8]) {
    assert_eq!(crc32c::crc32c(bytes).to_le_bytes(), digest);
}

/// Text of an answer as pairs.
pub(super) fn pairs(body: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8(body.to_vec()).unwrap();
    let pieces = text.split('\0').filter(|piece| !piece.is_empty());
    pieces
        .map(|piece| {
            let (key, value) = piece.split_once('=').unwrap();
            (key.to_string(), value.to_string())
        })
        .collect()
}

pub(super) fn world(change: impl FnOnce(&mut IscsiConfig)) -> World {
    let mut config = crate::fuzz::config();
    change(&mut config);
    World::new(config)
}

impl Client {
    /// Logs in on a new connection; the unit attention is still there.
    pub(super) fn login(world: &mut World, conn: u64, isid: u8, more: &[(&str, &str)]) -> Client {
        world.open(conn);
        let mut keys = std::vec![
            ("InitiatorName", NAME),
            ("TargetName", "iqn.2026-11.io.trilith:test"),
            ("SessionType", "Normal"),
        ];
        keys.extend_from_slice(more);
        let digests = more.iter().any(|(_, value)| *value == "CRC32C");
        world.push(conn, &login_request(1, Some(3), isid, &text(&keys)));
        let list = answers(&world.sent(conn), false);
        assert_eq!((list.len(), list[0].opcode()), (1, 0x23));
        assert_eq!(&list[0].head[36..38], &[0, 0], "login status");
        Client {
            conn,
            cmd_sn: 1,
            itt: 0,
            digests,
        }
    }

    /// Logs in and takes the unit attention.
    pub(super) fn ready(world: &mut World, conn: u64, isid: u8) -> Client {
        let mut client = Client::login(world, conn, isid, &[]);
        assert_eq!(client.run(world, &[0; 6], 0, &[]).sense, Some((6, 0x29, 0)));
        client
    }

    /// As `ready`, while the unit is not.
    pub(super) fn ready_in(world: &mut World, conn: u64, isid: u8) -> Client {
        let mut client = Client::login(world, conn, isid, &[]);
        let head = client.command(&[0; 6], 0x80, 0);
        client.push(world, head, &[]);
        client.take(world);
        client
    }

    pub(super) fn encode(&self, head: [u8; 48], body: &[u8]) -> Vec<u8> {
        let bytes = pdu(head, body);
        if !self.digests {
            return bytes;
        }
        let mut coded = bytes[..48].to_vec();
        coded.extend(crc32c::crc32c(&bytes[..48]).to_le_bytes());
        if !body.is_empty() {
            coded.extend(&bytes[48..]);
            coded.extend(crc32c::crc32c(&bytes[48..]).to_le_bytes());
        }
        coded
    }

    pub(super) fn push(&self, world: &mut World, head: [u8; 48], body: &[u8]) {
        world.push(self.conn, &self.encode(head, body));
    }

    pub(super) fn take(&self, world: &mut World) -> Vec<Answer> {
        answers(&world.sent(self.conn), self.digests)
    }

    /// The header of a SCSI command.
    pub(super) fn command(&mut self, cdb: &[u8], flags: u8, expected: usize) -> [u8; 48] {
        let mut head = [0; 48];
        self.itt += 1;
        head[0] = 1;
        head[1] = flags;
        head[16..20].copy_from_slice(&self.itt.to_be_bytes());
        head[20..24].copy_from_slice(&u32::try_from(expected).unwrap().to_be_bytes());
        head[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        head[32..32 + cdb.len()].copy_from_slice(cdb);
        self.cmd_sn += 1;
        head
    }

    /// Sends a command with its data, answers R2Ts, and returns what came of it. `reads`: bytes
    /// expected.
    pub(super) fn run(&mut self, world: &mut World, cdb: &[u8], reads: usize, data: &[u8]) -> Done {
        let immediate = data.len().min(2048);
        let flags =
            0x80 | if reads > 0 { 0x40 } else { 0 } | if data.is_empty() { 0 } else { 0x20 };
        let head = self.command(cdb, flags, reads.max(data.len()));
        self.push(world, head, &data[..immediate]);
        let mut received = Vec::new();
        let mut rounds = 0;
        loop {
            rounds += 1;
            assert!(rounds < 4000, "no end of {cdb:02x?}");
            for answer in self.take(world) {
                match answer.opcode() {
                    0x31 => self.send_burst(world, &answer, data),
                    0x25 => {
                        assert_eq!(answer.word(40) as usize, received.len(), "data in order");
                        received.extend_from_slice(&answer.body);
                        if answer.head[1] & 1 != 0 {
                            return done(&answer, received);
                        }
                    }
                    0x21 => return done(&answer, received),
                    other => panic!("opcode {other:02x}"),
                }
            }
            world.complete_all();
            world.now = world.now.after(core::time::Duration::from_millis(40));
            world.settle();
        }
    }

    fn send_burst(&self, world: &mut World, r2t: &Answer, data: &[u8]) {
        let (offset, len) = (r2t.word(40) as usize, r2t.word(44) as usize);
        let mut at = 0;
        let mut serial = 0u32;
        while at < len {
            let step = (len - at).min(65_536);
            let mut head = [0; 48];
            head[0] = 5;
            head[1] = if at + step == len { 0x80 } else { 0 };
            head[16..24].copy_from_slice(&r2t.head[16..24]);
            head[36..40].copy_from_slice(&serial.to_be_bytes());
            let place = u32::try_from(offset + at).unwrap();
            head[40..44].copy_from_slice(&place.to_be_bytes());
            self.push(world, head, &data[offset + at..offset + at + step]);
            at += step;
            serial += 1;
        }
    }
}

pub(super) fn done(answer: &Answer, data: Vec<u8>) -> Done {
    let count = i64::from(answer.word(44));
    let residual = match answer.head[1] & 6 {
        0 => 0,
        2 => count,
        _ => -count,
    };
    let status = answer.head[3];
    Done {
        status,
        data,
        sense: (status == 2).then(|| answer.sense()),
        residual,
    }
}

/// READ 10 or WRITE 10 and its relatives.
pub(super) fn cdb10(opcode: u8, flags: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = opcode;
    cdb[1] = flags;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// READ 16 or WRITE 16 and its relatives.
pub(super) fn cdb16(opcode: u8, flags: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[1] = flags;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// The lowest byte of a number.
pub(super) fn low(number: u64) -> u8 {
    number.to_le_bytes()[0]
}
