//! Live sync epochs of a volume with a witness: what has to accept an entry before it is committed
//! (`docs/protocol.md` 7.1, W2 and W3).

use trilith_block::mutant::{self, Mutant};
use trilith_block::{MemberId, MemberSet, Membership};

/// Epochs that can be live at once (W6). A shrink that would need more waits.
pub(crate) const LIVE_EPOCHS_MAX: usize = 4;

/// An epoch of the term, and every later one that names the same in-sync set: what a commit asks
/// for is the same in all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Epoch {
    n: u32,
    iss: MemberSet,
}

/// The newest epoch that is known to be in force, and all that were issued since.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct LiveEpochs {
    /// By rising number; those beyond `len` mean nothing.
    epochs: [Epoch; LIVE_EPOCHS_MAX],
    len: usize,
    /// The first of them is in force. False only until some epoch of the term is.
    in_force: bool,
}

impl LiveEpochs {
    /// The term starts with epoch 0, which is not in force yet.
    pub(crate) fn open(iss: MemberSet) -> LiveEpochs {
        let mut live = LiveEpochs::default();
        live.push(0, iss);
        live
    }

    fn push(&mut self, n: u32, iss: MemberSet) {
        self.epochs[self.len] = Epoch { n, iss };
        self.len += 1;
    }

    fn live(&self) -> &[Epoch] {
        &self.epochs[..self.len]
    }

    /// One that names `iss` can be issued.
    pub(crate) fn has_room(&self, iss: MemberSet) -> bool {
        self.len < LIVE_EPOCHS_MAX || self.live().last().is_some_and(|e| e.iss == iss)
    }

    /// An epoch has been issued. Ask [`LiveEpochs::has_room`] first.
    pub(crate) fn issued(&mut self, n: u32, iss: MemberSet) {
        if self.live().last().is_none_or(|e| e.iss != iss) {
            self.push(n, iss);
        }
    }

    /// W2: looks at what is durable where, each member's highest epoch of this term. An epoch in
    /// force ends all before it. True when that changed something.
    pub(crate) fn look(
        &mut self,
        membership: &Membership,
        durable: impl Fn(MemberId) -> Option<u32>,
    ) -> bool {
        let holds = |epoch: &Epoch, set: MemberSet| {
            let has = |m: &MemberId| durable(*m).is_some_and(|n| epoch.n <= n);
            set.iter()
                .filter(has)
                .fold(MemberSet::EMPTY, MemberSet::with)
        };
        let in_force = |epoch: &Epoch| {
            holds(epoch, epoch.iss) == epoch.iss
                && (mutant::on(Mutant::InForceByFewer)
                    || membership.is_majority(holds(epoch, membership.electors())))
        };
        let Some(first) = self.live().iter().rposition(in_force) else {
            return false;
        };
        let changed = first > 0 || !self.in_force;
        self.epochs.copy_within(first..self.len, 0);
        self.len -= first;
        self.in_force = true;
        changed
    }

    /// The newest epoch is in force (W12), and no older one asks for more.
    pub(crate) fn newest_in_force(&self) -> bool {
        self.in_force && self.len == 1
    }

    /// The in-sync set of the newest epoch that is known to be in force.
    pub(crate) fn in_force(&self) -> Option<MemberSet> {
        self.live().first().filter(|_| self.in_force).map(|e| e.iss)
    }

    /// All members of every live in-sync set.
    pub(crate) fn needed(&self) -> MemberSet {
        let skipped = if mutant::on(Mutant::CommitsBeforeInForce) {
            self.len.saturating_sub(1)
        } else {
            0
        };
        self.live()[skipped..]
            .iter()
            .fold(MemberSet::EMPTY, |set, e| set.or(e.iss))
    }

