//! One case for each rule of the plan, and the histories that broke drafts of the rules.

use super::testing::{ALL, chunks, member, policy, promise, range, run, set};
use super::*;
use core::time::Duration;
use trilith_block::{Idx, Lba, MemberSet, Membership, Term};
use trilith_wire::SlotStatus;

fn missing(members: &[usize]) -> MemberSet {
    set(members)
}

#[test]
fn a_minority_of_promises_is_no_plan() {
    let got = plan(&[promise(0, (1, 0), &ALL, 5)], set(&ALL), &policy());
    assert_eq!(
        got,
        Err(Blocked::NoMajority {
            missing: missing(&[1, 2])
        })
    );
}

#[test]
fn strangers_and_second_promises_of_a_member_do_not_count() {
    let two = [
        promise(0, (1, 0), &ALL, 5),
        promise(0, (1, 0), &ALL, 9),
        promise(5, (7, 0), &[5], 5),
    ];
    let got = plan(&two, set(&ALL), &policy());
    assert_eq!(
        got,
        Err(Blocked::NoMajority {
            missing: missing(&[1, 2])
        })
    );
}

#[test]
fn equal_members_need_no_repair_and_start_beyond_every_position() {
    let a = promise(0, (1, 0), &ALL, 5);
    let mut b = promise(1, (1, 0), &ALL, 5);
    b.state.max_idx = Idx(17);
    let plan = run(&[a, b]);
    assert!(!plan.lossy);
    assert_eq!((plan.tm, plan.loss), (Term(1), 0));
    assert_eq!(plan.start, Idx(18));
    assert!(plan.overrides.is_empty() && plan.limbo.is_empty());
    assert_eq!(plan.first_iss, set(&[0, 1]));
    assert_eq!(plan.loss_known, set(&[0, 1]));
}

#[test]
fn start_is_beyond_watermark_tidx_and_window_too() {
    for f in [
        (|p: &mut Promise| p.state.w = Idx(40)) as fn(&mut Promise),
        |p| p.state.tidx = Idx(40),
        |p| p.state.upto = Idx(40),
        |p| {
            p.window.push(super::testing::record(
                40,
                range(0, 1),
                SlotStatus::Submitted,
            ))
        },
    ] {
        let mut a = promise(0, (1, 0), &ALL, 5);
        f(&mut a);
        let start = run(&[a, promise(1, (1, 0), &ALL, 5)]).start;
        assert_eq!(start, Idx(41));
    }
}

// ---- R1, R2, M7

#[test]
fn only_members_of_the_newest_term_define_the_content() {
    // Member 2 has more entries, of an older term.
    let plan = run(&[
        promise(0, (2, 0), &[0, 1], 10),
        promise(2, (1, 3), &ALL, 90).accepted(95, range(0, 4)),
    ]);
    assert_eq!(plan.base, member(0));
    assert!(plan.overrides.is_empty());
    assert!(
        plan.limbo.is_empty(),
        "a window of an older term is no open choice"
    );
    assert_eq!(
        plan.differing.get(member(2)),
        &chunks(&[range(0, 4)]),
        "but its ghost goes"
    );
}

#[test]
fn a_told_member_of_the_newest_term_is_no_base_and_not_unknown() {
    let told = promise(2, (2, 4), &[0, 1], 99).tainted(&[]);
    let plan = run(&[promise(1, (2, 3), &[0, 1], 10), told]);
    assert_eq!(plan.base, member(1));
    assert!(!plan.lossy, "unknown: member 0 alone");
}

#[test]
fn a_majority_of_unknown_members_makes_it_lossy() {
    // (tainted, absent) out of three voters, and the verdict.
    for (tainted, absent, lossy) in [
        (0, 0, false),
        (0, 1, false),
        (1, 0, false),
        (1, 1, true),
        (2, 0, true),
        (3, 0, true),
    ] {
        let promises: Vec<Promise> = (0..3 - absent)
            .map(|m| {
                let p = promise(m, (1, 0), &ALL, 5);
                if m < tainted { p.tainted(&[]) } else { p }
            })
            .collect();
        let patient = Policy {
            waited: Duration::from_secs(60),
            ..policy()
        };
        let plan = plan(&promises, set(&ALL), &patient).unwrap();
        assert_eq!(plan.lossy, lossy, "{tainted} tainted, {absent} absent");
        assert_eq!(plan.loss, u32::from(lossy));
    }
}

