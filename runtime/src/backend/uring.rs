//! The io_uring backend: one ring, one thread, one `io_uring_enter` a turn.
//!
//! Set up with the best flags the kernel takes, fewer where it refuses. Descriptors go into the
//! ring's table of registered files and super-blocks of the arena into its registered buffers,
//! each only if the kernel allows it. Queue operations need the memory promise of
//! [`super::Driver::submit`]; the ring is only ever used by the thread that made it.

use super::spin::Spin;
use super::{Completion, FdRef, FdUse, SysOp, Wait};
use crate::error::RuntimeError;
use crate::limits::{
    CONNECTIONS_MAX, FILES_MAX, LISTENERS_MAX, RING_COMPLETIONS, RING_ENTRIES, RING_ENTRIES_SMALL,
};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use trilith_block::Monotonic;

/// Key of cancel requests, whose own completions mean nothing.
const CANCEL_KEY: u64 = u64::MAX;
/// Key of quick sends, with their place in `Uring::quick` below it. Only those that did not go as
/// expected complete by themselves.
const QUICK_KEY: u64 = 1 << 63;
/// `ioprio` flag of receives: do not try before the socket has polled readable (Linux 5.19).
const POLL_FIRST: u16 = 1;
/// Flag of a command: it completes more than once (Linux 6.18).
const CMD_MULTISHOT: u32 = 1 << 1;
const _: () = assert!(size_of::<squeue::Entry>() == 64);
/// Registered files: connections, listeners, data files, and a few event descriptors.
const FILES_REGISTERED_MAX: u32 = 1700;
const _: () = assert!(CONNECTIONS_MAX + FILES_MAX + LISTENERS_MAX + 8 <= 1700);
/// Registered buffers: the kernel's own maximum.
const REGIONS_MAX: u32 = 16384;

/// A send that the kernel carries out while it takes it over, and completes only when it did less:
/// once the submission queue is empty, silence means success.
#[derive(Clone, Copy)]
struct QuickSend {
    key: u64,
    fd: FdRef,
    message: *const libc::msghdr,
    len: u32,
    /// What the kernel said, if it did.
    result: Option<i32>,
}

pub(crate) struct Uring {
    ring: IoUring,
    /// Quick sends not yet completed. At most one a connection.
    quick: Vec<QuickSend>,
    can_be_quick: bool,
    /// Free indices of the table of registered files; empty when there is no table.
    files_free: Vec<u32>,
    /// Registered buffers possible.
    regions: u32,
    in_flight: usize,
    spin: Spin,
    enters: u64,
    poll_first: bool,
    /// Entries that found the submission queue full; they go first at the next enter. Bounded by
    /// what may be in flight.
    backlog: VecDeque<squeue::Entry>,
}

