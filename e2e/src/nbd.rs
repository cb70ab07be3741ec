//! A small NBD client that can lose its server and say what it does not know: every request ends
//! as done, refused, or unknown (the connection died first).

use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longest wait for one reply.
const REPLY_MAX: Duration = Duration::from_secs(90);

/// One connection in transmission, simple replies.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    next_cookie: u64,
    /// Size of the export in bytes.
    pub size: u64,
    /// The export's transmission flags.
    pub flags: u16,
}

/// A reply.
#[derive(Debug)]
pub struct Reply {
    /// Cookie of the request.
    pub cookie: u64,
    /// NBD error, 0 when it went well.
    pub error: u32,
}

/// Command numbers of the NBD protocol.
mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const FLUSH: u16 = 3;
}

impl Client {
    /// Connects to the default export.
    ///
    /// # Errors
    /// When no connection or no export can be had.
    pub fn connect(address: &str) -> Result<Client> {
        let mut stream = TcpStream::connect(address).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_MAX))?;
        let mut greeting = [0u8; 18];
        stream
            .read_exact(&mut greeting)
            .context("read the greeting")?;
        ensure!(
            &greeting[..16] == b"NBDMAGICIHAVEOPT",
            "greeting is {greeting:02x?}"
        );
        // Fixed newstyle, no zeroes.
        stream.write_all(&3u32.to_be_bytes())?;
        // NBD_OPT_EXPORT_NAME with the empty name.
        stream.write_all(b"IHAVEOPT")?;
        stream.write_all(&1u32.to_be_bytes())?;
        stream.write_all(&0u32.to_be_bytes())?;
        let mut export = [0u8; 10];
        stream
            .read_exact(&mut export)
            .context("read the export's size")?;
        let size = u64::from_be_bytes(export[..8].try_into()?);
        Ok(Client {
            stream,
            next_cookie: 1,
            size,
            flags: u16::from_be_bytes(export[8..].try_into()?),
        })
    }

    /// The connection, for somebody else to send requests on.
    ///
    /// # Errors
    /// When its time limit cannot be taken away.
    pub fn into_stream(self) -> Result<TcpStream> {
        self.stream.set_read_timeout(None)?;
        Ok(self.stream)
    }

    fn request(&mut self, kind: u16, fua: bool, offset: u64, len: u32, data: &[u8]) -> Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut frame = Vec::with_capacity(28 + data.len());
        frame.extend_from_slice(&0x2560_9513u32.to_be_bytes());
        frame.extend_from_slice(&u16::from(fua).to_be_bytes());
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(&cookie.to_be_bytes());
        frame.extend_from_slice(&offset.to_be_bytes());
        frame.extend_from_slice(&len.to_be_bytes());
        frame.extend_from_slice(data);
        self.stream.write_all(&frame).context("send a request")?;
        Ok(cookie)
    }

    /// Sends a write; its cookie.
    ///
    /// # Errors
    /// When the connection is gone: the write is unknown.
    pub fn send_write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<u64> {
        self.request(
            command::WRITE,
            fua,
            offset,
            u32::try_from(data.len())?,
            data,
        )
    }

    /// Sends a flush; its cookie.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send_flush(&mut self) -> Result<u64> {
        self.request(command::FLUSH, false, 0, 0, &[])
    }

    /// The next reply of a write or flush.
    ///
    /// # Errors
    /// When the connection is gone or nothing comes.
    pub fn reply(&mut self) -> Result<Reply> {
        let mut head = [0u8; 16];
        self.stream.read_exact(&mut head).context("read a reply")?;
        let magic = u32::from_be_bytes(head[..4].try_into()?);
        if magic != 0x6744_6698 {
            bail!("reply magic: expected 0x67446698, found {magic:#x}");
        }
        Ok(Reply {
            error: u32::from_be_bytes(head[4..8].try_into()?),
            cookie: u64::from_be_bytes(head[8..16].try_into()?),
        })
    }

    /// Reads bytes; the NBD error when the server refuses.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn read(&mut self, offset: u64, len: u32) -> Result<Result<Vec<u8>, u32>> {
        let cookie = self.request(command::READ, false, offset, len, &[])?;
        let reply = self.reply()?;
        ensure!(
            reply.cookie == cookie,
            "cookie {} for {cookie}",
            reply.cookie
        );
        if reply.error != 0 {
            return Ok(Err(reply.error));
        }
        let mut data = vec![0u8; usize::try_from(len)?];
        self.stream.read_exact(&mut data).context("read the data")?;
        Ok(Ok(data))
    }

    /// Writes and waits; the NBD error when the server refuses.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<Result<(), u32>> {
        self.send_write(offset, data, false)?;
        let reply = self.reply()?;
        Ok(if reply.error == 0 {
            Ok(())
        } else {
            Err(reply.error)
        })
    }

    /// Flushes and waits.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn flush(&mut self) -> Result<Result<(), u32>> {
        self.send_flush()?;
        let reply = self.reply()?;
        Ok(if reply.error == 0 {
            Ok(())
        } else {
            Err(reply.error)
        })
    }
}
