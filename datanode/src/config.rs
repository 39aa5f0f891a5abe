//! A datanode's settings: plain data, as a configuration file spells them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use cairn_host::disk::{self, SharedDisk};
use cairn_host::tls;
use cairn_proto::{ErrorCode, Result};

use crate::scrub::Plan;
use crate::settings::Settings;
use crate::store::StoreConfig;

cairn_ops::settings! {
    /// Everything a datanode is told. Unknown keys are an error.
    pub struct Config {
        /// Data directories, best one a disk.
        dirs: Vec<PathBuf> = Vec::new(), "";
        /// Those of `dirs` that are emptied into the others: their disks are to be taken out.
        drain: Vec<PathBuf> = Vec::new(), "";
        /// MiB a second that is moved out of them. 0: no limit.
        drain_mib_per_second: u64 = 100, "MiB/s";
        /// Where the data plane listens.
        listen: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0), "";
        /// `host:port` under which others reach it; empty: the host's name (or the listening address) and port.
        advertise: String = String::new(), "";
        /// Addresses of all namenodes.
        namenodes: Vec<String> = Vec::new(), "";
        /// Failure domain; replicas are spread over racks.
        rack: String = "default".into(), "";
        /// Name of this machine, else its hostname: replicas are spread over machines, and a client on a host of the same name gets one here.
        host: String = String::new(), "";
        /// Bytes of each file system that are left free.
        reserve_bytes: u64 = 1 << 30, "bytes";
        /// Most bytes that all replicas together may hold: for several datanodes on one disk.
        capacity_limit: Option<u64> = None, "bytes";
        /// Where metrics are served over HTTP; nowhere unless it is given.
        http: Option<SocketAddr> = None, "";
        /// Names under which it is asked for over HTTP, besides those of `advertise` and every address.
        http_names: Vec<String> = Vec::new(), "";
        /// Directory with this node's certificate, which turns on TLS; docs/security.md tells how it is made.
        tls: Option<PathBuf> = None, "";
        /// Let everybody in, from other machines, too, when there is no TLS.
        insecure: bool = false, "";
        /// Data-plane connections at once.
        max_connections: usize = 1024, "";
        /// Milliseconds without an acknowledgement after which the next link of a chain is given up.
        chain_stall_ms: u64 = 1_200, "ms";
        /// The same while a sync is outstanding.
        sync_stall_ms: u64 = 15_000, "ms";
        /// Milliseconds to connect to another datanode.
        connect_timeout_ms: u64 = 1_000, "ms";
        /// Milliseconds a stranger has to say hello.
        handshake_timeout_ms: u64 = 10_000, "ms";
        /// Seconds after which an idle reader's connection is closed.
        idle_timeout_s: u64 = 300, "s";
        /// Whether clients on this host that run as this user or as root read replicas' files by themselves.
        short_circuit: bool = true, "";
        /// Copies that run at once.
        copies: usize = 4, "";
        /// Hours from the beginning of one pass of scrubbing to the next one's; 0: only when it is ordered.
        scrub_period_hours: u64 = 14 * 24, "hours";
        /// MiB a second that scrubbing reads; a quarter of it from a disk that clients use. 0: no limit.
        scrub_mib_per_second: u64 = 32, "MiB/s";
    }
    and {
        /// The disk that `dirs` are on: the machine's, unless somebody puts another in its place.
        disk: SharedDisk = disk::real();
    }
}

