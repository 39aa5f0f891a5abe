//! One data directory: its files, its space, and what happens when its disk fails.
//!
//! Every write and sync of the store goes through here, so that one place decides which errors fence a disk.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use cairn_proto::{Error, ErrorCode, Result};

use super::locked;
use super::notices::Notices;
use super::replica::Replica;

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

/// Free and total bytes of a file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileSystem {
    /// All bytes.
    pub total: u64,
    /// Bytes an ordinary user may still write.
    pub available: u64,
}

/// An open data directory, locked against other processes.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    device: u64,
    reserve: u64,
    ledger: Arc<Ledger>,
    notices: Arc<Notices>,
    used: AtomicU64,
    room: AtomicI64,
    fenced: AtomicBool,
    open: Mutex<VecDeque<Weak<Replica>>>,
    /// Holds the lock for as long as the directory is in use.
    _lock: Option<File>,
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
        path: PathBuf,
        lock: Option<File>,
        reserve: u64,
        ledger: Arc<Ledger>,
        notices: Arc<Notices>,
    ) -> Directory {
        let device = std::fs::metadata(&path).map(|meta| meta.dev()).unwrap_or(0);
        Directory {
            path,
            device,
            reserve,
            ledger,
            notices,
            used: AtomicU64::new(0),
            room: AtomicI64::new(0),
            fenced: AtomicBool::new(false),
            open: Mutex::new(VecDeque::new()),
            _lock: lock,
            #[cfg(test)]
            faults: Faults::default(),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
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
        self.fenced.load(Ordering::Acquire)
    }

    /// Gives the disk up until the next start: its replicas are reported gone.
    pub fn fence(&self, cause: &str) {
        if !self.fenced.swap(true, Ordering::AcqRel) {
            tracing::error!(directory = %self.path.display(), cause, "data directory failed; it is used no more");
            self.notices.everything();
        }
    }

    /// Refuses when the disk was given up.
    pub fn usable(&self) -> Result<()> {
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

    /// Bytes of its replicas.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Counts bytes that a replica gained.
    pub fn gained(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.ledger.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that a replica lost.
    pub fn lost(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.ledger.used.fetch_sub(bytes, Ordering::Relaxed);
        self.room.fetch_add(bytes as i64, Ordering::Relaxed);
    }

    /// Asks the file system for its space, and takes the reserve off what is available.
    pub fn measure(&self) -> FileSystem {
        if self.is_fenced() {
            return FileSystem::default();
        }
        let mut space = statvfs(&self.path).unwrap_or_default();
        space.available = space.available.saturating_sub(self.reserve);
        space.total = space.total.saturating_sub(self.reserve);
        self.room.store(space.available.min(i64::MAX as u64) as i64, Ordering::Relaxed);
        space
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
    pub fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> Result<()> {
        #[cfg(test)]
        self.fault(&self.faults.write)?;
        self.judged(file.write_all_at(bytes, offset), "write")
    }

    /// Makes a file's content and length durable.
    pub fn sync_file(&self, file: &File) -> Result<()> {
        #[cfg(test)]
        self.fault(&self.faults.sync)?;
        self.judged(file.sync_data(), "fdatasync")
    }

    /// Makes the names in a directory durable.
    pub fn sync_names(&self, path: &Path) -> Result<()> {
        self.judged(File::open(path).and_then(|file| file.sync_all()), "fsync of a directory")
    }

    /// Makes a new file, open for reading and writing.
    pub fn create(&self, path: &Path) -> Result<File> {
        #[cfg(test)]
        self.fault(&self.faults.write)?;
        let made = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
        self.judged(made, "create")
    }

    /// Opens a file for reading and writing.
    pub fn open_writable(&self, path: &Path) -> Result<File> {
        self.judged(OpenOptions::new().read(true).write(true).open(path), "open")
    }

    /// Cuts a file.
    pub fn truncate(&self, file: &File, length: u64) -> Result<()> {
        self.judged(file.set_len(length), "truncate")
    }

    /// Renames over whatever was there.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.judged(std::fs::rename(from, to), "rename")
    }

    /// Removes a file; that there is none is no error.
    pub fn remove(&self, path: &Path) -> Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => self.judged(other, "unlink"),
        }
    }

    /// Puts a whole file in place, durably: readers find the old one or the new one.
    pub fn replace(&self, path: &Path, content: &[u8]) -> Result<File> {
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let tmp = self.tmp_path(&name);
        let file = self.create(&tmp)?;
        let put = self
            .write_at(&file, content, 0)
            .and_then(|()| self.sync_file(&file))
            .and_then(|()| self.rename(&tmp, path));
        if let Err(error) = put {
            // The error that matters is the first one; a start clears what stays behind.
            let _ = std::fs::remove_file(&tmp);
            return Err(error);
        }
        if let Some(parent) = path.parent() {
            self.sync_names(parent)?;
        }
        Ok(file)
    }

    /// Writes and syncs a little file: does the disk still work at all?
    pub fn probe(&self) -> Result<()> {
        self.usable()?;
        let path = self.tmp_path("probe");
        let file = self.create(&path)?;
        self.write_at(&file, b"probe", 0)?;
        self.sync_file(&file)?;
        self.remove(&path)
    }

    /// Asks for the blocks of a range that is about to be written, past the file's end, and leaves its length
    /// alone. Some file systems reserve blocks page by page otherwise: on ext4 that was seen to hold
    /// appends to a tenth of the speed.
    pub fn preallocate(&self, file: &File, offset: u64, length: u64) {
        // SAFETY: the descriptor is open for the length of the call; no memory is passed. The result does not
        // matter: where this is not supported or there is no room, the write itself decides.
        unsafe {
            libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, offset as i64, length as i64);
        }
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

fn statvfs(path: &Path) -> io::Result<FileSystem> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut out = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is NUL-terminated and `out` is large enough for what the call writes.
    if unsafe { libc::statvfs(path.as_ptr(), out.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it filled `out`.
    let out = unsafe { out.assume_init() };
    let unit = out.f_frsize;
    Ok(FileSystem { total: out.f_blocks * unit, available: out.f_bavail * unit })
}
