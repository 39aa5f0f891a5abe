//! Namenodes that share one store, one of them leading.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use cairn_metadata::memory::MemoryStore;
use cairn_metadata::store::{Durability, Store};
use cairn_proto::control::namenode_server::{Namenode, NamenodeServer};
use cairn_proto::control::{
    BadReplica, BadReplicaReply, BalanceReply, BalanceRequest, Call, CallBatch, DatanodeMessage, LookReply,
    LookRequest, MembershipReply, MembershipRequest, MetadataPart, NamenodeMessage, Reply, ReplyBatch,
    ScrubReply, ScrubRequest, SetDatanodeReply, SetDatanodeRequest, SnapshotMetadataRequest, WhoLeadsReply,
    WhoLeadsRequest, call, reply,
};
use cairn_proto::{ErrorCode, fs};
use futures::Stream;
use tokio::net::TcpListener;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::Datanode;

/// See the module.
#[derive(Clone)]
pub(crate) struct Group {
    pub(crate) addresses: Vec<String>,
    shared: Arc<Shared>,
}

struct Shared {
    store: MemoryStore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    leader: usize,
    term: u64,
    frozen: BTreeSet<usize>,
    /// Executes so many batches with mutations and breaks the stream instead of answering.
    swallow: u32,
    /// Calls every session expired, as a leader may that is new.
    confused: bool,
    /// No datanode has room for another chunk.
    full: bool,
    time_ns: i64,
    addresses: Vec<String>,
    /// Every `(session, seq)` that came, in order.
    pub(crate) seen: Vec<(u64, u64)>,
    bad: Vec<BadReplica>,
}

struct Server {
    index: usize,
    shared: Arc<Shared>,
}

impl Group {
    /// `count` namenodes; the first leads. Chunks go to all of `datanodes`, in turn first.
    pub(crate) async fn start(count: usize, datanodes: &[Datanode]) -> Group {
        let state = State { term: 1, ..State::default() };
        let shared = Arc::new(Shared { store: MemoryStore::default(), state: Mutex::new(state) });
        let form = fs::FormCluster {
            cluster_id: "cluster".into(),
            default_replication: datanodes.len().max(1) as u32,
            chunk_size: 1 << 20,
            ..Default::default()
        };
        shared.propose(0, 0, 0, fs::mutation::Op::FormCluster(form));
        for (index, datanode) in datanodes.iter().enumerate() {
            let register = fs::RegisterDatanode {
                uuid: format!("uuid{index}"),
                address: datanode.address.clone(),
                ..Default::default()
            };
            shared.propose(0, 0, 0, fs::mutation::Op::RegisterDatanode(register));
        }
        let mut addresses = Vec::new();
        for index in 0..count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap().to_string());
            let server = NamenodeServer::new(Server { index, shared: Arc::clone(&shared) });
            let incoming = TcpListenerStream::new(listener);
            tokio::spawn(
                tonic::transport::Server::builder().add_service(server).serve_with_incoming(incoming),
            );
        }
        shared.state.lock().unwrap().addresses = addresses.clone();
        Group { addresses, shared }
    }

    pub(crate) fn lead(&self, index: usize) {
        let mut state = self.shared.state.lock().unwrap();
        state.leader = index;
        state.term += 1;
    }

    /// From now on this namenode hears and says nothing.
    pub(crate) fn freeze(&self, index: usize) {
        self.shared.state.lock().unwrap().frozen.insert(index);
    }

    pub(crate) fn swallow(&self, batches: u32) {
        self.shared.state.lock().unwrap().swallow = batches;
    }

    pub(crate) fn confuse(&self, confused: bool) {
        self.shared.state.lock().unwrap().confused = confused;
    }

    pub(crate) fn fill(&self, full: bool) {
        self.shared.state.lock().unwrap().full = full;
    }

    pub(crate) fn seen(&self) -> Vec<(u64, u64)> {
        self.shared.state.lock().unwrap().seen.clone()
    }

    pub(crate) fn bad(&self) -> Vec<BadReplica> {
        self.shared.state.lock().unwrap().bad.clone()
    }

    pub(crate) fn expire(&self, session: u64) {
        let expire = fs::ExpireSession { session };
        self.shared.propose(0, 0, 0, fs::mutation::Op::ExpireSession(expire));
    }
}

impl Shared {
    fn propose(&self, session: u64, seq: u64, acked: u64, op: fs::mutation::Op) -> fs::Outcome {
        self.propose_as(fs::Cred::default(), session, seq, acked, Some(op))
    }

    fn propose_as(
        &self,
        cred: fs::Cred,
        session: u64,
        seq: u64,
        acked: u64,
        op: Option<fs::mutation::Op>,
    ) -> fs::Outcome {
        let time_ns = {
            let mut state = self.state.lock().unwrap();
            state.time_ns += 1_000_000;
            state.time_ns
        };
        let mutation = Some(fs::Mutation { op });
        let command = fs::Command { session, seq, acked, cred: Some(cred), mutation };
        let batch = fs::CommandBatch { time_ns, commands: vec![command] };
        let mut outcomes = Vec::new();
        self.store
            .write(Durability::Applied, &mut |txn| {
                outcomes = cairn_metadata::apply(txn, &batch)?;
                Ok(())
            })
            .unwrap();
        outcomes.pop().unwrap()
    }

