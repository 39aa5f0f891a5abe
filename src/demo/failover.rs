//! Kills the leader while small files are being written, and measures how long writing stood still.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use bytes::Bytes;
use cairn_client::fs::{self, ClusterStatus};
use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::stage::{Narrator, Stage};
use crate::client::Client;
use crate::cluster::Role;
use crate::output;
use crate::paths::ClusterPath;
use crate::verbs::checksum::digest;

const FILE_SIZE: usize = 4096;
/// How long files are written before the kill and after writing goes on.
const CALM: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(60);

/// What the change of leader amounted to.
#[derive(Debug, Default, Clone)]
pub struct FailedOver {
    /// The namenode that was killed.
    pub victim: String,
    /// Files written meanwhile, all acknowledged.
    pub files: u64,
    /// The longest time between two of them.
    pub pause: Duration,
    /// Files that were acknowledged and are not as they were written.
    pub lost: Vec<String>,
}

/// What the writer has done so far.
#[derive(Debug, Clone, Copy)]
struct Beat {
    files: u64,
    longest: Duration,
    last: Instant,
}

/// Kills the leader, waits for another, restarts it, and reads back all that was written meanwhile.
pub async fn kill_leader(
    stage: &mut Stage,
    client: &Arc<Client>,
    narrator: &mut Narrator,
) -> Result<FailedOver> {
    make_directory(client).await?;
    let (stop, stopped) = watch::channel(false);
    let (tell, told) = watch::channel(Beat { files: 0, longest: Duration::ZERO, last: Instant::now() });
    let writer = Writer(tokio::spawn(write_on(client.clone(), tell, stopped)));
    narrator.say("writing small files, one after the other");
    tokio::time::sleep(CALM).await;
    let victim = leader_name(stage, &client.cluster.status().await.map_err(|error| anyhow!("{error}"))?)?;
    let before = *told.borrow();
    stage.local()?.end(&victim, Signal::SIGKILL)?;
    let killed = Instant::now();
    narrator.say(&format!("kill -9 {victim}, the leader, after {} files", before.files));
    while told.borrow().last <= killed {
        if killed.elapsed() > PATIENCE {
            bail!("no file could be written for {} s after the leader was killed", PATIENCE.as_secs());
        }
        if writer.0.is_finished() {
            break;
        }
        narrator.progress(&format!(
            "no leader: writing stands still for {}",
            output::span(killed.elapsed().as_millis() as u64)
        ));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(CALM).await;
    let _ = stop.send(true);
    let beat = writer.end().await?;
    narrator.say(&format!(
        "another namenode leads: writing stood still for {}, {} files were written",
        output::span(beat.longest.as_millis() as u64),
        beat.files
    ));
    stage.local()?.start(&victim)?;
    wait_for_followers(client, narrator).await?;
    narrator.say(&format!("{victim} is started again and follows"));
    let mut failed = FailedOver { victim, files: beat.files, pause: beat.longest, lost: Vec::new() };
    for number in 0..beat.files {
        if let Err(why) = read_back(client, number).await {
            failed.lost.push(why);
        }
    }
    Ok(failed)
}

/// The writing task, which ends with its owner.
struct Writer(JoinHandle<Result<Beat>>);

impl Writer {
    async fn end(mut self) -> Result<Beat> {
        (&mut self.0).await.map_err(|error| anyhow!("the writer: {error}"))?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn make_directory(client: &Client) -> Result<()> {
    let ask = fs::Mkdir {
        at: Some(ClusterPath::new(b"/pulse").node()),
        mode: 0o755,
        uid: client.cred.uid,
        gid: client.cred.gid,
        parents: true,
        ..Default::default()
    };
    client.cluster.mkdir(&client.cred, ask).await.map_err(|error| anyhow!("/pulse: {error}"))?;
    Ok(())
}

async fn write_on(
    client: Arc<Client>,
    tell: watch::Sender<Beat>,
    stop: watch::Receiver<bool>,
) -> Result<Beat> {
    let mut beat = *tell.borrow();
    beat.last = Instant::now();
    while !*stop.borrow() {
        let ask = fs::CreateFile {
            at: Some(file_path(beat.files).node()),
            mode: 0o644,
            uid: client.cred.uid,
            gid: client.cred.gid,
            exclusive: true,
            ..Default::default()
        };
        client
            .cluster
            .put_small(&client.cred, ask, content(beat.files), None, false)
            .await
            .map_err(|error| anyhow!("{}: {error}", file_path(beat.files)))?;
        let now = Instant::now();
        beat = Beat { files: beat.files + 1, longest: beat.longest.max(now - beat.last), last: now };
        tell.send_replace(beat);
    }
    Ok(beat)
}

fn file_path(number: u64) -> ClusterPath {
    ClusterPath::new(format!("/pulse/{number:06}").as_bytes())
}

/// Content that no other file has.
fn content(number: u64) -> Bytes {
    let mut bytes = vec![0; FILE_SIZE];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

async fn read_back(client: &Client, number: u64) -> Result<(), String> {
    let path = file_path(number);
    let attr = client.stat(&path, false).await.map_err(|error| error.to_string())?;
    let hash = digest(client, &path, &attr).await.map_err(|error| error.to_string())?;
    if hash == blake3::hash(&content(number)) { Ok(()) } else { Err(format!("{path}: other content")) }
}

fn leader_name(stage: &mut Stage, status: &ClusterStatus) -> Result<String> {
    let leader = status
        .namenodes
        .iter()
        .find(|node| node.leader)
        .ok_or_else(|| anyhow!("the status names no leader"))?;
    let local = stage.local()?;
    let node = local.layout.of_role(Role::Namenode).find(|node| node.address == leader.address);
    node.map(|node| node.name.clone()).ok_or_else(|| anyhow!("no process listens on {}", leader.address))
}

async fn wait_for_followers(client: &Client, narrator: &mut Narrator) -> Result<()> {
    let began = Instant::now();
    loop {
        let status = client.cluster.status().await.map_err(|error| anyhow!("{error}"))?;
        let behind = status.namenodes.iter().filter(|node| !node.leader && !node.reachable).count();
        if behind == 0 {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            bail!("the namenode that was started again does not catch up");
        }
        narrator.progress("waiting for it to catch up");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
