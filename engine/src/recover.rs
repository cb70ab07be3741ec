//! Wires the recovery machine to the sessions, and opens the term (R7, R8).

use crate::campaign::Campaign;
use crate::engine::{Cx, Engine};
use crate::peer::Control;
use crate::read::{Flight, FlightOwner, ReadResult};
use crate::recovery::{
    Outcome, Plan, ReadData, Recovery, RecoveryConfig, RecoveryEvent, RecoveryStep,
};
use crate::session::block_crcs;
use crate::syncset::Standing;
use alloc::vec::Vec;
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BlockRange, BufSlice, ChunkMap, ExtentNo, Idx, MemberId, MemberSet};
use trilith_wire::{EntryStatus, MapKind, Message};

/// A REPAIR without an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Repair {
    pub(crate) member: MemberId,
    pub(crate) token: u64,
    /// Of a rebuild, not of a recovery.
    pub(crate) rebuild: bool,
}

impl Engine {
    /// Starts to carry a plan out.
    pub(crate) fn begin_recovery(&mut self, plan: Plan, cx: &mut Cx<'_>) {
        let config = RecoveryConfig {
            chunks_in_flight_max: crate::limits::RECOVERY_CHUNKS_MAX,
            stall: crate::limits::RECOVERY_STALL,
        };
        let mut recovery = Recovery::new(plan, config);
        let mut steps = core::mem::take(&mut self.recovery_steps);
        recovery.start(cx.now, &mut steps);
        self.recovery = Some(recovery);
        self.recovery_steps = steps;
        self.run_recovery(cx);
    }

    /// The voters whose promises the running recovery goes by (Q).
    pub fn recovers_from(&self) -> Option<MemberSet> {
        self.recovery.as_ref().map(|r| r.plan().quorum)
    }

    /// Gives an event to the running recovery, if there is one.
    pub(crate) fn recovery_event(&mut self, event: RecoveryEvent, cx: &mut Cx<'_>) {
        let Some(recovery) = self.recovery.as_mut() else {
            if let RecoveryEvent::ReadDone {
                result: Ok(ReadData::Bytes(buf)),
                ..
            } = event
            {
                cx.data.release(buf.buf);
            }
            return;
        };
        recovery.event(cx.now, event, cx.data, &mut self.recovery_steps);
        self.run_recovery(cx);
    }

    pub(crate) fn tend_recovery(&mut self, cx: &mut Cx<'_>) {
        let Some(recovery) = self.recovery.as_mut() else {
            return;
        };
        recovery.settle(cx.now, &mut self.recovery_steps);
        self.run_recovery(cx);
    }

    /// Carries out the steps that the recovery asked for. A step may cause further ones.
    fn run_recovery(&mut self, cx: &mut Cx<'_>) {
        if self.recovery_running {
            return;
        }
        self.recovery_running = true;
        let mut at = 0;
        while let Some(step) = self.recovery_steps.get(at).copied() {
            at += 1;
            self.recovery_step(step, cx);
        }
        self.recovery_steps.clear();
        self.recovery_running = false;
    }

    fn recovery_step(&mut self, step: RecoveryStep, cx: &mut Cx<'_>) {
        let term = self.term;
        match step {
            RecoveryStep::Reconcile { member, loss } => {
                let need = self.recovery.as_ref().map(|r| r.need(member).clone());
                self.stage(member, MapKind::Need, member, need.unwrap_or_default());
                self.peers[member.index()].loss_sent = loss;
                self.control(member, Message::Reconcile { term, loss }, cx);
            }
            RecoveryStep::Read {
                member,
                range,
                token,
            } => {
                let owner = FlightOwner::Recovery { token };
                if self.send_read(member, range, owner, cx).is_none() {
                    let result = Err(EntryStatus::Io);
                    self.recovery_event(RecoveryEvent::ReadDone { token, result }, cx);
                }
            }
            RecoveryStep::Repair {
                member,
                range,
                token,
                data,
            } => {
                self.send_repair(member, range, token, data, false, cx);
            }
            RecoveryStep::TermStart {
                member,
                start,
                iss,
                loss,
            } => {
                let maps = self.recovery.as_ref().map(|r| {
                    let out = self.members.minus(iss);
                    let dirty = out
                        .iter()
                        .map(|m| (m, r.dirty(m).clone()))
                        .collect::<Vec<_>>();
                    (r.limbo().clone(), dirty)
                });
                let (limbo, dirty) = maps.unwrap_or_default();
                self.stage(member, MapKind::Limbo, member, limbo);
                for (absent, map) in dirty {
                    self.stage(member, MapKind::Dirty, absent, map);
                }
                self.control(
                    member,
                    Message::TermStart {
                        term,
                        start,
                        iss,
                        loss,
                    },
                    cx,
                );
            }
            RecoveryStep::Done(outcome) => self.open_term(outcome, cx),
            RecoveryStep::Failed(_) => {
                self.recovery = None;
                self.campaign_failed(cx.now);
            }
        }
    }

