//! The arena: memory for payload, shared by receive, disk and send. It implements
//! [`trilith_block::Buffers`] and belongs to the loop.
//!
//! One anonymous mapping as long as the budget, filled lazily in super-blocks of 1 MiB; each is a
//! buddy allocator of 4 KiB pages, so sizes are powers of two from 4 KiB to 1 MiB. A `BufId` is the
//! number of the first page and a generation, so that a stale id is found out. Memory that the
//! kernel works on is *lent*: counted, and guarded against being touched meanwhile.

use crate::error::RuntimeError;
use crate::limits::{
    ARENA_BYTES_DEFAULT, ARENA_BYTES_MAX, ARENA_BYTES_UNLOCKED, SUPER_BLOCK_BYTES,
};
use memmap2::{Advice, MmapOptions, MmapRaw};
use trilith_block::limits::{BLOCK_BYTES, TRANSFER_BYTES_MAX};
use trilith_block::{BufId, BufSlice, Buffers};

/// log2 of pages in a super-block: the longest buffer is one super-block.
const ORDER_MAX: u8 = 8;
const ORDERS: usize = ORDER_MAX as usize + 1;
const _: () = assert!(BLOCK_BYTES << ORDER_MAX == SUPER_BLOCK_BYTES);
const SUPER_BLOCK_PAGES: u32 = 1 << ORDER_MAX;
/// Bits of a `BufId` that hold the page number; the generation has the others.
const PAGE_BITS: u32 = 20;
const GENERATION_MASK: u16 = (1 << (32 - PAGE_BITS)) - 1;
/// Number of [`Share`]s.
const SHARES: usize = 2;
/// End of a list.
const NONE: u32 = u32::MAX;
/// Bytes copied between two runs of the checksum in `copy_crc32c`: stays in the first cache.
const COPY_STEP_BYTES: u32 = 4096;

/// For whom memory is taken. Two machines of one process that wait for each other have a budget each,
/// so that neither takes what the other needs to go on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Share {
    /// Has what [`Arena::set_apart`] leaves: everything, if it is not called.
    #[default]
    First,
    /// Has what was set apart.
    Second,
}

/// How large the arena may grow and what it lies on.
#[derive(Clone, Copy, Debug)]
pub struct ArenaConfig {
    /// Budget in bytes; rounded down to MiB, at least 1 MiB and at most
    /// [`crate::limits::ARENA_BYTES_MAX`].
    pub budget_bytes: u64,
    /// Ask for transparent huge pages.
    pub huge_pages: bool,
}

impl ArenaConfig {
    /// The default of this process: [`ARENA_BYTES_DEFAULT`] when that much memory may be locked,
    /// otherwise [`ARENA_BYTES_UNLOCKED`].
    pub fn of_process() -> ArenaConfig {
        let lockable = lockable_bytes().is_none_or(|bytes| bytes >= ARENA_BYTES_DEFAULT);
        let budget_bytes = if lockable {
            ARENA_BYTES_DEFAULT
        } else {
            ARENA_BYTES_UNLOCKED
        };
        ArenaConfig {
            budget_bytes,
            huge_pages: true,
        }
    }
}

/// Bytes that this user may lock, in all its processes together; `None`: any number.
pub(crate) fn lockable_bytes() -> Option<u64> {
    let sets = rustix::thread::capabilities(None);
    if sets.is_ok_and(|sets| {
        sets.effective
            .contains(rustix::thread::CapabilitySet::IPC_LOCK)
    }) {
        return None;
    }
    rustix::process::getrlimit(rustix::process::Resource::Memlock).current
}

/// State of the page that starts a run of free pages or a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PageState {
    /// Inside a run.
    Inner,
    /// First page of a free run.
    Free,
    /// First page of a buffer.
    Used,
}

#[derive(Clone, Copy, Debug)]
struct Page {
    next: u32,
    previous: u32,
    /// Owners of the buffer that starts here.
    owners: u32,
    /// First of this buffer's loans.
    loans: u32,
    generation: u16,
    order: u8,
    /// Listed in `Arena::parting`.
    parting: bool,
    state: PageState,
}

const FRESH_PAGE: Page = Page {
    next: NONE,
    previous: NONE,
    owners: 0,
    loans: NONE,
    generation: 0,
    order: 0,
    parting: false,
    state: PageState::Inner,
};

