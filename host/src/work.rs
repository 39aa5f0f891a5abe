//! Work that waits for a disk.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{JoinError, spawn_blocking};

/// Runs work that may wait for a disk, on a thread of its own.
///
/// A runtime of one thread has nobody else to keep waiting that could not wait: there it runs where it is. An error
/// means that the work panicked or that the runtime ends.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    if is_single() {
        return Ok(work());
    }
    spawn_blocking(work).await
}

fn is_single() -> bool {
    Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::CurrentThread)
}
