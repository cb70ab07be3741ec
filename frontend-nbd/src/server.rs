//! The machine: connections come, negotiate and go. What happens to requests is in
//! `transmission.rs`.

use crate::config::{ConfigProblem, NbdConfig, NbdStatus};
use crate::conn::{Conn, Phase};
use crate::handshake::{Intake, Next, greeting, intake};
use crate::limits::{
    ARENA_RETRY_SPAN, CONNECTION_SLOTS_MAX, CONNECTIONS_MAX, NEGOTIATION_SPAN_MAX, OPTIONS_MAX,
    REQUESTS_MAX, SHUTDOWN_SPAN_MAX,
};
use crate::pool::Pool;
use crate::proto::{
    CLIENT_FLAGS_BYTES, EXTENDED_REQUEST_BYTES, IHAVEOPT, OPTION_HEAD_BYTES, REQUEST_BYTES, be32,
    be64,
};
use crate::reply::ReplyMode;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use trilith_block::{
    Actions, BufSlice, Buffers, ConnId, FrontendAction, FrontendEvent, Machine, Monotonic, Stream,
    StreamEvent, Want,
};

/// Actions of a frontend.
pub(crate) type Out = Actions<FrontendAction>;

/// Serves one volume by the NBD protocol, on many connections.
#[derive(Debug)]
pub struct NbdServer {
    pub(crate) export: NbdConfig,
    pub(crate) conns: Vec<Conn>,
    free: Vec<usize>,
    slots: BTreeMap<ConnId, usize>,
    pub(crate) pool: Pool,
    /// False once the volume is going away for good.
    pub(crate) serving: bool,
    /// When connections are closed whatever they have in flight.
    shutdown_end: Option<Monotonic>,
    /// Not later than the first end of a negotiation.
    negotiation_end: Option<Monotonic>,
    /// The arena was empty when a connection asked.
    pub(crate) arena_empty: bool,
    /// When to ask the arena again.
    arena_retry: Option<Monotonic>,
    pub(crate) status: NbdStatus,
    /// Replies being put together.
    pub(crate) scratch: Vec<u8>,
}

impl NbdServer {
    /// A server without connections. It serves until it is told `Serving(false)`.
    ///
    /// # Errors
    /// A value of the configuration is outside its limits.
    pub fn new(config: NbdConfig) -> Result<NbdServer, ConfigProblem> {
        config.check()?;
        Ok(NbdServer {
            export: config,
            conns: Vec::new(),
            free: Vec::new(),
            slots: BTreeMap::new(),
            pool: Pool::default(),
            serving: true,
            shutdown_end: None,
            negotiation_end: None,
            arena_empty: false,
            arena_retry: None,
            status: NbdStatus::default(),
            scratch: Vec::new(),
        })
    }

    /// Counters and gauges as of now.
    pub fn status(&self) -> NbdStatus {
        NbdStatus {
            connections: self.slots.len() as u64,
            payload_bytes: self.pool.bytes(),
            connections_waiting: self.pool.waiting.len() as u64,
            ..self.status
        }
    }

    /// A slot for a new connection, if there may be one.
    fn free_slot(&mut self) -> Option<usize> {
        if self.slots.len() >= CONNECTIONS_MAX {
            return None;
        }
        if self.free.is_empty() && self.conns.len() < CONNECTION_SLOTS_MAX {
            self.free.push(self.conns.len());
            self.conns.push(Conn::new());
        }
        self.free.pop()
    }

    fn opened(&mut self, now: Monotonic, id: ConnId, out: &mut Out) {
        let Some(slot) = self.free_slot() else {
            self.status.connections_refused += 1;
            out.push(FrontendAction::Close { conn: id });
            return;
        };
        let end = now.after(NEGOTIATION_SPAN_MAX);
        self.conns[slot].open(id, end);
        let before = self.slots.insert(id, slot);
        assert!(before.is_none(), "{id:?} is used twice");
        self.negotiation_end = Some(self.negotiation_end.map_or(end, |first| first.min(end)));
        self.status.connections_accepted += 1;
        send(out, id, &greeting(), None);
    }

    fn header(&mut self, slot: usize, bytes: &[u8], data: &mut dyn Buffers, out: &mut Out) {
        match self.conns[slot].phase {
            Phase::ClientFlags => {
                let flags = be32(bytes, 0).filter(|_| bytes.len() == CLIENT_FLAGS_BYTES);
                let conn = &mut self.conns[slot];
                if flags.is_some_and(|flags| conn.session.client_flags(flags)) {
                    conn.phase = Phase::OptionHead;
                } else {
                    self.close(slot, data, out);
                }
            }
            Phase::OptionHead => self.option_head(slot, bytes, data, out),
            Phase::OptionData { kind, .. } => self.option(slot, kind, bytes, data, out),
            Phase::Command => self.command(slot, bytes, data, out),
            // Not asked for: the driver and this machine are out of step.
            Phase::OptionSkip { .. }
            | Phase::Waiting
            | Phase::Payload
            | Phase::Skip { .. }
            | Phase::Leaving => self.close(slot, data, out),
            Phase::Free | Phase::Closing | Phase::Orphan => {}
        }
    }

