//! A client's lease on the right to change things, and the numbering of its mutations.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::limits::SESSION_LEASE_MS;
use tokio::time::Instant;

/// One session, from its opening until it is closed or has expired.
#[derive(Debug)]
pub(crate) struct Session {
    id: u64,
    numbers: Mutex<Numbers>,
    expired: AtomicBool,
}

#[derive(Debug)]
struct Numbers {
    next: u64,
    unanswered: BTreeSet<u64>,
    renewed: Instant,
    lease: Duration,
}

/// The right to send one mutation, as often as needed. Dropping it says that nobody waits for its outcome
/// any more, so the namenode may forget it.
#[derive(Debug)]
pub(crate) struct Ticket {
    session: Arc<Session>,
    seq: u64,
}

impl Session {
    /// The session `id`, opened by a call sent at `sent`.
    pub(crate) fn new(id: u64, sent: Instant) -> Arc<Session> {
        let numbers = Numbers {
            next: 1,
            unanswered: BTreeSet::new(),
            renewed: sent,
            lease: Duration::from_millis(SESSION_LEASE_MS),
        };
        Arc::new(Session { id, numbers: Mutex::new(numbers), expired: AtomicBool::new(false) })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Numbers a new mutation.
    pub(crate) fn ticket(self: &Arc<Session>) -> Ticket {
        let mut numbers = self.numbers();
        let seq = numbers.next;
        numbers.next += 1;
        numbers.unanswered.insert(seq);
        Ticket { session: Arc::clone(self), seq }
    }

    /// The highest number such that it and all lower ones are answered.
    pub(crate) fn acked(&self) -> u64 {
        let numbers = self.numbers();
        numbers.unanswered.first().map_or(numbers.next - 1, |lowest| lowest - 1)
    }

    /// The leader heard what was sent at `sent`; its lease counts from there, not from the answer.
    pub(crate) fn renewed(&self, sent: Instant, lease_ms: u32) {
        let mut numbers = self.numbers();
        numbers.renewed = numbers.renewed.max(sent);
        if lease_ms > 0 {
            numbers.lease = Duration::from_millis(u64::from(lease_ms));
        }
    }

    /// Whether the lease may be taken away soon: half of it passed without a renewal that was heard.
    pub(crate) fn fenced(&self, now: Instant) -> bool {
        let numbers = self.numbers();
        self.expired() || now.saturating_duration_since(numbers.renewed) > numbers.lease / 2
    }

    /// How often to renew.
    pub(crate) fn renewal_interval(&self) -> Duration {
        self.numbers().lease / 6
    }

    /// The namenode forgot this session.
    pub(crate) fn expire(&self) {
        self.expired.store(true, Ordering::Release);
    }

    pub(crate) fn expired(&self) -> bool {
        self.expired.load(Ordering::Acquire)
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.session.numbers().unanswered.remove(&self.seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acked_stops_below_the_lowest_unanswered_number() {
        let session = Session::new(7, Instant::now());
        assert_eq!(session.acked(), 0);
        let (one, two, three) = (session.ticket(), session.ticket(), session.ticket());
        assert_eq!((one.seq(), two.seq(), three.seq()), (1, 2, 3));
        drop(two);
        assert_eq!(session.acked(), 0);
        drop(one);
        assert_eq!(session.acked(), 2);
        drop(three);
        assert_eq!(session.acked(), 3);
    }

    #[test]
    fn half_a_lease_without_a_heard_renewal_fences() {
        let start = Instant::now();
        let session = Session::new(7, start);
        session.renewed(start, 1000);
        assert!(!session.fenced(start + Duration::from_millis(500)));
        assert!(session.fenced(start + Duration::from_millis(501)));
        session.renewed(start + Duration::from_millis(400), 1000);
        assert!(!session.fenced(start + Duration::from_millis(900)));
        session.expire();
        assert!(session.fenced(start));
    }
}
