//! The stream of entries: places, sends, acks, commit, tidx.

use crate::engine::{Cx, Engine};
use crate::session::block_crcs;
use crate::slowest::Answers;
use crate::spans::Spans;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BlockRange, BufSlice, ChunkMap, Idx, MemberId, MemberSet, Monotonic};
use trilith_wire::message::further_positions;
use trilith_wire::{Append, EntryOp, EntryStatus, Message};

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EntryKind {
    Data(EntryOp),
    Flush,
    SyncSet {
        n: u32,
        iss: MemberSet,
        trk: MemberSet,
        join: Option<MemberId>,
    },
}

/// An entry that not every tracked member has accepted.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    /// Empty for what is not data.
    pub(crate) range: BlockRange,
    /// Payload; one owner is here. Kept until all of trk accepted the entry.
    pub(crate) data: Option<BufSlice>,
    crcs: Vec<u8>,
    /// Members that do not get the payload.
    pub(crate) skip: MemberSet,
    /// trk when it was issued: who is sent it.
    targets: MemberSet,
    pub(crate) acks: MemberSet,
    pub(crate) committed: bool,
    /// tidx when it was issued. A later tidx must not overtake a SYNCSET (5.4), so it also goes
    /// with each resend.
    tidx: Idx,
    /// The request that it is a part of; none once that has ended.
    pub(crate) op: Option<u64>,
    /// It takes room for an extent (M3).
    room: bool,
    pub(crate) timing: PartTiming,
    committed_at: Monotonic,
    /// With a witness: since when one member of the live in-sync sets is all that it wants (W7).
    pub(crate) wanting_since: Option<Monotonic>,
}

/// When an entry got where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PartTiming {
    pub(crate) issued_at: Monotonic,
    /// First send to anybody; 0: none yet.
    pub(crate) sent_at: Monotonic,
    /// After it was issued.
    pub(crate) answers: Answers,
}

/// All entries that matter.
#[derive(Debug, Default)]
pub(crate) struct StreamState {
    pub(crate) entries: VecDeque<Entry>,
    /// Position of the TERMSTART.
    pub(crate) start: Idx,
    /// Position of `entries[0]`. All before it are accepted by all of trk.
    pub(crate) base: Idx,
    /// The next position to give.
    pub(crate) next: Idx,
    /// All up to it are committed.
    pub(crate) commit: Idx,
    pub(crate) live: Spans,
    spare: Vec<Vec<u8>>,
    /// Extents that entries in flight may newly allocate.
    pub(crate) room_taken: u64,
    /// Something was accepted or who counts has changed: look at the front, at locks and at reads.
    pub(crate) moved: bool,
}

impl StreamState {
    /// Empty, for a term that starts at `start`.
    pub(crate) fn open(&mut self, start: Idx) {
        debug_assert!(
            self.entries.is_empty(),
            "{} entries of an old term",
            self.entries.len()
        );
        self.start = start;
        self.base = start.next();
        self.next = start.next();
        self.commit = start;
        self.live.clear();
        self.room_taken = 0;
    }

