//! A file's extents: which bytes lie in which chunk.
//!
//! The first few live in the inode; a file with more keeps all of them in [`Table::Extent`], keyed by their *end*,
//! so that a forward scan from any offset meets the extent that covers it first. Extents never overlap.

use std::ops::ControlFlow;

use cairn_proto::fs::Extent;
use cairn_proto::store::{ExtentTail, Inode};
use prost::Message;

use crate::core::Core;
use crate::fault::Fallible;
use crate::store::{StoreError, Table, View};
use crate::{chunk, key, records};

/// Most extents an inode keeps in its own record.
const INLINE: usize = 4;

fn end_of(extent: &Extent) -> u64 {
    extent.file_offset + extent.length
}

/// Extents that touch `[start, end)`, in file order, at most `limit`.
pub(crate) fn touching(
    view: &dyn View,
    id: u64,
    inode: &Inode,
    range: (u64, u64),
    limit: usize,
) -> Result<Vec<Extent>, StoreError> {
    let (start, end) = range;
    if start >= end {
        return Ok(Vec::new());
    }
    if !inode.spilled {
        let touches = |extent: &&Extent| end_of(extent) > start && extent.file_offset < end;
        return Ok(inode.extents.iter().filter(touches).take(limit).copied().collect());
    }
    let mut found = Vec::new();
    let mut damage = None;
    view.scan(Table::Extent, &key::two(id, start + 1), &key::after(id), &mut |at, value| {
        let tail: ExtentTail = match records::decode(Table::Extent, value) {
            Ok(tail) => tail,
            Err(error) => {
                damage = Some(error);
                return ControlFlow::Break(());
            }
        };
        let file_offset = key::number(at, 1).unwrap_or(0).saturating_sub(tail.length);
        if file_offset >= end || found.len() >= limit {
            return ControlFlow::Break(());
        }
        found.push(Extent {
            file_offset,
            chunk: tail.chunk,
            chunk_offset: tail.chunk_offset,
            length: tail.length,
        });
        ControlFlow::Continue(())
    })?;
    damage.map_or(Ok(found), Err)
}

/// How far into `[start, end)` one gets without touching more than `limit` extents. Always some way, if there is any.
pub(crate) fn reach(
    view: &dyn View,
    id: u64,
    inode: &Inode,
    (start, end): (u64, u64),
    limit: usize,
) -> Result<u64, StoreError> {
    let found = touching(view, id, inode, (start, end), limit.saturating_add(1))?;
    Ok(found.get(limit.max(1)).map_or(end, |left_out| left_out.file_offset))
}

/// Adds an extent where nothing lies, joining it to the one before if they are one run of a chunk.
pub(crate) fn insert(core: &mut Core, id: u64, inode: &mut Inode, extent: Extent) -> Fallible<()> {
    inode.allocated += extent.length;
    let mut extent = extent;
    chunk::count_live(core, extent.chunk, extent.length as i64)?;
    if let Some(before) = ending_at(core, id, inode, extent.file_offset)? {
        let joins =
            before.chunk == extent.chunk && before.chunk_offset + before.length == extent.chunk_offset;
        if joins {
            take(core, id, inode, &before);
            extent = Extent { length: before.length + extent.length, ..before };
        }
    }
    place(core, id, inode, extent);
    Ok(())
}

/// Takes `[start, end)` out of the file: extents inside go, those across an edge are trimmed.
pub(crate) fn punch(core: &mut Core, id: u64, inode: &mut Inode, start: u64, end: u64) -> Fallible<()> {
    for old in touching(core, id, inode, (start, end), usize::MAX)? {
        take(core, id, inode, &old);
        let cut_start = old.file_offset.max(start);
        let cut_end = end_of(&old).min(end);
        if old.file_offset < cut_start {
            place(core, id, inode, Extent { length: cut_start - old.file_offset, ..old });
        }
        if cut_end < end_of(&old) {
            let skipped = cut_end - old.file_offset;
            let tail = Extent {
                file_offset: cut_end,
                chunk_offset: old.chunk_offset + skipped,
                length: old.length - skipped,
                ..old
            };
            place(core, id, inode, tail);
        }
        inode.allocated -= cut_end - cut_start;
        chunk::count_live(core, old.chunk, -((cut_end - cut_start) as i64))?;
    }
    if inode.spilled && inode.allocated == 0 {
        inode.spilled = false;
    }
    Ok(())
}

/// Moves an extent to where the same bytes are. It is joined to nothing and keeps its key, so that the file is the same to
/// snapshots that have some of its extents and look up others here.
pub(crate) fn relocate(
    core: &mut Core,
    id: u64,
    mut inode: Inode,
    extent: &Extent,
    (into, chunk_offset): (u64, u64),
) -> Fallible<()> {
    core.alike(|core| {
        take(core, id, &mut inode, extent);
        place(core, id, &mut inode, Extent { chunk: into, chunk_offset, ..*extent });
        core.set_inode(id, &inode);
    });
    chunk::count_live(core, into, extent.length as i64)?;
    chunk::count_live(core, extent.chunk, -(extent.length as i64))
}

/// Chunks the file has bytes in, ascending, with how many.
pub(crate) fn chunks_of(view: &dyn View, id: u64, inode: &Inode) -> Result<Vec<(u64, u64)>, StoreError> {
    let mut bytes = std::collections::BTreeMap::new();
    for extent in touching(view, id, inode, (0, u64::MAX), usize::MAX)? {
        *bytes.entry(extent.chunk).or_insert(0) += extent.length;
    }
    Ok(bytes.into_iter().collect())
}

fn ending_at(core: &Core, id: u64, inode: &Inode, end: u64) -> Fallible<Option<Extent>> {
    if end == 0 {
        return Ok(None);
    }
    let found = touching(core, id, inode, (end - 1, end), 1)?;
    Ok(found.into_iter().find(|extent| end_of(extent) == end))
}

/// Stores an extent and its reverse reference; no counting.
fn place(core: &mut Core, id: u64, inode: &mut Inode, extent: Extent) {
    let reference = key::chunk_ref(extent.chunk, extent.chunk_offset, id, extent.file_offset);
    core.set(Table::ChunkRef, &reference, extent.length.to_be_bytes().to_vec());
    if !inode.spilled && inode.extents.len() < INLINE {
        let at = inode.extents.partition_point(|other| other.file_offset < extent.file_offset);
        inode.extents.insert(at, extent);
        return;
    }
    if !inode.spilled {
        inode.spilled = true;
        for inline in std::mem::take(&mut inode.extents) {
            store_tail(core, id, &inline);
        }
    }
    store_tail(core, id, &extent);
}

fn store_tail(core: &mut Core, id: u64, extent: &Extent) {
    let tail = ExtentTail { chunk: extent.chunk, chunk_offset: extent.chunk_offset, length: extent.length };
    core.set(Table::Extent, &key::two(id, end_of(extent)), tail.encode_to_vec());
}

/// Removes an extent and its reverse reference; no counting.
fn take(core: &mut Core, id: u64, inode: &mut Inode, extent: &Extent) {
    core.remove(Table::ChunkRef, &key::chunk_ref(extent.chunk, extent.chunk_offset, id, extent.file_offset));
    if inode.spilled {
        core.remove(Table::Extent, &key::two(id, end_of(extent)));
    } else {
        inode.extents.retain(|other| other.file_offset != extent.file_offset);
    }
}
