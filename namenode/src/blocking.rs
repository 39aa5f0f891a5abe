//! Work that waits for the disk.

use cairn_host::disk::SharedDisk;
use tokio::task::JoinError;

/// Does `work` on a thread that may wait, or at once where the disk makes nobody wait.
pub async fn on<T: Send + 'static>(
    disk: &SharedDisk,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if disk.blocks() { tokio::task::spawn_blocking(work).await } else { Ok(work()) }
}