#[test]
fn a_failed_device_is_unknown_and_never_read() {
    let mut failed = promise(1, (1, 5), &ALL, 50).accepted(60, range(0, 1));
    failed.state.flags.failed = true;
    let plan = run(&[
        promise(0, (1, 0), &ALL, 5),
        failed.clone(),
        promise(2, (1, 0), &ALL, 5),
    ]);
    assert!(!plan.lossy && plan.overrides.is_empty());
    assert_ne!(plan.base, member(1));
    assert!(!plan.first_iss.contains(member(1)));
    // Two unknown, and the flushed writes may be on the failed device or the absent member.
    let patient = Policy {
        waited: Duration::from_secs(60),
        ..policy()
    };
    let got = super::plan(&[promise(0, (1, 0), &ALL, 5), failed], set(&ALL), &patient);
    assert_eq!(
        got,
        Err(Blocked::NoSource {
            missing: missing(&[2])
        })
    );
}

#[test]
fn a_lossy_recovery_waits_for_the_missing_as_the_policy_says() {
    let q = [
        promise(0, (1, 0), &ALL, 5).tainted(&[]),
        promise(1, (1, 0), &ALL, 5),
    ];
    let verdict = |lossy_wait: Option<u64>, waited: u64| {
        let lossy_wait = lossy_wait.map(Duration::from_secs);
        let policy = Policy {
            lossy_wait,
            waited: Duration::from_secs(waited),
            ..policy()
        };
        plan(&q, set(&ALL), &policy)
    };
    let left = Some(Duration::from_secs(50));
    assert_eq!(
        verdict(Some(60), 10),
        Err(Blocked::WaitForMore {
            missing: missing(&[2]),
            left
        })
    );
    let left = None;
    assert_eq!(
        verdict(None, 999),
        Err(Blocked::WaitForMore {
            missing: missing(&[2]),
            left
        })
    );
    assert!(verdict(Some(60), 60).unwrap().lossy);
}

#[test]
fn a_lossy_recovery_of_all_voters_never_waits() {
    let q: Vec<Promise> = (0..3)
        .map(|m| promise(m, (1, 0), &ALL, 5).tainted(&[]))
        .collect();
    let plan = plan(
        &q,
        set(&ALL),
        &Policy {
            lossy_wait: None,
            ..policy()
        },
    )
    .unwrap();
    assert!(plan.lossy);
}

#[test]
fn the_loss_epoch_rises_above_every_one_seen_and_says_who_knows_it() {
    let mut q: Vec<Promise> = (0..3).map(|m| promise(m, (1, 0), &ALL, 5)).collect();
    q[1].state.loss = 4;
    let clean = run(&q);
    assert_eq!(
        (clean.lossy, clean.loss, clean.loss_known),
        (false, 4, set(&[1]))
    );
    let q: Vec<Promise> = q.into_iter().map(|p| p.tainted(&[])).collect();
    let lossy = run(&q);
    assert_eq!(
        (lossy.lossy, lossy.loss, lossy.loss_known),
        (true, 5, MemberSet::EMPTY)
    );
}

#[test]
fn m7_a_tainted_member_demoted_by_the_newest_epoch_is_known() {
    // Member 2 lost power, was demoted by epoch 1, then the engine died. Member 1 is away.
    let q = [
        promise(0, (1, 1), &[0, 1], 20),
        promise(2, (1, 0), &ALL, 10).tainted(&[]),
    ];
    let plan = run(&q);
    assert!(!plan.lossy);
    assert_eq!(plan.base, member(0));
    // Still in the newest in-sync set: unknown.
    let q = [
        promise(0, (1, 1), &[0, 2], 20),
        promise(2, (1, 0), &ALL, 10).tainted(&[]),
    ];
    assert!(matches!(
        super::plan(&q, set(&ALL), &policy()),
        Err(Blocked::WaitForMore { .. })
    ));
}

