//! The replica as a witness (7.1, W1): it votes, keeps a lease and remembers the in-sync sets. It has
//! no stream, so an epoch has no place to wait for: it is a record, taken when it is above the durable
//! one and answered again when it is that one.

use crate::calls::What;
use crate::entries::SyncSetFrame;
use crate::machine::{Context, Replica};
use crate::store::WitnessEpoch;
use trilith_block::mutant::{self, Mutant};
use trilith_block::{ConnId, Idx, MemberSet, SyncEpoch, Term};
use trilith_wire::{Kind, Message};

/// True for the frames of a leader that a witness answers, or takes without an answer.
pub(crate) fn is_answered(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::TermStart
            | Kind::SyncSet
            | Kind::Reconcile
            | Kind::Reconfigure
            | Kind::Seal
            | Kind::Heartbeat
            | Kind::StepDown
            | Kind::Opened
    )
}

/// The answer to an epoch that is durable.
pub(crate) fn done(term: Term, idx: Idx, n: u32) -> Message<'static> {
    if n == 0 {
        Message::TermStartDone { term, start: idx }
    } else {
        Message::SyncSetDone { term, idx, n }
    }
}

impl Replica {
    /// TERMSTART (R7, W4): the epoch (term, 0).
    pub(crate) fn witness_term_start(
        &mut self,
        conn: ConnId,
        (term, start): (Term, Idx),
        iss: MemberSet,
        loss: u32,
        cx: &mut Context<'_>,
    ) {
        let epoch = WitnessEpoch {
            se: SyncEpoch { term, n: 0 },
            iss,
            trk: iss,
            loss,
        };
        self.witness_epoch(conn, start, epoch, cx);
    }

    /// SYNCSET. Whoever joins takes maps over; a witness only keeps who is in which set.
    pub(crate) fn witness_sync_set(
        &mut self,
        conn: ConnId,
        frame: &SyncSetFrame,
        cx: &mut Context<'_>,
    ) {
        if frame.n == 0 {
            return self.malformed(conn, cx);
        }
        let epoch = WitnessEpoch {
            se: SyncEpoch {
                term: frame.term,
                n: frame.n,
            },
            iss: frame.iss,
            trk: frame.trk,
            loss: self.facts().loss,
        };
        self.witness_epoch(conn, frame.idx, epoch, cx);
    }

    /// The crash argument: the record is durable before it is answered, and a PROMISE waits for it,
    /// so that what a PROMISE says is at or above all that was ever answered (Lemma 2). Nothing more
    /// is read from the leader until then, so there is one at a time.
    fn witness_epoch(&mut self, conn: ConnId, idx: Idx, epoch: WitnessEpoch, cx: &mut Context<'_>) {
        let facts = self.facts();
        let data = facts.config.data();
        let sane = !epoch.iss.is_empty()
            && epoch.iss.minus(epoch.trk).is_empty()
            && epoch.trk.minus(data).is_empty();
        let same = (facts.se, facts.iss, facts.trk) == (epoch.se, epoch.iss, epoch.trk);
        if sane && same {
            // Its answer was lost.
            return self.send(conn, &done(epoch.se.term, idx, epoch.se.n), cx);
        }
        if !sane || epoch.se <= facts.se {
            return self.malformed(conn, cx);
        }
        let n = epoch.se.n;
        if mutant::on(Mutant::WitnessRecordVolatile) {
            return self.send(conn, &done(epoch.se.term, idx, n), cx);
        }
        let call = |replica: &mut Self, token, _: &mut Context<'_>| {
            let store = replica.store.as_mut();
            store.map_or(Ok(()), |s| s.witness_epoch(token, epoch))
        };
        self.control(conn, epoch.se.term, What::Witness { idx, n }, call, cx);
    }

    /// SEAL (W13): whatever was sent before is durable. It is refused before the term has begun here,
    /// as at a holder of data: the seal would hide a lease (C31).
    pub(crate) fn witness_seal(&mut self, conn: ConnId, term: Term, cx: &mut Context<'_>) {
        if self.facts().se.term != term {
            let sealed = false;
            return self.send(conn, &Message::SealDone { term, sealed }, cx);
        }
        let call = |replica: &mut Self, token, _: &mut Context<'_>| {
            let store = replica.store.as_mut();
            store.map_or(Ok(()), |s| s.witness_seal(token))
        };
        self.control(conn, term, What::Seal, call, cx);
    }
}
