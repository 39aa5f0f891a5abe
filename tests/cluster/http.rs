//! What the roles show over HTTP: whether they are ready, metrics, and the dashboard's page and events.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::mounting::can_mount;
use crate::support::{Cluster, make_tree, text};
use crate::wire::{Wire, use_certificate};

/// How long anything that must happen "by itself" may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(90);

/// Addresses of the nodes' HTTP servers, by name.
pub fn servers(cluster: &Cluster) -> BTreeMap<String, String> {
    let shown: Value = serde_json::from_str(&cluster.cluster_verb(&["status", "--json"])).unwrap();
    let nodes = shown["nodes"].as_array().unwrap().iter();
    // A mount has none.
    nodes.filter_map(|node| Some((node["name"].as_str()?.into(), node["http"].as_str()?.into()))).collect()
}

fn connect(address: &str) -> Wire {
    Wire::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"))
}

fn ask(stream: &mut Wire, path: &str) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
}

/// Status, head and body of an answer.
fn get(address: &str, path: &str) -> (u16, String, String) {
    let mut stream = connect(address);
    ask(&mut stream, path);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap_or_else(|error| panic!("{address}{path}: {error}"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{address}{path}: {answer}"));
    (head[9..12].parse().unwrap(), head.to_owned(), body.to_owned())
}

/// The events that a namenode pushes.
struct Events(BufReader<Wire>);

impl Events {
    fn of(address: &str) -> Events {
        let mut stream = connect(address);
        ask(&mut stream, "/events");
        Events(BufReader::new(stream))
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream of events ended");
            if let Some(event) = line.strip_prefix("data: ") {
                return serde_json::from_str(event.trim_end())
                    .unwrap_or_else(|error| panic!("{error}: {event}"));
            }
        }
    }

    #[track_caller]
    fn wait_for(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let event = self.next();
            if wanted(&event["sample"]) {
                return event;
            }
            assert!(Instant::now() < give_up, "waited in vain for {what}; last seen: {event:#}");
        }
    }
}

/// Chunks by what they lack, from all to too many and open, over the whole map.
fn kinds(sample: &Value) -> Vec<u64> {
    let mut sums = vec![0; 6];
    for stretch in sample["chunks"]["stretches"].as_array().into_iter().flatten() {
        for (sum, count) in sums.iter_mut().zip(stretch.as_array().unwrap()) {
            *sum += count.as_u64().unwrap();
        }
    }
    sums
}

/// Every series with its value. Whatever is not well-formed fails the test.
#[track_caller]
fn parsed(metrics: &str) -> BTreeMap<String, f64> {
    let (mut series, mut types) = (BTreeMap::new(), BTreeSet::new());
    for line in metrics.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            assert!(types.insert(kind.split(' ').next().unwrap().to_owned()), "twice: {line}");
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
        let value: f64 = value.parse().unwrap_or_else(|error| panic!("{error}: {line}"));
        let bare = name.split('{').next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| bare.strip_suffix(suffix));
        assert!(types.contains(bare) || family.is_some_and(|name| types.contains(name)), "no type: {line}");
        assert!(bare.starts_with("cairn_") || bare.starts_with("process_"), "{line}");
        assert!(series.insert(name.to_owned(), value).is_none(), "twice: {line}");
    }
    series
}

#[track_caller]
pub fn metrics(address: &str) -> BTreeMap<String, f64> {
    let (status, _, body) = get(address, "/metrics");
    assert_eq!(status, 200);
    parsed(&body)
}

