//! Latency histogram with fixed buckets: no allocation, no floating point. Relative error at most
//! one part of a power of two (12 %).

use crate::limits::{HISTOGRAM_PARTS, HISTOGRAM_POWERS};
use core::time::Duration;

const BUCKETS: usize = HISTOGRAM_PARTS * HISTOGRAM_POWERS;
const PART_BITS: usize = HISTOGRAM_PARTS.trailing_zeros() as usize;
const _: () = assert!(1 << PART_BITS == HISTOGRAM_PARTS);

/// Counts of latencies.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    count: u64,
    sum_ns: u64,
    max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            counts: [0; BUCKETS],
            count: 0,
            sum_ns: 0,
            max_ns: 0,
        }
    }
}

fn bucket(ns: u64) -> usize {
    if ns < HISTOGRAM_PARTS as u64 {
        return usize::try_from(ns).unwrap_or(0);
    }
    let power = 63 - ns.leading_zeros() as usize;
    let part = usize::try_from(ns >> (power - PART_BITS)).unwrap_or(0) - HISTOGRAM_PARTS;
    ((power - PART_BITS + 1) * HISTOGRAM_PARTS + part).min(BUCKETS - 1)
}

/// Largest value of a bucket, in nanoseconds.
fn bucket_end(index: usize) -> u64 {
    if index < HISTOGRAM_PARTS {
        return index as u64;
    }
    let power = index / HISTOGRAM_PARTS + PART_BITS - 1;
    let part = (index % HISTOGRAM_PARTS + HISTOGRAM_PARTS + 1) as u64;
    (part << (power - PART_BITS)) - 1
}

impl core::fmt::Debug for Histogram {
    /// How many were counted: the buckets would fill pages.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl Histogram {
    /// Counts one latency.
    pub fn record(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(ns)] += 1;
        self.count += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// Number of latencies counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Sum of all latencies in nanoseconds; saturates.
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// The longest latency.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns)
    }

    /// The latency that `permille` of 1000 samples do not exceed; zero without samples.
    pub fn quantile(&self, permille: u64) -> Duration {
        let rank = (self.count.saturating_mul(permille)).div_ceil(1000).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(bucket_end(index).min(self.max_ns));
            }
        }
        Duration::ZERO
    }

    /// The buckets that hold something, as (largest value in nanoseconds, count), rising.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let full = |(_, count): &(usize, &u64)| **count > 0;
        self.counts
            .iter()
            .enumerate()
            .filter(full)
            .map(|(i, c)| (bucket_end(i), *c))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket() {
        for power in 0..50u32 {
            for add in [0u64, 1, 3, 77] {
                let ns = (1u64 << power) + add;
                let at = bucket(ns);
                if at < BUCKETS - 1 {
                    assert!(ns <= bucket_end(at), "{ns} above the end of bucket {at}");
                    assert!(at == 0 || ns > bucket_end(at - 1), "{ns} below bucket {at}");
                }
            }
        }
    }

    #[test]
    fn quantiles_are_close() {
        let mut histogram = Histogram::default();
        for us in 1..=1000u64 {
            histogram.record(Duration::from_micros(us));
        }
        for (permille, us) in [(500, 500.0), (990, 990.0), (999, 999.0)] {
            let found = histogram.quantile(permille).as_secs_f64() * 1e6;
            assert!(
                (found / us - 1.0).abs() < 0.13,
                "{permille}: {found} us, expected {us}"
            );
        }
        assert_eq!(histogram.count(), 1000);
        assert_eq!(histogram.max(), Duration::from_micros(1000));
    }
}
