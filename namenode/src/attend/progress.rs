//! How fast repair goes, and how much may be started.

/// Time constant of the moving average, in milliseconds.
const MEMORY_MS: f64 = 5_000.0;

/// Counts since this leader took over, and a moving average.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub bytes_copied: u64,
    pub chunks_repaired: u64,
    recent: f64,
    bytes_per_second: f64,
    updated_ms: u64,
}

impl Progress {
    pub fn copied(&mut self, bytes: u64) {
        self.bytes_copied += bytes;
        self.chunks_repaired += 1;
        self.recent += bytes as f64;
    }

    /// Takes what was copied since the last call into the average.
    pub fn pass(&mut self, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.updated_ms) as f64;
        if passed < 200.0 {
            return;
        }
        let rate = self.recent * 1000.0 / passed;
        let weight = 1.0 - (-passed / MEMORY_MS).exp();
        self.bytes_per_second += (rate - self.bytes_per_second) * weight;
        self.recent = 0.0;
        self.updated_ms = now_ms;
    }

    /// The moving average; less than a block a second is nothing.
    pub fn bytes_per_second(&self) -> u64 {
        if self.bytes_per_second < 65_536.0 { 0 } else { self.bytes_per_second as u64 }
    }

    /// Until `bytes` are copied at the present rate; `None` while there is no rate to go by.
    pub fn seconds_for(&self, bytes: u64) -> Option<u64> {
        match (bytes, self.bytes_per_second()) {
            (0, _) => Some(0),
            (_, 0) => None,
            (bytes, rate) => Some(bytes.div_ceil(rate)),
        }
    }
}

/// Bytes that may be copied, filled by time and emptied by copies; it may owe for the last copy.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    bytes: i64,
    updated_ms: u64,
}

impl Allowance {
    /// Adds what `per_second` gives since the last call, at most a second's worth; 0 is no limit.
    pub fn refill(&mut self, per_second: u64, now_ms: u64) -> u64 {
        let passed = now_ms.saturating_sub(self.updated_ms).min(1_000);
        self.updated_ms = now_ms;
        if per_second == 0 {
            return u64::MAX;
        }
        let second = i64::try_from(per_second).unwrap_or(i64::MAX);
        let gained = i64::try_from(u128::from(per_second) * u128::from(passed) / 1000).unwrap_or(i64::MAX);
        self.bytes = self.bytes.saturating_add(gained).min(second);
        u64::try_from(self.bytes).unwrap_or(0)
    }

    pub fn spend(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_follows_the_rate_and_forgets() {
        let mut progress = Progress::default();
        for second in 1..=60 {
            progress.copied(100 << 20);
            progress.pass(second * 1000);
        }
        let rate = progress.bytes_per_second() >> 20;
        assert!((95..=100).contains(&rate), "{rate}");
        assert_eq!(progress.seconds_for(1 << 30), Some((1u64 << 30).div_ceil(progress.bytes_per_second())));
        (61..=200).for_each(|second| progress.pass(second * 1000));
        assert_eq!(progress.bytes_per_second(), 0);
        assert_eq!((progress.seconds_for(1), progress.seconds_for(0)), (None, Some(0)));
    }

    #[test]
    fn an_allowance_may_be_overdrawn_once_and_fills_up_to_a_second() {
        let mut allowance = Allowance::default();
        assert_eq!(allowance.refill(1000, 500), 500);
        allowance.spend(2000);
        assert_eq!(allowance.refill(1000, 1500), 0);
        assert_eq!(allowance.refill(1000, 2500), 500);
        assert_eq!(allowance.refill(1000, 1_000_000), 1000);
        assert_eq!(allowance.refill(0, 1_000_001), u64::MAX);
    }
}
