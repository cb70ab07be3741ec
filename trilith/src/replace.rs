//! `trilith volume replace-replica`: makes the store of the new replica, then asks the volume to put it
//! in the place of the old one. What follows is done by `up` and the engine, also after a restart of
//! either.

use crate::admin::client::{self, Refused};
use crate::cli::ReplaceArgs;
use crate::control::hex;
use crate::exit::{Exit, setup};
use crate::host::engine::REPLACE_TARGET;
use crate::host::process;
use crate::host::replica::format;
use crate::limits::{DIR_BYTES_MAX, REPLACE_WAIT_MAX};
use crate::output;
use crate::up::supervisor::ChildId;
use crate::up::{Replica, VolumeState, layout};
use anyhow::{Context, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use trilith_block::{MemberId, MemberSet};

/// Pause between two looks at what `up` has remembered.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Runs the command.
///
/// # Errors
/// When there is no such volume or replica, the new directory is not empty, another replacement
/// runs, or the volume is not served.
pub(crate) fn run(args: &ReplaceArgs) -> anyhow::Result<Exit> {
    let new_dir = args.new_dir.as_deref().map(std::path::absolute);
    let new_dir = new_dir.transpose().context("resolve --new-dir")?;
    std::env::set_current_dir(&args.dir)
        .with_context(|| format!("enter {}", args.dir.display()))
        .map_err(setup)?;
    if args.give_up {
        let engine = layout::admin_address(ChildId::Engine);
        output::print(&client::ask(&engine, "POST", "/volume/keep-replica")?);
        return Ok(Exit::Done);
    }
    let state = VolumeState::read(Path::new("."))
        .and_then(|state| state.context("find a volume: expected volume.json in the directory"))
        .map_err(setup)?;
    let old = args.member.context("expected --member").map_err(setup)?;
    let new = plan(&state, old, new_dir).map_err(setup)?;
    let dir = new.directory();
    check_length(&dir).map_err(setup)?;
    check_empty(&dir).map_err(setup)?;
    // Nothing is made when the volume would refuse it anyway.
    let engine = layout::admin_address(ChildId::Engine);
    client::ask(&engine, "GET", "/status").context("find the volume's engine")?;
    let made = !dir.exists();
    make(&state, old, &new).with_context(|| format!("make a replica in {}", dir.display()))?;
    let target = format!(
        "{REPLACE_TARGET}{old}/{}/{}/{}",
        new.member,
        new.id,
        hex(&dir)
    );
    if let Err(error) = client::ask(&engine, "POST", &target) {
        // Without an answer nobody knows whether the replica is in use already.
        return Err(match error.downcast::<Refused>() {
            Ok(refused) => {
                unmake(&dir, made);
                refused.into()
            }
            Err(error) => error,
        });
    }
    wait_until_remembered(new.member)?;
    output::print(&format!(
        "replica {old} is being replaced by replica {} in {}; `trilith status` shows how far it is\n",
        new.member,
        dir.display()
    ));
    Ok(Exit::Done)
}

/// The replica that is to take the place of `old`.
fn plan(state: &VolumeState, old: usize, dir: Option<PathBuf>) -> anyhow::Result<Replica> {
    // The files of one that was replaced may still be in the usual directory of its number.
    let unused = |m: &usize| check_empty(&layout::replica_dir(*m)).is_ok();
    let member = state
        .free_numbers()
        .find(unused)
        .or_else(|| state.free_numbers().next())
        .context("no number is left")?;
    let new = Replica {
        member,
        id: process::new_uuid()?,
        dir,
    };
    state.replacing(old, new.clone())?;
    Ok(new)
}

fn check_empty(dir: &Path) -> anyhow::Result<()> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("look into {}", dir.display())),
        Ok(mut files) => {
            let found = match files.next() {
                None => return Ok(()),
                Some(_) if format::is_formatted(dir) => "a replica",
                Some(_) => "files",
            };
            bail!(
                "expected an empty directory for the new replica, found {found} in {}",
                dir.display()
            )
        }
    }
}

/// A path that every line and every request can carry.
fn check_length(dir: &Path) -> anyhow::Result<()> {
    let bytes = dir.as_os_str().len();
    ensure!(
        bytes <= DIR_BYTES_MAX,
        "expected a path of at most {DIR_BYTES_MAX} bytes for the new replica, found {bytes}"
    );
    Ok(())
}

fn make(state: &VolumeState, old: usize, new: &Replica) -> anyhow::Result<()> {
    let mut turns = format::turns()?;
    let numbers = state.replicas.iter().map(|r| r.member);
    let voters = numbers
        .filter(|member| *member != old)
        .chain([new.member])
        .filter_map(MemberId::new)
        .fold(MemberSet::EMPTY, MemberSet::with);
    let store = format::New {
        volume: state.volume,
        replica: new.id,
        member: new.member,
        replicas: state.count(),
        witness: false,
        capacity: state.size_bytes,
        replacement: false,
        newcomer: Some(voters),
        checksums: state.checksums,
    };
    format::directory(&mut turns, &new.directory(), &store)
}

/// Takes back what was made, so that the next try finds the directory as it was.
fn unmake(dir: &Path, made: bool) {
    for name in [format::META, format::DATA] {
        if let Err(error) = fs::remove_file(dir.join(name)) {
            tracing::warn!(%error, "cannot remove {name} in {}", dir.display());
        }
    }
    if made && let Err(error) = fs::remove_dir(dir) {
        tracing::warn!(%error, "cannot remove {}", dir.display());
    }
}

/// `up` has taken it over when its state file says so.
fn wait_until_remembered(member: usize) -> anyhow::Result<()> {
    for _ in 0..REPLACE_WAIT_MAX.as_millis() / LOOK_PAUSE.as_millis() {
        let state = VolumeState::read(Path::new("."))?;
        if state.is_some_and(|s| s.replica(member).is_some()) {
            return Ok(());
        }
        process::pause(LOOK_PAUSE);
    }
    bail!("`trilith up` has not taken the replacement up: see what it logged")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_files_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("new");
        assert!(check_empty(&inner).is_ok());
        fs::create_dir(&inner).unwrap();
        assert!(check_empty(&inner).is_ok());
        fs::write(inner.join("x"), "").unwrap();
        let error = check_empty(&inner).unwrap_err().to_string();
        assert!(error.contains("found files in"), "{error}");
        fs::write(inner.join(format::META), "").unwrap();
        let error = check_empty(&inner).unwrap_err().to_string();
        assert!(error.contains("found a replica in"), "{error}");
        assert!(check_length(&inner).is_ok());
        assert!(check_length(Path::new(&"x".repeat(DIR_BYTES_MAX + 1))).is_err());
    }
}
