//! A buffer of which the kernel may own the tail: the receive buffer of a connection.

use memmap2::{MmapMut, MmapRaw};
use std::io;

/// A zeroed buffer at a fixed address. Bytes from `lent_from` on belong to the kernel.
#[derive(Debug)]
pub(crate) struct KernelBuf {
    map: MmapRaw,
    lent_from: usize,
}

impl KernelBuf {
    /// A buffer of `len` bytes, 1 or more. Its pages cost memory only once they are filled, which
    /// is why it is mapped and not taken from the heap.
    pub(crate) fn new(len: usize) -> io::Result<KernelBuf> {
        let map = MmapRaw::from(MmapMut::map_anon(len)?);
        Ok(KernelBuf {
            map,
            lent_from: len,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Gives the bytes from `from` to the end to the kernel; the caller calls [`Self::take_back`]
    /// once the operation has completed.
    pub(crate) fn lend(&mut self, from: usize) -> (*mut u8, usize) {
        assert!(
            self.lent_from == self.len() && from < self.len(),
            "receive buffer lent twice"
        );
        self.lent_from = from;
        // SAFETY: `from` is below the length of the mapping.
        let tail = unsafe { self.map.as_mut_ptr().add(from) };
        (tail, self.len() - from)
    }

    /// The kernel is done with the tail.
    pub(crate) fn take_back(&mut self) {
        self.lent_from = self.len();
    }

    /// True while the kernel owns a tail.
    pub(crate) fn is_lent(&self) -> bool {
        self.lent_from < self.len()
    }

    /// The bytes `from..to`, which must not be lent.
    pub(crate) fn bytes(&self, from: usize, to: usize) -> &[u8] {
        assert!(
            from <= to && to <= self.lent_from,
            "bytes {from}..{to} of a lent receive buffer"
        );
        // SAFETY: `from` lies inside the mapping.
        let first = unsafe { self.map.as_mut_ptr().add(from) };
        // SAFETY: `from..to` lies inside the mapping, is initialized (it reads zero at first), and
        // the kernel writes only at `lent_from` and above; `&self` keeps `move_down` away.
        unsafe { core::slice::from_raw_parts(first, to - from) }
    }

    /// Moves the bytes `from..to` to the front. Nothing may be lent.
    pub(crate) fn move_down(&mut self, from: usize, to: usize) {
        assert!(
            from <= to && to <= self.len() && !self.is_lent(),
            "move in a lent buffer"
        );
        let target = self.map.as_mut_ptr();
        // SAFETY: `from` lies inside the mapping.
        let source = unsafe { target.add(from) };
        // SAFETY: both runs lie inside the mapping, which nobody else uses (`&mut self`, not
        // lent); `copy` allows overlap.
        unsafe { core::ptr::copy(source, target, to - from) };
    }
}

impl Drop for KernelBuf {
    fn drop(&mut self) {
        assert!(
            !self.is_lent(),
            "receive buffer freed while the kernel owns it"
        );
    }
}
