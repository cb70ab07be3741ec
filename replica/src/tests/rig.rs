//! One replica with a disk, and engines whose lines are written by the tests.

use super::arena::Arena;
use super::disk::Disk;
use crate::config::Config;
use crate::machine::{Action, Event, Fatal, Replica};
use crate::store::{
    DiskError, DiskOp, DiskTag, FileRole, Format, FormatParams, Geometry, OpenParams, Opened,
    StoreOut,
};
use std::boxed::Box;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::vec;
use std::vec::Vec;
use trilith_block::{
    Actions, BlockRange, Blocks, BufSlice, Buffers, ConnId, Idx, Lba, Machine, MemberId, MemberSet,
    Monotonic, Stream, StreamEvent, Term, Uuid, Want, Words,
};
use trilith_wire::auth::{Binding, Role, proof};
use trilith_wire::{
    Append, Decoder, Encoder, EntryOp, Hello, Message, Prevote, Reason, ReplicaState,
};

pub(crate) const VOLUME: Uuid = Uuid([7; 16]);
pub(crate) const REPLICA: Uuid = Uuid([8; 16]);
pub(crate) const SECRET: [u8; 32] = [9; 32];
pub(crate) const E1: Uuid = Uuid([0xe1; 16]);
pub(crate) const E2: Uuid = Uuid([0xe2; 16]);
pub(crate) const CAPACITY: u64 = 32 << 20;
pub(crate) const ALL: MemberSet = MemberSet(0b111);
pub(crate) const MS: u64 = 1_000_000;

