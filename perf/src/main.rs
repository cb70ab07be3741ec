//! Purpose: measures a volume side by side with the raw disk and with other servers, in one run, as
//! ratios: the machine is noisy, so single figures mean little.
//!
//! Invariants: every round runs every target with every job, in turn; medians and spreads are over
//! rounds; what ran, on what, is recorded with the figures.
//!
//! Failure: a target that cannot be started is left out, and said so.
//!
//! Start reading at: [`compare`], then [`targets`], then [`fio`], [`iscsi`], [`scale`] and [`faults`]; [`report`] makes a page of the kept figures.

mod chart;
mod compare;
mod faults;
mod fio;
mod iscsi;
mod memory;
mod record;
mod report;
mod scale;
mod targets;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Benchmarks.
#[derive(Debug, Parser)]
#[command(name = "perf")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs fio jobs against several targets in turn.
    Compare(CompareArgs),
    /// Runs iSCSI clients against several targets in turn.
    Iscsi(IscsiArgs),
    /// Shows how cost grows with size, volumes and connections.
    Scale(ScaleArgs),
    /// Shows what faults cost the clients: a replica far away, a rebuild.
    Faults(FaultsArgs),
    /// Serves memory over NBD by our frontend, without engine and replicas.
    ServeMemory(MemoryArgs),
    /// Makes one page of the figures that `compare --json` kept.
    Report(ReportArgs),
}

/// Options of `iscsi`.
#[derive(Debug, clap::Args)]
struct IscsiArgs {
    /// What the data lies on.
    #[arg(long, value_enum, default_value = "disk")]
    media: Media,
    /// Where to put the data for `--media disk`.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Targets by name, comma-separated.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "trilith1,trilith3,tgt-direct,tgt-rdwr,tgt-aio"
    )]
    peers: Vec<String>,
    /// Jobs by name, comma-separated; default: all.
    #[arg(long, value_delimiter = ',')]
    jobs: Vec<String>,
    /// Rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each run.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Size of the volume in MiB.
    #[arg(long, default_value_t = 1024)]
    size_mib: u64,
    /// Also write the figures as JSON to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Options of `scale`.
#[derive(Debug, clap::Args)]
struct ScaleArgs {
    /// Tables, comma-separated.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "sizes,idle,busy,connections"
    )]
    tables: Vec<scale::Table>,
    /// Replicas of each volume.
    #[arg(long, default_value_t = 3)]
    replicas: usize,
    /// Sizes of volumes, comma-separated.
    #[arg(long, value_delimiter = ',', default_value = "1GiB,100GiB,1TiB,15TiB")]
    sizes: Vec<String>,
    /// Numbers of volumes on this host, comma-separated.
    #[arg(long, value_delimiter = ',', default_value = "1,5,20")]
    volumes: Vec<usize>,
    /// Seconds of each row.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
}

/// Options of `faults`.
#[derive(Debug, clap::Args)]
struct FaultsArgs {
    /// Rows, comma-separated.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "delay,rebuild"
    )]
    faults: Vec<faults::Fault>,
    /// Size of the volume in MiB. A rebuild copies half of it.
    #[arg(long, default_value_t = 2048)]
    size_mib: u64,
    /// How much later a replica gets what it is sent, in milliseconds.
    #[arg(long, default_value_t = 100)]
    delay_ms: u64,
    /// Rounds of `delay`.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each run.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
}

/// Options of `serve-memory`.
#[derive(Debug, clap::Args)]
struct MemoryArgs {
    /// Port of 127.0.0.1.
    #[arg(long)]
    port: u16,
    /// Size of the volume in MiB.
    #[arg(long, default_value_t = 1024)]
    size_mib: u64,
}

/// Options of `report`.
#[derive(Debug, clap::Args)]
struct ReportArgs {
    /// Folder of the kept figures.
    #[arg(long, default_value = "perf/results")]
    results: PathBuf,
    /// The page to write.
    #[arg(long, default_value = "perf/results/index.html")]
    out: PathBuf,
}

/// What the data lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Media {
    /// The file system of `--dir`.
    Disk,
    /// /dev/shm.
    Ram,
}

/// Options of `compare`.
#[derive(Debug, clap::Args)]
struct CompareArgs {
    /// What the data lies on.
    #[arg(long, value_enum, default_value = "disk")]
    media: Media,
    /// Where to put the data for `--media disk`.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Targets by name, comma-separated; `raw` is always there.
    #[arg(long, value_delimiter = ',', default_value = "trilith3,qemu-nbd")]
    peers: Vec<String>,
    /// Jobs by the name of their file in perf/fio without ending, comma-separated; default: all.
    #[arg(long, value_delimiter = ',')]
    jobs: Vec<String>,
    /// Rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each fio run.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// One short round: shows that everything runs, measures nothing.
    #[arg(long)]
    quick: bool,
    /// Size of the volume in MiB.
    #[arg(long, default_value_t = 2048)]
    size_mib: u64,
    /// Also write the figures as JSON to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark measures time from outside"
)]
pub(crate) fn clock() -> std::time::Instant {
    std::time::Instant::now()
}

/// One line to the user. A closed output is not worth a failure.
pub(crate) fn say(line: &str) {
    drop(writeln!(std::io::stdout(), "{line}"));
}

fn main() -> ExitCode {
    let result: Result<()> = match Args::parse().command {
        Command::Compare(args) => compare::run(&args),
        Command::Iscsi(args) => iscsi::run(&args),
        Command::Scale(args) => scale::run(&args),
        Command::Faults(args) => faults::run(&args),
        Command::ServeMemory(args) => memory::run(&args),
        Command::Report(args) => report::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("perf: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
