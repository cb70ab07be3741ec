//! `trilith store ...`: work on a store that no replica runs on.

use crate::cli::{FormatArgs, StoreCommand};
use crate::exit::{Exit, setup};
use crate::host::process;
use crate::host::replica::format;
use crate::output;
use anyhow::bail;
use trilith_runtime::{Backend, Loop, LoopConfig, Signal};

/// Runs the command.
///
/// # Errors
/// When the store cannot be used, or is damaged.
pub(crate) fn run(command: &StoreCommand) -> anyhow::Result<Exit> {
    match command {
        StoreCommand::Format(args) => format_store(args).map_err(setup),
        StoreCommand::Check(_) | StoreCommand::Show(_) | StoreCommand::Export(_) => {
            bail!("not yet")
        }
    }
}

fn format_store(args: &FormatArgs) -> anyhow::Result<Exit> {
    let mut turns = Loop::new(LoopConfig {
        backend: Backend::Plain,
        ..LoopConfig::default()
    })?;
    turns
        .io()
        .catch_signals(&[Signal::Terminate, Signal::Interrupt, Signal::Hangup])?;
    let new = format::New {
        volume: args.volume,
        replica: process::new_uuid()?,
        member: args.member,
        replicas: args.replicas,
        capacity: args.size,
    };
    if args.path.exists() && !args.path.is_dir() {
        format::device(&mut turns, &args.path, &new)?;
    } else {
        format::directory(&mut turns, &args.path, &new)?;
    }
    output::print(&format!(
        "formatted replica {} as member {}\n",
        new.replica, new.member
    ));
    Ok(Exit::Done)
}
