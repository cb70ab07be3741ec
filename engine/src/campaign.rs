//! Becoming leader: PREVOTE, VOTE, late promises (5.2), higher terms (R10), attach epochs (M11,
//! M12).

use crate::api::{ExitReason, Waiting};
use crate::engine::{Cx, Engine};
use crate::peer::{Peer, Survey};
use crate::recovery::{self, Blocked, Plan, Policy};
use alloc::vec::Vec;
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{ChunkMap, Idx, MemberId, MemberSet, Monotonic, Term, Uuid};
use trilith_wire::message::Prevote;
use trilith_wire::{Kind, Message, Reason, ReplicaState};

/// How far a campaign is. The engine may still serve its old term until VOTE is sent (R10).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Campaign {
    /// None runs. `at`: when to start one.
    Idle { at: Option<Monotonic> },
    /// PREVOTE is out for this term.
    Prevote {
        term: Term,
        granted: MemberSet,
        refused: MemberSet,
        until: Monotonic,
    },
    /// VOTE is out for the engine's term; maps of those that promised are being fetched.
    Vote {
        until: Monotonic,
        majority_at: Option<Monotonic>,
    },
    /// `Engine::recovery` runs.
    Recover,
}

/// What the last attempt to plan a recovery said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct PlanAttempt {
    /// Promises it was made of.
    pub(crate) of: MemberSet,
    /// When to try again with the same promises.
    pub(crate) again: Option<Monotonic>,
    /// It was blocked for want of members.
    pub(crate) blocked: bool,
}

impl Engine {
    /// A replica knows this attach epoch. True when it fences this engine (5.1, M12).
    pub(crate) fn meet_epoch(&mut self, attach_epoch: u64, cx: &mut Cx<'_>) -> bool {
        if attach_epoch <= self.cfg.attach_epoch || mutant::on(Mutant::AttachEpochIgnored) {
            return false;
        }
        mark::reached(Mark::Fenced);
        self.finish(ExitReason::Fenced, cx);
        true
    }

    /// R10: a replica has promised this term. An open engine campaigns above it soon, and serves on
    /// meanwhile as long as majority and lease hold.
    pub(crate) fn meet_term(&mut self, term: Term, now: Monotonic) {
        self.max_term = self.max_term.max(term);
        if term > self.term
            && self.open
            && let Campaign::Idle { at } = &mut self.campaign
        {
            let soon = now.after(self.rng.jitter(self.cfg.timing.recampaign_max));
            *at = Some(at.map_or(soon, |at| at.min(soon)));
        }
    }

    /// R10: a replica gave its vote of this term, or of a higher one, to another engine: only a
    /// higher term brings it back.
    fn meet_vote(&mut self, now: Monotonic) {
        if let (true, Campaign::Idle { at }) = (self.open, &mut self.campaign) {
            mark::reached(Mark::SplitVote);
            let soon = now.after(self.rng.jitter(self.cfg.timing.recampaign_max));
            *at = Some(at.map_or(soon, |at| at.min(soon)));
        }
    }

    /// WELCOME has come.
    pub(crate) fn session_up(&mut self, member: MemberId, state: &ReplicaState, cx: &mut Cx<'_>) {
        self.mode_dirty = true;
        let ours = state.term == self.term && state.voted_engine == self.cfg.engine;
        // Remembered while the term is not open yet: once it is, R10 brings the member back (C17).
        self.peers[member.index()].shut_out = state.term >= self.term && !ours;
        match self.campaign {
            Campaign::Vote { .. } if state.term <= self.term => self.ask_vote(member, cx),
            Campaign::Recover if state.term < self.term => self.ask_vote(member, cx),
            Campaign::Recover | Campaign::Vote { .. } => {
                self.peers[member.index()].promised = ours;
                if ours && self.campaign == Campaign::Recover {
                    self.spread_to(member, cx);
                }
            }
            Campaign::Idle { .. } | Campaign::Prevote { .. } => {
                if self.open && ours {
                    self.peers[member.index()].promised = true;
                    self.spread_to(member, cx);
                    self.member_returned(member, state, cx);
                } else if self.open && state.term < self.term {
                    self.ask_vote(member, cx);
                } else if self.open {
                    self.meet_vote(cx.now);
                }
            }
        }
    }

