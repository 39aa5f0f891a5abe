//! The commands of `cairn cluster`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use nix::sys::signal::Signal;

use super::layout::{FILE, Layout, Role, Shape};
use super::local::{LocalCluster, current_dir};
use super::{ready, show};
use crate::config::Places;
use crate::exit::{self, Usage};
use crate::output;

/// How long a cluster may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// `cairn cluster ...`.
#[derive(Subcommand)]
pub enum Verb {
    /// Start a cluster, or what does not run of one
    Up(Up),
    /// Show its processes
    Status(Status),
    /// Kill a node without warning (SIGKILL)
    Kill(Named),
    /// Stop a node in order (SIGTERM)
    Stop(Named),
    /// Start a node that does not run
    Start(Named),
    /// Delete the data of a node that does not run
    Wipe(Named),
    /// Add a node and start it
    Add(Add),
    /// Stop everything; the data stays
    Down(InDir),
    /// Stop everything and delete the data
    Rm(InDir),
}

/// Which cluster is meant.
#[derive(Args)]
pub struct InDir {
    /// The cluster's directory (else CAIRN_CLUSTER_DIR, else the one brought up last)
    #[arg(long, value_name = "DIR", env = "CAIRN_CLUSTER_DIR")]
    dir: Option<PathBuf>,
}

/// A new cluster.
#[derive(Args)]
pub struct Up {
    #[command(flatten)]
    place: InDir,
    /// How many namenodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    namenodes: u16,
    /// How many datanodes
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=64))]
    datanodes: u16,
    /// How many racks the datanodes stand in
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    racks: u16,
    /// Replicas of a chunk (3, or as many as there are datanodes)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    replication: Option<u32>,
    /// Most space each datanode takes
    #[arg(long, value_name = "SIZE")]
    capacity: Option<String>,
    /// Size of a chunk
    #[arg(long, value_name = "SIZE")]
    chunk_size: Option<String>,
    /// How long a datanode is silent before it is dead
    #[arg(long, value_name = "SECONDS", value_parser = crate::args::seconds)]
    dead_after: Option<Duration>,
    /// How long a client is silent before its session, with its locks, is over (at least 1)
    #[arg(long, value_name = "SECONDS", value_parser = crate::args::seconds)]
    session_lease: Option<Duration>,
    /// How long a chunk is kept that no file names any more (at least a session's lease)
    #[arg(long, value_name = "SECONDS", value_parser = crate::args::seconds)]
    garbage_grace: Option<Duration>,
    /// How long a chunk stays unchanged before it is compacted
    #[arg(long, value_name = "SECONDS", value_parser = crate::args::seconds)]
    compact_after: Option<Duration>,
    /// Clients read by way of the datanodes, as those on other machines do, and not the chunks' files by themselves
    #[arg(long)]
    no_short_circuit: bool,
    /// Make an authority and certificates, and have TLS on every connection
    #[arg(long)]
    secure: bool,
    /// Mount it on this directory
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
    /// Ports from this one on (else free ones)
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    base_port: u16,
}

/// A node by its name.
#[derive(Args)]
pub struct Named {
    /// nn1, dn2, mount, ...
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
    #[command(flatten)]
    place: InDir,
}

/// What to show.
#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    place: InDir,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What to add.
#[derive(Args)]
pub struct Add {
    /// What kind of node
    kind: Kind,
    #[command(flatten)]
    place: InDir,
}

/// Nodes that can be added.
#[derive(Clone, Copy, ValueEnum)]
pub enum Kind {
    /// A datanode
    Datanode,
    /// A namenode
    Namenode,
}

impl InDir {
    fn existing(&self) -> Result<PathBuf> {
        match self.place() {
            Some(dir) if dir.join(FILE).exists() => Ok(dir),
            Some(dir) => bail!("there is no cluster in {}; `cairn cluster up` makes one", dir.display()),
            None => bail!(Usage("no cluster directory: give --dir DIR".into())),
        }
    }
}

