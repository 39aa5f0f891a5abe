//! Datanodes are taken out of service and back in.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Cluster, digests, make_file, make_tree, text};

/// A client that writes until it is stopped.
struct Writer {
    child: Child,
    files: Vec<String>,
}

impl Writer {
    fn start(cluster: &Cluster, local: &Path) -> Writer {
        let files: Vec<String> = (0..6).map(|number| format!("/written{number}")).collect();
        let mut script = String::from("set -e\n");
        for file in &files {
            script += &format!("{} put {} {file}\n", env!("CARGO_BIN_EXE_cairn"), text(local));
        }
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script]).env("CAIRN_CONFIG", cluster.dir().join("cairn.toml"));
        Writer { child: command.spawn().expect("sh starts"), files }
    }

    fn finish(mut self) -> Vec<String> {
        assert!(self.child.wait().expect("it ends").success(), "no write fails while a datanode leaves");
        self.files
    }
}

fn datanode(status: &Value, host: &str) -> Value {
    let nodes = status["datanodes"].as_array().cloned().unwrap_or_default();
    nodes.into_iter().find(|node| node["host"] == host).unwrap_or_default()
}

#[test]
fn a_datanode_leaves_under_load_and_nobody_misses_it() {
    // A datanode is drained when garbage is gone from it, too.
    let flags = "--namenodes 1 --datanodes 4 --dead-after 3 --chunk-size 4M --garbage-grace 30";
    let cluster = Cluster::up(&flags.split(' ').collect::<Vec<_>>());
    let (tree, file) = (cluster.scratch("tree"), cluster.scratch("file"));
    make_tree(&tree, 60, 1 << 19, 70);
    make_file(&file, 10 << 20, 71);
    cluster.ok(&["put", text(&tree), "/tree"]);
    let writer = Writer::start(&cluster, &file);
    cluster.ok(&["node", "decommission", "--wait", "dn2"]);
    let status = cluster.status().expect("a status");
    assert_eq!(datanode(&status, "dn2")["drained"], true, "{status}");
    let written = writer.finish();
    // What was written meanwhile went elsewhere.
    let status = cluster.wait_healed();
    assert_eq!(datanode(&status, "dn2")["drained"], true, "{status}");
    cluster.wait_for("nothing on its disk", |status| datanode(status, "dn2")["replicas"] == 0);
    assert!(cluster.ok(&["status"]).contains("live, drained"));
    cluster.kill("dn2");
    cluster.wait_for("it is dead, and that is well", |status| {
        datanode(status, "dn2")["liveness"] == "dead" && status["health"] == "healthy"
    });
    let back = cluster.scratch("back");
    cluster.ok(&["get", "/tree", text(&back)]);
    assert_eq!(digests(&tree), digests(&back));
    for path in written {
        assert!(cluster.run(&["cat", &path]).stdout == std::fs::read(&file).unwrap(), "{path}");
    }
    cluster.start("dn2");
    cluster.ok(&["node", "recommission", "dn2"]);
    cluster.wait_for("it takes chunks again", |status| {
        cluster.ok(&["put", "--force", text(&file), "/more"]);
        datanode(status, "dn2")["replicas"].as_u64() > Some(0)
    });
}

#[test]
fn what_would_lose_replicas_is_refused() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3"]);
    let said = cluster.fails(&["node", "decommission", "dn1"]);
    assert!(said.contains("2 datanodes would be left for 3 replicas") && said.contains("--force"), "{said}");
    assert!(cluster.fails(&["node", "decommission", "77"]).contains("77: no such datanode"));
    assert!(cluster.fails(&["node", "maintenance", "nobody"]).contains("no such datanode"));
    assert!(cluster.fails(&["node", "maintenance", "dn1", "--for", "99d"]).contains("30 days"));
    cluster.ok(&["node", "decommission", "--force", "dn1"]);
    cluster.wait_for("it leaves", |status| datanode(status, "dn1")["decommissioning"] == true);
    cluster.ok(&["node", "recommission", "dn1"]);
    cluster.wait_for("all is well", |status| status["health"] == "healthy");
}

#[test]
fn a_datanode_in_maintenance_is_not_made_up_for() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "4", "--dead-after", "2"]);
    let tree = cluster.scratch("tree");
    make_tree(&tree, 40, 1 << 18, 72);
    cluster.ok(&["put", text(&tree), "/tree"]);
    let before = cluster.wait_healed();
    let victim = cluster.busiest_datanode();
    cluster.ok(&["node", "maintenance", "--for", "1h", &victim]);
    cluster.kill(&victim);
    cluster.wait_for("it is away", |status| datanode(status, &victim)["liveness"] == "suspect");
    // Longer than it may be silent otherwise.
    std::thread::sleep(Duration::from_secs(4));
    let status = cluster.status().expect("a status");
    assert_eq!(datanode(&status, &victim)["liveness"], "suspect");
    assert_eq!(status["health"], "healthy", "{status}");
    assert_eq!(status["repair"]["chunks_repaired"], before["repair"]["chunks_repaired"]);
    let back = cluster.scratch("back");
    cluster.ok(&["get", "/tree", text(&back)]);
    assert_eq!(digests(&tree), digests(&back));
    // The time is over.
    cluster.ok(&["node", "recommission", &victim]);
    cluster.wait_for("it is given up", |status| datanode(status, &victim)["liveness"] == "dead");
    let status = cluster.wait_healed();
    assert!(status["repair"]["chunks_repaired"].as_u64() > before["repair"]["chunks_repaired"].as_u64());
}