impl Config {
    /// Refuses settings that cannot work, naming the one that is wrong.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: &str| Err(ErrorCode::Invalid.because(what));
        if self.dirs.is_empty() {
            return refuse("`dirs` is empty: a datanode needs at least one data directory");
        }
        if let Some(stranger) = self.drain.iter().find(|path| !self.dirs.contains(path)) {
            return refuse(&format!("`drain` names {}, which is none of `dirs`", stranger.display()));
        }
        if self.dirs.iter().all(|path| self.drain.contains(path)) {
            return refuse(
                "`drain` names all of `dirs`: to empty the whole datanode, use `cairn node decommission`",
            );
        }
        if self.namenodes.is_empty() {
            return refuse("`namenodes` is empty: name the addresses of the namenodes");
        }
        if self.max_connections == 0 || self.copies == 0 {
            return refuse("`max_connections` and `copies` are at least 1");
        }
        let times =
            [self.chain_stall_ms, self.sync_stall_ms, self.connect_timeout_ms, self.handshake_timeout_ms];
        if times.contains(&0) || self.idle_timeout_s == 0 {
            return refuse("a timeout of 0 would refuse everything");
        }
        if !self.advertise.is_empty() && !self.advertise.contains(':') {
            return refuse("`advertise` is host:port");
        }
        let listening = [("listen", Some(self.listen)), ("http", self.http)];
        tls::check_exposure(self.tls.as_deref(), self.insecure, &listening)
            .map_err(|why| ErrorCode::Invalid.because(why))
    }

    pub(crate) fn store(&self) -> StoreConfig {
        StoreConfig {
            dirs: self.dirs.clone(),
            reserve_bytes: self.reserve_bytes,
            capacity_limit: self.capacity_limit,
            disk: self.disk.clone(),
        }
    }

    pub(crate) fn scrub(&self) -> Plan {
        Plan {
            period: Duration::from_secs(self.scrub_period_hours.saturating_mul(3600)),
            bytes_per_second: self.scrub_mib_per_second.saturating_mul(1 << 20),
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings {
            max_connections: self.max_connections,
            handshake: Duration::from_millis(self.handshake_timeout_ms),
            idle: Duration::from_secs(self.idle_timeout_s),
            connect: Duration::from_millis(self.connect_timeout_ms),
            stall: Duration::from_millis(self.chain_stall_ms),
            sync_stall: Duration::from_millis(self.sync_stall_ms),
            ..Settings::default()
        }
    }

    /// This machine's name, unless another was given.
    pub(crate) fn host_name(&self) -> String {
        if !self.host.is_empty() {
            return self.host.clone();
        }
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        name.trim().to_owned()
    }

    /// The address that others are told, given the one that was bound.
    pub(crate) fn advertised(&self, bound: SocketAddr) -> String {
        if !self.advertise.is_empty() {
            return self.advertise.clone();
        }
        if bound.ip().is_unspecified() {
            return format!("{}:{}", self.host_name(), bound.port());
        }
        bound.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_named() {
        let error = serde_json::from_str::<Config>(r#"{"dirz": []}"#).unwrap_err();
        assert!(error.to_string().contains("dirz"));
        let config: Config = serde_json::from_str(r#"{"rack": "r1", "dirs": ["/x"]}"#).unwrap();
        assert_eq!(config.rack, "r1");
        assert_eq!(config.max_connections, Config::default().max_connections);
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let good = Config { dirs: vec!["/x".into()], namenodes: vec!["a:1".into()], ..Config::default() };
        good.check().unwrap();
        for bad in [
            Config { dirs: vec![], ..good.clone() },
            Config { namenodes: vec![], ..good.clone() },
            Config { max_connections: 0, ..good.clone() },
            Config { drain: vec!["/y".into()], ..good.clone() },
            Config { drain: vec!["/x".into()], ..good.clone() },
            Config { chain_stall_ms: 0, ..good.clone() },
            Config { advertise: "nohost".into(), ..good.clone() },
            Config { listen: "0.0.0.0:1".parse().unwrap(), ..good.clone() },
        ] {
            assert_eq!(bad.check().unwrap_err().code, ErrorCode::Invalid);
        }
    }

    #[test]
    fn others_are_told_an_address_they_can_reach() {
        let config = Config { host: "box".into(), ..Config::default() };
        assert_eq!(config.advertised("0.0.0.0:9".parse().unwrap()), "box:9");
        assert_eq!(config.advertised("127.0.0.1:9".parse().unwrap()), "127.0.0.1:9");
        let named = Config { advertise: "a:1".into(), ..config };
        assert_eq!(named.advertised("0.0.0.0:9".parse().unwrap()), "a:1");
    }
}