impl InDir {
    /// The one that is named, or that was brought up last, or the usual one.
    fn place(&self) -> Option<PathBuf> {
        let places = Places::from_environment();
        let last = || {
            let known = [places.current(), places.last()].into_iter().flatten();
            known.filter_map(|file| current_dir(&file)).find(|dir| dir.join(FILE).exists())
        };
        self.dir.clone().or_else(last).or_else(|| default_dir(&places))
    }
}

fn default_dir(places: &Places) -> Option<PathBuf> {
    places.data_home.as_ref().map(|data| data.join("cairn/cluster"))
}

/// Runs a command of `cairn cluster`.
pub async fn run(verb: Verb) -> Result<u8> {
    match verb {
        Verb::Up(args) => up(args).await?,
        Verb::Status(args) => status(args).await?,
        Verb::Kill(args) => end(&args, Signal::SIGKILL)?,
        Verb::Stop(args) => end(&args, Signal::SIGTERM)?,
        Verb::Start(args) => {
            let mut cluster = LocalCluster::open(&args.place.existing()?)?;
            let mut started = Vec::new();
            for name in &args.nodes {
                if cluster.start(name)? {
                    started.push(name.clone());
                }
            }
            if args.nodes.iter().any(|name| name == "mount") {
                ready::wait_for_mount(&cluster, PATIENCE).await?;
            }
            ready::stay(&cluster, &started).await?;
        }
        Verb::Wipe(args) => {
            let cluster = LocalCluster::open(&args.place.existing()?)?;
            for name in &args.nodes {
                cluster.wipe(name)?;
            }
        }
        Verb::Add(args) => {
            let mut cluster = LocalCluster::open(&args.place.existing()?)?;
            let role = match args.kind {
                Kind::Datanode => Role::Datanode,
                Kind::Namenode => Role::Namenode,
            };
            println_quietly(&cluster.add(role)?)?;
        }
        Verb::Down(place) => LocalCluster::open(&place.existing()?)?.down()?,
        Verb::Rm(place) => {
            let cluster = LocalCluster::open(&place.existing()?)?;
            cluster.down()?;
            cluster.delete()?;
        }
    }
    Ok(0)
}

