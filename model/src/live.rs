//! An open term: the stream, acks, demotion, D1, TOLD, copies, join, return of a member, reads
//! (4.1 to 4.3, 5.4, 6).

use crate::limits::{BLOCKS, MAJORITY, REPLICAS};
use crate::scope::Variant;
use crate::state::{
    Engine, Entry, Kind, Mask, Phase, Slot, SlotState, Standing, State, Violation, at, bit, has,
};

impl State {
    fn is_active(&self, engine: u8) -> bool {
        let e = &self.engines[at(engine)];
        e.phase == Phase::Live && e.opened
    }

    pub(crate) fn may_write(&self, engine: u8) -> bool {
        self.left.writes > 0 && self.is_active(engine)
    }

    pub(crate) fn write(&mut self, engine: u8, block: u8) {
        self.left.writes -= 1;
        let value = self.witness.next_value;
        self.witness.next_value += 1;
        let e = &mut self.engines[at(engine)];
        let mut skip = 0;
        for member in 0..REPLICAS {
            let rebuilding = matches!(e.standing[member], Standing::Tracked { .. });
            if !has(e.trk, member) || (rebuilding && has(e.dirty[member], at(block))) {
                skip |= bit(member);
                e.dirty[member] |= bit(at(block));
            }
        }
        e.issue(Kind::Write { block, value, skip });
    }

    pub(crate) fn may_flush(&self, engine: u8) -> bool {
        // A flush of nothing is not worth a state.
        let e = &self.engines[at(engine)];
        self.left.flushes > 0 && self.is_active(engine) && e.blocks_above(0) != 0
    }

    pub(crate) fn flush(&mut self, engine: u8) {
        self.left.flushes -= 1;
        let mut cover = self.witness.floor;
        let e = &mut self.engines[at(engine)];
        for entry in &e.log {
            if let Kind::Write { block, value, .. } = entry.kind {
                cover[at(block)] = cover[at(block)].max(value);
            }
        }
        e.issue(Kind::Flush { cover });
    }

    /// The next entry of the stream that this member has not received.
    fn next_entry(&self, engine: u8, member: usize) -> Option<u8> {
        let (e, r) = (&self.engines[at(engine)], &self.replicas[member]);
        if e.phase != Phase::Live || r.session != Some(engine) || r.se.0 != e.term {
            return None;
        }
        let sent = |idx: &u8| e.entry(*idx).is_some_and(|entry| has(entry.sent, member));
        (r.position + 1..=e.last()).find(sent)
    }

    pub(crate) fn may_deliver(&self, engine: u8, member: usize) -> bool {
        let Some(idx) = self.next_entry(engine, member) else {
            return false;
        };
        let r = &self.replicas[member];
        match self.engines[at(engine)].entry(idx).map(|e| &e.kind) {
            // O1.
            Some(Kind::Write { block, .. }) => {
                let overlaps = |s: &Slot| s.state == SlotState::Flying && s.block == *block;
                !r.window.iter().any(overlaps)
            }
            Some(Kind::Flush { .. } | Kind::Sync { .. }) => !r.busy(),
            None => false,
        }
    }

    /// A member receives the next entry.
    pub(crate) fn deliver(&mut self, engine: u8, member: usize, slow: bool, variant: Variant) {
        let Some(idx) = self.next_entry(engine, member) else {
            return;
        };
        let Some(entry) = self.engines[at(engine)].entry(idx).cloned() else {
            return;
        };
        let term = self.engines[at(engine)].term;
        let r = &mut self.replicas[member];
        r.position = idx;
        match entry.kind {
            Kind::Write { block, value, skip } => {
                let flies = r.receive(member, idx, (block, value), skip);
                if flies && slow {
                    return;
                }
                if flies {
                    r.land(member, idx);
                }
            }
            Kind::Flush { .. } => {
                if variant != Variant::FlushIsEmpty {
                    r.flush();
                }
                if r.complete(member) {
                    r.w = r.w.max(idx);
                    r.upto = r.upto.max(idx);
                }
            }
            Kind::Sync { .. } => r.sync(member, term, idx, &entry.kind, variant),
        }
        r.advance(member);
        self.acked(engine, member, idx, variant);
    }

    /// What is at the device lands; the ack goes to whoever has the session.
    pub(crate) fn complete(&mut self, member: usize, idx: u8, variant: Variant) {
        let r = &mut self.replicas[member];
        r.land(member, idx);
        if let Some(engine) = r.session {
            self.acked(engine, member, idx, variant);
        }
    }

