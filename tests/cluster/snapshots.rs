//! Snapshots of directories: what is in them stays what it was, through the command line and a mount.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::mounting::mounted;
use crate::support::{Cluster, digest, digests, make_file, make_tree, text};

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

fn is_read_only<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
    result.unwrap_err().raw_os_error() == Some(libc::EROFS)
}

fn replace(path: &Path, content: &[u8]) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, content).unwrap();
    fs::rename(&fresh, path).unwrap();
}

/// Waits until no snapshot keeps anything any more.
fn wait_released(cluster: &Cluster) {
    let began = Instant::now();
    loop {
        let df = json(&cluster.ok(&["df", "--json"]));
        if df["kept_bytes"] == 0 {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{df}\n{}", cluster.logs());
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn a_snapshot_stays_what_it_was() {
    let Some((cluster, mount)) = mounted() else { return };
    let dir = mount.join("dir");
    fs::create_dir(&dir).unwrap();
    make_tree(&dir, 120, 60_000, 5);
    make_file(&dir.join("large"), 3 << 20, 6);
    make_file(&dir.join("appended"), 100_000, 7);
    make_file(&dir.join("cut"), 100_000, 8);
    fs::hard_link(dir.join("cut"), dir.join("linked")).unwrap();
    symlink("large", dir.join("link")).unwrap();
    // Everything is to be in it that was done, and a program that synced knows.
    File::open(&dir).unwrap().sync_all().unwrap();
    nix::unistd::sync();
    let expected = digests(&dir);
    let before = cluster.scratch("before");
    cluster.ok(&["get", "/dir", text(&before)]);
    assert_eq!(cluster.ok(&["snapshot", "create", "/dir", "one"]), "/dir/.snapshot/one\n");

    // All that programs do to files.
    let large = OpenOptions::new().write(true).open(dir.join("large")).unwrap();
    large.write_all_at(&[1; 100_000], 1 << 20).unwrap();
    large.sync_all().unwrap();
    drop(large);
    OpenOptions::new().append(true).open(dir.join("appended")).unwrap().write_all(&[2; 5000]).unwrap();
    OpenOptions::new().write(true).open(dir.join("cut")).unwrap().set_len(10).unwrap();
    replace(&dir.join("d00/e0/f00000"), b"replaced");
    fs::remove_file(dir.join("d01/e1/f00001")).unwrap();
    fs::rename(dir.join("d02"), dir.join("moved")).unwrap();
    fs::rename(dir.join("d03"), mount.join("out")).unwrap();
    fs::write(dir.join("new"), "new").unwrap();
    fs::remove_dir_all(dir.join("d04")).unwrap();
    nix::unistd::sync();

    let inside = dir.join(".snapshot/one");
    assert_eq!(digests(&inside), expected);
    assert_eq!(fs::read_link(inside.join("link")).unwrap(), Path::new("large"));
    assert_eq!(fs::metadata(inside.join("linked")).unwrap().nlink(), 2);
    assert!(fs::read_dir(&dir).unwrap().all(|entry| entry.unwrap().file_name() != ".snapshot"));
    let names: Vec<_> =
        fs::read_dir(dir.join(".snapshot")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["one"]);
    cluster.kill(&cluster.leader());
    let taken = cluster.scratch("taken");
    cluster.ok(&["get", "/dir/.snapshot/one", text(&taken)]);
    assert_eq!(digests(&taken), digests(&before));
    assert_eq!(cluster.ok(&["ls", "/dir/.snapshot"]), "one\n");

    // Nobody changes it.
    assert!(is_read_only(fs::write(inside.join("x"), "x")));
    assert!(is_read_only(OpenOptions::new().write(true).open(inside.join("large"))));
    assert!(is_read_only(fs::remove_file(inside.join("large"))));
    assert!(is_read_only(fs::create_dir(dir.join(".snapshot/two"))));
    assert!(is_read_only(fs::rename(inside.join("large"), dir.join("large2"))));
    assert!(is_read_only(fs::set_permissions(inside.join("large"), fs::Permissions::from_mode(0o777))));
    assert!(fs::create_dir(dir.join(".snapshot")).is_err());
    assert!(fs::create_dir(mount.join("out/.snapshot")).is_err());
    assert!(cluster.fails(&["rm", "/dir/.snapshot/one/large"]).contains("read-only"));
    assert!(cluster.fails(&["mkdir", "/dir/.snapshot/one/x"]).contains("read-only"));
    assert!(cluster.fails(&["mv", "/dir", "/elsewhere"]).contains("has snapshots"));
    assert_eq!(digests(&inside), expected);

    // A mount may hold names back for a moment; a program that reads them from elsewhere gets them.
    cluster.ok(&["ls", "-R", "/dir"]);
    let diff = cluster.ok(&["snapshot", "diff", "/dir", "one"]);
    for line in [
        "M .",
        "M ./large",
        "M ./appended",
        "M ./cut",
        "- ./d01/e1/f00001",
        "- ./d03",
        "- ./d04",
        "R ./d02 -> ./moved",
        "+ ./new",
    ] {
        assert!(diff.lines().any(|found| found == line), "{line} is missing in\n{diff}");
    }
    assert!(!diff.contains("./link\n") && !diff.contains("d05"), "{diff}");

    cluster.ok(&["snapshot", "restore", "-q", "--delete", "/dir", "one"]);
    let restored = cluster.scratch("restored");
    cluster.ok(&["get", "/dir", text(&restored)]);
    assert_eq!(digests(&restored), digests(&before));
    assert_eq!(json(&cluster.ok(&["stat", "/dir/linked", "--json"]))[0]["links"], 2);
    assert!(cluster.ok(&["fsck"]).contains("HEALTHY"));

    // What only the snapshot had comes back.
    cluster.ok(&["snapshot", "rm", "/dir", "one"]);
    assert!(cluster.fails(&["ls", "/dir/.snapshot"]).contains("no such file"));
    cluster.ok(&["rm", "-r", "/dir"]);
    wait_released(&cluster);
    assert!(cluster.ok(&["fsck"]).contains("HEALTHY"));
}

#[test]
fn snapshots_are_made_listed_and_given_up() {
    let cluster = Cluster::usual();
    let (one, two) = (cluster.scratch("one"), cluster.scratch("two"));
    make_file(&one, 200_000, 1);
    make_file(&two, 300_000, 2);
    cluster.ok(&["mkdir", "-p", "/d/sub"]);
    cluster.ok(&["put", text(&one), "/d/sub/f"]);
    cluster.ok(&["snapshot", "create", "/d", "first"]);
    cluster.ok(&["put", "-f", text(&two), "/d/sub/f"]);
    let unnamed = json(&cluster.ok(&["snapshot", "create", "/d", "--json"]));
    let name = unnamed["name"].as_str().expect("a name").to_owned();
    assert!(name.starts_with("s20") && name.len() == "s20261126-211500.123".len(), "{name}");
    cluster.ok(&["rm", "/d/sub/f"]);
    assert!(cluster.fails(&["snapshot", "create", "/d", "first"]).contains("file exists"));
    assert!(cluster.fails(&["snapshot", "diff", "/d", "no"]).contains("snapshot ls"));
    assert!(cluster.fails(&["rm", "-r", "/d"]).contains("has snapshots"));
    cluster.ok(&["mkdir", "-p", "/d/sub"]);

    let fetched = |name: &str| {
        let to = cluster.scratch(&format!("fetched-{name}"));
        cluster.ok(&["get", &format!("/d/.snapshot/{name}/sub/f"), text(&to)]);
        digest(&to)
    };
    assert_eq!((fetched("first"), fetched(&name)), (digest(&one), digest(&two)));
    let listed = json(&cluster.ok(&["snapshot", "ls", "--json"]));
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["first", name.as_str()]);
    assert!(cluster.ok(&["snapshot", "ls", "/d"]).contains("first"));
    assert_eq!(cluster.ok(&["snapshot", "diff", "/d", "first", &name]), "M ./sub/f\n");

    // The older one goes on without the younger, whoever leads, and through a restart.
    cluster.kill(&cluster.leader());
    cluster.ok(&["snapshot", "rm", "/d", &name]);
    cluster.cluster_verb(&["down"]);
    cluster.cluster_verb(&["up"]);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(fs::remove_file(cluster.scratch("fetched-first")).ok(), Some(()));
    assert_eq!(fetched("first"), digest(&one));
    cluster.ok(&["snapshot", "restore", "-q", "/d", "first", "sub/f"]);
    let back = cluster.scratch("back");
    cluster.ok(&["get", "/d/sub/f", text(&back)]);
    assert_eq!(digest(&back), digest(&one));
    cluster.ok(&["snapshot", "rm", "/d", "first"]);
    wait_released(&cluster);
    cluster.ok(&["rm", "-r", "/d"]);
    assert!(cluster.ok(&["fsck"]).contains("HEALTHY"));
}
