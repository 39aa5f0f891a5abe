//! Writing: bytes go into open chunks through lanes, and come to lie where their chunk says.
//!
//! A [`chain`] is one open chunk with the connection to its first datanode. A [`lane`] always has a chain to
//! write into: it opens the next one before the current is full, and abandons one that fails. [`lanes`] shares
//! lanes among files.

mod chain;
mod lane;
mod lanes;
mod leader;
mod piece;
#[cfg(test)]
mod tests;

use std::time::Duration;

use cairn_proto::{Result, fs};
use futures::future::BoxFuture;

pub(crate) use lane::Lane;
pub(crate) use lanes::{Lanes, OwnLane};
pub(crate) use leader::Leader;
pub(crate) use piece::Append;

/// Where a run of appended bytes lies, acknowledged by every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) chunk: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// A new open chunk.
#[derive(Clone, Debug)]
pub(crate) struct Allocated {
    pub(crate) info: fs::ChunkInfo,
    /// Bytes it may hold.
    pub(crate) capacity: u64,
    /// The session it belongs to.
    pub(crate) session: u64,
}

/// What lanes need of the namenode.
pub(crate) trait Control: Send + Sync + 'static {
    /// One new chunk, not on the datanodes `exclude` if that can be.
    fn allocate(&self, replication: u32, exclude: Vec<u32>) -> BoxFuture<'_, Result<Allocated>>;
    /// Ends the growth of a chunk of the session given.
    fn seal(&self, session: u64, chunk: u64, length: u64) -> BoxFuture<'_, Result<()>>;
    /// Whether writing must pause because the session may be about to expire.
    fn fenced(&self) -> bool;
    /// The session there is now; 0: none. Chunks of another one are lost to this client.
    fn session(&self) -> u64;
    /// The cluster's id, for datanodes.
    fn cluster_id(&self) -> String;
}

/// How lanes behave; from [`crate::Config`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) lanes: usize,
    pub(crate) window_bytes: u64,
    pub(crate) stall_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) idle: Duration,
    pub(crate) exclude_for: Duration,
}

impl Pace {
    /// How long a datanode of a stalled chain may take to greet before it is held to be the one that stalls.
    fn probe_timeout(&self) -> Duration {
        self.connect_timeout / 4
    }

    /// How long a chain of so many datanodes may take to open. Each waits half a connection's time for each one below it,
    /// and must be heard when it says which of them is silent.
    fn opening_timeout(&self, datanodes: usize) -> Duration {
        self.connect_timeout * (datanodes.max(3) as u32 + 1) / 2
    }

    /// How long a chain of so many datanodes may owe an acknowledgement. The first of them waits an eighth of its own patience
    /// and a tick longer for each below the second, and must be heard when it says which of them keeps it waiting.
    fn stall_patience(&self, datanodes: usize) -> Duration {
        const WITHIN: usize = 4;
        self.stall_timeout + self.stall_timeout / 5 * datanodes.saturating_sub(WITHIN) as u32
    }
}