    pub(crate) fn get(&self, idx: Idx) -> Option<&Entry> {
        let at = idx.0.checked_sub(self.base.0)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    pub(crate) fn get_mut(&mut self, idx: Idx) -> Option<&mut Entry> {
        let at = idx.0.checked_sub(self.base.0)?;
        self.entries.get_mut(usize::try_from(at).ok()?)
    }

    pub(crate) fn tidx(&self) -> Idx {
        Idx(self.base.0.saturating_sub(1))
    }

    /// From now on all entries go to a member in full; where they were to be headers only.
    pub(crate) fn skip_no_more(&mut self, member: MemberId) -> ChunkMap {
        let mut marked = ChunkMap::new();
        for entry in &mut self.entries {
            if entry.skip.contains(member) {
                entry.skip = entry.skip.without(member);
                marked.add_range(entry.range);
            }
        }
        marked
    }

    pub(crate) fn len(&self) -> u64 {
        self.next.0 - self.base.0
    }

    /// The newest uncommitted entry at the blocks of `range`, by position.
    pub(crate) fn uncommitted(&self, range: BlockRange) -> Option<Idx> {
        let open = |idx: &Idx| self.get(*idx).is_some_and(|e| !e.committed);
        self.live
            .overlapping(range)
            .map(|(_, idx)| idx)
            .filter(open)
            .max()
    }
}

impl Engine {
    /// Gives an entry its place and sends it. Takes one owner of the buffer.
    pub(crate) fn issue(
        &mut self,
        kind: EntryKind,
        range: BlockRange,
        data: Option<BufSlice>,
        op: Option<u64>,
        cx: &mut Cx<'_>,
    ) -> Idx {
        let idx = self.stream.next;
        let mut skip = MemberSet::EMPTY;
        let mut room = false;
        if let EntryKind::Data(what) = kind {
            skip = self.route(range);
            self.scrub.route(range);
            room = self.take_room(what, range);
            self.stream.live.insert(range, idx);
            self.forget_allocation(range.start.extent());
        }
        let mut crcs = self.stream.spare.pop().unwrap_or_default();
        crcs.clear();
        if let Some(buf) = data {
            debug_assert!(u64::from(buf.len) == range.bytes(), "{buf:?} for {range:?}");
            block_crcs(cx.data, buf, &mut crcs);
        }
        // `tidx` is what held before this entry: a SYNCSET carries the one of the old trk.
        let tidx = self.stream.tidx();
        self.stream.entries.push_back(Entry {
            kind,
            range,
            data,
            crcs,
            skip,
            targets: self.sync.trk,
            acks: MemberSet::EMPTY,
            committed: false,
            tidx,
            op,
            room,
            timing: PartTiming {
                issued_at: cx.now,
                sent_at: Monotonic(0),
                answers: Answers::default(),
            },
            committed_at: Monotonic(0),
            wanting_since: None,
        });
        self.stream.next = idx.next();
        for member in self.sync.trk.iter() {
            self.pump(member, cx);
        }
        idx
    }

    /// Members that are not sent the payload of an entry at `range`: those not in trk, and tracked
    /// ones that lack one of its chunks anyway. Marks the chunks as lacking there (4.1 step 2).
    fn route(&mut self, range: BlockRange) -> MemberSet {
        let mut skip = MemberSet::EMPTY;
        for member in self.members.minus(self.membership.witness).iter() {
            let full = if !self.sync.trk.contains(member) {
                false
            } else {
                match self.rebuilds[member.index()].as_mut() {
                    Some(running) if running.in_place => {
                        // It is not sent entries at all.
                        running.rebuild.mark(range);
                        false
                    }
                    Some(running) => running.rebuild.route(range) == crate::rebuild::Route::Full,
                    None => !self.absent[member.index()].touches(range),
                }
            };
            if !full {
                skip = skip.with(member);
                self.absent[member.index()].add_range(range);
            }
        }
        skip
    }

    /// Sends what can be sent to a member: queued frames first, then entries in order, as far as
    /// its credits go.
    pub(crate) fn pump(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        loop {
            let peer = &self.peers[member.index()];
            if !peer.is_ours() {
                return;
            }
            if peer.control.front().is_some_and(|c| c.is_due(peer.cursor)) {
                if !self.send_control(member, cx) {
                    return;
                }
                continue;
            }
            if !self.open || !peer.fed || !self.send_next(member, cx) {
                return;
            }
        }
    }

    /// Sends or skips the entry at the cursor. False when there is none or no credit for it.
    fn send_next(&mut self, member: MemberId, cx: &mut Cx<'_>) -> bool {
        let peer = &mut self.peers[member.index()];
        peer.cursor = peer.cursor.max(self.stream.base);
        let idx = peer.cursor;
        let Some(entry) = self.stream.get(idx) else {
            return false;
        };
        if !entry.targets.contains(member) || entry.acks.contains(member) {
            // C21: a FLUSH that was accepted before an earlier entry may be done nowhere.
            let owed = matches!(entry.kind, EntryKind::Flush)
                && entry.acks.contains(member)
                && peer.flushed < idx
                && !mutant::on(Mutant::FlushNotAskedAgain);
            peer.cursor = idx.next();
            if owed {
                self.ask_flush(member, idx, cx);
            }
            return true;
        }
        let header_only = entry.skip.contains(member);
        let payload = entry.data.filter(|_| !header_only);
        let bytes = u64::from(payload.map_or(0, |p| p.len));
        let room = peer.in_flight_entries < peer.credit_entries
            && peer.in_flight_bytes + bytes <= peer.credit_bytes;
        if !room && peer.in_flight_entries > 0 {
            return false;
        }
        if let EntryKind::SyncSet {
            join: Some(joiner), ..
        } = entry.kind
            && joiner == member
            && peer.staged_for != Some(idx)
        {
            self.stage_for_join(member, idx);
            return true;
        }
        peer.cursor = idx.next();
        peer.in_flight_entries += 1;
        peer.in_flight_bytes += bytes;
        let resend = idx < peer.resend_below;
        self.counters.resends += u64::from(resend);
        self.send_entry(member, idx, header_only, resend, cx);
        true
    }

