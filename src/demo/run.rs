//! The demo from beginning to end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use cairn_client::fs;
use clap::Args;
use futures::StreamExt;
use tokio::signal::unix::{SignalKind, signal};

use super::failover::{FailedOver, kill_leader};
use super::heal::{Healed, kill_and_heal, rate, settle};
use super::source::{self, Bounds, Source};
use super::stage::{Narrator, Stage, client, target};
use super::verify::{Verified, verify};
use crate::client::Client;
use crate::cluster::{Shape, hints, ready};
use crate::exit;
use crate::hangup::Hangup;
use crate::output;
use crate::transfer::{JOBS, Progress};
use crate::verbs::put::put_file;

/// Arguments of `cairn demo`.
#[derive(Args)]
pub struct Demo {
    /// The tree to copy (else the Rust toolchain)
    #[arg(long, value_name = "PATH")]
    source: Option<PathBuf>,
    /// Most bytes to copy
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = output::parse_size)]
    bytes: u64,
    /// Most files to copy
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    files: usize,
    /// Where the cluster is made (else a new temporary directory)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How many datanodes
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=32))]
    datanodes: u16,
    /// Do without the mount
    #[arg(long)]
    no_mount: bool,
    /// Leave the cluster running
    #[arg(long)]
    keep: bool,
}

/// What is said at the end.
#[derive(Default)]
struct Figures {
    files: usize,
    bytes: u64,
    chunks: u64,
    replicas: u32,
    written: Duration,
    first: Verified,
    healed: Option<Healed>,
    failed_over: FailedOver,
    last: Verified,
}

/// Runs the demo; whatever happens, what it started is stopped and deleted.
pub async fn run(args: Demo) -> Result<u8> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = Hangup::listen()?;
    // The stage is owned by the play: dropping it takes everything down.
    tokio::select! {
        result = play(args) => result,
        _ = terminate.recv() => Ok(exit::INTERRUPTED),
        () = hangup.come() => Ok(exit::INTERRUPTED),
        _ = interrupt.recv() => {
            exit::say("\ncairn: demo: interrupted; cleaning up");
            Ok(exit::INTERRUPTED)
        }
    }
}

async fn play(args: Demo) -> Result<u8> {
    let mut narrator = Narrator::new();
    let root = match &args.source {
        Some(root) => root.clone(),
        None => source::default_root()?,
    };
    let bounds = Bounds { files: args.files.max(1), bytes: args.bytes };
    narrator.say(&format!("hashing the files of {}", root.display()));
    let source = tokio::task::spawn_blocking(move || source::survey(&root, bounds)).await??;
    let source = Arc::new(source);
    narrator.say(&format!("{} files, {}", source.files.len(), output::size(source.bytes)));

    let dir = args.dir.clone().unwrap_or_else(fresh_dir);
    let replication = u32::from(args.datanodes).saturating_sub(1).clamp(1, 3);
    let shape = shape(usize::from(args.datanodes), replication);
    let (mut stage, cluster) = Stage::set(&dir, shape, args.keep).await?;
    let _ = cluster.close().await;
    narrator.say(&format!(
        "cluster of 3 namenodes and {} datanodes is up in {} ({replication} replicas)",
        args.datanodes,
        dir.display()
    ));
    if args.no_mount {
        narrator.say("not mounted, as asked for: files are read through the client");
    } else {
        match stage.mount(&dir.join("mnt")).await {
            Ok(()) => narrator.say(&format!("mounted on {}", dir.join("mnt").display())),
            Err(why) => narrator.say(&format!("not mounted ({why}): files are read through the client")),
        }
    }
    let figures = acts(&mut stage, &source, &args, replication, &mut narrator).await?;
    let good = summary(&figures, &narrator);
    if let Some(cluster) = stage.kept() {
        cluster.make_current()?;
        narrator.print(&hints(&cluster));
    } else {
        drop(stage);
        narrator.say("everything is stopped and deleted");
    }
    Ok(if good { 0 } else { exit::FAILED })
}

async fn acts(
    stage: &mut Stage,
    source: &Arc<Source>,
    args: &Demo,
    replicas: u32,
    narrator: &mut Narrator,
) -> Result<Figures> {
    let mut figures =
        Figures { files: source.files.len(), bytes: source.bytes, replicas, ..Figures::default() };
    let mount = stage.mount.clone();
    let writer = Arc::new(connected(stage).await?);
    figures.written = copy_in(&writer, source, narrator).await?;
    // The end of the session seals its chunks, so that from here on all is repairable.
    writer.cluster.close().await.map_err(|error| anyhow!("closing the session: {error}"))?;

    let client = Arc::new(connected(stage).await?);
    let status = settle(&client.cluster, narrator).await?;
    figures.chunks = status.sealed_chunks;
    figures.first = verify(&client, source, mount.as_deref(), narrator).await?;
    report_verified(&figures.first, mount.as_deref(), narrator);

    if args.datanodes > 1 {
        figures.healed = Some(kill_and_heal(stage, &client.cluster, narrator).await?);
    } else {
        narrator.say("a single datanode is not killed: nothing could take its place");
    }
    figures.failed_over = kill_leader(stage, &client, narrator).await?;
    figures.last = verify(&client, source, mount.as_deref(), narrator).await?;
    report_verified(&figures.last, mount.as_deref(), narrator);
    let _ = client.cluster.close().await;
    Ok(figures)
}

