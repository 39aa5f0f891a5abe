//! How long something takes, as counts in fixed buckets.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

/// Upper bounds of the buckets, in microseconds: from what a cache answers to what a user has given up on.
const BOUNDS: [u64; 18] = [
    10, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// Counts of durations. An observation is two additions to atomics; nobody waits for anybody.
///
/// The library's own histogram takes a lock for each observation, which is why this is not it.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bound, and one for what takes longer.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// Counts one more.
    pub fn observe(&self, took: Duration) {
        let microseconds = took.as_micros();
        let bucket = BOUNDS.partition_point(|&bound| u128::from(bound) < microseconds);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// How long they took together, in seconds.
    pub fn seconds(&self) -> f64 {
        self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9
    }

    pub(super) fn encode(&self, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        let read = |index: usize| self.buckets[index].load(Ordering::Relaxed);
        let mut buckets: Vec<(f64, u64)> =
            BOUNDS.iter().enumerate().map(|(index, bound)| (*bound as f64 / 1e6, read(index))).collect();
        buckets.push((f64::INFINITY, read(BOUNDS.len())));
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(self.seconds(), count, &buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        let histogram = Histogram::default();
        for (micros, bucket) in [(0, 0), (10, 0), (11, 1), (10_000_000, 17), (10_000_001, 18)] {
            let before = histogram.buckets[bucket].load(Ordering::Relaxed);
            histogram.observe(Duration::from_micros(micros));
            assert_eq!(histogram.buckets[bucket].load(Ordering::Relaxed), before + 1, "{micros}");
        }
        assert_eq!(histogram.count(), 5);
        assert!((histogram.seconds() - 20.000_022).abs() < 1e-9);
    }
}
