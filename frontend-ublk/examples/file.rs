//! A ublk device without an engine: a file, made when missing, or nothing at all (reads give zeroes,
//! writes go nowhere) to measure the path itself. `file --size BYTES [--file PATH] [--queues N]
//! [--number N] [--without BITS] [--copies N]` (features of the driver not to use, how often to copy payload); it prints `live N` once the device is there and ends, the device with it, on
//! SIGTERM. Killed, it leaves the device to its next start. The file is read and written in the
//! loop's own thread: good for tests, no pattern for a server.
#![allow(clippy::print_stdout, reason = "an example talks to its user")]

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use trilith_block::{
    Actions, Buffers, Capabilities, Completion, ConnId, ErrorKind, Machine, Monotonic, Op, Outcome,
    Request, StreamEvent, Uuid, Want,
};
use trilith_frontend_ublk::{
    Device, DeviceConfig, Features, Mark, News, Next, Number, Params, UblkAction, UblkConfig,
    UblkEvent, UblkServer, carry_out,
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
    file: Option<File>,
    /// How often payload is copied.
    copies: u32,
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
                if matches!(action, UblkAction::Pull(..) | UblkAction::Push(..)) {
                    // To measure what one costs.
                    for _ in 1..self.copies {
                        carry_out(io, *action);
                    }
                }
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
        let Some(done) = self.target(io, request) else {
            self.pending.push_back(request);
            return;
        };
        let result = done.map_err(|_| ErrorKind::Io);
        let tag = request.tag;
        self.step(io, UblkEvent::Complete(Completion { tag, result }));
    }

    /// Carries a request out; `None`: there is no memory now.
    fn target(&self, io: &mut Io, request: Request) -> Option<std::io::Result<Outcome>> {
        let at = request.range.offset;
        let len = request.range.len;
        let done = match (request.op, &self.file) {
            (Op::Read, file) => {
                let slice = io.arena().alloc(u32::try_from(len).unwrap_or(0))?;
                let bytes = io.arena().bytes_mut(slice);
                let read = file
                    .as_ref()
                    .map_or(Ok(()), |file| file.read_exact_at(bytes, at));
                return Some(read.map(|()| Outcome::Data(slice)));
            }
            (Op::Write, file) => {
                let data = request.data?;
                let bytes = io.arena().bytes(data);
                let written = file
                    .as_ref()
                    .map_or(Ok(()), |file| file.write_all_at(bytes, at));
                io.arena().release(data.buf);
                written
            }
            (Op::Discard | Op::WriteZeroes, Some(file)) => {
                let zeroes = [0; 4096];
                let mut done = 0;
                let mut result = Ok(());
                while done < len && result.is_ok() {
                    let step = (len - done).min(4096);
                    let part = usize::try_from(step).unwrap_or(0);
                    result = file.write_all_at(&zeroes[..part], at + done);
                    done += step;
                }
                result
            }
            _ => Ok(()),
        };
        Some(done.map(|()| Outcome::Done))
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
            Ok(News::Nothing) | Err(_) => {}
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
    let path: Option<String> = flag("--file");
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
        takes_over: true,
        without: Features(flag("--without").unwrap_or(0)),
    };
    let run = || -> Result<bool, Box<dyn std::error::Error>> {
        let mut turns = Loop::new(LoopConfig::default())?;
        let signals = [Signal::Terminate, Signal::Interrupt];
        turns.io().catch_signals(&signals)?;
        let device = Device::new(config, turns.io().waker())?;
        device.open();
        let open = |path| {
            let mut how = File::options();
            how.read(true).write(true).create(true).truncate(false);
            let file = how.open(path)?;
            file.set_len(capacity_bytes)?;
            std::io::Result::Ok(file)
        };
        let file = path.map(open).transpose()?;
        let mut host = Host {
            server: UblkServer::new(UblkConfig { capacity_bytes }),
            device,
            out: Actions::new(),
            spare: Actions::new(),
            pending: VecDeque::new(),
            file,
            copies: flag("--copies").unwrap_or(1),
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
