//! The stream of entries: APPEND, FLUSH, SYNCSET, HEARTBEAT, in idx order and without gaps.

use crate::calls::{Call, What};
use crate::machine::{Context, Replica, entry_status};
use crate::reads::checksums_right;
use crate::store::{Admission, Change, DiskError, Entry, Join, SyncSet};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BufSlice, ConnId, Idx, MemberId, MemberSet, SyncEpoch, Term};
use trilith_wire::{Append, EntryOp, EntryStatus, Kind, Message, SlotStatus};

/// Where an entry stands in its stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Position {
    /// It is the next one, or one that is sent again.
    Good,
    /// It was accepted long ago.
    Old,
    /// The store has it and has not ended it: its end will be told.
    Known,
    /// Entries before it are missing, or it was never in this stream.
    Gap,
}

/// A SYNCSET as it came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SyncSetFrame {
    pub(crate) term: Term,
    pub(crate) idx: Idx,
    pub(crate) n: u32,
    pub(crate) iss: MemberSet,
    pub(crate) trk: MemberSet,
    pub(crate) join: Option<MemberId>,
}

impl Replica {
    /// True when the payload of an APPEND is to be received: not for what is here already.
    pub(crate) fn wants_entry(&self, append: &Append<'_>) -> bool {
        self.store.as_ref().is_some_and(|s| append.idx > s.upto())
            && !self.is_on_its_way(append.idx)
    }

    /// True for an entry that the store was given in this stream and that has neither been accepted
    /// nor failed. It may wait behind a barrier without a slot.
    fn is_on_its_way(&self, idx: Idx) -> bool {
        let Some(store) = self.store.as_deref() else {
            return false;
        };
        idx <= self.taken && !store.is_accepted(idx) && !self.has_failed(idx)
    }

    fn has_failed(&self, idx: Idx) -> bool {
        let slot = self
            .store
            .as_ref()
            .and_then(|s| s.window_records(idx).next());
        slot.is_some_and(|r| r.idx == idx && r.status == SlotStatus::Failed)
    }

    /// APPEND. The term has been checked; takes the payload.
    pub(crate) fn append(
        &mut self,
        conn: ConnId,
        append: &Append<'_>,
        payload: Option<BufSlice>,
        cx: &mut Context<'_>,
    ) {
        self.alive(conn, append.tidx, append.sent_at, cx);
        match self.position(conn, append.idx) {
            Position::Good => self.admit(conn, append, payload, cx),
            Position::Old => {
                crate::streams::release(payload, cx);
                self.counters.duplicates += 1;
                self.ack_again(conn);
            }
            Position::Known => {
                crate::streams::release(payload, cx);
                self.counters.duplicates += 1;
                self.advance(conn, append.idx);
            }
            Position::Gap => {
                crate::streams::release(payload, cx);
                self.malformed(conn, cx);
            }
        }
    }

    fn admit(
        &mut self,
        conn: ConnId,
        append: &Append<'_>,
        payload: Option<BufSlice>,
        cx: &mut Context<'_>,
    ) {
        let change = match (append.header_only, append.op, payload) {
            (true, _, _) => Change::HeaderOnly,
            (false, EntryOp::Zeroes, _) => Change::Zeroes,
            (false, EntryOp::Discard, _) => Change::Discard,
            (false, EntryOp::Write, Some(slice)) => {
                if !checksums_right(slice, append.crcs, cx.data) {
                    return self.checksum_wrong(conn, append, slice, cx);
                }
                Change::Write(slice)
            }
            (false, EntryOp::Write, None) => {
                // Thrown away on arrival: it was on its way and has failed since, which the engine
                // is told; or the engine spoke before its PROMISE.
                if !self.has_failed(append.idx) {
                    self.malformed(conn, cx);
                }
                return;
            }
        };
        let entry = Entry {
            idx: append.idx,
            range: append.range,
            change,
            skip: append.skip,
        };
        let Some(store) = self.store.as_mut() else {
            return;
        };
        let result = store.entry(entry, cx.data, &mut self.store_out);
        // The store has its own count of the buffer.
        crate::streams::release(payload, cx);
        match result {
            Ok(admission) => self.admitted(conn, append.idx, admission),
            Err(error) => self.store_refused(conn, error, (Kind::Append, append.idx, 0), cx),
        }
    }

