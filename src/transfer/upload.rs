//! Stores the content of one file in the cluster so that it appears whole or not at all.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use cairn_client::{Error, ErrorCode, File, fs};
use futures::{Stream, StreamExt};

use super::{PIECE, Progress, SMALL, Temporaries, copy_extended};
use crate::client::Client;
use crate::exit::PathError;
use crate::paths::{ClusterPath, by_inode, temporary_name};

/// The file to be.
#[derive(Debug, Clone)]
pub struct NewFile {
    /// Its final name.
    pub path: ClusterPath,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its modification time; none: now.
    pub mtime_ns: Option<i64>,
    /// Replace what has the name now.
    pub overwrite: bool,
    /// Return only when it is on the disks.
    pub sync: bool,
}

/// Stores `pieces` as `new`.
pub async fn store<S>(
    client: &Client,
    new: &NewFile,
    pieces: S,
    temporaries: &Temporaries,
    progress: &Progress,
) -> Result<fs::Attr, PathError>
where
    S: Stream<Item = Result<Bytes, PathError>> + Send,
{
    let mut pieces = pin!(pieces);
    let mut head: Vec<Bytes> = Vec::new();
    let mut held = 0;
    while held <= SMALL {
        match pieces.next().await {
            Some(piece) => {
                let piece = piece?;
                held += piece.len();
                head.push(piece);
            }
            None => {
                let attr = store_small(client, new, joined(head, held)).await?;
                progress.moved(held as u64);
                progress.file_done();
                return Ok(attr);
            }
        }
    }
    let rest = futures::stream::iter(head.into_iter().map(Ok)).chain(pieces);
    let attr = store_large(client, new, rest, temporaries, progress).await?;
    progress.file_done();
    Ok(attr)
}

fn joined(mut pieces: Vec<Bytes>, length: usize) -> Bytes {
    if pieces.len() == 1
        && let Some(only) = pieces.pop()
    {
        return only;
    }
    let mut whole = BytesMut::with_capacity(length);
    for piece in &pieces {
        whole.extend_from_slice(piece);
    }
    whole.freeze()
}

async fn store_small(client: &Client, new: &NewFile, content: Bytes) -> Result<fs::Attr, PathError> {
    let attr = client
        .cluster
        .put_small(&client.cred, in_place(new), content, new.mtime_ns, new.sync)
        .await
        .map_err(PathError::remote(&new.path))?;
    dress(client, new, attr).await
}

/// How to make `new` in one step: over what has its name, or not at all.
pub(super) fn in_place(new: &NewFile) -> fs::CreateFile {
    fs::CreateFile {
        at: Some(new.path.node()),
        mode: new.mode,
        uid: new.uid,
        gid: new.gid,
        exclusive: !new.overwrite,
        truncate: new.overwrite,
        ..Default::default()
    }
}

/// A file that was replaced in place keeps its mode and owner unless they are to be the source's.
pub(super) async fn dress(client: &Client, new: &NewFile, attr: fs::Attr) -> Result<fs::Attr, PathError> {
    let other = attr.mode != new.mode || attr.uid != new.uid || attr.gid != new.gid;
    if new.overwrite && new.mtime_ns.is_some() && other {
        return set_identity(client, new, attr.inode).await;
    }
    Ok(attr)
}

async fn set_identity(client: &Client, new: &NewFile, inode: u64) -> Result<fs::Attr, PathError> {
    let ask = fs::SetAttr {
        at: Some(by_inode(inode)),
        mode: Some(new.mode),
        uid: Some(new.uid),
        gid: Some(new.gid),
        mtime_ns: new.mtime_ns,
        ..Default::default()
    };
    client.cluster.set_attr(&client.cred, ask).await.map_err(PathError::remote(&new.path))
}

async fn store_large<S>(
    client: &Client,
    new: &NewFile,
    pieces: S,
    temporaries: &Temporaries,
    progress: &Progress,
) -> Result<fs::Attr, PathError>
where
    S: Stream<Item = Result<Bytes, PathError>> + Send,
{
    let fill = |file: File| async move {
        let mut pieces = pin!(pieces);
        let mut offset = 0;
        while let Some(piece) = pieces.next().await {
            let mut piece = piece?;
            while !piece.is_empty() {
                let part = piece.split_to(piece.len().min(PIECE));
                let length = part.len() as u64;
                file.write_at(offset, part).await.map_err(PathError::remote(&new.path))?;
                offset += length;
                progress.moved(length);
            }
        }
        Ok(())
    };
    under_temporary_name(client, new, temporaries, fill).await
}

