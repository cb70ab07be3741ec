//! The engine process: one volume's engine, its NBD server, its admin endpoint.

mod report;
mod wiring;

use crate::cli::EngineArgs;
use crate::exit::{Exit, setup};
use crate::host::process;
use anyhow::{Context, bail, ensure};
use trilith_block::{Capabilities, MemberId, MemberSet, Uuid, VolumeInfo};
use trilith_engine::{Engine, EngineConfig};
use trilith_frontend_nbd::{NbdConfig, NbdServer};
use trilith_runtime::Address;
use wiring::{EngineHost, Members, Parts};

/// Generation of a volume's configuration: that which its replicas were formatted with, since none
/// can be changed yet.
const CONFIGURATION: u64 = 1;

/// Flags of an engine, checked.
#[derive(Debug)]
struct Config {
    engine: EngineConfig,
    members: Members,
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
    let mut process = process::start(&args.process)?;
    let io = process.turns.io();
    let mut nbd = Vec::new();
    for address in &args.nbd {
        nbd.push(process::listen(io, address, false)?);
    }
    for socket in sockets {
        nbd.push(io.listen_on(socket).map_err(setup)?);
    }
    print_config(&config, args);
    let server = nbd_server(&config)?;
    let uris = nbd
        .iter()
        .filter_map(|listener| io.local_address(*listener))
        .map(|address| uri(address, &config.name))
        .collect();
    let engine = Engine::new(config.engine, io.now()).map_err(setup)?;
    let parts = Parts {
        engine,
        nbd: server,
        members: config.members,
        nbd_listeners: nbd,
        admin_listeners: process.admin,
        supervisor: process.supervisor,
        name: config.name,
        uris,
    };
    let mut host = EngineHost::new(parts, io.now());
    host.announce();
    process.turns.run(&mut host)?;
    drop(lock);
    Ok(host.exit())
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
    if set != MemberSet::first(set.count()) {
        bail!("expected members 0 to {}, found {set:?}", set.count() - 1);
    }
    let engine = match args.engine {
        Some(engine) => engine,
        None => process::new_uuid()?,
    };
    let secret = process::secret(&args.secret_file)?;
    let mut config = EngineConfig::new(engine, args.volume, secret, set, process::entropy()?);
    config.cfg_gen = CONFIGURATION;
    config.supersedes = args.supersedes.unwrap_or(Uuid::NONE);
    config.local = local;
    config.capacity_bytes = args.size;
    config.attach_epoch = match args.attach_epoch {
        Some(epoch) => epoch,
        None => crate::host::probe::highest_attach_epoch(&config, &args.replicas)? + 1,
    };
    config.loss_bound = args.loss;
    config.validate()?;
    Ok(Config {
        engine: config,
        members,
        name: args.name.clone(),
    })
}

fn is_local(address: &Address) -> bool {
    match address {
        Address::Unix(_) => true,
        Address::Tcp(address) => address.ip().is_loopback(),
    }
}

fn nbd_server(config: &Config) -> anyhow::Result<NbdServer> {
    let capabilities = Capabilities {
        capacity_bytes: config.engine.capacity_bytes,
        block_bytes: trilith_block::limits::BLOCK_BYTES,
        transfer_bytes_max: trilith_block::limits::TRANSFER_BYTES_MAX,
        optimal_bytes: trilith_block::limits::TRANSFER_BYTES_MAX,
    };
    let nbd = NbdConfig {
        export_name: config.name.clone(),
        description: format!("trilith volume {}", config.engine.volume),
        read_only: false,
        volume: VolumeInfo {
            volume: config.engine.volume,
            capabilities,
        },
    };
    NbdServer::new(nbd).map_err(setup)
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
