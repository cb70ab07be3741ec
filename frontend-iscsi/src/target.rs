//! The machine: connections come and go, time passes, completions arrive. What PDUs mean is in
//! `receive.rs`, what becomes of commands in `command.rs` and `work.rs`.

use crate::chap::Challenges;
use crate::config::{ConfigProblem, IscsiConfig, IscsiStatus};
use crate::conn::{Conn, Phase, Recv};
use crate::limits::{
    ARENA_RETRY_SPAN, CONNECTION_SLOTS_MAX, CONNECTIONS_MAX, LOGIN_SPAN_MAX, LOGINS_MAX,
    PING_ANSWER_SPAN_MAX, PING_SPAN, SHUTDOWN_SPAN_MAX,
};
use crate::manage::Managing;
use crate::pdu::{Bhs, NO_TAG, flag, opcode};
use crate::pool::Pool;
use crate::sanitize::Sanitize;
use crate::scsi::disk::Disk;
use crate::scsi::reserve::Reservations;
use crate::tag::TagParts;
use crate::task::{Part, Task};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use trilith_block::{
    Actions, Buffers, ConnId, FrontendAction, FrontendEvent, Machine, Monotonic, Stream,
    StreamEvent, Tag, Want,
};

/// Actions of a frontend.
pub(crate) type Out = Actions<FrontendAction>;

/// Serves one volume as an iSCSI target with one logical unit, to many sessions.
#[derive(Debug)]
pub struct IscsiTarget {
    pub(crate) config: IscsiConfig,
    pub(crate) disk: Disk,
    pub(crate) challenges: Challenges,
    pub(crate) conns: Vec<Conn>,
    free: Vec<usize>,
    pub(crate) slots: BTreeMap<ConnId, usize>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) free_tasks: Vec<usize>,
    pub(crate) next_seq: u64,
    pub(crate) next_tsih: u16,
    pub(crate) pool: Pool,
    /// Parts (task, part) that wait for their turn, in order of arrival.
    pub(crate) queue: VecDeque<(usize, usize)>,
    /// Exclusive parts at the engine.
    pub(crate) exclusive: Vec<(usize, usize)>,
    pub(crate) managing: Vec<Managing>,
    pub(crate) sanitize: Sanitize,
    /// Ports whose tasks are to be aborted.
    pub(crate) victims: Vec<crate::scsi::reserve::Port>,
    /// Reservations as they were last to be kept, and the number of that state.
    pub(crate) kept: Vec<u8>,
    pub(crate) kept_number: u64,
    /// Number of the last state that is kept.
    pub(crate) kept_done: u64,
    /// The last state that was to be kept could not be.
    pub(crate) kept_lost: bool,
    /// False once the volume is going away for good.
    pub(crate) serving: bool,
    shutdown_end: Option<Monotonic>,
    /// When to look at logins and silent initiators again.
    watch: Option<Monotonic>,
    /// While waiting tasks are looked at: one before has found nothing.
    pub(crate) behind: Option<bool>,
    /// The arena was empty when a task asked.
    pub(crate) arena_empty: bool,
    arena_retry: Option<Monotonic>,
    pub(crate) now: Monotonic,
    pub(crate) status: IscsiStatus,
    /// Data of an answer being put together.
    pub(crate) reply: Vec<u8>,
    /// A PDU being put together.
    pub(crate) wire: Vec<u8>,
}

