//! Following a request of a program through the processes that carry it out.
//!
//! What a program asks a mount or the library for gets a number. It travels with every message that is sent on its behalf,
//! so that a line in a datanode's log can be matched with one in the mount's. Each process says what it did for a
//! request when it has done it ([`done`]): to the log when it took long, and to a [`Sink`] that somebody set up, such as
//! an exporter of traces. Where neither is wanted, all of it costs a few nanoseconds.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::seldom::Seldom;

/// The number of a request; 0: of none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

tokio::task_local! {
    static CURRENT: RequestId;
}

impl RequestId {
    /// The request that is being carried out, if one is.
    pub fn current() -> RequestId {
        CURRENT.try_with(|request| *request).unwrap_or_default()
    }

    /// A new one: its number is not used again, by anybody.
    pub fn fresh() -> RequestId {
        static BEGINNING: OnceLock<u64> = OnceLock::new();
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let beginning = *BEGINNING.get_or_init(|| RandomState::new().hash_one("requests"));
        RequestId(spread(beginning.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))))
    }

    /// Whether there is one.
    pub fn is_some(self) -> bool {
        self.0 != 0
    }

    /// Does `work` on behalf of it.
    pub fn carry<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, work)
    }
}

/// Numbers that follow each other become numbers that do not look alike (the finalizer of splitmix64), never 0.
fn spread(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)).max(1)
}

/// Work for the request that is being carried out or, if there is none, a request of its own.
#[derive(Debug, Clone, Copy)]
pub struct Errand {
    /// For which it is.
    pub request: RequestId,
    whole: bool,
}

impl Errand {
    /// That begins now.
    pub fn begin() -> Errand {
        let current = RequestId::current();
        let whole = !current.is_some();
        Errand { request: if whole { RequestId::fresh() } else { current }, whole }
    }

    /// Says that it is done.
    pub fn done(self, what: &'static str, took: Duration, failed: bool) {
        tell(self.request, what, took, failed, self.whole);
    }
}

/// A part of a request that a process has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Which request.
    pub request: RequestId,
    /// What was done, as metrics call it.
    pub what: &'static str,
    /// Whether it is the request itself, of which all others are parts.
    pub whole: bool,
    /// When it began.
    pub began: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Whether it failed.
    pub failed: bool,
}

/// Takes what is done of requests.
pub trait Sink: Send + Sync {
    /// Must not wait.
    fn take(&self, part: Part);
}

/// What this process does with what it knows of requests.
struct Follow {
    slow: Duration,
    sink: Option<Box<dyn Sink>>,
    /// When everything is slow, a few lines say so.
    lines: Seldom,
}

static FOLLOW: OnceLock<Follow> = OnceLock::new();

/// From now on, parts that take `slow` or longer are logged (zero: none), and all parts go to `sink`. Whoever comes first
/// stays.
pub fn follow(slow: Duration, sink: Option<Box<dyn Sink>>) {
    if !slow.is_zero() || sink.is_some() {
        let _ = FOLLOW.set(Follow { slow, sink, lines: Seldom::new() });
    }
}

/// Says that this process has done something for a request. It began `took` ago.
pub fn done(request: RequestId, what: &'static str, took: Duration, failed: bool) {
    tell(request, what, took, failed, false);
}

/// Says that a request itself is done.
pub fn finished(request: RequestId, what: &'static str, took: Duration, failed: bool) {
    tell(request, what, took, failed, true);
}

fn tell(request: RequestId, what: &'static str, took: Duration, failed: bool, whole: bool) {
    let Some(follow) = FOLLOW.get() else { return };
    if !request.is_some() {
        return;
    }
    if !follow.slow.is_zero()
        && took >= follow.slow
        && let Some(left_out) = follow.lines.admit()
    {
        tracing::warn!(%request, what, ms = took.as_millis() as u64, failed, left_out, "slow");
    }
    if let Some(sink) = &follow.sink {
        let began = SystemTime::now().checked_sub(took).unwrap_or(SystemTime::UNIX_EPOCH);
        sink.take(Part { request, what, whole, began, took, failed });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_numbers_of_their_own() {
        let (first, second) = (RequestId::fresh(), RequestId::fresh());
        assert!(first.is_some() && second.is_some());
        assert_ne!(first, second);
        assert_eq!(RequestId(0xab).to_string(), "00000000000000ab");
    }

    #[tokio::test]
    async fn what_is_done_for_a_request_knows_it() {
        assert!(!RequestId::current().is_some());
        let request = RequestId::fresh();
        let seen = request.carry(async {
            tokio::task::yield_now().await;
            RequestId::current()
        });
        assert_eq!(seen.await, request);
        assert!(!RequestId::current().is_some());
    }
}
