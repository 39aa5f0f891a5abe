//! Chunks from the real namenode.

use cairn_proto::limits::CHUNK_SIZE;
use cairn_proto::{ErrorCode, Result, fs};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::OnceCell;

use super::{Allocated, Control};
use crate::channel::Channel;
use crate::namespace::root;

/// Allocates and seals through the leader.
pub(crate) struct Leader {
    channel: Channel,
    host: String,
    chunk_size: OnceCell<u64>,
}

impl Leader {
    pub(crate) fn new(channel: Channel, host: String) -> Leader {
        Leader { channel, host, chunk_size: OnceCell::new() }
    }

    async fn chunk_size(&self) -> Result<u64> {
        let ask = || async {
            match self.channel.query(&root(), fs::query::Op::StatFs(fs::StatFs::default())).await? {
                fs::answer::Result::Fs(stats) if stats.chunk_size > 0 => Ok(stats.chunk_size),
                fs::answer::Result::Fs(_) => Ok(CHUNK_SIZE),
                _ => Err(ErrorCode::Malformed.because("the namenode's answer to statfs")),
            }
        };
        self.chunk_size.get_or_try_init(ask).await.copied()
    }
}

impl Control for Leader {
    fn allocate(&self, replication: u32, exclude: Vec<u32>) -> BoxFuture<'_, Result<Allocated>> {
        async move {
            let capacity = self.chunk_size().await?;
            let ask = fs::AllocateChunk {
                replication,
                exclude,
                client_host: self.host.clone(),
                targets: Vec::new(),
            };
            let session = self.channel.session().await?;
            let op = fs::mutation::Op::Allocate(ask);
            match self.channel.mutate_in(&session, &root(), op).await? {
                fs::outcome::Result::Allocated(fs::ChunkAllocated { chunk: Some(info) })
                    if !info.replicas.is_empty() =>
                {
                    Ok(Allocated { info, capacity, session: session.id() })
                }
                _ => Err(ErrorCode::Malformed.because("the outcome of allocating a chunk")),
            }
        }
        .boxed()
    }

    fn seal(&self, session: u64, chunk: u64, length: u64) -> BoxFuture<'_, Result<()>> {
        let op = fs::mutation::Op::Seal(fs::SealChunk { chunk, length });
        async move {
            let live = self.channel.live_session().filter(|live| live.id() == session);
            let live = live.ok_or_else(|| ErrorCode::SessionExpired.because(format!("session {session}")))?;
            self.channel.mutate_in(&live, &root(), op).await.map(drop)
        }
        .boxed()
    }

    fn fenced(&self) -> bool {
        self.channel.fenced()
    }

    fn session(&self) -> u64 {
        self.channel.live_session().map_or(0, |session| session.id())
    }

    fn cluster_id(&self) -> String {
        self.channel.namenodes().cluster_id().to_owned()
    }
}
