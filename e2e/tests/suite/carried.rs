//! Volumes whose engine carries a replica in its process: the two die together, and either may be left
//! without the other.

use crate::replace::{load, replaced, wait_replaced};
use crate::{faults, fencing};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::process::{Command, Stdio};
use trilith_e2e::cluster::{signal, trilith};
use trilith_e2e::{Cluster, Options, wait_until};

fn only_replica() -> Options {
    Options {
        replicas: 1,
        ..Options::default()
    }
}

fn first_of_three() -> Options {
    Options {
        more: vec!["--carry".to_owned()],
        ..Options::default()
    }
}

/// Replicas that have a process of their own, as status has it; those that do not answer are left out.
fn apart(cluster: &Cluster) -> Vec<u64> {
    let status = cluster.status().unwrap_or_default();
    let replicas = status["replicas"].as_array().cloned().unwrap_or_default();
    let is_apart = |r: &&serde_json::Value| r["report"]["carried"] == false;
    let apart = replicas.iter().filter(is_apart);
    apart.filter_map(|r| r["member"].as_u64()).collect()
}

/// The engine's process is that of replica 0 as well, and there is no other process of it.
fn ensure_carried(cluster: &Cluster, others: &[u64]) -> Result<()> {
    let status = cluster.status()?;
    let first = &status["replicas"][0]["report"];
    let pid = &status["engine"]["process"]["pid"];
    ensure!(
        first["carried"] == true && first["process"]["pid"] == *pid,
        "{status:#}"
    );
    ensure!(apart(cluster) == others, "{status:#}");
    let pids = cluster.pids("replica", "");
    ensure!(pids.len() == others.len(), "replicas run: {pids:?}");
    Ok(())
}

/// Stops the volume and has it healthy again.
fn restart(cluster: &mut Cluster) -> Result<()> {
    cluster.stop()?;
    cluster.up()?;
    cluster.wait_state("healthy")
}

#[test]
fn an_only_replica_dies_with_its_engine_and_loses_nothing() -> Result<()> {
    let mut cluster = Cluster::start(only_replica())?;
    faults::engine_is_killed_under_load(&cluster)?;
    ensure_carried(&cluster, &[])?;
    restart(&mut cluster)?;
    ensure_carried(&cluster, &[])?;
    cluster.kill_all()?;
    cluster.up()?;
    cluster.wait_state("healthy")?;
    cluster.stop()
}

#[test]
fn the_first_of_three_dies_with_its_engine_and_the_volume_heals() -> Result<()> {
    let mut cluster = Cluster::start(first_of_three())?;
    faults::engine_is_killed_under_load(&cluster)?;
    ensure_carried(&cluster, &[1, 2])?;
    // The others die under it, as ever.
    let mut fio = load(&cluster, 6)?;
    for member in [1, 2] {
        signal(cluster.replica(member)?, Signal::KILL)?;
        cluster.wait_state("healthy")?;
    }
    let status = fio.wait()?;
    ensure!(status.success(), "fio: {status}");
    restart(&mut cluster)?;
    ensure_carried(&cluster, &[1, 2])?;
    cluster.stop()
}

#[test]
fn a_flag_keeps_an_only_replica_in_a_process_of_its_own() -> Result<()> {
    let mut cluster = Cluster::start(Options {
        more: vec!["--apart".to_owned()],
        ..only_replica()
    })?;
    cluster.wait_state("healthy")?;
    ensure!(apart(&cluster) == [0] && cluster.replica(0).is_ok());
    signal(cluster.replica(0)?, Signal::KILL)?;
    cluster.wait_serving()?;
    // What was written apart is there when it is carried, and the other way round.
    for (flag, byte) in [("--carry", 1), ("--apart", 2)] {
        ensure!(cluster.client()?.write(0, &[byte; 4096])?.is_ok());
        cluster.set_flags(&[flag]);
        restart(&mut cluster)?;
        ensure!(apart(&cluster).is_empty() == (flag == "--carry"));
        ensure!(cluster.client()?.read(0, 4096)? == Ok(vec![byte; 4096]));
    }
    cluster.stop()
}

