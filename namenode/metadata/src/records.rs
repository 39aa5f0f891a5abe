//! Reading the store's records by their keys.

use std::ops::ControlFlow;

use cairn_proto::fs::{Attr, FileKind};
use cairn_proto::store::{Chunk, Datanode, Dentry, Inode, Meta, Session, Snapshot, Tree};
use prost::Message;

use crate::key;
use crate::store::{StoreError, Table, View};

/// Decodes a record of `table`; a record that does not decode is damage.
pub fn decode<M: Message + Default>(table: Table, bytes: &[u8]) -> Result<M, StoreError> {
    M::decode(bytes).map_err(|error| StoreError::Damaged(format!("table {}: {error}", table.name())))
}

fn record<M: Message + Default>(view: &dyn View, table: Table, key: &[u8]) -> Result<Option<M>, StoreError> {
    view.get(table, key)?.map(|bytes| decode(table, &bytes)).transpose()
}

/// Identity, allocator marks and totals; `None` until the cluster is formed.
pub fn meta(view: &dyn View) -> Result<Option<Meta>, StoreError> {
    record(view, Table::Meta, b"")
}

/// An inode.
pub fn inode(view: &dyn View, id: u64) -> Result<Option<Inode>, StoreError> {
    record(view, Table::Inode, &key::one(id))
}

/// A name in a directory.
pub fn dentry(view: &dyn View, parent: u64, name: &[u8]) -> Result<Option<Dentry>, StoreError> {
    record(view, Table::Dentry, &key::named(parent, name))
}

/// What lies below a directory.
pub fn tree(view: &dyn View, id: u64) -> Result<Option<Tree>, StoreError> {
    record(view, Table::Tree, &key::one(id))
}

/// A chunk.
pub fn chunk(view: &dyn View, id: u64) -> Result<Option<Chunk>, StoreError> {
    record(view, Table::Chunk, &key::one(id))
}

/// Whether nothing names a byte of a chunk, neither files nor snapshots.
pub fn is_dead(chunk: &Chunk) -> bool {
    chunk.live_bytes == 0 && chunk.kept_bytes == 0
}

/// A snapshot by its number, also one that was given up and keeps something still.
pub fn snapshot(view: &dyn View, seq: u64) -> Result<Option<Snapshot>, StoreError> {
    record(view, Table::Snapshot, &key::descending(seq))
}

/// A datanode by its number.
pub fn datanode(view: &dyn View, node: u32) -> Result<Option<Datanode>, StoreError> {
    record(view, Table::Datanode, &key::node(node))
}

/// A session.
pub fn session(view: &dyn View, id: u64) -> Result<Option<Session>, StoreError> {
    record(view, Table::Session, &key::one(id))
}

/// Every datanode ever registered, by number.
pub fn datanodes(view: &dyn View) -> Result<Vec<(u32, Datanode)>, StoreError> {
    let mut raw = Vec::new();
    view.scan(Table::Datanode, &[], &[], &mut |key, value| {
        raw.push((key::number(key, 0).unwrap_or(0) as u32, value.to_vec()));
        ControlFlow::Continue(())
    })?;
    raw.into_iter().map(|(node, value)| Ok((node, decode(Table::Datanode, &value)?))).collect()
}

/// Every session, by id.
pub fn sessions(view: &dyn View) -> Result<Vec<u64>, StoreError> {
    let mut ids = Vec::new();
    view.scan(Table::Session, &[], &[], &mut |key, _| {
        ids.extend(key::number(key, 0));
        ControlFlow::Continue(())
    })?;
    Ok(ids)
}

/// The second numbers of all keys of `table` whose first number is `first`.
pub(crate) fn seconds(view: &dyn View, table: Table, first: u64) -> Result<Vec<u64>, StoreError> {
    let mut found = Vec::new();
    view.scan(table, &key::one(first), &key::after(first), &mut |key, _| {
        found.extend(key::number(key, 1));
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// What a client sees of an inode.
pub fn attr(id: u64, inode: &Inode) -> Attr {
    Attr {
        inode: id,
        kind: inode.kind,
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        nlink: inode.nlink,
        size: if inode.kind() == FileKind::Symlink { inode.target.len() as u64 } else { inode.size },
        allocated: inode.allocated,
        atime_ns: inode.atime_ns,
        mtime_ns: inode.mtime_ns,
        ctime_ns: inode.ctime_ns,
        rdev: inode.rdev,
        replication: inode.replication,
        version: inode.version,
        acl: !inode.access_acl.is_empty() || !inode.default_acl.is_empty(),
        delegated: inode.delegate != 0,
    }
}
