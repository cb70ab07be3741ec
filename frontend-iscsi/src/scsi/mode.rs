//! MODE SENSE and MODE SELECT (SPC-4 6.11, 7.5; SBC-3 6.5): error recovery, caching, control and
//! informational exceptions pages. Nothing is saved over a restart.

use crate::bytes::{be16, byte, low32, put32, put64};
use crate::scsi::disk::Disk;
use crate::scsi::sense::Sense;
use alloc::vec::Vec;

const RECOVERY: u8 = 0x01;
const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const EXCEPTIONS: u8 = 0x1c;
const ALL: u8 = 0x3f;
const PAGES: [u8; 4] = [RECOVERY, CACHING, CONTROL, EXCEPTIONS];
/// Device-specific parameter: DPO and FUA are obeyed.
const DPO_FUA: u8 = 0x10;
/// Device-specific parameter: write protected.
const PROTECTED: u8 = 0x80;

/// Which values MODE SENSE asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    Current,
    Changeable,
    Default,
}

fn page(disk: &Disk, code: u8, values: Values, out: &mut Vec<u8>) {
    let bit = |current: bool, default: bool, mask: u8| {
        let on = match values {
            Values::Current => current,
            Values::Changeable => true,
            Values::Default => default,
        };
        if on { mask } else { 0 }
    };
    // Values that cannot be changed: 0 in the mask of changeable ones.
    let fixed = |value: u8| {
        if values == Values::Changeable {
            0
        } else {
            value
        }
    };
    match code {
        RECOVERY => {
            let mut page = [0u8; 12];
            page[..2].copy_from_slice(&[RECOVERY, 10]);
            page[2] = fixed(0xc0); // automatic reallocation
            out.extend_from_slice(&page);
        }
        CACHING => {
            let mut page = [0u8; 20];
            page[..2].copy_from_slice(&[CACHING, 18]);
            page[2] = bit(disk.write_cache, true, 0x04);
            out.extend_from_slice(&page);
        }
        CONTROL => {
            let mut page = [0u8; 12];
            page[..2].copy_from_slice(&[CONTROL, 10]);
            // One task set for each initiator port; no global logging.
            page[2] = fixed(0x22) | bit(disk.descriptor_sense, false, 0x04);
            page[3] = fixed(0x10); // unrestricted reordering
            page[4] = bit(disk.software_protect, false, 0x08);
            page[8] = fixed(0xff); // busy timeout: unlimited
            page[9] = fixed(0xff);
            out.extend_from_slice(&page);
        }
        EXCEPTIONS => {
            let mut page = [0u8; 12];
            page[..2].copy_from_slice(&[EXCEPTIONS, 10]);
            page[2] = fixed(0x08); // exceptions are not reported
            out.extend_from_slice(&page);
        }
        _ => {}
    }
}

/// Answers MODE SENSE 6 or 10.
pub(crate) fn sense(disk: &Disk, cdb: &[u8; 16], out: &mut Vec<u8>) -> Result<(), Sense> {
    let ten = cdb[0] == 0x5a;
    let (code, subpage) = (cdb[2] & 0x3f, cdb[3]);
    let values = match cdb[2] >> 6 {
        0 => Values::Current,
        1 => Values::Changeable,
        2 => Values::Default,
        // Saving parameters is not supported.
        _ => return Err(Sense::new(0x5, 0x3900)),
    };
    if !(subpage == 0 || (subpage == 0xff && code == ALL)) {
        return Err(Sense::cdb(3));
    }
    let long = ten && cdb[1] & 0x10 != 0;
    let descriptor = match (cdb[1] & 0x08 != 0, long) {
        (true, _) => 0,
        (false, false) => 8,
        (false, true) => 16,
    };
    let head = if ten { 8 } else { 4 };
    out.resize(head + descriptor, 0);
    match descriptor {
        8 => {
            put32(out, head, low32(disk.blocks));
            put32(out, head + 4, disk.block_bytes());
        }
        16 => {
            put64(out, head, disk.blocks);
            put32(out, head + 12, disk.block_bytes());
        }
        _ => {}
    }
    match code {
        ALL => PAGES.iter().for_each(|code| page(disk, *code, values, out)),
        code if PAGES.contains(&code) => page(disk, code, values, out),
        _ => return Err(Sense::cdb(2)),
    }
    let device = DPO_FUA | if disk.is_protected() { PROTECTED } else { 0 };
    let descriptor = u8::try_from(descriptor).unwrap_or(0);
    let allocation = if ten {
        let len = u16::try_from(out.len() - 2).unwrap_or(u16::MAX);
        out[..2].copy_from_slice(&len.to_be_bytes());
        out[3] = device;
        out[4] = u8::from(long);
        out[7] = descriptor;
        usize::from(be16(cdb, 7))
    } else {
        out[0] = u8::try_from(out.len() - 1).unwrap_or(u8::MAX);
        out[2] = device;
        out[3] = descriptor;
        usize::from(cdb[4])
    };
    out.truncate(allocation);
    Ok(())
}

