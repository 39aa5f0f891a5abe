//! The trash: what was discarded is moved below `/.trash` in one step, and goes for good when its time is over.
//!
//! Each user has a directory there that only they can look into, and each item one of its own in it, named by its number,
//! so that names never collide. [`Table::Trash`] knows where the item was. An item that somebody moves or removes by hand,
//! alone or with a directory above it, is none any more, and what else is done in the trash is done to ordinary files.

use std::ops::ControlFlow;

use cairn_proto::fs::{
    Cred, Discard, FileKind, ListTrash, Mkdir, NodeRef, Restore, SetTrash, TrashItem, TrashList, TrashPurged,
    answer, outcome,
};
use cairn_proto::store::{Dentry, Trash};
use cairn_proto::{ErrorCode, ROOT_INODE, path};

use crate::apply::NOTHING;
use crate::core::Core;
use crate::fault::{Fallible, Fault};
use crate::namespace::create::{self, Maker};
use crate::namespace::{link, remove_entry, rename};
use crate::permission::{WRITE, require, require_add, require_remove};
use crate::plan::trash::is_over;
use crate::resolve::{Found, Place, child, existing, resolve_place};
use crate::store::{StoreError, Table, View};
use crate::{key, records, snapshot, usage};

/// The name of the trash in the root directory.
const NAME: &[u8] = b".trash";
/// Most names and snapshots that one command removes: the log waits for it.
const MAX_PURGED: usize = 1024;
/// Most numbers that are passed over for an item: the log waits for it.
const MAX_TAKEN: usize = 1024;
/// Items looked at for one page.
const PAGE: usize = 1024;

/// Sets how long the trash keeps things.
pub(crate) fn configure(core: &mut Core, cred: &Cred, ask: &SetTrash) -> Fallible<outcome::Result> {
    if cred.uid != 0 {
        return Err(ErrorCode::NotPermitted.because("only root says how long the trash keeps things").into());
    }
    if ask.keep_ns < 0 {
        return Err(ErrorCode::Invalid.because(format!("{} ns", ask.keep_ns)).into());
    }
    core.meta.trash_keep_ns = ask.keep_ns;
    Ok(NOTHING)
}

/// Moves a name into the trash of whoever asks.
pub(crate) fn discard(core: &mut Core, cred: &Cred, ask: &Discard) -> Fallible<outcome::Result> {
    if core.meta.trash_keep_ns == 0 {
        return Err(ErrorCode::NotSupported.because("the trash is off").into());
    }
    let from = resolve_place(core, cred, &ask.at)?;
    let moved = existing(core, &from)?;
    require_remove(cred, &from.parent.inode, &moved.inode)?;
    if moved.inode.kind() == FileKind::Directory {
        require(cred, &moved.inode, WRITE, &path::shown(&from.name))?;
    }
    let was = join(usage::path_of(core, from.parent.id)?, &from.name);
    if was.strip_prefix(b"/").is_some_and(|below| below == NAME || below.starts_with(b".trash/")) {
        return Err(ErrorCode::Invalid
            .because("it is in the trash already (--skip-trash removes it)")
            .into());
    }
    let kind = moved.inode.kind;
    let top = directory(core, ROOT_INODE, NAME, (0, 0), 0o755)?;
    let own = directory(core, top, cred.uid.to_string().as_bytes(), (cred.uid, cred.gid), 0o700)?;
    let item = item_directory(core, own, (cred.uid, cred.gid))?;
    let to = Place { parent: Found { id: item, inode: core.inode(item)? }, name: from.name.clone() };
    create::refuse_existing(core, &to)?;
    rename::shift(core, from, to, moved)?;
    let record = Trash { path: was.into(), uid: cred.uid, time_ns: core.now, kind, going: false };
    core.set_record(Table::Trash, &key::one(item), &record);
    usage::settle(core)?;
    Ok(outcome::Result::Trash(shown(core, item, &record)?))
}

fn join(mut directory: Vec<u8>, name: &[u8]) -> Vec<u8> {
    if !directory.ends_with(b"/") {
        directory.push(b'/');
    }
    directory.extend_from_slice(name);
    directory
}

/// A directory of the trash, made if it is missing. What has its name must be one and belong to `owner`.
fn directory(core: &mut Core, parent: u64, name: &[u8], owner: (u32, u32), mode: u32) -> Fallible<u64> {
    if let Some(found) = child(core, parent, name)? {
        if found.inode.kind() != FileKind::Directory || found.inode.uid != owner.0 {
            return Err(in_the_way(core, parent, name)?);
        }
        return Ok(found.id);
    }
    let place = Place { parent: Found { id: parent, inode: core.inode(parent)? }, name: name.to_vec() };
    let maker = Maker { uid: owner.0, gid: owner.1, umask: 0 };
    let made = create::make(core, &Cred::default(), place, create::directory(mode), &maker)?;
    Ok(made.inode)
}

