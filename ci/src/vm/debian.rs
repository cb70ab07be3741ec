//! Debian packages without installing them: an apt root of our own, whose status is empty, so that
//! what apt resolves is the whole closure and the machine's own packages are never touched.

use crate::vm::quietly;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's release that guests run.
pub(crate) const RELEASE: &str = "trixie";
/// Where the newest kernel comes from.
pub(crate) const BACKPORTS: &str = "trixie-backports";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt root.
#[derive(Debug)]
pub(crate) struct Apt {
    config: PathBuf,
    archives: PathBuf,
}

/// A package as apt resolved it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    architecture: String,
}

impl Package {
    /// A line of `apt-get --simulate`: `Inst NAME (VERSION SUITE [ARCHITECTURE])`.
    fn parse(line: &str) -> Option<Package> {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
        let (version, rest) = rest.split_once(' ')?;
        let architecture = rest.split_once('[')?.1.split(']').next()?;
        Some(Package {
            name: name.to_owned(),
            version: version.to_owned(),
            architecture: architecture.to_owned(),
        })
    }

    /// Name of its file in apt's cache.
    fn file(&self) -> String {
        let version = self.version.replace(':', "%3a");
        format!("{}_{version}_{}.deb", self.name, self.architecture)
    }

    /// Name and version.
    pub(crate) fn key(&self) -> String {
        format!("{}={}", self.name, self.version)
    }
}

