//! One data directory: its files, its space, and what happens when its disk fails.
//!
//! Every write and sync of the store goes through here, so that one place decides which errors fence a disk.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use cairn_host::disk::{Access, Disk, DiskFile, DiskLock, Handle, SharedDisk, Space};
use cairn_proto::{Error, ErrorCode, Result};

use super::locked;
use super::notices::Notices;
use super::replica::Replica;
use super::watch::{Watch, WatchedDisk};

/// Sealed chunks whose files are kept open between reads, in each directory.
const OPEN_FILES: usize = 256;

/// Bytes held by replicas of the whole datanode, and how many it may hold.
#[derive(Debug)]
pub struct Ledger {
    used: AtomicU64,
    limit: u64,
}

impl Ledger {
    /// An empty ledger.
    pub fn new(limit: Option<u64>) -> Ledger {
        Ledger { used: AtomicU64::new(0), limit: limit.unwrap_or(u64::MAX) }
    }

    /// Bytes held.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that may still be added.
    pub fn room(&self) -> u64 {
        self.limit.saturating_sub(self.used())
    }

    /// The limit, if there is one.
    pub fn limit(&self) -> Option<u64> {
        (self.limit != u64::MAX).then_some(self.limit)
    }
}

/// An open data directory, locked against other processes.
#[derive(Debug)]
pub struct Directory {
    disk: SharedDisk,
    path: PathBuf,
    device: u64,
    reserve: u64,
    ledger: Arc<Ledger>,
    notices: Arc<Notices>,
    used: AtomicU64,
    room: AtomicI64,
    /// All bytes of its file system when it was measured last, but for the reserve.
    total: AtomicU64,
    /// What its disk is asked for.
    pub(super) watch: Arc<Watch>,
    /// Why its disk was given up.
    fenced: OnceLock<String>,
    /// Its disk does not answer, and this is what it was asked for.
    hung: Mutex<Option<&'static str>>,
    /// What it holds is moved to the others.
    draining: AtomicBool,
    /// Held by the one that probes.
    probing: Mutex<()>,
    open: Mutex<VecDeque<Weak<Replica>>>,
    activity: AtomicU64,
    /// Holds the lock for as long as the directory is in use.
    _lock: Box<dyn DiskLock>,
    #[cfg(test)]
    pub(super) faults: Faults,
}

/// Errors that tests make a disk return.
#[cfg(test)]
#[derive(Debug, Default)]
pub struct Faults {
    pub write: std::sync::atomic::AtomicI32,
    pub sync: std::sync::atomic::AtomicI32,
}

