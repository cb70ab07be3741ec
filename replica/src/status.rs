//! What an operator sees of a replica. A copy, made on request.

use crate::store::{Facts, MapName, Store};
pub use crate::timing::Latencies;
use trilith_block::limits::MEMBERS_MAX;
use trilith_block::{
    ExtentNo, Idx, MemberId, MemberSet, Membership, Monotonic, SyncEpoch, Term, Uuid,
};

/// What a replica is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Its store is being opened.
    Opening,
    /// It is in the in-sync set of its own durable epoch.
    InSync,
    /// It is tracked but not in sync: it is being rebuilt.
    Rebuilding,
    /// It is in neither set: it votes and waits.
    Out,
    /// It votes and holds no data (7.1).
    Witness,
    /// It was replaced: it serves nobody any more.
    Retired,
    /// Its store failed: the process is to be restarted.
    Failed,
    /// The process is stopping.
    Stopping,
}

/// Counters since the process started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Sessions welcomed.
    pub sessions: u64,
    /// Guests turned away for number or time.
    pub guests_refused: u64,
    /// Peers with a wrong secret.
    pub secret_refused: u64,
    /// Sessions ended for frames that make no sense.
    pub malformed: u64,
    /// Frames refused for their term.
    pub nacks: u64,
    /// Votes taken.
    pub votes: u64,
    /// Promises sent.
    pub promises: u64,
    /// Entries taken in.
    pub entries: u64,
    /// Entries that were already there.
    pub duplicates: u64,
    /// Entries that the device refused.
    pub entries_failed: u64,
    /// Payloads whose checksum was wrong on arrival.
    pub checksums_wrong: u64,
    /// ACK frames.
    pub acks: u64,
    /// FLUSHDONE frames.
    pub flushes: u64,
    /// READs answered.
    pub reads: u64,
    /// REPAIRs answered.
    pub repairs: u64,
    /// Times a payload found no buffer.
    pub pauses: u64,
}

/// State of a replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// What it is doing.
    pub role: Role,
    /// Volume; none while opening.
    pub volume: Uuid,
    /// Its identity.
    pub replica: Uuid,
    /// Which member it is.
    pub member: MemberId,
    /// Size of the volume in bytes.
    pub capacity: u64,
    /// Term promised.
    pub term: Term,
    /// Engine the vote went to.
    pub voted: Uuid,
    /// Engine that holds a lease here; none when no lease runs.
    pub leader: Uuid,
    /// What is left of the lease, in milliseconds.
    pub lease_left_ms: u32,
    /// Attach epoch.
    pub attach_epoch: u64,
    /// Its configuration.
    pub config: Membership,
    /// Sync epoch.
    pub se: SyncEpoch,
    /// In-sync set.
    pub iss: MemberSet,
    /// Tracked set.
    pub trk: MemberSet,
    /// Loss epoch.
    pub loss: u32,
    /// All up to it are accepted.
    pub upto: Idx,
    /// Durable watermark.
    pub w: Idx,
    /// All of the tracked set have it.
    pub tidx: Idx,
    /// Highest position seen.
    pub max_idx: Idx,
    /// Everything up to it is committed, as far as the engine said.
    pub commit: Idx,
    /// It lost its window or a flush failed.
    pub tainted: bool,
    /// It was stopped cleanly.
    pub sealed: bool,
    /// Slots of the window.
    pub window_slots: u32,
    /// Data entries in the window.
    pub window_used: u32,
    /// Extents in the activity log.
    pub al_used: u64,
    /// Bytes that each member may lack.
    pub dirty_bytes: [u64; MEMBERS_MAX],
    /// Bytes of this replica that may differ from the rest, limbo not counted.
    pub need_bytes: u64,
    /// Bytes whose value is not agreed yet.
    pub limbo_bytes: u64,
    /// Bytes that may hold anything but zeroes.
    pub allocated_bytes: u64,
    /// Extents that can still be allocated.
    pub free_extents: u64,
    /// Sessions welcomed and not closed.
    pub sessions: usize,
    /// Peers that have not proved themselves yet.
    pub guests: usize,
    /// Device operations under way.
    pub disk_in_flight: u64,
    /// Counters of the machine.
    pub counters: Counters,
    /// Counters of the store.
    pub store: crate::store::Counters,
    /// Latency of the device.
    pub latencies: Latencies,
}

impl crate::Replica {
    /// A copy of what this replica is and does. Cost: linear in the activity log.
    pub fn status(&self, now: Monotonic) -> Status {
        let facts = self.facts();
        let store = self.store();
        let mut dirty_bytes = [0; MEMBERS_MAX];
        for (index, bytes) in dirty_bytes.iter_mut().enumerate() {
            if let (Some(store), Some(member)) = (store, MemberId::new(index)) {
                *bytes = store.map(MapName::Dirty(member)).bytes();
            }
        }
        let map_bytes = |name| store.map_or(0, |s| s.map(name).bytes());
        let al_used = store.map_or(0, |s| s.activity_log(ExtentNo(0)).count());
        Status {
            role: self.role(&facts),
            volume: facts.volume,
            replica: facts.replica,
            member: facts.member,
            capacity: facts.capacity,
            term: self.promised_term(),
            voted: self.voted_engine(),
            leader: self.lease.leader(now),
            lease_left_ms: crate::lease::millis(self.lease.left(now)),
            attach_epoch: self.attach_epoch(),
            config: facts.config,
            se: facts.se,
            iss: facts.iss,
            trk: facts.trk,
            loss: facts.loss,
            upto: store.map_or(Idx(0), Store::upto),
            w: facts.w,
            tidx: store.map_or(Idx(0), Store::tidx),
            max_idx: store.map_or(Idx(0), Store::max_idx),
            commit: self.commit,
            tainted: facts.tainted,
            sealed: facts.sealed,
            window_slots: store.map_or(0, Store::window_slots),
            window_used: store.map_or(0, Store::window_count),
            al_used: u64::try_from(al_used).unwrap_or(u64::MAX),
            dirty_bytes,
            need_bytes: map_bytes(MapName::Need),
            limbo_bytes: map_bytes(MapName::Limbo),
            allocated_bytes: map_bytes(MapName::Allocated),
            free_extents: store.map_or(0, Store::free_extents),
            sessions: self.sessions.iter().filter(|s| s.is_ready()).count(),
            guests: self.sessions.iter().filter(|s| s.is_guest()).count(),
            disk_in_flight: self.timing.in_flight,
            counters: self.counters,
            store: store.map(Store::counters).unwrap_or_default(),
            latencies: self.timing.latencies.clone(),
        }
    }

    fn role(&self, facts: &Facts) -> Role {
        if self.is_failed() {
            Role::Failed
        } else if self.is_stopping() {
            Role::Stopping
        } else if self.store().is_none() {
            Role::Opening
        } else if facts.is_retired() {
            Role::Retired
        } else if facts.is_witness() {
            Role::Witness
        } else if facts.iss.contains(facts.member) {
            Role::InSync
        } else if facts.trk.contains(facts.member) {
            Role::Rebuilding
        } else {
            Role::Out
        }
    }
}
