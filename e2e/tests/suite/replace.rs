//! A replica is lost with its disk, or is to go, and is replaced while clients work; `up` or the
//! engine may die meanwhile. Who was replaced is nobody any more.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use trilith_e2e::cluster::{run, signal, succeed, trilith};
use trilith_e2e::{Cluster, Options, wait_until};

pub(crate) fn load(cluster: &Cluster, seconds: u32) -> Result<Child> {
    Command::new("fio")
        .args(["--name=verify", "--ioengine=nbd", "--rw=randwrite"])
        .arg(format!("--uri={}", cluster.uri()))
        .args(["--bs=4k", "--iodepth=8", "--size=64m", "--time_based=1"])
        .arg(format!("--runtime={seconds}"))
        .args(["--verify=crc32c", "--verify_fatal=1", "--minimal"])
        .args(["--verify_state_save=0", "--verify_backlog=1024"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("start fio")
}

fn replace(cluster: &Cluster, args: &[&str]) -> Result<Output> {
    let dir = cluster.data().display().to_string();
    let mut all = vec!["volume", "replace-replica", "--dir", &dir];
    all.extend(args);
    run(trilith(), &all)
}

pub(crate) fn replaced(cluster: &Cluster, args: &[&str]) -> Result<()> {
    let output = replace(cluster, args)?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{args:?}: {text}");
    Ok(())
}

fn refused(cluster: &Cluster, args: &[&str], why: &str) -> Result<()> {
    let output = replace(cluster, args)?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        !output.status.success() && text.contains(why),
        "{args:?}: {text}"
    );
    Ok(())
}

fn numbers(list: &Value) -> Vec<u64> {
    let list = list.as_array().cloned().unwrap_or_default();
    list.iter().filter_map(|r| r["member"].as_u64()).collect()
}

/// Replicas that the volume is to have, as `up` remembers it.
fn members(cluster: &Cluster) -> Vec<u64> {
    numbers(&cluster.status().unwrap_or_default()["replicas"])
}

/// Replicas that the engine deals with.
fn dealt_with(cluster: &Cluster) -> Vec<u64> {
    numbers(&cluster.status().unwrap_or_default()["engine"]["members"])
}

pub(crate) fn wait_replaced(cluster: &Cluster, wanted: &[u64]) -> Result<()> {
    let both = || members(cluster) == wanted && dealt_with(cluster) == wanted;
    wait_until(&format!("members {wanted:?}"), both).with_context(|| {
        let status = cluster.status().unwrap_or_default();
        format!("{status:#}\n{}", cluster.log())
    })?;
    cluster.wait_state("healthy")?;
    ensure!(cluster.status()?["engine"]["change"].is_null());
    Ok(())
}

/// Waits until the engine says that it puts `new` in the place of `old`, and `new` learns.
fn wait_learning(cluster: &Cluster, old: u64, new: u64) -> Result<()> {
    wait_until(&format!("replica {new} to learn"), || {
        let status = cluster.status().unwrap_or_default();
        let change = &status["engine"]["change"];
        change["step"] == "learning" && change["old"] == old && change["new"] == new
    })
    .with_context(|| cluster.log())
}

/// The content of a replica that does not run.
fn content(cluster: &Cluster, dir: &Path) -> Result<Vec<u8>> {
    let out = cluster.dir().join("export");
    let (dir, to) = (dir.display().to_string(), out.display().to_string());
    succeed(trilith(), &["store", "export", &dir, &to])?;
    let bytes = fs::read(&out)?;
    fs::remove_file(&out)?;
    Ok(bytes)
}

pub(crate) fn ensure_equal(cluster: &Cluster, dirs: &[PathBuf]) -> Result<()> {
    let first = content(cluster, &dirs[0])?;
    for dir in &dirs[1..] {
        let same = content(cluster, dir)? == first;
        ensure!(same, "{} differs", dir.display());
    }
    Ok(())
}

/// What a client reads.
fn image(cluster: &Cluster) -> Result<Vec<u8>> {
    let out = cluster.dir().join("image");
    succeed("nbdcopy", &[&cluster.uri(), &out.display().to_string()])?;
    let bytes = fs::read(&out)?;
    fs::remove_file(&out)?;
    Ok(bytes)
}

/// As long as this lives, the next replica of a number cannot start.
struct Hindered(#[expect(dead_code, reason = "listens until it is dropped")] UnixListener);

fn hinder(cluster: &Cluster, member: u64) -> Result<Hindered> {
    let path = cluster.data().join(format!("run/replica-{member}.sock"));
    let listener = UnixListener::bind(&path).with_context(|| path.display().to_string())?;
    Ok(Hindered(listener))
}

/// Takes a replica's disk away. Renamed before the process dies, so that no new one finds it.
fn lose(cluster: &Cluster, member: usize) -> Result<PathBuf> {
    let gone = cluster.dir().join(format!("lost-{member}"));
    fs::rename(cluster.replica_dir(member), &gone)?;
    signal(cluster.replica(member)?, Signal::KILL)?;
    cluster.wait_state("degraded")?;
    Ok(gone)
}

#[test]
fn a_lost_disk_is_replaced_under_load() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    cluster.wait_state("healthy")?;
    let mut fio = load(&cluster, 25)?;
    fs::remove_dir_all(lose(&cluster, 2)?)?;
    refused(
        &cluster,
        &["--member", "7"],
        "expected one of the replicas [0, 1, 2]",
    )?;
    refused(&cluster, &["--member", "0"], "expected --member 2")?;
    let full = cluster.dir().join("full");
    fs::create_dir(&full)?;
    fs::write(full.join("file"), "x")?;
    let full = full.display().to_string();
    refused(
        &cluster,
        &["--member", "2", "--new-dir", &full],
        "expected an empty directory for the new replica, found files",
    )?;
    let taken = cluster.replica_dir(1).display().to_string();
    refused(
        &cluster,
        &["--member", "2", "--new-dir", &taken],
        "expected an empty directory for the new replica, found a replica",
    )?;
    refused(&cluster, &["--give-up"], "no replica is being replaced")?;
    ensure!(
        !cluster.replica_dir(3).exists(),
        "a refused call left files"
    );
    let other = cluster.dir().join("other disk");
    fs::create_dir(&other)?;
    let place = other.display().to_string();
    replaced(&cluster, &["--member", "2", "--new-dir", &place])?;
    wait_replaced(&cluster, &[0, 1, 3])?;
    ensure!(
        fio.try_wait()?.is_none(),
        "the load ended before the replacement"
    );
    // The new one has its vote: another one may go.
    signal(cluster.replica(0)?, Signal::KILL)?;
    let mut client = cluster.client()?;
    ensure!(client.write(100 << 20, &[7; 4096])?.is_ok());
    cluster.wait_state("healthy")?;
    let status = fio.wait()?;
    ensure!(status.success(), "fio: {status}");
    cluster.stop()?;
    ensure_equal(
        &cluster,
        &[cluster.replica_dir(0), cluster.replica_dir(1), other],
    )?;
    cluster.up()?;
    wait_replaced(&cluster, &[0, 1, 3])?;
    cluster.stop()
}

#[test]
fn a_replacement_survives_its_engine_and_its_supervisor() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    cluster.wait_state("healthy")?;
    ensure!(load(&cluster, 4)?.wait()?.success(), "fio");
    let before = image(&cluster)?;
    let hindered = hinder(&cluster, 3)?;
    replaced(&cluster, &["--member", "1"])?;
    wait_learning(&cluster, 1, 3)?;
    refused(
        &cluster,
        &["--member", "0"],
        "replica 1 is being replaced by replica 3",
    )?;
    let first = cluster.engine()?;
    signal(first, Signal::KILL)?;
    wait_until("another engine", || {
        cluster.engine().is_ok_and(|pid| pid != first)
    })?;
    wait_learning(&cluster, 1, 3).context("after the engine's death")?;
    cluster.kill_all()?;
    cluster.up()?;
    wait_learning(&cluster, 1, 3).context("after the supervisor's death")?;
    ensure!(members(&cluster) == [0, 1, 2, 3]);
    ensure!(image(&cluster)? == before);
    drop(hindered);
    wait_replaced(&cluster, &[0, 2, 3])?;
    // At whatever step these find it.
    replaced(&cluster, &["--member", "0"])?;
    signal(cluster.engine()?, Signal::KILL)?;
    // Not number 1 again: the files of the one that was replaced are still in its directory.
    wait_replaced(&cluster, &[2, 3, 4])?;
    replaced(&cluster, &["--member", "2"])?;
    cluster.kill_all()?;
    cluster.up()?;
    wait_replaced(&cluster, &[3, 4, 5])?;
    ensure!(image(&cluster)? == before);
    cluster.stop()?;
    ensure_equal(&cluster, &[3, 4, 5].map(|m| cluster.replica_dir(m)))
}

