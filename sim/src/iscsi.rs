//! Clients that come through the real iSCSI target, beside those of NBD on the same volume: the
//! target, the order between both frontends, and what an initiator does to a session besides asking:
//! it aborts, resets the unit, loses the connection in the middle of a PDU and comes back. Bytes
//! arrive at once.

use crate::buffers::SimBuffers;
use crate::cluster::{Cluster, Event};
use crate::entropy::Entropy;
use crate::initiator::{Command, Heard, Manners, Session, TARGET};
use crate::initiator::{cdb10, cdb16, compare_and_write, unmap};
use crate::nbd::Part;
use crate::process::{EngineProgram, Node};
use crate::workload::Wish;
use crate::world::{MICROS, MILLIS, Nanos, SECONDS};
use core::ops::Range;
use std::collections::{BTreeMap, VecDeque};
use trilith_block::request::Target;
use trilith_block::{
    Actions, Buffers, Completion, ConnId, ErrorKind, FrontendAction, FrontendEvent, Machine,
    Monotonic, Op, Request, Stream, StreamEvent, Tag, VolumeInfo,
};
use trilith_engine::order::{Holders, Order};
use trilith_frontend_iscsi::{IscsiConfig, IscsiTarget};

/// Places of the frontends; one more is their number in tags.
pub const NBD: usize = 0;
const ISCSI: usize = 1;
const TAG_BITS: u32 = 56;
/// How long an initiator waits for an answer before it aborts the command.
const PATIENCE: Nanos = 10 * SECONDS;
/// How long it waits for the answer to that.
const PATIENCE_WITH_ABORT: Nanos = 5 * SECONDS;
/// When the target learns at the latest that a connection is gone.
const NOTICED_WITHIN: Nanos = 4 * SECONDS;

/// What iSCSI clients do in a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IscsiMix {
    /// How they log in.
    pub manners: Manners,
    /// Chance in 1/256 that a command becomes a COMPARE AND WRITE.
    pub swaps: u64,
    /// Chance in 1/256 that the connection is lost during a command.
    pub drops: u64,
    /// Chance in 1/256 that a command is aborted.
    pub aborts: u64,
    /// Chance in 1/256 that the unit is reset during a command.
    pub resets: u64,
    /// Chance in 1/256 that a command is ORDERED.
    pub ordered: u64,
}

/// What an initiator does to a command that was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deed {
    /// Aborts it.
    Abort,
    /// Resets the unit.
    Reset,
    /// Loses the connection. `half_open`: the target learns it later.
    Drop {
        /// See above.
        half_open: bool,
    },
    /// Waits no longer.
    LosePatience,
    /// Waits no longer for the answer to its abort.
    GiveUp,
}

struct Holds<'a>(&'a IscsiTarget);

impl Holders for Holds<'_> {
    fn may_hold_against(&self, at: usize) -> bool {
        at == NBD
    }

    fn is_exclusive(&self, tag: Tag) -> bool {
        tag.0 >> TAG_BITS == ISCSI as u64 + 1 && self.0.is_exclusive(tag)
    }

    fn of_tag(&self, tag: Tag) -> Option<usize> {
        (tag.0 >> TAG_BITS).checked_sub(1).map(|at| at as usize)
    }
}

/// The target of one engine process, its clients, and the order between it and NBD.
#[derive(Debug)]
pub struct Iscsi {
    target: IscsiTarget,
    out: Actions<FrontendAction>,
    order: Order,
    /// Requests whose turn has come, oldest first.
    turns: VecDeque<Request>,
    sessions: BTreeMap<ConnId, (usize, Session)>,
    next_conn: u64,
    /// Connections that are gone, which the target does not know yet.
    half_open: Vec<ConnId>,
    /// Requests that ended with an error: what they asked for may still happen.
    errors: u64,
    /// Commands of all sessions that a reset under way ends.
    doomed: Vec<u64>,
}

/// A configuration of the target that fits a run.
fn config(manners: &Manners, volume: VolumeInfo) -> IscsiConfig {
    IscsiConfig {
        target_name: TARGET.to_string(),
        alias: String::new(),
        portals: Vec::new(),
        portal_group: 1,
        lun: 0,
        logical_block_bytes: manners.block as u32,
        read_only: false,
        initiators: Vec::new(),
        chap: None,
        keeps_reservations: false,
        seed: [7; 32],
        volume,
    }
}

