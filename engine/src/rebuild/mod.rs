//! Brings one member up to date while clients go on (protocol 5.4, 6.6; amendment M4).
//!
//! A [`Rebuild`] holds the chunks that its member may lack and copies them one run at a time: lock
//! the range at the engine, read it from an in-sync member, repair the target, unlock. A copy
//! becomes progress that survives a leader change when the target has answered a FLUSH sent after
//! it (DIRTYCLEAR). Owned by the engine, one per member being rebuilt.

use alloc::vec::Vec;
use core::time::Duration;
use trilith_block::{BlockRange, BufSlice, Buffers, ChunkMap, Monotonic};
use trilith_wire::EntryStatus;

mod rate;

pub use rate::{Load, RateConfig, RateController};

/// Sizes and times of a rebuild.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RebuildConfig {
    /// Size of the volume in bytes.
    pub capacity_bytes: u64,
    /// Copies in flight at once.
    pub copies_max: usize,
    /// Longest copy in bytes (64 KiB to 1 MiB).
    pub copy_bytes_max: u32,
    /// How long a range lock may be held (M4).
    pub lock_hold: Duration,
    /// A FLUSH is asked for this long after the first copy that it would cover ...
    pub clear_interval: Duration,
    /// ... or once it would cover this many bytes.
    pub clear_bytes: u64,
    /// Bytes per second.
    pub rate: RateConfig,
}

/// What a rebuild wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RebuildStep {
    /// Hold new client writes that overlap the range; answer LockGranted once those in flight are
    /// committed and accepted by the member that will be read, or LockDenied.
    Lock {
        /// Names the copy from now on.
        token: u64,
        /// Within one extent, whole chunks (clipped at the end of the volume).
        range: BlockRange,
    },
    /// Let client writes on the range of this token go on.
    Unlock {
        /// The copy.
        token: u64,
    },
    /// READ from an in-sync member that accepted every entry overlapping the range.
    Read {
        /// The copy.
        token: u64,
        /// Its blocks.
        range: BlockRange,
    },
    /// Send REPAIR with rebuild = true to the target. One owner of the buffer passes to the engine.
    Copy {
        /// The copy; the REPAIR's tag.
        token: u64,
        /// Its blocks.
        range: BlockRange,
        /// The bytes; `None`: zeroes.
        data: Option<BufSlice>,
    },
    /// Send a FLUSH entry; answer FlushDone when the target has answered it.
    Flush {
        /// Names the answer.
        token: u64,
    },
    /// Send DIRTYCLEAR of [`Rebuild::take_cleared`] to every in-sync member and to the target.
    DirtyClear,
    /// Nothing is dirty and no copy runs: the member may join (5.4). Sent again if chunks became
    /// dirty in between.
    Done,
    /// The target cannot take copies; end the rebuild.
    Failed(EntryStatus),
}

/// What a READ brought. The buffer passes to the rebuild.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyData {
    /// The bytes.
    Bytes(BufSlice),
    /// Zeroes.
    Zero,
}

/// What can happen to a rebuild.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RebuildEvent {
    /// The range is locked.
    LockGranted(u64),
    /// The range cannot be locked now.
    LockDenied(u64),
    /// DATA, or an error.
    ReadDone {
        /// The copy.
        token: u64,
        /// What came.
        result: Result<CopyData, EntryStatus>,
    },
    /// REPAIRDONE.
    CopyDone {
        /// The copy.
        token: u64,
        /// How it ended.
        status: EntryStatus,
    },
    /// The target answered the FLUSH.
    FlushDone(u64),
    /// The member read from is gone: reads without an answer will get none.
    SourceChanged,
}

/// How an entry is sent to the member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// With its payload.
    Full,
    /// Header only: put the member into the skip set.
    HeaderOnly,
}

/// The machine.
#[derive(Debug)]
pub struct Rebuild {
    dirty: ChunkMap,
}

impl Rebuild {
    /// A rebuild of a member that lacks `dirty`. `baseline_p99` is the clients' 99th percentile
    /// before it, zero when unknown.
    pub fn new(
        config: RebuildConfig,
        dirty: ChunkMap,
        now: Monotonic,
        baseline_p99: Duration,
    ) -> Rebuild {
        let _ = (config, now, baseline_p99);
        Rebuild { dirty }
    }

    /// One event in, a bounded number of steps out (appended).
    pub fn event(
        &mut self,
        now: Monotonic,
        event: RebuildEvent,
        data: &mut dyn Buffers,
        out: &mut Vec<RebuildStep>,
    ) {
        let _ = (now, event, data, out);
    }

    /// Starts copies, ends locks that are too old, asks for flushes. Call it after events and when
    /// [`Rebuild::deadline`] has passed.
    pub fn settle(&mut self, now: Monotonic, data: &mut dyn Buffers, out: &mut Vec<RebuildStep>) {
        let _ = (now, data, out);
    }

    /// When [`Rebuild::settle`] wants to be called at the latest.
    pub fn deadline(&self) -> Option<Monotonic> {
        None
    }

    /// Must be asked for every data entry, in stream order, when its idx is given: how is it sent to
    /// this member? HeaderOnly marks its chunks dirty here and voids copies of them.
    pub fn route(&mut self, range: BlockRange) -> Route {
        if self.dirty.touches(range) { Route::HeaderOnly } else { Route::Full }
    }

    /// Copy this range soon, if it is dirty.
    pub fn hint_hot(&mut self, range: BlockRange) {
        let _ = range;
    }

    /// Clients' load of the last interval, about every second.
    pub fn load(&mut self, now: Monotonic, load: Load) {
        let _ = (now, load);
    }

    /// The chunks of a [`RebuildStep::DirtyClear`] are moved to `cleared` (replaced).
    pub fn take_cleared(&mut self, cleared: &mut ChunkMap) {
        cleared.clear();
    }

    /// Chunks still to be copied.
    pub fn dirty(&self) -> &ChunkMap {
        &self.dirty
    }

    /// Ends the rebuild (target lost, engine stops) and tells what the member may lack: everything
    /// not yet cleared by a DIRTYCLEAR. The engine unlocks all its ranges and ignores late answers.
    pub fn into_dirty(self) -> ChunkMap {
        self.dirty
    }
}
