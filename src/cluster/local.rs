//! A local cluster: its directory, its nodes, and starting and stopping them.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::layout::{FILE, Layout, Node, Role, Shape, mount_node, write_whole};
use super::mounts::{self, Before};
use super::ports::{self, Chosen};
use super::{certificates, process};
use crate::config::Places;
use crate::exit;

/// How long a process may take to stop in order.
const PATIENCE: Duration = Duration::from_secs(15);

/// A cluster on this machine. While it is held, no other command changes it.
pub struct LocalCluster {
    dir: PathBuf,
    /// Its nodes.
    pub layout: Layout,
    _lock: File,
    /// Ports of nodes that may not listen yet.
    _ports: Option<Chosen>,
}

impl LocalCluster {
    /// Makes a cluster in `dir`, started by nobody yet.
    pub fn create(dir: &Path, shape: Shape, mount: Option<&Path>) -> Result<LocalCluster> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        check_is_text(&dir)?;
        let lock = lock(&dir)?;
        if dir.join(FILE).exists() {
            bail!("there is a cluster in {} already", dir.display());
        }
        let mount = mount.map(prepared_mount_point).transpose()?;
        let ports = ports::choose(2 * (shape.namenodes + shape.datanodes), shape.base_port)?;
        let layout = Layout::new(shape, &ports.addresses, mount.as_deref());
        if let Some(mount) = &mount {
            check_mount_point(&layout, mount, &dir)?;
        }
        fs::create_dir_all(dir.join("logs"))?;
        let cluster = LocalCluster { dir, layout, _lock: lock, _ports: Some(ports) };
        if cluster.layout.shape.secure {
            certificates::make(&cluster.dir)?;
        }
        cluster.save()?;
        Ok(cluster)
    }

    /// The cluster that is in `dir`.
    pub fn open(dir: &Path) -> Result<LocalCluster> {
        let shown = dir.display();
        let dir = dir.canonicalize().with_context(|| format!("there is no cluster in {shown}"))?;
        Layout::read(&dir)?;
        let lock = lock(&dir)?;
        let layout = Layout::read(&dir)?;
        Ok(LocalCluster { dir, layout, _lock: lock, _ports: None })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The configuration file for its clients.
    pub fn client_config(&self) -> PathBuf {
        self.dir.join("cairn.toml")
    }

    /// The certificate of its clients, if it is secure.
    pub fn client_tls(&self) -> Option<PathBuf> {
        self.layout.shape.secure.then(|| certificates::of_client(&self.dir))
    }

    /// A node's log.
    pub fn log(&self, name: &str) -> PathBuf {
        log_path(&self.dir, name)
    }

    /// Whether a node's process runs.
    pub fn alive(&self, node: &Node) -> bool {
        alive(&self.dir, node)
    }

    /// Starts a node unless it runs; whether it was started.
    pub fn start(&mut self, name: &str) -> Result<bool> {
        let node = self.layout.node(name)?;
        if self.alive(node) {
            return Ok(false);
        }
        if node.role == Role::Mount {
            let dir = Path::new(&node.address);
            match mounts::before(dir) {
                Before::Nothing => {}
                Before::Dead => cairn_fuse::unmount(dir, true).map_err(|error| anyhow::anyhow!("{error}"))?,
                Before::Taken(kind) => {
                    bail!("something is mounted on {} already ({kind}); unmount it first", dir.display())
                }
            }
            prepared_mount_point(dir)?;
        }
        if self.layout.shape.secure && node.role != Role::Mount {
            certificates::make_for_node(&self.dir, &node.name)?;
        }
        let identity = process::spawn(&self.arguments(node), &self.log(name))
            .with_context(|| format!("cannot start {name}"))?;
        for node in &mut self.layout.nodes {
            if node.name == name {
                node.process = Some(identity);
            }
        }
        self.save()?;
        Ok(true)
    }

    /// Sends a node a signal and waits until it is gone.
    pub fn end(&self, name: &str, signal: Signal) -> Result<()> {
        let node = self.layout.node(name)?;
        let Some(process) = node.process else { return Ok(()) };
        let marker = marker(&self.dir, node);
        process.signal(&marker, signal)?;
        if process.wait_gone(&marker, PATIENCE) {
            return Ok(());
        }
        if signal == Signal::SIGKILL {
            bail!("{name} (process {}) is killed, and ends when its disk answers", process.pid);
        }
        bail!("{name} (process {}) does not stop; `cairn cluster kill {name}` ends it", process.pid);
    }

    /// Deletes the data of a node that does not run.
    pub fn wipe(&self, name: &str) -> Result<()> {
        let node = self.layout.node(name)?;
        if node.role == Role::Mount {
            bail!("a mount has no data");
        }
        if self.alive(node) {
            bail!("{name} is running; stop it first with `cairn cluster stop {name}`");
        }
        gone(fs::remove_dir_all(self.data(name)), || format!("the data of {name}"))
    }

    /// Adds a namenode or datanode and starts it.
    pub fn add(&mut self, role: Role) -> Result<String> {
        let ports = ports::choose(2, 0)?;
        let [address, http] = [0, 1].map(|index| ports.addresses[index].clone());
        self._ports = Some(ports);
        let name = self.layout.add(role, address, http);
        self.save()?;
        self.start(&name)?;
        Ok(name)
    }

    /// Mounts it on `dir` when it is started next.
    pub fn set_mount(&mut self, dir: &Path) -> Result<()> {
        let dir = prepared_mount_point(dir)?;
        check_mount_point(&self.layout, &dir, &self.dir)?;
        match self.layout.nodes.iter().find(|node| node.role == Role::Mount) {
            Some(node) if Path::new(&node.address) == dir => return Ok(()),
            Some(node) if self.alive(node) => {
                bail!("it is mounted on {} already; `cairn cluster up --no-mount` unmounts it", node.address)
            }
            _ => {}
        }
        self.layout.nodes.retain(|node| node.role != Role::Mount);
        self.layout.nodes.push(mount_node(&dir));
        self.save()
    }

    /// Unmounts it, and mounts it no more.
    pub fn remove_mount(&mut self) -> Result<()> {
        if self.layout.mount_point().is_some() {
            self.end("mount", Signal::SIGTERM)?;
            self.unmount()?;
        }
        self.layout.nodes.retain(|node| node.role != Role::Mount);
        self.save()
    }

    /// Stops everything: the mount first, then datanodes, then namenodes. What does not stop is killed.
    pub fn down(&self) -> Result<()> {
        for role in [Role::Mount, Role::Datanode, Role::Namenode] {
            let nodes: Vec<(&Node, OsString)> =
                self.layout.of_role(role).map(|node| (node, marker(&self.dir, node))).collect();
            for (node, marker) in &nodes {
                if let Some(process) = node.process {
                    process.signal(marker, Signal::SIGTERM)?;
                }
            }
            for (node, marker) in &nodes {
                if let Some(process) = node.process
                    && !process.wait_gone(marker, PATIENCE)
                {
                    exit::say(format_args!("cairn: cluster: {} does not stop; killing it", node.name));
                    process.signal(marker, Signal::SIGKILL)?;
                    process.wait_gone(marker, PATIENCE);
                }
            }
            if role == Role::Mount {
                self.unmount()?;
            }
        }
        self.forget_current();
        Ok(())
    }

    /// Kills everything at once and unmounts.
    pub fn kill_all(&self) {
        for node in &self.layout.nodes {
            let marker = marker(&self.dir, node);
            if let Some(process) = node.process
                && let Err(error) = process.signal(&marker, Signal::SIGKILL)
            {
                exit::say(format_args!("cairn: {}: {error:#}", node.name));
            }
        }
        for node in &self.layout.nodes {
            if let Some(process) = node.process {
                process.wait_gone(&marker(&self.dir, node), PATIENCE);
            }
        }
        if let Err(error) = self.unmount() {
            exit::say(format_args!("cairn: {error:#}"));
        }
        self.forget_current();
    }

    fn unmount(&self) -> Result<()> {
        for node in self.layout.of_role(Role::Mount) {
            let dir = Path::new(&node.address);
            // The process of ours has ended: what works there is somebody else's.
            if mounts::before(dir) == Before::Dead {
                cairn_fuse::unmount(dir, true)
                    .map_err(|error| anyhow::anyhow!("cannot unmount {}: {error}", dir.display()))?;
            }
        }
        Ok(())
    }

    /// Deletes the stopped cluster with all its data.
    pub fn delete(self) -> Result<()> {
        if let Some(node) = self.layout.nodes.iter().find(|node| self.alive(node)) {
            bail!("{} is still running", node.name);
        }
        let mounted = mounts::below(&self.dir);
        if let Some(mount) = mounted.first() {
            bail!("{} is still mounted; nothing was deleted", mount.display());
        }
        self.forget_current();
        // Only what is ours: the directory may hold other things, also under the names of `logs` and of the mount.
        for node in self.layout.nodes.iter().filter(|node| node.role != Role::Mount) {
            remove_all(&self.data(&node.name))?;
        }
        // The mount may have been given up, and its log is still there.
        for name in self.layout.nodes.iter().map(|node| node.name.as_str()).chain(["mount"]) {
            remove(&self.log(name))?;
        }
        if self.layout.shape.secure {
            remove_all(&certificates::dir(&self.dir))?;
        }
        for name in ["cairn.toml", FILE, LOCK] {
            remove(&self.dir.join(name))?;
        }
        let inner_mount = self.layout.mount_point().filter(|mount| mount.starts_with(&self.dir));
        for dir in inner_mount.iter().chain([&self.dir.join("logs"), &self.dir]) {
            // Left where it is if it is not empty.
            let _ = fs::remove_dir(dir);
        }
        Ok(())
    }

    /// Commands without a configuration find this cluster from now on.
    pub fn make_current(&self) -> Result<()> {
        let tls = self.client_tls().map(|tls| format!("{}\n", tls.display())).unwrap_or_default();
        let text = format!("{}\n{}\n{tls}", self.dir.display(), self.layout.namenodes().join(","));
        note(Places::from_environment().current(), &text)
    }

    /// `cluster` commands without a directory find this one from now on, also when it is stopped.
    pub fn make_last(&self) -> Result<()> {
        note(Places::from_environment().last(), &format!("{}\n", self.dir.display()))
    }

    fn forget_current(&self) {
        if let Some(path) = Places::from_environment().current()
            && current_dir(&path).as_deref() == Some(self.dir.as_path())
        {
            let _ = fs::remove_file(path);
        }
    }

    fn save(&self) -> Result<()> {
        let namenodes: Vec<String> =
            self.layout.namenodes().iter().map(|address| format!("{address:?}")).collect();
        let tls = self.client_tls().map(|tls| format!("tls = {}\n", quoted(&tls))).unwrap_or_default();
        let text = format!("[client]\nnamenodes = [{}]\n{tls}", namenodes.join(", "));
        write_whole(&self.client_config(), text.as_bytes())?;
        self.layout.write(&self.dir)
    }

    fn data(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn arguments(&self, node: &Node) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec![node.role.name().into()];
        let mut add = |flag: &str, value: OsString| arguments.extend([OsString::from(flag), value]);
        let namenodes = OsString::from(self.layout.namenodes().join(","));
        let shape = &self.layout.shape;
        if !node.http.is_empty() {
            add("--http", node.http.clone().into());
        }
        if shape.secure {
            let tls = match node.role {
                Role::Mount => certificates::of_client(&self.dir),
                _ => certificates::of_node(&self.dir, &node.name),
            };
            add("--tls", tls.into());
        }
        match node.role {
            Role::Namenode => {
                add("--dir", self.data(&node.name).into());
                add("--listen", node.address.clone().into());
                add("--advertise", node.address.clone().into());
                add("--peers", namenodes);
                add("--replication", shape.replication.to_string().into());
                if let Some(size) = shape.chunk_size {
                    add("--chunk-size", size.to_string().into());
                }
                if let Some(ms) = shape.dead_after_ms {
                    add("--dead-after", (ms as f64 / 1000.0).to_string().into());
                }
                if let Some(ms) = shape.session_lease_ms {
                    add("--session-lease", (ms as f64 / 1000.0).to_string().into());
                }
                if let Some(ms) = shape.garbage_grace_ms {
                    add("--garbage-grace", (ms as f64 / 1000.0).to_string().into());
                }
                if let Some(ms) = shape.compact_after_ms {
                    add("--compact-after", (ms as f64 / 1000.0).to_string().into());
                }
            }
            Role::Datanode => {
                add("--dir", self.data(&node.name).into());
                add("--listen", node.address.clone().into());
                add("--advertise", node.address.clone().into());
                add("--namenodes", namenodes);
                add("--rack", node.rack.clone().into());
                // Each stands for a machine of its own.
                add("--host", node.name.clone().into());
                if let Some(capacity) = shape.capacity {
                    add("--capacity", capacity.to_string().into());
                }
                if !shape.short_circuit {
                    arguments.push("--no-short-circuit".into());
                }
            }
            Role::Mount => {
                add("--namenodes", namenodes);
                arguments.push(node.address.clone().into());
            }
        }
        arguments
    }
}

