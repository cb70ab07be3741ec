//! Frames of a welcomed engine: who may send what, and the changes of role and epoch.

use crate::calls::{Call, What};
use crate::entries::SyncSetFrame;
use crate::machine::{Context, Replica};
use crate::maps::chunks_of;
use crate::session::{PendingMap, Session, Wanted};
use crate::store::{StoreError, TermStart, Told};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BufSlice, ConnId, Idx, MemberId, MemberSet, Membership, SyncEpoch, Term};
use trilith_wire::{Kind, Message, Reason};

/// The term that a frame of an engine carries; `None` for frames that an engine does not send after
/// AUTH.
fn engine_term(message: &Message<'_>) -> Option<Term> {
    match *message {
        Message::GetMap { term, .. }
        | Message::Map { term, .. }
        | Message::Reconcile { term, .. }
        | Message::Repair { term, .. }
        | Message::TermStart { term, .. }
        | Message::Opened { term }
        | Message::Flush { term, .. }
        | Message::SyncSet { term, .. }
        | Message::Read { term, .. }
        | Message::ExtentHash { term, .. }
        | Message::Heartbeat { term, .. }
        | Message::Told { term, .. }
        | Message::NeedSet { term }
        | Message::DirtyClear { term, .. }
        | Message::Seal { term, .. }
        | Message::Reconfigure { term, .. }
        | Message::StepDown { term } => Some(term),
        Message::Append(ref append) => Some(append.term),
        Message::Hello(_)
        | Message::Challenge { .. }
        | Message::Auth { .. }
        | Message::Welcome(_)
        | Message::Refused { .. }
        | Message::Prevote(_)
        | Message::PrevoteReply { .. }
        | Message::Vote(_)
        | Message::Promise { .. }
        | Message::Nack { .. }
        | Message::ReconcileDone { .. }
        | Message::RepairDone { .. }
        | Message::TermStartDone { .. }
        | Message::Ack { .. }
        | Message::EntryFailed { .. }
        | Message::FlushDone { .. }
        | Message::SyncSetDone { .. }
        | Message::Data { .. }
        | Message::ExtentHashDone { .. }
        | Message::HeartbeatDone { .. }
        | Message::ToldDone { .. }
        | Message::NeedSetDone { .. }
        | Message::SealDone { .. }
        | Message::ReconfigureDone { .. } => None,
    }
}

/// What a NACK copies from the frame it refuses.
fn copied(message: &Message<'_>) -> (Idx, u64) {
    match *message {
        Message::Append(ref append) => (append.idx, append.sent_at),
        Message::Flush { idx, sent_at, .. } => (idx, sent_at),
        Message::SyncSet { idx, .. } | Message::Seal { idx, .. } => (idx, 0),
        Message::TermStart { start, .. } | Message::Told { start, .. } => (start, 0),
        Message::Read { rid, .. } | Message::ExtentHash { rid, .. } => (Idx(0), rid),
        Message::Repair { tag, .. } => (Idx(0), tag),
        Message::Heartbeat { sent_at, .. } => (Idx(0), sent_at),
        _ => (Idx(0), 0),
    }
}

/// 7.1: an in-sync or tracked set never has the witness in it. An engine that says so counts what
/// nobody holds.
fn names_witness_as_data(message: &Message<'_>, witness: MemberSet) -> bool {
    let named = match *message {
        Message::TermStart { iss, .. } => iss,
        Message::SyncSet { iss, trk, .. } | Message::Told { iss, trk, .. } => iss.or(trk),
        _ => MemberSet::EMPTY,
    };
    !named.and(witness).is_empty()
}

