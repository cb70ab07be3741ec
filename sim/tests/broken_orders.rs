//! The search over the orders of the small world, with rules broken: it finds what it should. In a
//! program of its own, as the broken rule is the whole process's.
#![cfg(feature = "proof")]

use sim::explore::{Bounds, Part, Search};
use trilith_block::{Mutant, mutant};

/// The first failure with a rule broken.
fn found(mutant: Mutant, deviations: u8, crashes: u8) -> Option<String> {
    mutant::choose(Some(mutant));
    let bounds = Bounds {
        deviations,
        crashes,
        cuts: 0,
        witness: false,
    };
    let mut search = Search::new(bounds, Part { number: 0, of: 1 });
    while search.outcome.failures.is_empty() && search.step() {}
    mutant::choose(None);
    let (choices, why) = search.outcome.failures.first()?;
    Some(format!("{choices} {why}"))
}

#[test]
fn broken_rules_are_found_by_an_order_or_a_crash() {
    let cases = [
        (Mutant::AckBeforeMajority, 1, 0, "I4"),
        (Mutant::WindowCutAtCommit, 1, 0, "I13"),
        (Mutant::WatermarkBeforeFlush, 1, 0, "I12"),
        (Mutant::LimboReadable, 0, 1, "I9"),
        (Mutant::TermStartUnflushed, 0, 1, "R7"),
        (Mutant::VoteNotPersisted, 0, 1, "I2"),
    ];
    for (mutant, deviations, crashes, rule) in cases {
        let what = found(mutant, deviations, crashes).unwrap_or_default();
        assert!(what.contains(rule), "{}: {what:?}", mutant.name());
    }
}
