//! Fetching a sealed replica from other datanodes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_proto::control::CopyReplica;
use cairn_proto::limits::{MAX_CHUNK_SIZE, MAX_PAYLOAD};
use cairn_proto::{Error, ErrorCode, Result};

use crate::peer::Peer;
use crate::settings::Settings;
use crate::store::{Incoming, Seal, Store};

/// Bytes asked of a source at a time: small enough that a source that fails late costs little.
const REQUEST: u64 = 8 * MAX_PAYLOAD as u64;

/// Makes this datanode hold what the order asks for. Blocks; `stop` is asked between pieces.
///
/// A source that fails is given up for the next one, which goes on where it stopped: replicas that are
/// damaged in different places are still one good chunk.
pub fn copy(
    store: &Store,
    order: &CopyReplica,
    settings: &Arc<Settings>,
    stop: &dyn Fn() -> bool,
) -> Result<Seal> {
    if order.length > MAX_CHUNK_SIZE || !matches!(order.blake3.len(), 0 | 32) {
        return Err(ErrorCode::Malformed.because(format!("copy of chunk {}", order.chunk)));
    }
    let mut incoming = match store.incoming(order.chunk, order.length, &order.blake3)? {
        Ok(incoming) => incoming,
        Err(seal) => return Ok(seal),
    };
    let mut pace = Pace::new(order.bytes_per_second);
    let mut failed: Option<Error> = None;
    for source in &order.sources {
        if incoming.missing() == 0 {
            break;
        }
        match pull(store, order.chunk, source, &mut incoming, &mut pace, settings, stop) {
            Ok(()) => {}
            // No other source makes the own disk any better.
            Err(Pull::Own(error)) => return Err(error),
            Err(Pull::Source(error)) => {
                tracing::warn!(chunk = order.chunk, source, %error, "copying from this source failed");
                failed = Some(error);
            }
        }
    }
    if incoming.missing() > 0 {
        return Err(failed.unwrap_or_else(|| ErrorCode::Invalid.because("a copy without sources")));
    }
    incoming.finish(store, &order.blake3)
}

/// Whose fault a failed pull is.
enum Pull {
    Own(Error),
    Source(Error),
}

fn pull(
    store: &Store,
    chunk: u64,
    source: &str,
    incoming: &mut Incoming,
    pace: &mut Pace,
    settings: &Arc<Settings>,
    stop: &dyn Fn() -> bool,
) -> Result<(), Pull> {
    let cluster_id = store.cluster_id().unwrap_or_default();
    let mut peer = Peer::connect(source, &cluster_id, settings).map_err(Pull::Source)?;
    while incoming.missing() > 0 {
        let (at, length) = (incoming.held(), incoming.missing().min(REQUEST));
        let mut own = None;
        let read = peer.read(chunk, at, length, &mut |bytes| {
            if stop() {
                own = Some(ErrorCode::Unavailable.because("the datanode stops"));
                return Err(ErrorCode::Unavailable.into());
            }
            pace.wait(bytes.len());
            incoming.write(bytes).inspect_err(|error| own = Some(error.clone()))
        });
        match (read, own) {
            (Ok(()), _) => {}
            (Err(_), Some(own)) => return Err(Pull::Own(own)),
            (Err(error), None) => return Err(Pull::Source(error)),
        }
    }
    Ok(())
}

/// A token bucket that holds a tenth of a second.
pub(crate) struct Pace {
    bytes_per_second: u64,
    due: Instant,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64) -> Pace {
        Pace { bytes_per_second, due: Instant::now() }
    }

    /// Waits until `bytes` more may pass; at most a minute for one piece, however low the rate.
    pub(crate) fn wait(&mut self, bytes: usize) {
        if self.bytes_per_second == 0 {
            return;
        }
        let now = Instant::now();
        std::thread::sleep(self.due.saturating_duration_since(now).min(Duration::from_secs(60)));
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let burst = Duration::from_millis(100);
        self.due = self.due.max(now.checked_sub(burst).unwrap_or(now)) + cost.min(Duration::from_secs(60));
    }
}
