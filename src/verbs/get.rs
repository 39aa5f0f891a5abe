//! `cairn get`: files and trees out of the cluster, many files at a time.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use cairn_client::fs;
use clap::Args;

use super::{Flight, Targets};
use crate::client::Client;
use crate::exit::{self, PathError};
use crate::paths::ClusterPath;
use crate::transfer::{self, Download, Progress, local};
use crate::tree::{Entry, Walk};

/// Arguments of `cairn get`.
#[derive(Args)]
pub struct Get {
    /// Files and directories of the cluster, then where they go on this machine (- is stdout)
    #[arg(value_names = ["PATH", "LOCAL"], num_args = 1.., required = true)]
    paths: Vec<std::ffi::OsString>,
    /// Keep modes, modification times and, for root, owners
    #[arg(short, long)]
    preserve: bool,
    /// Replace files that exist
    #[arg(short, long)]
    force: bool,
    /// Files in flight
    #[arg(short, long, value_name = "N", default_value_t = transfer::JOBS as u16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: u16,
    /// Directories are copied whole anyway
    #[arg(short, short_alias = 'R', long, hide = true)]
    recursive: bool,
    /// Draw no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Copies out of the cluster. A single PATH goes to the current directory.
pub async fn run(client: Arc<Client>, mut args: Get) -> Result<()> {
    let to = match args.paths.len() {
        1 => PathBuf::from("."),
        _ => local::named(&args.paths.pop().unwrap_or_default())?,
    };
    let sources = args.paths.iter().map(|path| ClusterPath::named(path)).collect::<Result<Vec<_>, _>>()?;
    if to.as_os_str() == "-" {
        return super::cat::print(&client, &sources).await;
    }
    let trailing = to.as_os_str().as_bytes().ends_with(b"/");
    let into = to.is_dir();
    if !into && (sources.len() > 1 || trailing) {
        bail!("{}: not a directory", to.display());
    }
    let how = Download { overwrite: args.force, preserve: args.preserve };
    let fetch = Fetch { client: client.clone(), how, progress: Arc::new(Progress::start("get", args.quiet)) };
    client.report.attach(fetch.progress.bar());
    let work = fetch.all(&sources, &to, into, usize::from(args.jobs));
    let result = tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => {
            fetch.progress.finish();
            // Dropping the transfers has told the writers to remove what they had begun.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            std::process::exit(i32::from(exit::INTERRUPTED));
        }
    };
    client.report.attach(None);
    fetch.progress.finish();
    result
}

struct Fetch {
    client: Arc<Client>,
    how: Download,
    progress: Arc<Progress>,
}

impl Fetch {
    async fn all(&self, sources: &[ClusterPath], to: &Path, into: bool, jobs: usize) -> Result<()> {
        let mut flight = Flight::new(&self.client, jobs);
        let mut finished = Vec::new();
        let mut targets = Targets::default();
        for source in sources {
            let target = match (into, source.name()) {
                (true, Some(name)) => to.join(OsStr::from_bytes(name)),
                (true, None) => to.to_path_buf(),
                (false, _) => to.to_path_buf(),
            };
            let attr = match self.client.stat(source, true).await {
                Ok(attr) => attr,
                Err(error) => {
                    self.client.report.failed(error);
                    continue;
                }
            };
            if !targets.claim(&self.client.report, source.as_os_str(), target.as_os_str()) {
                continue;
            }
            self.tree(source, attr, target, &mut flight, &mut finished).await;
        }
        flight.land().await;
        // Writing entries changed the times of their directories; children are later in the list than parents.
        for (path, attr) in finished.into_iter().rev() {
            if let Err(error) = dress_directory(&path, &attr) {
                self.client.report.failed(PathError::Local(path, error));
            }
        }
        Ok(())
    }

