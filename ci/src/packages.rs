//! Debian packages that the tests run: clients of the protocols and tools for real file systems.

use crate::run::{command, say};
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

/// A program that must be there and the package that brings it.
const NEEDED: &[(&str, &str)] = &[
    ("/usr/bin/fio", "fio"),
    ("/usr/bin/nbdinfo", "libnbd-bin"),
    ("/usr/bin/nbdcopy", "libnbd-bin"),
    ("/usr/lib/python3/dist-packages/nbd.py", "python3-libnbd"),
    ("/usr/bin/qemu-img", "qemu-utils"),
    ("/usr/bin/iscsi-test-cu", "libiscsi-bin"),
    ("/usr/sbin/mke2fs", "e2fsprogs"),
    // Guests are built from Debian's packages, and several of them are on a network.
    (
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
    ),
    ("/usr/bin/setpriv", "util-linux"),
    ("/usr/bin/strip", "binutils"),
    ("/usr/bin/ip", "iproute2"),
];

/// qemu's iSCSI driver. Its version must be that of qemu-utils, which is not to be had on a Debian
/// whose qemu-utils is a backport. Then the tests that need it do without qemu and say so; libiscsi's
/// own tools and an initiator of ours remain.
const WISHED: &str = "qemu-block-extra";

fn missing() -> Vec<&'static str> {
    let mut names: Vec<_> = NEEDED
        .iter()
        .filter(|(file, _)| !Path::new(file).exists())
        .map(|(_, p)| *p)
        .collect();
    names.dedup();
    names
}

fn is_root() -> bool {
    // The owner of our own /proc entry is the effective user.
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// True when qemu-img has a driver for iSCSI.
fn qemu_knows_iscsi() -> bool {
    let address = "iscsi://127.0.0.1:1/iqn.none/0";
    let info = Command::new("qemu-img").args(["info", address]).output();
    info.is_ok_and(|o| !String::from_utf8_lossy(&o.stderr).contains("Unknown protocol"))
}

/// Installs what is missing when we may, else names it.
pub(crate) fn ensure() -> Result<()> {
    needed()?;
    if !qemu_knows_iscsi() {
        let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
        install.extend(["--no-remove", WISHED]);
        let installed = is_root()
            && Path::new("/usr/bin/apt-get").exists()
            && command("apt-get", &["update", "-qq"]).is_ok()
            && command("apt-get", &install).is_ok()
            && qemu_knows_iscsi();
        if !installed {
            say(&format!(
                "{WISHED} is not installed: the iSCSI tests do without qemu"
            ));
        }
    }
    Ok(())
}

fn needed() -> Result<()> {
    let names = missing();
    if names.is_empty() {
        return Ok(());
    }
    if !is_root() || !Path::new("/usr/bin/apt-get").exists() {
        bail!(
            "the tests need these Debian packages: {0}; install them with \
             `sudo apt-get install --no-install-recommends {0}`",
            names.join(" ")
        );
    }
    say(&format!("installing {}", names.join(" ")));
    command("apt-get", &["update", "-qq"])?;
    let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
    args.extend(&names);
    command("apt-get", &args)?;
    let left = missing();
    if !left.is_empty() {
        bail!("still missing after apt-get install: {}", left.join(" "));
    }
    Ok(())
}
