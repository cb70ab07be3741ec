//! The machine: one slot for each request that the kernel may have in flight, and where it is.
//!
//! ```text
//!            Attached                 read, flush, ...
//!   Off ------------------> Kernel ---------------------> Engine ---+
//!                           ^    \  write                 ^   |     | data of a read
//!                    commit |     +-> Waiting -> Pulling -+   |     v
//!                           +---------------------------------+-- Pushing
//! ```
//!
//! A commit gives the slot back to the kernel with the request's result. When the device is stopped
//! the kernel ends every slot that it has; when all are ended the device can be let go of.

use crate::limits::{ARENA_RETRY_SPAN, PAYLOAD_BYTES_MAX, SLOTS_MAX};
use crate::request::{Asked, failure, understand};
use std::collections::VecDeque;
use trilith_block::{
    Actions, BufSlice, Buffers, Completion, Machine, Monotonic, Op, Outcome, Request, Tag,
};
use trilith_runtime::{Errno, UblkFetched, UblkSlot};

/// What the machine must know of the volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UblkConfig {
    /// Its size in bytes.
    pub capacity_bytes: u64,
}

/// What can happen to the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UblkEvent {
    /// The loop has a device with so many queues of such a depth: serve it.
    Attached {
        /// Queues, at least 1.
        queues: u16,
        /// Slots of each, at least 1.
        depth: u16,
    },
    /// A command has come back from the kernel.
    Fetched(UblkFetched),
    /// A [`UblkAction::Pull`] or [`UblkAction::Push`] has ended.
    Copied {
        /// Whose payload.
        slot: UblkSlot,
        /// How.
        result: Result<(), Errno>,
    },
    /// The engine has ended a request.
    Complete(Completion),
    /// The operator is about to accept a loss: what has not reached the engine is of users from
    /// before it, and fails (docs/protocol.md, C16).
    LossAccepted,
    /// The engine takes nothing more, but the device is to outlive this process: what it has asked
    /// for and is not answered waits for the next server. Nothing fails from now on.
    Freeze,
    /// The volume is gone for good: what is asked for and not answered fails, and so does whatever
    /// else comes until the device is stopped.
    Fail,
}

/// What the machine wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UblkAction {
    /// Fetch the slot's first request.
    Fetch(UblkSlot),
    /// End the slot's request with a result and fetch the next one.
    Commit(UblkSlot, i32),
    /// Copy the payload of the slot's write to a buffer, then [`UblkEvent::Copied`]. The machine
    /// owns the buffer until then.
    Pull(UblkSlot, BufSlice),
    /// Copy a buffer to the pages of the slot's read, then [`UblkEvent::Copied`].
    Push(UblkSlot, BufSlice),
    /// Give this to the engine; what the engine is too full for waits with the driver.
    Submit(Request),
    /// The kernel has ended every slot: let go of the device.
    Detach,
}

/// Counters and gauges.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct UblkStatus {
    /// Requests so far.
    pub requests: u64,
    /// Requests that have not been committed.
    pub requests_in_flight: u64,
    /// Requests committed with an error.
    pub requests_failed: u64,
    /// Writes that wait for memory.
    pub writes_waiting: u64,
    /// Why the kernel ended a slot, when it was not because the device was stopped.
    pub broken: Option<Errno>,
}

/// Where a slot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// The kernel has it and waits for a request.
    Kernel,
    /// A write that needs memory.
    Waiting(Asked),
    /// Payload of a write is on its way in.
    Pulling(Asked, BufSlice),
    /// The same, and when it is there the write fails.
    PullingInVain(Asked, BufSlice),
    /// The engine has it.
    Engine(Asked),
    /// Payload of a read is on its way out.
    Pushing(Asked, BufSlice),
    /// Frozen: the next server answers it.
    Held,
    /// The kernel has ended it.
    Ended,
}

/// What to do with requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Serve,
    Freeze,
    Fail,
}

type Out = Actions<UblkAction>;

/// Serves one volume on one ublk device.
#[derive(Debug)]
pub struct UblkServer {
    config: UblkConfig,
    depth: u16,
    slots: Vec<Place>,
    ended: usize,
    mode: Mode,
    /// Slots whose write waits for memory, oldest first.
    waiting: VecDeque<usize>,
    /// Bytes of writes that are pulled or with the engine.
    payload_bytes: u64,
    arena_retry: Option<Monotonic>,
    status: UblkStatus,
}

impl UblkServer {
    /// A server without a device.
    pub fn new(config: UblkConfig) -> UblkServer {
        UblkServer {
            config,
            depth: 1,
            slots: Vec::new(),
            ended: 0,
            mode: Mode::Serve,
            waiting: VecDeque::new(),
            payload_bytes: 0,
            arena_retry: None,
            status: UblkStatus::default(),
        }
    }

