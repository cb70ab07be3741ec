//! Kernels out of Debian's packages: the ELF image that QEMU starts fastest, the modules that
//! scenarios need, unpacked, and an initial RAM disk that finds the root file system.

use crate::run as host;
use crate::vm::cpio::Archive;
use crate::vm::debian::{self, Apt, Package};
use crate::vm::tools::Tools;
use crate::vm::{Which, quietly};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Modules for scenarios, with what they depend on. What a kernel has built in or lacks is left out.
const MODULES: &[&str] = &[
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "overlay",
    "xfs",
    "loop",
    "brd",
    "nbd",
    "ublk_drv",
    "iscsi_tcp",
    "sd_mod",
    "sg",
    "dm-mod",
    "dm-flakey",
    "dm-log-writes",
    "dm-delay",
    "dm-multipath",
    "dm-round-robin",
    "dm-queue-length",
    "dm-service-time",
    "dm-snapshot",
    "null_blk",
    "scsi_debug",
    "sch_netem",
    "crc32c_generic",
    "crc32c-intel",
    "crc32c_intel",
    "crc32c-cryptoapi",
    "af_packet",
    "veth",
    "nf_tables",
    "nft_compat",
    "target_core_mod",
    "target_core_file",
    "iscsi_target_mod",
    "scsi_dh_alua",
    "libcrc32c",
    "raid1",
];

/// Modules that must be loaded before the root file system is there.
const EARLY: &[&str] = &["virtio_pci", "virtio_blk", "overlay", "ext4"];

/// A kernel to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// Its place among the supported ones; never [`Which::All`].
    pub(crate) which: Which,
    /// As `uname -r` says.
    pub(crate) release: String,
    /// Directory of its files.
    pub(crate) dir: PathBuf,
}

impl Kernel {
    /// What QEMU boots.
    pub(crate) fn image(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The initial RAM disk.
    pub(crate) fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }

    /// Directory below which `lib/modules` is.
    pub(crate) fn modules(&self) -> PathBuf {
        self.dir.join("modules")
    }
}

/// The packages of the kernel in a suite.
///
/// # Errors
/// When apt cannot resolve them.
pub(crate) fn packages(apt: &Apt, suite: &str) -> Result<Vec<Package>> {
    let version = apt.version(META_PACKAGE, suite)?;
    let closure = apt.closure(&[&format!("{META_PACKAGE}={version}")], suite)?;
    let parts = ["linux-image-", "linux-binary-", "linux-modules-"];
    let found: Vec<_> = closure
        .into_iter()
        .filter(|package| {
            // The packages with a version in their name hold files, the others only depend on them.
            let rest = parts
                .iter()
                .find_map(|part| package.name.strip_prefix(part));
            rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .collect();
    if found.is_empty() {
        bail!("{META_PACKAGE} {version} brings no kernel that we know how to unpack");
    }
    Ok(found)
}

/// `uname -r` of a kernel, from the name of a package.
pub(crate) fn release(packages: &[Package]) -> Result<String> {
    let name = &packages.first().context("no package")?.name;
    let rest = name
        .splitn(3, '-')
        .nth(2)
        .context("a package without a version")?;
    Ok(rest.trim_end_matches("-unsigned").to_owned())
}

/// Unpacks and builds all files of a kernel in its directory.
///
/// # Errors
/// When the packages are not as expected.
pub(crate) fn build(apt: &Apt, tools: &Tools, kernel: &Kernel, from: &[Package]) -> Result<()> {
    let raw = kernel.dir.join("raw");
    debian::unpack(&apt.fetch(from)?, &raw)?;
    let release = &kernel.release;
    let compressed = first_of(&[
        raw.join(format!("boot/vmlinuz-{release}")),
        raw.join(format!("usr/lib/modules/{release}/vmlinuz")),
    ])?;
    extract(tools, &compressed, &kernel.image())?;
    let all = first_of(&[
        raw.join(format!("usr/lib/modules/{release}")),
        raw.join(format!("lib/modules/{release}")),
    ])?;
    select_modules(tools, kernel, &all)?;
    write_initrd(tools, kernel)?;
    std::fs::remove_dir_all(&raw).context("remove what was unpacked")
}

fn first_of(paths: &[PathBuf]) -> Result<PathBuf> {
    let found = paths.iter().find(|path| path.exists());
    found
        .cloned()
        .with_context(|| format!("none of {paths:?} is there"))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<usize> {
    let field = bytes
        .get(at..at + 4)
        .and_then(|field| field.try_into().ok());
    let value = u32::from_le_bytes(field.context("a kernel image shorter than its head")?);
    Ok(usize::try_from(value)?)
}

/// Takes the ELF image out of a bzImage: its boot sector says where the payload is (the kernel's
/// Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length). QEMU then skips
/// the decompressor, which takes seconds under emulation.
fn extract(tools: &Tools, image: &Path, output: &Path) -> Result<()> {
    let bytes = std::fs::read(image).with_context(|| format!("read {}", image.display()))?;
    let sectors = match bytes.get(0x1f1) {
        Some(0) | None => 4,
        Some(sectors) => usize::from(*sectors),
    };
    let start = (sectors + 1) * 512 + u32_at(&bytes, 0x248)?;
    let end = start + u32_at(&bytes, 0x24c)?;
    // The build appends the unpacked size to what is not gzip.
    let payload = bytes
        .get(start..end.saturating_sub(4))
        .context("a payload beyond the image")?;
    let program = match payload.get(..4) {
        Some([0xfd, b'7', b'z', b'X']) => "usr/bin/xz",
        Some([0x28, 0xb5, 0x2f, 0xfd]) => "usr/bin/zstd",
        other => bail!("unknown compression of {}: {other:02x?}", image.display()),
    };
    let part = output.with_extension("payload");
    std::fs::write(&part, payload)?;
    tools.decompress(program, &part, output)?;
    std::fs::remove_file(&part)?;
    let head = std::fs::read(output)?;
    if !head.starts_with(b"\x7fELF") {
        bail!("{} holds no ELF image", image.display());
    }
    Ok(())
}

/// A module's name: `-` and `_` are the same in it.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// `modules.dep`: a module's path and the paths of all that it needs.
fn parse_dependencies(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        if let Some((path, rest)) = line.split_once(':') {
            let mut paths = vec![path.to_owned()];
            paths.extend(rest.split_whitespace().map(str::to_owned));
            found.insert(module_name(path), paths);
        }
    }
    found
}

/// Paths of these modules and all that they need, in no order.
fn closure(dependencies: &BTreeMap<String, Vec<String>>, names: &[&str]) -> BTreeSet<String> {
    let paths = names
        .iter()
        .filter_map(|name| dependencies.get(&module_name(name)));
    paths.flatten().cloned().collect()
}

fn depmod(tools: &Tools, base: &Path, release: &str) -> Result<String> {
    quietly(
        tools
            .command("usr/sbin/depmod")
            .arg("-b")
            .arg(base)
            .arg(release),
    )?;
    let list = base.join("lib/modules").join(release).join("modules.dep");
    std::fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))
}

