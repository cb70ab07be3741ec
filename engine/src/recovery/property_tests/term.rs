//! One term of the model: what an engine and its members do between two recoveries.

use super::*;

impl Member {
    pub(super) fn al_map(&self) -> ChunkMap {
        let mut map = ChunkMap::new();
        self.al.iter().for_each(|e| map.set_mask(*e, u64::MAX));
        map
    }

    fn in_flight(&self) -> Vec<u64> {
        let sub = self
            .window
            .iter()
            .filter(|(_, s)| s.status == SlotStatus::Submitted);
        sub.map(|(idx, _)| *idx).collect()
    }

    fn accept(&mut self, idx: u64) {
        self.above.insert(idx);
        while self.above.remove(&(self.upto + 1)) {
            self.upto += 1;
        }
    }

    fn land(&mut self, idx: u64) {
        let slot = self.window.get_mut(&idx).unwrap();
        slot.status = SlotStatus::Accepted;
        for lba in blocks(slot.range) {
            self.now.insert(lba, slot.value);
        }
        self.accept(idx);
    }

    pub(super) fn flush(&mut self) {
        self.durable = self.now.clone();
    }

    fn power_loss(&mut self, rng: &mut Rng, count: usize) {
        self.process_crash(rng);
        for lba in places() {
            if rng.chance(50) {
                self.now.insert(lba, get(&self.durable, lba));
            }
        }
        self.flush();
        self.tainted = true;
        self.window.clear();
        self.above.clear();
        self.upto = self.w;
        self.tidx = self.w;
        let al = self.al_map();
        self.dirty = self.dirty_durable.clone();
        for p in 0..count {
            self.dirty.get_mut(member(p)).union(&al);
        }
        self.dirty_durable = self.dirty.clone();
        self.need.union(&al);
        self.al.clear();
    }

    fn process_crash(&mut self, rng: &mut Rng) {
        self.connected = false;
        for idx in self.in_flight() {
            let slot = self.window[&idx].clone();
            for lba in blocks(slot.range) {
                if rng.chance(50) {
                    self.now.insert(lba, slot.value);
                }
            }
        }
    }
}

impl World {
    pub(super) fn lead(&mut self, outcome: Outcome, term: u64) {
        let mut engine = Engine {
            term,
            n: 0,
            iss: outcome.iss,
            counted: outcome.counted,
            log: Vec::new(),
            acks: BTreeMap::new(),
            next: outcome.start.0 + 1,
            flushes: BTreeMap::new(),
            out: BTreeMap::new(),
            running: self.running(&outcome),
        };
        for m in 0..self.members.len() {
            self.members[m].connected = outcome.counted.contains(member(m));
            self.members[m].at = 0;
            self.members[m].told = false;
        }
        let steps = self.rng.below(250);
        for _ in 0..steps {
            self.step(&mut engine);
            self.witness_step(&mut engine);
        }
        self.unopened = None;
        self.engine_dies();
    }

    pub(super) fn engine_dies(&mut self) {
        for m in 0..self.members.len() {
            if self.rng.chance(8) {
                self.power(m);
            } else if self.rng.chance(20) {
                self.members[m].process_crash(&mut self.rng);
            } else if self.members[m].connected {
                // V3: what is in flight lands before the promise.
                for idx in self.members[m].in_flight() {
                    self.members[m].land(idx);
                }
            }
        }
        if self.rng.chance(6) {
            for m in 0..self.members.len() {
                if self.rng.chance(85) {
                    self.power(m);
                }
            }
        }
    }

    pub(super) fn power(&mut self, m: usize) {
        if self.witness.contains(member(m)) {
            // Nothing of it is volatile.
            return;
        }
        let count = self.members.len();
        self.members[m].power_loss(&mut self.rng, count);
    }

