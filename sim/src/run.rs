//! One run: a phase with faults, then healing. Everything that was asked for must end, the volume
//! must become active, a full set of replicas must become byte-equal, and what clients saw must have
//! an order. Some runs end with a power cut of everything and the loss of a minority (I6).

use crate::check::store::Watch;
use crate::check::volume::{Action, History};
use crate::cluster::{Cluster, Event};
use crate::config::{Config, ENGINE_HOSTS, EXTRAS_FROM, Fault};
use crate::disk::{Cut, Disk, File};
use crate::entropy::Entropy;
use crate::limits::EVENTS_MAX;
use crate::network::{Host, Network};
use crate::process::{Clock, HostState};
use crate::story::{Detail, Story};
use crate::supervisor::{Counts, Supervisor};
use crate::words::SimWords;
use crate::workload::{Wish, Workload, reads_of};
use crate::world::{MICROS, MILLIS, Nanos, SECONDS, World};
use std::panic::{AssertUnwindSafe, catch_unwind};
use trilith_block::{MemberSet, Op};
use trilith_engine::Mode;
use trilith_replica::store::Layout;

/// Time for the volume to become active once nothing is wrong any more (I22 says 30 s; waiting for
/// broken connections to be noticed comes on top).
const ACTIVE_WITHIN: Nanos = 90 * SECONDS;
/// An engine may believe for this long that sessions stand whose replicas have lost power.
const NOTICED_AFTER: Nanos = 5 * SECONDS;
/// Time for requests to be answered by an active volume.
const DUTY_WITHIN: Nanos = 90 * SECONDS;
/// Time for the rebuild of tiny volumes.
const REBUILD_WITHIN: Nanos = 180 * SECONDS;
/// Time for two scrubs of a tiny volume at the lowest rate.
const SCRUB_WITHIN: Nanos = 600 * SECONDS;

/// How far the healing is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Faults strike.
    Safety,
    /// Waiting for an active volume.
    Active,
    /// Everything written is read, new things are written and flushed.
    Duty,
    /// Waiting for all replicas to be in sync.
    Rebuild,
    /// Waiting for silence, then comparing.
    Settle,
    /// Some copies have rotted: waiting for the last scrub.
    Scrub,
    /// After the final power cut: waiting for an active volume.
    AfterCut,
    /// Reading everything.
    LastDuty,
    /// Over.
    Done,
}

/// State of the healing phase.
#[derive(Debug)]
pub struct Healing {
    /// How far it is.
    pub phase: Phase,
    /// Events before the faults ended.
    safe_events: u64,
    since: Nanos,
    /// Deaths of replicas for good.
    pub gone: Vec<Host>,
    /// Those of them whose place a blank replica has taken.
    pub wiped: Vec<Host>,
}

impl Healing {
    /// True once faults have ended.
    pub fn begun(&self) -> bool {
        self.phase != Phase::Safety
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// Hash over all events.
    pub hash: u64,
    /// Events.
    pub events: u64,
    /// Virtual time.
    pub span: Nanos,
    /// What happened, if it was recorded.
    pub story: String,
    /// How often things happened.
    pub counts: Counts,
    /// Requests asked for, answered well, answered with an error.
    pub requests: [u64; 3],
    /// Events before the faults ended.
    pub safe_events: u64,
    /// How often a replica was compared with a sound one, and blocks that were excused.
    pub compared: [u64; 2],
    /// The phase that the run ended in.
    pub phase: Phase,
}

/// Runs a seed.
pub fn run_seed(seed: u64, detail: Detail) -> Report {
    run(
        Config::from_seed(seed),
        Entropy::from_seed(seed).fork(2),
        detail,
    )
}

/// Runs a configuration.
pub fn run(config: Config, entropy: Entropy, detail: Detail) -> Report {
    run_cluster(&mut Cluster::new(config, entropy, detail))
}

/// Runs a cluster that nobody has started.
pub(crate) fn run_cluster(cluster: &mut Cluster) -> Report {
    let outcome = catch_unwind(AssertUnwindSafe(|| cluster.run()));
    if let Err(panic) = outcome {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_string()))
            .unwrap_or_else(|| "unknown".to_string());
        cluster.fail(format!("panic: {text}"));
    }
    Report {
        failure: cluster.failure.clone(),
        hash: cluster.world.hash(),
        events: cluster.world.events(),
        span: cluster.world.now(),
        story: cluster.story.text(),
        counts: cluster.supervisor.counts,
        requests: [
            cluster.workload.issued,
            cluster.workload.succeeded,
            cluster.workload.failed,
        ],
        safe_events: cluster.healing.safe_events,
        compared: [cluster.watcher.compared, cluster.watcher.excused],
        phase: cluster.healing.phase,
    }
}

