//! The same rounds over iSCSI, for which fio has no client. iscsi-perf reads, `qemu-img bench`
//! writes, and an initiator of our own shows what digests cost, which libiscsi does not know for
//! data. Every target gets the same client.

use crate::compare::{kept, output};
use crate::fio::Place;
use crate::record::median;
use crate::targets::{Target, cpu_seconds};
use crate::{IscsiArgs, Media, say};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
use trilith_e2e::Random;
use trilith_e2e::iscsi::{Initiator, Login, cdb10};

/// Logical block of every target, in bytes.
const BLOCK: u32 = 4096;
/// Blocks between two writes: odd and large, so that they come to every block of the unit in an
/// order in which none continues another.
const SCATTER_BLOCKS: u64 = 104_729;
/// Writes by which the speed of a target is found out.
const PROBE: u64 = 500;

/// What a client does.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// iscsi-perf, random or sequential.
    Read { random: bool },
    /// qemu-img bench, scattered or sequential.
    Write { random: bool },
    /// Our own initiator: random reads or writes, with digests or without.
    Own { writes: bool, digests: bool },
}

/// A job.
#[derive(Clone, Copy, Debug)]
struct Job {
    name: &'static str,
    kind: Kind,
    blocks: u32,
    depth: u32,
}

const fn job(name: &'static str, kind: Kind, blocks: u32, depth: u32) -> Job {
    Job {
        name,
        kind,
        blocks,
        depth,
    }
}

const RANDOM_READ: Kind = Kind::Read { random: true };
const RANDOM_WRITE: Kind = Kind::Write { random: true };

const fn own(writes: bool, digests: bool) -> Kind {
    Kind::Own { writes, digests }
}

const JOBS: [Job; 12] = [
    job("randread-4k-d1", RANDOM_READ, 1, 1),
    job("randread-4k-d16", RANDOM_READ, 1, 16),
    job("randread-4k-d64", RANDOM_READ, 1, 64),
    job("randwrite-4k-d1", RANDOM_WRITE, 1, 1),
    job("randwrite-4k-d16", RANDOM_WRITE, 1, 16),
    job("randwrite-4k-d64", RANDOM_WRITE, 1, 64),
    job("read-1m-d4", Kind::Read { random: false }, 256, 4),
    job("write-1m-d4", Kind::Write { random: false }, 256, 4),
    job("plain-read-4k-d16", own(false, false), 1, 16),
    job("digest-read-4k-d16", own(false, true), 1, 16),
    job("plain-write-4k-d16", own(true, false), 1, 16),
    job("digest-write-4k-d16", own(true, true), 1, 16),
];

/// Of one run: operations per second, and CPU of servers and client in microseconds an operation.
#[derive(Clone, Copy, Debug)]
struct Run {
    rate: f64,
    server_us: f64,
    client_us: f64,
}

/// The runs of all rounds.
type Rounds = BTreeMap<(String, &'static str), Vec<Run>>;

/// What one run gave: operations per second, and operations.
type Figures = (f64, f64);

/// Runs what `perf iscsi` asks for.
pub(crate) fn run(args: &IscsiArgs) -> Result<()> {
    let base = match args.media {
        Media::Disk => args.dir.clone(),
        Media::Ram => PathBuf::from("/dev/shm"),
    };
    let dir = tempfile::Builder::new()
        .prefix("trilith-perf-")
        .tempdir_in(base)?;
    let mut targets = Vec::new();
    for name in &args.peers {
        match Target::start_iscsi(name, &dir.path().join(name), args.size_mib) {
            Ok(target) => targets.push(target),
            Err(error) => say(&format!("{name} is left out: {error:#}")),
        }
    }
    let jobs: Vec<&Job> = JOBS
        .iter()
        .filter(|job| args.jobs.is_empty() || args.jobs.iter().any(|name| name == job.name))
        .collect();
    ensure!(!jobs.is_empty(), "no job is called {:?}", args.jobs);
    let mut all = Rounds::new();
    for round in 0..args.rounds {
        for job in &jobs {
            for target in &targets {
                // A peer without digests would be measured without them: left out.
                if matches!(job.kind, Kind::Own { .. }) && target.name.starts_with("tgt") {
                    continue;
                }
                // Clients are this process and its children that have ended; servers run on.
                let own = || cpu_seconds(std::process::id());
                let (server, client) = (target.cpu_seconds(), own());
                let (rate, operations) = run_job(job, target, args)
                    .with_context(|| format!("{} on {}", job.name, target.name))?;
                let each = |seconds: f64| seconds * 1e6 / operations.max(1.0);
                let run = Run {
                    rate,
                    server_us: each(target.cpu_seconds() - server),
                    client_us: each(own() - client),
                };
                all.entry((target.name.clone(), job.name))
                    .or_default()
                    .push(run);
            }
        }
        say(&format!("round {} of {} done", round + 1, args.rounds));
    }
    print(&all, &targets, &jobs);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&as_json(&all, args))?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn run_job(job: &Job, target: &Target, args: &IscsiArgs) -> Result<Figures> {
    let Place::Iscsi(uri) = &target.place else {
        bail!("{} is not served over iSCSI", target.name);
    };
    match job.kind {
        Kind::Read { random } => read(job, random, uri, args.seconds),
        Kind::Write { random } => write(job, random, uri, args),
        Kind::Own { writes, digests } => own_run(job, writes, digests, uri, args),
    }
}

/// iscsi-perf: the last "iops average".
fn read(job: &Job, random: bool, uri: &str, seconds: u32) -> Result<Figures> {
    let output = Command::new("iscsi-perf")
        .args(["-t", &seconds.to_string(), "-m", &job.depth.to_string()])
        .args(["-b", &job.blocks.to_string()])
        .args(random.then_some("-r"))
        .arg(uri)
        .stdin(Stdio::null())
        .output()
        .context("run iscsi-perf")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "iscsi-perf: {text}");
    let rate: f64 = text
        .rsplit("iops average ")
        .next()
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("read what iscsi-perf printed: {text}"))?;
    Ok((rate, rate * f64::from(seconds)))
}

