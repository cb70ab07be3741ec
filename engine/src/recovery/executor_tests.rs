//! The executor, step by step: order of phases, failures on the way, buffers.

use super::testing::{ALL, Pool, member, promise, range, set};
use super::*;
use alloc::collections::VecDeque;
use alloc::vec;
use core::time::Duration;
use trilith_block::{BlockRange, Buffers, Idx, MemberSet, Membership, Monotonic};
use trilith_wire::{EntryStatus, SlotStatus};

struct Bench {
    recovery: Recovery,
    pool: Pool,
    out: Vec<RecoveryStep>,
}

impl Bench {
    fn new(promises: &[Promise], chunks_in_flight_max: usize) -> Bench {
        Bench::of(promises, set(&ALL), chunks_in_flight_max)
    }

    /// Members 0 and 1 hold data, member 2 is a witness.
    fn with_witness(promises: &[Promise]) -> Bench {
        let membership = Membership {
            witness: set(&[2]),
            ..set(&ALL).into()
        };
        Bench::of(promises, membership, 64)
    }

    fn of(
        promises: &[Promise],
        membership: impl Into<Membership>,
        chunks_in_flight_max: usize,
    ) -> Bench {
        let plan = plan(promises, membership, &super::testing::policy()).unwrap();
        let config = RecoveryConfig {
            chunks_in_flight_max,
            stall: Duration::from_secs(10),
        };
        let mut bench = Bench {
            recovery: Recovery::new(plan, config),
            pool: Pool::default(),
            out: Vec::new(),
        };
        bench.recovery.start(Monotonic(0), &mut bench.out);
        bench
    }

    fn steps(&mut self) -> Vec<RecoveryStep> {
        core::mem::take(&mut self.out)
    }

    fn event(&mut self, event: RecoveryEvent) -> Vec<RecoveryStep> {
        self.recovery
            .event(Monotonic(5), event, &mut self.pool, &mut self.out);
        self.steps()
    }

    fn reconciled(&mut self, members: &[usize]) -> Vec<RecoveryStep> {
        members
            .iter()
            .flat_map(|m| self.event(RecoveryEvent::ReconcileDone(member(*m))))
            .collect()
    }

    fn data(&mut self, token: u64, blocks: usize) -> Vec<RecoveryStep> {
        let slice = self.pool.filled(&vec![7; blocks]);
        self.event(RecoveryEvent::ReadDone {
            token,
            result: Ok(ReadData::Bytes(slice)),
        })
    }

    fn repaired(&mut self, m: usize, token: u64, status: EntryStatus) -> Vec<RecoveryStep> {
        self.event(RecoveryEvent::RepairDone {
            member: member(m),
            token,
            status,
        })
    }

    /// Answers the reads of `steps` that lie in `here`, and those that follow: `bad` ones with an
    /// error, others with zeroes; repairs are done, and members know what they are told. Returns all
    /// other steps, and the repairs.
    fn refuse(
        &mut self,
        steps: Vec<RecoveryStep>,
        here: impl Fn(BlockRange) -> bool,
        bad: impl Fn(usize, BlockRange) -> bool,
    ) -> Vec<RecoveryStep> {
        let mut waiting = VecDeque::from(steps);
        let mut rest = Vec::new();
        while let Some(step) = waiting.pop_front() {
            let answer = match &step {
                RecoveryStep::Read {
                    member,
                    range,
                    token,
                } if here(*range) => RecoveryEvent::ReadDone {
                    token: *token,
                    result: if bad(member.index(), *range) {
                        Err(EntryStatus::Checksum)
                    } else {
                        Ok(ReadData::Zero)
                    },
                },
                RecoveryStep::Repair { member, token, .. } => RecoveryEvent::RepairDone {
                    member: *member,
                    token: *token,
                    status: EntryStatus::Done,
                },
                RecoveryStep::Reconcile { member, .. } => RecoveryEvent::ReconcileDone(*member),
                _ => {
                    rest.push(step);
                    continue;
                }
            };
            if matches!(step, RecoveryStep::Repair { .. }) {
                rest.push(step);
            }
            waiting.extend(self.event(answer));
        }
        rest
    }