    /// W3: what these members accepted, all of which count, is committed.
    pub(crate) fn commits(&self, accepted: MemberSet) -> bool {
        let needed = self.needed();
        self.in_force && !needed.is_empty() && needed.minus(accepted).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D1: usize = 0;
    const D2: usize = 1;
    const W: usize = 2;

    fn set(members: &[usize]) -> MemberSet {
        let member = |m: &usize| MemberId::new(*m).expect("a small number");
        members
            .iter()
            .map(member)
            .fold(MemberSet::EMPTY, MemberSet::with)
    }

    fn membership() -> Membership {
        Membership {
            generation: 1,
            witness: set(&[W]),
            ..set(&[D1, D2, W]).into()
        }
    }

    /// What is durable at D1, D2, W.
    fn look(live: &mut LiveEpochs, durable: [Option<u32>; 3]) -> bool {
        live.look(&membership(), |m| durable[m.index()])
    }

    fn in_force(iss: &[usize]) -> LiveEpochs {
        let mut live = LiveEpochs::open(set(iss));
        assert!(look(&mut live, [Some(0), Some(0), Some(0)]));
        live
    }

    #[test]
    fn before_an_epoch_is_in_force_nothing_commits() {
        let mut live = LiveEpochs::open(set(&[D1]));
        assert!(!live.commits(set(&[D1, D2])));
        assert!(!look(&mut live, [Some(0), None, None]));
        assert!(!live.commits(set(&[D1, D2])));
        assert!(look(&mut live, [Some(0), None, Some(0)]));
        assert!(live.commits(set(&[D1])));
    }

    #[test]
    fn a_majority_without_a_member_of_the_set_is_not_in_force() {
        let mut live = LiveEpochs::open(set(&[D1, D2]));
        assert!(!look(&mut live, [Some(0), None, Some(0)]));
        assert!(!live.newest_in_force());
        assert!(look(&mut live, [Some(0), Some(0), None]));
        assert!(live.newest_in_force());
    }

    #[test]
    fn every_member_of_the_set_has_to_accept() {
        let live = in_force(&[D1, D2]);
        assert!(!live.commits(set(&[D1])));
        assert!(!live.commits(set(&[D1, W])), "the witness holds no data");
        assert!(live.commits(set(&[D1, D2])));
    }

    #[test]
    fn a_shrink_helps_nobody_before_it_is_in_force() {
        let mut live = in_force(&[D1, D2]);
        live.issued(1, set(&[D1]));
        assert!(!look(&mut live, [Some(1), Some(0), Some(0)]));
        assert!(!live.commits(set(&[D1])));
        assert!(!live.newest_in_force());
        assert!(look(&mut live, [Some(1), Some(0), Some(1)]));
        assert!(live.commits(set(&[D1])));
    }

    #[test]
    fn a_grow_asks_for_the_joiner_from_its_issue_on() {
        let mut live = in_force(&[D1]);
        live.issued(1, set(&[D1, D2]));
        assert!(!live.commits(set(&[D1])));
        assert!(live.commits(set(&[D1, D2])));
    }

    #[test]
    fn a_shrink_after_a_grow_that_is_not_in_force_still_asks_for_the_joiner() {
        let mut live = in_force(&[D1]);
        live.issued(1, set(&[D1, D2]));
        live.issued(2, set(&[D1]));
        assert!(!live.commits(set(&[D1])));
        assert!(look(&mut live, [Some(2), None, Some(2)]));
        assert!(live.commits(set(&[D1])));
    }

    #[test]
    fn a_first_set_of_two_of_which_one_died_is_left_by_a_shrink() {
        let mut live = LiveEpochs::open(set(&[D1, D2]));
        live.issued(1, set(&[D1]));
        assert!(!look(&mut live, [Some(1), None, None]));
        assert!(look(&mut live, [Some(1), None, Some(1)]));
        assert!(live.newest_in_force() && live.commits(set(&[D1])));
    }

    #[test]
    fn the_same_set_again_is_no_further_live_epoch() {
        let mut live = in_force(&[D1]);
        for n in 1..20 {
            assert!(live.has_room(set(&[D1])));
            live.issued(n, set(&[D1]));
        }
        assert!(live.newest_in_force() && live.commits(set(&[D1])));
    }

    #[test]
    fn at_most_four_are_live() {
        let mut live = LiveEpochs::open(set(&[D1, D2]));
        live.issued(1, set(&[D1]));
        live.issued(2, set(&[D1, D2]));
        live.issued(3, set(&[D1]));
        assert!(live.has_room(set(&[D1])));
        assert!(!live.has_room(set(&[D1, D2])));
        assert!(look(&mut live, [Some(3), None, Some(3)]));
        assert!(live.has_room(set(&[D1, D2])));
    }

    #[test]
    fn an_older_answer_takes_nothing_back() {
        let mut live = in_force(&[D1, D2]);
        let before = live;
        assert!(!look(&mut live, [None, None, None]));
        assert_eq!(live, before);
    }
}
