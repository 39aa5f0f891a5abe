//! LMDB through heed: a memory-mapped copy-on-write B-tree, with the page cache as its only cache.

use std::ops::Bound;
use std::path::Path;

use cairn_metadata::store::{Durability, ReadBody, Store, StoreError, Table, Txn, View, Visit, WriteBody};
use heed::types::Bytes;
use heed::{AnyTls, CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, RoTxn, RwTxn, WithoutTls};

use super::failed;

/// Address space for the map; the file grows only as it fills.
const MAP_BYTES: usize = 256 << 30;
const TABLES: usize = Table::ALL.len();

type Tables = [Database<'static, Bytes, Bytes>; TABLES];

/// When commits reach the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// Only when a durable commit asks for it.
    OnDurable,
    /// With every commit.
    Always,
}

/// A store over one LMDB environment.
pub struct LmdbStore {
    env: Env<WithoutTls>,
    tables: Tables,
    sync: Sync,
}

impl LmdbStore {
    /// Opens the store in `dir`.
    pub fn open(dir: &Path, sync: Sync) -> Result<LmdbStore, StoreError> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        // Listings and lookups are random: reading ahead would only fill memory.
        let mut flags = EnvFlags::NO_READ_AHEAD;
        if sync == Sync::OnDurable {
            flags |= EnvFlags::NO_SYNC;
        }
        options.map_size(MAP_BYTES).max_dbs(TABLES as u32).max_readers(64);
        // SAFETY: the directory belongs to this process alone, nothing else changes or truncates the mapped file, and
        // what NO_SYNC risks in a power cut is what this engine is here to be judged for.
        let env = unsafe { options.flags(flags).open(dir) }.map_err(failed)?;
        let transaction = env.write_txn().map_err(failed)?;
        let tables = env
            .create_databases_and_commit(transaction, |opener, transaction| {
                let mut open = Vec::with_capacity(TABLES);
                for table in Table::ALL {
                    open.push(opener.create_database::<Bytes, Bytes>(transaction, Some(table.name()))?);
                }
                let open: Result<[_; TABLES], _> = open.try_into();
                Ok::<_, heed::Error>(open.map_or(CommitOrAbort::Abort(()), CommitOrAbort::Commit))
            })
            .map_err(failed)?
            .commit()
            .ok_or_else(|| failed("not every table opened"))?;
        Ok(LmdbStore { env, tables, sync })
    }

    fn view(&self) -> Result<LmdbView, StoreError> {
        let transaction = self.env.clone().static_read_txn().map_err(failed)?;
        Ok(LmdbView { transaction, tables: self.tables })
    }
}

impl Store for LmdbStore {
    fn read(&self, body: ReadBody<'_>) -> Result<(), StoreError> {
        body(&self.view()?)
    }

    fn write(&self, durability: Durability, body: WriteBody<'_>) -> Result<(), StoreError> {
        let transaction = self.env.write_txn().map_err(failed)?;
        let mut txn = LmdbTxn { transaction, tables: self.tables };
        body(&mut txn)?;
        txn.transaction.commit().map_err(failed)?;
        if durability == Durability::Durable && self.sync == Sync::OnDurable {
            self.env.force_sync().map_err(failed)?;
        }
        Ok(())
    }

    fn snapshot(&self) -> Result<Box<dyn View + Send>, StoreError> {
        Ok(Box::new(self.view()?))
    }
}

/// LMDB has no empty keys; the namespace has one, of the only record of its table.
fn stored(key: &[u8]) -> &[u8] {
    if key.is_empty() { &[0] } else { key }
}

fn get(
    tables: &Tables,
    txn: &RoTxn<AnyTls>,
    table: Table,
    key: &[u8],
) -> Result<Option<Vec<u8>>, StoreError> {
    let value = tables[table as usize].get(txn, stored(key)).map_err(failed)?;
    Ok(value.map(<[u8]>::to_vec))
}

fn scan(
    tables: &Tables,
    txn: &RoTxn<AnyTls>,
    table: Table,
    (start, end): (&[u8], &[u8]),
    visit: Visit<'_>,
) -> Result<(), StoreError> {
    if !end.is_empty() && start >= end {
        return Ok(());
    }
    let to = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
    let range = (Bound::Included(stored(start)), to);
    for pair in tables[table as usize].range(txn, &range).map_err(failed)? {
        let (key, value) = pair.map_err(failed)?;
        let key = if table == Table::Meta { &[] } else { key };
        if visit(key, value).is_break() {
            break;
        }
    }
    Ok(())
}

struct LmdbView {
    transaction: RoTxn<'static, WithoutTls>,
    tables: Tables,
}

impl View for LmdbView {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        get(&self.tables, &self.transaction, table, key)
    }

    fn scan(&self, table: Table, start: &[u8], end: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        scan(&self.tables, &self.transaction, table, (start, end), visit)
    }
}

struct LmdbTxn<'e> {
    transaction: RwTxn<'e>,
    tables: Tables,
}

impl View for LmdbTxn<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        get(&self.tables, &self.transaction, table, key)
    }

    fn scan(&self, table: Table, start: &[u8], end: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        scan(&self.tables, &self.transaction, table, (start, end), visit)
    }
}

impl Txn for LmdbTxn<'_> {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.tables[table as usize].put(&mut self.transaction, stored(key), value).map_err(failed)
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        self.tables[table as usize].delete(&mut self.transaction, stored(key)).map_err(failed)?;
        Ok(())
    }
}
