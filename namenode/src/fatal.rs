//! When a namenode must stop: it can no longer keep what it promised.

use std::sync::Arc;

use tokio::sync::watch;

/// Raised once, by whoever finds that the namenode must not answer on.
#[derive(Debug, Clone)]
pub struct Alarm(Arc<watch::Sender<Option<String>>>);

impl Default for Alarm {
    fn default() -> Alarm {
        Alarm(Arc::new(watch::Sender::new(None)))
    }
}

impl Alarm {
    /// Stops the namenode. The first reason is kept.
    pub fn raise(&self, why: impl Into<String>) {
        let why = why.into();
        tracing::error!(%why, "this namenode cannot go on");
        self.0.send_if_modified(|reason| {
            let first = reason.is_none();
            reason.get_or_insert(why);
            first
        });
    }

    /// Why the namenode must stop, as soon as somebody says so.
    pub async fn raised(&self) -> String {
        let mut watch = self.0.subscribe();
        match watch.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The sender lives in `self`.
            Err(_) => std::future::pending().await,
        }
    }

    /// Whether the namenode is stopping.
    pub fn is_raised(&self) -> bool {
        self.0.borrow().is_some()
    }
}
