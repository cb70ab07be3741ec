//! Random entries, completions in any order, cut sessions, crashes: in the end the volume holds
//! what a plain list of entries applied in idx order gives, and no ack was ever taken back.

use super::rig::{E1, Rig, acked};
use crate::store::{DiskOp, FileRole};
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;
use trilith_block::{ConnId, Idx, MemberSet, Term};
use trilith_wire::{Append, EntryOp, Message};

const LBAS: u64 = 12;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// What the engine remembers of an entry.
#[derive(Clone, Copy)]
enum Sent {
    Write(Append<'static>, u8),
    Flush,
    Sync(u32),
}

struct World {
    rig: Rig,
    random: Random,
    conn: ConnId,
    sent: BTreeMap<u64, Sent>,
    next: u64,
    epoch: u32,
    acked: BTreeSet<u64>,
    upto: u64,
    flushed: u64,
    tidx: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rig = Rig::with_ring(8 << 20, 16);
        let conn = rig.active();
        World {
            rig,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            conn,
            sent: BTreeMap::new(),
            next: 1,
            epoch: 0,
            acked: BTreeSet::new(),
            upto: 0,
            flushed: 0,
            tidx: 0,
        }
    }

    /// One of three places, so that extents differ and ranges overlap.
    fn lba(&mut self) -> u64 {
        [0, 1020, 3000][usize::try_from(self.random.below(3)).unwrap()]
            + self.random.below(LBAS / 3)
    }

    fn issue(&mut self) {
        if self.next > self.tidx + 50 {
            return;
        }
        let idx = self.next;
        self.next += 1;
        let sent = match self.random.below(12) {
            0 => Sent::Flush,
            1 => {
                self.epoch += 1;
                Sent::Sync(self.epoch)
            }
            kind => {
                let lba = self.lba();
                let room = 1024 - u32::try_from(lba % 1024).unwrap();
                let blocks = (1 + u32::try_from(self.random.below(3)).unwrap()).min(room);
                let op = match kind {
                    2 => EntryOp::Zeroes,
                    3 => EntryOp::Discard,
                    _ => EntryOp::Write,
                };
                let fill = 1 + u8::try_from(self.random.below(250)).unwrap();
                Sent::Write(
                    Append {
                        op,
                        ..Rig::entry(1, idx, lba, blocks)
                    },
                    fill,
                )
            }
        };
        self.sent.insert(idx, sent);
        self.transmit(idx, sent, false);
    }

    fn transmit(&mut self, idx: u64, sent: Sent, resend: bool) {
        let (term, tidx) = (Term(1), Idx(self.tidx));
        match sent {
            Sent::Write(append, fill) => {
                self.rig.write(
                    self.conn,
                    Append {
                        resend,
                        tidx,
                        ..append
                    },
                    fill,
                );
            }
            Sent::Flush => {
                let frame = Message::Flush {
                    term,
                    idx: Idx(idx),
                    tidx,
                    sent_at: 0,
                };
                self.rig.queue_frame(self.conn, &frame, &[]);
            }
            Sent::Sync(n) => {
                let all = MemberSet(7);
                let (iss, trk, idx) = (all, all, Idx(idx));
                let frame = Message::SyncSet {
                    term,
                    idx,
                    n,
                    iss,
                    trk,
                    tidx,
                    join: None,
                };
                self.rig.queue_frame(self.conn, &frame, &[]);
            }
        }
    }

    fn hear(&mut self) {
        let frames = self.rig.frames(self.conn);
        if let Some((upto, further)) = acked(&frames) {
            assert!(
                upto >= self.upto,
                "upto went back from {} to {upto}",
                self.upto
            );
            self.upto = upto;
            self.acked.extend(further);
        }
        for (message, _) in &frames {
            match message {
                Message::FlushDone { idx, .. } => {
                    assert!(self.rig.state().w >= *idx, "told before it was durable");
                    self.flushed = self.flushed.max(idx.0);
                }
                Message::Ack { .. } | Message::SyncSetDone { .. } => {}
                other => panic!("unexpected {other:?}, {:?}", self.rig.state()),
            }
        }
    }

