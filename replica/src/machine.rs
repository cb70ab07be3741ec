//! The replica machine: events in, actions out. What it does with frames is in the sibling modules;
//! here is its life: opening the store, routing, the store's events, stopping.

use crate::calls::{Call, Calls, What};
use crate::config::Config;
use crate::election::Ballot;
use crate::handshake::lease_after_restart;
use crate::lease::{Lease, millis};
use crate::limits::WINDOW_RESERVE;
use crate::maps::Staged;
use crate::session::{PendingRead, Session};
use crate::status::Counters;
use crate::store::{
    DiskError, DiskOp, DiskTag, Facts, FailCause, OpenError, OpenStep, Opened, Opening, Store,
    StoreEvent, StoreOut,
};
use crate::timing::Timing;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;
use trilith_block::{
    Actions, BufSlice, Buffers, Bytes, ConnId, Idx, Machine, Monotonic, StreamEvent, Term, Uuid,
    Words,
};
use trilith_wire::{Encoder, EntryStatus, Message, Reason, ReplicaState, StateFlags};

/// What can happen to a replica.
pub enum Event<'a> {
    /// The driver is ready: the store is to be opened. Comes once, first.
    Start,
    /// The answer to [`Action::NeedWords`].
    Words(Box<dyn Words>),
    /// Something on one of its connections.
    Stream(ConnId, StreamEvent<'a>),
    /// A disk operation has ended.
    Disk(DiskTag, Result<(), DiskError>),
    /// What the file system has left for the data file.
    Space {
        /// Bytes.
        free_bytes: u64,
    },
    /// The process is to end: sessions are closed, writes in flight are waited for, then
    /// [`Action::Stopped`]. It is not a clean stop of the volume (that is SEAL): the window stays
    /// for the next process.
    Stop,
}

impl fmt::Debug for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Start => f.write_str("Start"),
            Event::Words(words) => write!(f, "Words({})", words.len()),
            Event::Stream(conn, event) => write!(f, "Stream({conn:?}, {event:?})"),
            Event::Disk(tag, result) => write!(f, "Disk({tag:?}, {result:?})"),
            Event::Space { free_bytes } => write!(f, "Space({free_bytes})"),
            Event::Stop => f.write_str("Stop"),
        }
    }
}

/// What a replica wants done.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// Send these head bytes, then the payload if there is one.
    Send {
        /// Where to.
        conn: ConnId,
        /// The head.
        head: Bytes,
        /// What follows it.
        payload: Option<BufSlice>,
    },
    /// Close the connection once everything sent on it has left. `Closed` follows.
    Close {
        /// Which one.
        conn: ConnId,
    },
    /// A disk operation; [`Event::Disk`] with the tag follows.
    Disk(DiskTag, DiskOp),
    /// The window memory of this replica is wanted; [`Event::Words`] follows.
    NeedWords {
        /// Number of words, at least.
        len: usize,
        /// Volume.
        volume: Uuid,
        /// Replica, for the name of the file.
        replica: Uuid,
    },
    /// The store stands; sessions are served from now on.
    Opened(Opened),
    /// The answer to [`Event::Stop`]: nothing is in flight, all buffers are given back.
    Stopped,
    /// This process cannot go on. The driver lets what was sent leave and ends the process; a
    /// supervisor may start a new one unless the cause is [`Fatal::Open`] or
    /// [`Fatal::WrongVolume`].
    Fatal(Fatal),
}

/// Why a replica gives up.
#[derive(Clone, Copy, Debug)]
pub enum Fatal {
    /// The store cannot be opened.
    Open(OpenError),
    /// Another volume is in the store.
    WrongVolume {
        /// The volume found.
        found: Uuid,
    },
    /// A flush or a metadata write failed (F2). The next process comes up tainted.
    Store(FailCause),
}

/// What a step works with.
pub(crate) struct Context<'a> {
    pub(crate) now: Monotonic,
    pub(crate) data: &'a mut dyn Buffers,
    pub(crate) out: &'a mut Actions<Action>,
}

