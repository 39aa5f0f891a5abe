//! What was measured, and how it is shown.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::output::{self, Table};

/// How long each operation took, by one client or several.
#[derive(Debug, Default, Clone)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Runs an operation and notes how long it took.
    pub async fn take<T>(&mut self, operation: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let result = operation.await;
        self.0.push(began.elapsed());
        result
    }

    /// All of several clients.
    pub fn joined(parts: impl IntoIterator<Item = Times>) -> Times {
        let mut all: Vec<Duration> = parts.into_iter().flat_map(|part| part.0).collect();
        all.sort_unstable();
        Times(all)
    }

    /// Operations.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The time within which `share` of the operations were done; `self` must be joined.
    fn within(&self, share: f64) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
    }
}

/// One line of a result: what was done by how many clients, how much of it a second, how long each took.
#[derive(Debug)]
pub struct Line {
    /// The operation.
    pub what: &'static str,
    /// Clients, or streams.
    pub clients: usize,
    /// From the first to the last.
    pub elapsed: Duration,
    /// How long each took.
    pub times: Times,
    /// Things an operation counts for on average, such as entries of a listing; 1 where nothing else is said.
    pub each: f64,
    /// Bytes moved, where bytes are what counts.
    pub bytes: Option<u64>,
}

impl Line {
    fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        match self.bytes {
            Some(bytes) => bytes as f64 / seconds,
            None => self.times.count() as f64 * self.each / seconds,
        }
    }

    /// For programs: times in seconds.
    pub fn json(&self) -> Value {
        let unit = if self.bytes.is_some() { "bytes_per_second" } else { "per_second" };
        json!({
            "operation": self.what, "clients": self.clients, unit: self.rate(), "count": self.times.count(),
            "p50_seconds": self.times.within(0.5).as_secs_f64(),
            "p99_seconds": self.times.within(0.99).as_secs_f64(),
            "longest_seconds": self.times.within(1.0).as_secs_f64(),
        })
    }
}

/// For people.
pub fn table(lines: &[Line]) -> String {
    let mut table = Table::new(&["operation", ">clients", ">throughput", ">p50", ">p99", ">longest"]);
    for line in lines {
        let rate = match line.bytes {
            Some(_) => format!("{}/s", output::size(line.rate() as u64)),
            None => format!("{:.0}/s", line.rate()),
        };
        table.row(vec![
            line.what.into(),
            line.clients.to_string(),
            rate,
            milliseconds(line.times.within(0.5)),
            milliseconds(line.times.within(0.99)),
            milliseconds(line.times.within(1.0)),
        ]);
    }
    table.render(0)
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_throughput_and_latency() {
        let times = Times::joined([
            Times((1..=50).map(Duration::from_millis).collect()),
            Times((51..=100).rev().map(Duration::from_millis).collect()),
        ]);
        let line =
            Line { what: "stat", clients: 2, elapsed: Duration::from_secs(2), times, each: 1.0, bytes: None };
        assert_eq!(line.json()["per_second"], 50.0);
        assert_eq!(line.json()["p99_seconds"], 0.099);
        let shown = table(&[line]);
        assert!(
            shown.contains("50/s")
                && shown.contains("51.00 ms")
                && shown.contains("99.00 ms")
                && shown.contains("100.00 ms"),
            "{shown}"
        );
    }

    #[test]
    fn nothing_done_is_no_division_by_zero() {
        let line = Line {
            what: "x",
            clients: 1,
            elapsed: Duration::ZERO,
            times: Times::default(),
            each: 1.0,
            bytes: Some(0),
        };
        assert!(table(&[line]).contains("0.00 ms"));
    }
}
