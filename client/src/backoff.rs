//! Growing pauses between attempts, spread so that many clients do not return at once.

use std::time::Duration;

use rand::Rng;

const FIRST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(500);

/// The pauses of one series of attempts.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff { next: FIRST }
    }

    /// The next pause: between half and all of a span that doubles up to half a second.
    pub(crate) fn pause(&mut self) -> Duration {
        let span = self.next;
        self.next = (span * 2).min(LONGEST);
        span.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}