const LOCK: &str = "cluster.lock";

fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK);
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    // SAFETY: the descriptor is open for as long as `file` lives.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } != 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("cannot lock {}", path.display()));
    }
    Ok(file)
}

/// A node's log in the cluster at `dir`.
pub fn log_path(dir: &Path, name: &str) -> PathBuf {
    dir.join("logs").join(format!("{name}.log"))
}

/// Whether a node of the cluster at `dir` runs.
pub fn alive(dir: &Path, node: &Node) -> bool {
    node.process.is_some_and(|process| process.alive(&marker(dir, node)))
}

/// The argument by which a node's process is recognised: its data directory, or the mount point.
fn marker(dir: &Path, node: &Node) -> OsString {
    match node.role {
        Role::Mount => OsStr::new(&node.address).to_os_string(),
        _ => dir.join(&node.name).into_os_string(),
    }
}

/// Writes a file of the user's state, if there is a place for it.
fn note(path: Option<PathBuf>, text: &str) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    write_whole(&path, text.as_bytes())
}

/// The directory of the cluster that commands find without configuration.
pub fn current_dir(path: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().next().filter(|line| !line.is_empty()).map(PathBuf::from)
}

fn prepared_mount_point(dir: &Path) -> Result<PathBuf> {
    if !mounts::is_ours(dir) {
        fs::create_dir_all(dir).with_context(|| format!("cannot make the mount point {}", dir.display()))?;
    }
    dir.canonicalize().with_context(|| format!("cannot use the mount point {}", dir.display()))
}

