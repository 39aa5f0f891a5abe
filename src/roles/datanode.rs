//! `cairn datanode`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use clap::Args;

use super::{follow_requests, shutdown};
use crate::args::Connection;
use crate::config::{Asked, File, Places, check_address, tls_dir};
use crate::exit::Usage;
use crate::output;

/// Arguments of `cairn datanode`; each overrides its key in section `[datanode]`.
#[derive(Args)]
pub struct Datanode {
    /// Where it keeps chunks; several times for several disks
    #[arg(long, value_name = "DIR")]
    dir: Vec<PathBuf>,
    /// Move what is kept in this one of its directories to the others, so that its disk can be taken out
    #[arg(long, value_name = "DIR")]
    drain: Vec<PathBuf>,
    /// Where it listens
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Its address for others (else the one it listens on, or, if that is every address, this host's name)
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Let everybody in, from other machines, too, when there is no TLS
    #[arg(long)]
    insecure: bool,
    /// Where it serves metrics over HTTP (else nowhere)
    #[arg(long, value_name = "IP:PORT")]
    http: Option<SocketAddr>,
    /// The rack it stands in; replicas are spread over racks
    #[arg(long, value_name = "NAME")]
    rack: Option<String>,
    /// The machine it runs on (else this host's name); replicas are spread over machines
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Space on each disk that it leaves free
    #[arg(long, value_name = "SIZE")]
    reserve: Option<String>,
    /// Most space that its chunks may take
    #[arg(long, value_name = "SIZE")]
    capacity: Option<String>,
    /// Do not let clients on this machine read the chunks' files by themselves
    #[arg(long)]
    no_short_circuit: bool,
}

/// Runs until it is told to stop.
pub async fn run(connection: Connection, args: Datanode) -> Result<u8> {
    let file = File::named(connection.config.as_deref())?;
    let mut config = file.datanode.unwrap_or_default();
    config.tls = tls_dir(&connection, config.tls);
    apply(&mut config, args)?;
    if !connection.namenodes.is_empty() || config.namenodes.is_empty() {
        let asked = Asked::with_environment(&connection);
        config.namenodes = asked.resolve(&Places::from_environment())?.namenodes;
    }
    let instance =
        if config.advertise.is_empty() { config.listen.to_string() } else { config.advertise.clone() };
    follow_requests(&file.trace, "datanode", &instance)?;
    let stop = shutdown()?;
    tracing::info!(listen = %config.listen, namenodes = ?config.namenodes, "datanode starting");
    cairn_datanode::run(config, stop).await.map_err(|error| anyhow!("{error}"))?;
    Ok(0)
}

fn apply(config: &mut cairn_datanode::Config, args: Datanode) -> Result<()> {
    let size = |text: &str| output::parse_size(text).map_err(|error| Usage(error.to_string()));
    if !args.dir.is_empty() {
        config.dirs = args.dir;
    }
    if !args.drain.is_empty() {
        config.drain = args.drain;
    }
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    config.http = args.http.or(config.http);
    config.insecure |= args.insecure;
    if let Some(rack) = args.rack {
        config.rack = rack;
    }
    if let Some(host) = args.host {
        config.host = host;
    }
    if let Some(text) = args.reserve {
        config.reserve_bytes = size(&text)?;
    }
    if let Some(text) = args.capacity {
        config.capacity_limit = Some(size(&text)?);
    }
    config.short_circuit &= !args.no_short_circuit;
    if config.dirs.is_empty() {
        bail!(Usage("no directory: give --dir DIR (once for each disk) or [datanode] dirs".into()));
    }
    if let Some(address) = args.advertise {
        config.advertise = address;
    }
    let advertised = Some(&config.advertise).filter(|address| !address.is_empty());
    for address in advertised.into_iter().chain(&config.namenodes) {
        check_address(address)?;
    }
    Ok(())
}
