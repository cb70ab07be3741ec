//! The plan of a volume of two replicas and a witness: the lines of the table in 7.1, and the
//! histories that broke drafts of its rules. Members 0 and 1 hold data, member 2 is the witness.

use super::testing::{ALL, member, policy, promise, range, set};
use super::*;
use core::time::Duration;
use trilith_block::{Idx, Membership, Term};

const W: usize = 2;
const BOTH: [usize; 2] = [0, 1];

fn with_witness() -> Membership {
    Membership {
        witness: set(&[W]),
        ..set(&ALL).into()
    }
}

fn after(promises: &[Promise], waited: u64) -> Result<Plan, Blocked> {
    let waited = Duration::from_secs(waited);
    plan(promises, with_witness(), &Policy { waited, ..policy() })
}

/// A witness has no stream and so no position.
fn witness(se: (u64, u32), iss: &[usize]) -> Promise {
    promise(W, se, iss, 0)
}

fn no_source(missing: &[usize]) -> Result<Plan, Blocked> {
    Err(Blocked::NoSource {
        missing: set(missing),
    })
}

/// What a plan decides: lossy, base, first in-sync set.
fn outcome(plan: Result<Plan, Blocked>) -> (bool, MemberId, trilith_block::MemberSet) {
    let plan = plan.unwrap();
    (plan.lossy, plan.base, plan.first_iss)
}

#[test]
fn one_that_was_in_sync_and_the_witness_are_clean() {
    let q = [promise(1, (3, 0), &BOTH, 5), witness((3, 0), &BOTH)];
    assert_eq!(outcome(after(&q, 0)), (false, member(1), set(&[1])));
}

#[test]
fn one_that_was_left_behind_waits_whatever_the_policy_says() {
    let q = [promise(1, (3, 0), &BOTH, 5), witness((3, 1), &[0])];
    assert_eq!(after(&q, 0), no_source(&[0]));
    assert_eq!(after(&q, 1_000_000), no_source(&[0]));
    // A whole term of the other one alone.
    let q = [promise(1, (3, 0), &BOTH, 5), witness((4, 0), &[0])];
    assert_eq!(after(&q, 1_000_000), no_source(&[0]));
}

#[test]
fn a_shrink_durable_at_the_dead_one_only_binds_nobody() {
    let q = [promise(1, (3, 0), &BOTH, 5), witness((3, 0), &BOTH)];
    assert_eq!(outcome(after(&q, 0)), (false, member(1), set(&[1])));
    // It comes back before there is a plan: what it says of itself counts.
    let q = [
        promise(0, (3, 1), &[0], 9),
        promise(1, (3, 0), &BOTH, 5),
        witness((3, 0), &BOTH),
    ];
    let (lossy, base, _) = outcome(after(&q, 0));
    assert_eq!((lossy, base), (false, member(0)));
}

#[test]
fn the_one_that_returns_after_a_newer_term_is_no_base() {
    let q = [
        promise(0, (3, 1), &[0], 90).accepted(95, range(0, 4)),
        promise(1, (4, 0), &[1], 5),
        witness((4, 0), &[1]),
    ];
    let plan = after(&q, 0).unwrap();
    assert_eq!(
        (plan.lossy, plan.base, plan.tm),
        (false, member(1), Term(4))
    );
    assert!(plan.overrides.is_empty());
    assert_eq!(plan.start, Idx(96));
}

#[test]
fn both_with_data_decide_without_the_witness() {
    let q = [promise(0, (3, 0), &BOTH, 5), promise(1, (3, 0), &BOTH, 5)];
    assert_eq!(outcome(after(&q, 0)), (false, member(0), set(&BOTH)));
}

#[test]
fn an_older_epoch_of_the_witness_says_nothing() {
    let q = [promise(1, (3, 2), &BOTH, 5), witness((3, 1), &[0])];
    assert_eq!(outcome(after(&q, 0)), (false, member(1), set(&[1])));
}

