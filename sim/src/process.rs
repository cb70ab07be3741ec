//! Hosts and the processes on them: one replica or one engine each, with its arena, its clock and
//! its connections. What a machine wants done comes out as [`Effect`]s, so that the cluster treats
//! both kinds alike.

use crate::buffers::SimBuffers;
use crate::disk::Disk;
use crate::network::Line;
use crate::words::SimWords;
use crate::world::Nanos;
use std::collections::BTreeMap;
use trilith_block::{
    Actions, BufSlice, Completion, ConnId, Machine, MemberId, Monotonic, Request, Stream,
    StreamEvent, Uuid, Want,
};
use trilith_engine::{Engine, ExitReason, Mode};
use trilith_replica::store::{DiskError, DiskOp, DiskTag};

/// What a process wants done.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Connect to a member.
    Dial(MemberId),
    /// Send.
    Send(ConnId, Vec<u8>, Option<BufSlice>),
    /// Close; `true`: once everything has been sent.
    Close(ConnId, bool),
    /// A disk operation.
    Disk(DiskTag, DiskOp),
    /// A request has ended.
    Complete(Completion),
    /// The engine's mode has changed.
    Mode(Mode),
    /// The engine tells of a comparison of the replicas.
    Scrub(trilith_engine::ScrubNews),
    /// The engine is done.
    EngineExit(ExitReason),
    /// The replica asks for its window file.
    NeedWords(usize),
    /// The replica's store stands.
    Opened(trilith_replica::store::Opened),
    /// The replica is done: it was stopped (`None`), or its store failed.
    ReplicaExit(Option<trilith_replica::Fatal>),
}

/// A clock with a constant rate error.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// What it shows at time 0 (negative after a reboot).
    pub offset: i128,
    /// Parts per million that it is too fast.
    pub ppm: i64,
}

/// A clock counts from the boot of its host.
impl Clock {
    /// The host boots `now`; its clock starts at `shown`.
    pub fn reboot(&mut self, now: Nanos, shown: u64) {
        self.offset = 0;
        self.offset = i128::from(shown) - i128::from(self.at(now).0);
    }
}

const MILLION: i128 = 1_000_000;

impl Clock {
    /// What it shows.
    pub fn at(&self, now: Nanos) -> Monotonic {
        let shown = i128::from(now) * (MILLION + i128::from(self.ppm)) / MILLION;
        Monotonic(u64::try_from(self.offset + shown).unwrap_or(0))
    }

    /// When it will show at least `then`.
    pub fn when(&self, then: Monotonic) -> Nanos {
        let shown = (i128::from(then.0) - self.offset).max(0);
        let real = shown * MILLION / (MILLION + i128::from(self.ppm)) + 2;
        Nanos::try_from(real).unwrap_or(Nanos::MAX)
    }
}

/// The machine of a process.
#[derive(Debug)]
pub enum Program {
    /// An engine.
    Engine(Box<EngineProgram>),
    /// A replica.
    Replica(Box<ReplicaProgram>),
}

/// An engine and what is not yet taken from it.
#[derive(Debug)]
pub struct EngineProgram {
    /// The machine.
    pub machine: Engine,
    /// Its actions.
    pub out: Actions<trilith_engine::Action>,
    /// Its identity.
    pub uuid: Uuid,
    /// Its attach epoch.
    pub attach_epoch: u64,
    /// Requests that it did not take yet.
    pub refused: std::collections::VecDeque<Request>,
    /// It was told to stop: what follows an exit.
    pub stopping: bool,
    /// The NBD frontend, when clients come through it and the volume is known.
    pub nbd: Option<Box<crate::nbd::Nbd>>,
    /// The iSCSI target, likewise.
    pub iscsi: Option<Box<crate::iscsi::Iscsi>>,
    /// Turns while active.
    pub turns: u64,
}

