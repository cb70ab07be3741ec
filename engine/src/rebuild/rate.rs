//! How fast a rebuild may copy.

use core::time::Duration;

/// Bounds of the rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RateConfig {
    /// Never slower, so that a rebuild always ends. At least one chunk a second.
    pub bytes_per_second_min: u64,
    /// Never faster.
    pub bytes_per_second_max: u64,
}

/// What clients saw in the last interval.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Load {
    /// Requests that completed.
    pub completed: u64,
    /// 99th percentile of their latency.
    pub p99: Duration,
    /// Requests waiting or in flight now.
    pub queue_depth: u32,
}

/// The controller.
#[derive(Debug)]
pub struct RateController {
    rate: u64,
}

impl RateController {
    /// A controller that starts at the lowest rate.
    pub fn new(config: RateConfig) -> RateController {
        RateController { rate: config.bytes_per_second_min }
    }

    /// Bytes per second now.
    pub fn bytes_per_second(&self) -> u64 {
        self.rate
    }
}
