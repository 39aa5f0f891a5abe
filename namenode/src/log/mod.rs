//! The Raft log on disk: segments of framed records, one writer, one fsync for many appends.
//!
//! Nothing here knows the Raft library: a record is an index, a term and opaque bytes. `docs/formats/raft-log.md`
//! draws the files. What a caller may rely on:
//!
//! - an appended record is readable at once, and on disk when its callback runs;
//! - writes happen in the order they were asked for, a saved vote among them;
//! - after a write has failed nothing is written any more: every later call fails;
//! - a record that was on disk once and is damaged now is an error at start, never a shorter log.

mod marks;
mod record;
mod recover;
mod segment;
pub(crate) mod version;
mod writer;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use cairn_host::disk::{Disk, SharedDisk};

pub use marks::Marks;
pub use record::{Position, Record};
pub use recover::LogError;

use segment::Segment;
use writer::{Command, Writer};

/// Called once, when what was asked for is on disk or has failed.
pub type Flushed = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Sizes of a log.
#[derive(Debug, Clone, Copy)]
pub struct LogOptions {
    /// Bytes of one segment file, written with zeros before its first use.
    pub segment_bytes: u32,
    /// Bytes of recent records kept in memory for replication and apply.
    pub recent_bytes: usize,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions { segment_bytes: 32 << 20, recent_bytes: 32 << 20 }
    }
}

/// A handle on the log; clones share it. The writer ends when the last one is gone.
#[derive(Debug, Clone)]
pub struct Log(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    writing: Writing,
    record_limit: usize,
}

/// Who writes.
enum Writing {
    /// A thread of its own: callers go on while the disk works.
    Thread { commands: Sender<Command>, thread: Mutex<Option<JoinHandle<()>>> },
    /// Whoever asks, before the call returns: on a disk that does not block. Nobody any more after a failed write.
    InPlace(Mutex<Option<Writer>>),
}

impl std::fmt::Debug for Writing {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Writing::Thread { .. } => "Thread",
            Writing::InPlace(_) => "InPlace",
        })
    }
}

impl Writing {
    fn start(writer: Writer, in_place: bool) -> io::Result<Writing> {
        if in_place {
            return Ok(Writing::InPlace(Mutex::new(Some(writer))));
        }
        let (commands, queue) = channel();
        let thread = std::thread::Builder::new().name("raft-log".into()).spawn(move || writer.run(queue))?;
        Ok(Writing::Thread { commands, thread: Mutex::new(Some(thread)) })
    }

    /// Has `command` done. The state is given back only once it is in the queue, so that the order of the queue is
    /// the order of the state.
    fn ask(&self, state: MutexGuard<'_, State>, command: Command) -> io::Result<()> {
        let ended = || io::Error::other("the log is closed, or a write failed");
        match self {
            Writing::Thread { commands, .. } => commands.send(command).map_err(|_| ended()),
            Writing::InPlace(writer) => {
                let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
                drop(state);
                if writer.as_mut().ok_or_else(ended)?.perform(command).is_err() {
                    *writer = None;
                }
                Ok(())
            }
        }
    }

    fn end(&self, marks: Marks) {
        match self {
            Writing::Thread { commands, thread } => {
                // The writer may have ended by itself, after a failed write.
                let _ = commands.send(Command::Stop { marks });
                let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
                if thread.is_some_and(|thread| thread.join().is_err()) {
                    tracing::error!("the log's writer thread panicked");
                }
            }
            Writing::InPlace(writer) => {
                if let Some(mut writer) = writer.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    // It was told why when it could not save them.
                    let _ = writer.perform(Command::Stop { marks });
                }
            }
        }
    }
}

