//! A thread that empties data directories into the others, as the configuration asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle, park_timeout};
use std::time::Duration;

use cairn_proto::{ErrorCode, Result};

use crate::pace::Pace;
use crate::store::Store;

/// Between two looks for what is left: open replicas are moved once they are sealed, failed moves tried again.
const LOOK: Duration = Duration::from_secs(2);

/// The drainer of one datanode. It ends when it is dropped; what is half moved stays where it was.
pub struct Drainer {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drainer {
    /// Begins, at most so many bytes a second; 0: no limit.
    pub fn start(store: Arc<Store>, bytes_per_second: u64) -> Result<Drainer> {
        let stopping = Arc::new(AtomicBool::new(false));
        let told = stopping.clone();
        let thread = Builder::new()
            .name("drain".into())
            .spawn(move || run(&store, bytes_per_second, &told))
            .map_err(|error| ErrorCode::Unavailable.because(format!("draining: {error}")))?;
        Ok(Drainer { stopping, thread: Some(thread) })
    }
}

impl Drop for Drainer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn run(store: &Store, bytes_per_second: u64, stopping: &AtomicBool) {
    let goes_on = || !stopping.load(Ordering::Acquire);
    let mut pace = Pace::new(bytes_per_second);
    let (mut next, mut was_left) = (0, true);
    while goes_on() {
        if let Some(replica) = store.next_to_drain(next) {
            let chunk = replica.chunk();
            if let Err(error) = store.move_away(&replica, &mut |bytes| pace.wait_while(bytes, goes_on)) {
                tracing::warn!(chunk, %error, "a replica was not moved out of a directory that is drained");
            }
            next = chunk.saturating_add(1);
            continue;
        }
        next = 0;
        let is_left = store.draining().iter().any(|dir| dir.replicas > 0);
        if was_left && !is_left {
            tracing::info!("all directories to be drained are empty; they can be taken out of `dirs`");
        }
        was_left = is_left;
        park_timeout(LOOK);
    }
}
