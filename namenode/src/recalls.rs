//! Asking sessions for what is delegated to them and somebody else wants.
//!
//! Nothing here is kept for long or has to arrive: whoever waits asks again until the directory is handed back, or until
//! the session is over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::Delegated;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

/// Recalls of one conversation that are not sent yet, at most.
const WAITING: usize = 256;
/// How long somebody waits before looking again, whatever happened.
const LOOK: Duration = Duration::from_millis(50);

/// The conversations of the sessions there are, as far as this namenode hears them.
#[derive(Debug, Default)]
pub struct Recalls {
    conversations: Mutex<HashMap<u64, Conversation>>,
    /// Conversations there ever were: no two have the same number, whatever session they speak for.
    numbered: AtomicU64,
    changed: Notify,
}

#[derive(Debug)]
struct Conversation {
    number: u64,
    recalls: mpsc::Sender<u64>,
}

/// One conversation's place among them; what is recalled arrives in the receiver that came with it.
pub struct Listener {
    all: Arc<Recalls>,
    sender: mpsc::Sender<u64>,
    session: u64,
    number: u64,
}

impl Recalls {
    /// A place for a new conversation, of no session yet.
    pub fn listen(self: &Arc<Recalls>) -> (Listener, mpsc::Receiver<u64>) {
        let (sender, recalled) = mpsc::channel(WAITING);
        let number = self.numbered.fetch_add(1, Ordering::Relaxed);
        (Listener { all: Arc::clone(self), sender, session: 0, number }, recalled)
    }

    /// Asks for a directory.
    pub fn ask(&self, held: Delegated) {
        if let Some(conversation) = self.lock().get(&held.session) {
            // When it is full, or nobody speaks for the session now, it is asked again.
            let _ = conversation.recalls.try_send(held.directory);
        }
    }

    /// Something may have been handed back, or a session ended.
    pub fn changed(&self) {
        self.changed.notify_waiters();
    }

    /// Waits until that happens, but not for long.
    pub async fn wait(&self) {
        let _ = timeout(LOOK, self.changed.notified()).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Conversation>> {
        self.conversations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    /// The conversation speaks for `session` now.
    pub fn speaks_for(&mut self, session: u64) {
        if session == self.session {
            return;
        }
        self.leave();
        self.session = session;
        let conversation = Conversation { number: self.number, recalls: self.sender.clone() };
        // A client that lost its connection has a new one before the old one is known to be gone.
        self.all.lock().insert(session, conversation);
    }

    fn leave(&mut self) {
        let mut conversations = self.all.lock();
        if conversations.get(&self.session).is_some_and(|own| own.number == self.number) {
            conversations.remove(&self.session);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_conversation_of_a_session_is_asked() {
        let recalls = Arc::new(Recalls::default());
        let held = Delegated { directory: 77, session: 5 };
        recalls.ask(held);
        let (mut old, mut heard_by_old) = recalls.listen();
        old.speaks_for(5);
        let (mut new, mut heard_by_new) = recalls.listen();
        new.speaks_for(5);
        recalls.ask(held);
        drop(old);
        recalls.ask(held);
        assert_eq!((heard_by_new.try_recv(), heard_by_new.try_recv()), (Ok(77), Ok(77)));
        assert!(heard_by_old.try_recv().is_err());
        drop(new);
        assert!(recalls.lock().is_empty());
    }

    #[test]
    fn an_old_conversation_that_ends_late_takes_no_newer_one_along() {
        let recalls = Arc::new(Recalls::default());
        let (mut first, _heard_by_first) = recalls.listen();
        first.speaks_for(5);
        let (mut second, _heard_by_second) = recalls.listen();
        second.speaks_for(5);
        drop(second);
        let (mut third, mut heard_by_third) = recalls.listen();
        third.speaks_for(5);
        drop(first);
        recalls.ask(Delegated { directory: 77, session: 5 });
        assert_eq!(heard_by_third.try_recv(), Ok(77));
    }

    #[test]
    fn a_client_that_does_not_listen_holds_up_nobody() {
        let recalls = Arc::new(Recalls::default());
        let (mut deaf, _heard) = recalls.listen();
        deaf.speaks_for(5);
        (0..10 * WAITING as u64).for_each(|directory| recalls.ask(Delegated { directory, session: 5 }));
    }
}
