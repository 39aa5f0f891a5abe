//! Fetching sealed replicas: what the shipped copier does, over simulated connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cairn_datanode::orders::Copier;
use cairn_datanode::store::{Incoming, Seal, Store};
use cairn_host::net::Network;
use cairn_proto::checksum::piece_crcs;
use cairn_proto::control::{CopyReplica, GatherPiece, GatherReplica, GatherSource};
use cairn_proto::data::{Read, request, response};
use cairn_proto::limits::BLOCK_SIZE;
use cairn_proto::{Error, ErrorCode, Result};
use futures::future::BoxFuture;
use tokio::time::timeout;

use super::frames;

/// Without a byte of a copy.
const STALL: Duration = Duration::from_secs(2);
/// Bytes asked for at a time: small, so that copies are interrupted.
const REQUEST: u64 = 8 << 10;

/// Copies over the simulated network.
pub struct SimulatedCopier(pub Arc<dyn Network>);

impl Copier for SimulatedCopier {
    fn copy(
        &self,
        store: Arc<Store>,
        order: CopyReplica,
        stop: Arc<AtomicBool>,
    ) -> BoxFuture<'static, Result<Seal>> {
        let network = self.0.clone();
        Box::pin(async move {
            let incoming = match store.incoming(order.chunk, order.length, &order.blake3, order.replace)? {
                Ok(incoming) => incoming,
                Err(seal) => return Ok(seal),
            };
            let sources = order.sources.iter().map(|address| Source { address, lost: false }).collect();
            let mut assembly =
                Assembly { chunk: order.chunk, network: &*network, store: &store, sources, incoming };
            while assembly.incoming.missing() > 0 {
                if stop.load(Ordering::Acquire) {
                    return Err(ErrorCode::Unavailable.because("the datanode stops"));
                }
                assembly.advance().await?;
            }
            assembly.incoming.finish(&store, &order.blake3)
        })
    }

    fn gather(
        &self,
        store: Arc<Store>,
        order: GatherReplica,
        stop: Arc<AtomicBool>,
    ) -> BoxFuture<'static, Result<Seal>> {
        let network = self.0.clone();
        Box::pin(async move {
            let mut incoming = match store.incoming(order.chunk, order.length, &[], false)? {
                Ok(incoming) => incoming,
                Err(seal) => return Ok(seal),
            };
            for piece in &order.pieces {
                if stop.load(Ordering::Acquire) {
                    return Err(ErrorCode::Unavailable.because("the datanode stops"));
                }
                let source = order.sources.get(piece.source as usize).ok_or(ErrorCode::Malformed)?;
                gather_piece(&*network, &store, source, piece, &mut incoming).await?;
            }
            incoming.finish(&store, &[])
        })
    }
}

/// A datanode to copy from.
struct Source<'a> {
    address: &'a str,
    /// It cannot be spoken to, or has nothing of the chunk.
    lost: bool,
}

/// A copy that is being put together, by the steps of the shipped one (`datanode/src/copy.rs`).
struct Assembly<'a> {
    chunk: u64,
    network: &'a dyn Network,
    store: &'a Store,
    sources: Vec<Source<'a>>,
    incoming: Incoming,
}

impl Assembly<'_> {
    /// Gets some more bytes: a run from the first source there is, or at least the block at which that run stopped from
    /// any of them.
    async fn advance(&mut self) -> Result<()> {
        let Some(first) = self.sources.iter().position(|source| !source.lost) else {
            return Err(ErrorCode::Unavailable.because(format!("chunk {}: no source is left", self.chunk)));
        };
        let run = self.incoming.missing().min(REQUEST);
        let mut failed = match self.pull(first, run).await {
            Ok(()) => return Ok(()),
            Err(error) if !is_about_bytes(error.code) && self.sources.iter().any(|source| !source.lost) => {
                return Ok(());
            }
            Err(error) => error,
        };
        for source in 0..self.sources.len() {
            let rest = BLOCK_SIZE as u64 - self.incoming.held() % BLOCK_SIZE as u64;
            if self.sources[source].lost {
                continue;
            }
            match self.pull(source, rest.min(self.incoming.missing())).await {
                Ok(()) => return Ok(()),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Takes the next `length` bytes from a source, which is lost if it cannot be spoken to. What came before a failure
    /// is kept.
    async fn pull(&mut self, source: usize, length: u64) -> Result<()> {
        let Assembly { chunk, network, store, sources, incoming } = self;
        let source = &mut sources[source];
        let wanted = (*chunk, incoming.held(), length);
        let pulled = pull(*network, store, source.address, wanted, incoming).await;
        if pulled.as_ref().is_err_and(|error| !is_about_bytes(error.code)) {
            source.lost = true;
        }
        pulled
    }
}

/// Whether a refusal concerns the bytes asked for, not the source as a whole.
fn is_about_bytes(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Corrupt | ErrorCode::DiskFailed | ErrorCode::PastEnd)
}

/// Takes a piece from the first replica that gives it; whoever is next goes on where the last one stopped.
async fn gather_piece(
    network: &dyn Network,
    store: &Store,
    source: &GatherSource,
    piece: &GatherPiece,
    incoming: &mut Incoming,
) -> Result<()> {
    let first = incoming.held();
    let mut failed: Option<Error> = None;
    for address in &source.addresses {
        let held = incoming.held() - first;
        let rest = (source.chunk, piece.offset + held, piece.length - held);
        match pull(network, store, address, rest, incoming).await {
            Ok(()) => return Ok(()),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| ErrorCode::Invalid.because("a piece without sources")))
}

/// Takes `(chunk, offset, length)` from the datanode at `source`.
async fn pull(
    network: &dyn Network,
    store: &Store,
    source: &str,
    (chunk, mut offset, mut missing): (u64, u64, u64),
    incoming: &mut Incoming,
) -> Result<()> {
    let cluster_id = store.cluster_id().unwrap_or_default();
    let (mut reader, mut writer) = frames::dial(network, source, &cluster_id, 0, STALL).await?;
    while missing > 0 {
        let length = missing.min(REQUEST);
        writer.ask(request::Kind::Read(Read { chunk, offset, length, ..Read::default() }), &[]).await?;
        let mut at = offset;
        while at < offset + length {
            let late = |_| ErrorCode::Timeout.because("a source is silent");
            let reply = timeout(STALL, reader.reply()).await.map_err(late)?;
            let (response::Kind::Data(data), payload) = reply.map_err(|(error, _)| error)? else {
                return Err(ErrorCode::Malformed.because("a read was answered with something else"));
            };
            let end = at + payload.len() as u64;
            if data.offset != at || end > offset + length || data.last != (end == offset + length) {
                return Err(ErrorCode::Malformed.because("a read was answered with another range"));
            }
            if piece_crcs(at, &payload) != data.crcs {
                return Err(ErrorCode::Corrupt.because(format!("chunk {chunk}: at {at}, as received")));
            }
            incoming.write(&payload)?;
            at = end;
        }
        offset += length;
        missing -= length;
    }
    Ok(())
}
