//! A real file system goes in and comes out the same, through the death of a replica.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use trilith_e2e::cluster::{signal, succeed};
use trilith_e2e::{Cluster, Options, wait_until};

/// Real directories are taken in this order until the image holds enough.
const SOURCES: &[&str] = &[
    "/usr/bin",
    "/usr/share/perl",
    "/usr/include",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib",
];
/// Bytes of files that the image must hold.
const CONTENT_MIN: u64 = 300 << 20;
/// Bytes of files that the image may hold.
const CONTENT_MAX: u64 = 420 << 20;
const IMAGE_MIB: u64 = 640;

/// Copies regular files from `from` to `to` until `budget` bytes are used; what is left of it.
fn copy_some(from: &Path, to: &Path, mut budget: u64) -> Result<u64> {
    fs::create_dir_all(to)?;
    let mut entries: Vec<_> = fs::read_dir(from)?.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type()?;
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            budget = copy_some(&entry.path(), &target, budget)?;
        } else if kind.is_file() {
            let len = entry.metadata()?.len();
            if len <= budget && fs::copy(entry.path(), &target).is_ok() {
                budget -= len;
            }
        }
    }
    Ok(budget)
}

fn make_image(dir: &Path) -> Result<PathBuf> {
    let tree = dir.join("tree");
    let mut budget = CONTENT_MAX;
    for source in SOURCES.iter().map(Path::new).filter(|s| s.is_dir()) {
        let name = source.file_name().context("a name")?;
        budget = copy_some(source, &tree.join(name), budget)?;
        if CONTENT_MAX - budget >= CONTENT_MIN {
            break;
        }
    }
    ensure!(
        CONTENT_MAX - budget >= CONTENT_MIN,
        "only {} bytes found",
        CONTENT_MAX - budget
    );
    let image = dir.join("image");
    let (tree, name) = (tree.display().to_string(), image.display().to_string());
    let size = format!("{IMAGE_MIB}M");
    succeed(
        "/usr/sbin/mke2fs",
        &["-q", "-t", "ext4", "-d", &tree, &name, &size],
    )?;
    fs::remove_dir_all(dir.join("tree"))?;
    Ok(image)
}

/// Numbers of the 4 KiB blocks, over the length of the first file, in which the files differ.
fn differing(first: &Path, second: &Path) -> Result<Vec<u64>> {
    let (mut a, mut b) = (File::open(first)?, File::open(second)?);
    let (mut x, mut y) = ([0; 4096], [0; 4096]);
    let mut blocks = Vec::new();
    for block in 0..fs::metadata(first)?.len() / 4096 {
        a.read_exact(&mut x)?;
        b.read_exact(&mut y)?;
        if x != y {
            blocks.push(block);
        }
    }
    Ok(blocks)
}

fn ensure_same(first: &Path, second: &Path) -> Result<()> {
    let blocks = differing(first, second)?;
    let some = blocks.get(..blocks.len().min(20));
    ensure!(
        blocks.is_empty(),
        "{} differs from {} in {} blocks: {some:?} ...",
        second.display(),
        first.display(),
        blocks.len()
    );
    Ok(())
}

#[test]
fn an_image_survives_the_death_of_a_replica_half_way() -> Result<()> {
    let mut cluster = Cluster::start(Options {
        size: format!("{IMAGE_MIB}MiB"),
        ..Options::default()
    })?;
    cluster.wait_state("healthy")?;
    let image = make_image(cluster.dir())?;

    let mut copy = Command::new("nbdcopy")
        .args(["--flush", "--connections=4", "--requests=32"])
        .arg(&image)
        .arg(cluster.uri())
        .stdin(Stdio::null())
        .spawn()?;
    let data = cluster.replica_dir(1).join("vol.data");
    wait_until("half of the image to be written", || {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(&data).is_ok_and(|m| m.blocks() * 512 > CONTENT_MIN / 2)
    })?;
    let pid = cluster.replica(1)?;
    signal(pid, Signal::KILL)?;
    wait_until("the replica to be restarted", || {
        cluster.replica(1).is_ok_and(|p| p != pid)
    })?;
    let status = copy.wait()?;
    ensure!(status.success(), "nbdcopy into the volume: {status}");

    let out = cluster.dir().join("out");
    succeed(
        "nbdcopy",
        &[
            "--connections=4",
            &cluster.uri(),
            &out.display().to_string(),
        ],
    )?;
    ensure_same(&image, &out)?;
    succeed("/usr/sbin/e2fsck", &["-fn", &out.display().to_string()])?;

    cluster.wait_state("healthy")?;
    cluster.stop()?;
    for member in 0..3 {
        let data = cluster.replica_dir(member).join("vol.data");
        ensure_same(&image, &data)?;
    }
    Ok(())
}
