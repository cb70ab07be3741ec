//! Serves a disk in memory by iSCSI: for trying the target with any initiator and for conformance
//! suites, without an engine. One thread, blocking sockets that are polled; not made for speed.
//!
//! `cargo run --release -p trilith-frontend-iscsi --example memory -- 127.0.0.1:3260 256`
//! serves 256 MiB as `iscsi://127.0.0.1:3260/iqn.2026-11.io.trilith:memory/0`. Further arguments:
//! `--block=4096`, `--chap=name:secret`, `--mutual=name:secret`, `--allow=iqn...`, `--read-only=yes`.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind as IoKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;
use trilith_block::request::status_flags;
use trilith_block::{
    Actions, BufId, BufSlice, Buffers, Capabilities, Completion, ConnId, ErrorKind, FrontendAction,
    FrontendEvent, Machine, Monotonic, Op, Outcome, Request, Stream, StreamEvent, Uuid, VolumeInfo,
    Want,
};
use trilith_frontend_iscsi::{ChapConfig, ChapUser, IscsiConfig, IscsiTarget};

const BLOCK: usize = 4096;
/// Bytes of buffers that may be allocated at one time.
const BUDGET_BYTES: u64 = 256 << 20;

/// Buffers as vectors. What nobody owns is freed when the actions that name it are done.
#[derive(Default)]
struct Arena {
    orphans: Vec<u32>,
    map: BTreeMap<u32, (Vec<u8>, u32)>,
    next: u32,
    used: u64,
}

impl Buffers for Arena {
    fn alloc(&mut self, len: u32) -> Option<BufSlice> {
        if len == 0 || len > 1 << 20 || self.used + u64::from(len) > BUDGET_BYTES {
            return None;
        }
        self.used += u64::from(len);
        self.next += 1;
        self.map.insert(self.next, (vec![0xa5; len as usize], 1));
        Some(BufSlice {
            buf: BufId(self.next),
            offset: 0,
            len,
        })
    }

    fn retain(&mut self, buf: BufId) {
        if let Some(entry) = self.map.get_mut(&buf.0) {
            entry.1 += 1;
        }
    }

    fn release(&mut self, buf: BufId) {
        let Some(entry) = self.map.get_mut(&buf.0) else {
            return;
        };
        entry.1 -= 1;
        if entry.1 == 0 {
            self.orphans.push(buf.0);
        }
    }

    fn bytes(&self, slice: BufSlice) -> &[u8] {
        &self.map[&slice.buf.0].0[slice.offset as usize..][..slice.len as usize]
    }

    fn bytes_mut(&mut self, slice: BufSlice) -> &mut [u8] {
        match self.map.get_mut(&slice.buf.0) {
            Some(entry) => &mut entry.0[slice.offset as usize..][..slice.len as usize],
            None => &mut [],
        }
    }

    fn copy(&mut self, source: BufSlice, target: BufSlice) {
        let bytes = self.bytes(source).to_vec();
        self.bytes_mut(target).copy_from_slice(&bytes);
    }

    fn crc32c(&self, seed: u32, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(seed, bytes)
    }

    fn available(&self) -> u64 {
        BUDGET_BYTES - self.used
    }
}

impl Arena {
    /// Frees what nobody owns.
    fn sweep(&mut self) {
        for id in self.orphans.drain(..) {
            if self.map.get(&id).is_some_and(|entry| entry.1 == 0)
                && let Some(entry) = self.map.remove(&id)
            {
                self.used -= entry.0.len() as u64;
            }
        }
    }
}

/// The disk: bytes, and which blocks hold data.
struct Disk {
    bytes: Vec<u8>,
    mapped: Vec<bool>,
}

