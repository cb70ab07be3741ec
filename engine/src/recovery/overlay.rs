//! R3 per block: where the canonical value of a block is, when it is not at the base.

use trilith_block::{BlockRange, MemberId};

/// Blocks whose canonical value is at `source`, not at the base.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Override {
    /// The blocks; within one extent.
    pub range: BlockRange,
    /// Who holds their canonical value.
    pub source: MemberId,
}
