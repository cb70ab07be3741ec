//! The orders of a small world, searched. Where a run leaves more than one thing to happen next, a
//! [`Guide`] chooses instead of time: another event first, the next one held back, what happens only
//! later at once, a crash, a cut. A [`Search`] tries all choices within [`Bounds`], depth first, each
//! run from its start (the machines are not copied), and goes no further where a state was met before
//! with as much left to choose ([`crate::digest`]).
//!
//! All delays are one [`ROUND`], and nothing is drawn. Choices begin with the first request and end
//! when the last one of the script is over; then the cluster heals in the usual order.

use crate::cluster::{Cluster, Event, NodeEvent};
use crate::config::{Config, Fault};
use crate::disk::Cut;
use crate::entropy::Entropy;
use crate::network::Host;
use crate::run::{Report, run_cluster};
use crate::story::Detail;
use crate::world::{MICROS, Nanos, SECONDS};
use std::collections::{BTreeMap, HashMap};

/// Time of a message on its way, and of a disk operation.
pub const ROUND: Nanos = 100 * MICROS;
/// What is held back waits for so long: several writes and a flush come to their end meanwhile.
const HELD: Nanos = 20 * ROUND;
/// Links that a cut strikes are down for so long: longer than leases and time-outs.
const CUT_FOR: Nanos = 4 * SECONDS;

/// What a search tries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Choices of a run that are not the usual ones.
    pub deviations: u8,
    /// Crashes of a run.
    pub crashes: u8,
    /// Cuts of a run.
    pub cuts: u8,
    /// The last of the three replicas is a witness (7.1).
    pub witness: bool,
}

/// A part of a search: of the first choices that are not the usual one, every `of`-th.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// Which, below `of`.
    pub number: u64,
    /// How many there are.
    pub of: u64,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    chosen: u16,
    options: u16,
}

/// Makes the choices of one run.
#[derive(Debug)]
pub struct Guide {
    path: Vec<Step>,
    /// Choices made so far.
    made: usize,
    /// To repeat a run: choices that are not the usual ones, by their number.
    wanted: Option<BTreeMap<usize, u16>>,
    left: Bounds,
    /// States met, with the deviations that were left.
    seen: HashMap<u128, u8>,
    /// Names of the states of hosts that nothing has happened to since.
    hosts: Vec<Option<u128>>,
    /// The rest of the run is known.
    pub over: bool,
}

/// One thing that may come next.
#[derive(Clone, Debug)]
enum Choice {
    /// The event of this name.
    Take(u64),
    /// The usual next event is held back.
    Hold(u64),
    /// A crash.
    Crash(Fault),
    /// A cut.
    Cut(Fault),
}

impl Guide {
    fn new(bounds: Bounds, wanted: Option<BTreeMap<usize, u16>>) -> Guide {
        Guide {
            path: Vec::new(),
            made: 0,
            wanted,
            left: bounds,
            seen: HashMap::new(),
            hosts: Vec::new(),
            over: false,
        }
    }

    /// Something happens at a host, or (`None`) anywhere.
    fn touch(&mut self, host: Option<Host>) {
        match host {
            Some(host) => self.hosts[host] = None,
            None => self.hosts.fill(None),
        }
    }

    /// Not met before with as many deviations left.
    fn is_new(&mut self, state: u128, left: u8) -> bool {
        let faults = u128::from(self.left.crashes) << 8 | u128::from(self.left.cuts);
        let known = self.seen.entry(state ^ faults).or_insert(u8::MAX);
        if *known != u8::MAX && *known >= left {
            return false;
        }
        *known = left;
        true
    }

