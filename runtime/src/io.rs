//! What a handler acts on: connections, disk, memory, time. All calls return at once; their effects
//! reach the kernel at the end of the turn, and come back as events in a later one.

use crate::address::Address;
use crate::arena::Arena;
use crate::backend::{Backend, Completion, Driver, FdRef, FdUse, SysOp};
use crate::conn::{Conn, Conns, Link, Phase};
use crate::disk::{Disk, DiskDone};
use crate::error::RuntimeError;
use crate::handler::Signal;
use crate::limits::{
    DISK_IN_FLIGHT_MAX, DROP_WAIT_MAX, LOCKED_SHARE, MESSAGES_MAX, OUTPUT_BYTES_MAX,
    SLEEP_TIME_MAX, SUPER_BLOCK_BYTES,
};
use crate::listeners::Listener;
use crate::sockets;
use crate::stats::Stats;
use crate::turn::LoopConfig;
use crate::ublk::{BatchKey, Port, UblkFetched};
use crate::waker::{Message, WakeEnd, Waker, silence};
use core::cmp::Reverse;
use core::mem::ManuallyDrop;
use core::time::Duration;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use trilith_block::{BufSlice, ConnId, Monotonic};

/// A listening socket of the loop.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ListenerId(pub(crate) u32);

/// What the handler is going to be told.
pub(crate) enum Event {
    Accepted(ListenerId, ConnId),
    Opened(ConnId),
    Closed(ConnId),
    Disk(DiskDone),
    Signal(Signal),
    Message(Message),
    Ublk(UblkFetched),
}

/// What a completion belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Key {
    Accept(u32),
    Connect(u32),
    Receive(u32),
    Send(u32),
    Disk(u32),
    Wake,
    Signal,
    Ublk(u32),
    UblkPrepare(u32),
    UblkCommit(u32),
    UblkFetch(u32),
}

impl Key {
    pub(crate) fn of_batch(key: BatchKey) -> Key {
        match key {
            BatchKey::Prepare(place) => Key::UblkPrepare(place),
            BatchKey::Commit(place) => Key::UblkCommit(place),
            BatchKey::Fetch(queue) => Key::UblkFetch(queue),
        }
    }

    pub(crate) fn pack(self) -> u64 {
        let (kind, index) = match self {
            Key::Accept(index) => (1, index),
            Key::Connect(index) => (2, index),
            Key::Receive(index) => (3, index),
            Key::Send(index) => (4, index),
            Key::Disk(index) => (5, index),
            Key::Wake => (6, 0),
            Key::Signal => (7, 0),
            Key::Ublk(index) => (8, index),
            Key::UblkPrepare(place) => (9, place),
            Key::UblkCommit(place) => (10, place),
            Key::UblkFetch(queue) => (11, queue),
        };
        (kind << 32) | u64::from(index)
    }

    fn unpack(packed: u64) -> Option<Key> {
        let index = u32::try_from(packed & u64::from(u32::MAX)).unwrap_or(0);
        match packed >> 32 {
            1 => Some(Key::Accept(index)),
            2 => Some(Key::Connect(index)),
            3 => Some(Key::Receive(index)),
            4 => Some(Key::Send(index)),
            5 => Some(Key::Disk(index)),
            6 => Some(Key::Wake),
            7 => Some(Key::Signal),
            8 => Some(Key::Ublk(index)),
            9 => Some(Key::UblkPrepare(index)),
            10 => Some(Key::UblkCommit(index)),
            11 => Some(Key::UblkFetch(index)),
            _ => None,
        }
    }
}

/// Super-blocks of the arena that may be registered.
fn registered_max(arena: &Arena) -> u32 {
    let all = arena.super_blocks_max();
    let Some(lockable) = crate::arena::lockable_bytes() else {
        return all;
    };
    let share = lockable / LOCKED_SHARE / u64::from(SUPER_BLOCK_BYTES);
    all.min(u32::try_from(share).unwrap_or(all))
}

/// A descriptor that is watched for readability.
#[derive(Debug)]
struct Watched {
    owned: OwnedFd,
    fd: FdRef,
}

/// The loop's inside. See the module's text.
pub struct Io {
    // Driver and arena are dropped by hand: only when the kernel has given all memory back.
    pub(crate) driver: ManuallyDrop<Driver>,
    pub(crate) arena: ManuallyDrop<Arena>,
    /// Super-blocks of the arena that are registered with the ring.
    pub(crate) registered: u32,
    register_more: bool,
    pub(crate) conns: Conns,
    pub(crate) listeners: Vec<Option<Listener>>,
    pub(crate) disk: Disk,
    pub(crate) ublk: Option<Port>,
    pub(crate) events: VecDeque<Event>,
    /// Connections that may have something to deliver.
    pub(crate) ready: VecDeque<u32>,
    /// Connections whose sends and receives are to be looked after at the end of the turn.
    pub(crate) dirty: Vec<u32>,
    /// Connections whose handler wants nothing for now.
    pub(crate) paused: Vec<ConnId>,
    pub(crate) timers: BinaryHeap<Reverse<(Monotonic, ConnId)>>,
    pub(crate) accept_retry: Option<Monotonic>,
    completions: Vec<Completion>,
    pub(crate) now: Monotonic,
    pub(crate) stats: Stats,
    waker: Waker,
    wake: WakeEnd,
    wake_fd: FdRef,
    signals: Option<Watched>,
    pub(crate) stopped: bool,
}

