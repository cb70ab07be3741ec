//! Is the history of one register linearizable? Two deciders: [`zones`] (Gibbons and Korach 1997,
//! O(n log n)) when every value is written at most once, and [`search`] (depth first with memory)
//! when zeroes were written several times or something was compared. What keeps the search small:
//! writes whose value nobody found are all alike, a write that was seen has a latest time although
//! its answer was lost, a value is not left before all who must find it have, and of two ways to
//! the same point the one with fewer optional writes is enough.
//!
//! A write without a response may take effect at any time after its invocation, or never. A read
//! without a response says nothing and is left out by the caller.

use std::collections::{BTreeMap, HashMap, HashSet};

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
/// Stands for every value that nobody ever found, expected or compared with.
const HIDDEN: Value = Value::MAX;

/// Bits, one for each operation.
type Set = Vec<u64>;

fn has(set: &[u64], i: usize) -> bool {
    set[i / 64] & 1 << (i % 64) != 0
}

fn add(set: &mut [u64], i: usize) {
    set[i / 64] |= 1 << (i % 64);
}

fn is_subset(a: &[u64], b: &[u64]) -> bool {
    a.iter().zip(b).all(|(a, b)| a & !b == 0)
}

struct Search {
    /// By invocation.
    operations: Vec<Operation>,
    /// Those that need not take effect at all.
    optional: Set,
    differs: Vec<usize>,
    /// Who finds a value, and who writes it.
    finders: HashMap<Value, Vec<usize>>,
    writers: HashMap<Value, Vec<usize>>,
    /// By what had to be done and was, and by value: the sets of optional ones with which that was
    /// tried. Whoever has used more of them can do nothing that was not tried.
    seen: HashMap<(Set, Value), Vec<Set>>,
    states: usize,
    best: (usize, Option<Operation>),
}

