//! Nothing acknowledged is lost: nodes are killed while files are on their way.

use std::fs;
use std::process::Child;
use std::thread;
use std::time::Duration;

use crate::support::{Cluster, digest, digests, make_file, make_tree, text};

#[track_caller]
fn finish(child: Child, cluster: &Cluster) {
    let output = child.wait_with_output().expect("the copy ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the copy failed: {said}\n{}", cluster.logs());
}

/// Puts a large file and then a tree, and runs `blow` while each is under way.
fn put_under(blow: impl Fn(&Cluster)) {
    let cluster = Cluster::usual();
    let large = cluster.scratch("large");
    make_file(&large, 300 << 20, 4);
    let tree = cluster.scratch("tree");
    make_tree(&tree, 4_000, 6_000, 5);
    for (from, to) in [(&large, "/large"), (&tree, "/tree")] {
        let copy = cluster.spawn(&["put", text(from), to]);
        thread::sleep(Duration::from_millis(400));
        blow(&cluster);
        finish(copy, &cluster);
    }
    let back = cluster.scratch("back");
    cluster.ok(&["get", "/tree", text(&back)]);
    assert_eq!(digests(&tree), digests(&back));
    let large_back = cluster.scratch("large.back");
    cluster.ok(&["get", "/large", text(&large_back)]);
    assert_eq!(digest(&large), digest(&large_back));
}

#[test]
fn a_datanode_killed_in_the_middle_of_a_copy_costs_nothing() {
    put_under(|cluster| {
        let victim = cluster.busiest_datanode();
        cluster.kill(&victim);
        thread::sleep(Duration::from_millis(1500));
        cluster.start(&victim);
    });
}

#[test]
fn the_leader_killed_in_the_middle_of_a_copy_costs_nothing() {
    put_under(|cluster| {
        let leader = cluster.leader();
        cluster.kill(&leader);
        thread::sleep(Duration::from_millis(1500));
        cluster.start(&leader);
    });
}

#[test]
fn reading_goes_on_while_a_datanode_and_the_leader_die() {
    let cluster = Cluster::up(&["--datanodes", "4", "--dead-after", "3", "--no-short-circuit"]);
    let large = cluster.scratch("large");
    make_file(&large, 300 << 20, 6);
    cluster.ok(&["put", text(&large), "/large"]);
    for victim in [cluster.busiest_datanode(), cluster.leader()] {
        let back = cluster.scratch(&format!("back.{victim}"));
        let copy = cluster.spawn(&["get", "/large", text(&back)]);
        thread::sleep(Duration::from_millis(150));
        cluster.kill(&victim);
        finish(copy, &cluster);
        assert_eq!(digest(&large), digest(&back));
        cluster.start(&victim);
    }
}

#[test]
fn everything_killed_at_once_comes_back_with_everything_acknowledged() {
    let cluster = Cluster::usual();
    let tree = cluster.scratch("tree");
    make_tree(&tree, 1_000, 20_000, 7);
    cluster.ok(&["put", text(&tree), "/tree"]);
    for number in 0..20 {
        cluster.ok(&["touch", &format!("/touched{number}")]);
    }
    let nodes = ["nn1", "nn2", "nn3", "dn1", "dn2", "dn3", "dn4"];
    for node in nodes {
        cluster.kill(node);
    }
    for node in nodes.iter().rev() {
        cluster.start(node);
    }
    cluster.wait_for("four live datanodes", |status| {
        let live = |node: &&serde_json::Value| node["liveness"] == "live";
        status["datanodes"].as_array().is_some_and(|nodes| nodes.iter().filter(live).count() == 4)
    });
    let back = cluster.scratch("back");
    cluster.ok(&["get", "/tree", text(&back)]);
    assert_eq!(digests(&tree), digests(&back));
    for number in 0..20 {
        cluster.ok(&["stat", &format!("/touched{number}")]);
    }
    fs::remove_dir_all(back).unwrap();
}

#[test]
fn without_a_majority_nothing_is_acknowledged_and_all_goes_on_when_one_is_back() {
    let cluster = Cluster::usual();
    cluster.ok(&["mkdir", "/before"]);
    cluster.kill("nn1");
    cluster.kill("nn2");
    let refused = cluster.fails(&["--config", text(&cluster.impatient(3)), "mkdir", "/never"]);
    assert!(refused.contains("namenode") || refused.contains("leader"), "{refused}");
    cluster.start("nn2");
    cluster.ok(&["mkdir", "/after"]);
    cluster.ok(&["stat", "/before"]);
}
