//! The supervisor of engines, the operator who accepts losses, and the faults of the plan.

use crate::buffers::SimBuffers;
use crate::check::configs::decides;
use crate::cluster::{Cluster, Event};
use crate::config::Fault;
use crate::disk::Faults;
use crate::entropy::{Entropy, mix};
use crate::network::Host;
use crate::process::{Effect, EngineProgram, Node, Program};
use crate::world::{MILLIS, Nanos, SECONDS};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use trilith_block::{Actions, Buffers, Machine, MemberId, MemberSet, Membership, Uuid};
use trilith_engine::{Engine, EngineConfig, ExitReason, Mode, Operator, ScrubConfig, Waiting};

/// What the supervisor and the operator know.
#[derive(Debug)]
pub struct Supervisor {
    entropy: Entropy,
    /// The volume.
    pub volume: Uuid,
    /// Its secret.
    pub secret: [u8; 32],
    /// Highest attach epoch issued.
    pub epoch: u64,
    /// Attach epoch of the last engine on each host (0: none yet).
    epochs: BTreeMap<Host, u64>,
    /// Attach epoch of each engine.
    attached: BTreeMap<Uuid, u64>,
    last_uuid: BTreeMap<Host, Uuid>,
    /// What identities were made of.
    uuids: BTreeSet<u64>,
    start_tickets: BTreeMap<Host, u64>,
    /// Host of the engine with the highest attach epoch.
    pub active: Host,
    /// Loss epoch that the clients are bound to.
    pub client_loss: Option<u32>,
    /// Exclusivity is promised until then.
    granted_until: Nanos,
    take_over_waits: bool,
    /// Engine of each term that was ever active (I1).
    leaders: BTreeMap<u64, Uuid>,
    /// Durable facts of each replica as last seen.
    seen: BTreeMap<Host, trilith_replica::store::Facts>,
    /// The configuration that the active engine went by last.
    pub membership: Membership,
    /// I18.
    pub configs: crate::check::configs::Configs,
    /// The newcomer of a replacement runs.
    pub newcomer: bool,
    /// What to do when an engine that was told to stop has stopped.
    restart_replicas: bool,
    /// Counts for the report.
    pub counts: Counts,
}

/// How often things happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Engines that became active.
    pub activations: u64,
    /// Losses accepted.
    pub losses: u64,
    /// Processes killed.
    pub crashes: u64,
    /// Power cuts (hosts).
    pub power_cuts: u64,
    /// Take-overs.
    pub take_overs: u64,
    /// Clean stops with all members sealed.
    pub seals: u64,
    /// Faults that struck.
    pub faults: u64,
    /// Replicas that were replaced to the end.
    pub replacements: u64,
    /// 1 when a disk that lied about flushes has lost what it said is durable.
    pub betrayals: u64,
}

/// The end of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Undo {
    /// A process goes on.
    Resume(Host),
    /// A cut is lifted.
    Mend(Host, Host, bool),
    /// A host is on time again.
    Lag(Host),
    /// A disk is fast again.
    Speed(Host),
    /// A disk reads again.
    Reads(Host),
    /// A disk writes again.
    Writes(Host),
    /// A disk has room again.
    Room(Host),
    /// Connections between two hosts break, if the link is still cut.
    Break(Host, Host),
    /// An armed crash happens even if the process made no store.
    Crash(Host, u64, Nanos),
}

impl Supervisor {
    /// Durable facts of each replica as last seen.
    pub fn seen_facts(&self) -> impl Iterator<Item = (Host, &trilith_replica::store::Facts)> {
        self.seen.iter().map(|(host, facts)| (*host, facts))
    }

    /// What it and the checkers know, for the name of a state.
    pub fn digest(&self, sum: &mut crate::digest::Sum) {
        sum.text(&(self.epoch, &self.epochs, &self.attached, &self.last_uuid));
        sum.text(&(&self.uuids, &self.start_tickets, self.active));
        sum.text(&(
            self.client_loss,
            &self.leaders,
            &self.seen,
            &self.membership,
        ));
        sum.text(&(&self.configs, self.counts.power_cuts));
    }