impl Iscsi {
    /// A target for a volume.
    ///
    /// # Panics
    /// When the volume is not one that can be served.
    pub fn new(manners: &Manners, volume: VolumeInfo) -> Iscsi {
        Iscsi {
            target: IscsiTarget::new(config(manners, volume), &[]).expect("a valid target"),
            out: Actions::new(),
            order: Order::default(),
            turns: VecDeque::new(),
            sessions: BTreeMap::new(),
            next_conn: 1,
            half_open: Vec::new(),
            errors: 0,
            doomed: Vec::new(),
        }
    }

    /// When the target wants to run.
    pub fn deadline(&self) -> Option<Monotonic> {
        self.target.deadline()
    }

    /// The end of a batch.
    pub fn settle(&mut self, now: Monotonic, arena: &mut SimBuffers) {
        self.target.settle(now, arena, &mut self.out);
        let conns: Vec<ConnId> = self.sessions.keys().copied().collect();
        for conn in conns {
            self.pump(now, conn, arena);
        }
    }

    /// A frontend submits a request.
    pub fn submit(&mut self, at: usize, mut request: Request) {
        request.tag = Tag(request.tag.0 | (at as u64 + 1) << TAG_BITS);
        let entered = self.order.enter(&Holds(&self.target), at, request);
        self.turns.extend(entered);
    }

    /// A request of a frontend has ended. Gives it back when it is one of NBD.
    pub fn completed(
        &mut self,
        now: Monotonic,
        completion: Completion,
        arena: &mut SimBuffers,
    ) -> Option<Completion> {
        self.order.leave(completion.tag);
        let own = Completion {
            tag: Tag(completion.tag.0 & ((1 << TAG_BITS) - 1)),
            ..completion
        };
        if completion.tag.0 >> TAG_BITS == NBD as u64 + 1 {
            return Some(own);
        }
        self.errors += u64::from(completion.result.is_err());
        let event = FrontendEvent::Complete(own);
        self.target.step(now, event, arena, &mut self.out);
        None
    }

    /// What has not been given to the engine yet, in order.
    fn next_turn(&mut self) -> Option<Request> {
        if let Some(request) = self.turns.pop_front() {
            return Some(request);
        }
        self.order.next(&Holds(&self.target))
    }

    fn conn_of(&self, client: usize) -> Option<ConnId> {
        let mut sessions = self.sessions.iter();
        sessions
            .find(|(_, (c, _))| *c == client)
            .map(|(conn, _)| *conn)
    }

    fn ask(
        &mut self,
        now: Monotonic,
        manners: Manners,
        client: usize,
        command: Command,
        arena: &mut SimBuffers,
    ) {
        let conn = self.conn_of(client).unwrap_or_else(|| {
            let conn = ConnId(self.next_conn);
            self.next_conn += 1;
            self.sessions
                .insert(conn, (client, Session::login(manners, client)));
            let event = FrontendEvent::Stream(conn, StreamEvent::Opened);
            self.target.step(now, event, arena, &mut self.out);
            conn
        });
        if let Some((_, session)) = self.sessions.get_mut(&conn) {
            session.command(command);
        }
        self.pump(now, conn, arena);
    }

    /// Gives the target what it wants of what was sent.
    fn pump(&mut self, now: Monotonic, conn: ConnId, arena: &mut SimBuffers) {
        loop {
            let Some((_, session)) = self.sessions.get_mut(&conn) else {
                return;
            };
            if session.up.is_empty() {
                return;
            }
            let want = self.target.want(conn, arena);
            let Some(part) = Part::take(want, &mut session.up, arena) else {
                return;
            };
            let event = FrontendEvent::Stream(conn, part.event());
            self.target.step(now, event, arena, &mut self.out);
        }
    }

    /// The target learns that a connection is gone, if it has not closed it itself.
    fn closed(&mut self, now: Monotonic, conn: ConnId, arena: &mut SimBuffers) {
        self.half_open.retain(|other| *other != conn);
        let event = FrontendEvent::Stream(conn, StreamEvent::Closed);
        self.target.step(now, event, arena, &mut self.out);
    }

    /// All connections are closed; what was submitted meanwhile is of nobody any more.
    fn leave_clients(&mut self, now: Monotonic, arena: &mut SimBuffers) -> Vec<Request> {
        let sessions = std::mem::take(&mut self.sessions);
        let half_open = std::mem::take(&mut self.half_open);
        for conn in sessions.into_keys().chain(half_open) {
            self.closed(now, conn, arena);
        }
        let submitted = self.out.list().iter().filter_map(|action| match action {
            FrontendAction::Submit(request) => Some(*request),
            FrontendAction::Send { .. } | FrontendAction::Close { .. } => None,
        });
        let tag = |tag: Tag| Tag(tag.0 | (ISCSI as u64 + 1) << TAG_BITS);
        let submitted = submitted.map(|r| Request {
            tag: tag(r.tag),
            ..r
        });
        let list = submitted.collect();
        self.out.clear();
        list
    }
}

