//! The namenode's own redb engine, compiled from its file: the comparison measures what ships, without building Raft.

// The namenode uses more of its engine than a comparison does, and lints its own files.
#[allow(dead_code, clippy::all)]
#[rustfmt::skip]
#[path = "../../../../namenode/src/store/engine.rs"]
mod shipped;

use std::path::Path;

use cairn_metadata::store::StoreError;

/// Opens the store in `dir`.
pub fn open(dir: &Path, cache_bytes: usize) -> Result<shipped::RedbStore, StoreError> {
    shipped::RedbStore::open(&dir.join("store.redb"), cache_bytes, cairn_host::disk::real())
}

/// The engine file takes this conversion from the module above it.
fn engine(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Corrupted(what) => StoreError::Damaged(what),
        other => StoreError::Engine(other.to_string()),
    }
}
