//! The arena of one simulated process. Every buffer is counted; a use after the last release, a
//! release too many and what is still held at the end are found. New buffers hold junk, so that
//! bytes nobody wrote are seen.

use std::cell::Cell;
use trilith_block::limits::TRANSFER_BYTES_MAX;
use trilith_block::{BufId, BufSlice, Buffers};

const JUNK: u8 = 0xa5;

#[derive(Debug, Default)]
struct Slot {
    bytes: Vec<u8>,
    owners: u32,
    parting: bool,
}

/// Memory of one process.
#[derive(Debug)]
pub struct SimBuffers {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Released by everyone, but actions not taken yet may still name them.
    parting: Vec<u32>,
    budget: u64,
    used: u64,
    peak: u64,
    refused: Cell<u64>,
}

impl SimBuffers {
    /// An arena of `budget` bytes.
    pub fn new(budget: u64) -> SimBuffers {
        SimBuffers {
            slots: Vec::new(),
            free: Vec::new(),
            parting: Vec::new(),
            budget,
            used: 0,
            peak: 0,
            refused: Cell::new(0),
        }
    }

    /// Bytes in buffers that have an owner.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes that may be in use.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Most bytes ever used.
    pub fn peak(&self) -> u64 {
        self.peak
    }

    /// How often the budget refused a buffer.
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Buffers that have an owner: `(id, length, owners)`.
    pub fn live(&self) -> Vec<(u32, usize, u32)> {
        (0u32..)
            .zip(&self.slots)
            .filter(|(_, s)| s.owners > 0)
            .map(|(i, s)| (i, s.bytes.len(), s.owners))
            .collect()
    }

    /// What is held, for the name of a state.
    pub fn digest(&self, sum: &mut crate::digest::Sum) {
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.owners > 0 || slot.parting {
                sum.word(index as u64);
                sum.text(&(slot.owners, slot.parting));
                sum.bytes(&slot.bytes);
            }
        }
        sum.text(&(&self.free, &self.parting));
    }

    /// The driver has taken all actions and retained what they name: what nobody owns is free. (A
    /// machine may release a buffer right after the action that names it.)
    pub fn reclaim(&mut self) {
        for index in std::mem::take(&mut self.parting) {
            let slot = &mut self.slots[index as usize];
            slot.parting = false;
            if slot.owners == 0 {
                self.used -= slot.bytes.len() as u64;
                self.free.push(index);
            }
        }
    }

    fn slot(&self, slice: BufSlice) -> &Slot {
        let slot = &self.slots[slice.buf.0 as usize];
        assert!(
            slot.owners > 0 || slot.parting,
            "buffer {} is used after its release",
            slice.buf.0
        );
        slot
    }
}

impl Buffers for SimBuffers {
    fn alloc(&mut self, len: u32) -> Option<BufSlice> {
        let bytes = u64::from(len).next_multiple_of(4096);
        if len == 0 || len > TRANSFER_BYTES_MAX || self.used + bytes > self.budget {
            self.refused.set(self.refused.get() + 1);
            return None;
        }
        self.used += bytes;
        self.peak = self.peak.max(self.used);
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.owners = 1;
        slot.bytes.clear();
        slot.bytes.resize(bytes as usize, JUNK);
        Some(BufSlice {
            buf: BufId(index),
            offset: 0,
            len,
        })
    }

    fn retain(&mut self, buf: BufId) {
        let slot = &mut self.slots[buf.0 as usize];
        let live = slot.owners > 0 || slot.parting;
        assert!(live, "buffer {} is retained after its release", buf.0);
        slot.owners += 1;
    }

    fn release(&mut self, buf: BufId) {
        let slot = &mut self.slots[buf.0 as usize];
        assert!(
            slot.owners > 0,
            "buffer {} is released once too often",
            buf.0
        );
        slot.owners -= 1;
        if slot.owners == 0 && !slot.parting {
            slot.parting = true;
            self.parting.push(buf.0);
        }
    }

    fn bytes(&self, slice: BufSlice) -> &[u8] {
        &self.slot(slice).bytes[slice.offset as usize..][..slice.len as usize]
    }

    fn bytes_mut(&mut self, slice: BufSlice) -> &mut [u8] {
        let slot = &mut self.slots[slice.buf.0 as usize];
        assert!(
            slot.owners > 0,
            "buffer {} is written after its release",
            slice.buf.0
        );
        &mut slot.bytes[slice.offset as usize..][..slice.len as usize]
    }

    fn copy(&mut self, source: BufSlice, target: BufSlice) {
        assert_eq!(
            source.len, target.len,
            "copy between slices of different length"
        );
        if source.buf == target.buf {
            let slot = &mut self.slots[source.buf.0 as usize];
            let from = source.offset as usize;
            slot.bytes
                .copy_within(from..from + source.len as usize, target.offset as usize);
            return;
        }
        let mut bytes = std::mem::take(&mut self.slots[target.buf.0 as usize].bytes);
        bytes[target.offset as usize..][..target.len as usize].copy_from_slice(self.bytes(source));
        self.slots[target.buf.0 as usize].bytes = bytes;
    }

    fn crc32c(&self, seed: u32, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(seed, bytes)
    }

    fn available(&self) -> u64 {
        self.budget - self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_bounds_what_is_out_and_released_bytes_come_back() {
        let mut arena = SimBuffers::new(8192);
        let a = arena.alloc(100).expect("fits");
        let b = arena.alloc(4096).expect("fits");
        assert_eq!(arena.alloc(1), None);
        arena.retain(a.buf);
        arena.release(a.buf);
        assert_eq!(arena.alloc(1), None);
        arena.release(a.buf);
        arena.retain(a.buf);
        arena.reclaim();
        assert_eq!(arena.available(), 0, "an action still names it");
        arena.release(a.buf);
        arena.reclaim();
        assert_eq!(arena.available(), 4096);
        arena.bytes_mut(b).fill(7);
        let c = arena.alloc(4096).expect("fits");
        arena.copy(b, c);
        assert_eq!(arena.bytes(c)[4095], 7);
        assert_eq!(arena.live().len(), 2);
    }
}
