//! Replicas on this machine: their files are borrowed from the datanode, and read and verified here (short-circuit reads,
//! decision 19). Whatever does not work this way is read by way of the datanode, which also judges what is wrong.
//!
//! A datanode is on this machine if it can be met at the socket that it names, whatever the hosts are called.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cairn_host::passing;
use cairn_proto::checksum::crc32c;
use cairn_proto::data::{Hello, OpenReplica, Request, Response, request, response};
use cairn_proto::frame::{self, Lengths, PREFIX};
use cairn_proto::limits::BLOCK_SIZE;
use cairn_proto::{Error, ErrorCode, Result, fs};
use tokio::time::Instant;

use super::{Pool, Span};
use crate::metrics::Counters;
use crate::wire::{self, VERSION};

/// Files held at most; the oldest goes for another.
const MOST_HELD: usize = 256;
/// How long a file is held. One that was deleted takes its space for so long.
const HELD_FOR: Duration = Duration::from_secs(20);
/// How long a datanode that did not lend a replica is not asked for it again.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// How long a door that could not be gone through is left alone.
const SHUT_FOR: Duration = Duration::from_secs(30);
/// Datanodes of which it is remembered whether there is a door; all are forgotten when there are more.
const MOST_DOORS: usize = 1024;

type Key = (u32, u64);

/// See the module.
pub(crate) struct Local {
    cluster_id: String,
    /// How long a datanode may take for an answer.
    patience: Duration,
    counters: Arc<Counters>,
    doors: Mutex<BTreeMap<u32, Arc<tokio::sync::Mutex<Door>>>>,
    held: Mutex<BTreeMap<Key, Held>>,
}

/// The way to a datanode's files.
enum Door {
    /// Or somebody is asking there, and may have stopped listening half way.
    Unknown,
    Open(UnixStream),
    Shut {
        until: Instant,
    },
}

struct Held {
    since: Instant,
    /// Nothing: it was refused.
    file: Option<Arc<Borrowed>>,
}

/// A replica's data file. Its first `length` bytes never change.
struct Borrowed {
    file: File,
    length: u64,
    /// One for each block of them, the last over what there is of it.
    crcs: Vec<u32>,
}

