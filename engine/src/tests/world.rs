//! An engine, fake replicas and the time between them.

use super::arena::Arena;
use super::fake::{Fake, Frame, Out, SECRET, VOLUME};
use crate::{Action, Engine, EngineConfig, Event, ExitReason, Mode, Operator, ScrubNews};
use std::collections::{BTreeMap, VecDeque};
use std::vec::Vec;
use trilith_block::request::Target;
use trilith_block::{
    Actions, Buffers, ByteRange, ConnId, ErrorKind, Machine, MemberId, MemberSet, Monotonic, Op,
    Outcome, Request, RequestFlags, Stream, StreamEvent, Tag, Uuid, Want,
};
use trilith_wire::Decoder;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const ENGINE: Uuid = Uuid([2; 16]);

enum Ev {
    Opened(u64),
    Closed(u64),
    ToEngine(u64, Frame),
    ToReplica(u64, Frame),
}

/// What a request brought: bytes of a read or of a block status, else nothing.
pub(crate) type Answer = Result<Vec<u8>, ErrorKind>;

pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) fakes: Vec<Fake>,
    pub(crate) arena: Arena,
    pub(crate) now: u64,
    queue: BTreeMap<(u64, u64), Ev>,
    seq: u64,
    /// Connections by id: member, bytes for the engine.
    conns: BTreeMap<u64, (usize, VecDeque<u8>)>,
    next_conn: u64,
    next_tag: u64,
    /// Members that cannot be reached.
    pub(crate) cut: MemberSet,
    /// One-way delay of each member's link, in nanoseconds.
    pub(crate) delay: [u64; 7],
    /// How much later the second half of a payload comes from each member.
    pub(crate) late: [u64; 7],
    busy_until: [u64; 7],
    pub(crate) answers: BTreeMap<u64, Answer>,
    pub(crate) modes: Vec<Mode>,
    pub(crate) scrubs: Vec<ScrubNews>,
    pub(crate) exit: Option<ExitReason>,
}

pub(crate) fn member(index: usize) -> MemberId {
    MemberId::new(index).unwrap()
}

impl World {
    pub(crate) fn new(count: usize) -> World {
        World::with(count, |_| {})
    }

    pub(crate) fn with(count: usize, change: impl FnOnce(&mut EngineConfig)) -> World {
        let members = MemberSet::first(count);
        let mut cfg = EngineConfig::new(ENGINE, VOLUME, SECRET, members, [3; 32]);
        change(&mut cfg);
        let now = 1_000 * MS;
        let fakes = (0..count)
            .map(|m| Fake::new(member(m), members, 64 << 20))
            .collect();
        World::start(cfg, fakes, now)
    }

    /// Members 0 and 1 hold data, member 2 is a witness. The engine learns it from them.
    pub(crate) fn with_witness() -> World {
        let mut w = World::new(3);
        for fake in &mut w.fakes {
            fake.config.witness = MemberSet::of(member(2));
            (fake.iss, fake.trk) = (fake.config.data(), fake.config.data());
        }
        w
    }

    fn start(cfg: EngineConfig, fakes: Vec<Fake>, now: u64) -> World {
        let engine = Engine::new(cfg, Monotonic(now)).unwrap();
        World {
            engine,
            fakes,
            arena: Arena::default(),
            now,
            queue: BTreeMap::new(),
            seq: 0,
            conns: BTreeMap::new(),
            next_conn: 1,
            next_tag: 1,
            cut: MemberSet::EMPTY,
            delay: [MS / 10; 7],
            late: [0; 7],
            busy_until: [0; 7],
            answers: BTreeMap::new(),
            modes: Vec::new(),
            scrubs: Vec::new(),
            exit: None,
        }
    }

