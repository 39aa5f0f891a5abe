//! What a local cluster consists of, as `cluster.json` remembers it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::process::Identity;
use crate::exit::Usage;

/// The file's format.
const VERSION: u32 = 1;
/// The file's name.
pub const FILE: &str = "cluster.json";

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Maps paths to chunks.
    Namenode,
    /// Keeps chunks.
    Datanode,
    /// Shows the cluster as a directory.
    Mount,
}

impl Role {
    /// Its subcommand.
    pub fn name(self) -> &'static str {
        match self {
            Role::Namenode => "namenode",
            Role::Datanode => "datanode",
            Role::Mount => "mount",
        }
    }
}

/// One process of the cluster, running or not.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// `nn1`, `dn3` or `mount`.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Where it listens; for a mount, the directory.
    pub address: String,
    /// Where it serves metrics and the dashboard; empty: nowhere.
    #[serde(default)]
    pub http: String,
    /// The rack of a datanode.
    #[serde(default)]
    pub rack: String,
    /// The process started last.
    pub process: Option<Identity>,
}

/// What was asked for at the beginning.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Namenodes.
    pub namenodes: usize,
    /// Datanodes.
    pub datanodes: usize,
    /// Racks they are spread over.
    pub racks: usize,
    /// Replicas of a chunk.
    pub replication: u32,
    /// Most bytes a datanode takes.
    pub capacity: Option<u64>,
    /// Size of a chunk.
    pub chunk_size: Option<u64>,
    /// Silence after which a datanode is dead.
    pub dead_after_ms: Option<u64>,
    /// Silence after which a client's session is over.
    #[serde(default)]
    pub session_lease_ms: Option<u64>,
    /// How long a chunk is kept that no file names.
    #[serde(default)]
    pub garbage_grace_ms: Option<u64>,
    /// How long a chunk stays unchanged before it is compacted.
    #[serde(default)]
    pub compact_after_ms: Option<u64>,
    /// Whether clients read chunks' files by themselves.
    #[serde(default = "yes")]
    pub short_circuit: bool,
    /// First port; 0: free ones are found.
    pub base_port: u16,
    /// Whether it has an authority of its own, and TLS everywhere.
    #[serde(default)]
    pub secure: bool,
}

fn yes() -> bool {
    true
}

/// The whole cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    version: u32,
    /// What was asked for.
    pub shape: Shape,
    /// Its processes.
    pub nodes: Vec<Node>,
}

impl Layout {
    /// A cluster of this shape at these addresses: those of the namenodes, those of the datanodes, and then, for
    /// HTTP, one more for each of them.
    pub fn new(shape: Shape, addresses: &[String], mount: Option<&Path>) -> Layout {
        let mut nodes = Vec::new();
        let (own, http) = addresses.split_at((shape.namenodes + shape.datanodes).min(addresses.len()));
        for (index, address) in own.iter().enumerate() {
            let (role, name, rack) = match index.checked_sub(shape.namenodes) {
                None => (Role::Namenode, format!("nn{}", index + 1), String::new()),
                Some(index) => (Role::Datanode, format!("dn{}", index + 1), rack(index, shape.racks)),
            };
            let http = http.get(index).cloned().unwrap_or_default();
            nodes.push(Node { name, role, address: address.clone(), http, rack, process: None });
        }
        if let Some(dir) = mount {
            nodes.push(mount_node(dir));
        }
        Layout { version: VERSION, shape, nodes }
    }

    /// Reads the layout of the cluster in `dir`.
    pub fn read(dir: &Path) -> Result<Layout> {
        let path = dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!(
                    "there is no cluster in {}; start one with `cairn cluster up --dir {}`",
                    dir.display(),
                    dir.display()
                )
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let layout: Layout =
            serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
        if layout.version != VERSION {
            bail!("{} is of version {}, this program knows {VERSION}", path.display(), layout.version);
        }
        Ok(layout)
    }

