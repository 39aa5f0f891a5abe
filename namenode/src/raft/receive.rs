//! A snapshot as it arrives: written into a file of its own, one at a time, and within bounds.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cairn_host::disk::{self, Access, SharedDisk};
use cairn_host::work::blocking;
use cairn_proto::control::SnapshotPart;
use futures::{Stream, StreamExt};
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinError;
use tonic::Status;

use super::snapshot::Received;
use crate::store::stream;

/// How long a part may be on its way: a sender that says nothing must not keep the next one waiting.
const SILENCE: Duration = Duration::from_secs(30);
/// Between two looks at how much room is left.
const LOOK_BYTES: u64 = 64 << 20;
/// What a reception leaves of the disk: the log must still be written.
const LEAVE_BYTES: u64 = 256 << 20;
/// Bytes of the store that a snapshot becomes, for each of its own, at most: the store's pages are not full.
const STORE_FACTOR: u64 = 2;

/// Receives snapshots, one at a time.
#[derive(Debug, Default)]
pub struct Receiver {
    busy: Arc<tokio::sync::Mutex<()>>,
}

impl Receiver {
    /// A turn, to be kept until what is received is installed.
    pub fn begin(&self) -> Result<OwnedMutexGuard<()>, Status> {
        let busy = |_| Status::unavailable("another snapshot is being received");
        self.busy.clone().try_lock_owned().map_err(busy)
    }
}

/// Writes the stream into a file and checks it: one that was cut short must not get as far as the library, to which a
/// snapshot that cannot be installed is a failed disk.
pub async fn receive(
    disk: &SharedDisk,
    dir: &Path,
    parts: &mut (impl Stream<Item = Result<SnapshotPart, Status>> + Unpin),
) -> Result<Received, Status> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let path = dir.join(format!("{}.snapshot", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let make = {
        let (disk, dir, path) = (disk.clone(), dir.to_owned(), path.clone());
        move || {
            disk::create_dirs(&*disk, &dir)?;
            disk.open(&path, Access::Create)
        }
    };
    let file = blocking(disk, make).await.map_err(lost)?.map_err(failed)?;
    let received = Received::new(disk.clone(), path);
    check_room(disk, dir, 0).await?;
    let (mut at, mut looked) = (0, 0);
    while let Some(part) = next(parts).await? {
        let (file, offset) = (file.clone(), at);
        at += part.data.len() as u64;
        let write = move || file.write_at(&part.data, offset);
        blocking(disk, write).await.map_err(lost)?.map_err(failed)?;
        if at - looked >= LOOK_BYTES {
            check_room(disk, dir, at).await?;
            looked = at;
        }
    }
    check_room(disk, dir, at).await?;
    let check = move || stream::verify(received.read()?).map(|()| received);
    let checked = blocking(disk, check).await.map_err(lost)?;
    checked.map_err(|error| Status::data_loss(error.to_string()))
}

/// The next part, unless its sender is silent for too long.
pub async fn next(
    parts: &mut (impl Stream<Item = Result<SnapshotPart, Status>> + Unpin),
) -> Result<Option<SnapshotPart>, Status> {
    match tokio::time::timeout(SILENCE, parts.next()).await {
        Ok(part) => part.transpose(),
        Err(_) => Err(Status::deadline_exceeded("the sender of a snapshot fell silent")),
    }
}

/// What must be free when `received` bytes of a snapshot are on the disk: it is there still while the store is made
/// from it, beside the one that it replaces.
fn needed(received: u64) -> u64 {
    received.saturating_mul(STORE_FACTOR).saturating_add(LEAVE_BYTES)
}

async fn check_room(disk: &SharedDisk, dir: &Path, received: u64) -> Result<(), Status> {
    let look = {
        let (disk, dir) = (disk.clone(), dir.to_owned());
        move || disk.space(&dir)
    };
    let space = blocking(disk, look).await.map_err(lost)?.map_err(failed)?;
    if space.available < needed(received) {
        let left = space.available >> 20;
        let refusal = format!("no room for a snapshot: {left} MiB are left on the disk of {}", dir.display());
        tracing::warn!("{refusal}");
        return Err(Status::resource_exhausted(refusal));
    }
    Ok(())
}

fn failed(error: io::Error) -> Status {
    Status::internal(format!("receiving a snapshot: {error}"))
}

fn lost(error: JoinError) -> Status {
    Status::internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cairn_host::disk::simulated::SimulatedDisk;
    use cairn_metadata::memory::MemoryStore;
    use cairn_metadata::store::Store;
    use tonic::Code;

    use super::*;

    const DIR: &str = "/node/incoming";

    fn parts_of(data: Vec<u8>) -> impl Stream<Item = Result<SnapshotPart, Status>> + Unpin {
        futures::stream::iter([Ok(SnapshotPart { head: None, data: Bytes::from(data) })])
    }

    #[tokio::test]
    async fn a_snapshot_is_refused_where_the_store_that_it_becomes_has_no_room() {
        let mut whole = Vec::new();
        stream::write(&*MemoryStore::default().snapshot().unwrap(), &mut whole).unwrap();
        let simulated = SimulatedDisk::new(1);
        let disk: SharedDisk = Arc::new(simulated.mount());
        let room = whole.len() as u64;
        for (left, ends) in [
            (LEAVE_BYTES - 1, Some(Code::ResourceExhausted)),
            (needed(room) + room - 1, Some(Code::ResourceExhausted)),
            (needed(room) + room, None),
        ] {
            simulated.limit("/node", left);
            let ended = receive(&disk, Path::new(DIR), &mut parts_of(whole.clone())).await;
            assert_eq!(ended.err().map(|status| status.code()), ends, "{left} bytes left");
            assert_eq!(simulated.files(DIR), Vec::<std::path::PathBuf>::new(), "nothing stays");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_whose_sender_falls_silent_is_given_up() {
        let simulated = SimulatedDisk::new(1);
        let disk: SharedDisk = Arc::new(simulated.mount());
        let mut parts = parts_of(vec![7; 1000]).chain(futures::stream::pending());
        let given_up = receive(&disk, Path::new(DIR), &mut parts).await;
        assert_eq!(given_up.err().map(|status| status.code()), Some(Code::DeadlineExceeded));
        assert_eq!(simulated.files(DIR), Vec::<std::path::PathBuf>::new(), "nothing stays");
    }

    #[test]
    fn one_at_a_time() {
        let receiver = Receiver::default();
        let turn = receiver.begin().unwrap();
        assert_eq!(receiver.begin().unwrap_err().code(), Code::Unavailable);
        drop(turn);
        assert!(receiver.begin().is_ok());
    }
}
