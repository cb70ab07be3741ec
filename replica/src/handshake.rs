//! HELLO, CHALLENGE, AUTH, WELCOME (M24). Until AUTH has been checked a peer changes nothing here
//! and is sent nothing but a refusal or a challenge; it takes no payload buffer and its time is
//! limited.

use crate::lease::Lease;
use crate::limits::{SESSION_IDLE, SESSIONS_MAX};
use crate::machine::{Context, Replica};
use crate::session::Phase;
use crate::store::{Facts, GENERATION_FIRST, LeaseGrant};
use alloc::boxed::Box;
use core::time::Duration;
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{
    ConnId, Idx, MemberId, MemberSet, Membership, Monotonic, SyncEpoch, Term, Uuid,
};
use trilith_wire::auth::{self, Binding, Nonce, Role};
use trilith_wire::limits::{PROTOCOL_MAX, PROTOCOL_MIN, PROTOCOL_RECONFIGURE, PROTOCOL_WITNESS};
use trilith_wire::{Hello, Message, Reason};

impl Replica {
    /// A number that was never used before and that nobody outside can predict: HMAC as a
    /// pseudo-random function over a counter, keyed by the driver's entropy.
    fn nonce(&mut self) -> Nonce {
        self.nonces += 1;
        let mut counter = [0u8; 32];
        counter[..8].copy_from_slice(&self.nonces.to_le_bytes());
        let binding = Binding {
            engine_nonce: counter,
            replica_nonce: [0; 32],
            volume: self.facts().volume,
            engine: Uuid::NONE,
            replica: self.facts().replica,
            protocol: 0,
        };
        auth::proof(&self.config.entropy, Role::Replica, &binding)
    }

    /// HELLO: checks what needs no proof, and challenges.
    pub(crate) fn hello(&mut self, conn: ConnId, hello: Hello, cx: &mut Context<'_>) {
        if hello.volume != self.facts().volume {
            return self.refuse(conn, Reason::WrongVolume, 0, cx);
        }
        if hello.protocol_min > PROTOCOL_MAX || hello.protocol_max < PROTOCOL_MIN {
            let range = u64::from(PROTOCOL_MIN) | u64::from(PROTOCOL_MAX) << 16;
            return self.refuse(conn, Reason::Protocol, range, cx);
        }
        if hello.engine.is_none() {
            return self.refuse(conn, Reason::Malformed, 0, cx);
        }
        let protocol = hello.protocol_max.min(PROTOCOL_MAX);
        let nonce = self.nonce();
        let binding = Binding {
            engine_nonce: hello.nonce,
            replica_nonce: nonce,
            volume: hello.volume,
            engine: hello.engine,
            replica: self.facts().replica,
            protocol,
        };
        let proof = auth::proof(&self.config.secret, Role::Replica, &binding);
        let replica = self.facts().replica;
        self.send(
            conn,
            &Message::Challenge {
                protocol,
                replica,
                nonce,
                proof,
            },
            cx,
        );
        if let Some(session) = self.session(conn) {
            session.phase = Phase::Challenged(Box::new((hello, binding)));
        }
    }

