//! Advisory locks on files: who has which, and who stands in whose way.
//!
//! A lock belongs to an owner of a session and is of one of two kinds that do not see each other. Nothing waits here:
//! a lock is granted or the outcome names who is in the way. All locks of a session go when it ends, after its
//! chunks are sealed: whoever gets a lock then sees all that its last holder could ever commit.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use cairn_proto::fs::{FileKind, GetLock, LockConflict, LockKind, LockRange, SetLock, outcome};
use cairn_proto::limits::{MAX_FILE_LOCKS, MAX_SESSION_LOCKS};
use cairn_proto::snapshot::is_inside;
use cairn_proto::store::{Inode, Locks};
use cairn_proto::{ErrorCode, lock};

use crate::core::Core;
use crate::fault::Fallible;
use crate::store::{StoreError, Table, View};
use crate::{key, records};

/// Everything one owner may hold together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    session: u64,
    owner: u64,
    kind: LockKind,
}

impl Holder {
    fn key(self, inode: u64) -> [u8; 32] {
        key::lock(inode, self.session, self.owner, self.kind as u64)
    }

    fn of_key(key: &[u8]) -> Option<Holder> {
        let kind = i32::try_from(key::number(key, 3)?).ok()?;
        let kind = LockKind::try_from(kind).ok()?;
        Some(Holder { session: key::number(key, 1)?, owner: key::number(key, 2)?, kind })
    }
}

/// Takes, changes or gives back a lock; refused without a trace only if it is malformed or one too many.
pub(crate) fn set(core: &mut Core, session: u64, ask: &SetLock) -> Fallible<outcome::Result> {
    let (holder, mut range) = asked(session, ask.owner, ask.kind(), ask.range)?;
    if is_inside(ask.inode) {
        return Err(ErrorCode::ReadOnly.because("locks in a snapshot keep nobody from anything").into());
    }
    let inode = core.inode(ask.inode)?;
    if inode.kind() != FileKind::File {
        return Err(ErrorCode::Invalid.because(format!("inode {} is not a regular file", ask.inode)).into());
    }
    let held = on_file(core, ask.inode)?;
    let own = held.iter().find(|(other, _)| *other == holder).map(|(_, own)| own.as_slice());
    let mut own = own.unwrap_or_default();
    if holder.kind == LockKind::Flock {
        (range.start, range.end) = (0, lock::LAST);
        if own.first().is_some_and(|own| own.mode == range.mode) {
            return Ok(granted(ask.inode, &inode));
        }
        // Another mode is another lock: the one there was is given back first, and stays so if this one is refused.
        if !own.is_empty() {
            keep(core, ask.inode, holder, own.len(), &[])?;
            own = &[];
        }
    }
    if let Some(conflict) = first_conflict(&held, holder, &range) {
        return Ok(outcome::Result::Lock(conflict));
    }
    let left = lock::lay_over(own, &range);
    if left.len() > own.len() {
        let others: usize =
            held.iter().filter(|(other, _)| *other != holder).map(|(_, held)| held.len()).sum();
        let more = (left.len() - own.len()) as u64;
        if (others + left.len()) as u64 > MAX_FILE_LOCKS
            || count(core, &key::one(session))? + more > MAX_SESSION_LOCKS
        {
            return Err(ErrorCode::TooManyLocks.because(format!("inode {}", ask.inode)).into());
        }
    }
    keep(core, ask.inode, holder, own.len(), &left)?;
    Ok(granted(ask.inode, &inode))
}

/// With what the new holder may rely on to be the file's newest state.
fn granted(id: u64, inode: &Inode) -> outcome::Result {
    outcome::Result::Lock(LockConflict { attr: Some(records::attr(id, inode)), ..LockConflict::default() })
}

/// Who stands in the way of a lock.
pub(crate) fn conflict(view: &dyn View, ask: &GetLock) -> Fallible<LockConflict> {
    let (holder, mut range) = asked(ask.session, ask.owner, ask.kind(), ask.range)?;
    if is_inside(ask.inode) {
        return Ok(LockConflict::default());
    }
    if records::inode(view, ask.inode)?.is_none() {
        return Err(ErrorCode::Stale.because(format!("inode {}", ask.inode)).into());
    }
    if holder.kind == LockKind::Flock {
        (range.start, range.end) = (0, lock::LAST);
    }
    Ok(first_conflict(&on_file(view, ask.inode)?, holder, &range).unwrap_or_default())
}

/// Gives back all locks of a session.
pub(crate) fn release_all_of(core: &mut Core, session: u64) -> Fallible<()> {
    for inode in records::seconds(core, Table::SessionLock, session)? {
        for (holder, _) in on_file(core, inode)? {
            if holder.session == session {
                core.remove(Table::Lock, &holder.key(inode));
            }
        }
        core.remove(Table::SessionLock, &key::two(session, inode));
    }
    core.remove(Table::SessionLock, &key::one(session));
    Ok(())
}

