//! Disks of a node. Some have a volatile cache: QEMU reaches them through nbdkit's cache filter, which
//! writes to the file only what the guest flushed. Killing both is a power cut.

use crate::vm::limits::BOOT_MAX;
use crate::vm::scenario::Disk;
use crate::vm::tools::Tools;
use crate::vm::{now, pause};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

/// The caches of one boot; killed when dropped.
#[derive(Debug)]
pub(crate) struct Caches(Vec<Child>);

impl Drop for Caches {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Makes new, empty disks in a node's directory.
///
/// # Errors
/// When they cannot be made.
pub(crate) fn create(disks: &[Disk], dir: &Path) -> Result<()> {
    for disk in disks {
        let path = dir.join(format!("{}.raw", disk.name));
        let file = std::fs::File::create(&path);
        file.and_then(|file| file.set_len(disk.bytes))
            .with_context(|| format!("make {}", path.display()))?;
    }
    Ok(())
}

/// Starts the caches, in the node's directory.
///
/// # Errors
/// When one does not start.
pub(crate) fn start(disks: &[Disk], tools: &Tools, dir: &Path) -> Result<Caches> {
    let mut caches = Caches(Vec::new());
    for disk in disks.iter().filter(|disk| disk.is_volatile) {
        let socket = format!("{}.sock", disk.name);
        if dir.join(&socket).exists() {
            std::fs::remove_file(dir.join(&socket))?;
        }
        let log = std::fs::File::create(dir.join(format!("{}.nbdkit", disk.name)))?;
        let data = format!("{}.raw", disk.name);
        let child = tools
            .volatile_disk(Path::new(&socket), Path::new(&data))
            .current_dir(dir)
            .env("TMPDIR", dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("run nbdkit")?;
        caches.0.push(child);
        wait(&mut caches, &dir.join(socket))?;
    }
    Ok(caches)
}

fn wait(caches: &mut Caches, socket: &Path) -> Result<()> {
    let until = now() + BOOT_MAX;
    while !socket.exists() {
        for child in &mut caches.0 {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "nbdkit ended with {status}; see its log beside {}",
                    socket.display()
                );
            }
        }
        if until < now() {
            bail!("nbdkit does not listen on {}", socket.display());
        }
        pause(Duration::from_millis(10));
    }
    Ok(())
}

/// QEMU's arguments for the disks.
pub(crate) fn arguments(disks: &[Disk]) -> Vec<String> {
    let mut arguments = Vec::new();
    for disk in disks {
        let name = &disk.name;
        // A volatile disk keeps its cache in nbdkit. The others lose nothing of what QEMU was given.
        let file = if disk.is_volatile {
            format!("file=nbd:unix:{name}.sock")
        } else {
            format!("file={name}.raw")
        };
        arguments.push("-drive".to_owned());
        arguments.push(format!(
            "if=none,id={name},format=raw,discard=unmap,cache=writeback,{file}"
        ));
        arguments.push("-device".to_owned());
        arguments.push(format!("virtio-blk-pci,drive={name},serial={name}"));
    }
    arguments
}
