//! The two ways into the kernel behind one face: operations go in, completions come out. The rest
//! of the crate does not know which one is at work.

mod plain;
mod pool;
mod spin;
mod uring;

use crate::error::RuntimeError;
use core::time::Duration;
use std::io;
use std::os::fd::RawFd;

/// Which way to use.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Backend {
    /// io_uring where the kernel allows it, else plain with a logged reason.
    #[default]
    Auto,
    /// io_uring; fails where it is forbidden.
    Uring,
    /// epoll and a few threads for the disk.
    Plain,
}

/// A descriptor as the backend knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FdRef {
    pub(crate) raw: RawFd,
    /// Index in the ring's table of registered files.
    pub(crate) fixed: Option<u32>,
}

/// What a descriptor is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FdUse {
    /// Receives, sends, a connect.
    Stream,
    /// Accepts, waiting for readability.
    Input,
    /// Disk operations.
    Disk,
}

/// A piece of memory lent to the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) start: *mut u8,
    pub(crate) len: u32,
    /// Index of the registered buffer that it lies in, if the region was registered.
    pub(crate) region: Option<u16>,
}

// SAFETY: a piece is an address that its owner has lent to an operation; the thread that carries
// the operation out is its only user until the completion is reported.
unsafe impl Send for Piece {}

/// One operation of the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SysOp {
    /// Result: the new descriptor.
    Accept,
    /// Result: 0.
    Connect {
        address: *const libc::sockaddr,
        len: libc::socklen_t,
    },
    /// Result: bytes, 0 at the end of the stream. `all`: prefer to wait for all of them.
    /// `expect_wait`: nothing is there yet, as far as one can tell.
    Receive {
        piece: Piece,
        all: bool,
        expect_wait: bool,
    },
    /// Result: bytes. `quick`: its `len` bytes are expected to fit into the socket at once, and
    /// nobody waits for the completion, which may come with the next one of anything else.
    Send {
        message: *const libc::msghdr,
        len: u32,
        quick: bool,
    },
    /// Completes when there is something to read.
    Readable,
    /// Result: bytes.
    Read { piece: Piece, offset: u64 },
    /// Result: bytes.
    Write {
        piece: Piece,
        offset: u64,
        dsync: bool,
    },
    /// fdatasync.
    Sync,
    /// fallocate.
    Allocate { mode: i32, offset: u64, len: u64 },
    /// A command of the file's driver; io_uring only. `elements`: the address of what it reads, or 0.
    Command {
        op: u32,
        bytes: [u8; 16],
        elements: u64,
    },
    /// A command of the file's driver that completes again and again, each time with a buffer of this
    /// group; io_uring only.
    FetchTags {
        op: u32,
        bytes: [u8; 16],
        group: u16,
    },
}

/// How an operation ended: as the system call's result, negative errors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) key: u64,
    pub(crate) result: i32,
    /// After a receive: the socket has more. After a fetch: it goes on.
    pub(crate) more: bool,
    /// The buffer that a fetch has filled.
    pub(crate) buffer: Option<u16>,
}

/// How long to wait for a first completion. `ZERO`: just look.
pub(crate) type Wait = Duration;

/// The backend chosen.
#[derive(Debug)]
pub(crate) enum Driver {
    Uring(Box<uring::Uring>),
    Plain(Box<plain::Plain>),
}

impl Driver {
    pub(crate) fn new(
        wanted: Backend,
        regions: u32,
        spin: Duration,
    ) -> Result<Driver, RuntimeError> {
        match wanted {
            Backend::Plain => Ok(Driver::Plain(Box::new(plain::Plain::new()?))),
            Backend::Uring => Ok(Driver::Uring(Box::new(uring::Uring::new(regions, spin)?))),
            Backend::Auto => match uring::Uring::new(regions, spin) {
                Ok(ring) => Ok(Driver::Uring(Box::new(ring))),
                Err(error) => {
                    tracing::warn!(%error, "io_uring is not usable: using plain system calls");
                    Driver::new(Backend::Plain, regions, spin)
                }
            },
        }
    }

