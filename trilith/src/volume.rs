//! `trilith volume ...`: what an operator tells a running engine, through its admin endpoint.

use crate::admin::client;
use crate::cli::{VolumeArgs, VolumeCommand};
use crate::exit::Exit;
use crate::output;
use crate::up::{layout, supervisor::ChildId};
use anyhow::Context;

/// Runs the command.
///
/// # Errors
/// When no engine answers, or it refuses.
pub(crate) fn run(command: &VolumeCommand) -> anyhow::Result<Exit> {
    let (args, target) = match command {
        VolumeCommand::AcceptLoss(args) => (args, "/volume/accept-loss"),
        VolumeCommand::StepDown(args) => (args, "/volume/step-down"),
    };
    output::print(&tell(args, target)?);
    Ok(Exit::Done)
}

fn tell(args: &VolumeArgs, target: &str) -> anyhow::Result<String> {
    let address = match &args.admin {
        Some(address) => address.clone(),
        None => {
            // Paths of sockets are relative to the directory, whatever its length.
            std::env::set_current_dir(&args.dir)
                .with_context(|| format!("enter {}", args.dir.display()))?;
            layout::admin_address(ChildId::Engine)
        }
    };
    client::ask(&address, "POST", target)
}
