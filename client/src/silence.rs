//! For how long the leader has owed somebody an answer.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Counts who waits, and remembers when an answer came last.
#[derive(Debug)]
pub(crate) struct Silence {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    waiting: usize,
    since: Instant,
    heard: Instant,
}

/// Somebody who waits for an answer.
pub(crate) struct Waiting<'a>(&'a Silence);

impl Silence {
    /// Nobody waits.
    pub(crate) fn new() -> Silence {
        let now = Instant::now();
        Silence { state: Mutex::new(State { waiting: 0, since: now, heard: now }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more waits, until the returned value is dropped.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        let mut state = self.lock();
        if state.waiting == 0 {
            state.since = Instant::now();
        }
        state.waiting += 1;
        Waiting(self)
    }

    /// The leader answered, whomever.
    pub(crate) fn heard(&self) {
        self.lock().heard = Instant::now();
    }

    /// How long somebody has waited without any answer; zero while nobody waits.
    pub(crate) fn length(&self, now: Instant) -> Duration {
        let state = self.lock();
        match state.waiting {
            0 => Duration::ZERO,
            _ => now.saturating_duration_since(state.since.max(state.heard)),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_begins_with_a_question_and_ends_with_an_answer() {
        let silence = Silence::new();
        let later = Instant::now() + Duration::from_secs(5);
        assert_eq!(silence.length(later), Duration::ZERO, "nobody asked");
        let first = silence.wait();
        let second = silence.wait();
        assert!(silence.length(later) > Duration::from_secs(4));
        drop(first);
        assert!(silence.length(later) > Duration::from_secs(4), "the other still waits");
        silence.state.lock().unwrap().heard = later;
        assert_eq!(silence.length(later), Duration::ZERO);
        drop(second);
        assert_eq!(silence.length(later + Duration::from_secs(9)), Duration::ZERO);
    }
}
