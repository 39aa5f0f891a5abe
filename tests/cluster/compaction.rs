//! Garbage comes back as free space by itself, whatever goes on meanwhile.

use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use serde_json::Value;

use crate::mounting::can_mount;
use crate::support::{Cluster, digests, make_file, make_tree, text};

/// Chunks of one MiB, so that a small data set has many; garbage that does not wait for long.
const QUICK: [&str; 8] =
    ["--chunk-size", "1M", "--session-lease", "5", "--garbage-grace", "6", "--compact-after", "1"];

fn up(more: &[&str]) -> Cluster {
    let shape = ["--namenodes", "3", "--datanodes", "4", "--dead-after", "3"];
    Cluster::up(&[shape.as_slice(), &QUICK, more].concat())
}

fn used(status: &Value) -> u64 {
    let nodes = status["datanodes"].as_array().cloned().unwrap_or_default();
    nodes.iter().filter_map(|node| node["used"].as_u64()).sum()
}

/// Most of a data set is deleted and overwritten while others read and write, a datanode and the leader die, and in the
/// end the disks hold little more than what is alive, all of it right.
#[test]
fn space_comes_back_while_clients_work_and_nodes_die() {
    if !can_mount() {
        return;
    }
    let point = tempfile::tempdir().expect("a mount point").keep();
    let cluster = up(&["--mount", text(&point)]);
    let tree = cluster.scratch("tree");
    make_tree(&tree, 400, 100_000, 21);
    cluster.ok(&["put", text(&tree), "/tree"]);
    let before = used(&told(&cluster));
    let steady = tree.join("d00/e0/f00000");
    let long = File::open(point.join("tree/d00/e0/f00000")).expect("it opens");
    let over = AtomicBool::new(false);
    let (reads, writes) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| read_again_and_again(&long, &fs::read(&steady).unwrap(), &over, &reads));
        scope.spawn(|| overwrite_again_and_again(&point.join("busy"), &over, &writes));
        // A panic here must not leave the others running for ever.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            thin_out(&cluster, &tree, 0..9);
            cluster.wait_for("a compaction", |status| {
                status["compaction"]["in_flight"] != 0 || emptied(status) > 0
            });
            cluster.kill("dn2");
            let leader = cluster.leader();
            cluster.kill(&leader);
            thin_out(&cluster, &tree, 9..17);
            cluster.wait_for("compactions of the next leader", |status| emptied(status) > 0);
            cluster.start("dn2");
            cluster.start(&leader);
            settle(&cluster, before);
        }));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    assert!(reads.load(Ordering::Relaxed) > 0 && writes.load(Ordering::Relaxed) > 0);
    let back = cluster.scratch("back");
    cluster.ok(&["get", "/tree", text(&back)]);
    assert_eq!(digests(&tree), digests(&back));
    assert_eq!(digests(&tree), digests(&point.join("tree")));
    check_busy(&fs::read(point.join("busy")).unwrap(), writes.load(Ordering::Relaxed));
    drop(long);
    let said = cluster.ok(&["fsck"]);
    assert!(said.contains("is HEALTHY"), "{said}");
    drop(cluster);
    fs::remove_dir(&point).expect("the mount point is free again");
}

/// The state when everything has its replicas and all heartbeats have told of them.
fn told(cluster: &Cluster) -> Value {
    cluster.wait_healed();
    cluster.wait_for("all replicas told", |status| {
        status["live_bytes"].as_u64().is_some_and(|live| used(status) >= 3 * live)
    })
}

fn emptied(status: &Value) -> u64 {
    status["compaction"]["chunks_emptied"].as_u64().unwrap_or(0)
}

/// Four of five files of some directories go, on both sides.
fn thin_out(cluster: &Cluster, tree: &Path, directories: Range<usize>) {
    let number = |path: &Path| -> usize {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        name.trim_start_matches('f').parse().expect("a number")
    };
    let gone: Vec<_> = digests(tree)
        .into_keys()
        .filter(|path| directories.contains(&(number(path) % 17)) && number(path) % 5 != 0)
        .collect();
    let names: Vec<String> = gone.iter().map(|path| format!("/tree/{}", path.display())).collect();
    let mut args = vec!["rm"];
    args.extend(names.iter().map(String::as_str));
    cluster.ok(&args);
    gone.iter().for_each(|path| fs::remove_file(tree.join(path)).expect("removed"));
}

