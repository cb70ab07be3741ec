//! Purpose: the `trilith` command. `up` runs a whole replicated volume on one machine; `replica`
//! and `engine` are its processes; `status`, `volume` and `store` are for people.
//!
//! Invariants: this is the only crate where machines meet drivers, and it holds no rule of the
//! protocol. What an engine is started with (attach epoch, superseded engine) is durable before it
//! is used.
//!
//! Limits: `limits.rs`.
//!
//! Failure: a wrong command line, directory or address is exit status 2, a fenced engine 3,
//! everything else that fails 1. Messages go to standard error.
//!
//! Start reading at: `cli.rs`, then `up/`, then `host/` (how machines are driven), then `admin/`.

mod admin;
mod cli;
mod control;
mod exit;
mod host;
mod limits;
mod logging;
mod output;
mod replace;
mod scrub;
mod stages;
mod status;
mod store;
mod text;
mod ublk;
mod up;
mod volume;

use clap::Parser;
use cli::{Cli, Command};
use exit::Exit;
use std::process::ExitCode;

// A program in which rules can be broken must not serve volumes.
const _: () = assert!(!trilith_block::mutant::COMPILED);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let supervised = match &cli.command {
        Command::Replica(args) => args.process.supervisor.is_some(),
        Command::Engine(args) => args.process.supervisor.is_some(),
        _ => false,
    };
    match logging::start(&cli.log, supervised)
        .map_err(exit::setup)
        .and_then(|()| run(cli))
    {
        Ok(exit) => exit.into(),
        Err(error) => {
            output::error_line(&format!("trilith: {}", exit::sentence(&error)));
            exit::of_error(&error).into()
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<Exit> {
    let log = cli.log;
    match cli.command {
        Command::Up(args) => up::run(args, &log),
        Command::Status(args) => status::run(&args),
        Command::Volume(command) => volume::run(&command),
        Command::Ublk(command) => ublk::run(&command),
        Command::Store(command) => store::run(&command),
        Command::Replica(args) => host::replica::run(&args),
        Command::Engine(args) => host::engine::run(&args),
    }
}
