//! Who holds the canonical value of a block, block by block, for when its source cannot be read.
//!
//! D (R4) counts in chunks, as repairs do: a write to one block has its whole chunk repaired. Its
//! other blocks are the same everywhere all the same, and even that block is good at each witness
//! that has accepted what the source has.

use super::MemberMaps;
use alloc::vec::Vec;
use trilith_block::{BlockRange, MemberId, MemberSet};
use trilith_wire::{SlotStatus, WindowRecord};

/// What a plan knows of single blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Copies {
    /// Everyone whose maps are kept.
    pub(super) members: MemberSet,
    /// Q.
    pub(super) voters: MemberSet,
    /// Complete members of Tm whose windows are valid.
    pub(super) witnesses: MemberSet,
    /// D without what windows bring to it: `need`, dirty maps, activity logs of void members.
    pub(super) apart: MemberMaps,
    /// The windows of Q.
    pub(super) records: Vec<(MemberId, WindowRecord)>,
}

impl Copies {
    /// True when `member` holds the canonical value of all of `range`: nothing but windows says
    /// that it may differ there, and no window has an entry over it; or, for one block, the member
    /// is a witness that has accepted the highest entry that any witness has accepted over it (that
    /// is the source by R3 as well) and has begun no later one.
    pub(super) fn holds(&self, member: MemberId, range: BlockRange) -> bool {
        if !self.voters.contains(member) || self.apart.get(member).touches(range) {
            return false;
        }
        let over = || {
            let all = self.records.iter();
            all.filter(move |(_, record)| record.range.overlaps(range))
        };
        if over().next().is_none() {
            return true;
        }
        if range.count.0 != 1 || !self.witnesses.contains(member) {
            return false;
        }
        let accepted = |r: &WindowRecord| r.status == SlotStatus::Accepted;
        let top = over()
            .filter(|(of, record)| self.witnesses.contains(*of) && accepted(record))
            .map(|(_, record)| record.idx)
            .max();
        let own = || over().filter(|(of, _)| *of == member);
        let has_top = own().any(|(_, record)| Some(record.idx) == top && accepted(record));
        has_top && own().all(|(_, record)| Some(record.idx) <= top)
    }
}
