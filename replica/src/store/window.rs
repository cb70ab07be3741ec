//! The window and the header in [`Words`] (2.3, M6, M14): what survives the process but not the
//! kernel. A process killed between any two stores leaves a valid window.
//!
//! Word layout: `0..16` header A, `16..32` header B, then four words a slot, then the maps
//! ([`super::maps`]). The header with the higher generation and a right checksum counts. A slot
//! counts when its checksum is right, it carries the header's epoch and its idx lies above the
//! header's tidx at its own place (idx modulo slots).

use super::api::LeaseGrant;
use super::bytes::{uuid_from_words, uuid_words};
use alloc::boxed::Box;
use trilith_block::mark::{self, Mark};
use trilith_block::{
    BlockRange, Blocks, Buffers, Idx, Lba, MemberSet, Monotonic, SyncEpoch, Term, Uuid, Words,
};
use trilith_wire::SlotStatus;

const HEADER_WORDS: usize = 16;
const SLOTS_AT: usize = 2 * HEADER_WORDS;
const SLOT_WORDS: usize = 4;
const HEADER_MAGIC: u64 = u64::from_le_bytes(*b"TRILWIN1");
const FLAG_TAINTED: u64 = 1;
const FLAG_FLUSH_FAILED: u64 = 2;
const LBA_BITS: u32 = 40;

/// What a slot stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SlotOp {
    Write,
    Zeroes,
    Discard,
    Flush,
    SyncSet,
}

impl SlotOp {
    fn to_byte(self) -> u8 {
        match self {
            SlotOp::Write => 1,
            SlotOp::Zeroes => 2,
            SlotOp::Discard => 3,
            SlotOp::Flush => 4,
            SlotOp::SyncSet => 5,
        }
    }

    fn from_byte(byte: u8) -> Option<SlotOp> {
        match byte {
            1 => Some(SlotOp::Write),
            2 => Some(SlotOp::Zeroes),
            3 => Some(SlotOp::Discard),
            4 => Some(SlotOp::Flush),
            5 => Some(SlotOp::SyncSet),
            _ => None,
        }
    }

    /// True for entries that change blocks.
    pub(crate) fn is_data(self) -> bool {
        match self {
            SlotOp::Write | SlotOp::Zeroes | SlotOp::Discard => true,
            SlotOp::Flush | SlotOp::SyncSet => false,
        }
    }
}

/// One entry of the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot {
    pub(crate) idx: Idx,
    pub(crate) range: BlockRange,
    pub(crate) status: SlotStatus,
    pub(crate) op: SlotOp,
    pub(crate) skip: MemberSet,
}

/// Who the header belongs to. Another value of any field: the window is not ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owner {
    pub(crate) boot: Uuid,
    pub(crate) replica: Uuid,
}

/// What a header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) generation: u64,
    pub(crate) owner: Owner,
    /// The epoch whose record the window has taken note of.
    pub(crate) se: SyncEpoch,
    pub(crate) upto: Idx,
    pub(crate) tidx: Idx,
    pub(crate) tainted: bool,
    pub(crate) flush_failed: bool,
    /// Slots of another epoch are void; a new epoch empties the window in one store.
    pub(crate) epoch: u32,
    pub(crate) journal_id: u64,
    pub(crate) lease: LeaseGrant,
}

/// The window of an open store.
pub(crate) struct Window {
    pub(crate) words: Box<dyn Words>,
    pub(crate) header: Header,
    slots: u32,
    /// tidx as the stored header has it: slots above it must not be used again.
    stored_tidx: Idx,
    header_changed: bool,
    pub(crate) max_idx: Idx,
}

impl core::fmt::Debug for Window {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Window")
            .field("header", &self.header)
            .field("stored_tidx", &self.stored_tidx)
            .field("header_changed", &self.header_changed)
            .field("max_idx", &self.max_idx)
            .finish_non_exhaustive()
    }
}

/// Words before the maps.
pub(crate) fn words_before_maps(slots: u32) -> usize {
    SLOTS_AT + SLOT_WORDS * usize::try_from(slots).unwrap_or(0)
}

/// The valid header of some words, if there is one.
pub(crate) fn read_header(words: &dyn Words, data: &dyn Buffers) -> Option<Header> {
    let a = header_at(words, 0, data);
    let b = header_at(words, HEADER_WORDS, data);
    match (a, b) {
        (Some(a), Some(b)) => Some(if a.generation >= b.generation { a } else { b }),
        (a, b) => a.or(b),
    }
}

fn header_crc(words: &[u64; HEADER_WORDS], data: &dyn Buffers) -> u64 {
    let mut raw = [0u8; 8 * (HEADER_WORDS - 1)];
    for (bytes, word) in raw.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    u64::from(data.crc32c(0, &raw))
}

