//! Plain counters of what a client did.

use std::sync::atomic::{AtomicU64, Ordering};

/// A reading of the counters since the client was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Bytes acknowledged by every replica of their chain.
    pub bytes_written: u64,
    /// Bytes received from datanodes, checksums verified.
    pub bytes_read: u64,
    /// Bytes read from files of replicas on this host, checksums verified.
    pub bytes_read_here: u64,
    /// Chains abandoned because a datanode failed or stalled.
    pub chain_failures: u64,
    /// Times the conversation moved to another namenode, or to the same one again.
    pub leader_changes: u64,
    /// Calls, appends and reads that were sent again.
    pub retries: u64,
    /// Bytes that were written and that wait for their replicas.
    pub bytes_waiting: u64,
    /// Bytes that may wait so; whoever writes more waits itself.
    pub bytes_waiting_limit: u64,
    /// Memory that known layouts take, about.
    pub layout_bytes: u64,
    /// Inodes in directories that are this client's own.
    pub delegated_inodes: u64,
    /// What was done in them and is not told yet.
    pub deeds_waiting: u64,
    /// What was done in them so far.
    pub deeds: u64,
    /// Reads for which a second replica was asked because the first was slow.
    pub hedged_reads: u64,
}

/// The counters themselves.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) bytes_written: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) bytes_read_here: AtomicU64,
    pub(crate) chain_failures: AtomicU64,
    pub(crate) leader_changes: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) hedged_reads: AtomicU64,
}

impl Counters {
    pub(crate) fn reading(&self) -> Metrics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Metrics {
            bytes_written: get(&self.bytes_written),
            bytes_read: get(&self.bytes_read),
            bytes_read_here: get(&self.bytes_read_here),
            chain_failures: get(&self.chain_failures),
            leader_changes: get(&self.leader_changes),
            retries: get(&self.retries),
            hedged_reads: get(&self.hedged_reads),
            ..Metrics::default()
        }
    }

    pub(crate) fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}
