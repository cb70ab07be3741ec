//! The store of a witness (7.1, W1): epochs and the clean stop are records, with no change, flush or
//! slot that goes with them.
//!
//! Crash argument. Each is one record of the journal, whole or absent after a power loss, and is
//! answered once it is durable. Nothing else belongs to it: no window, map, activity log or data.

use super::api::{StoreError, Token};
use super::record::{Item, SeRecord};
use super::state::{Store, Waiter};
use trilith_block::{Idx, MemberSet, SyncEpoch};

/// A sync epoch as a witness keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WitnessEpoch {
    /// The epoch; (T, 0) is the start of term T.
    pub se: SyncEpoch,
    /// Its in-sync set.
    pub iss: MemberSet,
    /// Its tracked set.
    pub trk: MemberSet,
    /// Loss epoch; taken over when higher.
    pub loss: u32,
}

impl Store {
    /// Makes an epoch durable at a witness, then [`super::StoreEvent::Done`]. The caller has checked
    /// that it is above the durable one, and makes one such call at a time.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Busy`].
    ///
    /// # Panics
    /// When this replica holds data, or the epoch is not above the durable one.
    pub fn witness_epoch(&mut self, token: Token, epoch: WitnessEpoch) -> Result<(), StoreError> {
        self.check_calls()?;
        assert!(
            self.facts.is_witness() && self.facts.se < epoch.se,
            "epoch {:?} of a witness at {:?}",
            epoch.se,
            self.facts.se
        );
        self.journal.push(Item::Se(SeRecord {
            se: epoch.se,
            iss: epoch.iss,
            trk: epoch.trk,
            loss: epoch.loss,
            // It accepts no entries, so it claims none.
            w: Idx(0),
            untaint: false,
            need_dropped: false,
        }));
        self.wait_journal(Waiter::Call(token));
        Ok(())
    }

    /// The clean stop of a witness (W13), then [`super::StoreEvent::Done`].
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Busy`].
    ///
    /// # Panics
    /// When this replica holds data: its clean stop is a barrier.
    pub fn witness_seal(&mut self, token: Token) -> Result<(), StoreError> {
        self.check_calls()?;
        assert!(self.facts.is_witness(), "a replica with data has a barrier");
        self.journal.push(Item::Seal(true));
        self.wait_journal(Waiter::Call(token));
        Ok(())
    }
}
