//! One QEMU and what it says on its console.

use crate::run as host;
use crate::vm::disks::{self, Caches};
use crate::vm::input::{self, Input};
use crate::vm::kernel::Kernel;
use crate::vm::limits::LINE_BYTES_MAX;
use crate::vm::network::Network;
use crate::vm::prepare::Ready;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::SyncSender;

/// News of a guest.
#[derive(Debug)]
pub(crate) enum News {
    /// A line of its console.
    Line(String),
    /// QEMU closed the console: it ended.
    End,
}

/// Where news go: with the node, and a number that tells one QEMU of the node from the next.
pub(crate) type Sender = SyncSender<(usize, u32, News)>;

/// How to start a guest.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    /// What it is made of.
    pub(crate) ready: &'a Ready,
    /// What it boots.
    pub(crate) kernel: &'a Kernel,
    /// What it is given.
    pub(crate) input: &'a Input<'a>,
    /// Its network, if it has one.
    pub(crate) network: Option<&'a Network>,
    /// The node's directory.
    pub(crate) dir: &'a Path,
    /// Tells this QEMU from the node's others.
    pub(crate) generation: u32,
}

/// A running guest; dropping it cuts its power.
#[derive(Debug)]
pub(crate) struct Guest {
    child: Child,
    // Dropped after QEMU was killed, as it is declared after it.
    _caches: Caches,
    /// Its console, as a file.
    pub(crate) console: PathBuf,
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on \
     tsc=reliable no_timer_check rcupdate.rcu_expedited=1";

impl Start<'_> {
    /// Starts QEMU; its console goes to `sender` line by line.
    ///
    /// # Errors
    /// When QEMU, or the cache of a disk, cannot be started.
    pub(crate) fn start(&self, sender: &Sender) -> Result<Guest> {
        self.input.write(self.dir)?;
        input::new_output(self.dir)?;
        let caches = disks::start(&self.input.scenario.disks, &self.ready.tools, self.dir)?;
        let errors = std::fs::File::create(self.dir.join("qemu.err"))?;
        let mut child = self
            .command()
            .current_dir(self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .context("run QEMU")?;
        let output = child.stdout.take().context("QEMU without a console")?;
        let console = self.dir.join(format!("console-{}", self.generation));
        let reader = Reader {
            file: std::fs::File::create(&console)?,
            sender: sender.clone(),
            node: self.input.node,
            generation: self.generation,
        };
        std::thread::Builder::new()
            .name(format!("console-{}", self.input.node))
            .spawn(move || reader.run(output))
            .context("start a thread")?;
        Ok(Guest {
            child,
            _caches: caches,
            console,
        })
    }

    fn command(&self) -> Command {
        let scenario = self.input.scenario;
        let qemu = self.qemu();
        let mut words = self
            .network
            .map(|network| network.prefix().to_vec())
            .unwrap_or_default();
        // QEMU ends with us, however we end.
        words.extend(["setpriv", "--pdeathsig", "KILL", "--"]);
        let mut command = Command::new(words.remove(0));
        command
            .args(words)
            .arg(qemu.get_program())
            .args(qemu.get_args());
        for (name, value) in qemu.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        command.args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-nodefaults",
            "-no-reboot",
        ]);
        command.args(["-display", "none", "-serial", "stdio"]);
        command.args([
            "-smp",
            &scenario.cpus.to_string(),
            "-m",
            &scenario.memory_mib.to_string(),
        ]);
        command.arg("-kernel").arg(self.kernel.image());
        command.arg("-initrd").arg(self.kernel.initrd());
        command.args(["-append", KERNEL_ARGUMENTS, "-device", "virtio-rng-pci"]);
        let root = self.ready.root.display();
        let drives = [
            ("root", format!("file={root},readonly=on,cache=unsafe")),
            ("in", "file=in.tar,readonly=on".to_owned()),
            ("out", "file=out.raw,cache=unsafe".to_owned()),
        ];
        for (name, options) in drives {
            command.args(["-drive", &format!("if=none,id={name},format=raw,{options}")]);
            command.args([
                "-device",
                &format!("virtio-blk-pci,drive={name},serial={name}"),
            ]);
        }
        command.args(disks::arguments(&scenario.disks));
        if self.network.is_some() {
            let node = self.input.node;
            let tap = format!("tap,id=net,ifname=tap{node},script=no,downscript=no");
            let card = format!("virtio-net-pci,netdev=net,romfile=,mac=52:54:00:77:00:0{node}");
            command.args(["-netdev", &tap, "-device", &card]);
        }
        command
    }

    fn qemu(&self) -> Command {
        self.ready.tools.qemu()
    }
}

/// Copies a console to a file and to the run.
struct Reader {
    file: std::fs::File,
    sender: Sender,
    node: usize,
    generation: u32,
}

impl Reader {
    fn run(mut self, output: ChildStdout) {
        let mut output = BufReader::new(output);
        loop {
            let mut line = Vec::new();
            let limit = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
            match output.by_ref().take(limit).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            if let Err(error) = self.file.write_all(&line) {
                host::say(&format!(
                    "console of node {} is not kept: {error}",
                    self.node
                ));
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if self
                .sender
                .send((self.node, self.generation, News::Line(text)))
                .is_err()
            {
                return;
            }
        }
        // Nobody waits for it when the run is over.
        drop(self.sender.send((self.node, self.generation, News::End)));
    }
}
