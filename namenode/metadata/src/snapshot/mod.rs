//! Snapshots: a directory, with all below it, as it was at one moment.
//!
//! Making one writes its record and nothing else. From then on, what is about to change below the directory is kept first
//! ([`keep`], [`cover`]), so that a [`view`] of the snapshot has the old in the place of the new. Inodes in a snapshot
//! have numbers of their own ([`cairn_proto::snapshot`]) and are found below `DIRECTORY/.snapshot/NAME` ([`inside`]). A
//! snapshot that is given up is gone at once; what was kept for it goes in steps ([`purge`]).
//!
//! `docs/decisions/0020-snapshots.md` says why.

pub(crate) mod check;
pub(crate) mod cover;
pub(crate) mod inside;
pub(crate) mod keep;
mod name;
pub(crate) mod purge;
pub(crate) mod view;

use std::ops::ControlFlow;

use cairn_proto::fs::{
    CreateSnapshot, Cred, FileKind, ListSnapshots, NodeRef, RemoveSnapshot, SnapshotInfo, SnapshotList,
    answer, outcome,
};
use cairn_proto::snapshot::{DIRECTORY, MAX_INODE, MAX_SNAPSHOTS, number};
use cairn_proto::store::Snapshot;
use cairn_proto::{ErrorCode, path};
use prost::Message;

use crate::core::Core;
use crate::fault::Fallible;
use crate::permission::{READ, SEARCH, require, require_owner};
use crate::resolve::{Found, resolve};
use crate::store::{StoreError, Table, View};
use crate::{key, records, usage};

/// Most snapshots that are there at a time.
const MOST: u64 = 65_536;
/// Snapshots of one page.
const PAGE: usize = 1024;

/// Keeps a directory as it is.
pub(crate) fn create(core: &mut Core, cred: &Cred, ask: &CreateSnapshot) -> Fallible<outcome::Result> {
    let found = directory(core, cred, &ask.at)?;
    let name = if ask.name.is_empty() { name::of_time(core.now).into_bytes() } else { ask.name.to_vec() };
    path::check_name(&name)?;
    let shown = path::shown(&usage::path_of(core, found.id)?);
    if records::dentry(core, found.id, DIRECTORY)?.is_some() {
        let detail = format!("{shown} has an entry named .snapshot: give it another name first");
        return Err(ErrorCode::Exists.because(detail).into());
    }
    if shown == "/.trash" || shown.starts_with("/.trash/") {
        return Err(ErrorCode::Invalid.because("what is in the trash goes away").into());
    }
    let at = key::named(found.id, &name);
    if core.get(Table::SnapshotName, &at)?.is_some() {
        return Err(ErrorCode::Exists.because(path::shown(&name)).into());
    }
    let seq = core.meta.next_snapshot.max(1);
    if seq >= MAX_SNAPSHOTS || core.meta.snapshots >= MOST || core.meta.next_inode >= MAX_INODE {
        return Err(ErrorCode::NoSpace.because("there are, or were, too many snapshots").into());
    }
    core.meta.next_snapshot = seq + 1;
    core.meta.snapshots += 1;
    core.meta.snapshot_changes += 1;
    let snapshot = Snapshot {
        directory: found.id,
        name: name.into(),
        time_ns: core.now,
        next_inode: core.meta.next_inode,
        ..Snapshot::default()
    };
    core.set(Table::Snapshot, &key::descending(seq), snapshot.encode_to_vec());
    core.set(Table::SnapshotName, &at, seq.to_be_bytes().to_vec());
    let mut tree = usage::tree(core, found.id)?;
    tree.snapshot = seq;
    usage::set_tree(core, found.id, &tree);
    core.covering.forget();
    Ok(outcome::Result::Snapshot(shown_as(core, seq, &snapshot)?))
}

/// Gives up a snapshot.
pub(crate) fn remove(core: &mut Core, cred: &Cred, ask: &RemoveSnapshot) -> Fallible<outcome::Result> {
    let found = directory(core, cred, &ask.at)?;
    let (seq, snapshot) = named(core, found.id, &ask.name)?
        .ok_or_else(|| ErrorCode::NotFound.because(format!("snapshot {}", path::shown(&ask.name))))?;
    let info = shown_as(core, seq, &snapshot)?;
    give_up(core, seq, snapshot)?;
    Ok(outcome::Result::Snapshot(info))
}

/// Gives up at most so many snapshots of a directory that goes for good. Returns how many; fewer: none is left.
pub(crate) fn remove_all_of(core: &mut Core, directory: u64, most: usize) -> Fallible<usize> {
    if core.meta.snapshots == 0 {
        return Ok(0);
    }
    let (names, _) = names(core, directory, b"", usize::MAX)?;
    // From the oldest on: what is left after a part of them has the same newest one.
    let mut seqs: Vec<u64> = names.into_iter().map(|(_, seq)| seq).collect();
    seqs.sort_unstable();
    let going = seqs.len().min(most);
    for &seq in &seqs[..going] {
        let gone = || StoreError::Damaged(format!("the name of snapshot {seq} leads nowhere"));
        let snapshot = records::snapshot(core, seq)?.ok_or_else(gone)?;
        take_away(core, seq, snapshot);
    }
    if going > 0 && going == seqs.len() {
        set_newest(core, directory, 0)?;
    }
    Ok(going)
}

fn give_up(core: &mut Core, seq: u64, snapshot: Snapshot) -> Fallible<()> {
    let directory = snapshot.directory;
    take_away(core, seq, snapshot);
    let newest = newest_of(core, directory)?.map_or(0, |(seq, _)| seq);
    set_newest(core, directory, newest)
}

