//! Skeleton of the API; bodies follow.
#![allow(unused_variables, clippy::needless_pass_by_value, missing_docs, reason = "skeleton of the API: bodies follow in the next commits")]

use super::api::*;
use super::disk::{DiskError, DiskTag, StoreOut};
use super::geometry::Geometry;
use alloc::boxed::Box;
use trilith_block::{
    BlockRange, BufSlice, Buffers, ChunkMap, ExtentNo, Idx, MemberId, MemberSet, SyncEpoch, Term,
    Uuid, Words,
};
use trilith_wire::WindowRecord;

/// What a new volume is made of.
#[derive(Clone, Debug)]
pub struct FormatParams {
    pub volume: Uuid,
    pub replica: Uuid,
    pub member: MemberId,
    pub voters: MemberSet,
    /// Bytes; a multiple of 4096.
    pub capacity: u64,
    pub geometry: Geometry,
    /// Metadata and data share one raw device.
    pub same_device: bool,
    /// Zero the data area (a raw device that is not known to read as zeroes).
    pub zero_data: bool,
    /// The device has a volatile write cache (kept for the state's flag).
    pub volatile_cache: bool,
}

/// Makes a new volume. The driver has made sure that nothing of value is there.
#[derive(Debug)]
pub struct Format;

impl Format {
    /// Starts; `None` when the parameters are invalid or no buffer is free.
    pub fn new(params: &FormatParams, data: &mut dyn Buffers, out: &mut StoreOut) -> Option<Format> {
        None
    }
    /// A completion in. `Some` when it is over; the machine has given its buffer back.
    pub fn disk_done(
        &mut self,
        tag: DiskTag,
        result: Result<(), DiskError>,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> Option<Result<(), DiskError>> {
        None
    }
}

/// What the host gives an opening store.
#[derive(Clone, Copy, Debug)]
pub struct OpenParams {
    /// Boot id of the host.
    pub boot: Uuid,
    /// Reserve space at the first touch of an extent (a file; false on a raw device).
    pub allocate: bool,
    /// Extents allocated ahead of a sequential stream (M21); 0 = none.
    pub allocate_ahead: u32,
}

/// How a store came up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The window was there (process restart).
    pub resumed: bool,
    /// The window was lost without a clean stop, now.
    pub newly_tainted: bool,
}

/// Opens a store. The words are asked for when the superblock has told how many there are.
#[derive(Debug)]
pub struct Opening;

/// Placeholder of the error.
#[derive(Clone, Copy, Debug)]
pub struct OpenError;

/// How far an opening is.
#[derive(Debug)]
pub enum OpenStep {
    /// Completions are awaited.
    Working,
    /// Call [`Opening::words`]: the window file of this replica, at least `len` words (a new file
    /// reads zero; without a usable tmpfs: plain memory).
    NeedWords {
        len: usize,
        volume: Uuid,
        replica: Uuid,
    },
    /// The store stands. The opening is to be dropped.
    Done(Box<Store>, Opened),
    /// It cannot be opened; nothing that mattered was changed.
    Failed(OpenError),
}

impl Opening {
    pub fn new(params: OpenParams, data: &mut dyn Buffers, out: &mut StoreOut) -> Result<Opening, OpenError> {
        Ok(Opening)
    }
    /// A completion in.
    pub fn disk_done(
        &mut self,
        tag: DiskTag,
        result: Result<(), DiskError>,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> OpenStep {
        OpenStep::Working
    }
    /// The answer to NeedWords.
    pub fn words(&mut self, words: Box<dyn Words>, data: &mut dyn Buffers, out: &mut StoreOut) -> OpenStep {
        OpenStep::Working
    }
}

/// Reads without writing.
#[derive(Debug)]
pub struct Inspect;

/// Durable facts (a copy; see the queries of [`Store`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    pub volume: Uuid,
    pub replica: Uuid,
    pub member: MemberId,
    pub voters: MemberSet,
    pub capacity: u64,
    pub cfg_gen: u64,
    pub term: Term,
    pub voted: Uuid,
    pub attach_epoch: u64,
    pub se: SyncEpoch,
    pub iss: MemberSet,
    pub trk: MemberSet,
    pub loss: u32,
    pub w: Idx,
    pub tainted: bool,
    pub sealed: bool,
    pub volatile_cache: bool,
}

/// An open store.
#[derive(Debug)]
pub struct Store;

