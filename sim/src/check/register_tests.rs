//! The deciders against an oracle that tries every order, on histories that a real register made
//! and on the same histories with one thing changed.

use super::*;
use crate::entropy::Entropy;

/// Tries every order of every subset that keeps all answered operations.
fn oracle(value: Value, left: &[Operation]) -> bool {
    if left.iter().all(|o| o.responded.is_none()) {
        return true;
    }
    let limit = left
        .iter()
        .map(Operation::end)
        .min()
        .unwrap_or(Instant::MAX);
    (0..left.len()).any(|i| {
        let operation = left[i];
        if operation.invoked > limit {
            return false;
        }
        let mut rest = left.to_vec();
        rest.remove(i);
        match operation.kind {
            Kind::Write if operation.expects.is_some_and(|e| e != value) => false,
            Kind::Write => oracle(operation.value, &rest),
            Kind::Read => operation.value == value && oracle(value, &rest),
            Kind::Differs => operation.value != value && oracle(value, &rest),
        }
    })
}

/// A history of a real register: each operation takes effect at one instant within its span.
fn history(entropy: &mut Entropy, unique: bool) -> Vec<Operation> {
    let count = entropy.range(1, 7);
    let mut spans: Vec<(Instant, Instant, Instant, Kind, Value, bool)> = Vec::new();
    for n in 1..=count {
        let invoked = 1 + entropy.below(20) * 10;
        let effect = invoked + 1 + entropy.below(30);
        let responded = effect + 1 + entropy.below(30);
        let kind = if entropy.chance(1, 2) {
            Kind::Write
        } else {
            Kind::Read
        };
        let value = if unique || entropy.chance(1, 2) { n } else { 0 };
        spans.push((
            effect * 16 + n,
            invoked * 16 + n,
            responded * 16 + n,
            kind,
            value,
            false,
        ));
        let last = spans.len() - 1;
        spans[last].5 = kind == Kind::Write && entropy.chance(1, 5);
    }
    spans.sort_unstable_by_key(|s| s.0);
    let mut value = 0;
    let mut found = Vec::new();
    for (_, invoked, responded, kind, written, open) in spans {
        match kind {
            Kind::Write if !open || entropy.chance(1, 2) => value = written,
            Kind::Write | Kind::Read | Kind::Differs => {}
        }
        found.push(Operation {
            kind,
            value: if kind == Kind::Write { written } else { value },
            expects: None,
            invoked,
            responded: (!open).then_some(responded),
        });
    }
    found
}

/// As [`history`], where some of the operations compare first.
fn comparing(entropy: &mut Entropy) -> Vec<Operation> {
    let unique = entropy.chance(1, 2);
    let mut found = history(entropy, unique);
    // By the order of effects, which is the order of the list.
    let mut value = 0;
    for operation in &mut found {
        let certain = operation.responded.is_some();
        match operation.kind {
            Kind::Write if certain && operation.value != 0 && entropy.chance(1, 2) => {
                if entropy.chance(2, 3) {
                    operation.expects = Some(value);
                } else {
                    operation.kind = Kind::Differs;
                    operation.value = value + 100;
                    continue;
                }
            }
            // It may or may not have taken effect: what follows shall not depend on it.
            Kind::Write if !certain => return history(entropy, unique),
            _ => {}
        }
        if operation.kind == Kind::Write {
            value = operation.value;
        } else {
            operation.value = value;
        }
    }
    if entropy.chance(1, 2) {
        // The answer to one of them is lost.
        let last = found.len() - 1;
        if found[last].kind == Kind::Write {
            found[last].responded = None;
        }
    }
    found
}

fn corrupt(entropy: &mut Entropy, history: &mut [Operation]) {
    let values: Vec<Value> = history.iter().map(|o| o.value).chain([0, 99]).collect();
    let reads: Vec<usize> = (0..history.len())
        .filter(|i| history[*i].kind == Kind::Read)
        .collect();
    if !reads.is_empty() {
        history[entropy.pick(&reads)].value = entropy.pick(&values);
    }
}

