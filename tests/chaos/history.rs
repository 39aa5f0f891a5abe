//! What was done, when, and with what outcome.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

/// What came of an operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It was acknowledged.
    Done,
    /// It was refused: it has no effect, now or later.
    Refused(String),
    /// It may have happened, may happen yet, or never.
    Unknown(String),
}

/// One operation of a worker. Names are paths below the root of the cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Makes a register hold a value.
    Write { register: String, value: u64 },
    /// What a register held: `None` if it did not exist.
    Read { register: String, value: Option<u64> },
    /// Adds a record to a log.
    Append { log: String, record: u64 },
    /// Moves the one file of a directory from one name to another.
    Move { directory: String, from: String, to: String },
    /// The names in such a directory.
    Look { directory: String, names: Vec<String> },
    /// Makes a name that must not exist.
    Claim { name: String },
    /// Under a lock, read a number and wrote the next one.
    Count { lock: String, taken: u64, read: u64 },
    /// Stores a file and syncs it.
    Keep { path: String, hash: String },
    /// What a stored file held.
    Check { path: String, hash: Option<String> },
    /// Removes a stored file.
    Remove { path: String },
}

/// An operation with its times, in microseconds since the test began.
#[derive(Clone, Debug)]
pub struct Event {
    pub start: u64,
    pub end: u64,
    /// Who did it, and from where.
    pub by: String,
    pub operation: Operation,
    pub outcome: Outcome,
}

impl Event {
    pub fn done(&self) -> bool {
        self.outcome == Outcome::Done
    }

    pub fn refused(&self) -> bool {
        matches!(self.outcome, Outcome::Refused(_))
    }

    /// When it was over; what is unknown may have its effect at any time.
    pub fn finish(&self) -> u64 {
        if self.done() { self.end } else { u64::MAX }
    }
}

/// Collects events from many threads and writes them to a file as they come.
pub struct Recorder {
    began: Instant,
    inner: Mutex<(Vec<Event>, BufWriter<File>)>,
}

impl Recorder {
    pub fn new(file: &Path) -> Recorder {
        let file = BufWriter::new(File::create(file).expect("a file for the history"));
        Recorder { began: Instant::now(), inner: Mutex::new((Vec::new(), file)) }
    }

    /// What writing takes of a thread's descriptors.
    pub fn descriptor(&self) -> RawFd {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).1.get_ref().as_raw_fd()
    }

    /// Microseconds since the test began.
    pub fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    pub fn record(&self, by: &str, start: u64, operation: Operation, outcome: Outcome) {
        let event = Event { start, end: self.now(), by: by.into(), operation, outcome };
        let mut inner = self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = writeln!(inner.1, "{}", line(&event));
        inner.0.push(event);
    }

    /// A line in the history that is no operation: what the nemesis does.
    pub fn note(&self, what: &str) {
        let mut inner = self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = writeln!(inner.1, "{:>10.3} ------ {what}", self.now() as f64 / 1e6);
        let _ = inner.1.flush();
    }

    /// All that happened.
    pub fn events(&self) -> Vec<Event> {
        let mut inner = self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = inner.1.flush();
        inner.0.clone()
    }
}

/// An event as a line.
pub fn line(event: &Event) -> String {
    let (start, end) = (event.start as f64 / 1e6, event.end as f64 / 1e6);
    format!("{start:>10.3} {end:>10.3} {} {:?} {:?}", event.by, event.operation, event.outcome)
}
