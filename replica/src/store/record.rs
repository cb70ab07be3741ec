//! Journal and checkpoint blocks: a header and type-length-value records (2.2, M15). A checkpoint is
//! a compacted journal, so that there is one encoder and one replay. Masks are absolute values:
//! replay over a fuzzy checkpoint is idempotent. Byte layout: `docs/format/disk.md`.

use super::MapName;
use super::bytes::{block_crc, put, seal_block, u16_at, u32_at, u64_at, uuid_at};
use super::image::Image;
use super::limits::{MAPS, META_BLOCK_BYTES};
use super::state::full_mask;
use trilith_block::{
    BufSlice, Buffers, ChunkMask, ExtentNo, Idx, MemberId, MemberSet, Membership, SyncEpoch, Term,
    Uuid,
};

/// First bytes of a journal block: "TRJB".
pub(crate) const JOURNAL_MAGIC: u32 = u32::from_le_bytes(*b"TRJB");
/// First bytes of a checkpoint block: "TRCB".
pub(crate) const CHECKPOINT_MAGIC: u32 = u32::from_le_bytes(*b"TRCB");

const CRC_AT: usize = 4;
const RECORDS_AT: usize = 40;
const RECORD_HEAD: usize = 8;
const BLOCK: usize = META_BLOCK_BYTES as usize;

const TYPE_TERM: u8 = 1;
const TYPE_SE: u8 = 2;
const TYPE_W: u8 = 3;
const TYPE_AL: u8 = 4;
const TYPE_DIRTY: u8 = 5;
const TYPE_NEED: u8 = 6;
const TYPE_ALLOCATED: u8 = 7;
const TYPE_TAINT: u8 = 8;
const TYPE_LOSS: u8 = 9;
const TYPE_SEAL: u8 = 10;
const TYPE_CONFIG: u8 = 11;

const SE_UNTAINT: u8 = 1;
const SE_NEED_DROPPED: u8 = 2;

/// Place of a map among the [`MAPS`]: 0 need, 1 limbo, 2 allocated, 3 + m dirty of member m.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct MapId(pub(crate) u8);

impl MapId {
    pub(crate) const NEED: MapId = MapId(0);
    pub(crate) const LIMBO: MapId = MapId(1);
    pub(crate) const ALLOCATED: MapId = MapId(2);

    pub(crate) fn dirty(member: MemberId) -> MapId {
        MapId(3 + u8::try_from(member.index()).unwrap_or(0))
    }

    pub(crate) fn of(name: MapName) -> MapId {
        match name {
            MapName::Need => MapId::NEED,
            MapName::Limbo => MapId::LIMBO,
            MapName::Allocated => MapId::ALLOCATED,
            MapName::Dirty(member) => MapId::dirty(member),
        }
    }

    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }

    pub(crate) fn all() -> impl Iterator<Item = MapId> {
        (0..u8::try_from(MAPS).unwrap_or(0)).map(MapId)
    }

    fn type_and_aux(self) -> (u8, u8) {
        match self.0 {
            0 | 1 => (TYPE_NEED, self.0),
            2 => (TYPE_ALLOCATED, 0),
            m => (TYPE_DIRTY, m - 3),
        }
    }
}

/// A change of the sync epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SeRecord {
    pub(crate) se: SyncEpoch,
    pub(crate) iss: MemberSet,
    pub(crate) trk: MemberSet,
    pub(crate) loss: u32,
    pub(crate) w: Idx,
    /// The replica is no longer tainted.
    pub(crate) untaint: bool,
    /// `need` is empty from here on (limbo stays).
    pub(crate) need_dropped: bool,
}

/// One fact on its way to the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Item {
    Term {
        term: Term,
        engine: Uuid,
        attach_epoch: u64,
    },
    Se(SeRecord),
    W(Idx),
    AlAdd(ExtentNo),
    AlDel(ExtentNo),
    /// The chunks of an extent in a map; the mask is taken when the block is built.
    Map(MapId, ExtentNo),
    Taint {
        flush_failed: bool,
    },
    Loss(u32),
    Seal(bool),
    Config(Membership),
}

/// The header of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlockHead {
    pub(crate) magic: u32,
    pub(crate) seq: u64,
    /// Journal: life of the journal. Checkpoint: its number.
    pub(crate) id: u64,
    /// More blocks of the same write (journal) or checkpoint follow.
    pub(crate) continues: bool,
    /// Place of the block within its write; the blocks before it in the write may be missing after
    /// a power loss, none before the write.
    pub(crate) place: u16,
    pub(crate) w: Idx,
}

/// Fills one block with records.
#[derive(Debug)]
pub(crate) struct BlockBuilder {
    used: usize,
    records: u16,
    /// Offset of the last record when it is a list that may grow.
    list: Option<usize>,
}

impl BlockBuilder {
    /// Starts in a block of the arena.
    pub(crate) fn new(bytes: &mut [u8]) -> BlockBuilder {
        bytes.fill(0);
        BlockBuilder {
            used: RECORDS_AT,
            records: 0,
            list: None,
        }
    }

