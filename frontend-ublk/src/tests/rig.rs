//! A machine with a kernel, a copier and an engine that the test plays.

use crate::server::{UblkAction, UblkConfig, UblkEvent, UblkServer};
use trilith_block::{
    Actions, BufSlice, Buffers, Completion, ErrorKind, Machine, Monotonic, Op, Outcome, Request,
    Tag,
};
use trilith_runtime::{Arena, ArenaConfig, Errno, UblkDescriptor, UblkFetched, UblkSlot};

pub(super) const CAPACITY: u64 = 64 << 20;

pub(super) struct Rig {
    pub(super) server: UblkServer,
    pub(super) arena: Arena,
    pub(super) now: Monotonic,
    out: Actions<UblkAction>,
    /// What the machine has asked for and the test has not looked at.
    pub(super) asked: Vec<UblkAction>,
}

pub(super) fn slot(queue: u16, tag: u16) -> UblkSlot {
    UblkSlot { queue, tag }
}

pub(super) fn read(sector: u64, sectors: u32) -> UblkDescriptor {
    descriptor(0, sector, sectors)
}

pub(super) fn write(sector: u64, sectors: u32) -> UblkDescriptor {
    descriptor(1, sector, sectors)
}

pub(super) fn descriptor(op_flags: u32, start_sector: u64, sectors: u32) -> UblkDescriptor {
    UblkDescriptor {
        op_flags,
        sectors,
        start_sector,
    }
}

impl Rig {
    pub(super) fn new(arena_bytes: u64) -> Rig {
        let arena = ArenaConfig {
            budget_bytes: arena_bytes,
            huge_pages: false,
        };
        Rig {
            server: UblkServer::new(UblkConfig {
                capacity_bytes: CAPACITY,
            }),
            arena: Arena::new(arena).unwrap(),
            now: Monotonic(1),
            out: Actions::new(),
            asked: Vec::new(),
        }
    }

    /// A rig whose slots have all been fetched.
    pub(super) fn attached(queues: u16, depth: u16) -> Rig {
        let mut rig = Rig::new(64 << 20);
        rig.step(UblkEvent::Attached { queues, depth });
        let fetches = rig.take();
        assert_eq!(fetches.len(), usize::from(queues) * usize::from(depth));
        rig
    }

    pub(super) fn step(&mut self, event: UblkEvent) {
        self.server
            .step(self.now, event, &mut self.arena, &mut self.out);
        self.asked.extend_from_slice(self.out.list());
        self.out.clear();
    }

    pub(super) fn settle(&mut self) {
        self.arena.reclaim();
        self.server.settle(self.now, &mut self.arena, &mut self.out);
        self.asked.extend_from_slice(self.out.list());
        self.out.clear();
    }

    pub(super) fn take(&mut self) -> Vec<UblkAction> {
        std::mem::take(&mut self.asked)
    }

    /// The one action there is.
    pub(super) fn one(&mut self) -> UblkAction {
        let asked = self.take();
        assert_eq!(asked.len(), 1, "{asked:?}");
        asked[0]
    }

    pub(super) fn request(&mut self, slot: UblkSlot, descriptor: UblkDescriptor) {
        let result = Ok(descriptor);
        self.step(UblkEvent::Fetched(UblkFetched { slot, result }));
    }

    pub(super) fn end_slot(&mut self, slot: UblkSlot, errno: i32) {
        let result = Err(Errno(errno));
        self.step(UblkEvent::Fetched(UblkFetched { slot, result }));
    }

    pub(super) fn copied(&mut self, slot: UblkSlot, result: Result<(), Errno>) {
        self.step(UblkEvent::Copied { slot, result });
    }

    /// The engine ends a request well.
    pub(super) fn done(&mut self, request: Request) {
        let outcome = match request.op {
            Op::Read => {
                let len = u32::try_from(request.range.len).unwrap();
                Outcome::Data(self.arena.alloc(len).unwrap())
            }
            _ => Outcome::Done,
        };
        self.complete(request, Ok(outcome));
    }

    /// The engine ends a request; it has released the payload.
    pub(super) fn complete(&mut self, request: Request, result: Result<Outcome, ErrorKind>) {
        if let Some(data) = request.data {
            self.arena.release(data.buf);
        }
        let tag = request.tag;
        self.step(UblkEvent::Complete(Completion { tag, result }));
    }

    pub(super) fn stray(&mut self, tag: u64, data: BufSlice) {
        let completion = Completion {
            tag: Tag(tag),
            result: Ok(Outcome::Data(data)),
        };
        self.step(UblkEvent::Complete(completion));
    }

    pub(super) fn used(&mut self) -> u64 {
        self.arena.reclaim();
        self.arena.used()
    }
}