    /// Writes it: whole or not at all.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        write_whole(&dir.join(FILE), &text)
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        match self.nodes.iter().find(|node| node.name == name) {
            Some(node) => Ok(node),
            None => {
                let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
                bail!(Usage(format!("there is no node {name}; there are {}", names.join(", "))))
            }
        }
    }

    /// The nodes of a role.
    pub fn of_role(&self, role: Role) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |node| node.role == role)
    }

    /// The addresses of the namenodes.
    pub fn namenodes(&self) -> Vec<String> {
        self.of_role(Role::Namenode).map(|node| node.address.clone()).collect()
    }

    /// The directory that is mounted on.
    pub fn mount_point(&self) -> Option<PathBuf> {
        self.of_role(Role::Mount).next().map(|node| PathBuf::from(&node.address))
    }

    /// Where a running cluster's dashboard is: of any namenode, they all show the same.
    pub fn dashboard(&self) -> Option<String> {
        let first = self.of_role(Role::Namenode).find(|node| !node.http.is_empty())?;
        let scheme = if self.shape.secure { "https" } else { "http" };
        Some(format!("{scheme}://{}", first.http))
    }

    /// Whether a mount on `mount` would hide what the cluster in `dir` keeps.
    pub fn is_hidden_by(&self, mount: &Path, dir: &Path) -> bool {
        let nodes = self.nodes.iter().filter(|node| node.role != Role::Mount).map(|node| node.name.as_str());
        dir.starts_with(mount) || nodes.chain(["logs", "ca"]).any(|name| mount.starts_with(dir.join(name)))
    }

    /// Adds a namenode or datanode at `address` under the next free name, with HTTP at `http`.
    pub fn add(&mut self, role: Role, address: String, http: String) -> String {
        let prefix = if role == Role::Namenode { "nn" } else { "dn" };
        let last = self
            .of_role(role)
            .filter_map(|node| node.name.strip_prefix(prefix)?.parse::<usize>().ok())
            .max()
            .unwrap_or(0);
        let name = format!("{prefix}{}", last + 1);
        let rack = if role == Role::Datanode { rack(last, self.shape.racks) } else { String::new() };
        let node = Node { name: name.clone(), role, address, http, rack, process: None };
        let end = self.nodes.iter().rposition(|node| node.role == role).map_or(0, |index| index + 1);
        self.nodes.insert(end, node);
        name
    }
}

/// The mount as a node.
pub fn mount_node(dir: &Path) -> Node {
    Node {
        name: "mount".into(),
        role: Role::Mount,
        address: dir.to_string_lossy().into_owned(),
        http: String::new(),
        rack: String::new(),
        process: None,
    }
}

fn rack(index: usize, racks: usize) -> String {
    format!("/rack{}", index % racks.max(1) + 1)
}

/// Replaces a file as a whole.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let written = fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            namenodes: 3,
            datanodes: 4,
            racks: 2,
            replication: 3,
            capacity: None,
            chunk_size: None,
            dead_after_ms: None,
            session_lease_ms: None,
            garbage_grace_ms: None,
            compact_after_ms: None,
            short_circuit: true,
            base_port: 0,
            secure: false,
        }
    }

    #[test]
    fn nodes_are_named_and_spread() {
        let addresses: Vec<String> = (1..=14).map(|port| format!("127.0.0.1:{port}")).collect();
        let mut layout = Layout::new(shape(), &addresses, Some(Path::new("/mnt")));
        let names: Vec<&str> = layout.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["nn1", "nn2", "nn3", "dn1", "dn2", "dn3", "dn4", "mount"]);
        assert_eq!(layout.node("dn4").unwrap().rack, "/rack2");
        assert_eq!(layout.namenodes(), addresses[..3]);
        assert_eq!(layout.node("dn1").unwrap().http, "127.0.0.1:11");
        assert_eq!(layout.dashboard().unwrap(), "http://127.0.0.1:8");
        assert_eq!(layout.add(Role::Datanode, "127.0.0.1:15".into(), String::new()), "dn5");
        assert_eq!(layout.add(Role::Namenode, "127.0.0.1:16".into(), String::new()), "nn4");
        assert_eq!(layout.nodes[3].name, "nn4");
        assert!(layout.node("dn9").unwrap_err().to_string().contains("nn1, nn2"));
    }

    #[test]
    fn a_mount_must_not_hide_the_cluster() {
        let layout = Layout::new(shape(), &["a:1".into()], Some(Path::new("/c/mount")));
        let hides = |mount: &str| layout.is_hidden_by(Path::new(mount), Path::new("/c"));
        assert!(hides("/") && hides("/c") && hides("/c/nn1") && hides("/c/logs/deep"));
        assert!(!hides("/c/mount") && !hides("/c/mnt") && !hides("/cc") && !hides("/mnt"));
    }

    #[test]
    fn the_layout_survives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Layout::read(dir.path()).unwrap_err().to_string().contains("cluster up"));
        let mut layout = Layout::new(shape(), &["a:1".into()], None);
        layout.nodes[0].process = Some(Identity { pid: 7, started: 9 });
        layout.write(dir.path()).unwrap();
        let again = Layout::read(dir.path()).unwrap();
        assert_eq!(again.nodes[0].process, Some(Identity { pid: 7, started: 9 }));
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(Layout::read(dir.path()).is_err());
    }
}
