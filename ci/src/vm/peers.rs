//! Programs of others that ours are compared with: examples of a crate of the registry, built outside
//! this workspace with dependencies of their own, and kept in the cache of guests. One that cannot be
//! built is left out, and that is told: a scenario that wants it goes without.

use crate::run as host;
use crate::vm::{quietly, target};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Examples of a crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The crate.
    pub(crate) name: String,
    /// Its version, exactly.
    pub(crate) version: String,
    /// Names of the examples.
    pub(crate) examples: Vec<String>,
}

impl Peer {
    /// The name that an example has in the guest.
    pub(crate) fn program(&self, example: &str) -> String {
        format!("{}-{example}", self.name)
    }

    fn root(&self, cache: &Path) -> PathBuf {
        cache.join(format!("peer-{}-{}", self.name, self.version))
    }
}

/// Builds the examples unless they are in the cache; gives those that there are, with their names.
pub(crate) fn build(peer: &Peer, cache: &Path) -> Vec<(String, PathBuf)> {
    let root = peer.root(cache);
    let found: Vec<_> = peer
        .examples
        .iter()
        .map(|example| (peer.program(example), root.join("bin").join(example)))
        .collect();
    if found.iter().all(|(_, path)| path.exists()) {
        return found;
    }
    host::say(&format!("building {} {}", peer.name, peer.version));
    let mut cargo = Command::new("cargo");
    cargo
        .args(["install", "--quiet", "--force", "--version", &peer.version])
        .arg("--root")
        .arg(&root)
        .arg("--target-dir")
        .arg(target().join("peers"));
    for example in &peer.examples {
        cargo.args(["--example", example]);
    }
    match quietly(cargo.arg(&peer.name)) {
        Ok(_) => found,
        Err(error) => {
            host::say(&format!("    goes without {}: {error:#}", peer.name));
            Vec::new()
        }
    }
}