impl IscsiTarget {
    /// A target without connections. It serves until it is told `Serving(false)`.
    ///
    /// `kept`: reservations that outlive restarts, as [`IscsiTarget::unkept`] gave them last; empty
    /// when there are none.
    ///
    /// # Errors
    /// A value of the configuration is outside its limits, or `kept` is no such state: who relies
    /// on a reservation must not find the unit free in silence.
    pub fn new(config: IscsiConfig, kept: &[u8]) -> Result<IscsiTarget, ConfigProblem> {
        config.check()?;
        let mut disk = Disk::new(&config);
        disk.reservations = Reservations::of_bytes(kept).ok_or(ConfigProblem::Kept)?;
        disk.reservations.can_keep = config.keeps_reservations;
        Ok(IscsiTarget {
            challenges: Challenges::new(config.seed),
            config,
            disk,
            conns: Vec::new(),
            free: Vec::new(),
            slots: BTreeMap::new(),
            tasks: Vec::new(),
            free_tasks: Vec::new(),
            next_seq: 0,
            next_tsih: 0,
            pool: Pool::default(),
            queue: VecDeque::new(),
            exclusive: Vec::new(),
            managing: Vec::new(),
            victims: Vec::new(),
            sanitize: Sanitize::default(),
            kept: Vec::from(kept),
            kept_number: 0,
            kept_done: 0,
            kept_lost: false,
            serving: true,
            shutdown_end: None,
            watch: None,
            behind: None,
            arena_empty: false,
            arena_retry: None,
            now: Monotonic::default(),
            status: IscsiStatus::default(),
            reply: Vec::new(),
            wire: Vec::new(),
        })
    }

    /// Counters and gauges as of now.
    pub fn status(&self) -> IscsiStatus {
        let sessions = self.conns.iter().filter(|conn| conn.is_session());
        IscsiStatus {
            connections: self.slots.len() as u64,
            sessions: sessions.count() as u64,
            tasks_in_flight: (self.tasks.len() - self.free_tasks.len()) as u64,
            payload_bytes: self.pool.bytes(),
            tasks_waiting: self.pool.waiting.len() as u64,
            ..self.status
        }
    }

    /// Reservations that must be written to where they outlive a restart, and the number of that
    /// state; `None` when nothing has changed. Ask after every `step` and `settle`. The initiator
    /// is answered after [`IscsiTarget::kept`] only: persist, then answer.
    pub fn unkept(&self) -> Option<(u64, &[u8])> {
        (self.kept_done < self.kept_number).then_some((self.kept_number, &self.kept))
    }

    /// State `number` has been written durably (`true`), or cannot be (`false`): then the
    /// initiators that wait for it get an error.
    pub fn kept(
        &mut self,
        now: Monotonic,
        number: u64,
        ok: bool,
        data: &mut dyn Buffers,
        out: &mut Actions<FrontendAction>,
    ) {
        self.now = now;
        self.kept_done = self.kept_done.max(number.min(self.kept_number));
        self.kept_lost = !ok;
        self.finish_keeping(number, ok, data, out);
    }

    /// True when a request (by its tag, whose top 8 bits are ignored) is of a command that reads,
    /// decides and then writes (COMPARE AND WRITE, ORWRITE) and is under way: from the submission of
    /// its read until it is done with. No write of another frontend may come in between: the wiring
    /// keeps those back meanwhile, and has the read wait for those that came before.
    pub fn is_exclusive(&self, tag: Tag) -> bool {
        if self.exclusive.is_empty() {
            return false;
        }
        let tag = TagParts::of(tag);
        let task = self.tasks.get(tag.task);
        task.is_some_and(|task| task.active && task.generation == tag.generation)
            && self.exclusive.contains(&(tag.task, tag.part))
    }

    /// A slot for a new connection, if there may be one.
    fn free_slot(&mut self) -> Option<usize> {
        let logins = self.slots.len() as u64 - self.status().sessions.min(self.slots.len() as u64);
        if self.slots.len() >= CONNECTIONS_MAX || logins >= LOGINS_MAX as u64 {
            return None;
        }
        if self.free.is_empty() && self.conns.len() < CONNECTION_SLOTS_MAX {
            self.free.push(self.conns.len());
            self.conns.push(Conn::new());
        }
        self.free.pop()
    }

    fn opened(&mut self, id: ConnId, out: &mut Out) {
        let slot = if self.serving { self.free_slot() } else { None };
        let Some(slot) = slot else {
            self.status.connections_refused += 1;
            out.push(FrontendAction::Close { conn: id });
            return;
        };
        let end = self.now.after(LOGIN_SPAN_MAX);
        self.conns[slot].open(id, self.now, end);
        let before = self.slots.insert(id, slot);
        assert!(before.is_none(), "{id:?} is used twice");
        self.watch_until(end);
        self.status.connections_accepted += 1;
    }

