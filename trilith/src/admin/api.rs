//! What admin endpoints say, as JSON. Fields are only ever added; readers skip what they do not
//! know. Times are in the unit that the name ends in.

use serde::{Deserialize, Serialize};

/// Latency of one stage.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Operations measured.
    pub(crate) count: u64,
    /// Half of them took at most this long.
    pub(crate) p50_us: u64,
    /// 99 % of them.
    pub(crate) p99_us: u64,
    /// 99.9 % of them.
    pub(crate) p999_us: u64,
    /// The longest.
    #[serde(default)]
    pub(crate) max_us: u64,
}

/// A named latency.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct StageReport {
    /// Kind of operation: read, write, flush, ...
    pub(crate) operation: String,
    /// Stage of it: admit, queue, replicate, reply, total; disk at a replica.
    pub(crate) stage: String,
    /// How long it took.
    pub(crate) latency: Latency,
}

/// What every process says of itself.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct ProcessReport {
    /// Version of Trilith.
    pub(crate) version: String,
    /// Process id.
    pub(crate) pid: u32,
    /// Time since it started.
    pub(crate) uptime_ms: u64,
    /// Resident memory.
    pub(crate) resident_bytes: u64,
    /// Memory for data in flight: most there may be, and used now.
    pub(crate) arena_budget_bytes: u64,
    /// Used now.
    pub(crate) arena_used_bytes: u64,
    /// How it talks to the kernel.
    pub(crate) backend: String,
    /// Turns of its loop.
    pub(crate) loop_turns: u64,
    /// Disk operations done.
    pub(crate) disk_operations: u64,
    /// Bytes received from the network.
    pub(crate) received_bytes: u64,
    /// Bytes sent to it.
    pub(crate) sent_bytes: u64,
}

/// Role of a member that votes and holds no data.
pub(crate) const WITNESS: &str = "witness";

/// A member as the engine sees it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct MemberReport {
    /// Its number.
    pub(crate) member: usize,
    /// Its address.
    pub(crate) address: String,
    /// in-sync, uncounted, rebuilding, absent, unknown or [`WITNESS`].
    pub(crate) role: String,
    /// down, connecting, up or refused.
    pub(crate) link: String,
    /// Why replica and engine do not work together, if they do not.
    #[serde(default)]
    pub(crate) refused: Option<String>,
    /// It lost its window, or a flush failed.
    pub(crate) tainted: bool,
    /// Committed entries it lacks.
    pub(crate) lag_entries: u64,
    /// Committed bytes it lacks.
    pub(crate) lag_bytes: u64,
    /// Bytes to be copied to it.
    pub(crate) dirty_bytes: u64,
    /// Bytes copied by the running rebuild.
    pub(crate) rebuilt_bytes: u64,
    /// Rate of the running rebuild.
    pub(crate) rebuild_bytes_per_second: u64,
    /// Time that the rest of it takes.
    pub(crate) rebuild_seconds_left: Option<u64>,
    /// Extents of 4 MiB that it can still allocate.
    pub(crate) free_extents: u64,
    /// Entries sent and not acknowledged.
    pub(crate) in_flight_entries: u64,
    /// Their bytes.
    pub(crate) in_flight_bytes: u64,
    /// Send to acknowledgement of entries.
    pub(crate) write_latency: Latency,
    /// Send to answer of reads.
    pub(crate) read_latency: Latency,
    /// There and back of heartbeats.
    #[serde(default)]
    pub(crate) wire_latency: Latency,
}

/// A slow operation and where its time went.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct SlowReport {
    /// read, write, discard, zeroes, flush or status.
    pub(crate) operation: String,
    /// It was to be durable.
    pub(crate) fua: bool,
    /// It succeeded.
    pub(crate) ok: bool,
    /// First byte.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: u64,
    /// How long ago it was submitted.
    pub(crate) age_ms: u64,
    /// Submit to a place in the stream.
    pub(crate) admit_us: u64,
    /// Place to first send.
    pub(crate) queue_us: u64,
    /// First send to majority, or to the data of a read.
    pub(crate) replicate_us: u64,
    /// From there to completion.
    pub(crate) reply_us: u64,
    /// Submit to completion.
    pub(crate) total_us: u64,
    /// By member: submit to its answer; absent when that did not come before the operation was
    /// decided.
    pub(crate) answered_us: Vec<Option<u64>>,
}