    /// What a driver does with the buffers of steps that it drops.
    fn release(&mut self, steps: &[RecoveryStep]) {
        for step in steps {
            if let RecoveryStep::Repair {
                data: Some(slice), ..
            } = step
            {
                self.pool.release(slice.buf);
            }
        }
    }
}

fn reads(steps: &[RecoveryStep]) -> Vec<(usize, BlockRange, u64)> {
    let of = |s: &RecoveryStep| match s {
        RecoveryStep::Read {
            member,
            range,
            token,
        } => Some((member.index(), *range, *token)),
        _ => None,
    };
    steps.iter().filter_map(of).collect()
}

fn targets(steps: &[RecoveryStep]) -> Vec<usize> {
    let of = |s: &RecoveryStep| match s {
        RecoveryStep::Repair { member, .. } => Some(member.index()),
        _ => None,
    };
    steps.iter().filter_map(of).collect()
}

fn starts(steps: &[RecoveryStep]) -> Vec<usize> {
    let of = |s: &RecoveryStep| match s {
        RecoveryStep::TermStart { member, .. } => Some(member.index()),
        _ => None,
    };
    steps.iter().filter_map(of).collect()
}

/// 0 is base; 1 lacks entry 6 (blocks 0-1); 2 has entry 7 (blocks 4-5) alone.
fn three() -> [Promise; 3] {
    [
        promise(0, (1, 0), &ALL, 6).accepted(6, range(0, 2)),
        promise(1, (1, 0), &ALL, 5),
        promise(2, (1, 0), &ALL, 5).accepted(7, range(4, 2)),
    ]
}

#[test]
fn nothing_is_repaired_before_everyone_touched_remembers_it() {
    let mut bench = Bench::new(&three(), 64);
    let first = bench.steps();
    assert_eq!(first.len(), 3);
    assert!(
        first
            .iter()
            .all(|s| matches!(s, RecoveryStep::Reconcile { loss: 0, .. }))
    );
    assert!(bench.reconciled(&[0, 2]).is_empty());
    // Chunk 0 splits into base, member 2, base; the source itself is no target.
    let got = reads(&bench.reconciled(&[1]));
    let want = [(0, range(0, 4)), (2, range(4, 2)), (0, range(6, 10))];
    assert_eq!(got.iter().map(|r| (r.0, r.1)).collect::<Vec<_>>(), want);
    let first = bench.data(got[0].2, 4);
    assert_eq!(targets(&first), [1, 2]);
    let second = bench.data(got[1].2, 2);
    assert_eq!(targets(&second), [0, 1], "the base gets what it lacks");
    bench.release(&first);
    bench.release(&second);
    assert_eq!(bench.pool.held(), 0);
}

#[test]
fn the_term_starts_when_every_repair_is_done_and_counts_who_answers() {
    let mut bench = Bench::new(&three(), 64);
    bench.steps();
    let got = reads(&bench.reconciled(&[0, 1, 2]));
    for (n, (_, _, token)) in got.iter().enumerate() {
        let zero = RecoveryEvent::ReadDone {
            token: *token,
            result: Ok(ReadData::Zero),
        };
        for m in targets(&bench.event(zero)) {
            let steps = bench.repaired(m, *token, EntryStatus::Done);
            assert!(n == 2 || steps.is_empty());
            bench.out.extend(steps);
        }
    }
    let steps = bench.steps();
    assert_eq!(starts(&steps), ALL);
    assert!(matches!(
        steps[0],
        RecoveryStep::TermStart { start, loss: 0, .. } if start == Idx(8)
    ));
    assert!(
        bench
            .event(RecoveryEvent::TermStartDone(member(2)))
            .is_empty()
    );
    assert!(bench.event(RecoveryEvent::MemberLost(member(0))).is_empty());
    let steps = bench.event(RecoveryEvent::TermStartDone(member(1)));
    let outcome = Outcome {
        iss: set(&ALL),
        counted: set(&[1, 2]),
        start: Idx(8),
        loss: 0,
        lossy: false,
    };
    assert_eq!(steps, [RecoveryStep::Done(outcome)]);
    assert_eq!(bench.recovery.deadline(), None);
}

