//! The questions of a check of the cluster: what the records say, and what a datanode has.

use cairn_proto::data::ReplicaList;
use cairn_proto::{ErrorCode, Result, fs};
use fs::answer::Result as Answered;
use fs::query::Op as Ask;

use crate::Cluster;

impl Cluster {
    /// A page of a file's extents from `offset` on, with the chunks they name; one that does not exist is left out.
    pub async fn check_file(&self, cred: &fs::Cred, at: fs::NodeRef, offset: u64) -> Result<fs::FileCheck> {
        let ask = fs::CheckFile { at: Some(at), offset, limit: 0 };
        match self.query(cred, Ask::CheckFile(ask)).await? {
            Answered::FileCheck(check) => Ok(check),
            _ => odd("file"),
        }
    }

    /// A page of chunks from id `from` on, compared with the extents that name them. For root only.
    pub async fn check_chunks(&self, cred: &fs::Cred, from: u64) -> Result<fs::ChunksCheck> {
        match self.query(cred, Ask::CheckChunks(fs::CheckChunks { from, limit: 0 })).await? {
            Answered::ChunksCheck(check) => Ok(check),
            _ => odd("chunks"),
        }
    }

    /// A page of what the records place on a datanode, from chunk `from` on; `limit` 0 is the server's. For root only.
    pub async fn check_node(
        &self,
        cred: &fs::Cred,
        node: u32,
        from: u64,
        limit: u32,
    ) -> Result<fs::NodeCheck> {
        match self.query(cred, Ask::CheckNode(fs::CheckNode { node, from, limit })).await? {
            Answered::NodeCheck(check) => Ok(check),
            _ => odd("node"),
        }
    }

    /// A page of what the datanode at `address` has, from chunk `first` on; `limit` 0 is the datanode's.
    pub async fn list_replicas(&self, address: &str, first: u64, limit: u32) -> Result<ReplicaList> {
        self.engine().reader.pool().list(address, first, limit).await
    }
}

fn odd<T>(what: &str) -> Result<T> {
    Err(ErrorCode::Malformed.because(format!("the namenode's answer to a check of {what}")))
}
