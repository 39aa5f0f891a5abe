//! Counting a store that an earlier version wrote, once.
//!
//! The counts follow from the names and files alone, so that namenodes that count at different points of the log come to
//! the same store.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use cairn_proto::ROOT_INODE;
use cairn_proto::fs::FileKind;
use cairn_proto::store::{Dentry, Tree};
use prost::Message;

use crate::store::{StoreError, Table, Txn};
use crate::{key, records, usage};

/// Names looked at in one step.
const PAGE: usize = 4096;

/// Gives a store of an earlier version what this one keeps besides; does nothing to any other. [`crate::apply`] does it
/// by itself, before the first command.
pub fn upgrade(txn: &mut dyn Txn) -> Result<(), StoreError> {
    let Some(mut meta) = records::meta(txn)? else { return Ok(()) };
    if meta.counted || meta.cluster_id.is_empty() {
        return Ok(());
    }
    let mut trees = BTreeMap::from([(ROOT_INODE, usage::root())]);
    let mut linked: BTreeMap<u64, BTreeMap<u64, u64>> = BTreeMap::new();
    let mut next = Vec::new();
    loop {
        let page = names(txn, &next)?;
        let Some((last, _)) = page.last() else { break };
        next = [last.as_slice(), &[0]].concat();
        for (at, dentry) in page {
            let parent = key::number(&at, 0).unwrap_or(0);
            if dentry.kind() == FileKind::Directory {
                let made = trees.entry(dentry.inode).or_default();
                made.parent = parent;
                made.name = at[8..].to_vec().into();
            }
            trees.entry(parent).or_default().names += 1;
            if dentry.kind() != FileKind::Directory {
                count_file(txn, dentry.inode, parent, &mut trees, &mut linked)?;
            }
        }
    }
    for (id, names) in linked {
        let Some((&home, _)) = names.first_key_value() else { continue };
        settle_home(txn, id, home, &mut trees)?;
        for (directory, count) in names {
            txn.put(Table::Link, &key::two(id, directory), &count.to_be_bytes())?;
        }
    }
    for (id, tree) in sums(&trees) {
        txn.put(Table::Tree, &key::one(id), &tree.encode_to_vec())?;
    }
    meta.counted = true;
    txn.put(Table::Meta, b"", &meta.encode_to_vec())
}

fn names(txn: &dyn Txn, from: &[u8]) -> Result<Vec<(Vec<u8>, Dentry)>, StoreError> {
    let mut rows = Vec::new();
    txn.scan(Table::Dentry, from, &[], &mut |at, value| {
        rows.push((at.to_vec(), value.to_vec()));
        if rows.len() < PAGE { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    rows.into_iter().map(|(at, value)| Ok((at, records::decode(Table::Dentry, &value)?))).collect()
}

fn count_file(
    txn: &mut dyn Txn,
    id: u64,
    parent: u64,
    trees: &mut BTreeMap<u64, Tree>,
    linked: &mut BTreeMap<u64, BTreeMap<u64, u64>>,
) -> Result<(), StoreError> {
    let inode = records::inode(txn, id)?
        .ok_or_else(|| StoreError::Damaged(format!("a name leads to missing inode {id}")))?;
    if inode.nlink > 1 {
        *linked.entry(id).or_default().entry(parent).or_default() += 1;
        return Ok(());
    }
    settle_home(txn, id, parent, trees)
}

fn settle_home(
    txn: &mut dyn Txn,
    id: u64,
    home: u64,
    trees: &mut BTreeMap<u64, Tree>,
) -> Result<(), StoreError> {
    let Some(mut inode) = records::inode(txn, id)? else { return Ok(()) };
    let tree = trees.entry(home).or_default();
    tree.bytes = tree.bytes.saturating_add(inode.allocated);
    inode.parent = home;
    txn.put(Table::Inode, &key::one(id), &inode.encode_to_vec())
}

/// The same directories, each with all that lies below it and not only what lies right in it.
pub(crate) fn sums(direct: &BTreeMap<u64, Tree>) -> BTreeMap<u64, Tree> {
    let mut sums = direct.clone();
    for (&id, own) in direct {
        let mut at = id;
        // A chain of parents that never ends is damage, which the state checker reports.
        for _ in 0..direct.len() {
            let Some(parent) = direct.get(&at).map(|tree| tree.parent).filter(|&parent| parent != at) else {
                break;
            };
            let Some(above) = sums.get_mut(&parent) else { break };
            above.names = above.names.saturating_add(own.names);
            above.bytes = above.bytes.saturating_add(own.bytes);
            at = parent;
        }
    }
    sums
}