#[test]
fn every_node_tells_whether_it_is_ready_and_what_it_did() {
    let cluster = Cluster::up(&["--namenodes", "3", "--datanodes", "3", "--no-short-circuit"]);
    let tree = cluster.scratch("tree");
    make_tree(&tree, 30, 1 << 18, 31);
    cluster.ok(&["put", text(&tree), "/tree"]);
    cluster.ok(&["get", "/tree", text(&cluster.scratch("back"))]);
    cluster.wait_healed();
    let servers = servers(&cluster);
    assert_eq!(servers.len(), 6);
    for (name, address) in &servers {
        assert_eq!(get(address, "/healthz").0, 200, "{name}");
        let (status, _, why) = get(address, "/readyz");
        assert_eq!(status, 200, "{name}: {why}");
    }
    rules_are_about_metrics_that_exist(&servers);
    let leader = metrics(&servers[&cluster.leader()]);
    assert_eq!(leader["cairn_raft_leader"], 1.0);
    assert_eq!(leader["cairn_health"], 0.0);
    assert_eq!(leader["cairn_datanodes{liveness=\"live\"}"], 3.0);
    assert_eq!(leader["cairn_files"], 30.0);
    let count = "cairn_namenode_mutation_duration_seconds_count{operation=\"mkdir\",result=\"ok\"}";
    assert!(leader[count] >= 1.0);
    assert!(leader["cairn_raft_commit_duration_seconds_count"] >= 1.0);
    assert!(leader["cairn_raft_commands_total"] >= leader[count]);
    let lags = leader.keys().filter(|name| name.starts_with("cairn_raft_peer_lag_entries")).count();
    assert_eq!(lags, 2);
    let leading: f64 = servers
        .iter()
        .filter(|(name, _)| name.starts_with("nn"))
        .map(|(_, address)| metrics(address)["cairn_raft_leader"])
        .sum();
    assert_eq!(leading, 1.0);
    let datanodes: Vec<_> = servers
        .iter()
        .filter(|(name, _)| name.starts_with("dn"))
        .map(|(_, address)| metrics(address))
        .collect();
    let sum = |name: &str| datanodes.iter().map(|node| node[name]).sum::<f64>();
    let written = leader["cairn_live_bytes"];
    assert!(sum("cairn_datanode_written_bytes_total") >= 3.0 * written);
    assert!(sum("cairn_datanode_read_bytes_total") >= written);
    assert!(sum("cairn_datanode_append_duration_seconds_count") >= 1.0);
    assert!(sum("cairn_datanode_replicas") >= 3.0);
}

/// Alert rules and dashboards name nothing that nobody tells; what mounts tell is not looked for here.
#[track_caller]
fn rules_are_about_metrics_that_exist(servers: &BTreeMap<String, String>) {
    let mut told = BTreeSet::new();
    for address in servers.values() {
        let (_, _, text) = get(address, "/metrics");
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        told.extend(types.map(str::to_owned));
    }
    for rules in [include_str!("../../deploy/alerts.yml"), include_str!("../../deploy/grafana.json")] {
        let words = rules.split(|letter: char| !letter.is_ascii_lowercase() && letter != '_');
        for word in words.filter(|word| word.starts_with("cairn_") || word.starts_with("process_")) {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix));
            let of_mounts = word.starts_with("cairn_mount_") || word.starts_with("cairn_client_");
            assert!(
                of_mounts || told.contains(word) || told.contains(family.unwrap_or(word)),
                "nobody tells {word}"
            );
        }
    }
}

#[test]
fn a_datanode_without_a_leader_is_not_ready_and_says_why() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1"]);
    let servers = servers(&cluster);
    cluster.kill("nn1");
    let give_up = Instant::now() + PATIENCE;
    loop {
        let (status, _, why) = get(&servers["dn1"], "/readyz");
        if status == 503 {
            assert!(why.contains("no leading namenode"), "{why}");
            break;
        }
        assert!(Instant::now() < give_up, "still ready");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(get(&servers["dn1"], "/healthz").0, 200);
}

#[test]
fn the_dashboard_shows_a_death_and_the_way_back() {
    let cluster =
        Cluster::up(&["--namenodes", "3", "--datanodes", "3", "--dead-after", "3", "--chunk-size", "1m"]);
    let tree = cluster.scratch("tree");
    make_tree(&tree, 40, 1 << 19, 32);
    cluster.ok(&["put", text(&tree), "/tree"]);
    cluster.wait_healed();
    let servers = servers(&cluster);
    let leader = cluster.leader();
    let follower = ["nn1", "nn2", "nn3"].into_iter().find(|name| *name != leader).unwrap();
    // A follower's page is the same, and nothing in it comes from elsewhere.
    let (status, head, page) = get(&servers[follower], "/");
    assert_eq!(status, 200);
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    assert!(!page.contains("//"), "{page}");
    for part in ["/app.css", "/app.js", "/chart.js", "/files.js", "/format.js", "/icon.svg"] {
        let (status, _, text) = get(&servers[follower], part);
        assert!(status == 200 && !text.is_empty(), "{part}");
    }
    let mut events = Events::of(&servers[follower]);
    let lacks = |sample: &Value| kinds(sample)[..3].iter().sum::<u64>();
    let healthy = events.wait_for("a healthy cluster", |sample| {
        // The map is filled as the leader comes by; it must have come to all of them but those that are garbage.
        let status = &sample["status"];
        let count = |value: &Value| value.as_u64().unwrap_or_default();
        let all = count(&status["sealed_chunks"]).saturating_sub(count(&status["compaction"]["dead_chunks"]));
        status["health"] == "healthy" && kinds(sample)[3] == all && all > 3
    });
    let whole = kinds(&healthy["sample"])[3];
    cluster.kill("dn2");
    // With as many datanodes as replicas nothing can be mended before it is back.
    let event = events.wait_for("a degraded cluster", |sample| {
        sample["status"]["health"] == "degraded" && lacks(sample) == whole
    });
    assert!(event["sample"]["status"]["reasons"].to_string().contains("1 datanode dead"), "{event}");
    let degraded = metrics(&servers[&leader]);
    assert_eq!(degraded["cairn_health"], 1.0);
    assert_eq!(degraded["cairn_chunks_under_replicated"], whole as f64);
    cluster.start("dn2");
    events.wait_for("the way back", |sample| {
        sample["status"]["health"] == "healthy" && lacks(sample) == 0 && kinds(sample)[3] >= whole
    });
}

