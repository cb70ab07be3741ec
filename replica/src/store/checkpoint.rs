//! Checkpoints (M15): the activity log and the maps as journal records in the other of two areas,
//! written piece by piece while the store works on, then a flush, then both superblock copies.
//!
//! Crash argument. Until the first superblock copy is durable the other one names the old checkpoint
//! and the ring still holds every block after it; until the second one is, the ring and the old
//! checkpoint stay. A checkpoint is fuzzy: a mask in it is at least as
//! new as any record before its `start_seq`, records from there on are replayed over it, and a mask
//! that is in neither belongs to an extent of the activity log.

use super::limits::{META_BLOCK_BYTES, META_IO_BLOCKS_MAX};
use super::maps::Maps;
use super::record::{BlockBuilder, BlockHead, CHECKPOINT_MAGIC, Item, MapId};
use alloc::collections::BTreeSet;
use trilith_block::{BufSlice, Buffers, ChunkMask, ExtentNo, Idx};

/// What the next item of a dump is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cursor {
    Log(ExtentNo),
    Map(MapId, ExtentNo),
    End,
}

/// Step of a checkpoint; in every one but `Idle` one operation is in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    Idle,
    Dump,
    Flush,
    SuperFirst,
    SuperSecond,
}

/// The checkpoint writer of an open store.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) phase: Phase,
    pub(crate) buf: BufSlice,
    /// First journal block to replay over it.
    pub(crate) start_seq: u64,
    /// Blocks dumped.
    pub(crate) blocks: u32,
    /// Superblock copy (0 = A) that is written first: at open the one that was not used. It may
    /// name the area that is being overwritten, so the used one must outlive it.
    pub(crate) first_copy: u8,
    cursor: Cursor,
}

/// What a dump reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DumpSource<'a> {
    /// Activity log as the journal has it.
    pub(crate) log: &'a BTreeSet<ExtentNo>,
    pub(crate) maps: &'a Maps,
    pub(crate) number: u64,
}

impl Checkpoint {
    pub(crate) fn new(buf: BufSlice, first_copy: u8) -> Checkpoint {
        let phase = Phase::Idle;
        Checkpoint {
            phase,
            buf,
            start_seq: 0,
            blocks: 0,
            first_copy,
            cursor: Cursor::End,
        }
    }

    pub(crate) fn begin(&mut self, start_seq: u64) {
        self.start_seq = start_seq;
        self.blocks = 0;
        self.cursor = Cursor::Log(ExtentNo(0));
        self.phase = Phase::Dump;
    }

    /// Fills the buffer with the next blocks. `None` when everything has been dumped.
    pub(crate) fn dump(
        &mut self,
        source: DumpSource<'_>,
        data: &mut dyn Buffers,
    ) -> Option<BufSlice> {
        let mut filled = 0u32;
        while filled < META_IO_BLOCKS_MAX {
            let (mut at, mut item) = self.cursor.item(source);
            self.cursor = at;
            if item.is_none() {
                break;
            }
            let part = self.buf.slice(filled * META_BLOCK_BYTES, META_BLOCK_BYTES);
            let mut builder = BlockBuilder::new(data.bytes_mut(part));
            while let Some((record, mask)) = item {
                if !builder.push(data.bytes_mut(part), &record, mask) {
                    break;
                }
                self.cursor = at.after();
                (at, item) = self.cursor.item(source);
                self.cursor = at;
            }
            let head = BlockHead {
                magic: CHECKPOINT_MAGIC,
                seq: u64::from(self.blocks + filled),
                id: source.number,
                continues: item.is_some(),
                place: 0,
                w: Idx(0),
            };
            builder.finish(data, part, &head);
            filled += 1;
        }
        self.blocks += filled;
        (filled > 0).then(|| self.buf.slice(0, filled * META_BLOCK_BYTES))
    }
}

impl Cursor {
    /// The first item at or after the cursor, with the cursor at it.
    fn item(self, source: DumpSource<'_>) -> (Cursor, Option<(Item, ChunkMask)>) {
        let mut cursor = self;
        loop {
            match cursor {
                Cursor::Log(from) => match source.log.range(from..).next() {
                    Some(e) => return (Cursor::Log(*e), Some((Item::AlAdd(*e), 0))),
                    None => cursor = Cursor::Map(MapId::NEED, ExtentNo(0)),
                },
                Cursor::Map(map, from) => match source.maps.get(map).iter_from(from).next() {
                    Some((e, mask)) => {
                        return (Cursor::Map(map, e), Some((Item::Map(map, e), mask)));
                    }
                    None => {
                        cursor = MapId::all()
                            .find(|m| *m > map)
                            .map_or(Cursor::End, |m| Cursor::Map(m, ExtentNo(0)));
                    }
                },
                Cursor::End => return (Cursor::End, None),
            }
        }
    }

    fn after(self) -> Cursor {
        match self {
            Cursor::Log(e) => Cursor::Log(ExtentNo(e.0.saturating_add(1))),
            Cursor::Map(map, e) => Cursor::Map(map, ExtentNo(e.0.saturating_add(1))),
            Cursor::End => Cursor::End,
        }
    }
}
