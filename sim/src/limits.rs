//! Limits of the simulator. A run that reaches one has failed: something has no back-pressure, or
//! the cluster does not come to rest.

/// Bytes that may wait in one direction of one connection.
pub const RECEIVED_BYTES_MAX: usize = 64 << 20;
/// Events of one run.
pub const EVENTS_MAX: u64 = 3_000_000;
/// Bytes that an idle process may hold in its arena.
pub const IDLE_BYTES_MAX: u64 = 1 << 20;