/// How far the replacement of a replica is.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct ChangeReport {
    /// learning, joint or retiring.
    pub(crate) step: String,
    /// The replica that leaves; absent while a new one that was given up is let go.
    pub(crate) old: Option<usize>,
    /// The one that takes its place; absent when it has it.
    pub(crate) new: Option<usize>,
}

/// Clients over NBD.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct NbdReport {
    /// Where it is served.
    pub(crate) uris: Vec<String>,
    /// Connections open.
    pub(crate) connections: u64,
    /// Requests so far.
    pub(crate) requests: u64,
    /// Requests in flight.
    pub(crate) requests_in_flight: u64,
    /// Requests answered with an error.
    pub(crate) requests_failed: u64,
}

/// Clients over iSCSI.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct IscsiReport {
    /// Where it is served.
    pub(crate) uris: Vec<String>,
    /// Connections open, those that log in included.
    pub(crate) connections: u64,
    /// Sessions.
    pub(crate) sessions: u64,
    /// SCSI commands so far.
    pub(crate) commands: u64,
    /// SCSI tasks in flight.
    pub(crate) tasks_in_flight: u64,
    /// SCSI commands that ended with another status than GOOD.
    pub(crate) commands_failed: u64,
    /// Logins that failed.
    pub(crate) logins_failed: u64,
}

/// The volume as a block device of the engine's host.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct UblkReport {
    /// Its node; absent while there is none.
    pub(crate) device: Option<String>,
    /// What it is doing, in words.
    pub(crate) state: String,
    /// Requests so far.
    pub(crate) requests: u64,
    /// Requests in flight.
    pub(crate) requests_in_flight: u64,
    /// Requests that failed.
    pub(crate) requests_failed: u64,
    /// Writes that wait for memory.
    pub(crate) writes_waiting: u64,
}

/// What comparisons of the replicas have found.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct ScrubFound {
    /// Bytes of the volume compared.
    pub(crate) bytes: u64,
    /// Blocks of 4 KiB whose copies differed.
    pub(crate) differences: u64,
    /// Those that were written again and are equal since.
    pub(crate) repaired: u64,
    /// Those that differ still: no majority agrees, or the repair does not hold.
    pub(crate) unresolved: u64,
    /// Chunks of 64 KiB that were too busy to be judged.
    pub(crate) skipped: u64,
}

/// Bytes of the volume.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct RangeReport {
    /// First byte.
    pub(crate) offset: u64,
    /// How many.
    pub(crate) length: u64,
}

/// The comparison of the replicas (a scrub).
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct ScrubReport {
    /// It is not switched off.
    pub(crate) enabled: bool,
    /// Bytes of the volume behind it while one runs.
    pub(crate) position_bytes: Option<u64>,
    /// One runs and waits until all replicas are in sync.
    pub(crate) resting: bool,
    /// What the running one has found.
    pub(crate) running: ScrubFound,
    /// Rate of the running one.
    pub(crate) bytes_per_second: u64,
    /// How many have ended since the engine started.
    pub(crate) finished: u64,
    /// How long ago the last one ended.
    pub(crate) last_ended_seconds: Option<u64>,
    /// How long that took.
    pub(crate) last_took_seconds: u64,
    /// What that found.
    pub(crate) last: ScrubFound,
    /// Time to the next.
    pub(crate) next_seconds: Option<u64>,
    /// Where differences are left, of the running or the last one; the newest few.
    pub(crate) unresolved: Vec<RangeReport>,
}

/// A named count that never falls.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Counter {
    /// What is counted.
    pub(crate) name: String,
    /// How much.
    pub(crate) value: u64,
}

