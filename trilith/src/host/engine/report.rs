//! What an engine's admin endpoint says.

use super::wiring::EngineHost;
use crate::admin::api::{
    Counter, EngineReport, IscsiReport, MemberReport, NbdReport, SlowReport, StageReport,
    UblkReport, WITNESS,
};
use crate::admin::http::{Answer, Status as HttpStatus};
use crate::admin::metrics::Snapshot;
use crate::host::report::{
    latency as latency_of, micros, millis, process, process_metrics, samples,
};
use trilith_block::{Monotonic, Op};
use trilith_engine::slowest::SlowOp;
use trilith_engine::status::{Latencies, Link, MemberStatus, Role, Stage, StageLatency, Status};
use trilith_engine::{Mode, Waiting};
use trilith_runtime::Io;
use trilith_wire::Reason;

/// State of a volume in a word, and in a sentence.
pub(super) fn words(status: &Status) -> (&'static str, &'static str) {
    if status.membership.has_witness()
        && let Some(words) = words_with_witness(status)
    {
        return words;
    }
    mode_words(status.mode)
}

/// Where a witness makes it another sentence: both replicas hold the data, or one alone does (7.1).
fn words_with_witness(status: &Status) -> Option<(&'static str, &'static str)> {
    let both = status.membership.data().minus(status.in_sync).is_empty();
    match status.mode {
        Mode::Healthy => Some((
            "healthy",
            "both replicas are in sync and the witness is there",
        )),
        Mode::Degraded if both => Some((
            "degraded",
            "both replicas are in sync, the witness cannot be reached",
        )),
        Mode::Degraded => Some(("degraded", "one replica alone holds the data")),
        Mode::ReadOnlyLease => Some((
            "read-only",
            "not all that must hold the data can be reached, reads go on",
        )),
        Mode::Waiting(Waiting::Replicas) => Some((
            "waiting",
            "for two of the replicas and the witness to connect to",
        )),
        Mode::Waiting(Waiting::MoreMembers) => Some((
            "waiting",
            "for the replica without which writes would be lost",
        )),
        Mode::Waiting(Waiting::Quorum) => Some(("waiting", "for the replicas in sync")),
        _ => None,
    }
}

fn mode_words(mode: Mode) -> (&'static str, &'static str) {
    match mode {
        Mode::Healthy => ("healthy", "all replicas are in sync"),
        Mode::Degraded => ("degraded", "a majority of the replicas is in sync"),
        Mode::ReadOnlyLease => ("read-only", "no majority holds the data, reads go on"),
        Mode::ReadOnlyGrant => ("read-only", "no majority can be reached, reads go on"),
        Mode::Waiting(waiting) => waiting_words(waiting),
        Mode::Stopping => ("stopping", "requests in flight are finished"),
        Mode::Stopped => ("stopped", "stopped on demand"),
        Mode::Fenced => ("fenced", "another engine has taken over"),
    }
}

fn waiting_words(waiting: Waiting) -> (&'static str, &'static str) {
    match waiting {
        Waiting::Replicas => ("waiting", "for a majority of replicas to connect to"),
        Waiting::Votes => ("recovering", "asking the replicas for their votes"),
        Waiting::OtherLeader => ("waiting", "for the lease of another engine to end"),
        Waiting::Recovery => ("recovering", "making the replicas equal"),
        Waiting::MoreMembers => (
            "waiting",
            "for more replicas, without which writes would be lost",
        ),
        Waiting::LossAccepted => (
            "waiting",
            "acknowledged writes were lost in a power failure: restart the clients, then run \
             `trilith volume accept-loss`",
        ),
        Waiting::Quorum => ("waiting", "for a majority of replicas in sync"),
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::InSync => "in-sync",
        Role::Uncounted => "uncounted",
        Role::Rebuilding => "rebuilding",
        Role::Absent => "absent",
        Role::Witness => WITNESS,
        Role::Unknown => "unknown",
    }
}

fn link(link: Link) -> &'static str {
    match link {
        Link::Down => "down",
        Link::Connecting => "connecting",
        Link::Up => "up",
        Link::Refused => "refused",
    }
}

