//! What the kernel's file handles stand for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use cairn_client::{File, Names};
use tokio::sync::Mutex;

use crate::directory::DirectoryStream;
use crate::inodes::OpenInode;

/// An open file description.
pub(crate) struct FileHandle {
    /// The file it is open on.
    pub open: Arc<OpenInode>,
    /// Its content, with what became of written bytes as this handle is to hear it.
    pub file: File,
    /// Opened for writing.
    pub writable: bool,
    /// Every write is to be durable before it is acknowledged, and the kernel does not ask for it by itself.
    pub sync: bool,
    /// The session in which a lock was last taken through it; 0: none was.
    pub locked_in: AtomicU64,
    /// Locks taken through it were lost: it must not be used any more.
    pub lost: AtomicBool,
    /// Opened with `O_NOATIME`.
    pub unseen: bool,
    /// The kernel keeps no pages of what is read through it.
    pub uncached: bool,
}

/// An open directory.
pub(crate) struct DirectoryHandle {
    /// Its content, as it is read.
    pub stream: Mutex<DirectoryStream>,
    /// What became of changes of names as this handle is to hear it.
    pub names: Names,
}

/// Numbered open things of one kind.
pub(crate) struct Handles<T> {
    open: RwLock<HashMap<u64, Arc<T>>>,
    next: AtomicU64,
}

impl<T> Default for Handles<T> {
    fn default() -> Handles<T> {
        Handles { open: RwLock::default(), next: AtomicU64::new(1) }
    }
}

impl<T> Handles<T> {
    /// Numbers a newly opened thing. Numbers are never used again.
    pub(crate) fn insert(&self, thing: T) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(thing));
        number
    }

    /// The thing with this number, while it is open.
    pub(crate) fn get(&self, number: u64) -> Option<Arc<T>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    /// Closes it.
    pub(crate) fn remove(&self, number: u64) -> Option<Arc<T>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_gone_once_closed_and_never_comes_back() {
        let handles = Handles::default();
        let first = handles.insert('a');
        assert_eq!(handles.get(first).as_deref(), Some(&'a'));
        handles.remove(first);
        assert!(handles.get(first).is_none());
        assert_ne!(handles.insert('b'), first);
    }
}
