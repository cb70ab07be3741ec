//! Byte streams on both backends.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{
    BYE, DISCARD, Dice, ECHO, HEADER, Server, backends, drive, header, new_loop, read_answer,
    settle_down, spinning_loop, write_split,
};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;
use trilith_block::{BufSlice, Buffers, ConnId, Monotonic, StreamEvent, Want};
use trilith_runtime::{Address, DiskDone, Handler, Io, ListenerId, Loop};

trait Peer: Read + Write + Send {
    fn split(&self) -> Box<dyn Peer>;
    fn end(&self);
}

impl Peer for TcpStream {
    fn split(&self) -> Box<dyn Peer> {
        Box::new(self.try_clone().unwrap())
    }
    fn end(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

impl Peer for UnixStream {
    fn split(&self) -> Box<dyn Peer> {
        Box::new(self.try_clone().unwrap())
    }
    fn end(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

fn connect(address: &Address) -> Box<dyn Peer> {
    match address {
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).unwrap();
            stream.set_nodelay(true).unwrap();
            Box::new(stream)
        }
        Address::Unix(path) => Box::new(UnixStream::connect(path).unwrap()),
    }
}

fn tcp() -> Address {
    "127.0.0.1:0".parse().unwrap()
}

fn unix(dir: &Path) -> Address {
    Address::Unix(dir.join("socket"))
}

fn serve(driver: &mut Loop, address: &Address) -> Address {
    let listener = driver.io().listen(address).unwrap();
    driver.io().local_address(listener).unwrap().clone()
}

/// Sends `count` random frames split anywhere and checks the answers.
fn converse(address: &Address, seed: u64, count: u32, len_max: usize) {
    let mut dice = Dice(seed);
    let mut stream = connect(address);
    let mut reader = stream.split();
    let frames: Vec<(u8, Vec<u8>)> = (0..count)
        .map(|_| {
            let len = [0, 1, 100, 4096, len_max][dice.below(5)];
            let mut payload = vec![
                0;
                if len == len_max {
                    dice.below(len_max)
                } else {
                    len
                }
            ];
            dice.fill(&mut payload);
            (if dice.below(4) == 0 { DISCARD } else { ECHO }, payload)
        })
        .collect();
    let expected = frames.clone();
    let reading = thread::spawn(move || {
        for (id, (kind, payload)) in (0u32..).zip(expected) {
            let echoed = if kind == ECHO { payload.len() } else { 0 };
            let (head, bytes) = read_answer(&mut reader, echoed);
            assert_eq!(head, (kind, id, u32::try_from(payload.len()).unwrap()));
            assert!(bytes == payload[..echoed], "payload of frame {id} differs");
        }
    });
    let mut bytes = Vec::new();
    for (id, (kind, payload)) in (0u32..).zip(&frames) {
        bytes.extend_from_slice(&header(*kind, id, u32::try_from(payload.len()).unwrap()));
        bytes.extend_from_slice(payload);
    }
    write_split(&mut stream, &bytes, &mut dice);
    reading.join().unwrap();
}

#[test]
fn frames_of_odd_sizes_split_anywhere_come_back_over_tcp_and_unix() {
    let dir = tempfile::tempdir().unwrap();
    for backend in backends() {
        for (round, address) in [tcp(), unix(dir.path())].iter().enumerate() {
            for (pause_every, spin) in [(0, 0), (5, 0), (0, 1000), (5, 20)] {
                let mut driver = spinning_loop(backend, 8, Duration::from_micros(spin));
                let mut server = Server {
                    pause_every,
                    ..Server::default()
                };
                let address = serve(&mut driver, address);
                let seed = 77 + round as u64;
                let client = thread::spawn(move || converse(&address, seed, 300, 300_000));
                drive(&mut driver, &mut server, |server, _| {
                    server.closed.len() == 1
                });
                client.join().unwrap();
                assert_eq!(server.frames, 300);
                assert!(
                    pause_every == 0 || server.pauses > 10,
                    "{} pauses",
                    server.pauses
                );
                settle_down(&mut driver, &mut server);
            }
        }
    }
}

#[test]
fn two_hundred_connections_are_served_at_once() {
    for backend in backends() {
        let mut driver = new_loop(backend, 8);
        let mut server = Server {
            pause_every: 11,
            ..Server::default()
        };
        let address = serve(&mut driver, &tcp());
        let client = thread::spawn(move || {
            let mut streams: Vec<_> = (0..200).map(|_| connect(&address)).collect();
            for round in 0..5u32 {
                for stream in &mut streams {
                    stream.write_all(&header(ECHO, round, 3000)).unwrap();
                    stream.write_all(&[7; 3000]).unwrap();
                }
                for stream in &mut streams {
                    let (head, bytes) = read_answer(stream, 3000);
                    assert_eq!((head, bytes), ((ECHO, round, 3000), vec![7; 3000]));
                }
            }
        });
        drive(&mut driver, &mut server, |server, _| {
            server.closed.len() == 200
        });
        client.join().unwrap();
        assert_eq!((server.opened.len(), server.frames), (200, 1000));
        settle_down(&mut driver, &mut server);
    }
}

#[test]
fn many_small_frames_of_one_receive_cost_no_system_call_each() {
    for backend in backends() {
        let mut driver = new_loop(backend, 1);
        let mut server = Server::default();
        let address = serve(&mut driver, &tcp());
        let client = thread::spawn(move || {
            let mut stream = connect(&address);
            let frames: Vec<u8> = (0..20_000u32)
                .flat_map(|id| header(DISCARD, id, 0))
                .collect();
            let mut reader = stream.split();
            let reading = thread::spawn(move || {
                let mut answers = vec![0; 20_000 * HEADER];
                reader.read_exact(&mut answers).unwrap();
                answers
            });
            stream.write_all(&frames).unwrap();
            assert!(reading.join().unwrap() == frames);
        });
        drive(&mut driver, &mut server, |server, _| {
            server.closed.len() == 1
        });
        client.join().unwrap();
        let stats = driver.io().stats();
        assert_eq!(server.frames, 20_000);
        let calls = stats.enters + stats.receives + stats.sends;
        assert!(
            calls < 2000,
            "{calls} system calls for 20000 frames: {stats:?}"
        );
        settle_down(&mut driver, &mut server);
    }
}

#[test]
fn answer_costs_no_system_call_of_its_own() {
    const REQUESTS: u32 = 200;
    let dir = tempfile::tempdir().unwrap();
    for backend in backends() {
        for address in [tcp(), unix(dir.path())] {
            let mut driver = new_loop(backend, 1);
            let mut server = Server::default();
            let address = serve(&mut driver, &address);
            let client = thread::spawn(move || {
                let mut stream = connect(&address);
                for id in 0..REQUESTS {
                    stream.write_all(&header(DISCARD, id, 0)).unwrap();
                    read_answer(&mut stream, 0);
                }
            });
            drive(&mut driver, &mut server, |server, _| {
                server.closed.len() == 1
            });
            client.join().unwrap();
            let enters = driver.io().stats().enters;
            assert!(
                enters < u64::from(REQUESTS) * 3 / 2,
                "{backend:?}: {enters} system calls for {REQUESTS} requests"
            );
            settle_down(&mut driver, &mut server);
        }
    }
}

#[test]
fn held_output_leaves_when_released_and_not_before() {
    for backend in backends() {
        let mut driver = new_loop(backend, 1);
        let mut server = Server::default();
        let address = serve(&mut driver, &tcp());
        let mut stream = connect(&address);
        drive(&mut driver, &mut server, |server, _| {
            !server.opened.is_empty()
        });
        let conn = server.opened[0];
        driver.io().hold(conn);
        driver.io().send(conn, b"held", None);
        for _ in 0..3 {
            driver.turn(&mut server, Duration::from_millis(1)).unwrap();
        }
        assert_eq!(driver.io().stats().sent_bytes, 0, "{backend:?}");
        driver.io().release(conn);
        drive(&mut driver, &mut server, |_, io| io.stats().sent_bytes == 4);
        let mut found = [0; 4];
        stream.read_exact(&mut found).unwrap();
        assert_eq!(&found, b"held");
        drop(stream);
        settle_down(&mut driver, &mut server);
    }
}

#[test]
fn large_payload_is_received_straight_into_its_buffer() {
    for backend in backends() {
        let mut driver = new_loop(backend, 4);
        let mut server = Server::default();
        let address = serve(&mut driver, &tcp());
        let client = thread::spawn(move || {
            let mut stream = connect(&address);
            let mut payload = vec![0; 1 << 20];
            Dice(9).fill(&mut payload);
            for id in 0..3 {
                stream.write_all(&header(ECHO, id, 1 << 20)).unwrap();
                stream.write_all(&payload).unwrap();
                let (_, echoed) = read_answer(&mut stream, 1 << 20);
                assert!(echoed == payload);
            }
        });
        drive(&mut driver, &mut server, |server, _| {
            server.closed.len() == 1
        });
        client.join().unwrap();
        assert!(
            driver.io().stats().direct_receives >= 3,
            "{:?}",
            driver.io().stats()
        );
        settle_down(&mut driver, &mut server);
    }
}

#[test]
fn paused_connection_receives_no_more_than_its_buffer() {
    for backend in backends() {
        let mut driver = new_loop(backend, 4);
        let mut server = Server {
            hold: true,
            ..Server::default()
        };
        let dir = tempfile::tempdir().unwrap();
        let address = serve(&mut driver, &unix(dir.path()));
        let Address::Unix(path) = address else {
            unreachable!()
        };
        let waker = driver.io().waker();
        let client = thread::spawn(move || {
            let mut stream = UnixStream::connect(path).unwrap();
            let mut bytes = Vec::new();
            for id in 0..64 {
                bytes.extend_from_slice(&header(DISCARD, id, 100_000));
                bytes.resize(bytes.len() + 100_000, 1);
            }
            stream
                .set_write_timeout(Some(Duration::from_millis(100)))
                .unwrap();
            let mut sent = 0;
            while let Ok(more) = stream.write(&bytes[sent..]) {
                sent += more;
            }
            waker.send(Box::new("blocked")).unwrap();
            stream.set_write_timeout(None).unwrap();
            stream.write_all(&bytes[sent..]).unwrap();
            for id in 0..64 {
                assert_eq!(read_answer(&mut stream, 0).0, (DISCARD, id, 100_000));
            }
        });
        drive(&mut driver, &mut server, |server, _| {
            !server.messages.is_empty()
        });
        assert_eq!(
            driver.io().stats().received_bytes,
            0,
            "nothing is received before it is wanted"
        );
        let turns = driver.io().stats().turns;
        driver.turn(&mut server, Duration::from_millis(30)).unwrap();
        assert_eq!(
            driver.io().stats().turns,
            turns + 1,
            "a paused connection does not spin"
        );
        server.hold = false;
        drive(&mut driver, &mut server, |server, _| {
            server.closed.len() == 1
        });
        client.join().unwrap();
        assert_eq!(server.frames, 64);
        settle_down(&mut driver, &mut server);
    }
}

/// Sends a flood as soon as a connection opens; closes it as told.
struct Flood {
    frames: usize,
    drain: Option<bool>,
    closed: usize,
    slice: Option<BufSlice>,
    opened: Vec<ConnId>,
}

impl Flood {
    fn new(frames: usize, drain: Option<bool>) -> Flood {
        Flood {
            frames,
            drain,
            closed: 0,
            slice: None,
            opened: Vec::new(),
        }
    }
}

impl Handler for Flood {
    fn accepted(&mut self, _: &mut Io, _: ListenerId, _: ConnId) {}

    fn stream(&mut self, io: &mut Io, conn: ConnId, event: StreamEvent<'_>) {
        match event {
            StreamEvent::Opened => {
                self.opened.push(conn);
                let payload = io.arena().alloc(1 << 20).unwrap();
                io.arena().bytes_mut(payload).fill(0x42);
                for _ in 0..self.frames {
                    io.send(conn, b"head", Some(payload));
                }
                io.arena().release(payload.buf);
                self.slice = io.arena().alloc(1 << 20);
            }
            StreamEvent::Header(_) | StreamEvent::Payload => {}
            StreamEvent::Closed => {
                self.closed += 1;
                if let Some(slice) = self.slice.take() {
                    io.arena().release(slice.buf);
                }
            }
        }
    }

    fn want(&mut self, _: &mut Io, _: ConnId) -> Want {
        // A payload that never arrives: its receive stays in flight.
        self.slice.map_or(Want::Pause, Want::Payload)
    }

    fn disk(&mut self, _: &mut Io, _: DiskDone) {}

    fn settle(&mut self, io: &mut Io, _: Monotonic) {
        if let Some(drain) = self.drain {
            for conn in &self.opened {
                if io.stats().sends > 0 {
                    io.close(*conn, drain);
                }
            }
        }
    }

    fn deadline(&self) -> Option<Monotonic> {
        None
    }
}

#[test]
fn peer_that_does_not_read_is_closed_at_the_limit() {
    for backend in backends() {
        let mut driver = new_loop(backend, 4);
        // A mebibyte each: some more than may be queued.
        let most = trilith_runtime::limits::OUTPUT_BYTES_MAX >> 20;
        let mut flood = Flood::new(most + 8, None);
        let address = serve(&mut driver, &tcp());
        let _stream = connect(&address);
        drive(&mut driver, &mut flood, |flood, _| flood.closed == 1);
        settle_down(&mut driver, &mut flood);
    }
}

#[test]
fn close_while_send_and_direct_receive_are_in_flight_returns_all_buffers() {
    for backend in backends() {
        let mut driver = new_loop(backend, 4);
        let mut flood = Flood::new(20, Some(false));
        let address = serve(&mut driver, &tcp());
        let mut stream = connect(&address);
        stream.write_all(&[1; 1000]).unwrap();
        drive(&mut driver, &mut flood, |flood, _| flood.closed == 1);
        settle_down(&mut driver, &mut flood);
    }
}

#[test]
fn drained_close_delivers_everything_although_input_is_unread() {
    for backend in backends() {
        let mut driver = new_loop(backend, 4);
        let mut flood = Flood::new(12, Some(true));
        let address = serve(&mut driver, &tcp());
        let client = thread::spawn(move || {
            let mut stream = connect(&address);
            let mut writer = stream.split();
            thread::spawn(move || {
                // More than is ever received into a buffer; it ends when the server has gone.
                let sent = (0..800)
                    .take_while(|_| writer.write_all(&[1; 10_000]).is_ok())
                    .count();
                assert!(sent > 0);
            });
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            bytes.len()
        });
        drive(&mut driver, &mut flood, |flood, io| {
            flood.closed == 1 && io.connections() == 0
        });
        assert_eq!(client.join().unwrap(), 12 * ((1 << 20) + 4));
        settle_down(&mut driver, &mut flood);
    }
}

#[test]
fn loop_dropped_with_everything_in_flight_waits_for_the_kernel() {
    for backend in backends() {
        let mut driver = new_loop(backend, 4);
        let mut flood = Flood::new(20, None);
        let address = serve(&mut driver, &tcp());
        let _idle = connect(&address);
        drive(&mut driver, &mut flood, |flood, io| {
            flood.opened.len() == 1 && io.stats().sends > 0
        });
        driver.io().dial(&address, Duration::from_secs(5));
        let begun = trilith_runtime::now();
        drop(driver);
        let took = trilith_runtime::now().since(begun);
        assert!(took < Duration::from_secs(5), "dropping took {took:?}");
    }
}

#[test]
fn last_request_before_a_half_close_is_answered() {
    for backend in backends() {
        let mut driver = new_loop(backend, 4);
        let mut server = Server::default();
        let address = serve(&mut driver, &tcp());
        let client = thread::spawn(move || {
            let mut stream = connect(&address);
            stream.write_all(&header(ECHO, 0, 5)).unwrap();
            stream.write_all(b"hello").unwrap();
            stream.end();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            assert_eq!(&bytes[HEADER..], b"hello");
        });
        drive(&mut driver, &mut server, |server, _| {
            server.closed.len() == 1
        });
        client.join().unwrap();
        settle_down(&mut driver, &mut server);
    }
}

#[test]
fn goodbye_is_answered_before_the_close() {
    for backend in backends() {
        let mut driver = new_loop(backend, 4);
        let mut server = Server::default();
        let address = serve(&mut driver, &tcp());
        let client = thread::spawn(move || {
            let mut stream = connect(&address);
            stream.write_all(&header(BYE, 0, 0)).unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, header(BYE, 0, 0));
        });
        drive(&mut driver, &mut server, |server, _| {
            server.closed.len() == 1
        });
        client.join().unwrap();
        settle_down(&mut driver, &mut server);
    }
}

#[test]
fn dialled_connections_talk_to_accepted_ones_of_the_same_loop() {
    for backend in backends() {
        let dir = tempfile::tempdir().unwrap();
        for address in [tcp(), unix(dir.path())] {
            let mut driver = new_loop(backend, 4);
            let mut server = Server::default();
            let address = serve(&mut driver, &address);
            let dialled = driver.io().dial(&address, Duration::from_secs(5));
            drive(&mut driver, &mut server, |server, _| {
                server.opened.len() == 2
            });
            assert!(server.opened.contains(&dialled));
            // Both ends echo, so one frame goes round for ever, with ids that rise on both.
            driver.io().send(dialled, &header(DISCARD, 0, 0), None);
            drive(&mut driver, &mut server, |server, _| server.frames >= 1);
            driver.io().close(dialled, false);
            drive(&mut driver, &mut server, |server, _| {
                server.closed.len() == 2
            });
            settle_down(&mut driver, &mut server);
        }
    }
}

#[test]
fn refused_and_missing_addresses_end_with_closed() {
    for backend in backends() {
        let mut driver = new_loop(backend, 1);
        let mut server = Server::default();
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let refused = driver
            .io()
            .dial(&Address::Tcp(port), Duration::from_secs(5));
        let missing = driver.io().dial(
            &Address::Unix("/nonexistent/socket".into()),
            Duration::from_secs(5),
        );
        drive(&mut driver, &mut server, |server, _| {
            server.closed.len() == 2
        });
        assert!(server.opened.is_empty());
        assert!(server.closed.contains(&refused) && server.closed.contains(&missing));
        settle_down(&mut driver, &mut server);
    }
}

#[test]
fn dial_that_nobody_answers_ends_at_its_time_limit() {
    // A listener with a full backlog drops further connection requests.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let _filler = TcpStream::connect(address).unwrap();
    for backend in backends() {
        let mut driver = new_loop(backend, 1);
        let mut server = Server::default();
        let begun = trilith_runtime::now();
        for _ in 0..4 {
            driver
                .io()
                .dial(&Address::Tcp(address), Duration::from_millis(150));
        }
        drive(&mut driver, &mut server, |server, _| {
            !server.closed.is_empty()
        });
        let took = trilith_runtime::now().since(begun);
        assert!(
            took >= Duration::from_millis(150) && took < Duration::from_secs(5),
            "{took:?}"
        );
        drop(driver);
    }
}

#[test]
fn stale_unix_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    for backend in backends() {
        let address = unix(dir.path());
        let Address::Unix(path) = &address else {
            unreachable!()
        };
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        assert!(path.exists(), "a dead listener leaves its file behind");
        let mut first = new_loop(backend, 1);
        let listener = first.io().listen(&address).unwrap();
        let mut second = new_loop(backend, 1);
        let error = second.io().listen(&address).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
        assert!(
            error.to_string().contains("another process listens"),
            "{error}"
        );
        first.io().stop_listening(listener);
        assert!(!path.exists(), "a listener removes its file");
        second.io().listen(&address).unwrap();
        drop(second);
        std::fs::write(path, b"not a socket").unwrap();
        assert!(
            first.io().listen(&address).is_err(),
            "a file that is no socket is left alone"
        );
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn adopted_listener_serves() {
    for backend in backends() {
        let mut driver = new_loop(backend, 1);
        let mut server = Server::default();
        let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listening.set_nonblocking(true).unwrap();
        let listener = driver.io().listen_on(listening.into()).unwrap();
        let address = driver.io().local_address(listener).unwrap().clone();
        let client = thread::spawn(move || converse(&address, 5, 20, 1000));
        drive(&mut driver, &mut server, |server, _| {
            server.closed.len() == 1
        });
        client.join().unwrap();
        settle_down(&mut driver, &mut server);
    }
}
