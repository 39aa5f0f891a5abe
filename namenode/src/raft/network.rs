//! Raft's messages over gRPC: the library's own types, encoded by postcard, between two checked ids.

use std::future::Future;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cairn_host::disk::SharedDisk;
use cairn_host::work::blocking;
use cairn_metadata::store::{StoreError, View};
use cairn_proto::control::raft_client::RaftClient;
use cairn_proto::control::{RaftBytes, SnapshotPart};
use cairn_proto::limits::MAX_MESSAGE;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::sending::Sending;
use super::snapshot::{Content, Snapshot};
use super::types::{Types, Vote};
use crate::channel;
use crate::store::stream;

/// Bytes of one message of a snapshot.
const PART_BYTES: usize = 1 << 20;
/// Messages of a snapshot between the store's reader and the network.
const PARTS_AHEAD: usize = 4;
/// How long the other side may leave a part of a snapshot lying: meanwhile the store cannot reuse any space.
const PART_PATIENCE: Duration = Duration::from_secs(30);
/// How long a message with entries may take besides its way: the other side has to write them to its disk.
const APPEND_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes a second that a link between members carries at least: what takes longer would be sent again, for ever.
const SLOWEST_LINK: u64 = 128 << 10;
/// Most bytes of one encoded message: a batch of the largest command, and what is around it.
pub const MESSAGE_LIMIT: usize = 2 * MAX_MESSAGE;

/// Makes connections to the other members.
#[derive(Debug, Clone)]
pub struct Network {
    /// This namenode.
    pub id: u64,
    /// The cluster both sides must belong to.
    pub cluster_id: String,
    /// The disk of this namenode.
    pub disk: SharedDisk,
    /// The way to the others.
    pub network: Arc<dyn cairn_host::net::Network>,
    /// What is on its way to them.
    pub sending: Sending,
}

/// A connection to one member.
pub struct Peer {
    network: Network,
    target: u64,
    client: Option<RaftClient<Channel>>,
    address: String,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        let client = channel::connect_lazily(&self.network, &node.addr).ok().map(|channel| {
            RaftClient::new(channel)
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT)
        });
        Peer { network: self.clone(), target, client, address: node.addr.clone() }
    }
}

/// Encodes a message of the library.
pub fn encode(message: &impl Serialize) -> Result<Bytes, postcard::Error> {
    postcard::to_allocvec(message).map(Bytes::from)
}

/// Decodes a message of the library.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, postcard::Error> {
    postcard::from_bytes(payload)
}

fn failed(status: Status) -> RPCError<Types> {
    match status.code() {
        // Nobody there, or somebody else: there is no use in asking again at once.
        Code::Unavailable | Code::FailedPrecondition | Code::Unimplemented => {
            RPCError::Unreachable(Unreachable::new(&status))
        }
        _ => RPCError::Network(NetworkError::new(&status)),
    }
}

fn garbled(error: postcard::Error) -> RPCError<Types> {
    RPCError::Network(NetworkError::new(&error))
}

/// How long a message of entries may take that is so many bytes long.
fn append_limit(bytes: usize) -> Duration {
    let way_ms = (bytes as u64).saturating_mul(1_000) / SLOWEST_LINK;
    APPEND_TIMEOUT + Duration::from_millis(way_ms)
}

impl Peer {
    fn client(&self) -> Result<RaftClient<Channel>, RPCError<Types>> {
        let unusable =
            || RPCError::Unreachable(Unreachable::from_string(format!("bad address {}", self.address)));
        self.client.clone().ok_or_else(unusable)
    }

    fn envelope(&self, message: &impl Serialize) -> Result<RaftBytes, RPCError<Types>> {
        Ok(RaftBytes {
            cluster_id: self.network.cluster_id.clone(),
            payload: encode(message).map_err(garbled)?,
            from: self.network.id,
            to: self.target,
        })
    }

    /// Sends one message and waits for its answer at most the `limit` for one of its length.
    async fn call<R: DeserializeOwned, F, Fut>(
        &self,
        message: &impl Serialize,
        limit: impl FnOnce(usize) -> Duration,
        method: F,
    ) -> Result<R, RPCError<Types>>
    where
        F: FnOnce(RaftClient<Channel>, RaftBytes) -> Fut,
        Fut: Future<Output = Result<tonic::Response<RaftBytes>, Status>>,
    {
        let message = self.envelope(message)?;
        let limit = limit(message.payload.len());
        let sent = method(self.client()?, message);
        let late =
            |_| RPCError::Network(NetworkError::from_string(format!("no answer from {}", self.address)));
        let reply = tokio::time::timeout(limit, sent).await.map_err(late)?.map_err(failed)?.into_inner();
        decode(&reply.payload).map_err(garbled)
    }

