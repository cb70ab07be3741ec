//! Two replicas and a witness (7.1): any one of the three dies, freezes or loses its power while
//! clients work. Nothing acknowledged may be lost, and who was left behind never serves.

use crate::faults::{check_all, fio_verify, power_cut, write_some};
use crate::replace::{ensure_equal, load};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use trilith_e2e::cluster::{run, signal, succeed, trilith};
use trilith_e2e::history::{BLOCK, History, fill};
use trilith_e2e::{Cluster, Options, Random, pause, wait_until};

const WITNESS: usize = 2;

fn start() -> Result<Cluster> {
    let cluster = Cluster::start(Options {
        replicas: 2,
        witness: true,
        ..Options::default()
    })?;
    healthy(&cluster)?;
    Ok(cluster)
}

fn healthy(cluster: &Cluster) -> Result<()> {
    cluster.wait_state("healthy").with_context(|| cluster.log())
}

/// A process that is gone, and whose next one finds no files until they are put back.
struct Away {
    member: usize,
    at: PathBuf,
}

/// Takes the files of a member away. Renamed before the process dies, so that no new one finds them.
fn take_away(cluster: &Cluster, member: usize) -> Result<Away> {
    let at = cluster.dir().join(format!("away-{member}"));
    fs::rename(cluster.replica_dir(member), &at)?;
    if let Ok(pid) = cluster.replica(member) {
        signal(pid, Signal::KILL)?;
    }
    Ok(Away { member, at })
}

fn put_back(cluster: &Cluster, away: &Away) -> Result<()> {
    fs::rename(&away.at, cluster.replica_dir(away.member)).context("put a member back")
}

fn detail(cluster: &Cluster) -> String {
    let status = cluster.status().unwrap_or_default();
    format!(
        "{} {}",
        status["volume"]["state"], status["volume"]["detail"]
    )
}

fn wait_detail(cluster: &Cluster, part: &str) -> Result<()> {
    wait_until(part, || detail(cluster).contains(part))
        .with_context(|| format!("it is {}\n{}", detail(cluster), cluster.log()))
}

/// Writes that must be answered well, whatever they wait for.
fn write(cluster: &Cluster, history: &mut History, random: &mut Random, count: u64) -> Result<()> {
    write_some(&mut cluster.client()?, history, random, count)
}

#[test]
fn fio_sees_no_error_while_each_of_the_three_dies_and_freezes_in_turn() -> Result<()> {
    let mut cluster = start()?;
    let mut fio = fio_verify(&cluster, 25)?;
    for round in 0..2 {
        for member in 0..3 {
            let pid = cluster.replica(member)?;
            if round == 0 {
                signal(pid, Signal::KILL)?;
            } else {
                signal(pid, Signal::STOP)?;
                // Longer than it takes to go on without it.
                wait_until("degraded", || cluster.state() == "degraded")?;
                signal(pid, Signal::CONT)?;
            }
            healthy(&cluster)?;
        }
    }
    let status = fio.wait()?;
    ensure!(status.success(), "fio: {status}\n{}", cluster.log());
    cluster.stop()?;
    ensure_equal(&cluster, &[cluster.replica_dir(0), cluster.replica_dir(1)])
}

#[test]
fn writes_go_on_without_a_replica_and_it_is_rebuilt_when_it_returns() -> Result<()> {
    let mut cluster = start()?;
    let (mut history, mut random) = (History::new(), Random(5));
    for member in [1, 0] {
        write(&cluster, &mut history, &mut random, 500)?;
        let away = take_away(&cluster, member)?;
        // They wait until the shrink is in force, and are answered then.
        write(&cluster, &mut history, &mut random, 1500)?;
        wait_detail(&cluster, "one replica alone holds the data")?;
        check_all(&cluster, &mut history, false)?;
        put_back(&cluster, &away)?;
        healthy(&cluster)?;
        check_all(&cluster, &mut history, false)?;
    }
    cluster.stop()?;
    ensure_equal(&cluster, &[cluster.replica_dir(0), cluster.replica_dir(1)])
}

