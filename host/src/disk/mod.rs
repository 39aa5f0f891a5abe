//! Files and directories.
//!
//! [`Disk`] and [`DiskFile`] are what our processes do with a disk and no more: positional reads and writes, syncs,
//! and a few operations on names. [`RealDisk`] is the operating system's, [`simulated`] one in memory that loses
//! what was not synced. What a caller may rely on is what POSIX promises:
//!
//! - bytes are safe once a `sync_*` of their file has returned, a name (made, changed or removed) once a
//!   [`Disk::sync_dir`] of its directory has;
//! - a rename is seen whole or not at all, also after a crash;
//! - after a failed sync nobody knows what is on the disk, and a later sync that succeeds says nothing about it.

mod real;
pub mod simulated;

use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub use real::RealDisk;

/// A disk that the parts of a process share.
pub type SharedDisk = Arc<dyn Disk>;

/// An open file; clones are the same one.
pub type Handle = Arc<dyn DiskFile>;

/// The machine's own disk.
pub fn real() -> SharedDisk {
    Arc::new(RealDisk)
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It must be there, and is only read.
    Read,
    /// It must be there.
    Write,
    /// It is made if need be, and empty.
    Create,
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A directory, or something else that is no file.
    Directory,
    /// A file of so many bytes.
    File {
        /// Bytes in it.
        length: u64,
    },
}

/// A file system's space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// All bytes.
    pub total: u64,
    /// Bytes an ordinary user may still write.
    pub available: u64,
    /// Which file system: paths with the same number share its space.
    pub device: u64,
}

/// Holds a lock until it is dropped.
pub trait DiskLock: Debug + Send + Sync {}

/// Operations on names. All block until they are done.
pub trait Disk: Debug + Send + Sync {
    /// Whether calls may wait for a device. Where they do not, work goes on where it is instead of on a thread of
    /// its own, and is done in the order it is asked for.
    fn blocks(&self) -> bool;

    /// Opens a file.
    fn open(&self, path: &Path, access: Access) -> io::Result<Handle>;

    /// What a path leads to, if anything.
    fn look(&self, path: &Path) -> io::Result<Option<Found>>;

    /// Moves a file, over whatever was there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes a directory in one that is there; that it is there itself is no error.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory with everything in it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Locks the file at `path`, which is made if need be, against other processes; `WouldBlock` if another has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>>;

    /// The space of the file system that `path` lies on.
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// An open file.
pub trait DiskFile: Debug + Send + Sync {
    /// Reads some bytes at `offset`; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`. After an error some of them may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Bytes in it.
    fn length(&self) -> io::Result<u64>;

    /// Cuts it, or makes it longer with zeros.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Makes its content and length durable.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes everything about it durable.
    fn sync_all(&self) -> io::Result<()>;

    /// Makes its content durable and forgets what is cached of it, so that later reads show what the disk holds. An
    /// earlier process may have failed to write what the cache still shows, and a sync would not say so again.
    fn reread(&self) -> io::Result<()>;

    /// Asks for the blocks of a range that is about to be written, and leaves the length alone. Only a wish.
    fn preallocate(&self, offset: u64, length: u64);

    /// The operating system's file, where there is one.
    fn as_file(&self) -> Option<&File>;

    /// Fills `buffer` from `offset` on; `UnexpectedEof` if the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut at = 0;
        while at < buffer.len() {
            match self.read_at(&mut buffer[at..], offset + at as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => at += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A whole file.
pub fn read(disk: &dyn Disk, path: &Path) -> io::Result<Vec<u8>> {
    let file = disk.open(path, Access::Read)?;
    let mut bytes = vec![0; file.length()? as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Puts `bytes` at `path`: whole or not at all, durable when this returns. What is half done after a crash is left
/// at the same path with `.tmp` behind it.
pub fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".tmp");
    let fresh = Path::new(&fresh);
    let file = disk.open(fresh, Access::Create)?;
    file.write_at(bytes, 0)?;
    file.sync_all()?;
    disk.rename(fresh, path)?;
    disk.sync_dir(parent(path))
}

/// Makes a directory and those above it, durably.
pub fn create_dirs(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    if disk.look(path)?.is_none()
        && let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty())
    {
        create_dirs(disk, above)?;
    }
    // Also when it is there already: the one who made it may not have come as far as the sync.
    disk.create_dir(path)?;
    match disk.sync_dir(parent(path)) {
        // Whoever may use a directory need not be able to read the one above it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// The directory a path's last name is in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

/// Reads a file from its start to its end.
#[derive(Debug)]
pub struct Reader {
    file: Handle,
    at: u64,
}

impl Reader {
    /// From the first byte on.
    pub fn new(file: Handle) -> Reader {
        Reader { file, at: 0 }
    }
}

impl io::Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
