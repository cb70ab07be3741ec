//! A small world around the server: an arena, a volume in memory, connections whose bytes arrive in
//! pieces. Tests drive it; [`fuzz_session`] drives it with arbitrary bytes.

use crate::config::NbdConfig;
use crate::server::NbdServer;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;
use trilith_block::limits::TRANSFER_BYTES_MAX;
use trilith_block::request::status_flags;
use trilith_block::{
    Actions, BufId, BufSlice, Buffers, Capabilities, Completion, ConnId, ErrorKind, FrontendAction,
    FrontendEvent, Machine, Monotonic, Op, Outcome, Request, Stream, StreamEvent, Uuid, VolumeInfo,
    Want,
};

/// Bytes of the volume that [`fuzz_session`] serves.
const FUZZ_VOLUME_BYTES: u64 = 3 * 1024 * 1024 + 4096;
/// Bytes of its arena: less than a few requests need.
const FUZZ_ARENA_BYTES: u64 = 8 * 1024 * 1024;

/// Buffers in memory that notice a wrong count. A buffer without owner stays readable until the
/// driver has taken the actions of the batch.
#[derive(Debug)]
pub(crate) struct Arena {
    buffers: BTreeMap<BufId, (Vec<u8>, u32)>,
    dying: Vec<BufId>,
    next: u32,
    budget: u64,
}

impl Arena {
    pub(crate) fn new(budget: u64) -> Arena {
        Arena {
            buffers: BTreeMap::new(),
            dying: Vec::new(),
            next: 0,
            budget,
        }
    }

    fn reap(&mut self) {
        for buf in self.dying.drain(..) {
            let gone = self.buffers.remove(&buf);
            self.budget += gone.map_or(0, |(bytes, _)| bytes.len() as u64);
        }
    }

    fn entry(&mut self, buf: BufId) -> &mut (Vec<u8>, u32) {
        match self.buffers.get_mut(&buf) {
            Some(entry) if entry.1 > 0 => entry,
            Some(_) => panic!("{buf:?} has no owner any more"),
            None => panic!("{buf:?} is gone"),
        }
    }

    pub(crate) fn live(&self) -> usize {
        self.buffers
            .values()
            .filter(|(_, owners)| *owners > 0)
            .count()
    }
}

impl Buffers for Arena {
    fn alloc(&mut self, len: u32) -> Option<BufSlice> {
        if len == 0 || len > TRANSFER_BYTES_MAX || u64::from(len) > self.budget {
            return None;
        }
        self.budget -= u64::from(len);
        let buf = BufId(self.next);
        self.next += 1;
        self.buffers.insert(buf, (vec![0xa5; len as usize], 1));
        Some(BufSlice {
            buf,
            offset: 0,
            len,
        })
    }

    fn retain(&mut self, buf: BufId) {
        self.entry(buf).1 += 1;
    }

    fn release(&mut self, buf: BufId) {
        let entry = self.entry(buf);
        entry.1 -= 1;
        if entry.1 == 0 {
            self.dying.push(buf);
        }
    }

    fn bytes(&self, slice: BufSlice) -> &[u8] {
        match self.buffers.get(&slice.buf) {
            Some((bytes, _)) => &bytes[slice.offset as usize..][..slice.len as usize],
            None => panic!("{slice:?} is gone"),
        }
    }

    fn bytes_mut(&mut self, slice: BufSlice) -> &mut [u8] {
        &mut self.entry(slice.buf).0[slice.offset as usize..][..slice.len as usize]
    }

    fn copy(&mut self, source: BufSlice, target: BufSlice) {
        let bytes = self.bytes(source).to_vec();
        self.bytes_mut(target).copy_from_slice(&bytes);
    }

    fn crc32c(&self, seed: u32, _bytes: &[u8]) -> u32 {
        seed
    }

    fn available(&self) -> u64 {
        self.budget
    }
}

/// One connection as its driver and its client see it.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    /// From the client, not yet taken.
    input: VecDeque<u8>,
    /// To the client.
    pub(crate) output: Vec<u8>,
    /// Bytes of the payload or discard in progress.
    progress: u64,
    /// The machine has asked for the close.
    closing: bool,
    /// `Closed` was delivered.
    pub(crate) closed: bool,
}

/// The server, its driver and a target.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) server: NbdServer,
    pub(crate) arena: Arena,
    out: Actions<FrontendAction>,
    pub(crate) now: Monotonic,
    pub(crate) pipes: BTreeMap<ConnId, Pipe>,
    /// Requests that the target has not ended.
    pub(crate) pending: Vec<Request>,
    pub(crate) volume: Vec<u8>,
    next: u64,
}

