//! Clients that come through the real NBD frontend: each has one connection inside the engine's
//! process, negotiated by EXPORT_NAME, and speaks simple replies. Bytes arrive at once; what the
//! network does to streams is tested on the replicas' side.

use crate::buffers::SimBuffers;
use crate::iscsi::NBD;
use crate::process::EngineProgram;
use crate::workload::Wish;
use std::collections::BTreeMap;
use trilith_block::request::Target;
use trilith_block::{
    Actions, Buffers, Completion, ConnId, FrontendAction, FrontendEvent, Machine, Monotonic, Op,
    Stream, StreamEvent, VolumeInfo, Want,
};
use trilith_frontend_nbd::{NbdConfig, NbdServer};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// Greeting, then the answer to EXPORT_NAME without zeroes.
const HANDSHAKE_BYTES: usize = 18 + 10;

/// What a client was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Success without bytes.
    Done,
    /// Bytes read.
    Data(Vec<u8>),
    /// Records of a block status.
    Extents(Vec<u8>),
    /// Nothing was written: what is there differs from what was expected, first at this byte.
    Differs(u64),
}

/// Number of a request, and its answer or the protocol's error code.
pub type Answered = (u64, Result<Answer, u32>);

#[derive(Debug, Default)]
struct Client {
    /// Sent and not taken by the server.
    up: Vec<u8>,
    /// Received and not understood yet.
    down: Vec<u8>,
    greeted: bool,
    /// Request in flight: number, bytes to be read.
    open: Option<(u64, usize)>,
    closed: bool,
}

/// The frontend of one engine process, with its clients.
#[derive(Debug)]
pub struct Nbd {
    server: NbdServer,
    out: Actions<FrontendAction>,
    clients: BTreeMap<ConnId, Client>,
}

impl Nbd {
    /// A server for a volume.
    ///
    /// # Panics
    /// When the volume is not one that can be served.
    pub fn new(volume: VolumeInfo) -> Nbd {
        let config = NbdConfig {
            export_name: "volume".to_string(),
            description: String::new(),
            read_only: false,
            volume,
        };
        let server = NbdServer::new(config).expect("a valid export");
        Nbd {
            server,
            out: Actions::new(),
            clients: BTreeMap::new(),
        }
    }

    /// When the server wants to run.
    pub fn deadline(&self) -> Option<Monotonic> {
        self.server.deadline()
    }

    /// The end of a batch.
    pub fn settle(&mut self, now: Monotonic, arena: &mut SimBuffers) {
        self.server.settle(now, arena, &mut self.out);
    }

    /// A request of the engine has ended.
    pub fn completed(&mut self, now: Monotonic, completion: Completion, arena: &mut SimBuffers) {
        self.server.step(
            now,
            FrontendEvent::Complete(completion),
            arena,
            &mut self.out,
        );
    }

    /// A client asks. `client`: its number, and how often it was started anew. `data`: the bytes
    /// of a write.
    pub fn ask(
        &mut self,
        now: Monotonic,
        client: (usize, u64),
        number: u64,
        wish: &Wish,
        data: &[u8],
        arena: &mut SimBuffers,
    ) {
        let conn = ConnId(client.1 << 16 | client.0 as u64);
        let stale = |c: &&ConnId| c.0 & 0xffff == client.0 as u64 && **c != conn;
        if let Some(old) = self.clients.keys().find(stale).copied() {
            // The connection of its earlier life.
            self.clients.remove(&old);
            let event = FrontendEvent::Stream(old, StreamEvent::Closed);
            self.server.step(now, event, arena, &mut self.out);
        }
        if let std::collections::btree_map::Entry::Vacant(place) = self.clients.entry(conn) {
            let fresh = place.insert(Client::default());
            fresh.up.extend_from_slice(&3u32.to_be_bytes());
            fresh.up.extend_from_slice(b"IHAVEOPT");
            fresh.up.extend_from_slice(&1u32.to_be_bytes());
            fresh.up.extend_from_slice(&0u32.to_be_bytes());
            let event = FrontendEvent::Stream(conn, StreamEvent::Opened);
            self.server.step(now, event, arena, &mut self.out);
        }
        let Some(known) = self.clients.get_mut(&conn) else {
            return;
        };
        assert!(known.open.is_none(), "client {client:?} asks twice");
        let kind: u16 = match wish.op {
            Op::Read => 0,
            Op::Write => 1,
            Op::Flush => 3,
            Op::Discard => 4,
            Op::Prefetch => 5,
            Op::WriteZeroes => 6,
            Op::BlockStatus => 7,
        };
        let flags = u16::from(wish.fua) | u16::from(wish.no_hole) << 1;
        known.up.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        known.up.extend_from_slice(&flags.to_be_bytes());
        known.up.extend_from_slice(&kind.to_be_bytes());
        known.up.extend_from_slice(&number.to_be_bytes());
        known.up.extend_from_slice(&wish.offset.to_be_bytes());
        known.up.extend_from_slice(&(wish.len as u32).to_be_bytes());
        known.up.extend_from_slice(data);
        let reads = if wish.op == Op::Read {
            wish.len as usize
        } else {
            0
        };
        known.open = Some((number, reads));
        self.pump(now, conn, arena);
    }

