//! Questions to the namespace. They change nothing and are answered from any consistent view.

use std::ops::ControlFlow;

use cairn_proto::fs::query::Op;
use cairn_proto::fs::{
    Answer, ClusterStatus, Cred, DirectoryEntry, FileKind, FsStats, GetLayout, GetXattr, Layout,
    ListDirectory, Listing, Names, NodeRef, Query, answer,
};
use cairn_proto::limits::{MAX_LAYOUT_PAGE, MAX_LIST_PAGE};
use cairn_proto::store::Dentry;
use cairn_proto::{ErrorCode, path};

use crate::fault::{Fallible, Fault, settle};
use crate::namespace::xattr;
use crate::permission::{READ, SEARCH, require};
use crate::resolve::{Found, resolve};
use crate::snapshot::inside;
use crate::store::{StoreError, Table, View, Visit};
use crate::{chunk, datanode, extents, fsck, key, lock, quota, records, snapshot, trash, usage};

/// Answers a question. Refusals are inside the answer; an error means the store failed.
///
/// What only the leader knows (liveness, free space, repair) is left at its default for the leader to add.
pub fn answer(view: &dyn View, cred: &Cred, query: &Query) -> Result<Answer, StoreError> {
    let result = match settle(ask_anywhere(view, cred, query))? {
        Ok(result) => result,
        Err(error) => answer::Result::Error(error.into()),
    };
    Ok(Answer { result: Some(result) })
}

/// As [`answer()`], but what is delegated to another session than `session` (0: the asker has none) is not shown:
/// `Delegated`.
pub fn answer_to(view: &dyn View, session: u64, cred: &Cred, query: &Query) -> Result<Answer, StoreError> {
    answer(&AskedBy { view, session }, cred, query)
}

/// A view as one session has it.
struct AskedBy<'a> {
    view: &'a dyn View,
    session: u64,
}

impl View for AskedBy<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.view.get(table, key)
    }

    fn scan(&self, table: Table, start: &[u8], end: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        self.view.scan(table, start, end, visit)
    }

    fn asker(&self) -> Option<u64> {
        Some(self.session)
    }
}

/// Answers a question about the present, or about a snapshot that its place leads into.
fn ask_anywhere(view: &dyn View, cred: &Cred, query: &Query) -> Fallible<answer::Result> {
    match ask(view, cred, query) {
        // Questions change nothing: their place is in a snapshot.
        Err(Fault::Refused(error)) if error.code == ErrorCode::ReadOnly => inside::ask(view, cred, query),
        answered => answered,
    }
}

/// Answers a question about one state of the namespace.
pub(crate) fn ask(view: &dyn View, cred: &Cred, query: &Query) -> Fallible<answer::Result> {
    match query.op.as_ref().ok_or_else(|| ErrorCode::Malformed.because("the query is empty"))? {
        Op::Stat(ask) => {
            let found = resolve(view, cred, &ask.at, ask.follow)?;
            Ok(answer::Result::Attr(records::attr(found.id, &found.inode)))
        }
        Op::Access(ask) => {
            let found = resolve(view, cred, &ask.at, ask.follow)?;
            require(cred, &found.inode, ask.mask & 0o7, "not for this user")?;
            Ok(answer::Result::Attr(records::attr(found.id, &found.inode)))
        }
        Op::ReadLink(ask) => read_link(view, cred, &ask.at),
        Op::List(ask) => list(view, cred, ask),
        Op::GetXattr(ask) => get_xattr(view, cred, ask),
        Op::ListXattr(ask) => {
            let found = resolve(view, cred, &ask.at, false)?;
            let names = xattr::all_names(view, &found)?.into_iter().map(Into::into).collect();
            Ok(answer::Result::Names(Names { names }))
        }
        Op::Layout(ask) => layout(view, cred, ask),
        Op::Chunk(ask) => {
            let record = records::chunk(view, ask.chunk)?
                .ok_or_else(|| ErrorCode::ChunkUnknown.because(format!("chunk {}", ask.chunk)))?;
            Ok(answer::Result::Chunk(chunk::info(view, ask.chunk, &record)?))
        }
        Op::GetLock(ask) => Ok(answer::Result::Lock(lock::conflict(view, ask)?)),
        Op::StatFs(ask) => {
            let limits = quota::above_inode(view, ask.inode)?;
            Ok(answer::Result::Fs(FsStats { limits, ..stats(view)? }))
        }
        Op::Status(_) => status(view),
        Op::CheckFile(ask) => fsck::file(view, cred, ask),
        Op::CheckChunks(ask) => fsck::chunks(view, cred, ask),
        Op::CheckNode(ask) => fsck::node(view, cred, ask),
        Op::Usage(ask) => usage::usage(view, cred, ask),
        Op::ListTrash(ask) => trash::list(view, cred, ask),
        Op::ListQuotas(ask) => quota::list(view, cred, ask),
        Op::ListSnapshots(ask) => snapshot::list(view, cred, ask),
    }
}

