//! Opening a log: which records are there, where the next one goes, and whether something is wrong.
//!
//! A crash may tear the records that were being written. They were never acknowledged and are cut. To tell them
//! from records that rotted on disk, every frame says which records were on disk when it was written: a damaged
//! record that a later frame, a later segment or the committed mark vouches for is an error, and the node must
//! not start with less than it acknowledged.
//!
//! What is purged may be anything: a broken record among it is passed over, and costs none of those after it. Nothing is
//! removed or cut before it is known that nothing acknowledged goes with it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cairn_host::disk::{self, Disk};

use super::marks::{self, Marks};
use super::record::{self, ALIGN, HEAD, Position};
use super::segment::{HEADER, Segment, parse_name};
use crate::fatal::REMEDY;

/// Why a log does not open.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The directory or a file cannot be read or written.
    #[error("log: {0}")]
    Io(#[from] io::Error),
    /// A record that was on disk is not whole any more.
    #[error("log record {index} in {path} is damaged although it was written whole; {REMEDY}")]
    Damaged {
        /// The record.
        index: u64,
        /// Its file.
        path: PathBuf,
    },
    /// Records are missing between two that are there.
    #[error("log records from {from} on are missing before {path}; a segment file was removed; {REMEDY}")]
    Missing {
        /// First missing record.
        from: u64,
        /// The file that comes after.
        path: PathBuf,
    },
}

/// Where the next frame goes.
#[derive(Debug)]
pub struct Tail {
    /// The segment that has room.
    pub segment: Arc<Segment>,
    /// End of its last frame.
    pub offset: u32,
}

/// A log as it was found.
#[derive(Debug)]
pub struct Recovered {
    pub marks: Marks,
    pub segments: BTreeMap<u64, Arc<Segment>>,
    pub tail: Option<Tail>,
    pub last: Option<Position>,
}

/// Reads the log in `dir`, cuts a torn end and removes what is not needed.
pub fn open(disk: &dyn Disk, dir: &Path) -> Result<Recovered, LogError> {
    disk::create_dirs(disk, dir)?;
    let marks = marks::load(disk, dir)?;
    // Again, although they were just read: an earlier process may have ended, or failed, before they were on the disk,
    // and from here on they count as promised.
    marks::save(disk, dir, &marks)?;
    let mut recovered = Recovered { last: marks.purged, segments: BTreeMap::new(), tail: None, marks };
    let kept = recovered.marks.purged.map_or(0, |purged| purged.index + 1);
    let mut next = kept;
    let files = segment_files(disk, dir)?;
    for (at, &first) in files.iter().enumerate() {
        let path = dir.join(super::segment::file_name(first));
        let following = files.get(at + 1).copied();
        if following.is_some_and(|following| following <= next) && recovered.segments.is_empty() {
            disk.remove(&path)?; // a purge was interrupted
            continue;
        }
        if first > next {
            return Err(LogError::Missing { from: next, path });
        }
        let segment = Arc::new(Segment::open(disk, path, first)?);
        let content = segment.content()?;
        let run = scan(&segment, &content, kept, &mut recovered.last)?;
        let found = segment.next();
        let ends_early = following.is_some_and(|following| found < following);
        if ends_early || (found < next && covers(&recovered.marks, next)) {
            return Err(LogError::Damaged { index: found.max(next), path: segment.path().to_owned() });
        }
        if found < next {
            // Nothing but purged records, and the next one would leave a gap in this file.
            recovered.last = recovered.marks.purged;
            disk.remove(segment.path())?;
            continue;
        }
        if following.is_none() {
            cut_tail(&segment, &content, run.end, &recovered.marks)?;
            write_again(&segment, &content, &run)?;
        }
        next = next.max(found);
        recovered.tail = Some(Tail { segment: segment.clone(), offset: run.end as u32 });
        recovered.segments.insert(first, segment);
    }
    disk.sync_dir(dir)?;
    if covers(&recovered.marks, next) {
        return Err(LogError::Damaged { index: next, path: dir.to_owned() });
    }
    Ok(recovered)
}

/// Whether the committed mark says that record `index` was there.
fn covers(marks: &Marks, index: u64) -> bool {
    marks.committed.is_some_and(|committed| committed.index >= index)
}