#[test]
fn equal_members_start_the_term_at_once() {
    let mut bench = Bench::new(
        &[promise(0, (1, 0), &ALL, 5), promise(1, (1, 0), &ALL, 5)],
        64,
    );
    assert_eq!(starts(&bench.steps()), [0, 1]);
}

#[test]
fn a_loss_epoch_is_remembered_by_a_majority_first() {
    // Clean, nothing to repair, but only member 0 knows of loss epoch 3.
    let mut q = [promise(0, (1, 0), &ALL, 5), promise(1, (1, 0), &ALL, 5)];
    q[0].state.loss = 3;
    let mut bench = Bench::new(&q, 64);
    assert_eq!(
        bench.steps(),
        [RecoveryStep::Reconcile {
            member: member(1),
            loss: 3
        }]
    );
    assert!(bench.recovery.need(member(1)).is_empty());
    assert_eq!(starts(&bench.reconciled(&[1])), [0, 1]);
}

#[test]
fn a_loss_epoch_is_remembered_even_where_nothing_can_be_repaired() {
    let mut failed = promise(1, (2, 0), &[0, 2], 5);
    failed.state.flags.failed = true;
    let mut base = promise(0, (3, 0), &[0, 2], 9);
    base.state.loss = 3;
    let mut bench = Bench::new(&[base, failed], 64);
    assert_eq!(
        bench.steps(),
        [RecoveryStep::Reconcile {
            member: member(1),
            loss: 3
        }]
    );
    assert_eq!(starts(&bench.reconciled(&[1])), [0]);
}

#[test]
fn a_lossy_decision_that_no_majority_can_remember_fails() {
    let q: Vec<Promise> = (0..3)
        .map(|m| promise(m, (1, 0), &ALL, 5).tainted(&[]))
        .collect();
    let mut bench = Bench::new(&q, 64);
    bench.steps();
    assert!(bench.reconciled(&[0]).is_empty());
    assert!(bench.event(RecoveryEvent::MemberLost(member(1))).is_empty());
    let steps = bench.event(RecoveryEvent::MemberLost(member(2)));
    assert_eq!(steps, [RecoveryStep::Failed(Failure::TooFew)]);
}

#[test]
fn losing_the_base_or_a_source_ends_it_and_losing_another_does_not() {
    for (lost, ends) in [(0, true), (2, true), (1, false)] {
        let mut bench = Bench::new(&three(), 64);
        bench.steps();
        let got = reads(&bench.reconciled(&[0, 1, 2]));
        let steps = bench.event(RecoveryEvent::MemberLost(member(lost)));
        if ends {
            assert_eq!(
                steps,
                [RecoveryStep::Failed(Failure::MemberLost(member(lost)))]
            );
            // What was on its way comes late and is given back.
            assert!(bench.data(got[0].2, 4).is_empty());
        } else {
            assert!(steps.is_empty());
            let steps = bench.data(got[0].2, 4);
            assert_eq!(targets(&steps), [2]);
            bench.release(&steps);
        }
        assert_eq!(bench.pool.held(), 0);
    }
}

#[test]
fn a_target_that_cannot_write_is_left_out_while_a_majority_remains() {
    let mut bench = Bench::new(&three(), 1);
    bench.steps();
    let got = reads(&bench.reconciled(&[0, 1, 2]));
    assert_eq!(got.len(), 1, "one run in flight");
    let zero = |token| RecoveryEvent::ReadDone {
        token,
        result: Ok(ReadData::Zero),
    };
    assert_eq!(targets(&bench.event(zero(got[0].2))), [1, 2]);
    assert!(bench.repaired(1, got[0].2, EntryStatus::NoSpace).is_empty());
    let next = reads(&bench.repaired(2, got[0].2, EntryStatus::Done));
    assert_eq!(next[0].1, range(4, 2));
    assert_eq!(
        targets(&bench.event(zero(next[0].2))),
        [0],
        "1 is not repaired any more"
    );
    let steps = bench.repaired(0, next[0].2, EntryStatus::Io);
    assert_eq!(steps, [RecoveryStep::Failed(Failure::TooFew)]);
}