/// The decider for any history: depth first over the orders of writes; a read that fits is taken at
/// once, which never hurts.
///
/// # Errors
/// A witness that there is no order.
pub fn search(initial: Value, operations: &[Operation]) -> Result<(), Violation> {
    let mut search = Search::new(initial, operations);
    match search.explore(initial) {
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

/// A write whose value nobody else can have put there took effect before the first answer that
/// tells of it: its own one may be later, or missing. One that was missing did find what it expects.
fn tighten(initial: Value, operations: &mut [Operation]) {
    let mut written: HashMap<Value, usize> = HashMap::new();
    for operation in operations.iter().filter(|o| o.kind == Kind::Write) {
        *written.entry(operation.value).or_default() += 1;
    }
    let unique = |v: Value| v != initial && v != HIDDEN && written.get(&v) == Some(&1);
    loop {
        let mut told: HashMap<Value, Instant> = HashMap::new();
        for operation in operations.iter() {
            if let Some(found) = operation.found() {
                let first = told.entry(found).or_insert(Instant::MAX);
                *first = operation.end().min(*first);
            }
        }
        let mut moved = false;
        for operation in operations.iter_mut().filter(|o| o.kind == Kind::Write) {
            let told = told.get(&operation.value).copied();
            if let Some(at) = told.filter(|at| *at < operation.end() && unique(operation.value)) {
                operation.responded = Some(at);
                moved = true;
            }
        }
        if !moved {
            return;
        }
    }
}

impl Search {
    fn new(initial: Value, operations: &[Operation]) -> Search {
        let mut visible: HashSet<Value> = HashSet::new();
        for operation in operations {
            visible.extend(operation.expects);
            if operation.kind != Kind::Write {
                visible.insert(operation.value);
            }
        }
        // What found something else may have found any of them.
        let compared = operations.iter().any(|o| o.kind == Kind::Differs);
        let mut kept: Vec<Operation> = operations
            .iter()
            .filter(|o| compared || o.responded.is_some() || visible.contains(&o.value))
            .copied()
            .collect();
        for operation in kept.iter_mut().filter(|o| !visible.contains(&o.value)) {
            operation.value = HIDDEN;
        }
        tighten(initial, &mut kept);
        kept.sort_by_key(|o| o.invoked);
        let mut search = Search {
            optional: vec![0; kept.len().div_ceil(64)],
            differs: Vec::new(),
            finders: HashMap::new(),
            writers: HashMap::new(),
            seen: HashMap::new(),
            states: 0,
            best: (0, kept.first().copied()),
            operations: kept,
        };
        for (i, operation) in search.operations.iter().enumerate() {
            if operation.responded.is_none() {
                add(&mut search.optional, i);
            }
            if let Some(found) = operation.found() {
                search.finders.entry(found).or_default().push(i);
            }
            match operation.kind {
                Kind::Write => search.writers.entry(operation.value).or_default().push(i),
                Kind::Differs => search.differs.push(i),
                Kind::Read => {}
            }
        }
        search
    }

    /// `None`: gave up.
    fn explore(&mut self, initial: Value) -> Option<bool> {
        let mut stack = vec![(vec![0; self.optional.len()], initial)];
        while let Some((mut done, value)) = stack.pop() {
            let limit = self.take_reads(&mut done, value);
            if limit == Instant::MAX {
                return Some(true);
            }
            if self.states > SEARCH_STATES_MAX {
                return None;
            }
            if !self.is_new(&done, value) {
                continue;
            }
            let mut next = self.candidates(&done, value, limit);
            // What must be done first comes first, what need not be done last: that is how it was,
            // most of the time.
            next.sort_by_key(|i| std::cmp::Reverse((self.operations[*i].end(), *i)));
            for i in next {
                let mut after = done.clone();
                add(&mut after, i);
                if self.operations[i].expects.is_none() {
                    self.take_hidden(&mut after, limit);
                }
                stack.push((after, self.operations[i].value));
            }
        }
        Some(false)
    }

    /// False when nothing can come of this state that does not come of one that was seen.
    fn is_new(&mut self, done: &[u64], value: Value) -> bool {
        let pairs = || done.iter().zip(&self.optional);
        let must: Set = pairs().map(|(d, o)| d & !o).collect();
        let used: Set = pairs().map(|(d, o)| d & o).collect();
        let tried = self.seen.entry((must, value)).or_default();
        if tried.iter().any(|t| is_subset(t, &used)) {
            return false;
        }
        tried.retain(|t| !is_subset(&used, t));
        tried.push(used);
        self.states += 1;
        true
    }

    /// Writes that may come next.
    fn candidates(&self, done: &[u64], value: Value, limit: Instant) -> Vec<usize> {
        let mut classes = HashSet::new();
        let mut found = Vec::new();
        // Who has still to find this value, if nobody can write it again.
        let again = self.writers.get(&value).into_iter().flatten();
        let lost = again.copied().all(|i| has(done, i));
        let finders = self.finders.get(&value).into_iter().flatten();
        let mut waiting = finders.filter(|i| lost && !has(done, **i));
        let (first, second) = (waiting.next(), waiting.next());
        for (i, operation) in self.operations.iter().enumerate() {
            if operation.invoked > limit {
                break;
            }
            let fits = operation.expects.is_none_or(|expected| expected == value);
            let leaves = first.is_none_or(|w| *w == i) && second.is_none();
            if has(done, i) || operation.kind != Kind::Write || !fits || !leaves {
                continue;
            }
            // Writes of the same value without a response are interchangeable: take the oldest.
            let class = (operation.value, operation.expects);
            if operation.responded.is_none() && !classes.insert(class) {
                continue;
            }
            found.push(i);
        }
        found
    }

    /// What nobody finds may come just before a write that does not look: that never hurts, unless
    /// somebody has still to find something else.
    fn take_hidden(&self, done: &mut [u64], limit: Instant) {
        if !self.differs.iter().all(|i| has(done, *i)) {
            return;
        }
        for i in self.writers.get(&HIDDEN).into_iter().flatten() {
            let operation = &self.operations[*i];
            let must = operation.responded.is_some() && operation.expects.is_none();
            if must && operation.invoked <= limit {
                add(done, *i);
            }
        }
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
                if !has(done, i) && operation.end() < limit {
                    limit = operation.end();
                    stuck = Some(*operation);
                }
            }
            let mut moved = false;
            for (i, operation) in self.operations.iter().enumerate() {
                if operation.invoked > limit {
                    break;
                }
                let fits = match operation.kind {
                    Kind::Write => false,
                    Kind::Read => operation.value == value,
                    Kind::Differs => operation.value != value,
                };
                if !has(done, i) && fits {
                    add(done, i);
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
