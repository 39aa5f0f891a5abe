//! Who is let in: always over TLS, whatever the other tests do.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use cairn_client::data::{Hello, OpenChain, Request, Response, StatReplica, request, response};
use cairn_client::{ErrorCode, fs as messages};
use prost::Message;

use crate::support::{Cluster, make_file, text};
use crate::wire::Wire;

const PATIENCE: Duration = Duration::from_secs(10);

fn secure() -> Cluster {
    Cluster::up(&["--namenodes", "1", "--datanodes", "3", "--secure"])
}

/// Addresses of namenodes and of datanodes.
fn addresses(cluster: &Cluster) -> (Vec<String>, Vec<String>) {
    let status = cluster.wait_for("three datanodes", |status| {
        status["datanodes"].as_array().is_some_and(|nodes| nodes.len() == 3)
    });
    let of = |role: &str| -> Vec<String> {
        let nodes = status[role].as_array().unwrap().iter();
        nodes.map(|node| node["address"].as_str().unwrap().to_owned()).collect()
    };
    (of("namenodes"), of("datanodes"))
}

#[track_caller]
fn works(cluster: &Cluster, name: &str) {
    let local = cluster.scratch(name);
    make_file(&local, 1 << 20, 3);
    cluster.ok(&["put", "-f", text(&local), &format!("/{name}")]);
    assert!(cluster.run(&["cat", &format!("/{name}")]).stdout == fs::read(&local).unwrap());
    assert_eq!(cluster.status().expect("a status")["health"], "healthy");
}

/// A certificate of the cluster's authority.
fn user(cluster: &Cluster, name: &str, more: &[&str]) -> PathBuf {
    let ca = cluster.dir().join("ca");
    let mut args = vec!["ca", "user", name, "--ca", text(&ca)];
    args.extend(more);
    cluster.ok(&args);
    ca.join("users").join(name)
}

/// A command as whoever has the certificate in `tls`; with none, without TLS.
fn run_as(cluster: &Cluster, tls: Option<&Path>, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cairn"));
    command
        .env_remove("CAIRN_CONFIG")
        .env_remove("CAIRN_TLS")
        .env("XDG_STATE_HOME", cluster.scratch("nowhere"));
    command.env("CAIRN_NAMENODES", addresses(cluster).0.join(","));
    if let Some(tls) = tls {
        command.env("CAIRN_TLS", tls);
    }
    command.args(args).args(["--timeout", "3"]).output().expect("cairn starts")
}

#[track_caller]
fn refused(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && !said.contains("panicked"), "{said}");
    assert!(output.stdout.is_empty(), "it was told {}", String::from_utf8_lossy(&output.stdout));
    said
}

#[test]
fn whoever_has_no_good_certificate_learns_nothing() {
    let cluster = secure();
    works(&cluster, "before");
    let (namenodes, datanodes) = addresses(&cluster);

    // Without TLS, and with garbage: the end of the connection is all that comes, or an alert of seven bytes.
    for address in namenodes.iter().chain(&datanodes) {
        for bytes in [
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..],
            &[0xff; 300],
            &[22, 3, 1, 0, 5, 1, 0, 0, 1, 0],
        ] {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(bytes).unwrap();
            let mut heard = Vec::new();
            let _ = stream.read_to_end(&mut heard);
            assert!(heard.len() <= 7, "{address} said {heard:?}");
        }
    }
    let said = refused(&run_as(&cluster, None, &["ls", "/"]));
    assert!(said.contains("it wants TLS"), "{said}");

    // Another authority, of the same name.
    let foreign = cluster.scratch("foreign");
    cluster.ok(&["ca", "init", text(&foreign), "--name", "local cluster"]);
    cluster.ok(&["ca", "user", "root", "--ca", text(&foreign), "--uid", "0", "--gid", "0"]);
    let stranger = foreign.join("users/root");
    let said = refused(&run_as(&cluster, Some(&stranger), &["ls", "/"]));
    assert!(said.contains("not to be trusted"), "{said}");
    // It knows the cluster's authority, and so the nodes, but they do not know it.
    let mixed = cluster.scratch("mixed");
    fs::create_dir(&mixed).unwrap();
    let own = cluster.dir().join("ca/users/client");
    fs::copy(own.join("ca.pem"), mixed.join("ca.pem")).unwrap();
    for name in ["cert.pem", "key.pem"] {
        fs::copy(stranger.join(name), mixed.join(name)).unwrap();
    }
    let said = refused(&run_as(&cluster, Some(&mixed), &["ls", "/"]));
    assert!(said.contains("not good"), "{said}");
    works(&cluster, "after");
}

