//! One file being read and written.

use bytes::Bytes;
use cairn_proto::{Result, fs};

/// One file of a cluster. Clones, and all files of one inode, share their state. Dropping flushes nothing.
#[derive(Clone)]
pub struct File {}

impl File {
    /// The inode's number.
    pub fn inode(&self) -> u64 {
        todo!()
    }
    /// Attributes as last heard, with this client's own uncommitted size and time on top.
    pub fn attr(&self) -> fs::Attr {
        todo!()
    }
    /// Takes in fresher attributes from the namenode.
    pub fn learn(&self, _attr: &fs::Attr) {
        todo!()
    }
    /// Reads; short only at the end of the file.
    pub async fn read_at(&self, _offset: u64, _length: usize) -> Result<Bytes> {
        todo!()
    }
    /// Writes into the buffer; waits when too much is unwritten. Own reads see it at once.
    pub async fn write_at(&self, _offset: u64, _data: Bytes) -> Result<()> {
        todo!()
    }
    /// Appends where the file ends when the commit is applied; committed on return.
    pub async fn append(&self, _data: Bytes) -> Result<u64> {
        todo!()
    }
    /// Sets the size, after everything written before.
    pub async fn truncate(&self, _size: u64) -> Result<fs::Attr> {
        todo!()
    }
    /// Commits all own writes: everybody sees them.
    pub async fn flush(&self) -> Result<fs::Attr> {
        todo!()
    }
    /// As flush, and durable on all replicas.
    pub async fn sync(&self) -> Result<fs::Attr> {
        todo!()
    }
    /// Bytes written and not committed yet.
    pub fn dirty_bytes(&self) -> u64 {
        todo!()
    }
}
