//! The time of day, as a process is told it.
//!
//! For how long something takes, `tokio::time::Instant` is asked.

use std::fmt::Debug;
use std::time::{SystemTime, UNIX_EPOCH};

/// Tells the time of day. It may jump, and differs from machine to machine.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Nanoseconds since 1970.
    fn now_ns(&self) -> i64;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealClock;

impl Clock for RealClock {
    fn now_ns(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }
}