#[test]
fn files_are_found_with_their_chunks_from_any_namenode() {
    let cluster = Cluster::up(&["--namenodes", "3", "--datanodes", "3"]);
    let file = cluster.scratch("a b&c%.txt");
    std::fs::write(&file, "hello").unwrap();
    cluster.ok(&["put", text(&file), "/"]);
    for (name, address) in servers(&cluster).iter().filter(|(name, _)| name.starts_with("nn")) {
        let (status, _, body) = get(address, "/api/list?path=/");
        assert_eq!(status, 200, "{name}: {body}");
        let listing: Value = serde_json::from_str(&body).unwrap();
        let entry = &listing["entries"][0];
        assert_eq!(entry["name"], "a b&c%.txt");
        let (status, _, body) = get(address, &format!("/api/file?path=/{}", entry["path"].as_str().unwrap()));
        assert_eq!(status, 200, "{name}: {body}");
        let layout: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(layout["size"], 5);
        assert_eq!(layout["chunks"][0]["replicas"].as_array().unwrap().len(), 3);
        let (status, _, body) = get(address, "/api/list?path=/nothing");
        assert_eq!(status, 404, "{body}");
        assert_eq!(get(address, "/api/file?path=/%zz%00").0, 400);
        assert_eq!(get(address, "/api/nothing").0, 404);
    }
}

#[test]
fn a_mount_counts_its_answers() {
    if !can_mount() {
        return;
    }
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1"]);
    // Nobody else takes a port that was free a moment ago, as a rule: ports are given away in turn.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let dir = cluster.scratch("mount");
    std::fs::create_dir(&dir).unwrap();
    let mut serving = cluster.spawn(&["mount", text(&dir), "--http", &address]);
    let give_up = Instant::now() + PATIENCE;
    while TcpStream::connect(&address).is_err() {
        assert!(Instant::now() < give_up, "the mount serves no HTTP");
        std::thread::sleep(Duration::from_millis(50));
    }
    // A mount has a user's certificate, which is none for servers.
    use_certificate(None);
    std::fs::write(dir.join("a"), "12345").unwrap();
    assert!(std::fs::read(dir.join("nothing")).is_err());
    assert_eq!(get(&address, "/readyz").0, 200);
    let counted = metrics(&address);
    assert!(
        counted["cairn_mount_operation_duration_seconds_count{operation=\"write\",result=\"ok\"}"] >= 1.0
    );
    assert!(counted["cairn_mount_errors_total{operation=\"lookup\",errno=\"ENOENT\"}"] >= 1.0);
    assert!(counted["cairn_client_dirty_limit_bytes"] > 0.0);
    cluster.ok(&["umount", text(&dir)]);
    assert!(serving.wait().unwrap().success());
}

#[test]
fn slow_and_huge_requests_keep_nobody_out() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1"]);
    for address in servers(&cluster).values() {
        let mut crowd = Vec::new();
        for _ in 0..100 {
            let mut stream = connect(address);
            // Those who are cut off to make room may be so already.
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nX-Slow: ");
            crowd.push(stream);
        }
        let mut huge = connect(address);
        let flood = vec![b'x'; 1 << 16];
        let cut = (0..64).find_map(|_| huge.write_all(&flood).err());
        let mut answer = Vec::new();
        let heard = huge.read_to_end(&mut answer);
        assert!(
            cut.is_some() || heard.is_err() || !answer.starts_with(b"HTTP/1.1 200"),
            "a flood was heard out"
        );
        assert_eq!(get(address, "/healthz").0, 200);
        assert_eq!(get(address, "/readyz").0, 200);
        let mut post = connect(address);
        post.write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").unwrap();
        let mut answer = String::new();
        match post.read_to_string(&mut answer) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => assert!(answer.starts_with("HTTP/1.1 405"), "{answer}"),
        }
    }
}
