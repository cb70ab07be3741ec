//! What the block device says of itself: computed from the volume, encoded as `struct ublk_params`.

use crate::limits::{
    DISCARD_GRANULARITY_BYTES, REQUEST_BYTES_MAX, SECTOR_BYTES, SECTOR_SHIFT, ZERO_BYTES_MAX,
};
use trilith_block::Capabilities;

/// Bytes of the structure up to the parts used: header, basic, discard.
pub(crate) const PARAMS_BYTES: usize = 60;

const TYPE_BASIC: u32 = 1 << 0;
const TYPE_DISCARD: u32 = 1 << 1;
const READ_ONLY: u32 = 1 << 0;
const VOLATILE_CACHE: u32 = 1 << 2;
const FUA: u32 = 1 << 3;

/// Sizes, cache and limits of a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Params {
    /// Size of the device in bytes, a multiple of the logical block.
    pub capacity_bytes: u64,
    /// log2 of the smallest unit of a request, in bytes.
    pub logical_shift: u8,
    /// log2 of the unit that is written without reading first, in bytes.
    pub physical_shift: u8,
    /// log2 of the best request size, in bytes.
    pub optimal_shift: u8,
    /// Longest read or write, in bytes.
    pub request_bytes_max: u32,
    /// Longest discard, in bytes; 0: there is none.
    pub discard_bytes_max: u32,
    /// Longest write of zeroes, in bytes; 0: there is none.
    pub zero_bytes_max: u32,
    /// Writes are refused by the block layer.
    pub read_only: bool,
}

fn shift(bytes: u32) -> u8 {
    u8::try_from(bytes.max(1).ilog2()).unwrap_or(0)
}

impl Params {
    /// Those of a volume. Any byte range works, so the logical block is the smallest there is and a
    /// disk image made elsewhere fits; the physical block tells that 4 KiB go without a read. A
    /// write is acknowledged by a majority's memory, so there is a volatile cache, and FUA is what
    /// the engine offers.
    pub fn new(volume: &Capabilities, read_only: bool) -> Params {
        let sector = u64::from(SECTOR_BYTES);
        let (discard, zero) = match read_only {
            true => (0, 0),
            false => (ZERO_BYTES_MAX, ZERO_BYTES_MAX),
        };
        Params {
            capacity_bytes: volume.capacity_bytes / sector * sector,
            logical_shift: SECTOR_SHIFT,
            physical_shift: shift(volume.block_bytes),
            optimal_shift: shift(volume.optimal_bytes),
            request_bytes_max: volume.transfer_bytes_max.min(REQUEST_BYTES_MAX),
            discard_bytes_max: discard,
            zero_bytes_max: zero,
            read_only,
        }
    }

    /// As the driver reads it.
    pub(crate) fn to_bytes(self) -> [u8; PARAMS_BYTES] {
        let mut bytes = [0; PARAMS_BYTES];
        let mut types = TYPE_BASIC;
        let mut attributes = VOLATILE_CACHE | FUA;
        if self.read_only {
            attributes |= READ_ONLY;
        }
        let sectors = |bytes: u32| (bytes >> SECTOR_SHIFT).to_le_bytes();
        // struct ublk_param_basic, from byte 8.
        bytes[8..12].copy_from_slice(&attributes.to_le_bytes());
        bytes[12] = self.logical_shift;
        bytes[13] = self.physical_shift;
        bytes[14] = self.optimal_shift;
        bytes[15] = self.physical_shift;
        bytes[16..20].copy_from_slice(&sectors(self.request_bytes_max));
        let capacity = self.capacity_bytes >> SECTOR_SHIFT;
        bytes[24..32].copy_from_slice(&capacity.to_le_bytes());
        // struct ublk_param_discard, from byte 40.
        if self.discard_bytes_max > 0 || self.zero_bytes_max > 0 {
            types |= TYPE_DISCARD;
            bytes[44..48].copy_from_slice(&DISCARD_GRANULARITY_BYTES.to_le_bytes());
            bytes[48..52].copy_from_slice(&sectors(self.discard_bytes_max));
            bytes[52..56].copy_from_slice(&sectors(self.zero_bytes_max));
            bytes[56..58].copy_from_slice(&1u16.to_le_bytes());
        }
        bytes[0..4].copy_from_slice(&u32::try_from(PARAMS_BYTES).unwrap_or(0).to_le_bytes());
        bytes[4..8].copy_from_slice(&types.to_le_bytes());
        bytes
    }

    /// The size in what the driver says of a device, in bytes; 0 when nothing has been set.
    pub(crate) fn capacity_of(bytes: &[u8; PARAMS_BYTES]) -> u64 {
        let sectors = bytes[24..32]
            .iter()
            .rev()
            .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        sectors.saturating_mul(u64::from(SECTOR_BYTES))
    }

    /// An empty structure for the driver to fill.
    pub(crate) fn blank() -> [u8; PARAMS_BYTES] {
        let mut bytes = [0; PARAMS_BYTES];
        bytes[0..4].copy_from_slice(&u32::try_from(PARAMS_BYTES).unwrap_or(0).to_le_bytes());
        bytes
    }
}