impl Replica {
    /// I3, the fence: only the engine that the promise went to, in its term, with no vote under
    /// way, may do anything here but campaign.
    fn refusal(&self, session: &Session, term: Term, kind: Kind) -> Option<Reason> {
        if self.is_failed() {
            Some(Reason::Failed)
        } else if self.facts().is_retired() && kind != Kind::Reconfigure {
            Some(Reason::Config)
        } else if self.ballot.is_some()
            || (!mutant::on(Mutant::LowerTermAccepted)
                && (term != self.promised_term() || session.engine != self.voted_engine()))
        {
            Some(Reason::Term)
        } else {
            None
        }
    }

    /// True when the payload of a frame is worth a buffer.
    pub(crate) fn wants_payload(&self, session: &Session, message: &Message<'_>) -> bool {
        let Some(term) = engine_term(message) else {
            return false;
        };
        if self.refusal(session, term, message.kind()).is_some() {
            return false;
        }
        match message {
            Message::Append(append) => self.wants_entry(append),
            _ => true,
        }
    }

    /// A frame of a welcomed session. Takes the payload.
    pub(crate) fn message(
        &mut self,
        conn: ConnId,
        message: &Message<'_>,
        payload: Option<BufSlice>,
        cx: &mut Context<'_>,
    ) {
        match message {
            Message::Prevote(p) => return self.prevote(conn, p, cx),
            Message::Vote(v) => return self.vote(conn, v, cx),
            _ => {}
        }
        let session = self.sessions.iter().find(|s| s.conn == conn);
        let (Some(session), Some(term)) = (session, engine_term(message)) else {
            crate::streams::release(payload, cx);
            return self.malformed(conn, cx);
        };
        if let Some(reason) = self.refusal(session, term, message.kind()) {
            crate::streams::release(payload, cx);
            let (idx, tag) = copied(message);
            return self.nack(conn, reason, message.kind(), idx, tag, cx);
        }
        if self.facts().is_witness() && !crate::witness::is_answered(message.kind()) {
            crate::streams::release(payload, cx);
            return self.malformed(conn, cx);
        }
        if names_witness_as_data(message, self.facts().config.witness) {
            crate::streams::release(payload, cx);
            return self.malformed(conn, cx);
        }
        self.leaders_message(conn, message, payload, cx);
    }

    /// A frame of the promised engine in its term.
    fn leaders_message(
        &mut self,
        conn: ConnId,
        message: &Message<'_>,
        payload: Option<BufSlice>,
        cx: &mut Context<'_>,
    ) {
        match *message {
            Message::Append(ref append) => self.append(conn, append, payload, cx),
            Message::Repair { .. } => self.repair(conn, message, payload, cx),
            Message::Map {
                map, member, crc, ..
            } => {
                self.stage(conn, (map, member), crc, payload, cx);
            }
            Message::DirtyClear { member, crc, .. } => {
                self.dirty_clear(conn, member, crc, payload, cx);
            }
            Message::Flush {
                idx, tidx, sent_at, ..
            } => {
                self.flush(conn, (idx, tidx, sent_at), cx);
            }
            Message::SyncSet {
                term,
                idx,
                n,
                iss,
                trk,
                tidx,
                join,
            } => {
                let frame = SyncSetFrame {
                    term,
                    idx,
                    n,
                    iss,
                    trk,
                    join,
                };
                if self.facts().is_witness() {
                    return self.witness_sync_set(conn, &frame, cx);
                }
                self.sync_set(conn, &frame, tidx, cx);
            }
            Message::Heartbeat {
                commit,
                tidx,
                sent_at,
                ..
            } => {
                self.heartbeat(conn, (commit, tidx, sent_at), cx);
            }
            Message::Read { range, rid, .. } => self.read(conn, range, rid, Wanted::Bytes, cx),
            Message::ExtentHash {
                range,
                rid,
                unit,
                seed,
                ..
            } => self.read(conn, range, rid, Wanted::Digests { unit, seed }, cx),
            Message::GetMap {
                map, member, from, ..
            } => {
                self.get_map(conn, PendingMap { map, member, from }, cx);
            }
            Message::Reconcile { term, loss } => self.reconcile(conn, term, loss, cx),
            Message::NeedSet { term } => self.need_set(conn, term, cx),
            Message::TermStart {
                term,
                start,
                iss,
                loss,
            } => {
                self.term_start(conn, (term, start), iss, loss, cx);
            }
            Message::Told {
                term,
                n,
                iss,
                trk,
                start,
            } => {
                let told = Told {
                    se: SyncEpoch { term, n },
                    iss,
                    trk,
                    start,
                };
                self.told(conn, told, cx);
            }
            Message::Opened { .. } => self.opened_term(),
            Message::Seal { term, idx } => self.seal(conn, term, idx, cx),
            Message::Reconfigure { term, config } => self.reconfigure(conn, term, config, cx),
            Message::StepDown { .. } => {
                let engine = self.engine_of(conn);
                self.lease.release(engine);
                self.lease_dirty = true;
            }
            // `engine_term` has let none of the others through.
            _ => self.malformed(conn, cx),
        }
    }

