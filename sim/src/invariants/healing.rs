//! Every run heals once nothing goes wrong any more: all members are there, nothing lacks a replica.

use cairn_client::{Cluster, fs};

use crate::history::History;

/// What is not well yet.
pub async fn look(cluster: &Cluster, history: &History) -> Vec<String> {
    let status = match cluster.status().await {
        Ok(status) => status,
        Err(error) => return vec![format!("no status: {error}")],
    };
    let mut wrong = Vec::new();
    let voters = status.namenodes.iter().filter(|namenode| namenode.voter && namenode.reachable).count();
    if voters != 3 || status.namenodes.len() != 3 {
        let list: Vec<_> = status.namenodes.iter().map(|n| (n.id, n.voter, n.reachable, n.matched)).collect();
        wrong.push(format!("{voters} of {} namenodes vote: {list:?}", status.namenodes.len()));
    }
    for datanode in &status.datanodes {
        // A datanode that came back with an empty disk is another one; nobody waits for the old.
        let replaced = status
            .datanodes
            .iter()
            .any(|other| other.address == datanode.address && other.node > datanode.node);
        if datanode.liveness() != fs::Liveness::Live && !replaced {
            wrong.push(format!("datanode {} is {:?}", datanode.node, datanode.liveness()));
        }
    }
    let repair = status.repair.unwrap_or_default();
    // What was lost before it was synced stays lost; whether that was allowed is seen when it is read.
    let lost = if history.losses() > 0 { repair.missing } else { 0 };
    if repair.counting
        || repair.under_replicated > lost
        || repair.missing > lost
        || repair.in_flight > 0
        || repair.surplus > 0
    {
        wrong.push(format!("repair: {repair:?}"));
    }
    if status.open_chunks > 0 {
        wrong.push(format!("{} chunks are open", status.open_chunks));
    }
    wrong
}
