//! The merge: from promises to a plan (R1 to R4, R6's choice of members).
//!
//! Words: *void* = tainted or with a failed device; what it accepted beyond its watermark cannot be
//! told. A rule that speaks of the activity log of a tainted member means its `need` as well, for a
//! taint turns the one into the other (M2).

use super::copies::Copies;
use super::overlay::{Accepted, overrides};
use super::{MemberMaps, Override, Promise};
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::time::Duration;
use trilith_block::limits::{BLOCK_SHIFT, CHUNK_BLOCKS, MEMBERS_MAX};
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{
    BlockRange, Blocks, ChunkMap, ExtentNo, Idx, Lba, MemberId, MemberSet, Membership, SyncEpoch,
    Term,
};
use trilith_wire::SlotStatus;

/// Default of [`Policy::small_bytes`]: copied in well under a second.
pub const SMALL_BYTES_DEFAULT: u64 = 64 << 20;
/// Default of [`Policy::lossy_wait`].
pub const LOSSY_WAIT_DEFAULT: Duration = Duration::from_secs(60);

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
    /// Too few members with a working device: no complete member of the newest term has one, or a
    /// lossy recovery would not know what was flushed. More voters may help, time does not.
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
    /// The configuration; what decides is in it.
    pub membership: Membership,
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
    /// D: for each member the chunks where it may differ from the canonical content (R4).
    pub differing: MemberMaps,
    /// Who holds the canonical value of a block, block by block.
    pub(super) copies: Copies,
    /// For each voter the chunks of its failed slots: they are written anew there before the term
    /// starts, even where its own content is the canonical one (M3).
    pub failed: MemberMaps,
    /// Members to be repaired before the term starts (R6).
    pub first_iss: MemberSet,
    /// Position of the TERMSTART; the first entry of the term is `start + 1`.
    pub start: Idx,
    /// Size of the volume in blocks.
    pub capacity_blocks: u64,
    /// Members whose durable loss epoch is already `loss`.
    pub loss_known: MemberSet,
}

impl Plan {
    /// True when `set` can decide (of a joint configuration: by a majority of both sets of voters).
    pub fn is_majority(&self, set: MemberSet) -> bool {
        self.membership.is_majority(set)
    }

    /// Who holds the canonical value of a block.
    pub fn source(&self, lba: Lba) -> MemberId {
        let after = self.overrides.partition_point(|o| o.range.start <= lba);
        match after.checked_sub(1).map(|at| self.overrides[at]) {
            Some(o) if lba < o.range.end() => o.source,
            Some(_) | None => self.base,
        }
    }
}

/// A promise with what the rules ask of it again and again.
struct Voter<'a> {
    promise: &'a Promise,
    /// Tainted or failed: only its durable prefix counts.
    void: bool,
    /// In M (R1), its device working or not.
    in_m: bool,
    /// R3 may choose it if its device works: in M, and with a witness named by the newest epoch of Q
    /// too (W9).
    candidate: bool,
    /// A slot of its window failed at the device: it may be unable to start a term (M3).
    failed_slot: bool,
}

impl Voter<'_> {
    fn member(&self) -> MemberId {
        self.promise.member
    }

    /// It can be read: a base, a source or a member of the first in-sync set.
    fn works(&self) -> bool {
        !self.promise.state.flags.failed
    }

    /// Up to here it holds everything.
    fn prefix(&self) -> Idx {
        let state = &self.promise.state;
        if self.void {
            state.w
        } else {
            state.upto.max(state.w)
        }
    }

    fn needs_nothing(&self) -> bool {
        self.promise.need.is_empty() && !self.promise.state.flags.need
    }
}

