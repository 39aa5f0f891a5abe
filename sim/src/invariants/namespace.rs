//! All namenodes hold the same namespace, and it is sound.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use cairn_host::disk::simulated::SimulatedDisk;
use cairn_metadata::store::{Store, StoreError, Table, View};
use cairn_metadata::{check, key, records};
use cairn_namenode::store::RedbStore;
use cairn_proto::store::Chunk;

use crate::history::History;
use crate::nodes::namenode;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Compares the stores. Returns the chunks of the namespace.
pub fn look(history: &History, disks: &[(String, SimulatedDisk)]) -> Option<BTreeMap<u64, Chunk>> {
    let mut first: Option<(String, Vec<Rows>)> = None;
    let mut chunks = None;
    for (name, disk) in disks {
        let read = open(disk).and_then(|store| read(&store));
        let (rows, wrong) = match read {
            Ok(read) => read,
            Err(error) => {
                history.violation(format!("the store of {name} cannot be read: {error}"));
                return None;
            }
        };
        for what in wrong {
            history.violation(format!("the namespace of {name}: {what}"));
        }
        match &first {
            None => {
                let table = rows.get(Table::ALL.iter().position(|table| *table == Table::Chunk).unwrap_or(0));
                chunks = table.map(decode);
                first = Some((name.clone(), rows));
            }
            Some((other, theirs)) => {
                for ((table, ours), theirs) in Table::ALL.iter().zip(&rows).zip(theirs) {
                    if *table != Table::Raft && ours != theirs {
                        let count =
                            ours.iter().filter(|(key, value)| theirs.get(*key) != Some(*value)).count();
                        history.violation(format!(
                            "{name} and {other} differ in {table:?}: {} and {} rows, {count} others",
                            ours.len(),
                            theirs.len()
                        ));
                    }
                }
            }
        }
    }
    chunks
}

/// How far a store has applied the log, to be compared with others; nothing if it cannot be read.
pub fn applied(disk: &SimulatedDisk) -> Option<Vec<u8>> {
    let mut found = None;
    let mut body = |view: &dyn View| {
        found = view.get(Table::Raft, b"applied")?;
        Ok(())
    };
    open(disk).and_then(|store| store.read(&mut body)).ok()?;
    found
}

fn open(disk: &SimulatedDisk) -> Result<RedbStore, StoreError> {
    RedbStore::open(&namenode::directory().join("store.redb"), 1 << 20, Arc::new(disk.mount()))
}

fn read(store: &RedbStore) -> Result<(Vec<Rows>, Vec<String>), StoreError> {
    let mut found = (Vec::new(), Vec::new());
    store.read(&mut |view: &dyn View| {
        for table in Table::ALL {
            let mut rows = Rows::new();
            view.scan(table, &[], &[], &mut |key, value| {
                rows.insert(key.to_vec(), value.to_vec());
                ControlFlow::Continue(())
            })?;
            found.0.push(rows);
        }
        found.1 = check::check(view)?;
        Ok(())
    })?;
    Ok(found)
}

fn decode(rows: &Rows) -> BTreeMap<u64, Chunk> {
    let pair = |(at, value): (&Vec<u8>, &Vec<u8>)| {
        Some((key::number(at, 0)?, records::decode(Table::Chunk, value).ok()?))
    };
    rows.iter().filter_map(pair).collect()
}