    /// One of `options`; `None`: all that can follow has been tried.
    fn choose(&mut self, options: usize, cluster: &Cluster) -> Option<usize> {
        let options = u16::try_from(options).unwrap_or(u16::MAX);
        let number = self.made;
        self.made += 1;
        if let Some(wanted) = &self.wanted {
            let chosen = wanted.get(&number).copied().unwrap_or(0);
            return Some(usize::from(chosen.min(options - 1)));
        }
        if let Some(step) = self.path.get(number) {
            assert_eq!(
                step.options, options,
                "choice {number}: the same run goes on differently"
            );
            return Some(usize::from(step.chosen));
        }
        let left = self.left.deviations;
        let state = cluster.digest(&mut self.hosts);
        if !self.is_new(state, left) {
            return None;
        }
        self.path.push(Step { chosen: 0, options });
        Some(0)
    }
}

/// What came of a search.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Runs.
    pub runs: u64,
    /// Different states in which something was chosen.
    pub states: u64,
    /// Most choices in one run.
    pub choices_max: usize,
    /// Runs that failed: the choices ([`Search::repeat`]), and why.
    pub failures: Vec<(String, String)>,
    /// All was tried.
    pub complete: bool,
}

/// A search.
#[derive(Debug)]
pub struct Search {
    config: Config,
    bounds: Bounds,
    part: Part,
    path: Vec<Step>,
    seen: HashMap<u128, u8>,
    over: bool,
    /// So far.
    pub outcome: Outcome,
}

impl Search {
    /// A search that has tried nothing.
    pub fn new(bounds: Bounds, part: Part) -> Search {
        Search {
            config: crate::small::world_of_orders(bounds.witness),
            bounds,
            part,
            path: Vec::new(),
            seen: HashMap::new(),
            over: false,
            outcome: Outcome::default(),
        }
    }

    /// One more run. False: there is none.
    pub fn step(&mut self) -> bool {
        if self.over {
            return false;
        }
        let mut guide = Guide::new(self.bounds, None);
        guide.path = std::mem::take(&mut self.path);
        guide.seen = std::mem::take(&mut self.seen);
        let (report, guide) = guided(&self.config, guide, Detail::Off);
        self.path = guide.path;
        self.seen = guide.seen;
        self.outcome.runs += 1;
        self.outcome.states = self.seen.len() as u64;
        self.outcome.choices_max = self.outcome.choices_max.max(self.path.len());
        if let Some(why) = report.failure {
            self.outcome.failures.push((text_of(&self.path), why));
        }
        self.over = !self.advance();
        self.outcome.complete = self.over;
        true
    }

    /// The next path that is to be tried: the last choice that has another option takes it.
    fn advance(&mut self) -> bool {
        let mut usual = self.path.iter().take_while(|step| step.chosen == 0).count();
        while let Some(mut last) = self.path.pop() {
            let place = self.path.len();
            usual = usual.min(place);
            while last.chosen + 1 < last.options {
                last.chosen += 1;
                let first = usual == place;
                let mixed = crate::entropy::mix(place as u64 * 1000 + u64::from(last.chosen));
                if !first || mixed % self.part.of == self.part.number {
                    self.path.push(last);
                    return true;
                }
            }
        }
        false
    }

    /// Repeats the run of some choices, as [`Outcome::failures`] has them.
    ///
    /// # Errors
    /// The text is not a list of `number:choice`.
    pub fn repeat(bounds: Bounds, choices: &str, detail: Detail) -> Result<Report, String> {
        let mut wanted = BTreeMap::new();
        for word in choices.split(',').filter(|word| !word.is_empty()) {
            let pair = word.split_once(':');
            let pair = pair.and_then(|(n, c)| Some((n.parse().ok()?, c.parse().ok()?)));
            let (number, choice) = pair.ok_or(format!("{word} is not number:choice"))?;
            wanted.insert(number, choice);
        }
        let guide = Guide::new(bounds, Some(wanted));
        let config = crate::small::world_of_orders(bounds.witness);
        Ok(guided(&config, guide, detail).0)
    }
}

