//! What clients do while things break, and where.

pub mod library;
pub mod mounted;
mod workers;

use std::io;
use std::os::fd::RawFd;

pub use workers::{Crew, Name};

/// Why an operation has no result.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It was refused and has no effect.
    Refused(String),
    /// It may have its effect, now, later or never.
    Unknown(String),
}

impl Fault {
    /// The same, of an operation of which a part was done.
    fn halfway(self) -> Fault {
        match self {
            Fault::Refused(why) | Fault::Unknown(why) => Fault::Unknown(why),
        }
    }

    fn from_errno(number: i32, text: String) -> Fault {
        match number {
            libc::ENOENT | libc::EEXIST | libc::ENOTEMPTY | libc::ENOTDIR | libc::EAGAIN => {
                Fault::Refused(text)
            }
            _ => Fault::Unknown(text),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        Fault::from_errno(error.raw_os_error().unwrap_or(libc::EIO), error.to_string())
    }
}

/// A way into the cluster. Paths are below its root.
pub trait Place: Send + Sync {
    fn name(&self) -> &str;
    /// Readies a thread that will work here and opens no file but its own; `keep` is a descriptor it needs.
    fn settle(&self, _keep: RawFd) -> io::Result<()> {
        Ok(())
    }
    /// Makes or replaces the content of a file that nobody else writes, and syncs it.
    fn store(&self, path: &str, content: &[u8]) -> Result<(), Fault>;
    /// Writes over the beginning of a file, which is made if need be, and syncs it.
    fn overwrite(&self, path: &str, content: &[u8]) -> Result<(), Fault>;
    /// All of a file; `None` if there is no such file.
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Fault>;
    /// Adds a record to a file, which is made if need be, and syncs it.
    fn append(&self, path: &str, record: &[u8]) -> Result<(), Fault>;
    fn rename(&self, from: &str, to: &str) -> Result<(), Fault>;
    /// Makes a file that must not exist.
    fn claim(&self, path: &str) -> Result<(), Fault>;
    fn names(&self, directory: &str) -> Result<Vec<String>, Fault>;
    /// Makes a directory; it may exist.
    fn mkdir(&self, path: &str) -> Result<(), Fault>;
    fn remove(&self, path: &str) -> Result<(), Fault>;
    /// Counts in a file under a lock on it, if the place has locks. `taken` is called when the lock is held, with the
    /// number found, and again before it is written.
    fn count(&self, path: &str, moment: &mut dyn FnMut(Moment)) -> Option<Result<(), Fault>>;
}

/// Where an operation under a lock is.
pub enum Moment {
    Taken,
    Read(u64),
}