/// Gives back all locks on a file that is going.
pub(crate) fn release_all_on(core: &mut Core, inode: u64) -> Fallible<()> {
    for (holder, held) in on_file(core, inode)? {
        keep(core, inode, holder, held.len(), &[])?;
    }
    Ok(())
}

fn asked(
    session: u64,
    owner: u64,
    kind: LockKind,
    range: Option<LockRange>,
) -> Fallible<(Holder, LockRange)> {
    let range = range.ok_or_else(|| ErrorCode::Malformed.because("a lock without a range"))?;
    if kind == LockKind::Unspecified {
        return Err(ErrorCode::Malformed.because("a lock of no kind").into());
    }
    lock::validate(&range)?;
    Ok((Holder { session, owner, kind }, range))
}

fn first_conflict(
    held: &[(Holder, Vec<LockRange>)],
    holder: Holder,
    range: &LockRange,
) -> Option<LockConflict> {
    let others = held.iter().filter(|(other, _)| *other != holder && other.kind == holder.kind);
    let mut in_the_way = others.flat_map(|(other, held)| {
        held.iter().filter(|held| lock::conflict(held, range)).map(move |held| LockConflict {
            range: Some(*held),
            session: other.session,
            owner: other.owner,
            attr: None,
        })
    });
    in_the_way.next()
}

/// Everybody's locks on a file.
fn on_file(view: &dyn View, inode: u64) -> Result<Vec<(Holder, Vec<LockRange>)>, StoreError> {
    let mut rows = Vec::new();
    view.scan(Table::Lock, &key::one(inode), &key::after(inode), &mut |at, value| {
        rows.push((at.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })?;
    rows.into_iter()
        .map(|(at, value)| {
            let holder = Holder::of_key(&at)
                .ok_or_else(|| StoreError::Damaged(format!("a lock on inode {inode} has no holder")))?;
            Ok((holder, records::decode::<Locks>(Table::Lock, &value)?.ranges))
        })
        .collect()
}

/// Records what a holder has on a file from now on, and counts it.
fn keep(core: &mut Core, inode: u64, holder: Holder, before: usize, ranges: &[LockRange]) -> Fallible<()> {
    let at = holder.key(inode);
    match ranges {
        [] if before == 0 => return Ok(()),
        [] => core.remove(Table::Lock, &at),
        ranges => core.set_record(Table::Lock, &at, &Locks { ranges: ranges.to_vec() }),
    }
    for at in [key::two(holder.session, inode).as_slice(), &key::one(holder.session)] {
        let counted = (count(core, at)? + ranges.len() as u64).saturating_sub(before as u64);
        if counted == 0 {
            core.remove(Table::SessionLock, at);
        } else {
            core.set(Table::SessionLock, at, counted.to_be_bytes().to_vec());
        }
    }
    Ok(())
}

fn count(view: &dyn View, at: &[u8]) -> Result<u64, StoreError> {
    Ok(view.get(Table::SessionLock, at)?.and_then(|bytes| key::number(&bytes, 0)).unwrap_or(0))
}

/// Says what is wrong with the locks and their counts.
pub(crate) fn check(view: &dyn View, wrong: &mut Vec<String>) -> Result<(), StoreError> {
    let mut files = Vec::new();
    view.scan(Table::Lock, &[], &[], &mut |at, _| {
        files.extend(key::number(at, 0));
        ControlFlow::Continue(())
    })?;
    files.dedup();
    let mut counted: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for inode in files {
        if records::inode(view, inode)?.is_none_or(|inode| inode.kind() != FileKind::File) {
            wrong.push(format!("inode {inode} is locked but is no file"));
        }
        let held = on_file(view, inode)?;
        for (holder, ranges) in &held {
            if records::session(view, holder.session)?.is_none() {
                wrong.push(format!("inode {inode} is locked by session {}, which is gone", holder.session));
            }
            if ranges.is_empty() || !lock::are_sound(ranges) {
                wrong.push(format!("inode {inode} has locks out of order: {ranges:?}"));
            }
            for range in ranges {
                if first_conflict(&held, *holder, range).is_some() {
                    wrong.push(format!("inode {inode} is locked twice at {}", range.start));
                }
            }
            for at in [key::two(holder.session, inode).to_vec(), key::one(holder.session).to_vec()] {
                *counted.entry(at).or_default() += ranges.len() as u64;
            }
        }
    }
    let mut said = BTreeMap::new();
    view.scan(Table::SessionLock, &[], &[], &mut |at, value| {
        said.insert(at.to_vec(), key::number(value, 0).unwrap_or(0));
        ControlFlow::Continue(())
    })?;
    if said != counted {
        wrong.push("the counts of locks by session do not match the locks".into());
    }
    Ok(())
}
