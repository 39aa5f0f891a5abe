//! Delegations: directories that one session has to itself, until somebody else asks.
//!
//! A directory is delegated to the session that makes it. From then on nobody else knows what is in it: whoever comes to
//! it is told to wait ([`ErrorCode::Delegated`]), and the leader asks the session to hand it back. So its client may make,
//! move and remove names there, and answer what others on its machine ask, without asking anybody; it sends what it did
//! as a [`Series`] of deeds that are done in order, with the numbers, times and owners that it has told already. A
//! directory made in a delegated one is delegated as well. What was handed back is never delegated again.
//!
//! A delegation ends with its session, without a trace: the record names a session that does not exist any more, and
//! sessions are never numbered alike.

use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{
    Attr, CommitMode, CreateFile, Cred, Deed, FileCommit, FileKind, HandBack, InodesReserved, Link, Mkdir,
    Mknod, NodeRef, Outcome, ReserveInodes, Rmdir, Series, SeriesOutcome, SetAttr, Symlink, Unlink,
    file_commit, outcome,
};
use cairn_proto::limits::{MAX_DEEDS, MAX_RESERVED_INODES};
use cairn_proto::store::{Inode, InodeRange, Session};
use cairn_proto::{Delegated, ErrorCode};

use crate::apply::{self, NOTHING};
use crate::core::Core;
use crate::fault::Fallible;
use crate::permission::SETGID;
use crate::store::{StoreError, Table, View};
use crate::{key, quota, records, resolve};

/// Ranges of numbers that a session may hold at once.
const MAX_RANGES: usize = 4;

/// What a client has decided about the deed that is being done, and what is learned from all of a series.
#[derive(Debug, Default)]
pub(crate) struct Decided {
    pub time_ns: i64,
    inode: u64,
    reserved: Vec<InodeRange>,
    /// What is being done is held to quotas all the same.
    pub held: bool,
    /// Quotas hold where deeds were done.
    pub limited: bool,
}

impl Decided {
    /// The number of what the deed makes: reserved, and never used before, since they only go up.
    pub fn number(&mut self) -> Fallible<u64> {
        let id = std::mem::take(&mut self.inode);
        let Some(at) = self.reserved.iter().position(|range| (range.next..range.end).contains(&id)) else {
            return Err(ErrorCode::Invalid.because(format!("inode {id} is not reserved")).into());
        };
        self.reserved.drain(..at);
        self.reserved[0].next = id + 1;
        Ok(id)
    }
}

/// Refuses whoever comes to a directory that another session has to itself.
pub(crate) fn admit(view: &dyn View, id: u64, inode: &Inode) -> Fallible<()> {
    let session = inode.delegate;
    if session == 0 || view.asker().is_none_or(|asker| asker == session) {
        return Ok(());
    }
    match records::session(view, session)? {
        Some(_) => Err(Delegated { directory: id, session }.error().into()),
        None => Ok(()),
    }
}

/// Whether a command came to such a directory, and is to be tried again.
pub(crate) fn must_wait(outcome: &Outcome) -> bool {
    matches!(&outcome.result, Some(outcome::Result::Error(error)) if error.code == ErrorCode::Delegated as u32)
}

/// Gives a new directory to the session that made it, unless what happens in it is not that session's business alone.
pub(crate) fn grant(core: &mut Core, session: u64, id: u64) -> Fallible<Attr> {
    let mut inode = core.inode(id)?;
    let plain = inode.mode & SETGID == 0 && inode.access_acl.is_empty() && inode.default_acl.is_empty();
    if plain && (core.decided.is_some() || quota::above(core, id)?.is_empty()) {
        inode.delegate = session;
        core.set_inode(id, &inode);
    }
    Ok(records::attr(id, &inode))
}

pub(crate) fn reserve(core: &mut Core, session: u64, ask: &ReserveInodes) -> Fallible<outcome::Result> {
    if ask.count == 0 || ask.count > MAX_RESERVED_INODES {
        return Err(ErrorCode::Invalid.because(format!("{} inodes to reserve", ask.count)).into());
    }
    let mut record = of(core, session)?;
    record.reserved.retain(|range| range.next < range.end);
    if record.reserved.len() >= MAX_RANGES {
        return Err(ErrorCode::TooLarge.because("inodes that are reserved and not made").into());
    }
    let first = core.meta.next_inode;
    core.meta.next_inode += u64::from(ask.count);
    record.reserved.push(InodeRange { next: first, end: core.meta.next_inode });
    core.set_record(Table::Session, &key::one(session), &record);
    Ok(outcome::Result::Reserved(InodesReserved { first, count: ask.count }))
}

