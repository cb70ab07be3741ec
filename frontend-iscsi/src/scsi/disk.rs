//! The logical unit: its geometry and the state that all its initiators share.

use crate::config::IscsiConfig;
use crate::scsi::copy::CopyResults;
use crate::scsi::reserve::Reservations;
use crate::scsi::sense::Sense;
use alloc::string::String;
use trilith_block::Uuid;

/// The disk that a volume is shown as.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) target_name: String,
    pub(crate) portal_group: u16,
    pub(crate) uuid: Uuid,
    pub(crate) lun: u8,
    /// log2 of the logical block size.
    pub(crate) block_shift: u32,
    /// Number of logical blocks.
    pub(crate) blocks: u64,
    pub(crate) optimal_bytes: u32,
    /// By configuration.
    pub(crate) read_only: bool,
    /// Software write protect (control mode page).
    pub(crate) software_protect: bool,
    /// Sense data in descriptor format (control mode page).
    pub(crate) descriptor_sense: bool,
    /// Volatile write cache on (caching mode page). Off: each write is durable when it completes.
    pub(crate) write_cache: bool,
    pub(crate) reservations: Reservations,
    pub(crate) copies: CopyResults,
}

impl Disk {
    pub(crate) fn new(config: &IscsiConfig) -> Disk {
        let block_shift = config.logical_block_bytes.trailing_zeros();
        Disk {
            target_name: config.target_name.clone(),
            portal_group: config.portal_group,
            uuid: config.volume.volume,
            lun: config.lun,
            block_shift,
            blocks: config.volume.capabilities.capacity_bytes >> block_shift,
            optimal_bytes: config.volume.capabilities.optimal_bytes,
            read_only: config.read_only,
            software_protect: false,
            descriptor_sense: false,
            write_cache: true,
            reservations: Reservations::default(),
            copies: CopyResults::default(),
        }
    }

    /// Size of a logical block in bytes.
    pub(crate) fn block_bytes(&self) -> u32 {
        1 << self.block_shift
    }

    /// log2 of the logical blocks in a physical block of 4096 bytes.
    pub(crate) fn physical_exponent(&self) -> u8 {
        u8::try_from(12 - self.block_shift).unwrap_or(0)
    }

    /// True when nothing may be written.
    pub(crate) fn is_protected(&self) -> bool {
        self.read_only || self.software_protect
    }

    /// Refuses a range that ends beyond the medium. An empty range may start at its end.
    pub(crate) fn check_range(&self, lba: u64, blocks: u64) -> Result<(), Sense> {
        let inside = lba
            .checked_add(blocks)
            .is_some_and(|end| end <= self.blocks);
        inside.then_some(()).ok_or(Sense {
            information: Some(lba),
            ..Sense::LBA_RANGE
        })
    }

    /// A number of blocks in bytes.
    pub(crate) fn bytes(&self, blocks: u64) -> u64 {
        blocks << self.block_shift
    }

    /// Back to what it was at the start: after a reset of the logical unit.
    pub(crate) fn reset(&mut self) {
        self.software_protect = false;
        self.descriptor_sense = false;
        self.write_cache = true;
        self.reservations.reset();
    }
}