    /// A supervisor that has started nothing.
    pub fn new(mut entropy: Entropy, active: Host) -> Supervisor {
        // Choices that have run out are zeros, which names nothing.
        let volume = Uuid(bytes16(entropy.any().max(1)));
        let mut secret = [0; 32];
        secret[..8].copy_from_slice(&entropy.any().to_le_bytes());
        Supervisor {
            entropy,
            volume,
            secret,
            epoch: 0,
            epochs: BTreeMap::new(),
            attached: BTreeMap::new(),
            last_uuid: BTreeMap::new(),
            uuids: BTreeSet::new(),
            start_tickets: BTreeMap::new(),
            active,
            client_loss: None,
            granted_until: 0,
            take_over_waits: false,
            leaders: BTreeMap::new(),
            seen: BTreeMap::new(),
            membership: trilith_block::MemberSet::first(active).into(),
            configs: crate::check::configs::Configs::default(),
            newcomer: false,
            restart_replicas: false,
            counts: Counts::default(),
        }
    }

    /// An identity that was not used before.
    pub fn new_uuid(&mut self) -> Uuid {
        let mut value = self.entropy.any() | 1;
        while !self.uuids.insert(value) {
            value = value.wrapping_add(2);
        }
        Uuid(bytes16(value))
    }

    /// 32 random bytes.
    pub fn random32(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for part in bytes.chunks_exact_mut(8) {
            part.copy_from_slice(&self.entropy.any().to_le_bytes());
        }
        bytes
    }
}

fn bytes16(value: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    bytes[8..].copy_from_slice(&mix(value).to_le_bytes());
    bytes
}

impl Cluster {
    /// Schedules an engine; an earlier schedule for the host is void.
    pub fn schedule_engine(&mut self, host: Host, delay: Nanos, supersedes: bool) {
        let ticket = self.supervisor.start_tickets.entry(host).or_insert(0);
        *ticket += 1;
        let ticket = *ticket;
        self.world
            .after(delay, Event::StartEngine(host, ticket, supersedes));
    }

    /// Starts an engine on a host with the attach epoch that it has.
    pub fn start_engine(&mut self, host: Host, ticket: u64, supersedes: bool) {
        if self.supervisor.start_tickets.get(&host) != Some(&ticket)
            || self.hosts[host].node.is_some()
            || !self.hosts[host].powered
        {
            return;
        }
        let epoch = match self.supervisor.epochs.get(&host) {
            Some(epoch) => *epoch,
            None => {
                self.supervisor.epoch += 1;
                self.supervisor.epoch
            }
        };
        self.supervisor.epochs.insert(host, epoch);
        if epoch == self.supervisor.epoch {
            self.supervisor.active = host;
        }
        let uuid = self.supervisor.new_uuid();
        let mut config = EngineConfig::new(
            uuid,
            self.supervisor.volume,
            self.supervisor.secret,
            self.known_members(),
            self.supervisor.random32(),
        );
        let last = self.supervisor.last_uuid.insert(host, uuid);
        if supersedes {
            config.supersedes = last.unwrap_or(Uuid::NONE);
        }
        config.attach_epoch = epoch;
        self.supervisor.attached.insert(uuid, epoch);
        // Once a replacement has begun, and of a witness, only the replicas know.
        config.cfg_gen = u64::from(!self.supervisor.newcomer && !self.config.witness);
        config.loss_bound = self.supervisor.client_loss;
        if self.config.witness {
            // Of a volume that is made here the supervisor knows it, and an engine that was replaced
            // before it led may serve clients for a while (seed 5513918).
            config.loss_bound = config.loss_bound.or(Some(0));
        }
        config.capacity_bytes = if self.entropy.chance(1, 2) {
            self.config.capacity
        } else {
            0
        };
        config.timing = self.config.timing;
        config.sizes = self.config.sizes;
        if let Some(mix) = self.config.scrub {
            config.scrub = ScrubConfig {
                bytes_per_second_max: mix.bytes_per_second,
                ..ScrubConfig::default()
            };
        }
        let clock = self.clock(host);
        let machine = Engine::new(config, clock).expect("a valid configuration");
        let state = &mut self.hosts[host];
        state.lives += 1;
        let program = EngineProgram {
            machine,
            out: Actions::new(),
            uuid,
            attach_epoch: epoch,
            refused: VecDeque::new(),
            stopping: false,
            nbd: None,
            iscsi: None,
            turns: 0,
        };
        let arena = SimBuffers::new(self.config.engine_arena);
        let mut node = Node::new(state.lives, Program::Engine(Box::new(program)), arena);
        self.request_turn(host, &mut node);
        self.hosts[host].node = Some(node);
        let now = self.world.now();
        let bound = self.supervisor.client_loss;
        self.story.tell(now, || {
            format!(
                "engine on {host} starts: epoch {epoch}, supersedes {supersedes}, loss {bound:?}"
            )
        });
    }