/// `qemu-img bench` does a number of writes: as many as take about the time asked for.
fn write(job: &Job, random: bool, uri: &str, args: &IscsiArgs) -> Result<Figures> {
    let bytes = u64::from(job.blocks * BLOCK);
    let step = if random {
        SCATTER_BLOCKS * u64::from(BLOCK) % (args.size_mib << 20)
    } else {
        bytes
    };
    let bench = |count: u64| -> Result<f64> {
        let output = Command::new("qemu-img")
            .args(["bench", "-w", "-t", "none", "-f", "raw"])
            .args(["-c", &count.to_string(), "-d", &job.depth.to_string()])
            .args(["-s", &bytes.to_string(), "-S", &step.to_string()])
            .arg(uri)
            .stdin(Stdio::null())
            .output()
            .context("run qemu-img bench")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "qemu-img bench: {errors}");
        text.rsplit("Run completed in ")
            .next()
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("read what qemu-img printed: {text}"))
    };
    let probe = PROBE.min(args.size_mib);
    let spent = Duration::try_from_secs_f64(bench(probe)?)?.as_millis();
    let wanted = u128::from(probe) * u128::from(args.seconds) * 1000 / spent.max(1);
    let count = u64::try_from(wanted.max(1))?;
    let seconds = bench(count)?;
    Ok((count as f64 / seconds, (count + probe) as f64))
}

/// Our own initiator keeps `depth` commands in flight.
fn own_run(job: &Job, writes: bool, digests: bool, uri: &str, args: &IscsiArgs) -> Result<Figures> {
    let mut words = uri.split('/').skip(2);
    let address = words.next().context("an address")?;
    let login = Login {
        target: words.next().context("a target")?.to_owned(),
        initiator: "iqn.2026-01.io.trilith.perf:own".to_owned(),
        isid: 1,
        digests,
    };
    let mut session = Initiator::ready(address, &login)?;
    let blocks = (args.size_mib << 20) / u64::from(BLOCK);
    let mut random = Random(7);
    let data = vec![0x5a; usize::try_from(BLOCK)?];
    let mut send = |session: &mut Initiator| -> Result<u32> {
        let lba = u32::try_from(random.below(blocks))?;
        if writes {
            session.send_command(&cdb10(0x2a, 0, lba, 1), &data, 0)
        } else {
            session.send_command(&cdb10(0x28, 0, lba, 1), &[], BLOCK)
        }
    };
    for _ in 0..job.depth {
        send(&mut session)?;
    }
    let start = crate::clock();
    let end = Duration::from_secs(u64::from(args.seconds));
    let mut count = 0.0;
    while start.elapsed() < end {
        let done = session.answer()?;
        ensure!(done.is_good(), "{done:?}");
        count += 1.0;
        send(&mut session)?;
    }
    Ok((count / start.elapsed().as_secs_f64(), count))
}

fn print(all: &Rounds, targets: &[Target], jobs: &[&Job]) {
    say(&format!(
        "{:<20} {:<12} {:>9} {:>19} {:>9} {:>9} {:>9}",
        "job", "target", "IOPS", "min-max", "MB/s", "server us", "client us"
    ));
    for job in jobs {
        for target in targets {
            let Some(rounds) = all.get(&(target.name.clone(), job.name)) else {
                continue;
            };
            let of = |figure: fn(&Run) -> f64| rounds.iter().map(figure).collect::<Vec<f64>>();
            let mut rates = of(|run| run.rate);
            let middle = median(&mut rates);
            let first = rates.first().copied().unwrap_or(0.0);
            let last = rates.last().copied().unwrap_or(0.0);
            say(&format!(
                "{:<20} {:<12} {middle:>9.0} {:>19} {:>9.0} {:>9.1} {:>9.1}",
                job.name,
                target.name,
                format!("{first:.0}-{last:.0}"),
                middle * f64::from(job.blocks * BLOCK) / 1e6,
                median(&mut of(|run| run.server_us)),
                median(&mut of(|run| run.client_us)),
            ));
        }
    }
}

fn as_json(all: &Rounds, args: &IscsiArgs) -> Value {
    let results: Vec<Value> = all
        .iter()
        .map(|((target, job), rounds)| {
            json!({
                "target": target,
                "job": job,
                "rounds": rounds.iter().map(|run| json!({
                    "iops": run.rate, "server_cpu_us_per_operation": run.server_us,
                    "client_cpu_us_per_operation": run.client_us,
                })).collect::<Vec<_>>(),
            })
        })
        .collect();
    kept(
        "tgt",
        &output("tgtd", &["--version"]),
        args.media,
        args.size_mib,
        &results,
    )
}
