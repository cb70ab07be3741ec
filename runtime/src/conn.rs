//! One connection, and the table of all. The life of a connection:
//!
//! `Connecting` -> `Open` -> `Draining` (closed with output left) -> `Lingering` (output has left,
//! its peer has not ended yet; the machine has been told `Closed`) -> `Dead` (waits only for the
//! kernel to give its memory back) -> gone. Any state may go to `Dead` at once.

use crate::address::Address;
use crate::arena::Loan;
use crate::backend::FdRef;
use crate::kernel_buf::KernelBuf;
use crate::limits::{CONNECTION_SLOT_BITS, CONNECTIONS_MAX, HELD_BYTES_MAX};
use crate::output::Output;
use socket2::{SockAddr, Socket};
use trilith_block::{ConnId, Monotonic, Want};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Connecting,
    Open,
    Draining,
    Lingering,
    Dead,
}

/// A receive in flight.
#[derive(Debug)]
pub(crate) enum Receiving {
    /// None.
    Idle,
    /// Into the connection's buffer.
    Buffered,
    /// Straight into a payload.
    Direct(Loan),
}

/// What carries the bytes of a connection.
#[derive(Debug)]
pub(crate) enum Link {
    /// A socket of the kernel.
    Socket { socket: Socket, fd: FdRef },
    /// Another connection of this loop, whose output is the input of this one: see `own.rs`.
    Own(ConnId),
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) id: ConnId,
    pub(crate) phase: Phase,
    pub(crate) link: Link,
    pub(crate) peer: Address,
    /// Where a dial goes; the kernel reads it while it connects.
    pub(crate) target: Option<Box<SockAddr>>,
    pub(crate) connecting: bool,
    /// `Opened` has been delivered.
    pub(crate) announced: bool,
    /// `Closed` has been queued.
    pub(crate) told: bool,
    pub(crate) cancelled: bool,
    /// When a dial, a drain or a linger is over.
    pub(crate) deadline: Option<Monotonic>,

    pub(crate) buffer: Option<KernelBuf>,
    /// Received and not yet consumed: `start..end` of the buffer.
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) receiving: Receiving,
    /// The peer has ended its stream.
    pub(crate) ended: bool,
    /// The last receive left something in the socket.
    pub(crate) more: bool,
    pub(crate) want: Option<Want>,
    /// Bytes of the wanted payload or discard that have arrived.
    pub(crate) filled: u64,

    pub(crate) output: Output,
    /// What is queued waits to be released.
    pub(crate) held: bool,
    pub(crate) is_ready: bool,
    pub(crate) is_dirty: bool,
}

impl Conn {
    pub(crate) fn new(id: ConnId, phase: Phase, link: Link, peer: Address) -> Conn {
        Conn {
            id,
            phase,
            link,
            peer,
            target: None,
            connecting: false,
            announced: false,
            told: false,
            cancelled: false,
            deadline: None,
            buffer: None,
            start: 0,
            end: 0,
            receiving: Receiving::Idle,
            ended: false,
            more: false,
            want: None,
            filled: 0,
            output: Output::new(),
            held: false,
            is_ready: false,
            is_dirty: false,
        }
    }

    /// Its socket, if it has one.
    pub(crate) fn socket(&self) -> Option<(&Socket, FdRef)> {
        match &self.link {
            Link::Socket { socket, fd } => Some((socket, *fd)),
            Link::Own(_) => None,
        }
    }

    /// True when the kernel works on something of this connection.
    pub(crate) fn is_busy(&self) -> bool {
        self.connecting || self.output.in_flight() || !matches!(self.receiving, Receiving::Idle)
    }

    /// True while what is queued stays here.
    pub(crate) fn is_held(&self) -> bool {
        self.held && self.phase == Phase::Open && self.output.queued() < HELD_BYTES_MAX
    }

    /// Bytes received and not consumed.
    pub(crate) fn unread(&self) -> usize {
        self.end - self.start
    }

    /// The next `len` unread bytes.
    pub(crate) fn peek(&self, len: usize) -> &[u8] {
        match &self.buffer {
            Some(buffer) if len <= self.unread() => buffer.bytes(self.start, self.start + len),
            _ => &[],
        }
    }

    /// Drops `len` unread bytes.
    pub(crate) fn consume(&mut self, len: usize) {
        self.start += len;
        if self.start == self.end && !matches!(self.receiving, Receiving::Buffered) {
            (self.start, self.end) = (0, 0);
        }
    }
}

/// All connections, by slot; the low bits of a [`ConnId`] are the slot.
#[derive(Debug, Default)]
pub(crate) struct Conns {
    slots: Vec<Option<Box<Conn>>>,
    free: Vec<u32>,
    serial: u64,
    count: usize,
}

/// Slot of ids that never had one.
const NO_SLOT: u32 = (1 << CONNECTION_SLOT_BITS) - 1;

impl Conns {
    /// A new id, with a slot if there is one.
    pub(crate) fn reserve(&mut self) -> (ConnId, Option<u32>) {
        self.serial += 1;
        let slot = match self.free.pop() {
            Some(slot) => Some(slot),
            None if self.slots.len() < CONNECTIONS_MAX => {
                self.slots.push(None);
                u32::try_from(self.slots.len() - 1).ok()
            }
            None => None,
        };
        let low = u64::from(slot.unwrap_or(NO_SLOT));
        (ConnId((self.serial << CONNECTION_SLOT_BITS) | low), slot)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= CONNECTIONS_MAX
    }

    pub(crate) fn put(&mut self, slot: u32, conn: Box<Conn>) {
        self.slots[slot as usize] = Some(conn);
        self.count += 1;
    }

    /// Gives back a reserved slot that was never filled.
    pub(crate) fn unreserve(&mut self, slot: u32) {
        self.free.push(slot);
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<Box<Conn>> {
        let conn = self.slots[slot as usize].take()?;
        self.free.push(slot);
        self.count -= 1;
        Some(conn)
    }

    pub(crate) fn get(&mut self, slot: u32) -> Option<&mut Conn> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    /// Two live connections at once.
    pub(crate) fn two(&mut self, one: u32, other: u32) -> Option<(&mut Conn, &mut Conn)> {
        let places = [one as usize, other as usize];
        match self.slots.get_disjoint_mut(places) {
            Ok([Some(one), Some(other)]) => Some((one, other)),
            _ => None,
        }
    }

    /// The slot of a live connection.
    pub(crate) fn slot_of(&self, id: ConnId) -> Option<u32> {
        let slot = u32::try_from(id.0 & u64::from(NO_SLOT)).ok()?;
        let conn = self.slots.get(slot as usize)?.as_ref()?;
        (conn.id == id).then_some(slot)
    }

    pub(crate) fn find(&self, id: ConnId) -> Option<&Conn> {
        let slot = self.slot_of(id)?;
        self.slots[slot as usize].as_deref()
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Slots with a connection.
    pub(crate) fn occupied(&self) -> Vec<u32> {
        (0u32..)
            .zip(&self.slots)
            .filter(|(_, conn)| conn.is_some())
            .map(|(slot, _)| slot)
            .collect()
    }
}
