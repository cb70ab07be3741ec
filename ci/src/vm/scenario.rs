//! A scenario: a shell script that runs in the guest, with what it needs in lines `#: KEY VALUE` at
//! its head. `ci/vm/README.md` tells the keys.

use crate::run as host;
use crate::vm::limits::{DISKS_MAX, NODES_MAX, RUN_LIMIT_MAX, RUN_MAX};
use crate::vm::peers::Peer;
use anyhow::{Context, Result, bail};
use std::time::Duration;

/// A disk of each node, empty at the first boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// The serial number by which the guest finds it.
    pub(crate) name: String,
    /// Its size in bytes.
    pub(crate) bytes: u64,
    /// What was written and not flushed is lost when the power is cut.
    pub(crate) is_volatile: bool,
}

/// An example program of a package, to have in the guest as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Example {
    /// The package.
    pub(crate) package: String,
    /// The example's name.
    pub(crate) name: String,
}

/// A parsed scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scenario {
    /// Name of the file without its ending.
    pub(crate) name: String,
    /// One line for people.
    pub(crate) about: String,
    /// The whole script.
    pub(crate) text: String,
    /// For the whole run with all its boots.
    pub(crate) time_max: Duration,
    /// Of each guest, in MiB.
    pub(crate) memory_mib: u32,
    /// Of each guest.
    pub(crate) cpus: u32,
    /// Guests that run at once.
    pub(crate) nodes: usize,
    /// Times that a guest boots: one more than it has its power cut.
    pub(crate) boots: u32,
    /// Disks of each node.
    pub(crate) disks: Vec<Disk>,
    /// Programs besides `trilith`.
    pub(crate) examples: Vec<Example>,
    /// Programs of others, if they can be built here.
    pub(crate) peers: Vec<Peer>,
}

/// Reads a scenario.
///
/// # Errors
/// When there is none of that name, or its head is wrong.
pub(crate) fn load(name: &str) -> Result<Scenario> {
    let path = host::root().join(format!("ci/vm/scenarios/{name}.sh"));
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("no scenario {name}: read {}", path.display()))?;
    parse(name, text).with_context(|| format!("read the head of {}", path.display()))
}

/// Reads all scenarios, in the order of their names.
///
/// # Errors
/// When the head of one is wrong.
pub(crate) fn all() -> Result<Vec<Scenario>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(host::root().join("ci/vm/scenarios"))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".sh").map(str::to_owned));
    }
    names.sort();
    names.iter().map(|name| load(name)).collect()
}

fn parse(name: &str, text: String) -> Result<Scenario> {
    let mut found = Scenario {
        name: name.to_owned(),
        about: String::new(),
        text: String::new(),
        time_max: RUN_MAX,
        memory_mib: 1024,
        cpus: 2,
        nodes: 1,
        boots: 1,
        disks: Vec::new(),
        examples: Vec::new(),
        peers: Vec::new(),
    };
    for line in text.lines().filter_map(|line| line.strip_prefix("#: ")) {
        let (key, value) = line
            .split_once(' ')
            .with_context(|| format!("no value: {line}"))?;
        set(&mut found, key, value).with_context(|| format!("wrong line: {line}"))?;
    }
    if found.about.is_empty() {
        bail!("expected a line `#: about ...`");
    }
    found.text = text;
    Ok(found)
}

fn set(scenario: &mut Scenario, key: &str, value: &str) -> Result<()> {
    let words: Vec<_> = value.split(' ').collect();
    match (key, words.as_slice()) {
        ("about", _) => scenario.about = value.to_owned(),
        ("timeout", [seconds]) => {
            scenario.time_max = Duration::from_secs(seconds.parse()?);
            if RUN_LIMIT_MAX < scenario.time_max {
                bail!("expected at most {RUN_LIMIT_MAX:?}");
            }
        }
        ("memory", [mib]) => scenario.memory_mib = mib.parse()?,
        ("cpus", [count]) => scenario.cpus = count.parse()?,
        ("boots", [count]) => scenario.boots = count.parse()?,
        ("nodes", [count]) => {
            scenario.nodes = count.parse()?;
            if !(1..=NODES_MAX).contains(&scenario.nodes) {
                bail!("expected 1 to {NODES_MAX} nodes");
            }
        }
        ("disk", [name, size]) => add_disk(scenario, name, size, false)?,
        ("disk", [name, size, "volatile"]) => add_disk(scenario, name, size, true)?,
        ("example", [package, name]) => scenario.examples.push(Example {
            package: (*package).to_owned(),
            name: (*name).to_owned(),
        }),
        ("peer", [name, version, examples @ ..]) if !examples.is_empty() => {
            scenario.peers.push(Peer {
                name: (*name).to_owned(),
                version: (*version).to_owned(),
                examples: examples.iter().map(|&example| example.to_owned()).collect(),
            });
        }
        _ => bail!("unknown key or wrong number of words"),
    }
    Ok(())
}

fn add_disk(scenario: &mut Scenario, name: &str, size: &str, is_volatile: bool) -> Result<()> {
    let mib: u64 = size
        .strip_suffix("MiB")
        .context("expected a size such as 512MiB")?
        .parse()?;
    if DISKS_MAX <= scenario.disks.len() {
        bail!("expected at most {DISKS_MAX} disks");
    }
    scenario.disks.push(Disk {
        name: name.to_owned(),
        bytes: mib << 20,
        is_volatile,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_is_understood() {
        let text = "#: about what it is\n#: nodes 3\n#: disk data 64MiB volatile\n#: boots 2\n\
                    #: example some-package tool\n#: timeout 60\n#: peer a-crate 1.2.3 one two\necho\n";
        let found = parse("x", text.to_owned()).unwrap();
        assert_eq!((found.nodes, found.boots), (3, 2));
        assert_eq!(found.peers[0].program("two"), "a-crate-two");
        assert_eq!(found.disks.len(), 1);
        assert!(
            found
                .disks
                .iter()
                .all(|disk| disk.is_volatile && disk.bytes == 64 << 20)
        );
        assert_eq!(found.time_max, Duration::from_secs(60));
    }

    #[test]
    fn wrong_heads_are_refused() {
        for line in [
            "nodes 4",
            "colour red",
            "disk data 64",
            "timeout 9999",
            "memory",
            "peer a-crate 1.2.3",
        ] {
            let text = format!("#: about x\n#: {line}\n");
            assert!(parse("x", text).is_err(), "{line}");
        }
        assert!(parse("x", "echo\n".to_owned()).is_err(), "about is missing");
    }

    #[test]
    fn all_scenarios_have_a_sound_head() {
        assert!(!all().unwrap().is_empty());
    }
}
