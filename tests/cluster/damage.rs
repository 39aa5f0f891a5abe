//! Replicas are damaged on disk: the damage is never served, and it is mended, also when nobody reads.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Cluster, digest, make_file, text};

const BLOCK: usize = 64 << 10;

/// A kind of damage, and how it is done to a replica by its data file.
type Kind<'a> = (&'a str, &'a dyn Fn(&Path));

#[test]
fn three_replicas_damaged_in_different_places_are_one_good_chunk() {
    // With as many datanodes as replicas a bad one is replaced where it is, with one more elsewhere first.
    for datanodes in ["3", "4"] {
        let by_way_of_them = if datanodes == "3" { &["--no-short-circuit"][..] } else { &[] };
        let shape = ["--namenodes", "1", "--datanodes", datanodes, "--dead-after", "3"];
        let cluster = Cluster::up(&[&shape, by_way_of_them].concat());
        let local = cluster.scratch("f");
        make_file(&local, 5 * BLOCK + 777, 21);
        cluster.ok(&["put", text(&local), "/f"]);
        cluster.wait_healed();
        let files = replica_files(&cluster, "/f");
        assert_eq!(files.len(), 3);
        let whole = digest(&files[0]);
        flip(&files[0], 10);
        flip(&files[1], 2 * BLOCK + 5);
        flip(&sums(&files[1]), 32 + 64 + 16 * 5 + 3);
        fs::OpenOptions::new().write(true).open(&files[2]).unwrap().set_len(3 * BLOCK as u64).unwrap();
        for round in 0..4 {
            let back = cluster.scratch(&format!("back{round}"));
            cluster.ok(&["get", "/f", text(&back)]);
            assert_eq!(digest(&local), digest(&back));
        }
        cluster.ok(&["admin", "scrub", "/f"]);
        wait_mended(&cluster, 3);
        let files = replica_files(&cluster, "/f");
        assert_eq!(files.len(), 3, "{files:?}");
        for file in &files {
            assert_eq!(digest(file), whole, "{}", file.display());
        }
    }
}

#[test]
fn a_flipped_bit_that_nobody_reads_is_found_and_mended() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3", "--dead-after", "3"]);
    let local = cluster.scratch("f");
    make_file(&local, 3 << 20, 22);
    cluster.ok(&["put", text(&local), "/f"]);
    cluster.wait_healed();
    let files = replica_files(&cluster, "/f");
    let (data, checksums) = (fs::read(&files[1]).unwrap(), fs::read(sums(&files[1])).unwrap());
    flip(&files[1], 1_234_567);
    cluster.ok(&["admin", "scrub"]);
    let status = wait_mended(&cluster, 1);
    assert!(fs::read(&files[1]).unwrap() == data, "the file on disk is as it was");
    assert!(fs::read(sums(&files[1])).unwrap() == checksums);
    assert_eq!(sum(&status, "found"), 1);
    let status = cluster.wait_for("a full pass everywhere", |status| {
        scrubs(status).len() == 3
            && scrubs(status)
                .iter()
                .all(|scrub| scrub["left"] == 0 && scrub["full_pass_ns"].as_i64() > Some(0))
    });
    assert!(scrubs(&status).iter().all(|scrub| scrub["enabled"] == true));
    assert!(cluster.ok(&["status"]).contains("1 bad replica found, 1 mended"));
    cluster.ok(&["admin", "scrub", "--datanode", "1"]);
    assert!(cluster.fails(&["admin", "scrub", "--datanode", "77"]).contains("77"));
}

