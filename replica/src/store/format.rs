//! Making a new volume.
//!
//! Crash argument. Both superblock places are zeroed first and written last: a format that was cut
//! leaves no valid superblock, neither the new nor an old one.

use super::disk::{DiskError, DiskOp, DiskTag, FileRole, StoreOut};
use super::geometry::{Geometry, Layout, capacity_is_valid};
use super::limits::{
    FORMAT_ZERO_BYTES_MAX, META_BLOCK_BYTES, META_IO_BYTES_MAX, SUPERBLOCK_A_OFFSET,
    SUPERBLOCK_B_OFFSET,
};
use super::superblock::{Facts, GENERATION_FIRST, Superblock};
use trilith_block::{
    BufSlice, Buffers, Idx, MemberId, MemberSet, Membership, SyncEpoch, Term, Uuid,
};

const TAG: u64 = 9 << 56;

/// What a new volume is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FormatParams {
    /// The volume.
    pub volume: Uuid,
    /// The new replica; never used before (A5).
    pub replica: Uuid,
    /// Its place.
    pub member: MemberId,
    /// All places that vote; of a newcomer: that will vote when it has taken its place.
    pub voters: MemberSet,
    /// The voter that holds no data (7.1); empty in a volume without one.
    pub witness: MemberSet,
    /// In-sync set at the start: all that hold data when all replicas of a new volume are formatted; none
    /// for a blank replica of a volume that exists (T18).
    pub iss: MemberSet,
    /// A newcomer that is to replace a voter of a volume that exists: it knows no configuration
    /// until an engine tells it one.
    pub newcomer: bool,
    /// Bytes; a multiple of 4096.
    pub capacity: u64,
    /// Sizes.
    pub geometry: Geometry,
    /// Metadata and data share one raw device.
    pub same_device: bool,
    /// Zero the data area (needed on a device that is not known to read as zeroes).
    pub zero_data: bool,
    /// The device has a volatile write cache.
    pub volatile_cache: bool,
    /// Blocks have checksums on the disk (2.5); a witness has no blocks.
    pub checksums: bool,
}

impl FormatParams {
    /// The configuration that it begins with.
    fn config(&self) -> Membership {
        Membership {
            generation: if self.newcomer { 0 } else { GENERATION_FIRST },
            witness: self.witness,
            ..self.voters.into()
        }
    }

    /// The new replica holds no data (7.1).
    fn is_witness(&self) -> bool {
        self.witness.contains(self.member)
    }

