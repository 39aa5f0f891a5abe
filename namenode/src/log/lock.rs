//! One process per directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

const NAME: &str = "lock";

/// Holds a node's directory until it is dropped, or the process ends however it ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Takes the directory; `WouldBlock` when another process has it.
    pub fn take(dir: &Path) -> io::Result<DirectoryLock> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(NAME))?;
        match file.try_lock() {
            Ok(()) => Ok(DirectoryLock { _file: file }),
            Err(TryLockError::WouldBlock) => {
                Err(io::Error::new(io::ErrorKind::WouldBlock, "another process uses this directory"))
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let held = DirectoryLock::take(dir.path()).unwrap();
        assert_eq!(DirectoryLock::take(dir.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        DirectoryLock::take(dir.path()).unwrap();
    }
}
