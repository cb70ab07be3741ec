//! Blocks that their source could not read and that have another one for that (C26): of which
//! chunks members have to be told again.

use crate::limits::SOURCE_CHANGES_MAX;
use trilith_block::{BlockRange, ChunkMap};

/// See above.
#[derive(Debug, Default)]
pub(super) struct Unread {
    changes: usize,
    /// Chunks of which members are being told.
    told: ChunkMap,
    /// Chunks of which they are to be told next.
    later: ChunkMap,
}

impl Unread {
    /// A block more may have another source.
    pub(super) fn may_change(&self) -> bool {
        self.changes < SOURCE_CHANGES_MAX
    }

    /// A block has another source.
    pub(super) fn changed(&mut self, block: BlockRange) {
        self.changes += 1;
        self.later.add_range(block);
    }

    /// True when members are to be told of something new, and nothing is on its way to them.
    pub(super) fn tell(&mut self) -> bool {
        if self.later.is_empty() || !self.told.is_empty() {
            return false;
        }
        core::mem::swap(&mut self.told, &mut self.later);
        true
    }

    /// All that have to know have been told; of what.
    pub(super) fn known(&mut self) -> ChunkMap {
        core::mem::take(&mut self.told)
    }

    /// Nothing is to be told.
    pub(super) fn is_settled(&self) -> bool {
        self.told.is_empty() && self.later.is_empty()
    }
}
