//! Random requests, ack orders and absences against a plain array.

use super::world::World;
use crate::Mode;
use crate::rng::Rng;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;
use trilith_block::{ByteRange, Op, RequestFlags};

const SPACE: u64 = 9 * 4096;
/// So that the range crosses an extent.
const BASE: u64 = (4 << 20) - 4 * 4096;

/// What each byte may hold: the value of the last completed write and of any later one submitted.
struct Model {
    bytes: Vec<Vec<u8>>,
    writes: BTreeMap<u64, (u64, u64, u8)>,
}

impl Model {
    fn submit(&mut self, tag: u64, at: u64, len: u64, value: u8) {
        for byte in at..at + len {
            self.bytes[usize::try_from(byte).unwrap()].push(value);
        }
        self.writes.insert(tag, (at, len, value));
    }

    /// Values that were possible before a completed write and are not of writes still open are
    /// gone.
    fn complete(&mut self, tag: u64) {
        let (at, len, value) = self.writes.remove(&tag).unwrap();
        for byte in at..at + len {
            let open: Vec<u8> = self
                .writes
                .values()
                .filter(|(a, l, _)| *a <= byte && byte < a + l)
                .map(|(_, _, v)| *v)
                .collect();
            let slot = &mut self.bytes[usize::try_from(byte).unwrap()];
            // Completed writes that overlapped this one in time may have come after it.
            let from = slot.iter().position(|v| *v == value).unwrap_or(0);
            let later: Vec<u8> = slot[from..].to_vec();
            slot.retain(|v| open.contains(v) || later.contains(v));
        }
    }

    fn check(&self, seed: u8, at: u64, found: &[u8]) {
        for (byte, found) in (at..).zip(found) {
            let allowed = &self.bytes[usize::try_from(byte).unwrap()];
            assert!(
                allowed.contains(found),
                "seed {seed}: byte {byte}: found {found}, allowed {allowed:?}"
            );
        }
    }
}

fn run(seed: u8, faults: bool) {
    let mut rng = Rng::new(&[seed; 32]);
    let mut w = World::new(3);
    w.wait_mode(Mode::Healthy);
    let mut model = Model {
        bytes: vec![vec![0]; usize::try_from(SPACE).unwrap()],
        writes: BTreeMap::new(),
    };
    for fake in &mut w.fakes {
        fake.ack_by_hand = true;
    }
    let mut value = 0u8;
    let mut absent: Option<usize> = None;
    for _ in 0..400 {
        match rng.next() % 8 {
            0..3 if model.writes.len() < 12 => {
                let at = rng.next() % SPACE;
                let len = 1 + rng.next() % (SPACE - at).min(9000);
                value = value % 250 + 1;
                let range = ByteRange::new(BASE + at, len);
                let (op, value) = if rng.next().is_multiple_of(5) {
                    (Op::Discard, 0)
                } else {
                    (Op::Write, value)
                };
                let bytes = vec![value; usize::try_from(len).unwrap()];
                let data = (op == Op::Write).then_some(&bytes[..]);
                let tag = w.submit_full(op, range, RequestFlags::default(), data);
                model.submit(tag, at, len, value);
            }
            3 => {
                let at = rng.next() % SPACE;
                let len = 1 + rng.next() % (SPACE - at);
                if model.writes.is_empty() {
                    let found = w.bytes(BASE + at, len);
                    model.check(seed, at, &found);
                }
            }
            4 if faults => match absent.take() {
                Some(at) => w.heal(at),
                None => {
                    let at = usize::try_from(rng.next() % 3).unwrap();
                    w.isolate(at);
                    absent = Some(at);
                }
            },
            _ => {
                let at = usize::try_from(rng.next() % 3).unwrap();
                let count = w.fakes[at].pending.len();
                if count > 0 {
                    w.ack_one(at, usize::try_from(rng.next() % count as u64).unwrap());
                }
            }
        }
        w.run(if faults && rng.next().is_multiple_of(40) {
            4_000
        } else {
            1
        });
        for (tag, answer) in core::mem::take(&mut w.answers) {
            assert_eq!(answer, Ok(Vec::new()));
            model.complete(tag);
        }
    }
    if let Some(at) = absent {
        w.heal(at);
    }
    for at in 0..3 {
        w.fakes[at].ack_by_hand = false;
        while !w.fakes[at].pending.is_empty() {
            w.ack_one(at, 0);
        }
    }
    w.run(100);
    let open: Vec<u64> = model.writes.keys().copied().collect();
    for tag in open {
        assert_eq!(w.answer(tag), Ok(Vec::new()));
        model.complete(tag);
    }
    let found = w.bytes(BASE, SPACE);
    model.check(seed, 0, &found);
    w.wait_mode(Mode::Healthy);
    w.run(5_000);
    let range = trilith_block::BlockRange::new(trilith_block::Lba(0), trilith_block::Blocks(1100));
    let first = w.fakes[0].content(range);
    for fake in &w.fakes[1..] {
        assert!(
            fake.content(range) == first,
            "seed {seed}: member {} differs",
            fake.member
        );
    }
    w.stop();
}

#[test]
fn unaligned_writes_in_any_ack_order_are_like_an_array() {
    for seed in 0..30 {
        run(seed, false);
    }
}

#[test]
fn unaligned_writes_with_members_coming_and_going_are_like_an_array() {
    for seed in 100..140 {
        run(seed, true);
    }
}
