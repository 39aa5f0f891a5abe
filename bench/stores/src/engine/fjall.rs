//! fjall behind the store trait: a log-structured merge tree with a journal.
//!
//! All tables share one keyspace, each under its number as the first byte of the key. fjall flushes a keyspace's
//! memtable without syncing the journal first, so with a keyspace a table a power cut could leave one table ahead
//! of another; within one keyspace what survives is a prefix of the commits.

use std::ops::Bound;
use std::path::Path;

use cairn_metadata::store::{Durability, ReadBody, Store, StoreError, Table, Txn, View, Visit, WriteBody};
use fjall::{
    KeyspaceCreateOptions, PersistMode, Readable, SingleWriterTxDatabase, SingleWriterTxKeyspace,
    SingleWriterWriteTx as WriteTransaction,
};

use super::failed;

/// A store over fjall's single-writer transactions, which read their own writes.
pub struct FjallStore {
    database: SingleWriterTxDatabase,
    keyspace: SingleWriterTxKeyspace,
}

impl FjallStore {
    /// Opens the store in `dir`.
    pub fn open(dir: &Path, cache_bytes: usize) -> Result<FjallStore, StoreError> {
        let database = SingleWriterTxDatabase::builder(dir.join("store.fjall"))
            .cache_size(cache_bytes as u64)
            .manual_journal_persist(true)
            .open()
            .map_err(failed)?;
        let keyspace = database.keyspace("namespace", KeyspaceCreateOptions::default).map_err(failed)?;
        Ok(FjallStore { database, keyspace })
    }
}

impl Store for FjallStore {
    fn read(&self, body: ReadBody<'_>) -> Result<(), StoreError> {
        body(&FjallView { reader: self.database.read_tx(), keyspace: self.keyspace.clone() })
    }

    fn write(&self, durability: Durability, body: WriteBody<'_>) -> Result<(), StoreError> {
        let mode = match durability {
            Durability::Applied => None,
            Durability::Durable => Some(PersistMode::SyncAll),
        };
        let transaction = self.database.write_tx().durability(mode);
        let mut view = FjallView { reader: transaction, keyspace: self.keyspace.clone() };
        body(&mut view)?;
        view.reader.commit().map_err(failed)?;
        // An empty transaction commits without touching the journal.
        if durability == Durability::Durable {
            self.database.persist(PersistMode::SyncAll).map_err(failed)?;
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Box<dyn View + Send>, StoreError> {
        Ok(Box::new(FjallView { reader: self.database.read_tx(), keyspace: self.keyspace.clone() }))
    }
}

/// A snapshot or an open write transaction.
struct FjallView<R> {
    reader: R,
    keyspace: SingleWriterTxKeyspace,
}

fn prefixed(table: Table, key: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(1 + key.len());
    whole.push(table as u8);
    whole.extend_from_slice(key);
    whole
}

impl<R: Readable> FjallView<R> {
    fn get_pair(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.reader.get(&self.keyspace, prefixed(table, key)).map_err(failed)?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan_pairs(&self, table: Table, start: &[u8], end: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        if !end.is_empty() && start >= end {
            return Ok(());
        }
        let from = prefixed(table, start);
        let to = if end.is_empty() { vec![table as u8 + 1] } else { prefixed(table, end) };
        let range = (Bound::Included(from), Bound::Excluded(to));
        for pair in self.reader.range(&self.keyspace, range) {
            let (key, value) = pair.into_inner().map_err(failed)?;
            if visit(&key[1..], &value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl<R: Readable> View for FjallView<R> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.get_pair(table, key)
    }

    fn scan(&self, table: Table, start: &[u8], end: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        self.scan_pairs(table, start, end, visit)
    }
}

impl Txn for FjallView<WriteTransaction<'_>> {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.reader.insert(&self.keyspace, prefixed(table, key), value);
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        self.reader.remove(&self.keyspace, prefixed(table, key));
        Ok(())
    }
}
