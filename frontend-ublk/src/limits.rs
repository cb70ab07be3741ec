//! Limits of the ublk frontend, each with its unit and the rule at the limit.

use core::time::Duration;
use trilith_block::limits::{CHUNK_BYTES, TRANSFER_BYTES_MAX};

/// Sectors have this size in every structure of the driver, whatever the block size.
pub const SECTOR_BYTES: u32 = 512;
/// log2 of [`SECTOR_BYTES`].
pub const SECTOR_SHIFT: u8 = 9;
/// Queues of a new device unless another number is asked for. One thread serves them all, so more
/// help only where many processors submit at once.
pub const QUEUES_DEFAULT: u16 = 1;
/// Most queues that a new device may be asked for. More are refused.
pub const QUEUES_MAX: u16 = 8;
/// Requests in flight in each queue. The block layer waits at the limit.
pub const DEPTH: u16 = 128;
/// Most requests in flight of a device that is taken over. A deeper one is refused.
pub const SLOTS_MAX: usize = 4096;
/// Longest read or write in bytes. The block layer splits what is longer.
pub const REQUEST_BYTES_MAX: u32 = TRANSFER_BYTES_MAX;
/// Requests in flight in each queue where the kernel copies payload to places of the slots.
pub const BOUNCE_DEPTH: u16 = 64;
/// Longest read or write there, in bytes: with eight queues, 128 MiB at the most, of which memory is taken
/// as they are used.
pub const BOUNCE_REQUEST_BYTES_MAX: u32 = 256 * 1024;
/// Longest discard or write of zeroes in bytes. The block layer splits what is longer.
pub const ZERO_BYTES_MAX: u32 = 1 << 30;
/// Unit in which discarded space is given back, in bytes. Smaller discards read back zero as well.
pub const DISCARD_GRANULARITY_BYTES: u32 = CHUNK_BYTES;
/// Payload bytes of writes that the device may hold in the arena at once. At the limit writes wait
/// in the order in which they came.
pub const PAYLOAD_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// How long a write waits for the arena before it asks again, if nothing else happens: memory can be
/// given back by somebody else, of which this frontend hears nothing.
pub const ARENA_RETRY_SPAN: Duration = Duration::from_millis(2);
/// How long taking a device over waits for its dead server's last traces to go: the kernel tears
/// its ring down and collects its requests. Reached: an error, to be tried again.
pub const RECOVERY_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long opening a fresh device waits for its node to appear. Reached: an error.
pub const NODE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Time between two tries of either.
pub const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Devices that are looked through for one of ours, and listed. Reached: the rest is not seen.
pub const DEVICES_MAX: usize = 1024;
/// Orders to a device's thread that may wait: open, stop. Reached: a bug, the order is dropped and
/// logged.
pub const ORDERS_MAX: usize = 4;

const _: () = assert!(PAYLOAD_BYTES_MAX >= REQUEST_BYTES_MAX as u64);
const _: () = assert!(ZERO_BYTES_MAX.is_multiple_of(DISCARD_GRANULARITY_BYTES));
const _: () = assert!(QUEUES_MAX <= trilith_runtime::limits::UBLK_QUEUES_MAX);
const _: () = assert!(DEPTH <= trilith_runtime::limits::UBLK_DEPTH_MAX);
const _: () = assert!(QUEUES_MAX as usize * DEPTH as usize <= SLOTS_MAX);
const _: () = assert!(
    QUEUES_MAX as u64 * BOUNCE_DEPTH as u64 * BOUNCE_REQUEST_BYTES_MAX as u64
        <= trilith_runtime::limits::UBLK_BOUNCE_BYTES_MAX
);
const _: () = assert!(1 << SECTOR_SHIFT == SECTOR_BYTES);