fn of(core: &Core, session: u64) -> Fallible<Session> {
    Ok(records::session(core, session)?
        .ok_or_else(|| ErrorCode::SessionExpired.because(format!("session {session}")))?)
}

/// Does what a client has done in its directories.
pub(crate) fn series(core: &mut Core, cred: &Cred, session: u64, ask: &Series) -> Fallible<outcome::Result> {
    if ask.deeds.len() > MAX_DEEDS {
        return Err(ErrorCode::TooLarge.because(format!("{} deeds", ask.deeds.len())).into());
    }
    let reserved = of(core, session)?.reserved;
    core.decided = Some(Decided { reserved, ..Decided::default() });
    let mut outcomes = Vec::with_capacity(ask.deeds.len());
    for deed in &ask.deeds {
        if let Some(decided) = &mut core.decided {
            (decided.time_ns, decided.inode, decided.held) = (deed.time_ns, deed.inode, false);
        }
        outcomes.push(apply::attempt(core, |core| perform(core, cred, session, deed))?);
    }
    let decided = core.decided.take().unwrap_or_default();
    let mut record = of(core, session)?;
    record.reserved = decided.reserved;
    core.set_record(Table::Session, &key::one(session), &record);
    Ok(outcome::Result::Series(SeriesOutcome { outcomes, hand_back: decided.limited }))
}

fn perform(core: &mut Core, cred: &Cred, session: u64, deed: &Deed) -> Fallible<outcome::Result> {
    let op = deed.mutation.as_ref().and_then(|mutation| mutation.op.as_ref());
    let op = op.ok_or_else(|| ErrorCode::Malformed.because("a deed without an operation"))?;
    match op {
        Op::Create(CreateFile { at, .. })
        | Op::Mkdir(Mkdir { at, parents: false, .. })
        | Op::Mknod(Mknod { at, .. })
        | Op::Symlink(Symlink { at, .. })
        | Op::Unlink(Unlink { at })
        | Op::Rmdir(Rmdir { at })
        | Op::Link(Link { at, .. }) => within(core, session, at)?,
        Op::Rename(ask) => {
            within(core, session, &ask.from)?;
            within(core, session, &ask.to)?;
        }
        Op::SetAttr(SetAttr { size: None, .. }) | Op::Open(_) | Op::Close(_) => {}
        Op::Commit(ask) if ask.files.iter().all(is_plain) => {}
        Op::HandBack(ask) => return hand_back(core, session, ask),
        _ => return Err(ErrorCode::Invalid.because("this is never done as a deed").into()),
    }
    match apply::operate(core, cred, session, op)? {
        // Only this one tells its client something.
        committed @ outcome::Result::Commit(_) => Ok(committed),
        _ => Ok(NOTHING),
    }
}

fn is_plain(file: &FileCommit) -> bool {
    matches!(file.target, Some(file_commit::Target::Inode(_))) && file.mode() == CommitMode::Set
}

/// Holds what is written into a file to quotas as if it were no deed, unless it lies in a directory of the session.
pub(crate) fn hold_to_quotas(core: &mut Core, session: u64, file: &Inode) -> Result<(), StoreError> {
    if core.decided.is_none() {
        return Ok(());
    }
    let parent = records::inode(core, file.parent)?;
    if let Some(decided) = &mut core.decided {
        decided.held = parent.is_none_or(|parent| parent.delegate != session);
    }
    Ok(())
}

/// Names are only made, moved and removed in directories that are the session's.
fn within(core: &Core, session: u64, at: &Option<NodeRef>) -> Fallible<()> {
    let at = resolve::node_ref(at)?;
    let parent = core.inode(at.inode)?;
    if parent.kind() != FileKind::Directory || parent.delegate != session || at.path.contains(&b'/') {
        return Err(ErrorCode::NotPermitted.because(format!("inode {} is not delegated", at.inode)).into());
    }
    Ok(())
}

fn hand_back(core: &mut Core, session: u64, ask: &HandBack) -> Fallible<outcome::Result> {
    if ask.directories.len() > MAX_DEEDS {
        return Err(ErrorCode::TooLarge.because(format!("{} directories", ask.directories.len())).into());
    }
    for &id in &ask.directories {
        if let Some(mut inode) = records::inode(core, id)?
            && inode.delegate == session
        {
            inode.delegate = 0;
            core.set_inode(id, &inode);
        }
    }
    Ok(NOTHING)
}
