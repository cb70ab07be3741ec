//! What a fault costs the clients: a replica that is far away, and a rebuild. Each row is a volume of
//! its own, measured before and during the fault in the same run.

use crate::fio::{self, Client, Figures, Place};
use crate::targets;
use crate::{FaultsArgs, clock, say};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use trilith_e2e::cluster::{signal, succeed};
use trilith_e2e::{Cluster, Options, pause};

/// A row of `faults`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Fault {
    /// Everything that the engine sends to one replica arrives later.
    Delay,
    /// One replica is away while every chunk of half the volume changes, and comes back.
    Rebuild,
}

/// Requests in flight of the client.
const DEPTH: u32 = 4;
/// Bytes that a proxy passes on at a time.
const STEP_BYTES: usize = 64 * 1024;
/// Steps that a proxy keeps; beyond it does not read.
const STEPS_MAX: usize = 4096;

/// Runs what `perf faults` asks for.
pub(crate) fn run(args: &FaultsArgs) -> Result<()> {
    for fault in &args.faults {
        match fault {
            Fault::Delay => delay(args)?,
            Fault::Rebuild => rebuild(args)?,
        }
    }
    Ok(())
}

fn volume(args: &FaultsArgs) -> Result<Cluster> {
    let cluster = Cluster::start(Options {
        size: format!("{}MiB", args.size_mib),
        replicas: 3,
        witness: false,
        more: Vec::new(),
    })?;
    cluster.wait_state("healthy")?;
    fill(&cluster, args.size_mib)?;
    Ok(cluster)
}

/// Writes every byte of the first `mib` once.
fn fill(cluster: &Cluster, mib: u64) -> Result<()> {
    targets::fill(&Place::Nbd(cluster.uri()), mib)
}

/// Random writes over the first `mib`.
fn client(cluster: &Cluster, args: &FaultsArgs, mib: u64) -> Result<Figures> {
    let client = Client {
        uri: cluster.uri(),
        jobs: 1,
        depth: DEPTH,
    };
    fio::run_many(&[client], args.seconds, mib)
}

fn row(label: &str, figures: &Figures) {
    say(&format!(
        "| {label} | {:.0} | {:.0} | {:.0} | {:.0} |",
        figures.iops, figures.p50_us, figures.p99_us, figures.max_us
    ));
}

fn head() {
    say("| 4 KiB random writes, depth 4 | IOPS | p50 us | p99 us | longest us |");
    say("|---|---|---|---|---|");
}

/// A proxy takes the place of the socket of replica 2; the engine is killed, and the next one dials
/// the proxy. Before, it passes everything on at once; later what goes to the replica waits.
fn delay(args: &FaultsArgs) -> Result<()> {
    let cluster = volume(args)?;
    let socket = cluster.data().join("run/replica-2.sock");
    let real = cluster.data().join("run/real");
    std::fs::rename(&socket, &real).context("take the place of a replica's socket")?;
    let listener = UnixListener::bind(&socket)?;
    let wait = Arc::new(Mutex::new(Duration::ZERO));
    let shared = Arc::clone(&wait);
    let dialled = Arc::new(AtomicBool::new(false));
    let is_dialled = Arc::clone(&dialled);
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = UnixStream::connect(&real) else {
                continue;
            };
            is_dialled.store(true, Ordering::Release);
            if let Err(error) = pass_on(&near, &far, &shared) {
                say(&format!("proxy: {error}"));
            }
        }
    });
    signal(cluster.engine()?, Signal::KILL)?;
    cluster.wait_serving()?;
    cluster.wait_state("healthy")?;
    ensure!(
        dialled.load(Ordering::Acquire),
        "the engine has not dialled the proxy"
    );
    head();
    let mut before = Vec::new();
    let mut during = Vec::new();
    for round in 0..args.rounds {
        *wait.lock().unwrap_or_else(PoisonError::into_inner) = Duration::ZERO;
        pause(Duration::from_secs(1));
        let figures = client(&cluster, args, args.size_mib)?;
        row(&format!("{round}: replica as near as the others"), &figures);
        before.push(figures.p99_us);
        *wait.lock().unwrap_or_else(PoisonError::into_inner) = Duration::from_millis(args.delay_ms);
        let figures = client(&cluster, args, args.size_mib)?;
        row(&format!("{round}: {} ms away", args.delay_ms), &figures);
        during.push(figures.p99_us);
    }
    let (before, during) = (
        crate::record::median(&mut before),
        crate::record::median(&mut during),
    );
    say(&format!(
        "p99 of the client changes by {:+.0} % (medians); the volume is {} then",
        (during / before - 1.0) * 100.0,
        cluster.state()
    ));
    Ok(())
}

/// Steps on their way, each with the time at which it is due; `None` at the end.
type Way = (Mutex<VecDeque<Option<(Instant, Vec<u8>)>>>, Condvar);

