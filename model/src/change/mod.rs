//! # Purpose
//! Replacing a voter (C20) as a small world of its own: engines that win elections, say a
//! configuration again, take a newcomer in, go through the joint step and let somebody go, with
//! sessions cut, engines replaced and a disk emptied between any two steps. Which sets decide, and
//! what follows a configuration, are the production type [`trilith_block::Membership`].
//!
//! What a replica holds is abstracted to a prefix: a later term or a later position has more. What
//! windows, limbo and repair do beside it is the other world's ([`crate::Protocol`]).
//!
//! # Invariants
//! Every step that could be repeated for ever is counted, or makes a configuration newer.
//!
//! # Start reading at
//! [`World`], then `steps`.

mod scope;
mod state;
mod steps;
mod symmetry;

pub use scope::{Fault, Given, Scope};
pub use state::{Broken, Config, Entry, Leader, Member, Phase, State};

use crate::limits::MEMBERS;
use crate::report::{Report, explore};
use crate::state::Mask;
use stateright::{HasDiscoveries, Model, Property};

/// One atomic step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// A new engine wins this term with the votes of a set that decides, and plans. It goes by what
    /// this member told it of the configuration, be it a voter or not. Votes that lead to nothing
    /// are no steps: all that they do is to take members away from older engines, which may as well
    /// leave them alone.
    Elect(u8, usize, Mask),
    /// A member gives its vote to an engine that has won already.
    Vote(u8, usize),
    /// RECONFIGURE reaches a member.
    Spread(u8, usize),
    /// A member starts the term.
    TermStart(u8, usize),
    /// The client writes.
    Write(u8),
    /// A member receives the next entry.
    Deliver(u8, usize),
    /// A member that does not count is copied to, and counts.
    Join(u8, usize),
    /// The engine begins to replace the first member by the second.
    Replace(u8, usize, usize),
    /// The newcomer is given up.
    GiveUp(u8),
    /// The joint step, with its barrier.
    Joint(u8),
    /// The last step is spread.
    Settle(u8),
    /// The last step is in force.
    Enter(u8),
    /// A member gets a new session of the term that it holds.
    Return(u8, usize),
    /// A session is cut.
    Cut(usize),
    /// A member's disk is emptied.
    Wipe(usize),
}

/// The world.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// The bounds.
    pub scope: Scope,
    /// The rule that is left out.
    pub fault: Option<Fault>,
}

impl World {
    /// Explores it to its end, or until something is broken.
    pub fn explore(self) -> Report<Action> {
        explore(self, HasDiscoveries::AnyFailures)
    }

    fn elections(&self, state: &State, out: &mut Vec<Action>) {
        for term in state.terms(self.scope.duel) {
            for told_by in 0..MEMBERS {
                for voters in 1..1 << MEMBERS {
                    if state.may_elect(term, told_by, voters, self.fault) {
                        out.push(Action::Elect(term, told_by, voters));
                    }
                }
            }
        }
    }

    fn engine_actions(&self, state: &State, engine: u8, out: &mut Vec<Action>) {
        let mut add = |possible: bool, action: Action| {
            if possible {
                out.push(action);
            }
        };
        add(state.may_write(engine), Action::Write(engine));
        add(state.may_give_up(engine), Action::GiveUp(engine));
        add(
            state.may_go_joint(engine, self.fault),
            Action::Joint(engine),
        );
        add(state.may_settle(engine, self.fault), Action::Settle(engine));
        add(state.may_enter(engine, self.fault), Action::Enter(engine));
        for member in 0..MEMBERS {
            add(state.may_vote(engine, member), Action::Vote(engine, member));
            add(
                state.may_spread(engine, member, self.fault),
                Action::Spread(engine, member),
            );
            add(
                state.may_start_term(engine, member),
                Action::TermStart(engine, member),
            );
            add(
                state.may_deliver(engine, member),
                Action::Deliver(engine, member),
            );
            add(
                state.may_join(engine, member, self.fault),
                Action::Join(engine, member),
            );
            add(
                state.may_return(engine, member),
                Action::Return(engine, member),
            );
            for new in 0..MEMBERS {
                add(
                    state.may_replace(engine, member, new),
                    Action::Replace(engine, member, new),
                );
            }
        }
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::open_volume(&self.scope)]
    }

    fn actions(&self, state: &State, out: &mut Vec<Action>) {
        if state.broken.is_some() {
            return;
        }
        if state.left.engines > 0 {
            self.elections(state, out);
        }
        for engine in 0..state.leaders.len() {
            let engine = u8::try_from(engine).unwrap_or(u8::MAX);
            self.engine_actions(state, engine, out);
        }
        for member in 0..MEMBERS {
            let connected = state.members[member].session.is_some();
            if state.left.cuts > 0 && connected {
                out.push(Action::Cut(member));
            }
            if state.left.wipes > 0 && state.members[member].config.is_known() {
                out.push(Action::Wipe(member));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        next.apply(action, self.fault);
        next.judge();
        next.bury();
        Some(next.representative())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one leader in a term", |_: &World, s: &State| {
                s.broken != Some(Broken::TwoLeaders)
            }),
            Property::always("acknowledged writes survive", |_: &World, s: &State| {
                s.broken != Some(Broken::Lost)
            }),
            Property::always("a leader can be elected", |_: &World, s: &State| {
                s.broken != Some(Broken::Stuck)
            }),
        ]
    }
}
