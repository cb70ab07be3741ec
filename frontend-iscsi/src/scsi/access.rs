//! Which commands a reservation keeps from whom (SPC-4 5.9.1, SBC-3 4.17, SPC-2 5.5.1).

/// What a command does to the unit, as reservations see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Allowed for everybody, even against RESERVE 6.
    Free,
    /// Allowed for everybody against persistent reservations.
    Open,
    /// Reads the medium.
    Reads,
    /// Changes the medium or the unit.
    Changes,
    /// Persistent reserve commands check for themselves; against RESERVE 6 they conflict.
    Persistent,
}

/// The access of a command.
pub(crate) fn access(cdb: &[u8; 16]) -> Access {
    match cdb[0] {
        // GET LBA STATUS.
        0x9e if cdb[1] & 0x1f == 0x12 => Access::Reads,
        // INQUIRY, REQUEST SENSE, REPORT LUNS, RELEASE 6 (which then does nothing).
        0x12 | 0x03 | 0xa0 | 0x17 => Access::Free,
        // TEST UNIT READY, READ CAPACITY, LOG SENSE, reports, RECEIVE COPY RESULTS, RESERVE 6
        // (which checks for itself), START STOP.
        0x00 | 0x25 | 0x9e | 0x4d | 0xa3 | 0x84 | 0x16 | 0x1e => Access::Open,
        0x5e | 0x5f => Access::Persistent,
        0x08 | 0x28 | 0xa8 | 0x88 | 0x2f | 0xaf | 0x8f | 0x34 | 0x90 | 0x37 | 0xb7 => Access::Reads,
        _ => Access::Changes,
    }
}
