//! Sessions with the replicas: dialling, handshake (M24), frames in, liveness.

use crate::api::Action;
use crate::engine::{Cx, Engine};
use crate::peer::{Link, MapPiece, Receive};
use crate::read::ReadResult;
use trilith_block::limits::BLOCK_BYTES;
use trilith_block::{BufSlice, Buffers, ConnId, MemberId, StreamEvent, Want};
use trilith_wire::auth::{self, Binding, Role};
use trilith_wire::limits::{PROTOCOL_MAX, PROTOCOL_MIN, PROTOCOL_WITNESS};
use trilith_wire::{EntryStatus, Hello, Kind, Message, Reason, ReplicaState};

/// True for frames after which a replica owes some sign of life soon.
fn is_question(kind: Kind) -> bool {
    // VOTE waits for the device (V3), which may take its time.
    !matches!(
        kind,
        Kind::Vote | Kind::Opened | Kind::StepDown | Kind::DirtyClear | Kind::Map
    )
}

impl Engine {
    /// Sends one frame to a member that has a connection.
    pub(crate) fn send(
        &mut self,
        member: MemberId,
        message: &Message<'_>,
        payload: Option<BufSlice>,
        cx: &mut Cx<'_>,
    ) {
        let peer = &mut self.peers[member.index()];
        let Some(conn) = peer.conn else { return };
        let len = payload.map_or(0, |p| p.len);
        let head = cx.out.bytes(self.encoder.head(message, len, cx.data));
        cx.out.push(Action::Send {
            conn,
            head,
            payload,
        });
        let kind = message.kind();
        if is_question(kind) && peer.asked_at.is_none() {
            peer.asked_at = Some(cx.now);
        }
        if matches!(kind, Kind::Append | Kind::Flush | Kind::Heartbeat) {
            peer.granted_at = cx.now;
        }
    }

    /// Dials members that are due, gives up handshakes that take too long and sessions without a
    /// sign of life.
    pub(crate) fn tend_sessions(&mut self, cx: &mut Cx<'_>) {
        for member in self.members.iter() {
            let peer = &self.peers[member.index()];
            match peer.link {
                Link::Down { redial } if redial <= cx.now && !self.is_finished() => {
                    let peer = &mut self.peers[member.index()];
                    peer.link = Link::Dialling {
                        until: cx.now.after(self.cfg.timing.handshake_max),
                    };
                    cx.out.push(Action::Dial { member });
                }
                Link::Down { .. } => {}
                Link::Dialling { until } | Link::Greeted { until } | Link::Proved { until } => {
                    if until <= cx.now {
                        self.drop_session(member, cx);
                    }
                }
                Link::Up => {
                    let silent = peer
                        .asked_at
                        .is_some_and(|at| at.after(self.cfg.timing.session_silence_max) <= cx.now);
                    let probe = self.probe_at(member).is_some_and(|at| at <= cx.now);
                    if silent {
                        self.drop_session(member, cx);
                    } else if probe {
                        self.probe(member, cx);
                    }
                }
            }
        }
    }

    /// The driver has named the connection of a dial.
    pub(crate) fn dialled(&mut self, member: MemberId, conn: ConnId, cx: &mut Cx<'_>) {
        let peer = &mut self.peers[member.index()];
        if !matches!(peer.link, Link::Dialling { .. }) || peer.conn.is_some() {
            // Given up in the meantime.
            self.closing.insert(conn, None);
            cx.out.push(Action::Close { conn });
            return;
        }
        peer.conn = Some(conn);
        peer.receive = Receive::Head;
        if let Some(decoder) = peer.decoder.as_mut() {
            decoder.reset();
        }
        self.conns.insert(conn, member);
    }

    /// Something happened on a connection.
    pub(crate) fn stream_event(&mut self, conn: ConnId, event: StreamEvent<'_>, cx: &mut Cx<'_>) {
        let Some(member) = self.conns.get(&conn).copied() else {
            if matches!(event, StreamEvent::Closed)
                && let Some(Some(buf)) = self.closing.remove(&conn)
            {
                cx.data.release(buf);
            }
            return;
        };
        match event {
            StreamEvent::Opened => self.opened(member, cx),
            StreamEvent::Closed => {
                let buf = self.lose_session(member, cx);
                if let Some(buf) = buf {
                    cx.data.release(buf.buf);
                }
            }
            StreamEvent::Header(bytes) => self.header(member, bytes, cx),
            StreamEvent::Payload => self.payload(member, cx),
        }
    }

