//! Ranges of files that are changed without moving a byte, as a program on the mount sees it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use serde_json::Value;

use crate::mounting::mounted;
use crate::support::{Cluster, make_file};

const MIB: usize = 1 << 20;

#[test]
fn ranges_are_punched_zeroed_and_copied() {
    let Some((cluster, point)) = mounted() else { return };
    a_hole_is_punched(&point);
    a_range_is_zeroed(&point);
    a_range_is_copied(&point);
    set_id_bits_go(&point);
    a_copy_moves_no_bytes(&cluster, &point);
    drop(cluster);
    fs::remove_dir(&point).expect("the mount point is free again");
}

/// A file of pseudo-random bytes, open for reading and writing, and its content.
fn filled(path: &Path, length: usize, seed: u64) -> (File, Vec<u8>) {
    make_file(path, length, seed);
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let content = fs::read(path).unwrap();
    assert_eq!(content.len(), length);
    (file, content)
}

fn a_hole_is_punched(point: &Path) {
    let path = point.join("punched");
    let (file, mut expected) = filled(&path, 4 * MIB, 1);
    // Not flushed yet: the hole must come after it.
    file.write_all_at(&[7; 5000], MIB as u64 + 100).unwrap();
    expected[MIB + 100..MIB + 5100].fill(7);
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, hole, MIB as i64, 2 * MIB as i64).unwrap();
    expected[MIB..3 * MIB].fill(0);
    let mut seen = vec![1; expected.len()];
    file.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == expected, "seen at once through the same descriptor");
    let meta = file.metadata().unwrap();
    assert_eq!((meta.len(), meta.blocks()), (4 * MIB as u64, 2 * MIB as u64 / 512));
    let seek = |from: usize, whence| lseek(&file, from as i64, whence).map(|at| at as usize);
    assert_eq!(seek(0, Whence::SeekHole), Ok(MIB));
    assert_eq!(seek(MIB, Whence::SeekData), Ok(3 * MIB));
    assert_eq!(seek(2 * MIB, Whence::SeekHole), Ok(2 * MIB));
    assert_eq!(seek(3 * MIB + 5, Whence::SeekHole), Ok(4 * MIB));
    // Written again in the middle of the hole.
    file.write_all_at(&[9; 10], 2 * MIB as u64).unwrap();
    expected[2 * MIB..2 * MIB + 10].fill(9);
    assert_eq!(seek(MIB, Whence::SeekData), Ok(2 * MIB));
    // Past the end nothing is there to punch, and the file stays as long as it is.
    fallocate(&file, hole, 8 * MIB as i64, 100).unwrap();
    drop(file);
    assert!(fs::read(&path).unwrap() == expected);
}

fn a_range_is_zeroed(point: &Path) {
    let path = point.join("zeroed");
    let (file, mut expected) = filled(&path, 10_000, 2);
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
    let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, zero, 10, 90).unwrap();
    expected[10..100].fill(0);
    fallocate(&file, zero | keep, 9_000, 5_000).unwrap();
    expected[9_000..].fill(0);
    assert!(fs::read(&path).unwrap() == expected);
    fallocate(&file, zero, 9_500, 5_000).unwrap();
    expected.resize(14_500, 0);
    fallocate(&file, keep, 0, 100_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 14_500);
    fallocate(&file, FallocateFlags::empty(), 0, 20_000).unwrap();
    expected.resize(20_000, 0);
    assert!(fs::read(&path).unwrap() == expected);
    let refused = fallocate(&file, FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, 4096).unwrap_err();
    assert_eq!(refused, nix::errno::Errno::EOPNOTSUPP);
}

