//! A ublk device without an engine: memory that forgets when it ends, or nothing at all (reads give
//! zeroes, writes go nowhere) to measure the path itself. `memory --size BYTES [--null]
//! [--queues N] [--number N]`; it prints `live N` once the device is there and ends, the device
//! with it, on SIGTERM. Killed, it leaves the device to its next start.
#![allow(clippy::print_stdout, reason = "an example talks to its user")]

use std::collections::VecDeque;
use std::process::ExitCode;
use trilith_block::{
    Actions, Buffers, Capabilities, Completion, ConnId, ErrorKind, Machine, Monotonic, Op, Outcome,
    Request, StreamEvent, Uuid, Want,
};
use trilith_frontend_ublk::{
    Device, DeviceConfig, Mark, News, Next, Number, Params, UblkAction, UblkConfig, UblkEvent,
    UblkServer, carry_out,
};
use trilith_runtime::{
    DiskDone, Handler, Io, ListenerId, Loop, LoopConfig, Message, Signal, UblkFetched,
};

/// The volume that the example's device carries the mark of.
const VOLUME: Uuid = Uuid(*b"trilith\0example!");

struct Host {
    server: UblkServer,
    device: Device,
    out: Actions<UblkAction>,
    spare: Actions<UblkAction>,
    /// Reads that wait for a buffer.
    pending: VecDeque<Request>,
    /// `None`: nothing is kept.
    memory: Option<Vec<u8>>,
    ok: bool,
}

impl Host {
    fn step(&mut self, io: &mut Io, event: UblkEvent) {
        let now = io.now();
        self.server.step(now, event, io.arena(), &mut self.out);
    }

    fn pump(&mut self, io: &mut Io) {
        while !self.out.is_empty() {
            std::mem::swap(&mut self.out, &mut self.spare);
            let list = std::mem::take(&mut self.spare);
            for action in list.list() {
                match carry_out(io, *action) {
                    Next::Done | Next::Detached => {}
                    Next::Tell(event) => self.step(io, event),
                    Next::Submit(request) => self.serve(io, request),
                }
            }
            self.spare = list;
            self.spare.clear();
        }
    }

    fn serve(&mut self, io: &mut Io, request: Request) {
        let range = usize::try_from(request.range.offset).unwrap_or(usize::MAX);
        let len = usize::try_from(request.range.len).unwrap_or(usize::MAX);
        let result = match (request.op, &mut self.memory) {
            (Op::Read, memory) => {
                let Some(slice) = io.arena().alloc(u32::try_from(len).unwrap_or(0)) else {
                    self.pending.push_back(request);
                    return;
                };
                if let Some(memory) = memory {
                    let source = &memory[range..range + len];
                    io.arena().bytes_mut(slice).copy_from_slice(source);
                }
                Ok(Outcome::Data(slice))
            }
            (Op::Write, memory) => match request.data {
                Some(data) => {
                    if let Some(memory) = memory {
                        let target = &mut memory[range..range + len];
                        target.copy_from_slice(io.arena().bytes(data));
                    }
                    io.arena().release(data.buf);
                    Ok(Outcome::Done)
                }
                None => Err(ErrorKind::Io),
            },
            (Op::Discard | Op::WriteZeroes, memory) => {
                if let Some(memory) = memory {
                    memory[range..range + len].fill(0);
                }
                Ok(Outcome::Done)
            }
            _ => Ok(Outcome::Done),
        };
        let tag = request.tag;
        self.step(io, UblkEvent::Complete(Completion { tag, result }));
    }
}

impl Handler for Host {
    fn accepted(&mut self, _io: &mut Io, _listener: ListenerId, _conn: ConnId) {}

    fn stream(&mut self, _io: &mut Io, _conn: ConnId, _event: StreamEvent<'_>) {}

    fn want(&mut self, _io: &mut Io, _conn: ConnId) -> Want {
        Want::Pause
    }

    fn disk(&mut self, _io: &mut Io, _done: DiskDone) {}

    fn ublk(&mut self, io: &mut Io, fetched: UblkFetched) {
        self.step(io, UblkEvent::Fetched(fetched));
        self.pump(io);
    }

    fn settle(&mut self, io: &mut Io, now: Monotonic) {
        for _ in 0..self.pending.len() {
            if let Some(request) = self.pending.pop_front() {
                self.serve(io, request);
            }
        }
        self.server.settle(now, io.arena(), &mut self.out);
        self.pump(io);
    }

    fn deadline(&self) -> Option<Monotonic> {
        self.server.deadline()
    }

    fn signal(&mut self, _io: &mut Io, _signal: Signal) {
        self.device.stop();
    }

    fn message(&mut self, io: &mut Io, message: Message) {
        match message.downcast::<News>().map(|news| *news) {
            Ok(News::Opened(opened)) => {
                let (queues, depth) = (opened.device.queues(), opened.device.depth());
                match io.ublk_attach(opened.device) {
                    Ok(()) => self.step(io, UblkEvent::Attached { queues, depth }),
                    Err(error) => println!("failed {error}"),
                }
                self.pump(io);
            }
            Ok(News::Live { number, recovered }) => {
                let how = if recovered { " recovered" } else { "" };
                println!("live {number}{how}");
            }
            Ok(News::Failed { error, .. }) => {
                println!("failed {error}");
                self.ok = false;
                io.stop();
            }
            Ok(News::Gone) => {
                println!("gone");
                io.stop();
            }
            Ok(News::Kept { number, why }) => {
                println!("kept {number}: {why}");
                io.stop();
            }
            Err(_) => {}
        }
    }
}

/// The value after a flag.
fn flag<T: std::str::FromStr>(name: &str) -> Option<T> {
    let mut args = std::env::args().skip_while(|arg| arg != name);
    args.next();
    args.next().and_then(|value| value.parse().ok())
}

fn main() -> ExitCode {
    let capacity_bytes: u64 = flag("--size").unwrap_or(256 << 20);
    let null = std::env::args().any(|arg| arg == "--null");
    let volume = Capabilities {
        capacity_bytes,
        block_bytes: 4096,
        transfer_bytes_max: 1 << 20,
        optimal_bytes: 1 << 20,
    };
    let config = DeviceConfig {
        number: flag("--number").map_or(Number::Auto, Number::Fixed),
        queues: flag("--queues").unwrap_or(1),
        mark: Mark::of(VOLUME),
        params: Params::new(&volume, false),
    };
    let run = || -> Result<bool, Box<dyn std::error::Error>> {
        let mut turns = Loop::new(LoopConfig::default())?;
        let signals = [Signal::Terminate, Signal::Interrupt];
        turns.io().catch_signals(&signals)?;
        let device = Device::new(config, turns.io().waker())?;
        device.open();
        let memory = match null {
            true => None,
            false => Some(vec![0; usize::try_from(capacity_bytes)?]),
        };
        let mut host = Host {
            server: UblkServer::new(UblkConfig { capacity_bytes }),
            device,
            out: Actions::new(),
            spare: Actions::new(),
            pending: VecDeque::new(),
            memory,
            ok: true,
        };
        turns.run(&mut host)?;
        Ok(host.ok)
    };
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("failed {error}");
            ExitCode::FAILURE
        }
    }
}
