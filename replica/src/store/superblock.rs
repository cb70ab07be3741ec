//! The superblock: identity, geometry, offsets of all areas, which checkpoint and where the journal
//! starts, and the durable facts as of that checkpoint. Two equal copies, written one after the
//! other; the higher valid `seq` wins. Byte layout: `docs/format/disk.md`.

use super::bytes::{block_crc, put, seal_block, u16_at, u32_at, u64_at, uuid_at};
use super::geometry::{Geometry, Layout, capacity_is_valid};
use super::limits::META_BLOCK_BYTES;
use trilith_block::limits::{BLOCK_SHIFT, CHUNK_SHIFT, EXTENT_SHIFT, MEMBERS_MAX};
use trilith_block::{
    BufSlice, Buffers, Idx, MemberId, MemberSet, Membership, SyncEpoch, Term, Uuid,
};

/// First bytes of a superblock: "TRILITH\0".
pub(crate) const SUPERBLOCK_MAGIC: u64 = u64::from_le_bytes(*b"TRILITH\0");
/// Newest format that this build writes. It reads all up to this one.
pub const FORMAT_VERSION: u32 = 4;
/// Format of a volume whose configuration was never changed: builds that know no other read it.
pub const FORMAT_VERSION_FIRST: u32 = 1;
/// Format of a volume whose configuration was changed, without checksums.
pub(crate) const FORMAT_VERSION_CHANGED: u32 = 2;
/// Format of a volume with checksums, without a witness.
pub(crate) const FORMAT_VERSION_CHECKSUMS: u32 = 3;
/// Generation of the configuration that a volume is made with.
pub const GENERATION_FIRST: u64 = 1;

const CRC_AT: usize = 12;
const FLAG_TAINTED: u16 = 1;
const FLAG_VOLATILE_CACHE: u16 = 2;
const FLAG_CHECKSUMS: u16 = 4;
const FLAG_SEALED: u16 = 8;
const FLAG_FLUSH_FAILED: u16 = 16;
const CFG_OLD_AT: usize = 160;
const CFG_ENTRY_BYTES: usize = 24;
const CFG_NEW_AT: usize = 328;
const ROLE_VOTER: u8 = 1;
/// In `cfg_new`: votes only after the next change.
const ROLE_PLANNED: u8 = 2;
/// In `cfg_old`: votes and holds no data.
const ROLE_WITNESS: u8 = 3;

/// What a replica knows durably, apart from its maps and its activity log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Volume it belongs to.
    pub volume: Uuid,
    /// Its own identity.
    pub replica: Uuid,
    /// Its place in the configuration.
    pub member: MemberId,
    /// The configuration.
    pub config: Membership,
    /// Size of the volume in bytes.
    pub capacity: u64,
    /// Highest term promised.
    pub term: Term,
    /// Engine that it was promised to.
    pub voted: Uuid,
    /// Highest attach epoch of a granted vote.
    pub attach_epoch: u64,
    /// Sync epoch.
    pub se: SyncEpoch,
    /// In-sync set of that epoch.
    pub iss: MemberSet,
    /// Tracked set of that epoch.
    pub trk: MemberSet,
    /// Loss epoch.
    pub loss: u32,
    /// Watermark: every entry up to it is on stable media here.
    pub w: Idx,
    /// The window was lost without a clean stop, or a flush failed.
    pub tainted: bool,
    /// A flush of the data failed since the last open: the next open treats it as a power loss.
    pub flush_failed: bool,
    /// Stopped cleanly and nothing was accepted since.
    pub sealed: bool,
    /// The device has a volatile write cache.
    pub volatile_cache: bool,
}

impl Facts {
    /// True when the replica is in the in-sync set of its own epoch.
    pub fn is_complete(&self) -> bool {
        self.iss.contains(self.member)
    }

    /// It votes and holds no data (7.1).
    pub fn is_witness(&self) -> bool {
        self.config.witness.contains(self.member)
    }

    /// Everyone with a place in the configuration.
    pub fn members(&self) -> MemberSet {
        self.config.members()
    }

    /// The configuration has no place for this replica any more: it was replaced.
    pub fn is_retired(&self) -> bool {
        self.config.generation > 0 && !self.members().contains(self.member)
    }
}

/// A decoded superblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// Rises with each write.
    pub seq: u64,
    /// Boot id of the host at the open that wrote it.
    pub boot: Uuid,
    /// The facts.
    pub facts: Facts,
    /// Sizes.
    pub geometry: Geometry,
    /// Offsets.
    pub layout: Layout,
    /// Life of the journal; only blocks that carry it are valid. One higher with each open.
    pub journal_id: u64,
    /// First journal block that the checkpoint does not cover.
    pub journal_first_seq: u64,
    /// 0 = X, 1 = Y.
    pub checkpoint_slot: u8,
    /// Its number.
    pub checkpoint_seq: u64,
    /// Its length.
    pub checkpoint_blocks: u32,
}