    /// A process of an engine's host is gone: its clients learn it.
    pub fn engine_gone(&mut self, host: Host) {
        if !self.config.is_replica(host) {
            self.clients_lose(host);
        }
    }

    /// A machine ended its process by itself.
    pub fn exited(&mut self, host: Host, node: Node, why: &Effect) {
        match *why {
            Effect::ReplicaExit(why) => self.replica_exited(host, node, why),
            Effect::EngineExit(why) => self.engine_exited(host, node, why),
            Effect::Dial(_)
            | Effect::Send(..)
            | Effect::Close(..)
            | Effect::Disk(..)
            | Effect::Complete(_)
            | Effect::Mode(_)
            | Effect::Scrub(_)
            | Effect::NeedWords(_)
            | Effect::Opened(_) => {}
        }
    }

    fn engine_exited(&mut self, host: Host, mut node: Node, why: ExitReason) {
        let now = self.world.now();
        self.story
            .tell(now, || format!("engine on {host} ends: {why:?}"));
        let pending = self.requests_at(host, node.life);
        let refused = node.engine().map_or(0, |e| e.refused.len());
        let by_nbd = self.config.nbd; // What the frontend holds ends with its connection.
        if pending > refused && !by_nbd {
            self.fail(format!(
                "engine on {host} ends ({why:?}) with {pending} requests open"
            ));
        }
        let newest = node
            .engine()
            .is_some_and(|e| e.attach_epoch == self.supervisor.epoch);
        self.hosts[host].node = Some(node);
        self.kill(host);
        let delay = self.entropy.range(MILLIS, SECONDS);
        match why {
            ExitReason::Fenced if newest => {
                // Somebody must serve: a new attachment.
                self.supervisor.epochs.remove(&host);
                self.schedule_engine(host, delay, false);
            }
            ExitReason::Fenced => {}
            ExitReason::Stopped { sealed } => {
                self.supervisor.counts.seals += u64::from(sealed);
                if std::mem::take(&mut self.supervisor.restart_replicas) {
                    for replica in self.config.replica_hosts() {
                        if self.hosts[replica].node.is_some() {
                            self.kill(replica);
                            let delay = self.entropy.range(MILLIS, SECONDS);
                            self.schedule_start(replica, delay);
                        }
                    }
                }
                self.schedule_engine(host, delay, false);
            }
            ExitReason::SteppedDown => self.schedule_engine(host, delay, false),
        }
    }

    /// An engine says how it serves now.
    pub fn mode_changed(&mut self, host: Host, node: &mut Node, mode: Mode) {
        let now = self.world.now();
        let clock = self.clock(host);
        let life = node.life;
        let Some(engine) = node.engine() else { return };
        engine.turns = 0; // The next turn looks closely.
        let term = engine.machine.status(clock).term;
        self.story.tell(now, || {
            format!("engine on {host} is {mode:?} in term {}", term.0)
        });
        if mode == Mode::Waiting(Waiting::LossAccepted) {
            let delay = self.entropy.skewed(MILLIS, 2 * SECONDS);
            self.world.after(delay, Event::Accept(host, life));
        }
    }

