//! Files that are open here are known to the namenode, so that nobody's unlink takes them away.
//!
//! Registering costs a log entry, and most files are opened again soon. So a file stays registered for a while after
//! its last close, and closes go out in batches. The namenode counts a session's opens of a file. While a close is on
//! its way, an open of the same file waits for it: passing it, the close would take the file away in between.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cairn_client::Cluster;
use cairn_proto::Result;
use cairn_proto::fs::{Attr, OpenInode, mutation, outcome};
use tokio::sync::Mutex;

use crate::view::ROOT;

/// How long a file stays registered after its last close. An unlinked file keeps its space for so long.
pub(crate) const LINGER: Duration = Duration::from_secs(2);
/// Most opens undone in one message.
const BATCH: usize = 1024;

struct Hold {
    holders: usize,
    idle_since: Instant,
    /// How many opens the namenode counts for this session; locked while it is being told.
    registered: Arc<Mutex<u32>>,
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

    fn one_more(&self, inode: u64) -> Arc<Mutex<u32>> {
        let mut holds = self.lock();
        let hold = holds.entry(inode).or_insert_with(|| Hold {
            holders: 0,
            idle_since: Instant::now(),
            registered: Arc::default(),
        });
        hold.holders += 1;
        hold.registered.clone()
    }

    /// Keeps the inode alive until [`Holds::let_go`], whatever happens to its names.
    ///
    /// Returns its attributes if the namenode was asked.
    pub(crate) async fn hold(&self, cluster: &Cluster, inode: u64) -> Result<Option<Attr>> {
        let registered = self.one_more(inode);
        let mut registered = registered.lock().await;
        if *registered > 0 {
            return Ok(None);
        }
        match cluster.mutate(&ROOT, mutation::Op::Open(OpenInode { inode })).await {
            Ok(outcome) => {
                *registered = 1;
                Ok(match outcome {
                    outcome::Result::Attr(attr) => Some(attr),
                    _ => None,
                })
            }
            Err(error) => {
                self.let_go(inode);
                Err(error)
            }
        }
    }

    /// As [`Holds::hold`], for an inode that was opened in the mutation that made or found it.
    pub(crate) async fn adopt(&self, inode: u64) {
        *self.one_more(inode).lock().await += 1;
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
            let opens: Vec<u64> = idle
                .iter()
                .flat_map(|(inode, registered)| std::iter::repeat_n(*inode, **registered as usize))
                .collect();
            for batch in opens.chunks(BATCH) {
                if let Err(error) = cluster.close_inodes(batch.to_vec()).await {
                    // Whether it was done is not known. Opening again is harmless; the session's end closes the rest.
                    tracing::warn!(%error, "closing files at the namenode failed");
                }
            }
            let mut holds = self.lock();
            for (inode, mut registered) in idle {
                *registered = 0;
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
