//! Reading a replica: every block is verified before a byte of it leaves.
//!
//! Blocks are read with `pread` into a buffer that stays in the processor's cache, not through a mapping:
//! a mapping turns a bad sector into a signal that ends the process, where `pread` returns an error that
//! costs one replica.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use cairn_host::disk::{Access, DiskFile, Handle};
use cairn_proto::checksum::{crc32c, pieces};
use cairn_proto::limits::{BLOCK_SIZE, MAX_PAYLOAD};
use cairn_proto::{Error, ErrorCode, Result};

use super::format::{HEADER, RECORD, Record, SEAL};
use super::replica::{Replica, Sealed, SealedFiles, State};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Reusable memory of a reader.
#[derive(Debug, Default)]
pub struct Scratch {
    buffer: Vec<u8>,
    /// One CRC for each block the last piece touches, over the piece's bytes in that block.
    pub crcs: Vec<u32>,
}

impl Scratch {
    /// Bytes of the last piece that was read.
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// Gives its memory back.
    pub fn shrink(&mut self) {
        *self = Scratch::default();
    }
}

/// What a read needs of a replica, taken under its lock.
pub(super) enum View {
    Open { data: Handle, length: u64, crcs: Vec<u32> },
    Sealed { files: Arc<SealedFiles>, length: u64, crcs: Vec<Option<u32>> },
}

/// Why a read of blocks did not succeed.
enum Trouble {
    Corrupt(u64),
    Io(io::Error),
}

impl Replica {
    /// Refuses a range that this replica does not hold.
    pub fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        self.check_held(&self.lock(), offset, length)
    }

    fn check_held(&self, state: &State, offset: u64, length: u64) -> Result<()> {
        let held = match state {
            State::Open(log) => log.tail.length(),
            State::Sealed(sealed) => sealed.seal.length,
            other => return Err(other.refusal(self.chunk())),
        };
        if offset.checked_add(length).is_some_and(|end| end <= held) {
            return Ok(());
        }
        let chunk = self.chunk();
        Err(ErrorCode::PastEnd.because(format!("chunk {chunk}: {length} bytes at {offset}, length {held}")))
    }

    /// Reads one piece, at most [`MAX_PAYLOAD`] bytes, verified. The range is where it lies in the scratch.
    pub fn read(self: &Arc<Self>, offset: u64, length: usize, scratch: &mut Scratch) -> Result<Range<usize>> {
        if length > MAX_PAYLOAD {
            return Err(ErrorCode::TooLarge.because(format!("a piece of {length} bytes")));
        }
        scratch.crcs.clear();
        if length == 0 {
            return Ok(0..0);
        }
        self.dir().used_by_client();
        let mut trouble = None;
        // A seal may cut what a view has just taken in; then the second view knows better.
        for _ in 0..2 {
            let view = self.view(offset, length)?;
            match view.read(offset, length, scratch) {
                Ok(range) => return Ok(range),
                Err(found) => trouble = Some(found),
            }
        }
        Err(self.troubled(trouble))
    }

    /// What it means that one of its files cannot be read.
    pub(super) fn unread(&self, error: &io::Error) -> Error {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return self.corrupt("a file ends too early");
        }
        let _ = self.dir().doubt();
        ErrorCode::DiskFailed.because(format!("chunk {}: {error}", self.chunk()))
    }

    fn troubled(&self, trouble: Option<Trouble>) -> Error {
        let chunk = self.chunk();
        match trouble {
            Some(Trouble::Io(error)) => self.unread(&error),
            Some(Trouble::Corrupt(block)) => {
                ErrorCode::Corrupt.because(format!("chunk {chunk}: block {block}"))
            }
            None => ErrorCode::Io.because(format!("chunk {chunk}")),
        }
    }

    pub(super) fn view(self: &Arc<Self>, offset: u64, length: usize) -> Result<View> {
        let (first, last) = (offset / BLOCK, (offset + length as u64 - 1) / BLOCK);
        let mut state = self.lock();
        self.check_held(&state, offset, length as u64)?;
        let (files, length, opened) = match &mut *state {
            State::Open(log) => {
                let crcs = log.crcs.get(first as usize..=last as usize).unwrap_or(&[]).to_vec();
                return Ok(View::Open { data: log.data.clone(), length: log.tail.length(), crcs });
            }
            State::Sealed(Sealed { seal, files: Some(files), .. }) => (files.clone(), seal.length, false),
            State::Sealed(sealed) => {
                let files = Arc::new(self.open_sealed()?);
                sealed.files = Some(files.clone());
                (files, sealed.seal.length, true)
            }
            other => return Err(other.refusal(self.chunk())),
        };
        drop(state);
        if opened {
            self.dir().opened(self);
        }
        let crcs = self.sealed_crcs(&*files.sums, first, last, length)?;
        Ok(View::Sealed { files, length, crcs })
    }

    /// Closes the files of a sealed chunk; the next read opens them again.
    pub(super) fn close_files(&self) {
        if let State::Sealed(sealed) = &mut *self.lock() {
            sealed.files = None;
        }
    }

    pub(super) fn open_sealed(&self) -> Result<SealedFiles> {
        let dir = self.dir();
        let open = |path: PathBuf| {
            dir.disk().open(&path, Access::Read).map_err(|error| match error.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE) => ErrorCode::Unavailable.because(error.to_string()),
                _ => ErrorCode::Corrupt.because(format!("chunk {}: {error}", self.chunk())),
            })
        };
        Ok(SealedFiles { data: open(dir.data_path(self.chunk()))?, sums: open(dir.sums_path(self.chunk()))? })
    }

    /// The stored CRCs of a sealed chunk's blocks; `None` where the record itself is damaged.
    fn sealed_crcs(
        &self,
        sums: &dyn DiskFile,
        first: u64,
        last: u64,
        length: u64,
    ) -> Result<Vec<Option<u32>>> {
        let mut bytes = vec![0; (last - first + 1) as usize * RECORD];
        let at = (HEADER + SEAL) as u64 + first * RECORD as u64;
        sums.read_exact_at(&mut bytes, at).map_err(|error| self.troubled(Some(Trouble::Io(error))))?;
        let record = |(block, bytes): (u64, &[u8])| {
            let record = Record::decode(bytes.try_into().ok()?, self.chunk())?;
            let wanted = (length - block * BLOCK).min(BLOCK);
            (u64::from(record.block) == block && u64::from(record.length) == wanted).then_some(record.crc)
        };
        Ok((first..).zip(bytes.chunks_exact(RECORD)).map(record).collect())
    }

    /// Whether the replica holds `data` at `offset`, with these checksums of an append.
    pub(super) fn holds(self: &Arc<Self>, offset: u64, crcs: &[u32], data: &[u8]) -> Result<bool> {
        if data.is_empty() {
            return Ok(crcs.is_empty());
        }
        // The checksums cover the first block from its start, so the bytes before the append take part.
        let start = offset / BLOCK * BLOCK;
        let lead = (offset - start) as usize;
        let mut scratch = Scratch::default();
        let mut ours = Vec::with_capacity(lead + data.len());
        for (_, from, to) in pieces(start, lead + data.len()) {
            let range = self.read(start + from as u64, to - from, &mut scratch)?;
            ours.extend_from_slice(scratch.bytes(range));
        }
        let sums: Vec<u32> = ours.chunks(BLOCK_SIZE).map(crc32c).collect();
        Ok(ours[lead..] == *data && sums == crcs)
    }
}

