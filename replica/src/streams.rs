//! Byte streams: what each connection wants next, and frames cut out of what arrives.

use crate::limits::{CLOSING_MAX, GUESTS_MAX, READS_MAX, REPAIRS_MAX};
use crate::machine::{Action, Context, Replica};
use crate::session::{Phase, Receive, Session};
use trilith_block::{BufSlice, Buffers, ConnId, Monotonic, StreamEvent, Want};
use trilith_wire::{Decoder, Kind, Message, Reason};

impl trilith_block::Stream for Replica {
    fn want(&mut self, conn: ConnId, data: &mut dyn Buffers) -> Want {
        let open = self.is_open();
        let voted = self.voted_engine();
        let Some(session) = self.sessions.iter_mut().find(|s| s.conn == conn) else {
            return Want::Pause;
        };
        if session.is_closing() || !open {
            return Want::Pause;
        }
        match session.receive {
            Receive::Head => {
                // What follows a control frame waits until that is durable.
                let leads = session.is_ready() && session.engine == voted;
                if leads && self.calls.controls() > 0 {
                    return Want::Pause;
                }
                // A peer that asks more than it takes answers for is not listened to.
                if session.reads >= READS_MAX || session.repairs >= REPAIRS_MAX {
                    return Want::Pause;
                }
                session
                    .decoder
                    .as_ref()
                    .map_or(Want::Pause, |d| Want::Header(d.want()))
            }
            Receive::Room(len) => match data.alloc(len) {
                Some(slice) => {
                    session.receive = Receive::Payload(slice);
                    Want::Payload(slice)
                }
                None => {
                    self.counters.pauses += 1;
                    Want::Pause
                }
            },
            Receive::Payload(slice) => Want::Payload(slice),
            Receive::Discard(len) => Want::Discard(len),
        }
    }
}

impl Replica {
    /// Something on a connection.
    pub(crate) fn stream_event(
        &mut self,
        conn: ConnId,
        event: StreamEvent<'_>,
        cx: &mut Context<'_>,
    ) {
        match event {
            StreamEvent::Opened => self.opened_connection(conn, cx),
            StreamEvent::Closed => self.closed_connection(conn, cx),
            StreamEvent::Header(bytes) => self.header_arrived(conn, bytes, cx),
            StreamEvent::Payload => self.payload_arrived(conn, cx),
        }
    }

    fn opened_connection(&mut self, conn: ConnId, cx: &mut Context<'_>) {
        let guests = self.sessions.iter().filter(|s| s.is_guest()).count();
        let closing = self.sessions.iter().filter(|s| s.is_closing()).count();
        if guests >= GUESTS_MAX || closing >= CLOSING_MAX || self.is_stopping() {
            self.counters.guests_refused += 1;
            cx.out.push(Action::Close { conn });
            return;
        }
        self.sessions.push(Session::new(conn, cx.now));
    }

    fn closed_connection(&mut self, conn: ConnId, cx: &mut Context<'_>) {
        let Some(at) = self.sessions.iter().position(|s| s.conn == conn) else {
            return;
        };
        let session = self.sessions.swap_remove(at);
        if let Receive::Payload(slice) = session.receive {
            cx.data.release(slice.buf);
        }
        self.forget_reads(conn);
        if session.is_ready() && session.engine == self.voted_engine() {
            self.staged.clear();
        }
    }

    fn header_arrived(&mut self, conn: ConnId, bytes: &[u8], cx: &mut Context<'_>) {
        let Some(session) = self.session(conn) else {
            return;
        };
        if session.is_closing() {
            return;
        }
        let Some(decoder) = session.decoder.as_mut() else {
            return;
        };
        match decoder.feed(bytes, cx.data) {
            Ok(false) => {}
            Ok(true) => self.head_arrived(conn, cx),
            Err(_) => self.malformed(conn, cx),
        }
    }

    /// A whole head is there. With a payload to come: is it wanted at all?
    fn head_arrived(&mut self, conn: ConnId, cx: &mut Context<'_>) {
        let Some(session) = self.sessions.iter().find(|s| s.conn == conn) else {
            return;
        };
        let Some(decoder) = session.decoder.as_ref() else {
            return;
        };
        let len = decoder.payload_len();
        if len == 0 {
            return self.frame_arrived(conn, None, cx);
        }
        // Only a proven peer may make this process take a buffer; a witness has no use for one (W1).
        let takes = session.is_ready() && !self.facts().is_witness();
        let wanted = match decoder.message() {
            Ok(message) if takes && has_payload(message.kind()) => {
                Some(self.wants_payload(session, &message))
            }
            Ok(_) | Err(_) => None,
        };
        match (wanted, self.session(conn)) {
            (Some(true), Some(session)) => session.receive = Receive::Room(len),
            (Some(false), Some(session)) => session.receive = Receive::Discard(u64::from(len)),
            (None, _) => self.malformed(conn, cx),
            (Some(_), None) => {}
        }
    }

