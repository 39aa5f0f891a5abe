//! Disks fail under real processes: full, read-only, and with errors on writing, reading and syncing.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

use serde_json::Value;

use crate::faulty_disk::{Faults, FaultyDisk, Moved};
use crate::mounting::can_mount;
use crate::support::{Cluster, Killed, all_reachable, digests, make_tree, text};

/// A datanode of the test's own, with a sound directory and one that is made to fail. Killed when dropped.
struct TwoDisks {
    process: Child,
    disk: FaultyDisk,
    uuid: String,
}

impl TwoDisks {
    fn start(cluster: &Cluster) -> TwoDisks {
        let (sound, bad) = (cluster.scratch("sound"), cluster.scratch("bad"));
        let disk = FaultyDisk::mount(&cluster.scratch("backing"), &bad);
        let before = datanodes(&cluster.status().expect("a status"));
        let process = spawn(cluster, &[&sound, &bad]);
        let status = cluster.wait_for("one more datanode", |status| {
            let now = datanodes(status);
            now.len() > before.len() && now.iter().all(|node| node["liveness"] == "live")
        });
        let uuid = |node: &Value| node["uuid"].as_str().expect("a uuid").to_owned();
        let known: Vec<String> = before.iter().map(uuid).collect();
        let uuid = datanodes(&status).iter().map(uuid).find(|uuid| !known.contains(uuid)).expect("a new one");
        TwoDisks { process, disk, uuid }
    }

    fn restart(&mut self, cluster: &Cluster) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
        self.process = spawn(cluster, &[&cluster.scratch("sound"), &cluster.scratch("bad")]);
    }

    /// What the cluster says about it.
    fn info(&self, status: &Value) -> Value {
        let found = datanodes(status).into_iter().find(|node| node["uuid"] == self.uuid.as_str());
        found.unwrap_or(Value::Null)
    }
}