impl Directory {
    /// A directory whose lock is held.
    pub fn new(
        disk: SharedDisk,
        path: PathBuf,
        lock: Box<dyn DiskLock>,
        reserve: u64,
        ledger: Arc<Ledger>,
        notices: Arc<Notices>,
    ) -> Directory {
        let device = disk.space(&path).map(|space| space.device).unwrap_or(0);
        let watch = Arc::new(Watch::default());
        Directory {
            disk: Arc::new(WatchedDisk::new(disk, watch.clone())),
            path,
            device,
            reserve,
            ledger,
            notices,
            used: AtomicU64::new(0),
            room: AtomicI64::new(0),
            total: AtomicU64::new(0),
            watch,
            fenced: OnceLock::new(),
            hung: Mutex::default(),
            draining: AtomicBool::new(false),
            probing: Mutex::default(),
            open: Mutex::new(VecDeque::new()),
            activity: AtomicU64::new(0),
            _lock: lock,
            #[cfg(test)]
            faults: Faults::default(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The disk it is on.
    pub fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// Where it leaves news.
    pub fn notices(&self) -> &Notices {
        &self.notices
    }

    /// The device it lies on: directories on one device share its space.
    pub fn device(&self) -> u64 {
        self.device
    }

    /// A chunk's data file.
    pub fn data_path(&self, chunk: u64) -> PathBuf {
        self.shelf(chunk).join(format!("{chunk:016x}.data"))
    }

    /// A chunk's checksum file.
    pub fn sums_path(&self, chunk: u64) -> PathBuf {
        self.shelf(chunk).join(format!("{chunk:016x}.crc"))
    }

    /// The subdirectory that holds a chunk's files.
    pub fn shelf(&self, chunk: u64) -> PathBuf {
        self.path.join("chunks").join(format!("{:02x}", chunk & 0xff))
    }

    /// A file that does not count until it is renamed; a start removes what is left of them.
    pub fn tmp_path(&self, name: &str) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.path.join("tmp").join(format!("{name}.{}", NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Whether its disk was given up.
    pub fn is_fenced(&self) -> bool {
        self.fenced.get().is_some()
    }

    /// Whether its disk does not answer. What it holds is as it was, but nobody can get at it.
    pub fn is_hung(&self) -> bool {
        locked(&self.hung).is_some()
    }

    /// Whether it is neither given up nor waited for in vain.
    pub fn is_usable(&self) -> bool {
        !self.is_fenced() && !self.is_hung()
    }

    /// Finds out whether its disk answers; asked once a second. One that hangs is left alone, as if it had failed, until
    /// it has answered everything: a disk, or a network to it, may come back. True: it hangs from now on.
    pub fn look(&self) -> bool {
        let now = self.watch.look();
        let before = std::mem::replace(&mut *locked(&self.hung), now);
        let directory = self.path.display();
        match (before, now) {
            (None, Some(asked)) => {
                tracing::error!(%directory, asked, "the disk does not answer; it is left alone until it does")
            }
            (Some(_), None) => tracing::info!(%directory, "the disk answers again; it is used again"),
            _ => return false,
        }
        self.notices.everything();
        now.is_some()
    }

    /// From now on it takes no new replicas, and what it holds is moved.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether what it holds is moved to others.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Why it is not used.
    pub fn failure(&self) -> Option<String> {
        let hung = || locked(&self.hung).map(|asked| format!("the disk does not answer: {asked}"));
        self.fenced.get().cloned().or_else(hung)
    }

    /// Gives the disk up until the next start: its replicas are reported gone.
    pub fn fence(&self, cause: &str) {
        if self.fenced.set(cause.to_owned()).is_ok() {
            tracing::error!(directory = %self.path.display(), cause, "data directory failed; it is used no more");
            // What it held is copied elsewhere, and needs the room there.
            self.lost(self.used());
            self.notices.everything();
        }
    }

    /// Refuses when the disk was given up, or hangs. The latter says nothing against what it holds.
    pub fn usable(&self) -> Result<()> {
        self.working()?;
        if self.is_hung() {
            let detail = format!("{}: the disk does not answer", self.path.display());
            return Err(ErrorCode::Unavailable.because(detail));
        }
        Ok(())
    }

    /// Refuses when the disk was given up. For what has waited for a disk that hung, and has its answer.
    pub fn working(&self) -> Result<()> {
        if self.is_fenced() {
            return Err(ErrorCode::DiskFailed.because(self.path.display().to_string()));
        }
        Ok(())
    }

    /// A sealed replica's files were opened: the one opened longest ago is closed when there are too many.
    pub fn opened(&self, replica: &Arc<Replica>) {
        let oldest = {
            let mut open = locked(&self.open);
            open.push_back(Arc::downgrade(replica));
            if open.len() > OPEN_FILES { open.pop_front() } else { None }
        };
        // Without the queue's lock: closing takes the replica's own.
        if let Some(replica) = oldest.and_then(|oldest| oldest.upgrade()) {
            replica.close_files();
        }
    }

    /// A client or another datanode reads or writes here: background work yields.
    pub fn used_by_client(&self) {
        self.activity.fetch_add(1, Ordering::Relaxed);
    }

    /// A number that grows whenever somebody else than background work uses it.
    pub fn activity(&self) -> u64 {
        self.activity.load(Ordering::Relaxed)
    }

    /// Bytes of its replicas.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Counts bytes that a replica gained.
    pub fn gained(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.ledger.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that a replica lost. Those of a failed disk were counted when it failed.
    pub fn lost(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        let before = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).unwrap_or_default();
        self.ledger.used.fetch_sub(before.min(bytes), Ordering::Relaxed);
        self.room.fetch_add(bytes as i64, Ordering::Relaxed);
    }

    /// Asks the file system for its space, and takes the reserve off what is available. A directory that is not there any
    /// more has failed.
    pub fn measure(&self) -> Space {
        if !self.is_usable() {
            return Space::default();
        }
        let found = self.disk.space(&self.path);
        if let Some(cause) = self.absence(&found) {
            self.fence(&format!("{}: {cause}", self.path.display()));
            return Space::default();
        }
        let mut space = found.unwrap_or_default();
        space.available = space.available.saturating_sub(self.reserve);
        space.total = space.total.saturating_sub(self.reserve);
        self.room.store(space.available.min(i64::MAX as u64) as i64, Ordering::Relaxed);
        self.total.store(space.total, Ordering::Relaxed);
        space
    }

    /// What [`Directory::measure`] found last, less what was written since. The disk is not asked.
    pub fn last_space(&self) -> Space {
        let available = u64::try_from(self.room.load(Ordering::Relaxed)).unwrap_or(0);
        Space { total: self.total.load(Ordering::Relaxed), available, device: self.device }
    }

    /// Why what its path leads to is not the directory that was opened. Files that are open still work then, so nothing
    /// else would notice.
    fn absence(&self, found: &io::Result<Space>) -> Option<&'static str> {
        match found {
            Ok(space) if space.device != self.device => Some("another disk is there than at the start"),
            Ok(_) => matches!(self.disk.look(&self.path.join("VERSION")), Ok(None))
                .then_some("the directory was emptied or moved"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some("the directory is gone"),
            Err(_) => None,
        }
    }

    /// Makes sure that `bytes` more may be written. The file system is only asked when the last answer,
    /// less what was written since, does not suffice.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        self.usable()?;
        if self.ledger.room() < bytes {
            return Err(ErrorCode::DiskFull.because(format!("capacity limit of {} bytes", self.ledger.limit)));
        }
        let bytes = bytes as i64;
        if self.room.fetch_sub(bytes, Ordering::Relaxed) >= bytes {
            return Ok(());
        }
        self.measure();
        if self.room.fetch_sub(bytes, Ordering::Relaxed) >= bytes {
            return Ok(());
        }
        Err(ErrorCode::DiskFull.because(self.path.display().to_string()))
    }

    /// Writes all of `bytes` at `offset`.
    pub fn write_at(&self, file: &dyn DiskFile, bytes: &[u8], offset: u64) -> Result<()> {
        #[cfg(test)]
        self.fault(&self.faults.write)?;
        self.judged(file.write_at(bytes, offset), "write")
    }

    /// Makes a file's content and length durable.
    pub fn sync_file(&self, file: &dyn DiskFile) -> Result<()> {
        #[cfg(test)]
        self.fault(&self.faults.sync)?;
        self.judged(file.sync_data(), "fdatasync")
    }

    /// Makes the names in a directory durable.
    pub fn sync_names(&self, path: &Path) -> Result<()> {
        self.disk.sync_dir(path).map_err(|error| {
            // Whatever the error: which names the disk has is not known any more.
            self.fence(&format!("{}: fsync: {error}", path.display()));
            self.refusal(&error, "fsync of a directory")
        })
    }

    /// Makes a new file, open for reading and writing.
    pub fn create(&self, path: &Path) -> Result<Handle> {
        #[cfg(test)]
        self.fault(&self.faults.write)?;
        self.disk.open(path, Access::Create).map_err(|error| self.unplaced(&error, path, "create"))
    }

    /// Why a name could not be made: the directories for it have been there since the start.
    fn unplaced(&self, error: &io::Error, path: &Path, what: &str) -> Error {
        if error.kind() != io::ErrorKind::NotFound {
            return self.refusal(error, what);
        }
        let cause = format!("{}: its directory is gone", path.display());
        self.fence(&cause);
        ErrorCode::DiskFailed.because(cause)
    }

    /// Opens a file for reading and writing.
    pub fn open_writable(&self, path: &Path) -> Result<Handle> {
        self.judged(self.disk.open(path, Access::Write), "open")
    }

    /// The paths of what lies in a directory.
    pub fn list(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let names = self.judged(self.disk.list(path), "list")?;
        Ok(names.into_iter().map(|name| path.join(name)).collect())
    }

    /// Cuts a file.
    pub fn truncate(&self, file: &dyn DiskFile, length: u64) -> Result<()> {
        self.judged(file.set_length(length), "truncate")
    }

    /// Renames over whatever was there.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.disk.rename(from, to).map_err(|error| self.unplaced(&error, to, "rename"))
    }

    /// Removes a file; that there is none is no error.
    pub fn remove(&self, path: &Path) -> Result<()> {
        match self.disk.remove(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => self.judged(other, "unlink"),
        }
    }

    /// Removes the files of a chunk. Its checksum file goes first: without it the data file is nothing.
    pub fn remove_files(&self, chunk: u64) -> Result<()> {
        self.remove(&self.sums_path(chunk))?;
        self.remove(&self.data_path(chunk))
    }

    /// Puts a whole file in place, durably: readers find the old one or the new one.
    pub fn replace(&self, path: &Path, content: &[u8]) -> Result<Handle> {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let tmp = self.tmp_path(&name);
        let file = self.create(&tmp)?;
        let put = self
            .write_at(&*file, content, 0)
            .and_then(|()| self.sync_file(&*file))
            .and_then(|()| self.rename(&tmp, path));
        if let Err(error) = put {
            // The error that matters is the first one; a start clears what stays behind.
            let _ = self.disk.remove(&tmp);
            return Err(error);
        }
        if let Some(parent) = path.parent() {
            self.sync_names(parent)?;
        }
        Ok(file)
    }

    /// Something could not be read: one bad sector costs one replica, a disk that does not even take a probe all of its own.
    /// Refuses if that is so; that it is full, say, is no answer.
    pub fn doubt(&self) -> Result<()> {
        let _ = self.probe();
        self.working()
    }

    /// As [`Directory::judged`], for one replica's file that is only read.
    pub fn read_from<T>(&self, result: io::Result<T>, what: &str) -> Result<T> {
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                self.doubt()?;
                Err(ErrorCode::DiskFailed.because(format!("{what}: {error}")))
            }
            result => self.judged(result, what),
        }
    }

    /// Writes, syncs and reads a little file: does the disk still work at all?
    pub fn probe(&self) -> Result<()> {
        // One after the other: what another one has just written would be read back from memory.
        let _alone = locked(&self.probing);
        self.usable()?;
        let path = self.tmp_path("probe");
        let file = self.create(&path)?;
        let tried = self.try_out(&*file);
        // In any case: a disk that is full, say, is probed again and again.
        let removed = self.remove(&path);
        tried.and(removed)
    }

    fn try_out(&self, file: &dyn DiskFile) -> Result<()> {
        self.write_at(file, b"probe", 0)?;
        self.sync_file(file)?;
        // From the disk, not from the cache: one that only takes is no better than one that takes nothing.
        let mut back = [0; 5];
        self.judged(
            file.reread().and_then(|()| file.read_exact_at(&mut back, 0)),
            "read of what was just written",
        )
    }

    /// Asks for the blocks of a range that is about to be written, past the file's end, and leaves its length
    /// alone. Some file systems reserve blocks page by page otherwise: on ext4 that was seen to hold
    /// appends to a tenth of the speed.
    pub fn preallocate(&self, file: &dyn DiskFile, offset: u64, length: u64) {
        file.preallocate(offset, length);
    }

    /// Turns an I/O error into a refusal, and fences the disk where the error says that it is gone.
    pub fn judged<T>(&self, result: io::Result<T>, what: &str) -> Result<T> {
        result.map_err(|error| self.refusal(&error, what))
    }

    fn refusal(&self, error: &io::Error, what: &str) -> Error {
        let detail = format!("{}: {what}: {error}", self.path.display());
        let code = match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => ErrorCode::DiskFull,
            Some(libc::EIO | libc::EROFS | libc::EUCLEAN | libc::ENXIO | libc::ENODEV) => {
                self.fence(&detail);
                ErrorCode::DiskFailed
            }
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => ErrorCode::Unavailable,
            _ => ErrorCode::Io,
        };
        code.because(detail)
    }

    #[cfg(test)]
    fn fault(&self, errno: &std::sync::atomic::AtomicI32) -> Result<()> {
        match errno.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => self.judged(Err(io::Error::from_raw_os_error(errno)), "injected"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::open;
    use super::*;

    #[test]
    fn a_probe_that_fails_leaves_nothing_behind() {
        let root = tempfile::tempdir().unwrap();
        let store = open(&[root.path()], None).unwrap();
        let dir = &store.dirs()[0];
        dir.faults.sync.store(libc::ENOSPC, Ordering::Relaxed);
        for _ in 0..3 {
            assert_eq!(dir.probe().unwrap_err().code, ErrorCode::DiskFull);
        }
        assert_eq!(std::fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
        dir.faults.sync.store(0, Ordering::Relaxed);
        dir.probe().unwrap();
    }
}
