//! What one run is made of. The seed first picks the configuration (swarm testing: which faults
//! there are at all, how the workload looks, how small everything is), then the run draws from it.

use crate::disk::Cut;
use crate::entropy::Entropy;
use crate::network::{Character, Host};
use crate::world::{MICROS, MILLIS, Nanos, SECONDS};
use core::time::Duration;
use trilith_block::{MemberId, MemberSet};
use trilith_engine::config::{Sizes, Timing};
use trilith_replica::store::Geometry;

/// Something that goes wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A replica's process dies; `stores`: it dies after that many more stores to its window.
    ReplicaCrash {
        /// Which.
        host: Host,
        /// Stores it still makes.
        stores: Option<u64>,
        /// Until it is started again.
        down: Nanos,
    },
    /// Hosts of replicas lose power at once.
    PowerLoss {
        /// Which, with the time until each is up again.
        hosts: Vec<(Host, Nanos)>,
        /// What becomes of volatile data.
        cut: Cut,
        /// The engine's host loses power too.
        engine: bool,
    },
    /// The engine's process dies.
    EngineCrash {
        /// Until it is started again.
        down: Nanos,
        /// The new one says whom it supersedes.
        supersedes: bool,
    },
    /// A process stands still.
    Pause {
        /// Which host's.
        host: Host,
        /// How long.
        span: Nanos,
    },
    /// A link delivers nothing.
    Cut {
        /// One end.
        a: Host,
        /// The other.
        b: Host,
        /// From `b` to `a` too.
        both: bool,
        /// How long.
        span: Nanos,
        /// Connections over it break at some time meanwhile.
        breaks: bool,
    },
    /// All connections between two hosts break.
    Reset {
        /// One end.
        a: Host,
        /// The other.
        b: Host,
    },
    /// Everything from a host is late.
    Lag {
        /// Which.
        host: Host,
        /// How late.
        delay: Nanos,
        /// How long.
        span: Nanos,
    },
    /// An engine on the other host takes over with a higher attach epoch.
    TakeOver {
        /// The old one's process dies.
        kill: bool,
    },
    /// An engine on the other host takes over; it reaches all replicas but one, the old engine
    /// lives on and reaches only that one.
    Split {
        /// The one.
        host: Host,
        /// How long links are cut.
        span: Nanos,
        /// The other replicas' processes are restarted right before.
        forget: bool,
    },
    /// The processes of all replicas die at about the same time.
    AllCrash {
        /// Until they are started again, at most.
        down: Nanos,
        /// The engine's as well.
        engine: bool,
    },
    /// The disks of all replicas are full.
    AllFull {
        /// How long.
        span: Nanos,
    },
    /// The engine is asked to stop (`seal`) or to step down, and is started again.
    Handover {
        /// Stop and seal.
        seal: bool,
        /// Replicas are restarted too.
        replicas: bool,
    },
    /// A disk is slow or stands still.
    SlowDisk {
        /// Whose.
        host: Host,
        /// Factor; 0: hung.
        factor: u64,
        /// How long.
        span: Nanos,
    },
    /// Reads of a disk fail now and then.
    ReadErrors {
        /// Whose.
        host: Host,
        /// Chance in 1/65536.
        chance: u64,
        /// How long.
        span: Nanos,
    },
    /// Writes or flushes of a disk fail now and then.
    WriteErrors {
        /// Whose.
        host: Host,
        /// Chance of a write in 1/65536.
        write: u64,
        /// Chance of a flush in 1/65536.
        flush: u64,
        /// How long.
        span: Nanos,
    },
    /// A disk is full.
    Full {
        /// Whose.
        host: Host,
        /// How long.
        span: Nanos,
    },
}

/// What clients do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mix {
    /// Clients, each with one request at a time.
    pub clients: usize,
    /// Requests before the healing phase.
    pub requests_max: u64,
    /// Longest think time.
    pub think_max: Nanos,
    /// Weights of read, write, flush, discard, zeroes, block status.
    pub weights: [u64; 6],
    /// Chance in 1/256 that a write is FUA.
    pub fua: u64,
    /// Chance in 1/256 that a range is not made of whole blocks.
    pub unaligned: u64,
    /// Chance in 1/256 that a range is long.
    pub long: u64,
    /// Places in the volume that requests gather at.
    pub places: u64,
}

