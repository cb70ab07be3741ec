//! Power loss and process death at every step of random runs, and again during recovery.

use super::disk::fates;
use super::world::{World, image, open, open_watched};
use super::*;
use std::collections::BTreeMap;
use trilith_block::{ChunkMap, Idx, SyncEpoch, Term};

/// What a run did and was promised.
#[derive(Clone, Default)]
struct Model {
    /// Values of each block in stream order, with the entry that wrote it.
    values: BTreeMap<u64, Vec<(u64, u64)>>,
    /// Next entry.
    next: u64,
    /// Highest flush answered.
    flushed: u64,
    term_asked: u64,
    term_done: u64,
    se_asked: SyncEpoch,
    se_done: SyncEpoch,
    loss_done: u32,
    /// Need that was promised to be durable and not cleared since.
    need_done: ChunkMap,
    need_asked: ChunkMap,
    /// Chunks marked for member 1 by entries that were accepted.
    skipped: ChunkMap,
    /// Entries with a skip that are not accepted yet.
    skipping: BTreeMap<u64, BlockRange>,
    sealed: bool,
    accepted: Vec<u64>,
    calls: BTreeMap<u64, Promise>,
    next_token: u64,
}

#[derive(Clone)]
enum Promise {
    Term(u64),
    Need(ChunkMap),
    Epoch(SyncEpoch),
    Seal,
}

impl Model {
    fn token(&mut self, promise: Promise) -> Token {
        self.next_token += 1;
        self.calls.insert(self.next_token, promise);
        Token(self.next_token)
    }

    fn event(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Accepted { idx } => {
                self.accepted.push(idx.0);
                if let Some(at) = self.skipping.remove(&idx.0) {
                    self.skipped.add_range(at);
                }
            }
            StoreEvent::Flushed { idx } => self.flushed = self.flushed.max(idx.0),
            StoreEvent::Done { token } => match self.calls.remove(&token.0) {
                Some(Promise::Term(term)) => self.term_done = self.term_done.max(term),
                Some(Promise::Need(need)) => {
                    self.loss_done = 1;
                    self.need_done.union(&need);
                }
                Some(Promise::Epoch(se)) => self.se_done = self.se_done.max(se),
                Some(Promise::Seal) => self.sealed = true,
                None => panic!("an answer to nothing"),
            },
            StoreEvent::Repaired { .. } | StoreEvent::ReadDone { .. } => (),
            other => panic!("{other:?}"),
        }
    }

    /// Value of a block when the entries up to `idx` have taken effect.
    fn value_at(&self, block: u64, idx: u64) -> u64 {
        let all = self.values.get(&block).map_or(&[][..], Vec::as_slice);
        all.iter()
            .rfind(|(i, _)| *i <= idx)
            .map_or(0, |(_, value)| *value)
    }

    fn record(&mut self, at: BlockRange, idx: u64, value: u64) {
        for block in at.start.0..at.end().0 {
            self.values.entry(block).or_default().push((idx, value));
        }
    }

    fn check_facts(&self, facts: &Facts) {
        assert!(
            facts.term.0 >= self.term_done && facts.term.0 <= self.term_asked,
            "{facts:?}"
        );
        assert!(
            facts.se >= self.se_done && facts.se <= self.se_asked,
            "{facts:?}"
        );
        assert!(
            facts.w.0 >= self.flushed,
            "w {:?} below flushed {}",
            facts.w,
            self.flushed
        );
        assert!(facts.loss >= self.loss_done);
    }

    /// After a power loss: I6, I9, I11 and R5 as far as one replica can see them.
    fn check_power_loss(&self, world: &mut World) {
        let facts = world.store.facts();
        self.check_facts(&facts);
        assert_eq!(
            facts.tainted, !facts.sealed,
            "tainted unless stopped cleanly"
        );
        for (extent, mask) in self.need_done.iter() {
            let need = world.store.map(MapName::Need).mask(extent);
            assert_eq!(need & mask, mask, "need of {extent:?} was promised");
        }
        for (extent, mask) in self.skipped.iter() {
            let dirty = world.store.map(MapName::Dirty(member(1))).mask(extent);
            assert_eq!(dirty & mask, mask, "dirty of {extent:?} for member 1");
        }
        for (block, all) in &self.values {
            let found = world.read(*block);
            let flushed = self.value_at(*block, facts.w.0);
            let later = all
                .iter()
                .any(|(idx, value)| *idx > facts.w.0 && *value == found);
            assert!(
                found == flushed || later,
                "block {block}: {found} is neither {flushed} as flushed (w {:?}) nor later: {all:?}",
                facts.w
            );
            // Where it is not in need the device was touched by nothing but what was accepted.
            let accepted = all.iter().rfind(|(idx, _)| self.accepted.contains(idx));
            let value = accepted.map_or(0, |(_, value)| *value);
            assert!(
                found == value || world.store.needs(range(*block, 1)),
                "block {block} holds {found}, not {value}, and is not in need: {all:?}",
            );
        }
        assert_eq!(check(&image(world.disk.clone()).unwrap()), []);
    }

    /// After the death of the process alone: nothing accepted is lost.
    fn check_restart(&self, world: &mut World) {
        assert!(world.opened.resumed);
        self.check_facts(&world.store.facts());
        for idx in &self.accepted {
            assert!(world.store.is_accepted(Idx(*idx)), "entry {idx}");
        }
        for (extent, mask) in self.skipped.iter() {
            let dirty = world.store.map(MapName::Dirty(member(1))).mask(extent);
            assert_eq!(dirty & mask, mask, "dirty of {extent:?} for member 1");
        }
        for (block, all) in &self.values {
            let found = world.read(*block);
            let accepted = all.iter().rfind(|(idx, _)| self.accepted.contains(idx));
            let from = accepted.map_or(0, |(idx, _)| *idx);
            let value = accepted.map_or(0, |(_, value)| *value);
            let later = all
                .iter()
                .any(|(idx, value)| *idx > from && *value == found);
            assert!(
                found == value || later,
                "block {block}: {found}, accepted {value}"
            );
        }
    }
}

