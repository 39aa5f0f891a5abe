//! From a starting inode and a path to an inode, or to a parent and a name.

use std::collections::VecDeque;

use cairn_proto::fs::{Cred, FileKind, NodeRef};
use cairn_proto::snapshot::DIRECTORY;
use cairn_proto::store::Inode;
use cairn_proto::{ErrorCode, ROOT_INODE, path};

use crate::fault::Fallible;
use crate::permission::{SEARCH, require};
use crate::snapshot::inside::{self, Reached, Realm};
use crate::store::View;
use crate::{delegation, records};

/// Most symbolic links on one path (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// An inode with its number.
pub(crate) struct Found {
    pub id: u64,
    pub inode: Inode,
}

/// A directory and a checked name in it.
pub(crate) struct Place {
    pub parent: Found,
    pub name: Vec<u8>,
}

pub(crate) fn node_ref(at: &Option<NodeRef>) -> Fallible<&NodeRef> {
    Ok(at.as_ref().ok_or_else(|| ErrorCode::Malformed.because("the request names no inode"))?)
}

/// The inode with this number.
pub(crate) fn load(view: &dyn View, id: u64) -> Fallible<Found> {
    let inode = records::inode(view, id)?.ok_or_else(|| ErrorCode::Stale.because(format!("inode {id}")))?;
    delegation::admit(view, id, &inode)?;
    Ok(Found { id, inode })
}

/// The inode at `at`; a symbolic link at the end is followed if `follow`. `ReadOnly` if it is in a snapshot: only
/// questions get there, by way of [`inside::ask`].
pub(crate) fn resolve(view: &dyn View, cred: &Cred, at: &Option<NodeRef>, follow: bool) -> Fallible<Found> {
    present(reach(view, cred, at, follow)?, at)
}

/// As [`resolve`], also into snapshots.
pub(crate) fn reach(view: &dyn View, cred: &Cred, at: &Option<NodeRef>, follow: bool) -> Fallible<Reached> {
    let at = node_ref(at)?;
    let parts = path::components(&at.path)?;
    walk(view, cred, at.inode, &parts, follow, &at.path)
}

fn present(reached: Reached, at: &Option<NodeRef>) -> Fallible<Found> {
    match reached.realm {
        Realm::Present => Ok(reached.found),
        Realm::Door | Realm::Past(_) => {
            Err(ErrorCode::ReadOnly.because(path::shown(&node_ref(at)?.path)).into())
        }
    }
}

/// The directory and name that `at` ends in. The name need not exist. `ReadOnly` if it is in a snapshot, or is
/// `.snapshot` itself.
pub(crate) fn resolve_place(view: &dyn View, cred: &Cred, place: &Option<NodeRef>) -> Fallible<Place> {
    let at = node_ref(place)?;
    let mut parts = path::components(&at.path)?;
    let name = parts.pop().ok_or_else(|| ErrorCode::Invalid.because("the request names no entry"))?;
    let parent = present(walk(view, cred, at.inode, &parts, true, &at.path)?, place)?;
    if parent.inode.kind() != FileKind::Directory {
        return Err(ErrorCode::NotDirectory.because(path::shown(&at.path)).into());
    }
    if parent.inode.nlink == 0 {
        return Err(ErrorCode::NotFound.because("the directory was removed").into());
    }
    require(cred, &parent.inode, SEARCH, &path::shown(&at.path))?;
    if name == DIRECTORY
        && records::tree(view, parent.id)?.is_some_and(|tree| tree.snapshot != 0)
        && records::dentry(view, parent.id, name)?.is_none()
    {
        return Err(ErrorCode::ReadOnly.because(path::shown(&at.path)).into());
    }
    Ok(Place { parent, name: name.to_vec() })
}

/// The inode under a name, if there is one.
pub(crate) fn child(view: &dyn View, parent: u64, name: &[u8]) -> Fallible<Option<Found>> {
    match records::dentry(view, parent, name)? {
        Some(dentry) => Ok(Some(load(view, dentry.inode)?)),
        None => Ok(None),
    }
}

/// The inode under the name of a place, which must exist.
pub(crate) fn existing(view: &dyn View, place: &Place) -> Fallible<Found> {
    child(view, place.parent.id, &place.name)?
        .ok_or_else(|| ErrorCode::NotFound.because(path::shown(&place.name)).into())
}

fn walk(
    view: &dyn View,
    cred: &Cred,
    start: u64,
    parts: &[&[u8]],
    follow: bool,
    whole: &[u8],
) -> Fallible<Reached> {
    let mut rest: VecDeque<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
    let mut at = inside::start(view, start)?;
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if at.found.inode.kind() != FileKind::Directory {
            return Err(ErrorCode::NotDirectory.because(path::shown(whole)).into());
        }
        require(cred, &at.found.inode, SEARCH, &path::shown(whole))?;
        if name == b".." {
            at = inside::parent(view, &at)?;
            continue;
        }
        let next = inside::child(view, &at, &name)?
            .ok_or_else(|| ErrorCode::NotFound.because(path::shown(whole)))?;
        if next.found.inode.kind() != FileKind::Symlink || (rest.is_empty() && !follow) {
            at = next;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(ErrorCode::Loop.because(path::shown(whole)).into());
        }
        if next.found.inode.target.starts_with(b"/") {
            at = inside::start(view, ROOT_INODE)?;
        }
        let target = next.found.inode.target;
        for part in target.split(|&b| b == b'/').rev().filter(|part| !part.is_empty() && *part != b".") {
            rest.push_front(part.to_vec());
        }
    }
    Ok(at)
}
