//! What a namenode is told when it starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use cairn_host::Host;
use cairn_host::disk::{self, SharedDisk};
use cairn_host::tls;
use cairn_proto::limits::{CHUNK_SIZE, MAX_CHUNK_SIZE, MAX_REPLICATION, REPLICATION, SESSION_LEASE_MS};
use cairn_proto::{Error, ErrorCode};

use crate::attend;

cairn_ops::settings! {
    /// Options of a namenode: `[namenode]` of the configuration file.
    pub struct Config {
        /// Where everything is kept; one process at a time.
        dir: PathBuf = PathBuf::new(), "";
        /// Where it listens.
        listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7400)), "";
        /// Its address as others reach it, `host:port`; else `listen`, unless that is 0.0.0.0.
        advertise: String = String::new(), "";
        /// The advertised addresses of all namenodes, this one among them. Only a namenode with an empty directory looks
        /// at the others: to form a cluster with them, or to join theirs. Without them it forms one of its own.
        peers: Vec<String> = Vec::new(), "";
        /// Replicas of a chunk, for a cluster that is being formed; 1 to 16.
        default_replication: u32 = REPLICATION, "";
        /// Bytes of a chunk, for a cluster that is being formed; 1 MiB to 1 GiB.
        chunk_size: u64 = CHUNK_SIZE, "bytes";
        /// Where metrics and the dashboard are served over HTTP; nowhere unless it is given.
        http: Option<SocketAddr> = None, "";
        /// Names under which browsers ask for it, besides those of `advertise` and every address.
        http_names: Vec<String> = Vec::new(), "";
        /// Directory with this node's certificate, which turns on TLS; docs/security.md tells how it is made.
        tls: Option<PathBuf> = None, "";
        /// Let everybody in, from other machines, too, when there is no TLS.
        insecure: bool = false, "";
        /// Connections at once, of clients, datanodes and namenodes; strangers make room for them. At least 16.
        max_connections: usize = 4096, "";
        /// Memory for the store's cache, in bytes.
        cache_bytes: usize = 256 << 20, "bytes";
        /// Shortest and longest silence of the leader before another one is elected, in milliseconds; the former at least twice `heartbeat_ms`.
        election_timeout_ms: (u64, u64) = (150, 300), "ms";
        /// How often the leader is heard, in milliseconds.
        heartbeat_ms: u64 = 50, "ms";
        /// How long a client's session lives without a renewal, in milliseconds; at least 1000.
        session_lease_ms: u64 = SESSION_LEASE_MS, "ms";
        /// How long a datanode is silent before it gets no new chunks, in milliseconds.
        suspect_after_ms: u64 = attend::Settings::default().suspect_after.as_millis() as u64, "ms";
        /// How long a datanode is silent before its replicas are made up for, in milliseconds; at least `suspect_after_ms`.
        dead_after_ms: u64 = attend::Settings::default().dead_after.as_millis() as u64, "ms";
        /// How long a sealed chunk without live bytes is kept, in milliseconds: three times as long as clients wait with an operation (`timeout`), since one that takes longer than this may fail. At least `session_lease_ms`.
        garbage_grace_ms: u64 = attend::Settings::default().garbage_grace.as_millis() as u64, "ms";
        /// Copies one datanode takes part in at once while chunks are repaired.
        repair_copies_per_node: usize = attend::Settings::default().copies_per_node, "";
        /// Bytes a second repair may copy for each live datanode; 0: no limit.
        repair_bytes_per_second: u64 = attend::Settings::default().copy_bytes_per_second, "bytes/s";
        /// Whether chunks that are mostly garbage, or many and small, are compacted.
        compaction: bool = attend::Settings::default().compaction, "";
        /// A sealed chunk is mostly garbage when less of it is alive than this, in percent, 1 to 90.
        compaction_live_percent: u32 = attend::Settings::default().compaction_live_percent, "percent";
        /// Bytes a second compaction may write for each live datanode; 0: no limit.
        compaction_bytes_per_second: u64 = attend::Settings::default().compaction_bytes_per_second, "bytes/s";
        /// How long a chunk stays unchanged before it is compacted, in milliseconds.
        compaction_after_ms: u64 = attend::Settings::default().compaction_after.as_millis() as u64, "ms";
        /// How often the store is made durable, in milliseconds; the log covers the time between.
        checkpoint_ms: u64 = 2_000, "ms";
        /// Log entries between two points up to which the log may be purged.
        snapshot_every: u64 = 10_000, "";
        /// Log entries kept for followers that lag, although the store has them.
        log_keep: u64 = 5_000, "";
        /// Bytes of one segment file of the log, 16 MiB to 1 GiB.
        log_segment_bytes: u32 = 32 << 20, "bytes";
        /// Bytes of recent log entries kept in memory.
        log_recent_bytes: usize = 32 << 20, "bytes";
    }
    and {
        /// Its network and its clock: the machine's, unless somebody puts others in their place.
        host: Host = Host::default();
        /// The disk that `dir` is on: the machine's, unless somebody puts another in its place.
        disk: SharedDisk = disk::real();
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
        let listening = [("listen", Some(self.listen)), ("http", self.http)];
        tls::check_exposure(self.tls.as_deref(), self.insecure, &listening)
            .map_err(|why| ErrorCode::Invalid.because(why))?;
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
            capabilities: self.tls.is_some(),
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
        let cases: [(&str, Spoil); 7] = [
            ("dir", |config| config.dir = PathBuf::new()),
            ("advertise", |config| config.listen = SocketAddr::from(([0, 0, 0, 0], 1))),
            ("peers", |config| config.peers = vec!["other:1".into()]),
            ("address", |config| config.peers = vec!["other".into()]),
            ("election_timeout_ms", |config| config.election_timeout_ms = (60, 300)),
            ("default_replication", |config| config.default_replication = 0),
            ("http", |config| config.http = Some(SocketAddr::from(([0, 0, 0, 0], 1)))),
        ];
        for (name, spoil) in cases {
            let mut config = base();
            spoil(&mut config);
            let error = config.checked().unwrap_err();
            assert!(error.detail.starts_with(name), "{error}");
        }
    }
}
