//! Reading a range of a chunk from whichever replica has it.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cairn_host::request::Errand;
use cairn_proto::control::BadReplica;
use cairn_proto::error::Reaction;
use cairn_proto::limits::BLOCK_SIZE;
use cairn_proto::{Error, ErrorCode, Result, fs};
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use rand::Rng;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::hedge::Hedge;
use super::{Local, Pool};
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

impl Span {
    /// Whether it can be read block by block, from another replica each.
    fn crosses_blocks(self) -> bool {
        let block = BLOCK_SIZE as u64;
        self.length > 0 && self.offset / block != (self.offset + self.length - 1) / block
    }
}

/// A replica that was asked.
struct Asked<'a> {
    node: u32,
    read: BoxFuture<'a, (&'a fs::ReplicaInfo, Duration, Result<Bytes>)>,
}

impl<'a> Future for Asked<'a> {
    type Output = (&'a fs::ReplicaInfo, Duration, Result<Bytes>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.read.as_mut().poll(context)
    }
}

/// What came of asking every replica in vain.
#[derive(Default)]
struct Failed {
    worst: Option<Error>,
    /// Some replica failed in a way that may concern some of its blocks only.
    in_parts: bool,
}

impl Failed {
    fn take_in(&mut self, error: Error) {
        self.in_parts |=
            matches!(error.code, ErrorCode::Corrupt | ErrorCode::DiskFailed | ErrorCode::PastEnd);
        if self.worst.as_ref().is_none_or(|worst| rank(worst.code) <= rank(error.code)) {
            self.worst = Some(error);
        }
    }

    /// What the reader is told when no replica of a chunk is left to ask.
    fn of_all(self, chunk: u64, asked: usize) -> Error {
        match self.worst {
            None => {
                ErrorCode::Unavailable.because(format!("chunk {chunk} has no replica on a live datanode"))
            }
            Some(Error { code, detail }) if detail.is_empty() => {
                code.because(format!("none of {asked} replicas can be read"))
            }
            Some(Error { code, detail }) => {
                code.because(format!("none of {asked} replicas can be read: {detail}"))
            }
        }
    }
}

/// Which of the replicas' errors the reader is told: the chunk is elsewhere now, or somebody may still come back who
/// has it, or it is damaged everywhere. That a stranger sits at the address of one says nothing about the chunk.
fn rank(code: ErrorCode) -> u8 {
    match (code, code.reaction()) {
        (ErrorCode::ChunkUnknown, _) => 3,
        (_, Reaction::Retry) => 2,
        (_, Reaction::Redirect | Reaction::Fail) => 1,
        (_, Reaction::Stop) => 0,
    }
}

/// See the module.
pub(crate) struct Reader {
    pool: Pool,
    /// For replicas on this machine, unless all are to be read by way of their datanodes.
    local: Option<Local>,
    host: String,
    channel: Channel,
    slots: Semaphore,
    reported: Mutex<BTreeSet<(u64, u32)>>,
    hedge: Mutex<Hedge>,
    counters: std::sync::Arc<Counters>,
}

impl Reader {
    pub(crate) fn new(
        pool: Pool,
        local: Option<Local>,
        host: String,
        channel: Channel,
        counters: std::sync::Arc<Counters>,
    ) -> Reader {
        Reader {
            pool,
            local,
            host,
            channel,
            slots: Semaphore::new(MAX_READS),
            reported: Mutex::default(),
            hedge: Mutex::default(),
            counters,
        }
    }

    /// Gives back what was borrowed for long enough.
    pub(crate) fn sweep(&self) {
        self.local.iter().for_each(Local::sweep);
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
        let (errand, begun) = (Errand::begin(), Instant::now());
        let read = errand
            .request
            .carry(async {
                let _slot = self.slots.acquire().await;
                self.read_any(span, replicas, committed).await
            })
            .await;
        errand.done("read_chunk", begun.elapsed(), read.is_err());
        read
    }

