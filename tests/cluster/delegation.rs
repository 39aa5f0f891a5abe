//! Directories that a mount has to itself until somebody else comes to them.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;

use crate::two_mounts::TwoMounts;

/// Long enough that a busy machine ends no session.
const LEASE: &str = "20";

/// Everything below a directory that has to be the same wherever it is looked at.
fn look(directory: &Path) -> Vec<(PathBuf, String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut rest = vec![PathBuf::new()];
    while let Some(path) = rest.pop() {
        let here = directory.join(&path);
        let what = fs::symlink_metadata(&here).unwrap();
        let content = match () {
            () if what.is_dir() => Vec::new(),
            () if what.is_symlink() => fs::read_link(&here).unwrap().into_os_string().as_bytes().to_vec(),
            () if what.is_file() => fs::read(&here).unwrap(),
            () => Vec::new(),
        };
        if what.is_dir() {
            rest.extend(fs::read_dir(&here).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        }
        let attributes = format!(
            "{} {:o} {} {} {} {} {}.{} {}.{}",
            what.ino(),
            what.mode(),
            what.uid(),
            what.gid(),
            what.nlink(),
            what.size(),
            what.mtime(),
            what.mtime_nsec(),
            what.ctime(),
            what.ctime_nsec()
        );
        found.push((path, attributes, content));
    }
    found.sort();
    found
}

/// A bit of everything that programs do with names.
fn work(directory: &Path) {
    fs::create_dir(directory).unwrap();
    for number in 0..60 {
        fs::write(directory.join(format!("f{number}")), format!("content {number}").repeat(number)).unwrap();
    }
    fs::create_dir_all(directory.join("a/b/c")).unwrap();
    for number in 0..20 {
        fs::rename(directory.join(format!("f{number}")), directory.join(format!("a/b/g{number}"))).unwrap();
    }
    fs::rename(directory.join("f20"), directory.join("f21")).unwrap();
    fs::remove_file(directory.join("f22")).unwrap();
    fs::rename(directory.join("a/b/c"), directory.join("moved")).unwrap();
    fs::remove_dir(directory.join("moved")).unwrap();
    symlink("a/b/g1", directory.join("link")).unwrap();
    fs::hard_link(directory.join("f23"), directory.join("hard")).unwrap();
    fs::set_permissions(directory.join("f24"), PermissionsExt::from_mode(0o600)).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    let mut file = OpenOptions::new().write(true).open(directory.join("f25")).unwrap();
    file.write_all(b"new").unwrap();
    file.set_modified(old).unwrap();
    drop(file);
    File::create(directory.join("f26")).unwrap();
    let pipe = CString::new(directory.join("pipe").as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a string that ends with a zero, and lives as long as the call.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o644) }, 0);
}

#[test]
fn whoever_comes_to_a_new_directory_finds_all_that_was_done_there() {
    let Some(mounts) = TwoMounts::up(LEASE) else { return };
    work(&mounts.first.join("one"));
    let own = look(&mounts.first.join("one"));
    for (there, own) in look(&mounts.second.join("one")).iter().zip(&own) {
        assert_eq!((&there.0, &there.1), (&own.0, &own.1));
        assert!(there.2 == own.2, "the content of {}", own.0.display());
    }
    assert_eq!(look(&mounts.second.join("one")).len(), own.len());
    // A name elsewhere is one that others may know of.
    fs::hard_link(mounts.first.join("one/f31"), mounts.first.join("elsewhere")).unwrap();
    assert_eq!(
        fs::read(mounts.second.join("elsewhere")).unwrap(),
        fs::read(mounts.second.join("one/f31")).unwrap()
    );
    // And what the cluster thinks of it.
    assert!(mounts.cluster.ok(&["ls", "/one"]).contains("f59"));
    mounts.cluster.ok(&["fsck", "/"]);
    // Others' changes are seen here as anywhere.
    fs::remove_file(mounts.second.join("one/f30")).unwrap();
    mounts.wait_for("the removal to be seen", || !mounts.first.join("one/f30").exists());
    assert_eq!(fs::create_dir(mounts.first.join("one")).unwrap_err().kind(), ErrorKind::AlreadyExists);
}

#[test]
fn two_mounts_may_work_in_one_directory_from_its_beginning() {
    let Some(mounts) = TwoMounts::up(LEASE) else { return };
    for round in 0..6 {
        let name = format!("d{round}");
        fs::create_dir(mounts.first.join(&name)).unwrap();
        let made: Vec<BTreeSet<String>> = thread::scope(|scope| {
            let both = [&mounts.first, &mounts.second].map(|point| {
                let directory = point.join(&name);
                scope.spawn(move || {
                    let mut made = BTreeSet::new();
                    for number in 0..40 {
                        let name = format!("n{number}");
                        match OpenOptions::new().write(true).create_new(true).open(directory.join(&name)) {
                            Ok(mut file) => {
                                file.write_all(name.as_bytes()).unwrap();
                                made.insert(name);
                            }
                            Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}"),
                        }
                    }
                    made
                })
            });
            both.map(|made| made.join().unwrap()).into()
        });
        assert!(made[0].is_disjoint(&made[1]), "{made:?}");
        for point in [&mounts.first, &mounts.second] {
            for name in (0..40).map(|number| format!("n{number}")) {
                assert_eq!(fs::read_to_string(point.join(format!("d{round}/{name}"))).unwrap(), name);
            }
        }
    }
}

