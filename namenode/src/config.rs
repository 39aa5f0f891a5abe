//! What a namenode is told when it starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use cairn_host::Host;
use cairn_host::disk::{self, SharedDisk};
use cairn_proto::limits::{CHUNK_SIZE, MAX_CHUNK_SIZE, MAX_REPLICATION, REPLICATION, SESSION_LEASE_MS};
use cairn_proto::{Error, ErrorCode};
use serde::Deserialize;

use crate::attend;

/// Options of a namenode: `[namenode]` of the configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where everything is kept; one process at a time.
    pub dir: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its address as others reach it, `host:port`.
    pub advertise: String,
    /// The advertised addresses of all namenodes, this one among them. Only a namenode with an empty directory looks
    /// at the others: to form a cluster with them, or to join theirs.
    pub peers: Vec<String>,
    /// Replicas of a chunk, for a cluster that is being formed.
    pub default_replication: u32,
    /// Bytes of a chunk, for a cluster that is being formed.
    pub chunk_size: u64,
    /// Where metrics and the dashboard are served over HTTP; nowhere unless it is given.
    pub http: Option<SocketAddr>,
    /// Names under which browsers ask for it, besides those of `advertise` and every address.
    pub http_names: Vec<String>,
    /// Connections at once, of clients, datanodes and namenodes; strangers make room for them.
    pub max_connections: usize,
    /// Memory for the store's cache, in bytes.
    pub cache_bytes: usize,
    /// Shortest and longest silence of the leader before another one is elected, in milliseconds.
    pub election_timeout_ms: (u64, u64),
    /// How often the leader is heard, in milliseconds.
    pub heartbeat_ms: u64,
    /// How long a client's session lives without a renewal, in milliseconds.
    pub session_lease_ms: u64,
    /// How long a datanode is silent before it gets no new chunks, in milliseconds.
    pub suspect_after_ms: u64,
    /// How long a datanode is silent before its replicas are made up for, in milliseconds.
    pub dead_after_ms: u64,
    /// How long a sealed chunk without live bytes is kept, in milliseconds.
    pub garbage_grace_ms: u64,
    /// Copies one datanode takes part in at once while chunks are repaired.
    pub repair_copies_per_node: usize,
    /// Bytes a second repair may copy for each live datanode; 0: no limit.
    pub repair_bytes_per_second: u64,
    /// Whether chunks that are mostly garbage, or many and small, are compacted.
    pub compaction: bool,
    /// A sealed chunk is mostly garbage when less of it is alive than this, in percent.
    pub compaction_live_percent: u32,
    /// Bytes a second compaction may write for each live datanode; 0: no limit.
    pub compaction_bytes_per_second: u64,
    /// How long a chunk stays unchanged before it is compacted, in milliseconds.
    pub compaction_after_ms: u64,
    /// How often the store is made durable, in milliseconds; the log covers the time between.
    pub checkpoint_ms: u64,
    /// Log entries between two points up to which the log may be purged.
    pub snapshot_every: u64,
    /// Log entries kept for followers that lag, although the store has them.
    pub log_keep: u64,
    /// Bytes of one segment file of the log.
    pub log_segment_bytes: u32,
    /// Bytes of recent log entries kept in memory.
    pub log_recent_bytes: usize,
    /// Its network and its clock: the machine's, unless somebody puts others in their place.
    #[serde(skip)]
    pub host: Host,
    /// The disk that `dir` is on: the machine's, unless somebody puts another in its place.
    #[serde(skip)]
    pub disk: SharedDisk,
}

impl Default for Config {
    fn default() -> Config {
        let attend = attend::Settings::default();
        Config {
            dir: PathBuf::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            advertise: String::new(),
            peers: Vec::new(),
            default_replication: REPLICATION,
            chunk_size: CHUNK_SIZE,
            http: None,
            http_names: Vec::new(),
            max_connections: 4096,
            cache_bytes: 256 << 20,
            election_timeout_ms: (150, 300),
            heartbeat_ms: 50,
            session_lease_ms: SESSION_LEASE_MS,
            suspect_after_ms: attend.suspect_after.as_millis() as u64,
            dead_after_ms: attend.dead_after.as_millis() as u64,
            garbage_grace_ms: attend.garbage_grace.as_millis() as u64,
            repair_copies_per_node: attend.copies_per_node,
            repair_bytes_per_second: attend.copy_bytes_per_second,
            compaction: attend.compaction,
            compaction_live_percent: attend.compaction_live_percent,
            compaction_bytes_per_second: attend.compaction_bytes_per_second,
            compaction_after_ms: attend.compaction_after.as_millis() as u64,
            checkpoint_ms: 2_000,
            snapshot_every: 10_000,
            log_keep: 5_000,
            log_segment_bytes: 32 << 20,
            log_recent_bytes: 32 << 20,
            host: Host::default(),
            disk: disk::real(),
        }
    }
}

