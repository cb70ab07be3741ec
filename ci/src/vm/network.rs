//! A network for the guests of one run: a bridge and one tap a node, in a network namespace of its
//! own. Links go down and up when a guest asks for it.

use crate::vm::limits::NODES_MAX;
use crate::vm::quietly;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// Names of namespaces: this and the number of our process.
const PREFIX: &str = "trilith-vm-";

/// The namespace; deleted when dropped, once no guest is in it.
#[derive(Debug)]
pub(crate) struct Network {
    name: String,
}

impl Network {
    /// Makes it with one tap for each node.
    ///
    /// # Errors
    /// Without `ip`, the right to make namespaces, or /dev/net/tun.
    pub(crate) fn new(nodes: usize) -> Result<Network> {
        forget_left()?;
        let network = Network {
            name: format!("{PREFIX}{}", std::process::id()),
        };
        quietly(Command::new("ip").args(["netns", "add", &network.name]))
            .context("make a network for several guests (as root, with iproute2)")?;
        network.ip("link set lo up")?;
        network.ip("link add br0 type bridge")?;
        network.ip("addr add 10.77.0.1/24 dev br0")?;
        network.ip("link set br0 up")?;
        for node in 1..=nodes {
            network.ip(&format!("tuntap add tap{node} mode tap"))?;
            network.ip(&format!("link set tap{node} master br0"))?;
            network.ip(&format!("link set tap{node} up"))?;
        }
        Ok(network)
    }

    fn ip(&self, words: &str) -> Result<()> {
        quietly(
            Command::new("ip")
                .args(["-n", &self.name])
                .args(words.split(' ')),
        )
        .map(drop)
    }

    /// What a guest asked for: `NODE up|down`.
    ///
    /// # Errors
    /// When it is neither, or fails.
    pub(crate) fn link(&self, request: &str) -> Result<()> {
        match request.split_once(' ') {
            Some((node, state @ ("up" | "down")))
                if node
                    .parse()
                    .is_ok_and(|node| (1..=NODES_MAX).contains(&node)) =>
            {
                self.ip(&format!("link set tap{node} {state}"))
            }
            _ => bail!("expected a node and up or down, found {request}"),
        }
    }

    /// Words before QEMU's command line that have it run in the namespace.
    pub(crate) fn prefix(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.name]
    }
}

/// Deletes the namespaces of processes that were killed.
fn forget_left() -> Result<()> {
    let list = quietly(Command::new("ip").args(["netns", "list"]))
        .context("list network namespaces (as root, with iproute2)")?;
    for name in list.lines().filter_map(|line| line.split(' ').next()) {
        let owner = name.strip_prefix(PREFIX);
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            quietly(Command::new("ip").args(["netns", "del", name]))?;
        }
    }
    Ok(())
}

impl Drop for Network {
    fn drop(&mut self) {
        // Nothing more can be done about a failure; the name holds our process number.
        drop(quietly(
            Command::new("ip").args(["netns", "del", &self.name]),
        ));
    }
}