/// One replica of a volume.
#[derive(Debug)]
pub struct Replica {
    pub(crate) config: Config,
    opening: Option<Opening>,
    pub(crate) store: Option<Box<Store>>,
    pub(crate) store_out: StoreOut,
    /// Events being handled; swapped with those of `store_out`.
    events: Vec<StoreEvent>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) calls: Calls,
    pub(crate) reads: VecDeque<PendingRead>,
    pub(crate) staged: Staged,
    pub(crate) ballot: Option<Ballot>,
    pub(crate) lease: Lease,
    /// The lease is to be stored with the window header (M14).
    pub(crate) lease_dirty: bool,
    pub(crate) encoder: Encoder,
    /// Checksums, positions or records of the frame being made.
    pub(crate) scratch: Vec<u8>,
    /// Positions accepted since the last ACK.
    pub(crate) fresh: Vec<Idx>,
    /// Highest flush answered by the store and not told yet.
    pub(crate) flushed: Option<Idx>,
    /// Highest position handed to the store in this stream: what is below and not accepted is on
    /// its way there.
    pub(crate) taken: Idx,
    pub(crate) commit: Idx,
    pub(crate) nonces: u64,
    pub(crate) counters: Counters,
    pub(crate) timing: Timing,
    failed: bool,
    stop: Stop,
}

/// How far the end of the process is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stop {
    No,
    Asked,
    Drained,
    Over,
}

impl Replica {
    /// A replica that waits for [`Event::Start`].
    pub fn new(config: Config) -> Replica {
        Replica {
            config,
            opening: None,
            store: None,
            store_out: StoreOut::new(),
            events: Vec::new(),
            sessions: Vec::new(),
            calls: Calls::default(),
            reads: VecDeque::new(),
            staged: Staged::default(),
            ballot: None,
            lease: Lease::default(),
            lease_dirty: false,
            encoder: Encoder::new(),
            scratch: Vec::new(),
            fresh: Vec::new(),
            flushed: None,
            taken: Idx(0),
            commit: Idx(0),
            nonces: 0,
            counters: Counters::default(),
            timing: Timing::new(),
            failed: false,
            stop: Stop::No,
        }
    }

    /// The store, for inspection (status, tests, checkers). `None` until it stands.
    pub fn store(&self) -> Option<&Store> {
        self.store.as_deref()
    }

    /// True when sessions are served.
    pub(crate) fn is_open(&self) -> bool {
        self.store.is_some() && self.stop == Stop::No
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop != Stop::No
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.failed
    }

    /// Durable facts. Only asked when the store stands; before that there are none.
    pub(crate) fn facts(&self) -> Facts {
        match &self.store {
            Some(store) => store.facts(),
            None => crate::handshake::no_facts(),
        }
    }

