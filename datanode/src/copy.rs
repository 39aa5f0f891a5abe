//! Fetching a sealed replica from other datanodes.

use std::sync::Arc;

use cairn_proto::control::CopyReplica;
use cairn_proto::limits::{BLOCK_SIZE, MAX_CHUNK_SIZE, MAX_PAYLOAD};
use cairn_proto::{Error, ErrorCode, Result};

use crate::pace::Pace;
use crate::peer::Peer;
use crate::settings::Settings;
use crate::store::{Incoming, Seal, Store};

/// Bytes asked of a source at a time: small enough that a source that fails late costs little.
const REQUEST: u64 = 8 * MAX_PAYLOAD as u64;

/// Makes this datanode hold what the order asks for. Blocks; `stop` is asked between pieces.
///
/// A block that a source has bad is asked of the next one, that block alone: replicas that are damaged in different
/// places are still one good chunk. A source that cannot be spoken to is given up.
pub fn copy(
    store: &Store,
    order: &CopyReplica,
    settings: &Arc<Settings>,
    stop: &dyn Fn() -> bool,
) -> Result<Seal> {
    if order.length > MAX_CHUNK_SIZE || !matches!(order.blake3.len(), 0 | 32) {
        return Err(ErrorCode::Malformed.because(format!("copy of chunk {}", order.chunk)));
    }
    if order.sources.is_empty() {
        return Err(ErrorCode::Invalid.because(format!("a copy of chunk {} without sources", order.chunk)));
    }
    let incoming = match store.incoming(order.chunk, order.length, &order.blake3, order.replace)? {
        Ok(incoming) => incoming,
        Err(seal) => return Ok(seal),
    };
    let mut assembly = Assembly {
        chunk: order.chunk,
        cluster_id: store.cluster_id().unwrap_or_default(),
        sources: order.sources.iter().map(|address| Source { address, peer: None, lost: false }).collect(),
        incoming,
        pace: Pace::new(order.bytes_per_second),
        settings,
        stop,
    };
    while assembly.incoming.missing() > 0 {
        assembly.advance()?;
    }
    assembly.incoming.finish(store, &order.blake3)
}

/// A datanode to copy from.
struct Source<'a> {
    address: &'a str,
    peer: Option<Peer>,
    /// It cannot be spoken to, or has nothing of the chunk.
    lost: bool,
}

/// A copy that is being put together.
struct Assembly<'a> {
    chunk: u64,
    cluster_id: String,
    sources: Vec<Source<'a>>,
    incoming: Incoming,
    pace: Pace,
    settings: &'a Arc<Settings>,
    stop: &'a dyn Fn() -> bool,
}

/// Whose fault a failed pull is.
enum Pull {
    Own(Error),
    /// The source refused these bytes and may have others.
    Refused(Error),
    Lost(Error),
}

impl Assembly<'_> {
    /// Gets some more bytes: a long run from the first source there is, or at least the block at which that run
    /// stopped from any of them.
    fn advance(&mut self) -> Result<()> {
        let run = self.incoming.missing().min(REQUEST);
        let Some(first) = self.sources.iter().position(|source| !source.lost) else {
            return Err(ErrorCode::Unavailable.because(format!("chunk {}: no source is left", self.chunk)));
        };
        let mut failed = match self.pull(first, run) {
            Ok(()) => return Ok(()),
            Err(Pull::Own(error)) => return Err(error),
            Err(Pull::Lost(_)) if self.sources.iter().any(|source| !source.lost) => return Ok(()),
            Err(Pull::Lost(error) | Pull::Refused(error)) => error,
        };
        // A source checks a whole piece before it sends any of it: of a refused piece, some blocks are good.
        let piece_end = (self.incoming.held() / MAX_PAYLOAD as u64 + 1) * MAX_PAYLOAD as u64;
        while self.incoming.missing() > 0 && self.incoming.held() < piece_end {
            let before = self.incoming.held();
            for source in 0..self.sources.len() {
                let rest = BLOCK_SIZE as u64 - self.incoming.held() % BLOCK_SIZE as u64;
                if self.sources[source].lost {
                    continue;
                }
                match self.pull(source, rest.min(self.incoming.missing())) {
                    Ok(()) => break,
                    // No other source makes the own disk any better.
                    Err(Pull::Own(error)) => return Err(error),
                    Err(Pull::Refused(error) | Pull::Lost(error)) => failed = error,
                }
            }
            if self.incoming.held() == before {
                return Err(failed);
            }
        }
        Ok(())
    }

    /// Takes the next `length` bytes from a source. What came before a failure is kept.
    fn pull(&mut self, source: usize, length: u64) -> Result<(), Pull> {
        let Assembly { chunk, cluster_id, sources, incoming, pace, settings, stop } = self;
        let source = &mut sources[source];
        // A connection that waited may have been cut to make room for others: that says nothing of the source.
        source.peer.take_if(|peer| !peer.in_step() || peer.stream().has_hung_up());
        let lose = |source: &mut Source<'_>, error: Error| {
            tracing::warn!(chunk, source = source.address, %error, "copying from this source failed");
            source.peer = None;
            source.lost = true;
            Pull::Lost(error)
        };
        if source.peer.is_none() {
            match Peer::connect(source.address, cluster_id, settings) {
                Ok(peer) => source.peer = Some(peer),
                Err(error) => return Err(lose(source, error)),
            }
        }
        let Some(peer) = &mut source.peer else { return Ok(()) };
        let mut own = None;
        let read = peer.read(*chunk, incoming.held(), length, &mut |bytes| {
            if stop() {
                own = Some(ErrorCode::Unavailable.because("the datanode stops"));
                return Err(ErrorCode::Unavailable.into());
            }
            pace.wait(bytes.len());
            incoming.write(bytes).inspect_err(|error| own = Some(error.clone()))
        });
        match (read, own) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(own)) => Err(Pull::Own(own)),
            (Err(error), None) if is_about_bytes(error.code) => Err(Pull::Refused(error)),
            (Err(error), None) => Err(lose(source, error)),
        }
    }
}

/// Whether a refusal concerns the bytes asked for, not the source as a whole.
fn is_about_bytes(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Corrupt | ErrorCode::DiskFailed | ErrorCode::PastEnd)
}
