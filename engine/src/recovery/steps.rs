//! What a recovery wants done, what can happen to it, and how it ends.

use core::time::Duration;
use trilith_block::{BlockRange, BufSlice, Idx, MemberId, MemberSet};
use trilith_wire::EntryStatus;

/// Sizes and times of a recovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecoveryConfig {
    /// Chunks being read or repaired at once (each at most 64 KiB of buffer).
    pub chunks_in_flight_max: usize,
    /// Nothing was answered for this long: who owes an answer counts as lost.
    pub stall: Duration,
}

impl Default for RecoveryConfig {
    fn default() -> Self {
        RecoveryConfig {
            chunks_in_flight_max: 64,
            stall: Duration::from_secs(10),
        }
    }
}

/// What a recovery wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecoveryStep {
    /// Send the map [`super::Recovery::need`] of this member in MAP(Need) pieces, then RECONCILE. The map
    /// may be empty (the loss epoch alone is to be remembered).
    Reconcile {
        /// To whom.
        member: MemberId,
        /// Loss epoch.
        loss: u32,
    },
    /// Send READ; answer with [`RecoveryEvent::ReadDone`].
    Read {
        /// From whom.
        member: MemberId,
        /// Blocks of one chunk.
        range: BlockRange,
        /// Names the answer.
        token: u64,
    },
    /// Send REPAIR (rebuild = false). One owner of the buffer passes to the engine. The same token
    /// is used for every target of the same blocks.
    Repair {
        /// To whom.
        member: MemberId,
        /// Blocks of one chunk.
        range: BlockRange,
        /// Names the answer, together with the member.
        token: u64,
        /// The bytes; `None`: zeroes.
        data: Option<BufSlice>,
    },
    /// Send [`super::Recovery::limbo`] as MAP(Limbo), [`super::Recovery::dirty`] of each voter outside `iss` as
    /// MAP(Dirty), then TERMSTART.
    TermStart {
        /// To whom.
        member: MemberId,
        /// Its position.
        start: Idx,
        /// The first in-sync set.
        iss: MemberSet,
        /// Loss epoch.
        loss: u32,
    },
    /// The end. Nothing follows.
    Done(Outcome),
    /// The end. Nothing follows; all buffers are released.
    Failed(Failure),
}

/// A recovery that worked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The in-sync set of the new term's epoch 0. A member of it that is not in `counted` was lost
    /// on the way and is to be demoted; it may lack [`super::Recovery::dirty`].
    pub iss: MemberSet,
    /// Members that hold the term start durably (R8): a majority of the voters = Active, send
    /// OPENED; fewer = read-only.
    pub counted: MemberSet,
    /// Position of the TERMSTART.
    pub start: Idx,
    /// Loss epoch.
    pub loss: u32,
    /// Acknowledged but unflushed writes may be gone.
    pub lossy: bool,
}

/// Why a recovery ended early. In each case the engine starts again with a new vote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// A member that the plan cannot do without was lost.
    MemberLost(MemberId),
    /// Too few members are left to repair, or to remember the loss epoch.
    TooFew,
    /// The only copy of these blocks could not be read, and too few members can do without.
    Unreadable(MemberId, BlockRange),
}

/// What a READ brought. The buffer passes to the recovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadData {
    /// The bytes, exactly as many as asked for.
    Bytes(BufSlice),
    /// Zeroes.
    Zero,
}

/// What can happen to a recovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecoveryEvent {
    /// RECONCILEDONE.
    ReconcileDone(MemberId),
    /// DATA, or a refusal.
    ReadDone {
        /// Of the read.
        token: u64,
        /// What came.
        result: Result<ReadData, EntryStatus>,
    },
    /// REPAIRDONE.
    RepairDone {
        /// From whom.
        member: MemberId,
        /// Of the repair.
        token: u64,
        /// How it ended.
        status: EntryStatus,
    },
    /// TERMSTARTDONE.
    TermStartDone(MemberId),
    /// Its session ended. What it owed never comes.
    MemberLost(MemberId),
}