fn read_link(view: &dyn View, cred: &Cred, at: &Option<NodeRef>) -> Fallible<answer::Result> {
    let found = resolve(view, cred, at, false)?;
    if found.inode.kind() != FileKind::Symlink {
        return Err(ErrorCode::Invalid.because("not a symbolic link").into());
    }
    Ok(answer::Result::Bytes(found.inode.target))
}

fn get_xattr(view: &dyn View, cred: &Cred, ask: &GetXattr) -> Fallible<answer::Result> {
    xattr::check_name(&ask.name)?;
    let found = resolve(view, cred, &ask.at, false)?;
    if ask.name.starts_with(b"user.") {
        require(cred, &found.inode, READ, &path::shown(&ask.name))?;
    }
    let value = xattr::value(view, &found, &ask.name)?
        .ok_or_else(|| ErrorCode::NoAttribute.because(path::shown(&ask.name)))?;
    Ok(answer::Result::Bytes(value.into()))
}

fn list(view: &dyn View, cred: &Cred, ask: &ListDirectory) -> Fallible<answer::Result> {
    let directory = resolve(view, cred, &ask.at, true)?;
    if directory.inode.kind() != FileKind::Directory {
        return Err(ErrorCode::NotDirectory.into());
    }
    require(cred, &directory.inode, READ | SEARCH, "no read permission in the directory")?;
    let limit = if ask.limit == 0 { MAX_LIST_PAGE } else { ask.limit.min(MAX_LIST_PAGE) } as usize;
    let mut start = key::named(directory.id, &ask.after);
    if !ask.after.is_empty() {
        // The smallest key after the given name.
        start.push(0);
    }
    let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut end = true;
    view.scan(Table::Dentry, &start, &key::after(directory.id), &mut |at, value| {
        if rows.len() >= limit {
            end = false;
            return ControlFlow::Break(());
        }
        rows.push((at[8..].to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })?;
    let mut entries = Vec::with_capacity(rows.len());
    for (name, value) in rows {
        let dentry: Dentry = records::decode(Table::Dentry, &value)?;
        let inode = match records::inode(view, dentry.inode)? {
            Some(inode) => inode,
            // Somebody asks for what the snapshot never had.
            None if view.snapshot().is_some() => continue,
            None => {
                let detail = format!("a name leads to missing inode {}", dentry.inode);
                return Err(StoreError::Damaged(detail).into());
            }
        };
        entries.push(DirectoryEntry { name: name.into(), attr: Some(records::attr(dentry.inode, &inode)) });
    }
    let attr = records::attr(directory.id, &directory.inode);
    Ok(answer::Result::Listing(Listing { entries, end, directory: Some(attr) }))
}

fn layout(view: &dyn View, cred: &Cred, ask: &GetLayout) -> Fallible<answer::Result> {
    let Found { id, inode } = resolve(view, cred, &ask.at, ask.follow)?;
    match inode.kind() {
        FileKind::File => {}
        FileKind::Directory => return Err(ErrorCode::IsDirectory.into()),
        _ => return Err(ErrorCode::Invalid.because("not a regular file").into()),
    }
    if cred.uid != inode.uid {
        require(cred, &inode, READ, "no read permission")?;
    }
    let limit = if ask.limit == 0 { MAX_LAYOUT_PAGE } else { ask.limit.min(MAX_LAYOUT_PAGE) } as usize;
    let range = (ask.offset, ask.offset.saturating_add(ask.length));
    let mut found = extents::touching(view, id, &inode, range, limit + 1)?;
    let end = found.len() <= limit;
    found.truncate(limit);
    let ids: std::collections::BTreeSet<u64> = found.iter().map(|extent| extent.chunk).collect();
    let mut chunks = Vec::with_capacity(ids.len());
    for chunk_id in ids {
        let record = records::chunk(view, chunk_id)?
            .ok_or_else(|| StoreError::Damaged(format!("an extent leads to missing chunk {chunk_id}")))?;
        chunks.push(chunk::info(view, chunk_id, &record)?);
    }
    let attr = records::attr(id, &inode);
    Ok(answer::Result::Layout(Layout { attr: Some(attr), extents: found, chunks, end }))
}

fn stats(view: &dyn View) -> Result<FsStats, StoreError> {
    let meta = records::meta(view)?.unwrap_or_default();
    Ok(FsStats {
        inodes: meta.files + meta.directories,
        chunks: meta.open_chunks + meta.sealed_chunks,
        live_bytes: meta.live_bytes,
        snapshots: meta.snapshots,
        kept_bytes: meta.kept_bytes,
        default_replication: meta.default_replication,
        chunk_size: meta.chunk_size,
        cluster_id: meta.cluster_id,
        ..FsStats::default()
    })
}

fn status(view: &dyn View) -> Fallible<answer::Result> {
    let meta = records::meta(view)?.unwrap_or_default();
    Ok(answer::Result::Status(ClusterStatus {
        fs: Some(stats(view)?),
        datanodes: datanode::list(view)?,
        open_chunks: meta.open_chunks,
        sealed_chunks: meta.sealed_chunks,
        sessions: meta.sessions,
        files: meta.files,
        directories: meta.directories,
        ..ClusterStatus::default()
    }))
}
