//! Lending a replica's data file to a client of this host, which reads and verifies it by itself.
//!
//! What a replica holds never changes: an open one only grows, a sealed one is immutable, and a better copy that takes its
//! place is another file. So what was lent stays right for as long as the borrower keeps it, and keeps its space, too.

use std::fs::File;
use std::sync::Arc;

use cairn_host::disk::{Access, Handle};
use cairn_proto::limits::BLOCK_SIZE;
use cairn_proto::{ErrorCode, Result};

use super::read::View;
use super::replica::Replica;

/// Blocks of a replica that is lent: their checksums fit a frame's head, of 64 KiB at most.
const MOST_BLOCKS: usize = 8 << 10;

/// A data file, opened for reading only.
pub struct Lent {
    file: Handle,
    /// Bytes of it that never change.
    pub length: u64,
    /// One checksum for each block of them, the last over what there is of it.
    pub crcs: Vec<u32>,
}

impl Lent {
    /// The file; none on a disk that has no descriptors.
    pub fn file(&self) -> Option<&File> {
        self.file.as_file()
    }
}

impl Replica {
    /// Its data file for a reader on this host. One that is empty, damaged, or too long for an answer is not lent: reads
    /// by way of the datanode say what there is to say about it.
    pub fn lend(self: &Arc<Self>) -> Result<Lent> {
        let length = self.length();
        let blocks = length.div_ceil(BLOCK_SIZE as u64);
        if length == 0 || blocks > MOST_BLOCKS as u64 {
            return Err(ErrorCode::NotSupported.because(format!("chunk {} is not lent", self.chunk())));
        }
        self.dir().used_by_client();
        match self.view(0, length as usize)? {
            View::Open { length, crcs, .. } => {
                // That one is open for writing.
                let path = self.dir().data_path(self.chunk());
                let opened = self.dir().disk().open(&path, Access::Read);
                let file = opened.map_err(|error| self.unread(&error))?;
                Ok(Lent { file, length, crcs })
            }
            View::Sealed { files, length, crcs } => {
                let crcs: Option<Vec<u32>> = crcs.into_iter().collect();
                let crcs = crcs.ok_or_else(|| self.corrupt("a damaged record"))?;
                Ok(Lent { file: files.data.clone(), length, crcs })
            }
        }
    }
}
