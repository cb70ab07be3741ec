//! What each block may hold. Every write carries a stamp of its own, so a read names the write
//! that it saw. A write without an answer may have happened or may still happen, once.

use anyhow::{Result, bail};
use std::collections::BTreeMap;

/// Bytes of a stamped block.
pub const BLOCK: usize = 4096;

/// The stamp of a write: 0 is "never written".
pub type Stamp = u64;

/// Block contents for a stamp: the stamp and the block's number, repeated.
pub fn fill(block: u64, stamp: Stamp) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    while bytes.len() < BLOCK {
        bytes.extend_from_slice(&stamp.to_le_bytes());
        bytes.extend_from_slice(&block.to_le_bytes());
    }
    bytes
}

/// The stamp that a block holds.
///
/// # Errors
/// When the block is torn or belongs elsewhere.
pub fn stamp_of(block: u64, bytes: &[u8]) -> Result<Stamp> {
    let stamp = u64::from_le_bytes(bytes[..8].try_into()?);
    if stamp == 0 {
        if bytes.iter().any(|b| *b != 0) {
            bail!("block {block}: part of it is zero");
        }
        return Ok(0);
    }
    if bytes != fill(block, stamp) {
        let found = u64::from_le_bytes(bytes[8..16].try_into()?);
        bail!("block {block}: torn, or the content of block {found}");
    }
    Ok(stamp)
}

/// One block.
#[derive(Clone, Debug, Default)]
struct Register {
    /// Newest write known to have happened.
    acked: Stamp,
    /// Newest write covered by a flush that was answered.
    flushed: Stamp,
    /// Writes later than `acked` whose fate is unknown.
    open: Vec<Stamp>,
}

/// All blocks. One writer: writes to one block never overlap in time.
#[derive(Debug, Default)]
pub struct History {
    blocks: BTreeMap<u64, Register>,
    next: Stamp,
}

impl History {
    /// Nothing written yet.
    pub fn new() -> History {
        History::default()
    }

    /// A write is about to be sent; its stamp.
    pub fn begin(&mut self, block: u64) -> Stamp {
        self.next += 1;
        self.blocks.entry(block).or_default().open.push(self.next);
        self.next
    }

    /// A write was acknowledged. Earlier open writes of the block can no longer be seen.
    pub fn acked(&mut self, block: u64, stamp: Stamp) {
        let register = self.blocks.entry(block).or_default();
        register.acked = stamp;
        register.open.retain(|s| *s > stamp);
    }

    /// Everything acknowledged now: what a flush that starts now will cover.
    pub fn snapshot(&self) -> Vec<(u64, Stamp)> {
        self.blocks.iter().map(|(b, r)| (*b, r.acked)).collect()
    }

    /// A flush that started at `snapshot` was acknowledged.
    pub fn flushed(&mut self, snapshot: &[(u64, Stamp)]) {
        for (block, stamp) in snapshot {
            let register = self.blocks.entry(*block).or_default();
            register.flushed = register.flushed.max(*stamp);
        }
    }

    /// Blocks that were ever written to.
    pub fn blocks(&self) -> Vec<u64> {
        self.blocks.keys().copied().collect()
    }

    /// Checks what a read returned. With `after_loss`, acknowledged but unflushed writes may be
    /// gone; what is read then becomes the truth.
    ///
    /// # Errors
    /// When the block cannot legally hold this.
    pub fn check(&mut self, block: u64, bytes: &[u8], after_loss: bool) -> Result<()> {
        let stamp = stamp_of(block, bytes)?;
        let register = self.blocks.entry(block).or_default();
        let oldest = if after_loss {
            register.flushed
        } else {
            register.acked
        };
        let known = stamp == register.acked || register.open.contains(&stamp);
        let legal = if after_loss { stamp >= oldest } else { known };
        if !legal {
            bail!(
                "block {block}: holds write {stamp}, expected {oldest} or newer (acknowledged \
                 {}, flushed {}, open {:?})",
                register.acked,
                register.flushed,
                register.open
            );
        }
        // Once seen, it stays: nothing older may come back.
        register.acked = stamp;
        register.open.retain(|s| *s > stamp);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_acknowledged_write_is_found() {
        let mut history = History::new();
        let first = history.begin(7);
        history.acked(7, first);
        let second = history.begin(7);
        assert!(history.check(7, &fill(7, 0), false).is_err());
        assert!(history.check(7, &fill(8, first), false).is_err());
        assert!(history.check(7, &fill(7, second), false).is_ok());
        assert!(
            history.check(7, &fill(7, first), false).is_err(),
            "an older value came back"
        );
    }

    #[test]
    fn a_loss_may_go_back_to_the_flush_but_not_further() {
        let mut history = History::new();
        let flushed = history.begin(1);
        history.acked(1, flushed);
        let snapshot = history.snapshot();
        history.flushed(&snapshot);
        let later = history.begin(1);
        history.acked(1, later);
        assert!(history.check(1, &vec![0; BLOCK], true).is_err());
        assert!(history.check(1, &fill(1, flushed), true).is_ok());
    }
}
