//! The replica process: one replica on its files, its sessions, its admin endpoint.

pub(crate) mod disk;
pub(crate) mod files;
pub(crate) mod format;
mod report;
mod wiring;

use crate::cli::{BackendArg, ReplicaArgs};
use crate::exit::{Exit, setup};
use crate::host::process::{self, Supervisor};
use crate::limits::DATA_LOCK_WAIT_MAX;
use files::StoreFiles;
use std::path::Path;
use trilith_block::Uuid;
use trilith_replica::store::OpenParams;
use trilith_replica::{Config, Replica};
use trilith_runtime::{Address, Io, ListenerId, boot_id, pick_window_dir};
use wiring::Parts;
pub(crate) use wiring::{Expected, ReplicaHost};

/// Extents allocated ahead of a sequential stream (M21).
const ALLOCATE_AHEAD_EXTENTS: u32 = 16;

/// What a replica needs of the process that it runs in.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// Directory, or block device.
    pub(crate) path: &'a Path,
    /// It is a block device.
    pub(crate) is_device: bool,
    /// Where it listens for engines.
    pub(crate) listen: &'a Address,
    /// Where it listens for admins.
    pub(crate) admin: Vec<ListenerId>,
    /// The volume's secret.
    pub(crate) secret_file: &'a Path,
    /// Directory on tmpfs, if one was named.
    pub(crate) window_dir: Option<&'a Path>,
    /// What the store must be.
    pub(crate) expected: Expected,
    /// Who is told that it listens.
    pub(crate) supervisor: Supervisor,
    /// It runs in the process of an engine.
    pub(crate) carried: bool,
    /// For the log.
    pub(crate) backend: BackendArg,
}

/// Runs a replica until it is stopped.
///
/// # Errors
/// When it cannot be set up; kind `SetupProblem` when a restart would not help.
pub(crate) fn run(args: &ReplicaArgs) -> anyhow::Result<Exit> {
    let mut process = process::start(&args.process)?;
    let path = args.dir.as_deref().or(args.device.as_deref());
    let place = Place {
        path: path.unwrap_or_else(|| "".as_ref()),
        is_device: args.device.is_some(),
        listen: &args.listen,
        admin: process.admin,
        secret_file: &args.secret_file,
        window_dir: args.window_dir.as_deref(),
        expected: Expected {
            volume: args.volume,
            member: args.member,
            replica: args.id,
        },
        supervisor: process.supervisor,
        carried: false,
        backend: args.process.backend,
    };
    let mut host = open(process.turns.io(), place)?;
    process.turns.run(&mut host)?;
    host.result()
}

/// Sets a replica up on its files: it opens its store with the next turns of the loop.
///
/// # Errors
/// When it cannot be set up; kind `SetupProblem` when a restart would not help.
pub(crate) fn open(io: &mut Io, place: Place<'_>) -> anyhow::Result<ReplicaHost> {
    let secret = process::secret(place.secret_file).map_err(setup)?;
    let window_dir = pick_window_dir(place.window_dir).map_err(setup)?;
    let files = if place.is_device {
        StoreFiles::device(place.path, true, DATA_LOCK_WAIT_MAX)
    } else {
        StoreFiles::directory(place.path, true, DATA_LOCK_WAIT_MAX)
    }
    .map_err(setup)?;
    let (regular, witness) = (files.is_regular(), files.is_witness());
    let listener = process::listen(io, place.listen, false)?;
    let disk = files.adopt(io)?;
    tracing::info!(
        path = %place.path.display(),
        listen = %place.listen,
        backend = place.backend.name(),
        window_dir = ?window_dir,
        carried = place.carried,
        witness,
        "replica starts"
    );
    if window_dir.is_none() {
        tracing::warn!("no tmpfs for the window: each restart counts as a power failure");
    }
    let open = OpenParams {
        // Without tmpfs there is no window to take over.
        boot: if window_dir.is_some() {
            Uuid(boot_id()?)
        } else {
            Uuid::NONE
        },
        allocate: regular,
        allocate_ahead: ALLOCATE_AHEAD_EXTENTS,
    };
    let volume = place.expected.volume.unwrap_or(Uuid::NONE);
    let replica = Replica::new(Config::new(volume, secret, process::entropy()?, open));
    let parts = Parts {
        replica,
        disk,
        listener,
        admin_listeners: place.admin,
        supervisor: place.supervisor,
        path: place.path.to_owned(),
        regular,
        witness,
        window_dir,
        expected: place.expected,
        carried: place.carried,
    };
    let mut host = ReplicaHost::new(parts, io.now());
    host.start(io);
    Ok(host)
}
