//! When a loop that waits looks for events itself before it sleeps in the kernel.
//!
//! Waking a processor that sleeps costs more than many of the waits of a busy loop last, most of all
//! in a virtual machine. So a loop that is told to looks out for some time first, but only while events
//! come that fast: after [`SPIN_AFTER`] waits in a row that ended within the limit. An idle loop sleeps.

use crate::limits::{SPIN_AFTER, SPIN_TIME_MAX};
use core::time::Duration;
use trilith_block::Monotonic;

/// How long to look out, and whether it is worth it.
#[derive(Debug)]
pub(super) struct Spin {
    limit: Duration,
    /// Waits in a row that ended within the limit.
    short: u32,
}

impl Spin {
    /// Looks out for `limit`, at most [`SPIN_TIME_MAX`]; zero: never.
    pub(super) fn new(limit: Duration) -> Spin {
        Spin {
            limit: limit.min(SPIN_TIME_MAX),
            short: 0,
        }
    }

    pub(super) fn is_on(&self) -> bool {
        !self.limit.is_zero()
    }

    /// Until when a wait of at most `wait` that begins now looks out; nothing: it sleeps at once.
    pub(super) fn until(&self, now: Monotonic, wait: Duration) -> Option<Monotonic> {
        let pays = self.is_on() && self.short >= SPIN_AFTER && !wait.is_zero();
        pays.then(|| now.after(self.limit.min(wait)))
    }

    /// A wait is over.
    pub(super) fn waited(&mut self, time: Duration) {
        self.short = if time < self.limit {
            self.short.saturating_add(1)
        } else {
            0
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(300);
    const NOW: Monotonic = Monotonic(1_000_000_000);
    const LONG: Duration = Duration::from_secs(1);

    fn hot() -> Spin {
        let mut spin = Spin::new(LIMIT);
        for _ in 0..SPIN_AFTER {
            assert_eq!(spin.until(NOW, LONG), None);
            spin.waited(Duration::from_micros(50));
        }
        spin
    }

    #[test]
    fn looks_out_only_while_events_come_fast() {
        let mut spin = hot();
        assert_eq!(spin.until(NOW, LONG), Some(NOW.after(LIMIT)));
        spin.waited(LIMIT);
        assert_eq!(spin.until(NOW, LONG), None);
    }

    #[test]
    fn looks_out_no_longer_than_it_may_wait() {
        let spin = hot();
        let wait = Duration::from_micros(20);
        assert_eq!(spin.until(NOW, wait), Some(NOW.after(wait)));
        assert_eq!(spin.until(NOW, Duration::ZERO), None);
    }

    #[test]
    fn without_a_limit_it_never_looks_out_and_a_limit_is_bounded() {
        let mut spin = Spin::new(Duration::ZERO);
        for _ in 0..2 * SPIN_AFTER {
            spin.waited(Duration::ZERO);
        }
        assert_eq!(spin.until(NOW, LONG), None);
        let mut spin = Spin::new(LONG);
        for _ in 0..SPIN_AFTER {
            spin.waited(Duration::ZERO);
        }
        assert_eq!(spin.until(NOW, LONG), Some(NOW.after(SPIN_TIME_MAX)));
    }
}
