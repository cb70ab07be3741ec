//! Signals as events: blocked for the thread and read from a signalfd.

use crate::error::RuntimeError;
use crate::handler::Signal;
use core::mem::MaybeUninit;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

fn number(signal: Signal) -> i32 {
    match signal {
        Signal::Terminate => libc::SIGTERM,
        Signal::Interrupt => libc::SIGINT,
        Signal::Hangup => libc::SIGHUP,
        Signal::Child => libc::SIGCHLD,
        Signal::User1 => libc::SIGUSR1,
    }
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is writable memory for a sigset_t.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: sigemptyset has initialized it; it cannot fail with a valid pointer.
    unsafe { set.assume_init() }
}

/// Blocks `signals` on this thread (and on those it starts later) and opens a descriptor that is
/// readable when one has arrived.
pub(crate) fn open(signals: &[Signal]) -> Result<OwnedFd, RuntimeError> {
    let mut set = empty_set();
    for signal in signals {
        // SAFETY: `set` is initialized and the number is a valid signal's.
        unsafe { libc::sigaddset(&raw mut set, number(*signal)) };
    }
    // SAFETY: `set` is initialized; the old mask is not asked for.
    let failed =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, core::ptr::null_mut()) };
    if failed != 0 {
        return Err(RuntimeError::new(
            "block signals",
            io::Error::from_raw_os_error(failed),
        ));
    }
    // SAFETY: `set` is initialized; -1 asks for a new descriptor.
    let raw = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if raw < 0 {
        return Err(RuntimeError::new(
            "make a signalfd",
            io::Error::last_os_error(),
        ));
    }
    // SAFETY: signalfd has just made this descriptor and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Runs `start` with all signals blocked, so that threads started in it never receive one.
pub(crate) fn with_all_blocked<T>(start: impl FnOnce() -> T) -> T {
    let mut all = empty_set();
    // SAFETY: `all` is initialized.
    unsafe { libc::sigfillset(&raw mut all) };
    let mut old = empty_set();
    // SAFETY: both sets are initialized memory of the right type.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old) };
    let result = start();
    // SAFETY: `old` holds the mask that was in force before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, core::ptr::null_mut()) };
    result
}

/// The next signal that has arrived.
#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel's record is in the host's order"
)]
pub(crate) fn next(fd: &OwnedFd) -> Option<Signal> {
    let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
    let length = rustix::io::read(fd, &mut record).ok()?;
    if length < record.len() {
        return None;
    }
    // The signal's number is the first field, a u32 in the machine's order.
    let found = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
    Signal::ALL
        .into_iter()
        .find(|signal| u32::try_from(number(*signal)) == Ok(found))
}