/// A replica is replaced by a new one (C20).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replacement {
    /// Who leaves.
    pub old: Host,
    /// It is lost for good when the operator begins; else it lives on.
    pub lost: bool,
    /// When the operator begins.
    pub at: Nanos,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its seed.
    pub seed: u64,
    /// Replicas, a witness among them.
    pub replicas: usize,
    /// The last of them is a witness (7.1).
    pub witness: bool,
    /// Size of the volume in bytes.
    pub capacity: u64,
    /// Atomic unit of the disks.
    pub sector: usize,
    /// Disks have a volatile cache.
    pub volatile_cache: bool,
    /// Replicas keep checksums of their blocks on the disk.
    pub checksums: bool,
    /// Sizes of the stores.
    pub geometry: Geometry,
    /// Times of the engines.
    pub timing: Timing,
    /// Sizes of the engines.
    pub sizes: Sizes,
    /// Links.
    pub character: Character,
    /// Rate error of each host's clock in parts per million.
    pub skew_ppm: Vec<i64>,
    /// Usual time of a disk operation.
    pub disk_delay: Nanos,
    /// Clients.
    pub mix: Mix,
    /// Arena of an engine in bytes.
    pub engine_arena: u64,
    /// Arena of a replica in bytes.
    pub replica_arena: u64,
    /// Payload bytes that a replica gives as credit.
    pub credit_bytes: u32,
    /// Length of the phase with faults.
    pub safety: Nanos,
    /// What goes wrong, and when.
    pub plan: Vec<(Nanos, Fault)>,
    /// A replica that is replaced while all this goes on.
    pub replacement: Option<Replacement>,
    /// Replicas that stay away in the healing phase.
    pub dead: Vec<Host>,
    /// Once the volume is active again, blank replicas stand in the places of the dead (T18).
    pub wiped: bool,
    /// Replicas, fewer than a majority, whose disks lie about flushes until healing begins.
    pub liars: Vec<Host>,
    /// After healing: power loss of all, and a minority does not come back (I6).
    pub final_cut: bool,
    /// The supervisor grants exclusivity (RO-M).
    pub grants: bool,
    /// Clients come through the NBD frontend.
    pub nbd: bool,
    /// Every other client comes through the iSCSI target, the others through NBD.
    pub iscsi: Option<crate::iscsi::IscsiMix>,
    /// The copies are compared while all this goes on.
    pub scrub: Option<crate::scrub::ScrubMix>,
    /// Blocks of one replica rot while faults strike.
    pub decay: Option<crate::decay::DecayMix>,
    /// Requests go through this many 4 KiB-blocks at most in one request.
    pub transfer_blocks_max: u64,
    /// What clients ask for before they draw anything.
    pub script: Vec<crate::workload::Wish>,
    /// What goes wrong after that many events.
    pub struck: Vec<(u64, Fault)>,
}

/// Seeds below it replace no replica, so that those which are kept as tests stay what they were.
const REPLACEMENTS_FROM: u64 = 300_000;
/// Seeds below it do without what [`draw_extras`] brings, for the same reason.
pub const EXTRAS_FROM: u64 = 1_000_000;
/// Seeds below it have honest disks, for the same reason.
const LIARS_FROM: u64 = 10_000_000_000_000;
/// In every other of these runs, and of those from [`CHECKSUMS_FROM`] on, replicas keep checksums.
const CHECKSUMS: core::ops::Range<u64> = 3_000_000..4_000_000;
/// Seeds between have none, for the same reason.
const CHECKSUMS_FROM: u64 = 20_000_000_000_000;
/// These runs have two replicas and a witness (7.1).
const WITNESSES: core::ops::Range<u64> = 5_000_000..6_000_000;
/// In these of them a replica goes on alone again and again, and is lost then.
const DENSE_WITNESSES: core::ops::Range<u64> = 5_500_000..6_000_000;
/// One in eight of those from this seed on has as well.
const WITNESSES_FROM: u64 = 80_000_000_000_000;
/// Number of engine hosts; they come after the replicas' hosts.
pub const ENGINE_HOSTS: usize = 2;

