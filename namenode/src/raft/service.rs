//! Raft's messages as they arrive.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn_host::disk::{self, Access, SharedDisk};
use cairn_host::work::blocking;
use cairn_proto::control::raft_server::Raft as RaftRpc;
use cairn_proto::control::{RaftBytes, SnapshotPart};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinError;
use tonic::{Request, Response, Status, Streaming};

use super::Group;
use super::network::{decode, encode};
use super::snapshot::{Content, Received, Snapshot};
use super::types::{SnapshotMeta, Types, Vote};
use crate::door::Pass;
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

    /// Refuses whoever may not be a namenode.
    fn check<T>(request: &Request<T>) -> Result<Option<Pass>, Status> {
        let pass = Pass::of(request);
        if let Some(caller) = pass.as_ref().map(Pass::caller).filter(|caller| !caller.may_be_namenode()) {
            tracing::warn!(%caller, "refused: its certificate is not a namenode's");
            return Err(Status::permission_denied("the certificate does not allow this"));
        }
        Ok(pass)
    }

    /// A message from a member, whose connection stays when strangers have to go.
    fn admit(&self, request: Request<RaftBytes>) -> Result<(RaftBytes, Group), Status> {
        let pass = RaftService::check(&request)?;
        let message = request.into_inner();
        let group = self.group(&message)?;
        if let Some(pass) = pass {
            pass.trust();
        }
        Ok((message, group))
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
        let (message, group) = self.admit(request)?;
        let entries: AppendEntriesRequest<Types> = read(&message)?;
        let answer = group.raft.append_entries(entries).await.map_err(stopped)?;
        group.reply(&message, &answer)
    }

    async fn vote(&self, request: Request<RaftBytes>) -> Result<Response<RaftBytes>, Status> {
        let (message, group) = self.admit(request)?;
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
        RaftService::check(&request)?;
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|part| part.head);
        let head = first.ok_or_else(|| Status::invalid_argument("a snapshot starts with its description"))?;
        let group = self.group(&head)?;
        let (vote, meta): (Vote, SnapshotMeta) = read(&head)?;
        tracing::info!(%meta, from = head.from, "receiving a snapshot");
        let received = receive(&group.settings.disk, &group.settings.incoming, &mut parts).await?;
        let snapshot = Snapshot { meta, snapshot: Content::File(received) };
        let answer = group.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        group.reply(&head, &answer)
    }

    async fn transfer_leader(&self, request: Request<RaftBytes>) -> Result<Response<RaftBytes>, Status> {
        let (message, group) = self.admit(request)?;
        let transfer: TransferLeaderRequest<Types> = read(&message)?;
        let answer = group.raft.handle_transfer_leader(transfer).await.map_err(stopped)?;
        group.reply(&message, &answer)
    }
}

/// Writes the stream into a file of its own and checks it: one that was cut short must not get as far as the
/// library, to which a snapshot that cannot be installed is a failed disk.
async fn receive(
    disk: &SharedDisk,
    dir: &Path,
    parts: &mut Streaming<SnapshotPart>,
) -> Result<Received, Status> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let failed = |error: io::Error| Status::internal(format!("receiving a snapshot: {error}"));
    let lost = |error: JoinError| Status::internal(error.to_string());
    let path = dir.join(format!("{}.snapshot", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let make = {
        let (disk, dir, path) = (disk.clone(), dir.to_owned(), path.clone());
        move || {
            disk::create_dirs(&*disk, &dir)?;
            disk.open(&path, Access::Create)
        }
    };
    let file = blocking(disk, make).await.map_err(lost)?.map_err(failed)?;
    let received = Received::new(disk.clone(), path);
    let mut at = 0;
    while let Some(part) = parts.message().await? {
        let (file, offset) = (file.clone(), at);
        at += part.data.len() as u64;
        let write = move || file.write_at(&part.data, offset);
        blocking(disk, write).await.map_err(lost)?.map_err(failed)?;
    }
    let check = move || stream::verify(received.read()?).map(|()| received);
    let checked = blocking(disk, check).await.map_err(lost)?;
    checked.map_err(|error| Status::data_loss(error.to_string()))
}
