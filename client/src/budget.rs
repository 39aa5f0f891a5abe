//! The memory that written bytes may take, over all files.

use std::sync::Arc;
use std::time::Duration;

use cairn_proto::limits::MAX_PAYLOAD;
use cairn_proto::{ErrorCode, Result};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Bytes that may still be taken. Clones share them.
#[derive(Clone)]
pub(crate) struct Budget {
    bytes: Arc<Semaphore>,
    limit: usize,
}

impl Budget {
    /// Room for `bytes`, at least for a few appends.
    pub(crate) fn new(bytes: usize) -> Budget {
        let limit = bytes.clamp(4 * MAX_PAYLOAD, u32::MAX as usize);
        Budget { bytes: Arc::new(Semaphore::new(limit)), limit }
    }

    /// Bytes that are taken, and bytes that there are.
    pub(crate) fn taken(&self) -> (u64, u64) {
        (self.limit.saturating_sub(self.bytes.available_permits()) as u64, self.limit as u64)
    }

    /// Takes `bytes` if they are there.
    pub(crate) fn try_take(&self, bytes: u64) -> bool {
        match self.bytes.try_acquire_many(bytes as u32) {
            Ok(taken) => {
                taken.forget();
                true
            }
            Err(_) => false,
        }
    }

    /// Waits for `bytes` until some are given back.
    pub(crate) async fn take(&self, bytes: u64, limit: Duration) -> Result<()> {
        match timeout(limit, self.bytes.acquire_many(bytes as u32)).await {
            Ok(Ok(taken)) => {
                taken.forget();
                Ok(())
            }
            _ => Err(ErrorCode::Timeout.because("written data does not drain to the datanodes")),
        }
    }

    /// Gives bytes back.
    pub(crate) fn release(&self, bytes: u64) {
        self.bytes.add_permits(bytes as usize);
    }
}
