//! The typed operations on the namespace: each one query or one mutation.

use bytes::Bytes;
use cairn_proto::limits::MAX_LAYOUT_PAGE;
use cairn_proto::{ErrorCode, Result, fs};
use fs::answer::Result as Answered;
use fs::mutation::Op as Mutate;
use fs::outcome::Result as Outcome;
use fs::query::Op as Ask;

use crate::Cluster;

/// The answer was of a kind the question does not have: a newer or broken namenode.
fn odd<T>(what: &str) -> Result<T> {
    Err(ErrorCode::Malformed.because(format!("the namenode's answer to {what}")))
}

/// Takes the one fitting variant out of an answer.
macro_rules! expect {
    ($result:expr, $variant:path, $what:literal) => {
        match $result {
            $variant(value) => Ok(value),
            _ => odd($what),
        }
    };
}

impl Cluster {
    /// Attributes of a file; `follow` resolves a final symlink.
    pub async fn stat(&self, cred: &fs::Cred, at: fs::NodeRef, follow: bool) -> Result<fs::Attr> {
        expect!(self.query(cred, Ask::Stat(fs::Stat { at: Some(at), follow })).await?, Answered::Attr, "stat")
    }

    /// Attributes of a file, if `cred` may do all of `mask` to it (4 read, 2 write, 1 execute or search).
    pub async fn access(
        &self,
        cred: &fs::Cred,
        at: fs::NodeRef,
        follow: bool,
        mask: u32,
    ) -> Result<fs::Attr> {
        let ask = fs::Access { at: Some(at), follow, mask };
        expect!(self.query(cred, Ask::Access(ask)).await?, Answered::Attr, "access")
    }

    /// One page of a directory: entries with names greater than `after`.
    pub async fn list(
        &self,
        cred: &fs::Cred,
        at: fs::NodeRef,
        after: Bytes,
        limit: u32,
    ) -> Result<fs::Listing> {
        let ask = fs::ListDirectory { at: Some(at), after, limit };
        expect!(self.query(cred, Ask::List(ask)).await?, Answered::Listing, "list")
    }

    /// Where a symlink points.
    pub async fn read_link(&self, cred: &fs::Cred, at: fs::NodeRef) -> Result<Bytes> {
        let ask = fs::ReadLink { at: Some(at) };
        expect!(self.query(cred, Ask::ReadLink(ask)).await?, Answered::Bytes, "readlink")
    }

    /// Makes a file, or opens what is there, as `ask` says.
    pub async fn create(&self, cred: &fs::Cred, ask: fs::CreateFile) -> Result<fs::Created> {
        let truncates = ask.truncate;
        let created = expect!(self.mutate(cred, Mutate::Create(ask)).await?, Outcome::Created, "create")?;
        if let Some(attr) = &created.attr
            && let Some(inode) = self.engine().find(attr.inode)
        {
            if truncates {
                inode.discard();
            }
            inode.learn(attr);
        }
        Ok(created)
    }

    /// Makes a directory.
    pub async fn mkdir(&self, cred: &fs::Cred, ask: fs::Mkdir) -> Result<fs::Attr> {
        attr_of(self.mutate(cred, Mutate::Mkdir(ask)).await?, "mkdir")
    }

    /// Makes a symlink.
    pub async fn symlink(&self, cred: &fs::Cred, ask: fs::Symlink) -> Result<fs::Attr> {
        attr_of(self.mutate(cred, Mutate::Symlink(ask)).await?, "symlink")
    }

    /// Makes a fifo, a socket or a device.
    pub async fn mknod(&self, cred: &fs::Cred, ask: fs::Mknod) -> Result<fs::Attr> {
        attr_of(self.mutate(cred, Mutate::Mknod(ask)).await?, "mknod")
    }

    /// Makes another name for a file.
    pub async fn link(&self, cred: &fs::Cred, ask: fs::Link) -> Result<fs::Attr> {
        attr_of(self.mutate(cred, Mutate::Link(ask)).await?, "link")
    }

