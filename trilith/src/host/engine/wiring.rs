//! Moves events and actions between the loop, the engine, its frontends and the admin endpoint.

use super::frontends::Frontends;
use super::keeper::{Keeper, Kept};
use super::lanes::{Lanes, Verdict};
use super::ublk::Turn;
use crate::admin::http::{Answer, Method, Request as HttpRequest, Status};
use crate::admin::server::{AdminServer, Ask};
use crate::control::{Command, News};
use crate::exit::Exit;
use crate::host::Outbox;
use crate::host::process::Supervisor;
use crate::limits::{
    DIAL_TIME_MAX, DRAIN_TIME_MAX, PENDING_REQUESTS_MAX, SETTLE_ROUNDS_MAX, UBLK_LEAVE_TIME_MAX,
};
use std::collections::{BTreeMap, VecDeque};
use trilith_block::limits::MEMBERS_MAX;
use trilith_block::request::Target;
use trilith_block::{
    Buffers, Completion, ConnId, ErrorKind, FrontendAction, FrontendEvent, Machine, MemberId,
    MemberSet, Monotonic, Request, Stream, StreamEvent, Want,
};
use trilith_engine::order::{Holders, Order};
use trilith_engine::{Action, Engine, Event, ExitReason, Mode, Operator, Waiting};
use trilith_frontend_ublk::{News as DeviceNews, Next, UblkEvent, carry_out};
use trilith_runtime::{Address, DiskDone, Handler, Io, ListenerId, Message, Signal, UblkFetched};

/// Addresses of the members.
#[derive(Clone, Debug, Default)]
pub(crate) struct Members {
    addresses: [Option<Address>; MEMBERS_MAX],
}

impl Members {
    /// Sets a member's address.
    pub(crate) fn set(&mut self, member: MemberId, address: Address) {
        self.addresses[member.index()] = Some(address);
    }

    /// Members whose agreement is enough.
    fn majority(&self) -> usize {
        self.addresses.iter().flatten().count() / 2 + 1
    }

    /// A member's address.
    pub(crate) fn get(&self, member: MemberId) -> Option<&Address> {
        self.addresses[member.index()].as_ref()
    }
}

/// The member that runs in the same process, and where it listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Carried {
    pub(crate) member: MemberId,
    pub(crate) listener: ListenerId,
}

/// What an [`EngineHost`] is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) engine: Engine,
    pub(crate) frontends: Frontends,
    /// Keeps the reservations of the iSCSI target, if anything does.
    pub(crate) keeper: Option<Keeper>,
    pub(crate) members: Members,
    pub(crate) carried: Option<Carried>,
    pub(crate) admin_listeners: Vec<ListenerId>,
    pub(crate) supervisor: Supervisor,
    pub(crate) name: String,
}

/// Whose connection it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    Replica,
    /// A client of the frontend at this place.
    Client(usize),
    Admin,
}

/// The engine process.
#[derive(Debug)]
pub(crate) struct EngineHost {
    pub(super) parts: Parts,
    pub(super) admin: AdminServer,
    pub(super) started: Monotonic,
    /// Requests that the engine was too full for, oldest first.
    pub(super) pending: VecDeque<Request>,
    /// Requests of one frontend that wait for those of another.
    pub(super) order: Order,
    owners: BTreeMap<ConnId, Owner>,
    /// The operator's word that a loss is accepted is being passed on.
    accepting: bool,
    /// Connections of clients, and whose, that an accepted loss has left behind: they are closing.
    left_behind: Vec<(ConnId, usize)>,
    lanes: Lanes,
    /// Connections that are released: only for its memory.
    released: Vec<ConnId>,
    engine_out: Outbox<Action>,
    /// There is something to settle again in this turn.
    unsettled: bool,
    slow: Vec<ConnId>,
    told_mode: Option<Mode>,
    told_loss: Option<u32>,
    /// What was told of the members last.
    pub(super) told_members: Option<(u32, bool)>,
    /// A replacement that the supervisor wants.
    pub(super) replacement: Option<(MemberId, MemberId)>,
    stopping: bool,
    ending: Option<Ending>,
    done: bool,
}

/// The engine is done; the process leaves when its last bytes are sent.
#[derive(Clone, Copy, Debug)]
struct Ending {
    exit: Exit,
    until: Monotonic,
}

