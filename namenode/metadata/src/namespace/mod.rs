//! Operations on the tree, one family a file.

pub(crate) mod acl;
pub(crate) mod attributes;
pub(crate) mod create;
pub(crate) mod link;
pub(crate) mod mark_read;
pub(crate) mod open;
pub(crate) mod rename;
pub(crate) mod xattr;

use cairn_proto::ErrorCode;
use cairn_proto::fs::FileKind;
use cairn_proto::snapshot::DIRECTORY;
use cairn_proto::store::Dentry;

use crate::core::Core;
use crate::fault::Fallible;
use crate::resolve::Found;
use crate::store::Table;
use crate::{key, snapshot, trash, usage};

/// Puts a name into a directory and marks the directory changed. The caller stores the child afterwards.
pub(crate) fn add_entry(core: &mut Core, parent: &mut Found, name: &[u8], child: &mut Found) -> Fallible<()> {
    if name == DIRECTORY {
        return Err(ErrorCode::Invalid.because("the name .snapshot is where snapshots are").into());
    }
    let dentry = Dentry { inode: child.id, kind: child.inode.kind };
    core.set_record(Table::Dentry, &key::named(parent.id, name), &dentry);
    parent.inode.entries += 1;
    if child.inode.kind() == FileKind::Directory {
        parent.inode.nlink += 1;
    }
    changed(core, parent);
    usage::enter(core, parent.id, name, child)
}

/// Takes a name out of a directory and marks the directory changed. The caller stores the child afterwards, or ends it.
pub(crate) fn remove_entry(
    core: &mut Core,
    parent: &mut Found,
    name: &[u8],
    child: &mut Found,
) -> Fallible<()> {
    if core.meta.snapshots > 0 && child.inode.kind() == FileKind::Directory {
        snapshot::refuse_to_move(core, child.id, name)?;
    }
    core.remove(Table::Dentry, &key::named(parent.id, name));
    parent.inode.entries = parent.inode.entries.saturating_sub(1);
    if child.inode.kind() == FileKind::Directory {
        parent.inode.nlink = parent.inode.nlink.saturating_sub(1);
        // Whoever moves or removes it by hand has taken it out of the trash.
        trash::forget(core, child.id);
    }
    changed(core, parent);
    usage::leave(core, parent.id, child)
}

fn changed(core: &mut Core, directory: &mut Found) {
    directory.inode.mtime_ns = core.stamp();
    core.touch(&mut directory.inode);
    core.set_inode(directory.id, &directory.inode);
}
