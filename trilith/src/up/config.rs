//! Flags of `up`, checked.

use crate::cli::{BackendArg, IscsiArgs, Listen, ScrubArgs, UblkArgs, UpArgs};
use anyhow::{Context, ensure};
use core::time::Duration;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use trilith_runtime::Address;

/// Where iSCSI is served when nobody says where.
const ISCSI_DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 3260);

/// What `up` was asked for. Paths hold from any working directory, but for `dir`.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The directory as typed, for messages.
    pub(crate) dir: PathBuf,
    /// The directory as an absolute path.
    pub(crate) home: PathBuf,
    /// Where to serve NBD, if at all.
    pub(crate) nbd: Option<Address>,
    /// Where to serve iSCSI, if at all. `up` has settled it before the engine starts.
    pub(crate) iscsi: Option<Address>,
    /// Nobody said where: iSCSI gives way when its default address is taken.
    pub(crate) iscsi_gives_way: bool,
    /// Flags of the iSCSI target.
    pub(crate) target: IscsiArgs,
    /// Flags of the ublk device.
    pub(crate) ublk: UblkArgs,
    /// How the replicas are compared.
    pub(crate) scrub: ScrubArgs,
    /// Where else the engine shows status and metrics.
    pub(crate) admin: Vec<Address>,
    /// How to talk to the kernel.
    pub(crate) backend: BackendArg,
    /// How long the children look out before they sleep.
    pub(crate) spin: Duration,
    /// Directory on tmpfs.
    pub(crate) window_dir: Option<PathBuf>,
    /// Whether the engine carries a replica, if that was said.
    pub(crate) carry: Option<bool>,
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
    /// It is made with checksums.
    pub(crate) checksums: bool,
    /// It is made with a witness.
    pub(crate) witness: bool,
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
        let place = |listen: Listen| -> anyhow::Result<Option<Address>> {
            Ok(match listen {
                Listen::Off => None,
                Listen::At(Address::Unix(path)) => Some(Address::Unix(absolute(path)?)),
                Listen::At(tcp) => Some(tcp),
            })
        };
        let iscsi_gives_way = args.iscsi.is_none();
        let iscsi = match args.iscsi {
            Some(listen) => place(listen)?,
            None => Some(Address::Tcp(ISCSI_DEFAULT)),
        };
        let nbd = place(args.nbd)?;
        ensure!(
            nbd.is_some() || iscsi.is_some() || args.ublk.number.is_some(),
            "expected --nbd, --iscsi or --ublk, found all off: nobody could use the volume"
        );
        let target = IscsiArgs {
            chap_file: args.target.chap_file.map(absolute).transpose()?,
            mutual_chap_file: args.target.mutual_chap_file.map(absolute).transpose()?,
            ..args.target
        };
        let admin = |address| match address {
            Address::Unix(path) => absolute(path).map(Address::Unix),
            tcp @ Address::Tcp(_) => Ok(tcp),
        };
        Ok(Config {
            admin: args
                .admin
                .into_iter()
                .map(admin)
                .collect::<Result<_, _>>()?,
            home: absolute(args.dir.clone())?,
            dir: args.dir,
            nbd,
            iscsi,
            iscsi_gives_way,
            target,
            ublk: args.ublk,
            scrub: args.scrub,
            backend: args.backend,
            spin: args.spin,
            window_dir: args.window_dir.map(absolute).transpose()?,
            carry: (args.carry || args.apart).then_some(args.carry),
            log: log.to_owned(),
            wanted: Wanted {
                size_bytes: args.size,
                replicas: args.replicas,
                name: args.name,
                checksums: args.checksums,
                witness: args.witness,
            },
        })
    }
}