#[test]
fn m7_the_member_of_the_newest_epoch_is_base_even_when_tainted() {
    // Entry 9 was committed by 0 and 2; 2 lost power and was demoted by epoch 1 (position 10),
    // which only 0 made durable, then 0 lost power too. 1 lags: it has neither.
    let q = [
        promise(0, (1, 1), &[0, 1], 10)
            .w(10)
            .tainted(&[range(0, 16)]),
        promise(1, (1, 0), &ALL, 5),
        promise(2, (1, 0), &ALL, 5).tainted(&[range(0, 16)]),
    ];
    let plan = run(&q);
    assert!(!plan.lossy, "unknown: member 0 alone");
    assert_eq!(
        plan.base,
        member(0),
        "entry 9 is durable there and nowhere else"
    );
    assert!(plan.limbo.touches(range(0, 1)));
    assert!(plan.differing.get(member(1)).touches(range(0, 1)));
}

// ---- R3

#[test]
fn writes_acknowledged_by_different_majorities_are_united() {
    // e6 by 0 and 1, e7 by 1 and 2; 1 is away.
    let q = [
        promise(0, (1, 0), &ALL, 6).accepted(6, range(0, 2)),
        promise(2, (1, 0), &ALL, 5).accepted(7, range(100, 2)),
    ];
    let plan = run(&q);
    assert_eq!(plan.base, member(0));
    assert_eq!(
        plan.overrides,
        [Override {
            range: range(100, 2),
            source: member(2)
        }]
    );
    assert_eq!(plan.limbo, chunks(&[range(0, 2), range(100, 2)]));
    for m in ALL {
        assert_eq!(plan.differing.get(member(m)), &plan.limbo);
    }
}

#[test]
fn the_source_is_chosen_block_by_block() {
    // 0 is base and has 6; 1 has 7 over a part, 2 has 8 over a part of that.
    let q = [
        promise(0, (1, 0), &ALL, 6).accepted(6, range(8, 8)),
        promise(1, (1, 0), &ALL, 5).accepted(7, range(10, 4)),
        promise(2, (1, 0), &ALL, 5).accepted(8, range(12, 1)),
    ];
    let plan = run(&q);
    let of = |start, count, m| Override {
        range: range(start, count),
        source: member(m),
    };
    assert_eq!(plan.overrides, [of(10, 2, 1), of(12, 1, 2), of(13, 1, 1)]);
    let sources: Vec<usize> = (8..16).map(|lba| plan.source(Lba(lba)).index()).collect();
    assert_eq!(sources, [0, 0, 1, 1, 2, 1, 0, 0]);
}

#[test]
fn an_entry_that_the_base_has_is_taken_from_the_base() {
    // Base 0 has cut 6 from its window; 1 still lists it. Base has 9 over what 1 has as 7.
    let q = [
        promise(0, (1, 0), &ALL, 8).accepted(9, range(20, 1)),
        promise(1, (1, 0), &ALL, 6)
            .accepted(6, range(0, 1))
            .accepted(7, range(20, 1)),
    ];
    assert!(run(&q).overrides.is_empty());
}

#[test]
fn only_accepted_slots_of_valid_windows_are_claims() {
    for status in [
        SlotStatus::Submitted,
        SlotStatus::Skipped,
        SlotStatus::Failed,
    ] {
        let q = [
            promise(0, (1, 0), &ALL, 6),
            promise(1, (1, 0), &ALL, 5).entry(7, range(0, 1), status),
        ];
        let plan = run(&q);
        assert!(plan.overrides.is_empty(), "{status:?}");
        assert!(
            plan.limbo.touches(range(0, 1)),
            "{status:?}: it may have reached the device"
        );
    }
    // A member that is being rebuilt is no witness, but its window is an open choice.
    let q = [
        promise(0, (1, 1), &[0, 1], 6),
        promise(2, (1, 1), &[0, 1], 5).accepted(7, range(0, 1)),
    ];
    let plan = run(&q);
    assert!(plan.overrides.is_empty() && plan.limbo.touches(range(0, 1)));
}

