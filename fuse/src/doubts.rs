//! Opens of files that have no name any more, which are looked at twice.
//!
//! The kernel names an inode in an open, not the path that led to it. When the inode lost its name on another mount, two
//! things may have happened: a name the kernel remembers still leads there, and must not; or a program opened
//! `/proc/self/fd/N` of a file that it holds, and may. Refused as stale, the kernel tries once more with every name
//! asked for again. Whoever comes back to the same inode without having asked for a name did not come by one.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Doubts remembered; each is settled by the kernel's next request, so more of them belong to threads that were killed.
const MOST: usize = 1024;

/// Threads that were refused an open, and the inode.
#[derive(Default)]
pub(crate) struct Doubts(Mutex<VecDeque<(u32, u64)>>);

impl Doubts {
    /// Whether the thread came back to the inode it was just refused; if not, that is remembered.
    pub(crate) fn came_back(&self, thread: u32, inode: u64) -> bool {
        let mut doubts = self.lock();
        let known = doubts.iter().position(|&doubt| doubt == (thread, inode));
        if let Some(known) = known {
            doubts.remove(known);
            return true;
        }
        if doubts.len() >= MOST {
            doubts.pop_front();
        }
        doubts.push_back((thread, inode));
        false
    }

    /// The thread asks for a name: it did not come back.
    pub(crate) fn asked_for_name(&self, thread: u32) {
        self.lock().retain(|doubt| doubt.0 != thread);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(u32, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_comes_back_without_a_name_is_let_in() {
        let doubts = Doubts::default();
        assert!(!doubts.came_back(1, 7));
        assert!(!doubts.came_back(2, 7), "another thread's doubt");
        assert!(doubts.came_back(1, 7));
        assert!(!doubts.came_back(1, 7), "each open anew");
        doubts.asked_for_name(1);
        assert!(!doubts.came_back(1, 7), "it came by a name");
        assert!(!(0..10_000).any(|thread| doubts.came_back(thread, 1)));
        assert!(doubts.lock().len() <= MOST);
    }
}