    /// `settle` looks at all connections at this time at the latest.
    pub(crate) fn watch_until(&mut self, end: Monotonic) {
        self.watch = Some(self.watch.map_or(end, |first| first.min(end)));
    }

    /// Tells the driver to close; the session ends here. A buffer being received into is kept
    /// until the connection has closed.
    pub(crate) fn close(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        if !self.conns[slot].is_talking() {
            return;
        }
        let was_session = self.conns[slot].is_session();
        self.conns[slot].phase = Phase::Closing;
        out.push(FrontendAction::Close {
            conn: self.conns[slot].id,
        });
        self.end_session(slot, was_session, data, out);
    }

    fn closed(&mut self, id: ConnId, data: &mut dyn Buffers, out: &mut Out) {
        let Some(slot) = self.slots.remove(&id) else {
            return;
        };
        let was_session = self.conns[slot].is_session();
        self.conns[slot].phase = Phase::Orphan;
        self.end_session(slot, was_session, data, out);
        self.drop_payload(slot, data, out);
        self.free_orphan(slot);
    }

    /// Frees the slot of a connection that is gone when no task of it is left.
    pub(crate) fn free_orphan(&mut self, slot: usize) {
        let conn = &mut self.conns[slot];
        if conn.phase == Phase::Orphan && conn.tasks.is_empty() {
            assert!(conn.held == 0, "{} payload bytes are lost", conn.held);
            conn.phase = Phase::Free;
            self.free.push(slot);
        }
    }

    fn set_serving(&mut self, serving: bool, data: &mut dyn Buffers, out: &mut Out) {
        self.serving = serving;
        self.shutdown_end = (!serving).then(|| self.now.after(SHUTDOWN_SPAN_MAX));
        if serving {
            return;
        }
        for slot in 0..self.conns.len() {
            if self.conns[slot].is_session() {
                // RFC 7143 11.9.1: event 2, the connection will be dropped; Time2Wait 2 s.
                let head = Bhs::new(opcode::ASYNC, flag::FINAL)
                    .with32(16, NO_TAG)
                    .with_byte(36, 2)
                    .with16(38, self.conns[slot].cid)
                    .with16(40, 2);
                self.send(slot, head, true, &[], data, out);
            }
            self.close_if_done(slot, data, out);
        }
    }

    /// When service has ended: closes a connection of which the engine has nothing left to do. What
    /// still collects data would never be done; without an answer it is asked for again.
    pub(crate) fn close_if_done(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        let at_engine = |(_, t): &(u32, usize)| self.tasks[*t].parts.iter().any(Part::is_at_engine);
        if !self.serving && !self.conns[slot].tasks.iter().any(at_engine) {
            self.close(slot, data, out);
        }
    }

    /// Closes logins that take too long and connections that show no sign of life; asks for one.
    fn look_at_all(&mut self, data: &mut dyn Buffers, out: &mut Out) {
        let mut next: Option<Monotonic> = None;
        for slot in 0..self.conns.len() {
            let conn = &self.conns[slot];
            let end = match conn.phase {
                Phase::Login => conn.login_end,
                // It is not read: its silence is ours.
                Phase::Full if conn.recv == Recv::Wait => self.now.after(PING_SPAN),
                Phase::Full => conn.ping_end.unwrap_or_else(|| conn.seen.after(PING_SPAN)),
                Phase::Free | Phase::Closing | Phase::Orphan => continue,
            };
            if end > self.now {
                next = Some(next.map_or(end, |first| first.min(end)));
                continue;
            }
            let pinged = conn.ping_end.is_some();
            if conn.phase == Phase::Login || pinged {
                if conn.phase == Phase::Login {
                    self.status.logins_failed += 1;
                }
                self.close(slot, data, out);
                continue;
            }
            let end = self.now.after(PING_ANSWER_SPAN_MAX);
            self.conns[slot].ping_end = Some(end);
            next = Some(next.map_or(end, |first| first.min(end)));
            self.ping(slot, data, out);
        }
        self.watch = next;
    }