/// The configuration that tests use.
pub(crate) fn config(capacity_bytes: u64) -> NbdConfig {
    NbdConfig {
        export_name: String::from("vol"),
        description: String::from("a volume"),
        read_only: false,
        volume: VolumeInfo {
            volume: Uuid([7; 16]),
            capabilities: Capabilities {
                capacity_bytes,
                block_bytes: 4096,
                transfer_bytes_max: TRANSFER_BYTES_MAX,
                optimal_bytes: TRANSFER_BYTES_MAX,
            },
        },
    }
}

impl World {
    pub(crate) fn new(config: NbdConfig, arena_bytes: u64) -> World {
        // Tests of huge volumes never touch the bytes.
        let capacity = usize::try_from(config.size())
            .unwrap_or(0)
            .min(64 * 1024 * 1024);
        let server = match NbdServer::new(config) {
            Ok(server) => server,
            Err(problem) => panic!("{problem}"),
        };
        World {
            server,
            arena: Arena::new(arena_bytes),
            out: Actions::new(),
            now: Monotonic(1),
            pipes: BTreeMap::new(),
            pending: Vec::new(),
            volume: vec![0; capacity],
            next: 0,
        }
    }

    pub(crate) fn open(&mut self) -> ConnId {
        let id = ConnId(self.next);
        self.next += 1;
        self.pipes.insert(id, Pipe::default());
        self.event(FrontendEvent::Stream(id, StreamEvent::Opened));
        id
    }

    /// One event, the batch's settle, and the actions.
    pub(crate) fn event(&mut self, event: FrontendEvent<'_>) {
        self.server
            .step(self.now, event, &mut self.arena, &mut self.out);
        self.settle();
    }

    pub(crate) fn settle(&mut self) {
        self.server.settle(self.now, &mut self.arena, &mut self.out);
        while !self.out.is_empty() {
            let out = core::mem::take(&mut self.out);
            let mut closes = Vec::new();
            for action in out.list() {
                self.action(&out, *action, &mut closes);
            }
            self.arena.reap();
            for id in closes {
                self.gone(id);
            }
        }
        self.arena.reap();
    }

    fn action(
        &mut self,
        out: &Actions<FrontendAction>,
        action: FrontendAction,
        closes: &mut Vec<ConnId>,
    ) {
        match action {
            FrontendAction::Send {
                conn,
                head,
                payload,
            } => {
                let Some(pipe) = self.pipes.get_mut(&conn) else {
                    panic!("send on {conn:?}")
                };
                assert!(!pipe.closing, "send after close on {conn:?}");
                pipe.output.extend_from_slice(out.get(head));
                if let Some(slice) = payload {
                    pipe.output.extend_from_slice(self.arena.bytes(slice));
                }
            }
            FrontendAction::Close { conn } => {
                let Some(pipe) = self.pipes.get_mut(&conn) else {
                    panic!("close of {conn:?}")
                };
                assert!(!pipe.closing, "second close of {conn:?}");
                pipe.closing = true;
                closes.push(conn);
            }
            FrontendAction::Submit(request) => {
                let same = |other: &Request| other.tag == request.tag;
                assert!(
                    !self.pending.iter().any(same),
                    "{:?} is used twice",
                    request.tag
                );
                assert!(
                    request.tag.0 >> 56 == 0,
                    "{:?} uses the wiring's bits",
                    request.tag
                );
                let size = self.server.export.size();
                assert!(
                    request.range.end().is_some_and(|end| end <= size),
                    "{request:?}"
                );
                let long = matches!(request.op, Op::Discard | Op::WriteZeroes | Op::BlockStatus);
                assert!(long || request.range.len <= u64::from(TRANSFER_BYTES_MAX));
                assert_eq!(request.data.is_some(), request.op == Op::Write);
                let data_len = request.data.map(|data| u64::from(data.len));
                assert!(data_len.is_none_or(|len| len == request.range.len));
                self.pending.push(request);
            }
        }
    }

    /// The connection is gone.
    pub(crate) fn gone(&mut self, id: ConnId) {
        let Some(pipe) = self.pipes.get_mut(&id) else {
            return;
        };
        if !core::mem::replace(&mut pipe.closed, true) {
            pipe.closing = true;
            self.event(FrontendEvent::Stream(id, StreamEvent::Closed));
        }
    }

