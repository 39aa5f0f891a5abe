//! Snapshots: what one is here, where its description comes from, and how it becomes the store.
//!
//! The store is itself persistent, so no snapshot file is kept. Building one means making the store durable and
//! telling the Raft library how far that is: the log is purged up to there and never further. Sending one streams
//! a view of the store; only the receiver writes a file.

use std::io::{self, BufReader};
use std::path::PathBuf;
use std::sync::Arc;

use cairn_host::disk::{Access, Reader, SharedDisk};
use cairn_host::work::blocking;
use cairn_metadata::store::{Store, StoreError, Table, Txn, View};
use openraft::RaftSnapshotBuilder;
use openraft::type_config::alias::SnapshotOf;
use serde::Serialize;

use super::types::{LogId, SnapshotMeta, StoredMembership, Types};
use crate::store::{RedbStore, stream};

/// Key of the last applied log id in [`Table::Raft`].
pub const APPLIED: &[u8] = b"applied";
/// Key of the last applied membership.
pub const MEMBERSHIP: &[u8] = b"membership";
/// Key of the highest namenode id any membership ever named.
pub const HIGHEST_ID: &[u8] = b"highest_id";

/// The content of a snapshot.
pub enum Content {
    /// A view of this namenode's store, to be sent.
    View(Box<dyn View + Send>),
    /// A received stream, not looked at yet; the file is removed with the value.
    File(Received),
}

/// A snapshot received into a file.
#[derive(Debug)]
pub struct Received {
    disk: SharedDisk,
    path: PathBuf,
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Err(error) = self.disk.remove(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a received snapshot was not removed");
        }
    }
}

impl Received {
    /// The file at `path`, which is there already.
    pub fn new(disk: SharedDisk, path: PathBuf) -> Received {
        Received { disk, path }
    }

    /// Its content from the start.
    pub fn read(&self) -> Result<impl io::Read + use<>, StoreError> {
        let file = self.disk.open(&self.path, Access::Read);
        let file = file.map_err(|error| StoreError::Engine(error.to_string()))?;
        Ok(BufReader::with_capacity(1 << 20, Reader::new(file)))
    }
}

/// A snapshot with its description.
pub type Snapshot = SnapshotOf<Types, Content>;

/// A store error as the Raft library carries it.
pub fn other(error: StoreError) -> io::Error {
    io::Error::other(error)
}

fn decode<T: serde::de::DeserializeOwned>(view: &dyn View, key: &[u8]) -> Result<Option<T>, StoreError> {
    let bytes = view.get(Table::Raft, key)?;
    let damaged = |_| StoreError::Damaged(format!("the Raft record {}", String::from_utf8_lossy(key)));
    bytes.map(|bytes| postcard::from_bytes(&bytes).map_err(damaged)).transpose()
}

/// Writes a record of [`Table::Raft`].
pub fn put(txn: &mut dyn Txn, key: &[u8], value: &impl Serialize) -> Result<(), StoreError> {
    let bytes = postcard::to_allocvec(value).map_err(|error| StoreError::Engine(error.to_string()))?;
    txn.put(Table::Raft, key, &bytes)
}

/// How far a store is: what a snapshot of it covers.
pub fn describe(view: &dyn View) -> Result<SnapshotMeta, StoreError> {
    let last_log_id: Option<LogId> = decode(view, APPLIED)?;
    let last_membership: Option<StoredMembership> = decode(view, MEMBERSHIP)?;
    Ok(SnapshotMeta { last_log_id, last_membership: last_membership.unwrap_or_default() })
}

/// The highest namenode id ever used; 0 before the first membership.
pub fn highest_id(view: &dyn View) -> Result<u64, StoreError> {
    Ok(decode(view, HIGHEST_ID)?.unwrap_or(0))
}

/// A snapshot of what is applied now.
pub fn current(store: &RedbStore) -> Result<Snapshot, StoreError> {
    let view = store.snapshot()?;
    let meta = describe(&*view)?;
    Ok(Snapshot { meta, snapshot: Content::View(view) })
}

/// Builds snapshots of a store.
pub struct Builder(pub Arc<RedbStore>);

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Content;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let store = self.0.clone();
        let build = move || {
            // The view comes first: the log may be purged up to it, so it must be durable when this returns.
            let snapshot = current(&store)?;
            store.checkpoint()?;
            Ok(snapshot)
        };
        blocking(self.0.disk(), build).await.map_err(io::Error::other)?.map_err(other)
    }
}

/// Makes a received snapshot the content of the store.
pub async fn install(store: Arc<RedbStore>, meta: SnapshotMeta, content: Content) -> io::Result<()> {
    let Content::File(received) = content else {
        return Err(io::Error::other("only a received snapshot can be installed"));
    };
    let disk = store.disk().clone();
    let work = move || {
        let content = received.read()?;
        store.replace(|fresh| {
            stream::load(fresh, content)?;
            let mut found = SnapshotMeta::default();
            let mut body = |view: &dyn View| {
                found = describe(view)?;
                Ok(())
            };
            fresh.read(&mut body)?;
            if found != meta {
                return Err(StoreError::Damaged(format!("a snapshot said to be {meta} is {found}")));
            }
            Ok(())
        })
    };
    blocking(&disk, work).await.map_err(io::Error::other)?.map_err(other)
}
