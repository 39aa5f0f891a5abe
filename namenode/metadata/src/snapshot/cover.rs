//! Which snapshots have what is about to change.
//!
//! A directory is in the snapshots of itself and of all directories above it, and in those that it was in before it was
//! moved away from there (`Tree.carried`); a file in those of the directories that name it, and in those that it was in
//! before it lost a name (`Inode.carried`). Only the newest of them matters: what is kept for it serves all before it.
//!
//! The answer may be a newer snapshot than the newest that really has it: then something is kept that nobody reads. It
//! is never an older one.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use cairn_proto::ROOT_INODE;
use cairn_proto::fs::FileKind;
use cairn_proto::store::{Inode, Snapshot};

use crate::core::Core;
use crate::store::{StoreError, Table, View};
use crate::{key, records};

/// What was found out while a batch is applied.
#[derive(Debug, Default)]
pub(crate) struct Covering {
    /// Directory to its newest snapshot.
    directories: BTreeMap<u64, u64>,
    /// Snapshot to the newest that is there and no newer, with its first number of an inode that was not there.
    living: BTreeMap<u64, Option<(u64, u64)>>,
}

impl Covering {
    /// Directories were moved, or snapshots made or given up.
    pub fn forget(&mut self) {
        self.directories.clear();
        self.living.clear();
    }
}

/// The newest snapshot that is there and not newer than `most`.
pub(crate) fn living(view: &dyn View, most: u64) -> Result<Option<(u64, Snapshot)>, StoreError> {
    let mut found = None;
    view.scan(Table::Snapshot, &key::descending(most), &[], &mut |at, value| {
        let seq = !key::number(at, 0).unwrap_or(u64::MAX);
        match records::decode::<Snapshot>(Table::Snapshot, value) {
            Ok(snapshot) if snapshot.going => return ControlFlow::Continue(()),
            Ok(snapshot) => found = Some(Ok((seq, snapshot))),
            Err(error) => found = Some(Err(error)),
        }
        ControlFlow::Break(())
    })?;
    found.transpose()
}

/// As [`living`], remembered, and only what matters here.
fn known_living(core: &mut Core, most: u64) -> Result<Option<(u64, u64)>, StoreError> {
    if most == 0 {
        return Ok(None);
    }
    if let Some(known) = core.covering.living.get(&most) {
        return Ok(*known);
    }
    let found = living(core, most)?.map(|(seq, snapshot)| (seq, snapshot.next_inode));
    core.covering.living.insert(most, found);
    Ok(found)
}

/// The newest snapshot that has what belongs to a directory; 0: none.
pub(crate) fn of_directory(core: &mut Core, id: u64) -> Result<u64, StoreError> {
    if core.meta.snapshots == 0 {
        return Ok(0);
    }
    let mut way = Vec::new();
    let mut newest = 0;
    let mut at = id;
    loop {
        if let Some(known) = core.covering.directories.get(&at) {
            newest = *known;
            break;
        }
        // One that was removed has none, and nothing in it changes any more.
        let Some(tree) = records::tree(core, at)? else { break };
        way.push((at, tree.snapshot, tree.carried));
        if at == ROOT_INODE {
            break;
        }
        at = tree.parent;
    }
    for (at, snapshot, carried) in way.into_iter().rev() {
        newest = newest.max(snapshot);
        newest = with_carried(core, newest, carried)?;
        core.covering.directories.insert(at, newest);
    }
    was_there(core, newest, id)
}

/// The newest snapshot that has what belongs to an inode, with this record; 0: none. A file takes with it what `carried`
/// says besides.
pub(crate) fn of_inode(core: &mut Core, id: u64, inode: &Inode, carried: u64) -> Result<u64, StoreError> {
    if inode.kind() == FileKind::Directory {
        return of_directory(core, id);
    }
    let mut newest = if inode.parent == 0 { 0 } else { of_directory(core, inode.parent)? };
    if inode.nlink > 1 {
        for directory in records::seconds(core, Table::Link, id)? {
            newest = newest.max(of_directory(core, directory)?);
        }
    }
    newest = with_carried(core, newest, inode.carried.max(carried))?;
    was_there(core, newest, id)
}

/// The newest snapshot that has an inode because of a name that it is about to lose in a directory; 0: none.
pub(crate) fn of_name(core: &mut Core, directory: u64, child: u64) -> Result<u64, StoreError> {
    let newest = of_directory(core, directory)?;
    was_there(core, newest, child)
}

/// A snapshot that was given up is stood in for by the one before it, whosever that is.
fn with_carried(core: &mut Core, newest: u64, carried: u64) -> Result<u64, StoreError> {
    if carried <= newest {
        return Ok(newest);
    }
    Ok(newest.max(known_living(core, carried)?.map_or(0, |(seq, _)| seq)))
}

/// What was made after a snapshot is in none before it either.
fn was_there(core: &mut Core, newest: u64, id: u64) -> Result<u64, StoreError> {
    Ok(match known_living(core, newest)? {
        Some((seq, next_inode)) if id < next_inode => seq,
        _ => 0,
    })
}