/// A run of bytes that the kernel works on.
#[derive(Clone, Copy, Debug)]
struct LoanEntry {
    slice: BufSlice,
    fills: bool,
    next: u32,
}

/// Receipt for memory lent to the kernel: given back exactly once.
#[derive(PartialEq, Eq, Debug)]
#[must_use]
pub(crate) struct Loan(u32);

/// Payload memory of one process. See the module's text.
#[derive(Debug)]
pub struct Arena {
    map: MmapRaw,
    pages: Vec<Page>,
    /// Super-blocks that each share may have.
    super_blocks_max: [u32; SHARES],
    /// Whose each super-block is: buffers of different shares never lie in the same one, so neither
    /// splits what the other needs in one piece.
    shares: Vec<Share>,
    /// For whom memory is taken now.
    acting: Share,
    free: [[u32; ORDERS]; SHARES],
    used_bytes: [u64; SHARES],
    loans: Vec<LoanEntry>,
    loans_free: u32,
    loans_count: usize,
    /// First pages of buffers whose last owner has gone since [`Arena::reclaim`]. An action that
    /// has not been carried out yet may name them and retain them again.
    parting: Vec<u32>,
}

impl Arena {
    /// Reserves address space for the budget; takes no memory yet.
    ///
    /// # Errors
    /// When the kernel refuses the mapping.
    pub fn new(config: ArenaConfig) -> Result<Arena, RuntimeError> {
        let unit = u64::from(SUPER_BLOCK_BYTES);
        let super_blocks = (config.budget_bytes.min(ARENA_BYTES_MAX) / unit).max(1);
        let bytes = super_blocks * unit;
        let what = || format!("map an arena of {bytes} bytes");
        let too_long =
            |_| RuntimeError::own(what(), std::io::ErrorKind::OutOfMemory, "address space");
        let len = usize::try_from(bytes).map_err(too_long)?;
        let map = MmapOptions::new()
            .len(len)
            .no_reserve_swap()
            .map_anon()
            .map_err(|error| RuntimeError::new(what(), error))?;
        if config.huge_pages
            && let Err(error) = map.advise(Advice::HugePage)
        {
            tracing::debug!(%error, "arena: no transparent huge pages");
        }
        Ok(Arena {
            map: MmapRaw::from(map),
            pages: Vec::new(),
            super_blocks_max: [u32::try_from(super_blocks).unwrap_or(1), 0],
            shares: Vec::new(),
            acting: Share::First,
            free: [[NONE; ORDERS]; SHARES],
            used_bytes: [0; SHARES],
            loans: Vec::new(),
            loans_free: NONE,
            loans_count: 0,
            parting: Vec::new(),
        })
    }

    /// Gives `bytes` of the budget (rounded down to MiB) to the second share; the first one keeps at
    /// least 1 MiB.
    ///
    /// # Panics
    /// When a buffer has been taken before.
    pub fn set_apart(&mut self, bytes: u64) {
        assert!(self.pages.is_empty(), "memory set apart after use");
        let all = self.super_blocks_max();
        let wanted = u32::try_from(bytes / u64::from(SUPER_BLOCK_BYTES)).unwrap_or(all);
        let second = wanted.min(all - 1);
        self.super_blocks_max = [all - second, second];
    }

    /// From now on memory is taken for this share. Released it is by anyone.
    pub fn act_for(&mut self, share: Share) {
        self.acting = share;
    }

    /// The budget of all shares in bytes.
    pub fn budget(&self) -> u64 {
        u64::from(self.super_blocks_max()) * u64::from(SUPER_BLOCK_BYTES)
    }

    /// Bytes in buffers that have an owner (rounded up to the size class).
    pub fn used(&self) -> u64 {
        self.used_bytes.iter().sum()
    }

    /// Bytes of memory taken from the system so far; it never shrinks.
    pub fn grown(&self) -> u64 {
        self.pages.len() as u64 * u64::from(BLOCK_BYTES)
    }

    /// Copies `source` to `target` (same length, no overlap) and gives the CRC-32C of the bytes,
    /// continued from `seed`: one pass through memory for both.
    ///
    /// # Panics
    /// When the lengths differ or the runs overlap.
    pub fn copy_crc32c(&mut self, source: BufSlice, target: BufSlice, seed: u32) -> u32 {
        assert!(source.len == target.len, "copy {source:?} to {target:?}");
        let mut crc = seed;
        let mut at = 0;
        while at < source.len {
            let step = (source.len - at).min(COPY_STEP_BYTES);
            self.copy(source.slice(at, step), target.slice(at, step));
            crc = crc32c::crc32c_append(crc, self.bytes(target.slice(at, step)));
            at += step;
        }
        crc
    }