    fn opened(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let until = cx.now.after(self.cfg.timing.handshake_max);
        let nonce = self.rng.nonce();
        let peer = &mut self.peers[member.index()];
        peer.link = Link::Greeted { until };
        peer.nonce = nonce;
        peer.asked_at = None;
        let hello = Hello {
            volume: self.cfg.volume,
            engine: self.cfg.engine,
            supersedes: self.cfg.supersedes,
            nonce,
            term: self.term,
            attach_epoch: self.cfg.attach_epoch,
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            loss: self.loss_bound.unwrap_or(0),
            cfg_gen: self.generation_known(),
            capacity: self.capacity,
            member,
        };
        self.send(member, &Message::Hello(hello), None, cx);
    }

    /// Closes the session from this side.
    pub(crate) fn drop_session(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let conn = self.peers[member.index()].conn;
        let buf = self.lose_session(member, cx);
        if let Some(conn) = conn {
            // The buffer being received into stays ours until `Closed`.
            self.closing.insert(conn, buf.map(|b| b.buf));
            cx.out.push(Action::Close { conn });
        } else if let Some(buf) = buf {
            cx.data.release(buf.buf);
        }
    }

    /// Forgets the session. Gives back the buffer that was being received into.
    fn lose_session(&mut self, member: MemberId, cx: &mut Cx<'_>) -> Option<BufSlice> {
        let wait = self.rng.jitter(self.peers[member.index()].backoff);
        let peer = &mut self.peers[member.index()];
        let was_up = peer.is_up();
        if let Some(conn) = peer.conn.take() {
            self.conns.remove(&conn);
        }
        peer.backoff = (peer.backoff * 2).min(self.cfg.timing.redial_max);
        peer.link = Link::Down {
            redial: cx.now.after(wait),
        };
        peer.asked_at = None;
        peer.control.clear();
        peer.in_flight_entries = 0;
        peer.in_flight_bytes = 0;
        if let Some(decoder) = peer.decoder.as_mut() {
            decoder.reset();
        }
        let buf = match core::mem::replace(&mut peer.receive, Receive::Head) {
            Receive::Data { buf, .. } | Receive::Map { buf, .. } => Some(buf),
            Receive::Head
            | Receive::DataRoom { .. }
            | Receive::MapRoom { .. }
            | Receive::Discard(_) => None,
        };
        if was_up {
            let peer = &mut self.peers[member.index()];
            peer.lost_at = cx.now;
            peer.promised = false;
            peer.vote_sent = false;
            self.counters.sessions_lost += 1;
            self.session_lost(member, cx);
        }
        buf
    }

    fn header(&mut self, member: MemberId, bytes: &[u8], cx: &mut Cx<'_>) {
        let Some(decoder) = self.peers[member.index()].decoder.as_mut() else {
            return;
        };
        match decoder.feed(bytes, cx.data) {
            Ok(false) => {}
            Ok(true) => self.head_complete(member, cx),
            Err(_) => self.drop_session(member, cx),
        }
    }

    fn head_complete(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let Some(mut decoder) = self.peers[member.index()].decoder.take() else {
            return;
        };
        let conn = self.peers[member.index()].conn;
        let len = decoder.payload_len();
        match decoder.message() {
            Ok(message) => self.frame(member, &message, len, cx),
            Err(_) => self.drop_session(member, cx),
        }
        decoder.reset();
        let peer = &mut self.peers[member.index()];
        peer.decoder = Some(decoder);
        debug_assert!(
            peer.conn == conn || peer.conn.is_none(),
            "a session was replaced in a frame"
        );
    }

