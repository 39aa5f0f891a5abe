//! POSIX permission checks. Uid 0 passes them all.

use cairn_proto::fs::{Cred, FileKind};
use cairn_proto::store::Inode;
use cairn_proto::{ErrorCode, Result};

use crate::acl::Acl;

/// Read permission.
pub(crate) const READ: u32 = 4;
/// Write permission.
pub(crate) const WRITE: u32 = 2;
/// Search permission of a directory.
pub(crate) const SEARCH: u32 = 1;

/// The set-group-id bit.
pub(crate) const SETGID: u32 = 0o2000;
/// The set-user-id bit.
pub(crate) const SETUID: u32 = 0o4000;
const STICKY: u32 = 0o1000;
const GROUP_EXECUTE: u32 = 0o010;

pub(crate) fn in_group(cred: &Cred, gid: u32) -> bool {
    cred.gid == gid || cred.groups.contains(&gid)
}

/// Refuses what `cred` may not do.
pub(crate) fn require(cred: &Cred, inode: &Inode, wanted: u32, what: &str) -> Result<()> {
    if permits(cred, inode, wanted) { Ok(()) } else { Err(ErrorCode::PermissionDenied.because(what)) }
}

/// Whether `cred` may do all of `wanted` to `inode`.
pub(crate) fn permits(cred: &Cred, inode: &Inode, wanted: u32) -> bool {
    if cred.uid == 0 {
        return true;
    }
    if cred.uid != inode.uid && !inode.access_acl.is_empty() {
        // A list that is damaged lets nobody in; the state checker reports it.
        let acl = Acl::decode(&inode.access_acl).ok().flatten();
        return acl.is_some_and(|acl| acl.permits(cred, (inode.uid, inode.gid), wanted));
    }
    let granted = if cred.uid == inode.uid {
        inode.mode >> 6
    } else if in_group(cred, inode.gid) {
        inode.mode >> 3
    } else {
        inode.mode
    };
    granted & wanted == wanted
}

/// Only the owner (or root) may do this.
pub(crate) fn require_owner(cred: &Cred, inode: &Inode) -> Result<()> {
    if cred.uid == 0 || cred.uid == inode.uid {
        return Ok(());
    }
    Err(ErrorCode::NotPermitted.because("only the owner may do this"))
}

/// Whether `cred` may add names to `directory`.
pub(crate) fn require_add(cred: &Cred, directory: &Inode) -> Result<()> {
    require(cred, directory, WRITE | SEARCH, "no write permission in the directory")
}

/// Whether `cred` may take the name of `victim` out of `directory`.
pub(crate) fn require_remove(cred: &Cred, directory: &Inode, victim: &Inode) -> Result<()> {
    require_add(cred, directory)?;
    let sticky = directory.mode & STICKY != 0;
    if sticky && cred.uid != 0 && cred.uid != directory.uid && cred.uid != victim.uid {
        return Err(ErrorCode::NotPermitted.because("the directory is sticky"));
    }
    Ok(())
}

/// Mode bits and group of an inode made in `parent`: a set-group-id directory hands its group down, but not the right
/// to run with it to somebody outside of the group.
pub(crate) fn inherit(cred: &Cred, parent: &Inode, kind: FileKind, mode: u32, gid: u32) -> (u32, u32) {
    let mode = mode & 0o7777;
    if parent.mode & SETGID == 0 {
        return (mode, gid);
    }
    let runs_as_group = mode & (SETGID | GROUP_EXECUTE) == SETGID | GROUP_EXECUTE;
    let mode = match kind {
        FileKind::Directory => mode | SETGID,
        _ if runs_as_group && cred.uid != 0 && !in_group(cred, parent.gid) => mode & !SETGID,
        _ => mode,
    };
    (mode, parent.gid)
}