fn host_state(config: &Config, host: Host, supervisor: &mut Supervisor) -> HostState {
    let replica = config.is_replica(host);
    let peers = config.replicas;
    let disk = replica.then(|| {
        let plain = Layout::new(&config.geometry, config.capacity, peers, false);
        let layout = if config.checksums {
            plain.with_checksums(config.capacity)
        } else {
            plain
        };
        Disk::new(
            layout.end(config.capacity),
            config.capacity,
            config.sector,
            config.volatile_cache,
        )
    });
    HostState {
        clock: Clock {
            offset: 1 << 40,
            ppm: config.skew_ppm[host],
        },
        boot: supervisor.new_uuid(),
        // Lives are unique in the cluster.
        lives: (host as u64) << 32,
        disk,
        words: SimWords::new(0),
        node: None,
        paused: false,
        backlog: Vec::new(),
        powered: true,
        gone: false,
        start_ticket: 0,
        next_operation: 1,
    }
}

impl Cluster {
    /// A cluster of formatted replicas that nobody has started.
    pub fn new(config: Config, mut entropy: Entropy, detail: Detail) -> Cluster {
        let mut supervisor = Supervisor::new(entropy.fork(3), config.replicas);
        let hosts = (0..config.hosts())
            .map(|h| host_state(&config, h, &mut supervisor))
            .collect();
        let mut cluster = Cluster {
            world: World::new(),
            network: Network::new(config.hosts(), config.character),
            hosts,
            supervisor,
            workload: Workload::new(entropy.fork(4), &config),
            scrubs: crate::scrub::Scrubs::new(Entropy::from_seed(config.seed).fork(10)),
            decay: crate::decay::Decay::new(config.seed),
            history: History::new(),
            story: Story::new(detail),
            failure: None,
            guide: None,
            healing: Healing {
                phase: Phase::Safety,
                safe_events: 0,
                since: 0,
                gone: Vec::new(),
                wiped: Vec::new(),
            },
            watcher: crate::check::state::Watcher::default(),
            betrayals: crate::betrayal::Betrayals::default(),
            initiators: Entropy::from_seed(config.seed).fork(8),
            entropy,
            watches: (0..config.hosts()).map(|_| Watch::default()).collect(),
            config,
        };
        for host in &cluster.config.liars {
            if let Some(disk) = cluster.hosts[*host].disk.as_mut() {
                disk.faults.lying_flush = true;
            }
        }
        for host in cluster.config.replica_hosts() {
            let replica = cluster.supervisor.new_uuid();
            let params = cluster.format_params(host, replica);
            if let Some(disk) = cluster.hosts[host].disk.as_mut() {
                crate::storage::format(disk, &params, &mut cluster.entropy);
            }
        }
        cluster
    }

    fn run(&mut self) {
        for host in 0..self.config.replicas {
            let delay = self.entropy.below(10 * MILLIS);
            self.schedule_start(host, delay);
        }
        let first = self.config.replicas;
        self.schedule_engine(first, 0, false);
        // A guide chooses among what follows from requests, not how the volume becomes active.
        let guided = self.guide.is_some();
        let first_request = if guided { 200 * MILLIS } else { MILLIS };
        for client in 0..self.config.mix.clients {
            self.world.after(first_request, Event::Client(client));
        }
        self.schedule_rot();
        for index in 0..self.config.plan.len() {
            let at = self.config.plan[index].0;
            self.world.at(at, Event::Fault(index));
            // What is in flight at an engine that is cut off is not read there any more.
            if !matches!(self.config.plan[index].1, Fault::Split { .. }) {
                self.burst_before(at);
            }
        }
        self.world.after(SECONDS / 2, Event::Supervise);
        if let Some(replacement) = self.config.replacement {
            self.world.at(replacement.at, Event::Replace);
        }
        self.world.at(self.config.safety, Event::Heal);
        while self.failure.is_none() && self.healing.phase != Phase::Done {
            let Some(event) = self.next_event() else {
                if self.guide.as_ref().is_some_and(|guide| guide.over) {
                    break;
                }
                return self.fail("nothing happens any more".to_string());
            };
            if self.guide.as_ref().is_some_and(|guide| guide.over) {
                break;
            }
            self.handle(event);
            self.watch_state();
            self.strike_counted();
            if self.world.events() > EVENTS_MAX {
                return self.fail(format!("{EVENTS_MAX} events and no rest"));
            }
            if self.entropy.exhausted() && !self.healing.begun() {
                self.heal();
            }
        }
        self.supervisor.counts.betrayals = u64::from(self.is_betrayed());
        if self.failure.is_none()
            && let Err(fault) = self.history.check_except(self.betrayals.blocks())
        {
            let story = self.story_of(fault.offset);
            self.fail(format!("{fault:?}\n{story}"));
        }
    }

