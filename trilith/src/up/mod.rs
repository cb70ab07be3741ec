//! `trilith up`: a whole volume on one machine. It makes the volume or finds it again, starts its
//! replicas and its engine, and is the manager of the volume while it lives (M13): it holds the
//! directory's lock, issues attach epochs and grants exclusive reading.

mod children;
mod config;
mod greeting;
pub(crate) mod layout;
mod run;
mod state;
pub(crate) mod supervisor;

use crate::cli::{BackendArg, UpArgs};
use crate::exit::{Exit, setup};
use crate::host::engine::ublk;
use crate::host::process;
use crate::host::replica::format::{self, NO_REPLACEMENT, WITNESS_REPLICAS};
use crate::limits::{ISCSI_WAIT_MAX, LISTEN_RETRY, OLD_ENGINE_WAIT_MAX, SECRET_BYTES};
use crate::text::bytes_text;
use anyhow::{Context, anyhow, bail, ensure};
use config::{Config, Wanted};
use state::State;
use std::fs::DirBuilder;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use trilith_block::Uuid;
use trilith_runtime::{
    Address, ArenaConfig, Backend, DataFile, Loop, LoopConfig, OpenFile, Signal, boot_id,
    random_bytes, write_secret,
};

pub(crate) use state::{Replica, State as VolumeState};

/// Replicas of a volume when nothing else is said.
const REPLICAS_DEFAULT: usize = 3;
/// Name of a volume when nothing else is said.
const NAME_DEFAULT: &str = "vol";

/// Runs a volume until it is told to stop.
///
/// # Errors
/// When the directory, the flags or the volume in it cannot be used.
pub(crate) fn run(args: UpArgs, log: &str) -> anyhow::Result<Exit> {
    let mut config = Config::new(args, log).map_err(setup)?;
    if config.wanted.size_bytes.is_none() && !config.dir.join(layout::STATE).exists() {
        return Err(setup(no_size(&config)));
    }
    if !config.dir.join(layout::STATE).exists() {
        check_witness(&config.wanted).map_err(setup)?;
    }
    if config.ublk.number.is_some() {
        ublk::check_host(config.backend != BackendArg::Plain)?;
        // Children inherit it: the replicas work for the device as well as the engine.
        process::become_io_flusher();
    }
    let lock = enter(&config.dir).map_err(setup)?;
    let mut state = find_or_make(&config).map_err(setup)?;
    let mut arena = ArenaConfig::of_process();
    // `up` itself moves no data but that of formatting.
    arena.budget_bytes = 4 << 20;
    let mut turns = Loop::new(LoopConfig {
        backend: Backend::Plain,
        arena,
        ..LoopConfig::default()
    })?;
    let signals = [
        Signal::Terminate,
        Signal::Interrupt,
        Signal::Hangup,
        Signal::Child,
    ];
    turns.io().catch_signals(&signals)?;
    if !state.formatted {
        format_replicas(&mut turns, &mut state).map_err(setup)?;
    }
    check_replicas(&state).map_err(setup)?;
    wait_for_old_engine().map_err(setup)?;
    settle_iscsi(&mut config, state.attach_epoch > 0);
    tracing::info!(
        dir = %config.dir.display(),
        volume = %state.volume,
        name = state.name,
        size = bytes_text(state.size_bytes),
        replicas = state.data_count(),
        witness = state.witness,
        nbd = ?config.nbd,
        iscsi = ?config.iscsi,
        ublk = ?config.ublk.number,
        backend = config.backend.name(),
        window_dir = ?config.window_dir,
        "effective configuration"
    );
    let children = children::Children::new(turns.io().waker())?;
    let now = turns.io().now();
    let mut up = run::Up::new(config, state, Uuid(boot_id()?), children, now);
    turns.run(&mut up)?;
    drop(lock);
    Ok(up.exit())
}

/// Makes the directory if need be, works in it from now on, and locks it.
fn enter(dir: &Path) -> anyhow::Result<std::fs::File> {
    let make = |path: &Path| {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("make directory {}", path.display()))
    };
    make(dir)?;
    std::env::set_current_dir(dir).with_context(|| format!("enter {}", dir.display()))?;
    let foreign = !Path::new(layout::STATE).exists() && !Path::new(layout::LOCK).exists();
    if foreign && Path::new(".").read_dir()?.next().is_some() {
        bail!(
            "use {}: expected an empty directory or that of a volume, found other files",
            dir.display()
        );
    }
    let taken = format!("another `trilith up` runs in {}", dir.display());
    let path = std::env::current_dir()?.join(layout::LOCK);
    let lock = process::lock_file(&path, &taken)?;
    make(Path::new(layout::RUN))?;
    Ok(lock)
}