impl Config {
    /// Hosts in all.
    pub fn hosts(&self) -> usize {
        self.replicas + ENGINE_HOSTS + usize::from(self.replacement.is_some())
    }

    /// The host of a replica comes after those of the engines.
    pub fn is_replica(&self, host: Host) -> bool {
        host < self.replicas || host >= self.replicas + ENGINE_HOSTS
    }

    /// Host of a member: a newcomer has the number after those of the first replicas.
    pub fn host_of(&self, member: usize) -> Host {
        if member < self.replicas {
            member
        } else {
            member + ENGINE_HOSTS
        }
    }

    /// Number of the replica on a host.
    pub fn member_of(&self, host: Host) -> usize {
        if host < self.replicas {
            host
        } else {
            host - ENGINE_HOSTS
        }
    }

    /// Hosts with a replica.
    pub fn replica_hosts(&self) -> impl Iterator<Item = Host> + use<> {
        let (first, hosts) = (self.replicas, self.hosts());
        (0..first).chain(first + ENGINE_HOSTS..hosts)
    }

    /// Hosts of the first replicas that hold data.
    pub fn data_hosts(&self) -> core::ops::Range<Host> {
        0..self.replicas - usize::from(self.witness)
    }

    /// The replica on this host holds no data.
    pub fn is_witness(&self, host: Host) -> bool {
        self.witness && host + 1 == self.replicas
    }

    /// The witness, as a set of members.
    pub fn witness_set(&self) -> MemberSet {
        let member = MemberId::new(self.replicas - 1).filter(|_| self.witness);
        member.map_or(MemberSet::EMPTY, MemberSet::of)
    }

    /// Replicas that make a majority.
    pub fn majority(&self) -> usize {
        self.replicas / 2 + 1
    }

    /// True when a flush may fail and lose data that a replica has acked.
    pub fn loses_data(&self) -> bool {
        let fails = |f: &Fault| matches!(f, Fault::WriteErrors { flush, .. } if *flush > 0);
        self.plan.iter().any(|(_, fault)| fails(fault))
    }

    /// The configuration of a seed.
    pub fn from_seed(seed: u64) -> Config {
        let mut entropy = Entropy::from_seed(seed).fork(1);
        Config::draw(seed, &mut entropy)
    }