    fn ballot(&self, term: Term) -> Prevote {
        Prevote {
            term,
            attach_epoch: self.cfg.attach_epoch,
            cfg_gen: self.generation_known(),
            release_lease_of: self.cfg.supersedes,
        }
    }

    fn ask_vote(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let peer = &mut self.peers[member.index()];
        if !peer.vote_sent {
            peer.vote_sent = true;
            let ballot = self.ballot(self.term);
            self.send(member, &Message::Vote(ballot), None, cx);
        }
    }

    /// When a member that has nothing to say is asked for a sign of life. A late voter: VOTE waits for its
    /// device for as long as that takes (V3), so silence after it says nothing. And whoever is connected
    /// while too few for a campaign are (C27): it may have learned of a newer configuration since its WELCOME.
    pub(crate) fn probe_at(&self, member: MemberId) -> Option<Monotonic> {
        let peer = &self.peers[member.index()];
        let owes_vote = self.open && peer.vote_sent && !peer.promised;
        let idle = !self.open && matches!(self.campaign, Campaign::Idle { .. });
        let asks = !mutant::on(Mutant::ConfigNotAskedAgain);
        let waits = owes_vote || (asks && idle && !self.may_campaign());
        (waits && peer.asked_at.is_none())
            .then(|| peer.seen_at.after(self.cfg.timing.session_silence_max))
    }

    /// A PREVOTE: it changes nothing and is answered at once. A member whose configuration is newer refuses
    /// it for that reason, and tells it when it is met again; of any other what counts is that an answer comes.
    pub(crate) fn probe(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let ballot = self.ballot(self.term);
        self.send(member, &Message::Prevote(ballot), None, cx);
    }

    /// Enough replicas are connected for a campaign.
    fn may_campaign(&self) -> bool {
        self.membership.is_majority(self.members_where(Peer::is_up))
    }

    /// Moves the campaign on. Called in each `settle`.
    pub(crate) fn tend_campaign(&mut self, cx: &mut Cx<'_>) {
        if self.is_finished() {
            return;
        }
        match self.campaign {
            Campaign::Idle { at } => {
                let lost = self.members_where(|p| p.is_up() && !p.promised && p.shut_out);
                if self.open && at.is_none() && !lost.is_empty() {
                    return self.meet_vote(cx.now);
                }
                if self.open {
                    // A vote that was refused in passing, or a promise that the member took back.
                    let idle = self.members_where(|p| p.is_up() && !p.promised && !p.shut_out);
                    for member in idle.iter() {
                        self.ask_vote(member, cx);
                    }
                }
                let wanted = !self.open || at.is_some();
                let due = at.is_none_or(|at| at <= cx.now);
                if wanted && due && !self.stopping_without_term() && self.may_campaign() {
                    self.start_prevote(cx);
                }
            }
            Campaign::Prevote { until, .. } => {
                if until <= cx.now {
                    self.campaign_failed(cx.now);
                }
            }
            Campaign::Vote { until, majority_at } => self.tend_vote(until, majority_at, cx),
            Campaign::Recover => self.tend_recovery(cx),
        }
    }

    fn start_prevote(&mut self, cx: &mut Cx<'_>) {
        let term = Term(self.max_term.max(self.term).0 + 1);
        self.counters.campaigns += 1;
        self.other_leader = false;
        self.campaign = Campaign::Prevote {
            term,
            granted: MemberSet::EMPTY,
            refused: MemberSet::EMPTY,
            until: cx.now.after(self.cfg.timing.campaign_round_max),
        };
        let ballot = self.ballot(term);
        for member in self.members_where(Peer::is_up).iter() {
            self.send(member, &Message::Prevote(ballot), None, cx);
        }
    }

