//! Connections of a loop with itself: the same bytes as through a socket, and the same ends.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Dice, Server, backends, drive, new_loop, settle_down};
use std::collections::BTreeMap;
use std::time::Duration;
use trilith_block::{BufSlice, Buffers, ConnId, Monotonic, StreamEvent, Want};
use trilith_runtime::{Address, DiskDone, Handler, Io, ListenerId, Loop, now};

fn listen(driver: &mut Loop) -> (ListenerId, Address, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let address = Address::Unix(dir.path().join("s"));
    let listener = driver.io().listen(&address).unwrap();
    (listener, address, dir)
}

/// One end of the conversation.
#[derive(Debug, Default)]
struct End {
    /// All that it has sent.
    sent: Vec<u8>,
    /// Bytes of what the other end has sent that it has read, or thrown away.
    read: usize,
    want: Option<Want>,
    /// Frames that it is still going to send.
    left: usize,
}

impl End {
    /// Bytes that its want still needs, of which `there` may have arrived.
    fn missing(&self, there: usize) -> usize {
        let wanted = match self.want {
            Some(Want::Header(len)) => len,
            Some(Want::Payload(slice)) => slice.len as usize,
            Some(Want::Discard(len)) => usize::try_from(len).unwrap(),
            Some(Want::Pause) | None => 0,
        };
        (self.read + wanted).saturating_sub(there)
    }
}

/// Two ends that send each other frames of all shapes, and want them in other pieces.
struct Talk {
    dice: Dice,
    ends: BTreeMap<ConnId, End>,
    frames: usize,
    open: usize,
    /// It is over: only the end of the connection is waited for.
    closing: bool,
}

impl Talk {
    fn new(seed: u64, frames: usize) -> Talk {
        Talk {
            dice: Dice(seed),
            ends: BTreeMap::new(),
            frames,
            open: 0,
            closing: false,
        }
    }

    fn other(&self, conn: ConnId) -> ConnId {
        *self.ends.keys().find(|other| **other != conn).unwrap()
    }

    fn is_over(&self) -> bool {
        self.open == 2
            && self.ends.iter().all(|(conn, end)| {
                end.left == 0 && end.read == self.ends[&self.other(*conn)].sent.len()
            })
    }

    fn send(&mut self, io: &mut Io, conn: ConnId) {
        let mut head = vec![0; self.dice.below(3) * self.dice.below(90)];
        self.dice.fill(&mut head);
        let limit = [1, 300, 9000, 70_000][self.dice.below(4)];
        let len = u32::try_from(self.dice.below(limit)).unwrap();
        let payload = io.arena().alloc(len + 7);
        let payload = payload.map(|slice| {
            self.dice.fill(io.arena().bytes_mut(slice));
            slice.slice(7, len)
        });
        io.send(conn, &head, payload);
        let end = self.ends.get_mut(&conn).unwrap();
        end.sent.extend(&head);
        if let Some(slice) = payload {
            end.sent.extend(io.arena().bytes(slice));
            io.arena().release(slice.buf);
        }
        end.left -= 1;
    }

    fn compare(&mut self, conn: ConnId, bytes: &[u8]) {
        let from = self.ends[&conn].read;
        let sent = &self.ends[&self.other(conn)].sent;
        assert_eq!(bytes, &sent[from..from + bytes.len()], "at {from}");
        self.ends.get_mut(&conn).unwrap().read += bytes.len();
    }
}

impl Handler for Talk {
    fn accepted(&mut self, _: &mut Io, _: ListenerId, _: ConnId) {}

    fn stream(&mut self, io: &mut Io, conn: ConnId, event: StreamEvent<'_>) {
        if event == StreamEvent::Opened {
            self.open += 1;
            let end = End {
                left: self.frames,
                ..End::default()
            };
            self.ends.insert(conn, end);
            return;
        }
        let want = self.ends.get_mut(&conn).unwrap().want.take();
        match (event, want) {
            (StreamEvent::Header(bytes), Some(Want::Header(len))) => {
                assert_eq!(bytes.len(), len);
                self.compare(conn, bytes);
            }
            (StreamEvent::Payload, Some(Want::Payload(slice))) => {
                let bytes = io.arena().bytes(slice).to_vec();
                self.compare(conn, &bytes);
                io.arena().release(slice.buf);
            }
            (StreamEvent::Payload, Some(Want::Discard(len))) => {
                self.ends.get_mut(&conn).unwrap().read += usize::try_from(len).unwrap();
            }
            (StreamEvent::Closed, want) => {
                self.open -= 1;
                if let Some(Want::Payload(slice)) = want {
                    io.arena().release(slice.buf);
                }
            }
            (event, want) => panic!("{event:?} for {want:?}"),
        }
    }