#[test]
fn a_replacement_that_cannot_go_on_is_given_up_and_repeated() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    cluster.wait_state("healthy")?;
    ensure!(load(&cluster, 2)?.wait()?.success(), "fio");
    let hindered = hinder(&cluster, 3)?;
    let place = cluster.dir().join("other").display().to_string();
    replaced(&cluster, &["--member", "1", "--new-dir", &place])?;
    wait_learning(&cluster, 1, 3)?;
    replaced(&cluster, &["--give-up"])?;
    signal(cluster.engine()?, Signal::KILL)?;
    wait_replaced(&cluster, &[0, 1, 2])?;
    drop(hindered);
    fs::remove_dir_all(&place)?;
    replaced(&cluster, &["--member", "1", "--new-dir", &place])?;
    // Not 3 again: numbers that were used are given last.
    wait_replaced(&cluster, &[0, 2, 4])?;
    cluster.stop()?;
    let dirs = [cluster.replica_dir(0), cluster.replica_dir(2), place.into()];
    ensure_equal(&cluster, &dirs)
}

/// A process of the volume that somebody started by hand.
struct ByHand(Child);

impl ByHand {
    /// Where it says what it does.
    fn log(cluster: &Cluster, name: &str) -> PathBuf {
        cluster.dir().join(format!("{name}.log"))
    }

