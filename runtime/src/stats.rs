//! Counters of the loop, for metrics. Latency is measured by the machines.

/// Totals since the loop was made.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Stats {
    /// Turns of the loop.
    pub turns: u64,
    /// System calls that submit and wait (`io_uring_enter` or `epoll_wait`).
    pub enters: u64,
    /// Receives that brought something.
    pub receives: u64,
    /// Receives straight into a payload buffer.
    pub direct_receives: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Headers and payloads delivered.
    pub frames: u64,
    /// `sendmsg` operations.
    pub sends: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Disk requests completed.
    pub disk_ops: u64,
    /// Bytes of disk reads and writes completed.
    pub disk_bytes: u64,
    /// Connections accepted or dialled with success.
    pub connections: u64,
}
