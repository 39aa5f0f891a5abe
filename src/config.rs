//! The one configuration file, and where a command finds its cluster.

use std::env;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cairn_ops::trace::{self, Tracing};
use serde::Deserialize;

use crate::args::Connection;
use crate::exit::Usage;

/// Where traces go, as all programs that send any are told it.
const OTLP: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// The file: one section a role, each optional. Command-line flags override it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    /// `[client]`: commands and mounts.
    pub client: ClientSection,
    /// `[namenode]`: `cairn namenode`.
    pub namenode: Option<cairn_namenode::Config>,
    /// `[datanode]`: `cairn datanode`.
    pub datanode: Option<cairn_datanode::Config>,
    /// `[mount]`: `cairn mount`.
    pub mount: MountSection,
    /// `[trace]`: all that run on.
    pub trace: TraceSection,
}

cairn_ops::settings! {
    /// `[client]`.
    pub struct ClientSection {
        /// Addresses of all namenodes, `host:port`.
        namenodes: Vec<String> = Vec::new(), "";
        /// Directory with a user's certificate, which turns on TLS; docs/security.md tells how it is made.
        tls: Option<PathBuf> = None, "";
        /// How long one operation waits through a change of leader; 60 unless given.
        operation_timeout_seconds: Option<u64> = None, "s";
        /// Open chunks a client writes to at once; 2 unless given.
        lanes: Option<usize> = None, "";
    }
}

cairn_ops::settings! {
    /// `[mount]`.
    pub struct MountSection {
        /// Refuse all changes; false unless given.
        read_only: Option<bool> = None, "";
        /// Let other users in (needs root, or `user_allow_other` in /etc/fuse.conf); true for root unless given.
        allow_other: Option<bool> = None, "";
        /// How long the kernel may believe attributes; 1000 unless given.
        attr_ttl_ms: Option<u64> = None, "ms";
        /// How long the kernel may believe names; 1000 unless given.
        entry_ttl_ms: Option<u64> = None, "ms";
        /// Session threads; as many as processors, 2 to 4, unless given.
        threads: Option<usize> = None, "";
        /// Options as `mount -o` has them (docs/mounting.md).
        options: Option<String> = None, "";
        /// Where it serves metrics over HTTP; nowhere unless it is given.
        http: Option<SocketAddr> = None, "";
        /// Names under which it is asked for over HTTP, besides every address.
        http_names: Vec<String> = Vec::new(), "";
        /// Kernel read-ahead; 4096 unless given.
        read_ahead_kib: Option<usize> = None, "KiB";
    }
}

cairn_ops::settings! {
    /// `[trace]`.
    pub struct TraceSection {
        /// What is done of a request is logged, with the request's number, when it took so long; 0: never.
        slow_ms: u64 = 1_000, "ms";
        /// A collector of traces that takes OTLP over HTTP with JSON, `http://HOST:4318`; if it is not given, the
        /// environment's `OTEL_EXPORTER_OTLP_ENDPOINT`, and without either none are sent.
        collector: Option<String> = None, "";
        /// Only one of so many requests is sent; the same number everywhere, for whole traces.
        one_of: u64 = 1, "";
    }
}

impl TraceSection {
    /// As those who follow requests are told it.
    pub fn tracing(&self) -> Tracing {
        Tracing {
            slow: Duration::from_millis(self.slow_ms),
            collector: self.collector.clone().or_else(collector_of_environment).unwrap_or_default(),
            one_of: self.one_of,
        }
    }
}

/// The collector that the environment names for all programs. It may be one that others can talk to and this one cannot.
fn collector_of_environment() -> Option<String> {
    let base = env::var(OTLP).ok().filter(|base| !base.is_empty())?;
    let collector = traces_of(&base);
    match trace::check(&collector) {
        Ok(()) => Some(collector),
        Err(why) => {
            tracing::info!("no traces are sent: {OTLP}: {why}");
            None
        }
    }
}

/// Where traces go, given where everything goes (the OTLP exporter's specification).
fn traces_of(base: &str) -> String {
    format!("{}/v1/traces", base.trim_end_matches('/'))
}

impl File {
    /// Reads a file; an unknown key is an error that names it.
    pub fn read(path: &Path) -> Result<File> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
        File::parse(&text).with_context(|| format!("in the configuration file {}", path.display()))
    }

    /// Reads the file's text.
    pub fn parse(text: &str) -> Result<File> {
        toml::from_str(text).map_err(|error| anyhow::anyhow!("{}", error.to_string().trim_end()))
    }

    /// The file that a command or a mount goes by: the one that is named, else the user's, else the system's, else an empty
    /// one.
    pub fn of(connection: &Connection) -> Result<File> {
        match File::path_of(connection) {
            Some(path) => File::read(&path),
            None => Ok(File::default()),
        }
    }

    /// Where that file is.
    pub fn path_of(connection: &Connection) -> Option<PathBuf> {
        let named = connection.config.clone().or_else(|| env_path("CAIRN_CONFIG"));
        named.or_else(|| Places::from_environment().files().find(|path| path.is_file()))
    }

    /// The file given by `--config` or `CAIRN_CONFIG`; without either, an empty one.
    pub fn named(flag: Option<&Path>) -> Result<File> {
        match flag.map(Path::to_path_buf).or_else(|| env_path("CAIRN_CONFIG")) {
            Some(path) => File::read(&path),
            None => Ok(File::default()),
        }
    }
}

