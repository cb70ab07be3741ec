//! Processes die, stop and come back while clients work. Nothing acknowledged may be lost.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use trilith_e2e::cluster::{run, signal, trilith};
use trilith_e2e::history::{BLOCK, History, fill};
use trilith_e2e::nbd::Client;
use trilith_e2e::{Cluster, Options, Random, pause, wait_until};

const BLOCK_BYTES: u64 = BLOCK as u64;

pub(crate) fn fio_verify(cluster: &Cluster, seconds: u32) -> Result<Child> {
    Command::new("fio")
        .args([
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri={}", cluster.uri()),
        ])
        .args([
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=16",
            "--size=128m",
            "--time_based=1",
        ])
        .args([format!("--runtime={seconds}")])
        .args([
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--verify_backlog=2048",
            "--minimal",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("start fio")
}

#[test]
fn fio_sees_no_error_while_replicas_die_and_freeze_in_turn() -> Result<()> {
    replicas_die_and_freeze_under_fio(Options::default())
}

#[test]
fn fio_sees_no_error_with_processes_that_look_out_before_they_sleep() -> Result<()> {
    let more = vec!["--spin".to_owned(), "1ms".to_owned()];
    replicas_die_and_freeze_under_fio(Options {
        more,
        ..Options::default()
    })
}

fn replicas_die_and_freeze_under_fio(options: Options) -> Result<()> {
    let mut cluster = Cluster::start(options)?;
    cluster.wait_state("healthy")?;
    let mut fio = fio_verify(&cluster, 20)?;
    for round in 0..2 {
        for member in 0..3 {
            let pid = cluster.replica(member)?;
            if round == 0 {
                signal(pid, Signal::KILL)?;
            } else {
                signal(pid, Signal::STOP)?;
                pause(Duration::from_secs(1));
                signal(pid, Signal::CONT)?;
            }
            // One failure at a time is what three replicas survive.
            cluster.wait_state("healthy")?;
        }
    }
    let status = fio.wait()?;
    ensure!(status.success(), "fio: {status}");
    cluster.wait_state("healthy")?;
    cluster.stop()
}

/// Writes until the connection dies or `count` writes are done; all answers are recorded.
pub(crate) fn write_some(
    client: &mut Client,
    history: &mut History,
    random: &mut Random,
    count: u64,
) -> Result<()> {
    const DEPTH: usize = 16;
    let blocks = client.size / BLOCK_BYTES;
    let mut open: Vec<(u64, u64, u64)> = Vec::new();
    let mut flush: Option<(u64, Vec<(u64, u64)>)> = None;
    for n in 0..count {
        let block = random.below(blocks.min(512)) * 31 % blocks;
        if open.iter().all(|(_, b, _)| *b != block) {
            let stamp = history.begin(block);
            let cookie =
                client.send_write(block * BLOCK_BYTES, &fill(block, stamp), n % 37 == 0)?;
            open.push((cookie, block, stamp));
        }
        if flush.is_none() && n % 50 == 0 {
            let covered = history.snapshot();
            flush = Some((client.send_flush()?, covered));
        }
        while open.len() >= DEPTH {
            receive(client, history, &mut open, &mut flush)?;
        }
    }
    while !open.is_empty() || flush.is_some() {
        receive(client, history, &mut open, &mut flush)?;
    }
    Ok(())
}

fn receive(
    client: &mut Client,
    history: &mut History,
    open: &mut Vec<(u64, u64, u64)>,
    flush: &mut Option<(u64, Vec<(u64, u64)>)>,
) -> Result<()> {
    let reply = client.reply()?;
    ensure!(
        reply.error == 0,
        "NBD error {} while a majority is there",
        reply.error
    );
    if flush
        .as_ref()
        .is_some_and(|(cookie, _)| *cookie == reply.cookie)
    {
        let (_, covered) = flush.take().context("a flush")?;
        history.flushed(&covered);
    } else {
        let at = open
            .iter()
            .position(|(c, _, _)| *c == reply.cookie)
            .context("a known cookie")?;
        let (_, block, stamp) = open.swap_remove(at);
        history.acked(block, stamp);
    }
    Ok(())
}

pub(crate) fn check_all(cluster: &Cluster, history: &mut History, after_loss: bool) -> Result<()> {
    let mut client = cluster.client()?;
    for block in history.blocks() {
        let bytes = client.read(block * BLOCK_BYTES, u32::try_from(BLOCK)?)?;
        let bytes = bytes.map_err(|e| anyhow::anyhow!("read of block {block}: NBD error {e}"))?;
        history.check(block, &bytes, after_loss)?;
    }
    Ok(())
}

#[test]
fn no_acknowledged_write_is_lost_when_the_engine_is_killed() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    engine_is_killed_under_load(&cluster)?;
    cluster.stop()
}

/// Kills the engine again and again while a client writes, and looks that nothing acknowledged is lost.
pub(crate) fn engine_is_killed_under_load(cluster: &Cluster) -> Result<()> {
    cluster.wait_state("healthy")?;
    let (mut history, mut random) = (History::new(), Random(7));
    for round in 0..6 {
        let mut client = cluster.client()?;
        let pid = cluster.engine()?;
        let killer = std::thread::spawn(move || {
            pause(Duration::from_millis(150 + 100 * round));
            signal(pid, Signal::KILL)
        });
        // It ends when the engine dies under it.
        drop(write_some(
            &mut client,
            &mut history,
            &mut random,
            1_000_000,
        ));
        killer
            .join()
            .map_err(|_| anyhow::anyhow!("the killer panicked"))??;
        cluster.wait_serving()?;
        check_all(cluster, &mut history, false)?;
    }
    cluster.wait_state("healthy")
}

/// Kills everything and forgets what lives in tmpfs, as a power cut does.
pub(crate) fn power_cut(cluster: &mut Cluster) -> Result<()> {
    cluster.kill_all()?;
    let windows = cluster.windows();
    let mut removed = 0;
    for entry in fs::read_dir(windows)?.flatten() {
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
        removed += 1;
    }
    ensure!(removed > 0, "no window file was in {}", windows.display());
    Ok(())
}

#[test]
fn flushed_writes_survive_a_power_cut_of_all_replicas() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    cluster.wait_state("healthy")?;
    let (mut history, mut random) = (History::new(), Random(11));
    for _ in 0..2 {
        let mut client = cluster.client()?;
        write_some(&mut client, &mut history, &mut random, 3000)?;
        drop(client);
        power_cut(&mut cluster)?;
        cluster.spawn()?;
        // The recovery may have lost unflushed writes, so it waits for the operator (M8).
        wait_until("the volume to serve or to ask about the loss", || {
            let state = cluster.status().unwrap_or_default();
            let text = state["volume"].to_string();
            text.contains("healthy") || text.contains("degraded") || text.contains("loss")
        })?;
        let data = cluster.data().display().to_string();
        wait_until("the loss to be accepted", || {
            run(trilith(), &["volume", "accept-loss", "--dir", &data])
                .is_ok_and(|o| o.status.success())
                || cluster.state() == "healthy"
        })?;
        cluster.wait_serving()?;
        check_all(&cluster, &mut history, true)?;
        cluster.wait_state("healthy")?;
    }
    cluster.stop()
}

