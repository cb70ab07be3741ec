//! `up` while it runs: a handler of the loop that has no connections, only signals, timers and news
//! of its children.

use crate::cli::IscsiArgs;
use crate::control::{Command as Word, News};
use crate::exit::Exit;
use crate::host::engine::iscsi::target_name;
use crate::host::process::new_uuid;
use crate::limits::{GRANT_RENEWAL, GRANT_TIME, WITNESS_MEMORY_BYTES};
use crate::output;
use crate::up::children::{Children, Heard};
use crate::up::config::Config;
use crate::up::state::{Change, Replica, State};
use crate::up::supervisor::{ChildId, Do, Supervisor};
use crate::up::{greeting::Greeting, layout};
use std::ffi::OsString;
use std::path::Path;
use trilith_block::{ConnId, Monotonic, StreamEvent, Uuid, Want};
use trilith_runtime::{DiskDone, Handler, Io, ListenerId, Message, Signal};

/// `up`.
#[derive(Debug)]
pub(crate) struct Up {
    config: Config,
    state: State,
    boot: Uuid,
    children: Children,
    supervisor: Supervisor,
    /// Replica that the engine carries.
    carried: Option<usize>,
    grant_at: Option<Monotonic>,
    greeted: bool,
    exit: Exit,
    orders: Vec<Do>,
    ended: Vec<(ChildId, Exit)>,
}