    /// A fault finds most when much is in flight: often all clients wake up just before.
    fn burst_before(&mut self, at: Nanos) {
        if self.config.seed < EXTRAS_FROM || !self.entropy.chance(2, 3) {
            return;
        }
        for client in 0..self.config.mix.clients {
            let flight = self.config.character.delay_max + 2 * self.config.disk_delay;
            let early = self.entropy.range(MICROS, MICROS + flight);
            self.world
                .at(at.saturating_sub(early), Event::Client(client));
        }
    }

    /// The requests that touched a byte, as text.
    fn story_of(&self, offset: u64) -> String {
        let mut text = String::new();
        for (number, found) in self.history.story_of(offset) {
            let entry = self.history.entries()[number as usize];
            let end = entry
                .responded
                .map_or("never".to_string(), |r| r.to_string());
            let found = found.map_or(String::new(), |f| format!(" finds #{f}"));
            let fua = if entry.fua { " fua" } else { "" };
            text.push_str(&format!(
                "  #{number} {:?}{fua} {}+{} from {} to {end}{found}\n",
                entry.action, entry.offset, entry.len, entry.invoked
            ));
        }
        for (number, entry) in self.history.entries().iter().enumerate() {
            if entry.action == Action::Flush && entry.responded.is_some() {
                let end = entry.responded.unwrap_or(0);
                text.push_str(&format!(
                    "  #{number} Flush from {} to {end}\n",
                    entry.invoked
                ));
            }
        }
        text
    }

    /// Faults end; some replicas are gone for good.
    pub fn heal(&mut self) {
        if self.healing.begun() {
            return;
        }
        let now = self.world.now();
        self.healing.safe_events = self.world.events();
        self.story.tell(now, || "healing begins".to_string());
        self.enter(Phase::Active);
        self.workload.quiet = true;
        self.network.heal();
        for host in 0..self.config.hosts() {
            if let Some(disk) = self.hosts[host].disk.as_mut() {
                // A disk that lied is honest from its next flush on.
                disk.faults = crate::disk::Faults::default();
            }
            if self.hosts[host].paused {
                self.resume(host);
            }
        }
        for host in self.config.dead.clone() {
            if self.may_be_lost(host) {
                self.bury(host);
            }
        }
        for host in self.config.replica_hosts() {
            if !self.hosts[host].gone && self.has_a_place(host) {
                self.hosts[host].powered = true;
                if self.hosts[host].node.is_none() {
                    let delay = self.entropy.range(0, 100 * MILLIS);
                    self.schedule_start(host, delay);
                } else {
                    self.space_changed(host);
                }
            }
        }
        for a in 0..self.config.hosts() {
            for b in a + 1..self.config.hosts() {
                self.mended(a, b);
            }
        }
        self.ensure_engine();
        self.attach_all();
        self.world.after(50 * MILLIS, Event::Probe);
    }

    /// The volume can do without this replica (7.1: with a witness only while both were in sync by
    /// all that is durable, for the other one alone has what was acknowledged since).
    fn may_be_lost(&self, host: Host) -> bool {
        if !self.config.witness || self.config.is_witness(host) {
            return true;
        }
        let newest = self.supervisor.seen_facts().map(|(_, f)| f);
        let newest = newest.max_by_key(|f| f.se);
        let other = self.config.data_hosts().find(|other| *other != host);
        let other = self
            .supervisor
            .seen_facts()
            .find(|(h, _)| Some(*h) == other);
        matches!((newest, other), (Some(newest), Some((_, other)))
            if newest.iss.contains(other.member)
                && other.se.term == newest.se.term
                && other.is_complete())
    }

    /// A replica never comes back.
    pub fn bury(&mut self, host: Host) {
        let now = self.world.now();
        self.story
            .tell(now, || format!("replica {host} is gone for good"));
        if self.hosts[host].node.is_some() {
            self.kill(host);
        }
        self.hosts[host].powered = false;
        self.hosts[host].gone = true;
        self.hosts[host].start_ticket += 1;
        if !self.healing.gone.contains(&host) {
            self.healing.gone.push(host);
        }
    }

