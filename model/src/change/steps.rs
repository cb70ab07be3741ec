//! What may happen, and what it does. `may_X` tells whether step X is possible.

use super::Action;
use super::scope::Fault;
use super::state::{Config, Entry, Leader, Member, Phase, State, id, members_where};
use crate::limits::MEMBERS;
use crate::state::{Mask, at, bit, has};
use trilith_block::{Membership, Term};

impl State {
    fn ours(&self, engine: u8, member: usize) -> bool {
        self.members[member].session == Some(engine)
    }

    fn is_open(&self, engine: u8) -> bool {
        self.leader(engine).phase == Phase::Open
    }

    /// Counted members that can be reached decide: the engine may issue something.
    fn can_issue(&self, engine: u8) -> bool {
        let leader = self.leader(engine);
        let here = leader.counted & self.here(engine);
        self.is_open(engine) && leader.config.decides(here, None)
    }

    /// The configuration that a new engine goes by when this member is the one to tell it.
    fn told(&self, by: usize, fault: Option<Fault>) -> Config {
        match fault {
            Some(Fault::ConfigNotAsked) => self.made_with,
            _ => self.members[by].config,
        }
    }

    /// Whether these can make an engine leader that goes by what this member told it.
    pub(super) fn may_elect(
        &self,
        term: u8,
        told_by: usize,
        voters: Mask,
        fault: Option<Fault>,
    ) -> bool {
        let blind = fault == Some(Fault::ConfigNotAsked);
        let teller = &self.members[told_by];
        let config = self.told(told_by, fault);
        let votes = |m: usize| {
            let voter = &self.members[m];
            // A replica that knows a newer configuration than the engine has heard of refuses.
            let agrees = voter.config.generation() <= config.generation() || blind;
            let heard = voter.config.is_known() || fault == Some(Fault::BlankHeard);
            voter.term < term && !voter.is_retired(m) && config.has(m) && agrees && heard
        };
        let all = (0..MEMBERS).all(|m| !has(voters, m) || votes(m));
        let whole = |m: usize| has(voters, m) && self.members[m].order.0 > 0;
        // One name for one step: among several with this configuration the first.
        let first = |m: usize| self.members[m].config == teller.config;
        config.is_known()
            && !teller.is_retired(told_by)
            && (0..MEMBERS).find(|m| first(*m)) == Some(told_by)
            && all
            && config.decides(voters, fault)
            && (0..MEMBERS).any(whole)
    }

    pub(super) fn may_vote(&self, engine: u8, member: usize) -> bool {
        let (leader, voter) = (self.leader(engine), &self.members[member]);
        leader.phase != Phase::Over
            && voter.term < leader.term
            && leader.config.has(member)
            && !voter.is_retired(member)
            && voter.config.is_known()
    }

    /// What a member is to know.
    fn target(&self, engine: u8, member: usize, fault: Option<Fault>) -> Config {
        let leader = self.leader(engine);
        let early = fault == Some(Fault::RetiredEarly);
        leader
            .pending
            .filter(|config| config.has(member) || early)
            .unwrap_or(leader.config)
    }

    pub(super) fn may_spread(&self, engine: u8, member: usize, fault: Option<Fault>) -> bool {
        let leader = self.leader(engine);
        if leader.phase == Phase::Over || !self.ours(engine, member) {
            return false;
        }
        let blank = !self.members[member].config.is_known() && fault != Some(Fault::BlankHeard);
        if blank && !leader.fresh {
            return false;
        }
        let target = self.target(engine, member, fault);
        // Who leaves is told only what is decided, and leaves the sync set before.
        let decided = leader.config.decides(leader.durable(&leader.config), fault)
            && !has(leader.counted, member)
            || fault == Some(Fault::RetiredEarly);
        target.generation() != leader.known[member] && (target.has(member) || decided)
    }

