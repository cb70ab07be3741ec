//! Debian packages that the tests run: clients of the protocols and tools for real file systems.

use crate::run::{command, say};
use anyhow::{Result, bail};
use std::path::Path;

/// A program that must be there and the package that brings it.
const NEEDED: &[(&str, &str)] = &[
    ("/usr/bin/fio", "fio"),
    ("/usr/bin/nbdinfo", "libnbd-bin"),
    ("/usr/bin/nbdcopy", "libnbd-bin"),
    ("/usr/lib/python3/dist-packages/nbd.py", "python3-libnbd"),
    ("/usr/bin/qemu-img", "qemu-utils"),
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

/// Installs what is missing when we may, else names it.
pub(crate) fn ensure() -> Result<()> {
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
