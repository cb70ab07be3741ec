//! Who holds the canonical value of a block, block by block, for when its source cannot be read.
//!
//! D (R4) counts in chunks, as repairs do: a write to one block has its whole chunk repaired. Its
//! other blocks are the same everywhere all the same, and even that block is good at each witness
//! that has accepted what the source has (C25). Where nobody is known to be equal, another member
//! may take the base's place for a block, if R3 could have chosen it (C26).

use super::{MemberMaps, Override, Plan};
use alloc::vec::Vec;
use trilith_block::limits::MEMBERS_MAX;
use trilith_block::{BlockRange, Blocks, Idx, Lba, MemberId, MemberSet};
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
    /// Those that R3 lets be the base; which of them is, is preference.
    pub(super) candidates: MemberSet,
    /// Up to here each of them holds everything.
    pub(super) prefixes: [Idx; MEMBERS_MAX],
    /// D without what windows bring to it: `need`, dirty maps, activity logs of void members.
    pub(super) apart: MemberMaps,
    /// The windows of Q.
    pub(super) records: Vec<(MemberId, WindowRecord)>,
}

fn is_accepted(record: &WindowRecord) -> bool {
    record.status == SlotStatus::Accepted
}

impl Copies {
    fn over(&self, range: BlockRange) -> impl Iterator<Item = (MemberId, &WindowRecord)> {
        let over = move |(_, record): &&(MemberId, WindowRecord)| record.range.overlaps(range);
        self.records.iter().filter(over).map(|(of, r)| (*of, r))
    }

    /// The highest entry over `block` that any witness has accepted.
    fn newest(&self, block: BlockRange) -> Option<Idx> {
        let accepted = self
            .over(block)
            .filter(|(of, record)| self.witnesses.contains(*of) && is_accepted(record));
        accepted.map(|(_, record)| record.idx).max()
    }

    /// The window of `member` has no entry over `block` above this one.
    fn begun_none_above(&self, member: MemberId, block: BlockRange, newest: Option<Idx>) -> bool {
        let mut own = self.over(block).filter(|(of, _)| *of == member);
        own.all(|(_, record)| Some(record.idx) <= newest)
    }

    fn has_in_window(&self, member: MemberId, block: BlockRange, idx: Idx) -> bool {
        self.over(block)
            .any(|(of, record)| of == member && record.idx == idx && is_accepted(record))
    }

    /// True when `member` holds what `source`, whose value of `range` is the canonical one, holds:
    /// nothing but windows says that it may differ there, and no window has an entry over it; or,
    /// for one block, the member is a witness that has accepted the highest entry that any witness
    /// has accepted over it, and neither of both has begun a later one, which may have landed.
    pub(super) fn holds(&self, member: MemberId, source: MemberId, range: BlockRange) -> bool {
        if !self.voters.contains(member) || self.apart.get(member).touches(range) {
            return false;
        }
        if self.over(range).next().is_none() {
            return true;
        }
        if range.count.0 != 1 || !self.witnesses.contains(member) {
            return false;
        }
        let newest = self.newest(range);
        newest.is_some_and(|idx| self.has_in_window(member, range, idx))
            && self.begun_none_above(member, range, newest)
            && self.begun_none_above(source, range, newest)
    }

    /// C26: True when the canonical value of `block` may be taken from `member`: R3 could have
    /// chosen it as base, and of that block it is also the source, for it has accepted the highest
    /// entry that any witness has. What it has begun above that, accepted nowhere, may be there as
    /// it may be at any base (C32).
    pub(super) fn may_be_base_of(&self, member: MemberId, block: BlockRange) -> bool {
        let newest = self.newest(block);
        let prefix = self.prefixes[member.index()];
        // Of a void member only the durable prefix counts.
        let has = |n| self.witnesses.contains(member) && self.has_in_window(member, block, n);
        self.candidates.contains(member) && newest.is_none_or(|n| n <= prefix || has(n))
    }
}

impl Plan {
    /// The canonical value of `lba` is that of `source` from now on. The block is in U and in every
    /// D then, as it would be with that member as base: what is in its `need` may be known to
    /// nobody else, and the base of the other blocks has to be repaired like anybody.
    pub(super) fn take_from(&mut self, lba: Lba, source: MemberId) {
        let block = BlockRange::new(lba, Blocks(1));
        let at = self.overrides.partition_point(|o| o.range.end() <= lba);
        let mut put = Vec::new();
        if let Some(old) = self.overrides.get(at).copied()
            && old.range.start <= lba
        {
            self.overrides.remove(at);
            for (start, end) in [(old.range.start, lba), (block.end(), old.range.end())] {
                let count = u32::try_from(end.0 - start.0).unwrap_or(0);
                put.push((BlockRange::new(start, Blocks(count)), old.source));
            }
        }
        put.insert(put.len().min(1), (block, source));
        put.retain(|(range, of)| range.count.0 > 0 && *of != self.base);
        let new = put
            .into_iter()
            .map(|(range, source)| Override { range, source });
        self.overrides.splice(at..at, new);
        self.limbo.add_range(block);
        for member in self.copies.members.iter() {
            self.differing.get_mut(member).add_range(block);
        }
    }
}
