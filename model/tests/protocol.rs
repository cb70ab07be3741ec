//! The protocol holds in every state of the small worlds, and each rule left out is found.

use trilith_model::{Scope, Variant, check, find};

#[test]
fn every_state_of_the_small_worlds_keeps_every_property() {
    for scope in Scope::small() {
        let report = check(scope, Variant::Correct);
        assert!(report.exhausted, "{}: {:?}", scope.name, report.broken);
        // A world in which nothing happens would hold too.
        assert!(1_000 < report.states, "{}: {}", scope.name, report.states);
    }
}

#[test]
fn each_rule_left_out_is_found() {
    for (variant, scope, wanted) in Variant::faults() {
        let report = find(scope, variant, &wanted);
        let names: Vec<_> = wanted.iter().map(|v| v.name()).collect();
        let found = report.broken.iter().any(|(name, _)| names.contains(name));
        assert!(found, "{variant:?} in {}: {:?}", scope.name, report.states);
    }
}
