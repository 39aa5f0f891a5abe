//! Locks against a model that keeps for every byte who has it.

use std::collections::BTreeMap;

use cairn_proto::ErrorCode;
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{ExpireSession, GetLock, LockConflict, LockKind, LockMode, LockRange, SetLock, Unlink};
use cairn_proto::limits::{MAX_FILE_LOCKS, MAX_FILE_SIZE};
use proptest::prelude::*;

use super::*;

use LockKind::{Fcntl, Flock};
use LockMode::{Exclusive, Shared, Unlocked};

fn range(start: u64, end: u64, mode: LockMode) -> LockRange {
    LockRange { start, end, mode: mode.into(), pid: 7 }
}

impl World {
    fn set_lock(&mut self, session: u64, seq: u64, ask: SetLock) -> Result<LockConflict, Error> {
        match opened(self.submit(session, seq, 0, Op::SetLock(ask)))? {
            outcome::Result::Lock(conflict) => Ok(conflict),
            other => panic!("{other:?}"),
        }
    }

    fn lock(&mut self, inode: u64, owner: u64, kind: LockKind, range: LockRange) -> Result<bool, Error> {
        self.seq += 1;
        let ask = SetLock { inode, kind: kind.into(), owner, range: Some(range) };
        self.set_lock(self.session, self.seq, ask).map(|conflict| conflict.range.is_none())
    }

