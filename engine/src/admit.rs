//! From requests to entries: parts that do not cross an extent, their order, merges of unaligned
//! ends (M19), lazy expansion of huge requests (M20), flushes.
//!
//! The *gate* holds what has no place in the stream yet and must not be overtaken: parts that read
//! the rest of their block first, and the chunk locks of rebuilds. What overlaps it waits behind
//! it. So a block belongs to one merge from its read to its place in the stream, and no merge can
//! revert a neighbour that was acknowledged.

use crate::engine::{Cx, Engine};
use crate::limits::REWRITES_PARTS_MAX;
use crate::ops::FlushNeed;
use crate::read::ReadOwner;
use crate::stream::EntryKind;
use trilith_block::limits::{BLOCK_BYTES, TRANSFER_BYTES_MAX};
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{
    BlockRange, Blocks, BufSlice, Buffers, ErrorKind, Idx, Lba, MemberId, Monotonic, Op,
};
use trilith_wire::EntryOp;

/// Owner of parts that no client asked for; never the key of a request.
const REPAIR_OP: u64 = 0;

/// Some bytes of one block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Merge {
    /// First byte within the block.
    at: u32,
    len: u32,
    /// What to put there; one owner is here. None: zeroes.
    bytes: Option<BufSlice>,
}

/// A piece of a request within one extent, without a place in the stream.
#[derive(Debug)]
pub(crate) struct Part {
    op: u64,
    kind: EntryOp,
    range: BlockRange,
    /// Payload; one owner is here.
    data: Option<BufSlice>,
    /// The payload has to be made first.
    merge: Option<Merge>,
    /// It is in the gate.
    gated: bool,
    /// Its block is being read.
    reading: bool,
}

/// What became of an attempt to make the payload of a merge.
enum Merged {
    Ready,
    /// The rest of the block has to be read first.
    Read,
    /// No buffer now.
    Wait,
}

/// What became of an attempt to take the next part of a request.
#[derive(PartialEq, Eq)]
enum Taken {
    Part,
    /// No room in the window, or it has to be found out whether there is room on the replicas.
    Wait,
    /// The request has all the parts it may have, or all there are.
    Enough,
}

