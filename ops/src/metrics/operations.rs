//! Operations by name, with how they ended and how long they took.

use std::time::Duration;

use super::{Histogram, Labels, Page};

/// One histogram for each operation and way of ending.
#[derive(Debug)]
pub struct Operations {
    names: &'static [&'static str],
    done: Box<[Histogram]>,
    failed: Box<[Histogram]>,
}

impl Operations {
    /// Operations are numbered by their place among `names`.
    pub fn new(names: &'static [&'static str]) -> Operations {
        let histograms = || names.iter().map(|_| Histogram::default()).collect();
        Operations { names, done: histograms(), failed: histograms() }
    }

    /// Counts an operation; a number that is none is not counted.
    pub fn record(&self, operation: usize, done: bool, took: Duration) {
        let kind = if done { &self.done } else { &self.failed };
        if let Some(histogram) = kind.get(operation) {
            histogram.observe(took);
        }
    }

    /// How many there were, and how long they took together, in seconds.
    pub fn totals(&self) -> (u64, f64) {
        let all = self.done.iter().chain(self.failed.iter());
        all.fold((0, 0.0), |(count, seconds), one| (count + one.count(), seconds + one.seconds()))
    }

    /// Writes those that ever happened, as `operation` and `result` (`ok` or `error`).
    pub fn write(&self, page: &mut Page<'_>, name: &str, help: &str) {
        let of = |histograms: &'_ [Histogram], result: &'static str| -> Vec<(Labels, usize)> {
            let seen = self.names.iter().enumerate().filter(|(index, _)| histograms[*index].count() > 0);
            let labels = |name: &str| vec![("operation", name.to_owned()), ("result", result.to_owned())];
            seen.map(|(index, name)| (labels(name), index)).collect()
        };
        let done = of(&self.done, "ok").into_iter().map(|(labels, index)| (labels, &self.done[index]));
        let failed =
            of(&self.failed, "error").into_iter().map(|(labels, index)| (labels, &self.failed[index]));
        page.histograms(name, help, done.chain(failed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted_by_how_they_ended() {
        let operations = Operations::new(&["stat", "list"]);
        operations.record(0, true, Duration::from_secs(1));
        operations.record(1, false, Duration::from_secs(2));
        operations.record(2, true, Duration::from_secs(4));
        assert_eq!(operations.totals(), (2, 3.0));
        assert_eq!((operations.done[0].count(), operations.failed[1].count()), (1, 1));
    }
}