async fn connected(stage: &mut Stage) -> Result<Client> {
    let cluster = ready::connect(stage.local()?, Duration::from_secs(60)).await;
    Ok(client(cluster.context("cannot reach the cluster")?))
}

async fn copy_in(client: &Arc<Client>, source: &Arc<Source>, narrator: &mut Narrator) -> Result<Duration> {
    let began = Instant::now();
    for directory in std::iter::once(Path::new("")).chain(source.directories.iter().map(PathBuf::as_path)) {
        let path = target(directory);
        let ask = fs::Mkdir {
            at: Some(path.node()),
            mode: 0o755,
            uid: client.cred.uid,
            gid: client.cred.gid,
            parents: true,
            ..Default::default()
        };
        client.cluster.mkdir(&client.cred, ask).await.map_err(|error| anyhow!("{path}: {error}"))?;
    }
    let progress = Arc::new(Progress::start("demo", true));
    let jobs = (0..source.files.len()).map(|index| {
        let (client, source, progress) = (client.clone(), source.clone(), progress.clone());
        tokio::spawn(async move {
            let sample = &source.files[index];
            put_file(&client, &source.root.join(&sample.path), &target(&sample.path), &progress).await
        })
    });
    let mut running = futures::stream::iter(jobs).buffer_unordered(JOBS);
    while let Some(done) = running.next().await {
        done??;
        let (files, bytes) = (progress.files(), progress.bytes());
        narrator.progress(&format!(
            "copying: {files} of {} files, {} ({}/s)",
            source.files.len(),
            output::size(bytes),
            output::size(rate(bytes, began.elapsed()))
        ));
    }
    let took = began.elapsed();
    narrator.say(&format!(
        "copied {} files, {} in {} ({}/s, each byte replicated before it counts)",
        source.files.len(),
        output::size(source.bytes),
        output::span(took.as_millis() as u64),
        output::size(rate(source.bytes, took))
    ));
    Ok(took)
}

fn report_verified(verified: &Verified, mount: Option<&Path>, narrator: &mut Narrator) {
    let way = if mount.is_some() { "through the mount" } else { "through the client" };
    narrator.say(&format!(
        "verified {way}: {} files are what they were, {} are not ({} in {})",
        verified.good,
        verified.bad.len(),
        output::size(verified.bytes),
        output::span(verified.took.as_millis() as u64)
    ));
    for why in verified.bad.iter().take(10) {
        narrator.say(&format!("  {why}"));
    }
}

/// Prints the figures; false if anything is not as it was.
fn summary(figures: &Figures, narrator: &Narrator) -> bool {
    let per_second = |bytes, span| format!("{}/s", output::size(rate(bytes, span)));
    let mut text = String::from("\n");
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<22} {value}\n"));
    line("files", figures.files.to_string());
    line("bytes", output::size(figures.bytes));
    line("chunks", format!("{}, {} replicas each", figures.chunks, figures.replicas));
    line("written", per_second(figures.bytes, figures.written));
    line("read", per_second(figures.first.bytes, figures.first.took));
    if let Some(healed) = &figures.healed {
        line("datanode killed", format!("{}, {} replicas lost", healed.victim, healed.lost));
        line("noticed after", output::span(healed.noticed.as_millis() as u64));
        let repaired = output::span(healed.repaired.as_millis() as u64);
        line("repaired in", format!("{repaired}, {}", per_second(healed.bytes, healed.repaired)));
    }
    let failed_over = &figures.failed_over;
    line("leader killed", failed_over.victim.clone());
    line("writes paused", output::span(failed_over.pause.as_millis() as u64));
    let kept = failed_over.files - failed_over.lost.len() as u64;
    line("written meanwhile", format!("{kept} of {} files verified", failed_over.files));
    line("verified at the end", format!("{} of {} files", figures.last.good, figures.files));
    let good = figures.first.bad.is_empty() && figures.last.bad.is_empty() && failed_over.lost.is_empty();
    line("result", if good { "nothing was lost".into() } else { "SOMETHING WAS LOST".to_string() });
    for why in failed_over.lost.iter().take(10) {
        text.push_str(&format!("  {why}\n"));
    }
    text.push('\n');
    narrator.print(&text);
    good
}

fn fresh_dir() -> PathBuf {
    let token = uuid::Uuid::new_v4().simple().to_string();
    std::env::temp_dir().join(format!("cairn-demo-{}", &token[..8]))
}

fn shape(datanodes: usize, replication: u32) -> Shape {
    Shape {
        namenodes: 3,
        datanodes,
        racks: 1,
        replication,
        capacity: None,
        chunk_size: None,
        dead_after_ms: Some(5_000),
        session_lease_ms: None,
        garbage_grace_ms: None,
        compact_after_ms: None,
        short_circuit: true,
        base_port: 0,
        secure: false,
    }
}