    /// Copies `source`, bytes from outside the arena, to `target` of the same length, and gives
    /// their CRC-32C continued from `seed`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn fill_crc32c(&mut self, target: BufSlice, source: &[u8], seed: u32) -> u32 {
        let target = self.bytes_mut(target);
        assert!(
            target.len() == source.len(),
            "fill {} from {}",
            target.len(),
            source.len()
        );
        let mut crc = seed;
        let step = COPY_STEP_BYTES as usize;
        let steps = target.chunks_mut(step).zip(source.chunks(step));
        for (target, source) in steps {
            target.copy_from_slice(source);
            crc = crc32c::crc32c_append(crc, target);
        }
        crc
    }

    /// Number of super-blocks in use, and the address and length of one: for registration.
    pub(crate) fn super_blocks(&self) -> u32 {
        u32::try_from(self.pages.len()).unwrap_or(u32::MAX) / SUPER_BLOCK_PAGES
    }

    pub(crate) fn super_blocks_max(&self) -> u32 {
        self.super_blocks_max.iter().sum()
    }

    /// Whose a page is.
    fn share_of(&self, page: u32) -> usize {
        self.shares[(page / SUPER_BLOCK_PAGES) as usize] as usize
    }

    pub(crate) fn super_block(&self, index: u32) -> (*mut u8, u32) {
        assert!(index < self.super_blocks(), "super-block {index}");
        (
            self.address(index * SUPER_BLOCK_PAGES, 0),
            SUPER_BLOCK_BYTES,
        )
    }

    /// Gives a run of bytes to the kernel, which reads it, or fills it when `fills`. Retains the
    /// buffer until [`Arena::give_back`].
    pub(crate) fn lend(&mut self, slice: BufSlice, fills: bool) -> Loan {
        let page = self.checked(slice);
        self.guard(page, slice, fills);
        self.pages[page as usize].owners += 1;
        let entry = LoanEntry {
            slice,
            fills,
            next: self.pages[page as usize].loans,
        };
        let index = if self.loans_free == NONE {
            self.loans.push(entry);
            u32::try_from(self.loans.len() - 1).unwrap_or(NONE)
        } else {
            let index = self.loans_free;
            self.loans_free = self.loans[index as usize].next;
            self.loans[index as usize] = entry;
            index
        };
        self.pages[page as usize].loans = index;
        self.loans_count += 1;
        Loan(index)
    }

    /// Frees the buffers whose last owner has gone. Called where no action is left to be carried
    /// out: a machine may release a buffer right after it has emitted an action that names it.
    ///
    /// # Panics
    /// When a buffer without an owner is lent to the kernel (a bug here).
    pub fn reclaim(&mut self) {
        while let Some(page) = self.parting.pop() {
            let entry = &mut self.pages[page as usize];
            entry.parting = false;
            if entry.owners > 0 {
                continue;
            }
            assert!(entry.loans == NONE, "page {page} is lent and has no owner");
            entry.generation = (entry.generation + 1) & GENERATION_MASK;
            let order = entry.order;
            let share = self.share_of(page);
            self.used_bytes[share] -= u64::from(BLOCK_BYTES) << order;
            self.put(page, order);
        }
    }

    /// The kernel is done with it.
    #[expect(clippy::needless_pass_by_value, reason = "a receipt is spent")]
    pub(crate) fn give_back(&mut self, loan: Loan) {
        let Loan(index) = loan;
        let LoanEntry { slice, next, .. } = self.loans[index as usize];
        let page = self.page_of(slice.buf);
        // Few operations work on one buffer at a time, so its list is short.
        if self.pages[page as usize].loans == index {
            self.pages[page as usize].loans = next;
        } else {
            let mut at = self.pages[page as usize].loans;
            while self.loans[at as usize].next != index {
                at = self.loans[at as usize].next;
            }
            self.loans[at as usize].next = next;
        }
        self.loans[index as usize].next = self.loans_free;
        self.loans_free = index;
        self.loans_count -= 1;
        self.release(slice.buf);
    }

    /// Number of runs that the kernel owns now.
    pub(crate) fn lent(&self) -> usize {
        self.loans_count
    }

    /// Where a loan starts.
    pub(crate) fn loan_address(&self, loan: &Loan) -> *mut u8 {
        let slice = self.loans[loan.0 as usize].slice;
        self.address(self.page_of(slice.buf), slice.offset)
    }

    /// What was lent.
    pub(crate) fn loan_slice(&self, loan: &Loan) -> BufSlice {
        self.loans[loan.0 as usize].slice
    }

    /// The super-block that a loan lies in: its index as a registered buffer.
    pub(crate) fn loan_region(&self, loan: &Loan) -> u32 {
        self.page_of(self.loans[loan.0 as usize].slice.buf) / SUPER_BLOCK_PAGES
    }

    fn address(&self, page: u32, offset: u32) -> *mut u8 {
        let at = page as usize * BLOCK_BYTES as usize + offset as usize;
        assert!(
            at < self.map.len() || (at == self.map.len()),
            "address {at}"
        );
        // SAFETY: `at` is at most the length of the mapping, which is one allocation.
        unsafe { self.map.as_mut_ptr().add(at) }
    }

    /// First page of a live buffer.
    fn page_of(&self, buf: BufId) -> u32 {
        let page = buf.0 & ((1 << PAGE_BITS) - 1);
        let generation = buf.0 >> PAGE_BITS;
        let known = self.pages.get(page as usize);
        let live = known.is_some_and(|known| {
            known.state == PageState::Used && u32::from(known.generation) == generation
        });
        assert!(live, "buffer {buf:?} used after its release: {known:?}");
        page
    }

    /// First page of the slice's buffer; the slice lies inside it.
    fn checked(&self, slice: BufSlice) -> u32 {
        let page = self.page_of(slice.buf);
        let capacity = u64::from(BLOCK_BYTES) << self.pages[page as usize].order;
        let end = u64::from(slice.offset) + u64::from(slice.len);
        assert!(end <= capacity, "{slice:?} of a buffer of {capacity} bytes");
        page
    }

    /// Nobody reads what the kernel fills, nobody writes what the kernel uses.
    fn guard(&self, page: u32, slice: BufSlice, writes: bool) {
        let mut at = self.pages[page as usize].loans;
        while at != NONE {
            let loan = &self.loans[at as usize];
            let apart = slice.offset + slice.len <= loan.slice.offset
                || loan.slice.offset + loan.slice.len <= slice.offset;
            assert!(
                apart || !(writes || loan.fills),
                "{slice:?} touched while the kernel has {:?} (fills: {})",
                loan.slice,
                loan.fills
            );
            at = loan.next;
        }
    }

    fn grow(&mut self) -> bool {
        let share = self.acting;
        let count = self.shares.iter().filter(|owner| **owner == share).count();
        if count >= self.super_blocks_max[share as usize] as usize {
            return false;
        }
        let first = self.super_blocks() * SUPER_BLOCK_PAGES;
        self.shares.push(share);
        self.pages
            .resize(self.pages.len() + SUPER_BLOCK_PAGES as usize, FRESH_PAGE);
        self.link(first, ORDER_MAX);
        true
    }

    fn link(&mut self, page: u32, order: u8) {
        let share = self.share_of(page);
        let head = self.free[share][order as usize];
        if head != NONE {
            self.pages[head as usize].previous = page;
        }
        let entry = &mut self.pages[page as usize];
        (entry.next, entry.previous) = (head, NONE);
        (entry.order, entry.state) = (order, PageState::Free);
        self.free[share][order as usize] = page;
    }

    fn unlink(&mut self, page: u32) {
        let Page {
            next,
            previous,
            order,
            ..
        } = self.pages[page as usize];
        if previous == NONE {
            let share = self.share_of(page);
            self.free[share][order as usize] = next;
        } else {
            self.pages[previous as usize].next = next;
        }
        if next != NONE {
            self.pages[next as usize].previous = previous;
        }
        self.pages[page as usize].state = PageState::Inner;
    }

    /// Takes a free run of this order for who acts, splitting a longer one when needed.
    fn take(&mut self, order: u8) -> Option<u32> {
        let share = self.acting as usize;
        let found = (order..=ORDER_MAX).find(|order| self.free[share][*order as usize] != NONE);
        let mut at = match found {
            Some(order) => order,
            None if self.grow() => ORDER_MAX,
            None => return None,
        };
        let page = self.free[share][at as usize];
        self.unlink(page);
        while at > order {
            at -= 1;
            self.link(page + (1 << at), at);
        }
        self.pages[page as usize].order = order;
        Some(page)
    }

    /// Puts a run back, joined with its free neighbours.
    fn put(&mut self, mut page: u32, mut order: u8) {
        while order < ORDER_MAX {
            let buddy = page ^ (1 << order);
            let Page {
                state,
                order: theirs,
                ..
            } = self.pages[buddy as usize];
            if state != PageState::Free || theirs != order {
                break;
            }
            self.unlink(buddy);
            self.pages[page as usize].state = PageState::Inner;
            page = page.min(buddy);
            order += 1;
        }
        self.link(page, order);
    }
}