impl Store {
    /// A completion in. Unknown tags are ignored.
    pub fn disk_done(&mut self, tag: DiskTag, result: Result<(), DiskError>, data: &mut dyn Buffers, out: &mut StoreOut) {}
    /// Once after each batch: group commit, header of the window. Stores the window before the
    /// owner's answers leave.
    pub fn settle(&mut self, data: &mut dyn Buffers, out: &mut StoreOut) {}
    /// Gives the buffers back; nothing is written. For a store that is dropped.
    pub fn close(self, data: &mut dyn Buffers) {}

    // stream
    pub fn entry(&mut self, entry: Entry, data: &mut dyn Buffers, out: &mut StoreOut) -> Result<Admission, StoreError> { Ok(Admission::Taken) }
    /// FLUSH entry: slot accepted at its turn (event Accepted), Flushed later.
    pub fn flush(&mut self, idx: Idx, data: &mut dyn Buffers, out: &mut StoreOut) -> Result<Admission, StoreError> { Ok(Admission::Taken) }
    pub fn sync_set(&mut self, token: Token, set: SyncSet, data: &mut dyn Buffers, out: &mut StoreOut) -> Result<Admission, StoreError> { Ok(Admission::Taken) }
    /// Every entry up to it was accepted by all of trk.
    pub fn set_tidx(&mut self, tidx: Idx) {}
    /// REPAIR outside the stream.
    pub fn repair(&mut self, token: Token, range: BlockRange, change: Change, data: &mut dyn Buffers, out: &mut StoreOut) -> Result<(), StoreError> { Ok(()) }
    /// The caller keeps the buffer until ReadDone.
    pub fn read(&mut self, token: Token, range: BlockRange, buf: BufSlice, data: &mut dyn Buffers, out: &mut StoreOut) -> Result<(), StoreError> { Ok(()) }

    // persist
    pub fn vote(&mut self, token: Token, term: Term, engine: Uuid, attach_epoch: u64) -> Result<(), StoreError> { Ok(()) }
    /// V3: Done when no write is in flight and all entries taken so far ended; entries that wait
    /// behind a failed one are dropped.
    pub fn drain(&mut self, token: Token, data: &mut dyn Buffers, out: &mut StoreOut) -> Result<(), StoreError> { Ok(()) }
    pub fn reconcile(&mut self, token: Token, need: &ChunkMap, loss: u32) -> Result<(), StoreError> { Ok(()) }
    pub fn need_set(&mut self, token: Token, need: &ChunkMap) -> Result<(), StoreError> { Ok(()) }
    pub fn term_start(&mut self, token: Token, start: TermStart, data: &mut dyn Buffers, out: &mut StoreOut) -> Result<(), StoreError> { Ok(()) }
    /// Drops the limbo part of need.
    pub fn opened(&mut self) {}
    pub fn told(&mut self, token: Token, told: Told, data: &mut dyn Buffers, out: &mut StoreOut) -> Result<(), StoreError> { Ok(()) }
    /// Clears dirty bits of `member`, or need when it is this replica.
    pub fn dirty_clear(&mut self, member: MemberId, chunks: ChunkMap, data: &mut dyn Buffers, out: &mut StoreOut) -> Result<(), StoreError> { Ok(()) }
    pub fn seal(&mut self, token: Token, data: &mut dyn Buffers, out: &mut StoreOut) -> Result<(), StoreError> { Ok(()) }
    /// Stored with the window header at the next settle (M14).
    pub fn set_lease(&mut self, grant: LeaseGrant) {}
    /// From statvfs, in extents; the store counts down from it between calls.
    pub fn set_free_extents(&mut self, extents: u64) {}

    // queries
    pub fn facts(&self) -> Facts { self.facts() }
    pub fn failed(&self) -> bool { false }
    pub fn upto(&self) -> Idx { Idx(0) }
    pub fn tidx(&self) -> Idx { Idx(0) }
    pub fn max_idx(&self) -> Idx { Idx(0) }
    pub fn window_slots(&self) -> u32 { 0 }
    /// Data entries listed by [`Store::window_records`].
    pub fn window_count(&self) -> u32 { 0 }
    /// Data entries above tidx with idx >= from, rising.
    pub fn window_records(&self, from: Idx) -> Box<dyn Iterator<Item = WindowRecord> + '_> { Box::new(core::iter::empty()) }
    /// Extents of the activity log >= from, rising.
    pub fn activity_log(&self, from: ExtentNo) -> Box<dyn Iterator<Item = ExtentNo> + '_> { Box::new(core::iter::empty()) }
    pub fn map(&self, name: MapName) -> &ChunkMap { self.map(name) }
    pub fn lease(&self) -> LeaseGrant { LeaseGrant::default() }
    pub fn free_extents(&self) -> u64 { 0 }
    pub fn counters(&self) -> Counters { Counters::default() }
}
