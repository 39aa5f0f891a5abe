//! Mounting: options, the session with the kernel, and its end.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;
use std::{io, thread};

use cairn_client::Cluster;
use cairn_ops::http::Role;
use cairn_proto::{Error, ErrorCode, Result};
use fuser::{Config, MountOption, Session, SessionACL};
use tokio::runtime::Handle;

use crate::filesystem::CairnFs;
use crate::holds::LINGER;
use crate::mount_point;
use crate::shown::Shown;
use crate::site::Site;
use crate::view::View;

/// Rounds of tidying up, of a second each, from one report of what was read to the next.
const TELL_EVERY: u64 = 5;

/// Which reads change a file's time of access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Atime {
    /// The first after a change, and one a day: enough to tell what was read since it was written.
    #[default]
    Relative,
    /// None.
    Never,
    /// All that the kernel does not answer from its own pages.
    Always,
}

/// How a cluster is to appear on this host. Plain data; [`MountOptions::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The directory to mount on.
    pub mount_point: PathBuf,
    /// Refuse every change.
    pub read_only: bool,
    /// Let users other than the one who mounts in.
    pub allow_other: bool,
    /// Let the kernel check permissions. Otherwise the namenode does, knowing a user's own group only.
    pub default_permissions: bool,
    /// Which reads are remembered.
    pub atime: Atime,
    /// Honour device files.
    pub devices: bool,
    /// Honour set-user-id and set-group-id bits.
    pub set_id: bool,
    /// Let programs be run.
    pub programs: bool,
    /// Every write is on disk before it returns.
    pub sync: bool,
    /// Every change of a directory is on disk before it returns.
    pub dirsync: bool,
    /// Work in directories made here without asking, until somebody else comes to them.
    pub delegate: bool,
    /// Read replicas on this host from their files.
    pub short_circuit: bool,
    /// Whose files they seem to be.
    pub shown: Shown,
    /// How long the kernel may show attributes without asking again.
    pub attr_ttl: Duration,
    /// How long the kernel may follow a name without asking again.
    pub entry_ttl: Duration,
    /// The source that `df` and `/proc/mounts` show.
    pub fs_name: String,
    /// Threads that read the kernel's requests.
    pub threads: usize,
    /// How far the kernel reads ahead in a file read in order, in KiB.
    pub read_ahead_kib: usize,
}

impl MountOptions {
    /// The defaults, for a mount on `mount_point`.
    pub fn new(mount_point: impl Into<PathBuf>) -> MountOptions {
        let cores = thread::available_parallelism().map_or(2, usize::from);
        MountOptions {
            mount_point: mount_point.into(),
            read_only: false,
            allow_other: false,
            default_permissions: true,
            atime: Atime::Relative,
            devices: false,
            set_id: false,
            programs: true,
            sync: false,
            dirsync: false,
            delegate: true,
            short_circuit: true,
            shown: Shown::default(),
            attr_ttl: Duration::from_secs(1),
            entry_ttl: Duration::from_secs(1),
            fs_name: "cairn".into(),
            threads: cores.clamp(2, 4),
            read_ahead_kib: 4096,
        }
    }

    /// Whether the cluster is to delegate directories that are made here: the rights of whoever comes to them are checked
    /// by the kernel, and nobody wants everything on disk at once.
    pub fn delegates(&self) -> bool {
        let at_once = self.sync || self.dirsync;
        self.delegate && self.default_permissions && !self.read_only && !at_once
    }

    /// The source's name, for the helper that mounts for ordinary users and takes commas for the end of an option.
    fn escaped_name(&self) -> String {
        if nix::unistd::geteuid().is_root() {
            return self.fs_name.clone();
        }
        self.fs_name.replace('\\', "\\\\").replace(',', "\\,")
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(self.escaped_name()),
            // Passed as it is, because the binding drops a subtype when it mounts without a helper.
            MountOption::CUSTOM("subtype=cairn".into()),
            if self.devices { MountOption::Dev } else { MountOption::NoDev },
            if self.set_id { MountOption::Suid } else { MountOption::NoSuid },
            if self.programs { MountOption::Exec } else { MountOption::NoExec },
            if self.read_only { MountOption::RO } else { MountOption::RW },
        ];
        let further = [
            (self.atime == Atime::Never, MountOption::NoAtime),
            (self.sync, MountOption::Sync),
            (self.dirsync, MountOption::DirSync),
        ];
        config
            .mount_options
            .extend(further.into_iter().filter_map(|(wanted, option)| wanted.then_some(option)));
        if self.default_permissions {
            config.mount_options.push(MountOption::DefaultPermissions);
        }
        config.acl = if self.allow_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(self.threads.max(1));
        config
    }
}