    fn reconnect(&mut self) {
        let (conn, state) = self.rig.login(E1);
        self.conn = conn;
        assert!(
            state.upto.0 >= self.upto,
            "{:?} after an ack of {}",
            state.upto,
            self.upto
        );
        assert!(!state.flags.tainted);
        self.upto = state.upto.0;
        let rest: Vec<(u64, Sent)> = self
            .sent
            .range(state.upto.0 + 1..)
            .map(|(i, s)| (*i, *s))
            .collect();
        for (idx, sent) in rest {
            self.transmit(idx, sent, true);
        }
    }

    fn check(&mut self) {
        let mut model: BTreeMap<u64, u8> = BTreeMap::new();
        for sent in self.sent.values() {
            if let Sent::Write(append, fill) = sent {
                let fill = if append.op == EntryOp::Write {
                    *fill
                } else {
                    0
                };
                for block in append.range.start.0..append.range.end().0 {
                    model.insert(block, fill);
                }
            }
        }
        for (lba, fill) in model {
            assert_eq!(self.rig.filled(lba), fill, "block {lba}");
        }
    }

    fn act(&mut self) {
        match self.random.below(40) {
            0..=19 => self.issue(),
            20..=33 => {
                let len = u64::try_from(self.rig.queue.len()).unwrap();
                if len > 0 {
                    let at = usize::try_from(self.random.below(len)).unwrap();
                    self.rig.complete(at);
                }
            }
            34 | 35 => self.tidx = self.upto,
            36 | 37 => {
                self.rig.run();
                self.hear();
                self.rig.disconnect(self.conn);
                self.reconnect();
            }
            38 => {
                self.rig.run();
                self.hear();
                let land = self.random.below(2) == 0;
                self.rig.crash(land);
                assert!(self.rig.opened.is_some_and(|o| o.resumed));
                self.rig.hold = true;
                self.reconnect();
            }
            _ => {
                self.rig.run();
                self.hear();
            }
        }
    }
}

fn play(seed: u64) {
    let mut world = World::new(seed);
    world.rig.hold = true;
    for _ in 0..300 {
        world.act();
    }
    world.rig.hold = false;
    world.rig.run();
    world.hear();
    assert_eq!(
        world.upto,
        world.next - 1,
        "everything is accepted in the end"
    );
    for idx in &world.acked {
        assert!(*idx <= world.upto);
    }
    world.check();
    world.rig.stop();
}

/// Another engine is elected in the middle of everything: what is at the device when PROMISE leaves
/// is all there will ever be of the old stream (I3).
fn overthrow(seed: u64) {
    let mut world = World::new(seed);
    world.rig.hold = true;
    for _ in 0..100 {
        world.act();
    }
    let (other, _) = world.rig.login(super::rig::E2);
    let vote = world.rig.vote(2);
    world.rig.queue_frame(other, &Message::Vote(vote), &[]);
    let state = loop {
        world.issue();
        world.rig.run();
        if let Some((Message::Promise { state, .. }, _)) = world.rig.frames(other).last() {
            break *state;
        }
        let len = u64::try_from(world.rig.queue.len()).unwrap();
        assert!(len > 0, "no promise and nothing to wait for");
        let at = usize::try_from(world.random.below(len)).unwrap();
        world.rig.complete(at);
    };
    assert!(
        world.rig.data_writes().is_empty(),
        "a write is in flight after PROMISE"
    );
    let before = world.rig.trace.len();
    for _ in 0..5 {
        world.issue();
    }
    world.rig.hold = false;
    world.rig.run();
    for op in &world.rig.trace[before..] {
        let change = !matches!(op, DiskOp::Flush { .. } | DiskOp::Read { .. });
        let role = match op {
            DiskOp::Write { role, .. }
            | DiskOp::Read { role, .. }
            | DiskOp::Flush { role }
            | DiskOp::Allocate { role, .. }
            | DiskOp::PunchHole { role, .. }
            | DiskOp::ZeroRange { role, .. } => *role,
        };
        assert!(!(change && role == FileRole::Data), "{op:?} after PROMISE");
    }
    let now = world.rig.state();
    assert_eq!(
        (now.upto, now.max_idx, now.se),
        (state.upto, state.max_idx, state.se)
    );
    assert!(state.upto.0 >= world.upto, "an ack was taken back");
    world.rig.stop();
}

#[test]
fn nothing_of_an_old_stream_reaches_the_device_after_a_promise() {
    for seed in 1..=60 {
        overthrow(seed);
    }
}

#[test]
fn any_run_ends_with_all_entries_applied_in_order() {
    for seed in 1..=30 {
        play(seed);
    }
}
