//! The plain backend: non-blocking socket calls when epoll says so, disk calls on a few threads.
//!
//! It plays the completion model: an operation that cannot go on is parked with its descriptor until
//! epoll reports an edge. At most one operation per direction is parked on a descriptor.

use super::pool::{DiskCall, Pool};
use super::{Completion, FdRef, FdUse, Piece, SysOp, Wait};
use crate::error::RuntimeError;
use crate::limits::EPOLL_EVENTS_MAX;
use rustix::event::{Timespec, epoll};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// An operation waiting for readiness.
#[derive(Clone, Copy, Debug)]
struct Parked {
    key: u64,
    op: SysOp,
}

/// One descriptor under epoll. Edge-triggered: a flag stays set until a call finds nothing.
#[derive(Clone, Copy, Debug)]
struct Watch {
    readable: bool,
    writable: bool,
    /// The peer has ended its stream, or the socket failed: a receive never blocks again, and no
    /// further edge will say so.
    ended: bool,
    /// The socket failed: a send never blocks again.
    broken: bool,
    input: Option<Parked>,
    output: Option<Parked>,
}

pub(crate) struct Plain {
    epoll: OwnedFd,
    pool: Pool,
    /// By descriptor number.
    watches: Vec<Option<Watch>>,
    ready: Vec<Completion>,
    /// Completions among them that nobody waits for.
    ready_quick: usize,
    events: Vec<epoll::Event>,
    in_flight: usize,
    enters: u64,
}

impl core::fmt::Debug for Plain {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Plain")
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

/// Epoll's name for the pool's eventfd.
const POOL: u64 = u64::MAX;

impl Plain {
    pub(super) fn new() -> Result<Plain, RuntimeError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| RuntimeError::new("make an epoll instance", error))?;
        let pool = Pool::new()?;
        epoll::add(
            &epoll,
            &pool.event,
            epoll::EventData::new_u64(POOL),
            epoll::EventFlags::IN,
        )
        .map_err(|error| RuntimeError::new("watch the disk threads", error))?;
        Ok(Plain {
            epoll,
            pool,
            watches: Vec::new(),
            ready: Vec::new(),
            ready_quick: 0,
            events: Vec::with_capacity(EPOLL_EVENTS_MAX),
            in_flight: 0,
            enters: 0,
        })
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn enters(&self) -> u64 {
        self.enters
    }

