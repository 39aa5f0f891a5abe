//! Chunks and their replicas: allocation, sealing, live bytes, and which datanodes are counted on.

use cairn_proto::fs::{
    AddReplica, AllocateChunk, ChunkAllocated, ChunkInfo, ChunkState, DropReplica, ForgetReplica, PurgeChunk,
    RecordDigest, ReplicaInfo, SealChunk, outcome,
};
use cairn_proto::limits::{MAX_CHUNK_SIZE, MAX_REPLICATION};
use cairn_proto::store::Chunk;
use cairn_proto::{ErrorCode, fs};

use crate::core::Core;
use crate::fault::Fallible;
use crate::records;
use crate::store::{StoreError, Table, View};
use crate::{apply, key};

/// Most open chunks of one session.
const MAX_OPEN_CHUNKS: usize = 1024;

/// What is known of a chunk; liveness is the leader's to add.
pub(crate) fn info(view: &dyn View, id: u64, chunk: &Chunk) -> Result<ChunkInfo, StoreError> {
    let mut replicas = Vec::with_capacity(chunk.replicas.len());
    for &node in &chunk.replicas {
        let datanode = records::datanode(view, node)?.unwrap_or_default();
        replicas.push(ReplicaInfo {
            node,
            address: datanode.address,
            host: datanode.host,
            rack: datanode.rack,
            liveness: fs::Liveness::Unknown.into(),
            bad: false,
            capability: bytes::Bytes::new(),
        });
    }
    Ok(ChunkInfo {
        chunk: id,
        state: chunk.state,
        length: chunk.length,
        live_bytes: chunk.live_bytes,
        kept_bytes: chunk.kept_bytes,
        replication: chunk.replication,
        session: if chunk.state() == ChunkState::Open { chunk.session } else { 0 },
        replicas,
        blake3: chunk.blake3.clone(),
    })
}

pub(crate) fn allocate(core: &mut Core, session: u64, ask: &AllocateChunk) -> Fallible<outcome::Result> {
    let wanted = if ask.replication == 0 { core.meta.default_replication } else { ask.replication };
    if wanted > MAX_REPLICATION {
        return Err(ErrorCode::Invalid.because(format!("replication {wanted}")).into());
    }
    let mut targets = Vec::new();
    for &node in &ask.targets {
        if records::datanode(core, node)?.is_some() && !targets.contains(&node) {
            targets.push(node);
        }
    }
    if targets.is_empty() {
        return Err(ErrorCode::NoDatanodes.into());
    }
    if records::seconds(core, Table::SessionChunk, session)?.len() >= MAX_OPEN_CHUNKS {
        return Err(ErrorCode::Unavailable.because("the session has too many open chunks").into());
    }
    let id = core.meta.next_chunk;
    core.meta.next_chunk += 1;
    core.meta.open_chunks += 1;
    for &node in &targets {
        core.set(Table::NodeChunk, &key::node_chunk(node, id), Vec::new());
    }
    core.set(Table::SessionChunk, &key::two(session, id), Vec::new());
    let chunk = Chunk {
        state: ChunkState::Open.into(),
        session,
        replication: wanted,
        replicas: targets,
        dead_since_ns: core.now,
        ..Chunk::default()
    };
    core.set_chunk(id, &chunk);
    Ok(outcome::Result::Allocated(ChunkAllocated { chunk: Some(info(core, id, &chunk)?) }))
}

/// Seals for the chunk's own session. Sealing again at the same length succeeds.
pub(crate) fn seal(core: &mut Core, session: u64, ask: &SealChunk) -> Fallible<outcome::Result> {
    let chunk = core.chunk(ask.chunk)?;
    if chunk.session != session {
        return Err(ErrorCode::ChunkNotOwned.because(format!("chunk {}", ask.chunk)).into());
    }
    if chunk.state() == ChunkState::Sealed {
        if chunk.length == ask.length {
            return Ok(apply::NOTHING);
        }
        let detail = format!("chunk {} is sealed at {}, not {}", ask.chunk, chunk.length, ask.length);
        return Err(ErrorCode::ChunkSealed.because(detail).into());
    }
    if ask.length < chunk.length || ask.length > MAX_CHUNK_SIZE {
        let detail = format!("chunk {} has {} committed bytes", ask.chunk, chunk.length);
        return Err(ErrorCode::Invalid.because(detail).into());
    }
    seal_at(core, ask.chunk, chunk, ask.length);
    Ok(apply::NOTHING)
}