    fn execute(&self, session: u64, call: Call, nodes: u32) -> Reply {
        let cred = call.cred.unwrap_or_default();
        let result = match call.kind.unwrap() {
            call::Kind::Query(query) => {
                let mut answer = fs::Answer::default();
                self.store
                    .read(&mut |view| {
                        answer = cairn_metadata::answer_to(view, session, &cred, &query)?;
                        Ok(())
                    })
                    .unwrap();
                reply::Result::Answer(answer)
            }
            call::Kind::Write(write) => {
                self.state.lock().unwrap().seen.push((session, write.seq));
                let mut op = write.mutation.unwrap().op;
                if let Some(fs::mutation::Op::Allocate(ask)) = &mut op {
                    if self.state.lock().unwrap().full {
                        let error = Some(reply::Result::Error(ErrorCode::NoSpace.because("test").into()));
                        return Reply { id: call.id, result: error, leader_address: String::new() };
                    }
                    let all: Vec<u32> = (1..=nodes).collect();
                    let (avoid, mut targets): (Vec<u32>, Vec<u32>) =
                        all.into_iter().partition(|node| ask.exclude.contains(node));
                    targets.extend(avoid);
                    ask.targets = targets;
                }
                reply::Result::Outcome(self.propose_as(cred, session, write.seq, write.acked, op))
            }
        };
        Reply { id: call.id, result: Some(result), leader_address: String::new() }
    }

    fn datanodes(&self) -> u32 {
        let mut nodes = 0;
        let query = fs::Query { op: Some(fs::query::Op::Status(fs::GetStatus {})) };
        self.store
            .read(&mut |view| {
                let answer = cairn_metadata::answer(view, &fs::Cred::default(), &query)?;
                if let Some(fs::answer::Result::Status(status)) = answer.result {
                    nodes = status.datanodes.len() as u32;
                }
                Ok(())
            })
            .unwrap();
        nodes
    }
}

impl Server {
    async fn frozen(&self) {
        let frozen = self.shared.state.lock().unwrap().frozen.contains(&self.index);
        if frozen {
            std::future::pending::<()>().await;
        }
    }

    /// What a batch is answered with; `None`: the stream breaks.
    fn answer(shared: &Shared, index: usize, batch: CallBatch) -> Option<ReplyBatch> {
        let (leader, address) = {
            let state = shared.state.lock().unwrap();
            (state.leader, state.addresses[state.leader].clone())
        };
        let mut replies = Vec::new();
        let nodes = shared.datanodes();
        let mut writes = false;
        for call in batch.calls {
            if leader != index {
                let error = Some(reply::Result::Error(ErrorCode::NotLeader.because("test").into()));
                replies.push(Reply { id: call.id, result: error, leader_address: address.clone() });
                continue;
            }
            writes |= matches!(call.kind, Some(call::Kind::Write(_)));
            replies.push(shared.execute(batch.session, call, nodes));
        }
        let mut state = shared.state.lock().unwrap();
        if writes && state.swallow > 0 {
            state.swallow -= 1;
            return None;
        }
        Some(ReplyBatch { replies, session_expired: state.confused, lease_ms: 30_000, recalled: Vec::new() })
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Namenode for Server {
    type ConverseStream = ReceiverStream<Result<ReplyBatch, Status>>;
    type AttendStream = Answers<NamenodeMessage>;
    type SnapshotMetadataStream = Answers<MetadataPart>;

    async fn converse(
        &self,
        request: Request<Streaming<CallBatch>>,
    ) -> Result<Response<Self::ConverseStream>, Status> {
        self.frozen().await;
        let mut calls = request.into_inner();
        let (answers, stream) = tokio::sync::mpsc::channel(16);
        let (shared, index) = (Arc::clone(&self.shared), self.index);
        tokio::spawn(async move {
            while let Ok(Some(batch)) = calls.message().await {
                if shared.state.lock().unwrap().frozen.contains(&index) {
                    std::future::pending::<()>().await;
                }
                let Some(replies) = Server::answer(&shared, index, batch) else { return };
                if answers.send(Ok(replies)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn attend(
        &self,
        _: Request<Streaming<DatanodeMessage>>,
    ) -> Result<Response<Self::AttendStream>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn balance(&self, _: Request<BalanceRequest>) -> Result<Response<BalanceReply>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn snapshot_metadata(
        &self,
        _: Request<SnapshotMetadataRequest>,
    ) -> Result<Response<Self::SnapshotMetadataStream>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn look(&self, _: Request<LookRequest>) -> Result<Response<LookReply>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn who_leads(&self, _: Request<WhoLeadsRequest>) -> Result<Response<WhoLeadsReply>, Status> {
        self.frozen().await;
        let state = self.shared.state.lock().unwrap();
        Ok(Response::new(WhoLeadsReply {
            cluster_id: "cluster".into(),
            id: self.index as u64 + 1,
            leader_id: state.leader as u64 + 1,
            leader_address: state.addresses[state.leader].clone(),
            term: state.term,
            blank: false,
            now_ns: 0,
        }))
    }

    async fn report_bad_replica(
        &self,
        request: Request<BadReplica>,
    ) -> Result<Response<BadReplicaReply>, Status> {
        self.shared.state.lock().unwrap().bad.push(request.into_inner());
        Ok(Response::new(BadReplicaReply {}))
    }

    async fn change_membership(
        &self,
        _: Request<MembershipRequest>,
    ) -> Result<Response<MembershipReply>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn set_datanode(
        &self,
        _: Request<SetDatanodeRequest>,
    ) -> Result<Response<SetDatanodeReply>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn scrub(&self, _: Request<ScrubRequest>) -> Result<Response<ScrubReply>, Status> {
        Err(Status::unimplemented("test"))
    }
}
