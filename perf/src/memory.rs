//! A volume in the memory of one process behind our NBD frontend, without engine and replicas: what
//! frontend and loop cost by themselves, beside `nbdkit memory`. Nothing of it outlives the process.

use crate::MemoryArgs;
use anyhow::{Context, Result};
use std::net::{Ipv4Addr, SocketAddr};
use trilith_block::limits::{BLOCK_BYTES, TRANSFER_BYTES_MAX};
use trilith_block::request::Capabilities;
use trilith_block::{
    Actions, Buffers, Completion, ConnId, ErrorKind, FrontendAction, FrontendEvent, Machine,
    Monotonic, Op, Outcome, Request, Stream, StreamEvent, Uuid, VolumeInfo, Want,
};
use trilith_frontend_nbd::{NbdConfig, NbdServer};
use trilith_runtime::{Address, DiskDone, Handler, Io, ListenerId, Loop, LoopConfig};

/// Bytes of a record of block status.
const EXTENT_BYTES: u32 = 16;

struct Memory {
    server: NbdServer,
    out: Actions<FrontendAction>,
    spare: Actions<FrontendAction>,
    bytes: Vec<u8>,
}

impl Memory {
    fn event(&mut self, io: &mut Io, event: FrontendEvent<'_>) {
        let now = io.now();
        self.server.step(now, event, io.arena(), &mut self.out);
        self.pump(io);
    }

    /// Carries out what the frontend asks for, until it asks for nothing more.
    fn pump(&mut self, io: &mut Io) {
        while !self.out.is_empty() {
            std::mem::swap(&mut self.out, &mut self.spare);
            let mut list = std::mem::take(&mut self.spare);
            for action in list.list().iter().copied() {
                match action {
                    FrontendAction::Submit(request) => {
                        let completion = Completion {
                            tag: request.tag,
                            result: self.serve(io, &request),
                        };
                        let (now, event) = (io.now(), FrontendEvent::Complete(completion));
                        self.server.step(now, event, io.arena(), &mut self.out);
                    }
                    FrontendAction::Send {
                        conn,
                        head,
                        payload,
                    } => io.send(conn, list.get(head), payload),
                    FrontendAction::Close { conn } => io.close(conn, true),
                }
            }
            list.clear();
            self.spare = list;
        }
    }

    fn serve(&mut self, io: &mut Io, request: &Request) -> Result<Outcome, ErrorKind> {
        let done = self.carry_out(io, request);
        if let Some(data) = request.data {
            io.arena().release(data.buf);
        }
        done
    }

    fn carry_out(&mut self, io: &mut Io, request: &Request) -> Result<Outcome, ErrorKind> {
        let end = request.range.end().ok_or(ErrorKind::InvalidRange)?;
        let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let range = place(request.range.offset)..place(end);
        let bytes = self.bytes.get_mut(range).ok_or(ErrorKind::InvalidRange)?;
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        match request.op {
            Op::Read => {
                let buf = io.arena().alloc(len).ok_or(ErrorKind::Io)?;
                io.arena().bytes_mut(buf).copy_from_slice(bytes);
                Ok(Outcome::Data(buf))
            }
            Op::Write => {
                let data = request.data.ok_or(ErrorKind::InvalidRange)?;
                bytes.copy_from_slice(io.arena().bytes(data));
                Ok(Outcome::Done)
            }
            Op::Discard | Op::WriteZeroes => {
                bytes.fill(0);
                Ok(Outcome::Done)
            }
            Op::Flush | Op::Prefetch => Ok(Outcome::Done),
            Op::BlockStatus => {
                let buf = io.arena().alloc(EXTENT_BYTES).ok_or(ErrorKind::Io)?;
                let record = io.arena().bytes_mut(buf);
                record.fill(0);
                record[..8].copy_from_slice(&request.range.len.to_le_bytes());
                Ok(Outcome::Extents(buf))
            }
        }
    }
}

impl Handler for Memory {
    fn accepted(&mut self, _: &mut Io, _: ListenerId, _: ConnId) {}

    fn stream(&mut self, io: &mut Io, conn: ConnId, event: StreamEvent<'_>) {
        self.event(io, FrontendEvent::Stream(conn, event));
    }

    fn want(&mut self, io: &mut Io, conn: ConnId) -> Want {
        self.server.want(conn, io.arena())
    }

    fn disk(&mut self, _: &mut Io, _: DiskDone) {}

    fn settle(&mut self, io: &mut Io, now: Monotonic) {
        self.server.settle(now, io.arena(), &mut self.out);
        self.pump(io);
    }

    fn deadline(&self) -> Option<Monotonic> {
        self.server.deadline()
    }
}

/// Serves until it is killed.
pub(crate) fn run(args: &MemoryArgs) -> Result<()> {
    let capacity_bytes = args.size_mib << 20;
    let server = NbdServer::new(NbdConfig {
        export_name: "vol".to_owned(),
        description: String::new(),
        read_only: false,
        volume: VolumeInfo {
            volume: Uuid::NONE,
            capabilities: Capabilities {
                capacity_bytes,
                block_bytes: BLOCK_BYTES,
                transfer_bytes_max: TRANSFER_BYTES_MAX,
                optimal_bytes: TRANSFER_BYTES_MAX,
            },
        },
    })
    .context("configure the frontend")?;
    let mut memory = Memory {
        server,
        out: Actions::new(),
        spare: Actions::new(),
        bytes: vec![0; usize::try_from(capacity_bytes)?],
    };
    let mut driver = Loop::new(LoopConfig::default())?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    driver.io().listen(&Address::Tcp(address))?;
    driver.run(&mut memory)?;
    Ok(())
}
