//! What each frame of a replica does.

use crate::engine::{Cx, Engine};
use crate::recovery::RecoveryEvent;
use trilith_block::{MemberId, Monotonic, Term};
use trilith_wire::{EntryStatus, Message};

impl Engine {
    /// A frame of a session that stands. DATA and MAP are handled with their payload.
    pub(crate) fn message(&mut self, member: MemberId, message: &Message<'_>, cx: &mut Cx<'_>) {
        let ours = |term: &Term| *term == self.term && self.peers[member.index()].promised;
        match message {
            Message::PrevoteReply {
                refused,
                term,
                attach_epoch,
                ..
            } => {
                if !self.meet_epoch(*attach_epoch, cx) {
                    self.meet_term(*term, cx.now);
                    self.prevote_reply(member, *refused, cx);
                    if *refused == Some(trilith_wire::Reason::Config) {
                        self.drop_session(member, cx);
                    }
                }
            }
            Message::Promise { term, state } => self.promised(member, *term, state, cx),
            Message::Nack {
                reason,
                refused,
                term,
                attach_epoch,
                tag,
                ..
            } => {
                if !self.meet_epoch(*attach_epoch, cx) {
                    self.meet_term(*term, cx.now);
                    self.nacked(member, *reason, *refused, *tag, cx);
                }
            }
            Message::ReconcileDone { term } if ours(term) => {
                let loss = self.peers[member.index()].loss_sent;
                self.loss_durable(member, loss);
                self.recovery_event(RecoveryEvent::ReconcileDone(member), cx);
            }
            Message::RepairDone { term, tag, status } if ours(term) => {
                self.repair_done(member, *tag, *status, cx);
            }
            Message::TermStartDone { term, start } if ours(term) => {
                self.term_started(member, *start, cx);
            }
            Message::Ack {
                term,
                upto,
                free_extents,
                credit_entries,
                credit_bytes,
                w,
                echo,
                further,
            } if ours(term) => {
                let peer = &mut self.peers[member.index()];
                peer.free_extents = *free_extents;
                peer.credit_entries = u64::from(*credit_entries);
                peer.credit_bytes = u64::from(*credit_bytes);
                peer.w = peer.w.max(*w);
                self.echoed(member, *echo, cx.now);
                self.accepted(member, *upto, further, cx);
            }
            Message::HeartbeatDone {
                term,
                upto,
                free_extents,
                w,
                echo,
            } if ours(term) => {
                let peer = &mut self.peers[member.index()];
                peer.free_extents = *free_extents;
                peer.w = peer.w.max(*w);
                if *echo > 0 {
                    let there_and_back = cx.now.since(Monotonic(*echo));
                    peer.wire_latency.record(there_and_back);
                }
                self.echoed(member, *echo, cx.now);
                self.accepted(member, *upto, &[], cx);
            }
            Message::EntryFailed { term, idx, status } if ours(term) => {
                self.entry_failed(member, *idx, *status, cx);
            }
            Message::FlushDone { term, idx } if ours(term) => self.flush_done(member, *idx, cx),
            Message::SyncSetDone { term, idx, n } if ours(term) => {
                self.syncset_done(member, *idx, *n, cx);
            }
            Message::ToldDone { term } if ours(term) => self.told_done(member, cx),
            Message::NeedSetDone { term } if ours(term) => self.needset_done(member),
            Message::SealDone { term, sealed } if ours(term) => {
                self.peers[member.index()].sealed = Some(*sealed);
            }
            Message::ReconfigureDone { term, generation } if ours(term) => {
                self.config_durable(member, *generation);
            }
            Message::ExtentHashDone {
                term,
                rid,
                status,
                range,
                unit,
                digests,
            } if ours(term) => {
                let done = *status == EntryStatus::Done;
                let result = if done { Ok(*digests) } else { Err(*status) };
                self.digests_arrived(member, *rid, (*range, *unit), result, cx);
            }
            // Answers of an older term of this engine.
            Message::ReconcileDone { .. }
            | Message::RepairDone { .. }
            | Message::TermStartDone { .. }
            | Message::Ack { .. }
            | Message::HeartbeatDone { .. }
            | Message::EntryFailed { .. }
            | Message::FlushDone { .. }
            | Message::SyncSetDone { .. }
            | Message::ToldDone { .. }
            | Message::NeedSetDone { .. }
            | Message::SealDone { .. }
            | Message::ExtentHashDone { .. }
            | Message::ReconfigureDone { .. } => {}
            // Handled before, or frames that only engines send.
            Message::Refused { .. }
            | Message::Data { .. }
            | Message::Map { .. }
            | Message::Hello(_)
            | Message::Challenge { .. }
            | Message::Auth { .. }
            | Message::Welcome(_)
            | Message::Prevote(_)
            | Message::Vote(_)
            | Message::GetMap { .. }
            | Message::Reconcile { .. }
            | Message::Repair { .. }
            | Message::TermStart { .. }
            | Message::Opened { .. }
            | Message::Append(_)
            | Message::Flush { .. }
            | Message::SyncSet { .. }
            | Message::Read { .. }
            | Message::ExtentHash { .. }
            | Message::Heartbeat { .. }
            | Message::Told { .. }
            | Message::NeedSet { .. }
            | Message::DirtyClear { .. }
            | Message::Seal { .. }
            | Message::Reconfigure { .. }
            | Message::StepDown { .. } => self.drop_session(member, cx),
        }
    }
}
