//! Whose a data directory is: the `VERSION` file, the lock, and the mark of a clean stop.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use cairn_host::disk::{self, Access, Disk, DiskLock};
use cairn_proto::{Error, ErrorCode, Result, checked_json};
use serde::{Deserialize, Serialize};

/// The one layout of a data directory this program knows.
pub const FORMAT: u32 = 1;

/// What `VERSION` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the directory's layout.
    pub format: u32,
    /// The cluster; empty until the first registration.
    pub cluster_id: String,
    /// The datanode: the same in all its directories.
    pub datanode: String,
    /// This directory.
    pub directory: String,
    /// All directories of the datanode at its last start, by id, with the path of each. Empty in older files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub siblings: BTreeMap<String, PathBuf>,
}

/// Makes the directory if need be and locks it against other processes.
pub fn lock(disk: &dyn Disk, path: &Path) -> Result<Box<dyn DiskLock>> {
    let refuse = |error: io::Error| start_error(path, "cannot be used", &error);
    disk::create_dirs(disk, path).map_err(refuse)?;
    disk.lock(&path.join("LOCK")).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => ErrorCode::Unavailable.because(format!(
            "data directory {} is in use by another process; stop it, or choose another directory",
            path.display()
        )),
        _ => refuse(error),
    })
}

/// Reads `VERSION`; `None` in a fresh directory.
pub fn load(disk: &dyn Disk, path: &Path) -> Result<Option<Identity>> {
    let file = path.join("VERSION");
    let text = match disk::read(disk, &file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return fresh(disk, path).map(|()| None),
        Err(error) => return Err(start_error(&file, "cannot be read", &error)),
    };
    if checked_json::is_intact(&text) == Some(false) {
        return Err(ErrorCode::Corrupt.because(format!(
            "{} is damaged: its checksum does not match; move the data directory away and start an empty one: its \
             chunks are repaired from other datanodes",
            file.display()
        )));
    }
    #[derive(Deserialize)]
    struct Only {
        format: u32,
    }
    let malformed = |error: serde_json::Error| {
        ErrorCode::Malformed.because(format!("{}: not a VERSION file: {error}", file.display()))
    };
    // The version comes first: a later layout may have other fields, and must be told from damage.
    let Only { format } = serde_json::from_slice(&text).map_err(malformed)?;
    if format != FORMAT {
        return Err(ErrorCode::Version
            .because(format!("{}: directory format {format}, this program knows {FORMAT}", file.display())));
    }
    serde_json::from_slice(&text).map(Some).map_err(malformed)
}

/// A directory without `VERSION` must hold no chunks: somebody else's data is never adopted.
fn fresh(disk: &dyn Disk, path: &Path) -> Result<()> {
    let chunks = path.join("chunks");
    let found = disk.look(&chunks).map_err(|error| start_error(&chunks, "cannot be read", &error))?;
    if found.is_some() {
        return Err(ErrorCode::Malformed.because(format!(
            "{} holds chunks but no VERSION file; restore the file, or empty the directory",
            path.display()
        )));
    }
    Ok(())
}

/// Writes `VERSION` durably, whole or not at all.
pub fn save(disk: &dyn Disk, path: &Path, identity: &Identity) -> Result<()> {
    let text = serde_json::to_string_pretty(identity)
        .map_err(|error| ErrorCode::Invalid.because(error.to_string()))?;
    let sealed = checked_json::seal(&text).ok_or_else(|| ErrorCode::Invalid.because("VERSION"))?;
    let put = disk::replace(disk, &path.join("VERSION"), sealed.as_bytes());
    put.map_err(|error| start_error(path, "cannot be written to", &error))
}

/// Makes the subdirectories, durably.
pub fn lay_out(disk: &dyn Disk, path: &Path) -> Result<()> {
    let make = || -> io::Result<()> {
        let chunks = path.join("chunks");
        disk.create_dir(&path.join("tmp"))?;
        disk.create_dir(&chunks)?;
        for shelf in 0..=255u8 {
            disk.create_dir(&chunks.join(format!("{shelf:02x}")))?;
        }
        disk.sync_dir(&chunks)?;
        disk.sync_dir(path)
    };
    make().map_err(|error| start_error(path, "cannot be written to", &error))
}

/// Takes the mark of a clean stop away, durably, and says whether it was there.
pub fn take_clean_mark(disk: &dyn Disk, path: &Path) -> Result<bool> {
    match disk.remove(&path.join("CLEAN")) {
        Ok(()) => disk
            .sync_dir(path)
            .map(|()| true)
            .map_err(|error| start_error(path, "cannot be written to", &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(start_error(path, "cannot be written to", &error)),
    }
}

/// Leaves the mark of a clean stop: what lies here was synced and is as its records say.
pub fn leave_clean_mark(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    disk.open(&path.join("CLEAN"), Access::Create)?.sync_all()?;
    disk.sync_dir(path)
}

/// What a start says about a directory; disks that are gone are told from wrong settings.
fn start_error(path: &Path, what: &str, error: &io::Error) -> Error {
    let code = match error.raw_os_error() {
        Some(libc::EIO | libc::EUCLEAN | libc::ENXIO | libc::ENODEV) => ErrorCode::DiskFailed,
        Some(libc::EROFS) => ErrorCode::ReadOnly,
        Some(libc::ENOSPC | libc::EDQUOT) => ErrorCode::DiskFull,
        Some(libc::EACCES | libc::EPERM) => ErrorCode::PermissionDenied,
        Some(libc::ENOTDIR) => ErrorCode::NotDirectory,
        _ => ErrorCode::Io,
    };
    code.because(format!("data directory {} {what}: {error}", path.display()))
}
