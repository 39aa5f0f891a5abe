//! Which sessions hold which files open: an unlinked file lives until the last of them closes it.

use std::ops::ControlFlow;

use cairn_proto::fs::outcome;
use cairn_proto::snapshot::is_inside;
use cairn_proto::{ErrorCode, fs};

use crate::apply::NOTHING;
use crate::core::Core;
use crate::fault::Fallible;
use crate::resolve::Found;
use crate::snapshot::inside;
use crate::store::{StoreError, Table, View};
use crate::{extents, key, lock, records};

/// Most files of one close request.
const MAX_CLOSES: usize = 4096;

pub(crate) fn open(core: &mut Core, session: u64, id: u64) -> Fallible<outcome::Result> {
    if is_inside(id) {
        // What a snapshot has stays as long as the snapshot does.
        return Ok(outcome::Result::Attr(inside::attr(&inside::start(core, id)?)));
    }
    let inode = core.inode(id)?;
    let count = opens(core, id, session)? + 1;
    core.set(Table::OpenInode, &key::two(id, session), count.to_be_bytes().to_vec());
    core.set(Table::SessionInode, &key::two(session, id), Vec::new());
    Ok(outcome::Result::Attr(records::attr(id, &inode)))
}

/// Closing a file that is not open is no error: its session may have expired in between.
pub(crate) fn close(core: &mut Core, session: u64, ids: &[u64]) -> Fallible<outcome::Result> {
    if ids.len() > MAX_CLOSES {
        return Err(ErrorCode::TooLarge.because(format!("{} files to close", ids.len())).into());
    }
    for &id in ids {
        match opens(core, id, session)? {
            0 => {}
            1 => release(core, session, id)?,
            count => {
                core.set(Table::OpenInode, &key::two(id, session), (count - 1).to_be_bytes().to_vec());
            }
        }
    }
    Ok(NOTHING)
}

pub(crate) fn close_all_of(core: &mut Core, session: u64) -> Fallible<()> {
    for id in records::seconds(core, Table::SessionInode, session)? {
        release(core, session, id)?;
    }
    Ok(())
}

fn release(core: &mut Core, session: u64, id: u64) -> Fallible<()> {
    core.remove(Table::OpenInode, &key::two(id, session));
    core.remove(Table::SessionInode, &key::two(session, id));
    let Some(inode) = records::inode(core, id)? else { return Ok(()) };
    if inode.nlink == 0 && !is_open(core, id)? {
        destroy(core, Found { id, inode })?;
    }
    Ok(())
}

fn opens(core: &Core, id: u64, session: u64) -> Result<u64, StoreError> {
    let count = core.get(Table::OpenInode, &key::two(id, session))?;
    Ok(count.and_then(|bytes| key::number(&bytes, 0)).unwrap_or(0))
}

pub(crate) fn is_open(view: &dyn View, id: u64) -> Result<bool, StoreError> {
    let mut found = false;
    view.scan(Table::OpenInode, &key::one(id), &key::after(id), &mut |_, _| {
        found = true;
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// The end of a file: its bytes become garbage in their chunks.
pub(crate) fn destroy(core: &mut Core, file: Found) -> Fallible<()> {
    let Found { id, mut inode } = file;
    if inode.kind() == fs::FileKind::File {
        extents::punch(core, id, &mut inode, 0, u64::MAX)?;
    }
    remove_xattrs(core, id)?;
    lock::release_all_on(core, id)?;
    core.remove(Table::Inode, &key::one(id));
    core.meta.files -= 1;
    Ok(())
}

pub(crate) fn remove_xattrs(core: &mut Core, id: u64) -> Fallible<()> {
    let mut keys = Vec::new();
    core.scan(Table::Xattr, &key::one(id), &key::after(id), &mut |at, _| {
        keys.push(at.to_vec());
        ControlFlow::Continue(())
    })?;
    for at in keys {
        core.remove(Table::Xattr, &at);
    }
    Ok(())
}
