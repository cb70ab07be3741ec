//! What a replica does to its disk and to its durable state, watched from outside, operation by
//! operation: J1, J3, B1, F1, F2, L1, L2, V3, R5, R7, D1, C3, C22, 5.1, 5.4. A broken rule is seen at once,
//! long before a run meets the crash that would make it matter.

use crate::cluster::Cluster;
use crate::disk::{Disk, File, Operation, PAGE};
use crate::network::Host;
use crate::process::Node;
use std::collections::{BTreeMap, BTreeSet};
use trilith_block::{BlockRange, Blocks, ChunkMap, ExtentNo, Idx, Lba, MemberId, MemberSet, Term};
use trilith_replica::store::{Facts, MapName, Store};
use trilith_wire::{Kind, SlotStatus};

const BLOCK: u64 = 4096;
/// Magic number of a journal block, and where its life and number are.
const JOURNAL_MAGIC: u32 = u32::from_le_bytes(*b"TRJB");
/// Offset of the second superblock copy, and where their numbers are.
const SUPERBLOCK_B: u64 = 1 << 20;

/// What is known of one replica's host.
#[derive(Debug, Default)]
pub struct Watch {
    /// Life of the process, and its facts as last seen.
    seen: Option<(u64, Facts)>,
    /// Flushes of the data in flight: the operation, and upto when it was submitted.
    flushes: BTreeMap<u64, Idx>,
    /// Entries up to it are on stable media.
    flushed: Idx,
    /// Life of the process whose flush of the data failed.
    flush_failed: Option<u64>,
    /// Term of the last PROMISE sent.
    promised: Term,
    journal_writes: u64,
    /// Window entries that discarded or zeroed a hole: they changed nothing.
    idle: BTreeSet<Idx>,
    checksum_pages: u64,
    /// What others had dirty when this replica was told to start: what its join must bring.
    expected: BTreeMap<MemberId, ChunkMap>,
}

fn number(page: &[u8], at: usize) -> u64 {
    page[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
}

fn page_of(disk: &Disk, offset: u64) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    disk.peek(File::Meta, offset, &mut page);
    page
}

/// Life and number of a journal block.
fn journal_block(page: &[u8]) -> Option<(u64, u64)> {
    let magic = page[..4].try_into().map_or(0, u32::from_le_bytes);
    (magic == JOURNAL_MAGIC).then(|| (number(page, 16), number(page, 8)))
}

/// Life, and first journal block that no checkpoint covers, by the newer superblock on the disk.
fn durable_superblock(disk: &Disk) -> (u64, u64) {
    let pages = [page_of(disk, 0), page_of(disk, SUPERBLOCK_B)];
    let newest = pages.iter().max_by_key(|p| number(&p[..], 16));
    newest.map_or((0, 0), |p| (number(p, 496), number(p, 504)))
}

fn blocks(offset: u64, len: u64) -> impl Iterator<Item = BlockRange> {
    let range = BlockRange::new(
        Lba(offset / BLOCK),
        Blocks(u32::try_from(len / BLOCK).unwrap_or(0)),
    );
    trilith_block::chunks::split_at_extents(range)
}

/// J1, J3: a block of the ring is fresh, and what it replaces is covered by a checkpoint.
fn check_ring(disk: &Disk, store: &Store, offset: u64, bytes: &[u8]) -> Option<String> {
    let sb = store.superblock();
    let ring = sb.layout.journal_offset;
    let end = ring + u64::from(sb.geometry.ring_blocks) * BLOCK;
    if !(ring..end).contains(&offset) {
        return None;
    }
    let (life, first) = durable_superblock(disk);
    for (i, new) in bytes.chunks_exact(PAGE).enumerate() {
        let (Some(new), Some(old)) = (
            journal_block(new),
            journal_block(&page_of(disk, offset + i as u64 * BLOCK)),
        ) else {
            continue;
        };
        if old.0 == new.0 && old.1 >= new.1 {
            return Some(format!(
                "J1: journal block {} is written over {}",
                new.1, old.1
            ));
        }
        if old.0 == life && old.1 >= first {
            return Some(format!(
                "J3: journal block {} replaces {}, checkpoints cover up to {first}",
                new.1, old.1
            ));
        }
    }
    None
}