    pub(crate) fn session(&mut self, conn: ConnId) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|s| s.conn == conn)
    }

    /// The engine at the other end of a welcomed session.
    pub(crate) fn engine_of(&self, conn: ConnId) -> Uuid {
        self.sessions
            .iter()
            .find(|s| s.conn == conn)
            .map_or(Uuid::NONE, |s| s.engine)
    }

    /// The session of the engine that holds the promise, unless a vote is under way.
    pub(crate) fn leader(&self) -> Option<ConnId> {
        if self.ballot.is_some() || self.failed {
            return None;
        }
        let voted = self.voted_engine();
        if voted.is_none() {
            return None;
        }
        self.sessions
            .iter()
            .find(|s| s.is_ready() && s.engine == voted)
            .map(|s| s.conn)
    }

    /// Queues a frame. Nothing is sent on a connection that is being closed.
    pub(crate) fn send(&mut self, conn: ConnId, message: &Message<'_>, cx: &mut Context<'_>) {
        self.send_with(conn, message, None, cx);
    }

    /// Queues a frame with a payload, whose buffer this takes over.
    pub(crate) fn send_with(
        &mut self,
        conn: ConnId,
        message: &Message<'_>,
        payload: Option<BufSlice>,
        cx: &mut Context<'_>,
    ) {
        if self
            .sessions
            .iter()
            .any(|s| s.conn == conn && !s.is_closing())
        {
            send(&mut self.encoder, conn, message, payload, cx);
        }
        // The driver has an owner of its own from the action on.
        crate::streams::release(payload, cx);
    }

    /// What this replica says of itself. The lease is the one that binds `engine`.
    pub(crate) fn state(&self, now: Monotonic, engine: Uuid) -> ReplicaState {
        let facts = self.facts();
        let (upto, tidx, max_idx, window_count, free_extents) =
            self.store
                .as_ref()
                .map_or((Idx(0), Idx(0), Idx(0), 0, 0), |s| {
                    (
                        s.upto(),
                        s.tidx(),
                        s.max_idx(),
                        s.window_count(),
                        s.free_extents(),
                    )
                });
        let need = self.store.as_ref().is_some_and(|s| s.has_need());
        ReplicaState {
            replica: facts.replica,
            boot: self.config.open.boot,
            voted_engine: facts.voted,
            leader: self.lease.leader(now),
            term: facts.term,
            attach_epoch: facts.attach_epoch,
            se: facts.se,
            iss: facts.iss,
            trk: facts.trk,
            loss: facts.loss,
            w: facts.w,
            upto,
            tidx,
            max_idx,
            capacity: facts.capacity,
            free_extents,
            credit_entries: self.credit_entries(),
            credit_bytes: self.config.credit_bytes,
            member: facts.member,
            config: facts.config,
            flags: StateFlags {
                tainted: facts.tainted,
                volatile_cache: facts.volatile_cache,
                sealed: facts.sealed,
                need,
                failed: self.failed,
            },
            lease_left_ms: millis(self.lease.left_for_others(now, engine, Uuid::NONE)),
            window_count,
        }
    }

    /// Positions the engine may use above `upto`.
    pub(crate) fn credit_entries(&self) -> u32 {
        let Some(store) = &self.store else { return 0 };
        let slots = store.window_slots();
        let usable = slots - WINDOW_RESERVE.min(slots / 8);
        let used = u32::try_from(store.upto().0.saturating_sub(store.tidx().0)).unwrap_or(u32::MAX);
        usable.saturating_sub(used)
    }

    fn start(&mut self, cx: &mut Context<'_>) {
        match Opening::new(self.config.open, cx.data, &mut self.store_out) {
            Ok(opening) => self.opening = Some(opening),
            Err(error) => self.fatal(Fatal::Open(error), cx),
        }
    }

    fn opening_step(&mut self, step: OpenStep, cx: &mut Context<'_>) {
        match step {
            OpenStep::Working => {}
            OpenStep::NeedWords {
                len,
                volume,
                replica,
            } => {
                cx.out.push(Action::NeedWords {
                    len,
                    volume,
                    replica,
                });
            }
            OpenStep::Done(store, opened) => {
                self.opening = None;
                self.stand(store, opened, cx);
            }
            OpenStep::Failed(error) => {
                self.opening = None;
                self.fatal(Fatal::Open(error), cx);
            }
        }
    }

    fn stand(&mut self, store: Box<Store>, opened: Opened, cx: &mut Context<'_>) {
        let facts = store.facts();
        if !self.config.volume.is_none() && facts.volume != self.config.volume {
            store.close(cx.data);
            return self.fatal(
                Fatal::WrongVolume {
                    found: facts.volume,
                },
                cx,
            );
        }
        let grant = opened.resumed.then(|| store.lease());
        self.lease = lease_after_restart(grant, &facts, cx.now, self.config.lease);
        self.lease_dirty = true;
        self.store = Some(store);
        for session in &mut self.sessions {
            session.seen_at = cx.now;
        }
        cx.out.push(Action::Opened(opened));
    }

    fn fatal(&mut self, cause: Fatal, cx: &mut Context<'_>) {
        self.failed = true;
        cx.out.push(Action::Fatal(cause));
    }

    fn disk_done(&mut self, tag: DiskTag, result: Result<(), DiskError>, cx: &mut Context<'_>) {
        self.timing.end(tag, cx.now);
        if let Some(opening) = self.opening.as_mut() {
            let step = opening.disk_done(tag, result, cx.data, &mut self.store_out);
            self.opening_step(step, cx);
        } else if let Some(store) = self.store.as_mut() {
            store.disk_done(tag, result, cx.data, &mut self.store_out);
        }
    }

    fn words(&mut self, words: Box<dyn Words>, cx: &mut Context<'_>) {
        if let Some(opening) = self.opening.as_mut() {
            let step = opening.words(words, cx.data, &mut self.store_out);
            self.opening_step(step, cx);
        }
    }

    /// Carries the store's operations to the driver and handles its events, until there is none.
    pub(crate) fn pump(&mut self, cx: &mut Context<'_>) {
        loop {
            for (tag, op) in self.store_out.ops.drain(..) {
                self.timing.start(tag, &op, cx.now);
                cx.out.push(Action::Disk(tag, op));
            }
            if self.store_out.events.is_empty() {
                return;
            }
            core::mem::swap(&mut self.events, &mut self.store_out.events);
            for at in 0..self.events.len() {
                let event = self.events[at];
                self.store_event(event, cx);
            }
            self.events.clear();
        }
    }

    fn store_event(&mut self, event: StoreEvent, cx: &mut Context<'_>) {
        match event {
            StoreEvent::Accepted { idx } => self.fresh.push(idx),
            StoreEvent::EntryFailed { idx, error } => self.entry_failed(idx, error, cx),
            StoreEvent::Flushed { idx } => {
                self.flushed = Some(self.flushed.map_or(idx, |f| f.max(idx)));
            }
            StoreEvent::Repaired { token, result } => {
                if let Some(call) = self.calls.take(token) {
                    self.repaired(call, entry_status(result), cx);
                }
            }
            StoreEvent::ReadDone { token, result } => {
                if let Some(call) = self.calls.take(token) {
                    self.read_done(call, result, cx);
                }
            }
            StoreEvent::Done { token } => {
                if let Some(call) = self.calls.take(token) {
                    self.call_done(call, cx);
                }
            }
            StoreEvent::Refused { token } => {
                if let Some(call) = self.calls.take(token) {
                    self.call_refused(call, cx);
                }
            }
            StoreEvent::Failed { cause } => self.store_failed(cause, cx),
        }
    }

    /// F2: nothing is acked any more, sessions end, the process is to be replaced.
    fn store_failed(&mut self, cause: FailCause, cx: &mut Context<'_>) {
        if self.failed {
            return;
        }
        let conns: Vec<ConnId> = self.sessions.iter().map(|s| s.conn).collect();
        for conn in conns {
            self.refuse(conn, Reason::Failed, 0, cx);
        }
        self.end_streams();
        self.ballot = None;
        // The driver owns what its operations under way name.
        let data = &mut *cx.data;
        self.calls.remove_if(|call| {
            if let What::Read { buf, .. } = call.what {
                data.release(buf.buf);
            }
            true
        });
        self.reads.clear();
        self.fatal(Fatal::Store(cause), cx);
    }

    /// All streams of entries are over: what they still wait for is answered to nobody.
    pub(crate) fn end_streams(&mut self) {
        for session in &mut self.sessions {
            session.next = None;
            session.get_map = None;
            session.ack_due = false;
            session.heartbeat = None;
        }
        self.staged.clear();
        self.taken = Idx(0);
        self.fresh.clear();
        self.forget_sync_sets();
        self.flushed = None;
    }

    /// SYNCSETs that a newer order of things has overtaken: the store may have given them up.
    pub(crate) fn forget_sync_sets(&mut self) {
        self.calls
            .remove_if(|call| matches!(call.what, What::SyncSet { .. }));
    }

    fn stop(&mut self, cx: &mut Context<'_>) {
        if self.stop != Stop::No {
            return;
        }
        self.stop = Stop::Asked;
        let conns: Vec<ConnId> = self.sessions.iter().map(|s| s.conn).collect();
        for conn in conns {
            self.close(conn, cx);
        }
        self.end_streams();
        self.ballot = None;
        if self.failed || self.store.is_none() {
            self.stop = Stop::Drained;
            return;
        }
        let call = Call {
            conn: ConnId(0),
            term: Term(0),
            what: What::Stop,
        };
        let token = self.calls.add(call);
        let Some(store) = self.store.as_mut() else {
            return;
        };
        if store.drain(token, cx.data, &mut self.store_out).is_err() {
            self.calls.take(token);
            self.stop = Stop::Drained;
        }
    }

    /// V3 of the process: the last write has ended.
    pub(crate) fn stop_drained(&mut self) {
        self.stop = Stop::Drained;
    }

    /// Ends the process once nothing is under way.
    fn finish_stop(&mut self, cx: &mut Context<'_>) {
        let quiet = self.calls.reads() == 0 && self.timing.in_flight == 0;
        if self.stop == Stop::Drained && self.sessions.is_empty() && quiet {
            self.stop = Stop::Over;
            if let Some(store) = self.store.take() {
                store.close(cx.data);
            }
            cx.out.push(Action::Stopped);
        }
    }
}

