//! Full barriers: SYNCSET, TERMSTART, TOLD and the clean stop; and the drain of a vote. Each waits
//! for the changes before it, flushes the data, then makes one record durable; the large maps it
//! brings go into the journal before that record, as supersets, so that a crash in between leaves
//! only more to copy.

use super::api::{Admission, Change, StoreError, StoreEvent, SyncSet, TermStart, Token, Told};
use super::changes::{Owner, release};
use super::disk::StoreOut;
use super::record::{Item, MapId, SeRecord};
use super::state::{Store, Waiter};
use super::window::SlotOp;
use alloc::boxed::Box;
use trilith_block::limits::MEMBERS_MAX;
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BlockRange, Buffers, ChunkMap, ExtentNo, Idx, MemberId, MemberSet, SyncEpoch};
use trilith_wire::SlotStatus;

/// A barrier and how far it is.
#[derive(Debug)]
pub(crate) enum Barrier {
    /// The record that ends a clean stop is on its way.
    Unseal,
    Waiting(Kind),
    /// Waits until changes with this stamp are on stable media.
    Flushing(Kind, u64),
    Journal(Kind),
}

/// What a barrier does.
#[derive(Debug)]
pub(crate) enum Kind {
    SyncSet(Token, Box<SyncSet>),
    TermStart(Token, Box<TermStart>),
    Told(Token, Told),
    Seal(Token),
}

/// A call that waits behind a barrier.
#[derive(Debug)]
pub(crate) enum Queued {
    Entry(super::Entry),
    Flush(Idx),
    Repair(Token, BlockRange, Change),
    DirtyClear(MemberId, ChunkMap),
    /// The window is cut.
    Cut(Idx),
    Barrier(Kind),
}

impl Queued {
    pub(crate) fn release(self, data: &mut dyn Buffers) {
        match self {
            Queued::Entry(entry) => release(entry.change, data),
            Queued::Repair(_, _, change) => release(change, data),
            Queued::Flush(_) | Queued::DirtyClear(..) | Queued::Cut(_) | Queued::Barrier(_) => (),
        }
    }
}

