//! Who may have how many payload bytes in flight. A session without any may always have one part;
//! what goes beyond comes from a pool that all share.

use crate::limits::{PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_PER_SESSION_MAX};
use alloc::collections::VecDeque;

/// Payload bytes in flight and the queue of tasks that wait for them.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    bytes: u64,
    /// Task slots in the order in which they came to wait; each at most once.
    pub(crate) waiting: VecDeque<usize>,
}

impl Pool {
    /// Adds `len` bytes to the `held` ones of a session, or returns false when it must wait.
    /// `behind`: others wait already.
    pub(crate) fn draw(&mut self, held: &mut u64, len: u64, behind: bool) -> bool {
        let fits = *held == 0
            || (!behind
                && *held + len <= PAYLOAD_BYTES_PER_SESSION_MAX
                && self.bytes + len <= PAYLOAD_BYTES_MAX);
        if fits {
            self.bytes += len;
            *held += len;
        }
        fits
    }

    /// Takes `len` bytes back from a session.
    pub(crate) fn give(&mut self, held: &mut u64, len: u64) {
        assert!(len <= *held, "give back {len} of {held} payload bytes");
        self.bytes -= len;
        *held -= len;
    }

    /// Bytes in flight in all.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn one_part_is_there_when_the_pool_is_empty() {
        let mut pool = Pool::default();
        let (mut a, mut b, mut c) = (0, 0, 0);
        assert!(pool.draw(&mut a, 32 * MIB, false));
        assert!(!pool.draw(&mut a, 1, false), "a session's limit");
        assert!(pool.draw(&mut b, 32 * MIB, false));
        assert!(pool.draw(&mut c, MIB, true), "the first part");
        assert!(!pool.draw(&mut c, 1, false), "the pool's limit");
        pool.give(&mut a, 32 * MIB);
        assert!(!pool.draw(&mut c, 1, true), "others wait");
        assert!(pool.draw(&mut c, 1, false));
        assert_eq!(pool.bytes(), 33 * MIB + 1);
    }
}
