//! The seam between pure logic and its drivers.
//!
//! A machine takes an event and the time, changes its state and emits actions. It does no I/O,
//! reads no clock and starts no thread. Order exists only where a machine waits for a completion
//! event before it emits the next action; drivers (and the simulator) may reorder everything else,
//! except that the sends on one connection stay in order.

use crate::buffers::{BufSlice, Buffers};
use crate::time::Monotonic;
use alloc::vec::Vec;

/// A pure state machine.
pub trait Machine {
    /// What can happen to it.
    type Event<'a>;
    /// What it wants done.
    type Action;

    /// One event in, a bounded number of actions out.
    fn step(
        &mut self,
        now: Monotonic,
        event: Self::Event<'_>,
        data: &mut dyn Buffers,
        out: &mut Actions<Self::Action>,
    );

    /// Called once after each batch of events, and when [`Machine::deadline`] has passed: group
    /// commit, coalescing of frames and acks, timers.
    fn settle(&mut self, now: Monotonic, data: &mut dyn Buffers, out: &mut Actions<Self::Action>);

    /// When `settle` wants to be called at the latest, if nothing else happens. `None`: never.
    fn deadline(&self) -> Option<Monotonic>;
}

/// A machine that owns byte streams. The driver asks what a connection wants next, receives just
/// that (payload straight into its buffer), and tells the machine by a [`StreamEvent`].
pub trait Stream {
    /// What `conn` wants next. Asked after `Opened` and after each event of this connection; after
    /// [`Want::Pause`] it is asked again after each `settle`.
    fn want(&mut self, conn: ConnId, data: &mut dyn Buffers) -> Want;
}

/// What a byte stream's machine wants to receive next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Want {
    /// Exactly this many bytes (1 to [`crate::limits::HEADER_BYTES_MAX`]), handed over as
    /// [`StreamEvent::Header`].
    Header(usize),
    /// These bytes of a buffer filled, then [`StreamEvent::Payload`]. The machine owns the buffer
    /// and keeps it until that event or `Closed`.
    Payload(BufSlice),
    /// This many bytes read and thrown away, then [`StreamEvent::Payload`].
    Discard(u64),
    /// Nothing for now (back-pressure).
    Pause,
}

/// What happens on a byte stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamEvent<'a> {
    /// It is there: accepted, or a dial that succeeded.
    Opened,
    /// The bytes of [`Want::Header`].
    Header(&'a [u8]),
    /// The bytes of [`Want::Payload`] or [`Want::Discard`] have arrived.
    Payload,
    /// It is gone, whoever closed it; a dial that failed ends so too. Last event of the connection.
    Closed,
}

/// A connection. Ids are not reused within a process's life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u64);

/// A run of bytes held by an [`Actions`]: the head of a frame to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bytes {
    start: u32,
    len: u32,
}

impl Bytes {
    /// Number of bytes.
    pub fn len(self) -> usize {
        self.len as usize
    }

    /// True when there is no byte.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// Where a machine puts its actions. The driver drains it after each batch; its memory is reused.
///
/// Buffers named by an action (payload of a send, buffer of a disk write) must stay unchanged until
/// the driver is done with them: the driver retains them when it takes the action and releases them
/// afterwards. So a machine may release its own count right after it has emitted the action.
#[derive(Debug)]
pub struct Actions<A> {
    list: Vec<A>,
    bytes: Vec<u8>,
}

impl<A> Default for Actions<A> {
    fn default() -> Self {
        Actions {
            list: Vec::new(),
            bytes: Vec::new(),
        }
    }
}

impl<A> Actions<A> {
    /// An empty collection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an action.
    pub fn push(&mut self, action: A) {
        self.list.push(action);
    }

    /// Stores bytes that an action is going to name.
    pub fn bytes(&mut self, bytes: &[u8]) -> Bytes {
        let start = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(bytes);
        Bytes {
            start,
            len: u32::try_from(bytes.len()).unwrap_or(0),
        }
    }

    /// The bytes that an action names.
    pub fn get(&self, bytes: Bytes) -> &[u8] {
        &self.bytes[bytes.start as usize..bytes.start as usize + bytes.len as usize]
    }

    /// The actions, in the order they were pushed.
    pub fn list(&self) -> &[A] {
        &self.list
    }

    /// True when there is no action.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Forgets all actions and bytes, keeps the memory.
    pub fn clear(&mut self) {
        self.list.clear();
        self.bytes.clear();
    }
}

/// Memory that outlives the process but not the kernel (a file on tmpfs), as aligned 64-bit words.
/// Each store is a single aligned store in program order: a process killed between two stores
/// leaves exactly the first. New memory reads zero.
pub trait Words {
    /// Number of words.
    fn len(&self) -> usize;

    /// True when there is no word.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The word at `index`. Panics when `index` is not below `len`.
    fn load(&self, index: usize) -> u64;

    /// Stores a word. Panics when `index` is not below `len`.
    fn store(&mut self, index: usize, value: u64);
}