    /// Tries again after a while that grows.
    pub(crate) fn campaign_failed(&mut self, now: Monotonic) {
        let wait = self.rng.jitter(self.campaign_backoff);
        self.campaign_backoff = (self.campaign_backoff * 2).min(self.cfg.timing.campaign_retry_max);
        self.campaign = Campaign::Idle {
            at: Some(now.after(wait)),
        };
        self.mode_dirty = true;
    }

    /// PREVOTEREPLY, or NACK of a PREVOTE.
    pub(crate) fn prevote_reply(
        &mut self,
        member: MemberId,
        reason: Option<Reason>,
        cx: &mut Cx<'_>,
    ) {
        let Campaign::Prevote {
            term,
            granted,
            refused,
            ..
        } = &mut self.campaign
        else {
            return;
        };
        match reason {
            None => *granted = granted.with(member),
            Some(reason) => {
                *refused = refused.with(member);
                let alive = mark::reached_if(reason == Reason::LeaderAlive, Mark::LeaderAlive);
                self.other_leader |= alive;
            }
        }
        if self.membership.is_majority(*granted) {
            let term = *term;
            self.start_vote(term, cx);
        } else if !self.membership.is_majority(self.members.minus(*refused)) {
            self.campaign_failed(cx.now);
        }
    }

    fn start_vote(&mut self, term: Term, cx: &mut Cx<'_>) {
        self.freeze(cx);
        self.drop_departing(cx);
        self.term = term;
        self.max_term = self.max_term.max(term);
        for member in self.members.iter() {
            self.peers[member.index()].reset_term();
        }
        self.plan_attempt = PlanAttempt::default();
        self.defer_until = Monotonic(0);
        self.campaign = Campaign::Vote {
            until: cx.now.after(self.cfg.timing.campaign_round_max),
            majority_at: None,
        };
        self.mode_dirty = true;
        for member in self.members_where(Peer::is_up).iter() {
            self.ask_vote(member, cx);
        }
    }

    /// PROMISE: the member drained everything older (V3) and holds this engine's term.
    pub(crate) fn promised(
        &mut self,
        member: MemberId,
        term: Term,
        state: &ReplicaState,
        cx: &mut Cx<'_>,
    ) {
        let known = self.peers[member.index()]
            .state
            .map_or(Uuid::NONE, |s| s.replica);
        if term != self.term || state.member != member || state.replica != known {
            return;
        }
        if state.capacity != self.capacity || self.peers[member.index()].promised {
            return;
        }
        if !self.meet_config(member, state, cx) {
            return;
        }
        let peer = &mut self.peers[member.index()];
        peer.state = Some(*state);
        peer.promised = true;
        peer.w = state.w;
        peer.free_extents = state.free_extents;
        self.mode_dirty = true;
        match self.campaign {
            Campaign::Vote { .. } => {
                self.defer_acks(state, cx.now);
                self.start_survey(member, cx);
            }
            Campaign::Recover => self.spread_to(member, cx),
            // A member of no first in-sync set enters by rebuild at once (R11); one that had taken its
            // promise back goes on where it was.
            Campaign::Idle { .. } | Campaign::Prevote { .. } if self.open => {
                mark::reached(Mark::LateVoter);
                self.spread_to(member, cx);
                self.member_returned(member, state, cx);
            }
            Campaign::Idle { .. } | Campaign::Prevote { .. } => {}
        }
    }

