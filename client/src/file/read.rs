//! Reading: what this client wrote itself, over what is committed.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use cairn_proto::limits::{MAX_LAYOUT_PAGE, MAX_PAYLOAD};
use cairn_proto::{Error, ErrorCode, Result, fs};
use futures::{StreamExt, TryStreamExt};

use super::Inode;
use super::overlay::Content;
use crate::backoff::Backoff;
use crate::engine::Engine;
use crate::namespace::root;
use crate::read::{Span, WINDOW};

/// Pieces of one read fetched at the same time.
const PARALLEL: usize = 8;
/// Most bytes of one read.
const MAX_READ: u64 = 64 << 20;

/// Where a stretch of a read comes from.
enum Source {
    Memory(Bytes),
    Zeros(u64),
    /// `committed`: named by a layout, so every replica should have it.
    Chunk {
        span: Span,
        replicas: Option<Arc<[fs::ReplicaInfo]>>,
        committed: bool,
    },
}

/// What is known now of where the bytes of a read are.
enum Plan {
    Complete(Vec<Source>),
    /// The layout of the file is not known at this offset.
    Unknown(u64),
}

impl Inode {
    pub(crate) async fn read_at(&self, cred: &fs::Cred, offset: u64, length: u64) -> Result<Bytes> {
        let deadline = Instant::now() + self.engine.config.operation_timeout;
        let length = length.min(MAX_READ);
        let mut backoff = Backoff::new();
        let mut failed = None;
        loop {
            let error = match self.plan(offset, length) {
                Plan::Complete(sources) => match self.engine.fetch(sources).await {
                    Ok(bytes) => return Ok(bytes),
                    // Chunks move and go; the layout says where they are now.
                    Err(error) => {
                        self.state().layout.clear();
                        failed = Some(error.clone());
                        error
                    }
                },
                Plan::Unknown(at) => {
                    self.fetch_layout(cred, at).await?;
                    if Instant::now() < deadline {
                        continue;
                    }
                    failed.clone().unwrap_or_else(|| ErrorCode::Timeout.because("its layout keeps changing"))
                }
            };
            if Instant::now() >= deadline {
                return Err(Error::new(error.code, format!("inode {}: {}", self.number(), error.detail)));
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    fn plan(&self, offset: u64, length: u64) -> Plan {
        let state = self.state();
        let end = offset.saturating_add(length).min(state.size());
        if offset >= end {
            return Plan::Complete(Vec::new());
        }
        let mut sources = Vec::new();
        for stretch in state.overlay.view(offset, end) {
            match stretch.content {
                Some(Content::Buffered(data) | Content::Flying { data, .. }) => {
                    sources.push(Source::Memory(data))
                }
                Some(Content::Placed { chunk, offset, .. }) => {
                    cut(Span { chunk, offset, length: stretch.length }, |span| {
                        sources.push(Source::Chunk { span, replicas: None, committed: false });
                    });
                }
                None => {
                    let (from, until) = (stretch.offset, stretch.offset + stretch.length);
                    // Past the committed end there is nothing to ask for.
                    let known = until.min(state.attr.size);
                    if from < known {
                        let Some(pieces) = state.layout.view(from, known) else {
                            return Plan::Unknown(from);
                        };
                        for piece in pieces {
                            let Some((chunk, offset, replicas)) = piece.at else {
                                sources.push(Source::Zeros(piece.length));
                                continue;
                            };
                            cut(Span { chunk, offset, length: piece.length }, |span| {
                                let replicas = Some(Arc::clone(&replicas));
                                sources.push(Source::Chunk { span, replicas, committed: true });
                            });
                        }
                    }
                    let beyond = until - known.max(from).min(until);
                    if beyond > 0 {
                        sources.push(Source::Zeros(beyond));
                    }
                }
            }
        }
        Plan::Complete(sources)
    }

    /// Learns the layout around `at`, as far as one page goes.
    async fn fetch_layout(&self, cred: &fs::Cred, at: u64) -> Result<()> {
        let start = at / WINDOW * WINDOW;
        // A window with more extents than a page goes on from where its last page ended.
        let start = if self.state().layout.view(start, start + 1).is_some() { at } else { start };
        let end = (start / WINDOW + 1) * WINDOW;
        let ask = fs::GetLayout {
            at: Some(self.node()),
            follow: false,
            offset: start,
            length: end - start,
            limit: MAX_LAYOUT_PAGE,
        };
        let answer = self.engine.channel.query(cred, fs::query::Op::Layout(ask)).await?;
        let fs::answer::Result::Layout(layout) = answer else {
            return Err(ErrorCode::Malformed.because("the namenode's answer to layout"));
        };
        let Some(attr) = layout.attr else {
            return Err(ErrorCode::Malformed.because("a layout without attributes"));
        };
        let mut state = self.state();
        state.learn(&attr);
        state.layout.learn(start, end, layout);
        drop(state);
        self.engine.trim_layouts(self.number());
        Ok(())
    }
}

impl Engine {
    /// Fetches what is not in memory and puts it all together.
    async fn fetch(&self, sources: Vec<Source>) -> Result<Bytes> {
        let mut parts: Vec<Bytes> = futures::stream::iter(sources)
            .map(|source| self.fetch_one(source))
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        if parts.len() <= 1 {
            return Ok(parts.pop().unwrap_or_default());
        }
        let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
        parts.iter().for_each(|part| whole.extend_from_slice(part));
        Ok(whole.freeze())
    }

    async fn fetch_one(&self, source: Source) -> Result<Bytes> {
        match source {
            Source::Memory(bytes) => Ok(bytes),
            Source::Zeros(length) => Ok(BytesMut::zeroed(length as usize).freeze()),
            Source::Chunk { span, replicas, committed } => match replicas {
                Some(replicas) => self.reader.read(span, &replicas, committed).await,
                None => {
                    let replicas = match self.lanes.replicas(span.chunk) {
                        Some(replicas) => replicas,
                        None => self.chunk(span.chunk).await?.replicas,
                    };
                    self.reader.read(span, &replicas, committed).await
                }
            },
        }
    }

    /// A chunk as the namenode has it.
    pub(crate) async fn chunk(&self, chunk: u64) -> Result<fs::ChunkInfo> {
        match self.channel.query(&root(), fs::query::Op::Chunk(fs::GetChunk { chunk })).await? {
            fs::answer::Result::Chunk(info) => Ok(info),
            _ => Err(ErrorCode::Malformed.because("the namenode's answer about a chunk")),
        }
    }
}

/// Cuts a range into reads of at most a frame's payload.
fn cut(span: Span, mut each: impl FnMut(Span)) {
    let mut done = 0;
    while done < span.length {
        let length = (span.length - done).min(MAX_PAYLOAD as u64);
        each(Span { chunk: span.chunk, offset: span.offset + done, length });
        done += length;
    }
}