    /// Queues a map to be staged at a member.
    pub(crate) fn stage(&mut self, member: MemberId, kind: MapKind, of: MemberId, map: ChunkMap) {
        if !map.is_empty() {
            let control = Control::Chunks {
                map,
                kind,
                of,
                from: ExtentNo(0),
            };
            self.peers[member.index()].control.push_back(control);
        }
    }

    /// Queues a frame behind what is queued already, and sends what can be sent.
    pub(crate) fn control(&mut self, member: MemberId, message: Message<'static>, cx: &mut Cx<'_>) {
        self.peers[member.index()]
            .control
            .push_back(Control::Message(message));
        self.pump(member, cx);
    }

    /// Sends REPAIR. Takes one owner of the buffer.
    pub(crate) fn send_repair(
        &mut self,
        member: MemberId,
        range: BlockRange,
        token: u64,
        data: Option<BufSlice>,
        rebuild: bool,
        cx: &mut Cx<'_>,
    ) {
        let tag = self.repairs.insert(Repair {
            member,
            token,
            rebuild,
        });
        let mut crcs = core::mem::take(&mut self.scratch);
        crcs.clear();
        if let Some(buf) = data {
            block_crcs(cx.data, buf, &mut crcs);
        }
        let zero = data.is_none();
        let message = Message::Repair {
            term: self.term,
            range,
            tag,
            zero,
            rebuild,
            crcs: &crcs,
        };
        self.send(member, &message, data, cx);
        self.scratch = crcs;
        if let Some(buf) = data {
            cx.data.release(buf.buf);
        }
    }

    /// REPAIRDONE.
    pub(crate) fn repair_done(
        &mut self,
        member: MemberId,
        tag: u64,
        status: EntryStatus,
        cx: &mut Cx<'_>,
    ) {
        let Some(repair) = self
            .repairs
            .get(tag)
            .copied()
            .filter(|r| r.member == member)
        else {
            return;
        };
        self.repairs.remove(tag);
        if repair.rebuild {
            self.copy_done(member, repair.token, status, cx);
        } else {
            let token = repair.token;
            self.recovery_event(
                RecoveryEvent::RepairDone {
                    member,
                    token,
                    status,
                },
                cx,
            );
        }
    }

    /// A DATA for the recovery.
    pub(crate) fn recovery_data(&mut self, token: u64, result: ReadResult, cx: &mut Cx<'_>) {
        let result = match result {
            ReadResult::Bytes(buf) => Ok(ReadData::Bytes(buf)),
            ReadResult::Zero => Ok(ReadData::Zero),
            ReadResult::Failed(status) => Err(status),
        };
        self.recovery_event(RecoveryEvent::ReadDone { token, result }, cx);
    }

    /// Sends READ; its rid, or `None` when the member has no session of this term.
    pub(crate) fn send_read(
        &mut self,
        member: MemberId,
        range: BlockRange,
        owner: FlightOwner,
        cx: &mut Cx<'_>,
    ) -> Option<u64> {
        if !self.peers[member.index()].is_ours() {
            return None;
        }
        let rid = self.flights.insert(Flight {
            owner,
            member,
            range,
            sent_at: cx.now,
        });
        self.peers[member.index()].reads_in_flight += 1;
        self.send(
            member,
            &Message::Read {
                term: self.term,
                range,
                rid,
            },
            None,
            cx,
        );
        Some(rid)
    }

