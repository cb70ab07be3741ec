//! Which extents hold data: block status for clients, and room before a place is given (M3).
//!
//! Block status is answered from one page of a counted replica's allocation map (up to 16 GiB of
//! extents), so it needs no cache: a page is asked for again for each request. Where the page
//! cannot be had, the answer says "data", which is always allowed.

use crate::engine::{Cx, Engine};
use crate::limits::EXTENTS_RECORDS_MAX;
use crate::peer::{MapOwner, MapPiece};
use crate::survey::add_records;
use crate::syncset::Standing;
use alloc::vec::Vec;
use trilith_block::limits::{CHUNK_BYTES, EXTENT_BYTES, EXTENT_CHUNKS};
use trilith_block::mutant::{self, Mutant};
use trilith_block::request::status_flags::{DIRTY, HOLE, ZERO};
use trilith_block::{
    BlockRange, BufSlice, ByteRange, ChunkMap, ExtentNo, MemberId, MemberSet, Outcome,
};
use trilith_wire::{EntryOp, MapKind, Message};

/// Bytes of a block-status record.
const RECORD_BYTES: usize = 16;

impl Engine {
    /// The size of the volume is known now.
    pub(crate) fn learn_capacity(&mut self, bytes: u64) {
        self.capacity = bytes;
        let words = ExtentNo::count_for(bytes).div_ceil(64) as usize;
        self.allocated.resize(words, 0);
        self.again = true;
    }

    fn is_allocated(&self, extent: ExtentNo) -> bool {
        let word = self
            .allocated
            .get(extent.0 as usize / 64)
            .copied()
            .unwrap_or(0);
        word & (1 << (extent.0 % 64)) != 0
    }

    fn set_allocated(&mut self, extent: ExtentNo, yes: bool) {
        if let Some(word) = self.allocated.get_mut(extent.0 as usize / 64) {
            let bit = 1 << (extent.0 % 64);
            *word = if yes { *word | bit } else { *word & !bit };
        }
    }

    /// M3: whether an entry can be given a place: a majority of counted members has room for its
    /// extent, or the extent has been allocated. With a witness all that a commit asks for have it, who
    /// is about to join included; or the one that lacks it can be left behind (W6), as it will be when it
    /// refuses the entry. `None`: a replica is being asked.
    pub(crate) fn room_for(
        &mut self,
        kind: EntryOp,
        range: BlockRange,
        cx: &mut Cx<'_>,
    ) -> Option<bool> {
        let extent = range.start.extent();
        let blind = mutant::on(Mutant::RoomNotReserved);
        if kind == EntryOp::Discard || self.is_allocated(extent) || blind {
            return Some(true);
        }
        let taken = self.stream.room_taken;
        let joining = match self.sync.live {
            Some(_) => self.members_where(|p| matches!(p.standing, Standing::Joining { .. })),
            None => MemberSet::EMPTY,
        };
        let roomy = self
            .members_where(|p| taken < p.free_extents)
            .and(self.sync.counted.or(joining));
        if self.data_decides(roomy) || self.goes_on_without(self.sync.iss.minus(roomy)) {
            return Some(true);
        }
        if self.no_room == Some(extent) {
            self.no_room = None;
            return Some(false);
        }
        if !self.room_asked
            && let Some(member) = self.map_source()
        {
            self.room_asked = true;
            let from = u64::from(extent.0);
            self.ask_map(member, MapOwner::Room { extent }, from, cx);
        }
        None
    }

    /// Room that an entry takes from now until all of trk has accepted it.
    pub(crate) fn take_room(&mut self, kind: EntryOp, range: BlockRange) -> bool {
        let extent = range.start.extent();
        match kind {
            EntryOp::Discard => {
                // A punched extent counts as unallocated again (M20).
                if range.bytes() == EXTENT_BYTES {
                    self.set_allocated(extent, false);
                }
                false
            }
            EntryOp::Write | EntryOp::Zeroes if self.is_allocated(extent) => false,
            EntryOp::Write | EntryOp::Zeroes => {
                self.set_allocated(extent, true);
                self.stream.room_taken += 1;
                true
            }
        }
    }

    pub(crate) fn room_map(&mut self, extent: ExtentNo, buf: Option<BufSlice>, cx: &mut Cx<'_>) {
        self.room_asked = false;
        self.again = true;
        let mut map = ChunkMap::new();
        if let Some(buf) = buf {
            add_records(
                &mut map,
                cx.data.bytes(buf),
                ExtentNo::count_for(self.capacity),
            );
        }
        if map.mask(extent) == 0 {
            self.no_room = Some(extent);
        } else {
            self.set_allocated(extent, true);
        }
    }

    /// A counted member that has accepted everything committed and is not being asked for a map.
    pub(crate) fn map_source(&self) -> Option<MemberId> {
        self.counted_here().iter().find(|m| {
            let peer = &self.peers[m.index()];
            peer.map_owner.is_none() && self.stream.commit <= peer.upto
        })
    }

