//! What the store has found out and the namenode should hear.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use super::locked;

/// News since they were last taken.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Replicas whose report has changed.
    pub changed: BTreeSet<u64>,
    /// Replicas found bad, with the reason.
    pub bad: BTreeMap<u64, String>,
    /// Much has changed: the whole inventory should be sent.
    pub everything: bool,
}

/// Collects news from any thread until the attendance sends them. One entry a chunk, whatever happens.
#[derive(Debug, Default)]
pub struct Notices {
    news: Mutex<News>,
    known_bad: Mutex<BTreeMap<u64, String>>,
    notify: Notify,
    found: AtomicU64,
    mended: AtomicU64,
}

impl Notices {
    /// A replica's length or state is another than last reported.
    pub fn changed(&self, chunk: u64) {
        locked(&self.news).changed.insert(chunk);
        self.notify.notify_one();
    }

    /// A replica is bad. Said once, until it is gone.
    pub fn bad(&self, chunk: u64, reason: &str) {
        if locked(&self.known_bad).insert(chunk, reason.to_owned()).is_some() {
            return;
        }
        self.found.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(chunk, reason, "bad replica");
        locked(&self.news).bad.insert(chunk, reason.to_owned());
        self.notify.notify_one();
    }

    /// The replica is gone or replaced: nothing is known against it any more.
    pub fn forget(&self, chunk: u64) {
        if locked(&self.known_bad).remove(&chunk).is_some() {
            self.mended.fetch_add(1, Ordering::Relaxed);
            tracing::info!(chunk, "a bad replica is gone or replaced");
        }
        locked(&self.news).bad.remove(&chunk);
    }

    /// A whole directory failed.
    pub fn everything(&self) {
        locked(&self.news).everything = true;
        self.notify.notify_one();
    }

    /// Says once more what is known against a replica, if anything is.
    pub fn again(&self, chunk: u64) {
        let known = locked(&self.known_bad);
        if let Some(reason) = known.get(&chunk) {
            locked(&self.news).bad.insert(chunk, reason.clone());
            self.notify.notify_one();
        }
    }

    /// Everything known to be bad: a new leader has not heard of it.
    pub fn all_bad(&self) -> BTreeMap<u64, String> {
        locked(&self.known_bad).clone()
    }

    /// Takes in what an earlier run knew, of the replicas that are still `here`.
    pub fn remember(&self, found: u64, mended: u64, bad: &BTreeMap<u64, String>, here: impl Fn(u64) -> bool) {
        // Asked before anything is locked: who replaces a replica holds what it asks for, and wants these.
        let here: BTreeSet<u64> = bad.keys().copied().filter(|chunk| here(*chunk)).collect();
        let mut known = locked(&self.known_bad);
        // Those that the start itself found were counted then.
        let again = known.keys().filter(|chunk| bad.contains_key(chunk)).count() as u64;
        let gone = bad.keys().filter(|chunk| !here.contains(*chunk)).count() as u64;
        self.found.fetch_add(found.saturating_sub(again), Ordering::Relaxed);
        self.mended.fetch_add(mended + gone, Ordering::Relaxed);
        for (chunk, reason) in bad.iter().filter(|(chunk, _)| here.contains(*chunk)) {
            known.entry(*chunk).or_insert_with(|| reason.clone());
        }
    }

    /// Bad replicas found, and those of them that are gone or replaced.
    pub fn counts(&self) -> (u64, u64) {
        (self.found.load(Ordering::Relaxed), self.mended.load(Ordering::Relaxed))
    }

    /// Whether the replica is known to be bad.
    pub fn is_bad(&self, chunk: u64) -> bool {
        locked(&self.known_bad).contains_key(&chunk)
    }

    /// Takes the news; empty if there are none.
    pub fn take(&self) -> News {
        std::mem::take(&mut *locked(&self.news))
    }

    /// Waits until there may be news.
    pub async fn wait(&self) {
        self.notify.notified().await;
    }
}
