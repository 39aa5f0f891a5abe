//! The namespace on disk: the core's store traits over redb, and the file a whole store travels in.
//!
//! A commit at `Durability::Applied` costs no fsync: the Raft log already holds its effects, and a crash falls
//! back to the last durable commit, from which the log is applied again. The applied log id lives in the same
//! transactions, so the store always says itself how far it is.

#[cfg(test)]
mod crash_tests;
mod engine;
mod head;
mod pages;
pub mod stream;

pub use engine::RedbStore;

use std::fmt::Display;

use cairn_metadata::store::StoreError;

use crate::fatal::REMEDY;

/// An engine error as the core's.
fn engine(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Corrupted(what) => damaged(what),
        redb::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => damaged(error),
        other => StoreError::Engine(other.to_string()),
    }
}

/// The file of a store is damaged.
fn damaged(what: impl Display) -> StoreError {
    StoreError::Damaged(format!("{what}; {REMEDY}"))
}
