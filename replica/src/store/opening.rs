//! Opening a volume: read, decide what the last stop was, write a fresh checkpoint and superblock in
//! a new life of the journal, hand out the store.
//!
//! Crash argument. Nothing is answered before the superblocks of the new life are durable, so that a
//! taint found here is durable first. A crash before leaves the old superblock, checkpoint and ring
//! untouched: the next open decides the same, or finds words of the life it began, which hold a
//! superset.

use super::activity_log::ActivityLog;
use super::api::{Counters, FailCause, LeaseGrant, StoreEvent};
use super::changes::Running;
use super::checkpoint::{Checkpoint, Phase};
use super::checksums::Checksums;
use super::disk::{DiskError, DiskTag, StoreOut};
use super::image::{Image, Report};
use super::journal::Journal;
use super::limits::{META_IO_BYTES_MAX, ZERO_BYTES};
use super::maps::{MapWords, Maps};
use super::reader::Inspect;
use super::reconfigure::drop_maps;
use super::record::MapId;
use super::state::Store;
use super::superblock::{Facts, SuperblockError};
use super::window::{Header, Owner, SlotOp, Window, read_header};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use trilith_block::limits::MEMBERS_MAX;
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BufSlice, Buffers, ChunkMap, ExtentNo, Idx, MemberSet, Overlap, Uuid, Words};
use trilith_wire::SlotStatus;

/// What the host gives an opening store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenParams {
    /// Boot id of the host. None: the window is never taken over (always tainted after a crash).
    pub boot: Uuid,
    /// Space is reserved at the first touch of an extent (a file; false on a raw device).
    pub allocate: bool,
    /// Extents reserved ahead of a sequential stream (M21); 0 = none.
    pub allocate_ahead: u32,
}

/// How a store came up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The window was there: the process restarted, the kernel lived. The lease is known.
    pub resumed: bool,
    /// The window was lost without a clean stop, now: the replica is tainted.
    pub newly_tainted: bool,
    /// The checkpoint could not be read: `need`, dirty and allocated maps are full (6.10).
    pub maps_lost: bool,
    /// What reading the metadata found.
    pub report: Report,
}

/// Why a store cannot be opened. The metadata is as it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenError {
    /// No buffer is free (256 KiB are needed, 384 KiB with checksums).
    Buffers,
    /// Neither superblock copy is valid.
    Superblocks {
        /// What is wrong with copy A.
        a: SuperblockError,
        /// What is wrong with copy B.
        b: SuperblockError,
    },
    /// The device cannot read the journal.
    JournalRead {
        /// First block of the piece.
        seq: u64,
        /// The error.
        error: DiskError,
    },
    /// An acknowledged journal block is gone: votes may be lost, so that the replica must not come
    /// back under its identity.
    JournalLost {
        /// Block that is missing.
        expected: u64,
        /// Later block that was found.
        found: u64,
    },
    /// The journal belongs to a later life than the superblock found: the newer superblock is gone.
    JournalNewer {
        /// Life in the superblock.
        expected: u64,
        /// Life in a block.
        found: u64,
    },
    /// A block with a right checksum holds a record that this build does not know.
    JournalRecord {
        /// The block.
        seq: u64,
    },
    /// More extents in the activity log than it has slots.
    ActivityLog {
        /// Slots.
        slots: u32,
        /// Extents.
        found: usize,
    },
    /// The words are too few.
    Words {
        /// Words needed.
        expected: usize,
        /// Words given.
        found: usize,
    },
    /// The fresh checkpoint could not be written.
    Write(FailCause),
}

/// How far an opening is.
#[derive(Debug)]
pub enum OpenStep {
    /// Completions are awaited.
    Working,
    /// Call [`Opening::words`] with the window file of this replica: at least `len` words, zero in a
    /// new file. Without a usable tmpfs plain memory does (always tainted after a crash, M5).
    NeedWords {
        /// Number of words.
        len: usize,
        /// Volume, for the file's name.
        volume: Uuid,
        /// Replica, for the file's name.
        replica: Uuid,
    },
    /// The store stands. The opening is to be dropped.
    Done(Box<Store>, Opened),
    /// It cannot be opened. The opening is to be dropped.
    Failed(OpenError),
}

#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one, and only while opening"
)]
enum Stage {
    Reading(Inspect),
    Words(Box<Image>, u64),
    /// B2: the pages of what the activity log held are voided.
    Voiding(Box<Store>, Opened),
    Writing(Box<Store>, Opened),
    Over,
}

/// Opens a store.
#[derive(Debug)]
pub struct Opening {
    params: OpenParams,
    stage: Stage,
    buf: BufSlice,
}

