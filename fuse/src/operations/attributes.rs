//! Attributes of one inode: asking for them and changing them.

use std::time::Duration;

use cairn_proto::fs::{Attr, Cred, FileKind, SetAttr};
use cairn_proto::limits::MAX_FILE_SIZE;
use cairn_proto::snapshot::is_inside;
use cairn_proto::{ErrorCode, Result};
use fuser::{AccessFlags, TimeOrNow};

use crate::attr::{nanoseconds, without_privileges};
use crate::inodes::OpenInode;
use crate::view::{Caller, ROOT, View, node};

/// What a `setattr` is to change.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<TimeOrNow>,
    pub mtime: Option<TimeOrNow>,
    /// Through a descriptor that may write.
    pub by_handle: bool,
}

impl Change {
    fn is_nothing(&self) -> bool {
        self.mode.is_none()
            && self.uid.is_none()
            && self.gid.is_none()
            && self.size.is_none()
            && self.atime.is_none()
            && self.mtime.is_none()
    }

    fn request(&self, inode: u64) -> SetAttr {
        let exact = |time: Option<TimeOrNow>| match time {
            Some(TimeOrNow::SpecificTime(time)) => Some(nanoseconds(time)),
            _ => None,
        };
        SetAttr {
            at: Some(node(inode)),
            follow: false,
            mode: self.mode.map(|mode| mode & 0o7777),
            uid: self.uid,
            gid: self.gid,
            size: self.size,
            atime_ns: exact(self.atime),
            mtime_ns: exact(self.mtime),
            atime_now: matches!(self.atime, Some(TimeOrNow::Now)),
            mtime_now: matches!(self.mtime, Some(TimeOrNow::Now)),
        }
    }
}

impl View {
    /// The attributes, and how long the kernel may keep them.
    pub(crate) async fn getattr(&self, inode: u64) -> Result<(Attr, Duration)> {
        let epoch = self.epoch();
        let ttl = self.options.attr_ttl;
        if let Some(open) = self.inodes.get(inode)
            && let Some(left) = open.fresh_for(ttl, epoch)
        {
            let mut attr = open.file.attr();
            self.accesses.show(&mut attr);
            self.versions.told(&attr);
            return Ok((attr, left));
        }
        let attr = self.cluster.stat(&ROOT, node(inode), false).await?;
        self.current(&attr)?;
        Ok((self.present(attr, epoch), ttl))
    }

    /// Has an open file know its attributes as they are now. Unlike with `getattr`, the kernel does not hear of them, so it
    /// still counts as knowing what it was told before.
    pub(crate) async fn refresh(&self, open: &OpenInode) -> Result<()> {
        let epoch = self.epoch();
        let attr = self.cluster.stat(&ROOT, node(open.file.inode()), false).await?;
        open.learn(&attr, epoch);
        Ok(())
    }

    /// Refuses a file that has no name and that nobody has open here: it is only still there because its last close
    /// is not announced yet, and a name that leads to it was given to something else. The kernel then looks again.
    pub(crate) fn current(&self, attr: &Attr) -> Result<()> {
        if attr.nlink == 0 && attr.kind() == FileKind::File && self.inodes.get(attr.inode).is_none() {
            return Err(ErrorCode::Stale.because(format!("inode {}", attr.inode)));
        }
        Ok(())
    }

