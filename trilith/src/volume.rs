//! `trilith volume ...`: what an operator tells a running engine, through its admin endpoint.

use crate::admin::client;
use crate::cli::{VolumeArgs, VolumeCommand};
use crate::exit::Exit;
use crate::output;
use crate::up::{layout, supervisor::ChildId};
use anyhow::Context;
use trilith_runtime::Address;

/// Runs the command.
///
/// # Errors
/// When no engine answers, or it refuses.
pub(crate) fn run(command: &VolumeCommand) -> anyhow::Result<Exit> {
    let (args, target) = match command {
        VolumeCommand::ReplaceReplica(args) => return crate::replace::run(args),
        VolumeCommand::Scrub(args) => return crate::scrub::run(args),
        VolumeCommand::AcceptLoss(args) => (args, "/volume/accept-loss"),
        VolumeCommand::StepDown(args) => (args, "/volume/step-down"),
    };
    output::print(&tell(args, target)?);
    Ok(Exit::Done)
}

fn tell(args: &VolumeArgs, target: &str) -> anyhow::Result<String> {
    client::ask(&engine_address(args)?, "POST", target)
}

/// Admin endpoint of a volume's engine. May change the working directory.
///
/// # Errors
/// When the volume's directory cannot be entered.
pub(crate) fn engine_address(args: &VolumeArgs) -> anyhow::Result<Address> {
    if let Some(address) = &args.admin {
        return Ok(address.clone());
    }
    // Paths of sockets are relative to the directory, whatever its length.
    std::env::set_current_dir(&args.dir)
        .with_context(|| format!("enter {}", args.dir.display()))?;
    Ok(layout::admin_address(ChildId::Engine))
}
