//! A CDB becomes a plan: an answer that is known at once, or work for the engine. Nothing here
//! waits.

use crate::bytes::{be16, be24, be32, be64, len32};
use crate::limits::{COMMAND_BYTES_MAX, COMPARE_BLOCKS_MAX, PARAMETER_BYTES_MAX};
use crate::scsi::disk::Disk;
use crate::scsi::sense::Sense;
use crate::scsi::{copy, inquiry, log, mode, opcodes};
use alloc::vec::Vec;

/// A parameter list that the initiator sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum List {
    Unmap,
    /// One block; then the range is filled with it.
    WriteSame {
        unmap: bool,
    },
    ModeSelect {
        ten: bool,
    },
    ReserveOut {
        action: u8,
        scope_type: u8,
    },
    Copy,
    Sanitize,
}

/// What is done for a command that is not answered at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Work {
    Read,
    Write,
    /// Write, read back; compare when told so.
    WriteVerify {
        compare: bool,
    },
    /// Read and throw away.
    VerifyMedium,
    /// Read and compare with what the initiator sends.
    VerifyData,
    /// Read, OR with what the initiator sends, write.
    OrWrite,
    /// Read, compare with the first half of what the initiator sends, write the second half.
    CompareWrite,
    /// Write one block over and over.
    Fill,
    WriteZeroes,
    Discard,
    Flush,
    Prefetch,
    LbaStatus,
    /// Discard the ranges of a list.
    Unmap,
    /// Copy the ranges of a list.
    Copy,
    /// Take a parameter list, then do what it says.
    Take(List),
}

impl Work {
    /// True when the initiator sends data for each part of the range.
    pub(crate) fn collects(self) -> bool {
        matches!(
            self,
            Work::Write
                | Work::WriteVerify { .. }
                | Work::VerifyData
                | Work::OrWrite
                | Work::CompareWrite
                | Work::Take(_)
        )
    }

    /// True when its reads and writes must not be mixed with others' writes.
    pub(crate) fn is_exclusive(self) -> bool {
        matches!(self, Work::OrWrite | Work::CompareWrite)
    }

    /// True when it changes the medium.
    pub(crate) fn writes(self) -> bool {
        !matches!(
            self,
            Work::Read
                | Work::VerifyMedium
                | Work::VerifyData
                | Work::Flush
                | Work::Prefetch
                | Work::LbaStatus
                | Work::Take(_)
        )
    }
}

/// Work with its place and sizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Job {
    pub(crate) work: Work,
    pub(crate) lba: u64,
    pub(crate) blocks: u64,
    pub(crate) fua: bool,
    /// Data that the command wants from the initiator, in bytes.
    pub(crate) out_bytes: u64,
    /// Data that the command has for the initiator, in bytes.
    pub(crate) in_bytes: u64,
}

/// What becomes of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Plan {
    /// GOOD, with the data in `out`.
    Reply,
    /// GOOD, without data.
    Good,
    /// Work.
    Run(Job),
    /// These are for who knows the initiator.
    RequestSense,
    Reserve6,
    Release6,
    ReserveIn,
    CopyResults,
    /// BLOCK ERASE, or EXIT FAILURE MODE.
    Sanitize {
        erase: bool,
    },
}

/// Judges a CDB. Answers known at once are appended to `out`.
pub(crate) fn plan(disk: &Disk, cdb: &[u8; 16], out: &mut Vec<u8>) -> Result<Plan, Sense> {
    let action = cdb[1] & 0x1f;
    match cdb[0] {
        0x00 => return Ok(Plan::Good),
        0x03 => return Ok(Plan::RequestSense),
        0x12 => inquiry::inquiry(disk, cdb, true, out)?,
        0x15 | 0x55 => return mode_select(cdb),
        0x16 => return reserve6(cdb, Plan::Reserve6),
        0x17 => return reserve6(cdb, Plan::Release6),
        0x1a | 0x5a => mode::sense(disk, cdb, out)?,
        0x1b => return start_stop(cdb),
        0x1e if cdb[4] & 3 < 2 => return Ok(Plan::Good),
        0x1e => return Err(Sense::cdb(4)),
        0x25 => inquiry::capacity10(disk, cdb, out)?,
        0x37 | 0xb7 => defects(cdb, out),
        0x42 => return unmap(disk, cdb),
        0x48 => return crate::sanitize::plan(disk, cdb),
        0x4d => log::sense(cdb, out)?,
        0x5e => return Ok(Plan::ReserveIn),
        0x5f => return reserve_out(cdb),
        0x83 if action == 0 => return copy_list(disk, cdb),
        0x84 if matches!(action, 0 | 3) => return copy_results(cdb, action, disk, out),
        0x83 | 0x84 => return Err(Sense::cdb(1)),
        0x9e if action == 0x10 => inquiry::capacity16(disk, cdb, out),
        0x9e if action == 0x12 => return lba_status(disk, cdb),
        0x9e => return Err(Sense::cdb(1)),
        0xa0 => inquiry::report_luns(disk, cdb, out)?,
        0xa3 => match action {
            0x0a => inquiry::port_groups(disk, cdb, out)?,
            0x0c => opcodes::report(cdb, out)?,
            0x0d => opcodes::task_management(cdb, out)?,
            _ => return Err(Sense::cdb(1)),
        },
        _ => return medium(disk, cdb),
    }
    Ok(Plan::Reply)
}