/// What came of asking.
enum Asked {
    /// With the connection, on which the next question may be asked.
    Lent(Borrowed, UnixStream),
    Refused(UnixStream),
    /// The datanode is gone, or is another one.
    Broken,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Local {
    pub(crate) fn new(cluster_id: String, patience: Duration, counters: Arc<Counters>) -> Local {
        Local { cluster_id, patience, counters, doors: Mutex::default(), held: Mutex::default() }
    }

    /// The bytes of `span` from a replica on this machine; nothing if they are to be had by way of the datanode only.
    pub(crate) async fn read(&self, pool: &Pool, replica: &fs::ReplicaInfo, span: Span) -> Option<Bytes> {
        let key = (replica.node, span.chunk);
        let file = match self.look(key, span) {
            Some(held) => held?,
            None => self.borrow(pool, replica, span).await?,
        };
        match read(&file, span).await {
            Ok(bytes) => {
                Counters::add(&self.counters.bytes_read_here, bytes.len() as u64);
                Some(bytes)
            }
            Err(error) => {
                tracing::debug!(chunk = span.chunk, node = replica.node, %error, "a borrowed file is of no use");
                self.hold(key, None);
                None
            }
        }
    }

    /// Gives back what was held for long enough.
    pub(crate) fn sweep(&self) {
        locked(&self.held).retain(|_, held| held.since.elapsed() < HELD_FOR);
    }

    /// The file if it is held and reaches far enough; the inner nothing if it is not to be had for now.
    fn look(&self, key: Key, span: Span) -> Option<Option<Arc<Borrowed>>> {
        let held = locked(&self.held);
        let held = held.get(&key)?;
        match &held.file {
            Some(file) => (span.offset + span.length <= file.length).then(|| Some(file.clone())),
            None => (held.since.elapsed() < REFUSED_FOR).then_some(None),
        }
    }

    fn hold(&self, key: Key, file: Option<Arc<Borrowed>>) {
        let mut held = locked(&self.held);
        if held.len() >= MOST_HELD
            && !held.contains_key(&key)
            && let Some(oldest) = held.iter().min_by_key(|(_, held)| held.since).map(|(key, _)| *key)
        {
            held.remove(&oldest);
        }
        held.insert(key, Held { since: Instant::now(), file });
    }

    fn door(&self, node: u32) -> Arc<tokio::sync::Mutex<Door>> {
        let mut doors = locked(&self.doors);
        if doors.len() >= MOST_DOORS && !doors.contains_key(&node) {
            doors.clear();
        }
        doors.entry(node).or_insert_with(|| Arc::new(tokio::sync::Mutex::new(Door::Unknown))).clone()
    }

    async fn borrow(&self, pool: &Pool, replica: &fs::ReplicaInfo, span: Span) -> Option<Arc<Borrowed>> {
        let key = (replica.node, span.chunk);
        let door = self.door(replica.node);
        // One at a time: others want the same file more often than not.
        let mut door = door.lock().await;
        if let Some(held) = self.look(key, span) {
            return held;
        }
        if matches!(&*door, Door::Shut { until } if *until > Instant::now()) {
            return None;
        }
        // Out of the door while it is used: a caller that is not waited for any more (a slow datanode was overtaken) leaves
        // its answer behind, and the next one would take it for its own.
        let stream = match std::mem::replace(&mut *door, Door::Unknown) {
            Door::Open(stream) => stream,
            Door::Shut { .. } | Door::Unknown => match self.go_to(pool, replica).await {
                Some(stream) => stream,
                None => {
                    *door = Door::Shut { until: Instant::now() + SHUT_FOR };
                    return None;
                }
            },
        };
        let chunk = span.chunk;
        let asked = tokio::task::spawn_blocking(move || ask(stream, chunk)).await;
        match asked.unwrap_or(Asked::Broken) {
            Asked::Lent(file, stream) => {
                *door = Door::Open(stream);
                let file = Arc::new(file);
                self.hold(key, Some(file.clone()));
                (span.offset + span.length <= file.length).then_some(file)
            }
            Asked::Refused(stream) => {
                *door = Door::Open(stream);
                self.hold(key, None);
                None
            }
            Asked::Broken => None,
        }
    }

    /// Asks the datanode where its door is, and goes there.
    async fn go_to(&self, pool: &Pool, replica: &fs::ReplicaInfo) -> Option<UnixStream> {
        let path = pool.door(&replica.address).await.ok().filter(|path| !path.is_empty())?;
        let (cluster_id, node, patience) = (self.cluster_id.clone(), replica.node, self.patience);
        let entered =
            tokio::task::spawn_blocking(move || enter(Path::new(&path), cluster_id, node, patience));
        match entered.await.ok()? {
            Ok(stream) => Some(stream),
            Err(error) => {
                tracing::debug!(node, %error, "replicas of a datanode on this host are read by way of it");
                None
            }
        }
    }
}

/// Connects, and sees that it is the datanode that was meant.
fn enter(path: &Path, cluster_id: String, node: u32, patience: Duration) -> Result<UnixStream> {
    let stream = passing::connect(path, patience).map_err(broken)?;
    let hello = Hello { version: VERSION, cluster_id };
    match exchange(&stream, request::Kind::Hello(hello))? {
        (response::Kind::Hello(reply), _) if reply.node == node => Ok(stream),
        (response::Kind::Failure(failure), _) => Err(wire::failure_of(failure).0),
        _ => Err(ErrorCode::WrongCluster.because("another datanode answers there")),
    }
}

fn ask(stream: UnixStream, chunk: u64) -> Asked {
    match exchange(&stream, request::Kind::Lend(OpenReplica { chunk })) {
        Ok((response::Kind::Lent(lent), Some(file))) if lent.chunk == chunk => {
            let blocks = lent.length.div_ceil(BLOCK_SIZE as u64);
            if lent.crcs.len() as u64 != blocks {
                return Asked::Refused(stream);
            }
            Asked::Lent(Borrowed { file, length: lent.length, crcs: lent.crcs }, stream)
        }
        Ok((response::Kind::Failure(_), _)) => Asked::Refused(stream),
        Ok(_) | Err(_) => Asked::Broken,
    }
}

fn broken(error: io::Error) -> Error {
    ErrorCode::Unavailable.because(error.to_string())
}

fn exchange(stream: &UnixStream, kind: request::Kind) -> Result<(response::Kind, Option<File>)> {
    let head = frame::encode_head(&Request { kind: Some(kind), request: 0 }, 0)?;
    passing::send(stream, &head, None).map_err(broken)?;
    let mut prefix = [0; PREFIX];
    // A file comes with the first byte.
    let passed = passing::receive_all(stream, &mut prefix).map_err(broken)?;
    let lengths = Lengths::parse(prefix)?;
    if lengths.payload > 0 {
        return Err(ErrorCode::Malformed.because("a payload where none belongs"));
    }
    let mut header = vec![0; lengths.header];
    passing::receive_all(stream, &mut header).map_err(broken)?;
    let response: Response = frame::decode_header(&header)?;
    let kind = response.kind.ok_or_else(|| ErrorCode::Malformed.because("a frame of unknown kind"))?;
    Ok((kind, passed))
}

/// Reads whole blocks and verifies them. What is in memory is read at once: that costs less than telling another thread.
async fn read(file: &Arc<Borrowed>, span: Span) -> Result<Bytes> {
    let block = BLOCK_SIZE as u64;
    let start = span.offset / block * block;
    let end = ((span.offset + span.length).div_ceil(block) * block).min(file.length);
    let length = (end - start) as usize;
    let unread = |error: io::Error| ErrorCode::Io.because(error.to_string());
    let mut bytes = Vec::with_capacity(length);
    match passing::read_ready(&file.file, &mut bytes, length, start) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(unread(error)),
        _ => {}
    }
    if bytes.len() < length {
        let file = file.clone();
        let rest = tokio::task::spawn_blocking(move || {
            let at = bytes.len();
            bytes.resize(length, 0);
            file.file.read_exact_at(&mut bytes[at..], start + at as u64).map(|()| bytes)
        });
        let rest = rest.await.map_err(|error| ErrorCode::Io.because(error.to_string()))?;
        bytes = rest.map_err(unread)?;
    }
    let first = (start / block) as usize;
    let crcs = file.crcs.get(first..).unwrap_or_default();
    if bytes.chunks(BLOCK_SIZE).zip(crcs).any(|(block, crc)| crc32c(block) != *crc) {
        return Err(ErrorCode::Corrupt.because(format!("chunk {}", span.chunk)));
    }
    let from = (span.offset - start) as usize;
    Ok(Bytes::from(bytes).slice(from..from + span.length as usize))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use cairn_host::net::RealNetwork;
    use cairn_proto::data::Lent;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Answers a question about any chunk with a file that holds its number.
    fn lend(stream: &UnixStream) {
        let mut prefix = [0; PREFIX];
        passing::receive_all(stream, &mut prefix).unwrap();
        let mut header = vec![0; Lengths::parse(prefix).unwrap().header];
        passing::receive_all(stream, &mut header).unwrap();
        let request: Request = frame::decode_header(&header).unwrap();
        let Some(request::Kind::Lend(ask)) = request.kind else { panic!("{request:?}") };
        let content = ask.chunk.to_le_bytes();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        let lent = Lent { length: 8, crcs: vec![crc32c(&content)], chunk: ask.chunk };
        let head = frame::encode_head(&Response { kind: Some(response::Kind::Lent(lent)) }, 0).unwrap();
        // Whoever asked may be gone.
        let _ = passing::send(stream, &head, Some(&file));
    }

