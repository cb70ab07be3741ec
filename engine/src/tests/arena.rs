//! Buffers of the tests: counted, and known by name when leaked.

use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;
use trilith_block::limits::TRANSFER_BYTES_MAX;
use trilith_block::{BufId, BufSlice, Buffers};

#[derive(Default)]
pub(crate) struct Arena {
    buffers: BTreeMap<BufId, (Vec<u8>, u32)>,
    next: u32,
}

impl Arena {
    pub(crate) fn held(&self) -> usize {
        self.buffers.len()
    }

    /// Gives back what nobody owns: after the actions that may name it have been carried out.
    pub(crate) fn reclaim(&mut self) {
        self.buffers.retain(|_, (_, owners)| *owners > 0);
    }

    pub(crate) fn filled(&mut self, bytes: &[u8]) -> BufSlice {
        let slice = self.alloc(u32::try_from(bytes.len()).unwrap()).unwrap();
        self.bytes_mut(slice).copy_from_slice(bytes);
        slice
    }
}

fn at(slice: BufSlice) -> core::ops::Range<usize> {
    slice.offset as usize..(slice.offset + slice.len) as usize
}

impl Buffers for Arena {
    fn alloc(&mut self, len: u32) -> Option<BufSlice> {
        if len == 0 || len > TRANSFER_BYTES_MAX {
            return None;
        }
        let buf = BufId(self.next);
        self.next += 1;
        self.buffers.insert(buf, (vec![0xaa; len as usize], 1));
        Some(BufSlice {
            buf,
            offset: 0,
            len,
        })
    }
    fn retain(&mut self, buf: BufId) {
        let owners = &mut self
            .buffers
            .get_mut(&buf)
            .expect("retain of a live buffer")
            .1;
        assert!(*owners > 0, "retained after its release");
        *owners += 1;
    }
    fn release(&mut self, buf: BufId) {
        let entry = self
            .buffers
            .get_mut(&buf)
            .expect("release of a live buffer");
        entry.1 = entry.1.checked_sub(1).expect("released once too often");
    }
    fn bytes(&self, slice: BufSlice) -> &[u8] {
        &self.buffers[&slice.buf].0[at(slice)]
    }
    fn bytes_mut(&mut self, slice: BufSlice) -> &mut [u8] {
        &mut self.buffers.get_mut(&slice.buf).expect("live").0[at(slice)]
    }
    fn copy(&mut self, source: BufSlice, target: BufSlice) {
        let bytes = self.bytes(source).to_vec();
        self.bytes_mut(target).copy_from_slice(&bytes);
    }
    /// Not the real polynomial: any checksum that both ends share will do.
    fn crc32c(&self, seed: u32, bytes: &[u8]) -> u32 {
        let mut sum = u64::from(seed) ^ 0xcbf2_9ce4_8422_2325;
        for part in bytes.chunks(8) {
            let mut word = [0u8; 8];
            word[..part.len()].copy_from_slice(part);
            sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3);
            sum ^= sum >> 29;
        }
        u32::try_from(sum >> 32).unwrap()
    }
    fn available(&self) -> u64 {
        1 << 30
    }
}