    fn acked(&mut self, engine: u8, member: usize, idx: u8, variant: Variant) {
        let e = &mut self.engines[at(engine)];
        let last = e.last();
        let Some(entry) = e.entry_mut(idx) else {
            return;
        };
        entry.acks |= bit(member);
        if let Kind::Sync { n, join, .. } = entry.kind {
            e.epoch_done[member] = e.epoch_done[member].max(n + 1);
            if join.map(at) == Some(member) && e.standing[member] == Standing::Joining {
                e.joined(member, idx.min(last));
            }
        }
        self.settle_live(engine, variant);
    }

    /// Opens, commits, moves tidx.
    pub(crate) fn settle_live(&mut self, engine: u8, variant: Variant) {
        let e = &self.engines[at(engine)];
        if e.phase != Phase::Live {
            return;
        }
        if !e.opened && MAJORITY <= e.counted.count_ones() {
            self.open(engine);
        }
        if self.engines[at(engine)].opened {
            self.commit(engine, variant);
        }
        let e = &mut self.engines[at(engine)];
        while let Some(entry) = e.entry(e.tidx + 1) {
            let owed = match variant {
                Variant::EagerTidx => 0,
                _ => entry.sent & e.trk & !entry.acks,
            };
            if !entry.committed || owed != 0 {
                break;
            }
            e.tidx += 1;
        }
    }

    fn commit(&mut self, engine: u8, variant: Variant) {
        let (term, counted) = {
            let e = &self.engines[at(engine)];
            (e.term, e.counted)
        };
        let fenced = self.engines.iter().any(|o| o.opened && o.term > term);
        let newest = self.content_of_newest_term();
        let same_epoch = self.engines[at(engine)].loss == self.witness.epoch;
        for entry in &mut self.engines[at(engine)].log {
            let votes = match variant {
                Variant::RebuilderCounts => entry.acks,
                _ => entry.acks & counted,
            };
            if entry.committed || votes.count_ones() < MAJORITY {
                continue;
            }
            entry.committed = true;
            let w = &mut self.witness;
            match &entry.kind {
                Kind::Write { block, value, .. } => {
                    // A reply in a loss epoch that is over promises nothing.
                    if fenced && same_epoch && newest[at(*block)] < *value {
                        w.blame(Violation::FencedAck);
                    }
                    if same_epoch {
                        let floor = &mut w.floor[at(*block)];
                        *floor = (*floor).max(*value);
                    }
                }
                Kind::Flush { cover } => {
                    for (block, value) in cover.iter().enumerate() {
                        if fenced && newest[block] < *value {
                            w.blame(Violation::FencedAck);
                        }
                        w.flushed[block] = w.flushed[block].max(*value);
                    }
                }
                Kind::Sync { .. } => {}
            }
        }
    }

    /// Per block the oldest value at a complete member of the newest term that was started.
    fn content_of_newest_term(&self) -> [u8; BLOCKS] {
        let newest = self.replicas.iter().map(|r| r.se.0).max().unwrap_or(0);
        let mut oldest = [u8::MAX; BLOCKS];
        for (member, r) in self.replicas.iter().enumerate() {
            if r.se.0 == newest && r.complete(member) {
                for (old, now) in oldest.iter_mut().zip(r.now) {
                    *old = (*old).min(now);
                }
            }
        }
        oldest
    }

    /// A member that has received every SYNCSET hears of tidx and cuts its window there.
    pub(crate) fn may_cut(&self, engine: u8, member: usize) -> bool {
        let (e, r) = (&self.engines[at(engine)], &self.replicas[member]);
        if e.phase != Phase::Live || r.session != Some(engine) || r.se.0 != e.term {
            return false;
        }
        let pending = e.positions().zip(&e.log).any(|(idx, entry)| {
            let barrier = matches!(entry.kind, Kind::Sync { .. });
            barrier && has(entry.sent, member) && idx > r.position
        });
        has(e.trk, member) && !pending && r.tidx < e.tidx
    }

    pub(crate) fn cut(&mut self, engine: u8, member: usize) {
        let tidx = self.engines[at(engine)].tidx;
        let r = &mut self.replicas[member];
        r.tidx = tidx;
        r.window
            .retain(|s| s.idx > tidx || s.state == SlotState::Flying);
    }

