//! The machines and the wires between them. Every call of a machine is counted for its kind.

use crate::counting::counted;
use crate::memory::{Disk, Memory, Ram, buffer_of};
use std::collections::{BTreeMap, VecDeque};
use trilith_block::request::Target;
use trilith_block::{
    Actions, BufSlice, Buffers, ConnId, FrontendAction, FrontendEvent, Machine, MemberId,
    MemberSet, Monotonic, Stream, StreamEvent, Uuid, Want,
};
use trilith_engine::{Engine, EngineConfig, Mode};
use trilith_frontend_nbd::{NbdConfig, NbdServer};
use trilith_replica::store::{Format, FormatParams, Geometry, OpenParams, StoreOut};
use trilith_replica::{Config, Replica};

const MEMBERS: usize = 3;
const CAPACITY: u64 = 32 << 20;
const BLOCKS: u64 = CAPACITY / 4096;
const META_BYTES: usize = 24 << 20;
const VOLUME: Uuid = Uuid([7; 16]);
const SECRET: [u8; 32] = [9; 32];
const CLIENT: ConnId = ConnId(1000);
/// Time that passes in a turn: leases, heartbeats and looks at ages come in between.
const TURN_NS: u64 = 1_000_000;

/// What the client asks for, by block.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    Read(u64),
    Write(u64),
    Flush,
}

/// Which machine allocated.
const ENGINE: usize = 0;
const NBD: usize = 1;
const REPLICA: usize = 2;

/// Actions of a machine, in two so that it can be called while they are carried out.
struct Out<A> {
    fill: Actions<A>,
    spare: Actions<A>,
}

impl<A> Out<A> {
    fn new() -> Out<A> {
        Out {
            fill: Actions::new(),
            spare: Actions::new(),
        }
    }

    fn take(&mut self) -> Actions<A> {
        let spare = core::mem::take(&mut self.spare);
        core::mem::replace(&mut self.fill, spare)
    }

    fn give_back(&mut self, mut taken: Actions<A>) {
        taken.clear();
        self.spare = taken;
    }
}

/// Bytes of one direction.
#[derive(Debug, Default)]
struct Pipe(VecDeque<u8>);

impl Pipe {
    fn put(&mut self, head: &[u8], payload: Option<&[u8]>) {
        self.0.extend(head);
        self.0.extend(payload.unwrap_or_default());
    }

    /// Takes `len` bytes if they are there.
    fn take(&mut self, len: usize, scratch: &mut Vec<u8>) -> bool {
        if self.0.len() < len {
            return false;
        }
        scratch.clear();
        scratch.extend(self.0.drain(..len));
        true
    }
}

struct Member {
    replica: Replica,
    memory: Memory,
    disk: Disk,
    out: Out<trilith_replica::Action>,
    conn: Option<ConnId>,
    /// From the engine, to the engine.
    down: Pipe,
    up: Pipe,
}

/// The client's side of its NBD connection.
#[derive(Debug, Default)]
struct Client {
    up: Pipe,
    down: Pipe,
    /// Reads in flight: which block by cookie.
    reads: BTreeMap<u64, u64>,
    in_flight: usize,
    asked: u64,
    greeted: bool,
    seen: BTreeMap<u64, u8>,
}

pub(crate) struct Rig {
    now: Monotonic,
    engine: Engine,
    engine_out: Out<trilith_engine::Action>,
    nbd: Option<NbdServer>,
    nbd_out: Out<FrontendAction>,
    memory: Memory,
    members: Vec<Member>,
    client: Client,
    scratch: Vec<u8>,
    allocations: [u64; 3],
    conns: u64,
}

fn member_of(index: usize) -> MemberId {
    MemberId::new(index).unwrap()
}