/// Seals every open chunk of a session that ends, at the length that is already committed.
pub(crate) fn seal_all_of(core: &mut Core, session: u64) -> Fallible<()> {
    for id in records::seconds(core, Table::SessionChunk, session)? {
        let chunk = core.chunk(id)?;
        let committed = chunk.length;
        seal_at(core, id, chunk, committed);
    }
    Ok(())
}

fn seal_at(core: &mut Core, id: u64, mut chunk: Chunk, length: u64) {
    core.remove(Table::SessionChunk, &key::two(chunk.session, id));
    core.meta.open_chunks -= 1;
    core.meta.sealed_chunks += 1;
    chunk.state = ChunkState::Sealed.into();
    chunk.length = length;
    if records::is_dead(&chunk) {
        chunk.dead_since_ns = core.now;
    }
    core.set_chunk(id, &chunk);
}

/// Refuses an extent that the session may not commit, and raises the committed length of an open chunk.
pub(crate) fn admit(core: &mut Core, session: u64, extent: &fs::Extent) -> Fallible<()> {
    let id = extent.chunk;
    let mut chunk = core.chunk(id)?;
    if chunk.session != session {
        return Err(ErrorCode::ChunkNotOwned.because(format!("chunk {id}")).into());
    }
    let end = extent.chunk_offset.saturating_add(extent.length);
    let most = if chunk.state() == ChunkState::Sealed { chunk.length } else { core.meta.chunk_size };
    if extent.length == 0 || end > most {
        let detail = format!("{} bytes at {} of chunk {id}", extent.length, extent.chunk_offset);
        return Err(ErrorCode::PastEnd.because(detail).into());
    }
    if end > chunk.length {
        chunk.length = end;
        core.set_chunk(id, &chunk);
    }
    Ok(())
}

/// Adds `change` to a chunk's live bytes.
pub(crate) fn count_live(core: &mut Core, id: u64, change: i64) -> Fallible<()> {
    let mut chunk = core.chunk(id)?;
    let Some(live) = chunk.live_bytes.checked_add_signed(change) else {
        return Err(StoreError::Damaged(format!("chunk {id} has fewer live bytes than extents")).into());
    };
    chunk.live_bytes = live;
    chunk.dead_since_ns = if records::is_dead(&chunk) { core.now } else { 0 };
    core.meta.live_bytes = core.meta.live_bytes.saturating_add_signed(change);
    core.set_chunk(id, &chunk);
    Ok(())
}

/// Adds `change` to the bytes of a chunk that are kept for snapshots.
pub(crate) fn count_kept(core: &mut Core, id: u64, change: i64) -> Result<(), StoreError> {
    let damaged = |what: &str| StoreError::Damaged(format!("chunk {id} {what}"));
    let mut chunk = records::chunk(core, id)?.ok_or_else(|| damaged("is gone, and a file names it"))?;
    let kept = chunk.kept_bytes.checked_add_signed(change);
    chunk.kept_bytes = kept.ok_or_else(|| damaged("keeps fewer bytes than snapshots name"))?;
    chunk.dead_since_ns = if records::is_dead(&chunk) { core.now } else { 0 };
    core.meta.kept_bytes = core.meta.kept_bytes.saturating_add_signed(change);
    core.set_chunk(id, &chunk);
    Ok(())
}

/// A chunk keeps as many replicas as the file that asks for most.
pub(crate) fn raise_replication(core: &mut Core, id: u64, wanted: u32) -> Fallible<()> {
    let mut chunk = core.chunk(id)?;
    if wanted > chunk.replication {
        chunk.replication = wanted;
        core.set_chunk(id, &chunk);
    }
    Ok(())
}

