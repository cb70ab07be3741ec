//! The root file system of guests: Debian packages, unpacked and not configured (no script of theirs
//! runs; `guest/stage2` does the little that is needed), and the kernels' modules, as one read-only
//! ext4 image that all guests share below an overlay.

use crate::vm::debian::{self, Apt, Package, RELEASE};
use crate::vm::kernel::Kernel;
use crate::vm::quietly;
use crate::vm::tools::Tools;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

const PACKAGES: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "blktrace",
    "coreutils",
    "curl",
    "dash",
    "diffutils",
    "dmsetup",
    "dosfstools",
    "e2fsprogs",
    "fdisk",
    "findutils",
    "fio",
    "gawk",
    "grep",
    "gzip",
    "iproute2",
    "jq",
    "kmod",
    "libc-bin",
    "libiscsi-bin",
    "libnbd-bin",
    "lsscsi",
    "mount",
    "nbd-client",
    "netbase",
    "nftables",
    "open-iscsi",
    "procps",
    "psmisc",
    "sed",
    "sg3-utils",
    "strace",
    "tar",
    "udev",
    "util-linux",
    "util-linux-extra",
    "xfsprogs",
];

/// What nobody reads in a guest.
const LEFT_OUT: &[&str] = &[
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
];

/// What is built from the same packages changes with this file.
pub(crate) const RECIPE: &str = include_str!("rootfs.rs");

/// Size of the file system; the image is sparse.
const BYTES: u64 = 1 << 30;

/// Packages of the guest.
///
/// # Errors
/// When apt cannot resolve them.
pub(crate) fn packages(apt: &Apt) -> Result<Vec<Package>> {
    apt.closure(PACKAGES, RELEASE)
}

/// Builds the image.
///
/// # Errors
/// Without network or room.
pub(crate) fn build(
    apt: &Apt,
    tools: &Tools,
    kernels: &[Kernel],
    from: &[Package],
    image: &Path,
) -> Result<()> {
    let stage = image.with_extension("stage");
    if stage.exists() {
        std::fs::remove_dir_all(&stage)?;
    }
    debian::unpack(&apt.fetch(from)?, &stage)?;
    for path in LEFT_OUT {
        let path = stage.join(path);
        if path.exists() {
            std::fs::remove_dir_all(path)?;
        }
    }
    for dir in [
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "mnt",
        "h",
        "usr/lib/modules",
    ] {
        std::fs::create_dir_all(stage.join(dir))?;
    }
    // What base-passwd's script would do.
    for name in ["passwd", "group"] {
        let master = stage.join(format!("usr/share/base-passwd/{name}.master"));
        std::fs::copy(&master, stage.join("etc").join(name))
            .with_context(|| format!("copy {}", master.display()))?;
    }
    for kernel in kernels {
        let modules = kernel.modules().join("lib/modules").join(&kernel.release);
        quietly(
            Command::new("cp")
                .arg("-a")
                .arg(modules)
                .arg(stage.join("usr/lib/modules/")),
        )?;
    }
    let file = std::fs::File::create(image)?;
    file.set_len(BYTES)?;
    let mut mke2fs = tools.command("usr/sbin/mke2fs");
    mke2fs.args([
        "-q",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-E",
        "root_owner=0:0",
        "-d",
    ]);
    quietly(mke2fs.arg(&stage).arg(image))?;
    std::fs::remove_dir_all(&stage).context("remove what was unpacked")
}
