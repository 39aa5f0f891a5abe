//! Namenodes come and go.

use std::fs;
use std::path::Path;

use crate::support::{Cluster, all_reachable, voters};

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

#[test]
fn a_namenode_that_lost_the_end_of_its_log_is_sent_it_again_by_the_same_leader() {
    let cluster = Cluster::usual();
    cluster.wait_for("all namenodes", all_reachable);
    let leader = cluster.leader();
    let followers: Vec<&str> = ["nn1", "nn2", "nn3"].into_iter().filter(|name| *name != leader).collect();
    let (cut, other) = (followers[0], followers[1]);
    let names: Vec<String> = (0..20).map(|number| format!("/d{number}")).collect();
    names.iter().for_each(|name| drop(cluster.ok(&["mkdir", name])));
    cluster.kill(cut);
    // It had acknowledged them, and its disk had not written them.
    cut_log(&cluster.dir().join(cut).join("log"), 4);
    cluster.wait_for("it gone", |status| !all_reachable(status));
    cluster.start(cut);
    cluster.wait_for("all namenodes again", all_reachable);
    // Without the other one, nothing is acknowledged before it has caught up.
    cluster.kill(other);
    cluster.ok(&["mkdir", "/after"]);
    for name in names.iter().map(String::as_str).chain(["/after"]) {
        cluster.ok(&["stat", name]);
    }
    for name in [leader.as_str(), cut] {
        let log = fs::read_to_string(cluster.dir().join(format!("logs/{name}.log"))).expect("a log");
        assert!(!log.contains("panicked") && !log.contains("cannot go on"), "{name}: {log}");
    }
}

/// Takes the last `count` records off a namenode's log (`docs/formats/raft-log.md`).
fn cut_log(dir: &Path, count: usize) {
    let files = fs::read_dir(dir).expect("a log").map(|entry| entry.expect("an entry").path());
    let segments = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    let last = segments.max().expect("a segment");
    let mut content = fs::read(&last).expect("a segment");
    let (mut end, mut starts) = (64, Vec::new());
    while content[end..].starts_with(b"REC1") {
        starts.push(end);
        let length = u32::from_le_bytes(content[end + 4..end + 8].try_into().expect("four bytes"));
        end += (40 + length as usize).next_multiple_of(8);
    }
    assert!(starts.len() > count, "{} records", starts.len());
    content[starts[starts.len() - count]..end].fill(0);
    fs::write(&last, content).expect("a segment");
}