    fn frame(&mut self, member: MemberId, message: &Message<'_>, len: u32, cx: &mut Cx<'_>) {
        let peer = &mut self.peers[member.index()];
        peer.seen_at = cx.now;
        peer.asked_at = None;
        match (peer.link, message) {
            (
                _,
                Message::Refused {
                    reason,
                    term,
                    attach_epoch,
                    ..
                },
            ) => {
                self.refused(member, *reason, *term, *attach_epoch, cx);
            }
            (
                Link::Greeted { .. },
                Message::Challenge {
                    protocol,
                    replica,
                    nonce,
                    proof,
                },
            ) => {
                let binding = Binding {
                    engine_nonce: peer.nonce,
                    replica_nonce: *nonce,
                    volume: self.cfg.volume,
                    engine: self.cfg.engine,
                    replica: *replica,
                    protocol: *protocol,
                };
                if !(PROTOCOL_MIN..=PROTOCOL_MAX).contains(protocol) {
                    return self.unfit(member, Reason::Protocol, cx);
                }
                if !auth::verify(&self.cfg.secret, Role::Replica, &binding, proof) {
                    return self.unfit(member, Reason::Secret, cx);
                }
                peer.link = Link::Proved {
                    until: cx.now.after(self.cfg.timing.handshake_max),
                };
                peer.replica = *replica;
                peer.protocol = *protocol;
                let proof = auth::proof(&self.cfg.secret, Role::Engine, &binding);
                self.send(member, &Message::Auth { proof }, None, cx);
            }
            (Link::Proved { .. }, Message::Welcome(state)) => self.welcome(member, state, cx),
            (
                Link::Up,
                Message::Data {
                    rid,
                    status,
                    range,
                    zero,
                    crcs,
                    ..
                },
            ) => {
                let known = self.flights.get(*rid).is_some_and(|f| f.member == member);
                if !known || self.flights.get(*rid).is_some_and(|f| f.range != *range) {
                    self.peers[member.index()].receive = if len > 0 {
                        Receive::Discard(u64::from(len))
                    } else {
                        Receive::Head
                    };
                } else if len > 0 {
                    let peer = &mut self.peers[member.index()];
                    peer.crcs.clear();
                    peer.crcs.extend_from_slice(crcs);
                    peer.receive = Receive::DataRoom { rid: *rid, len };
                } else if *status == EntryStatus::Done && *zero {
                    self.data_arrived(*rid, ReadResult::Zero, cx);
                } else {
                    self.data_arrived(*rid, ReadResult::Failed(*status), cx);
                }
            }
            (
                Link::Up,
                Message::Map {
                    map,
                    member: of,
                    last,
                    next,
                    crc,
                    ..
                },
            ) => {
                let piece = MapPiece {
                    map: *map,
                    of: *of,
                    last: *last,
                    next: *next,
                    crc: *crc,
                };
                if len > 0 {
                    peer.receive = Receive::MapRoom { piece, len };
                } else {
                    self.map_arrived(member, piece, None, cx);
                }
            }
            (Link::Up, message) => self.message(member, message, cx),
            (_, _) => self.drop_session(member, cx),
        }
    }

    /// The replica is not one for this engine; try again seldom.
    pub(crate) fn unfit(&mut self, member: MemberId, why: Reason, cx: &mut Cx<'_>) {
        let peer = &mut self.peers[member.index()];
        peer.refused = Some(why);
        peer.backoff = self.cfg.timing.redial_max;
        self.drop_session(member, cx);
    }

    fn refused(
        &mut self,
        member: MemberId,
        reason: Reason,
        term: trilith_block::Term,
        attach_epoch: u64,
        cx: &mut Cx<'_>,
    ) {
        if self.meet_epoch(attach_epoch, cx) {
            return;
        }
        self.meet_term(term, cx.now);
        match reason {
            Reason::WrongVolume
            | Reason::Protocol
            | Reason::Secret
            | Reason::Config
            | Reason::Mismatch => self.unfit(member, reason, cx),
            Reason::Malformed
            | Reason::AttachEpoch
            | Reason::Term
            | Reason::Voted
            | Reason::LeaderAlive
            | Reason::Failed
            | Reason::Replaced
            | Reason::Busy => self.drop_session(member, cx),
        }
    }

