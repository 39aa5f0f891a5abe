//! A whole CairnFS cluster in one thread, driven by a seed.
//!
//! The code that ships - namespace, Raft, log, store, sessions, planners, chunk stores, attendance, client library -
//! runs on simulated [machines](machine) with a simulated [network] and disks, under a [plan] of faults. [Clients](client)
//! do random things and check every answer; at the end the [invariants] are checked. The same seed gives the same run,
//! to the last event. `docs/decisions/0009-simulation.md` says what is simulated, and what is not.

pub mod check;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod entropy;
pub mod history;
pub mod invariants;
pub mod machine;
pub mod model;
#[cfg(test)]
mod mutations;
pub mod network;
pub mod nodes;
pub mod plan;
pub mod random;
pub mod runner;
pub mod trace;
pub mod workshop;

use std::sync::atomic::Ordering;

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// Of all events: two runs of a seed have the same.
    pub digest: u64,
    /// How many events there were.
    pub events: u64,
    /// Virtual time, in seconds.
    pub seconds: u64,
    /// Operations that were begun, and those whose outcome was never known.
    pub operations: (u64, u64),
    /// What must never be, and was.
    pub violations: Vec<String>,
}

/// Runs a seed in this thread. For a repeatable run the thread must be fresh, and so must the process.
pub fn run(seed: u64) -> Report {
    let history = cluster::Cluster::new(plan::Plan::of(seed)).run();
    let (digest, events) = trace::digest();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    Report {
        digest,
        events,
        seconds: machine::now() / 1_000_000_000,
        operations: (count(&history.begun), count(&history.unknown)),
        violations: history.records().violations.clone(),
    }
}