fn text_of(path: &[Step]) -> String {
    let unusual = path.iter().enumerate().filter(|(_, step)| step.chosen > 0);
    let words: Vec<String> = unusual
        .map(|(i, step)| format!("{i}:{}", step.chosen))
        .collect();
    words.join(",")
}

fn guided(config: &Config, guide: Guide, detail: Detail) -> (Report, Guide) {
    let mut cluster = Cluster::new(config.clone(), Entropy::still(), detail);
    cluster.guide = Some(guide);
    let report = run_cluster(&mut cluster);
    (report, cluster.guide.take().expect("it is put back"))
}

/// Which events are chosen among; the others happen at their time, as parts of what came before.
pub(crate) fn is_chosen(event: &Event) -> bool {
    match event {
        Event::Arrive(..)
        | Event::Dial(..)
        | Event::DialEnd(..)
        | Event::Disk(..)
        | Event::Start(..)
        | Event::Power(_)
        | Event::StartEngine(..)
        | Event::Undo(_)
        | Event::Client(_)
        | Event::Node(_, _, NodeEvent::Timer) => true,
        Event::Node(..)
        | Event::Fault(_)
        | Event::Initiator(..)
        | Event::HalfOpen(..)
        | Event::Attach(_)
        | Event::Accept(..)
        | Event::Supervise
        | Event::Replace
        | Event::Heal
        | Event::Probe
        | Event::Rot => false,
    }
}

/// Something that is scheduled.
struct Due {
    /// Its time; now, if that has passed.
    at: Nanos,
    name: u64,
    /// Where it happens; `None`: everywhere.
    host: Option<Host>,
    /// It is chosen, not a part of what came before.
    chosen: bool,
    /// It waits for an earlier one of the same link.
    behind: bool,
}

