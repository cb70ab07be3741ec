//! EXTENDED COPY (LID1) within the target and RECEIVE COPY RESULTS (SPC-4 6.4, 6.18, 7.8.17).

use crate::bytes::{be16, be32, be64, len32, low32, put16, put32};
use crate::limits::{
    COPY_DESCRIPTOR_BYTES_MAX, COPY_SEGMENT_BYTES_MAX, COPY_SEGMENTS_MAX, COPY_TARGETS_MAX,
};
use crate::scsi::disk::Disk;
use crate::scsi::inquiry;
use crate::scsi::sense::Sense;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Copies whose results are kept for RECEIVE COPY RESULTS.
const RESULTS_MAX: usize = 16;
const HEAD_BYTES: usize = 16;
const TARGET_BYTES: usize = 32;
const SEGMENT_BYTES: usize = 28;

/// A run of bytes to be moved, or discarded (then `source` is `target`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    pub(crate) source: u64,
    pub(crate) target: u64,
    pub(crate) len: u64,
}

/// How a copy went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct CopyResult {
    session: u16,
    list_id: u8,
    good: bool,
    segments: u16,
    bytes: u64,
}

/// The last copies.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct CopyResults {
    results: VecDeque<CopyResult>,
}

impl CopyResults {
    /// Keeps the result of a copy.
    pub(crate) fn keep(&mut self, session: u16, list_id: u8, good: bool, spans: &[Span]) {
        self.results
            .retain(|result| (result.session, result.list_id) != (session, list_id));
        if self.results.len() == RESULTS_MAX {
            self.results.pop_front();
        }
        self.results.push_back(CopyResult {
            session,
            list_id,
            good,
            segments: u16::try_from(spans.len()).unwrap_or(u16::MAX),
            bytes: spans.iter().map(|span| span.len).sum(),
        });
    }

    /// Answers COPY STATUS and forgets the copy.
    pub(crate) fn status(
        &mut self,
        session: u16,
        cdb: &[u8; 16],
        out: &mut Vec<u8>,
    ) -> Result<(), Sense> {
        let at = self
            .results
            .iter()
            .position(|result| (result.session, result.list_id) == (session, cdb[2]));
        let result = at
            .and_then(|at| self.results.remove(at))
            .ok_or(Sense::cdb(2))?;
        let mut data = [0u8; 12];
        put32(&mut data, 0, 8);
        data[4] = if result.good { 1 } else { 2 };
        put16(&mut data, 5, result.segments);
        // Units of the count: bytes, or KiB when there are too many.
        let (units, count) = match u32::try_from(result.bytes) {
            Ok(bytes) => (0, bytes),
            Err(_) => (1, low32(result.bytes >> 10)),
        };
        data[7] = units;
        put32(&mut data, 8, count);
        out.extend_from_slice(&data);
        out.truncate(be32(cdb, 10) as usize);
        Ok(())
    }
}

/// OPERATING PARAMETERS.
pub(crate) fn parameters(disk: &Disk, out: &mut Vec<u8>) {
    let mut data = [0u8; 46];
    put32(&mut data, 0, 42);
    data[4] = 0; // a list identifier is needed
    put16(&mut data, 8, u16::try_from(COPY_TARGETS_MAX).unwrap_or(0));
    put16(&mut data, 10, u16::try_from(COPY_SEGMENTS_MAX).unwrap_or(0));
    put32(&mut data, 12, len32(COPY_DESCRIPTOR_BYTES_MAX));
    put32(&mut data, 16, low32(COPY_SEGMENT_BYTES_MAX));
    put16(&mut data, 34, 16);
    data[36] = 16;
    data[37] = u8::try_from(disk.block_shift).unwrap_or(0);
    data[43] = 2;
    data[44] = 0x02; // block to block
    data[45] = 0xe4; // identification descriptor
    out.extend_from_slice(&data);
}

/// The third-party copy page (SPC-4 7.8.17): what EXTENDED COPY does, as descriptors.
pub(crate) fn third_party_page(out: &mut Vec<u8>) {
    let mut put = |kind: u16, value: &[u8]| {
        let padded = value.len().next_multiple_of(4);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&u16::try_from(padded).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(value);
        out.resize(out.len() + padded - value.len(), 0);
    };
    // Supported commands: EXTENDED COPY with action 0, RECEIVE COPY RESULTS with 0 and 3.
    put(0x0001, &[7, 0x83, 1, 0x00, 0x84, 2, 0x00, 0x03]);
    // Parameter data: counts and lengths.
    let mut data = [0u8; 28];
    put16(&mut data, 4, u16::try_from(COPY_TARGETS_MAX).unwrap_or(0));
    put16(&mut data, 6, u16::try_from(COPY_SEGMENTS_MAX).unwrap_or(0));
    put32(&mut data, 8, len32(COPY_DESCRIPTOR_BYTES_MAX));
    put(0x0004, &data);
    // Supported descriptors.
    put(0x0008, &[2, 0x02, 0xe4]);
    // Supported identification descriptors: NAA.
    put(0x000c, &[0, 0, 0, 0]);
    // General operations: concurrent copies, segment length, granularity.
    let mut data = [0u8; 32];
    put32(&mut data, 0, 16);
    put32(&mut data, 4, 16);
    put32(&mut data, 8, low32(COPY_SEGMENT_BYTES_MAX));
    data[12] = 9;
    put(0x8001, &data);
}