    pub(super) fn attach(&mut self, raw: RawFd, usage: FdUse) -> Result<FdRef, RuntimeError> {
        let fd = FdRef { raw, fixed: None };
        if usage == FdUse::Disk {
            return Ok(fd);
        }
        let index = usize::try_from(raw).unwrap_or(0);
        // SAFETY: the caller keeps the descriptor open until `detach`.
        let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
        let fail =
            |error: rustix::io::Errno| RuntimeError::new(format!("watch descriptor {raw}"), error);
        rustix::io::ioctl_fionbio(borrowed, true).map_err(fail)?;
        let mut flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        if usage == FdUse::Stream {
            flags |= epoll::EventFlags::OUT | epoll::EventFlags::RDHUP;
        }
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.epoll, borrowed, data, flags).map_err(fail)?;
        if self.watches.len() <= index {
            self.watches.resize(index + 1, None);
        }
        self.watches[index] = Some(Watch {
            readable: false,
            writable: true,
            ended: false,
            broken: false,
            input: None,
            output: None,
        });
        Ok(fd)
    }

    pub(super) fn detach(&mut self, fd: FdRef) {
        let Some(entry) = self.watches.get_mut(usize::try_from(fd.raw).unwrap_or(0)) else {
            return;
        };
        let Some(watch) = entry.take() else { return };
        let parked = watch.input.is_some() || watch.output.is_some();
        assert!(!parked, "descriptor {} is detached with {watch:?}", fd.raw);
        // SAFETY: the caller closes the descriptor only after this.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd.raw) };
        if let Err(error) = epoll::delete(&self.epoll, borrowed) {
            tracing::debug!(%error, "epoll does not know a descriptor");
        }
    }

    /// # Safety
    /// As [`super::Driver::submit`].
    pub(super) unsafe fn submit(&mut self, key: u64, fd: FdRef, op: SysOp) {
        self.in_flight += 1;
        let call = match op {
            SysOp::Read { piece, offset } => DiskCall::Read { piece, offset },
            SysOp::Write {
                piece,
                offset,
                dsync,
            } => DiskCall::Write {
                piece,
                offset,
                dsync,
            },
            SysOp::Sync => DiskCall::Sync,
            SysOp::Allocate { mode, offset, len } => DiskCall::Allocate { mode, offset, len },
            SysOp::Command { .. } | SysOp::FetchTags { .. } => {
                let result = -libc::EOPNOTSUPP;
                let more = false;
                return self.ready.push(Completion {
                    key,
                    result,
                    more,
                    buffer: None,
                });
            }
            SysOp::Accept
            | SysOp::Connect { .. }
            | SysOp::Receive { .. }
            | SysOp::Send { .. }
            | SysOp::Readable => return self.stream(key, fd, op),
        };
        // SAFETY: the caller's promise covers descriptor and memory until the completion.
        unsafe { self.pool.start(key, fd.raw, call) };
    }

    fn watch(&mut self, raw: RawFd) -> &mut Watch {
        let known = self.watches.get_mut(usize::try_from(raw).unwrap_or(0));
        let Some(Some(watch)) = known else {
            unreachable!("descriptor {raw} is not attached")
        };
        watch
    }

    /// Tries now if it may succeed, parks otherwise.
    fn stream(&mut self, key: u64, fd: FdRef, op: SysOp) {
        let watch = self.watch(fd.raw);
        let is_output = matches!(op, SysOp::Send { .. } | SysOp::Connect { .. });
        let place = if is_output {
            &mut watch.output
        } else {
            &mut watch.input
        };
        assert!(
            place.is_none(),
            "two operations of one direction on descriptor {}",
            fd.raw
        );
        *place = Some(Parked { key, op });
        if let SysOp::Connect { address, len } = op {
            // SAFETY: the descriptor is attached, and the address is valid until the completion
            // (contract of `submit`).
            let result = unsafe { libc::connect(fd.raw, address, len) };
            let error = if result == 0 { 0 } else { last_error() };
            if error == libc::EINPROGRESS {
                // Reported by epoll as writable; the flag may be a leftover of the fresh socket.
                self.watch(fd.raw).writable = false;
            } else {
                self.watch(fd.raw).output = None;
                self.ready.push(Completion {
                    key,
                    result: -error,
                    more: false,
                    buffer: None,
                });
            }
            return;
        }
        if is_output {
            self.try_output(fd.raw)
        } else {
            self.try_input(fd.raw)
        }
    }

    fn try_input(&mut self, raw: RawFd) {
        let watch = self.watch(raw);
        if !watch.readable && !watch.ended {
            return;
        }
        let Some(Parked { key, op }) = watch.input else {
            return;
        };
        let (result, drained) = match op {
            SysOp::Accept => (accept(raw), false),
            SysOp::Receive { piece, .. } => {
                let result = receive(raw, piece);
                // A short receive has emptied the socket: the next byte makes a new edge.
                (result, result > 0 && result.unsigned_abs() < piece.len)
            }
            _ => (0, true),
        };
        let watch = self.watch(raw);
        if result == -libc::EAGAIN {
            watch.readable = false;
            return;
        }
        if drained {
            watch.readable = false;
        }
        watch.input = None;
        let more = watch.readable || watch.ended;
        self.ready.push(Completion {
            key,
            result,
            more,
            buffer: None,
        });
    }

    fn try_output(&mut self, raw: RawFd) {
        let watch = self.watch(raw);
        if !watch.writable && !watch.broken {
            return;
        }
        let Some(Parked { key, op }) = watch.output else {
            return;
        };
        let (result, quick_len) = match op {
            SysOp::Send {
                message,
                len,
                quick,
            } => (send(raw, message), quick.then_some(len)),
            _ => (-connect_error(raw), None),
        };
        let watch = self.watch(raw);
        if result == -libc::EAGAIN {
            watch.writable = false;
            return;
        }
        watch.output = None;
        if quick_len.is_some_and(|len| u32::try_from(result) == Ok(len)) {
            self.ready_quick += 1;
        }
        self.ready.push(Completion {
            key,
            result,
            more: false,
            buffer: None,
        });
    }

    pub(super) fn cancel(&mut self, key: u64, fd: FdRef) {
        let Some(Some(watch)) = self.watches.get_mut(usize::try_from(fd.raw).unwrap_or(0)) else {
            return;
        };
        for place in [&mut watch.input, &mut watch.output] {
            if place.is_some_and(|parked| parked.key == key) {
                *place = None;
                self.ready.push(Completion {
                    key,
                    result: -libc::ECANCELED,
                    more: false,
                    buffer: None,
                });
            }
        }
    }

    pub(super) fn enter(
        &mut self,
        wait: Wait,
        out: &mut Vec<Completion>,
    ) -> Result<(), RuntimeError> {
        let only_quick = self.ready.len() == self.ready_quick;
        let wait = if self.ready.is_empty() || (only_quick && self.in_flight > self.ready_quick) {
            wait
        } else {
            Wait::ZERO
        };
        let timeout = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos()),
        };
        self.enters += 1;
        let mut events = core::mem::take(&mut self.events);
        events.clear();
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, spare, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(RuntimeError::new("wait for events", error)),
        }
        for event in &events {
            let data = event.data.u64();
            if data == POOL {
                self.pool.reap(&mut self.ready);
            } else {
                self.edge(data, event.flags);
            }
        }
        self.events = events;
        self.in_flight -= self.ready.len();
        self.ready_quick = 0;
        out.append(&mut self.ready);
        Ok(())
    }

    fn edge(&mut self, index: u64, flags: epoll::EventFlags) {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let Some(Some(watch)) = self.watches.get_mut(index) else {
            return;
        };
        watch.broken |= flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        watch.ended |= watch.broken || flags.intersects(epoll::EventFlags::RDHUP);
        watch.readable |= flags.intersects(epoll::EventFlags::IN);
        watch.writable |= flags.intersects(epoll::EventFlags::OUT);
        let raw = RawFd::try_from(index).unwrap_or(-1);
        self.try_input(raw);
        self.try_output(raw);
    }
}