    fn option_head(&mut self, slot: usize, bytes: &[u8], data: &mut dyn Buffers, out: &mut Out) {
        let fields = (be64(bytes, 0), be32(bytes, 8), be32(bytes, 12));
        let (Some(IHAVEOPT), Some(kind), Some(len)) = fields else {
            self.close(slot, data, out);
            return;
        };
        let conn = &mut self.conns[slot];
        conn.options += 1;
        if conn.options > OPTIONS_MAX {
            self.status.negotiations_cut += 1;
            self.close(slot, data, out);
            return;
        }
        match intake(kind, len) {
            Intake::Keep if len == 0 => self.option(slot, kind, &[], data, out),
            Intake::Keep => conn.phase = Phase::OptionData { kind, len },
            Intake::Skip(reply) => conn.phase = Phase::OptionSkip { kind, len, reply },
            Intake::Close => self.close(slot, data, out),
        }
    }

    fn option(
        &mut self,
        slot: usize,
        kind: u32,
        bytes: &[u8],
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        self.scratch.clear();
        let session = &mut self.conns[slot].session;
        let next = session.option(&self.export, self.serving, kind, bytes, &mut self.scratch);
        self.after_option(slot, next, data, out);
    }

    fn option_skipped(
        &mut self,
        slot: usize,
        kind: u32,
        reply: u32,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        self.scratch.clear();
        let next = self.conns[slot]
            .session
            .skipped(kind, reply, &mut self.scratch);
        self.after_option(slot, next, data, out);
    }

    /// Sends the replies in `scratch` and goes on.
    fn after_option(&mut self, slot: usize, next: Next, data: &mut dyn Buffers, out: &mut Out) {
        let conn = &mut self.conns[slot];
        if !self.scratch.is_empty() {
            send(out, conn.id, &self.scratch, None);
        }
        match next {
            Next::Option => conn.phase = Phase::OptionHead,
            Next::Transmission => conn.phase = Phase::Command,
            Next::Close => self.close(slot, data, out),
        }
    }

    /// Payload has arrived, or was thrown away.
    fn payload(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        match self.conns[slot].phase {
            Phase::OptionSkip { kind, reply, .. } => {
                self.option_skipped(slot, kind, reply, data, out);
            }
            Phase::Payload => self.part_received(slot, data, out),
            Phase::Skip { after, .. } => self.skipped(slot, after, data, out),
            Phase::ClientFlags
            | Phase::OptionHead
            | Phase::OptionData { .. }
            | Phase::Command
            | Phase::Waiting
            | Phase::Leaving => self.close(slot, data, out),
            Phase::Free | Phase::Closing | Phase::Orphan => {}
        }
    }

    /// Tells the driver to close. A buffer being received into is kept until it has closed.
    pub(crate) fn close(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        let conn = &mut self.conns[slot];
        if !conn.is_talking() {
            return;
        }
        conn.phase = Phase::Closing;
        out.push(FrontendAction::Close { conn: conn.id });
        self.abandon_incoming(slot, data);
    }

    fn closed(&mut self, id: ConnId, data: &mut dyn Buffers) {
        let Some(slot) = self.slots.remove(&id) else {
            return;
        };
        self.conns[slot].phase = Phase::Orphan;
        self.abandon_incoming(slot, data);
        let conn = &mut self.conns[slot];
        if let Some(slice) = conn.receiving.take() {
            data.release(slice.buf);
            self.pool.give(&mut conn.held_bytes, u64::from(slice.len));
        }
        self.free_orphan(slot);
    }

    /// The incoming request gets no more parts.
    fn abandon_incoming(&mut self, slot: usize, data: &mut dyn Buffers) {
        self.pool.forget(slot);
        let conn = &mut self.conns[slot];
        if let Some(request) = conn.incoming.take() {
            conn.lives[usize::from(request)].complete = true;
            self.swallow_if_over(slot, request, data);
        }
    }

    /// Frees the slot of a connection that is gone when nothing of it is in flight any more.
    pub(crate) fn free_orphan(&mut self, slot: usize) {
        let conn = &mut self.conns[slot];
        if conn.phase == Phase::Orphan && conn.in_flight == 0 {
            assert!(
                conn.held_bytes == 0,
                "{} payload bytes are lost",
                conn.held_bytes
            );
            conn.phase = Phase::Free;
            self.free.push(slot);
        }
    }

    /// Closes a connection that has nothing left to do: after goodbye, or when service has ended.
    pub(crate) fn close_if_done(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        let conn = &self.conns[slot];
        let wants_end =
            conn.phase == Phase::Leaving || (conn.phase == Phase::Command && !self.serving);
        if wants_end && conn.in_flight == 0 {
            self.close(slot, data, out);
        }
    }

