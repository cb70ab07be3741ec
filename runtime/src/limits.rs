//! Maxima of the loop: each with its unit, its reason and what happens when it is reached.

use core::time::Duration;
use trilith_block::limits::{HEADER_BYTES_MAX, TRANSFER_BYTES_MAX};

/// Connections of one loop, dials and those still closing included. Reached: accepting stops until
/// one is gone (the kernel's backlog waits), a dial ends with `Closed` at once. More than all frontends
/// of an engine take together (iSCSI 1100, of which 1024 may still be logging in), so that strangers
/// at one of them keep neither the clients of another out nor replicas and admins.
pub const CONNECTIONS_MAX: usize = 1536;
/// Files that a process may want to have open: connections, listeners, data files and a few of its own.
pub const OPEN_FILES_MAX: u64 = 2048;
/// Listening sockets of one loop. Reached: `listen` fails.
pub const LISTENERS_MAX: usize = 16;
/// Open data files of one loop. Reached: `open_file` and `adopt` fail.
pub const FILES_MAX: usize = 64;
/// Disk operations in flight. Reached: `disk` gives the request back. Machines have lower limits of
/// their own, so it is a second fence.
pub const DISK_IN_FLIGHT_MAX: usize = 4096;
/// Bytes of one connection's receive buffer: several small frames a system call, a pipe of 32 writes
/// of 4 KiB. Allocated at the first receive; pages that are never filled cost no memory.
pub const RECEIVE_BUFFER_BYTES: usize = 128 * 1024;
/// A payload with at least this many bytes missing is received straight into its buffer; what is
/// shorter is copied out of the receive buffer, which saves a system call.
pub const DIRECT_RECEIVE_BYTES_MIN: u32 = 16 * 1024;
/// Bytes queued for one connection and not yet taken by the kernel. Reached: the connection is
/// closed, since its peer does not read. The machines stop taking requests long before: a replica
/// owes at most 256 reads of 256 KiB, an NBD server 32 MiB in each of a few requests; and what is
/// queued lies in the arena, which has a budget of its own.
pub const OUTPUT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Pieces of memory in one `sendmsg` (the kernel's UIO_MAXIOV). More go out in the next one.
pub const SEND_PIECES_MAX: usize = 1024;
/// Bytes of a send whose completion is learnt without waking for it. What is sent so stays lent while
/// the loop sleeps, hence the limit; more is sent with a completion of its own.
pub const QUICK_SEND_BYTES_MAX: u32 = 128 * 1024;
/// Bytes queued for a connection whose output is held back. Reached: they leave all the same.
pub const HELD_BYTES_MAX: usize = 512 * 1024;
/// Memory for frame heads that a connection keeps once its queue is empty, in bytes.
pub const OUTPUT_KEPT_BYTES_MAX: usize = 64 * 1024;
/// Frames delivered from one connection before the others get their turn.
pub const FRAMES_PER_ROUND_MAX: usize = 256;
/// Payload bytes delivered from one connection, if it has more, before what they have brought about is
/// submitted: so that a burst of writes is under way at the next process or at the disk while its
/// rest is still being taken apart, at the cost of a system call for eight writes of 4 KiB.
pub const ROUND_BYTES_MAX: u32 = 32 * 1024;
/// Rounds of delivery and settling in one turn before operations are submitted. Reached: the rest
/// waits for the next turn, which does not sleep.
pub const ROUNDS_PER_TURN_MAX: usize = 8;
/// How long a connection that is closed with `drain` may take to send what is queued. Reached: the
/// rest is dropped.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a closed connection waits for its peer's end of stream, so that the last bytes are not
/// lost to a reset. Reached: it is torn down.
pub const LINGER_TIME_MAX: Duration = Duration::from_secs(1);
/// Pause after an `accept` that failed for want of descriptors or memory.
pub const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Longest sleep in the kernel: bounds the effect of a lost wake-up, costs nothing measurable.
pub const SLEEP_TIME_MAX: Duration = Duration::from_secs(60);
/// Longest time that a loop looks out for events before it sleeps, if it is told to at all: more than
/// a busy disk takes for a request, little enough that a loop which guesses wrong takes no processor
/// away for long.
pub const SPIN_TIME_MAX: Duration = Duration::from_millis(10);
/// Waits in a row that must have been short before a loop looks out: more than an exchange of
/// heartbeats has, so that an idle loop sleeps.
pub const SPIN_AFTER: u32 = 16;
/// How long dropping a loop waits for the kernel to give memory back. Reached: the memory is leaked
/// rather than unmapped under the kernel's feet.
pub const DROP_WAIT_MAX: Duration = Duration::from_secs(10);
/// Times that one disk operation is started again after EINTR or EAGAIN. Reached: it fails with it.
pub const DISK_RETRIES_MAX: u8 = 16;
/// Messages from other threads that wait for the loop. Reached: the sender is told `Full`.
pub const MESSAGES_MAX: usize = 256;
/// Backlog of a listening socket, in connections; the kernel cuts it to `net.core.somaxconn`.
pub const LISTEN_BACKLOG: i32 = 256;
/// Entries of the submission queue. Reached: submitted early, with one more system call.
pub const RING_ENTRIES: u32 = 512;
/// Entries of the completion queue. Reached: the kernel keeps the overflow (NODROP is required).
pub const RING_COMPLETIONS: u32 = 4096;
/// Entries of both queues where RLIMIT_MEMLOCK has no room for the usual ones.
pub const RING_ENTRIES_SMALL: u32 = 64;
/// Queues of a ublk device. Reached: it is refused. One thread serves them all, so few are enough.
pub const UBLK_QUEUES_MAX: u16 = 16;
/// Requests in flight in each queue of a ublk device. Reached: it is refused.
pub const UBLK_DEPTH_MAX: u16 = 1024;
/// Bytes that the kernel may copy payload to when user copy is not allowed: a place as long as the
/// longest request for each slot. Beyond: the device is refused.
pub const UBLK_BOUNCE_BYTES_MAX: u64 = 256 << 20;
/// Buffers for tags of each queue of a ublk device in batch mode, each long enough for all tags. Reached:
/// the kernel ends the fetch, and gets it again with the next turn.
pub const UBLK_TAG_BUFFERS: u16 = 8;
/// Threads that do the disk calls of the plain backend.
pub const DISK_THREADS: usize = 4;
/// Readiness events taken from epoll at once; the rest comes with the next turn.
pub const EPOLL_EVENTS_MAX: usize = 256;

/// Bytes of the arena's unit of growth and of its longest buffer.
pub const SUPER_BLOCK_BYTES: u32 = TRANSFER_BYTES_MAX;
/// Arena budget when memory may be locked, in bytes.
pub const ARENA_BYTES_DEFAULT: u64 = 64 << 20;
/// Arena budget when RLIMIT_MEMLOCK forbids registering more, in bytes (8 MiB is the usual limit).
pub const ARENA_BYTES_UNLOCKED: u64 = 8 << 20;
/// A process registers at most this fraction of what its user may lock: the limit is per user, and
/// the rings of the user's other processes must fit as well. The rest of the arena works
/// unregistered.
pub const LOCKED_SHARE: u64 = 8;
/// Largest arena budget, in bytes: 2^20 pages fit a `BufId` beside its generation.
pub const ARENA_BYTES_MAX: u64 = 4 << 30;
/// Longest secret or small file read, in bytes. Reached: the file is refused.
pub const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;

/// Most bytes that a loop takes with an arena of `arena_bytes` and so many connections, for the memory
/// budget printed at start: payload lies in the arena, so a connection costs its receive buffer, its
/// frame heads (kept ones, twice: waiting and flying) and the kernel's pieces of one `sendmsg`.
pub fn memory_bytes_max(arena_bytes: u64, connections: u64) -> u64 {
    let connection = RECEIVE_BUFFER_BYTES + 2 * OUTPUT_KEPT_BYTES_MAX + 16 * SEND_PIECES_MAX;
    let rings = 64 * u64::from(RING_ENTRIES) + 16 * u64::from(RING_COMPLETIONS);
    arena_bytes + connections * connection as u64 + rings
}

/// Slot numbers of connections take this many bits of a `ConnId`.
pub(crate) const CONNECTION_SLOT_BITS: u32 = 16;

const _: () = assert!((CONNECTIONS_MAX + LISTENERS_MAX + FILES_MAX + 128) as u64 <= OPEN_FILES_MAX);
const _: () = assert!(CONNECTIONS_MAX < (1 << CONNECTION_SLOT_BITS) - 1);
const _: () = assert!(UBLK_TAG_BUFFERS.is_power_of_two());
const _: () = assert!(RECEIVE_BUFFER_BYTES >= 4 * HEADER_BYTES_MAX);
const _: () = assert!(DIRECT_RECEIVE_BYTES_MIN as usize <= RECEIVE_BUFFER_BYTES);
const _: () = assert!(ARENA_BYTES_MAX / 4096 <= 1 << 20);
