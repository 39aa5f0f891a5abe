//! The state machine's one way in: a batch of commands in, outcomes out.

use cairn_proto::fs::mutation::Op;
use cairn_proto::fs::{Command, CommandBatch, Cred, FileKind, FormCluster, Nothing, Outcome, outcome};
use cairn_proto::limits::{CHUNK_SIZE, MAX_CHUNK_SIZE, MAX_REPLICATION, REPLICATION};
use cairn_proto::store::Inode;
use cairn_proto::{ErrorCode, ROOT_INODE};

use crate::core::Core;
use crate::fault::{Fallible, settle};
use crate::session::{self, Seen};
use crate::store::{StoreError, Table, Txn};
use crate::{
    chunk, commit, compact, datanode, delegation, key, lock, namespace, quota, ranges, snapshot, trash, usage,
};

pub(crate) const NOTHING: outcome::Result = outcome::Result::Nothing(Nothing {});

/// Applies one entry of the log. Returns one outcome a command, in order.
///
/// A refused command leaves no trace but its recorded outcome. Deterministic: the same batch on the same store gives
/// the same store and outcomes. An error means the store failed or is damaged; nothing may be served after it.
pub fn apply(txn: &mut dyn Txn, batch: &CommandBatch) -> Result<Vec<Outcome>, StoreError> {
    let mut core = Core::new(txn, batch.time_ns)?;
    let mut outcomes = Vec::with_capacity(batch.commands.len());
    for command in &batch.commands {
        outcomes.push(run(&mut core, command)?);
    }
    core.finish()?;
    Ok(outcomes)
}

fn run(core: &mut Core, command: &Command) -> Result<Outcome, StoreError> {
    if command.session == 0 {
        return perform(core, command);
    }
    match session::seen(core, command)? {
        Seen::Settled(outcome) => Ok(outcome),
        Seen::New => {
            let outcome = perform(core, command)?;
            // What has to wait for somebody else will be asked for again.
            if !delegation::must_wait(&outcome) {
                session::remember(core, command, &outcome)?;
            }
            Ok(outcome)
        }
    }
}

fn perform(core: &mut Core, command: &Command) -> Result<Outcome, StoreError> {
    core.asker = (command.session != 0).then_some(command.session);
    attempt(core, |core| dispatch(core, command))
}

/// Does something whole or not at all.
pub(crate) fn attempt(
    core: &mut Core,
    work: impl FnOnce(&mut Core) -> Fallible<outcome::Result>,
) -> Result<Outcome, StoreError> {
    let point = core.savepoint();
    let done = work(core).and_then(|result| usage::settle(core).map(|()| result));
    core.sound()?;
    match settle(done)? {
        Ok(result) => Ok(Outcome { result: Some(result) }),
        Err(error) => {
            core.roll_back(point);
            Ok(session::refusal(error))
        }
    }
}

fn dispatch(core: &mut Core, command: &Command) -> Fallible<outcome::Result> {
    let nobody = Cred { uid: u32::MAX, gid: u32::MAX, groups: Vec::new() };
    let cred = command.cred.as_ref().unwrap_or(&nobody);
    let session = command.session;
    let Some(op) = command.mutation.as_ref().and_then(|mutation| mutation.op.as_ref()) else {
        return Err(ErrorCode::Malformed.because("the request has no operation").into());
    };
    if let Op::FormCluster(ask) = op {
        return form(core, ask);
    }
    if core.meta.cluster_id.is_empty() {
        return Err(ErrorCode::Unavailable.because("the cluster is not formed yet").into());
    }
    match op {
        Op::OpenSession(ask) => session::begin(core, ask),
        Op::ExpireSession(ask) if session == 0 => session::end(core, ask.session),
        Op::RegisterDatanode(ask) if session == 0 => datanode::register(core, ask),
        Op::SetDatanodeState(ask) if session == 0 => datanode::set_state(core, ask),
        Op::AddReplica(ask) if session == 0 => chunk::add_replica(core, ask),
        Op::DropReplica(ask) if session == 0 => chunk::drop_replica(core, ask),
        Op::ForgetReplica(ask) if session == 0 => chunk::forget_replica(core, ask),
        Op::PurgeChunk(ask) if session == 0 => chunk::purge(core, ask),
        Op::RecordDigest(ask) if session == 0 => chunk::record_digest(core, ask),
        Op::BeginCompaction(ask) if session == 0 => compact::begin(core, ask),
        Op::SwapExtents(ask) if session == 0 => compact::swap(core, ask),
        Op::PurgeTrash(ask) if session == 0 => trash::purge_due(core, ask.item),
        Op::PurgeSnapshot(ask) if session == 0 => snapshot::purge::purge(core, ask.seq),
        _ if session == 0 => Err(ErrorCode::SessionExpired.because("this needs a session").into()),
        _ => operate(core, cred, session, op),
    }
}

