//! Who may be believed of a single block, and what another source of one does to a plan.

use super::testing::{ALL, member, policy, promise, range, run, set};
use super::*;
use trilith_block::{Lba, MemberId};
use trilith_wire::SlotStatus;

/// C26 and C30, seen by who may stand in for the base at blocks 0 and 4.
#[test]
fn only_who_could_be_base_and_lacks_nothing_may_take_its_place_for_a_block() {
    let base = || promise(0, (2, 1), &ALL, 9).accepted(9, range(0, 1));
    let third = || promise(2, (2, 1), &ALL, 9);
    let void = |w| promise(1, (2, 1), &ALL, 9).w(w).tainted(&[range(0, 1)]);
    let cases = [
        ("equal", promise(1, (2, 1), &ALL, 9), [true, true]),
        (
            "in need",
            promise(1, (2, 1), &ALL, 9).needs(&[range(0, 16)]),
            [true, true],
        ),
        ("behind", promise(1, (2, 1), &ALL, 8), [false, true]),
        (
            "behind, not there",
            promise(1, (2, 1), &ALL, 7).accepted(9, range(0, 1)),
            [true, true],
        ),
        (
            "torn, as a base may be (C32)",
            promise(1, (2, 1), &ALL, 9).entry(10, range(4, 1), SlotStatus::Submitted),
            [true, true],
        ),
        (
            "an older epoch",
            promise(1, (2, 0), &ALL, 9),
            [false, false],
        ),
        // C30.
        ("tainted", void(9), [true, true]),
        (
            "tainted, its durable prefix is short",
            void(8),
            [false, false],
        ),
        (
            "tainted, and what it has accepted may be gone",
            void(8).accepted(9, range(0, 1)),
            [false, false],
        ),
        (
            "not in the set",
            promise(1, (2, 1), &[0, 2], 9),
            [false, false],
        ),
    ];
    for (what, other, expected) in cases {
        let plan = plan(&[base(), other, third()], set(&ALL), &policy()).unwrap();
        assert_eq!((plan.base, plan.lossy), (member(0), false), "{what}");
        let may = [0, 4].map(|lba| plan.copies.may_be_base_of(member(1), range(lba, 1)));
        assert_eq!(may, expected, "{what}");
    }
    // Lossy: the longest prefix counts, and a valid window is not asked for.
    for (w, expected) in [(5, true), (4, false)] {
        let alone = |m, w| promise(m, (2, 1), &ALL, w).tainted(&[range(0, 1)]);
        let q = [alone(0, 5), alone(1, w), alone(2, 3)];
        let plan = plan(&q, set(&ALL), &policy()).unwrap();
        assert_eq!((plan.base, plan.lossy), (member(0), true));
        assert_eq!(plan.copies.may_be_base_of(member(1), range(0, 1)), expected);
    }
}

#[test]
fn another_source_of_a_block_splits_what_had_one() {
    let q = [
        promise(0, (1, 0), &ALL, 5),
        promise(1, (1, 0), &ALL, 5).accepted(7, range(4, 4)),
        promise(2, (1, 0), &ALL, 5).accepted(7, range(4, 4)),
    ];
    for (lba, source) in [(0, 2), (4, 2), (5, 2), (7, 2), (8, 2), (5, 0)] {
        let mut plan = plan(&q, set(&ALL), &policy()).unwrap();
        let before: Vec<MemberId> = (0..12).map(|at| plan.source(Lba(at))).collect();
        plan.take_from(Lba(lba), member(source));
        for (at, old) in (0..12).zip(before) {
            let expected = if at == lba { member(source) } else { old };
            assert_eq!(plan.source(Lba(at)), expected, "block {at} after {lba}");
        }
        assert!(
            plan.overrides
                .is_sorted_by(|a, b| a.range.end() <= b.range.start)
        );
        assert!(plan.limbo.touches(range(lba, 1)));
        for m in ALL {
            assert!(plan.differing.get(member(m)).touches(range(lba, 1)));
        }
    }
}

/// The base died while it wrote what nobody has accepted: that may have landed there.
#[test]
fn nobody_is_equal_to_a_source_that_has_begun_a_later_entry() {
    for (begun, equal) in [(8, true), (10, false)] {
        let q = [
            promise(0, (1, 0), &ALL, 9).accepted(9, range(0, 1)).entry(
                begun,
                range(0, 1),
                SlotStatus::Submitted,
            ),
            promise(1, (1, 0), &ALL, 8).accepted(9, range(0, 1)),
            promise(2, (1, 0), &ALL, 8),
        ];
        let plan = run(&q);
        assert_eq!(plan.base, member(0));
        let holds = plan.copies.holds(member(1), member(0), range(0, 1));
        assert_eq!(holds, equal, "begun {begun}");
        assert!(plan.copies.may_be_base_of(member(1), range(0, 1)));
    }
}
