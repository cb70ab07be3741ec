//! LOG SENSE (SPC-4 6.8, 7.3): the list of pages and the informational exceptions page.

use crate::bytes::be16;
use crate::scsi::sense::Sense;
use alloc::vec::Vec;

/// Answers LOG SENSE.
pub(crate) fn sense(cdb: &[u8; 16], out: &mut Vec<u8>) -> Result<(), Sense> {
    // SP: nothing can be saved. PC is ignored by these pages; the parameter pointer must be 0.
    if cdb[1] & 0x01 != 0 {
        return Err(Sense::cdb(1));
    }
    if be16(cdb, 5) != 0 {
        return Err(Sense::cdb(5));
    }
    match (cdb[2] & 0x3f, cdb[3]) {
        (0x00, 0x00) => out.extend_from_slice(&[0x00, 0, 0, 2, 0x00, 0x2f]),
        (0x00, 0xff) => out.extend_from_slice(&[0x40, 0xff, 0, 4, 0x00, 0x00, 0x2f, 0x00]),
        // One parameter: no exception, no temperature.
        (0x2f, 0x00) => out.extend_from_slice(&[0x2f, 0, 0, 8, 0, 0, 0x03, 4, 0, 0, 0xff, 0]),
        (_, 0x00) => return Err(Sense::cdb(2)),
        _ => return Err(Sense::cdb(3)),
    }
    out.truncate(usize::from(be16(cdb, 7)));
    Ok(())
}