    /// Moves a name.
    pub async fn rename(&self, cred: &fs::Cred, ask: fs::Rename) -> Result<()> {
        self.mutate(cred, Mutate::Rename(ask)).await.map(drop)
    }

    /// Removes a name that is not a directory.
    pub async fn unlink(&self, cred: &fs::Cred, at: fs::NodeRef) -> Result<()> {
        self.mutate(cred, Mutate::Unlink(fs::Unlink { at: Some(at) })).await.map(drop)
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, cred: &fs::Cred, at: fs::NodeRef) -> Result<()> {
        self.mutate(cred, Mutate::Rmdir(fs::Rmdir { at: Some(at) })).await.map(drop)
    }

    /// Changes attributes, of a file that is open here after everything written to it before. Its size is
    /// better changed through [`crate::File::truncate`].
    pub async fn set_attr(&self, cred: &fs::Cred, ask: fs::SetAttr) -> Result<fs::Attr> {
        let named = ask.at.as_ref().filter(|at| at.path.is_empty()).map(|at| at.inode);
        let here = ask.size.is_none() && named.is_some_and(|inode| self.engine().delegations.defers(inode));
        if let Some(inode) = named.filter(|_| !here).and_then(|inode| self.engine().find(inode)) {
            return inode.set_attr(cred, ask).await;
        }
        attr_of(self.mutate(cred, Mutate::SetAttr(ask)).await?, "setattr")
    }

    /// The value of an extended attribute.
    pub async fn get_xattr(&self, cred: &fs::Cred, at: fs::NodeRef, name: Bytes) -> Result<Bytes> {
        let ask = fs::GetXattr { at: Some(at), name };
        expect!(self.query(cred, Ask::GetXattr(ask)).await?, Answered::Bytes, "getxattr")
    }

    /// The names of all extended attributes.
    pub async fn list_xattr(&self, cred: &fs::Cred, at: fs::NodeRef) -> Result<Vec<Bytes>> {
        let ask = fs::ListXattr { at: Some(at) };
        let names = expect!(self.query(cred, Ask::ListXattr(ask)).await?, Answered::Names, "listxattr")?;
        Ok(names.names)
    }

    /// Sets an extended attribute.
    pub async fn set_xattr(&self, cred: &fs::Cred, ask: fs::SetXattr) -> Result<()> {
        self.mutate(cred, Mutate::SetXattr(ask)).await.map(drop)
    }

    /// Removes an extended attribute.
    pub async fn remove_xattr(&self, cred: &fs::Cred, ask: fs::RemoveXattr) -> Result<()> {
        self.mutate(cred, Mutate::RemoveXattr(ask)).await.map(drop)
    }

    /// Changes how many replicas the chunks of a file want.
    pub async fn set_replication(
        &self,
        cred: &fs::Cred,
        at: fs::NodeRef,
        replication: u32,
    ) -> Result<fs::Attr> {
        let ask = fs::SetReplication { at: Some(at), replication };
        attr_of(self.mutate(cred, Mutate::SetReplication(ask)).await?, "set replication")
    }

    /// Where the bytes `[offset, offset + length)` of a file lie, all pages joined.
    pub async fn layout(
        &self,
        cred: &fs::Cred,
        at: fs::NodeRef,
        follow: bool,
        offset: u64,
        length: u64,
    ) -> Result<fs::Layout> {
        let end = offset.saturating_add(length);
        let page = async |from: u64| {
            let ask = fs::GetLayout {
                at: Some(at.clone()),
                follow,
                offset: from,
                length: end - from,
                limit: MAX_LAYOUT_PAGE,
            };
            expect!(self.query(cred, Ask::Layout(ask)).await?, Answered::Layout, "layout")
        };
        let mut layout = page(offset).await?;
        let mut restarts = 0;
        while !layout.end {
            let Some(next) = layout.extents.last().map(|e| e.file_offset.saturating_add(e.length)) else {
                break;
            };
            if next >= end {
                layout.end = true;
                break;
            }
            let more = page(next).await?;
            if version(&more) != version(&layout) && restarts < 5 {
                // Pages of two versions do not make one file.
                restarts += 1;
                layout = page(offset).await?;
                continue;
            }
            if more.extents.is_empty() && !more.end {
                return odd("layout");
            }
            join(&mut layout, more);
        }
        Ok(layout)
    }

