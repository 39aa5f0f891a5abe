//! Files that are open here are known to the namenode, so that nobody's unlink takes them away.
//!
//! Registering costs a log entry, and most files are opened again soon. So a file stays registered for a while after
//! its last close, and closes go out in batches. The namenode counts a session's opens of a file. While a close is on
//! its way, an open of the same file waits for it: passing it, the close would take the file away in between.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cairn_client::Cluster;
use cairn_proto::fs::{Attr, OpenInode, mutation, outcome};
use cairn_proto::snapshot::is_inside;
use cairn_proto::{ErrorCode, Result};
use tokio::sync::Mutex;

use crate::view::ROOT;

/// How long a file stays registered after its last close. An unlinked file keeps its space for so long.
pub(crate) const LINGER: Duration = Duration::from_secs(2);
/// Most opens undone in one message.
const BATCH: usize = 1024;

struct Hold {
    holders: usize,
    idle_since: Instant,
    /// Locked while the namenode is being told.
    registered: Arc<Mutex<Registered>>,
}

/// What the namenode knows of a file that is open here.
#[derive(Default)]
struct Registered {
    /// How many opens it counts.
    opens: u32,
    /// How many sessions had been lost when they were counted: those of a lost session count no more.
    era: u64,
}

impl Registered {
    fn stands(&self, cluster: &Cluster) -> bool {
        self.opens > 0 && self.era == cluster.sessions_lost()
    }

    /// One more open was counted, by a mutation that began in `era`.
    fn add(&mut self, era: u64) {
        if self.era != era {
            *self = Registered { opens: 0, era };
        }
        self.opens += 1;
    }
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

    fn one_more(&self, inode: u64) -> Arc<Mutex<Registered>> {
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
        if is_inside(inode) {
            // It is kept by its snapshot, and no session has anything to do with it.
            return Ok(None);
        }
        let registered = self.one_more(inode);
        let mut registered = registered.lock().await;
        if registered.stands(cluster) {
            return Ok(None);
        }
        match register(cluster, inode, &mut registered).await {
            Ok(attr) => Ok(attr),
            Err(error) => {
                self.let_go(inode);
                Err(error)
            }
        }
    }

    /// As [`Holds::hold`], for an inode that was opened in the mutation that made or found it, which began when
    /// `era` sessions had been lost.
    pub(crate) async fn adopt(&self, inode: u64, era: u64) {
        self.one_more(inode).lock().await.add(era);
    }

    /// A session was lost: what is open is registered under the next one, so that it goes on living.
    pub(crate) async fn register_again(&self, cluster: &Cluster) {
        let open: Vec<(u64, Arc<Mutex<Registered>>)> = {
            let holds = self.lock();
            let held = holds.iter().filter(|(_, hold)| hold.holders > 0);
            held.map(|(&inode, hold)| (inode, hold.registered.clone())).collect()
        };
        let (mut kept, mut gone) = (0, 0);
        for (inode, hold) in open {
            loop {
                let mut registered = hold.lock().await;
                if registered.opens == 0 || registered.stands(cluster) {
                    break;
                }
                match register(cluster, inode, &mut registered).await {
                    Ok(_) => kept += 1,
                    Err(error) if error.code == ErrorCode::Stale => {
                        *registered = Registered::default();
                        gone += 1;
                    }
                    // The cluster is away, or this session was lost as well.
                    Err(error) => {
                        tracing::debug!(inode, %error, "registering an open file again failed");
                        // Whoever opens it now need not wait for this.
                        drop(registered);
                        tokio::time::sleep(LINGER).await;
                    }
                }
            }
        }
        if kept + gone > 0 {
            tracing::warn!(kept, gone, "registered open files again after the session was lost");
        }
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
            let standing = idle.iter().filter(|(_, registered)| registered.stands(cluster));
            let opens: Vec<u64> = standing
                .flat_map(|(inode, registered)| std::iter::repeat_n(*inode, registered.opens as usize))
                .collect();
            for batch in opens.chunks(BATCH) {
                if let Err(error) = cluster.close_inodes(batch.to_vec()).await {
                    // Whether it was done is not known. Opening again is harmless; the session's end closes the rest.
                    tracing::warn!(%error, "closing files at the namenode failed");
                }
            }
            let mut holds = self.lock();
            for (inode, mut registered) in idle {
                *registered = Registered::default();
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

async fn register(cluster: &Cluster, inode: u64, registered: &mut Registered) -> Result<Option<Attr>> {
    let era = cluster.sessions_lost();
    let outcome = cluster.mutate(&ROOT, mutation::Op::Open(OpenInode { inode })).await?;
    registered.add(era);
    Ok(match outcome {
        outcome::Result::Attr(attr) => Some(attr),
        _ => None,
    })
}
