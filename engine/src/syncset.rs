//! Sync epochs (5.4): who is in sync, who is tracked, who counts; demotion, D1, join, return of a
//! member.

use crate::engine::{Cx, Engine};
use crate::epochs::LiveEpochs;
use crate::peer::Peer;
use crate::stream::EntryKind;
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BlockRange, Blocks, ChunkMap, Idx, Lba, MemberId, MemberSet, Monotonic};
use trilith_wire::{MapKind, Message, ReplicaState};

/// What a member is in the current term.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// No term is open.
    Unknown,
    /// In iss.
    InSync,
    /// In iss by the SYNCSET at this position, which it has not acked.
    Joining { idx: Idx, n: u32 },
    /// Out of iss since this epoch, not in trk.
    Out { since: u32 },
    /// In trk since the SYNCSET at `start`; TOLD was sent.
    Telling { since: u32, start: Idx, n: u32 },
    /// In trk since `c0`; copies run.
    Tracked { since: u32, c0: Idx },
    /// It votes and holds no data (7.1).
    Witness,
}

/// The current sync epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct SyncState {
    pub(crate) n: u32,
    pub(crate) iss: MemberSet,
    pub(crate) trk: MemberSet,
    /// Members of iss whose ack of the term start or of their join has come and that are neither
    /// tainted nor broken.
    pub(crate) counted: MemberSet,
    /// With a witness: which in-sync sets a commit asks for (W3).
    pub(crate) live: Option<LiveEpochs>,
}

impl SyncState {
    pub(crate) fn open(&mut self, iss: MemberSet, counted: MemberSet) {
        *self = SyncState {
            n: 0,
            iss,
            trk: iss,
            counted: counted.and(iss),
            live: None,
        };
    }
}

impl Engine {
    /// Gives a SYNCSET its place. `targets` are sent it.
    pub(crate) fn issue_syncset(
        &mut self,
        iss: MemberSet,
        trk: MemberSet,
        join: Option<MemberId>,
        targets: MemberSet,
        cx: &mut Cx<'_>,
    ) -> Idx {
        debug_assert!(
            self.membership.is_majority(iss)
                || iss == self.sync.iss
                || (self.sync.live.is_some() && !iss.is_empty()),
            "I16: {iss:?}"
        );
        self.sync.n += 1;
        self.sync.iss = iss;
        self.sync.trk = targets;
        if let Some(live) = self.sync.live.as_mut() {
            live.issued(self.sync.n, iss);
        }
        let nothing = BlockRange::new(Lba(0), Blocks(0));
        let kind = EntryKind::SyncSet {
            n: self.sync.n,
            iss,
            trk,
            join,
        };
        let idx = self.issue(kind, nothing, None, None, cx);
        self.sync.trk = trk;
        self.stream.moved = true;
        self.mode_dirty = true;
        idx
    }

    /// D1: `member`, which is out since epoch `since`, may be told so once a SYNCSET of that epoch or
    /// of a later one is durable at a majority of members that count *now* (T22).
    pub(crate) fn may_be_told(&self, since: u32) -> bool {
        if mutant::on(Mutant::ToldBeforeD1) {
            return true;
        }
        let any = mutant::on(Mutant::D1ByOlderEpoch);
        let durable = |p: &Peer| p.epoch_done.is_some_and(|n| since <= n || any);
        let holders = self.members_where(durable).and(self.sync.counted);
        if self.sync.live.is_some() {
            // W8: what the member itself says takes the place of the second of three.
            return self.sync.iss.minus(holders).is_empty();
        }
        self.membership.is_majority(holders)
    }

    /// Enough must remain in sync, and enough of those must be reachable that the SYNCSET can become
    /// durable and the volume goes on.
    fn may_be_demoted(&self, member: MemberId) -> bool {
        if self.sync.live.is_some() {
            return self.rest_goes_on(member);
        }
        let here = self.counted_here().without(member);
        self.open
            && self.opened
            && self.membership.is_majority(self.sync.iss.without(member))
            && self.membership.is_majority(here)
    }