/// A replica and what is not yet taken from it.
#[derive(Debug)]
pub struct ReplicaProgram {
    /// The machine.
    pub machine: trilith_replica::Replica,
    /// Its actions.
    pub out: Actions<trilith_replica::Action>,
}

/// A process.
#[derive(Debug)]
pub struct Node {
    /// Which life of its host's process.
    pub life: u64,
    /// What runs.
    pub program: Program,
    /// Its memory.
    pub arena: SimBuffers,
    /// Its connections: line, and which end of it.
    pub conns: BTreeMap<ConnId, (Line, usize)>,
    /// Connections that want nothing for now.
    pub waiting: Vec<ConnId>,
    /// Name of the next connection.
    pub next_conn: u64,
    /// Time of the timer event on its way.
    pub timer_at: Option<Nanos>,
    /// A turn is on its way.
    pub turn: bool,
    /// Disk operations in flight: the store's tag, the buffer, what a write held at submit.
    pub disk: BTreeMap<u64, DiskFlight>,
    /// Effects not carried out yet; kept for its memory.
    pub effects: Vec<Effect>,
}

/// A disk operation of a process.
#[derive(Clone, Debug)]
pub struct DiskFlight {
    /// The store's name for it.
    pub tag: DiskTag,
    /// Buffer of a read or write, retained.
    pub buffer: Option<BufSlice>,
    /// It is a read.
    pub is_read: bool,
    /// Bytes of a write when it was submitted.
    pub written: Option<std::rc::Rc<Vec<u8>>>,
}

/// A host.
#[derive(Debug)]
pub struct HostState {
    /// Its clock.
    pub clock: Clock,
    /// Its boot id.
    pub boot: Uuid,
    /// Lives of processes so far.
    pub lives: u64,
    /// The disk of a replica's host.
    pub disk: Option<Disk>,
    /// The window file of a replica's host.
    pub words: SimWords,
    /// The process.
    pub node: Option<Node>,
    /// Its process stands still until then.
    pub paused: bool,
    /// What happened to it meanwhile.
    pub backlog: Vec<crate::cluster::NodeEvent>,
    /// It has power.
    pub powered: bool,
    /// It never comes back.
    pub gone: bool,
    /// Starts of its process that are scheduled and still wanted.
    pub start_ticket: u64,
    /// Number of its next disk operation.
    pub next_operation: u64,
}

impl Node {
    /// A process that has not run yet.
    pub fn new(life: u64, program: Program, arena: SimBuffers) -> Node {
        Node {
            life,
            program,
            arena,
            conns: BTreeMap::new(),
            waiting: Vec::new(),
            next_conn: 1,
            timer_at: None,
            turn: false,
            disk: BTreeMap::new(),
            effects: Vec::new(),
        }
    }

    /// The engine, if it is one.
    pub fn engine(&mut self) -> Option<&mut EngineProgram> {
        match &mut self.program {
            Program::Engine(program) => Some(program),
            Program::Replica(_) => None,
        }
    }

    /// The replica, if it is one.
    pub fn replica(&mut self) -> Option<&mut ReplicaProgram> {
        match &mut self.program {
            Program::Replica(program) => Some(program),
            Program::Engine(_) => None,
        }
    }

    /// Something on a connection.
    pub fn stream(&mut self, now: Monotonic, conn: ConnId, event: StreamEvent<'_>) {
        let arena = &mut self.arena;
        match &mut self.program {
            Program::Engine(p) => {
                let event = trilith_engine::Event::Stream(conn, event);
                p.machine.step(now, event, arena, &mut p.out);
            }
            Program::Replica(p) => {
                let event = trilith_replica::Event::Stream(conn, event);
                p.machine.step(now, event, arena, &mut p.out);
            }
        }
    }

    /// What a connection wants.
    pub fn want(&mut self, conn: ConnId) -> Want {
        match &mut self.program {
            Program::Engine(p) => p.machine.want(conn, &mut self.arena),
            Program::Replica(p) => p.machine.want(conn, &mut self.arena),
        }
    }

