//! A disk that hangs: it answers nothing, with no error either.

use std::fs;

use serde_json::Value;

use crate::disks::all_reachable;
use crate::faulty_disk::FaultyDisk;
use crate::mounting::can_mount;
use crate::support::{Cluster, digests, make_tree, text};

/// A node of a cluster whose directory is on a disk that can hang.
struct Moved<'a> {
    cluster: &'a Cluster,
    name: String,
    disk: FaultyDisk,
}

impl Moved<'_> {
    /// Takes a node down, and starts it again with what it had on such a disk.
    fn onto_bad_disk<'a>(cluster: &'a Cluster, name: &str) -> Moved<'a> {
        let (directory, backing) = (cluster.dir().join(name), cluster.scratch(&format!("{name}-backing")));
        cluster.kill(name);
        fs::rename(&directory, &backing).expect("a directory");
        let disk = FaultyDisk::mount(&backing, &directory);
        cluster.start(name);
        Moved { cluster, name: name.to_owned(), disk }
    }

    fn hang(&self) {
        self.disk.faults.hang();
    }

    fn log(&self) -> String {
        let path = self.cluster.dir().join(format!("logs/{}.log", self.name));
        fs::read_to_string(path).expect("a log")
    }
}

impl Drop for Moved<'_> {
    fn drop(&mut self) {
        self.disk.faults.clear();
        let dir = self.cluster.dir();
        self.cluster.run(&["cluster", "kill", &self.name, "--dir", text(&dir)]);
    }
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
    let mut moved = Vec::new();
    for name in ["nn1", "nn2", "nn3"] {
        moved.push(Moved::onto_bad_disk(&cluster, name));
        cluster.wait_for("all namenodes", all_reachable);
    }
    let leader = cluster.leader();
    let hung = moved.iter().find(|moved| moved.name == leader).expect("a namenode");
    hung.hang();
    // Whoever asks it in vain waits, and is served by another in the end.
    for part in 0..3 {
        cluster.ok(&["put", text(&tree), &format!("/during{part}")]);
        cluster.ok(&["ls", &format!("/during{part}")]);
    }
    cluster.wait_for("another leader", |_| cluster.leader() != leader);
    cluster.wait_for("its last words", |_| hung.log().contains("the disk does not answer"));
    hung.disk.faults.clear();
    cluster.wait_for("all namenodes again", |status| {
        // As its supervisor would: while it is still ending, it is not started.
        cluster.start(&leader);
        all_reachable(status)
    });
    for name in ["before", "during0", "during1", "during2"] {
        let back = cluster.scratch(&format!("back-{name}"));
        cluster.ok(&["get", &format!("/{name}"), text(&back)]);
        assert_eq!(digests(&tree), digests(&back), "{name}");
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
    moved.hang();
    for part in 0..3 {
        let back = cluster.scratch(&format!("back{part}"));
        cluster.ok(&["get", &format!("/before{part}"), text(&back)]);
        assert_eq!(digests(&tree), digests(&back));
        cluster.ok(&["put", text(&tree), &format!("/during{part}")]);
    }
    let failed = |status: &Value| -> Vec<Value> {
        let nodes = status["datanodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().flat_map(|node| node["failed"].as_array().cloned().unwrap_or_default()).collect()
    };
    let status = cluster.wait_for("the disk to be named", |status| !failed(status).is_empty());
    let cause = failed(&status)[0]["cause"].as_str().expect("a cause").to_owned();
    assert!(cause.contains("the disk does not answer"), "{cause}");
    // The other three take what it cannot be asked for.
    let status = cluster.wait_healed();
    assert_eq!(failed(&status).len(), 1, "{status}");
    moved.disk.faults.clear();
    cluster.wait_for("the disk in use again", |status| failed(status).is_empty());
    cluster.wait_healed();
    assert_eq!(cluster.status().expect("a status")["health"], "healthy");
    for part in 0..3 {
        let back = cluster.scratch(&format!("again{part}"));
        cluster.ok(&["get", &format!("/during{part}"), text(&back)]);
        assert_eq!(digests(&tree), digests(&back));
    }
}
