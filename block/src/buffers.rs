//! Payload bytes, seen through handles. A machine moves [`BufSlice`]s around and touches bytes
//! only through [`Buffers`], so that production can use a registered arena and the simulator a map.

/// Handle of a buffer of the arena. Buffers are counted: [`Buffers::alloc`] starts at one owner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BufId(pub u32);

/// A run of bytes inside one buffer. It does not own: who keeps it beyond a call retains the
/// buffer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BufSlice {
    /// The buffer.
    pub buf: BufId,
    /// First byte within the buffer.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
}

impl BufSlice {
    /// The run of `len` bytes that starts `offset` bytes into this one.
    ///
    /// # Panics
    /// When the run does not lie inside this one (a bug of the caller).
    #[must_use]
    pub fn slice(self, offset: u32, len: u32) -> BufSlice {
        assert!(
            u64::from(offset) + u64::from(len) <= u64::from(self.len),
            "slice {offset}+{len} of a run of {}",
            self.len
        );
        BufSlice {
            buf: self.buf,
            offset: self.offset + offset,
            len,
        }
    }
}

/// The arena as machines see it. Every buffer starts at a 4096-byte boundary and is at least as
/// long as it was asked for; new buffers hold arbitrary bytes.
pub trait Buffers {
    /// A buffer of at least `len` bytes with one owner, as a slice of exactly `len`. `None` when
    /// the budget is used up or `len` is 0 or above [`crate::limits::TRANSFER_BYTES_MAX`]: the
    /// caller waits (back-pressure), it never fails an operation for it.
    fn alloc(&mut self, len: u32) -> Option<BufSlice>;

    /// One more owner.
    fn retain(&mut self, buf: BufId);

    /// One owner fewer; the last one gives the buffer back.
    fn release(&mut self, buf: BufId);

    /// The bytes of a slice.
    fn bytes(&self, slice: BufSlice) -> &[u8];

    /// The bytes of a slice, to be written.
    fn bytes_mut(&mut self, slice: BufSlice) -> &mut [u8];

    /// Copies `source` to `target`; both have the same length and lie in different buffers or do
    /// not overlap.
    fn copy(&mut self, source: BufSlice, target: BufSlice);

    /// CRC-32C (Castagnoli) of `bytes`, continued from `seed` (0 to start).
    fn crc32c(&self, seed: u32, bytes: &[u8]) -> u32;

    /// Bytes that can still be allocated within the budget.
    fn available(&self) -> u64;
}
