//! Buffers of tests: counted, limited, checked at the end.

use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;
use trilith_block::{BufId, BufSlice, Buffers};

/// An arena with a budget.
#[derive(Debug)]
pub(crate) struct Arena {
    buffers: BTreeMap<u32, (u32, Vec<u8>)>,
    next: u32,
    pub(crate) budget: u64,
    table: [u32; 256],
}

impl Arena {
    pub(crate) fn new(budget: u64) -> Arena {
        let mut table = [0u32; 256];
        for (i, slot) in table.iter_mut().enumerate() {
            let mut crc = u32::try_from(i).unwrap();
            for _ in 0..8 {
                crc = if crc & 1 == 1 {
                    (crc >> 1) ^ 0x82f6_3b78
                } else {
                    crc >> 1
                };
            }
            *slot = crc;
        }
        Arena {
            buffers: BTreeMap::new(),
            next: 1,
            budget,
            table,
        }
    }

    /// Number of buffers that have not been given back.
    pub(crate) fn live(&self) -> usize {
        self.buffers.values().filter(|b| b.0 > 0).count()
    }

    /// The driver has taken all actions and owns what they name: what nobody owns is gone.
    pub(crate) fn reclaim(&mut self) {
        self.buffers.retain(|_, b| b.0 > 0);
    }
}

impl Buffers for Arena {
    fn alloc(&mut self, len: u32) -> Option<BufSlice> {
        let limit = trilith_block::limits::TRANSFER_BYTES_MAX;
        if len == 0 || len > limit || u64::from(len) > self.available() {
            return None;
        }
        let id = self.next;
        self.next += 1;
        // Arbitrary bytes: nothing may rely on zeroes.
        self.buffers.insert(id, (1, vec![0xa5; len as usize]));
        Some(BufSlice {
            buf: BufId(id),
            offset: 0,
            len,
        })
    }

    fn retain(&mut self, buf: BufId) {
        self.buffers
            .get_mut(&buf.0)
            .expect("retain of a live buffer")
            .0 += 1;
    }

    fn release(&mut self, buf: BufId) {
        let entry = self
            .buffers
            .get_mut(&buf.0)
            .expect("release of a live buffer");
        entry.0 = entry.0.checked_sub(1).expect("released once too often");
    }

    fn bytes(&self, slice: BufSlice) -> &[u8] {
        let buffer = &self
            .buffers
            .get(&slice.buf.0)
            .expect("bytes of a live buffer")
            .1;
        &buffer[slice.offset as usize..][..slice.len as usize]
    }

    fn bytes_mut(&mut self, slice: BufSlice) -> &mut [u8] {
        let buffer = &mut self
            .buffers
            .get_mut(&slice.buf.0)
            .expect("bytes of a live buffer")
            .1;
        &mut buffer[slice.offset as usize..][..slice.len as usize]
    }

    fn copy(&mut self, source: BufSlice, target: BufSlice) {
        let bytes = self.bytes(source).to_vec();
        self.bytes_mut(target).copy_from_slice(&bytes);
    }

    fn crc32c(&self, seed: u32, bytes: &[u8]) -> u32 {
        let mut crc = !seed;
        for byte in bytes {
            crc = (crc >> 8) ^ self.table[((crc ^ u32::from(*byte)) & 0xff) as usize];
        }
        !crc
    }

    fn available(&self) -> u64 {
        let used: u64 = self.buffers.values().map(|(_, b)| b.len() as u64).sum();
        self.budget.saturating_sub(used)
    }
}
