//! A replica is replaced by a new one while everything else goes on (C20): the operator, who loses or
//! keeps the old one, starts an empty one and asks again until the volume has changed over.

use crate::check::configs::decides;
use crate::cluster::{Cluster, Event};
use crate::config::{Config, EXTRAS_FROM, Replacement};
use crate::network::Host;
use crate::supervisor::Undo;
use crate::world::{MICROS, MILLIS, Nanos, SECONDS};
use trilith_block::{MemberId, MemberSet, Membership};
use trilith_engine::Operator;

fn member(index: usize) -> MemberId {
    MemberId::new(index).expect("few members")
}

/// Number of the newcomer.
fn newcomer(config: &Config) -> MemberId {
    member(config.replicas)
}

/// Who votes in the end.
pub fn voters_after(config: &Config, replacement: &Replacement) -> MemberSet {
    MemberSet::first(config.replicas)
        .without(member(replacement.old))
        .with(newcomer(config))
}

impl Cluster {
    /// Members whose addresses the operator has told the engines.
    pub fn known_members(&self) -> MemberSet {
        let first = MemberSet::first(self.config.replicas);
        if self.supervisor.newcomer {
            first.with(newcomer(&self.config))
        } else {
            first
        }
    }

    /// The operator begins.
    pub fn begin_replacement(&mut self) {
        let Some(replacement) = self.config.replacement else {
            return;
        };
        if replacement.lost {
            self.bury(replacement.old);
        }
        self.supervisor.newcomer = true;
        let host = self.config.host_of(self.config.replicas);
        let delay = self.entropy.below(500 * MILLIS);
        self.schedule_start(host, delay);
    }

    /// The operator looks how far the replacement is, and asks for it if nothing goes on.
    pub fn tend_replacement(&mut self) {
        let Some(replacement) = self.config.replacement else {
            return;
        };
        if !self.supervisor.newcomer || self.replacement_is_over() {
            return;
        }
        let (old, new) = (member(replacement.old), newcomer(&self.config));
        let host = self.supervisor.active;
        let possible = self.hosts[host]
            .node
            .as_mut()
            .and_then(|n| n.engine())
            .is_some_and(|e| e.machine.may_replace(old, new).is_ok());
        if possible {
            let now = self.world.now();
            self.story
                .tell(now, || format!("operator: replace {old} by {new}"));
            self.ask(Operator::Replace { old, new });
        }
    }

    /// A step of a change is short: so that something happens in it, the engine often loses the
    /// newcomer and, in the joint step, another member that stays, while clients are busy.
    pub fn disturb_change(&mut self, engine: Host, config: Membership) {
        let late = self.config.safety <= self.world.now();
        if config.is_simple() || late || self.config.seed < EXTRAS_FROM {
            return;
        }
        let span = self.entropy.skewed(MILLIS, 2 * SECONDS);
        if self.entropy.chance(1, 2) {
            let staying: Vec<MemberId> = config.voters.minus(config.leaving()).iter().collect();
            self.lose_for(engine, newcomer(&self.config), span);
            if config.joint && !staying.is_empty() {
                let which = self.entropy.index(staying.len());
                self.lose_for(engine, staying[which], span);
            }
        }
        for client in 0..self.config.mix.clients {
            for _ in 0..4 {
                let at = self.entropy.skewed(MICROS, span);
                self.world.after(at, Event::Client(client));
            }
        }
    }

    fn lose_for(&mut self, engine: Host, lost: MemberId, span: Nanos) {
        let host = self.config.host_of(lost.index());
        self.network.set_cut(engine, host, true);
        self.network.set_cut(host, engine, true);
        let undo = Undo::Mend(engine, host, true);
        self.world.after(span, Event::Undo(undo));
    }

    /// The volume has changed over, or was never to.
    pub fn replacement_is_over(&self) -> bool {
        self.config.replacement.is_none_or(|r| {
            let config = self.supervisor.membership;
            config.is_simple() && config.voters == voters_after(&self.config, &r)
        })
    }

    /// False for the host of a newcomer that the operator has not brought yet.
    pub fn has_a_place(&self, host: Host) -> bool {
        host < self.config.replicas || self.supervisor.newcomer
    }

    /// Hosts of the replicas that hold data in the end.
    pub fn data_hosts_after(&self) -> Vec<Host> {
        let mut hosts = self.voter_hosts();
        hosts.retain(|host| !self.config.is_witness(*host));
        hosts
    }

    /// Hosts of the replicas that vote in the end.
    pub fn voter_hosts(&self) -> Vec<Host> {
        let voters = match self.config.replacement {
            Some(r) if self.replacement_is_over() => voters_after(&self.config, &r),
            Some(_) | None => MemberSet::first(self.config.replicas),
        };
        voters
            .iter()
            .map(|m| self.config.host_of(m.index()))
            .collect()
    }

    /// Every replica that votes in the end is there.
    pub fn nobody_is_missing(&self) -> bool {
        match self.config.replacement {
            // The newcomer comes for whoever was lost.
            Some(r) => self.healing.gone.iter().all(|host| *host == r.old),
            None => self.healing.gone.is_empty(),
        }
    }

    /// Members whose disk holds one of these values of a block. Those that do not count by their own
    /// durable state are left out, unless a newer engine may have changed that.
    pub fn holders(&self, block: u64, stable: bool, good: &[u64]) -> MemberSet {
        let complete = self.complete_replicas();
        let mut holders = MemberSet::EMPTY;
        for host in self.config.replica_hosts() {
            let Some(disk) = self.hosts[host]
                .disk
                .as_ref()
                .filter(|_| !self.is_wiped(host) && !self.config.is_witness(host))
            else {
                continue;
            };
            let word = disk.first_word(block as usize, stable);
            let value = crate::check::volume::History::value_of(block * 4096, word);
            if value.is_some_and(|v| good.contains(&v)) {
                holders = holders.with(member(self.config.member_of(host)));
            }
        }
        if self.config.witness {
            // Who has to hold it is named by epochs; one that is about to join holds all of it.
            return holders;
        }
        complete.map_or(holders, |set| holders.and(set))
    }

    /// These members can decide. Within one turn an engine may have finished a change after it was
    /// last looked at.
    pub fn is_decided(&self, holders: MemberSet) -> bool {
        let config = self.supervisor.membership;
        let settled = trilith_block::Membership::from(config.next);
        decides(&config, holders) || (config.joint && decides(&settled, holders))
    }
}
