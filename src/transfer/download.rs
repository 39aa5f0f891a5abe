//! Writes the content of one file of the cluster to this machine so that it appears whole or not at all.

use std::fs::{File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cairn_client::fs;
use futures::StreamExt;
use tokio::sync::mpsc;

use super::{Progress, Replacement, replaceable};
use crate::client::Client;
use crate::exit::PathError;
use crate::mode;
use crate::paths::ClusterPath;

/// How a file arrives.
#[derive(Debug, Clone, Copy, Default)]
pub struct Download {
    /// Replace what is there.
    pub overwrite: bool,
    /// Keep mode and modification time.
    pub preserve: bool,
}

/// Copies the file `attr` (known as `path`) to `target`.
pub async fn fetch(
    client: &Client,
    path: &ClusterPath,
    attr: &fs::Attr,
    target: PathBuf,
    how: Download,
    progress: &Progress,
) -> Result<(), PathError> {
    let (send, receive) = mpsc::channel(8);
    let writer = {
        let (attr, target) = (*attr, target.clone());
        let umask = client.umask;
        tokio::task::spawn_blocking(move || write_file(receive, &target, &attr, how, umask))
    };
    let mut failure = None;
    let mut pieces = pin!(client.cluster.read_stream(attr, 0, attr.size));
    loop {
        match pieces.next().await {
            Some(Ok(piece)) => {
                progress.moved(piece.len() as u64);
                // The writer has failed if it does not listen; it says why below.
                if send.send(Some(piece)).await.is_err() {
                    break;
                }
            }
            Some(Err(error)) => {
                failure = Some(PathError::Remote(path.clone(), error));
                break;
            }
            None => {
                let _ = send.send(None).await;
                break;
            }
        }
    }
    drop(send);
    let written = writer.await.unwrap_or_else(|_| Err(io::Error::other("the writing thread stopped")));
    match failure {
        Some(failure) => Err(failure),
        None => {
            written.map_err(PathError::local(target))?;
            progress.file_done();
            Ok(())
        }
    }
}

/// Writes pieces until the `None` that says that all have come; an end without it leaves nothing behind.
fn write_file(
    mut pieces: mpsc::Receiver<Option<Bytes>>,
    target: &Path,
    attr: &fs::Attr,
    how: Download,
    umask: u32,
) -> io::Result<()> {
    if !how.overwrite && target.symlink_metadata().is_ok() {
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    let (target, old) = replaceable(target)?;
    let (replacement, mut file) = Replacement::begin(&target, "get")?;
    loop {
        match pieces.blocking_recv() {
            Some(Some(piece)) => file.write_all(&piece)?,
            Some(None) => break,
            None => return Err(io::Error::other("the transfer was broken off")),
        }
    }
    dress(&file, attr, old.as_ref(), how, umask)?;
    drop(file);
    replacement.publish(&target, how.overwrite)
}

/// Gives the file its mode and owner: with `preserve` the source's, else those of the file that it replaces.
fn dress(file: &File, attr: &fs::Attr, old: Option<&Metadata>, how: Download, umask: u32) -> io::Result<()> {
    let root = nix::unistd::geteuid().is_root();
    let (mode, owner) = match old {
        _ if how.preserve => (attr.mode & 0o7777, Some((attr.uid, attr.gid))),
        // Other content does not inherit the right to run as somebody else.
        Some(old) => (old.mode() & 0o777, Some((old.uid(), old.gid()))),
        None => (attr.mode & 0o777 & !umask, None),
    };
    if how.preserve {
        file.set_modified(system_time(attr.mtime_ns))?;
    }
    if let Some((uid, gid)) = owner.filter(|_| root) {
        std::os::unix::fs::fchown(file, Some(uid), Some(gid))?;
    }
    let mode = match owner {
        Some(was) => {
            let is = file.metadata()?;
            mode::kept(mode, was, (is.uid(), is.gid()))
        }
        None => mode,
    };
    file.set_permissions(Permissions::from_mode(mode))
}

/// A time before the epoch is possible.
pub fn system_time(ns: i64) -> SystemTime {
    let span = Duration::from_nanos(ns.unsigned_abs());
    if ns >= 0 { SystemTime::UNIX_EPOCH + span } else { SystemTime::UNIX_EPOCH - span }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{getegid, geteuid};

    #[test]
    fn a_kept_mode_lets_nobody_run_as_whoever_fetched_it() {
        let dir = tempfile::tempdir().unwrap();
        let mode_of = |uid, gid| {
            let path = dir.path().join("program");
            let file = File::create(&path).unwrap();
            let attr = fs::Attr { mode: 0o4755, uid, gid, ..Default::default() };
            dress(&file, &attr, None, Download { preserve: true, overwrite: false }, 0o022).unwrap();
            path.metadata().unwrap().mode() & 0o7777
        };
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        assert_eq!(mode_of(uid, gid), 0o4755);
        // Root has given it to its owner.
        let of_another = if geteuid().is_root() { 0o4755 } else { 0o755 };
        assert_eq!(mode_of(uid + 1, gid), of_another);
    }
}