    /// Bytes of the client arrive; the machine takes what it wants.
    pub(crate) fn feed(&mut self, id: ConnId, bytes: &[u8]) {
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.input.extend(bytes);
        }
        self.pump(id);
    }

    /// The driver's part of a stream.
    pub(crate) fn pump(&mut self, id: ConnId) {
        loop {
            let want = self.server.want(id, &mut self.arena);
            let Some(pipe) = self.pipes.get_mut(&id).filter(|pipe| !pipe.closing) else {
                return;
            };
            match want {
                Want::Pause => return,
                Want::Header(len) => {
                    assert!(0 < len && len <= trilith_block::limits::HEADER_BYTES_MAX);
                    if pipe.input.len() < len {
                        return;
                    }
                    let header: Vec<u8> = pipe.input.drain(..len).collect();
                    self.event(FrontendEvent::Stream(id, StreamEvent::Header(&header)));
                }
                Want::Payload(slice) => {
                    let left = slice.len as usize - usize::try_from(pipe.progress).unwrap_or(0);
                    let bytes: Vec<u8> = pipe.input.drain(..left.min(pipe.input.len())).collect();
                    let start = usize::try_from(pipe.progress).unwrap_or(0);
                    let target = &mut self.arena.bytes_mut(slice)[start..start + bytes.len()];
                    target.copy_from_slice(&bytes);
                    if !self.progress(id, bytes.len(), u64::from(slice.len)) {
                        return;
                    }
                }
                Want::Discard(len) => {
                    assert!(0 < len);
                    let left = usize::try_from(len - pipe.progress).unwrap_or(usize::MAX);
                    let count = left.min(pipe.input.len());
                    pipe.input.drain(..count);
                    if !self.progress(id, count, len) {
                        return;
                    }
                }
            }
        }
    }

    /// False when more bytes are needed.
    fn progress(&mut self, id: ConnId, count: usize, len: u64) -> bool {
        let Some(pipe) = self.pipes.get_mut(&id) else {
            return false;
        };
        pipe.progress += count as u64;
        if pipe.progress < len {
            return false;
        }
        pipe.progress = 0;
        self.event(FrontendEvent::Stream(id, StreamEvent::Payload));
        true
    }

    pub(crate) fn pump_all(&mut self) {
        let ids: Vec<ConnId> = self.pipes.keys().copied().collect();
        for id in ids {
            self.pump(id);
        }
    }

    /// The target ends pending request `index`. False when it has no memory for the answer.
    pub(crate) fn complete(&mut self, index: usize, error: Option<ErrorKind>) -> bool {
        let request = self.pending[index];
        let result = match error {
            Some(kind) => Err(kind),
            None => match self.perform(&request) {
                Some(outcome) => Ok(outcome),
                None => return false,
            },
        };
        self.pending.remove(index);
        if let Some(slice) = request.data {
            self.arena.release(slice.buf);
            self.arena.reap();
        }
        self.event(FrontendEvent::Complete(Completion {
            tag: request.tag,
            result,
        }));
        self.pump_all();
        true
    }

    fn perform(&mut self, request: &Request) -> Option<Outcome> {
        let start = usize::try_from(request.range.offset)
            .unwrap_or(0)
            .min(self.volume.len());
        let len = usize::try_from(request.range.len)
            .unwrap_or(0)
            .min(self.volume.len() - start);
        match request.op {
            Op::Read => {
                let slice = self
                    .arena
                    .alloc(u32::try_from(request.range.len).unwrap_or(0))?;
                let target = self.arena.bytes_mut(slice);
                target[..len].copy_from_slice(&self.volume[start..start + len]);
                return Some(Outcome::Data(slice));
            }
            Op::Write => {
                if let Some(slice) = request.data {
                    let bytes = self.arena.bytes(slice);
                    self.volume[start..start + len].copy_from_slice(&bytes[..len]);
                }
            }
            Op::Discard | Op::WriteZeroes => self.volume[start..start + len].fill(0),
            Op::Flush | Op::Prefetch => {}
            Op::BlockStatus => return self.extents(request),
        }
        Some(Outcome::Done)
    }

    /// Every other MiB is a hole, every other 64 KiB is dirty; at most three records.
    fn extents(&mut self, request: &Request) -> Option<Outcome> {
        let slice = self.arena.alloc(48)?;
        let mut records = Vec::new();
        let (mut at, end) = (
            request.range.offset,
            request.range.offset + request.range.len,
        );
        while at < end && records.len() < 48 {
            let len = (65536 - at % 65536).min(end - at);
            let hole = if (at >> 20) % 2 == 1 {
                status_flags::HOLE | status_flags::ZERO
            } else {
                0
            };
            let dirty = if (at >> 16) % 2 == 1 {
                status_flags::DIRTY
            } else {
                0
            };
            records.extend_from_slice(&len.to_le_bytes());
            records.extend_from_slice(&(hole | dirty).to_le_bytes());
            records.extend_from_slice(&[0; 4]);
            at += len;
        }
        let used = slice.slice(0, u32::try_from(records.len()).unwrap_or(0));
        self.arena.bytes_mut(used).copy_from_slice(&records);
        Some(Outcome::Extents(used))
    }

    /// Ends everything that is pending, again and again.
    pub(crate) fn complete_all(&mut self) {
        while !self.pending.is_empty() {
            let done = (0..self.pending.len()).any(|index| self.complete(index, None));
            assert!(
                done,
                "no pending request can get memory: {:?}",
                self.server.status()
            );
        }
    }

    /// Time passes.
    pub(crate) fn advance(&mut self, span: Duration) {
        self.now = self.now.after(span);
        self.settle();
        self.pump_all();
    }

    /// Ends all connections and requests and checks that nothing is left behind.
    pub(crate) fn finish(&mut self) {
        let ids: Vec<ConnId> = self.pipes.keys().copied().collect();
        for id in ids {
            self.gone(id);
        }
        self.complete_all();
        let status = self.server.status();
        assert_eq!(self.arena.live(), 0, "buffers are left: {status:?}");
        assert_eq!((status.connections, status.requests_in_flight), (0, 0));
        assert_eq!((status.payload_bytes, status.connections_waiting), (0, 0));
    }
}