/// Takes a snapshot's name away, and has what was kept for it go.
fn take_away(core: &mut Core, seq: u64, snapshot: Snapshot) {
    core.remove(Table::SnapshotName, &key::named(snapshot.directory, &snapshot.name));
    let going = Snapshot { going: true, ..snapshot };
    core.set(Table::Snapshot, &key::descending(seq), going.encode_to_vec());
    core.meta.snapshots = core.meta.snapshots.saturating_sub(1);
    core.meta.snapshots_going += 1;
    core.meta.snapshot_changes += 1;
    core.covering.forget();
}

fn set_newest(core: &mut Core, directory: u64, newest: u64) -> Fallible<()> {
    let mut tree = usage::tree(core, directory)?;
    tree.snapshot = newest;
    usage::set_tree(core, directory, &tree);
    core.covering.forget();
    Ok(())
}

/// The directory that is asked about, if the asker may make and give up snapshots of it.
fn directory(core: &Core, cred: &Cred, at: &Option<NodeRef>) -> Fallible<Found> {
    let found = resolve(core, cred, at, true)?;
    if found.inode.kind() != FileKind::Directory {
        return Err(ErrorCode::NotDirectory.because("snapshots are a directory's").into());
    }
    require_owner(cred, &found.inode)?;
    Ok(found)
}

/// The snapshot of a directory under a name.
pub(crate) fn named(view: &dyn View, directory: u64, name: &[u8]) -> Fallible<Option<(u64, Snapshot)>> {
    let seq = view.get(Table::SnapshotName, &key::named(directory, name))?;
    let Some(seq) = seq.and_then(|seq| key::number(&seq, 0)) else { return Ok(None) };
    let gone = || StoreError::Damaged(format!("the name of snapshot {seq} leads nowhere"));
    let snapshot = records::snapshot(view, seq)?.ok_or_else(gone)?;
    Ok(Some((seq, snapshot)))
}

/// A snapshot by its name in its directory.
type Named = (Vec<u8>, u64);

/// The snapshots of a directory after a name, in order of names: at most so many, and whether that was all.
pub(crate) fn names(
    view: &dyn View,
    directory: u64,
    after: &[u8],
    limit: usize,
) -> Result<(Vec<Named>, bool), StoreError> {
    let mut start = key::named(directory, after);
    if !after.is_empty() {
        start.push(0);
    }
    let mut found = Vec::new();
    let mut end = true;
    view.scan(Table::SnapshotName, &start, &key::after(directory), &mut |at, value| {
        if found.len() >= limit {
            end = false;
            return ControlFlow::Break(());
        }
        found.push((at[8..].to_vec(), key::number(value, 0).unwrap_or(0)));
        ControlFlow::Continue(())
    })?;
    Ok((found, end))
}

fn newest_of(view: &dyn View, directory: u64) -> Result<Option<(u64, Snapshot)>, StoreError> {
    let (names, _) = names(view, directory, b"", usize::MAX)?;
    let Some(seq) = names.into_iter().map(|(_, seq)| seq).max() else { return Ok(None) };
    Ok(records::snapshot(view, seq)?.map(|snapshot| (seq, snapshot)))
}

/// Refuses to move or remove a directory that has snapshots.
pub(crate) fn refuse_to_move(view: &dyn View, directory: u64, name: &[u8]) -> Fallible<()> {
    match records::tree(view, directory)? {
        Some(tree) if tree.snapshot != 0 => {
            let detail = format!("{} has snapshots (see `cairn snapshot ls` and `rm`)", path::shown(name));
            Err(ErrorCode::Busy.because(detail).into())
        }
        _ => Ok(()),
    }
}

/// A page of the snapshots of a directory, or of all.
pub(crate) fn list(view: &dyn View, cred: &Cred, ask: &ListSnapshots) -> Fallible<answer::Result> {
    if ask.at.is_none() {
        return list_all(view, cred, ask.before);
    }
    let found = resolve(view, cred, &ask.at, true)?;
    if found.inode.kind() != FileKind::Directory {
        return Err(ErrorCode::NotDirectory.because("snapshots are a directory's").into());
    }
    require(cred, &found.inode, READ | SEARCH, "no read permission in the directory")?;
    let (names, end) = names(view, found.id, &ask.after_name, PAGE)?;
    let mut page = SnapshotList { end, ..SnapshotList::default() };
    for (_, seq) in names {
        let snapshot = records::snapshot(view, seq)?.unwrap_or_default();
        page.snapshots.push(shown_as(view, seq, &snapshot)?);
    }
    Ok(answer::Result::Snapshots(page))
}

fn list_all(view: &dyn View, cred: &Cred, before: u64) -> Fallible<answer::Result> {
    let mut page = SnapshotList { end: true, ..SnapshotList::default() };
    let mut most = if before == 0 { MAX_SNAPSHOTS } else { before.saturating_sub(1) };
    for _ in 0..PAGE {
        let Some((seq, snapshot)) = cover::living(view, most)? else {
            return Ok(answer::Result::Snapshots(page));
        };
        let owner = records::inode(view, snapshot.directory)?.map(|inode| inode.uid);
        if cred.uid == 0 || owner == Some(cred.uid) {
            page.snapshots.push(shown_as(view, seq, &snapshot)?);
        }
        page.next = seq;
        most = seq.saturating_sub(1);
    }
    page.end = false;
    Ok(answer::Result::Snapshots(page))
}

fn shown_as(view: &dyn View, seq: u64, snapshot: &Snapshot) -> Result<SnapshotInfo, StoreError> {
    Ok(SnapshotInfo {
        seq,
        inode: number(seq, snapshot.directory),
        directory: snapshot.directory,
        path: usage::path_of(view, snapshot.directory)?.into(),
        name: snapshot.name.clone(),
        time_ns: snapshot.time_ns,
        records: snapshot.records,
        bytes: snapshot.bytes,
    })
}
