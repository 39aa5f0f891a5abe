//! A datanode that stands for a whole chain, and misbehaves on order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use cairn_proto::checksum::{BlockCrc, piece_crcs};
use cairn_proto::data::{
    Ack, ChainOpened, Data, Failure, HelloReply, ListedReplica, Read, ReplicaList, ReplicaStat, Request,
    Response, request, response,
};
use cairn_proto::limits::BLOCK_SIZE;
use cairn_proto::{ErrorCode, frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Contents by chunk.
pub(crate) type Chunks = Arc<Mutex<BTreeMap<u64, Vec<u8>>>>;

/// What a datanode does once it holds so many bytes of a chunk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mood {
    Well,
    FailsAt(usize, u32),
    StallsAt(usize),
    /// Finds each append and the sync behind it together, and is so many milliseconds over both.
    SyncsFor(u64),
    ClosesAt(usize),
    /// Accepts connections and says nothing.
    Frozen,
    /// Greets, and never answers anything that needs its disk.
    Hung,
    /// Its disk gives other bytes than were written.
    Rotten,
    /// These of its first 64 blocks do not match their checksums, which it notices itself.
    Bad(u64),
    /// Has no chunk.
    Empty,
}

/// One datanode, which stands for the whole chain behind it.
pub(crate) struct Datanode {
    pub(crate) address: String,
    pub(crate) mood: Arc<Mutex<Mood>>,
    pub(crate) chunks: Chunks,
    pub(crate) sealed: Arc<AtomicBool>,
    /// How much it says of each replica is on disk, where it was not asked for here.
    pub(crate) recovered: Arc<AtomicU64>,
    /// Bytes on disk, over all chunks written through this datanode.
    pub(crate) on_disk: Arc<AtomicU64>,
}

impl Datanode {
    pub(crate) async fn start(mood: Mood) -> Datanode {
        Datanode::sharing(mood, Chunks::default()).await
    }

    /// One that holds the same chunks as another: a replica.
    pub(crate) async fn sharing(mood: Mood, chunks: Chunks) -> Datanode {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = Datanode {
            address: listener.local_addr().unwrap().to_string(),
            mood: Arc::new(Mutex::new(mood)),
            chunks,
            sealed: Arc::default(),
            recovered: Arc::default(),
            on_disk: Arc::default(),
        };
        let shared = Shared {
            mood: Arc::clone(&node.mood),
            chunks: Arc::clone(&node.chunks),
            sealed: Arc::clone(&node.sealed),
            recovered: Arc::clone(&node.recovered),
            on_disk: Arc::clone(&node.on_disk),
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
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
    reply_with(stream, kind, &[]).await;
}

async fn reply_with(stream: &mut TcpStream, kind: response::Kind, payload: &[u8]) {
    let head = frame::encode_head(&Response { kind: Some(kind) }, payload.len()).unwrap();
    let _ = stream.write_all(&head).await;
    let _ = stream.write_all(payload).await;
}

/// Answers a read in frames that are smaller than asked for, so that they must be put together.
async fn send_range(stream: &mut TcpStream, read: Read, held: Option<Vec<u8>>, mood: Mood) {
    let fail = |code: ErrorCode| {
        response::Kind::Failure(Failure { error: Some(code.because("test").into()), node: 0 })
    };
    let Some(held) = held else { return reply(stream, fail(ErrorCode::ChunkUnknown)).await };
    let (start, end) = (read.offset as usize, (read.offset + read.length) as usize);
    if end > held.len() {
        return reply(stream, fail(ErrorCode::PastEnd)).await;
    }
    let block = |at: usize| 1u64.checked_shl((at / BLOCK_SIZE) as u32).unwrap_or(0);
    if let Mood::Bad(bad) = mood
        && (start..end).step_by(BLOCK_SIZE).chain([end - 1]).any(|at| bad & block(at) != 0)
    {
        return reply(stream, fail(ErrorCode::Corrupt)).await;
    }
    let mut at = start;
    while at < end {
        let next = end.min(at + 300_000);
        let mut bytes = held[at..next].to_vec();
        let crcs = piece_crcs(at as u64, &bytes);
        if mood == Mood::Rotten {
            bytes[0] ^= 1;
        }
        let data = Data { offset: at as u64, crcs, last: next == end };
        reply_with(stream, response::Kind::Data(data), &bytes).await;
        at = next;
    }
}

/// What the connections of one datanode share with its test.
#[derive(Clone)]
struct Shared {
    mood: Arc<Mutex<Mood>>,
    chunks: Chunks,
    sealed: Arc<AtomicBool>,
    recovered: Arc<AtomicU64>,
    on_disk: Arc<AtomicU64>,
}

async fn serve(mut stream: TcpStream, shared: Shared) {
    let Shared { mood, chunks, sealed, recovered, on_disk } = shared;
    let mut chunk = 0;
    let mut crc = BlockCrc::default();
    let mut synced = 0;
    while let Some((kind, payload)) = read_frame(&mut stream).await {
        let now = *mood.lock().unwrap();
        if now == Mood::Frozen {
            std::future::pending::<()>().await;
        }
        if now == Mood::Hung && !matches!(kind, request::Kind::Hello(_)) {
            std::future::pending::<()>().await;
        }
        match kind {
            request::Kind::Hello(hello) => {
                assert_eq!(hello.cluster_id, "cluster");
                reply(
                    &mut stream,
                    response::Kind::Hello(HelloReply { version: 1, node: 0, ..Default::default() }),
                )
                .await;
            }
            request::Kind::Lend(_) => panic!("there is no door here"),
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
                if matches!(now, Mood::StallsAt(limit) if held + payload.len() > limit)
                    || matches!(now, Mood::SyncsFor(_))
                {
                    continue;
                }
                let length = (held + payload.len()) as u64;
                reply(&mut stream, response::Kind::Ack(Ack { length, synced })).await;
            }
            request::Kind::Sync(_) => {
                if let Mood::SyncsFor(millis) = now {
                    tokio::time::sleep(std::time::Duration::from_millis(millis)).await;
                }
                let held = chunks.lock().unwrap()[&chunk].len() as u64;
                on_disk.fetch_add(held - synced, Ordering::Relaxed);
                synced = held;
                reply(&mut stream, response::Kind::Ack(Ack { length: synced, synced })).await;
            }
            request::Kind::Read(read) => {
                let held = chunks.lock().unwrap().get(&read.chunk).filter(|_| now != Mood::Empty).cloned();
                send_range(&mut stream, read, held, now).await;
            }
            request::Kind::Stat(stat) => {
                let length = chunks.lock().unwrap()[&stat.chunk].len() as u64;
                let sealed = sealed.load(Ordering::Relaxed);
                let synced = recovered.load(Ordering::Relaxed);
                let stat = ReplicaStat { chunk: stat.chunk, length, sealed, synced, ..Default::default() };
                reply(&mut stream, response::Kind::Stat(stat)).await;
            }
            request::Kind::List(list) => {
                let sealed = sealed.load(Ordering::Relaxed);
                let listed = |(chunk, data): (&u64, &Vec<u8>)| ListedReplica {
                    chunk: *chunk,
                    length: data.len() as u64,
                    sealed,
                };
                let replicas = chunks.lock().unwrap().range(list.first..).map(listed).collect();
                reply(&mut stream, response::Kind::List(ReplicaList { replicas, next: 0 })).await;
            }
        }
    }
}