impl EngineHost {
    /// Wires the parts together.
    pub(crate) fn new(parts: Parts, now: Monotonic) -> EngineHost {
        let lanes = Lanes::new(parts.members.majority());
        EngineHost {
            parts,
            lanes,
            released: Vec::new(),
            admin: AdminServer::default(),
            started: now,
            pending: VecDeque::new(),
            order: Order::default(),
            owners: BTreeMap::new(),
            accepting: false,
            left_behind: Vec::new(),
            engine_out: Outbox::default(),
            unsettled: true,
            slow: Vec::new(),
            told_mode: None,
            told_loss: None,
            told_members: None,
            replacement: None,
            stopping: false,
            ending: None,
            done: false,
        }
    }

    /// Tells the supervisor that the process listens.
    pub(crate) fn announce(&mut self) {
        self.parts.supervisor.tell(&News::Ready);
    }

    /// How the process ends.
    pub(crate) fn exit(&self) -> Exit {
        self.ending.map_or(Exit::Failed, |ending| ending.exit)
    }

    /// True when it has ended and its last bytes are sent.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// Who is told what happens.
    pub(crate) fn supervisor(&self) -> Supervisor {
        self.parts.supervisor
    }

    /// Gives addresses and connections back to a process that goes on without it. Memory of the
    /// machines is not given back.
    pub(crate) fn leave(&mut self, io: &mut Io) {
        for listener in std::mem::take(&mut self.parts.admin_listeners) {
            io.stop_listening(listener);
        }
        for conn in self.owners.keys() {
            io.close(*conn, false);
        }
    }

    /// The member that was in the same process is not any more: it is dialled where others dial it.
    pub(crate) fn set_apart(&mut self) {
        self.parts.carried = None;
    }

    fn engine(&mut self, io: &mut Io, event: Event<'_>) {
        let now = io.now();
        self.unsettled = true;
        self.parts
            .engine
            .step(now, event, io.arena(), &mut self.engine_out.fill);
    }

    fn frontend(&mut self, io: &mut Io, at: usize, event: FrontendEvent<'_>) {
        let now = io.now();
        self.parts.frontends.at(at).step(now, event, io.arena());
    }

    /// Carries out what the machines have asked for, until they ask for nothing more. Each action
    /// of one brings a bounded number of the other, so it ends.
    fn pump(&mut self, io: &mut Io) {
        loop {
            if let Some(list) = self.engine_out.take() {
                for at in 0..list.list().len() {
                    self.engine_action(io, &list, list.list()[at]);
                }
                self.engine_out.done(list);
            } else if !self.pump_frontends(io) && !self.pump_ublk(io) {
                return;
            }
        }
    }

    /// Carries out what the frontends have asked for. False when that is nothing.
    fn pump_frontends(&mut self, io: &mut Io) -> bool {
        let mut any = false;
        for at in 0..self.parts.frontends.count() {
            let Some(list) = self.parts.frontends.at(at).out.take() else {
                continue;
            };
            any = true;
            for index in 0..list.list().len() {
                self.frontend_action(io, at, &list, list.list()[index]);
            }
            self.parts.frontends.at(at).out.done(list);
        }
        any
    }

    /// Carries out what the ublk device's machine has asked for. False when that is nothing.
    fn pump_ublk(&mut self, io: &mut Io) -> bool {
        let Some((at, ublk)) = self.parts.frontends.ublk_mut() else {
            return false;
        };
        let Some(list) = ublk.actions.take() else {
            return false;
        };
        for action in list.list() {
            match carry_out(io, *action) {
                Next::Done | Next::Detached => {}
                Next::Tell(event) => self.ublk_event(io, event),
                Next::Submit(request) => self.enter(io, at, request),
            }
        }
        if let Some((_, ublk)) = self.parts.frontends.ublk_mut() {
            ublk.actions.done(list);
        }
        true
    }

    fn ublk_event(&mut self, io: &mut Io, event: UblkEvent) {
        if let Some((_, ublk)) = self.parts.frontends.ublk_mut() {
            let now = io.now();
            ublk.tell(now, event, io.arena());
        }
    }

