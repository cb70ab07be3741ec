//! Rules broken on purpose, to prove that the checks notice: see docs/verification.md.
//!
//! A rule's code asks [`on`] whether it is the broken one. Without the feature `proof`, which only
//! the simulator's own build sets (`cargo ci mutants`), the answer is a constant and nothing of a
//! mutant is left in the program. With it one build holds all mutants, and the simulator chooses
//! one for the whole process.

#[cfg(feature = "proof")]
use core::sync::atomic::{AtomicU8, Ordering};

macro_rules! mutants {
    ($($variant:ident $name:literal $rule:literal,)*) => {
        /// A rule that can be broken. Names of rules are those of docs/protocol.md.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum Mutant {
            $(#[doc = $rule] $variant,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &'static [Mutant] = &[$(Mutant::$variant,)*];

            /// Its name on a command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Mutant::$variant => $name,)*
                }
            }

            /// The rule and how it is broken.
            pub const fn rule(self) -> &'static str {
                match self {
                    $(Mutant::$variant => $rule,)*
                }
            }
        }
    };
}

mutants! {
    AckBeforeMajority "ack_before_majority" "4.1: a write is committed by one member less than a majority",
    UncountedAck "uncounted_ack" "4.1: acks of members that do not count commit as well",
    FlushByFewer "flush_by_fewer" "4.2: a flush is answered by one member less than a majority",
    FuaWithoutFlush "fua_without_flush" "4.1: a FUA write is answered without its flush",
    LimboReadable "limbo_readable" "R6, R9: a term opens, and reads, before limbo is equal at a majority",
    StaleLeaseRead "stale_lease_read" "5.5, 4.3 step 5: a lease does not end, reads go on without one",
    LeaseNotWaitedFor "lease_not_waited_for" "5.5: a successor acknowledges before the old lease is over",
    ReadUnverified "read_unverified" "4.3 step 4: a read does not wait for an overlapping write sent since",
    ReadFromLaggard "read_from_laggard" "4.3 step 2: a member that lacks an overlapping entry is read",
    ToldBeforeD1 "told_before_d1" "D1: a member is told that it is out before the SYNCSET is durable",
    D1ByOlderEpoch "d1_by_older_epoch" "D1: acknowledgements of an older epoch count",
    LongestWindow "longest_window" "R3: the longest window wins, no union",
    BaseIgnoresEpoch "base_ignores_epoch" "R3, T13: the base is chosen without its sync epoch",
    AnyBaseOfBlock "any_base_of_block" "C26: any voter may take the base's place for a block",
    TaintIgnored "taint_ignored" "R2, T1: a tainted member is believed",
    UntaintedBaseFirst "untainted_base_first" "C1: a valid window beats a higher epoch",
    NeedNotPersisted "need_not_persisted" "R5: repairs begin without a durable need",
    LossyWithoutEpoch "lossy_without_epoch" "R2, M8: a lossy recovery does not raise the loss epoch",
    LostBeforeOpenCounts "lost_before_open_counts" "C28: who lost its window between its term start and the opening counts",
    LossForgotten "loss_forgotten" "C3: the loss epoch need not be durable at a majority",
    JoinBeforeC0 "join_before_c0" "5.4: a member joins while tidx is below its c0",
    MapsNotHandedOver "maps_not_handed_over" "5.4: a joining member is not given the dirty maps",
    WindowCutAtCommit "window_cut_at_commit" "I13: tidx does not wait for laggards",
    CopyNotVoided "copy_not_voided" "6.6, M4: a write during a copy does not void it",
    ScrubWithoutLock "scrub_without_lock" "C24: copies are judged, and written again, while writes are in flight",
    ScrubFromMinority "scrub_from_minority" "C24: the copy of the fewest members is taken for the right one",
    RebuildWithoutLock "rebuild_without_lock" "6.6: copies are read while writes are in flight",
    RebuildAsksOneSource "rebuild_asks_one_source" "C25: a rebuild asks nobody else for what its source cannot read",
    HealBehindGate "heal_behind_gate" "C29: healing in place waits for what waits for a majority",
    ClearedBeforeCopy "cleared_before_copy" "6.6: dirty bits are cleared when the copy is sent, before it is durable",
    MergeWithoutGate "merge_without_gate" "M19: other writes pass while a block is being merged",
    RequestsAfterLoss "requests_after_loss" "C10: requests survive an accepted loss",
    FlushNotAskedAgain "flush_not_asked_again" "C12, C21: a flush without an answer is not asked for again",
    RoomNotReserved "room_not_reserved" "M3: writes are admitted without room",
    VoteNotPersisted "vote_not_persisted" "V1: a vote is told before it is durable",
    NoDrain "no_drain" "V3: PROMISE does not wait for writes in flight",
    LowerTermAccepted "lower_term_accepted" "I3: frames of a lower term are taken",
    AttachEpochIgnored "attach_epoch_ignored" "5.1, M12: attach epochs are ignored, by replicas and engines",
    LeaseForgotten "lease_forgotten" "M14: a restarted replica reports no lease",
    SkipNotMarked "skip_not_marked" "4.1 step 3: what a peer is not sent is not marked",
    OverlapIgnored "overlap_ignored" "O1: overlapping entries run at once",
    ResendOvertakes "resend_overtakes" "O1: a failed entry does not hold its range until it is sent again",
    DiscardWithoutWaiting "discard_without_waiting" "O1, 4.4: a discard does not wait for earlier writes",
    WatermarkBeforeFlush "watermark_before_flush" "F1: the watermark is recorded when the flush begins",
    FlushFailureIgnored "flush_failure_ignored" "F2: a failed flush is taken for a good one",
    LogAfterData "log_after_data" "L1: data is written before the extent is in the durable log",
    EvictedBeforeFlush "evicted_before_flush" "L2 (c): an extent leaves the log before a flush",
    ChecksumsNotSaved "checksums_not_saved" "B1: an extent leaves the log with an old page of checksums",
    ChecksumsNotVoided "checksums_not_voided" "B2: pages of what a power loss took from the log stay",
    ChecksumsNotSuspended "checksums_not_suspended" "2.5: a read that a write overtakes is judged",
    RacedReadUnjudged "raced_read_unjudged" "2.5: of a read that a write overtakes in part no block is judged",
    EvictedAboveTidx "evicted_above_tidx" "L2 (b): an extent leaves the log with entries above tidx",
    MapsNotEvicted "maps_not_evicted" "L2 (d): an extent leaves the log before its maps are durable",
    JournalRewritten "journal_rewritten" "J1: a partly filled journal block is written again",
    RingReusedEarly "ring_reused_early" "J3: the ring is used again before a checkpoint stands",
    WindowNotConverted "window_not_converted" "5.4: SYNCSET does not turn window slots into dirty bits",
    TermStartUnflushed "term_start_unflushed" "R7: TERMSTART does not flush the data",
    UntaintedRestart "untainted_restart" "T21: a replica that lost its window restarts untainted",
    TaintForgetsLog "taint_forgets_log" "M2: a taint does not turn the activity log into need",
    JointIgnored "joint_ignored" "C20: in a joint configuration the old voters decide alone",
    LossNotHandedOn "loss_not_handed_on" "C22: a newcomer votes without knowing the loss epoch",
    OwedWhateverCame "owed_whatever_came" "C45: a DIRTYCLEAR that was missed is made up for whatever is lacked again",
    ConfigNotAskedAgain "config_not_asked_again" "C27: an engine that waits for replicas keeps the configuration that it has",
    BlankHeard "blank_heard" "T18: an empty replica is listened to",
    WitnessIgnoredInBase "witness_ignored_in_base" "W9: what the witness says of who is in sync is left out",
    BaseLeftBehind "base_left_behind" "W9: who the newest epoch does not name may be the base",
    LoneEpochClean "lone_epoch_clean" "W10: a tainted replica that alone holds its epoch is clean though one is missing",
    LoneEpochApart "lone_epoch_apart" "W10, W2: an epoch that only its base has is not taken for one with the one before of the same set",
    InForceByFewer "in_force_by_fewer" "W2: an epoch is in force without a majority of the voters",
    CommitsBeforeInForce "commits_before_in_force" "W3: a shrink counts from its issue on",
    WitnessToldFirst "witness_told_first" "W4: the witness is told before those that it names",
    TidxUncommitted "tidx_uncommitted" "W5: tidx passes what is not committed",
    DemotedWithoutWitness "demoted_without_witness" "W6: a replica is demoted while the witness is away",
    FlushNotWaitedFor "flush_not_waited_for" "W7: who accepts and never flushes stays in sync",
    WitnessRecordVolatile "witness_record_volatile" "W1: the witness answers before its record is durable",
    NbdFuaDropped "nbd_fua_dropped" "NBD: the frontend does not pass FUA on",
    NbdFlushDropped "nbd_flush_dropped" "NBD: the frontend answers a flush by itself",
}

