//! Moves events and actions between the loop, the replica machine and the admin endpoint.

use crate::admin::http::{Answer, Method, Status};
use crate::admin::server::{AdminServer, Ask};
use crate::control::{Command, News};
use crate::exit::{Exit, setup};
use crate::host::Outbox;
use crate::host::process::Supervisor;
use crate::host::replica::disk::StoreDisk;
use crate::limits::{DRAIN_TIME_MAX, SPACE_CHECK_PERIOD};
use crate::store::words::open_error;
use anyhow::anyhow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trilith_block::{ConnId, Machine, Monotonic, Stream, StreamEvent, Uuid, Want, Words};
use trilith_replica::store::Opened;
use trilith_replica::{Action, Event, Fatal, Replica};
use trilith_runtime::{
    DiskDone, Handler, HeapWords, Io, ListenerId, MappedWords, Message, Signal, free_space,
};

/// What the store must be, where it was said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) volume: Option<Uuid>,
    pub(crate) member: Option<usize>,
    pub(crate) replica: Option<Uuid>,
}

/// What a [`ReplicaHost`] is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) replica: Replica,
    pub(crate) disk: StoreDisk,
    pub(crate) listener: ListenerId,
    pub(crate) admin_listeners: Vec<ListenerId>,
    pub(crate) supervisor: Supervisor,
    pub(crate) path: PathBuf,
    pub(crate) regular: bool,
    /// Its files are those of a witness.
    pub(crate) witness: bool,
    pub(crate) window_dir: Option<PathBuf>,
    pub(crate) expected: Expected,
    /// It runs in the process of an engine.
    pub(crate) carried: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    Engine,
    Admin,
}

/// The replica is done; the process leaves when its last bytes are sent.
#[derive(Debug)]
struct Ending {
    result: anyhow::Result<Exit>,
    until: Monotonic,
}

/// A replica and what it has of its process: all of it, or a part of an engine's.
#[derive(Debug)]
pub(crate) struct ReplicaHost {
    pub(super) parts: Parts,
    pub(super) admin: AdminServer,
    pub(super) started: Monotonic,
    pub(super) free_bytes: u64,
    owners: BTreeMap<ConnId, Owner>,
    out: Outbox<Action>,
    unsettled: bool,
    slow: Vec<ConnId>,
    space_at: Monotonic,
    stopping: bool,
    ending: Option<Ending>,
}

impl ReplicaHost {
    /// Wires the parts together.
    pub(crate) fn new(parts: Parts, now: Monotonic) -> ReplicaHost {
        ReplicaHost {
            parts,
            admin: AdminServer::default(),
            started: now,
            free_bytes: 0,
            owners: BTreeMap::new(),
            out: Outbox::default(),
            unsettled: true,
            slow: Vec::new(),
            space_at: now,
            stopping: false,
            ending: None,
        }
    }

    /// Has the store opened.
    pub(crate) fn start(&mut self, io: &mut Io) {
        self.replica(io, Event::Start);
    }

    /// How it ended.
    ///
    /// # Errors
    /// Why the replica gave up.
    pub(crate) fn result(self) -> anyhow::Result<Exit> {
        self.ending.map_or(Ok(Exit::Failed), |ending| ending.result)
    }

    /// True when it has ended and its last bytes are sent.
    pub(crate) fn is_done(&self, now: Monotonic) -> bool {
        let over = |ending: &Ending| self.owners.is_empty() || ending.until <= now;
        self.ending.as_ref().is_some_and(over)
    }

    /// Where engines dial it.
    pub(crate) fn listener(&self) -> ListenerId {
        self.parts.listener
    }

    /// True when connections of this listener are for it.
    pub(crate) fn listens(&self, listener: ListenerId) -> bool {
        listener == self.parts.listener || self.parts.admin_listeners.contains(&listener)
    }

    /// True when the connection is one of its own.
    pub(crate) fn owns(&self, conn: ConnId) -> bool {
        self.owners.contains_key(&conn)
    }

    /// Gives addresses and files back to a process that goes on without it: another one may have them
    /// as soon as what is in flight has landed. Memory of the machine is not given back.
    pub(crate) fn leave(&mut self, io: &mut Io) {
        for listener in std::mem::take(&mut self.parts.admin_listeners) {
            io.stop_listening(listener);
        }
        for conn in self.owners.keys() {
            io.close(*conn, false);
        }
        self.parts.disk.close(io);
    }

    fn replica(&mut self, io: &mut Io, event: Event<'_>) {
        let now = io.now();
        self.unsettled = true;
        self.parts
            .replica
            .step(now, event, io.arena(), &mut self.out.fill);
        self.pump(io);
    }

