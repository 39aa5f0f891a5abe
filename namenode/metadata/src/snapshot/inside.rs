//! Looking into snapshots: from names and numbers to what was there.
//!
//! A path leaves the present where it goes through `.snapshot` of a directory that has snapshots, and the next component
//! is the name of one. Whatever is found from there on is the past, read through a [`SnapshotView`], and cannot be
//! changed. What leaves an answer about the past is numbered as [`cairn_proto::snapshot`] says.
//!
//! A number can be anybody's invention. So what does not fit together in the past is not there, and no damage.

use cairn_proto::fs::query::Op;
use cairn_proto::fs::{
    Attr, Cred, DirectoryEntry, FileKind, ListDirectory, Listing, Names, NodeRef, Query, answer,
};
use cairn_proto::limits::MAX_LIST_PAGE;
use cairn_proto::snapshot::{DIRECTORY, number, parts};
use cairn_proto::store::Inode;
use cairn_proto::{ErrorCode, path};

use crate::fault::Fallible;
use crate::permission::{READ, SEARCH, require};
use crate::query;
use crate::records;
use crate::resolve::{self, Found, reach};
use crate::snapshot::view::SnapshotView;
use crate::snapshot::{named, names};
use crate::store::View;

/// In which state of the namespace an inode was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Realm {
    /// As it is.
    Present,
    /// It is the directory `.snapshot` of the inode.
    Door,
    /// As it was when this snapshot was made.
    Past(u64),
}

/// An inode, and where it was found.
pub(crate) struct Reached {
    pub found: Found,
    pub realm: Realm,
}

/// The inode under a number, as a client knows it.
pub(crate) fn start(view: &dyn View, known: u64) -> Fallible<Reached> {
    match parts(known) {
        None => Ok(Reached { found: resolve::load(view, known)?, realm: Realm::Present }),
        Some((0, id)) => {
            let stale = || ErrorCode::Stale.because(format!("inode {id} has no snapshots"));
            Ok(door(view, id)?.ok_or_else(stale)?)
        }
        Some((seq, id)) => {
            let stale = || ErrorCode::Stale.because(format!("inode {id} in snapshot {seq}"));
            Ok(past(view, seq, id)?.ok_or_else(stale)?)
        }
    }
}

/// What is under a name in a directory.
pub(crate) fn child(view: &dyn View, at: &Reached, name: &[u8]) -> Fallible<Option<Reached>> {
    let id = at.found.id;
    match at.realm {
        Realm::Present => match resolve::child(view, id, name)? {
            Some(found) => Ok(Some(Reached { found, realm: Realm::Present })),
            None if name == DIRECTORY => door(view, id),
            None => Ok(None),
        },
        Realm::Door => match named(view, id, name)? {
            Some((seq, _)) => past(view, seq, id),
            None => Ok(None),
        },
        Realm::Past(seq) => match records::dentry(&SnapshotView::new(view, seq), id, name)? {
            Some(dentry) => past(view, seq, dentry.inode),
            None => Ok(None),
        },
    }
}

/// The directory above.
pub(crate) fn parent(view: &dyn View, at: &Reached) -> Fallible<Reached> {
    match at.realm {
        Realm::Present => start(view, at.found.inode.parent),
        Realm::Door => start(view, at.found.id),
        Realm::Past(seq) => {
            let top = records::snapshot(view, seq)?.map(|snapshot| snapshot.directory);
            let above =
                if top == Some(at.found.id) { (0, at.found.id) } else { (seq, at.found.inode.parent) };
            start(view, number(above.0, above.1))
        }
    }
}

/// `.snapshot` of a directory, if it has snapshots.
fn door(view: &dyn View, id: u64) -> Fallible<Option<Reached>> {
    if view.snapshot().is_some() {
        return Ok(None);
    }
    let Some(tree) = records::tree(view, id)?.filter(|tree| tree.snapshot != 0) else { return Ok(None) };
    let directory = resolve::load(view, id)?.inode;
    let time_ns = records::snapshot(view, tree.snapshot)?.map_or(directory.ctime_ns, |newest| newest.time_ns);
    let inode = Inode {
        kind: FileKind::Directory.into(),
        mode: directory.mode & 0o555,
        uid: directory.uid,
        gid: directory.gid,
        access_acl: directory.access_acl,
        nlink: 2,
        atime_ns: time_ns,
        mtime_ns: time_ns,
        ctime_ns: time_ns,
        version: records::meta(view)?.unwrap_or_default().snapshot_changes,
        parent: id,
        ..Inode::default()
    };
    Ok(Some(Reached { found: Found { id, inode }, realm: Realm::Door }))
}

/// An inode as it was in a snapshot that is there.
fn past(view: &dyn View, seq: u64, id: u64) -> Fallible<Option<Reached>> {
    let snapshot = records::snapshot(view, seq)?.filter(|snapshot| !snapshot.going);
    if snapshot.is_none_or(|snapshot| id >= snapshot.next_inode) {
        return Ok(None);
    }
    let inode = records::inode(&SnapshotView::new(view, seq), id)?;
    Ok(inode.map(|inode| Reached { found: Found { id, inode }, realm: Realm::Past(seq) }))
}