    pub(super) fn may_start_term(&self, engine: u8, member: usize) -> bool {
        let leader = self.leader(engine);
        // RECONFIGURE was sent before, on the same stream.
        leader.phase != Phase::Over
            && self.ours(engine, member)
            && has(leader.first, member)
            && !has(leader.counted, member)
            && leader.known[member] >= leader.config.generation()
    }

    pub(super) fn may_write(&self, engine: u8) -> bool {
        self.left.writes > 0 && self.can_issue(engine)
    }

    pub(super) fn may_deliver(&self, engine: u8, member: usize) -> bool {
        let leader = self.leader(engine);
        leader.phase != Phase::Over
            && self.ours(engine, member)
            && has(leader.counted, member)
            && leader.accepted[member] < leader.end()
    }

    /// All who count, and the newcomer, know the configuration.
    fn everyone_knows(&self, engine: u8) -> bool {
        let leader = self.leader(engine);
        let newcomer = leader.config.0.joining();
        let know = leader.durable(&leader.config);
        (0..MEMBERS)
            .filter(|m| has(leader.counted, *m) || newcomer.contains(id(*m)))
            .all(|m| has(know, m))
    }

    /// The member that everything is copied from: one that counts and can be reached.
    fn source(&self, engine: u8) -> Option<usize> {
        let leader = self.leader(engine);
        let here = leader.counted & self.here(engine);
        (0..MEMBERS)
            .filter(|m| has(here, *m))
            .max_by_key(|m| leader.accepted[*m])
    }

    pub(super) fn may_join(&self, engine: u8, member: usize, fault: Option<Fault>) -> bool {
        let leader = self.leader(engine);
        let config = &leader.config;
        let learns = config.0.joining().contains(id(member)) && !config.0.joint;
        let heard = self.members[member].config.is_known() || fault == Some(Fault::BlankHeard);
        leader.phase == Phase::Open
            && self.ours(engine, member)
            && heard
            && config.has(member)
            && !has(leader.counted, member)
            && leader.known[member] >= config.generation()
            && (!learns || self.everyone_knows(engine))
            && self.source(engine).is_some()
    }

    pub(super) fn may_replace(&self, engine: u8, old: usize, new: usize) -> bool {
        let leader = self.leader(engine);
        let config = &leader.config.0;
        // Numbers are not given again here: a newcomer is empty.
        self.left.changes > 0
            && self.can_issue(engine)
            && config.is_simple()
            && leader.departing == 0
            && config.voters.contains(id(old))
            && !leader.config.has(new)
            && !self.members[new].config.is_known()
            && !has(self.wiped, new)
    }

    pub(super) fn may_give_up(&self, engine: u8) -> bool {
        let config = &self.leader(engine).config.0;
        self.left.give_ups > 0 && !config.joint && !config.is_simple() && self.can_issue(engine)
    }

    pub(super) fn may_go_joint(&self, engine: u8, fault: Option<Fault>) -> bool {
        let leader = self.leader(engine);
        let config = &leader.config;
        if config.0.joint || config.0.is_simple() || !self.can_issue(engine) {
            return false;
        }
        if fault == Some(Fault::NewcomerNotWaitedFor) {
            return true;
        }
        let here = leader.counted & self.here(engine);
        let newcomer = (0..MEMBERS).find(|m| config.0.joining().contains(id(*m)));
        let joint = config.then(leader.term, Membership::joined);
        newcomer.is_some_and(|new| has(here, new))
            && self.everyone_knows(engine)
            && config.decides(leader.durable(config), fault)
            && joint.is_some_and(|joint| joint.decides(here, fault))
    }

    pub(super) fn may_settle(&self, engine: u8, fault: Option<Fault>) -> bool {
        let leader = self.leader(engine);
        let config = &leader.config;
        let passed = leader.reached(leader.barrier);
        config.0.joint
            && leader.pending.is_none()
            && self.can_issue(engine)
            && (config.decides(passed, fault) || fault == Some(Fault::NoBarrier))
            && config.decides(leader.durable(config), fault)
    }