impl Apt {
    /// Makes the root below `cache`, or finds it.
    ///
    /// # Errors
    /// When this is no Debian machine, or the directory cannot be written.
    pub(crate) fn open(cache: &Path) -> Result<Apt> {
        if !Path::new(KEYRING).exists() {
            bail!("guests are built from Debian packages: {KEYRING} is missing");
        }
        let root = cache.join("apt");
        for dir in ["state/lists/partial", "cache/archives/partial", "etc"] {
            let dir = root.join(dir);
            std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let sources = root.join("etc/sources.list");
        let mirror = mirror()?;
        let line = |suite| format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n");
        std::fs::write(&sources, line(RELEASE) + &line(BACKPORTS))?;
        std::fs::write(root.join("state/status"), "")?;
        let config = root.join("apt.conf");
        let text = format!(
            "Dir::Etc::sourcelist \"{0}/etc/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"/dev/null\";\n\
             Dir::State \"{0}/state\";\nDir::State::status \"{0}/state/status\";\n\
             Dir::Cache \"{0}/cache\";\nAPT::Architecture \"amd64\";\nAPT::Architectures \"amd64\";\n\
             APT::Install-Recommends \"false\";\nAPT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\nAcquire::Retries \"2\";\n",
            root.display()
        );
        std::fs::write(&config, text)?;
        Ok(Apt {
            config,
            archives: root.join("cache/archives"),
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C");
        command
    }

    /// Reads the newest lists of packages.
    ///
    /// # Errors
    /// Without network.
    pub(crate) fn update(&self) -> Result<()> {
        let mut command = self.command("apt-get");
        quietly(command.args(["update", "-qq", "--error-on=any"])).map(drop)
    }

    /// Packages with all that they depend on, in an order that apt likes; `suite` wins over others.
    ///
    /// # Errors
    /// When a package is unknown.
    pub(crate) fn closure(&self, packages: &[&str], suite: &str) -> Result<Vec<Package>> {
        let mut command = self.command("apt-get");
        command.args(["install", "--simulate", "-y", "-t", suite]);
        let text = quietly(command.args(packages))?;
        let found: Vec<_> = text.lines().filter_map(Package::parse).collect();
        if found.is_empty() {
            bail!("apt found nothing for {}", packages.join(" "));
        }
        Ok(found)
    }

    /// Files of these packages, downloaded if they are not there.
    ///
    /// # Errors
    /// Without network, or when a package is gone from the archive.
    pub(crate) fn fetch(&self, packages: &[Package]) -> Result<Vec<PathBuf>> {
        let path = |package: &Package| self.archives.join(package.file());
        let missing: Vec<_> = packages
            .iter()
            .filter(|package| !path(package).exists())
            .map(Package::key)
            .collect();
        if !missing.is_empty() {
            let mut command = self.command("apt-get");
            command.current_dir(&self.archives);
            quietly(command.args(["download", "-qq"]).args(&missing))?;
        }
        for package in packages {
            if !path(package).exists() {
                bail!("apt did not bring {}", path(package).display());
            }
        }
        Ok(packages.iter().map(path).collect())
    }

    /// The version of a package in one suite, the highest if there are several.
    ///
    /// # Errors
    /// When the suite does not have it.
    pub(crate) fn version(&self, package: &str, suite: &str) -> Result<String> {
        let text = quietly(self.command("apt-cache").args(["madison", package]))?;
        version_in(&text, suite).with_context(|| format!("{suite} has no {package}"))
    }

    /// Deletes downloads that are not among `keep`.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(crate) fn forget(&self, keep: &[Package]) -> Result<()> {
        let keep: std::collections::BTreeSet<_> = keep.iter().map(Package::file).collect();
        for entry in std::fs::read_dir(&self.archives)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".deb") && !keep.contains(&name) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Lines of `apt-cache madison`, highest version first: `NAME | VERSION | URI SUITE/main ...`.
fn version_in(madison: &str, suite: &str) -> Option<String> {
    let wanted = format!("{suite}/main");
    madison.lines().find_map(|line| {
        let mut columns = line.split('|').map(str::trim);
        let version = columns.nth(1)?;
        let place = columns.next()?;
        place
            .split(' ')
            .any(|word| word == wanted)
            .then(|| version.to_owned())
    })
}

/// The mirror that the machine itself uses for Debian's main archive.
fn mirror() -> Result<String> {
    let format = "$(REPO_URI) $(COMPONENT)";
    let text = quietly(
        Command::new("apt-get")
            .args(["indextargets", "--format", format, "Created-By: Packages"])
            .env("LC_ALL", "C"),
    )?;
    text.lines()
        .filter_map(|line| line.strip_suffix(" main"))
        .find(|uri| uri.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
        .context("the machine's apt sources name no Debian mirror")
}

/// Unpacks packages into a directory; no script of theirs runs.
///
/// # Errors
/// When one is damaged or the disk is full.
pub(crate) fn unpack(files: &[PathBuf], into: &Path) -> Result<()> {
    std::fs::create_dir_all(into)?;
    // It brings the links /bin, /lib ... that the others are unpacked through.
    let first = |path: &&PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("base-files_"))
    };
    let rest = files.iter().filter(|path| !first(path));
    for file in files.iter().filter(first).chain(rest) {
        quietly(Command::new("dpkg-deb").arg("-x").arg(file).arg(into))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_prints_is_understood() {
        let line = "Inst nbdkit (1:1.42.3-1 Debian:13.1/stable [amd64]) []";
        let package = Package::parse(line).unwrap();
        assert_eq!(package.key(), "nbdkit=1:1.42.3-1");
        assert_eq!(package.file(), "nbdkit_1%3a1.42.3-1_amd64.deb");
        assert_eq!(Package::parse("Conf nbdkit (1 x [amd64])"), None);
    }

    #[test]
    fn version_is_that_of_the_suite() {
        let text = " k | 7.3.4-1~bpo13+1 | http://m trixie-backports/main amd64 Packages\n \
                    k | 7.2.1-1 | http://m trixie-backports/main amd64 Packages\n \
                    k | 6.12.1-1 | http://m trixie/main amd64 Packages\n";
        assert_eq!(version_in(text, "trixie").as_deref(), Some("6.12.1-1"));
        let newest = version_in(text, "trixie-backports");
        assert_eq!(newest.as_deref(), Some("7.3.4-1~bpo13+1"));
        assert_eq!(version_in(text, "sid"), None);
    }
}