impl Store {
    /// SYNCSET (5.4), in stream order, a full barrier. Accepted and [`StoreEvent::Done`] when
    /// durable. With `join` the replica takes over the maps and is untainted.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Busy`], [`StoreError::WindowFull`].
    pub fn sync_set(
        &mut self,
        token: Token,
        set: SyncSet,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> Result<Admission, StoreError> {
        self.check_calls()?;
        if !self.fits(set.idx) && !self.joins_anew(&set) {
            return Err(StoreError::WindowFull);
        }
        if self.is_accepted(set.idx) {
            return Ok(Admission::Duplicate);
        }
        self.queue
            .push_back(Queued::Barrier(Kind::SyncSet(token, Box::new(set))));
        self.pump(data, out);
        Ok(Admission::Taken)
    }

    /// TERMSTART (R7), a full barrier: flush, then { se = (term, 0), iss, loss, w = start, untainted }
    /// in one record; then `need` := limbo, dirty maps replaced, window empty; then
    /// [`StoreEvent::Done`]. [`StoreEvent::Refused`] when an entry failed and is not repaired (M3).
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Busy`], [`StoreError::FailedEntry`].
    pub fn term_start(
        &mut self,
        token: Token,
        start: TermStart,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> Result<(), StoreError> {
        self.check_calls()?;
        if !self.failed_ranges.is_empty() {
            return Err(StoreError::FailedEntry);
        }
        self.push_final(Kind::TermStart(token, Box::new(start)), data, out);
        Ok(())
    }

    /// TOLD (D1), a full barrier: the activity log becomes `need`, { se, iss, trk } durable, window
    /// empty; then [`StoreEvent::Done`].
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Busy`].
    pub fn told(
        &mut self,
        token: Token,
        told: Told,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> Result<(), StoreError> {
        self.check_calls()?;
        self.push_final(Kind::Told(token, told), data, out);
        Ok(())
    }

    /// Clean stop, a full barrier: flush, W = upto, all maps journaled, activity log empty, SEAL;
    /// then [`StoreEvent::Done`]. Entries of the window that others may lack become dirty bits of
    /// all peers. When an entry below another is missing here the stop is not clean: all but SEAL
    /// is done, and [`Store::facts`] shows it.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Busy`].
    pub fn seal(
        &mut self,
        token: Token,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> Result<(), StoreError> {
        self.check_calls()?;
        self.push_final(Kind::Seal(token), data, out);
        Ok(())
    }

    /// V3: [`StoreEvent::Done`] when no change runs or waits. What waits behind a failed entry, or
    /// behind a SYNCSET that cannot finish, is given up. The caller admits nothing meanwhile (V2).
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Busy`].
    pub fn drain(
        &mut self,
        token: Token,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> Result<(), StoreError> {
        self.check_calls()?;
        self.drains.push(token);
        self.abandoning = true;
        self.pump(data, out);
        Ok(())
    }

    /// DIRTYCLEAR, in call order: clears dirty bits of `member`, or `need` when it is this replica.
    /// Not waited for: a power loss brings bits back, which is only more to copy.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Busy`].
    pub fn dirty_clear(
        &mut self,
        member: MemberId,
        chunks: ChunkMap,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> Result<(), StoreError> {
        self.check_calls()?;
        if self.barrier.is_some() || !self.queue.is_empty() {
            self.queue.push_back(Queued::DirtyClear(member, chunks));
        } else {
            self.clear_dirty(member, &chunks);
        }
        self.pump(data, out);
        Ok(())
    }

    fn clear_dirty(&mut self, member: MemberId, chunks: &ChunkMap) {
        let map = if member == self.me() {
            MapId::NEED
        } else {
            MapId::dirty(member)
        };
        self.remove_lazily(map, chunks);
    }

    fn push_final(&mut self, kind: Kind, data: &mut dyn Buffers, out: &mut StoreOut) {
        // A SYNCSET of the old session that can never finish must not hold this back.
        self.abandoning = true;
        self.queue.push_back(Queued::Barrier(kind));
        self.pump(data, out);
    }

    pub(crate) fn end_drains(&mut self, out: &mut StoreOut) {
        if !self.abandoning || self.running.live() > 0 {
            return;
        }
        if self.queue.is_empty() && self.barrier.is_none() {
            self.abandoning = false;
            for token in self.drains.drain(..) {
                out.event(StoreEvent::Done { token });
            }
        }
    }

    /// Moves the barrier and what waits behind it.
    pub(crate) fn step_queue(&mut self, data: &mut dyn Buffers, out: &mut StoreOut) {
        if self.abandoning {
            self.abandon_failed(data, out);
        }
        loop {
            match self.barrier.take() {
                None => {
                    if !self.next_queued(data, out) {
                        return;
                    }
                }
                Some(Barrier::Waiting(kind)) => match self.begin(kind, data, out) {
                    Ok(next) => self.barrier = next,
                    Err(kind) => {
                        self.barrier = Some(Barrier::Waiting(kind));
                        return;
                    }
                },
                Some(Barrier::Flushing(kind, stamp))
                    if stamp <= self.flushed && self.may_record(&kind) =>
                {
                    self.record(&kind);
                    self.wait_journal(Waiter::Barrier);
                    self.barrier = Some(Barrier::Journal(kind));
                }
                waiting => {
                    self.barrier = waiting;
                    return;
                }
            }
        }
    }

    /// The turn of the next call. False when there is none.
    fn next_queued(&mut self, data: &mut dyn Buffers, out: &mut StoreOut) -> bool {
        match self.queue.pop_front() {
            None => {
                self.later_tidx = Idx(0);
                return false;
            }
            Some(Queued::Entry(entry)) => self.start_entry(entry, data, out),
            Some(Queued::Flush(idx)) => self.start_flush_entry(idx, data, out),
            Some(Queued::Repair(token, range, change)) => {
                let owner = Owner::Repair(token);
                self.start_change(owner, range, change, MemberSet::EMPTY, data, out);
            }
            Some(Queued::DirtyClear(member, chunks)) => self.clear_dirty(member, &chunks),
            Some(Queued::Cut(tidx)) => self.window.set_tidx(tidx),
            Some(Queued::Barrier(kind)) => self.barrier = Some(Barrier::Waiting(kind)),
        }
        true
    }

    /// Starts a barrier when everything before it has ended; gives it back when not.
    fn begin(
        &mut self,
        kind: Kind,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> Result<Option<Barrier>, Kind> {
        if !matches!(kind, Kind::SyncSet(..)) {
            self.abandon_failed(data, out);
        }
        if self.running.live() > 0 {
            return Err(kind);
        }
        match &kind {
            Kind::SyncSet(token, set) => {
                if set.idx <= self.upto() {
                    out.event(StoreEvent::Accepted { idx: set.idx });
                    out.event(StoreEvent::Done { token: *token });
                    return Ok(None);
                }
                if self.upto().next() != set.idx && !self.joins_anew(set) {
                    if self.abandoning {
                        self.give_up_queue(data, out);
                        return Ok(None);
                    }
                    return Err(kind);
                }
                self.prepare_sync_set(set);
            }
            Kind::TermStart(token, start) => {
                if !self.failed_ranges.is_empty() {
                    out.event(StoreEvent::Refused { token: *token });
                    return Ok(None);
                }
                self.prepare_maps(&start.limbo, &start.dirty);
            }
            Kind::Told(..) => {
                let mut log = ChunkMap::new();
                for extent in self.log.from(ExtentNo(0)) {
                    log.set_mask(extent, self.full_mask(extent));
                }
                self.add_journaled(MapId::NEED, &log);
            }
            Kind::Seal(_) => {
                self.window_to_dirty(self.facts.config.data());
            }
        }
        if mutant::on(Mutant::TermStartUnflushed) && matches!(kind, Kind::TermStart(..)) {
            return Ok(Some(Barrier::Flushing(kind, 0)));
        }
        self.flush_wanted = true;
        Ok(Some(Barrier::Flushing(kind, self.stamp)))
    }

    /// Drops what waits behind a SYNCSET that can never finish, up to what supersedes it.
    fn give_up_queue(&mut self, data: &mut dyn Buffers, out: &mut StoreOut) {
        while let Some(queued) = self.queue.pop_front() {
            let supersedes = matches!(
                &queued,
                Queued::Barrier(Kind::TermStart(..) | Kind::Told(..) | Kind::Seal(_))
            );
            if supersedes {
                self.queue.push_front(queued);
                return;
            }
            if let Queued::Repair(token, ..) = &queued {
                let result = Err(super::DiskError::Io);
                out.event(StoreEvent::Repaired {
                    token: *token,
                    result,
                });
            }
            queued.release(data);
        }
    }

    /// 6.2: this replica lost its window and was healed in place. The entries that it lost do not
    /// come again: its stream starts anew at the SYNCSET by which it joins.
    fn joins_anew(&self, set: &SyncSet) -> bool {
        set.join.is_some() && self.facts.tainted
    }

    fn prepare_sync_set(&mut self, set: &SyncSet) {
        // 5.4: what a member that leaves may lack is what is above tidx. It is in the dirty maps
        // before the epoch without it is durable.
        let leaving = self
            .facts
            .iss
            .or(self.facts.trk)
            .minus(set.trk)
            .without(self.me());
        if !mutant::on(Mutant::WindowNotConverted) {
            self.window_to_dirty(leaving);
        }
        if let Some(join) = &set.join {
            self.prepare_maps(&join.limbo, &join.dirty);
        }
    }

    fn window_to_dirty(&mut self, members: MemberSet) {
        let peers = self.peers(members);
        if peers.is_empty() {
            return;
        }
        let mut chunks = ChunkMap::new();
        for slot in self.window.entries(Idx(0)).filter(|slot| slot.op.is_data()) {
            chunks.add_range(slot.range);
        }
        for peer in peers.iter() {
            self.add_journaled(MapId::dirty(peer), &chunks);
        }
        self.journal_changed_dirty(peers);
    }

    /// Dirty bits of these peers that were only in the words.
    fn journal_changed_dirty(&mut self, peers: MemberSet) {
        for (extent, map) in self.maps.changed() {
            if peers.iter().any(|peer| MapId::dirty(peer) == map) {
                self.journal.push(Item::Map(map, extent));
            }
        }
    }

    fn prepare_maps(&mut self, limbo: &ChunkMap, dirty: &[ChunkMap; MEMBERS_MAX]) {
        self.add_journaled(MapId::LIMBO, limbo);
        for (map, chunks) in dirty_maps(self.peers(self.known_members()), dirty) {
            self.add_journaled(map, chunks);
        }
    }

    /// B1: the activity log is emptied by a clean stop only when the checksums are saved.
    fn may_record(&mut self, kind: &Kind) -> bool {
        !matches!(kind, Kind::Seal(_)) || self.is_checksums_saved()
    }

    /// The data is flushed: the record that makes the barrier true.
    fn record(&mut self, kind: &Kind) {
        let facts = &self.facts;
        let record = match kind {
            Kind::SyncSet(_, set) => {
                let joins = set.join.is_some();
                // W moves only inside the own in-sync set, and never while tainted.
                let complete = set.iss.contains(self.me()) && (joins || !facts.tainted);
                SeRecord {
                    se: set.se,
                    iss: set.iss,
                    trk: set.trk,
                    loss: facts.loss,
                    w: if complete {
                        set.idx
                    } else {
                        self.journal.last_w()
                    },
                    untaint: joins,
                    need_dropped: joins,
                }
            }
            Kind::TermStart(_, start) => SeRecord {
                se: SyncEpoch {
                    term: start.term,
                    n: 0,
                },
                iss: start.iss,
                trk: start.iss,
                loss: start.loss,
                w: start.start,
                untaint: true,
                need_dropped: true,
            },
            Kind::Told(_, told) => SeRecord {
                se: told.se,
                iss: told.iss,
                trk: told.trk,
                loss: facts.loss,
                // C15: the watermark of an older term must not be taken for positions of this one.
                // Outside its in-sync set the member claims nothing by it.
                w: told.start,
                untaint: false,
                need_dropped: false,
            },
            Kind::Seal(_) => {
                self.record_seal();
                return;
            }
        };
        self.journal.push(Item::Se(record));
    }

    fn record_seal(&mut self) {
        for (extent, map) in self.maps.changed() {
            self.journal.push(Item::Map(map, extent));
        }
        let stamp = self.flushed;
        self.evicted.clear();
        let all = self.log.len();
        // No change runs and the window is in the dirty maps: every extent may leave.
        let at = (Idx(u64::MAX), stamp);
        self.log
            .evict(all, all, at, &mut |_| true, &mut self.evicted);
        for at in 0..self.evicted.len() {
            self.record_gone(self.evicted[at]);
        }
        let clean = self.window.max_idx == self.upto() && self.failed_ranges.is_empty();
        if self.facts.is_complete() && !self.facts.tainted {
            self.journal.push(Item::W(self.upto()));
        }
        if clean && !self.facts.tainted && self.facts.is_complete() {
            self.journal.push(Item::Seal(true));
        }
    }

    /// The record of the barrier is durable.
    pub(crate) fn barrier_durable(&mut self, data: &mut dyn Buffers, out: &mut StoreOut) {
        let kind = match self.barrier.take() {
            Some(Barrier::Unseal) | None => return,
            Some(Barrier::Journal(kind)) => kind,
            other => {
                self.barrier = other;
                return;
            }
        };
        let token = match kind {
            Kind::SyncSet(token, set) => {
                if let Some(join) = &set.join {
                    self.take_maps(&join.limbo, &join.dirty);
                    self.untaint_window(set.idx);
                }
                if self.upto().next() == set.idx {
                    self.window.change_header(|h| h.se = set.se);
                    self.window.put_marker(set.idx, SlotOp::SyncSet, data);
                } else {
                    self.empty_window(set.idx, data);
                }
                out.event(StoreEvent::Accepted { idx: set.idx });
                token
            }
            Kind::TermStart(token, start) => {
                self.take_maps(&start.limbo, &start.dirty);
                self.untaint_window(Idx(0));
                self.empty_window(start.start, data);
                token
            }
            Kind::Told(token, told) => {
                self.empty_window(told.start, data);
                token
            }
            Kind::Seal(token) => {
                let upto = self.upto();
                self.window.set_tidx(upto);
                token
            }
        };
        out.event(StoreEvent::Done { token });
    }

    fn take_maps(&mut self, limbo: &ChunkMap, dirty: &[ChunkMap; MEMBERS_MAX]) {
        self.maps.clear(MapId::NEED, &mut *self.window.words);
        self.retain_lazily(MapId::LIMBO, limbo);
        for (map, chunks) in dirty_maps(self.peers(self.known_members()), dirty) {
            self.retain_lazily(map, chunks);
        }
    }

    /// Join: all slots below the SYNCSET become accepted.
    fn untaint_window(&mut self, below: Idx) {
        let mut idx = self.tidx();
        while idx.next() < below {
            idx = idx.next();
            if self.window.slot(idx).is_some() {
                self.window.set_status(idx, SlotStatus::Accepted);
            }
        }
        self.window.change_header(|h| h.tainted = false);
    }

    fn empty_window(&mut self, start: Idx, data: &dyn Buffers) {
        self.window.reset(start, self.facts.se, data);
        self.log.unpin_all();
        self.failed_ranges.clear();
        self.flushes.clear();
        // A flush that began before covers nothing of the new window. No watermark is on its way:
        // none is begun while the record of a barrier is.
        if let Some(flushing) = &mut self.flushing {
            flushing.upto = Idx(0);
        }
    }
}

/// The maps of those members that have one here.
fn dirty_maps(
    peers: MemberSet,
    dirty: &[ChunkMap; MEMBERS_MAX],
) -> impl Iterator<Item = (MapId, &ChunkMap)> + '_ {
    dirty.iter().enumerate().filter_map(move |(m, chunks)| {
        let member = MemberId::new(m).filter(|member| peers.contains(*member))?;
        Some((MapId::dirty(member), chunks))
    })
}