    fn engine_action(
        &mut self,
        io: &mut Io,
        list: &trilith_block::Actions<Action>,
        action: Action,
    ) {
        match action {
            Action::Dial { member } => self.dial(io, member),
            Action::Send {
                conn,
                head,
                payload,
            } => {
                let head = list.get(head);
                io.send(conn, head, payload);
                match self.lanes.sent(io.now(), conn, head) {
                    Verdict::Go => io.release(conn),
                    Verdict::Hold => io.hold(conn),
                }
            }
            Action::Close { conn } => io.close(conn, false),
            Action::Complete(completion) => self.complete(io, completion),
            Action::ModeChanged(_) => {}
            Action::Scrub(news) => super::scrub::log(news),
            Action::Exit(reason) => self.end(io, reason),
        }
    }

    fn dial(&mut self, io: &mut Io, member: MemberId) {
        // The engine knows only members that came with an address.
        let Some(address) = self.parts.members.get(member) else {
            return;
        };
        let conn = match self
            .parts
            .carried
            .filter(|carried| carried.member == member)
        {
            Some(carried) => {
                let conn = io.dial_own(carried.listener);
                self.lanes.prefer(conn);
                conn
            }
            None => io.dial(address, DIAL_TIME_MAX),
        };
        self.owners.insert(conn, Owner::Replica);
        self.engine(io, Event::Dialled { member, conn });
    }

    fn frontend_action(
        &mut self,
        io: &mut Io,
        at: usize,
        list: &trilith_block::Actions<FrontendAction>,
        action: FrontendAction,
    ) {
        match action {
            FrontendAction::Submit(request) => self.enter(io, at, request),
            FrontendAction::Send {
                conn,
                head,
                payload,
            } => io.send(conn, list.get(head), payload),
            FrontendAction::Close { conn } => io.close(conn, true),
        }
    }

    /// A request of the frontend at a place.
    fn enter(&mut self, io: &mut Io, at: usize, mut request: Request) {
        request.tag = self.parts.frontends.tag(at, request.tag);
        if self.is_left_behind(at) {
            self.refuse(io, &request);
        } else if let Some(request) = self.order.enter(&self.parts.frontends, at, request) {
            self.submit(io, request);
        }
    }

    /// M8, I17: what this frontend asks for now may be of clients bound to an older loss epoch.
    fn is_left_behind(&self, at: usize) -> bool {
        self.accepting || self.left_behind.iter().any(|(_, owner)| *owner == at)
    }

    fn refuse(&mut self, io: &mut Io, request: &Request) {
        if let Some(data) = request.data {
            io.arena().release(data.buf);
        }
        self.complete(
            io,
            Completion {
                tag: request.tag,
                result: Err(ErrorKind::Io),
            },
        );
    }

    /// M8, I17: everything that clients have asked for ends with an error, also what the frontends
    /// keep behind it, and then their connections end. What they have not said to the end, or what
    /// waits for memory, is of the time before as well.
    fn accept_loss(&mut self, io: &mut Io) {
        self.accepting = true;
        self.end_pending(io, ErrorKind::Io);
        if let Some((_, ublk)) = self.parts.frontends.ublk_mut() {
            let now = io.now();
            ublk.accept_loss(now, io.arena());
        }
        self.operator(io, Operator::AcceptLoss);
        for (conn, owner) in &self.owners {
            if let Owner::Client(at) = owner {
                self.left_behind.push((*conn, *at));
            }
        }
        for place in 0..self.left_behind.len() {
            io.close(self.left_behind[place].0, true);
        }
        self.pump(io);
        self.accepting = false;
    }

    /// Gives a request to the engine, behind those that wait already.
    fn submit(&mut self, io: &mut Io, request: Request) {
        if self.pending.is_empty() {
            self.unsettled = true;
            let now = io.now();
            let Err(back) = self.parts.engine.submit(now, request, io.arena()) else {
                return;
            };
            self.pending.push_back(back);
        } else if self.pending.len() < PENDING_REQUESTS_MAX {
            self.pending.push_back(request);
        } else {
            self.refuse(io, &request);
        }
    }

    fn retry_pending(&mut self, io: &mut Io) {
        while let Some(request) = self.pending.pop_front() {
            let now = io.now();
            match self.parts.engine.submit(now, request, io.arena()) {
                Ok(()) => self.unsettled = true,
                Err(back) => {
                    self.pending.push_front(back);
                    return;
                }
            }
        }
    }

