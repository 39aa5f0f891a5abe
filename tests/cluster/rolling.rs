//! Every process of a cluster is restarted, one after the other, while programs work: the upgrade of docs/operating.md.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use serde_json::Value;

use crate::mounting::mounted;
use crate::support::{Cluster, digest, make_file, text, voters};

type Work = fn(&Path, u64) -> std::io::Result<()>;

/// Adds a line to a file that stays open, and syncs it.
fn append(dir: &Path, round: u64) -> std::io::Result<()> {
    let mut log = OpenOptions::new().append(true).create(true).open(dir.join("log"))?;
    writeln!(log, "{round}")?;
    log.sync_all()
}

/// Makes a file, moves it, reads it back, and removes an older one.
fn shuffle(dir: &Path, round: u64) -> std::io::Result<()> {
    let (fresh, kept) = (dir.join("fresh"), dir.join(format!("kept{round}")));
    fs::write(&fresh, round.to_string().repeat(500))?;
    fs::rename(&fresh, &kept)?;
    let mut content = String::new();
    File::open(&kept)?.read_to_string(&mut content)?;
    assert_eq!(content, round.to_string().repeat(500));
    if round >= 20 {
        fs::remove_file(dir.join(format!("kept{}", round - 20)))?;
    }
    Ok(())
}

/// Writes a larger file over and over, and syncs it.
fn write(dir: &Path, round: u64) -> std::io::Result<()> {
    let mut file = File::create(dir.join("large"))?;
    file.write_all(&vec![round as u8; 3 << 20])?;
    file.sync_all()
}

fn live(status: &Value) -> usize {
    let nodes = status["datanodes"].as_array().cloned().unwrap_or_default();
    nodes.iter().filter(|node| node["liveness"] == "live" && node["maintenance_until_ns"].is_null()).count()
}

fn restart(cluster: &Cluster, node: &str) {
    cluster.cluster_verb(&["stop", node]);
    cluster.start(node);
    cluster.wait_for("all nodes at work", |status| live(status) == 4 && voters(status) == 3);
    cluster.wait_for("nothing to repair", |status| {
        status["repair"]["under_replicated"] == 0 && status["repair"]["counting"] == false
    });
}

#[test]
fn a_rolling_restart_fails_no_operation() {
    let Some((cluster, point)) = mounted() else { return };
    let large = cluster.scratch("large");
    make_file(&large, 20 << 20, 81);
    cluster.ok(&["put", text(&large), "/still"]);
    let (over, workers): (AtomicBool, [(&str, Work); 3]) =
        (AtomicBool::new(false), [("append", append), ("shuffle", shuffle), ("write", write)]);
    let done = [const { AtomicU64::new(0) }; 3];
    thread::scope(|scope| {
        for ((name, work), done) in workers.iter().zip(&done) {
            let (dir, over) = (point.join(name), &over);
            fs::create_dir(&dir).unwrap();
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let round = done.fetch_add(1, Ordering::Relaxed);
                    work(&dir, round).unwrap_or_else(|error| panic!("{name}, round {round}: {error}"));
                }
            });
        }
        // Told before a failed assertion, too: the scope waits for the workers.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _over = Over(&over);
        for node in ["dn1", "dn2", "dn3", "dn4"] {
            cluster.ok(&["node", "maintenance", node, "--for", "30m"]);
            cluster.cluster_verb(&["stop", node]);
            cluster.start(node);
            cluster.ok(&["node", "recommission", node]);
            cluster.wait_for("all datanodes at work", |status| live(status) == 4);
            let back = cluster.scratch(&format!("back-{node}"));
            cluster.ok(&["get", "/still", text(&back)]);
            assert_eq!(digest(&large), digest(&back));
        }
        let leader = cluster.leader();
        for node in ["nn1", "nn2", "nn3"].into_iter().filter(|node| *node != leader) {
            restart(&cluster, node);
        }
        restart(&cluster, &leader);
    });
    let rounds = done.map(|done| done.load(Ordering::Relaxed));
    assert!(rounds.iter().all(|rounds| *rounds > 3), "everybody worked all the time: {rounds:?}");
    let log = fs::read_to_string(point.join("append/log")).unwrap();
    let lines: Vec<u64> = log.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(lines, (0..rounds[0]).collect::<Vec<_>>(), "each line once, in order");
    cluster.wait_healed();
    // What was overwritten is being purged, and lies on a disk a moment longer than in the records.
    cluster.wait_for("a sound file system", |_| cluster.run(&["fsck", "/"]).status.success());
}
