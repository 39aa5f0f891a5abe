//! What all operations of one mount share.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use cairn_client::Cluster;
use cairn_proto::fs::{Attr, Cred, NodeRef};
use cairn_proto::snapshot::is_inside;
use cairn_proto::{Result, path};
use fuser::{FileAttr, INodeNo, Notifier, Request};
use tokio::task::JoinSet;

use crate::accesses::{Accesses, counts_now};
use crate::attr::file_attr;
use crate::counted::Counted;
use crate::doubts::Doubts;
use crate::handles::{DirectoryHandle, FileHandle, Handles};
use crate::holds::Holds;
use crate::inodes::Inodes;
use crate::interrupts::Interrupts;
use crate::locks::Locks;
use crate::mount::{Atime, MountOptions};
use crate::versions::Versions;

/// Who asks when the kernel has checked the permissions already.
pub(crate) static ROOT: Cred = Cred { uid: 0, gid: 0, groups: Vec::new() };

/// Who made a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// Its process, 0 if it is out of sight from here.
    pub pid: u32,
}

impl From<&Request> for Caller {
    fn from(request: &Request) -> Caller {
        Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
    }
}

/// One mount's view of a cluster.
pub(crate) struct View {
    pub cluster: Cluster,
    pub options: MountOptions,
    pub inodes: Inodes,
    pub holds: Holds,
    pub files: Handles<FileHandle>,
    pub directories: Handles<DirectoryHandle>,
    pub versions: Versions,
    pub locks: Locks,
    pub interrupts: Interrupts,
    pub accesses: Accesses,
    pub doubts: Doubts,
    pub counted: Arc<Counted>,
    /// The way to tell the kernel something unasked; there once the mount is made.
    pub notifier: OnceLock<Notifier>,
    epoch: AtomicU64,
}

/// The inode itself.
pub(crate) fn node(inode: u64) -> NodeRef {
    NodeRef { inode, path: Bytes::new() }
}

/// A name in a directory.
pub(crate) fn child(parent: u64, name: &OsStr) -> Result<NodeRef> {
    // The kernel passes names longer than any file system's limit.
    path::check_name(name.as_bytes())?;
    Ok(NodeRef { inode: parent, path: Bytes::copy_from_slice(name.as_bytes()) })
}

impl View {
    /// A view that serves nothing yet.
    pub(crate) fn new(cluster: Cluster, options: MountOptions) -> View {
        View {
            cluster,
            options,
            inodes: Inodes::default(),
            holds: Holds::default(),
            files: Handles::default(),
            directories: Handles::default(),
            versions: Versions::default(),
            locks: Locks::default(),
            interrupts: Interrupts::default(),
            accesses: Accesses::default(),
            doubts: Doubts::default(),
            counted: Arc::default(),
            notifier: OnceLock::new(),
            epoch: AtomicU64::new(0),
        }
    }

    /// Who the namenode is to take the caller for.
    pub(crate) fn cred(&self, caller: Caller) -> Cred {
        if self.options.default_permissions {
            return ROOT.clone();
        }
        Cred { uid: caller.uid, gid: caller.gid, groups: Vec::new() }
    }

    /// Whether the kernel is to evaluate access control lists. It then checks permissions in any case.
    pub(crate) fn enforces_lists(&self) -> bool {
        // A list says nothing about attributes that are not the inode's own.
        self.options.default_permissions && self.options.shown.is_nothing()
    }

    /// Counts changes made through this mount that alter attributes of inodes they do not name, as an unlink does.
    /// Attributes asked for before the latest of them are not shown to anybody who asks after it.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Such a change has been made.
    pub(crate) fn advance(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Attributes just heard, asked for at `epoch`, as they look here: with what was written here on top.
    pub(crate) fn present(&self, attr: Attr, epoch: u64) -> Attr {
        let mut attr = match self.inodes.get(attr.inode) {
            Some(open) => {
                open.learn(&attr, epoch);
                open.file.attr()
            }
            None => attr,
        };
        self.accesses.show(&mut attr);
        self.versions.told(&attr);
        attr
    }

    /// Makes the kernel ask for the attributes again.
    pub(crate) fn forget_attributes(&self, inode: u64) {
        if let Some(notifier) = self.notifier.get() {
            // A negative offset leaves the pages alone, so this waits for no lock of the kernel's.
            if let Err(error) = notifier.inval_inode(INodeNo(inode), -1, 0) {
                tracing::debug!(inode, %error, "the kernel could not be told of changed attributes");
            }
        }
    }

    /// Makes the kernel forget all it knows of a file, pages too. Waits until they are free.
    pub(crate) async fn forget_pages(&self, inode: u64) {
        let Some(notifier) = self.notifier.get().cloned() else { return };
        // It waits for pages that are being read, which takes other threads of this mount.
        let forgotten = tokio::task::spawn_blocking(move || notifier.inval_inode(INodeNo(inode), 0, 0)).await;
        if let Ok(Err(error)) = forgotten {
            tracing::debug!(inode, %error, "the kernel could not be told of changed content");
        }
    }

    /// Commits whatever is written and not committed. Errors are logged: nobody is left to hear of them.
    pub(crate) async fn settle(&self) {
        let mut flushes = JoinSet::new();
        for open in self.inodes.all() {
            flushes.spawn(async move { (open.file.inode(), open.file.flush().await) });
        }
        while let Some(flushed) = flushes.join_next().await {
            if let Ok((inode, Err(error))) = flushed {
                tracing::error!(inode, %error, "what was written last could not be committed");
            }
        }
        self.holds.close_idle(&self.cluster, Duration::ZERO).await;
        self.tell_accesses().await;
        if let Err(error) = self.cluster.settle().await {
            tracing::error!(%error, "what was done last could not be made good");
        }
    }

    /// Attributes as the kernel is to see them.
    pub(crate) fn shown(&self, attr: &Attr) -> FileAttr {
        self.options.shown.dress(file_attr(attr))
    }

    /// Notes that an inode is being read.
    pub(crate) fn note_access(&self, attr: &Attr) {
        if !self.options.read_only && !is_inside(attr.inode) {
            self.accesses.note(self.options.atime, attr);
        }
    }

    /// Whether a read is worth noting, of a kind that is rare enough to give up the kernel's pages for.
    pub(crate) fn read_would_count(&self, attr: &Attr) -> bool {
        let mut shown = *attr;
        self.accesses.show(&mut shown);
        !self.options.read_only
            && !is_inside(attr.inode)
            && self.options.atime == Atime::Relative
            && counts_now(Atime::Relative, &shown)
    }

    /// Tells the namenode what was read.
    pub(crate) async fn tell_accesses(&self) {
        self.accesses.tell(&self.cluster, |inode| self.inodes.get(inode).is_some()).await;
    }

    /// Whether nothing is open, waits to be closed or to be told.
    pub(crate) fn is_idle(&self) -> bool {
        self.inodes.all().is_empty()
            && self.holds.is_empty()
            && self.accesses.is_empty()
            && self.cluster.is_settled()
    }
}
