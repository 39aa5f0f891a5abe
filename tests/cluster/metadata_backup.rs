//! All namenodes are lost, and a group begins anew from a backup of the metadata.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::{Cluster, digests, make_tree, text, voters};

#[test]
fn a_lost_group_of_namenodes_begins_anew_from_a_backup() {
    let cluster = Cluster::up(&["--namenodes", "3", "--datanodes", "3", "--dead-after", "3"]);
    let (before, after, again) =
        (cluster.scratch("before"), cluster.scratch("after"), cluster.scratch("again"));
    make_tree(&before, 60, 1 << 18, 1);
    make_tree(&after, 60, 1 << 18, 2);
    make_tree(&again, 60, 1 << 18, 3);
    cluster.ok(&["put", text(&before), "/before"]);
    let backup = cluster.scratch("backup");
    let said = cluster.ok(&["snapshot-metadata", text(&backup)]);
    assert!(said.contains("verified"), "{said}");
    assert_eq!(mode(&backup), 0o600, "it holds the keys of the cluster");
    // What the lost group did after the backup, its new numbers among it, must do no harm.
    cluster.ok(&["put", text(&after), "/after"]);
    let namenodes = ["nn1", "nn2", "nn3"];
    namenodes.iter().for_each(|name| cluster.kill(name));
    namenodes.iter().for_each(|name| drop(cluster.cluster_verb(&["wipe", name])));

    let settings = fs::read_to_string(cluster.dir().join("cairn.toml")).expect("the client's configuration");
    let address = settings.split('"').nth(1).expect("an address");
    let home = cluster.dir().join("nn1");
    let restore_as = |from: &Path, address: &str| {
        cluster.run(&["restore-metadata", text(from), "--dir", text(&home), "--advertise", address])
    };
    let refused = restore_as(&backup, "nowhere");
    assert!(refused.status.code() == Some(2) && !home.exists(), "{refused:?}");
    let restore = |from: &Path| restore_as(from, address);
    let damaged = cluster.scratch("damaged");
    let mut bytes = fs::read(&backup).expect("the backup");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, &bytes).expect("a file");
    let refused = restore(&damaged);
    assert!(!refused.status.success() && !home.exists(), "{refused:?}");
    let done = restore(&backup);
    assert!(done.status.success(), "{done:?}");
    let refused = restore(&backup);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("not empty"), "{why}");

    namenodes.iter().for_each(|name| cluster.start(name));
    cluster.wait_for("three voters", |status| voters(status) == 3);
    cluster.wait_healed();
    let back = cluster.scratch("back");
    cluster.ok(&["get", "/before", text(&back)]);
    assert_eq!(digests(&before), digests(&back));
    cluster.fails(&["stat", "/after"]);
    cluster.ok(&["put", text(&again), "/again"]);
    cluster.wait_healed();
    cluster.ok(&["fsck", "/"]);
    // The others have all of it too.
    let leader = cluster.leader();
    cluster.kill(&leader);
    for (path, tree) in [("/before", &before), ("/again", &again)] {
        let copy = cluster.scratch(&format!("copy{}", path.replace('/', "-")));
        cluster.ok(&["get", path, text(&copy)]);
        assert_eq!(digests(tree), digests(&copy), "{path}");
    }
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).expect("a file").permissions().mode() & 0o7777
}

#[test]
fn a_backup_takes_the_place_of_a_file_and_of_nothing_else() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1", "--replication", "1"]);
    let dir = cluster.scratch("backups");
    fs::create_dir(&dir).unwrap();
    let (file, own, fifo) = (dir.join("b"), dir.join("b.partial"), dir.join("fifo"));
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&own, "somebody's").unwrap();
    cluster.ok(&["snapshot-metadata", text(&file)]);
    assert_eq!((mode(&file), fs::read_to_string(&own).unwrap().as_str()), (0o600, "somebody's"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let said = cluster.fails(&["snapshot-metadata", text(&fifo)]);
    assert!(said.contains("neither a regular file"), "{said}");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 3, "no temporary file stays");
}
