//! A null NBD server on tokio-uring: reads give zeroes, writes are thrown away. It has what a client of
//! fio's nbd engine needs and nothing more, so that it costs as little as one can on that runtime:
//! `cargo run --release -- PORT MIB`.
#![forbid(unsafe_code)]

use std::io;
use tokio_uring::net::{TcpListener, TcpStream};

const OPTION_MAGIC: &[u8] = b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_BYTES: usize = 28;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Has flags, knows flush and FUA, several connections see one disk.
const FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 8;
const RECEIVE_BYTES: usize = 128 * 1024;
/// Longest request that is served.
const TRANSFER_BYTES_MAX: usize = 32 << 20;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4]
        .iter()
        .fold(0, |n, b| n << 8 | u32::from(*b))
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A connection: received bytes that nobody has taken yet.
struct Conn {
    stream: TcpStream,
    buffer: Vec<u8>,
    input: Vec<u8>,
}

impl Conn {
    /// Waits for at least one more byte.
    async fn more(&mut self) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let (result, buffer) = self.stream.read(buffer).await;
        self.buffer = buffer;
        let bytes = result?;
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.input.extend_from_slice(&self.buffer[..bytes]);
        Ok(())
    }

    async fn take(&mut self, len: usize) -> io::Result<Vec<u8>> {
        while self.input.len() < len {
            self.more().await?;
        }
        Ok(self.input.drain(..len).collect())
    }

    async fn send(&self, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let (result, bytes) = self.stream.write_all(bytes).await;
        result.map(|()| bytes)
    }

    async fn negotiate(&mut self, size: u64) -> io::Result<()> {
        // Fixed newstyle, no zeroes.
        self.send([b"NBDMAGIC", OPTION_MAGIC, &[0, 3]].concat())
            .await?;
        self.take(4).await?;
        loop {
            let head = self.take(16).await?;
            if &head[..8] != OPTION_MAGIC {
                return Err(invalid("option without its magic"));
            }
            let (option, len) = (u32_at(&head, 8), u32_at(&head, 12) as usize);
            if len > 8192 {
                return Err(invalid("option is too long"));
            }
            self.take(len).await?;
            let reply = |kind: u32, data: &[u8]| {
                let mut bytes = REPLY_MAGIC.to_be_bytes().to_vec();
                bytes.extend(option.to_be_bytes());
                bytes.extend(kind.to_be_bytes());
                bytes.extend((data.len() as u32).to_be_bytes());
                bytes.extend(data);
                bytes
            };
            let export = [&size.to_be_bytes()[..], &FLAGS.to_be_bytes()].concat();
            match option {
                // EXPORT_NAME
                1 => return self.send(export).await.map(drop),
                // GO: the export, then ACK.
                7 => {
                    let info = [&[0, 0][..], &export].concat();
                    let bytes = [reply(3, &info), reply(1, &[])].concat();
                    return self.send(bytes).await.map(drop);
                }
                // ERR_UNSUP
                _ => self.send(reply(1 << 31 | 1, &[])).await.map(drop)?,
            }
        }
    }

    /// All requests that one receive brought are answered by one send.
    async fn serve(&mut self, size: u64) -> io::Result<()> {
        self.negotiate(size).await?;
        let mut output = Vec::new();
        loop {
            let mut done = 0;
            while self.input.len() - done >= REQUEST_BYTES {
                let head = &self.input[done..done + REQUEST_BYTES];
                let (kind, len) = (u32_at(head, 4) & 0xffff, u32_at(head, 24) as usize);
                if u32_at(head, 0) != REQUEST_MAGIC || len > TRANSFER_BYTES_MAX {
                    return Err(invalid("not a request"));
                }
                let payload = if kind == 1 { len } else { 0 };
                if self.input.len() - done < REQUEST_BYTES + payload {
                    break;
                }
                if kind == 2 {
                    return Ok(());
                }
                output.extend(SIMPLE_REPLY_MAGIC.to_be_bytes());
                output.extend([0; 4]);
                output.extend_from_slice(&head[8..16]);
                if kind == 0 {
                    output.resize(output.len() + len, 0);
                }
                done += REQUEST_BYTES + payload;
            }
            self.input.drain(..done);
            if !output.is_empty() {
                output = self.send(output).await?;
                output.clear();
            }
            self.more().await?;
        }
    }
}

fn main() -> io::Result<()> {
    let mut words = std::env::args().skip(1);
    let mut number = |default: u64| {
        let word = words.next();
        word.map_or(Ok(default), |w| w.parse().map_err(|_| invalid("a number")))
    };
    let (port, mib): (u64, u64) = (number(10_810)?, number(1024)?);
    let port = u16::try_from(port).map_err(|_| invalid("a port"))?;
    tokio_uring::start(async move {
        let listener = TcpListener::bind(([127, 0, 0, 1], port).into())?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio_uring::spawn(async move {
                let mut conn = Conn {
                    stream,
                    buffer: vec![0; RECEIVE_BYTES],
                    input: Vec::new(),
                };
                // A client that went away is no news.
                drop(conn.serve(mib << 20).await);
            });
        }
    })
}
