//! What a replica's admin endpoint says.

use super::wiring::ReplicaHost;
use crate::admin::api::{Counter, ReplicaReport, StageReport};
use crate::admin::http::{Answer, Status as HttpStatus};
use crate::admin::metrics::Snapshot;
use crate::host::report::{latency as latency_of, process, process_metrics, samples};
use trilith_replica::Histogram;
use trilith_replica::Status;
use trilith_replica::status::{Latencies, Role};
use trilith_runtime::Io;

fn role(role: Role) -> &'static str {
    match role {
        Role::Opening => "opening",
        Role::InSync => "in-sync",
        Role::Rebuilding => "rebuilding",
        Role::Out => "out",
        Role::Witness => "witness",
        Role::Retired => "retired",
        Role::Failed => "failed",
        Role::Stopping => "stopping",
    }
}

fn operations(latencies: &Latencies) -> [(&'static str, &Histogram); 5] {
    [
        ("read", &latencies.read),
        ("write", &latencies.write),
        ("flush", &latencies.flush),
        ("journal", &latencies.journal),
        ("other", &latencies.other),
    ]
}

fn counters(status: &Status) -> [(&'static str, &'static str, u64); 29] {
    let (c, s) = (&status.counters, &status.store);
    [
        ("trilith_replica_sessions", "Sessions welcomed", c.sessions),
        (
            "trilith_replica_guests_refused",
            "Peers turned away",
            c.guests_refused,
        ),
        (
            "trilith_replica_secret_refused",
            "Peers with a wrong secret",
            c.secret_refused,
        ),
        (
            "trilith_replica_malformed",
            "Sessions that made no sense",
            c.malformed,
        ),
        (
            "trilith_replica_nacks",
            "Frames refused for their term",
            c.nacks,
        ),
        ("trilith_replica_votes", "Votes taken", c.votes),
        ("trilith_replica_promises", "Promises sent", c.promises),
        ("trilith_replica_entries", "Entries taken in", c.entries),
        (
            "trilith_replica_duplicates",
            "Entries that were there",
            c.duplicates,
        ),
        (
            "trilith_replica_entries_failed",
            "Entries the device refused",
            c.entries_failed,
        ),
        (
            "trilith_replica_checksums_wrong",
            "Payloads damaged on the way",
            c.checksums_wrong,
        ),
        ("trilith_replica_acks", "Acknowledgements sent", c.acks),
        ("trilith_replica_flushes", "Flushes answered", c.flushes),
        ("trilith_replica_reads", "Reads answered", c.reads),
        ("trilith_replica_repairs", "Repairs answered", c.repairs),
        (
            "trilith_replica_pauses",
            "Payloads that waited for memory",
            c.pauses,
        ),
        (
            "trilith_replica_al_hits",
            "Changes inside the activity log",
            s.al_hits,
        ),
        (
            "trilith_replica_al_misses",
            "Changes outside it",
            s.al_misses,
        ),
        (
            "trilith_replica_al_evictions",
            "Extents that left it",
            s.al_evictions,
        ),
        (
            "trilith_replica_journal_writes",
            "Journal writes",
            s.journal_writes,
        ),
        (
            "trilith_replica_journal_blocks",
            "Journal blocks written",
            s.journal_blocks,
        ),
        ("trilith_replica_checkpoints", "Checkpoints", s.checkpoints),
        (
            "trilith_replica_data_flushes",
            "Flushes of the data",
            s.data_flushes,
        ),
        (
            "trilith_replica_written_bytes",
            "Bytes written to the data",
            s.bytes_written,
        ),
        (
            "trilith_replica_read_bytes",
            "Bytes read from the data",
            s.bytes_read,
        ),
        (
            "trilith_replica_reads_rotten",
            "Reads that found a block that is not what was written there",
            s.reads_rotten,
        ),
        (
            "trilith_replica_reads_again",
            "Reads begun anew, as a write overtook them and they could not be compared",
            s.reads_again,
        ),
        (
            "trilith_replica_checksum_pages",
            "Pages of checksums read and written",
            s.checksum_pages,
        ),
        (
            "trilith_replica_extents_allocated",
            "Extents allocated",
            s.extents_allocated,
        ),
    ]
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

impl ReplicaHost {
    fn report(&self, io: &mut Io) -> ReplicaReport {
        let now = io.now();
        let status = self.parts.replica.status(now);
        ReplicaReport {
            process: process(io, now, self.started),
            role: role(status.role).to_owned(),
            volume: status.volume.to_string(),
            replica: status.replica.to_string(),
            member: status.member.index(),
            path: self.parts.path.display().to_string(),
            carried: self.parts.carried,
            window_dir: self
                .parts
                .window_dir
                .as_ref()
                .map(|dir| dir.display().to_string()),
            term: status.term.0,
            attach_epoch: status.attach_epoch,
            loss: status.loss,
            lease_left_ms: u64::from(status.lease_left_ms),
            tainted: status.tainted,
            sealed: status.sealed,
            upto: status.upto.0,
            watermark: status.w.0,
            need_bytes: status.need_bytes,
            limbo_bytes: status.limbo_bytes,
            dirty_bytes: status.dirty_bytes.to_vec(),
            allocated_bytes: status.allocated_bytes,
            free_extents: status.free_extents,
            free_bytes: self.free_bytes,
            active_extents: status.al_used,
            window_entries: u64::from(status.window_used),
            window_entries_max: u64::from(status.window_slots),
            sessions: count(status.sessions),
            disk_in_flight: status.disk_in_flight,
            disk_waiting: count(self.parts.disk.waiting()),
            latencies: operations(&status.latencies)
                .into_iter()
                .map(|(operation, histogram)| StageReport {
                    operation: operation.to_owned(),
                    stage: "disk".to_owned(),
                    latency: latency_of(histogram),
                })
                .collect(),
            counters: counters(&status)
                .into_iter()
                .map(|(name, _, value)| Counter {
                    name: name.to_owned(),
                    value,
                })
                .collect(),
        }
    }

    /// `GET /status`.
    pub(super) fn status_answer(&self, io: &mut Io) -> Answer {
        match serde_json::to_string(&self.report(io)) {
            Ok(text) => Answer::json(text),
            Err(error) => Answer::text(HttpStatus::Conflict, &error.to_string()),
        }
    }

    /// `GET /metrics`.
    pub(super) fn metrics_answer(&self, io: &mut Io) -> Answer {
        let now = io.now();
        let status = self.parts.replica.status(now);
        let mut out = Snapshot::default();
        for (name, help, value) in [
            ("trilith_replica_term", "Term promised", status.term.0),
            (
                "trilith_replica_tainted",
                "Its window was lost",
                u64::from(status.tainted),
            ),
            (
                "trilith_replica_in_sync",
                "It is in sync",
                u64::from(status.role == Role::InSync),
            ),
            (
                "trilith_replica_witness",
                "It votes and holds no data",
                u64::from(status.role == Role::Witness),
            ),
            (
                "trilith_replica_need_bytes",
                "Bytes that may differ",
                status.need_bytes,
            ),
            (
                "trilith_replica_allocated_bytes",
                "Bytes that hold data",
                status.allocated_bytes,
            ),
            (
                "trilith_replica_free_bytes",
                "Room on the file system",
                self.free_bytes,
            ),
            (
                "trilith_replica_active_extents",
                "Extents in the activity log",
                status.al_used,
            ),
            (
                "trilith_replica_window_entries",
                "Entries in the window",
                u64::from(status.window_used),
            ),
            (
                "trilith_replica_open_sessions",
                "Sessions",
                count(status.sessions),
            ),
            (
                "trilith_replica_disk_in_flight",
                "Disk operations",
                status.disk_in_flight,
            ),
        ] {
            out.gauge(name, help, Vec::new(), value);
        }
        for (operation, histogram) in operations(&status.latencies) {
            let labels = vec![("operation", operation.to_owned())];
            let name = "trilith_replica_disk_latency_seconds";
            out.histogram(name, "Latency of the device", labels, samples(histogram));
        }
        for (name, help, value) in counters(&status) {
            out.counter(name, help, Vec::new(), value);
        }
        process_metrics(&process(io, now, self.started), &mut out);
        Answer::metrics(out.into_text())
    }
}
