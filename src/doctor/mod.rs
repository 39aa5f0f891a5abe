//! `cairn doctor`: checks how this machine is set up, the way to the namenodes, and how the cluster is.
//!
//! Each part first looks, which is input and output, then judges what was seen, which is not. What can be found has a
//! name ([`cairn_ops::code`]) and a section in `docs/health.md`.

mod certificates;
mod cluster;
mod disk;
mod finding;
mod machine;
mod port;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use cairn_client::Probe;
use cairn_ops::code::Code;
use clap::{Args, ValueEnum};
use futures::future::join_all;

use self::disk::Purpose;
use self::finding::Findings;
use crate::args::Connection;
use crate::client;
use crate::config::{Asked, File, Places};
use crate::exit::Usage;
use crate::output;

/// How long a namenode may take to answer, and the leader to tell the status.
const PATIENCE: Duration = Duration::from_secs(5);
/// Files of a data directory that a datanode keeps open, with some to spare.
const FILES_OF_DIRECTORY: u64 = 1024;
/// What a role opens beside connections and chunks.
const FILES_OF_ROLE: u64 = 256;

/// Arguments of `cairn doctor`.
#[derive(Args)]
pub struct Doctor {
    /// Check only this machine; ask neither namenodes nor the cluster
    #[arg(long)]
    local: bool,
    /// Check the set-up of this role (else of those that the configuration file has a section for)
    #[arg(long, value_name = "ROLE")]
    role: Vec<Role>,
    /// Show only what is wrong
    #[arg(short, long)]
    quiet: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What a machine can be set up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// A namenode
    Namenode,
    /// A datanode
    Datanode,
    /// Mounts
    Mount,
}

/// Checks; returns the exit code that tells the result: 0 nothing is wrong, 1 warnings, 2 failures.
pub async fn run(connection: &Connection, args: Doctor) -> Result<u8> {
    let mut found = Findings::default();
    let file = configuration(connection, &mut found);
    let asked = Asked::with_environment(connection);
    let section = asked.resolve(&Places::from_environment());
    if let Ok(section) = &section {
        certificates::judge(certificates::CLIENT, section.tls.as_deref(), &mut found);
    }
    let mut namenodes = section.as_ref().map(|section| section.namenodes.clone()).unwrap_or_default();
    if let Some((_, file)) = &file {
        let own = file.datanode.iter().flat_map(|datanode| &datanode.namenodes);
        let peers = file.namenode.iter().flat_map(|namenode| &namenode.peers);
        if namenodes.is_empty() {
            namenodes = own.chain(peers).cloned().collect();
            namenodes.sort();
            namenodes.dedup();
        }
    }
    let meant: Vec<SocketAddr> =
        namenodes.iter().filter_map(|address| port::resolve(address).ok()).flatten().collect();
    let (has, file) = file.unwrap_or_default();
    let wants = |role: Role| {
        if args.role.is_empty() { has.contains(&role) } else { args.role.contains(&role) }
    };
    if wants(Role::Namenode) {
        namenode(file.namenode.unwrap_or_default(), &meant, &mut found);
    }
    if wants(Role::Datanode) {
        datanode(file.datanode.unwrap_or_default(), &namenodes, &meant, &mut found);
    }
    // Where nothing else is set up, a client is, which may want to mount.
    if wants(Role::Mount) || args.role.is_empty() && has.is_empty() {
        let others = file.mount.allow_other.unwrap_or(false);
        machine::judge_fuse(&machine::look_at_fuse(), wants(Role::Mount), others, &mut found);
    }
    if !args.local {
        if let Err(error) = &section
            && error.downcast_ref::<Usage>().is_some()
        {
            found.fail("namenodes", Code::ConfigInvalid, format!("{error:#}"));
        } else if namenodes.is_empty() {
            let text = "nothing says where the namenodes are";
            found.fail("namenodes", Code::NamenodesNotConfigured, text);
        } else {
            let tls = section.ok().and_then(|section| section.tls);
            cluster(&there(connection, &namenodes, tls), &mut found).await;
        }
    }
    if args.json {
        output::print_json(&found.as_json())?;
    } else {
        let mut out = output::stdout();
        out.write_all(found.render(args.quiet).as_bytes())?;
        out.flush()?;
    }
    Ok(found.exit_code())
}