    /// A configuration drawn from `entropy`.
    pub fn draw(seed: u64, entropy: &mut Entropy) -> Config {
        let drawn = entropy.pick(&[3, 3, 3, 3, 3, 5, 1, 3]);
        let witness = has_witness(seed);
        let replicas = if witness { 3 } else { drawn };
        let extents = entropy.range(1, 5);
        let ragged = if entropy.chance(1, 3) {
            4096 * entropy.range(1, 1023)
        } else {
            0
        };
        let hosts = replicas + ENGINE_HOSTS;
        let quick = entropy.chance(1, 2);
        let mut timing = draw_timing(entropy, quick);
        let slower = if seed < IDLE_FROM { 1 } else { 2 };
        timing.heartbeat_idle = timing.heartbeat * slower;
        let safety = if quick {
            entropy.range(2, 8)
        } else {
            entropy.range(8, 30)
        } * SECONDS;
        let mix = draw_mix(entropy, safety);
        let character = Character {
            singly: false,
            delay_min: entropy.range(5, 50) * MICROS,
            delay_max: entropy.range(60, 2000) * MICROS,
            spike: if entropy.chance(1, 2) {
                entropy.below(16)
            } else {
                0
            },
            split: if entropy.chance(1, 2) {
                entropy.below(64)
            } else {
                0
            },
        };
        let skewed = entropy.chance(1, 2);
        let skew = |entropy: &mut Entropy| {
            if skewed {
                entropy.below(19_001).cast_signed() - 9_500
            } else {
                0
            }
        };
        let mut config = Config {
            seed,
            replicas,
            witness,
            capacity: extents * (4 << 20) - ragged,
            sector: entropy.pick(&[512, 4096]),
            volatile_cache: !entropy.chance(1, 5),
            checksums: false,
            geometry: draw_geometry(entropy, replicas),
            timing,
            sizes: Sizes::default(),
            character,
            skew_ppm: (0..hosts).map(|_| skew(entropy)).collect(),
            disk_delay: entropy.range(10, 300) * MICROS,
            mix,
            engine_arena: entropy.range(4, 32) << 20,
            replica_arena: entropy.range(8, 64) << 20,
            credit_bytes: entropy.pick(&[1 << 20, 2 << 20, 8 << 20, 32 << 20]),
            safety,
            plan: Vec::new(),
            replacement: None,
            dead: Vec::new(),
            wiped: seed >= LIARS_FROM && Entropy::from_seed(seed).fork(10).chance(1, 2),
            liars: draw_liars(seed, replicas),
            final_cut: entropy.chance(1, 2),
            grants: entropy.chance(1, 4),
            nbd: entropy.chance(1, 4),
            iscsi: crate::iscsi::draw(seed),
            scrub: crate::scrub::draw(seed),
            decay: None,
            transfer_blocks_max: entropy.pick(&[4, 16, 64, 256]),
            script: Vec::new(),
            struck: Vec::new(),
        };
        if config.iscsi.is_some() {
            config.nbd = true;
            config.mix.clients = config.mix.clients.max(2);
        }
        if config.nbd {
            config.mix.weights[5] = 0; // Simple replies have no block status.
        }
        config.sizes = draw_sizes(entropy, &config.geometry, replicas);
        config.plan = draw_plan(entropy, &config, quick);
        config.dead = draw_dead(entropy, replicas);
        config.draw_replacement(entropy);
        draw_extras(entropy, &mut config, quick);
        let drawn = CHECKSUMS.contains(&seed) || seed >= CHECKSUMS_FROM;
        // A disk that loses what it has flushed may keep an old page and new data, which is rot.
        config.checksums = drawn && config.liars.is_empty() && entropy.chance(1, 2);
        crate::decay::draw(&mut config);
        draw_clock_ends(&mut config);
        draw_witness(&mut config, quick);
        config
    }
}

/// Two replicas and a witness.
fn has_witness(seed: u64) -> bool {
    let late = seed >= WITNESSES_FROM && Entropy::from_seed(seed).fork(15).chance(1, 8);
    WITNESSES.contains(&seed) || late
}

