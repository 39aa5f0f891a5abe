//! What is checked before anything is proposed: the log must not carry what apply would only throw away.

use cairn_proto::control::Write;
use cairn_proto::fs::{
    AllocateChunk, Command, CommitExtents, CreateFile, CreateSnapshot, Cred, FileCommit, Mutation, NodeRef,
    RemoveSnapshot, Series, clone_range, file_commit, mutation,
};
use cairn_proto::limits::{
    MAX_COMMIT_EXTENTS, MAX_DEEDS, MAX_FILE_READS, MAX_NAME, MAX_PATH, MAX_REPLICATION, MAX_RESERVED_INODES,
    MAX_XATTR_VALUE,
};
use cairn_proto::{Error, ErrorCode, Result};

/// Most groups of one caller (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;
/// Most inodes closed by one mutation.
const MAX_CLOSES: usize = 4096;
/// Longest description of a client, in bytes.
const MAX_CLIENT: usize = 256;
/// Most datanodes a client may exclude.
const MAX_EXCLUDED: usize = 1024;

/// A client's write as a command, if it is well-formed and clients may ask for it.
/// `owner` is whose the session is that it may open.
pub fn command(session: u64, owner: &str, cred: Option<Cred>, write: Write) -> Result<Command> {
    let op = write.mutation.and_then(|mutation| mutation.op);
    let mut op = op.ok_or_else(|| ErrorCode::Malformed.because("a write without a mutation"))?;
    check_cred(cred.as_ref())?;
    check(&op)?;
    if let mutation::Op::OpenSession(ask) = &mut op {
        owner.clone_into(&mut ask.owner);
    }
    let opens = matches!(op, mutation::Op::OpenSession(_));
    if session == 0 && !opens {
        return Err(ErrorCode::Malformed.because("a mutation needs a session"));
    }
    Ok(Command {
        // A session is opened under none: it does not exist yet.
        session: if opens { 0 } else { session },
        seq: if opens { 0 } else { write.seq },
        acked: if opens { 0 } else { write.acked },
        cred,
        mutation: Some(Mutation { op: Some(op) }),
    })
}

/// Checks who asks.
pub fn check_cred(cred: Option<&Cred>) -> Result<()> {
    match cred {
        Some(cred) if cred.groups.len() > MAX_GROUPS => Err(ErrorCode::TooLarge.because("too many groups")),
        _ => Ok(()),
    }
}

fn check(op: &mutation::Op) -> Result<()> {
    use mutation::Op;
    match op {
        Op::Create(ask) => create(ask),
        Op::Mkdir(ask) => path(&ask.at),
        Op::Mknod(ask) => path(&ask.at),
        Op::Symlink(ask) => {
            path(&ask.at)?;
            at_most(ask.target.len(), MAX_PATH, ErrorCode::NameTooLong, "the link's target")
        }
        Op::Link(ask) => path(&ask.from).and_then(|()| path(&ask.at)),
        Op::Rename(ask) => path(&ask.from).and_then(|()| path(&ask.to)),
        Op::Unlink(ask) => path(&ask.at),
        Op::Rmdir(ask) => path(&ask.at),
        Op::SetAttr(ask) => path(&ask.at),
        Op::SetXattr(ask) => {
            path(&ask.at)?;
            at_most(ask.name.len(), MAX_NAME, ErrorCode::NameTooLong, "the attribute's name")?;
            at_most(ask.value.len(), MAX_XATTR_VALUE, ErrorCode::TooLarge, "the attribute's value")
        }
        Op::RemoveXattr(ask) => {
            path(&ask.at)?;
            at_most(ask.name.len(), MAX_NAME, ErrorCode::NameTooLong, "the attribute's name")
        }
        Op::MarkRead(ask) => {
            at_most(ask.files.len(), MAX_FILE_READS, ErrorCode::TooLarge, "files that were read")
        }
        Op::SetQuota(ask) => path(&ask.at),
        Op::Discard(ask) => path(&ask.at),
        Op::Restore(ask) if ask.to.is_some() => path(&ask.to),
        Op::Restore(_) | Op::PurgeTrash(_) | Op::SetTrash(_) => Ok(()),
        Op::CreateSnapshot(CreateSnapshot { at, name }) | Op::RemoveSnapshot(RemoveSnapshot { at, name }) => {
            path(at)?;
            at_most(name.len(), MAX_NAME, ErrorCode::NameTooLong, "the snapshot's name")
        }
        Op::SetReplication(ask) => path(&ask.at).and_then(|()| replication(ask.replication)),
        Op::Allocate(ask) => allocate(ask),
        Op::Commit(ask) => commit(ask),
        Op::Close(ask) => at_most(ask.inodes.len(), MAX_CLOSES, ErrorCode::TooLarge, "inodes to close"),
        Op::OpenSession(ask) => {
            at_most(ask.client.len(), MAX_CLIENT, ErrorCode::TooLarge, "the client's description")
        }
        Op::CloneRange(ask) => match &ask.target {
            Some(clone_range::Target::Create(ask)) => create(ask),
            _ => Ok(()),
        },
        Op::ReserveInodes(ask) => at_most(
            ask.count as usize,
            MAX_RESERVED_INODES as usize,
            ErrorCode::TooLarge,
            "inodes to reserve",
        ),
        Op::Series(ask) => series(ask),
        Op::HandBack(_) => Err(ErrorCode::NotPermitted.because("directories are handed back in order")),
        Op::ClearRange(_) | Op::Seal(_) | Op::Open(_) | Op::CloseSession(_) | Op::SetLock(_) => Ok(()),
        Op::FormCluster(_)
        | Op::RegisterDatanode(_)
        | Op::SetDatanodeState(_)
        | Op::ExpireSession(_)
        | Op::AddReplica(_)
        | Op::DropReplica(_)
        | Op::ForgetReplica(_)
        | Op::PurgeChunk(_)
        | Op::RecordDigest(_)
        | Op::BeginCompaction(_)
        | Op::SwapExtents(_)
        | Op::PurgeSnapshot(_) => Err(ErrorCode::NotPermitted.because("only the leader itself may do this")),
    }
}

