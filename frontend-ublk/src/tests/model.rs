//! Random runs against what must hold: each request is committed once, bytes are accounted for, and
//! in the end everything is given back.

use super::rig::{CAPACITY, Rig, descriptor, slot};
use crate::server::{UblkAction, UblkEvent};
use std::collections::BTreeMap;
use trilith_block::{ErrorKind, Request};
use trilith_runtime::{Errno, UblkSlot};

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mix = self.0;
        mix = (mix ^ (mix >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mix = (mix ^ (mix >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mix ^ (mix >> 31)) % sides
    }
}

/// The kernel's side of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Side {
    /// It has a command and no request.
    Idle,
    /// The server has a request with this many bytes to move (0 for those without payload).
    Asked(i32),
}

struct World {
    rig: Rig,
    dice: Dice,
    kernel: BTreeMap<UblkSlot, Side>,
    copies: Vec<UblkSlot>,
    engine: Vec<Request>,
    detached: bool,
}

impl World {
    fn new(seed: u64) -> World {
        let mut dice = Dice(seed);
        let mut rig = Rig::new((1 + dice.roll(3)) << 20);
        let queues = u16::try_from(1 + dice.roll(3)).unwrap();
        let depth = u16::try_from(1 + dice.roll(6)).unwrap();
        rig.step(UblkEvent::Attached { queues, depth });
        let mut world = World {
            rig,
            dice,
            kernel: BTreeMap::new(),
            copies: Vec::new(),
            engine: Vec::new(),
            detached: false,
        };
        for queue in 0..queues {
            for tag in 0..depth {
                world.kernel.insert(slot(queue, tag), Side::Idle);
            }
        }
        world.rig.take();
        world
    }

    fn obey(&mut self) {
        for action in self.rig.take() {
            match action {
                UblkAction::Fetch(slot) => panic!("{slot:?} is fetched again"),
                UblkAction::Commit(slot, result) => {
                    let side = self.kernel.insert(slot, Side::Idle);
                    let Some(Side::Asked(bytes)) = side else {
                        panic!("{slot:?} is committed while {side:?}");
                    };
                    assert!(result < 0 || result == bytes, "{result} of {bytes}");
                }
                UblkAction::Pull(slot, _) | UblkAction::Push(slot, _) => self.copies.push(slot),
                UblkAction::Submit(request) => self.engine.push(request),
                UblkAction::Detach => self.detached = true,
            }
        }
    }

    fn ask(&mut self) {
        let idle: Vec<_> = self
            .kernel
            .iter()
            .filter(|(_, side)| **side == Side::Idle)
            .map(|(slot, _)| *slot)
            .collect();
        if idle.is_empty() {
            return;
        }
        let at = usize::try_from(self.dice.roll(idle.len() as u64)).unwrap();
        let op = u32::try_from(self.dice.roll(7)).unwrap();
        let sectors = u32::try_from(1 + self.dice.roll(2048)).unwrap();
        let start = self.dice.roll(CAPACITY / 512 + 64);
        let bytes = match op {
            0 | 1 => i32::try_from(sectors * 512).unwrap(),
            _ => 0,
        };
        self.kernel.insert(idle[at], Side::Asked(bytes));
        self.rig.request(idle[at], descriptor(op, start, sectors));
    }

    fn copy(&mut self) {
        if self.copies.is_empty() {
            return;
        }
        let at = usize::try_from(self.dice.roll(self.copies.len() as u64)).unwrap();
        let slot = self.copies.swap_remove(at);
        let result = match self.dice.roll(8) {
            0 => Err(Errno(libc::EFAULT)),
            _ => Ok(()),
        };
        self.rig.copied(slot, result);
    }

    fn complete(&mut self) {
        if self.engine.is_empty() {
            return;
        }
        let at = usize::try_from(self.dice.roll(self.engine.len() as u64)).unwrap();
        let request = self.engine.swap_remove(at);
        let no_room = trilith_block::Buffers::available(&self.rig.arena) < 2 << 20;
        if no_room || self.dice.roll(8) == 0 {
            self.rig.complete(request, Err(ErrorKind::Io));
        } else {
            self.rig.done(request);
        }
    }

    fn one_step(&mut self) {
        match self.dice.roll(8) {
            0..=3 => self.ask(),
            4 | 5 => self.copy(),
            6 => self.complete(),
            _ if self.dice.roll(16) == 0 => self.rig.step(UblkEvent::LossAccepted),
            _ => self.rig.settle(),
        }
        self.obey();
    }

    fn is_busy(&self) -> bool {
        self.kernel.values().any(|side| *side != Side::Idle)
    }

    /// Lets everything that is under way come to its end.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            if !self.is_busy() {
                return;
            }
            self.copy();
            self.obey();
            self.complete();
            self.obey();
            self.rig.settle();
            self.obey();
        }
        panic!("requests are stuck: {:?}", self.rig.server.status());
    }

    fn stop(&mut self) {
        let slots: Vec<_> = self.kernel.keys().copied().collect();
        for slot in slots {
            assert!(!self.detached, "{slot:?} is still with the kernel");
            self.rig.end_slot(slot, libc::ENODEV);
            self.obey();
        }
        assert!(self.detached);
        assert_eq!(self.rig.used(), 0, "memory is lost");
        assert_eq!(self.rig.server.status().requests_in_flight, 0);
    }
}

#[test]
fn random_runs_commit_every_request_once_and_give_everything_back() {
    for seed in 0..400 {
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.one_step();
        }
        world.drain();
        world.stop();
    }
}

#[test]
fn random_runs_that_fail_in_the_middle_end_as_well() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        for _ in 0..200 {
            world.one_step();
        }
        if seed % 2 == 0 {
            world.rig.step(UblkEvent::Freeze);
            world.obey();
            for _ in 0..50 {
                world.one_step();
            }
        }
        world.rig.step(UblkEvent::Fail);
        world.obey();
        world.drain();
        world.stop();
    }
}
