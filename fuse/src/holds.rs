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
use tokio::sync::{Mutex, OwnedMutexGuard};

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
    /// How many opens it counts, at most.
    opens: u32,
    /// How many sessions had been lost when they were counted: those of a lost session count no more.
    era: u64,
    /// It was told to close them and has not answered, so it may count none.
    in_doubt: bool,
}

impl Registered {
    /// Whether it is sure to count one, `lost` sessions having been lost by now.
    fn stands(&self, lost: u64) -> bool {
        self.may_stand(lost) && !self.in_doubt
    }

    /// Whether it may count some.
    fn may_stand(&self, lost: u64) -> bool {
        self.opens > 0 && self.era == lost
    }

    /// One more open was counted, by a mutation that began in `era`.
    fn add(&mut self, era: u64) {
        if self.era != era {
            *self = Registered { era, ..Registered::default() };
        }
        self.opens += 1;
        self.in_doubt = false;
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
        if registered.stands(cluster.sessions_lost()) {
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
                if registered.opens == 0 || registered.stands(cluster.sessions_lost()) {
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
        let close = |inodes| cluster.close_inodes(inodes);
        self.close_idle_by(close, || cluster.sessions_lost(), linger).await;
    }

    async fn close_idle_by<F: Future<Output = Result<()>>>(
        &self,
        close: impl Fn(Vec<u64>) -> F,
        sessions_lost: impl Fn() -> u64,
        linger: Duration,
    ) {
        loop {
            let mut idle = self.idle(linger);
            if idle.is_empty() {
                return;
            }
            let lost = sessions_lost();
            let counted = idle.iter().filter(|(_, registered)| registered.may_stand(lost));
            let opens: Vec<u64> = counted
                .flat_map(|(inode, registered)| std::iter::repeat_n(*inode, registered.opens as usize))
                .collect();
            for batch in opens.chunks(BATCH) {
                let Err(error) = close(batch.to_vec()).await else { continue };
                tracing::warn!(%error, "closing files at the namenode failed");
                if !error.code.is_final() {
                    // It may have been done, or not; closing what is not open is harmless. So all are closed again later:
                    // what stayed open would keep its space until this mount ends.
                    for (_, registered) in &mut idle {
                        registered.in_doubt = true;
                    }
                    return;
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

    /// Some of the files that nobody has had open for `linger`, locked.
    fn idle(&self, linger: Duration) -> Vec<(u64, OwnedMutexGuard<Registered>)> {
        let holds = self.lock();
        let idle = holds.iter().filter(|(_, hold)| hold.holders == 0 && hold.idle_since.elapsed() >= linger);
        idle.filter_map(|(&inode, hold)| Some((inode, hold.registered.clone().try_lock_owned().ok()?)))
            .take(BATCH)
            .collect()
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::{Ready, ready};

    use super::*;

    async fn stands(holds: &Holds, inode: u64) -> bool {
        let registered = holds.lock()[&inode].registered.clone();
        registered.lock().await.stands(0)
    }

    #[tokio::test]
    async fn a_close_without_an_answer_is_sent_again() {
        let holds = Holds::default();
        holds.adopt(5, 0).await;
        holds.let_go(5);
        let silent = |_: Vec<u64>| ready(Err(ErrorCode::Timeout.into()));
        holds.close_idle_by(silent, || 0, Duration::ZERO).await;
        assert!(!stands(&holds, 5).await, "whoever opens it now registers it anew");
        holds.adopt(5, 0).await;
        assert!(stands(&holds, 5).await);
        holds.let_go(5);
        let closed = RefCell::new(Vec::new());
        let close = |inodes: Vec<u64>| {
            closed.borrow_mut().extend(inodes);
            ready(Ok(()))
        };
        holds.close_idle_by(close, || 0, Duration::ZERO).await;
        assert_eq!(closed.into_inner(), [5, 5], "both, should it count both");
        assert!(holds.is_empty());
    }

    #[tokio::test]
    async fn what_ended_with_its_session_is_not_closed() {
        let holds = Holds::default();
        holds.adopt(5, 0).await;
        holds.let_go(5);
        let expired = |_: Vec<u64>| ready(Err(ErrorCode::SessionExpired.into()));
        holds.close_idle_by(expired, || 0, Duration::ZERO).await;
        assert!(holds.is_empty());
        holds.adopt(6, 0).await;
        holds.let_go(6);
        let never = |_: Vec<u64>| -> Ready<Result<()>> { panic!("nothing is open any more") };
        holds.close_idle_by(never, || 1, Duration::ZERO).await;
        assert!(holds.is_empty());
    }
}
