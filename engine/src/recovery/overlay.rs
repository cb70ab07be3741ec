//! R3 per block: where the canonical value of a block is, when it is not at the base.

use super::Promise;
use alloc::vec;
use alloc::vec::Vec;
use trilith_block::limits::EXTENT_BLOCKS;
use trilith_block::{BlockRange, Blocks, ExtentNo, Idx, Lba, MemberId};
use trilith_wire::{SlotStatus, WindowRecord};

/// Blocks whose canonical value is at `source`, not at the base.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Override {
    /// The blocks; within one extent.
    pub range: BlockRange,
    /// Who holds their canonical value.
    pub source: MemberId,
}

/// acc(r): the entries that a member has accepted.
#[derive(Debug)]
pub(super) struct Accepted {
    upto: Idx,
    above: Vec<Idx>,
}

impl Accepted {
    /// What `promise` may claim. A member without a valid window (`void`) has nothing but its
    /// durable prefix.
    pub(super) fn of(promise: &Promise, void: bool) -> Accepted {
        if void {
            return Accepted {
                upto: promise.state.w,
                above: Vec::new(),
            };
        }
        let mut above: Vec<Idx> = promise
            .window
            .iter()
            .filter(|record| record.status == SlotStatus::Accepted)
            .map(|record| record.idx)
            .collect();
        above.sort_unstable();
        Accepted {
            upto: promise.state.upto.max(promise.state.w),
            above,
        }
    }

    fn contains(&self, idx: Idx) -> bool {
        idx <= self.upto || self.above.binary_search(&idx).is_ok()
    }
}

#[derive(Clone, Copy)]
struct Claim {
    extent: ExtentNo,
    record: WindowRecord,
    member: MemberId,
}

/// R3: for each block the witness whose window has the highest accepted entry over it; when that
/// entry is not in acc(base) the witness is the source. Rising and disjoint. `witnesses` are the
/// complete members of Tm with a valid window, the base possibly among them. Cost: linear in the
/// blocks of the windows.
pub(super) fn overrides(
    witnesses: &[&Promise],
    base: MemberId,
    accepted: &Accepted,
    capacity_blocks: u64,
) -> Vec<Override> {
    let mut claims: Vec<Claim> = Vec::new();
    for witness in witnesses {
        for record in &witness.window {
            let inside = record.range.in_one_extent() && record.range.end().0 <= capacity_blocks;
            if record.status == SlotStatus::Accepted && inside {
                let extent = record.range.start.extent();
                claims.push(Claim {
                    extent,
                    record: *record,
                    member: witness.member,
                });
            }
        }
    }
    claims.sort_unstable_by_key(|claim| (claim.extent, claim.record.idx, claim.member));
    let mut found = Vec::new();
    let mut highest: Vec<Option<(Idx, MemberId)>> = vec![None; EXTENT_BLOCKS as usize];
    for group in claims.chunk_by(|a, b| a.extent == b.extent) {
        highest.fill(None);
        for claim in group {
            let first = claim.record.range.start.in_extent() as usize;
            let end = first + claim.record.range.count.0 as usize;
            for place in &mut highest[first..end] {
                // Claims come by rising idx; at an equal one the first member stays.
                if place.is_none_or(|(idx, _)| idx < claim.record.idx) {
                    *place = Some((claim.record.idx, claim.member));
                }
            }
        }
        let first = group[0].extent.first();
        append_runs(first, &highest, base, accepted, &mut found);
    }
    found
}

fn append_runs(
    first: Lba,
    highest: &[Option<(Idx, MemberId)>],
    base: MemberId,
    accepted: &Accepted,
    found: &mut Vec<Override>,
) {
    for (lba, place) in (first.0..).zip(highest) {
        let Some((idx, member)) = *place else {
            continue;
        };
        if member == base || accepted.contains(idx) {
            continue;
        }
        match found.last_mut() {
            Some(last)
                if last.range.end() == Lba(lba)
                    && last.source == member
                    && Lba(lba).in_extent() != 0 =>
            {
                last.range.count.0 += 1;
            }
            Some(_) | None => {
                let range = BlockRange::new(Lba(lba), Blocks(1));
                found.push(Override {
                    range,
                    source: member,
                });
            }
        }
    }
}