#[test]
fn a_fenced_engine_leaves_its_replica_to_the_one_that_took_over() -> Result<()> {
    for options in [only_replica(), first_of_three()] {
        let cluster = Cluster::start(options)?;
        fencing::take_over(&cluster, || {
            wait_until("replica 0 to have a process of its own", || {
                cluster.replica(0).is_ok() && apart(&cluster).contains(&0)
            })
            .with_context(|| cluster.log())
        })?;
    }
    Ok(())
}

#[test]
fn a_carried_replica_that_cannot_be_opened_gets_a_process_of_its_own() -> Result<()> {
    let mut cluster = Cluster::start(first_of_three())?;
    cluster.wait_state("healthy")?;
    ensure!(cluster.client()?.write(0, &[7; 4096])?.is_ok());
    cluster.stop()?;
    let meta = cluster.replica_dir(0).join("vol.meta");
    let saved = fs::read(&meta)?;
    fs::write(&meta, vec![0; saved.len()])?;
    cluster.up()?;
    ensure!(
        cluster.client()?.read(0, 4096)? == Ok(vec![7; 4096]),
        "two replicas are enough"
    );
    let engine = cluster.engine()?;
    // The process of its own tries again and again, until it can be opened.
    fs::write(&meta, saved)?;
    cluster.wait_state("healthy")?;
    ensure!(cluster.engine()? == engine && apart(&cluster) == [0, 1, 2]);
    restart(&mut cluster)?;
    ensure_carried(&cluster, &[1, 2])?;
    cluster.stop()
}

#[test]
fn a_carried_replica_is_replaced_and_let_go() -> Result<()> {
    let mut cluster = Cluster::start(only_replica())?;
    cluster.wait_state("healthy")?;
    let mut fio = load(&cluster, 6)?;
    let place = cluster.dir().join("other").display().to_string();
    replaced(&cluster, &["--member", "0", "--new-dir", &place])?;
    wait_replaced(&cluster, &[1])?;
    let status = fio.wait()?;
    ensure!(status.success(), "fio: {status}");
    // Its files are free.
    wait_until("the old replica to be closed", || {
        let dir = cluster.replica_dir(0).display().to_string();
        let check = Command::new(trilith())
            .args(["store", "check", &dir])
            .output();
        check.is_ok_and(|output| output.status.success())
    })?;
    ensure!(apart(&cluster) == [1]);
    restart(&mut cluster)?;
    ensure!(apart(&cluster).is_empty(), "the new one is carried next");
    cluster.stop()
}

/// Runs an engine by hand that carries what is in `dir` as replica 0 of the cluster's volume, which
/// is stopped.
fn engine_by_hand(cluster: &Cluster, volume: &str, dir: &str) -> Result<std::process::Output> {
    Command::new(trilith())
        .args(["engine", "--volume", volume, "--size", "256MiB"])
        .args(["--secret-file", "secret", "--attach-epoch", "1000"])
        .args(["--replica", "0=unix:run/by-hand.sock", "--carry"])
        .arg(format!("0={dir}"))
        .arg("--window-dir")
        .arg(cluster.windows())
        .current_dir(cluster.data())
        .stdin(Stdio::null())
        .output()
        .context("run an engine")
}

#[test]
fn a_foreign_directory_is_not_carried() -> Result<()> {
    let mut ours = Cluster::start(only_replica())?;
    let mut theirs = Cluster::start(only_replica())?;
    let volume = ours.status()?["volume"]["uuid"]
        .as_str()
        .context("a volume")?
        .to_owned();
    ours.stop()?;
    theirs.stop()?;
    let dir = theirs.replica_dir(0).display().to_string();
    let refused = engine_by_hand(&ours, &volume, &dir)?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(2),
        "{}: {text}",
        refused.status
    );
    ensure!(text.contains(&format!("{dir}: expected volume")), "{text}");
    let nothing = ours.dir().display().to_string();
    let refused = engine_by_hand(&ours, &volume, &nothing)?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(2),
        "{}: {text}",
        refused.status
    );
    ensure!(text.contains("expected vol.meta"), "{text}");
    theirs.up()?;
    theirs.wait_state("healthy")?;
    theirs.stop()
}
