//! [`Store`] over a redb database that can be exchanged as a whole while the process runs.

use std::cell::OnceCell;
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use cairn_host::disk::{Access, Handle, SharedDisk};
use cairn_metadata::store::{Durability, ReadBody, Store, StoreError, Table, Txn, View, Visit, WriteBody};
use redb::{Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};
use redb::{DatabaseError, StorageError, WriteTransaction};

use super::pages::Pages;
use super::{damaged, engine};
use crate::fatal::said;

/// Tables of a store, opened on first use.
const TABLES: usize = Table::ALL.len();

fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.name())
}

/// The store of one namenode.
#[derive(Debug)]
pub struct RedbStore {
    database: RwLock<Arc<Database>>,
    path: PathBuf,
    cache_bytes: usize,
    disk: SharedDisk,
}

impl RedbStore {
    /// Opens the store at `path`, making it when there is none. A file that is not a store, or a damaged one, is
    /// [`StoreError::Damaged`].
    pub fn open(path: &Path, cache_bytes: usize, disk: SharedDisk) -> Result<RedbStore, StoreError> {
        let found = disk.look(path).map_err(|error| failed(path, error))?;
        let database = match found {
            Some(_) => {
                // What an earlier process did not come to the end of, as when there was no room for it.
                remove_fresh(path, &disk);
                open_database(path, cache_bytes, &disk)?
            }
            None => {
                // A store that is half made is no store: it gets its name when it is whole.
                let database = make_database(&fresh_path(path), cache_bytes, &disk)?;
                put_in_place(path, &disk)?;
                database
            }
        };
        let database = RwLock::new(Arc::new(database));
        Ok(RedbStore { database, path: path.to_owned(), cache_bytes, disk })
    }