#[test]
fn without_the_witness_both_replicas_go_on_and_neither_does_alone() -> Result<()> {
    let mut cluster = start()?;
    let (mut history, mut random) = (History::new(), Random(6));
    let witness = take_away(&cluster, WITNESS)?;
    wait_detail(&cluster, "the witness cannot be reached")?;
    write(&cluster, &mut history, &mut random, 1000)?;
    // Without the witness nobody is demoted: the volume waits for the one that is away.
    let away = take_away(&cluster, 1)?;
    wait_until("it to stop writing", || {
        !["healthy", "degraded"].contains(&cluster.state().as_str())
    })?;
    let mut client = cluster.client()?;
    let block = 40 * BLOCK as u64;
    ensure!(
        client.write(block, &fill(40, 1))?.is_err(),
        "a write that one replica alone holds"
    );
    drop(client);
    put_back(&cluster, &witness)?;
    wait_detail(&cluster, "one replica alone holds the data")?;
    write(&cluster, &mut history, &mut random, 200)?;
    put_back(&cluster, &away)?;
    healthy(&cluster)?;
    check_all(&cluster, &mut history, false)?;
    cluster.stop()
}

#[test]
fn no_acknowledged_write_is_lost_when_the_engine_is_killed_with_one_replica_left() -> Result<()> {
    let mut cluster = start()?;
    let (mut history, mut random) = (History::new(), Random(8));
    write(&cluster, &mut history, &mut random, 500)?;
    for member in [1, 0] {
        let away = take_away(&cluster, member)?;
        write(&cluster, &mut history, &mut random, 500)?;
        for round in 0..3 {
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
            check_all(&cluster, &mut history, false)?;
        }
        put_back(&cluster, &away)?;
        healthy(&cluster)?;
    }
    cluster.stop()
}

/// Engine and replica die together: the other one and the witness have all there is.
#[test]
fn a_replica_and_the_engine_that_die_at_once_are_survived() -> Result<()> {
    let mut cluster = start()?;
    let (mut history, mut random) = (History::new(), Random(9));
    for member in [1, 0] {
        write(&cluster, &mut history, &mut random, 800)?;
        let engine = cluster.engine()?;
        let away = take_away(&cluster, member)?;
        signal(engine, Signal::KILL)?;
        wait_until("another engine", || {
            cluster.engine().is_ok_and(|pid| pid != engine)
        })?;
        cluster.wait_serving()?;
        check_all(&cluster, &mut history, false)?;
        write(&cluster, &mut history, &mut random, 200)?;
        put_back(&cluster, &away)?;
        healthy(&cluster)?;
        check_all(&cluster, &mut history, false)?;
    }
    cluster.stop()
}

/// The witness knows who went on alone: the other one waits for it, through restarts and power cuts.
#[test]
fn who_was_left_behind_waits_for_the_one_that_went_on_alone() -> Result<()> {
    let mut cluster = start()?;
    let (mut history, mut random) = (History::new(), Random(10));
    write(&cluster, &mut history, &mut random, 300)?;
    let behind = take_away(&cluster, 1)?;
    write(&cluster, &mut history, &mut random, 300)?;
    wait_detail(&cluster, "one replica alone holds the data")?;
    cluster.kill_all()?;
    put_back(&cluster, &behind)?;
    let newest = take_away(&cluster, 0)?;
    for cut in [false, true] {
        if cut {
            power_cut(&mut cluster)?;
        }
        cluster.spawn()?;
        wait_detail(
            &cluster,
            "for the replica without which writes would be lost",
        )?;
        // Longer than a lossy recovery waits for anybody.
        for _ in 0..70 {
            let state = cluster.state();
            ensure!(
                !["healthy", "degraded", "read-only"].contains(&state.as_str()),
                "it is {state} with what is older than what was acknowledged"
            );
            pause(Duration::from_secs(1));
        }
    }
    put_back(&cluster, &newest)?;
    wait_until("the loss to be accepted, if there is one", || {
        let data = cluster.data().display().to_string();
        run(trilith(), &["volume", "accept-loss", "--dir", &data]).is_ok_and(|o| o.status.success())
            || cluster.state() == "healthy"
    })
    .with_context(|| cluster.log())?;
    healthy(&cluster)?;
    check_all(&cluster, &mut history, false)?;
    cluster.stop()
}

