//! Purpose: the project's automation. `cargo ci all` is what decides whether a change may land;
//! each step can be run alone.
//!
//! Invariants: cheap steps run first; a failing step ends the run with its name; nothing is
//! installed unless we are root on a Debian machine, else what is missing is named.
//!
//! Failure: any error exits with status 1.
//!
//! Start reading at: [`Step`].

mod layers;
mod licences;
mod mutants;
mod packages;
mod run;
mod tidy;
mod vm;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Runs one step of the project's checks, or all of them.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo ci")]
struct Args {
    /// What to run.
    #[command(subcommand)]
    step: Step,
    /// Simulation seeds to run in the `sim` step (regression seeds run besides, in `test`).
    #[arg(long, global = true, default_value_t = 1000)]
    seeds: u64,
    /// Take seeds derived from the commit instead of always the same ones, which decide until enough
    /// new ones have run without a failure (docs/verification.md).
    #[arg(long, global = true)]
    fresh: bool,
    /// Quarter of the mutants (0 to 3) for the `mutants` step; all of them without it. `all` takes
    /// the quarter that the commit's hash chooses.
    #[arg(long, global = true)]
    quarter: Option<u64>,
}

/// The steps, in the order in which `all` runs them.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
enum Step {
    /// Everything below, in this order.
    All,
    /// Debian packages that the tests need: installed as root, else named.
    Packages,
    /// `cargo fmt --check`.
    Fmt,
    /// Dependencies between crates against the table of what is allowed.
    Layers,
    /// Licences, sources and duplicates of third-party crates.
    Licences,
    /// Style that no compiler checks.
    Tidy,
    /// Clippy with warnings as errors.
    Clippy,
    /// Unit, table and model tests of every crate.
    Test,
    /// The deterministic simulator: fixed seeds, or with --fresh ones derived from the commit.
    Sim,
    /// Rules broken on purpose: the simulator, or a test, must notice each.
    Mutants,
    /// Real processes, real files, Debian's clients.
    E2e,
    /// Guests of an emulator for what needs a kernel of its own (`ci/vm/README.md`).
    #[command(subcommand)]
    Vm(vm::Command),
}

const ORDER: [Step; 11] = [
    Step::Packages,
    Step::Fmt,
    Step::Layers,
    Step::Licences,
    Step::Tidy,
    Step::Clippy,
    Step::Test,
    Step::Sim,
    Step::Mutants,
    Step::E2e,
    Step::Vm(vm::Command::Ci),
];

/// As it is typed.
fn name(step: &Step) -> String {
    let text = format!("{step:?}").to_lowercase();
    text.split(['(', ' ']).next().unwrap_or_default().to_owned()
}

fn step(step: &Step, args: &Args) -> Result<()> {
    run::title(&name(step));
    match step {
        Step::All => {
            let mut args = args.clone();
            args.quarter = Some(args.quarter.map_or_else(mutants::quarter_of_commit, Ok)?);
            ORDER.iter().try_for_each(|s| self::step(s, &args))
        }
        Step::Packages => packages::ensure(),
        Step::Fmt => run::cargo(&["fmt", "--all", "--check"]),
        Step::Layers => layers::check(),
        Step::Licences => licences::check(),
        Step::Tidy => tidy::check(),
        Step::Clippy => run::cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]),
        Step::Test => run::cargo(&["test", "--workspace", "--quiet", "--exclude", "trilith-e2e"]),
        Step::Sim => run::sim(args.seeds, args.fresh),
        Step::Mutants => mutants::hunt(args.quarter),
        Step::E2e => run::e2e(),
        Step::Vm(command) => vm::run(command),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match step(&args.step, &args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            run::say(&format!("cargo ci: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
