//! Latency by powers of two: 40 counters, no allocation, good to a factor of two.

use core::time::Duration;

/// Number of buckets: the last one starts at about nine minutes.
pub const BUCKETS: usize = 40;

/// Bucket `i` counts spans of at least 2^i and below 2^(i+1) nanoseconds; bucket 0 also counts
/// zero, the last bucket everything above.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Histogram {
    /// The counters.
    pub counts: [u64; BUCKETS],
    /// Sum of all spans, in nanoseconds.
    pub total_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            counts: [0; BUCKETS],
            total_ns: 0,
        }
    }
}

impl Histogram {
    /// Counts one span.
    pub fn record(&mut self, span: Duration) {
        let ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        let bucket = usize::try_from(ns.max(1).ilog2())
            .unwrap_or(BUCKETS)
            .min(BUCKETS - 1);
        self.counts[bucket] += 1;
        self.total_ns = self.total_ns.saturating_add(ns);
    }

    /// Number of spans counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Upper bound, in nanoseconds, of the bucket that holds the given fraction (in thousandths)
    /// of the spans; 0 when nothing was counted.
    pub fn quantile_ns(&self, thousandths: u64) -> u64 {
        let wanted = (self.count() * thousandths).div_ceil(1000).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return 2 << bucket;
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_fall_into_their_power_of_two() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_ns(500), 0);
        for ns in [0, 1, 2, 3, 1000, 1024] {
            histogram.record(Duration::from_nanos(ns));
        }
        histogram.record(Duration::MAX);
        assert_eq!(histogram.counts[0], 2);
        assert_eq!(histogram.counts[1], 2);
        assert_eq!(histogram.counts[9], 1);
        assert_eq!(histogram.counts[10], 1);
        assert_eq!(histogram.counts[BUCKETS - 1], 1);
        assert_eq!(histogram.count(), 7);
        assert_eq!(histogram.quantile_ns(500), 4);
    }
}
