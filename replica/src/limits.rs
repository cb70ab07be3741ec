//! Limits of the replica machine. Those of the store are in [`crate::store`]'s own `limits`.

use core::time::Duration;

/// Peers that have not proved themselves yet, at one time. One more is closed at once.
pub const GUESTS_MAX: usize = 8;
/// Sessions of engines, at one time. One more takes the place of the longest idle one if that has
/// been silent for [`SESSION_IDLE`], else it is refused (Busy).
pub const SESSIONS_MAX: usize = 8;
/// Connections that are being closed but not gone yet. Beyond, new connections are closed at once.
pub const CLOSING_MAX: usize = 32;
/// Time from the connection to WELCOME. A peer that needs longer is closed.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(3);
/// Silence after which a session may be replaced by another engine's.
pub const SESSION_IDLE: Duration = Duration::from_secs(10);
/// Lease that each APPEND, FLUSH and HEARTBEAT of the promised engine grants (5.5).
pub const LEASE: Duration = Duration::from_secs(3);
/// READs of one session that have not been answered. At the limit the session is not read from.
pub const READS_MAX: usize = 256;
/// REPAIRs of one session that have not been answered. At the limit the session is not read from.
pub const REPAIRS_MAX: usize = 256;
/// Longest READ in blocks: its answer is one frame.
pub const READ_BLOCKS_MAX: u32 =
    trilith_wire::limits::PAYLOAD_BYTES_MAX / trilith_block::limits::BLOCK_BYTES;
/// Payload bytes an engine may have in flight here, by default. Told as a credit; what exceeds the
/// arena waits in the socket.
pub const CREDIT_BYTES: u32 = 32 * 1024 * 1024;
/// Window slots that are never given as credit, so that a resend always finds room.
pub const WINDOW_RESERVE: u32 = 64;
/// Device operations whose latency is measured at one time; those beyond are not measured.
pub const TIMED_MAX: usize = 1024;

const _: () = assert!(GUESTS_MAX > 0 && SESSIONS_MAX > 0);
const _: () = assert!(READ_BLOCKS_MAX as usize * 4 <= trilith_wire::limits::EXT_BYTES_MAX);
