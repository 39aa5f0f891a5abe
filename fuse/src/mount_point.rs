//! Mount points: whether one can be used, what is mounted there, and taking it away.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;
use std::{env, fs, io, thread};

use cairn_proto::{ErrorCode, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::mount::MountOptions;

const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";
const HELPER_SETTINGS: &str = "/etc/fuse.conf";
const MOUNTS: &str = "/proc/self/mountinfo";
/// How long a mount may take to say that nobody is behind it: the kernel says so at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// One line of the kernel's table of mounts.
#[derive(Debug, PartialEq, Eq)]
struct MountRecord {
    device: String,
    mount_point: PathBuf,
    kind: String,
}

impl MountRecord {
    /// From a line of `mountinfo`: id, parent, device, root, mount point, options, ..., `-`, type, source, options.
    fn parse(line: &str) -> Option<MountRecord> {
        let mut fields = line.split(' ');
        let device = fields.nth(2)?.to_owned();
        let mount_point = unescape(fields.nth(1)?);
        let kind = fields.skip_while(|field| *field != "-").nth(1)?.to_owned();
        Some(MountRecord { device, mount_point, kind })
    }

    fn is_ours(&self) -> bool {
        self.kind == "fuse.cairn"
    }
}

/// A path in which the kernel has written blanks and backslashes as `\ooo`.
fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut path = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = field.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) if bytes[at] == b'\\' => {
                path.push(byte);
                at += 4;
            }
            _ => {
                path.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

/// What is mounted at the real path `path`, on top. The mount itself is not asked.
fn mounted_at(path: &Path) -> Option<MountRecord> {
    let table = fs::read_to_string(MOUNTS).unwrap_or_default();
    table.lines().filter_map(MountRecord::parse).rfind(|mount| mount.mount_point == path)
}

/// The path without symbolic links where it can be had, or at least from the root.
pub(crate) fn real_path(path: &Path) -> Result<PathBuf> {
    // What is mounted there may not answer: then at least the way to it.
    let by_parent = |path: &Path| {
        let (parent, name) = (path.parent()?, path.file_name()?);
        Some(fs::canonicalize(parent).ok()?.join(name))
    };
    fs::canonicalize(path)
        .or_else(|_| std::path::absolute(path).map(|path| by_parent(&path).unwrap_or(path)))
        .map_err(|error| ErrorCode::Invalid.because(format!("{}: {error}", path.display())))
}

/// Refuses what cannot be mounted, saying what to do about it.
pub(crate) fn check(options: &MountOptions) -> Result<()> {
    if !Path::new(DEVICE).exists() {
        return Err(ErrorCode::NotSupported.because(format!(
            "{DEVICE} is missing: load the kernel's module with `modprobe fuse`, or give the container the device"
        )));
    }
    if !nix::unistd::geteuid().is_root() {
        if let Err(error) = fs::File::options().read(true).write(true).open(DEVICE) {
            return Err(ErrorCode::NotPermitted.because(format!(
                "{DEVICE}: {error}: let users open it with `chmod 666 {DEVICE}`, as is usual, or mount as root"
            )));
        }
        check_helper(options.allow_other)?;
    }
    check_directory(&options.mount_point)
}

fn check_helper(allow_other: bool) -> Result<()> {
    let found = env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|directory| directory.join(HELPER).is_file()));
    if !found {
        return Err(ErrorCode::NotPermitted
            .because(format!("{HELPER} is not installed: install fuse3, or mount as root")));
    }
    let permits = |settings: String| settings.lines().any(|line| line.trim() == "user_allow_other");
    if allow_other && !fs::read_to_string(HELPER_SETTINGS).is_ok_and(permits) {
        return Err(ErrorCode::NotPermitted.because(format!(
            "letting other users in: put `user_allow_other` into {HELPER_SETTINGS}, or mount as root"
        )));
    }
    Ok(())
}

fn check_directory(path: &Path) -> Result<()> {
    let shown = path.display();
    // Looked up first: asking a mount whose cluster is away would wait.
    let ours = mounted_at(path).is_some_and(|mount| mount.is_ours());
    if ours && is_dead_soon(path) {
        tracing::warn!("{shown}: the program behind an old mount is gone; taking that away");
        unmount(path, true)?;
    } else if ours {
        return Err(ErrorCode::Busy
            .because(format!("{shown}: mounted already; `cairn umount {shown}` takes it away")));
    }
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            return Err(ErrorCode::Busy.because(format!(
                "{shown}: the program behind an old mount is gone (\"Transport endpoint is not connected\"); \
                 take it away with `cairn umount {shown}` or `umount -l {shown}`"
            )));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(
                ErrorCode::NotFound.because(format!("mount point {shown}: make it with `mkdir -p {shown}`"))
            );
        }
        Err(error) => return Err(ErrorCode::Io.because(format!("mount point {shown}: {error}"))),
    };
    if !metadata.is_dir() {
        return Err(ErrorCode::NotDirectory.because(format!("mount point {shown}")));
    }
    if fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
        tracing::warn!("{shown} is not empty; what it holds is out of sight while this is mounted");
    }
    Ok(())
}

