//! Space: how much there is, and where in a file something lies.

use cairn_proto::fs::{FsStats, GetLayout, Layout, answer, query};
use cairn_proto::limits::MAX_FILE_SIZE;
use cairn_proto::{ErrorCode, Result};

use crate::handles::FileHandle;
use crate::sparse::{data_from, data_until};
use crate::view::{ROOT, View, node};

/// Extents looked at in one step.
const EXTENTS: u32 = 1024;
/// Unit in which space is reported.
pub(crate) const UNIT: u32 = 4096;

/// Space in units, as `df` shows it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Space {
    pub total: u64,
    pub free: u64,
    pub inodes: u64,
}

impl View {
    /// Space of the whole cluster.
    pub(crate) async fn statfs(&self) -> Result<Space> {
        Ok(space(&self.cluster.fs_stats().await?))
    }

    /// The next data (`SEEK_DATA`) or hole (`SEEK_HOLE`) at or after `offset`; nothing if there is none.
    pub(crate) async fn lseek(&self, handle: &FileHandle, offset: u64, whence: i32) -> Result<Option<u64>> {
        let holes = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return Err(ErrorCode::Invalid.because(format!("lseek whence {whence}"))),
        };
        let file = &handle.open.file;
        if file.dirty_bytes() > 0 {
            file.flush().await?;
        }
        let mut at = offset;
        loop {
            let layout = self.extents(file.inode(), at).await?;
            let size = layout.attr.as_ref().map_or(0, |attr| attr.size);
            if offset >= size {
                return Ok(None);
            }
            if !holes {
                return Ok(data_from(&layout.extents, at).filter(|&found| found < size));
            }
            let reached = data_until(&layout.extents, at);
            if reached >= size || reached == at || layout.end {
                // The end of a file counts as a hole.
                return Ok(Some(reached.min(size)));
            }
            at = reached;
        }
    }

    async fn extents(&self, inode: u64, offset: u64) -> Result<Layout> {
        let ask =
            GetLayout { at: Some(node(inode)), follow: false, offset, length: MAX_FILE_SIZE, limit: EXTENTS };
        match self.cluster.query(&ROOT, query::Op::Layout(ask)).await? {
            answer::Result::Layout(layout) => Ok(layout),
            _ => Err(ErrorCode::Malformed.because("the answer to a layout query")),
        }
    }
}

/// What can be stored: raw space divided by how often each byte is kept.
fn space(stats: &FsStats) -> Space {
    let unit = u64::from(UNIT) * u64::from(stats.default_replication.max(1));
    let total = stats.capacity / unit;
    Space { total, free: (stats.available / unit).min(total), inodes: stats.inodes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_what_can_be_stored_with_all_its_replicas() {
        let stats =
            FsStats { capacity: 3 << 30, available: 3 << 20, default_replication: 3, ..FsStats::default() };
        assert_eq!(space(&stats), Space { total: (1 << 30) / 4096, free: 256, inodes: 0 });
        assert_eq!(space(&FsStats::default()), Space { total: 0, free: 0, inodes: 0 });
    }
}
