//! Processes that outlive the command that started them, and how to be sure that a pid is still theirs.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, setsid};
use serde::{Deserialize, Serialize};

/// So much of a log is looked at for its last lines.
const LAST_BYTES: u64 = 16 << 10;

/// A process: its pid, and when it started in clock ticks since the boot, because pids are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number.
    pub pid: u32,
    /// Field 22 of /proc/PID/stat.
    pub started: u64,
}

/// Starts this program with `args`, in a session of its own, with its output appended to `log`.
pub fn spawn(args: &[OsString], log: &Path) -> Result<Identity> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(&program);
    command.args(args).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    // Its cluster is what the arguments say, wherever this command was called from.
    command.env_remove("CAIRN_NAMENODES").env_remove("CAIRN_CONFIG").env_remove("CAIRN_TLS").current_dir("/");
    // SAFETY: umask and setsid are async-signal-safe and touch no memory of the parent.
    unsafe {
        command.pre_exec(|| {
            // Whom a file in the cluster is closed to must not read its chunks on the disk.
            libc::umask(0o077);
            setsid().map(drop).map_err(std::io::Error::from)
        });
    }
    let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let pid = child.id();
    match stat(pid) {
        Some(Stat { started, .. }) => Ok(Identity { pid, started }),
        None => bail!("the process ended at once; see {}", log.display()),
    }
}

/// What the kernel says of a process in /proc/PID/stat (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    started: u64,
    /// Its first thread has ended, and nobody has asked for its exit code.
    zombie: bool,
    threads: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(stat: &str) -> Option<Stat> {
    // The command's name may hold anything, but nothing after its closing parenthesis does.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Stat {
        started: fields.get(19)?.parse().ok()?,
        zombie: matches!(*fields.first()?, "Z" | "X"),
        threads: fields.get(17)?.parse().ok()?,
    })
}

impl Identity {
    /// Whether this very process runs: same start, and `marker` among its arguments.
    pub fn alive(&self, marker: &OsStr) -> bool {
        // Our own children stay as zombies until somebody asks for them.
        let _ = waitpid(Pid::from_raw(self.pid as i32), Some(WaitPidFlag::WNOHANG));
        let Some(stat) = stat(self.pid).filter(|stat| stat.started == self.started) else { return false };
        if stat.zombie {
            // A thread that waits for a disk outlives the first one, and keeps ports and locks; the arguments
            // can no longer be read.
            return stat.threads > 1;
        }
        let arguments = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        arguments.split(|&byte| byte == 0).any(|argument| argument == marker.as_bytes())
    }

    /// Sends a signal; to nobody if the process is gone.
    pub fn signal(&self, marker: &OsStr, signal: Signal) -> Result<()> {
        if !self.alive(marker) {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid as i32), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot signal process {}", self.pid)),
        }
    }

    /// Waits until it is gone.
    pub fn wait_gone(&self, marker: &OsStr, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.alive(marker) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

/// The last lines of a log, for saying why a process ended.
pub fn last_lines(log: &Path, count: usize) -> String {
    let text = String::from_utf8_lossy(&end_of(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// A log of days may be larger than what is in memory.
fn end_of(log: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_BYTES)))?;
    let mut content = Vec::new();
    file.take(LAST_BYTES).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alone;

    #[test]
    fn a_process_is_known_by_its_start_and_arguments() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = child.id();
        let started = stat(pid).unwrap().started;
        let identity = Identity { pid, started };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !identity.alive(OsStr::new("600")) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(identity.alive(OsStr::new("600")));
        assert!(!identity.alive(OsStr::new("601")));
        assert!(!Identity { pid, started: started + 1 }.alive(OsStr::new("600")));
        Identity { pid, started: started + 1 }.signal(OsStr::new("600"), Signal::SIGKILL).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        identity.signal(OsStr::new("600"), Signal::SIGKILL).unwrap();
        assert!(identity.wait_gone(OsStr::new("600"), Duration::from_secs(10)));
    }

    #[test]
    fn the_end_of_a_long_log_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(last_lines(&log, 2), "");
        std::fs::write(&log, format!("{}one\ntwo\nthree\n", "x\n".repeat(LAST_BYTES as usize))).unwrap();
        assert_eq!(last_lines(&log, 2), "two\nthree");
    }

    /// What the next test runs in a process of its own.
    #[test]
    #[ignore = "another test starts and kills it"]
    fn a_first_thread_that_ends_before_another() {
        if !alone::is_asked_for() {
            return;
        }
        extern "C" fn end_thread(_: libc::c_int) {
            // SAFETY: a bare system call, which ends the thread that makes it.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        }
        let pid = std::process::id() as libc::pid_t;
        let handler = end_thread as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: the handler does nothing that is not async-signal-safe, and the first thread of a process
        // has the number of the process.
        unsafe {
            libc::signal(libc::SIGUSR1, handler);
            libc::syscall(libc::SYS_tgkill, pid, pid, libc::SIGUSR1);
        }
        std::thread::sleep(Duration::from_secs(600));
    }

    #[test]
    fn a_process_runs_until_its_last_thread_has_ended() {
        let name = "cluster::process::tests::a_first_thread_that_ends_before_another";
        let mut child = alone::command(name).stdout(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        let identity = Identity { pid, started: stat(pid).unwrap().started };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !stat(pid).unwrap().zombie && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let ending = stat(pid).unwrap();
        let alive = identity.alive(OsStr::new(name));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ending.zombie && alive, "{ending:?}");
        assert!(!identity.alive(OsStr::new(name)));
    }
}
