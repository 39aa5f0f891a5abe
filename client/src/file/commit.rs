//! Making written bytes visible, and durable.

use std::sync::Arc;

use cairn_host::request::RequestId;
use cairn_proto::limits::MAX_COMMIT_EXTENTS;
use cairn_proto::{Error, ErrorCode, Result, fs};

use super::Inode;
use super::descriptor::Descriptor;
use super::inode::State;
use crate::engine::Engine;

impl Inode {
    /// Commits everything written so far; `durable`: once it is on the disks of all replicas.
    pub(crate) async fn flush(self: &Arc<Inode>, durable: bool, told: &Descriptor) -> Result<fs::Attr> {
        let (inode, told) = (Arc::clone(self), told.clone());
        // In a task of its own: a caller that goes away must not leave a commit half accounted for.
        owned(async move {
            let flushed = match durable {
                true => inode.sync_here(&told).await,
                false => inode.commit_all().await,
            };
            let earlier = {
                let mut state = inode.state();
                state.own_lane = None;
                told.hear(&mut state)
            };
            flushed?;
            match earlier {
                Some(error) => Err(error),
                None => Ok(inode.attr()),
            }
        })
        .await
    }

    pub(crate) async fn close(self: &Arc<Inode>, told: &Descriptor) -> Result<()> {
        let committed = self.leave().await;
        let mut state = self.state();
        state.own_lane = None;
        match told.unheard(&state) {
            Some(error) => Err(error.clone()),
            None => committed,
        }
    }

    pub(crate) async fn leave(self: &Arc<Inode>) -> Result<()> {
        if self.can_wait() { Ok(()) } else { self.commit_all_owned().await }
    }

    /// Of a file that nobody else can see, the commit can wait for others, unless there may be no room for its bytes.
    pub(super) fn can_wait(&self) -> bool {
        self.engine.delegations.defers(self.number()) && self.engine.lanes.full().is_none()
    }

    async fn sync_here(self: &Arc<Inode>, told: &Descriptor) -> Result<()> {
        self.settle_for(true).await?;
        // Neither waits for the other: others may see bytes before they are on disk, as after a close.
        let (unnamed, committed) = futures::join!(self.make_durable(), self.commit_all());
        committed?;
        let unnamed = unnamed?;
        if !unnamed.is_empty() {
            self.make_named_durable(unnamed).await?;
        }
        // Its name, too.
        self.engine.delegations.flush(&told.names).await
    }

    /// As [`Inode::commit_all`], going on when the caller goes away.
    pub(crate) async fn commit_all_owned(self: &Arc<Inode>) -> Result<()> {
        let inode = Arc::clone(self);
        owned(async move { inode.commit_all().await }).await
    }

    /// Sends what is buffered, waits for it, and commits all that is placed.
    pub(crate) async fn commit_all(self: &Arc<Inode>) -> Result<()> {
        if !self.is_dirty() {
            // A commit of what was abandoned since may be under way: what comes after this must not come before it.
            drop(self.committing.lock().await);
            return Ok(());
        }
        self.settle().await?;
        let _in_order = self.committing.lock().await;
        while self.commit_some().await? {}
        Ok(())
    }

