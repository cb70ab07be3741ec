//! What a replica does by itself: its device, crash and power loss, the activity log.

use crate::limits::{BLOCKS, REPLICAS};
use crate::scope::Variant;
use crate::state::{Mask, Replica, Slot, SlotState, State, at, bit, has};

impl Replica {
    /// A write reaches the device: it may be there after a power loss, and is in the activity log.
    pub(crate) fn submit(&mut self, block: usize, value: u8) {
        self.al |= bit(block);
        self.maybe[block] |= bit(at(value));
    }

    /// A write at the device completes.
    pub(crate) fn put(&mut self, block: usize, value: u8) {
        self.submit(block, value);
        self.now[block] = value;
    }

    /// The device's cache is empty afterwards.
    pub(crate) fn flush(&mut self) {
        for block in 0..BLOCKS {
            self.maybe[block] = bit(at(self.now[block]));
        }
    }

    /// An entry completes: it is accepted.
    pub(crate) fn land(&mut self, own: usize, idx: u8) {
        if let Some(position) = self.window.iter().position(|s| s.idx == idx) {
            let Slot { block, value, .. } = self.window[position];
            self.put(at(block), value);
            self.window[position].state = SlotState::Accepted;
        }
        self.advance(own);
    }

    /// `upto` moves over what is contiguous. Only a complete member may say so.
    pub(crate) fn advance(&mut self, own: usize) {
        if !self.complete(own) {
            return;
        }
        while let Some(slot) = self.slot(self.upto + 1)
            && matches!(slot.state, SlotState::Accepted | SlotState::Skipped)
        {
            self.upto += 1;
        }
    }

    /// The slot of a position.
    pub(crate) fn slot(&self, idx: u8) -> Option<&Slot> {
        self.window.iter().find(|s| s.idx == idx)
    }

    /// acc(r): it accepted this entry.
    pub(crate) fn accepted(&self, idx: u8) -> bool {
        let slot_says = |s: &Slot| matches!(s.state, SlotState::Accepted | SlotState::Skipped);
        idx <= self.upto || self.slot(idx).is_some_and(slot_says)
    }

    /// Something is at its device.
    pub(crate) fn busy(&self) -> bool {
        self.window.iter().any(|s| s.state == SlotState::Flying)
    }

    /// Blocks of its window.
    pub(crate) fn window_blocks(&self) -> Mask {
        self.window.iter().fold(0, |set, s| set | bit(at(s.block)))
    }

    /// The process ends and starts again. Bit i of `landed`: what flew in slot i has landed (K1: or
    /// never will).
    fn crash(&mut self, landed: Mask, variant: Variant) {
        for position in 0..self.window.len() {
            let Slot {
                block,
                value,
                state,
                ..
            } = self.window[position];
            if state == SlotState::Flying {
                if has(landed, position) {
                    self.put(at(block), value);
                }
                self.window[position].state = SlotState::Submitted;
            }
        }
        self.end_session();
        if variant == Variant::VoteForgotten {
            self.forget_vote();
        }
    }

    /// The host loses power; of each block one of its possible values is left.
    fn lose_power(&mut self, own: usize, content: [u8; BLOCKS], variant: Variant) {
        for (block, value) in content.iter().enumerate() {
            self.now[block] = *value;
            self.maybe[block] = bit(at(*value));
        }
        self.window.clear();
        self.upto = self.w;
        self.tidx = self.w;
        self.tainted = true;
        self.dirty = self.dirty_durable;
        for (peer, dirty) in self.dirty.iter_mut().enumerate() {
            if peer != own {
                *dirty |= self.al;
            }
        }
        self.dirty_durable = self.dirty;
        // M2.
        self.need |= self.al;
        self.al = 0;
        self.end_session();
        if variant == Variant::VoteForgotten {
            self.forget_vote();
        }
    }

    fn end_session(&mut self) {
        self.session = None;
        self.position = 0;
    }

    fn forget_vote(&mut self) {
        if self.term > self.se.0 {
            self.term = self.se.0;
            self.vote = u8::MAX;
        }
    }

    /// Every content that a power loss may leave.
    pub(crate) fn contents_after_power_loss(&self) -> Vec<[u8; BLOCKS]> {
        let mut all = vec![[0; BLOCKS]];
        for block in 0..BLOCKS {
            let mut longer = Vec::new();
            for content in &all {
                for value in 0..crate::limits::VALUES_MAX {
                    if has(self.maybe[block], at(value)) {
                        let mut content = *content;
                        content[block] = value;
                        longer.push(content);
                    }
                }
            }
            all = longer;
        }
        all
    }

    /// L2: nothing of this extent is at the device or needed to know what others may lack.
    pub(crate) fn may_evict(&self, block: usize, variant: Variant) -> bool {
        let in_window = |s: &Slot| at(s.block) == block;
        let flying = |s: &Slot| in_window(s) && s.state == SlotState::Flying;
        let pinned = match variant {
            Variant::EagerEviction => self.window.iter().any(flying),
            _ => self.window.iter().any(in_window),
        };
        has(self.al, block) && !pinned && !self.tainted && !has(self.need, block)
    }

    pub(crate) fn evict(&mut self, block: usize) {
        self.flush();
        self.al &= !bit(block);
        self.dirty_durable = self.dirty;
    }
}

impl State {
    /// Sets of flying slots that may have landed when the process of `member` ends.
    pub(crate) fn landings(&self, member: usize) -> Vec<Mask> {
        let window = &self.replicas[member].window;
        let mut sets = vec![0];
        for (position, slot) in window.iter().enumerate() {
            if slot.state == SlotState::Flying {
                let with: Vec<Mask> = sets.iter().map(|s| s | bit(position)).collect();
                sets.extend(with);
            }
        }
        sets
    }

    pub(crate) fn crash(&mut self, member: usize, landed: Mask, variant: Variant) {
        self.left.crashes -= 1;
        self.replicas[member].crash(landed, variant);
        self.members_lost();
    }

    pub(crate) fn lose_power(&mut self, member: usize, content: [u8; BLOCKS], variant: Variant) {
        self.left.powers -= 1;
        self.replicas[member].lose_power(member, content, variant);
        self.members_lost();
    }

    /// Every host goes dark, those of the engines too.
    pub(crate) fn black_out(&mut self, contents: &[[u8; BLOCKS]; REPLICAS], variant: Variant) {
        self.left.blackouts -= 1;
        for (member, content) in contents.iter().enumerate() {
            self.replicas[member].lose_power(member, *content, variant);
        }
        for engine in &mut self.engines {
            engine.phase = crate::state::Phase::Dead;
        }
    }

    /// Recoveries notice at once that a member is gone; engines of an open term when it returns.
    pub(crate) fn members_lost(&mut self) {
        for engine in 0..self.engines.len() {
            self.settle_recovery(u8::try_from(engine).unwrap_or(u8::MAX));
        }
    }
}
