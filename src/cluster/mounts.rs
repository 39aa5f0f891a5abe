//! What is mounted where, as the kernel tells.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// What the kernel calls our mounts.
const KIND: &str = "fuse.cairn";

/// A mount of this machine.
#[derive(Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The directory.
    pub dir: PathBuf,
    /// The kind of file system.
    pub kind: String,
}

/// All mounts.
pub fn all() -> Vec<Mounted> {
    parse(&std::fs::read("/proc/self/mountinfo").unwrap_or_default())
}

/// Whether a file system of ours is mounted on `dir`.
pub fn is_ours(dir: &Path) -> bool {
    all().iter().any(|mount| mount.dir == dir && mount.kind == KIND)
}

/// What is in the way of a new mount.
#[derive(Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing is mounted there.
    Nothing,
    /// A mount of ours whose process is gone: it refuses everything, also a new mount.
    Dead,
    /// Something that works, or that is not ours: its kind.
    Taken(String),
}

/// What is mounted on `dir`.
pub fn before(dir: &Path) -> Before {
    let found = all().into_iter().rfind(|mount| mount.dir == dir);
    // Attributes may be in the kernel's cache; this always asks.
    judge(found, || nix::sys::statvfs::statvfs(dir).err().map(Into::into))
}

/// The last mount on a directory hides the others. Only of a dead one is nothing lost when it goes.
fn judge(found: Option<Mounted>, look: impl FnOnce() -> Option<io::Error>) -> Before {
    let Some(mount) = found else { return Before::Nothing };
    let gone = |error: io::Error| error.raw_os_error() == Some(libc::ENOTCONN);
    if mount.kind == KIND && look().is_some_and(gone) { Before::Dead } else { Before::Taken(mount.kind) }
}

/// The mounts on `dir` or below it: nothing there may be deleted.
pub fn below(dir: &Path) -> Vec<PathBuf> {
    all().into_iter().map(|mount| mount.dir).filter(|mount| mount.starts_with(dir)).collect()
}

fn parse(content: &[u8]) -> Vec<Mounted> {
    content
        .split(|&byte| byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|&byte| byte == b' ');
            let dir = PathBuf::from(OsString::from_vec(unescaped(fields.nth(4)?)));
            let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
            Some(Mounted { dir, kind: String::from_utf8_lossy(kind).into_owned() })
        })
        .collect()
}

/// Spaces and the like are written as three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                plain.push(byte);
                rest = &tail[3..];
            }
            None => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_dead_mount_is_taken_away() {
        let mount = |kind: &str| Some(Mounted { dir: "/m".into(), kind: kind.into() });
        let dead = || Some(io::Error::from_raw_os_error(libc::ENOTCONN));
        assert_eq!(judge(None, dead), Before::Nothing);
        assert_eq!(judge(mount("fuse.cairn"), dead), Before::Dead);
        assert_eq!(judge(mount("fuse.cairn"), || None), Before::Taken("fuse.cairn".into()));
        assert_eq!(judge(mount("fuse.sshfs"), dead), Before::Taken("fuse.sshfs".into()));
    }

    #[test]
    fn mountinfo_is_read() {
        let content = b"36 35 0:5 / /proc rw,nosuid - proc proc rw\n\
            90 35 0:50 / /mnt/a\\040b rw shared:1 master:2 - fuse.cairn cairn rw\n\nnonsense\n";
        let mounts = parse(content);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0], Mounted { dir: "/proc".into(), kind: "proc".into() });
        assert_eq!(mounts[1], Mounted { dir: "/mnt/a b".into(), kind: "fuse.cairn".into() });
        assert!(!all().is_empty());
    }
}
