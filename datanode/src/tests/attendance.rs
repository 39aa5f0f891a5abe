//! The attendance against a namenode that speaks from a script, and copies.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cairn_proto::control::namenode_server::{Namenode, NamenodeServer};
use cairn_proto::control::{
    BadReplica, BadReplicaReply, BalanceReply, BalanceRequest, CallBatch, CopyReplica, DatanodeMessage,
    DeleteReplica, LookReply, LookRequest, MembershipReply, MembershipRequest, MetadataPart, NamenodeMessage,
    Order, OrderDone, Registered, ReplyBatch, ScrubReply, ScrubRequest, SealReplica, SnapshotMetadataRequest,
    WhoLeadsReply, WhoLeadsRequest, datanode_message, namenode_message, order,
};
use cairn_proto::{Error, ErrorCode};
use tempfile::TempDir;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::{CLUSTER, Client, LONG, Node, bytes, settings};
use crate::attend::Attendance;
use crate::copy::copy;
use crate::orders::{Copier, Executor};
use crate::{Config, run};

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Attended = (Streaming<DatanodeMessage>, mpsc::Sender<Result<NamenodeMessage, Status>>);

/// Answers who leads, and hands every attendance to the test.
struct Script {
    leader: String,
    attended: mpsc::Sender<Attended>,
}

#[tonic::async_trait]
impl Namenode for Script {
    type ConverseStream = Replies<ReplyBatch>;
    type AttendStream = Replies<NamenodeMessage>;
    type SnapshotMetadataStream = ReceiverStream<Result<MetadataPart, Status>>;

    async fn converse(
        &self,
        _: Request<Streaming<CallBatch>>,
    ) -> Result<Response<Self::ConverseStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn attend(
        &self,
        request: Request<Streaming<DatanodeMessage>>,
    ) -> Result<Response<Self::AttendStream>, Status> {
        let (orders, stream) = mpsc::channel(16);
        let handed = self.attended.send((request.into_inner(), orders)).await;
        handed.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
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
        let leader_address = self.leader.clone();
        Ok(Response::new(WhoLeadsReply { leader_address, term: 1, ..WhoLeadsReply::default() }))
    }

    async fn report_bad_replica(&self, _: Request<BadReplica>) -> Result<Response<BadReplicaReply>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn scrub(&self, _: Request<ScrubRequest>) -> Result<Response<ScrubReply>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn set_datanode(
        &self,
        _: Request<cairn_proto::control::SetDatanodeRequest>,
    ) -> Result<Response<cairn_proto::control::SetDatanodeReply>, Status> {
        Err(Status::unimplemented("test"))
    }

    async fn change_membership(
        &self,
        _: Request<MembershipRequest>,
    ) -> Result<Response<MembershipReply>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// A namenode that hands over who attends it, and its address.
async fn namenode() -> (String, mpsc::Receiver<Attended>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, attended) = mpsc::channel(4);
    let script = NamenodeServer::new(Script { leader: address.clone(), attended: sender });
    let serving = tonic::transport::Server::builder().add_service(script);
    tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, attended)
}

/// A datanode under test and the namenode's end of its attendance.
pub(super) struct Rig {
    attended: mpsc::Receiver<Attended>,
    stop: watch::Sender<bool>,
    ended: oneshot::Receiver<cairn_proto::Result<()>>,
}

impl Rig {
    async fn start(dir: &TempDir) -> Rig {
        let (address, attended) = namenode().await;
        let config = Config {
            dirs: vec![dir.path().join("data")],
            // A namenode that is not up is asked as well, and does no harm.
            namenodes: vec!["127.0.0.1:1".into(), address],
            rack: "r1".into(),
            host: "h1".into(),
            reserve_bytes: 0,
            ..Config::default()
        };
        let (stop, stopped) = watch::channel(false);
        let (end, ended) = oneshot::channel();
        tokio::spawn(async move { end.send(run(config, stopped).await) });
        Rig { attended, stop, ended }
    }