    /// Where the areas will lie.
    pub fn layout(&self) -> Layout {
        if self.is_witness() {
            // No maps, no checksums, nothing behind the metadata.
            return Layout::new(&self.geometry, 0, 0, false);
        }
        let peers = self.voters.count();
        let plain = Layout::new(&self.geometry, self.capacity, peers, self.same_device);
        if self.checksums {
            plain.with_checksums(self.capacity)
        } else {
            plain
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    ZeroA,
    ZeroB,
    Allocate,
    /// Metadata zeroed up to here.
    Meta(u64),
    /// Pages of checksums zeroed up to here.
    Checksums(u64),
    /// Data zeroed up to here.
    Data(u64),
    FlushData,
    FlushMeta,
    SuperA,
    SuperB,
    Over,
}

/// Makes a new volume. The driver has made sure that nothing of value is there.
#[derive(Debug)]
pub struct Format {
    superblock: Superblock,
    zero_data: bool,
    /// There is a data area to be made.
    data: bool,
    phase: Phase,
    buf: BufSlice,
    number: u64,
}

impl Format {
    /// Starts. `None` when the parameters are invalid or no buffer is free.
    pub fn new(
        params: &FormatParams,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> Option<Format> {
        let ok = params.geometry.is_valid()
            && capacity_is_valid(params.capacity)
            && params.voters.contains(params.member)
            && params.config().is_valid()
            && params.iss.minus(params.config().data()).is_empty()
            && (!params.newcomer || params.iss.is_empty());
        if !ok {
            return None;
        }
        let buf = data.alloc(META_IO_BYTES_MAX)?;
        data.bytes_mut(buf).fill(0);
        let mut format = Format {
            superblock: first_superblock(params),
            zero_data: params.zero_data,
            data: !params.is_witness(),
            phase: Phase::ZeroA,
            buf,
            number: 0,
        };
        format.write(SUPERBLOCK_A_OFFSET, META_BLOCK_BYTES, true, out);
        Some(format)
    }

    /// A completion in. `Some` when it is over; the buffer has then been given back.
    pub fn disk_done(
        &mut self,
        tag: DiskTag,
        result: Result<(), DiskError>,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> Option<Result<(), DiskError>> {
        if tag.0 != TAG | self.number || self.phase == Phase::Over {
            return None;
        }
        if result.is_err() || self.phase == Phase::SuperB {
            self.phase = Phase::Over;
            data.release(self.buf.buf);
            return Some(result);
        }
        self.next(data, out);
        None
    }

    fn op(&mut self, op: DiskOp, out: &mut StoreOut) {
        self.number += 1;
        out.op(DiskTag(TAG | self.number), op);
    }

    fn write(&mut self, offset: u64, len: u32, dsync: bool, out: &mut StoreOut) {
        let buf = self.buf.slice(0, len);
        self.op(
            DiskOp::Write {
                role: FileRole::Meta,
                offset,
                buf,
                dsync,
            },
            out,
        );
    }

    fn next(&mut self, data: &mut dyn Buffers, out: &mut StoreOut) {
        let layout = self.superblock.layout;
        match self.phase {
            Phase::ZeroA => {
                self.phase = Phase::ZeroB;
                self.write(SUPERBLOCK_B_OFFSET, META_BLOCK_BYTES, true, out);
            }
            Phase::ZeroB => {
                self.phase = Phase::Allocate;
                let role = FileRole::Meta;
                self.op(
                    DiskOp::Allocate {
                        role,
                        offset: 0,
                        len: layout.meta_bytes,
                    },
                    out,
                );
            }
            Phase::Allocate => self.zero_meta(0, out),
            Phase::Meta(done) => self.zero_meta(done, out),
            Phase::Checksums(done) => self.zero_checksums(done, out),
            Phase::Data(done) => self.zero_area(done, out),
            Phase::FlushData => self.flush_meta(out),
            Phase::FlushMeta => {
                let block = self.buf.slice(0, META_BLOCK_BYTES);
                self.superblock.encode(data, block);
                self.phase = Phase::SuperA;
                self.write(SUPERBLOCK_A_OFFSET, META_BLOCK_BYTES, true, out);
            }
            Phase::SuperA => {
                self.phase = Phase::SuperB;
                self.write(SUPERBLOCK_B_OFFSET, META_BLOCK_BYTES, true, out);
            }
            Phase::SuperB | Phase::Over => (),
        }
    }

    /// M16: zeroes are written, not punched: an unwritten block would cost a file-system commit at
    /// each journal write.
    fn zero_meta(&mut self, done: u64, out: &mut StoreOut) {
        let left = self.superblock.layout.meta_bytes - done;
        let len = u32::try_from(left.min(u64::from(META_IO_BYTES_MAX))).unwrap_or(0);
        if len == 0 {
            self.zero_checksums(0, out);
            return;
        }
        self.phase = Phase::Meta(done + u64::from(len));
        self.write(done, len, false, out);
    }

    /// A new file has none yet and reads zero; a device may hold anything.
    fn zero_checksums(&mut self, done: u64, out: &mut StoreOut) {
        let layout = self.superblock.layout;
        let left = if self.zero_data && layout.checksums_offset != 0 {
            layout.end(self.superblock.facts.capacity) - layout.checksums_offset - done
        } else {
            0
        };
        let len = left.min(FORMAT_ZERO_BYTES_MAX);
        if len == 0 {
            self.zero_area(0, out);
            return;
        }
        self.phase = Phase::Checksums(done + len);
        let (role, offset) = (FileRole::Meta, layout.checksums_offset + done);
        self.op(DiskOp::ZeroRange { role, offset, len }, out);
    }

    fn flush_meta(&mut self, out: &mut StoreOut) {
        self.phase = Phase::FlushMeta;
        let role = FileRole::Meta;
        self.op(DiskOp::Flush { role }, out);
    }

    fn zero_area(&mut self, done: u64, out: &mut StoreOut) {
        if !self.data {
            return self.flush_meta(out);
        }
        let left = if self.zero_data {
            self.superblock.facts.capacity - done
        } else {
            0
        };
        let len = left.min(FORMAT_ZERO_BYTES_MAX);
        let role = FileRole::Data;
        if len == 0 {
            self.phase = Phase::FlushData;
            self.op(DiskOp::Flush { role }, out);
            return;
        }
        self.phase = Phase::Data(done + len);
        let offset = self.superblock.layout.data_offset + done;
        self.op(DiskOp::ZeroRange { role, offset, len }, out);
    }
}

/// The superblock of a new volume: no checkpoint blocks, nothing in the journal, stopped cleanly.
fn first_superblock(params: &FormatParams) -> Superblock {
    Superblock {
        seq: 1,
        boot: Uuid::NONE,
        facts: Facts {
            volume: params.volume,
            replica: params.replica,
            member: params.member,
            config: params.config(),
            capacity: params.capacity,
            term: Term(0),
            voted: Uuid::NONE,
            attach_epoch: 0,
            se: SyncEpoch::default(),
            iss: params.iss,
            trk: params.iss,
            loss: 0,
            w: Idx(0),
            tainted: false,
            flush_failed: false,
            sealed: true,
            volatile_cache: params.volatile_cache,
        },
        geometry: params.geometry,
        layout: params.layout(),
        // Lives of different replicas differ, and there is room for 2^63 opens above.
        journal_id: super::bytes::u64_at(&params.replica.0, 0) >> 1,
        journal_first_seq: 0,
        checkpoint_slot: 0,
        checkpoint_seq: 0,
        checkpoint_blocks: 0,
    }
}