    /// Capacity and totals.
    pub async fn fs_stats(&self) -> Result<fs::FsStats> {
        self.fs_stats_at(0).await
    }

    /// Capacity and totals, and the quotas that an inode lies under.
    pub async fn fs_stats_at(&self, inode: u64) -> Result<fs::FsStats> {
        let ask = Ask::StatFs(fs::StatFs { inode });
        expect!(self.query(&root(), ask).await?, Answered::Fs, "statfs")
    }

    /// What lies below a directory, and under which quotas.
    pub async fn usage(&self, cred: &fs::Cred, at: fs::NodeRef) -> Result<fs::Usage> {
        let ask = Ask::Usage(fs::GetUsage { at: Some(at) });
        expect!(self.query(cred, ask).await?, Answered::Usage, "usage")
    }

    /// Limits what may lie below a directory. Returns what does.
    pub async fn set_quota(&self, cred: &fs::Cred, ask: fs::SetQuota) -> Result<fs::TreeUsage> {
        expect!(self.mutate(cred, Mutate::SetQuota(ask)).await?, Outcome::Usage, "set quota")
    }

    /// Moves a name, with all below it, into the trash. `NotSupported`: the trash is off.
    pub async fn discard(&self, cred: &fs::Cred, at: fs::NodeRef) -> Result<fs::TrashItem> {
        let ask = fs::Discard { at: Some(at) };
        expect!(self.mutate(cred, Mutate::Discard(ask)).await?, Outcome::Trash, "discard")
    }

    /// Moves an item of the trash back. Returns it with the path that it has now.
    pub async fn restore(&self, cred: &fs::Cred, ask: fs::Restore) -> Result<fs::TrashItem> {
        expect!(self.mutate(cred, Mutate::Restore(ask)).await?, Outcome::Trash, "restore")
    }

    /// Removes an item of the trash for good, in as many steps as it takes.
    pub async fn purge_trash(&self, cred: &fs::Cred, item: u64) -> Result<()> {
        loop {
            let ask = fs::PurgeTrash { item };
            let done = self.mutate(cred, Mutate::PurgeTrash(ask)).await?;
            if expect!(done, Outcome::TrashPurged, "purge trash")?.end {
                return Ok(());
            }
        }
    }

    /// Sets how long the trash keeps things; 0: it is off.
    pub async fn set_trash(&self, cred: &fs::Cred, keep_ns: i64) -> Result<()> {
        self.mutate(cred, Mutate::SetTrash(fs::SetTrash { keep_ns })).await.map(drop)
    }

    /// What is in the trash, oldest first, and how long it is kept: one's own, or everybody's.
    pub async fn trash(&self, cred: &fs::Cred, all: bool) -> Result<fs::TrashList> {
        let mut list = fs::TrashList::default();
        loop {
            let ask = Ask::ListTrash(fs::ListTrash { all, after: list.next });
            let page = expect!(self.query(cred, ask).await?, Answered::Trash, "list trash")?;
            list.items.extend(page.items);
            (list.next, list.keep_ns) = (page.next, page.keep_ns);
            if list.next == 0 {
                return Ok(list);
            }
        }
    }

    /// Keeps a directory as it is now; without a name, under one made of the time.
    pub async fn create_snapshot(
        &self,
        cred: &fs::Cred,
        at: fs::NodeRef,
        name: Bytes,
    ) -> Result<fs::SnapshotInfo> {
        let ask = fs::CreateSnapshot { at: Some(at), name };
        expect!(self.mutate(cred, Mutate::CreateSnapshot(ask)).await?, Outcome::Snapshot, "create snapshot")
    }