impl Config {
    /// Checks every option and fills in what follows from others: the advertised address, and the peers, sorted.
    pub fn checked(mut self) -> Result<Config, Error> {
        let bad = |what: String| Err(ErrorCode::Invalid.because(what));
        if self.dir.as_os_str().is_empty() {
            return bad("dir: a namenode needs a directory".into());
        }
        if self.advertise.is_empty() {
            if self.listen.ip().is_unspecified() || self.listen.port() == 0 {
                return bad(format!("advertise: say at which address others reach {}", self.listen));
            }
            self.advertise = self.listen.to_string();
        }
        if self.peers.is_empty() {
            self.peers.push(self.advertise.clone());
        }
        self.peers.sort();
        self.peers.dedup();
        for address in &self.peers {
            check_address(address)?;
        }
        if !self.peers.contains(&self.advertise) {
            return bad(format!("peers: {} is not among {}", self.advertise, self.peers.join(", ")));
        }
        if self.default_replication == 0 || self.default_replication > MAX_REPLICATION {
            return bad(format!(
                "default_replication: {} is not in 1..={MAX_REPLICATION}",
                self.default_replication
            ));
        }
        if self.chunk_size < 1 << 20 || self.chunk_size > MAX_CHUNK_SIZE {
            return bad(format!("chunk_size: {} is not in 1 MiB..=1 GiB", self.chunk_size));
        }
        let (shortest, longest) = self.election_timeout_ms;
        if self.heartbeat_ms == 0 || shortest < 2 * self.heartbeat_ms || longest <= shortest {
            return bad(format!(
                "election_timeout_ms: ({shortest}, {longest}) with heartbeat_ms {}: the first must be at least two heartbeats, the second larger",
                self.heartbeat_ms
            ));
        }
        if self.suspect_after_ms == 0 || self.dead_after_ms < self.suspect_after_ms {
            return bad("dead_after_ms: must be at least suspect_after_ms, and that more than 0".into());
        }
        if self.max_connections < 16 {
            return bad("max_connections: must be at least 16".into());
        }
        if self.session_lease_ms < 1_000 {
            return bad("session_lease_ms: must be at least 1000".into());
        }
        if self.garbage_grace_ms < self.session_lease_ms {
            return bad("garbage_grace_ms: must not be shorter than session_lease_ms".into());
        }
        if !(16 << 20..=1 << 30).contains(&self.log_segment_bytes) {
            return bad("log_segment_bytes: must be from 16 MiB to 1 GiB".into());
        }
        if !(1..=90).contains(&self.compaction_live_percent) {
            return bad(format!(
                "compaction_live_percent: {} is not in 1..=90",
                self.compaction_live_percent
            ));
        }
        if self.checkpoint_ms == 0 || self.snapshot_every == 0 || self.repair_copies_per_node == 0 {
            return bad("checkpoint_ms, snapshot_every, repair_copies_per_node: must be more than 0".into());
        }
        Ok(self)
    }

    /// The part of it that concerns datanodes.
    pub fn attend_settings(&self) -> attend::Settings {
        attend::Settings {
            suspect_after: Duration::from_millis(self.suspect_after_ms),
            dead_after: Duration::from_millis(self.dead_after_ms),
            garbage_grace: Duration::from_millis(self.garbage_grace_ms),
            copies_per_node: self.repair_copies_per_node,
            copy_bytes_per_second: self.repair_bytes_per_second,
            compaction: self.compaction,
            compaction_live_percent: self.compaction_live_percent,
            compaction_bytes_per_second: self.compaction_bytes_per_second,
            compaction_after: Duration::from_millis(self.compaction_after_ms),
            ..attend::Settings::default()
        }
    }
}

fn check_address(address: &str) -> Result<(), Error> {
    let port =
        address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(port)) if port > 0 => Ok(()),
        _ => Err(ErrorCode::Invalid.because(format!("address {address}: want host:port"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Config {
        Config { dir: "/nowhere".into(), ..Config::default() }
    }

    #[test]
    fn what_is_left_out_follows_from_the_rest() {
        let config = base().checked().unwrap();
        assert_eq!(config.advertise, "127.0.0.1:7400");
        assert_eq!(config.peers, ["127.0.0.1:7400"]);
    }

    #[test]
    fn bad_options_are_named() {
        type Spoil = fn(&mut Config);
        let cases: [(&str, Spoil); 6] = [
            ("dir", |config| config.dir = PathBuf::new()),
            ("advertise", |config| config.listen = SocketAddr::from(([0, 0, 0, 0], 1))),
            ("peers", |config| config.peers = vec!["other:1".into()]),
            ("address", |config| config.peers = vec!["other".into()]),
            ("election_timeout_ms", |config| config.election_timeout_ms = (60, 300)),
            ("default_replication", |config| config.default_replication = 0),
        ];
        for (name, spoil) in cases {
            let mut config = base();
            spoil(&mut config);
            let error = config.checked().unwrap_err();
            assert!(error.detail.starts_with(name), "{error}");
        }
    }
}
