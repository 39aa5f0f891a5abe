//! The processes of a cluster, each on a host of its own, and what can be done to them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::network::{Network, address};
use crate::waiting::wait_for;

/// How long anything that must happen "by itself" may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Who asks for the cluster's state does not wait longer for it.
const STATUS_LIMIT: Duration = Duration::from_secs(3);
/// Sessions end so soon after their clients, in seconds.
pub const LEASE: &str = "4";

/// One cluster at a time. A program that is started gets copies of all open files and closes them, and a close on a mount
/// waits for its cluster: a test would wait for the faults of another.
static TURN: Mutex<()> = Mutex::new(());

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    Namenode,
    Datanode,
    Mount,
}

/// One process.
pub struct Node {
    pub name: String,
    pub role: Role,
    /// Its number in the network.
    pub host: usize,
    child: Option<Child>,
    pub paused: bool,
    /// Even while a mount can be used. Who finds it odd, or changed, does not know what he did it to.
    pub life: Arc<AtomicU64>,
}

impl Node {
    pub fn running(&self) -> bool {
        self.child.is_some()
    }

    fn signal(&self, signal: i32) {
        if let Some(child) = &self.child {
            // SAFETY: the child has not been waited for, so its number is its own.
            assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0, "{} can be signalled", self.name);
        }
    }
}

/// How many of what.
#[derive(Clone, Copy)]
pub struct Shape {
    pub namenodes: usize,
    pub datanodes: usize,
    pub mounts: usize,
    /// Hosts for clients in this process; the last is the onlooker's.
    pub clients: usize,
    /// An operation of a client gives up after so many seconds.
    pub give_up: u64,
    /// More lines for the section `[namenode]` of the configuration.
    pub settings: &'static str,
}

/// A cluster on a network of its own. It ends with this value, and with the thread that started its processes.
pub struct Nodes {
    pub network: Network,
    pub nodes: Vec<Node>,
    pub shape: Shape,
    dir: PathBuf,
    keep: bool,
    _turn: MutexGuard<'static, ()>,
}

impl Nodes {
    /// Starts all and waits until it can be used.
    pub fn up(shape: Shape) -> Nodes {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let roles = [
            (Role::Namenode, "nn", shape.namenodes),
            (Role::Datanode, "dn", shape.datanodes),
            (Role::Mount, "mount", shape.mounts),
        ];
        let mut nodes: Vec<Node> = Vec::new();
        for (role, prefix, count) in roles {
            for number in 1..=count {
                let (name, host) = (format!("{prefix}{number}"), nodes.len());
                let life = Arc::new(AtomicU64::new(1));
                nodes.push(Node { name, role, host, child: None, paused: false, life });
            }
        }
        let network = Network::new(nodes.len() + shape.clients).expect("a network");
        let dir = tempfile::Builder::new().prefix("cairn-chaos.").tempdir().expect("a directory").keep();
        fs::create_dir(dir.join("logs")).expect("a directory for logs");
        let mut all = Nodes { network, nodes, shape, dir, keep: false, _turn: turn };
        all.write_configuration();
        for name in all.names(Role::Namenode).into_iter().chain(all.names(Role::Datanode)) {
            all.start(&name);
        }
        all.wait_for("all nodes", |status| {
            let live = |node: &&Value| node["liveness"] == "live";
            let datanodes =
                status["datanodes"].as_array().map_or(0, |nodes| nodes.iter().filter(live).count());
            datanodes == shape.datanodes && all_voters(status, shape.namenodes)
        });
        for name in all.names(Role::Mount) {
            all.start(&name);
        }
        all
    }