    /// I2, I12, I16, I17: what a replica has made durable never goes back, not even over a power loss.
    fn watch_replica(&mut self, host: Host, node: &mut Node) {
        let Some(replica) = node.replica() else {
            return;
        };
        let Some(store) = replica.machine.store() else {
            return;
        };
        let facts = store.facts();
        if let Some(why) = self.supervisor.configs.durable(host, facts.config) {
            return self.fail(why);
        }
        let broken = self.supervisor.seen.get(&host).and_then(|before| {
            let before = *before;
            let back = [
                ("I2: term", before.term > facts.term),
                ("I2: attach epoch", before.attach_epoch > facts.attach_epoch),
                ("I2: sync epoch", before.se > facts.se),
                ("I17: loss epoch", before.loss > facts.loss),
                // C15: it speaks of positions of one term.
                (
                    "I12: watermark",
                    before.se.term == facts.se.term && before.w > facts.w,
                ),
                (
                    "I2: vote",
                    before.term == facts.term
                        && before.voted != facts.voted
                        && !before.voted.is_none(),
                ),
            ];
            let what = back.iter().find(|(_, wrong)| *wrong)?.0;
            Some(format!(
                "{what} of replica {host} went from {before:?} to {facts:?}"
            ))
        });
        let epoch = self.supervisor.attached.get(&facts.voted);
        let lower = epoch.is_some_and(|epoch| *epoch < facts.attach_epoch);
        let broken = broken.or_else(|| {
            let why = format!("5.1: replica {host} voted for a lower attach epoch: {facts:?}");
            lower.then_some(why)
        });
        let small = if self.config.witness {
            facts.iss.is_empty() || !facts.iss.and(self.config.witness_set()).is_empty()
        } else {
            facts.se.n > 0 && facts.iss.count() < self.config.majority()
        };
        let before = self.supervisor.seen.insert(host, facts);
        let told = !facts.is_complete() && before.is_some_and(|b| b.is_complete());
        if told {
            self.check_told(host, &facts);
        }
        if let Some(why) = broken {
            self.fail(why);
        } else if small {
            self.fail(format!(
                "I16: replica {host} has {:?} in {:?}",
                facts.iss, facts.se
            ));
        }
    }

    /// Looks at a process after each of its turns.
    pub fn watch(&mut self, host: Host, node: &mut Node) {
        if !self.is_wiped(host) {
            self.watch_replica(host, node);
            self.watch_store(host, node);
        }
        let clock = self.clock(host);
        let Some(engine) = node.engine() else { return };
        let mode = engine.machine.mode();
        if !mode.is_active() {
            if mode.reads() && self.supervisor.client_loss.is_none() {
                self.supervisor.client_loss = engine.machine.loss();
            }
            return;
        }
        engine.turns += 1;
        let in_force = engine.machine.membership();
        if self.supervisor.membership != in_force {
            self.supervisor.membership = in_force;
            let now = self.world.now();
            self.story
                .tell(now, || format!("engine on {host} goes by {in_force:?}"));
            let status = engine.machine.status(clock);
            let (term, loss) = (status.term.0, status.loss);
            let aware = self.aware_of_loss(loss);
            if !decides(&in_force, aware) {
                let why = format!("C3, C22: {in_force:?} counts, loss {loss} is at {aware:?}");
                return self.fail(why);
            }
            let places = &self.config;
            let member = |h| MemberId::new(places.member_of(h)).expect("few members");
            let configs = &mut self.supervisor.configs;
            let broken = configs.in_force(term, in_force, member);
            self.supervisor.counts.replacements = self.supervisor.configs.settled;
            if let Some(why) = broken {
                return self.fail(why);
            }
            self.disturb_change(host, in_force);
        }
        let Some(engine) = node.engine() else { return };
        if engine.turns % 16 == 1 {
            let status = engine.machine.status(clock);
            let (term, uuid) = (status.term.0, engine.uuid);
            match self.supervisor.leaders.get(&term) {
                Some(leader) if *leader == uuid => {}
                Some(leader) => {
                    let why = format!("I1: engines {leader} and {uuid} are active in term {term}");
                    return self.fail(why);
                }
                None => {
                    self.supervisor.leaders.insert(term, uuid);
                    self.supervisor.counts.activations += 1;
                    self.check_activation(status.counted);
                }
            }
            let places = &self.config;
            let mut promised = status.members.iter().filter(|m| m.promised);
            let blank = promised.find(|m| self.is_wiped(places.host_of(m.member.index())));
            if let Some(blank) = blank {
                let why = format!("T18: blank member {} has promised", blank.member);
                return self.fail(why);
            }
            let enough = if self.config.witness {
                // W12: who holds the data, and who decides.
                let led = status.members.iter().filter(|m| m.promised);
                let led = led.fold(MemberSet::EMPTY, |set, m| set.with(m.member));
                let all = status.in_sync.minus(led).is_empty() && !status.counted.is_empty();
                all && led.count() >= self.config.majority() && self.may_be_in_force(term)
            } else {
                decides(&status.membership, status.counted)
            };
            if !enough {
                let why = format!("R8: active in term {term} with {:?}", status.counted);
                return self.fail(why);
            }
        }
        let loss = engine.machine.loss();
        match (self.supervisor.client_loss, loss) {
            (None, loss) => self.supervisor.client_loss = loss,
            (Some(bound), Some(loss)) if loss > bound => {
                self.fail(format!(
                    "I17: active at loss epoch {loss}, clients are bound to {bound}"
                ));
            }
            (Some(_), _) => {}
        }
    }