/// True in builds that hold mutants. No program that serves volumes may be one.
pub const COMPILED: bool = cfg!(feature = "proof");

#[cfg(feature = "proof")]
const NONE: u8 = u8::MAX;
#[cfg(feature = "proof")]
const UNKNOWN: u8 = u8::MAX - 1;
#[cfg(feature = "proof")]
static CHOSEN: AtomicU8 = AtomicU8::new(UNKNOWN);

/// For the tests of the crates, which know nothing of mutants: `TRILITH_MUTANT=name`.
#[cfg(feature = "proof")]
fn named_by_environment() -> Option<Mutant> {
    let name = std::env::var("TRILITH_MUTANT").ok()?;
    let found = Mutant::ALL.iter().find(|m| m.name() == name);
    assert!(found.is_some(), "no mutant is named {name}");
    found.copied()
}

/// Breaks one rule in the whole process, or none.
#[cfg(feature = "proof")]
pub fn choose(mutant: Option<Mutant>) {
    CHOSEN.store(mutant.map_or(NONE, |m| m as u8), Ordering::Relaxed);
}

/// True when this rule is to be broken.
#[cfg(feature = "proof")]
#[inline]
pub fn on(mutant: Mutant) -> bool {
    let chosen = CHOSEN.load(Ordering::Relaxed);
    if chosen == UNKNOWN {
        choose(named_by_environment());
        return on(mutant);
    }
    chosen == mutant as u8
}

/// True when this rule is to be broken: never, in this build.
#[cfg(not(feature = "proof"))]
#[inline]
pub const fn on(_mutant: Mutant) -> bool {
    false
}