#[test]
fn the_base_has_the_newest_epoch_not_the_longest_prefix() {
    let q = [
        promise(0, (1, 1), &[0, 1], 20),
        promise(2, (1, 0), &ALL, 20),
    ];
    assert_eq!(run(&q).base, member(0));
    let q = [
        promise(0, (1, 0), &ALL, 30),
        promise(1, (1, 1), &[0, 1], 20),
    ];
    assert_eq!(run(&q).base, member(1));
}

#[test]
fn a_clean_base_is_untainted_then_sound_then_without_need_then_longest() {
    let long = promise(0, (1, 0), &ALL, 30);
    let q = [
        long.clone().tainted(&[]),
        promise(1, (1, 0), &ALL, 5),
        promise(2, (1, 0), &ALL, 4),
    ];
    assert_eq!(run(&q).base, member(1));
    let q = [
        long.clone().entry(31, range(0, 1), SlotStatus::Failed),
        promise(1, (1, 0), &ALL, 5),
    ];
    assert_eq!(run(&q).base, member(1));
    let q = [
        long.clone().needs(&[range(0, 1)]),
        promise(1, (1, 0), &ALL, 5),
    ];
    assert_eq!(run(&q).base, member(1));
    let q = [promise(1, (1, 0), &ALL, 5), long];
    assert_eq!(run(&q).base, member(0));
}

#[test]
fn a_lossy_base_has_every_flushed_write() {
    // Flush 8 was answered by 0 and 1. All lost power; 2 has a window but a shorter prefix.
    let q = [
        promise(0, (1, 0), &ALL, 8).w(8).tainted(&[range(0, 16)]),
        promise(1, (1, 0), &ALL, 8).w(3).tainted(&[range(64, 16)]),
        promise(2, (1, 0), &ALL, 7).w(3).accepted(9, range(200, 1)),
    ];
    let plan = run(&q);
    assert!(plan.lossy);
    assert_eq!(plan.base, member(0));
    let kept = Override {
        range: range(200, 1),
        source: member(2),
    };
    assert_eq!(
        plan.overrides,
        [kept],
        "what a witness has beyond the base is kept all the same"
    );
    let open = chunks(&[range(0, 16), range(64, 16), range(200, 1)]);
    assert_eq!(plan.limbo, open, "activity of every tainted member");
}

// ---- R4

#[test]
fn each_voter_differs_in_what_is_known_of_it_and_what_it_knows() {
    let mut a = promise(0, (2, 1), &[0, 1], 20).accepted(20, range(0, 1));
    a.dirty.get_mut(member(2)).add_range(range(64, 1));
    a.dirty.get_mut(member(0)).add_range(range(400, 1));
    let mut b = promise(1, (2, 1), &[0, 1], 19).needs(&[range(128, 1)]);
    b.dirty.get_mut(member(2)).add_range(range(192, 1));
    let mut c = promise(2, (1, 0), &ALL, 9).entry(9, range(256, 1), SlotStatus::Submitted);
    c.dirty.get_mut(member(1)).add_range(range(512, 1));
    let plan = run(&[a, b, c]);
    assert_eq!(plan.limbo, chunks(&[range(0, 1)]));
    assert_eq!(
        plan.differing.get(member(0)),
        &plan.limbo,
        "the base defines the content"
    );
    assert_eq!(
        plan.differing.get(member(1)),
        &chunks(&[range(0, 1), range(128, 1)])
    );
    let c = chunks(&[range(0, 1), range(64, 1), range(192, 1), range(256, 1)]);
    assert_eq!(plan.differing.get(member(2)), &c);
}

