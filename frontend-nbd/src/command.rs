//! Requests of the transmission phase: decoded, and judged against the export and what was
//! negotiated. Nothing here has state.

use crate::config::NbdConfig;
use crate::error::NbdError;
use crate::limits::{DISCARD_BYTES_MAX, REQUEST_BYTES_MAX};
use crate::proto::{EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC, be16, be32, be64, command, flag};
use crate::reply::{Answer, ReplyMode};
use trilith_block::limits::TRANSFER_BYTES_MAX;
use trilith_block::mutant::{self, Mutant};
use trilith_block::{ByteRange, RequestFlags};

/// A request header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Command {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// What the engine is to do for a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Work {
    Read,
    Write,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
}

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// To the engine.
    Run(Work),
    /// It succeeds without the engine: its length is zero.
    Nothing,
    /// It fails, after this many bytes of payload are thrown away.
    Refuse(NbdError, u64),
    /// The client says goodbye.
    Disconnect,
    /// The stream cannot be followed any further.
    Hangup,
}

impl Command {
    /// Decodes a header. `None` when it is short or its magic is wrong: the stream is lost.
    pub(crate) fn decode(bytes: &[u8], mode: ReplyMode) -> Option<Command> {
        let magic = be32(bytes, 0)?;
        let (expected, len) = match mode {
            ReplyMode::Extended => (EXTENDED_REQUEST_MAGIC, be64(bytes, 24)?),
            ReplyMode::Simple | ReplyMode::Structured => {
                (REQUEST_MAGIC, u64::from(be32(bytes, 24)?))
            }
        };
        (magic == expected).then_some(Command {
            flags: be16(bytes, 4)?,
            kind: be16(bytes, 6)?,
            cookie: be64(bytes, 8)?,
            offset: be64(bytes, 16)?,
            len,
        })
    }

    /// Whom to answer.
    pub(crate) fn answer(&self, mode: ReplyMode) -> Answer {
        let read = self.kind == command::READ;
        Answer {
            mode,
            cookie: self.cookie,
            offset: self.offset,
            read,
        }
    }

    /// True when flag `bit` is set.
    pub(crate) fn has(&self, bit: u16) -> bool {
        self.flags & bit != 0
    }

    /// Modifiers for the engine. FUA on a command that writes nothing is ignored, as the
    /// specification allows.
    pub(crate) fn request_flags(&self) -> RequestFlags {
        let writes = matches!(
            self.kind,
            command::WRITE | command::TRIM | command::WRITE_ZEROES
        );
        RequestFlags {
            fua: writes && self.has(flag::FUA) && !mutant::on(Mutant::NbdFuaDropped),
            no_hole: self.has(flag::NO_HOLE),
            fast_zero: self.has(flag::FAST_ZERO),
        }
    }

    /// Bytes of payload that follow the header. A write always has its payload: with extended
    /// headers its flag PAYLOAD_LEN is mandatory, but QEMU's client (10.0) leaves it out and sends
    /// the payload all the same; a client that keeps the rule is never misread by this.
    fn payload_bytes(&self, mode: ReplyMode) -> u64 {
        let flagged = mode == ReplyMode::Extended && self.has(flag::PAYLOAD_LEN);
        if flagged || self.kind == command::WRITE {
            self.len
        } else {
            0
        }
    }

    /// Flags that this command may have. FUA is accepted everywhere.
    fn flags_allowed(&self, mode: ReplyMode) -> u16 {
        flag::FUA
            | match self.kind {
                command::READ if mode != ReplyMode::Simple => flag::DF,
                command::WRITE if mode == ReplyMode::Extended => flag::PAYLOAD_LEN,
                command::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
                command::BLOCK_STATUS => flag::REQ_ONE,
                _ => 0,
            }
    }

    /// True when the range ends past the end of the export.
    fn past_end(&self, export: &NbdConfig) -> bool {
        ByteRange::new(self.offset, self.len)
            .end()
            .is_none_or(|end| export.size() < end)
    }

