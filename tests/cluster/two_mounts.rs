//! Two mounts of one cluster on this machine.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use crate::mounting::can_mount;
use crate::support::{Cluster, text};

/// What must come by itself comes within this, or never.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster that is mounted twice. The second mount can be killed and stopped.
pub struct TwoMounts {
    pub cluster: Cluster,
    pub first: PathBuf,
    pub second: PathBuf,
    pub serving: Child,
}

impl TwoMounts {
    /// `lease`: how many seconds a session outlives its client. `None` where mounting is not possible.
    pub fn up(lease: &str) -> Option<TwoMounts> {
        if !can_mount() {
            return None;
        }
        let first = tempfile::tempdir().expect("a mount point").keep();
        let second = tempfile::tempdir().expect("a mount point").keep();
        let shape = ["--namenodes", "3", "--datanodes", "3", "--session-lease", lease];
        let cluster = Cluster::up(&[shape.as_slice(), &["--mount", text(&first)]].concat());
        let serving = cluster.spawn(&["mount", text(&second)]);
        let mounts = TwoMounts { cluster, first, second, serving };
        mounts.wait_for("the second mount", || {
            fs::read_to_string("/proc/mounts").is_ok_and(|table| table.contains(text(&mounts.second)))
        });
        Some(mounts)
    }

    #[track_caller]
    pub fn wait_for(&self, what: &str, mut there: impl FnMut() -> bool) {
        let give_up = Instant::now() + PATIENCE;
        while !there() {
            assert!(Instant::now() < give_up, "waited in vain for {what}\n{}", self.cluster.logs());
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so its number is its own.
        assert_eq!(unsafe { libc::kill(self.serving.id() as i32, signal) }, 0);
    }

    /// The same new file, open on both mounts.
    pub fn both(&self, name: &str) -> (File, File) {
        let one = open(&self.first.join(name));
        self.wait_for("the file to be seen", || self.second.join(name).exists());
        (one, open(&self.second.join(name)))
    }
}

impl Drop for TwoMounts {
    fn drop(&mut self) {
        let _ = self.serving.kill();
        let _ = self.serving.wait();
        let _ = Command::new("umount").arg("-l").arg(&self.second).status();
        let _ = fs::remove_dir(&self.second);
    }
}

pub fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("the file opens")
}
