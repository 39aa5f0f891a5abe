//! The engines under comparison, behind the store trait of the namespace.

mod fjall;
mod lmdb;
mod redb;

use std::path::Path;

use cairn_metadata::store::{Store, StoreError};
use clap::ValueEnum;

/// An engine that could hold the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// The namenode's own engine file over redb.
    Redb,
    /// fjall, all tables in one keyspace.
    Fjall,
    /// LMDB that syncs only on durable commits. A power cut may damage it.
    Lmdb,
    /// LMDB that syncs every commit: what it costs to make it safe.
    LmdbSync,
}

impl Engine {
    /// The name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Redb => "redb",
            Engine::Fjall => "fjall",
            Engine::Lmdb => "lmdb",
            Engine::LmdbSync => "lmdb-sync",
        }
    }

    /// Opens the store in `dir`, making it when there is none. LMDB has no cache of its own and ignores `cache_bytes`.
    pub fn open(self, dir: &Path, cache_bytes: usize) -> Result<Box<dyn Store>, StoreError> {
        std::fs::create_dir_all(dir).map_err(failed)?;
        Ok(match self {
            Engine::Redb => Box::new(redb::open(dir, cache_bytes)?),
            Engine::Fjall => Box::new(fjall::FjallStore::open(dir, cache_bytes)?),
            Engine::Lmdb => Box::new(lmdb::LmdbStore::open(dir, lmdb::Sync::OnDurable)?),
            Engine::LmdbSync => Box::new(lmdb::LmdbStore::open(dir, lmdb::Sync::Always)?),
        })
    }
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Engine(error.to_string())
}
