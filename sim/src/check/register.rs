//! Is the history of one register linearizable? Two deciders: [`zones`] (Gibbons and Korach 1997,
//! O(n log n)) when every value is written at most once, and [`search`] (depth first with memory)
//! when zeroes were written several times or something was compared.
//!
//! A write without a response may take effect at any time after its invocation, or never. A read
//! without a response says nothing and is left out by the caller.

use std::collections::{BTreeMap, HashSet};

/// What a register holds: the number of the write that put it there, 0 for zeroes.
pub type Value = u64;
/// A point of the run's total order of invocations and responses.
pub type Instant = u64;

/// What an operation did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It put the value there.
    Write,
    /// It found the value there.
    Read,
    /// It found another value there.
    Differs,
}

/// One operation on a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// What it did.
    pub kind: Kind,
    /// With which value.
    pub value: Value,
    /// A write that took effect only where this value was (COMPARE AND WRITE).
    pub expects: Option<Value>,
    /// When it was asked for.
    pub invoked: Instant,
    /// When it was answered; `None` (writes only): never.
    pub responded: Option<Instant>,
}

impl Operation {
    /// When it was answered; the end of time when it was not.
    pub fn end(&self) -> Instant {
        self.responded.unwrap_or(Instant::MAX)
    }

    /// The value that it certainly found there.
    pub fn found(&self) -> Option<Value> {
        match self.kind {
            Kind::Read => Some(self.value),
            Kind::Write => self.expects.filter(|_| self.responded.is_some()),
            Kind::Differs => None,
        }
    }
}

/// Why a history has no order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Violation {
    /// A value was read that nobody had written by then.
    NeverWritten {
        /// The value.
        value: Value,
        /// When the read ended.
        read: Instant,
    },
    /// Both values must have been there before the other was gone.
    Entangled {
        /// One.
        first: Value,
        /// The other.
        second: Value,
    },
    /// No order exists (found by search).
    NoOrder {
        /// The operation that no order gets past: the one with the earliest response among those
        /// left over in the best attempt.
        stuck: Operation,
    },
    /// The search gave up; the workload must be made smaller.
    TooHard,
}

/// Decides whether `operations` on a register that first holds `initial` have an order.
///
/// # Errors
/// A witness that there is none.
pub fn check(initial: Value, operations: &[Operation]) -> Result<(), Violation> {
    let mut seen = HashSet::new();
    seen.insert(initial);
    let unique = operations
        .iter()
        .filter(|o| o.kind == Kind::Write)
        .all(|o| seen.insert(o.value));
    let plain = |o: &Operation| o.expects.is_none() && o.kind != Kind::Differs;
    if unique && operations.iter().all(plain) {
        zones(initial, operations)
    } else {
        search(initial, operations)
    }
}

#[derive(Clone, Copy, Debug)]
struct Cluster {
    value: Value,
    written: Option<Instant>,
    /// Earliest response.
    finish_min: Instant,
    /// Latest invocation.
    start_max: Instant,
    earliest_read: Instant,
    read: bool,
}

/// The decider for unique values, without comparisons.
///
/// # Errors
/// A witness that there is no order.
pub fn zones(initial: Value, operations: &[Operation]) -> Result<(), Violation> {
    let mut clusters: BTreeMap<Value, Cluster> = BTreeMap::new();
    clusters.insert(
        initial,
        Cluster {
            value: initial,
            written: Some(0),
            finish_min: 0,
            start_max: 0,
            earliest_read: Instant::MAX,
            read: false,
        },
    );
    for operation in operations {
        let cluster = clusters.entry(operation.value).or_insert(Cluster {
            value: operation.value,
            written: None,
            finish_min: Instant::MAX,
            start_max: 0,
            earliest_read: Instant::MAX,
            read: false,
        });
        cluster.finish_min = cluster.finish_min.min(operation.end());
        cluster.start_max = cluster.start_max.max(operation.invoked);
        match operation.kind {
            Kind::Write => cluster.written = Some(operation.invoked),
            Kind::Read => {
                cluster.read = true;
                cluster.earliest_read = cluster.earliest_read.min(operation.end());
            }
            Kind::Differs => {}
        }
    }
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for cluster in clusters.values() {
        let written_in_time = cluster
            .written
            .is_some_and(|at| at <= cluster.earliest_read);
        if cluster.read && !written_in_time {
            let read = cluster.earliest_read;
            return Err(Violation::NeverWritten {
                value: cluster.value,
                read,
            });
        }
        if cluster.finish_min == Instant::MAX {
            continue; // No response and never read: it may as well not have happened.
        }
        if cluster.finish_min < cluster.start_max {
            forward.push(*cluster);
        } else {
            backward.push(*cluster);
        }
    }
    forward.sort_by_key(|c| c.finish_min);
    for pair in forward.windows(2) {
        if pair[1].finish_min < pair[0].start_max {
            return Err(Violation::Entangled {
                first: pair[0].value,
                second: pair[1].value,
            });
        }
    }
    for inner in &backward {
        // Backward zone: [start_max, finish_min]. Only the last forward zone that begins before it
        // can hold it, as forward zones do not overlap.
        let at = forward.partition_point(|f| f.finish_min < inner.start_max);
        if let Some(outer) = at.checked_sub(1).map(|i| forward[i])
            && inner.finish_min < outer.start_max
        {
            return Err(Violation::Entangled {
                first: outer.value,
                second: inner.value,
            });
        }
    }
    Ok(())
}