    /// Adds an item; false when the block is full. `mask` is that of a map item.
    pub(crate) fn push(&mut self, bytes: &mut [u8], item: &Item, mask: ChunkMask) -> bool {
        match *item {
            Item::Term {
                term,
                engine,
                attach_epoch,
            } => self.fixed(bytes, TYPE_TERM, 0, 32, |b| {
                put(b, 0, &term.0.to_le_bytes());
                put(b, 8, &engine.0);
                put(b, 24, &attach_epoch.to_le_bytes());
            }),
            Item::Se(r) => {
                let aux = (u8::from(r.untaint) * SE_UNTAINT)
                    | (u8::from(r.need_dropped) * SE_NEED_DROPPED);
                self.fixed(bytes, TYPE_SE, aux, 32, |b| {
                    put(b, 0, &r.se.term.0.to_le_bytes());
                    for (at, v) in [(8, r.se.n), (12, r.iss.0), (16, r.trk.0), (20, r.loss)] {
                        put(b, at, &v.to_le_bytes());
                    }
                    put(b, 24, &r.w.0.to_le_bytes());
                })
            }
            Item::W(w) => self.fixed(bytes, TYPE_W, 0, 8, |b| put(b, 0, &w.0.to_le_bytes())),
            Item::AlAdd(e) => self.element(bytes, (TYPE_AL, 0), &e.0.to_le_bytes()),
            Item::AlDel(e) => self.element(bytes, (TYPE_AL, 1), &e.0.to_le_bytes()),
            Item::Map(map, e) => {
                let mut raw = [0u8; 12];
                put(&mut raw, 0, &e.0.to_le_bytes());
                put(&mut raw, 4, &mask.to_le_bytes());
                self.element(bytes, map.type_and_aux(), &raw)
            }
            Item::Taint { flush_failed } => {
                self.fixed(bytes, TYPE_TAINT, u8::from(flush_failed), 0, |_| ())
            }
            Item::Loss(loss) => {
                self.fixed(bytes, TYPE_LOSS, 0, 8, |b| put(b, 0, &loss.to_le_bytes()))
            }
            Item::Seal(sealed) => self.fixed(bytes, TYPE_SEAL, u8::from(sealed), 0, |_| ()),
            Item::Config(config) => {
                let witness = u8::try_from(config.witness.0).unwrap_or(0);
                let aux = u8::from(config.joint) | witness << 1;
                self.fixed(bytes, TYPE_CONFIG, aux, 16, |b| {
                    put(b, 0, &config.generation.to_le_bytes());
                    put(b, 8, &config.voters.0.to_le_bytes());
                    put(b, 12, &config.next.0.to_le_bytes());
                })
            }
        }
    }

    fn head(&mut self, bytes: &mut [u8], kind: u8, aux: u8, len: usize) -> Option<usize> {
        let at = self.used;
        if at + RECORD_HEAD + len > BLOCK {
            return None;
        }
        bytes[at] = kind;
        bytes[at + 1] = aux;
        self.records += 1;
        self.set_len(bytes, at, RECORD_HEAD + len, 0);
        Some(at)
    }

    fn set_len(&mut self, bytes: &mut [u8], at: usize, len: usize, count: u32) {
        let padded = len.next_multiple_of(8);
        put(
            bytes,
            at + 2,
            &u16::try_from(padded).unwrap_or(0).to_le_bytes(),
        );
        put(bytes, at + 4, &count.to_le_bytes());
        self.used = at + padded;
    }

