//! PREVOTE, VOTE, PROMISE: one vote per term, durable before it is told, and nothing of an older
//! session reaches the device after PROMISE (I2, I3).

use crate::calls::{Call, What};
use crate::lease::millis;
use crate::machine::{Context, Replica};
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{ConnId, Idx, Term, Uuid};
use trilith_wire::{Kind, Message, Prevote, Reason, Vote};

/// A vote that was taken but not answered yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ballot {
    /// Session to be answered.
    pub(crate) conn: ConnId,
    pub(crate) term: Term,
    pub(crate) engine: Uuid,
    pub(crate) attach_epoch: u64,
    /// V1 is done: (term, engine, attach epoch) is durable here.
    pub(crate) durable: bool,
    /// V3 is done: no write is in flight.
    pub(crate) drained: bool,
}

impl Replica {
    /// Highest term promised, a vote under way included.
    pub(crate) fn promised_term(&self) -> Term {
        self.ballot
            .map_or(self.facts().term, |b| b.term.max(self.facts().term))
    }

    /// The engine that the vote in [`Self::promised_term`] went to.
    pub(crate) fn voted_engine(&self) -> Uuid {
        self.ballot.map_or(self.facts().voted, |b| b.engine)
    }

    /// Highest attach epoch granted a vote, one under way included.
    pub(crate) fn attach_epoch(&self) -> u64 {
        let durable = self.facts().attach_epoch;
        self.ballot.map_or(durable, |b| b.attach_epoch.max(durable))
    }

    /// What PREVOTE and VOTE have in common: older attachments and configurations are fenced.
    fn fenced(&self, p: &Prevote) -> Option<Reason> {
        if self.is_failed() {
            Some(Reason::Failed)
        } else if p.attach_epoch < self.attach_epoch() && !mutant::on(Mutant::AttachEpochIgnored) {
            Some(Reason::AttachEpoch)
        } else if p.cfg_gen < self.facts().config.generation || self.facts().is_retired() {
            Some(Reason::Config)
        } else {
            None
        }
    }

    /// PREVOTE: would a vote be granted? Changes nothing (the lease of `release_lease_of` is
    /// looked through, not ended).
    pub(crate) fn prevote(&mut self, conn: ConnId, p: &Prevote, cx: &mut Context<'_>) {
        let engine = self.engine_of(conn);
        let left = self
            .lease
            .left_for_others(cx.now, engine, p.release_lease_of);
        let refused = self.fenced(p).or_else(|| {
            if p.term <= self.promised_term() {
                Some(Reason::Term)
            } else if !left.is_zero() && p.attach_epoch <= self.attach_epoch() {
                // M11: a higher attach epoch takes over whatever lease runs.
                Some(Reason::LeaderAlive)
            } else {
                None
            }
        });
        let reply = Message::PrevoteReply {
            refused,
            term: self.promised_term(),
            attach_epoch: self.attach_epoch(),
            lease_left_ms: millis(left),
        };
        self.send(conn, &reply, cx);
    }

    /// VOTE: takes the vote (V1 starts, V2 holds from here on) or refuses it.
    pub(crate) fn vote(&mut self, conn: ConnId, v: &Vote, cx: &mut Context<'_>) {
        let engine = self.engine_of(conn);
        let refused = self.fenced(v).or_else(|| {
            if v.term < self.promised_term() || v.term == Term(0) {
                Some(Reason::Term)
            } else if v.term == self.promised_term() && self.voted_engine() != engine {
                // I2: the vote of a term never changes.
                Some(Reason::Voted)
            } else {
                None
            }
        });
        if let Some(reason) = refused {
            return self.nack(conn, reason, Kind::Vote, Idx(0), 0, cx);
        }
        if !v.release_lease_of.is_none() && v.release_lease_of != engine {
            self.lease.release(v.release_lease_of);
            self.lease_dirty = true;
        }
        if !v.release_lease_of.is_none() || v.attach_epoch > self.attach_epoch() {
            let left = self.lease.left_for_others(cx.now, engine, Uuid::NONE);
            mark::reached_if(!left.is_zero(), Mark::TakenOverLease);
        }
        if let Some(older) = self.ballot.filter(|b| b.term < v.term) {
            mark::reached(Mark::VoteOvertaken);
            self.ballot = None;
            self.nack_term(older.conn, v.term, v.attach_epoch, cx);
        }
        // V2: no session admits anything until this vote is answered; the streams of all of them
        // are over, and so is what was staged.
        self.end_streams();
        let again = v.term == self.facts().term && self.facts().attach_epoch >= v.attach_epoch;
        self.ballot = Some(Ballot {
            conn,
            term: v.term,
            engine,
            attach_epoch: v.attach_epoch,
            durable: again,
            drained: false,
        });
        self.counters.votes += 1;
        if mark::reached_if(again, Mark::VoteAgain) {
            self.drain_for_vote(cx);
        } else {
            self.persist_vote(v, engine, conn, cx);
        }
    }