    /// SYNCSET without `member`.
    fn demote(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        self.counters.demotions += 1;
        mark::reached(Mark::Demoted);
        mark::reached_if(!self.flush_ops.is_empty(), Mark::DemotedWhileFlushWaits);
        let joining = matches!(
            self.peers[member.index()].standing,
            Standing::Joining { .. }
        );
        mark::reached_if(joining, Mark::DemotedWhileJoining);
        mark::reached_if(!self.opened, Mark::ShrunkBeforeOpened);
        self.leave_trk(member);
        let (iss, trk) = (self.sync.iss.without(member), self.sync.trk.without(member));
        // The engine stops counting the member when it *issues* the SYNCSET (M7).
        self.sync.counted = self.sync.counted.without(member);
        self.issue_syncset(iss, trk, None, trk, cx);
        self.became_out(member, self.sync.n, cx);
    }

    /// SYNCSET that takes a member which is being rebuilt out of trk: it stalls nobody.
    fn untrack(&mut self, member: MemberId, since: u32, cx: &mut Cx<'_>) {
        mark::reached(Mark::Untracked);
        self.leave_trk(member);
        let trk = self.sync.trk.without(member);
        self.issue_syncset(self.sync.iss, trk, None, trk, cx);
        self.became_out(member, since, cx);
    }

    /// What the in-sync members convert from their windows, the engine marks as well.
    pub(crate) fn leave_trk(&mut self, member: MemberId) {
        self.stop_rebuild(member);
        self.mark_window(member);
        let uncleared = core::mem::take(&mut self.uncleared[member.index()]);
        self.absent[member.index()].union(&uncleared);
    }

    fn became_out(&mut self, member: MemberId, since: u32, cx: &mut Cx<'_>) {
        let peer = &mut self.peers[member.index()];
        peer.standing = Standing::Out { since };
        peer.fed = false;
        peer.synced = false;
        peer.survey = None;
        peer.in_flight_entries = 0;
        peer.in_flight_bytes = 0;
        peer.control.clear();
        (peer.generation_sent, peer.loss_sent) = (0, 0);
        self.recount(cx);
        self.spread_to(member, cx);
        if self.peers[member.index()].is_ours() {
            self.member_late(member, cx);
        }
    }

    /// A member that is out has a session of this term: find out what else it may lack.
    pub(crate) fn member_late(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let peer = &self.peers[member.index()];
        if peer.survey.is_none() && peer.map_owner.is_none() {
            self.start_survey(member, cx);
        }
    }

    /// All maps of a member have been fetched.
    pub(crate) fn survey_done(&mut self, member: MemberId) {
        self.mode_dirty = true;
        self.again = true;
        if !self.open {
            return;
        }
        // 6.4: its window, need and (tainted) activity log join its dirty map; after D1 copies
        // overwrite whatever ghosts it holds.
        let Some(survey) = self.peers[member.index()].survey.as_ref() else {
            return;
        };
        let absent = &mut self.absent[member.index()];
        for record in &survey.promise.window {
            absent.add_range(record.range);
        }
        absent.union(&survey.promise.need);
        if survey.promise.state.flags.tainted {
            absent.union(&survey.promise.al);
        }
    }

    /// Takes a member out of the counted ones (taint, broken device).
    pub(crate) fn lower_counted(&mut self, member: MemberId) {
        self.sync.counted = self.sync.counted.without(member);
        self.stream.moved = true;
        self.mode_dirty = true;
    }

    /// The epoch `n` at `idx` (or the term start) is durable there and the member is complete.
    pub(crate) fn count_member(&mut self, member: MemberId, n: u32, idx: Idx, cx: &mut Cx<'_>) {
        let joined = matches!(
            self.peers[member.index()].standing,
            Standing::Joining { .. }
        );
        let peer = &mut self.peers[member.index()];
        peer.standing = Standing::InSync;
        peer.synced = true;
        peer.broken = false;
        peer.epoch_done = peer.epoch_done.max(Some(n));
        peer.flushed = peer.flushed.max(idx);
        peer.joined_at = cx.now;
        self.sync.counted = self.sync.counted.with(member);
        self.flushes_moved = true;
        self.accepted_all(member, idx, cx);
        self.recount(cx);
        let was_open = self.opened;
        self.try_opened(cx);
        if was_open {
            self.control(member, Message::Opened { term: self.term }, cx);
        }
        if joined {
            self.counters.joins += 1;
            let cleared = core::mem::take(&mut self.uncleared[member.index()]);
            self.send_clear(member, &cleared, cx);
        }
        self.mode_dirty = true;
        self.again = true;
    }

