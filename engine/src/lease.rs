//! Leases and heartbeats (5.5), ReadIndex, exclusivity grants (RO-M).

use crate::api::Mode;
use crate::engine::{Cx, Engine};
use core::time::Duration;
use trilith_block::mutant::{self, Mutant};
use trilith_block::{Idx, MemberId, Monotonic};
use trilith_wire::Message;

impl Engine {
    /// The newest time T such that a majority handled something of this term that was sent at T or
    /// later.
    fn majority_echo(&self) -> Monotonic {
        self.membership
            .agreed(|member| self.peers[member.index()].echo)
    }

    /// End of the lease: L less 2 % and a margin after that time (clock rates differ by up to 1 %).
    pub(crate) fn lease_until(&self) -> Monotonic {
        let echo = self.majority_echo();
        if !self.cfg.timing.lease_enabled || echo == Monotonic(0) {
            return Monotonic(0);
        }
        let mut lease = self.cfg.timing.lease;
        if mutant::on(Mutant::StaleLeaseRead) {
            lease *= 1000;
        }
        echo.after((lease - lease / 50).saturating_sub(crate::limits::LEASE_MARGIN))
    }

    /// No other engine can have acknowledged a write before `now`.
    pub(crate) fn lease_runs(&self, now: Monotonic) -> bool {
        now < self.lease_until() || (self.mode == Mode::ReadOnlyGrant && self.grant_runs(now))
    }

    /// RO-M: the supervisor still promises exclusivity.
    pub(crate) fn grant_runs(&self, now: Monotonic) -> bool {
        now.after(self.cfg.timing.grant_margin) < self.grant
    }

    /// ReadIndex: this engine led at some time after `since`.
    pub(crate) fn leads_after(&self, since: Monotonic, now: Monotonic) -> bool {
        self.lease_runs(now) || since <= self.majority_echo()
    }

    /// A member handled a frame of ours that was sent at `echo`.
    pub(crate) fn echoed(&mut self, member: MemberId, echo: u64, now: Monotonic) {
        let peer = &mut self.peers[member.index()];
        if peer.promised && echo <= now.0 {
            peer.echo = peer.echo.max(Monotonic(echo));
        }
    }

    /// Silence after which a member is sent a heartbeat: longer while no client asks for anything.
    fn heartbeat_every(&self) -> Duration {
        let idle = self.cfg.timing.heartbeat_idle;
        if self.ops.is_empty() && self.requested_at.after(idle) <= self.now {
            idle
        } else {
            self.cfg.timing.heartbeat
        }
    }

    /// Heartbeats where nothing that grants a lease was sent for a while. Silent when entries flow
    /// and are answered.
    pub(crate) fn tend_heartbeats(&mut self, cx: &mut Cx<'_>) {
        let (every, again) = (self.heartbeat_every(), self.cfg.timing.heartbeat);
        for member in self.members.iter() {
            let peer = &self.peers[member.index()];
            if !peer.is_ours() {
                continue;
            }
            let quiet = peer.granted_at.after(every) <= cx.now;
            let unanswered = peer.asked_at.is_some_and(|at| at.after(again) <= cx.now)
                && peer.heartbeat_at.after(again) <= cx.now;
            if quiet || unanswered {
                self.heartbeat(member, cx);
            }
        }
    }

    pub(crate) fn heartbeat_deadline(&self) -> Option<Monotonic> {
        let (every, again) = (self.heartbeat_every(), self.cfg.timing.heartbeat);
        let ours = self.peers.iter().filter(|p| p.is_ours());
        ours.map(|peer| {
            let quiet = peer.granted_at.after(every);
            let unanswered = peer
                .asked_at
                .map(|at| at.max(peer.heartbeat_at).after(again));
            unanswered.map_or(quiet, |at| at.min(quiet))
        })
        .min()
    }

    pub(crate) fn heartbeat_all(&mut self, cx: &mut Cx<'_>) {
        for member in self.members.iter() {
            if self.peers[member.index()].is_ours() {
                self.heartbeat(member, cx);
            }
        }
    }

    /// One heartbeat round, unless one was sent at this very time.
    pub(crate) fn ask_majority(&mut self, cx: &mut Cx<'_>) {
        for member in self.members.iter() {
            let peer = &self.peers[member.index()];
            if peer.is_ours() && peer.heartbeat_at < cx.now {
                self.heartbeat(member, cx);
            }
        }
    }

    fn heartbeat(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let peer = &mut self.peers[member.index()];
        peer.heartbeat_at = cx.now;
        // A tidx must not overtake a SYNCSET that is still to be sent (5.4).
        let sent_all = self.open && peer.fed && peer.cursor == self.stream.next;
        let tidx = if sent_all { self.stream.tidx() } else { Idx(0) };
        let commit = if sent_all { self.stream.commit } else { Idx(0) };
        let beat = Message::Heartbeat {
            term: self.term,
            commit,
            tidx,
            sent_at: cx.now.0,
        };
        self.send(member, &beat, None, cx);
    }
}
