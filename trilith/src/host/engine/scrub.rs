//! Comparison of the replicas: started by the operator, told in the log, in status and metrics.

use super::wiring::EngineHost;
use crate::admin::api::{RangeReport, ScrubFound, ScrubReport};
use crate::admin::http::{Answer, Status};
use crate::admin::metrics::Snapshot;
use trilith_engine::scrub::ScrubStatus;
use trilith_engine::{Operator, ScrubNews, ScrubResult};
use trilith_runtime::Io;

/// Where the admin endpoint is told to start one.
pub(crate) const TARGET: &str = "/volume/scrub";

impl EngineHost {
    /// `POST /volume/scrub`.
    pub(super) fn start_scrub(&mut self, io: &mut Io) -> Answer {
        let scrub = self.parts.engine.status(io.now()).scrub;
        if !scrub.enabled {
            return Answer::text(Status::Conflict, "scrubs are switched off (--scrub-rate 0)");
        }
        if scrub.position_bytes.is_some() {
            return Answer::text(Status::Ok, "a scrub runs already");
        }
        self.operator(io, Operator::Scrub);
        Answer::text(Status::Ok, "the replicas are being compared")
    }
}

fn found(result: ScrubResult) -> ScrubFound {
    ScrubFound {
        bytes: result.bytes,
        differences: result.differences,
        repaired: result.repaired,
        unresolved: result.unresolved,
        skipped: result.skipped,
    }
}

/// For `GET /status`.
pub(super) fn report(status: &ScrubStatus) -> ScrubReport {
    let last = status.last.map(|(last, _)| last);
    ScrubReport {
        enabled: status.enabled,
        position_bytes: status.position_bytes,
        resting: status.resting,
        running: found(status.running),
        bytes_per_second: status.bytes_per_second,
        finished: status.finished,
        last_ended_seconds: status.last.map(|(_, ago)| ago.as_secs()),
        last_took_seconds: last.map_or(0, |last| last.took.as_secs()),
        last: last.map(|last| found(last.result)).unwrap_or_default(),
        next_seconds: status.next_in.map(|span| span.as_secs()),
        unresolved: status
            .unresolved
            .iter()
            .map(|range| RangeReport {
                offset: range.start.byte_offset(),
                length: range.bytes(),
            })
            .collect(),
    }
}

/// For `GET /metrics`.
pub(super) fn metrics(status: &ScrubStatus, out: &mut Snapshot) {
    let blocks = |ranges: &[trilith_block::BlockRange]| -> u64 {
        ranges.iter().map(|r| u64::from(r.count.0)).sum()
    };
    for (name, help, value) in [
        (
            "trilith_scrub_running",
            "The replicas are being compared",
            u64::from(status.position_bytes.is_some()),
        ),
        (
            "trilith_scrub_position_bytes",
            "Bytes of the volume behind the scrub that runs",
            status.position_bytes.unwrap_or(0),
        ),
        (
            "trilith_scrub_unresolved_blocks",
            "Blocks known to differ after the last scrub, of the newest few places",
            blocks(&status.unresolved),
        ),
    ] {
        out.gauge(name, help, Vec::new(), value);
    }
    let totals = status.totals;
    for (name, help, value) in [
        (
            "trilith_scrub_finished",
            "Scrubs that ended",
            status.finished,
        ),
        (
            "trilith_scrub_compared_bytes",
            "Bytes of the volume compared",
            totals.bytes,
        ),
        (
            "trilith_scrub_differences",
            "Blocks whose copies differed",
            totals.differences,
        ),
        (
            "trilith_scrub_repaired",
            "Blocks written again and equal since",
            totals.repaired,
        ),
        (
            "trilith_scrub_unresolved",
            "Blocks that differ still",
            totals.unresolved,
        ),
        (
            "trilith_scrub_skipped",
            "Chunks that were too busy to be judged",
            totals.skipped,
        ),
    ] {
        out.counter(name, help, Vec::new(), value);
    }
}

/// A line of the log for each thing found, and for the beginning and the end.
pub(super) fn log(news: ScrubNews) {
    match news {
        ScrubNews::Started => tracing::info!("compares the replicas"),
        ScrubNews::Differs(difference) => {
            let offset = difference.range.start.byte_offset();
            let bytes = difference.range.bytes();
            if difference.odd.is_empty() {
                tracing::error!(
                    offset,
                    bytes,
                    "replicas differ and no majority agrees: left as they are"
                );
            } else {
                let replicas: Vec<usize> = difference.odd.iter().map(|m| m.index()).collect();
                tracing::warn!(
                    offset,
                    bytes,
                    ?replicas,
                    "these replicas differ from a majority: written again"
                );
            }
        }
        ScrubNews::Finished(result) => tracing::info!(
            bytes = result.bytes,
            differences = result.differences,
            repaired = result.repaired,
            unresolved = result.unresolved,
            skipped = result.skipped,
            "has compared the replicas"
        ),
    }
}
