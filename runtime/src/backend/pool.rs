//! Threads that do the disk calls of the plain backend, behind bounded queues.

use super::{Completion, Piece};
use crate::error::RuntimeError;
use crate::limits::{DISK_IN_FLIGHT_MAX, DISK_THREADS};
use crate::waker::{new_event, ring, silence};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread::JoinHandle;

/// A disk call.
#[derive(Clone, Copy, Debug)]
pub(super) enum DiskCall {
    Read {
        piece: Piece,
        offset: u64,
    },
    Write {
        piece: Piece,
        offset: u64,
        dsync: bool,
    },
    Sync,
    Allocate {
        mode: i32,
        offset: u64,
        len: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Job {
    key: u64,
    fd: RawFd,
    call: DiskCall,
}

#[derive(Debug)]
pub(super) struct Pool {
    jobs: Option<Sender<Job>>,
    done: Receiver<Completion>,
    pub(super) event: Arc<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(super) fn new() -> Result<Pool, RuntimeError> {
        // Room for all that may be in flight, so neither side ever waits.
        let (jobs, queue) = bounded::<Job>(DISK_IN_FLIGHT_MAX);
        let (results, done) = bounded(DISK_IN_FLIGHT_MAX);
        let event = Arc::new(new_event()?);
        let start = || -> io::Result<Vec<JoinHandle<()>>> {
            (0..DISK_THREADS)
                .map(|index| {
                    let (queue, results) = (queue.clone(), results.clone());
                    let event = Arc::clone(&event);
                    std::thread::Builder::new()
                        .name(format!("trilith-disk-{index}"))
                        .spawn(move || work(&queue, &results, &event))
                })
                .collect()
        };
        let threads = crate::signals::with_all_blocked(start)
            .map_err(|error| RuntimeError::new("start a disk thread", error))?;
        Ok(Pool {
            jobs: Some(jobs),
            done,
            event,
            threads,
        })
    }

    /// Hands a call to a thread.
    ///
    /// # Safety
    /// The descriptor stays open, and the memory valid and otherwise unused, until the completion
    /// has come out of [`Pool::reap`].
    pub(super) unsafe fn start(&self, key: u64, fd: RawFd, call: DiskCall) {
        let Some(jobs) = &self.jobs else { return };
        let sent = jobs.try_send(Job { key, fd, call });
        assert!(
            sent.is_ok(),
            "more disk calls in flight than {DISK_IN_FLIGHT_MAX}"
        );
    }

    /// Takes the completions there are.
    pub(super) fn reap(&self, out: &mut Vec<Completion>) {
        silence(&self.event);
        out.extend(self.done.try_iter());
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a disk thread has panicked");
            }
        }
    }
}

fn work(queue: &Receiver<Job>, results: &Sender<Completion>, event: &OwnedFd) {
    for Job { key, fd, call } in queue {
        let result = perform(fd, call);
        if results
            .send(Completion {
                key,
                result,
                more: false,
                buffer: None,
            })
            .is_err()
        {
            return;
        }
        ring(event);
    }
}

/// The result as io_uring would give it.
fn perform(fd: RawFd, call: DiskCall) -> i32 {
    let answer = match call {
        DiskCall::Read { piece, offset } => transfer(fd, piece, offset, None),
        DiskCall::Write {
            piece,
            offset,
            dsync,
        } => transfer(
            fd,
            piece,
            offset,
            Some(if dsync { libc::RWF_DSYNC } else { 0 }),
        ),
        DiskCall::Sync => {
            // SAFETY: by the contract of `start` the descriptor is open until we report.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            rustix::fs::fdatasync(fd)
                .map(|()| 0)
                .map_err(io::Error::from)
        }
        DiskCall::Allocate { mode, offset, len } => {
            // SAFETY: by the contract of `start` the descriptor is open until we report.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            let bits = mode.cast_unsigned();
            let mode = rustix::fs::FallocateFlags::from_bits_retain(bits);
            rustix::fs::fallocate(fd, mode, offset, len)
                .map(|()| 0)
                .map_err(io::Error::from)
        }
    };
    match answer {
        Ok(bytes) => bytes,
        Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
    }
}

/// One `pread`, or one `pwritev2` with flags.
fn transfer(fd: RawFd, piece: Piece, offset: u64, write: Option<i32>) -> io::Result<i32> {
    let start = piece.start.cast::<libc::c_void>();
    let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let iov = libc::iovec {
        iov_base: start,
        iov_len: piece.len as usize,
    };
    let result = match write {
        // SAFETY: the descriptor is open and the piece is writable memory that nobody else uses
        // until we report (contract of `start`).
        None => unsafe { libc::preadv(fd, &raw const iov, 1, offset) },
        // SAFETY: the descriptor is open and the piece is readable memory that nobody writes until
        // we report (contract of `start`).
        Some(flags) => unsafe { libc::pwritev2(fd, &raw const iov, 1, offset, flags) },
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(i32::try_from(result).unwrap_or(0))
    }
}