impl View {
    fn read(&self, offset: u64, length: usize, scratch: &mut Scratch) -> Result<Range<usize>, Trouble> {
        let (file, chunk_length) = match self {
            View::Open { data, length, .. } => (&**data, *length),
            View::Sealed { files, length, .. } => (&*files.data, *length),
        };
        let first = offset / BLOCK;
        let start = first * BLOCK;
        let end = (offset + length as u64).div_ceil(BLOCK) * BLOCK;
        let size = (end.min(chunk_length) - start) as usize;
        if scratch.buffer.len() < size {
            scratch.buffer.resize(size, 0);
        }
        let blocks = &mut scratch.buffer[..size];
        file.read_exact_at(blocks, start).map_err(Trouble::Io)?;
        let range = (offset - start) as usize..(offset - start) as usize + length;
        for (index, block) in blocks.chunks(BLOCK_SIZE).enumerate() {
            let crc = crc32c(block);
            if self.expected(index) != Some(crc) {
                return Err(Trouble::Corrupt(first + index as u64));
            }
            let at = index * BLOCK_SIZE;
            let (from, to) = (range.start.max(at), range.end.min(at + block.len()));
            let whole = to - from == block.len();
            scratch.crcs.push(if whole { crc } else { crc32c(&block[from - at..to - at]) });
        }
        Ok(range)
    }

    fn expected(&self, index: usize) -> Option<u32> {
        match self {
            View::Open { crcs, .. } => crcs.get(index).copied(),
            View::Sealed { crcs, .. } => crcs.get(index).copied().flatten(),
        }
    }
}