    /// Where everything of it lies. It stays when the test fails.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Has the directory stay, whatever comes.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    pub fn names(&self, role: Role) -> Vec<String> {
        self.nodes.iter().filter(|node| node.role == role).map(|node| node.name.clone()).collect()
    }

    #[track_caller]
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).unwrap_or_else(|| panic!("no node {name}"))
    }

    #[track_caller]
    fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.name == name).unwrap_or_else(|| panic!("no node {name}"))
    }

    /// The host of a client in this process.
    pub fn client_host(&self, client: usize) -> usize {
        self.nodes.len() + client
    }

    /// Addresses of all namenodes.
    pub fn namenodes(&self) -> Vec<String> {
        (0..self.shape.namenodes).map(|host| format!("{}:7400", address(host))).collect()
    }

    pub fn mount_point(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.at"))
    }

    fn data(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    fn write_configuration(&self) {
        // Snapshots and the collection of garbage are to happen often.
        let text = format!(
            "[client]\nnamenodes = {:?}\noperation_timeout_seconds = {}\n\
             [namenode]\nsnapshot_every = 300\nlog_keep = 50\ngarbage_grace_ms = 8000\n{}",
            self.namenodes(),
            self.shape.give_up,
            self.shape.settings
        );
        fs::write(self.dir.join("cairn.toml"), text).expect("a configuration");
    }

    /// `cairn` on a host.
    pub fn command(&self, host: usize, arguments: &[&str]) -> Command {
        let mut command = self.network.host(host).command(env!("CARGO_BIN_EXE_cairn"));
        if let Some(program) = std::env::var_os("CAIRN_CHAOS_PROGRAM") {
            command = self.network.host(host).command(program.to_str().expect("a UTF-8 path"));
        }
        command.args(arguments).stdin(Stdio::null());
        command
            .env("CAIRN_CONFIG", self.dir.join("cairn.toml"))
            .env("XDG_STATE_HOME", self.dir.join("state"));
        command.env_remove("CAIRN_NAMENODES").env_remove("RUST_LOG");
        command
    }

    /// Starts a node that does not run. A mount can be used afterwards.
    #[track_caller]
    pub fn start(&mut self, name: &str) {
        self.begin(name);
        if self.node(name).role == Role::Mount {
            self.wait_mounted(name);
        }
    }

    /// Starts a node that does not run, and waits for nothing.
    #[track_caller]
    pub fn begin(&mut self, name: &str) {
        let node = self.node(name);
        assert!(!node.running(), "{name} runs already");
        let (role, own) = (node.role, address(node.host));
        let (data, point) = (self.data(name), self.mount_point(name));
        let (data, point) = (data.to_str().expect("UTF-8"), point.to_str().expect("UTF-8"));
        let namenodes = self.namenodes().join(",");
        let at = format!("{own}:{}", if role == Role::Namenode { 7400 } else { 7500 });
        let mut arguments: Vec<&str> = match role {
            Role::Namenode => vec![
                "namenode",
                "--dir",
                data,
                // A network of the test's own, which nobody else is in.
                "--insecure",
                "--listen",
                &at,
                "--advertise",
                &at,
                "--peers",
                &namenodes,
                "--dead-after",
                "3",
                "--session-lease",
                LEASE,
                "--chunk-size",
                "4M",
            ],
            Role::Datanode => vec![
                "datanode",
                "--dir",
                data,
                // A network of the test's own, which nobody else is in.
                "--insecure",
                "--listen",
                &at,
                "--advertise",
                &at,
                "--namenodes",
                &namenodes,
                "--host",
                name,
                "--capacity",
                "20G",
            ],
            Role::Mount => vec!["mount", point],
        };
        if role == Role::Datanode && name.ends_with(['2', '4']) {
            // All are on one machine. From these it is read as if they were not.
            arguments.push("--no-short-circuit");
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log(name)).expect("a log");
        if role == Role::Mount {
            let _ = fs::create_dir(point);
        }
        let mut command = self.command(node.host, &arguments);
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        let child = command.spawn().expect("cairn starts");
        self.node_mut(name).child = Some(child);
    }

    fn wait_mounted(&self, name: &str) {
        let give_up = Instant::now() + PATIENCE;
        while !self.came_up(name) {
            assert!(Instant::now() < give_up, "{name} does not mount\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether a mount that was started is mounted; from then on it can be used.
    pub fn came_up(&self, name: &str) -> bool {
        let node = self.node(name);
        let is_up = node.running() && is_mounted(&self.mount_point(name));
        if is_up && node.life.load(Ordering::SeqCst) % 2 == 1 {
            node.life.fetch_add(1, Ordering::SeqCst);
        }
        is_up
    }

    /// Waits for all mounts.
    #[track_caller]
    pub fn wait_all_mounted(&self) {
        self.names(Role::Mount).iter().for_each(|name| self.wait_mounted(name));
    }

    /// Kills a node as a power cut would end it.
    #[track_caller]
    pub fn kill(&mut self, name: &str) {
        let node = self.node_mut(name);
        if node.life.load(Ordering::SeqCst).is_multiple_of(2) {
            node.life.fetch_add(1, Ordering::SeqCst);
        }
        node.signal(libc::SIGKILL);
        node.paused = false;
        if let Some(mut child) = node.child.take() {
            let _ = child.wait();
        }
        if self.node(name).role == Role::Mount {
            detach(&self.mount_point(name));
        }
    }

    /// Stops a node in order.
    #[track_caller]
    pub fn stop(&mut self, name: &str) {
        let log = self.log(name);
        let node = self.node_mut(name);
        node.signal(libc::SIGTERM);
        let Some(mut child) = node.child.take() else { return };
        let give_up = Instant::now() + PATIENCE;
        while child.try_wait().expect("a child").is_none() {
            if Instant::now() > give_up {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{name} does not stop; see {}", log.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn pause(&mut self, name: &str) {
        let node = self.node_mut(name);
        node.signal(libc::SIGSTOP);
        node.paused = true;
    }

    pub fn resume(&mut self, name: &str) {
        let node = self.node_mut(name);
        node.signal(libc::SIGCONT);
        node.paused = false;
    }

    /// Takes the disk of a node that does not run.
    #[track_caller]
    pub fn wipe(&mut self, name: &str) {
        assert!(!self.node(name).running(), "{name} is stopped first");
        fs::remove_dir_all(self.data(name)).expect("its data can be removed");
    }

    /// The cluster's state as somebody sees it who reaches all; `None` if it cannot be had within a few seconds.
    pub fn status(&self) -> Option<Value> {
        let mut command = self.command(self.client_host(self.shape.clients - 1), &["status", "--json"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("cairn starts");
        let mut output = child.stdout.take().expect("it is piped");
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            output.read_to_end(&mut text).map(|_| text)
        });
        let give_up = Instant::now() + STATUS_LIMIT;
        while child.try_wait().expect("a child").is_none() {
            if Instant::now() > give_up {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        serde_json::from_slice(&reader.join().ok()?.ok()?).ok()
    }

    /// Waits until the cluster's state is as wanted and returns it.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl FnMut(&Value) -> bool) -> Value {
        wait_for(what, PATIENCE, || self.status(), wanted, || self.logs())
    }

    /// The name of the namenode that leads.
    #[track_caller]
    pub fn leader(&self) -> String {
        let status = self.wait_for("a leader", |status| leader_of(status).is_some());
        let leader = leader_of(&status).expect("waited for it");
        self.named(&leader)
    }

    /// The name of the leader if the state can be had now.
    pub fn leader_now(&self) -> Option<String> {
        Some(self.named(&leader_of(&self.status()?)?))
    }

    fn named(&self, at: &str) -> String {
        let host = at.split(':').next().expect("an address");
        let found = self.nodes.iter().find(|node| address(node.host) == host);
        found.unwrap_or_else(|| panic!("no node at {at}")).name.clone()
    }

    /// Who ended although nobody ended it.
    pub fn ended_by_themselves(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        for node in &mut self.nodes {
            if let Some(child) = &mut node.child
                && let Some(status) = child.try_wait().expect("a child")
            {
                node.child = None;
                found.push(format!("{} ended by itself: {status}", node.name));
            }
        }
        found
    }

    /// What no log may say.
    pub fn complaints(&self) -> Vec<String> {
        let mut found = Vec::new();
        for node in &self.nodes {
            let text = fs::read_to_string(self.log(&node.name)).unwrap_or_default();
            let bad = text.lines().filter(|line| line.contains("panicked at") || line.contains("BUG"));
            found.extend(bad.take(5).map(|line| format!("{}: {line}", node.name)));
        }
        found
    }

    /// The last lines of every log.
    pub fn logs(&self) -> String {
        let mut all = format!("(all logs are in {})\n", self.dir.display());
        for node in &self.nodes {
            let tail = tail_of(&self.log(&node.name)).unwrap_or_default();
            let lines: Vec<&str> = tail.lines().collect();
            all += &format!("--- {}\n{}\n", node.name, lines[lines.len().saturating_sub(12)..].join("\n"));
        }
        all
    }

    /// The text of a node's log.
    pub fn log_text(&self, name: &str) -> String {
        fs::read_to_string(self.log(name)).unwrap_or_default()
    }

    /// Replicas on the disks: chunk, node, data file.
    pub fn replicas(&self, only_sealed: bool) -> Vec<(String, String, PathBuf)> {
        let mut found = Vec::new();
        for name in self.names(Role::Datanode) {
            let Ok(folders) = fs::read_dir(self.data(&name).join("chunks")) else { continue };
            for folder in folders.flatten() {
                for entry in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                    let path = entry.path();
                    let is_checksums = path.extension().is_some_and(|extension| extension == "crc");
                    if is_checksums && (!only_sealed || is_sealed(&path)) {
                        let chunk = path.file_stem().expect("a name").to_string_lossy().into_owned();
                        found.push((chunk, name.clone(), path.with_extension("data")));
                    }
                }
            }
        }
        found.sort();
        found
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        for name in self.names(Role::Mount) {
            detach(&self.mount_point(&name));
        }
        if self.keep || std::thread::panicking() {
            eprintln!("kept: {}", self.dir.display());
        } else {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Whether a chunk's checksum file says that it is sealed.
fn is_sealed(path: &Path) -> bool {
    let mut header = [0; 28];
    File::open(path).and_then(|mut file| file.read_exact(&mut header)).is_ok() && header[24] == 1
}

fn tail_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(8 << 10)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn is_mounted(point: &Path) -> bool {
    let point = point.to_str().expect("a UTF-8 path");
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(1) == Some(point))
}

fn detach(point: &Path) {
    if is_mounted(point) {
        let _ = Command::new("umount").arg("-l").arg(point).status();
    }
}

fn leader_of(status: &Value) -> Option<String> {
    let namenodes = status["namenodes"].as_array()?;
    let leader = namenodes.iter().find(|node| node["leader"] == true)?;
    Some(leader["address"].as_str()?.to_string())
}

/// Whether the group has so many namenodes, and all of them vote and answer.
pub fn all_voters(status: &Value, count: usize) -> bool {
    let namenodes = status["namenodes"].as_array().cloned().unwrap_or_default();
    let good = |node: &&Value| node["voter"] == true && (node["reachable"] == true || node["leader"] == true);
    namenodes.len() == count && namenodes.iter().filter(good).count() == count
}

/// Whether no chunk lacks or has too many replicas, and the leader knows all of them.
pub fn replicated(status: &Value) -> bool {
    let counted = status["repair"]["counting"] == false;
    counted
        && ["under_replicated", "missing", "surplus", "in_flight"]
            .iter()
            .all(|key| status["repair"][key].as_u64() == Some(0))
}
