//! What the tests of the loop share: the backends of this machine, a server of frames, a driver
//! with a time limit.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part of this module"
)]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::time::Duration;
use trilith_block::{BufSlice, Buffers, ConnId, Monotonic, StreamEvent, Want};
use trilith_runtime::{
    ArenaConfig, Backend, DiskDone, Handler, Io, ListenerId, Loop, LoopConfig, Message, Signal, now,
};

/// Every test must be over by then.
const TEST_TIME_MAX: Duration = Duration::from_secs(60);

pub fn new_loop(backend: Backend, arena_mebibytes: u64) -> Loop {
    spinning_loop(backend, arena_mebibytes, Duration::ZERO)
}

pub fn spinning_loop(backend: Backend, arena_mebibytes: u64, spin: Duration) -> Loop {
    let arena = ArenaConfig {
        budget_bytes: arena_mebibytes << 20,
        huge_pages: true,
    };
    match Loop::new(LoopConfig {
        backend,
        arena,
        spin,
    }) {
        // Other tests' rings have used up what this user may lock: the plain one must do.
        Err(error) if error.kind() == std::io::ErrorKind::OutOfMemory => Loop::new(LoopConfig {
            backend: Backend::Plain,
            arena,
            ..LoopConfig::default()
        })
        .unwrap(),
        other => other.unwrap(),
    }
}

/// The backends that work here. io_uring may be missing only where the kernel forbids it.
pub fn backends() -> Vec<Backend> {
    let arena = ArenaConfig {
        budget_bytes: 1 << 20,
        huge_pages: false,
    };
    match Loop::new(LoopConfig {
        backend: Backend::Uring,
        arena,
        ..LoopConfig::default()
    }) {
        Ok(_) => vec![Backend::Plain, Backend::Uring],
        Err(error) => {
            let number = error.source.raw_os_error();
            let forbidden = [libc::EPERM, libc::ENOSYS, libc::EACCES, libc::ENOMEM]
                .map(Some)
                .contains(&number);
            assert!(
                forbidden,
                "io_uring fails for another reason than being forbidden: {error}"
            );
            vec![Backend::Plain]
        }
    }
}

/// Turns until `done`; fails the test when that takes too long.
pub fn drive<H: Handler>(
    driver: &mut Loop,
    handler: &mut H,
    mut done: impl FnMut(&mut H, &mut Io) -> bool,
) {
    let end = now().after(TEST_TIME_MAX);
    while !done(handler, driver.io()) {
        driver.turn(handler, Duration::from_millis(50)).unwrap();
        assert!(now() < end, "the test takes too long: {:?}", driver.io());
    }
}

/// Turns for as long as something still happens after the connections are gone.
pub fn settle_down<H: Handler>(driver: &mut Loop, handler: &mut H) {
    drive(driver, handler, |_, io| io.connections() == 0);
    assert!(
        driver.is_at_rest(),
        "buffers are not all returned: {:?}",
        driver.io()
    );
}

/// A small generator of our own: tests must repeat.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 8).unwrap() % limit
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.next().to_le_bytes()[3];
        }
    }
}

/// Bytes of a frame's header: an odd number.
pub const HEADER: usize = 11;
/// Send the payload back.
pub const ECHO: u8 = 1;
/// Throw the payload away, send the header back.
pub const DISCARD: u8 = 2;
/// Send the header back, then close with draining.
pub const BYE: u8 = 3;

pub fn header(kind: u8, id: u32, len: u32) -> [u8; HEADER] {
    let mut bytes = [0x5a; HEADER];
    bytes[0] = kind;
    bytes[1..5].copy_from_slice(&id.to_le_bytes());
    bytes[5..9].copy_from_slice(&len.to_le_bytes());
    bytes
}

pub fn parse(bytes: &[u8]) -> (u8, u32, u32) {
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    (bytes[0], number(1), number(5))
}

#[derive(Clone, Copy, Debug)]
pub enum Session {
    Header,
    Payload {
        header: [u8; HEADER],
        slice: Option<BufSlice>,
    },
}