    pub(super) fn may_enter(&self, engine: u8, fault: Option<Fault>) -> bool {
        let leader = self.leader(engine);
        leader.pending.is_some_and(|config| {
            config.decides(leader.durable(&config), fault) && self.can_issue(engine)
        })
    }

    pub(super) fn may_return(&self, engine: u8, member: usize) -> bool {
        let (leader, back) = (self.leader(engine), &self.members[member]);
        let ours = back.term == leader.term && back.vote == engine;
        leader.phase != Phase::Over
            && ours
            && back.session.is_none()
            && !back.is_retired(member)
            && (leader.config.has(member) || has(leader.departing, member))
    }

    /// Takes a step that is possible.
    pub(super) fn apply(&mut self, action: Action, fault: Option<Fault>) {
        match action {
            Action::Elect(term, told_by, voters) => self.elect(term, told_by, voters, fault),
            Action::Vote(e, m) => self.vote(e, m),
            Action::Spread(e, m) => self.spread(e, m, fault),
            Action::TermStart(e, m) => {
                let (term, base) = (self.leader(e).term, self.leader(e).base);
                (self.members[m].order, self.members[m].content) = ((term, 0), base);
                self.leaders[at(e)].counted |= bit(m);
            }
            Action::Write(e) => {
                self.left.writes -= 1;
                let write = Entry::Write(self.writes);
                self.writes += 1;
                self.leaders[at(e)].log.push(write);
            }
            Action::Deliver(e, m) => self.deliver(e, m),
            Action::Join(e, m) => self.join(e, m),
            Action::Replace(e, old, new) => {
                self.left.changes -= 1;
                let step = |c: &Membership, term| c.replacing(id(old), id(new), term);
                self.take(e, step);
                let leader = &mut self.leaders[at(e)];
                leader.fresh = true;
                leader.promised |= bit(new);
                // It is empty, and anyone's who comes first.
                let newcomer = &mut self.members[new];
                (newcomer.term, newcomer.vote, newcomer.session) = (leader.term, e, Some(e));
            }
            Action::GiveUp(e) => {
                self.left.give_ups -= 1;
                self.take(e, Membership::settled);
                self.depart(e);
            }
            Action::Joint(e) => {
                self.take(e, Membership::joined);
                let leader = &mut self.leaders[at(e)];
                leader.log.push(Entry::Barrier);
                leader.barrier = leader.end();
                leader.fresh = false;
            }
            Action::Settle(e) => {
                let leader = &mut self.leaders[at(e)];
                leader.pending = leader.config.then(leader.term, Membership::settled);
            }
            Action::Enter(e) => {
                let leader = &mut self.leaders[at(e)];
                if let Some(config) = leader.pending.take() {
                    leader.config = config;
                }
                self.depart(e);
            }
            Action::Return(e, m) => self.members[m].session = Some(e),
            Action::Cut(m) => {
                self.left.cuts -= 1;
                self.members[m].session = None;
            }
            Action::Wipe(m) => {
                self.left.wipes -= 1;
                self.wiped |= bit(m);
                self.members[m] = Member::default();
            }
        }
        self.settle(fault);
    }

    fn take(&mut self, engine: u8, step: impl Fn(&Membership, Term) -> Option<Membership>) {
        let leader = &mut self.leaders[at(engine)];
        if let Some(config) = leader.config.then(leader.term, step) {
            leader.config = config;
        }
    }

    /// Those without a place leave the sync set, and are told later.
    fn depart(&mut self, engine: u8) {
        let leader = &mut self.leaders[at(engine)];
        leader.fresh = false;
        for member in 0..MEMBERS {
            let stranger = !leader.config.has(member) && has(leader.promised, member);
            if stranger {
                leader.departing |= bit(member);
                leader.counted &= !bit(member);
            }
        }
    }