    /// Counters and gauges as of now.
    pub fn status(&self) -> UblkStatus {
        UblkStatus {
            writes_waiting: self.waiting.len() as u64,
            ..self.status
        }
    }

    /// True while there is a device.
    pub fn is_attached(&self) -> bool {
        !self.slots.is_empty()
    }

    fn slot(&self, index: usize) -> UblkSlot {
        let depth = usize::from(self.depth);
        UblkSlot {
            queue: u16::try_from(index / depth).unwrap_or(u16::MAX),
            tag: u16::try_from(index % depth).unwrap_or(u16::MAX),
        }
    }

    fn index(&self, slot: UblkSlot) -> Option<usize> {
        let index = usize::from(slot.queue) * usize::from(self.depth) + usize::from(slot.tag);
        (slot.tag < self.depth && index < self.slots.len()).then_some(index)
    }

    fn attached(&mut self, queues: u16, depth: u16, out: &mut Out) {
        let count = usize::from(queues) * usize::from(depth);
        assert!(
            self.slots.is_empty() && (1..=SLOTS_MAX).contains(&count),
            "{queues} queues of {depth} while {} slots are there",
            self.slots.len()
        );
        self.depth = depth;
        self.ended = 0;
        self.status.broken = None;
        self.slots.resize(count, Place::Kernel);
        for index in 0..count {
            out.push(UblkAction::Fetch(self.slot(index)));
        }
    }

    /// Ends the request of a slot.
    fn commit(&mut self, index: usize, result: i32, out: &mut Out) {
        self.slots[index] = Place::Kernel;
        self.status.requests_in_flight -= 1;
        if result < 0 {
            self.status.requests_failed += 1;
        }
        out.push(UblkAction::Commit(self.slot(index), result));
    }

    /// What becomes of a request that is not going to be served.
    fn refuse(&mut self, index: usize, result: i32, out: &mut Out) {
        match self.mode {
            Mode::Serve => self.commit(index, result, out),
            Mode::Freeze => self.slots[index] = Place::Held,
            Mode::Fail => self.commit(index, -libc::EIO, out),
        }
    }

    fn fetched(&mut self, fetched: UblkFetched, data: &mut dyn Buffers, out: &mut Out) {
        let Some(index) = self.index(fetched.slot) else {
            return;
        };
        if self.slots[index] != Place::Kernel {
            return;
        }
        let descriptor = match fetched.result {
            Ok(descriptor) => descriptor,
            Err(why) => return self.slot_ended(index, why, out),
        };
        self.status.requests += 1;
        self.status.requests_in_flight += 1;
        if self.mode != Mode::Serve {
            return self.refuse(index, -libc::EIO, out);
        }
        match understand(descriptor, self.config.capacity_bytes) {
            Err(result) => self.commit(index, result, out),
            Ok(asked) if asked.op == Op::Write => {
                self.slots[index] = Place::Waiting(asked);
                if !self.waiting.is_empty() || !self.pull(index, asked, data, out) {
                    self.waiting.push_back(index);
                }
            }
            Ok(asked) => self.submit(index, asked, None, out),
        }
    }

    fn slot_ended(&mut self, index: usize, why: Errno, out: &mut Out) {
        self.slots[index] = Place::Ended;
        self.ended += 1;
        if why != Errno(libc::ENODEV) {
            self.status.broken = Some(why);
        }
        if self.ended == self.slots.len() {
            self.slots.clear();
            self.ended = 0;
            out.push(UblkAction::Detach);
        }
    }

    /// Starts to bring a write's payload in. False when there is no memory for it now.
    fn pull(&mut self, index: usize, asked: Asked, data: &mut dyn Buffers, out: &mut Out) -> bool {
        let len = asked.payload_bytes();
        if self.payload_bytes + u64::from(len) > PAYLOAD_BYTES_MAX {
            return false;
        }
        let Some(target) = data.alloc(len) else {
            self.arena_retry = Some(Monotonic(0));
            return false;
        };
        self.payload_bytes += u64::from(len);
        self.slots[index] = Place::Pulling(asked, target);
        out.push(UblkAction::Pull(self.slot(index), target));
        true
    }

    fn submit(&mut self, index: usize, asked: Asked, payload: Option<BufSlice>, out: &mut Out) {
        self.slots[index] = Place::Engine(asked);
        out.push(UblkAction::Submit(Request {
            tag: Tag(index as u64),
            op: asked.op,
            range: asked.range,
            flags: asked.flags,
            data: payload,
        }));
    }

