//! The activity log (2.4): the extents that may hold changes which others do not have or which a
//! power loss may take back. Least recently used order over slots in a slab.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use trilith_block::mutant::{self, Mutant};
use trilith_block::{ExtentNo, Idx};

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    extent: ExtentNo,
    /// Its AL-add is durable: data may be written (L1).
    durable: bool,
    /// Changes admitted and not ended.
    busy: u32,
    /// Highest entry of the window in it.
    last_idx: Idx,
    /// Flush that covers its last completed change; 0 before the first.
    stamp: u64,
    newer: u32,
    older: u32,
}

/// What [`ActivityLog::touch`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Touch {
    /// Data may be written.
    Ready,
    /// It is on its way into the journal.
    Adding,
    /// It is not there.
    Missing,
}

/// The log of an open store.
#[derive(Debug)]
pub(crate) struct ActivityLog {
    places: BTreeMap<ExtentNo, u32>,
    nodes: Vec<Node>,
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
    slots: usize,
}

impl ActivityLog {
    pub(crate) fn new(slots: u32) -> ActivityLog {
        ActivityLog {
            places: BTreeMap::new(),
            nodes: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
            slots: usize::try_from(slots).unwrap_or(0),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.places.len() >= self.slots
    }

    /// Nine tenths or more of the slots are taken.
    pub(crate) fn is_nearly_full(&self) -> bool {
        self.places.len() * 10 >= self.slots * 9
    }

    pub(crate) fn from(&self, extent: ExtentNo) -> impl Iterator<Item = ExtentNo> + '_ {
        self.places.range(extent..).map(|(e, _)| *e)
    }

    fn at(place: u32) -> usize {
        usize::try_from(place).unwrap_or(usize::MAX)
    }

    /// A change of `extent` begins: pins it when it is there.
    pub(crate) fn touch(&mut self, extent: ExtentNo, idx: Idx) -> Touch {
        let Some(place) = self.places.get(&extent).copied() else {
            return Touch::Missing;
        };
        let node = &mut self.nodes[Self::at(place)];
        node.busy += 1;
        node.last_idx = node.last_idx.max(idx);
        let durable = node.durable;
        if self.newest != place {
            self.unlink(place);
            self.link_newest(place);
        }
        if durable { Touch::Ready } else { Touch::Adding }
    }

    /// Adds an extent that is missing; there must be a free slot. `stamp` as for [`Self::end`].
    pub(crate) fn add(&mut self, extent: ExtentNo, durable: bool, last_idx: Idx, stamp: u64) {
        assert!(
            !self.is_full(),
            "{} of {} slots used",
            self.places.len(),
            self.slots
        );
        let node = Node {
            extent,
            durable,
            busy: 0,
            last_idx,
            stamp,
            newer: NONE,
            older: NONE,
        };
        let place = match self.free.pop() {
            Some(place) => {
                self.nodes[Self::at(place)] = node;
                place
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).unwrap_or(NONE)
            }
        };
        self.places.insert(extent, place);
        self.link_newest(place);
    }

    /// The AL-add of an extent is durable.
    pub(crate) fn added(&mut self, extent: ExtentNo) {
        if let Some(place) = self.places.get(&extent) {
            self.nodes[Self::at(*place)].durable = true;
        }
    }

    /// An entry of the window lies in the extent, if it is there (resume).
    pub(crate) fn pin(&mut self, extent: ExtentNo, idx: Idx) {
        if let Some(place) = self.places.get(&extent) {
            let node = &mut self.nodes[Self::at(*place)];
            node.last_idx = node.last_idx.max(idx);
        }
    }

    /// A change ended. `stamp`: number of the flush that will cover it.
    pub(crate) fn end(&mut self, extent: ExtentNo, stamp: u64) {
        if let Some(place) = self.places.get(&extent) {
            let node = &mut self.nodes[Self::at(*place)];
            node.busy = node.busy.saturating_sub(1);
            node.stamp = stamp;
        }
    }

    /// The window was emptied: nothing is pinned by it.
    pub(crate) fn unpin_all(&mut self) {
        for node in &mut self.nodes {
            node.last_idx = Idx(0);
        }
    }

    /// Appends up to `count` extents that may leave (L2 a-c), oldest first, and takes them out. The
    /// caller journals their maps and their AL-del in this order (L2 d). Returns true when more
    /// could leave after a flush. `may_leave` is
    /// asked last, of those that nothing else holds.
    pub(crate) fn evict(
        &mut self,
        count: usize,
        look_at: usize,
        (tidx, flushed): (Idx, u64),
        may_leave: &mut dyn FnMut(ExtentNo) -> bool,
        gone: &mut Vec<ExtentNo>,
    ) -> bool {
        let mut place = self.oldest;
        let mut flush_helps = false;
        for _ in 0..look_at {
            if place == NONE || gone.len() >= count {
                break;
            }
            let node = self.nodes[Self::at(place)];
            let newer = node.newer;
            // L2 (a) nothing in flight, (b) no window slot above tidx, (c) flushed since.
            let cut = node.last_idx <= tidx || mutant::on(Mutant::EvictedAboveTidx);
            if node.durable && node.busy == 0 && cut {
                if node.stamp <= flushed || mutant::on(Mutant::EvictedBeforeFlush) {
                    if !may_leave(node.extent) {
                        place = newer;
                        continue;
                    }
                    self.unlink(place);
                    self.places.remove(&node.extent);
                    self.free.push(place);
                    gone.push(node.extent);
                } else {
                    flush_helps = true;
                }
            }
            place = newer;
        }
        flush_helps
    }

    fn unlink(&mut self, place: u32) {
        let Node { newer, older, .. } = self.nodes[Self::at(place)];
        match newer {
            NONE => self.newest = older,
            n => self.nodes[Self::at(n)].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            o => self.nodes[Self::at(o)].newer = newer,
        }
    }

    fn link_newest(&mut self, place: u32) {
        let older = self.newest;
        let node = &mut self.nodes[Self::at(place)];
        node.newer = NONE;
        node.older = older;
        match older {
            NONE => self.oldest = place,
            o => self.nodes[Self::at(o)].newer = place,
        }
        self.newest = place;
    }
}