    pub(crate) fn may_hear_opened(&self, engine: u8, member: usize) -> bool {
        let (e, r) = (&self.engines[at(engine)], &self.replicas[member]);
        self.is_active(engine)
            && has(e.counted, member)
            && r.session == Some(engine)
            && r.se.0 == e.term
            && r.complete(member)
            && !r.tainted
            && r.need != 0
    }

    /// R9.
    pub(crate) fn hear_opened(&mut self, member: usize) {
        self.replicas[member].need = 0;
    }

    /// Enough remain in sync.
    fn can_spare(&self, engine: u8, member: usize) -> bool {
        let e = &self.engines[at(engine)];
        let rest = !bit(member);
        self.is_active(engine)
            && e.standing[member] == Standing::InSync
            && MAJORITY <= (e.iss & rest).count_ones()
            && MAJORITY <= (e.counted & rest).count_ones()
    }

    pub(crate) fn may_demote(&self, engine: u8, member: usize) -> bool {
        self.left.demotions > 0 && self.can_spare(engine, member)
    }

    pub(crate) fn demote(&mut self, engine: u8, member: usize, variant: Variant) {
        self.engines[at(engine)].demote(member);
        self.settle_live(engine, variant);
    }

    /// D1, and a session of this engine.
    pub(crate) fn may_tell(&self, engine: u8, member: usize, variant: Variant) -> bool {
        let e = &self.engines[at(engine)];
        let Standing::Out { since } = e.standing[member] else {
            return false;
        };
        let durable = (0..REPLICAS)
            .filter(|p| has(e.counted, *p) && e.epoch_done[*p] > since)
            .count();
        let d1 = variant == Variant::NoD1 || MAJORITY as usize <= durable;
        let r = &self.replicas[member];
        self.is_active(engine) && d1 && r.session == Some(engine) && !r.busy()
    }

    /// TOLD; from here on the member gets the stream.
    pub(crate) fn tell(&mut self, engine: u8, member: usize, variant: Variant) {
        let e = &mut self.engines[at(engine)];
        let Standing::Out { since } = e.standing[member] else {
            return;
        };
        let knows = (0..REPLICAS)
            .filter(|p| {
                let r = &self.replicas[*p];
                r.complete(*p) && r.se >= (e.term, since) && !has(r.iss, member)
            })
            .count();
        if knows < MAJORITY as usize {
            self.witness.blame(Violation::ToldTooEarly);
        }
        let r = &mut self.replicas[member];
        // 6.4: what the member says of itself joins what is known of it.
        e.dirty[member] |= r.window_blocks() | r.need;
        if r.tainted {
            e.dirty[member] |= r.al;
        }
        r.flush();
        r.need |= e.dirty[member];
        r.se = (e.term, e.n);
        r.iss = e.iss;
        r.trk = e.trk;
        r.window.clear();
        r.upto = 0;
        r.tidx = e.last();
        r.position = e.last();
        r.dirty_durable = r.dirty;
        e.trk |= bit(member);
        let (iss, trk) = (e.iss, e.trk);
        let c0 = e.issue_sync(iss, trk, None);
        e.standing[member] = Standing::Tracked { since, c0 };
        self.settle_live(engine, variant);
    }

    /// A member that can serve the newest committed value of a block.
    fn can_source(&self, engine: u8, member: usize, block: usize) -> bool {
        let e = &self.engines[at(engine)];
        has(e.counted, member)
            && self.replicas[member].session == Some(engine)
            && e.writes_of(block).all(|entry| has(entry.acks, member))
    }

    pub(crate) fn may_copy(&self, engine: u8, source: usize, member: usize, block: usize) -> bool {
        let e = &self.engines[at(engine)];
        let r = &self.replicas[member];
        let settled = e.writes_of(block).all(|entry| {
            let Kind::Write { skip, .. } = entry.kind else {
                return true;
            };
            let owes = entry.sent & !skip & !entry.acks;
            entry.committed && !has(owes, member)
        });
        matches!(e.standing[member], Standing::Tracked { .. })
            && self.is_active(engine)
            && has(e.dirty[member], block)
            && r.session == Some(engine)
            && source != member
            && settled
            && self.can_source(engine, source, block)
    }

    pub(crate) fn copy(&mut self, engine: u8, source: usize, member: usize, block: usize) {
        let value = self.replicas[source].now[block];
        self.replicas[member].put(block, value);
        self.engines[at(engine)].dirty[member] &= !bit(block);
    }

