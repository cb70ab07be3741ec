//! An engine and one of its replicas in one process, on one loop: the replica is *carried*. The two
//! machines exchange the frames that they would exchange between processes, over a connection of the
//! loop with itself; other engines reach the replica by its listener, as ever.
//!
//! Each ends for reasons of its own:
//! - Told to stop, the engine seals first, then the replica closes, then the process ends.
//! - The replica fails: the engine goes on with the others. A supervisor is told, and gives the replica
//!   a process of its own, as a store that has failed is only opened again by another process. Without
//!   one, and without other replicas, the process ends with the replica's error.
//! - The engine ends unasked (fenced, or an operator had it step down): whoever serves the volume now
//!   needs the replica. Under a supervisor the process ends, and the supervisor runs the replica
//!   alone; without one the replica goes on here until the process is told to stop.

use super::wiring::EngineHost;
use crate::cli::EngineArgs;
use crate::control::{Command, News};
use crate::exit::{Exit, sentence};
use crate::host::process::{self, Supervisor};
use crate::host::replica::{self, Expected, Place, ReplicaHost};
use std::path::PathBuf;
use trilith_block::{ConnId, MemberId, Monotonic, StreamEvent, Want};
use trilith_runtime::{
    Address, DiskDone, Handler, Io, ListenerId, Message, Share, Signal, UblkFetched,
};

/// The replica that an engine is to carry.
#[derive(Debug)]
pub(crate) struct Carry {
    /// Its number.
    pub(crate) member: MemberId,
    /// Its directory, or block device.
    pub(crate) path: PathBuf,
    /// Where it listens for other engines.
    pub(crate) listen: Address,
}

/// Sets the replica up that an engine is to carry. `None` when that fails and the engine can go on
/// without it.
///
/// # Errors
/// When it cannot be set up and nothing is left to serve.
pub(crate) fn open(
    io: &mut Io,
    args: &EngineArgs,
    carry: &Carry,
    supervisor: Supervisor,
) -> anyhow::Result<Option<ReplicaHost>> {
    let (member, path) = (carry.member.index(), carry.path.as_path());
    let mut admin = Vec::new();
    for address in &args.carry_admin {
        admin.push(process::listen(io, address, true)?);
    }
    let mut ids = args.replica_ids.iter();
    let id = ids.find(|(number, _)| *number == member);
    let place = Place {
        path,
        is_device: path.exists() && !path.is_dir(),
        listen: &carry.listen,
        admin: admin.clone(),
        secret_file: &args.secret_file,
        window_dir: args.window_dir.as_deref(),
        expected: Expected {
            volume: Some(args.volume),
            member: Some(member),
            replica: id.map(|(_, id)| *id),
        },
        // What it has to tell, the engine tells for both.
        supervisor: Supervisor::default(),
        carried: true,
        backend: args.process.backend,
    };
    io.arena().act_for(Share::Second);
    let replica = replica::open(io, place);
    io.arena().act_for(Share::First);
    match replica {
        Ok(replica) => Ok(Some(replica)),
        Err(error) => {
            for listener in admin {
                io.stop_listening(listener);
            }
            goes_on(supervisor, args.replicas.len() == 1, error).map(|()| None)
        }
    }
}

/// Whether an engine goes on without the replica that it was to carry.
///
/// # Errors
/// `error` when not.
fn goes_on(supervisor: Supervisor, is_only: bool, error: anyhow::Error) -> anyhow::Result<()> {
    if is_only && !supervisor.is_there() {
        return Err(error);
    }
    let why = sentence(&error);
    tracing::error!("the replica in this process is lost, the engine goes on: {why}");
    supervisor.tell(&News::Dropped);
    Ok(())
}

/// The process: see the module's text.
#[derive(Debug)]
pub(crate) struct Carrier {
    engine: Option<EngineHost>,
    replica: Option<ReplicaHost>,
    supervisor: Supervisor,
    /// There is no other replica.
    is_only: bool,
    /// Somebody has told the process to stop.
    stopping: bool,
    /// Somebody has told it to let go of the replica.
    letting_go: bool,
    result: anyhow::Result<Exit>,
}

impl Carrier {
    /// Puts an engine and a replica together. `is_only`: the volume has no other replica.
    pub(crate) fn new(engine: EngineHost, replica: ReplicaHost, is_only: bool) -> Carrier {
        let supervisor = engine.supervisor();
        Carrier {
            engine: Some(engine),
            replica: Some(replica),
            supervisor,
            is_only,
            stopping: false,
            letting_go: false,
            result: Ok(Exit::Failed),
        }
    }

    /// How the process ends.
    ///
    /// # Errors
    /// Why the replica gave up, if that is why.
    pub(crate) fn result(self) -> anyhow::Result<Exit> {
        self.result
    }

    /// The engine, which takes memory of its own share from here on.
    fn engine(&mut self, io: &mut Io) -> Option<&mut EngineHost> {
        io.arena().act_for(Share::First);
        self.engine.as_mut()
    }