    /// The operator restarts the clients and accepts the loss. Not at an engine that another one was
    /// told to take over from: it may serve for a lease yet, and no client may talk to it (M11, M12).
    pub fn accept_loss(&mut self, host: Host, life: u64) {
        let clock = self.clock(host);
        if self.hosts[host].paused {
            self.world.after(100 * MILLIS, Event::Accept(host, life));
            return;
        }
        let Some(mut node) = self.hosts[host].node.take() else {
            return;
        };
        let waiting = node.life == life
            && node
                .engine()
                .is_some_and(|e| e.machine.mode() == Mode::Waiting(Waiting::LossAccepted));
        if waiting && host == self.supervisor.active {
            self.restart_clients(host);
            self.leave_clients_behind(&mut node, clock);
            if let Some((engine, arena)) = node.engine_and_arena() {
                // I17: what the engine has not taken yet is of the old clients too.
                for request in engine.refused.drain(..) {
                    if let Some(data) = request.data {
                        arena.release(data.buf);
                    }
                }
                let event = trilith_engine::Event::Operator(Operator::AcceptLoss);
                engine.machine.step(clock, event, arena, &mut engine.out);
                self.supervisor.client_loss = engine.machine.loss();
            }
            self.supervisor.counts.losses += 1;
            let now = self.world.now();
            let loss = self.supervisor.client_loss;
            self.story
                .tell(now, || format!("loss accepted on {host}: epoch {loss:?}"));
            self.request_turn(host, &mut node);
        }
        self.hosts[host].node = Some(node);
    }

    /// Grants, once a second.
    pub fn supervise(&mut self) {
        self.world.after(SECONDS, Event::Supervise);
        self.tend_replacement();
        self.tend_scrubs();
        for replica in self.config.replica_hosts() {
            if !self.hosts[replica].paused {
                self.space_changed(replica);
            }
        }
        let host = self.supervisor.active;
        if !self.config.grants || self.supervisor.take_over_waits || self.hosts[host].paused {
            return;
        }
        let now = self.world.now();
        let clock = self.hosts[host].clock;
        let Some(mut node) = self.hosts[host].node.take() else {
            return;
        };
        if let Some((engine, arena)) = node.engine_and_arena()
            && engine.attach_epoch == self.supervisor.epoch
        {
            let until = clock.at(now + 5 * SECONDS);
            self.supervisor.granted_until = now + 5 * SECONDS;
            let event = trilith_engine::Event::Grant { until };
            engine
                .machine
                .step(clock.at(now), event, arena, &mut engine.out);
        }
        self.request_turn(host, &mut node);
        self.hosts[host].node = Some(node);
    }

