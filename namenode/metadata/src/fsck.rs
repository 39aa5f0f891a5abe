//! The state checker a page at a time, for `cairn fsck`: what [`crate::check`] demands of files and chunks, asked of one
//! file or a few chunks in one consistent view. What belongs to two pages is never compared, so that a namespace that
//! changes meanwhile raises no false alarm.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use cairn_proto::ErrorCode;
use cairn_proto::fs::{
    CheckChunks, CheckFile, CheckNode, ChunkProblem, ChunkState, ChunksCheck, Cred, Extent, FileCheck,
    FileKind, NodeCheck, PlacedReplica, answer,
};
use cairn_proto::limits::MAX_LAYOUT_PAGE;
use cairn_proto::store::Chunk;

use crate::fault::Fallible;
use crate::permission::{READ, require};
use crate::resolve::{Found, resolve};
use crate::store::{StoreError, Table, View};
use crate::{chunk, extents, key, records};

/// Most chunks of a page, and most that are placed on a node.
const MAX_PAGE: usize = 256;
const MAX_PLACED: usize = 1024;
/// Extents looked at for one page, unless its first chunk alone has more.
const PAGE_REFERENCES: usize = 4096;
/// Extents counted of one chunk; one with more is not added up.
const MOST_REFERENCES: usize = 262_144;
/// A chunk without a live byte is purged after a minute or so; one this old was forgotten, in nanoseconds.
const FORGOTTEN_NS: i64 = 15 * 60 * 1_000_000_000;

/// A file's extents, the chunks they name, and whether the index of chunks knows them.
pub(crate) fn file(view: &dyn View, cred: &Cred, ask: &CheckFile) -> Fallible<answer::Result> {
    let Found { id, inode } = resolve(view, cred, &ask.at, false)?;
    if inode.kind() != FileKind::File {
        return Err(ErrorCode::Invalid.because("not a regular file").into());
    }
    if cred.uid != inode.uid {
        require(cred, &inode, READ, "no read permission")?;
    }
    let limit = if ask.limit == 0 { MAX_LAYOUT_PAGE } else { ask.limit.min(MAX_LAYOUT_PAGE) } as usize;
    let mut found = extents::touching(view, id, &inode, (ask.offset, u64::MAX), limit + 1)?;
    let end = found.len() <= limit;
    found.truncate(limit);
    let mut problems = Vec::new();
    let mut ids = BTreeSet::new();
    let mut last = 0;
    // The index has what files name now.
    let is_indexed = view.snapshot().is_none();
    for extent in &found {
        let until = extent.file_offset.saturating_add(extent.length);
        if extent.file_offset < last || extent.length == 0 || until > inode.size {
            problems.push(format!("the extent at {} is out of place", extent.file_offset));
        }
        last = until;
        ids.insert(extent.chunk);
        let at = key::chunk_ref(extent.chunk, extent.chunk_offset, id, extent.file_offset);
        let indexed = view.get(Table::ChunkRef, &at)?.and_then(|value| key::number(&value, 0));
        if is_indexed && indexed != Some(extent.length) {
            problems
                .push(format!("the index of chunk {} lacks bytes at {}", extent.chunk, extent.file_offset));
        }
    }
    let mut chunks = Vec::with_capacity(ids.len());
    for id in ids {
        if let Some(record) = records::chunk(view, id)? {
            let beyond = |extent: &&Extent| {
                extent.chunk == id && extent.chunk_offset.saturating_add(extent.length) > record.length
            };
            if let Some(extent) = found.iter().find(beyond) {
                problems.push(format!("the bytes at {} lie past the end of chunk {id}", extent.file_offset));
            }
            chunks.push(chunk::info(view, id, &record)?);
        }
    }
    let attr = Some(records::attr(id, &inode));
    Ok(answer::Result::FileCheck(FileCheck { attr, extents: found, chunks, end, problems }))
}

/// A page of chunks, each compared with the extents that name it and with the indexes.
pub(crate) fn chunks(view: &dyn View, cred: &Cred, ask: &CheckChunks) -> Fallible<answer::Result> {
    root_only(cred)?;
    let limit = if ask.limit == 0 { MAX_PAGE } else { MAX_PAGE.min(ask.limit as usize) };
    let mut raw: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut page = ChunksCheck::default();
    view.scan(Table::Chunk, &key::one(ask.from), &[], &mut |at, value| {
        let id = key::number(at, 0).unwrap_or(0);
        if raw.len() >= limit {
            page.next = id;
            return ControlFlow::Break(());
        }
        raw.push((id, value.to_vec()));
        ControlFlow::Continue(())
    })?;
    let now = records::meta(view)?.unwrap_or_default().time_ns;
    let mut references = 0;
    for (id, value) in raw {
        if references >= PAGE_REFERENCES {
            page.next = id;
            break;
        }
        let record: Chunk = records::decode(Table::Chunk, &value)?;
        let mut problems = Vec::new();
        references += check_references(view, id, &record, &mut problems)?;
        check_record(view, id, &record, now, &mut problems)?;
        page.problems.extend(problems.into_iter().map(|what| ChunkProblem { chunk: id, what }));
        page.chunks.push(chunk::info(view, id, &record)?);
    }
    Ok(answer::Result::ChunksCheck(page))
}

