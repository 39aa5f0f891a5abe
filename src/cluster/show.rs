//! The processes of a local cluster as a table and as JSON.

use std::path::Path;
use std::time::Duration;

use cairn_client::{Cluster, Config};
use serde_json::{Value, json};

use super::certificates;
use super::layout::{Layout, Node, Role};
use super::local::{alive, log_path};
use crate::client::machine;
use crate::output::Table;

const PATIENCE: Duration = Duration::from_secs(2);

/// One word for how a node's process is.
fn state(dir: &Path, node: &Node) -> &'static str {
    match (&node.process, alive(dir, node)) {
        (_, true) => "running",
        (Some(_), false) => "stopped",
        (None, false) => "never started",
    }
}

/// The address of the leader, if there is one that says so in time.
pub async fn leader(dir: &Path, layout: &Layout) -> Option<String> {
    let tls = layout.shape.secure.then(|| certificates::of_client(dir));
    let machine = machine(tls.as_deref()).ok()?;
    let config =
        Config { namenodes: layout.namenodes(), operation_timeout: PATIENCE, machine, ..Config::default() };
    let asked = async {
        let cluster = Cluster::connect(config).await.ok()?;
        let status = cluster.status().await.ok()?;
        status.namenodes.into_iter().find(|node| node.leader).map(|node| node.address)
    };
    tokio::time::timeout(PATIENCE, asked).await.ok().flatten()
}

/// For people.
pub fn table(dir: &Path, layout: &Layout, leader: Option<&str>) -> String {
    let mut table = Table::new(&["name", "role", "address", "http", ">pid", "state", "log"]);
    for node in &layout.nodes {
        let pid =
            node.process.filter(|_| alive(dir, node)).map_or("-".into(), |process| process.pid.to_string());
        let leads = node.role == Role::Namenode && leader == Some(node.address.as_str());
        let role = if leads { "namenode, leader" } else { node.role.name() };
        table.row(vec![
            node.name.clone(),
            role.into(),
            node.address.clone(),
            if node.http.is_empty() { "-".into() } else { node.http.clone() },
            pid,
            state(dir, node).into(),
            log_path(dir, &node.name).display().to_string(),
        ]);
    }
    table.render(0)
}

/// For programs.
pub fn as_json(dir: &Path, layout: &Layout, leader: Option<&str>) -> Value {
    let nodes: Vec<Value> = layout
        .nodes
        .iter()
        .map(|node| {
            let running = alive(dir, node);
            json!({
                "name": node.name, "role": node.role.name(), "address": node.address, "http": Some(&node.http).filter(|http| !http.is_empty()), "rack": node.rack,
                "state": state(dir, node), "running": running,
                "pid": node.process.filter(|_| running).map(|process| process.pid),
                "leader": node.role == Role::Namenode && leader == Some(node.address.as_str()),
                "dir": if node.role == Role::Mount { Value::Null } else { dir.join(&node.name).to_string_lossy().into() },
                "log": log_path(dir, &node.name).to_string_lossy(),
            })
        })
        .collect();
    json!({
        "dir": dir.to_string_lossy(), "config": dir.join("cairn.toml").to_string_lossy(), "namenodes": layout.namenodes(),
        "mount": layout.mount_point(), "dashboard": layout.dashboard(), "leader": leader, "nodes": nodes,
    })
}
