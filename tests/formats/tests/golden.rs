//! Today's code reads what earlier versions wrote (`tests/fixtures/v1`), and gets what they meant.

use std::fs;
use std::path::{Path, PathBuf};

use cairn_datanode::store::{Phase, Scratch, Store, StoreConfig};
use cairn_formats::golden;
use cairn_host::disk;
use cairn_metadata::memory::{MemoryStore, Tables};
use cairn_metadata::store::{Table, Txn};
use cairn_namenode::log::{Log, LogOptions};
use cairn_namenode::store::{RedbStore, stream};
use cairn_proto::ErrorCode;
use cairn_proto::frame::{self, Lengths, PREFIX};
use cairn_proto::fs::CommandBatch;
use prost::Message;
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    fixture_of("v1", name)
}

fn fixture_of(version: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(version).join(name)
}

/// A copy that may be written to.
fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

fn copied(name: &str) -> (TempDir, PathBuf) {
    copied_of("v1", name)
}

fn copied_of(version: &str, name: &str) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("copy");
    copy(&fixture_of(version, name), &path);
    (dir, path)
}

#[test]
fn a_data_directory_with_open_and_sealed_chunks() {
    let (_dir, path) = copied("datanode");
    let config = StoreConfig { dirs: vec![path], ..StoreConfig::default() };
    let store = Store::open(&config).unwrap();
    assert_eq!(store.cluster_id().as_deref(), Some("golden"));
    store.check_all(|| false);
    let mut scratch = Scratch::default();
    for (chunk, length, sealed) in golden::CHUNKS {
        let replica = store.get(chunk).unwrap();
        assert_eq!(
            (replica.length(), replica.phase() == Phase::Sealed),
            (length as u64, sealed),
            "chunk {chunk}"
        );
        let range = replica.read(0, length, &mut scratch).unwrap();
        assert!(scratch.bytes(range) == golden::content(chunk, length), "chunk {chunk}");
        assert!(replica.verify(&mut |_| true).unwrap());
        // What is open can be sealed by this version.
        store.seal(chunk, length as u64).unwrap();
    }
}

#[test]
fn a_raft_log() {
    let (_dir, path) = copied("raft-log");
    let options = LogOptions { segment_bytes: 8192, recent_bytes: 1 << 20 };
    let log = Log::open(&path, options, disk::real()).unwrap();
    let read = log.read(0..u64::MAX, usize::MAX).unwrap();
    let read: Vec<_> = read.into_iter().map(|record| (record.at.term, record.payload)).collect();
    assert_eq!(read, golden::records());
    assert_eq!(log.vote().as_deref(), Some(golden::VOTE.0));
    assert_eq!(log.committed().map(|at| at.index), Some(golden::VOTE.1));
}

#[test]
fn a_snapshot_and_a_store() {
    for version in ["v1", "v2", "v3"] {
        let snapshot = fs::read(fixture_of(version, "snapshot")).unwrap();
        stream::verify(&snapshot[..]).unwrap();
        let loaded = MemoryStore::default();
        stream::load(&loaded, &snapshot[..]).unwrap();
        assert_eq!(upgraded(&loaded), golden::tables_of(version), "{version}");
        let (_dir, path) = copied_of(version, "store.redb");
        let store = RedbStore::open(&path, 1 << 20, disk::real()).unwrap();
        assert_eq!(upgraded(&store), golden::tables_of(version), "{version}");
    }
}

#[test]
fn a_store_with_slots_in_its_first_page() {
    let (_dir, path) = copied_of("v4", "store.redb");
    let store = RedbStore::open(&path, 1 << 20, disk::real()).unwrap();
    assert_eq!(upgraded(&store), golden::tables_of("v3"));
}

/// Everything in a store, as this version would go on with it.
fn upgraded(store: &dyn cairn_metadata::store::Store) -> Tables {
    let mut tables = dump(store);
    cairn_metadata::upgrade(&mut tables).unwrap();
    tables
}

/// Everything in a store.
fn dump(store: &dyn cairn_metadata::store::Store) -> Tables {
    let mut tables = Tables::default();
    store
        .read(&mut |view| {
            for table in Table::ALL {
                view.scan(table, &[], &[], &mut |key, value| {
                    tables.put(table, key, value).unwrap();
                    std::ops::ControlFlow::Continue(())
                })?;
            }
            Ok(())
        })
        .unwrap();
    tables
}

#[test]
fn frames_on_the_wire() {
    let bytes = fs::read(fixture("requests")).unwrap();
    assert_eq!(frames(&bytes), golden::requests());
    let bytes = fs::read(fixture("responses")).unwrap();
    assert_eq!(frames(&bytes), golden::responses());
}

fn frames<M: Message + Default>(mut bytes: &[u8]) -> Vec<(M, bytes::Bytes)> {
    let mut frames = Vec::new();
    while let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() {
        let Lengths { header, payload } = Lengths::parse(*prefix).unwrap();
        let message = frame::decode_header(&rest[..header]).unwrap();
        frames.push((message, bytes::Bytes::copy_from_slice(&rest[header..header + payload])));
        bytes = &rest[header + payload..];
    }
    assert!(bytes.is_empty());
    frames
}

#[test]
fn commands_of_the_log() {
    for version in ["v1", "v2", "v3"] {
        let bytes = fs::read(fixture_of(version, "commands")).unwrap();
        let mut rest = &bytes[..];
        let mut batches = Vec::new();
        while !rest.is_empty() {
            batches.push(CommandBatch::decode_length_delimited(&mut rest).unwrap());
        }
        assert_eq!(batches, golden::commands_of(version), "{version}");
    }
}

#[test]
fn what_a_later_version_wrote_is_refused_by_its_version() {
    let (_dir, path) = copied("datanode");
    let open = || Store::open(&StoreConfig { dirs: vec![path.clone()], ..StoreConfig::default() });
    let version = path.join("VERSION");
    let text = fs::read_to_string(&version).unwrap();
    fs::write(&version, text.replace("\"format\": 1", "\"format\": 9")).unwrap();
    let error = open().unwrap_err();
    assert!(error.code == ErrorCode::Version && error.detail.contains("format 9"), "{error}");

    let (_dir, log) = copied("raft-log");
    let options = LogOptions { segment_bytes: 8192, recent_bytes: 1 << 20 };
    let refused = |file: &str, at: usize| {
        let path = log.join(file);
        let before = fs::read(&path).unwrap();
        let mut newer = before.clone();
        newer[at] = b'7';
        fs::write(&path, newer).unwrap();
        let said = Log::open(&log, options, disk::real()).unwrap_err().to_string();
        fs::write(&path, before).unwrap();
        said
    };
    for (file, at) in [("marks", 7), ("00000000000000000000.log", 7)] {
        let said = refused(file, at);
        assert!(said.contains("version 7") && said.contains("version 1"), "{said}");
    }
    let mut snapshot = fs::read(fixture("snapshot")).unwrap();
    snapshot[7] = b'7';
    let said = stream::verify(&snapshot[..]).unwrap_err().to_string();
    assert!(said.contains("version 7"), "{said}");
    let said = stream::load(&MemoryStore::default(), &snapshot[..]).unwrap_err().to_string();
    assert!(said.contains("version 7"), "{said}");
}