fn at(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl Disk {
    fn zero(&mut self, offset: usize, len: usize, unmap: bool) {
        self.bytes[offset..offset + len].fill(0);
        let whole = offset.div_ceil(BLOCK)..(offset + len) / BLOCK;
        if unmap && whole.start < whole.end {
            self.mapped[whole].fill(false);
        }
    }

    fn run(&mut self, request: Request, arena: &mut Arena) -> Result<Outcome, ErrorKind> {
        let (offset, len) = (at(request.range.offset), at(request.range.len));
        if offset.saturating_add(len) > self.bytes.len() {
            if let Some(slice) = request.data {
                arena.release(slice.buf);
            }
            return Err(ErrorKind::InvalidRange);
        }
        match request.op {
            Op::Read => {
                let len = u32::try_from(len).unwrap_or(0);
                let slice = arena.alloc(len).ok_or(ErrorKind::Io)?;
                arena
                    .bytes_mut(slice)
                    .copy_from_slice(&self.bytes[offset..][..slice.len as usize]);
                return Ok(Outcome::Data(slice));
            }
            Op::Write => {
                if let Some(slice) = request.data {
                    self.bytes[offset..offset + len].copy_from_slice(arena.bytes(slice));
                    self.mapped[offset / BLOCK..(offset + len).div_ceil(BLOCK)].fill(true);
                    arena.release(slice.buf);
                }
            }
            Op::Discard => self.zero(offset, len, true),
            Op::WriteZeroes => self.zero(offset, len, !request.flags.no_hole),
            Op::Flush | Op::Prefetch => {}
            Op::BlockStatus => return self.status(offset, len, arena),
        }
        Ok(Outcome::Done)
    }

    fn status(&self, offset: usize, len: usize, arena: &mut Arena) -> Result<Outcome, ErrorKind> {
        let mut records: Vec<u8> = Vec::new();
        let mut next = offset;
        while next < offset + len && records.len() < 4096 {
            let state = self.mapped[next / BLOCK];
            let mut block = next / BLOCK;
            while block < self.mapped.len() && self.mapped[block] == state {
                block += 1;
            }
            let end = (block * BLOCK).min(offset + len);
            let flags = if state {
                0
            } else {
                status_flags::HOLE | status_flags::ZERO
            };
            records.extend_from_slice(&((end - next) as u64).to_le_bytes());
            records.extend_from_slice(&flags.to_le_bytes());
            records.extend_from_slice(&[0; 4]);
            next = end;
        }
        let len = u32::try_from(records.len()).unwrap_or(0);
        let slice = arena.alloc(len).ok_or(ErrorKind::Io)?;
        arena.bytes_mut(slice).copy_from_slice(&records);
        Ok(Outcome::Extents(slice))
    }
}

/// A connection: its socket, what is being received, what waits to be sent.
struct Wire {
    socket: TcpStream,
    want: Want,
    got: Vec<u8>,
    sending: VecDeque<u8>,
    closing: bool,
    dead: bool,
}

struct Server {
    target: IscsiTarget,
    arena: Arena,
    disk: Disk,
    wires: BTreeMap<u64, Wire>,
    now: Monotonic,
}

impl Server {
    fn event(&mut self, event: FrontendEvent<'_>) {
        let mut out = Actions::new();
        self.target.step(self.now, event, &mut self.arena, &mut out);
        self.act(out);
    }

    /// Carries out actions; completions bring further ones.
    fn act(&mut self, mut out: Actions<FrontendAction>) {
        let mut done = VecDeque::new();
        loop {
            for action in out.list() {
                match *action {
                    FrontendAction::Submit(request) => {
                        let result = self.disk.run(request, &mut self.arena);
                        done.push_back(Completion {
                            tag: request.tag,
                            result,
                        });
                    }
                    FrontendAction::Send {
                        conn,
                        head,
                        payload,
                    } => {
                        if let Some(wire) = self.wires.get_mut(&conn.0) {
                            wire.sending.extend(out.get(head));
                            if let Some(slice) = payload {
                                wire.sending.extend(self.arena.bytes(slice));
                            }
                        }
                    }
                    FrontendAction::Close { conn } => {
                        if let Some(wire) = self.wires.get_mut(&conn.0) {
                            wire.closing = true;
                        }
                    }
                }
            }
            out.clear();
            self.arena.sweep();
            // This disk forgets everything at its end: keeping reservations is keeping nothing.
            if let Some(number) = self.target.unkept().map(|(number, _)| number) {
                self.target
                    .kept(self.now, number, true, &mut self.arena, &mut out);
                continue;
            }
            let Some(completion) = done.pop_front() else {
                return;
            };
            let event = FrontendEvent::Complete(completion);
            self.target.step(self.now, event, &mut self.arena, &mut out);
        }
    }

    /// Hands over what has arrived and asks what is wanted next, while there is something.
    fn turn(&mut self, id: u64) -> bool {
        let mut moved = false;
        loop {
            let want = self.target.want(ConnId(id), &mut self.arena);
            let Some(wire) = self.wires.get_mut(&id) else {
                return moved;
            };
            wire.want = want;
            let needed = match want {
                Want::Pause => break,
                Want::Header(len) => len,
                Want::Payload(slice) => slice.len as usize,
                Want::Discard(len) => at(len),
            };
            if wire.closing || !receive(wire, needed) {
                break;
            }
            moved = true;
            let bytes = std::mem::take(&mut wire.got);
            if let Want::Payload(slice) = want {
                self.arena.bytes_mut(slice).copy_from_slice(&bytes);
            }
            let event = match want {
                Want::Header(_) => StreamEvent::Header(&bytes),
                Want::Payload(_) | Want::Discard(_) | Want::Pause => StreamEvent::Payload,
            };
            self.event(FrontendEvent::Stream(ConnId(id), event));
        }
        let Some(wire) = self.wires.get_mut(&id) else {
            return moved;
        };
        moved |= send(wire);
        if wire.dead || (wire.closing && wire.sending.is_empty()) {
            self.wires.remove(&id);
            self.event(FrontendEvent::Stream(ConnId(id), StreamEvent::Closed));
            moved = true;
        }
        moved
    }
}

/// Reads until `needed` bytes are there. False when they are not yet.
fn receive(wire: &mut Wire, needed: usize) -> bool {
    let mut have = wire.got.len();
    wire.got.resize(needed, 0);
    while have < needed {
        match wire.socket.read(&mut wire.got[have..]) {
            Ok(0) => {
                wire.dead = true;
                break;
            }
            Ok(count) => have += count,
            Err(error) if error.kind() == IoKind::WouldBlock => break,
            Err(_) => {
                wire.dead = true;
                break;
            }
        }
    }
    wire.got.truncate(have);
    have == needed
}

fn send(wire: &mut Wire) -> bool {
    let mut moved = false;
    while !wire.sending.is_empty() {
        match wire.socket.write(wire.sending.as_slices().0) {
            Ok(count) => {
                wire.sending.drain(..count);
                moved = true;
            }
            Err(error) if error.kind() == IoKind::WouldBlock => break,
            Err(_) => {
                wire.dead = true;
                break;
            }
        }
    }
    moved
}

fn user(text: &str) -> Option<ChapUser> {
    let (name, secret) = text.split_once(':')?;
    Some(ChapUser {
        name: name.into(),
        secret: secret.into(),
    })
}

fn config(address: &str, capacity_bytes: u64, options: &[String]) -> Option<IscsiConfig> {
    let mut config = IscsiConfig {
        target_name: "iqn.2026-11.io.trilith:memory".into(),
        alias: "memory".into(),
        portals: vec![address.into()],
        portal_group: 1,
        lun: 0,
        logical_block_bytes: 512,
        read_only: false,
        initiators: Vec::new(),
        chap: None,
        keeps_reservations: true,
        seed: [0x5a; 32],
        volume: VolumeInfo {
            volume: Uuid::parse("6f1d3f5e-8a3b-4c55-9d2e-0123456789ab")?,
            capabilities: Capabilities {
                capacity_bytes,
                block_bytes: 4096,
                transfer_bytes_max: 1 << 20,
                optimal_bytes: 1 << 20,
            },
        },
    };
    let mut chap = ChapConfig {
        initiators: Vec::new(),
        target: None,
    };
    for option in options {
        match option.split_once('=')? {
            ("--block", bytes) => config.logical_block_bytes = bytes.parse().ok()?,
            ("--chap", text) => chap.initiators.push(user(text)?),
            ("--mutual", text) => chap.target = Some(user(text)?),
            ("--read-only", "yes") => config.read_only = true,
            ("--allow", name) => config.initiators.push(name.into()),
            _ => return None,
        }
    }
    config.chap = (!chap.initiators.is_empty()).then_some(chap);
    Some(config)
}

fn serve(listener: &TcpListener, mut server: Server) -> std::io::Result<()> {
    let mut next = 0;
    let mut idle = 0u32;
    loop {
        let mut moved = false;
        match listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(true)?;
                socket.set_nodelay(true)?;
                next += 1;
                let wire = Wire {
                    socket,
                    want: Want::Pause,
                    got: Vec::new(),
                    sending: VecDeque::new(),
                    closing: false,
                    dead: false,
                };
                server.wires.insert(next, wire);
                server.event(FrontendEvent::Stream(ConnId(next), StreamEvent::Opened));
                moved = true;
            }
            Err(error) if error.kind() == IoKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        for id in server.wires.keys().copied().collect::<Vec<_>>() {
            moved |= server.turn(id);
        }
        let mut out = Actions::new();
        server
            .target
            .settle(server.now, &mut server.arena, &mut out);
        server.act(out);
        idle = if moved { 0 } else { idle.saturating_add(1) };
        if idle > 50 {
            // Nothing to do: wait a little. The clock of this example is the sum of its waits.
            std::thread::park_timeout(Duration::from_micros(200));
            server.now = server.now.after(Duration::from_micros(200));
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, mebibytes, options @ ..] = arguments.as_slice() else {
        return ExitCode::from(2);
    };
    let capacity_bytes = mebibytes.parse::<u64>().unwrap_or(0) << 20;
    let Some(config) = config(address, capacity_bytes, options) else {
        return ExitCode::from(2);
    };
    let (Ok(target), Ok(listener)) = (IscsiTarget::new(config, &[]), TcpListener::bind(address))
    else {
        return ExitCode::FAILURE;
    };
    if listener.set_nonblocking(true).is_err() {
        return ExitCode::FAILURE;
    }
    let server = Server {
        target,
        arena: Arena::default(),
        disk: Disk {
            bytes: vec![0; at(capacity_bytes)],
            mapped: vec![false; at(capacity_bytes) / BLOCK],
        },
        wires: BTreeMap::new(),
        now: Monotonic(1),
    };
    match serve(&listener, server) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
