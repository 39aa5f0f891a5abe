//! The command line as a person uses it.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use serde_json::Value;

use crate::mounting::mounted;
use crate::support::{Cluster, digest, digests, make_file, make_tree, over_tls, text};

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
    assert_eq!(cluster.ok(&["tail", "-c", "+5", "/a/f"]), "two\nthree\n");
    assert_eq!(cluster.ok(&["tail", "-n", "+2", "/a/f"]), "two\nthree\n");
    assert_eq!(cluster.ok(&["tail", "-n", "+9", "/a/f"]), "");
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
    cluster.ok(&["cp", "-r", "/a/b", "/a/copy"]);
    cluster.ok(&["cp", "-r", "/a/b", "/a/copy"]);
    cluster.ok(&["cp", "-r", "/a/b/.", "/a/copy"]);
    cluster.ok(&["rm", "-r", "/a/copy"]);
    cluster.ok(&["mkdir", "-p", "-m", "700", "/a/m/n"]);
    let usual = cluster.ok(&["stat", "-c", "%a", "/a"]);
    assert_eq!(cluster.ok(&["stat", "-c", "%a", "/a/m", "/a/m/n"]), format!("{usual}700\n"));
    cluster.ok(&["rm", "-r", "/a/m"]);
    assert!(cluster.fails(&["append", "/nosuchlocal", "/a/new"]).contains("no such file"));
    let said = cluster.fails(&["node", "recommission", "99", "98"]);
    assert!(said.contains("99: no such datanode") && said.contains("98: no such datanode"), "{said}");
    cluster.ok(&["chmod", "600", "/a/f"]);
    cluster.ok(&["touch", "/a/empty"]);
    let listing: Value = serde_json::from_str(&cluster.ok(&["ls", "--json", "/a"])).expect("JSON");
    assert_eq!(listing.as_array().map(Vec::len), Some(3), "{listing}");
    assert!(cluster.ok(&["ls", "-l", "/a"]).contains("-rw-------"));
    assert!(cluster.ok(&["du", "-s", "/a"]).contains("/a"));
    cluster.ok(&["df"]);
    assert_eq!(cluster.ok(&["checksum", "/a/f"]).split_whitespace().next().map(str::len), Some(64));
    cluster.ok(&["setrep", "2", "/a/f"]);
    cluster.ok(&["setrep", "-R", "1", "/a/b"]);
    assert_eq!(cluster.ok(&["stat", "-c", "%r", "/a/f", "/a/b/h"]), "2\n1\n");
    assert!(cluster.fails(&["setrep", "2", "/a/b"]).contains("only regular files"));
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

#[test]
fn mv_leaves_one_name_and_says_what_is_missing() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1", "--replication", "1"]);
    let local = cluster.scratch("local");
    fs::write(&local, "kept").unwrap();
    cluster.ok(&["put", text(&local), "/a"]);
    cluster.ok(&["ln", "/a", "/b"]);
    assert!(cluster.fails(&["mv", "-n", "/a", "/b"]).contains("exists"));
    assert_eq!(cluster.ok(&["ls", "/"]), "a\nb\n");
    cluster.ok(&["mv", "/a", "/b"]);
    assert_eq!(cluster.ok(&["ls", "/"]), "b\n");
    assert_eq!(cluster.ok(&["cat", "/b"]), "kept");
    // The same name by another way stays.
    cluster.ok(&["ln", "/b", "/c"]);
    cluster.ok(&["ln", "-s", "/", "/way"]);
    cluster.ok(&["mv", "/b", "/way/b"]);
    assert_eq!(cluster.ok(&["ls", "/"]), "b\nc\nway\n");
    assert!(cluster.fails(&["mv", "/b", "/nosuch/x"]).contains("/nosuch/x: no such file"));
    assert_eq!(cluster.ok(&["cat", "/b"]), "kept");
}

