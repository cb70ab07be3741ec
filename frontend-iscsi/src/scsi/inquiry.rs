//! INQUIRY, its vital product data pages, REPORT LUNS, READ CAPACITY and REPORT TARGET PORT GROUPS
//! (SPC-4 6.6, 6.33, 6.37, 7.8; SBC-3 5.15, 5.16, 6.6).

use crate::bytes::{be16, be32, byte, len32, low32, put16, put32, put64};
use crate::limits::{COMMAND_BYTES_MAX, COMPARE_BLOCKS_MAX, UNMAP_DESCRIPTORS_MAX};
use crate::scsi::copy;
use crate::scsi::disk::Disk;
use crate::scsi::sense::Sense;
use alloc::string::ToString;
use alloc::vec::Vec;

const VENDOR: &[u8; 8] = b"TRILITH ";
const PRODUCT: &[u8; 16] = b"VOLUME          ";
const REVISION: &[u8; 4] = b"0001";
/// Vital product data pages, in rising order.
const PAGES: [u8; 8] = [0x00, 0x80, 0x83, 0x86, 0x8f, 0xb0, 0xb1, 0xb2];
/// Peripheral qualifier and type of a logical unit number that holds nothing.
const NO_UNIT: u8 = 0x7f;

/// Answers INQUIRY. `present`: the logical unit number holds the disk.
pub(crate) fn inquiry(
    disk: &Disk,
    cdb: &[u8; 16],
    present: bool,
    out: &mut Vec<u8>,
) -> Result<(), Sense> {
    let page = cdb[2];
    match cdb[1] & 0x03 {
        0 if page != 0 => return Err(Sense::cdb(2)),
        0 => standard(present, out),
        1 if present => vital(disk, page, out)?,
        1 => return Err(Sense::NO_UNIT),
        // CMDDT is obsolete.
        _ => return Err(Sense::cdb(1)),
    }
    out.truncate(usize::from(be16(cdb, 3)));
    Ok(())
}

fn standard(present: bool, out: &mut Vec<u8>) {
    let mut data = [0u8; 96];
    data[0] = if present { 0 } else { NO_UNIT };
    data[2] = 6; // SPC-4
    data[3] = 0x12; // hierarchical support, response data format 2
    data[4] = 91;
    data[5] = 0x18; // implicit asymmetric access, third-party copy
    data[6] = 0x10; // multiple ports
    data[7] = 0x02; // command queuing
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(PRODUCT);
    data[32..36].copy_from_slice(REVISION);
    // SAM-5, iSCSI, SPC-4, SBC-3.
    for (at, version) in [(58, 0x00a0), (60, 0x0960), (62, 0x0460), (64, 0x04c0)] {
        put16(&mut data, at, version);
    }
    out.extend_from_slice(&data);
}

fn vital(disk: &Disk, page: u8, out: &mut Vec<u8>) -> Result<(), Sense> {
    out.extend_from_slice(&[0, page, 0, 0]);
    match page {
        0x00 => out.extend_from_slice(&PAGES),
        0x80 => out.extend_from_slice(disk.uuid.to_string().as_bytes()),
        0x83 => designators(disk, out),
        0x86 => extended(out),
        0x8f => copy::third_party_page(out),
        0xb0 => limits(disk, out),
        0xb1 => characteristics(out),
        // No threshold; UNMAP, WRITE SAME 16 and 10 with UNMAP, unmapped blocks read zero; thin.
        0xb2 => out.extend_from_slice(&[0, 0xe4, 0x02, 0]),
        _ => return Err(Sense::cdb(2)),
    }
    let len = u16::try_from(out.len() - 4).unwrap_or(u16::MAX);
    put16(out, 2, len);
    Ok(())
}

/// The 8 bytes of the volume's locally assigned NAA identifier (SPC-4 7.8.6.6.4: NAA 3).
fn naa(disk: &Disk) -> [u8; 8] {
    let mut id = [0; 8];
    id.copy_from_slice(&disk.uuid.0[..8]);
    // The variant and version bits of a uuid carry nothing; the first nibble of NAA is fixed.
    id[0] = 0x30 | (id[0] & 0x0f) ^ (disk.uuid.0[15] & 0x0f);
    id[6] ^= disk.uuid.0[9];
    id
}

/// An EUI-64 with the bit for local administration: from the other half of the uuid.
fn eui(disk: &Disk) -> [u8; 8] {
    let mut id = [0; 8];
    id.copy_from_slice(&disk.uuid.0[8..]);
    id[0] = (id[0] | 0x02) & 0xfe;
    id
}

fn designator(out: &mut Vec<u8>, code_set: u8, kind: u8, value: &[u8]) {
    let padded = value.len()
        + if kind & 0x0f == 8 {
            4 - value.len() % 4
        } else {
            0
        };
    out.extend_from_slice(&[code_set, kind, 0, u8::try_from(padded).unwrap_or(u8::MAX)]);
    out.extend_from_slice(value);
    out.resize(out.len() + padded - value.len(), 0);
}

fn designators(disk: &Disk, out: &mut Vec<u8>) {
    // Protocol identifier 5 (iSCSI) in the code set byte, PIV 0x80 in the type byte.
    const ISCSI: u8 = 0x50;
    const PORT: u8 = 0x90;
    const DEVICE: u8 = 0xa0;
    designator(out, 1, 0x03, &naa(disk));
    designator(out, 1, 0x02, &eui(disk));
    let mut vendor = Vec::from(*VENDOR);
    vendor.extend_from_slice(disk.uuid.to_string().as_bytes());
    designator(out, 2, 0x01, &vendor);
    let group = [
        0,
        0,
        disk.portal_group.to_be_bytes()[0],
        disk.portal_group.to_be_bytes()[1],
    ];
    designator(out, ISCSI | 1, PORT | 0x04, &group);
    designator(out, ISCSI | 1, PORT | 0x05, &[0, 0, 0, 1]);
    designator(out, ISCSI | 3, DEVICE | 0x08, disk.target_name.as_bytes());
    let port = alloc::format!("{},t,0x{:04x}", disk.target_name, disk.portal_group);
    designator(out, ISCSI | 3, PORT | 0x08, port.as_bytes());
}

