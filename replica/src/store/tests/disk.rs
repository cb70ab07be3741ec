//! A disk with a volatile cache. Metadata is kept in units of 512 bytes, data as one stamp per block.

use super::*;
use std::collections::BTreeMap;

const UNIT: usize = 512;

/// A unit whose fate a power loss decides.
#[derive(Clone, Debug)]
pub(super) enum Unit {
    Meta(u64, Vec<u8>),
    Data(u64, u64),
}

#[derive(Clone, Debug, Default)]
pub(super) struct TestDisk {
    meta: BTreeMap<u64, Vec<u8>>,
    data: BTreeMap<u64, u64>,
    meta_view: BTreeMap<u64, Vec<u8>>,
    data_view: BTreeMap<u64, u64>,
    /// Completed, not durable, with the number of the completion.
    cache: Vec<(u64, Unit)>,
    completions: u64,
}

/// A submitted operation with what it changes, taken at submission.
#[derive(Clone, Debug)]
pub(super) struct Submitted {
    pub(super) tag: DiskTag,
    pub(super) op: DiskOp,
    units: Vec<Unit>,
    at: u64,
}

impl TestDisk {
    pub(super) fn submit(&self, tag: DiskTag, op: DiskOp, buffers: &TestBuffers) -> Submitted {
        let mut units = Vec::new();
        match op {
            DiskOp::Write {
                role: FileRole::Meta,
                offset,
                buf,
                ..
            } => {
                for (n, bytes) in buffers.bytes(buf).chunks(UNIT).enumerate() {
                    units.push(Unit::Meta(offset / UNIT as u64 + n as u64, bytes.to_vec()));
                }
            }
            DiskOp::Write {
                role: FileRole::Data,
                offset,
                buf,
                ..
            } => {
                for (n, bytes) in buffers.bytes(buf).chunks(4096).enumerate() {
                    let mut raw = [0u8; 8];
                    raw.copy_from_slice(&bytes[..8]);
                    units.push(Unit::Data(
                        offset / 4096 + n as u64,
                        u64::from_le_bytes(raw),
                    ));
                }
            }
            DiskOp::PunchHole { offset, len, .. } | DiskOp::ZeroRange { offset, len, .. } => {
                for block in offset / 4096..(offset + len) / 4096 {
                    units.push(Unit::Data(block, 0));
                }
            }
            DiskOp::Read { .. } | DiskOp::Flush { .. } | DiskOp::Allocate { .. } => (),
        }
        Submitted {
            tag,
            op,
            units,
            at: self.completions,
        }
    }

    pub(super) fn complete(&mut self, submitted: &Submitted, buffers: &mut TestBuffers) {
        let now = self.completions;
        self.completions += 1;
        match submitted.op {
            DiskOp::Read { role, offset, buf } => self.read(role, offset, buf, buffers),
            DiskOp::Flush { role } => {
                let cache = std::mem::take(&mut self.cache);
                for (at, unit) in cache {
                    let covered = at < submitted.at
                        && matches!(unit, Unit::Meta(..)) == (role == FileRole::Meta);
                    if covered {
                        self.make_durable(&unit);
                    } else {
                        self.cache.push((at, unit));
                    }
                }
            }
            DiskOp::Allocate { .. } => (),
            DiskOp::Write { dsync, .. } => {
                for unit in &submitted.units {
                    self.view(unit);
                    if dsync {
                        self.forget(unit);
                        self.make_durable(unit);
                    } else {
                        self.cache.push((now, unit.clone()));
                    }
                }
            }
            DiskOp::PunchHole { .. } | DiskOp::ZeroRange { .. } => {
                for unit in &submitted.units {
                    self.view(unit);
                    self.cache.push((now, unit.clone()));
                }
            }
        }
    }

    fn forget(&mut self, unit: &Unit) {
        self.cache.retain(|(_, other)| match (unit, other) {
            (Unit::Meta(a, _), Unit::Meta(b, _)) => a != b,
            (Unit::Data(a, _), Unit::Data(b, _)) => a != b,
            _ => true,
        });
    }

    fn view(&mut self, unit: &Unit) {
        match unit {
            Unit::Meta(at, bytes) => {
                self.meta_view.insert(*at, bytes.clone());
            }
            Unit::Data(at, stamp) => {
                self.data_view.insert(*at, *stamp);
            }
        }
    }