/// Why a superblock copy is not one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SuperblockError {
    /// Not the magic number: never formatted, or something else lives here.
    Magic {
        /// What was found.
        found: u64,
    },
    /// Another format version.
    Version {
        /// What was found.
        found: u32,
    },
    /// Torn or rotten.
    Checksum {
        /// In the block.
        expected: u32,
        /// Of the block.
        found: u32,
    },
    /// The checksum is right but a field makes no sense.
    Field {
        /// Its offset.
        offset: u16,
    },
    /// The device could not read it.
    Read,
}

impl Superblock {
    /// Offset of the checkpoint area `slot`.
    pub fn checkpoint_offset(&self, slot: u8) -> u64 {
        if slot == 0 {
            self.layout.checkpoint_x_offset
        } else {
            self.layout.checkpoint_y_offset
        }
    }

    /// Writes it to a block of the arena.
    pub fn encode(&self, data: &mut dyn Buffers, block: BufSlice) {
        let f = &self.facts;
        let b = data.bytes_mut(block);
        b.fill(0);
        put(b, 0, &SUPERBLOCK_MAGIC.to_le_bytes());
        let first = f.config.generation == GENERATION_FIRST && f.config.is_simple();
        let checksums = self.layout.checksums_offset != 0;
        let version = if f.config.has_witness() {
            FORMAT_VERSION
        } else if checksums {
            FORMAT_VERSION_CHECKSUMS
        } else if first {
            FORMAT_VERSION_FIRST
        } else {
            FORMAT_VERSION_CHANGED
        };
        put(b, 8, &version.to_le_bytes());
        put(b, 16, &self.seq.to_le_bytes());
        put(b, 24, &f.volume.0);
        put(b, 40, &f.replica.0);
        b[56] = member_byte(f.member);
        b[57] = 1;
        let flags = (u16::from(f.tainted) * FLAG_TAINTED)
            | (u16::from(f.volatile_cache) * FLAG_VOLATILE_CACHE)
            | (u16::from(checksums) * FLAG_CHECKSUMS)
            | (u16::from(f.sealed) * FLAG_SEALED)
            | (u16::from(f.flush_failed) * FLAG_FLUSH_FAILED);
        put(b, 58, &flags.to_le_bytes());
        for (at, shift) in [(60, BLOCK_SHIFT), (61, CHUNK_SHIFT), (62, EXTENT_SHIFT)] {
            b[at] = u8::try_from(shift).unwrap_or(0);
        }
        put(b, 64, &f.capacity.to_le_bytes());
        put(b, 72, &f.term.0.to_le_bytes());
        put(b, 80, &f.voted.0);
        put(b, 96, &f.se.term.0.to_le_bytes());
        for (at, v) in [(104, f.se.n), (108, f.iss.0), (112, f.trk.0), (116, f.loss)] {
            put(b, at, &v.to_le_bytes());
        }
        put(b, 120, &f.w.0.to_le_bytes());
        put(b, 128, &self.boot.0);
        put(b, 144, &f.attach_epoch.to_le_bytes());
        put(b, 152, &f.config.generation.to_le_bytes());
        let next_role = if f.config.joint {
            ROLE_VOTER
        } else {
            ROLE_PLANNED
        };
        for (set, list, role) in [
            (f.config.voters, CFG_OLD_AT, ROLE_VOTER),
            (f.config.next, CFG_NEW_AT, next_role),
        ] {
            for (place, member) in set.iter().enumerate() {
                let at = list + place * CFG_ENTRY_BYTES;
                if member == f.member {
                    put(b, at, &f.replica.0);
                }
                b[at + 16] = member_byte(member);
                b[at + 17] = if f.config.witness.contains(member) {
                    ROLE_WITNESS
                } else {
                    role
                };
            }
        }
        put(b, 496, &self.journal_id.to_le_bytes());
        put(b, 504, &self.journal_first_seq.to_le_bytes());
        b[512] = self.checkpoint_slot;
        put(b, 516, &self.checkpoint_blocks.to_le_bytes());
        put(b, 520, &self.checkpoint_seq.to_le_bytes());
        let l = &self.layout;
        for (at, v) in [
            (528, l.journal_offset),
            (536, l.checkpoint_x_offset),
            (544, l.checkpoint_y_offset),
            (552, l.checkpoint_bytes),
            (560, l.meta_bytes),
            (568, l.data_offset),
            (576, l.checksums_offset),
        ] {
            put(b, at, &v.to_le_bytes());
        }
        let g = &self.geometry;
        for (at, v) in [
            (592, g.ring_blocks),
            (596, g.al_slots),
            (600, g.al_batch),
            (604, g.window_slots),
        ] {
            put(b, at, &v.to_le_bytes());
        }
        seal_block(data, block, CRC_AT);
    }