/// The bytes of a command for a wish. `data`: what a write writes; `expected`: what a COMPARE AND
/// WRITE compares with.
fn command(
    number: u64,
    wish: &Wish,
    block: u64,
    data: Vec<u8>,
    expected: Option<&[u8]>,
    entropy: &mut Entropy,
) -> Command {
    let (lba, blocks) = (wish.offset / block, wish.len / block);
    let fua = if wish.fua { 8 } else { 0 };
    let long = entropy.chance(1, 2) || blocks > 0xffff;
    let pick = |opcodes: (u8, u8), flags: u8| {
        if long {
            cdb16(opcodes.1, flags, lba, blocks)
        } else {
            cdb10(opcodes.0, flags, lba, blocks)
        }
    };
    let mut reads = 0;
    let mut out = Vec::new();
    let cdb = match wish.op {
        Op::Read | Op::Prefetch | Op::BlockStatus => {
            reads = wish.len as usize;
            pick((0x28, 0x88), 0)
        }
        Op::Write => match expected {
            Some(expected) => {
                out.extend_from_slice(expected);
                out.extend_from_slice(&data);
                compare_and_write(fua, lba, blocks)
            }
            None => {
                out = data;
                // WRITE AND VERIFY is durable as well.
                if wish.fua && entropy.chance(1, 4) {
                    pick((0x2e, 0x8e), 0)
                } else {
                    pick((0x2a, 0x8a), fua)
                }
            }
        },
        Op::Flush => pick((0x35, 0x91), 0),
        Op::Discard if entropy.chance(1, 2) => {
            let (cdb, list) = unmap(lba, blocks);
            out = list;
            cdb
        }
        Op::Discard => cdb16(0x93, 9, lba, blocks),
        Op::WriteZeroes if entropy.chance(1, 2) => {
            out = vec![0; block as usize];
            cdb16(0x93, 0, lba, blocks)
        }
        Op::WriteZeroes => cdb16(0x93, 1, lba, blocks),
    };
    Command {
        number,
        cdb,
        data: out,
        reads,
        ordered: false,
    }
}

impl Cluster {
    /// Makes the frontends of an engine, once its volume is known.
    pub fn make_frontends(&self, engine: &mut EngineProgram) {
        if let (Some(mix), Some(volume), None) =
            (self.config.iscsi, engine.machine.info(), &engine.iscsi)
        {
            engine.iscsi = Some(Box::new(Iscsi::new(&mix.manners, volume)));
        }
    }

    /// A client asks the target.
    pub fn ask_target(
        &mut self,
        node: &mut Node,
        clock: Monotonic,
        (client, number): (usize, u64),
        wish: &Wish,
        data: Vec<u8>,
        expected: Option<&[u8]>,
    ) {
        let Some(mix) = self.config.iscsi else {
            return;
        };
        let entropy = &mut self.initiators;
        let mut command = command(number, wish, mix.manners.block, data, expected, entropy);
        command.ordered = entropy.chance(mix.ordered, 256);
        let life = node.life;
        if !self.workload.strict {
            let soon = entropy.skewed(MICROS, 20 * MILLIS);
            for (chance, deed) in [
                (mix.aborts, Deed::Abort),
                (mix.resets, Deed::Reset),
                (mix.drops, Deed::Drop { half_open: true }),
                (mix.drops, Deed::Drop { half_open: false }),
            ] {
                if entropy.chance(chance, 256) {
                    let event = Event::Initiator(client, life, number, deed);
                    self.world.after(soon, event);
                }
            }
            let event = Event::Initiator(client, life, number, Deed::LosePatience);
            self.world.after(PATIENCE, event);
        }
        // The network takes the end of what was sent along.
        let torn = !self.workload.strict && entropy.chance(mix.drops, 512);
        let lost = entropy.any();
        if let Some((engine, arena)) = node.engine_and_arena()
            && let Some(iscsi) = engine.iscsi.as_mut()
        {
            if torn && let Some(conn) = iscsi.conn_of(client) {
                if let Some((_, session)) = iscsi.sessions.get_mut(&conn) {
                    session.command(command);
                    let left = lost % (session.up.len() as u64 + 1);
                    session.tear(left as usize);
                }
                iscsi.pump(clock, conn, arena);
                let deed = Deed::Drop {
                    half_open: lost >> 63 == 1,
                };
                let event = Event::Initiator(client, life, number, deed);
                self.world.after(5 * MILLIS, event);
                return;
            }
            iscsi.ask(clock, mix.manners, client, command, arena);
        }
    }