    fn step(&mut self, engine: &mut Engine) {
        let m = self.rng.below(self.members.len());
        match self.rng.below(100) {
            0..12 => self.issue(engine),
            12..40 => {
                for _ in 0..3 {
                    self.process(engine, m);
                }
            }
            40..42 => self.drain(engine),
            42..65 => {
                let waiting = self.members[m].in_flight();
                if self.members[m].connected && !waiting.is_empty() {
                    let idx = waiting[self.rng.below(waiting.len())];
                    self.members[m].land(idx);
                    self.ack(engine, m, idx);
                }
            }
            65..75 => self.cut_window(engine, m),
            75..80 => self.evict(m),
            80..82 => self.demote(engine, m),
            82..87 => self.tell(engine, m),
            87..95 => self.join(engine, m),
            95 => self.members[m].process_crash(&mut self.rng),
            96 => {
                if self.rng.chance(40) {
                    self.power(m);
                    self.lost_power(engine, m);
                }
            }
            _ => self.resume(engine, m),
        }
    }

    /// Everyone who is connected catches up.
    fn drain(&mut self, engine: &mut Engine) {
        for m in 0..self.members.len() {
            for _ in 0..engine.log.len() {
                self.process(engine, m);
                if !self.members[m].connected {
                    continue;
                }
                for idx in self.members[m].in_flight() {
                    self.members[m].land(idx);
                    self.ack(engine, m, idx);
                }
            }
        }
    }

    fn issue(&mut self, engine: &mut Engine) {
        if !self.may_issue(engine) || engine.log.len() > 200 {
            return;
        }
        let idx = engine.next;
        engine.next += 1;
        let entry = if self.rng.chance(15) {
            let covered = self
                .history
                .iter()
                .map(|(lba, h)| (*lba, h.committed))
                .collect();
            engine.flushes.insert(idx, covered);
            Entry::Flush
        } else {
            let (start, count) = PLACES[self.rng.below(PLACES.len())];
            let first = self.rng.below(count as usize);
            let len = 1 + self.rng.below((count as usize - first).min(3));
            let range =
                crate::recovery::testing::range(start + first as u64, u32::try_from(len).unwrap());
            self.value += 1;
            for lba in blocks(range) {
                self.history.get_mut(&lba).unwrap().values.push(self.value);
            }
            let skip = self.data().minus(engine.iss);
            Entry::Write {
                range,
                value: self.value,
                skip,
            }
        };
        engine.log.push((idx, entry));
    }

    fn process(&mut self, engine: &mut Engine, m: usize) {
        let at = self.members[m].at;
        if !self.members[m].connected || !engine.iss.contains(member(m)) || at >= engine.log.len() {
            return;
        }
        let (idx, entry) = engine.log[at];
        let me = &mut self.members[m];
        match entry {
            Entry::Write { range, value, skip } => {
                let overlaps = |i: &u64| me.window[i].range.overlaps(range) && *i != idx;
                if me.in_flight().iter().any(overlaps) {
                    return; // O1
                }
                for p in skip.iter() {
                    me.dirty.get_mut(p).add_range(range);
                }
                let held = me
                    .window
                    .get(&idx)
                    .is_some_and(|s| s.status == SlotStatus::Accepted);
                if !held && idx > me.upto {
                    let status = SlotStatus::Submitted;
                    me.window.insert(
                        idx,
                        Slot {
                            range,
                            status,
                            value,
                        },
                    );
                    me.al.insert(range.start.extent());
                }
            }
            Entry::Flush => {
                if !me.in_flight().is_empty() {
                    return;
                }
                me.flush();
                me.w = me.w.max(idx);
                me.accept(idx);
            }
            Entry::SyncSet { n, iss, joined } => {
                if !me.in_flight().is_empty() {
                    return;
                }
                if me.se.n < n {
                    let left = me.iss.minus(iss);
                    let slots: Vec<BlockRange> = me.window.values().map(|s| s.range).collect();
                    for p in left.iter() {
                        slots.iter().for_each(|r| me.dirty.get_mut(p).add_range(*r));
                    }
                    joined.iter().for_each(|p| me.dirty.get_mut(p).clear());
                    me.flush();
                    me.se.n = n;
                    me.iss = iss;
                    me.w = idx;
                    me.dirty_durable = me.dirty.clone();
                }
                me.accept(idx);
            }
        }
        self.members[m].at += 1;
        let held = idx <= self.members[m].upto || self.members[m].above.contains(&idx);
        if held {
            self.ack(engine, m, idx);
        }
    }

