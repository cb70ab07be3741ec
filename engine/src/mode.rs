//! The mode that follows from who is there (5.6, M12), and the way out of a standstill.

use crate::api::{Action, ExitReason, Mode, Waiting};
use crate::campaign::Campaign;
use crate::engine::{Cx, Engine};
use crate::limits::STUCK;
use crate::peer::Peer;
use crate::syncset::Standing;
use trilith_block::mark::{self, Mark};
use trilith_block::{ErrorKind, MemberSet, Monotonic};

impl Engine {
    /// Members for which `wanted` holds.
    pub(crate) fn members_where(&self, wanted: impl Fn(&Peer) -> bool) -> MemberSet {
        let mut set = MemberSet::EMPTY;
        for member in self.members.iter() {
            if wanted(&self.peers[member.index()]) {
                set = set.with(member);
            }
        }
        set
    }

    /// Counted members that can be reached.
    pub(crate) fn counted_here(&self) -> MemberSet {
        self.sync.counted.and(self.members_where(Peer::is_ours))
    }

    pub(crate) fn has_quorum(&self) -> bool {
        let here = self.counted_here();
        let Some(live) = &self.sync.live else {
            return self.membership.is_majority(here);
        };
        // Who is about to join is waited for, as one that counts is.
        let joining = |p: &Peer| p.is_ours() && matches!(p.standing, Standing::Joining { .. });
        live.in_force()
            .is_some_and(|iss| iss.minus(here).is_empty())
            && live.commits(here.or(self.members_where(joining)))
            && self
                .membership
                .is_majority(self.members_where(Peer::is_ours))
    }

    fn mode_now(&self, now: Monotonic) -> Mode {
        if self.mode.is_final() {
            return self.mode;
        }
        if self.stop.is_some() {
            return Mode::Stopping;
        }
        if self.loss_wait {
            return Mode::Waiting(Waiting::LossAccepted);
        }
        if !self.open {
            return Mode::Waiting(self.campaign_waits());
        }
        if self.opened && self.has_quorum() {
            let witness = self.membership.witness;
            let witness = witness.and(self.members_where(Peer::is_ours));
            let well = self.counted_here().or(witness);
            let missing = self.membership.electors().minus(well);
            return if missing.is_empty() {
                Mode::Healthy
            } else {
                Mode::Degraded
            };
        }
        let promisers = self.members_where(Peer::is_ours);
        if self.counted_here().is_empty() {
            Mode::Waiting(Waiting::Quorum)
        } else if self.membership.is_majority(promisers) || now < self.lease_until() {
            Mode::ReadOnlyLease
        } else if self.grant_runs(now) {
            Mode::ReadOnlyGrant
        } else {
            Mode::Waiting(Waiting::Quorum)
        }
    }

    /// Recomputes the mode and tells of a change.
    pub(crate) fn tend_mode(&mut self, cx: &mut Cx<'_>) {
        let mode = self.mode_now(cx.now);
        if mode.is_active() {
            self.unserved_since = None;
        } else if self.unserved_since.is_none() {
            self.unserved_since = Some(cx.now);
        }
        if mode != self.mode {
            self.mode = mode;
            self.reads_stirred = true;
            self.again = true;
            cx.out.push(Action::ModeChanged(mode));
        }
        self.tend_stuck(cx.now);
    }

    /// A majority is connected and holds the term, but fewer than a majority count, and nothing
    /// that runs will change that: a new term merges what is there.
    fn tend_stuck(&mut self, now: Monotonic) {
        let promisers = self.members_where(Peer::is_ours);
        let stuck = self.open
            && !(self.opened && self.has_quorum())
            && self.membership.is_majority(promisers)
            && !self.heals_in_place()
            && !self.in_force_soon();
        if !stuck {
            self.ineligible_since = None;
            return;
        }
        let since = *self.ineligible_since.get_or_insert(now);
        if since.after(STUCK) <= now && self.campaign == (Campaign::Idle { at: None }) {
            self.campaign = Campaign::Idle { at: Some(now) };
            self.again = true;
        }
    }

    pub(crate) fn mode_deadline(&self) -> Option<Monotonic> {
        let stuck = self.ineligible_since.map(|at| at.after(STUCK));
        let ends = match self.mode {
            Mode::ReadOnlyLease => Some(self.lease_until()),
            Mode::ReadOnlyGrant => Some(Monotonic(self.grant.0.saturating_sub(
                u64::try_from(self.cfg.timing.grant_margin.as_nanos()).unwrap_or(0),
            ))),
            Mode::Healthy
            | Mode::Degraded
            | Mode::Waiting(_)
            | Mode::Stopping
            | Mode::Stopped
            | Mode::Fenced => None,
        };
        [stuck, ends]
            .into_iter()
            .flatten()
            .filter(|at| *at > self.now)
            .min()
    }

    /// The end: every request fails or is done, every session is closed.
    pub(crate) fn finish(&mut self, reason: ExitReason, cx: &mut Cx<'_>) {
        if self.is_finished() {
            return;
        }
        self.mode = match reason {
            ExitReason::Fenced => Mode::Fenced,
            ExitReason::Stopped { .. } | ExitReason::SteppedDown => Mode::Stopped,
        };
        self.freeze(cx);
        self.campaign = Campaign::Idle { at: None };
        self.abandon_all(ErrorKind::Fenced, cx);
        for member in self.members.iter() {
            self.drop_session(member, cx);
        }
        self.unserved_since = None;
        self.exit = Some(reason);
    }

    /// Ends the current term on this side: nothing more is issued, acknowledged or read in it.
    pub(crate) fn freeze(&mut self, cx: &mut Cx<'_>) {
        self.open = false;
        self.opened = false;
        self.lossy = false;
        self.recovery = None;
        self.recovery_steps.clear();
        let rebuilding = self.rebuilds.iter().any(Option::is_some);
        mark::reached_if(rebuilding, Mark::RebuildCutByTerm);
        mark::reached_if(!self.flush_ops.is_empty(), Mark::FlushCutByTerm);
        self.stop_rebuilds();
        self.interrupt_scrub(cx);
        self.freeze_reads(cx);
        self.freeze_flushes();
        self.freeze_stream(cx);
        self.queue_reissued();
        self.repairs = crate::slab::Slab::default();
        self.sync = crate::syncset::SyncState::default();
        self.limbo.clear();
        self.ineligible_since = None;
        self.freeze_change();
        for map in self.absent.iter_mut().chain(self.uncleared.iter_mut()) {
            map.clear();
        }
        for peer in &mut self.peers {
            peer.map_owner = None;
        }
        self.mode_dirty = true;
    }
}
