//! The engine process: one volume's engine, its NBD server, iSCSI target and ublk device, its admin
//! endpoint.

mod carrier;
mod frontends;
pub(crate) mod iscsi;
mod keeper;
mod lanes;
mod replace;
mod report;
mod scrub;
pub(crate) mod ublk;
mod wiring;

use crate::cli::EngineArgs;
use crate::exit::{Exit, setup};
use crate::host::process;
use anyhow::{Context, bail, ensure};
use carrier::{Carrier, Carry};
use core::time::Duration;
use frontends::{Frontend, Frontends, Server};
use keeper::Keeper;
pub(crate) use replace::TARGET as REPLACE_TARGET;
pub(crate) use scrub::TARGET as SCRUB_TARGET;
use std::os::fd::OwnedFd;
use trilith_block::{Capabilities, MemberId, MemberSet, Uuid, VolumeInfo};
use trilith_engine::{Engine, EngineConfig};
use trilith_frontend_iscsi::IscsiTarget;
use trilith_frontend_nbd::{NbdConfig, NbdServer};
use trilith_runtime::{Address, Io};
use ublk::UblkFrontend;
use wiring::{Carried, EngineHost, Members, Parts};

/// Generation of the configuration that a volume is made with.
const CONFIGURATION: u64 = 1;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Flags of an engine, checked.
#[derive(Debug)]
struct Config {
    engine: EngineConfig,
    members: Members,
    carry: Option<Carry>,
    name: String,
}

/// Runs an engine until it is stopped or fenced.
///
/// # Errors
/// When it cannot be set up; kind `SetupProblem` when a restart would not help.
pub(crate) fn run(args: &EngineArgs) -> anyhow::Result<Exit> {
    let sockets = trilith_runtime::activated_listeners().map_err(setup)?;
    let lock = args
        .lock
        .as_deref()
        .map(|path| process::lock_file(path, "another engine of this volume runs on this host"))
        .transpose()?;
    let config = check(args).map_err(setup)?;
    if args.ublk.number.is_some() {
        process::become_io_flusher();
    }
    let mut process = process::start_with(&args.process, args.carry.is_some())?;
    let io = process.turns.io();
    let replica = match &config.carry {
        Some(carry) => carrier::open(io, args, carry, process.supervisor)?,
        None => None,
    };
    let mut frontends = Frontends::default();
    if let Some(nbd) = serve_nbd(io, &config, args, sockets)? {
        frontends.add(nbd);
    }
    let mut keeper = None;
    if !args.iscsi.is_empty() {
        frontends.add(serve_iscsi(io, &config, args, &mut keeper)?);
    }
    if let Some(ublk) = UblkFrontend::new(io, &args.ublk, volume_info(&config), args.loss)? {
        let server = Server::Ublk(Box::new(ublk));
        frontends.add(Frontend::new(server, Vec::new(), Vec::new()));
    }
    print_config(&config, args);
    let engine = Engine::new(config.engine, io.now()).map_err(setup)?;
    let parts = Parts {
        engine,
        frontends,
        keeper,
        members: config.members,
        carried: config
            .carry
            .zip(replica.as_ref())
            .map(|(carry, replica)| Carried {
                member: carry.member,
                listener: replica.listener(),
            }),
        admin_listeners: process.admin,
        supervisor: process.supervisor,
        name: config.name,
    };
    let mut host = EngineHost::new(parts, io.now());
    host.announce();
    let result = match replica {
        Some(replica) => {
            let mut host = Carrier::new(host, replica, args.replicas.len() == 1);
            process.turns.run(&mut host)?;
            host.result()
        }
        None => {
            process.turns.run(&mut host)?;
            Ok(host.exit())
        }
    };
    drop(lock);
    result
}

fn check(args: &EngineArgs) -> anyhow::Result<Config> {
    let mut members = Members::default();
    let mut set = MemberSet::EMPTY;
    let mut local = MemberSet::EMPTY;
    for (number, address) in &args.replicas {
        let member = MemberId::new(*number).context("expected a lower member number")?;
        ensure!(
            !set.contains(member),
            "expected each member once, found member {member} twice"
        );
        set = set.with(member);
        if is_local(address) {
            local = local.with(member);
        }
        members.set(member, address.clone());
    }
    let mut carry = None;
    if let Some((number, path)) = &args.carry {
        let listens = |member| Some((member, members.get(member)?.clone()));
        let (member, listen) = MemberId::new(*number)
            .and_then(listens)
            .with_context(|| format!("--carry {number}: expected --replica {number}=ADDRESS"))?;
        local = local.with(member);
        let path = path.clone();
        carry = Some(Carry {
            member,
            path,
            listen,
        });
    }
    if !args.ask_for_voters && set != MemberSet::first(set.count()) {
        bail!("expected members 0 to {}, found {set:?}", set.count() - 1);
    }
    let engine = match args.engine {
        Some(engine) => engine,
        None => process::new_uuid()?,
    };
    let secret = process::secret(&args.secret_file)?;
    let mut config = EngineConfig::new(engine, args.volume, secret, set, process::entropy()?);
    // Nothing is known: the replicas tell.
    config.cfg_gen = if args.ask_for_voters {
        0
    } else {
        CONFIGURATION
    };
    for (number, id) in &args.replica_ids {
        config.identities[*number] = *id;
    }
    config.supersedes = args.supersedes.unwrap_or(Uuid::NONE);
    config.local = local;
    config.capacity_bytes = args.size;
    config.attach_epoch = match args.attach_epoch {
        Some(epoch) => epoch,
        None => crate::host::probe::highest_attach_epoch(&config, &args.replicas)? + 1,
    };
    config.loss_bound = args.loss;
    config.scrub.bytes_per_second_max = args.scrub.rate;
    config.scrub.every = (args.scrub.days > 0).then(|| DAY * args.scrub.days);
    config.validate()?;
    Ok(Config {
        engine: config,
        members,
        carry,
        name: args.name.clone(),
    })
}