    fn ack(&mut self, engine: &mut Engine, m: usize, idx: u64) {
        if !engine.counted.contains(member(m)) {
            return;
        }
        let acks = engine.acks.entry(idx).or_default();
        *acks = acks.with(member(m));
        self.try_commit(engine, idx);
    }

    pub(super) fn try_commit(&mut self, engine: &mut Engine, idx: u64) {
        let acks = engine.acks.get(&idx).copied().unwrap_or_default();
        if !self.decides(engine, acks.and(engine.counted)) {
            return;
        }
        if let Some(running) = engine.running.as_mut() {
            running.committed.insert(idx);
        }
        let Some((_, entry)) = engine.log.iter().find(|(i, _)| *i == idx) else {
            return;
        };
        match *entry {
            Entry::Write { range, value, .. } => {
                for lba in blocks(range) {
                    let h = self.history.get_mut(&lba).unwrap();
                    let at = h.values.iter().position(|v| *v == value).unwrap();
                    h.committed = h.committed.max(at);
                }
            }
            Entry::Flush => {
                for (lba, at) in &engine.flushes[&idx] {
                    let h = self.history.get_mut(lba).unwrap();
                    h.flushed = h.flushed.max(*at);
                }
            }
            Entry::SyncSet { .. } => {}
        }
    }

    /// tidx: what all tracked members accepted; told only behind the newest sync set.
    fn cut_window(&mut self, engine: &Engine, m: usize) {
        let me = &self.members[m];
        if !me.connected || me.se.n != engine.n || !engine.iss.contains(member(m)) {
            return;
        }
        let all = engine
            .iss
            .iter()
            .map(|p| self.members[p.index()].upto)
            .min()
            .unwrap();
        let all = engine.committed_at_most(all);
        let me = &mut self.members[m];
        me.tidx = me.tidx.max(all.min(me.upto));
        let tidx = me.tidx;
        me.window.retain(|idx, _| *idx > tidx);
    }

    fn evict(&mut self, m: usize) {
        let me = &mut self.members[m];
        if me.tainted {
            return;
        }
        let pinned: BTreeSet<ExtentNo> =
            me.window.values().map(|s| s.range.start.extent()).collect();
        if let Some(extent) = me.al.iter().find(|e| !pinned.contains(e)).copied() {
            me.flush();
            me.al.remove(&extent);
            me.dirty_durable = me.dirty.clone();
        }
    }

    fn demote(&mut self, engine: &mut Engine, m: usize) {
        let p = member(m);
        if !engine.iss.contains(p) || !self.may_demote(engine, p) {
            return;
        }
        self.members[m].connected = false;
        engine.counted = engine.counted.without(p);
        engine.iss = engine.iss.without(p);
        self.sync_set(engine, MemberSet::EMPTY);
        engine.out.insert(m, engine.n);
    }

    /// SYNCSET with the present in-sync set, to all of it.
    pub(super) fn sync_set(&mut self, engine: &mut Engine, joined: MemberSet) {
        engine.n += 1;
        if let Some(running) = engine.running.as_mut() {
            running.live.issued(engine.n, engine.iss);
        }
        let entry = Entry::SyncSet {
            n: engine.n,
            iss: engine.iss,
            joined,
        };
        engine.log.push((engine.next, entry));
        engine.next += 1;
    }

    fn lost_power(&mut self, engine: &mut Engine, m: usize) {
        let p = member(m);
        if self.witness.contains(p) {
            return;
        }
        let w = self.members[m].w;
        for (idx, acks) in &mut engine.acks {
            if *idx > w {
                *acks = acks.without(p);
            }
        }
        if self.may_demote(engine, p) {
            self.demote(engine, m);
        } else {
            engine.counted = engine.counted.without(p);
        }
    }

