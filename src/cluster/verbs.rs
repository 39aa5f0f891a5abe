//! The commands of `cairn cluster`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use nix::sys::signal::Signal;

use super::layout::{FILE, Layout, Role};
use super::local::{LocalCluster, current_dir};
use super::up::{self, Up};
use super::{ready, show};
use crate::config::Places;
use crate::exit::Usage;
use crate::output;

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

impl Named {
    /// Their cluster, if it has them all: of nodes that are named wrongly none is touched.
    fn cluster(&self) -> Result<LocalCluster> {
        let cluster = LocalCluster::open(&self.place.existing()?)?;
        for name in &self.nodes {
            cluster.layout.node(name)?;
        }
        Ok(cluster)
    }
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
    pub fn place(&self) -> Option<PathBuf> {
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
        Verb::Up(args) => up::up(args).await?,
        Verb::Status(args) => status(args).await?,
        Verb::Kill(args) => end(&args, Signal::SIGKILL)?,
        Verb::Stop(args) => end(&args, Signal::SIGTERM)?,
        Verb::Start(args) => {
            let mut cluster = args.cluster()?;
            let mut started = Vec::new();
            for name in &args.nodes {
                if cluster.start(name)? {
                    started.push(name.clone());
                }
            }
            if args.nodes.iter().any(|name| name == "mount") {
                ready::wait_for_mount(&cluster, up::PATIENCE).await?;
            }
            ready::stay(&cluster, &started).await?;
        }
        Verb::Wipe(args) => {
            let cluster = args.cluster()?;
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
            let name = cluster.add(role)?;
            println_quietly(&name)?;
            ready::stay(&cluster, &[name]).await?;
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
    let cluster = args.cluster()?;
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
