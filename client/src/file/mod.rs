//! One file being read and written.
//!
//! [`Inode`] is what all [`File`]s of one inode share: its attributes, what was written and is not committed
//! ([`overlay`]), and where its committed bytes lie. [`mod@write`] moves written bytes into chunks, [`commit`] makes
//! them visible, [`read`] puts the two together.

mod append;
mod commit;
mod descriptor;
mod durable;
mod inode;
mod overlay;
mod ranges;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;

use bytes::Bytes;
use cairn_proto::{Error, Result, fs};

use descriptor::Descriptor;
pub(crate) use durable::OnDisk;
pub(crate) use inode::Inode;

/// One file of a cluster. Clones, and all files of one inode, share their state. Dropping flushes nothing.
///
/// Clones are one descriptor to whom losses of what was written are told once; files that were opened apart hear each.
#[derive(Clone)]
pub struct File {
    inode: Arc<Inode>,
    cred: fs::Cred,
    told: Descriptor,
}

impl File {
    pub(crate) fn new(inode: Arc<Inode>, cred: fs::Cred) -> File {
        let told = Descriptor::new(&inode);
        File { inode, cred, told }
    }

    /// The same file for one more who opens it: what is lost from now on is told to both.
    pub fn reopened(&self) -> File {
        File::new(Arc::clone(&self.inode), self.cred.clone())
    }

    /// The inode's number.
    pub fn inode(&self) -> u64 {
        self.inode.number()
    }

    /// Attributes as last heard, with this client's own uncommitted size and time on top.
    pub fn attr(&self) -> fs::Attr {
        self.inode.attr()
    }

    /// Takes in attributes from the namenode, unless newer ones are known.
    pub fn learn(&self, attr: &fs::Attr) {
        self.inode.learn(attr);
    }

    /// Reads; short only at the end of the file.
    pub async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        self.inode.read_at(&self.cred, offset, length as u64).await
    }

    /// Writes into the buffer; waits when too much is unwritten. Own reads see it at once.
    pub async fn write_at(&self, offset: u64, data: Bytes) -> Result<()> {
        self.inode.write_at(&self.cred, &self.told, offset, data).await
    }

    /// Appends where the file ends when the namenode applies it, and returns that offset. Committed on return.
    pub async fn append(&self, data: Bytes) -> Result<u64> {
        self.inode.append(&self.cred, data).await
    }

    /// Sets the size, after everything written before.
    pub async fn truncate(&self, size: u64) -> Result<fs::Attr> {
        self.inode.truncate(&self.cred, size).await
    }

    /// Makes a range read as zeros and gives its space back, after everything written before. `grow`: the file is
    /// made to end where the range ends, or later; otherwise its size stays.
    pub async fn clear_range(&self, offset: u64, length: u64, grow: bool) -> Result<fs::Attr> {
        self.inode.clear_range(&self.cred, offset, length, grow).await
    }

    /// Puts what this file has at `offset` into `to` at `to_offset`, sharing the chunks: no byte is moved, and holes
    /// stay holes. Returns how many bytes: fewer than `length` at the end of this file, or when a later part failed.
    /// Ranges of one file that overlap are `Invalid`.
    pub async fn clone_range(&self, offset: u64, to: &File, to_offset: u64, length: u64) -> Result<u64> {
        self.inode.clone_range(&to.cred, offset, &to.inode, to_offset, length).await
    }

    /// As `fallocate`: marks the file as changed and, with a `size`, makes it at least so many bytes long. No space
    /// is reserved.
    pub async fn allocate(&self, size: Option<u64>) -> Result<fs::Attr> {
        self.inode.allocate(&self.cred, size).await
    }

    /// Commits all own writes: everybody sees them. Reports an error of earlier background work, once to each who has the file open.
    pub async fn flush(&self) -> Result<fs::Attr> {
        self.inode.flush(false, &self.told).await
    }

    /// As [`File::flush`], for somebody who did not write: an error that loses bytes stays for those who did.
    pub async fn commit(&self) -> Result<()> {
        self.inode.commit_all_owned().await
    }

    /// As [`File::flush`], but an error of earlier work is reported again, until it is synced: a descriptor
    /// is also closed by a child of its process that nobody asks what it heard.
    pub async fn close(&self) -> Result<()> {
        self.inode.close(&self.told).await
    }

    /// Has what was written committed: now or, if nobody else can see the file, soon.
    pub async fn leave(&self) -> Result<()> {
        self.inode.leave().await
    }

    /// As [`File::flush`], and what was written is on the disks of all replicas, and what was done in this client's own
    /// directories is done for good. If that was lost, so much is said once to each who has a file open, too.
    pub async fn sync(&self) -> Result<fs::Attr> {
        self.inode.flush(true, &self.told).await
    }

    /// Forgets what is not committed, because its writer lost the right to it; the next flush reports `error`.
    pub fn abandon(&self, error: Error) {
        self.inode.abandon(error);
    }

    /// Bytes written and not committed yet.
    pub fn dirty_bytes(&self) -> u64 {
        self.inode.dirty_bytes()
    }
}