    /// D1, then TOLD.
    fn tell(&mut self, engine: &mut Engine, m: usize) {
        let Some(n) = engine.out.get(&m) else { return };
        let durable = |p: &MemberId| {
            let s = &self.members[p.index()];
            s.se.n >= *n && s.se.term == Term(engine.term)
        };
        let holders = engine.counted.iter().filter(durable);
        let holders = holders.fold(MemberSet::EMPTY, MemberSet::with);
        if engine.running.is_none() && holders.count() < self.majority() {
            return;
        }
        if engine.running.is_some() {
            if !engine.iss.minus(holders).is_empty() {
                return; // W8
            }
            // It is tracked by an epoch of its own.
            self.sync_set(engine, MemberSet::EMPTY);
        }
        for idx in self.members[m].in_flight() {
            self.members[m].land(idx);
        }
        let me = &mut self.members[m];
        me.flush();
        me.se = SyncEpoch {
            term: Term(engine.term),
            n: engine.n,
        };
        me.iss = engine.iss;
        let al = me.al_map();
        me.need.union(&al);
        me.al.clear();
        for slot in me.window.values() {
            me.need.add_range(slot.range);
        }
        me.window.clear();
        me.tainted = false;
        me.told = true;
        self.saw("told");
    }

    /// A whole rebuild at a quiet moment, then the joining sync set.
    fn join(&mut self, engine: &mut Engine, m: usize) {
        let quiet = engine
            .iss
            .iter()
            .all(|p| self.members[p.index()].upto + 1 == engine.next);
        let counted = engine.counted;
        let settled = engine.is_settled();
        if !self.members[m].told || !quiet || engine.iss != counted || !settled {
            return;
        }
        if engine.running.is_some() && self.rng.chance(25) {
            return self.half_join(engine, m);
        }
        let mut differing = self.members[m].need.clone();
        differing.union(&self.members[m].al_map());
        for p in counted.iter() {
            differing.union(self.members[p.index()].dirty.get(member(m)));
        }
        let source = self.members[counted.iter().next().unwrap().index()].clone();
        let me = &mut self.members[m];
        for lba in places().filter(|l| differing.touches(crate::recovery::testing::range(*l, 1))) {
            me.now.insert(lba, get(&source.now, lba));
        }
        for lba in places() {
            let (found, expected) = (get(&me.now, lba), get(&source.now, lba));
            assert_eq!(
                found, expected,
                "I9: seed {}, block {lba} of member {m}",
                self.seed
            );
        }
        engine.iss = engine.iss.with(member(m));
        engine.counted = engine.iss;
        engine.out.remove(&m);
        let idx = engine.next;
        self.sync_set(engine, MemberSet::of(member(m)));
        let me = &mut self.members[m];
        me.flush();
        me.se = SyncEpoch {
            term: Term(engine.term),
            n: engine.n,
        };
        me.iss = engine.iss;
        (me.w, me.upto, me.tidx) = (idx, idx, idx - 1);
        me.above.clear();
        me.window.clear();
        me.al.clear();
        me.need.clear();
        me.dirty = source.dirty.clone();
        engine.iss.iter().for_each(|p| me.dirty.get_mut(p).clear());
        me.dirty_durable = me.dirty.clone();
        (me.tainted, me.told, me.connected, me.at) = (false, false, true, engine.log.len());
        self.ack(engine, m, idx);
        self.saw("join");
    }

    fn resume(&mut self, engine: &Engine, m: usize) {
        let me = &mut self.members[m];
        let usable = engine.iss.contains(member(m)) && !me.tainted && me.se.term.0 == engine.term;
        if !me.connected && usable && engine.counted.contains(member(m)) {
            me.connected = true;
            me.at = engine
                .log
                .iter()
                .position(|(i, _)| *i > me.upto)
                .unwrap_or(engine.log.len());
        }
    }
}
