//! The store's errors and findings as sentences: expected before found.

use trilith_replica::store::{Finding, OpenError, SuperblockError};

/// Why a store cannot be opened.
pub(crate) fn open_error(error: &OpenError) -> String {
    match error {
        OpenError::Buffers => "allocate memory for reading: none is free".to_owned(),
        OpenError::Superblocks { a, b } => format!(
            "read superblock: neither copy is valid; A: {}; B: {}",
            superblock_error(*a),
            superblock_error(*b)
        ),
        OpenError::JournalRead { seq, error } => format!("read journal block {seq}: {error:?}"),
        OpenError::JournalLost { expected, found } => format!(
            "replay journal: expected block {expected}, found {found}: what was promised is gone, \
             so this replica must be replaced"
        ),
        OpenError::JournalNewer { expected, found } => format!(
            "replay journal: expected life {expected} as in the superblock, found {found}: the \
             newer superblock is gone, so this replica must be replaced"
        ),
        OpenError::JournalRecord { seq } => {
            format!("replay journal block {seq}: expected a known record, found another")
        }
        OpenError::ActivityLog { slots, found } => {
            format!("read activity log: expected at most {slots} extents, found {found}")
        }
        OpenError::Words { expected, found } => {
            format!("map window: expected {expected} words, found {found}")
        }
        OpenError::Write(cause) => format!("write checkpoint: {cause:?}"),
    }
}

/// What is wrong with a copy of the superblock.
pub(crate) fn superblock_error(error: SuperblockError) -> String {
    match error {
        SuperblockError::Magic { found } => format!("not a store, found magic {found:#018x}"),
        SuperblockError::Version { found } => format!(
            "expected version {}, found {found}",
            trilith_replica::store::FORMAT_VERSION
        ),
        SuperblockError::Checksum { expected, found } => {
            format!("checksum mismatch, expected {expected:#010x}, found {found:#010x}")
        }
        SuperblockError::Field { offset } => format!("no such value at offset {offset}"),
        SuperblockError::Read => "the device cannot read it".to_owned(),
    }
}

/// Something that `check` has found.
pub(crate) fn finding(finding: &Finding) -> String {
    match finding {
        Finding::Superblock(copy) => {
            let name = if *copy == 0 { "A" } else { "B" };
            format!("superblock copy {name} is not valid; the other one is")
        }
        Finding::Checkpoint(block) => {
            format!("checkpoint cannot be read from block {block} on: all chunks count as changed")
        }
        Finding::ActivityLog { slots, found } => {
            format!("activity log: expected at most {slots} extents, found {found}")
        }
        Finding::BeyondEnd { map, extent } => {
            format!(
                "map {map} names extent {} beyond the end of the volume",
                extent.0
            )
        }
        Finding::SealedWithLog => "stopped cleanly, but the activity log is not empty".to_owned(),
        Finding::DirtyForItself => "it has a dirty map for itself".to_owned(),
        Finding::IssBeyondTrk => "the in-sync set is not part of the tracked set".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_name_what_was_expected_and_found() {
        let error = OpenError::Superblocks {
            a: SuperblockError::Magic { found: 1 },
            b: SuperblockError::Checksum {
                expected: 2,
                found: 3,
            },
        };
        let text = open_error(&error);
        assert!(
            text.contains("superblock") && text.contains("expected 0x00000002"),
            "{text}"
        );
        let text = open_error(&OpenError::JournalLost {
            expected: 5,
            found: 9,
        });
        assert!(text.contains("expected block 5, found 9"), "{text}");
        assert!(finding(&Finding::Superblock(1)).contains("copy B"));
    }
}
