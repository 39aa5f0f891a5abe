//! Limits on what may lie below a directory, through the command line and a mount.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use nix::sys::statvfs::statvfs;
use serde_json::Value;

use crate::mounting::mounted;
use crate::support::{Cluster, make_file, text};

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

fn is_over_quota(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EDQUOT)
}

#[test]
fn a_quota_holds_across_commands_leaders_and_restarts() {
    let cluster = Cluster::usual();
    let file = cluster.scratch("file");
    make_file(&file, 300_000, 1);
    cluster.ok(&["mkdir", "-p", "/team/a/b"]);
    cluster.ok(&["put", text(&file), "/team/a/one"]);
    assert!(cluster.fails(&["quota", "set", "/team"]).contains("a limit is missing"));
    let set = json(&cluster.ok(&["quota", "set", "/team", "--names", "5", "--bytes", "1M", "--json"]));
    assert_eq!((&set[0]["names"], &set[0]["bytes"]), (&3.into(), &300_000.into()), "counted as it was");
    cluster.ok(&["put", text(&file), "/team/a/b/two"]);
    cluster.ok(&["cp", "/team/a/one", "/team/three"]);
    let said = cluster.fails(&["put", text(&file), "/team/four"]);
    assert!(said.contains("/team would have 6 names of at most 5") && said.contains("quota set"), "{said}");
    cluster.ok(&["rm", "/team/three"]);
    cluster.ok(&["append", text(&file), "/team/a/one"]);
    let said = cluster.fails(&["append", text(&file), "/team/a/one"]);
    assert!(said.contains("would hold 1200000 bytes of at most 1048576"), "{said}");
    cluster.ok(&["mkdir", "/elsewhere"]);
    cluster.ok(&["put", text(&file), "/elsewhere/big"]);
    assert!(cluster.fails(&["mv", "/elsewhere/big", "/team/a"]).contains("quota exceeded"));
    cluster.ok(&["stat", "/elsewhere/big"]);
    let before = cluster.ok(&["quota", "get", "/team/a", "/", "--json"]);
    assert_eq!(json(&before)[0]["above"][0]["path"], "/team");
    cluster.kill(&cluster.leader());
    assert_eq!(cluster.ok(&["quota", "get", "/team/a", "/", "--json"]), before);
    assert!(cluster.fails(&["mv", "/elsewhere/big", "/team/a"]).contains("quota exceeded"));
    cluster.cluster_verb(&["down"]);
    cluster.cluster_verb(&["up"]);
    assert_eq!(cluster.ok(&["quota", "get", "/team/a", "/", "--json"]), before);
    assert!(cluster.ok(&["quota", "ls"]).contains("/team"));
    cluster.ok(&["quota", "clear", "/team", "--bytes"]);
    cluster.ok(&["mv", "/elsewhere/big", "/team/a"]);
    cluster.ok(&["quota", "clear", "/team"]);
    assert_eq!(json(&cluster.ok(&["quota", "ls", "--json"])), json("[]"));
}

#[test]
fn a_mount_tells_its_programs() {
    let Some((cluster, mount)) = mounted() else { return };
    let team = mount.join("team");
    fs::create_dir(&team).unwrap();
    cluster.ok(&["quota", "set", "/team", "--names", "3", "--bytes", "8M"]);
    let space = statvfs(&team).unwrap();
    assert_eq!((space.blocks() * space.fragment_size(), space.files_free()), (8 << 20, 3));

    // What is buffered is refused at the latest when it is closed or synced.
    let mut one = File::create(team.join("one")).unwrap();
    let whole = one.write_all(&vec![1; 9 << 20]).and_then(|()| one.sync_all());
    assert!(is_over_quota(&whole.unwrap_err()));
    drop(one);
    // A writer that never asks hears it before it has written much more than it may.
    let mut endless = File::create(team.join("one")).unwrap();
    let piece = vec![2; 1 << 20];
    let stopped = (0..1024).find_map(|_| endless.write_all(&piece).err());
    assert!(is_over_quota(&stopped.expect("a gibibyte does not fit")));
    assert!(is_over_quota(&endless.sync_all().unwrap_err()));
    endless.set_len(0).unwrap();

    // Somebody who only reads does not take the news away, nor does a child that is started and closes what it inherits.
    let reader = File::open(team.join("one")).unwrap();
    endless.write_all_at(&vec![3; 9 << 20], 0).unwrap();
    cluster.ok(&["quota", "get", "/team"]);
    drop(reader);
    assert!(is_over_quota(&endless.sync_all().unwrap_err()));
    endless.set_len(0).unwrap();
    endless.write_all_at(&vec![3; 8 << 20], 0).unwrap();
    endless.sync_all().unwrap();

    fs::create_dir(team.join("two")).unwrap();
    fs::hard_link(team.join("one"), team.join("two/three")).unwrap();
    assert!(is_over_quota(&File::create(team.join("four")).unwrap_err()));
    assert!(is_over_quota(&fs::hard_link(team.join("one"), team.join("four")).unwrap_err()));
    fs::write(mount.join("outside"), "x").unwrap();
    assert!(is_over_quota(&fs::rename(mount.join("outside"), team.join("four")).unwrap_err()));
    fs::rename(mount.join("outside"), team.join("two/three")).unwrap_err();
    fs::remove_file(team.join("two/three")).unwrap();
    fs::remove_file(team.join("one")).unwrap();
    fs::rename(mount.join("outside"), team.join("four")).unwrap();
    let get: Value = json(&cluster.ok(&["quota", "get", "/team", "--json"]));
    assert_eq!((&get[0]["names"], &get[0]["bytes"]), (&2.into(), &1.into()), "{get}");
    assert!(cluster.ok(&["fsck"]).contains("HEALTHY"));
}
