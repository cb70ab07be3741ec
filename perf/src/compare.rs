//! Rounds over targets and jobs, and the tables.

use crate::fio::{self, Figures};
use crate::record::median;
use crate::targets::Target;
use crate::{CompareArgs, Media, say};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What one run of a job cost its servers.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// CPU of all processes, microseconds an operation.
    cpu_us: f64,
    /// Bytes that the processes had written to storage, for each byte of the client.
    written: f64,
}

/// Figures of all rounds for one (target, job).
type Rounds = BTreeMap<(String, String), Vec<(Figures, Cost)>>;

fn job_files(args: &CompareArgs) -> Result<Vec<PathBuf>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fio");
    let mut files: Vec<PathBuf> = fs::read_dir(&dir)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| args.jobs.is_empty() || args.jobs.contains(&stem(path)))
        .collect();
    files.sort();
    ensure!(
        !files.is_empty(),
        "no job in {} matches {:?}",
        dir.display(),
        args.jobs
    );
    Ok(files)
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Median of one figure over the rounds.
fn over(rounds: &[(Figures, Cost)], figure: impl Fn(&(Figures, Cost)) -> f64) -> f64 {
    median(&mut rounds.iter().map(figure).collect::<Vec<_>>())
}

/// Runs what `perf compare` asks for.
pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    let (rounds, seconds) = if args.quick {
        (1, 1)
    } else {
        (args.rounds, args.seconds)
    };
    let base = match args.media {
        Media::Disk => args.dir.clone(),
        Media::Ram => PathBuf::from("/dev/shm"),
    };
    let dir = tempfile::Builder::new()
        .prefix("trilith-perf-")
        .tempdir_in(base)?;
    let mut names = vec!["raw".to_owned()];
    names.extend(args.peers.iter().filter(|p| *p != "raw").cloned());
    let mut targets = Vec::new();
    for name in &names {
        match Target::start(name, &dir.path().join(name), args.size_mib) {
            Ok(target) => targets.push(target),
            Err(error) => say(&format!("{name} is left out: {error:#}")),
        }
    }
    let jobs = job_files(args)?;
    let mut all = Rounds::new();
    for round in 0..rounds {
        for job in &jobs {
            for target in &targets {
                let run = measure(target, job, seconds, args)
                    .with_context(|| format!("{} on {}", stem(job), target.name))?;
                all.entry((target.name.clone(), stem(job)))
                    .or_default()
                    .push(run);
            }
        }
        say(&format!("round {} of {rounds} done", round + 1));
        // After each round, so that a run that is cut short keeps what it has.
        if let Some(path) = &args.json {
            let text = serde_json::to_string_pretty(&as_json(&all, args))?;
            fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
        }
    }
    print(&all, &targets, &jobs);
    Ok(())
}

fn measure(
    target: &Target,
    job: &Path,
    seconds: u32,
    args: &CompareArgs,
) -> Result<(Figures, Cost)> {
    let (cpu, written) = (target.cpu_seconds(), target.bytes_written());
    let figures = fio::run(job, &target.place, seconds, args.size_mib)?;
    let cost = Cost {
        cpu_us: (target.cpu_seconds() - cpu) * 1e6 / figures.operations.max(1.0),
        written: (target.bytes_written() - written) / figures.bytes_written.max(1.0),
    };
    Ok((figures, cost))
}

fn print(all: &Rounds, targets: &[Target], jobs: &[PathBuf]) {
    say(&format!(
        "{:<18} {:<14} {:>9} {:>7} {:>13} {:>9} {:>9} {:>9} {:>8}",
        "job", "target", "IOPS", "of raw", "min-max", "MB/s", "p50 us", "p99 us", "CPU us"
    ));
    for job in jobs {
        let raw = all.get(&("raw".to_owned(), stem(job)));
        for target in targets {
            let Some(rounds) = all.get(&(target.name.clone(), stem(job))) else {
                continue;
            };
            // The ratio of each round to raw in the same round, then the median.
            let mut ratios: Vec<f64> = rounds
                .iter()
                .zip(raw.into_iter().flatten())
                .map(|(ours, raw)| ours.0.iops / raw.0.iops.max(1.0))
                .collect();
            let ratio = median(&mut ratios);
            let spread = format!(
                "{:.2}-{:.2}",
                ratios.first().copied().unwrap_or(0.0),
                ratios.last().copied().unwrap_or(0.0)
            );
            say(&format!(
                "{:<18} {:<14} {:>9.0} {:>7.2} {:>13} {:>9.0} {:>9.0} {:>9.0} {:>8.1}",
                stem(job),
                target.name,
                over(rounds, |r| r.0.iops),
                ratio,
                spread,
                over(rounds, |r| r.0.megabytes),
                over(rounds, |r| r.0.p50_us),
                over(rounds, |r| r.0.p99_us),
                over(rounds, |r| r.1.cpu_us),
            ));
        }
    }
    for target in targets {
        for (name, mib) in target.resident_mib() {
            say(&format!(
                "resident: {:<14} {name:<24} {mib} MiB",
                target.name
            ));
        }
    }
}

pub(crate) fn output(program: &str, args: &[&str]) -> String {
    Command::new(program)
        .args(args)
        .output()
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
        .unwrap_or_default()
}

fn as_json(all: &Rounds, args: &CompareArgs) -> Value {
    let results: Vec<Value> = all
        .iter()
        .map(|((target, job), rounds)| {
            json!({
                "target": target,
                "job": job,
                "rounds": rounds.iter().map(|(f, cost)| json!({
                    "iops": f.iops, "megabytes_per_second": f.megabytes, "p50_us": f.p50_us,
                    "p99_us": f.p99_us, "max_us": f.max_us, "server_cpu_us_per_operation": cost.cpu_us,
                    "server_bytes_written_per_byte": (f.bytes_written > 0.0).then_some(cost.written),
                })).collect::<Vec<_>>(),
            })
        })
        .collect();
    kept(
        "fio",
        &output("fio", &["--version"]),
        args.media,
        args.size_mib,
        &results,
    )
}

/// A run as it is kept: what was measured where, by which client or server, and its figures.
pub(crate) fn kept(
    tool: &str,
    version: &str,
    media: Media,
    size_mib: u64,
    results: &[Value],
) -> Value {
    json!({
        "unix_time": output("date", &["+%s"]).parse::<u64>().unwrap_or(0),
        "commit": output("git", &["rev-parse", "HEAD"]),
        "kernel": output("uname", &["-r"]),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        tool: version,
        "media": format!("{media:?}").to_lowercase(),
        "size_mib": size_mib,
        "results": results,
    })
}
