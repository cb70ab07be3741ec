//! The cache of everything that guests need, keyed by versions: what is there in its newest version
//! is left alone.

use crate::run as host;
use crate::vm::debian::{Apt, BACKPORTS, Package, RELEASE};
use crate::vm::kernel::{self, Kernel};
use crate::vm::tools::Tools;
use crate::vm::{Which, cache, key, rootfs};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What guests are made of.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    /// Programs for the host.
    pub(crate) tools: Tools,
    /// Image of the root file system.
    pub(crate) root: PathBuf,
    /// Kernels, the oldest first.
    pub(crate) kernels: Vec<Kernel>,
}

impl Ready {
    /// The kernels of a choice.
    pub(crate) fn kernels(&self, which: Which) -> impl Iterator<Item = &Kernel> {
        let wanted = move |kernel: &&Kernel| which == Which::All || which == kernel.which;
        self.kernels.iter().filter(wanted)
    }
}

/// The file that says what is ready.
const LIST: &str = "ready.json";

/// Takes what is prepared, or prepares it.
///
/// # Errors
/// As [`prepare`].
pub(crate) fn ready() -> Result<Ready> {
    match load(&cache()) {
        Some(ready) => Ok(ready),
        None => prepare(),
    }
}

/// Brings the cache to the newest versions. Without network an older cache is used, and told.
///
/// # Errors
/// When there is no cache and it cannot be made.
pub(crate) fn prepare() -> Result<Ready> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("guests run the programs of this machine: expected x86_64");
    }
    let cache = cache();
    std::fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    let cache = std::fs::canonicalize(&cache)?;
    match newest(&cache) {
        Ok(ready) => Ok(ready),
        Err(error) => match load(&cache) {
            Some(ready) => {
                host::say(&format!(
                    "using guests as they were prepared before: {error:#}"
                ));
                Ok(ready)
            }
            None => Err(error.context("guests cannot be prepared")),
        },
    }
}

fn newest(cache: &Path) -> Result<Ready> {
    let apt = Apt::open(cache)?;
    host::say("reading Debian's lists of packages");
    apt.update()?;
    let mut all = Tools::packages(&apt)?;
    let tools = Tools::at(cache.join(format!("tools-{}", key_of(&all, &[]))));
    once(&tools.file(""), "programs for the host", || {
        tools.unpack(&apt, &all)
    })?;
    let mut kernels = Vec::new();
    for (which, suite) in [(Which::Lts, RELEASE), (Which::Newest, BACKPORTS)] {
        let packages = kernel::packages(&apt, suite)?;
        let release = kernel::release(&packages)?;
        let recipe = [
            include_str!("kernel.rs"),
            include_str!("../../vm/guest/init"),
        ];
        let dir = cache.join(format!("kernel-{release}-{}", key_of(&packages, &recipe)));
        let kernel = Kernel {
            which,
            release,
            dir,
        };
        once(&kernel.dir, &format!("kernel {}", kernel.release), || {
            kernel::build(&apt, &tools, &kernel, &packages)
        })?;
        all.extend(packages);
        kernels.push(kernel);
    }
    let packages = rootfs::packages(&apt)?;
    let dirs: Vec<_> = kernels
        .iter()
        .map(|kernel| kernel.dir.display().to_string())
        .collect();
    let mut recipe = vec![rootfs::RECIPE];
    recipe.extend(dirs.iter().map(String::as_str));
    let place = cache.join(format!("root-{}", key_of(&packages, &recipe)));
    let root = place.join("root.ext4");
    once(&place, "root file system", || {
        std::fs::create_dir_all(&place)?;
        rootfs::build(&apt, &tools, &kernels, &packages, &root)
    })?;
    all.extend(packages);
    apt.forget(&all)?;
    let ready = Ready {
        tools,
        root,
        kernels,
    };
    save(cache, &ready)?;
    forget(cache, &ready)?;
    Ok(ready)
}