fn is_local(address: &Address) -> bool {
    match address {
        Address::Unix(_) => true,
        Address::Tcp(address) => address.ip().is_loopback(),
    }
}

fn volume_info(config: &Config) -> VolumeInfo {
    VolumeInfo {
        volume: config.engine.volume,
        capabilities: Capabilities {
            capacity_bytes: config.engine.capacity_bytes,
            block_bytes: trilith_block::limits::BLOCK_BYTES,
            transfer_bytes_max: trilith_block::limits::TRANSFER_BYTES_MAX,
            optimal_bytes: trilith_block::limits::TRANSFER_BYTES_MAX,
        },
    }
}

/// The NBD server, if it listens anywhere: where the flags say and on the sockets of systemd.
fn serve_nbd(
    io: &mut Io,
    config: &Config,
    args: &EngineArgs,
    sockets: Vec<OwnedFd>,
) -> anyhow::Result<Option<Frontend>> {
    let mut listeners = Vec::new();
    for address in &args.nbd {
        listeners.push(process::listen(io, address, false)?);
    }
    for socket in sockets {
        listeners.push(io.listen_on(socket).map_err(setup)?);
    }
    if listeners.is_empty() {
        return Ok(None);
    }
    let nbd = NbdConfig {
        export_name: config.name.clone(),
        description: format!("trilith volume {}", config.engine.volume),
        read_only: false,
        volume: volume_info(config),
    };
    let server = NbdServer::new(nbd).map_err(setup)?;
    let uris = listeners
        .iter()
        .filter_map(|listener| io.local_address(*listener))
        .map(|address| uri(address, &config.name))
        .collect();
    let server = Server::Nbd(Box::new(server));
    Ok(Some(Frontend::new(server, listeners, uris)))
}

/// The iSCSI target, and who keeps its reservations.
fn serve_iscsi(
    io: &mut Io,
    config: &Config,
    args: &EngineArgs,
    keeper: &mut Option<Keeper>,
) -> anyhow::Result<Frontend> {
    let mut listeners = Vec::new();
    for address in &args.iscsi {
        listeners.push(process::listen(io, address, false)?);
    }
    let addresses: Vec<Address> = listeners
        .iter()
        .filter_map(|listener| io.local_address(*listener).cloned())
        .collect();
    let volume = config.engine.volume;
    let mut target = iscsi::config(&args.target, &config.name, &addresses, volume_info(config))
        .context("set up the iSCSI target")
        .map_err(setup)?;
    let mut kept = Vec::new();
    if let Some(path) = &args.iscsi_reservations {
        kept = keeper::read(path, volume).map_err(setup)?;
        *keeper = Some(Keeper::start(path.clone(), volume, io.waker())?);
        target.keeps_reservations = true;
    }
    let exposed = |address: &Address| matches!(address, Address::Tcp(a) if !a.ip().is_loopback());
    if target.chap.is_none() && addresses.iter().any(exposed) {
        tracing::warn!("iSCSI is open to all who reach it: expected --iscsi-chap-file");
    }
    tracing::info!(
        target = target.target_name,
        portals = ?target.portals,
        chap = target.chap.is_some(),
        initiators = ?target.initiators,
        logical_block_bytes = target.logical_block_bytes,
        "iSCSI is served"
    );
    let uris = addresses
        .iter()
        .filter_map(|address| iscsi::uri(address, &target.target_name))
        .collect();
    let target = IscsiTarget::new(target, &kept).map_err(setup)?;
    let server = Server::Iscsi(Box::new(target));
    Ok(Frontend::new(server, listeners, uris))
}

/// The URI that NBD clients take.
pub(crate) fn uri(address: &Address, name: &str) -> String {
    match address {
        Address::Tcp(address) => format!("nbd://{address}/{name}"),
        Address::Unix(path) => format!("nbd+unix:///{name}?socket={}", path.display()),
    }
}

fn print_config(config: &Config, args: &EngineArgs) {
    let engine = &config.engine;
    tracing::info!(
        volume = %engine.volume,
        engine = %engine.engine,
        size_bytes = engine.capacity_bytes,
        attach_epoch = engine.attach_epoch,
        supersedes = %engine.supersedes,
        loss = ?engine.loss_bound,
        members = ?engine.members,
        backend = args.process.backend.name(),
        "engine starts"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_what_clients_take() {
        let tcp = "127.0.0.1:10809".parse().unwrap();
        assert_eq!(uri(&tcp, "vol"), "nbd://127.0.0.1:10809/vol");
        let unix = "unix:/tmp/s".parse().unwrap();
        assert_eq!(uri(&unix, "vol"), "nbd+unix:///vol?socket=/tmp/s");
    }
}