    /// Changes attributes and returns them all.
    pub(crate) async fn setattr(&self, caller: Caller, inode: u64, mut change: Change) -> Result<Attr> {
        if change.is_nothing() {
            return Ok(self.getattr(inode).await?.0);
        }
        if is_inside(inode) {
            return Err(ErrorCode::ReadOnly.because("a snapshot"));
        }
        if change.size.is_some_and(|size| size > MAX_FILE_SIZE) {
            return Err(ErrorCode::FileTooBig.into());
        }
        let epoch = self.epoch();
        let cred = self.cred(caller);
        let resized = change.size.is_some();
        if resized && matches!(change.mtime, Some(TimeOrNow::Now)) {
            // A change of size says so already.
            change.mtime = None;
        }
        let open = self.inodes.get(inode);
        if resized && open.is_some() && !change.by_handle {
            // Below, it is done with the rights of the mount.
            self.require(caller, inode, AccessFlags::W_OK).await?;
        }
        if let Some(open) = &open {
            if let Some(size) = change.size.take() {
                // After what was written here before, which the namenode does not know of yet.
                open.file.truncate(size).await?;
            }
            if (change.atime.is_some() || change.mtime.is_some())
                && open.file.dirty_bytes() > 0
                && !self.cluster.is_own(inode)
            {
                // A later commit of these bytes would set its own time.
                open.file.commit().await?;
            }
        }
        // From here to the end nothing may be told of earlier reads: it would overtake the time that is set.
        let _quiet = match change.atime {
            Some(_) => Some(self.accesses.forget(inode).await),
            None => None,
        };
        let mut heard = match change.is_nothing() {
            true => None,
            false => Some(self.cluster.set_attr(&cred, change.request(inode)).await?),
        };
        let mode = heard.as_ref().map(|attr| attr.mode).or_else(|| Some(open.as_ref()?.file.attr().mode));
        if resized
            && caller.uid != 0
            && change.mode.is_none()
            && let Some(mode) = mode.and_then(without_privileges)
        {
            heard = Some(self.set_mode(&ROOT, inode, mode).await?);
        }
        match heard {
            Some(attr) => Ok(self.present(attr, epoch)),
            // Only the size changed, and the open file knows what it is.
            None => Ok(self.getattr(inode).await?.0),
        }
    }

    async fn set_mode(&self, cred: &Cred, inode: u64, mode: u32) -> Result<Attr> {
        let ask = SetAttr { at: Some(node(inode)), mode: Some(mode), ..SetAttr::default() };
        self.cluster.set_attr(cred, ask).await
    }

    /// Takes the set-id bits from a file whose content is being changed by somebody who may not leave them. Returns whether
    /// it had any.
    pub(crate) async fn strip_privileges(&self, open: &OpenInode) -> Result<bool> {
        if open.age() >= self.options.attr_ttl {
            // It may have been given some on another mount since it was opened here.
            self.refresh(open).await?;
        }
        let Some(mode) = without_privileges(open.file.attr().mode) else { return Ok(false) };
        let epoch = self.epoch();
        // Not with the caller's rights: a writer need not be the owner.
        let attr = self.set_mode(&ROOT, open.file.inode(), mode).await?;
        open.learn(&attr, epoch);
        Ok(true)
    }

    /// Refuses what the caller may not do, where the kernel has not done so; it only asks for `access` then. The namenode
    /// knows the access control lists.
    pub(crate) async fn require(&self, caller: Caller, inode: u64, mask: AccessFlags) -> Result<()> {
        if mask.contains(AccessFlags::W_OK) && is_inside(inode) {
            return Err(ErrorCode::ReadOnly.because("a snapshot"));
        }
        if self.options.default_permissions {
            return Ok(());
        }
        let wanted = (mask.bits() & 0o7) as u32;
        self.cluster.access(&self.cred(caller), node(inode), false, wanted).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_change_becomes_one_request() {
        let change = Change {
            mode: Some(0o100644),
            size: Some(7),
            atime: Some(TimeOrNow::Now),
            mtime: Some(TimeOrNow::SpecificTime(UNIX_EPOCH + Duration::from_nanos(5))),
            ..Change::default()
        };
        let ask = change.request(3);
        assert_eq!((ask.mode, ask.size, ask.uid), (Some(0o644), Some(7), None));
        assert!(ask.atime_now && !ask.mtime_now);
        assert_eq!((ask.atime_ns, ask.mtime_ns), (None, Some(5)));
        assert!(!change.is_nothing() && Change::default().is_nothing());
    }
}