impl Up {
    /// Everything is prepared; the children start with the first `settle`.
    pub(crate) fn new(
        config: Config,
        state: State,
        boot: Uuid,
        children: Children,
        now: Monotonic,
    ) -> Up {
        let carried = carried(config.carry, &state);
        let apart = state.replicas.iter().map(|r| r.member);
        let supervisor = Supervisor::new(now, apart.filter(|member| Some(*member) != carried));
        Up {
            config,
            state,
            boot,
            children,
            supervisor,
            carried,
            grant_at: None,
            greeted: false,
            exit: Exit::Failed,
            orders: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// How it ends.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    fn start(&mut self, now: Monotonic, id: ChildId) {
        let args = match id {
            ChildId::Replica(member) => self.replica_args(member),
            ChildId::Engine => self.engine_args(),
        };
        let started = args.and_then(|args| self.children.start(id, &args));
        match started {
            Ok(()) => {
                self.supervisor.started(now, id);
                if id == ChildId::Engine {
                    self.grant(now);
                    self.tell_change();
                }
            }
            Err(error) => {
                tracing::error!(child = %id, "{error:#}");
                self.supervisor.ended(now, id, Exit::Failed);
            }
        }
    }

    /// An absolute path: a list of processes tells by it whose they are.
    fn path(&self, name: impl AsRef<Path>) -> impl std::fmt::Display {
        self.config.home.join(name).display().to_string()
    }

    fn shared_args(&self, id: ChildId) -> Vec<OsString> {
        let name = match id {
            ChildId::Replica(_) => "replica",
            ChildId::Engine => "engine",
        };
        let mut args = Args::new(name);
        args.set("--log", &self.config.log);
        args.set("--backend", self.config.backend.name());
        args.set("--spin", format_args!("{}us", self.config.spin.as_micros()));
        args.set("--admin", layout::admin_address(id));
        args.set("--supervisor", std::process::id());
        args.set("--secret-file", layout::SECRET);
        args.0
    }

    fn replica_args(&self, member: usize) -> anyhow::Result<Vec<OsString>> {
        let mut args = Args(self.shared_args(ChildId::Replica(member)));
        if let Some(replica) = self.state.replica(member) {
            args.set("--dir", self.path(replica.directory()));
            args.set("--id", replica.id);
        }
        args.set("--listen", layout::replica_address(member));
        args.set("--volume", self.state.volume);
        args.set("--member", member);
        if self.state.is_witness(member) {
            args.set("--memory", WITNESS_MEMORY_BYTES);
        }
        args.set_window_dir(&self.config);
        Ok(args.0)
    }

    /// Arguments of the next engine: its attach epoch and identity are durable before they are used.
    fn engine_args(&mut self) -> anyhow::Result<Vec<OsString>> {
        let mut next = self.state.clone();
        let bound = next.loss_bound(self.boot);
        let engine = new_uuid()?;
        let dead = next.next_engine(engine, self.boot);
        next.write(Path::new("."))?;
        self.state = next;
        let mut args = Args(self.shared_args(ChildId::Engine));
        args.set("--volume", self.state.volume);
        args.set("--size", self.state.size_bytes);
        args.set("--name", &self.state.name);
        args.set("--engine", engine);
        args.set("--attach-epoch", self.state.attach_epoch);
        args.set("--lock", self.path(layout::ENGINE_LOCK));
        args.set("--scrub-rate", self.config.scrub.rate);
        args.set("--scrub-days", self.config.scrub.days);
        if let Some(nbd) = &self.config.nbd {
            args.set("--nbd", nbd);
        }
        if let Some(iscsi) = &self.config.iscsi {
            args.set("--iscsi", iscsi);
            args.set("--iscsi-reservations", self.path(layout::RESERVATIONS));
            args.set_target(&self.config.target);
        }
        if let Some(number) = &self.config.ublk.number {
            args.set("--ublk", number);
            args.set("--ublk-queues", self.config.ublk.queues);
        }
        for address in &self.config.admin {
            args.set("--admin", address);
        }
        if let Some(dead) = dead {
            args.set("--supersedes", dead);
        }
        if let Some(loss) = bound {
            args.set("--loss", loss);
        }
        for replica in &self.state.replicas {
            let address = layout::replica_address(replica.member);
            args.set("--replica", format!("{}={address}", replica.member));
            args.set("--replica-id", format!("{}={}", replica.member, replica.id));
        }
        // Who the witness is, an engine hears from the replicas (W16).
        if self.state.was_changed() || self.state.witness {
            args.0.push("--ask-for-voters".into());
        }
        if let Some(replica) = self.carried.and_then(|member| self.state.replica(member)) {
            let (member, dir) = (replica.member, self.path(replica.directory()));
            args.set("--carry", format_args!("{member}={dir}"));
            args.set(
                "--carry-admin",
                layout::admin_address(ChildId::Replica(member)),
            );
            args.set_window_dir(&self.config);
        }
        Ok(args.0)
    }

    /// M13: no other engine starts while this one lives, since only this process (which holds the
    /// lock of the directory) starts any, and only after the one before has been reaped.
    fn grant(&mut self, now: Monotonic) {
        self.children
            .tell(ChildId::Engine, &Word::Grant(GRANT_TIME));
        self.grant_at = Some(now.after(GRANT_RENEWAL));
    }

    fn heard(&mut self, now: Monotonic, heard: &Heard) {
        if !self.children.is(heard.child, heard.pid) {
            return;
        }
        match &heard.news {
            News::Ready => {
                self.supervisor.ready(heard.child);
                if heard.child == ChildId::Engine && !self.greeted {
                    self.greeted = true;
                    self.greet();
                }
            }
            News::State(state) => {
                output::print(&format!("Volume {} is {state}\n", self.state.name));
            }
            News::Loss(loss) => self.loss(*loss),
            News::Replace { old, new, id, dir } => {
                let replica = Replica {
                    member: *new,
                    id: *id,
                    dir: (*dir != layout::replica_dir(*new)).then(|| dir.clone()),
                };
                self.replace(now, *old, replica);
            }
            News::Members { bits, settled } => self.members(*bits, *settled),
            News::KeepOld => self.end_change(true),
            News::Dropped => self.set_apart(now),
            News::Device(number) => {
                output::print(&format!(
                    "Volume {} is the block device /dev/ublkb{number}\n",
                    self.state.name
                ));
            }
        }
    }

    /// The engine carries its replica no more: from now on that has a process of its own, until the
    /// next `up`.
    fn set_apart(&mut self, now: Monotonic) {
        let Some(member) = self.carried.take() else {
            return;
        };
        if self.state.replica(member).is_some() {
            tracing::info!(member, "replica gets a process of its own");
            self.supervisor.add(now, member);
        }
    }

    /// Somebody has made an empty replica that is to take the place of another one. Remembered first,
    /// so that the next `up` goes on with it.
    fn replace(&mut self, now: Monotonic, old: usize, replica: Replica) {
        let new = replica.member;
        let next = self.state.replacing(old, replica).and_then(|next| {
            next.write(Path::new("."))?;
            Ok(next)
        });
        match next {
            Ok(next) => self.state = next,
            Err(error) => return tracing::error!(old, new, "cannot replace a replica: {error:#}"),
        }
        output::print(&format!(
            "Replica {old} is being replaced by replica {new}\n"
        ));
        self.supervisor.add(now, new);
        self.tell_change();
    }

    /// Tells the engine what is to be replaced. It does nothing more when that is done.
    fn tell_change(&mut self) {
        let Some(change) = self.state.change else {
            return;
        };
        if let Some(new) = self.state.replica(change.new) {
            let word = Word::Replace {
                old: change.old,
                new: change.new,
                id: new.id,
                address: layout::replica_address(change.new).to_string(),
            };
            self.children.tell(ChildId::Engine, &word);
        }
    }

    /// The engine says with whom it deals.
    fn members(&mut self, bits: u32, settled: bool) {
        let has = |member: usize| bits >> member & 1 != 0;
        let over = |c: Change| settled && has(c.new) && !has(c.old);
        if self.state.change.is_some_and(over) {
            self.end_change(false);
        }
    }

    /// The replacement is over: whoever has no place any more is stopped, its files are left.
    fn end_change(&mut self, given_up: bool) {
        let Some(Change { old, new }) = self.state.change else {
            return;
        };
        let next = self.state.settled(given_up);
        if let Err(error) = next.write(Path::new(".")) {
            // The next `up` finds it out again.
            return tracing::error!(old, new, "cannot remember a replacement: {error:#}");
        }
        let (gone, text) = if given_up {
            (new, format!("Replica {old} is not replaced after all"))
        } else {
            (old, format!("Replica {old} was replaced by replica {new}"))
        };
        let files = self.state.replica(gone).map(Replica::directory);
        let files = files.unwrap_or_default();
        output::print(&format!(
            "{text}; the files in {} are not needed any more\n",
            self.path(files)
        ));
        self.state = next;
        if self.carried == Some(gone) {
            self.carried = None;
            self.children.tell(ChildId::Engine, &Word::LetGo);
        } else {
            self.supervisor.retire(gone);
        }
    }

    fn greet(&self) {
        let greeting = Greeting {
            name: &self.state.name,
            size_bytes: self.state.size_bytes,
            replicas: self.state.data_count(),
            witness: self.state.witness,
            nbd: self.config.nbd.as_ref(),
            iscsi: self.config.iscsi.as_ref(),
            ublk: self.config.ublk.number.is_some(),
            gave_way: self.config.iscsi_gives_way,
            target: target_name(&self.state.name, self.state.volume),
            dir: &self.config.dir,
        };
        output::print(&greeting.text());
    }

    fn loss(&mut self, loss: u32) {
        if self.state.loss == Some(loss) {
            return;
        }
        let next = State {
            loss: Some(loss),
            ..self.state.clone()
        };
        match next.write(Path::new(".")) {
            Ok(()) => self.state = next,
            // The next engine is told the old epoch, so a loss waits for the operator once more.
            Err(error) => tracing::error!(loss, "cannot remember the loss epoch: {error:#}"),
        }
    }

    fn obey(&mut self, io: &mut Io, now: Monotonic) {
        let mut orders = std::mem::take(&mut self.orders);
        loop {
            self.supervisor.settle(now, &mut orders);
            if orders.is_empty() {
                break;
            }
            for order in orders.drain(..) {
                match order {
                    Do::Start(id) => self.start(now, id),
                    Do::Stop(id) => self.children.stop(id),
                    Do::Kill(id) => {
                        tracing::warn!(child = %id, "child does not stop in time and is killed");
                        self.children.kill(id);
                    }
                    Do::Leave(exit) => {
                        self.exit = exit;
                        io.stop();
                    }
                }
            }
        }
        self.orders = orders;
    }
}

impl Handler for Up {
    fn accepted(&mut self, io: &mut Io, _listener: ListenerId, conn: ConnId) {
        io.close(conn, false);
    }