    fn copied(
        &mut self,
        slot: UblkSlot,
        result: Result<(), Errno>,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let Some(index) = self.index(slot) else {
            return;
        };
        match (self.slots[index], result) {
            (Place::Pulling(asked, target), Ok(())) if self.mode == Mode::Serve => {
                self.submit(index, asked, Some(target), out);
            }
            (Place::Pulling(asked, target) | Place::PullingInVain(asked, target), result) => {
                self.payload_bytes -= u64::from(asked.payload_bytes());
                data.release(target.buf);
                self.refuse(index, errno(result), out);
            }
            (Place::Pushing(asked, source), result) => {
                data.release(source.buf);
                match result {
                    Ok(()) => self.commit(index, asked.success(), out),
                    Err(_) => self.refuse(index, errno(result), out),
                }
            }
            _ => {}
        }
    }

    fn completed(&mut self, completion: Completion, data: &mut dyn Buffers, out: &mut Out) {
        let place = usize::try_from(completion.tag.0)
            .ok()
            .and_then(|index| Some((index, *self.slots.get(index)?)));
        let Some((index, Place::Engine(asked))) = place else {
            // A device that went away meanwhile.
            return give_up(completion, data);
        };
        if asked.op == Op::Write {
            self.payload_bytes -= u64::from(asked.payload_bytes());
        }
        match completion.result {
            Ok(Outcome::Data(source))
                if asked.op == Op::Read && source.len == asked.payload_bytes() =>
            {
                self.slots[index] = Place::Pushing(asked, source);
                out.push(UblkAction::Push(self.slot(index), source));
            }
            Ok(Outcome::Done) if asked.op != Op::Read => {
                self.commit(index, asked.success(), out);
            }
            Ok(_) => {
                give_up(completion, data);
                self.refuse(index, -libc::EIO, out);
            }
            Err(kind) => self.refuse(index, failure(kind), out),
        }
    }

    /// Fails what has not reached the engine.
    fn fail_waiting(&mut self, out: &mut Out) {
        self.waiting.clear();
        self.arena_retry = None;
        for index in 0..self.slots.len() {
            match self.slots[index] {
                Place::Waiting(_) => self.refuse(index, -libc::EIO, out),
                Place::Pulling(asked, target) => {
                    self.slots[index] = Place::PullingInVain(asked, target);
                }
                _ => {}
            }
        }
    }

    /// From now on nothing is served.
    fn end_service(&mut self, mode: Mode, out: &mut Out) {
        self.mode = mode;
        self.waiting.clear();
        for index in 0..self.slots.len() {
            if matches!(self.slots[index], Place::Waiting(_) | Place::Held) {
                self.refuse(index, -libc::EIO, out);
            }
        }
    }
}

fn errno(result: Result<(), Errno>) -> i32 {
    match result {
        Err(Errno(number)) if number > 0 => -number,
        _ => -libc::EIO,
    }
}

/// Releases what a completion brought.
fn give_up(completion: Completion, data: &mut dyn Buffers) {
    if let Ok(Outcome::Data(slice) | Outcome::Extents(slice)) = completion.result {
        data.release(slice.buf);
    }
}

impl Machine for UblkServer {
    type Event<'a> = UblkEvent;
    type Action = UblkAction;

    fn step(
        &mut self,
        _now: Monotonic,
        event: UblkEvent,
        data: &mut dyn Buffers,
        out: &mut Actions<UblkAction>,
    ) {
        match event {
            UblkEvent::Attached { queues, depth } => self.attached(queues, depth, out),
            UblkEvent::Fetched(fetched) => self.fetched(fetched, data, out),
            UblkEvent::Copied { slot, result } => self.copied(slot, result, data, out),
            UblkEvent::Complete(completion) => self.completed(completion, data, out),
            UblkEvent::LossAccepted => self.fail_waiting(out),
            UblkEvent::Freeze => self.end_service(Mode::Freeze, out),
            UblkEvent::Fail => self.end_service(Mode::Fail, out),
        }
    }

    fn settle(&mut self, now: Monotonic, data: &mut dyn Buffers, out: &mut Actions<UblkAction>) {
        self.arena_retry = None;
        while let Some(index) = self.waiting.front().copied() {
            let Place::Waiting(asked) = self.slots[index] else {
                self.waiting.pop_front();
                continue;
            };
            if !self.pull(index, asked, data, out) {
                break;
            }
            self.waiting.pop_front();
        }
        if self.arena_retry.is_some() {
            self.arena_retry = Some(now.after(ARENA_RETRY_SPAN));
        }
    }

    fn deadline(&self) -> Option<Monotonic> {
        self.arena_retry
    }
}
