//! Making files, directories, links and special files.

use cairn_proto::fs::{Attr, CreateFile, Created, Cred, FileKind, Mkdir, Mknod, NodeRef, Symlink, outcome};
use cairn_proto::limits::{MAX_PATH, MAX_REPLICATION};
use cairn_proto::store::Inode;
use cairn_proto::{ErrorCode, path};

use crate::acl;
use crate::core::Core;
use crate::fault::Fallible;
use crate::namespace::{add_entry, open};
use crate::permission::{self, WRITE, require, require_add};
use crate::resolve::{Found, Place, child, node_ref, resolve, resolve_place};
use crate::{delegation, extents, records, usage};

/// In whose name an inode is made, and the bits that its mode loses unless an access control list says otherwise.
pub(crate) struct Maker {
    pub uid: u32,
    pub gid: u32,
    pub umask: u32,
}

pub(crate) fn create(
    core: &mut Core,
    cred: &Cred,
    session: u64,
    ask: &CreateFile,
) -> Fallible<outcome::Result> {
    let (id, existed) = make_or_find(core, cred, session, ask)?;
    let attr = records::attr(id, &core.inode(id)?);
    Ok(outcome::Result::Created(Created { attr: Some(attr), existed }))
}

/// The file that `ask` names: made, or found (and emptied if asked). Says whether it was there before.
pub(crate) fn make_or_find(
    core: &mut Core,
    cred: &Cred,
    session: u64,
    ask: &CreateFile,
) -> Fallible<(u64, bool)> {
    if ask.replication > MAX_REPLICATION {
        return Err(ErrorCode::Invalid.because(format!("replication {}", ask.replication)).into());
    }
    let place = resolve_place(core, cred, &ask.at)?;
    let (id, existed) = match child(core, place.parent.id, &place.name)? {
        Some(found) => (found_file(core, cred, ask, found)?, true),
        None => {
            let replication =
                if ask.replication == 0 { core.meta.default_replication } else { ask.replication };
            let inode =
                Inode { kind: FileKind::File.into(), mode: ask.mode, replication, ..Inode::default() };
            let maker = Maker { uid: ask.uid, gid: ask.gid, umask: ask.umask };
            (make(core, cred, place, inode, &maker)?.inode, false)
        }
    };
    if ask.open {
        open::open(core, session, id)?;
    }
    Ok((id, existed))
}

fn found_file(core: &mut Core, cred: &Cred, ask: &CreateFile, found: Found) -> Fallible<u64> {
    let shown = path::shown(&node_ref(&ask.at)?.path);
    if ask.exclusive {
        return Err(ErrorCode::Exists.because(shown).into());
    }
    let mut found =
        if found.inode.kind() == FileKind::Symlink { resolve(core, cred, &ask.at, true)? } else { found };
    match found.inode.kind() {
        FileKind::Directory => return Err(ErrorCode::IsDirectory.because(shown).into()),
        FileKind::File => {}
        _ => return Err(ErrorCode::Invalid.because(format!("{shown}: not a regular file")).into()),
    }
    if ask.truncate {
        require(cred, &found.inode, WRITE, &shown)?;
        let allocated = found.inode.allocated;
        extents::punch(core, found.id, &mut found.inode, 0, u64::MAX)?;
        usage::resized(core, &found, allocated);
        found.inode.size = 0;
        found.inode.mtime_ns = core.stamp();
        core.touch(&mut found.inode);
        core.set_inode(found.id, &found.inode);
    }
    Ok(found.id)
}

pub(crate) fn mkdir(core: &mut Core, cred: &Cred, session: u64, ask: &Mkdir) -> Fallible<outcome::Result> {
    let maker = Maker { uid: ask.uid, gid: ask.gid, umask: ask.umask };
    if ask.parents {
        return Ok(outcome::Result::Attr(make_all(core, cred, ask, &maker)?));
    }
    let place = resolve_place(core, cred, &ask.at)?;
    refuse_existing(core, &place)?;
    let made = make(core, cred, place, directory(ask.mode), &maker)?;
    if !ask.delegate {
        return Ok(outcome::Result::Attr(made));
    }
    Ok(outcome::Result::Attr(delegation::grant(core, session, made.inode)?))
}

pub(crate) fn directory(mode: u32) -> Inode {
    Inode { kind: FileKind::Directory.into(), mode, ..Inode::default() }
}

