//! Buffers, window words and disks in memory that is all taken at the start.

use std::collections::VecDeque;
use trilith_block::{BufId, BufSlice, Buffers, Words};
use trilith_replica::store::{DiskOp, DiskTag, FileRole};

const SMALL_BYTES: usize = 8192;
const LARGE_BYTES: usize = 1 << 20;
const SMALL: usize = 512;
const LARGE: usize = 8;

#[derive(Debug, Default)]
struct Slot {
    bytes: Vec<u8>,
    owners: u32,
    parting: bool,
}

/// The arena of one process.
#[derive(Debug)]
pub(crate) struct Memory {
    slots: Vec<Slot>,
    small: Vec<u32>,
    large: Vec<u32>,
    /// Released by everyone, but actions not taken yet may still name them.
    parting: Vec<u32>,
}

impl Memory {
    pub(crate) fn new() -> Memory {
        let slot = |bytes: usize| Slot {
            bytes: vec![0xa5; bytes],
            ..Slot::default()
        };
        let mut slots: Vec<Slot> = (0..SMALL).map(|_| slot(SMALL_BYTES)).collect();
        slots.extend((0..LARGE).map(|_| slot(LARGE_BYTES)));
        let all = u32::try_from(SMALL + LARGE).unwrap();
        let small = u32::try_from(SMALL).unwrap();
        Memory {
            slots,
            small: (0..small).collect(),
            large: (small..all).collect(),
            parting: Vec::with_capacity(SMALL + LARGE),
        }
    }

    /// The driver has taken all actions: what nobody owns is free.
    pub(crate) fn reclaim(&mut self) {
        while let Some(index) = self.parting.pop() {
            let slot = &mut self.slots[index as usize];
            slot.parting = false;
            if slot.owners == 0 {
                if slot.bytes.len() == SMALL_BYTES {
                    self.small.push(index);
                } else {
                    self.large.push(index);
                }
            }
        }
    }
}

impl Buffers for Memory {
    fn alloc(&mut self, len: u32) -> Option<BufSlice> {
        let free = if len as usize <= SMALL_BYTES {
            &mut self.small
        } else {
            &mut self.large
        };
        let index = free.pop()?;
        self.slots[index as usize].owners = 1;
        Some(BufSlice {
            buf: BufId(index),
            offset: 0,
            len,
        })
    }

    fn retain(&mut self, buf: BufId) {
        self.slots[buf.0 as usize].owners += 1;
    }

    fn release(&mut self, buf: BufId) {
        let slot = &mut self.slots[buf.0 as usize];
        slot.owners -= 1;
        if slot.owners == 0 && !slot.parting {
            slot.parting = true;
            self.parting.push(buf.0);
        }
    }

    fn bytes(&self, slice: BufSlice) -> &[u8] {
        &self.slots[slice.buf.0 as usize].bytes[slice.offset as usize..][..slice.len as usize]
    }

    fn bytes_mut(&mut self, slice: BufSlice) -> &mut [u8] {
        &mut self.slots[slice.buf.0 as usize].bytes[slice.offset as usize..][..slice.len as usize]
    }

    fn copy(&mut self, source: BufSlice, target: BufSlice) {
        let bytes = self.bytes(source).to_vec();
        self.bytes_mut(target).copy_from_slice(&bytes);
    }

    fn crc32c(&self, seed: u32, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(seed, bytes)
    }

    fn available(&self) -> u64 {
        (self.small.len() * SMALL_BYTES + self.large.len() * LARGE_BYTES) as u64
    }
}

/// The window's memory.
#[derive(Debug)]
pub(crate) struct Ram(pub(crate) Vec<u64>);

impl Words for Ram {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn load(&self, index: usize) -> u64 {
        self.0[index]
    }

    fn store(&mut self, index: usize, value: u64) {
        self.0[index] = value;
    }
}

/// Both files of a replica, and the operations that are on their way.
#[derive(Debug)]
pub(crate) struct Disk {
    meta: Vec<u8>,
    data: Vec<u8>,
    pub(crate) under_way: VecDeque<(DiskTag, DiskOp)>,
}

impl Disk {
    pub(crate) fn new(meta_bytes: usize, data_bytes: usize) -> Disk {
        Disk {
            meta: vec![0; meta_bytes],
            data: vec![0; data_bytes],
            under_way: VecDeque::new(),
        }
    }

    fn place(&mut self, role: FileRole, offset: u64, len: usize) -> &mut [u8] {
        let file = match role {
            FileRole::Meta => &mut self.meta,
            FileRole::Data => &mut self.data,
        };
        &mut file[usize::try_from(offset).unwrap()..][..len]
    }

    /// Carries an operation out.
    pub(crate) fn apply(&mut self, op: &DiskOp, memory: &mut Memory) {
        match *op {
            DiskOp::Read { role, offset, buf } => {
                let source = self.place(role, offset, buf.len as usize);
                memory.bytes_mut(buf).copy_from_slice(source);
            }
            DiskOp::Write {
                role, offset, buf, ..
            } => {
                let source = memory.bytes(buf);
                self.place(role, offset, source.len())
                    .copy_from_slice(source);
            }
            DiskOp::PunchHole { role, offset, len } | DiskOp::ZeroRange { role, offset, len } => {
                self.place(role, offset, usize::try_from(len).unwrap())
                    .fill(0);
            }
            DiskOp::Flush { .. } | DiskOp::Allocate { .. } => {}
        }
    }
}

/// The buffer that an operation names.
pub(crate) fn buffer_of(op: &DiskOp) -> Option<BufSlice> {
    match *op {
        DiskOp::Read { buf, .. } | DiskOp::Write { buf, .. } => Some(buf),
        DiskOp::Flush { .. }
        | DiskOp::Allocate { .. }
        | DiskOp::PunchHole { .. }
        | DiskOp::ZeroRange { .. } => None,
    }
}
