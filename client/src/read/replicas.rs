//! Reading a range of a chunk from whichever replica has it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use cairn_proto::control::BadReplica;
use cairn_proto::limits::BLOCK_SIZE;
use cairn_proto::{Error, ErrorCode, Result, fs};
use futures::FutureExt;
use futures::future::BoxFuture;
use rand::Rng;
use tokio::sync::Semaphore;

use super::Pool;
use crate::channel::Channel;
use crate::metrics::Counters;

/// Reads under way at once.
const MAX_READS: usize = 64;
/// Bad replicas already reported; forgotten all at once when there are more.
const MAX_REPORTED: usize = 1024;

/// A range of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) chunk: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// See the module.
pub(crate) struct Reader {
    pool: Pool,
    host: String,
    channel: Channel,
    slots: Semaphore,
    reported: Mutex<BTreeSet<(u64, u32)>>,
    counters: std::sync::Arc<Counters>,
}

impl Reader {
    pub(crate) fn new(
        pool: Pool,
        host: String,
        channel: Channel,
        counters: std::sync::Arc<Counters>,
    ) -> Reader {
        Reader { pool, host, channel, slots: Semaphore::new(MAX_READS), reported: Mutex::default(), counters }
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The bytes of `span`, from the first of `replicas` that gives them. `committed`: every replica should
    /// have them, so one that has not is reported.
    pub(crate) async fn read(
        &self,
        span: Span,
        replicas: &[fs::ReplicaInfo],
        committed: bool,
    ) -> Result<Bytes> {
        let _slot = self.slots.acquire().await;
        self.read_any(span, replicas, committed).await
    }

    fn read_any<'a>(
        &'a self,
        span: Span,
        replicas: &'a [fs::ReplicaInfo],
        committed: bool,
    ) -> BoxFuture<'a, Result<Bytes>> {
        async move {
            let mut worst: Option<Error> = None;
            let mut corrupt = false;
            for replica in self.in_order(replicas) {
                match self.pool.read(&replica.address, span.chunk, span.offset, span.length).await {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => {
                        tracing::debug!(chunk = span.chunk, node = replica.node, %error, "a replica failed");
                        Counters::add(&self.counters.retries, 1);
                        corrupt |= error.code == ErrorCode::Corrupt;
                        if committed {
                            self.report(span.chunk, replica.node, &error);
                        }
                        // "Not here any more" asks for a fresh layout; it outranks silence.
                        if worst.as_ref().is_none_or(|worst| worst.code != ErrorCode::ChunkUnknown) {
                            worst = Some(error);
                        }
                    }
                }
            }
            if corrupt && span.length > BLOCK_SIZE as u64 {
                return self.read_blocks(span, replicas, committed).await;
            }
            Err(worst.unwrap_or_else(|| {
                ErrorCode::Unavailable
                    .because(format!("chunk {} has no replica on a live datanode", span.chunk))
            }))
        }
        .boxed()
    }

    /// Replicas damaged in different places are still one good chunk: look for each block by itself.
    async fn read_blocks(&self, span: Span, replicas: &[fs::ReplicaInfo], committed: bool) -> Result<Bytes> {
        let mut whole = BytesMut::with_capacity(span.length as usize);
        let end = span.offset + span.length;
        let mut at = span.offset;
        while at < end {
            let next = ((at / BLOCK_SIZE as u64 + 1) * BLOCK_SIZE as u64).min(end);
            let block = Span { chunk: span.chunk, offset: at, length: next - at };
            whole.extend_from_slice(&self.read_any(block, replicas, committed).await?);
            at = next;
        }
        Ok(whole.freeze())
    }

    /// This host first, then the others that live in random order, then those that may be gone.
    fn in_order<'a>(&self, replicas: &'a [fs::ReplicaInfo]) -> Vec<&'a fs::ReplicaInfo> {
        let mut rng = rand::rng();
        let mut ranked: Vec<_> = replicas
            .iter()
            .map(|replica| {
                let doubtful = match replica.liveness() {
                    fs::Liveness::Live | fs::Liveness::Unknown => 0,
                    fs::Liveness::Suspect => 1,
                    fs::Liveness::Dead => 2,
                };
                let far = self.host.is_empty() || replica.host != self.host;
                ((doubtful, far, rng.random::<u32>()), replica)
            })
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().map(|(_, replica)| replica).collect()
    }

    fn report(&self, chunk: u64, node: u32, error: &Error) {
        if !matches!(error.code, ErrorCode::Corrupt | ErrorCode::PastEnd | ErrorCode::ChunkUnknown) {
            return;
        }
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.len() >= MAX_REPORTED {
            reported.clear();
        }
        if reported.insert((chunk, node)) {
            self.channel.report_bad(BadReplica { chunk, node, reason: error.to_string() });
        }
    }
}