impl Engine {
    /// Moves requests and parts on as far as possible. Called in each `settle`.
    pub(crate) fn admit(&mut self, cx: &mut Cx<'_>) {
        if !self.can_issue() {
            return;
        }
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.pop_front() else {
                break;
            };
            if self.stream.len() >= self.cfg.sizes.window_entries {
                self.ready.push_front(key);
                return;
            }
            self.part_ready(key, cx);
        }
        while let Some(key) = self.inbox.front().copied() {
            match self.take_part(key, cx) {
                Taken::Part => {}
                Taken::Wait => return,
                Taken::Enough => {
                    self.inbox.pop_front();
                    self.try_finish(key, cx.data);
                }
            }
        }
    }

    /// Entries may be issued: a majority that counts is connected and holds the term.
    pub(crate) fn can_issue(&self) -> bool {
        self.open && self.opened && !self.loss_wait && self.has_quorum()
    }

    fn take_part(&mut self, key: u64, cx: &mut Cx<'_>) -> Taken {
        let Some(op) = self.ops.get_mut(key) else {
            return Taken::Enough;
        };
        if op.expanded() || op.error.is_some() {
            return Taken::Enough;
        }
        if op.parts >= self.cfg.sizes.expand_parts_max {
            op.parked = true;
            mark::reached(Mark::Parked);
            return Taken::Enough;
        }
        if self.stream.len() >= self.cfg.sizes.window_entries {
            mark::reached(Mark::WindowFull);
            return Taken::Wait;
        }
        let kind = match (op.op, op.flags.no_hole) {
            (Op::Write, _) => EntryOp::Write,
            (Op::WriteZeroes, true) => EntryOp::Zeroes,
            _ => EntryOp::Discard,
        };
        let (at, end, whole) = (op.next, op.end(), op.data);
        let (range, edge) = next_piece(at, end, kind);
        let len = edge.map_or(range.bytes(), |(_, len)| u64::from(len));
        let kind = if edge.is_some() { EntryOp::Write } else { kind };
        match self.room_for(kind, range, cx) {
            Some(true) => {}
            Some(false) => {
                mark::reached(Mark::NoRoom);
                if let Some(op) = self.ops.get_mut(key) {
                    op.error = Some(ErrorKind::NoSpace);
                }
                return Taken::Enough;
            }
            None => return Taken::Wait,
        }
        let Some(op) = self.ops.get_mut(key) else {
            return Taken::Enough;
        };
        let skipped = u32::try_from(at - op.range.offset).unwrap_or(u32::MAX);
        let bytes = whole.map(|w| w.slice(skipped, u32::try_from(len).unwrap_or(u32::MAX)));
        op.next += len;
        op.parts += 1;
        op.unissued += 1;
        if let Some(bytes) = bytes {
            cx.data.retain(bytes.buf);
        }
        let merge = edge.map(|(at, len)| Merge { at, len, bytes });
        let data = if merge.is_some() { None } else { bytes };
        let part = Part {
            op: key,
            kind,
            range,
            data,
            merge,
            gated: false,
            reading: false,
        };
        self.start_part(part, cx);
        Taken::Part
    }

    fn start_part(&mut self, mut part: Part, cx: &mut Cx<'_>) {
        let free = !self.gate.busy(part.range.start.extent());
        let free = free || mutant::on(Mutant::MergeWithoutGate);
        if free && (part.merge.is_none() || matches!(self.merge(&mut part, cx), Merged::Ready)) {
            self.issue_part(&part, cx);
            return;
        }
        part.gated = true;
        let range = part.range;
        let key = self.parts.insert(part);
        if self.gate.insert(key, range) {
            self.part_ready(key, cx);
        }
    }

    /// Nothing is before this part: give it its place, once its payload is there.
    fn part_ready(&mut self, key: u64, cx: &mut Cx<'_>) {
        let Some(mut part) = self.parts.remove_for_change(key) else {
            return;
        };
        let overtaken =
            part.op == REPAIR_OP && self.stream.live.overlapping(part.range).next().is_some();
        if !self.wanted_part(&part) || overtaken {
            self.parts.put_back(key, part);
            self.drop_part(key, cx);
            return;
        }
        if part.reading {
            self.parts.put_back(key, part);
            return;
        }
        if part.merge.is_some() {
            match self.merge(&mut part, cx) {
                Merged::Ready => {}
                Merged::Read => {
                    part.reading = true;
                    let range = part.range;
                    self.parts.put_back(key, part);
                    self.counters.merge_reads += 1;
                    mark::reached(Mark::MergeFromDisk);
                    self.start_read(ReadOwner::Merge { part: key }, range, cx);
                    return;
                }
                Merged::Wait => {
                    self.parts.put_back(key, part);
                    self.ready.push_back(key);
                    return;
                }
            }
        }
        if !self.can_issue() || self.stream.len() >= self.cfg.sizes.window_entries {
            self.parts.put_back(key, part);
            self.ready.push_back(key);
            return;
        }
        let (range, gated) = (part.range, part.gated);
        self.parts.forget(key);
        self.issue_part(&part, cx);
        if gated {
            self.open_gate(key, range);
        }
    }

    /// Takes a range out of the gate and moves on what waited for it.
    pub(crate) fn open_gate(&mut self, key: u64, range: BlockRange) {
        let mut freed = core::mem::take(&mut self.freed);
        let from = freed.len();
        self.gate.remove(key, range, &mut freed);
        for next in freed.iter().skip(from).copied() {
            if self.is_lock(next) {
                self.lock_unblocked(next);
            } else {
                // In order, and not from within: a chain of waiting parts must not recurse.
                let lock = self.is_lock(key);
                mark::reached(if lock {
                    Mark::WriteBehindLock
                } else {
                    Mark::MergeQueued
                });
                self.ready.push_back(next);
            }
        }
        freed.truncate(from);
        self.freed = freed;
        if !self.ready.is_empty() {
            self.again = true;
        }
    }

    fn issue_part(&mut self, part: &Part, cx: &mut Cx<'_>) {
        debug_assert!(part.merge.is_none(), "issued before it was merged");
        let kind = EntryKind::Data(part.kind);
        let op = (part.op != REPAIR_OP).then_some(part.op);
        let idx = self.issue(kind, part.range, part.data, op, cx);
        self.part_issued(part.op, idx, cx.now);
    }

    /// Makes the payload of an unaligned end from the newest payload still held for its block.
    fn merge(&mut self, part: &mut Part, cx: &mut Cx<'_>) -> Merged {
        let newest = self.stream.live.overlapping(part.range).next();
        let Some(entry) = newest.and_then(|(_, idx)| self.stream.get(idx)) else {
            return Merged::Read;
        };
        let held = match (entry.kind, entry.data) {
            (EntryKind::Data(EntryOp::Write), Some(data)) => {
                let skip = (part.range.start.0 - entry.range.start.0) * u64::from(BLOCK_BYTES);
                Some(data.slice(u32::try_from(skip).unwrap_or(u32::MAX), BLOCK_BYTES))
            }
            (EntryKind::Data(EntryOp::Write), None) => return Merged::Read,
            _ => None,
        };
        let Some(block) = cx.data.alloc(BLOCK_BYTES) else {
            return Merged::Wait;
        };
        match held {
            Some(held) => cx.data.copy(held, block),
            None => cx.data.bytes_mut(block).fill(0),
        }
        self.counters.merges_in_memory += 1;
        mark::reached(Mark::MergeFromMemory);
        overlay(part, block, cx.data);
        Merged::Ready
    }

    /// The rest of a block has been read. Takes one owner of the buffer.
    pub(crate) fn merge_read(
        &mut self,
        key: u64,
        result: Result<BufSlice, ErrorKind>,
        cx: &mut Cx<'_>,
    ) {
        let Some(part) = self.parts.get_mut(key) else {
            if let Ok(buf) = result {
                cx.data.release(buf.buf);
            }
            return;
        };
        part.reading = false;
        match result {
            Ok(block) => {
                overlay(part, block, cx.data);
                self.ready.push_back(key);
                self.again = true;
            }
            Err(kind) => {
                let op = part.op;
                self.drop_part(key, cx);
                if let Some(op) = self.ops.get_mut(op) {
                    op.error = Some(kind);
                    op.unissued -= 1;
                    op.parts -= 1;
                }
                self.try_finish(op, cx.data);
            }
        }
    }

    fn wanted_part(&self, part: &Part) -> bool {
        part.op == REPAIR_OP || self.ops.get(part.op).is_some()
    }

    /// Some replica could not read these blocks although others could: writes them once more, as
    /// they are, to all. In the gate from the read to the place in the stream, so that nothing newer
    /// is overwritten; given up when anything newer is on its way.
    pub(crate) fn rewrite(&mut self, range: BlockRange, cx: &mut Cx<'_>) {
        if !range.in_one_extent() || !self.can_issue() || self.parts.len() > REWRITES_PARTS_MAX {
            return;
        }
        let merge = Some(Merge {
            at: 0,
            len: 0,
            bytes: None,
        });
        let kind = EntryOp::Write;
        let part = Part {
            op: REPAIR_OP,
            kind,
            range,
            data: None,
            merge,
            gated: true,
            reading: false,
        };
        let key = self.parts.insert(part);
        if self.gate.insert(key, range) {
            self.part_ready(key, cx);
        }
    }

    /// Removes a part that will never be issued.
    fn drop_part(&mut self, key: u64, cx: &mut Cx<'_>) {
        let Some(part) = self.parts.remove(key) else {
            return;
        };
        let merge = part.merge.and_then(|m| m.bytes);
        for buf in [part.data, merge].into_iter().flatten() {
            cx.data.release(buf.buf);
        }
        if part.gated {
            self.open_gate(key, part.range);
        }
    }

    /// Removes what is left of requests that have ended early.
    pub(crate) fn drop_orphans(&mut self, cx: &mut Cx<'_>) {
        let orphans = self.parts.keys(|part| !self.wanted_part(part));
        for key in orphans {
            self.drop_part(key, cx);
        }
        self.ready.retain(|key| self.parts.get(*key).is_some());
        let ops = &self.ops;
        for queue in [
            &mut self.inbox,
            &mut self.read_inbox,
            &mut self.status_inbox,
        ] {
            queue.retain(|key| ops.get(*key).is_some());
        }
        self.flush_wait.retain(|key| ops.get(*key).is_some());
        self.flush_ops.retain(|(_, key)| ops.get(*key).is_some());
        self.unchecked.retain(|key| ops.get(*key).is_some());
        self.drop_orphan_reads(cx);
    }

    /// A part that had a place in an old term. Comes in order; goes before everything else. Takes
    /// one owner of the buffer.
    pub(crate) fn reissue(
        &mut self,
        op: u64,
        kind: EntryOp,
        range: BlockRange,
        data: Option<BufSlice>,
    ) {
        mark::reached(Mark::Reissued);
        if let Some(op) = self.ops.get_mut(op) {
            op.unissued += 1;
            if op.flags.fua && op.flush == FlushNeed::Waiting {
                op.flush = FlushNeed::None;
            }
        }
        let part = Part {
            op,
            kind,
            range,
            data,
            merge: None,
            gated: false,
            reading: false,
        };
        let key = self.parts.insert(part);
        self.reissued.push_back(key);
    }

    /// The reissued parts go to the front of what is ready, in their order.
    pub(crate) fn queue_reissued(&mut self) {
        while let Some(key) = self.reissued.pop_back() {
            self.ready.push_front(key);
        }
        let (ops, wait) = (&self.ops, &mut self.flush_wait);
        wait.retain(|key| {
            ops.get(*key)
                .is_some_and(|op| op.flush == FlushNeed::Waiting)
        });
    }

    /// One FLUSH entry for all requests (and rebuilds) that want one now. A flush covers every
    /// write completed before it was submitted: those have lower places.
    pub(crate) fn issue_flushes(&mut self, cx: &mut Cx<'_>) {
        let wanted =
            !self.flush_wait.is_empty() || self.copies_want_flush() || self.scrub_wants_flush();
        // One place beyond the window, so that a stream of writes cannot starve a flush.
        let room = self.stream.len() <= self.cfg.sizes.window_entries;
        if !wanted
            || !room
            || !self.can_issue()
            || self.flush_out.len() >= self.cfg.sizes.flushes_max
        {
            return;
        }
        let nothing = BlockRange::new(Lba(0), Blocks(0));
        let idx = self.issue(EntryKind::Flush, nothing, None, None, cx);
        let now = cx.now;
        let sent_at = self.stream.get(idx).map(|entry| entry.timing.sent_at);
        for at in 0..self.flush_wait.len() {
            let key = self.flush_wait[at];
            self.flush_ops.push_back((idx, key));
            if let Some(op) = self.ops.get_mut(key).filter(|op| op.op == Op::Flush) {
                op.issued_at = now;
                op.sent_at = sent_at.unwrap_or(now);
            }
        }
        self.flush_wait.clear();
        self.flush_out.push_back(idx);
        self.copies_flush_issued(idx);
        self.scrub_flush_issued(idx);
    }

    /// A FLUSH left for the first time after it had waited.
    pub(crate) fn flush_sent(&mut self, idx: Idx, now: Monotonic) {
        for (at, key) in &self.flush_ops {
            if *at == idx
                && let Some(op) = self.ops.get_mut(*key).filter(|op| op.op == Op::Flush)
            {
                op.sent_at = now;
            }
        }
    }

    /// A member has flushed up to `idx`.
    pub(crate) fn flush_answered(&mut self, member: MemberId, idx: Idx, now: Monotonic) {
        for (at, key) in &self.flush_ops {
            if *at > idx {
                return;
            }
            if let Some(op) = self.ops.get_mut(*key) {
                op.answers.note(member.index(), now.since(op.submitted));
            }
        }
    }

    /// Flushes that are durable at a majority of counted members (4.2), no older lease running.
    pub(crate) fn check_flushes(&mut self, cx: &mut Cx<'_>) {
        if !core::mem::take(&mut self.flushes_moved) || !self.open || cx.now < self.defer_until {
            return;
        }
        let durable = self.majority_of_counted(|peer| peer.flushed);
        while self.flush_out.front().is_some_and(|idx| *idx <= durable) {
            self.flush_out.pop_front();
        }
        while let Some((idx, key)) = self.flush_ops.front().copied() {
            if idx > durable {
                break;
            }
            self.flush_ops.pop_front();
            if let Some(op) = self.ops.get_mut(key) {
                op.flush = FlushNeed::Done;
                op.progress = cx.now;
                op.committed_at = cx.now;
            }
            self.try_finish(key, cx.data);
        }
    }

    /// The highest position that a majority of counted members has reached, each by `position`.
    fn majority_of_counted(&self, position: impl Fn(&crate::peer::Peer) -> Idx) -> Idx {
        let position = |member: trilith_block::MemberId| {
            if self.sync.counted.contains(member) {
                position(&self.peers[member.index()])
            } else {
                Idx(0)
            }
        };
        if let Some(live) = &self.sync.live {
            return self.reached_by_all(live, position);
        }
        if mutant::on(Mutant::FlushByFewer) {
            let far = |one| move |m| if m == one { Idx(u64::MAX) } else { position(m) };
            let counted = self.sync.counted.iter();
            return counted.fold(Idx(0), |most, m| most.max(self.membership.agreed(far(m))));
        }
        self.membership.agreed(position)
    }

    /// Flushes of an old term are asked for again in the next one.
    pub(crate) fn freeze_flushes(&mut self) {
        while let Some((_, key)) = self.flush_ops.pop_front() {
            self.flush_wait.push(key);
        }
        self.flush_out.clear();
    }
}

