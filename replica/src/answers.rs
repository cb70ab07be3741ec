//! What leaves once per batch: one ACK for all entries accepted in it, one FLUSHDONE for all
//! flushes, the heartbeat's answer, WELCOMEs, pieces of maps. All of it after the store has settled,
//! so that what it says survives the process.

use crate::machine::{Context, Replica, send};
use trilith_block::{ConnId, Monotonic};
use trilith_wire::Message;
use trilith_wire::limits::ACK_FURTHER_MAX;

impl Replica {
    /// Sends what is due.
    pub(crate) fn answer(&mut self, cx: &mut Context<'_>) {
        self.welcome(cx);
        let Some(conn) = self.leader() else {
            // Nobody to tell: a later WELCOME or PROMISE does.
            self.fresh.clear();
            self.flushed = None;
            return;
        };
        let facts = self.facts();
        if facts.se.term != facts.term {
            // In a recovery there is no stream: what still ends is of an older one.
            self.fresh.clear();
            self.flushed = None;
        } else {
            self.acknowledge(conn, cx);
        }
        if let Some(idx) = self.flushed.take() {
            self.counters.flushes += 1;
            self.send(
                conn,
                &Message::FlushDone {
                    term: self.promised_term(),
                    idx,
                },
                cx,
            );
        }
        self.answer_heartbeat(conn, cx);
        self.answer_map(conn, self.promised_term(), cx);
    }

    fn welcome(&mut self, cx: &mut Context<'_>) {
        for at in 0..self.sessions.len() {
            let session = &mut self.sessions[at];
            if !session.welcome_due {
                continue;
            }
            session.welcome_due = false;
            let (conn, engine) = (session.conn, session.engine);
            let state = self.state(cx.now, engine);
            self.sessions[at].acked = state.upto;
            self.send(conn, &Message::Welcome(state), cx);
        }
    }

    /// One ACK per batch: `upto`, and positions above it that were accepted out of order.
    fn acknowledge(&mut self, conn: ConnId, cx: &mut Context<'_>) {
        let Some(store) = self.store.as_deref() else {
            return;
        };
        let upto = store.upto();
        self.fresh.retain(|idx| *idx > upto);
        let Some(session) = self.sessions.iter_mut().find(|s| s.conn == conn) else {
            return;
        };
        if session.acked == upto && self.fresh.is_empty() && !session.ack_due {
            return;
        }
        session.acked = upto;
        session.ack_due = false;
        let echo = session.echo;
        let facts = store.facts();
        let free_extents = store.free_extents();
        let (credit_entries, credit_bytes) = (self.credit_entries(), self.config.credit_bytes);
        let mut rest = &self.fresh[..];
        loop {
            let (now, later) = rest.split_at(rest.len().min(ACK_FURTHER_MAX));
            self.scratch.clear();
            for idx in now {
                self.scratch.extend_from_slice(&idx.0.to_le_bytes());
            }
            let message = Message::Ack {
                term: facts.term,
                upto,
                free_extents,
                credit_entries,
                credit_bytes,
                w: facts.w,
                echo,
                further: &self.scratch,
            };
            send(&mut self.encoder, conn, &message, None, cx);
            self.counters.acks += 1;
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        self.fresh.clear();
    }

    fn answer_heartbeat(&mut self, conn: ConnId, cx: &mut Context<'_>) {
        let Some(echo) = self.session(conn).and_then(|s| s.heartbeat.take()) else {
            return;
        };
        let Some(store) = self.store.as_deref() else {
            return;
        };
        let facts = store.facts();
        let message = Message::HeartbeatDone {
            term: facts.term,
            upto: store.upto(),
            free_extents: store.free_extents(),
            w: facts.w,
            echo,
        };
        self.send(conn, &message, cx);
    }

    /// M14: the last grant goes to the window header with the next settle of the store.
    pub(crate) fn store_lease(&mut self, now: Monotonic) {
        if let (true, Some(store)) = (self.lease_dirty, self.store.as_mut()) {
            self.lease_dirty = false;
            store.set_lease(self.lease.stored(now));
        }
    }
}