    fn fixed(
        &mut self,
        bytes: &mut [u8],
        kind: u8,
        aux: u8,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> bool {
        self.list = None;
        let Some(at) = self.head(bytes, kind, aux, len) else {
            return false;
        };
        fill(&mut bytes[at + RECORD_HEAD..at + RECORD_HEAD + len]);
        true
    }

    fn element(&mut self, bytes: &mut [u8], (kind, aux): (u8, u8), raw: &[u8]) -> bool {
        let open = self
            .list
            .filter(|at| bytes[*at] == kind && bytes[*at + 1] == aux);
        let (at, count) = match open {
            Some(at) => (at, u32_at(bytes, at + 4)),
            None => (self.used, 0),
        };
        let place = at + RECORD_HEAD + usize::try_from(count).unwrap_or(BLOCK) * raw.len();
        if (place + raw.len()).next_multiple_of(8) > BLOCK {
            return false;
        }
        if open.is_none() {
            bytes[at] = kind;
            bytes[at + 1] = aux;
            self.records += 1;
            self.list = Some(at);
        }
        put(bytes, place, raw);
        self.set_len(bytes, at, place + raw.len() - at, count + 1);
        true
    }

    /// Writes header and checksum.
    pub(crate) fn finish(self, data: &mut dyn Buffers, block: BufSlice, head: &BlockHead) {
        let b = data.bytes_mut(block);
        put(b, 0, &head.magic.to_le_bytes());
        put(b, CRC_AT, &[0; 4]);
        put(b, 8, &head.seq.to_le_bytes());
        put(b, 16, &head.id.to_le_bytes());
        put(b, 24, &u16::try_from(self.used).unwrap_or(0).to_le_bytes());
        put(b, 26, &self.records.to_le_bytes());
        put(b, 28, &u16::from(head.continues).to_le_bytes());
        put(b, 30, &head.place.to_le_bytes());
        put(b, 32, &head.w.0.to_le_bytes());
        seal_block(data, block, CRC_AT);
    }
}

/// Reads the header of a block. `None` when magic or checksum are wrong.
pub(crate) fn decode_head(data: &dyn Buffers, b: &[u8], magic: u32) -> Option<BlockHead> {
    if b.len() != BLOCK || u32_at(b, 0) != magic || u32_at(b, CRC_AT) != block_crc(data, b, CRC_AT)
    {
        return None;
    }
    Some(BlockHead {
        magic,
        seq: u64_at(b, 8),
        id: u64_at(b, 16),
        continues: u16_at(b, 28) & 1 != 0,
        place: u16_at(b, 30),
        w: Idx(u64_at(b, 32)),
    })
}

/// Applies the records of a block with a right checksum. `None` when they make no sense (a newer
/// format, or a bug); the image is then not to be used.
pub(crate) fn replay(b: &[u8], image: &mut Image) -> Option<()> {
    let used = usize::from(u16_at(b, 24));
    if used > b.len() {
        return None;
    }
    let mut at = RECORDS_AT;
    for _ in 0..u16_at(b, 26) {
        if at + RECORD_HEAD > used {
            return None;
        }
        let len = usize::from(u16_at(b, at + 2));
        if len < RECORD_HEAD || !len.is_multiple_of(8) || at + len > used {
            return None;
        }
        replay_record(&b[at..at + len], image)?;
        at += len;
    }
    image.facts.w = image.facts.w.max(Idx(u64_at(b, 32)));
    (at == used).then_some(())
}

fn replay_record(b: &[u8], image: &mut Image) -> Option<()> {
    let (kind, aux, count) = (b[0], b[1], usize::try_from(u32_at(b, 4)).ok()?);
    let body = &b[RECORD_HEAD..];
    let enough = |len: usize| (body.len() >= len).then_some(());
    match kind {
        TYPE_TERM => {
            enough(32)?;
            image.apply(&Item::Term {
                term: Term(u64_at(body, 0)),
                engine: uuid_at(body, 8),
                attach_epoch: u64_at(body, 24),
            });
        }
        TYPE_SE => {
            enough(32)?;
            image.apply(&Item::Se(SeRecord {
                se: SyncEpoch {
                    term: Term(u64_at(body, 0)),
                    n: u32_at(body, 8),
                },
                iss: MemberSet(u32_at(body, 12)),
                trk: MemberSet(u32_at(body, 16)),
                loss: u32_at(body, 20),
                w: Idx(u64_at(body, 24)),
                untaint: aux & SE_UNTAINT != 0,
                need_dropped: aux & SE_NEED_DROPPED != 0,
            }));
        }
        TYPE_W => {
            enough(8)?;
            image.apply(&Item::W(Idx(u64_at(body, 0))));
        }
        TYPE_AL => {
            enough(count.checked_mul(4)?)?;
            for raw in body.chunks_exact(4).take(count) {
                let extent = image.extent(u32_at(raw, 0))?;
                image.apply(&if aux == 0 {
                    Item::AlAdd(extent)
                } else {
                    Item::AlDel(extent)
                });
            }
        }
        TYPE_DIRTY | TYPE_NEED | TYPE_ALLOCATED => {
            let base = match kind {
                TYPE_DIRTY => 3,
                TYPE_NEED => 0,
                _ => 2,
            };
            let map = base + usize::from(aux);
            enough(count.checked_mul(12)?)?;
            // A map of someone without a place is from before a change; the open drops it.
            if map >= 3 && MemberId::new(map - 3).is_none() {
                return None;
            }
            for raw in body.chunks_exact(12).take(count) {
                let extent = image.extent(u32_at(raw, 0))?;
                let mask = u64_at(raw, 4) & full_mask(image.facts.capacity, extent);
                image.maps.get_mut(map)?.set_mask(extent, mask);
            }
        }
        TYPE_TAINT => image.apply(&Item::Taint {
            flush_failed: aux & 1 != 0,
        }),
        TYPE_LOSS => {
            enough(8)?;
            image.apply(&Item::Loss(u32_at(body, 0)));
        }
        TYPE_CONFIG => {
            enough(16)?;
            let config = Membership {
                generation: u64_at(body, 0),
                voters: MemberSet(u32_at(body, 8)),
                next: MemberSet(u32_at(body, 12)),
                joint: aux & 1 != 0,
                witness: MemberSet(u32::from(aux >> 1)),
            };
            if !config.is_valid() {
                return None;
            }
            image.apply(&Item::Config(config));
        }
        TYPE_SEAL => image.apply(&Item::Seal(aux & 1 != 0)),
        _ => return None,
    }
    Some(())
}
