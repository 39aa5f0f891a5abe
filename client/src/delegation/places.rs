//! What operations name: directories, names in them, and inodes by their numbers.

use cairn_proto::fs::{NodeRef, clone_range, file_commit, mutation};
use cairn_proto::limits::MAX_NAME;
use cairn_proto::snapshot;

use super::tree::Place;

/// The directory and the one name in it that `at` says, if it is like that.
pub(super) fn place(at: &Option<NodeRef>) -> Option<Place> {
    let at = at.as_ref()?;
    let plain = !at.path.is_empty() && at.path.len() <= MAX_NAME && !at.path.contains(&b'/');
    // Nobody makes `.snapshot`, and the namenode knows what is there.
    let special = matches!(&at.path[..], b"." | b".." | snapshot::DIRECTORY);
    (plain && !special).then(|| (at.inode, at.path.clone()))
}

/// The inode that `at` says by its number.
pub(super) fn number(at: &Option<NodeRef>) -> Option<u64> {
    at.as_ref().filter(|at| at.path.is_empty()).map(|at| at.inode)
}

/// Everything an operation names.
pub(super) fn named(op: &mutation::Op) -> Vec<&Option<NodeRef>> {
    use mutation::Op;
    match op {
        Op::Create(ask) => vec![&ask.at],
        Op::Mkdir(ask) => vec![&ask.at],
        Op::Mknod(ask) => vec![&ask.at],
        Op::Symlink(ask) => vec![&ask.at],
        Op::Link(ask) => vec![&ask.from, &ask.at],
        Op::Rename(ask) => vec![&ask.from, &ask.to],
        Op::Unlink(ask) => vec![&ask.at],
        Op::Rmdir(ask) => vec![&ask.at],
        Op::SetAttr(ask) => vec![&ask.at],
        Op::SetReplication(ask) => vec![&ask.at],
        Op::SetXattr(ask) => vec![&ask.at],
        Op::RemoveXattr(ask) => vec![&ask.at],
        Op::SetQuota(ask) => vec![&ask.at],
        Op::Discard(ask) => vec![&ask.at],
        Op::CreateSnapshot(ask) => vec![&ask.at],
        Op::RemoveSnapshot(ask) => vec![&ask.at],
        Op::Restore(ask) => vec![&ask.to],
        Op::Commit(ask) => {
            let created = ask.files.iter().filter_map(|file| match &file.target {
                Some(file_commit::Target::Create(create)) => Some(&create.at),
                _ => None,
            });
            created.collect()
        }
        Op::CloneRange(ask) => match &ask.target {
            Some(clone_range::Target::Create(create)) => vec![&create.at],
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// Inodes that an operation says by their numbers, and that must exist when it gets there.
pub(super) fn numbers(op: &mutation::Op) -> Vec<u64> {
    use mutation::Op;
    match op {
        Op::SetLock(ask) => vec![ask.inode],
        Op::ClearRange(ask) => vec![ask.inode],
        Op::CloneRange(ask) => match ask.target {
            Some(clone_range::Target::Inode(inode)) => vec![ask.source, inode],
            _ => vec![ask.source],
        },
        Op::Open(ask) => vec![ask.inode],
        Op::Commit(ask) => {
            let plain = ask.files.iter().filter_map(|file| match file.target {
                Some(file_commit::Target::Inode(inode)) => Some(inode),
                _ => None,
            });
            plain.collect()
        }
        _ => named(op).into_iter().filter_map(number).collect(),
    }
}