impl Watch {
    /// L1, and R5 with I3: where the data of a part may go now.
    fn check_data(&self, store: &Store, part: BlockRange) -> Option<String> {
        let extent = part.start.extent();
        if !store.is_logged(extent) {
            return Some(format!("L1: {part:?} is written outside the durable log"));
        }
        let facts = store.facts();
        let recovering = self.promised == facts.term && facts.se.term < facts.term;
        let mask = part.chunk_mask();
        let needed = store.map(MapName::Need).mask(extent) & mask == mask;
        let failed = store
            .window_records(Idx(0))
            .any(|r| r.status == SlotStatus::Failed && r.range.chunk_mask() & mask != 0);
        (recovering && !needed && !failed)
            .then(|| format!("I3, R5: {part:?} is written after the promise and is not in need"))
    }

    fn check_start(&self, disk: &Disk, store: &Store, operation: &Operation) -> Option<String> {
        match operation {
            Operation::Write {
                file: File::Meta,
                offset,
                bytes,
                ..
            } => check_ring(disk, store, *offset, bytes),
            Operation::Write {
                file: File::Data,
                offset,
                bytes,
                ..
            } => blocks(*offset, bytes.len() as u64).find_map(|p| self.check_data(store, p)),
            Operation::Zero {
                file: File::Data,
                offset,
                len,
                ..
            } => blocks(*offset, *len).find_map(|p| self.check_data(store, p)),
            Operation::Zero { .. }
            | Operation::Read { .. }
            | Operation::Allocate { .. }
            | Operation::Flush { .. } => None,
        }
    }

    /// 2.5: as long as no disk has changed anything by itself, no block may be found rotten. B1: what
    /// the disk has for checksums of an extent outside the durable log is what its blocks have.
    fn check_checksums(&mut self, disk: &Disk, store: &Store) -> Option<String> {
        if store.counters().reads_rotten > 0 && disk.rotted == 0 {
            return Some("2.5: a block is found rotten on a sound disk".into());
        }
        let layout = store.superblock().layout;
        let counters = store.counters();
        let saves = counters.checksum_pages + counters.journal_writes;
        if layout.checksums_offset == 0 || saves == self.checksum_pages {
            return None;
        }
        self.checksum_pages = saves;
        let capacity = store.facts().capacity;
        for extent in (0..ExtentNo::count_for(capacity)).map(ExtentNo) {
            if store.is_logged(extent) {
                continue;
            }
            let page = page_of(disk, layout.checksum_page(extent));
            for (place, raw) in page.chunks_exact(4).enumerate() {
                let sum = raw.try_into().map_or(0, u32::from_le_bytes);
                let offset = extent.byte_offset() + place as u64 * BLOCK;
                if sum == 0 || offset >= capacity {
                    continue;
                }
                let page = (layout.data_offset + offset) / BLOCK;
                let block = disk.sound_page(page as usize);
                if sum != crc32c::crc32c(&block).max(1) {
                    return Some(format!("B1: checksum {place} of {extent:?} is another"));
                }
            }
        }
        None
    }

