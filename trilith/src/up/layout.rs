//! Where things lie in the directory of `up`.
//!
//! ```text
//! trilith-data/
//!   volume.json        what `up` knows of its volume, see state.rs
//!   lock               held by the `up` that runs here
//!   engine.lock        held by the engine that runs here
//!   secret             the volume's secret, mode 0600
//!   reservations.json  persistent reservations of iSCSI initiators that asked for them to be kept
//!   replica-0/ ...     one directory a replica
//!   run/               sockets: NAME.sock between engine and replicas, NAME.admin for status
//! ```
//!
//! `up` and its children work in that directory, so the paths of sockets are relative and never
//! longer than the kernel allows.

use crate::up::supervisor::ChildId;
use std::path::{Path, PathBuf};
use trilith_runtime::Address;

/// Default directory of `up`.
pub(crate) const DIR_DEFAULT: &str = "./trilith-data";
/// The state file.
pub(crate) const STATE: &str = "volume.json";
/// Lock of `up`.
pub(crate) const LOCK: &str = "lock";
/// Lock of the engine.
pub(crate) const ENGINE_LOCK: &str = "engine.lock";
/// The secret.
pub(crate) const SECRET: &str = "secret";
/// Persistent reservations, kept by the engine.
pub(crate) const RESERVATIONS: &str = "reservations.json";
/// Directory of the sockets.
pub(crate) const RUN: &str = "run";

/// Directory of a replica.
pub(crate) fn replica_dir(member: usize) -> PathBuf {
    PathBuf::from(ChildId::Replica(member).to_string())
}

/// Where a replica listens for the engine.
pub(crate) fn replica_address(member: usize) -> Address {
    Address::Unix(Path::new(RUN).join(format!("{}.sock", ChildId::Replica(member))))
}

/// Admin endpoint of a child.
pub(crate) fn admin_address(child: ChildId) -> Address {
    Address::Unix(Path::new(RUN).join(format!("{child}.admin")))
}
