//! Namenodes come and go.

use crate::support::{Cluster, voters};

#[test]
fn a_wiped_namenode_joins_again_and_counts() {
    let cluster = Cluster::usual();
    cluster.ok(&["mkdir", "/kept"]);
    let leader = cluster.leader();
    let wiped = ["nn1", "nn2", "nn3"].into_iter().find(|name| *name != leader).unwrap();
    cluster.kill(wiped);
    cluster.cluster_verb(&["wipe", wiped]);
    cluster.start(wiped);
    // It comes back under a new number: a wiped voter must not vote again under its old one.
    cluster.wait_for("a fourth number among three voters", |status| {
        let namenodes = status["namenodes"].as_array().cloned().unwrap_or_default();
        let fresh = namenodes.iter().any(|node| node["id"].as_u64() > Some(3) && node["voter"] == true);
        fresh && voters(status) == 3 && namenodes.len() == 3
    });
    // The wiped one must now be worth as much as any: without another, it makes the majority.
    cluster.kill(&leader);
    cluster.ok(&["mkdir", "/kept/on"]);
    cluster.ok(&["stat", "/kept/on"]);
}

#[test]
fn a_namenode_can_be_added_and_removed() {
    let cluster = Cluster::usual();
    cluster.ok(&["mkdir", "/d"]);
    cluster.cluster_verb(&["add", "namenode"]);
    let status = cluster.wait_for("four voters", |status| voters(status) == 4);
    let leaving = status["namenodes"].as_array().unwrap().iter().find(|node| node["leader"] != true).unwrap();
    let id = leaving["id"].as_u64().unwrap().to_string();
    cluster.ok(&["admin", "remove-namenode", &id]);
    cluster.wait_for("three voters", |status| status["namenodes"].as_array().map(Vec::len) == Some(3));
    cluster.ok(&["stat", "/d"]);
}
