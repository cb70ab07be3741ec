//! `trilith volume scrub`, and what `trilith status` says of scrubs.

use crate::admin::api::{EngineReport, ScrubFound, ScrubReport};
use crate::admin::client;
use crate::cli::ScrubNowArgs;
use crate::exit::Exit;
use crate::host::engine::SCRUB_TARGET;
use crate::host::process;
use crate::limits::SCRUB_LOOK_PAUSE;
use crate::output;
use crate::text::{bytes_text, span_text};
use crate::volume::engine_address;
use anyhow::{Context, ensure};
use core::time::Duration;

/// Runs the command.
///
/// # Errors
/// When no engine answers, scrubs are switched off, or one that was waited for leaves differences.
pub(crate) fn run(args: &ScrubNowArgs) -> anyhow::Result<Exit> {
    let engine = engine_address(&args.volume)?;
    let ask = || -> anyhow::Result<EngineReport> {
        let text = client::ask(&engine, "GET", "/status")?;
        serde_json::from_str(&text).context("read the answer")
    };
    let before = ask()?;
    // One that runs already is the one that is waited for.
    let waits_for = before.scrub.finished + 1;
    let answer = client::ask(&engine, "POST", SCRUB_TARGET)?;
    output::print(&answer);
    if !args.wait {
        return Ok(Exit::Done);
    }
    let last = loop {
        let now = ask()?;
        ensure!(
            now.engine == before.engine,
            "another engine serves the volume now: start the scrub again"
        );
        if now.scrub.finished >= waits_for {
            break now.scrub;
        }
        process::pause(SCRUB_LOOK_PAUSE);
    };
    output::print(&format!("{}\n", found_text(&last.last)));
    ensure!(
        last.last.unresolved == 0,
        "replicas differ and no majority agrees: see `trilith status`"
    );
    Ok(Exit::Done)
}

fn found_text(found: &ScrubFound) -> String {
    let mut text = format!("{} compared", bytes_text(found.bytes));
    if found.differences == 0 {
        text.push_str(", all replicas are equal");
    } else {
        text.push_str(&format!(
            ", {} blocks differed: {} repaired, {} unresolved",
            found.differences, found.repaired, found.unresolved
        ));
    }
    if found.skipped > 0 {
        text.push_str(&format!(
            ", {} chunks were too busy to be judged",
            found.skipped
        ));
    }
    text
}

/// A line of `trilith status`.
pub(crate) fn text(scrub: &ScrubReport, size_bytes: u64) -> String {
    if !scrub.enabled {
        return "scrub: off".to_owned();
    }
    let mut parts = Vec::new();
    if let Some(position) = scrub.position_bytes {
        let percent = position * 100 / size_bytes.max(1);
        let rest = if scrub.resting {
            "waits until all replicas are in sync".to_owned()
        } else {
            format!("{}/s", bytes_text(scrub.bytes_per_second))
        };
        let found = found_text(&scrub.running);
        parts.push(format!("{percent} % done, {rest}; {found}"));
    }
    if let Some(ago) = scrub.last_ended_seconds {
        let ago = span_text(Duration::from_secs(ago));
        parts.push(format!("last {ago} ago: {}", found_text(&scrub.last)));
    } else if parts.is_empty() {
        parts.push("none since the engine started".to_owned());
    }
    if let Some(next) = scrub.next_seconds {
        parts.push(format!("next in {}", span_text(Duration::from_secs(next))));
    }
    format!("scrub: {}", parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_of_a_scrub_has_its_words() {
        let off = ScrubReport::default();
        assert_eq!(text(&off, 100), "scrub: off");
        let idle = ScrubReport {
            enabled: true,
            next_seconds: Some(60),
            ..off
        };
        let line = text(&idle, 100);
        assert!(line.starts_with("scrub: none since the engine started; next in "));
        let runs = ScrubReport {
            position_bytes: Some(50 << 20),
            bytes_per_second: 1 << 20,
            running: ScrubFound {
                bytes: 50 << 20,
                ..ScrubFound::default()
            },
            ..idle.clone()
        };
        let line = text(&runs, 100 << 20);
        assert!(line.contains("50 % done") && line.contains("all replicas are equal"));
        let rests = ScrubReport {
            resting: true,
            ..runs
        };
        assert!(text(&rests, 100 << 20).contains("waits until all replicas"));
        let ended = ScrubReport {
            last_ended_seconds: Some(5),
            last: ScrubFound {
                bytes: 4096,
                differences: 3,
                repaired: 2,
                unresolved: 1,
                skipped: 4,
            },
            ..idle
        };
        let line = text(&ended, 4096);
        assert!(line.contains("3 blocks differed: 2 repaired, 1 unresolved"));
        assert!(line.contains("4 chunks were too busy"));
    }
}