    /// 5.5: the old leader's leased reads stay true until its leases are over. A lease of an engine
    /// known to be dead does not count (M14), nor does one of this engine's own earlier term.
    fn defer_acks(&mut self, state: &ReplicaState, now: Monotonic) {
        let dead = state.leader == self.cfg.engine
            || (!self.cfg.supersedes.is_none() && state.leader == self.cfg.supersedes);
        let waits = !mutant::on(Mutant::LeaseNotWaitedFor);
        if state.lease_left_ms > 0 && !dead && waits {
            let left = core::time::Duration::from_millis(u64::from(state.lease_left_ms) + 1);
            self.defer_until = self.defer_until.max(now.after(left + left / 50));
        }
    }

    /// NACK.
    pub(crate) fn nacked(
        &mut self,
        member: MemberId,
        reason: Reason,
        refused: Kind,
        tag: u64,
        cx: &mut Cx<'_>,
    ) {
        match refused {
            Kind::Prevote => return self.prevote_reply(member, Some(reason), cx),
            Kind::Vote => {
                self.peers[member.index()].vote_sent = false;
                if reason == Reason::LeaderAlive {
                    self.other_leader = true;
                }
                match reason {
                    Reason::Voted | Reason::Term => self.peers[member.index()].shut_out = true,
                    // It may think better of it; a new session asks again, with its delay.
                    _ => self.drop_session(member, cx),
                }
                if reason == Reason::Config {
                    // It knows a newer configuration and tells it when it is met again.
                    self.drop_session(member, cx);
                }
                return;
            }
            Kind::Read | Kind::ExtentHash => {
                let refused = trilith_wire::EntryStatus::Refused;
                self.data_arrived(tag, crate::read::ReadResult::Failed(refused), cx);
            }
            _ => {}
        }
        match reason {
            Reason::Term | Reason::Voted => self.member_left(member, cx),
            Reason::Malformed
            | Reason::WrongVolume
            | Reason::Protocol
            | Reason::Secret
            | Reason::AttachEpoch
            | Reason::LeaderAlive
            | Reason::Config
            | Reason::Failed
            | Reason::Replaced
            | Reason::Busy
            | Reason::Mismatch => self.drop_session(member, cx),
        }
    }

    /// A member follows a higher term: nothing of ours counts there any more.
    fn member_left(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let peer = &mut self.peers[member.index()];
        if !peer.promised {
            return;
        }
        peer.promised = false;
        peer.vote_sent = false;
        peer.lost_at = cx.now;
        peer.control.clear();
        self.session_lost(member, cx);
    }

    fn tend_vote(&mut self, until: Monotonic, majority_at: Option<Monotonic>, cx: &mut Cx<'_>) {
        let electors = self.membership.electors();
        let promised = self.members_where(Peer::is_ours).and(electors);
        if !self.membership.is_majority(promised) {
            if until <= cx.now {
                self.campaign_failed(cx.now);
            }
            return;
        }
        let majority_at = majority_at.unwrap_or(cx.now);
        self.campaign = Campaign::Vote {
            until,
            majority_at: Some(majority_at),
        };
        // A round that has its majority ends only by a plan or by losing the majority.
        let until = cx.now.after(self.cfg.timing.campaign_round_max);
        self.campaign = Campaign::Vote {
            until,
            majority_at: Some(majority_at),
        };
        let waited = cx.now.since(majority_at);
        let all = promised == electors;
        if !all && waited < self.cfg.timing.promise_wait {
            return;
        }
        let done = self.members_where(|p| p.is_ours() && p.survey.as_ref().is_some_and(|s| s.done));
        if !promised.minus(done).is_empty() {
            return;
        }
        let again = self.plan_attempt.again.is_some_and(|at| at <= cx.now);
        if self.plan_attempt.of == promised && !again {
            return self.call_back(electors, cx.now);
        }
        self.make_plan(promised, waited, cx);
    }

    /// C44: the plan waits for more promises, and one that could give its own gave its vote of this term
    /// to another engine. Only a higher term brings it back.
    fn call_back(&mut self, electors: MemberSet, now: Monotonic) {
        let lost = self.members_where(|p| p.is_up() && !p.promised && p.shut_out);
        if self.plan_attempt.blocked && !lost.and(electors).is_empty() {
            mark::reached(Mark::CalledBack);
            self.campaign_failed(now);
        }
    }

