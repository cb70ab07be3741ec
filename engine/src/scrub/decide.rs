//! What the members say of the same blocks, and which of them is right.

use alloc::vec::Vec;
use trilith_block::limits::MEMBERS_MAX;
use trilith_block::mutant::{self, Mutant};
use trilith_block::{MemberId, MemberSet, Membership};
use trilith_wire::EntryStatus;
use trilith_wire::digest::DIGEST_BYTES;

/// What is to be believed of one unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// All copies are equal.
    Same,
    /// These copies are right, those are not.
    Odd { good: MemberSet, bad: MemberSet },
    /// The copies differ and nobody can say which is right.
    Undecided,
}

/// The answers to one question, by member. Memory is reused.
#[derive(Debug, Default)]
pub(super) struct Answers {
    asked: MemberSet,
    told: MemberSet,
    /// Members that cannot read somewhere in the range.
    unreadable: MemberSet,
    /// Members that do not answer now.
    refused: MemberSet,
    digests: [Vec<u8>; MEMBERS_MAX],
}

impl Answers {
    /// A new question.
    pub(super) fn ask(&mut self, members: MemberSet) {
        self.asked = members;
        self.told = MemberSet::EMPTY;
        self.unreadable = MemberSet::EMPTY;
        self.refused = MemberSet::EMPTY;
    }

    /// An answer, of `units` digests. One that is not asked for is ignored.
    pub(super) fn put(
        &mut self,
        member: MemberId,
        units: usize,
        result: Result<&[u8], EntryStatus>,
    ) {
        let missing = !self
            .told
            .or(self.unreadable)
            .or(self.refused)
            .contains(member);
        if !self.asked.contains(member) || !missing {
            return;
        }
        match result {
            Ok(digests) if digests.len() == units * DIGEST_BYTES => {
                let place = &mut self.digests[member.index()];
                place.clear();
                place.extend_from_slice(digests);
                self.told = self.told.with(member);
            }
            Err(EntryStatus::Io | EntryStatus::Checksum) => {
                self.unreadable = self.unreadable.with(member);
            }
            Ok(_) | Err(_) => self.refused = self.refused.with(member),
        }
    }

    /// Everybody has answered.
    pub(super) fn complete(&self) -> bool {
        let heard = self.told.or(self.unreadable).or(self.refused);
        self.asked.minus(heard).is_empty()
    }

    /// Somebody could not be asked.
    pub(super) fn cut_short(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Somewhere in the range a copy cannot be read.
    pub(super) fn somebody_cannot_read(&self) -> bool {
        !self.unreadable.is_empty()
    }

    /// What a member says of a unit.
    pub(super) fn digest(&self, member: MemberId, unit: usize) -> &[u8] {
        let from = unit * DIGEST_BYTES;
        self.digests[member.index()]
            .get(from..from + DIGEST_BYTES)
            .unwrap_or_default()
    }

    /// The members that say the same as `one` of a unit.
    fn like(&self, one: MemberId, unit: usize) -> MemberSet {
        let wanted = self.digest(one, unit);
        let same = |m: &MemberId| self.digest(*m, unit) == wanted;
        self.told
            .iter()
            .filter(same)
            .fold(MemberSet::EMPTY, MemberSet::with)
    }

    /// C24: the copies that all readable members agree on, or a majority of the voters, are right.
    pub(super) fn verdict(&self, unit: usize, membership: &Membership) -> Verdict {
        let Some(first) = self.told.iter().next() else {
            return Verdict::Undecided;
        };
        let others = self.told.minus(self.like(first, unit));
        if others.is_empty() && self.unreadable.is_empty() {
            return Verdict::Same;
        }
        let groups = self.told.iter().map(|m| self.like(m, unit));
        let good = if others.is_empty() {
            Some(self.told)
        } else if mutant::on(Mutant::ScrubFromMinority) {
            groups.min_by_key(|g| g.count())
        } else {
            groups.into_iter().find(|g| membership.is_majority(*g))
        };
        match good {
            Some(good) => Verdict::Odd {
                good,
                bad: self.asked.minus(good),
            },
            None => Verdict::Undecided,
        }
    }
}