/// Simulator seed 40000000005410 (R5, I3).
#[test]
fn a_base_whose_device_refused_a_write_remembers_that_it_is_written_there_again() {
    let bad = |m| promise(m, (1, 0), &ALL, 9).entry(10, range(0, 1), SlotStatus::Failed);
    let mut bench = Bench::new(&[bad(0), bad(1)], 64);
    let base = bench.recovery.plan().base;
    assert!(bench.recovery.need(base).touches(range(0, 1)));
    let steps = bench.steps();
    let told = |m| {
        let loss = bench.recovery.plan().loss;
        steps.contains(&RecoveryStep::Reconcile { member: m, loss })
    };
    assert!(told(member(0)) && told(member(1)), "{steps:?}");
    assert!(reads(&bench.reconciled(&[base.index()])).is_empty());
    let read = reads(&bench.reconciled(&[1 - base.index()]));
    assert_eq!(read.len(), 1);
    let steps = bench.data(read[0].2, 16);
    assert_eq!(targets(&steps), [0, 1]);
    bench.release(&steps);
}

#[test]
fn a_payload_damaged_on_its_way_is_sent_again() {
    let mut bench = Bench::new(&three(), 1);
    bench.steps();
    let got = reads(&bench.reconciled(&[0, 1, 2]));
    let zero = |token| RecoveryEvent::ReadDone {
        token,
        result: Ok(ReadData::Zero),
    };
    bench.event(zero(got[0].2));
    bench.repaired(2, got[0].2, EntryStatus::Done);
    let mut steps = bench.repaired(1, got[0].2, EntryStatus::Checksum);
    for _ in 0..2 {
        let (_, _, token) = reads(&steps)[0];
        bench.event(zero(token));
        steps = (0..3)
            .flat_map(|m| bench.repaired(m, token, EntryStatus::Done))
            .collect();
    }
    let (source, blocks, token) = reads(&steps)[0];
    assert_eq!((source, blocks), (0, range(0, 4)));
    assert_eq!(targets(&bench.event(zero(token))), [1]);
}

#[test]
fn blocks_that_the_base_cannot_read_come_from_a_member_known_to_be_equal_there() {
    // 1 must be repaired in chunk 4, where 2 is as good as the base; chunk 0 is open.
    let q = [
        promise(0, (1, 0), &ALL, 6).accepted(6, range(0, 2)),
        promise(1, (1, 0), &ALL, 5).needs(&[range(64, 16)]),
        promise(2, (1, 0), &ALL, 5),
    ];
    let mut bench = Bench::new(&q, 64);
    bench.steps();
    let got = reads(&bench.reconciled(&[0, 1, 2]));
    assert_eq!(
        got.iter().map(|r| (r.0, r.1)).collect::<Vec<_>>(),
        [(0, range(0, 16)), (0, range(64, 16))]
    );
    let error = |token| RecoveryEvent::ReadDone {
        token,
        result: Err(EntryStatus::Io),
    };
    let again = bench.event(error(got[1].2));
    assert_eq!(
        again,
        [RecoveryStep::Read {
            member: member(2),
            range: range(64, 16),
            token: got[1].2
        }]
    );
    let first = bench.event(error(got[1].2));
    let steps = bench.refuse(first, |blocks| blocks.start.0 >= 64, |_, _| true);
    assert!(targets(&steps).is_empty(), "1 is left out: {steps:?}");
    // Chunk 0: nobody may stand in for the base.
    let first = bench.event(error(got[0].2));
    let steps = bench.refuse(first, |_| true, |_, _| true);
    assert!(
        matches!(
            steps.last(),
            Some(RecoveryStep::Failed(Failure::Unreadable(source, blocks)))
                if *source == member(0) && blocks.count.0 == 1
        ),
        "{steps:?}"
    );
}