/// Bytes of a script, zeroes after its end.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }
}

/// Reads `input` as a script of connections, bytes on them, completions, errors, time and ends of
/// service, plays it, and checks that every buffer comes back.
///
/// # Panics
/// On a bug of the server: that is what it looks for.
pub fn fuzz_session(input: &[u8]) {
    let mut script = Script(input);
    let mut config = config(FUZZ_VOLUME_BYTES);
    config.read_only = script.byte() % 8 == 7;
    let mut world = World::new(config, FUZZ_ARENA_BYTES);
    let mut id = world.open();
    while !script.0.is_empty() {
        match script.byte() % 16 {
            0 => id = world.open(),
            1 => {
                let count = u64::from(script.byte());
                id = ConnId(count % world.next);
            }
            2 => world.gone(id),
            3 | 4 => {
                let len = usize::from(script.byte()).min(script.0.len());
                let (bytes, rest) = script.0.split_at(len);
                script.0 = rest;
                world.feed(id, bytes);
            }
            5 => {
                let greeting = canned_handshake(script.byte());
                world.feed(id, &greeting);
            }
            6..=9 => {
                let command = canned_command(&mut script);
                world.feed(id, &command);
            }
            10 => world.feed(id, &vec![script.byte(); 16 * usize::from(script.u16())]),
            11 => world.advance(Duration::from_millis(u64::from(script.byte()) * 100)),
            12 if script.byte() % 16 == 0 => {
                world.event(FrontendEvent::Serving(script.byte() % 4 == 0));
            }
            13 if !world.pending.is_empty() => {
                let index = usize::from(script.byte()) % world.pending.len();
                let kind = ErrorKind::ALL[usize::from(script.byte()) % ErrorKind::ALL.len()];
                world.complete(index, Some(kind));
            }
            _ if !world.pending.is_empty() => {
                let index = usize::from(script.byte()) % world.pending.len();
                world.complete(index, None);
            }
            _ => {}
        }
    }
    world.finish();
}

/// Client flags and options that lead to transmission in one of the modes.
fn canned_handshake(choice: u8) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 3];
    let mut option = |kind: u32, data: &[u8]| {
        bytes.extend_from_slice(b"IHAVEOPT");
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
        bytes.extend_from_slice(data);
    };
    match choice % 3 {
        0 => {}
        1 => option(8, &[]),
        _ => option(11, &[]),
    }
    if choice & 0x40 != 0 {
        option(
            10,
            b"\0\0\0\x03vol\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x0dtrilith:dirty",
        );
    }
    if choice % 3 < 2 && choice & 0x80 != 0 {
        option(1, b"vol");
    } else {
        option(7, b"\0\0\0\0\0\x01\0\x03");
    }
    bytes
}

/// A request header with plausible fields.
fn canned_command(script: &mut Script<'_>) -> Vec<u8> {
    let (shape, flags, kind) = (script.byte(), script.byte(), script.byte());
    let offset = u64::from(script.u16()) << (shape % 8);
    let len = u64::from(script.u16()) << (shape / 8 % 16);
    let magic: u32 = if shape & 0x80 == 0 {
        0x2560_9513
    } else {
        0x21e4_1c71
    };
    let flags = if flags & 0x80 == 0 {
        0
    } else {
        u16::from(flags & 0x3f)
    };
    let flags = if shape & 0x80 != 0 && kind % 9 == 1 {
        flags | 0x20
    } else {
        flags
    };
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&magic.to_be_bytes());
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&u16::from(kind % 9).to_be_bytes());
    bytes.extend_from_slice(&u64::from(script.byte()).to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    if shape & 0x80 == 0 {
        bytes.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    } else {
        bytes.extend_from_slice(&len.to_be_bytes());
    }
    bytes
}