    fn make_durable(&mut self, unit: &Unit) {
        match unit {
            Unit::Meta(at, bytes) => {
                self.meta.insert(*at, bytes.clone());
            }
            Unit::Data(at, stamp) => {
                self.data.insert(*at, *stamp);
            }
        }
    }

    fn read(&self, role: FileRole, offset: u64, buf: BufSlice, buffers: &mut TestBuffers) {
        let out = buffers.bytes_mut(buf);
        out.fill(0);
        match role {
            FileRole::Meta => {
                for (n, bytes) in out.chunks_mut(UNIT).enumerate() {
                    if let Some(unit) = self.meta_view.get(&(offset / UNIT as u64 + n as u64)) {
                        bytes.copy_from_slice(unit);
                    }
                }
            }
            FileRole::Data => {
                for (n, bytes) in out.chunks_mut(4096).enumerate() {
                    let stamp = self.data_view.get(&(offset / 4096 + n as u64)).copied();
                    bytes[..8].copy_from_slice(&stamp.unwrap_or(0).to_le_bytes());
                }
            }
        }
    }

    /// What a power loss decides over, with writes in flight.
    pub(super) fn undecided(&self, inflight: &[Submitted]) -> Vec<Unit> {
        let cached = self.cache.iter().map(|(_, unit)| unit.clone());
        cached
            .chain(inflight.iter().flat_map(|s| s.units.iter().cloned()))
            .collect()
    }

    /// The disk after a power loss in which the units with a true in `chosen` survived.
    pub(super) fn after_power_loss(&self, units: &[Unit], chosen: &[bool]) -> TestDisk {
        let mut disk = TestDisk {
            meta: self.meta.clone(),
            data: self.data.clone(),
            ..TestDisk::default()
        };
        for (unit, _) in units.iter().zip(chosen).filter(|(_, chosen)| **chosen) {
            disk.make_durable(unit);
        }
        disk.meta_view = disk.meta.clone();
        disk.data_view = disk.data.clone();
        disk
    }

    pub(super) fn stamp(&self, block: u64) -> u64 {
        self.data_view.get(&block).copied().unwrap_or(0)
    }

    /// The device changes a block by itself.
    pub(super) fn rot(&mut self, block: u64, stamp: u64) {
        self.data.insert(block, stamp);
        self.data_view.insert(block, stamp);
    }

    /// Flips a bit of the metadata, durably.
    pub(super) fn flip(&mut self, byte: u64, bit: u8) {
        let unit = byte / UNIT as u64;
        let at = usize::try_from(byte).unwrap() % UNIT;
        let mut bytes = self
            .meta_view
            .get(&unit)
            .cloned()
            .unwrap_or_else(|| vec![0; UNIT]);
        bytes[at] ^= 1 << bit;
        self.meta.insert(unit, bytes.clone());
        self.meta_view.insert(unit, bytes);
    }

    pub(super) fn meta_block(&self, offset: u64) -> Vec<u8> {
        let first = offset / UNIT as u64;
        let zero = vec![0; UNIT];
        (first..first + 8)
            .flat_map(|unit| self.meta_view.get(&unit).unwrap_or(&zero).clone())
            .collect()
    }

    pub(super) fn set_meta_block(&mut self, offset: u64, bytes: &[u8]) {
        for (n, part) in bytes.chunks(UNIT).enumerate() {
            let unit = offset / UNIT as u64 + n as u64;
            self.meta.insert(unit, part.to_vec());
            self.meta_view.insert(unit, part.to_vec());
        }
    }
}

/// Every way a power loss can decide `count` units when they are few; else none, all, each prefix of
/// some, and random ones.
pub(super) fn fates(count: usize, few: usize, random: &mut Random) -> Vec<Vec<bool>> {
    if count <= few {
        return (0..1u32 << count)
            .map(|mask| (0..count).map(|n| mask & (1 << n) != 0).collect())
            .collect();
    }
    let mut all = vec![vec![false; count], vec![true; count]];
    for _ in 0..2 {
        let prefix = random.below(count as u64) as usize;
        all.push((0..count).map(|n| n < prefix).collect());
        let missing = random.below(count as u64) as usize;
        all.push((0..count).map(|n| n != missing).collect());
        all.push((0..count).map(|_| random.below(2) == 0).collect());
    }
    all
}