    /// An initiator does something to a command, if that is still open.
    pub fn initiator_acts(&mut self, client: usize, life: u64, number: u64, deed: Deed) {
        let Some(host) = self.workload.host_of_request(number, life) else {
            return;
        };
        if self.hosts[host].paused {
            let event = Event::Initiator(client, life, number, deed);
            self.world.after(20 * MILLIS, event);
            return;
        }
        let clock = self.clock(host);
        let Some(mut node) = self.hosts[host].node.take() else {
            return;
        };
        let now = self.world.now();
        self.story
            .detail(now, || format!("client {client} to #{number}: {deed:?}"));
        let again = |deed| Event::Initiator(client, life, number, deed);
        let mut lost = false;
        if let Some((engine, arena)) = node.engine_and_arena()
            && let Some(iscsi) = engine.iscsi.as_mut()
            && let Some(conn) = iscsi.conn_of(client)
            && let Some((_, session)) = iscsi.sessions.get_mut(&conn)
        {
            match deed {
                Deed::Abort => {
                    session.abort();
                }
                Deed::LosePatience => {
                    session.abort();
                    self.world.after(PATIENCE_WITH_ABORT, again(Deed::GiveUp));
                }
                Deed::Reset => {
                    if session.reset_unit() {
                        let all = iscsi.sessions.values();
                        let taken = all.filter(|(c, s)| *c != client && s.is_taken());
                        iscsi.doomed = taken.filter_map(|(_, s)| s.asked()).collect();
                    }
                }
                Deed::Drop { half_open: true } => {
                    iscsi.sessions.remove(&conn);
                    iscsi.half_open.push(conn);
                    let delay = self.initiators.below(NOTICED_WITHIN);
                    self.world.after(delay, Event::HalfOpen(host, life, conn));
                    lost = true;
                }
                Deed::Drop { half_open: false } | Deed::GiveUp => {
                    iscsi.sessions.remove(&conn);
                    iscsi.closed(clock, conn, arena);
                    lost = true;
                }
            }
            iscsi.pump(clock, conn, arena);
        }
        if lost {
            self.answered(life, number, Err("connection lost".to_string()));
        }
        self.request_turn(host, &mut node);
        self.hosts[host].node = Some(node);
    }

    /// The target learns that a connection is gone.
    pub fn half_open_ends(&mut self, host: usize, life: u64, conn: ConnId) {
        let clock = self.clock(host);
        if self.hosts[host].paused {
            let event = Event::HalfOpen(host, life, conn);
            self.world.after(20 * MILLIS, event);
            return;
        }
        let Some(mut node) = self.hosts[host].node.take() else {
            return;
        };
        if node.life == life
            && let Some((engine, arena)) = node.engine_and_arena()
            && let Some(iscsi) = engine.iscsi.as_mut()
        {
            iscsi.closed(clock, conn, arena);
            self.request_turn(host, &mut node);
        }
        self.hosts[host].node = Some(node);
    }

    /// M8, I17: the clients that an accepted loss is about to leave behind are gone, and what they
    /// have asked for ends, before the engine hears of it.
    pub fn leave_clients_behind(&mut self, node: &mut Node, clock: Monotonic) {
        let Some((engine, arena)) = node.engine_and_arena() else {
            return;
        };
        if engine.iscsi.is_none() {
            return;
        }
        // As the wiring does it: what waits ends first, then the connections.
        loop {
            let waiting = engine.refused.pop_front();
            let waiting = waiting.or_else(|| {
                let iscsi = engine.iscsi.as_mut()?;
                iscsi.turns.pop_front().or_else(|| iscsi.order.give_up())
            });
            let ended = match (waiting, engine.iscsi.as_mut()) {
                (Some(request), _) => vec![request],
                (None, Some(iscsi)) => iscsi.leave_clients(clock, arena),
                (None, None) => Vec::new(),
            };
            if ended.is_empty() {
                return;
            }
            for request in ended {
                if let Some(data) = request.data {
                    arena.release(data.buf);
                }
                let completion = Completion {
                    tag: request.tag,
                    result: Err(ErrorKind::Io),
                };
                deliver(engine, clock, completion, arena);
            }
        }
    }