    fn payload_arrived(&mut self, conn: ConnId, cx: &mut Context<'_>) {
        let Some(session) = self.session(conn) else {
            return;
        };
        let receive = core::mem::replace(&mut session.receive, Receive::Head);
        let closing = session.is_closing();
        let payload = match receive {
            Receive::Payload(slice) => Some(slice),
            Receive::Discard(_) => None,
            Receive::Head | Receive::Room(_) => return,
        };
        match payload {
            Some(slice) if closing => cx.data.release(slice.buf),
            _ if closing => {}
            payload => self.frame_arrived(conn, payload, cx),
        }
    }

    /// A frame is complete; `payload` is `None` when it has none or it was thrown away. The buffer
    /// passes to whoever handles the frame.
    fn frame_arrived(&mut self, conn: ConnId, payload: Option<BufSlice>, cx: &mut Context<'_>) {
        let Some(session) = self.session(conn) else {
            return;
        };
        let Some(mut decoder) = session.decoder.take() else {
            return;
        };
        let challenge = match &session.phase {
            Phase::Challenged(challenge) => Some(**challenge),
            Phase::Greeting | Phase::Ready | Phase::Closing => None,
        };
        let greeting = matches!(session.phase, Phase::Greeting);
        let ready = session.is_ready();
        let closing = session.is_closing();
        if ready {
            session.seen_at = cx.now;
        }
        match (decoder.message(), challenge) {
            _ if closing => release(payload, cx),
            (Ok(message), _) if ready => self.message(conn, &message, payload, cx),
            (Ok(Message::Hello(hello)), None) if greeting => self.hello(conn, hello, cx),
            (Ok(Message::Auth { proof }), Some((hello, binding))) => {
                self.auth(conn, &hello, &binding, &proof, cx);
            }
            (Ok(_) | Err(_), _) => {
                release(payload, cx);
                self.malformed(conn, cx);
            }
        }
        decoder.reset();
        self.give_back(conn, decoder);
    }

    fn give_back(&mut self, conn: ConnId, decoder: Decoder) {
        if let Some(session) = self.session(conn) {
            session.decoder = Some(decoder);
        }
    }

    /// The peer does not speak the protocol: the stream cannot be trusted any more.
    pub(crate) fn malformed(&mut self, conn: ConnId, cx: &mut Context<'_>) {
        self.counters.malformed += 1;
        self.refuse(conn, Reason::Malformed, 0, cx);
    }

    /// REFUSED, then Close. The stream of that session is over at once.
    pub(crate) fn refuse(
        &mut self,
        conn: ConnId,
        reason: Reason,
        detail: u64,
        cx: &mut Context<'_>,
    ) {
        let refused = Message::Refused {
            reason,
            term: self.promised_term(),
            attach_epoch: self.attach_epoch(),
            detail,
        };
        let Some(session) = self.session(conn) else {
            return;
        };
        if session.is_closing() {
            return;
        }
        self.send(conn, &refused, cx);
        self.close(conn, cx);
    }

    /// Asks for Close; nothing more is read from or sent on the connection.
    pub(crate) fn close(&mut self, conn: ConnId, cx: &mut Context<'_>) {
        let voted = self.voted_engine();
        let Some(session) = self.session(conn) else {
            return;
        };
        if session.is_closing() {
            return;
        }
        let led = session.is_ready() && session.engine == voted;
        session.phase = Phase::Closing;
        session.next = None;
        session.get_map = None;
        session.welcome_due = false;
        if led {
            // What it staged goes with it; its successor starts afresh.
            self.staged.clear();
        }
        cx.out.push(Action::Close { conn });
    }

    /// Closes guests that took too long. Returns when to look again.
    pub(crate) fn expire_guests(&mut self, cx: &mut Context<'_>) {
        let (limit, now) = (self.config.handshake, cx.now);
        let late = |s: &&Session| s.is_guest() && s.seen_at.after(limit) <= now;
        while let Some(conn) = self.sessions.iter().find(late).map(|s| s.conn) {
            self.counters.guests_refused += 1;
            self.close(conn, cx);
        }
    }

    /// When the next guest's time is up.
    pub(crate) fn guests_deadline(&self) -> Option<Monotonic> {
        let guests = self.sessions.iter().filter(|s| s.is_guest());
        guests.map(|s| s.seen_at.after(self.config.handshake)).min()
    }
}

/// True for the frames of an engine that may carry a payload.
fn has_payload(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Append | Kind::Repair | Kind::Map | Kind::DirtyClear
    )
}

/// Gives a payload back that nobody takes.
pub(crate) fn release(payload: Option<BufSlice>, cx: &mut Context<'_>) {
    if let Some(slice) = payload {
        cx.data.release(slice.buf);
    }
}
