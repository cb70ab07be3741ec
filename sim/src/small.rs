//! A small world, searched: three replicas, two clients, two overlapping writes across the border of
//! an extent, a flush and a read; one crash and one cut of a link (or a change or pause of the
//! engine), at every place among the events.
//! Unlike a random run nothing is drawn but the delays, which `order` chooses; so for an order of
//! messages all places of the two faults are tried, one after the other and at once.

use crate::config::{Config, Fault, Mix};
use crate::disk::Cut;
use crate::entropy::Entropy;
use crate::explore::ROUND;
use crate::network::Character;
use crate::run::{Report, run};
use crate::story::Detail;
use crate::workload::Wish;
use crate::world::{MICROS, MILLIS, SECONDS};
use core::time::Duration;
use trilith_block::Op;
use trilith_engine::config::{Sizes, Timing};
use trilith_replica::store::Geometry;

/// Kinds of crash.
const CRASHES: u64 = 6;
/// Links that are cut, each for a short and a long time; or the engine dies, or stands still for
/// longer than its lease.
const CUTS: u64 = 8;

/// All worlds of one order of messages.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    order: u64,
    /// Places among the events where a fault can strike.
    places: u64,
}

impl Search {
    /// Finds how many places there are, by a run without faults.
    pub fn new(order: u64) -> Search {
        let report = run(config(order, Vec::new()), entropy(order), Detail::Off);
        Search {
            order,
            places: report.safe_events,
        }
    }

    /// Places among the events.
    pub fn places(&self) -> u64 {
        self.places
    }

    /// Number of worlds.
    pub fn worlds(&self) -> u64 {
        self.places * CRASHES * self.places * CUTS
    }

    /// Runs one.
    pub fn run(&self, world: u64, detail: Detail) -> Report {
        let (crash, rest) = (world % CRASHES, world / CRASHES);
        let (cut, rest) = (rest % CUTS, rest / CUTS);
        let (first, second) = (rest % self.places, rest / self.places % self.places);
        let faults = vec![(first, crash_of(crash)), (second, cut_of(cut))];
        run(config(self.order, faults), entropy(self.order), detail)
    }
}

fn entropy(order: u64) -> Entropy {
    Entropy::from_seed(order).fork(5)
}

fn crash_of(kind: u64) -> Fault {
    let down = 5 * MILLIS;
    let power = |hosts: Vec<usize>, engine| Fault::PowerLoss {
        hosts: hosts.into_iter().map(|h| (h, down)).collect(),
        cut: Cut::LoseAll,
        engine,
    };
    match kind {
        0 | 1 => Fault::ReplicaCrash {
            host: kind as usize,
            stores: None,
            down,
        },
        2 => power(vec![1], false),
        3 => power(vec![0, 1, 2], true),
        4 => Fault::TakeOver { kill: false },
        _ => Fault::EngineCrash {
            down,
            supersedes: true,
        },
    }
}

fn cut_of(kind: u64) -> Fault {
    match kind {
        6 => {
            return Fault::EngineCrash {
                down: MILLIS,
                supersedes: true,
            };
        }
        7 => {
            return Fault::Pause {
                host: 3,
                span: 4 * SECONDS,
            };
        }
        _ => {}
    }
    Fault::Cut {
        a: 3,
        b: (kind % 3) as usize,
        both: true,
        span: if kind < 3 { 20 * MILLIS } else { 4 * SECONDS },
        breaks: kind < 3,
    }
}

/// The world whose orders are searched ([`crate::explore`]): everything takes one round.
pub(crate) fn world_of_orders(witness: bool) -> Config {
    let mut config = config(0, Vec::new());
    config.witness = witness;
    config.character = Character {
        delay_min: ROUND,
        delay_max: ROUND,
        spike: 0,
        split: 0,
        singly: true,
    };
    // What is drawn is the lowest, a quarter.
    config.disk_delay = 4 * ROUND;
    config.safety = 30 * SECONDS;
    // Two chunks of the dirty maps, and the writes on their border: after a loss all is copied.
    config.capacity = 32 * 4096;
    config.script = script(16);
    config
}

/// Two writes that overlap at a border, a flush, and a read of both.
fn script(border: u64) -> Vec<Wish> {
    vec![
        wish(Op::Write, border - 1, 2),
        wish(Op::Write, border, 1),
        wish(Op::Flush, 0, 0),
        wish(Op::Read, border - 1, 2),
    ]
}

fn wish(op: Op, block: u64, blocks: u64) -> Wish {
    Wish {
        op,
        offset: block * 4096,
        len: blocks * 4096,
        fua: false,
        no_hole: false,
        swap: false,
    }
}

fn config(order: u64, faults: Vec<(u64, Fault)>) -> Config {
    let timing = Timing {
        lossy_wait: Some(Duration::from_millis(500)),
        quorum_wait: Duration::from_secs(10),
        ..Timing::default()
    };
    Config {
        seed: order,
        replicas: 3,
        witness: false,
        capacity: 2 * (4 << 20),
        sector: 4096,
        volatile_cache: true,
        checksums: false,
        geometry: Geometry {
            ring_blocks: 8,
            al_slots: 14,
            al_batch: 2,
            window_slots: 12,
        },
        timing,
        sizes: Sizes {
            window_entries: 4,
            ..Sizes::default()
        },
        character: Character {
            delay_min: 10 * MICROS,
            delay_max: 400 * MICROS,
            spike: 0,
            split: 0,
            singly: false,
        },
        skew_ppm: vec![0; 5],
        disk_delay: 100 * MICROS,
        mix: Mix {
            clients: 2,
            requests_max: 0,
            think_max: MILLIS,
            weights: [1, 0, 0, 0, 0, 0],
            fua: 0,
            unaligned: 0,
            long: 0,
            places: 1,
        },
        engine_arena: 8 << 20,
        replica_arena: 8 << 20,
        credit_bytes: 1 << 20,
        safety: 6 * SECONDS,
        plan: Vec::new(),
        replacement: None,
        dead: Vec::new(),
        wiped: false,
        liars: Vec::new(),
        final_cut: false,
        grants: false,
        nbd: false,
        iscsi: None,
        scrub: None,
        decay: None,
        transfer_blocks_max: 16,
        script: script(1024),
        struck: faults,
    }
}