    pub(crate) fn may_join(&self, engine: u8, member: usize) -> bool {
        let e = &self.engines[at(engine)];
        let Standing::Tracked { c0, .. } = e.standing[member] else {
            return false;
        };
        let received = e
            .log
            .iter()
            .all(|entry| !has(entry.sent, member) || has(entry.acks, member));
        self.is_active(engine)
            && self.replicas[member].session == Some(engine)
            && e.dirty[member] == 0
            && received
            && c0 <= e.tidx
    }

    pub(crate) fn join(&mut self, engine: u8, member: usize, variant: Variant) {
        let e = &mut self.engines[at(engine)];
        e.iss |= bit(member);
        e.standing[member] = Standing::Joining;
        let (iss, trk) = (e.iss, e.trk);
        e.issue_sync(iss, trk, u8::try_from(member).ok());
        self.settle_live(engine, variant);
    }

    /// A member without a session of this open term could have one.
    pub(crate) fn may_return(&self, engine: u8, member: usize) -> bool {
        let (e, r) = (&self.engines[at(engine)], &self.replicas[member]);
        let ours = r.term == e.term && r.vote == engine;
        e.phase == Phase::Live && r.session != Some(engine) && (r.term < e.term || ours)
    }

    pub(crate) fn come_back(&mut self, engine: u8, member: usize, variant: Variant) {
        let e = &self.engines[at(engine)];
        let r = &self.replicas[member];
        let whole = r.se.0 == e.term && r.complete(member) && !r.tainted && has(e.iss, member);
        let in_sync = matches!(e.standing[member], Standing::InSync | Standing::Joining);
        if whole {
            self.resume(engine, member, variant);
        } else if in_sync {
            self.return_without_claim(engine, member, variant);
        } else {
            self.take_session(engine, member, variant);
            self.engines[at(engine)].stop_feeding(member);
            self.engines[at(engine)].untrack(member);
            self.settle_live(engine, variant);
        }
    }

    /// 5.4: it says what it accepted, the rest is sent again.
    fn resume(&mut self, engine: u8, member: usize, variant: Variant) {
        self.take_session(engine, member, variant);
        let r = &mut self.replicas[member];
        r.advance(member);
        r.position = r.upto;
        let e = &mut self.engines[at(engine)];
        let done = r.se.1;
        e.epoch_done[member] = e.epoch_done[member].max(done + 1);
        let start = e.start;
        for (entry, idx) in e.log.iter_mut().zip(start + 1..) {
            if has(entry.sent, member) && r.accepted(idx) {
                entry.acks |= bit(member);
            }
        }
        if e.standing[member] == Standing::Joining {
            let upto = r.upto;
            e.joined(member, upto);
        }
        e.counted |= bit(member);
        self.settle_live(engine, variant);
    }

    /// 6.2: it lost power, or never heard TERMSTART. Nothing above its watermark counts.
    fn return_without_claim(&mut self, engine: u8, member: usize, variant: Variant) {
        let w = if self.replicas[member].se.0 == self.engines[at(engine)].term {
            self.replicas[member].w
        } else {
            0
        };
        let e = &mut self.engines[at(engine)];
        e.counted &= !bit(member);
        e.epoch_done[member] = 0;
        e.dirty[member] |= e.blocks_above(w);
        let start = e.start;
        for (entry, idx) in e.log.iter_mut().zip(start + 1..) {
            if idx > w {
                entry.acks &= !bit(member);
            }
        }
        e.standing[member] = Standing::InSync;
        if self.is_active(engine) && self.spares_uncounted(engine, member) {
            self.take_session(engine, member, variant);
            self.engines[at(engine)].stop_feeding(member);
            self.engines[at(engine)].demote(member);
        }
        self.settle_live(engine, variant);
    }

    fn spares_uncounted(&self, engine: u8, member: usize) -> bool {
        let e = &self.engines[at(engine)];
        MAJORITY <= (e.iss & !bit(member)).count_ones() && MAJORITY <= e.counted.count_ones()
    }

    /// 4.3. `None`: not now; else the value that the client gets.
    pub(crate) fn read(&self, engine: u8, member: usize, block: usize) -> Option<u8> {
        let e = &self.engines[at(engine)];
        let here = self.sessions(engine).count_ones();
        let open = e.phase == Phase::Live && (e.opened || e.loss == self.witness.epoch);
        let agreed = !has(e.limbo, block) && e.writes_of(block).all(|entry| entry.committed);
        let readable = open && MAJORITY <= here && agreed;
        (readable && self.can_source(engine, member, block))
            .then(|| self.replicas[member].now[block])
    }

