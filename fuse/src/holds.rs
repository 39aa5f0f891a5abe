//! Files that are open here are known to the namenode, so that nobody's unlink takes them away.
//!
//! Registering costs a log entry, and most files are opened again soon. So a file stays registered for a while after
//! its last close, and closes go out in batches. While a close is on its way, an open of the same file waits for it:
//! the two must not pass each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cairn_client::Cluster;
use cairn_proto::Result;
use tokio::sync::Mutex;

use crate::view::ROOT;

/// How long a file stays registered after its last close. An unlinked file keeps its space for so long.
pub(crate) const LINGER: Duration = Duration::from_secs(2);
/// Most files closed in one message.
const BATCH: usize = 1024;

struct Hold {
    holders: usize,
    idle_since: Instant,
    /// Whether the namenode knows; locked while it is being told.
    registered: Arc<Mutex<bool>>,
}

/// The files this mount has registered as open.
#[derive(Default)]
pub(crate) struct Holds {
    holds: StdMutex<HashMap<u64, Hold>>,
}

impl Holds {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Hold>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn one_more(&self, inode: u64, registered: bool) -> Arc<Mutex<bool>> {
        let mut holds = self.lock();
        let hold = holds.entry(inode).or_insert_with(|| Hold {
            holders: 0,
            idle_since: Instant::now(),
            registered: Arc::new(Mutex::new(registered)),
        });
        hold.holders += 1;
        hold.registered.clone()
    }

    /// Keeps the inode alive until [`Holds::let_go`], whatever happens to its names.
    pub(crate) async fn hold(&self, cluster: &Cluster, inode: u64) -> Result<()> {
        let registered = self.one_more(inode, false);
        let mut registered = registered.lock().await;
        if *registered {
            return Ok(());
        }
        match cluster.open_inode(&ROOT, inode).await {
            Ok(()) => {
                *registered = true;
                Ok(())
            }
            Err(error) => {
                self.let_go(inode);
                Err(error)
            }
        }
    }

    /// As [`Holds::hold`], for a new inode that was registered in the mutation that made it.
    pub(crate) fn adopt(&self, inode: u64) {
        self.one_more(inode, true);
    }

    /// Ends one hold.
    pub(crate) fn let_go(&self, inode: u64) {
        if let Some(hold) = self.lock().get_mut(&inode) {
            hold.holders = hold.holders.saturating_sub(1);
            hold.idle_since = Instant::now();
        }
    }

    /// Tells the namenode of files that nobody has had open for `linger`.
    pub(crate) async fn close_idle(&self, cluster: &Cluster, linger: Duration) {
        loop {
            let mut idle = Vec::new();
            for (&inode, hold) in self.lock().iter() {
                if hold.holders == 0
                    && hold.idle_since.elapsed() >= linger
                    && let Ok(registered) = hold.registered.clone().try_lock_owned()
                {
                    idle.push((inode, registered));
                }
                if idle.len() == BATCH {
                    break;
                }
            }
            if idle.is_empty() {
                return;
            }
            let known: Vec<u64> =
                idle.iter().filter(|(_, registered)| **registered).map(|(inode, _)| *inode).collect();
            if !known.is_empty()
                && let Err(error) = cluster.close_inodes(known).await
            {
                // Whether it was done is not known. Opening again is harmless, and the session's end closes the rest.
                tracing::warn!(%error, "closing files at the namenode failed");
            }
            let mut holds = self.lock();
            for (inode, mut registered) in idle {
                *registered = false;
                if holds.get(&inode).is_some_and(|hold| hold.holders == 0) {
                    holds.remove(&inode);
                }
            }
        }
    }

    /// Whether nothing is registered.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}