    pub(crate) fn ask_map(
        &mut self,
        member: MemberId,
        owner: MapOwner,
        from: u64,
        cx: &mut Cx<'_>,
    ) {
        let Some(nobody) = MemberId::new(0) else {
            return;
        };
        self.peers[member.index()].map_owner = Some(owner);
        let map = MapKind::Allocated;
        let ask = Message::GetMap {
            term: self.term,
            map,
            member: nobody,
            from,
        };
        self.send(member, &ask, None, cx);
    }

    /// The session of a member that was asked for a map has ended.
    pub(crate) fn map_lost(&mut self, member: MemberId) {
        match self.peers[member.index()].map_owner.take() {
            None | Some(MapOwner::Survey) => {}
            Some(MapOwner::Status { op }) => self.status_inbox.push_back(op),
            Some(MapOwner::Room { .. }) => self.room_asked = false,
            Some(MapOwner::Newcomer) => self.newcomer_unasked(),
        }
    }

    /// Starts block-status requests.
    pub(crate) fn tend_status(&mut self, cx: &mut Cx<'_>) {
        for _ in 0..self.status_inbox.len() {
            if !self.reads_allowed() {
                return;
            }
            let Some(key) = self.status_inbox.pop_front() else {
                return;
            };
            let Some(range) = self.ops.get(key).map(|op| op.range) else {
                continue;
            };
            match self.map_source() {
                Some(member) => {
                    let from = range.offset / EXTENT_BYTES;
                    self.ask_map(member, MapOwner::Status { op: key }, from, cx);
                }
                None => self.status_inbox.push_back(key),
            }
        }
    }

    /// A page of an allocation map for a block-status request.
    pub(crate) fn status_map(
        &mut self,
        key: u64,
        buf: Option<BufSlice>,
        piece: MapPiece,
        cx: &mut Cx<'_>,
    ) {
        let Some(range) = self.ops.get(key).map(|op| op.range) else {
            return;
        };
        let extents = ExtentNo::count_for(self.capacity);
        let mut map = ChunkMap::new();
        let sound = buf.is_none_or(|b| add_records(&mut map, cx.data.bytes(b), extents));
        let known_end = if piece.last {
            u64::MAX
        } else {
            piece.next.saturating_mul(EXTENT_BYTES)
        };
        // Without a lease the page may be older than another engine's writes.
        let useful = sound
            && piece.map == MapKind::Allocated
            && range.offset < known_end
            && self.lease_runs(cx.now);
        let mut records = Vec::new();
        if useful {
            let end = known_end.min(range.offset + range.len);
            let known = ByteRange::new(range.offset, end - range.offset);
            self.records(known, &map, &mut records);
        } else {
            records.push((range.len, 0));
        }
        let bytes = u32::try_from(records.len() * RECORD_BYTES).unwrap_or(u32::MAX);
        let Some(out) = cx.data.alloc(bytes) else {
            self.status_inbox.push_back(key);
            self.starved = true;
            return;
        };
        for (place, (len, flags)) in cx
            .data
            .bytes_mut(out)
            .chunks_exact_mut(RECORD_BYTES)
            .zip(records)
        {
            place[0..8].copy_from_slice(&len.to_le_bytes());
            place[8..12].copy_from_slice(&flags.to_le_bytes());
            place[12..16].fill(0);
        }
        self.finish_op(key, Ok(Outcome::Extents(out)), cx.data);
    }

    /// Runs of equal state, at most so many, from the start of `range` on.
    fn records(&self, range: ByteRange, map: &ChunkMap, out: &mut Vec<(u64, u32)>) {
        let end = range.offset + range.len;
        let mut at = range.offset;
        while at < end {
            let extent = ExtentNo(u32::try_from(at / EXTENT_BYTES).unwrap_or(u32::MAX));
            let (held, lacking) = (map.mask(extent), self.lacking_mask(extent));
            let chunk = u32::try_from(at % EXTENT_BYTES / u64::from(CHUNK_BYTES)).unwrap_or(0);
            let bit = |mask: u64| mask >> chunk & 1 != 0;
            let uniform = |mask: u64| mask == 0 || mask == u64::MAX;
            let stop = if uniform(held) && uniform(lacking) {
                extent.byte_offset() + EXTENT_BYTES
            } else {
                extent.byte_offset() + u64::from((chunk + 1).min(EXTENT_CHUNKS) * CHUNK_BYTES)
            };
            let flags = if bit(held) { 0 } else { HOLE | ZERO };
            let flags = if bit(lacking) { flags | DIRTY } else { flags };
            let len = stop.min(end) - at;
            let full = out.len() == EXTENTS_RECORDS_MAX;
            match out.last_mut() {
                Some((last, same)) if *same == flags => *last += len,
                _ if full => return,
                _ => out.push((len, flags)),
            }
            at += len;
        }
    }

    /// Chunks that some member lacks.
    fn lacking_mask(&self, extent: ExtentNo) -> u64 {
        self.cfg
            .members
            .iter()
            .fold(0, |mask, m| mask | self.lacking(m).mask(extent))
    }

    /// Something is written to the extent: a "no room" that was found out before is void.
    pub(crate) fn forget_allocation(&mut self, extent: ExtentNo) {
        if self.no_room == Some(extent) {
            self.no_room = None;
        }
    }
}