/// Mounts `cluster`; what has to wait is waited for on `runtime`, which must live as long as the mount.
///
/// Returns as soon as the mount is there. It blocks shortly, but may be called from anywhere.
pub fn mount(cluster: Cluster, runtime: Handle, mut options: MountOptions) -> Result<Mounted> {
    options.mount_point = mount_point::real_path(&options.mount_point)?;
    mount_point::check(&options)?;
    let config = options.config();
    let read_ahead_kib = options.read_ahead_kib;
    let path = options.mount_point.clone();
    let view = Arc::new(View::new(cluster, options));
    let filesystem = CairnFs::new(view.clone(), runtime.clone());
    let told = Arc::downgrade(&view);
    view.cluster.on_session_lost(move |session| {
        if let Some(view) = told.upgrade() {
            let changed = view.session_lost(session);
            tokio::spawn(async move {
                for inode in changed {
                    view.forget_pages(inode).await;
                }
                view.holds.register_again(&view.cluster).await;
            });
        }
    });
    let mut session = Session::new(filesystem, &path, &config).map_err(|error| refusal(&path, &error))?;
    session.watch(view.counted.clone());
    // Set before any request is read.
    let _ = view.notifier.set(session.notifier());
    runtime.spawn(tidy_up(Arc::downgrade(&view)));

    let ended = Arc::new(Ended::default());
    start(session, ended.clone()).map_err(|error| refusal(&path, &error))?;
    mount_point::raise_read_ahead(&path, read_ahead_kib);
    tracing::info!(mount_point = %path.display(), "mounted");
    Ok(Mounted { mount_point: path, ended, view: Arc::downgrade(&view) })
}

/// Serves the session in threads of its own, and says when it has ended.
fn start(session: Session<CairnFs>, ended: Arc<Ended>) -> io::Result<()> {
    let background = session.spawn()?;
    thread::Builder::new().name("cairn-mount".into()).spawn(move || {
        let served = background.join();
        ended.set(served.map_err(|error| ErrorCode::Io.because(format!("the FUSE session: {error}"))));
    })?;
    Ok(())
}

fn refusal(path: &Path, error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorCode::NotPermitted,
        io::ErrorKind::NotFound => ErrorCode::NotFound,
        _ => ErrorCode::Io,
    };
    code.because(format!(
        "mounting on {}: {error}; only root, or a user with fusermount3, can",
        path.display()
    ))
}

/// What nobody waits for: closing at the namenode what is closed here, and telling it what was read.
async fn tidy_up(view: Weak<View>) {
    for round in 1u64.. {
        tokio::time::sleep(LINGER / 2).await;
        let Some(view) = view.upgrade() else { return };
        view.holds.close_idle(&view.cluster, LINGER).await;
        if round.is_multiple_of(TELL_EVERY) {
            view.tell_accesses().await;
        }
    }
}

/// How a session ended, once it has.
#[derive(Default)]
struct Ended {
    result: Mutex<Option<Result<()>>>,
    changed: Condvar,
}

impl Ended {
    fn set(&self, result: Result<()>) {
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        self.changed.notify_all();
    }

    fn wait(&self) -> Result<()> {
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(result) = result.as_ref() {
                return result.clone();
            }
            result = self.changed.wait(result).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn is_set(&self) -> bool {
        self.result.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// A mount that is being served. Dropping it detaches the mount; [`Mounted::unmount`] ends it in good order.
pub struct Mounted {
    mount_point: PathBuf,
    ended: Arc<Ended>,
    view: Weak<View>,
}

impl Mounted {
    /// What it shows over HTTP.
    pub fn site(&self) -> Arc<dyn Role> {
        Arc::new(Site { view: self.view.clone() })
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Waits until it is unmounted, by whomever, and everything written is committed.
    ///
    /// Blocks the thread: on a runtime, call it through `spawn_blocking`.
    pub fn wait(&self) -> Result<()> {
        self.ended.wait()
    }

    /// Unmounts and waits until everything written is committed. Refused with `Busy` while files are open in it.
    ///
    /// Blocks the thread: on a runtime, call it through `spawn_blocking`.
    pub fn unmount(&self) -> Result<()> {
        if !self.ended.is_set() {
            mount_point::unmount(&self.mount_point, false)?;
        }
        self.ended.wait()
    }

    /// Takes the mount out of sight at once. It goes on serving the files that are open, until they are closed.
    pub fn detach(&self) -> Result<()> {
        if self.ended.is_set() {
            return Ok(());
        }
        mount_point::unmount(&self.mount_point, true)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::warn!(mount_point = %self.mount_point.display(), %error, "could not be unmounted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_reach_the_kernel() {
        let options = MountOptions { read_only: true, allow_other: true, ..MountOptions::new("/mnt") };
        let config = options.config();
        assert!(config.mount_options.contains(&MountOption::RO));
        assert!(config.mount_options.contains(&MountOption::DefaultPermissions));
        assert_eq!(config.acl, SessionACL::All);
        let options = MountOptions { default_permissions: false, threads: 0, ..MountOptions::new("/mnt") };
        let config = options.config();
        assert!(config.mount_options.contains(&MountOption::RW));
        assert!(!config.mount_options.contains(&MountOption::DefaultPermissions));
        assert_eq!((config.acl, config.n_threads), (SessionACL::Owner, Some(1)));
    }

    #[test]
    fn everybody_who_waits_hears_how_it_ended() {
        let ended = Arc::new(Ended::default());
        let waiting = ended.clone();
        let waiter = thread::spawn(move || waiting.wait());
        ended.set(Err(ErrorCode::Io.into()));
        assert_eq!(waiter.join().unwrap(), Err(ErrorCode::Io.into()));
        assert_eq!(ended.wait(), Err(ErrorCode::Io.into()));
    }
}