    pub(crate) fn backend(&self) -> Backend {
        match self {
            Driver::Uring(_) => Backend::Uring,
            Driver::Plain(_) => Backend::Plain,
        }
    }

    /// Makes a descriptor known. It stays open until [`Driver::detach`].
    pub(crate) fn attach(&mut self, raw: RawFd, usage: FdUse) -> Result<FdRef, RuntimeError> {
        match self {
            Driver::Uring(ring) => ring.attach(raw, usage),
            Driver::Plain(plain) => plain.attach(raw, usage),
        }
    }

    /// Forgets a descriptor, on which nothing is in flight.
    pub(crate) fn detach(&mut self, fd: FdRef) {
        match self {
            Driver::Uring(ring) => ring.detach(fd),
            Driver::Plain(plain) => plain.detach(fd),
        }
    }

    /// Registers a super-block of the arena, if the kernel allows it.
    ///
    /// # Safety
    /// The region stays mapped until the driver is dropped.
    pub(crate) unsafe fn register(&mut self, index: u32, start: *mut u8, len: u32) -> bool {
        match self {
            // SAFETY: the caller's promise is passed on.
            Driver::Uring(ring) => unsafe { ring.register(index, start, len) },
            Driver::Plain(_) => false,
        }
    }

    /// Queues an operation; its completion carries `key`.
    ///
    /// # Safety
    /// The memory that the operation names stays valid, and is used by nobody else in a conflicting
    /// way, until its completion has come out of [`Driver::enter`].
    pub(crate) unsafe fn submit(&mut self, key: u64, fd: FdRef, op: SysOp) {
        match self {
            // SAFETY: the caller's promise is passed on.
            Driver::Uring(ring) => unsafe { ring.submit(key, fd, op) },
            // SAFETY: the caller's promise is passed on.
            Driver::Plain(plain) => unsafe { plain.submit(key, fd, op) },
        }
    }

    /// Gives a group of buffers to the kernel, by a ring of so many entries; io_uring only.
    ///
    /// # Safety
    /// The ring starts a page, and it and its buffers stay valid until [`Driver::take_buffers`], or
    /// until the process ends.
    pub(crate) unsafe fn give_buffers(
        &mut self,
        group: u16,
        ring: *mut u8,
        entries: u16,
    ) -> io::Result<()> {
        match self {
            // SAFETY: the caller's promise is passed on.
            Driver::Uring(uring) => unsafe { uring.give_buffers(group, ring, entries) },
            Driver::Plain(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Takes a group of buffers back, which no operation uses.
    pub(crate) fn take_buffers(&mut self, group: u16) {
        if let Driver::Uring(uring) = self {
            uring.take_buffers(group);
        }
    }

    /// Asks for an early end of the operation with this key; its completion still comes.
    pub(crate) fn cancel(&mut self, key: u64, fd: FdRef) {
        match self {
            Driver::Uring(ring) => ring.cancel(key),
            Driver::Plain(plain) => plain.cancel(key, fd),
        }
    }

    /// Submits what is queued, waits at most `wait` for a completion, and appends all there are.
    pub(crate) fn enter(
        &mut self,
        wait: Wait,
        out: &mut Vec<Completion>,
    ) -> Result<(), RuntimeError> {
        match self {
            Driver::Uring(ring) => ring.enter(wait, out),
            Driver::Plain(plain) => plain.enter(wait, out),
        }
    }

    /// Operations whose completion has not come out yet.
    pub(crate) fn in_flight(&self) -> usize {
        match self {
            Driver::Uring(ring) => ring.in_flight(),
            Driver::Plain(plain) => plain.in_flight(),
        }
    }

    /// System calls made for submitting and waiting.
    pub(crate) fn enters(&self) -> u64 {
        match self {
            Driver::Uring(ring) => ring.enters(),
            Driver::Plain(plain) => plain.enters(),
        }
    }
}
