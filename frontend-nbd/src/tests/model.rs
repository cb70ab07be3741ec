//! Random clients with streams cut anywhere, a target that ends requests in any order with a little
//! memory and some errors, and a plain model of the volume.

use super::client::{Ask, MIB, MODES, Mode, ask, connect, decode};
use super::fuzzing::Random;
use crate::fuzz::{World, config};
use std::collections::{BTreeMap, VecDeque};
use std::vec;
use std::vec::Vec;
use trilith_block::{ConnId, ErrorKind};

const VOLUME: u64 = 6 * MIB;

/// A request whose reply is not complete.
struct Flying {
    ask: Ask,
    data: Vec<u8>,
    /// What a read has brought so far, and how many bytes.
    found: Vec<u8>,
    found_len: usize,
}

struct Client {
    id: ConnId,
    mode: Mode,
    /// Bytes not yet handed to the network.
    unsent: VecDeque<u8>,
    flying: BTreeMap<u64, Flying>,
}

struct Model {
    world: World,
    random: Random,
    clients: Vec<Client>,
    /// `None`: a failed write may or may not have happened there.
    shadow: Vec<Option<u8>>,
    cookie: u64,
    ended: usize,
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

impl Model {
    fn overlaps(&self, ask: &Ask) -> bool {
        self.clients
            .iter()
            .flat_map(|client| client.flying.values())
            .any(|other| {
                ask.offset < other.ask.offset + other.ask.len
                    && other.ask.offset < ask.offset + ask.len
            })
    }

    fn request(&mut self, index: usize) {
        let random = &mut self.random;
        let len = match random.below(8) {
            0 => random.below(3 * MIB),
            1..=4 => 4096 * (1 + random.below(8)),
            _ => random.below(9000),
        }
        .max(1);
        let offset = random.below(VOLUME - len);
        let offset = if random.below(2) == 0 {
            offset & !4095
        } else {
            offset
        };
        let kind = [0, 0, 0, 1, 1, 1, 3, 4, 5, 6, 7][at(random.below(11))];
        let mode = self.clients[index].mode;
        let mut flags = u16::try_from(random.below(2)).unwrap();
        if mode != Mode::Simple && kind == 0 {
            flags |= [0, 4][at(random.below(2))];
        }
        let (offset, len) = if kind == 3 { (0, 0) } else { (offset, len) };
        self.cookie += 1;
        let ask_for = Ask {
            kind,
            flags,
            cookie: self.cookie,
            offset,
            len,
        };
        if self.overlaps(&ask_for) || (kind == 7 && mode == Mode::Simple) {
            return;
        }
        let data: Vec<u8> = if kind == 1 {
            (0..len)
                .map(|i| (self.cookie.wrapping_mul(31) + i / 3).to_le_bytes()[0])
                .collect()
        } else {
            Vec::new()
        };
        let client = &mut self.clients[index];
        client.unsent.extend(ask(mode, ask_for));
        client.unsent.extend(&data);
        let found = vec![0; if kind == 0 { at(len) } else { 0 }];
        client.flying.insert(
            self.cookie,
            Flying {
                ask: ask_for,
                data,
                found,
                found_len: 0,
            },
        );
    }

    fn send(&mut self, index: usize) {
        let most = [1, 7, 28, 40, 5000, 2_000_000][at(self.random.below(6))];
        let client = &mut self.clients[index];
        let count = at(self.random.below(most) + 1).min(client.unsent.len());
        let bytes: Vec<u8> = client.unsent.drain(..count).collect();
        self.world.feed(client.id, &bytes);
    }

    fn complete(&mut self) {
        if self.world.pending.is_empty() {
            return;
        }
        let index = at(self.random.below(self.world.pending.len() as u64));
        let error = (self.random.below(30) == 0).then_some(ErrorKind::Io);
        self.world.complete(index, error);
    }

    fn receive(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let (mode, id) = (client.mode, client.id);
        let mut output = std::mem::take(&mut self.world.pipes.get_mut(&id).unwrap().output);
        let mut used = 0;
        loop {
            let flying = &client.flying;
            let next = decode(&output[used..], mode, |cookie| flying[&cookie].found.len());
            let Some((reply, len)) = next else { break };
            used += len;
            let flying = client
                .flying
                .get_mut(&reply.cookie)
                .expect("a reply to a request");
            if flying.ask.kind == 0 && reply.error == 0 {
                let start = if mode == Mode::Simple {
                    flying.ask.offset
                } else {
                    reply.offset
                };
                let start = at(start - flying.ask.offset);
                flying.found[start..start + reply.data.len()].copy_from_slice(&reply.data);
                flying.found_len += reply.data.len();
                let whole = flying.ask.flags & 4 == 0 || reply.data.len() == at(flying.ask.len);
                assert!(whole, "an unfragmented read came in fragments");
            }
            if reply.done {
                let flying = client.flying.remove(&reply.cookie).unwrap();
                ended(&mut self.shadow, &flying, reply.error);
                self.ended += 1;
            }
        }
        // Keep what is not a whole reply yet (there is none: sends are whole).
        output.drain(..used);
        assert!(output.is_empty(), "half a reply is left");
    }
}

fn ended(shadow: &mut [Option<u8>], flying: &Flying, error: u32) {
    let range = at(flying.ask.offset)..at(flying.ask.offset + flying.ask.len);
    assert!(
        error == 0 || error == 5,
        "{:?} failed with {error}",
        flying.ask
    );
    match flying.ask.kind {
        0 if error == 0 => {
            assert_eq!(flying.found_len as u64, flying.ask.len);
            let same = |(found, known): (&u8, &Option<u8>)| known.is_none_or(|k| k == *found);
            assert!(
                flying.found.iter().zip(&shadow[range]).all(same),
                "{:?}",
                flying.ask
            );
        }
        1 if error == 0 => {
            for (known, byte) in shadow[range].iter_mut().zip(&flying.data) {
                *known = Some(*byte);
            }
        }
        4 | 6 if error == 0 => shadow[range].fill(Some(0)),
        1 | 4 | 6 => shadow[range].fill(None),
        _ => {}
    }
}

fn run(seed: u64) -> usize {
    let mut world = World::new(config(VOLUME), 40 * MIB);
    let clients = (0..4)
        .map(|index| {
            let mode = MODES[(index + at(seed)) % 3];
            let id = connect(&mut world, mode);
            Client {
                id,
                mode,
                unsent: VecDeque::new(),
                flying: BTreeMap::new(),
            }
        })
        .collect();
    let shadow = vec![Some(0); at(VOLUME)];
    let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut model = Model {
        world,
        random,
        clients,
        shadow,
        cookie: 0,
        ended: 0,
    };
    for _ in 0..600 {
        let index = at(model.random.below(4));
        match model.random.below(8) {
            0 | 1 => model.request(index),
            2..=4 => model.send(index),
            5 | 6 => model.complete(),
            _ => model.receive(index),
        }
    }
    while model.clients.iter().any(|client| !client.flying.is_empty()) {
        for index in 0..4 {
            model.send(index);
            model.receive(index);
        }
        model.complete();
    }
    model.world.finish();
    model.ended
}

#[test]
fn random_clients_see_one_disk_and_every_buffer_returns() {
    let ended: usize = (1..=24).map(run).sum();
    assert!(ended > 1000, "only {ended} requests");
}
