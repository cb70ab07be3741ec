//! States that differ only in the names of the members count once.

use super::state::{Config, Leader, State, id};
use crate::limits::MEMBERS;
use crate::state::{Mask, bit, has};
use trilith_block::MemberSet;

/// Everything that a state says of a member but its name.
type Key = (
    (u8, u8, u64, (u8, u8), Mask, Option<u8>, bool),
    Vec<(u64, u8, u8, [bool; 4])>,
);

impl State {
    /// The same state with its members in order; those that the volume was made with stay first.
    pub(super) fn representative(&self) -> State {
        let mut order: Vec<usize> = (0..MEMBERS).collect();
        order.sort_by_cached_key(|m| (!self.made_with.has(*m), self.key(*m)));
        if order.is_sorted() {
            return self.clone();
        }
        let mut named = self.clone();
        for (new, old) in order.iter().enumerate() {
            named.members[new] = self.members[*old].clone();
        }
        for member in &mut named.members {
            member.config = config(member.config, &order);
        }
        for (leader, old) in named.leaders.iter_mut().zip(&self.leaders) {
            rename(leader, old, &order);
        }
        named.wiped = mask(self.wiped, &order);
        named
    }

    fn key(&self, member: usize) -> Key {
        let m = &self.members[member];
        let of = |leader: &Leader| {
            let sets = [&leader.first, &leader.counted, &leader.departing];
            let flags = sets.map(|set| has(*set, member));
            let place = |c: &Config| {
                let (voters, next) = (c.0.voters, c.0.next);
                u8::from(voters.contains(id(member))) + 2 * u8::from(next.contains(id(member)))
            };
            let places = place(&leader.config) + 4 * leader.pending.as_ref().map_or(0, place);
            let [first, counted, departing] = flags;
            let promised = has(leader.promised, member);
            (
                leader.known[member],
                leader.accepted[member],
                places,
                [first, counted, departing, promised],
            )
        };
        let own = (
            m.term,
            m.vote,
            m.config.generation(),
            m.order,
            m.content,
            m.session,
            has(self.wiped, member),
        );
        (own, self.leaders.iter().map(of).collect())
    }
}

fn rename(leader: &mut Leader, old: &Leader, order: &[usize]) {
    leader.config = config(old.config, order);
    leader.pending = old.pending.map(|c| config(c, order));
    leader.promised = mask(old.promised, order);
    leader.first = mask(old.first, order);
    leader.counted = mask(old.counted, order);
    leader.departing = mask(old.departing, order);
    for (new, old_name) in order.iter().enumerate() {
        leader.known[new] = old.known[*old_name];
        leader.accepted[new] = old.accepted[*old_name];
    }
}

fn mask(old: Mask, order: &[usize]) -> Mask {
    let moved = order.iter().enumerate().filter(|(_, o)| has(old, **o));
    moved.fold(0, |set, (new, _)| set | bit(new))
}

fn config(old: Config, order: &[usize]) -> Config {
    let moved = |set: MemberSet| {
        let theirs = order
            .iter()
            .enumerate()
            .filter(|(_, o)| set.contains(id(**o)));
        theirs.fold(MemberSet::EMPTY, |set, (new, _)| set.with(id(new)))
    };
    let mut config = old.0;
    (config.voters, config.next) = (moved(config.voters), moved(config.next));
    Config(config)
}