    /// The engine's process is gone; another starts.
    pub(crate) fn restart(self, change: impl FnOnce(&mut EngineConfig)) -> World {
        let mut fakes = self.fakes;
        for fake in &mut fakes {
            fake.sessions.clear();
            fake.held.clear();
            fake.pending.clear();
        }
        let mut cfg = EngineConfig::new(Uuid([7; 16]), VOLUME, SECRET, fakes[0].voters, [4; 32]);
        change(&mut cfg);
        World::start(cfg, fakes, self.now)
    }

    fn at(&mut self, delay: u64, ev: Ev) {
        self.seq += 1;
        self.queue.insert((self.now + delay, self.seq), ev);
    }

    fn step(&mut self, event: Event<'_>) {
        let mut out = Actions::new();
        self.engine
            .step(Monotonic(self.now), event, &mut self.arena, &mut out);
        self.carry_out(&out);
    }

    pub(crate) fn settle(&mut self) {
        let mut out = Actions::new();
        self.engine
            .settle(Monotonic(self.now), &mut self.arena, &mut out);
        self.carry_out(&out);
        let conns: Vec<u64> = self.conns.keys().copied().collect();
        for conn in conns {
            self.feed(conn);
        }
    }

    fn carry_out(&mut self, out: &Actions<Action>) {
        let mut dialled = false;
        for action in out.list() {
            match *action {
                Action::Dial { member } => {
                    // The answer to it makes actions of its own before these are all done.
                    dialled = true;
                    let conn = self.next_conn;
                    self.next_conn += 1;
                    self.conns.insert(conn, (member.index(), VecDeque::new()));
                    let mut more = Actions::new();
                    let event = Event::Dialled {
                        member,
                        conn: ConnId(conn),
                    };
                    self.engine
                        .step(Monotonic(self.now), event, &mut self.arena, &mut more);
                    self.carry_out(&more);
                    let delay = self.delay[member.index()];
                    let ev = if self.cut.contains(member) {
                        Ev::Closed(conn)
                    } else {
                        Ev::Opened(conn)
                    };
                    self.at(delay, ev);
                }
                Action::Send {
                    conn,
                    head,
                    payload,
                } => {
                    let Some((member, _)) = self.conns.get(&conn.0) else {
                        continue;
                    };
                    let payload = payload.map_or(Vec::new(), |p| self.arena.bytes(p).to_vec());
                    let delay = self.delay[*member];
                    self.at(
                        delay,
                        Ev::ToReplica(conn.0, (out.get(head).to_vec(), payload)),
                    );
                }
                Action::Close { conn } => {
                    let member = self.conns.get(&conn.0).map_or(0, |c| c.0);
                    self.fakes[member].sessions.remove(&conn.0);
                    self.at(0, Ev::Closed(conn.0));
                }
                Action::Complete(completion) => {
                    let answer = completion.result.map(|outcome| match outcome {
                        Outcome::Done => Vec::new(),
                        Outcome::Data(buf) | Outcome::Extents(buf) => {
                            let bytes = self.arena.bytes(buf).to_vec();
                            self.arena.release(buf.buf);
                            bytes
                        }
                    });
                    let old = self.answers.insert(completion.tag.0, answer);
                    assert!(old.is_none(), "{:?} completed twice", completion.tag);
                }
                Action::ModeChanged(mode) => self.modes.push(mode),
                Action::Scrub(news) => self.scrubs.push(news),
                Action::Exit(reason) => self.exit = Some(reason),
            }
        }
        if !dialled {
            self.arena.reclaim();
        }
    }

    /// Hands over what has arrived, as far as the engine wants it.
    fn feed(&mut self, conn: u64) {
        loop {
            let want = self.engine.want(ConnId(conn), &mut self.arena);
            let Some((_, bytes)) = self.conns.get_mut(&conn) else {
                return;
            };
            let len = match want {
                Want::Header(n) => n,
                Want::Payload(slice) => slice.len as usize,
                Want::Discard(n) => usize::try_from(n).unwrap(),
                Want::Pause => return,
            };
            if bytes.len() < len {
                // As a driver does: what has come of a payload lies where it is to lie.
                if let Want::Payload(slice) = want {
                    let part = bytes.make_contiguous();
                    self.arena.bytes_mut(slice)[..part.len()].copy_from_slice(part);
                }
                return;
            }
            let taken: Vec<u8> = bytes.drain(..len).collect();
            let event = match want {
                Want::Header(_) => StreamEvent::Header(&taken),
                Want::Payload(slice) => {
                    self.arena.bytes_mut(slice).copy_from_slice(&taken);
                    StreamEvent::Payload
                }
                Want::Discard(_) | Want::Pause => StreamEvent::Payload,
            };
            self.step(Event::Stream(ConnId(conn), event));
        }
    }

