//! A connection to a cluster.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use cairn_proto::{ErrorCode, Result, control, data, fs};
use futures::Stream;

use crate::channel::Channel;
use crate::config::Config;
use crate::engine::Engine;
use crate::file::File;
use crate::heard::Heard;
use crate::metrics::{Counters, Metrics};
use crate::namespace::root;
use crate::read;

/// How long closing may wait for the leader: a session that is not closed expires.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);

/// A connected client. Clones share everything.
#[derive(Clone)]
pub struct Cluster {
    engine: Arc<Engine>,
}

/// The names in a client's own directories, as somebody has them open. Clones are one to whom losses are told once.
#[derive(Clone)]
pub struct Names {
    engine: Arc<Engine>,
    heard: Heard,
}

impl Names {
    /// Waits until all that was done is done for good. Says once what was lost since these were asked for, and what nobody
    /// was told of before.
    pub async fn sync(&self) -> Result<()> {
        self.engine.delegations.flush(&self.heard).await
    }
}

impl Cluster {
    /// Finds the cluster, waiting for it as long as any operation. A session is opened by the first mutation.
    pub async fn connect(config: Config) -> Result<Cluster> {
        let counters = Arc::new(Counters::default());
        let channel = Channel::connect(config.clone(), Arc::clone(&counters)).await?;
        Ok(Cluster { engine: Engine::start(config, channel, counters) })
    }

    /// Closes lanes and session. Commits nothing, but tells what was done in this client's own directories.
    pub async fn close(&self) -> Result<()> {
        if let Err(error) = self.engine.delegations.settle().await {
            tracing::error!(%error, "changes that were acknowledged could not be made");
        }
        self.engine.close();
        self.engine.channel.close(CLOSE_LIMIT).await
    }

    /// Commits all that was written through any file, and waits until all that was done in this client's own directories
    /// is done for good.
    pub async fn settle(&self) -> Result<()> {
        self.engine.settle().await
    }

    /// Whether nothing is left for [`Cluster::settle`] to do.
    pub fn is_settled(&self) -> bool {
        self.engine.is_settled()
    }

    /// Waits until all that was done in this client's own directories is done for good. What was lost of it is said once.
    pub async fn sync_names(&self) -> Result<()> {
        self.engine.delegations.settle().await
    }

    /// The names in this client's own directories, for one of several who are to hear each by itself what is lost.
    pub fn names(&self) -> Names {
        Names { engine: Arc::clone(&self.engine), heard: self.engine.delegations.listen() }
    }

    /// Whether nobody else can see this inode, so that what is written to it need not be committed at once.
    pub fn is_own(&self, inode: u64) -> bool {
        self.engine.delegations.defers(inode)
    }

