//! What a guest is given: our programs, the script, and a few variables, as a tar stream on a disk of
//! its own; and what it ships back the same way.

use crate::run as host;
use crate::vm::limits::OUTPUT_BYTES;
use crate::vm::scenario::Scenario;
use crate::vm::{cache, peers, quietly, target};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the release programs of scenarios and puts them into `place`, without debug information.
///
/// # Errors
/// When they do not compile.
pub(crate) fn programs(scenarios: &[Scenario], place: &Path) -> Result<()> {
    if place.exists() {
        std::fs::remove_dir_all(place)?;
    }
    std::fs::create_dir_all(place)?;
    let release = target().join("release");
    host::say("building the programs");
    host::cargo(&["build", "--release", "--quiet", "-p", "trilith"])?;
    strip(&release.join("trilith"), &place.join("trilith"))?;
    for example in scenarios.iter().flat_map(|scenario| &scenario.examples) {
        let (package, name) = (&example.package, &example.name);
        host::cargo(&[
            "build",
            "--release",
            "--quiet",
            "-p",
            package,
            "--example",
            name,
        ])?;
        strip(&release.join("examples").join(name), &place.join(name))?;
    }
    for peer in scenarios.iter().flat_map(|scenario| &scenario.peers) {
        for (name, program) in peers::build(peer, &cache()) {
            strip(&program, &place.join(name))?;
        }
    }
    Ok(())
}

fn strip(program: &Path, to: &Path) -> Result<()> {
    quietly(Command::new("strip").arg("-o").arg(to).arg(program)).map(drop)
}

/// A boot's input.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    /// Directory of the programs.
    pub(crate) programs: &'a Path,
    /// What runs.
    pub(crate) scenario: &'a Scenario,
    /// Which node, from 1.
    pub(crate) node: usize,
    /// Which boot of the node, from 1.
    pub(crate) boot: u32,
    /// Console of the boot before, if there was one.
    pub(crate) before: Option<PathBuf>,
}

impl Input<'_> {
    /// Writes the tar file for the guest.
    ///
    /// # Errors
    /// When the disk is full.
    pub(crate) fn write(&self, dir: &Path) -> Result<PathBuf> {
        let stage = dir.join("in");
        if stage.exists() {
            std::fs::remove_dir_all(&stage)?;
        }
        std::fs::create_dir_all(&stage)?;
        let ours = host::root().join("ci/vm");
        quietly(
            Command::new("cp")
                .arg("-r")
                .arg(self.programs)
                .arg(stage.join("bin")),
        )?;
        quietly(
            Command::new("cp")
                .arg("-p")
                .arg(ours.join("guest/stage2"))
                .arg(&stage),
        )?;
        for entry in std::fs::read_dir(ours.join("guest"))?.flatten() {
            let library = entry.path();
            if library.extension().is_some_and(|ending| ending == "sh") {
                std::fs::copy(&library, stage.join(entry.file_name()))?;
            }
        }
        std::fs::write(stage.join("run.sh"), &self.scenario.text)?;
        let env = format!(
            "SCENARIO={}\nNODE={}\nNODES={}\nBOOT={}\n",
            self.scenario.name, self.node, self.scenario.nodes, self.boot
        );
        std::fs::write(stage.join("env"), env)?;
        if let Some(before) = &self.before {
            std::fs::copy(before, stage.join("before"))?;
        }
        let tar = dir.join("in.tar");
        quietly(
            Command::new("tar")
                .arg("-C")
                .arg(&stage)
                .arg("-cf")
                .arg(&tar)
                .arg("."),
        )?;
        std::fs::remove_dir_all(&stage)?;
        // A disk is a whole number of sectors; tar pads to 10 KiB already.
        Ok(tar)
    }
}

/// An empty disk for what the guest ships.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn new_output(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("out.raw");
    std::fs::File::create(&path)?.set_len(OUTPUT_BYTES)?;
    Ok(path)
}

/// Unpacks what the guest shipped and says the exit status of its scenario; `None`: it shipped none.
///
/// # Errors
/// When the directory cannot be made.
pub(crate) fn collect(dir: &Path) -> Result<Option<u32>> {
    let out = dir.join("out");
    std::fs::create_dir_all(&out)?;
    let raw = dir.join("out.raw");
    // An empty disk is an empty archive for tar.
    let unpacked = quietly(Command::new("tar").arg("-C").arg(&out).arg("-xf").arg(&raw));
    if let Err(error) = unpacked {
        host::say(&format!(
            "what the guest shipped cannot be unpacked: {error:#}"
        ));
    }
    let rc = std::fs::read_to_string(out.join("rc")).ok();
    Ok(rc.and_then(|text| text.trim().parse().ok()))
}
