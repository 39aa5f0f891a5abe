//! Extended attributes, access control lists among them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use bytes::{BufMut, Bytes, BytesMut};
use cairn_proto::fs::{RemoveXattr, SetXattr, XattrMode, mutation, outcome};
use cairn_proto::limits::MAX_XATTR_VALUE;
use cairn_proto::{ErrorCode, Result, path};

use crate::groups;
use crate::view::{Caller, View, node};

/// Kept out: a change of content must take a file's capabilities away, and the mount is not told of every change.
const CAPABILITY: &[u8] = b"security.capability";
/// What begins the names of access control lists.
const LISTS: &[u8] = b"system.posix_acl_";
const ACCESS_LIST: &[u8] = b"system.posix_acl_access";
const SETGID: u32 = 0o2000;

impl View {
    /// The value of one attribute.
    pub(crate) async fn getxattr(&self, caller: Caller, inode: u64, name: &OsStr) -> Result<Bytes> {
        let name = name.as_bytes();
        // Asked for by every `ls` and before every exec, or at every check of a permission: not worth a question to
        // the namenode.
        if name == CAPABILITY || (name.starts_with(LISTS) && self.versions.has_no_acl(inode)) {
            return Err(ErrorCode::NoAttribute.into());
        }
        self.cluster.get_xattr(&self.cred(caller), node(inode), Bytes::copy_from_slice(name)).await
    }

    /// All names, each ended by a NUL.
    pub(crate) async fn listxattr(&self, caller: Caller, inode: u64) -> Result<Bytes> {
        let names = self.cluster.list_xattr(&self.cred(caller), node(inode)).await?;
        Ok(name_list(names.iter().filter(|name| may_know(caller, name))))
    }

    /// Sets an attribute.
    pub(crate) async fn setxattr(
        &self,
        caller: Caller,
        inode: u64,
        name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> Result<()> {
        let name = name.as_bytes();
        check_settable(name)?;
        if value.len() > MAX_XATTR_VALUE {
            return Err(ErrorCode::NoSpace.because(format!("an attribute of {} bytes", value.len())));
        }
        let ask = SetXattr {
            at: Some(node(inode)),
            name: Bytes::copy_from_slice(name),
            value: Bytes::copy_from_slice(value),
            mode: xattr_mode(flags)?.into(),
            drop_setgid: name == ACCESS_LIST && self.loses_setgid(caller, inode).await?,
        };
        self.change(caller, mutation::Op::SetXattr(ask)).await
    }

    /// Removes an attribute.
    pub(crate) async fn removexattr(&self, caller: Caller, inode: u64, name: &OsStr) -> Result<()> {
        check_settable(name.as_bytes())?;
        let ask = RemoveXattr { at: Some(node(inode)), name: Bytes::copy_from_slice(name.as_bytes()) };
        self.change(caller, mutation::Op::RemoveXattr(ask)).await
    }

    async fn change(&self, caller: Caller, op: mutation::Op) -> Result<()> {
        let epoch = self.epoch();
        let changed = self.cluster.mutate(&self.cred(caller), op).await;
        match &changed {
            // A list: the mode has followed, and whether there is a list is known again.
            Ok(outcome::Result::Attr(attr)) => {
                self.present(*attr, epoch);
            }
            _ => self.advance(),
        }
        // It changes the inode's ctime.
        changed.map(drop)
    }

    /// Whether the set-group-id bit goes when the caller, who is not of the group, sets an access control list. The
    /// kernel says so with a flag that the FUSE binding does not pass on.
    async fn loses_setgid(&self, caller: Caller, inode: u64) -> Result<bool> {
        if caller.uid == 0 {
            return Ok(false);
        }
        let (attr, _) = self.getattr(inode).await?;
        Ok(attr.mode & SETGID != 0 && caller.gid != attr.gid && !groups::of(caller.pid).contains(&attr.gid))
    }
}

/// Whether the caller is shown that there is such an attribute: of `trusted` ones, which only root can read, as local file
/// systems do it.
fn may_know(caller: Caller, name: &[u8]) -> bool {
    caller.uid == 0 || !name.starts_with(b"trusted.")
}

fn name_list<'a>(names: impl Iterator<Item = &'a Bytes>) -> Bytes {
    let mut list = BytesMut::new();
    for name in names {
        list.extend_from_slice(name);
        list.put_u8(0);
    }
    list.freeze()
}

fn check_settable(name: &[u8]) -> Result<()> {
    if name == CAPABILITY {
        return Err(ErrorCode::NotSupported.because(path::shown(name)));
    }
    Ok(())
}

fn xattr_mode(flags: i32) -> Result<XattrMode> {
    match flags {
        0 => Ok(XattrMode::Set),
        libc::XATTR_CREATE => Ok(XattrMode::Create),
        libc::XATTR_REPLACE => Ok(XattrMode::Replace),
        _ => Err(ErrorCode::Invalid.because(format!("attribute flags {flags:#x}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_trusted_is_listed_for_root_only() {
        let names = [Bytes::from_static(b"trusted.overlay"), Bytes::from_static(b"user.colour")];
        let listed = |uid| {
            let caller = Caller { uid, gid: uid, pid: 1 };
            name_list(names.iter().filter(|name| may_know(caller, name)))
        };
        assert_eq!(listed(0), b"trusted.overlay\0user.colour\0".as_slice());
        assert_eq!(listed(1000), b"user.colour\0".as_slice());
    }

    #[test]
    fn capabilities_are_refused() {
        assert_eq!(check_settable(CAPABILITY).unwrap_err().code, ErrorCode::NotSupported);
        assert!(check_settable(b"user.colour").is_ok() && check_settable(ACCESS_LIST).is_ok());
    }

    #[test]
    fn the_flags_say_whether_it_must_be_new() {
        assert_eq!(xattr_mode(0), Ok(XattrMode::Set));
        assert_eq!(xattr_mode(libc::XATTR_CREATE), Ok(XattrMode::Create));
        assert_eq!(xattr_mode(libc::XATTR_REPLACE), Ok(XattrMode::Replace));
        assert_eq!(xattr_mode(3).unwrap_err().code, ErrorCode::Invalid);
    }
}
