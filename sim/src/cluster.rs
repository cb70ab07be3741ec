//! The cluster: hosts, processes, network and disks under one clock. This file holds the state and
//! moves events; [`crate::storage`] is the life of replicas and their disks, [`crate::supervisor`]
//! that of engines and the faults, [`crate::workload`] the clients.

use crate::check::volume::History;
use crate::config::Config;
use crate::entropy::Entropy;
use crate::network::{Arrival, EndState, Host, Line, Network, Outgoing};
use crate::process::{Effect, HostState, Node};
use crate::story::Story;
use crate::supervisor::{Supervisor, Undo};
use crate::workload::Workload;
use crate::world::{MICROS, MILLIS, Nanos, SECONDS, World};
use trilith_block::{Buffers, ConnId, Monotonic, StreamEvent, Want};
use trilith_wire::Kind;

/// What happens to a process.
#[derive(Clone, Debug)]
pub enum NodeEvent {
    /// The end of a batch: settle, carry out the actions.
    Turn,
    /// A deadline may have passed.
    Timer,
    /// A connection stands.
    Opened(Line, usize),
    /// Bytes may have arrived.
    Readable(Line, usize),
    /// A connection is gone.
    Closed(Line, usize),
    /// A disk operation has ended.
    Disk(u64, Result<(), trilith_replica::store::DiskError>),
    /// What was sent goes to the network.
    Transmit(Line, usize),
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// To this life of the host's process.
    Node(Host, u64, NodeEvent),
    /// Bytes or the end of a pipe are due.
    Arrive(Line, usize),
    /// A dial reaches its target.
    Dial(Line, u32),
    /// The answer reaches the dialler.
    DialEnd(Line, bool),
    /// A disk operation ends.
    Disk(Host, u64),
    /// A process is started, if the ticket is still good.
    Start(Host, u64),
    /// A host has power again.
    Power(Host),
    /// An engine is started, if the ticket is still good; it supersedes the last one there or not.
    StartEngine(Host, u64, bool),
    /// The fault of this number strikes.
    Fault(usize),
    /// Blocks of a replica rot.
    Rot,
    /// A fault ends.
    Undo(Undo),
    /// A client wakes up.
    Client(usize),
    /// An iSCSI initiator (client) does something to a request (life, number).
    Initiator(usize, u64, u64, crate::iscsi::Deed),
    /// The target of an engine's life learns that a connection is gone.
    HalfOpen(Host, u64, ConnId),
    /// A client moves to the active engine.
    Attach(usize),
    /// The operator looks at an engine that waits for the loss to be accepted.
    Accept(Host, u64),
    /// The supervisor looks after grants and engines.
    Supervise,
    /// The operator wants a replica to be replaced.
    Replace,
    /// The faults end, the cluster must heal.
    Heal,
    /// The healing phase looks how far things are.
    Probe,
}

/// Everything.
#[derive(Debug)]
pub struct Cluster {
    /// Time and events.
    pub world: World<Event>,
    /// Choices.
    pub entropy: Entropy,
    /// What kind of run it is.
    pub config: Config,
    /// Connections.
    pub network: Network,
    /// Replicas first, then the hosts of engines.
    pub hosts: Vec<HostState>,
    /// Engines and operators.
    pub supervisor: Supervisor,
    /// Clients.
    pub workload: Workload,
    /// Comparisons of the replicas.
    pub scrubs: crate::scrub::Scrubs,
    /// What rots while faults strike.
    pub decay: crate::decay::Decay,
    /// What lying disks have lost.
    pub betrayals: crate::betrayal::Betrayals,
    /// What clients did.
    pub history: History,
    /// What happened, in words.
    pub story: Story,
    /// Why the run has failed.
    pub failure: Option<String>,
    /// The healing phase.
    pub healing: crate::run::Healing,
    /// What the checks of the state remember.
    pub watcher: crate::check::state::Watcher,
    /// What the checkers know of each replica.
    pub watches: Vec<crate::check::store::Watch>,
    /// Choices of iSCSI clients.
    pub initiators: Entropy,
    /// Who chooses the order of events, where it is not time ([`crate::explore`]).
    pub guide: Option<crate::explore::Guide>,
}

impl Cluster {
    /// Ends the run.
    pub fn fail(&mut self, why: String) {
        if self.failure.is_none() {
            let now = self.world.now();
            self.story.tell(now, || format!("FAILURE {why}"));
            self.failure = Some(why);
        }
    }