    fn pump(&mut self, io: &mut Io) {
        while let Some(list) = self.out.take() {
            for at in 0..list.list().len() {
                match list.list()[at] {
                    Action::Send {
                        conn,
                        head,
                        payload,
                    } => io.send(conn, list.get(head), payload),
                    Action::Close { conn } => io.close(conn, true),
                    Action::Disk(tag, op) => self.parts.disk.start(io, tag, op),
                    Action::NeedWords {
                        len,
                        volume: _,
                        replica,
                    } => self.words(io, len, replica),
                    Action::Opened(opened) => self.opened(io, &opened),
                    Action::Stopped => self.end(io, Ok(Exit::Done)),
                    Action::Fatal(fatal) => self.fatal(io, fatal),
                }
            }
            self.out.done(list);
        }
    }

    /// The window's memory: a file on tmpfs named by the replica (M5), else plain memory.
    fn words(&mut self, io: &mut Io, len: usize, replica: Uuid) {
        let words: Box<dyn Words> = match &self.parts.window_dir {
            Some(dir) => match MappedWords::open(&window_path(dir, replica), len) {
                Ok((words, _)) => Box::new(words),
                Err(error) => return self.end(io, Err(setup(error))),
            },
            None => Box::new(HeapWords::new(len)),
        };
        let now = io.now();
        self.unsettled = true;
        self.parts
            .replica
            .step(now, Event::Words(words), io.arena(), &mut self.out.fill);
    }

    fn opened(&mut self, io: &mut Io, opened: &Opened) {
        if let Err(error) = self.check() {
            return self.end(io, Err(setup(error)));
        }
        if opened.newly_tainted {
            tracing::warn!("the window is lost (power failure?): tainted until repaired");
        }
        if opened.maps_lost {
            tracing::warn!("the checkpoint cannot be read: all chunks count as changed");
        }
        tracing::info!(resumed = opened.resumed, "store is open");
        self.measure(io);
        self.parts.supervisor.tell(&News::Ready);
    }

    /// A directory of another replica or volume is refused before it serves anything.
    fn check(&self) -> anyhow::Result<()> {
        let Some(store) = self.parts.replica.store() else {
            return Ok(());
        };
        let facts = store.facts();
        let path = self.parts.path.display();
        let expected = &self.parts.expected;
        if let Some(member) = expected.member.filter(|m| *m != facts.member.index()) {
            return Err(anyhow!(
                "open {path}: expected member {member}, found {}",
                facts.member
            ));
        }
        if let Some(replica) = expected.replica.filter(|r| *r != facts.replica) {
            return Err(anyhow!(
                "open {path}: expected replica {replica}, found {}",
                facts.replica
            ));
        }
        let says = |witness| {
            if witness {
                "a witness"
            } else {
                "a replica with data"
            }
        };
        let (files, store) = (self.parts.witness, facts.is_witness());
        if files != store {
            return Err(anyhow!(
                "open {path}: expected {} as its files are named, found {}",
                says(files),
                says(store)
            ));
        }
        Ok(())
    }

    fn fatal(&mut self, io: &mut Io, fatal: Fatal) {
        let path = self.parts.path.display();
        let error = match fatal {
            Fatal::Open(error) => setup(anyhow!("open store in {path}: {}", open_error(&error))),
            Fatal::WrongVolume { found } => {
                let expected = self.parts.expected.volume.unwrap_or(Uuid::NONE);
                setup(anyhow!(
                    "open {path}: expected volume {expected}, found {found}"
                ))
            }
            Fatal::Store(cause) => anyhow!("store in {path} failed for good: {cause:?}"),
        };
        self.end(io, Err(error));
    }

    fn end(&mut self, io: &mut Io, result: anyhow::Result<Exit>) {
        if self.ending.is_none() {
            let until = io.now().after(DRAIN_TIME_MAX);
            self.ending = Some(Ending { result, until });
            io.stop_listening(self.parts.listener);
            for (conn, owner) in &self.owners {
                if *owner == Owner::Engine {
                    io.close(*conn, true);
                }
            }
        }
    }

    /// Tells the machine what room there is.
    fn measure(&mut self, io: &mut Io) {
        self.space_at = io.now().after(SPACE_CHECK_PERIOD);
        if !self.parts.regular {
            // A device is allocated as a whole.
            return self.replica(
                io,
                Event::Space {
                    free_bytes: u64::MAX,
                },
            );
        }
        match free_space(&self.parts.path) {
            Ok(space) => {
                self.free_bytes = space.free_bytes;
                self.replica(
                    io,
                    Event::Space {
                        free_bytes: space.free_bytes,
                    },
                );
            }
            Err(error) => tracing::warn!("cannot measure the room left: {error}"),
        }
    }

