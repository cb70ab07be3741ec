//! `cargo ci mutants`: breaks one rule after the other (block/src/mutant.rs) and demands that each
//! is noticed: by the simulator, or by the named tests of a crate where a whole cluster cannot show
//! it.

use crate::run;
use anyhow::{Context, Result, bail};
use std::process::Command;
use std::time::Instant;

/// Seeds after which a mutant has survived.
const SEEDS_MAX: u64 = 1500;
/// The first of those seeds.
const SEEDS_FROM: u64 = 1_000_000;

/// Mutants that tests notice: name, package, filter of the tests.
const BY_TESTS: &[(&str, &str, &str)] = &[
    ("longest_window", "trilith-engine", "recovery"),
    ("base_ignores_epoch", "trilith-engine", "recovery"),
    ("any_base_of_block", "trilith-engine", "recovery"),
    ("untainted_base_first", "trilith-engine", "recovery"),
    ("room_not_reserved", "trilith-engine", "tests::serve"),
    ("requests_after_loss", "trilith-engine", "tests::elect"),
    ("flush_not_asked_again", "trilith-engine", "tests::members"),
    (
        "lost_before_open_counts",
        "trilith-engine",
        "tests::members",
    ),
    (
        "rebuild_asks_one_source",
        "trilith-engine",
        "tests::members",
    ),
    ("heal_behind_gate", "trilith-engine", "tests::members"),
    ("config_not_asked_again", "trilith-engine", "tests::replace"),
    (
        "demoted_without_witness",
        "trilith-engine",
        "tests::witness",
    ),
    ("flush_not_waited_for", "trilith-engine", "tests::witness"),
    ("lease_forgotten", "trilith-replica", "tests::votes"),
    ("resend_overtakes", "trilith-replica", "a_failed_entry"),
    ("checksums_not_saved", "trilith-replica", "checksums"),
    ("checksums_not_voided", "trilith-replica", "checksums"),
    ("checksums_not_suspended", "trilith-replica", "checksums"),
    ("raced_read_unjudged", "trilith-replica", "checksums"),
    ("evicted_above_tidx", "trilith-replica", "above_tidx_stays"),
];

/// The quarter that a commit gets.
pub(crate) fn quarter_of_commit() -> Result<u64> {
    Ok(run::commit_number(8)? % 4)
}

/// Hunts all mutants, or those of a quarter.
pub(crate) fn hunt(quarter: Option<u64>) -> Result<()> {
    let (seeds, from) = (SEEDS_MAX.to_string(), SEEDS_FROM.to_string());
    let number = quarter.map(|q| (q % 4).to_string());
    let mut args = vec!["--mutants", "--seeds", &seeds, "--from", &from];
    if let Some(number) = &number {
        args.extend(["--quarter", number]);
    }
    let elsewhere = BY_TESTS.iter().map(|(name, _, _)| *name);
    for name in elsewhere {
        args.extend(["--except", name]);
    }
    run::simulator(&args)?;
    let chosen = BY_TESTS.iter().enumerate();
    let chosen = chosen.filter(|(at, _)| quarter.is_none_or(|q| *at as u64 % 4 == q % 4));
    for (_, (name, package, filter)) in chosen {
        by_tests(name, package, filter)?;
    }
    Ok(())
}

/// The tests must fail with the mutant; that they pass without it is the `test` step's part.
#[allow(clippy::disallowed_methods, reason = "it says how long it took")]
fn by_tests(name: &str, package: &str, filter: &str) -> Result<()> {
    let begun = Instant::now();
    let args = ["test", "--quiet", "--lib", "-p", package];
    let built = ["--features", "trilith-block/proof"];
    run::cargo(&[&args[..], &built, &["--no-run"]].concat())?;
    let output = Command::new("cargo")
        .args(args)
        .args(built)
        .args(["--", filter])
        .env("TRILITH_MUTANT", name)
        .current_dir(run::root())
        .output()
        .with_context(|| format!("run the tests of {package}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed: Vec<&str> = text
        .lines()
        .filter_map(|l| l.strip_prefix("---- "))
        .filter_map(|l| l.strip_suffix(" stdout ----"))
        .collect();
    let Some(first) = failed.first().filter(|_| !output.status.success()) else {
        bail!("mutant {name} is not noticed by `{filter}` of {package}");
    };
    let seconds = begun.elapsed().as_secs_f64();
    run::say(&format!(
        "{name:24} found by {} tests, {seconds:5.1} s: {first}",
        failed.len()
    ));
    Ok(())
}