    /// T18: a replica that is gone stands there again, blank, under its old number and address.
    fn wipe(&mut self, host: Host) {
        let now = self.world.now();
        self.story
            .tell(now, || format!("a blank replica takes the place of {host}"));
        self.healing.wiped.push(host);
        self.watcher.forget(host);
        let fresh = host_state(&self.config, host, &mut self.supervisor);
        let state = &mut self.hosts[host];
        (state.disk, state.boot, state.gone) = (fresh.disk, fresh.boot, false);
        state.words = SimWords::new(0);
        let replica = self.supervisor.new_uuid();
        let mut params = self.format_params(host, replica);
        (params.newcomer, params.iss) = (true, MemberSet::EMPTY);
        if let Some(disk) = self.hosts[host].disk.as_mut() {
            crate::storage::format(disk, &params, &mut self.entropy);
        }
        self.power_on(host);
    }

    /// A blank replica is there instead of the one that was.
    pub fn is_wiped(&self, host: Host) -> bool {
        self.healing.wiped.contains(&host)
    }

    fn enter(&mut self, phase: Phase) {
        self.healing.phase = phase;
        self.healing.since = self.world.now();
        let now = self.world.now();
        self.story.tell(now, || format!("phase {phase:?}"));
    }

    fn mode(&mut self) -> Option<Mode> {
        let host = self.supervisor.active;
        let node = self.hosts[host].node.as_mut()?;
        Some(node.engine()?.machine.mode())
    }

    /// The healing phase looks how far things are.
    pub fn probe(&mut self) {
        self.world.after(50 * MILLIS, Event::Probe);
        let waited = self.world.now() - self.healing.since;
        let mode = self.mode();
        let active = mode.is_some_and(Mode::is_active);
        let idle = self.workload.in_flight() == 0;
        match self.healing.phase {
            Phase::Safety | Phase::Done => {}
            Phase::Active if active && idle && waited > NOTICED_AFTER => {
                self.workload.strict = true;
                // What was in flight when they were lost has been answered.
                for host in self.config.dead.clone() {
                    if self.config.wiped {
                        self.wipe(host);
                    }
                }
                self.give_duty(true);
                self.enter(Phase::Duty);
            }
            Phase::AfterCut if active && idle && waited > NOTICED_AFTER => {
                self.give_duty(false);
                self.enter(Phase::LastDuty);
            }
            Phase::Active | Phase::AfterCut => {
                self.attach_all();
                self.late(waited, ACTIVE_WITHIN);
            }
            Phase::Duty if idle && self.workload.duty.is_empty() => {
                let all = self.nobody_is_missing();
                self.enter(if all { Phase::Rebuild } else { Phase::Settle });
            }
            Phase::LastDuty if idle && self.workload.duty.is_empty() => self.enter(Phase::Done),
            Phase::Duty | Phase::LastDuty => self.late(waited, DUTY_WITHIN),
            Phase::Rebuild if mode == Some(Mode::Healthy) && self.replacement_is_over() => {
                self.enter(Phase::Settle);
            }
            Phase::Rebuild => self.late(waited, REBUILD_WITHIN),
            Phase::Settle if waited > 3 * SECONDS => {
                if self.nobody_is_missing() {
                    self.compare(false);
                }
                self.check_buffers();
                let sound = self.nobody_is_missing() && !self.is_betrayed();
                if self.config.scrub.is_some() && sound {
                    self.enter(Phase::Scrub);
                } else if self.config.final_cut {
                    self.last_cut();
                } else {
                    self.enter(Phase::Done);
                }
            }
            Phase::Settle => {}
            Phase::Scrub => self.probe_scrub(waited),
        }
    }

    /// What has rotted must be found, and what is read then must be what was written.
    fn probe_scrub(&mut self, waited: Nanos) {
        let over = match self.config.scrub {
            Some(mix) => self.last_scrub_is_over(&mix),
            None => true,
        };
        if !over {
            return self.late(waited, SCRUB_WITHIN);
        }
        self.compare(true);
        if self.config.final_cut {
            self.last_cut();
        } else {
            self.give_duty(false);
            self.enter(Phase::LastDuty);
        }
    }