    fn send_entry(
        &mut self,
        member: MemberId,
        idx: Idx,
        header_only: bool,
        resend: bool,
        cx: &mut Cx<'_>,
    ) {
        let at = usize::try_from(idx.0 - self.stream.base.0).unwrap_or(usize::MAX);
        let crcs = core::mem::take(&mut self.stream.entries[at].crcs);
        let entry = &self.stream.entries[at];
        let (term, tidx, sent_at) = (self.term, entry.tidx, cx.now.0);
        let payload = entry.data.filter(|_| !header_only);
        let message = match entry.kind {
            EntryKind::Data(op) => Message::Append(Append {
                term,
                idx,
                op,
                range: entry.range,
                skip: entry.skip,
                header_only,
                resend,
                tidx,
                sent_at,
                crcs: if payload.is_some() { &crcs } else { &[] },
            }),
            EntryKind::Flush => Message::Flush {
                term,
                idx,
                tidx,
                sent_at,
            },
            EntryKind::SyncSet { n, iss, trk, join } => Message::SyncSet {
                term,
                idx,
                n,
                iss,
                trk,
                tidx,
                join,
            },
        };
        self.send(member, &message, payload, cx);
        let entry = &mut self.stream.entries[at];
        entry.crcs = crcs;
        if entry.timing.sent_at == Monotonic(0) {
            entry.timing.sent_at = cx.now;
            if entry.kind == EntryKind::Flush {
                self.flush_sent(idx, cx.now);
            }
        }
    }

    /// What an ACK or HEARTBEATDONE says about positions.
    pub(crate) fn accepted(
        &mut self,
        member: MemberId,
        upto: Idx,
        further: &[u8],
        cx: &mut Cx<'_>,
    ) {
        let peer = &self.peers[member.index()];
        if !self.open || !peer.promised || !peer.synced {
            return;
        }
        let beyond = further_positions(further).any(|idx| idx >= self.stream.next);
        if upto >= self.stream.next || beyond {
            return self.drop_session(member, cx);
        }
        let from = peer.upto.next().max(self.stream.base);
        if upto > peer.upto {
            self.peers[member.index()].upto = upto;
        }
        for idx in from.0..=upto.0 {
            self.mark(Idx(idx), member, cx);
        }
        for idx in further_positions(further) {
            self.mark(idx, member, cx);
        }
        self.pump(member, cx);
    }

    /// A member has accepted an entry.
    fn mark(&mut self, idx: Idx, member: MemberId, cx: &mut Cx<'_>) {
        let (trk, live) = (self.sync.trk, self.sync.live);
        let Some(entry) = self.stream.get_mut(idx) else {
            return;
        };
        if !entry.targets.and(trk).contains(member) || entry.acks.contains(member) {
            return;
        }
        entry.acks = entry.acks.with(member);
        if !entry.committed {
            let after = cx.now.since(entry.timing.issued_at);
            entry.timing.answers.note(member.index(), after);
            if live.is_some_and(|l| l.needed().minus(entry.acks).count() == 1) {
                entry.wanting_since = entry.wanting_since.or(Some(cx.now));
            }
        }
        let bytes = match entry.data {
            Some(data) if !entry.skip.contains(member) => u64::from(data.len),
            Some(_) | None => 0,
        };
        let peer = &mut self.peers[member.index()];
        if idx < peer.cursor {
            peer.in_flight_entries = peer.in_flight_entries.saturating_sub(1);
            peer.in_flight_bytes = peer.in_flight_bytes.saturating_sub(bytes);
            peer.write_latency
                .record(cx.now.since(entry.timing.sent_at));
        }
        if entry.committed {
            peer.lag_entries = peer.lag_entries.saturating_sub(1);
            peer.lag_bytes = peer.lag_bytes.saturating_sub(bytes);
        }
        self.stream.moved = true;
        self.try_commit(idx, cx);
        // What all of trk accepted is never sent again: its payload goes, its place stays.
        if let Some(entry) = self.stream.get_mut(idx)
            && entry.committed
            && entry.targets.and(trk).minus(entry.acks).is_empty()
            && let Some(data) = entry.data.take()
        {
            cx.data.release(data.buf);
        }
    }

