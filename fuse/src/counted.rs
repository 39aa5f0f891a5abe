//! What a mount counts: every answer to the kernel, by operation, error and time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cairn_host::request::{self, RequestId};
use cairn_ops::metrics::{Labels, Operations, Page};
use fuser::Watcher;

/// The kernel's operations by their numbers; those that are not answered, or not known, are empty.
const NAMES: &[&str] = &[
    "",
    "lookup",
    "",
    "getattr",
    "setattr",
    "readlink",
    "symlink",
    "",
    "mknod",
    "mkdir",
    "unlink",
    "rmdir",
    "rename",
    "link",
    "open",
    "read",
    "write",
    "statfs",
    "release",
    "",
    "fsync",
    "setxattr",
    "getxattr",
    "listxattr",
    "removexattr",
    "flush",
    "init",
    "opendir",
    "readdir",
    "releasedir",
    "fsyncdir",
    "getlk",
    "setlk",
    "setlkw",
    "access",
    "create",
    "interrupt",
    "bmap",
    "destroy",
    "ioctl",
    "poll",
    "",
    "",
    "fallocate",
    "readdirplus",
    "rename2",
    "lseek",
    "copy_file_range",
];
/// Error numbers that Linux has.
const ERRNOS: usize = 134;

/// Counters of one mount, since it was mounted.
#[derive(Debug)]
pub(crate) struct Counted {
    operations: Operations,
    /// By operation and errno.
    errors: Box<[AtomicU64]>,
}

impl Default for Counted {
    fn default() -> Counted {
        let errors = (0..NAMES.len() * ERRNOS).map(|_| AtomicU64::new(0)).collect();
        Counted { operations: Operations::new(NAMES), errors }
    }
}

impl Watcher for Counted {
    fn answered(&self, operation: u32, errno: i32, took: Duration) {
        let operation = operation as usize;
        self.operations.record(operation, errno == 0, took);
        match NAMES.get(operation) {
            // It waits for others.
            Some(&"setlkw") | None => {}
            Some(name) => request::finished(RequestId::current(), name, took, errno != 0),
        }
        let errno = usize::try_from(errno).unwrap_or(0);
        if errno > 0
            && errno < ERRNOS
            && operation < NAMES.len()
            && let Some(count) = self.errors.get(operation * ERRNOS + errno)
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Counted {
    /// Writes all that happened.
    pub(crate) fn write(&self, page: &mut Page<'_>) {
        self.operations.write(
            page,
            "cairn_mount_operation_duration_seconds",
            "From the kernel's request to its answer",
        );
        page.counters("cairn_mount_errors", "Answers that were errors, by number", self.errors());
    }

    fn errors(&self) -> Vec<(Labels, u64)> {
        let seen = self.errors.iter().map(|count| count.load(Ordering::Relaxed)).enumerate();
        let labels = |place: usize| {
            vec![
                ("operation", NAMES[place / ERRNOS].to_owned()),
                ("errno", errno_name((place % ERRNOS) as i32)),
            ]
        };
        seen.filter(|(_, count)| *count > 0).map(|(place, count)| (labels(place), count)).collect()
    }
}

/// `ENOENT` and the like.
fn errno_name(number: i32) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_operation_and_error() {
        let counted = Counted::default();
        counted.answered(1, 0, Duration::ZERO);
        counted.answered(1, libc::ENOENT, Duration::ZERO);
        counted.answered(47, libc::EXDEV, Duration::ZERO);
        // Whatever a kernel sends.
        counted.answered(4096, 7, Duration::ZERO);
        counted.answered(1, 9999, Duration::ZERO);
        counted.answered(1, -1, Duration::ZERO);
        let errors = counted.errors();
        let named = |operation: &str, errno: &str| {
            vec![("operation", operation.to_owned()), ("errno", errno.to_owned())]
        };
        assert_eq!(errors, [(named("lookup", "ENOENT"), 1), (named("copy_file_range", "EXDEV"), 1)]);
    }
}