    /// Reads a copy.
    ///
    /// # Errors
    /// See [`SuperblockError`].
    pub fn decode(data: &dyn Buffers, b: &[u8]) -> Result<Superblock, SuperblockError> {
        let magic = u64_at(b, 0);
        if magic != SUPERBLOCK_MAGIC {
            return Err(SuperblockError::Magic { found: magic });
        }
        let (expected, found) = (u32_at(b, CRC_AT), block_crc(data, b, CRC_AT));
        if expected != found {
            return Err(SuperblockError::Checksum { expected, found });
        }
        let version = u32_at(b, 8);
        if !(FORMAT_VERSION_FIRST..=FORMAT_VERSION).contains(&version) {
            return Err(SuperblockError::Version { found: version });
        }
        let field = |offset: u16| SuperblockError::Field { offset };
        for (at, shift) in [(60u16, BLOCK_SHIFT), (61, CHUNK_SHIFT), (62, EXTENT_SHIFT)] {
            if u32::from(b[usize::from(at)]) != shift {
                return Err(field(at));
            }
        }
        let facts = decode_facts(b)?;
        let witness = facts.config.has_witness();
        if witness != (version == FORMAT_VERSION) || (witness && !facts.config.is_valid()) {
            return Err(field(160));
        }
        let geometry = Geometry {
            ring_blocks: u32_at(b, 592),
            al_slots: u32_at(b, 596),
            al_batch: u32_at(b, 600),
            window_slots: u32_at(b, 604),
        };
        if !geometry.is_valid() {
            return Err(field(592));
        }
        let layout = Layout {
            journal_offset: u64_at(b, 528),
            checkpoint_x_offset: u64_at(b, 536),
            checkpoint_y_offset: u64_at(b, 544),
            checkpoint_bytes: u64_at(b, 552),
            meta_bytes: u64_at(b, 560),
            data_offset: u64_at(b, 568),
            checksums_offset: u64_at(b, 576),
        };
        let flagged = u16_at(b, 58) & FLAG_CHECKSUMS != 0;
        if flagged != (layout.checksums_offset != 0) {
            return Err(field(576));
        }
        if !layout.is_sound(&geometry, facts.capacity) {
            return Err(field(528));
        }
        let checkpoint_blocks = u32_at(b, 516);
        if b[512] > 1
            || u64::from(checkpoint_blocks) * u64::from(META_BLOCK_BYTES) > layout.checkpoint_bytes
        {
            return Err(field(512));
        }
        Ok(Superblock {
            seq: u64_at(b, 16),
            boot: uuid_at(b, 128),
            facts,
            geometry,
            layout,
            journal_id: u64_at(b, 496),
            journal_first_seq: u64_at(b, 504),
            checkpoint_slot: b[512],
            checkpoint_seq: u64_at(b, 520),
            checkpoint_blocks,
        })
    }
}

fn decode_facts(b: &[u8]) -> Result<Facts, SuperblockError> {
    let field = |offset: u16| SuperblockError::Field { offset };
    let member = MemberId::new(usize::from(b[56])).ok_or(field(56))?;
    let voters = decode_set(b, CFG_OLD_AT, &[ROLE_VOTER, ROLE_WITNESS]).ok_or(field(160))?;
    let witness = decode_set(b, CFG_OLD_AT, &[ROLE_WITNESS]).ok_or(field(160))?;
    let next = decode_set(b, CFG_NEW_AT, &[ROLE_VOTER, ROLE_PLANNED]).ok_or(field(328))?;
    let joint = b[CFG_NEW_AT + 17] == ROLE_VOTER;
    let capacity = u64_at(b, 64);
    if !capacity_is_valid(capacity) {
        return Err(field(64));
    }
    let flags = u16_at(b, 58);
    Ok(Facts {
        volume: uuid_at(b, 24),
        replica: uuid_at(b, 40),
        member,
        config: Membership {
            generation: u64_at(b, 152),
            voters,
            next,
            joint,
            witness,
        },
        capacity,
        term: Term(u64_at(b, 72)),
        voted: uuid_at(b, 80),
        attach_epoch: u64_at(b, 144),
        se: SyncEpoch {
            term: Term(u64_at(b, 96)),
            n: u32_at(b, 104),
        },
        iss: MemberSet(u32_at(b, 108)),
        trk: MemberSet(u32_at(b, 112)),
        loss: u32_at(b, 116),
        w: Idx(u64_at(b, 120)),
        tainted: flags & FLAG_TAINTED != 0,
        flush_failed: flags & FLAG_FLUSH_FAILED != 0,
        sealed: flags & FLAG_SEALED != 0,
        volatile_cache: flags & FLAG_VOLATILE_CACHE != 0,
    })
}

/// The members of a list that have one of these roles.
fn decode_set(b: &[u8], list: usize, roles: &[u8]) -> Option<MemberSet> {
    let mut set = MemberSet::EMPTY;
    for place in 0..MEMBERS_MAX {
        let at = list + place * CFG_ENTRY_BYTES;
        if roles.contains(&b[at + 17]) {
            set = set.with(MemberId::new(usize::from(b[at + 16]))?);
        }
    }
    Some(set)
}

fn member_byte(member: MemberId) -> u8 {
    u8::try_from(member.index()).unwrap_or(0)
}
