//! What is mounted where, as the kernel tells.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

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

/// Whether a FUSE file system is mounted on `dir`.
pub fn is_fuse(dir: &Path) -> bool {
    all().iter().any(|mount| mount.dir == dir && mount.kind.starts_with("fuse"))
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