    /// V1. The crash argument: before the record is durable nobody was told; after it a restart
    /// finds the same vote and refuses every other engine of this term.
    fn persist_vote(&mut self, v: &Vote, engine: Uuid, conn: ConnId, cx: &mut Context<'_>) {
        let token = self.calls.add(Call {
            conn,
            term: v.term,
            what: What::Vote,
        });
        let Some(store) = self.store.as_mut() else {
            return;
        };
        if let Err(error) = store.vote(token, v.term, engine, v.attach_epoch) {
            self.calls.take(token);
            self.ballot = None;
            self.store_refused(conn, error, (Kind::Vote, Idx(0), 0), cx);
        }
    }

    /// V1 is done.
    pub(crate) fn vote_durable(&mut self, term: Term, cx: &mut Context<'_>) {
        if let Some(ballot) = self.ballot.as_mut().filter(|b| b.term == term) {
            ballot.durable = true;
            self.drain_for_vote(cx);
        }
    }

    /// V3 starts.
    fn drain_for_vote(&mut self, cx: &mut Context<'_>) {
        let Some(ballot) = self.ballot else { return };
        let call = Call {
            conn: ballot.conn,
            term: ballot.term,
            what: What::Drain,
        };
        let token = self.calls.add(call);
        let Some(store) = self.store.as_mut() else {
            return;
        };
        mark::reached_if(store.changes_running() > 0, Mark::VoteDrains);
        if mutant::on(Mutant::NoDrain) {
            self.calls.take(token);
            return self.vote_drained(ballot.term);
        }
        if let Err(error) = store.drain(token, cx.data, &mut self.store_out) {
            self.calls.take(token);
            self.ballot = None;
            self.store_refused(ballot.conn, error, (Kind::Vote, Idx(0), 0), cx);
        }
    }

    /// V3 is done.
    pub(crate) fn vote_drained(&mut self, term: Term) {
        if let Some(ballot) = self.ballot.as_mut().filter(|b| b.term == term) {
            ballot.drained = true;
        }
    }

    /// Answers the vote once it is durable (V1) and the device is quiet (V3, V4). Called in
    /// settle.
    pub(crate) fn promise_when_drained(&mut self, cx: &mut Context<'_>) {
        let Some(ballot) = self.ballot else { return };
        if !ballot.durable || !ballot.drained || self.calls.controls() > 0 {
            return;
        }
        assert!(
            self.facts().term == ballot.term && self.facts().voted == ballot.engine,
            "promise of term {:?}, durable is {:?}",
            ballot.term,
            self.facts().term
        );
        self.ballot = None;
        let mut state = self.state(cx.now, ballot.engine);
        state.lease_left_ms = millis(
            self.lease
                .left_for_others(cx.now, ballot.engine, Uuid::NONE),
        );
        self.counters.promises += 1;
        if let Some(session) = self.session(ballot.conn) {
            session.acked = state.upto;
        }
        self.send(
            ballot.conn,
            &Message::Promise {
                term: ballot.term,
                state,
            },
            cx,
        );
    }

    /// NACK(Term) for a vote that a higher one has overtaken.
    fn nack_term(&mut self, conn: ConnId, term: Term, attach_epoch: u64, cx: &mut Context<'_>) {
        let nack = Message::Nack {
            reason: Reason::Term,
            refused: Kind::Vote,
            term,
            attach_epoch,
            idx: Idx(0),
            tag: 0,
        };
        self.send(conn, &nack, cx);
    }
}