/// Computes the plan. Of a joint configuration Q needs a majority of both sets of voters (C20); a
/// newcomer that only learns has no say, but what it lacks is worked out. Cost: linear in the maps and in the blocks of all windows.
///
/// # Errors
/// [`Blocked`]: more promises (or more time) are needed.
pub fn plan(
    promises: &[Promise],
    membership: impl Into<Membership>,
    policy: &Policy,
) -> Result<Plan, Blocked> {
    let membership = membership.into();
    let electors = membership.electors();
    let capacity_blocks = policy.capacity_bytes >> BLOCK_SHIFT;
    let mut quorum = MemberSet::EMPTY;
    let mut distinct: Vec<&Promise> = Vec::new();
    for promise in promises {
        if electors.contains(promise.member) && !quorum.contains(promise.member) {
            quorum = quorum.with(promise.member);
            distinct.push(promise);
        }
    }
    let missing = electors.minus(quorum);
    if !membership.is_majority(quorum) {
        return Err(Blocked::NoMajority { missing });
    }
    // W9: S, what the witness says of it included.
    let deaf = mutant::on(Mutant::WitnessIgnoredInBase);
    let newest = distinct
        .iter()
        .filter(|p| !deaf || membership.data().contains(p.member))
        .max_by_key(|p| p.state.se)
        .map(|p| (p.state.se, p.state.iss))
        .unwrap_or_default();
    let tm = newest.0.term;
    let any = mutant::on(Mutant::BaseLeftBehind);
    let named = (membership.has_witness() && !any).then_some(newest.1);
    // From here on of those that hold data: the witness has no part in it (W1).
    let q: Vec<Voter<'_>> = distinct
        .iter()
        .filter(|p| membership.data().contains(p.member))
        .map(|p| classify(p, tm, named))
        .collect();

    let lossy = if membership.has_witness() {
        let all = missing.is_empty();
        is_lossy_with_witness(&q, &distinct, newest, all)
    } else {
        is_lossy(&q, membership.voters, missing)
    };
    if lossy {
        may_lose(&q, &membership, missing, policy)?;
    }
    let missing_data = missing.and(membership.data());
    let base = choose_base(&q, lossy, membership.has_witness()).ok_or(Blocked::NoSource {
        missing: missing_data,
    })?;

    let accepted = Accepted::of(base.promise, base.void);
    let witnesses: Vec<&Promise> = q
        .iter()
        .filter(|v| v.candidate && !v.void)
        .map(|v| v.promise)
        .collect();
    let mut overrides = overrides(&witnesses, base.member(), &accepted, capacity_blocks);
    if mutant::on(Mutant::LongestWindow) {
        overrides.clear();
    }

    let limbo = limbo(&q, base, tm, lossy, capacity_blocks);
    let copies = Copies::of(&q, membership.data(), base, tm, lossy);
    let differing = differing(&q, &copies, base, &limbo, capacity_blocks);
    note_plan(&q, base, lossy, &overrides);
    let highest_loss = distinct.iter().map(|p| p.state.loss).max().unwrap_or(0);
    let loss = if lossy && !mutant::on(Mutant::LossyWithoutEpoch) {
        highest_loss.saturating_add(1)
    } else {
        highest_loss
    };
    let loss_known = distinct
        .iter()
        .filter(|p| p.state.loss == loss)
        .fold(MemberSet::EMPTY, |set, p| set.with(p.member));
    let first_iss = choose_first_iss(&q, &membership, base, &differing, policy.small_bytes);
    mark::reached_if(first_iss != quorum, Mark::LeftOutOfFirstSet);
    let start = highest_idx(&distinct).next();
    Ok(Plan {
        lossy,
        membership,
        quorum,
        tm,
        base: base.member(),
        loss,
        overrides,
        limbo,
        differing,
        copies,
        failed: failed_chunks(&q, capacity_blocks),
        first_iss,
        start,
        capacity_blocks,
        loss_known,
    })
}

/// What is worth knowing of a plan.
fn note_plan(q: &[Voter<'_>], base: &Voter<'_>, lossy: bool, overrides: &[Override]) {
    mark::reached_if(lossy, Mark::LossyRecovery);
    mark::reached_if(q.iter().all(|v| v.void), Mark::AllTainted);
    mark::reached_if(!lossy && base.void, Mark::TaintedBase);
    if let Some(first) = overrides.first() {
        let one = overrides.iter().all(|o| o.source == first.source);
        mark::reached(if one {
            Mark::UnionFromOne
        } else {
            Mark::UnionFromTwo
        });
    }
}

fn set_of<'a>(voters: impl Iterator<Item = &'a Voter<'a>>) -> MemberSet {
    voters.fold(MemberSet::EMPTY, |set, v| set.with(v.member()))
}

/// R1: M = members of Q whose epoch is of Tm and which are in the in-sync set of their own durable
/// epoch. A told-out or rebuilding member is not. W9: with a witness the newest epoch of Q must name a
/// candidate (`named`) as well, for the other one may have gone on alone.
fn classify(promise: &Promise, tm: Term, named: Option<MemberSet>) -> Voter<'_> {
    let state = &promise.state;
    let in_m = state.se.term == tm && state.iss.contains(promise.member);
    Voter {
        promise,
        void: (state.flags.tainted && !mutant::on(Mutant::TaintIgnored)) || state.flags.failed,
        in_m,
        candidate: in_m && named.is_none_or(|iss| iss.contains(promise.member)),
        failed_slot: promise
            .window
            .iter()
            .any(|r| r.status == SlotStatus::Failed),
    }
}

