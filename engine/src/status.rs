//! What an engine shows of itself. Made on demand; nothing here is on the data path.

use crate::api::Mode;
use crate::engine::Engine;
use crate::peer;
use crate::reconfigure::ChangeStep;
use crate::scrub::ScrubStatus;
use crate::slowest::SlowOp;
use crate::syncset::Standing;
use alloc::vec::Vec;
use core::time::Duration;
use trilith_block::histogram::Histogram;
use trilith_block::{Idx, MemberId, MemberSet, Membership, Monotonic, SyncEpoch, Term, Uuid};
use trilith_wire::Reason;

/// What a member is to the volume now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// In the in-sync set, its acks count.
    InSync,
    /// In the in-sync set, its acks do not count yet or any more (tainted, or join not acked).
    Uncounted,
    /// Out of the in-sync set; copies run or wait.
    Rebuilding,
    /// Out of the in-sync set and not connected, or not yet told.
    Absent,
    /// Holds no data: it votes and remembers who is in sync.
    Witness,
    /// No epoch yet: the volume has not been opened.
    Unknown,
}

/// How far the session with a member is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// No connection.
    Down,
    /// Dialling or handshake.
    Connecting,
    /// Session stands.
    Up,
    /// It refuses this engine: configuration, secret or volume are wrong.
    Refused,
}

/// A stage of an operation, as measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Submit to position in the stream (order, merge, room).
    Admit,
    /// Position to first send.
    Queue,
    /// First send to majority (wire and replicas); to the data of a read.
    Replicate,
    /// From there to completion: the rest of a FUA write's flush, the checks at the end of a read.
    Reply,
    /// Submit to completion.
    Total,
}

/// Latencies of one kind of operation. A stage that a kind does not have stays empty.
#[derive(Clone, Debug, Default)]
pub struct StageLatency {
    /// See [`Stage::Admit`].
    pub admit: Histogram,
    /// See [`Stage::Queue`].
    pub queue: Histogram,
    /// See [`Stage::Replicate`].
    pub replicate: Histogram,
    /// See [`Stage::Reply`].
    pub reply: Histogram,
    /// See [`Stage::Total`].
    pub total: Histogram,
}

impl StageLatency {
    /// The stages with their names.
    pub fn stages(&self) -> [(Stage, &Histogram); 5] {
        [
            (Stage::Admit, &self.admit),
            (Stage::Queue, &self.queue),
            (Stage::Replicate, &self.replicate),
            (Stage::Reply, &self.reply),
            (Stage::Total, &self.total),
        ]
    }
}

/// Latencies of all kinds.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    /// Reads.
    pub read: StageLatency,
    /// Writes, zeroes and discards.
    pub write: StageLatency,
    /// Flushes.
    pub flush: StageLatency,
}

/// Counts since the start; they never fall.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Requests completed with success, by kind.
    pub reads: u64,
    /// See `reads`.
    pub writes: u64,
    /// See `reads`.
    pub flushes: u64,
    /// Discards and zeroes.
    pub discards: u64,
    /// Bytes read by clients.
    pub read_bytes: u64,
    /// Bytes written by clients.
    pub write_bytes: u64,
    /// Requests completed with an error.
    pub errors: u64,
    /// Campaigns started.
    pub campaigns: u64,
    /// Terms opened.
    pub terms: u64,
    /// Members demoted.
    pub demotions: u64,
    /// Members joined.
    pub joins: u64,
    /// Sessions lost.
    pub sessions_lost: u64,
    /// Reads sent to a second replica because the first was slow.
    pub hedges: u64,
    /// Reads repeated at another replica after an error or a wrong checksum.
    pub read_retries: u64,
    /// Blocks read back to merge an unaligned write.
    pub merge_reads: u64,
    /// Unaligned writes merged from payload still in memory.
    pub merges_in_memory: u64,
    /// Entries sent again.
    pub resends: u64,
    /// Reads confirmed by asking a majority because no lease ran.
    pub read_index: u64,
    /// Bytes copied by rebuilds.
    pub rebuild_bytes: u64,
}

/// One member.
#[derive(Clone, Debug)]
pub struct MemberStatus {
    /// Which one.
    pub member: MemberId,
    /// Its identity, none before the first session.
    pub replica: Uuid,
    /// Its role.
    pub role: Role,
    /// Its session.
    pub link: Link,
    /// Why the replica and this engine do not work together; none when they do or nothing is known.
    /// Stays until a session stands.
    pub refused: Option<Reason>,
    /// It holds this engine's term.
    pub promised: bool,
    /// It lost its window or a flush failed.
    pub tainted: bool,
    /// All entries up to it are accepted there.
    pub upto: Idx,
    /// Its durable watermark.
    pub w: Idx,
    /// Committed entries it lacks.
    pub lag_entries: u64,
    /// Committed payload bytes it lacks.
    pub lag_bytes: u64,
    /// Bytes to be copied to it.
    pub dirty_bytes: u64,
    /// Bytes copied to it by the running rebuild.
    pub rebuilt_bytes: u64,
    /// Rate of the running rebuild, in bytes per second.
    pub rebuild_bytes_per_second: u64,
    /// Time the rest of the rebuild takes at that rate.
    pub rebuild_eta: Option<Duration>,
    /// Extents it can still allocate.
    pub free_extents: u64,
    /// Entries and bytes sent to it and not acked.
    pub in_flight_entries: u64,
    /// See `in_flight_entries`.
    pub in_flight_bytes: u64,
    /// First send to ack of entries, and of reads.
    pub write_latency: Histogram,
    /// See `write_latency`.
    pub read_latency: Histogram,
    /// There and back of heartbeats, which wait for no disk.
    pub wire_latency: Histogram,
}