/// Carries out MODE SELECT 6 or 10 with its parameter list. True when something has changed, of
/// which other initiators are told.
pub(crate) fn select(disk: &mut Disk, ten: bool, list: &[u8]) -> Result<bool, Sense> {
    if list.is_empty() {
        return Ok(false);
    }
    let head = if ten { 8 } else { 4 };
    if list.len() < head {
        return Err(Sense::PARAMETER_LENGTH);
    }
    let descriptor = if ten {
        usize::from(be16(list, 6))
    } else {
        usize::from(list[3])
    };
    let long = ten && byte(list, 4) & 1 != 0;
    check_descriptor(disk, list.get(head..).unwrap_or(&[]), descriptor, long)?;
    let mut pages = list
        .get(head + descriptor..)
        .ok_or(Sense::PARAMETER_LENGTH)?;
    let mut at = head + descriptor;
    let before = (
        disk.write_cache,
        disk.descriptor_sense,
        disk.software_protect,
    );
    let mut after = before;
    while !pages.is_empty() {
        let (code, len) = (pages[0] & 0x3f, 2 + usize::from(byte(pages, 1)));
        let field = |at: usize| u16::try_from(at).unwrap_or(u16::MAX);
        let mut expected = Vec::new();
        page(disk, code, Values::Current, &mut expected);
        let mut mask = Vec::new();
        page(disk, code, Values::Changeable, &mut mask);
        if expected.is_empty() || pages[0] & 0x40 != 0 {
            return Err(Sense::parameter(field(at)));
        }
        if len != expected.len() {
            return Err(Sense::parameter(field(at + 1)));
        }
        let given = pages.get(..len).ok_or(Sense::PARAMETER_LENGTH)?;
        // Only bits in the mask may differ from the current values.
        let differs = (2..len).find(|i| (given[*i] ^ expected[*i]) & !mask[*i] != 0);
        if let Some(byte) = differs {
            return Err(Sense::parameter(field(at + byte)));
        }
        match code {
            CACHING => after.0 = given[2] & 0x04 != 0,
            CONTROL => {
                after.1 = given[2] & 0x04 != 0;
                after.2 = given[4] & 0x08 != 0;
            }
            _ => {}
        }
        pages = &pages[len..];
        at += len;
    }
    (
        disk.write_cache,
        disk.descriptor_sense,
        disk.software_protect,
    ) = after;
    Ok(before != after)
}

/// The block descriptor may only say what is so already.
fn check_descriptor(disk: &Disk, list: &[u8], len: usize, long: bool) -> Result<(), Sense> {
    let given = list.get(..len).ok_or(Sense::PARAMETER_LENGTH)?;
    let block = match (len, long) {
        (0, _) => return Ok(()),
        (8, false) => crate::bytes::be24(given, 5),
        (16, true) => crate::bytes::be32(given, 12),
        _ => return Err(Sense::INVALID_PARAMETER),
    };
    (block == disk.block_bytes())
        .then_some(())
        .ok_or(Sense::INVALID_PARAMETER)
}