/// The disks hold what is alive, three times, and little else; nothing is left to be done.
fn settle(cluster: &Cluster, before: u64) {
    let status = cluster.wait_for("free space", |status| {
        let live = status["live_bytes"].as_u64().unwrap_or(0);
        status["repair"]["under_replicated"] == 0
            && status["repair"]["surplus"] == 0
            && used(status) < 3 * (live + live / 2 + (4 << 20))
    });
    assert!(used(&status) < before / 3 * 2, "{} of {before} bytes are left", used(&status));
}

fn read_again_and_again(file: &File, expected: &[u8], over: &AtomicBool, reads: &AtomicU64) {
    let mut seen = vec![0; expected.len()];
    while !over.load(Ordering::Relaxed) {
        // SAFETY: the descriptor is open; the call only drops cached pages, so that the mount is asked again.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        file.read_exact_at(&mut seen, 0).expect("a file that is open can be read");
        assert!(seen == expected, "other bytes than were written");
        reads.fetch_add(1, Ordering::Relaxed);
        thread::sleep(std::time::Duration::from_millis(20));
    }
}

const STRIDE: u64 = 10_007;
const PIECES: u64 = 100;

/// Overwrites pieces of one file, each full of the number of its write.
fn overwrite_again_and_again(path: &Path, over: &AtomicBool, writes: &AtomicU64) {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path).expect("it opens");
    while !over.load(Ordering::Relaxed) {
        let number = writes.load(Ordering::Relaxed);
        let piece = number.to_be_bytes().repeat(STRIDE as usize / 8);
        file.write_all_at(&piece, number % PIECES * STRIDE).expect("it can be written");
        if number % 20 == 19 {
            file.sync_all().expect("it can be synced");
        }
        writes.fetch_add(1, Ordering::Relaxed);
        thread::sleep(std::time::Duration::from_millis(40));
    }
    file.sync_all().expect("it can be synced");
}

fn check_busy(content: &[u8], writes: u64) {
    for piece in 0..PIECES.min(writes) {
        let last = (writes - 1 - piece) / PIECES * PIECES + piece;
        let start = (piece * STRIDE) as usize;
        let expected = last.to_be_bytes().repeat(STRIDE as usize / 8);
        assert!(content[start..start + expected.len()] == expected[..], "piece {piece} of {writes} writes");
    }
}

/// What no file ever named comes back, too: the tail of a chunk whose client died, and cut and overwritten ranges.
#[test]
fn bytes_that_were_cut_overwritten_or_never_committed_come_back() {
    let cluster = up(&[]);
    let file = cluster.scratch("file");
    make_file(&file, 12 << 20, 22);
    cluster.ok(&["put", text(&file), "/cut"]);
    cluster.ok(&["put", text(&file), "/replaced"]);
    // A client that dies half way leaves chunks that no commit, or only its temporary file, names.
    let mut dying = cluster.spawn(&["put", text(&file), "/dying"]);
    thread::sleep(std::time::Duration::from_millis(200));
    dying.kill().expect("killed");
    dying.wait().expect("waited for");
    cluster.ok(&["truncate", "-s", "100000", "/cut"]);
    let small = cluster.scratch("small");
    make_file(&small, 200_000, 23);
    cluster.ok(&["put", "-f", text(&small), "/replaced"]);
    for line in cluster.ok(&["ls", "-a", "/"]).lines().filter(|line| line.contains("cairn-put-")) {
        cluster.ok(&["rm", &format!("/{}", line.trim())]);
    }
    cluster.wait_for("free space", |status| {
        let live = status["live_bytes"].as_u64().unwrap_or(u64::MAX);
        let slack = if live < 1 << 20 { 1 << 20 } else { live + live / 2 };
        used(status) < 3 * (live + slack) && status["sessions"] == 0 && status["open_chunks"] == 0
    });
    let back = cluster.scratch("back");
    cluster.ok(&["get", "/replaced", text(&back)]);
    assert!(fs::read(&small).unwrap() == fs::read(&back).unwrap());
    let back = cluster.scratch("back2");
    cluster.ok(&["get", "/cut", text(&back)]);
    assert!(fs::read(&file).unwrap()[..100_000] == fs::read(&back).unwrap()[..]);
    assert!(cluster.ok(&["fsck"]).contains("is HEALTHY"));
}
