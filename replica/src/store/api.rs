//! What callers hand to the store and what they get back.

use super::disk::DiskError;
use alloc::boxed::Box;
use trilith_block::limits::MEMBERS_MAX;
use trilith_block::{
    BlockRange, BufSlice, ChunkMap, Idx, MemberId, MemberSet, Monotonic, SyncEpoch, Term, Uuid,
};

/// Names a call in its event. Chosen by the caller, opaque to the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// What a data entry or a repair does to its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Writes the payload; its length is the range's. The store retains the buffer itself.
    Write(BufSlice),
    /// Makes it read zero and keeps the space.
    Zeroes,
    /// Makes it read zero and gives the space back.
    Discard,
    /// Nothing: the payload was not sent to this replica. The slot becomes Skipped, which counts as
    /// accepted. Only for entries.
    HeaderOnly,
}

/// A data entry of the stream (WRITE, ZEROES, DISCARD).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its position.
    pub idx: Idx,
    /// Its blocks, within one extent and within the volume.
    pub range: BlockRange,
    /// What it does.
    pub change: Change,
    /// Members that are not sent the payload: their dirty bits are set before anything else.
    pub skip: MemberSet,
}

/// What became of an entry handed in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// [`StoreEvent::Accepted`] or [`StoreEvent::EntryFailed`] will come (perhaps it already did,
    /// within the call). Also for a resent entry that is still on its way.
    Taken,
    /// Accepted before: ack it again, nothing is written.
    Duplicate,
}

/// Why a call is refused. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreError {
    /// The store failed (a metadata write or a flush): final (F2). The replica only votes no more;
    /// the process restarts tainted.
    Failed,
    /// The entry lies more than a window beyond tidx: the engine broke its credits.
    WindowFull,
    /// Empty range, a range that crosses an extent or leaves the volume, or a payload of another
    /// length.
    Range,
    /// Too many calls wait ([`super::limits::CALLS_MAX`]).
    Busy,
    /// An entry failed here and has not been repaired: no FLUSH, SYNCSET or TERMSTART (M3).
    FailedEntry,
}

/// New term (R7).
#[derive(Clone, Debug)]
pub struct TermStart {
    /// The term; at least the promised one (the caller has checked).
    pub term: Term,
    /// w, upto and tidx become this.
    pub start: Idx,
    /// The first in-sync set, also the tracked set.
    pub iss: MemberSet,
    /// Loss epoch; taken over when higher.
    pub loss: u32,
    /// Chunks that become limbo.
    pub limbo: ChunkMap,
    /// The new dirty maps by member.
    pub dirty: Box<[ChunkMap; MEMBERS_MAX]>,
}

/// New sync epoch within a term (5.4), an entry of the stream.
#[derive(Clone, Debug)]
pub struct SyncSet {
    /// Its position.
    pub idx: Idx,
    /// The epoch.
    pub se: SyncEpoch,
    /// The new in-sync set.
    pub iss: MemberSet,
    /// The new tracked set.
    pub trk: MemberSet,
    /// Set when this replica is the one that joins: what it takes over.
    pub join: Option<Join>,
}

/// What a joining replica takes over.
#[derive(Clone, Debug)]
pub struct Join {
    /// Chunks that become limbo; the rest of `need` is dropped.
    pub limbo: ChunkMap,
    /// The new dirty maps by member.
    pub dirty: Box<[ChunkMap; MEMBERS_MAX]>,
}

/// This replica is out of the in-sync set (TOLD).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    /// Current epoch.
    pub se: SyncEpoch,
    /// Current in-sync set.
    pub iss: MemberSet,
    /// Current tracked set.
    pub trk: MemberSet,
    /// upto and tidx become this.
    pub start: Idx,
}

/// The last lease granted (M14).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LeaseGrant {
    /// When it ends (CLOCK_BOOTTIME).
    pub until: Monotonic,
    /// To whom; none when none runs.
    pub engine: Uuid,
}

/// What happened. A call that names a [`Token`] is answered exactly once, unless the store fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreEvent {
    /// The entry is accepted: at the device, slot ACC. `upto` may have moved ([`super::Store::upto`]).
    Accepted {
        /// Its position.
        idx: Idx,
    },
    /// The device refused the entry: slot Failed. It holds its range until it is sent again or the
    /// window is dropped.
    EntryFailed {
        /// Its position.
        idx: Idx,
        /// Why.
        error: DiskError,
    },
    /// A repair ended.
    Repaired {
        /// Of the call.
        token: Token,
        /// How.
        result: Result<(), DiskError>,
    },
    /// All flushes up to `idx` are answered: on stable media, and W durable when this replica is in
    /// its in-sync set.
    Flushed {
        /// Highest flush answered.
        idx: Idx,
    },
    /// A read ended. `Ok(true)`: all blocks are zeroes and the buffer was not touched.
    ReadDone {
        /// Of the call.
        token: Token,
        /// How.
        result: Result<bool, DiskError>,
    },
    /// The change is durable (vote, term start, sync set, told, reconcile, need set, seal), or the
    /// drain is over.
    Done {
        /// Of the call.
        token: Token,
    },
    /// A term start is not done: an entry failed here and has not been repaired (M3).
    Refused {
        /// Of the call.
        token: Token,
    },
    /// The store failed: final. Nothing that waits is answered any more.
    Failed {
        /// What failed, for the log.
        cause: FailCause,
    },
}

/// What made a store fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailCause {
    /// A journal write.
    Journal(DiskError),
    /// A checkpoint or superblock write.
    Checkpoint(DiskError),
    /// A flush of the data (F2).
    DataFlush(DiskError),
}

/// A map of chunks that the store keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum MapName {
    /// Chunks of this replica that may differ from the rest.
    Need,
    /// Chunks whose value is not agreed yet. Counts as need towards others.
    Limbo,
    /// Chunks that may hold anything but zeroes.
    Allocated,
    /// Chunks that a member may lack.
    Dirty(MemberId),
}

/// Counters since open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Changes of an extent in the activity log.
    pub al_hits: u64,
    /// Changes of an extent that had to be added first.
    pub al_misses: u64,
    /// Extents that left the activity log.
    pub al_evictions: u64,
    /// Journal writes.
    pub journal_writes: u64,
    /// Journal blocks written.
    pub journal_blocks: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// Flushes of the data.
    pub data_flushes: u64,
    /// Bytes written to the data.
    pub bytes_written: u64,
    /// Bytes read from the data.
    pub bytes_read: u64,
    /// Bytes punched or zeroed.
    pub bytes_zeroed: u64,
    /// Extents allocated.
    pub extents_allocated: u64,
    /// Changes that failed.
    pub changes_failed: u64,
    /// Reads that found a block that is not what was written there.
    pub reads_rotten: u64,
    /// Reads begun anew, as a change overtook them and their blocks could not be judged.
    pub reads_again: u64,
    /// Pages of checksums read and written.
    pub checksum_pages: u64,
}
