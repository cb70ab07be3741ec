//! Power loss and process death at every step of random runs, and again during recovery.

use super::disk::fates;
use super::world::{World, image, open, open_watched};
use super::*;
use std::collections::BTreeMap;
use trilith_block::limits::MEMBERS_MAX;
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

fn run(seed: u64, steps: u32) {
    let mut random = Random(seed);
    let mut world = World::new();
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
        run(seed, 40);
    }
}

#[test]
fn a_power_loss_at_any_step_of_a_term_start_leaves_the_old_or_the_new_epoch_whole() {
    let mut random = Random(5);
    let mut world = World::new();
    world.write(1, range(0, 1), 1);
    world.store.need_set(Token(1), &one_chunk(2)).unwrap();
    world.run();
    let mut dirty: Box<[ChunkMap; MEMBERS_MAX]> =
        Box::new(std::array::from_fn(|_| ChunkMap::new()));
    dirty[2] = one_chunk(4);
    let start = TermStart {
        term: Term(3),
        start: Idx(50),
        iss: MemberSet::first(2),
        loss: 0,
        limbo: one_chunk(3),
        dirty,
    };
    world
        .store
        .term_start(Token(2), start, &mut world.buffers, &mut world.out)
        .unwrap();
    world.drain();
    let mut done = false;
    let mut seen = [0, 0];
    loop {
        world.settle();
        done |= world
            .take_events()
            .contains(&StoreEvent::Done { token: Token(2) });
        let units = world.disk.undecided(&world.inflight);
        for chosen in fates(units.len(), 8, &mut random) {
            let disk = world.disk.after_power_loss(&units, &chosen);
            let next = open(disk, &TestWords::new(), id(9)).unwrap();
            let facts = next.store.facts();
            let new = facts.se.term == Term(3);
            seen[usize::from(new)] += 1;
            assert!(new || !done);
            assert_eq!(facts.w, if new { Idx(50) } else { Idx(0) });
            assert_eq!(
                facts.iss,
                if new {
                    MemberSet::first(2)
                } else {
                    MemberSet::first(3)
                }
            );
            let need = next.store.map(MapName::Need);
            assert_eq!(need.mask(ExtentNo(2)) & 1, u64::from(!new));
            if new {
                assert_eq!(next.store.map(MapName::Limbo).mask(ExtentNo(3)) & 1, 1);
                let dirty = next.store.map(MapName::Dirty(member(2)));
                assert_eq!(dirty.mask(ExtentNo(4)) & 1, 1);
            }
        }
        let resumed = open(world.disk.clone(), &world.words.deep_clone(), BOOT).unwrap();
        assert!(resumed.opened.resumed);
        if resumed.store.facts().se.term == Term(3) {
            assert_eq!(resumed.store.upto(), Idx(50));
            assert_eq!(resumed.store.window_count(), 0);
        }
        if world.inflight.is_empty() {
            break;
        }
        world.complete(0);
    }
    assert!(done && seen[0] > 0 && seen[1] > 0, "{seen:?}");
}