/// Judges the parameter list and appends the runs to be copied. Returns the list identifier.
pub(crate) fn parse(disk: &Disk, list: &[u8], spans: &mut Vec<Span>) -> Result<u8, Sense> {
    if list.len() < HEAD_BYTES {
        return Err(Sense::PARAMETER_LENGTH);
    }
    let targets = usize::from(be16(list, 2));
    let segments = be32(list, 8) as usize;
    if be32(list, 12) != 0 {
        return Err(Sense::INLINE_DATA);
    }
    let all = targets.saturating_add(segments);
    if all > list.len() - HEAD_BYTES || all > COPY_DESCRIPTOR_BYTES_MAX {
        return Err(Sense::PARAMETER_LENGTH);
    }
    let (targets, segments) = list[HEAD_BYTES..HEAD_BYTES + all].split_at(targets);
    let targets = check_targets(disk, targets)?;
    check_segments(disk, segments, targets, spans)?;
    Ok(list[0])
}

/// Returns the number of target descriptors. All must name this unit.
fn check_targets(disk: &Disk, bytes: &[u8]) -> Result<u16, Sense> {
    let mut count = 0u16;
    let mut found = Ok(());
    for descriptor in bytes.chunks(TARGET_BYTES) {
        if descriptor[0] != 0xe4 {
            return Err(Sense::TARGET_TYPE);
        }
        if descriptor.len() < TARGET_BYTES {
            return Err(Sense::PARAMETER_LENGTH);
        }
        count += 1;
        if usize::from(count) > COPY_TARGETS_MAX {
            return Err(Sense::TOO_MANY_TARGETS);
        }
        // The type of the LU identifier and NUL are obsolete in SPC-4; the device must be a disk.
        if descriptor[1] & 0x1f != 0 {
            found = Err(Sense::COPY_UNREACHABLE);
        }
        let len = usize::from(descriptor[7]).min(20);
        if !inquiry::names(disk, descriptor[4], descriptor[5], &descriptor[8..8 + len]) {
            found = Err(Sense::COPY_UNREACHABLE);
        }
    }
    found.map(|()| count)
}

fn check_segments(
    disk: &Disk,
    bytes: &[u8],
    targets: u16,
    spans: &mut Vec<Span>,
) -> Result<(), Sense> {
    spans.clear();
    for descriptor in bytes.chunks(SEGMENT_BYTES) {
        if descriptor[0] != 0x02 {
            return Err(Sense::SEGMENT_TYPE);
        }
        if descriptor.len() < SEGMENT_BYTES {
            return Err(Sense::PARAMETER_LENGTH);
        }
        if spans.len() == COPY_SEGMENTS_MAX {
            return Err(Sense::TOO_MANY_SEGMENTS);
        }
        if be16(descriptor, 2) != 0x18 {
            return Err(Sense::INVALID_PARAMETER);
        }
        // Both ends must be in the list of targets.
        if be16(descriptor, 4) >= targets || be16(descriptor, 6) >= targets {
            return Err(Sense::COPY_ABORTED);
        }
        let blocks = u64::from(be16(descriptor, 10));
        let (source, target) = (be64(descriptor, 12), be64(descriptor, 20));
        let inside = disk
            .check_range(source, blocks)
            .and(disk.check_range(target, blocks));
        inside.map_err(|_| Sense::COPY_ABORTED)?;
        spans.push(Span {
            source: disk.bytes(source),
            target: disk.bytes(target),
            len: disk.bytes(blocks),
        });
    }
    Ok(())
}

/// Judges an UNMAP parameter list and appends the runs to be discarded. Descriptors that continue
/// the one before become one run: pieces of a block of the engine cost as much as the whole.
pub(crate) fn parse_unmap(disk: &Disk, list: &[u8], spans: &mut Vec<Span>) -> Result<(), Sense> {
    spans.clear();
    if list.len() < 8 {
        return Err(Sense::PARAMETER_LENGTH);
    }
    let len = usize::from(be16(list, 2));
    let descriptors = &list[8..list.len().min(8 + len)];
    if descriptors.len() / 16 > crate::limits::UNMAP_DESCRIPTORS_MAX as usize {
        return Err(Sense::parameter(2));
    }
    for descriptor in descriptors.chunks_exact(16) {
        let (lba, blocks) = (be64(descriptor, 0), u64::from(be32(descriptor, 8)));
        disk.check_range(lba, blocks)?;
        let (target, len) = (disk.bytes(lba), disk.bytes(blocks));
        match spans.last_mut() {
            _ if blocks == 0 => {}
            Some(last) if last.target + last.len == target => last.len += len,
            _ => spans.push(Span {
                source: target,
                target,
                len,
            }),
        }
    }
    Ok(())
}
