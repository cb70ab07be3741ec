//! Block status: the engine's records become descriptors of one metadata context.

use crate::limits::STATUS_DESCRIPTORS_MAX;
use crate::reply::ReplyMode;
use alloc::vec::Vec;
use trilith_block::request::status_flags;

/// A metadata context that clients can select.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Context {
    /// Its name: namespace, colon, leaf.
    pub(crate) name: &'static str,
    /// Its id in replies, and its bit in a set of contexts.
    pub(crate) id: u32,
}

/// `base:allocation`: bit 0 hole, bit 1 reads as zeroes.
pub(crate) const ALLOCATION: Context = Context {
    name: "base:allocation",
    id: 1,
};
/// `trilith:dirty`: bit 0 set when some replica does not have the 64 KiB chunk yet.
pub(crate) const DIRTY: Context = Context {
    name: "trilith:dirty",
    id: 2,
};
/// All contexts.
pub(crate) const CONTEXTS: [Context; 2] = [ALLOCATION, DIRTY];

/// Bytes of a record of the engine.
const RECORD_BYTES: usize = 16;

impl Context {
    /// The context's bit in a set.
    pub(crate) fn bit(self) -> u32 {
        self.id
    }

    /// The context's status of a range with the engine's flags.
    fn status(self, flags: u32) -> u32 {
        if self == ALLOCATION {
            // The same two bits as NBD_STATE_HOLE and NBD_STATE_ZERO.
            flags & (status_flags::HOLE | status_flags::ZERO)
        } else {
            u32::from(flags & status_flags::DIRTY != 0)
        }
    }
}

/// How a status reply is to look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) mode: ReplyMode,
    /// Bytes that the client asked about; no descriptor goes beyond.
    pub(crate) len: u64,
    /// `NBD_CMD_FLAG_REQ_ONE`: one descriptor.
    pub(crate) one: bool,
}

/// Appends the payload of a status chunk: the context id and descriptors, neighbours of equal
/// status merged. Returns the number of descriptors; 0 when the records cover nothing.
pub(crate) fn append(
    payload: &mut Vec<u8>,
    context: Context,
    records: &[u8],
    shape: Shape,
) -> usize {
    let descriptors_max = if shape.one { 1 } else { STATUS_DESCRIPTORS_MAX };
    let extended = shape.mode == ReplyMode::Extended;
    payload.extend_from_slice(&context.id.to_be_bytes());
    let count_at = payload.len();
    if extended {
        payload.extend_from_slice(&[0; 4]);
    }
    let mut count = 0;
    let mut left = shape.len;
    let mut run: Option<(u64, u32)> = None;
    for record in records.chunks_exact(RECORD_BYTES) {
        let Some((len, flags)) = decode(record) else {
            break;
        };
        let len = len.min(left);
        left -= len;
        let status = context.status(flags);
        run = match run {
            Some((so_far, same)) if same == status => Some((so_far + len, same)),
            Some(ended) => {
                descriptor(payload, ended, extended);
                count += 1;
                Some((len, status))
            }
            None => Some((len, status)),
        };
        if count == descriptors_max || left == 0 {
            break;
        }
    }
    if let Some(last) = run.filter(|(len, _)| count < descriptors_max && *len > 0) {
        descriptor(payload, last, extended);
        count += 1;
    }
    if extended {
        let field = u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes();
        payload[count_at..count_at + 4].copy_from_slice(&field);
    }
    count
}

fn decode(record: &[u8]) -> Option<(u64, u32)> {
    let len = u64::from_le_bytes(record.get(..8)?.try_into().ok()?);
    let flags = u32::from_le_bytes(record.get(8..12)?.try_into().ok()?);
    (len > 0).then_some((len, flags))
}

fn descriptor(payload: &mut Vec<u8>, (len, status): (u64, u32), extended: bool) {
    if extended {
        payload.extend_from_slice(&len.to_be_bytes());
        payload.extend_from_slice(&u64::from(status).to_be_bytes());
    } else {
        // Compact requests ask about less than 4 GiB.
        payload.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        payload.extend_from_slice(&status.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    fn records(list: &[(u64, u32)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (len, flags) in list {
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(&flags.to_le_bytes());
            bytes.extend_from_slice(&[0; 4]);
        }
        bytes
    }

    fn descriptors(list: &[(u64, u32)], context: Context, len: u64, one: bool) -> Vec<(u32, u32)> {
        let mut payload = Vec::new();
        let shape = Shape {
            mode: ReplyMode::Structured,
            len,
            one,
        };
        let count = append(&mut payload, context, &records(list), shape);
        let found: Vec<_> = payload[4..]
            .chunks(8)
            .map(|d| {
                let be = |b: &[u8]| u32::from_be_bytes(b.try_into().unwrap());
                (be(&d[..4]), be(&d[4..]))
            })
            .collect();
        assert_eq!(found.len(), count);
        found
    }

    #[test]
    fn neighbours_of_equal_status_are_merged_per_context() {
        let list = [(4096, 3), (4096, 7), (8192, 4), (4096, 0)];
        assert_eq!(
            descriptors(&list, ALLOCATION, 20480, false),
            vec![(8192, 3), (12288, 0)]
        );
        assert_eq!(
            descriptors(&list, DIRTY, 20480, false),
            vec![(4096, 0), (12288, 1), (4096, 0)]
        );
    }

    #[test]
    fn one_descriptor_spans_all_records_of_its_status() {
        let list = [(4096, 3), (4096, 7), (8192, 4)];
        assert_eq!(descriptors(&list, ALLOCATION, 16384, true), vec![(8192, 3)]);
        assert_eq!(
            descriptors(&list[..2], ALLOCATION, 16384, true),
            vec![(8192, 3)]
        );
    }

    #[test]
    fn nothing_goes_beyond_the_request() {
        assert_eq!(
            descriptors(&[(8192, 0), (4096, 1)], ALLOCATION, 100, false),
            vec![(100, 0)]
        );
        assert_eq!(descriptors(&[], ALLOCATION, 100, false), vec![]);
        assert_eq!(descriptors(&[(0, 1)], ALLOCATION, 100, false), vec![]);
    }

    #[test]
    fn descriptors_have_a_limit() {
        let list: Vec<_> = (0..10_000u32).map(|i| (512, i % 2)).collect();
        let found = descriptors(&list, ALLOCATION, 1 << 30, false);
        assert_eq!(found.len(), STATUS_DESCRIPTORS_MAX);
        assert!(found.iter().all(|(len, _)| *len == 512));
    }
}