#[test]
fn a_voter_that_is_away_differs_in_its_dirty_maps_and_limbo() {
    let mut a = promise(0, (2, 1), &[0, 1], 20).accepted(20, range(0, 1));
    a.dirty.get_mut(member(2)).add_range(range(64, 1));
    let plan = run(&[a, promise(1, (2, 1), &[0, 1], 20)]);
    assert_eq!(
        plan.differing.get(member(2)),
        &chunks(&[range(0, 1), range(64, 1)])
    );
}

#[test]
fn the_activity_log_counts_only_without_a_valid_window() {
    let mut a = promise(0, (1, 0), &ALL, 6);
    a.al.add_range(range(0, 1));
    let mut b = promise(1, (1, 0), &ALL, 5);
    b.al.add_range(range(1024, 1));
    let plan_of =
        |a: &Promise, b: &Promise| run(&[a.clone(), b.clone(), promise(2, (1, 0), &ALL, 5)]);
    let plan = plan_of(&a, &b);
    assert!(plan.differing.get(member(1)).is_empty());
    b.state.flags.tainted = true;
    let plan = plan_of(&a, &b);
    assert!(plan.differing.get(member(1)).touches(range(1024, 1)));
    assert!(plan.limbo.is_empty(), "clean, and not the base");
}

#[test]
fn chunks_and_entries_beyond_the_volume_are_ignored() {
    let end = super::testing::CAPACITY_BLOCKS;
    let q = [
        promise(0, (1, 0), &ALL, 6),
        promise(1, (1, 0), &ALL, 5)
            .accepted(9, range(end + 4, 1))
            .needs(&[range(end, 1), range(1 << 30, 9)]),
    ];
    let plan = run(&q);
    assert!(plan.overrides.is_empty() && plan.limbo.is_empty());
    assert!(plan.differing.get(member(1)).is_empty());
    // Within the last extent, only the chunks of the volume are kept.
    let short = Policy {
        capacity_bytes: 40 * 4096,
        ..policy()
    };
    let q = [
        promise(0, (1, 0), &ALL, 6),
        promise(1, (1, 0), &ALL, 5).needs(&[range(0, 1024)]),
    ];
    let plan = super::plan(&q, set(&ALL), &short).unwrap();
    assert_eq!(plan.differing.get(member(1)), &chunks(&[range(0, 40)]));
}

// ---- R6

#[test]
fn the_first_in_sync_set_takes_who_is_quickly_repaired() {
    let small = Policy {
        small_bytes: 65536,
        ..policy()
    };
    let of = |need1: u32, need2: u32| {
        let q = [
            promise(0, (1, 0), &ALL, 9),
            promise(1, (1, 0), &ALL, 5).needs(&[range(0, need1 * 16)]),
            promise(2, (1, 0), &ALL, 5).needs(&[range(0, need2 * 16)]),
        ];
        super::plan(&q, set(&ALL), &small).unwrap().first_iss
    };
    assert_eq!(of(1, 1), set(&[0, 1, 2]));
    assert_eq!(of(2, 1), set(&[0, 2]));
    assert_eq!(of(3, 2), set(&[0, 2]), "a majority, the quicker one");
    assert_eq!(of(2, 3), set(&[0, 1]));
}

#[test]
fn a_member_with_a_failed_slot_comes_last() {
    let bad = |m| promise(m, (1, 0), &ALL, 9).entry(10, range(0, 1), SlotStatus::Failed);
    let good = |m| promise(m, (1, 0), &ALL, 5).needs(&[range(0, 64)]);
    assert_eq!(run(&[bad(0), good(1), good(2)]).first_iss, set(&[1, 2]));
    assert_eq!(
        run(&[bad(0), good(1)]).first_iss,
        set(&[0, 1]),
        "needed for a majority"
    );
}