/// As `mkdir -p`: every missing directory of the path is made.
fn make_all(core: &mut Core, cred: &Cred, ask: &Mkdir, maker: &Maker) -> Fallible<Attr> {
    let at = node_ref(&ask.at)?;
    let parts = path::components(&at.path)?;
    let mut here = resolve(core, cred, &Some(NodeRef { inode: at.inode, path: Default::default() }), true)?;
    for part in parts {
        let step = Some(NodeRef { inode: here.id, path: part.to_vec().into() });
        if child(core, here.id, part)?.is_none() {
            let place = resolve_place(core, cred, &step)?;
            make(core, cred, place, directory(ask.mode), maker)?;
        }
        here = resolve(core, cred, &step, true)?;
    }
    if here.inode.kind() != FileKind::Directory {
        return Err(ErrorCode::Exists.because(path::shown(&at.path)).into());
    }
    Ok(records::attr(here.id, &here.inode))
}

pub(crate) fn mknod(core: &mut Core, cred: &Cred, ask: &Mknod) -> Fallible<outcome::Result> {
    let place = resolve_place(core, cred, &ask.at)?;
    refuse_existing(core, &place)?;
    match ask.kind() {
        FileKind::Fifo | FileKind::Socket | FileKind::File => {}
        FileKind::CharDevice | FileKind::BlockDevice if cred.uid == 0 => {}
        FileKind::CharDevice | FileKind::BlockDevice => {
            return Err(ErrorCode::NotPermitted.because("only root makes devices").into());
        }
        _ => return Err(ErrorCode::Invalid.because("not a special file").into()),
    }
    let replication = core.meta.default_replication;
    let inode = Inode { kind: ask.kind, mode: ask.mode, rdev: ask.rdev, replication, ..Inode::default() };
    let maker = Maker { uid: ask.uid, gid: ask.gid, umask: ask.umask };
    Ok(outcome::Result::Attr(make(core, cred, place, inode, &maker)?))
}

pub(crate) fn symlink(core: &mut Core, cred: &Cred, ask: &Symlink) -> Fallible<outcome::Result> {
    if ask.target.is_empty() || ask.target.len() > MAX_PATH || ask.target.contains(&0) {
        return Err(ErrorCode::Invalid.because("the link's target").into());
    }
    let place = resolve_place(core, cred, &ask.at)?;
    refuse_existing(core, &place)?;
    let inode =
        Inode { kind: FileKind::Symlink.into(), mode: 0o777, target: ask.target.clone(), ..Inode::default() };
    let maker = Maker { uid: ask.uid, gid: ask.gid, umask: 0 };
    Ok(outcome::Result::Attr(make(core, cred, place, inode, &maker)?))
}

pub(crate) fn refuse_existing(core: &Core, place: &Place) -> Fallible<()> {
    match child(core, place.parent.id, &place.name)? {
        Some(_) => Err(ErrorCode::Exists.because(path::shown(&place.name)).into()),
        None => Ok(()),
    }
}

/// Makes an inode of the given kind, mode and content under a name that is free.
pub(crate) fn make(core: &mut Core, cred: &Cred, place: Place, seed: Inode, maker: &Maker) -> Fallible<Attr> {
    let Place { mut parent, name } = place;
    require_add(cred, &parent.inode)?;
    if cred.uid != 0 && maker.uid != cred.uid {
        return Err(ErrorCode::NotPermitted.because("files are made in one's own name").into());
    }
    let kind = seed.kind();
    let (mode, gid) = permission::inherit(cred, &parent.inode, kind, seed.mode, maker.gid);
    if cred.uid != 0 && gid != parent.inode.gid && !permission::in_group(cred, gid) {
        return Err(ErrorCode::NotPermitted.because("files are made in one's own group").into());
    }
    let inherited = acl::inherit(&parent.inode, kind, mode, maker.umask);
    let (id, now) = (core.new_inode()?, core.stamp());
    let inode = Inode {
        mode: inherited.mode,
        access_acl: inherited.access.into(),
        default_acl: inherited.default.into(),
        uid: maker.uid,
        gid,
        nlink: if kind == FileKind::Directory { 2 } else { 1 },
        atime_ns: now,
        mtime_ns: now,
        ctime_ns: now,
        version: 1,
        ..seed
    };
    match kind {
        FileKind::Directory => core.meta.directories += 1,
        _ => core.meta.files += 1,
    }
    let mut made = Found { id, inode };
    add_entry(core, &mut parent, &name, &mut made)?;
    core.set_inode(id, &made.inode);
    Ok(records::attr(id, &made.inode))
}