    fn complete(&mut self, io: &mut Io, completion: Completion) {
        self.lanes.completed();
        if self.order.leave(completion.tag) {
            self.unsettled = true;
        }
        let Some(at) = self.parts.frontends.of_tag(completion.tag) else {
            debug_assert!(false, "nobody submitted {:?}", completion.tag);
            return;
        };
        let completion = Frontends::own(completion);
        self.frontend(io, at, FrontendEvent::Complete(completion));
    }

    /// The engine is done for ever: clients are told, then the process leaves.
    fn end(&mut self, io: &mut Io, reason: ExitReason) {
        let exit = match reason {
            ExitReason::Fenced => Exit::Fenced,
            ExitReason::Stopped { .. } | ExitReason::SteppedDown => Exit::Done,
        };
        tracing::info!(?reason, "engine ends");
        let mut time = DRAIN_TIME_MAX;
        if let Some((_, ublk)) = self.parts.frontends.ublk_mut() {
            if exit == Exit::Fenced {
                ublk.drop_device(io);
                time = UBLK_LEAVE_TIME_MAX;
            } else {
                ublk.leave(io);
            }
        }
        self.ending = Some(Ending {
            exit,
            until: io.now().after(time),
        });
        for at in 0..self.parts.frontends.count() {
            for listener in std::mem::take(&mut self.parts.frontends.at(at).listeners) {
                io.stop_listening(listener);
            }
        }
        self.end_pending(io, ErrorKind::Fenced);
        for at in 0..self.parts.frontends.count() {
            self.frontend(io, at, FrontendEvent::Serving(false));
        }
    }

    /// Ends what the engine has not taken yet, and what a frontend gives next as it has room again.
    fn end_pending(&mut self, io: &mut Io, kind: ErrorKind) {
        while let Some(request) = self.pending.pop_front().or_else(|| self.order.give_up()) {
            if let Some(data) = request.data {
                io.arena().release(data.buf);
            }
            let completion = Completion {
                tag: request.tag,
                result: Err(kind),
            };
            self.complete(io, completion);
        }
    }

    /// The second word to stop, for example the end of the supervisor's pipe, adds nothing.
    pub(crate) fn stop(&mut self, io: &mut Io) {
        if std::mem::replace(&mut self.stopping, true) {
            return;
        }
        let supervisor = self.parts.supervisor;
        let waits = match self.parts.frontends.ublk_mut() {
            Some((_, ublk)) => ublk.begin_stop(io, supervisor),
            None => false,
        };
        if !waits {
            self.operator(io, Operator::Stop);
        }
    }

    fn device_news(&mut self, io: &mut Io, news: DeviceNews) {
        let supervisor = self.parts.supervisor;
        let turn = match self.parts.frontends.ublk_mut() {
            Some((_, ublk)) => ublk.news(io, news, supervisor),
            None => Turn::Stay,
        };
        if turn == Turn::Left && self.stopping && self.ending.is_none() {
            self.operator(io, Operator::Stop);
        }
        self.pump(io);
    }

    /// Opens the ublk device when the volume can be served.
    fn look_after_device(&mut self, now: Monotonic) {
        let mode = self.parts.engine.mode();
        if self.stopping || self.ending.is_some() {
            return;
        }
        if let Some((_, ublk)) = self.parts.frontends.ublk_mut()
            && !ublk.look(now, mode)
        {
            tracing::error!("the kernel keeps a ublk device that is not served: starting anew");
            self.done = true;
        }
    }

    /// True while the end has to wait for somebody.
    fn is_awaited(&self) -> bool {
        let clients = self.owners.values().any(|owner| *owner != Owner::Replica);
        let ublk = self.parts.frontends.ublk();
        clients || ublk.is_some_and(super::ublk::UblkFrontend::is_leaving)
    }

    /// Which replicas decide, when that is a majority of these; else entries wait for nobody.
    pub(super) fn wait_for(&mut self, voters: Option<MemberSet>) {
        let majority = voters.map_or(usize::MAX, MemberSet::majority);
        self.lanes.set_majority(majority);
    }

    pub(super) fn operator(&mut self, io: &mut Io, operator: Operator) {
        self.engine(io, Event::Operator(operator));
        self.pump(io);
    }

