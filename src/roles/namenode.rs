//! `cairn namenode`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use clap::Args;

use super::{announce, follow_requests, shutdown, stillness};
use crate::args::{Connection, Timing};
use crate::config::{File, tls_dir};
use crate::exit::Usage;
use crate::output;

/// Arguments of `cairn namenode`; each overrides its key in section `[namenode]`.
#[derive(Args)]
pub struct Namenode {
    /// Where it keeps its state
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where it listens
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Its address for others (else the one it listens on, if that is not every address)
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Let everybody in, from other machines, too, when there is no TLS
    #[arg(long)]
    insecure: bool,
    /// Where it serves metrics and the dashboard over HTTP (else nowhere)
    #[arg(long, value_name = "IP:PORT")]
    http: Option<SocketAddr>,
    /// The advertised addresses of all namenodes, this one among them
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',')]
    peers: Vec<String>,
    /// Replicas of a chunk, when the cluster is formed
    #[arg(long, value_name = "N")]
    replication: Option<u32>,
    /// Size of a chunk, when the cluster is formed
    #[arg(long, value_name = "SIZE")]
    chunk_size: Option<String>,
    /// Memory for the store's cache
    #[arg(long, value_name = "SIZE")]
    cache: Option<String>,
    #[command(flatten)]
    timing: Timing,
}

/// Runs until it is told to stop.
pub async fn run(connection: Connection, args: Namenode) -> Result<u8> {
    let file = File::named(connection.config.as_deref())?;
    let mut config = file.namenode.unwrap_or_default();
    config.tls = tls_dir(&connection, config.tls);
    apply(&mut config, args)?;
    let listen = config.listen;
    let instance = if config.advertise.is_empty() { listen.to_string() } else { config.advertise.clone() };
    follow_requests(&file.trace, "namenode", &instance)?;
    let stop = shutdown()?;
    stillness::watch()?;
    tracing::info!(%listen, advertise = %config.advertise, dir = %config.dir.display(), "namenode starting");
    announce("namenode", listen);
    cairn_namenode::run(config, stop).await.map_err(|error| anyhow!("{error}"))?;
    tracing::info!("namenode stopped");
    Ok(0)
}

fn apply(config: &mut cairn_namenode::Config, args: Namenode) -> Result<()> {
    let size = |text: &str| output::parse_size(text).map_err(|error| Usage(error.to_string()));
    if let Some(dir) = args.dir {
        config.dir = dir;
    }
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    config.http = args.http.or(config.http);
    config.insecure |= args.insecure;
    if !args.peers.is_empty() {
        config.peers = args.peers;
    }
    if let Some(replication) = args.replication {
        config.default_replication = replication;
    }
    if let Some(text) = args.chunk_size {
        config.chunk_size = size(&text)?;
    }
    if let Some(text) = args.cache {
        config.cache_bytes = size(&text)? as usize;
    }
    args.timing.apply(config);
    if config.dir.as_os_str().is_empty() {
        bail!(Usage("no directory: give --dir DIR or [namenode] dir".into()));
    }
    if let Some(address) = args.advertise {
        config.advertise = address;
    }
    Ok(())
}
