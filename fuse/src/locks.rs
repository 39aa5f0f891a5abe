//! What the programs of this mount hold locked, and who of them waits.
//!
//! The cluster decides; this is what the mount must know to give back at a close what was taken, to notice what is lost
//! with a session, and to let waiting programs have their turn.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};

use cairn_proto::fs::{LockConflict, LockKind, LockMode, LockRange};
use cairn_proto::lock;
use tokio::sync::{Mutex, Notify};

/// Requests for locks of one owner go one after another; of different owners, so many at once.
const TURNS: usize = 64;

/// Who holds or wants a lock on which file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Who {
    /// The file.
    pub inode: u64,
    /// Of `flock` or of `fcntl`.
    pub kind: LockKind,
    /// The kernel's number for a process or an open file description.
    pub owner: u64,
}

/// What one owner holds on one file.
#[derive(Debug)]
struct Held {
    session: u64,
    ranges: Vec<LockRange>,
    /// The handles it was locked through.
    handles: BTreeSet<u64>,
    /// To be given back altogether: its owner has closed the file.
    leaving: bool,
}

struct Place {
    ticket: u64,
    who: Who,
    range: LockRange,
    /// Whom it was last seen to wait for, if that is one of this mount and has given nothing back since.
    behind: Option<u64>,
    /// Who has given something back since it began to look: what it is about to see of them may be over.
    released: BTreeSet<u64>,
    turn: Arc<Notify>,
}

#[derive(Default)]
struct Line {
    next: u64,
    places: Vec<Place>,
}

/// The locks of one mount.
pub(crate) struct Locks {
    held: StdMutex<BTreeMap<Who, Held>>,
    line: StdMutex<Line>,
    turns: [Mutex<()>; TURNS],
}

impl Default for Locks {
    fn default() -> Locks {
        Locks {
            held: StdMutex::default(),
            line: StdMutex::default(),
            turns: std::array::from_fn(|_| Mutex::default()),
        }
    }
}

impl Locks {
    fn held(&self) -> MutexGuard<'_, BTreeMap<Who, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be locked while the cluster is asked for something of this owner's, so that what is kept here follows.
    pub(crate) fn turn(&self, who: Who) -> &Mutex<()> {
        let mut hasher = DefaultHasher::new();
        who.hash(&mut hasher);
        &self.turns[hasher.finish() as usize % TURNS]
    }

    /// The cluster did what was asked through `handle`, in `session`: `range` is locked, or unlocked, as it says.
    pub(crate) fn done(&self, who: Who, handle: u64, session: u64, range: LockRange) {
        let mut held = self.held();
        let nothing = || Held { session, ranges: Vec::new(), handles: BTreeSet::new(), leaving: false };
        let mut entry = held.remove(&who).unwrap_or_else(nothing);
        if entry.session != session {
            entry.ranges.clear();
            entry.session = session;
        }
        entry.ranges = lock::lay_over(&entry.ranges, &range);
        if range.mode() != LockMode::Unlocked {
            entry.handles.insert(handle);
        }
        if !entry.ranges.is_empty() {
            held.insert(who, entry);
        }
        drop(held);
        if range.mode() != LockMode::Exclusive {
            self.released(who);
        }
        // Somebody may have waited for just this.
        self.wake(who.inode);
    }

    /// This owner has given something back: whether anybody still waits for it is not known before they look again.
    fn released(&self, who: Who) {
        for place in &mut self.line().places {
            if (place.who.inode, place.who.kind) == (who.inode, who.kind) {
                place.released.insert(who.owner);
                place.behind = place.behind.filter(|owner| *owner != who.owner);
            }
        }
    }

    /// An `flock` that was refused: what there was is given back all the same.
    pub(crate) fn refused(&self, who: Who, range: &LockRange) {
        let mut held = self.held();
        let changes = |held: &Held| held.ranges.iter().any(|held| held.mode != range.mode);
        if who.kind == LockKind::Flock && held.get(&who).is_some_and(changes) {
            held.remove(&who);
            drop(held);
            self.released(who);
            self.wake(who.inode);
        }
    }