fn formatted(index: usize, memory: &mut Memory) -> Disk {
    let params = FormatParams {
        volume: VOLUME,
        replica: Uuid([0x10 + u8::try_from(index).unwrap(); 16]),
        member: member_of(index),
        voters: MemberSet::first(MEMBERS),
        iss: MemberSet::first(MEMBERS),
        capacity: CAPACITY,
        geometry: Geometry {
            // A small ring: checkpoints are a part of the steady state.
            ring_blocks: 512,
            ..Geometry::DEFAULT
        },
        same_device: false,
        zero_data: false,
        volatile_cache: true,
        checksums: false,
        newcomer: false,
        witness: MemberSet::EMPTY,
    };
    let mut disk = Disk::new(META_BYTES, usize::try_from(CAPACITY).unwrap());
    let mut out = StoreOut::new();
    let mut format = Format::new(&params, memory, &mut out).expect("valid parameters");
    loop {
        for (tag, op) in core::mem::take(&mut out.ops) {
            disk.apply(&op, memory);
            if let Some(end) = format.disk_done(tag, Ok(()), memory, &mut out) {
                end.expect("it is formatted");
                memory.reclaim();
                return disk;
            }
        }
    }
}

impl Member {
    fn new(index: usize) -> Member {
        let mut memory = Memory::new();
        let disk = formatted(index, &mut memory);
        let open = OpenParams {
            boot: Uuid([1; 16]),
            allocate: true,
            allocate_ahead: 0,
        };
        let entropy = [u8::try_from(index).unwrap() + 1; 32];
        Member {
            replica: Replica::new(Config::new(VOLUME, SECRET, entropy, open)),
            memory,
            disk,
            out: Out::new(),
            conn: None,
            down: Pipe::default(),
            up: Pipe::default(),
        }
    }

    fn step(&mut self, now: Monotonic, event: trilith_replica::Event<'_>, sum: &mut u64) {
        let (replica, memory, out) = (&mut self.replica, &mut self.memory, &mut self.out.fill);
        counted(sum, || replica.step(now, event, memory, out));
    }

    /// Hands over what has arrived, ends what is under way, settles, carries out.
    fn turn(&mut self, now: Monotonic, scratch: &mut Vec<u8>, sum: &mut u64) {
        if let Some(conn) = self.conn {
            while self.deliver(now, conn, scratch, sum) {}
        }
        for _ in 0..self.disk.under_way.len() {
            if let Some((tag, op)) = self.disk.under_way.pop_front() {
                self.disk.apply(&op, &mut self.memory);
                self.step(now, trilith_replica::Event::Disk(tag, Ok(())), sum);
                if let Some(buf) = buffer_of(&op) {
                    self.memory.release(buf.buf);
                }
            }
        }
        let (replica, memory, out) = (&mut self.replica, &mut self.memory, &mut self.out.fill);
        counted(sum, || {
            replica.settle(now, memory, out);
            replica.deadline()
        });
        self.carry_out(now, sum);
        self.memory.reclaim();
    }

    fn deliver(
        &mut self,
        now: Monotonic,
        conn: ConnId,
        scratch: &mut Vec<u8>,
        sum: &mut u64,
    ) -> bool {
        let (replica, memory) = (&mut self.replica, &mut self.memory);
        let want = counted(sum, || replica.want(conn, memory));
        let Some(event) = received(want, &mut self.down, &mut self.memory, scratch) else {
            return false;
        };
        self.step(now, trilith_replica::Event::Stream(conn, event), sum);
        true
    }

    fn carry_out(&mut self, now: Monotonic, sum: &mut u64) {
        use trilith_replica::Action;
        let list = self.out.take();
        for action in list.list() {
            match *action {
                Action::Send { head, payload, .. } => {
                    let payload = payload.map(|p| self.memory.bytes(p));
                    self.up.put(list.get(head), payload);
                }
                Action::Disk(tag, op) => {
                    if let Some(buf) = buffer_of(&op) {
                        self.memory.retain(buf.buf);
                    }
                    self.disk.under_way.push_back((tag, op));
                }
                Action::NeedWords { len, .. } => {
                    let words = trilith_replica::Event::Words(Box::new(Ram(vec![0; len])));
                    self.step(now, words, sum);
                }
                Action::Opened(_) => {}
                Action::Close { .. } | Action::Stopped | Action::Fatal(_) => {
                    panic!("unexpected: {action:?}")
                }
            }
        }
        self.out.give_back(list);
    }
}

