//! The slowest operations since a time that the operator chooses, each with where its time went.
//! Bounded, and without an allocation after the start.

use crate::limits::SLOWEST_MAX;
use crate::ops::Operation;
use alloc::vec::Vec;
use core::time::Duration;
use trilith_block::limits::MEMBERS_MAX;
use trilith_block::{ByteRange, Monotonic, Op};

/// An operation that took long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlowOp {
    /// What was asked for.
    pub op: Op,
    /// It was to be durable.
    pub fua: bool,
    /// Where; empty for a flush.
    pub range: ByteRange,
    /// It succeeded.
    pub ok: bool,
    /// When it was submitted.
    pub submitted: Monotonic,
    /// Submit to a place in the stream. The stages are of the part that was committed last.
    pub admit: Duration,
    /// Place to first send.
    pub queue: Duration,
    /// First send to majority, or to the data of a read.
    pub replicate: Duration,
    /// From there to completion.
    pub reply: Duration,
    /// Submit to completion.
    pub total: Duration,
    /// Submit to the answer of each member, for those that answered before the operation was
    /// decided; for a read the one that it was read from.
    pub answered: [Option<Duration>; MEMBERS_MAX],
}

/// When members answered, in microseconds after a time that the owner knows; 0: not yet.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Answers([u32; MEMBERS_MAX]);

impl Answers {
    pub(crate) fn note(&mut self, member: usize, after: Duration) {
        let us = u32::try_from(after.as_micros()).unwrap_or(u32::MAX);
        self.0[member] = us.max(1);
    }

    /// Those of a part that began `later`. The last one of each member counts.
    pub(crate) fn merge(&mut self, part: &Answers, later: Duration) {
        let later = u32::try_from(later.as_micros()).unwrap_or(u32::MAX);
        for (own, other) in self.0.iter_mut().zip(part.0) {
            if other > 0 {
                *own = (*own).max(other.saturating_add(later));
            }
        }
    }

    fn durations(&self) -> [Option<Duration>; MEMBERS_MAX] {
        self.0
            .map(|us| (us > 0).then(|| Duration::from_micros(u64::from(us))))
    }
}

/// The slowest operations.
#[derive(Debug)]
pub(crate) struct Slowest {
    pub(crate) since: Monotonic,
    list: Vec<SlowOp>,
    /// While the list is full: what is faster than that is of no interest, and where it is.
    floor: Duration,
    at: usize,
}

impl Slowest {
    pub(crate) fn new(since: Monotonic) -> Slowest {
        Slowest {
            since,
            list: Vec::with_capacity(SLOWEST_MAX),
            floor: Duration::ZERO,
            at: 0,
        }
    }

    /// Begins anew.
    pub(crate) fn forget(&mut self, now: Monotonic) {
        self.since = now;
        self.list.clear();
        self.floor = Duration::ZERO;
    }

    /// An operation has ended.
    pub(crate) fn note(&mut self, op: &Operation, ok: bool, now: Monotonic) {
        let total = now.since(op.submitted);
        if total <= self.floor {
            return;
        }
        let times = op.times(now);
        let slow = SlowOp {
            op: op.op,
            fua: op.flags.fua,
            range: op.range,
            ok,
            submitted: op.submitted,
            admit: times.admit,
            queue: times.queue,
            replicate: times.replicate,
            reply: times.reply,
            total,
            answered: op.answers.durations(),
        };
        if self.list.len() < SLOWEST_MAX {
            self.list.push(slow);
        } else if let Some(place) = self.list.get_mut(self.at) {
            *place = slow;
        }
        if self.list.len() == SLOWEST_MAX {
            let all = self.list.iter().enumerate();
            if let Some((at, fastest)) = all.min_by_key(|(_, slow)| slow.total) {
                (self.at, self.floor) = (at, fastest.total);
            }
        }
    }

    /// The slowest first.
    pub(crate) fn sorted(&self) -> Vec<SlowOp> {
        let mut list = self.list.clone();
        list.sort_by_key(|slow| core::cmp::Reverse(slow.total));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::operation;

    #[test]
    fn the_slowest_are_kept_whatever_the_order_they_come_in() {
        let mut rng = crate::rng::Rng::new(&[3; 32]);
        let mut slowest = Slowest::new(Monotonic(0));
        let mut all: Vec<u64> = Vec::new();
        for n in 0..1000 {
            let us = rng.next() % 1_000_000;
            let op = operation(Monotonic(n));
            slowest.note(&op, true, Monotonic(n + us * 1000));
            all.push(us);
        }
        all.sort_unstable_by_key(|us| core::cmp::Reverse(*us));
        let kept: Vec<u64> = slowest
            .sorted()
            .iter()
            .map(|slow| u64::try_from(slow.total.as_micros()).unwrap())
            .collect();
        assert_eq!(kept, all[..SLOWEST_MAX]);
        slowest.forget(Monotonic(9));
        assert_eq!((slowest.sorted().len(), slowest.since), (0, Monotonic(9)));
        slowest.note(&operation(Monotonic(0)), false, Monotonic(1));
        assert!(!slowest.sorted()[0].ok, "after that a fast one counts");
    }

    #[test]
    fn answers_of_parts_add_up_to_the_last_of_each_member() {
        let mut first = Answers::default();
        first.note(0, Duration::from_micros(70));
        first.note(2, Duration::ZERO);
        let mut all = Answers::default();
        all.merge(&first, Duration::from_micros(5));
        let mut second = Answers::default();
        second.note(0, Duration::from_micros(10));
        all.merge(&second, Duration::from_micros(20));
        let us = |n| Some(Duration::from_micros(n));
        let found = all.durations();
        assert_eq!(found[..3], [us(75), None, us(6)]);
    }
}
