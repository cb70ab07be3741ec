//! Logs go to standard error through tracing. Under a supervisor lines have no time and no colour:
//! `up` puts the child's name in front of them.

use anyhow::Context;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging. `supervised`: somebody else adds what identifies the process.
///
/// # Errors
/// When the filter makes no sense.
pub(crate) fn start(filter: &str, supervised: bool) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)
        .with_context(|| format!("expected a log filter such as info, found {filter:?}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(!supervised && std::io::stderr().is_terminal())
        .with_target(false);
    let started = if supervised {
        builder.without_time().try_init()
    } else {
        builder.try_init()
    };
    started.map_err(|error| anyhow::anyhow!("start logging: {error}"))
}