/// A write to block 3 has its whole chunk repaired, and 1 has accepted it as well as the base; 2 has
/// only begun it. Each block of the chunk but that one is good at both.
#[test]
fn a_bad_block_beside_one_that_was_being_written_comes_from_another_member() {
    let slot = |member, status| promise(member, (1, 0), &ALL, 5).entry(6, range(3, 1), status);
    for (bad, others) in [(3, vec![1]), (9, vec![1, 2])] {
        let q = [
            slot(0, SlotStatus::Accepted),
            slot(1, SlotStatus::Accepted),
            slot(2, SlotStatus::Submitted),
        ];
        let mut bench = Bench::new(&q, 64);
        bench.steps();
        let first = bench.reconciled(&[0, 1, 2]);
        let steps = bench.refuse(
            first,
            |_| true,
            |source, blocks| {
                let hit = blocks.start.0 <= bad && bad < blocks.end().0;
                hit && !others.contains(&source)
            },
        );
        let mut repaired: Vec<u64> = Vec::new();
        for step in &steps {
            assert!(!matches!(step, RecoveryStep::Failed(_)), "{steps:?}");
            if let RecoveryStep::Repair { member, range, .. } = step
                && member.index() == 2
            {
                repaired.extend(range.start.0..range.end().0);
            }
        }
        repaired.sort_unstable();
        assert_eq!(repaired, (0..16).collect::<Vec<_>>(), "block {bad}");
    }
}

/// What an earlier attempt left behind: 1 and 2 have chunk 4 in `need`, so nobody is known to be equal
/// to the base there. R3 could have taken either as base.
fn left_behind() -> [Promise; 3] {
    let chunk = [range(64, 16)];
    [
        promise(0, (1, 0), &ALL, 5),
        promise(1, (1, 0), &ALL, 5).needs(&chunk),
        promise(2, (1, 0), &ALL, 5).needs(&chunk),
    ]
}

/// C26, seed 4000225.
#[test]
fn a_block_that_the_base_cannot_read_may_have_another_base_and_all_are_told_first() {
    let mut bench = Bench::new(&left_behind(), 64);
    bench.steps();
    let steps = bench.reconciled(&[1, 2]);
    assert_eq!(reads(&steps).len(), 1);
    assert!(bench.recovery.need(member(0)).is_empty());
    let bad = |source: usize, blocks: BlockRange| {
        let hit = blocks.start.0 <= 70 && 70 < blocks.end().0;
        hit && source != 2
    };
    // All that can be answered without the members that have to be told again.
    let mut waiting = VecDeque::from(steps);
    let mut told = Vec::new();
    while let Some(step) = waiting.pop_front() {
        match step {
            RecoveryStep::Reconcile { member, .. } => told.push(member.index()),
            RecoveryStep::Repair {
                member,
                range,
                token,
                ..
            } => {
                assert!(!bad(0, range), "not before all know");
                waiting.extend(bench.repaired(member.index(), token, EntryStatus::Done));
            }
            RecoveryStep::Read {
                member,
                range,
                token,
            } => {
                let result = if bad(member.index(), range) {
                    Err(EntryStatus::Checksum)
                } else {
                    Ok(ReadData::Zero)
                };
                waiting.extend(bench.event(RecoveryEvent::ReadDone { token, result }));
            }
            RecoveryStep::TermStart { .. } | RecoveryStep::Done(_) | RecoveryStep::Failed(_) => {
                panic!("{step:?}")
            }
        }
    }
    assert_eq!(told, [0, 1, 2]);
    for m in ALL {
        assert!(bench.recovery.need(member(m)).touches(range(70, 1)), "{m}");
    }
    assert!(bench.recovery.limbo().touches(range(70, 1)));
    // 1 cannot read it either; 2 can, and the base is repaired like 1.
    let first = bench.reconciled(&[0, 1, 2]);
    let steps = bench.refuse(first, |_| true, bad);
    let healed = |m: usize| {
        steps.iter().any(|step| {
            matches!(step, RecoveryStep::Repair { member: of, range: r, .. }
                if of.index() == m && *r == range(70, 1))
        })
    };
    assert_eq!(ALL.map(healed), [true, true, false]);
    assert_eq!(starts(&steps), ALL);
}