    /// Builds a fresh store with `fill` beside this one and takes its place at once: earlier views keep what they
    /// saw, later ones see the new content. A failed `fill` changes nothing, and leaves nothing behind.
    pub fn replace(&self, fill: impl FnOnce(&RedbStore) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let fresh = self.make_fresh(fill).inspect_err(|_| remove_fresh(&self.path, &self.disk))?;
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    fn make_fresh(
        &self,
        fill: impl FnOnce(&RedbStore) -> Result<(), StoreError>,
    ) -> Result<Arc<Database>, StoreError> {
        let path = fresh_path(&self.path);
        let database = make_database(&path, self.cache_bytes, &self.disk)?;
        let fresh = RedbStore {
            database: RwLock::new(Arc::new(database)),
            path,
            cache_bytes: self.cache_bytes,
            disk: self.disk.clone(),
        };
        fill(&fresh)?;
        // The new file must be whole on disk before it takes the name of the old one.
        fresh.write(Durability::Durable, &mut |_| Ok(()))?;
        put_in_place(&self.path, &self.disk)?;
        Ok(fresh.database.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes everything applied so far durable.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.write(Durability::Durable, &mut |_| Ok(()))
    }

    /// The disk it is on.
    pub fn disk(&self) -> &SharedDisk {
        &self.disk
    }

    fn database(&self) -> Arc<Database> {
        self.database.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn failed(path: &Path, error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::InvalidData => damaged(error),
        _ => StoreError::Engine(format!("{}: {error}", path.display())),
    }
}

/// Where a store is made until it is whole.
fn fresh_path(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Removes what was to become the store at `path`, if there is any of it.
fn remove_fresh(path: &Path, disk: &SharedDisk) {
    let fresh = fresh_path(path);
    match disk.remove(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %fresh.display(), "an unfinished store was not removed");
        }
        _ => {}
    }
}

/// Gives the store that was made beside `path` its name, durably.
fn put_in_place(path: &Path, disk: &SharedDisk) -> Result<(), StoreError> {
    let dir = path.parent().unwrap_or(path);
    disk.rename(&fresh_path(path), path)
        .and_then(|()| disk.sync_dir(dir))
        .map_err(|error| failed(path, error))
}

/// An empty store at `path`, in the place of whatever an earlier process left there.
fn make_database(path: &Path, cache_bytes: usize, disk: &SharedDisk) -> Result<Database, StoreError> {
    let file = disk.open(path, Access::Create).map_err(|error| failed(path, error))?;
    use_pages(Pages::fresh(file, path), path, cache_bytes)
}

fn open_database(path: &Path, cache_bytes: usize, disk: &SharedDisk) -> Result<Database, StoreError> {
    let file = disk.open(path, Access::Write).map_err(|error| failed(path, error))?;
    // What an earlier process failed to write, or did not come as far as to name, must not be taken for durable.
    file.reread()
        .and_then(|()| disk.sync_dir(path.parent().unwrap_or(path)))
        .map_err(|error| failed(path, error))?;
    let mut head = [0; 16];
    let file = match file.read_at(&mut head, 0) {
        Ok(_) if Pages::is_plain(&head) => add_checksums(&file, path, disk)?,
        Ok(_) => file,
        Err(error) => return Err(failed(path, error)),
    };
    let pages = Pages::open(file, path).map_err(|error| failed(path, error))?;
    use_pages(pages, path, cache_bytes)
}

/// Puts a store with checksums in the place of one that has none yet.
fn add_checksums(plain: &Handle, path: &Path, disk: &SharedDisk) -> Result<Handle, StoreError> {
    tracing::info!(store = %path.display(), "adding checksums to the store's pages");
    let fresh = fresh_path(path);
    let file = disk.open(&fresh, Access::Create).map_err(|error| failed(&fresh, error))?;
    Pages::fresh(file.clone(), path).copy_plain(plain).map_err(|error| failed(&fresh, error))?;
    put_in_place(path, disk)?;
    Ok(file)
}

fn use_pages(pages: Pages, path: &Path, cache_bytes: usize) -> Result<Database, StoreError> {
    let damaged = |error: String| damaged(format!("{}: {error}", path.display()));
    let mut builder = Database::builder();
    builder.set_cache_size(cache_bytes);
    // Some of what the engine finds in a damaged file it meets with an assertion.
    let opened = catch_unwind(AssertUnwindSafe(|| builder.create_with_backend(pages)))
        .map_err(|panic| damaged(format!("the storage engine gave up on it: {}", said(panic.as_ref()))))?;
    let database = opened.map_err(|error| match error {
        DatabaseError::Storage(StorageError::Corrupted(what)) => damaged(what),
        DatabaseError::Storage(StorageError::Io(error)) => failed(path, error),
        DatabaseError::UpgradeRequired(version) => damaged(format!("file format {version} is too old")),
        other => StoreError::Engine(format!("{}: {other}", path.display())),
    })?;
    let mut transaction = database.begin_write().map_err(engine)?;
    // Every commit that reaches the disk: where a crash left one half done, nobody has to read what is not whole.
    transaction.set_quick_repair(true);
    for table in Table::ALL {
        transaction.open_table(definition(table)).map_err(engine)?;
    }
    transaction.commit().map_err(engine)?;
    Ok(database)
}

impl Store for RedbStore {
    fn read(&self, body: ReadBody<'_>) -> Result<(), StoreError> {
        body(&ReadView::begin(self.database())?)
    }

    fn write(&self, durability: Durability, body: WriteBody<'_>) -> Result<(), StoreError> {
        let database = self.database();
        let mut transaction = database.begin_write().map_err(engine)?;
        match durability {
            Durability::Applied => transaction.set_durability(redb::Durability::None).map_err(engine)?,
            // Recovery after a crash must not walk the whole store.
            Durability::Durable => transaction.set_quick_repair(true),
        }
        {
            let mut txn = WriteTxn { transaction: &transaction, tables: [const { OnceCell::new() }; TABLES] };
            body(&mut txn)?;
        }
        transaction.commit().map_err(engine)
    }

    fn snapshot(&self) -> Result<Box<dyn View + Send>, StoreError> {
        Ok(Box::new(ReadView::begin(self.database())?))
    }
}

type OpenRead = ReadOnlyTable<&'static [u8], &'static [u8]>;
type OpenWrite<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;

/// A read transaction. It keeps its database open: one that is replaced meanwhile goes when its last view goes.
struct ReadView {
    tables: [OnceCell<OpenRead>; TABLES],
    transaction: ReadTransaction,
    _database: Arc<Database>,
}

impl ReadView {
    fn begin(database: Arc<Database>) -> Result<ReadView, StoreError> {
        let transaction = database.begin_read().map_err(engine)?;
        Ok(ReadView { tables: [const { OnceCell::new() }; TABLES], transaction, _database: database })
    }

    fn table(&self, table: Table) -> Result<&OpenRead, StoreError> {
        let cell = &self.tables[table as usize];
        if let Some(open) = cell.get() {
            return Ok(open);
        }
        let open = self.transaction.open_table(definition(table)).map_err(engine)?;
        Ok(cell.get_or_init(|| open))
    }
}

impl View for ReadView {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        get_from(self.table(table)?, key)
    }

    fn scan(&self, table: Table, start: &[u8], end: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        scan_from(self.table(table)?, start, end, visit)
    }
}

struct WriteTxn<'t> {
    transaction: &'t WriteTransaction,
    tables: [OnceCell<OpenWrite<'t>>; TABLES],
}

impl<'t> WriteTxn<'t> {
    fn table(&self, table: Table) -> Result<&OpenWrite<'t>, StoreError> {
        let cell = &self.tables[table as usize];
        if let Some(open) = cell.get() {
            return Ok(open);
        }
        let open = self.transaction.open_table(definition(table)).map_err(engine)?;
        Ok(cell.get_or_init(|| open))
    }

