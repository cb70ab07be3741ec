//! A run of a scenario: starts its guests, does what they ask for on their consoles, and decides from
//! what they shipped.

use crate::run as host;
use crate::vm::guest::{Guest, News, Sender, Start};
use crate::vm::input::{self, Input};
use crate::vm::kernel::Kernel;
use crate::vm::limits::{BOOT_MAX, BOOTS_MAX, LINES_MAX};
use crate::vm::network::Network;
use crate::vm::prepare::Ready;
use crate::vm::scenario::{self, Scenario};
use crate::vm::{Which, cache, disks, now};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Instant;

/// A guest is up: from here on, whatever it does counts.
const BOOTED: &str = "GUEST-BOOT";
/// A guest wants its power cut, now, and to be booted again; or, with a number, that of another.
const CUT: &str = "GUEST-CUT";
/// A guest wants a link to be changed: `NODE up|down`.
const LINK: &str = "GUEST-LINK ";
/// A line for people.
const SAY: &str = "GUEST-SAY ";

/// Lines of a console that are shown when a run fails.
const TAIL: usize = 40;

/// Runs scenarios on kernels, one after the other, and says how each went.
///
/// # Errors
/// When one fails, after all have run.
pub(crate) fn all(ready: &Ready, jobs: &[(&str, Which)], keep: bool) -> Result<()> {
    let mut runs = Vec::new();
    for (name, which) in jobs {
        let scenario = scenario::load(name)?;
        runs.extend(
            ready
                .kernels(*which)
                .map(|kernel| (scenario.clone(), kernel)),
        );
    }
    let base = std::fs::canonicalize(cache())?.join("run");
    // Of this process: another one may run other scenarios.
    let programs = base.join(format!("programs-{}", std::process::id()));
    let scenarios: Vec<_> = runs.iter().map(|(scenario, _)| scenario.clone()).collect();
    input::programs(&scenarios, &programs)?;
    let mut failed = Vec::new();
    for (scenario, kernel) in &runs {
        let dir = base.join(format!("{}-{}", scenario.name, kernel.release));
        host::say(&format!("--> {} on {}", scenario.name, kernel.release));
        let from = now();
        let run = Run {
            ready,
            kernel,
            scenario,
            programs: &programs,
            dir: &dir,
        };
        let result = run.run();
        let seconds = from.elapsed().as_secs_f32();
        match result {
            Ok(()) => {
                host::say(&format!("    passed in {seconds:.0} s"));
                if !keep {
                    run.tidy()?;
                }
            }
            Err(error) => {
                let place = dir.display();
                host::say(&format!(
                    "    FAILED in {seconds:.0} s: {error:#}; see {place}"
                ));
                failed.push(format!("{} on {}", scenario.name, kernel.release));
            }
        }
    }
    std::fs::remove_dir_all(&programs)?;
    host::say(&format!(
        "{} passed, {} failed",
        runs.len() - failed.len(),
        failed.len()
    ));
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

struct Run<'a> {
    ready: &'a Ready,
    kernel: &'a Kernel,
    scenario: &'a Scenario,
    programs: &'a Path,
    dir: &'a Path,
}

/// A node and the guest that it runs now.
struct Node {
    dir: PathBuf,
    guest: Option<Guest>,
    /// From 1; one more after each power cut.
    boot: u32,
    /// Starts of QEMU for this boot.
    tries: u32,
    /// Starts of QEMU at all.
    generation: u32,
    /// Console of the boot before this one.
    before: Option<PathBuf>,
    /// When it must have given its first sign; `None`: it has.
    boot_until: Option<Instant>,
    done: bool,
}

