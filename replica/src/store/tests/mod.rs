//! Tests of the store: a simulated arena, words and disk, then one file for each aim.

use super::*;
use std::boxed::Box;
use std::cell::RefCell;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;
use trilith_block::{
    BlockRange, Blocks, BufId, BufSlice, Buffers, ChunkMap, ExtentNo, Lba, MemberId, MemberSet,
    Uuid, Words,
};

mod barriers;
mod behaviour;
mod checksums;
mod crash;
mod crash_steps;
mod disk;
mod flushes;
mod formats;
mod reconfigure;
mod witness;
mod world;

/// splitmix64.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// An arena over vectors. It counts owners, so that a leak shows.
#[derive(Default)]
struct TestBuffers {
    slots: Vec<(u32, Vec<u8>)>,
}

impl TestBuffers {
    fn owned(&self) -> usize {
        self.slots.iter().filter(|(owners, _)| *owners > 0).count()
    }
}

const CRC_TABLE: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

impl Buffers for TestBuffers {
    fn alloc(&mut self, len: u32) -> Option<BufSlice> {
        let bytes = vec![0xa5; len as usize];
        let at = match self.slots.iter().position(|(owners, _)| *owners == 0) {
            Some(at) => {
                self.slots[at] = (1, bytes);
                at
            }
            None => {
                self.slots.push((1, bytes));
                self.slots.len() - 1
            }
        };
        Some(BufSlice {
            buf: BufId(u32::try_from(at).unwrap()),
            offset: 0,
            len,
        })
    }

    fn retain(&mut self, buf: BufId) {
        self.slots[buf.0 as usize].0 += 1;
    }

    fn release(&mut self, buf: BufId) {
        let owners = &mut self.slots[buf.0 as usize].0;
        assert!(*owners > 0, "release of a free buffer");
        *owners -= 1;
    }

    fn bytes(&self, s: BufSlice) -> &[u8] {
        &self.slots[s.buf.0 as usize].1[s.offset as usize..][..s.len as usize]
    }

    fn bytes_mut(&mut self, s: BufSlice) -> &mut [u8] {
        &mut self.slots[s.buf.0 as usize].1[s.offset as usize..][..s.len as usize]
    }

    fn copy(&mut self, source: BufSlice, target: BufSlice) {
        let bytes = self.bytes(source).to_vec();
        self.bytes_mut(target).copy_from_slice(&bytes);
    }

    fn crc32c(&self, seed: u32, bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!seed, |crc, b| {
            CRC_TABLE[((crc ^ u32::from(*b)) & 0xff) as usize] ^ (crc >> 8)
        })
    }

    fn available(&self) -> u64 {
        u64::MAX
    }
}

/// Words that outlive the store, like a file on tmpfs. What they hold after `left` more stores is
/// kept: the process was killed there.
#[derive(Clone, Debug)]
struct TestWords {
    memory: Rc<RefCell<Vec<u64>>>,
    left: Rc<RefCell<u64>>,
    kept: Rc<RefCell<Option<Vec<u64>>>>,
}

impl TestWords {
    fn new() -> TestWords {
        TestWords {
            memory: Rc::new(RefCell::new(Vec::new())),
            left: Rc::new(RefCell::new(u64::MAX)),
            kept: Rc::new(RefCell::new(None)),
        }
    }

    fn deep_clone(&self) -> TestWords {
        let kept = self.kept.borrow().clone();
        let memory = kept.unwrap_or_else(|| self.memory.borrow().clone());
        let words = TestWords::new();
        *words.memory.borrow_mut() = memory;
        words
    }

    fn grow(&self, len: usize) {
        let mut memory = self.memory.borrow_mut();
        let len = memory.len().max(len);
        memory.resize(len, 0);
    }
}

impl Words for TestWords {
    fn len(&self) -> usize {
        self.memory.borrow().len()
    }

    fn load(&self, index: usize) -> u64 {
        self.memory.borrow()[index]
    }

    fn store(&mut self, index: usize, value: u64) {
        let mut left = self.left.borrow_mut();
        if *left == 0 && self.kept.borrow().is_none() {
            *self.kept.borrow_mut() = Some(self.memory.borrow().clone());
        }
        *left = left.saturating_sub(1);
        self.memory.borrow_mut()[index] = value;
    }
}

fn id(byte: u8) -> Uuid {
    Uuid([byte; 16])
}

fn member(index: usize) -> MemberId {
    MemberId::new(index).unwrap()
}

fn chunks(extent: u32, mask: u64) -> ChunkMap {
    let mut map = ChunkMap::new();
    map.set_mask(ExtentNo(extent), mask);
    map
}

fn range(start: u64, count: u32) -> BlockRange {
    BlockRange::new(Lba(start), Blocks(count))
}

/// A geometry in which everything wraps all the time.
const SMALL: Geometry = Geometry {
    ring_blocks: 8,
    al_slots: 5,
    al_batch: 1,
    window_slots: 4,
};
const EXTENTS: u64 = 9;
const BLOCKS_PER_EXTENT: u64 = 1024;

fn params() -> FormatParams {
    FormatParams {
        volume: id(1),
        replica: id(2),
        member: member(0),
        voters: MemberSet::first(3),
        newcomer: false,
        witness: MemberSet::EMPTY,
        iss: MemberSet::first(3),
        // The last extent is partial.
        capacity: (EXTENTS - 1) * 4 * 1024 * 1024 + 40 * 4096,
        geometry: SMALL,
        same_device: false,
        zero_data: false,
        volatile_cache: true,
        checksums: false,
    }
}

const BOOT: Uuid = Uuid([7; 16]);

fn open_params(boot: Uuid) -> OpenParams {
    OpenParams {
        boot,
        allocate: true,
        allocate_ahead: 2,
    }
}
