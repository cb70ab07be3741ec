//! What descriptions mean.

use crate::request::{failure, understand};
use trilith_block::{ByteRange, ErrorKind, Op};
use trilith_runtime::UblkDescriptor;

const CAPACITY: u64 = 8 << 20;
const FUA: u32 = 1 << 13;
const NO_UNMAP: u32 = 1 << 15;

fn asked(op_flags: u32, start_sector: u64, sectors: u32) -> UblkDescriptor {
    UblkDescriptor {
        op_flags,
        sectors,
        start_sector,
    }
}

#[test]
fn each_operation_is_what_it_says() {
    for (number, op, bytes) in [
        (0, Op::Read, 4096),
        (1, Op::Write, 4096),
        (3, Op::Discard, 0),
        (5, Op::WriteZeroes, 0),
    ] {
        let got = understand(asked(number, 16, 8), CAPACITY).unwrap();
        assert_eq!(got.op, op);
        assert_eq!(got.range, ByteRange::new(8192, 4096));
        assert_eq!(got.success(), bytes, "{op:?} commits the bytes it moved");
    }
    let flush = understand(asked(2, u64::MAX, 0), CAPACITY).unwrap();
    assert_eq!(
        (flush.op, flush.range.len, flush.success()),
        (Op::Flush, 0, 0)
    );
}

#[test]
fn flags_reach_the_engine_and_others_are_hints() {
    let write = understand(asked(1 | FUA | 1 << 8 | 1 << 11 | 1 << 16, 0, 1), CAPACITY).unwrap();
    assert!(write.flags.fua && !write.flags.no_hole);
    let zero = understand(asked(5 | NO_UNMAP, 0, 1), CAPACITY).unwrap();
    assert!(zero.flags.no_hole && !zero.flags.fua && !zero.flags.fast_zero);
    let discard = understand(asked(3 | NO_UNMAP, 0, 1), CAPACITY).unwrap();
    assert!(!discard.flags.no_hole, "a flag of zeroes alone");
}

#[test]
fn what_makes_no_sense_fails_alone() {
    let sectors = CAPACITY / 512;
    for (what, description, error) in [
        ("write same", asked(4, 0, 8), libc::EOPNOTSUPP),
        ("zone open", asked(10, 0, 8), libc::EOPNOTSUPP),
        ("unknown", asked(0xff, 0, 8), libc::EOPNOTSUPP),
        ("empty read", asked(0, 0, 0), libc::EINVAL),
        ("beyond the end", asked(0, sectors, 1), libc::EINVAL),
        ("over the end", asked(1, sectors - 1, 2), libc::EINVAL),
        ("overflow", asked(0, u64::MAX, 8), libc::EINVAL),
        ("too long", asked(1, 0, 2049), libc::EINVAL),
    ] {
        assert_eq!(understand(description, CAPACITY), Err(-error), "{what}");
    }
    assert!(
        understand(asked(3, 0, 16384), CAPACITY).is_ok(),
        "discards may be long"
    );
    assert!(understand(asked(0, sectors - 1, 1), CAPACITY).is_ok());
}

#[test]
fn every_failure_is_an_error_number() {
    for kind in ErrorKind::ALL {
        assert!(failure(kind) < 0, "{kind:?}");
    }
    assert_eq!(failure(ErrorKind::NoSpace), -libc::ENOSPC);
    assert_eq!(failure(ErrorKind::Fenced), -libc::EIO);
}