/// Reads the file that the roles and commands would read, and which sections it has.
fn configuration(connection: &Connection, found: &mut Findings) -> Option<(Vec<Role>, File)> {
    let Some(path) = File::path_of(connection) else {
        found.fine("configuration", "no file; everything is as built in");
        return None;
    };
    let shown = path.display();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            let text = format!("{shown}: {}", crate::exit::io_text(&error));
            found.fail("configuration", Code::ConfigInvalid, text);
            return None;
        }
    };
    let file = match File::parse(&text) {
        Ok(file) => file,
        Err(error) => {
            let text = format!("{shown}: {}", format!("{error:#}").replace('\n', "\n        "));
            found.fail("configuration", Code::ConfigInvalid, text);
            return None;
        }
    };
    let sections: toml::Table = toml::from_str(&text).unwrap_or_default();
    let names: Vec<&str> = sections.keys().map(String::as_str).collect();
    found.fine("configuration", format!("{shown}: sections {}", names.join(", ")));
    let roles = [Role::Namenode, Role::Datanode, Role::Mount];
    let has =
        |role: &Role| role.to_possible_value().is_some_and(|value| sections.contains_key(value.get_name()));
    Some((roles.into_iter().filter(has).collect(), file))
}

fn namenode(config: cairn_namenode::Config, namenodes: &[SocketAddr], found: &mut Findings) {
    let role = "namenode";
    let config = match config.checked() {
        Ok(config) => config,
        Err(error) => {
            let text = format!("[namenode] {}", error.detail);
            return found.fail(role, Code::ConfigInvalid, text);
        }
    };
    disk::judge(&[disk::look(&config.dir)], Purpose::namenode(), found);
    certificates::judge(role, config.tls.as_deref(), found);
    let pid = port::judge(role, "listen", config.listen, &port::look(config.listen), found);
    if let Some(http) = config.http {
        port::judge(role, "http", http, &port::look(http), found);
    }
    let meant = port::resolve(&config.advertise);
    port::judge_advertised(role, &config.advertise, &meant, namenodes, found);
    let wanted = config.max_connections as u64 + FILES_OF_ROLE;
    machine::judge_open_files(role, machine::open_files(pid), wanted, found);
}

fn datanode(
    mut config: cairn_datanode::Config,
    addresses: &[String],
    namenodes: &[SocketAddr],
    found: &mut Findings,
) {
    let role = "datanode";
    if config.namenodes.is_empty() {
        config.namenodes = addresses.to_vec();
    }
    if let Err(error) = config.check() {
        found.fail(role, Code::ConfigInvalid, format!("[datanode] {}", error.detail));
    }
    let seen: Vec<disk::Seen> = config.dirs.iter().map(|dir| disk::look(dir)).collect();
    disk::judge(&seen, Purpose::datanode(config.reserve_bytes), found);
    certificates::judge(role, config.tls.as_deref(), found);
    let pid = port::judge(role, "listen", config.listen, &port::look(config.listen), found);
    if let Some(http) = config.http {
        port::judge(role, "http", http, &port::look(http), found);
    }
    if !config.advertise.is_empty() {
        let meant = port::resolve(&config.advertise);
        port::judge_advertised(role, &config.advertise, &meant, namenodes, found);
    }
    let connections = (config.max_connections as u64).saturating_mul(2);
    let wanted = connections.saturating_add(FILES_OF_DIRECTORY * config.dirs.len() as u64 + FILES_OF_ROLE);
    machine::judge_open_files(role, machine::open_files(pid), wanted, found);
}

async fn cluster(there: &Connection, found: &mut Findings) {
    let patience = there.timeout.unwrap_or(PATIENCE).min(PATIENCE);
    if there.tls.as_deref().is_some_and(certificates::is_for_another) {
        return found.fine("namenodes", "not asked: the client's certificate is for another user");
    }
    let machine = match client::settings("doctor", there, None) {
        Ok(config) => config.machine,
        Err(error) => return found.fail("tls", Code::CertificateUnusable, format!("{error:#}")),
    };
    let probes = there.namenodes.iter().map(|address| {
        let machine = &machine;
        async move { (address.clone(), Probe::of(address, machine, patience).await) }
    });
    if !cluster::judge_namenodes(&join_all(probes).await, found) {
        return;
    }
    let status = async {
        let cluster = client::connect("doctor", there, Some(patience)).await?;
        cluster.status().await.map_err(|error| anyhow::anyhow!("{error}"))
    };
    match status.await {
        Ok(status) => cluster::judge_cluster(&status, found),
        Err(error) => found.fail("cluster", Code::ClusterUnreachable, format!("{error:#}")),
    }
}

/// The way to the cluster at these addresses, with the certificate that was found together with them, if they were: a
/// role may know addresses where clients know none.
fn there(connection: &Connection, namenodes: &[String], tls: Option<PathBuf>) -> Connection {
    let tls = tls.or_else(|| connection.tls.clone());
    Connection { namenodes: namenodes.to_vec(), tls, ..connection.clone() }
}
