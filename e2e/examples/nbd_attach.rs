//! Attaches the kernel's NBD client to an export and keeps it attached: `nbd_attach ADDRESS INDEX
//! CONNECTIONS` makes /dev/nbdINDEX, and gives the kernel a new connection for each one that died, so
//! that requests in flight wait and none fails. nbd-client cannot do that. Ends when the device is
//! disconnected (`nbd-client -d`). The kernel's side is `include/uapi/linux/nbd-netlink.h`; fields are
//! in the byte order of x86, which guests are.

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink, recv, sendto, socket};
use std::io::Write;
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;
use trilith_e2e::nbd::Client;
use trilith_e2e::pause;

/// A request on a connection that is this slow goes back to the queue.
const REQUEST_SECONDS: u64 = 15;
/// How long requests wait for a new connection before they fail.
const GRACE_SECONDS: u64 = 180;
const BLOCK_BYTES: u64 = 4096;
const RETRY: Duration = Duration::from_millis(200);

const CONTROL_FAMILY: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const CONNECT: u8 = 1;
const RECONFIGURE: u8 = 3;
const ERROR: u16 = 2;

/// Numbers of the NBD family's attributes.
mod attribute {
    pub(crate) const INDEX: u16 = 1;
    pub(crate) const SIZE_BYTES: u16 = 2;
    pub(crate) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(crate) const TIMEOUT: u16 = 4;
    pub(crate) const SERVER_FLAGS: u16 = 5;
    pub(crate) const SOCKETS: u16 = 7;
    pub(crate) const DEAD_CONN_TIMEOUT: u16 = 8;
    pub(crate) const SOCKET_ITEM: u16 = 1;
    pub(crate) const SOCKET_FD: u16 = 1;
    pub(crate) const NESTED: u16 = 0x8000;
}

/// An attribute: length and number, then the value, padded.
fn attribute(number: u16, value: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = u16::try_from(value.len() + 4)?.to_le_bytes().to_vec();
    bytes.extend(number.to_le_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(bytes)
}

fn sockets(streams: &[&TcpStream]) -> Result<Vec<u8>> {
    let mut items = Vec::new();
    for stream in streams {
        let fd = attribute(attribute::SOCKET_FD, &stream.as_raw_fd().to_le_bytes())?;
        items.extend(attribute(attribute::SOCKET_ITEM | attribute::NESTED, &fd)?);
    }
    attribute(attribute::SOCKETS | attribute::NESTED, &items)
}

/// The kernel's configuration interface.
struct Kernel {
    socket: OwnedFd,
    family: u16,
}

impl Kernel {
    fn new() -> Result<Kernel> {
        let socket = socket(
            AddressFamily::NETLINK,
            SocketType::RAW,
            Some(netlink::GENERIC),
        )?;
        let mut kernel = Kernel {
            socket,
            family: CONTROL_FAMILY,
        };
        let name = attribute(FAMILY_NAME, b"nbd\0")?;
        let answer = kernel
            .ask(GET_FAMILY, &name)
            .context("find the kernel's nbd family")?;
        kernel.family = find(&answer, FAMILY_ID).context("an answer without a family")?;
        Ok(kernel)
    }

    /// Sends a command; what it answers before its acknowledgement.
    fn ask(&self, command: u8, attributes: &[u8]) -> Result<Vec<u8>> {
        let request_and_ack: u16 = 1 | 4;
        let mut message = u32::try_from(20 + attributes.len())?.to_le_bytes().to_vec();
        message.extend(self.family.to_le_bytes());
        message.extend(request_and_ack.to_le_bytes());
        // Sequence and port: the kernel fills in what matters.
        message.extend([0; 8]);
        message.extend([command, 1, 0, 0]);
        message.extend(attributes);
        sendto(
            &self.socket,
            &message,
            SendFlags::empty(),
            &SocketAddrNetlink::new(0, 0),
        )?;
        let mut answer = Vec::new();
        loop {
            let mut bytes = vec![0; 65536];
            let (len, _) = recv(&self.socket, &mut bytes, RecvFlags::empty())?;
            let bytes = bytes.get(..len).unwrap_or_default();
            let kind = bytes.get(4..6).context("a short answer")?;
            if u16::from_le_bytes(kind.try_into()?) != ERROR {
                answer = bytes.to_vec();
                continue;
            }
            let error = bytes.get(16..20).context("a short answer")?;
            match i32::from_le_bytes(error.try_into()?) {
                0 => return Ok(answer),
                error => bail!(std::io::Error::from_raw_os_error(-error)),
            }
        }
    }
}

/// A 16-bit attribute behind the two heads of an answer.
fn find(answer: &[u8], wanted: u16) -> Option<u16> {
    let mut rest = answer.get(20..)?;
    loop {
        let field = |at: usize| Some(u16::from_le_bytes(rest.get(at..at + 2)?.try_into().ok()?));
        if field(2)? == wanted {
            return field(4);
        }
        rest = rest.get(usize::from(field(0)?.max(4)).next_multiple_of(4)..)?;
    }
}

fn connect(address: &str) -> TcpStream {
    loop {
        match Client::connect(address).and_then(Client::into_stream) {
            Ok(stream) => return stream,
            Err(_) => pause(RETRY),
        }
    }
}

fn run(words: &[String]) -> Result<()> {
    let [address, index, connections] = words else {
        bail!("expected ADDRESS INDEX CONNECTIONS");
    };
    let index = attribute(attribute::INDEX, &index.parse::<u32>()?.to_le_bytes())?;
    let first = Client::connect(address)?;
    let (size, flags) = (first.size, u64::from(first.flags));
    let mut streams = vec![first.into_stream()?];
    while streams.len() < connections.parse()? {
        streams.push(connect(address));
    }
    let kernel = Kernel::new()?;
    let mut attributes = index.clone();
    for (number, value) in [
        (attribute::SIZE_BYTES, size),
        (attribute::BLOCK_SIZE_BYTES, BLOCK_BYTES),
        (attribute::TIMEOUT, REQUEST_SECONDS),
        (attribute::SERVER_FLAGS, flags),
        (attribute::DEAD_CONN_TIMEOUT, GRACE_SECONDS),
    ] {
        attributes.extend(attribute(number, &value.to_le_bytes())?);
    }
    attributes.extend(sockets(&streams.iter().collect::<Vec<_>>())?);
    kernel.ask(CONNECT, &attributes).context("attach")?;
    loop {
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut polled: Vec<_> = streams.iter().map(|s| PollFd::new(s, gone)).collect();
        poll(&mut polled, None)?;
        let dead: Vec<_> = polled
            .iter()
            .map(|fd| fd.revents().intersects(gone))
            .collect();
        for (stream, _) in streams.iter_mut().zip(dead).filter(|(_, dead)| *dead) {
            *stream = connect(address);
            let mut attributes = index.clone();
            attributes.extend(sockets(&[&*stream])?);
            if kernel.ask(RECONFIGURE, &attributes).is_err() {
                // The device was disconnected.
                return Ok(());
            }
        }
        ensure!(!streams.is_empty(), "expected at least one connection");
    }
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "nbd_attach: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
