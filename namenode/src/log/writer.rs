//! The one hand that writes the log.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use cairn_host::disk::{Handle, SharedDisk};

use super::marks::{self, Marks};
use super::record::{self, Record};
use super::recover::Tail;
use super::segment::{self, HEADER, SPARE, Segment};
use super::{Flushed, Shared};

/// Appends that go to disk with one fsync hold about this many bytes.
const GROUP_BYTES: usize = 8 << 20;

/// What the writer is asked to do.
pub enum Command {
    Append { records: Vec<Record>, flushed: Flushed },
    Truncate { next: u64, done: Flushed },
    Purge { marks: Marks, done: Flushed },
    SaveMarks { marks: Marks, done: Flushed },
    Stop { marks: Marks },
}

pub struct Writer {
    disk: SharedDisk,
    dir: PathBuf,
    segment_bytes: u32,
    shared: Arc<Shared>,
    tail: Option<Tail>,
    /// The next segment's file, being filled with zeros by a thread of its own.
    spare: Option<JoinHandle<io::Result<Handle>>>,
    /// Records below this index are on disk.
    flushed: u64,
}

impl Writer {
    pub fn new(
        disk: SharedDisk,
        dir: &Path,
        segment_bytes: u32,
        shared: Arc<Shared>,
        tail: Option<Tail>,
    ) -> Writer {
        let flushed = shared.lock().flushed;
        Writer { disk, dir: dir.to_owned(), segment_bytes, shared, tail, spare: None, flushed }
    }

    /// Works until told to stop or nobody can ask any more. The first failure ends the writer: after a failed
    /// fsync nobody knows what is on disk, so nothing may be acknowledged from then on.
    pub fn run(mut self, queue: Receiver<Command>) {
        let mut waiting = None;
        while let Some(command) = waiting.take().or_else(|| queue.recv().ok()) {
            self.shared.lock().steps += 1;
            let result = match command {
                Command::Append { records, flushed } => {
                    let (groups, next) = gather(&queue, records, flushed);
                    waiting = next;
                    self.append_all(groups)
                }
                Command::Stop { marks } => {
                    self.stop(&marks);
                    self.shared.lock().steps += 1;
                    return;
                }
                other => self.perform(other),
            };
            self.shared.lock().steps += 1;
            if let Err(error) = result {
                refuse_all(waiting, queue, &error);
                return;
            }
        }
    }

    /// Does one thing, reports it, and says whether anything may be written after it.
    pub fn perform(&mut self, command: Command) -> io::Result<()> {
        match command {
            Command::Append { records, flushed } => self.append_all(vec![(records, flushed)]),
            Command::Truncate { next, done } => {
                let result = self.truncate(next);
                self.report(result, done)
            }
            Command::Purge { marks, done } => {
                let result = self.purge(&marks);
                self.report(result, done)
            }
            Command::SaveMarks { marks, done } => {
                let result = marks::save(&*self.disk, &self.dir, &marks);
                self.report(result, done)
            }
            Command::Stop { marks } => {
                self.stop(&marks);
                Ok(())
            }
        }
    }

    fn stop(&self, marks: &Marks) {
        if let Err(error) = marks::save(&*self.disk, &self.dir, marks) {
            tracing::warn!(%error, "the log's marks were not saved at the end");
        }
    }

    fn report(&self, result: io::Result<()>, done: Flushed) -> io::Result<()> {
        if let Err(error) = &result {
            tracing::error!(%error, dir = %self.dir.display(), "writing the log failed; nothing is written any more");
        }
        done(copy(&result));
        result
    }

    fn append_all(&mut self, groups: Vec<(Vec<Record>, Flushed)>) -> io::Result<()> {
        let written = groups.iter().try_for_each(|(records, _)| self.write(records));
        let result = written.and_then(|()| self.sync());
        if result.is_ok() {
            let mut state = self.shared.lock();
            state.flushed = self.flushed;
            state.evict();
        }
        for (_, flushed) in groups {
            // All of them end as the last one does.
            let _ = self.report(copy(&result), flushed);
        }
        result
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Some(tail) = &self.tail {
            tail.segment.sync()?;
            self.flushed = tail.segment.next();
        }
        Ok(())
    }