    /// The commit rule (4.1 step 5, W3): a majority of counted members accepted it, and no older
    /// leader's lease can still run (5.5).
    fn try_commit(&mut self, idx: Idx, cx: &mut Cx<'_>) {
        let (mut counted, trk, membership) = (self.sync.counted, self.sync.trk, self.membership);
        let live = self.sync.live;
        if mutant::on(Mutant::UncountedAck) {
            counted = trk;
        }
        let defer_until = self.defer_until;
        let Some(entry) = self.stream.get_mut(idx) else {
            return;
        };
        let acks = entry.acks.and(counted);
        let decides = |acks: MemberSet| match &live {
            Some(live) => live.commits(acks),
            None => membership.is_majority(acks),
        };
        let decided = decides(acks)
            || (mutant::on(Mutant::AckBeforeMajority) && trk.iter().any(|m| decides(acks.with(m))));
        if entry.committed || !decided {
            return;
        }
        if mark::reached_if(cx.now < defer_until, Mark::AckDeferred) {
            return;
        }
        entry.committed = true;
        entry.committed_at = cx.now;
        let op = entry.op.take();
        let timing = entry.timing;
        let missing = entry.targets.and(trk).minus(entry.acks);
        let bytes = u64::from(entry.data.map_or(0, |d| d.len));
        for member in missing.iter() {
            self.peers[member.index()].lag_entries += 1;
            self.peers[member.index()].lag_bytes += bytes;
        }
        self.stream.moved = true;
        if let Some(op) = op {
            self.part_committed(op, idx, &timing, cx);
        }
    }

    /// Who counts has changed, or the deferral is over: looks at all entries.
    pub(crate) fn recount(&mut self, cx: &mut Cx<'_>) {
        self.stream.moved = true;
        for idx in self.stream.base.0..self.stream.next.0 {
            self.try_commit(Idx(idx), cx);
        }
    }

    /// Moves commit and tidx on, gives back the payload of what all of trk accepted. True when
    /// something had moved.
    pub(crate) fn advance(&mut self, cx: &mut Cx<'_>) -> bool {
        if !core::mem::take(&mut self.stream.moved) {
            return false;
        }
        while self
            .stream
            .get(self.stream.commit.next())
            .is_some_and(|e| e.committed)
        {
            self.stream.commit = self.stream.commit.next();
        }
        let trk = self.sync.trk;
        while let Some(front) = self.stream.entries.front() {
            let missing = front.targets.and(trk).minus(front.acks);
            let waits = !missing.is_empty() && !mutant::on(Mutant::WindowCutAtCommit);
            // W5: tidx stops at what is committed.
            if !(front.committed || self.passes_uncommitted(front)) || waits {
                break;
            }
            let idx = self.stream.base;
            if let Some(entry) = self.stream.entries.pop_front() {
                self.drop_entry(idx, entry, cx);
            }
            self.stream.base = idx.next();
        }
        true
    }

    fn passes_uncommitted(&self, front: &Entry) -> bool {
        self.sync.live.is_some() && front.op.is_none() && mutant::on(Mutant::TidxUncommitted)
    }

    fn drop_entry(&mut self, idx: Idx, entry: Entry, cx: &mut Cx<'_>) {
        if let Some(data) = entry.data {
            cx.data.release(data.buf);
        }
        if !entry.range.is_empty() {
            self.stream.live.remove(entry.range, idx);
        }
        self.stream.room_taken -= u64::from(entry.room);
        self.stream.spare.push(entry.crcs);
    }