impl core::fmt::Debug for Uring {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Uring")
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

/// Tries set-ups from the best to the plainest.
fn build(entries: u32, completions: u32) -> io::Result<(IoUring, &'static str)> {
    let mut last = io::Error::from_raw_os_error(libc::ENOSYS);
    for level in 0..4 {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(completions).setup_clamp();
        let name = match level {
            0 => {
                builder
                    .setup_single_issuer()
                    .setup_defer_taskrun()
                    .setup_taskrun_flag()
                    .setup_submit_all();
                builder.setup_no_sqarray();
                "single issuer, deferred task work, no submission array"
            }
            1 => {
                builder
                    .setup_single_issuer()
                    .setup_defer_taskrun()
                    .setup_taskrun_flag()
                    .setup_submit_all();
                "single issuer, deferred task work"
            }
            2 => {
                builder
                    .setup_coop_taskrun()
                    .setup_taskrun_flag()
                    .setup_submit_all();
                "cooperative task work"
            }
            _ => "no flags",
        };
        match builder.build(entries) {
            Ok(ring) => return Ok((ring, name)),
            // EINVAL: a flag unknown to this kernel. Anything else will not change with flags.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

impl Uring {
    pub(super) fn new(regions: u32, spin: Wait) -> Result<Uring, RuntimeError> {
        let fail = |error: io::Error| RuntimeError::new("set up io_uring", error);
        let (ring, flags) = match build(RING_ENTRIES, RING_COMPLETIONS) {
            // Old kernels, and users with a low limit: the queues count as locked memory.
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                build(RING_ENTRIES_SMALL, 4 * RING_ENTRIES_SMALL)
            }
            other => other,
        }
        .map_err(fail)?;
        check(&ring).map_err(fail)?;
        let submitter = ring.submitter();
        // The table may not be longer than RLIMIT_NOFILE.
        let lengths = [FILES_REGISTERED_MAX, 900, 512, 128];
        let files = lengths
            .into_iter()
            .find(|len| submitter.register_files_sparse(*len).is_ok());
        if files.is_none() {
            tracing::info!("io_uring: files are not registered");
        }
        let files_free: Vec<u32> = (0..files.unwrap_or(0)).rev().collect();
        let wanted = regions.min(REGIONS_MAX);
        let regions = match submitter.register_buffers_sparse(wanted.max(1)) {
            Ok(()) => wanted,
            Err(error) => {
                tracing::info!(%error, "io_uring: buffers are not registered");
                0
            }
        };
        tracing::debug!(
            flags,
            files = files_free.len(),
            regions,
            "io_uring is set up"
        );
        // POLL_FIRST and COOP_TASKRUN came with the same kernel, 5.19.
        let poll_first = flags != "no flags";
        let can_be_quick = ring.params().is_feature_skip_cqe_on_success();
        Ok(Uring {
            ring,
            quick: Vec::new(),
            can_be_quick,
            files_free,
            regions,
            in_flight: 0,
            spin: Spin::new(spin),
            enters: 0,
            poll_first,
            backlog: VecDeque::new(),
        })
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn enters(&self) -> u64 {
        self.enters
    }

    pub(super) fn attach(&mut self, raw: RawFd, usage: FdUse) -> Result<FdRef, RuntimeError> {
        if usage != FdUse::Disk {
            // On a non-blocking socket the ring would give EAGAIN instead of waiting.
            // SAFETY: the caller keeps the descriptor open until `detach`.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(raw) };
            if rustix::fs::fcntl_getfl(fd).is_ok_and(|f| f.contains(rustix::fs::OFlags::NONBLOCK))
                && rustix::net::sockopt::socket_type(fd).is_ok()
            {
                rustix::io::ioctl_fionbio(fd, false)
                    .map_err(|error| RuntimeError::new(format!("adopt descriptor {raw}"), error))?;
            }
        }
        let Some(index) = self.files_free.pop() else {
            return Ok(FdRef { raw, fixed: None });
        };
        match self.ring.submitter().register_files_update(index, &[raw]) {
            Ok(_) => Ok(FdRef {
                raw,
                fixed: Some(index),
            }),
            Err(error) => {
                tracing::debug!(%error, "io_uring: a file is not registered");
                self.files_free.push(index);
                Ok(FdRef { raw, fixed: None })
            }
        }
    }

    pub(super) fn detach(&mut self, fd: FdRef) {
        let Some(index) = fd.fixed else { return };
        match self.ring.submitter().register_files_update(index, &[-1]) {
            Ok(_) => self.files_free.push(index),
            // The slot stays taken, and the file open, until the ring is gone.
            Err(error) => tracing::warn!(%error, "io_uring: cannot give a file back"),
        }
    }

    /// # Safety
    /// The region stays mapped until the ring is dropped.
    pub(super) unsafe fn register(&mut self, index: u32, start: *mut u8, len: u32) -> bool {
        if index >= self.regions {
            return false;
        }
        let region = libc::iovec {
            iov_base: start.cast(),
            iov_len: len as usize,
        };
        // SAFETY: the region stays mapped until the ring is dropped (contract above).
        let result = unsafe {
            self.ring
                .submitter()
                .register_buffers_update(index, &[region], None)
        };
        if let Err(error) = &result {
            // ENOMEM: RLIMIT_MEMLOCK. What is registered stays so; no need to try again.
            tracing::info!(%error, index, "io_uring: the rest of the arena is not registered");
            self.regions = index;
        }
        result.is_ok()
    }

    /// # Safety
    /// As [`super::Driver::give_buffers`].
    pub(super) unsafe fn give_buffers(
        &mut self,
        group: u16,
        ring: *mut u8,
        entries: u16,
    ) -> io::Result<()> {
        let submitter = self.ring.submitter();
        // SAFETY: the caller's promise is passed on.
        unsafe { submitter.register_buf_ring_with_flags(ring as u64, entries, group, 0) }
    }

    pub(super) fn take_buffers(&mut self, group: u16) {
        if let Err(error) = self.ring.submitter().unregister_buf_ring(group) {
            tracing::warn!(%error, "io_uring: cannot take buffers back");
        }
    }

    /// # Safety
    /// As [`super::Driver::submit`].
    pub(super) unsafe fn submit(&mut self, key: u64, fd: FdRef, op: SysOp) {
        let (raw, mut flags) = match fd.fixed {
            // The crate's two descriptor types share no public trait; this is what its own
            // `Fixed` does.
            Some(index) => (
                RawFd::try_from(index).unwrap_or(-1),
                squeue::Flags::FIXED_FILE,
            ),
            None => (fd.raw, squeue::Flags::empty()),
        };
        let raw = types::Fd(raw);
        let (entry, key) = match op {
            SysOp::Send {
                message,
                len,
                quick: true,
            } if self.can_be_quick => {
                let place = self.quick.len() as u64;
                self.quick.push(QuickSend {
                    key,
                    fd,
                    message,
                    len,
                    result: None,
                });
                flags |= squeue::Flags::SKIP_SUCCESS;
                (
                    send_entry(raw, message, libc::MSG_DONTWAIT),
                    QUICK_KEY | place,
                )
            }
            op => {
                if matches!(op, SysOp::FetchTags { .. }) {
                    flags |= squeue::Flags::BUFFER_SELECT;
                }
                (entry_of(raw, op, self.poll_first), key)
            }
        };
        // SAFETY: the caller's promise covers what the entry names until the completion.
        unsafe { self.push(&entry.flags(flags).user_data(key)) };
    }

    pub(super) fn cancel(&mut self, key: u64) {
        let entry = opcode::AsyncCancel::new(key).build().user_data(CANCEL_KEY);
        // SAFETY: a cancel request names no memory.
        unsafe { self.push(&entry) };
    }

    /// # Safety
    /// What the entry names stays valid until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        self.in_flight += 1;
        if self.backlog.is_empty() {
            // SAFETY: the caller's promise is passed on.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full: hand it over early. What fails here fails again at the enter.
            self.enters += 1;
            if let Err(error) = self.ring.submit() {
                tracing::debug!(%error, "early submission");
            }
            // SAFETY: the caller's promise is passed on.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry.clone());
    }

    fn push_backlog(&mut self) {
        while let Some(entry) = self.backlog.front() {
            // SAFETY: `push` was promised that the memory is valid until the completion, which
            // cannot come before this.
            if unsafe { self.ring.submission().push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    pub(super) fn enter(
        &mut self,
        wait: Wait,
        out: &mut Vec<Completion>,
    ) -> Result<(), RuntimeError> {
        self.push_backlog();
        // Nothing to wait for: completions are there, or all that is in flight are quick sends.
        let at_once = !self.ring.completion().is_empty()
            || self.ring.submission().cq_overflow()
            || (!self.quick.is_empty() && self.in_flight == self.quick.len());
        // With a time limit of zero the call still runs the kernel's deferred work.
        let wait = if at_once { Wait::ZERO } else { wait };
        if self.spin.is_on() {
            let begun = crate::clock::now();
            let left = match self.spin.until(begun, wait) {
                Some(until) => self.look_out(begun, until, wait)?,
                None => wait,
            };
            self.enter_kernel(Some(left))?;
            self.spin.waited(crate::clock::now().since(begun));
        } else {
            self.enter_kernel(Some(wait))?;
        }
        self.reap(out);
        Ok(())
    }

    /// Submits, and looks for completions without sleeping. Returns how long to sleep then.
    fn look_out(
        &mut self,
        begun: Monotonic,
        until: Monotonic,
        wait: Wait,
    ) -> Result<Wait, RuntimeError> {
        if !self.ring.submission().is_empty() {
            self.enter_kernel(None)?;
        }
        loop {
            // Work that the kernel has deferred is done by the next call.
            if self.ring.submission().taskrun() || !self.ring.completion().is_empty() {
                return Ok(Wait::ZERO);
            }
            let now = crate::clock::now();
            if now >= until {
                return Ok(wait.saturating_sub(now.since(begun)));
            }
            // Those whose events are looked for may need this processor to bring them about.
            std::thread::yield_now();
        }
    }

    /// The system call: submits and waits at most `wait`, or only submits.
    fn enter_kernel(&mut self, wait: Option<Wait>) -> Result<(), RuntimeError> {
        self.enters += 1;
        let result = match wait {
            Some(wait) => {
                let timeout = types::Timespec::from(wait);
                let args = types::SubmitArgs::new().timespec(&timeout);
                self.ring.submitter().submit_with_args(1, &args)
            }
            None => self.ring.submit(),
        };
        match result.map_err(|error| (error.raw_os_error(), error)) {
            // Time is up; a signal; the kernel wants its completions reaped first.
            Ok(_) | Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => {
                Ok(())
            }
            Err((_, error)) => Err(RuntimeError::new("io_uring_enter", error)),
        }
    }

    /// Takes the completions there are.
    fn reap(&mut self, out: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            let key = entry.user_data();
            if key == CANCEL_KEY {
                self.in_flight -= 1;
            } else if key & QUICK_KEY != 0 {
                let place = usize::try_from(key & !QUICK_KEY).unwrap_or(usize::MAX);
                if let Some(send) = self.quick.get_mut(place) {
                    send.result = Some(entry.result());
                }
            } else {
                let flags = entry.flags();
                let goes_on = cqueue::more(flags);
                self.in_flight -= usize::from(!goes_on);
                out.push(Completion {
                    key,
                    result: entry.result(),
                    more: goes_on || cqueue::sock_nonempty(flags),
                    buffer: cqueue::buffer_select(flags),
                });
            }
        }
        self.end_quick(out);
    }

    /// Completes the quick sends that the kernel has taken over. Those that found the socket full
    /// are sent again, with a completion.
    fn end_quick(&mut self, out: &mut Vec<Completion>) {
        let queue = self.ring.submission();
        // What the kernel said may still lie behind a full completion queue.
        if self.quick.is_empty()
            || !self.backlog.is_empty()
            || !queue.is_empty()
            || queue.cq_overflow()
        {
            return;
        }
        drop(queue);
        self.in_flight -= self.quick.len();
        let mut quick = core::mem::take(&mut self.quick);
        for send in quick.drain(..) {
            let sent = i32::try_from(send.len).unwrap_or(i32::MAX);
            let result = send.result.unwrap_or(sent);
            if result == -libc::EAGAIN {
                let op = SysOp::Send {
                    message: send.message,
                    len: send.len,
                    quick: false,
                };
                // SAFETY: whoever submitted it has not had its completion yet, so that the promise
                // made then still holds.
                unsafe { self.submit(send.key, send.fd, op) };
            } else {
                out.push(Completion {
                    key: send.key,
                    result,
                    more: false,
                    buffer: None,
                });
            }
        }
        self.quick = quick;
    }
}

/// What the backend cannot do without.
fn check(ring: &IoUring) -> io::Result<()> {
    let params = ring.params();
    let features = [
        (params.is_feature_nodrop(), "NODROP"),
        (params.is_feature_ext_arg(), "EXT_ARG"),
        (params.is_feature_submit_stable(), "SUBMIT_STABLE"),
        (params.is_feature_fast_poll(), "FAST_POLL"),
    ];
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let operations = [
        (opcode::Accept::CODE, "ACCEPT"),
        (opcode::Connect::CODE, "CONNECT"),
        (opcode::Recv::CODE, "RECV"),
        (opcode::SendMsg::CODE, "SENDMSG"),
        (opcode::PollAdd::CODE, "POLL_ADD"),
        (opcode::Read::CODE, "READ"),
        (opcode::Write::CODE, "WRITE"),
        (opcode::ReadFixed::CODE, "READ_FIXED"),
        (opcode::WriteFixed::CODE, "WRITE_FIXED"),
        (opcode::Fsync::CODE, "FSYNC"),
        (opcode::Fallocate::CODE, "FALLOCATE"),
        (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
    ];
    let operations = operations.map(|(code, name)| (probe.is_supported(code), name));
    match features.iter().chain(&operations).find(|(there, _)| !there) {
        None => Ok(()),
        Some((_, name)) => {
            let why = format!("this kernel lacks {name}");
            Err(io::Error::new(io::ErrorKind::Unsupported, why))
        }
    }
}

fn send_entry(fd: types::Fd, message: *const libc::msghdr, flags: i32) -> squeue::Entry {
    let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL | flags).unsigned_abs();
    opcode::SendMsg::new(fd, message).flags(flags).build()
}

#[cfg(target_endian = "big")]
compile_error!("a field of the kernel's is written in little-endian order here");

/// Makes a command one that completes again and again, each time with a buffer of a group. The crate
/// has no words for that.
fn again(command: squeue::Entry, group: u16) -> squeue::Entry {
    // SAFETY: both are 64 bytes without padding (asserted above), and any bytes are an entry.
    let mut bytes: [u8; 64] = unsafe { core::mem::transmute(command) };
    bytes[28..32].copy_from_slice(&CMD_MULTISHOT.to_le_bytes());
    bytes[40..42].copy_from_slice(&group.to_le_bytes());
    // SAFETY: as above.
    unsafe { core::mem::transmute(bytes) }
}

fn entry_of(fd: types::Fd, op: SysOp, poll_first: bool) -> squeue::Entry {
    match op {
        SysOp::Accept => opcode::Accept::new(fd, core::ptr::null_mut(), core::ptr::null_mut())
            .flags(libc::SOCK_CLOEXEC)
            .build(),
        SysOp::Connect { address, len } => opcode::Connect::new(fd, address, len).build(),
        SysOp::Receive {
            piece,
            all,
            expect_wait,
        } => {
            let flags = if all { libc::MSG_WAITALL } else { 0 };
            let ioprio = if poll_first && expect_wait {
                POLL_FIRST
            } else {
                0
            };
            opcode::Recv::new(fd, piece.start, piece.len)
                .flags(flags)
                .ioprio(ioprio)
                .build()
        }
        SysOp::Send { message, .. } => send_entry(fd, message, 0),
        SysOp::Readable => opcode::PollAdd::new(fd, u32::from(libc::POLLIN.unsigned_abs())).build(),
        SysOp::Read { piece, offset } => match piece.region {
            Some(region) => opcode::ReadFixed::new(fd, piece.start, piece.len, region)
                .offset(offset)
                .build(),
            None => opcode::Read::new(fd, piece.start, piece.len)
                .offset(offset)
                .build(),
        },
        SysOp::Write {
            piece,
            offset,
            dsync,
        } => {
            let flags = if dsync { libc::RWF_DSYNC } else { 0 };
            match piece.region {
                Some(region) => opcode::WriteFixed::new(fd, piece.start, piece.len, region)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
                None => opcode::Write::new(fd, piece.start, piece.len)
                    .offset(offset)
                    .rw_flags(flags)
                    .build(),
            }
        }
        SysOp::Sync => opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        SysOp::Allocate { mode, offset, len } => opcode::Fallocate::new(fd, len)
            .offset(offset)
            .mode(mode)
            .build(),
        SysOp::Command {
            op,
            bytes,
            elements,
        } => opcode::UringCmd16::new(fd, op)
            .cmd(bytes)
            .addr(Some(elements))
            .build(),
        SysOp::FetchTags { op, bytes, group } => {
            again(opcode::UringCmd16::new(fd, op).cmd(bytes).build(), group)
        }
    }
}