    /// Writes frames into the tail, rolling over to further segments; they are on disk after `sync`.
    fn write(&mut self, records: &[Record]) -> io::Result<()> {
        let mut rest = records;
        while let Some(first) = rest.first() {
            let tail = match self.tail.take() {
                Some(tail) if fits(&tail, first) => tail,
                full => self.roll(full, first.at.index)?,
            };
            let mut frames = Vec::new();
            let mut offsets = Vec::new();
            let mut count = 0;
            for record in rest {
                let end = tail.offset as usize + frames.len();
                if end + record::framed(record.payload.len()) > tail.segment.size() {
                    break;
                }
                offsets.push(end as u32);
                record::encode(record, self.flushed, &mut frames);
                count += 1;
            }
            tail.segment.write(&frames, tail.offset)?;
            tail.segment.publish(offsets);
            let offset = tail.offset + frames.len() as u32;
            self.tail = Some(Tail { segment: tail.segment, offset });
            rest = &rest[count..];
        }
        self.prepare_spare();
        Ok(())
    }

    /// Starts the segment whose first record is `first`. The full one is on disk before the new one exists, so
    /// that only the last segment can ever be torn.
    fn roll(&mut self, full: Option<Tail>, first: u64) -> io::Result<Tail> {
        if let Some(full) = full {
            full.segment.sync()?;
            self.flushed = full.segment.next();
        }
        let path = self.dir.join(SPARE);
        let prepared = self.spare.take().map(|thread| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("preparing a segment panicked")))
        });
        let file = match prepared {
            Some(file) => file?,
            None => segment::prepare(&*self.disk, &path, self.segment_bytes)?,
        };
        let segment = Arc::new(Segment::adopt(&*self.disk, file, &path, first, &[])?);
        self.shared.lock().segments.insert(first, segment.clone());
        Ok(Tail { segment, offset: HEADER as u32 })
    }

    /// Has the next segment filled with zeros once this one is half full.
    fn prepare_spare(&mut self) {
        if !self.disk.blocks() {
            return;
        }
        let half = self.segment_bytes / 2;
        if self.spare.is_none() && self.tail.as_ref().is_some_and(|tail| tail.offset > half) {
            let (disk, path, size) = (self.disk.clone(), self.dir.join(SPARE), self.segment_bytes);
            let thread = std::thread::Builder::new().name("raft-log-spare".into());
            self.spare = thread.spawn(move || segment::prepare(&*disk, &path, size)).ok();
        }
    }

    /// Removes records from `next` on: whole segments from the last backwards, then the one that holds `next` is
    /// replaced by a copy without it. A crash in between leaves a longer log without gaps, never a hole.
    fn truncate(&mut self, next: u64) -> io::Result<()> {
        loop {
            let Some(segment) = self.last_segment() else { break };
            if segment.next() <= next && segment.first < next {
                break;
            }
            if segment.first >= next {
                self.tail = None;
                self.shared.lock().segments.remove(&segment.first);
                self.disk.remove(segment.path())?;
                self.disk.sync_dir(&self.dir)?;
            } else {
                self.tail = Some(self.shorten(&segment, next)?);
            }
        }
        if self.tail.is_none()
            && let Some(segment) = self.last_segment()
        {
            self.tail = Some(Tail { offset: end_of(&segment)?, segment });
        }
        self.flushed = self.flushed.min(next);
        let mut state = self.shared.lock();
        state.flushed = self.flushed;
        state.truncating -= 1;
        Ok(())
    }

    /// Where the copy ends is where `next` was: the record before it may be purged and broken, and does not tell.
    fn shorten(&self, segment: &Arc<Segment>, next: u64) -> io::Result<Tail> {
        let end = segment.offset_of(next).ok_or_else(|| io::Error::other("a record to cut at is missing"))?;
        let content = segment.content()?;
        let kept = content.get(HEADER..end as usize).unwrap_or_default();
        let path = self.dir.join("shorter.tmp");
        let file = segment::prepare(&*self.disk, &path, segment.size() as u32)?;
        let shorter = Arc::new(Segment::adopt(&*self.disk, file, &path, segment.first, kept)?);
        shorter.publish((segment.first..next).filter_map(|index| segment.offset_of(index)));
        self.shared.lock().segments.insert(segment.first, shorter.clone());
        Ok(Tail { segment: shorter, offset: end })
    }

    /// The mark comes first: records below it are ignored at start, whether or not their files are gone.
    fn purge(&mut self, marks: &Marks) -> io::Result<()> {
        marks::save(&*self.disk, &self.dir, marks)?;
        let first_kept = marks.purged.map_or(0, |purged| purged.index + 1);
        loop {
            let Some(segment) = self.first_segment() else { break };
            let whole = segment.next() <= first_kept;
            let is_tail = self.tail.as_ref().is_some_and(|tail| Arc::ptr_eq(&tail.segment, &segment));
            // The tail goes only when the next record would leave a gap in it.
            if !whole || (is_tail && segment.next() == first_kept) {
                break;
            }
            if is_tail {
                self.tail = None;
            }
            self.shared.lock().segments.remove(&segment.first);
            self.disk.remove(segment.path())?;
        }
        self.flushed = self.flushed.max(first_kept);
        self.shared.lock().flushed = self.flushed;
        self.disk.sync_dir(&self.dir)
    }

    fn last_segment(&self) -> Option<Arc<Segment>> {
        self.shared.lock().segments.last_key_value().map(|(_, segment)| segment.clone())
    }

    fn first_segment(&self) -> Option<Arc<Segment>> {
        self.shared.lock().segments.first_key_value().map(|(_, segment)| segment.clone())
    }
}