    /// Gives up a snapshot. The space that only it kept comes back in the time after.
    pub async fn remove_snapshot(
        &self,
        cred: &fs::Cred,
        at: fs::NodeRef,
        name: Bytes,
    ) -> Result<fs::SnapshotInfo> {
        let ask = fs::RemoveSnapshot { at: Some(at), name };
        expect!(self.mutate(cred, Mutate::RemoveSnapshot(ask)).await?, Outcome::Snapshot, "remove snapshot")
    }

    /// The snapshots of a directory, or all, oldest first.
    pub async fn snapshots(&self, cred: &fs::Cred, at: Option<fs::NodeRef>) -> Result<Vec<fs::SnapshotInfo>> {
        let mut found: Vec<fs::SnapshotInfo> = Vec::new();
        let mut before = 0;
        loop {
            let after_name = found.last().map_or(Bytes::new(), |last| last.name.clone());
            let ask = Ask::ListSnapshots(fs::ListSnapshots { at: at.clone(), after_name, before });
            let page = expect!(self.query(cred, ask).await?, Answered::Snapshots, "list snapshots")?;
            before = page.next;
            found.extend(page.snapshots);
            if page.end {
                found.sort_by_key(|snapshot| snapshot.seq);
                return Ok(found);
            }
        }
    }

    /// All directories that have a quota.
    pub async fn quotas(&self, cred: &fs::Cred) -> Result<Vec<fs::TreeUsage>> {
        let mut all = Vec::new();
        let mut after = 0;
        loop {
            let ask = Ask::ListQuotas(fs::ListQuotas { after, limit: 0 });
            let page = expect!(self.query(cred, ask).await?, Answered::Quotas, "list quotas")?;
            let last = page.trees.last().map(|tree| tree.inode);
            all.extend(page.trees);
            match last {
                Some(last) if !page.end => after = last,
                _ => return Ok(all),
            }
        }
    }

    /// Everything the leader knows about the cluster's health.
    pub async fn status(&self) -> Result<fs::ClusterStatus> {
        let ask = Ask::Status(fs::GetStatus {});
        expect!(self.query(&root(), ask).await?, Answered::Status, "status")
    }

    /// One chunk and its replicas.
    pub async fn chunk(&self, chunk: u64) -> Result<fs::ChunkInfo> {
        self.engine().chunk(chunk).await
    }

    /// Keeps a file alive for this session although its last name may go.
    pub async fn open_inode(&self, cred: &fs::Cred, inode: u64) -> Result<()> {
        self.mutate(cred, Mutate::Open(fs::OpenInode { inode })).await.map(drop)
    }

    /// Ends what [`Cluster::open_inode`] began.
    pub async fn close_inodes(&self, inodes: Vec<u64>) -> Result<()> {
        self.mutate(&root(), Mutate::Close(fs::CloseInodes { inodes })).await.map(drop)
    }
}

/// The credentials of the client's own business, which concerns no user.
pub(crate) fn root() -> fs::Cred {
    fs::Cred { uid: 0, gid: 0, groups: Vec::new() }
}

fn attr_of(outcome: Outcome, what: &str) -> Result<fs::Attr> {
    match outcome {
        Outcome::Attr(attr) => Ok(attr),
        Outcome::Created(fs::Created { attr: Some(attr), .. }) => Ok(attr),
        _ => odd(what),
    }
}

fn version(layout: &fs::Layout) -> u64 {
    layout.attr.as_ref().map_or(0, |attr| attr.version)
}

fn join(layout: &mut fs::Layout, more: fs::Layout) {
    layout.extents.extend(more.extents);
    for chunk in more.chunks {
        if !layout.chunks.iter().any(|known| known.chunk == chunk.chunk) {
            layout.chunks.push(chunk);
        }
    }
    layout.end = more.end;
}