/// One replica is left behind, comes back, and is slow to be rebuilt; the other one's life ends, at about any
/// moment of that, and so may the witness's and the engine's.
fn draw_lone_life(entropy: &mut Entropy, config: &mut Config, unit: Nanos) {
    let at = entropy.below(config.safety);
    let left = entropy.index(2);
    let away = entropy.range(3 * unit, 8 * unit);
    for a in config.replicas..config.replicas + ENGINE_HOSTS {
        let cut = |b, span| Fault::Cut {
            a,
            b,
            both: true,
            span,
            breaks: true,
        };
        config.plan.push((at, cut(left, away)));
        if entropy.chance(1, 4) {
            let from = at + entropy.below(away + unit);
            let span = entropy.skewed(MILLIS, 4 * unit);
            config.plan.push((from, cut(2, span)));
        }
    }
    let slow = Fault::SlowDisk {
        host: left,
        factor: entropy.range(2, 200),
        span: 3 * unit,
    };
    config.plan.push((at + away, slow));
    if entropy.chance(1, 2) {
        // What the witness is told waits, though it is there.
        let late = Fault::SlowDisk {
            host: 2,
            factor: entropy.pick(&[0, 100, 1000]),
            span: entropy.range(unit, 4 * unit),
        };
        config
            .plan
            .push((at + 3 * unit + entropy.below(away), late));
    }
    // From the moment it is left behind until a while after it is back.
    let when = at + 3 * unit + entropy.below(away + unit);
    let down = entropy.skewed(MILLIS, 2 * unit);
    let other = 1 - left;
    let power = |hosts: Vec<Host>, entropy: &mut Entropy| Fault::PowerLoss {
        hosts: hosts.into_iter().map(|host| (host, down)).collect(),
        cut: draw_cut(entropy),
        engine: entropy.chance(1, 3),
    };
    let fault = match entropy.below(6) {
        0 | 1 => power(vec![other], entropy),
        2 => power(vec![other, 2], entropy),
        3 => power(vec![0, 1, 2], entropy),
        4 => Fault::Pause {
            host: other,
            span: down,
        },
        _ => Fault::ReplicaCrash {
            host: other,
            stores: Some(entropy.below(12)),
            down,
        },
    };
    config.plan.push((when, fault));
    if entropy.chance(1, 2) {
        let fault = Fault::EngineCrash {
            down: entropy.skewed(MICROS, unit),
            supersedes: entropy.chance(3, 4),
        };
        let near = when + entropy.skewed(MICROS, unit);
        config.plan.push((near, fault));
    }
    // Clients are busy meanwhile.
    config.mix.think_max = config.mix.think_max.min(unit / 4);
}

/// What must not go wrong with two copies only, and what shall: a replica is left behind for a while,
/// then the other one goes, or the witness, or the engine, about when the first one returns.
fn draw_witness(config: &mut Config, quick: bool) {
    if !config.witness {
        return;
    }
    let mut entropy = Entropy::from_seed(config.seed).fork(16);
    // A disk that fails for good, lies or rots takes the only copy there may be; a blank replica and a
    // newcomer have no place (W16).
    let fails = |fault: &Fault| matches!(fault, Fault::WriteErrors { .. });
    config.plan.retain(|(_, fault)| !fails(fault));
    config.liars.clear();
    config.decay = None;
    config.wiped = false;
    config.replacement = None;
    config.skew_ppm.truncate(config.hosts());
    let unit = if quick { 100 * MILLIS } else { SECONDS };
    let dense = DENSE_WITNESSES.contains(&config.seed);
    if dense {
        for _ in 0..entropy.range(1, 5) {
            draw_lone_life(&mut entropy, config, unit);
        }
    }
    let episodes = if dense { 1 } else { entropy.below(4) };
    for _ in 0..episodes {
        let at = entropy.below(config.safety);
        let left = entropy.index(2);
        let gap = entropy.range(3 * unit, 9 * unit);
        let back = at + gap;
        for a in config.replicas..config.replicas + ENGINE_HOSTS {
            let cut = Fault::Cut {
                a,
                b: left,
                both: true,
                span: gap,
                breaks: entropy.chance(1, 2),
            };
            config.plan.push((at, cut));
        }
        let around = |entropy: &mut Entropy| {
            let early = entropy.skewed(MICROS, gap);
            (back + entropy.skewed(MICROS, unit)).saturating_sub(early)
        };
        for _ in 0..entropy.range(1, 3) {
            let when = around(&mut entropy);
            let host = if entropy.chance(1, 2) { 1 - left } else { 2 };
            let down = entropy.skewed(MILLIS, 6 * unit);
            let fault = match entropy.below(5) {
                0 => Fault::ReplicaCrash {
                    host,
                    stores: None,
                    down,
                },
                1 => Fault::PowerLoss {
                    hosts: vec![(host, down)],
                    cut: draw_cut(&mut entropy),
                    engine: entropy.chance(1, 4),
                },
                2 => Fault::EngineCrash {
                    down: entropy.skewed(MICROS, unit),
                    supersedes: entropy.chance(3, 4),
                },
                3 => Fault::TakeOver {
                    kill: entropy.chance(1, 2),
                },
                _ => Fault::Pause { host, span: down },
            };
            config.plan.push((when, fault));
        }
    }
    config.plan.sort_by_key(|(at, _)| *at);
}