/// Why a replica and the engine do not work together, for a human.
fn refused(reason: Reason) -> &'static str {
    match reason {
        Reason::Secret => "the secret of the replica and that of the engine differ",
        Reason::WrongVolume => "it holds another volume",
        Reason::Protocol => "they have no protocol version in common",
        Reason::Config => "the engine's configuration is older than the replica's",
        Reason::Mismatch => {
            "its number, its identity, its list of replicas or its size is not what the engine expects"
        }
        Reason::Malformed => "it did not understand the engine",
        Reason::AttachEpoch => "another engine has taken over",
        Reason::Term | Reason::Voted | Reason::LeaderAlive => "it follows another engine",
        Reason::Failed => "its store has failed",
        Reason::Replaced => "a newer session has replaced this one",
        Reason::Busy => "it has too many sessions",
    }
}

fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Admit => "admit",
        Stage::Queue => "queue",
        Stage::Replicate => "replicate",
        Stage::Reply => "reply",
        Stage::Total => "total",
    }
}

fn slow(op: &SlowOp, now: Monotonic) -> SlowReport {
    let operation = match op.op {
        Op::Read => "read",
        Op::Write => "write",
        Op::Flush => "flush",
        Op::Discard => "discard",
        Op::WriteZeroes => "zeroes",
        Op::Prefetch => "prefetch",
        Op::BlockStatus => "status",
    };
    SlowReport {
        operation: operation.to_owned(),
        fua: op.fua,
        ok: op.ok,
        offset: op.range.offset,
        length: op.range.len,
        age_ms: millis(now.since(op.submitted)),
        admit_us: micros(op.admit),
        queue_us: micros(op.queue),
        replicate_us: micros(op.replicate),
        reply_us: micros(op.reply),
        total_us: micros(op.total),
        answered_us: op.answered.map(|after| after.map(micros)).to_vec(),
    }
}

