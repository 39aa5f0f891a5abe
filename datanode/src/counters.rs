//! What a datanode counts as it works.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cairn_ops::metrics::Histogram;
use cairn_proto::fs::Traffic;

/// Counters of one datanode, since its start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Reads that were served whole, from the request to the last byte sent.
    pub reads: Histogram,
    /// Appends that were verified, forwarded and written here.
    pub appends: Histogram,
    /// Syncs of a chunk that was being written, here.
    pub syncs: Histogram,
    reads_refused: AtomicU64,
    appends_refused: AtomicU64,
    lent: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    attending: AtomicBool,
}

/// The leader is attended for as long as this lives.
pub struct Attending<'a>(&'a Counters);

impl Drop for Attending<'_> {
    fn drop(&mut self) {
        self.0.attending.store(false, Ordering::Relaxed);
    }
}

impl Counters {
    /// Bytes were sent to a reader.
    pub fn sent(&self, bytes: usize) {
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A replica was lent to a client on this host.
    pub fn lent(&self) {
        self.lent.fetch_add(1, Ordering::Relaxed);
    }

    /// How often one was.
    pub fn loans(&self) -> u64 {
        self.lent.load(Ordering::Relaxed)
    }

    /// An append took so long.
    pub fn appended(&self, bytes: usize, took: Duration) {
        self.bytes_written.fetch_add(bytes as u64, Ordering::Relaxed);
        self.appends.observe(took);
    }

    /// A read was refused.
    pub fn read_refused(&self) {
        self.reads_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// An append was refused.
    pub fn append_refused(&self) {
        self.appends_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads and appends that were refused.
    pub fn refused(&self) -> (u64, u64) {
        (self.reads_refused.load(Ordering::Relaxed), self.appends_refused.load(Ordering::Relaxed))
    }

    /// Bytes carried.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            bytes_written: self.bytes_written.load(Ordering::Relaxed),
        }
    }

    /// The leader has let this datanode in.
    pub fn attend(&self) -> Attending<'_> {
        self.attending.store(true, Ordering::Relaxed);
        Attending(self)
    }

    /// Whether the leader is attended now.
    pub fn is_attending(&self) -> bool {
        self.attending.load(Ordering::Relaxed)
    }
}