impl Drop for TwoDisks {
    fn drop(&mut self) {
        self.disk.faults.clear();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(cluster: &Cluster, dirs: &[&Path]) -> Child {
    let log = fs::File::options().create(true).append(true).open(cluster.dir().join("logs/own.log"));
    let mut command =
        cluster.command(&["datanode", "--listen", "127.0.0.1:0", "--host", "own", "--reserve", "0"]);
    for dir in dirs {
        command.arg("--dir").arg(dir);
    }
    run(&mut command, log.expect("a log"))
}

fn run(command: &mut Command, log: fs::File) -> Child {
    command.stdout(Stdio::null()).stderr(log).spawn().expect("cairn starts")
}

fn datanodes(status: &Value) -> Vec<Value> {
    status["datanodes"].as_array().cloned().unwrap_or_default()
}

/// A kind of failure, and how it is made.
type Kind<'a> = (&'a str, &'a dyn Fn(&Faults));

#[test]
fn a_failing_disk_is_fenced_by_name_and_the_others_go_on() {
    if !can_mount() {
        return;
    }
    let kinds: [Kind<'_>; 4] = [
        ("writes fail", &|faults| faults.write.store(libc::EIO, Ordering::SeqCst)),
        ("syncs fail", &|faults| faults.sync.store(libc::EIO, Ordering::SeqCst)),
        ("reads fail", &|faults| faults.read.store(libc::EIO, Ordering::SeqCst)),
        ("it is read-only", &|faults| faults.write.store(libc::EROFS, Ordering::SeqCst)),
    ];
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "2", "--dead-after", "3"]);
    let mut own = TwoDisks::start(&cluster);
    for (number, (kind, fail)) in kinds.into_iter().enumerate() {
        let tree = cluster.scratch(&format!("before{number}"));
        make_tree(&tree, 40, 1 << 19, 40 + number as u64);
        // Small chunks would be many; several commands make several chunks, so that both disks hold some.
        for part in 0..4 {
            cluster.ok(&["put", text(&tree), &format!("/{number}-{part}")]);
        }
        cluster.wait_healed();
        fail(&own.disk.faults);
        // Whatever the disk does, nobody who writes or reads sees it.
        let during = cluster.scratch(&format!("during{number}"));
        make_tree(&during, 40, 1 << 19, 50 + number as u64);
        for part in 0..4 {
            cluster.ok(&["put", text(&during), &format!("/{number}-during{part}")]);
            let back = cluster.scratch(&format!("back{number}-{part}"));
            cluster.ok(&["get", &format!("/{number}-{part}"), text(&back)]);
            assert_eq!(digests(&tree), digests(&back), "{kind}");
        }
        cluster.ok(&["admin", "scrub"]);
        let status = cluster.wait_for(&format!("the failed directory named ({kind})"), |status| {
            own.info(status)["failed"].as_array().is_some_and(|failed| failed.len() == 1)
        });
        let failed = &own.info(&status)["failed"][0];
        assert_eq!(failed["path"], text(&cluster.scratch("bad")), "{kind}");
        assert_eq!(status["health"], "degraded", "{kind}: {status}");
        let shown = cluster.run(&["status"]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        let cause = failed["cause"].as_str().expect("a cause");
        assert!(shown.contains(cause) && shown.contains("Mend or replace the disk"), "{kind}: {shown}");
        // Three replicas on three datanodes: the sound directory of the same one takes what the other lost.
        let status = cluster.wait_healed();
        assert_eq!(own.info(&status)["liveness"], "live", "{kind}");
        own.disk.faults.clear();
        own.restart(&cluster);
        cluster.wait_for("the directory in use again", |status| {
            own.info(status)["liveness"] == "live" && own.info(status)["failed_dirs"] == 0
        });
        cluster.wait_healed();
        let back = cluster.scratch(&format!("again{number}"));
        cluster.ok(&["get", &format!("/{number}-during0"), text(&back)]);
        assert_eq!(digests(&during), digests(&back), "{kind}");
    }
}

#[test]
fn a_full_disk_is_filled_no_further_and_heals_when_there_is_room() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3", "--dead-after", "3"]);
    let own = TwoDisks::start(&cluster);
    let tree = cluster.scratch("tree");
    make_tree(&tree, 40, 1 << 19, 60);
    cluster.ok(&["put", text(&tree), "/tree"]);
    cluster.wait_healed();
    own.disk.faults.write.store(libc::ENOSPC, Ordering::SeqCst);
    for round in 0..4 {
        cluster.ok(&["put", text(&tree), &format!("/more{round}")]);
    }
    let status = cluster.wait_healed();
    assert_eq!(own.info(&status)["failed_dirs"], 0, "full is not broken: {status}");
    own.disk.faults.clear();
    cluster.ok(&["rm", "-r", "/more0"]);
    cluster.ok(&["put", text(&tree), "/again"]);
    cluster.wait_healed();
    let back = cluster.scratch("back");
    for path in ["/tree", "/more1", "/again"] {
        let back = back.with_extension(path.trim_start_matches('/'));
        cluster.ok(&["get", path, text(&back)]);
        assert_eq!(digests(&tree), digests(&back), "{path}");
    }
}

#[test]
fn a_namenode_whose_disk_fails_stops_and_the_others_go_on() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::usual();
    let namenodes = Moved::namenodes(&cluster);
    let tree = cluster.scratch("tree");
    make_tree(&tree, 60, 100_000, 61);
    for (round, errno) in [libc::EIO, libc::ENOSPC].into_iter().enumerate() {
        let leader = cluster.leader();
        let failing = namenodes.iter().find(|node| node.name == leader).expect("a namenode");
        failing.faults().sync.store(errno, Ordering::SeqCst);
        failing.faults().write.store(errno, Ordering::SeqCst);
        cluster.ok(&["put", text(&tree), &format!("/tree{round}")]);
        assert_ne!(cluster.leader(), leader, "errno {errno}");
        let log = failing.log();
        assert!(log.contains("cannot go on"), "errno {errno}: {log}");
        failing.faults().clear();
        cluster.start(&leader);
        cluster.wait_for("all namenodes again", all_reachable);
        let back = cluster.scratch(&format!("back{round}"));
        cluster.ok(&["get", &format!("/tree{round}"), text(&back)]);
        assert_eq!(digests(&tree), digests(&back), "errno {errno}");
    }
}

