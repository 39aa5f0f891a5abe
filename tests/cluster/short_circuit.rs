//! Clients on a datanode's machine read its replicas' files by themselves.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use crate::damage::replica_files;
use crate::http::{metrics, servers};
use crate::support::{Cluster, digest, digests, make_file, make_tree, text};
use crate::two_mounts::TwoMounts;

/// Bytes that the datanodes have sent, and replicas that they have lent.
fn sent_and_lent(cluster: &Cluster) -> (f64, f64) {
    let servers = servers(cluster);
    let nodes =
        servers.iter().filter(|(name, _)| name.starts_with("dn")).map(|(_, address)| metrics(address));
    nodes.fold((0.0, 0.0), |(sent, lent), node| {
        (sent + node["cairn_datanode_read_bytes_total"], lent + node["cairn_datanode_lent_replicas_total"])
    })
}

#[test]
fn what_is_on_this_machine_is_read_from_its_files() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3"]);
    let tree = cluster.scratch("tree");
    make_tree(&tree, 40, 1 << 18, 5);
    make_file(&tree.join("large"), 90 << 20, 6);
    cluster.ok(&["put", text(&tree), "/tree"]);
    let back = cluster.scratch("back");
    cluster.ok(&["get", "/tree", text(&back)]);
    assert_eq!(digests(&tree), digests(&back));
    let (sent, lent) = sent_and_lent(&cluster);
    assert_eq!(sent, 0.0, "no datanode had to send anything");
    assert!(lent > 0.0);
    // A datanode that is started again has a new door; one that is gone leaves its files to nobody.
    for node in ["dn1", "dn2", "dn3"] {
        cluster.kill(node);
        let again = cluster.scratch(&format!("without-{node}"));
        cluster.ok(&["get", "/tree/large", text(&again)]);
        assert_eq!(digest(&tree.join("large")), digest(&again));
        cluster.start(node);
    }
    cluster.wait_healed();
}

#[test]
fn a_mount_reads_files_that_grow_change_and_are_replaced() {
    let Some(mounts) = TwoMounts::up("20") else { return };
    let (writer, reader) = (mounts.first.join("f"), mounts.second.join("f"));
    let mut file = OpenOptions::new().create(true).append(true).open(&writer).unwrap();
    let mut content = Vec::new();
    // Each reading finds the chunk longer than when it was lent.
    for step in 0..60usize {
        let part: Vec<u8> = (0..step * 977 + 13).map(|at| (at * 31 + step) as u8).collect();
        file.write_all(&part).unwrap();
        file.sync_all().unwrap();
        content.extend_from_slice(&part);
        assert!(fs::read(&reader).unwrap() == content, "after step {step}");
    }
    // Written over, cut and replaced: what was lent before is of chunks that no file names any more.
    let file = OpenOptions::new().write(true).open(&writer).unwrap();
    for at in [0, 4_000, 70_000, content.len() - 9] {
        file.write_all_at(b"changed!", at as u64).unwrap();
        content[at..at + 8].copy_from_slice(b"changed!");
    }
    content.truncate(500_000);
    file.set_len(500_000).unwrap();
    file.sync_all().unwrap();
    assert!(fs::read(&reader).unwrap() == content);
    let mut fresh = File::create(writer.with_extension("new")).unwrap();
    fresh.seek(SeekFrom::Start(100_000)).unwrap();
    fresh.write_all(b"end").unwrap();
    fresh.sync_all().unwrap();
    fs::rename(writer.with_extension("new"), &writer).unwrap();
    let mut wanted = vec![0; 100_000];
    wanted.extend_from_slice(b"end");
    assert!(fs::read(&reader).unwrap() == wanted);
    let (sent, lent) = sent_and_lent(&mounts.cluster);
    assert!(lent > 0.0 && sent == 0.0, "sent {sent}, lent {lent}");
}

#[test]
fn a_lent_file_that_rots_is_never_served() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3", "--dead-after", "3"]);
    let local = cluster.scratch("f");
    make_file(&local, 3 << 20, 22);
    cluster.ok(&["put", text(&local), "/f"]);
    cluster.wait_healed();
    let files = replica_files(&cluster, "/f");
    let reading = cluster.spawn(&["get", "/f", text(&cluster.scratch("meanwhile"))]);
    thread::sleep(Duration::from_millis(20));
    for (number, file) in files.iter().enumerate().take(2) {
        let rotten = OpenOptions::new().write(true).read(true).open(file).unwrap();
        for at in (0..8).map(|step| step * 311_111 + number as u64) {
            let mut byte = [0];
            rotten.read_exact_at(&mut byte, at).unwrap();
            rotten.write_all_at(&[!byte[0]], at).unwrap();
        }
    }
    assert!(reading.wait_with_output().unwrap().status.success());
    assert_eq!(digest(&local), digest(&cluster.scratch("meanwhile")));
    for round in 0..3 {
        let back = cluster.scratch(&format!("back{round}"));
        cluster.ok(&["get", "/f", text(&back)]);
        assert_eq!(digest(&local), digest(&back));
    }
    // Whoever read it told, and the damage is mended without a scrub.
    cluster.wait_healed();
    cluster.wait_for("whole replicas", |_| {
        let files = replica_files(&cluster, "/f");
        files.len() == 3 && files.iter().all(|file| digest(file) == digest(&files[2]))
    });
}
