//! Changing a range of a file without moving a byte: clearing it, and sharing extents with another file.
//!
//! A range may hold any number of extents, and the log waits for each command. So one command touches a bounded number
//! of them and says how far it came; the caller asks again for the rest.

use cairn_proto::ErrorCode;
use cairn_proto::fs::{Attr, ClearRange, CloneRange, Cred, Extent, RangeDone, clone_range, outcome};
use cairn_proto::limits::MAX_FILE_SIZE;
use cairn_proto::snapshot::parts;
use cairn_proto::store::Inode;

use crate::commit::{content_of, written};
use crate::core::Core;
use crate::fault::Fallible;
use crate::permission::{READ, WRITE};
use crate::resolve::Found;
use crate::snapshot::inside;
use crate::snapshot::view::SnapshotView;
use crate::store::View;
use crate::{chunk, extents, namespace, records};

/// Most extents one command takes out of a file, and most it puts in.
pub(crate) const MAX_EXTENTS: usize = 4096;

pub(crate) fn clear(core: &mut Core, cred: &Cred, ask: &ClearRange) -> Fallible<outcome::Result> {
    let id = ask.inode;
    let mut inode = content_of(core, cred, id, WRITE)?;
    let end = end_of(ask.offset, ask.length)?;
    let size = ask.size.unwrap_or(0);
    if size > MAX_FILE_SIZE {
        return Err(ErrorCode::FileTooBig.because(format!("{size} bytes")).into());
    }
    let reached = extents::reach(core, id, &inode, (ask.offset, end), MAX_EXTENTS)?;
    let allocated = inode.allocated;
    extents::punch(core, id, &mut inode, ask.offset, reached)?;
    if reached == end {
        inode.size = inode.size.max(size);
    }
    let attr = written(core, cred, Found { id, inode }, allocated, ask.mtime_ns);
    Ok(done(attr, reached - ask.offset))
}

pub(crate) fn clone(
    core: &mut Core,
    cred: &Cred,
    session: u64,
    ask: &CloneRange,
) -> Fallible<outcome::Result> {
    let creates = matches!(ask.target, Some(clone_range::Target::Create(_)));
    let whole = ask.whole || creates;
    // First, because truncating it may take away what is to be cloned.
    let (id, mut inode) = target(core, cred, session, ask)?;
    let (seq, from) = parts(ask.source).unwrap_or((0, ask.source));
    let source = match seq {
        0 => content_of(core, cred, ask.source, READ)?,
        _ => inside::content_of(core, cred, ask.source)?,
    };
    let wanted = ask.length.min(source.size.saturating_sub(ask.source_offset));
    end_of(ask.offset, wanted)?;
    if id == ask.source && (creates || ask.offset.abs_diff(ask.source_offset) < wanted) {
        return Err(ErrorCode::Invalid.because(format!("the ranges of inode {id} overlap")).into());
    }
    if wanted == 0 && !whole {
        return Ok(done(records::attr(id, &inode), 0));
    }
    // Taken before anything changes: the target may be the source, or the snapshot may have the target's extents.
    let (length, shared) = {
        let core: &Core = core;
        let past = SnapshotView::new(core, seq);
        let read: &dyn View = if seq == 0 { core } else { &past };
        let length = common_reach((read, from, &source), (core, id, &inode), ask, wanted)?;
        (length, window((read, from, &source), ask.source_offset, length)?)
    };
    if seq != 0 && !are_apart(&shared) {
        // Somebody made up its number.
        return Err(ErrorCode::Stale.because(format!("inode {from} in snapshot {seq}")).into());
    }
    if whole && length < wanted {
        let detail = format!("inode {} has too many extents for one step", ask.source);
        return Err(ErrorCode::TooLarge.because(detail).into());
    }
    let allocated = inode.allocated;
    extents::punch(core, id, &mut inode, ask.offset, ask.offset + length)?;
    for extent in shared {
        chunk::raise_replication(core, extent.chunk, inode.replication)?;
        let file_offset = ask.offset + extent.file_offset;
        extents::insert(core, id, &mut inode, Extent { file_offset, ..extent })?;
    }
    inode.size = inode.size.max(ask.offset + length);
    let attr = written(core, cred, Found { id, inode }, allocated, ask.mtime_ns);
    Ok(done(attr, length))
}

fn target(core: &mut Core, cred: &Cred, session: u64, ask: &CloneRange) -> Fallible<(u64, Inode)> {
    match &ask.target {
        Some(clone_range::Target::Inode(id)) => Ok((*id, content_of(core, cred, *id, WRITE)?)),
        Some(clone_range::Target::Create(create)) => {
            let (id, _) = namespace::create::make_or_find(core, cred, session, create)?;
            Ok((id, core.inode(id)?))
        }
        None => Err(ErrorCode::Malformed.because("a clone names no file").into()),
    }
}

/// How many of the `wanted` bytes can be cloned in one command.
fn common_reach(
    (read, source_id, source): (&dyn View, u64, &Inode),
    (core, id, inode): (&Core, u64, &Inode),
    ask: &CloneRange,
    wanted: u64,
) -> Fallible<u64> {
    let range = (ask.source_offset, ask.source_offset.saturating_add(wanted));
    let length = extents::reach(read, source_id, source, range, MAX_EXTENTS)?;
    let length = length.saturating_sub(ask.source_offset);
    let cleared = (ask.offset, ask.offset + length);
    Ok(extents::reach(core, id, inode, cleared, MAX_EXTENTS)? - ask.offset)
}

/// Whether extents are in order and do not overlap, as they do not in any file that ever was.
fn are_apart(extents: &[Extent]) -> bool {
    extents.windows(2).all(|pair| pair[0].file_offset + pair[0].length <= pair[1].file_offset)
}

/// The extents of `[offset, offset + length)`, cut to it, with file offsets that count from `offset`.
fn window((view, id, inode): (&dyn View, u64, &Inode), offset: u64, length: u64) -> Fallible<Vec<Extent>> {
    let end = offset.saturating_add(length);
    let mut found = extents::touching(view, id, inode, (offset, end), usize::MAX)?;
    for extent in &mut found {
        let low = extent.file_offset.max(offset);
        let high = (extent.file_offset + extent.length).min(end);
        extent.chunk_offset += low - extent.file_offset;
        extent.length = high - low;
        extent.file_offset = low - offset;
    }
    Ok(found)
}

fn end_of(offset: u64, length: u64) -> Fallible<u64> {
    let end = offset.checked_add(length).filter(|&end| end <= MAX_FILE_SIZE);
    Ok(end.ok_or_else(|| ErrorCode::FileTooBig.because(format!("{length} bytes at {offset}")))?)
}

fn done(attr: Attr, length: u64) -> outcome::Result {
    outcome::Result::Range(RangeDone { attr: Some(attr), length })
}