    /// SYNCSETDONE.
    pub(crate) fn syncset_done(&mut self, member: MemberId, idx: Idx, n: u32, cx: &mut Cx<'_>) {
        if !self.open || idx >= self.stream.next || n > self.sync.n {
            return;
        }
        if self.peers[member.index()].standing == Standing::Witness {
            return self.witness_holds(member, n);
        }
        let peer = &mut self.peers[member.index()];
        if !peer.promised || !peer.fed {
            return;
        }
        peer.epoch_done = peer.epoch_done.max(Some(n));
        self.mode_dirty = true;
        match peer.standing {
            Standing::Joining { n: join, .. } if join <= n => {
                self.count_member(member, n, idx, cx);
            }
            Standing::InSync => {
                // A SYNCSET is a flush and watermark barrier.
                peer.flushed = peer.flushed.max(idx);
                self.flushes_moved = true;
            }
            Standing::Joining { .. }
            | Standing::Unknown
            | Standing::Out { .. }
            | Standing::Telling { .. }
            | Standing::Tracked { .. }
            | Standing::Witness => {}
        }
    }

    /// TOLDDONE.
    pub(crate) fn told_done(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let Standing::Telling { since, start, n } = self.peers[member.index()].standing else {
            return;
        };
        let has_witness = self.sync.live.is_some();
        let peer = &mut self.peers[member.index()];
        if has_witness {
            // W2: a record made by TOLD counts for the majority.
            peer.epoch_done = peer.epoch_done.max(Some(n));
            self.again = true;
        }
        peer.standing = Standing::Tracked { since, c0: start };
        peer.synced = true;
        self.start_rebuild(member, cx);
    }

    /// SYNCSET that tracks a member, then TOLD; entries follow. Only when D1 holds.
    fn track(&mut self, member: MemberId, since: u32, cx: &mut Cx<'_>) {
        let trk = self.sync.trk.with(member);
        let start = self.issue_syncset(self.sync.iss, trk, None, self.sync.trk, cx);
        let (n, iss) = (self.sync.n, self.sync.iss);
        let peer = &mut self.peers[member.index()];
        peer.standing = Standing::Telling { since, start, n };
        peer.survey = None;
        peer.cursor = start.next();
        peer.resend_below = Idx(0);
        peer.upto = start;
        peer.synced = false;
        peer.fed = true;
        peer.in_flight_entries = 0;
        peer.in_flight_bytes = 0;
        let state = peer.state;
        peer.credit_entries = state.map_or(0, |s| u64::from(s.credit_entries));
        peer.credit_bytes = state.map_or(0, |s| u64::from(s.credit_bytes));
        // Older entries are not for it any more.
        self.accepted_all(member, start, cx);
        let told = Message::Told {
            term: self.term,
            n,
            iss,
            trk,
            start,
        };
        self.control(member, told, cx);
    }

    /// SYNCSET by which a member joins. It is a barrier at the member as well, so what was sent
    /// before it has been accepted there when it acks.
    pub(crate) fn join(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        self.stop_rebuild(member);
        // From here on it is sent everything in full; the in-sync members keep their marks until it
        // has acked.
        let absent = core::mem::take(&mut self.absent[member.index()]);
        self.uncleared[member.index()].union(&absent);
        let (iss, trk) = (self.sync.iss.with(member), self.sync.trk.with(member));
        let fed = self.peers[member.index()].fed;
        if mark::reached_if(!fed, Mark::HealedInPlace) {
            // Healed in place: this is the first entry that it gets. Its window cannot list what
            // others may lack, so that goes into the dirty maps it takes over (5.4, c0).
            for other in self.sync.trk.without(member).iter() {
                for entry in &self.stream.entries {
                    if !entry.range.is_empty() && !entry.acks.contains(other) {
                        self.uncleared[other.index()].add_range(entry.range);
                    }
                }
            }
            let peer = &mut self.peers[member.index()];
            peer.cursor = self.stream.next;
            peer.fed = true;
            peer.synced = false;
            peer.in_flight_entries = 0;
            peer.in_flight_bytes = 0;
        }
        let idx = self.issue_syncset(iss, trk, Some(member), trk, cx);
        let n = self.sync.n;
        self.peers[member.index()].standing = Standing::Joining { idx, n };
        self.pump(member, cx);
    }

    /// The maps that go before a joining SYNCSET: what each absent member may lack, and the limbo.
    pub(crate) fn stage_for_join(&mut self, member: MemberId, idx: Idx) {
        self.peers[member.index()].staged_for = Some(idx);
        if mutant::on(Mutant::MapsNotHandedOver) {
            return;
        }
        for absent in self.members.without(member).iter() {
            let mut map = self.absent[absent.index()].clone();
            map.union(&self.uncleared[absent.index()]);
            self.stage(member, MapKind::Dirty, absent, map);
        }
        let limbo = self.limbo.clone();
        self.stage(member, MapKind::Limbo, member, limbo);
    }