/// The volume as its engine sees it.
#[derive(Clone, Debug)]
pub struct Status {
    /// The volume.
    pub volume: Uuid,
    /// The engine.
    pub engine: Uuid,
    /// How it is served.
    pub mode: Mode,
    /// Current term; 0 before the first.
    pub term: Term,
    /// Attach epoch.
    pub attach_epoch: u64,
    /// Current sync epoch.
    pub epoch: SyncEpoch,
    /// In-sync set.
    pub in_sync: MemberSet,
    /// Tracked set.
    pub tracked: MemberSet,
    /// Members whose acks count.
    pub counted: MemberSet,
    /// Loss epoch of the volume.
    pub loss: u32,
    /// Bytes; 0 while unknown.
    pub capacity_bytes: u64,
    /// Last position given.
    pub last: Idx,
    /// Contiguously committed position.
    pub commit: Idx,
    /// Accepted by all tracked members up to here.
    pub tidx: Idx,
    /// Requests taken and not completed.
    pub requests: usize,
    /// Most there may be.
    pub requests_max: usize,
    /// Entries not accepted by all tracked members.
    pub entries: usize,
    /// Requests waiting for order, a merge, room or a mode.
    pub waiting: usize,
    /// What is left of the lease.
    pub lease_left: Duration,
    /// Counts.
    pub counters: Counters,
    /// Latencies.
    pub latencies: Latencies,
    /// The slowest operations, the slowest first; at most [`crate::limits::SLOWEST_MAX`].
    pub slowest: Vec<SlowOp>,
    /// How long they have been collected for.
    pub slowest_span: Duration,
    /// The configuration.
    pub membership: Membership,
    /// Who is dealt with: the members, and who is being let go.
    pub dealt_with: MemberSet,
    /// A change of the configuration: how far it is, who leaves and who comes.
    pub change: Option<(ChangeStep, MemberSet, MemberSet)>,
    /// The members, by rising id.
    pub members: Vec<MemberStatus>,
    /// Comparison of the replicas.
    pub scrub: ScrubStatus,
}

impl Engine {
    /// Collects the slowest operations from now on.
    pub fn forget_slowest(&mut self, now: Monotonic) {
        self.slowest.forget(now.max(self.now));
    }

    /// Everything there is to show.
    pub fn status(&self, now: Monotonic) -> Status {
        let now = now.max(self.now);
        Status {
            volume: self.cfg.volume,
            engine: self.cfg.engine,
            mode: self.mode,
            term: self.term,
            attach_epoch: self.cfg.attach_epoch,
            epoch: SyncEpoch {
                term: self.term,
                n: self.sync.n,
            },
            in_sync: self.sync.iss,
            tracked: self.sync.trk,
            counted: self.sync.counted,
            loss: self.loss,
            capacity_bytes: self.capacity,
            last: self.last_idx(),
            commit: self.stream.commit,
            tidx: self.stream.tidx(),
            requests: self.ops.len(),
            requests_max: self.cfg.sizes.requests_max,
            entries: self.stream.entries.len(),
            waiting: self.inbox.len()
                + self.read_inbox.len()
                + self.read_retries.len()
                + self.parts.len()
                + self.flush_wait.len()
                + self.status_inbox.len(),
            lease_left: self.lease_until().since(now),
            counters: self.counters,
            latencies: self.latencies.clone(),
            slowest: self.slowest.sorted(),
            slowest_span: now.since(self.slowest.since),
            membership: self.membership,
            dealt_with: self.members,
            change: self.change_status(),
            members: self
                .members
                .iter()
                .map(|m| self.member_status(m, now))
                .collect(),
            scrub: self.scrub.status(now),
        }
    }

    fn member_status(&self, member: MemberId, now: Monotonic) -> MemberStatus {
        let peer = &self.peers[member.index()];
        let running = self.rebuilds[member.index()].as_ref().map(|r| &r.rebuild);
        let role = match peer.standing {
            _ if self.membership.witness.contains(member) => Role::Witness,
            Standing::Unknown | Standing::Witness => Role::Unknown,
            Standing::InSync if self.sync.counted.contains(member) => Role::InSync,
            Standing::InSync | Standing::Joining { .. } => Role::Uncounted,
            Standing::Out { .. } => Role::Absent,
            Standing::Telling { .. } | Standing::Tracked { .. } => Role::Rebuilding,
        };
        let link = match peer.link {
            _ if peer.refused.is_some() => Link::Refused,
            peer::Link::Up => Link::Up,
            peer::Link::Down { .. } => Link::Down,
            peer::Link::Dialling { .. }
            | peer::Link::Greeted { .. }
            | peer::Link::Proved { .. } => Link::Connecting,
        };
        MemberStatus {
            member,
            replica: peer.replica,
            role,
            link,
            refused: peer.refused,
            promised: peer.is_ours(),
            tainted: peer.state.is_some_and(|s| s.flags.tainted) && role != Role::InSync,
            upto: peer.upto,
            w: peer.w,
            lag_entries: peer.lag_entries,
            lag_bytes: peer.lag_bytes,
            dirty_bytes: running.map_or(self.lacking(member).bytes(), |r| r.bytes_left()),
            rebuilt_bytes: running.map_or(0, |r| r.bytes_copied()),
            rebuild_bytes_per_second: running.map_or(0, |r| r.bytes_per_second()),
            rebuild_eta: running.and_then(|r| r.eta(now)),
            free_extents: peer.free_extents,
            in_flight_entries: peer.in_flight_entries,
            in_flight_bytes: peer.in_flight_bytes,
            write_latency: peer.write_latency.clone(),
            read_latency: peer.read_latency.clone(),
            wire_latency: peer.wire_latency.clone(),
        }
    }
}
