//! What a scrub is told, wants done, and tells.

use crate::rebuild::CopyData;
use alloc::vec::Vec;
use core::time::Duration;
use trilith_block::{BlockRange, Blocks, BufSlice, MemberId, MemberSet, Membership, Monotonic};
use trilith_wire::EntryStatus;

/// How often and how fast.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScrubConfig {
    /// Bytes of the volume compared per second at most; 0: there is no scrub at all.
    pub bytes_per_second_max: u64,
    /// Time from the end of one to the start of the next. The first starts at some time within it.
    /// `None`: only on demand.
    pub every: Option<Duration>,
    /// How long a range lock may be held (M4).
    pub lock_hold: Duration,
}

impl Default for ScrubConfig {
    fn default() -> ScrubConfig {
        ScrubConfig {
            bytes_per_second_max: crate::limits::SCRUB_BYTES_PER_SECOND,
            every: None,
            lock_hold: crate::limits::COPY_LOCK_MAX,
        }
    }
}

/// Who is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compared {
    /// All of the voters; each counts and can be reached.
    pub members: MemberSet,
    /// Who decides.
    pub membership: Membership,
    /// Size of the volume in bytes.
    pub capacity_bytes: u64,
}

/// What a scrub wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScrubStep {
    /// Send EXTENTHASH to these members; answer Digests for each.
    Ask {
        /// Names the question.
        token: u64,
        /// The blocks.
        range: BlockRange,
        /// What a digest is of.
        unit: Blocks,
        /// Key of the digests.
        seed: u64,
        /// Whom.
        members: MemberSet,
    },
    /// Hold new client writes that overlap the range; answer LockGranted once those in flight are
    /// accepted by all members, or LockDenied.
    Lock {
        /// Names the lock.
        token: u64,
        /// Within one chunk.
        range: BlockRange,
    },
    /// Let client writes go on, or forget the lock. Sent once for each lock that was not denied.
    Unlock {
        /// The lock.
        token: u64,
    },
    /// READ from one of these members.
    Read {
        /// Names the answer.
        token: u64,
        /// The blocks.
        range: BlockRange,
        /// Any of them.
        from: MemberSet,
    },
    /// Give these blocks a place in the stream now, for all members, and ask for a flush. Answer
    /// Rewritten once all members have flushed it, or Rewritten with false when it was not issued.
    /// One owner of the buffer passes on.
    Rewrite {
        /// Names the answer.
        token: u64,
        /// The blocks.
        range: BlockRange,
        /// Their bytes; `None`: zeroes.
        data: Option<BufSlice>,
    },
    /// Tell whoever wants to know.
    Tell(ScrubNews),
}

/// What is worth a line in a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScrubNews {
    /// The copies of the volume are being compared.
    Started,
    /// Copies differ.
    Differs(Difference),
    /// All of the volume has been compared.
    Finished(ScrubResult),
}

/// Blocks whose copies differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The blocks.
    pub range: BlockRange,
    /// The members whose copies are wrong and are written again. None: nobody knows which is right,
    /// and nothing is changed.
    pub odd: MemberSet,
}

/// What happened to a scrub's steps.
#[derive(Clone, Copy, Debug)]
pub enum ScrubEvent<'a> {
    /// An answer to [`ScrubStep::Ask`].
    Digests {
        /// The question.
        token: u64,
        /// Who answers.
        member: MemberId,
        /// The digests; `Io` or `Checksum` when a copy cannot be read, any other status when it cannot be asked now.
        result: Result<&'a [u8], EntryStatus>,
    },
    /// The lock is held.
    LockGranted(u64),
    /// The lock cannot be had now; there is none.
    LockDenied(u64),
    /// What a READ brought. The buffer passes to the scrub.
    ReadDone {
        /// The read.
        token: u64,
        /// What it brought.
        result: Result<CopyData, EntryStatus>,
    },
    /// The end of [`ScrubStep::Rewrite`].
    Rewritten {
        /// The rewrite.
        token: u64,
        /// It was issued.
        done: bool,
    },
}

/// Counts of a scrub, or of all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubResult {
    /// Bytes of the volume compared.
    pub bytes: u64,
    /// Blocks whose copies were not equal.
    pub differences: u64,
    /// Those that are equal since they were written again.
    pub repaired: u64,
    /// Those that are not equal still: no majority, or the repair does not hold.
    pub unresolved: u64,
    /// Chunks that differed without a lock and could not be had with one: too busy.
    pub skipped: u64,
}

impl ScrubResult {
    pub(super) fn add(&mut self, other: ScrubResult) {
        self.bytes += other.bytes;
        self.differences += other.differences;
        self.repaired += other.repaired;
        self.unresolved += other.unresolved;
        self.skipped += other.skipped;
    }
}

/// A scrub that has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finished {
    /// When.
    pub at: Monotonic,
    /// How long it took.
    pub took: Duration,
    /// What it found.
    pub result: ScrubResult,
}

/// What there is to show.
#[derive(Clone, Debug, Default)]
pub struct ScrubStatus {
    /// Scrubs are not switched off.
    pub enabled: bool,
    /// One runs: bytes of the volume that are behind it.
    pub position_bytes: Option<u64>,
    /// It rests until all voters are in sync again, with no rebuild and no change of members.
    pub resting: bool,
    /// What the running one has found so far.
    pub running: ScrubResult,
    /// How many have ended since the engine started.
    pub finished: u64,
    /// The last one that ended since the engine started, and how long ago.
    pub last: Option<(Finished, Duration)>,
    /// Of all since the engine started.
    pub totals: ScrubResult,
    /// Time to the next.
    pub next_in: Option<Duration>,
    /// The last blocks that are unresolved, of the running or the last one; at most
    /// [`super::DIFFERENCES_MAX`].
    pub unresolved: Vec<BlockRange>,
    /// Rate of the running one now.
    pub bytes_per_second: u64,
}