#[test]
fn a_block_that_nobody_can_read_fails_the_recovery() {
    let mut bench = Bench::new(&left_behind(), 64);
    bench.steps();
    let first = bench.reconciled(&[1, 2]);
    let steps = bench.refuse(first, |_| true, |_, blocks| blocks.overlaps(range(70, 1)));
    assert!(
        matches!(
            steps.last(),
            Some(RecoveryStep::Failed(Failure::Unreadable(_, blocks))) if *blocks == range(70, 1)
        ),
        "{steps:?}"
    );
}

#[test]
fn a_bad_block_here_and_another_one_there_leave_a_whole_chunk() {
    let q = [
        promise(0, (1, 0), &ALL, 5),
        promise(1, (1, 0), &ALL, 5).needs(&[range(64, 16)]),
        promise(2, (1, 0), &ALL, 5),
    ];
    let mut bench = Bench::new(&q, 64);
    bench.steps();
    let first = bench.reconciled(&[0, 1, 2]);
    let bad = |source: usize, blocks: BlockRange| {
        let lba = [67, 64 + 9, 64 + 9][source];
        (blocks.start.0..blocks.end().0).contains(&lba)
    };
    // The base has lost block 67, its stand-in block 73.
    let steps = bench.refuse(first, |_| true, |m, blocks| m != 1 && bad(m, blocks));
    let mut repaired: Vec<u64> = Vec::new();
    for step in &steps {
        if let RecoveryStep::Repair { member, range, .. } = step {
            assert_eq!(member.index(), 1);
            repaired.extend(range.start.0..range.end().0);
        }
    }
    repaired.sort_unstable();
    assert_eq!(repaired, (64..80).collect::<Vec<_>>());
}

#[test]
fn a_read_of_the_wrong_length_is_an_error() {
    let mut bench = Bench::new(&three()[..2], 64);
    bench.steps();
    let got = reads(&bench.reconciled(&[0, 1]));
    let first = bench.data(got[0].2, 3);
    let steps = bench.refuse(first, |_| true, |_, _| true);
    assert!(matches!(
        steps.last(),
        Some(RecoveryStep::Failed(Failure::Unreadable(..)))
    ));
    assert_eq!(bench.pool.held(), 0);
}

#[test]
fn who_owes_an_answer_for_too_long_counts_as_lost() {
    let mut bench = Bench::new(&three(), 64);
    bench.steps();
    bench.reconciled(&[0, 2]);
    let deadline = bench.recovery.deadline().unwrap();
    bench
        .recovery
        .settle(Monotonic(deadline.0 - 1), &mut bench.out);
    assert!(bench.out.is_empty());
    bench.recovery.settle(deadline, &mut bench.out);
    let steps = bench.steps();
    assert_eq!(reads(&steps).len(), 3, "it goes on without 1");
    let deadline = bench.recovery.deadline().unwrap();
    bench.recovery.settle(deadline, &mut bench.out);
    assert!(matches!(
        bench.steps()[..],
        [RecoveryStep::Failed(Failure::MemberLost(_))]
    ));
}

#[test]
fn a_member_with_little_room_to_choose_from_opens_on_a_minority() {
    let mut failed = promise(1, (2, 0), &[0, 2], 5);
    failed.state.flags.failed = true;
    let mut bench = Bench::new(&[promise(0, (3, 0), &[0, 2], 9), failed], 64);
    assert_eq!(starts(&bench.steps()), [0]);
    let steps = bench.event(RecoveryEvent::TermStartDone(member(0)));
    let RecoveryStep::Done(outcome) = steps[0] else {
        panic!("{steps:?}")
    };
    assert_eq!(
        (outcome.iss, outcome.counted),
        (set(&[0]), MemberSet::of(member(0)))
    );
}