fn find_or_make(config: &Config) -> anyhow::Result<State> {
    let here = Path::new(".");
    if let Some(state) = State::read(here)? {
        agree(&state, &config.wanted)
            .with_context(|| format!("use the volume in {}", config.dir.display()))?;
        return Ok(state);
    }
    let size_bytes = config.wanted.size_bytes.ok_or_else(|| no_size(config))?;
    let mut secret = [0; SECRET_BYTES];
    random_bytes(&mut secret)?;
    write_secret(Path::new(layout::SECRET), &secret)?;
    let data = config.wanted.replicas.unwrap_or(REPLICAS_DEFAULT);
    let count = data + usize::from(config.wanted.witness);
    let replicas = (0..count)
        .map(|member| {
            Ok(state::Replica {
                member,
                id: process::new_uuid()?,
                dir: None,
            })
        })
        .collect::<anyhow::Result<_>>()?;
    let state = State {
        name: config
            .wanted
            .name
            .clone()
            .unwrap_or_else(|| NAME_DEFAULT.to_owned()),
        volume: process::new_uuid()?,
        size_bytes,
        replicas,
        witness: config.wanted.witness,
        change: None,
        last_number: None,
        checksums: config.wanted.checksums,
        formatted: false,
        attach_epoch: 0,
        engine: None,
        boot: Uuid(boot_id()?),
        loss: Some(0),
    };
    state.write(here)?;
    Ok(state)
}

/// A volume that is to be made with a witness.
fn check_witness(wanted: &Wanted) -> anyhow::Result<()> {
    if !wanted.witness {
        return Ok(());
    }
    let found = wanted.replicas.unwrap_or(REPLICAS_DEFAULT);
    ensure!(
        found == WITNESS_REPLICAS,
        "make a volume with a witness: expected --replicas {WITNESS_REPLICAS} --witness, found \
         {found} replicas"
    );
    Ok(())
}

fn no_size(config: &Config) -> anyhow::Error {
    let dir = config.dir.display();
    anyhow!("make a volume in {dir}: expected --size, such as --size 10GiB")
}

/// A volume keeps the size, the replicas and the name that it was made with.
fn agree(state: &State, wanted: &Wanted) -> anyhow::Result<()> {
    if let Some(size) = wanted.size_bytes {
        ensure!(
            size == state.size_bytes,
            "expected --size {} ({} bytes), as it was made, or none; found {} ({size} bytes)",
            bytes_text(state.size_bytes),
            state.size_bytes,
            bytes_text(size)
        );
    }
    if let Some(replicas) = wanted.replicas {
        let made = state.data_count();
        ensure!(
            replicas == made,
            "expected --replicas {made}, as it was made, or none; found {replicas}"
        );
    }
    if let Some(name) = &wanted.name {
        let made = &state.name;
        ensure!(
            name == made,
            "expected --name {made}, as it was made, or none; found {name}"
        );
    }
    ensure!(
        state.checksums || !wanted.checksums,
        "expected no --checksums: the volume was made without them"
    );
    ensure!(
        state.witness || !wanted.witness,
        "expected no --witness: the volume was made without one"
    );
    Ok(())
}

/// Formats the replicas that an interrupted first `up` has left out.
fn format_replicas(turns: &mut Loop, state: &mut State) -> anyhow::Result<()> {
    for replica in &state.replicas {
        let (member, dir) = (replica.member, replica.directory());
        if format::is_formatted(&dir) {
            continue;
        }
        let new = format::New {
            volume: state.volume,
            replica: replica.id,
            member,
            replicas: state.data_count(),
            witness: state.witness,
            capacity: state.size_bytes,
            replacement: false,
            newcomer: None,
            checksums: state.checksums,
        };
        format::directory(turns, &dir, &new)
            .with_context(|| format!("format replica {member} in {}", dir.display()))?;
    }
    state.formatted = true;
    state.write(Path::new("."))
}