    fn admitted(&mut self, conn: ConnId, idx: Idx, admission: Admission) {
        match admission {
            Admission::Taken => {
                self.counters.entries += 1;
                self.taken = self.taken.max(idx);
            }
            Admission::Duplicate => {
                self.counters.duplicates += 1;
                self.fresh.push(idx);
                self.ack_again(conn);
            }
        }
        self.advance(conn, idx);
    }

    /// The stream of a session has come to `idx`.
    fn advance(&mut self, conn: ConnId, idx: Idx) {
        if let Some(session) = self.session(conn) {
            session.next = Some(session.next.map_or(idx.next(), |n| n.max(idx.next())));
        }
    }

    fn ack_again(&mut self, conn: ConnId) {
        if let Some(session) = self.session(conn) {
            session.ack_due = true;
        }
    }

    /// A payload was damaged on its way. Later entries that overlap it must not overtake it (O1),
    /// so nothing more is taken on this session: the engine resends from `upto` on a new one.
    fn checksum_wrong(
        &mut self,
        conn: ConnId,
        append: &Append<'_>,
        payload: BufSlice,
        cx: &mut Context<'_>,
    ) {
        cx.data.release(payload.buf);
        self.counters.checksums_wrong += 1;
        let (term, idx, status) = (append.term, append.idx, EntryStatus::Checksum);
        self.send(conn, &Message::EntryFailed { term, idx, status }, cx);
        self.malformed(conn, cx);
    }

    /// The promised engine is alive: lease, echo, tidx.
    fn alive(&mut self, conn: ConnId, tidx: Idx, sent_at: u64, cx: &mut Context<'_>) {
        let span = self.config.lease;
        let Some(session) = self.session(conn) else {
            return;
        };
        session.echo = session.echo.max(sent_at);
        let engine = session.engine;
        self.lease.grant(engine, cx.now, span);
        self.lease_dirty = true;
        if let Some(store) = self.store.as_mut().filter(|s| tidx > s.tidx()) {
            store.set_tidx(tidx);
        }
    }

    /// Where `idx` stands in the stream of this session.
    fn position(&mut self, conn: ConnId, idx: Idx) -> Position {
        let facts = self.facts();
        let Some(store) = self.store.as_deref() else {
            return Position::Gap;
        };
        let upto = store.upto();
        // Entries of a term need its TERMSTART, or TOLD, here first; and only trk gets them.
        let begun = facts.se.term == facts.term || mutant::on(Mutant::LowerTermAccepted);
        if !begun || !facts.trk.contains(facts.member) {
            return Position::Gap;
        }
        if idx <= upto {
            return Position::Old;
        }
        if self.is_on_its_way(idx) {
            return Position::Known;
        }
        let next = self
            .sessions
            .iter()
            .find(|s| s.conn == conn)
            .and_then(|s| s.next);
        let next = next.unwrap_or(upto.next()).max(upto.next());
        if idx == next {
            return Position::Good;
        }
        if idx < next {
            // Sent again on the same session: only what has a slot, e.g. a failed one (M3).
            let known = store
                .window_records(idx)
                .next()
                .is_some_and(|r| r.idx == idx);
            return if known || store.is_accepted(idx) {
                Position::Good
            } else {
                Position::Gap
            };
        }
        // After a reconnect the engine may leave out what is accepted here, and nothing else.
        let mut expected = next;
        while expected < idx && store.is_accepted(expected) {
            expected = expected.next();
        }
        if expected == idx {
            Position::Good
        } else {
            Position::Gap
        }
    }

    /// The device refused an entry: its slot is Failed, the engine is told (M3).
    pub(crate) fn entry_failed(&mut self, idx: Idx, error: DiskError, cx: &mut Context<'_>) {
        self.counters.entries_failed += 1;
        let Some(conn) = self.leader() else { return };
        let (term, status) = (self.promised_term(), entry_status(Err(error)));
        self.send(conn, &Message::EntryFailed { term, idx, status }, cx);
    }

    /// FLUSH: accepted at its turn, answered when all entries before it are durable (F1).
    pub(crate) fn flush(
        &mut self,
        conn: ConnId,
        (idx, tidx, sent_at): (Idx, Idx, u64),
        cx: &mut Context<'_>,
    ) {
        self.alive(conn, tidx, sent_at, cx);
        match self.position(conn, idx) {
            Position::Good => {}
            Position::Old if self.facts().w >= idx => {
                // Durable before: answered again.
                self.flushed = Some(self.flushed.map_or(idx, |f| f.max(idx)));
                return self.ack_again(conn);
            }
            Position::Old => {}
            Position::Known => return self.advance(conn, idx),
            Position::Gap => return self.malformed(conn, cx),
        }
        self.advance(conn, idx);
        self.hand_in_flush(conn, idx, cx);
    }

