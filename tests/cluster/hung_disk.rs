//! A disk that hangs: it answers nothing, with no error either.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::faulty_disk::Moved;
use crate::mounting::can_mount;
use crate::support::{Cluster, all_reachable, digests, make_tree, text};

/// What was put at `path` is `tree`.
fn is_there(cluster: &Cluster, path: &str, tree: &Path) {
    let back = cluster.scratch(&format!("back-{}", path.trim_start_matches('/')));
    cluster.ok(&["get", path, text(&back)]);
    assert_eq!(digests(tree), digests(&back), "{path}");
    fs::remove_dir_all(back).expect("it was made");
}

/// Whether every chunk of what is at `path` has three replicas elsewhere than on the datanode at `address`.
fn is_elsewhere(cluster: &Cluster, path: &str, address: &str) -> bool {
    let output = cluster.run(&["fsck", "--files", "--blocks", "--locations", path]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let extents: Vec<&str> = said.lines().filter(|line| line.contains(" repl=")).collect();
    let there = format!("{address}(");
    let elsewhere = |line: &&str| line.matches("127.0.0.1:").count() - line.matches(&there).count();
    !extents.is_empty() && extents.iter().all(|line| elsewhere(line) >= 3)
}

#[test]
fn a_leader_whose_disk_hangs_makes_way() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::usual();
    let tree = cluster.scratch("tree");
    make_tree(&tree, 60, 1 << 18, 7);
    cluster.ok(&["put", text(&tree), "/before"]);
    let namenodes = Moved::namenodes(&cluster);
    let leader = cluster.leader();
    let hung = namenodes.iter().find(|node| node.name == leader).expect("a namenode");
    hung.faults().hang();
    // Whoever asks it in vain waits, and is served by another in the end.
    for part in 0..3 {
        cluster.ok(&["put", text(&tree), &format!("/during{part}")]);
        cluster.ok(&["ls", &format!("/during{part}")]);
    }
    cluster.wait_for("another leader", |_| cluster.leader() != leader);
    cluster.wait_for("its last words", |_| hung.log().contains("the disk does not answer"));
    hung.faults().clear();
    cluster.wait_for("all namenodes again", |status| {
        // As its supervisor would: while it is still ending, it is not started.
        cluster.start(&leader);
        all_reachable(status)
    });
    for name in ["before", "during0", "during1", "during2"] {
        is_there(&cluster, &format!("/{name}"), &tree);
    }
}

#[test]
fn a_datanode_whose_disk_hangs_is_left_alone_until_it_answers() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::usual();
    let tree = cluster.scratch("tree");
    make_tree(&tree, 60, 1 << 18, 8);
    let moved = Moved::onto_bad_disk(&cluster, "dn1");
    cluster.wait_for("all datanodes", |status| {
        let nodes = status["datanodes"].as_array().cloned().unwrap_or_default();
        nodes.len() == 4 && nodes.iter().all(|node| node["liveness"] == "live")
    });
    for part in 0..3 {
        cluster.ok(&["put", text(&tree), &format!("/before{part}")]);
    }
    cluster.wait_healed();
    moved.faults().hang();
    for part in 0..3 {
        is_there(&cluster, &format!("/before{part}"), &tree);
        cluster.ok(&["put", text(&tree), &format!("/during{part}")]);
    }
    let failed = |status: &Value| -> Vec<Value> {
        let nodes = status["datanodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().flat_map(|node| node["failed"].as_array().cloned().unwrap_or_default()).collect()
    };
    let hung = |status: &Value| -> String {
        let nodes = status["datanodes"].as_array().cloned().unwrap_or_default();
        let hung = nodes.iter().find(|node| node["failed"].as_array().is_some_and(|list| !list.is_empty()));
        hung.and_then(|node| node["address"].as_str()).expect("a datanode whose disk hangs").to_owned()
    };
    let status = cluster.wait_for("the disk to be named", |status| !failed(status).is_empty());
    let cause = failed(&status)[0]["cause"].as_str().expect("a cause").to_owned();
    assert!(cause.contains("the disk does not answer"), "{cause}");
    // The other three take what it cannot be asked for.
    let address = hung(&status);
    cluster.wait_for("three replicas elsewhere", |_| {
        (0..3).all(|part| is_elsewhere(&cluster, &format!("/before{part}"), &address))
    });
    let status = cluster.wait_healed();
    assert_eq!(failed(&status).len(), 1, "{status}");
    moved.faults().clear();
    cluster.wait_for("the disk in use again", |status| failed(status).is_empty());
    cluster.wait_healed();
    assert_eq!(cluster.status().expect("a status")["health"], "healthy");
    for part in 0..3 {
        is_there(&cluster, &format!("/during{part}"), &tree);
    }
}