pub(crate) fn add_replica(core: &mut Core, ask: &AddReplica) -> Fallible<outcome::Result> {
    let mut chunk = core.chunk(ask.chunk)?;
    if chunk.state() != ChunkState::Sealed {
        return Err(ErrorCode::Invalid.because(format!("chunk {} is open", ask.chunk)).into());
    }
    if records::datanode(core, ask.node)?.is_none() || chunk.dropping.contains(&ask.node) {
        return Err(ErrorCode::Invalid.because(format!("no replica is wanted on node {}", ask.node)).into());
    }
    if !ask.blake3.is_empty() {
        if ask.blake3.len() != 32 || (!chunk.blake3.is_empty() && chunk.blake3 != ask.blake3) {
            return Err(ErrorCode::Corrupt
                .because(format!("chunk {} on node {}", ask.chunk, ask.node))
                .into());
        }
        chunk.blake3 = ask.blake3.clone();
    }
    if !chunk.replicas.contains(&ask.node) {
        chunk.replicas.push(ask.node);
        core.set(Table::NodeChunk, &key::node_chunk(ask.node, ask.chunk), Vec::new());
        core.set_chunk(ask.chunk, &chunk);
    }
    Ok(apply::NOTHING)
}

/// Stops counting on a replica. The last one stays listed even when it is bad: its data is never forgotten.
/// A replica nobody counts on is marked for deletion as well, so that it cannot be adopted meanwhile.
pub(crate) fn drop_replica(core: &mut Core, ask: &DropReplica) -> Fallible<outcome::Result> {
    let mut chunk = core.chunk(ask.chunk)?;
    if chunk.state() != ChunkState::Sealed {
        return Err(ErrorCode::Invalid.because(format!("chunk {} is open", ask.chunk)).into());
    }
    if chunk.dropping.contains(&ask.node) {
        return Ok(apply::NOTHING);
    }
    if chunk.replicas.contains(&ask.node) {
        let left = chunk.replicas.len() - 1;
        if left == 0 || (!ask.bad && left < chunk.replication as usize) {
            let detail = format!("only {left} replicas of chunk {} would stay", ask.chunk);
            return Err(ErrorCode::Invalid.because(detail).into());
        }
        chunk.replicas.retain(|&node| node != ask.node);
    } else if records::datanode(core, ask.node)?.is_none() {
        return Err(ErrorCode::Invalid.because(format!("no node {}", ask.node)).into());
    }
    chunk.dropping.push(ask.node);
    core.set(Table::NodeChunk, &key::node_chunk(ask.node, ask.chunk), Vec::new());
    core.set_chunk(ask.chunk, &chunk);
    Ok(apply::NOTHING)
}

pub(crate) fn forget_replica(core: &mut Core, ask: &ForgetReplica) -> Fallible<outcome::Result> {
    let mut chunk = core.chunk(ask.chunk)?;
    if chunk.dropping.contains(&ask.node) {
        chunk.dropping.retain(|&node| node != ask.node);
        core.remove(Table::NodeChunk, &key::node_chunk(ask.node, ask.chunk));
        core.set_chunk(ask.chunk, &chunk);
    }
    Ok(apply::NOTHING)
}

pub(crate) fn purge(core: &mut Core, ask: &PurgeChunk) -> Fallible<outcome::Result> {
    let chunk = core.chunk(ask.chunk)?;
    if chunk.state() != ChunkState::Sealed || !records::is_dead(&chunk) {
        return Err(ErrorCode::Invalid.because(format!("chunk {} is in use", ask.chunk)).into());
    }
    for node in chunk.replicas.iter().chain(&chunk.dropping) {
        core.remove(Table::NodeChunk, &key::node_chunk(*node, ask.chunk));
    }
    core.remove(Table::Chunk, &key::one(ask.chunk));
    core.meta.sealed_chunks -= 1;
    Ok(apply::NOTHING)
}

pub(crate) fn record_digest(core: &mut Core, ask: &RecordDigest) -> Fallible<outcome::Result> {
    let mut chunk = core.chunk(ask.chunk)?;
    if chunk.state() != ChunkState::Sealed || ask.blake3.len() != 32 || !chunk.replicas.contains(&ask.node) {
        return Err(ErrorCode::Invalid.because(format!("digest of chunk {}", ask.chunk)).into());
    }
    if chunk.blake3.is_empty() {
        chunk.blake3 = ask.blake3.clone();
        core.set_chunk(ask.chunk, &chunk);
    } else if chunk.blake3 != ask.blake3 {
        return Err(ErrorCode::Corrupt.because(format!("chunk {} on node {}", ask.chunk, ask.node)).into());
    }
    Ok(apply::NOTHING)
}
