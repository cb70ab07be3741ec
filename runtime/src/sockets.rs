//! Making sockets: listening ones (stale Unix sockets replaced, systemd's adopted) and dialled ones.

use crate::address::Address;
use crate::error::RuntimeError;
use crate::limits::LISTEN_BACKLOG;
use rustix::io::{FdFlags, fcntl_setfd};
use socket2::{Domain, Socket, Type};
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// First descriptor that systemd passes.
const LISTEN_FDS_START: RawFd = 3;
/// Most descriptors taken over; more are an error of the unit file.
const LISTEN_FDS_MAX: i32 = 16;

/// A bound and listening socket, with the inode of its Unix socket file if it has one.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) socket: Socket,
    pub(crate) address: Address,
    pub(crate) inode: Option<u64>,
}

fn stream_socket(address: &Address) -> io::Result<Socket> {
    let domain = match address {
        Address::Tcp(address) => Domain::for_address(*address),
        Address::Unix(_) => Domain::UNIX,
    };
    // socket2 sets close-on-exec.
    Socket::new(domain, Type::STREAM, None)
}

/// Binds and listens. A Unix socket file that nobody listens on is replaced.
pub(crate) fn listen(address: &Address) -> Result<Listening, RuntimeError> {
    let what = || format!("listen on {address}");
    let socket = stream_socket(address).map_err(|error| RuntimeError::new(what(), error))?;
    let target = address
        .to_socket()
        .map_err(|error| RuntimeError::new(what(), error))?;
    match address {
        Address::Tcp(_) => {
            socket
                .set_reuse_address(true)
                .map_err(|error| RuntimeError::new(what(), error))?;
        }
        Address::Unix(path) => {
            remove_stale(path).map_err(|error| RuntimeError::new(what(), error))?
        }
    }
    socket
        .bind(&target)
        .map_err(|error| RuntimeError::new(what(), error))?;
    socket
        .listen(LISTEN_BACKLOG)
        .map_err(|error| RuntimeError::new(what(), error))?;
    adopt(socket).map_err(|error| RuntimeError::new(what(), error))
}

/// A socket that is bound and listens already.
pub(crate) fn adopt(socket: Socket) -> io::Result<Listening> {
    let address = Address::from_socket(&socket.local_addr()?);
    let inode = match &address {
        Address::Unix(path) => fs::symlink_metadata(path).ok().map(|entry| entry.ino()),
        Address::Tcp(_) => None,
    };
    Ok(Listening {
        socket,
        address,
        inode,
    })
}

/// Removes a socket file whose process is gone; an error when somebody listens or it is no socket.
fn remove_stale(path: &Path) -> io::Result<()> {
    let entry = match fs::symlink_metadata(path) {
        Ok(entry) => entry,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !entry.file_type().is_socket() {
        let why = "address in use: a file that is no socket is in the way";
        return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(&socket2::SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        // Connected, or its backlog is full: somebody is there.
        Ok(()) | Err(_) => {
            let why = "address in use: another process listens on it";
            Err(io::Error::new(io::ErrorKind::AddrInUse, why))
        }
    }
}

/// Removes the socket file of a listener, unless somebody has put another one there.
pub(crate) fn remove_own(listening: &Listening) {
    let (Address::Unix(path), Some(inode)) = (&listening.address, listening.inode) else {
        return;
    };
    if fs::symlink_metadata(path).is_ok_and(|entry| entry.ino() == inode)
        && let Err(error) = fs::remove_file(path)
    {
        tracing::debug!(path = %path.display(), %error, "cannot remove socket file");
    }
}

/// A socket to dial `address` with, and the address in the kernel's form.
pub(crate) fn dialling(address: &Address) -> io::Result<(Socket, socket2::SockAddr)> {
    let target = address.to_socket()?;
    let socket = stream_socket(address)?;
    Ok((socket, target))
}

/// No delay for small frames: the loop does the batching. Unix sockets have no such option.
pub(crate) fn no_delay(socket: &Socket, address: &Address) {
    if let Address::Tcp(_) = address
        && let Err(error) = socket.set_tcp_nodelay(true)
    {
        tracing::debug!(%address, %error, "cannot set TCP_NODELAY");
    }
}

/// The listening sockets passed by systemd (`LISTEN_FDS`, `LISTEN_PID`), to be given to
/// [`crate::Io::listen_on`]. To be called once, before other threads start.
///
/// # Errors
/// When `LISTEN_FDS` is no number between 0 and 16.
pub fn activated_listeners() -> Result<Vec<OwnedFd>, RuntimeError> {
    let ours = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let count = std::env::var("LISTEN_FDS").unwrap_or_default();
    if !ours || count.is_empty() {
        return Ok(Vec::new());
    }
    let count = count
        .parse()
        .ok()
        .filter(|count| (0..=LISTEN_FDS_MAX).contains(count));
    let Some(count) = count else {
        let kind = io::ErrorKind::InvalidInput;
        return Err(RuntimeError::own(
            "read LISTEN_FDS",
            kind,
            "expected a number from 0 to 16",
        ));
    };
    let mut sockets = Vec::new();
    for raw in LISTEN_FDS_START..LISTEN_FDS_START + count {
        // SAFETY: LISTEN_PID names this process, so by the sd_listen_fds protocol these
        // descriptors are open and belong to us; the doc comment allows one call only.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        if let Err(error) = fcntl_setfd(&socket, FdFlags::CLOEXEC) {
            return Err(RuntimeError::new(format!("adopt descriptor {raw}"), error));
        }
        sockets.push(socket);
    }
    Ok(sockets)
}

/// The socket that an `accept` has just made.
pub(crate) fn accepted(raw: RawFd) -> Socket {
    // SAFETY: `raw` is the result of an accept of this loop, which nobody else has seen.
    unsafe { Socket::from_raw_fd(raw) }
}
