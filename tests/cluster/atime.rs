//! Times of access on a mount.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::mount_command::mount_helper;
use crate::mounting::mounted;
use crate::support::text;

/// Nanoseconds of access and of modification.
fn times(path: &Path) -> (i64, i64) {
    let metadata = fs::metadata(path).unwrap();
    let ns = |seconds: i64, rest: i64| seconds * 1_000_000_000 + rest;
    (ns(metadata.atime(), metadata.atime_nsec()), ns(metadata.mtime(), metadata.mtime_nsec()))
}

fn set_times(path: &Path, accessed: SystemTime, modified: SystemTime) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_times(FileTimes::new().set_accessed(accessed).set_modified(modified)).unwrap();
}

fn read(path: &Path) {
    let mut content = Vec::new();
    File::open(path).unwrap().read_to_end(&mut content).unwrap();
    assert!(!content.is_empty());
}

#[test]
fn reading_leaves_a_trace_as_relatime_has_it() {
    let Some((cluster, point)) = mounted() else { return };
    the_first_read_after_a_change_counts(&point);
    old_times_are_renewed_and_recent_ones_kept(&point);
    times_are_exact_to_the_nanosecond(&point);
    let path = point.join("told");
    fs::write(&path, "x").unwrap();
    set_times(&path, UNIX_EPOCH, SystemTime::now());
    read(&path);
    let (accessed, _) = times(&path);
    assert!(accessed > 0);
    // Another client hears of it in the end.
    cluster.wait_for("the time of access at the namenode", |_| {
        let stat = cluster.ok(&["stat", "--json", "/told"]);
        let stat: serde_json::Value = serde_json::from_str(&stat).expect("JSON");
        let stat = stat.as_array().map_or(stat.clone(), |all| all[0].clone());
        stat["atime_ns"].as_i64().is_some_and(|heard| heard > 0 && heard <= accessed)
    });
    assert_eq!(times(&path).0, accessed, "it stays what it was");
    drop(cluster);
    fs::remove_dir(&point).expect("the mount point is free again");
}

fn the_first_read_after_a_change_counts(point: &Path) {
    let path = point.join("read");
    fs::write(&path, "one").unwrap();
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    set_times(&path, hour_ago, hour_ago);
    let before = times(&path);
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOATIME).open(&path).unwrap();
    (&file).read_exact(&mut [0; 3]).unwrap();
    assert_eq!(times(&path), before, "O_NOATIME");
    read(&path);
    let after = times(&path);
    assert!(after.0 > before.0 && after.1 == before.1);
    read(&path);
    assert_eq!(times(&path), after, "only the first");
    fs::read_dir(point).unwrap().count();
    let (accessed, modified) = times(point);
    assert!(accessed >= modified, "a directory that was listed");
}

fn old_times_are_renewed_and_recent_ones_kept(point: &Path) {
    let path = point.join("old");
    fs::write(&path, "x").unwrap();
    read(&path);
    // A time in the future is newer than every change, and less than a day old.
    let ahead = SystemTime::now() + Duration::from_secs(3600);
    set_times(&path, ahead, UNIX_EPOCH);
    let before = times(&path);
    read(&path);
    assert_eq!(times(&path), before);
    let days_ago = SystemTime::now() - Duration::from_secs(3 * 24 * 3600);
    set_times(&path, days_ago, UNIX_EPOCH);
    let before = times(&path);
    read(&path);
    assert!(times(&path).0 > before.0);
}

fn times_are_exact_to_the_nanosecond(point: &Path) {
    let path = point.join("exact");
    fs::write(&path, "x").unwrap();
    let (accessed, modified) = (Duration::new(1_000_000_001, 123_456_789), Duration::new(5, 999_999_999));
    set_times(&path, UNIX_EPOCH + accessed, UNIX_EPOCH + modified);
    assert_eq!(times(&path), (accessed.as_nanos() as i64, modified.as_nanos() as i64));
    // UTIME_OMIT leaves one, UTIME_NOW sets the other.
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_times(FileTimes::new().set_modified(UNIX_EPOCH)).unwrap();
    drop(file);
    assert_eq!(times(&path), (accessed.as_nanos() as i64, 0));
    assert!(Command::new("touch").args(["-a", text(&path)]).status().unwrap().success());
    let (now, still) = times(&path);
    assert!(now > accessed.as_nanos() as i64 && still == 0);
}

#[test]
fn without_atime_reading_leaves_no_trace() {
    let Some((cluster, point)) = mounted() else { return };
    let quiet = tempfile::tempdir().unwrap();
    let output = mount_helper(&cluster, quiet.path(), "noatime");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = quiet.path().join("f");
    fs::write(&path, "x").unwrap();
    set_times(&path, UNIX_EPOCH, SystemTime::now());
    read(&path);
    assert_eq!(times(&path).0, 0);
    cluster.ok(&["umount", text(quiet.path())]);
    drop(cluster);
    fs::remove_dir(&point).expect("the mount point is free again");
}
