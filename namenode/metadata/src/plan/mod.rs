//! Planners: what the leader should do about datanodes and replicas, from a view of them.
//!
//! Everything here is a function of its arguments. Times are milliseconds on the leader's monotonic clock
//! (garbage: nanoseconds of the log's time), randomness is a seed. The executor beside the planners
//! (`namenode/src/attend/`) makes the plans true and looks again; a plan is never remembered, so a plan that was
//! wrong, late or lost is simply made anew.

pub mod backoff;
pub mod balance;
pub mod compact;
pub mod garbage;
pub mod liveness;
pub mod placement;
pub mod problems;
pub mod random;
pub mod reconcile;
pub mod repair;
pub mod snapshot;
pub mod trash;
pub mod verdict;

#[cfg(test)]
mod model;

use std::collections::BTreeMap;

use cairn_proto::fs::{AdminState, Liveness};

/// A datanode as planners see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The leader's judgement.
    pub liveness: Liveness,
    /// What the operator wants of it.
    pub admin: AdminState,
    /// Machine it runs on.
    pub host: String,
    /// Failure domain of that machine.
    pub rack: String,
    /// Free bytes, less what was promised to copies on their way.
    pub available: u64,
    /// Bytes in all, used and free.
    pub capacity: u64,
}

impl Node {
    /// Counts as present: heard lately, or the leader is too new to have heard.
    pub fn is_present(&self) -> bool {
        matches!(self.liveness, Liveness::Live | Liveness::Unknown)
    }

    /// What it holds is to be held by others instead.
    pub fn is_leaving(&self) -> bool {
        self.admin == AdminState::Decommissioning
    }

    /// New replicas may be put here.
    pub fn takes_replicas(&self) -> bool {
        self.is_present() && self.admin == AdminState::Normal
    }
}

#[cfg(test)]
impl Node {
    /// A datanode of tests, with room to spare.
    fn roomy(liveness: Liveness, host: String) -> Node {
        Node {
            liveness,
            admin: AdminState::Normal,
            host,
            rack: String::new(),
            available: 1 << 40,
            capacity: 1 << 41,
        }
    }

    /// So many live ones, each on a host of its own, numbered from 1.
    fn live(count: u32) -> Nodes {
        (1..=count).map(|id| (id, Node::roomy(Liveness::Live, format!("h{id}")))).collect()
    }
}

/// Every registered datanode by number.
pub type Nodes = BTreeMap<u32, Node>;