    /// The members that accepted every live entry at `range`.
    pub(crate) fn holders(&self, range: BlockRange) -> MemberSet {
        let mut holders = self.sync.counted;
        if mutant::on(Mutant::ReadFromLaggard) {
            return holders;
        }
        for (_, idx) in self.stream.live.overlapping(range) {
            if let Some(entry) = self.stream.get(idx) {
                holders = holders.and(entry.acks).minus(entry.skip);
            }
        }
        holders
    }

    /// Everything up to `idx` is on this member: it joined or was told to start there.
    pub(crate) fn accepted_all(&mut self, member: MemberId, idx: Idx, cx: &mut Cx<'_>) {
        for at in self.stream.base.0..=idx.0 {
            self.mark(Idx(at), member, cx);
        }
        let peer = &mut self.peers[member.index()];
        peer.upto = peer.upto.max(idx);
    }

    /// A member lost its window: what it accepted beyond its watermark is void (6.2).
    pub(crate) fn strip(&mut self, member: MemberId, w: Idx) {
        for at in self.stream.base.0.max(w.0 + 1)..self.stream.next.0 {
            if let Some(entry) = self.stream.get_mut(Idx(at)) {
                entry.acks = entry.acks.without(member);
            }
        }
    }

    /// Chunks of the entries that a member which leaves may lack: all of them, as the in-sync
    /// members convert their windows (5.4).
    pub(crate) fn mark_window(&mut self, member: MemberId) {
        let absent = &mut self.absent[member.index()];
        for entry in &self.stream.entries {
            if !entry.range.is_empty() {
                absent.add_range(entry.range);
            }
        }
        let peer = &mut self.peers[member.index()];
        peer.lag_entries = 0;
        peer.lag_bytes = 0;
    }

    /// The device of a member refused an entry. With a wrong checksum nothing was written: a new
    /// session sends it again in order, unless a later overlapping entry may have been accepted
    /// there already (O1); then the member has to be demoted like one with a broken device.
    pub(crate) fn entry_failed(
        &mut self,
        member: MemberId,
        idx: Idx,
        status: EntryStatus,
        cx: &mut Cx<'_>,
    ) {
        let Some(range) = self.stream.get(idx).map(|e| e.range) else {
            return;
        };
        let cursor = self.peers[member.index()].cursor;
        let overtaken = (idx.0 + 1..cursor.0).any(|at| {
            self.stream
                .get(Idx(at))
                .is_some_and(|e| e.range.overlaps(range))
        });
        if status == EntryStatus::Checksum && !overtaken {
            self.drop_session(member, cx);
        } else {
            self.peers[member.index()].broken = true;
            self.mode_dirty = true;
            self.lower_counted(member);
        }
    }

    /// FLUSHDONE: the watermark is durable at `idx` there.
    pub(crate) fn flush_done(&mut self, member: MemberId, idx: Idx, cx: &mut Cx<'_>) {
        let peer = &mut self.peers[member.index()];
        if !self.open || !peer.synced || idx >= self.stream.next {
            return;
        }
        let news = idx > peer.flushed;
        peer.flushed = peer.flushed.max(idx);
        self.flushes_moved = true;
        if news {
            self.flush_answered(member, idx, cx.now);
        }
        self.copies_flushed(member, cx);
    }

    /// Age of the oldest committed entry that a member lacks.
    pub(crate) fn lag_age(&self, member: MemberId, now: Monotonic) -> core::time::Duration {
        let peer = &self.peers[member.index()];
        if peer.lag_entries == 0 {
            return core::time::Duration::ZERO;
        }
        let first = self.stream.get(peer.upto.next().max(self.stream.base));
        first
            .filter(|e| e.committed)
            .map_or(core::time::Duration::ZERO, |e| now.since(e.committed_at))
    }

    /// The term is over for this stream: what clients were not told goes back to be issued again,
    /// in order. Blind writes may be done twice.
    pub(crate) fn freeze_stream(&mut self, cx: &mut Cx<'_>) {
        let mut at = 0;
        while let Some(mut entry) = self.stream.entries.pop_front() {
            let idx = Idx(self.stream.base.0 + at);
            at += 1;
            if let (EntryKind::Data(kind), Some(op)) = (entry.kind, entry.op) {
                let data = entry.data.take();
                self.reissue(op, kind, entry.range, data);
            }
            self.drop_entry(idx, entry, cx);
        }
        self.stream.live.clear();
        self.stream.base = self.stream.next;
    }
}