/// A string of JSON is one of TOML as well; what `{:?}` writes need not be.
fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.to_string_lossy()).to_string()
}

/// What is remembered of a cluster is remembered as lines of text.
fn check_is_text(path: &Path) -> Result<()> {
    if path.to_str().is_none_or(|text| text.contains('\n')) {
        bail!(exit::Usage(format!("the path {path:?} is not a line of text; choose another")));
    }
    Ok(())
}

fn check_mount_point(layout: &Layout, mount: &Path, dir: &Path) -> Result<()> {
    check_is_text(mount)?;
    if layout.is_hidden_by(mount, dir) {
        bail!(
            "a mount on {} would hide the files of the cluster itself; choose another directory",
            mount.display()
        );
    }
    Ok(())
}

fn remove_all(dir: &Path) -> Result<()> {
    gone(fs::remove_dir_all(dir), || dir.display())
}

fn remove(file: &Path) -> Result<()> {
    gone(fs::remove_file(file), || file.display())
}

/// What was to be removed; what is not there need not be.
fn gone<D: Display>(removed: std::io::Result<()>, what: impl FnOnce() -> D) -> Result<()> {
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", what()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    const SHAPE: &str = r#"{"namenodes": 1, "datanodes": 0, "racks": 1, "replication": 1, "base_port": 0}"#;

    #[test]
    fn only_what_is_the_clusters_own_is_deleted() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().canonicalize().unwrap();
        let shape = serde_json::from_str(SHAPE).unwrap();
        let layout = Layout::new(shape, &["a:1".into()], Some(&dir.join("mnt")));
        let _lock = lock(&dir).unwrap();
        let cluster = LocalCluster { dir: dir.clone(), layout, _lock, _ports: None };
        cluster.save().unwrap();
        for directory in ["nn1", "logs", "mnt", "mount"] {
            fs::create_dir(dir.join(directory)).unwrap();
        }
        for file in ["nn1/state", "logs/nn1.log", "logs/mount.log", "logs/theirs", "mount/theirs"] {
            fs::write(dir.join(file), "x").unwrap();
        }
        cluster.delete().unwrap();
        let left = ["logs/theirs", "mount/theirs"].map(|file| dir.join(file).exists());
        let gone = ["nn1", "mnt", "logs/nn1.log", "logs/mount.log", FILE, LOCK, "cairn.toml"];
        assert_eq!(left, [true, true]);
        assert!(gone.iter().all(|name| !dir.join(name).exists()));
    }

    #[test]
    fn a_path_is_text_and_stays_what_it_is() {
        for path in ["/o'brien \"x\"\\y", "/cafe\u{301}", "/tab\t"] {
            assert!(check_is_text(Path::new(path)).is_ok());
            let table: toml::Table = toml::from_str(&format!("tls = {}", quoted(Path::new(path)))).unwrap();
            assert_eq!(table["tls"].as_str(), Some(path));
        }
        assert!(check_is_text(Path::new(OsStr::from_bytes(b"/\xff"))).is_err());
        assert!(check_is_text(Path::new("/two\nlines")).is_err());
    }
}