    fn start(cluster: &Cluster, role: &str, name: &str, args: &[String]) -> Result<ByHand> {
        let process = Command::new(trilith())
            .arg(role)
            .args(["--secret-file", "secret", "--admin"])
            .arg(format!("unix:run/{name}.admin"))
            .args(args)
            .current_dir(cluster.data())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(ByHand::log(cluster, name))?)
            .spawn()?;
        Ok(ByHand(process))
    }

    fn replica(cluster: &Cluster, member: usize, dir: &Path) -> Result<ByHand> {
        let args = [
            "--dir".to_owned(),
            dir.display().to_string(),
            format!("--listen=unix:run/replica-{member}.sock"),
            format!("--window-dir={}", cluster.windows().display()),
        ];
        ByHand::start(cluster, "replica", &format!("replica-{member}"), &args)
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Waits until a replica that was started by hand can be asked.
fn wait_open(cluster: &Cluster, member: usize) -> Result<()> {
    let name = format!("replica-{member}");
    wait_until(&name, || {
        ask(cluster, &name)["role"]
            .as_str()
            .is_some_and(|role| role != "opening")
    })
}

/// What the admin endpoint of a process says.
fn ask(cluster: &Cluster, name: &str) -> Value {
    let Ok(text) = cluster.ask(name, "/status") else {
        return Value::Null;
    };
    serde_json::from_str(&text).unwrap_or_default()
}

#[test]
fn who_was_replaced_neither_votes_nor_counts() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    cluster.wait_state("healthy")?;
    ensure!(load(&cluster, 2)?.wait()?.success(), "fio");
    // Replica 2 is away and never hears of it; replica 1 is told.
    let lost = lose(&cluster, 2)?;
    replaced(&cluster, &["--member", "2"])?;
    wait_replaced(&cluster, &[0, 1, 3])?;
    replaced(&cluster, &["--member", "1"])?;
    wait_replaced(&cluster, &[0, 3, 4])?;
    let mut client = cluster.client()?;
    ensure!(client.write(0, &[9; 4096])?.is_ok());
    let volume = cluster.status()?["volume"]["uuid"]
        .as_str()
        .context("a volume")?
        .to_owned();
    cluster.stop()?;

    let retired = ByHand::replica(&cluster, 1, &cluster.replica_dir(1))?;
    let stale = ByHand::replica(&cluster, 2, &lost)?;
    let voter = ByHand::replica(&cluster, 0, &cluster.replica_dir(0))?;
    for member in 0..3 {
        wait_open(&cluster, member)?;
    }
    ensure!(ask(&cluster, "replica-1")["role"] == "retired");
    // An engine that was told of the first three only, as an old script would.
    let mut args: Vec<String> = (0..3)
        .map(|m| format!("--replica={m}=unix:run/replica-{m}.sock"))
        .collect();
    let port = trilith_e2e::cluster::free_port()?;
    args.push(format!("--volume={volume}"));
    args.push("--size=256MiB".to_owned());
    args.push("--take-over".to_owned());
    args.push(format!("--nbd=127.0.0.1:{port}"));
    let engine = ByHand::start(&cluster, "engine", "by-hand", &args)?;
    // Replica 0 tells it who the voters are; of these it is the only one there.
    wait_until("the engine to learn the voters", || {
        numbers(&ask(&cluster, "by-hand")["members"]) == [0, 3, 4]
    })?;
    let address = format!("127.0.0.1:{port}");
    let serves = || {
        trilith_e2e::nbd::Client::connect(&address)
            .and_then(|mut client| client.read(0, 4096))
            .is_ok_and(|read| read.is_ok())
    };
    let terms: Vec<u64> = (1..3)
        .filter_map(|m| ask(&cluster, &format!("replica-{m}"))["term"].as_u64())
        .collect();
    for _ in 0..100 {
        let state = ask(&cluster, "by-hand")["state"].clone();
        ensure!(state != "healthy" && state != "degraded", "it is {state}");
        trilith_e2e::pause(std::time::Duration::from_millis(20));
    }
    let after: Vec<u64> = (1..3)
        .filter_map(|m| ask(&cluster, &format!("replica-{m}"))["term"].as_u64())
        .collect();
    ensure!(terms.len() == 2 && terms == after, "one of them voted");
    // That it was for want of replica 3 alone: with it, it serves.
    drop(engine);
    let second = ByHand::replica(&cluster, 3, &cluster.replica_dir(3))?;
    // An engine that is to take over gives up where too few answer at once.
    wait_open(&cluster, 3)?;
    args.push("--replica=3=unix:run/replica-3.sock".to_owned());
    let engine = ByHand::start(&cluster, "engine", "by-hand", &args)?;
    wait_until("the engine to serve", serves).with_context(|| {
        fs::read_to_string(ByHand::log(&cluster, "by-hand")).unwrap_or_default()
    })?;
    drop((engine, second, voter, stale, retired));
    cluster.up()?;
    wait_replaced(&cluster, &[0, 3, 4])?;
    ensure!(cluster.client()?.read(0, 4096)? == Ok(vec![9; 4096]));
    cluster.stop()
}
