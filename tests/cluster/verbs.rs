//! The command line as a person uses it.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Cluster, digest, digests, make_file, make_tree, text};

#[test]
fn a_tree_and_a_large_file_come_back_as_they_were() {
    let cluster = Cluster::usual();
    let tree = cluster.scratch("tree");
    make_tree(&tree, 2_000, 12_000, 1);
    let large = cluster.scratch("large");
    make_file(&large, 200 << 20, 2);
    cluster.ok(&["put", text(&tree), "/tree"]);
    cluster.ok(&["put", text(&large), "/large"]);
    let back = cluster.scratch("back");
    cluster.ok(&["get", "/tree", text(&back)]);
    assert_eq!(digests(&tree), digests(&back));
    let large_back = cluster.scratch("large.back");
    cluster.ok(&["get", "/large", text(&large_back)]);
    assert_eq!(digest(&large), digest(&large_back));
    let status = cluster.wait_healed();
    let chunks = status["open_chunks"].as_u64().unwrap() + status["sealed_chunks"].as_u64().unwrap();
    assert!(chunks <= 20, "2,000 small files and 200 MiB lie in {chunks} chunks");
}

#[test]
fn the_verbs_do_what_their_names_say() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3"]);
    let local = cluster.scratch("local");
    fs::write(&local, "one\ntwo\nthree\n").unwrap();
    cluster.ok(&["mkdir", "-p", "/a/b/c"]);
    cluster.ok(&["put", text(&local), "/a/f"]);
    assert_eq!(cluster.ok(&["cat", "/a/f"]), "one\ntwo\nthree\n");
    assert_eq!(cluster.ok(&["tail", "-c", "6", "/a/f"]), "three\n");
    assert!(cluster.fails(&["put", text(&local), "/a/f"]).contains("exists"));
    cluster.ok(&["put", "-f", text(&local), "/a/f"]);
    cluster.ok(&["append", text(&local), "/a/f"]);
    assert_eq!(cluster.ok(&["cat", "/a/f"]).len(), 28);
    cluster.ok(&["truncate", "-s", "3", "/a/f"]);
    assert_eq!(cluster.ok(&["cat", "/a/f"]), "one");
    cluster.ok(&["cp", "/a/f", "/a/g"]);
    cluster.ok(&["mv", "/a/g", "/a/b/h"]);
    assert_eq!(cluster.ok(&["cat", "/a/b/h"]), "one");
    cluster.ok(&["ln", "-s", "../f", "/a/b/link"]);
    assert_eq!(cluster.ok(&["cat", "/a/b/link"]), "one");
    cluster.ok(&["chmod", "600", "/a/f"]);
    cluster.ok(&["touch", "/a/empty"]);
    let listing: Value = serde_json::from_str(&cluster.ok(&["ls", "--json", "/a"])).expect("JSON");
    assert_eq!(listing.as_array().map(Vec::len), Some(3), "{listing}");
    assert!(cluster.ok(&["ls", "-l", "/a"]).contains("-rw-------"));
    assert!(cluster.ok(&["du", "-s", "/a"]).contains("/a"));
    cluster.ok(&["df"]);
    assert_eq!(cluster.ok(&["checksum", "/a/f"]).split_whitespace().next().map(str::len), Some(64));
    cluster.ok(&["setrep", "2", "/a/f"]);
    assert!(cluster.ok(&["chunks", "/a/f"]).contains("chunk"));
    assert!(cluster.fails(&["rm", "/a"]).contains("directory"));
    cluster.ok(&["rm", "-r", "/a"]);
    assert!(cluster.fails(&["ls", "/a"]).contains("no such file"));
}

#[test]
fn pipes_go_in_and_out() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3"]);
    let mut put = cluster.command(&["put", "-", "/piped"]).stdin(Stdio::piped()).spawn().unwrap();
    let content = "line\n".repeat(500_000);
    put.stdin.take().unwrap().write_all(content.as_bytes()).unwrap();
    assert!(put.wait().unwrap().success());
    let got = cluster.run(&["get", "/piped", "-"]);
    assert_eq!(got.stdout, content.as_bytes());
    assert!(got.stderr.is_empty(), "no progress bar in a pipe: {}", String::from_utf8_lossy(&got.stderr));
}

#[test]
fn put_and_get_keep_modes_and_times_when_asked() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3"]);
    let tree = cluster.scratch("tree");
    make_tree(&tree, 20, 100, 3);
    let script = tree.join("d00/e0/f00000");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o750)).unwrap();
    let then = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_500_000_000, 123_456_789);
    fs::File::options().write(true).open(&script).unwrap().set_modified(then).unwrap();
    cluster.ok(&["put", "-p", text(&tree), "/tree"]);
    let back = cluster.scratch("back");
    cluster.ok(&["get", "-p", "/tree", text(&back)]);
    let meta = fs::metadata(back.join("d00/e0/f00000")).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o750);
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_500_000_000, 123_456_789));
}