    /// L2: what a power loss may take or may leave behind is in the log or in the maps.
    fn check_log(&mut self, disk: &Disk, store: &Store) -> Option<String> {
        let writes = store.counters().journal_writes;
        if writes == self.journal_writes {
            return None;
        }
        self.journal_writes = writes;
        for page in disk.volatile_pages(File::Data) {
            let part = BlockRange::new(Lba(page as u64), Blocks(1));
            let (extent, mask) = (part.start.extent(), part.chunk_mask());
            let needed = store.map(MapName::Need).mask(extent) & mask != 0;
            if !store.is_logged(extent) && !needed {
                return Some(format!("L2 (c): {part:?} is volatile and not in the log"));
            }
        }
        let allocated = store.map(MapName::Allocated);
        // A clean stop empties the log when the window is in the dirty maps.
        let sealing = store.activity_log(ExtentNo(0)).next().is_none();
        let idle = std::mem::take(&mut self.idle);
        for record in store.window_records(Idx(0)) {
            // One that is submitted may still wait for its place in the log.
            let written = record.status == SlotStatus::Accepted;
            let extent = record.range.start.extent();
            let there = allocated.mask(extent) & record.range.chunk_mask() != 0;
            let logged = store.activity_log(extent).next() == Some(extent);
            // A discard or zeroes of a hole need no place (M20), whatever a copy puts there later. What
            // really changed something was in the log when it was accepted.
            let hole = !there && !logged && !store.has_payload(record.idx);
            if written && (hole || idle.contains(&record.idx)) {
                self.idle.insert(record.idx);
            } else if written && there && !logged && !sealing {
                return Some(format!(
                    "L2 (b): {:?} is above tidx and not in the log",
                    record.idx
                ));
            }
        }
        if store.facts().is_complete()
            && let Some(extent) = store.dirty_at_risk().first()
        {
            return Some(format!(
                "L2 (d): dirty bits of {extent:?} are neither logged nor durable"
            ));
        }
        None
    }

    /// F1, R7, 5.4: what the durable facts say has been flushed.
    fn check_flushed(&self, disk: &Disk, before: &Facts, facts: &Facts) -> Option<String> {
        if before.se == facts.se {
            let early = before.w < facts.w && self.flushed < facts.w;
            return early
                .then(|| format!("F1: W is {:?}, flushed up to {:?}", facts.w, self.flushed));
        }
        let volatile = disk.volatile_pages(File::Data).next();
        volatile.map(|page| {
            format!(
                "R7, 5.4: {:?} is durable and block {page} is not flushed",
                facts.se
            )
        })
    }
}

impl Cluster {
    /// A disk operation of a replica is about to start.
    pub fn watch_disk(&mut self, host: Host, node: &mut Node, op: u64, operation: &Operation) {
        let Some(store) = node.replica().and_then(|r| r.machine.store()) else {
            return;
        };
        let Some(disk) = self.hosts[host].disk.as_ref() else {
            return;
        };
        if let Operation::Flush { file: File::Data } = operation {
            self.watches[host].flushes.insert(op, store.upto());
        }
        if let Some(why) = self.watches[host].check_start(disk, store, operation) {
            self.fail(format!("{why}, replica {host}"));
        }
    }

    /// A disk operation has ended, well or not; `None`: nobody waits for it any more.
    pub fn watch_disk_end(&mut self, host: Host, op: u64, well: Option<bool>) {
        let Some(watch) = self.watches.get_mut(host) else {
            return;
        };
        match (watch.flushes.remove(&op), well) {
            (Some(upto), Some(true)) => watch.flushed = watch.flushed.max(upto),
            // A process that stands still learns it later.
            (Some(_), Some(false)) if !self.hosts[host].paused => {
                watch.flush_failed = self.hosts[host].node.as_ref().map(|n| n.life);
            }
            (None, _) | (Some(_), None | Some(false)) => {}
        }
    }

    /// A replica sends a frame. V3: nothing is in flight when it is a PROMISE.
    pub fn watch_frame(&mut self, host: Host, node: &mut Node, head: &[u8]) {
        let kind = head.get(3).and_then(|b| Kind::from_byte(*b));
        if kind != Some(Kind::Promise) {
            return;
        }
        let Some(store) = node.replica().and_then(|r| r.machine.store()) else {
            return;
        };
        self.watches[host].promised = store.facts().term;
        let running = store.changes_running() > 0;
        let writing = self.hosts[host].disk.as_ref().is_some_and(Disk::is_writing);
        if running || writing {
            self.fail(format!("V3: replica {host} promises with writes in flight"));
        }
    }

