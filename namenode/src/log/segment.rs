//! One file of the log: a header, then frames, then zeros up to its fixed size.
//!
//! ```text
//! 0   "CRNLOG01"
//! 8   u64 index of the first record
//! 16  u32 CRC-32C of bytes 0..16
//! 20  zeros
//! 64  frames (see `record.rs`)
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;
use cairn_proto::checksum::crc32c;
use memmap2::Mmap;

use super::record::{self, Record};

/// Bytes before the first frame.
pub const HEADER: usize = 64;
const MAGIC: &[u8; 8] = b"CRNLOG01";
const SUFFIX: &str = ".log";
/// A segment being prepared; thrown away at start.
pub const SPARE: &str = "spare.tmp";

/// An open segment. The writer writes through the file; readers look at the map, which shows the same pages.
#[derive(Debug)]
pub struct Segment {
    /// Index of its first record.
    pub first: u64,
    path: PathBuf,
    file: File,
    map: Mmap,
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
pub fn prepare(path: &Path, size: u32) -> io::Result<File> {
    let mut file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?;
    let zeros = vec![0; 1 << 20];
    let mut left = size as usize;
    while left > 0 {
        let part = left.min(zeros.len());
        file.write_all(&zeros[..part])?;
        left -= part;
    }
    file.sync_all()?;
    Ok(file)
}

impl Segment {
    /// Turns a prepared file into the segment that starts at `first`, with `content` as its first frames.
    pub fn adopt(dir: &Path, file: File, from: &Path, first: u64, content: &[u8]) -> io::Result<Segment> {
        file.write_all_at(&header(first), 0)?;
        file.write_all_at(content, HEADER as u64)?;
        file.sync_data()?;
        let path = dir.join(file_name(first));
        fs::rename(from, &path)?;
        File::open(dir)?.sync_all()?;
        Segment::map(path, file, first)
    }

    /// Opens an existing segment; its records are not looked at yet.
    pub fn open(path: PathBuf, first: u64) -> io::Result<Segment> {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let segment = Segment::map(path, file, first)?;
        if segment.map.get(..HEADER) != Some(&header(first)[..]) {
            let what = format!("{} has no valid header", segment.path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(segment)
    }

    fn map(path: PathBuf, file: File, first: u64) -> io::Result<Segment> {
        // SAFETY: the directory is locked for this process, nothing in it shortens a segment file, and what the
        // writer changes under the map is read only after `offsets` (a lock) has published it.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Segment { first, path, file, map, offsets: RwLock::new(Vec::new()) })
    }

    /// Bytes of the file.
    pub fn size(&self) -> usize {
        self.map.len()
    }

    /// The file's content from `offset` on.
    pub fn bytes(&self, offset: usize) -> &[u8] {
        self.map.get(offset..).unwrap_or_default()
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
        self.file.write_all_at(bytes, u64::from(offset))
    }

    /// Waits for the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The record `index`, if it is here and published.
    pub fn read(&self, index: u64) -> io::Result<Option<Record>> {
        let Some(offset) = self.offset_of(index) else { return Ok(None) };
        match record::decode(self.bytes(offset as usize)) {
            Some(frame) if frame.at.index == index => {
                Ok(Some(Record { at: frame.at, payload: Bytes::copy_from_slice(frame.payload) }))
            }
            _ => {
                let what = format!("log record {index} in {} is damaged", self.path.display());
                Err(io::Error::new(io::ErrorKind::InvalidData, what))
            }
        }
    }
}