#[test]
fn damage_of_every_kind_is_mended_with_and_without_a_restart() {
    // The chunks have to stay where they are for the whole test, however slow the machine is.
    let calm = ["--compact-after", "3600"];
    let cluster =
        Cluster::up(&[&["--namenodes", "1", "--datanodes", "3", "--dead-after", "3"], &calm[..]].concat());
    let cut =
        |path: &Path, to: u64| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(to).unwrap();
    let kinds: [Kind<'_>; 10] = [
        ("a flipped bit", &|data| flip(data, 70_000)),
        ("a cut data file", &|data| cut(data, 100_000)),
        ("no data file", &|data| fs::remove_file(data).unwrap()),
        ("a data file of another kind", &|data| fs::write(data, vec![7; 150_000]).unwrap()),
        ("a flipped header", &|data| flip(&sums(data), 9)),
        ("a flipped seal", &|data| flip(&sums(data), 32 + 20)),
        ("a flipped record", &|data| flip(&sums(data), 32 + 64 + 5)),
        ("a cut checksum file", &|data| cut(&sums(data), 32 + 64 + 16)),
        ("an empty checksum file", &|data| cut(&sums(data), 0)),
        ("no checksum file", &|data| fs::remove_file(sums(data)).unwrap()),
    ];
    for restart in [false, true] {
        let mut damaged = Vec::new();
        for (index, (kind, _)) in kinds.iter().enumerate() {
            let local = cluster.scratch("f");
            make_file(&local, 150_000, index as u64);
            let path = format!("/{restart}{index}");
            cluster.ok(&["put", text(&local), &path]);
            damaged.push((kind, path));
        }
        cluster.wait_healed();
        let victim = cluster.dir().join("dn1");
        let mut before = Vec::new();
        for (_, path) in &damaged {
            let files = replica_files(&cluster, path);
            let data = files.into_iter().find(|file| file.starts_with(&victim)).expect("one on dn1");
            before.push((data.clone(), fs::read(&data).unwrap(), fs::read(sums(&data)).unwrap()));
        }
        if restart {
            cluster.kill("dn1");
        }
        before.iter().zip(kinds).for_each(|((data, ..), (_, damage))| damage(data));
        if restart {
            cluster.start("dn1");
        } else {
            cluster.ok(&["admin", "scrub"]);
        }
        for ((kind, path), (data, content, checksums)) in damaged.iter().zip(&before) {
            cluster.wait_for(kind, |_| {
                let unseen = ["a flipped bit", "a flipped record", "a data file of another kind"];
                if restart && unseen.contains(kind) {
                    // A start takes a sealed replica at its word until it is read.
                    cluster.ok(&["admin", "scrub", path]);
                }
                fs::read(data).is_ok_and(|now| now == *content)
                    && fs::read(sums(data)).is_ok_and(|now| now == *checksums)
            });
        }
        cluster.wait_healed();
    }
}

#[test]
fn a_data_file_that_is_too_long_is_cut_and_serves_on() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1", "--replication", "1"]);
    let local = cluster.scratch("f");
    make_file(&local, 150_000, 5);
    cluster.ok(&["put", text(&local), "/f"]);
    cluster.wait_healed();
    let file = replica_files(&cluster, "/f").remove(0);
    let content = fs::read(&file).unwrap();
    fs::write(&file, [&content[..], &[1; 5000]].concat()).unwrap();
    assert!(cluster.run(&["cat", "/f"]).stdout == fs::read(&local).unwrap());
    cluster.ok(&["admin", "scrub", "/f"]);
    cluster.wait_for("the file cut", |_| fs::read(&file).unwrap() == content);
    assert_eq!(sum(&cluster.status().unwrap(), "found"), 0);
}

/// The host files of the replicas of a file's only chunk, once they are sealed on disk, too.
pub fn replica_files(cluster: &Cluster, path: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    cluster.wait_for("sealed replicas", |_| {
        let shown: Value = serde_json::from_str(&cluster.ok(&["chunks", "--json", path])).expect("JSON");
        let chunks = shown[0]["chunks"].as_array().expect("chunks");
        assert_eq!(chunks.len(), 1, "{shown:#}");
        let replicas = chunks[0]["replicas"].as_array().expect("replicas");
        let file = |replica: &Value| Some(PathBuf::from(replica["file"].as_str()?));
        files = replicas.iter().filter_map(file).collect();
        files.len() == replicas.len() && replicas.iter().all(|replica| replica["sealed"] == true)
    });
    files
}

fn sums(data: &Path) -> PathBuf {
    data.with_extension("crc")
}

fn flip(path: &Path, at: usize) {
    let mut content = fs::read(path).unwrap();
    content[at] ^= 0x10;
    fs::write(path, content).unwrap();
}

fn scrubs(status: &Value) -> Vec<&Value> {
    let nodes = status["datanodes"].as_array().expect("datanodes");
    nodes.iter().map(|node| &node["scrub"]).filter(|scrub| scrub.is_object()).collect()
}

fn sum(status: &Value, key: &str) -> u64 {
    scrubs(status).iter().filter_map(|scrub| scrub[key].as_u64()).sum()
}

/// Waits until so many bad replicas were found and are mended, and the cluster is whole.
fn wait_mended(cluster: &Cluster, count: u64) -> Value {
    cluster.wait_for("bad replicas mended", |status| {
        sum(status, "found") >= count && sum(status, "found") == sum(status, "mended")
    });
    cluster.wait_healed()
}
