//! A namenode's directory made from a backup: the first of a group that begins anew with the content of a lost one.
//!
//! The new group has the old cluster's id, so that datanodes come back to it, and one member under an id that nobody ever
//! had; other namenodes join it with empty directories. What the lost group did after the backup is unknown, so no
//! number it may have given away since is given away again, all sessions are over, and its terms are left behind.
//!
//! The directory is made beside its place and renamed into it when it is whole.

use std::fs;
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use cairn_host::disk::{self, SharedDisk};
use cairn_metadata::records;
use cairn_metadata::store::{Durability, Store, StoreError, Table, View};
use cairn_proto::fs::{CommandBatch, ExpireSession, mutation};
use cairn_proto::store::Meta;
use cairn_proto::{Error, ErrorCode};
use prost::Message;

use crate::identity::{Identity, Phase};
use crate::log::{Log, LogOptions};
use crate::member::{LOG, STORE};
use crate::propose::own;
use crate::raft;
use crate::store::{RedbStore, stream};

/// Numbers of inodes, chunks and sessions that the lost group may have given away after the backup.
const NUMBERS: u64 = 1 << 32;
/// The same for snapshots, of which there can only be a million.
const SNAPSHOTS: u64 = 1_000;
/// The same for datanodes.
const NODES: u32 = 1_000;
/// Sessions that are ended in one transaction.
const AT_ONCE: usize = 1_000;
const CACHE_BYTES: usize = 64 << 20;

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The id of the new group's first member.
    pub id: u64,
    /// The cluster.
    pub cluster_id: String,
    /// Files in it.
    pub files: u64,
    /// Directories in it.
    pub directories: u64,
    /// When the last change before the backup was made; nanoseconds since the epoch.
    pub time_ns: i64,
}

/// Reads a backup only to see that it is whole.
pub fn verify(backup: impl Read) -> Result<(), Error> {
    stream::verify(BufReader::new(backup)).map_err(refuse)
}

/// Makes the directory `dir`, which must be empty or not there, from `backup`, for a namenode at `address`.
pub fn restore(dir: &Path, address: &str, backup: impl Read) -> Result<Restored, Error> {
    require_vacant(dir)?;
    let building = beside(dir);
    match fs::remove_dir_all(&building) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(&building, &error)),
        _ => {}
    }
    let disk = disk::real();
    disk::create_dirs(&*disk, &building).map_err(|error| failed(&building, &error))?;
    let restored = build(&building, address, backup, &disk).inspect_err(|_| {
        // What was begun is of no use; a next attempt removes it too.
        let _ = fs::remove_dir_all(&building);
    })?;
    disk.rename(&building, dir).map_err(|error| failed(dir, &error))?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    disk.sync_dir(parent).map_err(|error| failed(parent, &error))?;
    Ok(restored)
}

fn require_vacant(dir: &Path) -> Result<(), Error> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(dir, &error)),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => {
                let what = format!("{} is not empty; move it away, or name another directory", dir.display());
                Err(ErrorCode::Exists.because(what))
            }
        },
    }
}

fn beside(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".restoring");
    dir.with_file_name(name)
}

fn build(dir: &Path, address: &str, backup: impl Read, disk: &SharedDisk) -> Result<Restored, Error> {
    let store = RedbStore::open(&dir.join(STORE), CACHE_BYTES, disk.clone()).map_err(refuse)?;
    stream::load(&store, BufReader::with_capacity(1 << 20, backup)).map_err(refuse)?;
    end_sessions(&store)?;
    let mut found = None;
    store
        .write(Durability::Durable, &mut |txn| {
            let Some(mut meta) = records::meta(txn)? else {
                return Err(StoreError::Damaged("the snapshot is of no cluster".into()));
            };
            leave_room(&mut meta);
            txn.put(Table::Meta, b"", &meta.encode_to_vec())?;
            found = Some((meta, raft::begin_anew(txn, address)?));
            Ok(())
        })
        .map_err(refuse)?;
    let (meta, anew) = found.ok_or_else(|| ErrorCode::Io.because("the store did not take the snapshot"))?;
    store.checkpoint().map_err(refuse)?;
    drop(store);
    let log_dir = dir.join(LOG);
    let log = Log::open(&log_dir, LogOptions::default(), disk.clone())
        .map_err(|error| ErrorCode::Io.because(error.to_string()))?;
    anew.write_to(&log).map_err(|error| failed(&log_dir, &error))?;
    log.close();
    let identity = Identity::new(anew.id, &meta.cluster_id, Phase::Active);
    identity.save(&**disk, dir)?;
    Ok(Restored {
        id: anew.id,
        cluster_id: meta.cluster_id,
        files: meta.files,
        directories: meta.directories,
        time_ns: meta.time_ns,
    })
}

/// No client of the lost group goes on as if nothing had happened.
fn end_sessions(store: &RedbStore) -> Result<(), Error> {
    let mut sessions = Vec::new();
    let mut time_ns = 0;
    let mut look = |view: &dyn View| {
        sessions = records::sessions(view)?;
        time_ns = records::meta(view)?.map_or(0, |meta| meta.time_ns);
        Ok(())
    };
    store.read(&mut look).map_err(refuse)?;
    for some in sessions.chunks(AT_ONCE) {
        let commands =
            some.iter().map(|&session| own(mutation::Op::ExpireSession(ExpireSession { session }))).collect();
        let batch = CommandBatch { time_ns, commands };
        store
            .write(Durability::Durable, &mut |txn| cairn_metadata::apply(txn, &batch).map(drop))
            .map_err(refuse)?;
    }
    Ok(())
}

fn leave_room(meta: &mut Meta) {
    meta.next_inode = meta.next_inode.saturating_add(NUMBERS);
    meta.next_chunk = meta.next_chunk.saturating_add(NUMBERS);
    meta.next_session = meta.next_session.saturating_add(NUMBERS);
    meta.next_snapshot = meta.next_snapshot.saturating_add(SNAPSHOTS);
    meta.next_node = meta.next_node.saturating_add(NODES);
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    ErrorCode::Io.because(format!("{}: {error}", path.display()))
}

fn refuse(error: StoreError) -> Error {
    let code = if matches!(error, StoreError::Damaged(_)) { ErrorCode::Corrupt } else { ErrorCode::Io };
    code.because(error.to_string())
}
