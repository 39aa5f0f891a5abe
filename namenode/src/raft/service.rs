//! Raft's messages as they arrive.

use std::io::{self, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn_metadata::store::StoreError;
use cairn_proto::control::raft_server::Raft as RaftRpc;
use cairn_proto::control::{RaftBytes, SnapshotPart};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tonic::{Request, Response, Status, Streaming};

use super::Group;
use super::network::{decode, encode};
use super::snapshot::{Content, Received, Snapshot};
use super::types::{SnapshotMeta, Types, Vote};
use crate::seat::Seat;
use crate::store::stream;

/// Serves the group of the namenode on `seat`, once there is one.
pub struct RaftService {
    seat: Arc<Seat>,
}

impl RaftService {
    /// The service of a namenode.
    pub fn new(seat: Arc<Seat>) -> RaftService {
        RaftService { seat }
    }

    /// The group a message is for. A namenode whose disk was wiped must not answer for its old self, nor one
    /// cluster's for another's.
    fn group(&self, head: &RaftBytes) -> Result<Group, Status> {
        self.seat.addressed(head)
    }
}

fn read<T: DeserializeOwned>(message: &RaftBytes) -> Result<T, Status> {
    decode(&message.payload).map_err(|error| Status::invalid_argument(format!("Raft message: {error}")))
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

impl Group {
    fn reply(&self, to: &RaftBytes, message: &impl Serialize) -> Result<Response<RaftBytes>, Status> {
        let payload = encode(message).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(RaftBytes {
            cluster_id: self.cluster_id.clone(),
            payload,
            from: self.id,
            to: to.from,
        }))
    }
}

#[tonic::async_trait]
impl RaftRpc for RaftService {
    async fn append_entries(&self, request: Request<RaftBytes>) -> Result<Response<RaftBytes>, Status> {
        let message = request.into_inner();
        let group = self.group(&message)?;
        let entries: AppendEntriesRequest<Types> = read(&message)?;
        let answer = group.raft.append_entries(entries).await.map_err(stopped)?;
        group.reply(&message, &answer)
    }

    async fn vote(&self, request: Request<RaftBytes>) -> Result<Response<RaftBytes>, Status> {
        let message = request.into_inner();
        let group = self.group(&message)?;
        let (pre_vote, vote): (bool, VoteRequest<Types>) = read(&message)?;
        let answer = match pre_vote {
            true => group.raft.pre_vote(vote).await,
            false => group.raft.vote(vote).await,
        };
        group.reply(&message, &answer.map_err(stopped)?)
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Result<Response<RaftBytes>, Status> {
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|part| part.head);
        let head = first.ok_or_else(|| Status::invalid_argument("a snapshot starts with its description"))?;
        let group = self.group(&head)?;
        let (vote, meta): (Vote, SnapshotMeta) = read(&head)?;
        tracing::info!(%meta, from = head.from, "receiving a snapshot");
        let received = receive(&group.settings.incoming, &mut parts).await?;
        let snapshot = Snapshot { meta, snapshot: Content::File(received) };
        let answer = group.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        group.reply(&head, &answer)
    }

    async fn transfer_leader(&self, request: Request<RaftBytes>) -> Result<Response<RaftBytes>, Status> {
        let message = request.into_inner();
        let group = self.group(&message)?;
        let transfer: TransferLeaderRequest<Types> = read(&message)?;
        let answer = group.raft.handle_transfer_leader(transfer).await.map_err(stopped)?;
        group.reply(&message, &answer)
    }
}

/// Writes the stream into a file of its own and checks it: one that was cut short must not get as far as the
/// library, to which a snapshot that cannot be installed is a failed disk.
async fn receive(dir: &Path, parts: &mut Streaming<SnapshotPart>) -> Result<Received, Status> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let failed = |error: io::Error| Status::internal(format!("receiving a snapshot: {error}"));
    tokio::fs::create_dir_all(dir).await.map_err(failed)?;
    let path = dir.join(format!("{}.snapshot", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let mut file = File::create(&path).await.map_err(failed)?;
    let received = Received(path);
    while let Some(part) = parts.message().await? {
        file.write_all(&part.data).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    let check = move || {
        let file = std::fs::File::open(&received.0).map_err(|error| StoreError::Engine(error.to_string()))?;
        stream::verify(BufReader::with_capacity(1 << 20, file))?;
        Ok::<Received, StoreError>(received)
    };
    let checked =
        tokio::task::spawn_blocking(check).await.map_err(|error| Status::internal(error.to_string()))?;
    checked.map_err(|error| Status::data_loss(error.to_string()))
}