    /// A replica's process after a turn.
    pub fn watch_store(&mut self, host: Host, node: &mut Node) {
        let life = node.life;
        let Some(store) = node.replica().and_then(|r| r.machine.store()) else {
            return;
        };
        let facts = store.facts();
        let before = self.watches[host].seen.replace((life, facts));
        let before = before.filter(|(l, _)| *l == life).map(|(_, facts)| facts);
        let watch = &mut self.watches[host];
        let mut why = None;
        if watch.flush_failed == Some(life) && !store.failed() {
            why = Some("F2: it goes on after a failed flush".to_string());
        }
        if let Some(disk) = self.hosts[host].disk.as_ref() {
            why = why.or_else(|| watch.check_checksums(disk, store));
            why = why.or_else(|| watch.check_log(disk, store));
            if let Some(before) = before {
                why = why.or_else(|| watch.check_flushed(disk, &before, &facts));
            }
        }
        if self.config.witness && before.is_some_and(|b| b.loss < facts.loss) {
            why = why.or_else(|| self.check_loss(&facts));
        }
        if let Some(before) = before.filter(|b| b.se != facts.se) {
            why = why.or_else(|| self.check_epoch(host, store, &before, &facts));
        }
        if let Some(why) = why {
            self.fail(format!("{why}, replica {host}"));
        }
        self.excuse_unknown_rot(host, store);
    }

    fn durable_facts(&self) -> impl Iterator<Item = (Host, &Facts)> {
        let all = self.watches.iter().enumerate();
        all.filter_map(|(h, w)| w.seen.as_ref().map(|(_, facts)| (h, facts)))
    }

    /// A new sync epoch is durable at a replica.
    fn check_epoch(
        &mut self,
        host: Host,
        store: &Store,
        before: &Facts,
        facts: &Facts,
    ) -> Option<String> {
        if facts.se.term != before.se.term && facts.is_complete() && facts.se.n == 0 {
            // C3: before TERMSTART a majority remembers the loss epoch.
            if !self.is_decided(self.aware_of_loss(facts.loss)) {
                return Some(format!("C3: loss epoch {} at a minority", facts.loss));
            }
        }
        let me = facts.member;
        if facts.is_witness() {
            return self.check_witness(facts);
        }
        if !facts.iss.contains(me) {
            // D1: those that count know that it is out.
            let knowing = members(self.durable_facts().filter(|(h, f)| {
                let later = f.se.term > facts.se.term;
                let same = f.se.term == facts.se.term && !f.iss.contains(me) && f.is_complete();
                *h != host && (later || same)
            }));
            // One that is being rebuilt hears of the epochs of others, maybe later than of its own join.
            let was_out = before.se.term == facts.se.term && !before.is_complete();
            let known = if facts.config.has_witness() {
                facts.iss.minus(knowing).is_empty()
            } else {
                self.is_decided(knowing)
            };
            if !was_out && !known {
                return Some(format!("D1: told that it is out in {:?}", facts.se));
            }
            self.watches[host].expected = self.common_dirty(host, facts);
        } else if !before.is_complete() && before.se.term == facts.se.term {
            return self.check_join(host, store, facts);
        }
        None
    }

    /// W10: no recovery is lossy that goes by the promise of a replica which has everything.
    fn check_loss(&mut self, facts: &Facts) -> Option<String> {
        let engines = self
            .hosts
            .iter_mut()
            .filter_map(|h| h.node.as_mut()?.engine());
        let mut quorums = engines
            .filter(|e| e.uuid == facts.voted)
            .filter_map(|e| e.machine.recovers_from());
        let quorum = quorums.next()?;
        let mut others = self
            .durable_facts()
            .filter(|(_, f)| f.member != facts.member);
        if others.any(|(_, f)| facts.loss <= f.loss) {
            return None; // Handed on (C22).
        }
        let promised = || {
            self.durable_facts()
                .filter(|(_, f)| quorum.contains(f.member))
        };
        if promised().any(|(_, f)| f.term != facts.term) {
            return None; // One follows another engine by now.
        }
        let newest = promised().map(|(_, f)| f).max_by_key(|f| f.se)?;
        if newest.se.term == facts.term {
            return None; // The term has begun: nobody can tell any more who was asked.
        }
        let has_all = |f: &Facts| {
            let named = newest.iss.contains(f.member);
            f.se.term == newest.se.term && f.is_complete() && named && !f.tainted
        };
        let (host, good) = promised().find(|(_, f)| has_all(f))?;
        Some(format!(
            "W10: loss epoch {} though replica {host} has all: {good:?}",
            facts.loss
        ))
    }

