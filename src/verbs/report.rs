//! `cairn report`: the cluster in the order in which `hdfs dfsadmin -report` tells it, for eyes and scripts used to that.

use std::io::Write;

use anyhow::{Result, anyhow};
use cairn_client::fs::{AdminState, ClusterStatus, DatanodeInfo, Liveness, RepairInfo};
use cairn_ops::health::is_drained;
use clap::Args;

use super::health::judge;
use crate::client::Client;
use crate::output;

/// Arguments of `cairn report`.
#[derive(Args)]
pub struct Report {
    /// Only datanodes that are live
    #[arg(long, conflicts_with = "dead")]
    live: bool,
    /// Only datanodes that are dead
    #[arg(long)]
    dead: bool,
}

/// Prints it.
pub async fn run(client: std::sync::Arc<Client>, args: Report) -> Result<()> {
    let status = client.cluster.status().await.map_err(|error| anyhow!("{error}"))?;
    let mut out = output::stdout();
    out.write_all(text(&status, !args.dead, !args.live).as_bytes())?;
    out.flush()?;
    Ok(())
}

fn text(status: &ClusterStatus, live: bool, dead: bool) -> String {
    let all = || status.datanodes.iter();
    let present = |node: &&DatanodeInfo| node.liveness() != Liveness::Dead;
    let sum = |field: fn(&DatanodeInfo) -> u64| all().filter(present).map(field).sum::<u64>();
    let fs = status.fs.clone().unwrap_or_default();
    let repair = status.repair.unwrap_or_default();
    let used = sum(|node| node.used);
    let usable = fs.available.saturating_add(used);
    let verdict = judge(status);
    let mut text = format!("Cluster: {}\nHealth: {}\n", fs.cluster_id, verdict.health.name());
    verdict.reasons.iter().for_each(|reason| text.push_str(&format!("\t{reason}\n")));
    text.push_str(&bytes("Configured Capacity", fs.capacity));
    text.push_str(&bytes("Present Capacity", usable));
    text.push_str(&bytes("Remaining", fs.available));
    text.push_str(&bytes("Used", used));
    text.push_str(&format!("Used%: {}\n", percent(used, usable)));
    text.push_str("Replicated Chunks:\n");
    text.push_str(&format!("\tUnder replicated chunks: {}\n", repair.under_replicated));
    text.push_str(&format!("\tMissing chunks: {}\n", repair.missing));
    text.push_str(&format!("\tChunks with too many replicas: {}\n", repair.surplus));
    text.push_str(&format!("\tReplicas being copied: {}\n", repair.in_flight));
    text.push_str(&format!("\n{}\n", "-".repeat(49)));
    let groups = [(live, "Live", false), (dead, "Dead", true)];
    for (_, word, is_dead) in groups.into_iter().filter(|(wanted, ..)| *wanted) {
        let nodes: Vec<&DatanodeInfo> =
            all().filter(|node| (node.liveness() == Liveness::Dead) == is_dead).collect();
        text.push_str(&format!("{word} datanodes ({}):\n\n", nodes.len()));
        nodes.into_iter().for_each(|node| text.push_str(&datanode(node, &repair)));
    }
    text
}

fn datanode(node: &DatanodeInfo, repair: &RepairInfo) -> String {
    let total = node.used.saturating_add(node.available);
    let state = match node.admin() {
        AdminState::Decommissioning if is_drained(node, repair) => "Decommissioned",
        AdminState::Decommissioning => "Decommission in progress",
        AdminState::Maintenance => "In maintenance",
        AdminState::Normal => "Normal",
    };
    let mut text =
        format!("Name: {} ({})\nHostname: {}\nRack: {}\n", node.address, node.node, node.host, node.rack);
    text.push_str(&format!("Decommission Status : {state}\n"));
    text.push_str(&bytes("Configured Capacity", node.capacity));
    text.push_str(&bytes("Used", node.used));
    text.push_str(&bytes("Non Cairn Used", node.capacity.saturating_sub(total)));
    text.push_str(&bytes("Remaining", node.available));
    text.push_str(&format!("Used%: {}\n", percent(node.used, total)));
    text.push_str(&format!("Remaining%: {}\n", percent(node.available, total)));
    if node.liveness() == Liveness::Unknown {
        text.push_str("Last contact: never, with this leader\n");
    } else {
        text.push_str(&format!("Last contact: {} ago\n", output::span(node.last_heard_ms)));
    }
    for failed in &node.failed {
        text.push_str(&format!("Failed directory: {} ({})\n", failed.path, failed.cause));
    }
    text.push_str(&format!("Num of Replicas: {}\n\n", node.replicas));
    text
}

fn bytes(name: &str, count: u64) -> String {
    format!("{name}: {count} ({})\n", output::size(count))
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "0.00%".into() } else { format!("{:.2}%", 100.0 * part as f64 / whole as f64) }
}

#[cfg(test)]
mod tests {
    use cairn_client::fs::FsStats;

    use super::*;

    #[test]
    fn live_and_dead_are_told_apart() {
        let node = |number: u32, liveness: Liveness| DatanodeInfo {
            node: number,
            address: format!("dn{number}:1"),
            liveness: liveness.into(),
            used: 25,
            available: 75,
            capacity: 200,
            ..DatanodeInfo::default()
        };
        let status = ClusterStatus {
            fs: Some(FsStats { capacity: 200, available: 75, ..FsStats::default() }),
            repair: Some(RepairInfo { under_replicated: 3, ..RepairInfo::default() }),
            datanodes: vec![node(1, Liveness::Live), node(2, Liveness::Dead)],
            ..ClusterStatus::default()
        };
        let all = text(&status, true, true);
        for line in [
            "Configured Capacity: 200 (200 B)",
            "Used%: 25.00%",
            "\tUnder replicated chunks: 3",
            "Live datanodes (1):",
            "Name: dn2:1 (2)",
            "Non Cairn Used: 100 (100 B)",
        ] {
            assert!(all.lines().any(|found| found == line), "no {line} in\n{all}");
        }
        assert!(!text(&status, true, false).contains("Dead datanodes"));
        assert_eq!(percent(1, 0), "0.00%");
    }
}
