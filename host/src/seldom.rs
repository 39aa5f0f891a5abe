//! Lines of the log that others can cause at will are written seldom: the log must not grow with somebody's patience.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines in one second, at most.
const LINES: u32 = 10;

/// A place that logs.
#[derive(Debug)]
pub struct Seldom(Mutex<Lately>);

#[derive(Debug)]
struct Lately {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Seldom {
    /// One that has not logged yet.
    pub const fn new() -> Seldom {
        Seldom(Mutex::new(Lately { since: None, written: 0, left_out: 0 }))
    }

    /// Whether a line may be written now; if so, how many were left out since the last one.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut lately = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lately.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            (lately.since, lately.written) = (Some(now), 0);
        }
        if lately.written >= LINES {
            lately.left_out += 1;
            return None;
        }
        lately.written += 1;
        Some(std::mem::take(&mut lately.left_out))
    }
}

impl Default for Seldom {
    fn default() -> Seldom {
        Seldom::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_lines_are_written_in_a_second() {
        let (seldom, begun) = (Seldom::new(), Instant::now());
        for _ in 0..LINES {
            assert_eq!(seldom.admit_at(begun), Some(0));
        }
        assert_eq!((seldom.admit_at(begun), seldom.admit_at(begun)), (None, None));
        assert_eq!(seldom.admit_at(begun + Duration::from_secs(1)), Some(2));
        assert_eq!(seldom.admit_at(begun + Duration::from_secs(1)), Some(0));
    }
}