/// R2: a voter is *unknown* when a commit quorum of Tm may have counted its ack and it cannot say
/// what it accepted: voters outside Q, and void members of M. Clean iff fewer than a majority are
/// unknown, for then every commit quorum has a witness.
///
/// M7: a void member outside the in-sync set of the highest epoch in M is known. The engine stopped
/// counting it when it *issued* that SYNCSET, which is a barrier: whoever holds that epoch durably
/// (the base, by R3) holds every entry committed with the void member's ack, durably.
///
/// C20: every commit quorum of Tm has a majority of `voters`, also when the configuration is joint: an
/// engine commits by the next voters alone only once that is durable at a majority of them.
fn is_lossy(q: &[Voter<'_>], voters: MemberSet, missing: MemberSet) -> bool {
    let newest = q
        .iter()
        .filter(|v| v.in_m && v.works())
        .map(|v| (v.promise.state.se, v.promise.state.iss))
        .max_by_key(|(se, _)| *se);
    let unknown = q.iter().filter(|v| {
        let demoted =
            newest.is_some_and(|(se, iss)| v.promise.state.se < se && !iss.contains(v.member()));
        v.in_m && v.void && !mark::reached_if(demoted, Mark::KnownByDemotion)
    });
    let unknown = missing.or(set_of(unknown));
    voters.majority() <= unknown.and(voters).count()
}

/// W10: clean iff a candidate is untainted, for each of them has every entry that was committed. M7's
/// counterpart: when all three promised, a tainted candidate alone holds the newest epoch, and the
/// newest epoch of the same term among the others names another set, this one never got in force.
/// Nothing was committed behind its SYNCSET or TERMSTART, and what was before it is durable at its
/// holder by the barrier. If the others name the same set, the epochs are one (W2), and the holder
/// may have committed by itself ever since.
fn is_lossy_with_witness(
    q: &[Voter<'_>],
    promises: &[&Promise],
    (se, iss): (SyncEpoch, MemberSet),
    all: bool,
) -> bool {
    let mut candidates = q.iter().filter(|v| v.candidate && v.works());
    let untainted = candidates.clone().any(|v| !v.void);
    let holder = candidates.find(|v| v.promise.state.se == se);
    let alone = promises.iter().filter(|p| p.state.se == se).count() == 1;
    let goes_on = promises
        .iter()
        .filter(|p| p.state.se < se)
        .max_by_key(|p| p.state.se)
        .is_some_and(|p| p.state.se.term == se.term && p.state.iss == iss);
    let goes_on = goes_on && !mutant::on(Mutant::LoneEpochApart);
    let all = all || mutant::on(Mutant::LoneEpochClean);
    let never_in_force = all && holder.is_some() && alone && !goes_on;
    !untainted && !mark::reached_if(never_in_force, Mark::LoneEpoch)
}

/// R2, the policy: go on at once when nobody is missing, else after the configured wait. Never with
/// fewer than a majority of working devices: what was flushed may be on the others only. W10: with a
/// witness the missing are those with data, and one working candidate has all that was flushed.
fn may_lose(
    q: &[Voter<'_>],
    membership: &Membership,
    missing: MemberSet,
    policy: &Policy,
) -> Result<(), Blocked> {
    let missing = missing.and(membership.data());
    let flushed_is_there = if membership.has_witness() {
        q.iter().any(|v| v.candidate && v.works())
    } else {
        membership.is_majority(set_of(q.iter().filter(|v| v.works())))
    };
    if !flushed_is_there {
        mark::reached_if(membership.has_witness(), Mark::LeftBehindWaits);
        return Err(Blocked::NoSource { missing });
    }
    if missing.is_empty() {
        return Ok(());
    }
    match policy.lossy_wait {
        None => Err(Blocked::WaitForMore {
            missing,
            left: None,
        }),
        Some(wait) if policy.waited < wait => Err(Blocked::WaitForMore {
            missing,
            left: Some(wait - policy.waited),
        }),
        Some(_) => Ok(()),
    }
}

/// R3, the base. The highest epoch comes first in both cases. Clean: then a valid window; what
/// follows is preference only, since the overlay adds what the base lacks. A void base of a higher
/// epoch beats a member of a lower epoch with a valid window: all that was committed before its
/// SYNCSET is durable at it (so M7 is right), and after it nothing was, or there would be a witness
/// of that epoch. Lossy: then the longest prefix, which has every flushed write (Theorem 2).
/// W9: with a witness a valid window comes first, for every untainted candidate has all that was
/// committed, and the highest epoch may be durable at one member without being in force.
fn choose_base<'a>(q: &'a [Voter<'a>], lossy: bool, has_witness: bool) -> Option<&'a Voter<'a>> {
    let candidates = q.iter().filter(|v| v.candidate && v.works());
    candidates.max_by_key(|v| {
        let by_length = lossy || mutant::on(Mutant::LongestWindow);
        let length = if by_length { v.prefix() } else { Idx(0) };
        let mut se = v.promise.state.se;
        if mutant::on(Mutant::BaseIgnoresEpoch) {
            se.n = 0;
        }
        let valid_first = !v.void && (has_witness || mutant::on(Mutant::UntaintedBaseFirst));
        (
            valid_first,
            se,
            length,
            !v.void,
            !v.failed_slot,
            v.needs_nothing(),
            v.prefix(),
            Reverse(v.member()),
        )
    })
}

/// C26: R3 could have chosen this voter instead of `base`: a clean recovery each one with a valid
/// window in the highest epoch, a lossy one each one with the longest prefix there. C30: also in a
/// clean one a void member that has on stable media all that the base has without a gap.
fn may_be_base(v: &Voter<'_>, base: &Voter<'_>, lossy: bool) -> bool {
    let good = base.prefix() <= v.prefix() || (!lossy && !v.void);
    let any = mutant::on(Mutant::AnyBaseOfBlock);
    v.works() && (any || v.candidate && v.promise.state.se == base.promise.state.se && good)
}

/// R4, U: windows (every status) of all members of term Tm, need(base), AL(base) when it is void,
/// and in a lossy recovery AL of every void member of M: what it held may have been seen.
fn limbo(
    q: &[Voter<'_>],
    base: &Voter<'_>,
    tm: Term,
    lossy: bool,
    capacity_blocks: u64,
) -> ChunkMap {
    let mut limbo = in_doubt(q, base, lossy);
    for v in q.iter().filter(|v| v.promise.state.se.term == tm) {
        add_window(&mut limbo, v.promise);
    }
    clip(&mut limbo, capacity_blocks);
    limbo
}

impl Copies {
    /// What the promises say of each block. D without the windows is in `apart`.
    fn of(q: &[Voter<'_>], members: MemberSet, base: &Voter<'_>, tm: Term, lossy: bool) -> Copies {
        let mut apart = MemberMaps::new();
        let in_doubt = in_doubt(q, base, lossy);
        for member in members.iter() {
            let map = apart.get_mut(member);
            map.clone_from(&in_doubt);
            if member == base.member() {
                continue;
            }
            for v in q
                .iter()
                .filter(|v| v.promise.state.se.term == tm && v.member() != member)
            {
                map.union(v.promise.dirty.get(member));
            }
            for v in q.iter().filter(|v| v.member() == member) {
                map.union(&v.promise.need);
                if v.void {
                    map.union(&v.promise.al);
                }
            }
        }
        let mut prefixes = [Idx(0); MEMBERS_MAX];
        for v in q {
            prefixes[v.member().index()] = v.prefix();
        }
        let records = q.iter().flat_map(|v| {
            let slots = v.promise.window.iter();
            slots.map(|record| (v.member(), *record))
        });
        Copies {
            members,
            voters: set_of(q.iter()),
            witnesses: set_of(q.iter().filter(|v| v.candidate && !v.void)),
            candidates: set_of(q.iter().filter(|v| may_be_base(v, base, lossy))),
            prefixes,
            apart,
            records: records.collect(),
        }
    }
}

/// U without the windows.
fn in_doubt(q: &[Voter<'_>], base: &Voter<'_>, lossy: bool) -> ChunkMap {
    let mut map = base.promise.need.clone();
    if base.void {
        map.union(&base.promise.al);
    }
    for v in q.iter().filter(|v| lossy && v.in_m && v.void) {
        map.union(&v.promise.al);
        map.union(&v.promise.need);
    }
    map
}

/// R4, D: U, what members of term Tm say that the voter may lack, and what the voter says of
/// itself: its window, need, and AL when it is void. The base defines the content: it differs at
/// most inside U.
fn differing(
    q: &[Voter<'_>],
    copies: &Copies,
    base: &Voter<'_>,
    limbo: &ChunkMap,
    capacity_blocks: u64,
) -> MemberMaps {
    let mut differing = MemberMaps::new();
    for member in copies.members.iter() {
        let map = differing.get_mut(member);
        *map = limbo.clone();
        if member == base.member() {
            continue;
        }
        map.union(copies.apart.get(member));
        for v in q.iter().filter(|v| v.member() == member) {
            add_window(map, v.promise);
        }
        clip(map, capacity_blocks);
    }
    differing
}

/// M3: a member with a failed slot does not acknowledge TERMSTART. A repair over the range heals it;
/// the base, which nobody repairs, gets its own content again. Else a member without which there is
/// no majority, once its disk had been full, would keep the volume closed for ever.
fn failed_chunks(q: &[Voter<'_>], capacity_blocks: u64) -> MemberMaps {
    let mut failed = MemberMaps::new();
    for v in q {
        let map = failed.get_mut(v.member());
        for record in &v.promise.window {
            if record.status == SlotStatus::Failed && record.range.in_one_extent() {
                map.add_range(record.range);
            }
        }
        clip(map, capacity_blocks);
    }
    failed
}

/// R6, who is repaired before the term starts: the base, everyone with little to repair, and as
/// many more as a majority takes, those with least to repair first. A member with a failed slot
/// comes last, a failed device never. W11: with a witness the base, and the other one only if it has
/// no failed slot and little to repair, never for a majority.
fn choose_first_iss(
    q: &[Voter<'_>],
    membership: &Membership,
    base: &Voter<'_>,
    differing: &MemberMaps,
    small_bytes: u64,
) -> MemberSet {
    let mut order: Vec<(bool, bool, u64, MemberId)> = q
        .iter()
        .filter(|v| v.works())
        .map(|v| {
            let bytes = differing.get(v.member()).bytes();
            (
                v.failed_slot,
                v.member() != base.member(),
                bytes,
                v.member(),
            )
        })
        .collect();
    order.sort_unstable();
    let mut iss = MemberSet::EMPTY;
    for (failed_slot, not_base, bytes, member) in order {
        let wanted = !failed_slot && (!not_base || bytes <= small_bytes);
        let must = if membership.has_witness() {
            !not_base
        } else {
            !membership.is_majority(iss)
        };
        if wanted || must {
            iss = iss.with(member);
        }
    }
    iss
}

/// The highest position that Q has seen.
fn highest_idx(promises: &[&Promise]) -> Idx {
    let of = |p: &Promise| {
        let s = &p.state;
        let window = p.window.iter().map(|r| r.idx).max().unwrap_or_default();
        s.max_idx.max(s.upto).max(s.tidx).max(s.w).max(window)
    };
    promises.iter().map(|p| of(p)).max().unwrap_or_default()
}

fn add_window(map: &mut ChunkMap, promise: &Promise) {
    for record in promise.window.iter().filter(|r| r.range.in_one_extent()) {
        map.add_range(record.range);
    }
}

/// Drops chunks beyond the end of the volume.
pub(crate) fn clip(map: &mut ChunkMap, capacity_blocks: u64) {
    let end = Lba(capacity_blocks);
    let partial = Blocks(end.in_extent());
    let keep = BlockRange::new(end.extent().first(), partial).chunk_mask();
    map.set_mask(end.extent(), map.mask(end.extent()) & keep);
    let beyond = ExtentNo(end.extent().0.saturating_add(1));
    loop {
        let last = map.iter_from(beyond).next();
        let Some((extent, _)) = last else { return };
        map.set_mask(extent, 0);
    }
}

/// The blocks of a chunk that are inside the volume.
pub(super) fn clipped_chunk(extent: ExtentNo, chunk: u32, capacity_blocks: u64) -> BlockRange {
    let start = extent.first().0 + u64::from(chunk * CHUNK_BLOCKS);
    let count = capacity_blocks
        .saturating_sub(start)
        .min(u64::from(CHUNK_BLOCKS));
    BlockRange::new(Lba(start), Blocks(u32::try_from(count).unwrap_or(0)))
}
