//! Rot while faults strike, in volumes with checksums (2.5, C24). Blocks of one replica change by
//! themselves at any moment, beside crashes, power losses, rebuilds and recoveries. Nobody may read
//! them, nothing may spread them, and the last scrub finds what is left.
//!
//! What is promised, and so what is left rotten here: a block whose checksum its replica knows, and
//! of which another replica that counts has a good copy. Not known are blocks that were not written
//! since the replica was made, and all blocks of the extents that were in its activity log when its
//! process died (B2 and what 2.5 says of a death of the process alone). A replica that loses its power
//! cannot vouch for what was in its activity log either: a copy elsewhere may then be the last good
//! one. Rot of exactly these is undone at that moment, as if it had struck elsewhere.

use crate::cluster::{Cluster, Event};
use crate::config::{Config, Fault};
use crate::disk::{Disk, File, PAGE};
use crate::entropy::Entropy;
use crate::network::Host;
use crate::process::Node;
use crate::world::{MICROS, MILLIS};
use std::collections::BTreeSet;
use std::ops::Range;
use trilith_block::{BlockRange, Blocks, Idx, Lba};
use trilith_replica::store::{MapName, Store};
use trilith_wire::SlotStatus;

/// In these seeds, and in every other one from [`SEEDS_FROM`] on whose replicas keep checksums and all
/// come back, blocks rot.
const SEEDS: Range<u64> = 4_000_000..5_000_000;
const SEEDS_FROM: u64 = 30_000_000_000_000;
/// Number of the stream of choices that nothing else draws from.
const STREAM: u64 = 12;
/// Moments at which something rots, at most.
const STRIKES_MAX: u64 = 24;
/// Blocks that rot at such a moment, at most.
const BLOCKS_MAX: u64 = 6;

/// The rot of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DecayMix {
    /// Whose blocks.
    pub host: Host,
    /// When.
    pub strikes: Vec<u64>,
}

/// How far the rot of a run is.
#[derive(Debug)]
pub struct Decay {
    entropy: Entropy,
    /// Blocks that have rotted at some time.
    struck: BTreeSet<u64>,
    /// The last scrub has begun: it finds all rot that there is, known or not.
    ended: bool,
}

impl Decay {
    /// None yet.
    pub fn new(seed: u64) -> Decay {
        Decay {
            entropy: Entropy::from_seed(seed).fork(STREAM + 1),
            struck: BTreeSet::new(),
            ended: false,
        }
    }

    /// A copy of this block has rotted at some time.
    pub fn has_struck(&self, block: u64) -> bool {
        self.struck.contains(&block)
    }
}

/// Changes a run into one with rot when its seed says so. The replica that rots is the only bad one.
pub fn draw(config: &mut Config) {
    let mut entropy = Entropy::from_seed(config.seed).fork(STREAM);
    let chosen = SEEDS.contains(&config.seed);
    if chosen {
        config.checksums = true;
        config.dead.clear();
        if let Some(replacement) = config.replacement.as_mut() {
            replacement.lost = false;
        }
    }
    let late = config.seed >= SEEDS_FROM && config.checksums && entropy.chance(1, 2);
    let stays = config.dead.is_empty() && config.replacement.is_none_or(|r| !r.lost);
    if config.replicas < 3 || !(chosen || late && stays) {
        return;
    }
    // A page of checksums that cannot be read says nothing.
    let unread = |fault: &Fault| matches!(fault, Fault::ReadErrors { .. });
    config.plan.retain(|(_, fault)| !unread(fault));
    let fails = |fault: &Fault| match fault {
        Fault::WriteErrors { host, .. } => Some(*host),
        _ => None,
    };
    let weak = config.plan.iter().find_map(|(_, fault)| fails(fault));
    let host = weak.unwrap_or_else(|| entropy.index(config.replicas));
    if chosen && entropy.chance(3, 4) {
        // Extents leave the activity log only where there are more of them than it has slots.
        let slots = u64::from(config.geometry.al_slots);
        config.capacity += (slots + entropy.below(slots)) * (4 << 20);
        config.mix.places = slots + entropy.below(2 * slots);
    }
    let strikes = (0..entropy.range(1, STRIKES_MAX))
        .map(|_| {
            let about = entropy.index(config.plan.len());
            match config.plan.get(about) {
                Some((at, _)) if entropy.chance(1, 2) => {
                    (at + entropy.skewed(MICROS, 20 * MILLIS)).saturating_sub(5 * MILLIS)
                }
                Some(_) | None => entropy.below(config.safety),
            }
        })
        .collect();
    config.decay = Some(DecayMix { host, strikes });
    config.scrub = config
        .scrub
        .or_else(|| Some(crate::scrub::draw_mix(&mut entropy)));
}