    /// Attends for `node`, with copies made by `copier`.
    pub(super) async fn attend(node: &Node, copier: Arc<dyn Copier>) -> Rig {
        let (address, attended) = namenode().await;
        let shared = node.server.shared();
        let attendance = Attendance {
            store: shared.store.clone(),
            node: shared.numbered().clone(),
            counters: shared.counters.clone(),
            executor: Executor::new(shared.store.clone(), copier, 1),
            trust: shared.settings.trust.clone(),
            network: cairn_host::Host::secured(None).network,
            namenodes: vec![address],
            advertise: node.address(),
            rack: "r1".into(),
            host: "h1".into(),
            measuring: Arc::new(Semaphore::new(1)),
        };
        let (stop, stopped) = watch::channel(false);
        let (end, ended) = oneshot::channel();
        tokio::spawn(async move { end.send(attendance.run(stopped).await) });
        Rig { attended, stop, ended }
    }

    pub(super) async fn next(&mut self) -> Talk {
        let (inbox, orders) = self.attended.recv().await.unwrap();
        Talk { inbox, orders, seen: Arc::default() }
    }

    pub(super) async fn stop(self) {
        self.stop.send(true).unwrap();
        self.ended.await.unwrap().unwrap();
    }
}

pub(super) struct Talk {
    inbox: Streaming<DatanodeMessage>,
    orders: mpsc::Sender<Result<NamenodeMessage, Status>>,
    seen: Arc<Mutex<Vec<datanode_message::Kind>>>,
}

impl Talk {
    /// The next message that `wanted` takes; others are remembered.
    pub(super) async fn until<T>(&mut self, wanted: impl Fn(&datanode_message::Kind) -> Option<T>) -> T {
        let give_up = Instant::now() + LONG;
        loop {
            let said = tokio::time::timeout(LONG, self.inbox.message()).await.expect("it is said");
            let kind = said.unwrap().unwrap().kind.unwrap();
            assert!(Instant::now() < give_up, "it is not said");
            let found = wanted(&kind);
            self.seen.lock().unwrap().push(kind);
            if let Some(found) = found {
                return found;
            }
        }
    }

    pub(super) async fn say(&self, kind: namenode_message::Kind) {
        let message = NamenodeMessage { kind: Some(kind), leader_address: String::new() };
        self.orders.send(Ok(message)).await.unwrap();
    }

    /// Takes the registration and accepts it; returns the datanode's address.
    pub(super) async fn register(&mut self, cluster_id: &str) -> String {
        let address = self
            .until(|kind| match kind {
                datanode_message::Kind::Register(register) => Some(register.address.clone()),
                _ => None,
            })
            .await;
        let registered = Registered { node: 5, cluster_id: cluster_id.into(), heartbeat_ms: 50, keys: None };
        self.say(namenode_message::Kind::Registered(registered)).await;
        address
    }

    pub(super) async fn order(&mut self, id: u64, kind: order::Kind) -> OrderDone {
        self.say(namenode_message::Kind::Order(Order { id, kind: Some(kind) })).await;
        self.until(|kind| match kind {
            datanode_message::Kind::Done(done) if done.order == id => Some(done.clone()),
            _ => None,
        })
        .await
    }
}