fn env_path(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Directories that the look-up needs from the environment.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `~/.config`.
    pub config_home: Option<PathBuf>,
    /// `~/.local/state`.
    pub state_home: Option<PathBuf>,
    /// `~/.local/share`.
    pub data_home: Option<PathBuf>,
    /// `/etc`.
    pub system: PathBuf,
}

impl Places {
    /// As the XDG base directories say.
    pub fn from_environment() -> Places {
        let home = env_path("HOME");
        let below = |tail: &str| home.as_ref().map(|home| home.join(tail));
        Places {
            config_home: env_path("XDG_CONFIG_HOME").or_else(|| below(".config")),
            state_home: env_path("XDG_STATE_HOME").or_else(|| below(".local/state")),
            data_home: env_path("XDG_DATA_HOME").or_else(|| below(".local/share")),
            system: PathBuf::from("/etc"),
        }
    }

    /// Where a configuration file may be that nobody names: the user's, then the system's.
    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let homes = self.config_home.iter().chain([&self.system]);
        homes.map(|home| home.join("cairn/cairn.toml")).collect::<Vec<_>>().into_iter()
    }

    /// Where `cairn cluster up` leaves the address of the last local cluster.
    pub fn current(&self) -> Option<PathBuf> {
        self.state_home.as_ref().map(|state| state.join("cairn/current"))
    }

    /// Where it leaves the directory of that cluster, which stays when the cluster is stopped.
    pub fn last(&self) -> Option<PathBuf> {
        self.state_home.as_ref().map(|state| state.join("cairn/last"))
    }
}

/// What is known about the cluster before asking anybody, in order of precedence.
#[derive(Debug, Default)]
pub struct Asked<'a> {
    /// `--namenodes`.
    pub namenodes: &'a [String],
    /// `CAIRN_NAMENODES`.
    pub env_namenodes: Option<String>,
    /// `--config`.
    pub config: Option<&'a Path>,
    /// `CAIRN_CONFIG`.
    pub env_config: Option<PathBuf>,
    /// `--tls`, else `CAIRN_TLS`.
    pub tls: Option<PathBuf>,
}

impl<'a> Asked<'a> {
    /// The flags together with this process's environment.
    pub fn with_environment(connection: &'a Connection) -> Asked<'a> {
        Asked {
            namenodes: &connection.namenodes,
            env_namenodes: env::var("CAIRN_NAMENODES").ok().filter(|value| !value.trim().is_empty()),
            config: connection.config.as_deref(),
            env_config: env_path("CAIRN_CONFIG"),
            tls: tls_dir(connection, None),
        }
    }

    /// The client's settings: namenodes from the first place that names any, the rest from the file that is named, else
    /// each from the first usual file that has it, up to the one that names the namenodes.
    pub fn resolve(&self, places: &Places) -> Result<ClientSection> {
        let mut found = self.section(places)?;
        let current = places.current().filter(|current| current.is_file());
        if !self.namenodes.is_empty() {
            found.namenodes = self.namenodes.to_vec();
        } else if let Some(list) = &self.env_namenodes {
            found.namenodes = split_addresses(list);
        } else if found.namenodes.is_empty()
            && let Some(current) = &current
        {
            let file = ClientSection::current(current)?;
            found = ClientSection { namenodes: file.namenodes, tls: found.tls.or(file.tls), ..found };
        }
        found.tls = self.tls.clone().or(found.tls);
        if found.namenodes.is_empty() {
            bail!(
                "no cluster is configured; give --namenodes HOST:PORT,..., or set CAIRN_NAMENODES, or write\n\
                 \x20   [client]\n\
                 \x20   namenodes = [\"HOST:PORT\", ...]\n\
                 to ~/.config/cairn/cairn.toml or /etc/cairn/cairn.toml or a file named by --config or CAIRN_CONFIG; \
                 or start a cluster on this machine with `cairn cluster up`"
            );
        }
        for address in &found.namenodes {
            check_address(address)?;
        }
        Ok(found)
    }

    fn section(&self, places: &Places) -> Result<ClientSection> {
        if let Some(path) = self.config.or(self.env_config.as_deref()) {
            return Ok(File::read(path)?.client);
        }
        let mut found = ClientSection::default();
        for path in places.files().filter(|path| path.is_file()) {
            found = found.or(File::read(&path)?.client);
            // What a later file says may be meant for another cluster.
            if !found.namenodes.is_empty() {
                break;
            }
        }
        Ok(found)
    }
}

/// `a:1, b:2` as a list.
pub fn split_addresses(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|part| !part.is_empty()).map(String::from).collect()
}

