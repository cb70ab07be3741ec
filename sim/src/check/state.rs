//! Invariants of protocol.md 8.3 as statements about the state of all replicas at once: their
//! stores, their disks and the engine, as they are between two events. Nothing here asks what a
//! client saw; that is [`super::volume`].
//!
//! Most statements are tried at samples (every [`EVERY`] events, and when an engine becomes active),
//! since each walks over all written blocks. What concerns one moment only (a promise, a write that
//! is handed to the disk, an epoch that becomes durable) is tried at that moment.

use crate::check::volume::History;
use crate::cluster::Cluster;
use crate::disk::{Disk, File};
use crate::network::Host;
use crate::process::Node;
use std::collections::{BTreeMap, BTreeSet};
use trilith_block::{
    BlockRange, Blocks, ChunkMap, ExtentNo, Idx, Lba, MemberId, MemberSet, SyncEpoch,
};
use trilith_replica::store::{Facts, MapName, Store};
use trilith_wire::{SlotStatus, WindowRecord};

/// Events between two samples.
const EVERY: u64 = 512;
const BLOCK: u64 = 4096;

/// What the checks remember.
#[derive(Debug, Default)]
pub struct Watcher {
    /// Events at the last sample.
    sampled: u64,
    /// Samples in which a replica was compared with an authoritative one.
    pub compared: u64,
    /// Blocks that differed and were known to.
    pub excused: u64,
    /// Term of the last PROMISE that the replica's present life has sent, by host (I3).
    promised: BTreeMap<Host, (u64, u64)>,
    /// Pages that a power cut may have changed and whose replica has not opened since (I11).
    lost: BTreeMap<Host, BTreeSet<u32>>,
    /// Window of each replica at the last sample: life, epoch, positions (I13).
    windows: BTreeMap<Host, (u64, SyncEpoch, Vec<Idx>)>,
}

fn block_range(block: u64) -> BlockRange {
    BlockRange::new(Lba(block), Blocks(1))
}

fn member(host: Host) -> Option<MemberId> {
    MemberId::new(host)
}

impl Watcher {
    /// What it remembers, for the name of a state.
    pub fn digest(&self, sum: &mut crate::digest::Sum) {
        sum.text(&(&self.promised, &self.lost, &self.windows));
    }

    /// The disk of a host is another one from now on.
    pub fn forget(&mut self, host: Host) {
        self.promised.remove(&host);
        self.lost.remove(&host);
        self.windows.remove(&host);
    }
}

/// Why a block of this replica may differ from that of others, by what it says itself.
struct Claims<'a> {
    store: &'a Store,
    window: Vec<WindowRecord>,
}

impl Claims<'_> {
    fn of(store: &Store) -> Claims<'_> {
        Claims {
            store,
            window: store.window_records(Idx(0)).collect(),
        }
    }

    fn excuse(&self, block: u64) -> bool {
        let range = block_range(block);
        let touches = |name| -> bool { ChunkMap::touches(self.store.map(name), range) };
        let extent = range.start.extent();
        self.window
            .iter()
            .any(|r| r.range.start.0 <= block && block < r.range.end().0)
            || touches(MapName::Need)
            || touches(MapName::Limbo)
            || (self.store.facts().tainted
                && self.store.activity_log(extent).next() == Some(extent))
    }

    fn says_dirty(&self, of: MemberId, block: u64) -> bool {
        self.store
            .map(MapName::Dirty(of))
            .touches(block_range(block))
    }
}

fn store_of(node: &mut Option<Node>) -> Option<&Store> {
    let replica = node.as_mut()?.replica()?;
    replica.machine.store().filter(|s| !s.failed())
}

impl Cluster {
    /// Samples now and then.
    pub fn watch_state(&mut self) {
        let events = self.world.events();
        let searched = self.guide.is_some() && !self.healing.begun();
        if searched || self.watcher.sampled + EVERY <= events {
            self.sample_state();
        }
    }

    /// Tries every statement about the state as a whole.
    pub fn sample_state(&mut self) {
        self.watcher.sampled = self.world.events();
        let broken = self
            .coverage()
            .or_else(|| self.order_of_windows())
            .or_else(|| self.stable_prefix())
            .or_else(|| self.kept_slots())
            .or_else(|| self.cut_of_windows())
            .or_else(|| self.within_limits());
        if let Some(why) = broken {
            self.fail(why);
        }
    }