/// M3, simulator seed 104094: the base itself is named, so that its failed slot gets healed.
#[test]
fn failed_slots_are_to_be_written_again_at_the_base_too() {
    let bad = |m| promise(m, (1, 0), &ALL, 9).entry(10, range(0, 1), SlotStatus::Failed);
    let plan = run(&[bad(0), bad(1)]);
    for m in [0, 1] {
        assert_eq!(plan.failed.get(member(m)), &chunks(&[range(0, 1)]));
    }
    assert!(plan.failed.get(member(2)).is_empty());
}

// ---- histories that broke drafts

#[test]
fn bug_1_a_clean_quorum_whose_only_member_of_the_term_is_tainted() {
    // Term 2 was started on 0 alone; nothing can be committed in it.
    let q = [
        promise(0, (2, 0), &[0, 1], 10)
            .w(10)
            .tainted(&[range(0, 16)]),
        promise(1, (1, 0), &ALL, 30).accepted(31, range(0, 1)),
        promise(2, (1, 0), &ALL, 30),
    ];
    let plan = run(&q);
    assert!(!plan.lossy);
    assert_eq!(plan.base, member(0));
    assert!(plan.overrides.is_empty());
    assert_eq!(plan.limbo, chunks(&[range(0, 16)]));
}

#[test]
fn bug_2_what_a_taint_moved_from_the_activity_log_to_need_is_open_in_a_lossy_recovery() {
    let q: Vec<Promise> = (0..3u32)
        .map(|m| promise(m as usize, (1, 0), &ALL, 5).tainted(&[range(u64::from(m) * 64, 1)]))
        .collect();
    assert_eq!(
        run(&q).limbo,
        chunks(&[range(0, 1), range(64, 1), range(128, 1)])
    );
}

#[test]
fn bug_3_limbo_of_a_term_start_on_a_minority_is_limbo_again() {
    // Member 0 began term 2 with limbo and was never OPENED; 1 and 2 did not begin it.
    let q = [
        promise(0, (2, 0), &[0, 1], 40).needs(&[range(0, 1)]),
        promise(1, (1, 0), &ALL, 30),
    ];
    let plan = run(&q);
    assert_eq!((plan.tm, plan.base), (Term(2), member(0)));
    assert_eq!(plan.limbo, chunks(&[range(0, 1)]));
    // The others alone decide again: the entry that 0 kept may go either way.
    let q = [
        promise(1, (1, 0), &ALL, 30),
        promise(2, (1, 0), &ALL, 30).accepted(31, range(0, 1)),
    ];
    let plan = run(&q);
    assert_eq!(
        plan.overrides,
        [Override {
            range: range(0, 1),
            source: member(2)
        }]
    );
    assert!(plan.limbo.touches(range(0, 1)));
}

#[test]
fn bug_6_a_demoted_member_that_was_not_told_is_still_a_source() {
    // Epoch 1 (without 2) is durable at 1 alone, so D1 does not hold. Entry 9, before it, was
    // committed by 1 and 2, and 1 is away: 2 is the witness.
    let q = [
        promise(0, (1, 0), &ALL, 5),
        promise(2, (1, 0), &ALL, 8).accepted(9, range(0, 1)),
    ];
    let plan = run(&q);
    let kept = plan.base == member(2)
        || plan.overrides.contains(&Override {
            range: range(0, 1),
            source: member(2),
        });
    assert!(kept);
}

#[test]
fn figure_8_ghosts_on_each_replica_end_with_the_newest_term() {
    // Terms 1 to 3 each left an entry on the same block at one replica only.
    let ghosts = |q: &[usize]| {
        let all = [
            promise(0, (1, 0), &ALL, 5).accepted(6, range(0, 1)),
            promise(1, (2, 0), &[1, 2], 50).accepted(51, range(0, 1)),
            promise(2, (3, 0), &[2, 0], 70).accepted(71, range(0, 1)),
        ];
        let q: Vec<Promise> = q.iter().map(|m| all[*m].clone()).collect();
        run(&q)
    };
    for (q, base) in [
        (&[0, 1][..], 1),
        (&[0, 2], 2),
        (&[1, 2], 2),
        (&[0, 1, 2], 2),
    ] {
        let plan = ghosts(q);
        assert_eq!(plan.source(Lba(0)), member(base), "{q:?}");
        assert!(plan.limbo.touches(range(0, 1)), "{q:?}");
        for m in q {
            assert!(
                plan.differing.get(member(*m)).touches(range(0, 1)),
                "{q:?}: {m}"
            );
        }
    }
}

