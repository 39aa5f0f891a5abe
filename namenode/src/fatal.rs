//! When a namenode must stop: it can no longer keep what it promised.

use std::any::Any;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;
use tokio::task::AbortHandle;

/// What to do about a namenode whose records are damaged.
pub(crate) const REMEDY: &str = "if a majority of the other namenodes is up, move this namenode's directory away and \
                                 start it empty, so that it joins again from them; else restore it from a backup";

/// What a panic that was caught had to say.
pub(crate) fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// Raised once, by whoever finds that the namenode must not answer on.
#[derive(Debug, Clone)]
pub struct Alarm(Arc<State>);

#[derive(Debug)]
struct State {
    reason: watch::Sender<Option<String>>,
    /// The namenode was asked to stop: tasks end because they are told to.
    disarmed: AtomicBool,
}

impl Default for Alarm {
    fn default() -> Alarm {
        Alarm(Arc::new(State { reason: watch::Sender::new(None), disarmed: AtomicBool::new(false) }))
    }
}

impl Alarm {
    /// Stops the namenode. The first reason is kept.
    pub fn raise(&self, why: impl Into<String>) {
        if self.0.disarmed.load(Ordering::Acquire) {
            return;
        }
        let why = why.into();
        self.0.reason.send_if_modified(|reason| {
            let first = reason.is_none();
            if first {
                tracing::error!(%why, "this namenode cannot go on");
            }
            reason.get_or_insert(why);
            first
        });
    }

    /// Starts a task that nobody waits for. Should it panic, the namenode stops: it would go on as a leader that does only
    /// half of what a leader has to.
    pub fn spawn(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        let guard = Guard { alarm: self.clone(), what };
        let guarded = async move {
            let _guard = guard;
            task.await;
        };
        tokio::spawn(guarded).abort_handle()
    }

    /// What ends from now on ends on purpose.
    pub fn disarm(&self) {
        self.0.disarmed.store(true, Ordering::Release);
    }

    /// Why the namenode must stop, as soon as somebody says so.
    pub async fn raised(&self) -> String {
        let mut watch = self.0.reason.subscribe();
        // The sender lives in `self`: waiting does not fail.
        let reason = watch.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or_default()
    }
}

/// Raises the alarm when its holder panics. Whoever ends in another way was told to, or says why.
#[derive(Debug)]
struct Guard {
    alarm: Alarm,
    what: &'static str,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.alarm.raise(format!("{} panicked", self.what));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn panics() {
        panic!("on purpose");
    }

    #[tokio::test]
    async fn a_task_that_panics_stops_the_namenode_and_one_that_is_told_to_end_does_not() {
        let alarm = Alarm::default();
        alarm.spawn("a task that is aborted", std::future::pending()).abort();
        alarm.spawn("a task that ends", std::future::ready(()));
        alarm.spawn("a task", panics());
        assert_eq!(alarm.raised().await, "a task panicked");
    }
}
