//! When files were last read, told to the namenode late and seldom.
//!
//! A read that counts is noted here, shown at once to whoever asks on this mount, and sent with others some seconds
//! later. What is noted is lost if this process is killed; nothing but a time of access is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cairn_client::Cluster;
use cairn_proto::Result;
use cairn_proto::fs::{Attr, FileRead, MarkRead, mutation};
use tokio::sync::{RwLock, RwLockReadGuard};

use crate::mount::Atime;
use crate::view::ROOT;

/// Most inodes noted at a time; reads of further ones do not count.
const MOST: usize = 64 << 10;
/// Inodes told of in one message.
const BATCH: usize = 1024;
/// After so long a read counts in any case, in nanoseconds.
const DAY: i64 = 24 * 3600 * 1_000_000_000;

struct Noted {
    at_ns: i64,
    /// Version that was read: the namenode ignores a read of what was changed since.
    version: u64,
    /// The namenode has heard of it; kept only because attributes from before may still be about.
    told: bool,
}

/// The reads of one mount.
#[derive(Default)]
pub(crate) struct Accesses {
    noted: StdMutex<HashMap<u64, Noted>>,
    /// How many are noted, so that nobody who has nothing to find takes the lock.
    count: AtomicUsize,
    /// Written while the namenode is being told, read while a time is set, which must not be overtaken.
    telling: RwLock<()>,
}

/// Whether a read at `now` is to be remembered for an inode with these times.
fn counts(policy: Atime, attr: &Attr, now: i64) -> bool {
    match policy {
        Atime::Never => false,
        Atime::Always => now > attr.atime_ns,
        Atime::Relative => {
            attr.atime_ns <= attr.mtime_ns
                || attr.atime_ns <= attr.ctime_ns
                || now.saturating_sub(attr.atime_ns) >= DAY
        }
    }
}

