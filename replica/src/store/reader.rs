//! Reads the metadata of a volume into an [`Image`]: both superblock copies, the checkpoint, the
//! whole journal ring. Writes nothing.

use super::disk::{DiskError, DiskOp, DiskTag, FileRole, StoreOut};
use super::image::{Image, Report};
use super::limits::{
    META_BLOCK_BYTES, META_IO_BLOCKS_MAX, META_IO_BYTES_MAX, SUPERBLOCK_A_OFFSET,
    SUPERBLOCK_B_OFFSET,
};
use super::opening::OpenError;
use super::record::{CHECKPOINT_MAGIC, JOURNAL_MAGIC, decode_head, replay};
use super::superblock::{Superblock, SuperblockError};
use alloc::boxed::Box;
use trilith_block::{BufSlice, Buffers};

const TAG: u64 = 8 << 56;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    SuperA,
    SuperB,
    /// Blocks of the checkpoint read so far.
    Checkpoint(u32),
    /// Blocks of the ring read so far.
    Ring(u64),
    End,
}

/// Reads without writing: for `check`, `show` and export.
#[derive(Debug)]
pub struct Inspect {
    pub(crate) buf: BufSlice,
    phase: Phase,
    copies: [Result<Superblock, SuperblockError>; 2],
    image: Option<Box<Image>>,
    /// First journal block that is not there; the end of the journal once found.
    next_seq: u64,
    ended: bool,
    /// Number of the operation in flight.
    number: u64,
    blocks: u32,
}

impl Inspect {
    /// Starts reading. `None` when no buffer is free.
    pub fn new(data: &mut dyn Buffers, out: &mut StoreOut) -> Option<Inspect> {
        let mut reader = Inspect {
            buf: data.alloc(META_IO_BYTES_MAX)?,
            phase: Phase::SuperA,
            copies: [Err(SuperblockError::Read); 2],
            image: None,
            next_seq: 0,
            ended: false,
            number: 0,
            blocks: 0,
        };
        reader.read(SUPERBLOCK_A_OFFSET, 1, out);
        Some(reader)
    }

    /// A completion in. `Some` when it is over; the buffer has then been given back.
    pub fn disk_done(
        &mut self,
        tag: DiskTag,
        result: Result<(), DiskError>,
        data: &mut dyn Buffers,
        out: &mut StoreOut,
    ) -> Option<Result<Box<Image>, OpenError>> {
        let result = self.step(tag, result, data, out)?;
        data.release(self.buf.buf);
        Some(result.map(|(image, _)| image))
    }

    /// As `disk_done`, but keeps the buffer and tells where the journal ends.
    pub(crate) fn step(
        &mut self,
        tag: DiskTag,
        result: Result<(), DiskError>,
        data: &dyn Buffers,
        out: &mut StoreOut,
    ) -> Option<Result<(Box<Image>, u64), OpenError>> {
        if tag.0 != TAG | self.number || self.phase == Phase::End {
            return None;
        }
        if let Err(error) = self.take(result, data, out) {
            self.phase = Phase::End;
            return Some(Err(error));
        }
        if self.phase != Phase::End {
            return None;
        }
        self.image.take().map(|image| Ok((image, self.next_seq)))
    }

    fn read(&mut self, offset: u64, blocks: u32, out: &mut StoreOut) {
        self.number += 1;
        self.blocks = blocks;
        let buf = self.buf.slice(0, blocks * META_BLOCK_BYTES);
        out.op(
            DiskTag(TAG | self.number),
            DiskOp::Read {
                role: FileRole::Meta,
                offset,
                buf,
            },
        );
    }

