//! The client of a CairnFS cluster: follows the leader, writes through chains, reads from the nearest replica.
//!
//! [`Cluster`] is the way in; [`File`] is one file being read and written. Both are cheap to clone.

mod cluster;
mod config;
mod file;
mod metrics;
mod namespace;

pub use cairn_proto::{Error, ErrorCode, Result, control, data, fs};
pub use cluster::Cluster;
pub use config::Config;
pub use file::File;
pub use metrics::Metrics;