/// The checksum that counts for a block, 0 = not known.
fn checksum(disk: &Disk, store: &Store, block: u64) -> u32 {
    let lba = Lba(block);
    if let Some(held) = store.checksum_held(lba) {
        return held;
    }
    let page = PAGE as u64;
    let extent = lba.extent();
    let at = store.superblock().layout.checksum_page(extent);
    let mut bytes = [0; PAGE];
    disk.peek(File::Meta, at, &mut bytes);
    let place = (block * page - extent.byte_offset()) / page;
    let raw = bytes.chunks_exact(4).nth(place as usize);
    raw.and_then(|raw| raw.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// The replica is complete in its epoch and nothing says that its copy of a block may be wrong.
fn vouches(store: &Store, block: u64) -> bool {
    let range = BlockRange::new(Lba(block), Blocks(1));
    let facts = store.facts();
    let doubts = |name| store.map(name).touches(range);
    !store.failed()
        && facts.is_complete()
        && !facts.tainted
        && !doubts(MapName::Need)
        && !doubts(MapName::Limbo)
}

impl Cluster {
    /// When blocks will rot.
    pub fn schedule_rot(&mut self) {
        let mix = self.config.decay.iter();
        let strikes: Vec<u64> = mix.flat_map(|m| m.strikes.iter().copied()).collect();
        for at in strikes {
            self.world.at(at, Event::Rot);
        }
    }

    fn store_at(&mut self, host: Host) -> Option<(&Store, &Disk)> {
        let state = &mut self.hosts[host];
        let store = state.node.as_mut()?.replica()?.machine.store()?;
        Some((store, state.disk.as_ref()?))
    }

    /// Blocks rot of which the replica knows the checksums, and others good copies.
    pub fn rot_strikes(&mut self) {
        let Some(host) = self.config.decay.as_ref().map(|mix| mix.host) else {
            return;
        };
        if self.healing.begun() {
            return;
        }
        let blocks: Vec<u64> = self.history.written_blocks().into_iter().collect();
        let count = self.decay.entropy.range(1, BLOCKS_MAX);
        let mut struck = Vec::new();
        for _ in 0..count.min(blocks.len() as u64) {
            let block = blocks[self.decay.entropy.index(blocks.len())];
            if !self.may_rot(host, block) {
                continue;
            }
            if let Some(disk) = self.hosts[host].disk.as_mut() {
                disk.rot(File::Data, block as usize, &mut self.decay.entropy);
                self.decay.struck.insert(block);
                struck.push(block);
            }
        }
        let now = self.world.now();
        self.story
            .tell(now, || format!("blocks of replica {host} rot: {struck:?}"));
    }

    fn may_rot(&mut self, host: Host, block: u64) -> bool {
        let newest = self.supervisor.seen_facts().map(|(_, f)| f.se).max();
        let known = self.store_at(host).is_some_and(|(store, disk)| {
            // What is a hole is not read from the device.
            let there = store
                .map(MapName::Allocated)
                .touches(BlockRange::new(Lba(block), Blocks(1)));
            there && checksum(disk, store, block) != 0
        });
        // Bytes that happen to be equal are no copy: nobody can tell that the other one did without an
        // entry that only this one has accepted (seed 70000000064158).
        let range = BlockRange::new(Lba(block), Blocks(1));
        let entries: Vec<Idx> = self.store_at(host).map_or(Vec::new(), |(store, _)| {
            let over = store
                .window_records(Idx(0))
                .filter(|r| r.range.overlaps(range));
            over.map(|record| record.idx).collect()
        });
        let has_all = |store: &Store| {
            let accepted = |idx: Idx| {
                let mut own = store.window_records(Idx(0));
                own.any(|r| r.idx == idx && r.status == SlotStatus::Accepted)
            };
            entries
                .iter()
                .all(|idx| *idx <= store.upto() || accepted(*idx))
        };
        let others: Vec<Host> = self.data_hosts_after();
        known
            && others
                .into_iter()
                .filter(|other| *other != host)
                .any(|other| {
                    let counts = self.store_at(other).is_some_and(|(store, _)| {
                        vouches(store, block)
                            && has_all(store)
                            && newest.is_none_or(|se| store.facts().se >= se)
                    });
                    let disks = (&self.hosts[host].disk, &self.hosts[other].disk);
                    counts
                        && matches!(disks, (Some(a), Some(b))
                        if !a.is_rotten(block as usize) && a.same_page(b, block as usize))
                })
    }

    fn cure(&mut self, host: Host, excused: impl Fn(&Disk, u64) -> bool) {
        let Some(disk) = self.hosts[host].disk.as_mut() else {
            return;
        };
        for page in disk.rotten_pages() {
            if excused(disk, page as u64) {
                disk.cure(page);
            }
        }
    }

    /// The process of `host` is about to die, or its power to go. The checksums of what is in its
    /// activity log are void from then on; after a power loss so are its copies.
    pub fn excuse_lost(&mut self, host: Host, node: Option<&mut Node>, power: bool) {
        let Some(rotting) = self.config.decay.as_ref().map(|mix| mix.host) else {
            return;
        };
        if self.decay.ended || !(power || host == rotting) {
            return;
        }
        let store = node
            .and_then(|n| n.replica())
            .and_then(|r| r.machine.store());
        // Of one that is being opened, or has been dead for a while, everything may be in the log.
        let logged = |block: u64| store.is_none_or(|s| s.is_logged(Lba(block).extent()));
        if power || store.is_some() {
            self.cure(rotting, |_, block| logged(block));
        }
    }

    /// A block whose checksum the replica has come not to know.
    pub fn excuse_unknown_rot(&mut self, host: Host, store: &Store) {
        let rots = self.config.decay.as_ref().is_some_and(|m| m.host == host);
        if rots && !self.decay.ended {
            self.cure(host, |disk, block| checksum(disk, store, block) == 0);
        }
    }

    /// What is rotten when the last scrub begins.
    pub fn end_decay(&mut self) -> BTreeSet<u64> {
        self.decay.ended = true;
        let Some(host) = self.config.decay.as_ref().map(|mix| mix.host) else {
            return BTreeSet::new();
        };
        if !self.data_hosts_after().contains(&host) {
            return BTreeSet::new();
        }
        let disk = self.hosts[host].disk.as_ref();
        disk.map_or(BTreeSet::new(), |disk| {
            let pages = disk.rotten_pages().into_iter();
            pages
                .filter(|page| disk.is_rotten(*page))
                .map(|page| page as u64)
                .collect()
        })
    }
}