    fn hand_in_flush(&mut self, conn: ConnId, idx: Idx, cx: &mut Context<'_>) {
        let Some(store) = self.store.as_mut() else {
            return;
        };
        match store.flush(idx, cx.data, &mut self.store_out) {
            Ok(Admission::Taken) => self.taken = self.taken.max(idx),
            Ok(Admission::Duplicate) => self.fresh.push(idx),
            Err(error) => self.store_refused(conn, error, (Kind::Flush, idx, 0), cx),
        }
    }

    /// SYNCSET: a full barrier in the store, accepted when durable (5.4).
    pub(crate) fn sync_set(
        &mut self,
        conn: ConnId,
        frame: &SyncSetFrame,
        tidx: Idx,
        cx: &mut Context<'_>,
    ) {
        let echo = self.session(conn).map_or(0, |s| s.echo);
        self.alive(conn, tidx, echo, cx);
        if self.take_over_sync_set(conn, frame.idx) {
            return;
        }
        let facts = self.facts();
        match self.position(conn, frame.idx) {
            Position::Good => {}
            Position::Old if facts.se.n >= frame.n && facts.se.term == frame.term => {
                self.ack_again(conn);
                let (term, idx, n) = (frame.term, frame.idx, frame.n);
                return self.send(conn, &Message::SyncSetDone { term, idx, n }, cx);
            }
            // 6.2: healed in place, the join is the first entry.
            Position::Gap
                if frame.join == Some(facts.member)
                    && facts.tainted
                    && facts.se.term == facts.term
                    && facts.trk.contains(facts.member) => {}
            Position::Old | Position::Known | Position::Gap => return self.malformed(conn, cx),
        }
        let joins = frame.join == Some(facts.member);
        if frame.n < facts.se.n || (joins && !frame.iss.contains(facts.member)) {
            return self.malformed(conn, cx);
        }
        // The same epoch again: a process died between its record and its slot. It is done again
        // for the slot alone; the maps that a joiner took over are in the journal.
        let joins = joins && frame.n > facts.se.n;
        let join = joins.then(|| Join {
            limbo: core::mem::take(&mut self.staged.limbo),
            dirty: core::mem::take(&mut self.staged.dirty),
        });
        let set = SyncSet {
            idx: frame.idx,
            se: SyncEpoch {
                term: frame.term,
                n: frame.n,
            },
            iss: frame.iss,
            trk: frame.trk,
            join,
        };
        let what = What::SyncSet {
            idx: frame.idx,
            n: frame.n,
        };
        let token = self.calls.add(Call {
            conn,
            term: frame.term,
            what,
        });
        let Some(store) = self.store.as_mut() else {
            return;
        };
        match store.sync_set(token, set, cx.data, &mut self.store_out) {
            Ok(admission) => {
                if admission == Admission::Duplicate {
                    self.calls.take(token);
                    let (term, idx, n) = (frame.term, frame.idx, frame.n);
                    self.send(conn, &Message::SyncSetDone { term, idx, n }, cx);
                }
                self.admitted(conn, frame.idx, admission);
            }
            Err(error) => {
                self.calls.take(token);
                self.store_refused(conn, error, (Kind::SyncSet, frame.idx, 0), cx);
            }
        }
    }

    /// A SYNCSET that is sent again while it is under way: the answer goes to the new session.
    fn take_over_sync_set(&mut self, conn: ConnId, idx: Idx) -> bool {
        let same = |call: &&mut Call| matches!(call.what, What::SyncSet { idx: i, .. } if i == idx);
        let Some(call) = self.calls.iter_mut().find(same) else {
            return false;
        };
        call.conn = conn;
        self.advance(conn, idx);
        true
    }

    /// HEARTBEAT: answered with the batch.
    pub(crate) fn heartbeat(
        &mut self,
        conn: ConnId,
        (commit, tidx, sent_at): (Idx, Idx, u64),
        cx: &mut Context<'_>,
    ) {
        self.alive(conn, tidx, sent_at, cx);
        self.commit = self.commit.max(commit);
        if let Some(session) = self.session(conn) {
            session.heartbeat = Some(sent_at);
        }
    }
}
