//! Appends whose offset the namenode assigns, and small files that appear whole.

use std::sync::Arc;

use bytes::Bytes;
use cairn_proto::limits::MAX_PAYLOAD;
use cairn_proto::{ErrorCode, Result, fs};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Inode;
use super::commit::owned;
use crate::engine::Engine;
use crate::write::{Append, Place};

/// Most bytes of one append.
const MAX_APPEND: usize = 64 << 20;
/// Most bytes of a file stored whole in one mutation.
const MAX_SMALL: usize = 8 << 20;

impl Inode {
    pub(crate) async fn append(self: &Arc<Inode>, cred: &fs::Cred, data: Bytes) -> Result<u64> {
        if data.len() > MAX_APPEND {
            return Err(ErrorCode::TooLarge.because(format!("an append of {} bytes", data.len())));
        }
        if let Some(offset) = self.append_here(cred, &data).await? {
            return Ok(offset);
        }
        let inode = Arc::clone(self);
        let cred = cred.clone();
        owned(async move {
            inode.commit_all().await?;
            if data.is_empty() {
                return Ok(inode.state().size());
            }
            let replication = inode.state().attr.replication;
            let places = inode.engine.place(replication, data).await?;
            inode.state().note_unsynced(&places);
            let file = fs::FileCommit {
                target: Some(fs::file_commit::Target::Inode(inode.number())),
                extents: laid_out(&places),
                mode: fs::CommitMode::Append as i32,
                mtime_ns: Some(inode.engine.now_ns()),
                ..Default::default()
            };
            let _in_order = inode.committing.lock().await;
            let (attr, offset) = inode.engine.commit_file(&cred, file, inode.engine.now_ns()).await?;
            inode.learn_content(&attr, true);
            Ok(offset)
        })
        .await
    }
}

impl Inode {
    /// Where nobody else can append, the file ends where this client says.
    async fn append_here(self: &Arc<Inode>, cred: &fs::Cred, data: &Bytes) -> Result<Option<u64>> {
        let length = data.len() as u64;
        if data.is_empty() || data.len() > MAX_PAYLOAD || !self.can_wait() {
            return Ok(None);
        }
        self.engine.admit(length).await?;
        let mut taken = None;
        // Before anybody else is let in, it is there and will be committed.
        self.engine.delegations.if_staying(self.number(), || taken = Some(self.take_in_at_end(cred, data)));
        match taken {
            Some((offset, due)) => {
                if due {
                    self.commit_soon();
                }
                Ok(Some(offset))
            }
            None => {
                self.engine.release(length);
                Ok(None)
            }
        }
    }
}

impl Engine {
    /// Stores a whole file in one mutation.
    pub(crate) async fn put_small(
        self: &Arc<Engine>,
        cred: &fs::Cred,
        ask: fs::CreateFile,
        content: Bytes,
        mtime_ns: Option<i64>,
        sync: bool,
    ) -> Result<fs::Attr> {
        if content.len() > MAX_SMALL {
            let detail = format!("{} bytes in one mutation; at most {MAX_SMALL}", content.len());
            return Err(ErrorCode::TooLarge.because(detail));
        }
        let mut places = self.place(ask.replication, content.clone()).await?;
        let mut unnamed = std::collections::BTreeMap::new();
        if sync {
            unnamed = self.make_durable(ends(&places)).await?;
            if !unnamed.is_empty() {
                // Its chain has ended, perhaps because a disk failed to sync just this: rather elsewhere than lost.
                places = self.place(ask.replication, content).await?;
                unnamed = self.make_durable(ends(&places)).await?;
            }
        }
        let file = fs::FileCommit {
            target: Some(fs::file_commit::Target::Create(ask)),
            extents: laid_out(&places),
            mode: fs::CommitMode::Set as i32,
            mtime_ns,
            ..Default::default()
        };
        let (attr, _) = self.commit_file(cred, file, self.now_ns()).await?;
        // What no file named until now can be waited for now.
        self.make_durable(unnamed.into_iter().collect()).await?;
        Ok(attr)
    }

    /// Puts bytes into a shared lane and waits until all replicas hold them.
    async fn place(&self, replication: u32, mut data: Bytes) -> Result<Vec<Place>> {
        let lane = self.lanes.shared(replication);
        let deadline = Instant::now() + self.config.operation_timeout;
        let mut waiting = Vec::new();
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(MAX_PAYLOAD));
            let length = piece.len() as u64;
            self.admit(length).await?;
            let (done, places) = oneshot::channel();
            let budget = self.budget();
            lane.append(Append::new(piece, deadline, move |placed| {
                budget.release(length);
                let _ = done.send(placed);
            }));
            waiting.push(places);
        }
        let mut all: Vec<Place> = Vec::new();
        for places in waiting {
            // The lane gives an append up after its deadline; a paused one may take longer to get there.
            match tokio::time::timeout(self.config.operation_timeout * 2, places).await {
                Ok(Ok(places)) => all.extend(places?),
                Ok(Err(_)) => return Err(ErrorCode::Unavailable.because("the lane was closed")),
                Err(_) => return Err(ErrorCode::Timeout.because("appending to a chunk")),
            }
        }
        Ok(all)
    }
}

/// Up to where each place reaches in its chunk.
fn ends(places: &[Place]) -> Vec<(u64, u64)> {
    places.iter().map(|place| (place.chunk, place.offset + place.length)).collect()
}

/// The places as consecutive extents from offset 0, those that touch merged.
fn laid_out(places: &[Place]) -> Vec<fs::Extent> {
    let mut extents: Vec<fs::Extent> = Vec::new();
    let mut at = 0;
    for place in places {
        match extents.last_mut() {
            Some(last) if last.chunk == place.chunk && last.chunk_offset + last.length == place.offset => {
                last.length += place.length;
            }
            _ => extents.push(fs::Extent {
                file_offset: at,
                chunk: place.chunk,
                chunk_offset: place.offset,
                length: place.length,
            }),
        }
        at += place.length;
    }
    extents
}