fn header_at(words: &dyn Words, at: usize, data: &dyn Buffers) -> Option<Header> {
    let mut w = [0u64; HEADER_WORDS];
    for (i, word) in w.iter_mut().enumerate() {
        *word = words.load(at + i);
    }
    if w[0] != HEADER_MAGIC || w[15] != header_crc(&w, data) {
        return None;
    }
    Some(Header {
        generation: w[1],
        owner: Owner {
            boot: uuid_from_words([w[2], w[3]]),
            replica: uuid_from_words([w[4], w[5]]),
        },
        se: SyncEpoch {
            term: Term(w[6]),
            n: u32::try_from(w[14]).unwrap_or(0),
        },
        upto: Idx(w[7]),
        tidx: Idx(w[8]),
        tainted: w[9] & FLAG_TAINTED != 0,
        flush_failed: w[9] & FLAG_FLUSH_FAILED != 0,
        epoch: u32::try_from(w[9] >> 32).unwrap_or(0),
        journal_id: w[10],
        lease: LeaseGrant {
            until: Monotonic(w[11]),
            engine: uuid_from_words([w[12], w[13]]),
        },
    })
}

impl Window {
    /// Takes over words whose header was found valid: slots and upto are read from them.
    pub(crate) fn resume(
        words: Box<dyn Words>,
        header: Header,
        slots: u32,
        data: &dyn Buffers,
    ) -> Window {
        let mut window = Window {
            words,
            header,
            slots,
            stored_tidx: header.tidx,
            header_changed: true,
            max_idx: header.tidx,
        };
        // Slots are looked at by rising idx; the place follows from the idx.
        window.header.upto = header.tidx;
        let last = Idx(header.tidx.0.saturating_add(u64::from(slots)));
        let mut contiguous = true;
        let mut idx = header.tidx;
        while idx < last {
            idx = idx.next();
            let slot = window.slot_checked(idx, data);
            if slot.is_none() {
                // A torn or foreign slot must never be read without its checksum again.
                let at = window.place(idx);
                mark::reached_if(window.words.load(at) == idx.0, Mark::SlotTorn);
                window.words.store(at + 2, 0);
            }
            let accepted = slot
                .is_some_and(|s| matches!(s.status, SlotStatus::Accepted | SlotStatus::Skipped));
            contiguous = contiguous && accepted;
            if contiguous {
                window.header.upto = idx;
            }
            if slot.is_some() {
                window.max_idx = idx;
            }
        }
        window
    }