impl Opening {
    /// Starts reading.
    ///
    /// # Errors
    /// [`OpenError::Buffers`].
    pub fn new(
        params: OpenParams,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> Result<Opening, OpenError> {
        let reader = Inspect::new(data, out).ok_or(OpenError::Buffers)?;
        let buf = reader.buf;
        Ok(Opening {
            params,
            stage: Stage::Reading(reader),
            buf,
        })
    }

    /// A completion in.
    pub fn disk_done(
        &mut self,
        tag: DiskTag,
        result: Result<(), DiskError>,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> OpenStep {
        match core::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Reading(mut reader) => match reader.step(tag, result, data, out) {
                None => self.stage = Stage::Reading(reader),
                Some(Err(error)) => {
                    data.release(self.buf.buf);
                    return OpenStep::Failed(error);
                }
                Some(Ok((image, next_seq))) => {
                    let step = OpenStep::NeedWords {
                        len: map_words(&image).total(),
                        volume: image.facts.volume,
                        replica: image.facts.replica,
                    };
                    self.stage = Stage::Words(image, next_seq);
                    return step;
                }
            },
            Stage::Voiding(mut store, opened) => {
                if let Err(error) = advance(&mut store, (tag, result), data, out) {
                    store.close(data);
                    return OpenStep::Failed(error);
                }
                self.void_or_write(store, opened, data, out);
            }
            Stage::Writing(mut store, opened) => {
                if let Err(error) = advance(&mut store, (tag, result), data, out) {
                    store.close(data);
                    return OpenStep::Failed(error);
                }
                if store.checkpoint.phase == Phase::Idle {
                    return OpenStep::Done(store, opened);
                }
                self.stage = Stage::Writing(store, opened);
            }
            other => self.stage = other,
        }
        OpenStep::Working
    }

    /// The answer to [`OpenStep::NeedWords`].
    pub fn words(
        &mut self,
        words: Box<dyn Words>,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> OpenStep {
        let (image, next_seq) = match core::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Words(image, next_seq) => (image, next_seq),
            other => {
                self.stage = other;
                return OpenStep::Working;
            }
        };
        match begin(self.params, *image, next_seq, words, self.buf, data) {
            Ok((store, opened)) => {
                self.void_or_write(store, opened, data, out);
                OpenStep::Working
            }
            Err(error) => {
                data.release(self.buf.buf);
                OpenStep::Failed(error)
            }
        }
    }

    /// B2: a power loss empties the activity log. What its extents have for checksums on the disk is
    /// gone before the superblock says so.
    fn void_or_write(
        &mut self,
        mut store: Box<Store>,
        opened: Opened,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) {
        let wanted = opened.newly_tainted && !mutant::on(Mutant::ChecksumsNotVoided);
        if wanted && !store.is_checksums_saved() {
            store.start_checksums(data, out);
            self.stage = Stage::Voiding(store, opened);
        } else {
            store.begin_checkpoint(data, out);
            self.stage = Stage::Writing(store, opened);
        }
    }

    /// Gives the buffers back when an opening is given up.
    pub fn close(self, data: &mut dyn Buffers) {
        match self.stage {
            Stage::Reading(_) | Stage::Words(..) => data.release(self.buf.buf),
            Stage::Voiding(store, _) | Stage::Writing(store, _) => store.close(data),
            Stage::Over => (),
        }
    }
}

/// A completion of a store that is being opened and has no callers yet.
fn advance(
    store: &mut Store,
    (tag, result): (DiskTag, Result<(), DiskError>),
    data: &mut dyn Buffers,
    out: &mut StoreOut,
) -> Result<(), OpenError> {
    let first = out.events.len();
    store.disk_done(tag, result, data, out);
    if let Some(cause) = store.failure() {
        out.events.retain(|e| *e != StoreEvent::Failed { cause });
        return Err(OpenError::Write(cause));
    }
    debug_assert!(out.events.len() == first, "an opening store has no callers");
    Ok(())
}

fn map_words(image: &Image) -> MapWords {
    MapWords::new(image.superblock.geometry.window_slots, image.extents())
}

/// Decides what the last stop was and builds the store.
fn begin(
    params: OpenParams,
    mut image: Image,
    next_seq: u64,
    words: Box<dyn Words>,
    buf: BufSlice,
    data: &mut dyn Buffers,
) -> Result<(Box<Store>, Opened), OpenError> {
    let at = map_words(&image);
    if words.len() < at.total() {
        return Err(OpenError::Words {
            expected: at.total(),
            found: words.len(),
        });
    }
    let (slots, found) = (image.superblock.geometry.al_slots, image.activity_log.len());
    if found > usize::try_from(slots).unwrap_or(0) {
        return Err(OpenError::ActivityLog { slots, found });
    }
    let owner = Owner {
        boot: params.boot,
        replica: image.facts.replica,
    };
    let life = image.superblock.journal_id;
    let witness = image.facts.is_witness();
    // The checkpoint of a witness is empty, and all it knows is in the journal: nothing can be lost
    // with its window but the lease, so it is never tainted (W1).
    let maps_lost = image.report.checkpoint_bad.is_some() && !witness;
    if maps_lost {
        image.fill_all();
    }
    // The words count when this kernel wrote them for this replica in this life of the journal, or
    // in the one that an interrupted open was about to begin.
    let header = read_header(&*words, data).filter(|h| {
        h.owner == owner
            && !owner.boot.is_none()
            && (h.journal_id == life || h.journal_id == life + 1)
            && !h.flush_failed
            && !image.facts.flush_failed
            && !maps_lost
    });
    let resumed = header.is_some();
    let clean = image.facts.sealed && image.activity_log.is_empty() && !maps_lost;
    let newly_tainted = !resumed && !clean && !witness && !mutant::on(Mutant::UntaintedRestart);
    mark::reached_if(resumed, Mark::WindowResumed);
    mark::reached_if(!resumed && clean, Mark::SealedStart);
    let void = if image.superblock.layout.checksums_offset == 0 {
        BTreeSet::new()
    } else if maps_lost {
        // Whatever was in the log that is lost with the checkpoint.
        (0..image.extents()).map(ExtentNo).collect()
    } else {
        image.activity_log.clone()
    };
    if newly_tainted {
        mark::reached(Mark::WindowLost);
        image.taint();
    }
    image.superblock.journal_id = life + 1;
    image.superblock.boot = params.boot;
    let opened = Opened {
        resumed,
        newly_tainted,
        maps_lost,
        report: image.report,
    };
    let (mut window, mut maps) = match header {
        Some(header) => {
            // A record that the header does not know yet was made by a store that knew its taint.
            image.facts.tainted |= header.tainted && header.se == image.facts.se;
            take_over(&image, header, words, at, data)
        }
        None => start_afresh(&mut image, owner, words, at, data),
    };
    let strangers = MemberSet::first(MEMBERS_MAX).minus(image.facts.config.data());
    drop_maps(&mut maps, &mut window, strangers);
    let provisioned = if newly_tainted || !params.allocate {
        ChunkMap::new()
    } else {
        maps.get(MapId::ALLOCATED).clone()
    };
    let store = build(
        params,
        &image,
        next_seq,
        (window, maps, provisioned),
        void,
        buf,
        data,
    )?;
    Ok((store, opened))
}

fn take_over(
    image: &Image,
    header: Header,
    words: Box<dyn Words>,
    at: MapWords,
    data: &dyn Buffers,
) -> (Window, Maps) {
    let mut maps = Maps::from_words(at, image.extents(), &*words);
    let slots = image.superblock.geometry.window_slots;
    let mut window = Window::resume(words, header, slots, data);
    window.header.journal_id = image.superblock.journal_id;
    window.header.tainted = image.facts.tainted;
    let facts = &image.facts;
    if facts.is_witness() {
        // No slot goes with an epoch: the record is all there is.
        window.header.se = facts.se;
        window.store_header(data);
    } else if window.header.se.term != facts.se.term {
        // Killed between the record of a TERMSTART (or TOLD) and the header: the window was about
        // to be emptied.
        mark::reached(Mark::KilledBeforeReset);
        window.reset(facts.w, facts.se, data);
    } else {
        finish_sync_set(&mut window, header, facts, data);
        window.header.se = facts.se;
        window.store_header(data);
    }
    if header.se != facts.se && image.maps[MapId::NEED.index()].is_empty() {
        // Killed between a record that took `need` away and doing so in memory (C33).
        maps.clear(MapId::NEED, &mut *window.words);
    }
    (window, maps)
}

/// A process killed between the record of a SYNCSET and its slot left W above upto. What the record
/// began is finished now: otherwise the replica would lack an entry that its W covers.
///
/// Why that is sound: with another n in the header than in the journal, and the same term, the last
/// record is one of these.
/// - SYNCSET of a set with this replica in it. All below it was accepted and flushed before the
///   record was written (a full barrier), so that upto was just below it, and it has no blocks.
///   Of what follows the record only the slot is missing, and `need` that a join is to drop: the
///   caller drops it. When the replica joined over a gap the window goes, as it would have: the dirty maps
///   it took over were in words and journal before the record.
/// - SYNCSET without it: W stays at or below upto, nothing is done.
/// - TOLD: W is its start (C15), above all that was received before in this term. The window goes,
///   as it would have: the engine sends what follows the start.
///
/// TERMSTART has a higher term than the header: the window is emptied and this is not called.
fn finish_sync_set(window: &mut Window, header: Header, facts: &Facts, data: &dyn Buffers) {
    let next = window.header.upto.next();
    if header.se == facts.se || facts.w < next {
        return;
    }
    if !facts.is_complete() {
        window.reset(facts.w, facts.se, data);
    } else if facts.w == next && window.slot(next).is_none() && window.fits(next) {
        mark::reached(Mark::KilledBeforeMarker);
        window.put_marker(next, SlotOp::SyncSet, data);
    } else if header.tainted && !facts.tainted {
        window.reset(facts.w, facts.se, data);
    }
}

fn start_afresh(
    image: &mut Image,
    owner: Owner,
    words: Box<dyn Words>,
    at: MapWords,
    data: &dyn Buffers,
) -> (Window, Maps) {
    let facts = &image.facts;
    let old = read_header(&*words, data);
    let header = Header {
        generation: old.map_or(0, |h| h.generation),
        owner,
        se: facts.se,
        upto: facts.w,
        tidx: facts.w,
        tainted: facts.tainted,
        flush_failed: false,
        // Slots of whatever was there before carry another epoch.
        epoch: old.map_or(0, |h| h.epoch).wrapping_add(1),
        journal_id: image.superblock.journal_id,
        lease: LeaseGrant::default(),
    };
    let slots = image.superblock.geometry.window_slots;
    let mut window = Window::fresh(words, header, slots);
    let maps = core::mem::replace(&mut image.maps, core::array::from_fn(|_| ChunkMap::new()));
    let maps = Maps::from_image(maps, at, &mut *window.words);
    // Maps before the header: a process killed in between leaves no valid header.
    window.store_header(data);
    (window, maps)
}

fn checksums(
    image: &Image,
    void: BTreeSet<ExtentNo>,
    zero: BufSlice,
    data: &mut dyn Buffers,
) -> Result<Option<Box<Checksums>>, OpenError> {
    if image.superblock.layout.checksums_offset == 0 {
        return Ok(None);
    }
    let load = data.alloc(META_IO_BYTES_MAX).ok_or(OpenError::Buffers)?;
    let Some(save) = data.alloc(META_IO_BYTES_MAX) else {
        data.release(load.buf);
        return Err(OpenError::Buffers);
    };
    let sums = Checksums::new([load, save], zero, void, data);
    Ok(Some(Box::new(sums)))
}

fn build(
    params: OpenParams,
    image: &Image,
    next_seq: u64,
    (window, maps, provisioned): (Window, Maps, ChunkMap),
    void: BTreeSet<ExtentNo>,
    buf: BufSlice,
    data: &mut dyn Buffers,
) -> Result<Box<Store>, OpenError> {
    let geometry = image.superblock.geometry;
    let mut log = ActivityLog::new(geometry.al_slots);
    for extent in &image.activity_log {
        // Written before this life: only a flush of this life covers it.
        log.add(*extent, true, Idx(0), 1);
    }
    let mut failed_ranges = Vec::new();
    for slot in window.entries(Idx(0)).filter(|slot| slot.op.is_data()) {
        log.pin(slot.range.start.extent(), slot.idx);
        if slot.status == SlotStatus::Failed {
            failed_ranges.push(slot.range);
        }
    }
    let journal_buf = data.alloc(META_IO_BYTES_MAX).ok_or(OpenError::Buffers)?;
    let Some(zero) = data.alloc(ZERO_BYTES) else {
        data.release(journal_buf.buf);
        return Err(OpenError::Buffers);
    };
    data.bytes_mut(zero).fill(0);
    let checksums = match checksums(image, void, zero, data) {
        Ok(checksums) => checksums,
        Err(error) => {
            data.release(journal_buf.buf);
            data.release(zero.buf);
            return Err(error);
        }
    };
    let mut superblock = image.superblock;
    superblock.facts = image.facts;
    Ok(Box::new(Store {
        facts: image.facts,
        params,
        window,
        maps,
        log,
        durable_log: image.activity_log.clone(),
        journal: Journal::new(&superblock, next_seq, journal_buf, image.facts.w),
        superblock,
        waiters: VecDeque::new(),
        checkpoint: Checkpoint::new(buf, 1 - image.superblock_copy),
        running: Running::new(geometry.window_slots),
        overlap: Overlap::new(),
        queue: VecDeque::new(),
        later_tidx: Idx(0),
        barrier: None,
        stamp: 1,
        flushed: 0,
        flushing: None,
        flush_wanted: false,
        flushes: BTreeSet::new(),
        watermark: Idx(0),
        drains: Vec::new(),
        abandoning: false,
        reads: Vec::new(),
        reads_free: Vec::new(),
        log_waits: BTreeMap::new(),
        log_full: VecDeque::new(),
        evicted: Vec::new(),
        provisioned,
        provision_waits: BTreeMap::new(),
        ahead: None,
        ahead_failed: false,
        free_extents: u64::from(ExtentNo::count_for(image.facts.capacity)),
        failed_ranges,
        zero,
        checksums,
        coming: MemberSet::EMPTY,
        failure: None,
        counters: Counters::default(),
    }))
}
