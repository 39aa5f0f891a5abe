//! The state checker: everything that must be true of a namespace, whatever happened to it.
//!
//! It reads the whole store, so it serves tests, simulation and an operator's check, not the hot path.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use cairn_proto::ROOT_INODE;
use cairn_proto::fs::{ChunkState, FileKind};
use cairn_proto::store::{Chunk, Dentry, Inode, Tree};
use prost::Message;

use crate::store::{StoreError, Table, View};
use crate::{acl, extents, key, lock, quota, records, snapshot, upgrade, usage};

fn table<M: Message + Default>(view: &dyn View, table: Table) -> Result<Vec<(Vec<u8>, M)>, StoreError> {
    let mut rows = Vec::new();
    view.scan(table, &[], &[], &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })?;
    rows.into_iter().map(|(key, value)| Ok((key, records::decode(table, &value)?))).collect()
}

fn keys(view: &dyn View, table: Table) -> Result<BTreeSet<Vec<u8>>, StoreError> {
    let mut found = BTreeSet::new();
    view.scan(table, &[], &[], &mut |key, _| {
        found.insert(key.to_vec());
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

fn by_id<M: Message + Default>(view: &dyn View, of: Table) -> Result<BTreeMap<u64, M>, StoreError> {
    let rows = table(view, of)?;
    Ok(rows.into_iter().filter_map(|(key, record)| Some((key::number(&key, 0)?, record))).collect())
}

/// Everything that is wrong, in words. Empty: the namespace is sound.
pub fn check(view: &dyn View) -> Result<Vec<String>, StoreError> {
    let inodes: BTreeMap<u64, Inode> = by_id(view, Table::Inode)?;
    let chunks: BTreeMap<u64, Chunk> = by_id(view, Table::Chunk)?;
    let mut wrong = Vec::new();
    check_tree(view, &inodes, &mut wrong)?;
    check_extents(view, &inodes, &chunks, &mut wrong)?;
    check_chunks(view, &chunks, &mut wrong)?;
    snapshot::check::check(view, &chunks, &mut wrong)?;
    check_totals(view, &inodes, &chunks, &mut wrong)?;
    check_usage(view, &inodes, &mut wrong)?;
    lock::check(view, &mut wrong)?;
    Ok(wrong)
}

fn check_tree(
    view: &dyn View,
    inodes: &BTreeMap<u64, Inode>,
    wrong: &mut Vec<String>,
) -> Result<(), StoreError> {
    let mut names: BTreeMap<u64, u32> = BTreeMap::new();
    let mut entries: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
    for (at, dentry) in table::<Dentry>(view, Table::Dentry)? {
        let parent = key::number(&at, 0).unwrap_or(0);
        let Some(child) = inodes.get(&dentry.inode) else {
            wrong.push(format!("a name in directory {parent} leads to missing inode {}", dentry.inode));
            continue;
        };
        let count = entries.entry(parent).or_default();
        count.0 += 1;
        *names.entry(dentry.inode).or_default() += 1;
        if child.kind() == FileKind::Directory {
            count.1 += 1;
            if child.parent != parent {
                wrong.push(format!("directory {} lies in {parent} but says {}", dentry.inode, child.parent));
            }
        }
        if child.kind != dentry.kind {
            wrong.push(format!("the name of inode {} has another kind", dentry.inode));
        }
    }
    for (&id, inode) in inodes {
        let (held, directories) = entries.get(&id).copied().unwrap_or_default();
        let named = names.get(&id).copied().unwrap_or(0);
        let (links, known) = if inode.kind() == FileKind::Directory {
            (2 + directories, id == ROOT_INODE || named == 1)
        } else {
            (named, named > 0 || crate::namespace::open::is_open(view, id)?)
        };
        if inode.nlink != links {
            wrong.push(format!("inode {id} has {links} links but says {}", inode.nlink));
        }
        if !known {
            wrong.push(format!("inode {id} has no name and nobody holds it open"));
        }
        if let Some(what) = acl::unsound(inode) {
            wrong.push(format!("inode {id} {what}"));
        }
        if inode.entries != held {
            wrong.push(format!("directory {id} has {held} entries but says {}", inode.entries));
        }
    }
    Ok(())
}

fn check_extents(
    view: &dyn View,
    inodes: &BTreeMap<u64, Inode>,
    chunks: &BTreeMap<u64, Chunk>,
    wrong: &mut Vec<String>,
) -> Result<(), StoreError> {
    let mut live: BTreeMap<u64, u64> = BTreeMap::new();
    let mut references = BTreeSet::new();
    for (&id, inode) in inodes {
        let mut allocated = 0;
        let mut at = 0;
        for extent in extents::touching(view, id, inode, (0, u64::MAX), usize::MAX)? {
            let end = extent.file_offset + extent.length;
            if extent.file_offset < at || extent.length == 0 || end > inode.size {
                wrong.push(format!("inode {id}: extent at {} is out of place", extent.file_offset));
            }
            at = end;
            allocated += extent.length;
            *live.entry(extent.chunk).or_default() += extent.length;
            let held = chunks.get(&extent.chunk).map_or(0, |chunk| chunk.length);
            if extent.chunk_offset + extent.length > held {
                wrong.push(format!("inode {id}: extent past the end of chunk {}", extent.chunk));
            }
            let reference = key::chunk_ref(extent.chunk, extent.chunk_offset, id, extent.file_offset);
            references.insert(reference.to_vec());
        }
        if allocated != inode.allocated {
            wrong.push(format!("inode {id} has {allocated} allocated bytes but says {}", inode.allocated));
        }
    }
    for (&id, chunk) in chunks {
        let counted = live.get(&id).copied().unwrap_or(0);
        if counted != chunk.live_bytes {
            wrong.push(format!("chunk {id} has {counted} live bytes but says {}", chunk.live_bytes));
        }
    }
    if keys(view, Table::ChunkRef)? != references {
        wrong.push("the index of chunk references does not match the extents".into());
    }
    Ok(())
}

fn check_chunks(
    view: &dyn View,
    chunks: &BTreeMap<u64, Chunk>,
    wrong: &mut Vec<String>,
) -> Result<(), StoreError> {
    let mut held = BTreeSet::new();
    let mut open = BTreeSet::new();
    for (&id, chunk) in chunks {
        for &node in chunk.replicas.iter().chain(&chunk.dropping) {
            if !held.insert(key::node_chunk(node, id).to_vec()) {
                wrong.push(format!("chunk {id} lists node {node} twice"));
            }
        }
        // One that is being gathered has none at first, and holds nothing that anybody could miss.
        let is_dead = records::is_dead(chunk);
        if chunk.replicas.is_empty() && (!is_dead || chunk.state() == ChunkState::Open) {
            wrong.push(format!("chunk {id} has no replica"));
        }
        if chunk.state() == ChunkState::Open {
            open.insert(key::two(chunk.session, id).to_vec());
        }
        if is_dead != (chunk.dead_since_ns != 0) {
            wrong.push(format!("chunk {id} does not know since when it is dead"));
        }
    }
    if keys(view, Table::NodeChunk)? != held {
        wrong.push("the index of replicas by node does not match the chunks".into());
    }
    if keys(view, Table::SessionChunk)? != open {
        wrong.push("the index of open chunks by session does not match the chunks".into());
    }
    for at in open {
        if records::session(view, key::number(&at, 0).unwrap_or(0))?.is_none() {
            wrong.push(format!("chunk {} is open but its session is gone", key::number(&at, 1).unwrap_or(0)));
        }
    }
    Ok(())
}

fn check_totals(
    view: &dyn View,
    inodes: &BTreeMap<u64, Inode>,
    chunks: &BTreeMap<u64, Chunk>,
    wrong: &mut Vec<String>,
) -> Result<(), StoreError> {
    let meta = records::meta(view)?.unwrap_or_default();
    let directories = inodes.values().filter(|inode| inode.kind() == FileKind::Directory).count() as u64;
    let open = chunks.values().filter(|chunk| chunk.state() == ChunkState::Open).count() as u64;
    let live: u64 = chunks.values().map(|chunk| chunk.live_bytes).sum();
    let counted = (inodes.len() as u64 - directories, directories, open, chunks.len() as u64 - open, live);
    let said = (meta.files, meta.directories, meta.open_chunks, meta.sealed_chunks, meta.live_bytes);
    if counted != said {
        wrong.push(format!("totals are {counted:?} but the record says {said:?}"));
    }
    Ok(())
}

/// Counts everything anew from the names and the files.
fn check_usage(
    view: &dyn View,
    inodes: &BTreeMap<u64, Inode>,
    wrong: &mut Vec<String>,
) -> Result<(), StoreError> {
    let mut direct = BTreeMap::from([(ROOT_INODE, usage::root())]);
    let mut homes: BTreeMap<u64, BTreeMap<u64, u64>> = BTreeMap::new();
    for (at, dentry) in table::<Dentry>(view, Table::Dentry)? {
        let parent = key::number(&at, 0).unwrap_or(0);
        direct.entry(parent).or_default().names += 1;
        if dentry.kind() == FileKind::Directory {
            let tree: &mut Tree = direct.entry(dentry.inode).or_default();
            tree.parent = parent;
            tree.name = at[8..].to_vec().into();
        } else {
            *homes.entry(dentry.inode).or_default().entry(parent).or_default() += 1;
        }
    }
    let mut links = BTreeSet::new();
    for (&id, inode) in inodes.iter().filter(|(_, inode)| inode.kind() != FileKind::Directory) {
        let names = homes.remove(&id).unwrap_or_default();
        let home = names.keys().next().copied().unwrap_or(0);
        if inode.parent != home {
            wrong.push(format!("the bytes of inode {id} belong to {home} but it says {}", inode.parent));
        }
        if let Some(tree) = direct.get_mut(&home) {
            tree.bytes += inode.allocated;
        }
        if names.values().sum::<u64>() > 1 {
            links.extend(names.into_iter().map(|(directory, count)| (id, directory, count)));
        }
    }
    let recorded = links_of(view)?;
    if recorded != links {
        wrong.push(format!("files with several names are {links:?} but the records say {recorded:?}"));
    }
    let mut limited = BTreeSet::new();
    let mut trees: BTreeMap<u64, Tree> = by_id(view, Table::Tree)?;
    for (id, tree) in upgrade::sums(&direct) {
        let said = trees.remove(&id).unwrap_or_default();
        if quota::is_limited(&said) {
            limited.insert(key::one(id).to_vec());
        }
        let Tree { max_names, max_bytes, snapshot, carried, .. } = said;
        let counted = Tree { max_names, max_bytes, snapshot, carried, ..tree };
        if counted != said {
            wrong.push(format!("directory {id} is {counted:?} but its record says {said:?}"));
        }
    }
    wrong.extend(trees.keys().map(|id| format!("directory {id} is counted but not there")));
    for at in keys(view, Table::Trash)? {
        if !key::number(&at, 0).is_some_and(|id| direct.contains_key(&id)) {
            wrong.push(format!("an item of the trash lies in {at:?}, which is no directory"));
        }
    }
    if keys(view, Table::Quota)? != limited {
        wrong.push("the index of quotas does not match the directories".into());
    }
    Ok(())
}

/// (inode, directory, names) of files with several names.
fn links_of(view: &dyn View) -> Result<BTreeSet<(u64, u64, u64)>, StoreError> {
    let mut found = BTreeSet::new();
    view.scan(Table::Link, &[], &[], &mut |at, value| {
        let number = |index| key::number(at, index).unwrap_or(0);
        found.insert((number(0), number(1), key::number(value, 0).unwrap_or(0)));
        ControlFlow::Continue(())
    })?;
    Ok(found)
}
