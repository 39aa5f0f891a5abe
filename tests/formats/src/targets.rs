//! Programs that take any bytes. None may panic, hang or take much memory, whatever the bytes are.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use cairn_datanode::store::{Scratch, Store, StoreConfig};
use cairn_host::disk::simulated::SimulatedDisk;
use cairn_host::disk::{Access, SharedDisk};
use cairn_metadata::memory::{MemoryStore, Tables};
use cairn_metadata::{apply, check};
use cairn_namenode::log::{Log, LogOptions, Position, Record};
use cairn_namenode::store::stream;
use cairn_proto::data::{Request, Response};
use cairn_proto::frame::{self, Lengths, PREFIX};
use cairn_proto::fs::CommandBatch;
use cairn_proto::limits::{BLOCK_SIZE, MAX_HEADER, MAX_PAYLOAD};
use prost::Message;

use crate::golden;

/// A program and its name, which is that of its directory of inputs.
pub struct Target {
    /// The name.
    pub name: &'static str,
    /// The program.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 6] = [
    Target { name: "frame", run: frame },
    Target { name: "replica", run: replica },
    Target { name: "identity", run: identity },
    Target { name: "raft_log", run: raft_log },
    Target { name: "snapshot", run: snapshot },
    Target { name: "apply", run: apply_any },
];

/// The head of a frame as it comes from the network.
fn frame(input: &[u8]) {
    let Some((prefix, rest)) = input.split_first_chunk::<PREFIX>() else { return };
    let Ok(lengths) = Lengths::parse(*prefix) else { return };
    assert!(lengths.header <= MAX_HEADER && lengths.payload <= MAX_PAYLOAD);
    let header = &rest[..lengths.header.min(rest.len())];
    if let Ok(request) = frame::decode_header::<Request>(header) {
        let head = frame::encode_head(&request, lengths.payload).expect("what came in goes out");
        assert_eq!(frame::decode_header::<Request>(&head[PREFIX..]).expect("our own"), request);
    }
    let _ = frame::decode_header::<Response>(header);
}

/// The first two bytes say how many of the others are the first part.
fn two_parts(input: &[u8]) -> (&[u8], &[u8]) {
    let Some((length, rest)) = input.split_first_chunk::<2>() else { return (input, &[]) };
    rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()))
}

fn put(disk: &SharedDisk, path: &str, bytes: &[u8]) {
    let file = disk.open(Path::new(path), Access::Create).expect("the disk takes files");
    file.write_at(bytes, 0).expect("the disk takes bytes");
}

/// A disk with an empty data directory, whose datanode has stopped.
fn data_directory() -> (SharedDisk, StoreConfig) {
    let disk: SharedDisk = Arc::new(SimulatedDisk::new(1).mount());
    let config = StoreConfig { dirs: vec!["/data".into()], disk: disk.clone(), ..StoreConfig::default() };
    let store = Store::open(&config).expect("an empty disk");
    store.adopt_cluster("fuzz").expect("the first cluster");
    (disk, config)
}

/// A replica with any checksum file and any data file: what is served of it was vouched for, and nothing falls over.
fn replica(input: &[u8]) {
    const CHUNK: u64 = 7;
    let (sums, data) = two_parts(input);
    let (disk, config) = data_directory();
    put(&disk, "/data/chunks/07/0000000000000007.crc", sums);
    put(&disk, "/data/chunks/07/0000000000000007.data", data);
    let Ok(store) = Store::open(&config) else { return };
    store.check_all(|| false);
    let page = store.inventory_page(0, 10);
    if let Ok(replica) = store.get(CHUNK) {
        let length = replica.length().min(4 * BLOCK_SIZE as u64);
        let mut scratch = Scratch::default();
        for at in (0..length).step_by(BLOCK_SIZE) {
            if let Ok(range) = replica.read(at, BLOCK_SIZE.min((length - at) as usize), &mut scratch) {
                let bytes = scratch.bytes(range);
                assert!(at as usize + bytes.len() <= data.len(), "bytes that no file holds");
            }
        }
        let _ = replica.verify(&mut |_| true);
        let _ = store.seal(CHUNK, replica.length().min(data.len() as u64));
        assert!(page.replicas.iter().all(|report| report.chunk == CHUNK));
    }
    let _ = store.delete(CHUNK);
}

/// Any `VERSION` file and any record of how far scrubbing is.
fn identity(input: &[u8]) {
    let (version, scrub) = two_parts(input);
    let (disk, config) = data_directory();
    put(&disk, "/data/VERSION", version);
    put(&disk, "/data/SCRUB", scrub);
    if let Ok(store) = Store::open(&config) {
        let plan = cairn_datanode::scrub::Plan { period: std::time::Duration::ZERO, bytes_per_second: 0 };
        if let Ok(scrubber) = cairn_datanode::scrub::Scrubber::start(Arc::new(store), plan) {
            let _ = scrubber.info();
        }
    }
}

/// A log with any marks and any segment: it is refused, or it goes on and keeps what it has.
fn raft_log(input: &[u8]) {
    const SEGMENT: u32 = 4096;
    let (marks, segment) = two_parts(input);
    let disk: SharedDisk = Arc::new(SimulatedDisk::new(1).mount());
    disk.create_dir(Path::new("/log")).expect("the disk takes directories");
    if !marks.is_empty() {
        put(&disk, "/log/marks", marks);
    }
    if !segment.is_empty() {
        let mut content = segment[..segment.len().min(SEGMENT as usize)].to_vec();
        content.resize(SEGMENT as usize, 0);
        put(&disk, "/log/00000000000000000000.log", &content);
    }
    let options = LogOptions { segment_bytes: SEGMENT, recent_bytes: 1024 };
    let Ok(log) = Log::open(Path::new("/log"), options, disk.clone()) else { return };
    let held = log.read(0..u64::MAX, usize::MAX).unwrap_or_default();
    let next = log.last().map_or(0, |last| last.index.saturating_add(1));
    let at = Position { index: next, term: log.last().map_or(1, |last| last.term) };
    let more = Record { at, payload: bytes::Bytes::from_static(b"more") };
    let appended = log.append(vec![more.clone()], Box::new(|_| {})).is_ok();
    log.close();
    drop(log);
    if appended && next < u64::MAX - 1 {
        let log = Log::open(Path::new("/log"), options, disk).expect("what it accepted it opens again");
        let again = log.read(0..u64::MAX, usize::MAX).expect("what it accepted it reads again");
        assert_eq!(again.split_last(), Some((&more, &held[..])));
    }
}

/// A snapshot from another namenode.
fn snapshot(input: &[u8]) {
    let sound = stream::verify(input).is_ok();
    let loaded = stream::load(&MemoryStore::default(), input).is_ok();
    assert_eq!(sound, loaded, "what is verified is what can be loaded");
}

/// Any commands on a small cluster: every one has an outcome, and what must hold holds afterwards.
fn apply_any(input: &[u8]) {
    static BEFORE: LazyLock<Tables> = LazyLock::new(|| golden::tables_of("v3"));
    let Ok(batch) = CommandBatch::decode(input) else { return };
    let mut tables = BEFORE.clone();
    let outcomes = apply(&mut tables, &batch).expect("commands are refused, never a fault of the store");
    assert_eq!(outcomes.len(), batch.commands.len());
    let wrong = check::check(&tables).expect("the store is sound");
    assert!(wrong.is_empty(), "{wrong:?} after {batch:?}");
}