    fn event(&mut self, ev: Ev) {
        match ev {
            Ev::Opened(conn) => {
                if self.conns.contains_key(&conn) {
                    self.step(Event::Stream(ConnId(conn), StreamEvent::Opened));
                    self.feed(conn);
                }
            }
            Ev::Closed(conn) => {
                if self.conns.remove(&conn).is_some() {
                    self.step(Event::Stream(ConnId(conn), StreamEvent::Closed));
                }
            }
            Ev::ToEngine(conn, (head, payload)) => {
                if let Some((_, bytes)) = self.conns.get_mut(&conn) {
                    bytes.extend(head);
                    bytes.extend(payload);
                    self.feed(conn);
                }
            }
            Ev::ToReplica(conn, (head, payload)) => self.deliver(conn, &head, &payload),
        }
    }

    fn deliver(&mut self, conn: u64, head: &[u8], payload: &[u8]) {
        let Some((at, _)) = self.conns.get(&conn) else {
            return;
        };
        let at = *at;
        if self.cut.contains(member(at)) || self.fakes[at].deaf {
            return;
        }
        let mut decoder = Decoder::new();
        let mut rest = head;
        while decoder.want() > 0 {
            let (now, later) = rest.split_at(decoder.want());
            decoder.feed(now, &self.arena).unwrap();
            rest = later;
        }
        let message = decoder.message().unwrap();
        assert_eq!(decoder.payload_len() as usize, payload.len());
        self.with_fake(at, conn, |fake, out| fake.frame(&message, payload, out));
    }

