//! `cairn fsck` says what is wrong, whom it hurts, and nothing else.

use std::fs;

use serde_json::Value;

use crate::support::{Cluster, make_file, make_tree, text};

/// Exit code and findings.
fn check(cluster: &Cluster, path: &str) -> (i32, Value) {
    let output = cluster.run(&["fsck", "--json", path]);
    let code = output.status.code().expect("an exit code");
    let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}\n{}", String::from_utf8_lossy(&output.stderr), cluster.logs())
    });
    (code, value)
}

#[test]
fn the_verdict_follows_the_state_of_the_cluster() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3", "--dead-after", "3"]);
    let tree = cluster.scratch("tree");
    make_tree(&tree, 60, 100_000, 31);
    cluster.ok(&["put", text(&tree), "/tree"]);
    let big = cluster.scratch("big");
    make_file(&big, 3_000_000, 32);
    cluster.ok(&["put", text(&big), "/big"]);
    cluster.ok(&["ln", "-s", "big", "/link"]);
    cluster.wait_healed();

    let (code, found) = check(&cluster, "/");
    assert_eq!((code, &found["verdict"]), (0, &Value::from("healthy")), "{found:#}");
    assert_eq!((found["files"].as_u64(), found["symlinks"].as_u64()), (Some(61), Some(1)));
    assert_eq!(found["average_replication"].as_f64(), Some(3.0));
    assert_eq!(found["damaged"], Value::Array(vec![]));
    lists_show_files_chunks_places_and_racks(&cluster);

    cluster.kill("dn1");
    cluster.wait_for("a dead datanode", |status| status["datanodes"].to_string().contains("\"dead\""));
    let (code, found) = check(&cluster, "/");
    assert_eq!((code, &found["verdict"]), (1, &Value::from("degraded")), "{found:#}");
    assert_eq!(found["under_replicated"], found["chunks"]);
    assert_eq!(found["dead_datanodes"].as_u64(), Some(1));
    cluster.start("dn1");
    cluster.wait_healed();

    // Lost for good: every replica of one chunk is damaged, in the same place.
    let lost = spoil_all_replicas(&cluster, "/big");
    cluster.fails(&["--timeout", "3", "get", "/big", text(&cluster.scratch("back"))]);
    cluster.wait_for("the damage to be known", |_| check(&cluster, "/big").0 == 2);
    let (code, found) = check(&cluster, "/");
    assert_eq!((code, &found["verdict"]), (2, &Value::from("corrupt")), "{found:#}");
    assert_eq!(found["corrupt"].as_u64(), Some(1));
    let hurt = found["damaged"].as_array().expect("an array");
    assert!(hurt.iter().any(|hurt| hurt["path"] == "/big" && hurt["chunk"] == lost), "{found:#}");
    assert!(hurt.iter().all(|hurt| hurt["chunk"] == lost && !hurt["ranges"].as_array().unwrap().is_empty()));
    let output = cluster.run(&["fsck", "/big"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(&format!("/big: CORRUPT chunk {lost}: bytes 0..")), "{said}");
    assert!(said.contains("The filesystem under path '/big' is CORRUPT"), "{said}");
    assert!(cluster.fails(&["fsck", "/nothing"]).contains("no such file"));
}

fn lists_show_files_chunks_places_and_racks(cluster: &Cluster) {
    let said = cluster.ok(&["fsck", "--files", "--blocks", "--locations", "--racks", "/big"]);
    assert!(said.contains("/big 3000000 bytes, replicated: replication=3"), "{said}");
    let extent = said.lines().find(|line| line.trim_start().starts_with("0..")).expect("the first extent");
    assert!(extent.contains("repl=3/3") && extent.contains(" OK "), "{extent}");
    assert_eq!(extent.matches("127.0.0.1:").count(), 3, "{extent}");
    let said = cluster.ok(&["fsck", "--files", "/tree"]);
    assert_eq!(said.lines().filter(|line| line.ends_with(": OK")).count(), 60, "{said}");
    assert!(said.contains("The filesystem under path '/tree' is HEALTHY"), "{said}");
    let average = said.lines().find(|line| line.contains("Average chunk replication:")).expect("the average");
    assert!(average.ends_with(" 3.00"), "{average}");
}

/// Flips a byte of the first chunk of a file in each of its replicas. Returns the chunk.
fn spoil_all_replicas(cluster: &Cluster, path: &str) -> Value {
    let shown: Value = serde_json::from_str(&cluster.ok(&["chunks", "--json", path])).expect("JSON");
    let extent = &shown[0]["extents"][0];
    let chunks = shown[0]["chunks"].as_array().expect("chunks");
    let chunk = chunks.iter().find(|chunk| chunk["chunk"] == extent["chunk"]).expect("the first chunk");
    let replicas = chunk["replicas"].as_array().expect("replicas");
    assert_eq!(replicas.len(), 3);
    for replica in replicas {
        let file = replica["file"].as_str().expect("a host file");
        let mut content = fs::read(file).expect("a data file");
        content[extent["chunk_offset"].as_u64().unwrap() as usize + 10] ^= 1;
        fs::write(file, content).expect("written");
    }
    chunk["chunk"].clone()
}