    fn take(
        &mut self,
        result: Result<(), DiskError>,
        data: &dyn Buffers,
        out: &mut StoreOut,
    ) -> Result<(), OpenError> {
        let bytes = data.bytes(self.buf.slice(0, self.blocks * META_BLOCK_BYTES));
        match self.phase {
            Phase::SuperA | Phase::SuperB => {
                let copy = usize::from(self.phase == Phase::SuperB);
                self.copies[copy] = result
                    .map_err(|_| SuperblockError::Read)
                    .and_then(|()| Superblock::decode(data, bytes));
                if copy == 0 {
                    self.phase = Phase::SuperB;
                    self.read(SUPERBLOCK_B_OFFSET, 1, out);
                    return Ok(());
                }
                self.choose()?;
                self.phase = Phase::Checkpoint(0);
            }
            Phase::Checkpoint(done) => {
                let Some(image) = self.image.as_deref_mut() else {
                    return Ok(());
                };
                let mut read = done;
                for block in bytes.chunks_exact(usize::try_from(META_BLOCK_BYTES).unwrap_or(1)) {
                    let sb = &image.superblock;
                    let good = result.is_ok()
                        && decode_head(data, block, CHECKPOINT_MAGIC).is_some_and(|head| {
                            head.id == sb.checkpoint_seq
                                && head.seq == u64::from(read)
                                && head.continues == (read + 1 < sb.checkpoint_blocks)
                        });
                    if !good || replay(block, image).is_none() {
                        image.report.checkpoint_bad = Some(read);
                        break;
                    }
                    read += 1;
                }
                image.report.checkpoint_blocks = read;
                self.phase = Phase::Checkpoint(read);
            }
            Phase::Ring(done) => {
                let Some(image) = self.image.as_deref_mut() else {
                    return Ok(());
                };
                let first = image.superblock.journal_first_seq + done;
                result.map_err(|error| OpenError::JournalRead { seq: first, error })?;
                let mut ring = Ring {
                    next_seq: self.next_seq,
                    ended: self.ended,
                };
                for block in bytes.chunks_exact(usize::try_from(META_BLOCK_BYTES).unwrap_or(1)) {
                    ring.block(block, image, data)?;
                }
                self.next_seq = ring.next_seq;
                self.ended = ring.ended;
                self.phase = Phase::Ring(done + u64::from(self.blocks));
            }
            Phase::End => return Ok(()),
        }
        self.read_next(out);
        Ok(())
    }

    /// The higher valid copy counts. Both are written at each switch, so that one rotten copy is
    /// harmless; a torn one is the newer of two steps and the other still holds.
    fn choose(&mut self) -> Result<(), OpenError> {
        let [a, b] = self.copies;
        let (chosen, copy) = match (a, b) {
            (Ok(a), Ok(b)) if a.seq >= b.seq => (a, 0),
            (Ok(a), Err(_)) => (a, 0),
            (_, Ok(b)) => (b, 1),
            (Err(a), Err(b)) => return Err(OpenError::Superblocks { a, b }),
        };
        let mut image = Box::new(Image::new(chosen, copy));
        image.report = Report {
            superblock_errors: [a.err(), b.err()],
            superblocks_differ: matches!((a, b), (Ok(a), Ok(b)) if a != b),
            ..Report::default()
        };
        self.next_seq = chosen.journal_first_seq;
        self.image = Some(image);
        Ok(())
    }

    fn read_next(&mut self, out: &mut StoreOut) {
        let Some(image) = self.image.as_deref() else {
            return;
        };
        let sb = image.superblock;
        let block = u64::from(META_BLOCK_BYTES);
        if let Phase::Checkpoint(done) = self.phase {
            if done < sb.checkpoint_blocks && image.report.checkpoint_bad.is_none() {
                let offset = sb.checkpoint_offset(sb.checkpoint_slot) + u64::from(done) * block;
                self.read(
                    offset,
                    (sb.checkpoint_blocks - done).min(META_IO_BLOCKS_MAX),
                    out,
                );
                return;
            }
            self.phase = Phase::Ring(0);
        }
        if let Phase::Ring(done) = self.phase {
            let ring = u64::from(sb.geometry.ring_blocks);
            if done >= ring {
                self.phase = Phase::End;
                return;
            }
            let place = sb.journal_first_seq.wrapping_add(done) % ring;
            let blocks = (ring - done)
                .min(ring - place)
                .min(u64::from(META_IO_BLOCKS_MAX));
            let offset = sb.layout.journal_offset + place * block;
            self.read(offset, u32::try_from(blocks).unwrap_or(1), out);
        }
    }
}

/// Replay of the ring, block by block from the first one that the checkpoint does not cover.
struct Ring {
    next_seq: u64,
    ended: bool,
}

impl Ring {
    fn block(
        &mut self,
        block: &[u8],
        image: &mut Image,
        data: &dyn Buffers,
    ) -> Result<(), OpenError> {
        let expected_id = image.superblock.journal_id;
        let Some(head) = decode_head(data, block, JOURNAL_MAGIC) else {
            self.ended = true;
            return Ok(());
        };
        // A later life than the superblock's: its copies that said so are gone.
        if head.id > expected_id {
            return Err(OpenError::JournalNewer {
                expected: expected_id,
                found: head.id,
            });
        }
        // J2.
        if head.id == expected_id && head.seq == self.next_seq && !self.ended {
            replay(block, image).ok_or(OpenError::JournalRecord { seq: head.seq })?;
            self.next_seq += 1;
            image.report.journal_blocks += 1;
            return Ok(());
        }
        self.ended = true;
        if head.id == expected_id && head.seq > self.next_seq {
            // Writes go one after the other: a write that began after the missing block proves that
            // the missing block was acknowledged once.
            if head.seq.saturating_sub(u64::from(head.place)) > self.next_seq {
                return Err(OpenError::JournalLost {
                    expected: self.next_seq,
                    found: head.seq,
                });
            }
            image.report.journal_torn += 1;
        }
        Ok(())
    }
}
