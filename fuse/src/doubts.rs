//! Opens of files that have no name any more, which are looked at twice.
//!
//! The kernel names an inode in an open, not the path that led to it. When the inode lost its name on another mount, two
//! things may have happened: a name the kernel remembers still leads there, and must not; or a program opened
//! `/proc/self/fd/N` of a file that it holds, and may. Refused as stale, the kernel tries once more with every name
//! asked for again. Whoever comes back to the same inode without having asked for a name did not come by one. Whoever
//! asked, and found an inode that lost its name since, comes in time: the name led there when it was asked for, and the
//! kernel does not try a third time.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Doubts remembered; each is settled by the kernel's next request, so more of them belong to threads that were killed.
const MOST: usize = 1024;

/// A thread that was refused an open.
struct Doubt {
    thread: u32,
    inode: u64,
    /// It has asked for a name since.
    asked: bool,
}

/// The doubts of a mount.
#[derive(Default)]
pub(crate) struct Doubts(Mutex<VecDeque<Doubt>>);

/// What is to be done about a thread that opens an inode without a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Refuse; the kernel comes again.
    Refuse,
    /// It came by something else than a name.
    ByDescriptor,
    /// It came by a name that was good a moment ago.
    ByFreshName,
}

impl Doubts {
    /// Judges an open of an inode that has no name. A refusal is remembered.
    pub(crate) fn judge(&self, thread: u32, inode: u64) -> Verdict {
        let mut doubts = self.lock();
        if let Some(known) = doubts.iter().position(|doubt| doubt.thread == thread)
            && let Some(doubt) = doubts.remove(known)
        {
            if doubt.asked {
                return Verdict::ByFreshName;
            }
            if doubt.inode == inode {
                return Verdict::ByDescriptor;
            }
        }
        if doubts.len() >= MOST {
            doubts.pop_front();
        }
        doubts.push_back(Doubt { thread, inode, asked: false });
        Verdict::Refuse
    }

    /// The thread asks for a name.
    pub(crate) fn asked_for_name(&self, thread: u32) {
        let mut doubts = self.lock();
        if let Some(doubt) = doubts.iter_mut().find(|doubt| doubt.thread == thread) {
            doubt.asked = true;
        }
    }

    /// The thread opens a file that has a name: whatever was doubtful is over.
    pub(crate) fn settle(&self, thread: u32) {
        self.lock().retain(|doubt| doubt.thread != thread);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Doubt>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_without_a_name_is_let_in() {
        let doubts = Doubts::default();
        assert_eq!(doubts.judge(1, 7), Verdict::Refuse);
        assert_eq!(doubts.judge(2, 7), Verdict::Refuse, "another thread's doubt");
        assert_eq!(doubts.judge(1, 7), Verdict::ByDescriptor);
        assert_eq!(doubts.judge(1, 7), Verdict::Refuse, "each open anew");
        assert_eq!(doubts.judge(1, 8), Verdict::Refuse, "another inode");
    }

    #[test]
    fn who_asked_for_the_name_is_let_in_once() {
        let doubts = Doubts::default();
        doubts.asked_for_name(1);
        assert_eq!(doubts.judge(1, 7), Verdict::Refuse, "what it asked before does not count");
        doubts.asked_for_name(1);
        assert_eq!(doubts.judge(1, 8), Verdict::ByFreshName, "replaced again meanwhile");
        assert_eq!(doubts.judge(1, 8), Verdict::Refuse);
        doubts.asked_for_name(1);
        doubts.settle(1);
        assert_eq!(doubts.judge(1, 9), Verdict::Refuse, "the second try found a file with a name");
    }

    #[test]
    fn doubts_are_bounded() {
        let doubts = Doubts::default();
        assert!((0..10_000).all(|thread| doubts.judge(thread, 1) == Verdict::Refuse));
        assert!(doubts.lock().len() <= MOST);
    }
}