    /// What the clock of a host shows.
    pub fn clock(&self, host: Host) -> Monotonic {
        self.hosts[host].clock.at(self.world.now())
    }

    /// Schedules something for the process that now lives on a host.
    pub fn notify(&mut self, host: Host, delay: Nanos, event: NodeEvent) {
        if let Some(node) = &self.hosts[host].node {
            let life = node.life;
            self.world.after(delay, Event::Node(host, life, event));
        }
    }

    /// One event.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Node(host, life, event) => self.node_event(host, life, event),
            Event::Arrive(line, from) => self.arrive(line, from),
            Event::Dial(line, tries) => self.dial_arrives(line, tries),
            Event::DialEnd(line, ok) => self.dial_ends(line, ok),
            Event::Disk(host, operation) => self.disk_ends(host, operation),
            Event::Start(host, ticket) => self.start_replica(host, ticket),
            Event::Power(host) => self.power_on(host),
            Event::StartEngine(host, ticket, supersedes) => {
                self.start_engine(host, ticket, supersedes);
            }
            Event::Fault(index) => self.strike(index),
            Event::Rot => self.rot_strikes(),
            Event::Undo(undo) => self.undo(undo),
            Event::Client(client) => self.client_wakes(client),
            Event::Initiator(client, life, number, deed) => {
                self.initiator_acts(client, life, number, deed);
            }
            Event::HalfOpen(host, life, conn) => self.half_open_ends(host, life, conn),
            Event::Attach(client) => self.attach(client),
            Event::Accept(host, life) => self.accept_loss(host, life),
            Event::Supervise => self.supervise(),
            Event::Replace => self.begin_replacement(),
            Event::Heal => self.heal(),
            Event::Probe => self.probe(),
        }
    }

    fn node_event(&mut self, host: Host, life: u64, event: NodeEvent) {
        let state = &mut self.hosts[host];
        if state.node.as_ref().is_none_or(|n| n.life != life) {
            return;
        }
        if state.paused {
            state.backlog.push(event);
            return;
        }
        let Some(mut node) = state.node.take() else {
            return;
        };
        let now = self.clock(host);
        let mut worked = true;
        match event {
            NodeEvent::Turn => {
                node.turn = false;
                self.turn(host, node);
                return;
            }
            NodeEvent::Timer => {
                // A timer that an earlier one has replaced. Without a scrub, whose deadlines come
                // and go all the time, they are few; there they stay, as turns draw choices.
                let early = node.timer_at.is_none_or(|at| at > self.world.now());
                if self.config.scrub.is_some() && early {
                    self.put_back(host, node);
                    return;
                }
                node.timer_at = None;
                if node.deadline().is_some_and(|at| at <= now) {
                    self.turn(host, node);
                    return;
                }
                self.arm(host, &mut node);
                worked = false;
            }
            NodeEvent::Opened(line, end) => self.opened(&mut node, line, end, now),
            NodeEvent::Readable(line, end) => worked = self.pump(&mut node, line, end, now),
            NodeEvent::Closed(line, end) => self.closed(&mut node, line, end, now),
            NodeEvent::Disk(operation, result) => {
                if let Some(flight) = node.disk.remove(&operation) {
                    if let Some(slice) = flight.buffer {
                        node.arena.release(slice.buf);
                    }
                    node.disk_done(now, flight.tag, result);
                }
            }
            NodeEvent::Transmit(line, end) => {
                self.transmit(&mut node, line, end);
                worked = false;
            }
        }
        if worked {
            self.request_turn(host, &mut node);
        }
        self.put_back(host, node);
    }

    /// The process goes on, unless its window file says that it is dead.
    fn put_back(&mut self, host: Host, node: Node) {
        let dead = self.hosts[host].words.is_dead();
        self.hosts[host].node = Some(node);
        if dead {
            let now = self.world.now();
            self.story
                .tell(now, || format!("replica {host} dies between two stores"));
            self.kill(host);
        }
    }

    /// Schedules the end of the batch.
    pub fn request_turn(&mut self, host: Host, node: &mut Node) {
        if !node.turn {
            node.turn = true;
            let delay = if self.entropy.chance(1, 8) {
                self.entropy.below(50 * MICROS)
            } else {
                0
            };
            self.world
                .after(delay, Event::Node(host, node.life, NodeEvent::Turn));
        }
    }

    fn arm(&mut self, host: Host, node: &mut Node) {
        let Some(at) = node.deadline() else { return };
        let at = self.hosts[host].clock.when(at).max(self.world.now() + 1);
        if node.timer_at.is_none_or(|t| t > at) {
            node.timer_at = Some(at);
            self.world
                .at(at, Event::Node(host, node.life, NodeEvent::Timer));
        }
    }

    /// Settle, carry out the actions, ask paused connections again.
    fn turn(&mut self, host: Host, mut node: Node) {
        let now = self.clock(host);
        node.settle(now);
        if self.hosts[host].words.is_dead() {
            return self.put_back(host, node);
        }
        let mut lines: Vec<(Line, usize)> = Vec::new();
        let mut exits = None;
        loop {
            let mut effects = std::mem::take(&mut node.effects);
            node.take_effects(&mut effects);
            // The driver owns what the actions name before anything is freed.
            for effect in &effects {
                match effect {
                    Effect::Send(_, _, Some(slice)) => node.arena.retain(slice.buf),
                    Effect::Disk(_, op) => {
                        if let Some(slice) = crate::storage::buffer_of(op) {
                            node.arena.retain(slice.buf);
                        }
                    }
                    Effect::Send(_, _, None)
                    | Effect::Dial(_)
                    | Effect::Close(..)
                    | Effect::Complete(_)
                    | Effect::Mode(_)
                    | Effect::Scrub(_)
                    | Effect::EngineExit(_)
                    | Effect::NeedWords(_)
                    | Effect::Opened(_)
                    | Effect::ReplicaExit(_) => {}
                }
            }
            let idle = effects.is_empty();
            for effect in effects.drain(..) {
                self.effect(host, &mut node, effect, &mut lines, &mut exits);
            }
            node.effects = effects;
            let frontend = self.frontend(&mut node, now);
            node.arena.reclaim();
            if idle && !frontend {
                break;
            }
        }
        for (line, end) in lines {
            if self.entropy.chance(1, 16) {
                self.schedule_transmit(host, &node, line, end);
            } else {
                self.transmit(&mut node, line, end);
            }
        }
        let waiting = std::mem::take(&mut node.waiting);
        let mut worked = false;
        for conn in waiting {
            if let Some((line, end)) = node.conns.get(&conn).copied() {
                worked |= self.pump(&mut node, line, end, now);
            }
        }
        if exits.is_none() {
            worked |= self.submit_refused(&mut node, now);
        }
        if worked {
            self.request_turn(host, &mut node);
        }
        self.watch(host, &mut node);
        self.arm(host, &mut node);
        match exits {
            None => self.put_back(host, node),
            Some(why) => self.exited(host, node, &why),
        }
    }

    fn effect(
        &mut self,
        host: Host,
        node: &mut Node,
        effect: Effect,
        lines: &mut Vec<(Line, usize)>,
        exits: &mut Option<Effect>,
    ) {
        let now = self.clock(host);
        match effect {
            Effect::Dial(member) => {
                let conn = ConnId(node.next_conn);
                node.next_conn += 1;
                let target = self.config.host_of(member.index());
                let line = self.network.dial(host, node.life, conn, target);
                node.conns.insert(conn, (line, 0));
                let delay = self.network.delay(host, &mut self.entropy);
                self.world.after(delay, Event::Dial(line, 0));
                if let crate::process::Program::Engine(p) = &mut node.program {
                    use trilith_block::Machine;
                    let event = trilith_engine::Event::Dialled { member, conn };
                    p.machine.step(now, event, &mut node.arena, &mut p.out);
                }
            }
            Effect::Send(conn, head, payload) => {
                self.watch_frame(host, node, &head);
                let known = node.conns.get(&conn).copied();
                let open = known.and_then(|(line, end)| {
                    let connection = self.network.get(line)?;
                    (connection.ends[end].state == EndState::Open).then_some((line, end))
                });
                match open {
                    Some((line, end)) => {
                        let at = self.world.now();
                        self.story.frame(at, host, line, &head);
                        if head.get(3) == Some(&Kind::Promise.to_byte()) {
                            self.check_promise(host, node);
                        }
                        if let Some(c) = self.network.get(line) {
                            c.pipes[end].outgoing.push_back(Outgoing { head, payload });
                        }
                        if !lines.contains(&(line, end)) {
                            lines.push((line, end));
                        }
                    }
                    None => {
                        if let Some(slice) = payload {
                            node.arena.release(slice.buf);
                        }
                    }
                }
            }
            Effect::Close(conn, graceful) => self.close(node, conn, graceful),
            Effect::Disk(tag, op) => self.disk_starts(host, node, tag, op),
            Effect::Complete(completion) => self.completed(node, now, completion),
            Effect::Mode(mode) => self.mode_changed(host, node, mode),
            Effect::Scrub(news) => self.scrub_told(host, news),
            Effect::NeedWords(len) => self.give_words(host, node, len),
            Effect::Opened(opened) => {
                let at = self.world.now();
                self.story
                    .tell(at, || format!("replica {host} open: {opened:?}"));
                self.check_opened(host, node);
                self.tell_space(host, node);
            }
            Effect::EngineExit(_) | Effect::ReplicaExit(_) => *exits = Some(effect),
        }
    }

    // Connections.

    fn schedule_transmit(&mut self, host: Host, node: &Node, line: Line, end: usize) {
        let Some(connection) = self.network.get(line) else {
            return;
        };
        if !std::mem::replace(&mut connection.pipes[end].transmit_scheduled, true) {
            let delay = self.entropy.below(300 * MICROS);
            self.world.after(
                delay,
                Event::Node(host, node.life, NodeEvent::Transmit(line, end)),
            );
        }
    }

    /// What the process has sent is copied out of its memory, and its buffers are released.
    fn transmit(&mut self, node: &mut Node, line: Line, end: usize) {
        let Some(connection) = self.network.get(line) else {
            return;
        };
        let pipe = &mut connection.pipes[end];
        pipe.transmit_scheduled = false;
        let mut bytes = Vec::new();
        for outgoing in pipe.outgoing.drain(..) {
            if bytes.is_empty() {
                bytes = outgoing.head;
            } else {
                bytes.extend_from_slice(&outgoing.head);
            }
            if let Some(slice) = outgoing.payload {
                bytes.extend_from_slice(node.arena.bytes(slice));
                node.arena.release(slice.buf);
            }
        }
        if bytes.is_empty() {
            return;
        }
        let now = self.world.now();
        if let Some(at) = self
            .network
            .transmit(line, end, bytes, now, &mut self.entropy)
        {
            self.world.at(at, Event::Arrive(line, end));
        }
    }

    /// The process closes: nothing more comes from it; Closed follows.
    fn close(&mut self, node: &mut Node, conn: ConnId, graceful: bool) {
        let Some((line, end)) = node.conns.get(&conn).copied() else {
            return;
        };
        if graceful {
            self.transmit(node, line, end);
        }
        let Some(connection) = self.network.get(line) else {
            return;
        };
        let state = connection.ends[end].state;
        if matches!(state, EndState::Closing | EndState::Gone) {
            return;
        }
        connection.ends[end].state = EndState::Closing;
        let (host, life) = (connection.ends[end].host, connection.ends[end].life);
        for outgoing in connection.pipes[end].outgoing.drain(..) {
            if let Some(slice) = outgoing.payload {
                node.arena.release(slice.buf);
            }
        }
        let reset = !graceful && self.entropy.chance(1, 2);
        self.finish(line, end, reset);
        let delay = self.entropy.below(20 * MICROS);
        self.world
            .after(delay, Event::Node(host, life, NodeEvent::Closed(line, end)));
    }

    /// The other end is told that nothing more comes.
    fn finish(&mut self, line: Line, end: usize, reset: bool) {
        let now = self.world.now();
        if let Some(at) = self
            .network
            .finish(line, end, reset, now, &mut self.entropy)
        {
            self.world.at(at, Event::Arrive(line, end));
        }
    }

    fn arrive(&mut self, line: Line, from: usize) {
        let now = self.world.now();
        if let Some(again) = self.network.arrive(line, from, now, &mut self.entropy) {
            self.world.at(again, Event::Arrive(line, from));
        }
        let Some(connection) = self.network.get(line) else {
            return;
        };
        let (sender, receiver) = (&connection.ends[from], &connection.ends[1 - from]);
        let (from_host, to_host, life) = (sender.host, receiver.host, receiver.life);
        let (to_state, from_state) = (receiver.state, sender.state);
        match to_state {
            EndState::Open => {
                let event = NodeEvent::Readable(line, 1 - from);
                self.node_event(to_host, life, event);
            }
            EndState::Gone => {
                // Nobody is there: a living host answers with a reset.
                let reachable = self.hosts[to_host].powered
                    && !self.network.is_cut(from_host, to_host)
                    && !self.network.is_cut(to_host, from_host);
                if reachable && from_state == EndState::Open {
                    self.finish(line, 1 - from, true);
                }
                self.network.reap(line);
            }
            EndState::Dialling | EndState::Closing => {}
        }
    }

    fn dial_arrives(&mut self, line: Line, tries: u32) {
        let Some(connection) = self.network.get(line) else {
            return;
        };
        if connection.ends[0].state != EndState::Dialling {
            return;
        }
        let (from, to) = (connection.ends[0].host, connection.ends[1].host);
        let blocked = self.network.is_cut(from, to) || self.network.is_cut(to, from);
        let delay = self.network.delay(to, &mut self.entropy);
        if blocked || !self.hosts[to].powered {
            let event = if tries < 3 {
                Event::Dial(line, tries + 1)
            } else {
                Event::DialEnd(line, false)
            };
            self.world.after(SECONDS, event);
            return;
        }
        let Some(node) = self.hosts[to].node.as_mut() else {
            self.world.after(delay, Event::DialEnd(line, false));
            return;
        };
        let conn = ConnId(node.next_conn);
        node.next_conn += 1;
        node.conns.insert(conn, (line, 1));
        let life = node.life;
        if let Some(connection) = self.network.get(line) {
            let end = &mut connection.ends[1];
            (end.life, end.conn) = (life, conn);
        }
        self.world.after(delay, Event::DialEnd(line, true));
        self.node_event(to, life, NodeEvent::Opened(line, 1));
    }

    fn dial_ends(&mut self, line: Line, ok: bool) {
        let Some(connection) = self.network.get(line) else {
            return;
        };
        let end = &connection.ends[0];
        let (host, life, state) = (end.host, end.life, end.state);
        match (state, ok) {
            (EndState::Dialling, true) => {
                self.node_event(host, life, NodeEvent::Opened(line, 0));
            }
            (EndState::Dialling, false) => {
                connection.ends[1].state = EndState::Gone;
                self.node_event(host, life, NodeEvent::Closed(line, 0));
            }
            (EndState::Gone | EndState::Closing, true) => self.finish(line, 0, true),
            (EndState::Gone | EndState::Closing, false) => {
                connection.ends[1].state = EndState::Gone;
                self.network.reap(line);
            }
            (EndState::Open, _) => {}
        }
    }

    fn opened(&mut self, node: &mut Node, line: Line, end: usize, now: Monotonic) {
        let Some(connection) = self.network.get(line) else {
            return;
        };
        if connection.ends[end].state != EndState::Dialling {
            return;
        }
        connection.ends[end].state = EndState::Open;
        let conn = connection.ends[end].conn;
        node.stream(now, conn, StreamEvent::Opened);
        self.pump(node, line, end, now);
    }

    fn closed(&mut self, node: &mut Node, line: Line, end: usize, now: Monotonic) {
        let Some(connection) = self.network.get(line) else {
            return;
        };
        let state = &mut connection.ends[end];
        if state.state == EndState::Gone {
            return;
        }
        state.state = EndState::Gone;
        let conn = state.conn;
        for outgoing in connection.pipes[end].outgoing.drain(..) {
            if let Some(slice) = outgoing.payload {
                node.arena.release(slice.buf);
            }
        }
        node.conns.remove(&conn);
        self.finish(line, end, false);
        self.network.reap(line);
        let at = self.world.now();
        let host = node.life;
        self.story
            .detail(at, || format!("closed line {line} end {end} (life {host})"));
        node.stream(now, conn, StreamEvent::Closed);
    }

    /// Gives a process what it wants of what has arrived. True when it got anything.
    fn pump(&mut self, node: &mut Node, line: Line, end: usize, now: Monotonic) -> bool {
        let mut worked = false;
        loop {
            let Some(connection) = self.network.get(line) else {
                return worked;
            };
            let side = &connection.ends[end];
            if side.state != EndState::Open {
                return worked;
            }
            let (conn, known) = (side.conn, side.want);
            let want = known.unwrap_or_else(|| node.want(conn));
            if self.feed(node, line, end, want, now) {
                worked = true;
                continue;
            }
            if want == Want::Pause && !node.waiting.contains(&conn) {
                node.waiting.push(conn);
            }
            let at = self.world.now();
            if self.network.arrival(line, end, at) == Arrival::End {
                self.closed(node, line, end, now);
                worked = true;
            }
            return worked;
        }
    }

    /// One event of a stream, if there are bytes enough for it.
    fn feed(
        &mut self,
        node: &mut Node,
        line: Line,
        end: usize,
        want: Want,
        now: Monotonic,
    ) -> bool {
        let Some(connection) = self.network.get(line) else {
            return false;
        };
        let side = &mut connection.ends[end];
        side.want = if want == Want::Pause {
            None
        } else {
            Some(want)
        };
        let (conn, filled) = (side.conn, side.filled);
        let Some(received) = self.network.received(line, end) else {
            return false;
        };
        let mut head = [0u8; trilith_block::limits::HEADER_BYTES_MAX];
        let mut progress = 0;
        let complete = match want {
            Want::Pause => return false,
            Want::Header(len) => {
                assert!(
                    (1..=head.len()).contains(&len),
                    "want of a header of {len} bytes"
                );
                if received.len() < len {
                    return false;
                }
                copy_out(received, &mut head[..len]);
                true
            }
            Want::Payload(slice) => {
                progress = received.len().min(slice.len as usize - filled);
                let target = &mut node.arena.bytes_mut(slice)[filled..filled + progress];
                copy_out(received, target);
                filled + progress == slice.len as usize
            }
            Want::Discard(len) => {
                progress = received
                    .len()
                    .min(usize::try_from(len).unwrap_or(usize::MAX) - filled);
                received.drain(..progress);
                (filled + progress) as u64 == len
            }
        };
        if let Some(connection) = self.network.get(line) {
            let side = &mut connection.ends[end];
            side.filled = if complete { 0 } else { filled + progress };
            if complete {
                side.want = None;
            }
        }
        if !complete {
            return false;
        }
        match want {
            Want::Header(len) => node.stream(now, conn, StreamEvent::Header(&head[..len])),
            Want::Payload(_) | Want::Discard(_) => node.stream(now, conn, StreamEvent::Payload),
            Want::Pause => {}
        }
        true
    }

    /// The process on a host is gone at once; its kernel lives.
    pub fn kill(&mut self, host: Host) {
        let Some(mut node) = self.hosts[host].node.take() else {
            return;
        };
        self.excuse_lost(host, Some(&mut node), false);
        drop(node);
        self.hosts[host].paused = false;
        self.hosts[host].backlog.clear();
        for (line, end) in self.network.at(host) {
            let Some(connection) = self.network.get(line) else {
                continue;
            };
            connection.ends[end].state = EndState::Gone;
            connection.pipes[end].outgoing.clear();
            let reset = self.entropy.chance(1, 2);
            self.finish(line, end, reset);
        }
        if let Some(disk) = self.hosts[host].disk.as_mut() {
            disk.orphan(&mut self.entropy);
        }
        self.hosts[host].words.revive();
        self.engine_gone(host);
    }

    /// The host is gone without a word.
    pub fn cut_power(&mut self, host: Host, cut: crate::disk::Cut) {
        let mut node = self.hosts[host].node.take();
        self.excuse_lost(host, node.as_mut(), true);
        self.hosts[host].paused = false;
        self.hosts[host].backlog.clear();
        self.hosts[host].powered = false;
        self.hosts[host].start_ticket += 1;
        for (line, end) in self.network.at(host) {
            let Some(connection) = self.network.get(line) else {
                continue;
            };
            connection.ends[end].state = EndState::Gone;
            connection.pipes[end].outgoing.clear();
            let peer = &connection.ends[1 - end];
            let (host, life) = (peer.host, peer.life);
            // The peer's keepalive ends its belief some time later.
            let delay = self.entropy.range(500 * MILLIS, 20 * SECONDS);
            self.world.after(
                delay,
                Event::Node(host, life, NodeEvent::Closed(line, 1 - end)),
            );
        }
        let lost = self.hosts[host]
            .disk
            .as_mut()
            .map(|disk| disk.power_loss(cut, &mut self.entropy));
        self.note_betrayal(host);
        self.note_lost(host, lost.unwrap_or_default());
        let state = &mut self.hosts[host];
        state.words.revive();
        state.words.lose();
        state.boot = self.supervisor.new_uuid();
        state
            .clock
            .reboot(self.world.now(), self.entropy.below(1 << 36));
        self.engine_gone(host);
    }
}

fn copy_out(received: &mut std::collections::VecDeque<u8>, target: &mut [u8]) {
    let (first, second) = received.as_slices();
    let split = first.len().min(target.len());
    target[..split].copy_from_slice(&first[..split]);
    let rest = target.len() - split;
    target[split..].copy_from_slice(&second[..rest]);
    received.drain(..split + rest);
}
