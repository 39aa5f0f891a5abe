//! Reading: what this client wrote itself, over what is committed.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use cairn_proto::limits::{MAX_LAYOUT_PAGE, MAX_PAYLOAD};
use cairn_proto::{Error, ErrorCode, Result, fs};
use futures::{StreamExt, TryStreamExt};
use tokio::time::Instant;

use super::Inode;
use super::overlay::Content;
use crate::backoff::Backoff;
use crate::engine::Engine;
use crate::namespace::root;
use crate::read::{Span, WINDOW};

/// Pieces of one read fetched at the same time.
const PARALLEL: usize = 8;
/// Unneeded bytes between two pieces of a chunk that cost less than a read of its own. Less than a block, so that no
/// block is read on account of unneeded bytes alone: it may be damaged.
const GAP: u64 = 16 << 10;
/// Unneeded bytes that one read of a file may fetch altogether.
const MAX_UNNEEDED: u64 = 4 << 20;
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

/// One read of a chunk; it may serve many sources.
#[derive(Clone)]
struct Haul {
    span: Span,
    replicas: Option<Arc<[fs::ReplicaInfo]>>,
    committed: bool,
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
                        let pieces = match state.layout.view(from, known) {
                            Ok(pieces) => pieces,
                            Err(at) => return Plan::Unknown(at),
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
        let start = if self.state().layout.view(start, start + 1).is_ok() { at } else { start };
        let end = (start / WINDOW + 1) * WINDOW;
        let ask = fs::GetLayout {
            at: Some(self.node()),
            follow: false,
            offset: start,
            length: end - start,
            limit: MAX_LAYOUT_PAGE,
        };
        let answer = self.engine.query(cred, fs::query::Op::Layout(ask)).await?;
        let fs::answer::Result::Layout(layout) = answer else {
            return Err(ErrorCode::Malformed.because("the namenode's answer to layout"));
        };
        let Some(attr) = layout.attr else {
            return Err(ErrorCode::Malformed.because("a layout without attributes"));
        };
        let mut state = self.state();
        state.learn_content(&attr);
        state.layout.learn(start, end, layout);
        drop(state);
        self.engine.trim_layouts(self.number());
        Ok(())
    }
}

impl Engine {
    /// Fetches what is not in memory and puts it all together.
    async fn fetch(&self, sources: Vec<Source>) -> Result<Bytes> {
        let (hauls, served) = gather(&sources);
        let fetched: Vec<Bytes> = futures::stream::iter(hauls.clone())
            .map(|haul| self.fetch_one(haul))
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        let mut parts: Vec<Bytes> = sources
            .into_iter()
            .zip(served)
            .map(|(source, haul)| match source {
                Source::Memory(bytes) => bytes,
                Source::Zeros(length) => BytesMut::zeroed(length as usize).freeze(),
                Source::Chunk { span, .. } => {
                    let from = (span.offset - hauls[haul].span.offset) as usize;
                    fetched[haul].slice(from..from + span.length as usize)
                }
            })
            .collect();
        if parts.len() <= 1 {
            return Ok(parts.pop().unwrap_or_default());
        }
        let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
        parts.iter().for_each(|part| whole.extend_from_slice(part));
        Ok(whole.freeze())
    }

    async fn fetch_one(&self, haul: Haul) -> Result<Bytes> {
        let Haul { span, replicas, committed } = haul;
        let bytes = match replicas {
            Some(replicas) => self.reader.read(span, &replicas, committed).await?,
            None => {
                let replicas = match self.lanes.replicas(span.chunk) {
                    Some(replicas) => replicas,
                    None => self.chunk(span.chunk).await?.replicas,
                };
                self.reader.read(span, &replicas, committed).await?
            }
        };
        if bytes.len() as u64 != span.length {
            return Err(ErrorCode::Malformed.because("a datanode gave another length than asked"));
        }
        Ok(bytes)
    }