/// A replica whose files are gone is not made anew in silence: an empty replica must not vote as if
/// it were the old one.
fn check_replicas(state: &State) -> anyhow::Result<()> {
    let lost: Vec<usize> = state
        .replicas
        .iter()
        .filter(|replica| !format::is_formatted(&replica.directory()))
        .map(|replica| replica.member)
        .collect();
    // One that is on its way in decides nothing yet.
    let newcomer = state.change.map(|change| change.new);
    let voters_lost = lost.iter().filter(|m| Some(**m) != newcomer).count();
    let majority = state.count() / 2 + 1;
    if state.count() - voters_lost < majority {
        bail!(
            "find replicas: expected at least {majority} of {}, found none of {lost:?}",
            state.count()
        );
    }
    for member in lost {
        if state.witness {
            let what = if state.is_witness(member) {
                "the witness"
            } else {
                "replica"
            };
            tracing::error!(
                member,
                "{what} is lost: its directory has no store ({NO_REPLACEMENT})"
            );
            continue;
        }
        tracing::error!(
            member,
            "replica is lost: its directory has no store (`trilith volume replace-replica \
             --member {member}` makes a new one)"
        );
    }
    Ok(())
}

/// An engine of an `up` that was killed may still be on its way out. Its lock is free when it is
/// dead, and only then may another attach epoch be issued (M13).
fn wait_for_old_engine() -> anyhow::Result<()> {
    let how = OpenFile {
        path: layout::ENGINE_LOCK.into(),
        write: true,
        create: true,
        create_new: false,
        direct: false,
        lock: Some(OLD_ENGINE_WAIT_MAX),
    };
    DataFile::open(&how).context("wait for the engine of an `up` that has died")?;
    Ok(())
}

/// A second volume of a host, or another target on it, has the default iSCSI address: then this
/// volume is served without iSCSI, and the greeting says so. Settled once, so that an engine that
/// is started again insists on the address that initiators know.
fn settle_iscsi(config: &mut Config, was_served: bool) {
    let (Some(Address::Tcp(address)), true) = (&config.iscsi, config.iscsi_gives_way) else {
        config.iscsi_gives_way = false;
        return;
    };
    let tries = if was_served {
        ISCSI_WAIT_MAX.as_millis() / LISTEN_RETRY.as_millis()
    } else {
        1
    };
    for n in 0..tries {
        if n > 0 {
            process::pause(LISTEN_RETRY);
        }
        // Dropped at once: it was never listening for long enough to be found.
        if TcpListener::bind(address).is_ok() {
            config.iscsi_gives_way = false;
            return;
        }
    }
    config.iscsi = None;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            name: "vol".into(),
            volume: Uuid([1; 16]),
            size_bytes: 1 << 30,
            replicas: (0..3)
                .map(|member| state::Replica {
                    member,
                    id: Uuid([2; 16]),
                    dir: None,
                })
                .collect(),
            witness: false,
            change: None,
            last_number: None,
            checksums: false,
            formatted: true,
            attach_epoch: 0,
            engine: None,
            boot: Uuid([3; 16]),
            loss: None,
        }
    }

    #[test]
    fn what_was_said_must_agree_with_what_was_made() {
        let state = state();
        assert!(agree(&state, &Wanted::default()).is_ok());
        let same = Wanted {
            size_bytes: Some(1 << 30),
            replicas: Some(3),
            name: Some("vol".into()),
            checksums: false,
            witness: false,
        };
        assert!(agree(&state, &same).is_ok());
        for (wanted, text) in [
            (
                Wanted {
                    size_bytes: Some(2 << 30),
                    ..same.clone()
                },
                "expected --size 1 GiB",
            ),
            (
                Wanted {
                    replicas: Some(5),
                    ..same.clone()
                },
                "expected --replicas 3",
            ),
            (
                Wanted {
                    name: Some("x".into()),
                    ..same.clone()
                },
                "expected --name vol",
            ),
            (
                Wanted {
                    checksums: true,
                    ..same.clone()
                },
                "expected no --checksums",
            ),
            (
                Wanted {
                    witness: true,
                    ..same.clone()
                },
                "expected no --witness",
            ),
        ] {
            let error = agree(&state, &wanted).unwrap_err().to_string();
            assert!(error.starts_with(text), "{error}");
        }
        let with = State {
            witness: true,
            ..state
        };
        let two = Wanted {
            replicas: Some(2),
            ..same.clone()
        };
        assert!(agree(&with, &two).is_ok());
        let error = agree(&with, &same).unwrap_err().to_string();
        assert!(error.starts_with("expected --replicas 2"), "{error}");
    }

    #[test]
    fn a_witness_is_made_beside_two_replicas_only() {
        let wanted = |replicas| Wanted {
            replicas,
            witness: true,
            ..Wanted::default()
        };
        assert!(check_witness(&Wanted::default()).is_ok());
        assert!(check_witness(&wanted(Some(2))).is_ok());
        for replicas in [None, Some(1), Some(3), Some(5)] {
            let error = check_witness(&wanted(replicas)).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("expected --replicas 2 --witness"), "{text}");
        }
    }
}