/// One random call.
fn act(world: &mut World, model: &mut Model, random: &mut Random) {
    let room = model.next < world.store.tidx().0 + 4;
    match random.below(16) {
        0..=6 if room => {
            model.next += 1;
            let idx = model.next;
            let extent = random.below(EXTENTS - 1);
            let at = range(
                extent * BLOCKS_PER_EXTENT + random.below(34),
                1 + (idx % 2) as u32,
            );
            if random.below(3) == 0 {
                let at = range(at.start.0, 1 + random.below(40) as u32);
                model.record(at, idx, 0);
                let change = if random.below(2) == 0 {
                    Change::Discard
                } else {
                    Change::Zeroes
                };
                world.change(idx, at, change);
            } else {
                model.record(at, idx, 1000 + idx);
                let mut skip = MemberSet::EMPTY;
                if random.below(3) == 0 {
                    skip = MemberSet::of(member(1));
                    model.skipping.insert(idx, at);
                }
                world.write_skip(idx, at, 1000 + idx, skip);
            }
        }
        7 | 8 if room => {
            model.next += 1;
            world.flush(model.next);
        }
        9 | 10 => {
            let upto = world.store.upto();
            world.store.set_tidx(upto);
        }
        11 => {
            model.term_asked += 1;
            let token = model.token(Promise::Term(model.term_asked));
            world
                .store
                .vote(token, Term(model.term_asked), id(4), 0)
                .unwrap();
        }
        12 => {
            let extent = ExtentNo(random.below(EXTENTS - 1) as u32);
            model.need_asked.add_mask(extent, 1 << random.below(64));
            let token = model.token(Promise::Need(model.need_asked.clone()));
            world.store.reconcile(token, &model.need_asked, 1).unwrap();
        }
        13 if room && model.next > 0 => {
            model.next += 1;
            model.se_asked.n += 1;
            let token = model.token(Promise::Epoch(model.se_asked));
            let set = SyncSet {
                idx: Idx(model.next),
                se: model.se_asked,
                iss: MemberSet::first(3),
                trk: MemberSet::first(3),
                join: None,
            };
            let taken = world
                .store
                .sync_set(token, set, &mut world.buffers, &mut world.out);
            assert_eq!(taken, Ok(Admission::Taken));
        }
        14 if random.below(8) == 0 && world.store.upto() == world.store.max_idx() => {
            let token = model.token(Promise::Seal);
            world
                .store
                .seal(token, &mut world.buffers, &mut world.out)
                .unwrap();
        }
        _ => (),
    }
    world.drain();
}

/// Recovers from `disk` after a power loss, loses power again at some of the steps of the recovery,
/// and checks every outcome.
fn recover(disk: disk::TestDisk, model: &Model, depth: u32, random: &mut Random) {
    let mut again = Vec::new();
    let mut chance = random.clone();
    let world = open_watched(disk, &TestWords::new(), id(9), |disk, inflight| {
        if depth > 0 && chance.below(3) == 0 {
            let units = disk.undecided(inflight);
            let all = fates(units.len(), 0, &mut chance);
            let chosen = &all[chance.below(all.len() as u64) as usize];
            again.push(disk.after_power_loss(&units, chosen));
        }
    });
    let mut world = world.unwrap();
    assert!(!world.opened.maps_lost, "{:?}", world.opened);
    model.check_power_loss(&mut world);
    *random = chance;
    for disk in again {
        recover(disk, model, depth - 1, random);
    }
}