/// Fills a file under a temporary name in the same directory, then renames it.
pub(super) async fn under_temporary_name<F>(
    client: &Client,
    new: &NewFile,
    temporaries: &Temporaries,
    fill: impl FnOnce(File) -> F + Send,
) -> Result<fs::Attr, PathError>
where
    F: Future<Output = Result<(), PathError>> + Send,
{
    let Some(name) = new.path.name() else {
        return Err(PathError::Remote(new.path.clone(), ErrorCode::IsDirectory.into()));
    };
    // Refuse before moving gigabytes, not after.
    let old = client.look(&new.path, false).await?;
    match &old {
        Some(attr) if attr.kind() == fs::FileKind::Directory => {
            return Err(PathError::Remote(new.path.clone(), ErrorCode::IsDirectory.into()));
        }
        Some(_) if !new.overwrite => {
            return Err(PathError::Remote(new.path.clone(), ErrorCode::Exists.into()));
        }
        _ => {}
    }
    let temporary = new.path.parent().join(&temporary_name(name, "put"));
    temporaries.begin(&temporary);
    let old = old.filter(|attr| attr.kind() == fs::FileKind::File);
    match fill_and_rename(client, new, old.as_ref(), &temporary, fill).await {
        Ok(attr) => {
            temporaries.done(&temporary);
            Ok(attr)
        }
        Err(error) => {
            temporaries.discard(&client.cluster, &client.cred, &temporary).await;
            Err(error)
        }
    }
}

async fn fill_and_rename<F>(
    client: &Client,
    new: &NewFile,
    old: Option<&fs::Attr>,
    temporary: &ClusterPath,
    fill: impl FnOnce(File) -> F + Send,
) -> Result<fs::Attr, PathError>
where
    F: Future<Output = Result<(), PathError>> + Send,
{
    let refused = |error: Error| PathError::Remote(new.path.clone(), error);
    let ask = fs::CreateFile {
        at: Some(temporary.node()),
        // Nobody is to read on the way what he cannot read in the end.
        mode: old.map_or(new.mode, |old| old.mode & 0o777),
        uid: new.uid,
        gid: new.gid,
        exclusive: true,
        replication: old.map_or(0, |old| old.replication),
        ..Default::default()
    };
    let created = client.cluster.create(&client.cred, ask).await.map_err(refused)?;
    let file = client.cluster.open(&client.cred, created.attr.unwrap_or_default());
    fill(file.clone()).await?;
    let mut attr = if new.sync { file.sync().await } else { file.flush().await }.map_err(refused)?;
    if let Some(old) = old {
        attr = dress_as(client, new, old, attr).await?;
    }
    if let Some(mtime_ns) = new.mtime_ns {
        let ask = fs::SetAttr {
            at: Some(by_inode(attr.inode)),
            mode: old.map(|_| new.mode),
            mtime_ns: Some(mtime_ns),
            ..Default::default()
        };
        attr = client.cluster.set_attr(&client.cred, ask).await.map_err(refused)?;
    }
    let mode = if new.overwrite { fs::RenameMode::Replace } else { fs::RenameMode::NoReplace };
    let ask = fs::Rename { from: Some(temporary.node()), to: Some(new.path.node()), mode: mode as i32 };
    client.cluster.rename(&client.cred, ask).await.map_err(refused)?;
    Ok(attr)
}

/// Gives `made` what a file keeps that is written over: it is to take the place of `old`.
async fn dress_as(
    client: &Client,
    new: &NewFile,
    old: &fs::Attr,
    made: fs::Attr,
) -> Result<fs::Attr, PathError> {
    let (cred, cluster) = (&client.cred, &client.cluster);
    let refused = |error: Error| PathError::Remote(new.path.clone(), error);
    copy_extended(client, by_inode(old.inode), by_inode(made.inode), &new.path).await?;
    let at = Some(by_inode(made.inode));
    // With a modification time, the owner is the source's, too.
    if new.mtime_ns.is_none() && (made.uid, made.gid) != (old.uid, old.gid) {
        let (uid, gid) = (Some(old.uid), Some(old.gid));
        match cluster.set_attr(cred, fs::SetAttr { at: at.clone(), uid, gid, ..Default::default() }).await {
            // Only root gives files away: what somebody else has replaced is his.
            Err(error) if matches!(error.code, ErrorCode::NotPermitted | ErrorCode::PermissionDenied) => {}
            result => drop(result.map_err(refused)?),
        }
    }
    let ask = fs::SetAttr { at, mode: Some(old.mode), ..Default::default() };
    cluster.set_attr(cred, ask).await.map_err(refused)
}
