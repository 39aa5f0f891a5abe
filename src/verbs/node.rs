//! `cairn node`: taking datanodes out of service and back in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use cairn_client::{control, fs};
use cairn_ops::health::is_drained;
use clap::{Args, Subcommand};
use fs::{AdminState, Liveness};

use crate::args::On;
use crate::client::Client;
use crate::exit::Usage;
use crate::output;
use crate::verbs::health::{counted, repair_line};

/// How often progress is looked at.
const STEP: Duration = Duration::from_millis(500);

/// Commands of `cairn node`.
#[derive(Subcommand)]
pub enum Node {
    /// Copy what datanodes hold to others, so that they can be taken away
    Decommission(On<Decommission>),
    /// Let datanodes be away for a while without making up for what they hold
    Maintenance(On<Maintenance>),
    /// Use datanodes again that were to be taken out or are in maintenance
    Recommission(On<Recommission>),
}

/// Arguments of `cairn node decommission`.
#[derive(Args)]
pub struct Decommission {
    /// Datanodes, by number, address or host as `cairn status` shows them
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
    /// Also if too few datanodes or too little space would be left
    #[arg(short, long)]
    force: bool,
    /// Return when nothing is left on them
    #[arg(short, long)]
    wait: bool,
}

/// Arguments of `cairn node maintenance`.
#[derive(Args)]
pub struct Maintenance {
    /// Datanodes, by number, address or host as `cairn status` shows them
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
    /// How long they may be away, as 30m, 2h or 1d
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = output::parse_span)]
    time: Duration,
}

/// Arguments of `cairn node recommission`.
#[derive(Args)]
pub struct Recommission {
    /// Datanodes, by number, address or host as `cairn status` shows them
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
}

/// Takes datanodes out.
pub async fn decommission(client: Arc<Client>, args: Decommission) -> Result<()> {
    let nodes = find(&client, &args.nodes).await?;
    let ask = control::SetDatanodeRequest {
        state: AdminState::Decommissioning.into(),
        force: args.force,
        ..Default::default()
    };
    let nodes = set_all(&client, nodes, ask).await;
    if args.wait && !nodes.is_empty() {
        return drained(&client, &nodes).await;
    }
    Ok(())
}

/// Lets datanodes be away.
pub async fn maintenance(client: Arc<Client>, args: Maintenance) -> Result<()> {
    let maintenance_ms = u64::try_from(args.time.as_millis()).unwrap_or(u64::MAX);
    let state = AdminState::Maintenance.into();
    let ask = control::SetDatanodeRequest { state, maintenance_ms, ..Default::default() };
    set_all(&client, find(&client, &args.nodes).await?, ask).await;
    Ok(())
}

/// Takes datanodes in again.
pub async fn recommission(client: Arc<Client>, args: Recommission) -> Result<()> {
    let ask = control::SetDatanodeRequest { state: AdminState::Normal.into(), ..Default::default() };
    set_all(&client, find(&client, &args.nodes).await?, ask).await;
    Ok(())
}

/// Asks the same for every one of `nodes`, and says for which it was done.
async fn set_all(client: &Client, nodes: Vec<u32>, ask: control::SetDatanodeRequest) -> Vec<u32> {
    let mut done = Vec::with_capacity(nodes.len());
    for node in nodes {
        match client.cluster.set_datanode(control::SetDatanodeRequest { node, ..ask }).await {
            Ok(()) => done.push(node),
            Err(error) => client.report.failed(format!("datanode {node}: {error}")),
        }
    }
    done
}

async fn find(client: &Client, names: &[String]) -> Result<Vec<u32>> {
    let status = client.cluster.status().await.map_err(|error| anyhow!("{error}"))?;
    let (mut found, mut wrong) = (Vec::new(), Vec::new());
    for name in names {
        match resolve(&status, name) {
            Ok(node) => found.push(node),
            Err(why) => wrong.push(format!("{name}: {why}")),
        }
    }
    // With one mistyped, nobody knows whether the others are meant.
    if wrong.is_empty() { Ok(found) } else { Err(Usage(wrong.join("; ")).into()) }
}

/// The number of a datanode that goes by `name`. Of several on one host or address, dead ones do not count.
fn resolve(status: &fs::ClusterStatus, name: &str) -> Result<u32, &'static str> {
    if let Some(node) = status.datanodes.iter().find(|node| name.parse() == Ok(node.node)) {
        return Ok(node.node);
    }
    let goes_by = |node: &&fs::DatanodeInfo| node.address == name || node.host == name;
    let found: Vec<&fs::DatanodeInfo> = status.datanodes.iter().filter(goes_by).collect();
    let alive: Vec<u32> =
        found.iter().filter(|node| node.liveness() != Liveness::Dead).map(|node| node.node).collect();
    match (alive.as_slice(), found.as_slice()) {
        ([one], _) => Ok(*one),
        ([], [one]) => Ok(one.node),
        ([], []) => Err("no such datanode (`cairn status` lists them)"),
        _ => Err("several datanodes go by this name (give a number of `cairn status`)"),
    }
}

/// Waits until nothing is left on `nodes`, and says how far it is.
async fn drained(client: &Client, nodes: &[u32]) -> Result<()> {
    let began = Instant::now();
    let bar = indicatif::ProgressBar::new_spinner();
    loop {
        let status = client.cluster.status().await.map_err(|error| anyhow!("{error}"))?;
        let ours = || status.datanodes.iter().filter(|node| nodes.contains(&node.node));
        if let Some(node) = ours().find(|node| node.admin() != AdminState::Decommissioning) {
            bail!("datanode {} was taken in again", node.node);
        }
        let repair = status.repair.unwrap_or_default();
        if ours().all(|node| is_drained(node, &repair)) {
            bar.finish_and_clear();
            return Ok(());
        }
        let left = ours().map(|node| node.replicas).sum();
        let mut message = format!("{} left on them, {}", counted(left, "replica"), repair_line(&repair));
        message += &format!(", {} so far", output::span(began.elapsed().as_millis() as u64));
        bar.set_message(message);
        tokio::time::sleep(STEP).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datanode_goes_by_number_address_and_host() {
        let node = |node, address: &str, host: &str, liveness: Liveness| fs::DatanodeInfo {
            node,
            address: address.into(),
            host: host.into(),
            liveness: liveness.into(),
            ..Default::default()
        };
        let datanodes = vec![
            node(1, "a:1", "a", Liveness::Dead),
            node(2, "a:1", "a", Liveness::Live),
            node(3, "b:1", "b", Liveness::Live),
            node(4, "b:2", "b", Liveness::Live),
            node(5, "c:1", "c", Liveness::Dead),
        ];
        let status = fs::ClusterStatus { datanodes, ..Default::default() };
        let found = |name| resolve(&status, name).ok();
        assert_eq!(
            [found("1"), found("a"), found("a:1"), found("b:2"), found("c")],
            [1, 2, 2, 4, 5].map(Some)
        );
        assert_eq!([found("b"), found("d"), found("7")], [None; 3]);
    }
}