#[test]
fn what_is_left_out_of_a_copy_is_told_by_the_exit_code() {
    let Some((cluster, point)) = mounted() else { return };
    fs::create_dir(point.join("tree")).unwrap();
    nix::unistd::mkfifo(&point.join("tree/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(point.join("tree/file"), "x").unwrap();
    let back = cluster.scratch("back");
    for args in [&["get", "/tree", text(&back)][..], &["cp", "-r", "/tree", "/copy"]] {
        let said = cluster.fails(args);
        assert!(said.contains("/tree/fifo: not a regular file"), "{args:?}: {said}");
    }
    assert_eq!(fs::read_to_string(back.join("file")).unwrap(), "x");
    assert_eq!(cluster.ok(&["ls", "/copy"]), "file\n");
    drop(cluster);
    fs::remove_dir(&point).expect("the mount point is free again");
}

/// A user who exists nowhere else.
const ALICE: u32 = 61_001;

#[test]
fn copies_give_others_no_rights_and_take_nothing_from_them() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    if !nix::unistd::geteuid().is_root() || over_tls() {
        eprintln!("skipped: only root can act as other users, and only where nobody shows a certificate");
        return;
    }
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1", "--replication", "1"]);
    let open = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let hers = cluster.scratch("hers");
    fs::create_dir(&hers).unwrap();
    open(hers.parent().unwrap(), 0o711);
    chown(&hers, Some(ALICE), Some(ALICE)).unwrap();
    let program = cluster.scratch("cairn");
    // Not written by this process: what another thread starts just then would hold it open, and it could not be run.
    let copied =
        std::process::Command::new("cp").args([env!("CARGO_BIN_EXE_cairn"), text(&program)]).status();
    assert!(copied.unwrap().success());
    open(&program, 0o755);
    let config = fs::read_to_string(cluster.dir().join("cairn.toml")).unwrap();
    let namenode = config.split('"').nth(1).expect("an address").to_string();
    let as_alice = |args: &[&str]| {
        let mut command = std::process::Command::new(&program);
        command.args(["--namenodes", &namenode]).args(args).uid(ALICE).gid(ALICE).current_dir("/");
        command.env_remove("CAIRN_CONFIG").env_remove("CAIRN_TLS").stdin(Stdio::null());
        command.output().expect("cairn starts")
    };
    // A program that runs as root does not run as whoever copies it.
    let (local, file) = (cluster.scratch("local"), hers.join("program"));
    fs::write(&local, "of root").unwrap();
    open(&local, 0o6755);
    cluster.ok(&["put", "-p", text(&local), "/program"]);
    assert_eq!(cluster.ok(&["stat", "-c", "%a", "/program"]), "6755\n");
    cluster.ok(&["mkdir", "/hers"]);
    cluster.ok(&["chown", "61001:61001", "/hers"]);
    for args in [
        &["put", "-fp", text(&local), "/hers/put"][..],
        &["cp", "-p", "/program", "/hers/copied"],
        &["get", "-p", "/program", text(&file)],
    ] {
        let output = as_alice(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
    assert_eq!(cluster.ok(&["stat", "-c", "%a %u", "/hers/put", "/hers/copied"]), "755 61001\n755 61001\n");
    let fetched = fs::metadata(&file).unwrap();
    assert_eq!((fetched.uid(), fetched.mode() & 0o7777), (ALICE, 0o755));
    // What she may not read does not take the place of what is there.
    cluster.ok(&["put", text(&local), "/hers/f"]);
    cluster.ok(&["chmod", "600", "/hers/f"]);
    cluster.ok(&["snapshot", "create", "/hers", "then"]);
    cluster.ok(&["rm", "/hers/f"]);
    assert!(as_alice(&["cp", "/program", "/hers/f"]).status.success());
    let refused = as_alice(&["snapshot", "restore", "-q", "/hers", "then"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("f: permission denied"), "{said}");
    assert_eq!(cluster.ok(&["cat", "/hers/f"]), "of root");
}

#[test]
fn ln_replaces_a_file_only_by_a_link_that_is_there() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1", "--replication", "1"]);
    let local = cluster.scratch("local");
    fs::write(&local, "kept").unwrap();
    cluster.ok(&["mkdir", "/d"]);
    for path in ["/a", "/b", "/d/x"] {
        cluster.ok(&["put", text(&local), path]);
    }
    assert!(cluster.fails(&["ln", "-f", "/a", "/a"]).contains("are the same file"));
    assert!(cluster.fails(&["ln", "-sf", "/a", "/a"]).contains("are the same file"));
    assert!(cluster.fails(&["ln", "-f", "/d/x", "/d"]).contains("are the same file"));
    assert!(cluster.fails(&["ln", "-f", "/nosuch", "/b"]).contains("/nosuch: no such file"));
    for path in ["/a", "/b", "/d/x"] {
        assert_eq!(cluster.ok(&["cat", path]), "kept", "{path}");
    }
    cluster.ok(&["ln", "-f", "/a", "/b"]);
    cluster.ok(&["ln", "-f", "/a", "/b"]);
    assert_eq!(cluster.ok(&["stat", "-c", "%h", "/a", "/b"]), "2\n2\n");
    cluster.ok(&["ln", "-sf", "a", "/b"]);
    assert_eq!(cluster.ok(&["stat", "-c", "%h %F", "/a", "/b"]), "1 regular file\n1 symbolic link\n");
    assert_eq!(cluster.ok(&["ls", "/"]), "a\nb\nd\n", "no temporary name stays");
}

#[test]
fn a_replaced_file_keeps_its_mode_and_owner_whatever_its_size() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1", "--replication", "1"]);
    let (small, large) = (cluster.scratch("small"), cluster.scratch("large"));
    fs::write(&small, "small").unwrap();
    make_file(&large, 9 << 20, 4);
    let is_root = nix::unistd::geteuid().is_root();
    for source in [&small, &large] {
        let path = format!("/{}", source.file_name().unwrap().display());
        cluster.ok(&["put", text(&small), &path]);
        cluster.ok(&["chmod", "600", &path]);
        cluster.ok(&["setrep", "3", &path]);
        if is_root {
            cluster.ok(&["chown", "12:34", &path]);
        }
        let before = cluster.ok(&["stat", "-c", "%a %u %g %r", &path]);
        assert!(before.starts_with("600 ") && before.ends_with(" 3\n"), "{before}");
        cluster.ok(&["put", "-f", text(source), &path]);
        assert_eq!(cluster.ok(&["stat", "-c", "%a %u %g %r", &path]), before, "{path}");
        cluster.ok(&["put", "-fp", text(source), &path]);
        assert!(cluster.ok(&["stat", "-c", "%a", &path]).starts_with("644"), "{path}");
    }
    assert_eq!(cluster.run(&["cat", "/large"]).stdout, fs::read(&large).unwrap());
}

#[test]
fn get_replaces_files_and_keeps_their_modes_but_replaces_nothing_else() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1", "--replication", "1"]);
    let dir = cluster.scratch("dir");
    fs::create_dir(&dir).unwrap();
    let at = |name: &str| dir.join(name);
    fs::write(at("secret"), "old").unwrap();
    fs::set_permissions(at("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("secret", at("link")).unwrap();
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let new = cluster.scratch("new");
    fs::write(&new, "new").unwrap();
    cluster.ok(&["put", text(&new), "/new"]);
    cluster.ok(&["get", "-f", "/new", text(&at("link"))]);
    assert!(at("link").is_symlink());
    assert_eq!(fs::read_to_string(at("secret")).unwrap(), "new");
    assert_eq!(fs::metadata(at("secret")).unwrap().permissions().mode() & 0o7777, 0o600);
    let said = cluster.fails(&["get", "-f", "/new", text(&at("fifo"))]);
    assert!(said.contains("neither a regular file"), "{said}");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 3);
}

#[test]
fn what_was_not_meant_is_refused() {
    use std::os::unix::fs::symlink;
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1", "--replication", "1"]);
    // An unset variable is not the root.
    let local = cluster.scratch("x");
    fs::write(&local, "local").unwrap();
    for args in [
        &["chmod", "-R", "700", ""][..],
        &["put", text(&local), ""],
        &["get", "", "-"],
        &["append", text(&local), ""],
        &["ln", "", "/l"],
        &["mkdir", "-m", "zzz", "/d"],
        &["--namenodes", "foo", "ls", "/"],
        &["status", "--watch", "nan"],
    ] {
        let output = cluster.run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
    }
    // Of two sources with one name, the second does not take the place of the first.
    for dir in ["/a", "/b", "/into"] {
        cluster.ok(&["mkdir", dir]);
    }
    let other = cluster.scratch("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("x"), "other").unwrap();
    cluster.ok(&["put", text(&local), "/a"]);
    cluster.ok(&["put", text(&other.join("x")), "/b"]);
    let last = cluster.scratch("last");
    fs::write(&last, "last").unwrap();
    let second = other.join("x");
    let put = ["put", "-f", text(&local), text(&second), text(&last), "/into"];
    assert!(cluster.fails(&put).contains("will not overwrite just-created '/into/x'"));
    assert_eq!(cluster.ok(&["cat", "/into/x", "/into/last"]), "locallast");
    assert!(cluster.fails(&["mv", "/a/x", "/b/x", "/into"]).contains("will not overwrite"));
    assert_eq!(cluster.ok(&["cat", "/into/x", "/b/x"]), "localother");
    // One that is not there takes no name.
    cluster.ok(&["mkdir", "/third", "/fourth"]);
    assert!(cluster.fails(&["cp", "/nosuch/x", "/b/x", "/third"]).contains("/nosuch/x"));
    assert!(cluster.fails(&["mv", "/nosuch/x", "/third/x", "/fourth"]).contains("/nosuch/x"));
    assert_eq!(cluster.ok(&["cat", "/fourth/x"]), "other");
    let back = cluster.scratch("back");
    fs::create_dir(&back).unwrap();
    assert!(cluster.fails(&["get", "/into/x", "/b/x", text(&back)]).contains("will not overwrite"));
    assert_eq!(fs::read_to_string(back.join("x")).unwrap(), "local");
    // A trailing slash says that it is a directory.
    cluster.ok(&["ln", "-s", "x", "/b/link"]);
    for args in [
        &["rm", "/b/x/"][..],
        &["mv", "/b/x/", "/b/y"],
        &["cat", "/b/x/"],
        &["stat", "/b/x/"],
        &["touch", "/b/x/"],
        &["touch", "/b/new/"],
        &["append", text(&local), "/b/x/"],
        &["truncate", "-s", "0", "/b/new/"],
        &["ln", "/b/x/", "/b/y"],
        &["ln", "/b/x", "/b/y/"],
        &["rm", "/b/link/"],
    ] {
        assert!(cluster.fails(args).contains("not a directory"), "{args:?}");
    }
    assert_eq!(cluster.ok(&["ls", "/b"]), "link\nx\n");
    cluster.ok(&["ln", "-s", "/b", "/linked"]);
    let checked: Value = serde_json::from_str(&cluster.ok(&["fsck", "--json", "/linked"])).expect("JSON");
    assert_eq!(checked["files"], 1, "the directory, not the link: {checked}");
    // A copy into itself by way of a symbolic link ends.
    cluster.ok(&["mkdir", "-p", "/al/sub"]);
    cluster.ok(&["ln", "-s", "/al/sub", "/way"]);
    assert!(cluster.fails(&["cp", "-r", "/al", "/way"]).contains("into itself"));
    assert_eq!(cluster.ok(&["ls", "/al/sub/al/sub"]), "");
    cluster.ok(&["mkdir", "-p", "/deep/sub/x", "/there/deep"]);
    cluster.ok(&["ln", "-s", "/deep/sub/x", "/there/deep/sub"]);
    assert!(cluster.fails(&["cp", "-r", "/deep", "/there"]).contains("into itself"));
    assert_eq!(cluster.ok(&["ls", "/deep/sub/x"]), "");
    // Nobody who listens, or a name that is not UTF-8, is no reason to panic.
    let (gone, closed) = std::io::pipe().unwrap();
    drop(gone);
    let failed = cluster.command(&["cat", "/nosuch"]).stderr(closed).status().unwrap();
    assert_eq!(failed.code(), Some(1));
    let odd = std::ffi::OsStr::from_bytes(b"odd\xff");
    let ca = cluster.scratch("ca");
    cluster.ok(&["ca", "init", text(&ca)]);
    symlink(&ca, ca.with_file_name(odd)).unwrap();
    let shown = cluster.command(&["ca", "show", "--json"]).arg(ca.with_file_name(odd)).output().unwrap();
    assert!(shown.status.success(), "{shown:?}");
}

#[test]
fn ctrl_c_ends_a_transfer_soon_even_if_nobody_answers() {
    use std::time::{Duration, Instant};
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1", "--replication", "1"]);
    let mut put = cluster.command(&["put", "-", "/piped"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut pipe = put.stdin.take().unwrap();
    pipe.write_all(&vec![1; 12 << 20]).unwrap();
    cluster.kill("nn1");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(put.id() as i32), nix::sys::signal::Signal::SIGINT)
        .unwrap();
    let began = Instant::now();
    assert_eq!(put.wait().unwrap().code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}
