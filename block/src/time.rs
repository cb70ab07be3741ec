//! Time as machines see it.

use core::time::Duration;

/// Nanoseconds of CLOCK_BOOTTIME (it counts suspend) on this host. Never compared across hosts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// The instant `span` later; saturates.
    #[must_use]
    pub fn after(self, span: Duration) -> Monotonic {
        Monotonic(
            self.0
                .saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)),
        )
    }

    /// Time from `earlier` to this instant; zero when `earlier` is not earlier.
    pub fn since(self, earlier: Monotonic) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}