fn extended(out: &mut Vec<u8>) {
    let mut page = [0u8; 60];
    page[1] = 0x07; // simple, ordered and head of queue
    page[2] = 0x01; // volatile cache
    page[3] = 0;
    out.extend_from_slice(&page);
}

/// Block limits (SBC-3 6.6.3).
fn limits(disk: &Disk, out: &mut Vec<u8>) {
    let mut page = [0u8; 60];
    let blocks = |bytes: u64| low32(bytes >> disk.block_shift);
    page[0] = 0x01; // WRITE SAME of no blocks is refused (WSNZ)
    page[1] = u8::try_from(COMPARE_BLOCKS_MAX).unwrap_or(u8::MAX);
    put16(&mut page, 2, 1 << disk.physical_exponent());
    put32(&mut page, 4, blocks(COMMAND_BYTES_MAX));
    put32(&mut page, 8, blocks(u64::from(disk.optimal_bytes)));
    put32(&mut page, 12, 0);
    put32(&mut page, 16, u32::MAX);
    put32(&mut page, 20, UNMAP_DESCRIPTORS_MAX);
    put32(&mut page, 24, 1 << disk.physical_exponent());
    put32(&mut page, 28, 0x8000_0000);
    put64(&mut page, 32, disk.blocks);
    out.extend_from_slice(&page);
}

fn characteristics(out: &mut Vec<u8>) {
    let mut page = [0u8; 60];
    put16(&mut page, 0, 1); // does not rotate
    page[3] = 0x40; // WABEREQ: blocks can be read after BLOCK ERASE
    out.extend_from_slice(&page);
}

/// Answers REPORT LUNS.
pub(crate) fn report_luns(disk: &Disk, cdb: &[u8; 16], out: &mut Vec<u8>) -> Result<(), Sense> {
    let allocation = be32(cdb, 6);
    if allocation < 16 {
        return Err(Sense::cdb(6));
    }
    let units: &[[u8; 8]] = match cdb[2] {
        0x00 | 0x02 => &[[0, disk.lun, 0, 0, 0, 0, 0, 0]],
        // Well-known logical units: none.
        0x01 => &[],
        _ => return Err(Sense::cdb(2)),
    };
    out.extend_from_slice(&len32(units.len() * 8).to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    for unit in units {
        out.extend_from_slice(unit);
    }
    out.truncate(allocation as usize);
    Ok(())
}

/// Answers READ CAPACITY 10.
pub(crate) fn capacity10(disk: &Disk, cdb: &[u8; 16], out: &mut Vec<u8>) -> Result<(), Sense> {
    if byte(cdb, 8) & 1 == 0 && be32(cdb, 2) != 0 {
        return Err(Sense::cdb(2));
    }
    out.extend_from_slice(&low32(disk.blocks - 1).to_be_bytes());
    out.extend_from_slice(&disk.block_bytes().to_be_bytes());
    Ok(())
}

/// Answers READ CAPACITY 16.
pub(crate) fn capacity16(disk: &Disk, cdb: &[u8; 16], out: &mut Vec<u8>) {
    let mut data = [0u8; 32];
    put64(&mut data, 0, disk.blocks - 1);
    put32(&mut data, 8, disk.block_bytes());
    data[13] = disk.physical_exponent();
    data[14] = 0xc0; // thin, unmapped blocks read zero
    out.extend_from_slice(&data);
    out.truncate(be32(cdb, 10) as usize);
}

/// Answers REPORT TARGET PORT GROUPS: one group with one port, active and optimized.
pub(crate) fn port_groups(disk: &Disk, cdb: &[u8; 16], out: &mut Vec<u8>) -> Result<(), Sense> {
    let extended = match cdb[1] >> 5 {
        0 => false,
        1 => true,
        _ => return Err(Sense::cdb(1)),
    };
    out.extend_from_slice(&[0; 4]);
    if extended {
        out.extend_from_slice(&[0x10, 0, 0, 0]);
    }
    // State 0: active/optimized. Supported: unavailable, standby, both active ones.
    out.extend_from_slice(&[0x00, 0x0f, 0, 1, 0, 0, 0, 1, 0, 0]);
    out.extend_from_slice(&disk.portal_group.to_be_bytes());
    let len = len32(out.len() - 4);
    put32(out, 0, len);
    out.truncate(be32(cdb, 6) as usize);
    Ok(())
}

/// True when a designator of page 83h names this unit: for EXTENDED COPY.
pub(crate) fn names(disk: &Disk, code_set: u8, kind: u8, value: &[u8]) -> bool {
    let code_set = code_set & 0x0f;
    match kind & 0x3f {
        0x03 => code_set == 1 && value == naa(disk),
        0x02 => code_set == 1 && value == eui(disk),
        // A T10 vendor identifier is longer than the field: its beginning counts.
        0x01 => {
            let mut whole = Vec::from(*VENDOR);
            whole.extend_from_slice(disk.uuid.to_string().as_bytes());
            code_set == 2 && value.len() == 20 && whole.starts_with(value)
        }
        _ => false,
    }
}
