//! A thread that empties data directories into the others, as the configuration asks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use cairn_proto::{ErrorCode, Result};

use crate::pace::Pace;
use crate::store::{Store, locked};

/// Between two looks for what is left: open replicas are moved once they are sealed, failed moves tried again.
const LOOK: Duration = Duration::from_secs(2);

/// The drainer of one datanode.
pub struct Drainer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    store: Arc<Store>,
    bytes_per_second: u64,
    stopping: AtomicBool,
    sleep: Mutex<()>,
    wake: Condvar,
}

impl Drainer {
    /// Begins, at most so many bytes a second; 0: no limit.
    pub fn start(store: Arc<Store>, bytes_per_second: u64) -> Result<Drainer> {
        let shared = Arc::new(Shared {
            store,
            bytes_per_second,
            stopping: AtomicBool::new(false),
            sleep: Mutex::default(),
            wake: Condvar::new(),
        });
        let worker = shared.clone();
        let thread = Builder::new()
            .name("drain".into())
            .spawn(move || worker.run())
            .map_err(|error| ErrorCode::Unavailable.because(format!("draining: {error}")))?;
        Ok(Drainer { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Ends it; what is half moved stays where it was.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        // Under the lock, so that it is not missed by somebody who is about to sleep.
        drop(locked(&self.shared.sleep));
        self.shared.wake.notify_all();
        if let Some(thread) = locked(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Drainer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn run(&self) {
        let mut pace = Pace::new(self.bytes_per_second);
        let (mut next, mut was_left) = (0, true);
        while !self.is_stopping() {
            if let Some(replica) = self.store.next_to_drain(next) {
                let chunk = replica.chunk();
                let mut go_on = |bytes| pace.wait_while(bytes, || !self.is_stopping());
                if let Err(error) = self.store.move_away(&replica, &mut go_on) {
                    tracing::warn!(chunk, %error, "a replica was not moved out of a directory that is drained");
                }
                next = chunk.saturating_add(1);
                continue;
            }
            next = 0;
            let is_left = self.store.draining().iter().any(|dir| dir.replicas > 0);
            if was_left && !is_left {
                tracing::info!("all directories to be drained are empty; they can be taken out of `dirs`");
            }
            was_left = is_left;
            let sleep = locked(&self.sleep);
            if !self.is_stopping() {
                drop(self.wake.wait_timeout(sleep, LOOK));
            }
        }
    }
}
