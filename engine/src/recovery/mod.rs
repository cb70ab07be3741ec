//! From promises to an open term: rules R1 to R9 of `docs/protocol.md` (5.3), amendments M2, M3 and
//! M7.
//!
//! [`plan`] computes, from what a majority promised, what the volume holds (a pure function, the
//! part that the proofs speak of). [`Recovery`] carries a plan out: RECONCILE, REPAIR, TERMSTART.
//! Both are owned by the engine; neither sends a frame itself. What may fail: a member on the way
//! (it is left out, or the engine starts again with a new vote).

use alloc::vec::Vec;
use trilith_block::limits::MEMBERS_MAX;
use trilith_block::{ChunkMap, MemberId};
use trilith_wire::{ReplicaState, WindowRecord};

mod copies;
mod executor;
mod overlay;
mod plan;
mod steps;
mod unread;

pub use executor::Recovery;
pub use overlay::Override;
pub(crate) use plan::clip;
pub use plan::{Blocked, LOSSY_WAIT_DEFAULT, Plan, Policy, SMALL_BYTES_DEFAULT, plan};
pub use steps::{Failure, Outcome, ReadData, RecoveryConfig, RecoveryEvent, RecoveryStep};

#[cfg(test)]
mod copies_tests;
#[cfg(test)]
mod executor_tests;
#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod witness_tests;

/// One chunk map for each member.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemberMaps {
    maps: [ChunkMap; MEMBERS_MAX],
}

impl MemberMaps {
    /// Empty maps.
    pub fn new() -> MemberMaps {
        MemberMaps::default()
    }

    /// The map of a member.
    pub fn get(&self, member: MemberId) -> &ChunkMap {
        &self.maps[member.index()]
    }

    /// The map of a member, to be changed.
    pub fn get_mut(&mut self, member: MemberId) -> &mut ChunkMap {
        &mut self.maps[member.index()]
    }
}

/// What one voter promised, fetched in full (PROMISE, then GETMAP of each map). Nothing in it is
/// trusted beyond what the rules need: chunks outside the volume and records of them are ignored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Promise {
    /// Who.
    pub member: MemberId,
    /// State after its drain (V4).
    pub state: ReplicaState,
    /// Its window, in any order.
    pub window: Vec<WindowRecord>,
    /// Its activity log (all ones per extent).
    pub al: ChunkMap,
    /// Its chunks that may differ from the rest.
    pub need: ChunkMap,
    /// Chunks that each other member may lack, as far as it knows.
    pub dirty: MemberMaps,
}