/// A frame that a replica sent.
pub(crate) type Frame = (Message<'static>, Vec<u8>);

/// Window memory that outlives a replica.
#[derive(Clone, Debug)]
struct Shared(Rc<RefCell<Vec<u64>>>);

impl Words for Shared {
    fn len(&self) -> usize {
        self.0.borrow().len()
    }
    fn load(&self, index: usize) -> u64 {
        self.0.borrow()[index]
    }
    fn store(&mut self, index: usize, value: u64) {
        self.0.borrow_mut()[index] = value;
    }
}

/// Everything around one replica.
pub(crate) struct Rig {
    pub(crate) replica: Replica,
    pub(crate) arena: Arena,
    pub(crate) disk: Disk,
    pub(crate) now: Monotonic,
    pub(crate) boot: u8,
    words: Option<Shared>,
    out: Actions<Action>,
    /// Operations that have not ended. With `hold` they end only when a test says so.
    pub(crate) queue: VecDeque<(DiskTag, DiskOp)>,
    pub(crate) hold: bool,
    /// Every operation ever emitted, in order.
    pub(crate) trace: Vec<DiskOp>,
    inbox: BTreeMap<ConnId, VecDeque<u8>>,
    outbox: BTreeMap<ConnId, Vec<u8>>,
    pub(crate) closed: BTreeSet<ConnId>,
    conns: u64,
    pub(crate) opened: Option<Opened>,
    pub(crate) fatal: Option<Fatal>,
    stopped: bool,
    encoder: Encoder,
}

fn member(index: usize) -> MemberId {
    MemberId::new(index).unwrap()
}

fn buffer_of(op: &DiskOp) -> Option<BufSlice> {
    match *op {
        DiskOp::Read { buf, .. } | DiskOp::Write { buf, .. } => Some(buf),
        DiskOp::Flush { .. }
        | DiskOp::Allocate { .. }
        | DiskOp::PunchHole { .. }
        | DiskOp::ZeroRange { .. } => None,
    }
}

/// A new volume of three, member 0.
fn params(ring_blocks: u32) -> FormatParams {
    FormatParams {
        volume: VOLUME,
        replica: REPLICA,
        member: member(0),
        voters: ALL,
        newcomer: false,
        witness: MemberSet::EMPTY,
        iss: ALL,
        capacity: CAPACITY,
        geometry: Geometry {
            ring_blocks,
            al_slots: 68,
            al_batch: 4,
            window_slots: 64,
        },
        same_device: false,
        zero_data: false,
        volatile_cache: true,
        checksums: false,
    }
}

fn config(boot: u8) -> Config {
    let open = OpenParams {
        boot: Uuid([boot; 16]),
        allocate: true,
        allocate_ahead: 0,
    };
    Config::new(VOLUME, SECRET, [boot ^ 0x5a; 32], open)
}

impl Rig {
    /// A freshly formatted replica, member 0 of three, opened.
    pub(crate) fn new() -> Rig {
        Rig::with_budget(8 << 20)
    }

    /// As `new`, with an arena of `budget` bytes.
    pub(crate) fn with_budget(budget: u64) -> Rig {
        Rig::with_ring(budget, 64)
    }

    /// As `with_budget`, with a journal ring of so many blocks.
    pub(crate) fn with_ring(budget: u64, ring_blocks: u32) -> Rig {
        Rig::formatted(budget, &params(ring_blocks))
    }

    /// The witness of a volume with two holders of data, member 2.
    pub(crate) fn witness() -> Rig {
        let params = FormatParams {
            member: member(2),
            witness: MemberSet(0b100),
            iss: MemberSet(0b011),
            geometry: Geometry::WITNESS,
            ..params(64)
        };
        Rig::formatted(8 << 20, &params)
    }

    /// A holder of data, member 0, of a volume with a witness.
    pub(crate) fn beside_a_witness() -> Rig {
        let params = FormatParams {
            witness: MemberSet(0b100),
            iss: MemberSet(0b011),
            ..params(64)
        };
        Rig::formatted(8 << 20, &params)
    }

    fn formatted(budget: u64, params: &FormatParams) -> Rig {
        let mut rig = Rig {
            replica: Replica::new(config(1)),
            arena: Arena::new(budget),
            disk: Disk::default(),
            now: Monotonic(1_000_000 * MS),
            boot: 1,
            words: None,
            out: Actions::new(),
            queue: VecDeque::new(),
            hold: false,
            trace: Vec::new(),
            inbox: BTreeMap::new(),
            outbox: BTreeMap::new(),
            closed: BTreeSet::new(),
            conns: 0,
            opened: None,
            fatal: None,
            stopped: false,
            encoder: Encoder::new(),
        };
        rig.format(params);
        rig.start();
        rig
    }

    fn format(&mut self, params: &FormatParams) {
        let mut out = StoreOut::new();
        let mut format = Format::new(params, &mut self.arena, &mut out).expect("valid parameters");
        loop {
            let ops = core::mem::take(&mut out.ops);
            assert!(!ops.is_empty(), "format goes on");
            for (tag, op) in ops {
                self.trace.push(op);
                self.disk.apply(&op, &mut self.arena).unwrap();
                if let Some(end) = format.disk_done(tag, Ok(()), &mut self.arena, &mut out) {
                    end.unwrap();
                    return;
                }
            }
        }
    }

    /// Its number.
    pub(crate) fn member(&self) -> usize {
        self.replica.facts().member.index()
    }

    /// Words of window memory.
    pub(crate) fn words_len(&self) -> usize {
        self.words.as_ref().map_or(0, |w| w.0.borrow().len())
    }

    fn start(&mut self) {
        self.replica = Replica::new(config(self.boot));
        self.opened = None;
        self.fatal = None;
        self.step(Event::Start);
        self.run();
        assert!(
            self.opened.is_some() || self.fatal.is_some(),
            "the store opens"
        );
    }

    /// The process dies: memory of the process is gone, operations under way end or not.
    pub(crate) fn crash(&mut self, land: bool) {
        let ops: Vec<_> = self.queue.drain(..).collect();
        for (_, op) in &ops {
            if land {
                self.disk.apply(op, &mut self.arena).ok();
            }
        }
        self.arena = Arena::new(self.arena.budget);
        self.inbox.clear();
        self.outbox.clear();
        self.hold = false;
        self.start();
    }

    /// The host loses power.
    pub(crate) fn power_cut(&mut self) {
        self.disk.power_cut();
        self.words = None;
        self.boot += 1;
        self.crash(false);
    }

    /// Lets the process stop; every buffer must be back.
    pub(crate) fn stop(mut self) {
        self.hold = false;
        self.step(Event::Stop);
        self.run();
        assert!(
            self.stopped,
            "stopped; {} operations left",
            self.queue.len()
        );
        assert_eq!(self.arena.live(), 0, "buffers not given back");
    }

    pub(crate) fn step(&mut self, event: Event<'_>) {
        self.replica
            .step(self.now, event, &mut self.arena, &mut self.out);
    }

    /// The driver's part after a batch.
    fn settle(&mut self) -> bool {
        self.replica
            .settle(self.now, &mut self.arena, &mut self.out);
        let mut again = !self.out.is_empty();
        let mut gone = Vec::new();
        let mut words = None;
        for action in self.out.list() {
            match *action {
                Action::Send {
                    conn,
                    head,
                    payload,
                } => {
                    let wire = self.outbox.entry(conn).or_default();
                    wire.extend_from_slice(self.out.get(head));
                    if let Some(slice) = payload {
                        wire.extend_from_slice(self.arena.bytes(slice));
                    }
                }
                Action::Close { conn } => gone.push(conn),
                Action::Disk(tag, op) => {
                    if let Some(slice) = buffer_of(&op) {
                        self.arena.retain(slice.buf);
                    }
                    self.trace.push(op);
                    self.queue.push_back((tag, op));
                }
                Action::NeedWords {
                    len,
                    volume,
                    replica,
                } => {
                    assert_eq!((volume, replica), (VOLUME, REPLICA));
                    words = Some(len);
                }
                Action::Opened(opened) => self.opened = Some(opened),
                Action::Stopped => self.stopped = true,
                Action::Fatal(fatal) => self.fatal = Some(fatal),
            }
        }
        self.out.clear();
        self.arena.reclaim();
        for conn in gone {
            self.closed.insert(conn);
            if self.inbox.remove(&conn).is_some() {
                self.step(Event::Stream(conn, StreamEvent::Closed));
            }
        }
        if let Some(len) = words {
            let memory = self
                .words
                .get_or_insert_with(|| Shared(Rc::new(RefCell::new(vec![0; len]))));
            let memory = Box::new(memory.clone());
            self.step(Event::Words(memory));
            again = true;
        }
        // A deadline in the past asks for another turn at once.
        again || self.replica.deadline().is_some_and(|d| d <= self.now)
    }

    /// Delivers and settles until nothing more happens.
    pub(crate) fn run(&mut self) {
        for _ in 0..100_000 {
            let mut busy = self.deliver();
            if !self.hold {
                while let Some(at) = (!self.queue.is_empty()).then_some(0) {
                    self.complete(at);
                    busy = true;
                }
            }
            busy |= self.settle();
            if !busy {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// Ends the operation at place `at` of the queue; its completion is delivered.
    pub(crate) fn complete(&mut self, at: usize) {
        let (tag, op) = self.queue.remove(at).expect("an operation under way");
        let result = self.disk.apply(&op, &mut self.arena);
        self.step(Event::Disk(tag, result));
        if let Some(slice) = buffer_of(&op) {
            self.arena.release(slice.buf);
        }
    }

    /// Places in the queue of the data writes.
    pub(crate) fn data_writes(&self) -> Vec<usize> {
        let data = |op: &DiskOp| {
            matches!(
                op,
                DiskOp::Write {
                    role: FileRole::Data,
                    ..
                }
            )
        };
        (0..self.queue.len())
            .filter(|at| data(&self.queue[*at].1))
            .collect()
    }

    /// Ends whatever is not a data write until only such are left (journal, allocations).
    pub(crate) fn run_to_data(&mut self) {
        for _ in 0..1000 {
            self.run();
            let data = self.data_writes();
            let Some(at) = (0..self.queue.len()).find(|at| !data.contains(at)) else {
                return;
            };
            self.complete(at);
        }
        panic!("metadata never comes to rest");
    }

    /// Bytes to the replica, as far as it wants them.
    fn deliver(&mut self) -> bool {
        let mut busy = false;
        let conns: Vec<ConnId> = self.inbox.keys().copied().collect();
        for conn in conns {
            while self.deliver_one(conn) {
                busy = true;
            }
        }
        busy
    }

    fn deliver_one(&mut self, conn: ConnId) -> bool {
        let want = self.replica.want(conn, &mut self.arena);
        let Some(inbox) = self.inbox.get_mut(&conn) else {
            return false;
        };
        let len = match want {
            Want::Header(n) => n,
            Want::Payload(slice) => slice.len as usize,
            Want::Discard(n) => usize::try_from(n).unwrap(),
            Want::Pause => return false,
        };
        if inbox.len() < len {
            return false;
        }
        let bytes: Vec<u8> = inbox.drain(..len).collect();
        match want {
            Want::Header(_) => self.step(Event::Stream(conn, StreamEvent::Header(&bytes))),
            Want::Payload(slice) => {
                self.arena.bytes_mut(slice).copy_from_slice(&bytes);
                self.step(Event::Stream(conn, StreamEvent::Payload));
            }
            Want::Discard(_) => self.step(Event::Stream(conn, StreamEvent::Payload)),
            Want::Pause => {}
        }
        true
    }

    /// A new connection.
    pub(crate) fn connect(&mut self) -> ConnId {
        self.conns += 1;
        let conn = ConnId(self.conns);
        self.inbox.insert(conn, VecDeque::new());
        self.step(Event::Stream(conn, StreamEvent::Opened));
        self.run();
        conn
    }

    /// The other end goes away.
    pub(crate) fn disconnect(&mut self, conn: ConnId) {
        if self.inbox.remove(&conn).is_some() {
            self.step(Event::Stream(conn, StreamEvent::Closed));
        }
        self.run();
    }

    /// Raw bytes to the replica.
    pub(crate) fn push(&mut self, conn: ConnId, bytes: &[u8]) {
        if let Some(inbox) = self.inbox.get_mut(&conn) {
            inbox.extend(bytes);
        }
    }

    /// A frame to the replica; it is delivered by the next `run`.
    pub(crate) fn queue_frame(&mut self, conn: ConnId, message: &Message<'_>, payload: &[u8]) {
        let len = u32::try_from(payload.len()).unwrap();
        let head = self.encoder.head(message, len, &self.arena).to_vec();
        self.push(conn, &head);
        self.push(conn, payload);
    }

    /// A frame to the replica, and what comes back on the connection.
    pub(crate) fn ask(&mut self, conn: ConnId, message: &Message<'_>) -> Vec<Frame> {
        self.queue_frame(conn, message, &[]);
        self.run();
        self.frames(conn)
    }

    /// What the replica sent on a connection since the last look.
    pub(crate) fn frames(&mut self, conn: ConnId) -> Vec<Frame> {
        let bytes = self.outbox.remove(&conn).unwrap_or_default();
        let mut rest = &bytes[..];
        let mut frames = Vec::new();
        while !rest.is_empty() {
            // Leaked, so that a message can be kept; only tests do so.
            let decoder: &'static mut Decoder = Box::leak(Box::new(Decoder::new()));
            loop {
                let (head, later) = rest.split_at(decoder.want());
                rest = later;
                if decoder.feed(head, &self.arena).expect("a good frame") {
                    break;
                }
            }
            let decoder: &'static Decoder = decoder;
            let (payload, later) = rest.split_at(decoder.payload_len() as usize);
            rest = later;
            frames.push((decoder.message().expect("a good message"), payload.to_vec()));
        }
        frames
    }

    pub(crate) fn hello(&self, engine: Uuid) -> Hello {
        Hello {
            volume: VOLUME,
            engine,
            supersedes: Uuid::NONE,
            nonce: [3; 32],
            term: Term(0),
            attach_epoch: 0,
            protocol_min: 1,
            protocol_max: trilith_wire::limits::PROTOCOL_MAX,
            loss: 0,
            cfg_gen: self.replica.facts().config.generation,
            capacity: CAPACITY,
            member: self.replica.facts().member,
        }
    }

    /// HELLO to AUTH; what came back after it.
    pub(crate) fn greet(&mut self, hello: Hello, secret: &[u8; 32]) -> (ConnId, Vec<Frame>) {
        let conn = self.connect();
        let answer = self.ask(conn, &Message::Hello(hello));
        let Some((
            Message::Challenge {
                protocol,
                replica,
                nonce,
                proof: theirs,
            },
            _,
        )) = answer.first()
        else {
            return (conn, answer);
        };
        let binding = Binding {
            engine_nonce: hello.nonce,
            replica_nonce: *nonce,
            volume: hello.volume,
            engine: hello.engine,
            replica: *replica,
            protocol: *protocol,
        };
        assert_eq!(
            *theirs,
            proof(&SECRET, Role::Replica, &binding),
            "the replica's proof"
        );
        let proof = proof(secret, Role::Engine, &binding);
        let answer = self.ask(conn, &Message::Auth { proof });
        (conn, answer)
    }

    /// A welcomed session.
    pub(crate) fn login(&mut self, engine: Uuid) -> (ConnId, ReplicaState) {
        let hello = self.hello(engine);
        let (conn, answer) = self.greet(hello, &SECRET);
        match answer.first() {
            Some((Message::Welcome(state), _)) => (conn, *state),
            other => panic!("welcome, not {other:?}"),
        }
    }

    pub(crate) fn vote(&self, term: u64) -> Prevote {
        Prevote {
            term: Term(term),
            attach_epoch: 0,
            cfg_gen: self.replica.facts().config.generation,
            release_lease_of: Uuid::NONE,
        }
    }

    /// VOTE to PROMISE.
    pub(crate) fn elect(&mut self, conn: ConnId, term: u64) -> ReplicaState {
        let answer = self.ask(conn, &Message::Vote(self.vote(term)));
        match answer.last() {
            Some((Message::Promise { state, .. }, _)) => *state,
            other => panic!("promise, not {other:?}"),
        }
    }

    /// TERMSTART and OPENED.
    pub(crate) fn begin(&mut self, conn: ConnId, term: u64, start: u64, iss: MemberSet) {
        let (term, start) = (Term(term), Idx(start));
        let answer = self.ask(
            conn,
            &Message::TermStart {
                term,
                start,
                iss,
                loss: 0,
            },
        );
        assert_eq!(answer[0].0, Message::TermStartDone { term, start });
        self.ask(conn, &Message::Opened { term });
    }

    /// Engine `E1`, elected in term 1, entries from 1 on.
    pub(crate) fn active(&mut self) -> ConnId {
        let (conn, _) = self.login(E1);
        self.elect(conn, 1);
        self.begin(conn, 1, 0, ALL);
        conn
    }

    fn append_frame(&mut self, conn: ConnId, append: Append<'_>, payload: &[u8]) {
        let crcs: Vec<u8> = payload
            .chunks(4096)
            .flat_map(|b| self.arena.crc32c(0, b).to_le_bytes())
            .collect();
        self.queue_frame(
            conn,
            &Message::Append(Append {
                crcs: &crcs,
                ..append
            }),
            payload,
        );
    }

    pub(crate) fn entry(term: u64, idx: u64, lba: u64, blocks: u32) -> Append<'static> {
        Append {
            term: Term(term),
            idx: Idx(idx),
            op: EntryOp::Write,
            range: BlockRange::new(Lba(lba), Blocks(blocks)),
            skip: MemberSet::EMPTY,
            header_only: false,
            resend: false,
            tidx: Idx(0),
            sent_at: idx,
            crcs: &[],
        }
    }

    /// Queues a write of blocks filled with `fill`.
    pub(crate) fn write(&mut self, conn: ConnId, append: Append<'_>, fill: u8) {
        let payload = if append.op == EntryOp::Write && !append.header_only {
            vec![fill; usize::try_from(append.range.bytes()).unwrap()]
        } else {
            Vec::new()
        };
        self.append_frame(conn, append, &payload);
    }

    /// Writes in term 1 and returns what came back.
    pub(crate) fn put(&mut self, conn: ConnId, idx: u64, lba: u64, fill: u8) -> Vec<Frame> {
        self.write(conn, Rig::entry(1, idx, lba, 1), fill);
        self.run();
        self.frames(conn)
    }

    /// A FLUSH in term 1 and what came back.
    pub(crate) fn flush(&mut self, conn: ConnId, idx: u64) -> Vec<Frame> {
        let (term, idx, tidx) = (Term(1), Idx(idx), Idx(0));
        self.ask(
            conn,
            &Message::Flush {
                term,
                idx,
                tidx,
                sent_at: 0,
            },
        )
    }

    pub(crate) fn state(&self) -> ReplicaState {
        self.replica.state(self.now, E1)
    }

    pub(crate) fn later(&mut self, ms: u64) {
        self.now = Monotonic(self.now.0 + ms * MS);
    }

    pub(crate) fn filled(&self, lba: u64) -> u8 {
        let block = self.disk.block(lba);
        assert!(block.iter().all(|b| *b == block[0]), "block {lba} is torn");
        block[0]
    }
}

/// The reason of a refusal.
pub(crate) fn refusal(frames: &[Frame]) -> Option<Reason> {
    frames.iter().find_map(|(message, _)| match message {
        Message::Refused { reason, .. } | Message::Nack { reason, .. } => Some(*reason),
        _ => None,
    })
}

/// `upto` of the last ACK and all further positions.
pub(crate) fn acked(frames: &[Frame]) -> Option<(u64, Vec<u64>)> {
    let mut found = None;
    for (message, _) in frames {
        if let Message::Ack { upto, further, .. } = message {
            let (_, mut all) = found.unwrap_or((0, Vec::new()));
            all.extend(trilith_wire::message::further_positions(further).map(|i| i.0));
            found = Some((upto.0, all));
        }
    }
    found
}

/// Whether an error is what a test has set.
pub(crate) const IO: DiskError = DiskError::Io;