    /// Takes over words of any content: an empty window. The old headers are void before anything
    /// else is stored.
    pub(crate) fn fresh(mut words: Box<dyn Words>, header: Header, slots: u32) -> Window {
        words.store(0, 0);
        words.store(HEADER_WORDS, 0);
        Window {
            words,
            header,
            slots,
            stored_tidx: header.tidx,
            header_changed: true,
            max_idx: header.tidx,
        }
    }

    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }

    fn place(&self, idx: Idx) -> usize {
        let place = idx.0 % u64::from(self.slots);
        SLOTS_AT + SLOT_WORDS * usize::try_from(place).unwrap_or(0)
    }

    /// Number of the slot of an idx.
    pub(crate) fn slot_number(&self, idx: Idx) -> usize {
        usize::try_from(idx.0 % u64::from(self.slots)).unwrap_or(0)
    }

    /// True when the window has a place for `idx`.
    pub(crate) fn fits(&self, idx: Idx) -> bool {
        idx.0 <= self.header.tidx.0.saturating_add(u64::from(self.slots))
    }

    /// The slot of an idx above tidx. Slots of this life are read without their checksum.
    pub(crate) fn slot(&self, idx: Idx) -> Option<Slot> {
        let at = self.place(idx);
        let status_word = self.words.load(at + 2);
        let seq = self.words.load(at + 3) & u64::from(u32::MAX);
        if idx <= self.header.tidx
            || self.words.load(at) != idx.0
            || seq != u64::from(self.header.epoch)
        {
            return None;
        }
        let place = self.words.load(at + 1);
        let [status, op, ..] = status_word.to_le_bytes();
        Some(Slot {
            idx,
            range: BlockRange::new(
                Lba(place & (u64::MAX >> (64 - LBA_BITS))),
                Blocks(u32::try_from(place >> LBA_BITS).unwrap_or(0)),
            ),
            status: SlotStatus::from_byte(status)?,
            op: SlotOp::from_byte(op)?,
            skip: MemberSet(u32::try_from(status_word >> 32).unwrap_or(0)),
        })
    }

    fn slot_checked(&self, idx: Idx, data: &dyn Buffers) -> Option<Slot> {
        let slot = self.slot(idx)?;
        let at = self.place(idx);
        let w = [
            self.words.load(at),
            self.words.load(at + 1),
            self.words.load(at + 2),
        ];
        let tail = self.words.load(at + 3);
        let sound = !slot.op.is_data() || slot.range.in_one_extent();
        (sound && tail >> 32 == u64::from(slot_crc(w, self.header.epoch, data))).then_some(slot)
    }

    /// Stores a slot: free first, then the body, then the status word in a single store (M6). The
    /// header goes first when the slot still counts for the stored one.
    pub(crate) fn put(&mut self, slot: &Slot, data: &dyn Buffers) {
        let at = self.place(slot.idx);
        let old = self.words.load(at);
        if old > self.stored_tidx.0 && old != slot.idx.0 {
            self.store_header(data);
        }
        let place = (slot.range.start.0 & (u64::MAX >> (64 - LBA_BITS)))
            | u64::from(slot.range.count.0) << LBA_BITS;
        let status_word = u64::from(slot.status.to_byte())
            | u64::from(slot.op.to_byte()) << 8
            | u64::from(slot.skip.0) << 32;
        let crc = slot_crc([slot.idx.0, place, status_word], self.header.epoch, data);
        self.words.store(at + 2, 0);
        self.words.store(at, slot.idx.0);
        self.words.store(at + 1, place);
        self.words
            .store(at + 3, u64::from(self.header.epoch) | u64::from(crc) << 32);
        self.words.store(at + 2, status_word);
        self.max_idx = self.max_idx.max(slot.idx);
    }

    /// Changes the status of a slot in a single store.
    pub(crate) fn set_status(&mut self, idx: Idx, status: SlotStatus) {
        let at = self.place(idx);
        debug_assert!(
            self.words.load(at) == idx.0,
            "slot of {idx:?} holds another entry"
        );
        let word = self.words.load(at + 2);
        self.words
            .store(at + 2, (word & !0xff) | u64::from(status.to_byte()));
    }

    /// Moves upto over what is accepted.
    pub(crate) fn advance(&mut self) {
        loop {
            let next = self.header.upto.next();
            let accepted = self
                .slot(next)
                .is_some_and(|s| matches!(s.status, SlotStatus::Accepted | SlotStatus::Skipped));
            if !accepted {
                return;
            }
            self.header.upto = next;
            self.header_changed = true;
        }
    }

    /// The slot of an entry without blocks, which is accepted at once.
    pub(crate) fn put_marker(&mut self, idx: Idx, op: SlotOp, data: &dyn Buffers) {
        let slot = Slot {
            idx,
            range: BlockRange::default(),
            status: SlotStatus::Accepted,
            op,
            skip: MemberSet::EMPTY,
        };
        self.put(&slot, data);
        self.advance();
    }

    /// Cuts the window. Never above upto: an entry that is not accepted here keeps its slot.
    pub(crate) fn set_tidx(&mut self, tidx: Idx) {
        let tidx = tidx.min(self.header.upto);
        if tidx > self.header.tidx {
            self.header.tidx = tidx;
            self.header_changed = true;
        }
    }

    /// Empties the window: upto and tidx are `start`. One header store makes it so.
    pub(crate) fn reset(&mut self, start: Idx, se: SyncEpoch, data: &dyn Buffers) {
        self.header.epoch = self.header.epoch.wrapping_add(1);
        self.header.upto = start;
        self.header.tidx = start;
        self.header.se = se;
        self.max_idx = start;
        self.store_header(data);
    }

    pub(crate) fn change_header(&mut self, change: impl FnOnce(&mut Header)) {
        change(&mut self.header);
        self.header_changed = true;
    }

    /// Stores the header if it changed.
    pub(crate) fn settle(&mut self, data: &dyn Buffers) {
        if self.header_changed {
            self.store_header(data);
        }
    }

    /// Stores the header over the older of the two.
    pub(crate) fn store_header(&mut self, data: &dyn Buffers) {
        self.header.generation += 1;
        let h = &self.header;
        let [boot_a, boot_b] = uuid_words(h.owner.boot);
        let [replica_a, replica_b] = uuid_words(h.owner.replica);
        let [lease_a, lease_b] = uuid_words(h.lease.engine);
        let flags = (u64::from(h.tainted) * FLAG_TAINTED)
            | (u64::from(h.flush_failed) * FLAG_FLUSH_FAILED)
            | (u64::from(h.epoch) << 32);
        let mut w = [
            HEADER_MAGIC,
            h.generation,
            boot_a,
            boot_b,
            replica_a,
            replica_b,
            h.se.term.0,
            h.upto.0,
            h.tidx.0,
            flags,
            h.journal_id,
            h.lease.until.0,
            lease_a,
            lease_b,
            u64::from(h.se.n),
            0,
        ];
        w[15] = header_crc(&w, data);
        let at = if h.generation.is_multiple_of(2) {
            0
        } else {
            HEADER_WORDS
        };
        for (i, word) in w.iter().enumerate() {
            self.words.store(at + i, *word);
        }
        self.stored_tidx = self.header.tidx;
        self.header_changed = false;
    }

    /// Entries above tidx, rising, from `from` on.
    pub(crate) fn entries(&self, from: Idx) -> impl Iterator<Item = Slot> + '_ {
        let first = self.header.tidx.next().max(from).0;
        (first..=self.max_idx.0).filter_map(|idx| self.slot(Idx(idx)))
    }
}

fn slot_crc(w: [u64; 3], epoch: u32, data: &dyn Buffers) -> u32 {
    let mut raw = [0u8; 28];
    raw[0..8].copy_from_slice(&w[0].to_le_bytes());
    raw[8..16].copy_from_slice(&w[1].to_le_bytes());
    raw[16..24].copy_from_slice(&(w[2] & !0xff).to_le_bytes());
    raw[24..28].copy_from_slice(&epoch.to_le_bytes());
    data.crc32c(0, &raw)
}
