//! Snapshots on their way to others. Meanwhile the log must keep what comes after them: purged in the middle of it, a member
//! that lags under load would be sent one snapshot after the other, and never catch up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Bytes of the log from which on it is purged nevertheless: who takes no snapshot to its end must not fill the disk.
const LOG_BYTES: u64 = 2 << 30;

/// What of a leader's snapshots is on its way. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Sending(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    under_way: usize,
    /// Until when those that were sent have time to be caught up with.
    until: Option<Instant>,
}

/// A snapshot on its way, until this is dropped.
#[derive(Debug)]
pub struct Sent {
    sending: Sending,
    began: Instant,
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.sending.end(self.began, Instant::now());
    }
}

impl Sending {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A snapshot is sent from now on.
    pub fn begin(&self) -> Sent {
        self.lock().under_way += 1;
        Sent { sending: self.clone(), began: Instant::now() }
    }

    /// What came into the log while a snapshot was sent has as long again to follow it.
    fn end(&self, began: Instant, now: Instant) {
        let until = now + now.saturating_duration_since(began);
        let mut state = self.lock();
        state.under_way -= 1;
        state.until = state.until.max(Some(until));
    }

    /// Whether a log of so many bytes is to be left as it is.
    pub fn needs_log(&self, log_bytes: u64, now: Instant) -> bool {
        let state = self.lock();
        log_bytes < LOG_BYTES && (state.under_way > 0 || state.until.is_some_and(|until| now < until))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_log_is_kept_while_a_snapshot_is_sent_and_as_long_again_but_not_without_bound() {
        let sending = Sending::default();
        let now = Instant::now();
        assert!(!sending.needs_log(1, now));
        let sent = sending.begin();
        assert!(sending.needs_log(1, now + Duration::from_secs(3_600)));
        assert!(!sending.needs_log(LOG_BYTES, now));
        drop(sent);
        sending.lock().under_way = 1;
        sending.end(now, now + Duration::from_secs(60));
        assert!(sending.needs_log(1, now + Duration::from_secs(119)));
        assert!(!sending.needs_log(1, now + Duration::from_secs(120)));
    }
}
