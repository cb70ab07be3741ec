//! Who keeps a volume, and which sets of them decide (`docs/protocol.md` 2.7, C20).

use crate::ids::{MemberId, MemberSet, Term};
use crate::limits::MEMBERS_MAX;
use crate::mutant::{self, Mutant};

/// Bits of a generation below the term in it: changes that one engine can make in one term.
const CHANGES_BITS: u32 = 16;

/// The configuration of a volume. A change replaces one voter: first the newcomer only learns
/// (`next` is set, not `joint`), then both sets decide (`joint`), then the new set alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Membership {
    /// Rises with each change: the term of the engine that made it, then a number within the term.
    /// 0: nothing is known. 1: as the volume was made.
    pub generation: u64,
    /// Who votes and decides.
    pub voters: MemberSet,
    /// Voters that are to be, while a change runs; else empty.
    pub next: MemberSet,
    /// Every decision needs a majority of `voters` and a majority of `next`.
    pub joint: bool,
    /// The voter that holds no data (7.1); empty, or one of `voters`.
    pub witness: MemberSet,
}

impl From<MemberSet> for Membership {
    fn from(voters: MemberSet) -> Membership {
        Membership {
            voters,
            ..Membership::default()
        }
    }
}

impl Membership {
    /// Everyone who has a place in it: voters, those to be, and who only learns.
    pub fn members(&self) -> MemberSet {
        self.voters.or(self.next)
    }

    /// Who holds the data, or is to: everyone but the witness (7.1).
    pub fn data(&self) -> MemberSet {
        self.members().minus(self.witness)
    }

    /// One of the voters holds no data (7.1): committed is what all of the in-sync set accepted.
    pub fn has_witness(&self) -> bool {
        !self.witness.is_empty()
    }

    /// Everyone whose vote or acknowledgement can decide something.
    pub fn electors(&self) -> MemberSet {
        if self.joint {
            self.members()
        } else {
            self.voters
        }
    }

    /// The newcomer of a change.
    pub fn joining(&self) -> MemberSet {
        self.next.minus(self.voters)
    }

    /// Who is replaced by a change.
    pub fn leaving(&self) -> MemberSet {
        if self.next.is_empty() {
            MemberSet::EMPTY
        } else {
            self.voters.minus(self.next)
        }
    }

    /// No change runs.
    pub fn is_simple(&self) -> bool {
        self.next.is_empty()
    }

    fn both_decide(&self) -> bool {
        self.joint && !mutant::on(Mutant::JointIgnored)
    }

    /// True when `set` can decide: it has a majority of the voters and, in a joint configuration,
    /// of the next ones as well.
    pub fn is_majority(&self, set: MemberSet) -> bool {
        let has = |of: MemberSet| of.majority() <= set.and(of).count();
        !self.voters.is_empty() && has(self.voters) && (!self.both_decide() || has(self.next))
    }

    /// The highest value that a deciding set has reached, each member at `reached`.
    pub fn agreed<T: Ord + Copy + Default>(&self, reached: impl Fn(MemberId) -> T) -> T {
        let of = |set: MemberSet| {
            let mut values = [T::default(); MEMBERS_MAX];
            for (slot, member) in values.iter_mut().zip(set.iter()) {
                *slot = reached(member);
            }
            values.sort_unstable_by(|a, b| b.cmp(a));
            values[set.majority().min(MEMBERS_MAX) - 1]
        };
        let voters = of(self.voters);
        if self.both_decide() {
            voters.min(of(self.next))
        } else {
            voters
        }
    }

    /// The sets make sense: some voter, no unknown member, at most one replaced at a time; a witness
    /// is one of three voters, none of which is being replaced (W16).
    pub fn is_valid(&self) -> bool {
        let all = MemberSet::first(MEMBERS_MAX);
        let known = self.members().minus(all).is_empty() && !self.voters.is_empty();
        let change = self.next.count() == self.voters.count() && self.joining().count() == 1;
        let one_of_three = self.witness.count() == 1
            && self.witness.minus(self.voters).is_empty()
            && self.voters.count() == 3
            && self.next.is_empty();
        known
            && (self.witness.is_empty() || one_of_three)
            && if self.next.is_empty() {
                !self.joint
            } else {
                change
            }
    }

    /// The generation that follows when the engine of `term` changes something. `None`: there are
    /// no numbers left in this term.
    pub fn generation_after(&self, term: Term) -> Option<u64> {
        let first = term.0.checked_mul(1 << CHANGES_BITS)?.checked_add(1)?;
        let next = first.max(self.generation.checked_add(1)?);
        (next >> CHANGES_BITS == term.0).then_some(next)
    }

    /// The same sets, spoken for by the engine of `term`.
    pub fn renewed(&self, term: Term) -> Option<Membership> {
        let generation = self.generation_after(term)?;
        Some(Membership {
            generation,
            ..*self
        })
    }

