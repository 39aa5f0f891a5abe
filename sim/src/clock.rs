//! The time of day on a machine: the run's time, off by what the seed says.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use cairn_host::clock::Clock;

use crate::machine::now;

/// When every run begins, in nanoseconds since 1970.
const EPOCH: i64 = 1_750_000_000_000_000_000;

/// A clock that may be set; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct SimulatedClock(Arc<AtomicI64>);

impl SimulatedClock {
    /// Sets it off by so many nanoseconds.
    pub fn skew(&self, by_ns: i64) {
        self.0.store(by_ns, Ordering::Relaxed);
    }
}

impl Clock for SimulatedClock {
    fn now_ns(&self) -> i64 {
        EPOCH + now() as i64 + self.0.load(Ordering::Relaxed)
    }
}