impl Drop for Writer {
    /// Nothing of it goes on: whoever opens the log next makes a file of the same name.
    fn drop(&mut self) {
        if let Some(spare) = self.spare.take() {
            let _ = spare.join();
        }
    }
}

fn fits(tail: &Tail, record: &Record) -> bool {
    tail.offset as usize + record::framed(record.payload.len()) <= tail.segment.size()
}

/// Where the last record of a segment ends.
fn end_of(segment: &Segment) -> io::Result<u32> {
    let Some(offset) = segment.next().checked_sub(1).and_then(|last| segment.offset_of(last)) else {
        return Ok(HEADER as u32);
    };
    let frame = segment.frame(offset as usize)?;
    let length = record::decode(&frame)
        .ok_or_else(|| io::Error::other("the last kept record is damaged"))?
        .payload
        .len();
    Ok(offset + record::framed(length) as u32)
}

/// Takes further appends that already wait, so that they share one fsync.
fn gather(
    queue: &Receiver<Command>,
    records: Vec<Record>,
    flushed: Flushed,
) -> (Vec<(Vec<Record>, Flushed)>, Option<Command>) {
    let size =
        |records: &[Record]| records.iter().map(|record| record::framed(record.payload.len())).sum::<usize>();
    let mut bytes = size(&records);
    let mut groups = vec![(records, flushed)];
    while bytes < GROUP_BYTES {
        match queue.try_recv() {
            Ok(Command::Append { records, flushed }) => {
                bytes += size(&records);
                groups.push((records, flushed));
            }
            Ok(other) => return (groups, Some(other)),
            Err(_) => break,
        }
    }
    (groups, None)
}

fn copy(result: &io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    }
}

fn refuse_all(waiting: Option<Command>, queue: Receiver<Command>, error: &io::Error) {
    for command in waiting.into_iter().chain(queue.try_iter()) {
        let failed = Err(io::Error::new(error.kind(), error.to_string()));
        match command {
            Command::Append { flushed: done, .. }
            | Command::Truncate { done, .. }
            | Command::Purge { done, .. }
            | Command::SaveMarks { done, .. } => done(failed),
            Command::Stop { .. } => {}
        }
    }
}
