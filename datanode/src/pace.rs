//! A rate that background work keeps to.

use std::time::{Duration, Instant};

/// The longest sleep before it is asked again whether to go on.
const NAP: Duration = Duration::from_millis(200);
/// The longest wait for one piece, however low the rate.
const LONGEST: Duration = Duration::from_secs(60);

/// A token bucket that holds a tenth of a second.
pub struct Pace {
    bytes_per_second: u64,
    due: Instant,
}

impl Pace {
    /// So many bytes a second; 0: no limit.
    pub fn new(bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second, due: Instant::now() }
    }

    /// Waits until `bytes` more may pass; at most a minute for one piece, however low the rate.
    pub fn wait(&mut self, bytes: usize) {
        self.wait_while(bytes, || true);
    }

    /// The same, as long as `go_on` says so; false when it does not.
    pub fn wait_while(&mut self, bytes: usize, go_on: impl Fn() -> bool) -> bool {
        if self.bytes_per_second == 0 {
            return go_on();
        }
        let began = Instant::now();
        let until = self.due.min(began + LONGEST);
        loop {
            if !go_on() {
                return false;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(NAP));
        }
        let now = Instant::now();
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let burst = Duration::from_millis(100);
        self.due = self.due.max(now.checked_sub(burst).unwrap_or(now)) + cost.min(LONGEST);
        true
    }
}
