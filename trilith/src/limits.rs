//! Maxima of this crate: unit, reason, and what happens when one is reached.

use core::time::Duration;

/// Longest head of an admin request, in bytes. Reached: 431 and the connection is closed.
pub(crate) const HTTP_HEAD_BYTES_MAX: usize = 4096;
/// Longest body of an admin request, in bytes. Reached: 413 and the connection is closed.
pub(crate) const HTTP_BODY_BYTES_MAX: usize = 1024;
/// Admin connections open at once. Reached: a new one is closed.
pub(crate) const HTTP_CONNECTIONS_MAX: usize = 16;
/// Time that an admin connection may take for its request. Reached: it is closed.
pub(crate) const HTTP_REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
/// Longest answer that `status` and friends read from an admin endpoint, in bytes. Reached: error.
pub(crate) const HTTP_ANSWER_BYTES_MAX: u64 = 4 << 20;
/// Time that an admin endpoint may take to answer. Reached: it counts as not answering.
pub(crate) const HTTP_ANSWER_TIME_MAX: Duration = Duration::from_secs(2);

/// How often `status --watch` asks.
pub(crate) const WATCH_PERIOD: Duration = Duration::from_secs(1);

/// Longest line between `up` and its children, in bytes. Reached: the rest is cut off.
pub(crate) const LINE_BYTES_MAX: usize = 4096;

/// First pause before a crashed child is started again.
pub(crate) const RESTART_PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause before a crashed child is started again.
pub(crate) const RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);
/// A child that ran this long starts again with the shortest pause.
pub(crate) const HEALTHY_AFTER: Duration = Duration::from_secs(10);
/// Time that the engine gets to drain and seal, and the replicas to close. Reached: SIGKILL.
pub(crate) const STOP_TIME_MAX: Duration = Duration::from_secs(20);
/// How long `up` waits for the engine of an `up` that has died to let go of the volume.
pub(crate) const OLD_ENGINE_WAIT_MAX: Duration = Duration::from_secs(10);

/// Memory of a witness: it takes no payload, and 384 KiB for its store.
pub(crate) const WITNESS_MEMORY_BYTES: u64 = 2 << 20;

/// How long one grant of exclusive reading lasts (M13). It ends by itself when `up` hangs.
pub(crate) const GRANT_TIME: Duration = Duration::from_secs(15);
/// How often `up` renews it.
pub(crate) const GRANT_RENEWAL: Duration = Duration::from_secs(5);

/// How long a replica waits for the lock of its data file, that is for the last write of its
/// predecessor to land (K1). Reached: it exits and its supervisor tries again.
pub(crate) const DATA_LOCK_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long a process waits for an address that is in use: the kernel keeps the sockets of one that
/// was killed until its ring is torn down. Reached: the address is somebody else's, an error.
pub(crate) const LISTEN_WAIT_MAX: Duration = Duration::from_secs(5);
/// Time between two tries to listen.
pub(crate) const LISTEN_RETRY: Duration = Duration::from_millis(20);
/// How often a replica measures the room on its file system.
pub(crate) const SPACE_CHECK_PERIOD: Duration = Duration::from_secs(10);
/// Time that a dial of a replica may take. The engine has a limit of its own for dial and handshake.
pub(crate) const DIAL_TIME_MAX: Duration = Duration::from_secs(2);
/// Pause before a ublk device that could not be opened is tried again.
pub(crate) const UBLK_RETRY: Duration = Duration::from_secs(5);
/// Time that the ublk device of a volume which somebody else has taken over gets to go. Reached: the
/// process leaves, and the device waits for the next server or `trilith ublk delete`.
pub(crate) const UBLK_LEAVE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long an entry for a replica that a majority can do without may wait in the engine. Reached: it
/// is sent, and who of the others has not answered is the next that waits.
pub(crate) const HOLD_TIME_MAX: Duration = Duration::from_millis(5);
/// Entries for such a replica that wait for nothing, after each completion.
pub(crate) const HOLD_AFTER: u32 = 2;
/// How long all entries are sent at once after such a miss.
pub(crate) const HOLD_PAUSE: Duration = Duration::from_millis(100);
/// Rounds in which machines settle within one turn. Reached: the next turn does not sleep.
pub(crate) const SETTLE_ROUNDS_MAX: usize = 4;
/// Time in which a stopping process must have sent its last bytes. Reached: it exits anyway.
pub(crate) const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// Pause of the thread that keeps reservations before it tells a loop again that had no room.
pub(crate) const KEEPER_RETRY: Duration = Duration::from_millis(10);
/// How long `up` waits for its default iSCSI address, which the engine of an `up` that was killed
/// may still hold. Reached: it is somebody else's, and the volume is served without iSCSI.
pub(crate) const ISCSI_WAIT_MAX: Duration = Duration::from_secs(2);

/// Bytes of zeroes written at once where a range cannot be punched or zeroed otherwise.
pub(crate) const ZERO_STEP_BYTES: u32 = 256 * 1024;

/// Requests that wait because the engine is full. Frontends have lower limits of their own.
pub(crate) const PENDING_REQUESTS_MAX: usize = 65_536;
/// Longest state file read, in bytes. Reached: it is refused.
pub(crate) const STATE_BYTES_MAX: u64 = 64 << 10;
/// Length of a volume's secret, in bytes.
pub(crate) const SECRET_BYTES: usize = 32;
/// Longest name of a volume, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 128;

/// Upper bounds of the latency buckets, in microseconds. Fixed, so that series of different
/// versions can be added.
pub(crate) const LATENCY_BUCKETS_US: [u64; 24] = [
    10, 20, 35, 50, 75, 100, 150, 200, 350, 500, 750, 1_000, 1_500, 2_000, 3_500, 5_000, 10_000,
    20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 10_000_000,
];

const _: () = assert!(GRANT_RENEWAL.as_secs() * 2 < GRANT_TIME.as_secs());
const _: () = assert!(RESTART_PAUSE_MIN.as_millis() < RESTART_PAUSE_MAX.as_millis());

/// Longest path of a new replica's directory: its hexadecimal digits fit a line and a request.
pub(crate) const DIR_BYTES_MAX: usize = 1024;
const _: () = assert!(DIR_BYTES_MAX * 2 + 256 < LINE_BYTES_MAX);
const _: () = assert!(DIR_BYTES_MAX * 2 + 256 < HTTP_HEAD_BYTES_MAX);

/// Time that `up` may take to remember a replacement that was asked for.
pub(crate) const REPLACE_WAIT_MAX: Duration = Duration::from_secs(10);
/// Slowest scrub that can be asked for, in bytes per second.
pub(crate) const SCRUB_RATE_MIN: u64 = 1 << 20;
/// Fastest one.
pub(crate) const SCRUB_RATE_MAX: u64 = 64 << 30;
/// Days between scrubs, unless told otherwise.
pub(crate) const SCRUB_DAYS: u32 = 30;
/// Pause between two looks at a scrub that is waited for.
pub(crate) const SCRUB_LOOK_PAUSE: Duration = Duration::from_millis(200);