/// Adds up the extents that the index has for a chunk, and looks each of them up. Returns how many there are.
fn check_references(
    view: &dyn View,
    id: u64,
    record: &Chunk,
    problems: &mut Vec<String>,
) -> Result<usize, StoreError> {
    let mut found: Vec<(u64, Extent)> = Vec::new();
    view.scan(Table::ChunkRef, &key::one(id), &key::after(id), &mut |at, value| {
        let number = |index| key::number(at, index).unwrap_or(0);
        let length = key::number(value, 0).unwrap_or(0);
        let extent = Extent { file_offset: number(3), chunk: id, chunk_offset: number(1), length };
        found.push((number(2), extent));
        if found.len() > MOST_REFERENCES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if found.len() > MOST_REFERENCES {
        return Ok(found.len());
    }
    let live: u64 = found.iter().map(|(_, extent)| extent.length).sum();
    if live != record.live_bytes {
        problems.push(format!("{live} bytes are named by files, but {} are counted", record.live_bytes));
    }
    for (inode, extent) in &found {
        let at = (extent.file_offset, extent.file_offset.saturating_add(1));
        let named = match records::inode(view, *inode)? {
            Some(file) => extents::touching(view, *inode, &file, at, 1)?,
            None => Vec::new(),
        };
        if named != [*extent] {
            problems.push(format!("the index names bytes at {} of inode {inode}, which has others", at.0));
        }
    }
    Ok(found.len())
}

fn check_record(
    view: &dyn View,
    id: u64,
    record: &Chunk,
    now: i64,
    problems: &mut Vec<String>,
) -> Result<(), StoreError> {
    let is_open = record.state() == ChunkState::Open;
    let is_dead = records::is_dead(record);
    if record.replicas.is_empty() && (is_open || !is_dead) {
        problems.push("no replica of it is known".into());
    }
    for node in record.replicas.iter().chain(&record.dropping) {
        if view.get(Table::NodeChunk, &key::node_chunk(*node, id))?.is_none() {
            problems.push(format!("the index of node {node} lacks it"));
        }
    }
    if is_open && records::session(view, record.session)?.is_none() {
        problems.push("it is open, but its session is gone".into());
    }
    let since = record.dead_since_ns;
    if is_dead != (since != 0) {
        problems.push("it does not know since when it is dead".into());
    }
    if !is_open && is_dead && since > 0 && now.saturating_sub(since) > FORGOTTEN_NS {
        let minutes = now.saturating_sub(since) / 60_000_000_000;
        problems.push(format!("no file has named a byte of it for {minutes} minutes, and it is still there"));
    }
    Ok(())
}

/// A page of what the records place on a datanode.
pub(crate) fn node(view: &dyn View, cred: &Cred, ask: &CheckNode) -> Fallible<answer::Result> {
    root_only(cred)?;
    let limit = if ask.limit == 0 { MAX_PLACED } else { MAX_PLACED.min(ask.limit as usize) };
    let mut ids = Vec::new();
    let mut page =
        NodeCheck { next_chunk: records::meta(view)?.unwrap_or_default().next_chunk, ..Default::default() };
    let (start, end) = (key::node_chunk(ask.node, ask.from), key::after(u64::from(ask.node)));
    view.scan(Table::NodeChunk, &start, &end, &mut |at, _| {
        let id = key::number(at, 1).unwrap_or(0);
        if ids.len() >= limit {
            page.next = id;
            return ControlFlow::Break(());
        }
        ids.push(id);
        ControlFlow::Continue(())
    })?;
    for id in ids {
        // An index entry without a record is told by its state, which is none.
        let record = records::chunk(view, id)?.unwrap_or_default();
        page.replicas.push(PlacedReplica {
            chunk: id,
            state: record.state,
            length: record.length,
            // Nobody counts on a replica of garbage, and nobody makes up for one that is gone.
            dropping: record.dropping.contains(&ask.node) || records::is_dead(&record),
        });
    }
    Ok(answer::Result::NodeCheck(page))
}

fn root_only(cred: &Cred) -> Fallible<()> {
    if cred.uid == 0 {
        return Ok(());
    }
    Err(ErrorCode::NotPermitted.because("only root may check the whole cluster").into())
}
