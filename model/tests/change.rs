//! C20 holds in every state of the small worlds, and each rule left out is found.

use trilith_model::change::{Fault, Scope, World};

#[test]
fn every_state_of_a_replacement_keeps_every_property() {
    for scope in Scope::small() {
        let report = World { scope, fault: None }.explore();
        assert!(report.exhausted, "{}: {:?}", scope.name, report.broken);
        // A world in which nothing happens would hold too.
        assert!(100 < report.states, "{}: {}", scope.name, report.states);
    }
}

#[test]
fn each_rule_of_a_replacement_left_out_is_found() {
    for (fault, scope) in Fault::all() {
        let world = World {
            scope,
            fault: Some(fault),
        };
        let report = world.explore();
        let found = !report.broken.is_empty();
        assert!(found, "{fault:?} in {}: {:?}", scope.name, report.states);
    }
}