impl core::fmt::Debug for Io {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Io")
            .field("backend", &self.driver.backend())
            .field("connections", &self.conns.len())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Io {
    pub(crate) fn new(config: LoopConfig, arena: Arena) -> Result<Io, RuntimeError> {
        let mut driver = Driver::new(config.backend, registered_max(&arena), config.spin)?;
        let (waker, wake) = crate::waker::waker()?;
        let wake_fd = driver.attach(wake.event.as_raw_fd(), FdUse::Input)?;
        let mut io = Io {
            driver: ManuallyDrop::new(driver),
            arena: ManuallyDrop::new(arena),
            registered: 0,
            register_more: true,
            conns: Conns::default(),
            listeners: Vec::new(),
            disk: Disk::default(),
            ublk: None,
            events: VecDeque::new(),
            ready: VecDeque::new(),
            dirty: Vec::new(),
            paused: Vec::new(),
            timers: BinaryHeap::new(),
            accept_retry: None,
            completions: Vec::new(),
            now: crate::clock::now(),
            stats: Stats::default(),
            waker,
            wake,
            wake_fd,
            signals: None,
            stopped: false,
        };
        io.watch(Key::Wake, wake_fd);
        Ok(io)
    }

    /// The arena, which is the machines' `Buffers`.
    pub fn arena(&mut self) -> &mut Arena {
        &mut self.arena
    }

    /// When this round of the turn began.
    pub fn now(&self) -> Monotonic {
        self.now
    }

    /// The backend in use: never `Auto`.
    pub fn backend(&self) -> Backend {
        self.driver.backend()
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        Stats {
            enters: self.driver.enters(),
            ..self.stats
        }
    }

    /// Connections there are, those included whose `Closed` has been delivered but whose peer has not
    /// ended yet (at most [`crate::limits::LINGER_TIME_MAX`]).
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// Bytes of the arena that are registered with the ring.
    pub fn registered_bytes(&self) -> u64 {
        u64::from(self.registered) * u64::from(SUPER_BLOCK_BYTES)
    }

    /// Ends [`crate::Loop::run`] after this turn. Queued output is not waited for: to end well, stop
    /// listening, close the connections with `drain`, and stop once each has had its `Closed`.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// A handle for other threads to send messages with.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Blocks these signals on this thread, and on those that it starts from now on, and delivers
    /// them as events instead. To be called once, before other threads start.
    ///
    /// # Errors
    /// When the kernel refuses, or it has been called before.
    pub fn catch_signals(&mut self, signals: &[Signal]) -> Result<(), RuntimeError> {
        if self.signals.is_some() {
            let why = "it has been done before";
            return Err(RuntimeError::own(
                "catch signals",
                io::ErrorKind::AlreadyExists,
                why,
            ));
        }
        let owned = crate::signals::open(signals)?;
        let fd = self.driver.attach(owned.as_raw_fd(), FdUse::Input)?;
        self.signals = Some(Watched { owned, fd });
        self.watch(Key::Signal, fd);
        Ok(())
    }

    fn watch(&mut self, key: Key, fd: FdRef) {
        // SAFETY: waiting for readability names no memory.
        unsafe { self.driver.submit(key.pack(), fd, SysOp::Readable) };
    }

    /// Starts a connection. `Opened` or `Closed` tells how it ended, within `timeout`.
    pub fn dial(&mut self, address: &Address, timeout: Duration) -> ConnId {
        let (id, slot) = self.conns.reserve();
        let Some(slot) = slot else {
            tracing::warn!(%address, "too many connections: dial fails");
            self.events.push_back(Event::Closed(id));
            return id;
        };
        if let Err(error) = self.start_dial(id, slot, address, timeout) {
            tracing::debug!(%address, %error, "dial fails");
            self.conns.unreserve(slot);
            self.events.push_back(Event::Closed(id));
        }
        id
    }

    fn start_dial(
        &mut self,
        id: ConnId,
        slot: u32,
        address: &Address,
        timeout: Duration,
    ) -> Result<(), RuntimeError> {
        let (socket, target) = sockets::dialling(address)
            .map_err(|error| RuntimeError::new(format!("dial {address}"), error))?;
        sockets::no_delay(&socket, address);
        let fd = self.driver.attach(socket.as_raw_fd(), FdUse::Stream)?;
        let link = Link::Socket { socket, fd };
        let mut conn = Box::new(Conn::new(id, Phase::Connecting, link, address.clone()));
        let target = conn.target.insert(Box::new(target));
        let connect = SysOp::Connect {
            address: target.as_ptr().cast(),
            len: target.len(),
        };
        conn.connecting = true;
        let deadline = crate::clock::now().after(timeout);
        conn.deadline = Some(deadline);
        self.conns.put(slot, conn);
        self.timers.push(Reverse((deadline, id)));
        // SAFETY: the address is boxed in the connection, which stays until the completion.
        unsafe { self.driver.submit(Key::Connect(slot).pack(), fd, connect) };
        Ok(())
    }

    /// The other end's address; a Unix client has none.
    pub fn peer(&self, conn: ConnId) -> Option<&Address> {
        self.conns.find(conn).map(|conn| &conn.peer)
    }

    /// Queues a frame: `head`, then the payload, whose buffer is retained until it has been sent
    /// and must not change meanwhile. All that is queued in one turn leaves together. Ignored when
    /// the connection is not open. Beyond [`OUTPUT_BYTES_MAX`] the connection is closed.
    pub fn send(&mut self, conn: ConnId, head: &[u8], payload: Option<BufSlice>) {
        let Some(slot) = self.conns.slot_of(conn) else {
            return;
        };
        let Some(entry) = self.conns.get(slot) else {
            return;
        };
        if entry.phase != Phase::Open {
            return;
        }
        let len = head.len() + payload.map_or(0, |slice| slice.len as usize);
        if entry.output.queued() + len > OUTPUT_BYTES_MAX {
            tracing::warn!(
                peer = %entry.peer,
                queued_bytes = entry.output.queued(),
                "connection closed: its peer does not read"
            );
            return self.kill(slot);
        }
        if let Link::Own(other) = entry.link {
            return self.send_own(slot, other, head, payload);
        }
        entry.output.push(head, payload, &mut self.arena);
        self.mark_dirty(slot);
    }

    /// Holds back what is and will be queued for a connection until it is released, closed, or more
    /// than [`crate::limits::HELD_BYTES_MAX`].
    pub fn hold(&mut self, conn: ConnId) {
        self.set_held(conn, true);
    }

    /// Ends [`Io::hold`]: what is queued leaves at the end of the turn.
    pub fn release(&mut self, conn: ConnId) {
        self.set_held(conn, false);
    }

    fn set_held(&mut self, conn: ConnId, held: bool) {
        let Some(slot) = self.conns.slot_of(conn) else {
            return;
        };
        if let Some(entry) = self.conns.get(slot) {
            entry.held = held;
        }
        self.offer(slot);
        self.mark_dirty(slot);
    }

    /// Bytes queued for a connection and not yet taken by the kernel; 0 when it is gone.
    pub fn queued_bytes(&self, conn: ConnId) -> usize {
        self.conns.find(conn).map_or(0, |conn| conn.output.queued())
    }

    /// Closes a connection; `Closed` follows. With `drain` what is queued is sent first, within
    /// [`crate::limits::DRAIN_TIME_MAX`]. Nothing more is received.
    pub fn close(&mut self, conn: ConnId, drain: bool) {
        let Some(slot) = self.conns.slot_of(conn) else {
            return;
        };
        let Some(entry) = self.conns.get(slot) else {
            return;
        };
        match entry.phase {
            Phase::Open if drain => self.begin_drain(slot),
            Phase::Open | Phase::Connecting => self.kill(slot),
            Phase::Draining if !drain => self.kill(slot),
            Phase::Draining | Phase::Lingering | Phase::Dead => {}
        }
    }

    /// Registers what the arena has grown by, as far as the kernel allows it.
    pub(crate) fn register_arena(&mut self) {
        while self.register_more && self.registered < self.arena.super_blocks() {
            let (start, len) = self.arena.super_block(self.registered);
            // SAFETY: the arena's mapping outlives the driver: both are dropped by hand, the driver
            // first.
            self.register_more = unsafe { self.driver.register(self.registered, start, len) };
            if self.register_more {
                self.registered += 1;
            }
        }
    }

    /// How long the loop may sleep.
    pub(crate) fn sleep_time(&self, deadline: Option<Monotonic>) -> Duration {
        let busy = !self.events.is_empty() || !self.ready.is_empty() || !self.dirty.is_empty();
        if busy || self.stopped {
            return Duration::ZERO;
        }
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        let wakes = [deadline, timer, self.accept_retry]
            .into_iter()
            .flatten()
            .min();
        let now = crate::clock::now();
        wakes
            .map_or(SLEEP_TIME_MAX, |at| at.since(now))
            .min(SLEEP_TIME_MAX)
    }

    /// Submits, sleeps, and turns completions into events.
    pub(crate) fn enter(&mut self, wait: Duration) -> Result<(), RuntimeError> {
        let mut completions = core::mem::take(&mut self.completions);
        completions.clear();
        let result = self.driver.enter(wait, &mut completions);
        self.now = crate::clock::now();
        for completion in &completions {
            self.complete(completion);
        }
        self.completions = completions;
        result
    }

    fn complete(&mut self, completion: &Completion) {
        let result = completion.result;
        match Key::unpack(completion.key) {
            Some(Key::Accept(index)) => self.accept_completed(index, result),
            Some(Key::Connect(slot)) => self.connect_completed(slot, result),
            Some(Key::Receive(slot)) => self.receive_completed(slot, result, completion.more),
            Some(Key::Send(slot)) => self.send_completed(slot, result),
            Some(Key::Disk(index)) => self.disk_completed(index, result),
            Some(Key::Ublk(index)) => self.ublk_completed(index, result),
            Some(Key::UblkPrepare(place)) => {
                self.ublk_batch_completed(completion, BatchKey::Prepare(place));
            }
            Some(Key::UblkCommit(place)) => {
                self.ublk_batch_completed(completion, BatchKey::Commit(place));
            }
            Some(Key::UblkFetch(queue)) => {
                self.ublk_batch_completed(completion, BatchKey::Fetch(queue));
            }
            Some(Key::Wake) => {
                silence(&self.wake.event);
                self.events.extend(
                    self.wake
                        .receiver
                        .try_iter()
                        .take(MESSAGES_MAX)
                        .map(Event::Message),
                );
                self.watch(Key::Wake, self.wake_fd);
            }
            Some(Key::Signal) => {
                let Some(watched) = &self.signals else { return };
                let fd = watched.fd;
                while let Some(signal) = crate::signals::next(&watched.owned) {
                    self.events.push_back(Event::Signal(signal));
                }
                self.watch(Key::Signal, fd);
            }
            None => tracing::error!(key = completion.key, "completion of nothing known"),
        }
    }

    /// What is due by the clock.
    pub(crate) fn expire(&mut self) {
        if self.accept_retry.is_some_and(|at| at <= self.now) {
            self.accept_retry = None;
            self.accept_all();
        }
        while let Some(Reverse((at, id))) = self.timers.peek().copied() {
            if at > self.now {
                break;
            }
            self.timers.pop();
            self.connection_expired(id);
        }
    }

    /// Ends everything and waits until the kernel has given the memory back.
    fn shut_down(&mut self) -> bool {
        for index in 0..self.listeners.len() {
            self.stop_listening(ListenerId(u32::try_from(index).unwrap_or(u32::MAX)));
        }
        for slot in self.conns.occupied() {
            self.kill(slot);
        }
        self.driver.cancel(Key::Wake.pack(), self.wake_fd);
        if let Some(watched) = &self.signals {
            self.driver.cancel(Key::Signal.pack(), watched.fd);
        }
        let deadline = crate::clock::now().after(DROP_WAIT_MAX);
        let mut completions = Vec::with_capacity(DISK_IN_FLIGHT_MAX);
        // The kernel ends commands of a ublk device when the ring is closed; what they name stays.
        while self.driver.in_flight() > self.ublk_commands() {
            let left = deadline.since(crate::clock::now());
            if left.is_zero() || self.driver.enter(left, &mut completions).is_err() {
                return false;
            }
            for completion in completions.drain(..) {
                match Key::unpack(completion.key) {
                    Some(Key::Wake | Key::Signal) | None => {}
                    Some(_) => self.complete(&completion),
                }
            }
            self.reap_dirty();
        }
        self.reap_dirty();
        self.close_files();
        // Runs what the kernel has deferred, so that it lets go of the files.
        if let Err(error) = self.driver.enter(Duration::ZERO, &mut completions) {
            tracing::debug!(%error, "last enter");
        }
        true
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if !self.shut_down() {
            tracing::error!(
                in_flight = self.driver.in_flight(),
                "the kernel keeps memory of unfinished operations: it is leaked"
            );
            // Descriptors and buffers of unfinished operations live on as well.
            let kept = (
                core::mem::take(&mut self.conns),
                core::mem::take(&mut self.disk),
            );
            Box::leak(Box::new(kept));
            return;
        }
        // SAFETY: dropped here and nowhere else; nothing is in flight, so no memory is in use.
        unsafe { ManuallyDrop::drop(&mut self.driver) };
        // SAFETY: dropped here and nowhere else, after the driver that the regions were registered
        // with.
        unsafe { ManuallyDrop::drop(&mut self.arena) };
    }
}
