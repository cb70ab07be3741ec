//! Listening sockets of the loop: one accept in flight each, as long as there is room.

use crate::address::Address;
use crate::backend::{FdRef, FdUse, SysOp};
use crate::conn::{Conn, Link, Phase};
use crate::error::RuntimeError;
use crate::io::{Event, Io, Key, ListenerId};
use crate::limits::{ACCEPT_RETRY_PAUSE, LISTENERS_MAX};
use crate::sockets::{self, Listening};
use socket2::Socket;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Errors of `accept` that are about the connection that was to come, not about the listener.
fn is_passing(error: i32) -> bool {
    let network = [
        libc::ENETDOWN,
        libc::EHOSTUNREACH,
        libc::ENETUNREACH,
        libc::EHOSTDOWN,
    ];
    let passing = [
        libc::ECONNABORTED,
        libc::EAGAIN,
        libc::EINTR,
        libc::EPROTO,
        libc::ECANCELED,
    ];
    passing.contains(&error) || network.contains(&error)
}

#[derive(Debug)]
pub(crate) struct Listener {
    listening: Listening,
    fd: FdRef,
    accepting: bool,
    stopping: bool,
}

impl Io {
    /// Binds and listens; each connection is announced by [`crate::Handler::accepted`]. A Unix
    /// socket left behind by a dead process is replaced.
    ///
    /// # Errors
    /// When the address is in use or not allowed, or [`LISTENERS_MAX`] listen.
    pub fn listen(&mut self, address: &Address) -> Result<ListenerId, RuntimeError> {
        let listening = sockets::listen(address)?;
        self.add_listener(listening)
    }

    /// Takes over a socket that listens already (see [`crate::activated_listeners`]).
    ///
    /// # Errors
    /// When it is no socket, or [`LISTENERS_MAX`] listen.
    pub fn listen_on(&mut self, socket: OwnedFd) -> Result<ListenerId, RuntimeError> {
        let what = "adopt a listening socket";
        let socket = Socket::from(socket);
        let listens = socket
            .is_listener()
            .map_err(|error| RuntimeError::new(what, error))?;
        if !listens {
            let why = "it does not listen";
            return Err(RuntimeError::own(what, io::ErrorKind::InvalidInput, why));
        }
        let mut listening =
            sockets::adopt(socket).map_err(|error| RuntimeError::new(what, error))?;
        // Whoever made its file removes it.
        listening.inode = None;
        self.add_listener(listening)
    }

    fn add_listener(&mut self, listening: Listening) -> Result<ListenerId, RuntimeError> {
        let free = self.listeners.iter().position(Option::is_none);
        let index = free.unwrap_or(self.listeners.len());
        if index >= LISTENERS_MAX {
            let what = format!("listen on {}", listening.address);
            let why = format!("{LISTENERS_MAX} sockets listen already");
            return Err(RuntimeError::own(what, io::ErrorKind::QuotaExceeded, why));
        }
        let fd = self
            .driver
            .attach(listening.socket.as_raw_fd(), FdUse::Input)?;
        let listener = Listener {
            listening,
            fd,
            accepting: false,
            stopping: false,
        };
        if index == self.listeners.len() {
            self.listeners.push(None);
        }
        self.listeners[index] = Some(listener);
        let id = u32::try_from(index).unwrap_or(u32::MAX);
        self.accept(id);
        Ok(ListenerId(id))
    }

    /// Where a listener listens: with the port that the kernel chose.
    pub fn local_address(&self, listener: ListenerId) -> Option<&Address> {
        let entry = self.listeners.get(listener.0 as usize)?.as_ref()?;
        Some(&entry.listening.address)
    }

    /// Where a listener listens, if it takes connections.
    pub(crate) fn open_listener(&self, listener: ListenerId) -> Option<&Address> {
        let entry = self.listeners.get(listener.0 as usize)?.as_ref()?;
        (!entry.stopping).then_some(&entry.listening.address)
    }

    /// Stops listening. Connections stay.
    pub fn stop_listening(&mut self, listener: ListenerId) {
        let Some(Some(entry)) = self.listeners.get_mut(listener.0 as usize) else {
            return;
        };
        if entry.stopping {
            return;
        }
        entry.stopping = true;
        sockets::remove_own(&entry.listening);
        let (fd, accepting) = (entry.fd, entry.accepting);
        if accepting {
            self.driver.cancel(Key::Accept(listener.0).pack(), fd);
        } else {
            self.drop_listener(listener.0);
        }
    }

    fn drop_listener(&mut self, index: u32) {
        if let Some(entry) = self.listeners[index as usize].take() {
            self.driver.detach(entry.fd);
        }
    }

    /// Waits for the next connection of a listener, if there is room for one.
    fn accept(&mut self, index: u32) {
        if self.conns.is_full() || self.accept_retry.is_some() {
            return;
        }
        let Some(Some(listener)) = self.listeners.get_mut(index as usize) else {
            return;
        };
        if listener.accepting || listener.stopping {
            return;
        }
        listener.accepting = true;
        let fd = listener.fd;
        // SAFETY: the accept asks for no address, so it names no memory.
        unsafe {
            self.driver
                .submit(Key::Accept(index).pack(), fd, SysOp::Accept)
        };
    }

    /// Lets all listeners accept again, after there was no room.
    pub(crate) fn accept_all(&mut self) {
        for index in 0..self.listeners.len() {
            self.accept(u32::try_from(index).unwrap_or(u32::MAX));
        }
    }

    pub(crate) fn accept_completed(&mut self, index: u32, result: i32) {
        let Some(Some(listener)) = self.listeners.get_mut(index as usize) else {
            return;
        };
        listener.accepting = false;
        let stopping = listener.stopping;
        let is_tcp = matches!(listener.listening.address, Address::Tcp(_));
        if result >= 0 {
            let socket = sockets::accepted(result);
            if !stopping {
                self.open_accepted(ListenerId(index), socket, is_tcp);
            }
        } else if !stopping && !is_passing(-result) {
            let error = io::Error::from_raw_os_error(-result);
            tracing::warn!(%error, "cannot accept a connection: pausing");
            self.accept_retry = Some(self.now.after(ACCEPT_RETRY_PAUSE));
        }
        if stopping {
            self.drop_listener(index);
        } else {
            self.accept(index);
        }
    }

    fn open_accepted(&mut self, listener: ListenerId, socket: Socket, is_tcp: bool) {
        let peer = match socket.peer_addr() {
            Ok(peer) if is_tcp => Address::from_socket(&peer),
            _ => Address::Unix(std::path::PathBuf::new()),
        };
        sockets::no_delay(&socket, &peer);
        let (id, slot) = self.conns.reserve();
        let Some(slot) = slot else {
            tracing::warn!(%peer, "too many connections: one is dropped");
            return;
        };
        match self.driver.attach(socket.as_raw_fd(), FdUse::Stream) {
            Ok(fd) => {
                let link = Link::Socket { socket, fd };
                let conn = Conn::new(id, Phase::Open, link, peer);
                self.conns.put(slot, Box::new(conn));
                self.stats.connections += 1;
                self.events.push_back(Event::Accepted(listener, id));
                self.events.push_back(Event::Opened(id));
            }
            Err(error) => {
                tracing::warn!(%error, %peer, "a connection is dropped");
                self.conns.unreserve(slot);
            }
        }
    }
}
