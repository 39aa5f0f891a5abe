//! One file of the log: a header, then frames, then zeros up to its fixed size.
//!
//! ```text
//! 0   "CRNLOG01"
//! 8   u64 index of the first record
//! 16  u32 CRC-32C of bytes 0..16
//! 20  zeros
//! 64  frames (see `record.rs`)
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;
use cairn_host::disk::{Access, Disk, Handle};
use cairn_proto::checksum::crc32c;

use super::record::{self, Record};
use super::version::{later_version, unknown_version};

/// Bytes before the first frame.
pub const HEADER: usize = 64;
const MAGIC: &[u8; 8] = b"CRNLOG01";
const SUFFIX: &str = ".log";
/// A segment being prepared; thrown away at start.
pub const SPARE: &str = "spare.tmp";

/// Bytes read at once of a record whose length is not known yet.
const FIRST_READ: usize = 4096;

/// An open segment. Reads are positional, not through a mapping: a mapping turns a bad sector into a signal that
/// ends the process, where a read returns an error that says which file it was.
#[derive(Debug)]
pub struct Segment {
    /// Index of its first record.
    pub first: u64,
    path: PathBuf,
    file: Handle,
    size: usize,
    /// Where each record's frame starts.
    offsets: RwLock<Vec<u32>>,
}

/// The file name of the segment that starts at `first`.
pub fn file_name(first: u64) -> String {
    format!("{first:020}{SUFFIX}")
}

/// The first index a file name tells, if it is a segment's.
pub fn parse_name(name: &str) -> Option<u64> {
    name.strip_suffix(SUFFIX).filter(|digits| digits.len() == 20)?.parse().ok()
}

/// The header of a segment.
fn header(first: u64) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&first.to_le_bytes());
    let crc = crc32c(&bytes[..16]);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Makes a file of zeros that are really on disk: an fsync of data written into it later need not write metadata.
pub fn prepare(disk: &dyn Disk, path: &Path, size: u32) -> io::Result<Handle> {
    let file = disk.open(path, Access::Create)?;
    let size = size as usize;
    let zeros = vec![0; size.min(1 << 20)];
    let mut at = 0;
    while at < size {
        let part = (size - at).min(zeros.len());
        file.write_at(&zeros[..part], at as u64)?;
        at += part;
    }
    file.sync_all()?;
    Ok(file)
}

impl Segment {
    /// Turns a prepared file into the segment that starts at `first`, with `content` as its first frames.
    pub fn adopt(
        disk: &dyn Disk,
        file: Handle,
        from: &Path,
        first: u64,
        content: &[u8],
    ) -> io::Result<Segment> {
        file.write_at(&header(first), 0)?;
        file.write_at(content, HEADER as u64)?;
        file.sync_data()?;
        let dir = from.parent().unwrap_or(from);
        let path = dir.join(file_name(first));
        disk.rename(from, &path)?;
        disk.sync_dir(dir)?;
        Segment::new(path, file, first)
    }

    /// Opens an existing segment; its records are not looked at yet.
    pub fn open(disk: &dyn Disk, path: PathBuf, first: u64) -> io::Result<Segment> {
        let file = disk.open(&path, Access::Write).map_err(|error| named(&path, &error))?;
        let segment = Segment::new(path, file, first)?;
        let mut head = [0; HEADER];
        let mut magic = [0; MAGIC.len()];
        if segment.size >= HEADER
            && segment.read_exact(&mut magic, 0).is_ok()
            && let Some(version) = later_version(&magic, MAGIC, 6)
        {
            return Err(unknown_version(&segment.path, version));
        }
        if segment.size < HEADER || segment.read_exact(&mut head, 0).map(|()| head)? != header(first) {
            let what = format!("{} has no valid header", segment.path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(segment)
    }

    fn new(path: PathBuf, file: Handle, first: u64) -> io::Result<Segment> {
        let size = file.length()? as usize;
        Ok(Segment { first, path, file, size, offsets: RwLock::new(Vec::new()) })
    }

    fn read_exact(&self, buffer: &mut [u8], offset: usize) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset as u64).map_err(|error| named(&self.path, &error))
    }

    /// Bytes of the file.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The file's whole content.
    pub fn content(&self) -> io::Result<Vec<u8>> {
        let mut content = vec![0; self.size];
        self.read_exact(&mut content, 0)?;
        Ok(content)
    }

    /// The frame that starts at `offset`, if its length can be believed; what it says is not verified.
    pub fn frame(&self, offset: usize) -> io::Result<Vec<u8>> {
        let mut frame = vec![0; FIRST_READ.min(self.size.saturating_sub(offset))];
        self.read_exact(&mut frame, offset)?;
        let length = record::frame_length(&frame).filter(|&length| length <= self.size - offset);
        let Some(length) = length else { return Ok(Vec::new()) };
        let read = frame.len().min(length);
        frame.resize(length, 0);
        self.read_exact(&mut frame[read..], offset + read)?;
        Ok(frame)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Index after its last published record.
    pub fn next(&self) -> u64 {
        self.first + self.offsets.read().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    /// Where the frame of record `index` starts, if it is here.
    pub fn offset_of(&self, index: u64) -> Option<u32> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.offsets.read().unwrap_or_else(PoisonError::into_inner).get(at).copied()
    }

    /// Makes records readable whose frames start at `offsets`.
    pub fn publish(&self, offsets: impl IntoIterator<Item = u32>) {
        self.offsets.write().unwrap_or_else(PoisonError::into_inner).extend(offsets);
    }

    /// Writes frames; they are on disk after [`Segment::sync`].
    pub fn write(&self, bytes: &[u8], offset: u32) -> io::Result<()> {
        self.file.write_at(bytes, u64::from(offset))
    }

    /// Waits for the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The record `index`, if it is here and published.
    pub fn read(&self, index: u64) -> io::Result<Option<Record>> {
        let Some(offset) = self.offset_of(index) else { return Ok(None) };
        let bytes = Bytes::from(self.frame(offset as usize)?);
        match record::decode(&bytes) {
            Some(frame) if frame.at.index == index => {
                Ok(Some(Record { at: frame.at, payload: bytes.slice_ref(frame.payload) }))
            }
            _ => {
                let what = format!("log record {index} in {} is damaged", self.path.display());
                Err(io::Error::new(io::ErrorKind::InvalidData, what))
            }
        }
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("reading {}: {error}", path.display()))
}
