//! Compaction in the state machine: a chunk that is born sealed, and extents that change over to it.
//!
//! A swap names pieces of chunks, never files: which extents lie in a piece is looked up where it is applied. So
//! whatever overwrote, truncated, deleted or cloned the bytes meanwhile has simply won, and an extent is moved because
//! it is *these* bytes, in however many files they are.

use std::ops::ControlFlow;

use cairn_proto::ErrorCode;
use cairn_proto::fs::{
    BeginCompaction, ChunkAllocated, ChunkPiece, ChunkState, Extent, ExtentsSwapped, SwapExtents, outcome,
};
use cairn_proto::limits::MAX_REPLICATION;
use cairn_proto::store::Chunk;

use crate::core::Core;
use crate::fault::Fallible;
use crate::store::{StoreError, Table, View};
use crate::{chunk, extents, key, records};

/// Most extents one command moves: the log waits for it.
const MAX_EXTENTS: usize = 1024;
/// Most pieces one command names.
pub(crate) const MAX_PIECES: usize = 1024;

/// Allocates a chunk whose content is gathered from others. It is dead until a swap gives it live bytes, so that one
/// nobody swaps into is purged like any garbage.
pub(crate) fn begin(core: &mut Core, ask: &BeginCompaction) -> Fallible<outcome::Result> {
    let fits = (1..=core.meta.chunk_size).contains(&ask.length);
    if !fits || !(1..=MAX_REPLICATION).contains(&ask.replication) {
        let detail = format!("compaction of {} bytes into {} replicas", ask.length, ask.replication);
        return Err(ErrorCode::Invalid.because(detail).into());
    }
    let id = core.meta.next_chunk;
    core.meta.next_chunk += 1;
    core.meta.sealed_chunks += 1;
    let chunk = Chunk {
        state: ChunkState::Sealed.into(),
        length: ask.length,
        replication: ask.replication,
        dead_since_ns: core.now,
        ..Chunk::default()
    };
    core.set_chunk(id, &chunk);
    Ok(outcome::Result::Allocated(ChunkAllocated { chunk: Some(chunk::info(core, id, &chunk)?) }))
}

/// Moves extents into a gathered chunk. Times and versions of files stay: their content does.
pub(crate) fn swap(core: &mut Core, ask: &SwapExtents) -> Fallible<outcome::Result> {
    let into = core.chunk(ask.into)?;
    if into.state() != ChunkState::Sealed || ask.pieces.len() > MAX_PIECES {
        return Err(ErrorCode::Invalid
            .because(format!("{} pieces into chunk {}", ask.pieces.len(), ask.into))
            .into());
    }
    for piece in &ask.pieces {
        refuse_kept(core, piece.chunk)?;
    }
    let mut done = ExtentsSwapped::default();
    for piece in &ask.pieces {
        check_piece(core, piece, (ask.into, &into))?;
        let left = MAX_EXTENTS - done.extents as usize;
        let found = references(core, piece, left + 1)?;
        for reference in found.iter().take(left) {
            done.bytes += change_over(core, piece, reference, ask.into)?;
            done.extents += 1;
        }
        if found.len() > left {
            break;
        }
        done.pieces += 1;
    }
    Ok(outcome::Result::Swapped(done))
}

/// A chunk that snapshots have bytes of stays in any case: moving the others out of it frees nothing.
fn refuse_kept(core: &Core, chunk: u64) -> Fallible<()> {
    match records::chunk(core, chunk)? {
        Some(record) if record.kept_bytes > 0 => {
            Err(ErrorCode::Invalid.because(format!("snapshots have bytes of chunk {chunk}")).into())
        }
        _ => Ok(()),
    }
}

/// Bytes never move to where fewer replicas are counted on than they have or want.
fn check_piece(core: &Core, piece: &ChunkPiece, (id, into): (u64, &Chunk)) -> Fallible<()> {
    let end = |offset: u64| offset.checked_add(piece.length);
    let (old_end, new_end) = (end(piece.offset), end(piece.new_offset));
    // A chunk that is purged has no extents, and so nothing to move.
    let old = records::chunk(core, piece.chunk)?;
    let is_sound = piece.length > 0
        && piece.chunk != id
        && new_end.is_some_and(|end| end <= into.length)
        && old.as_ref().is_none_or(|old| {
            old.state() == ChunkState::Sealed && old_end.is_some_and(|end| end <= old.length)
        });
    if !is_sound {
        let detail = format!("{} bytes at {} of chunk {}", piece.length, piece.offset, piece.chunk);
        return Err(ErrorCode::Invalid.because(detail).into());
    }
    let wanted = old.map_or(0, |old| old.replicas.len().min(into.replication.max(1) as usize));
    if into.replicas.len() < wanted {
        let detail = format!("chunk {id} has {} replicas of {wanted}", into.replicas.len());
        return Err(ErrorCode::Invalid.because(detail).into());
    }
    Ok(())
}

/// An extent by its bytes and its file.
struct Reference {
    chunk_offset: u64,
    inode: u64,
    file_offset: u64,
    length: u64,
}

/// Extents that begin in a piece, at most `limit`.
fn references(view: &dyn View, piece: &ChunkPiece, limit: usize) -> Result<Vec<Reference>, StoreError> {
    let start = key::two(piece.chunk, piece.offset);
    let end = key::two(piece.chunk, piece.offset + piece.length);
    let mut found = Vec::new();
    view.scan(Table::ChunkRef, &start, &end, &mut |at, value| {
        if found.len() >= limit {
            return ControlFlow::Break(());
        }
        let number = |index| key::number(at, index).unwrap_or(0);
        found.push(Reference {
            chunk_offset: number(1),
            inode: number(2),
            file_offset: number(3),
            length: key::number(value, 0).unwrap_or(0),
        });
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Moves as much of an extent as lies in the piece. Returns its bytes.
fn change_over(core: &mut Core, piece: &ChunkPiece, reference: &Reference, into: u64) -> Fallible<u64> {
    let id = reference.inode;
    let start = reference.file_offset;
    let damaged = || StoreError::Damaged(format!("chunk {} is not where inode {id} has it", piece.chunk));
    let mut inode = records::inode(core, id)?.ok_or_else(damaged)?;
    let named = Extent {
        file_offset: start,
        chunk: piece.chunk,
        chunk_offset: reference.chunk_offset,
        length: reference.length,
    };
    if extents::touching(core, id, &inode, (start, start.saturating_add(1)), 1)? != [named] {
        return Err(damaged().into());
    }
    let skipped = reference.chunk_offset - piece.offset;
    let length = reference.length.min(piece.length - skipped);
    if core.meta.snapshots > 0 && length == reference.length {
        // Snapshots that have the extent as it is now have it where it goes to.
        chunk::raise_replication(core, into, inode.replication)?;
        extents::relocate(core, id, inode, &named, (into, piece.new_offset + skipped))?;
        return Ok(length);
    }
    extents::punch(core, id, &mut inode, start, start + length)?;
    let moved = Extent { file_offset: start, chunk: into, chunk_offset: piece.new_offset + skipped, length };
    extents::insert(core, id, &mut inode, moved)?;
    chunk::raise_replication(core, into, inode.replication)?;
    core.set_inode(id, &inode);
    Ok(length)
}
