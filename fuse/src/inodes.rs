//! The inodes that are open on this mount, and what is known of each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cairn_client::{Cluster, File};
use cairn_proto::fs::{Attr, Cred};

/// One inode that is open here, however often.
pub(crate) struct OpenInode {
    /// Its content, shared by all its handles.
    pub file: File,
    learned: Mutex<Learned>,
}

#[derive(Clone, Copy)]
struct Learned {
    at: Instant,
    epoch: u64,
}

impl OpenInode {
    fn new(file: File, epoch: u64) -> OpenInode {
        OpenInode { file, learned: Mutex::new(Learned { at: Instant::now(), epoch }) }
    }

    /// Takes in attributes that were asked for when the mount's epoch was `epoch`. Older ones than known are ignored.
    pub(crate) fn learn(&self, attr: &Attr, epoch: u64) {
        if attr.version < self.file.attr().version {
            return;
        }
        self.file.learn(attr);
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch >= learned.epoch {
            *learned = Learned { at: Instant::now(), epoch };
        }
    }

    /// How long ago the attributes were heard.
    pub(crate) fn age(&self) -> Duration {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner).at.elapsed()
    }

    /// How much longer the known attributes may be shown, of `ttl` altogether.
    pub(crate) fn fresh_for(&self, ttl: Duration, epoch: u64) -> Option<Duration> {
        let learned = *self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        if learned.epoch != epoch {
            return None;
        }
        ttl.checked_sub(learned.at.elapsed()).filter(|left| !left.is_zero())
    }
}

struct Slot {
    open: Arc<OpenInode>,
    handles: usize,
}

/// Open inodes by number.
#[derive(Default)]
pub(crate) struct Inodes {
    slots: Mutex<HashMap<u64, Slot>>,
}

impl Inodes {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inode for one more handle, with attributes just heard.
    pub(crate) fn acquire(&self, cluster: &Cluster, cred: &Cred, attr: &Attr, epoch: u64) -> Arc<OpenInode> {
        let open = {
            let mut slots = self.lock();
            let slot = slots.entry(attr.inode).or_insert_with(|| Slot {
                open: Arc::new(OpenInode::new(cluster.open(cred, *attr), epoch)),
                handles: 0,
            });
            slot.handles += 1;
            slot.open.clone()
        };
        open.learn(attr, epoch);
        open
    }

    /// One handle less. To be called once what was written through it is committed: until then others find it here.
    pub(crate) fn release(&self, inode: u64) {
        let mut slots = self.lock();
        if let Some(slot) = slots.get_mut(&inode) {
            slot.handles -= 1;
            if slot.handles == 0 {
                slots.remove(&inode);
            }
        }
    }

    /// The inode, if it is open here.
    pub(crate) fn get(&self, inode: u64) -> Option<Arc<OpenInode>> {
        self.lock().get(&inode).map(|slot| slot.open.clone())
    }

    /// All that are open.
    pub(crate) fn all(&self) -> Vec<Arc<OpenInode>> {
        self.lock().values().map(|slot| slot.open.clone()).collect()
    }
}
