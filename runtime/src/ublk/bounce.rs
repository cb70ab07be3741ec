//! Where the kernel copies payload when user copy is not allowed: a place for each slot. A write's
//! payload is there when its request comes, a read's is taken from there when it is committed.

use crate::error::Errno;
use memmap2::{MmapMut, MmapRaw};
use std::io;

/// The places of all slots. The kernel uses one only while it has the slot.
#[derive(Debug)]
pub(super) struct Bounce {
    map: MmapRaw,
    place_bytes: usize,
}

impl Bounce {
    /// Places for requests of up to `place_bytes`. Pages cost memory only once they are used.
    pub(super) fn new(slots: usize, place_bytes: u32) -> io::Result<Bounce> {
        let place_bytes = place_bytes as usize;
        Ok(Bounce {
            map: MmapRaw::from(MmapMut::map_anon(slots * place_bytes)?),
            place_bytes,
        })
    }

    fn start(&self, index: usize) -> *mut u8 {
        let at = index * self.place_bytes;
        assert!(at + self.place_bytes <= self.map.len(), "slot {index}");
        self.map.as_mut_ptr().wrapping_add(at)
    }

    /// The address of a slot's place.
    pub(super) fn address(&self, index: usize) -> u64 {
        self.start(index) as u64
    }

    /// Copies from a place that the kernel does not have.
    pub(super) fn read(&self, index: usize, target: &mut [u8]) -> Result<(), Errno> {
        if target.len() > self.place_bytes {
            return Err(Errno(libc::EINVAL));
        }
        // SAFETY: the place is mapped and at least as long, the kernel is not using it (the caller
        // has looked), and `target` lies elsewhere.
        unsafe {
            core::ptr::copy_nonoverlapping(self.start(index), target.as_mut_ptr(), target.len());
        }
        Ok(())
    }

    /// Copies to a place that the kernel does not have.
    pub(super) fn write(&mut self, index: usize, source: &[u8]) -> Result<(), Errno> {
        if source.len() > self.place_bytes {
            return Err(Errno(libc::EINVAL));
        }
        // SAFETY: as in `read`, the other way round.
        unsafe {
            core::ptr::copy_nonoverlapping(source.as_ptr(), self.start(index), source.len());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_has_a_place_of_its_own() {
        let mut bounce = Bounce::new(3, 4096).unwrap();
        bounce.write(0, &[1; 4096]).unwrap();
        bounce.write(1, &[2; 512]).unwrap();
        bounce.write(2, &[3; 4096]).unwrap();
        let mut bytes = [0; 4096];
        bounce.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [1; 4096]);
        bounce.read(1, &mut bytes).unwrap();
        assert!(bytes[..512] == [2; 512] && bytes[512..] == [0; 3584]);
        assert_eq!(bounce.address(2) - bounce.address(1), 4096);
    }

    #[test]
    fn what_is_longer_than_a_place_is_refused() {
        let mut bounce = Bounce::new(2, 512).unwrap();
        assert_eq!(bounce.write(0, &[1; 513]), Err(Errno(libc::EINVAL)));
        assert_eq!(bounce.read(1, &mut [0; 513]), Err(Errno(libc::EINVAL)));
        let mut next = [9; 512];
        bounce.read(1, &mut next).unwrap();
        assert_eq!(next, [0; 512]);
    }
}
