//! How fast a rebuild may copy: a controller that gives way to clients, and a token bucket.
//!
//! The controller sees the clients' 99th percentile of each interval and compares it with a
//! *baseline*, what it was without the rebuild. Additive increase, multiplicative decrease: under
//! pressure the rate falls to 7/10, else it rises by 1/32 of the maximum; an idle volume doubles it.
//! Pressure is a p99 above 3/2 of the baseline plus 1 ms, or more than 256 requests queued. Since
//! the baseline can be wrong (load changes), it follows: down towards a lower p99 by 1/8 per
//! interval, and up by 1/8 when the p99 is high although the rate has been at its minimum, for then
//! the rebuild is not the cause. The rate never leaves its bounds, so a rebuild always ends.

use core::time::Duration;
use trilith_block::Monotonic;

/// Requests waiting or in flight above which clients are under pressure whatever their latency.
const QUEUE_DEPTH_PRESSURE: u32 = 256;
/// Fewer completions than this in an interval say nothing about a 99th percentile.
const COMPLETED_MIN: u64 = 20;
/// What the p99 may rise above 3/2 of the baseline: noise of fast devices.
const SLACK: Duration = Duration::from_millis(1);
/// The bucket holds what flows in this time.
const BURST: Duration = Duration::from_millis(50);
/// Lowest rate that a configuration can ask for: one chunk a second.
const RATE_FLOOR: u64 = 64 * 1024;

/// Bounds of the rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RateConfig {
    /// Never slower, so that a rebuild always ends. Raised to one chunk a second.
    pub bytes_per_second_min: u64,
    /// Never faster. Raised to the minimum.
    pub bytes_per_second_max: u64,
}

impl Default for RateConfig {
    fn default() -> Self {
        RateConfig {
            bytes_per_second_min: 8 << 20,
            bytes_per_second_max: 1 << 30,
        }
    }
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
    min: u64,
    max: u64,
    rate: u64,
    baseline: Duration,
}

impl RateController {
    /// A controller that starts half way between its bounds. `baseline` is the clients' p99 without the rebuild; zero
    /// when unknown (the first interval with enough requests then sets it).
    pub fn new(config: RateConfig, baseline: Duration) -> RateController {
        let min = config.bytes_per_second_min.max(RATE_FLOOR);
        let max = config.bytes_per_second_max.max(min);
        RateController {
            min,
            max,
            rate: min + (max - min) / 2,
            baseline,
        }
    }

    /// Bytes per second now.
    pub fn bytes_per_second(&self) -> u64 {
        self.rate
    }

    /// What the clients' p99 is held against.
    pub fn baseline(&self) -> Duration {
        self.baseline
    }

    /// One interval has passed.
    pub fn update(&mut self, load: Load) {
        let telling = COMPLETED_MIN <= load.completed;
        if telling && self.baseline.is_zero() {
            self.baseline = load.p99;
        }
        let allowed = self.baseline.saturating_mul(3) / 2 + SLACK;
        let slow = telling && allowed < load.p99;
        if slow || QUEUE_DEPTH_PRESSURE < load.queue_depth {
            if slow && self.rate == self.min {
                self.baseline += (load.p99 - self.baseline) / 8;
            }
            self.rate = self.rate - self.rate / 10 * 3;
        } else if load.completed == 0 && load.queue_depth == 0 {
            self.rate = self.rate.saturating_mul(2);
        } else {
            self.rate = self.rate.saturating_add(self.max / 32);
        }
        if telling && load.p99 < self.baseline {
            self.baseline -= (self.baseline - load.p99) / 8;
        }
        self.rate = self.rate.clamp(self.min, self.max);
    }
}

/// A bucket of bytes. It may go into debt by one copy, so a copy longer than the bucket passes too.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Nano-bytes (bytes x 10^9), below zero in debt: no rounding is lost between refills.
    level: i128,
    at: Monotonic,
}

const NANO: i128 = 1_000_000_000;

impl Bucket {
    /// A full bucket.
    pub(crate) fn new(now: Monotonic, rate: u64) -> Bucket {
        Bucket {
            level: Self::capacity(rate),
            at: now,
        }
    }

    fn capacity(rate: u64) -> i128 {
        i128::from(rate) * i128::try_from(BURST.as_nanos()).unwrap_or(0)
    }

    pub(crate) fn refill(&mut self, now: Monotonic, rate: u64) {
        let passed = i128::try_from(now.since(self.at).as_nanos()).unwrap_or(0);
        self.at = self.at.max(now);
        self.level = (self.level + passed * i128::from(rate)).min(Self::capacity(rate));
    }

    /// True when a copy may start.
    pub(crate) fn is_open(&self) -> bool {
        0 <= self.level
    }

    pub(crate) fn take(&mut self, bytes: u64) {
        self.level -= i128::from(bytes) * NANO;
    }

    /// Gives back what turned out to be cheap.
    pub(crate) fn refund(&mut self, bytes: u64, rate: u64) {
        self.level = (self.level + i128::from(bytes) * NANO).min(Self::capacity(rate));
    }

    /// When a copy may start again.
    pub(crate) fn opens_at(&self, rate: u64) -> Monotonic {
        let debt = (-self.level).max(0);
        let nanos = (debt + i128::from(rate) - 1) / i128::from(rate.max(1));
        self.at.after(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }
}
