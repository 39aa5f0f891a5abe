//! `cairn doctor` on a machine of a cluster that runs.

use std::fs;
use std::net::TcpListener;

use serde_json::Value;

use crate::support::{Cluster, text};

/// The exit code, and what was found.
fn doctor(cluster: &Cluster, arguments: &[&str]) -> (i32, Value) {
    let mut all = vec!["doctor", "--json"];
    all.extend(arguments);
    let output = cluster.run(&all);
    let found = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code().expect("an exit code"), found)
}

fn codes(found: &Value) -> Vec<&str> {
    let mut codes: Vec<&str> =
        found["findings"].as_array().unwrap().iter().filter_map(|one| one["code"].as_str()).collect();
    codes.sort_unstable();
    codes
}

#[test]
fn a_machine_is_checked_with_its_cluster() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3", "--dead-after", "2"]);
    cluster.wait_for("a healthy cluster", |status| status["health"] == "healthy");
    let listing: Value = serde_json::from_str(&cluster.cluster_verb(&["status", "--json"])).unwrap();
    let address = |name: &str| {
        let nodes = listing["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["name"] == name).unwrap()["address"].as_str().unwrap().to_owned()
    };
    let (namenode, datanode) = (address("nn1"), address("dn1"));
    let (disk, config) = (cluster.scratch("disk"), cluster.scratch("doctor.toml"));
    fs::create_dir(&disk).unwrap();
    let write = |listen: &str, dirs: &str| {
        let content = format!(
            "[client]\nnamenodes = [\"{namenode}\"]\n[datanode]\ndirs = [{dirs}]\nlisten = \"{listen}\"\nreserve_bytes = 0\n"
        );
        fs::write(&config, content).unwrap();
    };
    let named = ["--config", text(&config)];
    let quoted = format!("{:?}", text(&disk));

    // Its own datanode has the port.
    write(&datanode, &quoted);
    let (code, found) = doctor(&cluster, &named);
    assert_eq!((code, codes(&found)), (0, vec![]), "{found:#}");
    assert!(found.to_string().contains("in use by our own process"), "{found:#}");
    assert_eq!(fs::read_dir(&disk).unwrap().count(), 0, "something was left behind");

    // Somebody else has the port, and a directory is none.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = cluster.scratch("file");
    fs::write(&file, "").unwrap();
    write(&other.local_addr().unwrap().to_string(), &format!("{quoted}, {:?}", text(&file)));
    let (code, found) = doctor(&cluster, &named);
    assert_eq!((code, codes(&found)), (2, vec!["DIRECTORY_UNUSABLE", "PORT_TAKEN"]), "{found:#}");
    let (code, local) = doctor(&cluster, &[named[0], named[1], "--local"]);
    assert_eq!((code, codes(&local)), (2, codes(&found)));

    // The cluster's own trouble is a warning, with the same names as elsewhere.
    write("127.0.0.1:0", &quoted);
    cluster.kill("dn2");
    let status = cluster.wait_for("a dead datanode", |status| {
        status["health"] == "degraded" && status["reasons"].to_string().contains("dead")
    });
    let (code, found) = doctor(&cluster, &named);
    assert_eq!((code, found["result"].as_str()), (1, Some("warning")), "{found:#}");
    assert!(codes(&found).contains(&"DATANODES_DEAD"), "{found:#}");
    assert!(status["codes"].to_string().contains("DATANODES_DEAD"), "{status:#}");

    // Nobody answers.
    cluster.kill("nn1");
    let output = cluster.run(&["doctor", "--config", text(&config), "-q", "--timeout", "2"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("CLUSTER_UNREACHABLE: Start namenodes") && !said.contains("ok  "), "{said}");
}
