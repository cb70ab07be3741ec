//! A server that answers 4 KiB reads without a disk, and a client that keeps some in flight: what
//! the loop itself costs. `cargo run --release -p trilith-runtime --example null_stream -- plain`
//! (or `uring`), then the number of requests in flight and of seconds.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measurement at the terminal"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use trilith_block::{BufSlice, Buffers, ConnId, Monotonic, StreamEvent, Want};
use trilith_runtime::{
    Address, ArenaConfig, Backend, DiskDone, Handler, Io, ListenerId, Loop, LoopConfig, now,
};

/// Bytes of a request, as in NBD; the reply's head has 16.
const REQUEST_BYTES: usize = 28;
const REPLY_BYTES: usize = 16;
const DATA_BYTES: u32 = 4096;

struct Null {
    data: Option<BufSlice>,
}

impl Handler for Null {
    fn accepted(&mut self, _: &mut Io, _: ListenerId, _: ConnId) {}

    fn stream(&mut self, io: &mut Io, conn: ConnId, event: StreamEvent<'_>) {
        match event {
            StreamEvent::Opened => self.data = io.arena().alloc(DATA_BYTES),
            StreamEvent::Header(bytes) => io.send(conn, &bytes[..REPLY_BYTES], self.data),
            StreamEvent::Payload => {}
            StreamEvent::Closed => io.stop(),
        }
    }

    fn want(&mut self, _: &mut Io, _: ConnId) -> Want {
        Want::Header(REQUEST_BYTES)
    }

    fn disk(&mut self, _: &mut Io, _: DiskDone) {}

    fn settle(&mut self, _: &mut Io, _: Monotonic) {}

    fn deadline(&self) -> Option<Monotonic> {
        None
    }
}

/// Keeps `depth` requests in flight for so long; gives the number of answers.
fn client(address: std::net::SocketAddr, depth: usize, time: Duration) -> u64 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(&vec![1; REQUEST_BYTES * depth]).unwrap();
    let reply = REPLY_BYTES + DATA_BYTES as usize;
    let mut buffer = vec![0; reply * depth];
    let (mut partial, mut answers) = (0, 0);
    let end = now().after(time);
    let requests = vec![1; REQUEST_BYTES * depth];
    while now() < end {
        let bytes = partial + stream.read(&mut buffer).unwrap();
        let whole = bytes / reply;
        partial = bytes % reply;
        answers += whole as u64;
        stream
            .write_all(&requests[..REQUEST_BYTES * whole.min(depth)])
            .unwrap();
    }
    answers
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let backend = match arguments.get(1).map(String::as_str) {
        Some("plain") => Backend::Plain,
        Some("uring") => Backend::Uring,
        _ => Backend::Auto,
    };
    let number = |at: usize, default: u64| {
        arguments
            .get(at)
            .map_or(default, |text| text.parse().unwrap())
    };
    let (depth, seconds) = (number(2, 32), number(3, 5));
    let arena = ArenaConfig::of_process();
    let mut driver = Loop::new(LoopConfig {
        backend,
        arena,
        ..LoopConfig::default()
    })
    .unwrap();
    let listener = driver.io().listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let Some(Address::Tcp(address)) = driver.io().local_address(listener).cloned() else {
        return;
    };
    let depth_count = usize::try_from(depth).unwrap();
    let time = Duration::from_secs(seconds);
    let client = std::thread::spawn(move || client(address, depth_count, time));
    driver.run(&mut Null { data: None }).unwrap();
    let answers = client.join().unwrap();
    let stats = driver.io().stats();
    println!(
        "{:?}: {} answers a second at depth {depth}; per answer {:.2} enters, {:.2} receives, {:.2} sends",
        driver.io().backend(),
        answers / seconds,
        stats.enters as f64 / answers as f64,
        stats.receives as f64 / answers as f64,
        stats.sends as f64 / answers as f64,
    );
}