/// The event of what a stream wanted, if it is all there.
fn received<'a>(
    want: Want,
    pipe: &mut Pipe,
    memory: &mut Memory,
    scratch: &'a mut Vec<u8>,
) -> Option<StreamEvent<'a>> {
    match want {
        Want::Header(len) => pipe
            .take(len, scratch)
            .then_some(StreamEvent::Header(scratch)),
        Want::Payload(slice) => {
            if !pipe.take(slice.len as usize, scratch) {
                return None;
            }
            memory.bytes_mut(slice).copy_from_slice(scratch);
            Some(StreamEvent::Payload)
        }
        Want::Discard(len) => pipe
            .take(usize::try_from(len).unwrap(), scratch)
            .then_some(StreamEvent::Payload),
        Want::Pause => None,
    }
}

impl Rig {
    /// A volume that serves, with one client.
    pub(crate) fn new() -> Rig {
        let members = MemberSet::first(MEMBERS);
        let mut config = EngineConfig::new(Uuid([2; 16]), VOLUME, SECRET, members, [3; 32]);
        config.capacity_bytes = CAPACITY;
        config.cfg_gen = 1;
        let now = Monotonic(1_000_000_000_000);
        let mut rig = Rig {
            now,
            engine: Engine::new(config, now).expect("a valid configuration"),
            engine_out: Out::new(),
            nbd: None,
            nbd_out: Out::new(),
            memory: Memory::new(),
            members: (0..MEMBERS).map(Member::new).collect(),
            client: Client::default(),
            scratch: Vec::new(),
            allocations: [0; 3],
            conns: 0,
        };
        for member in &mut rig.members {
            member.step(now, trilith_replica::Event::Start, &mut 0);
            member.carry_out(now, &mut 0);
        }
        for _ in 0..20_000 {
            rig.turn();
            if rig.engine.mode() == Mode::Healthy && rig.client.greeted {
                return rig;
            }
        }
        panic!("not served, but {:?}", rig.engine.mode());
    }

    /// Allocations so far, by machine.
    pub(crate) fn allocations(&self) -> [u64; 3] {
        self.allocations
    }

    pub(crate) fn forget_allocations(&mut self) {
        self.allocations = [0; 3];
    }

    /// First byte of each block read.
    pub(crate) fn seen(&self) -> &BTreeMap<u64, u8> {
        &self.client.seen
    }

    /// What the request of this number wrote.
    pub(crate) fn fill_of(&self, number: u64) -> u8 {
        u8::try_from(number % 251).unwrap()
    }

    /// Has so many requests served, `depth` at once; `next` by the number of the request.
    pub(crate) fn serve(&mut self, requests: u64, depth: usize, next: &impl Fn(u64) -> Ask) {
        let mut left = requests;
        for _ in 0..100 * requests + 10_000 {
            while left > 0 && self.client.in_flight < depth {
                let number = self.client.asked;
                self.ask(number, next(number));
                left -= 1;
            }
            if left == 0 && self.client.in_flight == 0 {
                return;
            }
            self.turn();
        }
        panic!("{left} requests left, {} in flight", self.client.in_flight);
    }