    /// Whether a member lags so far that it is demoted (M9).
    fn lags(&self, member: MemberId, now: Monotonic) -> bool {
        let (timing, sizes) = (&self.cfg.timing, &self.cfg.sizes);
        let peer = &self.peers[member.index()];
        if peer.lag_entries == 0 {
            return false;
        }
        let age = self.lag_age(member, now);
        let far = sizes.lag_entries_max < peer.lag_entries || sizes.lag_bytes_max < peer.lag_bytes;
        timing.lag_age_max <= age || (far && timing.lag_age_min <= age)
    }

    fn lost_too_long(&self, member: MemberId, now: Monotonic) -> bool {
        let peer = &self.peers[member.index()];
        !peer.is_ours() && peer.lost_at.after(self.cfg.timing.demote_after) <= now
    }

    /// Looks at each member: demote, tell, join. Called in each `settle`.
    pub(crate) fn tend_members(&mut self, cx: &mut Cx<'_>) {
        if !self.open {
            return;
        }
        for member in self.members.iter() {
            self.tell_loss(member, cx);
            match self.peers[member.index()].standing {
                Standing::Unknown | Standing::Witness => {}
                Standing::InSync | Standing::Joining { .. } => self.tend_in_sync(member, cx),
                Standing::Out { since } => self.tend_out(member, since, cx),
                Standing::Telling { since, .. } | Standing::Tracked { since, .. } => {
                    self.tend_tracked(member, since, cx);
                }
            }
        }
    }

    fn tend_in_sync(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let peer = &self.peers[member.index()];
        let joining = matches!(peer.standing, Standing::Joining { .. });
        let counted = self.sync.counted.contains(member);
        let slow = self.lags(member, cx.now)
            || self.cfg.timing.lag_age_max <= self.waited_for_age(member, cx.now)
                && self.waited_for(member).is_some();
        let unfit = peer.broken || (!counted && !joining && !peer.fed && peer.is_ours());
        if !(unfit || slow || self.lost_too_long(member, cx.now)) {
            return;
        }
        if self.may_be_demoted(member) {
            let broken = peer.broken;
            self.demote(member, cx);
            mark::reached_if(slow, Mark::DemotedByLag);
            if slow || broken {
                self.rest(member, cx.now);
            }
        } else if unfit {
            self.heal_in_place(member, cx);
        }
    }

    /// 6.8: hysteresis against flapping.
    fn rest(&mut self, member: MemberId, now: Monotonic) {
        let peer = &mut self.peers[member.index()];
        if peer.joined_at.after(crate::limits::REST_MAX) <= now {
            peer.rest = crate::limits::REST_MIN;
        }
        peer.rest_until = now.after(peer.rest);
        peer.rest = (peer.rest * 2).min(crate::limits::REST_MAX);
    }

    fn tend_out(&mut self, member: MemberId, since: u32, cx: &mut Cx<'_>) {
        // W8: with the witness away, its being told is all that can put in force that it is out.
        let pending = self.sync.live.is_some_and(|live| !live.newest_in_force());
        let pending = pending && !self.witness_here();
        let peer = &mut self.peers[member.index()];
        let resting = cx.now < peer.rest_until && !pending;
        if !peer.is_ours() || resting || peer.state.is_some_and(|s| s.flags.failed) {
            return;
        }
        if peer.survey.is_none() && peer.map_owner.is_none() {
            return self.member_late(member, cx);
        }
        let surveyed = peer.survey.as_ref().is_some_and(|s| s.done);
        mark::reached_if(surveyed && !self.may_be_told(since), Mark::D1Waits);
        if !self.may_be_tracked(member) {
            return;
        }
        if surveyed && self.may_be_told(since) && self.can_tell() && self.stop.is_none() {
            self.peers[member.index()].broken = false;
            self.track(member, since, cx);
        }
    }

