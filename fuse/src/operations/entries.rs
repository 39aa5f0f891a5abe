//! Names: finding, making, moving and removing them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use cairn_proto::fs::{Attr, FileKind, Link, Mkdir, Mknod, Rename, RenameMode, Symlink};
use cairn_proto::{ErrorCode, Result};
use fuser::RenameFlags;

use crate::attr::kind_of_mode;
use crate::view::{Caller, ROOT, View, child, node};

/// The mode of something to be made: what was asked for, and the umask that an access control list may override.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewMode {
    pub bits: u32,
    pub umask: u32,
}

impl View {
    /// The inode under a name.
    pub(crate) async fn lookup(&self, caller: Caller, parent: u64, name: &OsStr) -> Result<Attr> {
        loop {
            let epoch = self.epoch();
            let found = self.cluster.stat(&self.cred(caller), child(parent, name)?, false).await;
            // A name that leads nowhere: no open follows.
            let attr = found.inspect_err(|_| _ = self.doubts.settle(caller.pid))?;
            if self.doubts.found(caller.pid, attr.inode) && attr.kind() == FileKind::File {
                // The kernel does not look a third time if this one is gone as well before it is opened.
                match self.holds.hold(&self.cluster, attr.inode).await {
                    // It stays registered for a while.
                    Ok(_) => {
                        self.holds.let_go(attr.inode);
                        self.doubts.kept(caller.pid);
                    }
                    Err(error) if error.code == ErrorCode::Stale => continue,
                    Err(error) => return Err(error),
                }
            }
            return Ok(self.present(attr, epoch));
        }
    }

    /// Where a symbolic link leads.
    pub(crate) async fn readlink(&self, inode: u64) -> Result<Bytes> {
        self.cluster.read_link(&ROOT, node(inode)).await
    }

    /// Makes a directory.
    pub(crate) async fn mkdir(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        mode: NewMode,
    ) -> Result<Attr> {
        let ask = Mkdir {
            at: Some(child(parent, name)?),
            mode: mode.bits & 0o7777,
            uid: caller.uid,
            gid: caller.gid,
            umask: mode.umask,
            ..Mkdir::default()
        };
        let attr = self.cluster.mkdir(&self.cred(caller), ask).await?;
        Ok(self.made(attr))
    }

    /// Makes a regular file without opening it, a pipe, a socket or a device.
    pub(crate) async fn mknod(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        mode: NewMode,
        rdev: u32,
    ) -> Result<Attr> {
        let kind = kind_of_mode(mode.bits)
            .ok_or_else(|| ErrorCode::Invalid.because(format!("mode {:o}", mode.bits)))?;
        let ask = Mknod {
            at: Some(child(parent, name)?),
            kind: kind.into(),
            mode: mode.bits & 0o7777,
            uid: caller.uid,
            gid: caller.gid,
            rdev,
            umask: mode.umask,
        };
        let attr = self.cluster.mknod(&self.cred(caller), ask).await?;
        Ok(self.made(attr))
    }

    /// Makes a symbolic link.
    pub(crate) async fn symlink(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Attr> {
        let ask = Symlink {
            at: Some(child(parent, name)?),
            target: Bytes::copy_from_slice(target.as_bytes()),
            uid: caller.uid,
            gid: caller.gid,
        };
        let attr = self.cluster.symlink(&self.cred(caller), ask).await?;
        Ok(self.made(attr))
    }

    /// Gives an inode another name.
    pub(crate) async fn link(&self, caller: Caller, inode: u64, parent: u64, name: &OsStr) -> Result<Attr> {
        let ask = Link { from: Some(node(inode)), at: Some(child(parent, name)?) };
        let attr = self.cluster.link(&self.cred(caller), ask).await?;
        self.advance();
        let epoch = self.epoch();
        Ok(self.present(attr, epoch))
    }

    /// Moves a name, over another one, only to a free one, or in exchange.
    pub(crate) async fn rename(
        &self,
        caller: Caller,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        flags: RenameFlags,
    ) -> Result<()> {
        let ask = Rename {
            from: Some(child(from.0, from.1)?),
            to: Some(child(to.0, to.1)?),
            mode: rename_mode(flags)?.into(),
        };
        let renamed = self.cluster.rename(&self.cred(caller), ask).await;
        self.advance();
        renamed
    }

    /// Removes a name of anything but a directory.
    pub(crate) async fn unlink(&self, caller: Caller, parent: u64, name: &OsStr) -> Result<()> {
        let removed = self.cluster.unlink(&self.cred(caller), child(parent, name)?).await;
        self.advance();
        removed
    }

    /// Removes an empty directory.
    pub(crate) async fn rmdir(&self, caller: Caller, parent: u64, name: &OsStr) -> Result<()> {
        let removed = self.cluster.rmdir(&self.cred(caller), child(parent, name)?).await;
        self.advance();
        removed
    }

    fn made(&self, attr: Attr) -> Attr {
        self.versions.told(&attr);
        attr
    }
}

fn rename_mode(flags: RenameFlags) -> Result<RenameMode> {
    if flags.is_empty() {
        Ok(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(RenameMode::Exchange)
    } else {
        Err(ErrorCode::Invalid.because(format!("rename flags {:#x}", flags.bits())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renames_are_of_three_kinds() {
        assert_eq!(rename_mode(RenameFlags::empty()), Ok(RenameMode::Replace));
        assert_eq!(rename_mode(RenameFlags::RENAME_NOREPLACE), Ok(RenameMode::NoReplace));
        assert_eq!(rename_mode(RenameFlags::RENAME_EXCHANGE), Ok(RenameMode::Exchange));
        for flags in [RenameFlags::RENAME_WHITEOUT, RenameFlags::all()] {
            assert_eq!(rename_mode(flags).unwrap_err().code, ErrorCode::Invalid);
        }
    }
}
