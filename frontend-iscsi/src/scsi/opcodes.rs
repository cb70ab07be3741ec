//! REPORT SUPPORTED OPERATION CODES and TASK MANAGEMENT FUNCTIONS (SPC-4 6.35, 6.36): the table of
//! what there is, with the bits of each CDB that are looked at.

use crate::bytes::{be16, be32, len32, put32};
use crate::scsi::sense::Sense;
use alloc::vec::Vec;

/// A command: operation code, service action, CDB usage data (its length is that of the CDB).
type Row = (u8, Option<u16>, &'static [u8]);

const F: u8 = 0xff;

const TABLE: &[Row] = &[
    (0x00, None, &[0x00, 0, 0, 0, 0, 0]),
    (0x03, None, &[0x03, 1, 0, 0, F, 0]),
    (0x08, None, &[0x08, 0x1f, F, F, F, 0]),
    (0x0a, None, &[0x0a, 0x1f, F, F, F, 0]),
    (0x12, None, &[0x12, 1, F, F, F, 0]),
    (0x15, None, &[0x15, 0x11, 0, 0, F, 0]),
    (0x16, None, &[0x16, 0, 0, 0, 0, 0]),
    (0x17, None, &[0x17, 0, 0, 0, 0, 0]),
    (0x1a, None, &[0x1a, 0x08, F, F, F, 0]),
    (0x1b, None, &[0x1b, 1, 0, 0, 0x03, 0]),
    (0x1e, None, &[0x1e, 0, 0, 0, 0x03, 0]),
    (0x25, None, &[0x25, 0, F, F, F, F, 0, 0, 1, 0]),
    (0x28, None, &[0x28, 0x18, F, F, F, F, 0, F, F, 0]),
    (0x2a, None, &[0x2a, 0x18, F, F, F, F, 0, F, F, 0]),
    (0x2e, None, &[0x2e, 0x16, F, F, F, F, 0, F, F, 0]),
    (0x2f, None, &[0x2f, 0x16, F, F, F, F, 0, F, F, 0]),
    (0x34, None, &[0x34, 0x02, F, F, F, F, 0, F, F, 0]),
    (0x35, None, &[0x35, 0x02, F, F, F, F, 0, F, F, 0]),
    (0x37, None, &[0x37, 0, 0x1f, 0, 0, 0, 0, F, F, 0]),
    (0x41, None, &[0x41, 0x08, F, F, F, F, 0, F, F, 0]),
    (0x42, None, &[0x42, 0, 0, 0, 0, 0, 0, F, F, 0]),
    (0x48, Some(0x01), &[0x48, 0x3f, 0, 0, 0, 0, 0, F, F, 0]),
    (0x48, Some(0x02), &[0x48, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0]),
    (0x48, Some(0x1f), &[0x48, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0]),
    (0x4d, None, &[0x4d, 0, F, F, 0, F, F, F, F, 0]),
    (0x55, None, &[0x55, 0x11, 0, 0, 0, 0, 0, F, F, 0]),
    (0x5a, None, &[0x5a, 0x18, F, F, 0, 0, 0, F, F, 0]),
    (0x5e, Some(0x00), &[0x5e, 0x1f, 0, 0, 0, 0, 0, F, F, 0]),
    (0x5e, Some(0x01), &[0x5e, 0x1f, 0, 0, 0, 0, 0, F, F, 0]),
    (0x5e, Some(0x02), &[0x5e, 0x1f, 0, 0, 0, 0, 0, F, F, 0]),
    (0x5e, Some(0x03), &[0x5e, 0x1f, 0, 0, 0, 0, 0, F, F, 0]),
    (0x5f, Some(0x00), &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 0]),
    (0x5f, Some(0x01), &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 0]),
    (0x5f, Some(0x02), &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 0]),
    (0x5f, Some(0x03), &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 0]),
    (0x5f, Some(0x04), &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 0]),
    (0x5f, Some(0x05), &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 0]),
    (0x5f, Some(0x06), &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 0]),
    (0x5f, Some(0x07), &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 0]),
    (
        0x83,
        Some(0x00),
        &[0x83, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    (
        0x84,
        Some(0x00),
        &[0x84, 0x1f, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    (
        0x84,
        Some(0x03),
        &[0x84, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    (
        0x88,
        None,
        &[0x88, 0x18, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    (
        0x89,
        None,
        &[0x89, 0x18, F, F, F, F, F, F, F, F, 0, 0, 0, F, 0, 0],
    ),
    (
        0x8a,
        None,
        &[0x8a, 0x18, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    (
        0x8b,
        None,
        &[0x8b, 0x18, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    (
        0x8e,
        None,
        &[0x8e, 0x16, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    (
        0x8f,
        None,
        &[0x8f, 0x16, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    (
        0x90,
        None,
        &[0x90, 0x02, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    (
        0x91,
        None,
        &[0x91, 0x02, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    (
        0x93,
        None,
        &[0x93, 0x09, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    (
        0x9e,
        Some(0x10),
        &[0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    (
        0x9e,
        Some(0x12),
        &[0x9e, 0x1f, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
    ),
    (0xa0, None, &[0xa0, 0, F, 0, 0, 0, F, F, F, F, 0, 0]),
    (
        0xa3,
        Some(0x0a),
        &[0xa3, 0xff, 0, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    (
        0xa3,
        Some(0x0c),
        &[0xa3, 0x1f, 0x87, F, F, F, F, F, F, F, 0, 0],
    ),
    (
        0xa3,
        Some(0x0d),
        &[0xa3, 0x1f, 0x80, 0, 0, 0, F, F, F, F, 0, 0],
    ),
    (0xa8, None, &[0xa8, 0x18, F, F, F, F, F, F, F, F, 0, 0]),
    (0xaa, None, &[0xaa, 0x18, F, F, F, F, F, F, F, F, 0, 0]),
    (0xae, None, &[0xae, 0x16, F, F, F, F, F, F, F, F, 0, 0]),
    (0xaf, None, &[0xaf, 0x16, F, F, F, F, F, F, F, F, 0, 0]),
    (0xb7, None, &[0xb7, 0x1f, 0, 0, 0, 0, F, F, F, F, 0, 0]),
];

/// Bytes of a command timeouts descriptor, its length field first.
const TIMEOUTS: [u8; 12] = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn cdb_bytes(row: &Row) -> [u8; 2] {
    u16::try_from(row.2.len()).unwrap_or(0).to_be_bytes()
}

fn all(timeouts: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; 4]);
    for row in TABLE {
        let flags = u8::from(timeouts) << 1 | u8::from(row.1.is_some());
        let [high, low] = cdb_bytes(row);
        let [action_high, action_low] = row.1.unwrap_or(0).to_be_bytes();
        out.extend_from_slice(&[row.0, 0, action_high, action_low, 0, flags, high, low]);
        if timeouts {
            out.extend_from_slice(&TIMEOUTS);
        }
    }
    let len = len32(out.len() - 4);
    put32(out, 0, len);
}

fn one(row: Option<&Row>, timeouts: bool, out: &mut Vec<u8>) {
    let Some(row) = row else {
        out.extend_from_slice(&[0, 0x01, 0, 0]);
        return;
    };
    let [high, low] = cdb_bytes(row);
    out.extend_from_slice(&[0, 0x03 | u8::from(timeouts) << 7, high, low]);
    out.extend_from_slice(row.2);
    if timeouts {
        out.extend_from_slice(&TIMEOUTS);
    }
}

/// Answers REPORT SUPPORTED OPERATION CODES.
pub(crate) fn report(cdb: &[u8; 16], out: &mut Vec<u8>) -> Result<(), Sense> {
    let timeouts = cdb[2] & 0x80 != 0;
    let (opcode, action) = (cdb[3], be16(cdb, 4));
    let has_actions = TABLE.iter().any(|row| row.0 == opcode && row.1.is_some());
    let known = TABLE.iter().any(|row| row.0 == opcode);
    let find = |action| TABLE.iter().find(|row| row.0 == opcode && row.1 == action);
    match cdb[2] & 0x07 {
        0 => all(timeouts, out),
        1 if has_actions => return Err(Sense::cdb(2)),
        1 => one(find(None), timeouts, out),
        2 if known && !has_actions => return Err(Sense::cdb(2)),
        2 => one(find(Some(action)), timeouts, out),
        3 if has_actions => one(find(Some(action)), timeouts, out),
        3 if action == 0 => one(find(None), timeouts, out),
        3 => one(None, timeouts, out),
        _ => return Err(Sense::cdb(2)),
    }
    out.truncate(be32(cdb, 6) as usize);
    Ok(())
}

/// Answers REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
pub(crate) fn task_management(cdb: &[u8; 16], out: &mut Vec<u8>) -> Result<(), Sense> {
    if be32(cdb, 6) < 4 {
        return Err(Sense::cdb(6));
    }
    // ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, target resets.
    out.extend_from_slice(&[0xda, 0, 0, 0]);
    if cdb[2] & 0x80 != 0 {
        out[3] = 12;
        out.resize(16, 0);
    }
    out.truncate(be32(cdb, 6) as usize);
    Ok(())
}

/// True when the table has the command: for the test that it says what is so.
#[cfg(test)]
pub(crate) fn rows() -> impl Iterator<Item = (u8, Option<u16>)> {
    TABLE.iter().map(|row| (row.0, row.1))
}