#[test]
fn appends_from_both_sides_are_all_there_once() {
    const EACH: usize = 200;
    let Some(mounts) = TwoMounts::up(LEASE) else { return };
    let line = |writer: usize, number: usize| format!("{writer} {number} {}\n", "x".repeat(number % 100));
    for round in 0..3 {
        let name = format!("d{round}");
        fs::create_dir(mounts.first.join(&name)).unwrap();
        File::create(mounts.first.join(&name).join("log")).unwrap();
        let writers = [&mounts.first, &mounts.first, &mounts.second];
        thread::scope(|scope| {
            for (writer, point) in writers.iter().enumerate() {
                let path = point.join(&name).join("log");
                scope.spawn(move || {
                    let mut log = OpenOptions::new().append(true).open(path).unwrap();
                    for number in 0..EACH {
                        let text = line(writer, number);
                        assert_eq!(log.write(text.as_bytes()).unwrap(), text.len());
                    }
                });
            }
        });
        let expected: BTreeSet<String> =
            (0..writers.len()).flat_map(|writer| (0..EACH).map(move |number| line(writer, number))).collect();
        for point in [&mounts.first, &mounts.second] {
            let content = fs::read_to_string(point.join(&name).join("log")).unwrap();
            let found: Vec<String> = content.lines().map(|line| format!("{line}\n")).collect();
            assert_eq!(found.len(), expected.len());
            assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
        }
    }
}

#[test]
fn what_was_synced_outlives_its_mount_and_of_the_rest_only_the_latest_is_lost() {
    let Some(mounts) = TwoMounts::up("2") else { return };
    let directory = mounts.second.join("d");
    fs::create_dir(&directory).unwrap();
    for number in 0..300 {
        let mut file = File::create(directory.join(format!("{number:04}"))).unwrap();
        if number == 100 {
            file.write_all(b"synced").unwrap();
            file.sync_all().unwrap();
        }
        if number == 150 {
            File::open(&directory).unwrap().sync_all().unwrap();
        }
    }
    mounts.signal(libc::SIGKILL);
    let found = mounts.first.join("d");
    // Until the session is over, nobody knows what there is.
    let names: Vec<String> = {
        let entries = fs::read_dir(&found).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert!(names.len() > 150, "{} of those that were synced", names.len());
    let expected: Vec<String> = (0..names.len()).map(|number| format!("{number:04}")).collect();
    assert_eq!(names, expected, "no hole in what was done");
    assert_eq!(fs::read(found.join("0100")).unwrap(), b"synced");
    fs::write(found.join("new"), "mine now").unwrap();
    mounts.cluster.ok(&["fsck", "/"]);
}

#[test]
fn a_leader_that_dies_while_a_mount_works_alone_costs_nothing() {
    let Some(mounts) = TwoMounts::up(LEASE) else { return };
    let directory = mounts.first.join("d");
    fs::create_dir(&directory).unwrap();
    for number in 0..1500 {
        if number == 500 {
            mounts.cluster.kill(&mounts.cluster.leader());
        }
        fs::write(directory.join(format!("{number}")), format!("content {number}")).unwrap();
        if number % 3 == 2 {
            fs::remove_file(directory.join(format!("{}", number - 1))).unwrap();
        }
    }
    let found = fs::read_dir(mounts.second.join("d")).unwrap().count();
    assert_eq!(found, 1000);
    for number in (0..1500).filter(|number| number % 3 != 1) {
        let content = fs::read_to_string(mounts.second.join(format!("d/{number}"))).unwrap();
        assert_eq!(content, format!("content {number}"));
    }
    mounts.cluster.ok(&["fsck", "/"]);
}

#[test]
fn an_open_file_stays_whole_when_its_directory_is_handed_back() {
    let Some(mounts) = TwoMounts::up(LEASE) else { return };
    let directory = mounts.first.join("d");
    fs::create_dir(&directory).unwrap();
    let mut kept = File::create(directory.join("kept")).unwrap();
    kept.write_all(b"before ").unwrap();
    let mut removed =
        OpenOptions::new().read(true).write(true).create_new(true).open(directory.join("gone")).unwrap();
    removed.write_all(b"still here").unwrap();
    fs::remove_file(directory.join("gone")).unwrap();
    assert!(!mounts.second.join("d/gone").exists());
    kept.write_all(b"and after").unwrap();
    drop(kept);
    assert_eq!(fs::read(mounts.second.join("d/kept")).unwrap(), b"before and after");
    use std::os::unix::fs::FileExt;
    let mut content = vec![0; 10];
    removed.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(content, b"still here");
    // Somebody else may remove what is open here.
    let mut open = File::create(directory.join("open")).unwrap();
    open.write_all(b"mine").unwrap();
    fs::remove_file(mounts.second.join("d/open")).unwrap();
    open.write_all(b" still").unwrap();
    open.sync_all().unwrap();
}

#[test]
fn without_delegation_everything_is_done_at_once() {
    let Some(mounts) = TwoMounts::up("2") else { return };
    let third = tempfile::tempdir().expect("a mount point");
    let point = third.path().to_str().unwrap();
    let mut serving = mounts.cluster.spawn(&["mount", "-o", "nodelegate", point]);
    mounts.wait_for("the third mount", || {
        fs::read_to_string("/proc/mounts").is_ok_and(|table| table.contains(point))
    });
    fs::create_dir(third.path().join("d")).unwrap();
    fs::write(third.path().join("d/f"), "content").unwrap();
    serving.kill().unwrap();
    serving.wait().unwrap();
    let unmounted = std::process::Command::new("umount").arg("-l").arg(point).status().unwrap();
    assert!(unmounted.success());
    assert_eq!(fs::read_to_string(mounts.first.join("d/f")).unwrap(), "content");
}
