//! The store in memory: for tests, simulation and models.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::{PoisonError, RwLock};

use crate::store::{Durability, ReadBody, Store, StoreError, Table, Txn, View, WriteBody};

/// All tables in one ordered map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables(BTreeMap<(Table, Vec<u8>), Vec<u8>>);

impl View for Tables {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let from = Bound::Included((table, start.to_vec()));
        for ((at, key), value) in self.0.range((from, Bound::Unbounded)) {
            if *at != table || (!end.is_empty() && key.as_slice() >= end) {
                break;
            }
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Txn for Tables {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.0.insert((table, key.to_vec()), value.to_vec());
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        self.0.remove(&(table, key.to_vec()));
        Ok(())
    }
}

/// A [`Store`] over [`Tables`]; a failed write rolls back by copying.
#[derive(Debug, Default)]
pub struct MemoryStore(RwLock<Tables>);

impl Store for MemoryStore {
    fn read(&self, body: ReadBody<'_>) -> Result<(), StoreError> {
        body(&*self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, _: Durability, body: WriteBody<'_>) -> Result<(), StoreError> {
        let mut tables = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let before = tables.clone();
        let result = body(&mut *tables);
        if result.is_err() {
            *tables = before;
        }
        result
    }

    fn snapshot(&self) -> Result<Box<dyn View + Send>, StoreError> {
        Ok(Box::new(self.0.read().unwrap_or_else(PoisonError::into_inner).clone()))
    }
}