    /// One commit; false: nothing was left to commit.
    async fn commit_some(self: &Arc<Inode>) -> Result<bool> {
        let (file, extents, cred, written_ns) = {
            let mut state = self.state();
            let extents = state.overlay.start_commit(MAX_COMMIT_EXTENTS);
            if extents.is_empty() {
                return Ok(false);
            }
            // Where a file of the client's own lies is remembered.
            let kept = if state.own { extents.clone() } else { Vec::new() };
            let file = fs::FileCommit {
                target: Some(fs::file_commit::Target::Inode(self.number())),
                extents,
                mode: fs::CommitMode::Set as i32,
                mtime_ns: state.mtime_ns,
                ..Default::default()
            };
            (file, kept, state.cred.clone(), state.written_ns)
        };
        let outcome = self.engine.commit_file(&cred, file, written_ns).await;
        let mut state = self.state();
        match outcome {
            Ok((attr, _)) => {
                state.overlay.end_commit(true);
                self.recount(&mut state);
                state.learn_content(&attr);
                state.settled();
                let (own, committed) = (state.own, state.attr);
                drop(state);
                if own {
                    self.engine.delegations.note_content(&committed, &extents);
                }
                Ok(true)
            }
            Err(error) => {
                // What can never be committed must not be offered again for ever.
                let hopeless = error.code.is_final();
                state.overlay.end_commit(hopeless);
                self.recount(&mut state);
                if hopeless {
                    state.layout.clear();
                    state.settled();
                    // Whoever wrote hears of it, whoever had it committed.
                    state.fail(error.clone());
                }
                Err(error)
            }
        }
    }

    pub(crate) async fn truncate(self: &Arc<Inode>, cred: &fs::Cred, size: u64) -> Result<fs::Attr> {
        let ask = fs::SetAttr { at: Some(self.node()), size: Some(size), ..Default::default() };
        self.set_attr(cred, ask).await
    }

    /// Changes attributes after everything written before: its commit would set times again.
    pub(crate) async fn set_attr(self: &Arc<Inode>, cred: &fs::Cred, ask: fs::SetAttr) -> Result<fs::Attr> {
        let inode = Arc::clone(self);
        let cred = cred.clone();
        owned(async move {
            inode.commit_all().await?;
            let _in_order = inode.committing.lock().await;
            let outcome = inode.engine.mutate(&cred, fs::mutation::Op::SetAttr(ask)).await?;
            let fs::outcome::Result::Attr(attr) = outcome else {
                return Err(ErrorCode::Malformed.because("the outcome of setattr"));
            };
            let mut known = false;
            inode.engine.delegations.if_own(inode.number(), || known = true);
            if !known {
                // Its last name is gone from the client's own directories.
                inode.set_own(false);
            }
            inode.learn(&attr);
            Ok(inode.attr())
        })
        .await
    }
}

impl State {
    /// After a commit: when nothing is left, nothing ages.
    pub(super) fn settled(&mut self) {
        if self.overlay.is_empty() {
            self.dirty_since = None;
            self.mtime_ns = None;
        } else if self.dirty_since.is_some() {
            self.dirty_since = Some(tokio::time::Instant::now());
        }
    }
}

impl Engine {
    /// One file's commit as a mutation of its own. Returns the attributes and where an append landed.
    /// `written_ns`: when it was written.
    pub(crate) async fn commit_file(
        self: &Arc<Engine>,
        cred: &fs::Cred,
        file: fs::FileCommit,
        written_ns: i64,
    ) -> Result<(fs::Attr, u64)> {
        let as_deed = self.delegations.commits(&file);
        let op = fs::mutation::Op::Commit(fs::CommitExtents { files: vec![file] });
        let odd = || ErrorCode::Malformed.because("the outcome of a commit");
        let outcome = match as_deed {
            true => self.delegations.perform(written_ns, op).await?,
            false => self.mutate(cred, op).await?,
        };
        let fs::outcome::Result::Commit(mut outcome) = outcome else {
            return Err(odd());
        };
        let first = outcome.files.pop().ok_or_else(odd)?;
        match first.result {
            Some(fs::file_outcome::Result::Attr(attr)) => Ok((attr, first.offset)),
            Some(fs::file_outcome::Result::Error(error)) => Err(Error::from(error)),
            None => Err(odd()),
        }
    }
}

/// Runs to its end whatever becomes of the caller.
pub(super) async fn owned<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    match tokio::spawn(RequestId::current().carry(work)).await {
        Ok(result) => result,
        Err(error) => Err(ErrorCode::Io.because(format!("an operation was interrupted: {error}"))),
    }
}
