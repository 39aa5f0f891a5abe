//! A snapshot as it arrives: written into a file of its own, one at a time, and within bounds.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cairn_host::disk::{self, Access, SharedDisk};
use cairn_host::work::blocking;
use cairn_proto::control::SnapshotPart;
use tokio::task::JoinError;
use tonic::{Status, Streaming};

use super::snapshot::Received;
use crate::store::stream;

/// How long a part may be on its way: a sender that says nothing must not keep the next one waiting.
const SILENCE: Duration = Duration::from_secs(30);
/// Between two looks at how much room is left.
const LOOK_BYTES: u64 = 64 << 20;
/// What a reception leaves of the disk: the log must still be written.
const LEAVE_BYTES: u64 = 256 << 20;

/// Receives snapshots, one at a time.
#[derive(Debug, Default)]
pub struct Receiver {
    busy: Arc<tokio::sync::Mutex<()>>,
}

impl Receiver {
    /// Writes the stream into a file and checks it: one that was cut short must not get as far as the library, to which
    /// a snapshot that cannot be installed is a failed disk.
    pub async fn receive(
        &self,
        disk: &SharedDisk,
        dir: &Path,
        parts: &mut Streaming<SnapshotPart>,
    ) -> Result<Received, Status> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let Ok(_turn) = self.busy.try_lock() else {
            return Err(Status::unavailable("another snapshot is being received"));
        };
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
        let (mut at, mut looked) = (0, None);
        while let Some(part) = next(parts).await? {
            if looked.is_none_or(|looked| at - looked >= LOOK_BYTES) {
                check_room(disk, dir).await?;
                looked = Some(at);
            }
            let (file, offset) = (file.clone(), at);
            at += part.data.len() as u64;
            let write = move || file.write_at(&part.data, offset);
            blocking(disk, write).await.map_err(lost)?.map_err(failed)?;
        }
        let check = move || stream::verify(received.read()?).map(|()| received);
        let checked = blocking(disk, check).await.map_err(lost)?;
        checked.map_err(|error| Status::data_loss(error.to_string()))
    }
}

async fn next(parts: &mut Streaming<SnapshotPart>) -> Result<Option<SnapshotPart>, Status> {
    match tokio::time::timeout(SILENCE, parts.message()).await {
        Ok(part) => part,
        Err(_) => Err(Status::deadline_exceeded("the sender of a snapshot fell silent")),
    }
}

async fn check_room(disk: &SharedDisk, dir: &Path) -> Result<(), Status> {
    let look = {
        let (disk, dir) = (disk.clone(), dir.to_owned());
        move || disk.space(&dir)
    };
    let space = blocking(disk, look).await.map_err(lost)?.map_err(failed)?;
    if space.available < LEAVE_BYTES {
        let left = space.available >> 20;
        return Err(Status::resource_exhausted(format!(
            "no room for a snapshot: {left} MiB are left on the disk of {}",
            dir.display()
        )));
    }
    Ok(())
}

fn failed(error: io::Error) -> Status {
    Status::internal(format!("receiving a snapshot: {error}"))
}

fn lost(error: JoinError) -> Status {
    Status::internal(error.to_string())
}
