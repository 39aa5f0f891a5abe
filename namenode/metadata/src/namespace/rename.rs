//! Renaming: atomic, replacing, refusing to replace, or exchanging.

use cairn_proto::fs::{Cred, FileKind, Rename, RenameMode, outcome};
use cairn_proto::{ErrorCode, ROOT_INODE, path};

use crate::apply::NOTHING;
use crate::core::Core;
use crate::fault::Fallible;
use crate::namespace::{add_entry, link, remove_entry};
use crate::permission::{WRITE, require, require_add, require_remove};
use crate::resolve::{Found, Place, child, existing, resolve_place};

pub(crate) fn rename(core: &mut Core, cred: &Cred, ask: &Rename) -> Fallible<outcome::Result> {
    let from = resolve_place(core, cred, &ask.from)?;
    let to = resolve_place(core, cred, &ask.to)?;
    let moved = existing(core, &from)?;
    let target = child(core, to.parent.id, &to.name)?;
    require_remove(cred, &from.parent.inode, &moved.inode)?;
    require_add(cred, &to.parent.inode)?;
    refuse_loop(core, &moved, to.parent.id)?;
    require_reparent(cred, &moved, &from, &to)?;
    match (ask.mode(), target) {
        (RenameMode::Exchange, None) => Err(ErrorCode::NotFound.because(path::shown(&to.name)).into()),
        (RenameMode::Exchange, Some(target)) => exchange(core, cred, (from, moved), (to, target)),
        (RenameMode::NoReplace, Some(_)) => Err(ErrorCode::Exists.because(path::shown(&to.name)).into()),
        (_, Some(target)) if target.id == moved.id => Ok(NOTHING),
        (_, Some(target)) => {
            require_remove(cred, &to.parent.inode, &target.inode)?;
            refuse_mismatch(&moved, &target, &to)?;
            replace(core, &to, target)?;
            shift(core, from, to, moved)
        }
        (_, None) => shift(core, from, to, moved),
    }
}

/// A directory never becomes its own descendant.
pub(crate) fn refuse_loop(core: &Core, moved: &Found, into: u64) -> Fallible<()> {
    if moved.inode.kind() != FileKind::Directory {
        return Ok(());
    }
    let mut at = into;
    while at != ROOT_INODE {
        if at == moved.id {
            return Err(ErrorCode::Invalid.because("a directory cannot move into itself").into());
        }
        at = core.inode(at)?.parent;
    }
    Ok(())
}

/// Moving a directory to another parent rewrites its `..`, which needs write permission on it.
fn require_reparent(cred: &Cred, moved: &Found, from: &Place, to: &Place) -> Fallible<()> {
    if moved.inode.kind() == FileKind::Directory && from.parent.id != to.parent.id {
        require(cred, &moved.inode, WRITE, &path::shown(&from.name))?;
    }
    Ok(())
}

fn refuse_mismatch(moved: &Found, target: &Found, to: &Place) -> Fallible<()> {
    let shown = path::shown(&to.name);
    let directory = FileKind::Directory;
    match (moved.inode.kind() == directory, target.inode.kind() == directory) {
        (true, false) => Err(ErrorCode::NotDirectory.because(shown).into()),
        (false, true) => Err(ErrorCode::IsDirectory.because(shown).into()),
        (true, true) if target.inode.entries != 0 => Err(ErrorCode::NotEmpty.because(shown).into()),
        _ => Ok(()),
    }
}

fn replace(core: &mut Core, to: &Place, mut target: Found) -> Fallible<()> {
    let mut parent = Found { id: to.parent.id, inode: core.inode(to.parent.id)? };
    remove_entry(core, &mut parent, &to.name, &mut target)?;
    if target.inode.kind() == FileKind::Directory {
        link::lose_directory(core, target)
    } else {
        link::lose_name(core, target)
    }
}

pub(crate) fn shift(core: &mut Core, from: Place, to: Place, moved: Found) -> Fallible<outcome::Result> {
    detach(core, &from, &moved)?;
    attach(core, &to, moved)?;
    Ok(NOTHING)
}

fn exchange(
    core: &mut Core,
    cred: &Cred,
    (from, moved): (Place, Found),
    (to, target): (Place, Found),
) -> Fallible<outcome::Result> {
    require_remove(cred, &to.parent.inode, &target.inode)?;
    require_add(cred, &from.parent.inode)?;
    refuse_loop(core, &target, from.parent.id)?;
    require_reparent(cred, &target, &to, &from)?;
    if moved.id == target.id {
        return Ok(NOTHING);
    }
    detach(core, &from, &moved)?;
    detach(core, &to, &target)?;
    attach(core, &to, moved)?;
    attach(core, &from, target)?;
    Ok(NOTHING)
}

// Both places may be in one directory, so each step takes the directory afresh.

fn detach(core: &mut Core, place: &Place, child: &Found) -> Fallible<()> {
    let mut child = Found { id: child.id, inode: core.inode(child.id)? };
    let mut parent = Found { id: place.parent.id, inode: core.inode(place.parent.id)? };
    remove_entry(core, &mut parent, &place.name, &mut child)?;
    core.set_inode(child.id, &child.inode);
    Ok(())
}

fn attach(core: &mut Core, place: &Place, child: Found) -> Fallible<()> {
    // One of the parents may itself be the child's neighbour: take the child afresh as well.
    let mut child = Found { id: child.id, inode: core.inode(child.id)? };
    core.touch(&mut child.inode);
    let mut parent = Found { id: place.parent.id, inode: core.inode(place.parent.id)? };
    add_entry(core, &mut parent, &place.name, &mut child)?;
    core.set_inode(child.id, &child.inode);
    Ok(())
}
