//! Writes the content of one file of the cluster to this machine so that it appears whole or not at all.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cairn_client::fs;
use futures::StreamExt;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tokio::sync::mpsc;

use super::Progress;
use crate::client::Client;
use crate::exit::PathError;
use crate::paths::{ClusterPath, temporary_name};

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

/// A file under a temporary name, removed unless it gets its final one.
struct Temporary {
    path: PathBuf,
    kept: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
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
    let name = target.file_name().unwrap_or(OsStr::new("file"));
    let path = target.with_file_name(OsStr::from_bytes(&temporary_name(name.as_bytes(), "get")));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    let mut temporary = Temporary { path, kept: false };
    loop {
        match pieces.blocking_recv() {
            Some(Some(piece)) => file.write_all(&piece)?,
            Some(None) => break,
            None => return Err(io::Error::other("the transfer was broken off")),
        }
    }
    dress(&file, attr, how, umask)?;
    drop(file);
    publish(&temporary.path, target, how.overwrite)?;
    temporary.kept = true;
    Ok(())
}

fn dress(file: &File, attr: &fs::Attr, how: Download, umask: u32) -> io::Result<()> {
    let mode = if how.preserve { attr.mode & 0o7777 } else { attr.mode & 0o777 & !umask };
    if how.preserve {
        file.set_modified(system_time(attr.mtime_ns))?;
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::fchown(file, Some(attr.uid), Some(attr.gid))?;
        }
    }
    file.set_permissions(Permissions::from_mode(mode))
}

/// A time before the epoch is possible.
pub fn system_time(ns: i64) -> SystemTime {
    let span = Duration::from_nanos(ns.unsigned_abs());
    if ns >= 0 { SystemTime::UNIX_EPOCH + span } else { SystemTime::UNIX_EPOCH - span }
}

fn publish(from: &Path, to: &Path, overwrite: bool) -> io::Result<()> {
    if overwrite {
        return std::fs::rename(from, to);
    }
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => Ok(()),
        // Not every file system knows the flag; the name was free a moment ago.
        Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOSYS) => std::fs::rename(from, to),
        Err(error) => Err(error.into()),
    }
}