    /// NACK: what this frame asked for is not done.
    pub(crate) fn nack(
        &mut self,
        conn: ConnId,
        reason: Reason,
        refused: Kind,
        idx: Idx,
        tag: u64,
        cx: &mut Context<'_>,
    ) {
        self.counters.nacks += 1;
        let nack = Message::Nack {
            reason,
            refused,
            term: self.promised_term(),
            attach_epoch: self.attach_epoch(),
            idx,
            tag,
        };
        self.send(conn, &nack, cx);
    }

    /// The store did not take a call.
    pub(crate) fn store_refused(
        &mut self,
        conn: ConnId,
        error: StoreError,
        (kind, idx, tag): (Kind, Idx, u64),
        cx: &mut Context<'_>,
    ) {
        match error {
            StoreError::Failed | StoreError::FailedEntry => {
                self.nack(conn, Reason::Failed, kind, idx, tag, cx);
            }
            // The engine broke its credits, or a range left the volume.
            StoreError::WindowFull | StoreError::Busy => self.refuse(conn, Reason::Busy, 0, cx),
            StoreError::Range => self.malformed(conn, cx),
        }
    }

    /// True when the session that asked may still be answered in the term it asked in.
    pub(crate) fn answers(&self, call: &Call) -> bool {
        call.term == self.promised_term() && self.leader() == Some(call.conn)
    }

    pub(crate) fn control(
        &mut self,
        conn: ConnId,
        term: Term,
        what: What,
        result: impl FnOnce(&mut Self, crate::store::Token, &mut Context<'_>) -> Result<(), StoreError>,
        cx: &mut Context<'_>,
    ) {
        let kind = match what {
            What::Reconcile => Kind::Reconcile,
            What::NeedSet => Kind::NeedSet,
            What::TermStart { .. } | What::Witness { n: 0, .. } => Kind::TermStart,
            What::Witness { .. } => Kind::SyncSet,
            What::Told { .. } => Kind::Told,
            What::Reconfigure => Kind::Reconfigure,
            _ => Kind::Seal,
        };
        let token = self.calls.add(Call { conn, term, what });
        if let Err(error) = result(self, token, cx) {
            self.calls.take(token);
            self.store_refused(conn, error, (kind, Idx(0), 0), cx);
        }
    }

    /// RECONCILE (R5): intent and loss epoch are durable before any REPAIR.
    fn reconcile(&mut self, conn: ConnId, term: Term, loss: u32, cx: &mut Context<'_>) {
        let need = core::mem::take(&mut self.staged.need);
        let call = |replica: &mut Self, token, _: &mut Context<'_>| {
            replica
                .store
                .as_mut()
                .map_or(Ok(()), |s| s.reconcile(token, &need, loss))
        };
        self.control(conn, term, What::Reconcile, call, cx);
    }