#[test]
fn power_of_all_is_lossy_with_the_longest_prefix() {
    let tainted = |m: usize, w: u64| promise(m, (3, 0), &BOTH, 9).w(w).tainted(&[]);
    let q = [tainted(0, 5), tainted(1, 7), witness((3, 0), &BOTH)];
    let plan = after(&q, 0).unwrap();
    assert_eq!((plan.lossy, plan.base, plan.loss), (true, member(1), 1));
    // Without the witness at once too; one with data missing is waited for.
    assert!(after(&q[..2], 0).unwrap().lossy);
    let one = [q[0].clone(), q[2].clone()];
    let left = Some(Duration::from_secs(50));
    let missing = set(&[1]);
    assert_eq!(after(&one, 10), Err(Blocked::WaitForMore { missing, left }));
    assert_eq!(outcome(after(&one, 60)), (true, member(0), set(&[0])));
}

#[test]
fn power_of_the_one_that_went_on_alone_is_lossy_with_it() {
    let alone = promise(0, (3, 1), &[0], 9).w(5).tainted(&[]);
    let behind = promise(1, (3, 0), &BOTH, 7);
    let w = witness((3, 1), &[0]);
    let q = [alone.clone(), behind.clone(), w.clone()];
    let (lossy, base, _) = outcome(after(&q, 0));
    assert_eq!((lossy, base), (true, member(0)));
    // An epoch above S may be durable at the missing one (a join): it is waited for.
    let q = [alone, w];
    let missing = set(&[1]);
    let left = Some(Duration::from_secs(60));
    assert_eq!(after(&q, 0), Err(Blocked::WaitForMore { missing, left }));
    assert_eq!(outcome(after(&q, 60)), (true, member(0), set(&[0])));
}

#[test]
fn power_of_one_of_two_is_clean_with_the_other() {
    let lost = promise(0, (3, 1), &BOTH, 9).w(5).tainted(&[]);
    // The tainted one has the higher epoch: the window that is valid comes first (W9).
    let whole = promise(1, (3, 0), &BOTH, 9);
    let q = [lost, whole, witness((3, 0), &BOTH)];
    let (lossy, base, _) = outcome(after(&q, 0));
    assert_eq!((lossy, base), (false, member(1)));
}

#[test]
fn a_shrink_that_never_got_in_force_fences_nobody() {
    // M7's counterpart (W10): all three say so.
    let lost = promise(0, (3, 1), &[0], 9).w(5).tainted(&[]);
    let q = [lost, promise(1, (3, 0), &BOTH, 9), witness((3, 0), &BOTH)];
    let plan = after(&q, 0).unwrap();
    assert_eq!((plan.lossy, plan.base, plan.loss), (false, member(0), 0));
    // With one of them missing the epoch may be in force.
    assert!(after(&q[..2], 0).unwrap().lossy);
}

#[test]
fn an_epoch_that_only_goes_on_with_the_set_in_force_is_no_excuse() {
    // D1 went on alone, which the witness knows. One more epoch of that set (to track D2, or to track
    // it no more) is durable at D1 only when its power goes: what it acknowledged is lost.
    let lost = promise(0, (3, 2), &[0], 9).w(5).tainted(&[]);
    let behind = promise(1, (3, 0), &BOTH, 7);
    let q = [lost, behind, witness((3, 1), &[0])];
    let plan = after(&q, 0).unwrap();
    assert_eq!((plan.lossy, plan.base, plan.loss), (true, member(0), 1));
    // The same with the witness away all along, and D2 told before.
    let lost = promise(0, (3, 3), &[0], 9).w(5).tainted(&[]);
    let told = promise(1, (3, 2), &[0], 7);
    let q = [lost, told, witness((3, 0), &BOTH)];
    let plan = after(&q, 0).unwrap();
    assert_eq!((plan.lossy, plan.base, plan.loss), (true, member(0), 1));
}

#[test]
fn a_shrink_after_a_join_that_never_got_in_force_fences_nobody() {
    // It went on alone before, and D2 had joined since: nothing is committed by D1 alone any more.
    let lost = promise(0, (3, 4), &[0], 9).w(5).tainted(&[]);
    let q = [lost, promise(1, (3, 3), &BOTH, 9), witness((3, 1), &[0])];
    let plan = after(&q, 0).unwrap();
    assert_eq!((plan.lossy, plan.base, plan.loss), (false, member(0), 0));
    // Nor by the start of a term that nobody else has, whatever was said in the one before.
    let lost = promise(0, (4, 0), &[0], 9).w(5).tainted(&[]);
    let q = [lost, promise(1, (3, 0), &BOTH, 9), witness((3, 1), &[0])];
    let plan = after(&q, 0).unwrap();
    assert_eq!((plan.lossy, plan.base, plan.loss), (false, member(0), 0));
}

