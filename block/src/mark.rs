//! Coverage marks: situations that the simulator must reach, each named where the code meets it.
//!
//! [`reached`] does nothing without the feature `proof`. With it, it counts, and the simulator
//! tells which marks were hit and fails when one was not (`cargo ci sim`).

#[cfg(feature = "proof")]
use core::sync::atomic::{AtomicU64, Ordering};

macro_rules! marks {
    ($($variant:ident $text:literal,)*) => {
        /// A situation that is worth reaching.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum Mark {
            $(#[doc = $text] $variant,)*
        }

        impl Mark {
            /// All of them.
            pub const ALL: &'static [Mark] = &[$(Mark::$variant,)*];

            /// What happened.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Mark::$variant => $text,)*
                }
            }
        }
    };
}

marks! {
    // Election and recovery.
    LossyRecovery "a lossy recovery is planned (R2)",
    AllTainted "no member of a plan has a valid window",
    UnionFromOne "the merge takes blocks from one member beside the base (R3)",
    UnionFromTwo "the merge takes blocks from two members beside the base (R3)",
    TaintedBase "the base is tainted in a clean recovery (C1)",
    LoneEpoch "a tainted replica that alone holds an epoch of its own does not make a recovery lossy (W10)",
    LeftBehindWaits "with a witness: no replica that is here has what the other one acknowledged (W9)",
    GoesOnAlone "with a witness: a replica is left behind, and that is in force (W2, W6)",
    InForceByTelling "with a witness: the record of who is told puts an epoch in force (W8)",
    ShrunkBeforeOpened "with a witness: a member of the first in-sync set is gone before it is in force (W6)",
    OpenedWithoutWitness "with a witness: a term is opened while it is away (W12)",
    KnownByDemotion "a tainted member that was demoted does not make a recovery lossy (M7)",
    WaitsForMore "a lossy recovery waits for more members",
    RecoveryFailed "a recovery starts again",
    RecoveryReadElsewhere "the source of a repair could not be read",
    OtherBase "another member takes the base's place for a block (C26)",
    FailedSlotHealed "a failed slot is written again before the term starts (C14)",
    LeftOutOfFirstSet "a member is left out of the first in-sync set (R6)",
    LateVoter "a member promises after the term has started (R11)",
    CalledBack "a plan that waits for more promises meets a voter of another engine (C44)",
    SplitVote "a replica gave its vote of the running term to another (C11)",
    LeaderAlive "a PREVOTE is refused as a leader is alive (5.2)",
    TakenOverLease "a higher attach epoch takes over a running lease (M11)",
    Fenced "an engine meets a higher attach epoch (M12)",
    VoteOvertaken "a vote under way is overtaken by a higher term",
    VoteDrains "a vote waits for writes in flight (V3)",
    VoteAgain "the same vote is asked for again",
    AckDeferred "an acknowledgement waits for an older lease (5.5)",
    LeaseRestored "a lease survives the restart of its replica (M14)",
    RebuildCutByTerm "a term ends while a rebuild runs",
    FlushCutByTerm "a term ends while a flush waits",
    Reissued "a write gets a place in a second term",
    // Members.
    Demoted "a member is demoted (5.4)",
    DemotedByLag "a member is demoted as it lags (M9)",
    DemotedWhileFlushWaits "a member is demoted while a flush waits",
    DemotedWhileJoining "a member is demoted before it has acknowledged its join",
    D1Waits "a member is not told yet that it is out (D1)",
    JoinWaitsForC0 "a join waits for tidx to pass c0 (5.4)",
    Untracked "a member being rebuilt is taken out of trk",
    Resumed "a member returns in the same term and gets what it lacks (6.1)",
    TaintedReturns "a member of the in-sync set returns without its window (6.2)",
    HealedInPlace "a tainted member is healed in place and joins over the gap (C9)",
    FlushAskedAgain "a flush without an answer is asked for again (C12)",
    LostBeforeOpen "a member loses its window between its term start and the opening (C28)",
    LossHandedOn "a member that missed the term start is told the loss epoch (C22)",
    ClearOwed "a member that was away is owed a DIRTYCLEAR",
    // Rebuild.
    CopyVoided "a write voids a copy on its way (M4)",
    LockTimedOut "a chunk lock is given back before the copy has ended (M4)",
    LockDenied "a chunk lock is denied (C13)",
    LockBehindWrite "a chunk lock waits behind a write in the gate",
    WriteBehindLock "a write waits behind a chunk lock",
    CopyFailed "the target of a rebuild refuses a copy",
    // Requests.
    WindowFull "a request waits for room in the window",
    NoRoom "a request ends for want of space (M3)",
    MergeFromMemory "an unaligned write is merged from a payload in memory (M19)",
    MergeFromDisk "an unaligned write is merged from a replica (M19)",
    MergeQueued "a write waits behind a merge in the gate (M19)",
    Parked "a long request waits for its own parts (M20)",
    HeldRequestsEnd "requests end as a loss is accepted (C10)",
    LossBeforeTaken "an engine waits for a loss to be accepted (M8)",
    // Reads.
    ReadWaitsForWrite "a read waits for an overlapping write (4.3 step 1)",
    ReadOvertaken "an overlapping write was sent during a read (4.3 step 4)",
    ReadSourceLost "the member that answered a read no longer counts (4.3 step 4)",
    ReadIndex "a read without a lease asks a majority (4.3 step 5)",
    Hedged "a slow read is sent to a second member",
    ReadRepair "blocks that one member could not read are written again",
    ReadByGrant "a read is served by an exclusivity grant (RO-M)",
    // Scrub.
    ScrubRaced "copies that differed without a lock are equal under one (C24)",
    ScrubTouched "a write reaches a chunk while its copies are compared (C24)",
    ScrubLockExpired "the lock of a chunk that is compared is given back (M4)",
    ScrubCut "a comparison is given up as a member or the term is lost",
    ScrubRepair "an odd copy is written again (C24)",
    // The store.
    OverlapWaits "an entry waits for an overlapping one (O1)",
    EntryFailed "a device refuses an entry (M3)",
    FailedAbandoned "failed entries are given up for a barrier or a vote",
    EntrySkipped "an entry comes without its payload",
    DiscardOfHole "a discard of nothing ends without the log (M20)",
    QueuedBehindBarrier "an entry waits behind a full barrier",
    LogFull "a change waits for a slot of the activity log (M1)",
    LogEvicted "an extent leaves the activity log (L2)",
    LogEvictionWaitsForFlush "an eviction waits for a flush (L2 c)",
    RingWrapped "the journal ring starts again at its first block",
    RingFull "the journal waits for a checkpoint (J3)",
    FlushFailed "a flush of the data fails (F2)",
    WindowResumed "a window is taken over (6.1)",
    WindowLost "a window is lost without a clean stop (2.1)",
    SealedStart "a replica starts after a clean stop without its window",
    SlotTorn "a slot was being stored when the process died (M6)",
    KilledBeforeReset "a process died between the record of a term start and its window",
    KilledBeforeMarker "a process died between the record of a SYNCSET and its slot",
}

#[cfg(feature = "proof")]
static COUNTS: [AtomicU64; Mark::ALL.len()] = [const { AtomicU64::new(0) }; Mark::ALL.len()];

/// The situation is here.
#[cfg(feature = "proof")]
#[inline]
pub fn reached(mark: Mark) {
    COUNTS[mark as usize].fetch_add(1, Ordering::Relaxed);
}

/// The situation is here: not counted, in this build.
#[cfg(not(feature = "proof"))]
#[inline]
pub const fn reached(_mark: Mark) {}

/// [`reached`] when `here`; gives `here` back.
#[inline]
pub fn reached_if(here: bool, mark: Mark) -> bool {
    if here {
        reached(mark);
    }
    here
}

/// How often this process has reached a mark.
#[cfg(feature = "proof")]
pub fn count(mark: Mark) -> u64 {
    COUNTS[mark as usize].load(Ordering::Relaxed)
}