/// Address and number of blocks of a command on the medium, or `None` for another command.
fn place(cdb: &[u8; 16]) -> Option<(u64, u64)> {
    match cdb[0] {
        0x08 | 0x0a => {
            let blocks = if cdb[4] == 0 { 256 } else { u64::from(cdb[4]) };
            Some((u64::from(be24(cdb, 1) & 0x1f_ffff), blocks))
        }
        0x28 | 0x2a | 0x2e | 0x2f | 0x34 | 0x35 | 0x41 => {
            Some((u64::from(be32(cdb, 2)), u64::from(be16(cdb, 7))))
        }
        0xa8 | 0xaa | 0xae | 0xaf => Some((u64::from(be32(cdb, 2)), u64::from(be32(cdb, 6)))),
        0x88 | 0x8a | 0x8b | 0x8e | 0x8f | 0x90 | 0x91 | 0x93 => {
            Some((be64(cdb, 2), u64::from(be32(cdb, 10))))
        }
        0x89 => Some((be64(cdb, 2), u64::from(cdb[13]))),
        _ => None,
    }
}

fn medium(disk: &Disk, cdb: &[u8; 16]) -> Result<Plan, Sense> {
    let (lba, blocks) = place(cdb).ok_or(Sense::INVALID_OPCODE)?;
    let six = matches!(cdb[0], 0x08 | 0x0a);
    let hint = matches!(cdb[0], 0x34 | 0x90 | 0x35 | 0x91);
    // Protection information is not supported: RDPROTECT, WRPROTECT, VRPROTECT must be 0.
    if !six && !hint && cdb[1] >> 5 != 0 {
        return Err(Sense::cdb(1));
    }
    let check = cdb[1] >> 1 & 3;
    let work = match cdb[0] {
        0x08 | 0x28 | 0xa8 | 0x88 => Work::Read,
        0x0a | 0x2a | 0xaa | 0x8a => Work::Write,
        0x2e | 0xae | 0x8e if check < 2 => Work::WriteVerify {
            compare: check == 1,
        },
        0x2f | 0xaf | 0x8f if check == 0 => Work::VerifyMedium,
        0x2f | 0xaf | 0x8f if check == 1 => Work::VerifyData,
        0x8b => Work::OrWrite,
        0x89 => Work::CompareWrite,
        0x34 | 0x90 => Work::Prefetch,
        0x35 | 0x91 => Work::Flush,
        0x41 | 0x93 => return write_same(disk, cdb, lba, blocks),
        _ => return Err(Sense::cdb(1)),
    };
    disk.check_range(lba, blocks)?;
    let bytes = disk.bytes(blocks);
    let moves = !matches!(work, Work::Prefetch | Work::Flush | Work::VerifyMedium);
    if moves && bytes > COMMAND_BYTES_MAX {
        return Err(Sense::cdb(if cdb[0] < 0x40 { 7 } else { 10 }));
    }
    if work == Work::CompareWrite && blocks > u64::from(COMPARE_BLOCKS_MAX) {
        return Err(Sense::cdb(13));
    }
    // No blocks: nothing to do, and no error. Flushing is worth it: the range means "to the end".
    if blocks == 0 && !matches!(work, Work::Flush | Work::CompareWrite) {
        return Ok(Plan::Good);
    }
    let out_bytes = match work {
        Work::CompareWrite => 2 * bytes,
        work if work.collects() => bytes,
        _ => 0,
    };
    let fua =
        !six && !hint && matches!(cdb[0], 0x2a | 0xaa | 0x8a | 0x8b | 0x89) && cdb[1] & 8 != 0;
    Ok(Plan::Run(Job {
        work,
        lba,
        blocks,
        fua,
        out_bytes,
        in_bytes: if work == Work::Read { bytes } else { 0 },
    }))
}

fn write_same(disk: &Disk, cdb: &[u8; 16], lba: u64, blocks: u64) -> Result<Plan, Sense> {
    // ANCHOR, obsolete PBDATA and LBDATA.
    if cdb[1] & 0x16 != 0 {
        return Err(Sense::cdb(1));
    }
    disk.check_range(lba, blocks.max(1))?;
    // WSNZ of VPD page B0h: "to the end" must be said in numbers.
    if blocks == 0 {
        return Err(Sense::cdb(if cdb[0] == 0x41 { 7 } else { 10 }));
    }
    let unmap = cdb[1] & 0x08 != 0;
    let no_data = cdb[0] == 0x93 && cdb[1] & 0x01 != 0;
    let work = match (no_data, unmap) {
        (true, true) => Work::Discard,
        (true, false) => Work::WriteZeroes,
        (false, unmap) => Work::Take(List::WriteSame { unmap }),
    };
    Ok(Plan::Run(Job {
        work,
        lba,
        blocks,
        fua: false,
        out_bytes: if no_data {
            0
        } else {
            u64::from(disk.block_bytes())
        },
        in_bytes: 0,
    }))
}