impl Config {
    /// One run in three replaces a replica. A lost one is the minority that may be lost; it is the
    /// one whose disk may fail, so that it is the only bad one.
    fn draw_replacement(&mut self, entropy: &mut Entropy) {
        if self.seed < REPLACEMENTS_FROM || !entropy.chance(1, 3) {
            return;
        }
        let lost = self.replicas > 2 && entropy.chance(1, 2);
        let old = if lost {
            0
        } else {
            entropy.index(self.replicas)
        };
        let at = entropy.below(self.safety);
        if lost {
            self.dead.clear();
        }
        self.skew_ppm.push(self.skew_ppm[old]);
        self.replacement = Some(Replacement { old, lost, at });
    }
}

/// What was added later.
fn draw_extras(entropy: &mut Entropy, config: &mut Config, quick: bool) {
    if config.seed < EXTRAS_FROM {
        return;
    }
    let unit = if quick { 100 * MILLIS } else { SECONDS };
    if entropy.chance(1, 6) {
        // More extents than the activity log has slots.
        let slots = u64::from(config.geometry.al_slots);
        config.capacity += (slots + entropy.below(slots)) * (4 << 20);
        config.mix.places = slots + entropy.below(2 * slots);
    }
    if entropy.chance(1, 4) {
        // Everybody at one place.
        config.mix.clients = 8;
        config.mix.places = entropy.range(1, 3);
    }
    if entropy.chance(1, 4) {
        config.mix.weights[2] = entropy.range(4, 10);
    }
    for _ in 0..entropy.below(3) {
        let at = entropy.below(config.safety);
        let host = entropy.index(config.replicas);
        let fault = if config.replicas > 1 && entropy.chance(1, 3) {
            Fault::Split {
                host,
                span: entropy.range(unit, 10 * unit),
                forget: entropy.chance(1, 2),
            }
        } else if entropy.chance(3, 4) {
            let down = entropy.skewed(MICROS, unit);
            let engine = entropy.chance(2, 3);
            Fault::AllCrash { down, engine }
        } else {
            let span = entropy.skewed(MILLIS, 10 * unit);
            Fault::AllFull { span }
        };
        config.plan.push((at, fault));
    }
    config.plan.sort_by_key(|(at, _)| *at);
}

/// From these seeds on some runs have clocks as wrong as the lease allows (5.5: 2 % between two hosts).
const CLOCK_ENDS_FROM: u64 = 40_000_001_000_000;
/// From this seed on heartbeats are half as frequent while no client asks for anything.
const IDLE_FROM: u64 = 70_000_000_000_000;
/// As wrong as that, in parts per million.
const CLOCK_END: i64 = 9_900;

/// Each clock goes as fast or as slow as it may.
fn draw_clock_ends(config: &mut Config) {
    let mut entropy = Entropy::from_seed(config.seed).fork(14);
    if config.seed < CLOCK_ENDS_FROM || !entropy.chance(1, 4) {
        return;
    }
    for ppm in &mut config.skew_ppm {
        *ppm = entropy.pick(&[-CLOCK_END, CLOCK_END]);
    }
}

fn draw_dead(entropy: &mut Entropy, replicas: usize) -> Vec<Host> {
    let mut dead = Vec::new();
    if entropy.chance(1, 4) {
        for _ in 0..(replicas - 1) / 2 {
            let host = entropy.index(replicas);
            if !dead.contains(&host) {
                dead.push(host);
            }
        }
    }
    dead
}

/// One run in eight. They come from a stream of their own.
fn draw_liars(seed: u64, replicas: usize) -> Vec<Host> {
    let mut entropy = Entropy::from_seed(seed).fork(9);
    if seed < LIARS_FROM || !entropy.chance(1, 8) {
        return Vec::new();
    }
    let first = entropy.index(replicas);
    let count = entropy.index(replicas.div_ceil(2)).max(1);
    let most = (replicas - 1) / 2;
    (0..count.min(most))
        .map(|n| (first + n) % replicas)
        .collect()
}