/// Passes bytes on in both directions until either side ends; those to `far` wait.
fn pass_on(near: &UnixStream, far: &UnixStream, wait: &Arc<Mutex<Duration>>) -> Result<()> {
    let way: Arc<Way> = Arc::default();
    let (mut from, mut to) = (near.try_clone()?, far.try_clone()?);
    let (read_way, write_way, wait) = (Arc::clone(&way), way, Arc::clone(wait));
    std::thread::spawn(move || {
        let mut step = vec![0; STEP_BYTES];
        loop {
            let bytes = from.read(&mut step).unwrap_or(0);
            let due = clock() + *wait.lock().unwrap_or_else(PoisonError::into_inner);
            let (steps, changed) = &*read_way;
            let mut steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
            while steps.len() >= STEPS_MAX {
                steps = changed.wait(steps).unwrap_or_else(PoisonError::into_inner);
            }
            steps.push_back((bytes > 0).then(|| (due, step[..bytes].to_vec())));
            changed.notify_all();
            if bytes == 0 {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        loop {
            let (steps, changed) = &*write_way;
            let mut steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
            let next = loop {
                match steps.pop_front() {
                    Some(next) => break next,
                    None => steps = changed.wait(steps).unwrap_or_else(PoisonError::into_inner),
                }
            };
            changed.notify_all();
            drop(steps);
            let sent = next.is_some_and(|(due, bytes)| {
                let left = due.saturating_duration_since(clock());
                if !left.is_zero() {
                    pause(left);
                }
                to.write_all(&bytes).is_ok()
            });
            if !sent {
                drop(to.shutdown(Shutdown::Both));
                return;
            }
        }
    });
    let (mut from, mut to) = (far.try_clone()?, near.try_clone()?);
    std::thread::spawn(move || {
        let mut step = vec![0; STEP_BYTES];
        loop {
            match from.read(&mut step) {
                Ok(bytes) if bytes > 0 && to.write_all(&step[..bytes]).is_ok() => {}
                Ok(_) | Err(_) => break,
            }
        }
        drop(to.shutdown(Shutdown::Both));
    });
    Ok(())
}

/// MiB/s at which the disk copies a file of `mib`, by qemu-img with eight requests in flight.
fn disk_copies(cluster: &Cluster, mib: u64) -> Result<f64> {
    let (source, target) = (cluster.dir().join("source"), cluster.dir().join("target"));
    targets::fill(&Place::File(source.display().to_string()), mib)?;
    let (source, target) = (source.display().to_string(), target.display().to_string());
    let how = [
        "convert", "-f", "raw", "-O", "raw", "-T", "none", "-t", "none", "-m", "8", "-W",
    ];
    let begun = clock();
    succeed(
        "qemu-img",
        &[&how[..], &[source.as_str(), target.as_str()]].concat(),
    )?;
    let rate = mib as f64 / begun.elapsed().as_secs_f64();
    std::fs::remove_file(source)?;
    std::fs::remove_file(target)?;
    Ok(rate)
}

/// Replica 2 is stopped, the first half of the volume is written, and it goes on. Returns MiB/s of the
/// rebuild. With `busy` a client writes in that half, and what it had before the replica went on, and
/// after, is returned as well.
fn rebuild_once(
    cluster: &Cluster,
    args: &FaultsArgs,
    busy: bool,
) -> Result<(f64, Option<[Figures; 2]>)> {
    let replica = cluster.replica(2)?;
    let dirty_mib = args.size_mib / 2;
    signal(replica, Signal::STOP)?;
    let filled = fill(cluster, dirty_mib);
    let calm = busy.then(|| client(cluster, args, dirty_mib)).transpose();
    signal(replica, Signal::CONT)?;
    filled?;
    let calm = calm?;
    let begun = clock();
    ensure!(
        cluster.state() != "healthy",
        "replica 2 was not missed: nothing is to be rebuilt"
    );
    std::thread::scope(|scope| {
        let during = busy.then(|| scope.spawn(|| client(cluster, args, dirty_mib)));
        cluster.wait_state("healthy")?;
        let rate = dirty_mib as f64 / begun.elapsed().as_secs_f64();
        let during = during.and_then(|thread| thread.join().ok()).transpose()?;
        Ok((rate, calm.zip(during).map(|(calm, during)| [calm, during])))
    })
}

fn rebuild(args: &FaultsArgs) -> Result<()> {
    let cluster = volume(args)?;
    let dirty_mib = args.size_mib / 2;
    let disk = disk_copies(&cluster, dirty_mib)?;
    let (rate, _) = rebuild_once(&cluster, args, false)?;
    say(&format!(
        "rebuild of {dirty_mib} MiB: {rate:.0} MiB/s with no client, {:.2} of the {disk:.0} MiB/s that \
         the disk copies",
        rate / disk
    ));
    let before = client(&cluster, args, dirty_mib)?;
    let (busy_rate, figures) = rebuild_once(&cluster, args, true)?;
    head();
    row("before", &before);
    if let Some([calm, during]) = figures {
        row("one replica away", &calm);
        row(
            "during the rebuild (and after, if that was shorter)",
            &during,
        );
        say(&format!(
            "rebuild beside the client: {busy_rate:.0} MiB/s; p99 of the client {:.1} times what it was, {:.1} \
             times what it was with one replica away",
            during.p99_us / before.p99_us.max(1.0),
            during.p99_us / calm.p99_us.max(1.0)
        ));
    }
    Ok(())
}