    fn get_lock(
        &self,
        inode: u64,
        session: u64,
        owner: u64,
        kind: LockKind,
        range: LockRange,
    ) -> LockConflict {
        let ask = GetLock { inode, kind: kind.into(), session, owner, range: Some(range) };
        match self.query(query::Op::GetLock(ask)).unwrap() {
            answer::Result::Lock(conflict) => conflict,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_lock_excludes_others_and_says_who_holds_it() {
    let mut world = World::new();
    let file = world.create("f").unwrap().inode;
    assert!(world.lock(file, 1, Fcntl, range(10, 19, Exclusive)).unwrap());
    assert!(!world.lock(file, 2, Fcntl, range(19, 30, Shared)).unwrap());
    assert!(world.lock(file, 2, Fcntl, range(20, 30, Shared)).unwrap());
    assert!(world.lock(file, 2, Flock, range(0, 0, Exclusive)).unwrap(), "the kinds do not see each other");
    let found = world.get_lock(file, world.session, 2, Fcntl, range(0, MAX_FILE_SIZE, Shared));
    assert_eq!((found.session, found.owner), (world.session, 1));
    assert_eq!(found.range, Some(range(10, 19, Exclusive)));
    let found = world.get_lock(file, world.session, 1, Fcntl, range(0, 19, Exclusive));
    assert_eq!(found, LockConflict::default());
    world.assert_sound();
}

#[test]
fn a_repeated_request_is_granted_once() {
    let mut world = World::new();
    let file = world.create("f").unwrap().inode;
    let lock = |mode| SetLock { inode: file, kind: Fcntl.into(), owner: 1, range: Some(range(0, 9, mode)) };
    world.set_lock(world.session, 100, lock(Exclusive)).unwrap();
    world.set_lock(world.session, 101, lock(Unlocked)).unwrap();
    world.set_lock(world.session, 100, lock(Exclusive)).unwrap();
    let found = world.get_lock(file, 0, 0, Fcntl, range(0, 9, Exclusive));
    assert_eq!(found, LockConflict::default(), "the late duplicate must not lock again");
    world.assert_sound();
}

#[test]
fn a_flock_that_changes_its_mode_lets_go_first_even_if_it_is_refused() {
    let mut world = World::new();
    let file = world.create("f").unwrap().inode;
    assert!(world.lock(file, 1, Flock, range(0, 0, Shared)).unwrap());
    assert!(world.lock(file, 2, Flock, range(0, 0, Shared)).unwrap());
    assert!(!world.lock(file, 1, Flock, range(0, 0, Exclusive)).unwrap());
    assert!(world.lock(file, 2, Flock, range(0, 0, Exclusive)).unwrap(), "owner 1 has nothing any more");
    assert!(world.lock(file, 2, Flock, range(5, 6, Exclusive)).unwrap(), "having it already is success");
    world.assert_sound();
}

#[test]
fn the_locks_of_a_session_end_with_it() {
    let mut world = World::new();
    let file = world.create("f").unwrap().inode;
    let (mine, other) = (world.session, world.begin());
    assert!(world.lock(file, 1, Fcntl, range(0, 9, Exclusive)).unwrap());
    assert!(world.lock(file, 1, Flock, range(0, 0, Exclusive)).unwrap());
    world.leader(Op::ExpireSession(ExpireSession { session: mine })).unwrap();
    world.assert_sound();
    let ask = |kind: LockKind| SetLock {
        inode: file,
        kind: kind.into(),
        owner: 1,
        range: Some(range(0, 9, Exclusive)),
    };
    assert_eq!(world.set_lock(other, 1, ask(Fcntl)).unwrap().range, None);
    assert_eq!(world.set_lock(other, 2, ask(Flock)).unwrap().range, None);
    assert_eq!(world.set_lock(mine, 900, ask(Fcntl)).unwrap_err().code, ErrorCode::SessionExpired);
    world.assert_sound();
}

#[test]
fn the_locks_of_a_file_end_with_it() {
    let mut world = World::new();
    let file = world.create("f").unwrap().inode;
    assert!(world.lock(file, 1, Fcntl, range(0, 9, Shared)).unwrap());
    assert!(world.lock(file, 1, Fcntl, range(20, 29, Shared)).unwrap());
    world.run(Op::Unlink(Unlink { at: at("f") })).unwrap();
    world.assert_sound();
    assert_eq!(world.lock(file, 1, Fcntl, range(0, 9, Shared)).unwrap_err().code, ErrorCode::Stale);
}

#[test]
fn malformed_locks_are_refused() {
    let mut world = World::new();
    let file = world.create("f").unwrap().inode;
    let directory = world.mkdir("d").unwrap().inode;
    assert_eq!(world.lock(file, 1, Fcntl, range(9, 0, Shared)).unwrap_err().code, ErrorCode::Invalid);
    assert_eq!(world.lock(directory, 1, Flock, range(0, 0, Shared)).unwrap_err().code, ErrorCode::Invalid);
    let unspecified = LockKind::Unspecified;
    assert_eq!(world.lock(file, 1, unspecified, range(0, 0, Shared)).unwrap_err().code, ErrorCode::Malformed);
    let ask = SetLock { inode: file, kind: Fcntl.into(), owner: 1, range: None };
    assert_eq!(world.set_lock(world.session, 999, ask).unwrap_err().code, ErrorCode::Malformed);
}

#[test]
fn a_file_has_only_so_many_locks() {
    let mut world = World::new();
    let file = world.create("f").unwrap().inode;
    for number in 0..MAX_FILE_LOCKS {
        assert!(world.lock(file, number % 3, Fcntl, range(number * 10, number * 10 + 1, Exclusive)).unwrap());
    }
    let beyond = range(MAX_FILE_LOCKS * 10, MAX_FILE_LOCKS * 10, Exclusive);
    assert_eq!(world.lock(file, 1, Fcntl, beyond).unwrap_err().code, ErrorCode::TooManyLocks);
    assert!(world.lock(file, 0, Fcntl, range(0, 9, Unlocked)).unwrap());
    assert!(world.lock(file, 1, Fcntl, beyond).unwrap());
    world.assert_sound();
}

const BYTES: u64 = 24;
type Who = (usize, u64, LockKind);

#[derive(Debug, Clone)]
enum Step {
    Lock(Who, u64, u64, LockMode),
    Expire(usize),
}

fn who() -> impl Strategy<Value = Who> {
    (0usize..2, 0u64..2, prop::sample::select(vec![Fcntl, Fcntl, Flock]))
}

fn step() -> impl Strategy<Value = Step> {
    let lock = (who(), 0..BYTES, 0..BYTES, prop::sample::select(vec![Shared, Exclusive, Unlocked]));
    prop_oneof![
        20 => lock.prop_map(|(who, a, b, mode)| Step::Lock(who, a.min(b), a.max(b), mode)),
        1 => (0usize..2).prop_map(Step::Expire),
    ]
}

/// For every byte, who has it in which mode.
#[derive(Default)]
struct Bytes(BTreeMap<(Who, u64), LockMode>);

impl Bytes {
    fn clear(&mut self, who: Who, start: u64, end: u64) {
        self.0.retain(|(holder, byte), _| *holder != who || !(start..=end).contains(byte));
    }

    fn in_the_way(&self, who: Who, start: u64, end: u64, mode: LockMode) -> bool {
        self.0.iter().any(|((holder, byte), held)| {
            *holder != who
                && holder.2 == who.2
                && (start..=end).contains(byte)
                && mode != Unlocked
                && (mode == Exclusive || *held == Exclusive)
        })
    }

    fn lock(&mut self, who: Who, start: u64, end: u64, mode: LockMode) -> bool {
        let (start, end) = if who.2 == Flock { (0, BYTES - 1) } else { (start, end) };
        if who.2 == Flock && self.0.get(&(who, 0)) != Some(&mode) {
            self.clear(who, start, end);
        }
        if self.in_the_way(who, start, end, mode) {
            return false;
        }
        self.clear(who, start, end);
        if mode != Unlocked {
            self.0.extend((start..=end).map(|byte| ((who, byte), mode)));
        }
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn locks_behave_as_if_every_byte_had_its_own(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        let file = world.create("f").unwrap().inode;
        let mut model = Bytes::default();
        let mut sessions = [world.begin(), world.begin()];
        for (seq, step) in steps.iter().enumerate() {
            match *step {
                Step::Lock(who, start, end, mode) => {
                    let (session, owner, kind) = who;
                    let (session, range) = (sessions[session], range(start, end, mode));
                    let in_the_way = world.get_lock(file, session, owner, kind, range);
                    let (from, until) = if kind == Flock { (0, BYTES - 1) } else { (start, end) };
                    prop_assert_eq!(in_the_way.range.is_some(), model.in_the_way(who, from, until, mode));
                    let ask = SetLock { inode: file, kind: kind.into(), owner, range: Some(range) };
                    let conflict = world.set_lock(session, seq as u64 + 1, ask).unwrap();
                    prop_assert_eq!(conflict.range.is_none(), model.lock(who, start, end, mode), "{:?}", step);
                }
                Step::Expire(index) => {
                    world.leader(Op::ExpireSession(ExpireSession { session: sessions[index] })).unwrap();
                    sessions[index] = world.begin();
                    model.0.retain(|((session, ..), _), _| *session != index);
                }
            }
            world.assert_sound();
        }
    }
}