fn last_error() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

fn as_result(result: isize) -> i32 {
    if result < 0 {
        -last_error()
    } else {
        i32::try_from(result).unwrap_or(i32::MAX)
    }
}

fn accept(raw: RawFd) -> i32 {
    let null = core::ptr::null_mut();
    // SAFETY: the descriptor is attached; no address is asked for.
    let result = unsafe { libc::accept4(raw, null, core::ptr::null_mut(), libc::SOCK_CLOEXEC) };
    if result < 0 { -last_error() } else { result }
}

fn receive(raw: RawFd, piece: Piece) -> i32 {
    let start = piece.start.cast::<libc::c_void>();
    // SAFETY: the descriptor is attached, and the piece is writable memory lent to this operation.
    as_result(unsafe { libc::recv(raw, start, piece.len as usize, libc::MSG_DONTWAIT) })
}

fn send(raw: RawFd, message: *const libc::msghdr) -> i32 {
    // SAFETY: the descriptor is attached; the message and what it names are valid until the
    // completion (contract of `submit`).
    as_result(unsafe { libc::sendmsg(raw, message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
}

/// How a connect in progress ended: 0 or an errno.
fn connect_error(raw: RawFd) -> i32 {
    // SAFETY: the descriptor is attached, hence open.
    let fd = unsafe { BorrowedFd::borrow_raw(raw) };
    match rustix::net::sockopt::socket_error(fd) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) | Err(error) => error.raw_os_error(),
    }
}