fn key_of(packages: &[Package], recipe: &[&str]) -> String {
    let names: Vec<_> = packages.iter().map(Package::key).collect();
    key(names
        .iter()
        .map(String::as_str)
        .chain(recipe.iter().copied()))
}

/// Builds a directory unless it was built to the end before.
fn once(dir: &Path, what: &str, build: impl FnOnce() -> Result<()>) -> Result<()> {
    let done = dir.join(".done");
    if done.exists() {
        return Ok(());
    }
    host::say(&format!("preparing {what}"));
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    build().with_context(|| format!("prepare {what}"))?;
    std::fs::write(&done, "").with_context(|| format!("write {}", done.display()))
}

fn save(cache: &Path, ready: &Ready) -> Result<()> {
    let kernels: Vec<_> = ready
        .kernels
        .iter()
        .map(|kernel| json!({"release": kernel.release, "dir": kernel.dir}))
        .collect();
    let list = json!({"tools": ready.tools.file(""), "root": ready.root, "kernels": kernels});
    let part = cache.join("ready.part");
    std::fs::write(&part, format!("{list:#}"))?;
    std::fs::rename(&part, cache.join(LIST)).context("write the list of what is ready")
}

/// What the list says, if all of it is there.
fn load(cache: &Path) -> Option<Ready> {
    let list: Value = serde_json::from_slice(&std::fs::read(cache.join(LIST)).ok()?).ok()?;
    let path = |value: &Value| {
        value
            .as_str()
            .map(PathBuf::from)
            .filter(|path| path.exists())
    };
    let mut kernels = Vec::new();
    for (which, entry) in [Which::Lts, Which::Newest]
        .iter()
        .zip(list["kernels"].as_array()?)
    {
        kernels.push(Kernel {
            which: *which,
            release: entry["release"].as_str()?.to_owned(),
            dir: path(&entry["dir"])?,
        });
    }
    Some(Ready {
        tools: Tools::at(path(&list["tools"])?),
        root: path(&list["root"])?,
        kernels,
    })
}

/// Deletes older versions.
fn forget(cache: &Path, ready: &Ready) -> Result<()> {
    let mut keep = vec![ready.tools.file("")];
    keep.extend(ready.root.parent().map(Path::to_owned));
    keep.extend(ready.kernels.iter().map(|kernel| kernel.dir.clone()));
    for entry in std::fs::read_dir(cache)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let versioned = ["tools-", "kernel-", "root-"]
            .iter()
            .any(|kind| name.starts_with(kind));
        // A path with a slash at its end is equal to one without.
        if versioned && !keep.iter().any(|kept| *kept == entry.path()) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_found_and_older_versions_go() {
        let cache = std::env::temp_dir().join(format!("vm-ready-{}", std::process::id()));
        for dir in [
            "tools-1", "tools-0", "root-1", "kernel-a", "kernel-b", "run",
        ] {
            std::fs::create_dir_all(cache.join(dir)).unwrap();
        }
        std::fs::write(cache.join("root-1/root.ext4"), "").unwrap();
        let kernel = |which, name: &str| Kernel {
            which,
            release: name.to_owned(),
            dir: cache.join(format!("kernel-{name}")),
        };
        let ready = Ready {
            tools: Tools::at(cache.join("tools-1")),
            root: cache.join("root-1/root.ext4"),
            kernels: vec![kernel(Which::Lts, "a"), kernel(Which::Newest, "b")],
        };
        assert!(load(&cache).is_none());
        save(&cache, &ready).unwrap();
        forget(&cache, &ready).unwrap();
        let found = load(&cache).unwrap();
        assert_eq!(found.kernels, ready.kernels);
        assert_eq!(found.kernels(Which::Newest).count(), 1);
        assert!(!cache.join("tools-0").exists() && cache.join("run").exists());
        std::fs::remove_dir_all(cache.join("kernel-b")).unwrap();
        assert!(load(&cache).is_none(), "a part is missing");
        std::fs::remove_dir_all(&cache).unwrap();
    }
}
