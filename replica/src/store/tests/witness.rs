//! The store of a witness: power loss and process death at every step of its records.

use super::disk::fates;
use super::world::{World, formatted, image, open, open_watched};
use super::*;
use trilith_block::{Idx, Membership, SyncEpoch, Term};

fn witness_params() -> FormatParams {
    FormatParams {
        member: member(2),
        witness: MemberSet::of(member(2)),
        iss: MemberSet::first(2),
        geometry: Geometry {
            ring_blocks: 8,
            ..Geometry::WITNESS
        },
        ..params()
    }
}

/// What the records asked for so far make of the facts, and how many of them were answered.
struct Run {
    /// Facts after each record.
    after: Vec<Facts>,
    answered: usize,
}

impl Run {
    fn call(&mut self, world: &mut World, random: &mut Random) {
        let mut facts = *self.after.last().unwrap();
        let token = Token(u64::try_from(self.after.len()).unwrap());
        let store = &mut world.store;
        let result = match random.below(5) {
            0 => {
                let attach = random.below(4);
                facts.term = Term(facts.term.0 + 1);
                facts.voted = id(facts.term.0 as u8);
                facts.attach_epoch = facts.attach_epoch.max(attach);
                store.vote(token, facts.term, facts.voted, attach)
            }
            1 => {
                facts.loss = facts.loss.max(random.below(9) as u32);
                store.reconcile(token, &ChunkMap::new(), facts.loss)
            }
            2 => {
                facts.config = Membership {
                    generation: facts.config.generation + 1,
                    ..facts.config
                };
                store.reconfigure(token, facts.config)
            }
            3 if facts.se.term == facts.term => {
                facts.sealed = true;
                store.witness_seal(token)
            }
            _ => {
                let begins = facts.se.term < facts.term;
                facts.se = SyncEpoch {
                    term: facts.term,
                    n: if begins { 0 } else { facts.se.n + 1 },
                };
                facts.iss = MemberSet(1 + random.below(3) as u32);
                facts.trk = MemberSet(0b011);
                facts.loss = facts.loss.max(random.below(9) as u32);
                facts.sealed = false;
                let epoch = WitnessEpoch {
                    se: facts.se,
                    iss: facts.iss,
                    trk: facts.trk,
                    loss: facts.loss,
                };
                store.witness_epoch(token, epoch)
            }
        };
        result.unwrap();
        self.after.push(facts);
    }

    fn check(&self, next: &World) {
        let facts = next.store.facts();
        let found = self.after.iter().rposition(|f| *f == facts);
        let found = found.unwrap_or_else(|| panic!("part of a record: {facts:?}"));
        assert!(
            self.answered <= found,
            "{found} records left of {}",
            self.answered
        );
        assert!(!facts.tainted && facts.w == Idx(0));
        assert!(!next.opened.maps_lost && !next.opened.newly_tainted);
        assert!(!next.store.has_need() && next.store.upto() == Idx(0));
    }
}

/// One call at a time, as the machine makes them (the stream waits behind each).
#[test]
fn a_power_loss_or_death_at_any_step_leaves_whole_records_and_never_a_taint() {
    for seed in 0..4 {
        let mut random = Random(seed);
        let mut world = open(formatted(&witness_params()), &TestWords::new(), BOOT).unwrap();
        let mut run = Run {
            after: vec![world.store.facts()],
            answered: 0,
        };
        for _ in 0..30 {
            run.call(&mut world, &mut random);
            loop {
                world.settle();
                for event in world.take_events() {
                    let token = u64::try_from(run.after.len() - 1).unwrap();
                    assert_eq!(
                        event,
                        StoreEvent::Done {
                            token: Token(token)
                        }
                    );
                    run.answered = run.after.len() - 1;
                }
                let units = world.disk.undecided(&world.inflight);
                for chosen in fates(units.len(), 4, &mut random) {
                    let disk = world.disk.after_power_loss(&units, &chosen);
                    let watched = |disk: &disk::TestDisk, inflight: &[disk::Submitted]| {
                        if random.below(8) == 0 {
                            // Again, while it opens.
                            let units = disk.undecided(inflight);
                            let fate = vec![random.below(2) == 0; units.len()];
                            let disk = disk.after_power_loss(&units, &fate);
                            run.check(&open(disk, &TestWords::new(), id(8)).unwrap());
                        }
                    };
                    let next = open_watched(disk, &TestWords::new(), id(9), watched).unwrap();
                    assert!(!next.opened.resumed);
                    run.check(&next);
                }
                let mut disk = world.disk.clone();
                for submitted in &world.inflight {
                    disk.complete(submitted, &mut world.buffers);
                }
                for disk in [world.disk.clone(), disk] {
                    let next = open(disk, &world.words.deep_clone(), BOOT).unwrap();
                    assert!(next.opened.resumed);
                    run.check(&next);
                }
                if world.inflight.is_empty() {
                    break;
                }
                world.complete(0);
            }
            assert_eq!(run.answered, run.after.len() - 1, "answered");
        }
        assert!(
            world.store.counters().checkpoints > 1,
            "the ring went round"
        );
        assert_eq!(world.store.counters().data_flushes, 0);
    }
}

#[test]
fn a_witness_that_restarts_goes_on_above_what_it_has() {
    let mut world = open(formatted(&witness_params()), &TestWords::new(), BOOT).unwrap();
    for n in 0..20 {
        let epoch = WitnessEpoch {
            se: SyncEpoch {
                term: Term(1 + n / 4),
                n: u32::try_from(n % 4).unwrap(),
            },
            iss: MemberSet::first(1 + usize::try_from(n % 2).unwrap()),
            trk: MemberSet::first(2),
            loss: u32::try_from(n).unwrap(),
        };
        world.store.witness_epoch(Token(n), epoch).unwrap();
        world.run();
        world.take_events();
        world = world.restart();
        assert!(world.opened.resumed);
        let facts = world.store.facts();
        assert_eq!((facts.se, facts.iss), (epoch.se, epoch.iss));
    }
}

/// Maps and an activity log would be lost with its window; so it must have none.
#[test]
fn a_witness_has_no_room_for_maps() {
    let params = witness_params();
    let layout = params.layout();
    assert_eq!(layout.data_offset, 0);
    assert_eq!(layout.checksums_offset, 0);
    let larger = FormatParams {
        capacity: 1 << 44,
        checksums: true,
        same_device: true,
        zero_data: true,
        ..params
    };
    assert_eq!(larger.layout(), layout);
    let image = image(formatted(&larger)).unwrap();
    assert_eq!(image.extents(), 0);
    assert_eq!(image.facts.capacity, 1 << 44);
}
