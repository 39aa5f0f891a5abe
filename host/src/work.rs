//! Work that waits for a disk.

use tokio::task::{JoinError, spawn_blocking};

use crate::disk::SharedDisk;

/// Does `work` on a thread that may wait, or at once where the disk makes nobody wait. An error means that the work
/// panicked or that the runtime ends.
pub async fn blocking<T: Send + 'static>(
    disk: &SharedDisk,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if disk.blocks() { spawn_blocking(work).await } else { Ok(work()) }
}
