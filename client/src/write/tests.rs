//! Lanes against datanodes that speak the frames and misbehave on order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use cairn_proto::checksum::BlockCrc;
use cairn_proto::data::{Ack, ChainOpened, Failure, HelloReply, Request, Response, request, response};
use cairn_proto::{ErrorCode, Result, frame, fs};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::{Allocated, Append, Control, Lanes, Pace, Place};
use crate::metrics::Counters;

/// What a datanode does once it holds so many bytes of a chunk.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Well,
    FailsAt(usize, u32),
    StallsAt(usize),
    ClosesAt(usize),
    /// Accepts connections and says nothing.
    Frozen,
}

/// One datanode, which stands for the whole chain behind it.
struct Datanode {
    address: String,
    mood: Arc<Mutex<Mood>>,
    chunks: Arc<Mutex<BTreeMap<u64, Vec<u8>>>>,
}

impl Datanode {
    async fn start(mood: Mood) -> Datanode {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = Datanode {
            address: listener.local_addr().unwrap().to_string(),
            mood: Arc::new(Mutex::new(mood)),
            chunks: Arc::default(),
        };
        let (mood, chunks) = (Arc::clone(&node.mood), Arc::clone(&node.chunks));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&mood), Arc::clone(&chunks)));
            }
        });
        node
    }
}

async fn read_frame(stream: &mut TcpStream) -> Option<(request::Kind, Bytes)> {
    let mut prefix = [0; frame::PREFIX];
    stream.read_exact(&mut prefix).await.ok()?;
    let lengths = frame::Lengths::parse(prefix).unwrap();
    let mut header = vec![0; lengths.header];
    stream.read_exact(&mut header).await.ok()?;
    let mut payload = BytesMut::zeroed(lengths.payload);
    stream.read_exact(&mut payload).await.ok()?;
    let request: Request = frame::decode_header(&header).unwrap();
    Some((request.kind.unwrap(), payload.freeze()))
}

async fn reply(stream: &mut TcpStream, kind: response::Kind) {
    let head = frame::encode_head(&Response { kind: Some(kind) }, 0).unwrap();
    let _ = stream.write_all(&head).await;
}