    /// Asks for a sign of life (RFC 7143 11.19).
    fn ping(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        let ttt = self.conns[slot].ttt();
        let mut head = Bhs::new(opcode::NOP_IN, flag::FINAL)
            .with32(16, NO_TAG)
            .with32(20, ttt);
        head = head.with(8, &[0, self.disk.lun, 0, 0, 0, 0, 0, 0]);
        self.send(slot, head, false, &[], data, out);
    }

    /// Closes every connection, those with tasks in flight too: they have had their time.
    fn end_service(&mut self, data: &mut dyn Buffers, out: &mut Out) {
        for slot in 0..self.conns.len() {
            self.close(slot, data, out);
        }
        self.shutdown_end = None;
    }

    /// Sends a PDU with sequence numbers. `status`: it has a StatSN of its own.
    pub(crate) fn send(
        &mut self,
        slot: usize,
        head: Bhs,
        status: bool,
        body: &[u8],
        data: &dyn Buffers,
        out: &mut Out,
    ) {
        let conn = &mut self.conns[slot];
        if conn.is_talking() {
            let head = conn.stamp(head, status);
            conn.send(head, body, data, &mut self.wire, out);
        }
    }
}

impl Machine for IscsiTarget {
    type Event<'a> = FrontendEvent<'a>;
    type Action = FrontendAction;

    fn step(
        &mut self,
        now: Monotonic,
        event: FrontendEvent<'_>,
        data: &mut dyn Buffers,
        out: &mut Actions<FrontendAction>,
    ) {
        self.now = now;
        match event {
            FrontendEvent::Stream(id, StreamEvent::Opened) => self.opened(id, out),
            FrontendEvent::Stream(id, StreamEvent::Closed) => self.closed(id, data, out),
            FrontendEvent::Stream(id, StreamEvent::Header(bytes)) => {
                if let Some(slot) = self.slots.get(&id).copied() {
                    self.conns[slot].seen = now;
                    self.header(slot, bytes, data, out);
                }
            }
            FrontendEvent::Stream(id, StreamEvent::Payload) => {
                if let Some(slot) = self.slots.get(&id).copied() {
                    self.conns[slot].seen = now;
                    self.payload(slot, data, out);
                }
            }
            FrontendEvent::Complete(completion) => self.completed(completion, data, out),
            FrontendEvent::Serving(serving) => self.set_serving(serving, data, out),
        }
    }

    fn settle(
        &mut self,
        now: Monotonic,
        data: &mut dyn Buffers,
        out: &mut Actions<FrontendAction>,
    ) {
        self.now = now;
        if self.watch.is_some_and(|end| end <= now) {
            self.look_at_all(data, out);
        }
        if self.shutdown_end.is_some_and(|end| end <= now) {
            self.end_service(data, out);
        }
        self.arena_empty = false;
        self.go_on_sanitizing(data, out);
        if !self.pool.waiting.is_empty() {
            self.feed_waiting(data, out);
        }
        self.arena_retry = self.arena_empty.then(|| now.after(ARENA_RETRY_SPAN));
    }

    fn deadline(&self) -> Option<Monotonic> {
        let ends = [
            self.watch,
            self.shutdown_end,
            self.arena_retry,
            self.sanitize.wake,
        ];
        ends.into_iter().flatten().min()
    }
}

impl Stream for IscsiTarget {
    fn want(&mut self, conn: ConnId, _data: &mut dyn Buffers) -> Want {
        let Some(slot) = self.slots.get(&conn) else {
            return Want::Pause;
        };
        let conn = &self.conns[*slot];
        if !conn.is_talking() {
            return Want::Pause;
        }
        match conn.recv {
            Recv::Head => Want::Header(conn.head_bytes()),
            Recv::Ahs(len) | Recv::Text(len) | Recv::Tail(len) => Want::Header(len),
            Recv::Payload(slice) => Want::Payload(slice),
            Recv::Discard(len) => Want::Discard(len),
            Recv::Wait => Want::Pause,
        }
    }
}