/// An address is `host:port`.
pub fn check_address(address: &str) -> Result<(), Usage> {
    let good = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0));
    if !good {
        return Err(Usage(format!("{address:?} is not an address: HOST:PORT is expected")));
    }
    Ok(())
}

/// The directory of certificates that flag, environment or, last, a configuration file name.
pub fn tls_dir(connection: &Connection, file: Option<PathBuf>) -> Option<PathBuf> {
    connection.tls.clone().or_else(|| env_path("CAIRN_TLS")).or(file)
}

impl ClientSection {
    /// What is set here, and the rest from `other`.
    fn or(self, other: ClientSection) -> ClientSection {
        ClientSection {
            namenodes: if self.namenodes.is_empty() { other.namenodes } else { self.namenodes },
            tls: self.tls.or(other.tls),
            operation_timeout_seconds: self.operation_timeout_seconds.or(other.operation_timeout_seconds),
            lanes: self.lanes.or(other.lanes),
        }
    }

    /// Reads what [`crate::cluster`] wrote: the first line is the cluster's directory, the second its namenodes, and the
    /// third, if it is secure, the directory of a certificate.
    fn current(path: &Path) -> Result<ClientSection> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut lines = text.lines().skip(1);
        let namenodes = lines.next().map(split_addresses).unwrap_or_default();
        let tls = lines.next().filter(|line| !line.is_empty()).map(PathBuf::from);
        Ok(ClientSection { namenodes, tls, ..ClientSection::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(root: &Path) -> Places {
        Places {
            config_home: Some(root.join("config")),
            state_home: Some(root.join("state")),
            data_home: Some(root.join("data")),
            system: root.join("etc"),
        }
    }

    fn write(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn an_unknown_key_is_named_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cairn.toml");
        for text in ["[client]\nnamenode = []\n", "[cliend]\nx = 1\n", "[mount]\nreadonly = true\n"] {
            write(&path, text);
            let error = format!("{:#}", File::read(&path).unwrap_err());
            assert!(error.contains("unknown field"), "{error}");
            assert!(error.contains("cairn.toml"), "{error}");
        }
    }

    #[test]
    fn traces_go_below_the_endpoint() {
        assert_eq!(traces_of("http://localhost:4318"), "http://localhost:4318/v1/traces");
        assert_eq!(traces_of("http://localhost:4318/otlp/"), "http://localhost:4318/otlp/v1/traces");
    }

    #[test]
    fn files_without_namenodes_count_until_one_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let (user, system) =
            (dir.path().join("config/cairn/cairn.toml"), dir.path().join("etc/cairn/cairn.toml"));
        write(&user, "[client]\nlanes = 5\n");
        write(&system, "[client]\nnamenodes = [\"system:1\"]\ntls = \"/etc/tls\"\nlanes = 7\n");
        let found = Asked::default().resolve(&places).unwrap();
        assert_eq!((found.lanes, found.namenodes), (Some(5), vec!["system:1".to_owned()]));
        assert_eq!(found.tls.as_deref(), Some(Path::new("/etc/tls")));
        write(&user, "[client]\nnamenodes = [\"user:1\"]\n");
        let found = Asked::default().resolve(&places).unwrap();
        assert_eq!((found.lanes, found.tls), (None, None), "the system's file is about another cluster");
    }

    #[test]
    fn the_nearest_place_wins() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let list = |asked: &Asked<'_>| asked.resolve(&places).unwrap().namenodes;
        assert!(Asked::default().resolve(&places).unwrap_err().to_string().contains("CAIRN_NAMENODES"));
        write(&places.current().unwrap(), "/some/dir\nlocal:1,local:2\n");
        assert_eq!(list(&Asked::default()), ["local:1", "local:2"]);
        write(&dir.path().join("etc/cairn/cairn.toml"), "[client]\nnamenodes = [\"system:1\"]\n");
        assert_eq!(list(&Asked::default()), ["system:1"]);
        write(&dir.path().join("config/cairn/cairn.toml"), "[client]\nnamenodes = [\"user:1\"]\n");
        assert_eq!(list(&Asked::default()), ["user:1"]);
        let named = dir.path().join("named.toml");
        write(&named, "[client]\nnamenodes = [\"named:1\"]\nlanes = 2\n");
        assert_eq!(list(&Asked { config: Some(&named), ..Asked::default() }), ["named:1"]);
        let env =
            Asked { config: Some(&named), env_namenodes: Some("env:1, env:2".into()), ..Asked::default() };
        assert_eq!(list(&env), ["env:1", "env:2"]);
        assert_eq!(env.resolve(&places).unwrap().lanes, Some(2));
        let flag = ["flag:1".to_string()];
        assert_eq!(list(&Asked { namenodes: &flag, ..env }), ["flag:1"]);
    }

    #[test]
    fn a_bad_address_is_refused() {
        assert!(check_address("host:80").is_ok());
        assert!(check_address("[::1]:80").is_ok());
        for address in ["host", "host:", ":80", "host:0", "host:99999"] {
            assert!(check_address(address).is_err(), "{address}");
        }
    }
}