/// `GET /status` of an engine.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct EngineReport {
    /// The process.
    pub(crate) process: ProcessReport,
    /// Name of the volume.
    pub(crate) name: String,
    /// Its identity.
    pub(crate) volume: String,
    /// The engine's identity.
    pub(crate) engine: String,
    /// healthy, degraded, read-only, recovering, waiting, stopping, stopped or fenced.
    pub(crate) state: String,
    /// The state in a sentence.
    pub(crate) detail: String,
    /// Size of the volume, 0 while unknown.
    pub(crate) size_bytes: u64,
    /// Term, 0 before the first.
    pub(crate) term: u64,
    /// Attach epoch.
    pub(crate) attach_epoch: u64,
    /// Number of the sync epoch within the term.
    pub(crate) sync_epoch: u32,
    /// Loss epoch of the volume.
    pub(crate) loss: u32,
    /// Last position given.
    pub(crate) last: u64,
    /// Committed position.
    pub(crate) commit: u64,
    /// What is left of the lease.
    pub(crate) lease_left_ms: u64,
    /// Requests taken and not completed.
    pub(crate) requests: u64,
    /// Most there may be.
    pub(crate) requests_max: u64,
    /// Requests that wait because the engine is full.
    pub(crate) requests_pending: u64,
    /// Requests that wait for order, room or a mode.
    pub(crate) requests_waiting: u64,
    /// Entries that not all tracked members have.
    pub(crate) entries: u64,
    /// Bytes copied by rebuilds since the start.
    pub(crate) rebuild_bytes: u64,
    /// A replica that is being replaced, if one is.
    #[serde(default)]
    pub(crate) change: Option<ChangeReport>,
    /// The members.
    pub(crate) members: Vec<MemberReport>,
    /// Latencies by operation and stage.
    pub(crate) latencies: Vec<StageReport>,
    /// The slowest operations, the slowest first.
    #[serde(default)]
    pub(crate) slowest: Vec<SlowReport>,
    /// How long they have been collected for.
    #[serde(default)]
    pub(crate) slowest_ms: u64,
    /// Counts since the start.
    pub(crate) counters: Vec<Counter>,
    /// Clients over NBD.
    pub(crate) nbd: NbdReport,
    /// Clients over iSCSI; absent when it is off.
    #[serde(default)]
    pub(crate) iscsi: Option<IscsiReport>,
    /// The ublk device; absent when it is off.
    #[serde(default)]
    pub(crate) ublk: Option<UblkReport>,
    /// Comparison of the replicas.
    #[serde(default)]
    pub(crate) scrub: ScrubReport,
}

/// `GET /status` of a replica.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub(crate) struct ReplicaReport {
    /// The process.
    pub(crate) process: ProcessReport,
    /// Its volume.
    pub(crate) volume: String,
    /// Its identity.
    pub(crate) replica: String,
    /// Its member number.
    pub(crate) member: usize,
    /// Directory or device.
    pub(crate) path: String,
    /// Where its window lies; absent: every restart counts as a power failure.
    pub(crate) window_dir: Option<String>,
    /// It runs in the process of its volume's engine.
    #[serde(default)]
    pub(crate) carried: bool,
    /// opening, in-sync, rebuilding, out, witness, failed or stopping.
    pub(crate) role: String,
    /// Term promised.
    pub(crate) term: u64,
    /// Attach epoch seen.
    pub(crate) attach_epoch: u64,
    /// Loss epoch.
    pub(crate) loss: u32,
    /// What is left of the lease that it has granted.
    pub(crate) lease_left_ms: u64,
    /// It lost its window, or a flush failed.
    pub(crate) tainted: bool,
    /// It was stopped cleanly and has accepted nothing since.
    pub(crate) sealed: bool,
    /// Entries accepted up to here.
    pub(crate) upto: u64,
    /// Durable up to here.
    pub(crate) watermark: u64,
    /// Bytes of its own that may differ from the rest.
    pub(crate) need_bytes: u64,
    /// Bytes whose value is not agreed yet.
    pub(crate) limbo_bytes: u64,
    /// Bytes that each member may lack.
    pub(crate) dirty_bytes: Vec<u64>,
    /// Bytes that may hold anything but zeroes.
    pub(crate) allocated_bytes: u64,
    /// Extents that can still be allocated.
    pub(crate) free_extents: u64,
    /// Room on its file system.
    pub(crate) free_bytes: u64,
    /// Extents in its activity log.
    pub(crate) active_extents: u64,
    /// Entries in its window.
    pub(crate) window_entries: u64,
    /// Most there may be.
    pub(crate) window_entries_max: u64,
    /// Sessions with engines.
    pub(crate) sessions: u64,
    /// Disk operations under way.
    pub(crate) disk_in_flight: u64,
    /// Disk operations that wait for a place in the queue.
    pub(crate) disk_waiting: u64,
    /// Latencies by operation and stage.
    pub(crate) latencies: Vec<StageReport>,
    /// Counts since the start.
    pub(crate) counters: Vec<Counter>,
}
