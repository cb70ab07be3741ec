//! Runs commands and says what runs.

use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

/// One line to the user. A closed standard error is not worth a failure.
pub(crate) fn say(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// The head of a step.
pub(crate) fn title(name: &str) {
    say(&format!("==> {name}"));
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let mut dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    dir.pop();
    dir
}

/// Runs a command in the root and fails when it does. An error that a test returns says what was
/// expected; where it was made would only bury that in a log.
pub(crate) fn command(program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program)
        .args(args)
        .current_dir(root())
        .env("RUST_LIB_BACKTRACE", "0")
        .status()
        .with_context(|| format!("run {program}"))?;
    if !status.success() {
        bail!("`{program} {}` failed: {status}", args.join(" "));
    }
    Ok(())
}

/// Runs cargo.
pub(crate) fn cargo(args: &[&str]) -> Result<()> {
    command("cargo", args)
}

/// Output of a command in the root.
pub(crate) fn output(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .current_dir(root())
        .output()
        .with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("`{program} {}` failed: {}", args.join(" "), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("read what {program} printed"))
}

/// `cargo metadata` of the workspace.
pub(crate) fn metadata(with_dependencies: bool) -> Result<serde_json::Value> {
    let mut args = vec!["metadata", "--format-version", "1", "--locked"];
    if !with_dependencies {
        args.push("--no-deps");
    }
    serde_json::from_str(&output("cargo", &args)?).context("parse cargo metadata")
}

/// Files that git tracks.
pub(crate) fn tracked() -> Result<Vec<String>> {
    Ok(output("git", &["ls-files"])?
        .lines()
        .map(str::to_owned)
        .collect())
}

/// First of the fixed seeds.
const SEEDS_FROM: u64 = 1_000_000;
/// First of the fixed seeds of which half have iSCSI clients; there are a quarter as many of them.
const ISCSI_SEEDS_FROM: u64 = 900_000;
/// In every other run from this seed on replicas keep checksums.
const CHECKSUM_SEEDS_FROM: u64 = 3_000_000;
/// From this seed on they do in each run, and blocks rot while faults strike. There are a quarter as
/// many of them.
const ROT_SEEDS_FROM: u64 = 4_000_000;

/// First of the fixed seeds with two replicas and a witness; there are half as many of them.
const WITNESS_SEEDS_FROM: u64 = 5_000_000;

/// Fixed seeds that together must reach every coverage mark that is not seldom.
const SEEDS_FOR_MARKS: u64 = 1000;

/// The simulator: always the same seeds, or seeds derived from the commit, so that a run can be
/// repeated.
pub(crate) fn sim(seeds: u64, fresh: bool) -> Result<()> {
    let mut from = SEEDS_FROM;
    if fresh {
        from = commit_number(12)?;
    }
    if !fresh {
        search_orders()?;
        simulate(ISCSI_SEEDS_FROM, (seeds / 4).max(1), false)?;
        simulate(CHECKSUM_SEEDS_FROM, (seeds / 4).max(1), false)?;
        simulate(ROT_SEEDS_FROM, (seeds / 4).max(1), false)?;
        let enough = seeds >= SEEDS_FOR_MARKS;
        simulate(WITNESS_SEEDS_FROM, (seeds / 2).max(1), enough)?;
    }
    // Fewer seeds, or others, may well miss a mark.
    simulate(from, seeds, !fresh && seeds >= SEEDS_FOR_MARKS)
}

/// The orders of the small world with one unusual choice, and with one crash: to the end. Then the
/// same search with rules broken.
fn search_orders() -> Result<()> {
    say("searching the orders of the small world");
    simulator(&["--orders", "--deviations", "1"])?;
    simulator(&["--orders", "--deviations", "0", "--crashes", "1"])?;
    for (deviations, crashes, cuts) in [("1", "0", "0"), ("0", "1", "0"), ("0", "0", "1")] {
        let bounds = [
            "--deviations",
            deviations,
            "--crashes",
            crashes,
            "--cuts",
            cuts,
        ];
        simulator(&[&["--orders", "--witness"], &bounds[..]].concat())?;
    }
    let build = ["--profile", "sim", "-p", "sim", "--features", "proof"];
    let broken = ["--test", "broken_orders"];
    cargo(&[&["test", "--quiet"], &build[..], &broken[..]].concat())
}

/// Runs seeds. `marks`: they must reach every coverage mark that is not seldom.
fn simulate(from: u64, seeds: u64, marks: bool) -> Result<()> {
    say(&format!("simulating seeds {from} to {}", from + seeds - 1));
    let (count, from) = (seeds.to_string(), from.to_string());
    let mut args = vec!["--seeds", &count, "--from", &from];
    if marks {
        args.push("--marks");
    }
    simulator(&args)
}

/// The simulator with these arguments, built to break rules and to count marks, on both processors.
pub(crate) fn simulator(args: &[&str]) -> Result<()> {
    let build = ["--profile", "sim", "-p", "sim", "--features", "proof"];
    cargo(
        &[
            &["run", "--quiet"],
            &build[..],
            &["--", "--jobs", "2"],
            args,
        ]
        .concat(),
    )
}

/// The first hexadecimal digits of the commit's hash as a number.
pub(crate) fn commit_number(digits: usize) -> Result<u64> {
    let commit = output("git", &["rev-parse", "HEAD"])?;
    let number = u64::from_str_radix(commit.trim().get(..digits).unwrap_or("0"), 16);
    number.context("read the commit's hash as a number")
}

/// The end-to-end tests, one at a time: they measure nothing, but they do fill both cores.
pub(crate) fn e2e() -> Result<()> {
    cargo(&["build", "--release", "--quiet", "-p", "trilith"])?;
    cargo(&[
        "test",
        "--release",
        "--quiet",
        "-p",
        "trilith-e2e",
        "--",
        "--test-threads=1",
        "--nocapture",
    ])
}