    /// The session in which this owner holds something, if it does.
    pub(crate) fn session_of(&self, who: Who) -> Option<u64> {
        self.held().get(&who).map(|held| held.session)
    }

    /// The owner has closed the file: everything is to be given back. False: there is nothing.
    pub(crate) fn leave(&self, who: Who) -> bool {
        self.held().get_mut(&who).map(|held| held.leaving = true).is_some()
    }

    /// Whether everything is still to be given back.
    pub(crate) fn is_leaving(&self, who: Who) -> bool {
        self.held().get(&who).is_some_and(|held| held.leaving)
    }

    /// Whether the owner holds something that touches `range`.
    pub(crate) fn touches(&self, who: Who, range: &LockRange) -> bool {
        let touches = |held: &LockRange| held.start <= range.end && range.start <= held.end;
        self.held().get(&who).is_some_and(|held| held.ranges.iter().any(touches))
    }

    /// The handles through which the owner locks.
    pub(crate) fn handles_of(&self, who: Who) -> Vec<u64> {
        self.held().get(&who).map_or_else(Vec::new, |held| held.handles.iter().copied().collect())
    }

    /// The handle is closed for good: who loses their locks by it.
    pub(crate) fn closed(&self, inode: u64, handle: u64) -> Vec<Who> {
        let first = Who { inode, kind: LockKind::Unspecified, owner: 0 };
        let mut held = self.held();
        let of_inode = held.range_mut(first..).take_while(|(who, _)| who.inode == inode);
        of_inode
            .filter_map(|(who, held)| {
                (held.handles.remove(&handle) && held.handles.is_empty()).then_some(*who)
            })
            .collect()
    }

    /// The session is gone, and with it its locks: which, and the handles they were taken through.
    pub(crate) fn lost(&self, session: u64) -> Vec<(Who, Vec<u64>)> {
        let mut held = self.held();
        let lost: Vec<Who> =
            held.iter().filter(|(_, held)| held.session == session).map(|(who, _)| *who).collect();
        let gone: Vec<(Who, Vec<u64>)> = lost
            .into_iter()
            .filter_map(|who| Some((who, held.remove(&who)?.handles.into_iter().collect())))
            .collect();
        drop(held);
        gone.iter().for_each(|(who, _)| self.released(*who));
        gone
    }

    #[cfg(test)]
    /// Whether nobody holds anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.held().is_empty()
    }

    /// Lines up for a lock.
    pub(crate) fn line_up(&self, who: Who, range: LockRange) -> Waiter<'_> {
        let mut line = self.line();
        let ticket = line.next;
        line.next += 1;
        let turn = Arc::new(Notify::new());
        let (behind, released) = (None, BTreeSet::new());
        line.places.push(Place { ticket, who, range, behind, released, turn: turn.clone() });
        Waiter { locks: self, ticket, who, turn }
    }

    fn wake(&self, inode: u64) {
        for place in &self.line().places {
            if place.who.inode == inode {
                place.turn.notify_one();
            }
        }
    }
}

/// A place in the line, until it is dropped.
pub(crate) struct Waiter<'a> {
    locks: &'a Locks,
    ticket: u64,
    who: Who,
    turn: Arc<Notify>,
}

