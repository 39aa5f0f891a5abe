//! Whole namenodes on loopback: each in a runtime of its own, so that stopping one takes all its tasks at once.

mod group;
mod single;

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use cairn_host::Host;
use cairn_proto::control::{Call, CallBatch, Reply, ReplyBatch, WhoLeadsRequest, Write, call, reply};
use cairn_proto::fs::{
    Answer, ClusterStatus, Cred, GetStatus, Mkdir, Mutation, NodeRef, OpenSession, Outcome, Query, Stat,
    answer, mutation, outcome, query,
};
use cairn_proto::{Error, ErrorCode, ROOT_INODE};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::channel;
use crate::{Config, run};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Node {
    pub config: Config,
    stop: watch::Sender<bool>,
    running: Option<(Runtime, JoinHandle<Result<(), Error>>)>,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

impl Node {
    pub fn start(config: Config) -> Node {
        let (stop, asked) = watch::channel(false);
        let runtime = runtime();
        let handle = runtime.spawn(run(config.clone(), asked));
        Node { config, stop, running: Some((runtime, handle)) }
    }

    /// Everything stops where it is.
    pub fn kill(&mut self) {
        if let Some((runtime, _)) = self.running.take() {
            runtime.shutdown_timeout(PATIENCE);
        }
    }

    /// Waits for the end it comes to by itself, or is asked for.
    pub fn result(&mut self) -> Result<(), Error> {
        let (runtime, handle) = self.running.take().unwrap();
        let result = runtime.block_on(handle).unwrap();
        runtime.shutdown_timeout(PATIENCE);
        result
    }

    pub fn stop(&mut self) -> Result<(), Error> {
        self.stop.send_replace(true);
        self.result()
    }

    pub fn restart(&mut self) {
        self.kill();
        *self = Node::start(self.config.clone());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Options of `count` namenodes below `dir`.
pub fn configs(dir: &Path, count: usize) -> Vec<Config> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    let peers: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let config = |(at, &listen): (usize, &std::net::SocketAddr)| Config {
        dir: dir.join(at.to_string()),
        listen,
        advertise: listen.to_string(),
        peers: peers.clone(),
        election_timeout_ms: (400, 800),
        heartbeat_ms: 100,
        cache_bytes: 8 << 20,
        log_segment_bytes: 16 << 20,
        checkpoint_ms: 200,
        ..Config::default()
    };
    addresses.iter().enumerate().map(config).collect()
}

/// A client that asks one namenode after the other until one answers.
pub struct Client {
    runtime: Runtime,
    pub addresses: Vec<String>,
    pub session: u64,
    seq: u64,
}

impl Client {
    pub fn new(configs: &[Config]) -> Client {
        let addresses = configs.iter().map(|config| config.advertise.clone()).collect();
        Client { runtime: runtime(), addresses, session: 0, seq: 0 }
    }

    async fn converse(address: &str, batch: CallBatch) -> Option<ReplyBatch> {
        let mut client = channel::namenode(&Host::default().network, address).ok()?;
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        sender.send(batch.clone()).await.ok()?;
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut replies = client.converse(stream).await.ok()?.into_inner();
        let mut all = ReplyBatch::default();
        while all.replies.len() < batch.calls.len().max(1) {
            let more = replies.message().await.ok()??;
            all.session_expired |= more.session_expired;
            all.lease_ms = more.lease_ms;
            all.replies.extend(more.replies);
            if batch.calls.is_empty() {
                break;
            }
        }
        Some(all)
    }

    /// One call to one namenode; nothing if it does not answer.
    pub fn ask_one(&self, address: &str, kind: call::Kind) -> Option<Reply> {
        let calls = vec![Call { id: 1, cred: Some(Cred::default()), kind: Some(kind), request: 0 }];
        let batch = CallBatch { session: self.session, calls };
        let asked =
            async { tokio::time::timeout(Duration::from_secs(5), Self::converse(address, batch)).await };
        self.runtime.block_on(asked).ok().flatten()?.replies.pop()
    }

    pub fn ask(&self, kind: call::Kind) -> reply::Result {
        let start = Instant::now();
        loop {
            for address in &self.addresses {
                match self.ask_one(address, kind.clone()).and_then(|reply| reply.result) {
                    None => {}
                    Some(reply::Result::Error(error)) => {
                        let error = Error::from(error);
                        let transient = [ErrorCode::NotLeader, ErrorCode::NoLeader, ErrorCode::Unavailable]
                            .contains(&error.code);
                        assert!(transient, "{error}");
                    }
                    Some(result) => return result,
                }
            }
            assert!(start.elapsed() < PATIENCE, "nobody answers");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn open_session(&mut self) {
        let op = mutation::Op::OpenSession(OpenSession { client: "test".into(), ..OpenSession::default() });
        match self.change_as(0, op).result {
            Some(outcome::Result::Session(opened)) => self.session = opened.session,
            other => panic!("{other:?}"),
        }
    }

    /// A mutation under a number of the caller's choice.
    pub fn change_as(&self, seq: u64, op: mutation::Op) -> Outcome {
        let write = Write { seq, acked: 0, mutation: Some(Mutation { op: Some(op) }) };
        match self.ask(call::Kind::Write(write)) {
            reply::Result::Outcome(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    pub fn mkdir(&mut self, name: &str) -> Outcome {
        self.seq += 1;
        self.change_as(self.seq, mkdir(name))
    }

    pub fn query(&self, op: query::Op) -> Answer {
        match self.ask(call::Kind::Query(Query { op: Some(op) })) {
            reply::Result::Answer(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    pub fn exists(&self, name: &str) -> bool {
        let stat = Stat { at: Some(at(name)), follow: false };
        matches!(self.query(query::Op::Stat(stat)).result, Some(answer::Result::Attr(_)))
    }

    pub fn status(&self) -> ClusterStatus {
        match self.query(query::Op::Status(GetStatus {})).result {
            Some(answer::Result::Status(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Index into `addresses` of the namenode that serves.
    pub fn leader(&self) -> usize {
        self.status();
        let start = Instant::now();
        loop {
            let status = self.status();
            let leader = status.namenodes.iter().find(|namenode| namenode.leader);
            if let Some(at) =
                leader.and_then(|leader| self.addresses.iter().position(|a| *a == leader.address))
            {
                return at;
            }
            assert!(start.elapsed() < PATIENCE, "no leader in {status:?}");
        }
    }

    /// Waits until the status is as wanted.
    pub fn wait_status(&self, what: &str, wanted: impl Fn(&ClusterStatus) -> bool) -> ClusterStatus {
        let start = Instant::now();
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "{what}: {:?}", status.namenodes);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub fn who_leads(&self, address: &str) -> Option<cairn_proto::control::WhoLeadsReply> {
        let asked = async {
            channel::namenode(&Host::default().network, address)
                .ok()?
                .who_leads(WhoLeadsRequest {})
                .await
                .ok()
        };
        self.runtime.block_on(asked).map(|reply| reply.into_inner())
    }
}

pub fn at(name: &str) -> NodeRef {
    NodeRef { inode: ROOT_INODE, path: name.to_owned().into() }
}

pub fn mkdir(name: &str) -> mutation::Op {
    mutation::Op::Mkdir(Mkdir { at: Some(at(name)), mode: 0o755, ..Mkdir::default() })
}

pub fn error_of(outcome: &Outcome) -> Option<ErrorCode> {
    match &outcome.result {
        Some(outcome::Result::Error(error)) => Some(Error::from(error.clone()).code),
        _ => None,
    }
}
