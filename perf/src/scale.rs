//! How cost grows: with the size of a volume, with idle and busy volumes on one host, with
//! connections. Depth and replicas are jobs and targets of `compare`.

use crate::fio::{self, Client};
use crate::targets::{cpu_seconds, resident_kib};
use crate::{ScaleArgs, clock, say};
use anyhow::{Result, ensure};
use std::time::Duration;
use trilith_e2e::{Cluster, Options, Random, pause};

/// Writes over a volume whose size is of interest: each touches an extent of its own.
const TOUCHES: u64 = 100;
/// Largest write that counts as one touch, in bytes.
const TOUCH_BYTES: usize = 4096;
/// What the jobs of one row have in flight together in `connections`, at most.
const JOBS_MAX: u32 = 64;

/// A table of `scale`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Table {
    /// Start, recovery and memory over the size of the volume.
    Sizes,
    /// CPU and memory of idle volumes.
    Idle,
    /// Operations of volumes that are all busy.
    Busy,
    /// Operations over the number of connections.
    Connections,
}

/// Runs what `perf scale` asks for.
pub(crate) fn run(args: &ScaleArgs) -> Result<()> {
    for table in &args.tables {
        match table {
            Table::Sizes => sizes(args)?,
            Table::Idle => idle(args)?,
            Table::Busy => busy(args)?,
            Table::Connections => connections(args)?,
        }
    }
    Ok(())
}

fn options(size: &str, args: &ScaleArgs) -> Options {
    Options {
        size: size.to_owned(),
        replicas: args.replicas,
        witness: false,
        more: Vec::new(),
    }
}

/// Processes of a volume: those who serve, without the one that watches them.
fn servers(cluster: &Cluster) -> Vec<u32> {
    let mut pids = cluster.pids("engine", "");
    pids.extend(cluster.pids("replica", ""));
    pids.into_iter().map(i32::unsigned_abs).collect()
}

/// Resident memory of the engine and of the largest replica, in MiB.
fn memory(cluster: &Cluster) -> (f64, f64) {
    let largest = |role: &str| {
        let pids = cluster.pids(role, "").into_iter();
        pids.map(|pid| resident_kib(pid.unsigned_abs()))
            .max()
            .unwrap_or(0) as f64
            / 1024.0
    };
    (largest("engine"), largest("replica"))
}

fn sizes(args: &ScaleArgs) -> Result<()> {
    say(
        "| volume | first start ms | start after a clean stop ms | start after kill -9 of all ms | \
         healthy after that ms | engine MiB | replica MiB |",
    );
    say("|---|---|---|---|---|---|---|");
    for size in &args.sizes {
        let begun = clock();
        let mut cluster = Cluster::start(options(size, args))?;
        let first = begun.elapsed();
        cluster.wait_state("healthy")?;
        touch(&cluster)?;
        let (engine, replica) = memory(&cluster);
        cluster.stop()?;
        let begun = clock();
        cluster.up()?;
        let clean = begun.elapsed();
        cluster.wait_state("healthy")?;
        touch(&cluster)?;
        cluster.kill_all()?;
        let begun = clock();
        cluster.up()?;
        let killed = begun.elapsed();
        cluster.wait_state("healthy")?;
        let healthy = begun.elapsed();
        cluster.stop()?;
        let ms = |time: Duration| time.as_millis();
        say(&format!(
            "| {size} | {} | {} | {} | {} | {engine:.0} | {replica:.0} |",
            ms(first),
            ms(clean),
            ms(killed),
            ms(healthy)
        ));
    }
    Ok(())
}

/// Writes here and there over the whole volume.
fn touch(cluster: &Cluster) -> Result<()> {
    let mut client = cluster.client()?;
    let blocks = client.size / TOUCH_BYTES as u64;
    let (mut random, data) = (Random(1), [7; TOUCH_BYTES]);
    for _ in 0..TOUCHES {
        let at = random.next_u64() % blocks * TOUCH_BYTES as u64;
        let answer = client.write(at, &data)?;
        ensure!(answer.is_ok(), "write at {at}: {answer:?}");
    }
    Ok(())
}

fn start_many(count: usize, args: &ScaleArgs) -> Result<Vec<Cluster>> {
    let clusters: Vec<Cluster> = (0..count)
        .map(|_| Cluster::start(options("64MiB", args)))
        .collect::<Result<_>>()?;
    for cluster in &clusters {
        cluster.wait_state("healthy")?;
    }
    Ok(clusters)
}

fn idle(args: &ScaleArgs) -> Result<()> {
    say("| idle volumes | CPU of one core | engine MiB | replica MiB | all servers MiB |");
    say("|---|---|---|---|---|");
    for count in &args.volumes {
        let mut clusters = start_many(*count, args)?;
        // What belongs to the start is over.
        pause(Duration::from_secs(3));
        let pids: Vec<u32> = clusters.iter().flat_map(servers).collect();
        let used = |pids: &[u32]| pids.iter().copied().map(cpu_seconds).sum::<f64>();
        let before = used(&pids);
        pause(Duration::from_secs(u64::from(args.seconds)));
        let cpu = (used(&pids) - before) / f64::from(args.seconds);
        let all = pids.iter().copied().map(resident_kib).sum::<u64>() / 1024;
        let (engine, replica) = clusters.first().map(memory).unwrap_or_default();
        say(&format!(
            "| {count} | {:.2} % | {engine:.0} | {replica:.0} | {all} |",
            cpu * 100.0
        ));
        for cluster in &mut clusters {
            cluster.stop()?;
        }
    }
    Ok(())
}

fn busy(args: &ScaleArgs) -> Result<()> {
    say("| busy volumes | writes/s in all | p99 us | CPU us a write |");
    say("|---|---|---|---|");
    for count in &args.volumes {
        let mut clusters = start_many(*count, args)?;
        let clients: Vec<Client> = clusters.iter().map(|c| client(c, 1)).collect();
        row(&count.to_string(), &clusters, &clients, args)?;
        for cluster in &mut clusters {
            cluster.stop()?;
        }
    }
    Ok(())
}

fn client(cluster: &Cluster, jobs: u32) -> Client {
    Client {
        uri: cluster.uri(),
        jobs,
        depth: 4,
    }
}

fn connections(args: &ScaleArgs) -> Result<()> {
    say("| connections | writes/s in all | p99 us | CPU us a write |");
    say("|---|---|---|---|");
    let mut clusters = start_many(1, args)?;
    for jobs in [1, 4, 16, JOBS_MAX] {
        let clients: Vec<Client> = clusters.iter().map(|c| client(c, jobs)).collect();
        row(&jobs.to_string(), &clusters, &clients, args)?;
    }
    clusters.iter_mut().try_for_each(Cluster::stop)
}

fn row(label: &str, clusters: &[Cluster], clients: &[Client], args: &ScaleArgs) -> Result<()> {
    let pids: Vec<u32> = clusters.iter().flat_map(servers).collect();
    let used = || pids.iter().copied().map(cpu_seconds).sum::<f64>();
    let before = used();
    let figures = fio::run_many(clients, args.seconds, 64)?;
    let cpu = (used() - before) * 1e6 / figures.operations.max(1.0);
    say(&format!(
        "| {label} | {:.0} | {:.0} | {cpu:.0} |",
        figures.iops, figures.p99_us
    ));
    Ok(())
}
