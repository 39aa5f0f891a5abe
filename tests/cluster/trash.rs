//! What `cairn rm` removes can be had back for a while.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Cluster, digest, digests, make_file, make_tree, text};

fn items(cluster: &Cluster) -> Vec<Value> {
    let list: Value = serde_json::from_str(&cluster.ok(&["trash", "ls", "--json"])).expect("JSON");
    list["items"].as_array().expect("items").clone()
}

#[test]
fn what_was_removed_comes_back() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3"]);
    let (one, two) = (cluster.scratch("one"), cluster.scratch("two"));
    make_file(&one, 100_000, 1);
    make_file(&two, 50_000, 2);
    assert_eq!(cluster.ok(&["trash", "keep"]), "off\n");
    cluster.ok(&["put", text(&one), "/f"]);
    cluster.ok(&["rm", "/f"]);
    assert!(items(&cluster).is_empty(), "off, it removes for good");
    assert_eq!(cluster.ok(&["trash", "keep", "7d"]), "7 d\n");

    let tree = cluster.scratch("tree");
    make_tree(&tree, 60, 20_000, 3);
    cluster.ok(&["put", text(&tree), "/tree"]);
    assert!(cluster.fails(&["rm", "/tree"]).contains("use -r"));
    cluster.ok(&["rm", "-r", "/tree"]);
    assert!(cluster.fails(&["ls", "/tree"]).contains("no such file"));
    cluster.ok(&["trash", "restore", "/tree"]);
    let back = cluster.scratch("back");
    cluster.ok(&["get", "/tree", text(&back)]);
    assert_eq!(digests(&tree), digests(&back));

    // The same name twice, and then its directory.
    cluster.ok(&["mkdir", "/d"]);
    for file in [&one, &two] {
        cluster.ok(&["put", text(file), "/d/f"]);
        cluster.ok(&["rm", "/d/f"]);
    }
    cluster.ok(&["rm", "-r", "/d"]);
    assert_eq!(items(&cluster).len(), 3);
    assert!(cluster.fails(&["trash", "restore", "/d/f"]).contains("-p"));
    cluster.ok(&["trash", "restore", "-p", "/d/f"]);
    cluster.ok(&["get", "/d/f", text(&cluster.scratch("newest"))]);
    assert_eq!(digest(&cluster.scratch("newest")), digest(&two));
    assert!(cluster.fails(&["trash", "restore", "/d/f"]).contains("--to"));
    cluster.ok(&["trash", "restore", "/d/f", "--to", "/d/older"]);
    cluster.ok(&["get", "/d/older", text(&cluster.scratch("older"))]);
    assert_eq!(digest(&cluster.scratch("older")), digest(&one));

    cluster.ok(&["rm", "--skip-trash", "/d/older"]);
    assert_eq!(items(&cluster).len(), 1);
    assert!(cluster.fails(&["rm", "-r", "/.trash"]).contains("--skip-trash"));
    assert!(cluster.fails(&["trash", "restore", "/nothing"]).contains("not in the trash"));
    cluster.ok(&["trash", "empty"]);
    assert!(items(&cluster).is_empty());
    assert!(cluster.ok(&["fsck"]).contains("HEALTHY"));
}

#[test]
fn what_is_old_goes_by_itself_whoever_leads() {
    let cluster = Cluster::usual();
    let tree = cluster.scratch("tree");
    make_tree(&tree, 1_500, 100, 4);
    cluster.ok(&["put", text(&tree), "/tree"]);
    cluster.ok(&["trash", "keep", "1h"]);
    cluster.ok(&["rm", "-r", "/tree"]);
    cluster.ok(&["mkdir", "/stays"]);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(items(&cluster).len(), 1, "its time is not over");
    cluster.ok(&["trash", "keep", "1s"]);
    cluster.kill(&cluster.leader());
    let began = Instant::now();
    while !items(&cluster).is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}\n{}", items(&cluster), cluster.logs());
        std::thread::sleep(Duration::from_millis(300));
    }
    let usage: Value = serde_json::from_str(&cluster.ok(&["quota", "get", "/", "--json"])).expect("JSON");
    // `/stays`, and what is left of the trash: it and the user's part of it.
    assert_eq!((&usage[0]["names"], &usage[0]["bytes"]), (&3.into(), &0.into()), "{usage}");
}
