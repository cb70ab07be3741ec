//! What the metadata says: the result of a superblock, its checkpoint and the journal after it.

use super::limits::MAPS;
use super::record::{Item, MapId};
use super::state::full_mask;
use super::superblock::{Facts, Superblock};
use super::{MapName, SuperblockError};
use alloc::collections::BTreeSet;
use trilith_block::mutant::{self, Mutant};
use trilith_block::{ChunkMap, ExtentNo};

/// State of a replica as its metadata tells it, after replay. What `show`, `check` and export use.
#[derive(Clone, Debug)]
pub struct Image {
    /// The superblock that was used.
    pub superblock: Superblock,
    /// Facts after the replay.
    pub facts: Facts,
    /// Extents of the activity log.
    pub activity_log: BTreeSet<ExtentNo>,
    /// Findings on the way.
    pub report: Report,
    /// The copy that was used: 0 = A.
    pub superblock_copy: u8,
    pub(crate) maps: [ChunkMap; MAPS],
}

/// What reading the metadata found. A sound volume after a clean stop has all zero but the counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// What is wrong with superblock copy A and B.
    pub superblock_errors: [Option<SuperblockError>; 2],
    /// The copies are both valid but differ (a crash between their writes).
    pub superblocks_differ: bool,
    /// Blocks of the checkpoint read.
    pub checkpoint_blocks: u32,
    /// First block of the checkpoint that is not valid: maps and activity log are lost.
    pub checkpoint_bad: Option<u32>,
    /// Journal blocks replayed.
    pub journal_blocks: u64,
    /// Journal blocks of a torn last write (never acknowledged) behind the end.
    pub journal_torn: u32,
}

impl Image {
    pub(crate) fn new(superblock: Superblock, superblock_copy: u8) -> Image {
        Image {
            superblock,
            superblock_copy,
            facts: superblock.facts,
            activity_log: BTreeSet::new(),
            report: Report::default(),
            maps: core::array::from_fn(|_| ChunkMap::new()),
        }
    }

    /// A map.
    pub fn map(&self, name: MapName) -> &ChunkMap {
        &self.maps[MapId::of(name).index()]
    }

    /// Extents that may be in a map or in the activity log here: a witness has neither (W1).
    pub(crate) fn extents(&self) -> u32 {
        if self.facts.is_witness() {
            return 0;
        }
        ExtentNo::count_for(self.facts.capacity)
    }

    /// An extent number read from the disk, when the volume has it.
    pub(crate) fn extent(&self, number: u32) -> Option<ExtentNo> {
        (number < self.extents()).then_some(ExtentNo(number))
    }

    /// Applies a record (all but map masks, which the decoder sets).
    pub(crate) fn apply(&mut self, item: &Item) {
        match *item {
            Item::AlAdd(extent) => {
                self.activity_log.insert(extent);
            }
            Item::AlDel(extent) => {
                self.activity_log.remove(&extent);
            }
            Item::Se(record) => {
                if record.need_dropped {
                    self.maps[MapId::NEED.index()].clear();
                }
                self.facts.apply(item);
            }
            Item::Term { .. }
            | Item::W(_)
            | Item::Map(..)
            | Item::Taint { .. }
            | Item::Loss(_)
            | Item::Seal(_)
            | Item::Config(_) => self.facts.apply(item),
        }
    }

    /// Every chunk in every map: what is left when the checkpoint is lost (6.10).
    pub(crate) fn fill_all(&mut self) {
        self.activity_log = (0..self.extents()).map(ExtentNo).collect();
        self.taint();
    }

    /// M2, 6.2: what the activity log covers may differ here, may be lacking elsewhere and may hold
    /// anything. The log starts empty.
    pub(crate) fn taint(&mut self) {
        let me = self.facts.member;
        let log = core::mem::take(&mut self.activity_log);
        for extent in log {
            if mutant::on(Mutant::TaintForgetsLog) {
                break;
            }
            let mask = full_mask(self.facts.capacity, extent);
            self.maps[MapId::NEED.index()].set_mask(extent, mask);
            self.maps[MapId::ALLOCATED.index()].set_mask(extent, mask);
            for peer in self.facts.config.data().without(me).iter() {
                self.maps[MapId::dirty(peer).index()].set_mask(extent, mask);
            }
        }
        self.facts.tainted = true;
        self.facts.flush_failed = false;
        self.facts.sealed = false;
    }
}

impl Facts {
    /// Applies a record that speaks of facts.
    pub(crate) fn apply(&mut self, item: &Item) {
        match *item {
            Item::Term {
                term,
                engine,
                attach_epoch,
            } => {
                self.term = term;
                self.voted = engine;
                self.attach_epoch = self.attach_epoch.max(attach_epoch);
            }
            Item::Se(record) => {
                self.se = record.se;
                self.iss = record.iss;
                self.trk = record.trk;
                self.loss = self.loss.max(record.loss);
                // C15: positions of an older term mean nothing in this one.
                self.w = record.w;
                if record.untaint {
                    self.tainted = false;
                }
                self.sealed = false;
            }
            Item::W(w) => self.w = self.w.max(w),
            Item::Taint { flush_failed } => {
                self.tainted = true;
                self.flush_failed |= flush_failed;
            }
            Item::Loss(loss) => self.loss = self.loss.max(loss),
            Item::Seal(sealed) => self.sealed = sealed,
            // Records from before a checkpoint are replayed over what came after them.
            Item::Config(config) if self.config.generation < config.generation => {
                self.config = config;
            }
            Item::Config(_) => (),
            Item::AlAdd(_) => self.sealed = false,
            Item::AlDel(_) | Item::Map(..) => (),
        }
    }
}