/// The next part of a request: its blocks and, for an unaligned end, the bytes within its block.
fn next_piece(at: u64, end: u64, kind: EntryOp) -> (BlockRange, Option<(u32, u32)>) {
    let block = u64::from(BLOCK_BYTES);
    let first = Lba(at / block);
    let within = at % block;
    if within != 0 || end - at < block {
        let len = (block - within).min(end - at);
        let edge = (
            u32::try_from(within).unwrap_or(0),
            u32::try_from(len).unwrap_or(0),
        );
        return (BlockRange::new(first, Blocks(1)), Some(edge));
    }
    let extent_end = trilith_block::ExtentNo(first.extent().0 + 1).first();
    let most = match kind {
        EntryOp::Write => first.0 + u64::from(TRANSFER_BYTES_MAX / BLOCK_BYTES),
        EntryOp::Zeroes | EntryOp::Discard => u64::MAX,
    };
    let stop = (end / block).min(extent_end.0).min(most);
    (
        BlockRange::new(first, Blocks(u32::try_from(stop - first.0).unwrap_or(0))),
        None,
    )
}

/// Puts a part's bytes into its block, which becomes its payload.
fn overlay(part: &mut Part, block: BufSlice, data: &mut dyn Buffers) {
    let Some(merge) = part.merge.take() else {
        return;
    };
    let place = block.slice(merge.at, merge.len);
    match merge.bytes {
        Some(bytes) => {
            data.copy(bytes, place);
            data.release(bytes.buf);
        }
        None => data.bytes_mut(place).fill(0),
    }
    part.data = Some(block);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_request_and_stay_within_extents() {
        for (offset, len) in [
            (0, 4096),
            (1, 1),
            (4095, 2),
            (100, 8192),
            (4 << 20, 1 << 20),
            ((4 << 20) - 5, 4106),
        ] {
            for kind in [EntryOp::Write, EntryOp::Discard] {
                let (mut at, end) = (offset, offset + len);
                while at < end {
                    let (range, edge) = next_piece(at, end, kind);
                    assert!(range.in_one_extent(), "{range:?}");
                    let begin = range.start.byte_offset();
                    let (skip, bytes) = edge.map_or((0, range.bytes()), |(at, len)| {
                        assert_eq!(range.count.0, 1);
                        (u64::from(at), u64::from(len))
                    });
                    assert_eq!(begin + skip, at);
                    assert!(bytes > 0 && at + bytes <= end);
                    assert!(kind != EntryOp::Write || bytes <= u64::from(TRANSFER_BYTES_MAX));
                    at += bytes;
                }
            }
        }
    }
}