    /// The client has seen a value.
    pub(crate) fn seen(&mut self, block: usize, value: u8) {
        let floor = &mut self.witness.floor[block];
        if value < *floor {
            self.witness.blame(Violation::ReadReverted);
        } else {
            *floor = value;
        }
    }
}

impl crate::state::Replica {
    /// A write is received. True: it is at the device now.
    fn receive(&mut self, own: usize, idx: u8, (block, value): (u8, u8), skip: Mask) -> bool {
        for peer in 0..REPLICAS {
            if peer != own && has(skip, peer) {
                self.dirty[peer] |= bit(at(block));
            }
        }
        if self.accepted(idx) {
            return false;
        }
        let header_only = has(skip, own);
        let state = if header_only {
            SlotState::Skipped
        } else {
            SlotState::Flying
        };
        let slot = Slot {
            idx,
            block,
            value,
            state,
        };
        self.window.retain(|s| s.idx != idx);
        let place = self.window.partition_point(|s| s.idx < idx);
        self.window.insert(place, slot);
        if !header_only {
            self.submit(at(block), value);
        }
        !header_only
    }

    /// SYNCSET (5.4): a barrier.
    fn sync(&mut self, own: usize, term: u8, idx: u8, entry: &Kind, variant: Variant) {
        let Kind::Sync {
            n,
            iss,
            trk,
            join,
            dirty,
            limbo,
        } = entry
        else {
            return;
        };
        for peer in 0..REPLICAS {
            let leaves = has(self.trk, peer) && !has(*trk, peer);
            if leaves && variant != Variant::NoConversion {
                self.dirty[peer] |= self.window_blocks();
            }
            if has(*iss, peer) && !has(self.iss, peer) {
                self.dirty[peer] = 0;
            }
        }
        self.flush();
        if join.map(at) == Some(own) {
            self.need = *limbo;
            self.tainted = false;
            self.dirty = *dirty;
            self.upto = idx;
            for slot in &mut self.window {
                slot.state = SlotState::Accepted;
            }
        }
        self.se = (term, *n);
        self.iss = *iss;
        self.trk = *trk;
        if self.complete(own) {
            self.w = idx;
            self.upto = idx;
        }
        self.dirty_durable = self.dirty;
    }
}

impl Engine {
    fn issue(&mut self, kind: Kind) -> u8 {
        self.log.push(Entry {
            kind,
            sent: self.trk,
            acks: 0,
            committed: false,
        });
        self.last()
    }

    fn issue_sync(&mut self, iss: Mask, trk: Mask, join: Option<u8>) -> u8 {
        self.n += 1;
        let mut dirty = [0; REPLICAS];
        for (peer, lacks) in dirty.iter_mut().enumerate() {
            if !has(iss, peer) && join.is_some() {
                *lacks = self.dirty[peer];
            }
        }
        let limbo = self.limbo;
        let n = self.n;
        self.issue(Kind::Sync {
            n,
            iss,
            trk,
            join,
            dirty,
            limbo,
        })
    }

    fn demote(&mut self, member: usize) {
        let rest = !bit(member);
        self.dirty[member] |= self.blocks_above(self.tidx);
        self.iss &= rest;
        self.trk &= rest;
        self.counted &= rest;
        let (iss, trk) = (self.iss, self.trk);
        self.issue_sync(iss, trk, None);
        self.standing[member] = Standing::Out { since: self.n };
    }

    /// What was sent in an earlier session and not accepted is not sent again. A join above all:
    /// it would clear the taint of a member that lost power after its copies.
    fn stop_feeding(&mut self, member: usize) {
        for entry in &mut self.log {
            entry.sent &= !bit(member);
        }
    }

    /// A rebuild ends because its member was lost.
    fn untrack(&mut self, member: usize) {
        if let Standing::Tracked { since, .. } = self.standing[member] {
            self.dirty[member] |= self.blocks_above(self.tidx);
            self.trk &= !bit(member);
            let (iss, trk) = (self.iss, self.trk);
            self.issue_sync(iss, trk, None);
            self.standing[member] = Standing::Out { since };
        }
    }

    fn joined(&mut self, member: usize, upto: u8) {
        self.standing[member] = Standing::InSync;
        self.counted |= bit(member);
        let start = self.start;
        for (entry, idx) in self.log.iter_mut().zip(start + 1..) {
            if idx <= upto {
                entry.acks |= bit(member);
            }
        }
    }
}