    fn tend_tracked(&mut self, member: MemberId, since: u32, cx: &mut Cx<'_>) {
        let peer = &self.peers[member.index()];
        let gone = peer.broken
            || self.lost_too_long(member, cx.now)
            || (peer.is_ours() && !peer.fed)
            || self.lags(member, cx.now);
        if gone {
            // W8: one that was not told after all has to be told again before there is a quorum.
            if self.can_tell() {
                let rest = peer.is_ours();
                self.untrack(member, since, cx);
                if rest {
                    self.rest(member, cx.now);
                }
            }
            return;
        }
        let Standing::Tracked { c0, .. } = peer.standing else {
            return;
        };
        // 5.4: nothing dirty, no copy running, and every entry that some other member may lack is
        // in this one's window.
        let listed = c0 <= self.stream.tidx() || mutant::on(Mutant::JoinBeforeC0);
        mark::reached_if(self.rebuilt(member) && !listed, Mark::JoinWaitsForC0);
        // W6: one that grows waits until the epoch before it is in force.
        let settled = self.sync.live.is_none_or(|live| live.newest_in_force());
        let peer = &self.peers[member.index()];
        if peer.is_ours() && self.rebuilt(member) && listed && settled && self.can_issue() {
            self.join(member, cx);
        }
    }

    /// A member that holds this term is back (5.4 resume, 6.1, 6.2).
    pub(crate) fn member_returned(
        &mut self,
        member: MemberId,
        state: &ReplicaState,
        cx: &mut Cx<'_>,
    ) {
        let peer = &mut self.peers[member.index()];
        peer.w = state.w;
        peer.free_extents = state.free_extents;
        peer.survey = None;
        peer.staged_for = None;
        peer.credit_entries = u64::from(state.credit_entries);
        peer.credit_bytes = u64::from(state.credit_bytes);
        peer.broken = state.flags.failed;
        self.mode_dirty = true;
        let in_term = state.se.term == self.term;
        let sound = in_term && !state.flags.tainted && !state.flags.failed;
        match peer.standing {
            Standing::InSync if sound => self.resume(member, state, cx),
            Standing::Joining { n, .. } if sound => {
                if n <= state.se.n && state.is_complete() {
                    let n = state.se.n.min(self.sync.n);
                    let upto = state.upto.min(self.last_idx());
                    self.resume(member, state, cx);
                    self.count_member(member, n, upto, cx);
                } else if state.trk.contains(member) && !state.is_complete() {
                    self.resume(member, state, cx);
                } else {
                    self.returned_unfit(member, state, cx);
                }
            }
            Standing::Telling { since, start, n } if sound && n <= state.se.n => {
                let has_witness = self.sync.live.is_some();
                let peer = &mut self.peers[member.index()];
                peer.standing = Standing::Tracked { since, c0: start };
                if has_witness {
                    peer.epoch_done = peer.epoch_done.max(Some(n));
                }
                self.resume(member, state, cx);
                self.start_rebuild(member, cx);
            }
            Standing::Tracked { .. } if sound && state.trk.contains(member) => {
                self.resume(member, state, cx);
                self.start_rebuild(member, cx);
            }
            // Not what it was: it is demoted, healed in place or taken out of trk (`fed` is off).
            Standing::InSync | Standing::Joining { .. } => self.returned_unfit(member, state, cx),
            Standing::Telling { .. } | Standing::Tracked { .. } => {}
            Standing::Out { .. } => self.member_late(member, cx),
            Standing::Witness => {
                let peer = &mut self.peers[member.index()];
                peer.epoch_sent = None;
                if in_term {
                    self.witness_holds(member, state.se.n);
                }
            }
            Standing::Unknown => {}
        }
        self.again = true;
    }

    /// Sends again, in order, what it lacks.
    fn resume(&mut self, member: MemberId, state: &ReplicaState, cx: &mut Cx<'_>) {
        mark::reached(Mark::Resumed);
        let last = self.last_idx();
        let peer = &mut self.peers[member.index()];
        peer.upto = peer.upto.max(state.upto.min(last));
        peer.cursor = peer.upto.next().max(self.stream.base);
        peer.resend_below = self.stream.next;
        peer.fed = true;
        peer.synced = true;
        if state.is_complete() && peer.standing == Standing::InSync {
            peer.flushed = peer.flushed.max(state.w.min(last));
            peer.epoch_done = peer.epoch_done.max(Some(state.se.n.min(self.sync.n)));
            self.flushes_moved = true;
        }
        let upto = self.peers[member.index()].upto;
        self.accepted_all(member, upto, cx);
        if self.peers[member.index()].standing == Standing::InSync {
            if !self.sync.counted.contains(member) && state.is_complete() {
                // It holds the term start (or its join), which came after all repairs.
                self.feed_in_full(member, cx);
                self.count_member(member, state.se.n.min(self.sync.n), upto, cx);
            } else if self.opened {
                self.control(member, Message::Opened { term: self.term }, cx);
            }
            self.send_owed(member, cx);
        }
        self.flush_again(member, cx);
        self.pump(member, cx);
    }