/// Whether a read just now is to be remembered.
pub(crate) fn counts_now(policy: Atime, attr: &Attr) -> bool {
    counts(policy, attr, now_ns())
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

impl Accesses {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Noted>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inode with these attributes is being read.
    pub(crate) fn note(&self, policy: Atime, attr: &Attr) {
        self.note_at(policy, attr, now_ns());
    }

    fn note_at(&self, policy: Atime, attr: &Attr, now: i64) {
        if !counts(policy, attr, now) {
            return;
        }
        let mut noted = self.lock();
        if let Some(known) = noted.get_mut(&attr.inode) {
            let shown = Attr { atime_ns: attr.atime_ns.max(known.at_ns), ..*attr };
            if counts(policy, &shown, now) {
                *known = Noted { at_ns: now, version: attr.version, told: false };
            }
        } else if noted.len() < MOST {
            noted.insert(attr.inode, Noted { at_ns: now, version: attr.version, told: false });
        }
        self.count.store(noted.len(), Ordering::Release);
    }

    /// Puts the noted time on top of attributes that may not have it yet.
    pub(crate) fn show(&self, attr: &mut Attr) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        if let Some(noted) = self.lock().get(&attr.inode) {
            attr.atime_ns = attr.atime_ns.max(noted.at_ns);
        }
    }

    /// Whether nothing is noted.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Forgets what is noted of an inode whose times are about to be set, and keeps anything from being told until the
    /// returned guard is dropped.
    pub(crate) async fn forget(&self, inode: u64) -> RwLockReadGuard<'_, ()> {
        let guard = self.telling.read().await;
        let mut noted = self.lock();
        noted.remove(&inode);
        self.count.store(noted.len(), Ordering::Release);
        guard
    }

    /// Tells the namenode. What is told is forgotten once `is_open` does not find the inode any more: until then
    /// attributes from before are remembered elsewhere.
    pub(crate) async fn tell(&self, cluster: &Cluster, is_open: impl Fn(u64) -> bool) {
        let say = |files| cluster.mutate(&ROOT, mutation::Op::MarkRead(MarkRead { files }));
        self.tell_by(say, is_open).await;
    }

    async fn tell_by<T, F: Future<Output = Result<T>>>(
        &self,
        say: impl Fn(Vec<FileRead>) -> F,
        is_open: impl Fn(u64) -> bool,
    ) {
        if self.is_empty() {
            return;
        }
        // Times that are being set may wait for the namenodes: rather later than to hold up those that come next.
        let Ok(_telling) = self.telling.try_write() else { return };
        // What is noted from now on is told the next time: while somebody reads one new file after the other there would
        // be no end, and whoever sets a time waits for it.
        let untold = self.untold();
        for files in untold.chunks(BATCH) {
            if let Err(error) = say(files.to_vec()).await {
                // Tried once: times of access are not worth a queue.
                tracing::debug!(%error, "times of access could not be recorded");
            }
            self.told(files);
        }
        let mut noted = self.lock();
        noted.retain(|&inode, noted| !noted.told || is_open(inode));
        self.count.store(noted.len(), Ordering::Release);
    }

    fn untold(&self) -> Vec<FileRead> {
        let noted = self.lock();
        let untold = noted.iter().filter(|(_, noted)| !noted.told);
        untold
            .map(|(&inode, noted)| FileRead { inode, atime_ns: noted.at_ns, version: noted.version })
            .collect()
    }

    fn told(&self, files: &[FileRead]) {
        let mut noted = self.lock();
        for file in files {
            if let Some(known) = noted.get_mut(&file.inode)
                && known.at_ns == file.atime_ns
            {
                known.told = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::ready;

    use super::*;

    fn attr(atime_ns: i64, mtime_ns: i64, ctime_ns: i64) -> Attr {
        Attr { inode: 5, atime_ns, mtime_ns, ctime_ns, version: 1, ..Attr::default() }
    }

    #[test]
    fn relatime_counts_the_first_read_after_a_change_and_one_a_day() {
        let relative = |attr| counts(Atime::Relative, &attr, 1000);
        assert!(relative(attr(10, 20, 5)) && relative(attr(10, 5, 20)) && relative(attr(10, 10, 5)));
        assert!(!relative(attr(10, 5, 6)));
        assert!(counts(Atime::Relative, &attr(10, 5, 5), 10 + DAY));
        assert!(!counts(Atime::Relative, &attr(10, 5, 5), 9 + DAY));
        assert!(!counts(Atime::Never, &attr(10, 20, 20), 1000));
        assert!(counts(Atime::Always, &attr(10, 5, 5), 11) && !counts(Atime::Always, &attr(10, 5, 5), 10));
    }

    #[test]
    fn a_read_is_noted_once_and_shown_at_once() {
        let accesses = Accesses::default();
        let stale = attr(10, 20, 20);
        accesses.note_at(Atime::Relative, &stale, 30);
        accesses.note_at(Atime::Relative, &stale, 40);
        let files = accesses.untold();
        assert_eq!(files, [FileRead { inode: 5, atime_ns: 30, version: 1 }]);
        let mut shown = stale;
        accesses.show(&mut shown);
        assert_eq!(shown.atime_ns, 30);
        accesses.told(&files);
        assert!(accesses.untold().is_empty(), "told once");
        // The same attributes, still known from before, do not make it count again; a change does.
        accesses.note_at(Atime::Relative, &stale, 50);
        assert!(accesses.untold().is_empty());
        accesses.note_at(Atime::Relative, &attr(10, 45, 45), 50);
        assert_eq!(accesses.untold()[0].atime_ns, 50);
    }

    #[tokio::test]
    async fn a_time_that_is_set_replaces_what_was_noted() {
        let accesses = Accesses::default();
        accesses.note_at(Atime::Always, &attr(10, 20, 20), 30);
        drop(accesses.forget(5).await);
        let mut shown = attr(7, 20, 20);
        accesses.show(&mut shown);
        assert_eq!(shown.atime_ns, 7);
        assert!(accesses.untold().is_empty());
    }

    #[tokio::test]
    async fn what_is_read_while_it_is_told_is_told_the_next_time() {
        let accesses = Accesses::default();
        accesses.note_at(Atime::Relative, &attr(10, 20, 20), 30);
        let said = Cell::new(0);
        let say = |files: Vec<FileRead>| {
            said.set(said.get() + 1);
            assert!(said.get() < 10, "for ever");
            assert_eq!(files.len(), 1);
            // One new file after the other.
            let next = Attr { inode: 5 + said.get(), ..attr(10, 20, 20) };
            accesses.note_at(Atime::Relative, &next, 30);
            ready(Ok(()))
        };
        accesses.tell_by(say, |_| false).await;
        assert_eq!(said.get(), 1);
        assert_eq!(accesses.untold(), [FileRead { inode: 6, atime_ns: 30, version: 1 }]);
        assert_eq!(accesses.lock().len(), 1, "what was told is forgotten");
    }

    #[test]
    fn what_is_noted_is_bounded() {
        let accesses = Accesses::default();
        for inode in 0..MOST as u64 + 10 {
            accesses.note_at(Atime::Relative, &Attr { inode, ..attr(1, 2, 2) }, 30);
        }
        assert_eq!(accesses.lock().len(), MOST);
    }
}
