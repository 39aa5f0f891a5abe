//! Datanodes are filled evenly on request, and a chunk never has too few replicas meanwhile.

use serde_json::Value;

use crate::support::{Cluster, digests, make_tree, text};

fn used(status: &Value) -> Vec<u64> {
    let datanodes = status["datanodes"].as_array().cloned().unwrap_or_default();
    datanodes.iter().map(|node| node["used"].as_u64().unwrap_or(0)).collect()
}

#[test]
fn a_new_datanode_is_filled_and_nothing_lacks_a_replica_meanwhile() {
    let up = [
        "--namenodes",
        "1",
        "--datanodes",
        "3",
        "--dead-after",
        "3",
        "--chunk-size",
        "1M",
        "--capacity",
        "200M",
    ];
    let cluster = Cluster::up(&up);
    let tree = cluster.scratch("tree");
    make_tree(&tree, 160, 1 << 20, 7);
    cluster.ok(&["put", text(&tree), "/tree"]);
    cluster.wait_healed();
    let before = cluster.ok(&["balance", "--threshold", "10"]);
    assert!(before.contains("balanced"), "three alike: {before}");
    cluster.cluster_verb(&["add", "datanode"]);
    cluster.wait_for("four datanodes", |status| used(status).len() == 4);
    let balancing = cluster.spawn(&["balance", "--threshold", "4", "--rate", "20M"]);
    // What is seen on the way: never a chunk with too few.
    let mut balancing = balancing;
    while balancing.try_wait().expect("a child").is_none() {
        if let Some(status) = cluster.status() {
            assert_eq!(status["repair"]["under_replicated"], 0, "{status}");
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let done = balancing.wait_with_output().expect("a child");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && said.contains("balanced"), "{said}{done:?}");
    let status = cluster.wait_healed();
    let used = used(&status);
    let mean = used.iter().sum::<u64>() / 4;
    // Four percent of the capacity, and a chunk that is being reported.
    let slack = 8 * 2 * (1 << 20);
    assert!(used.iter().all(|used| used.abs_diff(mean) <= slack), "{used:?}");
    let back = cluster.scratch("back");
    cluster.ok(&["get", "/tree", text(&back)]);
    assert_eq!(digests(&tree), digests(&back));
    cluster.ok(&["fsck", "/"]);
}