    /// Gives all servers' connections what they want.
    pub fn pump_all(&mut self, now: Monotonic, arena: &mut SimBuffers) -> bool {
        let conns: Vec<ConnId> = self.clients.keys().copied().collect();
        let mut worked = false;
        for conn in conns {
            worked |= self.pump(now, conn, arena);
        }
        worked
    }

    fn pump(&mut self, now: Monotonic, conn: ConnId, arena: &mut SimBuffers) -> bool {
        let mut worked = false;
        loop {
            let Some(client) = self.clients.get_mut(&conn).filter(|c| !c.closed) else {
                return worked;
            };
            if client.up.is_empty() {
                return worked;
            }
            let want = self.server.want(conn, arena);
            let Some(part) = Part::take(want, &mut client.up, arena) else {
                return worked;
            };
            let event = FrontendEvent::Stream(conn, part.event());
            self.server.step(now, event, arena, &mut self.out);
            worked = true;
        }
    }
}

/// What a frontend gets next of the bytes that a client has sent.
pub(crate) enum Part {
    Header(Vec<u8>),
    Payload,
}

impl Part {
    /// Takes what is wanted from `sent`, as the loop does; nothing while it is not all there.
    pub(crate) fn take(want: Want, sent: &mut Vec<u8>, arena: &mut SimBuffers) -> Option<Part> {
        let len = match want {
            Want::Pause => return None,
            Want::Header(len) => len,
            Want::Payload(slice) => slice.len as usize,
            Want::Discard(len) => usize::try_from(len).unwrap_or(usize::MAX),
        };
        if sent.len() < len {
            return None;
        }
        let bytes: Vec<u8> = sent.drain(..len).collect();
        match want {
            Want::Header(_) => return Some(Part::Header(bytes)),
            Want::Payload(slice) => arena.bytes_mut(slice).copy_from_slice(&bytes),
            Want::Discard(_) | Want::Pause => {}
        }
        Some(Part::Payload)
    }

    /// As the frontend is told.
    pub(crate) fn event(&self) -> StreamEvent<'_> {
        match self {
            Part::Header(bytes) => StreamEvent::Header(bytes),
            Part::Payload => StreamEvent::Payload,
        }
    }
}

/// Carries out what the frontend of an engine wants. Returns the answers that clients got, and
/// whether anything happened.
pub fn carry_out(
    engine: &mut EngineProgram,
    arena: &mut SimBuffers,
    now: Monotonic,
) -> (Vec<Answered>, bool) {
    let Some(nbd) = engine.nbd.as_mut() else {
        return (Vec::new(), false);
    };
    let mut answers = Vec::new();
    let mut worked = false;
    let list: Vec<FrontendAction> = nbd.out.list().to_vec();
    for action in &list {
        worked = true;
        match *action {
            FrontendAction::Submit(request) => {
                if let Some(iscsi) = engine.iscsi.as_mut() {
                    iscsi.submit(NBD, request);
                } else if !engine.refused.is_empty() {
                    engine.refused.push_back(request);
                } else if let Err(request) = engine.machine.submit(now, request, arena) {
                    engine.refused.push_back(request);
                }
            }
            FrontendAction::Send {
                conn,
                head,
                payload,
            } => {
                if let Some(client) = nbd.clients.get_mut(&conn) {
                    client.down.extend_from_slice(nbd.out.get(head));
                    if let Some(slice) = payload {
                        client.down.extend_from_slice(arena.bytes(slice));
                    }
                    understand(client, &mut answers);
                }
            }
            FrontendAction::Close { conn } => {
                if let Some(client) = nbd.clients.get_mut(&conn) {
                    client.closed = true;
                    if let Some((number, _)) = client.open.take() {
                        answers.push((number, Err(u32::MAX)));
                    }
                }
            }
        }
    }
    nbd.out.clear();
    for action in list {
        if let FrontendAction::Close { conn } = action {
            let event = FrontendEvent::Stream(conn, StreamEvent::Closed);
            nbd.server.step(now, event, arena, &mut nbd.out);
            nbd.clients.remove(&conn);
        }
    }
    (answers, worked)
}

fn understand(client: &mut Client, answers: &mut Vec<Answered>) {
    if !client.greeted {
        if client.down.len() < HANDSHAKE_BYTES {
            return;
        }
        client.down.drain(..HANDSHAKE_BYTES);
        client.greeted = true;
    }
    if client.down.len() < 16 {
        return;
    }
    let word = |at: usize| {
        client.down[at..at + 4]
            .try_into()
            .map_or(0, u32::from_be_bytes)
    };
    let (magic, error) = (word(0), word(4));
    let cookie = u64::from(word(8)) << 32 | u64::from(word(12));
    let (number, reads) = client.open.unwrap_or((0, 0));
    assert!(
        magic == REPLY_MAGIC && cookie == number,
        "NBD reply {magic:#x} to request {cookie}, expected one to {number}"
    );
    let reads = if error == 0 { reads } else { 0 };
    if client.down.len() < 16 + reads {
        return;
    }
    let bytes: Vec<u8> = client.down.drain(..16 + reads).skip(16).collect();
    client.open = None;
    let answer = match (error, bytes.is_empty()) {
        (0, true) => Ok(Answer::Done),
        (0, false) => Ok(Answer::Data(bytes)),
        (code, _) => Err(code),
    };
    answers.push((number, answer));
}