    fn late(&mut self, waited: Nanos, limit: Nanos) {
        if waited > limit {
            let phase = self.healing.phase;
            let host = self.supervisor.active;
            let clock = self.clock(host);
            let open = self.workload.describe();
            let mut about = String::new();
            if let Some(engine) = self.hosts[host].node.as_mut().and_then(|n| n.engine()) {
                let status = engine.machine.status(clock);
                about = format!(
                    "mode {:?} term {} counted {:?} iss {:?} trk {:?} last {} commit {} tidx {} \
                     requests {} waiting {}",
                    status.mode,
                    status.term.0,
                    status.counted,
                    status.in_sync,
                    status.tracked,
                    status.last.0,
                    status.commit.0,
                    status.tidx.0,
                    status.requests,
                    status.waiting
                );
                for m in &status.members {
                    about.push_str(&format!(
                        "\n  member {}: {:?} {:?} promised {} tainted {} upto {} w {} dirty {}",
                        m.member,
                        m.role,
                        m.link,
                        m.promised,
                        m.tainted,
                        m.upto.0,
                        m.w.0,
                        m.dirty_bytes
                    ));
                }
            }
            self.fail(format!(
                "I22: phase {phase:?} for {} s: {about}\n open:{open}",
                waited / SECONDS
            ));
        }
    }

    fn give_duty(&mut self, writes: bool) {
        let blocks = self.history.written_blocks();
        let mut duty = reads_of(blocks.iter().copied(), self.config.transfer_blocks_max);
        if writes {
            let some: Vec<u64> = blocks.iter().copied().step_by(3).collect();
            for block in some {
                duty.push_back(Wish {
                    op: Op::Write,
                    offset: block * 4096,
                    len: 4096,
                    fua: block % 7 == 0,
                    no_hole: false,
                    swap: false,
                });
            }
            let flush = Wish {
                op: Op::Flush,
                offset: 0,
                len: 0,
                fua: false,
                no_hole: false,
                swap: false,
            };
            duty.push_back(flush);
            duty.extend(reads_of(
                blocks.iter().copied(),
                self.config.transfer_blocks_max,
            ));
        }
        self.workload.duty = duty;
        for client in 0..self.config.mix.clients {
            self.world.after(MILLIS, Event::Client(client));
        }
    }

    /// I21: all replicas hold the same bytes; before a scrub rot is no matter.
    fn compare(&mut self, scrubbed: bool) {
        let disks: Vec<&Disk> = self
            .data_hosts_after()
            .into_iter()
            .filter_map(|h| self.hosts[h].disk.as_ref())
            .collect();
        let pages = disks
            .iter()
            .map(|d| d.page_count(File::Data))
            .max()
            .unwrap_or(0);
        let pages = pages.min((self.config.capacity / 4096) as usize);
        for (host, disk) in disks.iter().enumerate().skip(1) {
            let differs = |p: &usize| {
                let rotten = scrubbed && (disk.is_rotten(*p) || disks[0].is_rotten(*p));
                let differs = rotten || !disks[0].same_page(disk, *p);
                differs && !self.betrayals.contains(*p as u64)
            };
            if let Some(page) = (0..pages).find(differs) {
                let story = self.story_of(page as u64 * 4096);
                return self.fail(format!(
                    "I21: replicas 0 and {host} differ in block {page}\n{story}"
                ));
            }
        }
    }

    /// Nothing is going on: no process holds payload.
    fn check_buffers(&mut self) {
        for host in 0..self.config.hosts() {
            if let Some(node) = self.hosts[host].node.as_mut() {
                node.arena.reclaim();
                let used = node.arena.used();
                if used > crate::limits::IDLE_BYTES_MAX {
                    let live = node.arena.live();
                    return self.fail(format!(
                        "host {host} is idle and holds {used} bytes: {live:?}"
                    ));
                }
            }
        }
    }

    /// I6: the power of everything is cut, a minority of the replicas never comes back.
    fn last_cut(&mut self) {
        let voters = self.voter_hosts();
        let replicas = voters.len();
        let gone = voters
            .iter()
            .filter(|h| self.healing.gone.contains(h))
            .count();
        let mut left = (replicas - 1) / 2 - gone.min((replicas - 1) / 2);
        let lose = self.entropy.chance(2, 3);
        for (place, host) in voters.into_iter().enumerate() {
            let cut = self.entropy.pick(&[Cut::LoseAll, Cut::Pages, Cut::Sectors]);
            if self.hosts[host].gone {
                continue;
            }
            self.cut_power(host, cut);
            let chosen = self.entropy.chance(1, 2);
            if lose && left > 0 && (chosen || replicas - place <= left) {
                left -= 1;
                self.bury(host);
            } else {
                let delay = self.entropy.range(MILLIS, SECONDS);
                self.world.after(delay, Event::Power(host));
            }
        }
        if self.entropy.chance(1, 2) {
            let host = self.supervisor.active;
            self.kill(host);
        }
        self.ensure_engine();
        self.enter(Phase::AfterCut);
    }
}

/// Members of a run, as a set.
pub fn members(config: &Config) -> MemberSet {
    MemberSet::first(config.replicas)
}

const _: () = assert!(ENGINE_HOSTS == 2);
