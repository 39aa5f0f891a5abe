//! A namenode: the shell around the namespace's state machine.
//!
//! [`run()`] takes a directory, finds the namenode's place in its group (`formation`), and serves. What a client asks
//! comes through `converse`; what changes goes through [`propose`] into the log of the group (`raft`, [`log`])
//! and from there into the [`store`]. What the leader knows of datanodes is in `attend`.

mod attend;
mod backup;
mod caller;
mod capabilities;
mod channel;
mod chores;
mod config;
mod converse;
mod counters;
mod door;
mod edge;
mod fatal;
mod formation;
mod identity;
mod leader_clock;
pub mod log;
mod member;
mod patience;
pub mod propose;
mod raft;
mod recalls;
pub mod restore;
mod run;
mod seat;
mod service;
mod sessions;
mod site;
pub mod store;

#[cfg(test)]
mod tests;

pub use config::Config;
pub use run::{run, run_checked};