#[test]
fn a_certificate_that_was_taken_back_is_good_no_more() {
    let cluster = secure();
    let anna = user(&cluster, "anna", &["--uid", "1000", "--gid", "1000"]);
    assert!(run_as(&cluster, Some(&anna), &["ls", "/"]).status.success());
    // One who is in the middle of something has a connection already.
    cluster.ok(&["mkdir", "-m", "1777", "/shared"]);
    let mut busy = Command::new(env!("CARGO_BIN_EXE_cairn"));
    busy.env_remove("CAIRN_CONFIG").env("XDG_STATE_HOME", cluster.scratch("nowhere"));
    busy.env("CAIRN_NAMENODES", addresses(&cluster).0.join(",")).env("CAIRN_TLS", &anna);
    busy.args(["put", "-", "/shared/busy", "--timeout", "5"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut busy = busy.spawn().expect("cairn starts");
    busy.stdin.as_mut().unwrap().write_all(&[1; 3 << 20]).unwrap();
    let ca = cluster.dir().join("ca");
    cluster.ok(&["ca", "revoke", text(&anna), "--ca", text(&ca)]);
    let shown = cluster.ok(&["ca", "show", "--ca", text(&ca)]);
    assert!(shown.lines().any(|line| line.contains("user anna") && line.contains("revoked")), "{shown}");
    for node in fs::read_dir(ca.join("nodes")).unwrap().flatten() {
        fs::copy(ca.join("crl.pem"), node.path().join("crl.pem")).unwrap();
    }
    let give_up = Instant::now() + 6 * PATIENCE;
    while run_as(&cluster, Some(&anna), &["ls", "/"]).status.success() {
        assert!(Instant::now() < give_up, "the list is not looked at");
        std::thread::sleep(Duration::from_millis(500));
    }
    let said = refused(&run_as(&cluster, Some(&anna), &["ls", "/"]));
    assert!(said.contains("refuses this certificate"), "{said}");
    let ended = busy.wait_with_output().unwrap();
    assert!(!ended.status.success(), "what was begun before was finished: {ended:?}");
    assert!(cluster.fails(&["stat", "/shared/busy"]).contains("no such file"));
    works(&cluster, "after");
}

#[test]
fn a_user_is_no_node_and_a_node_no_user() {
    let cluster = secure();
    let (namenodes, _) = addresses(&cluster);
    let anna = user(&cluster, "anna", &["--uid", "1000", "--gid", "1000"]);
    let dir = cluster.scratch("posing");
    let args = ["datanode", "--dir", text(&dir), "--listen", "127.0.0.1:0", "--namenodes", &namenodes[0]];
    let said = refused(&run_as_node(&cluster, &anna, &args));
    assert!(said.contains("not a datanode's"), "{said}");
    let args = ["namenode", "--dir", text(&dir), "--listen", "127.0.0.1:1", "--peers", "127.0.0.1:1"];
    let datanode = cluster.dir().join("ca/nodes/dn1");
    let said = refused(&run_as_node(&cluster, &datanode, &args));
    assert!(said.contains("not a namenode's"), "{said}");
    // What they would ask for, had they other programs: a node may not ask the namespace, nor a user the group.
    refused(&run_as(&cluster, Some(&datanode), &["ls", "/"]));
    refused(&run_as(&cluster, Some(&anna), &["admin", "scrub"]));
    refused(&run_as(&cluster, Some(&anna), &["snapshot-metadata", text(&cluster.scratch("names"))]));
    works(&cluster, "after");
}

#[test]
fn a_certificate_that_is_over_soon_is_told() {
    let cluster = secure();
    let doctor = |tls: &Path| {
        let output = run_as(&cluster, Some(tls), &["doctor", "--json"]);
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        found["findings"].as_array().expect("findings").clone()
    };
    let codes = |findings: &[serde_json::Value], area: &str| -> Vec<String> {
        let of_area = findings.iter().filter(|one| one["area"] == area);
        of_area.filter_map(|one| one["code"].as_str().map(str::to_owned)).collect()
    };
    let long = user(&cluster, "long", &["--uid", "1000", "--gid", "1000"]);
    assert!(codes(&doctor(&long), "client").is_empty());
    let brief = user(&cluster, "brief", &["--uid", "1001", "--gid", "1001", "--days", "10"]);
    assert_eq!(codes(&doctor(&brief), "client"), ["CERTIFICATE_ENDS"]);
    fs::remove_file(brief.join("key.pem")).unwrap();
    assert!(codes(&doctor(&brief), "client").contains(&"CERTIFICATE_UNUSABLE".to_owned()));
}

fn run_as_node(cluster: &Cluster, tls: &Path, args: &[&str]) -> Output {
    cluster.command(args).env("CAIRN_TLS", tls).output().expect("cairn starts")
}

#[test]
fn the_certificate_says_who_somebody_is() {
    let cluster = secure();
    cluster.ok(&["mkdir", "-m", "1777", "/shared"]);
    let anna = user(&cluster, "anna", &["--uid", "1000", "--gid", "1000", "--groups", "50"]);
    let bert = user(&cluster, "bert", &["--uid", "1001", "--gid", "1001"]);
    let secret = cluster.scratch("secret");
    fs::write(&secret, "for my eyes only").unwrap();
    // These run as root on this machine, which the namenode does not care about.
    let done = |tls: &Path, args: &[&str]| {
        let output = run_as(&cluster, Some(tls), args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    done(&anna, &["put", text(&secret), "/shared/secret"]);
    done(&anna, &["chmod", "600", "/shared/secret"]);
    let stat: serde_json::Value =
        serde_json::from_str(&cluster.ok(&["stat", "--json", "/shared/secret"])).unwrap();
    let stat = stat.as_array().map_or(stat.clone(), |all| all[0].clone());
    assert_eq!((stat["uid"].as_u64(), stat["gid"].as_u64()), (Some(1000), Some(1000)), "{stat}");
    assert_eq!(done(&anna, &["cat", "/shared/secret"]), "for my eyes only");
    for args in [
        &["cat", "/shared/secret"][..],
        &["rm", "--skip-trash", "/shared/secret"],
        &["chmod", "644", "/shared/secret"],
        &["chown", "1001", "/shared/secret"],
        &["mv", "/shared/secret", "/shared/mine"],
        &["mkdir", "/mine"],
        &["quota", "ls"],
    ] {
        let said = refused(&run_as(&cluster, Some(&bert), args));
        assert!(!said.contains("my eyes"), "{said}");
    }
    // Whoever may act for all is whom they say: the local cluster's own client is root here.
    cluster.ok(&["chown", "1001", "/shared/secret"]);
    assert_eq!(done(&bert, &["cat", "/shared/secret"]), "for my eyes only");
    refused(&run_as(&cluster, Some(&anna), &["cat", "/shared/secret"]));
}

/// Says hello to a datanode, asks, and returns its answer.
fn ask(address: &str, tls: &Path, cluster_id: &str, kind: request::Kind) -> response::Kind {
    let mut wire = Wire::with(address, tls).unwrap();
    let hello = request::Kind::Hello(Hello { version: 1, cluster_id: cluster_id.into() });
    for kind in [hello, kind] {
        let header = Request { kind: Some(kind), request: 0 }.encode_to_vec();
        let lengths = [(header.len() as u32).to_le_bytes(), 0u32.to_le_bytes()].concat();
        wire.write_all(&[lengths, header].concat()).unwrap();
    }
    let mut last = None;
    for _ in 0..2 {
        let mut lengths = [0; 8];
        wire.read_exact(&mut lengths).unwrap();
        let part = |at: usize| u32::from_le_bytes(lengths[at..at + 4].try_into().unwrap()) as usize;
        let mut bytes = vec![0; part(0) + part(4)];
        wire.read_exact(&mut bytes).unwrap();
        last = Response::decode(&bytes[..part(0)]).unwrap().kind;
    }
    last.expect("an answer")
}

#[test]
fn a_datanode_wants_to_see_a_capability_for_each_chunk() {
    let cluster = secure();
    works(&cluster, "file");
    let (_, datanodes) = addresses(&cluster);
    let status = cluster.status().unwrap();
    let cluster_id = status["cluster_id"].as_str().expect("the cluster's id").to_owned();
    let anna = user(&cluster, "anna", &["--uid", "1000", "--gid", "1000"]);
    let code = |kind: request::Kind| match ask(&datanodes[0], &anna, &cluster_id, kind) {
        response::Kind::Failure(failure) => {
            let error: messages::Error = failure.error.unwrap();
            (ErrorCode::from_number(error.code).unwrap(), error.detail)
        }
        other => panic!("{other:?}"),
    };
    let nothing = (ErrorCode::NoCapability, String::new());
    // Chunks that are there and chunks that are not are refused alike, whatever is shown.
    for chunk in [1, 2, 1 << 40] {
        for capability in [vec![], vec![0; 58], vec![1; 58], vec![1; 10_000]] {
            let capability: bytes::Bytes = capability.into();
            let read =
                cairn_client::data::Read { chunk, offset: 0, length: 10, capability: capability.clone() };
            assert_eq!(code(request::Kind::Read(read)), nothing);
            let stat = StatReplica { chunk, capability: capability.clone() };
            assert_eq!(code(request::Kind::Stat(stat)), nothing);
            let open = OpenChain { chunk, capability, ..OpenChain::default() };
            assert_eq!(code(request::Kind::Open(open)), nothing);
        }
    }
    let list = request::Kind::List(cairn_client::data::ListReplicas { first: 0, limit: 0 });
    assert_eq!(code(list).0, ErrorCode::PermissionDenied);
    // Repair goes from datanode to datanode, and reads go on when a leader is new.
    cluster.kill("nn1");
    cluster.start("nn1");
    works(&cluster, "after");
}
