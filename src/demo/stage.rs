//! The demo's cluster and what it says about it; taken down whatever happens.

use std::io::{IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use cairn_client::Cluster;

use crate::client::Client;
use crate::cluster::{LocalCluster, Shape, process, ready, start_nodes};
use crate::exit;
use crate::paths::ClusterPath;

/// How long the cluster may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The running cluster. Dropping it kills and deletes it unless it is kept.
pub struct Stage {
    cluster: Option<LocalCluster>,
    /// Where it is mounted, if it is.
    pub mount: Option<PathBuf>,
    keep: bool,
}

impl Stage {
    /// Starts a cluster in `dir`.
    pub async fn set(dir: &Path, shape: Shape, keep: bool) -> Result<(Stage, Cluster)> {
        let cluster = LocalCluster::create(dir, shape, None)?;
        let mut stage = Stage { cluster: Some(cluster), mount: None, keep };
        let client = start_nodes(stage.local()?, PATIENCE).await?;
        Ok((stage, client))
    }

    /// The cluster's processes.
    pub fn local(&mut self) -> Result<&mut LocalCluster> {
        self.cluster.as_mut().ok_or_else(|| anyhow!("the cluster is gone"))
    }

    /// Mounts it; says why if it may not.
    pub async fn mount(&mut self, at: &Path) -> std::result::Result<(), String> {
        if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
            return Err(format!("/dev/fuse: {}", crate::exit::io_text(&error)));
        }
        let mounted = async {
            let local = self.local()?;
            local.set_mount(at)?;
            local.start("mount")?;
            ready::wait_for_mount(local, PATIENCE).await?;
            local.layout.mount_point().ok_or_else(|| anyhow!("it has no mount"))
        };
        match mounted.await {
            Ok(dir) => {
                self.mount = Some(dir);
                Ok(())
            }
            Err(error) => {
                let log = self.local().map(|local| local.log("mount")).unwrap_or_default();
                let said = process::last_lines(&log, 1);
                if let Ok(local) = self.local() {
                    let _ = local.end("mount", nix::sys::signal::Signal::SIGKILL);
                    // It may have come after all: what is left mounted could not be deleted with the rest.
                    let _ = local.remove_mount();
                }
                Err(if said.is_empty() { format!("{error:#}") } else { said })
            }
        }
    }

    /// The cluster stays when the demo is over.
    pub fn kept(&mut self) -> Option<LocalCluster> {
        if self.keep { self.cluster.take() } else { None }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(cluster) = self.cluster.take() {
            cluster.kill_all();
            let dir = cluster.dir().to_path_buf();
            if let Err(error) = cluster.delete() {
                exit::say(format_args!("cairn: demo: cannot delete {}: {error:#}", dir.display()));
            }
        }
    }
}

/// A client of the demo's cluster that acts as this user.
pub fn client(cluster: Cluster) -> Client {
    Client::over(cluster, "demo")
}

/// Where a file of the source is in the cluster.
pub fn target(path: &Path) -> ClusterPath {
    ClusterPath::new(&[b"/tree/", path.as_os_str().as_bytes()].concat())
}

/// Tells the story on stdout: a line for each step, and one line that changes while something goes on.
pub struct Narrator {
    began: Instant,
    terminal: bool,
    last: Option<Instant>,
}

impl Narrator {
    /// Starts the clock.
    pub fn new() -> Narrator {
        Narrator { began: Instant::now(), terminal: std::io::stdout().is_terminal(), last: None }
    }

    /// A line that stays.
    pub fn say(&mut self, text: &str) {
        let clear = if self.terminal && self.last.take().is_some() { "\r\x1b[K" } else { "" };
        self.last = None;
        self.print(&format!("{clear}[{:>6.1} s] {text}\n", self.began.elapsed().as_secs_f64()));
    }

    /// A line that the next one replaces on a terminal; elsewhere one a second is printed.
    pub fn progress(&mut self, text: &str) {
        let now = Instant::now();
        let at = self.began.elapsed().as_secs_f64();
        if self.terminal {
            self.last = Some(now);
            let cut: String = text.chars().take(100).collect();
            self.print(&format!("\r\x1b[K[{at:>6.1} s] {cut}"));
        } else if self.last.is_none_or(|last| now - last >= Duration::from_secs(1)) {
            self.last = Some(now);
            self.print(&format!("[{at:>6.1} s] {text}\n"));
        }
    }

    /// Text as it is.
    pub fn print(&self, text: &str) {
        let mut out = std::io::stdout();
        // A reader that has gone away does not end the demo before it has cleaned up.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}