    /// Asks the active engine for something.
    pub fn ask(&mut self, wish: Operator) {
        let host = self.supervisor.active;
        let clock = self.clock(host);
        if self.hosts[host].paused {
            return;
        }
        let Some(mut node) = self.hosts[host].node.take() else {
            return;
        };
        if let Some((engine, arena)) = node.engine_and_arena() {
            engine.stopping |= matches!(wish, Operator::Stop | Operator::StepDown);
            let event = trilith_engine::Event::Operator(wish);
            engine.machine.step(clock, event, arena, &mut engine.out);
        }
        self.request_turn(host, &mut node);
        self.hosts[host].node = Some(node);
    }

    /// A fault of the plan strikes.
    pub fn strike(&mut self, index: usize) {
        if let Some((_, fault)) = self.config.plan.get(index).cloned() {
            self.strike_with(index, fault);
        }
    }

    /// Faults that strike at a number of events.
    pub fn strike_counted(&mut self) {
        let events = self.world.events();
        for index in 0..self.config.struck.len() {
            if self.config.struck[index].0 == events {
                let fault = self.config.struck[index].1.clone();
                self.strike_with(index, fault);
            }
        }
    }

    pub(crate) fn strike_with(&mut self, index: usize, fault: Fault) {
        let now = self.world.now();
        if self.healing.begun() {
            return;
        }
        self.story.tell(now, || format!("fault: {fault:?}"));
        self.supervisor.counts.faults += 1;
        match fault {
            Fault::ReplicaCrash { host, stores, down } => match stores {
                None => self.crash_replica(host, down),
                Some(stores) if self.hosts[host].node.is_some() => {
                    self.hosts[host].words.kill_after(stores);
                    let life = self.hosts[host].lives;
                    let undo = Undo::Crash(host, life, down);
                    self.world.after(5 * MILLIS, Event::Undo(undo));
                }
                Some(_) => {}
            },
            Fault::PowerLoss { hosts, cut, engine } => {
                for (host, down) in hosts {
                    self.supervisor.counts.power_cuts += 1;
                    self.cut_power(host, cut);
                    self.world.after(down, Event::Power(host));
                }
                if engine {
                    let host = self.supervisor.active;
                    self.cut_power(host, cut);
                    self.hosts[host].powered = true;
                    let delay = self.entropy.range(MILLIS, 3 * SECONDS);
                    self.schedule_engine(host, delay, true);
                }
            }
            Fault::EngineCrash { down, supersedes } => {
                let host = self.supervisor.active;
                self.supervisor.counts.crashes += 1;
                self.kill(host);
                self.schedule_engine(host, down, supersedes);
            }
            Fault::Pause { host, span } => {
                if self.hosts[host].node.is_some() {
                    self.hosts[host].paused = true;
                    self.world.after(span, Event::Undo(Undo::Resume(host)));
                }
            }
            Fault::Cut {
                a,
                b,
                both,
                span,
                breaks,
            } => {
                self.network.set_cut(a, b, true);
                if both {
                    self.network.set_cut(b, a, true);
                }
                self.world.after(span, Event::Undo(Undo::Mend(a, b, both)));
                if breaks {
                    let at = self.entropy.below(span);
                    self.world.after(at, Event::Undo(Undo::Break(a, b)));
                }
            }
            Fault::Reset { a, b } => self.break_lines(a, b),
            Fault::TakeOver { kill } => self.take_over(index, kill, 0),
            Fault::Split { host, span, forget } => self.split(index, host, span, forget),
            Fault::AllFull { span } => {
                for host in 0..self.config.replicas {
                    self.strike_disk(&Fault::Full { host, span });
                }
            }
            Fault::AllCrash { down, engine } => {
                if engine {
                    let host = self.supervisor.active;
                    self.kill(host);
                    let down = self.entropy.skewed(1, down);
                    self.schedule_engine(host, down, true);
                }
                for host in 0..self.config.replicas {
                    let down = self.entropy.skewed(1, down);
                    self.crash_replica(host, down);
                }
            }
            Fault::Handover { seal, replicas } => {
                self.supervisor.restart_replicas = replicas;
                self.ask(if seal {
                    Operator::Stop
                } else {
                    Operator::StepDown
                });
            }
            Fault::Lag { host, delay, span } => {
                self.network.lag[host] = delay;
                self.world.after(span, Event::Undo(Undo::Lag(host)));
            }
            Fault::SlowDisk { .. }
            | Fault::ReadErrors { .. }
            | Fault::WriteErrors { .. }
            | Fault::Full { .. } => self.strike_disk(&fault),
        }
    }