fn run(seed: u64, steps: u32, checksums: bool) {
    let mut random = Random(seed);
    let mut world = if checksums {
        World::with_checksums()
    } else {
        World::new()
    };
    let mut model = Model::default();
    for step in 0..steps {
        act(&mut world, &mut model, &mut random);
        for _ in 0..random.below(3) {
            if !world.inflight.is_empty() {
                let place = random.below(world.inflight.len() as u64) as usize;
                world.complete(place);
            }
        }
        world.settle();
        for event in world.take_events() {
            model.event(event);
        }
        if !world.store.facts().sealed {
            model.sealed = false;
        }
        if step % 2 == 1 {
            continue;
        }
        let units = world.disk.undecided(&world.inflight);
        let few = if step % 16 == 0 { 7 } else { 2 };
        for (n, chosen) in fates(units.len(), few, &mut random).iter().enumerate() {
            let disk = world.disk.after_power_loss(&units, chosen);
            let depth = if n % 8 == 0 { 1 } else { 0 };
            recover(disk, &model, depth, &mut random);
        }
        if step % 4 == 0 {
            let mut disk = world.disk.clone();
            let mut buffers = TestBuffers::default();
            std::mem::swap(&mut buffers, &mut world.buffers);
            for submitted in world.inflight.iter().filter(|_| random.below(2) == 0) {
                disk.complete(submitted, &mut buffers);
            }
            std::mem::swap(&mut buffers, &mut world.buffers);
            let mut next = open(disk, &world.words.deep_clone(), BOOT).unwrap();
            model.check_restart(&mut next);
        }
    }
}

#[test]
fn promises_hold_over_power_loss_at_every_step_and_again_during_recovery() {
    for seed in 0..3 {
        run(seed, 40, false);
    }
}

/// The same with checksums: a stale one would make a read fail.
#[test]
fn checksums_are_those_of_the_data_over_power_loss_at_every_step() {
    for seed in 10..13 {
        run(seed, 40, true);
    }
}

#[test]
fn maps_of_extents_that_left_the_log_survive_a_power_loss() {
    let mut world = World::new();
    for n in 0..8 {
        world.write_skip(n + 1, range(n * 1024, 1), n + 1, MemberSet::of(member(1)));
        world.run();
        world.store.set_tidx(Idx(n + 1));
    }
    assert!(world.store.counters().al_evictions >= 3);
    let mut next = open(
        world.disk.after_power_loss(&[], &[]),
        &TestWords::new(),
        id(9),
    )
    .unwrap();
    for extent in 0..8 {
        let dirty = next
            .store
            .map(MapName::Dirty(member(1)))
            .mask(ExtentNo(extent));
        assert_eq!(dirty & 1, 1, "L2 d: {extent}");
    }
    assert!(
        next.store.map(MapName::Need).extent_count() <= 5,
        "only the log"
    );
    assert_eq!(next.read(0), 1, "the chunk counts as allocated");
}

#[test]
fn maps_of_extents_that_left_the_log_are_in_the_journal_without_any_checkpoint() {
    let mut world = World::with(Geometry {
        ring_blocks: 128,
        ..SMALL
    });
    let before = world.store.counters().checkpoints;
    for n in 0..8 {
        world.write_skip(n + 1, range(n * 1024, 1), n + 1, MemberSet::of(member(1)));
        world.run();
        world.store.set_tidx(Idx(n + 1));
    }
    let counters = world.store.counters();
    assert!(counters.al_evictions >= 3);
    assert_eq!(counters.checkpoints, before, "only the journal has them");
    let disk = world.disk.after_power_loss(&[], &[]);
    let log = image(disk.clone()).unwrap().activity_log;
    let mut next = open(disk, &TestWords::new(), id(9)).unwrap();
    for extent in 0..8 {
        let at = ExtentNo(extent);
        let dirty = next.store.map(MapName::Dirty(member(1))).mask(at);
        let allocated = next.store.map(MapName::Allocated).mask(at);
        let full = log.contains(&at);
        assert_eq!(dirty & 1, 1, "L2 d: {extent}");
        assert_eq!(allocated & 1, 1, "L2 d: {extent}");
        assert!(full || (dirty, allocated) == (1, 1), "no more than that");
    }
    assert_eq!(next.read(0), 1);
}