    /// I7, I8, I9: wherever a replica differs from one that is complete and sound in the newest
    /// epoch, one of the two knows: by its window, its need and limbo, its activity log if it is
    /// tainted, or by the dirty map that the sound one keeps for the other.
    fn coverage(&mut self) -> Option<String> {
        let seen = self.supervisor.seen_facts().map(|(_, f)| f.se).max()?;
        let data = self.config.data_hosts();
        let (hosts, history) = (&mut self.hosts, &self.history);
        let bad = |b: &u64| self.scrubs.rotten.contains(b) || self.betrayals.contains(*b);
        let mut parts: Vec<(Host, Facts, Claims<'_>, &Disk)> = Vec::new();
        let wiped = &self.healing.wiped;
        for (host, state) in hosts[data].iter_mut().enumerate() {
            if wiped.contains(&host) {
                continue; // It has no say: nobody keeps a map for it.
            }
            if let (Some(store), Some(disk)) = (store_of(&mut state.node), state.disk.as_ref()) {
                parts.push((host, store.facts(), Claims::of(store), disk));
            }
        }
        let newest = parts.iter().map(|p| p.1.se).fold(seen, SyncEpoch::max);
        for (sound, facts, claims, disk) in &parts {
            if facts.se != newest || !facts.is_complete() || facts.tainted {
                continue;
            }
            for (host, _, others, other_disk) in parts.iter().filter(|p| p.0 != *sound) {
                let Some(name) = member(*host) else { continue };
                if !facts.members().contains(name) {
                    continue; // It was replaced: nobody keeps a map for it.
                }
                self.watcher.compared += 1;
                for block in history.touched_blocks() {
                    if disk.same_page(other_disk, block as usize) || bad(&block) {
                        continue;
                    }
                    if claims.excuse(block)
                        || others.excuse(block)
                        || claims.says_dirty(name, block)
                    {
                        self.watcher.excused += 1;
                        continue;
                    }
                    return Some(format!(
                        "I9: replica {host} differs from replica {sound}, which is complete in \
                         {newest:?}, in block {block}, and neither knows it"
                    ));
                }
            }
        }
        None
    }

    /// I10: overlapping entries complete in order: none is accepted before an earlier one.
    fn order_of_windows(&mut self) -> Option<String> {
        for (host, state) in self.hosts[self.config.data_hosts()].iter_mut().enumerate() {
            let Some(store) = store_of(&mut state.node) else {
                continue;
            };
            let slots: Vec<WindowRecord> = store.window_records(Idx(0)).collect();
            for (at, late) in slots.iter().enumerate() {
                let early = slots[..at].iter().find(|early| {
                    let open = matches!(early.status, SlotStatus::Submitted | SlotStatus::Failed);
                    let overlap = early.range.start.0 < late.range.end().0
                        && late.range.start.0 < early.range.end().0;
                    open && overlap
                });
                if let (SlotStatus::Accepted, Some(early)) = (late.status, early) {
                    return Some(format!(
                        "I10: replica {host} has accepted {late:?} before {early:?}"
                    ));
                }
            }
        }
        None
    }

    /// I12: what a complete, sound replica has written for entries at or below its watermark is on
    /// stable media, and it has accepted all of them.
    fn stable_prefix(&mut self) -> Option<String> {
        for (host, state) in self.hosts[self.config.data_hosts()].iter_mut().enumerate() {
            let (Some(store), Some(disk)) = (store_of(&mut state.node), state.disk.as_ref()) else {
                continue;
            };
            if let Some(why) = above_stable(store, disk) {
                return Some(format!("I12: replica {host}: {why}"));
            }
        }
        None
    }

    /// I13, second half: within an epoch no slot above tidx goes away.
    fn kept_slots(&mut self) -> Option<String> {
        let mut broken = None;
        for (host, state) in self.hosts[self.config.data_hosts()].iter_mut().enumerate() {
            let life = state.lives;
            let Some(store) = store_of(&mut state.node) else {
                self.watcher.windows.remove(&host);
                continue;
            };
            let (se, tidx) = (store.facts().se, store.tidx());
            let slots: Vec<Idx> = store.window_records(Idx(0)).map(|r| r.idx).collect();
            if let Some((then, before, old)) = self.watcher.windows.get(&host)
                && (*then, *before) == (life, se)
                && let Some(gone) = old.iter().find(|i| **i > tidx && !slots.contains(i))
            {
                broken = Some(format!(
                    "I13: the slot of {gone:?} is gone at replica {host}, tidx {tidx:?}"
                ));
            }
            self.watcher.windows.insert(host, (life, se, slots));
        }
        broken
    }

    /// I13, first half: windows are cut only at what every counted member has accepted. (One that was
    /// healed in place starts its window anew above that, C9.)
    fn cut_of_windows(&mut self) -> Option<String> {
        let engine_host = self.supervisor.active;
        let clock = self.clock(engine_host);
        let engine = self.hosts[engine_host].node.as_mut()?.engine()?;
        if !engine.machine.mode().is_active() {
            return None;
        }
        let status = engine.machine.status(clock);
        for (host, state) in self.hosts[self.config.data_hosts()].iter_mut().enumerate() {
            let Some(store) = store_of(&mut state.node) else {
                continue;
            };
            let facts = store.facts();
            let counted = member(host).is_some_and(|m| status.counted.contains(m));
            if !counted || facts.se.term != status.term || facts.tainted {
                continue;
            }
            if store.upto() < status.tidx {
                return Some(format!(
                    "I13: the engine cuts at {:?}, replica {host} counts and has {:?}",
                    status.tidx,
                    store.upto()
                ));
            }
        }
        None
    }

    /// I20: nothing outgrows its limit.
    fn within_limits(&mut self) -> Option<String> {
        let geometry = self.config.geometry;
        let requests_max = self.config.sizes.requests_max;
        let hosts = self.hosts.len();
        for host in 0..hosts {
            let clock = self.clock(host);
            let Some(node) = self.hosts[host].node.as_mut() else {
                continue;
            };
            let (used, budget) = (node.arena.used(), node.arena.budget());
            if used > budget {
                return Some(format!("I20: host {host} holds {used} bytes of {budget}"));
            }
            if let Some(engine) = node.engine() {
                let requests = engine.machine.status(clock).requests;
                if requests > requests_max {
                    return Some(format!("I20: {requests} requests of {requests_max}"));
                }
            }
            let Some(store) = node.replica().and_then(|r| r.machine.store()) else {
                continue;
            };
            let sizes = [
                (
                    "window",
                    u64::from(store.window_count()),
                    u64::from(geometry.window_slots),
                ),
                (
                    "activity log",
                    store.activity_log(ExtentNo(0)).count() as u64,
                    u64::from(geometry.al_slots),
                ),
                (
                    "running changes",
                    store.changes_running() as u64,
                    2 * u64::from(geometry.window_slots) + 64,
                ),
            ];
            if let Some((what, found, limit)) = sizes.iter().find(|s| s.1 > s.2) {
                return Some(format!(
                    "I20: {what} of replica {host} is {found}, limit {limit}"
                ));
            }
        }
        None
    }

    /// I5: an engine has become active. Every member that counts holds all that was answered
    /// before, or what came after it.
    pub fn check_activation(&mut self, counted: trilith_block::MemberSet) {
        if let Some(why) = self.lacks_answered(counted) {
            self.fail(why);
        }
    }

    fn lacks_answered(&self, counted: trilith_block::MemberSet) -> Option<String> {
        let now = self.history.instant();
        let counts = |host: &Host| member(*host).is_some_and(|m| counted.contains(m));
        let touched = self.history.touched_blocks();
        for block in touched.filter(|b| !self.betrayals.contains(*b)) {
            let Some(good) = self.history.acceptable(block, now) else {
                continue;
            };
            for host in self.config.data_hosts().filter(counts) {
                let Some(disk) = self.hosts[host].disk.as_ref() else {
                    continue;
                };
                let word = disk.first_word(block as usize, false);
                let found = History::value_of(block * BLOCK, word);
                if found.is_none_or(|v| !good.contains(&v)) {
                    return Some(format!(
                        "I5: replica {host} counts in a new term and holds {found:?} in block \
                         {block}, answered was one of {good:?}"
                    ));
                }
            }
        }
        None
    }

    /// I3, first half: a replica sends PROMISE. Nothing older is on its way to the device.
    pub fn check_promise(&mut self, host: Host, node: &mut Node) {
        let disk = self.hosts[host].disk.as_ref();
        let busy = disk.is_some_and(|d| node.disk.keys().any(|id| d.changes(*id, File::Data)));
        let life = node.life;
        let Some(term) = node
            .replica()
            .and_then(|r| r.machine.store())
            .map(|s| s.facts().term.0)
        else {
            return;
        };
        self.watcher.promised.insert(host, (life, term));
        if busy {
            self.fail(format!(
                "I3: replica {host} promises term {term} while its device changes"
            ));
        }
    }

    /// I3, second half, and R5: a change of the data is handed to the disk. Between its promise of a
    /// term and the start of it there only a repair may do that, and what is repaired is in need.
    /// I11: its extent is in the activity log.
    pub fn check_change(&mut self, host: Host, node: &mut Node, offset: u64, len: u64) {
        let life = node.life;
        let Some(store) = node.replica().and_then(|r| r.machine.store()) else {
            return;
        };
        let facts = store.facts();
        let range = BlockRange::new(
            Lba(offset / BLOCK),
            Blocks(u32::try_from(len / BLOCK).unwrap_or(u32::MAX)),
        );
        let fenced = self.watcher.promised.get(&host) == Some(&(life, facts.term.0));
        let extent = range.start.extent();
        let logged = store.activity_log(extent).next() == Some(extent);
        let needed = store.needs(range);
        if fenced && facts.se.term < facts.term && !needed {
            self.fail(format!(
                "I3: replica {host} has promised {:?} and changes {range:?} in {:?}",
                facts.term, facts.se
            ));
        } else if !logged {
            self.fail(format!(
                "I11: replica {host} changes {range:?}, which is not in its activity log"
            ));
        }
    }

    /// What the disk calls an entry's write (I12): its term and position.
    pub fn label_of(node: &mut Node, offset: u64) -> Option<(u64, u64)> {
        let store = node.replica()?.machine.store()?;
        let term = store.facts().se.term.0;
        store
            .window_records(Idx(0))
            .find(|r| r.status == SlotStatus::Submitted && r.range.start.byte_offset() == offset)
            .map(|r| (term, r.idx.0))
    }

    /// The power of a host was cut: these pages of its data file may hold anything.
    pub fn note_lost(&mut self, host: Host, pages: Vec<u32>) {
        self.watcher.lost.entry(host).or_default().extend(pages);
    }

    /// I11 against the disk: a store stands again. All that the power cut may have changed is in its
    /// need, for it was in the activity log.
    pub fn check_opened(&mut self, host: Host, node: &mut Node) {
        let Some(lost) = self.watcher.lost.remove(&host) else {
            return;
        };
        let Some(store) = node.replica().and_then(|r| r.machine.store()) else {
            return;
        };
        let blocks = self.config.capacity / BLOCK;
        let unknown = lost.iter().find(|page| {
            u64::from(**page) < blocks && !store.needs(block_range(u64::from(**page)))
        });
        if let Some(page) = unknown {
            let facts = store.facts();
            self.fail(format!(
                "I11: a power cut may have changed block {page} of replica {host}, which is not \
                 in its need: {facts:?}"
            ));
        }
    }

    /// D1 (I16): the durable epoch of a replica says for the first time that it is out. By then an
    /// epoch without it is durable at a majority.
    pub fn check_told(&mut self, host: Host, facts: &Facts) {
        let Some(me) = member(host) else { return };
        let agree = self
            .supervisor
            .seen_facts()
            .filter(|(other, f)| {
                *other != host
                    && (f.se.term > facts.se.term
                        || (f.se.term == facts.se.term && !f.iss.contains(me)))
            })
            .fold(MemberSet::EMPTY, |set, (_, f)| set.with(f.member));
        let enough = if self.config.witness {
            // W8: its own record is the second of three.
            facts.iss.minus(agree).is_empty()
        } else {
            agree.count() >= self.config.majority()
        };
        if !enough {
            self.fail(format!(
                "D1: replica {host} is told {:?} in {:?}, and only {agree:?} have an epoch \
                 without it",
                facts.iss, facts.se
            ));
        }
    }
}

fn above_stable(store: &Store, disk: &Disk) -> Option<String> {
    let facts = store.facts();
    if !facts.is_complete() || facts.tainted {
        return None;
    }
    if facts.w > store.upto() {
        return Some(format!(
            "w {:?} is above what it has accepted, {:?}",
            facts.w,
            store.upto()
        ));
    }
    let (term, idx) = disk
        .volatile_labels()
        .find(|(_, (term, idx))| {
            *idx > 0 && (*term < facts.se.term.0 || (*term == facts.se.term.0 && *idx <= facts.w.0))
        })?
        .1;
    Some(format!(
        "entry {idx} of term {term} is volatile, w {:?} in {:?}",
        facts.w, facts.se
    ))
}
