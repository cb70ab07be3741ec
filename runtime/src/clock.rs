//! The two clocks. Nothing else in the workspace reads one.

use rustix::time::{ClockId, clock_gettime};
use trilith_block::Monotonic;

/// CLOCK_BOOTTIME: never jumps, counts suspend.
pub fn now() -> Monotonic {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    Monotonic(
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(nanoseconds),
    )
}

/// Seconds since 1970 by CLOCK_REALTIME. For people to read; no decision may rest on it.
pub fn unix_seconds() -> u64 {
    u64::try_from(clock_gettime(ClockId::Realtime).tv_sec).unwrap_or(0)
}
