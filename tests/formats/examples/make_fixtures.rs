//! Writes the golden files anew: `cargo run -p cairn-formats --example make_fixtures -- DIR`. Never run by tests: what
//! is in `tests/fixtures/v1` was written once and must be read for ever. A new format gets a directory of its own.
//! With a second argument it also writes first inputs for the fuzz targets there.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{env, fs};

use bytes::Bytes;
use cairn_datanode::store::{Admission, Store, StoreConfig};
use cairn_formats::golden;
use cairn_host::disk;
use cairn_namenode::log::{Log, LogOptions, Position, Record};
use cairn_namenode::store::{RedbStore, stream};
use cairn_proto::checksum::BlockCrc;
use cairn_proto::frame;
use prost::Message;

/// What a store and a log of this version may hold.
const NEWEST: &str = "v3";

fn main() {
    let mut args = env::args().skip(1).map(PathBuf::from);
    let out = args.next().expect("a directory to write to");
    fs::create_dir_all(&out).expect("the directory can be made");
    data_directory(&out);
    log(&out);
    store(&out);
    wire(&out);
    if let Some(corpus) = args.next() {
        seed(&out, &corpus);
    }
}

fn data_directory(out: &Path) {
    let dir = out.join("datanode");
    let store =
        Store::open(&StoreConfig { dirs: vec![dir.clone()], ..StoreConfig::default() }).expect("a store");
    store.adopt_cluster("golden").expect("a cluster");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let stream = Arc::new(TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection"));
    for (chunk, length, sealed) in golden::CHUNKS {
        let mut appender = store.open_appender(chunk, 0, &stream).expect("an appender");
        for part in golden::content(chunk, length).chunks(30_000) {
            let mut tail = BlockCrc::default();
            tail.append(&golden::content(chunk, appender.length() as usize));
            let crcs = tail.append(part);
            let Ok(Admission::New { tail }) = appender.admit(appender.length(), &crcs, part) else {
                panic!("an append is refused")
            };
            appender.write(tail, &crcs, part).expect("an append");
        }
        appender.sync().expect("a sync");
        drop(appender);
        if sealed {
            store.seal(chunk, length as u64).expect("a seal");
        }
    }
    drop(store);
    fs::remove_file(dir.join("LOCK")).expect("the lock");
    fs::remove_dir(dir.join("tmp")).expect("nothing is left over");
    for shelf in fs::read_dir(dir.join("chunks")).expect("shelves") {
        // Those that are not empty stay.
        let _ = fs::remove_dir(shelf.expect("a shelf").path());
    }
}

fn log(out: &Path) {
    let dir = out.join("raft-log");
    let log = Log::open(&dir, LogOptions { segment_bytes: 8192, recent_bytes: 1 << 20 }, disk::real())
        .expect("a log");
    for (index, (term, payload)) in (0..).zip(golden::records()) {
        let record = Record { at: Position { index, term }, payload };
        log.append(vec![record], Box::new(|done| done.expect("written"))).expect("an append");
    }
    let committed = golden::VOTE.1;
    log.note_committed(Some(Position { index: committed, term: golden::records()[committed as usize].0 }));
    log.save_vote(Bytes::from_static(golden::VOTE.0), Box::new(|done| done.expect("written")))
        .expect("a vote");
    log.close();
    let _ = fs::remove_file(dir.join("spare.tmp"));
}

fn store(out: &Path) {
    let tables = golden::tables_of(NEWEST);
    let mut snapshot = Vec::new();
    stream::write(&tables, &mut snapshot).expect("a snapshot");
    fs::write(out.join("snapshot"), &snapshot).expect("a file");
    let path = out.join("store.redb");
    let _ = fs::remove_file(&path);
    let store = RedbStore::open(&path, 1 << 20, disk::real()).expect("a store");
    stream::load(&store, &snapshot[..]).expect("it takes its own snapshot");
    store.checkpoint().expect("a checkpoint");
    let commands: Vec<u8> =
        golden::commands_of(NEWEST).iter().flat_map(|batch| batch.encode_length_delimited_to_vec()).collect();
    fs::write(out.join("commands"), commands).expect("a file");
}

fn wire(out: &Path) {
    let mut bytes = Vec::new();
    for (request, payload) in golden::requests() {
        bytes.extend_from_slice(&frame::encode_head(&request, payload.len()).expect("a head"));
        bytes.extend_from_slice(&payload);
    }
    fs::write(out.join("requests"), &bytes).expect("a file");
    bytes.clear();
    for (response, payload) in golden::responses() {
        bytes.extend_from_slice(&frame::encode_head(&response, payload.len()).expect("a head"));
        bytes.extend_from_slice(&payload);
    }
    fs::write(out.join("responses"), &bytes).expect("a file");
}

/// First inputs for the fuzz targets, made of the golden files.
fn seed(out: &Path, corpus: &Path) {
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let dir = corpus.join(target);
        fs::create_dir_all(&dir).expect("a directory");
        fs::write(dir.join(name), bytes).expect("a file");
    };
    let read = |path: &str| fs::read(out.join(path)).expect("a golden file");
    let two = |first: &[u8], second: &[u8]| {
        let length = u16::try_from(first.len()).expect("short enough").to_le_bytes();
        [&length[..], first, second].concat()
    };
    for (index, (request, payload)) in golden::requests().into_iter().enumerate() {
        put(
            "frame",
            &format!("request{index}"),
            &frame::encode_head(&request, payload.len()).expect("a head"),
        );
    }
    for (index, (response, payload)) in golden::responses().into_iter().enumerate() {
        put(
            "frame",
            &format!("response{index}"),
            &frame::encode_head(&response, payload.len()).expect("a head"),
        );
    }
    // Of chunk 7, which the target reads, and small.
    let small = out.join("small");
    let store =
        Store::open(&StoreConfig { dirs: vec![small.clone()], ..StoreConfig::default() }).expect("a store");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let stream = Arc::new(TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection"));
    let mut appender = store.open_appender(7, 0, &stream).expect("an appender");
    for part in [&b"some"[..], b" bytes"] {
        let mut tail = BlockCrc::default();
        tail.append(&b"some"[..appender.length() as usize]);
        let crcs = tail.append(part);
        let Ok(Admission::New { tail }) = appender.admit(appender.length(), &crcs, part) else {
            panic!("refused")
        };
        appender.write(tail, &crcs, part).expect("an append");
    }
    drop(appender);
    let files =
        |suffix: &str| fs::read(small.join(format!("chunks/07/0000000000000007.{suffix}"))).expect("a file");
    put("replica", "open", &two(&files("crc"), &files("data")));
    store.seal(7, 9).expect("a seal");
    put("replica", "sealed", &two(&files("crc"), &files("data")));
    put("replica", "nothing", &two(b"", b"bytes"));
    let version = fs::read(small.join("VERSION")).expect("a file");
    drop(store);
    fs::remove_dir_all(&small).expect("removed");
    put("identity", "version", &two(&version, br#"{"format":1,"began_ns":5,"full_ns":0,"next":3,"verified":1,"total":9,"found":1,"mended":0,"bad":{"4":"x"}}"#));
    put("identity", "golden", &two(&read("datanode/VERSION"), b""));
    let segment = read("raft-log/00000000000000000000.log");
    put("raft_log", "log", &two(&read("raft-log/marks"), &segment[..2048]));
    put("raft_log", "no_marks", &two(b"", &segment[..1024]));
    put("raft_log", "marks", &two(&read("raft-log/marks"), b""));
    put("snapshot", "golden", &read("snapshot"));
    for (index, batch) in golden::commands_of(NEWEST).iter().enumerate() {
        put("apply", &format!("batch{index}"), &batch.encode_to_vec());
        for (number, command) in batch.commands.iter().enumerate() {
            let one = cairn_proto::fs::CommandBatch { time_ns: 100, commands: vec![command.clone()] };
            put("apply", &format!("command{index}-{number}"), &one.encode_to_vec());
        }
    }
}
