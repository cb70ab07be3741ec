//! Whole clusters: equal runs of equal seeds, seeds that once failed, and fresh ones.

use trilith_sim::run::run_seed;
use trilith_sim::story::Detail;

/// Seeds that failed once. Each is named after what it showed in the commit that fixed it.
const REGRESSIONS: &[u64] = &[];

fn passes(seed: u64) {
    let report = run_seed(seed, Detail::Off);
    assert_eq!(
        report.failure, None,
        "replay: cargo run --profile sim -p trilith-sim -- --seed {seed} --trace"
    );
}

#[test]
fn two_runs_of_a_seed_are_equal_event_by_event() {
    for seed in 0..8 {
        let (first, second) = (run_seed(seed, Detail::Off), run_seed(seed, Detail::Frames));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.events, second.events, "seed {seed}");
    }
}

#[test]
fn seeds_that_failed_once_pass() {
    for seed in REGRESSIONS {
        passes(*seed);
    }
}

#[test]
fn fresh_seeds_pass() {
    for seed in 0..300 {
        passes(seed);
    }
}