fn println_quietly(line: &str) -> Result<()> {
    let mut out = output::stdout();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

fn end(args: &Named, signal: Signal) -> Result<()> {
    let cluster = LocalCluster::open(&args.place.existing()?)?;
    for name in &args.nodes {
        cluster.end(name, signal)?;
    }
    Ok(())
}

async fn status(args: Status) -> Result<()> {
    // Read without the lock: a look must not wait for a start.
    let dir = args.place.existing()?.canonicalize()?;
    let layout = Layout::read(&dir)?;
    let leader = show::leader(&dir, &layout).await;
    if args.json {
        return output::print_json(&show::as_json(&dir, &layout, leader.as_deref()));
    }
    let mut out = output::stdout();
    write!(out, "{}", show::table(&dir, &layout, leader.as_deref()))?;
    out.flush()?;
    Ok(())
}

async fn up(args: Up) -> Result<()> {
    let place = args.place.place();
    let dir = place.ok_or_else(|| Usage("no cluster directory: give --dir DIR (HOME is not set)".into()))?;
    let mut cluster = if dir.join(FILE).exists() {
        exit::say(format_args!(
            "cairn: cluster: there is a cluster in {}; starting what does not run",
            dir.display()
        ));
        let mut cluster = LocalCluster::open(&dir)?;
        if let Some(mount) = &args.mount {
            cluster.set_mount(mount)?;
        }
        cluster
    } else {
        LocalCluster::create(&dir, shape(&args)?, args.mount.as_deref())?
    };
    // Also if it does not come up: whoever wants to stop it must find it.
    cluster.make_last()?;
    let client = start_all(&mut cluster, PATIENCE).await?;
    cluster.make_current()?;
    let status = client.status().await.map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut out = output::stdout();
    let cluster_id = status.fs.unwrap_or_default().cluster_id;
    writeln!(out, "cluster {cluster_id} is up in {}", cluster.dir().display())?;
    write!(out, "{}", show::table(cluster.dir(), &cluster.layout, None))?;
    write!(out, "{}", hints(&cluster))?;
    out.flush()?;
    let _ = client.close().await;
    Ok(())
}

/// Starts every node and waits until the cluster works; the mount comes last, because it needs the others.
pub async fn start_all(cluster: &mut LocalCluster, patience: Duration) -> Result<cairn_client::Cluster> {
    let names: Vec<String> = cluster
        .layout
        .nodes
        .iter()
        .filter(|node| node.role != Role::Mount)
        .map(|node| node.name.clone())
        .collect();
    let mut started = Vec::new();
    for name in names {
        if cluster.start(&name)? {
            started.push(name);
        }
    }
    let client = ready::wait_for_nodes(cluster, patience).await.context("the cluster did not come up")?;
    ready::stay(cluster, &started).await.context("the cluster did not come up")?;
    if cluster.layout.mount_point().is_some() {
        cluster.start("mount")?;
        ready::wait_for_mount(cluster, patience).await.context("the mount did not come up")?;
    }
    Ok(client)
}

fn shape(args: &Up) -> Result<Shape> {
    let size = |text: &Option<String>| match text {
        Some(text) => output::parse_size(text).map(Some).map_err(|error| Usage(error.to_string())),
        None => Ok(None),
    };
    if args.namenodes.is_multiple_of(2) {
        exit::say("cairn: cluster: an even number of namenodes survives no more failures than one less");
    }
    Ok(Shape {
        namenodes: usize::from(args.namenodes),
        datanodes: usize::from(args.datanodes),
        racks: usize::from(args.racks),
        replication: args.replication.unwrap_or(u32::from(args.datanodes).clamp(1, 3)),
        capacity: size(&args.capacity)?,
        chunk_size: size(&args.chunk_size)?,
        dead_after_ms: args.dead_after.map(|silence| silence.as_millis() as u64),
        session_lease_ms: args.session_lease.map(|silence| silence.as_millis() as u64),
        garbage_grace_ms: args.garbage_grace.map(|grace| grace.as_millis() as u64),
        compact_after_ms: args.compact_after.map(|quiet| quiet.as_millis() as u64),
        short_circuit: !args.no_short_circuit,
        base_port: args.base_port,
        secure: args.secure,
    })
}

/// What to try next.
pub fn hints(cluster: &LocalCluster) -> String {
    let program = program();
    let dir = shown_dir(cluster.dir());
    let mut text = String::from("\ntry:\n");
    let mut line = |command: String, what: &str| text.push_str(&format!("  {command:<44} {what}\n"));
    line(format!("{program} put FILE /"), "copy a file in");
    line(format!("{program} ls -l /"), "see it");
    line(format!("{program} top"), "watch the cluster");
    line(format!("{program} cluster kill dn1"), "kill a datanode and watch it heal");
    if let Some(mount) = cluster.layout.mount_point() {
        line(format!("ls {}", mount.display()), "the same files, mounted");
    }
    line(format!("{program} cluster down"), "stop it; `cluster up` starts it again");
    if let Some(dashboard) = cluster.layout.dashboard() {
        text.push_str(&format!("dashboard {dashboard}\n"));
    }
    match cluster.client_tls() {
        Some(tls) => text.push_str(&format!("TLS is on; certificates are in {dir}/ca, yours in {}\n", tls.display())),
        None => text.push_str("INSECURE: TLS is off, so whoever reaches its ports on this machine can be anybody (up --secure)\n"),
    }
    text.push_str(&format!("from elsewhere: export CAIRN_CONFIG={dir}/cairn.toml\n"));
    text
}

fn shown_dir(dir: &Path) -> String {
    dir.display().to_string()
}

/// How this program was called, so that a hint can be pasted.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "cairn".into())
}
