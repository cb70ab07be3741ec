//! Metrics as Prometheus reads them, made anew for each scrape from a snapshot, so that nothing is
//! shared with the data path. Names are `trilith_<crate>_<noun>_<unit>`; histograms have the fixed
//! buckets of [`LATENCY_BUCKETS_US`].

use crate::limits::LATENCY_BUCKETS_US;
use core::fmt;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

type Labels = Vec<(&'static str, String)>;

/// Latencies of one stage, as counted by a machine.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Samples {
    /// Sum in nanoseconds.
    pub(crate) sum_ns: u64,
    /// Largest value in nanoseconds and count of each bucket, rising.
    pub(crate) buckets: Vec<(u64, u64)>,
}

impl Samples {
    fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// Counts by the fixed buckets, in seconds. A sample counts where its own bucket ends, so none
    /// looks faster than it was.
    fn fixed(&self) -> Vec<(f64, u64)> {
        let mut fixed: Vec<(f64, u64)> = Vec::with_capacity(LATENCY_BUCKETS_US.len() + 1);
        let mut seen = self.buckets.iter().peekable();
        for bound in LATENCY_BUCKETS_US {
            let mut here = 0;
            while let Some((_, count)) = seen.next_if(|(end, _)| *end <= bound * 1000) {
                here += count;
            }
            fixed.push((bound as f64 / 1e6, here));
        }
        fixed.push((f64::INFINITY, seen.map(|(_, count)| count).sum()));
        fixed
    }
}

#[derive(Debug)]
enum Value {
    Gauge(u64),
    Counter(u64),
    Histogram(Samples),
}

/// One value of one metric.
#[derive(Debug)]
struct Metric {
    name: &'static str,
    help: &'static str,
    labels: Labels,
    value: Value,
}

/// A snapshot of metrics.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    metrics: Vec<Metric>,
}

impl Snapshot {
    /// Adds a value that rises and falls.
    pub(crate) fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Labels,
        value: u64,
    ) {
        self.metrics.push(Metric {
            name,
            help,
            labels,
            value: Value::Gauge(value),
        });
    }

    /// Adds a value that only rises. The text shows the name with `_total`.
    pub(crate) fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Labels,
        value: u64,
    ) {
        self.metrics.push(Metric {
            name,
            help,
            labels,
            value: Value::Counter(value),
        });
    }

    /// Adds a distribution in seconds.
    pub(crate) fn histogram(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Labels,
        value: Samples,
    ) {
        self.metrics.push(Metric {
            name,
            help,
            labels,
            value: Value::Histogram(value),
        });
    }

    /// The text of the metrics (OpenMetrics 1.0).
    pub(crate) fn into_text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &registry) {
            Ok(()) => text,
            Err(error) => format!("# {error}\n"),
        }
    }
}

struct ConstHistogram<'a>(&'a Samples);

impl EncodeMetric for ConstHistogram<'_> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let sum = self.0.sum_ns as f64 / 1e9;
        encoder.encode_histogram::<[(&str, &str); 0]>(sum, self.0.count(), &self.0.fixed(), None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl Value {
    fn kind(&self) -> MetricType {
        match self {
            Value::Gauge(_) => MetricType::Gauge,
            Value::Counter(_) => MetricType::Counter,
            Value::Histogram(_) => MetricType::Histogram,
        }
    }

    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        match self {
            Value::Gauge(value) => {
                ConstGauge::new(i64::try_from(*value).unwrap_or(i64::MAX)).encode(encoder)
            }
            Value::Counter(value) => ConstCounter::new(*value).encode(encoder),
            Value::Histogram(samples) => ConstHistogram(samples).encode(encoder),
        }
    }
}

impl Collector for Snapshot {
    /// Values of one metric must be next to each other, whatever order they were added in.
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut names: Vec<&str> = Vec::new();
        for metric in &self.metrics {
            if names.contains(&metric.name) {
                continue;
            }
            names.push(metric.name);
            let kind = metric.value.kind();
            let mut family = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            let same = self
                .metrics
                .iter()
                .filter(|other| other.name == metric.name);
            if metric.labels.is_empty() {
                metric.value.encode(family)?;
                continue;
            }
            for one in same {
                one.value.encode(family.encode_family(&one.labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_one_metric_stand_together_with_their_labels() {
        let mut snapshot = Snapshot::default();
        let member = |n: u64| vec![("member", n.to_string())];
        snapshot.gauge("trilith_engine_lag_bytes", "Lag", member(0), 5);
        snapshot.counter("trilith_engine_reads", "Reads", Vec::new(), 7);
        snapshot.gauge("trilith_engine_lag_bytes", "Lag", member(1), 6);
        let text = snapshot.into_text();
        assert!(
            text.contains(
                "trilith_engine_lag_bytes{member=\"0\"} 5\ntrilith_engine_lag_bytes{member=\"1\"} 6\n"
            ),
            "{text}"
        );
        assert_eq!(
            text.matches("# TYPE trilith_engine_lag_bytes gauge")
                .count(),
            1,
            "{text}"
        );
        assert!(text.contains("trilith_engine_reads_total 7\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn histograms_have_fixed_cumulative_buckets() {
        let samples = Samples {
            sum_ns: 3_000_000,
            buckets: vec![(9_000, 2), (11_000, 1), (u64::MAX, 1)],
        };
        let mut snapshot = Snapshot::default();
        let name = "trilith_engine_latency_seconds";
        snapshot.histogram(name, "Latency", Vec::new(), samples);
        let text = snapshot.into_text();
        for line in [
            "trilith_engine_latency_seconds_bucket{le=\"0.00001\"} 2",
            "trilith_engine_latency_seconds_bucket{le=\"0.00002\"} 3",
            "trilith_engine_latency_seconds_bucket{le=\"10.0\"} 3",
            "trilith_engine_latency_seconds_bucket{le=\"+Inf\"} 4",
            "trilith_engine_latency_seconds_count 4",
            "trilith_engine_latency_seconds_sum 0.003",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