    fn strike_disk(&mut self, fault: &Fault) {
        let (host, span) = match fault {
            Fault::SlowDisk { host, span, .. }
            | Fault::ReadErrors { host, span, .. }
            | Fault::WriteErrors { host, span, .. }
            | Fault::Full { host, span } => (*host, *span),
            Fault::ReplicaCrash { .. }
            | Fault::PowerLoss { .. }
            | Fault::EngineCrash { .. }
            | Fault::Pause { .. }
            | Fault::Cut { .. }
            | Fault::Reset { .. }
            | Fault::Lag { .. }
            | Fault::TakeOver { .. }
            | Fault::Split { .. }
            | Fault::AllCrash { .. }
            | Fault::AllFull { .. }
            | Fault::Handover { .. } => return,
        };
        let Some(disk) = self.hosts[host].disk.as_mut() else {
            return;
        };
        let undo = match *fault {
            Fault::SlowDisk { factor, .. } => {
                disk.faults.hung = factor == 0;
                disk.faults.slow = factor;
                Undo::Speed(host)
            }
            Fault::ReadErrors { chance, .. } => {
                disk.faults.read_error = chance;
                Undo::Reads(host)
            }
            Fault::WriteErrors { write, flush, .. } => {
                disk.faults.write_error = write;
                disk.faults.flush_error = flush;
                Undo::Writes(host)
            }
            _ => {
                disk.faults.room = Some(disk.allocated());
                Undo::Room(host)
            }
        };
        if matches!(undo, Undo::Room(_)) {
            self.space_changed(host);
        }
        self.world.after(span, Event::Undo(undo));
    }

    fn crash_replica(&mut self, host: Host, down: Nanos) {
        self.supervisor.counts.crashes += 1;
        if self.hosts[host].node.is_some() {
            self.kill(host);
        }
        if self.hosts[host].powered {
            self.schedule_start(host, down);
        }
    }

    fn break_lines(&mut self, a: Host, b: Host) {
        for line in self.network.between(a, b) {
            for end in 0..2 {
                let Some(connection) = self.network.get(line) else {
                    continue;
                };
                let (host, life) = (connection.ends[end].host, connection.ends[end].life);
                let delay = self.entropy.skewed(1, 500 * MILLIS);
                let event = crate::cluster::NodeEvent::Closed(line, end);
                self.world.after(delay, Event::Node(host, life, event));
            }
        }
    }

    /// Another engine takes over. Clients move to it one by one; every second one not before `stay`.
    fn take_over(&mut self, index: usize, kill: bool, stay: Nanos) {
        let now = self.world.now();
        if now < self.supervisor.granted_until {
            self.supervisor.take_over_waits = true;
            let at = self.supervisor.granted_until + SECONDS / 10;
            self.world.at(at, Event::Fault(index));
            return;
        }
        self.supervisor.take_over_waits = false;
        self.supervisor.counts.take_overs += 1;
        let old = self.supervisor.active;
        let new = if old == self.config.replicas {
            old + 1
        } else {
            old - 1
        };
        if kill {
            self.kill(old);
        }
        self.kill(new);
        self.supervisor.epochs.remove(&new);
        self.schedule_engine(new, 0, false);
        self.supervisor.active = new;
        for client in 0..self.config.mix.clients {
            let mut delay = self.entropy.skewed(MILLIS, 5 * SECONDS);
            if client % 2 == 1 {
                delay = delay.max(stay);
            }
            self.world.after(delay, Event::Attach(client));
        }
    }