#[test]
fn answers_nobody_asked_for_change_nothing() {
    let mut bench = Bench::new(&three(), 64);
    bench.steps();
    assert!(bench.repaired(1, 99, EntryStatus::Done).is_empty());
    assert!(
        bench
            .event(RecoveryEvent::TermStartDone(member(1)))
            .is_empty()
    );
    assert!(bench.data(99, 4).is_empty());
    assert_eq!(bench.pool.held(), 0);
    let got = reads(&bench.reconciled(&[0, 1, 2]));
    assert_eq!(got.len(), 3);
    assert!(bench.reconciled(&[0, 1, 2]).is_empty());
    assert!(
        bench.repaired(1, got[0].2, EntryStatus::Done).is_empty(),
        "it is still being read"
    );
}

/// W1, W11: 0 is base; 1 lacks entry 6; the witness knows of a loss epoch.
fn two_and_a_witness() -> [Promise; 3] {
    let mut q = [
        promise(0, (1, 0), &[0, 1], 6).accepted(6, range(0, 2)),
        promise(1, (1, 0), &[0, 1], 5),
        promise(2, (1, 0), &[0, 1], 0),
    ];
    q[2].state.loss = 4;
    q
}

#[test]
fn a_witness_is_told_the_loss_epoch_and_nothing_else() {
    let mut q = two_and_a_witness();
    (q[0].state.loss, q[2].state.loss) = (4, 3);
    let mut bench = Bench::with_witness(&q);
    let told = |m: usize| RecoveryStep::Reconcile {
        member: member(m),
        loss: 4,
    };
    assert_eq!(bench.steps(), [told(1), told(2)]);
    assert!(bench.recovery.need(member(2)).is_empty());
    let got = reads(&bench.reconciled(&[2, 1]));
    assert_eq!(got.len(), 1);
    let zero = RecoveryEvent::ReadDone {
        token: got[0].2,
        result: Ok(ReadData::Zero),
    };
    assert_eq!(targets(&bench.event(zero)), [1]);
    let steps = bench.repaired(1, got[0].2, EntryStatus::Done);
    assert_eq!(starts(&steps), [0, 1], "the witness after all of them (W4)");
}

#[test]
fn a_witness_is_never_read_from() {
    let mut bench = Bench::with_witness(&two_and_a_witness());
    let steps = bench.steps();
    assert_eq!(steps.len(), 2, "{steps:?}");
    let steps = bench.reconciled(&[0, 1]);
    let from_witness =
        |s: &RecoveryStep| matches!(s, RecoveryStep::Read { member: m, .. } if *m == member(2));
    assert!(!steps.iter().any(from_witness));
    // Nowhere to be read: member 1, which lacks it, is left out, and the base goes on alone.
    let rest = bench.refuse(steps, |_| true, |_, _| true);
    assert!(!rest.iter().any(from_witness));
    assert_eq!(starts(&rest), [0]);
}

#[test]
fn one_replica_is_enough_for_a_term_with_a_witness() {
    let mut bench = Bench::with_witness(&two_and_a_witness());
    bench.steps();
    bench.reconciled(&[0, 1]);
    let steps = bench.event(RecoveryEvent::MemberLost(member(1)));
    bench.out.extend(steps);
    let token = 1;
    let zero = RecoveryEvent::ReadDone {
        token,
        result: Ok(ReadData::Zero),
    };
    let steps = bench.event(zero);
    assert_eq!(starts(&steps), [0]);
    // Lost later: the set stays as it was sent (W11).
    let mut bench = Bench::with_witness(&[
        promise(0, (1, 0), &[0, 1], 5),
        promise(1, (1, 0), &[0, 1], 5),
        promise(2, (1, 0), &[0, 1], 0),
    ]);
    assert_eq!(starts(&bench.steps()), [0, 1]);
    assert!(
        bench
            .event(RecoveryEvent::TermStartDone(member(1)))
            .is_empty()
    );
    let steps = bench.event(RecoveryEvent::MemberLost(member(0)));
    let [RecoveryStep::Done(outcome)] = steps[..] else {
        panic!("{steps:?}");
    };
    assert_eq!((outcome.iss, outcome.counted), (set(&[0, 1]), set(&[1])));
}