/// Queues a frame; the caller has checked the connection.
pub(crate) fn send(
    encoder: &mut Encoder,
    conn: ConnId,
    message: &Message<'_>,
    payload: Option<BufSlice>,
    cx: &mut Context<'_>,
) {
    let head = encoder.head(message, payload.map_or(0, |p| p.len), cx.data);
    let head = cx.out.bytes(head);
    cx.out.push(Action::Send {
        conn,
        head,
        payload,
    });
}

/// The status of a device operation on the wire.
pub(crate) fn entry_status(result: Result<(), DiskError>) -> EntryStatus {
    match result {
        Ok(()) => EntryStatus::Done,
        Err(DiskError::Io) => EntryStatus::Io,
        Err(DiskError::NoSpace) => EntryStatus::NoSpace,
        Err(DiskError::Checksum) => EntryStatus::Checksum,
    }
}

impl Machine for Replica {
    type Event<'a> = Event<'a>;
    type Action = Action;

    fn step(
        &mut self,
        now: Monotonic,
        event: Event<'_>,
        data: &mut dyn Buffers,
        out: &mut Actions<Action>,
    ) {
        let cx = &mut Context { now, data, out };
        match event {
            Event::Start => self.start(cx),
            Event::Words(words) => self.words(words, cx),
            Event::Stream(conn, event) => self.stream_event(conn, event, cx),
            Event::Disk(tag, result) => self.disk_done(tag, result, cx),
            Event::Space { free_bytes } => {
                if let Some(store) = self.store.as_mut() {
                    store.set_free_extents(free_bytes >> trilith_block::limits::EXTENT_SHIFT);
                }
            }
            Event::Stop => self.stop(cx),
        }
        self.pump(cx);
    }

    fn settle(&mut self, now: Monotonic, data: &mut dyn Buffers, out: &mut Actions<Action>) {
        let cx = &mut Context { now, data, out };
        if self.store.is_some() && !self.failed {
            if self.stop == Stop::No {
                self.expire_guests(cx);
                self.start_reads(cx);
                self.store_lease(now);
            }
            // The window's header is stored here: before the answers below leave.
            if let Some(store) = self.store.as_mut() {
                store.settle(cx.data, &mut self.store_out);
            }
            self.pump(cx);
            if !self.failed && self.stop == Stop::No {
                self.promise_when_drained(cx);
                self.answer(cx);
            }
        }
        self.finish_stop(cx);
    }

    fn deadline(&self) -> Option<Monotonic> {
        self.store.as_ref()?;
        self.guests_deadline()
    }
}