    fn with_fake(&mut self, at: usize, conn: u64, act: impl FnOnce(&mut Fake, &mut Out<'_>)) {
        let mut out = Out {
            conn,
            now: self.now,
            arena: &mut self.arena,
            frames: Vec::new(),
            close: false,
        };
        act(&mut self.fakes[at], &mut out);
        let (frames, close) = (out.frames, out.close);
        let delay = self.delay[at];
        let late = self.late[at];
        for (head, mut payload) in frames {
            // What comes after the second half of a payload comes no sooner.
            let first = (self.now + delay).max(self.busy_until[at]) - self.now;
            let half = if late > 0 {
                payload.len() / 2
            } else {
                payload.len()
            };
            let rest = payload.split_off(half);
            self.at(first, Ev::ToEngine(conn, (head, payload)));
            if !rest.is_empty() {
                self.busy_until[at] = self.now + first + late;
                self.at(first + late, Ev::ToEngine(conn, (Vec::new(), rest)));
            }
        }
        if close {
            self.at(delay, Ev::Closed(conn));
        }
    }

    /// Sends what a fake held back.
    pub(crate) fn let_go(&mut self, at: usize) {
        let delay = self.delay[at];
        for (conn, head, payload) in core::mem::take(&mut self.fakes[at].held) {
            self.at(delay, Ev::ToEngine(conn, (head, payload)));
        }
    }

    /// Acks one of the entries of a fake that are acked by hand.
    pub(crate) fn ack_one(&mut self, at: usize, which: usize) {
        let conn = self.fakes[at].pending[which].0;
        self.with_fake(at, conn, |fake, out| fake.ack_one(which, out));
    }

    /// Cuts a member off: its connections end.
    pub(crate) fn isolate(&mut self, at: usize) {
        self.cut = self.cut.with(member(at));
        self.fakes[at].crash();
        let conns: Vec<u64> = self
            .conns
            .iter()
            .filter(|(_, c)| c.0 == at)
            .map(|(k, _)| *k)
            .collect();
        for conn in conns {
            self.at(0, Ev::Closed(conn));
        }
    }

    pub(crate) fn heal(&mut self, at: usize) {
        self.cut = self.cut.without(member(at));
    }

    /// Lets at most `ms` milliseconds pass, until `done`. True when it came true.
    pub(crate) fn until(&mut self, ms: u64, mut done: impl FnMut(&mut World) -> bool) -> bool {
        let end = self.now + ms * MS;
        self.settle();
        for _ in 0..2_000_000u32 {
            if done(self) {
                return true;
            }
            let event = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timer = self.engine.deadline().map(|at| at.0.max(self.now));
            let next = [event, timer]
                .into_iter()
                .flatten()
                .min()
                .unwrap_or(u64::MAX);
            if next > end {
                self.now = end;
                self.settle();
                return done(self);
            }
            self.now = next;
            if let Some(entry) = self.queue.first_entry().filter(|e| e.key().0 <= next) {
                let ev = entry.remove();
                self.event(ev);
            }
            self.settle();
        }
        panic!(
            "the world spins at {} ms, deadline {:?}",
            self.now / MS,
            self.engine.deadline()
        );
    }

    pub(crate) fn run(&mut self, ms: u64) {
        self.until(ms, |_| false);
    }

    pub(crate) fn wait_mode(&mut self, mode: Mode) {
        let found = self.until(60_000, |w| w.engine.mode() == mode);
        assert!(
            found,
            "mode {mode:?} expected, found {:?}",
            self.engine.mode()
        );
    }

    pub(crate) fn submit_full(
        &mut self,
        op: Op,
        range: ByteRange,
        flags: RequestFlags,
        bytes: Option<&[u8]>,
    ) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        let data = bytes.map(|b| self.arena.filled(b));
        let request = Request {
            tag: Tag(tag),
            op,
            range,
            flags,
            data,
        };
        self.engine
            .submit(Monotonic(self.now), request, &mut self.arena)
            .expect("not full");
        tag
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> u64 {
        let range = ByteRange::new(offset, bytes.len() as u64);
        self.submit_full(Op::Write, range, RequestFlags::default(), Some(bytes))
    }

    pub(crate) fn read(&mut self, offset: u64, len: u64) -> u64 {
        let range = ByteRange::new(offset, len);
        self.submit_full(Op::Read, range, RequestFlags::default(), None)
    }

    pub(crate) fn flush(&mut self) -> u64 {
        self.submit_full(
            Op::Flush,
            ByteRange::new(0, 0),
            RequestFlags::default(),
            None,
        )
    }

    pub(crate) fn answer(&mut self, tag: u64) -> Answer {
        let found = self.until(60_000, |w| w.answers.contains_key(&tag));
        assert!(
            found,
            "request {tag} has no answer in mode {:?}",
            self.engine.mode()
        );
        self.answers.remove(&tag).unwrap()
    }

    pub(crate) fn written(&mut self, offset: u64, bytes: &[u8]) {
        let tag = self.write(offset, bytes);
        assert_eq!(self.answer(tag), Ok(Vec::new()));
    }

    pub(crate) fn bytes(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let tag = self.read(offset, len);
        self.answer(tag).unwrap()
    }

    pub(crate) fn operator(&mut self, wish: Operator) {
        self.step(Event::Operator(wish));
    }

    pub(crate) fn grant(&mut self, until: u64) {
        self.step(Event::Grant {
            until: Monotonic(until),
        });
    }

    /// Stops the engine and checks that no buffer is left.
    pub(crate) fn stop(&mut self) {
        self.operator(Operator::Stop);
        let done = self.until(60_000, |w| w.exit.is_some());
        assert!(done, "the engine stops");
        self.run(1000);
        assert_eq!(self.arena.held(), 0, "buffers left");
    }
}