    /// AUTH: checks the proof, then what only a peer with the secret may learn, and welcomes.
    pub(crate) fn auth(
        &mut self,
        conn: ConnId,
        hello: &Hello,
        binding: &Binding,
        proof: &auth::Proof,
        cx: &mut Context<'_>,
    ) {
        if !auth::verify(&self.config.secret, Role::Engine, binding, proof) {
            self.counters.secret_refused += 1;
            return self.refuse(conn, Reason::Secret, 0, cx);
        }
        let known = self.facts();
        if hello.member != known.member || (hello.capacity != 0 && hello.capacity != known.capacity)
        {
            return self.refuse(conn, Reason::Mismatch, known.capacity, cx);
        }
        let heeded = !mutant::on(Mutant::AttachEpochIgnored);
        if hello.attach_epoch < self.attach_epoch() && heeded {
            // M12: whoever comes with an older attachment is fenced for good.
            return self.refuse(conn, Reason::AttachEpoch, 0, cx);
        }
        // C20: an engine that speaks of configurations learns the newer one from WELCOME. One that
        // does not knows only those that were never changed.
        let learns = binding.protocol >= PROTOCOL_RECONFIGURE;
        if known.is_retired() || (!learns && hello.cfg_gen < known.config.generation) {
            return self.refuse(conn, Reason::Config, known.config.generation, cx);
        }
        if !learns && known.config.generation != GENERATION_FIRST {
            let range = u64::from(PROTOCOL_RECONFIGURE) | u64::from(PROTOCOL_MAX) << 16;
            return self.refuse(conn, Reason::Protocol, range, cx);
        }
        if known.config.has_witness() && binding.protocol < PROTOCOL_WITNESS {
            // W16: it would count the witness as a holder of data.
            let range = u64::from(PROTOCOL_WITNESS) | u64::from(PROTOCOL_MAX) << 16;
            return self.refuse(conn, Reason::Protocol, range, cx);
        }
        if !self.make_place(conn, hello.engine, cx) {
            return self.refuse(conn, Reason::Busy, 0, cx);
        }
        if !hello.supersedes.is_none() && hello.supersedes != hello.engine {
            // M14: the supervisor that holds the host's lock says that engine is dead.
            self.lease.release(hello.supersedes);
            self.lease_dirty = true;
        }
        if let Some(session) = self.session(conn) {
            session.phase = Phase::Ready;
            session.engine = hello.engine;
            session.welcome_due = true;
        }
        self.counters.sessions += 1;
    }

    /// Ends an older session of the same engine; then sees that there is a place for one more.
    fn make_place(&mut self, conn: ConnId, engine: Uuid, cx: &mut Context<'_>) -> bool {
        let older = self
            .sessions
            .iter()
            .find(|s| s.is_ready() && s.engine == engine && s.conn != conn)
            .map(|s| s.conn);
        if let Some(older) = older {
            self.refuse(older, Reason::Replaced, 0, cx);
        }
        if self.sessions.iter().filter(|s| s.is_ready()).count() < SESSIONS_MAX {
            return true;
        }
        let now = cx.now;
        let leader = self.voted_engine();
        let idle = self
            .sessions
            .iter()
            .filter(|s| s.is_ready() && s.engine != leader)
            .filter(|s| now.since(s.seen_at) >= SESSION_IDLE)
            .min_by_key(|s| s.seen_at)
            .map(|s| s.conn);
        match idle {
            Some(idle) => {
                self.refuse(idle, Reason::Busy, 0, cx);
                true
            }
            None => false,
        }
    }
}

/// The lease after a restart. `grant` is the last one in the window header, `None` when the window
/// is lost: then the replica may have granted one to whoever it voted for until just before, and
/// says so (5.2), unless it was sealed and promised nothing since: an engine counts what a replica
/// echoes from its promise on, before anything takes the seal away.
pub(crate) fn lease_after_restart(
    grant: Option<LeaseGrant>,
    facts: &Facts,
    now: Monotonic,
    span: Duration,
) -> Lease {
    if mutant::on(Mutant::LeaseForgotten) {
        return Lease::default();
    }
    match grant {
        // A lease granted in this boot ends within `span`; if memory says otherwise, it is capped.
        Some(grant) => {
            mark::reached_if(grant.until > now, Mark::LeaseRestored);
            Lease::restored(grant.engine, grant.until.min(now.after(span)))
        }
        None if facts.term == Term(0) => Lease::default(),
        None if facts.sealed && facts.se.term == facts.term => Lease::default(),
        None => Lease::restored(facts.voted, now.after(span)),
    }
}

/// Facts before the store stands; nothing is answered then.
pub(crate) fn no_facts() -> Facts {
    Facts {
        volume: Uuid::NONE,
        replica: Uuid::NONE,
        member: MemberId::new(0).unwrap_or_else(|| unreachable!("member 0 is below the maximum")),
        config: Membership::default(),
        capacity: 0,
        term: Term(0),
        voted: Uuid::NONE,
        attach_epoch: 0,
        se: SyncEpoch::default(),
        iss: MemberSet::EMPTY,
        trk: MemberSet::EMPTY,
        loss: 0,
        w: Idx(0),
        tainted: false,
        flush_failed: false,
        sealed: false,
        volatile_cache: false,
    }
}
