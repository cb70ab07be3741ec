//! Records in the payload of MAP and DIRTYCLEAR frames.

use crate::frame::{u16_at, u32_at, u64_at};
use trilith_block::{BlockRange, Blocks, ChunkMask, ExtentNo, Idx, Lba, MemberSet};

/// Some chunks of one extent. 16 bytes: `0 extent u32; 4 reserved u32; 8 mask u64`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkRecord {
    /// The extent.
    pub extent: ExtentNo,
    /// Its chunks. All ones in an activity-log map.
    pub mask: ChunkMask,
}

impl ChunkRecord {
    /// Bytes of a record.
    pub const BYTES: usize = 16;

    /// Writes the record to the first 16 bytes of `out`.
    pub fn encode(&self, out: &mut [u8]) {
        out[0..4].copy_from_slice(&self.extent.0.to_le_bytes());
        out[4..8].fill(0);
        out[8..16].copy_from_slice(&self.mask.to_le_bytes());
    }

    /// Reads the records of a payload; a last partial one is ignored.
    pub fn decode_all(payload: &[u8]) -> impl Iterator<Item = ChunkRecord> + '_ {
        payload.chunks_exact(Self::BYTES).map(|b| ChunkRecord {
            extent: ExtentNo(u32_at(b, 0)),
            mask: u64_at(b, 8),
        })
    }
}

/// State of an entry in a replica's window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotStatus {
    /// Submitted to the device, not known to have completed.
    Submitted,
    /// Completed at the device: accepted.
    Accepted,
    /// Header only: this replica did not get the payload, the chunk is to be copied to it.
    Skipped,
    /// The device refused it.
    Failed,
}

impl SlotStatus {
    /// Its byte.
    pub fn to_byte(self) -> u8 {
        match self {
            SlotStatus::Submitted => 1,
            SlotStatus::Accepted => 2,
            SlotStatus::Skipped => 3,
            SlotStatus::Failed => 4,
        }
    }

    /// The status of a byte.
    pub fn from_byte(byte: u8) -> Option<SlotStatus> {
        match byte {
            1 => Some(SlotStatus::Submitted),
            2 => Some(SlotStatus::Accepted),
            3 => Some(SlotStatus::Skipped),
            4 => Some(SlotStatus::Failed),
            _ => None,
        }
    }
}

/// One data entry of a replica's window. 32 bytes: `0 idx u64; 8 lba u64; 16 blocks u32; 20 status
/// u8; 21 reserved u8; 22 reserved u16; 24 skip u32; 28 reserved u32`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WindowRecord {
    /// Its position.
    pub idx: Idx,
    /// Its blocks, within one extent.
    pub range: BlockRange,
    /// How far it got on this replica.
    pub status: SlotStatus,
    /// Members that were not sent its payload.
    pub skip: MemberSet,
}

impl WindowRecord {
    /// Bytes of a record.
    pub const BYTES: usize = 32;

    /// Writes the record to the first 32 bytes of `out`.
    pub fn encode(&self, out: &mut [u8]) {
        out[0..8].copy_from_slice(&self.idx.0.to_le_bytes());
        out[8..16].copy_from_slice(&self.range.start.0.to_le_bytes());
        out[16..20].copy_from_slice(&self.range.count.0.to_le_bytes());
        out[20] = self.status.to_byte();
        out[21..24].fill(0);
        out[24..28].copy_from_slice(&self.skip.0.to_le_bytes());
        out[28..32].fill(0);
    }

    /// Reads the records of a payload. An item is `None` when a record makes no sense (unknown
    /// status, empty range or one that crosses an extent).
    pub fn decode_all(payload: &[u8]) -> impl Iterator<Item = Option<WindowRecord>> + '_ {
        payload.chunks_exact(Self::BYTES).map(|b| {
            let range = BlockRange::new(Lba(u64_at(b, 8) & (u64::MAX >> 8)), Blocks(u32_at(b, 16)));
            let status = SlotStatus::from_byte(b[20])?;
            (range.in_one_extent() && u16_at(b, 22) == 0).then_some(WindowRecord {
                idx: Idx(u64_at(b, 0)),
                range,
                status,
                skip: MemberSet(u32_at(b, 24)),
            })
        })
    }
}