impl Run<'_> {
    fn run(&self) -> Result<()> {
        if self.dir.exists() {
            std::fs::remove_dir_all(self.dir)?;
        }
        let network = match self.scenario.nodes {
            1 => None,
            nodes => Some(Network::new(nodes)?),
        };
        // Nodes are dropped, and their guests killed, before the network goes.
        let mut nodes = Vec::new();
        for number in 1..=self.scenario.nodes {
            let dir = self.dir.join(format!("node-{number}"));
            std::fs::create_dir_all(&dir)?;
            disks::create(&self.scenario.disks, &dir)?;
            nodes.push(Node {
                dir,
                guest: None,
                boot: 1,
                tries: 0,
                generation: 0,
                before: None,
                boot_until: None,
                done: false,
            });
        }
        let result = self.serve(&mut nodes, network.as_ref());
        if result.is_err() {
            for (node, number) in nodes.iter().zip(1..) {
                show_tail(node, number);
            }
        }
        result
    }

    fn serve(&self, nodes: &mut [Node], network: Option<&Network>) -> Result<()> {
        let (sender, receiver) = sync_channel(LINES_MAX);
        let until = now() + self.scenario.time_max;
        for number in 1..=nodes.len() {
            self.boot(node_at(nodes, number)?, number, network, &sender)?;
        }
        // The first node decides when the run is over; the others may end before, and must not fail.
        while nodes.first().is_some_and(|node| !node.done) {
            let next = nodes
                .iter()
                .filter_map(|node| node.boot_until)
                .fold(until, Instant::min);
            match receiver.recv_timeout(next.saturating_duration_since(now())) {
                Ok((number, generation, news)) => {
                    let node = node_at(nodes, number)?;
                    // What a guest before said does not count any more.
                    if node.generation == generation && node.guest.is_some() {
                        let cut = self.hear(node, number, news, network, &sender)?;
                        if let Some(number) = cut {
                            self.cut(node_at(nodes, number)?, number, network, &sender)?;
                        }
                    }
                }
                Err(RecvTimeoutError::Disconnected) => bail!("no console is left"),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if until < now() {
                bail!("not done after {:?}", self.scenario.time_max);
            }
            for number in 1..=nodes.len() {
                let node = node_at(nodes, number)?;
                if node.boot_until.is_some_and(|until| until < now()) {
                    host::say("    no sign of the guest");
                    self.boot(node, number, network, &sender)?;
                }
            }
        }
        Ok(())
    }

    /// Starts a node's guest, in place of the one that it had.
    fn boot(
        &self,
        node: &mut Node,
        number: usize,
        network: Option<&Network>,
        sender: &Sender,
    ) -> Result<()> {
        // Cuts the power of the one that ran.
        node.guest = None;
        if node.tries == BOOTS_MAX {
            let errors = std::fs::read_to_string(node.dir.join("qemu.err")).unwrap_or_default();
            bail!(
                "node {number} does not boot, tried {BOOTS_MAX} times: {}",
                errors.trim()
            );
        }
        node.tries += 1;
        node.generation += 1;
        let input = Input {
            programs: self.programs,
            scenario: self.scenario,
            node: number,
            boot: node.boot,
            before: node.before.clone(),
        };
        let start = Start {
            ready: self.ready,
            kernel: self.kernel,
            input: &input,
            network,
            dir: &node.dir,
            generation: node.generation,
        };
        node.guest = Some(start.start(sender)?);
        node.boot_until = Some(now() + BOOT_MAX);
        Ok(())
    }

    /// Does what a guest asks for; says whose power is to be cut.
    fn hear(
        &self,
        node: &mut Node,
        number: usize,
        news: News,
        network: Option<&Network>,
        sender: &Sender,
    ) -> Result<Option<usize>> {
        let line = match news {
            News::Line(line) => line,
            News::End if node.boot_until.is_some() => {
                host::say("    the guest died before its first sign");
                return self.boot(node, number, network, sender).map(|()| None);
            }
            News::End => return self.end(node, number).map(|()| None),
        };
        if line.starts_with(BOOTED) {
            node.boot_until = None;
        } else if let Some(other) = line.strip_prefix(CUT) {
            return match other.trim() {
                "" => Ok(Some(number)),
                other => Ok(Some(other.parse().context("read the number of a node")?)),
            };
        } else if let Some(request) = line.strip_prefix(LINK) {
            let network = network.context("a single node has no links")?;
            network.link(request)?;
        } else if let Some(text) = line.strip_prefix(SAY) {
            host::say(&format!("    {text}"));
        }
        Ok(None)
    }

    /// Cuts a node's power and boots it again.
    fn cut(
        &self,
        node: &mut Node,
        number: usize,
        network: Option<&Network>,
        sender: &Sender,
    ) -> Result<()> {
        node.boot += 1;
        node.tries = 0;
        node.before = node.guest.as_ref().map(|guest| guest.console.clone());
        if self.scenario.boots < node.boot {
            bail!(
                "node {number} wants more boots than {}",
                self.scenario.boots
            );
        }
        self.boot(node, number, network, sender)
    }

    /// QEMU has ended after the guest was up: what it shipped decides.
    fn end(&self, node: &mut Node, number: usize) -> Result<()> {
        node.done = true;
        match input::collect(&node.dir)? {
            // Of several nodes, not each has its power cut.
            Some(0) if 1 < self.scenario.nodes || node.boot == self.scenario.boots => Ok(()),
            Some(0) => bail!("node {number} ended in boot {}", node.boot),
            Some(rc) => bail!("node {number} ended with status {rc}"),
            None => bail!("node {number} ended without a result"),
        }
    }

    /// Deletes what is big; consoles and results stay.
    fn tidy(&self) -> Result<()> {
        for number in 1..=self.scenario.nodes {
            for entry in std::fs::read_dir(self.dir.join(format!("node-{number}")))?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.ends_with(".raw") || name.ends_with(".tar") {
                    std::fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(())
    }
}

fn node_at(nodes: &mut [Node], number: usize) -> Result<&mut Node> {
    nodes
        .get_mut(number - 1)
        .context("a node that does not exist")
}

fn show_tail(node: &Node, number: usize) {
    let console = node.dir.join(format!("console-{}", node.generation));
    let text = std::fs::read(&console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    host::say(&format!("    last lines of node {number}:"));
    for line in lines.iter().skip(lines.len().saturating_sub(TAIL)) {
        host::say(&format!("    | {}", line.trim_end()));
    }
}