    fn set_serving(
        &mut self,
        now: Monotonic,
        serving: bool,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        self.serving = serving;
        self.shutdown_end = (!serving).then(|| now.after(SHUTDOWN_SPAN_MAX));
        for slot in 0..self.conns.len() {
            self.close_if_done(slot, data, out);
        }
    }

    /// Closes connections whose negotiation takes too long and finds the next such end.
    fn end_negotiations(&mut self, now: Monotonic, data: &mut dyn Buffers, out: &mut Out) {
        let mut next: Option<Monotonic> = None;
        for slot in 0..self.conns.len() {
            let conn = &self.conns[slot];
            if !conn.is_negotiating() {
                continue;
            }
            let end = conn.negotiation_end;
            if end <= now {
                self.status.negotiations_cut += 1;
                self.close(slot, data, out);
            } else {
                next = Some(next.map_or(end, |first| first.min(end)));
            }
        }
        self.negotiation_end = next;
    }

    /// Closes every connection, those with requests in flight too: they have had their time.
    fn end_service(&mut self, data: &mut dyn Buffers, out: &mut Out) {
        for slot in 0..self.conns.len() {
            self.fail_all(slot, out);
            self.close(slot, data, out);
        }
        self.shutdown_end = None;
    }

    /// Lets connections that wait for memory go on, in the order in which they came.
    fn admit_waiting(&mut self, data: &mut dyn Buffers, out: &mut Out) {
        let mut behind = false;
        for _ in 0..self.pool.waiting.len() {
            let Some(slot) = self.pool.waiting.pop_front() else {
                break;
            };
            if !self.admit(slot, behind, data, out) {
                behind = true;
                self.pool.waiting.push_back(slot);
            }
        }
    }
}

impl Machine for NbdServer {
    type Event<'a> = FrontendEvent<'a>;
    type Action = FrontendAction;

    fn step(
        &mut self,
        now: Monotonic,
        event: FrontendEvent<'_>,
        data: &mut dyn Buffers,
        out: &mut Actions<FrontendAction>,
    ) {
        match event {
            FrontendEvent::Stream(id, StreamEvent::Opened) => self.opened(now, id, out),
            FrontendEvent::Stream(id, StreamEvent::Closed) => self.closed(id, data),
            FrontendEvent::Stream(id, StreamEvent::Header(bytes)) => {
                if let Some(slot) = self.slots.get(&id) {
                    self.header(*slot, bytes, data, out);
                }
            }
            FrontendEvent::Stream(id, StreamEvent::Payload) => {
                if let Some(slot) = self.slots.get(&id) {
                    self.payload(*slot, data, out);
                }
            }
            FrontendEvent::Complete(completion) => self.completed(completion, data, out),
            FrontendEvent::Serving(serving) => self.set_serving(now, serving, data, out),
        }
    }

    fn settle(
        &mut self,
        now: Monotonic,
        data: &mut dyn Buffers,
        out: &mut Actions<FrontendAction>,
    ) {
        if self.negotiation_end.is_some_and(|end| end <= now) {
            self.end_negotiations(now, data, out);
        }
        if self.shutdown_end.is_some_and(|end| end <= now) {
            self.end_service(data, out);
        }
        self.arena_empty = false;
        if !self.pool.waiting.is_empty() {
            self.admit_waiting(data, out);
        }
        self.arena_retry = self.arena_empty.then(|| now.after(ARENA_RETRY_SPAN));
    }

    fn deadline(&self) -> Option<Monotonic> {
        [self.negotiation_end, self.shutdown_end, self.arena_retry]
            .into_iter()
            .flatten()
            .min()
    }
}

impl Stream for NbdServer {
    fn want(&mut self, conn: ConnId, _data: &mut dyn Buffers) -> Want {
        let Some(slot) = self.slots.get(&conn) else {
            return Want::Pause;
        };
        let conn = &self.conns[*slot];
        match conn.phase {
            Phase::ClientFlags => Want::Header(CLIENT_FLAGS_BYTES),
            Phase::OptionHead => Want::Header(OPTION_HEAD_BYTES),
            Phase::OptionData { len, .. } => Want::Header(len as usize),
            Phase::OptionSkip { len, .. } => Want::Discard(u64::from(len)),
            Phase::Command if conn.in_flight >= REQUESTS_MAX => Want::Pause,
            Phase::Command => match conn.session.mode {
                ReplyMode::Simple | ReplyMode::Structured => Want::Header(REQUEST_BYTES),
                ReplyMode::Extended => Want::Header(EXTENDED_REQUEST_BYTES),
            },
            Phase::Payload => conn.receiving.map_or(Want::Pause, Want::Payload),
            Phase::Skip { len, .. } => Want::Discard(len),
            Phase::Free | Phase::Waiting | Phase::Leaving | Phase::Closing | Phase::Orphan => {
                Want::Pause
            }
        }
    }
}

/// Emits a send.
pub(crate) fn send(out: &mut Out, conn: ConnId, head: &[u8], payload: Option<BufSlice>) {
    let head = out.bytes(head);
    out.push(FrontendAction::Send {
        conn,
        head,
        payload,
    });
}