    /// A chunk as the namenode has it.
    pub(crate) async fn chunk(&self, chunk: u64) -> Result<fs::ChunkInfo> {
        match self.channel.query(&root(), fs::query::Op::Chunk(fs::GetChunk { chunk })).await? {
            fs::answer::Result::Chunk(info) => Ok(info),
            _ => Err(ErrorCode::Malformed.because("the namenode's answer about a chunk")),
        }
    }
}

/// The reads that fetch all `sources`, and for each source which of them has it (any, if it needs none).
///
/// A file written at random lies in many small pieces, but these lie close together in a chunk or two.
fn gather(sources: &[Source]) -> (Vec<Haul>, Vec<usize>) {
    let mut wanted: Vec<(Span, bool, usize)> = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        if let Source::Chunk { span, committed, .. } = source {
            wanted.push((*span, *committed, index));
        }
    }
    wanted.sort_unstable_by_key(|(span, committed, index)| (span.chunk, *committed, span.offset, *index));
    let mut hauls: Vec<Haul> = Vec::new();
    let mut served = vec![0; sources.len()];
    let mut unneeded = 0;
    for (span, committed, index) in wanted {
        let end = span.offset + span.length;
        let gap = |haul: &Haul| span.offset.saturating_sub(haul.span.offset + haul.span.length);
        match hauls.last_mut().filter(|haul| {
            haul.span.chunk == span.chunk
                && haul.committed == committed
                && gap(haul) <= GAP.min(MAX_UNNEEDED - unneeded)
                && end <= haul.span.offset + MAX_PAYLOAD as u64
        }) {
            Some(haul) => {
                unneeded += gap(haul);
                haul.span.length = haul.span.length.max(end - haul.span.offset);
            }
            None => {
                let replicas = match &sources[index] {
                    Source::Chunk { replicas, .. } => replicas.clone(),
                    _ => None,
                };
                hauls.push(Haul { span, replicas, committed });
            }
        }
        served[index] = hauls.len() - 1;
    }
    (hauls, served)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(chunk: u64, offset: u64, length: u64) -> Source {
        Source::Chunk { span: Span { chunk, offset, length }, replicas: None, committed: true }
    }

    fn spans(sources: &[Source]) -> (Vec<(u64, u64, u64)>, Vec<usize>) {
        let (hauls, served) = gather(sources);
        let spans = hauls.iter().map(|haul| (haul.span.chunk, haul.span.offset, haul.span.length)).collect();
        (spans, served)
    }

    #[test]
    fn pieces_that_lie_close_together_are_one_read() {
        let sources =
            [piece(7, 900, 10), Source::Zeros(5), piece(7, 100, 10), piece(7, 100, 4), piece(7, 905, 20)];
        assert_eq!(spans(&sources), (vec![(7, 100, 825)], vec![0, 0, 0, 0, 0]));
    }

    #[test]
    fn chunks_distance_and_size_keep_reads_apart() {
        let full = MAX_PAYLOAD as u64;
        let sources = [piece(7, 0, full), piece(7, full, 10), piece(7, full + 11 + GAP, 1), piece(8, 0, 1)];
        let expected = vec![(7, 0, full), (7, full, 10), (7, full + 11 + GAP, 1), (8, 0, 1)];
        assert_eq!(spans(&sources), (expected, vec![0, 1, 2, 3]));
        let scattered: Vec<Source> = (0..1000).map(|n| piece(7, n * GAP, 1)).collect();
        let fetched: u64 = gather(&scattered).0.iter().map(|haul| haul.span.length).sum();
        assert!((1000..=MAX_UNNEEDED + 1000).contains(&fetched), "{fetched} bytes");
        // What no commit names yet may be missing on a replica without being a fault.
        let mut sources = [piece(7, 0, 10), piece(7, 10, 10)];
        if let Source::Chunk { committed, .. } = &mut sources[1] {
            *committed = false;
        }
        assert_eq!(spans(&sources).0.len(), 2);
    }
}
