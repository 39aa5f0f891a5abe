//! A local cluster for one test: its own directory, its own ports, gone at the end even on panic.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use serde_json::Value;

use crate::waiting::wait_for;
use crate::wire::use_certificate;

/// How long anything that must happen "by itself" may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(90);

/// Whether every cluster is to be under TLS: `CAIRN_TEST_TLS=1` runs all tests that way.
pub fn over_tls() -> bool {
    std::env::var_os("CAIRN_TEST_TLS").is_some_and(|value| !value.is_empty() && value != "0")
}

pub struct Cluster {
    dir: tempfile::TempDir,
    /// What its processes find in their environment besides.
    environment: Vec<(String, String)>,
}

impl Cluster {
    /// Starts a cluster; `args` go to `cairn cluster up`.
    pub fn up(args: &[&str]) -> Cluster {
        Cluster::up_with(&[], args)
    }

    /// As [`Cluster::up`], with more in the environment of all its processes and commands.
    pub fn up_with(environment: &[(&str, &str)], args: &[&str]) -> Cluster {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment = environment.iter().map(owned).collect();
        let cluster = Cluster { dir: tempfile::tempdir().expect("a temporary directory"), environment };
        let mut up = vec!["up"];
        up.extend(args);
        if over_tls() && !args.contains(&"--secure") {
            up.push("--secure");
        }
        cluster.cluster_verb(&up);
        use_certificate(up.contains(&"--secure").then(|| cluster.dir().join("ca/users/client")));
        cluster
    }

    /// Three namenodes and four datanodes that give a dead one up quickly.
    pub fn usual() -> Cluster {
        Cluster::up(&["--namenodes", "3", "--datanodes", "4", "--dead-after", "3"])
    }

    pub fn dir(&self) -> PathBuf {
        self.dir.path().join("cluster")
    }

