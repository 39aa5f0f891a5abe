//! The time of day as a leader uses it: its own clock's, but never far ahead of all the others'.
//!
//! Time never runs backwards in the log. A single stamp from a clock that is years ahead would stop the log's time for
//! years: what dies then died in the future by every sane clock, and what was discarded just now is old.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cairn_host::clock::Clock;
use cairn_host::net::Network;
use cairn_proto::control::WhoLeadsRequest;
use futures::future::join_all;
use tokio::time::Instant;

use crate::channel;
use crate::raft::Group;

/// How far a leader's time may be ahead of the furthest of the others' clocks.
const AHEAD: Duration = Duration::from_secs(60);
/// Between two looks at the others' clocks: a clock that was set forward rightly is followed after this long.
const EVERY: Duration = Duration::from_secs(10);
/// How long the others have to answer. Who takes over waits for it.
const PATIENCE: Duration = Duration::from_millis(250);

/// A machine's clock, held back by what is known of the others'. Clones share it.
#[derive(Debug, Clone)]
pub struct LeaderClock {
    machine: Arc<dyn Clock>,
    /// The furthest of the others' clocks, and when it was read.
    others: Arc<Mutex<Option<(i64, Instant)>>>,
}

impl Clock for LeaderClock {
    fn now_ns(&self) -> i64 {
        let others = *self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let furthest_ns = others.map(|(read_ns, at)| read_ns.saturating_add(nanoseconds(at.elapsed())));
        held_back(self.machine.now_ns(), furthest_ns)
    }
}

impl LeaderClock {
    /// The clock of a namenode that knows of no other yet.
    pub fn new(machine: Arc<dyn Clock>) -> LeaderClock {
        LeaderClock { machine, others: Arc::default() }
    }

    /// Asks the other namenodes for their time. If nobody answers, what was known stays.
    pub async fn compare(&self, group: &Group, network: &Arc<dyn Network>) {
        let others = group.namenodes().into_iter().filter(|other| other.id != group.id());
        let asking = others.map(|other| async move {
            let asked = async {
                channel::namenode(network, &other.address).ok()?.who_leads(WhoLeadsRequest {}).await.ok()
            };
            let reply = tokio::time::timeout(PATIENCE, asked).await.ok().flatten()?.into_inner();
            // 0: one of an earlier version, which does not say.
            (reply.now_ns != 0).then_some((reply.now_ns, Instant::now()))
        });
        if let Some(furthest) = join_all(asking).await.into_iter().flatten().max() {
            self.learn(furthest);
        }
    }

    fn learn(&self, (read_ns, at): (i64, Instant)) {
        let known = self.others.lock().unwrap_or_else(PoisonError::into_inner).replace((read_ns, at));
        let ahead = |read_ns: i64| self.machine.now_ns().saturating_sub(read_ns) > nanoseconds(AHEAD);
        let was_ahead =
            known.is_some_and(|(read_ns, at)| ahead(read_ns.saturating_add(nanoseconds(at.elapsed()))));
        if ahead(read_ns) && !was_ahead {
            let seconds = self.machine.now_ns().saturating_sub(read_ns) / 1_000_000_000;
            tracing::warn!(
                seconds,
                "this namenode's clock is ahead of all the others', by so many seconds; it goes by theirs: have chrony \
                 or systemd-timesyncd set the clocks of all namenodes"
            );
        }
    }

    /// Compares the clocks for as long as this namenode leads and is not dropped.
    pub async fn keep(self, group: Group, network: Arc<dyn Network>) {
        loop {
            tokio::time::sleep(EVERY).await;
            if group.leadership().leads {
                self.compare(&group, &network).await;
            }
        }
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// The time that a leader goes by. `furthest_ns` is the time of the furthest of the others' clocks, if one is known.
fn held_back(own_ns: i64, furthest_ns: Option<i64>) -> i64 {
    furthest_ns.map_or(own_ns, |furthest_ns| own_ns.min(furthest_ns.saturating_add(nanoseconds(AHEAD))))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    const DAY: i64 = 86_400_000_000_000;

    #[derive(Debug, Default)]
    struct Set(AtomicI64);

    impl Clock for Set {
        fn now_ns(&self) -> i64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn a_leader_whose_clock_is_far_ahead_goes_by_the_others() {
        let minute = nanoseconds(AHEAD);
        assert_eq!(held_back(DAY, None), DAY, "alone");
        assert_eq!(held_back(DAY, Some(DAY - minute)), DAY);
        assert_eq!(held_back(DAY, Some(0)), minute);
        assert_eq!(held_back(0, Some(DAY)), 0, "who is behind does no harm");
    }

    #[tokio::test]
    async fn a_clock_that_is_set_forward_takes_nobody_along_until_the_others_agree() {
        let machine = Arc::new(Set::default());
        let clock = LeaderClock::new(machine.clone());
        clock.learn((0, Instant::now()));
        assert_eq!(clock.now_ns(), 0);
        machine.0.store(DAY, Ordering::Relaxed);
        assert!(clock.now_ns() < 2 * nanoseconds(AHEAD));
        clock.learn((DAY, Instant::now()));
        assert_eq!(clock.now_ns(), DAY);
    }
}
