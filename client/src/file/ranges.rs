//! Changing a range of a file without moving a byte: clearing it, sharing it with another file, making room.

use std::sync::Arc;

use cairn_proto::{ErrorCode, Result, fs};

use super::Inode;
use super::commit::owned;
use crate::engine::Engine;

impl Inode {
    /// Makes `[offset, offset + length)` read as zeros, after everything written before. `grow`: the file ends
    /// there or later.
    pub(crate) async fn clear_range(
        self: &Arc<Inode>,
        cred: &fs::Cred,
        offset: u64,
        length: u64,
        grow: bool,
    ) -> Result<fs::Attr> {
        let inode = Arc::clone(self);
        let cred = cred.clone();
        owned(async move {
            inode.commit_all().await?;
            let _in_order = inode.committing.lock().await;
            let mut cleared = 0;
            while cleared < length {
                let ask = fs::ClearRange {
                    inode: inode.number(),
                    offset: offset.saturating_add(cleared),
                    length: length - cleared,
                    size: grow.then(|| offset.saturating_add(length)),
                    mtime_ns: Some(inode.engine.now_ns()),
                };
                let (attr, done) =
                    inode.engine.change_range(&cred, fs::mutation::Op::ClearRange(ask)).await?;
                inode.learn(&attr);
                if done == 0 {
                    return Err(ErrorCode::Malformed.because("a range that is never cleared"));
                }
                cleared += done;
            }
            Ok(inode.attr())
        })
        .await
    }

    /// Lets `to` share what this file has in a range, after everything written to either before. Returns how many
    /// bytes; fewer than asked at the end of this file, or when a later part failed.
    pub(crate) async fn clone_range(
        self: &Arc<Inode>,
        cred: &fs::Cred,
        offset: u64,
        to: &Arc<Inode>,
        to_offset: u64,
        length: u64,
    ) -> Result<u64> {
        let (from, to) = (Arc::clone(self), Arc::clone(to));
        let cred = cred.clone();
        owned(async move {
            from.commit_all().await?;
            to.commit_all().await?;
            let _in_order = to.committing.lock().await;
            let mut cloned = 0;
            while cloned < length {
                let ask = fs::CloneRange {
                    source: from.number(),
                    source_offset: offset.saturating_add(cloned),
                    length: length - cloned,
                    target: Some(fs::clone_range::Target::Inode(to.number())),
                    offset: to_offset.saturating_add(cloned),
                    mtime_ns: Some(to.engine.now_ns()),
                    whole: false,
                };
                match to.engine.change_range(&cred, fs::mutation::Op::CloneRange(ask)).await {
                    Ok((_, 0)) => break,
                    Ok((attr, done)) => {
                        to.state().doubt(to_offset.saturating_add(cloned), done);
                        to.learn(&attr);
                        cloned += done;
                    }
                    Err(error) if cloned == 0 => return Err(error),
                    Err(_) => break,
                }
            }
            Ok(cloned)
        })
        .await
    }

    /// Marks the file as changed and makes it at least `size` bytes long, after everything written before.
    pub(crate) async fn allocate(self: &Arc<Inode>, cred: &fs::Cred, size: Option<u64>) -> Result<fs::Attr> {
        let inode = Arc::clone(self);
        let cred = cred.clone();
        owned(async move {
            inode.commit_all().await?;
            let _in_order = inode.committing.lock().await;
            // A commit only ever makes a file longer, so this cannot cut off what another client appends meanwhile.
            let grow = fs::FileCommit {
                target: Some(fs::file_commit::Target::Inode(inode.number())),
                size,
                mtime_ns: Some(inode.engine.now_ns()),
                ..Default::default()
            };
            let (attr, _) = inode.engine.commit_file(&cred, grow, inode.engine.now_ns()).await?;
            inode.engine.take_in_content(&attr);
            Ok(inode.attr())
        })
        .await
    }
}

impl Engine {
    /// Makes a file that shares all of `source`, in one step. `TooLarge` when that is more than one command does.
    pub(crate) async fn clone_file(
        self: &Arc<Engine>,
        cred: &fs::Cred,
        source: u64,
        create: fs::CreateFile,
        mtime_ns: Option<i64>,
    ) -> Result<fs::Attr> {
        let ask = fs::CloneRange {
            source,
            length: u64::MAX,
            target: Some(fs::clone_range::Target::Create(create)),
            mtime_ns,
            whole: true,
            ..Default::default()
        };
        self.change_range(cred, fs::mutation::Op::CloneRange(ask)).await.map(|(attr, _)| attr)
    }

    async fn change_range(
        self: &Arc<Engine>,
        cred: &fs::Cred,
        op: fs::mutation::Op,
    ) -> Result<(fs::Attr, u64)> {
        match self.mutate(cred, op).await? {
            fs::outcome::Result::Range(fs::RangeDone { attr: Some(attr), length }) => Ok((attr, length)),
            _ => Err(ErrorCode::Malformed.because("the outcome of changing a range")),
        }
    }
}