    fn make_plan(&mut self, promised: MemberSet, waited: core::time::Duration, cx: &mut Cx<'_>) {
        let policy = Policy {
            capacity_bytes: self.capacity,
            lossy_wait: self.cfg.timing.lossy_wait,
            waited,
            small_bytes: crate::limits::FIRST_ISS_BYTES,
        };
        let mut taken: Vec<_> = promised
            .iter()
            .filter_map(|m| self.peers[m.index()].survey.take())
            .map(|s| s.promise)
            .collect();
        self.fill_unknown(&mut taken);
        let plan = recovery::plan(&taken, self.membership, &policy);
        match plan {
            Ok(plan) => self.start_recovery(plan, cx),
            Err(blocked) => {
                for promise in taken {
                    let at = promise.member.index();
                    self.peers[at].survey = Some(Survey {
                        promise,
                        step: usize::MAX,
                        from: 0,
                        done: true,
                    });
                }
                let left = match blocked {
                    Blocked::WaitForMore { left, .. } => {
                        mark::reached(Mark::WaitsForMore);
                        left
                    }
                    Blocked::NoSource { .. } | Blocked::NoMajority { .. } => None,
                };
                self.plan_attempt = PlanAttempt {
                    of: promised,
                    again: left.map(|l| cx.now.after(l)),
                    blocked: true,
                };
                self.mode_dirty = true;
            }
        }
    }

    fn start_recovery(&mut self, plan: Plan, cx: &mut Cx<'_>) {
        self.campaign = Campaign::Recover;
        self.take_up_config(cx);
        self.plan_attempt = PlanAttempt::default();
        self.mode_dirty = true;
        self.begin_recovery(plan, cx);
    }

    /// What a campaign waits for.
    pub(crate) fn campaign_waits(&self) -> Waiting {
        match self.campaign {
            Campaign::Recover => Waiting::Recovery,
            Campaign::Vote { .. } if self.plan_attempt.blocked => Waiting::MoreMembers,
            Campaign::Vote { .. } => Waiting::Votes,
            _ if !self.may_campaign() => Waiting::Replicas,
            _ if self.other_leader => Waiting::OtherLeader,
            Campaign::Idle { .. } | Campaign::Prevote { .. } => Waiting::Votes,
        }
    }

    /// When the campaign wants to be looked at.
    pub(crate) fn campaign_deadline(&self) -> Option<Monotonic> {
        match self.campaign {
            Campaign::Idle { at } => at.filter(|_| self.may_campaign()),
            Campaign::Prevote { until, .. } => Some(until),
            Campaign::Vote { until, majority_at } => {
                let wait = self.cfg.timing.promise_wait;
                let late = majority_at
                    .map(|at| at.after(wait))
                    .filter(|at| *at > self.now);
                // Once it has passed, what is missing is an answer to a survey.
                let again = self.plan_attempt.again.filter(|at| *at > self.now);
                [Some(until), late, again].into_iter().flatten().min()
            }
            Campaign::Recover => self
                .recovery
                .as_ref()
                .and_then(recovery::Recovery::deadline),
        }
    }

    /// An empty promise to be filled by a survey.
    pub(crate) fn blank_promise(member: MemberId, state: ReplicaState) -> recovery::Promise {
        recovery::Promise {
            member,
            state,
            window: Vec::new(),
            al: ChunkMap::new(),
            need: ChunkMap::new(),
            dirty: recovery::MemberMaps::new(),
        }
    }

    /// The highest position that has been seen anywhere, for asserts.
    pub(crate) fn last_idx(&self) -> Idx {
        Idx(self.stream.next.0.saturating_sub(1))
    }
}