    /// The same for the replica.
    fn replica(&mut self, io: &mut Io) -> Option<&mut ReplicaHost> {
        io.arena().act_for(Share::Second);
        self.replica.as_mut()
    }

    fn is_of_replica(&self, conn: ConnId) -> bool {
        self.replica
            .as_ref()
            .is_some_and(|replica| replica.owns(conn))
    }

    /// The engine first: it seals its replicas.
    fn stop(&mut self, io: &mut Io) {
        self.stopping = true;
        if let Some(engine) = self.engine(io) {
            engine.stop(io);
        } else if let Some(replica) = self.replica(io) {
            replica.stop(io);
        }
    }

    fn let_go(&mut self, io: &mut Io) {
        self.letting_go = true;
        if let Some(replica) = self.replica(io) {
            replica.stop(io);
        }
    }

    /// Looks who has ended, and what follows.
    fn look(&mut self, io: &mut Io) {
        if let Some(mut replica) = self.replica.take_if(|replica| replica.is_done(io.now())) {
            replica.leave(io);
            self.replica_ended(io, replica.result());
        }
        if let Some(mut engine) = self.engine.take_if(|engine| engine.is_done()) {
            engine.leave(io);
            self.engine_ended(io, engine.exit());
        }
        if self.engine.is_none() && self.replica.is_none() {
            io.stop();
        }
    }

    fn replica_ended(&mut self, io: &mut Io, result: anyhow::Result<Exit>) {
        if let Some(engine) = &mut self.engine {
            engine.set_apart();
        }
        let Err(error) = result else { return };
        if self.engine.is_none() || self.stopping || self.letting_go {
            let why = sentence(&error);
            return tracing::error!("the replica in this process ends badly: {why}");
        }
        if let Err(error) = goes_on(self.supervisor, self.is_only, error) {
            self.result = Err(error);
            io.stop();
        }
    }

    fn engine_ended(&mut self, io: &mut Io, exit: Exit) {
        self.result = Ok(exit);
        let unasked = !self.stopping && exit != Exit::Failed;
        if unasked && !self.supervisor.is_there() && self.replica.is_some() {
            return tracing::warn!("the engine has ended; its replica goes on alone");
        }
        if let Some(replica) = self.replica(io) {
            replica.stop(io);
        }
    }
}

impl Handler for Carrier {
    fn accepted(&mut self, io: &mut Io, listener: ListenerId, conn: ConnId) {
        let listens = |replica: &ReplicaHost| replica.listens(listener);
        if self.replica.as_ref().is_some_and(listens) {
            if let Some(replica) = self.replica(io) {
                replica.accepted(io, listener, conn);
            }
        } else if let Some(engine) = self.engine(io) {
            engine.accepted(io, listener, conn);
        } else {
            io.close(conn, false);
        }
    }

    fn stream(&mut self, io: &mut Io, conn: ConnId, event: StreamEvent<'_>) {
        if self.is_of_replica(conn) {
            if let Some(replica) = self.replica(io) {
                replica.stream(io, conn, event);
            }
        } else if let Some(engine) = self.engine(io) {
            engine.stream(io, conn, event);
        }
    }

    fn want(&mut self, io: &mut Io, conn: ConnId) -> Want {
        let want = if self.is_of_replica(conn) {
            self.replica(io).map(|replica| replica.want(io, conn))
        } else {
            self.engine(io).map(|engine| engine.want(io, conn))
        };
        want.unwrap_or(Want::Pause)
    }

    fn disk(&mut self, io: &mut Io, done: DiskDone) {
        if let Some(replica) = self.replica(io) {
            replica.disk(io, done);
        }
    }

    fn settle(&mut self, io: &mut Io, now: Monotonic) {
        if let Some(replica) = self.replica(io) {
            replica.tend(io, now);
        }
        if let Some(engine) = self.engine(io) {
            engine.tend(io, now);
        }
        self.look(io);
    }

    fn deadline(&self) -> Option<Monotonic> {
        let engine = self.engine.as_ref().and_then(Handler::deadline);
        let replica = self.replica.as_ref().and_then(Handler::deadline);
        [engine, replica].into_iter().flatten().min()
    }

    fn signal(&mut self, io: &mut Io, signal: Signal) {
        match signal {
            Signal::Terminate | Signal::Interrupt => self.stop(io),
            Signal::Hangup | Signal::Child | Signal::User1 => {}
        }
    }

    fn ublk(&mut self, io: &mut Io, fetched: UblkFetched) {
        if let Some(engine) = self.engine(io) {
            engine.ublk(io, fetched);
        }
    }

    fn message(&mut self, io: &mut Io, message: Message) {
        match message.downcast_ref::<Command>() {
            Some(Command::Stop) => self.stop(io),
            Some(Command::LetGo) => self.let_go(io),
            Some(Command::Grant(_) | Command::Replace { .. }) | None => {
                if let Some(engine) = self.engine(io) {
                    engine.message(io, message);
                }
            }
        }
    }
}