async fn serve(mut stream: TcpStream, mood: Arc<Mutex<Mood>>, chunks: Arc<Mutex<BTreeMap<u64, Vec<u8>>>>) {
    let mut chunk = 0;
    let mut crc = BlockCrc::default();
    let mut synced = 0;
    while let Some((kind, payload)) = read_frame(&mut stream).await {
        let now = *mood.lock().unwrap();
        if now == Mood::Frozen {
            std::future::pending::<()>().await;
        }
        match kind {
            request::Kind::Hello(hello) => {
                assert_eq!(hello.cluster_id, "cluster");
                reply(&mut stream, response::Kind::Hello(HelloReply { version: 1, node: 1 })).await;
            }
            request::Kind::Open(open) => {
                chunk = open.chunk;
                chunks.lock().unwrap().insert(chunk, Vec::new());
                reply(&mut stream, response::Kind::Opened(ChainOpened {})).await;
            }
            request::Kind::Append(append) => {
                let held = chunks.lock().unwrap()[&chunk].len();
                assert_eq!(append.offset, held as u64, "an append starts at the end");
                assert_eq!(crc.append(&payload), append.crcs);
                match now {
                    Mood::FailsAt(limit, node) if held + payload.len() > limit => {
                        let error = Some(ErrorCode::DiskFailed.because("test").into());
                        reply(&mut stream, response::Kind::Failure(Failure { error, node })).await;
                        return;
                    }
                    Mood::ClosesAt(limit) if held + payload.len() > limit => return,
                    _ => {}
                }
                chunks.lock().unwrap().get_mut(&chunk).unwrap().extend_from_slice(&payload);
                if matches!(now, Mood::StallsAt(limit) if held + payload.len() > limit) {
                    continue;
                }
                let length = (held + payload.len()) as u64;
                reply(&mut stream, response::Kind::Ack(Ack { length, synced })).await;
            }
            request::Kind::Sync(_) => {
                synced = chunks.lock().unwrap()[&chunk].len() as u64;
                reply(&mut stream, response::Kind::Ack(Ack { length: synced, synced })).await;
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

/// A namenode that allocates on the datanodes given, in turn.
struct Chunks {
    nodes: Vec<Datanode>,
    capacity: u64,
    next: AtomicU64,
    session: AtomicU64,
    seals: Mutex<BTreeMap<u64, u64>>,
    refusal: Mutex<Option<ErrorCode>>,
}

impl Chunks {
    async fn new(capacity: u64, moods: &[Mood]) -> Arc<Chunks> {
        let mut nodes = Vec::new();
        for &mood in moods {
            nodes.push(Datanode::start(mood).await);
        }
        Arc::new(Chunks {
            nodes,
            capacity,
            next: AtomicU64::new(1),
            session: AtomicU64::new(1),
            seals: Mutex::default(),
            refusal: Mutex::default(),
        })
    }

    fn content(&self, place: &Place) -> Vec<u8> {
        let range = place.offset as usize..(place.offset + place.length) as usize;
        for node in &self.nodes {
            if let Some(bytes) = node.chunks.lock().unwrap().get(&place.chunk) {
                return bytes[range].to_vec();
            }
        }
        panic!("chunk {} is nowhere", place.chunk)
    }
}

impl Control for Chunks {
    fn allocate(&self, _replication: u32, exclude: Vec<u32>) -> BoxFuture<'_, Result<Allocated>> {
        async move {
            if let Some(code) = *self.refusal.lock().unwrap() {
                return Err(code.because("test"));
            }
            let chunk = self.next.fetch_add(1, Ordering::Relaxed);
            let count = self.nodes.len() as u32;
            let node = (0..count)
                .map(|i| (chunk as u32 - 1 + i) % count + 1)
                .find(|node| !exclude.contains(node))
                .unwrap_or(1);
            let address = self.nodes[node as usize - 1].address.clone();
            let replicas = vec![fs::ReplicaInfo { node, address, ..Default::default() }];
            let info = fs::ChunkInfo { chunk, replicas, ..Default::default() };
            Ok(Allocated { info, capacity: self.capacity, session: self.session.load(Ordering::Relaxed) })
        }
        .boxed()
    }

    fn seal(&self, chunk: u64, length: u64) -> BoxFuture<'_, Result<()>> {
        self.seals.lock().unwrap().insert(chunk, length);
        async { Ok(()) }.boxed()
    }

    fn fenced(&self) -> bool {
        false
    }

    fn session(&self) -> u64 {
        self.session.load(Ordering::Relaxed)
    }

    fn cluster_id(&self) -> String {
        "cluster".into()
    }
}

fn lanes(chunks: &Arc<Chunks>) -> (Arc<Lanes>, Arc<Counters>) {
    let pace = Pace {
        lanes: 1,
        window_bytes: 64 << 10,
        stall_timeout: Duration::from_millis(300),
        connect_timeout: Duration::from_millis(800),
        idle: Duration::from_secs(30),
        exclude_for: Duration::from_secs(30),
    };
    let counters = Arc::new(Counters::default());
    let control: Arc<dyn Control> = Arc::clone(chunks) as Arc<dyn Control>;
    (Lanes::new(control, pace, Arc::clone(&counters)), counters)
}

type Waiting = oneshot::Receiver<Result<Vec<Place>>>;

fn append(lanes: &Lanes, data: Bytes) -> Waiting {
    let (done, waiting) = oneshot::channel();
    let deadline = Instant::now() + Duration::from_secs(20);
    lanes.shared(3).append(Append::new(data, deadline, move |places| drop(done.send(places))));
    waiting
}

fn pattern(seed: usize, length: usize) -> Bytes {
    (0..length).map(|i| (i * 7 + seed * 31) as u8).collect()
}

/// Appends of many sizes; each must be found where it was said to lie.
async fn appends_survive(chunks: Arc<Chunks>) -> Arc<Counters> {
    let (lanes, counters) = lanes(&chunks);
    let sent: Vec<(Bytes, Waiting)> = (0..60)
        .map(|i| {
            let data = pattern(i, 1 + (i * 977) % 9000);
            (data.clone(), append(&lanes, data))
        })
        .collect();
    for (data, waiting) in sent {
        let places = waiting.await.unwrap().unwrap();
        let found: Vec<u8> = places.iter().flat_map(|place| chunks.content(place)).collect();
        assert_eq!(found, data);
    }
    counters
}

#[tokio::test]
async fn appends_go_over_many_chunks() {
    let chunks = Chunks::new(20_000, &[Mood::Well, Mood::Well]).await;
    appends_survive(Arc::clone(&chunks)).await;
    let seals = chunks.seals.lock().unwrap().clone();
    assert!(seals.len() >= 10, "{seals:?}");
    assert!(seals.values().filter(|&&length| length == 20_000).count() >= seals.len() - 1, "{seals:?}");
}

#[tokio::test]
async fn a_failure_in_the_middle_moves_to_another_datanode() {
    let chunks = Chunks::new(1 << 20, &[Mood::FailsAt(30_000, 1), Mood::Well]).await;
    let counters = appends_survive(Arc::clone(&chunks)).await;
    assert_eq!(counters.reading().chain_failures, 1);
    let sealed = chunks.seals.lock().unwrap()[&1];
    assert!(sealed <= 30_000);
}

#[tokio::test]
async fn a_closed_connection_moves_to_another_datanode() {
    let chunks = Chunks::new(1 << 20, &[Mood::ClosesAt(30_000), Mood::Well]).await;
    let counters = appends_survive(chunks).await;
    assert_eq!(counters.reading().chain_failures, 1);
}

#[tokio::test]
async fn a_stall_is_noticed() {
    let chunks = Chunks::new(1 << 20, &[Mood::StallsAt(10_000), Mood::Well]).await;
    let stalling = Arc::clone(&chunks.nodes[0].mood);
    // By the time it is asked whether it lives it is frozen altogether.
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(150)).await;
        *stalling.lock().unwrap() = Mood::Frozen;
    });
    let counters = appends_survive(chunks).await;
    assert!(counters.reading().chain_failures >= 1);
}

