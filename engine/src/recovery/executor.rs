//! Carries a plan out: R5 (intent first), R6 (repair), R7 (TERMSTART), R8 (who counts).

use super::Plan;
use alloc::vec::Vec;
use core::time::Duration;
use trilith_block::{BlockRange, BufSlice, Buffers, ChunkMap, Idx, MemberId, MemberSet, Monotonic};
use trilith_wire::EntryStatus;

/// Sizes and times of a recovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecoveryConfig {
    /// Chunks being read or repaired at once (each at most 64 KiB of buffer).
    pub chunks_in_flight_max: usize,
    /// Nothing was answered for this long: the recovery fails and starts again.
    pub stall: Duration,
}

/// What a recovery wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecoveryStep {
    /// Send the map [`Recovery::need`] of this member in MAP(Need) pieces, then RECONCILE.
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
    /// Send [`Recovery::limbo`] as MAP(Limbo), [`Recovery::dirty`] of each voter outside `iss` as
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
    /// The in-sync set of the new term's epoch 0.
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
    /// The only copy of these blocks could not be read, and too few members can do without.
    Unreadable(MemberId, BlockRange),
    /// No answer came for too long.
    Stalled,
}

/// What a READ brought. The buffer passes to the recovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadData {
    /// The bytes.
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
    /// Its session ended. Reads it owed never end otherwise.
    MemberLost(MemberId),
}

/// The machine.
#[derive(Debug)]
pub struct Recovery {
    plan: Plan,
}

impl Recovery {
    /// A recovery by `plan`. Call [`Recovery::start`] next.
    pub fn new(plan: Plan, config: RecoveryConfig) -> Recovery {
        let _ = config;
        Recovery { plan }
    }

    /// The first steps.
    pub fn start(&mut self, now: Monotonic, data: &mut dyn Buffers, out: &mut Vec<RecoveryStep>) {
        let _ = (now, data, out);
    }

    /// One event in, a bounded number of steps out (appended to `out`). Events that name an unknown
    /// token are ignored, their buffers released.
    pub fn event(
        &mut self,
        now: Monotonic,
        event: RecoveryEvent,
        data: &mut dyn Buffers,
        out: &mut Vec<RecoveryStep>,
    ) {
        let _ = (now, event, data, out);
    }

    /// To be called when [`Recovery::deadline`] has passed.
    pub fn settle(&mut self, now: Monotonic, data: &mut dyn Buffers, out: &mut Vec<RecoveryStep>) {
        let _ = (now, data, out);
    }

    /// When [`Recovery::settle`] wants to be called at the latest.
    pub fn deadline(&self) -> Option<Monotonic> {
        None
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Gives the plan back.
    pub fn into_plan(self) -> Plan {
        self.plan
    }

    /// What RECONCILE makes `member` remember (R5).
    pub fn need(&self, member: MemberId) -> &ChunkMap {
        self.plan.differing.get(member)
    }

    /// The limbo of the new term.
    pub fn limbo(&self) -> &ChunkMap {
        &self.plan.limbo
    }

    /// Chunks that a voter outside the first in-sync set may lack.
    pub fn dirty(&self, member: MemberId) -> &ChunkMap {
        self.plan.differing.get(member)
    }
}