    /// R7 and R8: the members of `outcome` hold the term start. Entries may follow.
    fn open_term(&mut self, outcome: Outcome, cx: &mut Cx<'_>) {
        let Some(recovery) = self.recovery.take() else {
            return;
        };
        let plan = recovery.into_plan();
        self.campaign = Campaign::Idle { at: None };
        self.campaign_backoff = self.cfg.timing.campaign_retry_min;
        self.open = true;
        self.opened = false;
        self.counters.terms += 1;
        self.loss = outcome.loss;
        self.lossy = outcome.lossy;
        self.bind_loss(outcome.loss);
        self.stream.open(outcome.start);
        self.sync.open(outcome.iss, outcome.counted);
        self.limbo = plan.limbo;
        self.ineligible_since = None;
        for member in self.members.iter() {
            let in_sync = outcome.iss.contains(member);
            let counted = outcome.counted.contains(member);
            let peer = &mut self.peers[member.index()];
            peer.survey = None;
            peer.loss = peer.loss.max(if counted { outcome.loss } else { 0 });
            peer.upto = outcome.start;
            peer.w = peer.w.max(if counted { outcome.start } else { Idx(0) });
            peer.flushed = if counted { outcome.start } else { Idx(0) };
            peer.cursor = outcome.start.next();
            peer.resend_below = Idx(0);
            peer.epoch_done = counted.then_some(0);
            peer.broken = false;
            peer.fed = counted;
            // Until its TERMSTARTDONE its positions are of an older term.
            peer.synced = counted;
            peer.standing = if in_sync {
                Standing::InSync
            } else {
                Standing::Out { since: 0 }
            };
            let (entries, bytes) = peer
                .state
                .map_or((0, 0), |s| (s.credit_entries, s.credit_bytes));
            peer.credit_entries = u64::from(entries);
            peer.credit_bytes = u64::from(bytes);
            let dirty = plan.differing.get(member);
            // One that was lost on the way may lack as much as one that never was in the set.
            self.absent[member.index()] = if counted {
                ChunkMap::new()
            } else {
                dirty.clone()
            };
        }
        self.open_epochs(outcome.iss);
        self.mode_dirty = true;
        self.inherit_change();
        self.recount_returned(outcome.counted, cx);
        self.try_opened(cx);
        self.heartbeat_all(cx);
        let late =
            self.members_where(|p| p.is_ours() && matches!(p.standing, Standing::Out { .. }));
        for member in late.iter() {
            self.member_late(member, cx);
        }
    }

    /// C28: a member may lose its power after its TERMSTARTDONE and be back while others still owe theirs. What
    /// it says of itself then counts as if it had come back just now.
    fn recount_returned(&mut self, counted: MemberSet, cx: &mut Cx<'_>) {
        if mutant::on(Mutant::LostBeforeOpenCounts) {
            return;
        }
        for member in counted.iter() {
            let peer = &self.peers[member.index()];
            // Of this term is only what was told after the term start.
            let told = peer.state.filter(|s| s.se.term == self.term);
            let lost = told.filter(|s| s.flags.tainted || s.flags.failed);
            if let (true, Some(state)) = (peer.is_ours(), lost) {
                mark::reached(Mark::LostBeforeOpen);
                self.member_returned(member, &state, cx);
            }
        }
    }

    /// M8: clients that are bound to a lower loss epoch are not served until an operator says so.
    fn bind_loss(&mut self, loss: u32) {
        match self.loss_bound {
            None => self.loss_bound = Some(loss),
            Some(bound) => {
                self.loss_wait = mark::reached_if(bound < loss, Mark::LossBeforeTaken);
            }
        }
    }

    /// R8, R9: once a majority holds the term start, its limbo is agreed on.
    pub(crate) fn try_opened(&mut self, cx: &mut Cx<'_>) {
        if self.opened || !self.open || !self.may_open() {
            return;
        }
        self.opened = true;
        let away = self.sync.live.is_some() && !self.witness_here();
        mark::reached_if(away, Mark::OpenedWithoutWitness);
        self.limbo.clear();
        self.mode_dirty = true;
        let term = self.term;
        let counted: MemberSet = self.sync.counted;
        for member in counted.iter() {
            if self.peers[member.index()].is_ours() {
                self.control(member, Message::Opened { term }, cx);
            }
        }
    }

    /// TERMSTARTDONE. After the opening: a member of the first in-sync set was slow.
    pub(crate) fn term_started(&mut self, member: MemberId, start: Idx, cx: &mut Cx<'_>) {
        if self.recovery.is_some() {
            self.recovery_event(RecoveryEvent::TermStartDone(member), cx);
        } else if self.open && start == self.stream.start {
            let peer = &mut self.peers[member.index()];
            if peer.standing == Standing::Witness {
                self.loss_durable(member, self.loss);
                self.witness_holds(member, 0);
            } else if peer.standing == Standing::InSync && !peer.fed {
                peer.cursor = start.next();
                peer.fed = true;
                self.loss_durable(member, self.loss);
                self.feed_in_full(member, cx);
                self.count_member(member, 0, start, cx);
            }
        }
    }
}