/// Lets the kernel read further ahead than its default of 128 KiB, if this process may say so.
pub(crate) fn raise_read_ahead(path: &Path, kib: usize) {
    let Some(mount) = mounted_at(path) else { return };
    let setting = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
    if let Err(error) = fs::write(&setting, kib.to_string()) {
        tracing::info!(%error, "reading ahead stays at the kernel's default: {setting}");
    }
}

/// Unmounts what is mounted at `path`; `lazy` takes it out of sight even while files are open in it.
///
/// A mount whose program is gone has nothing to wait for and is always taken away.
pub fn unmount(path: impl AsRef<Path>, lazy: bool) -> Result<()> {
    let path = real_path(path.as_ref())?;
    let shown = path.display();
    let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(path.as_path(), flags) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) if !lazy && is_dead(&path) => unmount(&path, true),
        Err(Errno::EBUSY) => Err(ErrorCode::Busy.because(format!(
            "{shown}: files are open in it; close them (`fuser -vm {shown}` lists who has them), or unmount lazily"
        ))),
        Err(Errno::EINVAL) => Err(ErrorCode::Invalid.because(format!("{shown} is not a mount point"))),
        Err(Errno::ENOENT) => Err(ErrorCode::NotFound.because(format!("mount point {shown}"))),
        Err(Errno::EPERM) => unmount_by_helper(path.as_os_str(), lazy),
        Err(error) => Err(ErrorCode::Io.because(format!("unmounting {shown}: {}", error.desc()))),
    }
}

/// As [`is_dead`], without waiting for a mount that lives and whose cluster does not answer.
fn is_dead_soon(path: &Path) -> bool {
    let (say, heard) = mpsc::channel();
    let path = path.to_owned();
    thread::spawn(move || say.send(is_dead(&path)));
    heard.recv_timeout(PATIENCE).unwrap_or(false)
}

/// Whether the program behind the mount is gone. Attributes would not say so while the kernel still has them cached.
fn is_dead(path: &Path) -> bool {
    matches!(fs::read_dir(path), Err(error) if error.raw_os_error() == Some(libc::ENOTCONN))
}

/// Only root may unmount; the helper lets users unmount what they have mounted.
fn unmount_by_helper(path: &OsStr, lazy: bool) -> Result<()> {
    let mut helper = Command::new(HELPER);
    helper.arg("-u").arg("-q");
    if lazy {
        helper.arg("-z");
    }
    match helper.arg("--").arg(path).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(ErrorCode::Busy.because(format!(
            "{}: {HELPER} could not unmount it: it is in use, or another user's",
            String::from_utf8_lossy(path.as_bytes())
        ))),
        Err(error) => {
            Err(ErrorCode::NotPermitted.because(format!("unmounting needs root or {HELPER}: {error}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_mounts_is_understood() {
        let line =
            "36 35 0:52 / /mnt/two\\040words rw,noatime master:1 shared:2 - fuse.cairn cairn rw,user_id=0";
        let mount = MountRecord::parse(line).unwrap();
        assert_eq!(mount.device, "0:52");
        assert_eq!(mount.mount_point, Path::new("/mnt/two words"));
        assert!(mount.is_ours());
        let line = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw";
        assert_eq!(MountRecord::parse(line).unwrap().kind, "ext4");
        for broken in ["", "36 35", "36 35 0:52 / /mnt rw shared:2 fuse.cairn"] {
            assert_eq!(MountRecord::parse(broken), None);
        }
    }

    #[test]
    fn only_octal_escapes_are_escapes() {
        assert_eq!(unescape("/a\\134b\\"), Path::new("/a\\b\\"));
        assert_eq!(unescape("/p\u{e4}th\\0"), Path::new("/p\u{e4}th\\0"));
    }

    #[test]
    fn what_cannot_be_mounted_on_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let error = check_directory(&missing).unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
        assert!(error.to_string().contains("mkdir"));
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(check_directory(&file).unwrap_err().code, ErrorCode::NotDirectory);
        assert_eq!(check_directory(directory.path()), Ok(()));
    }

    #[test]
    fn what_is_not_mounted_is_not_unmounted() {
        let directory = tempfile::tempdir().unwrap();
        assert!(unmount(directory.path(), false).is_err());
        assert_eq!(unmount(directory.path().join("missing"), true).unwrap_err().code, ErrorCode::NotFound);
    }
}
