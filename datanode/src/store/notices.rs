//! What the store has found out and the namenode should hear.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

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
        tracing::warn!(chunk, reason, "bad replica");
        locked(&self.news).bad.insert(chunk, reason.to_owned());
        self.notify.notify_one();
    }

    /// The replica is gone or replaced: nothing is known against it any more.
    pub fn forget(&self, chunk: u64) {
        locked(&self.known_bad).remove(&chunk);
        locked(&self.news).bad.remove(&chunk);
    }

    /// A whole directory failed.
    pub fn everything(&self) {
        locked(&self.news).everything = true;
        self.notify.notify_one();
    }

    /// Everything known to be bad: a new leader has not heard of it.
    pub fn all_bad(&self) -> BTreeMap<u64, String> {
        locked(&self.known_bad).clone()
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