/// Size class of a length: log2 of its pages.
fn order_of(len: u32) -> u8 {
    let pages = len.div_ceil(BLOCK_BYTES).next_power_of_two();
    u8::try_from(pages.trailing_zeros()).unwrap_or(u8::MAX)
}

impl Buffers for Arena {
    fn alloc(&mut self, len: u32) -> Option<BufSlice> {
        if len == 0 || len > TRANSFER_BYTES_MAX {
            return None;
        }
        let order = order_of(len);
        let page = self.take(order)?;
        self.used_bytes[self.acting as usize] += u64::from(BLOCK_BYTES) << order;
        let entry = &mut self.pages[page as usize];
        entry.state = PageState::Used;
        entry.owners = 1;
        entry.loans = NONE;
        let id = page | (u32::from(entry.generation) << PAGE_BITS);
        Some(BufSlice {
            buf: BufId(id),
            offset: 0,
            len,
        })
    }

    fn retain(&mut self, buf: BufId) {
        let page = self.page_of(buf);
        self.pages[page as usize].owners += 1;
    }

    fn release(&mut self, buf: BufId) {
        let page = self.page_of(buf);
        let entry = &mut self.pages[page as usize];
        assert!(
            entry.owners > 0,
            "{buf:?} released more often than retained"
        );
        entry.owners -= 1;
        if entry.owners == 0 && !entry.parting {
            entry.parting = true;
            self.parting.push(page);
        }
    }

