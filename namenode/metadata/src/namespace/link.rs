//! Hard links, unlinking and removing directories.

use cairn_proto::fs::{Cred, FileKind, Link, Rmdir, Unlink, outcome};
use cairn_proto::limits::MAX_LINKS;
use cairn_proto::{ErrorCode, path};

use crate::apply::NOTHING;
use crate::core::Core;
use crate::fault::Fallible;
use crate::namespace::{add_entry, create, open, remove_entry};
use crate::permission::{require_add, require_remove};
use crate::resolve::{Found, existing, resolve, resolve_place};
use crate::store::Table;
use crate::{key, quota, records};

pub(crate) fn link(core: &mut Core, cred: &Cred, ask: &Link) -> Fallible<outcome::Result> {
    let mut from = resolve(core, cred, &ask.from, false)?;
    if from.inode.kind() == FileKind::Directory {
        return Err(ErrorCode::NotPermitted.because("a directory has one name").into());
    }
    if from.inode.nlink == 0 {
        return Err(ErrorCode::NotFound.because("the file was removed").into());
    }
    if from.inode.nlink >= MAX_LINKS {
        return Err(ErrorCode::TooManyLinks.into());
    }
    let mut place = resolve_place(core, cred, &ask.at)?;
    create::refuse_existing(core, &place)?;
    require_add(cred, &place.parent.inode)?;
    from.inode.nlink += 1;
    core.touch(&mut from.inode);
    add_entry(core, &mut place.parent, &place.name, &mut from)?;
    core.set_inode(from.id, &from.inode);
    Ok(outcome::Result::Attr(records::attr(from.id, &from.inode)))
}

pub(crate) fn unlink(core: &mut Core, cred: &Cred, ask: &Unlink) -> Fallible<outcome::Result> {
    let mut place = resolve_place(core, cred, &ask.at)?;
    let mut victim = existing(core, &place)?;
    require_remove(cred, &place.parent.inode, &victim.inode)?;
    if victim.inode.kind() == FileKind::Directory {
        return Err(ErrorCode::IsDirectory.because(path::shown(&place.name)).into());
    }
    remove_entry(core, &mut place.parent, &place.name, &mut victim)?;
    lose_name(core, victim)?;
    Ok(NOTHING)
}

pub(crate) fn rmdir(core: &mut Core, cred: &Cred, ask: &Rmdir) -> Fallible<outcome::Result> {
    let mut place = resolve_place(core, cred, &ask.at)?;
    let mut victim = existing(core, &place)?;
    require_remove(cred, &place.parent.inode, &victim.inode)?;
    if victim.inode.kind() != FileKind::Directory {
        return Err(ErrorCode::NotDirectory.because(path::shown(&place.name)).into());
    }
    if victim.inode.entries != 0 {
        return Err(ErrorCode::NotEmpty.because(path::shown(&place.name)).into());
    }
    remove_entry(core, &mut place.parent, &place.name, &mut victim)?;
    lose_directory(core, victim)?;
    Ok(NOTHING)
}

/// A file lost a name; without any, and with nobody holding it open, it goes.
pub(crate) fn lose_name(core: &mut Core, mut file: Found) -> Fallible<()> {
    file.inode.nlink = file.inode.nlink.saturating_sub(1);
    core.touch(&mut file.inode);
    core.set_inode(file.id, &file.inode);
    if file.inode.nlink == 0 && !open::is_open(core, file.id)? {
        open::destroy(core, file)?;
    }
    Ok(())
}

/// An empty directory lost its name. Its number may still be in somebody's hands: that is *stale* from now on.
pub(crate) fn lose_directory(core: &mut Core, directory: Found) -> Fallible<()> {
    open::remove_xattrs(core, directory.id)?;
    core.remove(Table::Inode, &key::one(directory.id));
    core.remove(Table::Tree, &key::one(directory.id));
    quota::forget(core, directory.id);
    core.meta.directories -= 1;
    Ok(())
}