/// The directory of a new item. Its owner may have made anything above it: a number that is taken there is passed over,
/// since what has it already is none of the trash's business.
fn item_directory(core: &mut Core, own: u64, owner: (u32, u32)) -> Fallible<u64> {
    for _ in 0..MAX_TAKEN {
        let name = core.meta.next_inode.to_string();
        if child(core, own, name.as_bytes())?.is_none() {
            return directory(core, own, name.as_bytes(), owner, 0o700);
        }
        core.meta.next_inode += 1;
    }
    Err(in_the_way(core, own, core.meta.next_inode.to_string().as_bytes())?)
}

fn in_the_way(view: &dyn View, parent: u64, name: &[u8]) -> Result<Fault, StoreError> {
    let shown = path::shown(&join(usage::path_of(view, parent)?, name));
    Ok(ErrorCode::Exists.because(format!("{shown} is in the way of the trash")).into())
}

/// Moves an item back.
pub(crate) fn restore(core: &mut Core, cred: &Cred, ask: &Restore) -> Fallible<outcome::Result> {
    let record = own(core, cred, ask.item)?;
    if record.going {
        return Err(ErrorCode::NotFound.because("a part of it is gone for good already").into());
    }
    let wanted = record.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let entry = match records::dentry(core, ask.item, wanted)? {
        Some(_) => Some(wanted.to_vec()),
        None => first_entry(core, ask.item, b"")?.map(|(name, _)| name),
    };
    let name = entry.ok_or_else(|| ErrorCode::NotFound.because("somebody took it out of the trash"))?;
    let to = ask.to.clone().unwrap_or(NodeRef { inode: ROOT_INODE, path: record.path.clone() });
    if ask.parents {
        let above = to.path.iter().rposition(|&byte| byte == b'/').map_or(&b""[..], |end| &to.path[..end]);
        let at = Some(NodeRef { inode: to.inode, path: above.to_vec().into() });
        let (uid, gid) = (cred.uid, cred.gid);
        let parents = Mkdir { at, mode: 0o755, uid, gid, parents: true, ..Mkdir::default() };
        create::mkdir(core, cred, 0, &parents)?;
    }
    let to = resolve_place(core, cred, &Some(to))?;
    let from = Place { parent: Found { id: ask.item, inode: core.inode(ask.item)? }, name };
    let moved = existing(core, &from)?;
    create::refuse_existing(core, &to)?;
    require_add(cred, &to.parent.inode)?;
    rename::refuse_loop(core, &moved, to.parent.id)?;
    if moved.inode.kind() == FileKind::Directory {
        require(cred, &moved.inode, WRITE, &path::shown(&from.name))?;
    }
    let now = join(usage::path_of(core, to.parent.id)?, &to.name);
    let restored = TrashItem { path: now.into(), ..shown(core, ask.item, &record)? };
    rename::shift(core, from, to, moved)?;
    if core.inode(ask.item)?.entries == 0 {
        remove_directory(core, ask.item)?;
    }
    Ok(outcome::Result::Trash(restored))
}

/// The record of an item that is the asker's, or root asks.
fn own(view: &dyn View, cred: &Cred, item: u64) -> Fallible<Trash> {
    let record = record(view, item)?.ok_or_else(|| ErrorCode::NotFound.because(format!("item {item}")))?;
    if !is_in_place(view, item, &record)? {
        return Err(ErrorCode::NotFound.because("somebody took it out of the trash").into());
    }
    if cred.uid != 0 && cred.uid != record.uid {
        return Err(ErrorCode::NotPermitted.because("it is in somebody else's trash").into());
    }
    Ok(record)
}

fn record(view: &dyn View, item: u64) -> Result<Option<Trash>, StoreError> {
    let value = view.get(Table::Trash, &key::one(item))?;
    value.map(|value| records::decode(Table::Trash, &value)).transpose()
}

/// Whether an item lies in the trash still. With a directory above it, it may have been moved anywhere.
fn is_in_place(view: &dyn View, item: u64, record: &Trash) -> Result<bool, StoreError> {
    let own = [b"/", NAME, b"/", record.uid.to_string().as_bytes()].concat();
    Ok(usage::path_of(view, usage::tree(view, item)?.parent)? == own)
}

/// Removes a part of an item before its time, for whoever discarded it.
pub(crate) fn purge_own(core: &mut Core, cred: &Cred, item: u64) -> Fallible<outcome::Result> {
    let record = own(core, cred, item)?;
    purge(core, item, record)
}

/// Removes a part of an item whose time is over. One that is gone, or whose time is not over after all, is left alone: an
/// earlier leader may have asked, or the time may just have been changed. One that was moved away is only forgotten.
pub(crate) fn purge_due(core: &mut Core, item: u64) -> Fallible<outcome::Result> {
    match record(core, item)? {
        Some(record) if is_over(&core.meta, record.time_ns, core.now) => {
            if is_in_place(core, item, &record)? {
                return purge(core, item, record);
            }
            forget(core, item);
            // The record counts as one, so that the leader goes on at once.
            Ok(outcome::Result::TrashPurged(TrashPurged { names: 1, end: true }))
        }
        _ => Ok(outcome::Result::TrashPurged(TrashPurged { names: 0, end: true })),
    }
}

