//! A datanode comes back as somebody else than it was, or with other data: each case is handled and said by name.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Cluster, Killed, digest, digests, make_file, make_tree, text};

fn copy_directory(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
    assert!(copied.success());
}

fn namenode_of(cluster: &Cluster) -> String {
    let config = fs::read_to_string(cluster.dir().join("cairn.toml")).unwrap();
    config.split('"').nth(1).expect("an address").to_string()
}

#[test]
fn a_copied_identity_is_refused_while_the_first_lives() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3", "--dead-after", "3"]);
    let local = cluster.scratch("f");
    make_file(&local, 1 << 20, 1);
    cluster.ok(&["put", text(&local), "/f"]);
    cluster.wait_healed();
    cluster.cluster_verb(&["stop", "dn1"]);
    let copy = cluster.scratch("copy");
    copy_directory(&cluster.dir().join("dn1"), &copy);
    cluster.start("dn1");
    // Heard of it was lately, while it was down: what counts is that it attends again, before its copy does.
    let own = cluster.dir().join("logs/dn1.log");
    cluster.wait_for("it to attend again", |_| {
        let said = fs::read_to_string(&own).expect("its log");
        said.matches("cairn_datanode::attend: attending").count() == 2
    });
    cluster.wait_for("all live", |status| live(status) == 3);
    let log = cluster.scratch("copy.log");
    let mut command = cluster.command(&["datanode", "--dir", text(&copy), "--listen", "127.0.0.1:0"]);
    command.args(["--namenodes", &namenode_of(&cluster)]).stdout(Stdio::null());
    command.stderr(fs::File::create(&log).unwrap());
    let _twin = Killed(command.spawn().expect("cairn starts"));
    cluster.wait_for("the status to name the rival", |status| {
        let nodes = status["datanodes"].as_array().unwrap();
        nodes.iter().any(|node| node["rival"].as_str().is_some_and(|rival| rival.contains("127.0.0.1:")))
    });
    let shown = cluster.run(&["status"]).stdout;
    assert!(String::from_utf8_lossy(&shown).contains("the identity of datanode"));
    cluster
        .wait_for("the copy's log to say so", |_| fs::read_to_string(&log).unwrap().contains("is live at"));
    // The first one serves as before.
    let status = cluster.wait_healed();
    assert_eq!(live(&status), 3);
    let back = cluster.scratch("back");
    cluster.ok(&["get", "/f", text(&back)]);
    assert_eq!(digest(&local), digest(&back));
}

#[test]
fn a_datanode_restored_from_a_backup_is_brought_up_to_date() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3", "--dead-after", "3"]);
    let (old, new) = (cluster.scratch("old"), cluster.scratch("new"));
    make_tree(&old, 30, 200_000, 2);
    cluster.ok(&["put", text(&old), "/old"]);
    cluster.ok(&["put", text(&old), "/doomed"]);
    cluster.wait_healed();
    cluster.cluster_verb(&["stop", "dn1"]);
    let (data, backup) = (cluster.dir().join("dn1"), cluster.scratch("backup"));
    copy_directory(&data, &backup);
    cluster.start("dn1");
    make_tree(&new, 30, 200_000, 3);
    cluster.ok(&["put", text(&new), "/new"]);
    cluster.ok(&["rm", "-r", "/doomed"]);
    cluster.wait_healed();
    cluster.kill("dn1");
    fs::remove_dir_all(&data).unwrap();
    copy_directory(&backup, &data);
    cluster.start("dn1");
    cluster.wait_for("all live", |status| live(status) == 3);
    cluster.wait_healed();
    // What the backup lacked must be on it now: the others go.
    cluster.wait_for("every replica on it", |status| {
        let nodes = status["datanodes"].as_array().unwrap();
        let most = nodes.iter().filter_map(|node| node["replicas"].as_u64()).max();
        nodes.iter().all(|node| node["replicas"].as_u64() == most)
    });
    cluster.kill("dn2");
    cluster.kill("dn3");
    for (local, path) in [(&old, "/old"), (&new, "/new")] {
        let back = cluster.scratch("back").join(path.trim_start_matches('/'));
        fs::create_dir_all(back.parent().unwrap()).unwrap();
        cluster.ok(&["get", path, text(&back)]);
        assert_eq!(digests(local), digests(&back));
    }
}

#[test]
fn a_directory_that_is_missing_is_named_and_one_of_another_datanode_refused() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3", "--dead-after", "3"]);
    let address = namenode_of(&cluster);
    let (one, two) = (cluster.scratch("one"), cluster.scratch("two"));
    let log = cluster.scratch("fourth.log");
    let start = |dirs: [&Path; 2]| {
        let mut command = cluster.command(&["datanode", "--listen", "127.0.0.1:0", "--namenodes", &address]);
        for dir in dirs {
            command.args(["--dir", text(dir)]);
        }
        command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        Killed(command.spawn().expect("cairn starts"))
    };
    let fourth = start([&one, &two]);
    cluster.wait_for("four live", |status| live(status) == 4);
    drop(fourth);
    fs::remove_dir_all(&two).unwrap();
    let fourth = start([&one, &two]);
    cluster.wait_for("the log to name it", |_| {
        let said = fs::read_to_string(&log).unwrap();
        said.contains(text(&two)) && said.contains("held another directory")
    });
    cluster.wait_for("four live again", |status| live(status) == 4);
    drop(fourth);
    cluster.kill("dn1");
    let theirs = cluster.dir().join("dn1");
    let mut args = vec!["datanode", "--listen", "127.0.0.1:0", "--namenodes", &address];
    args.extend(["--dir", text(&one), "--dir", text(&theirs)]);
    let said = cluster.fails(&args);
    assert!(said.contains("another datanode") && said.contains(text(&theirs)), "{said}");
}

fn live(status: &serde_json::Value) -> usize {
    let nodes = status["datanodes"].as_array().cloned().unwrap_or_default();
    nodes.iter().filter(|node| node["liveness"] == "live").count()
}
