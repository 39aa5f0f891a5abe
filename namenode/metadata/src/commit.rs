//! Committing: the mutation that makes appended bytes visible.

use cairn_proto::ErrorCode;
use cairn_proto::fs::{
    Attr, CommitExtents, CommitMode, CommitOutcome, Cred, Extent, FileCommit, FileKind, FileOutcome,
    file_commit, file_outcome, outcome,
};
use cairn_proto::limits::{MAX_COMMIT_EXTENTS, MAX_FILE_SIZE};
use cairn_proto::snapshot::is_inside;
use cairn_proto::store::Inode;

use crate::core::Core;
use crate::fault::{Fallible, settle};
use crate::permission::{SETGID, SETUID, WRITE, require};
use crate::resolve::Found;
use crate::{chunk, delegation, extents, namespace, records, usage};

/// Commits several files. Each is committed whole or refused alone.
pub(crate) fn commit(
    core: &mut Core,
    cred: &Cred,
    session: u64,
    ask: &CommitExtents,
) -> Fallible<outcome::Result> {
    let mut files = Vec::with_capacity(ask.files.len());
    for file in &ask.files {
        let point = core.savepoint();
        let done =
            commit_file(core, cred, session, file).and_then(|outcome| usage::settle(core).map(|()| outcome));
        files.push(match settle(done)? {
            Ok(outcome) => outcome,
            // All of it will be tried again.
            Err(error) if error.code == ErrorCode::Delegated => return Err(error.into()),
            Err(error) => {
                core.roll_back(point);
                FileOutcome { result: Some(file_outcome::Result::Error(error.into())), offset: 0 }
            }
        });
    }
    Ok(outcome::Result::Commit(CommitOutcome { files }))
}

fn commit_file(core: &mut Core, cred: &Cred, session: u64, ask: &FileCommit) -> Fallible<FileOutcome> {
    if ask.extents.len() > MAX_COMMIT_EXTENTS {
        return Err(ErrorCode::TooLarge.because(format!("{} extents", ask.extents.len())).into());
    }
    let (id, mut inode) = target(core, cred, session, ask)?;
    delegation::hold_to_quotas(core, session, &inode)?;
    let allocated = inode.allocated;
    let base = if ask.mode() == CommitMode::Append { inode.size } else { 0 };
    let mut size = inode.size.max(ask.size.unwrap_or(0));
    for extent in &ask.extents {
        let end = place(core, session, (id, &mut inode), base, extent)?;
        size = size.max(end);
    }
    if size > MAX_FILE_SIZE {
        return Err(ErrorCode::FileTooBig.because(format!("{size} bytes")).into());
    }
    inode.size = size;
    if let Some(atime_ns) = ask.atime_ns {
        inode.atime_ns = atime_ns;
    }
    let attr = written(core, cred, Found { id, inode }, allocated, ask.mtime_ns);
    Ok(FileOutcome { result: Some(file_outcome::Result::Attr(attr)), offset: base })
}

/// Stores a file whose content changed, with all that a write changes besides. It held `allocated` bytes before.
pub(crate) fn written(
    core: &mut Core,
    cred: &Cred,
    mut file: Found,
    allocated: u64,
    mtime_ns: Option<i64>,
) -> Attr {
    usage::resized(core, &file, allocated);
    file.inode.mtime_ns = mtime_ns.unwrap_or(core.stamp());
    if cred.uid != 0 {
        file.inode.mode &= !(SETUID | SETGID);
    }
    core.touch(&mut file.inode);
    core.set_inode(file.id, &file.inode);
    records::attr(file.id, &file.inode)
}

fn target(core: &mut Core, cred: &Cred, session: u64, ask: &FileCommit) -> Fallible<(u64, Inode)> {
    match &ask.target {
        Some(file_commit::Target::Create(create)) => {
            let (id, _) = namespace::create::make_or_find(core, cred, session, create)?;
            Ok((id, core.inode(id)?))
        }
        Some(file_commit::Target::Inode(id)) => Ok((*id, content_of(core, cred, *id, WRITE)?)),
        None => Err(ErrorCode::Malformed.because("a commit names no file").into()),
    }
}

/// A regular file whose content `cred` may use as `wanted`. Its owner always may: the file may have been opened
/// before its mode was changed.
pub(crate) fn content_of(core: &Core, cred: &Cred, id: u64, wanted: u32) -> Fallible<Inode> {
    if is_inside(id) {
        return Err(ErrorCode::ReadOnly.because(format!("inode {id}")).into());
    }
    let inode = core.inode(id)?;
    if inode.kind() == FileKind::Directory {
        return Err(ErrorCode::IsDirectory.because(format!("inode {id}")).into());
    }
    if inode.kind() != FileKind::File {
        return Err(ErrorCode::Invalid.because(format!("inode {id} is not a regular file")).into());
    }
    if cred.uid != inode.uid {
        require(cred, &inode, wanted, &format!("inode {id}"))?;
    }
    Ok(inode)
}

/// Lays one extent over what is there and returns where it ends in the file.
fn place(
    core: &mut Core,
    session: u64,
    (id, inode): (u64, &mut Inode),
    base: u64,
    extent: &Extent,
) -> Fallible<u64> {
    chunk::admit(core, session, extent)?;
    chunk::raise_replication(core, extent.chunk, inode.replication)?;
    let start = base.checked_add(extent.file_offset);
    let end = start.and_then(|start| start.checked_add(extent.length)).filter(|&end| end <= MAX_FILE_SIZE);
    let (Some(start), Some(end)) = (start, end) else {
        let detail = format!("offset {} of inode {id}", extent.file_offset);
        return Err(ErrorCode::FileTooBig.because(detail).into());
    };
    extents::punch(core, id, inode, start, end)?;
    extents::insert(core, id, inode, Extent { file_offset: start, ..*extent })?;
    Ok(end)
}