/// What deeds may be is checked where they are done.
fn series(ask: &Series) -> Result<()> {
    at_most(ask.deeds.len(), MAX_DEEDS, ErrorCode::TooLarge, "deeds")?;
    for deed in &ask.deeds {
        match deed.mutation.as_ref().and_then(|mutation| mutation.op.as_ref()) {
            Some(mutation::Op::Series(_)) | None => {
                return Err(ErrorCode::Malformed.because("a deed without an operation"));
            }
            Some(mutation::Op::HandBack(ask)) => {
                at_most(ask.directories.len(), MAX_DEEDS, ErrorCode::TooLarge, "directories")?;
            }
            Some(op) => check(op)?,
        }
    }
    Ok(())
}

fn at_most(found: usize, limit: usize, code: ErrorCode, what: &str) -> Result<()> {
    if found > limit {
        return Err(code.because(format!("{what}: {found}, at most {limit}")));
    }
    Ok(())
}

fn path(at: &Option<NodeRef>) -> Result<()> {
    let missing = || Error::new(ErrorCode::Malformed, "a mutation without its place");
    let at = at.as_ref().ok_or_else(missing)?;
    at_most(at.path.len(), MAX_PATH, ErrorCode::NameTooLong, "the path's bytes")
}

fn replication(wanted: u32) -> Result<()> {
    at_most(wanted as usize, MAX_REPLICATION as usize, ErrorCode::Invalid, "replicas")
}

fn create(ask: &CreateFile) -> Result<()> {
    path(&ask.at)?;
    replication(ask.replication)
}

fn allocate(ask: &AllocateChunk) -> Result<()> {
    replication(ask.replication)?;
    at_most(ask.exclude.len(), MAX_EXCLUDED, ErrorCode::TooLarge, "excluded datanodes")?;
    at_most(ask.client_host.len(), MAX_NAME, ErrorCode::NameTooLong, "the host's name")
}

fn commit(ask: &CommitExtents) -> Result<()> {
    for FileCommit { target, extents, .. } in &ask.files {
        at_most(extents.len(), MAX_COMMIT_EXTENTS, ErrorCode::TooLarge, "extents of one file")?;
        if let Some(file_commit::Target::Create(ask)) = target {
            create(ask)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cairn_proto::fs::{ExpireSession, Mkdir, OpenSession};

    use super::*;

    fn write(op: mutation::Op) -> Write {
        Write { seq: 7, acked: 3, mutation: Some(Mutation { op: Some(op) }) }
    }

    fn mkdir(path: Vec<u8>) -> mutation::Op {
        mutation::Op::Mkdir(Mkdir { at: Some(NodeRef { inode: 1, path: path.into() }), ..Mkdir::default() })
    }

    fn code(session: u64, op: mutation::Op) -> ErrorCode {
        command(session, "", None, write(op)).unwrap_err().code
    }

    #[test]
    fn a_command_keeps_its_session_and_numbers() {
        let command = command(5, "", None, write(mkdir(b"a".to_vec()))).unwrap();
        assert_eq!((command.session, command.seq, command.acked), (5, 7, 3));
    }

    #[test]
    fn what_only_the_leader_does_is_refused() {
        let op = mutation::Op::ExpireSession(ExpireSession { session: 1 });
        assert_eq!(code(5, op), ErrorCode::NotPermitted);
    }

    #[test]
    fn malformed_and_oversized_requests_are_refused() {
        assert_eq!(code(5, mkdir(vec![b'x'; MAX_PATH + 1])), ErrorCode::NameTooLong);
        assert_eq!(code(5, mutation::Op::Mkdir(Mkdir::default())), ErrorCode::Malformed);
        assert_eq!(code(0, mkdir(b"a".to_vec())), ErrorCode::Malformed);
        assert_eq!(command(5, "", None, Write::default()).unwrap_err().code, ErrorCode::Malformed);
        let op = mutation::Op::OpenSession(OpenSession {
            client: "x".repeat(MAX_CLIENT + 1),
            ..OpenSession::default()
        });
        assert_eq!(code(0, op), ErrorCode::TooLarge);
    }
}
