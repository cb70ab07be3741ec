//! The replica process: one replica on its files, its sessions, its admin endpoint.

pub(crate) mod disk;
pub(crate) mod files;
pub(crate) mod format;
mod report;
mod wiring;

use crate::cli::ReplicaArgs;
use crate::exit::{Exit, setup};
use crate::host::process;
use crate::limits::DATA_LOCK_WAIT_MAX;
use files::StoreFiles;
use trilith_block::Uuid;
use trilith_replica::store::OpenParams;
use trilith_replica::{Config, Replica};
use trilith_runtime::{boot_id, pick_window_dir};
use wiring::{Expected, Parts, ReplicaHost};

/// Extents allocated ahead of a sequential stream (M21).
const ALLOCATE_AHEAD_EXTENTS: u32 = 16;

/// Runs a replica until it is stopped.
///
/// # Errors
/// When it cannot be set up; kind `SetupProblem` when a restart would not help.
pub(crate) fn run(args: &ReplicaArgs) -> anyhow::Result<Exit> {
    let mut process = process::start(&args.process)?;
    let secret = process::secret(&args.secret_file).map_err(setup)?;
    let window_dir = pick_window_dir(args.window_dir.as_deref()).map_err(setup)?;
    let io = process.turns.io();
    let path = args
        .dir
        .as_deref()
        .or(args.device.as_deref())
        .unwrap_or_else(|| "".as_ref());
    let files = match &args.device {
        Some(device) => StoreFiles::device(device, true, DATA_LOCK_WAIT_MAX),
        None => StoreFiles::directory(path, true, DATA_LOCK_WAIT_MAX),
    }
    .map_err(setup)?;
    let regular = files.is_regular();
    let disk = files.adopt(io)?;
    let listener = process::listen(io, &args.listen, false)?;
    tracing::info!(
        path = %path.display(),
        listen = %args.listen,
        backend = args.process.backend.name(),
        window_dir = ?window_dir,
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
    let volume = args.volume.unwrap_or(Uuid::NONE);
    let replica = Replica::new(Config::new(volume, secret, process::entropy()?, open));
    let parts = Parts {
        replica,
        disk,
        listener,
        admin_listeners: process.admin,
        supervisor: process.supervisor,
        path: path.to_owned(),
        regular,
        window_dir,
        expected: Expected {
            volume: args.volume,
            member: args.member,
            replica: args.id,
        },
    };
    let mut host = ReplicaHost::new(parts, io.now());
    host.start(io);
    process.turns.run(&mut host)?;
    host.result()
}