    fn vote(&mut self, engine: u8, member: usize) {
        let term = self.leader(engine).term;
        let voter = &mut self.members[member];
        (voter.term, voter.vote, voter.session) = (term, engine, Some(engine));
        let generation = voter.config.generation();
        let leader = &mut self.leaders[at(engine)];
        leader.promised |= bit(member);
        leader.known[member] = generation;
    }

    fn elect(&mut self, term: u8, told_by: usize, voters: Mask, fault: Option<Fault>) {
        self.left.engines -= 1;
        let config = self.told(told_by, fault);
        let engine = u8::try_from(self.leaders.len()).unwrap_or(u8::MAX);
        let members = (0..MEMBERS).filter(|m| has(voters, *m));
        let base = members.clone().max_by_key(|m| self.members[*m].order);
        // Who has a say may also be repaired and start the term.
        let heard = fault == Some(Fault::BlankHeard);
        let whole = |m: usize| self.members[m].order.0 > 0 || heard;
        let settled =
            config.0.is_simple() && members.clone().all(|m| self.members[m].config == config);
        self.leaders.push(Leader {
            term,
            config,
            base: base.map_or(0, |m| self.members[m].content),
            first: members_where(|m| has(voters, m) && whole(m)),
            ..Leader::default()
        });
        for member in members {
            self.vote(engine, member);
        }
        if !settled {
            self.take(engine, Membership::renewed);
        }
    }

    fn spread(&mut self, engine: u8, member: usize, fault: Option<Fault>) {
        if self.target(engine, member, fault).generation() < self.leader(engine).known[member] {
            // What it knows was never decided.
            self.leaders[at(engine)].pending = None;
            self.take(engine, Membership::renewed);
        }
        let target = self.target(engine, member, fault);
        let leader = &mut self.leaders[at(engine)];
        leader.known[member] = leader.known[member].max(target.generation());
        let told = &mut self.members[member];
        if told.config.generation() < target.generation() {
            told.config = target;
        }
        if told.is_retired(member) {
            told.session = None;
            leader.departing &= !bit(member);
        }
    }

    fn content(&self, engine: u8, position: u8) -> Mask {
        let leader = self.leader(engine);
        let upto = leader.log.iter().take(at(position));
        upto.fold(leader.base, |content, entry| match entry {
            Entry::Write(number) => content | bit(at(*number)),
            Entry::Barrier => content,
        })
    }

    fn deliver(&mut self, engine: u8, member: usize) {
        let leader = &mut self.leaders[at(engine)];
        leader.accepted[member] += 1;
        let (term, position) = (leader.term, leader.accepted[member]);
        let content = self.content(engine, position);
        let receiver = &mut self.members[member];
        (receiver.order, receiver.content) = ((term, position), content);
    }

    fn join(&mut self, engine: u8, member: usize) {
        let Some(source) = self.source(engine) else {
            return;
        };
        let leader = &mut self.leaders[at(engine)];
        leader.counted |= bit(member);
        leader.accepted[member] = leader.accepted[source];
        let (term, position) = (leader.term, leader.accepted[source]);
        let content = self.content(engine, position);
        let joined = &mut self.members[member];
        (joined.order, joined.content) = ((term, position), content);
    }

    /// Opens terms and acknowledges writes.
    fn settle(&mut self, fault: Option<Fault>) {
        for engine in 0..self.leaders.len() {
            let number = u8::try_from(engine).unwrap_or(u8::MAX);
            let leader = &mut self.leaders[engine];
            if leader.phase == Phase::Starting && leader.config.decides(leader.counted, fault) {
                (leader.phase, leader.opened) = (Phase::Open, true);
            }
            while leader.phase == Phase::Open && leader.committed < leader.end() {
                let reached = leader.reached(leader.committed + 1);
                if !leader.config.decides(reached, fault) {
                    break;
                }
                leader.committed += 1;
            }
            let committed = leader.committed;
            if self.can_issue(number) {
                self.leaders[engine].seen |= self.leaders[engine].base;
            }
            if committed > 0 {
                self.leaders[engine].seen |= self.content(number, committed);
            }
        }
    }
}