    async fn ask_for_vote(
        &self,
        request: VoteRequest<Types>,
        pre_vote: bool,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let send = |mut client: RaftClient<Channel>, bytes| async move { client.vote(bytes).await };
        self.call(&(pre_vote, request), |_| option.soft_ttl(), send).await
    }
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = Content;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let beats = request.entries.is_empty();
        let limit = |bytes| if beats { option.soft_ttl() } else { append_limit(bytes) };
        let send = |mut client: RaftClient<Channel>, bytes| async move { client.append_entries(bytes).await };
        self.call(&request, limit, send).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_for_vote(request, false, option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_for_vote(request, true, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let _sent = self.network.sending.begin();
        let head = self.envelope(&(vote, &snapshot.meta))?;
        let Content::View(view) = snapshot.snapshot else {
            return Err(NetworkError::from_string("a received snapshot cannot be sent on").into());
        };
        let (outgoing, receiver) = mpsc::channel(PARTS_AHEAD);
        let first = SnapshotPart { head: Some(head), data: Bytes::new() };
        let closed = |_| NetworkError::from_string("the snapshot's stream closed");
        outgoing.send(first).await.map_err(closed)?;
        let mut client = self.client()?;
        let (parts, made) = mpsc::channel(PARTS_AHEAD);
        let reader = tokio::spawn(send_parts(self.network.disk.clone(), view, parts));
        let stalled = async {
            if hand_on(made, outgoing, PART_PATIENCE).await {
                // What comes now is the answer.
                std::future::pending().await
            }
        };
        let sending = client.snapshot(ReceiverStream::new(receiver));
        let reply = tokio::select! {
            closed = cancel => return Err(closed.into()),
            () = tokio::time::sleep(option.soft_ttl()) => {
                return Err(NetworkError::from_string(format!("sending a snapshot to {} took too long", self.address)).into());
            }
            () = stalled => {
                return Err(NetworkError::from_string(format!("{} takes no more of a snapshot", self.address)).into());
            }
            reply = sending => reply.map_err(failed)?.into_inner(),
        };
        // A stream that was cut short is refused by its receiver, so an answer means it was whole.
        if let Ok(Err(error)) = reader.await {
            tracing::warn!(%error, "reading the store for a snapshot failed");
        }
        Ok(decode(&reply.payload).map_err(garbled)?)
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let send =
            |mut client: RaftClient<Channel>, bytes| async move { client.transfer_leader(bytes).await };
        self.call(&request, |_| option.soft_ttl(), send).await
    }
}

/// Hands parts on as they are made. False as soon as one is not taken for as long as `patience`; the view that makes them
/// is let go then.
async fn hand_on<T>(mut made: mpsc::Receiver<T>, outgoing: mpsc::Sender<T>, patience: Duration) -> bool {
    while let Some(part) = made.recv().await {
        match tokio::time::timeout(patience, outgoing.send(part)).await {
            Ok(Ok(())) => {}
            // Why nobody takes any more, the answer tells.
            Ok(Err(_)) => return true,
            Err(_) => return false,
        }
    }
    true
}

/// Sends the messages that a view makes.
pub async fn send_parts(
    disk: SharedDisk,
    view: Box<dyn View + Send>,
    parts: mpsc::Sender<SnapshotPart>,
) -> Result<(), StoreError> {
    if disk.blocks() {
        let write = move || stream::write(&*view, PartWriter::new(Parts::Sent(parts)));
        return blocking(&disk, write).await.map_err(|error| StoreError::Engine(error.to_string()))?;
    }
    // Nobody could take a message out while this thread waits for room: they are made first, then sent.
    let mut made = Vec::new();
    stream::write(&*view, PartWriter::new(Parts::Kept(&mut made)))?;
    for part in made {
        if parts.send(part).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Where messages go.
enum Parts<'a> {
    Sent(mpsc::Sender<SnapshotPart>),
    Kept(&'a mut Vec<SnapshotPart>),
}

/// Cuts what is written into messages, and waits where the network is slower than the store.
struct PartWriter<'a> {
    parts: Parts<'a>,
    buffer: BytesMut,
}

impl<'a> PartWriter<'a> {
    fn new(parts: Parts<'a>) -> PartWriter<'a> {
        PartWriter { parts, buffer: BytesMut::with_capacity(PART_BYTES) }
    }
}

impl Write for PartWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = bytes.len().min(PART_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..part]);
        if self.buffer.len() == PART_BYTES {
            self.flush()?;
        }
        Ok(part)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let data = std::mem::replace(&mut self.buffer, BytesMut::with_capacity(PART_BYTES)).freeze();
        let part = SnapshotPart { head: None, data };
        match &mut self.parts {
            Parts::Sent(parts) => parts
                .blocking_send(part)
                .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the receiver is gone")),
            Parts::Kept(parts) => {
                parts.push(part);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_nobody_takes_ends_a_snapshot() {
        let patience = Duration::from_millis(20);
        let made = || {
            let (parts, made) = mpsc::channel(3);
            (0..3).for_each(|part| parts.try_send(part).unwrap());
            (parts, made)
        };
        let (parts, all) = made();
        drop(parts);
        let (outgoing, mut receiver) = mpsc::channel(1);
        let taker =
            tokio::spawn(
                async move { (receiver.recv().await, receiver.recv().await, receiver.recv().await) },
            );
        assert!(hand_on(all, outgoing, patience).await);
        assert_eq!(taker.await.unwrap(), (Some(0), Some(1), Some(2)));

        let (parts, all) = made();
        let (outgoing, _receiver) = mpsc::channel(1);
        assert!(!hand_on(all, outgoing, patience).await);
        assert!(parts.is_closed(), "who reads the store is told to stop");
    }

    #[test]
    fn a_long_message_of_entries_has_the_time_that_a_slow_link_takes() {
        assert_eq!(append_limit(0), APPEND_TIMEOUT);
        assert_eq!(append_limit(2 << 20), APPEND_TIMEOUT + Duration::from_secs(16));
        assert!(append_limit(MESSAGE_LIMIT) < Duration::from_secs(150));
    }
}