fn draw_geometry(entropy: &mut Entropy, replicas: usize) -> Geometry {
    // Beyond the entries of clients a flush and two SYNCSETs per member must fit.
    let window_slots = if replicas > 3 {
        24
    } else {
        entropy.pick(&[12, 12, 16, 64])
    };
    let al_batch = entropy.range(1, 4) as u32;
    Geometry {
        ring_blocks: entropy.pick(&[8, 8, 16, 64]),
        al_slots: window_slots + al_batch + entropy.below(8) as u32,
        al_batch,
        window_slots,
    }
}

fn draw_sizes(entropy: &mut Entropy, geometry: &Geometry, replicas: usize) -> Sizes {
    let window_entries = u64::from(geometry.window_slots) - 2 - 2 * replicas as u64;
    Sizes {
        requests_max: entropy.range(2, 64) as usize,
        window_entries,
        expand_parts_max: entropy.range(1, 16) as u32,
        flushes_max: entropy.range(1, 4) as usize,
        lag_entries_max: entropy.range(2, window_entries.max(3)),
        lag_bytes_max: entropy.range(1, 4) << 20,
        rebuild_bytes_per_second_max: if entropy.chance(1, 8) { 8 << 20 } else { 0 },
    }
}

fn draw_timing(entropy: &mut Entropy, quick: bool) -> Timing {
    let usual = Timing::default();
    let mut timing = Timing {
        lease_enabled: !entropy.chance(1, 8),
        lossy_wait: Some(Duration::from_millis(entropy.range(100, 4000))),
        quorum_wait: Duration::from_millis(entropy.range(1000, 15_000)),
        ..usual
    };
    if quick {
        let tenth = |span: Duration| span / 10;
        timing.lease = tenth(usual.lease);
        timing.heartbeat = tenth(usual.heartbeat);
        timing.session_silence_max = tenth(usual.session_silence_max);
        timing.handshake_max = tenth(usual.handshake_max);
        timing.redial_min = tenth(usual.redial_min);
        timing.redial_max = tenth(usual.redial_max);
        timing.promise_wait = tenth(usual.promise_wait);
        timing.campaign_round_max = tenth(usual.campaign_round_max);
        timing.recampaign_max = tenth(usual.recampaign_max);
        timing.demote_after = tenth(usual.demote_after);
        timing.lag_age_max = tenth(usual.lag_age_max);
        timing.lag_age_min = tenth(usual.lag_age_min);
    }
    timing
}

fn draw_mix(entropy: &mut Entropy, safety: Nanos) -> Mix {
    let clients = entropy.range(1, 8) as usize;
    let requests_max = entropy.range(50, 500);
    // Requests are spread over the phase, with bursts.
    let share = safety * clients as u64 / requests_max;
    let mut weights = [8, 8, 1, 1, 1, 1];
    for weight in &mut weights[2..] {
        *weight = if entropy.chance(1, 2) {
            entropy.below(4)
        } else {
            0
        };
    }
    weights[0] = entropy.range(2, 10);
    weights[1] = entropy.range(2, 10);
    Mix {
        clients,
        requests_max,
        think_max: share * 3,
        weights,
        fua: if entropy.chance(1, 2) {
            entropy.below(64)
        } else {
            0
        },
        unaligned: if entropy.chance(1, 2) {
            entropy.below(128)
        } else {
            0
        },
        long: if entropy.chance(1, 2) {
            entropy.below(24)
        } else {
            0
        },
        places: entropy.range(1, 12),
    }
}

/// The fault kinds of this run, as weights.
fn draw_kinds(entropy: &mut Entropy, replicas: usize) -> [u64; 14] {
    let mut kinds = [0; 14];
    for kind in &mut kinds {
        *kind = if entropy.chance(1, 2) {
            entropy.range(1, 4)
        } else {
            0
        };
    }
    if replicas == 1 {
        kinds[11] = 0; // With one disk, a write error is the end.
    }
    kinds
}