/// Copies the modules that we want, unpacked: that is slow in the guest.
fn select_modules(tools: &Tools, kernel: &Kernel, all: &Path) -> Result<()> {
    let base = kernel.dir.join("all");
    let place = base.join("lib/modules");
    std::fs::create_dir_all(&place)?;
    std::fs::rename(all, place.join(&kernel.release))?;
    let all = place.join(&kernel.release);
    let dependencies = parse_dependencies(&depmod(tools, &base, &kernel.release)?);
    let ours = kernel.modules().join("lib/modules").join(&kernel.release);
    std::fs::create_dir_all(&ours)?;
    for list in [
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ] {
        if all.join(list).exists() {
            std::fs::copy(all.join(list), ours.join(list))?;
        }
    }
    for path in closure(&dependencies, MODULES) {
        let from = all.join(&path);
        let to = ours.join(&path);
        std::fs::create_dir_all(to.parent().context("a module at the root")?)?;
        match from.extension().and_then(std::ffi::OsStr::to_str) {
            Some("xz") => tools.decompress("usr/bin/xz", &from, &to.with_extension(""))?,
            Some("zst") => tools.decompress("usr/bin/zstd", &from, &to.with_extension(""))?,
            _ => std::fs::copy(&from, &to).map(drop)?,
        }
    }
    depmod(tools, &kernel.modules(), &kernel.release)?;
    std::fs::remove_dir_all(&base).context("remove the other modules")
}

/// busybox, our `init`, and the modules that it loads before there is a root.
fn write_initrd(tools: &Tools, kernel: &Kernel) -> Result<()> {
    let init = host::root().join("ci/vm/guest/init");
    let mut archive = Archive::default();
    let modules = format!("lib/modules/{}", kernel.release);
    let mut made = BTreeSet::new();
    let mut directories = |archive: &mut Archive, path: &str| -> Result<()> {
        for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let above = path.get(..at).unwrap_or(path);
            if made.insert(above.to_owned()) {
                archive.directory(above)?;
            }
        }
        Ok(())
    };
    for dir in [
        "bin",
        "dev",
        "proc",
        "sys",
        "newroot",
        "ro",
        "rw",
        modules.as_str(),
    ] {
        directories(&mut archive, dir)?;
    }
    archive.program(
        "bin/busybox",
        &std::fs::read(tools.file("usr/bin/busybox"))?,
    )?;
    archive.program(
        "init",
        &std::fs::read(&init).context("read ci/vm/guest/init")?,
    )?;
    let tree = kernel.modules().join(&modules);
    let text = std::fs::read_to_string(tree.join("modules.dep"))?;
    archive.program(&format!("{modules}/modules.dep"), text.as_bytes())?;
    for path in closure(&parse_dependencies(&text), EARLY) {
        let name = format!("{modules}/{path}");
        let (above, _) = name.rsplit_once('/').context("a module at the root")?;
        directories(&mut archive, above)?;
        archive.program(&name, &std::fs::read(tree.join(&path))?)?;
    }
    archive.write(&kernel.initrd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_with_what_it_needs() {
        let text = "kernel/a/dm-flakey.ko.xz: kernel/a/dm-mod.ko.xz\nkernel/a/dm-mod.ko.xz:\n\
                    kernel/b/other.ko:\n";
        let paths = closure(&parse_dependencies(text), &["dm_flakey", "no_such"]);
        let paths: Vec<_> = paths.iter().map(String::as_str).collect();
        assert_eq!(paths, ["kernel/a/dm-flakey.ko.xz", "kernel/a/dm-mod.ko.xz"]);
    }
}
