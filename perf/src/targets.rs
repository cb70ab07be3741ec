//! The servers that are compared. Each gets the same bytes on the same medium.

mod ceph;

use crate::fio::{self, Place};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use trilith_e2e::cluster::trilith;

/// A running target. Stopped when dropped.
#[derive(Debug)]
pub(crate) struct Target {
    /// Its name in the tables.
    pub(crate) name: String,
    /// Where fio finds it.
    pub(crate) place: Place,
    children: Vec<Child>,
    /// Pid of a server that runs on after its starter has ended.
    daemon: Option<u32>,
}

/// How long the processes of a target named `-spin` look out.
const SPIN: &str = "1ms";

fn pause() {
    #[expect(
        clippy::disallowed_methods,
        reason = "servers outside give no event to wait for"
    )]
    std::thread::sleep(Duration::from_millis(50));
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn spawn(command: &mut Command, log: &Path) -> Result<Child> {
    let log = fs::File::create(log)?;
    let name = format!("{:?}", command.get_program());
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {name}"))
}

fn wait_port(port: u16) -> Result<()> {
    for _ in 0..600 {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(());
        }
        pause();
    }
    bail!("nothing listens on port {port} after 30 s")
}

fn wait_socket(path: &Path) -> Result<()> {
    for _ in 0..600 {
        if UnixStream::connect(path).is_ok() {
            return Ok(());
        }
        pause();
    }
    bail!("nothing listens on {} after 30 s", path.display())
}

fn raw_file(dir: &Path, size_mib: u64) -> Result<PathBuf> {
    let path = dir.join("raw");
    let file = fs::File::create(&path)?;
    file.set_len(size_mib << 20)?;
    Ok(path)
}

