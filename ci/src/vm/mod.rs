//! Purpose: guests for what needs a kernel of its own: kernel clients (nbd, iSCSI, ublk), faults of
//! device-mapper, power cuts, several nodes. `ci/vm/README.md` says how a scenario is written.
//!
//! Invariants: the machine's packages and apt sources stay as they are; a scenario has passed only
//! when its guest shipped a file that says so; no process outlives a run.
//!
//! Limits: the constants of [`limits`].
//!
//! Failure: without network and without a prepared cache, or when no guest boots, the step fails
//! with the reason.
//!
//! Start reading at: [`Command`], then `prepare.rs` and `run.rs`.

mod cpio;
mod debian;
mod disks;
mod guest;
mod input;
mod kernel;
mod limits;
mod network;
mod peers;
mod prepare;
mod rootfs;
mod run;
mod scenario;
mod tools;

use crate::run as host;
use anyhow::{Context, Result, bail};
use clap::{Subcommand, ValueEnum};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What to do with guests.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// Fetch and build what guests need: kernels, QEMU, a root file system. Does nothing when it is
    /// there in its newest version.
    Prepare,
    /// Run scenarios, one after the other.
    Run {
        /// Which kernel.
        #[arg(long, value_enum, default_value = "lts")]
        kernel: Which,
        /// Keep disks and inputs of runs that passed.
        #[arg(long)]
        keep: bool,
        /// Names of files in ci/vm/scenarios, without .sh.
        #[arg(required = true)]
        scenarios: Vec<String>,
    },
    /// Prepare, then run what decides over a change.
    Ci,
    /// Name the scenarios.
    List,
}

/// A choice of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Which {
    /// The oldest that is supported: Debian stable's.
    Lts,
    /// The newest in Debian's backports.
    Newest,
    /// Both.
    All,
}

/// What decides over a change: scenario and kernel. Each takes one to two minutes.
const GATE: &[(&str, Which)] = &[
    ("nbd-client", Which::Newest),
    ("iscsi-client", Which::Lts),
    ("power-cut", Which::Lts),
    ("device-errors", Which::Newest),
    ("ublk-queues", Which::Newest),
    ("ublk-volume", Which::Lts),
];

/// Runs the command.
pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Prepare => prepare::prepare().map(drop),
        Command::Run {
            kernel,
            keep,
            scenarios,
        } => {
            // A wrong name is found before anything is fetched.
            scenarios
                .iter()
                .try_for_each(|name| scenario::load(name).map(drop))?;
            let ready = prepare::ready()?;
            let jobs: Vec<_> = scenarios
                .iter()
                .map(|name| (name.as_str(), *kernel))
                .collect();
            run::all(&ready, &jobs, *keep)
        }
        Command::Ci => gate(),
        Command::List => {
            for scenario in scenario::all()? {
                host::say(&format!("{:<20} {}", scenario.name, scenario.about));
            }
            Ok(())
        }
    }
}

/// Prepares and runs what decides. Where guests cannot be prepared, that is said, and a failure only
/// where a change is decided over (CI=true).
fn gate() -> Result<()> {
    match prepare::prepare() {
        Ok(ready) => run::all(&ready, GATE, false),
        Err(error) if std::env::var("CI").is_ok_and(|ci| ci == "true") => Err(error),
        Err(error) => {
            host::say(&format!("SKIPPED, no guest ran: {error:#}"));
            Ok(())
        }
    }
}

/// Where everything is kept: `TRILITH_VM_CACHE`, else `vm` in cargo's target directory.
fn cache() -> PathBuf {
    if let Some(dir) = std::env::var_os("TRILITH_VM_CACHE") {
        return PathBuf::from(dir);
    }
    target().join("vm")
}

/// Cargo's target directory.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| host::root().join("target"), PathBuf::from)
}

/// Runs a command, keeps what it prints, and fails with that when it fails.
fn quietly(command: &mut std::process::Command) -> Result<String> {
    let name = Path::new(command.get_program()).display().to_string();
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("run {name}"))?;
    if !output.status.success() {
        let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
        bail!(
            "`{name} {}` failed, {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A key over texts: two sets of versions have the same key only if they are equal (FNV-1a; by
/// chance one pair in 2^64, and then an old cache is used).
fn key<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in texts.into_iter().flat_map(|text| text.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}

/// The time. Runs are limited by the clock on the wall: QEMU gives no other.
fn now() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "no machine, and its guests have real time"
    )]
    Instant::now()
}

/// Lets some time pass.
fn pause(span: Duration) {
    #[expect(
        clippy::disallowed_methods,
        reason = "a program outside gives no event to wait for"
    )]
    std::thread::sleep(span);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_where_a_text_ends() {
        assert_ne!(key(["ab", "c"]), key(["a", "bc"]));
        assert_eq!(key(["ab", "c"]), key(["ab", "c"]));
    }

    #[test]
    fn the_gate_names_scenarios_that_exist() {
        for (name, _) in GATE {
            assert!(scenario::load(name).is_ok(), "{name}");
        }
    }
}
