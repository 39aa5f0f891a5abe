//! A cluster in this process for the client's tests: the real state machine behind a namenode's RPC, and
//! datanodes that keep chunks in memory.

mod datanode;
mod namenode;

pub(crate) use datanode::{Datanode, Mood};
pub(crate) use namenode::Group;

use crate::{Cluster, Config};

impl Group {
    /// A client of this group that is quick to lose patience.
    pub(crate) async fn client(&self) -> Cluster {
        let config = Config {
            namenodes: self.addresses.clone(),
            operation_timeout: std::time::Duration::from_secs(20),
            stall_timeout: std::time::Duration::from_millis(500),
            read_timeout: std::time::Duration::from_millis(800),
            probe_after: std::time::Duration::from_millis(300),
            ..Config::default()
        };
        Cluster::connect(config).await.unwrap()
    }
}