fn draw_plan(entropy: &mut Entropy, config: &Config, quick: bool) -> Vec<(Nanos, Fault)> {
    let kinds = draw_kinds(entropy, config.replicas);
    let total: u64 = kinds.iter().sum();
    if total == 0 {
        return Vec::new();
    }
    let count = entropy.skewed(0, 20);
    let unit = if quick { 100 * MILLIS } else { SECONDS };
    // Disks that may fail writes: a minority, so that every block keeps a good copy.
    let weak: Vec<Host> = (0..(config.replicas - 1) / 2).collect();
    let mut plan = Vec::new();
    for _ in 0..count {
        let at = entropy.below(config.safety);
        let mut choice = entropy.below(total);
        let mut kind = 0;
        while choice >= kinds[kind] {
            choice -= kinds[kind];
            kind += 1;
        }
        let fault = draw_fault(entropy, config, kind, unit, &weak);
        plan.extend(fault.map(|fault| (at, fault)));
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

fn draw_cut(entropy: &mut Entropy) -> Cut {
    entropy.pick(&[
        Cut::LoseAll,
        Cut::KeepAll,
        Cut::Pages,
        Cut::Sectors,
        Cut::Sectors,
    ])
}

fn draw_fault(
    entropy: &mut Entropy,
    config: &Config,
    kind: usize,
    unit: Nanos,
    weak: &[Host],
) -> Option<Fault> {
    let replicas = config.replicas;
    let host = entropy.index(replicas);
    let span = entropy.skewed(MILLIS, 10 * unit);
    let engine = replicas + entropy.index(ENGINE_HOSTS);
    Some(match kind {
        0 => Fault::ReplicaCrash {
            host,
            stores: entropy.chance(1, 2).then(|| entropy.below(12)),
            down: entropy.skewed(MICROS, 8 * unit),
        },
        1 => {
            let host = entropy.index(replicas);
            Fault::PowerLoss {
                hosts: vec![(host, span)],
                cut: draw_cut(entropy),
                engine: false,
            }
        }
        2 => {
            let all = entropy.chance(1, 2);
            let hosts: Vec<_> = (0..replicas)
                .filter(|_| all || entropy.chance(1, 2))
                .collect::<Vec<_>>()
                .into_iter()
                .map(|host| (host, entropy.skewed(MILLIS, 6 * unit)))
                .collect();
            Fault::PowerLoss {
                hosts,
                cut: draw_cut(entropy),
                engine: entropy.chance(1, 2),
            }
        }
        3 => Fault::EngineCrash {
            down: entropy.skewed(MICROS, 5 * unit),
            supersedes: entropy.chance(3, 4),
        },
        4 => {
            let host = if entropy.chance(1, 2) { engine } else { host };
            Fault::Pause { host, span }
        }
        5 => Fault::Cut {
            a: engine,
            b: host,
            both: entropy.chance(2, 3),
            span,
            breaks: entropy.chance(1, 2),
        },
        6 => Fault::Reset { a: engine, b: host },
        7 => Fault::Lag {
            host,
            delay: entropy.skewed(MILLIS, unit / 2),
            span,
        },
        8 => Fault::TakeOver {
            kill: entropy.chance(1, 3),
        },
        9 => Fault::Handover {
            seal: entropy.chance(1, 2),
            replicas: entropy.chance(1, 2),
        },
        10 => {
            let factor = if entropy.chance(1, 4) {
                0
            } else {
                entropy.range(2, 300)
            };
            Fault::SlowDisk { host, factor, span }
        }
        11 => Fault::ReadErrors {
            host: *weak.first()?,
            chance: entropy.range(100, 20_000),
            span,
        },
        12 => Fault::WriteErrors {
            host: *weak.first()?,
            write: if entropy.chance(1, 2) {
                entropy.range(100, 10_000)
            } else {
                0
            },
            flush: if entropy.chance(1, 2) {
                entropy.range(100, 10_000)
            } else {
                0
            },
            span,
        },
        _ => Fault::Full { host, span },
    })
}