#[test]
fn flushed_writes_survive_a_power_cut_of_all_three() -> Result<()> {
    let mut cluster = start()?;
    let (mut history, mut random) = (History::new(), Random(11));
    for alone in [false, true] {
        write(&cluster, &mut history, &mut random, 1000)?;
        let away = alone.then(|| take_away(&cluster, 1)).transpose()?;
        write(&cluster, &mut history, &mut random, 1000)?;
        power_cut(&mut cluster)?;
        if let Some(away) = away {
            put_back(&cluster, &away)?;
        }
        cluster.spawn()?;
        wait_until("the loss to be accepted", || {
            let data = cluster.data().display().to_string();
            run(trilith(), &["volume", "accept-loss", "--dir", &data])
                .is_ok_and(|o| o.status.success())
                || cluster.state() == "healthy"
        })
        .with_context(|| cluster.log())?;
        cluster.wait_serving()?;
        check_all(&cluster, &mut history, true)?;
        healthy(&cluster)?;
    }
    cluster.stop()
}

#[test]
fn a_clean_stop_seals_all_three_and_a_new_start_keeps_everything() -> Result<()> {
    let mut cluster = start()?;
    let (mut history, mut random) = (History::new(), Random(3));
    for _ in 0..3 {
        write(&cluster, &mut history, &mut random, 500)?;
        cluster.stop()?;
        for member in 0..3 {
            let dir = cluster.replica_dir(member).display().to_string();
            let text = succeed(trilith(), &["store", "show", &dir])?;
            ensure!(
                text.contains("sealed (stopped cleanly)"),
                "{member}: {text}"
            );
            succeed(trilith(), &["store", "check", &dir])?;
        }
        ensure_equal(&cluster, &[cluster.replica_dir(0), cluster.replica_dir(1)])?;
        cluster.up()?;
        check_all(&cluster, &mut history, false)?;
        healthy(&cluster)?;
    }
    cluster.stop()
}

#[test]
fn status_and_metrics_show_the_witness_as_what_it_is() -> Result<()> {
    let mut cluster = start()?;
    ensure!(load(&cluster, 2)?.wait()?.success(), "fio");
    let data = cluster.data().display().to_string();
    let text = succeed(trilith(), &["status", "--dir", &data])?;
    ensure!(
        text.contains("healthy: both replicas are in sync and the witness is there"),
        "{text}"
    );
    let row = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.first() == Some(&"2"))
        .context("a row of the witness")?;
    ensure!(row[..6] == ["2", "witness", "up", "-", "-", "-"], "{row:?}");
    let status = cluster.status()?;
    ensure!(status["replicas"][WITNESS]["report"]["role"] == "witness");
    let metrics = cluster.ask("engine", "/metrics")?;
    for line in [
        "trilith_engine_member_witness{member=\"2\"} 1",
        "trilith_engine_member_witness{member=\"0\"} 0",
        "trilith_engine_member_up{member=\"2\"} 1",
        "trilith_engine_member_in_sync{member=\"1\"} 1",
    ] {
        ensure!(metrics.contains(line), "{line} in\n{metrics}");
    }
    ensure!(!metrics.contains("trilith_engine_member_in_sync{member=\"2\"}"));
    let own = cluster.ask("replica-2", "/metrics")?;
    ensure!(own.contains("trilith_replica_witness 1"), "{own}");
    ensure!(own.contains("trilith_replica_malformed_total 0"), "{own}");
    // Neither a replica nor the witness is replaced.
    for member in ["0", "2"] {
        let args = [
            "volume",
            "replace-replica",
            "--dir",
            &data,
            "--member",
            member,
        ];
        let output = run(trilith(), &args)?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && error.contains("can be replaced yet"),
            "{error}"
        );
    }
    cluster.stop()
}
