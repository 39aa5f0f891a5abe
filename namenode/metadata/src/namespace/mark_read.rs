//! Times of access that follow from reading, as mounts report them: late, and many at a time.

use cairn_proto::ErrorCode;
use cairn_proto::fs::{Cred, FileRead, MarkRead, outcome};
use cairn_proto::limits::MAX_FILE_READS;

use crate::apply::NOTHING;
use crate::core::Core;
use crate::fault::Fallible;
use crate::permission::{READ, SEARCH, permits};
use crate::records;

/// Raises times of access. A file that is gone, or not the asker's to read, is passed over.
pub(crate) fn mark_read(core: &mut Core, cred: &Cred, ask: &MarkRead) -> Fallible<outcome::Result> {
    if ask.files.len() > MAX_FILE_READS {
        return Err(ErrorCode::TooLarge.because(format!("{} files that were read", ask.files.len())).into());
    }
    for read in &ask.files {
        mark(core, cred, read)?;
    }
    Ok(NOTHING)
}

fn mark(core: &mut Core, cred: &Cred, read: &FileRead) -> Fallible<()> {
    let Some(mut inode) = records::inode(core, read.inode)? else { return Ok(()) };
    let readable = permits(cred, &inode, READ) || permits(cred, &inode, SEARCH);
    // Whoever set the times after the read meant it so. The version tells even if the reader's clock is wrong.
    let current = read.version == inode.version || read.atime_ns >= inode.ctime_ns;
    let atime_ns = read.atime_ns.min(core.now);
    if readable && current && atime_ns > inode.atime_ns {
        inode.atime_ns = atime_ns;
        // Being read is no change that a snapshot would keep the file for.
        core.alike(|core| core.set_inode(read.inode, &inode));
    }
    Ok(())
}
