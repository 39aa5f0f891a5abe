//! What must be true of snapshots, for the state checker.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use cairn_proto::store::{Chunk, Snapshot, Tree};

use crate::snapshot::keep;
use crate::store::{StoreError, Table, View};
use crate::{key, records};

/// A key and its value.
type Row = (Vec<u8>, Vec<u8>);

/// Everything in a table.
fn rows(view: &dyn View, table: Table) -> Result<Vec<Row>, StoreError> {
    let mut rows = Vec::new();
    view.scan(table, &[], &[], &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}

/// Compares the records of snapshots with their names, their directories, and what is kept for them.
pub(crate) fn check(
    view: &dyn View,
    chunks: &BTreeMap<u64, Chunk>,
    wrong: &mut Vec<String>,
) -> Result<(), StoreError> {
    let mut snapshots: BTreeMap<u64, Snapshot> = BTreeMap::new();
    for (at, value) in rows(view, Table::Snapshot)? {
        snapshots.insert(!key::number(&at, 0).unwrap_or(0), records::decode(Table::Snapshot, &value)?);
    }
    check_kept(view, chunks, &snapshots, wrong)?;
    check_names(view, &snapshots, wrong)?;
    let meta = records::meta(view)?.unwrap_or_default();
    let going = snapshots.values().filter(|snapshot| snapshot.going).count() as u64;
    let kept: u64 = chunks.values().map(|chunk| chunk.kept_bytes).sum();
    let counted = (snapshots.len() as u64 - going, going, kept);
    let said = (meta.snapshots, meta.snapshots_going, meta.kept_bytes);
    if counted != said {
        wrong.push(format!("totals of snapshots are {counted:?} but the record says {said:?}"));
    }
    if snapshots.keys().any(|seq| *seq >= meta.next_snapshot) {
        wrong.push("a snapshot has a number that is not given away yet".into());
    }
    Ok(())
}

fn check_kept(
    view: &dyn View,
    chunks: &BTreeMap<u64, Chunk>,
    snapshots: &BTreeMap<u64, Snapshot>,
    wrong: &mut Vec<String>,
) -> Result<(), StoreError> {
    let mut kept: BTreeMap<u64, u64> = BTreeMap::new();
    let mut sums: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for (at, value) in rows(view, Table::Old)? {
        let parts =
            key::parts_of_old(&at).and_then(|(table, _, seq)| Some((Table::from_number(table)?, seq)));
        let Some((table, seq)) = parts.filter(|(table, _)| keep::is_kept(*table)) else {
            wrong.push(format!("something is kept under {at:?}"));
            continue;
        };
        let sum = sums.entry(seq).or_default();
        sum.0 += 1;
        for extent in keep::extents(table, keep::record(&value))? {
            sum.1 += extent.length;
            *kept.entry(extent.chunk).or_default() += extent.length;
            let held = chunks.get(&extent.chunk).map_or(0, |chunk| chunk.length);
            if extent.chunk_offset + extent.length > held {
                wrong.push(format!("snapshot {seq}: extent past the end of chunk {}", extent.chunk));
            }
        }
    }
    for (&id, chunk) in chunks {
        let counted = kept.get(&id).copied().unwrap_or(0);
        if counted != chunk.kept_bytes {
            wrong.push(format!("chunk {id} has {counted} kept bytes but says {}", chunk.kept_bytes));
        }
    }
    for (seq, snapshot) in snapshots {
        let counted = sums.remove(seq).unwrap_or_default();
        if counted != (snapshot.records, snapshot.bytes) {
            let said = (snapshot.records, snapshot.bytes);
            wrong.push(format!("snapshot {seq} keeps {counted:?} but says {said:?}"));
        }
    }
    wrong.extend(sums.keys().map(|seq| format!("something is kept for snapshot {seq}, which is gone")));
    Ok(())
}

fn check_names(
    view: &dyn View,
    snapshots: &BTreeMap<u64, Snapshot>,
    wrong: &mut Vec<String>,
) -> Result<(), StoreError> {
    let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
    let mut names = Vec::new();
    for (&seq, snapshot) in snapshots.iter().filter(|(_, snapshot)| !snapshot.going) {
        // In ascending order: the last one is the newest.
        newest.insert(snapshot.directory, seq);
        names.push((key::named(snapshot.directory, &snapshot.name), seq.to_be_bytes().to_vec()));
    }
    names.sort();
    if rows(view, Table::SnapshotName)? != names {
        wrong.push("the names of snapshots do not match their records".into());
    }
    for (at, value) in rows(view, Table::Tree)? {
        let id = key::number(&at, 0).unwrap_or(0);
        let tree: Tree = records::decode(Table::Tree, &value)?;
        let counted = newest.remove(&id).unwrap_or(0);
        if counted != tree.snapshot {
            wrong.push(format!("the newest snapshot of {id} is {counted} but it says {}", tree.snapshot));
        }
    }
    wrong.extend(newest.keys().map(|id| format!("a snapshot is of {id}, which is no directory")));
    Ok(())
}
