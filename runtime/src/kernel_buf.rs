//! A heap buffer of which the kernel may own the tail: the receive buffer of a connection.

use core::ptr::NonNull;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

/// A zeroed buffer at a fixed address. Bytes from `lent_from` on belong to the kernel.
#[derive(Debug)]
pub(crate) struct KernelBuf {
    start: NonNull<u8>,
    layout: Layout,
    lent_from: usize,
}

impl KernelBuf {
    /// A buffer of `len` bytes, 1 or more. Its pages cost memory only once they are filled.
    pub(crate) fn new(len: usize) -> KernelBuf {
        assert!(len > 0, "empty kernel buffer");
        let layout = Layout::array::<u8>(len).unwrap_or(Layout::new::<u8>());
        assert!(layout.size() == len, "kernel buffer of {len} bytes");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        KernelBuf {
            start,
            layout,
            lent_from: len,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.layout.size()
    }

    /// Gives the bytes from `from` to the end to the kernel; the caller calls [`Self::take_back`]
    /// once the operation has completed.
    pub(crate) fn lend(&mut self, from: usize) -> (*mut u8, usize) {
        assert!(
            self.lent_from == self.len() && from < self.len(),
            "receive buffer lent twice"
        );
        self.lent_from = from;
        // SAFETY: `from` is below the length of the allocation.
        let tail = unsafe { self.start.add(from) };
        (tail.as_ptr(), self.len() - from)
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
        // SAFETY: `from` lies inside the allocation.
        let first = unsafe { self.start.add(from) };
        // SAFETY: `from..to` lies inside the allocation, is initialized (zeroed at the start), and
        // the kernel writes only at `lent_from` and above; `&self` keeps `move_down` away.
        unsafe { core::slice::from_raw_parts(first.as_ptr(), to - from) }
    }

    /// Moves the bytes `from..to` to the front. Nothing may be lent.
    pub(crate) fn move_down(&mut self, from: usize, to: usize) {
        assert!(
            from <= to && to <= self.len() && !self.is_lent(),
            "move in a lent buffer"
        );
        let target = self.start.as_ptr();
        // SAFETY: `from` lies inside the allocation.
        let source = unsafe { target.add(from) };
        // SAFETY: both runs lie inside the allocation, which nobody else uses (`&mut self`, not
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
        // SAFETY: allocated in `new` with this layout and freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}
