//! From what machines show of themselves to what admin endpoints say.

use crate::admin::api::{Latency, ProcessReport};
use crate::admin::metrics::{Samples, Snapshot};
use core::time::Duration;
use trilith_block::Monotonic;
use trilith_block::histogram::Histogram;
use trilith_runtime::Io;

/// A span in microseconds.
pub(crate) fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// A span in milliseconds.
pub(crate) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Summary of a histogram.
pub(crate) fn latency(histogram: &Histogram) -> Latency {
    Latency {
        count: histogram.count(),
        p50_us: micros(histogram.quantile(500)),
        p99_us: micros(histogram.quantile(990)),
        p999_us: micros(histogram.quantile(999)),
        max_us: micros(histogram.max()),
    }
}

/// Counts of a histogram.
pub(crate) fn samples(histogram: &Histogram) -> Samples {
    Samples {
        sum_ns: histogram.sum_ns(),
        buckets: histogram.buckets().collect(),
    }
}

/// What the process says of itself.
pub(crate) fn process(io: &mut Io, now: Monotonic, started: Monotonic) -> ProcessReport {
    let stats = io.stats();
    ProcessReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_ms: millis(now.since(started)),
        resident_bytes: resident_bytes().unwrap_or(0),
        arena_budget_bytes: io.arena().budget(),
        arena_used_bytes: io.arena().used(),
        backend: format!("{:?}", io.backend()).to_lowercase(),
        loop_turns: stats.turns,
        disk_operations: stats.disk_ops,
        received_bytes: stats.received_bytes,
        sent_bytes: stats.sent_bytes,
    }
}

/// Resident memory, from /proc: the second number of statm, in pages.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * u64::try_from(rustix::param::page_size()).ok()?)
}

/// Metrics of the process.
pub(crate) fn process_metrics(process: &ProcessReport, out: &mut Snapshot) {
    let none = Vec::new;
    for (name, help, value) in [
        (
            "trilith_runtime_resident_bytes",
            "Resident memory",
            process.resident_bytes,
        ),
        (
            "trilith_runtime_arena_used_bytes",
            "Memory of data in flight",
            process.arena_used_bytes,
        ),
        (
            "trilith_runtime_arena_budget_bytes",
            "Most of it",
            process.arena_budget_bytes,
        ),
    ] {
        out.gauge(name, help, none(), value);
    }
    for (name, help, value) in [
        (
            "trilith_runtime_loop_turns",
            "Turns of the loop",
            process.loop_turns,
        ),
        (
            "trilith_runtime_disk_operations",
            "Disk operations",
            process.disk_operations,
        ),
        (
            "trilith_runtime_received_bytes",
            "Bytes received",
            process.received_bytes,
        ),
        (
            "trilith_runtime_sent_bytes",
            "Bytes sent",
            process.sent_bytes,
        ),
    ] {
        out.counter(name, help, none(), value);
    }
}