    fn answer(&mut self, io: &mut Io, conn: ConnId, request: Ask) {
        let answer = match request {
            Ok(request) => match (request.method, request.target.as_str()) {
                (Method::Get, "/status") => self.status_answer(io),
                (Method::Get, "/metrics") => self.metrics_answer(io),
                (Method::Post, "/status" | "/metrics") => {
                    Answer::text(Status::BadMethod, "expected GET")
                }
                _ => Answer::text(Status::NotFound, "expected /status or /metrics"),
            },
            Err(status) => Answer::text(status, "expected a GET request of HTTP/1.1"),
        };
        io.send(conn, &answer.to_bytes(), None);
        io.close(conn, true);
    }

    /// The second word to stop, for example the end of the supervisor's pipe, adds nothing.
    pub(crate) fn stop(&mut self, io: &mut Io) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        tracing::info!("replica stops");
        if self.parts.replica.store().is_none() {
            return self.end(io, Ok(Exit::Done));
        }
        self.replica(io, Event::Stop);
    }

    /// Lets the machines settle.
    pub(crate) fn tend(&mut self, io: &mut Io, now: Monotonic) {
        if self.space_at <= now && self.parts.replica.store().is_some() {
            self.measure(io);
        }
        self.unsettled = false;
        self.parts
            .replica
            .settle(now, io.arena(), &mut self.out.fill);
        self.pump(io);
        self.admin.settle(now, &mut self.slow);
        for conn in self.slow.drain(..) {
            io.close(conn, false);
        }
    }
}

/// The window's file.
pub(crate) fn window_path(dir: &Path, replica: Uuid) -> PathBuf {
    dir.join(format!("trilith-{replica}.window"))
}

impl Handler for ReplicaHost {
    fn accepted(&mut self, io: &mut Io, listener: ListenerId, conn: ConnId) {
        let owner = if listener == self.parts.listener {
            Owner::Engine
        } else if self.parts.admin_listeners.contains(&listener)
            && self.admin.accepted(io.now(), conn)
        {
            Owner::Admin
        } else {
            return io.close(conn, false);
        };
        self.owners.insert(conn, owner);
    }

    fn stream(&mut self, io: &mut Io, conn: ConnId, event: StreamEvent<'_>) {
        let Some(owner) = self.owners.get(&conn).copied() else {
            return;
        };
        if event == StreamEvent::Closed {
            self.owners.remove(&conn);
        }
        match owner {
            Owner::Engine => self.replica(io, Event::Stream(conn, event)),
            Owner::Admin => {
                if let Some(request) = self.admin.stream(conn, event) {
                    self.answer(io, conn, request);
                }
            }
        }
    }

    fn want(&mut self, io: &mut Io, conn: ConnId) -> Want {
        match self.owners.get(&conn) {
            Some(Owner::Engine) => self.parts.replica.want(conn, io.arena()),
            Some(Owner::Admin) => self.admin.want(conn),
            None => Want::Pause,
        }
    }

    fn disk(&mut self, io: &mut Io, done: DiskDone) {
        if let Some((tag, result)) = self.parts.disk.done(io, done) {
            self.replica(io, Event::Disk(tag, result));
        }
        self.parts.disk.retry(io);
    }

    fn settle(&mut self, io: &mut Io, now: Monotonic) {
        self.tend(io, now);
        if self.is_done(now) {
            io.stop();
        }
    }

    fn deadline(&self) -> Option<Monotonic> {
        let rest = self.unsettled.then_some(Monotonic(0));
        let space = self
            .parts
            .replica
            .store()
            .is_some()
            .then_some(self.space_at);
        let ending = self.ending.as_ref().map(|ending| ending.until);
        [
            rest,
            space,
            ending,
            self.parts.replica.deadline(),
            self.admin.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn signal(&mut self, io: &mut Io, signal: Signal) {
        match signal {
            Signal::Terminate | Signal::Interrupt => self.stop(io),
            Signal::Hangup | Signal::Child | Signal::User1 => {}
        }
    }

    fn message(&mut self, io: &mut Io, message: Message) {
        if let Ok(command) = message.downcast::<Command>() {
            match *command {
                Command::Stop => self.stop(io),
                Command::Grant(_) | Command::Replace { .. } | Command::LetGo => {}
            }
        }
    }
}
