//! A real FUSE mount.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;

use crate::support::{Cluster, digests, make_tree, text};

/// Whether this machine can mount. On CI it must; elsewhere the test says why it is skipped.
pub fn can_mount() -> bool {
    if OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "/dev/fuse cannot be opened, and CI must test the mount");
    eprintln!("skipped: /dev/fuse cannot be opened here");
    false
}

/// A cluster and where it is mounted.
pub fn mounted() -> Option<(Cluster, PathBuf)> {
    if !can_mount() {
        return None;
    }
    let point = tempfile::tempdir().expect("a mount point").keep();
    let cluster =
        Cluster::up(&["--namenodes", "3", "--datanodes", "4", "--dead-after", "3", "--mount", text(&point)]);
    Some((cluster, point))
}

#[test]
fn a_mount_is_a_file_system() {
    let Some((cluster, point)) = mounted() else { return };
    files_are_written_read_and_cut(&point);
    the_flags_of_a_descriptor_count(&point);
    names_move_and_go(&point);
    an_unlinked_file_lives_while_open(&point);
    let tree = cluster.scratch("tree");
    make_tree(&tree, 200, 50_000, 11);
    cluster.ok(&["put", text(&tree), "/tree"]);
    assert_eq!(digests(&tree), digests(&point.join("tree")));
    let copied = point.join("copied");
    let status = std::process::Command::new("cp").arg("-a").arg(&tree).arg(&copied).status().unwrap();
    assert!(status.success());
    assert_eq!(digests(&tree), digests(&copied));
    fs::remove_dir_all(&copied).unwrap();
    assert!(!copied.exists());
    let usage = std::process::Command::new("df").arg(&point).output().unwrap();
    assert!(usage.status.success());
    only_a_dead_mount_is_taken_away(&cluster, &point);
    drop(cluster);
    fs::remove_dir(&point).expect("the mount point is free again");
}

fn only_a_dead_mount_is_taken_away(cluster: &Cluster, point: &Path) {
    let other = cluster.scratch("other");
    let up = ["cluster", "up", "--dir", text(&other), "--namenodes", "1", "--datanodes", "1"];
    let said = cluster.fails(&[&up[..], &["--replication", "1", "--mount", text(point)]].concat());
    assert!(said.contains("something is mounted on"), "{said}");
    cluster.ok(&["cluster", "down", "--dir", text(&other)]);
    assert!(point.join("tree").exists(), "the mount of the first cluster is still there");
    cluster.kill("mount");
    cluster.start("mount");
    assert!(point.join("tree").exists());
    // Also with all the rest, after a stop in order or without one.
    cluster.cluster_verb(&["down"]);
    assert!(!point.join("tree").exists());
    cluster.cluster_verb(&["up"]);
    assert!(point.join("tree").exists());
    cluster.kill("mount");
    cluster.cluster_verb(&["up"]);
    assert!(point.join("tree").exists());
}

fn files_are_written_read_and_cut(point: &Path) {
    let path = point.join("file");
    let mut expected = vec![7u8; 3 << 20];
    fs::write(&path, &expected).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    for (offset, length, byte) in [(100, 50, 1u8), (65_530, 20, 2), (1 << 20, 1 << 20, 3), (10, 1, 4)] {
        file.write_all_at(&vec![byte; length], offset).unwrap();
        expected[offset as usize..offset as usize + length].fill(byte);
        let mut seen = vec![0; length];
        file.read_exact_at(&mut seen, offset).unwrap();
        assert!(seen.iter().all(|&read| read == byte), "own writes are seen at once");
    }
    file.sync_all().unwrap();
    drop(file);
    assert!(fs::read(&path).unwrap() == expected);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(1000).unwrap();
    file.set_len(5000).unwrap();
    expected.truncate(1000);
    expected.resize(5000, 0);
    drop(file);
    assert!(fs::read(&path).unwrap() == expected);
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"tail").unwrap();
    drop(file);
    assert!(fs::read(&path).unwrap().ends_with(b"\0tail"));
    let mut file = File::create(point.join("sparse")).unwrap();
    file.seek(SeekFrom::Start(10 << 20)).unwrap();
    file.write_all(b"end").unwrap();
    drop(file);
    let content = fs::read(point.join("sparse")).unwrap();
    assert_eq!(content.len(), (10 << 20) + 3);
    assert!(content[..10 << 20].iter().all(|&byte| byte == 0));
}

fn the_flags_of_a_descriptor_count(point: &Path) {
    let path = point.join("flags");
    fs::write(&path, "0123456789").unwrap();
    let file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all_at(b"end", 0).unwrap();
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"start56789end", "it does not append any more");
    let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND)).unwrap();
    file.write_all(b" of it").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"start56789end of it", "now it does");
    assert!(file.metadata().unwrap().blocks() > 0);
    drop(nix::fcntl::open(&path, OFlag::O_RDONLY | OFlag::O_TRUNC, Mode::empty()).unwrap());
    assert_eq!(fs::read(&path).unwrap(), b"", "emptied without being opened for writing");
}

fn names_move_and_go(point: &Path) {
    fs::create_dir_all(point.join("a/b")).unwrap();
    fs::write(point.join("a/one"), "1").unwrap();
    fs::write(point.join("a/two"), "2").unwrap();
    fs::rename(point.join("a/one"), point.join("a/two")).unwrap();
    assert_eq!(fs::read_to_string(point.join("a/two")).unwrap(), "1");
    fs::hard_link(point.join("a/two"), point.join("a/b/three")).unwrap();
    assert_eq!(fs::metadata(point.join("a/two")).unwrap().nlink(), 2);
    symlink("b/three", point.join("a/link")).unwrap();
    assert_eq!(fs::read_to_string(point.join("a/link")).unwrap(), "1");
    assert!(fs::remove_dir(point.join("a")).is_err());
    for number in 0..500 {
        fs::write(point.join(format!("a/many{number:03}")), "").unwrap();
    }
    let listed = fs::read_dir(point.join("a")).unwrap().count();
    assert_eq!(listed, 503);
    assert_eq!(
        fs::write(point.join("x".repeat(256)), "").unwrap_err().raw_os_error(),
        Some(36),
        "a name of 256 bytes is too long"
    );
    fs::remove_dir_all(point.join("a")).unwrap();
    assert!(!point.join("a").exists());
}

fn an_unlinked_file_lives_while_open(point: &Path) {
    let path = point.join("gone");
    fs::write(&path, "still here").unwrap();
    let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    file.seek(SeekFrom::End(0)).unwrap();
    file.write_all(b", and more").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "still here, and more");
    assert!(!path.exists());
}

#[test]
fn a_mount_goes_on_through_a_leader_change_and_a_dead_datanode() {
    let Some((cluster, point)) = mounted() else { return };
    let path = point.join("log");
    let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
    let mut expected = String::new();
    for number in 0..60 {
        match number {
            20 => cluster.kill(&cluster.leader()),
            40 => cluster.kill(&cluster.busiest_datanode()),
            _ => {}
        }
        let line = format!("record {number}\n");
        file.write_all(line.as_bytes()).unwrap();
        file.sync_all().unwrap();
        expected += &line;
    }
    drop(file);
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    assert_eq!(cluster.ok(&["cat", "/log"]), expected);
    drop(cluster);
    fs::remove_dir(&point).expect("the mount point is free again");
}