/// What a client sees of an inode that was found somewhere.
pub(crate) fn attr(reached: &Reached) -> Attr {
    let attr = records::attr(reached.found.id, &reached.found.inode);
    match reached.realm {
        Realm::Present => attr,
        Realm::Door => Attr { inode: number(0, attr.inode), acl: false, ..attr },
        Realm::Past(seq) => of_past(seq, attr),
    }
}

fn of_past(seq: u64, attr: Attr) -> Attr {
    // Whoever had it to itself then has nothing to say about it now.
    Attr { inode: number(seq, attr.inode), delegated: false, ..attr }
}

/// A regular file of a snapshot, that `cred` may read.
pub(crate) fn content_of(view: &dyn View, cred: &Cred, known: u64) -> Fallible<Inode> {
    let inode = start(view, known)?.found.inode;
    match inode.kind() {
        FileKind::File => {}
        FileKind::Directory => return Err(ErrorCode::IsDirectory.because(format!("inode {known}")).into()),
        _ => return Err(ErrorCode::Invalid.because(format!("inode {known} is not a regular file")).into()),
    }
    if cred.uid != inode.uid {
        require(cred, &inode, READ, &format!("inode {known}"))?;
    }
    Ok(inode)
}

/// Answers a question whose place turned out to be in a snapshot.
pub(crate) fn ask(view: &dyn View, cred: &Cred, query: &Query) -> Fallible<answer::Result> {
    let mut query = query.clone();
    let Some((at, follow)) = query.op.as_mut().and_then(place) else {
        return Err(ErrorCode::ReadOnly.because("a snapshot").into());
    };
    let reached = reach(view, cred, at, follow)?;
    *at = Some(NodeRef { inode: reached.found.id, path: Default::default() });
    let op = query.op.as_ref().ok_or(ErrorCode::Malformed)?;
    if matches!(op, Op::Usage(_) | Op::ListSnapshots(_)) {
        return Err(ErrorCode::NotSupported.because("this is only known of the present").into());
    }
    match reached.realm {
        Realm::Present => Err(ErrorCode::ReadOnly.because("a snapshot").into()),
        Realm::Door => ask_door(view, cred, &reached, op),
        Realm::Past(seq) => {
            let mut result = query::ask(&SnapshotView::new(view, seq), cred, &query)?;
            renumber(&mut result, seq);
            Ok(result)
        }
    }
}

/// The place that a question names, and whether a symbolic link at its end is followed.
fn place(op: &mut Op) -> Option<(&mut Option<NodeRef>, bool)> {
    Some(match op {
        Op::Stat(ask) => (&mut ask.at, ask.follow),
        Op::Access(ask) => (&mut ask.at, ask.follow),
        Op::Layout(ask) => (&mut ask.at, ask.follow),
        Op::List(ask) => (&mut ask.at, true),
        Op::Usage(ask) => (&mut ask.at, true),
        Op::ListSnapshots(ask) => (&mut ask.at, true),
        Op::ReadLink(ask) => (&mut ask.at, false),
        Op::GetXattr(ask) => (&mut ask.at, false),
        Op::ListXattr(ask) => (&mut ask.at, false),
        Op::CheckFile(ask) => (&mut ask.at, false),
        _ => return None,
    })
}

fn ask_door(view: &dyn View, cred: &Cred, door: &Reached, op: &Op) -> Fallible<answer::Result> {
    match op {
        Op::Stat(_) => Ok(answer::Result::Attr(attr(door))),
        Op::Access(ask) => {
            require(cred, &door.found.inode, ask.mask & 0o7, "not for this user")?;
            Ok(answer::Result::Attr(attr(door)))
        }
        Op::List(ask) => list_door(view, cred, door, ask),
        Op::ListXattr(_) => Ok(answer::Result::Names(Names::default())),
        Op::GetXattr(ask) => Err(ErrorCode::NoAttribute.because(path::shown(&ask.name)).into()),
        Op::Layout(_) => Err(ErrorCode::IsDirectory.into()),
        _ => Err(ErrorCode::Invalid.because("not of a directory").into()),
    }
}

fn list_door(view: &dyn View, cred: &Cred, door: &Reached, ask: &ListDirectory) -> Fallible<answer::Result> {
    require(cred, &door.found.inode, READ | SEARCH, "no read permission in the directory")?;
    let limit = if ask.limit == 0 { MAX_LIST_PAGE } else { ask.limit.min(MAX_LIST_PAGE) } as usize;
    let (names, end) = names(view, door.found.id, &ask.after, limit)?;
    let mut entries = Vec::with_capacity(names.len());
    for (name, seq) in names {
        if let Some(top) = past(view, seq, door.found.id)? {
            entries.push(DirectoryEntry { name: name.into(), attr: Some(attr(&top)) });
        }
    }
    Ok(answer::Result::Listing(Listing { entries, end, directory: Some(attr(door)) }))
}

/// Numbers everything in an answer as what it is.
fn renumber(result: &mut answer::Result, seq: u64) {
    let change = |attr: &mut Attr| *attr = of_past(seq, *attr);
    match result {
        answer::Result::Attr(attr) => change(attr),
        answer::Result::Listing(listing) => {
            listing.entries.iter_mut().filter_map(|entry| entry.attr.as_mut()).for_each(change);
            listing.directory.iter_mut().for_each(change);
        }
        answer::Result::Layout(layout) => layout.attr.iter_mut().for_each(change),
        answer::Result::FileCheck(check) => check.attr.iter_mut().for_each(change),
        _ => {}
    }
}