    /// Tells the supervisor, and the log, what has changed.
    fn tell_changes(&mut self, io: &mut Io) {
        self.tend_replacement(io);
        let mode = self.parts.engine.mode();
        if self.told_mode != Some(mode) {
            self.told_mode = Some(mode);
            let (state, detail) = super::report::words(&self.parts.engine.status(io.now()));
            tracing::info!(state, "volume is {state}: {detail}");
            self.parts
                .supervisor
                .tell(&News::State(format!("{state}: {detail}")));
        }
        let loss = self.parts.engine.loss();
        // Before the operator has accepted a loss, clients are still bound to the epoch before.
        let accepted = mode != Mode::Waiting(Waiting::LossAccepted);
        if let (true, Some(loss), true) = (accepted, loss, loss != self.told_loss) {
            self.told_loss = Some(loss);
            self.parts.supervisor.tell(&News::Loss(loss));
        }
    }

    fn answer(&mut self, io: &mut Io, conn: ConnId, request: Ask) {
        let answer = match request {
            Ok(request) => self.route(io, &request),
            Err(status) => Answer::text(status, "expected a GET or POST request of HTTP/1.1"),
        };
        io.send(conn, &answer.to_bytes(), None);
        io.close(conn, true);
    }

    fn route(&mut self, io: &mut Io, request: &HttpRequest) -> Answer {
        match (request.method, request.target.as_str()) {
            (Method::Get, "/status") => self.status_answer(io),
            (Method::Get, "/metrics") => self.metrics_answer(io),
            (Method::Post, "/volume/accept-loss") => {
                if self.parts.engine.mode() != Mode::Waiting(Waiting::LossAccepted) {
                    return Answer::text(Status::Conflict, "no loss waits to be accepted");
                }
                self.accept_loss(io);
                Answer::text(Status::Ok, "loss accepted")
            }
            (Method::Post, "/volume/step-down") => {
                if let Some((_, ublk)) = self.parts.frontends.ublk_mut() {
                    ublk.leave(io);
                }
                self.operator(io, Operator::StepDown);
                Answer::text(Status::Ok, "engine steps down")
            }
            (Method::Post, super::scrub::TARGET) => self.start_scrub(io),
            (Method::Post, "/volume/keep-replica") => self.keep_replica(io),
            (Method::Post, target) if target.starts_with(super::replace::TARGET) => {
                self.ask_to_replace(io, target)
            }
            (Method::Post, "/slowest/reset") => {
                let now = io.now();
                self.parts.engine.forget_slowest(now);
                Answer::text(
                    Status::Ok,
                    "the slowest operations from now on are collected",
                )
            }
            (Method::Post, "/ublk/recover") => self.recover_device(),
            (
                _,
                "/status"
                | "/metrics"
                | "/volume/accept-loss"
                | "/volume/step-down"
                | "/slowest/reset"
                | "/ublk/recover",
            ) => Answer::text(Status::BadMethod, "expected another method"),
            _ => Answer::text(
                Status::NotFound,
                "expected /status, /metrics, /slowest/reset, /volume/... or /ublk/recover",
            ),
        }
    }

    fn recover_device(&mut self) -> Answer {
        let Some((_, ublk)) = self.parts.frontends.ublk_mut() else {
            return Answer::text(Status::Conflict, "the engine runs without --ublk");
        };
        if ublk.open_now() {
            return Answer::text(Status::Ok, "the device is being opened");
        }
        let why = format!("nothing to recover: the device is {}", ublk.state());
        Answer::text(Status::Conflict, &why)
    }

    /// Lets requests go on that have waited for those of another frontend.
    fn retry_held(&mut self, io: &mut Io) {
        while let Some(request) = self.order.next(&self.parts.frontends) {
            self.submit(io, request);
        }
    }

    /// Has reservations kept that are to outlive this process. Their initiators are answered when
    /// they are.
    fn keep_reservations(&mut self) {
        let Some(keeper) = self.parts.keeper.as_mut().filter(|keeper| keeper.is_free()) else {
            return;
        };
        if let Some((target, _)) = self.parts.frontends.iscsi_mut()
            && let Some((number, state)) = target.unkept()
            && !keeper.keep(number, state)
        {
            tracing::error!("the keeper of reservations is gone");
        }
    }

    fn kept(&mut self, io: &mut Io, kept: Kept) {
        if let Some(keeper) = &mut self.parts.keeper {
            keeper.done();
        }
        if let Some((target, out)) = self.parts.frontends.iscsi_mut() {
            let now = io.now();
            target.kept(now, kept.number, kept.ok, io.arena(), &mut out.fill);
        }
        self.pump(io);
    }