    fn want(&mut self, io: &mut Io, conn: ConnId) -> Want {
        if self.ends.len() < 2 {
            return Want::Pause;
        }
        if self.closing {
            return Want::Header(1);
        }
        let other = &self.ends[&self.other(conn)];
        let end = &self.ends[&conn];
        let most = if other.left == 0 {
            other.sent.len() - end.read
        } else {
            usize::MAX
        };
        let limit = [2, 100, 5000, 50_000][self.dice.below(4)];
        let len = most.min(1 + self.dice.below(limit));
        let want = match self.dice.below(5) {
            _ if len == 0 => Want::Pause,
            0 => Want::Pause,
            1 => Want::Discard(len as u64),
            2 => Want::Header(len.min(4096)),
            _ => match io.arena().alloc(u32::try_from(len).unwrap()) {
                Some(slice) => Want::Payload(slice),
                None => Want::Pause,
            },
        };
        self.ends.get_mut(&conn).unwrap().want = (want != Want::Pause).then_some(want);
        want
    }

    fn disk(&mut self, _: &mut Io, _: DiskDone) {}

    fn settle(&mut self, io: &mut Io, _: Monotonic) {
        if self.open < 2 || self.ends.len() < 2 {
            return;
        }
        for conn in self.ends.keys().copied().collect::<Vec<_>>() {
            match self.dice.below(6) {
                0 => io.hold(conn),
                1 => io.release(conn),
                _ => {}
            }
            for _ in 0..self.dice.below(4).min(self.ends[&conn].left) {
                self.send(io, conn);
            }
            if self.ends[&conn].left == 0 {
                io.release(conn);
                // What the other end has asked for before it could know that this is the end.
                let there = self.ends[&conn].sent.len();
                let missing = self.ends[&self.other(conn)].missing(there);
                let rest = vec![0x77; missing];
                io.send(conn, &rest, None);
                self.ends.get_mut(&conn).unwrap().sent.extend(&rest);
            }
        }
    }

    fn deadline(&self) -> Option<Monotonic> {
        let sends = self.ends.values().any(|end| end.left > 0);
        sends.then_some(Monotonic(0))
    }
}

#[test]
fn any_frames_arrive_in_any_pieces_as_through_a_socket() {
    for backend in backends() {
        for seed in 1..40 {
            for own in [true, false] {
                let mut driver = new_loop(backend, 16);
                let (listener, address, _dir) = listen(&mut driver);
                let mut talk = Talk::new(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed), 60);
                let dialled = if own {
                    driver.io().dial_own(listener)
                } else {
                    driver.io().dial(&address, Duration::from_secs(5))
                };
                drive(&mut driver, &mut talk, |talk, _| talk.is_over());
                let stats = driver.io().stats();
                assert_eq!(stats.sends == 0 && stats.receives == 0, own, "{stats:?}");
                talk.closing = true;
                driver.io().close(dialled, true);
                drive(&mut driver, &mut talk, |talk, _| talk.open == 0);
                settle_down(&mut driver, &mut talk);
            }
        }
    }
}

/// Sends back each byte that comes.
#[derive(Default)]
struct Bounce {
    bytes: usize,
    open: usize,
}

impl Handler for Bounce {
    fn accepted(&mut self, _: &mut Io, _: ListenerId, _: ConnId) {}

    fn stream(&mut self, io: &mut Io, conn: ConnId, event: StreamEvent<'_>) {
        match event {
            StreamEvent::Opened => self.open += 1,
            StreamEvent::Header(byte) => {
                self.bytes += 1;
                io.send(conn, byte, None);
            }
            StreamEvent::Payload => {}
            StreamEvent::Closed => self.open -= 1,
        }
    }

    fn want(&mut self, _: &mut Io, _: ConnId) -> Want {
        Want::Header(1)
    }

    fn disk(&mut self, _: &mut Io, _: DiskDone) {}

    fn settle(&mut self, _: &mut Io, _: Monotonic) {}

    fn deadline(&self) -> Option<Monotonic> {
        None
    }
}

#[test]
fn loop_does_not_sleep_while_something_is_to_be_delivered_and_no_turn_is_endless() {
    for backend in backends() {
        let mut driver = new_loop(backend, 4);
        let (listener, _, _dir) = listen(&mut driver);
        let mut bounce = Bounce::default();
        let dialled = driver.io().dial_own(listener);
        drive(&mut driver, &mut bounce, |bounce, _| bounce.open == 2);
        // It goes round for ever. A turn that slept would take a minute.
        driver.io().send(dialled, b"x", None);
        let start = now();
        for _ in 0..300 {
            driver.turn(&mut bounce, Duration::from_secs(60)).unwrap();
        }
        assert!(now().since(start) < Duration::from_secs(30));
        assert!((300..3000).contains(&bounce.bytes), "{}", bounce.bytes);
        driver.io().close(dialled, false);
        drive(&mut driver, &mut bounce, |bounce, _| bounce.open == 0);
        settle_down(&mut driver, &mut bounce);
    }
}