    /// Carries out what the target wants. True when anything happened.
    pub fn target_turn(&mut self, node: &mut Node, now: Monotonic) -> bool {
        let life = node.life;
        let Some((engine, arena)) = node.engine_and_arena() else {
            return false;
        };
        let Some(iscsi) = engine.iscsi.as_mut() else {
            return false;
        };
        let list: Vec<FrontendAction> = iscsi.out.list().to_vec();
        let bytes = std::mem::take(&mut iscsi.out);
        let mut heard = Vec::new();
        let mut worked = !list.is_empty();
        for action in &list {
            match *action {
                FrontendAction::Submit(request) => iscsi.submit(ISCSI, request),
                FrontendAction::Send {
                    conn,
                    head,
                    payload,
                } => {
                    if let Some((_, session)) = iscsi.sessions.get_mut(&conn) {
                        session.receive(bytes.get(head));
                        if let Some(slice) = payload {
                            session.receive(arena.bytes(slice));
                        }
                        while let Some(next) = session.hear() {
                            heard.extend(next.unwrap_or_else(|why| Some(Heard::Broken(why))));
                        }
                    }
                }
                FrontendAction::Close { conn } => {
                    if let Some((_, session)) = iscsi.sessions.remove(&conn) {
                        let why = "the target closes".to_string();
                        let asked = session.asked().map(|n| Heard::Answered(n, Err(why)));
                        heard.extend(asked);
                    }
                    iscsi.closed(now, conn, arena);
                }
            }
        }
        while let Some(request) = iscsi.next_turn() {
            worked = true;
            if !engine.refused.is_empty() {
                engine.refused.push_back(request);
            } else if let Err(request) = engine.machine.submit(now, request, arena) {
                engine.refused.push_back(request);
            }
        }
        // Whatever was sent in answer to what was heard.
        let conns: Vec<ConnId> = iscsi.sessions.keys().copied().collect();
        for conn in conns {
            iscsi.pump(now, conn, arena);
        }
        let certain = iscsi.errors == 0;
        let doomed = if heard.iter().any(|h| matches!(h, Heard::Reset(_))) {
            std::mem::take(&mut iscsi.doomed)
        } else {
            Vec::new()
        };
        for heard in heard {
            self.heard(life, heard, certain, &doomed);
        }
        worked
    }

    fn heard(&mut self, life: u64, heard: Heard, certain: bool, doomed: &[u64]) {
        match heard {
            Heard::Answered(number, answer) => self.answered(life, number, answer),
            Heard::Aborted(number, had) => {
                if certain && had {
                    self.history.end_effect(number);
                }
                self.answered(life, number, Err("aborted".to_string()));
            }
            Heard::Reset(own) => {
                for number in doomed.iter().copied().chain(own) {
                    let open = self.workload.host_of_request(number, life).is_some();
                    if certain && open {
                        self.history.end_effect(number);
                    }
                }
                if let Some(number) = own {
                    self.answered(life, number, Err("unit reset".to_string()));
                }
            }
            Heard::Broken(why) => self.fail(format!("iSCSI: {why}")),
        }
    }
}

/// Hands a completion to the frontend that asked.
pub fn deliver(
    engine: &mut EngineProgram,
    now: Monotonic,
    completion: Completion,
    arena: &mut SimBuffers,
) {
    let own = match engine.iscsi.as_mut() {
        Some(iscsi) => iscsi.completed(now, completion, arena),
        None => Some(completion),
    };
    if let (Some(own), Some(nbd)) = (own, engine.nbd.as_mut()) {
        nbd.completed(now, own, arena);
    }
}

/// One run in two of the seeds that have iSCSI clients at all. They draw from a stream of their own,
/// so that other seeds stay what they were.
pub fn draw(seed: u64) -> Option<IscsiMix> {
    let mut entropy = Entropy::from_seed(seed).fork(7);
    let known = SEEDS.contains(&seed) || seed >= SEEDS_FROM;
    if !known || !entropy.chance(1, 2) {
        return None;
    }
    let sometimes = |entropy: &mut Entropy, most: u64| {
        if entropy.chance(1, 2) {
            entropy.below(most)
        } else {
            0
        }
    };
    Some(IscsiMix {
        manners: Manners {
            block: entropy.pick(&[512, 4096]),
            digests: entropy.chance(1, 4),
            immediate: entropy.chance(1, 2),
            burst: entropy.pick(&[4096, 16384, 262_144]),
            segment: entropy.pick(&[4096, 65536, 1 << 20]),
        },
        swaps: entropy.below(128),
        drops: sometimes(&mut entropy, 32),
        aborts: sometimes(&mut entropy, 32),
        resets: sometimes(&mut entropy, 16),
        ordered: sometimes(&mut entropy, 64),
    })
}

/// Fixed seeds that have iSCSI clients, and where fresh ones begin. Those in between and below are
/// kept as tests, and as those in which mutants are looked for.
const SEEDS: Range<u64> = 900_000..1_000_000;
const SEEDS_FROM: u64 = 2_000_000;