#[tokio::test]
async fn a_frozen_datanode_does_not_stop_a_chain_from_opening_elsewhere() {
    let chunks = Chunks::new(1 << 20, &[Mood::Frozen, Mood::Well]).await;
    appends_survive(chunks).await;
}

#[tokio::test]
async fn a_sync_covers_what_was_appended() {
    let chunks = Chunks::new(1 << 20, &[Mood::Well]).await;
    let (lanes, _) = lanes(&chunks);
    let places = append(&lanes, pattern(1, 5000)).await.unwrap().unwrap();
    assert!(lanes.sync(places[0].chunk, 5000).await);
    assert!(!lanes.sync(4711, 1).await, "a chunk nobody wrote here cannot be synced here");
}

#[tokio::test]
async fn chunks_of_an_expired_session_are_left() {
    let chunks = Chunks::new(1 << 20, &[Mood::Well]).await;
    let (lanes, _) = lanes(&chunks);
    let before = append(&lanes, pattern(1, 5000)).await.unwrap().unwrap();
    chunks.session.store(2, Ordering::Relaxed);
    let after = append(&lanes, pattern(2, 5000)).await.unwrap().unwrap();
    assert_ne!(before[0].chunk, after[0].chunk);
}

#[tokio::test]
async fn a_final_refusal_reaches_the_writer() {
    let chunks = Chunks::new(1 << 20, &[Mood::Well]).await;
    *chunks.refusal.lock().unwrap() = Some(ErrorCode::NoSpace);
    let (lanes, _) = lanes(&chunks);
    let error = append(&lanes, pattern(1, 10)).await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::NoSpace);
}

#[tokio::test]
async fn closing_fails_what_waits() {
    let chunks = Chunks::new(1 << 20, &[Mood::Frozen]).await;
    let (lanes, _) = lanes(&chunks);
    let waiting = append(&lanes, pattern(1, 10));
    lanes.close();
    assert_eq!(waiting.await.unwrap().unwrap_err().code, ErrorCode::Unavailable);
}

#[tokio::test]
async fn an_own_lane_lays_its_bytes_together() {
    let chunks = Chunks::new(1 << 20, &[Mood::Well]).await;
    let (lanes, _) = lanes(&chunks);
    let own = lanes.own(3).unwrap();
    let mut next = 0;
    for i in 0..20 {
        append(&lanes, pattern(i, 100)).await.unwrap().unwrap();
        let (done, waiting) = oneshot::channel();
        let deadline = Instant::now() + Duration::from_secs(20);
        own.lane().append(Append::new(pattern(i, 1000), deadline, move |places| drop(done.send(places))));
        let places = waiting.await.unwrap().unwrap();
        assert_eq!(places[0].offset, next);
        next += 1000;
    }
}