    /// The first step of replacing `old` by `new`: `new` learns. `None` when `old` does not vote,
    /// `new` has a place, a change runs, or no generation is left.
    pub fn replacing(&self, old: MemberId, new: MemberId, term: Term) -> Option<Membership> {
        let possible = self.is_simple() && self.voters.contains(old) && !self.voters.contains(new);
        let next = self.voters.without(old).with(new);
        possible.then_some(Membership {
            generation: self.generation_after(term)?,
            next,
            ..*self
        })
    }

    /// The second step: old and new decide together.
    pub fn joined(&self, term: Term) -> Option<Membership> {
        (!self.next.is_empty() && !self.joint).then_some(Membership {
            generation: self.generation_after(term)?,
            joint: true,
            ..*self
        })
    }

    /// The end of a change: the next voters alone after a joint configuration, else the old ones.
    pub fn settled(&self, term: Term) -> Option<Membership> {
        let voters = if self.joint { self.next } else { self.voters };
        Some(Membership {
            generation: self.generation_after(term)?,
            voters,
            next: MemberSet::EMPTY,
            joint: false,
            witness: self.witness,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(members: &[usize]) -> MemberSet {
        let mut set = MemberSet::EMPTY;
        for member in members {
            set = set.with(MemberId::new(*member).unwrap());
        }
        set
    }

    fn member(index: usize) -> MemberId {
        MemberId::new(index).unwrap()
    }

    fn steps(voters: &[usize], old: usize, new: usize) -> [Membership; 4] {
        let start = Membership {
            generation: 1,
            ..set(voters).into()
        };
        let learns = start.replacing(member(old), member(new), Term(3)).unwrap();
        let joint = learns.joined(Term(3)).unwrap();
        let end = joint.settled(Term(4)).unwrap();
        [start, learns, joint, end]
    }

    #[test]
    fn sets_that_decide_in_one_step_meet_those_of_the_next() {
        for (voters, old, new) in [
            (&[0][..], 0, 1),
            (&[0, 1], 1, 2),
            (&[0, 1, 2], 2, 3),
            (&[0, 1, 2, 3, 4], 0, 5),
        ] {
            let steps = steps(voters, old, new);
            for step in &steps {
                assert!(step.is_valid(), "{step:?}");
            }
            for pair in steps.windows(2) {
                assert!(pair[0].generation < pair[1].generation);
                for a in (0..128).map(MemberSet).filter(|s| pair[0].is_majority(*s)) {
                    for b in (0..128).map(MemberSet).filter(|s| pair[1].is_majority(*s)) {
                        assert!(!a.and(b).is_empty(), "{a:?} and {b:?} of {pair:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_newcomer_decides_nothing_before_the_configuration_is_joint() {
        let [_, learns, joint, end] = steps(&[0, 1, 2], 2, 3);
        assert_eq!((learns.joining(), learns.leaving()), (set(&[3]), set(&[2])));
        assert_eq!(learns.electors(), set(&[0, 1, 2]));
        assert!(learns.is_majority(set(&[0, 2])) && !learns.is_majority(set(&[0, 3])));
        assert!(!joint.is_majority(set(&[0, 2])) && !joint.is_majority(set(&[0, 3])));
        assert!(joint.is_majority(set(&[0, 1])) && joint.is_majority(set(&[0, 2, 3])));
        assert_eq!(end.voters, set(&[0, 1, 3]));
        assert_eq!(learns.settled(Term(3)).unwrap().voters, set(&[0, 1, 2]));
    }

    #[test]
    fn what_is_agreed_is_the_least_of_both_majorities() {
        let [start, _, joint, _] = steps(&[0, 1, 2], 2, 3);
        let reached = |m: MemberId| [7u64, 3, 9, 1][m.index()];
        assert_eq!(start.agreed(reached), 7);
        assert_eq!(joint.agreed(reached), 3);
    }

    #[test]
    fn a_later_term_has_the_higher_generation() {
        let [start, learns, ..] = steps(&[0, 1, 2], 2, 3);
        let first = start.replacing(member(0), member(4), Term(4)).unwrap();
        assert!(learns.joined(Term(3)).unwrap().generation < first.generation);
        assert_eq!(first.generation_after(Term(3)), None, "never backwards");
        assert_eq!(start.generation_after(Term(u64::MAX)), None);
    }

    #[test]
    fn only_one_voter_is_replaced_at_a_time_and_only_by_a_stranger() {
        let [start, learns, ..] = steps(&[0, 1, 2], 2, 3);
        assert_eq!(learns.replacing(member(0), member(4), Term(3)), None);
        assert_eq!(start.replacing(member(3), member(4), Term(3)), None);
        assert_eq!(start.replacing(member(0), member(1), Term(3)), None);
        let two = Membership {
            next: set(&[2, 3, 4]),
            ..start
        };
        let empty = Membership::default();
        let half = Membership {
            joint: true,
            ..start
        };
        assert!(!two.is_valid() && !empty.is_valid() && !half.is_valid());
    }
}
