//! Who may have how many payload bytes in flight. Every connection has a credit of its own; what
//! goes beyond comes from a pool that all share, up to a limit a connection.

use crate::limits::{PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_PER_CONNECTION_MAX, PAYLOAD_CREDIT_BYTES};
use alloc::collections::VecDeque;

/// The shared pool and the queue of connections that wait for it. Bytes in flight of a connection
/// are kept by the connection.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// Bytes drawn beyond credits.
    shared: u64,
    /// Bytes in flight in all.
    bytes: u64,
    /// Connection slots in the order in which they came to wait; each at most once.
    pub(crate) waiting: VecDeque<usize>,
}

/// The part of a connection's bytes that its credit does not cover.
fn beyond_credit(held: u64) -> u64 {
    held.saturating_sub(PAYLOAD_CREDIT_BYTES)
}

impl Pool {
    /// Adds `len` bytes to the `held` ones of a connection, or returns false when it must wait.
    /// `behind`: others wait already, so that only the credit may be used.
    pub(crate) fn draw(&mut self, held: &mut u64, len: u64, behind: bool) -> bool {
        let total = *held + len;
        let more = beyond_credit(total) - beyond_credit(*held);
        let fits = total <= PAYLOAD_BYTES_PER_CONNECTION_MAX
            && (more == 0 || (!behind && self.shared + more <= PAYLOAD_BYTES_MAX));
        if fits {
            self.shared += more;
            self.bytes += len;
            *held = total;
        }
        fits
    }

    /// Takes `len` bytes back from a connection.
    pub(crate) fn give(&mut self, held: &mut u64, len: u64) {
        assert!(len <= *held, "give back {len} of {held} payload bytes");
        let rest = *held - len;
        self.shared -= beyond_credit(*held) - beyond_credit(rest);
        self.bytes -= len;
        *held = rest;
    }

    /// Bytes in flight in all.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes a connection out of the queue.
    pub(crate) fn forget(&mut self, slot: usize) {
        self.waiting.retain(|other| *other != slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn the_credit_is_there_when_the_pool_is_empty() {
        let mut pool = Pool::default();
        let (mut a, mut b, mut c) = (0, 0, 0);
        assert!(pool.draw(&mut a, 32 * MIB, false));
        assert!(!pool.draw(&mut a, 1, false), "a connection's limit");
        assert!(pool.draw(&mut b, 32 * MIB, false));
        assert!(!pool.draw(&mut c, 4 * MIB, false), "the pool's limit");
        assert!(
            pool.draw(&mut c, MIB, true),
            "the credit, even behind others"
        );
        assert!(!pool.draw(&mut c, 1, true));
        assert_eq!(pool.bytes(), 65 * MIB);
    }

    #[test]
    fn all_that_is_given_back_can_be_drawn_again() {
        let mut pool = Pool::default();
        let mut held = 0;
        for len in [1, MIB, 5 * MIB, 4095] {
            assert!(pool.draw(&mut held, len, false));
        }
        for len in [MIB, 4095, 1, 5 * MIB] {
            pool.give(&mut held, len);
        }
        assert_eq!((held, pool.bytes(), pool.shared), (0, 0, 0));
    }
}
