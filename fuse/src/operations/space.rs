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
    pub free_inodes: u64,
}

impl View {
    /// Space of the whole cluster, or what quotas leave of it where `inode` is.
    pub(crate) async fn statfs(&self, inode: u64) -> Result<Space> {
        Ok(space(&self.cluster.fs_stats_at(inode).await?))
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
            file.commit().await?;
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

/// What can be stored: raw space divided by how often each byte is kept, or less where there is a quota. A quota's total
/// is the one that leaves least, as with the project quotas of other file systems.
fn space(stats: &FsStats) -> Space {
    let unit = u64::from(UNIT) * u64::from(stats.default_replication.max(1));
    let total = stats.capacity / unit;
    let free = (stats.available / unit).min(total);
    // Inodes are not limited by themselves: as many more as there are units of space.
    let mut space = Space { total, free, inodes: stats.inodes.saturating_add(free), free_inodes: free };
    let left = |most: u64, used: u64| most.saturating_sub(used);
    let bytes = stats.limits.iter().filter_map(|tree| Some((left(tree.max_bytes?, tree.bytes), tree)));
    if let Some((room, tree)) = bytes.min_by_key(|(room, _)| *room) {
        let unit = u64::from(UNIT);
        space.free = free.min(room / unit);
        space.total = tree.bytes.div_ceil(unit).saturating_add(space.free);
    }
    let names = stats.limits.iter().filter_map(|tree| Some((left(tree.max_names?, tree.names), tree)));
    if let Some((room, tree)) = names.min_by_key(|(room, _)| *room) {
        space.free_inodes = space.free_inodes.min(room);
        space.inodes = tree.names.saturating_add(space.free_inodes);
    }
    space
}

#[cfg(test)]
mod tests {
    use cairn_proto::fs::TreeUsage;

    use super::*;

    #[test]
    fn space_is_what_can_be_stored_with_all_its_replicas() {
        let stats =
            FsStats { capacity: 3 << 30, available: 3 << 20, default_replication: 3, ..FsStats::default() };
        let whole = Space { total: (1 << 30) / 4096, free: 256, inodes: 256, free_inodes: 256 };
        assert_eq!(space(&stats), whole);
        let nothing = Space { total: 0, free: 0, inodes: 0, free_inodes: 0 };
        assert_eq!(space(&FsStats::default()), nothing);
    }

    #[test]
    fn under_a_quota_space_is_what_the_tightest_leaves() {
        let limit = |bytes, max_bytes, names, max_names| TreeUsage {
            bytes,
            max_bytes: Some(max_bytes),
            names,
            max_names,
            ..TreeUsage::default()
        };
        let limits = vec![limit(4096, 40_960, 3, Some(10)), limit(8192, 16_384, 9, None)];
        let stats = FsStats {
            capacity: 1 << 30,
            available: 1 << 30,
            default_replication: 1,
            inodes: 50,
            limits,
            ..FsStats::default()
        };
        assert_eq!(space(&stats), Space { total: 4, free: 2, inodes: 10, free_inodes: 7 });
        let over = FsStats { limits: vec![limit(8192, 4096, 5, Some(1))], ..stats };
        assert_eq!(space(&over), Space { total: 2, free: 0, inodes: 5, free_inodes: 0 });
    }
}
