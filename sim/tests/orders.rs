//! The search over the orders of the small world: it ends, finds nothing, and a run is repeated
//! by its choices.

use sim::explore::{Bounds, Part, Search};
use sim::story::Detail;

fn bounds(deviations: u8, crashes: u8) -> Bounds {
    Bounds {
        deviations,
        crashes,
        cuts: 0,
        witness: false,
    }
}

/// All of it in parts, as one process takes all of it.
#[test]
fn a_part_of_the_orders_is_searched_to_its_end() {
    for (bounds, of) in [(bounds(1, 0), 12), (bounds(0, 1), 12)] {
        let mut search = Search::new(bounds, Part { number: 0, of });
        while search.step() {}
        let outcome = search.outcome;
        assert_eq!(outcome.failures, [], "{bounds:?}");
        assert!(outcome.complete && outcome.runs > 5, "{outcome:?}");
        assert!(outcome.states > outcome.runs, "{outcome:?}");
    }
}

#[test]
fn a_run_is_repeated_by_its_choices() {
    let run = |choices| Search::repeat(bounds(2, 1), choices, Detail::Frames).expect("choices");
    let (usual, held) = (run(""), run("14:1"));
    assert_eq!((&usual.failure, &held.failure), (&None, &None));
    assert_ne!(usual.hash, held.hash, "the order is another one");
    assert_eq!(held.hash, run("14:1").hash);
    assert!(Search::repeat(bounds(1, 0), "14", Detail::Off).is_err());
}