    fn table_mut(&mut self, table: Table) -> Result<&mut OpenWrite<'t>, StoreError> {
        self.table(table)?;
        let unopened = || StoreError::Engine(format!("table {} did not open", table.name()));
        self.tables[table as usize].get_mut().ok_or_else(unopened)
    }
}

impl View for WriteTxn<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        get_from(self.table(table)?, key)
    }

    fn scan(&self, table: Table, start: &[u8], end: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        scan_from(self.table(table)?, start, end, visit)
    }
}

impl Txn for WriteTxn<'_> {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.table_mut(table)?.insert(key, value).map_err(engine)?;
        Ok(())
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<(), StoreError> {
        self.table_mut(table)?.remove(key).map_err(engine)?;
        Ok(())
    }
}

fn get_from(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    key: &[u8],
) -> Result<Option<Vec<u8>>, StoreError> {
    let guard = table.get(key).map_err(engine)?;
    Ok(guard.map(|guard| guard.value().to_vec()))
}

fn scan_from(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    start: &[u8],
    end: &[u8],
    visit: Visit<'_>,
) -> Result<(), StoreError> {
    if !end.is_empty() && start >= end {
        return Ok(());
    }
    let to = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
    for pair in table.range::<&[u8]>((Bound::Included(start), to)).map_err(engine)? {
        let (key, value) = pair.map_err(engine)?;
        if visit(key.value(), value.value()).is_break() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use cairn_host::disk::real;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn put(store: &RedbStore, durability: Durability, key: &[u8], value: &[u8]) {
        store.write(durability, &mut |txn| txn.put(Table::Inode, key, value)).unwrap();
    }

    fn get(store: &RedbStore, key: &[u8]) -> Option<Vec<u8>> {
        let mut found = None;
        let mut body = |view: &dyn View| {
            found = view.get(Table::Inode, key)?;
            Ok(())
        };
        store.read(&mut body).unwrap();
        found
    }

    #[test]
    fn a_failed_write_rolls_back_and_a_scan_stops_at_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(&dir.path().join("s"), 1 << 20, real()).unwrap();
        for key in [b"a", b"b", b"c"] {
            put(&store, Durability::Applied, key, b"1");
        }
        let result = store.write(Durability::Applied, &mut |txn| {
            txn.put(Table::Inode, b"d", b"1")?;
            assert!(txn.get(Table::Inode, b"d")?.is_some());
            Err(StoreError::Damaged("no".into()))
        });
        assert!(result.is_err());
        assert_eq!(get(&store, b"d"), None);
        let mut seen = Vec::new();
        let mut body = |view: &dyn View| {
            view.scan(Table::Inode, b"a", b"c", &mut |key, _| {
                seen.push(key.to_vec());
                ControlFlow::Continue(())
            })
        };
        store.read(&mut body).unwrap();
        assert_eq!(seen, [b"a", b"b"]);
    }

    #[test]
    fn a_snapshot_does_not_see_what_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(&dir.path().join("s"), 1 << 20, real()).unwrap();
        put(&store, Durability::Applied, b"a", b"1");
        let view = store.snapshot().unwrap();
        put(&store, Durability::Applied, b"a", b"2");
        assert_eq!(view.get(Table::Inode, b"a").unwrap().unwrap(), b"1");
        assert_eq!(get(&store, b"a").unwrap(), b"2");
    }

    #[test]
    fn durable_content_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        {
            let store = RedbStore::open(&path, 1 << 20, real()).unwrap();
            put(&store, Durability::Applied, b"a", b"1");
            store.checkpoint().unwrap();
        }
        let store = RedbStore::open(&path, 1 << 20, real()).unwrap();
        assert_eq!(get(&store, b"a").unwrap(), b"1");
    }

    #[test]
    fn a_foreign_file_is_damaged_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, vec![7u8; 100_000]).unwrap();
        assert!(matches!(RedbStore::open(&path, 1 << 20, real()), Err(StoreError::Damaged(_))));
        assert_eq!(std::fs::read(&path).unwrap(), vec![7u8; 100_000]);
    }

    /// Everything in a store.
    fn content(store: &RedbStore) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        super::super::stream::write(&*store.snapshot().unwrap(), &mut bytes).map(|_| bytes)
    }

    #[test]
    fn a_flipped_bit_is_never_read_as_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let expected = {
            let store = RedbStore::open(&path, 1 << 20, real()).unwrap();
            for number in 0..500u64 {
                put(&store, Durability::Applied, &number.to_be_bytes(), &[number as u8; 100]);
            }
            store.checkpoint().unwrap();
            content(&store).unwrap()
        };
        let good = std::fs::read(&path).unwrap();
        let mut dice = StdRng::seed_from_u64(1);
        let mut found = 0;
        for _ in 0..300 {
            let mut bad = good.clone();
            let at = dice.random_range(0..bad.len());
            bad[at] ^= 1 << dice.random_range(0..8);
            std::fs::write(&path, &bad).unwrap();
            match RedbStore::open(&path, 1 << 20, real()).and_then(|store| content(&store)) {
                Ok(read) => assert!(read == expected, "byte {at}"),
                Err(StoreError::Damaged(_)) => found += 1,
                Err(other) => panic!("byte {at}: {other}"),
            }
        }
        assert!(found > 0);
    }

    #[test]
    fn a_flipped_bit_of_the_first_page_never_brings_back_an_older_state() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let expected = {
            let store = RedbStore::open(&path, 1 << 20, real()).unwrap();
            for round in 0..5u8 {
                for number in 0..100u64 {
                    put(&store, Durability::Applied, &number.to_be_bytes(), &[round; 100]);
                }
                store.checkpoint().unwrap();
            }
            content(&store).unwrap()
        };
        let good = std::fs::read(&path).unwrap();
        // The first page lies behind that of the first sums, and has two slots; redb uses 320 bytes of each.
        let mut dice = StdRng::seed_from_u64(1);
        for at in (0..340).step_by(3).flat_map(|at| [4096 + at, 4096 + 2048 + at]) {
            let mut bad = good.clone();
            bad[at] ^= 1 << dice.random_range(0..8);
            std::fs::write(&path, &bad).unwrap();
            match RedbStore::open(&path, 1 << 20, real()).and_then(|store| content(&store)) {
                Ok(read) => assert!(read == expected, "byte {at}"),
                Err(StoreError::Damaged(what)) => {
                    assert!(what.contains("move this namenode's directory away"))
                }
                Err(other) => panic!("byte {at}: {other}"),
            }
        }
    }

    #[test]
    fn a_store_without_checksums_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        {
            let database = Database::create(&path).unwrap();
            let transaction = database.begin_write().unwrap();
            {
                let mut table = transaction.open_table(definition(Table::Inode)).unwrap();
                table.insert(b"a".as_slice(), b"1".as_slice()).unwrap();
            }
            transaction.commit().unwrap();
        }
        for _ in 0..2 {
            let store = RedbStore::open(&path, 1 << 20, real()).unwrap();
            assert_eq!(get(&store, b"a").unwrap(), b"1");
            assert!(!Pages::is_plain(&std::fs::read(&path).unwrap()));
        }
    }

    #[test]
    fn a_replaced_store_serves_old_views_and_new_readers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let store = RedbStore::open(&path, 1 << 20, real()).unwrap();
        put(&store, Durability::Durable, b"a", b"old");
        let before = store.snapshot().unwrap();
        assert!(store.replace(|_| Err(StoreError::Damaged("half".into()))).is_err());
        assert!(!fresh_path(&path).exists(), "what failed takes no room");
        assert_eq!(get(&store, b"a").unwrap(), b"old");
        store
            .replace(|fresh| {
                put(fresh, Durability::Applied, b"a", b"new");
                Ok(())
            })
            .unwrap();
        assert_eq!(before.get(Table::Inode, b"a").unwrap().unwrap(), b"old");
        assert_eq!(get(&store, b"a").unwrap(), b"new");
        drop((store, before));
        std::fs::write(fresh_path(&path), b"half of one").unwrap();
        assert_eq!(get(&RedbStore::open(&path, 1 << 20, real()).unwrap(), b"a").unwrap(), b"new");
        assert!(!fresh_path(&path).exists(), "what an earlier process left takes no room");
    }
}
