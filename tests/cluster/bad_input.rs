//! Everything that can be wrong at the edge is refused in words.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};

use crate::support::{Cluster, text};

#[test]
fn bad_paths_and_options_are_refused_in_words() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1", "--replication", "1"]);
    assert!(cluster.fails(&["mkdir", &format!("/{}", "x".repeat(256))]).contains("too long"));
    assert!(cluster.fails(&["cat", "/missing"]).contains("no such file"));
    assert!(cluster.fails(&["setrep", "99", "/"]).contains("replication"));
    cluster.fails(&["mkdir", "/a/../../b"]);
    assert_eq!(cluster.run(&["ls", "--nonsense"]).status.code(), Some(2));
    let config = cluster.scratch("bad.toml");
    fs::write(&config, "[datanode]\nnonsense = 1\n").unwrap();
    let said = cluster.fails(&["datanode", "--config", text(&config)]);
    assert!(said.contains("nonsense") && said.contains("bad.toml"), "{said}");
    let unreachable =
        cluster.fails(&["--config", text(&cluster.impatient(1)), "--namenodes", "127.0.0.1:1", "ls", "/"]);
    assert!(unreachable.contains("127.0.0.1:1"), "{unreachable}");
}

#[test]
fn a_port_in_use_and_a_foreign_directory_are_named() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1", "--replication", "1"]);
    let other = Cluster::up(&["--namenodes", "1", "--datanodes", "1", "--replication", "1"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = cluster.scratch("fresh");
    let said = cluster.fails(&["datanode", "--dir", text(&dir), "--listen", &address]);
    assert!(said.contains(&address), "{said}");
    // A datanode of one cluster refuses to serve another.
    other.kill("dn1");
    let foreign = other.dir().join("dn1");
    let namenodes = fs::read_to_string(cluster.dir().join("cairn.toml")).unwrap();
    let address = namenodes.split('"').nth(1).expect("an address").to_string();
    let args = ["datanode", "--dir", text(&foreign), "--listen", "127.0.0.1:0", "--namenodes", &address];
    let said = cluster.fails(&args);
    assert!(said.contains("cluster"), "{said}");
    let file = cluster.scratch("file");
    fs::write(&file, "").unwrap();
    let below = file.join("dir");
    cluster.fails(&["datanode", "--dir", text(&below), "--listen", "127.0.0.1:0", "--namenodes", &address]);
}

#[test]
fn garbage_on_the_wire_stops_nobody() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3"]);
    let status = cluster.wait_for("datanodes", |status| status["datanodes"].as_array().is_some());
    let mut addresses: Vec<String> = Vec::new();
    for role in ["datanodes", "namenodes"] {
        let nodes = status[role].as_array().unwrap().iter();
        addresses.extend(nodes.map(|node| node["address"].as_str().unwrap().to_string()));
    }
    for address in &addresses {
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0; 64], b"x"] {
            let mut stream = TcpStream::connect(address).unwrap();
            let _ = stream.write_all(garbage);
        }
    }
    let local = cluster.scratch("f");
    fs::write(&local, vec![9; 1 << 20]).unwrap();
    cluster.ok(&["put", text(&local), "/f"]);
    assert_eq!(cluster.run(&["cat", "/f"]).stdout.len(), 1 << 20);
}