const SEARCH_STATES_MAX: usize = 200_000;

struct Search<'a> {
    operations: &'a [Operation],
    seen: HashSet<(Vec<u64>, Value)>,
    best: (usize, Option<Operation>),
}

/// The decider for any history: depth first over the orders of writes; a read that fits is taken at
/// once, which never hurts.
///
/// # Errors
/// A witness that there is no order.
pub fn search(initial: Value, operations: &[Operation]) -> Result<(), Violation> {
    let read: HashSet<Value> = operations
        .iter()
        .filter(|o| o.kind == Kind::Read || o.expects.is_some())
        .map(|o| o.expects.unwrap_or(o.value))
        .collect();
    // What found something else may have found any of them.
    let compared = operations.iter().any(|o| o.kind == Kind::Differs);
    let mut kept: Vec<Operation> = operations
        .iter()
        .filter(|o| compared || o.responded.is_some() || read.contains(&o.value))
        .copied()
        .collect();
    kept.sort_by_key(|o| o.invoked);
    let mut search = Search {
        operations: &kept,
        seen: HashSet::new(),
        best: (0, kept.first().copied()),
    };
    let done = vec![0u64; kept.len().div_ceil(64)];
    match search.explore(done, initial) {
        Some(true) => Ok(()),
        Some(false) => {
            let stuck = search.best.1.unwrap_or(Operation {
                kind: Kind::Read,
                value: initial,
                expects: None,
                invoked: 0,
                responded: None,
            });
            Err(Violation::NoOrder { stuck })
        }
        None => Err(Violation::TooHard),
    }
}

impl Search<'_> {
    /// `None`: gave up.
    fn explore(&mut self, done: Vec<u64>, value: Value) -> Option<bool> {
        let mut stack = vec![(done, value)];
        while let Some((mut done, value)) = stack.pop() {
            let limit = self.take_reads(&mut done, value);
            if limit == Instant::MAX {
                return Some(true);
            }
            if self.seen.len() > SEARCH_STATES_MAX {
                return None;
            }
            if !self.seen.insert((done.clone(), value)) {
                continue;
            }
            let mut open_values = HashSet::new();
            for (i, operation) in self.operations.iter().enumerate() {
                if operation.invoked > limit {
                    break;
                }
                let taken = done[i / 64] & 1 << (i % 64) != 0;
                if taken || operation.kind != Kind::Write {
                    continue;
                }
                if operation.expects.is_some_and(|expected| expected != value) {
                    continue;
                }
                // Writes of the same value without a response are interchangeable: take the oldest.
                if operation.responded.is_none() && !open_values.insert(operation.value) {
                    continue;
                }
                let mut next = done.clone();
                next[i / 64] |= 1 << (i % 64);
                stack.push((next, operation.value));
            }
        }
        Some(false)
    }

    /// Takes every read that can come now and finds `value`. Returns the earliest response among
    /// the operations that are left: nothing invoked later can come before it.
    fn take_reads(&mut self, done: &mut [u64], value: Value) -> Instant {
        loop {
            let mut limit = Instant::MAX;
            let mut stuck = None;
            for (i, operation) in self.operations.iter().enumerate() {
                if operation.invoked > limit {
                    break;
                }
                if done[i / 64] & 1 << (i % 64) == 0 && operation.end() < limit {
                    limit = operation.end();
                    stuck = Some(*operation);
                }
            }
            let mut moved = false;
            for (i, operation) in self.operations.iter().enumerate() {
                if operation.invoked > limit {
                    break;
                }
                let open = done[i / 64] & 1 << (i % 64) == 0;
                let fits = match operation.kind {
                    Kind::Write => false,
                    Kind::Read => operation.value == value,
                    Kind::Differs => operation.value != value,
                };
                if open && fits {
                    done[i / 64] |= 1 << (i % 64);
                    moved = true;
                }
            }
            if !moved {
                let count = done.iter().map(|w| w.count_ones() as usize).sum();
                if count >= self.best.0 {
                    self.best = (count, stuck);
                }
                return limit;
            }
        }
    }
}

#[cfg(test)]
#[path = "register_tests.rs"]
mod tests;