#[test]
fn a_clean_stop_and_a_new_start_keep_everything() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    let (mut history, mut random) = (History::new(), Random(3));
    for _ in 0..3 {
        let mut client = cluster.client()?;
        write_some(&mut client, &mut history, &mut random, 500)?;
        drop(client);
        cluster.stop()?;
        cluster.up()?;
        check_all(&cluster, &mut history, false)?;
    }
    cluster.stop()
}

#[test]
fn without_a_majority_reads_go_on_and_writes_fail_until_it_returns() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    cluster.wait_state("healthy")?;
    let mut client = cluster.client()?;
    let data = fill(5, 1);
    ensure!(client.write(5 * BLOCK_BYTES, &data)?.is_ok());
    ensure!(client.flush()?.is_ok());
    let stopped = [cluster.replica(1)?, cluster.replica(2)?];
    for pid in stopped {
        signal(pid, Signal::STOP)?;
    }
    cluster.wait_state("read-only")?;
    let read = client.read(5 * BLOCK_BYTES, u32::try_from(BLOCK)?)?;
    ensure!(read == Ok(data.clone()), "a read without a majority");
    // Waits for the majority as long as it may, then fails; the connection lives.
    ensure!(
        client.write(6 * BLOCK_BYTES, &fill(6, 2))?.is_err(),
        "a write without a majority"
    );
    for pid in stopped {
        signal(pid, Signal::CONT)?;
    }
    cluster.wait_state("healthy")?;
    ensure!(client.read(5 * BLOCK_BYTES, u32::try_from(BLOCK)?)? == Ok(data));
    ensure!(
        client.write(6 * BLOCK_BYTES, &fill(6, 3))?.is_ok(),
        "a write after the return"
    );
    cluster.stop()
}

#[test]
fn a_returning_replica_is_sent_only_what_it_missed() -> Result<()> {
    const WRITES: u64 = 2000;
    let mut cluster = Cluster::start(Options {
        size: "1GiB".to_owned(),
        ..Options::default()
    })?;
    let uri = cluster.uri();
    let fill_all = [
        "--name=fill",
        "--ioengine=nbd",
        "--rw=write",
        "--bs=1m",
        "--iodepth=4",
    ];
    let place = [
        format!("--uri={uri}"),
        "--size=1g".to_owned(),
        "--minimal".to_owned(),
    ];
    let args: Vec<&str> = fill_all
        .into_iter()
        .chain(place.iter().map(String::as_str))
        .collect();
    trilith_e2e::cluster::succeed("fio", &args)?;
    cluster.wait_state("healthy")?;

    let pid = cluster.replica(2)?;
    signal(pid, Signal::STOP)?;
    cluster.wait_state("degraded")?;
    let mut client = cluster.client()?;
    let mut random = Random(5);
    let mut chunks = std::collections::BTreeSet::new();
    for n in 0..WRITES {
        let block = random.below(client.size / BLOCK_BYTES);
        chunks.insert(block / 16);
        ensure!(
            client
                .write(block * BLOCK_BYTES, &fill(block, n + 1))?
                .is_ok()
        );
    }
    signal(pid, Signal::CONT)?;
    cluster.wait_state("healthy")?;
    let status = cluster.status()?;
    let copied = status["volume"]["rebuild_bytes"]
        .as_u64()
        .context("rebuild_bytes in status")?;
    let dirty = u64::try_from(chunks.len())? * 65536;
    ensure!(copied > 0, "nothing was copied");
    // What was in flight when the replica froze may add a little.
    ensure!(
        copied <= dirty + dirty / 4 + (8 << 20),
        "{copied} bytes copied, {dirty} dirty"
    );
    cluster.stop()?;
    let (a, b) = (cluster.replica_dir(0), cluster.replica_dir(2));
    let (a, b) = (a.join("vol.data"), b.join("vol.data"));
    let args = [a.display().to_string(), b.display().to_string()];
    trilith_e2e::cluster::succeed("cmp", &[&args[0], &args[1]])?;
    Ok(())
}