#[test]
fn a_half_done_repair_is_finished_by_another_quorum() {
    // A first attempt made 1 remember chunk 0 and repaired a part of it, then died with 0.
    let q = [
        promise(1, (1, 0), &ALL, 6).needs(&[range(0, 16)]),
        promise(2, (1, 0), &ALL, 5),
    ];
    let plan = run(&q);
    assert_eq!(plan.base, member(2), "without need, though shorter");
    assert!(plan.differing.get(member(1)).touches(range(0, 1)));
    // And when there is no other: its own state is taken, and is limbo.
    let q = [
        promise(1, (1, 0), &ALL, 6).needs(&[range(0, 16)]),
        promise(2, (1, 0), &ALL, 5).needs(&[range(64, 1)]),
    ];
    let plan = run(&q);
    assert_eq!(
        (plan.base, plan.limbo),
        (member(1), chunks(&[range(0, 16)]))
    );
}

/// C20.
#[test]
fn a_joint_configuration_needs_a_majority_of_both_sets_of_voters() {
    let joint = Membership {
        generation: 9,
        voters: set(&[0, 1, 2]),
        next: set(&[0, 1, 3]),
        joint: true,
        witness: MemberSet::EMPTY,
    };
    let learns = Membership {
        joint: false,
        witness: MemberSet::EMPTY,
        ..joint
    };
    let all = [0, 1, 2, 3];
    for (members, of_joint, of_learns) in [
        (&[0, 1][..], true, true),
        (&[0, 2], false, true),
        (&[0, 3], false, false),
        (&[0, 2, 3], true, true),
        (&[2, 3], false, false),
    ] {
        let promises: Vec<Promise> = members
            .iter()
            .map(|m| promise(*m, (1, 0), &all, 5))
            .collect();
        let can = |config| plan(&promises, config, &policy()).is_ok();
        assert_eq!(
            (can(joint), can(learns)),
            (of_joint, of_learns),
            "{members:?}"
        );
    }
    // What was committed has a majority of the old voters, whatever the new one has lost.
    let mut promises = [0, 2, 3].map(|m| promise(m, (1, 0), &all, 5));
    promises[2] = promise(3, (1, 0), &all, 5).tainted(&[]);
    assert!(!plan(&promises, joint, &policy()).unwrap().lossy);
    let two = [0, 2].map(|m| promise(m, (1, 0), &all, 5).tainted(&[]));
    let [a, b] = two;
    let patient = Policy {
        waited: Duration::from_secs(60),
        ..policy()
    };
    let rest = promise(3, (1, 0), &all, 5);
    assert!(plan(&[a, b, rest], joint, &patient).unwrap().lossy);
}

/// C20: what a newcomer lacks is worked out although it has no say.
#[test]
fn a_newcomer_is_told_what_it_lacks_and_decides_nothing() {
    let learns = Membership {
        generation: 9,
        voters: set(&[0, 1, 2]),
        next: set(&[0, 1, 3]),
        joint: false,
        witness: MemberSet::EMPTY,
    };
    let mut a = promise(0, (1, 0), &ALL, 5);
    a.dirty.get_mut(member(3)).add_range(range(0, 1));
    let newest = promise(3, (9, 0), &[3], 99);
    let plan = plan(&[a, promise(1, (1, 0), &ALL, 5), newest], learns, &policy()).unwrap();
    assert_eq!((plan.tm, plan.quorum), (Term(1), set(&[0, 1])));
    assert!(plan.differing.get(member(3)).touches(range(0, 1)));
    assert!(!plan.first_iss.contains(member(3)));
}
