//! The world as stateright sees it: actions, successors, properties.

use crate::limits::{BLOCKS, REPLICAS};
use crate::scope::{Scope, Variant};
use crate::state::{Phase, SlotState, State, Violation, at};
use crate::symmetry;
use stateright::{Model, Property};

/// One atomic step of the world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// An engine campaigns in this term.
    StartEngine(u8),
    /// A replica grants its vote (V1 to V4).
    Vote(u8, u8),
    /// The engine computes its plan; the third number says who wins ties.
    Plan(u8, u8),
    /// A member makes the intent and the loss epoch durable (R5).
    Reconcile(u8, u8),
    /// A member is repaired at one block (R6).
    Repair(u8, u8, u8),
    /// A member starts the term (R7).
    TermStart(u8, u8),
    /// A member is told that a majority has started it (R8, R9).
    Opened(u8, u8),
    /// The client writes a block.
    Write(u8, u8),
    /// The client flushes.
    Flush(u8),
    /// A member receives the next entry.
    Deliver(u8, u8),
    /// A member receives the next entry, a write, and it stays at the device.
    DeliverSlowly(u8, u8),
    /// What is at a member's device completes.
    Land(u8, u8),
    /// A write of an older session completes (only without V3).
    LandStray(u8),
    /// A member cuts its window at tidx.
    Cut(u8, u8),
    /// The engine demotes a lagging member.
    Demote(u8, u8),
    /// TOLD.
    Tell(u8, u8),
    /// Engine, source, target, block.
    Copy(u8, u8, u8, u8),
    /// A rebuilt member joins.
    Join(u8, u8),
    /// A member gets a new session of an open term.
    Return(u8, u8),
    /// Engine, member, block: the client reads.
    Read(u8, u8, u8),
    /// A replica's process crashes and restarts; slots whose write landed.
    Crash(u8, u8),
    /// A replica's host loses power; the content that is left.
    PowerLoss(u8, [u8; BLOCKS]),
    /// All hosts lose power.
    Blackout([[u8; BLOCKS]; REPLICAS]),
    /// An extent leaves a replica's activity log.
    Evict(u8, u8),
}

/// The protocol in a bounded world.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// The bounds.
    pub scope: Scope,
    /// What is left out.
    pub variant: Variant,
    /// Count histories that differ only in the names of the replicas once.
    pub symmetry: bool,
}

fn ids(count: usize) -> impl Iterator<Item = (u8, usize)> {
    (0..count).map(|n| (u8::try_from(n).unwrap_or(u8::MAX), n))
}

impl Protocol {
    fn engine_actions(&self, state: &State, engine: u8, out: &mut Vec<Action>) {
        let e = &state.engines[at(engine)];
        if e.phase == Phase::Dead {
            return;
        }
        if state.may_plan(engine) {
            out.extend(ids(REPLICAS).map(|(turn, _)| Action::Plan(engine, turn)));
        }
        if state.may_write(engine) {
            // Blocks are alike: the first write is to the first.
            let blocks = if state.witness.next_value == 1 {
                1
            } else {
                self.scope.blocks
            };
            out.extend((0..blocks).map(|block| Action::Write(engine, block)));
        }
        if state.may_flush(engine) {
            out.push(Action::Flush(engine));
        }
        for (id, member) in ids(REPLICAS) {
            self.member_actions(state, (engine, id), member, out);
        }
    }

    fn member_actions(
        &self,
        state: &State,
        (engine, id): (u8, u8),
        member: usize,
        out: &mut Vec<Action>,
    ) {
        let mut add = |enabled: bool, action: Action| {
            if enabled {
                out.push(action);
            }
        };
        add(state.may_vote(engine, member), Action::Vote(engine, id));
        add(
            state.may_reconcile(engine, member),
            Action::Reconcile(engine, id),
        );
        add(
            state.may_start_term(engine, member),
            Action::TermStart(engine, id),
        );
        add(
            state.may_hear_opened(engine, member),
            Action::Opened(engine, id),
        );
        if state.may_deliver(engine, member) {
            add(true, Action::Deliver(engine, id));
            add(self.scope.async_io, Action::DeliverSlowly(engine, id));
        }
        add(state.may_cut(engine, member), Action::Cut(engine, id));
        add(state.may_demote(engine, member), Action::Demote(engine, id));
        add(
            state.may_tell(engine, member, self.variant),
            Action::Tell(engine, id),
        );
        add(state.may_join(engine, member), Action::Join(engine, id));
        add(state.may_return(engine, member), Action::Return(engine, id));
        for (block_id, block) in ids(BLOCKS) {
            add(
                state.may_repair(engine, member, block),
                Action::Repair(engine, id, block_id),
            );
            for (source_id, source) in ids(REPLICAS) {
                add(
                    state.may_copy(engine, source, member, block),
                    Action::Copy(engine, source_id, id, block_id),
                );
            }
            // A read that teaches the client nothing is no step.
            let news = state
                .read(engine, member, block)
                .is_some_and(|value| value != state.witness.floor[block]);
            add(news, Action::Read(engine, id, block_id));
        }
    }