impl Waiter<'_> {
    /// Who waits.
    pub(crate) fn who(&self) -> Who {
        self.who
    }

    /// Returns when something changed on the file.
    pub(crate) async fn woken(&self) {
        self.turn.notified().await;
    }

    /// Whether nobody of this mount has waited longer for something that excludes this.
    pub(crate) fn is_first(&self) -> bool {
        let line = self.locks.line();
        let Some(own) = line.places.iter().find(|place| place.ticket == self.ticket) else { return true };
        let before_me = |place: &&Place| {
            place.ticket < self.ticket
                && place.who != self.who
                && (place.who.inode, place.who.kind) == (self.who.inode, self.who.kind)
                && lock::conflict(&place.range, &own.range)
        };
        !line.places.iter().any(|place| before_me(&place))
    }

    /// The cluster is about to be asked who is in the way.
    pub(crate) fn looks(&self) {
        let mut line = self.locks.line();
        if let Some(own) = line.places.iter_mut().find(|place| place.ticket == self.ticket) {
            own.released.clear();
        }
    }

    /// Somebody is in the way. True: and waits in turn for this one, with `fcntl` locks, so neither would ever end.
    pub(crate) fn is_deadlocked(&self, conflict: &LockConflict, session: Option<u64>) -> bool {
        let mut line = self.locks.line();
        let behind = Some(conflict.owner).filter(|_| Some(conflict.session) == session);
        let Some(own) = line.places.iter_mut().find(|place| place.ticket == self.ticket) else {
            return false;
        };
        let behind = behind.filter(|owner| !own.released.contains(owner));
        own.behind = behind;
        if self.who.kind != LockKind::Fcntl {
            return false;
        }
        let waits_for = |owner: u64| {
            let waiting = |place: &&Place| place.who.kind == LockKind::Fcntl && place.who.owner == owner;
            line.places.iter().filter(waiting).find_map(|place| place.behind)
        };
        let mut at = behind;
        for _ in 0..=line.places.len() {
            match at {
                Some(owner) if owner == self.who.owner => return true,
                Some(owner) => at = waits_for(owner),
                None => return false,
            }
        }
        false
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.locks.line().places.retain(|place| place.ticket != self.ticket);
        self.locks.wake(self.who.inode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(owner: u64) -> Who {
        Who { inode: 5, kind: LockKind::Fcntl, owner }
    }

    fn range(start: u64, end: u64, mode: LockMode) -> LockRange {
        LockRange { start, end, mode: mode.into(), pid: 1 }
    }

    fn all(mode: LockMode) -> LockRange {
        range(0, lock::LAST, mode)
    }

    #[test]
    fn nothing_is_kept_of_what_was_given_back() {
        let locks = Locks::default();
        locks.done(who(1), 7, 3, range(0, 9, LockMode::Exclusive));
        locks.done(who(1), 7, 3, range(5, 9, LockMode::Unlocked));
        assert!(locks.touches(who(1), &range(4, 8, LockMode::Shared)));
        assert!(!locks.touches(who(1), &range(5, 8, LockMode::Shared)));
        locks.done(who(1), 7, 3, range(0, 4, LockMode::Unlocked));
        assert!(locks.is_empty());
    }

    #[test]
    fn the_last_close_ends_what_was_locked_through_it_and_no_other() {
        let locks = Locks::default();
        locks.done(who(1), 7, 3, all(LockMode::Shared));
        locks.done(who(1), 8, 3, all(LockMode::Shared));
        locks.done(who(2), 7, 3, all(LockMode::Shared));
        locks.done(Who { inode: 6, ..who(3) }, 7, 3, all(LockMode::Shared));
        assert_eq!(locks.closed(5, 7), [who(2)]);
        assert_eq!(locks.closed(5, 7), []);
        assert_eq!(locks.closed(5, 8), [who(1)]);
    }

    #[test]
    fn a_lost_session_takes_its_own_locks_only() {
        let locks = Locks::default();
        locks.done(who(1), 7, 3, all(LockMode::Shared));
        locks.done(who(2), 8, 4, all(LockMode::Shared));
        assert_eq!(locks.lost(3), [(who(1), vec![7])]);
        assert_eq!(locks.lost(3), []);
        assert_eq!(locks.session_of(who(2)), Some(4));
    }

    #[test]
    fn a_refused_change_of_an_flock_gives_the_old_one_back() {
        let locks = Locks::default();
        let flock = Who { kind: LockKind::Flock, ..who(1) };
        locks.done(flock, 7, 3, all(LockMode::Shared));
        locks.refused(flock, &all(LockMode::Shared));
        assert_eq!(locks.session_of(flock), Some(3));
        locks.refused(flock, &all(LockMode::Exclusive));
        assert_eq!(locks.session_of(flock), None);
        locks.done(who(1), 7, 3, all(LockMode::Shared));
        locks.refused(who(1), &all(LockMode::Exclusive));
        assert_eq!(locks.session_of(who(1)), Some(3), "fcntl keeps what it had");
    }

    #[test]
    fn who_came_first_is_first_unless_both_can_have_it() {
        let locks = Locks::default();
        let first = locks.line_up(who(1), range(0, 9, LockMode::Exclusive));
        let second = locks.line_up(who(2), range(5, 5, LockMode::Shared));
        let beside = locks.line_up(who(3), range(10, 19, LockMode::Exclusive));
        let shared = locks.line_up(who(4), range(5, 5, LockMode::Shared));
        assert!(first.is_first() && !second.is_first() && beside.is_first() && !shared.is_first());
        drop(first);
        assert!(second.is_first() && shared.is_first());
    }

    #[tokio::test]
    async fn a_waiter_is_woken_by_whoever_gives_something_back() {
        let locks = Locks::default();
        locks.done(who(1), 7, 3, all(LockMode::Exclusive));
        let waiter = locks.line_up(who(2), all(LockMode::Exclusive));
        locks.done(who(1), 7, 3, all(LockMode::Unlocked));
        waiter.woken().await;
    }

    #[test]
    fn a_lock_that_was_given_back_closes_no_circle() {
        let held_by = |owner| LockConflict { range: None, session: 9, owner, attr: None };
        let byte = |at, mode| range(at, at, mode);
        let locks = Locks::default();
        // Each locks the next byte before it gives the last one back, around and around.
        locks.done(who(1), 7, 9, byte(0, LockMode::Exclusive));
        let two = locks.line_up(who(2), byte(0, LockMode::Exclusive));
        two.looks();
        assert!(!two.is_deadlocked(&held_by(1), Some(9)));
        locks.done(who(1), 7, 9, byte(1, LockMode::Exclusive));
        locks.done(who(1), 7, 9, byte(0, LockMode::Unlocked));
        let one = locks.line_up(who(1), byte(2, LockMode::Exclusive));
        assert!(!one.is_deadlocked(&held_by(2), Some(9)), "two does not wait for one any more");
        // What it was told before it knew does not count either.
        assert!(!two.is_deadlocked(&held_by(1), Some(9)));
        assert!(!one.is_deadlocked(&held_by(2), Some(9)));
        two.looks();
        assert!(two.is_deadlocked(&held_by(1), Some(9)), "now it does");
        assert_eq!(locks.lost(9).len(), 1);
        assert!(!one.is_deadlocked(&held_by(2), Some(9)), "lost with its session");
    }

    #[test]
    fn a_circle_of_waiters_is_found_and_a_line_is_none() {
        let locks = Locks::default();
        let held_by = |owner, session| LockConflict { range: None, session, owner, attr: None };
        let one = locks.line_up(who(1), all(LockMode::Exclusive));
        let two = locks.line_up(Who { inode: 6, ..who(2) }, all(LockMode::Exclusive));
        let three = locks.line_up(Who { inode: 7, ..who(3) }, all(LockMode::Exclusive));
        assert!(!one.is_deadlocked(&held_by(2, 9), Some(9)));
        assert!(!two.is_deadlocked(&held_by(3, 9), Some(9)));
        assert!(!three.is_deadlocked(&held_by(1, 8), Some(9)), "another mount's owner 1");
        assert!(three.is_deadlocked(&held_by(1, 9), Some(9)));
        drop(two);
        assert!(!three.is_deadlocked(&held_by(1, 9), Some(9)));
    }
}
