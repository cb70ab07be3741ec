//! Programs that run on the host out of unpacked Debian packages, with the packages' own loader and
//! libraries: nothing is installed, and the host's age does not matter.

use crate::vm::debian::{self, Apt, Package, RELEASE};
use crate::vm::limits::QEMU_MAJOR_MIN;
use crate::vm::quietly;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";

const PACKAGES: &[&str] = &[
    "nbdkit",
    "busybox-static",
    "kmod",
    "xz-utils",
    "zstd",
    "e2fsprogs",
];
const QEMU_PACKAGES: &[&str] = &["qemu-system-x86", "seabios", "qemu-system-data"];

/// Unpacked programs.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    root: PathBuf,
}

impl Tools {
    /// Those in a directory.
    pub(crate) fn at(root: PathBuf) -> Tools {
        Tools { root }
    }

    /// Packages to unpack: QEMU is among them only if the machine's own is too old or missing.
    ///
    /// # Errors
    /// When apt cannot resolve them.
    pub(crate) fn packages(apt: &Apt) -> Result<Vec<Package>> {
        let mut names = PACKAGES.to_vec();
        if !host_qemu_is_new() {
            names.extend(QEMU_PACKAGES);
        }
        apt.closure(&names, RELEASE)
    }

    /// Downloads and unpacks.
    ///
    /// # Errors
    /// Without network or room.
    pub(crate) fn unpack(&self, apt: &Apt, packages: &[Package]) -> Result<()> {
        debian::unpack(&apt.fetch(packages)?, &self.root)
    }

    /// A file of the packages.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A program, such as `usr/bin/xz`, to be given its arguments.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.root.join(LOADER));
        command
            .arg("--library-path")
            .arg(self.root.join(LIBRARIES))
            .arg(self.root.join(program))
            .env("MKE2FS_CONFIG", self.root.join("etc/mke2fs.conf"));
        command
    }

    /// QEMU, the machine's own if it is new enough.
    pub(crate) fn qemu(&self) -> Command {
        let ours = "usr/bin/qemu-system-x86_64";
        if !self.root.join(ours).exists() {
            return Command::new("qemu-system-x86_64");
        }
        let mut command = self.command(ours);
        command.env("QEMU_MODULE_DIR", self.root.join(LIBRARIES).join("qemu"));
        for dir in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(self.root.join(dir));
        }
        command
    }

    /// nbdkit with its file plugin behind the cache filter: a disk with a volatile cache that is
    /// lost when nbdkit is killed. Without its last arguments: the file to serve.
    pub(crate) fn volatile_disk(&self, socket: &Path, data: &Path) -> Command {
        let plugins = self.root.join(LIBRARIES).join("nbdkit");
        let mut command = self.command("usr/sbin/nbdkit");
        if !self.root.join("usr/sbin/nbdkit").exists() {
            command = self.command("usr/bin/nbdkit");
        }
        command
            .args(["--foreground", "--exit-with-parent", "-U"])
            .arg(socket);
        let filter = plugins.join("filters/nbdkit-cache-filter.so");
        command.arg(format!("--filter={}", filter.display()));
        command.arg(plugins.join("plugins/nbdkit-file-plugin.so"));
        command.arg(format!("file={}", data.display()));
        command.args(["cache=writeback", "cache-max-size=512M"]);
        command
    }

    /// Decompresses a file by its name's ending or its first bytes, in place of `xz -dc`.
    ///
    /// # Errors
    /// When it is damaged.
    pub(crate) fn decompress(&self, program: &str, input: &Path, output: &Path) -> Result<()> {
        let file = std::fs::File::create(output)?;
        let status = self
            .command(program)
            .arg("-dc")
            .arg(input)
            .stdout(file)
            .status()
            .with_context(|| format!("run {program}"))?;
        anyhow::ensure!(
            status.success(),
            "{program} cannot unpack {}",
            input.display()
        );
        Ok(())
    }
}

/// `QEMU emulator version 10.0.2 ...`
fn qemu_major(text: &str) -> Option<u32> {
    let version = text.split("version ").nth(1)?;
    version.split('.').next()?.parse().ok()
}

fn host_qemu_is_new() -> bool {
    let text = quietly(Command::new("qemu-system-x86_64").arg("--version"));
    text.ok()
        .and_then(|text| qemu_major(&text))
        .is_some_and(|major| QEMU_MAJOR_MIN <= major)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_says_its_version() {
        assert_eq!(qemu_major("QEMU emulator version 7.2.22 (Debian)"), Some(7));
        assert_eq!(qemu_major("QEMU emulator version 10.0.13"), Some(10));
        assert_eq!(qemu_major("no such thing"), None);
    }
}
