//! The mark by which a device is known to be Trilith's and of which volume: the number of the
//! server's own that the driver keeps with each device. So no file has to remember which device
//! belongs to whom, and what others have made is never touched.

use core::fmt;
use trilith_block::Uuid;

/// "TR", in the upper 16 bits.
const MAGIC: u64 = 0x5452;
const MAGIC_SHIFT: u32 = 48;

/// A mark of ours: 48 bits of a volume's identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Mark(u64);

impl Mark {
    /// The mark of a volume's device.
    pub fn of(volume: Uuid) -> Mark {
        let Uuid(bytes) = volume;
        let identity = bytes[..6]
            .iter()
            .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        Mark(MAGIC << MAGIC_SHIFT | identity)
    }

    /// The mark in a device's number, if it is one.
    pub fn read(own: u64) -> Option<Mark> {
        (own >> MAGIC_SHIFT == MAGIC).then_some(Mark(own))
    }

    /// The number to give to the driver.
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Mark {
    /// The first 12 digits of the volume's identity, hyphen included, as `Uuid` prints them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = self.0 & ((1 << MAGIC_SHIFT) - 1);
        write!(f, "{:08x}-{:04x}", identity >> 16, identity & 0xffff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn mark_names_its_volume_and_nobody_elses_number_is_one() {
        let volume = Uuid::parse("01234567-89ab-cdef-0123-456789abcdef").unwrap();
        let mark = Mark::of(volume);
        assert_eq!(Mark::read(mark.number()), Some(mark));
        assert!(volume.to_string().starts_with(&mark.to_string()), "{mark}");
        assert_eq!(mark.to_string(), "01234567-89ab");
        for other in [0, u64::MAX, 0x5453 << 48, 0x5452] {
            assert_eq!(Mark::read(other), None, "{other:#x}");
        }
        let second = Uuid::parse("01234567-89ac-cdef-0123-456789abcdef").unwrap();
        assert_ne!(Mark::of(second), mark);
    }
}