    /// A scratch path outside the cluster's own directory.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cairn"));
        command.args(args);
        command.env("CAIRN_CONFIG", self.dir().join("cairn.toml"));
        command.env("XDG_STATE_HOME", self.dir.path().join("state"));
        command.env_remove("CAIRN_NAMENODES").env_remove("CAIRN_TLS").env_remove("RUST_LOG");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let own = self.dir().join("ca/users/client");
        if over_tls() && matches!(args.first(), Some(&("datanode" | "namenode"))) {
            command.env("CAIRN_TLS", self.spare_certificate());
        } else if over_tls() && own.exists() {
            command.env("CAIRN_TLS", own);
        }
        command.stdin(Stdio::null());
        command
    }

    /// The directory of a certificate for a node that a test starts by itself.
    pub fn spare_certificate(&self) -> PathBuf {
        let ca = self.dir().join("ca");
        let dir = ca.join("nodes/spare");
        if !dir.join("cert.pem").exists() {
            let args = ["ca", "node", "spare", "--address", "127.0.0.1,localhost", "--ca", text(&ca)];
            self.ok(&args);
        }
        dir
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("cairn starts")
    }

    /// Runs a command that must succeed and returns its standard output.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(
            output.status.success(),
            "cairn {args:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command that must fail and returns what it says on standard error.
    #[track_caller]
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "cairn {args:?} should have failed, said {said}");
        assert!(!said.contains("panicked"), "cairn {args:?} panicked: {said}");
        said
    }

    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("cairn starts")
    }

    #[track_caller]
    pub fn cluster_verb(&self, args: &[&str]) -> String {
        let dir = self.dir();
        let mut all = vec!["cluster"];
        all.extend(args);
        all.extend(["--dir", dir.to_str().expect("a UTF-8 path")]);
        self.ok(&all)
    }

    /// A client configuration that gives up after so many seconds.
    pub fn impatient(&self, seconds: u32) -> PathBuf {
        let usual = fs::read_to_string(self.dir().join("cairn.toml")).expect("the client's configuration");
        let path = self.scratch("impatient.toml");
        fs::write(&path, format!("{usual}operation_timeout_seconds = {seconds}\n")).expect("a file");
        path
    }

    #[track_caller]
    pub fn kill(&self, name: &str) {
        self.cluster_verb(&["kill", name]);
    }

    #[track_caller]
    pub fn start(&self, name: &str) {
        self.cluster_verb(&["start", name]);
    }

    /// The cluster's state, if it can be had just now.
    pub fn status(&self) -> Option<Value> {
        let output = self.run(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Waits until the cluster's state is as wanted and returns it.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl FnMut(&Value) -> bool) -> Value {
        wait_for(what, PATIENCE, || self.status(), wanted, || self.logs())
    }

    /// Waits until every chunk has the replicas it wants and no more.
    #[track_caller]
    pub fn wait_healed(&self) -> Value {
        self.wait_for("every chunk at its replicas", |status| {
            ["under_replicated", "missing", "surplus", "in_flight"]
                .iter()
                .all(|key| status["repair"][key].as_u64() == Some(0))
                && status["repair"]["counting"] == false
                && status["open_chunks"].as_u64() == Some(0)
        })
    }

    /// The name under which `cairn cluster` knows the leader.
    #[track_caller]
    pub fn leader(&self) -> String {
        let status = self.wait_for("a leader", |status| leader_address(status).is_some());
        let address = leader_address(&status).expect("waited for it");
        self.node_at(&address)
    }

    /// The name of the live datanode that holds most replicas.
    #[track_caller]
    pub fn busiest_datanode(&self) -> String {
        let held = |node: &Value| node["replicas"].as_u64().is_some_and(|held| held > 0);
        // Heartbeats lag behind what is there.
        let status = self.wait_for("datanodes that tell of replicas", |status| {
            status["datanodes"].as_array().is_some_and(|nodes| nodes.iter().any(held))
        });
        let nodes = status["datanodes"].as_array().expect("an array");
        let busiest = nodes.iter().max_by_key(|node| node["replicas"].as_u64()).expect("a datanode");
        self.node_at(busiest["address"].as_str().expect("an address"))
    }

    #[track_caller]
    fn node_at(&self, address: &str) -> String {
        let text = self.cluster_verb(&["status", "--json"]);
        let nodes: Value = serde_json::from_str(&text).expect("JSON");
        let nodes = nodes["nodes"].as_array().expect("nodes");
        let found = nodes.iter().find(|node| node["address"].as_str() == Some(address));
        found.unwrap_or_else(|| panic!("no node at {address} in {nodes:?}"))["name"]
            .as_str()
            .expect("a name")
            .into()
    }

    /// The process of a node.
    #[track_caller]
    pub fn pid(&self, name: &str) -> u32 {
        let shown: Value = serde_json::from_str(&self.cluster_verb(&["status", "--json"])).expect("JSON");
        let nodes = shown["nodes"].as_array().expect("nodes");
        let pid = nodes.iter().find(|node| node["name"] == name).and_then(|node| node["pid"].as_u64());
        pid.unwrap_or_else(|| panic!("no {name} in {nodes:?}")) as u32
    }

    /// Most memory that a process of the cluster has had, in bytes: `VmHWM` of its status.
    #[track_caller]
    pub fn peak_memory(&self, name: &str) -> u64 {
        let pid = self.pid(name);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse().expect("a number");
        kib * 1024
    }

    /// The last lines of every node's log: what a failed test prints.
    pub fn logs(&self) -> String {
        let mut all = String::new();
        let Ok(entries) = fs::read_dir(self.dir().join("logs")) else { return all };
        for entry in entries.flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(15)..];
            all += &format!("--- {}\n{}\n", entry.file_name().display(), tail.join("\n"));
        }
        all
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let dir = self.dir();
        let args = ["cluster", "down", "--dir", dir.to_str().expect("a UTF-8 path")];
        let output = self.run(&args);
        if !output.status.success() {
            eprintln!("cluster down: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

fn leader_address(status: &Value) -> Option<String> {
    let namenodes = status["namenodes"].as_array()?;
    let leader = namenodes.iter().find(|node| node["leader"] == true)?;
    Some(leader["address"].as_str()?.to_string())
}

/// Writes `count` files of up to `largest` bytes in a small tree; the same seed gives the same bytes.
pub fn make_tree(root: &Path, count: usize, largest: usize, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    for number in 0..count {
        let directory = root.join(format!("d{:02}", number % 17)).join(format!("e{}", number % 5));
        fs::create_dir_all(&directory).expect("a directory");
        let mut content = vec![0; random.random_range(0..=largest)];
        random.fill_bytes(&mut content);
        fs::write(directory.join(format!("f{number:05}")), content).expect("a file");
    }
}

/// Writes one file of `length` pseudo-random bytes.
pub fn make_file(path: &Path, length: usize, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut content = vec![0; length];
    random.fill_bytes(&mut content);
    fs::write(path, content).expect("a file");
}

/// Relative path to BLAKE3 of every file below `root`.
pub fn digests(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).expect("a directory").map(|entry| entry.expect("an entry")) {
            if entry.file_type().expect("a type").is_dir() {
                todo.push(entry.path());
            } else {
                let relative = entry.path().strip_prefix(root).expect("below the root").to_path_buf();
                found.insert(relative, digest(&entry.path()));
            }
        }
    }
    found
}

pub fn digest(path: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    hasher.finalize().to_hex().to_string()
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// Three namenodes vote and are there.
pub fn all_reachable(status: &Value) -> bool {
    let namenodes = status["namenodes"].as_array().cloned().unwrap_or_default();
    namenodes.len() == 3
        && namenodes
            .iter()
            .all(|node| node["voter"] == true && (node["reachable"] == true || node["leader"] == true))
}

/// Namenodes of the group that vote and answer.
pub fn voters(status: &Value) -> usize {
    let namenodes = status["namenodes"].as_array().cloned().unwrap_or_default();
    namenodes.iter().filter(|node| node["voter"] == true && node["reachable"] == true).count()
}

/// A process that ends with the test, however that ends.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
