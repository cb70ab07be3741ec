//! Long state in pieces of at most 64 KiB: GETMAP and its answers, and MAP frames staged for the
//! control frame that uses them up.

use crate::machine::{Context, Replica};
use crate::session::PendingMap;
use crate::store::{MapName, Store};
use alloc::boxed::Box;
use alloc::vec::Vec;
use trilith_block::limits::MEMBERS_MAX;
use trilith_block::{BufSlice, ChunkMap, ConnId, ExtentNo, Idx, MemberId, Term};
use trilith_wire::limits::MAP_BYTES_MAX;
use trilith_wire::{ChunkRecord, MapKind, Message, WindowRecord};

/// Chunks received by MAP frames and not used yet. Bounded by the volume: a chunk is there once.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    pub(crate) need: ChunkMap,
    pub(crate) limbo: ChunkMap,
    pub(crate) dirty: Box<[ChunkMap; MEMBERS_MAX]>,
}

impl Staged {
    pub(crate) fn clear(&mut self) {
        *self = Staged::default();
    }

    fn target(&mut self, map: MapKind, member: MemberId) -> Option<&mut ChunkMap> {
        match map {
            MapKind::Need => Some(&mut self.need),
            MapKind::Limbo => Some(&mut self.limbo),
            MapKind::Dirty => self.dirty.get_mut(member.index()),
            MapKind::Window | MapKind::ActivityLog | MapKind::Allocated => None,
        }
    }
}

/// The records of a payload as chunks. `None` when an extent is not in the volume or a chunk not in
/// the extent.
pub(crate) fn chunks_of(payload: &[u8], capacity: u64) -> Option<ChunkMap> {
    let extents = ExtentNo::count_for(capacity);
    let mut chunks = ChunkMap::new();
    for record in ChunkRecord::decode_all(payload) {
        if record.extent.0 >= extents {
            return None;
        }
        chunks.add_mask(record.extent, record.mask);
    }
    Some(chunks)
}

impl Replica {
    /// MAP from the engine: staged. The term has been checked.
    pub(crate) fn stage(
        &mut self,
        conn: ConnId,
        (map, member): (MapKind, MemberId),
        crc: u32,
        payload: Option<BufSlice>,
        cx: &mut Context<'_>,
    ) {
        let bytes = payload.map_or(&[][..], |slice| cx.data.bytes(slice));
        let ok = cx.data.crc32c(0, bytes) == crc;
        let chunks = ok
            .then(|| chunks_of(bytes, self.facts().capacity))
            .flatten();
        crate::streams::release(payload, cx);
        match (chunks, self.staged.target(map, member)) {
            (Some(chunks), Some(target)) => target.union(&chunks),
            _ => self.malformed(conn, cx),
        }
    }

    /// GETMAP: answered in settle, when a buffer is there.
    pub(crate) fn get_map(&mut self, conn: ConnId, pending: PendingMap, cx: &mut Context<'_>) {
        let Some(session) = self.session(conn) else {
            return;
        };
        if session.get_map.is_some() {
            return self.malformed(conn, cx);
        }
        session.get_map = Some(pending);
    }

    /// Answers the GETMAP of the leader's session if a buffer is there.
    pub(crate) fn answer_map(&mut self, conn: ConnId, term: Term, cx: &mut Context<'_>) {
        let Some(pending) = self.session(conn).and_then(|s| s.get_map) else {
            return;
        };
        let Some(store) = self.store.as_deref() else {
            return;
        };
        self.scratch.clear();
        let next = fill(store, pending, &mut self.scratch);
        let len = u32::try_from(self.scratch.len()).unwrap_or(0);
        let payload = if len == 0 {
            None
        } else {
            let Some(slice) = cx.data.alloc(len) else {
                self.counters.pauses += 1;
                return;
            };
            cx.data.bytes_mut(slice).copy_from_slice(&self.scratch);
            Some(slice)
        };
        let message = Message::Map {
            term,
            map: pending.map,
            member: pending.member,
            last: next.is_none(),
            next: next.unwrap_or(0),
            crc: cx.data.crc32c(0, &self.scratch),
        };
        self.send_with(conn, &message, payload, cx);
        if let Some(session) = self.session(conn) {
            session.get_map = None;
        }
    }
}

/// Appends the records from `pending.from` on, at most a piece. The place of the next piece, if
/// there is one: an extent number, for the window a position of the stream.
fn fill(store: &Store, pending: PendingMap, out: &mut Vec<u8>) -> Option<u64> {
    let extent = ExtentNo(u32::try_from(pending.from).unwrap_or(u32::MAX));
    match pending.map {
        MapKind::Window => fill_window(store, Idx(pending.from), out),
        MapKind::ActivityLog => {
            let all = store.activity_log(extent);
            fill_chunks(all.map(|e| (e, u64::MAX)), out)
        }
        MapKind::Need => {
            // Limbo counts as need towards others (R4).
            fill_chunks(store.need_and_limbo(extent), out)
        }
        MapKind::Limbo => fill_chunks(store.map(MapName::Limbo).iter_from(extent), out),
        MapKind::Allocated => fill_chunks(store.map(MapName::Allocated).iter_from(extent), out),
        MapKind::Dirty => fill_chunks(
            store.map(MapName::Dirty(pending.member)).iter_from(extent),
            out,
        ),
    }
}

fn is_full(out: &[u8], record: usize) -> bool {
    out.len() + record > MAP_BYTES_MAX as usize
}

fn fill_window(store: &Store, from: Idx, out: &mut Vec<u8>) -> Option<u64> {
    for record in store.window_records(from) {
        if is_full(out, WindowRecord::BYTES) {
            return Some(record.idx.0);
        }
        let mut raw = [0u8; WindowRecord::BYTES];
        record.encode(&mut raw);
        out.extend_from_slice(&raw);
    }
    None
}

fn fill_chunks(chunks: impl Iterator<Item = (ExtentNo, u64)>, out: &mut Vec<u8>) -> Option<u64> {
    for (extent, mask) in chunks {
        if is_full(out, ChunkRecord::BYTES) {
            return Some(u64::from(extent.0));
        }
        let mut raw = [0u8; ChunkRecord::BYTES];
        ChunkRecord { extent, mask }.encode(&mut raw);
        out.extend_from_slice(&raw);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_outside_the_volume_are_refused() {
        let mut raw = [0u8; 16];
        ChunkRecord {
            extent: ExtentNo(2),
            mask: 1,
        }
        .encode(&mut raw);
        assert!(chunks_of(&raw, 8 << 20).is_none());
        assert_eq!(chunks_of(&raw, 12 << 20).map(|c| c.chunk_count()), Some(1));
    }
}