    async fn tree(
        &self,
        source: &ClusterPath,
        attr: fs::Attr,
        target: PathBuf,
        flight: &mut Flight,
        finished: &mut Vec<(PathBuf, fs::Attr)>,
    ) {
        let mut walk = Walk::new(self.client.clone(), source.clone(), attr);
        while let Some(entry) = walk.next_listed().await {
            let local = match local_path(source, &target, &entry) {
                Ok(local) => local,
                Err(error) => {
                    self.client.report.failed(error);
                    walk.skip();
                    continue;
                }
            };
            match entry.attr.kind() {
                fs::FileKind::Directory => match make_directory(&local, entry.attr.mode, self.client.umask) {
                    Ok(()) if self.how.preserve => finished.push((local, entry.attr)),
                    Ok(()) => {}
                    Err(error) => {
                        self.client.report.failed(PathError::Local(local, error));
                        walk.skip();
                    }
                },
                fs::FileKind::File => {
                    let (client, how, progress) = (self.client.clone(), self.how, self.progress.clone());
                    flight.start(fetch_file(client, entry, local, how, progress)).await;
                }
                fs::FileKind::Symlink => {
                    let (client, force) = (self.client.clone(), self.how.overwrite);
                    flight.start(fetch_symlink(client, entry, local, force)).await;
                }
                _ => self.client.report.failed(format!("{}: not a regular file; left out", entry.path)),
            }
        }
    }
}

/// Where an entry goes. A name that could lead out of the target is refused, whoever stored it.
fn local_path(source: &ClusterPath, target: &Path, entry: &Entry) -> Result<PathBuf, PathError> {
    let below = entry.path.as_bytes().get(source.as_bytes().len()..).unwrap_or_default();
    let parts = cairn_proto::path::components(below).map_err(PathError::remote(&entry.path))?;
    Ok(parts.into_iter().fold(target.to_path_buf(), |path, part| path.join(OsStr::from_bytes(part))))
}

async fn fetch_file(
    client: Arc<Client>,
    entry: Entry,
    local: PathBuf,
    how: Download,
    progress: Arc<Progress>,
) -> Result<(), PathError> {
    client.require_read(&entry.path, &entry.attr).await?;
    transfer::fetch(&client, &entry.path, &entry.attr, local, how, &progress).await
}

async fn fetch_symlink(
    client: Arc<Client>,
    entry: Entry,
    local: PathBuf,
    force: bool,
) -> Result<(), PathError> {
    let target =
        client.cluster.read_link(&client.cred, entry.at).await.map_err(PathError::remote(&entry.path))?;
    let replaced = |metadata: std::fs::Metadata| metadata.is_file() || metadata.is_symlink();
    if force && local.symlink_metadata().is_ok_and(replaced) {
        std::fs::remove_file(&local).map_err(PathError::local(&local))?;
    }
    std::os::unix::fs::symlink(OsStr::from_bytes(&target), &local).map_err(PathError::local(local))
}

/// Makes a directory that lets nobody in whom the one with `mode` keeps out: what lies in it may rely on that.
fn make_directory(path: &Path, mode: u32, umask: u32) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    // Its entries must be made before it may become read-only.
    let mode = (mode & 0o777 & !umask) | 0o700;
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result,
    }
}

fn dress_directory(path: &Path, attr: &fs::Attr) -> io::Result<()> {
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(attr.uid), Some(attr.gid))?;
    }
    std::fs::File::open(path)?.set_modified(transfer::download::system_time(attr.mtime_ns))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(attr.mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_out_whom_its_original_keeps_out() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("private", 0o700), ("closed", 0o500)] {
            let path = dir.path().join(name);
            make_directory(&path, mode, 0o022).unwrap();
            make_directory(&path, 0o755, 0o022).unwrap();
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o700, "{name}");
        }
    }

    #[test]
    fn entries_stay_below_their_target() {
        let source = ClusterPath::new(b"/a");
        let entry = |path: &[u8]| Entry {
            path: ClusterPath::new(path),
            at: Default::default(),
            attr: Default::default(),
            depth: 0,
        };
        let at = |path: &[u8]| local_path(&source, Path::new("/t"), &entry(path)).unwrap();
        assert_eq!(at(b"/a"), Path::new("/t"));
        assert_eq!(at(b"/a/b/c"), Path::new("/t/b/c"));
        let evil = Entry { path: source.join(b".."), ..entry(b"/a") };
        assert!(local_path(&source, Path::new("/t"), &evil).is_err());
        let root = ClusterPath::new(b"/");
        assert_eq!(local_path(&root, Path::new("/t"), &entry(b"/a")).unwrap(), Path::new("/t/a"));
    }
}