impl Cluster {
    /// The next event: by time, or as the guide chooses.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        let Some(mut guide) = self.guide.take() else {
            return self.world.pop();
        };
        guide.hosts.resize(self.config.hosts(), None);
        let event = self.guided_event(&mut guide);
        if let Some(event) = &event {
            guide.touch(self.place_of(event));
        }
        self.guide = Some(guide);
        event
    }

    fn guided_event(&mut self, guide: &mut Guide) -> Option<Event> {
        loop {
            if self.healing.begun() || self.workload.issued == 0 {
                return self.world.pop();
            }
            let all_asked = self.workload.issued >= self.config.script.len() as u64;
            if all_asked && self.workload.in_flight() == 0 {
                // What follows does not depend on what is left to choose.
                self.heal();
                guide.touch(None);
                if guide.wanted.is_none() && guide.made >= guide.path.len() {
                    let state = self.digest(&mut guide.hosts);
                    guide.over = !guide.is_new(state, u8::MAX - 1);
                }
                continue;
            }
            let due = self.due();
            let Some(head) = due.first() else {
                return self.world.pop();
            };
            if !head.chosen {
                return self.world.take(head.name);
            }
            let mut choices = self.choices(&due, guide.left);
            let Some(chosen) = guide.choose(choices.len(), self) else {
                guide.over = true;
                return None;
            };
            let choice = choices.swap_remove(chosen);
            let unusual = chosen > 0;
            match choice {
                Choice::Take(name) => {
                    guide.left.deviations -= u8::from(unusual);
                    return self.world.take(name);
                }
                Choice::Hold(name) => {
                    guide.left.deviations -= 1;
                    self.hold(name);
                }
                Choice::Crash(fault) => {
                    guide.left.crashes -= 1;
                    guide.touch(None);
                    self.strike_with(0, fault);
                }
                Choice::Cut(fault) => {
                    guide.left.cuts -= 1;
                    guide.touch(None);
                    self.strike_with(0, fault);
                }
            }
        }
    }

    /// What can happen, the usual next one first.
    fn due(&self) -> Vec<Due> {
        let mut due = Vec::new();
        let mut links: Vec<(u64, usize)> = Vec::new();
        for (at, name, event) in self.in_order() {
            if let Event::Arrive(line, from) = *event
                && self.network.is_blocked(line, from)
            {
                continue;
            }
            let mut behind = false;
            if let Event::Arrive(line, from) = *event {
                behind = links.contains(&(line, from));
                links.push((line, from));
            }
            due.push(Due {
                at,
                name,
                host: self.place_of(event),
                chosen: is_chosen(event),
                behind,
            });
        }
        due
    }

    /// Where an event happens.
    fn place_of(&self, event: &Event) -> Option<Host> {
        match *event {
            Event::Arrive(line, from) => self.network.host_of(line, 1 - from),
            Event::Dial(line, _) => self.network.host_of(line, 1),
            Event::DialEnd(line, _) => self.network.host_of(line, 0),
            Event::Node(host, _, _)
            | Event::Disk(host, _)
            | Event::Start(host, _)
            | Event::Power(host)
            | Event::StartEngine(host, _, _) => Some(host),
            _ => None,
        }
    }

    /// Two events can matter to each other: they meet at a host, or one is an engine's, which may
    /// answer a client, when the state of all is looked at.
    fn meet(&self, a: Option<Host>, b: Option<Host>) -> bool {
        let (Some(a), Some(b)) = (a, b) else {
            return true;
        };
        a == b || !self.config.is_replica(a) || !self.config.is_replica(b)
    }

    fn choices(&self, due: &[Due], left: Bounds) -> Vec<Choice> {
        let head = &due[0];
        let mut choices = vec![Choice::Take(head.name)];
        if left.deviations > 0 {
            choices.push(Choice::Hold(head.name));
            let mut later = None;
            for (place, event) in due.iter().enumerate().skip(1) {
                if !event.chosen || event.behind {
                    continue;
                }
                if event.at > head.at + ROUND {
                    later = later.or(Some(event.name));
                    break;
                }
                if due[..place]
                    .iter()
                    .any(|over| self.meet(over.host, event.host))
                {
                    choices.push(Choice::Take(event.name));
                }
            }
            choices.extend(later.map(Choice::Take));
        }
        if left.crashes > 0 {
            choices.extend(self.crashes().into_iter().map(Choice::Crash));
        }
        if left.cuts > 0 {
            choices.extend(self.cuts().into_iter().map(Choice::Cut));
        }
        choices
    }

    /// A process, the power of one or of all, the engine, or another engine beside it.
    fn crashes(&self) -> Vec<Fault> {
        let down = 3 * ROUND;
        let power = |hosts: Vec<Host>, engine| Fault::PowerLoss {
            hosts: hosts.into_iter().map(|host| (host, down)).collect(),
            cut: Cut::LoseAll,
            engine,
        };
        let crash = |host| Fault::ReplicaCrash {
            host,
            stores: None,
            down,
        };
        vec![
            crash(0),
            crash(1),
            crash(2),
            power(vec![1], false),
            power(vec![0, 1, 2], true),
            Fault::TakeOver { kill: false },
            Fault::EngineCrash {
                down,
                supersedes: true,
            },
        ]
    }

    /// The engine and one replica do not hear each other.
    fn cuts(&self) -> Vec<Fault> {
        let cut = |b| Fault::Cut {
            a: self.supervisor.active,
            b,
            both: true,
            span: CUT_FOR,
            breaks: false,
        };
        (0..self.config.replicas).map(cut).collect()
    }

    /// An event waits; with it all that follows on its link.
    fn hold(&mut self, name: u64) {
        let found = self.world.scheduled().find(|(_, other, _)| *other == name);
        let link = match found {
            Some((_, _, Event::Arrive(line, from))) => Some((*line, *from)),
            _ => None,
        };
        let at = self.world.now() + HELD;
        self.world.hold(at, |other, event| match (link, event) {
            (Some((line, from)), Event::Arrive(l, f)) => (line, from) == (*l, *f),
            _ => other == name,
        });
    }
}
