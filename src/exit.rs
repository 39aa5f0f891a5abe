//! How the program ends: exit codes, and messages of the form `cairn: VERB: PATH: what happened`.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn_client::Error;
use indicatif::ProgressBar;

use crate::paths::ClusterPath;

/// Something that was asked for was not done.
pub const FAILED: u8 = 1;
/// The command line itself was wrong.
pub const USAGE: u8 = 2;
/// Ended by Ctrl-C, as a shell reports it.
pub const INTERRUPTED: u8 = 130;
/// The reader of our output went away, as a shell reports it.
pub const PIPE_CLOSED: u8 = 141;

/// A command line that parses but makes no sense.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A failure with the path it is about.
#[derive(Debug)]
pub enum PathError {
    /// A file of this machine.
    Local(PathBuf, io::Error),
    /// A path of the cluster.
    Remote(ClusterPath, Error),
}

impl PathError {
    /// Ties a cluster's refusal to its path, for `map_err`.
    pub fn remote(path: &ClusterPath) -> impl FnOnce(Error) -> PathError {
        let path = path.clone();
        move |error| PathError::Remote(path, error)
    }

    /// Ties a local failure to its path, for `map_err`.
    pub fn local(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> PathError {
        let path = path.into();
        move |error| PathError::Local(path, error)
    }
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathError::Local(path, error) => write!(f, "{}: {}", path.display(), io_text(error)),
            PathError::Remote(path, error) => f.write_str(&describe(path, error)),
        }
    }
}

impl std::error::Error for PathError {}

/// `PATH: what happened`, with the error's detail only where it adds something, and the remedy if there is one.
pub fn describe(path: &ClusterPath, error: &Error) -> String {
    let shown = path.to_string();
    let mut text = format!("{shown}: {}", error.code.text());
    let detail = error.detail.trim();
    if !detail.is_empty() && !shown.ends_with(detail.trim_matches('/')) {
        text.push_str(&format!(" [{detail}]"));
    }
    if !error.code.remedy().is_empty() {
        text.push_str(&format!(" ({})", error.code.remedy()));
    }
    text
}

/// An I/O error as coreutils would say it: no "(os error 2)", no capital.
pub fn io_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => "unknown error".into(),
    }
}

/// Prints a line on stderr. If that is full or closed, the exit code still tells what happened: it must not become the
/// one of a panic.
pub fn say(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Counts what failed while a command goes on with the rest, and says so on stderr.
pub struct Report {
    verb: &'static str,
    failures: AtomicU64,
    bar: Mutex<Option<ProgressBar>>,
}

impl Report {
    /// A report for the command `verb`.
    pub fn new(verb: &'static str) -> Report {
        Report { verb, failures: AtomicU64::new(0), bar: Mutex::new(None) }
    }

    /// Prints a failure and remembers that there was one.
    pub fn failed(&self, what: impl fmt::Display) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.note(what);
    }

    /// Prints a remark that does not change the exit code.
    pub fn note(&self, what: impl fmt::Display) {
        let line = format!("cairn: {}: {what}", self.verb);
        let bar = self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        match bar {
            Some(bar) => bar.suspend(|| say(&line)),
            None => say(&line),
        }
    }

    /// Messages must not tear this progress bar from now on.
    pub fn attach(&self, bar: Option<ProgressBar>) {
        *self.bar.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = bar;
    }

    /// How many failures there were.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// The exit code for an error that ended a command, after saying what it was.
pub fn code_of(verb: &str, error: &anyhow::Error) -> u8 {
    if error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
    {
        return PIPE_CLOSED;
    }
    say(format_args!("cairn: {verb}: {error:#}"));
    if error.downcast_ref::<Usage>().is_some() { USAGE } else { FAILED }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_client::ErrorCode;

    #[test]
    fn messages_read_like_coreutils() {
        let path = ClusterPath::new(b"/x");
        assert_eq!(describe(&path, &ErrorCode::NotFound.because("x")), "/x: no such file or directory");
        assert_eq!(
            describe(&path, &ErrorCode::NotFound.because("parent gone")),
            "/x: no such file or directory [parent gone]"
        );
        let error = PathError::Local("/l".into(), io::Error::from_raw_os_error(13));
        assert_eq!(error.to_string(), "/l: permission denied");
    }

    #[test]
    fn wrong_usage_and_closed_pipes_have_their_own_codes() {
        let pipe = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing");
        assert_eq!(code_of("cat", &pipe), PIPE_CLOSED);
        assert_eq!(code_of("mv", &Usage("which?".into()).into()), USAGE);
        assert_eq!(code_of("mv", &anyhow::anyhow!("no")), FAILED);
    }
}
