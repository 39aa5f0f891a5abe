//! `cairn cluster`: what a person who tries a cluster out gets wrong at first.

use crate::support::{Cluster, text};

/// A wrong option is refused before anything is kept of it, and another shape than the cluster has is not passed over.
#[test]
fn a_cluster_is_made_with_options_that_work_and_keeps_them() {
    let options = ["--namenodes", "1", "--datanodes", "1", "--session-lease", "5", "--dead-after", "0.5"];
    let cluster = Cluster::up(&options);
    let other = cluster.scratch("other");
    let up = ["cluster", "up", "--dir", text(&other), "--session-lease", "60"];
    let said = cluster.fails(&[&up[..], &["--garbage-grace", "10"]].concat());
    assert!(said.contains("garbage_grace_ms"), "{said}");
    assert!(!other.exists(), "nothing is made of what cannot work");

    let dir = cluster.dir();
    let up = ["cluster", "up", "--dir", text(&dir)];
    cluster.ok(&[&up[..], &["--datanodes", "1", "--session-lease", "5"]].concat());
    let said = cluster.fails(&[&up[..], &["--datanodes", "2", "--chunk-size", "1m"]].concat());
    assert!(said.contains("--datanodes, --chunk-size") && said.contains("cluster add"), "{said}");
}

#[test]
fn a_mount_that_cannot_be_is_taken_out_again() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1"]);
    let dir = cluster.dir();
    let up = ["cluster", "up", "--dir", text(&dir)];
    let said = cluster.fails(&[&up[..], &["--mount", text(&dir)]].concat());
    assert!(said.contains("hide the files of the cluster"), "{said}");
    // Something is always mounted on this one.
    let said = cluster.fails(&[&up[..], &["--mount", "/proc"]].concat());
    assert!(said.contains("something is mounted on /proc") && said.contains("--no-mount"), "{said}");
    cluster.fails(&up);
    cluster.ok(&[&up[..], &["--no-mount"]].concat());
    cluster.ok(&up);
}

#[test]
fn of_nodes_that_are_named_wrongly_none_is_touched() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1"]);
    let dir = cluster.dir();
    for verb in ["kill", "stop"] {
        let said = cluster.fails(&["cluster", verb, "--dir", text(&dir), "dn1", "nosuch"]);
        assert!(said.contains("no node nosuch"), "{said}");
    }
    let shown = cluster.cluster_verb(&["status"]);
    assert!(!shown.contains("stopped"), "{shown}");
}