    fn ask(&mut self, number: u64, ask: Ask) {
        let (kind, block, len) = match ask {
            Ask::Read(block) => (0u16, block, 4096u32),
            Ask::Write(block) => (1, block, 4096),
            Ask::Flush => (3, 0, 0),
        };
        let fill = self.fill_of(number);
        let client = &mut self.client;
        let block = block % BLOCKS;
        client.up.put(&0x2560_9513u32.to_be_bytes(), None);
        client.up.put(&0u16.to_be_bytes(), None);
        client.up.put(&kind.to_be_bytes(), None);
        client.up.put(&number.to_be_bytes(), None);
        client.up.put(&(block * 4096).to_be_bytes(), None);
        client.up.put(&len.to_be_bytes(), None);
        match ask {
            Ask::Write(_) => client.up.put(&[fill; 4096], None),
            Ask::Read(_) => {
                client.reads.insert(number, block);
            }
            Ask::Flush => {}
        }
        client.in_flight += 1;
        client.asked += 1;
    }

    fn turn(&mut self) {
        self.now = Monotonic(self.now.0 + TURN_NS);
        let now = self.now;
        for member in &mut self.members {
            member.turn(now, &mut self.scratch, &mut self.allocations[REPLICA]);
        }
        self.start_nbd();
        for at in 0..MEMBERS {
            while self.deliver_member(at) {}
        }
        while self.nbd.is_some() && self.deliver_client() {}
        self.carry_out_nbd();
        let (engine, memory, out) = (
            &mut self.engine,
            &mut self.memory,
            &mut self.engine_out.fill,
        );
        counted(&mut self.allocations[ENGINE], || {
            engine.settle(now, memory, out);
            engine.deadline()
        });
        self.carry_out();
        if let Some(nbd) = self.nbd.as_mut() {
            let (memory, out) = (&mut self.memory, &mut self.nbd_out.fill);
            counted(&mut self.allocations[NBD], || nbd.settle(now, memory, out));
        }
        self.carry_out_nbd();
        self.memory.reclaim();
        self.hear();
    }

    fn start_nbd(&mut self) {
        if self.nbd.is_some() || self.engine.mode() != Mode::Healthy {
            return;
        }
        let config = NbdConfig {
            export_name: "volume".to_owned(),
            description: String::new(),
            read_only: false,
            volume: self.engine.info().expect("a volume that serves"),
        };
        self.nbd = Some(NbdServer::new(config).expect("a valid export"));
        self.nbd_step(FrontendEvent::Stream(CLIENT, StreamEvent::Opened));
        // No zeroes; EXPORT_NAME with the empty name.
        self.client.up.put(&3u32.to_be_bytes(), None);
        self.client.up.put(b"IHAVEOPT", None);
        self.client.up.put(&1u32.to_be_bytes(), None);
        self.client.up.put(&0u32.to_be_bytes(), None);
    }

    fn nbd_step(&mut self, event: FrontendEvent<'_>) {
        let (now, memory, out) = (self.now, &mut self.memory, &mut self.nbd_out.fill);
        if let Some(nbd) = self.nbd.as_mut() {
            let sum = &mut self.allocations[NBD];
            counted(sum, || nbd.step(now, event, memory, out));
        }
    }

    fn engine_step(&mut self, event: trilith_engine::Event<'_>) {
        let (now, memory, out) = (self.now, &mut self.memory, &mut self.engine_out.fill);
        let (engine, sum) = (&mut self.engine, &mut self.allocations[ENGINE]);
        counted(sum, || engine.step(now, event, memory, out));
    }

    fn deliver_member(&mut self, at: usize) -> bool {
        let Some(conn) = self.members[at].conn else {
            return false;
        };
        let (engine, memory) = (&mut self.engine, &mut self.memory);
        let sum = &mut self.allocations[ENGINE];
        let want = counted(sum, || engine.want(conn, memory));
        let mut scratch = core::mem::take(&mut self.scratch);
        let up = &mut self.members[at].up;
        let event = received(want, up, &mut self.memory, &mut scratch);
        let busy = event.is_some();
        if let Some(event) = event {
            self.engine_step(trilith_engine::Event::Stream(conn, event));
        }
        self.scratch = scratch;
        busy
    }

