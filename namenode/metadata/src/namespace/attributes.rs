//! Mode, owner, times, size and replication of an inode.

use cairn_proto::ErrorCode;
use cairn_proto::fs::{ChunkState, Cred, FileKind, SetAttr, SetReplication, outcome};
use cairn_proto::limits::{MAX_FILE_SIZE, MAX_REPLICATION};

use crate::acl::Acl;
use crate::core::Core;
use crate::fault::Fallible;
use crate::permission::{SETGID, SETUID, WRITE, in_group, require, require_owner};
use crate::resolve::{Found, resolve};
use crate::{extents, records, usage};

pub(crate) fn set_attr(core: &mut Core, cred: &Cred, ask: &SetAttr) -> Fallible<outcome::Result> {
    let mut found = resolve(core, cred, &ask.at, ask.follow)?;
    if let Some(size) = ask.size {
        set_size(core, cred, &mut found, size)?;
    }
    if ask.uid.is_some() || ask.gid.is_some() {
        set_owner(cred, &mut found, ask.uid, ask.gid)?;
    }
    if let Some(mode) = ask.mode {
        set_mode(cred, &mut found, mode)?;
    }
    set_times(core, cred, &mut found, ask)?;
    core.touch(&mut found.inode);
    core.set_inode(found.id, &found.inode);
    Ok(outcome::Result::Attr(records::attr(found.id, &found.inode)))
}

fn set_size(core: &mut Core, cred: &Cred, found: &mut Found, size: u64) -> Fallible<()> {
    match found.inode.kind() {
        FileKind::File => {}
        FileKind::Directory => return Err(ErrorCode::IsDirectory.into()),
        _ => return Err(ErrorCode::Invalid.because("not a regular file").into()),
    }
    require(cred, &found.inode, WRITE, "no write permission")?;
    if size > MAX_FILE_SIZE {
        return Err(ErrorCode::FileTooBig.because(format!("{size} bytes")).into());
    }
    if size < found.inode.size {
        let allocated = found.inode.allocated;
        extents::punch(core, found.id, &mut found.inode, size, u64::MAX)?;
        usage::resized(core, found, allocated);
    }
    if cred.uid != 0 {
        found.inode.mode &= !(SETUID | SETGID);
    }
    found.inode.size = size;
    found.inode.mtime_ns = core.stamp();
    Ok(())
}

fn set_owner(cred: &Cred, found: &mut Found, uid: Option<u32>, gid: Option<u32>) -> Fallible<()> {
    require_owner(cred, &found.inode)?;
    if let Some(uid) = uid {
        if cred.uid != 0 && uid != found.inode.uid {
            return Err(ErrorCode::NotPermitted.because("only root gives files away").into());
        }
        found.inode.uid = uid;
    }
    if let Some(gid) = gid {
        if cred.uid != 0 && !in_group(cred, gid) {
            return Err(ErrorCode::NotPermitted.because("not a member of the group").into());
        }
        found.inode.gid = gid;
    }
    if found.inode.kind() != FileKind::Directory {
        found.inode.mode &= !SETUID;
        // Without group execute the bit means mandatory locking, which a change of owner leaves alone.
        if found.inode.mode & 0o010 != 0 {
            found.inode.mode &= !SETGID;
        }
    }
    Ok(())
}

fn set_mode(cred: &Cred, found: &mut Found, mode: u32) -> Fallible<()> {
    require_owner(cred, &found.inode)?;
    let outsider = cred.uid != 0 && !in_group(cred, found.inode.gid);
    let clear = if outsider && found.inode.kind() != FileKind::Directory { SETGID } else { 0 };
    found.inode.mode = mode & 0o7777 & !clear;
    if let Ok(Some(mut acl)) = Acl::decode(&found.inode.access_acl) {
        acl.follow_mode(mode);
        found.inode.access_acl = acl.encode().into();
    }
    Ok(())
}

fn set_times(core: &Core, cred: &Cred, found: &mut Found, ask: &SetAttr) -> Fallible<()> {
    let exact = ask.atime_ns.is_some() || ask.mtime_ns.is_some();
    if exact {
        require_owner(cred, &found.inode)?;
    } else if ask.atime_now || ask.mtime_now {
        // POSIX lets whoever may write set the times to "now".
        if require_owner(cred, &found.inode).is_err() {
            require(cred, &found.inode, WRITE, "neither owner nor writer")?;
        }
    }
    let now = |wanted: bool| wanted.then_some(core.stamp());
    if let Some(time) = ask.atime_ns.or(now(ask.atime_now)) {
        found.inode.atime_ns = time;
    }
    if let Some(time) = ask.mtime_ns.or(now(ask.mtime_now)) {
        found.inode.mtime_ns = time;
    }
    Ok(())
}

/// Sets the wanted replicas of a file and of the chunks it lies in.
///
/// A chunk shared with other files, or with snapshots, is never lowered on account of one of them.
pub(crate) fn set_replication(
    core: &mut Core,
    cred: &Cred,
    ask: &SetReplication,
) -> Fallible<outcome::Result> {
    let wanted = ask.replication;
    if wanted == 0 || wanted > MAX_REPLICATION {
        let detail = format!("replication {wanted}: from 1 to {MAX_REPLICATION}");
        return Err(ErrorCode::Invalid.because(detail).into());
    }
    let mut found = resolve(core, cred, &ask.at, true)?;
    require_owner(cred, &found.inode)?;
    if found.inode.kind() != FileKind::File {
        return Err(ErrorCode::Invalid.because("only regular files have replicas").into());
    }
    for (id, bytes) in extents::chunks_of(core, found.id, &found.inode)? {
        let mut chunk = core.chunk(id)?;
        let sole = chunk.state() == ChunkState::Sealed && chunk.live_bytes == bytes && chunk.kept_bytes == 0;
        if wanted > chunk.replication || (sole && wanted < chunk.replication) {
            chunk.replication = wanted;
            core.set_chunk(id, &chunk);
        }
    }
    found.inode.replication = wanted;
    core.touch(&mut found.inode);
    core.set_inode(found.id, &found.inode);
    Ok(outcome::Result::Attr(records::attr(found.id, &found.inode)))
}
