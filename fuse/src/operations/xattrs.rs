//! Extended attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use bytes::{BufMut, Bytes, BytesMut};
use cairn_proto::fs::{RemoveXattr, SetXattr, XattrMode};
use cairn_proto::limits::MAX_XATTR_VALUE;
use cairn_proto::{ErrorCode, Result, path};

use crate::view::{Caller, View, node};

/// Kept out: a change of content must take a file's capabilities away, and the mount is not told of every change.
const CAPABILITY: &[u8] = b"security.capability";
/// Kept out until the namenode evaluates access control lists.
const ACCESS_CONTROL: &[u8] = b"system.posix_acl_";

impl View {
    /// The value of one attribute.
    pub(crate) async fn getxattr(&self, caller: Caller, inode: u64, name: &OsStr) -> Result<Bytes> {
        let name = name.as_bytes();
        // Asked for by every `ls` and before every exec: not worth a question to the namenode.
        if name == CAPABILITY {
            return Err(ErrorCode::NoAttribute.into());
        }
        if name.starts_with(ACCESS_CONTROL) {
            return Err(ErrorCode::NotSupported.into());
        }
        self.cluster.get_xattr(&self.cred(caller), node(inode), Bytes::copy_from_slice(name)).await
    }

    /// All names, each ended by a NUL.
    pub(crate) async fn listxattr(&self, caller: Caller, inode: u64) -> Result<Bytes> {
        let names = self.cluster.list_xattr(&self.cred(caller), node(inode)).await?;
        let mut list = BytesMut::with_capacity(names.iter().map(|name| name.len() + 1).sum());
        for name in names {
            list.extend_from_slice(&name);
            list.put_u8(0);
        }
        Ok(list.freeze())
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
        check_settable(name.as_bytes())?;
        if value.len() > MAX_XATTR_VALUE {
            return Err(ErrorCode::NoSpace.because(format!("an attribute of {} bytes", value.len())));
        }
        let ask = SetXattr {
            at: Some(node(inode)),
            name: Bytes::copy_from_slice(name.as_bytes()),
            value: Bytes::copy_from_slice(value),
            mode: xattr_mode(flags)?.into(),
        };
        let set = self.cluster.set_xattr(&self.cred(caller), ask).await;
        // It changes the inode's ctime.
        self.advance();
        set
    }

    /// Removes an attribute.
    pub(crate) async fn removexattr(&self, caller: Caller, inode: u64, name: &OsStr) -> Result<()> {
        check_settable(name.as_bytes())?;
        let ask = RemoveXattr { at: Some(node(inode)), name: Bytes::copy_from_slice(name.as_bytes()) };
        let removed = self.cluster.remove_xattr(&self.cred(caller), ask).await;
        self.advance();
        removed
    }
}

fn check_settable(name: &[u8]) -> Result<()> {
    if name == CAPABILITY || name.starts_with(ACCESS_CONTROL) {
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
    fn attributes_that_would_need_enforcing_are_refused() {
        for name in [&b"security.capability"[..], b"system.posix_acl_access", b"system.posix_acl_default"] {
            assert_eq!(check_settable(name).unwrap_err().code, ErrorCode::NotSupported);
        }
        assert!(check_settable(b"user.colour").is_ok());
    }

    #[test]
    fn the_flags_say_whether_it_must_be_new() {
        assert_eq!(xattr_mode(0), Ok(XattrMode::Set));
        assert_eq!(xattr_mode(libc::XATTR_CREATE), Ok(XattrMode::Create));
        assert_eq!(xattr_mode(libc::XATTR_REPLACE), Ok(XattrMode::Replace));
        assert_eq!(xattr_mode(3).unwrap_err().code, ErrorCode::Invalid);
    }
}
