//! What is about to change is kept for the snapshots that have it.
//!
//! There is one place that all changes go through ([`Core::set`] and [`Core::remove`]), and it calls here first. A record
//! is kept once for its newest snapshot, when it first changes after that: whoever looks into a snapshot finds the first
//! value that was kept for it or for a later one, and if there is none, the record has not changed since.

use std::ops::ControlFlow;

use cairn_proto::fs::Extent;
use cairn_proto::snapshot::MAX_SNAPSHOTS;
use cairn_proto::store::{ExtentTail, Inode};
use prost::Message;

use crate::core::Core;
use crate::snapshot::cover;
use crate::store::{StoreError, Table, View};
use crate::{chunk, key, records};

/// What a kept value begins with.
const ABSENT: u8 = 0;
const PRESENT: u8 = 1;

/// Whether snapshots have records of this table.
pub(crate) fn is_kept(table: Table) -> bool {
    matches!(table, Table::Inode | Table::Dentry | Table::Extent | Table::Xattr)
}

/// Keeps what is under `key` if a snapshot has it and it is about to become another `value`.
pub(crate) fn before(
    core: &mut Core,
    table: Table,
    key: &[u8],
    value: Option<&[u8]>,
) -> Result<(), StoreError> {
    let old = core.get(table, key)?;
    if old.as_deref() == value {
        return Ok(());
    }
    let Some(owner) = key::number(key, 0) else { return Ok(()) };
    let newest = match table {
        Table::Dentry => cover::of_directory(core, owner)?,
        Table::Inode => {
            // A new inode: no snapshot leads to it.
            let Some(old) = &old else { return Ok(()) };
            let inode: Inode = records::decode(table, old)?;
            let next = value.map(|value| records::decode::<Inode>(table, value)).transpose()?;
            // A file that just lost a name says so in what it is about to become.
            cover::of_inode(core, owner, &inode, next.map_or(0, |next| next.carried))?
        }
        _ => match records::inode(core, owner)? {
            Some(inode) => cover::of_inode(core, owner, &inode, 0)?,
            None => 0,
        },
    };
    if newest == 0 || first(core, table, key, newest)?.is_some() {
        return Ok(());
    }
    let mut kept = Vec::with_capacity(1 + old.as_ref().map_or(0, Vec::len));
    kept.push(if old.is_some() { PRESENT } else { ABSENT });
    kept.extend_from_slice(old.as_deref().unwrap_or_default());
    put(core, table, key, newest, kept)
}

/// What is kept under a key for a snapshot: the first value for it or for a later one.
pub(crate) fn first(
    view: &dyn View,
    table: Table,
    key: &[u8],
    seq: u64,
) -> Result<Option<Vec<u8>>, StoreError> {
    let mut found = None;
    // Longer names that begin like this one come after it.
    let (start, end) = (key::old(table as u8, key, seq), key::old(table as u8, key, MAX_SNAPSHOTS));
    view.scan(Table::Old, &start, &end, &mut |_, value| {
        found = Some(value.to_vec());
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// The record in a kept value, if there was one.
pub(crate) fn record(kept: &[u8]) -> Option<&[u8]> {
    kept.split_first().filter(|(mark, _)| **mark == PRESENT).map(|(_, record)| record)
}

/// Keeps a value for a snapshot. What it refers to is counted.
pub(crate) fn put(
    core: &mut Core,
    table: Table,
    key: &[u8],
    seq: u64,
    kept: Vec<u8>,
) -> Result<(), StoreError> {
    let mut bytes = 0;
    for extent in extents(table, record(&kept))? {
        chunk::count_kept(core, extent.chunk, extent.length as i64)?;
        bytes += extent.length;
    }
    core.set(Table::Old, &key::old(table as u8, key, seq), kept);
    count(core, seq, 1, bytes as i64)
}

/// Lets go of a kept value.
pub(crate) fn release(
    core: &mut Core,
    table: Table,
    key: &[u8],
    seq: u64,
    kept: &[u8],
) -> Result<(), StoreError> {
    let mut bytes = 0;
    for extent in extents(table, record(kept))? {
        chunk::count_kept(core, extent.chunk, -(extent.length as i64))?;
        bytes += extent.length;
    }
    core.remove(Table::Old, &key::old(table as u8, key, seq));
    count(core, seq, -1, -(bytes as i64))
}

fn count(core: &mut Core, seq: u64, records: i64, bytes: i64) -> Result<(), StoreError> {
    let Some(mut snapshot) = records::snapshot(core, seq)? else {
        return Err(StoreError::Damaged(format!("something is kept for snapshot {seq}, which is gone")));
    };
    snapshot.records = snapshot.records.saturating_add_signed(records);
    snapshot.bytes = snapshot.bytes.saturating_add_signed(bytes);
    core.set(Table::Snapshot, &key::descending(seq), snapshot.encode_to_vec());
    Ok(())
}

/// The extents that a record has in itself.
pub(crate) fn extents(table: Table, record: Option<&[u8]>) -> Result<Vec<Extent>, StoreError> {
    let Some(record) = record else { return Ok(Vec::new()) };
    Ok(match table {
        Table::Inode => {
            let inode: Inode = records::decode(table, record)?;
            if inode.spilled { Vec::new() } else { inode.extents }
        }
        Table::Extent => {
            let ExtentTail { chunk, chunk_offset, length } = records::decode(table, record)?;
            vec![Extent { file_offset: 0, chunk, chunk_offset, length }]
        }
        _ => Vec::new(),
    })
}