    fn welcome(&mut self, member: MemberId, state: &ReplicaState, cx: &mut Cx<'_>) {
        if self.meet_epoch(state.attach_epoch, cx) {
            return;
        }
        let capacity_ok = state.capacity > 0
            && state.capacity.is_multiple_of(u64::from(BLOCK_BYTES))
            && state.capacity <= trilith_block::limits::VOLUME_BYTES_MAX
            && (self.capacity == 0 || self.capacity == state.capacity);
        let expected = self.cfg.identities[member.index()];
        let is_other = !expected.is_none() && expected != state.replica;
        if state.member != member || !capacity_ok || is_other {
            return self.unfit(member, Reason::Mismatch, cx);
        }
        if !self.meet_config(member, state, cx) {
            return;
        }
        if self.membership.has_witness() && self.peers[member.index()].protocol < PROTOCOL_WITNESS {
            // W16: it would count the witness as one that holds data.
            return self.unfit(member, Reason::Protocol, cx);
        }
        if self.capacity == 0 {
            self.learn_capacity(state.capacity);
        }
        let peer = &mut self.peers[member.index()];
        peer.link = Link::Up;
        peer.refused = None;
        peer.backoff = self.cfg.timing.redial_min;
        peer.replica = state.replica;
        peer.state = Some(*state);
        peer.asked_at = None;
        self.meet_term(state.term, cx.now);
        self.session_up(member, state, cx);
    }

    fn payload(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let peer = &mut self.peers[member.index()];
        match core::mem::replace(&mut peer.receive, Receive::Head) {
            Receive::Data { rid, buf } => {
                let ok = crcs_match(cx.data, buf, &peer.crcs);
                let result = if ok {
                    ReadResult::Bytes(buf)
                } else {
                    ReadResult::Failed(EntryStatus::Checksum)
                };
                if !ok {
                    cx.data.release(buf.buf);
                }
                self.data_arrived(rid, result, cx);
            }
            Receive::Map { piece, buf } => {
                let crc = cx.data.crc32c(0, cx.data.bytes(buf));
                if crc == piece.crc {
                    self.map_arrived(member, piece, Some(buf), cx);
                } else {
                    self.drop_session(member, cx);
                }
                cx.data.release(buf.buf);
            }
            Receive::Discard(_)
            | Receive::Head
            | Receive::DataRoom { .. }
            | Receive::MapRoom { .. } => {}
        }
    }

    /// What a connection wants next.
    pub(crate) fn wanted(&mut self, conn: ConnId, data: &mut dyn Buffers) -> Want {
        let Some(member) = self.conns.get(&conn).copied() else {
            return Want::Pause;
        };
        let at = member.index();
        match self.peers[at].receive {
            Receive::Head => self.peers[at]
                .decoder
                .as_ref()
                .map_or(Want::Pause, |d| Want::Header(d.want())),
            Receive::DataRoom { rid, len } => match self.claim_buffer(rid, len, data) {
                Ok(Some(buf)) => {
                    self.peers[at].receive = Receive::Data { rid, buf };
                    Want::Payload(buf)
                }
                Ok(None) => {
                    // Nobody waits for it any more.
                    self.peers[at].receive = Receive::Discard(u64::from(len));
                    Want::Discard(u64::from(len))
                }
                Err(()) => Want::Pause,
            },
            Receive::MapRoom { piece, len } => match data.alloc(len) {
                Some(buf) => {
                    self.peers[at].receive = Receive::Map { piece, buf };
                    Want::Payload(buf)
                }
                None => Want::Pause,
            },
            Receive::Data { buf, .. } | Receive::Map { buf, .. } => Want::Payload(buf),
            Receive::Discard(len) => Want::Discard(len),
        }
    }
}

/// True when the checksums of a DATA are those of its blocks.
fn crcs_match(data: &dyn Buffers, buf: BufSlice, crcs: &[u8]) -> bool {
    let blocks = data.bytes(buf).chunks_exact(BLOCK_BYTES as usize);
    let sums = crcs.chunks_exact(4);
    blocks.len() == sums.len()
        && blocks
            .zip(sums)
            .all(|(block, sum)| data.crc32c(0, block).to_le_bytes() == *sum)
}

/// Appends the checksum of each block of `buf` to `out`.
pub(crate) fn block_crcs(data: &dyn Buffers, buf: BufSlice, out: &mut alloc::vec::Vec<u8>) {
    for block in data.bytes(buf).chunks_exact(BLOCK_BYTES as usize) {
        out.extend_from_slice(&data.crc32c(0, block).to_le_bytes());
    }
}