fn a_range_is_copied(point: &Path) {
    let (from, content) = filled(&point.join("source"), 3 * MIB, 3);
    let path = point.join("target");
    let (to, mut expected) = filled(&path, 2 * MIB, 4);
    // What is in neither file's committed content yet is copied, and copied over.
    from.write_all_at(&[5; 300], 1_000).unwrap();
    to.write_all_at(&[6; 300], 500_000).unwrap();
    let mut content = content;
    content[1_000..1_300].fill(5);
    let copied = copy(&from, 500, &to, 400_001, 200_000);
    assert_eq!(copied, 200_000);
    expected[400_001..600_001].copy_from_slice(&content[500..200_500]);
    // The end of the source ends the copy, which may make the target longer.
    assert_eq!(copy(&from, 2 * MIB, &to, 2 * MIB + 10, 9 * MIB), MIB);
    expected.resize(2 * MIB + 10, 0);
    expected.extend_from_slice(&content[2 * MIB..]);
    let mut seen = vec![1; expected.len()];
    to.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == expected);
    // The two are as independent as any copies.
    from.write_all_at(&[8; 1000], 500).unwrap();
    from.set_len(100).unwrap();
    assert!(fs::read(&path).unwrap() == expected);
    assert_eq!(copy(&File::open(&path).unwrap(), 0, &to, MIB, 1_000), 1_000);
    expected.copy_within(..1_000, MIB);
    assert!(fs::read(&path).unwrap() == expected);
}

/// The standard library lets the kernel copy between files, which asks the mount.
fn copy(mut from: &File, offset: usize, mut to: &File, to_offset: usize, length: usize) -> usize {
    from.seek(SeekFrom::Start(offset as u64)).unwrap();
    to.seek(SeekFrom::Start(to_offset as u64)).unwrap();
    io::copy(&mut from.take(length as u64), &mut to).unwrap() as usize
}

/// As for a write, nobody but root leaves set-id bits behind, and the change is seen at once.
fn set_id_bits_go(point: &Path) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("left out: only root can act as somebody else");
        return;
    }
    let path = point.join("program");
    fs::write(&path, "a program").unwrap();
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
    for how in ["--punch-hole", "--zero-range", "--keep-size"] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        assert_eq!(mode(), 0o6777);
        let status = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(["fallocate", how, "--offset=0", "--length=4"])
            .arg(&path)
            .status();
        assert!(status.unwrap().success(), "{how}");
        assert_eq!(mode(), 0o777, "{how}");
    }
}

fn a_copy_moves_no_bytes(cluster: &Cluster, point: &Path) {
    let (file, content) = filled(&point.join("large"), 20 * MIB, 5);
    file.sync_all().unwrap();
    // Where the bytes of a file lie: chunks, and offsets in them.
    let places = |path| -> Vec<(u64, u64, u64)> {
        let shown: Value = serde_json::from_str(&cluster.ok(&["chunks", "--json", path])).expect("JSON");
        let extents = shown[0]["extents"].as_array().expect("extents");
        let number = |extent: &Value, key: &str| extent[key].as_u64().expect("a number");
        let place =
            |extent| (number(extent, "chunk"), number(extent, "chunk_offset"), number(extent, "length"));
        extents.iter().map(place).collect()
    };
    let original = places("/large");
    fs::copy(point.join("large"), point.join("copy")).unwrap();
    cluster.ok(&["cp", "/large", "/copied"]);
    assert_eq!(places("/copy"), original);
    assert_eq!(places("/copied"), original);
    fs::remove_file(point.join("large")).unwrap();
    drop(file);
    assert!(fs::read(point.join("copy")).unwrap() == content);
    assert!(fs::read(point.join("copied")).unwrap() == content);
    // A file in more pieces than one step takes in is copied in several.
    let scattered = File::create(point.join("scattered")).unwrap();
    let mut expected = vec![0; 4_200 * 8];
    for piece in (0..4_200u64).rev() {
        scattered.write_all_at(&[piece as u8 | 1; 4], piece * 8).unwrap();
        expected[piece as usize * 8..piece as usize * 8 + 4].fill(piece as u8 | 1);
    }
    scattered.sync_all().unwrap();
    expected.truncate(4_199 * 8 + 4);
    cluster.ok(&["cp", "/scattered", "/gathered"]);
    assert_eq!(places("/gathered"), places("/scattered"));
    assert!(places("/gathered").len() > 4096);
    assert!(fs::read(point.join("gathered")).unwrap() == expected);
}