#[test]
fn zones_agree_with_the_oracle_on_unique_values() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..20_000 {
        let mut entropy = Entropy::from_seed(seed);
        let mut history = history(&mut entropy, true);
        assert_eq!(zones(0, &history), Ok(()), "seed {seed}: {history:?}");
        corrupt(&mut entropy, &mut history);
        let expected = oracle(0, &history);
        let found = zones(0, &history);
        assert_eq!(
            found.is_ok(),
            expected,
            "seed {seed}: {found:?} {history:?}"
        );
        assert_eq!(
            search(0, &history).is_ok(),
            expected,
            "seed {seed}: {history:?}"
        );
        good += u32::from(expected);
        bad += u32::from(!expected);
    }
    assert!(good > 5000 && bad > 2000, "{good} good, {bad} bad");
}

#[test]
fn the_search_agrees_with_the_oracle_when_zeroes_repeat() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..20_000 {
        let mut entropy = Entropy::from_seed(seed);
        let mut history = history(&mut entropy, false);
        assert_eq!(check(0, &history), Ok(()), "seed {seed}: {history:?}");
        corrupt(&mut entropy, &mut history);
        let expected = oracle(0, &history);
        assert_eq!(
            check(0, &history).is_ok(),
            expected,
            "seed {seed}: {history:?}"
        );
        good += u32::from(expected);
        bad += u32::from(!expected);
    }
    assert!(good > 5000 && bad > 1500, "{good} good, {bad} bad");
}

#[test]
fn the_search_agrees_with_the_oracle_when_operations_compare() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..20_000 {
        let mut entropy = Entropy::from_seed(seed);
        let mut history = comparing(&mut entropy);
        assert_eq!(check(0, &history), Ok(()), "seed {seed}: {history:?}");
        match entropy.below(3) {
            0 => corrupt(&mut entropy, &mut history),
            1 => {
                let place = entropy.index(history.len());
                if history[place].kind == Kind::Write {
                    history[place].expects = Some(entropy.below(8));
                }
            }
            _ => {
                let place = entropy.index(history.len());
                if history[place].kind == Kind::Read {
                    history[place].kind = Kind::Differs;
                }
            }
        }
        let expected = oracle(0, &history);
        let found = check(0, &history);
        assert_eq!(found.is_ok(), expected, "seed {seed}: {history:?}");
        good += u32::from(expected);
        bad += u32::from(!expected);
    }
    assert!(good > 4000 && bad > 4000, "{good} good, {bad} bad");
}

#[test]
fn of_two_swaps_that_expect_the_same_one_succeeds() {
    let swap = |value, expects, a, b| Operation {
        expects: Some(expects),
        ..operation(Kind::Write, value, a, b)
    };
    let r = |value, a, b| operation(Kind::Read, value, a, b);
    let differs = |value, a, b| operation(Kind::Differs, value, a, b);
    assert!(check(0, &[swap(1, 0, 1, 4), swap(2, 0, 2, 5)]).is_err());
    assert!(check(0, &[swap(1, 0, 1, 4), swap(2, 1, 2, 5)]).is_ok());
    assert!(check(0, &[swap(1, 0, 1, 4), differs(0, 2, 5), r(1, 6, 7)]).is_ok());
    // Something else was found where nothing else was.
    assert!(check(0, &[swap(1, 0, 3, 4), differs(0, 1, 2)]).is_err());
    // One whose answer was lost may explain it.
    assert!(check(0, &[swap(1, 0, 1, 0), differs(0, 2, 5)]).is_ok());
    // A write in between is seen.
    let write = operation(Kind::Write, 3, 2, 3);
    assert!(check(0, &[swap(1, 0, 1, 4), write, r(1, 5, 6), swap(2, 3, 7, 8)]).is_err());
}

fn operation(kind: Kind, value: Value, invoked: Instant, responded: Instant) -> Operation {
    let responded = (responded > 0).then_some(responded);
    Operation {
        kind,
        value,
        expects: None,
        invoked,
        responded,
    }
}