    /// NEEDSET: the staged chunks are durable before copies come.
    fn need_set(&mut self, conn: ConnId, term: Term, cx: &mut Context<'_>) {
        let need = core::mem::take(&mut self.staged.need);
        let call = |replica: &mut Self, token, _: &mut Context<'_>| {
            // As a RECONCILE with the loss epoch that is: that writes a record, and so is answered,
            // also when every chunk is in need already.
            let loss = replica.facts().loss;
            replica
                .store
                .as_mut()
                .map_or(Ok(()), |s| s.reconcile(token, &need, loss))
        };
        self.control(conn, term, What::NeedSet, call, cx);
    }

    /// TERMSTART (R7).
    fn term_start(
        &mut self,
        conn: ConnId,
        (term, start): (Term, Idx),
        iss: MemberSet,
        loss: u32,
        cx: &mut Context<'_>,
    ) {
        let facts = self.facts();
        if facts.is_witness() {
            return self.witness_term_start(conn, (term, start), iss, loss, cx);
        }
        let max_idx = self.store.as_ref().map_or(Idx(0), |s| s.max_idx());
        if facts.se.term == term {
            // Sent again after its answer was lost; nothing has come since if upto is still there.
            let upto = self.store.as_ref().map_or(Idx(0), |s| s.upto());
            if facts.se.n == 0 && facts.iss == iss && upto == start {
                return self.send(conn, &Message::TermStartDone { term, start }, cx);
            }
            return self.malformed(conn, cx);
        }
        if !iss.contains(facts.member) || start < max_idx || start < facts.w {
            return self.malformed(conn, cx);
        }
        let limbo = core::mem::take(&mut self.staged.limbo);
        let dirty = core::mem::take(&mut self.staged.dirty);
        let begin = TermStart {
            term,
            start,
            iss,
            loss,
            limbo,
            dirty,
        };
        let call = |replica: &mut Self, token, cx: &mut Context<'_>| {
            let Some(store) = replica.store.as_mut() else {
                return Ok(());
            };
            store.term_start(token, begin, cx.data, &mut replica.store_out)
        };
        self.control(conn, term, What::TermStart { start }, call, cx);
    }

    /// TOLD (D1 holds): this replica is out of the in-sync set.
    fn told(&mut self, conn: ConnId, told: Told, cx: &mut Context<'_>) {
        let facts = self.facts();
        if told.iss.contains(facts.member) || told.se < facts.se {
            return self.malformed(conn, cx);
        }
        let call = |replica: &mut Self, token, cx: &mut Context<'_>| {
            let Some(store) = replica.store.as_mut() else {
                return Ok(());
            };
            store.told(token, told, cx.data, &mut replica.store_out)
        };
        self.control(
            conn,
            told.se.term,
            What::Told { start: told.start },
            call,
            cx,
        );
    }

    /// OPENED (R8, R9): a majority holds the term start.
    fn opened_term(&mut self) {
        let facts = self.facts();
        let begun = facts.se.term == facts.term;
        if let (true, Some(store)) = (begun, self.store.as_mut()) {
            store.opened();
        }
    }

    /// RECONFIGURE (C20): the leader's configuration is durable before it is told to be. A leader
    /// never has an older one than a member that promised to it, but its frame may be a late one.
    fn reconfigure(&mut self, conn: ConnId, term: Term, config: Membership, cx: &mut Context<'_>) {
        let known = self.facts().config;
        if known.generation > 0 && known.witness != config.witness {
            // W16: who the witness is was fixed when the volume was made.
            return self.malformed(conn, cx);
        }
        let call = |replica: &mut Self, token, _: &mut Context<'_>| {
            let store = replica.store.as_mut();
            store.map_or(Ok(()), |s| s.reconfigure(token, config))
        };
        self.control(conn, term, What::Reconfigure, call, cx);
    }

    /// SEAL: the clean stop, if there is nothing that must be remembered.
    fn seal(&mut self, conn: ConnId, term: Term, idx: Idx, cx: &mut Context<'_>) {
        let facts = self.facts();
        if facts.is_witness() {
            return self.witness_seal(conn, term, cx);
        }
        let clean = self
            .store
            .as_ref()
            .is_some_and(|s| s.upto() >= idx && !s.has_need());
        let clean = clean && !facts.tainted && facts.iss.contains(facts.member);
        if !clean || facts.se.term != term {
            return self.send(
                conn,
                &Message::SealDone {
                    term,
                    sealed: false,
                },
                cx,
            );
        }
        let call = |replica: &mut Self, token, cx: &mut Context<'_>| {
            let Some(store) = replica.store.as_mut() else {
                return Ok(());
            };
            store.seal(token, cx.data, &mut replica.store_out)
        };
        self.control(conn, term, What::Seal, call, cx);
    }

    /// DIRTYCLEAR: not answered.
    fn dirty_clear(
        &mut self,
        conn: ConnId,
        member: MemberId,
        crc: u32,
        payload: Option<BufSlice>,
        cx: &mut Context<'_>,
    ) {
        let bytes = payload.map_or(&[][..], |slice| cx.data.bytes(slice));
        let ok = cx.data.crc32c(0, bytes) == crc;
        let chunks = ok
            .then(|| chunks_of(bytes, self.facts().capacity))
            .flatten();
        crate::streams::release(payload, cx);
        let Some(chunks) = chunks else {
            return self.malformed(conn, cx);
        };
        let Some(store) = self.store.as_mut() else {
            return;
        };
        if let Err(error) = store.dirty_clear(member, chunks, cx.data, &mut self.store_out) {
            self.store_refused(conn, error, (Kind::DirtyClear, Idx(0), 0), cx);
        }
    }

    /// A call is durable: its answer. "Persist, then answer" is here.
    pub(crate) fn call_done(&mut self, call: Call, cx: &mut Context<'_>) {
        match call.what {
            What::Vote => return self.vote_durable(call.term, cx),
            What::Drain => return self.vote_drained(call.term),
            What::Stop => return self.stop_drained(),
            _ => {}
        }
        if !self.answers(&call) {
            return;
        }
        let term = call.term;
        let answer = match call.what {
            What::Reconcile => Message::ReconcileDone { term },
            What::NeedSet => Message::NeedSetDone { term },
            What::TermStart { start } => {
                self.restart_stream(call.conn, start);
                Message::TermStartDone { term, start }
            }
            What::Told { start } => {
                self.restart_stream(call.conn, start);
                Message::ToldDone { term }
            }
            What::Witness { idx, n } => crate::witness::done(term, idx, n),
            What::SyncSet { idx, n } => {
                if let Some(session) = self.session(call.conn) {
                    session.ack_due = true;
                }
                Message::SyncSetDone { term, idx, n }
            }
            What::Seal => Message::SealDone {
                term,
                sealed: self.facts().sealed,
            },
            What::Reconfigure => Message::ReconfigureDone {
                term,
                generation: self.facts().config.generation,
            },
            What::Vote | What::Drain | What::Stop | What::Repair { .. } | What::Read { .. } => {
                return;
            }
        };
        self.send(call.conn, &answer, cx);
    }

    /// The store will not do it: a TERMSTART above a failed entry (M3).
    pub(crate) fn call_refused(&mut self, call: Call, cx: &mut Context<'_>) {
        if let (What::TermStart { start }, true) = (call.what, self.answers(&call)) {
            self.nack(call.conn, Reason::Failed, Kind::TermStart, start, 0, cx);
        }
    }

    /// Entries go on above `start`.
    fn restart_stream(&mut self, conn: ConnId, start: Idx) {
        self.fresh.clear();
        self.taken = start;
        self.forget_sync_sets();
        if let Some(session) = self.session(conn) {
            session.next = Some(start.next());
            session.acked = start;
        }
    }
}