/// Serves frames; notes what it is told.
#[derive(Debug, Default)]
pub struct Server {
    pub sessions: HashMap<ConnId, (Session, u32)>,
    pub opened: Vec<ConnId>,
    pub closed: Vec<ConnId>,
    pub frames: u64,
    pub pauses: u64,
    /// Wants nothing before one frame in so many (0: never pauses).
    pub pause_every: u64,
    /// Wants nothing at all.
    pub hold: bool,
    pub messages: Vec<Message>,
    pub signals: Vec<Signal>,
    pub done: Vec<DiskDone>,
    pub settles: u64,
    pub wake_at: Option<Monotonic>,
    pub paused_once: bool,
}

impl Server {
    fn answer(&mut self, io: &mut Io, conn: ConnId) {
        let Some((session, _)) = self.sessions.get_mut(&conn) else {
            return;
        };
        let Session::Payload { header, slice } = *session else {
            return;
        };
        *session = Session::Header;
        self.frames += 1;
        io.send(conn, &header, slice);
        if let Some(slice) = slice {
            io.arena().release(slice.buf);
        }
        if header[0] == BYE {
            io.close(conn, true);
        }
    }
}

impl Handler for Server {
    fn accepted(&mut self, _: &mut Io, _: ListenerId, _: ConnId) {}

    fn stream(&mut self, io: &mut Io, conn: ConnId, event: StreamEvent<'_>) {
        match event {
            StreamEvent::Opened => {
                self.opened.push(conn);
                self.sessions.insert(conn, (Session::Header, 0));
            }
            StreamEvent::Header(bytes) => {
                let (_, id, _) = parse(bytes);
                let (session, expected) = self.sessions.get_mut(&conn).unwrap();
                assert_eq!(id, *expected, "frames come in order");
                *expected += 1;
                let header = bytes.try_into().unwrap();
                *session = Session::Payload {
                    header,
                    slice: None,
                };
            }
            StreamEvent::Payload => self.answer(io, conn),
            StreamEvent::Closed => {
                let known = self.sessions.remove(&conn);
                if let Some((
                    Session::Payload {
                        slice: Some(slice), ..
                    },
                    _,
                )) = known
                {
                    io.arena().release(slice.buf);
                }
                assert!(!self.closed.contains(&conn), "Closed comes once");
                self.closed.push(conn);
            }
        }
    }

    fn want(&mut self, io: &mut Io, conn: ConnId) -> Want {
        if self.hold {
            return Want::Pause;
        }
        if self.pause_every > 0 && self.frames % self.pause_every == 1 && !self.paused_once {
            self.paused_once = true;
            self.pauses += 1;
            return Want::Pause;
        }
        self.paused_once = false;
        let (session, _) = self.sessions.get_mut(&conn).unwrap();
        match session {
            Session::Header => Want::Header(HEADER),
            Session::Payload { header, slice } => {
                let (kind, _, len) = parse(header);
                if kind == ECHO && len > 0 {
                    match slice.or_else(|| io.arena().alloc(len)) {
                        Some(buffer) => {
                            *slice = Some(buffer);
                            Want::Payload(buffer)
                        }
                        None => Want::Pause,
                    }
                } else {
                    Want::Discard(u64::from(len))
                }
            }
        }
    }

    fn disk(&mut self, _: &mut Io, done: DiskDone) {
        self.done.push(done);
    }

    fn settle(&mut self, _: &mut Io, now: Monotonic) {
        self.settles += 1;
        if self.wake_at.is_some_and(|at| at <= now) {
            self.wake_at = None;
        }
    }

    fn deadline(&self) -> Option<Monotonic> {
        self.wake_at
    }

    fn signal(&mut self, _: &mut Io, signal: Signal) {
        self.signals.push(signal);
    }

    fn message(&mut self, _: &mut Io, message: Message) {
        self.messages.push(message);
    }
}

/// Writes in pieces of any size.
pub fn write_split(stream: &mut impl Write, bytes: &[u8], dice: &mut Dice) {
    let mut left = bytes;
    while !left.is_empty() {
        let limit = [3, 40, 5000, 200_000][dice.below(4)];
        let (now, later) = left.split_at(left.len().min(1 + dice.below(limit)));
        stream.write_all(now).unwrap();
        left = later;
    }
}

/// Reads one answer: its header and as many payload bytes as `echoed` says.
pub fn read_answer(stream: &mut impl Read, echoed: usize) -> ((u8, u32, u32), Vec<u8>) {
    let mut head = [0; HEADER];
    stream.read_exact(&mut head).unwrap();
    let mut payload = vec![0; echoed];
    stream.read_exact(&mut payload).unwrap();
    (parse(&head), payload)
}