    fn replica_actions(&self, state: &State, out: &mut Vec<Action>) {
        for (id, member) in ids(REPLICAS) {
            let r = &state.replicas[member];
            let flying = r.window.iter().filter(|s| s.state == SlotState::Flying);
            out.extend(flying.map(|slot| Action::Land(id, slot.idx)));
            if !r.stray.is_empty() {
                out.push(Action::LandStray(id));
            }
            if state.left.crashes > 0 && (r.session.is_some() || r.busy()) {
                let landings = state.landings(member).into_iter();
                out.extend(landings.map(|landed| Action::Crash(id, landed)));
            }
            if state.left.powers > 0 {
                let contents = r.contents_after_power_loss().into_iter();
                out.extend(contents.map(|content| Action::PowerLoss(id, content)));
            }
            for (block_id, block) in ids(BLOCKS) {
                if self.scope.evict && r.may_evict(block, self.variant) {
                    out.push(Action::Evict(id, block_id));
                }
            }
        }
    }
}

fn blackouts(state: &State) -> Vec<Action> {
    let [a, b, c] = &state.replicas;
    let mut all = Vec::new();
    for first in a.contents_after_power_loss() {
        for second in b.contents_after_power_loss() {
            for third in c.contents_after_power_loss() {
                all.push(Action::Blackout([first, second, third]));
            }
        }
    }
    all
}

fn terms(state: &State, duel: bool) -> Vec<u8> {
    let highest = state.replicas.iter().map(|r| r.term).max().unwrap_or(0);
    let mut terms = vec![highest + 1];
    let voting = |e: &crate::state::Engine| e.phase == Phase::Voting && e.term == highest;
    if duel && state.engines.iter().any(voting) {
        terms.push(highest);
    }
    terms
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::open_volume(self.scope.budget)]
    }

    fn actions(&self, state: &State, out: &mut Vec<Action>) {
        if state.witness.violations != 0 && self.variant == Variant::Correct {
            return;
        }
        if state.left.engines > 0 {
            out.extend(
                terms(state, self.scope.duel)
                    .into_iter()
                    .map(Action::StartEngine),
            );
        }
        for (engine, _) in ids(state.engines.len()) {
            self.engine_actions(state, engine, out);
        }
        self.replica_actions(state, out);
        if state.left.blackouts > 0 {
            out.extend(blackouts(state));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        if !self.apply(&mut next, action) {
            return None;
        }
        symmetry::bury(&mut next);
        if self.symmetry {
            next = symmetry::representative(next);
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        macro_rules! never {
            ($($violation:ident),*) => {
                vec![$(Property::always(Violation::$violation.name(), |_: &Protocol, s: &State| {
                    !s.witness.has_seen(Violation::$violation)
                })),*]
            };
        }
        never!(
            TwoLeaders,
            FencedAck,
            CommittedLost,
            FlushedLost,
            ReadReverted,
            Diverged,
            ToldTooEarly,
            WrongLossEpoch
        )
    }
}

impl Protocol {
    /// Does a step. False: it turned out to be none.
    fn apply(&self, state: &mut State, action: Action) -> bool {
        let variant = self.variant;
        match action {
            Action::StartEngine(term) => state.start_engine(term),
            Action::Vote(e, r) => state.vote(e, at(r), variant),
            Action::Plan(e, turn) => return state.make_plan(e, turn, variant),
            Action::Reconcile(e, r) => state.reconcile(e, at(r), variant),
            Action::Repair(e, r, block) => state.repair(e, at(r), at(block)),
            Action::TermStart(e, r) => state.start_term(e, at(r), variant),
            Action::Opened(_, r) => state.hear_opened(at(r)),
            Action::Write(e, block) => state.write(e, block),
            Action::Flush(e) => state.flush(e),
            Action::Deliver(e, r) => state.deliver(e, at(r), false, variant),
            Action::DeliverSlowly(e, r) => state.deliver(e, at(r), true, variant),
            Action::Land(r, idx) => state.complete(at(r), idx, variant),
            Action::LandStray(r) => {
                let replica = &mut state.replicas[at(r)];
                let (block, value) = replica.stray.remove(0);
                replica.put(at(block), value);
            }
            Action::Cut(e, r) => state.cut(e, at(r)),
            Action::Demote(e, r) => {
                state.left.demotions -= 1;
                state.demote(e, at(r), variant);
            }
            Action::Tell(e, r) => state.tell(e, at(r), variant),
            Action::Copy(e, source, r, block) => state.copy(e, at(source), at(r), at(block)),
            Action::Join(e, r) => state.join(e, at(r), variant),
            Action::Return(e, r) => state.come_back(e, at(r), variant),
            Action::Read(e, r, block) => {
                let Some(value) = state.read(e, at(r), at(block)) else {
                    return false;
                };
                state.seen(at(block), value);
            }
            Action::Crash(r, landed) => state.crash(at(r), landed, variant),
            Action::PowerLoss(r, content) => state.lose_power(at(r), content, variant),
            Action::Blackout(contents) => state.black_out(&contents, variant),
            Action::Evict(r, block) => state.replicas[at(r)].evict(at(block)),
        }
        // A vote or a return takes a session away from another engine.
        state.members_lost();
        true
    }
}