#[test]
fn a_namenode_with_damaged_records_refuses_and_is_filled_from_the_others() {
    let cluster = Cluster::usual();
    let tree = cluster.scratch("tree");
    make_tree(&tree, 60, 100_000, 62);
    cluster.ok(&["put", text(&tree), "/tree"]);
    let log_path = cluster.dir().join("logs/nn1.log");
    let files = ["log/00000000000000000000.log", "log/marks", "identity.json", "store.redb"];
    for (round, what) in files.into_iter().enumerate() {
        let (during, back) = (format!("/during{round}"), cluster.scratch(&format!("back{round}")));
        cluster.kill("nn1");
        damage(&cluster.dir().join("nn1").join(what));
        fs::write(&log_path, "").expect("a file");
        // It may be started before it finds out; either way it ends, and says why and what to do.
        let _ = cluster.run(&["cluster", "start", "nn1", "--dir", text(&cluster.dir())]);
        cluster.wait_for("a refusal in its log", |_| {
            let log = fs::read_to_string(&log_path).unwrap_or_default();
            log.contains("damaged") && log.contains("move this namenode's directory away")
        });
        assert!(!fs::read_to_string(&log_path).unwrap().contains("panicked"));
        cluster.ok(&["put", text(&tree), &during]);
        let _ = cluster.run(&["cluster", "kill", "nn1", "--dir", text(&cluster.dir())]);
        cluster.cluster_verb(&["wipe", "nn1"]);
        cluster.start("nn1");
        cluster.wait_for("all namenodes again", all_reachable);
        cluster.ok(&["get", &during, text(&back)]);
        assert_eq!(digests(&tree), digests(&back), "{what}");
    }
}

/// Flips bits all over a file but for its first page. A few would do, if they did not fall where nothing is stored.
fn damage(path: &Path) {
    let mut content = fs::read(path).expect("a file");
    // What is behind the last byte is room that was set aside.
    let used = content.iter().rposition(|byte| *byte != 0).expect("something in it");
    let flips = ((used / 2).min(4096)..used).step_by(512);
    flips.for_each(|at| content[at] ^= 0x10);
    fs::write(path, content).expect("a file");
}

#[test]
fn a_directory_is_drained_and_its_disk_taken_out() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "2", "--dead-after", "3"]);
    let (stays, leaves) = (cluster.scratch("stays"), cluster.scratch("leaves"));
    let mut process = Killed(spawn(&cluster, &[&stays, &leaves]));
    let find = |status: &Value| {
        let own = datanodes(status).into_iter().find(|node| node["host"] == "own");
        own.filter(|node| node["liveness"] == "live").unwrap_or(Value::Null)
    };
    cluster.wait_for("one more datanode", |status| find(status)["liveness"] == "live");
    let tree = cluster.scratch("tree");
    make_tree(&tree, 20, 1 << 19, 60);
    for part in 0..4 {
        cluster.ok(&["put", text(&tree), &format!("/{part}")]);
    }
    // Two replicas, as there were two datanodes at first. Heartbeats lag behind what is there.
    let settled = |status: &Value| {
        let held: u64 = datanodes(status).iter().filter_map(|node| node["replicas"].as_u64()).sum();
        status["sealed_chunks"].as_u64().is_some_and(|sealed| held == 2 * sealed)
    };
    cluster.wait_healed();
    let before = find(&cluster.wait_for("all of it told", settled))["replicas"].as_u64();
    assert!(before > Some(0));
    drop(process);
    let log = || fs::File::options().append(true).open(cluster.dir().join("logs/own.log")).expect("a log");
    let arguments = [
        "datanode",
        "--listen",
        "127.0.0.1:0",
        "--host",
        "own",
        "--reserve",
        "0",
        "--dir",
        text(&stays),
        "--dir",
    ];
    let mut command = cluster.command(&arguments);
    process = Killed(run(command.args([&leaves]).arg("--drain").arg(&leaves), log()));
    let status = cluster.wait_for("it empty", |status| {
        let draining = &find(status)["draining"][0];
        draining["path"] == text(&leaves) && draining["replicas"] == 0 && settled(status)
    });
    assert_eq!(
        find(&status)["replicas"].as_u64(),
        before,
        "nothing was lost by it, and nothing came back twice"
    );
    let shown = cluster.run(&["status"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("directories being drained") && shown.contains("empty; take it out"), "{shown}");
    drop(process);
    fs::remove_dir_all(&leaves).expect("the disk can be taken out");
    let _process = Killed(spawn(&cluster, &[&stays]));
    cluster.wait_for("it back", |status| find(status)["replicas"].as_u64() == before);
    cluster.wait_healed();
    cluster.ok(&["admin", "scrub"]);
    for part in 0..4 {
        let back = cluster.scratch(&format!("back{part}"));
        cluster.ok(&["get", &format!("/{part}"), text(&back)]);
        assert_eq!(digests(&tree), digests(&back));
    }
    cluster.ok(&["fsck", "/"]);
}
