//! A datanode dies and the cluster heals by itself.

use std::path::Path;

use serde_json::Value;

use crate::support::{Cluster, digests, make_tree, text};

#[test]
fn a_dead_datanode_is_replaced_and_its_surplus_goes_when_it_returns() {
    let cluster = Cluster::usual();
    let tree = cluster.scratch("tree");
    make_tree(&tree, 300, 1 << 20, 8);
    cluster.ok(&["put", text(&tree), "/tree"]);
    cluster.wait_healed();
    let victim = cluster.busiest_datanode();
    cluster.kill(&victim);
    cluster.wait_for("a dead datanode", |status| count(status, "dead") == 1);
    cluster.wait_healed();
    cluster.start(&victim);
    cluster.wait_for("four live datanodes", |status| count(status, "live") == 4);
    let status = cluster.wait_healed();
    let replicas: u64 =
        status["datanodes"].as_array().unwrap().iter().filter_map(|n| n["replicas"].as_u64()).sum();
    let sealed = status["sealed_chunks"].as_u64().unwrap();
    cluster.wait_for("no replica too many on the disks", |status| {
        let held = status["datanodes"].as_array().unwrap().iter().filter_map(|n| n["replicas"].as_u64());
        held.sum::<u64>() == 3 * sealed
    });
    assert!(replicas >= 3 * sealed);
    let back = cluster.scratch("back");
    cluster.ok(&["get", "/tree", text(&back)]);
    assert_eq!(digests(&tree), digests(&back));
}

#[test]
fn a_datanode_that_lost_its_disk_is_filled_again() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3", "--dead-after", "3"]);
    let tree = cluster.scratch("tree");
    make_tree(&tree, 50, 1 << 20, 9);
    cluster.ok(&["put", text(&tree), "/tree"]);
    cluster.wait_healed();
    cluster.kill("dn2");
    cluster.cluster_verb(&["wipe", "dn2"]);
    cluster.start("dn2");
    // An empty disk is a new datanode; what the old one held is missed once it counts as dead.
    cluster.wait_for("the old datanode given up", |status| count(status, "dead") == 1);
    let status = cluster.wait_healed();
    assert_eq!(status["repair"]["missing"].as_u64(), Some(0));
    // With two of the three originals gone, what was filled must be good.
    cluster.kill("dn1");
    cluster.kill("dn3");
    let back = cluster.scratch("back");
    cluster.ok(&["get", "/tree", text(&back)]);
    assert_eq!(digests(&tree), digests(&back));
}

#[test]
fn a_damaged_replica_is_never_served_and_is_replaced() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "4", "--dead-after", "3"]);
    let tree = cluster.scratch("tree");
    make_tree(&tree, 20, 1 << 20, 10);
    cluster.ok(&["put", text(&tree), "/tree"]);
    cluster.wait_healed();
    let damaged = damage(&cluster.dir().join(cluster.busiest_datanode()));
    assert!(damaged > 0, "there was something to damage");
    // Every replica is tried in turn over several reads; none may give wrong bytes.
    for round in 0..4 {
        let back = cluster.scratch(&format!("back{round}"));
        cluster.ok(&["get", "/tree", text(&back)]);
        assert_eq!(digests(&tree), digests(&back));
    }
    cluster.wait_healed();
}

fn count(status: &Value, liveness: &str) -> usize {
    let nodes = status["datanodes"].as_array().cloned().unwrap_or_default();
    nodes.iter().filter(|node| node["liveness"] == liveness).count()
}

/// Flips one byte in the middle of every data file of a datanode.
fn damage(node: &Path) -> usize {
    let mut damaged = 0;
    let mut todo = vec![node.to_path_buf()];
    while let Some(directory) = todo.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|extension| extension == "data") {
                let mut content = std::fs::read(&path).unwrap();
                if let Some(byte) = content.len().checked_sub(1).map(|last| last / 2) {
                    content[byte] ^= 0x40;
                    std::fs::write(&path, content).unwrap();
                    damaged += 1;
                }
            }
        }
    }
    damaged
}