fn code(done: &OrderDone) -> Option<ErrorCode> {
    done.error.clone().map(|error| Error::from(error).code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registers_reports_and_does_as_ordered() {
    let dir = TempDir::new().unwrap();
    let mut rig = Rig::start(&dir).await;
    let mut talk = rig.next().await;
    let address = talk.register(CLUSTER).await;
    let page = talk
        .until(|kind| match kind {
            datanode_message::Kind::Inventory(page) => Some(page.clone()),
            _ => None,
        })
        .await;
    assert_eq!((page.first, page.next, page.replicas.len()), (0, 0, 0));
    talk.until(|kind| matches!(kind, datanode_message::Kind::Heartbeat(_)).then_some(())).await;

    let write = tokio::task::spawn_blocking(move || {
        let mut client = Client::raw(&address);
        client.hello(1, CLUSTER);
        client.receive();
        client.open(7, &[]);
        client.append_all(b"content");
    });
    write.await.unwrap();
    let done = talk.order(1, order::Kind::Seal(SealReplica { chunk: 7, length: 8 })).await;
    assert_eq!(code(&done), Some(ErrorCode::PastEnd));
    let done = talk.order(2, order::Kind::Seal(SealReplica { chunk: 7, length: 7 })).await;
    assert_eq!((code(&done), done.length), (None, 7));
    assert_eq!(&done.blake3[..], blake3::hash(b"content").as_bytes());
    let done = talk.order(3, order::Kind::Seal(SealReplica { chunk: 8, length: 0 })).await;
    assert_eq!(code(&done), Some(ErrorCode::ChunkUnknown));

    talk.seen.lock().unwrap().clear();
    let done = talk.order(4, order::Kind::Inventory(Default::default())).await;
    assert_eq!(code(&done), None);
    let held = talk.seen.lock().unwrap().iter().any(|kind| match kind {
        datanode_message::Kind::Inventory(page) => page.replicas.iter().any(|replica| replica.sealed),
        _ => false,
    });
    assert!(held, "the pages come before the answer");
    for id in [5, 6] {
        let done = talk.order(id, order::Kind::Delete(DeleteReplica { chunk: 7 })).await;
        assert_eq!(code(&done), None);
    }

    // A stream that breaks is opened again, under the cluster that was adopted.
    drop(talk);
    let mut talk = rig.next().await;
    let known = talk
        .until(|kind| match kind {
            datanode_message::Kind::Register(register) => Some(register.cluster_id.clone()),
            _ => None,
        })
        .await;
    assert_eq!(known, CLUSTER);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_from_a_peer_on_order() {
    let source = tokio::task::spawn_blocking(|| Node::start(1)).await.unwrap();
    let data = bytes(300_000);
    let seal = source.put(9, &data);
    let dir = TempDir::new().unwrap();
    let mut rig = Rig::start(&dir).await;
    let mut talk = rig.next().await;
    talk.register(CLUSTER).await;
    let sources = vec!["127.0.0.1:1".to_owned(), source.address()];
    let order = CopyReplica { chunk: 9, length: 300_000, sources, ..CopyReplica::default() };
    let done = talk.order(1, order::Kind::Copy(order)).await;
    assert_eq!((code(&done), done.length, &done.blake3[..]), (None, 300_000, &seal.blake3[..]));
    rig.stop().await;
    let stored = std::fs::read(dir.path().join("data/chunks/09/0000000000000009.data")).unwrap();
    assert_eq!(stored, data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_cluster_ends_the_run() {
    let dir = TempDir::new().unwrap();
    let mut rig = Rig::start(&dir).await;
    rig.next().await.register(CLUSTER).await;
    let mut talk = rig.next().await;
    talk.register("another").await;
    let ended = rig.ended.await.unwrap();
    assert_eq!(ended.unwrap_err().code, ErrorCode::WrongCluster);
    let mut rig = Rig::start(&dir).await;
    let talk = rig.next().await;
    talk.say(namenode_message::Kind::Refused(ErrorCode::WrongCluster.because("x").into())).await;
    assert_eq!(rig.ended.await.unwrap().unwrap_err().code, ErrorCode::WrongCluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_and_stops_without_namenodes_and_refuses_a_bad_start() {
    let dir = TempDir::new().unwrap();
    let config = |name: &str| Config {
        dirs: vec![dir.path().join(name)],
        namenodes: vec!["127.0.0.1:1".into()],
        ..Config::default()
    };
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(run(config("a"), stopped.clone()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let busy = run(config("a"), stopped.clone()).await.unwrap_err();
    assert!(busy.to_string().contains("in use by another process"), "{busy}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let error = run(Config { listen, ..config("b") }, stopped.clone()).await.unwrap_err();
    assert!(error.to_string().contains("another process listens there"), "{error}");
    std::fs::write(dir.path().join("c"), "").unwrap();
    let error = run(config("c"), stopped).await.unwrap_err();
    assert!(error.to_string().contains("cannot be used"), "{error}");
    stop.send(true).unwrap();
    running.await.unwrap().unwrap();
    assert!(dir.path().join("a/CLEAN").exists());
}

#[test]
fn a_copy_goes_on_at_the_next_source_and_verifies_the_whole() {
    let nodes = [Node::start(1), Node::start(2), Node::start(3)];
    let data = bytes(20_000_000);
    let seal = nodes[0].put(9, &data);
    nodes[1].put(9, &data);
    // Each source is damaged, in different places.
    for (node, at) in [(&nodes[0], 19_000_000), (&nodes[1], 5)] {
        let path = node.store().get(9).unwrap().dir().data_path(9);
        let mut content = std::fs::read(&path).unwrap();
        content[at] ^= 1;
        std::fs::write(&path, content).unwrap();
    }
    let sources = vec![nodes[0].address(), nodes[1].address()];
    let order = CopyReplica {
        chunk: 9,
        length: data.len() as u64,
        blake3: Bytes::copy_from_slice(&seal.blake3),
        sources,
        ..CopyReplica::default()
    };
    let (store, settings) = (nodes[2].store(), Arc::new(settings()));
    assert_eq!(copy(store, &order, &settings, &|| false).unwrap(), seal);
    assert_eq!(Client::connect(&nodes[2]).read(9, 0, order.length).unwrap(), data);
    // Again is nothing to do; another digest is another chunk, and fails without harm.
    assert_eq!(copy(store, &order, &settings, &|| panic!("copied again")).unwrap(), seal);
    let wrong =
        CopyReplica { blake3: Bytes::from(vec![1; 32]), sources: vec![nodes[2].address()], ..order.clone() };
    assert_eq!(copy(store, &wrong, &settings, &|| false).unwrap_err().code, ErrorCode::Corrupt);
    assert_eq!(store.get(9).unwrap().seal_record(), Some(seal));
    let stopped = CopyReplica { chunk: 10, ..order.clone() };
    assert_eq!(copy(store, &stopped, &settings, &|| true).unwrap_err().code, ErrorCode::ChunkUnknown);
    let none = CopyReplica { sources: vec![], chunk: 11, ..order };
    assert_eq!(copy(store, &none, &settings, &|| false).unwrap_err().code, ErrorCode::Invalid);
}

#[test]
fn a_copy_takes_each_block_from_whoever_has_it_good_and_may_replace_a_bad_replica() {
    let nodes = [Node::start(1), Node::start(2), Node::start(3)];
    let data = bytes(2_500_000);
    let seal = nodes.each_ref().map(|node| node.put(9, &data))[0];
    // Every block is bad on two of three, so that none may be left out, and the last one is cut off on one.
    for (index, node) in nodes.iter().enumerate() {
        let path = node.store().get(9).unwrap().dir().data_path(9);
        let mut content = std::fs::read(&path).unwrap();
        for block in (0..content.len().div_ceil(65_536)).filter(|block| block % 3 != index) {
            content[block * 65_536 + 77] ^= 1;
        }
        if index == 1 {
            content.truncate(2_495_000);
        }
        std::fs::write(&path, content).unwrap();
    }
    let order = CopyReplica {
        chunk: 9,
        length: data.len() as u64,
        blake3: Bytes::copy_from_slice(&seal.blake3),
        sources: vec![nodes[1].address(), "127.0.0.1:1".into(), nodes[0].address(), nodes[2].address()],
        replace: true,
        ..CopyReplica::default()
    };
    let settings = Arc::new(settings());
    assert_eq!(copy(nodes[2].store(), &order, &settings, &|| false).unwrap(), seal);
    assert_eq!(Client::connect(&nodes[2]).read(9, 0, order.length).unwrap(), data);
    // One block that nobody has good is a failure that leaves things as they are.
    let path = nodes[2].store().get(9).unwrap().dir().data_path(9);
    let mut content = std::fs::read(&path).unwrap();
    content[77] ^= 1;
    std::fs::write(&path, content).unwrap();
    let missing = CopyReplica { sources: vec![nodes[1].address(), nodes[2].address()], ..order };
    assert_eq!(copy(nodes[1].store(), &missing, &settings, &|| false).unwrap_err().code, ErrorCode::Corrupt);
    assert!(Client::connect(&nodes[2]).read(9, 65_536, 100_000).is_ok());
}

#[test]
fn a_copy_keeps_to_its_rate() {
    let nodes = [Node::start(1), Node::start(2)];
    let data = bytes(300_000);
    nodes[0].put(9, &data);
    let order = CopyReplica {
        chunk: 9,
        length: 300_000,
        sources: vec![nodes[0].address()],
        bytes_per_second: 100_000_000,
        ..CopyReplica::default()
    };
    copy(nodes[1].store(), &order, &Arc::new(settings()), &|| false).unwrap();
    assert_eq!(Client::connect(&nodes[1]).read(9, 0, 300_000).unwrap(), data);
}
