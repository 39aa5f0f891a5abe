//! The data plane and the attendance over real sockets: in-process servers, a client that speaks frames,
//! and a namenode that speaks from a script.

mod attendance;
mod chains;
mod door;
mod gather;
mod orders;
mod reads;

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use cairn_proto::checksum::{BlockCrc, piece_crcs};
use cairn_proto::data::{
    Ack, Append, ChainLink, ChainOpened, Failure, Hello, OpenChain, Read, Request, Response, Sync, request,
    response,
};
use cairn_proto::frame;
use tempfile::TempDir;

use crate::server::{Server, bind};
use crate::settings::Settings;
use crate::socket::{self, FrameReader, Socket};
use crate::store::{Store, StoreConfig};

const CLUSTER: &str = "test-cluster";
const LONG: Duration = Duration::from_secs(60);

/// Patient, so that a busy machine is not mistaken for a stalled one.
fn settings() -> Settings {
    Settings { stall: Duration::from_secs(30), sync_stall: Duration::from_secs(30), ..Settings::default() }
}

/// A datanode's data plane on its own directory.
struct Node {
    server: Server,
    number: u32,
    _dir: TempDir,
}

impl Node {
    fn start(number: u32) -> Node {
        Node::start_with(number, settings(), None)
    }

    fn start_with(number: u32, settings: Settings, capacity_limit: Option<u64>) -> Node {
        let dir = TempDir::new().unwrap();
        let dirs = vec![dir.path().join("data")];
        let store = Store::open(&StoreConfig { dirs, capacity_limit, ..StoreConfig::default() }).unwrap();
        store.adopt_cluster(CLUSTER).unwrap();
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let server = Server::start(listener, Arc::new(store), settings).unwrap();
        server.shared().numbered().store(number, std::sync::atomic::Ordering::Relaxed);
        Node { server, number, _dir: dir }
    }

    fn address(&self) -> String {
        self.server.local_addr().to_string()
    }

    fn link(&self) -> ChainLink {
        ChainLink { node: self.number, address: self.address() }
    }

    fn store(&self) -> &Arc<Store> {
        &self.server.shared().store
    }

    /// A chunk on this node alone, sealed.
    fn put(&self, chunk: u64, data: &[u8]) -> crate::store::Seal {
        let mut client = Client::connect(self);
        client.open(chunk, &[]);
        client.append_all(data);
        self.store().seal(chunk, data.len() as u64).unwrap()
    }
}

/// A client that speaks frames.
struct Client {
    stream: Arc<Socket>,
    reader: FrameReader,
    payload: Vec<u8>,
    tail: BlockCrc,
}

impl Client {
    fn raw(address: &str) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        socket::tune(&stream, LONG, LONG).unwrap();
        let stream = Arc::new(Socket::plain(stream));
        let reader = FrameReader::new(stream.clone());
        Client { stream, reader, payload: Vec::new(), tail: BlockCrc::default() }
    }

    fn connect(node: &Node) -> Client {
        let mut client = Client::raw(&node.address());
        client.hello(1, CLUSTER);
        match client.receive() {
            Some(response::Kind::Hello(reply)) => assert_eq!(reply.node, node.number),
            other => panic!("{other:?}"),
        }
        client
    }

    fn hello(&self, version: u32, cluster_id: &str) {
        self.send(request::Kind::Hello(Hello { version, cluster_id: cluster_id.into() }), &[]);
    }

    fn send(&self, kind: request::Kind, payload: &[u8]) {
        let head = frame::encode_head(&Request { kind: Some(kind), request: 0 }, payload.len()).unwrap();
        // The other side may have closed already: what it answered is still read.
        let _ = socket::write_frame(&self.stream, &head, payload, LONG);
    }

    /// The next answer; `None` when the connection is closed.
    fn receive(&mut self) -> Option<response::Kind> {
        let (response, length) = self.reader.head::<Response>(&mut |_| Ok(())).ok()??;
        self.reader.payload(length, &mut self.payload, &mut |_| Ok(())).ok()?;
        self.payload.truncate(length);
        response.kind
    }

    fn failure(&mut self) -> (cairn_proto::Error, u32) {
        loop {
            match self.receive() {
                Some(response::Kind::Failure(Failure { error, node })) => {
                    return (error.unwrap().into(), node);
                }
                Some(response::Kind::Ack(_)) => {}
                other => panic!("no failure but {other:?}"),
            }
        }
    }

    fn ask_open(&mut self, chunk: u64, length: u64, links: &[&Node]) {
        let links = links.iter().map(|node| node.link()).collect();
        self.send(request::Kind::Open(OpenChain { chunk, length, links, ..OpenChain::default() }), &[]);
    }

    fn open(&mut self, chunk: u64, links: &[&Node]) {
        self.ask_open(chunk, 0, links);
        assert_eq!(self.receive(), Some(response::Kind::Opened(ChainOpened {})));
    }

    fn append(&mut self, data: &[u8]) {
        let offset = self.tail.length();
        let crcs = self.tail.append(data);
        self.send(request::Kind::Append(Append { offset, crcs }), data);
    }

    fn append_all(&mut self, data: &[u8]) {
        for part in data.chunks(100_000) {
            self.append(part);
        }
        self.wait_acked(data.len() as u64);
    }

    fn sync(&mut self) {
        self.send(request::Kind::Sync(Sync {}), &[]);
    }

    fn ack(&mut self) -> Ack {
        match self.receive() {
            Some(response::Kind::Ack(ack)) => ack,
            other => panic!("no acknowledgement but {other:?}"),
        }
    }

    fn wait_acked(&mut self, length: u64) {
        while length > 0 && self.ack().length < length {}
    }

    fn wait_synced(&mut self, length: u64) {
        while self.ack().synced < length {}
    }

    /// Reads a range and checks every frame of it.
    fn read(&mut self, chunk: u64, offset: u64, length: u64) -> Result<Vec<u8>, cairn_proto::Error> {
        self.send(request::Kind::Read(Read { chunk, offset, length, ..Read::default() }), &[]);
        let mut out = Vec::new();
        loop {
            match self.receive() {
                Some(response::Kind::Data(data)) => {
                    assert_eq!(data.offset, offset + out.len() as u64);
                    assert_eq!(data.crcs, piece_crcs(data.offset, &self.payload));
                    out.extend_from_slice(&self.payload);
                    if data.last {
                        return Ok(out);
                    }
                }
                Some(response::Kind::Failure(failure)) => return Err(failure.error.unwrap().into()),
                other => panic!("{other:?}"),
            }
        }
    }
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251 + i / 65_536) as u8).collect()
}