    /// A member counts that the term was opened without: what was issued meanwhile took it for one
    /// that lacks those blocks and would be sent as a header only (C19).
    pub(crate) fn feed_in_full(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        self.absent[member.index()].clear();
        let marked = self.stream.skip_no_more(member);
        self.send_clear(member, &marked, cx);
    }

    /// A FLUSH is accepted before it is done. One that was accepted and not answered when the
    /// session was lost is not sent again with the entries, so the last of those is asked for here;
    /// it covers the others.
    fn flush_again(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let peer = &self.peers[member.index()];
        let accepted = |idx: &&Idx| peer.flushed < **idx && **idx <= peer.upto;
        if mutant::on(Mutant::FlushNotAskedAgain) {
            return;
        }
        if let Some(idx) = self.flush_out.iter().rev().find(accepted).copied() {
            self.ask_flush(member, idx, cx);
        }
    }

    /// A flush that a member has accepted, and maybe not done, is asked for again (C12, C21).
    pub(crate) fn ask_flush(&mut self, member: MemberId, idx: Idx, cx: &mut Cx<'_>) {
        mark::reached(Mark::FlushAskedAgain);
        let flush = Message::Flush {
            term: self.term,
            idx,
            // Not the present one: it must not overtake a SYNCSET that is sent after this (C18).
            tidx: Idx(0),
            sent_at: cx.now.0,
        };
        self.send(member, &flush, None, cx);
    }

    /// 6.2: a member of iss lost its window. What it accepted beyond its watermark is void; its
    /// activity log says where it may differ.
    fn returned_unfit(&mut self, member: MemberId, state: &ReplicaState, cx: &mut Cx<'_>) {
        mark::reached(Mark::TaintedReturns);
        self.lower_counted(member);
        // A watermark of an older term says nothing about positions of this one (C15).
        let held = if state.se.term == self.term {
            state.w
        } else {
            Idx(0)
        };
        self.strip(member, held);
        self.mark_window(member);
        let peer = &mut self.peers[member.index()];
        peer.standing = Standing::InSync;
        peer.fed = false;
        peer.synced = false;
        self.start_survey(member, cx);
    }

    /// A session has ended, or its member follows a higher term.
    pub(crate) fn session_lost(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        self.mode_dirty = true;
        self.peers[member.index()].epoch_sent = None;
        self.stop_rebuild(member);
        for tag in self.repairs.keys(|r| r.member == member) {
            self.repairs.remove(tag);
        }
        let peer = &mut self.peers[member.index()];
        peer.fed = false;
        peer.synced = false;
        peer.survey = None;
        self.map_lost(member);
        self.flights_lost(member, cx);
        if self.recovery.is_some() {
            let lost = crate::recovery::RecoveryEvent::MemberLost(member);
            self.recovery_event(lost, cx);
        }
    }

    /// When a member has to be looked at again.
    pub(crate) fn members_deadline(&self, now: Monotonic) -> Option<Monotonic> {
        if !self.open {
            return None;
        }
        let timing = &self.cfg.timing;
        let mut first: Option<Monotonic> = None;
        for member in self.members.iter() {
            let peer = &self.peers[member.index()];
            let lost = (!peer.is_ours()).then(|| peer.lost_at.after(timing.demote_after));
            let rest = Some(peer.rest_until);
            let lag = (peer.lag_entries > 0).then(|| {
                let age = self.lag_age(member, now);
                let bound = if age < timing.lag_age_min {
                    timing.lag_age_min
                } else {
                    timing.lag_age_max
                };
                now.after(bound.saturating_sub(age))
            });
            let wanting = self
                .waited_for(member)
                .map(|at| at.after(timing.lag_age_max));
            let due = [lost, rest, lag, wanting]
                .into_iter()
                .flatten()
                .filter(|at| *at > now)
                .min();
            first = [first, due].into_iter().flatten().min();
        }
        first
    }

    /// Chunks that a member may lack, for status and block status.
    pub(crate) fn lacking(&self, member: MemberId) -> &ChunkMap {
        &self.absent[member.index()]
    }
}
