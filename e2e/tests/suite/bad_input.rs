//! Wrong frames, wrong directories, broken files, full disks: a clear error, nothing lost.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use trilith_e2e::cluster::{free_port, run, signal, succeed, trilith};
use trilith_e2e::{Cluster, Options, wait_until};

/// Runs `trilith` with arguments that must be refused; what it said.
fn refused(args: &[&str]) -> Result<String> {
    let output = run(trilith(), args)?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "{args:?} was accepted");
    ensure!(!text.contains("panicked"), "{text}");
    Ok(text)
}

#[test]
fn wrong_arguments_get_an_error_that_says_what_was_expected() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data").display().to_string();
    let said = refused(&["up", "--size", "1000001", "--dir", &data])?;
    ensure!(said.contains("4096") || said.contains("4 KiB"), "{said}");
    ensure!(
        !Path::new(&data).exists(),
        "a refused command left a directory behind"
    );
    refused(&["up", "--size", "10XiB", "--dir", &data])?;
    refused(&["up", "--replicas", "4", "--size", "1GiB", "--dir", &data])?;
    refused(&["up", "--no-such-flag", "--dir", &data])?;
    refused(&["status", "--dir", &data])?;
    refused(&["store", "check", &data])?;
    Ok(())
}

#[test]
fn host_without_the_ublk_driver_is_told_what_to_do_and_nothing_is_made() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data").display().to_string();
    let up = ["up", "--size", "64MiB", "--ublk", "--dir", &data];
    if !Path::new("/dev/ublk-control").exists() {
        for args in [&up[..], &["ublk", "list"], &["ublk", "delete", "0"]] {
            let said = refused(args)?;
            ensure!(said.contains("modprobe ublk_drv"), "{said}");
        }
    }
    let plain = [&up[..], &["--backend", "plain"]].concat();
    let said = refused(&plain)?;
    ensure!(said.contains("io_uring"), "{said}");
    ensure!(!Path::new(&data).exists(), "a directory was left behind");
    Ok(())
}

#[test]
fn a_running_volume_cannot_be_started_twice_or_resized_by_accident() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    let data = cluster.data().display().to_string();
    let other = format!("127.0.0.1:{}", free_port()?);
    refused(&["up", "--dir", &data, "--nbd", &other])?;
    let replica = cluster.replica_dir(0).display().to_string();
    refused(&[
        "store",
        "export",
        &replica,
        &cluster.dir().join("x").display().to_string(),
    ])?;
    ensure!(
        cluster.client()?.write(0, &[1; 4096])?.is_ok(),
        "the volume still serves"
    );
    cluster.stop()?;
    let said = refused(&["up", "--dir", &data, "--size", "1GiB", "--nbd", &other])?;
    ensure!(
        said.contains("size") || said.contains("268435456"),
        "{said}"
    );
    refused(&["up", "--dir", &data, "--replicas", "5", "--nbd", &other])?;
    cluster.up()?;
    ensure!(cluster.client()?.read(0, 4096)? == Ok(vec![1; 4096]));
    cluster.stop()
}

#[test]
fn an_address_in_use_is_said_and_nothing_is_left_running() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    let second = tempfile::tempdir()?;
    let data = second.path().join("data").display().to_string();
    let address = cluster.address();
    let said = refused(&["up", "--size", "64MiB", "--dir", &data, "--nbd", &address])?;
    ensure!(said.contains("in use"), "{said}");
    ensure!(
        cluster.client()?.write(0, &[1; 4096])?.is_ok(),
        "the first volume still serves"
    );
    cluster.stop()
}

/// Sockets of the replicas below the volume's directory.
fn replica_sockets(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(replica_sockets(&path));
        } else if UnixStream::connect(&path).is_ok() {
            found.push(path);
        }
    }
    found
}

#[test]
fn noise_on_every_socket_disturbs_nobody() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    cluster.wait_state("healthy")?;
    let pids = [
        cluster.engine()?,
        cluster.replica(0)?,
        cluster.replica(1)?,
        cluster.replica(2)?,
    ];
    let mut noise = vec![0; 64 << 10];
    File::open("/dev/urandom")?.read_exact(&mut noise)?;
    let sockets = replica_sockets(&cluster.data());
    ensure!(!sockets.is_empty(), "no unix socket below the directory");
    for socket in sockets {
        for len in [1, 64, 4096, noise.len()] {
            let mut stream = UnixStream::connect(&socket)?;
            // The other end may close while we are still sending.
            drop(stream.write_all(&noise[..len]));
        }
    }
    for len in [1, 18, 4096, noise.len()] {
        let mut stream = std::net::TcpStream::connect(cluster.address())?;
        drop(stream.write_all(&noise[..len]));
    }
    ensure!(cluster.client()?.write(0, &[1; 4096])?.is_ok());
    cluster.wait_state("healthy")?;
    let now = [
        cluster.engine()?,
        cluster.replica(0)?,
        cluster.replica(1)?,
        cluster.replica(2)?,
    ];
    ensure!(
        pids == now,
        "a process died of noise: {pids:?}, now {now:?}"
    );
    cluster.stop()
}