    /// W4: what the witness says, all say that it names.
    fn check_witness(&self, facts: &Facts) -> Option<String> {
        let have = members(self.durable_facts().filter(|(_, f)| f.se >= facts.se));
        let early = facts.iss.minus(have);
        (!early.is_empty()).then(|| {
            let (se, iss) = (facts.se, facts.iss);
            format!("W4: the witness has {se:?} of {iss:?}, which {early:?} do not")
        })
    }

    /// W2: whom the newest epoch of this term names that is in force by what is durable. Later ones may
    /// ask for one more, but not of what was committed before they were issued.
    pub fn in_force(&self, term: u64) -> Option<MemberSet> {
        let of_term = || {
            self.durable_facts()
                .filter(move |(_, f)| f.se.term.0 == term)
        };
        let holders = |n: u32| members(of_term().filter(|(_, f)| n <= f.se.n));
        let holds = |f: &Facts| {
            let holders = holders(f.se.n);
            f.iss.minus(holders).is_empty() && holders.count() >= self.config.majority()
        };
        let newest = of_term().map(|(_, f)| f).filter(|f| holds(f));
        newest.max_by_key(|f| f.se).map(|f| f.iss)
    }

    /// Some epoch of this term is in force, or was before a newer term began.
    pub fn may_be_in_force(&self, term: u64) -> bool {
        let newer = self.durable_facts().any(|(_, f)| f.se.term.0 > term);
        newer || self.in_force(term).is_some()
    }

    /// Who holds the data: a majority that decides, or with a witness everyone whom the epoch in force
    /// names (W3). What a newer term has not begun with yet, nobody can tell.
    pub fn is_at_enough(&self, holders: MemberSet) -> bool {
        if !self.config.witness {
            return self.is_decided(holders);
        }
        let newest = self.durable_facts().map(|(_, f)| f.se.term.0).max();
        match newest.and_then(|term| self.in_force(term)) {
            Some(named) => named.minus(holders).is_empty(),
            None => !holders.is_empty(),
        }
    }

    /// What all in-sync replicas of this term but `host` have dirty for those outside trk.
    fn common_dirty(&mut self, host: Host, facts: &Facts) -> BTreeMap<MemberId, ChunkMap> {
        let absent = facts
            .config
            .voters
            .and(facts.config.data())
            .minus(facts.trk)
            .without(facts.member);
        let mut common: BTreeMap<MemberId, ChunkMap> = BTreeMap::new();
        let mut first = true;
        for other in self.config.replica_hosts() {
            if other == host {
                continue;
            }
            let store = self.hosts[other]
                .node
                .as_mut()
                .and_then(|n| n.replica())
                .and_then(|r| r.machine.store());
            let Some(store) = store else { continue };
            let f = store.facts();
            if f.se.term != facts.se.term || !f.is_complete() || f.tainted {
                continue;
            }
            for peer in absent.iter() {
                let dirty = store.map(MapName::Dirty(peer));
                let map = common.entry(peer).or_default();
                if first {
                    *map = dirty.clone();
                } else {
                    *map = both(map, dirty);
                }
            }
            first = false;
        }
        common
    }