    /// A client at the door of datanode 1, and the other side of it.
    async fn at_the_door() -> (Local, Pool, UnixStream) {
        let counters = Arc::<Counters>::default();
        let local = Local::new("cluster".into(), PATIENCE, counters.clone());
        let pool = Pool::new("cluster".into(), Arc::new(RealNetwork), PATIENCE, counters);
        let (near, far) = UnixStream::pair().unwrap();
        *local.door(1).lock().await = Door::Open(near);
        (local, pool, far)
    }

    fn replica() -> fs::ReplicaInfo {
        fs::ReplicaInfo { node: 1, address: "127.0.0.1:1".into(), ..Default::default() }
    }

    #[tokio::test]
    async fn an_answer_that_nobody_waited_for_is_not_taken_for_the_next_one() {
        let (local, pool, far) = at_the_door().await;
        let replica = replica();
        let span = |chunk| Span { chunk, offset: 0, length: 8 };
        let asked = tokio::time::timeout(Duration::from_millis(50), local.read(&pool, &replica, span(7)));
        assert!(asked.await.is_err(), "the datanode sleeps");
        let (lent, answered) = tokio::join!(
            local.read(&pool, &replica, span(8)),
            tokio::task::spawn_blocking(move || lend(&far))
        );
        answered.unwrap();
        assert!(lent.is_none_or(|bytes| *bytes == 8u64.to_le_bytes()), "chunk 7's bytes are not chunk 8's");
    }

    #[tokio::test]
    async fn questions_share_a_connection_one_after_the_other() {
        let (local, pool, far) = at_the_door().await;
        let lending = std::thread::spawn(move || (0..3).for_each(|_| lend(&far)));
        let replica = replica();
        for chunk in [7u64, 8, 9, 8] {
            let bytes = local.read(&pool, &replica, Span { chunk, offset: 0, length: 8 }).await.unwrap();
            assert_eq!(*bytes, chunk.to_le_bytes());
        }
        lending.join().unwrap();
    }
}
