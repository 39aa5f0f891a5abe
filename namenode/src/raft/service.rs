//! Raft's messages as they arrive.

use std::sync::Arc;

use cairn_proto::control::raft_server::Raft as RaftRpc;
use cairn_proto::control::{RaftBytes, SnapshotPart};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Request, Response, Status, Streaming};

use super::Group;
use super::network::{decode, encode};
use super::receive::{self, Receiver};
use super::snapshot::{Content, Snapshot};
use super::types::{SnapshotMeta, Types, Vote};
use crate::door::Pass;
use crate::seat::Seat;

/// Serves the group of the namenode on `seat`, once there is one.
pub struct RaftService {
    seat: Arc<Seat>,
    receiver: Receiver,
}

impl RaftService {
    /// The service of a namenode.
    pub fn new(seat: Arc<Seat>) -> RaftService {
        RaftService { seat, receiver: Receiver::default() }
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
        let first = receive::next(&mut parts).await?.and_then(|part| part.head);
        let head = first.ok_or_else(|| Status::invalid_argument("a snapshot starts with its description"))?;
        let group = self.group(&head)?;
        let (vote, meta): (Vote, SnapshotMeta) = read(&head)?;
        let _turn = self.receiver.begin()?;
        tracing::info!(%meta, from = head.from, "receiving a snapshot");
        let received = receive::receive(&group.settings.disk, &group.settings.incoming, &mut parts).await?;
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