/// The dialling end sends a flood and closes; the other one reads it, or nothing at all.
struct Flood {
    dialled: Option<ConnId>,
    frames: usize,
    drain: Option<bool>,
    reads: bool,
    slice: Option<BufSlice>,
    got: usize,
    closed: Vec<ConnId>,
}

const FLOOD: u32 = 1 << 20;

impl Flood {
    fn new(frames: usize, drain: Option<bool>, reads: bool) -> Flood {
        Flood {
            dialled: None,
            frames,
            drain,
            reads,
            slice: None,
            got: 0,
            closed: Vec::new(),
        }
    }
}

impl Handler for Flood {
    fn accepted(&mut self, _: &mut Io, _: ListenerId, _: ConnId) {}

    fn stream(&mut self, io: &mut Io, conn: ConnId, event: StreamEvent<'_>) {
        match event {
            StreamEvent::Opened if self.dialled == Some(conn) => {
                let payload = io.arena().alloc(FLOOD).unwrap();
                for _ in 0..self.frames {
                    io.send(conn, b"", Some(payload));
                }
                io.arena().release(payload.buf);
                if let Some(drain) = self.drain {
                    io.close(conn, drain);
                }
            }
            StreamEvent::Payload => self.got += 1,
            StreamEvent::Opened | StreamEvent::Header(_) => {}
            StreamEvent::Closed => {
                self.closed.push(conn);
                if let Some(slice) = self.slice.take_if(|_| self.dialled != Some(conn)) {
                    io.arena().release(slice.buf);
                }
            }
        }
    }

    fn want(&mut self, io: &mut Io, conn: ConnId) -> Want {
        if self.dialled == Some(conn) || !self.reads {
            return Want::Pause;
        }
        let slice = self.slice.or_else(|| io.arena().alloc(FLOOD));
        self.slice = slice;
        slice.map_or(Want::Pause, Want::Payload)
    }

    fn disk(&mut self, _: &mut Io, _: DiskDone) {}

    fn settle(&mut self, _: &mut Io, _: Monotonic) {}

    fn deadline(&self) -> Option<Monotonic> {
        None
    }
}

/// Runs a flood until both ends are gone, and gives what the reader got.
fn flood(mut flood: Flood) -> usize {
    let mut driver = new_loop(trilith_runtime::Backend::Auto, 4);
    let (listener, _, _dir) = listen(&mut driver);
    flood.dialled = Some(driver.io().dial_own(listener));
    drive(&mut driver, &mut flood, |flood, _| flood.closed.len() == 2);
    settle_down(&mut driver, &mut flood);
    flood.got
}

#[test]
fn drained_close_delivers_everything_and_ends_both() {
    assert_eq!(flood(Flood::new(40, Some(true), true)), 40);
}

#[test]
fn close_without_draining_ends_both_and_returns_all_buffers() {
    assert_eq!(flood(Flood::new(40, Some(false), true)), 0);
}

#[test]
fn end_that_does_not_read_is_closed_at_the_limit() {
    let most = trilith_runtime::limits::OUTPUT_BYTES_MAX / FLOOD as usize;
    assert_eq!(flood(Flood::new(most + 8, None, false)), 0);
}

#[test]
fn end_that_does_not_read_keeps_a_drained_close_only_for_its_time() {
    let start = now();
    assert_eq!(flood(Flood::new(3, Some(true), false)), 0);
    assert!(now().since(start) >= trilith_runtime::limits::DRAIN_TIME_MAX);
}

#[test]
fn listener_that_has_stopped_takes_no_connection() {
    let mut driver = new_loop(trilith_runtime::Backend::Auto, 1);
    let (listener, _, _dir) = listen(&mut driver);
    let mut server = Server::default();
    driver.io().stop_listening(listener);
    let dialled = driver.io().dial_own(listener);
    drive(&mut driver, &mut server, |server, _| {
        server.closed == [dialled]
    });
    settle_down(&mut driver, &mut server);
}

#[test]
fn loop_dropped_with_bytes_under_way_keeps_no_memory() {
    let mut driver = new_loop(trilith_runtime::Backend::Auto, 4);
    let (listener, _, _dir) = listen(&mut driver);
    let mut flood = Flood::new(3, None, false);
    flood.dialled = Some(driver.io().dial_own(listener));
    for _ in 0..4 {
        driver.turn(&mut flood, Duration::ZERO).unwrap();
    }
    drop(driver);
}
