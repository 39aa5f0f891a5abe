//! A namenode: the one that ships, on a simulated machine.

use std::path::PathBuf;

use cairn_host::Host;
use cairn_host::disk::SharedDisk;
use cairn_namenode::Config;
use cairn_proto::Error;
use tokio::sync::watch;

use crate::plan::Plan;

/// A client's lease, in milliseconds.
pub const LEASE_MS: u64 = 3_000;
/// How long a chunk is left unchanged before it is compacted, in milliseconds.
pub const COMPACT_AFTER_MS: u64 = 2_000;
/// How long a chunk without live bytes is kept, in milliseconds.
pub const GRACE_MS: u64 = 4_000;

/// Where a namenode keeps everything on its disk.
pub fn directory() -> PathBuf {
    PathBuf::from("/namenode")
}

/// Options of the namenode at `address`: everything smaller and sooner than in a real cluster.
pub fn config(address: &str, peers: &[String], disk: SharedDisk, host: Host, plan: &Plan) -> Config {
    let log_keep = plan.log_keep;
    Config {
        dir: directory(),
        listen: address.parse().expect("an address of the simulation"),
        advertise: address.to_owned(),
        peers: peers.to_vec(),
        chunk_size: plan.chunk_size,
        cache_bytes: 1 << 20,
        election_timeout_ms: (600, 1200),
        heartbeat_ms: 200,
        session_lease_ms: LEASE_MS,
        suspect_after_ms: 2_500,
        dead_after_ms: 5_000,
        garbage_grace_ms: GRACE_MS,
        compaction_after_ms: COMPACT_AFTER_MS,
        checkpoint_ms: 1_500,
        snapshot_every: log_keep * 2,
        log_keep,
        log_segment_bytes: 256 << 10,
        log_recent_bytes: 16 << 10,
        disk,
        host,
        ..Config::default()
    }
}

/// Runs it until it is told to stop, or must.
pub async fn run(config: Config, stop: watch::Receiver<bool>) -> Result<(), Error> {
    // A segment of this size would be refused outside: a record of the largest size does not fit in.
    cairn_namenode::run_checked(config, stop).await
}
