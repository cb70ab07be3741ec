//! Purpose: the data path in steady state. One engine with its NBD server and three replicas, wired
//! back to back in one thread with disks in memory: after warming up, requests are served without a
//! single allocation in any machine.
//!
//! Limits: `TRILITH_STEADY_OPS` sets the number of measured requests (2000), for profilers.
//!
//! Failure: an allocation is counted for the machine that made it.
//!
//! Start reading at: [`rig`].
#![allow(unsafe_code, reason = "an allocator that counts has no safe form")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod counting;
mod memory;
mod rig;

use rig::{Ask, Rig};

fn requests() -> u64 {
    let given = std::env::var("TRILITH_STEADY_OPS").ok();
    given.and_then(|n| n.parse().ok()).unwrap_or(2000)
}

/// Serves requests of one kind, `depth` at once, first to warm up, then counted. More at once while
/// warming up: lists grow to the most that was ever in them.
fn serves_without_allocations(depth: usize, next: impl Fn(u64) -> Ask) {
    let mut rig = Rig::new();
    rig.serve(4000, 4 * depth, &next);
    rig.serve(1000, depth, &next);
    rig.forget_allocations();
    rig.serve(requests(), depth, &next);
    assert_eq!(rig.allocations(), [0; 3], "by engine, NBD server, replicas");
}

/// Blocks in an order without a pattern.
fn scattered(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

#[test]
fn random_writes_allocate_nothing() {
    serves_without_allocations(16, |n| Ask::Write(scattered(n)));
}

#[test]
fn many_random_writes_at_once_allocate_nothing() {
    serves_without_allocations(64, |n| Ask::Write(scattered(n)));
}

#[test]
fn random_reads_allocate_nothing() {
    serves_without_allocations(16, |n| {
        if n < 2000 {
            Ask::Write(scattered(n))
        } else {
            Ask::Read(scattered(n))
        }
    });
}

#[test]
fn writes_with_flushes_allocate_nothing() {
    serves_without_allocations(4, |n| {
        if n % 2 == 0 {
            Ask::Write(scattered(n))
        } else {
            Ask::Flush
        }
    });
}

#[test]
fn what_was_written_is_read() {
    let mut rig = Rig::new();
    rig.serve(300, 8, &|n| Ask::Write(n % 100));
    rig.serve(100, 8, &|n| Ask::Read(n - 300));
    for (block, byte) in rig.seen() {
        assert_eq!(*byte, rig.fill_of(200 + block), "block {block}");
    }
    assert_eq!(rig.seen().len(), 100);
}
