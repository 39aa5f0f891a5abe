//! What lies below each directory: how many names, and how many bytes their files hold.
//!
//! Every directory has a [`Tree`] record with the sums over all that lies below it, so that a limit can be put on any of
//! them at once and asking costs one read. An operation only notes in the [`Ledger`] what it puts into a directory or
//! takes out of it. When the command is done, [`settle`] carries the sums up to the root, once for each directory on the
//! way, and refuses the command if one grew over its limit. What stays below a directory, as in a move within it, cancels
//! out before it is looked at.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use cairn_proto::fs::{Cred, FileKind, GetUsage, TreeUsage, Usage, answer};
use cairn_proto::store::Tree;
use cairn_proto::{ErrorCode, ROOT_INODE};

use crate::core::Core;
use crate::fault::Fallible;
use crate::home;
use crate::quota;
use crate::resolve::{Found, resolve};
use crate::snapshot::cover;
use crate::store::{StoreError, Table, View};
use crate::{key, records};

/// How much more or less there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub names: i64,
    pub bytes: i64,
    /// Of the bytes, those that nobody put here: their file lost its name in an older directory.
    pub inherited: i64,
}

/// What a command has put right into directories and taken out of them so far.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    changes: BTreeMap<u64, Change>,
    /// Files that lost their name in their oldest directory, with the one that has inherited their bytes, and how many.
    inherited: BTreeMap<u64, (u64, i64)>,
}

impl Ledger {
    pub fn names(&mut self, directory: u64, names: i64) {
        self.note(directory, Change { names, ..Change::default() });
    }

    pub fn bytes(&mut self, directory: u64, bytes: i64) {
        self.note(directory, Change { bytes, ..Change::default() });
    }

    /// Of the bytes of a directory, so many are there only because their file lost a name.
    pub fn inherit(&mut self, file: u64, directory: u64, bytes: i64) {
        self.inherited.insert(file, (directory, bytes));
    }

    /// The bytes of a file lie elsewhere than where they were inherited.
    pub fn disinherit(&mut self, file: u64) {
        self.inherited.remove(&file);
    }

    fn note(&mut self, directory: u64, change: Change) {
        let noted = self.changes.entry(directory).or_default();
        noted.names += change.names;
        noted.bytes += change.bytes;
        noted.inherited += change.inherited;
    }

    /// The change of each directory.
    fn summed(mut self) -> BTreeMap<u64, Change> {
        for (directory, inherited) in std::mem::take(&mut self.inherited).into_values() {
            self.note(directory, Change { inherited, ..Change::default() });
        }
        self.changes
    }
}

/// The root's record when there is nothing yet.
pub(crate) fn root() -> Tree {
    Tree { parent: ROOT_INODE, ..Tree::default() }
}

/// The record of a directory, which has one.
pub(crate) fn tree(view: &dyn View, id: u64) -> Result<Tree, StoreError> {
    records::tree(view, id)?.ok_or_else(|| StoreError::Damaged(format!("directory {id} is not counted")))
}

pub(crate) fn set_tree(core: &mut Core, id: u64, tree: &Tree) {
    core.set_record(Table::Tree, &key::one(id), tree);
}

/// A name of `child` comes into a directory, with all that is below it. The caller stores the child.
pub(crate) fn enter(core: &mut Core, directory: u64, name: &[u8], child: &mut Found) -> Fallible<()> {
    core.ledger.names(directory, 1);
    if child.inode.kind() != FileKind::Directory {
        return Ok(home::gain(core, directory, child)?);
    }
    let moved = records::tree(core, child.id)?.unwrap_or_default();
    if moved.parent != 0 {
        core.covering.forget();
    }
    core.ledger.names(directory, moved.names as i64);
    core.ledger.bytes(directory, moved.bytes as i64);
    set_tree(core, child.id, &Tree { parent: directory, name: name.to_vec().into(), ..moved });
    child.inode.parent = directory;
    Ok(())
}