fn purge(core: &mut Core, item: u64, record: Trash) -> Fallible<outcome::Result> {
    core.set_record(Table::Trash, &key::one(item), &Trash { going: true, ..record });
    let mut done = TrashPurged::default();
    let mut left = MAX_PURGED;
    // Directories on the way down, each with the last name that was removed from it.
    let mut way: Vec<(u64, Vec<u8>)> = vec![(item, Vec::new())];
    while let Some((directory, last)) = way.last_mut() {
        if left == 0 {
            return Ok(outcome::Result::TrashPurged(done));
        }
        let directory = *directory;
        match first_entry(core, directory, last)? {
            Some((name, dentry)) if dentry.kind() == FileKind::Directory => {
                *last = name;
                way.push((dentry.inode, Vec::new()));
            }
            Some((name, dentry)) => {
                *last = name.clone();
                let mut parent = Found { id: directory, inode: core.inode(directory)? };
                let mut file = Found { id: dentry.inode, inode: core.inode(dentry.inode)? };
                remove_entry(core, &mut parent, &name, &mut file)?;
                link::lose_name(core, file)?;
                done.names += 1;
                left -= 1;
            }
            None => {
                // Nobody can look for them where it is, and its time is over.
                left -= snapshot::remove_all_of(core, directory, left)?;
                if left > 0 {
                    remove_directory(core, directory)?;
                    way.pop();
                    done.names += 1;
                    left -= 1;
                }
            }
        }
    }
    done.end = true;
    Ok(outcome::Result::TrashPurged(done))
}

/// Removes an empty directory by its number.
fn remove_directory(core: &mut Core, id: u64) -> Fallible<()> {
    // What went out of it a moment ago must not be taken out of its parents again with it.
    usage::settle(core)?;
    snapshot::remove_all_of(core, id, usize::MAX)?;
    let tree = usage::tree(core, id)?;
    let mut parent = Found { id: tree.parent, inode: core.inode(tree.parent)? };
    let mut directory = Found { id, inode: core.inode(id)? };
    remove_entry(core, &mut parent, &tree.name, &mut directory)?;
    link::lose_directory(core, directory)
}

/// The first entry of a directory after a name.
fn first_entry(
    view: &dyn View,
    directory: u64,
    after: &[u8],
) -> Result<Option<(Vec<u8>, Dentry)>, StoreError> {
    let mut start = key::named(directory, after);
    if !after.is_empty() {
        start.push(0);
    }
    let mut found = None;
    view.scan(Table::Dentry, &start, &key::after(directory), &mut |at, value| {
        found = Some((at[8..].to_vec(), value.to_vec()));
        ControlFlow::Break(())
    })?;
    found.map(|(name, value)| Ok((name, records::decode(Table::Dentry, &value)?))).transpose()
}

/// A directory that is moved or removed is no item any more.
pub(crate) fn forget(core: &mut Core, id: u64) {
    core.remove(Table::Trash, &key::one(id));
}

/// A page of the trash.
pub(crate) fn list(view: &dyn View, cred: &Cred, ask: &ListTrash) -> Fallible<answer::Result> {
    if ask.all && cred.uid != 0 {
        return Err(ErrorCode::NotPermitted.because("only root sees everybody's trash").into());
    }
    let keep_ns = records::meta(view)?.unwrap_or_default().trash_keep_ns;
    let mut page = TrashList { keep_ns, ..TrashList::default() };
    let mut rows = Vec::new();
    view.scan(Table::Trash, &key::one(ask.after.saturating_add(1)), &[], &mut |at, value| {
        if rows.len() >= PAGE {
            page.next = rows.last().map_or(0, |(item, _)| *item);
            return ControlFlow::Break(());
        }
        rows.push((key::number(at, 0).unwrap_or(0), value.to_vec()));
        ControlFlow::Continue(())
    })?;
    for (item, value) in rows {
        let record: Trash = records::decode(Table::Trash, &value)?;
        if (ask.all || record.uid == cred.uid) && is_in_place(view, item, &record)? {
            page.items.push(shown(view, item, &record)?);
        }
    }
    Ok(answer::Result::Trash(page))
}

fn shown(view: &dyn View, item: u64, record: &Trash) -> Result<TrashItem, StoreError> {
    let tree = usage::tree(view, item)?;
    Ok(TrashItem {
        item,
        path: record.path.clone(),
        uid: record.uid,
        time_ns: record.time_ns,
        kind: record.kind,
        names: tree.names,
        bytes: tree.bytes,
    })
}
