//! A connection to a cluster.

use std::sync::Arc;

use bytes::Bytes;
use cairn_proto::{Result, control, data, fs};
use futures::Stream;

use crate::config::Config;
use crate::file::File;
use crate::metrics::{Counters, Metrics};

/// A connected client. Clones share everything.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    counters: Arc<Counters>,
}

impl Cluster {
    /// Finds the leader. A session is opened by the first mutation.
    pub async fn connect(_config: Config) -> Result<Cluster> {
        todo!()
    }
    /// Closes lanes and session; flushes nothing.
    pub async fn close(&self) -> Result<()> {
        todo!()
    }
    /// The cluster's id.
    pub fn cluster_id(&self) -> String {
        todo!()
    }
    /// Asks the leader; the answer is linearizable.
    pub async fn query(&self, _cred: &fs::Cred, _op: fs::query::Op) -> Result<fs::answer::Result> {
        todo!()
    }
    /// Changes the namespace, exactly once, waiting through leader changes.
    pub async fn mutate(&self, _cred: &fs::Cred, _op: fs::mutation::Op) -> Result<fs::outcome::Result> {
        todo!()
    }
    /// Asks a datanode about its replica of a chunk.
    pub async fn replica_stat(&self, _address: &str, _chunk: u64) -> Result<data::ReplicaStat> {
        todo!()
    }
    /// Who leads, from whichever namenode answers best.
    pub async fn who_leads(&self) -> Result<control::WhoLeadsReply> {
        todo!()
    }
    /// Changes the membership of the namenode group.
    pub async fn change_membership(
        &self,
        _ask: control::MembershipRequest,
    ) -> Result<control::MembershipReply> {
        todo!()
    }
    /// A file to read and write; local state only. All `File`s of one inode share it.
    pub fn open(&self, _cred: &fs::Cred, _attr: fs::Attr) -> File {
        todo!()
    }
    /// Stores a whole small file in one mutation: it appears whole or not at all.
    pub async fn put_small(
        &self,
        _cred: &fs::Cred,
        _ask: fs::CreateFile,
        _content: Bytes,
        _mtime_ns: Option<i64>,
        _sync: bool,
    ) -> Result<fs::Attr> {
        todo!()
    }
    /// The bytes of a file in order, read ahead in parallel. Holes come as zeros.
    pub fn read_stream(
        &self,
        _attr: &fs::Attr,
        _offset: u64,
        _length: u64,
    ) -> impl Stream<Item = Result<Bytes>> + Send + 'static + use<> {
        futures::stream::empty()
    }
    /// What this client did so far.
    pub fn metrics(&self) -> Metrics {
        self.inner.counters.reading()
    }
}