/// What a client may do under its session.
pub(crate) fn operate(core: &mut Core, cred: &Cred, session: u64, op: &Op) -> Fallible<outcome::Result> {
    match op {
        Op::Create(ask) => namespace::create::create(core, cred, session, ask),
        Op::Mkdir(ask) => namespace::create::mkdir(core, cred, session, ask),
        Op::Mknod(ask) => namespace::create::mknod(core, cred, ask),
        Op::Symlink(ask) => namespace::create::symlink(core, cred, ask),
        Op::Link(ask) => namespace::link::link(core, cred, ask),
        Op::Unlink(ask) => namespace::link::unlink(core, cred, ask),
        Op::Rmdir(ask) => namespace::link::rmdir(core, cred, ask),
        Op::Rename(ask) => namespace::rename::rename(core, cred, ask),
        Op::SetAttr(ask) => namespace::attributes::set_attr(core, cred, ask),
        Op::SetReplication(ask) => namespace::attributes::set_replication(core, cred, ask),
        Op::SetQuota(ask) => quota::set(core, cred, ask),
        Op::SetTrash(ask) => trash::configure(core, cred, ask),
        Op::Discard(ask) => trash::discard(core, cred, ask),
        Op::Restore(ask) => trash::restore(core, cred, ask),
        Op::PurgeTrash(ask) => trash::purge_own(core, cred, ask.item),
        Op::CreateSnapshot(ask) => snapshot::create(core, cred, ask),
        Op::RemoveSnapshot(ask) => snapshot::remove(core, cred, ask),
        Op::MarkRead(ask) => namespace::mark_read::mark_read(core, cred, ask),
        Op::SetXattr(ask) => namespace::xattr::set(core, cred, ask),
        Op::RemoveXattr(ask) => namespace::xattr::remove(core, cred, ask),
        Op::Allocate(ask) => chunk::allocate(core, session, ask),
        Op::Commit(ask) => commit::commit(core, cred, session, ask),
        Op::ClearRange(ask) => ranges::clear(core, cred, ask),
        Op::CloneRange(ask) => ranges::clone(core, cred, session, ask),
        Op::Seal(ask) => chunk::seal(core, session, ask),
        Op::Open(ask) => namespace::open::open(core, session, ask.inode),
        Op::Close(ask) => namespace::open::close(core, session, &ask.inodes),
        Op::SetLock(ask) => lock::set(core, session, ask),
        Op::ReserveInodes(ask) => delegation::reserve(core, session, ask),
        Op::Series(ask) => delegation::series(core, cred, session, ask),
        Op::CloseSession(_) => session::end(core, session),
        _ => Err(ErrorCode::NotPermitted.because("only the leader does this").into()),
    }
}

/// The first command of a cluster's life; of later ones the secret is taken, if there is none yet.
fn form(core: &mut Core, ask: &FormCluster) -> Fallible<outcome::Result> {
    if core.meta.secret.is_empty() {
        core.meta.secret = ask.secret.clone();
    }
    if !core.meta.cluster_id.is_empty() {
        return Ok(NOTHING);
    }
    let chunk_size = if ask.chunk_size == 0 { CHUNK_SIZE } else { ask.chunk_size };
    let replication = if ask.default_replication == 0 { REPLICATION } else { ask.default_replication };
    if ask.cluster_id.is_empty() || chunk_size > MAX_CHUNK_SIZE || replication > MAX_REPLICATION {
        return Err(ErrorCode::Invalid.because("the cluster's settings").into());
    }
    core.meta.cluster_id = ask.cluster_id.clone();
    core.meta.chunk_size = chunk_size;
    core.meta.default_replication = replication;
    core.meta.next_inode = ROOT_INODE + 1;
    core.meta.next_chunk = 1;
    core.meta.next_session = 1;
    core.meta.next_node = 1;
    core.meta.directories = 1;
    core.meta.counted = true;
    let root = Inode {
        kind: FileKind::Directory.into(),
        mode: 0o755,
        uid: ask.uid,
        gid: ask.gid,
        nlink: 2,
        atime_ns: core.now,
        mtime_ns: core.now,
        ctime_ns: core.now,
        version: 1,
        parent: ROOT_INODE,
        ..Inode::default()
    };
    core.set_inode(ROOT_INODE, &root);
    core.set_record(Table::Tree, &key::one(ROOT_INODE), &usage::root());
    Ok(NOTHING)
}
