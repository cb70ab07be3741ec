//! A change of the configuration (C20): which members have a place, and what a new one lacks.
//!
//! Crash argument. What a new member may lack is in the journal before the configuration that has
//! it; a crash in between leaves a map of someone without a place, which the next open drops. The
//! map of a member that leaves is dropped once the configuration without it is durable.

use super::api::{StoreError, Token};
use super::barriers::Queued;
use super::maps::Maps;
use super::record::{Item, MapId};
use super::state::{Store, Waiter};
use super::window::Window;
use trilith_block::limits::MEMBERS_MAX;
use trilith_block::{ChunkMap, Idx, MemberId, MemberSet, Membership};

impl Store {
    /// Makes a configuration durable, then [`super::StoreEvent::Done`]. One that is not newer than
    /// the durable one changes nothing. A member that is new in it may lack everything that is
    /// allocated here or on its way.
    ///
    /// # Errors
    /// [`StoreError::Failed`], [`StoreError::Busy`].
    pub fn reconfigure(&mut self, token: Token, config: Membership) -> Result<(), StoreError> {
        self.check_calls()?;
        if self.facts.config.generation < config.generation {
            let fresh = config.data().minus(self.facts.config.data());
            if !fresh.is_empty() {
                // A step was missed, so this replica is out of sync and nobody goes by its maps.
                // There is room for those of one configuration only.
                let old = self.facts.config.data().minus(config.data());
                drop_maps(&mut self.maps, &mut self.window, old);
            }
            self.coming = self.coming.or(config.data());
            for member in fresh.without(self.me()).iter() {
                let lacking = self.everything_here();
                self.add_journaled(MapId::dirty(member), &lacking);
            }
            self.journal.push(Item::Config(config));
        } else {
            // A record to wait for; it changes nothing.
            self.journal.push(Item::Config(self.facts.config));
        }
        self.wait_journal(Waiter::Call(token));
        Ok(())
    }

    /// Chunks that may hold anything but zeroes when all that has been received is done.
    fn everything_here(&self) -> ChunkMap {
        let mut chunks = self.maps.get(MapId::ALLOCATED).clone();
        for slot in self.window.entries(Idx(0)).filter(|slot| slot.op.is_data()) {
            chunks.add_range(slot.range);
        }
        for queued in &self.queue {
            if let Queued::Entry(entry) = queued {
                chunks.add_range(entry.range);
            }
        }
        chunks
    }

    /// A configuration is durable: who has no place in it needs no map.
    pub(crate) fn config_durable(&mut self) {
        let waiting = self.journal.waits_for_config();
        if !waiting {
            self.coming = MemberSet::EMPTY;
        }
        let strangers = MemberSet::first(MEMBERS_MAX).minus(self.known_members());
        drop_maps(&mut self.maps, &mut self.window, strangers);
    }
}

/// Empties the dirty maps of these members.
pub(crate) fn drop_maps(maps: &mut Maps, window: &mut Window, of: MemberSet) {
    for member in of.iter() {
        let member: MemberId = member;
        if !maps.get(MapId::dirty(member)).is_empty() {
            maps.clear(MapId::dirty(member), &mut *window.words);
        }
    }
}
