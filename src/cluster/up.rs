//! `cairn cluster up`: makes a cluster, or starts what does not run of one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::layout::{FILE, Role, Shape};
use super::local::LocalCluster;
use super::verbs::InDir;
use super::{ready, show};
use crate::args::{Timing, millis};
use crate::exit::{self, Usage};
use crate::output;

/// How long a cluster may take to come up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A new cluster.
#[derive(Args)]
pub struct Up {
    #[command(flatten)]
    place: InDir,
    /// How many namenodes (3)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=9))]
    namenodes: Option<u16>,
    /// How many datanodes (4)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=64))]
    datanodes: Option<u16>,
    /// How many racks the datanodes stand in (1)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    racks: Option<u16>,
    /// Replicas of a chunk (3, or as many as there are datanodes)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    replication: Option<u32>,
    /// Most space each datanode takes
    #[arg(long, value_name = "SIZE")]
    capacity: Option<String>,
    /// Size of a chunk
    #[arg(long, value_name = "SIZE")]
    chunk_size: Option<String>,
    #[command(flatten)]
    timing: Timing,
    /// Clients read by way of the datanodes, as those on other machines do, and not the chunks' files by themselves
    #[arg(long)]
    no_short_circuit: bool,
    /// Make an authority and certificates, and have TLS on every connection
    #[arg(long)]
    secure: bool,
    /// Mount it on this directory
    #[arg(long, value_name = "DIR")]
    mount: Option<PathBuf>,
    /// Mount it no more
    #[arg(long, conflicts_with = "mount")]
    no_mount: bool,
    /// Ports from this one on (else free ones)
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,
}

/// Runs `cairn cluster up`.
pub async fn up(args: Up) -> Result<()> {
    let place = args.place.place();
    let dir = place.ok_or_else(|| Usage("no cluster directory: give --dir DIR (HOME is not set)".into()))?;
    let mut cluster = if dir.join(FILE).exists() {
        exit::say(format_args!(
            "cairn: cluster: there is a cluster in {}; starting what does not run",
            dir.display()
        ));
        let mut cluster = LocalCluster::open(&dir)?;
        same_shape(&args, &cluster.layout.shape)?;
        if args.no_mount {
            cluster.remove_mount()?;
        }
        if let Some(mount) = &args.mount {
            cluster.set_mount(mount)?;
        }
        cluster
    } else {
        LocalCluster::create(&dir, shape(&args)?, args.mount.as_deref())?
    };
    // Also if it does not come up: whoever wants to stop it must find it.
    remembered(cluster.make_last());
    let client = start_nodes(&mut cluster, PATIENCE).await?;
    remembered(cluster.make_current());
    let mounted = start_mount(&mut cluster).await;
    mounted.context(
        "the mount did not come up (the cluster did; `cairn cluster up --no-mount` leaves it at that)",
    )?;
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

/// Starts every node but the mount, and waits until the cluster works.
pub async fn start_nodes(cluster: &mut LocalCluster, patience: Duration) -> Result<cairn_client::Cluster> {
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
    Ok(client)
}

/// Starts the mount, if there is one. It comes last, because it needs the others.
async fn start_mount(cluster: &mut LocalCluster) -> Result<()> {
    if cluster.layout.mount_point().is_some() {
        cluster.start("mount")?;
        ready::wait_for_mount(cluster, PATIENCE).await?;
    }
    Ok(())
}

/// What is asked for, with what is usual for the rest.
fn shape(args: &Up) -> Result<Shape> {
    let namenodes = args.namenodes.unwrap_or(3);
    let datanodes = args.datanodes.unwrap_or(4);
    if namenodes.is_multiple_of(2) {
        exit::say("cairn: cluster: an even number of namenodes survives no more failures than one less");
    }
    let shape = Shape {
        namenodes: namenodes.into(),
        datanodes: datanodes.into(),
        racks: args.racks.unwrap_or(1).into(),
        replication: args.replication.unwrap_or(u32::from(datanodes).clamp(1, 3)),
        capacity: size(&args.capacity)?,
        chunk_size: size(&args.chunk_size)?,
        dead_after_ms: args.timing.dead_after.map(millis),
        session_lease_ms: args.timing.session_lease.map(millis),
        garbage_grace_ms: args.timing.garbage_grace.map(millis),
        compact_after_ms: args.timing.compact_after.map(millis),
        short_circuit: !args.no_short_circuit,
        base_port: args.base_port.unwrap_or(0),
        secure: args.secure,
    };
    acceptable(&shape, &args.timing)?;
    Ok(shape)
}

fn size(text: &Option<String>) -> Result<Option<u64>> {
    let parsed = text.as_deref().map(output::parse_size).transpose();
    Ok(parsed.map_err(|error| Usage(error.to_string()))?)
}

/// Whether a namenode takes these options: it would refuse them every time it is started.
fn acceptable(shape: &Shape, timing: &Timing) -> Result<()> {
    let mut config = cairn_namenode::Config { dir: "/".into(), ..Default::default() };
    config.default_replication = shape.replication;
    config.chunk_size = shape.chunk_size.unwrap_or(config.chunk_size);
    timing.apply(&mut config);
    config.checked().map_err(|error| Usage(error.to_string()))?;
    Ok(())
}

/// Whether what is asked for, if anything, is what the cluster was made with.
fn same_shape(args: &Up, shape: &Shape) -> Result<()> {
    let another = |asked: Option<u64>, made: Option<u64>| asked.is_some() && asked != made;
    let count = |asked: Option<u16>, made: usize| another(asked.map(u64::from), Some(made as u64));
    let time = |asked: Option<Duration>, made| another(asked.map(millis), made);
    let options = [
        ("--namenodes", count(args.namenodes, shape.namenodes)),
        ("--datanodes", count(args.datanodes, shape.datanodes)),
        ("--racks", count(args.racks, shape.racks)),
        ("--replication", args.replication.is_some_and(|asked| asked != shape.replication)),
        ("--capacity", another(size(&args.capacity)?, shape.capacity)),
        ("--chunk-size", another(size(&args.chunk_size)?, shape.chunk_size)),
        ("--dead-after", time(args.timing.dead_after, shape.dead_after_ms)),
        ("--session-lease", time(args.timing.session_lease, shape.session_lease_ms)),
        ("--garbage-grace", time(args.timing.garbage_grace, shape.garbage_grace_ms)),
        ("--compact-after", time(args.timing.compact_after, shape.compact_after_ms)),
        ("--no-short-circuit", args.no_short_circuit && shape.short_circuit),
        ("--base-port", args.base_port.is_some_and(|asked| asked != shape.base_port)),
        ("--secure", args.secure && !shape.secure),
    ];
    let other: Vec<&str> =
        options.iter().filter(|(_, differs)| *differs).map(|(option, _)| *option).collect();
    if !other.is_empty() {
        bail!(Usage(format!(
            "it was made with another {}; `cairn cluster add` adds nodes, for the rest make a new one (`--dir DIR`, or after `cairn cluster rm`)",
            other.join(", ")
        )));
    }
    Ok(())
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

/// Where nothing can be noted, as in a home that is read-only, commands are told the directory; the cluster is none the worse.
fn remembered(noted: Result<()>) {
    if let Err(error) = noted {
        exit::say(format_args!("cairn: cluster: commands will not find it by themselves: {error:#}"));
    }
}

/// How this program was called, so that a hint can be pasted.
fn program() -> String {
    std::env::args_os().next().map_or_else(|| "cairn".into(), |name| name.to_string_lossy().into_owned())
}
