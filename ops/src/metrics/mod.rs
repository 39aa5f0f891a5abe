//! What is counted, and how Prometheus is told.
//!
//! Names begin with `cairn_`, units are base units, counters end in `_total`. What is counted on hot paths is atomics
//! ([`Histogram`], [`Operations`], or a role's own counters); everything else is looked up when somebody asks.

mod histogram;
mod operations;
mod process;

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

pub use histogram::Histogram;
pub use operations::Operations;
pub use process::process;

/// What the text is, for `Content-Type`.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Labels of one series: names with values.
pub type Labels = Vec<(&'static str, String)>;

/// Whoever has metrics to tell.
pub trait Source: Send + Sync + 'static {
    /// Writes all of them. Called for each scrape; must not wait for anybody.
    fn metrics(&self, page: &mut Page<'_>);
}

/// Everything `source` tells, in Prometheus' text format.
pub fn render(source: Arc<dyn Source>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Bridge(source)));
    let mut text = String::with_capacity(16 << 10);
    // Writing to a string does not fail.
    let _ = prometheus_text::encode(&mut text, &registry);
    text
}

struct Bridge(Arc<dyn Source>);

impl fmt::Debug for Bridge {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Bridge")
    }
}

impl Collector for Bridge {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page { encoder, result: Ok(()) };
        process(&mut page);
        self.0.metrics(&mut page);
        page.result
    }
}

/// Metrics being written down. Each name is written once, with all its series.
pub struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
    result: fmt::Result,
}

impl Page<'_> {
    /// A counter; `_total` is added to its name.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.write(name, help, MetricType::Counter, |encoder| encode_counter(encoder, value));
    }

    /// A counter with labels.
    pub fn counters(&mut self, name: &str, help: &str, series: impl IntoIterator<Item = (Labels, u64)>) {
        self.write(name, help, MetricType::Counter, |encoder| {
            for (labels, value) in series {
                encode_counter(&mut encoder.encode_family(&labels)?, value)?;
            }
            Ok(())
        });
    }

    /// A counter of something that has fractions, such as seconds.
    pub fn counter_f64(&mut self, name: &str, help: &str, value: f64) {
        self.write(name, help, MetricType::Counter, |encoder| {
            encoder.encode_counter::<NoLabelSet, f64, f64>(&value, None)
        });
    }

    /// A gauge.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.write(name, help, MetricType::Gauge, |encoder| encoder.encode_gauge(&value));
    }

    /// A gauge with labels.
    pub fn gauges(&mut self, name: &str, help: &str, series: impl IntoIterator<Item = (Labels, f64)>) {
        self.write(name, help, MetricType::Gauge, |encoder| {
            for (labels, value) in series {
                encoder.encode_family(&labels)?.encode_gauge(&value)?;
            }
            Ok(())
        });
    }

    /// A histogram of durations.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.write(name, help, MetricType::Histogram, |encoder| histogram.encode(encoder));
    }

    /// A histogram with labels.
    pub fn histograms<'h>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Labels, &'h Histogram)>,
    ) {
        self.write(name, help, MetricType::Histogram, |encoder| {
            for (labels, histogram) in series {
                histogram.encode(&mut encoder.encode_family(&labels)?)?;
            }
            Ok(())
        });
    }

    /// Something that has no number, as labels; `_info` is added to its name.
    pub fn info(&mut self, name: &str, help: &str, labels: &Labels) {
        self.write(name, help, MetricType::Info, |encoder| encoder.encode_info(labels));
    }

    fn write(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        body: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
    ) {
        let written =
            self.encoder.encode_descriptor(name, help, None, kind).and_then(|mut encoder| body(&mut encoder));
        self.result = self.result.and(written);
    }
}

fn encode_counter(encoder: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    encoder.encode_counter::<NoLabelSet, u64, f64>(&value, None)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Example(Histogram);

    impl Source for Example {
        fn metrics(&self, page: &mut Page<'_>) {
            page.counter("cairn_example_bytes", "Bytes", 7);
            page.gauges("cairn_example", "By node", [(vec![("node", "a\"b".into())], 1.5)]);
            page.histogram("cairn_example_duration_seconds", "How long", &self.0);
        }
    }

    #[test]
    fn everything_is_written_in_prometheus_text() {
        let example = Example(Histogram::default());
        example.0.observe(Duration::from_millis(3));
        let text = render(Arc::new(example));
        for line in [
            "# TYPE cairn_example_bytes_total counter",
            "cairn_example_bytes_total 7",
            "cairn_example{node=\"a\\\"b\"} 1.5",
            "cairn_example_duration_seconds_bucket{le=\"0.0025\"} 0",
            "cairn_example_duration_seconds_bucket{le=\"0.005\"} 1",
            "cairn_example_duration_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert!(text.contains("process_start_time_seconds"));
    }
}