#[test]
fn a_start_or_a_join_that_only_the_lost_one_has_fences_nobody() {
    // TERMSTART got to D1, not to D2, and D1 lost its power: nothing was committed in that term.
    let start = promise(0, (4, 0), &BOTH, 9).w(9).tainted(&[]);
    let q = [start, promise(1, (3, 0), &BOTH, 9), witness((3, 0), &BOTH)];
    assert_eq!(outcome(after(&q, 0)), (false, member(0), set(&BOTH)));
    // Without the witness nobody knows.
    assert!(after(&q[..2], 0).unwrap().lossy);
    // The SYNCSET by which D2 joins got to D1 only: from its issue on D2 was asked for (W3).
    let join = promise(0, (3, 3), &BOTH, 9).w(9).tainted(&[]);
    let q = [join, promise(1, (3, 2), &[0], 9), witness((3, 1), &[0])];
    assert_eq!(outcome(after(&q, 0)), (false, member(0), set(&BOTH)));
    // Both were in force without a break: D2, void as well, may have had what D1 has lost.
    let healed = promise(0, (3, 1), &BOTH, 9).w(5).tainted(&[]);
    let other = promise(1, (3, 0), &BOTH, 9).w(5).tainted(&[]);
    let q = [healed, other, witness((3, 0), &BOTH)];
    assert!(after(&q, 0).unwrap().lossy);
    // The holder of the newest epoch has no device: what it had is not there.
    let mut failed = promise(0, (3, 3), &BOTH, 9);
    failed.state.flags.failed = true;
    let q = [failed, promise(1, (3, 2), &[0], 9), witness((3, 1), &[0])];
    assert_eq!(after(&q, 1_000_000), no_source(&[]));
}

#[test]
fn a_base_that_failed_is_no_source_however_long_one_waits() {
    let mut failed = promise(0, (3, 1), &[0], 9);
    failed.state.flags.failed = true;
    let q = [failed, promise(1, (3, 0), &BOTH, 9), witness((3, 1), &[0])];
    assert_eq!(after(&q, 1_000_000), no_source(&[]));
}

#[test]
fn one_that_is_left_behind_brings_no_blocks_to_the_overlay() {
    // Members of one term, the second demoted before it was told (W9).
    let q = [
        promise(0, (3, 1), &[0], 9),
        promise(1, (3, 0), &BOTH, 5).accepted(50, range(0, 1)),
        witness((3, 1), &[0]),
    ];
    let plan = after(&q, 0).unwrap();
    assert_eq!(plan.base, member(0));
    assert!(plan.overrides.is_empty());
    assert!(!plan.differing.get(member(1)).is_empty());
}

#[test]
fn the_witness_is_sent_no_map_and_its_loss_epoch_counts() {
    let mut w = witness((3, 0), &BOTH);
    w.state.loss = 4;
    w.dirty.get_mut(member(1)).add_range(range(0, 1));
    let lost = promise(0, (3, 0), &BOTH, 9).w(5).tainted(&[range(0, 8)]);
    let plan = after(&[lost, w], 60).unwrap();
    assert_eq!((plan.lossy, plan.loss), (true, 5));
    assert!(plan.differing.get(member(W)).is_empty());
    assert!(plan.failed.get(member(W)).is_empty());
    assert_eq!(plan.source(trilith_block::Lba(0)), member(0));
}

#[test]
fn the_other_one_is_in_the_first_set_only_with_little_to_repair() {
    let first = |small_bytes: u64| {
        let q = [
            promise(0, (3, 0), &BOTH, 9),
            promise(1, (3, 0), &BOTH, 9).needs(&[range(0, 64)]),
        ];
        let policy = Policy {
            small_bytes,
            ..policy()
        };
        plan(&q, with_witness(), &policy).unwrap().first_iss
    };
    assert_eq!(first(64 << 20), set(&BOTH));
    assert_eq!(first(0), set(&[0]), "never for a majority");
}
