//! Explores the worlds of one size and prints what came out. Exit status 1: a property is broken.

#![forbid(unsafe_code)]

use clap::{Parser, ValueEnum};
use std::fmt::Debug;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use trilith_model::change::{self, Fault, World};
use trilith_model::{Report, Scope, Variant, check, find};

#[derive(Clone, Copy, ValueEnum)]
enum Size {
    /// Less than a minute on one core.
    Small,
    /// Some minutes.
    Medium,
    /// More than ten million states each; takes as long and as much memory as it is given.
    Large,
}

/// Explores the replication protocol in small worlds, exhaustively.
#[derive(Parser)]
struct Options {
    /// How large the worlds are.
    #[arg(long, value_enum, default_value = "small")]
    size: Size,
    /// Only the world of this name.
    #[arg(long)]
    world: Option<String>,
    /// Also explore the variants with a rule left out: each must be found.
    #[arg(long)]
    faults: bool,
    /// Also show that the base may be chosen by watermark.
    #[arg(long)]
    equivalent: bool,
}

fn main() -> io::Result<ExitCode> {
    let options = Options::parse();
    let mut out = io::stdout().lock();
    let mut good = true;
    let asked = |name: &str| options.world.as_ref().is_none_or(|world| world == name);
    let worlds = match options.size {
        Size::Small => Scope::small(),
        Size::Medium => Scope::medium(),
        Size::Large => Scope::large(),
    };
    for scope in worlds.into_iter().filter(|s| asked(s.name)) {
        let started = now();
        let report = check(scope, Variant::Correct);
        good &= report.broken.is_empty();
        print_world(&mut out, scope.name, &report, started.elapsed())?;
    }
    let worlds = match options.size {
        Size::Small => change::Scope::small(),
        Size::Medium | Size::Large => change::Scope::medium(),
    };
    for scope in worlds.into_iter().filter(|s| asked(s.name)) {
        let started = now();
        let report = World { scope, fault: None }.explore();
        good &= report.broken.is_empty();
        print_world(&mut out, scope.name, &report, started.elapsed())?;
    }
    if options.equivalent {
        // The watermark orders complete members as the sync epoch does, for both are barriers.
        let started = now();
        let report = check(Scope::demotion(), Variant::BaseByWatermark);
        good &= report.broken.is_empty();
        write!(out, "base by watermark ")?;
        print(&mut out, &report, started.elapsed())?;
    }
    if options.faults {
        for (variant, scope, wanted) in Variant::faults() {
            let started = now();
            let report = find(scope, variant, &wanted);
            good &= !report.broken.is_empty();
            write!(out, "{variant:?} in {} ", scope.name)?;
            print(&mut out, &report, started.elapsed())?;
        }
        for (fault, scope) in Fault::all() {
            let started = now();
            let report = World {
                scope,
                fault: Some(fault),
            }
            .explore();
            good &= !report.broken.is_empty();
            write!(out, "{fault:?} in {} ", scope.name)?;
            print(&mut out, &report, started.elapsed())?;
        }
    }
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[allow(
    clippy::disallowed_methods,
    reason = "the time it took is only printed"
)]
fn now() -> Instant {
    Instant::now()
}

fn print_world<A: Debug>(
    out: &mut impl Write,
    name: &str,
    report: &Report<A>,
    took: Duration,
) -> io::Result<()> {
    let result = if report.exhausted {
        "exhausted"
    } else if report.broken.is_empty() {
        "stopped"
    } else {
        "BROKEN"
    };
    write!(out, "{name:<12} {result:<10}")?;
    print(out, report, took)
}

fn print<A: Debug>(out: &mut impl Write, report: &Report<A>, took: Duration) -> io::Result<()> {
    writeln!(
        out,
        "{:>10} states {:>11} steps, depth {:>3}, {:.1} s",
        report.states,
        report.steps,
        report.depth,
        took.as_secs_f64()
    )?;
    for (name, history) in &report.broken {
        writeln!(out, "    breaks {name}:")?;
        for action in history {
            writeln!(out, "      {action:?}")?;
        }
    }
    Ok(())
}