    fn bytes(&self, slice: BufSlice) -> &[u8] {
        let page = self.checked(slice);
        self.guard(page, slice, false);
        let start = self.address(page, slice.offset);
        // SAFETY: the run lies inside one live buffer of the mapping (`checked`), which is
        // initialized (anonymous memory reads zero); the kernel does not fill it (`guard`) and no
        // `&mut` to it exists, as that would borrow `self` mutably.
        unsafe { core::slice::from_raw_parts(start, slice.len as usize) }
    }

    fn bytes_mut(&mut self, slice: BufSlice) -> &mut [u8] {
        let page = self.checked(slice);
        self.guard(page, slice, true);
        let start = self.address(page, slice.offset);
        // SAFETY: as in `bytes`; the kernel does not use the run at all (`guard`), and `&mut self`
        // makes this the only reference into the mapping.
        unsafe { core::slice::from_raw_parts_mut(start, slice.len as usize) }
    }

    fn copy(&mut self, source: BufSlice, target: BufSlice) {
        assert!(source.len == target.len, "copy {source:?} to {target:?}");
        let (from, to) = (self.checked(source), self.checked(target));
        self.guard(from, source, false);
        self.guard(to, target, true);
        let apart = from != to
            || source.offset + source.len <= target.offset
            || target.offset + target.len <= source.offset;
        assert!(apart, "copy {source:?} to {target:?}: overlap");
        let (from, to) = (
            self.address(from, source.offset),
            self.address(to, target.offset),
        );
        // SAFETY: both runs lie inside live buffers of the mapping (`checked`), do not overlap
        // (`apart`; buffers are disjoint), the kernel does not touch them in a conflicting way
        // (`guard`), and `&mut self` keeps all references away.
        unsafe { core::ptr::copy_nonoverlapping(from, to, source.len as usize) };
    }

    fn crc32c(&self, seed: u32, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(seed, bytes)
    }

    fn available(&self) -> u64 {
        let share = self.acting as usize;
        let budget = u64::from(self.super_blocks_max[share]) * u64::from(SUPER_BLOCK_BYTES);
        budget - self.used_bytes[share]
    }
}

#[cfg(test)]
#[path = "arena_tests.rs"]
mod tests;