/// First indexes of the segments, ascending; what was never finished is removed.
fn segment_files(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<u64>> {
    let mut firsts = Vec::new();
    for name in disk.list(dir)? {
        let path = dir.join(&name);
        let name = name.to_string_lossy();
        if name.ends_with(".tmp") {
            disk.remove(&path)?;
        } else if let Some(first) = parse_name(&name) {
            firsts.push(first);
        }
    }
    firsts.sort_unstable();
    Ok(firsts)
}

/// Whole records one after the other.
struct Run {
    /// Where they begin: at the segment's start, or behind a broken record that is purged.
    start: usize,
    /// Where they end.
    end: usize,
}

/// Publishes the whole records from the segment's start. Those before `kept` are purged: when one of them is broken, it is
/// passed over together with the rest of them, whose places count for nothing.
fn scan(segment: &Segment, content: &[u8], kept: u64, last: &mut Option<Position>) -> Result<Run, LogError> {
    let end = publish_run(segment, content, HEADER, last);
    let broken = segment.next();
    if broken >= kept {
        return Ok(Run { start: HEADER, end });
    }
    match behind(content.get(end..).unwrap_or_default(), kept, kept - broken) {
        Behind::Nothing => Ok(Run { start: HEADER, end }),
        Behind::Kept(distance) => {
            let start = end + distance;
            segment.publish((broken..kept).map(|_| start as u32));
            let end = publish_run(segment, content, start, last);
            Ok(Run { start, end })
        }
        Behind::Unclear => Err(LogError::Damaged { index: kept, path: segment.path().to_owned() }),
    }
}

/// Publishes the whole records from `offset` on; returns where they end.
fn publish_run(segment: &Segment, content: &[u8], mut offset: usize, last: &mut Option<Position>) -> usize {
    let mut offsets = Vec::new();
    let mut expected = segment.next();
    while let Some(frame) = content.get(offset..).and_then(record::decode) {
        if frame.at.index != expected {
            break;
        }
        offsets.push(offset as u32);
        if last.is_none_or(|last| last.index < frame.at.index) {
            *last = Some(frame.at);
        }
        expected += 1;
        offset += record::framed(frame.payload.len());
    }
    segment.publish(offsets);
    offset
}

/// What is found behind a broken record that is purged.
enum Behind {
    /// No record that is not purged.
    Nothing,
    /// The first one that is not, so far behind.
    Kept(usize),
    /// Records that are not, but not the first of them, or more than one that could be it.
    Unclear,
}

/// What may be a record in bytes that begin with a broken one, and where.
fn whole_frames(rest: &[u8]) -> impl Iterator<Item = (usize, record::Frame<'_>)> {
    (0..rest.len()).step_by(ALIGN).filter_map(|at| record::decode(&rest[at..]).map(|frame| (at, frame)))
}

/// Looks in `rest`, which begins with a broken record, for `kept`, the first one that is not purged; `purged` records are
/// before it, the broken one among them. How long that one is it cannot be asked any more.
fn behind(rest: &[u8], kept: u64, purged: u64) -> Behind {
    let all = whole_frames(rest).map(|(at, frame)| (at, frame.at.index));
    let found: Vec<(usize, u64)> = all.filter(|(_, index)| *index >= kept).collect();
    let mut firsts = found.iter().filter(|(_, index)| *index == kept);
    match (firsts.next(), firsts.next()) {
        (None, _) if found.is_empty() => Behind::Nothing,
        // What somebody stored may look like a record, too; then there are two.
        (Some(&(at, _)), None) if (at / HEAD) as u64 >= purged => Behind::Kept(at),
        _ => Behind::Unclear,
    }
}

/// Clears what follows the last whole record of the last segment, unless it was acknowledged once.
fn cut_tail(segment: &Segment, content: &[u8], end: usize, marks: &Marks) -> Result<(), LogError> {
    let rest = content.get(end..).unwrap_or_default();
    if rest.iter().all(|&byte| byte == 0) {
        return Ok(());
    }
    let lost = segment.next();
    let vouched = whole_frames(rest).any(|(_, frame)| frame.at.index >= lost && frame.flushed > lost);
    if vouched || covers(marks, lost) {
        return Err(LogError::Damaged { index: lost, path: segment.path().to_owned() });
    }
    tracing::warn!(index = lost, path = %segment.path().display(), "cutting a torn end off the log");
    segment.write(&vec![0; rest.len()], end as u32)?;
    segment.sync()?;
    Ok(())
}

/// Puts the records on the disk that no later one vouches for. An earlier process may have written them without
/// coming as far as a sync, or its sync may have failed: then the kernel still shows them and thinks that they are on
/// the disk, and only writing them again makes it so.
fn write_again(segment: &Segment, content: &[u8], run: &Run) -> io::Result<()> {
    let content = content.get(..run.end).unwrap_or_default();
    let mut flushed = segment.first;
    let mut offset = run.start;
    while let Some(frame) = content.get(offset..).and_then(record::decode) {
        flushed = flushed.max(frame.flushed);
        offset += record::framed(frame.payload.len());
    }
    if let Some(from) = segment.offset_of(flushed) {
        segment.write(&content[from as usize..], from)?;
    }
    segment.sync()
}