impl Handle {
    fn close(&self) {
        let marks = self.shared.lock().marks();
        self.writing.end(marks);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

/// What the callers and the writer thread share.
#[derive(Debug)]
struct Shared(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The newest records, without gaps; all that are not on disk yet are here.
    recent: VecDeque<Record>,
    recent_bytes: usize,
    recent_limit: usize,
    /// Records below this index are on disk.
    flushed: u64,
    /// Truncations asked for and not done: until then, a segment may still hold a record that was replaced.
    truncating: usize,
    /// Segments by their first index.
    segments: BTreeMap<u64, Arc<Segment>>,
    vote: Option<Bytes>,
    purged: Option<Position>,
    committed: Option<Position>,
    last: Option<Position>,
    /// How often the writer's thread began or ended something: odd while it is at work.
    steps: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }

    fn first(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    /// The marks as they hold once everything asked for so far is done. What lies past the last record (a snapshot
    /// is being installed) is not a promise about this log, and is left out.
    fn marks(&self) -> Marks {
        let committed = self.committed.filter(|&committed| Some(committed) <= self.last);
        Marks { vote: self.vote.clone(), purged: self.purged, committed }
    }

    /// Lets go of records that are on disk until the rest fits the limit.
    fn evict(&mut self) {
        while self.recent_bytes > self.recent_limit && self.truncating == 0 {
            match self.recent.front() {
                Some(front) if front.at.index < self.flushed => {
                    self.recent_bytes -= front.payload.len();
                    self.recent.pop_front();
                }
                _ => break,
            }
        }
    }

    fn keep_recent(&mut self, keep: impl Fn(u64) -> bool) {
        self.recent.retain(|record| keep(record.at.index));
        self.recent_bytes = self.recent.iter().map(|record| record.payload.len()).sum();
    }
}

impl Log {
    /// Whether a log was ever made in `dir`.
    pub fn exists(disk: &dyn Disk, dir: &Path) -> io::Result<bool> {
        marks::exist(disk, dir)
    }

    /// Opens the log in `dir`, making it when there is none, and recovers it. On a disk that does not block, every
    /// call writes before it returns, and calls the callback; the callback must not call the log.
    pub fn open(dir: &Path, options: LogOptions, disk: SharedDisk) -> Result<Log, LogError> {
        let recovered = recover::open(&*disk, dir)?;
        let flushed = recovered.last.map_or(0, |last| last.index + 1);
        let state = State {
            flushed,
            recent_limit: options.recent_bytes,
            segments: recovered.segments,
            vote: recovered.marks.vote,
            purged: recovered.marks.purged,
            committed: recovered.marks.committed.min(recovered.last),
            last: recovered.last,
            ..State::default()
        };
        let shared = Arc::new(Shared(Mutex::new(state)));
        let in_place = !disk.blocks();
        let writer = Writer::new(disk, dir, options.segment_bytes, shared.clone(), recovered.tail);
        let writing = Writing::start(writer, in_place)?;
        let record_limit = options.segment_bytes as usize - segment::HEADER - record::HEAD;
        Ok(Log(Arc::new(Handle { shared, writing, record_limit })))
    }

    /// The last record's position, or the last purged one's.
    pub fn last(&self) -> Option<Position> {
        self.0.shared.lock().last
    }

    /// What the writer's thread is at work on, by a number of its own; nothing if it waits to be asked.
    pub fn under_way(&self) -> Option<u64> {
        let steps = self.0.shared.lock().steps;
        (steps % 2 == 1).then_some(steps)
    }

    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.0.shared.lock().segments.values().map(|segment| segment.size() as u64).sum()
    }

    /// Everything up to here is gone.
    pub fn purged(&self) -> Option<Position> {
        self.0.shared.lock().purged
    }

    /// The vote saved last.
    pub fn vote(&self) -> Option<Bytes> {
        self.0.shared.lock().vote.clone()
    }

    /// A position known to be committed; an earlier one than the truth after a crash.
    pub fn committed(&self) -> Option<Position> {
        self.0.shared.lock().committed
    }

    /// Notes what is committed. It reaches the disk with the next vote or purge, or when the log is closed.
    pub fn note_committed(&self, committed: Option<Position>) {
        self.0.shared.lock().committed = committed;
    }

    /// Appends records, which must continue the log.
    pub fn append(&self, records: Vec<Record>, flushed: Flushed) -> io::Result<()> {
        let mut state = self.0.shared.lock();
        for (next, record) in (state.next()..).zip(&records) {
            if record.at.index != next || record.payload.len() > self.0.record_limit {
                let what = format!(
                    "log record {} of {} bytes cannot follow record {:?}",
                    record.at.index,
                    record.payload.len(),
                    state.last
                );
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
        }
        let Some(last) = records.last() else {
            drop(state);
            flushed(Ok(()));
            return Ok(());
        };
        state.last = Some(last.at);
        state.recent_bytes += records.iter().map(|record| record.payload.len()).sum::<usize>();
        state.recent.extend(records.iter().cloned());
        self.0.writing.ask(state, Command::Append { records, flushed })
    }

    /// Removes every record after `keep`.
    pub fn truncate(&self, keep: Option<Position>, done: Flushed) -> io::Result<()> {
        let mut state = self.0.shared.lock();
        let next = keep.map_or(0, |keep| keep.index + 1);
        state.keep_recent(|index| index < next);
        state.last = keep.max(state.purged);
        state.truncating += 1;
        self.0.writing.ask(state, Command::Truncate { next, done })
    }

    /// Removes every record up to `upto`, which may lie beyond the last one.
    pub fn purge(&self, upto: Position, done: Flushed) -> io::Result<()> {
        let mut state = self.0.shared.lock();
        if state.purged >= Some(upto) {
            drop(state);
            done(Ok(()));
            return Ok(());
        }
        state.keep_recent(|index| index > upto.index);
        state.purged = Some(upto);
        if state.last.is_none_or(|last| last.index < upto.index) {
            state.last = Some(upto);
        }
        let marks = state.marks();
        self.0.writing.ask(state, Command::Purge { marks, done })
    }

    /// Saves the vote after everything asked for earlier.
    pub fn save_vote(&self, vote: Bytes, done: Flushed) -> io::Result<()> {
        let mut state = self.0.shared.lock();
        state.vote = Some(vote);
        let marks = state.marks();
        self.0.writing.ask(state, Command::SaveMarks { marks, done })
    }

    /// The records of `range` the log holds, but not more than about `max_bytes` of them (at least one).
    pub fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Record>> {
        let state = self.0.shared.lock();
        let end = range.end.min(state.next());
        let mut index = range.start.max(state.first());
        let recent_first = state.recent.front().map_or(u64::MAX, |front| front.at.index);
        let mut records: Vec<Record> = Vec::new();
        let mut bytes = 0;
        // Segments are read without the lock; they stay readable while somebody holds them.
        let segments: Vec<Arc<Segment>> = match index < end.min(recent_first) {
            true => {
                let from = state.segments.range(..=index).next_back().map_or(index, |(&first, _)| first);
                state.segments.range(from..end).map(|(_, segment)| segment.clone()).collect()
            }
            false => Vec::new(),
        };
        let skip = index.max(recent_first).saturating_sub(recent_first);
        let recent: Vec<Record> = match recent_first < end {
            true => state
                .recent
                .iter()
                .skip(skip as usize)
                .take_while(|record| record.at.index < end && within(&mut bytes, record, max_bytes))
                .cloned()
                .collect(),
            false => Vec::new(),
        };
        drop(state);
        let mut bytes = 0;
        for segment in segments {
            while index < end.min(recent_first) {
                match segment.read(index)? {
                    Some(record) if within(&mut bytes, &record, max_bytes) => records.push(record),
                    Some(_) => return Ok(records),
                    None => break,
                }
                index += 1;
            }
        }
        if index < end.min(recent_first) {
            let what = format!("log record {index} is missing");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        records.extend(recent.into_iter().take_while(|record| within(&mut bytes, record, max_bytes)));
        Ok(records)
    }

    /// Waits until everything asked for is on disk, saves the marks and ends the writer. Later calls fail.
    pub fn close(&self) {
        self.0.close();
    }
}

/// Counts `record` and says whether it still fits; the first one always does.
fn within(bytes: &mut usize, record: &Record, max_bytes: usize) -> bool {
    let first = *bytes == 0;
    *bytes += record.payload.len() + record::HEAD;
    first || *bytes <= max_bytes
}