#[test]
fn known_shapes_are_told_apart() {
    let w = |value, a, b| operation(Kind::Write, value, a, b);
    let r = |value, a, b| operation(Kind::Read, value, a, b);
    // A stale read after a newer one was seen.
    assert!(check(0, &[w(1, 1, 2), w(2, 3, 0), r(2, 4, 5), r(1, 6, 7)]).is_err());
    // An unanswered write that shows up late.
    assert!(check(0, &[w(1, 1, 2), w(2, 3, 0), r(1, 4, 5), r(2, 6, 7)]).is_ok());
    // It cannot go away again.
    assert!(check(0, &[w(2, 3, 0), r(0, 4, 5), r(2, 6, 7), r(0, 8, 9)]).is_err());
    // Nor come twice.
    assert!(
        check(
            0,
            &[w(2, 1, 0), r(2, 2, 3), w(3, 4, 5), r(3, 6, 7), r(2, 8, 9)]
        )
        .is_err()
    );
    // A read before its write was asked for.
    assert!(check(0, &[r(1, 1, 2), w(1, 3, 4)]).is_err());
    // Zeroes again and again.
    assert!(
        check(
            0,
            &[
                w(1, 1, 2),
                w(0, 3, 4),
                r(0, 5, 6),
                w(2, 7, 8),
                w(0, 9, 0),
                r(0, 10, 11)
            ]
        )
        .is_ok()
    );
    assert!(check(0, &[w(1, 1, 2), w(0, 3, 4), r(1, 5, 6)]).is_err());
}

#[test]
fn the_search_agrees_with_the_oracle_when_many_answers_are_lost() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..10_000 {
        let mut entropy = Entropy::from_seed(seed);
        let mut history = if entropy.chance(1, 2) {
            comparing(&mut entropy)
        } else {
            history(&mut entropy, false)
        };
        for operation in history.iter_mut().filter(|o| o.kind == Kind::Write) {
            if entropy.chance(1, 2) {
                operation.responded = None;
            }
        }
        assert_eq!(search(0, &history), Ok(()), "seed {seed}: {history:?}");
        corrupt(&mut entropy, &mut history);
        let expected = oracle(0, &history);
        let found = search(0, &history);
        assert_eq!(found.is_ok(), expected, "seed {seed}: {history:?}");
        good += u32::from(expected);
        bad += u32::from(!expected);
    }
    assert!(good > 4000 && bad > 1000, "{good} good, {bad} bad");
}

/// About eight clients at once at one place, one answer in five lost, for a long time.
fn crowded(entropy: &mut Entropy, count: u64) -> Vec<Operation> {
    let mut value = 0;
    let mut found = Vec::new();
    for n in 1..=count {
        let effect = 10_000 + n * 100;
        let open = entropy.chance(1, 5);
        let done = !open || entropy.chance(1, 2);
        let mut operation = Operation {
            kind: Kind::Write,
            value: if entropy.chance(1, 4) { 0 } else { n },
            expects: None,
            invoked: effect - 1 - entropy.below(400),
            responded: (!open).then_some(effect + 1 + entropy.below(400)),
        };
        match entropy.below(8) {
            0..3 => {}
            3 => operation.expects = Some(value),
            4 if !open => (operation.kind, operation.value) = (Kind::Differs, value + 1),
            _ if open => continue,
            _ => (operation.kind, operation.value) = (Kind::Read, value),
        }
        if operation.kind == Kind::Write && done {
            value = operation.value;
        }
        found.push(operation);
    }
    found
}

#[test]
fn an_order_is_found_and_a_stale_read_noticed_where_many_clients_meet() {
    for seed in 0..100 {
        let mut entropy = Entropy::from_seed(seed);
        let mut history = crowded(&mut entropy, 300);
        assert_eq!(check(0, &history), Ok(()), "seed {seed}");
        let early = history[..100].iter().rfind(|o| o.kind == Kind::Read);
        let Some(stale) = early.map(|o| o.value).filter(|v| *v != 0) else {
            continue;
        };
        let late = history[200..].iter_mut().find(|o| o.kind == Kind::Read);
        late.expect("reads are many").value = stale;
        assert!(check(0, &history).is_err(), "seed {seed}");
    }
}
