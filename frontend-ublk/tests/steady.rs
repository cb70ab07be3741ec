//! The ublk server in steady state: after warming up, requests of each kind go through it without an
//! allocation, those included that wait for memory.
#![allow(unsafe_code, reason = "an allocator that counts has no safe form")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../sim/tests/steady/counting.rs"]
mod counting;

use counting::counted;
use trilith_block::{Actions, Buffers, Completion, Machine, Monotonic, Op, Outcome, Request};
use trilith_frontend_ublk::{UblkAction, UblkConfig, UblkEvent, UblkServer};
use trilith_runtime::{Arena, ArenaConfig, UblkDescriptor, UblkFetched, UblkSlot};

const DEPTH: u16 = 64;

struct Rig {
    server: UblkServer,
    arena: Arena,
    out: Actions<UblkAction>,
    taken: Vec<UblkAction>,
    engine: Vec<Request>,
    /// Slots that the kernel may give a request to.
    idle: Vec<UblkSlot>,
    allocations: u64,
}

impl Rig {
    fn new(memory: u64) -> Rig {
        let arena = ArenaConfig {
            budget_bytes: memory,
            huge_pages: false,
        };
        let mut rig = Rig {
            server: UblkServer::new(UblkConfig {
                capacity_bytes: 1 << 30,
            }),
            arena: Arena::new(arena).unwrap(),
            out: Actions::new(),
            taken: Vec::with_capacity(256),
            engine: Vec::with_capacity(256),
            idle: Vec::with_capacity(256),
            allocations: 0,
        };
        rig.step(UblkEvent::Attached {
            queues: 1,
            depth: DEPTH,
        });
        rig.idle
            .extend((0..DEPTH).map(|tag| UblkSlot { queue: 0, tag }));
        rig
    }

    fn step(&mut self, event: UblkEvent) {
        counted(&mut self.allocations, || {
            self.server
                .step(Monotonic(1), event, &mut self.arena, &mut self.out);
        });
    }

    /// Does what the server asks for, until it asks for nothing more.
    fn obey(&mut self) {
        while !self.out.is_empty() {
            self.taken.clear();
            self.taken.extend_from_slice(self.out.list());
            self.out.clear();
            for at in 0..self.taken.len() {
                match self.taken[at] {
                    UblkAction::Pull(slot, _) | UblkAction::Push(slot, _) => {
                        let result = Ok(());
                        self.step(UblkEvent::Copied { slot, result });
                    }
                    UblkAction::Commit(slot, result) => {
                        assert!(result >= 0, "{slot:?} has failed: {result}");
                        self.idle.push(slot);
                    }
                    UblkAction::Submit(request) => self.engine.push(request),
                    UblkAction::Fetch(_) => {}
                    UblkAction::Detach => panic!("nobody has stopped the device"),
                }
            }
        }
    }

    /// The engine ends all that it has.
    fn complete(&mut self) {
        while let Some(request) = self.engine.pop() {
            if let Some(data) = request.data {
                self.arena.release(data.buf);
            }
            let outcome = match request.op {
                Op::Read => {
                    let len = u32::try_from(request.range.len).unwrap();
                    let Some(data) = self.arena.alloc(len) else {
                        panic!("no memory for a read");
                    };
                    Outcome::Data(data)
                }
                _ => Outcome::Done,
            };
            let tag = request.tag;
            let result = Ok(outcome);
            self.step(UblkEvent::Complete(Completion { tag, result }));
            self.obey();
        }
        self.arena.reclaim();
        counted(&mut self.allocations, || {
            self.server
                .settle(Monotonic(1), &mut self.arena, &mut self.out);
        });
        self.obey();
    }

    fn serve(&mut self, rounds: u32, ops: &[u32], sectors: u32) {
        for round in 0..rounds {
            for number in 0..DEPTH {
                let slot = self.idle.pop().unwrap();
                let op_flags = ops[usize::from(number) % ops.len()];
                let descriptor = UblkDescriptor {
                    op_flags,
                    sectors,
                    start_sector: u64::from(round) * 64,
                };
                let result = Ok(descriptor);
                self.step(UblkEvent::Fetched(UblkFetched { slot, result }));
                self.obey();
            }
            while self.idle.len() < usize::from(DEPTH) {
                self.complete();
            }
        }
    }
}

fn serves_without_allocations(memory: u64, ops: &[u32], sectors: u32) {
    let mut rig = Rig::new(memory);
    rig.serve(20, ops, sectors);
    rig.allocations = 0;
    rig.serve(50, ops, sectors);
    assert_eq!(rig.allocations, 0);
}

#[test]
fn reads_writes_flushes_and_zeroes_allocate_nothing() {
    serves_without_allocations(16 << 20, &[0, 1, 2, 5], 8);
}

#[test]
fn writes_that_wait_for_memory_allocate_nothing() {
    serves_without_allocations(4 << 20, &[1], 2048);
}
