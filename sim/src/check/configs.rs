//! I18: configurations. A generation means the same everywhere, a replica never goes back to an
//! older one, and what two configurations can decide always has a member in common when one of them
//! follows the other.

use std::collections::BTreeMap;
use trilith_block::{MemberId, MemberSet, Membership};

/// Sets of members that there are.
const SETS: u32 = 1 << trilith_block::limits::MEMBERS_MAX;

/// What was seen of configurations.
#[derive(Debug, Default)]
pub struct Configs {
    /// By generation.
    known: BTreeMap<u64, Membership>,
    /// Durable at each replica's host.
    durable: BTreeMap<usize, Membership>,
    /// Those that an engine went by while it served, by term and generation.
    in_force: BTreeMap<(u64, u64), Membership>,
    /// Changes that came to their end.
    pub settled: u64,
}

/// `set` can decide: written once more, as what is checked may be wrong.
pub fn decides(config: &Membership, set: MemberSet) -> bool {
    let most = |of: MemberSet| of.count() < 2 * set.and(of).count();
    most(config.voters) && (!config.joint || most(config.next))
}

/// Two sets without a common member, one of which decides in `a` and one in `b`.
pub fn disjoint(a: &Membership, b: &Membership) -> Option<(MemberSet, MemberSet)> {
    let all = (0..SETS).map(MemberSet);
    all.filter(|set| decides(a, *set)).find_map(|set| {
        let rest = MemberSet(!set.0 & (SETS - 1));
        decides(b, rest).then_some((set, rest))
    })
}

impl Configs {
    fn know(&mut self, config: Membership) -> Option<String> {
        // A newcomer's own idea of a configuration is none.
        if config.generation == 0 {
            return None;
        }
        let known = self.known.entry(config.generation).or_insert(config);
        (*known != config).then(|| format!("I18: one generation, {known:?} and {config:?}"))
    }

    /// A replica has made a configuration durable. The failure, if it is one.
    pub fn durable(&mut self, host: usize, config: Membership) -> Option<String> {
        if self.durable.get(&host) == Some(&config) {
            return None;
        }
        let before = self.durable.insert(host, config);
        if let Some(before) = before.filter(|b| b.generation > config.generation) {
            return Some(format!(
                "I18: replica {host} went from {before:?} to {config:?}"
            ));
        }
        self.know(config)
    }

    /// Hosts where a configuration is durable, or one that came after it.
    fn holders(&self, generation: u64) -> impl Iterator<Item = usize> {
        let durable = self.durable.iter();
        durable.filter_map(move |(host, c)| (generation <= c.generation).then_some(*host))
    }

    /// An engine serves by a configuration; `members` says who is on which host. The failure, if it
    /// is one.
    pub fn in_force(
        &mut self,
        term: u64,
        config: Membership,
        members: impl Fn(usize) -> MemberId,
    ) -> Option<String> {
        if let Some(why) = self.know(config) {
            return Some(why);
        }
        let place = (term, config.generation);
        let before = self.in_force.range(..place).next_back();
        let before = before.map(|(_, c)| *c);
        self.in_force.insert(place, config);
        let before = before?;
        let ended = config.is_simple() && before.joint;
        self.settled += u64::from(ended);
        let holders = self.holders(before.generation).map(members);
        let holders = holders.fold(MemberSet::EMPTY, MemberSet::with);
        if ended && !decides(&before, holders) {
            return Some(format!(
                "C20: {before:?} is over, and durable only at {holders:?}"
            ));
        }
        let (a, b) = disjoint(&before, &config)?;
        Some(format!(
            "I18: {a:?} decides by {before:?}, {b:?} by {config:?}, which follows"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(generation: u64, voters: u32, next: u32, joint: bool) -> Membership {
        Membership {
            generation,
            voters: MemberSet(voters),
            next: MemberSet(next),
            joint,
            witness: MemberSet::EMPTY,
        }
    }

    fn member(host: usize) -> MemberId {
        MemberId::new(host).expect("few members")
    }

    #[test]
    fn a_step_that_was_left_out_is_noticed() {
        let mut configs = Configs::default();
        assert_eq!(configs.in_force(1, of(1, 7, 0, false), member), None);
        assert_eq!(configs.in_force(1, of(2, 7, 11, false), member), None);
        assert_eq!(configs.in_force(1, of(3, 7, 11, true), member), None);
        for host in [0, 1] {
            assert_eq!(configs.durable(host, of(3, 7, 11, true)), None);
        }
        assert_eq!(configs.in_force(2, of(4, 11, 0, false), member), None);
        assert_eq!(configs.settled, 1);
        let mut configs = Configs::default();
        configs.in_force(1, of(2, 7, 11, false), member);
        assert!(configs.in_force(1, of(4, 11, 0, false), member).is_some());
    }

    #[test]
    fn a_joint_configuration_ends_only_when_both_majorities_have_it() {
        let mut configs = Configs::default();
        assert_eq!(configs.in_force(1, of(3, 7, 11, true), member), None);
        for host in [0, 2] {
            assert_eq!(configs.durable(host, of(3, 7, 11, true)), None);
        }
        assert!(configs.in_force(1, of(4, 11, 0, false), member).is_some());
    }

    #[test]
    fn a_generation_means_one_thing_and_never_falls() {
        let mut configs = Configs::default();
        assert_eq!(configs.durable(0, of(5, 7, 11, false)), None);
        assert!(configs.durable(1, of(5, 7, 13, false)).is_some());
        assert!(configs.durable(0, of(1, 7, 0, false)).is_some());
    }
}
