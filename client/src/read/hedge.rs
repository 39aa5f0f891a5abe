//! When a second replica is asked because the first one is slow, and who is asked last for having been slow.
//!
//! The delay follows the times that reads took, as TCP's own timeout does, so that a cluster that is slow as a whole
//! is not asked for everything twice; and second reads are a tenth of all reads at most, however the times jump.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Bounds of the delay. Below the first, a busy processor alone would start second reads.
const DELAYS: (Duration, Duration) = (Duration::from_millis(30), Duration::from_secs(1));
/// What a second read costs, in the unit in which a finished read earns one.
const COST: u32 = 10;
/// Second reads that may be saved up.
const SAVED: u32 = 16;
/// How long a datanode that was slow is asked last.
const LAST_FOR: Duration = Duration::from_secs(5);
/// Slow datanodes remembered; all are forgotten when there are more.
const MAX_SLOW: usize = 256;

/// See the module. Knows no clock: its caller says how late it is.
#[derive(Debug)]
pub(crate) struct Hedge {
    /// Smoothed time of a read, in seconds; `None` before the first.
    mean: Option<f64>,
    /// Smoothed distance from it, in seconds.
    deviation: f64,
    earned: u32,
    slow: BTreeMap<u32, Instant>,
}

impl Default for Hedge {
    fn default() -> Hedge {
        Hedge { mean: None, deviation: 0.0, earned: SAVED * COST, slow: BTreeMap::new() }
    }
}

impl Hedge {
    /// A read that took so long gave its bytes.
    pub(crate) fn learn(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.earned = (self.earned + 1).min(SAVED * COST);
        match self.mean {
            None => (self.mean, self.deviation) = (Some(took), took / 2.0),
            Some(mean) => {
                self.deviation += ((took - mean).abs() - self.deviation) / 4.0;
                self.mean = Some(mean + (took - mean) / 8.0);
            }
        }
    }

    /// How long a replica may take before another one is asked as well.
    pub(crate) fn delay(&self) -> Duration {
        let Some(mean) = self.mean else { return DELAYS.1 / 4 };
        Duration::from_secs_f64(mean + 4.0 * self.deviation).clamp(DELAYS.0, DELAYS.1)
    }

    /// Whether one more second read may be started now; it is counted if so.
    pub(crate) fn start(&mut self) -> bool {
        let may = self.earned >= COST;
        if may {
            self.earned -= COST;
        }
        may
    }

    /// A datanode did not answer in time, or was overtaken.
    pub(crate) fn was_slow(&mut self, node: u32, now: Instant) {
        if self.slow.len() >= MAX_SLOW {
            self.slow.clear();
        }
        self.slow.insert(node, now + LAST_FOR);
    }

    /// A datanode gave its bytes: nothing is held against it any more. Otherwise two that were slow by turns would
    /// both be asked last, and the one that still is as often first as the other.
    pub(crate) fn was_good(&mut self, node: u32) {
        self.slow.remove(&node);
    }

    /// Whether a datanode is asked last for now.
    pub(crate) fn is_slow(&self, node: u32, now: Instant) -> bool {
        self.slow.get(&node).is_some_and(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_delay_follows_what_reads_take() {
        let mut hedge = Hedge::default();
        (0..100).for_each(|_| hedge.learn(MS));
        assert_eq!(hedge.delay(), DELAYS.0);
        // Everything is slow now: after a few reads nobody is asked twice any more.
        (0..30).for_each(|_| hedge.learn(400 * MS));
        assert!(hedge.delay() > 400 * MS, "{:?}", hedge.delay());
        (0..30).for_each(|_| hedge.learn(60_000 * MS));
        assert_eq!(hedge.delay(), DELAYS.1);
        (0..100).for_each(|_| hedge.learn(MS));
        assert_eq!(hedge.delay(), DELAYS.0);
    }

    #[test]
    fn second_reads_are_a_tenth_of_all_at_most() {
        let mut hedge = Hedge::default();
        let mut started = 0;
        for _ in 0..1000 {
            started += u32::from(hedge.start());
            hedge.learn(MS);
        }
        assert!((100..=100 + SAVED).contains(&started), "{started}");
    }

    #[test]
    fn a_slow_datanode_is_asked_last_for_a_while() {
        let mut hedge = Hedge::default();
        let now = Instant::now();
        hedge.was_slow(7, now);
        assert!(hedge.is_slow(7, now) && !hedge.is_slow(8, now));
        assert!(!hedge.is_slow(7, now + LAST_FOR));
        hedge.was_good(7);
        assert!(!hedge.is_slow(7, now));
        (0..10_000).for_each(|node| hedge.was_slow(node, now));
        assert!(hedge.slow.len() <= MAX_SLOW);
    }
}