    fn stream(&mut self, _io: &mut Io, _conn: ConnId, _event: StreamEvent<'_>) {}

    fn want(&mut self, _io: &mut Io, _conn: ConnId) -> Want {
        Want::Pause
    }

    fn disk(&mut self, _io: &mut Io, _done: DiskDone) {}

    fn settle(&mut self, io: &mut Io, now: Monotonic) {
        if self.grant_at.is_some_and(|at| at <= now) {
            self.grant(now);
        }
        self.obey(io, now);
    }

    fn deadline(&self) -> Option<Monotonic> {
        [self.supervisor.deadline(), self.grant_at]
            .into_iter()
            .flatten()
            .min()
    }

    fn signal(&mut self, io: &mut Io, signal: Signal) {
        match signal {
            Signal::Child => {
                let mut ended = std::mem::take(&mut self.ended);
                self.children.reap(&mut ended);
                for (id, exit) in ended.drain(..) {
                    if id == ChildId::Engine {
                        self.grant_at = None;
                    }
                    self.supervisor.ended(io.now(), id, exit);
                    if id == ChildId::Engine && exit == Exit::Fenced {
                        // The engine that took over needs it.
                        self.set_apart(io.now());
                    }
                    let restarts = self.supervisor.restarts(id);
                    tracing::info!(child = %id, ?exit, restarts, "child has ended");
                }
                self.ended = ended;
            }
            Signal::Terminate | Signal::Interrupt | Signal::Hangup => {
                if !self.supervisor.is_stopping() {
                    output::print(
                        "Stopping: the engine drains and seals, then the replicas close\n",
                    );
                }
                self.supervisor.stop(Exit::Done);
            }
            Signal::User1 => {}
        }
    }

    fn message(&mut self, io: &mut Io, message: Message) {
        if let Ok(heard) = message.downcast::<Heard>() {
            self.heard(io.now(), &heard);
        }
    }
}

/// The replica that an engine carries: the first one that votes, if it was asked for or is the only one.
fn carried(asked: Option<bool>, state: &State) -> Option<usize> {
    let newcomer = state.change.map(|change| change.new);
    let mut voters = state.replicas.iter().map(|replica| replica.member);
    let first = voters.find(|member| Some(*member) != newcomer);
    first.filter(|_| asked.unwrap_or(state.count() == 1))
}

/// Arguments of a child.
struct Args(Vec<OsString>);

impl Args {
    fn new(command: &str) -> Args {
        Args(vec![command.into()])
    }

    fn set(&mut self, flag: &str, value: impl std::fmt::Display) {
        self.0.push(flag.into());
        self.0.push(value.to_string().into());
    }

    fn set_window_dir(&mut self, config: &Config) {
        if let Some(dir) = &config.window_dir {
            self.set("--window-dir", dir.display());
        }
    }

    fn set_target(&mut self, target: &IscsiArgs) {
        for portal in &target.portals {
            self.set("--iscsi-portal", portal);
        }
        for initiator in &target.initiators {
            self.set("--iscsi-initiator", initiator);
        }
        if let Some(file) = &target.chap_file {
            self.set("--iscsi-chap-file", file.display());
        }
        if let Some(file) = &target.mutual_chap_file {
            self.set("--iscsi-mutual-chap-file", file.display());
        }
        self.set("--iscsi-block", target.block);
        if target.read_only {
            self.0.push("--iscsi-read-only".into());
        }
    }
}