    /// 5.4: who joins takes over what the absent lack.
    fn check_join(&mut self, host: Host, store: &Store, facts: &Facts) -> Option<String> {
        if let Some(why) = self.check_tidx(host, store, facts) {
            return Some(why);
        }
        let expected = std::mem::take(&mut self.watches[host].expected);
        let now = self.common_dirty(host, facts);
        for (peer, map) in &now {
            let Some(then) = expected.get(peer) else {
                continue;
            };
            let mut missing = both(map, then);
            missing.subtract(store.map(MapName::Dirty(*peer)));
            if !missing.is_empty() {
                return Some(format!(
                    "5.4: joins without knowing what member {peer} lacks"
                ));
            }
        }
        None
    }

    /// I13, c0: the window of who joins lists whatever another member may lack. One that is healed in
    /// place has been in its in-sync set all the time; it comes here only when it had not heard of
    /// that. It joins over a gap, so its tidx is the joining SYNCSET itself, which has no blocks (C9), and
    /// what others lack below that it has in the dirty maps that it took over.
    fn check_tidx(&mut self, host: Host, store: &Store, facts: &Facts) -> Option<String> {
        let over_gap = store.tidx() == facts.w;
        let needed = Idx(store.tidx().0 - u64::from(over_gap));
        let entries = self.entries_of(facts.se.term);
        for other in self.config.replica_hosts() {
            let there = self.hosts[other]
                .node
                .as_mut()
                .and_then(|n| n.replica())
                .and_then(|r| r.machine.store());
            let Some(there) = there.filter(|_| other != host) else {
                continue;
            };
            let f = there.facts();
            let counts = f.se.term == facts.se.term && f.is_complete() && !f.tainted;
            let lacks = |(idx, range): &(Idx, BlockRange)| {
                let known = over_gap && store.map(MapName::Dirty(f.member)).touches(*range);
                there.upto() < *idx && *idx <= needed && !known
            };
            let unknown = entries.iter().any(lacks) || (!over_gap && there.upto() < needed);
            if counts && facts.iss.contains(f.member) && unknown {
                return Some(format!(
                    "I13, c0: joins with tidx {:?}, replica {other} has {:?}",
                    store.tidx(),
                    there.upto()
                ));
            }
        }
        None
    }

    /// What the windows of this term's replicas list.
    fn entries_of(&mut self, term: Term) -> Vec<(Idx, BlockRange)> {
        let nodes = self.hosts.iter_mut().filter_map(|h| h.node.as_mut());
        let stores = nodes.filter_map(|n| n.replica().and_then(|r| r.machine.store()));
        let of_term = stores.filter(|s| s.facts().se.term == term);
        let records = of_term.flat_map(|s| s.window_records(Idx(0)).collect::<Vec<_>>());
        let of_blocks = records.filter(|r| r.range.count.0 > 0);
        of_blocks.map(|r| (r.idx, r.range)).collect()
    }

    /// C22: members where this loss epoch, or a later one, is durable.
    pub fn aware_of_loss(&self, loss: u32) -> MemberSet {
        members(self.durable_facts().filter(|(_, f)| loss <= f.loss))
    }

    /// Replicas that count as far as their own durable state says. `None`: engines of two terms may
    /// be at work, so it cannot be told.
    pub fn complete_replicas(&self) -> Option<MemberSet> {
        let mut facts = self.durable_facts().map(|(_, f)| f);
        let term = facts.next()?.term;
        let steady = self.durable_facts().all(|(_, f)| f.term == term);
        let complete = self.durable_facts().filter(|(_, f)| f.is_complete());
        steady.then(|| complete.fold(MemberSet::EMPTY, |set, (_, f)| set.with(f.member)))
    }
}

fn members<'a>(known: impl Iterator<Item = (Host, &'a Facts)>) -> MemberSet {
    known.fold(MemberSet::EMPTY, |set, (_, facts)| set.with(facts.member))
}

fn both(a: &ChunkMap, b: &ChunkMap) -> ChunkMap {
    let mut out = ChunkMap::new();
    for (extent, mask) in a.iter() {
        let mask = mask & b.mask(extent);
        if mask != 0 {
            out.set_mask(ExtentNo(extent.0), mask);
        }
    }
    out
}