/// A name of `child` goes out of a directory, with all that is below it. The caller stores the child, or ends it.
pub(crate) fn leave(core: &mut Core, directory: u64, child: &mut Found) -> Fallible<()> {
    core.ledger.names(directory, -1);
    // What it was in until now it stays in, wherever it goes.
    let newest = cover::of_name(core, directory, child.id)?;
    if child.inode.kind() != FileKind::Directory {
        child.inode.carried = child.inode.carried.max(newest);
        return Ok(home::lose(core, directory, child)?);
    }
    let mut moved = tree(core, child.id)?;
    if newest > moved.carried {
        moved.carried = newest;
        set_tree(core, child.id, &moved);
        core.covering.forget();
    }
    core.ledger.names(directory, -(moved.names as i64));
    core.ledger.bytes(directory, -(moved.bytes as i64));
    Ok(())
}

/// A file holds other bytes than before. One without a name is nobody's.
pub(crate) fn resized(core: &mut Core, file: &Found, allocated_before: u64) {
    let change = file.inode.allocated as i64 - allocated_before as i64;
    if file.inode.parent != 0 && change != 0 {
        core.ledger.bytes(file.inode.parent, change);
    }
}

/// Carries what the command did up to the root. Refused if a directory grew over its limit, other than by bytes that it
/// inherited: whoever takes a name away need not have room elsewhere.
pub(crate) fn settle(core: &mut Core) -> Fallible<()> {
    let mut sums: BTreeMap<u64, (Tree, Change)> = BTreeMap::new();
    for (directory, change) in std::mem::take(&mut core.ledger).summed() {
        if change == Change::default() {
            continue;
        }
        let mut at = directory;
        loop {
            let (tree, sum) = match sums.entry(at) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(fresh) => fresh.insert((tree(core, at)?, Change::default())),
            };
            sum.names += change.names;
            sum.bytes += change.bytes;
            sum.inherited += change.inherited;
            if at == ROOT_INODE {
                break;
            }
            at = tree.parent;
        }
    }
    for (id, (mut tree, sum)) in sums {
        if (sum.names, sum.bytes) == (0, 0) {
            continue;
        }
        tree.names = tree.names.saturating_add_signed(sum.names);
        tree.bytes = tree.bytes.saturating_add_signed(sum.bytes);
        match &mut core.decided {
            // Its client has been told that it is done.
            Some(decided) if !decided.held => decided.limited |= quota::is_limited(&tree),
            _ => quota::admit(core, id, &tree, sum)?,
        }
        set_tree(core, id, &tree);
    }
    Ok(())
}

/// Answers what lies below a directory, and under which limits.
pub(crate) fn usage(view: &dyn View, cred: &Cred, ask: &GetUsage) -> Fallible<answer::Result> {
    let found = resolve(view, cred, &ask.at, true)?;
    if found.inode.kind() != FileKind::Directory {
        return Err(ErrorCode::NotDirectory.into());
    }
    // A directory that was removed while somebody holds it has no record.
    let tree = records::tree(view, found.id)?.ok_or(ErrorCode::Stale)?;
    Ok(answer::Result::Usage(Usage {
        tree: Some(shown(view, found.id, &tree)?),
        limits: quota::above(view, found.id)?,
    }))
}

/// A record as clients see it.
pub(crate) fn shown(view: &dyn View, id: u64, tree: &Tree) -> Result<TreeUsage, StoreError> {
    Ok(TreeUsage {
        inode: id,
        path: path_of(view, id)?.into(),
        names: tree.names,
        bytes: tree.bytes,
        max_names: tree.max_names,
        max_bytes: tree.max_bytes,
    })
}

/// The path of a directory, from the root.
pub(crate) fn path_of(view: &dyn View, id: u64) -> Result<Vec<u8>, StoreError> {
    let mut parts = Vec::new();
    let mut at = id;
    while at != ROOT_INODE {
        let tree = tree(view, at)?;
        parts.push(tree.name);
        at = tree.parent;
    }
    if parts.is_empty() {
        return Ok(b"/".to_vec());
    }
    Ok(parts.iter().rev().flat_map(|name| [&b"/"[..], name]).flatten().copied().collect())
}
