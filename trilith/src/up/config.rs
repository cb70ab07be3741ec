//! Flags of `up`, checked.

use crate::cli::{BackendArg, UpArgs};
use anyhow::Context;
use std::path::PathBuf;
use trilith_runtime::Address;

/// What `up` was asked for. Paths hold from any working directory, but for `dir`.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The directory as typed, for messages.
    pub(crate) dir: PathBuf,
    /// The directory as an absolute path.
    pub(crate) home: PathBuf,
    /// Where to serve NBD.
    pub(crate) nbd: Address,
    /// How to talk to the kernel.
    pub(crate) backend: BackendArg,
    /// Directory on tmpfs.
    pub(crate) window_dir: Option<PathBuf>,
    /// Log filter for the children.
    pub(crate) log: String,
    /// What the volume must be, where it was said.
    pub(crate) wanted: Wanted,
}

/// What was said of the volume itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Wanted {
    /// Its size.
    pub(crate) size_bytes: Option<u64>,
    /// Number of its replicas.
    pub(crate) replicas: Option<usize>,
    /// Its name.
    pub(crate) name: Option<String>,
}

impl Config {
    /// Checks the flags.
    ///
    /// # Errors
    /// When the working directory is gone, so that relative paths have no meaning.
    pub(crate) fn new(args: UpArgs, log: &str) -> anyhow::Result<Config> {
        let absolute = |path: PathBuf| {
            std::path::absolute(&path).with_context(|| format!("resolve {}", path.display()))
        };
        if args.foreground {
            tracing::debug!("in the foreground, as always");
        }
        let nbd = match args.nbd {
            Address::Unix(path) => Address::Unix(absolute(path)?),
            tcp @ Address::Tcp(_) => tcp,
        };
        Ok(Config {
            home: absolute(args.dir.clone())?,
            dir: args.dir,
            nbd,
            backend: args.backend,
            window_dir: args.window_dir.map(absolute).transpose()?,
            log: log.to_owned(),
            wanted: Wanted {
                size_bytes: args.size,
                replicas: args.replicas,
                name: args.name,
            },
        })
    }
}
