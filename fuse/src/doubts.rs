//! Opens of files that have no name any more, which are looked at twice.
//!
//! The kernel names an inode in an open, not the path that led to it. When the inode lost its name on another mount, two
//! things may have happened: a name the kernel remembers still leads there, and must not; or a program opened
//! `/proc/self/fd/N` of a file that it holds, and may. Refused as stale, the kernel tries once more with every name
//! asked for again. Whoever comes back to the same inode without having asked for a name did not come by one. Whoever
//! asked, and found an inode that lost its name since, comes in time: the name led there when it was asked for, and the
//! kernel does not try a third time. For the same reason the inode that was found is kept alive until the open comes.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Doubts remembered; each is settled by the kernel's next request, so more of them belong to threads that were killed.
const MOST: usize = 1024;

/// An open that was refused. It is settled by the thread's next open, whatever that finds.
struct Doubt {
    thread: u32,
    inode: u64,
    /// What the last name led to that the thread asked for since.
    found: Option<u64>,
    /// A file that was found is kept alive for the open to come.
    kept: bool,
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

/// What a thread was refused before the open at hand.
pub(crate) struct Before(Option<Doubt>);

impl Before {
    /// Judges the open at hand, of an inode that has no name.
    pub(crate) fn judge(&self, inode: u64) -> Verdict {
        match &self.0 {
            Some(Doubt { found: Some(found), .. }) if *found == inode => Verdict::ByFreshName,
            Some(doubt) if doubt.found.is_none() && doubt.inode == inode => Verdict::ByDescriptor,
            _ => Verdict::Refuse,
        }
    }
}

impl Doubts {
    /// The thread opens something: its doubt is over.
    pub(crate) fn settle(&self, thread: u32) -> Before {
        let mut doubts = self.lock();
        let known = doubts.iter().position(|doubt| doubt.thread == thread);
        Before(known.and_then(|known| doubts.remove(known)))
    }

    /// The thread was refused an open.
    pub(crate) fn remember(&self, thread: u32, inode: u64) {
        let mut doubts = self.lock();
        if doubts.len() >= MOST {
            doubts.pop_front();
        }
        doubts.push_back(Doubt { thread, inode, found: None, kept: false });
    }

    /// The thread asked for a name, which leads to this inode. True if it was refused an open before, and nothing is
    /// kept alive for it yet.
    pub(crate) fn found(&self, thread: u32, inode: u64) -> bool {
        let mut doubts = self.lock();
        let Some(doubt) = doubts.iter_mut().find(|doubt| doubt.thread == thread) else { return false };
        doubt.found = Some(inode);
        !doubt.kept
    }

    /// What the thread found is kept alive until it comes to open it.
    pub(crate) fn kept(&self, thread: u32) {
        if let Some(doubt) = self.lock().iter_mut().find(|doubt| doubt.thread == thread) {
            doubt.kept = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Doubt>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An open of an inode without a name.
    fn open(doubts: &Doubts, thread: u32, inode: u64) -> Verdict {
        let verdict = doubts.settle(thread).judge(inode);
        if verdict == Verdict::Refuse {
            doubts.remember(thread, inode);
        }
        verdict
    }

    #[test]
    fn who_comes_back_without_a_name_is_let_in() {
        let doubts = Doubts::default();
        assert_eq!(open(&doubts, 1, 7), Verdict::Refuse);
        assert_eq!(open(&doubts, 2, 7), Verdict::Refuse, "another thread's doubt");
        assert_eq!(open(&doubts, 1, 7), Verdict::ByDescriptor);
        assert_eq!(open(&doubts, 1, 7), Verdict::Refuse, "each open anew");
        assert_eq!(open(&doubts, 1, 8), Verdict::Refuse, "another inode");
    }

    #[test]
    fn who_asked_for_the_name_is_let_in_once() {
        let doubts = Doubts::default();
        doubts.found(1, 7);
        assert_eq!(open(&doubts, 1, 7), Verdict::Refuse, "what it asked before does not count");
        doubts.found(1, 8);
        assert_eq!(open(&doubts, 1, 8), Verdict::ByFreshName, "replaced again meanwhile");
        assert_eq!(open(&doubts, 1, 8), Verdict::Refuse);
        doubts.found(1, 9);
        assert_eq!(open(&doubts, 1, 8), Verdict::Refuse, "the name leads elsewhere");
    }

    #[test]
    fn one_file_is_kept_for_an_open_that_was_refused() {
        let doubts = Doubts::default();
        assert!(!doubts.found(1, 7), "in no doubt");
        assert_eq!(open(&doubts, 1, 7), Verdict::Refuse);
        assert!(doubts.found(1, 8) && doubts.found(1, 9), "gone before it was kept");
        doubts.kept(1);
        assert!(!doubts.found(1, 10), "a thread that looks at many files and opens none");
    }

    #[test]
    fn the_next_open_settles_a_doubt_whatever_it_finds() {
        let doubts = Doubts::default();
        assert_eq!(open(&doubts, 1, 7), Verdict::Refuse);
        doubts.found(1, 8);
        // A file with a name, or one that was made.
        doubts.settle(1);
        assert_eq!(open(&doubts, 1, 8), Verdict::Refuse);
    }

    #[test]
    fn doubts_are_bounded() {
        let doubts = Doubts::default();
        assert!((0..10_000).all(|thread| open(&doubts, thread, 1) == Verdict::Refuse));
        assert!(doubts.lock().len() <= MOST);
    }
}