    /// How often something was changed through this client, as far as others could see it: what was asked for before may
    /// not be so any more.
    pub fn changes(&self) -> u64 {
        self.engine.changes()
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> String {
        self.engine.channel.namenodes().cluster_id().to_owned()
    }

    /// Asks the leader; the answer is linearizable.
    pub async fn query(&self, cred: &fs::Cred, op: fs::query::Op) -> Result<fs::answer::Result> {
        self.engine.query(cred, op).await
    }

    /// Changes the namespace, exactly once, waiting through leader changes.
    pub async fn mutate(&self, cred: &fs::Cred, op: fs::mutation::Op) -> Result<fs::outcome::Result> {
        self.engine.mutate(cred, op).await
    }

    /// Asks the datanode that has this replica of a chunk about it.
    pub async fn replica_stat(&self, replica: &fs::ReplicaInfo, chunk: u64) -> Result<data::ReplicaStat> {
        self.engine.reader.pool().stat(replica, chunk).await
    }

    /// Who leads, from the namenode that knows of the newest term.
    pub async fn who_leads(&self) -> Result<control::WhoLeadsReply> {
        self.engine.channel.namenodes().who_leads().await
    }

    /// Changes the membership of the namenode group.
    pub async fn change_membership(
        &self,
        ask: control::MembershipRequest,
    ) -> Result<control::MembershipReply> {
        self.engine.channel.change_membership(ask).await
    }

    /// Has datanodes read and verify what they hold, soon.
    pub async fn scrub(&self, ask: control::ScrubRequest) -> Result<control::ScrubReply> {
        self.engine.channel.scrub(ask).await
    }

    /// Has replicas moved from full datanodes to empty ones for the next seconds, and says how far that is.
    pub async fn balance(&self, ask: control::BalanceRequest) -> Result<control::BalanceReply> {
        self.engine.channel.balance(ask).await
    }

    /// Writes all metadata, as the leader has them, to `out`; returns how many bytes. What was written is whole only if
    /// this succeeds.
    pub async fn snapshot_metadata(&self, out: &mut impl std::io::Write) -> Result<u64> {
        let failed = |error: std::io::Error| ErrorCode::Io.because(format!("writing the snapshot: {error}"));
        let cut = |status: tonic::Status| {
            ErrorCode::Unavailable.because(format!("the snapshot was cut short: {}", status.message()))
        };
        let (first, mut parts) = self.engine.channel.snapshot_metadata().await?;
        out.write_all(&first.data).map_err(failed)?;
        let mut written = first.data.len() as u64;
        while let Some(part) = parts.message().await.map_err(cut)? {
            out.write_all(&part.data).map_err(failed)?;
            written += part.data.len() as u64;
        }
        Ok(written)
    }

    /// Takes a datanode out of service, or back in.
    pub async fn set_datanode(&self, ask: control::SetDatanodeRequest) -> Result<()> {
        self.engine.channel.set_datanode(ask).await.map(drop)
    }

    /// A file to read and write; local state only. All `File`s of one inode share it, so a program sees its own
    /// writes through every one of them.
    pub fn open(&self, cred: &fs::Cred, attr: fs::Attr) -> File {
        File::new(self.engine.inode(cred, attr), cred.clone())
    }

    /// Stores a whole small file (at most 8 MiB) in one mutation: it appears whole or not at all. Many may run
    /// at once; they share lanes and log entries. `sync`: its bytes are on the disks of all replicas first.
    pub async fn put_small(
        &self,
        cred: &fs::Cred,
        ask: fs::CreateFile,
        content: Bytes,
        mtime_ns: Option<i64>,
        sync: bool,
    ) -> Result<fs::Attr> {
        let truncates = ask.truncate;
        let attr = self.engine.put_small(cred, ask, content, mtime_ns, sync).await?;
        self.tell_open(&attr, truncates);
        Ok(attr)
    }

    /// Tells the open state of a file, if it has one, what was put into the file past it.
    fn tell_open(&self, attr: &fs::Attr, truncates: bool) {
        if let Some(inode) = self.engine.find(attr.inode) {
            if truncates {
                inode.discard();
            }
            inode.learn_put(attr);
        }
    }

    /// Makes a file that shares all of the inode `source`, in one mutation: no byte is moved, and it appears whole or
    /// not at all. `TooLarge` when that is more than one mutation does: then [`File::clone_range`] does it in parts.
    pub async fn clone_file(
        &self,
        cred: &fs::Cred,
        source: u64,
        ask: fs::CreateFile,
        mtime_ns: Option<i64>,
    ) -> Result<fs::Attr> {
        let truncates = ask.truncate;
        let attr = self.engine.clone_file(cred, source, ask, mtime_ns).await?;
        self.tell_open(&attr, truncates);
        Ok(attr)
    }

    /// The bytes of a file in order, read ahead in parallel. Holes come as zeros.
    pub fn read_stream(
        &self,
        attr: &fs::Attr,
        offset: u64,
        length: u64,
    ) -> impl Stream<Item = Result<Bytes>> + Send + 'static + use<> {
        let file = self.open(&root(), *attr);
        let end = offset.saturating_add(length).min(file.attr().size);
        read::stream(file, offset, end.saturating_sub(offset), self.engine.config.read_ahead_bytes)
    }

    /// What this client did so far.
    pub fn metrics(&self) -> Metrics {
        let (bytes_waiting, bytes_waiting_limit) = self.engine.budget().taken();
        let layout_bytes = self.engine.layout_bytes.load(Ordering::Relaxed) as u64;
        let (delegated_inodes, deeds_waiting, deeds) = self.engine.delegations.figures();
        Metrics {
            bytes_waiting,
            bytes_waiting_limit,
            layout_bytes,
            delegated_inodes,
            deeds_waiting,
            deeds,
            ..self.engine.counters.reading()
        }
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }
}
