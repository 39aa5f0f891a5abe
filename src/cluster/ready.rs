//! Waits until a local cluster does what it should.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use cairn_client::fs::{ClusterStatus, Liveness};
use cairn_client::{Cluster, Config};

use super::layout::{Node, Role};
use super::local::LocalCluster;
use super::{mounts, process};
use crate::client::machine;

const STEP: Duration = Duration::from_millis(100);
/// How long a node is watched that was started.
const STAY: Duration = Duration::from_millis(500);

/// A client of a local cluster whose operations wait as long as `patience`.
pub async fn connect(cluster: &LocalCluster, patience: Duration) -> Result<Cluster> {
    let config = Config {
        namenodes: cluster.layout.namenodes(),
        name: format!("cairn-cluster@localhost:{}", std::process::id()),
        operation_timeout: patience,
        machine: machine(cluster.client_tls().as_deref())?,
        ..Config::default()
    };
    Cluster::connect(config).await.map_err(|error| anyhow!("{error}"))
}

/// Waits for a leader and for all datanodes to be live. A process that ends meanwhile is an error that shows
/// the end of its log.
pub async fn wait_for_nodes(cluster: &LocalCluster, patience: Duration) -> Result<Cluster> {
    let deadline = Instant::now() + patience;
    let mut client: Option<Cluster> = None;
    loop {
        // The mount, which may be one of an earlier time, is started when they are there.
        check_processes(cluster, |node| node.role != Role::Mount)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let step = Duration::from_secs(2).min(left.max(STEP));
        if client.is_none() {
            client = tokio::time::timeout(step, connect(cluster, step)).await.ok().and_then(Result::ok);
        }
        let mut why = "the namenodes have no leader".to_string();
        if let Some(client) = &client
            && let Ok(Ok(status)) = tokio::time::timeout(step, client.status()).await
        {
            match lacking(cluster, &status) {
                None => return Ok(client.clone()),
                Some(lack) => why = lack,
            }
        }
        if Instant::now() >= deadline {
            bail!(
                "after {} s {why}; the logs are in {}",
                patience.as_secs(),
                cluster.dir().join("logs").display()
            );
        }
        tokio::time::sleep(STEP).await;
    }
}

fn lacking(cluster: &LocalCluster, status: &ClusterStatus) -> Option<String> {
    let mut missing = Vec::new();
    for node in cluster.layout.of_role(Role::Datanode) {
        let live = status
            .datanodes
            .iter()
            .any(|known| known.address == node.address && known.liveness() == Liveness::Live);
        if !live {
            missing.push(node.name.as_str());
        }
    }
    (!missing.is_empty()).then(|| format!("{} did not report", missing.join(", ")))
}

/// Waits until the mount is there.
pub async fn wait_for_mount(cluster: &LocalCluster, patience: Duration) -> Result<()> {
    let Some(dir) = cluster.layout.mount_point() else { return Ok(()) };
    let deadline = Instant::now() + patience;
    while !mounts::is_ours(&dir) {
        check_processes(cluster, |_| true)?;
        if Instant::now() >= deadline {
            bail!("{} is not mounted after {} s", dir.display(), patience.as_secs());
        }
        tokio::time::sleep(STEP).await;
    }
    Ok(())
}

/// Whether nodes that were started a moment ago stay: what cannot work ends at once.
pub async fn stay(cluster: &LocalCluster, names: &[String]) -> Result<()> {
    let until = Instant::now() + STAY;
    while Instant::now() < until {
        check_processes(cluster, |node| names.contains(&node.name))?;
        tokio::time::sleep(STEP).await;
    }
    Ok(())
}

fn check_processes(cluster: &LocalCluster, wanted: impl Fn(&Node) -> bool) -> Result<()> {
    for node in cluster.layout.nodes.iter().filter(|node| wanted(node)) {
        if node.process.is_some() && !cluster.alive(node) {
            let log = cluster.log(&node.name);
            bail!("{} has ended; {} says:\n{}", node.name, log.display(), process::last_lines(&log, 5));
        }
    }
    Ok(())
}
