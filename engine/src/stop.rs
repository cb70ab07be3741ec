//! Stopping on demand: drain, seal, go (clean stop, 2.1; step-down, 5.5).

use crate::api::{ExitReason, Operator};
use crate::engine::{Cx, Engine};
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{ErrorKind, MemberSet, Monotonic};
use trilith_wire::Message;

/// A stop on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    step_down: bool,
    /// Stop all the same at this time.
    pub(crate) until: Monotonic,
    /// Members that were sent SEAL.
    asked: Option<MemberSet>,
}

impl Engine {
    /// An operator's wish.
    pub(crate) fn operator(&mut self, wish: Operator, cx: &mut Cx<'_>) {
        match wish {
            Operator::AcceptLoss => {
                if self.loss_wait {
                    mark::reached_if(!self.ops.is_empty(), Mark::HeldRequestsEnd);
                    // M8, I17: what was asked for before belongs to clients that are gone; done
                    // now it would overwrite what their successors have seen.
                    if !mutant::on(Mutant::RequestsAfterLoss) {
                        self.abandon_all(ErrorKind::Io, cx);
                    }
                    self.loss_wait = false;
                    self.loss_bound = Some(self.loss);
                    self.mode_dirty = true;
                }
            }
            Operator::Replace { old, new } => self.replace(old, new, cx),
            Operator::KeepOld => self.keep_old(cx),
            Operator::Scrub => {
                self.scrub.start();
                self.again = true;
            }
            Operator::Stop | Operator::StepDown => {
                if self.stop.is_none() && !self.is_finished() {
                    let step_down = wish == Operator::StepDown;
                    let until = cx.now.after(self.cfg.timing.stop_wait);
                    self.stop = Some(Stop {
                        step_down,
                        until,
                        asked: None,
                    });
                    self.mode_dirty = true;
                }
            }
        }
    }

    /// True when a stop is wanted and there is no open term to be stopped cleanly.
    pub(crate) fn stopping_without_term(&self) -> bool {
        self.stop.is_some() && !self.open
    }

    /// Moves a stop on.
    pub(crate) fn tend_stop(&mut self, cx: &mut Cx<'_>) {
        let Some(stop) = self.stop else { return };
        if self.is_finished() {
            return;
        }
        let late = stop.until <= cx.now;
        if !self.open || late {
            return self.end_stop(&stop, false, cx);
        }
        // A member being rebuilt is not waited for: what it lacks is on record.
        self.stop_rebuilds();
        self.interrupt_scrub(cx);
        let Some(asked) = stop.asked else {
            // Every request has ended and every entry is at every tracked member.
            let drained = self.ops.is_empty() && self.parts.is_empty() && self.stream.len() == 0;
            if drained {
                self.stop_drained(stop, cx);
            }
            return;
        };
        let answered = |m: trilith_block::MemberId| {
            let peer = &self.peers[m.index()];
            peer.sealed.is_some() || !peer.is_ours()
        };
        if asked.iter().all(answered) {
            if self.seal_witness(stop, asked, cx) {
                return;
            }
            let sealed = self.members_where(|p| p.sealed == Some(true));
            let all = self.membership.electors().minus(sealed).is_empty();
            self.end_stop(&stop, all, cx);
        }
    }

    /// W13: the witness is sealed after all of the in-sync set. True when it was asked just now.
    fn seal_witness(&mut self, stop: Stop, asked: MemberSet, cx: &mut Cx<'_>) -> bool {
        let sealed = self.members_where(|p| p.sealed == Some(true));
        let data_sealed = self.sync.iss.minus(sealed).is_empty();
        let witness = self.membership.witness.minus(asked);
        if witness.is_empty() || !data_sealed || !self.witness_here() {
            return false;
        }
        self.stop = Some(Stop {
            asked: Some(asked.or(witness)),
            ..stop
        });
        let (term, idx) = (self.term, self.last_idx());
        for member in witness.iter() {
            self.peers[member.index()].sealed = None;
            self.control(member, Message::Seal { term, idx }, cx);
        }
        true
    }

    fn stop_drained(&mut self, stop: Stop, cx: &mut Cx<'_>) {
        if stop.step_down {
            return self.end_stop(&stop, false, cx);
        }
        let asked = self.counted_here();
        self.stop = Some(Stop {
            asked: Some(asked),
            ..stop
        });
        let (term, idx) = (self.term, self.last_idx());
        for member in asked.iter() {
            self.peers[member.index()].sealed = None;
            self.control(member, Message::Seal { term, idx }, cx);
        }
    }

    fn end_stop(&mut self, stop: &Stop, sealed: bool, cx: &mut Cx<'_>) {
        for member in self.members.iter() {
            if self.peers[member.index()].is_ours() {
                self.send(member, &Message::StepDown { term: self.term }, None, cx);
            }
        }
        let reason = if stop.step_down {
            ExitReason::SteppedDown
        } else {
            ExitReason::Stopped { sealed }
        };
        self.finish(reason, cx);
    }
}