    fn read_any<'a>(
        &'a self,
        span: Span,
        replicas: &'a [fs::ReplicaInfo],
        committed: bool,
    ) -> BoxFuture<'a, Result<Bytes>> {
        async move {
            let failed = match self.race(span, replicas, committed).await {
                Ok(bytes) => return Ok(bytes),
                Err(failed) => failed,
            };
            if failed.in_parts && span.crosses_blocks() {
                return self.read_blocks(span, replicas, committed).await;
            }
            Err(failed.of_all(span.chunk, replicas.len()))
        }
        .boxed()
    }

    /// Asks one replica after the other; a second one already beside one that is slow, once.
    async fn race(&self, span: Span, replicas: &[fs::ReplicaInfo], committed: bool) -> Result<Bytes, Failed> {
        let mut others = self.in_order(replicas).into_iter();
        let mut asked = FuturesUnordered::new();
        let mut failed = Failed::default();
        let mut hedged = false;
        loop {
            if asked.is_empty() {
                let Some(replica) = others.next() else { return Err(failed) };
                asked.push(self.ask(replica, span));
            }
            let delay = self.hedge().delay();
            let (replica, took, result) = tokio::select! {
                biased;
                Some(answer) = asked.next() => answer,
                () = tokio::time::sleep(delay), if !hedged && others.len() > 0 => {
                    hedged = true;
                    if self.hedge().start()
                        && let Some(replica) = others.next()
                    {
                        Counters::add(&self.counters.hedged_reads, 1);
                        asked.push(self.ask(replica, span));
                    }
                    continue;
                }
            };
            match result {
                Ok(bytes) => {
                    let mut hedge = self.hedge();
                    hedge.learn(took);
                    hedge.was_good(replica.node);
                    // Those that were overtaken; their connections end with them.
                    for slower in asked.iter_mut().map(|other| other.node) {
                        hedge.was_slow(slower, Instant::now());
                    }
                    return Ok(bytes);
                }
                Err(error) => {
                    tracing::debug!(chunk = span.chunk, node = replica.node, %error, "a replica failed");
                    Counters::add(&self.counters.retries, 1);
                    if matches!(error.code, ErrorCode::Timeout | ErrorCode::Unavailable) {
                        self.hedge().was_slow(replica.node, Instant::now());
                    }
                    if committed {
                        self.report(span.chunk, replica.node, &error);
                    }
                    failed.take_in(error);
                }
            }
        }
    }

    fn ask<'a>(&'a self, replica: &'a fs::ReplicaInfo, span: Span) -> Asked<'a> {
        let begun = Instant::now();
        let read = async move {
            if let Some(local) = &self.local
                && let Some(bytes) = local.read(&self.pool, replica, span).await
            {
                return (replica, begun.elapsed(), Ok(bytes));
            }
            let read = self.pool.read(replica, span).await;
            (replica, begun.elapsed(), read)
        };
        Asked { node: replica.node, read: read.boxed() }
    }

    fn hedge(&self) -> MutexGuard<'_, Hedge> {
        self.hedge.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// This host first, then the others that live in random order, then those that may be gone or were slow.
    fn in_order<'a>(&self, replicas: &'a [fs::ReplicaInfo]) -> Vec<&'a fs::ReplicaInfo> {
        let mut rng = rand::rng();
        let (now, hedge) = (Instant::now(), self.hedge());
        let mut ranked: Vec<_> = replicas
            .iter()
            .map(|replica| {
                let doubtful = match replica.liveness() {
                    fs::Liveness::Live | fs::Liveness::Unknown => u8::from(hedge.is_slow(replica.node, now)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_errors_the_one_that_says_most_is_told() {
        let told = |codes: &[ErrorCode]| {
            let mut failed = Failed::default();
            codes.iter().for_each(|&code| failed.take_in(code.into()));
            failed.of_all(7, codes.len())
        };
        use ErrorCode::{ChunkUnknown, Corrupt, PastEnd, Unavailable, WrongCluster};
        assert_eq!(told(&[PastEnd, Unavailable, WrongCluster]).code, Unavailable);
        assert_eq!(told(&[ChunkUnknown, Corrupt, Unavailable]).code, ChunkUnknown);
        assert_eq!(told(&[Corrupt, WrongCluster]).code, Corrupt);
        assert_eq!(told(&[WrongCluster]).code, WrongCluster);
        assert_eq!(told(&[]).code, Unavailable);
        assert_eq!(told(&[PastEnd]).detail, "none of 1 replicas can be read");
    }
}