    /// The end of a batch.
    pub fn settle(&mut self, now: Monotonic) {
        let arena = &mut self.arena;
        match &mut self.program {
            Program::Engine(p) => {
                p.machine.settle(now, arena, &mut p.out);
                if let Some(nbd) = p.nbd.as_mut() {
                    nbd.settle(now, arena);
                    nbd.pump_all(now, arena);
                }
                if let Some(iscsi) = p.iscsi.as_mut() {
                    iscsi.settle(now, arena);
                }
            }
            Program::Replica(p) => p.machine.settle(now, arena, &mut p.out),
        }
    }

    /// When it wants to run at the latest.
    pub fn deadline(&self) -> Option<Monotonic> {
        match &self.program {
            Program::Engine(p) => {
                let nbd = p.nbd.as_ref().and_then(|nbd| nbd.deadline());
                let iscsi = p.iscsi.as_ref().and_then(|iscsi| iscsi.deadline());
                let all = [p.machine.deadline(), nbd, iscsi];
                all.into_iter().flatten().min()
            }
            Program::Replica(p) => p.machine.deadline(),
        }
    }

    /// A disk operation has ended.
    pub fn disk_done(&mut self, now: Monotonic, tag: DiskTag, result: Result<(), DiskError>) {
        if let Program::Replica(p) = &mut self.program {
            let event = trilith_replica::Event::Disk(tag, result);
            p.machine.step(now, event, &mut self.arena, &mut p.out);
        }
    }

    /// Takes what the machine wants done. Send heads are copied out.
    pub fn take_effects(&mut self, effects: &mut Vec<Effect>) {
        match &mut self.program {
            Program::Engine(p) => {
                for action in p.out.list() {
                    effects.push(engine_effect(*action, &p.out));
                }
                p.out.clear();
            }
            Program::Replica(p) => {
                for action in p.out.list() {
                    effects.push(replica_effect(action, &p.out));
                }
                p.out.clear();
            }
        }
    }
}

fn engine_effect(action: trilith_engine::Action, out: &Actions<trilith_engine::Action>) -> Effect {
    use trilith_engine::Action;
    match action {
        Action::Dial { member } => Effect::Dial(member),
        Action::Send {
            conn,
            head,
            payload,
        } => Effect::Send(conn, out.get(head).to_vec(), payload),
        Action::Close { conn } => Effect::Close(conn, false),
        Action::Complete(completion) => Effect::Complete(completion),
        Action::ModeChanged(mode) => Effect::Mode(mode),
        Action::Scrub(news) => Effect::Scrub(news),
        Action::Exit(reason) => Effect::EngineExit(reason),
    }
}

fn replica_effect(
    action: &trilith_replica::Action,
    out: &Actions<trilith_replica::Action>,
) -> Effect {
    use trilith_replica::Action;
    match *action {
        Action::Send {
            conn,
            head,
            payload,
        } => Effect::Send(conn, out.get(head).to_vec(), payload),
        Action::Close { conn } => Effect::Close(conn, true),
        Action::Disk(tag, op) => Effect::Disk(tag, op),
        Action::NeedWords { len, .. } => Effect::NeedWords(len),
        Action::Opened(opened) => Effect::Opened(opened),
        Action::Stopped => Effect::ReplicaExit(None),
        Action::Fatal(why) => Effect::ReplicaExit(Some(why)),
    }
}

impl Node {
    /// The replica and the memory it works on.
    pub fn replica_and_arena(&mut self) -> Option<(&mut ReplicaProgram, &mut SimBuffers)> {
        match &mut self.program {
            Program::Replica(program) => Some((program, &mut self.arena)),
            Program::Engine(_) => None,
        }
    }

    /// The engine and the memory it works on.
    pub fn engine_and_arena(&mut self) -> Option<(&mut EngineProgram, &mut SimBuffers)> {
        match &mut self.program {
            Program::Engine(program) => Some((program, &mut self.arena)),
            Program::Replica(_) => None,
        }
    }
}
