//! The client of a CairnFS cluster: follows the leader, writes through chains, reads from the nearest replica.
//!
//! [`Cluster`] is the way in; [`File`] is one file being read and written. Both are cheap to clone.

mod backoff;
mod budget;
mod channel;
mod cluster;
mod config;
mod delegation;
mod engine;
#[cfg(test)]
mod fake;
mod file;
mod fsck;
mod heard;
mod locks;
mod metrics;
mod namespace;
mod probe;
mod read;
mod session;
mod silence;
mod wire;
mod write;

pub use cairn_proto::{Error, ErrorCode, Result, control, data, fs};
pub use cluster::{Cluster, Names};
pub use config::Config;
pub use file::File;
pub use locks::Locked;
pub use metrics::Metrics;
pub use probe::Probe;