fn operations(latencies: &Latencies) -> [(&'static str, &StageLatency); 3] {
    [
        ("read", &latencies.read),
        ("write", &latencies.write),
        ("flush", &latencies.flush),
    ]
}

fn counters(status: &Status) -> [(&'static str, &'static str, u64); 19] {
    let c = &status.counters;
    [
        ("trilith_engine_reads", "Reads completed", c.reads),
        ("trilith_engine_writes", "Writes completed", c.writes),
        ("trilith_engine_flushes", "Flushes completed", c.flushes),
        (
            "trilith_engine_discards",
            "Discards and zeroes completed",
            c.discards,
        ),
        (
            "trilith_engine_read_bytes",
            "Bytes read by clients",
            c.read_bytes,
        ),
        (
            "trilith_engine_write_bytes",
            "Bytes written by clients",
            c.write_bytes,
        ),
        ("trilith_engine_errors", "Requests that failed", c.errors),
        ("trilith_engine_campaigns", "Campaigns started", c.campaigns),
        ("trilith_engine_terms", "Terms opened", c.terms),
        ("trilith_engine_demotions", "Replicas demoted", c.demotions),
        ("trilith_engine_joins", "Replicas joined", c.joins),
        (
            "trilith_engine_sessions_lost",
            "Sessions lost",
            c.sessions_lost,
        ),
        (
            "trilith_engine_hedges",
            "Reads sent to a second replica",
            c.hedges,
        ),
        (
            "trilith_engine_read_retries",
            "Reads repeated elsewhere",
            c.read_retries,
        ),
        (
            "trilith_engine_merge_reads",
            "Blocks read to merge small writes",
            c.merge_reads,
        ),
        (
            "trilith_engine_merges_in_memory",
            "Small writes merged in memory",
            c.merges_in_memory,
        ),
        ("trilith_engine_resends", "Entries sent again", c.resends),
        (
            "trilith_engine_read_index",
            "Reads confirmed by a majority",
            c.read_index,
        ),
        (
            "trilith_engine_rebuild_bytes",
            "Bytes copied by rebuilds",
            c.rebuild_bytes,
        ),
    ]
}

impl EngineHost {
    fn member_report(&self, status: &MemberStatus) -> MemberReport {
        MemberReport {
            member: status.member.index(),
            address: self.address_text(status),
            role: role(status.role).to_owned(),
            link: link(status.link).to_owned(),
            refused: status.refused.map(|reason| refused(reason).to_owned()),
            tainted: status.tainted,
            lag_entries: status.lag_entries,
            lag_bytes: status.lag_bytes,
            dirty_bytes: status.dirty_bytes,
            rebuilt_bytes: status.rebuilt_bytes,
            rebuild_bytes_per_second: status.rebuild_bytes_per_second,
            rebuild_seconds_left: status.rebuild_eta.map(|eta| eta.as_secs()),
            free_extents: status.free_extents,
            in_flight_entries: status.in_flight_entries,
            in_flight_bytes: status.in_flight_bytes,
            write_latency: latency_of(&status.write_latency),
            read_latency: latency_of(&status.read_latency),
            wire_latency: latency_of(&status.wire_latency),
        }
    }

    fn address_text(&self, status: &MemberStatus) -> String {
        self.parts
            .members
            .get(status.member)
            .map(ToString::to_string)
            .unwrap_or_default()
    }

    fn nbd_report(&self) -> NbdReport {
        let Some((nbd, uris)) = self.parts.frontends.nbd() else {
            return NbdReport::default();
        };
        let nbd = nbd.status();
        NbdReport {
            uris: uris.to_vec(),
            connections: nbd.connections,
            requests: nbd.requests,
            requests_in_flight: nbd.requests_in_flight,
            requests_failed: nbd.requests_failed,
        }
    }

    fn iscsi_report(&self) -> Option<IscsiReport> {
        let (target, uris) = self.parts.frontends.iscsi()?;
        let status = target.status();
        Some(IscsiReport {
            uris: uris.to_vec(),
            connections: status.connections,
            sessions: status.sessions,
            commands: status.commands,
            tasks_in_flight: status.tasks_in_flight,
            commands_failed: status.commands_failed,
            logins_failed: status.logins_failed,
        })
    }

    fn ublk_report(&self) -> Option<UblkReport> {
        let ublk = self.parts.frontends.ublk()?;
        let status = ublk.status();
        Some(UblkReport {
            device: ublk.node(),
            state: ublk.state(),
            requests: status.requests,
            requests_in_flight: status.requests_in_flight,
            requests_failed: status.requests_failed,
            writes_waiting: status.writes_waiting,
        })
    }

    /// Requests that the engine has not been given yet.
    fn before_the_engine(&self) -> u64 {
        u64::try_from(self.pending.len() + self.order.held()).unwrap_or(u64::MAX)
    }

    fn report(&self, io: &mut Io) -> EngineReport {
        let now = io.now();
        let status = self.parts.engine.status(now);
        let (state, detail) = words(&status);
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let mut latencies = Vec::new();
        for (operation, stages) in operations(&status.latencies) {
            for (which, histogram) in stages.stages() {
                latencies.push(StageReport {
                    operation: operation.to_owned(),
                    stage: stage(which).to_owned(),
                    latency: latency_of(histogram),
                });
            }
        }
        EngineReport {
            process: process(io, now, self.started),
            name: self.parts.name.clone(),
            volume: status.volume.to_string(),
            engine: status.engine.to_string(),
            state: state.to_owned(),
            detail: detail.to_owned(),
            size_bytes: status.capacity_bytes,
            term: status.term.0,
            attach_epoch: status.attach_epoch,
            sync_epoch: status.epoch.n,
            loss: status.loss,
            last: status.last.0,
            commit: status.commit.0,
            lease_left_ms: millis(status.lease_left),
            requests: count(status.requests),
            requests_max: count(status.requests_max),
            requests_pending: self.before_the_engine(),
            requests_waiting: count(status.waiting),
            entries: count(status.entries),
            rebuild_bytes: status.counters.rebuild_bytes,
            change: self.change_report(io),
            members: status
                .members
                .iter()
                .map(|m| self.member_report(m))
                .collect(),
            latencies,
            slowest: status.slowest.iter().map(|op| slow(op, now)).collect(),
            slowest_ms: millis(status.slowest_span),
            counters: counters(&status)
                .into_iter()
                .map(|(name, _, value)| Counter {
                    name: name.to_owned(),
                    value,
                })
                .collect(),
            nbd: self.nbd_report(),
            iscsi: self.iscsi_report(),
            ublk: self.ublk_report(),
            scrub: super::scrub::report(&status.scrub),
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
        let status = self.parts.engine.status(now);
        let mut out = Snapshot::default();
        self.volume_metrics(&status, &mut out);
        for member in &status.members {
            let is_witness = status.membership.witness.contains(member.member);
            member_metrics(member, is_witness, &mut out);
        }
        let latency = "trilith_engine_request_latency_seconds";
        for (operation, stages) in operations(&status.latencies) {
            for (which, histogram) in stages.stages() {
                let labels = vec![
                    ("operation", operation.to_owned()),
                    ("stage", stage(which).to_owned()),
                ];
                out.histogram(latency, "Latency by stage", labels, samples(histogram));
            }
        }
        for (name, help, value) in counters(&status) {
            out.counter(name, help, Vec::new(), value);
        }
        process_metrics(&process(io, now, self.started), &mut out);
        Answer::metrics(out.into_text())
    }

    fn volume_metrics(&self, status: &Status, out: &mut Snapshot) {
        let (state, _) = words(status);
        for name in [
            "healthy",
            "degraded",
            "read-only",
            "recovering",
            "waiting",
            "stopping",
        ] {
            let labels = vec![("state", name.to_owned())];
            out.gauge(
                "trilith_engine_volume_state",
                "1 for the state",
                labels,
                u64::from(name == state),
            );
        }
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        for (name, help, value) in [
            ("trilith_engine_term", "Term", status.term.0),
            (
                "trilith_engine_loss_epoch",
                "Loss epoch",
                u64::from(status.loss),
            ),
            (
                "trilith_engine_requests",
                "Requests in flight",
                count(status.requests),
            ),
            (
                "trilith_engine_requests_pending",
                "Requests before the engine",
                self.before_the_engine(),
            ),
            (
                "trilith_engine_requests_waiting",
                "Requests that wait in it",
                count(status.waiting),
            ),
            (
                "trilith_engine_entries",
                "Entries not held by all",
                count(status.entries),
            ),
        ] {
            out.gauge(name, help, Vec::new(), value);
        }
        super::scrub::metrics(&status.scrub, out);
        self.nbd_metrics(out);
        self.iscsi_metrics(out);
        self.ublk_metrics(out);
    }

    fn ublk_metrics(&self, out: &mut Snapshot) {
        let Some(ublk) = self.parts.frontends.ublk() else {
            return;
        };
        let status = ublk.status();
        for (name, help, value) in [
            (
                "trilith_ublk_device_up",
                "The block device is there",
                u64::from(ublk.node().is_some()),
            ),
            (
                "trilith_ublk_requests_in_flight",
                "Requests of the kernel",
                status.requests_in_flight,
            ),
            (
                "trilith_ublk_writes_waiting",
                "Writes that wait for memory",
                status.writes_waiting,
            ),
        ] {
            out.gauge(name, help, Vec::new(), value);
        }
        for (name, help, value) in [
            (
                "trilith_ublk_requests",
                "Requests of the kernel",
                status.requests,
            ),
            (
                "trilith_ublk_requests_failed",
                "Requests that failed",
                status.requests_failed,
            ),
        ] {
            out.counter(name, help, Vec::new(), value);
        }
    }

    fn nbd_metrics(&self, out: &mut Snapshot) {
        let Some((nbd, _)) = self.parts.frontends.nbd() else {
            return;
        };
        let nbd = nbd.status();
        for (name, help, value) in [
            (
                "trilith_nbd_connections",
                "Connections of clients",
                nbd.connections,
            ),
            (
                "trilith_nbd_requests_in_flight",
                "Requests of clients",
                nbd.requests_in_flight,
            ),
        ] {
            out.gauge(name, help, Vec::new(), value);
        }
        for (name, help, value) in [
            ("trilith_nbd_requests", "Requests of clients", nbd.requests),
            (
                "trilith_nbd_requests_failed",
                "Requests that failed",
                nbd.requests_failed,
            ),
        ] {
            out.counter(name, help, Vec::new(), value);
        }
    }

    fn iscsi_metrics(&self, out: &mut Snapshot) {
        let Some((target, _)) = self.parts.frontends.iscsi() else {
            return;
        };
        let iscsi = target.status();
        for (name, help, value) in [
            (
                "trilith_iscsi_connections",
                "Connections of initiators",
                iscsi.connections,
            ),
            (
                "trilith_iscsi_sessions",
                "Sessions of initiators",
                iscsi.sessions,
            ),
            (
                "trilith_iscsi_tasks_in_flight",
                "SCSI tasks",
                iscsi.tasks_in_flight,
            ),
            (
                "trilith_iscsi_tasks_waiting",
                "SCSI tasks that wait for memory",
                iscsi.tasks_waiting,
            ),
        ] {
            out.gauge(name, help, Vec::new(), value);
        }
        for (name, help, value) in [
            ("trilith_iscsi_commands", "SCSI commands", iscsi.commands),
            (
                "trilith_iscsi_commands_failed",
                "SCSI commands with another status than GOOD",
                iscsi.commands_failed,
            ),
            (
                "trilith_iscsi_logins_failed",
                "Logins that failed",
                iscsi.logins_failed,
            ),
            (
                "trilith_iscsi_logins_denied",
                "Logins that failed by name or secret",
                iscsi.logins_denied,
            ),
            (
                "trilith_iscsi_digest_errors",
                "PDUs with a wrong digest",
                iscsi.digest_errors,
            ),
            ("trilith_iscsi_rejects", "PDUs rejected", iscsi.rejects),
            (
                "trilith_iscsi_read_bytes",
                "Bytes read by initiators",
                iscsi.bytes_read,
            ),
            (
                "trilith_iscsi_write_bytes",
                "Bytes written by initiators",
                iscsi.bytes_written,
            ),
        ] {
            out.counter(name, help, Vec::new(), value);
        }
    }
}

/// Of a witness there is only whether it is there: it holds no data, so it is in no sync and lacks none.
fn member_metrics(member: &MemberStatus, is_witness: bool, out: &mut Snapshot) {
    let labels = || vec![("member", member.member.to_string())];
    for (name, help, value) in [
        (
            "trilith_engine_member_up",
            "A session stands",
            u64::from(member.link == Link::Up),
        ),
        (
            "trilith_engine_member_witness",
            "It votes and holds no data",
            u64::from(is_witness),
        ),
    ] {
        out.gauge(name, help, labels(), value);
    }
    out.histogram(
        "trilith_engine_member_wire_seconds",
        "There and back of heartbeats",
        labels(),
        samples(&member.wire_latency),
    );
    if is_witness {
        return;
    }
    for (name, help, value) in [
        (
            "trilith_engine_member_in_sync",
            "It counts",
            u64::from(member.role == Role::InSync),
        ),
        (
            "trilith_engine_member_lag_bytes",
            "Committed bytes it lacks",
            member.lag_bytes,
        ),
        (
            "trilith_engine_member_dirty_bytes",
            "Bytes to be copied to it",
            member.dirty_bytes,
        ),
        (
            "trilith_engine_member_free_extents",
            "Extents it can allocate",
            member.free_extents,
        ),
        (
            "trilith_engine_member_in_flight_bytes",
            "Bytes sent",
            member.in_flight_bytes,
        ),
    ] {
        out.gauge(name, help, labels(), value);
    }
    for (operation, histogram) in [
        ("write", &member.write_latency),
        ("read", &member.read_latency),
    ] {
        let mut labels = labels();
        labels.push(("operation", operation.to_owned()));
        let name = "trilith_engine_member_latency_seconds";
        out.histogram(name, "Send to answer", labels, samples(histogram));
    }
}