/// Writes every byte once, so that no target measures first-touch allocation.
pub(crate) fn fill(place: &Place, size_mib: u64) -> Result<()> {
    // Filled before it was served, or by another protocol.
    if matches!(place, Place::Iscsi(_)) {
        return Ok(());
    }
    let mut command = Command::new("fio");
    fio::aim(&mut command, place)?;
    let output = command
        .args([
            "--name=fill",
            "--rw=write",
            "--bs=1m",
            "--iodepth=4",
            "--minimal",
        ])
        .arg(format!("--size={size_mib}m"))
        .output()
        .context("run fio")?;
    ensure!(
        output.status.success(),
        "fill: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// URI of unit `unit` of the only target of a portal.
fn discover(port: u16, unit: u8) -> Result<String> {
    let portal = format!("iscsi://127.0.0.1:{port}");
    let output = Command::new("iscsi-ls").arg(&portal).output();
    let text = String::from_utf8_lossy(&output.context("run iscsi-ls")?.stdout).into_owned();
    let name = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix("Target:"))
        .with_context(|| format!("{portal} tells no target: {text}"))?;
    Ok(format!("{portal}/{name}/{unit}"))
}

/// Number of replicas and flags of a volume by the name of its target: `trilith3`, and behind it
/// `-carry` or `-apart` (the engine carries a replica, or does not), then `-spin` (its processes look
/// out for events before they sleep), then `-batch` (see [`is_batch`]).
fn volume(name: &str) -> Option<(usize, Vec<&'static str>)> {
    let mut name = name.strip_prefix("trilith")?;
    let mut more = Vec::new();
    let endings: [(&str, &[&str]); 4] = [
        (BATCH, &[]),
        ("-spin", &["--spin", SPIN]),
        ("-carry", &["--carry"]),
        ("-apart", &["--apart"]),
    ];
    for (ending, flags) in endings {
        if let Some(rest) = name.strip_suffix(ending) {
            name = rest;
            more.extend(flags);
        }
    }
    Some((name.parse().ok()?, more))
}

/// End of the name of a volume whose processes run under SCHED_BATCH: woken ones do not interrupt who runs.
const BATCH: &str = "-batch";

fn is_batch(name: &str) -> bool {
    name.ends_with(BATCH)
}

impl Target {
    /// A target of which nothing runs yet.
    fn named(name: &str) -> Target {
        Target {
            name: name.to_owned(),
            place: Place::File(String::new()),
            children: Vec::new(),
            daemon: None,
        }
    }

    /// Starts the target called `name` with its data in `dir` (made new), filled once.
    pub(crate) fn start(name: &str, dir: &Path, size_mib: u64) -> Result<Target> {
        fs::create_dir_all(dir)?;
        let mut target = Target::named(name);
        let log = dir.join("log");
        match name {
            "raw" => {
                target.place = Place::File(raw_file(dir, size_mib)?.display().to_string());
            }
            "qemu-nbd" => {
                let (file, port) = (raw_file(dir, size_mib)?, free_port()?);
                let mut command = Command::new("qemu-nbd");
                command
                    .args([
                        "-f",
                        "raw",
                        "-b",
                        "127.0.0.1",
                        "-t",
                        "-e",
                        "8",
                        "--discard=unmap",
                    ])
                    .args(["--cache=none", "--aio=io_uring", "-p", &port.to_string()])
                    .arg(file);
                target.serve(&mut command, &log, port)?;
            }
            "quorum" => target.start_quorum(dir, &log, size_mib)?,
            "ceph" => target.start_ceph(dir, size_mib)?,
            "nbd-server" => target.start_nbd_server(dir, &log, size_mib)?,
            "nbdkit-file" => {
                let (file, port) = (raw_file(dir, size_mib)?, free_port()?);
                let mut command = Command::new("nbdkit");
                command
                    .args(["-f", "-i", "127.0.0.1", "-p", &port.to_string(), "file"])
                    .arg(file);
                target.serve(&mut command, &log, port)?;
            }
            "nbdkit-memory" => {
                let port = free_port()?;
                let mut command = Command::new("nbdkit");
                command.args(["-f", "-i", "127.0.0.1", "-p", &port.to_string(), "memory"]);
                command.arg(format!("{size_mib}M"));
                target.serve(&mut command, &log, port)?;
            }
            "null-tokio-uring" => {
                let port = free_port()?;
                let built = "tokio-uring/target/release/null-tokio-uring";
                let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(built));
                command.args([port.to_string(), size_mib.to_string()]);
                target.serve(&mut command, &log, port)?;
            }
            "frontend-memory" => {
                let port = free_port()?;
                let mut command = Command::new(std::env::current_exe()?);
                command
                    .args(["serve-memory", "--port", &port.to_string()])
                    .args(["--size-mib", &size_mib.to_string()]);
                target.serve(&mut command, &log, port)?;
            }
            _ => match volume(name) {
                Some((replicas, more)) => {
                    target.start_trilith(replicas, dir, &log, size_mib, &more)?;
                }
                None => bail!(
                    "target {name}: expected raw, trilith1, trilith3, trilith5 (or one of them with \
                     -carry or -apart, then -spin, then -batch), qemu-nbd, quorum, ceph, nbd-server, nbdkit-file, nbdkit-memory, \
                     frontend-memory or null-tokio-uring"
                ),
            },
        }
        fill(&target.place, size_mib)?;
        Ok(target)
    }

    fn serve(&mut self, command: &mut Command, log: &Path, port: u16) -> Result<()> {
        self.children.push(spawn(command, log)?);
        self.place = Place::Nbd(format!("nbd://127.0.0.1:{port}/"));
        wait_port(port)
    }

    /// The replicated peer of the same shape: QEMU's quorum driver over three servers of one file
    /// each, on unix sockets; two of three must agree.
    fn start_quorum(&mut self, dir: &Path, log: &Path, size_mib: u64) -> Result<()> {
        let mut image = "driver=quorum,vote-threshold=2".to_owned();
        for n in 0..3 {
            let part = dir.join(n.to_string());
            fs::create_dir_all(&part)?;
            let (file, socket) = (raw_file(&part, size_mib)?, part.join("s"));
            let mut command = Command::new("qemu-nbd");
            command
                .args(["-f", "raw", "-t", "-e", "8", "--discard=unmap"])
                .args(["--cache=none", "--aio=io_uring", "-k"])
                .args([&socket, &file]);
            self.children.push(spawn(&mut command, &part.join("log"))?);
            wait_socket(&socket)?;
            image += &format!(
                ",children.{n}.driver=nbd,children.{n}.server.type=unix,children.{n}.server.path={}",
                socket.display()
            );
        }
        let port = free_port()?;
        let mut command = Command::new("qemu-nbd");
        command
            .args(["-b", "127.0.0.1", "-t", "-e", "8", "-p", &port.to_string()])
            .args(["--image-opts", &image]);
        self.serve(&mut command, log, port)
    }

    fn start_nbd_server(&mut self, dir: &Path, log: &Path, size_mib: u64) -> Result<()> {
        let (file, port) = (raw_file(dir, size_mib)?, free_port()?);
        let config = dir.join("config");
        fs::write(
            &config,
            format!(
                "[generic]\nlistenaddr=127.0.0.1\nport={port}\n[x]\nexportname={}\nflush=true\n",
                file.display()
            ),
        )?;
        let mut command = Command::new("nbd-server");
        let pid = dir.join("pid");
        command.arg("-C").arg(&config).arg("-p").arg(&pid);
        self.serve(&mut command, log, port)?;
        self.daemon = fs::read_to_string(&pid)?.trim().parse().ok();
        self.place = Place::Nbd(format!("nbd://127.0.0.1:{port}/x"));
        Ok(())
    }

    fn start_trilith(
        &mut self,
        n: usize,
        dir: &Path,
        log: &Path,
        size_mib: u64,
        more: &[&str],
    ) -> Result<()> {
        let port = free_port()?;
        let mut command = if is_batch(&self.name) {
            let mut command = Command::new("chrt");
            command.args(["--batch", "0"]).arg(trilith());
            command
        } else {
            Command::new(trilith())
        };
        command
            .args(["up", "--foreground", "--size", &format!("{size_mib}MiB")])
            .args([
                "--replicas",
                &n.to_string(),
                "--nbd",
                &format!("127.0.0.1:{port}"),
            ])
            .arg("--dir")
            .arg(dir.join("data"))
            .args(more);
        self.serve(&mut command, log, port)
    }

    /// Starts the iSCSI target called `name` with its data in `dir` (made new), filled once: a volume
    /// of Trilith, or tgt with one of its ways to a file. Logical blocks are 4096 bytes in all, so
    /// that no client asks for parts of a block.
    pub(crate) fn start_iscsi(name: &str, dir: &Path, size_mib: u64) -> Result<Target> {
        fs::create_dir_all(dir)?;
        let mut target = Target::named(name);
        let log = dir.join("log");
        if let Some((replicas, more)) = volume(name) {
            let port = free_port()?;
            let portal = format!("127.0.0.1:{port}");
            let iscsi = ["--iscsi", portal.as_str(), "--iscsi-block", "4096"];
            let more = [&iscsi[..], &more].concat();
            target.start_trilith(replicas, dir, &log, size_mib, &more)?;
            fill(&target.place, size_mib)?;
            target.place = Place::Iscsi(discover(port, 0)?);
            return Ok(target);
        }
        let store: &[&str] = match name {
            "tgt-direct" => &["--bstype", "rdwr", "--bsoflags", "direct"],
            "tgt-rdwr" => &["--bstype", "rdwr"],
            "tgt-aio" => &["--bstype", "aio"],
            _ => bail!(
                "target {name}: expected trilith1, trilith3, trilith5 (or one of them with -carry or \
                 -apart, then -spin), \
                 tgt-direct, tgt-rdwr or tgt-aio"
            ),
        };
        let file = raw_file(dir, size_mib)?.display().to_string();
        fill(&Place::File(file.clone()), size_mib)?;
        target.start_tgt(store, &file, &log)?;
        Ok(target)
    }

    fn start_tgt(&mut self, store: &[&str], file: &str, log: &Path) -> Result<()> {
        let port = free_port()?;
        // Its control socket is named after a number below 32768; ports that the kernel picks differ
        // in what is left of them.
        let control = (port % 32768).to_string();
        let mut command = Command::new("tgtd");
        let portal = format!("portal=127.0.0.1:{port}");
        command.args(["-f", "-C", &control, "--iscsi", &portal]);
        self.children.push(spawn(&mut command, log)?);
        wait_port(port)?;
        let admin = |args: &[&str]| -> Result<()> {
            let output = Command::new("tgtadm")
                .args(["-C", &control, "--lld", "iscsi"])
                .args(args)
                .output()
                .context("run tgtadm")?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "tgtadm {args:?}: {said}");
            Ok(())
        };
        let target = "iqn.2026-01.io.trilith.perf:tgt";
        admin(&[
            "--op", "new", "--mode", "target", "--tid", "1", "-T", target,
        ])?;
        let unit = [
            "--op",
            "new",
            "--mode",
            "logicalunit",
            "--tid",
            "1",
            "--lun",
            "1",
        ];
        let place = ["--blocksize", "4096", "-b", file];
        admin(&[&unit[..], store, &place].concat())?;
        admin(&[
            "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL",
        ])?;
        self.place = Place::Iscsi(discover(port, 1)?);
        Ok(())
    }

    /// Pids of the target's servers: its children and theirs.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self.children.iter().map(Child::id).collect();
        pids.extend(self.daemon);
        let roots = pids.clone();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<u32>().ok())
            else {
                continue;
            };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat
                .rsplit(')')
                .next()
                .and_then(|s| s.split_whitespace().nth(1)?.parse().ok());
            if parent.is_some_and(|p: u32| roots.contains(&p)) {
                pids.push(pid);
            }
        }
        pids
    }

    /// CPU seconds that the target's servers have used.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.pids().iter().map(|pid| cpu_seconds(*pid)).sum()
    }

    /// Bytes that the target's servers have had written to storage.
    pub(crate) fn bytes_written(&self) -> f64 {
        self.pids().iter().map(|pid| bytes_written(*pid)).sum()
    }

    /// Resident memory of the target's servers in MiB: (pid's command, MiB).
    pub(crate) fn resident_mib(&self) -> Vec<(String, u64)> {
        self.pids()
            .iter()
            .map(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let words: Vec<_> = line.split(|b| *b == 0).take(2).collect();
                let name = String::from_utf8_lossy(&words.join(&b' ')).into_owned();
                let short = name.rsplit('/').next().unwrap_or_default().to_owned();
                (short, resident_kib(*pid) / 1024)
            })
            .collect()
    }
}

fn bytes_written(pid: u32) -> f64 {
    fs::read_to_string(format!("/proc/{pid}/io"))
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
        .unwrap_or(0.0)
}

/// Resident memory of a process in KiB.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// CPU seconds that a process has used.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<f64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(11)
        // utime, stime, and those of children that have ended.
        .take(4)
        .filter_map(|v| v.parse().ok())
        .collect();
    // The kernel counts in hundredths of a second on every system that we build for.
    fields.iter().sum::<f64>() / 100.0
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(pid) = self.daemon {
            drop(Command::new("kill").arg(pid.to_string()).status());
        }
        for child in &mut self.children {
            // SIGTERM first: a volume stops cleanly and takes its processes with it.
            drop(Command::new("kill").arg(child.id().to_string()).status());
            for _ in 0..200 {
                if matches!(child.try_wait(), Ok(Some(_))) {
                    break;
                }
                pause();
            }
            drop(child.kill());
            drop(child.wait());
        }
    }
}
