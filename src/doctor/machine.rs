//! What the machine grants: open files, and FUSE.

use std::fs;
use std::io;
use std::path::Path;

use cairn_ops::code::Code;
use nix::sys::resource::{Resource, getrlimit};

use super::finding::{Findings, Level};
use crate::exit::io_text;

const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";
const HELPER_SETTINGS: &str = "/etc/fuse.conf";

/// How many files a process may have open: the one that runs, else one that this user would start. A role raises its
/// own limit as far as it may.
pub fn open_files(pid: Option<u32>) -> Option<u64> {
    let running = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/limits")).ok());
    match running {
        Some(limits) => hard_limit(&limits),
        None => getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard),
    }
}

/// From the kernel's table: `Max open files  SOFT  HARD  files`.
fn hard_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// Judges the limit of a role that may want to have `wanted` open.
pub fn judge_open_files(role: &'static str, limit: Option<u64>, wanted: u64, found: &mut Findings) {
    match limit {
        Some(limit) if limit < wanted => {
            let text = format!("{limit} open files and connections allowed; it may want {wanted}");
            found.warn(role, Code::OpenFilesLow, text);
        }
        Some(limit) => found.fine(role, format!("{limit} open files and connections allowed")),
        None => {}
    }
}

/// What a mount by this user needs.
#[derive(Debug, Clone)]
pub struct Fuse {
    /// Whether it is root.
    pub root: bool,
    /// Whether the device can be opened, or why not.
    pub device: Result<(), String>,
    /// Whether the helper is installed.
    pub helper: bool,
    /// Whether users may let others in.
    pub allow_other: bool,
}

/// Looks at what there is.
pub fn look_at_fuse() -> Fuse {
    let device = match fs::File::options().read(true).write(true).open(DEVICE) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("does not exist".into()),
        Err(error) => Err(io_text(&error)),
    };
    let permits = |settings: String| settings.lines().any(|line| line.trim() == "user_allow_other");
    Fuse {
        root: nix::unistd::geteuid().is_root(),
        device,
        helper: std::env::var_os("PATH").is_some_and(|path| is_in(&path)),
        allow_other: fs::read_to_string(HELPER_SETTINGS).is_ok_and(permits),
    }
}

fn is_in(path: &std::ffi::OsStr) -> bool {
    std::env::split_paths(path)
        .any(|directory: std::path::PathBuf| Path::new(&directory).join(HELPER).is_file())
}

/// Judges. Mounts are wanted, or only possible; others are to be let in, or not.
pub fn judge_fuse(fuse: &Fuse, wanted: bool, others: bool, found: &mut Findings) {
    let level = if wanted { Level::Failure } else { Level::Warning };
    match &fuse.device {
        Ok(()) => found.fine("mount", format!("{DEVICE} can be opened")),
        Err(why) => found.found(level, "mount", Code::FuseAbsent, format!("{DEVICE}: {why}")),
    }
    if fuse.root {
        return;
    }
    if fuse.helper {
        found.fine("mount", format!("{HELPER} is installed"));
    } else {
        found.found(level, "mount", Code::FuseHelperAbsent, format!("{HELPER} is not installed"));
    }
    if others && !fuse.allow_other {
        let text = format!("allow_other is asked for, and {HELPER_SETTINGS} does not permit it");
        found.found(level, "mount", Code::FuseAllowOtherOff, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_a_running_process_is_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(hard_limit(limits), Some(524_288));
        assert_eq!(hard_limit("Max open files   unlimited   unlimited   files"), Some(u64::MAX));
        assert!(open_files(Some(std::process::id())).is_some() && open_files(None).is_some());
        let mut found = Findings::default();
        judge_open_files("datanode", Some(1024), 4096, &mut found);
        assert_eq!(found.codes(), [(Level::Warning, Code::OpenFilesLow)]);
    }

    #[test]
    fn root_needs_the_device_alone() {
        let codes = |fuse: &Fuse, wanted, others| {
            let mut found = Findings::default();
            judge_fuse(fuse, wanted, others, &mut found);
            found.codes()
        };
        let root = Fuse { root: true, device: Ok(()), helper: false, allow_other: false };
        assert!(codes(&root, true, true).is_empty());
        let user = Fuse { root: false, ..root };
        assert_eq!(codes(&user, false, false), [(Level::Warning, Code::FuseHelperAbsent)]);
        let user = Fuse { helper: true, device: Err("does not exist".into()), ..user };
        let both = [(Level::Failure, Code::FuseAbsent), (Level::Failure, Code::FuseAllowOtherOff)];
        assert_eq!(codes(&user, true, true), both);
    }
}
