//! Kills the datanode that holds most, and watches the cluster heal.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use cairn_client::Cluster;
use cairn_client::fs::{ClusterStatus, Liveness};
use nix::sys::signal::Signal;

use super::stage::{Narrator, Stage};
use crate::cluster::Role;
use crate::output;
use crate::verbs::health::repair_line;

/// Repair that makes no headway for so long has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// The planner counts in rounds: only what it says for so long is believed.
const CALM: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(200);

/// What the repair amounted to.
#[derive(Debug, Default, Clone)]
pub struct Healed {
    /// The datanode that was killed.
    pub victim: String,
    /// Replicas it held.
    pub lost: u64,
    /// From the kill until the cluster called it dead.
    pub noticed: Duration,
    /// From there until every chunk had all its replicas.
    pub repaired: Duration,
    /// Bytes copied meanwhile.
    pub bytes: u64,
}

async fn status(cluster: &Cluster) -> Result<ClusterStatus> {
    cluster.status().await.map_err(|error| anyhow!("{error}"))
}

/// Waits until every chunk is sealed and has all its replicas.
pub async fn settle(cluster: &Cluster, narrator: &mut Narrator) -> Result<ClusterStatus> {
    let began = Instant::now();
    loop {
        let status = status(cluster).await?;
        let repair = status.repair.unwrap_or_default();
        let is_whole = repair.under_replicated == 0 && repair.missing == 0 && !repair.counting;
        if status.open_chunks == 0 && is_whole {
            return Ok(status);
        }
        if began.elapsed() > PATIENCE {
            bail!(
                "{} open and {} under-replicated chunks are left after {} s",
                status.open_chunks,
                repair.under_replicated,
                PATIENCE.as_secs()
            );
        }
        narrator.progress(&format!("sealing: {} chunks open", status.open_chunks));
        tokio::time::sleep(STEP).await;
    }
}

/// Kills, watches, and returns when every chunk has all its replicas again.
pub async fn kill_and_heal(stage: &mut Stage, cluster: &Cluster, narrator: &mut Narrator) -> Result<Healed> {
    let before = settle(cluster, narrator).await?;
    let victim = before
        .datanodes
        .iter()
        .filter(|node| node.liveness() != Liveness::Dead)
        .max_by_key(|node| node.replicas)
        .ok_or_else(|| anyhow!("there is no datanode to kill"))?;
    let local = stage.local()?;
    let name = local
        .layout
        .of_role(Role::Datanode)
        .find(|node| node.address == victim.address)
        .map(|node| node.name.clone())
        .ok_or_else(|| anyhow!("no process listens on {}", victim.address))?;
    let copied_before = before.repair.unwrap_or_default().bytes_copied;
    local.end(&name, Signal::SIGKILL)?;
    narrator.say(&format!(
        "kill -9 {name}: it held {} replicas, {}",
        victim.replicas,
        output::size(victim.used)
    ));
    let mut healed = Healed { victim: name.clone(), lost: victim.replicas, ..Healed::default() };
    watch(cluster, victim.node, copied_before, &mut healed, narrator).await?;
    narrator.say(&format!(
        "healed: every chunk has all its replicas again, {} copied in {} ({}/s)",
        output::size(healed.bytes),
        output::span(healed.repaired.as_millis() as u64),
        output::size(rate(healed.bytes, healed.repaired))
    ));
    Ok(healed)
}

async fn watch(
    cluster: &Cluster,
    victim: u32,
    copied_before: u64,
    healed: &mut Healed,
    narrator: &mut Narrator,
) -> Result<()> {
    let killed = Instant::now();
    let mut dead_at: Option<Instant> = None;
    let mut headway = (Instant::now(), u64::MAX);
    let mut whole_since: Option<Instant> = None;
    loop {
        let status = status(cluster).await?;
        let repair = status.repair.unwrap_or_default();
        let dead =
            status.datanodes.iter().any(|node| node.node == victim && node.liveness() == Liveness::Dead);
        healed.bytes = repair.bytes_copied.saturating_sub(copied_before);
        let since = match (dead, dead_at) {
            (true, None) => {
                healed.noticed = killed.elapsed();
                narrator.say(&format!(
                    "{} is dead to the cluster after {}; repair begins",
                    healed.victim,
                    output::span(healed.noticed.as_millis() as u64)
                ));
                dead_at = Some(Instant::now());
                continue;
            }
            (false, _) => {
                narrator
                    .progress(&format!("waiting for the cluster to notice: {}", silence(&status, victim)));
                killed
            }
            (true, Some(since)) => since,
        };
        let nothing_left = repair.under_replicated == 0 && repair.in_flight == 0 && repair.missing == 0;
        if dead && nothing_left && !repair.counting {
            let whole = *whole_since.get_or_insert_with(Instant::now);
            if whole.elapsed() >= CALM {
                healed.repaired = whole - since;
                return Ok(());
            }
        } else {
            whole_since = None;
        }
        if dead {
            narrator.progress(&format!("repair: {}", repair_line(&repair)));
        }
        let left = repair.under_replicated + repair.missing;
        if left != headway.1 || healed.bytes > 0 && repair.bytes_per_second > 0 {
            headway = (Instant::now(), left);
        } else if headway.0.elapsed() > PATIENCE {
            bail!("repair stands still with {left} chunks left");
        }
        tokio::time::sleep(STEP).await;
    }
}

fn silence(status: &ClusterStatus, node: u32) -> String {
    match status.datanodes.iter().find(|known| known.node == node) {
        Some(known) => format!("it was heard {} ago", output::span(known.last_heard_ms)),
        None => "it is not known".into(),
    }
}

/// Bytes per second.
pub fn rate(bytes: u64, span: Duration) -> u64 {
    let seconds = span.as_secs_f64();
    if seconds > 0.0 { (bytes as f64 / seconds) as u64 } else { 0 }
}
