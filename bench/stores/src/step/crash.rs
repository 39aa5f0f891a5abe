//! A writer that is killed: files with content are made, renamed and removed until the end comes.
//!
//! It says on its standard output how far it is, one line a batch: `applied` or `durable`, and the batch's time,
//! which the store records in the same transaction.

use std::io::Write;

use cairn_metadata::store::{Durability, Store};
use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    AllocateChunk, CommitExtents, CreateFile, ExpireSession, Extent, FileCommit, NodeRef, Rename, Unlink,
    file_commit, outcome,
};
use cairn_proto::{ROOT_INODE, limits};

use crate::Failure;
use crate::measure::Figures;
use crate::population::mixed;
use crate::writer::{Writer, accepted};

/// Names in use: few, so that they are often made, replaced and removed.
const NAMES: u64 = 4_000;
const FILE_BYTES: u64 = 4_096;

struct Chunk {
    id: u64,
    length: u64,
}

fn at(name: u64) -> Option<NodeRef> {
    Some(NodeRef { inode: ROOT_INODE, path: format!("file-{}", name % NAMES).into_bytes().into() })
}

fn allocate(writer: &mut Writer<'_>) -> Result<Chunk, Failure> {
    let ask = AllocateChunk { targets: vec![1, 2, 3], ..AllocateChunk::default() };
    match accepted(writer.run(vec![Op::Allocate(ask)])?.outcomes.pop())? {
        outcome::Result::Allocated(allocated) => {
            Ok(Chunk { id: allocated.chunk.unwrap_or_default().chunk, length: 0 })
        }
        other => Err(Failure::Wrong(format!("allocating a chunk came to {other:?}"))),
    }
}

fn write_file(name: u64, chunk: &mut Chunk) -> Op {
    let create = CreateFile { at: at(name), mode: 0o644, truncate: true, ..CreateFile::default() };
    let extent = Extent { file_offset: 0, chunk: chunk.id, chunk_offset: chunk.length, length: FILE_BYTES };
    chunk.length += FILE_BYTES;
    let target = Some(file_commit::Target::Create(create));
    let file = FileCommit { target, extents: vec![extent], ..FileCommit::default() };
    Op::Commit(CommitExtents { files: vec![file] })
}

/// Changes the namespace until the process is killed.
pub fn crash(store: &dyn Store) -> Result<Figures, Failure> {
    let mut writer = Writer::begin(store)?;
    for session in 1..writer.session {
        writer.lead(Op::ExpireSession(ExpireSession { session }))?;
    }
    let mut out = std::io::stdout().lock();
    let mut chunk = allocate(&mut writer)?;
    let mut random = mixed(writer.time_ns.unsigned_abs());
    loop {
        if chunk.length + 64 * FILE_BYTES > limits::CHUNK_SIZE {
            chunk = allocate(&mut writer)?;
        }
        let mut ops = Vec::new();
        for _ in 0..=random % 64 {
            random = mixed(random);
            let (name, other) = (random >> 8, random >> 32);
            // Some are refused, because there is no such name: a refusal must leave no trace either.
            ops.push(match random % 8 {
                0 => Op::Unlink(Unlink { at: at(name) }),
                1 => Op::Rename(Rename { from: at(name), to: at(other), ..Rename::default() }),
                _ => write_file(name, &mut chunk),
            });
        }
        let word = match writer.run(ops)?.durability {
            Durability::Applied => "applied",
            Durability::Durable => "durable",
        };
        writeln!(out, "{word} {}", writer.time_ns).and_then(|()| out.flush()).map_err(Failure::Io)?;
    }
}