    /// What becomes of the request. `contexts`: some metadata context was selected.
    pub(crate) fn judge(&self, export: &NbdConfig, mode: ReplyMode, contexts: bool) -> Verdict {
        let payload = self.payload_bytes(mode);
        if payload > DISCARD_BYTES_MAX {
            return Verdict::Hangup;
        }
        // A disconnect request has no reply, so that nothing about it can be refused.
        if self.kind == command::DISC {
            return Verdict::Disconnect;
        }
        match self.admit(export, mode, contexts) {
            Err(error) => Verdict::Refuse(error, payload),
            Ok(work) if self.len == 0 && work != Work::Flush => Verdict::Nothing,
            Ok(work) => Verdict::Run(work),
        }
    }

    fn admit(&self, export: &NbdConfig, mode: ReplyMode, contexts: bool) -> Result<Work, NbdError> {
        let (work, past_end) = match self.kind {
            command::READ => (Work::Read, NbdError::Inval),
            command::WRITE => (Work::Write, NbdError::NoSpace),
            command::FLUSH => (Work::Flush, NbdError::Inval),
            command::TRIM => (Work::Trim, NbdError::Inval),
            command::CACHE => (Work::Cache, NbdError::Inval),
            command::WRITE_ZEROES => (Work::WriteZeroes, NbdError::NoSpace),
            command::BLOCK_STATUS => (Work::BlockStatus, NbdError::Inval),
            _ => return Err(NbdError::Inval),
        };
        if self.flags & !self.flags_allowed(mode) != 0 {
            return Err(NbdError::Inval);
        }
        let changes = matches!(work, Work::Write | Work::Trim | Work::WriteZeroes);
        if changes && export.read_only {
            return Err(NbdError::Perm);
        }
        if work == Work::Flush {
            let plain = self.offset == 0 && self.len == 0;
            return if plain {
                Ok(work)
            } else {
                Err(NbdError::Inval)
            };
        }
        if matches!(work, Work::Read | Work::Write) && self.len > REQUEST_BYTES_MAX {
            let unfragmented = work == Work::Read && self.has(flag::DF);
            return Err(if unfragmented {
                NbdError::Overflow
            } else {
                NbdError::Inval
            });
        }
        if self.past_end(export) {
            return Err(past_end);
        }
        // A status reply needs a descriptor of at least one byte.
        if work == Work::BlockStatus && (!contexts || self.len == 0) {
            return Err(NbdError::Inval);
        }
        Ok(work)
    }
}

/// Number of parts that a read or write is split into. `range.len` is not 0.
pub(crate) fn part_count(range: ByteRange) -> u64 {
    let part_max = u64::from(TRANSFER_BYTES_MAX);
    if range.len <= part_max {
        return 1;
    }
    let first = part_max - range.offset % part_max;
    1 + (range.len - first).div_ceil(part_max)
}

/// Part `index` of a read or write. Parts after the first start at multiples of the transfer size,
/// so that an unaligned start costs the engine one merge, not one a part.
pub(crate) fn part(range: ByteRange, index: u64) -> ByteRange {
    let part_max = u64::from(TRANSFER_BYTES_MAX);
    if range.len <= part_max {
        return range;
    }
    let first = part_max - range.offset % part_max;
    let start = if index == 0 {
        0
    } else {
        first + (index - 1) * part_max
    };
    let end = (first + index * part_max).min(range.len);
    ByteRange::new(range.offset + start, end.saturating_sub(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PARTS_MAX;

    #[test]
    fn parts_cover_the_range_once_and_stay_below_the_maximum() {
        let mib = 1024 * 1024;
        for offset in [0, 1, 4096, mib - 1, 5 * mib + 17] {
            for len in [1, 512, mib, mib + 1, 2 * mib, 3 * mib - 1, 32 * mib] {
                let range = ByteRange::new(offset, len);
                let mut next = offset;
                for index in 0..part_count(range) {
                    let part = part(range, index);
                    assert_eq!(part.offset, next, "{range:?} part {index}");
                    assert!(0 < part.len && part.len <= mib);
                    next += part.len;
                }
                assert_eq!(next, offset + len, "{range:?}");
                assert!(part_count(range) <= PARTS_MAX);
            }
        }
    }
}
