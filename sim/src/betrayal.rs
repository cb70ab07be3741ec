//! Disks that lie about flushes, and what became of it. The protocol assumes honest flushes (A3): of a
//! block that a disk has really lost after it had said that it is durable nothing is promised, on any
//! replica, since that one may be the base of a merge or the source of a read, and nobody can tell. All
//! other blocks, of the same disk too, are checked as ever.

use crate::cluster::Cluster;
use crate::network::Host;
use std::collections::BTreeSet;

/// What lying disks have lost in a run, also those that are gone by now.
#[derive(Debug, Default)]
pub struct Betrayals {
    blocks: BTreeSet<u64>,
    /// Pages of metadata.
    pages: u64,
}

impl Betrayals {
    /// Something was lost.
    pub fn any(&self) -> bool {
        self.pages > 0 || !self.blocks.is_empty()
    }

    /// Blocks of which some disk has lost what it had said is durable.
    pub fn blocks(&self) -> &BTreeSet<u64> {
        &self.blocks
    }

    /// Is it one of them?
    pub fn contains(&self, block: u64) -> bool {
        self.blocks.contains(&block)
    }
}

impl Cluster {
    /// A disk that lied about flushes has lost what it said is durable.
    pub fn is_betrayed(&self) -> bool {
        self.betrayals.any()
    }

    /// The power of a host was lost: what its disk took back.
    pub fn note_betrayal(&mut self, host: Host) {
        let Some(disk) = self.hosts[host].disk.as_mut() else {
            return;
        };
        let lost = std::mem::take(&mut disk.betrayed);
        if lost.is_empty() {
            return;
        }
        let now = self.world.now();
        let count = lost.data.len();
        self.story.tell(now, || {
            format!("the disk of {host} takes back {count} flushed blocks")
        });
        self.betrayals.pages += lost.meta;
        self.betrayals
            .blocks
            .extend(lost.data.into_iter().map(u64::from));
    }
}