fn one_chunk(extent: u32) -> ChunkMap {
    let mut map = ChunkMap::new();
    map.set_mask(ExtentNo(extent), 1);
    map
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

/// The process dies between the record of a SYNCSET and its slot.
fn killed_before_the_slot(joins: bool) -> World {
    let mut world = World::new();
    for idx in 1..3 {
        world.write(idx, range(idx, 1), idx);
    }
    world.run();
    let join = Join {
        limbo: ChunkMap::new(),
        dirty: Box::new(std::array::from_fn(|_| ChunkMap::new())),
    };
    let set = SyncSet {
        idx: Idx(3),
        se: SyncEpoch {
            term: Term(0),
            n: 1,
        },
        iss: MemberSet::first(2),
        trk: MemberSet::first(3),
        join: joins.then_some(join),
    };
    world
        .store
        .sync_set(Token(1), set, &mut world.buffers, &mut world.out)
        .unwrap();
    world.drain();
    world.complete(0);
    world.settle();
    assert_eq!(world.inflight.len(), 1, "the record");
    let words = world.words.deep_clone();
    world.run();
    assert_eq!(world.store.upto(), Idx(3));
    open(world.disk, &words, BOOT).unwrap()
}

#[test]
fn a_process_killed_between_the_record_and_the_slot_of_a_sync_set_comes_back_with_both() {
    for joins in [false, true] {
        let mut next = killed_before_the_slot(joins);
        assert!(next.opened.resumed);
        assert_eq!(next.store.facts().se.n, 1);
        assert_eq!(next.store.facts().w, Idx(3));
        assert_eq!(next.store.upto(), Idx(3), "it was accepted: W says so");
        assert_eq!(next.store.max_idx(), Idx(3));
        assert_eq!(next.store.window_count(), 2, "the entries stay");
        next.write(4, range(4, 1), 4);
        next.run();
        assert_eq!(next.store.upto(), Idx(4));
        let again = next.restart();
        assert_eq!(again.store.upto(), Idx(4), "its slot is there");
    }
}

fn join_at(idx: u64) -> SyncSet {
    let mut dirty: Box<[ChunkMap; MEMBERS_MAX]> =
        Box::new(std::array::from_fn(|_| ChunkMap::new()));
    dirty[2] = one_chunk(4);
    SyncSet {
        idx: Idx(idx),
        se: SyncEpoch {
            term: Term(0),
            n: 1,
        },
        iss: MemberSet::first(3),
        trk: MemberSet::first(3),
        join: Some(Join {
            limbo: one_chunk(3),
            dirty,
        }),
    }
}

/// 6.2: healed in place after a power loss, the join is the first entry.
#[test]
fn a_process_death_or_power_loss_at_any_step_of_a_join_over_a_gap_leaves_it_out_or_in() {
    for idx in [4, 6] {
        let mut world = World::new();
        world.write(1, range(0, 1), 1);
        world.flush(2);
        world.run();
        world.write(3, range(1, 1), 3);
        world.run();
        let lost = world.disk.after_power_loss(&[], &[]);
        let mut world = open(lost, &TestWords::new(), BOOT).unwrap();
        assert_eq!(world.store.upto(), Idx(2));
        assert!(world.store.facts().tainted);
        let taken =
            world
                .store
                .sync_set(Token(1), join_at(idx), &mut world.buffers, &mut world.out);
        assert_eq!(taken, Ok(Admission::Taken));
        world.drain();
        let mut seen = [0, 0];
        let mut done = false;
        loop {
            world.settle();
            done |= world
                .take_events()
                .contains(&StoreEvent::Done { token: Token(1) });
            let units = world.disk.undecided(&world.inflight);
            for chosen in fates(units.len(), 8, &mut Random(idx)) {
                let disk = world.disk.after_power_loss(&units, &chosen);
                let next = open(disk, &TestWords::new(), id(9)).unwrap();
                check_join(&next, idx, done);
            }
            let mut disk = world.disk.clone();
            for submitted in &world.inflight {
                disk.complete(submitted, &mut world.buffers);
            }
            for disk in [world.disk.clone(), disk] {
                let next = open(disk, &world.words.deep_clone(), BOOT).unwrap();
                let joined = check_join(&next, idx, done);
                seen[usize::from(joined)] += 1;
                assert!(next.opened.resumed);
                assert_eq!(next.store.facts().tainted, !joined);
                assert_eq!(next.store.upto(), Idx(if joined { idx } else { 2 }));
            }
            if world.inflight.is_empty() {
                break;
            }
            world.complete(0);
        }
        assert!(done && seen[0] > 0 && seen[1] > 0, "{seen:?}");
        world.write(idx + 1, range(7, 1), 7);
        world.run();
        assert_eq!(world.restart().store.upto(), Idx(idx + 1));
    }
}

fn check_join(next: &World, idx: u64, done: bool) -> bool {
    let facts = next.store.facts();
    let joined = facts.se.n == 1;
    assert!(joined || !done);
    assert_eq!(facts.w, Idx(if joined { idx } else { 2 }));
    let covered = |name, extent| next.store.map(name).mask(ExtentNo(extent)) & 1;
    if joined {
        assert_eq!(covered(MapName::Limbo, 3), 1);
        assert_eq!(covered(MapName::Dirty(member(2)), 4), 1);
    } else {
        assert_eq!(covered(MapName::Need, 0), 1, "of the log");
    }
    joined
}

#[test]
fn an_open_cut_twice_always_finds_a_superblock_whose_checkpoint_is_whole() {
    let mut random = Random(9);
    let mut world = World::new();
    world.write(1, range(0, 1), 1);
    world.store.vote(Token(1), Term(5), id(3), 0).unwrap();
    world.run();
    // A checkpoint with something in it, so that an overwritten one shows.
    world = world.restart();
    let mut first = Vec::new();
    let start = world.disk.after_power_loss(&[], &[]);
    open_watched(start, &TestWords::new(), id(9), |disk, _| {
        first.push(disk.clone())
    })
    .unwrap();
    for disk in first {
        let mut second = Vec::new();
        let disk = disk.after_power_loss(&[], &[]);
        open_watched(disk, &TestWords::new(), id(9), |disk, inflight| {
            let units = disk.undecided(inflight);
            for chosen in fates(units.len(), 0, &mut random) {
                second.push(disk.after_power_loss(&units, &chosen));
            }
        })
        .unwrap();
        for disk in second {
            let last = open(disk, &TestWords::new(), id(9)).unwrap();
            assert!(!last.opened.maps_lost);
            assert_eq!(last.store.facts().term, Term(5));
            assert!(last.store.needs(range(0, 1)));
        }
    }
}
