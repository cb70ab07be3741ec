//! A volume served by `trilith up`, its processes found and killed by their command lines.

use crate::iscsi::{Initiator, Login};
use crate::nbd::Client;
use crate::wait_until;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// How to start a volume.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size as `trilith up --size` takes it.
    pub size: String,
    /// Number of replicas.
    pub replicas: usize,
    /// With a witness besides.
    pub witness: bool,
    /// Further arguments of `trilith up`.
    pub more: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            size: "256MiB".to_owned(),
            replicas: 3,
            witness: false,
            more: Vec::new(),
        }
    }
}

/// A running (or stopped) volume in a directory of its own.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    dir: tempfile::TempDir,
    /// What outlives a process but not the kernel; on tmpfs, gone with the test.
    windows: tempfile::TempDir,
    port: u16,
    iscsi_port: u16,
    up: Option<Child>,
}

/// The `trilith` executable, built beside this program or, for tests, a directory above.
///
/// # Panics
/// When it has not been built.
pub fn trilith() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("trilith"))
        .find(|path| path.is_file());
    assert!(
        found.is_some(),
        "no trilith beside {}: cargo build --release -p trilith",
        own.display()
    );
    found.unwrap_or_default()
}

/// A port that nobody listens on now.
///
/// # Errors
/// When the system has none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Runs a program to its end; its output, whatever its status.
///
/// # Errors
/// When it cannot be started.
pub fn run(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Result<Output> {
    let program = program.as_ref();
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {}", program.display()))
}

/// Runs a program that must succeed; what it printed.
///
/// # Errors
/// When it fails; the error has what it printed.
pub fn succeed(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Result<String> {
    let program = program.as_ref();
    let output = run(program, args)?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(
        output.status.success(),
        "{} {args:?}: {}: {text}",
        program.display(),
        output.status
    );
    Ok(text)
}

impl Cluster {
    /// Creates a volume and starts it; returns when it serves.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(options: Options) -> Result<Cluster> {
        let base = std::env::var_os("TRILITH_E2E_DIR").map_or_else(std::env::temp_dir, Into::into);
        let mut dir = tempfile::Builder::new()
            .prefix("trilith-e2e-")
            .tempdir_in(base)?;
        // To look at what a failing test left behind.
        dir.disable_cleanup(std::env::var_os("TRILITH_E2E_KEEP").is_some());
        let mut cluster = Cluster {
            options,
            dir,
            windows: tempfile::Builder::new()
                .prefix("trilith-e2e-")
                .tempdir_in("/dev/shm")?,
            port: free_port()?,
            iscsi_port: free_port()?,
            up: None,
        };
        cluster.up()?;
        Ok(cluster)
    }

    /// Directory of the test; the volume is in `data` below it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Directory given to `trilith up --dir`.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Directory on tmpfs that holds the replicas' windows.
    pub fn windows(&self) -> &Path {
        self.windows.path()
    }

    /// `host:port` of the NBD server.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// NBD URI of the volume.
    pub fn uri(&self) -> String {
        format!("nbd://127.0.0.1:{}/", self.port)
    }

    /// `host:port` of the iSCSI target.
    pub fn portal(&self) -> String {
        format!("127.0.0.1:{}", self.iscsi_port)
    }

    /// URI of the unit, as status has it.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub fn iscsi_uri(&self) -> Result<String> {
        let status = self.status()?;
        let uri = status["engine"]["iscsi"]["uris"][0].as_str();
        Ok(uri.context("an iSCSI URI in status")?.to_owned())
    }

    /// How initiator `n` logs in.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub fn login(&self, n: u8) -> Result<Login> {
        let uri = self.iscsi_uri()?;
        let target = uri.split('/').nth(3).context("a target in the URI")?;
        Ok(Login {
            target: target.to_owned(),
            initiator: format!("iqn.2026-01.io.trilith.e2e:{n}"),
            isid: n,
            digests: false,
        })
    }

    /// A session of initiator `n`, ready.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn initiator(&self, n: u8) -> Result<Initiator> {
        Initiator::ready(&self.portal(), &self.login(n)?)
    }

    /// Changes what its further flags are from the next start on.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.options.more = flags.iter().map(|flag| (*flag).to_owned()).collect();
    }

    /// Starts `trilith up` on the volume; returns when it serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn up(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_serving()
    }

    /// Starts `trilith up` without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(self.up.is_none(), "the volume runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let data = self.data();
        let child = Command::new(trilith())
            .args(["up", "--foreground", "--size", &self.options.size])
            .args(["--replicas", &self.options.replicas.to_string()])
            .arg("--dir")
            .arg(&data)
            .args(["--nbd", &self.address(), "--iscsi", &self.portal()])
            .arg("--window-dir")
            .arg(self.windows.path())
            .args(&self.options.more)
            .args(self.options.witness.then_some("--witness"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start trilith up")?;
        self.up = Some(child);
        Ok(())
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// What the processes have printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Waits until a client can read.
    ///
    /// # Errors
    /// When that does not happen.
    pub fn wait_serving(&self) -> Result<()> {
        wait_until("the volume to serve reads", || {
            Client::connect(&self.address())
                .and_then(|mut client| client.read(0, 4096))
                .is_ok_and(|read| read.is_ok())
        })
    }

    /// A client's connection.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn client(&self) -> Result<Client> {
        Client::connect(&self.address())
    }

    /// `trilith status --json`.
    ///
    /// # Errors
    /// When the command fails or prints something else.
    pub fn status(&self) -> Result<Value> {
        let data = self.data();
        let output = Command::new(trilith())
            .args(["status", "--json", "--dir"])
            .arg(&data)
            .output()
            .context("run trilith status")?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).context("parse the status")
    }

    /// State of the volume as status has it.
    pub fn state(&self) -> String {
        let status = self.status().unwrap_or_default();
        status["volume"]["state"]
            .as_str()
            .unwrap_or("unknown")
            .to_owned()
    }

    /// Waits for a state.
    ///
    /// # Errors
    /// When it is not reached; the error has the last status.
    pub fn wait_state(&self, state: &str) -> Result<()> {
        wait_until(&format!("state {state}"), || self.state() == state)
            .with_context(|| format!("status is {:#}", self.status().unwrap_or_default()))
    }

    /// Pids of the volume's processes whose first argument is `role` and whose command line has
    /// `part`.
    pub fn pids(&self, role: &str, part: &str) -> Vec<i32> {
        let data = self.data().display().to_string();
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let is_role = line.split(' ').nth(1) == Some(role);
            if is_role && line.contains(&data) && line.contains(part) {
                pids.push(pid);
            }
        }
        pids
    }

    /// Pid of one replica, from its directory's number.
    ///
    /// # Errors
    /// When it does not run.
    pub fn replica(&self, member: usize) -> Result<i32> {
        let part = format!("replica-{member}");
        self.pids("replica", &part)
            .first()
            .copied()
            .with_context(|| format!("{part} is not there"))
    }

    /// Pid of the engine.
    ///
    /// # Errors
    /// When it does not run.
    pub fn engine(&self) -> Result<i32> {
        self.pids("engine", "")
            .first()
            .copied()
            .context("no engine is there")
    }

    /// Directory of one replica.
    pub fn replica_dir(&self, member: usize) -> PathBuf {
        self.data().join(format!("replica-{member}"))
    }

    /// What the admin endpoint of a process (`engine`, `replica-0`) says.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask(&self, process: &str, path: &str) -> Result<String> {
        let socket = self.data().join(format!("run/{process}.admin"));
        let socket = socket.display().to_string();
        let uri = format!("http://trilith{path}");
        succeed("curl", &["--silent", "--unix-socket", &socket, &uri])
    }

    /// Changes a byte of a replica's data behind its back.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn rot(&self, member: usize, at: u64) -> Result<()> {
        let path = self.replica_dir(member).join("vol.data");
        let file = File::options().read(true).write(true).open(&path)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 0x40], at)?;
        file.sync_all().context("change a byte")
    }

    /// Stops the volume as a user does (SIGTERM) and waits for the end.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut up) = self.up.take() else {
            bail!("the volume does not run")
        };
        signal(i32::try_from(up.id())?, Signal::TERM)?;
        let status = up.wait()?;
        ensure!(status.success(), "trilith up ended with {status}");
        ensure!(
            self.pids("replica", "").is_empty(),
            "a replica is left behind"
        );
        ensure!(
            self.pids("engine", "").is_empty(),
            "an engine is left behind"
        );
        Ok(())
    }

    /// Kills every process of the volume at once.
    ///
    /// # Errors
    /// When something stays alive.
    pub fn kill_all(&mut self) -> Result<()> {
        if let Some(mut up) = self.up.take() {
            let mut pids = self.pids("replica", "");
            pids.extend(self.pids("engine", ""));
            up.kill()?;
            for pid in pids {
                // It may have ended with its parent.
                drop(signal(pid, Signal::KILL));
            }
            up.wait()?;
        }
        wait_until("all processes to be gone", || {
            self.pids("replica", "").is_empty() && self.pids("engine", "").is_empty()
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.kill_all());
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.len().saturating_sub(8000);
            let text = log.get(tail..).unwrap_or(&log);
            drop(std::io::Write::write_all(
                &mut std::io::stderr(),
                text.as_bytes(),
            ));
        }
    }
}

/// Sends a signal.
///
/// # Errors
/// When the process is gone.
pub fn signal(pid: i32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid).context("pid 0")?;
    kill_process(pid, signal).with_context(|| format!("send {signal:?} to {pid:?}"))
}