    fn deliver_client(&mut self) -> bool {
        let (memory, sum) = (&mut self.memory, &mut self.allocations[NBD]);
        let Some(nbd) = self.nbd.as_mut() else {
            return false;
        };
        let want = counted(sum, || nbd.want(CLIENT, memory));
        let mut scratch = core::mem::take(&mut self.scratch);
        let event = received(want, &mut self.client.up, &mut self.memory, &mut scratch);
        let busy = event.is_some();
        if let Some(event) = event {
            self.nbd_step(FrontendEvent::Stream(CLIENT, event));
        }
        self.scratch = scratch;
        busy
    }

    fn carry_out(&mut self) {
        use trilith_engine::Action;
        let list = self.engine_out.take();
        for action in list.list() {
            match *action {
                Action::Dial { member } => self.dial(member),
                Action::Send {
                    conn,
                    head,
                    payload,
                } => {
                    let payload = payload.map(|p| self.memory.bytes(p));
                    let to = self.members.iter_mut().find(|m| m.conn == Some(conn));
                    to.expect("a member").down.put(list.get(head), payload);
                }
                Action::Complete(completion) => {
                    self.nbd_step(FrontendEvent::Complete(completion));
                }
                Action::ModeChanged(_) | Action::Scrub(_) => {}
                Action::Close { .. } | Action::Exit(_) => panic!("unexpected: {action:?}"),
            }
        }
        self.engine_out.give_back(list);
    }

    fn dial(&mut self, member: MemberId) {
        self.conns += 1;
        let conn = ConnId(self.conns);
        self.members[member.index()].conn = Some(conn);
        self.engine_step(trilith_engine::Event::Dialled { member, conn });
        self.engine_step(trilith_engine::Event::Stream(conn, StreamEvent::Opened));
        let now = self.now;
        let sum = &mut self.allocations[REPLICA];
        let event = trilith_replica::Event::Stream(conn, StreamEvent::Opened);
        self.members[member.index()].step(now, event, sum);
    }

    fn carry_out_nbd(&mut self) {
        let list = self.nbd_out.take();
        for action in list.list() {
            match *action {
                FrontendAction::Submit(request) => {
                    let (engine, memory, now) = (&mut self.engine, &mut self.memory, self.now);
                    let sum = &mut self.allocations[ENGINE];
                    let taken = counted(sum, || engine.submit(now, request, memory));
                    taken.expect("the engine has room");
                }
                FrontendAction::Send { head, payload, .. } => {
                    let payload: Option<BufSlice> = payload;
                    let payload = payload.map(|p| self.memory.bytes(p));
                    self.client.down.put(list.get(head), payload);
                }
                FrontendAction::Close { .. } => panic!("the client is thrown out"),
            }
        }
        self.nbd_out.give_back(list);
    }

    /// The client looks at what came back.
    fn hear(&mut self) {
        let client = &mut self.client;
        if !client.greeted {
            // Greeting, then size and flags of the export.
            client.greeted = client.down.take(18 + 10, &mut self.scratch);
            return;
        }
        while let Some(cookie) = client.down.cookie() {
            let block = client.reads.get(&cookie).copied();
            let len = 16 + if block.is_some() { 4096 } else { 0 };
            if !client.down.take(len, &mut self.scratch) {
                return;
            }
            assert_eq!(self.scratch[4..8], [0; 4], "request {cookie} failed");
            if let Some(block) = block {
                client.reads.remove(&cookie);
                client.seen.insert(block, self.scratch[16]);
            }
            client.in_flight -= 1;
        }
    }
}

impl Pipe {
    /// Cookie of the simple reply at the front.
    fn cookie(&self) -> Option<u64> {
        if self.0.len() < 16 {
            return None;
        }
        let mut bytes = [0; 8];
        for (byte, from) in bytes.iter_mut().zip(self.0.range(8..16)) {
            *byte = *from;
        }
        Some(u64::from_be_bytes(bytes))
    }
}