    /// Lets the machines settle.
    pub(crate) fn tend(&mut self, io: &mut Io, now: Monotonic) {
        self.settle_machines(io, now);
        self.lanes.due(now, &mut self.released);
        for conn in self.released.drain(..) {
            io.release(conn);
        }
        self.keep_reservations();
        self.admin.settle(now, &mut self.slow);
        for conn in self.slow.drain(..) {
            io.close(conn, false);
        }
        self.look_after_device(now);
        self.tell_changes(io);
        if let Some(ending) = self.ending
            && (!self.is_awaited() || ending.until <= now)
        {
            self.done = true;
        }
    }

    fn settle_machines(&mut self, io: &mut Io, now: Monotonic) {
        for _ in 0..SETTLE_ROUNDS_MAX {
            self.retry_pending(io);
            self.retry_held(io);
            self.unsettled = false;
            self.parts
                .engine
                .settle(now, io.arena(), &mut self.engine_out.fill);
            self.pump(io);
            for at in 0..self.parts.frontends.count() {
                self.parts.frontends.at(at).settle(now, io.arena());
            }
            self.pump(io);
            if !self.unsettled {
                return;
            }
        }
    }
}

impl Handler for EngineHost {
    fn accepted(&mut self, io: &mut Io, listener: ListenerId, conn: ConnId) {
        let owner = if let Some(at) = self.parts.frontends.of_listener(listener) {
            if self.is_left_behind(at) {
                // It may come again in a moment.
                return io.close(conn, false);
            }
            Owner::Client(at)
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
            self.lanes.closed(conn);
        } else if owner == Owner::Replica {
            self.lanes.heard(conn);
        }
        match owner {
            Owner::Replica => self.engine(io, Event::Stream(conn, event)),
            Owner::Client(at) => self.frontend(io, at, FrontendEvent::Stream(conn, event)),
            Owner::Admin => {
                if let Some(request) = self.admin.stream(conn, event) {
                    self.answer(io, conn, request);
                }
            }
        }
        self.pump(io);
        if event == StreamEvent::Closed {
            self.left_behind.retain(|(left, _)| *left != conn);
        }
    }

    fn want(&mut self, io: &mut Io, conn: ConnId) -> Want {
        match self.owners.get(&conn) {
            Some(Owner::Replica) => self.parts.engine.want(conn, io.arena()),
            Some(Owner::Client(at)) => self.parts.frontends.at(*at).want(conn, io.arena()),
            Some(Owner::Admin) => self.admin.want(conn),
            None => Want::Pause,
        }
    }

    fn disk(&mut self, _io: &mut Io, _done: DiskDone) {}

    fn settle(&mut self, io: &mut Io, now: Monotonic) {
        self.tend(io, now);
        if self.done {
            io.stop();
        }
    }

    fn deadline(&self) -> Option<Monotonic> {
        // What was left unsettled by a full round goes on at once.
        let rest = self.unsettled.then_some(Monotonic(0));
        [
            rest,
            self.parts.engine.deadline(),
            self.parts.frontends.deadline(),
            self.admin.deadline(),
            self.lanes.deadline(),
            self.ending.map(|ending| ending.until),
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

    fn ublk(&mut self, io: &mut Io, fetched: UblkFetched) {
        self.ublk_event(io, UblkEvent::Fetched(fetched));
        self.pump(io);
    }

    fn message(&mut self, io: &mut Io, message: Message) {
        let message = match message.downcast::<Kept>() {
            Ok(kept) => return self.kept(io, *kept),
            Err(other) => other,
        };
        let message = match message.downcast::<DeviceNews>() {
            Ok(news) => return self.device_news(io, *news),
            Err(other) => other,
        };
        match message.downcast::<Command>().map(|command| *command) {
            Ok(Command::Grant(span)) => {
                let until = io.now().after(span);
                self.engine(io, Event::Grant { until });
                self.pump(io);
            }
            Ok(Command::Stop) => self.stop(io),
            // Nothing is carried here.
            Ok(Command::LetGo) => {}
            Ok(Command::Replace {
                old,
                new,
                id,
                address,
            }) => self.want_replacement(old, new, id, &address),
            Err(_) => {}
        }
    }
}
