//! A disk in memory with a volatile cache: what completed is visible, what was flushed survives a
//! power cut.

use crate::store::{DiskError, DiskOp, FileRole};
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;
use trilith_block::Buffers;

const BLOCK: u64 = 4096;
const BLOCK_LEN: usize = 4096;

#[derive(Debug, Default, Clone)]
struct File {
    durable: BTreeMap<u64, Vec<u8>>,
    cached: BTreeMap<u64, Vec<u8>>,
}

impl File {
    fn block(&self, at: u64) -> Vec<u8> {
        let found = self.cached.get(&at).or_else(|| self.durable.get(&at));
        found.cloned().unwrap_or_else(|| vec![0; BLOCK_LEN])
    }
}

/// Both files of a replica.
#[derive(Debug, Default, Clone)]
pub(crate) struct Disk {
    meta: File,
    data: File,
    /// Answers the next data write with this.
    pub(crate) fail_write: Option<DiskError>,
    /// Answers the next data read with this.
    pub(crate) fail_read: Option<DiskError>,
    /// Answers the next flush of data with this.
    pub(crate) fail_flush: Option<DiskError>,
    /// Answers the next write of metadata with this.
    pub(crate) fail_meta: Option<DiskError>,
    /// Data writes carried out.
    pub(crate) writes: u64,
}

impl Disk {
    fn file(&mut self, role: FileRole) -> &mut File {
        match role {
            FileRole::Meta => &mut self.meta,
            FileRole::Data => &mut self.data,
        }
    }

    /// A block of the volume as a read would see it now.
    pub(crate) fn block(&self, lba: u64) -> Vec<u8> {
        self.data.block(lba)
    }

    /// Carries an operation out.
    pub(crate) fn apply(&mut self, op: &DiskOp, arena: &mut dyn Buffers) -> Result<(), DiskError> {
        match *op {
            DiskOp::Read { role, offset, buf } => {
                if role == FileRole::Data
                    && let Some(error) = self.fail_read.take()
                {
                    return Err(error);
                }
                let file = self.file(role);
                for (at, target) in
                    (offset / BLOCK..).zip(arena.bytes_mut(buf).chunks_mut(BLOCK_LEN))
                {
                    target.copy_from_slice(&file.block(at));
                }
            }
            DiskOp::Write {
                role,
                offset,
                buf,
                dsync,
            } => {
                let fail = match role {
                    FileRole::Data => self.fail_write.take(),
                    FileRole::Meta => self.fail_meta.take(),
                };
                if let Some(error) = fail {
                    return Err(error);
                }
                self.writes += u64::from(role == FileRole::Data);
                let file = self.file(role);
                for (at, source) in (offset / BLOCK..).zip(arena.bytes(buf).chunks(BLOCK_LEN)) {
                    file.cached.remove(&at);
                    let target = if dsync {
                        &mut file.durable
                    } else {
                        &mut file.cached
                    };
                    target.insert(at, source.to_vec());
                }
            }
            DiskOp::Flush { role } => {
                let fail = match role {
                    FileRole::Data => self.fail_flush.take(),
                    FileRole::Meta => None,
                };
                if let Some(error) = fail {
                    return Err(error);
                }
                let file = self.file(role);
                let cached = core::mem::take(&mut file.cached);
                file.durable.extend(cached);
            }
            DiskOp::Allocate { .. } => {}
            DiskOp::PunchHole { role, offset, len } | DiskOp::ZeroRange { role, offset, len } => {
                let file = self.file(role);
                for at in offset / BLOCK..(offset + len) / BLOCK {
                    file.cached.insert(at, vec![0; BLOCK_LEN]);
                }
            }
        }
        Ok(())
    }

    /// What was not flushed is gone.
    pub(crate) fn power_cut(&mut self) {
        self.meta.cached.clear();
        self.data.cached.clear();
    }
}
