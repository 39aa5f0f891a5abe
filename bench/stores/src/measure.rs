//! What is measured, and how a step hands it to the process that asked.

use std::path::Path;
use std::time::Duration;

/// Times of many runs of one thing.
#[derive(Debug, Default)]
pub struct Times(Vec<u64>);

impl Times {
    /// Adds one run.
    pub fn add(&mut self, time: Duration) {
        self.0.push(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The time that `share` of the runs stayed under, in milliseconds.
    pub fn quantile_ms(&mut self, share: f64) -> f64 {
        self.0.sort_unstable();
        let last = self.0.len().saturating_sub(1);
        let at = (share * last as f64).round() as usize;
        self.0.get(at.min(last)).map_or(0.0, |&ns| ns as f64 / 1e6)
    }

    /// The longest run, in milliseconds.
    pub fn worst_ms(&mut self) -> f64 {
        self.quantile_ms(1.0)
    }
}

/// Named figures of one step, in the order they are shown.
#[derive(Debug, Default, Clone)]
pub struct Figures(pub Vec<(String, f64)>);

impl Figures {
    /// Adds a figure.
    pub fn add(&mut self, name: &str, value: f64) {
        self.0.push((name.into(), value));
    }

    /// One figure a line, tab, value.
    pub fn print(&self) {
        for (name, value) in &self.0 {
            println!("{name}\t{value}");
        }
    }

    /// Reads what [`Figures::print`] wrote; other lines are skipped.
    pub fn parse(text: &str) -> Figures {
        let pairs = text.lines().filter_map(|line| {
            let (name, value) = line.split_once('\t')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Figures(pairs.collect())
    }
}

/// Bytes that the files under `dir` occupy on the disk; holes do not count.
pub fn disk_bytes(dir: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut total = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        total += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(total)
}

/// Memory of this process that is not a file's, in bytes: engine caches and buffers, but not mapped pages.
pub fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_few_and_none() {
        let mut times = Times::default();
        assert_eq!(times.worst_ms(), 0.0);
        for ms in [3, 1, 2] {
            times.add(Duration::from_millis(ms));
        }
        assert_eq!(times.quantile_ms(0.5), 2.0);
        assert_eq!(times.worst_ms(), 3.0);
    }

    #[test]
    fn figures_survive_the_pipe() {
        let figures = Figures::parse("noise\nlookups\t12.5\nbad\tx\n");
        assert_eq!(figures.0, [("lookups".to_owned(), 12.5)]);
    }
}
