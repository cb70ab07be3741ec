//! Helpers of the tests: random numbers, buffers, promises.

use super::{MemberMaps, Plan, Policy, Promise, plan};
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;
use trilith_block::{
    BlockRange, Blocks, BufId, BufSlice, Buffers, ChunkMap, Idx, Lba, MemberId, MemberSet,
    SyncEpoch, Term, Uuid,
};
use trilith_wire::{ReplicaState, SlotStatus, StateFlags, WindowRecord};

pub(crate) const CAPACITY_BLOCKS: u64 = 3 * 1024;
/// The voters of most tests.
pub(crate) const ALL: [usize; 3] = [0, 1, 2];

/// splitmix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % (n as u64)).unwrap()
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// An arena that knows what is still held.
#[derive(Default)]
pub(crate) struct Pool {
    buffers: BTreeMap<BufId, (Vec<u8>, u32)>,
    next: u32,
}

impl Pool {
    pub(crate) fn held(&self) -> usize {
        self.buffers.len()
    }

    /// A buffer whose blocks begin with these numbers.
    pub(crate) fn filled(&mut self, values: &[u64]) -> BufSlice {
        let slice = self
            .alloc(u32::try_from(values.len() * 4096).unwrap())
            .unwrap();
        let bytes = self.bytes_mut(slice);
        for (block, value) in bytes.chunks_exact_mut(4096).zip(values) {
            block[..8].copy_from_slice(&value.to_le_bytes());
        }
        slice
    }

    /// The numbers that its blocks begin with.
    pub(crate) fn values(&self, slice: BufSlice) -> Vec<u64> {
        let blocks = self.bytes(slice).chunks_exact(4096);
        blocks
            .map(|b| u64::from_le_bytes(b[..8].try_into().unwrap()))
            .collect()
    }
}

impl Buffers for Pool {
    fn alloc(&mut self, len: u32) -> Option<BufSlice> {
        let buf = BufId(self.next);
        self.next += 1;
        self.buffers.insert(buf, (vec![0; len as usize], 1));
        Some(BufSlice {
            buf,
            offset: 0,
            len,
        })
    }

    fn retain(&mut self, buf: BufId) {
        self.buffers
            .get_mut(&buf)
            .expect("retain of a held buffer")
            .1 += 1;
    }

    fn release(&mut self, buf: BufId) {
        let entry = self
            .buffers
            .get_mut(&buf)
            .expect("release of a held buffer");
        entry.1 -= 1;
        if entry.1 == 0 {
            self.buffers.remove(&buf);
        }
    }

    fn bytes(&self, slice: BufSlice) -> &[u8] {
        &self.buffers[&slice.buf].0[slice.offset as usize..(slice.offset + slice.len) as usize]
    }

    fn bytes_mut(&mut self, slice: BufSlice) -> &mut [u8] {
        let bytes = &mut self.buffers.get_mut(&slice.buf).expect("a held buffer").0;
        &mut bytes[slice.offset as usize..(slice.offset + slice.len) as usize]
    }

    fn copy(&mut self, source: BufSlice, target: BufSlice) {
        let bytes = self.bytes(source).to_vec();
        self.bytes_mut(target).copy_from_slice(&bytes);
    }

    fn crc32c(&self, seed: u32, _bytes: &[u8]) -> u32 {
        seed
    }

    fn available(&self) -> u64 {
        u64::MAX
    }
}

pub(crate) fn member(index: usize) -> MemberId {
    MemberId::new(index).unwrap()
}

pub(crate) fn set(members: &[usize]) -> MemberSet {
    members
        .iter()
        .fold(MemberSet::EMPTY, |set, m| set.with(member(*m)))
}

pub(crate) fn range(start: u64, count: u32) -> BlockRange {
    BlockRange::new(Lba(start), Blocks(count))
}

pub(crate) fn chunks(ranges: &[BlockRange]) -> ChunkMap {
    let mut map = ChunkMap::new();
    ranges.iter().for_each(|r| map.add_range(*r));
    map
}

pub(crate) fn policy() -> Policy {
    Policy {
        capacity_bytes: CAPACITY_BLOCKS * 4096,
        lossy_wait: Some(Duration::from_secs(60)),
        waited: Duration::ZERO,
        small_bytes: 64 << 20,
    }
}

pub(crate) fn record(idx: u64, range: BlockRange, status: SlotStatus) -> WindowRecord {
    WindowRecord {
        idx: Idx(idx),
        range,
        status,
        skip: MemberSet::EMPTY,
    }
}

/// A promise of member `index` in epoch (`term`, `n`) with in-sync set `iss`, everything up to
/// `upto` accepted and durable.
pub(crate) fn promise(index: usize, (term, n): (u64, u32), iss: &[usize], upto: u64) -> Promise {
    let state = ReplicaState {
        replica: Uuid([u8::try_from(index).unwrap() + 1; 16]),
        boot: Uuid::NONE,
        voted_engine: Uuid::NONE,
        leader: Uuid::NONE,
        term: Term(9),
        attach_epoch: 0,
        se: SyncEpoch {
            term: Term(term),
            n,
        },
        iss: set(iss),
        trk: set(iss),
        loss: 0,
        w: Idx(upto),
        upto: Idx(upto),
        tidx: Idx(0),
        max_idx: Idx(upto),
        capacity: CAPACITY_BLOCKS * 4096,
        free_extents: 0,
        credit_entries: 0,
        credit_bytes: 0,
        member: member(index),
        config: set(&[0, 1, 2]).into(),
        flags: StateFlags::default(),
        lease_left_ms: 0,
        window_count: 0,
    };
    Promise {
        member: member(index),
        state,
        window: Vec::new(),
        al: ChunkMap::new(),
        need: ChunkMap::new(),
        dirty: MemberMaps::new(),
    }
}

impl Promise {
    pub(crate) fn entry(mut self, idx: u64, range: BlockRange, status: SlotStatus) -> Promise {
        self.window.push(record(idx, range, status));
        self.state.max_idx = self.state.max_idx.max(Idx(idx));
        self
    }

    pub(crate) fn accepted(self, idx: u64, range: BlockRange) -> Promise {
        self.entry(idx, range, SlotStatus::Accepted)
    }

    pub(crate) fn w(mut self, w: u64) -> Promise {
        self.state.w = Idx(w);
        self
    }

    /// As after a power loss by M2: no window, the activity log has become need.
    pub(crate) fn tainted(mut self, al: &[BlockRange]) -> Promise {
        self.state.flags.tainted = true;
        self.state.upto = self.state.w;
        self.window.clear();
        self.need.union(&chunks(al));
        self.state.flags.need = !self.need.is_empty();
        self
    }

    pub(crate) fn needs(mut self, ranges: &[BlockRange]) -> Promise {
        self.need.union(&chunks(ranges));
        self.state.flags.need = true;
        self
    }
}

/// The plan of these promises when three vote.
pub(crate) fn run(promises: &[Promise]) -> Plan {
    plan(promises, set(&ALL), &policy()).unwrap()
}
