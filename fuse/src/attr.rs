//! Attributes, kinds and times, as the namenode says them and as the kernel wants them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cairn_proto::fs::{Attr, FileKind};
use fuser::{FileAttr, FileType, INodeNo};

/// Set-user-id, set-group-id and execute by the group.
const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;
/// What `stat` calls the best size of a transfer.
const BLOCK: u32 = 4096;

/// The kernel's name for a kind of inode.
pub(crate) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::File | FileKind::Unspecified => FileType::RegularFile,
    }
}

/// The kind that a mode given to `mknod` asks for.
pub(crate) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(FileKind::File),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::CharDevice),
        libc::S_IFBLK => Some(FileKind::BlockDevice),
        _ => None,
    }
}

/// Attributes for the kernel.
pub(crate) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.inode),
        size: attr.size,
        blocks: attr.allocated.div_ceil(512),
        atime: time(attr.atime_ns),
        mtime: time(attr.mtime_ns),
        ctime: time(attr.ctime_ns),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK,
        flags: 0,
    }
}

fn time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}

/// Nanoseconds since the epoch of a time that the kernel asked to be set; the nearest there is if it lies outside.
pub(crate) fn nanoseconds(time: SystemTime) -> i64 {
    let clamp = |ns: i128| ns.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => clamp(after.as_nanos() as i128),
        Err(before) => clamp(-(before.duration().as_nanos() as i128)),
    }
}

/// The mode without the privileges that a change of content takes away; nothing if it has none of them.
pub(crate) fn without_privileges(mode: u32) -> Option<u32> {
    let mut left = mode & !SETUID;
    // Without group execute the bit means mandatory locking and is no privilege.
    if left & GROUP_EXECUTE != 0 {
        left &= !SETGID;
    }
    (left != mode).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_reach_the_kernel() {
        let attr = Attr {
            inode: 9,
            kind: FileKind::Symlink.into(),
            mode: 0o100777,
            size: 4097,
            allocated: 513,
            mtime_ns: 1_500_000_000,
            atime_ns: -1,
            ..Attr::default()
        };
        let shown = file_attr(&attr);
        assert_eq!((shown.ino, shown.kind, shown.perm), (INodeNo(9), FileType::Symlink, 0o777));
        assert_eq!((shown.size, shown.blocks), (4097, 2));
        assert_eq!(shown.mtime, UNIX_EPOCH + Duration::from_millis(1500));
        assert_eq!(shown.atime, UNIX_EPOCH - Duration::from_nanos(1));
    }

    #[test]
    fn times_before_the_epoch_are_what_the_program_asked_for() {
        assert_eq!(nanoseconds(UNIX_EPOCH + Duration::new(3, 7)), 3_000_000_007);
        assert_eq!(nanoseconds(UNIX_EPOCH - Duration::from_millis(1250)), -1_250_000_000);
        assert_eq!(nanoseconds(UNIX_EPOCH - Duration::from_secs(5)), -5_000_000_000);
    }

    #[test]
    fn times_outside_of_what_is_stored_are_clamped() {
        assert_eq!(nanoseconds(UNIX_EPOCH + Duration::from_secs(1 << 40)), i64::MAX);
        assert_eq!(nanoseconds(UNIX_EPOCH - Duration::from_secs(1 << 40)), i64::MIN);
    }

    #[test]
    fn a_write_takes_the_set_id_bits_away() {
        assert_eq!(without_privileges(0o755), None);
        assert_eq!(without_privileges(0o4755), Some(0o755));
        assert_eq!(without_privileges(0o6755), Some(0o755));
        assert_eq!(without_privileges(0o2644), None);
        assert_eq!(without_privileges(0o6644), Some(0o2644));
    }

    #[test]
    fn a_mode_without_a_type_is_a_regular_file() {
        assert_eq!(kind_of_mode(0o644), Some(FileKind::File));
        assert_eq!(kind_of_mode(libc::S_IFIFO | 0o600), Some(FileKind::Fifo));
        assert_eq!(kind_of_mode(libc::S_IFDIR | 0o700), None);
    }
}