    /// A take-over while the old engine lives and reaches one replica, and the new one the others.
    fn split(&mut self, index: usize, host: Host, span: Nanos, forget: bool) {
        if self.supervisor.granted_until <= self.world.now() {
            let old = self.supervisor.active;
            let new = 2 * self.config.replicas + 1 - old;
            for replica in 0..self.config.replicas {
                let far = if replica == host { new } else { old };
                self.network.set_cut(far, replica, true);
                self.network.set_cut(replica, far, true);
                let undo = Undo::Mend(far, replica, true);
                self.world.after(span, Event::Undo(undo));
                if forget && replica != host {
                    let down = self.entropy.skewed(1, MILLIS);
                    self.crash_replica(replica, down);
                }
            }
        }
        self.take_over(index, false, span);
        // Clients of both engines are busy while the old lease may still run.
        let lease = u64::try_from(self.config.timing.lease.as_nanos()).unwrap_or(0);
        for client in 0..self.config.mix.clients {
            for _ in 0..8 {
                let at = self.entropy.below(span.max(2 * lease));
                self.world.after(at, Event::Client(client));
            }
        }
    }

    /// A fault ends.
    pub fn undo(&mut self, undo: Undo) {
        let now = self.world.now();
        self.story.tell(now, || format!("ends: {undo:?}"));
        match undo {
            Undo::Resume(host) => self.resume(host),
            Undo::Mend(a, b, both) => {
                self.network.set_cut(a, b, false);
                if both {
                    self.network.set_cut(b, a, false);
                }
                self.mended(a, b);
            }
            Undo::Lag(host) => self.network.lag[host] = 0,
            Undo::Speed(host) => self.change_faults(host, |f| (f.hung, f.slow) = (false, 0)),
            Undo::Reads(host) => self.change_faults(host, |f| f.read_error = 0),
            Undo::Writes(host) => {
                self.change_faults(host, |f| (f.write_error, f.flush_error) = (0, 0));
            }
            Undo::Room(host) => {
                self.change_faults(host, |f| f.room = None);
                self.space_changed(host);
            }
            Undo::Break(a, b) => {
                if self.network.is_cut(a, b) || self.network.is_cut(b, a) {
                    self.break_lines(a, b);
                }
            }
            Undo::Crash(host, life, down) => {
                let same = self.hosts[host]
                    .node
                    .as_ref()
                    .is_some_and(|n| n.life == life);
                if same || self.hosts[host].node.is_none() {
                    self.crash_replica(host, down);
                }
            }
        }
    }

    fn change_faults(&mut self, host: Host, change: impl FnOnce(&mut Faults)) {
        if let Some(disk) = self.hosts[host].disk.as_mut() {
            change(&mut disk.faults);
        }
    }

    /// A paused process goes on with all that happened meanwhile.
    pub fn resume(&mut self, host: Host) {
        self.hosts[host].paused = false;
        let Some(life) = self.hosts[host].node.as_ref().map(|n| n.life) else {
            return;
        };
        for event in std::mem::take(&mut self.hosts[host].backlog) {
            self.handle(Event::Node(host, life, event));
        }
    }

    /// What waited for a link goes on.
    pub fn mended(&mut self, a: Host, b: Host) {
        for line in self.network.between(a, b) {
            for end in 0..2 {
                let delay = self.entropy.below(200 * MILLIS);
                self.world.after(delay, Event::Arrive(line, end));
            }
        }
    }

    /// The engine with the highest attach epoch must run: used when healing.
    pub fn ensure_engine(&mut self) {
        let host = self.supervisor.active;
        if self.hosts[host].node.is_none() {
            self.hosts[host].powered = true;
            self.schedule_engine(host, 0, true);
        }
    }
}