/// Work that starts with a parameter list of `len` bytes; nothing when there is none.
fn take(list: List, len: u32, byte: u16) -> Result<Plan, Sense> {
    if len > PARAMETER_BYTES_MAX {
        return Err(Sense::cdb(byte));
    }
    if len == 0 {
        return Ok(Plan::Good);
    }
    Ok(Plan::Run(Job {
        work: Work::Take(list),
        lba: 0,
        blocks: 0,
        fua: false,
        out_bytes: u64::from(len),
        in_bytes: 0,
    }))
}

fn unmap(disk: &Disk, cdb: &[u8; 16]) -> Result<Plan, Sense> {
    if cdb[1] & 0x01 != 0 {
        return Err(Sense::cdb(1));
    }
    let len = u32::from(be16(cdb, 7));
    if disk.is_protected() {
        return Err(Sense::WRITE_PROTECTED);
    }
    take(List::Unmap, len, 7)
}

fn mode_select(cdb: &[u8; 16]) -> Result<Plan, Sense> {
    // SP: nothing can be saved. PF must be set: pages have the standard's format.
    if cdb[1] & 0x01 != 0 || cdb[1] & 0x10 == 0 {
        return Err(Sense::cdb(1));
    }
    let ten = cdb[0] == 0x55;
    let (len, byte) = if ten {
        (u32::from(be16(cdb, 7)), 7)
    } else {
        (u32::from(cdb[4]), 4)
    };
    take(List::ModeSelect { ten }, len, byte)
}

fn reserve6(cdb: &[u8; 16], plan: Plan) -> Result<Plan, Sense> {
    // Extents and third parties are obsolete.
    if cdb[1] & 0x1f != 0 {
        return Err(Sense::cdb(1));
    }
    Ok(plan)
}

fn reserve_out(cdb: &[u8; 16]) -> Result<Plan, Sense> {
    let action = cdb[1] & 0x1f;
    if action > 7 {
        return Err(Sense::cdb(1));
    }
    let len = be32(cdb, 5);
    // SPC-4 6.16.1: 24 bytes, except where a transport id follows.
    if len < 24 || (len != 24 && action != 7) {
        return Err(Sense::PARAMETER_LENGTH);
    }
    let scope_type = cdb[2];
    take(List::ReserveOut { action, scope_type }, len, 5)
}

fn start_stop(cdb: &[u8; 16]) -> Result<Plan, Sense> {
    // Nothing can be ejected, and there are no power conditions.
    if cdb[4] & 0xf2 != 0 {
        return Err(Sense::cdb(4));
    }
    // Stopping makes durable what was written; the unit serves on.
    Ok(Plan::Run(flush()))
}

/// A flush of everything.
pub(crate) fn flush() -> Job {
    Job {
        work: Work::Flush,
        lba: 0,
        blocks: 0,
        fua: false,
        out_bytes: 0,
        in_bytes: 0,
    }
}

/// READ DEFECT DATA: there are no defects to tell of.
fn defects(cdb: &[u8; 16], out: &mut Vec<u8>) {
    if cdb[0] == 0x37 {
        out.extend_from_slice(&[0, cdb[2] & 0x1f, 0, 0]);
        out.truncate(usize::from(be16(cdb, 7)));
    } else {
        out.extend_from_slice(&[0, cdb[1] & 0x1f, 0, 0, 0, 0, 0, 0]);
        out.truncate(be32(cdb, 6) as usize);
    }
}

fn copy_list(disk: &Disk, cdb: &[u8; 16]) -> Result<Plan, Sense> {
    if disk.is_protected() {
        return Err(Sense::WRITE_PROTECTED);
    }
    take(List::Copy, be32(cdb, 10), 10)
}

fn copy_results(cdb: &[u8; 16], action: u8, disk: &Disk, out: &mut Vec<u8>) -> Result<Plan, Sense> {
    if action == 0 {
        return Ok(Plan::CopyResults);
    }
    copy::parameters(disk, out);
    out.truncate(be32(cdb, 10) as usize);
    Ok(Plan::Reply)
}

fn lba_status(disk: &Disk, cdb: &[u8; 16]) -> Result<Plan, Sense> {
    let lba = be64(cdb, 2);
    disk.check_range(lba, 1)?;
    let allocation = be32(cdb, 10);
    if allocation == 0 {
        return Ok(Plan::Good);
    }
    Ok(Plan::Run(Job {
        work: Work::LbaStatus,
        lba,
        blocks: disk.blocks - lba,
        fua: false,
        out_bytes: 0,
        in_bytes: u64::from(allocation.min(len32(8 + 16))),
    }))
}
