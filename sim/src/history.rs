//! What clients did and were told, over all of them: the ground for the invariants that span clients.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::Model;

/// A client's life: its number and how often it was started before.
pub type Life = (u64, u64);

/// A value of one writer, as it is told to everybody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Register {
    /// The highest value whose writing began.
    pub begun: u64,
    /// The highest value that was acknowledged.
    pub acked: u64,
}

/// An append of a record to the shared log.
#[derive(Debug, Clone, Copy)]
pub struct Appended {
    /// Where it was said to lie, if its append was acknowledged.
    pub at: Option<u64>,
    /// As `Content::volatile_since`.
    pub volatile_since: Option<u64>,
}

/// Everything that is remembered.
#[derive(Debug, Default)]
pub struct Records {
    /// The clients' own directories.
    pub models: BTreeMap<Life, Model>,
    /// By race: who was told to have won.
    pub winners: BTreeMap<String, Life>,
    /// By race: whom a look showed as the winner.
    pub owners: BTreeMap<String, u32>,
    /// By writer.
    pub registers: BTreeMap<Life, Register>,
    /// Acknowledged values of the counter that a lock guards, and who was told so.
    pub counted: BTreeMap<u64, Life>,
    /// Records of the shared log.
    pub appended: BTreeMap<[u8; 16], Appended>,
    /// Delegated directories, by name.
    pub workshops: BTreeMap<String, crate::workshop::Record>,
    /// What must never be.
    pub violations: Vec<String>,
}

/// Shared by all clients of a run and by the run itself.
#[derive(Debug, Default)]
pub struct History {
    records: Mutex<Records>,
    /// How often data that was not synced may have been lost.
    pub losses: AtomicU64,
    /// A datanode's disk was full, so there may have been room nowhere.
    pub full: AtomicBool,
    /// Clients begin nothing new.
    pub stop: AtomicBool,
    /// Operations that were begun.
    pub begun: AtomicU64,
    /// Operations whose outcome is known.
    pub known: AtomicU64,
    /// Operations whose outcome is not.
    pub unknown: AtomicU64,
}

impl History {
    /// Nothing happened yet.
    pub fn new() -> Arc<History> {
        Arc::default()
    }

    /// The records.
    pub fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened that must never happen.
    pub fn violation(&self, what: impl Into<String>) {
        let what = what.into();
        crate::event!("VIOLATION: {what}");
        self.records().violations.push(what);
    }

    /// How often data that was not synced may have been lost so far.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Whether clients should end.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
