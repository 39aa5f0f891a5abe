//! The whole namespace as a stream, for an administrator to keep: the leader's store as it is when everything that was
//! acknowledged is applied.

use std::sync::Arc;
use std::time::Duration;

use cairn_metadata::store::Store;
use cairn_proto::control::MetadataPart;
use cairn_proto::{Error, ErrorCode};
use tokio::sync::{OwnedMutexGuard, mpsc};
use tonic::Status;

use crate::member::Member;

/// Messages between the store's reader and the network.
const PARTS_AHEAD: usize = 4;
/// How long a receiver may leave a part lying: meanwhile the store cannot reuse any space.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends backups, one at a time.
#[derive(Debug, Clone, Default)]
pub struct Backups {
    busy: Arc<tokio::sync::Mutex<()>>,
}

impl Backups {
    /// A place in the queue, which has one.
    pub fn begin(&self) -> Result<OwnedMutexGuard<()>, Error> {
        let busy = |_| ErrorCode::Unavailable.because("another snapshot of the metadata is being taken");
        self.busy.clone().try_lock_owned().map_err(busy)
    }
}

/// Sends the store of `member`, a leader, to `outgoing`. A stream that ends early lacks its end block.
pub async fn send(
    member: Arc<Member>,
    _turn: OwnedMutexGuard<()>,
    outgoing: mpsc::Sender<Result<MetadataPart, Status>>,
) {
    let view = match member.group.ensure_readable().await {
        Ok(()) => member.store.snapshot().map_err(|error| ErrorCode::Io.because(error.to_string())),
        Err(error) => Err(error),
    };
    let view = match view {
        Ok(view) => view,
        Err(error) => {
            let refused = MetadataPart { error: Some(error.into()), ..MetadataPart::default() };
            // There is room, or nobody listens any more.
            let _ = outgoing.try_send(Ok(refused));
            return;
        }
    };
    tracing::info!("sending a snapshot of the metadata");
    let (parts, mut made) = mpsc::channel(PARTS_AHEAD);
    let disk = member.store.disk().clone();
    let reading = crate::raft::send_parts(disk, view, parts);
    let sending = async move {
        while let Some(part) = made.recv().await {
            let part = MetadataPart { data: part.data, ..MetadataPart::default() };
            // Who does not take it in time gets no more, and the view is let go.
            match tokio::time::timeout(PATIENCE, outgoing.send(Ok(part))).await {
                Ok(Ok(())) => {}
                _ => break,
            }
        }
    };
    if let (Err(error), ()) = tokio::join!(reading, sending) {
        tracing::warn!(%error, "a snapshot of the metadata was not sent to its end");
    }
}
