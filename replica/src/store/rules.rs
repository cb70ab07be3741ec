//! What a checker (the simulator) asks of an open store beyond its queries.

use super::record::MapId;
use super::state::Store;
use alloc::vec::Vec;
use trilith_block::ExtentNo;

impl Store {
    /// True when the extent is in the activity log that a power loss leaves (L1).
    pub fn is_logged(&self, extent: ExtentNo) -> bool {
        self.durable_log.contains(&extent)
    }

    /// Extents outside the activity log with dirty bits that a power loss would take back. Empty by
    /// L2 (d) while the journal is at rest.
    pub fn dirty_at_risk(&self) -> Vec<ExtentNo> {
        if self.journal.queued() > 0 || self.journal.is_writing() {
            return Vec::new();
        }
        let dirty = |map: MapId| {
            self.facts
                .config
                .voters
                .iter()
                .any(|m| MapId::dirty(m) == map)
        };
        let outside = |extent: ExtentNo| self.log.from(extent).next() != Some(extent);
        self.maps
            .changed()
            .filter(|(extent, map)| dirty(*map) && outside(*extent))
            .map(|(extent, _)| extent)
            .collect()
    }
}
