//! What a request description means, and what a completion is to the kernel.

use crate::abi::{flag, operation};
use crate::limits::{REQUEST_BYTES_MAX, SECTOR_BYTES};
use trilith_block::{ByteRange, ErrorKind, Op, RequestFlags};
use trilith_runtime::UblkDescriptor;

/// A request, understood.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Asked {
    /// What to do.
    pub(crate) op: Op,
    /// Where.
    pub(crate) range: ByteRange,
    /// How.
    pub(crate) flags: RequestFlags,
}

impl Asked {
    /// Payload bytes: of a write on its way in, of a read on its way out.
    pub(crate) fn payload_bytes(&self) -> u32 {
        match self.op {
            Op::Read | Op::Write => u32::try_from(self.range.len).unwrap_or(u32::MAX),
            _ => 0,
        }
    }

    /// What to commit when it went well: the bytes moved, or nothing.
    pub(crate) fn success(&self) -> i32 {
        i32::try_from(self.payload_bytes()).unwrap_or(i32::MAX)
    }
}

/// Understands a description, for a volume of so many bytes.
///
/// # Errors
/// The negative `errno` to commit: the operation is unknown, or the range is not in the volume, is
/// empty, or is longer than the device's limit.
pub(crate) fn understand(asked: UblkDescriptor, capacity_bytes: u64) -> Result<Asked, i32> {
    let op = match asked.op_flags & operation::MASK {
        operation::READ => Op::Read,
        operation::WRITE => Op::Write,
        operation::FLUSH => Op::Flush,
        operation::DISCARD => Op::Discard,
        operation::WRITE_ZEROES => Op::WriteZeroes,
        _ => return Err(-libc::EOPNOTSUPP),
    };
    let flags = RequestFlags {
        fua: asked.op_flags & flag::FUA != 0,
        no_hole: op == Op::WriteZeroes && asked.op_flags & flag::NO_UNMAP != 0,
        fast_zero: false,
    };
    if op == Op::Flush {
        let range = ByteRange::default();
        return Ok(Asked { op, range, flags });
    }
    let sector = u64::from(SECTOR_BYTES);
    let offset = asked
        .start_sector
        .checked_mul(sector)
        .ok_or(-libc::EINVAL)?;
    let range = ByteRange::new(offset, u64::from(asked.sectors) * sector);
    let inside = range.end().is_some_and(|end| end <= capacity_bytes) && range.len > 0;
    let moves = matches!(op, Op::Read | Op::Write);
    if !inside || (moves && range.len > u64::from(REQUEST_BYTES_MAX)) {
        return Err(-libc::EINVAL);
    }
    Ok(Asked { op, range, flags })
}

/// The negative `errno` of a failure. The block layer knows few: no space, not supported, and
/// errors of input and output.
pub(crate) fn failure(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::NoSpace => -libc::ENOSPC,
        ErrorKind::NotSupported => -libc::EOPNOTSUPP,
        ErrorKind::InvalidRange => -libc::EINVAL,
        ErrorKind::ReadOnly | ErrorKind::Io | ErrorKind::Fenced => -libc::EIO,
    }
}