/// Flips one bit in each 4 KiB block of a part of a file.
fn flip(path: &Path, from: u64, to: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    for at in (from..to).step_by(4096) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at + 100)?;
        file.write_all_at(&[byte[0] ^ 4], at + 100)?;
    }
    Ok(())
}

#[test]
fn a_replica_with_broken_metadata_does_not_start_and_loses_nothing() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    cluster.wait_state("healthy")?;
    let mut client = cluster.client()?;
    ensure!(client.write(0, &[7; 4096])?.is_ok());
    ensure!(client.flush()?.is_ok());
    drop(client);
    cluster.stop()?;
    let dir = cluster.replica_dir(2);
    let whole = succeed(trilith(), &["store", "check", &dir.display().to_string()])?;
    ensure!(!whole.is_empty(), "check says what it found");
    // Both superblocks.
    let meta = dir.join("vol.meta");
    let saved = fs::read(&meta)?;
    flip(&meta, 0, 4096)?;
    flip(&meta, 1 << 20, (1 << 20) + 4096)?;
    let said = refused(&["store", "check", &dir.display().to_string()])?;
    ensure!(said.contains("superblock"), "{said}");
    cluster.up()?;
    ensure!(
        cluster.client()?.read(0, 4096)? == Ok(vec![7; 4096]),
        "two replicas are enough"
    );
    ensure!(
        cluster.state() == "degraded",
        "state is {}",
        cluster.state()
    );
    cluster.stop()?;
    // Truncated.
    File::options().write(true).open(&meta)?.set_len(10_000)?;
    refused(&["store", "check", &dir.display().to_string()])?;
    fs::write(&meta, saved)?;
    cluster.up()?;
    cluster.wait_state("healthy")?;
    cluster.stop()
}

#[test]
fn a_replica_of_another_volume_is_refused() -> Result<()> {
    let mut first = Cluster::start(Options::default())?;
    let mut second = Cluster::start(Options::default())?;
    ensure!(first.client()?.write(0, &[1; 4096])?.is_ok());
    ensure!(second.client()?.write(0, &[2; 4096])?.is_ok());
    first.stop()?;
    second.stop()?;
    let (ours, theirs) = (first.replica_dir(0), second.replica_dir(0));
    let aside = first.dir().join("aside");
    fs::rename(&ours, &aside)?;
    succeed(
        "cp",
        &[
            "-a",
            "--sparse=always",
            &theirs.display().to_string(),
            &ours.display().to_string(),
        ],
    )?;
    first.up()?;
    ensure!(
        first.client()?.read(0, 4096)? == Ok(vec![1; 4096]),
        "the foreign replica was read"
    );
    ensure!(first.state() == "degraded", "state is {}", first.state());
    first.stop()?;
    fs::remove_dir_all(&ours)?;
    fs::rename(&aside, &ours)?;
    first.up()?;
    first.wait_state("healthy")?;
    first.stop()
}

#[test]
fn a_full_disk_under_one_replica_never_reaches_the_client() -> Result<()> {
    let mut cluster = Cluster::start(Options::default())?;
    cluster.wait_state("healthy")?;
    cluster.stop()?;
    // The replica's directory moves to a file system with little room.
    let dir = cluster.replica_dir(1);
    let aside = cluster.dir().join("aside");
    fs::rename(&dir, &aside)?;
    fs::create_dir(&dir)?;
    let (at, from) = (dir.display().to_string(), format!("{}/.", aside.display()));
    let mounted = run("mount", &["-t", "tmpfs", "-o", "size=100m", "tmpfs", &at])?;
    ensure!(
        mounted.status.success(),
        "this test mounts a tmpfs: run it as root (in `unshare -rm` as a user)"
    );
    let result = full_disk(&mut cluster, &from, &at);
    cluster.kill_all()?;
    succeed("umount", &[&at])?;
    result
}

fn full_disk(cluster: &mut Cluster, from: &str, at: &str) -> Result<()> {
    succeed("cp", &["-a", "--sparse=always", from, at])?;
    cluster.up()?;
    let write = Command::new("fio")
        .args([
            "--name=fill",
            "--ioengine=nbd",
            &format!("--uri={}", cluster.uri()),
        ])
        .args([
            "--rw=write",
            "--bs=256k",
            "--iodepth=4",
            "--size=200m",
            "--verify=crc32c",
        ])
        .args(["--verify_fatal=1", "--verify_state_save=0", "--minimal"])
        .stdin(Stdio::null())
        .output()
        .context("run fio")?;
    ensure!(
        write.status.success(),
        "fio: {}",
        String::from_utf8_lossy(&write.stderr)
    );
    cluster.wait_state("degraded")?;
    wait_until("every process to live", || {
        cluster.engine().is_ok() && (0..3).all(|member| cluster.replica(member).is_ok())
    })?;
    // It still votes: with another one gone there is a majority of voters, and data on one.
    signal(cluster.engine()?, Signal::KILL)?;
    cluster.wait_serving()?;
    ensure!(
        cluster.client()?.write(0, &[3; 4096])?.is_ok(),
        "a write with two good replicas"
    );
    cluster.stop()
}
